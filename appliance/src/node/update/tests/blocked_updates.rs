//! Callers that keep the one session or PID 1 busy, so that a machine gets none of its own updates.

use alknet_init::control::MachineDiagnostic;
use alknet_test_support::deadline;

use super::attacks::upload;
use super::downloads::{FILE, breaking_server, follower_of, follower_with, stable_follower};
use super::operations::{ADMIN, UpdateCaller};
use super::refused_starts::{
    AHEAD_S, act, mark_staged, pass_steady, refuse_starts, sent, set_clock,
};
use super::scheduled_starts::wait_until;
use super::*;
use crate::node::update::blocked::{BLOCKED_MAX, BLOCKED_PAUSE, BlockedTry, SentProgram};

/// A client that may only stage.
const CLIENT: (&str, &[&str]) = ("eve", &[STAGE_SCOPE, READ_SCOPE]);
/// One that may also start versions, and end the sessions of others.
const STARTER: (&str, &[&str]) = ("mallory", &[STAGE_SCOPE, APPLY_SCOPE, READ_SCOPE]);

/// The problem that others block the machine's own updates.
fn blocked_problem(bench: &NodeUpdateBench) -> Option<MachineDiagnostic> {
    let mut problems = bench.updates.problems().into_iter();
    problems.find(|it| it.code == "updates-blocked")
}

/// Lets the node decide each ten minutes, for an hour.
async fn act_for_an_hour(bench: &NodeUpdateBench) {
    act(bench, 1).await;
    for _ in 0..BLOCKED_MAX.as_secs() / BLOCKED_PAUSE.as_secs() {
        assert_eq!(blocked_problem(bench), None, "within the hour");
        pass_steady(bench, BLOCKED_PAUSE.as_secs());
        act(bench, 1).await;
    }
}

/// What the problem and the status say of this step and this caller.
fn assert_blocked(bench: &NodeUpdateBench, step: &str, purpose: &str, by: Option<&str>) {
    let problem = blocked_problem(bench).expect("a problem");
    assert!(problem.text.contains(purpose), "{}", problem.text);
    let shown = bench.updates.auto_shown()["blocked"].clone();
    assert_eq!(shown["step"], step);
    assert_eq!(shown["by"], json!(by));
    assert_eq!(shown["text"], problem.text);
    let name = by.unwrap_or_default();
    assert!(problem.text.contains(name), "{}", problem.text);
}

async fn begin_upload(node: &UpdateCaller, who: (&str, &[&str])) -> Value {
    let begun = node.call(who, "update/stage", json!({ "bytes": 900 }));
    begun.await.expect("it begins")["session"].clone()
}

/// A client has the session at each moment at which the machine decides. The clock is set back by a year meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn looks_that_a_client_blocks_for_an_hour_are_a_problem_with_its_name() {
    let bench = stable_follower().await;
    let node = UpdateCaller::new(&bench.updates);
    set_clock(&bench, AHEAD_S);
    act(&bench, 1).await;
    set_clock(&bench, 0);
    begin_upload(&node, CLIENT).await;
    act_for_an_hour(&bench).await;
    assert_blocked(&bench, "look", "look at its channel", Some("eve"));
    // The client's upload reaches PID 1 by a task of its own.
    wait_until(|| sent(&bench) == ["look", "stage"]).await;
    let cancelled = node.call(ADMIN, "update/cancel", Value::Null).await;
    assert_eq!(cancelled, Ok(json!({ "cancelled": true })));
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[2..], ["look"]);
    // The start, which this has kept away as well, is still to come.
    assert_blocked(&bench, "start", "start the version", Some("eve"));
    act(&bench, 1).await;
    mark_staged(&bench, "1.1.0");
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[3..], ["stage", "start"]);
    assert_eq!(blocked_problem(&bench), None);
    assert_eq!(bench.updates.auto_shown()["blocked"], Value::Null);
}

/// Another caller begins a session while the node waits for the server of its channel. Of the look and of the staging.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_race_for_the_session_costs_ten_minutes() {
    let bench = stable_follower().await;
    for expected in [&["look"][..], &["look", "stage"]] {
        let before = sent(&bench);
        let turn = bench.updates.0.sessions.turn().expect("a turn");
        act(&bench, 1).await;
        drop(turn);
        // Each try asks the channel, so the next one is not at the next decision.
        act(&bench, 3).await;
        assert_eq!(sent(&bench), before);
        pass_steady(&bench, BLOCKED_PAUSE.as_secs());
        act(&bench, 1).await;
        assert_eq!(sent(&bench), expected);
        assert_eq!(blocked_problem(&bench), None);
    }
    // The same if PID 1 is busy.
    let bench = stable_follower().await;
    bench.judge(Verdict::Refuses(FILE, "busy"));
    act(&bench, 3).await;
    assert_eq!(sent(&bench), ["look"]);
    bench.judge(Verdict::Plans);
    pass_steady(&bench, BLOCKED_PAUSE.as_secs());
    act(&bench, 2).await;
    assert_eq!(sent(&bench), ["look", "look", "stage"]);
}

/// A caller that may start versions cancels each of the machine's stagings, which would begin again six hours later.
#[tokio::test(flavor = "multi_thread")]
async fn stagings_that_a_caller_cancels_for_an_hour_are_a_problem_with_its_name() {
    let bench = stable_follower().await;
    let node = UpdateCaller::new(&bench.updates);
    act(&bench, 1).await;
    bench.judge(Verdict::AppliesUntilGivenUp);
    let tries = 1 + BLOCKED_MAX.as_secs() / BLOCKED_PAUSE.as_secs();
    for done in 0..tries {
        assert_eq!(blocked_problem(&bench), None, "within the hour");
        let before = bench.bundles().len();
        let cancelling = async {
            while bench.bundles().len() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            node.call(STARTER, "update/cancel", Value::Null).await
        };
        let both = async { tokio::join!(bench.updates.act(), cancelling) };
        let both = tokio::time::timeout(deadline(Duration::from_secs(60)), both).await;
        let ((), cancelled) = both.expect("it ends");
        assert_eq!(cancelled, Ok(json!({ "cancelled": true })), "{done}");
        pass_steady(&bench, BLOCKED_PAUSE.as_secs());
    }
    let purpose = "stage the version of its channel";
    assert_blocked(&bench, "stage", purpose, Some("mallory"));
    bench.judge(Verdict::Plans);
    act(&bench, 1).await;
    let requests = bench.requests();
    let (stage, by) = requests.last().expect("a staging");
    assert!(matches!(stage, UpdateRequest::Stage { dry_run: false, .. }));
    assert_eq!(by, BY);
    // The start, which this has kept away, is still to come.
    let purpose = "start the version of its channel";
    assert_blocked(&bench, "start", purpose, Some("mallory"));
    mark_staged(&bench, "1.1.0");
    act(&bench, 1).await;
    assert_eq!(sent(&bench).last(), Some(&"start"));
    assert_eq!(blocked_problem(&bench), None);
}

/// A machine whose window begins in two hours and is open for 40 minutes.
async fn follower_with_window() -> NodeUpdateBench {
    let begin = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2);
    let end = begin + jiff::SignedDuration::from_mins(40);
    let (begin, end) = (begin.strftime("%H:%M"), end.strftime("%H:%M"));
    let window = format!("window = \"{begin}-{end}\"\n");
    let server = breaking_server(FILE, 1000, true).await;
    let bench = follower_with(&server, &window, StagingPace::default());
    bench.seen.lock().expect("no panic").shows_slot = true;
    bench
}

/// A client that may only stage puts its version into the slot a minute before the window, and has the session until the
/// window is over. At its begin the clock is so many seconds ahead. `has_look`: whether PID 1 comes to read the slots between
/// the client's sessions.
async fn block_window(bench: &NodeUpdateBench, node: &UpdateCaller, begin_s: u64, has_look: bool) {
    set_clock(bench, begin_s - 60);
    bench.seen.lock().expect("no panic").has_no_look = !has_look;
    bench.judge(Verdict::PlansVersion("1.0.5"));
    upload(node, CLIENT, b"older").await.expect("staged");
    let session = begin_upload(node, CLIENT).await;
    let is_outdated = || bench.facts.load().update.outdated;
    wait_until(is_outdated).await;
    for minute in 0..35 {
        set_clock(bench, begin_s + minute * 60);
        pass_steady(bench, 60);
        act(bench, 1).await;
        assert_eq!(bench.updates.auto_shown()["next"], "busy", "{minute}");
        assert!(is_outdated(), "the session runs");
    }
    bench.seen.lock().expect("no panic").has_no_look = false;
    let abort = json!({ "session": session, "abort": true });
    let aborted = node.call(CLIENT, "update/write", abort).await;
    aborted.expect("given up");
    wait_until(|| !is_outdated()).await;
    bench.judge(Verdict::Plans);
    set_clock(bench, begin_s + 45 * 60);
    pass_steady(bench, 600);
}

/// The client does so each night, so that the machine only ever comes to stage its version again.
async fn swap_before_each_window(has_look: bool) {
    const NIGHT_S: u64 = 24 * 3600;
    const BEGIN_S: u64 = 2 * 3600;
    let bench = follower_with_window().await;
    let node = UpdateCaller::new(&bench.updates);
    act(&bench, 3).await;
    block_window(&bench, &node, BEGIN_S, has_look).await;
    assert_eq!(blocked_problem(&bench), None, "less than an hour");
    act(&bench, 2).await;
    assert_eq!(bench.updates.auto_shown()["next"], "start");
    pass_steady(&bench, NIGHT_S);
    // In this night a look is due as well.
    block_window(&bench, &node, BEGIN_S + NIGHT_S, has_look).await;
    act(&bench, 3).await;
    assert!(!sent(&bench).contains(&"start"));
    let purpose = "start the version of its channel";
    assert_blocked(&bench, "start", purpose, Some("eve"));
    // A night without the client.
    set_clock(&bench, BEGIN_S + 2 * NIGHT_S + 300);
    act(&bench, 2).await;
    assert_eq!(sent(&bench).last(), Some(&"start"));
    assert_eq!(blocked_problem(&bench), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_swaps_the_slot_before_each_window_is_a_problem_in_the_second_night() {
    swap_before_each_window(true).await;
}

/// The attack: the client begins its next session at once, so that PID 1 has another bundle before it comes to read the
/// slots. Its facts are those from before the client's version until the window is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_pid_1_from_reading_the_slots_is_a_problem_in_the_second_night() {
    swap_before_each_window(false).await;
}

/// The machine has looked at its channel, which has this version.
pub(super) fn note_found(bench: &NodeUpdateBench, found: Option<UpdatePlan>) {
    let now = bench.updates.now_s().expect("the time");
    let steady = bench.updates.steady_now();
    let mut auto = bench.updates.auto();
    auto.note_look(now, steady);
    auto.found = found;
}

/// PID 1 does not say in time what it makes of a bundle. This is no judgement about the look, or about the version that was
/// found. Each staging writes a program to a disk that may be too slow for it, so they become rare: after 10, 20 and 40
/// minutes. A look writes none.
#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_pid_1_does_not_answer_in_time_for_an_hour_are_a_problem() {
    let pace = StagingPace {
        answer: Duration::from_millis(20),
        ..StagingPace::default()
    };
    let of_stage = "stage the version of its channel";
    for (found, step, tries, purpose) in [
        (None, "look", 7, "look at its channel"),
        (Some(plan()), "stage", 3, of_stage),
    ] {
        let server = breaking_server(FILE, 1000, true).await;
        let bench = follower_with(&server, "", pace);
        bench.judge(Verdict::AppliesUntilGivenUp);
        if found.is_some() {
            note_found(&bench, found.clone());
        }
        act_for_an_hour(&bench).await;
        assert_eq!(bench.updates.auto().found, found);
        assert_eq!(sent(&bench), vec![step; tries]);
        pass_steady(&bench, BLOCKED_PAUSE.as_secs());
        act(&bench, 1).await;
        assert_eq!(sent(&bench), vec![step; tries + 1]);
        assert_blocked(&bench, step, purpose, None);
    }
}

/// The attack: PID 1 reads the program of another caller's start while it has the machine's bundle. This says nothing of the
/// disk, so the tries of the machine do not become rare, and the caller is named.
#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_pid_1_leaves_for_the_request_of_a_caller_are_tried_each_ten_minutes() {
    let pace = StagingPace {
        answer: Duration::from_millis(20),
        ..StagingPace::default()
    };
    let server = breaking_server(FILE, 1000, true).await;
    let bench = follower_with(&server, "", pace);
    bench.judge(Verdict::AppliesUntilGivenUp);
    bench.seen.lock().expect("no panic").keeps_starts = true;
    note_found(&bench, Some(plan()));
    let start = UpdateRequest::Apply {
        sha256: None,
        agreed_floor: None,
        limited: true,
        unasked: false,
    };
    let open = bench.updates.0.init.begin(start, STARTER.0).await;
    act_for_an_hour(&bench).await;
    assert_eq!(sent(&bench), ["stage"; 7]);
    let purpose = "stage the version of its channel";
    assert_blocked(&bench, "stage", purpose, Some("mallory"));
    assert!(open.is_ok());
}

/// The disk is too slow for one release, and a look in the long pause finds the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_release_does_not_wait_for_the_pause_of_one_that_the_disk_is_too_slow_for() {
    let bench = stable_follower().await;
    bench.judge(Verdict::PlansOf("b2"));
    act(&bench, 1).await;
    pass_steady(&bench, 3600);
    {
        let now = bench.updates.steady_now();
        let mut auto = bench.updates.auto();
        for _ in 0..8 {
            let unanswered = BlockedTry {
                by: None,
                reason: "PID 1 did not stage it".to_owned(),
            };
            let program = SentProgram {
                sha256: "b2".to_owned(),
                is_delta: false,
            };
            auto.blocked.note_slow_staging(now, unanswered, program);
        }
    }
    // An hour is left of the pause when the next look is due.
    pass_steady(&bench, 5 * 3600 - 60);
    act(&bench, 1).await;
    assert_eq!(sent(&bench), ["look"]);
    pass_steady(&bench, 60);
    act(&bench, 2).await;
    assert_eq!(sent(&bench), ["look", "look"], "the same release");
    bench.judge(Verdict::Plans);
    // As if the next look were due.
    bench.updates.auto().looked = None;
    act(&bench, 2).await;
    assert_eq!(sent(&bench)[2..], ["look", "stage"]);
}

/// The attack: a person at the console asks for the media during each bundle of the machine, and PID 1 gives the bundle up.
/// The machine would go on as after a judgement, six hours later.
#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_pid_1_gives_up_for_the_console_for_an_hour_are_a_problem() {
    let of_stage = "stage the version of its channel";
    for (found, step, purpose) in [
        (None, "look", "look at its channel"),
        (Some(plan()), "stage", of_stage),
    ] {
        let bench = stable_follower().await;
        bench.judge(Verdict::Refuses(FILE, "aborted"));
        if found.is_some() {
            note_found(&bench, found.clone());
        }
        act_for_an_hour(&bench).await;
        assert_blocked(&bench, step, purpose, None);
        assert_eq!(bench.updates.auto().found, found);
        assert_eq!(sent(&bench), [step; 7]);
    }
}

/// A caller that may change the vault keeps PID 1 busy at each try of the start.
#[tokio::test(flavor = "multi_thread")]
async fn starts_for_which_pid_1_is_busy_for_an_hour_are_a_problem() {
    let bench = stable_follower().await;
    act(&bench, 2).await;
    mark_staged(&bench, "1.1.0");
    refuse_starts(&bench, Some("busy"));
    act_for_an_hour(&bench).await;
    let purpose = "start the version of its channel";
    assert_blocked(&bench, "start", purpose, None);
    // A start that PID 1 judges was not blocked, whatever it says.
    refuse_starts(&bench, Some("below-floor"));
    act(&bench, 1).await;
    assert_eq!(blocked_problem(&bench), None);
}

/// What an administrator has staged is no version that the machine starts.
#[tokio::test(flavor = "multi_thread")]
async fn starts_that_the_machine_does_not_want_any_more_are_no_problem() {
    let bench = stable_follower().await;
    act(&bench, 2).await;
    mark_staged(&bench, "1.1.0");
    refuse_starts(&bench, Some("busy"));
    act_for_an_hour(&bench).await;
    assert!(blocked_problem(&bench).is_some());
    bench.judge(Verdict::PlansVersion("1.2.0"));
    let node = UpdateCaller::new(&bench.updates);
    upload(&node, ADMIN, b"other").await.expect("staged");
    mark_staged(&bench, "1.2.0");
    let ended = async {
        while blocked_problem(&bench).is_some() {
            act(&bench, 1).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(deadline(Duration::from_secs(60)), ended).await;
    ended.expect("the administrator has staged it");
    let next = bench.updates.auto_shown()["next"].clone();
    assert_eq!(next, "waits-for-administrator");
}

/// PID 1 stages the program of an administrator on a slow disk without an answer. It has the version that the machine has
/// staged by itself, and would start like it.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_staged_without_an_answer_is_not_the_machines_own() {
    for is_cancelled in [false, true] {
        let answer = match is_cancelled {
            true => StagingPace::default().answer,
            false => Duration::from_millis(20),
        };
        let pace = StagingPace {
            answer,
            abort: Duration::from_millis(20),
            ..StagingPace::default()
        };
        let server = breaking_server(FILE, 1000, true).await;
        let bench = follower_with(&server, "", pace);
        note_found(&bench, Some(plan()));
        mark_staged(&bench, "1.1.0");
        bench.set_stager(BY, false);
        bench.judge(Verdict::Silent("1.1.0"));
        let node = UpdateCaller::new(&bench.updates);
        let cancelling = async {
            if is_cancelled {
                wait_until(|| bench.bundles().len() == 1).await;
                let cancelled = node.call(STARTER, "update/cancel", Value::Null).await;
                cancelled.expect("it is cancelled");
            }
        };
        let (unanswered, ()) = tokio::join!(upload(&node, ADMIN, b"other"), cancelling);
        assert!(unanswered.is_err(), "{unanswered:?}");
        let is_administrators = || {
            let facts = bench.facts.load();
            let stager = facts.update.stager.as_ref();
            stager.is_some_and(|stager| stager.by == ADMIN.0)
        };
        wait_until(is_administrators).await;
        act(&bench, 2).await;
        let next = bench.updates.auto_shown()["next"].clone();
        assert_eq!(next, "waits-for-administrator", "{is_cancelled}");
        assert!(!sent(&bench).contains(&"start"));
    }
}

/// As soon as the machine's own session has begun, a client asks for the next one without a pause. It would have PID 1
/// busy at the machine's next decision, or another version in the slot. PID 1 reads the slots only some time after the end
/// of the session, so that the machine cannot start at once.
#[tokio::test(flavor = "multi_thread")]
async fn no_client_comes_between_the_staging_and_the_start_of_the_machine_itself() {
    let server = breaking_server(FILE, 7, true).await;
    let bench = follower_of(&server);
    act(&bench, 1).await;
    // The client has staged the program of the channel before.
    bench.set_stager(CLIENT.0, true);
    mark_staged(&bench, "1.1.0");
    {
        let mut seen = bench.seen.lock().expect("no panic");
        (seen.shows_slot, seen.has_no_look) = (true, true);
    }
    let (seen, facts) = (Arc::clone(&bench.seen), Arc::clone(&bench.facts));
    let sessions = bench.updates.0.sessions.clone();
    let attack = tokio::spawn(async move {
        let is_own = |it: &Arc<session::StagingSession>| it.request.owner == BY;
        while !sessions.current().as_ref().is_some_and(is_own) {
            tokio::task::yield_now().await;
        }
        let look = || {
            seen.lock().expect("no panic").has_no_look = false;
            look_at_slots(&seen, &facts);
        };
        let mut refused = 0;
        let taken = loop {
            let of_client = StagingRequest {
                owner: CLIENT.0.to_owned(),
                by: CLIENT.0.to_owned(),
                limited: true,
                ..request(900)
            };
            match sessions.begin(of_client, None) {
                Ok(session) => break session.id.clone(),
                Err(_) if sessions.current().is_some() => tokio::task::yield_now().await,
                // The machine's session has ended, and its turn keeps the client away.
                Err(_) => {
                    refused += 1;
                    if refused == 100 {
                        look();
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        look();
        taken
    });
    act(&bench, 1).await;
    let ended = tokio::time::timeout(deadline(Duration::from_secs(60)), attack).await;
    ended.expect("the turn is given back").expect("no panic");
    let requests = bench.requests();
    let is_stage = |(request, by): &(UpdateRequest, String)| {
        by == BY && matches!(request, UpdateRequest::Stage { dry_run: false, .. })
    };
    let staged = requests.iter().position(is_stage).expect("a staging");
    let (next, by) = &requests[staged + 1];
    let is_start = matches!(next, UpdateRequest::Apply { .. });
    assert!(is_start && by == BY, "{next:?} by {by}");
}

/// PID 1 works on a request whose caller went away. It still names this caller, and none of a question about the log.
#[tokio::test]
async fn the_caller_of_a_request_that_pid_1_works_on_is_known() {
    let (to_init, _messages) = mpsc::channel(8);
    let init = UpdateClient::new(Some(to_init), None);
    let apply = || UpdateRequest::Apply {
        sha256: None,
        agreed_floor: None,
        limited: true,
        unasked: false,
    };
    let log = init.begin(UpdateRequest::Log, "eve").await;
    let own = init.begin(apply(), BY).await;
    assert_eq!(init.blocking_caller(BY), None);
    let (n, answer) = init.begin(apply(), "mallory").await.expect("it is sent");
    drop(answer);
    let later = init.begin(apply(), "ada").await;
    assert_eq!(init.blocking_caller(BY).as_deref(), Some("mallory"));
    init.answered(n, UpdateAnswer::Done);
    assert_eq!(init.blocking_caller(BY).as_deref(), Some("ada"));
    let open = [log, own, later];
    assert!(open.iter().all(Result::is_ok));
}

/// Waits until PID 1 has got so many requests.
async fn wait_for_requests(bench: &NodeUpdateBench, count: usize) {
    while bench.requests().len() < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Callers that may only read ask for the log without a pause. PID 1 answers one question at a time, and refuses others.
#[tokio::test]
async fn each_question_about_the_log_waits_for_its_turn() {
    let bench = NodeUpdateBench::new();
    let release = Arc::new(Notify::new());
    bench.seen.lock().expect("no panic").log_release = Some(Arc::clone(&release));
    let node = UpdateCaller::new(&bench.updates);
    let reader = ("eve", &[READ_SCOPE][..]);
    let gone = node.call(reader, "update/log", Value::Null);
    tokio::select! {
        _ = gone => panic!("PID 1 has not answered"),
        () = wait_for_requests(&bench, 1) => {}
    }
    // The reader went away, and PID 1 still reads the log for it.
    let own = bench.updates.ask_log(BY);
    let released = async {
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.requests().len(), 1, "PID 1 would refuse the second");
        release.notify_one();
        wait_for_requests(&bench, 2).await;
        release.notify_one();
    };
    let both = async { tokio::join!(own, released) };
    let both = tokio::time::timeout(deadline(Duration::from_secs(60)), both).await;
    let (staged, ()) = both.expect("PID 1 answers");
    assert_eq!(staged, Ok(log_answer()));
}
