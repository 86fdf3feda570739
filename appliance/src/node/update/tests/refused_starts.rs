//! Starts of the machine itself that PID 1 refuses.

use super::downloads::stable_follower;
use super::*;
use crate::node::update::schedule::LOOK_PERIOD_S;

/// A machine that has looked at its channel, has staged the version there, and was refused the start with this code.
async fn refused_follower(code: &'static str) -> NodeUpdateBench {
    let bench = stable_follower().await;
    refuse_starts(&bench, Some(code));
    act(&bench, 2).await;
    mark_staged(&bench, "1.1.0");
    act(&bench, 1).await;
    assert_eq!(sent(&bench), ["look", "stage", "start"]);
    bench
}

/// Lets the node decide so many times.
async fn act(bench: &NodeUpdateBench, times: usize) {
    for _ in 0..times {
        bench.updates.act().await;
    }
}

fn refuse_starts(bench: &NodeUpdateBench, code: Option<&'static str>) {
    bench.seen.lock().expect("no panic").refuses_start = code;
}

/// PID 1 says that this version is staged.
fn mark_staged(bench: &NodeUpdateBench, version: &str) {
    bench.set(|facts| {
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some(version.to_owned());
    });
}

/// Sets the clock forward by so many looks at the channel, twice over, so that each of them is due for sure.
fn pass_looks(bench: &NodeUpdateBench, looks: i64) {
    let seconds = (2 * looks * LOOK_PERIOD_S).unsigned_abs();
    bench.clock.0.store(seconds, Ordering::Relaxed);
}

/// What the node had PID 1 do for the channel.
fn sent(bench: &NodeUpdateBench) -> Vec<&'static str> {
    let requests = bench.requests().into_iter();
    let words = requests.filter_map(|(request, _)| match request {
        UpdateRequest::Stage { dry_run: true, .. } => Some("look"),
        UpdateRequest::Stage { .. } => Some("stage"),
        UpdateRequest::Apply { .. } => Some("start"),
        _ => None,
    });
    words.collect()
}

/// The text of the problem that a version does not start.
fn available(bench: &NodeUpdateBench) -> Option<String> {
    let problems = bench.updates.problems();
    let problem = problems
        .into_iter()
        .find(|it| it.code == "update-available");
    problem.map(|it| it.text)
}

/// The data disk lost the note of the release, or the boot partition has another byte: to stage the version again writes
/// both.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_stages_again_what_pid_1_refuses_to_start() {
    for code in ["other-staged", "slot-damaged", "unverified"] {
        let bench = refused_follower(code).await;
        act(&bench, 1).await;
        assert_eq!(sent(&bench)[3..], ["stage"], "{code}");
        assert_eq!(available(&bench), None, "{code}");
        refuse_starts(&bench, None);
        act(&bench, 1).await;
        assert_eq!(sent(&bench)[3..], ["stage", "start"], "{code}");
        assert_eq!(available(&bench), None, "{code}");
    }
}

/// A disk that an attacker had refuses the version for good: its later release still arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_pid_1_refuses_keeps_no_later_version_away() {
    let bench = refused_follower("unverified").await;
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[3..], ["stage", "start"]);
    assert_eq!(bench.updates.auto_shown()["next"], "start-refused");
    let text = available(&bench).expect("a problem");
    assert!(
        text.starts_with("version 1.1.0 ") && text.ends_with("another request is under way"),
        "{text}"
    );
    // The channel has nothing newer: the start is tried once more.
    pass_looks(&bench, 1);
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[5..], ["look", "start"]);
    assert!(available(&bench).is_some());
    pass_looks(&bench, 2);
    bench.judge(Verdict::PlansVersion("1.2.0"));
    act(&bench, 2).await;
    assert_eq!(sent(&bench)[7..], ["look", "stage"]);
    mark_staged(&bench, "1.2.0");
    assert_eq!(available(&bench), None);
    refuse_starts(&bench, None);
    act(&bench, 1).await;
    let expected = UpdateRequest::Apply {
        sha256: Some("b2".to_owned()),
        limited: true,
        unasked: true,
    };
    let (start, by) = bench.requests().pop().expect("a start");
    assert_eq!((start, by.as_str()), (expected, BY));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_could_not_be_staged_again_is_a_problem_until_the_next_look() {
    let bench = refused_follower("unverified").await;
    bench.judge(Verdict::Refuses(b"the bytes", "full"));
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[3..], ["stage"]);
    assert!(available(&bench).is_some());
    bench.judge(Verdict::Plans);
    refuse_starts(&bench, None);
    pass_looks(&bench, 1);
    act(&bench, 3).await;
    assert_eq!(sent(&bench)[4..], ["look", "stage", "start"]);
    assert_eq!(available(&bench), None);
}

/// What staging does not change is no reason to stage again.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_refused_for_another_reason_waits() {
    let is_busy = refused_follower("busy").await;
    act(&is_busy, 2).await;
    assert_eq!(sent(&is_busy)[3..], ["start", "start"]);
    assert_eq!(available(&is_busy), None);
    for (code, later) in [("locked", &["start"][..]), ("below-floor", &[])] {
        let bench = refused_follower(code).await;
        act(&bench, 20).await;
        assert_eq!(sent(&bench).len(), 3, "{code}");
        assert!(available(&bench).is_some(), "{code}");
        // An hour later the next look is not due.
        bench.clock.0.store(3600, Ordering::Relaxed);
        act(&bench, 20).await;
        assert_eq!(sent(&bench)[3..], *later, "{code}");
    }
}
