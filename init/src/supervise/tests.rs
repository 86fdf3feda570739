use super::*;
use crate::update::{GateBaseline, GateStep, GateVault, GateView, UpdateGate};

fn wanted() -> NodeSupervisor {
    let mut supervisor = NodeSupervisor::new(0);
    assert_eq!(supervisor.order(0, 0), None, "it is not wanted yet");
    supervisor.start(0);
    supervisor
}

fn running() -> NodeSupervisor {
    let mut supervisor = wanted();
    assert_eq!(supervisor.order(0, 0), Some(SupervisorAction::Spawn));
    supervisor.spawned(0);
    supervisor.ready(10);
    supervisor
}

/// Asks and answers until `until`.
fn live(supervisor: &mut NodeSupervisor, from: u64, until: u64) {
    for ms in (from..until).step_by(100) {
        while let Some(order) = supervisor.order(ms, 0) {
            let SupervisorAction::Ask(number) = order else {
                panic!("a well node is only asked, not {order:?}");
            };
            supervisor.answered(number, true, ms, 0);
        }
    }
}

#[test]
fn pauses_double_up_to_the_limit_and_start_over_after_a_good_time() {
    let mut supervisor = wanted();
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..11 {
        assert_eq!(supervisor.order(now, 0), Some(SupervisorAction::Spawn));
        supervisor.spawned(now);
        supervisor.ready(now);
        assert!(supervisor.exited(now));
        let until = supervisor.deadline().expect("it waits");
        pauses.push(until - now);
        now = until;
    }
    assert_eq!(pauses[..4], [100, 200, 400, 800]);
    assert_eq!(pauses[9..], [PAUSE_MS_MAX, PAUSE_MS_MAX]);
    assert_eq!(supervisor.restarts(), 11);
    supervisor.spawned(now);
    supervisor.ready(now);
    live(&mut supervisor, now, now + WELL_MS_RESET);
    assert!(supervisor.exited(now + WELL_MS_RESET));
    assert_eq!(
        supervisor.deadline(),
        Some(now + WELL_MS_RESET + PAUSE_MS_MIN)
    );
}

#[test]
fn a_node_that_does_not_answer_is_aborted_then_killed() {
    let mut supervisor = running();
    let asked = supervisor.deadline().expect("a question is due");
    assert_eq!(supervisor.order(asked, 0), Some(SupervisorAction::Ask(1)));
    assert_eq!(supervisor.order(asked, 0), None);
    let silent = supervisor.deadline().expect("an answer is due");
    assert_eq!(silent, asked + ANSWER_MS_MAX);
    assert_eq!(supervisor.order(silent - 1, 0), None);
    assert_eq!(supervisor.order(silent, 0), Some(SupervisorAction::Abort));
    assert_eq!(supervisor.order(silent + ABORT_MS_MAX - 1, 0), None);
    assert_eq!(
        supervisor.order(silent + ABORT_MS_MAX, 0),
        Some(SupervisorAction::Kill)
    );
    assert_eq!(supervisor.order(silent + ABORT_MS_MAX, 0), None);
    assert!(supervisor.exited(silent + ABORT_MS_MAX + 5));
    assert_eq!(supervisor.restarts(), 1);
}

#[test]
fn a_node_that_computes_has_longer() {
    let mut supervisor = running();
    let asked = supervisor.deadline().expect("a question is due");
    assert_eq!(supervisor.order(asked, 70), Some(SupervisorAction::Ask(1)));
    let part = ANSWER_MS_MAX / COMPUTING_PART;
    for look in 1..ANSWER_MS_MAX_COMPUTING / ANSWER_MS_MAX {
        let now = supervisor.deadline().expect("a look is due");
        assert_eq!(now, asked + look * ANSWER_MS_MAX);
        assert_eq!(supervisor.order(now, 70 + look * part), None);
    }
    let last = supervisor.deadline().expect("a look is due");
    assert_eq!(last, asked + ANSWER_MS_MAX_COMPUTING);
    assert_eq!(
        supervisor.order(last, 1_000_000),
        Some(SupervisorAction::Abort)
    );

    let mut supervisor = running();
    assert_eq!(supervisor.order(asked, 70), Some(SupervisorAction::Ask(1)));
    let now = supervisor.deadline().expect("a look is due");
    assert_eq!(supervisor.order(now, 70 + part), None);
    let now = supervisor.deadline().expect("a look is due");
    let less = 70 + 2 * part - 1;
    assert_eq!(supervisor.order(now, less), Some(SupervisorAction::Abort));
}

#[test]
fn a_machine_that_stood_still_is_no_node_that_hangs() {
    let mut supervisor = running();
    let asked = supervisor.deadline().expect("a question is due");
    assert_eq!(supervisor.order(asked, 0), Some(SupervisorAction::Ask(1)));
    let late = asked + ANSWER_MS_MAX + LATE_MS;
    assert_eq!(supervisor.order(late, 0), None);
    let silent = supervisor.deadline().expect("an answer is due");
    assert_eq!(silent, late + ANSWER_MS_MAX);
    assert_eq!(supervisor.order(silent, 0), Some(SupervisorAction::Abort));
}

#[test]
fn a_node_that_starts_is_not_asked() {
    let mut supervisor = wanted();
    supervisor.spawned(0);
    assert_eq!(supervisor.deadline(), Some(READY_MS_MAX));
    assert_eq!(supervisor.order(READY_MS_MAX - 2, 0), None);
    supervisor.ready(READY_MS_MAX - 1);
    assert_eq!(supervisor.deadline(), Some(READY_MS_MAX - 1 + ASK_EVERY_MS));
    assert_eq!(supervisor.order(READY_MS_MAX, 0), None);
}

#[test]
fn an_answer_to_another_question_does_not_count() {
    let mut supervisor = running();
    let asked = supervisor.deadline().expect("a question is due");
    assert_eq!(supervisor.order(asked, 0), Some(SupervisorAction::Ask(1)));
    supervisor.answered(0, true, asked + 1, 0);
    supervisor.answered(2, true, asked + 1, 0);
    assert_eq!(
        supervisor.order(asked + ANSWER_MS_MAX, 0),
        Some(SupervisorAction::Abort)
    );
}

#[test]
fn a_node_that_says_it_is_unwell_is_restarted_after_some_answers() {
    let mut supervisor = running();
    for round in 1..=u64::from(UNWELL_ANSWERS_MAX) {
        let now = supervisor.deadline().expect("a question is due");
        assert_eq!(supervisor.order(now, 0), Some(SupervisorAction::Ask(round)));
        supervisor.answered(round, false, now, 0);
    }
    let now = supervisor.deadline().expect("a question is due");
    assert_eq!(supervisor.order(now, 0), Some(SupervisorAction::Abort));
}

#[test]
fn a_node_that_says_it_is_unwell_while_it_computes_has_longer() {
    let mut supervisor = running();
    let mut number = 0;
    let first = supervisor.deadline().expect("a question is due");
    let aborted = loop {
        let now = supervisor.deadline().expect("a question is due");
        // A tenth of a processor since the question before.
        let computed = now / COMPUTING_PART + 1;
        match supervisor.order(now, computed) {
            Some(SupervisorAction::Abort) => break now,
            order => assert_eq!(order, Some(SupervisorAction::Ask(number + 1))),
        }
        number += 1;
        supervisor.answered(number, false, now + 1_000, computed + 100);
    };
    let counted = u64::from(UNWELL_ANSWERS_MAX) * ASK_EVERY_MS;
    assert_eq!(aborted, first + ANSWER_MS_MAX_COMPUTING + counted);

    // One "well" answer restarts the time.
    let mut supervisor = running();
    for number in 1..=40 {
        let now = supervisor.deadline().expect("a question is due");
        let computed = now / COMPUTING_PART + 1;
        assert_eq!(
            supervisor.order(now, computed),
            Some(SupervisorAction::Ask(number))
        );
        supervisor.answered(
            number,
            number.is_multiple_of(10),
            now + 1_000,
            computed + 100,
        );
    }
}

/// A version on trial whose node gives these answers: how its gate ends.
fn trial(computes: bool, is_well: impl Fn(u64) -> bool) -> GateStep {
    let mut supervisor = running();
    let mut gate = UpdateGate::new(GateBaseline::from_note(None), 0);
    for number in 1.. {
        let now = supervisor.deadline().expect("a question is due");
        let computed = if computes { now } else { 0 };
        match supervisor.order(now, computed) {
            // As the machine does when its node ends.
            Some(SupervisorAction::Abort) => return GateStep::GiveUp("its node ended".to_owned()),
            order => assert_eq!(order, Some(SupervisorAction::Ask(number))),
        }
        supervisor.answered(number, is_well(number), now + 1_000, computed);
        let view = GateView {
            serves: supervisor.serves(),
            is_well: supervisor.is_well(),
            answers_itself: true,
            life: 1,
            vault: GateVault::Open,
            data_writable: true,
            config_taken: true,
        };
        match gate.step(&view, now + 1_000) {
            Some(GateStep::Wait(_)) => {}
            step => return step.expect("the gate is not over"),
        }
    }
    unreachable!("the gate gives up after ten minutes");
}

/// A client keeps the processors busy for a second now and then, so that an accept loop answers late.
#[test]
fn clients_that_make_answers_late_keep_no_version_from_its_confirmation() {
    for every in [12, 6, 2] {
        let step = trial(true, |number| !number.is_multiple_of(every));
        assert_eq!(step, GateStep::Confirm, "one in {every}");
    }
    // A node that is unwell at rest, or most of the time, is of a version that does not work.
    let idle = trial(false, |number| !number.is_multiple_of(12));
    assert!(matches!(idle, GateStep::GiveUp(_)), "{idle:?}");
    let busy = trial(true, |number| number.is_multiple_of(3));
    assert!(matches!(busy, GateStep::GiveUp(_)), "{busy:?}");
    let never = trial(true, |_| false);
    assert!(matches!(never, GateStep::GiveUp(_)), "{never:?}");
}

#[test]
fn a_node_that_computes_has_longer_until_it_serves() {
    let mut supervisor = wanted();
    supervisor.spawned(0);
    let part = READY_MS_MAX / COMPUTING_PART;
    for look in 1..READY_MS_MAX_COMPUTING / READY_MS_MAX {
        let now = supervisor.deadline().expect("a look is due");
        assert_eq!(now, look * READY_MS_MAX);
        assert_eq!(supervisor.order(now, look * part), None);
    }
    let last = supervisor.deadline().expect("a look is due");
    assert_eq!(last, READY_MS_MAX_COMPUTING);
    assert_eq!(supervisor.order(last, last), Some(SupervisorAction::Abort));
    assert!(supervisor.alive(last), "the machine gives it up first");

    // The machine stood still while the node started.
    let mut supervisor = wanted();
    supervisor.spawned(0);
    let late = READY_MS_MAX + LATE_MS;
    assert_eq!(supervisor.order(late, 0), None);
    assert_eq!(supervisor.order(late + READY_MS_MAX - 1, 0), None);
    assert_eq!(
        supervisor.order(late + READY_MS_MAX, 0),
        Some(SupervisorAction::Abort)
    );
}

/// Runs nodes that compute and neither answer nor serve, the first started at `spawned`, until `ends` of them
/// were aborted. Returns when the last one ended.
fn nodes_compute(supervisor: &mut NodeSupervisor, mut spawned: u64, ends: u32) -> u64 {
    let until = supervisor.restarts() + ends;
    loop {
        let now = supervisor.deadline().expect("something is due");
        assert!(supervisor.alive(now), "the machine gives up at {now}");
        match supervisor.order(now, now - spawned) {
            Some(SupervisorAction::Spawn) => {
                supervisor.spawned(now);
                spawned = now;
            }
            Some(SupervisorAction::Kill) => {
                assert!(supervisor.exited(now), "it was ill");
            }
            Some(SupervisorAction::Drain) => panic!("nothing asked it to end"),
            Some(SupervisorAction::Abort | SupervisorAction::Ask(_)) | None => {}
        }
        if supervisor.restarts() == until {
            break now;
        }
    }
}

/// Peers make one node compute until it does not answer, and each one after it until it does not serve.
#[test]
fn nodes_that_compute_one_after_the_other_are_restarted_before_the_machine_is() {
    let mut supervisor = running();
    let last = nodes_compute(&mut supervisor, 0, GRACES_MAX + 1);
    assert!(
        !supervisor.alive(last + GRACE_MS),
        "the last one has no more time than any"
    );

    // After a node that serves, each has that time again.
    let now = supervisor.deadline().expect("the next one is due");
    assert_eq!(supervisor.order(now, 0), Some(SupervisorAction::Spawn));
    supervisor.spawned(now);
    supervisor.ready(now);
    let last = nodes_compute(&mut supervisor, now, GRACES_MAX + 1);
    assert!(!supervisor.alive(last + GRACE_MS));
}

/// The same if the node reports all the while that it is unwell, as late as it may.
#[test]
fn a_node_that_computes_and_says_it_is_unwell_is_restarted_before_the_machine_is() {
    let mut supervisor = running();
    let mut now = 0;
    for number in 1..=40 {
        now = now.max(supervisor.deadline().expect("a question is due"));
        match supervisor.order(now, now) {
            Some(SupervisorAction::Abort) => break,
            order => assert_eq!(order, Some(SupervisorAction::Ask(number))),
        }
        now += ANSWER_MS_MAX - 1;
        supervisor.answered(number, false, now, now);
    }
    nodes_compute(&mut supervisor, 0, GRACES_MAX + 1);
}

/// The administrator restarts a node that peers keep silent.
#[test]
fn the_node_after_a_planned_restart_has_all_of_its_time_to_serve() {
    let mut supervisor = running();
    let asked = supervisor.deadline().expect("a question is due");
    assert_eq!(
        supervisor.order(asked, asked),
        Some(SupervisorAction::Ask(1))
    );
    let now = asked + ANSWER_MS_MAX_COMPUTING - 1;
    assert_eq!(supervisor.restart(now), Some(SupervisorAction::Drain));
    let now = supervisor.deadline().expect("it has to end");
    assert_eq!(supervisor.order(now, now), Some(SupervisorAction::Kill));
    assert!(!supervisor.exited(now), "it was asked for");
    nodes_compute(&mut supervisor, now, 1);
}

/// A busy machine makes PID 1 look late each time.
#[test]
fn looks_that_are_all_late_come_to_an_end() {
    let mut supervisor = running();
    let asked = supervisor.deadline().expect("a question is due");
    assert_eq!(supervisor.order(asked, 0), Some(SupervisorAction::Ask(1)));
    let looks = ANSWER_MS_MAX_COMPUTING / ANSWER_MS_MAX;
    for _ in 1..looks {
        let now = supervisor.deadline().expect("a look is due") + LATE_MS;
        assert_eq!(supervisor.order(now, 0), None);
    }
    let now = supervisor.deadline().expect("a look is due") + LATE_MS;
    assert_eq!(supervisor.order(now, 0), Some(SupervisorAction::Abort));
    assert!(supervisor.alive(now), "the machine gives it up first");
    assert!(supervisor.exited(now));
    // The node could not answer, so the next one has all of its time.
    assert!(supervisor.alive(now + GRACE_MS));
}

#[test]
fn a_node_that_never_serves_is_restarted() {
    let mut supervisor = wanted();
    supervisor.spawned(0);
    let mut aborted = None;
    for ms in (0..=READY_MS_MAX).step_by(100) {
        match supervisor.order(ms, 0) {
            Some(SupervisorAction::Abort) => aborted = Some(ms),
            Some(order) => panic!("a node that starts is let be, not {order:?}"),
            None => {}
        }
    }
    assert_eq!(aborted, Some(READY_MS_MAX));
}

#[test]
fn the_watchdog_waits_for_the_grace_and_no_longer() {
    let mut supervisor = running();
    live(&mut supervisor, 10, 20_000);
    assert!(supervisor.exited(20_000));
    assert!(supervisor.alive(20_000 + GRACE_MS - ASK_EVERY_MS - 100));
    assert!(!supervisor.alive(20_000 + GRACE_MS + 1));
}

#[test]
fn answers_without_serving_do_not_feed_the_watchdog() {
    let mut supervisor = wanted();
    supervisor.spawned(0);
    supervisor.answered(0, true, ASK_EVERY_MS, 0);
    supervisor.answered(1, true, ASK_EVERY_MS, 0);
    assert!(!supervisor.alive(GRACE_MS + 1));
}

#[test]
fn a_planned_restart_counts_as_no_failure_and_does_not_wait() {
    let mut supervisor = running();
    assert_eq!(supervisor.restart(100), Some(SupervisorAction::Drain));
    assert_eq!(supervisor.restart(100), None);
    assert_eq!(supervisor.order(100, 0), None);
    assert!(!supervisor.exited(200));
    assert_eq!(supervisor.order(200, 0), Some(SupervisorAction::Spawn));
    assert_eq!(supervisor.restarts(), 0);
}

#[test]
fn a_node_that_is_not_wanted_ends_and_is_not_missed() {
    let mut supervisor = running();
    assert_eq!(supervisor.idle(100), Some(SupervisorAction::Drain));
    assert_eq!(supervisor.idle(100), None);
    assert!(!supervisor.exited(200));
    assert_eq!(supervisor.order(10 * GRACE_MS, 0), None);
    assert!(supervisor.alive(10 * GRACE_MS));
    supervisor.start(10 * GRACE_MS);
    assert!(supervisor.alive(10 * GRACE_MS));
    assert_eq!(
        supervisor.order(10 * GRACE_MS, 0),
        Some(SupervisorAction::Spawn)
    );
    assert_eq!(supervisor.restarts(), 0);
}

#[test]
fn the_last_word_counts_while_it_ends() {
    let mut supervisor = running();
    supervisor.idle(100);
    supervisor.start(150);
    assert!(!supervisor.exited(200));
    assert_eq!(supervisor.order(200, 0), Some(SupervisorAction::Spawn));
    supervisor.spawned(200);
    supervisor.restart(300);
    supervisor.idle(350);
    assert!(!supervisor.exited(400));
    assert_eq!(supervisor.order(500, 0), None);
}

#[test]
fn a_planned_restart_is_enforced() {
    let mut supervisor = running();
    supervisor.restart(100);
    assert_eq!(
        supervisor.order(100 + DRAIN_MS_MAX + GOODBYE_MS_MAX, 0),
        Some(SupervisorAction::Kill)
    );
    assert!(!supervisor.exited(100 + DRAIN_MS_MAX + GOODBYE_MS_MAX + 1));
}

#[test]
fn a_lost_channel_kills_what_does_not_end_by_itself() {
    let mut supervisor = running();
    supervisor.lost(100);
    assert_eq!(supervisor.order(100, 0), None);
    assert_eq!(
        supervisor.order(100 + ABORT_MS_MAX, 0),
        Some(SupervisorAction::Kill)
    );
    supervisor.lost(100 + ABORT_MS_MAX);
    assert!(supervisor.exited(3000));
}

#[test]
fn a_machine_that_goes_down_starts_nothing() {
    let mut supervisor = running();
    supervisor.hold();
    assert!(!supervisor.exited(50));
    assert_eq!(supervisor.order(u64::MAX, 0), None);
    assert_eq!(supervisor.deadline(), None);
}
