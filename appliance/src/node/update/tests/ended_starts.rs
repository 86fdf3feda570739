//! Planned starts whose program another caller replaces, and who learns of it.

use super::attacks::{scheduled, upload};
use super::operations::{ADMIN, UpdateCaller};
use super::scheduled_starts::{
    bench, file, let_tasks_run, not_started, restart_with, staged, start, starts, wait_until,
};
use super::*;
use crate::node::update::scheduled_start::{LATE_S_MAX, ScheduledStart, StartTurn};

const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);

fn set_state(bench: &NodeUpdateBench, state: &str) {
    bench.set(|facts| facts.update.state = state.to_owned());
}

/// The ends of planned starts that PID 1 was to log: the version, the reason and the caller.
pub(super) fn unscheduled(bench: &NodeUpdateBench) -> Vec<[String; 3]> {
    let requests = bench.requests().into_iter();
    let ends = requests.filter_map(|(request, by)| match request {
        UpdateRequest::Unscheduled { version, reason } => Some([version, reason, by]),
        _ => None,
    });
    ends.collect()
}

/// Stages the program with this SHA-256 for a caller.
async fn stage_as(bench: &NodeUpdateBench, bundle: StagingRequest, sha256: &'static str) {
    let ended = &bench.updates.0.attempts.staged;
    let before = ended.load(Ordering::Relaxed);
    bench.judge(Verdict::PlansOf(sha256));
    let owner = bundle.owner.clone();
    let session = bench.updates.0.sessions.begin(bundle, None);
    let session = session.expect("it begins");
    bench.updates.watch(&session);
    let id = session.id.clone();
    drop(session);
    let piece = (0, Bytes::from_static(b"a bundle!"));
    let written = bench.updates.0.sessions.write((&id, &owner), piece).await;
    written.expect("it is staged");
    staged(bench, sha256);
    wait_until(|| ended.load(Ordering::Relaxed) > before).await;
}

/// An administrator has planned a start, and looks whether it still holds after another caller has staged a program.
#[tokio::test]
async fn a_start_that_another_staging_ends_is_in_the_status_the_problems_and_the_log() {
    for (who, limited, unasked) in [
        ("ada", false, false),
        ("eve", true, false),
        ("hub", false, true),
    ] {
        let mut bench = bench();
        let at = start(3600).at;
        let node = UpdateCaller::new(&bench.updates);
        let in_an_hour = json!({ "at": at.to_string() });
        let set = node.call(ADMIN, "update/apply", in_an_hour.clone());
        set.await.expect("it waits");
        let bundle = StagingRequest {
            owner: who.to_owned(),
            by: who.to_owned(),
            limited,
            unasked,
            ..request(9)
        };
        stage_as(&bench, bundle.clone(), "b2").await;
        wait_until(|| !unscheduled(&bench).is_empty()).await;
        let reason = format!("{who} has staged another program, of version 1.1.0");
        let text = Some(format!(
            "version 1.1.0 does not start at {at}, as planned: {reason}"
        ));
        assert_eq!(not_started(&bench), text);
        let status = node.call(ADMIN, "update/status", Value::Null).await;
        let status = status.expect("a status");
        assert_eq!(status["scheduled"], Value::Null);
        let shown =
            json!({ "version": "1.1.0", "at": at.to_string(), "by": "admin", "reason": reason });
        assert_eq!(status["not_started"], shown);
        let logged = format!("it does not start at {at}, as admin had planned: {reason}");
        let logged = ["1.1.0", logged.as_str(), who].map(str::to_owned);
        assert_eq!(unscheduled(&bench), std::slice::from_ref(&logged));
        // One more program does not hide it, nor does a restart of the node.
        stage_as(&bench, bundle, "c3").await;
        let_tasks_run().await;
        assert_eq!(not_started(&bench), text);
        bench.restart();
        let_tasks_run().await;
        assert_eq!(not_started(&bench), text);
        assert_eq!(unscheduled(&bench), [logged]);
        assert_eq!(starts(&bench), 0);
        // Another moment ends it.
        let node = UpdateCaller::new(&bench.updates);
        let set = node.call(ADMIN, "update/apply", in_an_hour).await;
        set.expect("it waits");
        assert_eq!(not_started(&bench), None);
    }
}

/// The node ended between the staging and its note.
#[tokio::test]
async fn a_start_ends_with_a_reason_if_another_program_is_staged_after_a_restart() {
    let mut bench = bench();
    staged(&bench, "b2");
    restart_with(&mut bench, &start(-1));
    wait_until(|| !unscheduled(&bench).is_empty()).await;
    assert_eq!(starts(&bench), 0);
    let text = not_started(&bench).expect("a problem");
    assert!(
        text.ends_with("another program was staged, of version 1.1.0"),
        "{text}"
    );
    // It is about a version that waits.
    bench.set(|facts| facts.update.state = "good".to_owned());
    assert_eq!(not_started(&bench), None);
}

/// A client sends another bundle slowly. PID 1 has emptied the slot for it, and the power fails.
#[tokio::test]
async fn a_start_whose_program_a_power_cut_has_lost_is_a_problem_and_in_the_log() {
    let mut bench = bench();
    set_state(&bench, "idle");
    let planned = start(3600);
    restart_with(&mut bench, &planned);
    wait_until(|| !unscheduled(&bench).is_empty()).await;
    let reason = "its program is not staged any more";
    let at = planned.at;
    let text = format!("version 1.1.0 does not start at {at}, as planned: {reason}");
    assert_eq!(not_started(&bench), Some(text.clone()));
    bench.restart();
    let_tasks_run().await;
    assert_eq!(not_started(&bench), Some(text));
    let logged = format!("it does not start at {at}, as admin had planned: {reason}");
    let logged = ["1.1.0", logged.as_str(), "the machine"].map(str::to_owned);
    assert_eq!(unscheduled(&bench), [logged]);
    assert_eq!(starts(&bench), 0);
    // Nor does it hide why a start has failed before.
    let failed = ScheduledStart {
        failure: "too many starts".to_owned(),
        ..start(-60)
    };
    restart_with(&mut bench, &failed);
    let_tasks_run().await;
    let text = not_started(&bench).expect("a problem");
    assert!(text.ends_with("too many starts"), "{text}");
}

/// The version was started, and the node ended before it forgot the start.
#[tokio::test]
async fn a_start_whose_version_was_started_leaves_no_problem() {
    let mut bench = bench();
    for state in ["pending", "trial", "good", "failed"] {
        for failure in ["", "too many starts"] {
            set_state(&bench, state);
            let planned = ScheduledStart {
                failure: failure.to_owned(),
                ..start(-60)
            };
            restart_with(&mut bench, &planned);
            wait_until(|| !file(&bench).exists()).await;
            // The next bundle empties the slot.
            set_state(&bench, "idle");
            assert_eq!(not_started(&bench), None, "{state}");
        }
    }
    assert!(bench.requests().is_empty());
}

/// A planned start has failed. Before its caller looks, a client stages any other program.
#[tokio::test]
async fn a_failed_start_is_not_hidden_by_another_staging() {
    let mut bench = bench();
    let planned = start(-LATE_S_MAX - 60);
    restart_with(&mut bench, &planned);
    wait_until(|| not_started(&bench).is_some()).await;
    let client = StagingRequest {
        owner: "eve".to_owned(),
        by: "eve".to_owned(),
        limited: true,
        ..request(9)
    };
    stage_as(&bench, client, "b2").await;
    wait_until(|| !unscheduled(&bench).is_empty()).await;
    let at = planned.at;
    let reason = "the node did not run then, or did not know the time; and eve has staged another program, of version 1.1.0";
    let text = format!("version 1.1.0 does not start at {at}, as planned: {reason}");
    assert_eq!(not_started(&bench), Some(text.clone()));
    let logged = format!("it does not start at {at}, as admin had planned: {reason}");
    let logged = ["1.1.0", logged.as_str(), "eve"].map(str::to_owned);
    assert_eq!(unscheduled(&bench), std::slice::from_ref(&logged));
    bench.restart();
    let_tasks_run().await;
    assert_eq!(not_started(&bench), Some(text));
    assert_eq!(unscheduled(&bench), [logged]);
    // The node may also end between the staging and the note.
    restart_with(
        &mut bench,
        &ScheduledStart {
            failure: "too many starts".to_owned(),
            ..planned
        },
    );
    wait_until(|| unscheduled(&bench).len() == 2).await;
    let text = not_started(&bench).expect("a problem");
    assert!(
        text.ends_with("too many starts; and eve has staged another program, of version 1.1.0"),
        "{text}"
    );
}

/// Eve may stage and start versions. By another program she ends the start that an administrator has set, and wants to set
/// one 29 days ahead.
#[tokio::test]
async fn a_client_that_replaced_the_program_of_an_administrator_sets_no_moment() {
    const SCOPES: &[&str] = &[STAGE_SCOPE, APPLY_SCOPE];
    let bench = NodeUpdateBench::new();
    let entries = admins_and("eve", &[2], SCOPES);
    bench.identities.identities.replace_config(entries);
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"good").await.expect("staged");
    staged(&bench, "a1");
    let after = |hours: i64| json!({ "at": start(hours * 3600).at.to_string() });
    let set = node.call(ADMIN, "update/apply", after(1)).await;
    set.expect("it waits");
    let eve = ("eve", SCOPES);
    bench.judge(Verdict::PlansOf("b2"));
    upload(&node, eve, b"evil").await.expect("staged");
    staged(&bench, "b2");
    let moved = node.call(eve, "update/apply", after(29 * 24)).await;
    let refused = moved.expect_err("the administrator had set another one");
    assert_eq!(refused.details.expect("details")["code"], "scheduled");
    assert_eq!(scheduled(&node).await, Value::Null);
    let text = not_started(&bench).expect("a problem");
    assert!(text.contains("eve has staged another program"), "{text}");
    // Only an administrator sets the next moment, and from then on it is the administrator's again.
    let set = node.call(ADMIN, "update/apply", after(2)).await;
    let set = set.expect("it waits")["scheduled"].clone();
    assert_eq!(scheduled(&node).await, set);
    assert_eq!(not_started(&bench), None);
}

/// Eve may stage and start versions. By a rollback she takes the version of an administrator's start back, or the one by
/// which she has ended this start, and wants to set a moment 29 days ahead for another program.
#[tokio::test]
async fn a_client_that_takes_a_version_back_hides_no_start_of_an_administrator() {
    const EVE: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, APPLY_SCOPE]);
    let after = |hours: i64| json!({ "at": start(hours * 3600).at.to_string() });
    for (failure, replaces, reason) in [
        ("", true, "eve has staged another program, of version 1.1.0"),
        ("", false, "eve has taken it back"),
        ("too late", false, "too late; and eve has taken it back"),
    ] {
        let mut bench = bench();
        let entries = admins_and(EVE.0, &[2], EVE.1);
        bench.identities.identities.replace_config(entries);
        bench.judge(Verdict::PlansOf("b2"));
        let planned = ScheduledStart {
            failure: failure.to_owned(),
            ..start(3600)
        };
        restart_with(&mut bench, &planned);
        let node = UpdateCaller::new(&bench.updates);
        if replaces {
            upload(&node, EVE, b"evil").await.expect("staged");
            staged(&bench, "b2");
        }
        // Not over one that waits, has failed or was replaced.
        let moved = node.call(EVE, "update/apply", after(29 * 24)).await;
        let refused = moved.expect_err("the administrator had set another one");
        assert_eq!(refused.details.expect("details")["code"], "scheduled");
        let back = node.call(EVE, "update/rollback", Value::Null).await;
        back.expect("taken back");
        bench.set(|facts| facts.update.other_sha256 = None);
        set_state(&bench, "idle");
        let at = planned.at;
        let text = format!("version 1.1.0 does not start at {at}, as planned: {reason}");
        assert_eq!(not_started(&bench), Some(text.clone()));
        wait_until(|| !unscheduled(&bench).is_empty()).await;
        let logged = format!("it does not start at {at}, as admin had planned: {reason}");
        let logged = ["1.1.0", logged.as_str(), "eve"].map(str::to_owned);
        assert_eq!(unscheduled(&bench), [logged]);
        bench.restart();
        let_tasks_run().await;
        let node = UpdateCaller::new(&bench.updates);
        upload(&node, EVE, b"evil").await.expect("staged");
        staged(&bench, "b2");
        let moved = node.call(EVE, "update/apply", after(29 * 24)).await;
        let refused = moved.expect_err("the administrator had set another one");
        assert_eq!(refused.details.expect("details")["code"], "scheduled");
        let status = node.call(ADMIN, "update/status", Value::Null).await;
        assert_eq!(status.expect("a status")["not_started"]["reason"], reason);
        assert_eq!(not_started(&bench), Some(text));
        // An administrator who takes it back knows of it, and Eve may plan and take back a start of her own.
        for who in [ADMIN, EVE] {
            let back = node.call(who, "update/rollback", Value::Null).await;
            back.expect("taken back");
            assert_eq!(not_started(&bench), None);
            assert!(!file(&bench).exists());
            let set = node.call(EVE, "update/apply", after(2)).await;
            set.expect("no start of an administrator is planned");
        }
        assert_eq!(starts(&bench), 0);
    }
}

/// A node that does not wait long for a PID 1 that says nothing.
fn bench_of_silent_init() -> NodeUpdateBench {
    let pace = StagingPace {
        abort: Duration::from_millis(50),
        ..StagingPace::default()
    };
    NodeUpdateBench::with("", pace, None)
}

/// Sends a client's bundle to its end, and cancels it while PID 1 does not answer.
async fn cancel_unanswered(bench: &NodeUpdateBench, node: &UpdateCaller) {
    bench.judge(Verdict::Silent("1.1.0"));
    let begun = node.call(CLIENT, "update/stage", json!({ "bytes": 4 }));
    let id = begun.await.expect("it begins")["session"].clone();
    let id = id.as_str().expect("a name");
    let piece = (0, Bytes::from_static(b"evil"));
    let cancel = async {
        wait_until(|| bench.bundles().len() == 2).await;
        node.call(ADMIN, "update/cancel", Value::Null).await
    };
    let sessions = &bench.updates.0.sessions;
    let (written, cancelled) = tokio::join!(sessions.write((id, "eve"), piece), cancel);
    assert!(written.is_err(), "{written:?}");
    assert_eq!(cancelled, Ok(json!({ "cancelled": true })));
}

/// A client's bundle is cancelled while PID 1 does not answer, and PID 1 stages it all the same.
#[tokio::test]
async fn what_pid_1_stages_after_its_bundle_was_given_up_is_what_waits() {
    let bench = bench_of_silent_init();
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"good").await.expect("staged");
    staged(&bench, "a1");
    let in_an_hour = json!({ "at": start(3600).at.to_string() });
    let set = node.call(ADMIN, "update/apply", in_an_hour).await;
    let set = set.expect("it waits")["scheduled"].clone();
    cancel_unanswered(&bench, &node).await;
    // Until PID 1 has said what waits now, the program of before counts.
    assert_eq!(scheduled(&node).await, set);
    staged(&bench, "b2");
    let status = node.call(ADMIN, "update/status", Value::Null).await;
    assert_eq!(status.expect("a status")["plan"]["sha256"], "b2");
    wait_until(|| !unscheduled(&bench).is_empty()).await;
    let text = not_started(&bench).expect("a problem");
    assert!(
        text.ends_with(" has staged another program, of version 1.1.0"),
        "{text}"
    );
    assert_eq!(starts(&bench), 0);
}

/// As above, on a machine that was updated before. PID 1 does not look at the slots while it has a bundle, so its facts are
/// still those from before the administrator's bundle, also for a node that restarts.
#[tokio::test]
async fn facts_from_before_its_program_was_staged_end_no_start() {
    for restarts in [false, true] {
        let mut bench = bench_of_silent_init();
        let entries = admins_and("eve", &[2], &[STAGE_SCOPE, APPLY_SCOPE]);
        bench.identities.identities.replace_config(entries);
        bench.set(|facts| facts.update.outdated = true);
        bench.seen.lock().expect("no panic").has_no_look = true;
        set_state(&bench, "good");
        let mut node = UpdateCaller::new(&bench.updates);
        upload(&node, ADMIN, b"good").await.expect("staged");
        let in_an_hour = json!({ "at": start(3600).at.to_string() });
        let set = node.call(ADMIN, "update/apply", in_an_hour).await;
        let set = set.expect("it waits")["scheduled"].clone();
        cancel_unanswered(&bench, &node).await;
        if restarts {
            bench.restart();
            node = UpdateCaller::new(&bench.updates);
        }
        let planned = bench.updates.0.scheduled.current().expect("a start");
        assert_eq!(bench.updates.start_turn(&planned), StartTurn::Waits);
        // Its task has looked several times.
        tokio::time::sleep(STEP * 5).await;
        assert!(file(&bench).exists(), "{restarts}");
        assert_eq!(scheduled(&node).await, set);
        assert_eq!(unscheduled(&bench), [[""; 3]; 0]);
        staged(&bench, "b2");
        wait_until(|| !unscheduled(&bench).is_empty()).await;
        let text = not_started(&bench).expect("a problem");
        assert!(
            text.ends_with("another program was staged, of version 1.1.0"),
            "{text}"
        );
        let eve: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, APPLY_SCOPE]);
        let in_29_days = json!({ "at": start(29 * 24 * 3600).at.to_string() });
        let moved = node.call(eve, "update/apply", in_29_days).await;
        let refused = moved.expect_err("the administrator had set another one");
        assert_eq!(refused.details.expect("details")["code"], "scheduled");
        assert_eq!(starts(&bench), 0);
    }
}

/// The moment of a start comes before PID 1 has looked at the slots again. A client could put this look off for hours.
#[tokio::test]
async fn a_start_whose_moment_comes_before_the_look_at_the_slots_is_judged_by_pid_1() {
    let mut bench = bench();
    bench.set(|facts| facts.update.outdated = true);
    bench.seen.lock().expect("no panic").waits = Some("b2");
    restart_with(&mut bench, &start(-1));
    wait_until(|| not_started(&bench).is_some()).await;
    assert_eq!(starts(&bench), 1);
    let text = not_started(&bench).expect("a problem");
    assert!(text.ends_with("another program waits"), "{text}");
    staged(&bench, "b2");
    wait_until(|| !unscheduled(&bench).is_empty()).await;
    let text = not_started(&bench).expect("a problem");
    let reason = "another program waits; and another program was staged, of version 1.1.0";
    assert!(text.ends_with(reason), "{text}");
}
