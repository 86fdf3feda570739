//! Starts of the machine itself that PID 1 refuses.

use alknet_init::control::MachineDiagnostic;
use alknet_test_support::deadline;

use super::attacks::upload;
use super::downloads::stable_follower;
use super::operations::UpdateCaller;
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
pub(super) async fn act(bench: &NodeUpdateBench, times: usize) {
    for _ in 0..times {
        bench.updates.act().await;
    }
}

/// Lets the node decide until PID 1 has got so many requests for the channel.
async fn act_until(bench: &NodeUpdateBench, requests: usize) {
    let decisions = async {
        while sent(bench).len() < requests {
            act(bench, 1).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(deadline(Duration::from_secs(60)), decisions).await;
    done.expect("PID 1 gets them");
}

pub(super) fn refuse_starts(bench: &NodeUpdateBench, code: Option<&'static str>) {
    bench.seen.lock().expect("no panic").refuses_start = code;
}

/// PID 1 says that this version is staged, with the program of [`Verdict`].
pub(super) fn mark_staged(bench: &NodeUpdateBench, version: &str) {
    let sha256 = sha256_of(version);
    let slot = {
        let mut seen = bench.seen.lock().expect("no panic");
        seen.has_no_look = false;
        seen.slot.clone()
    };
    bench.set(|facts| {
        facts.update.outdated = false;
        if let Some(slot) = slot {
            facts.update.staged_version = Some(slot.version);
            facts.update.stager = Some(slot.stager);
        }
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some(version.to_owned());
        facts.update.other_sha256 = Some(sha256.to_owned());
    });
}

/// PID 1 does not look at the slot that it writes, until [`mark_staged`].
fn withhold_look(bench: &NodeUpdateBench) {
    bench.seen.lock().expect("no panic").has_no_look = true;
}

/// How far the clock is ahead, in seconds, after a wrong answer of a time server or with a wrong hardware clock: a year.
pub(super) const AHEAD_S: u64 = 365 * 86_400;

/// Sets the clock so many seconds ahead of the system's.
pub(super) fn set_clock(bench: &NodeUpdateBench, ahead_s: u64) {
    bench.clock.0.store(ahead_s, Ordering::Relaxed);
}

/// Sets the clock forward by so many looks at the channel, twice over, so that each of them is due for sure.
fn pass_looks(bench: &NodeUpdateBench, looks: i64) {
    let seconds = (2 * looks * LOOK_PERIOD_S).unsigned_abs();
    set_clock(bench, seconds);
}

/// Lets so many seconds pass by the clock that no time server sets.
pub(super) fn pass_steady(bench: &NodeUpdateBench, seconds: u64) {
    bench.clocks.steady_s.fetch_add(seconds, Ordering::Relaxed);
}

/// What the node had PID 1 do for the channel.
pub(super) fn sent(bench: &NodeUpdateBench) -> Vec<&'static str> {
    let requests = bench.requests().into_iter();
    let words = requests.filter_map(|(request, _)| match request {
        UpdateRequest::Stage { dry_run: true, .. } => Some("look"),
        UpdateRequest::Stage { .. } => Some("stage"),
        UpdateRequest::Apply { .. } => Some("start"),
        _ => None,
    });
    words.collect()
}

/// The problem that a version does not start.
fn problem(bench: &NodeUpdateBench) -> Option<MachineDiagnostic> {
    let mut problems = bench.updates.problems().into_iter();
    problems.find(|it| it.code == "update-available")
}

/// The text of this problem.
fn available(bench: &NodeUpdateBench) -> Option<String> {
    problem(bench).map(|it| it.text)
}

/// Whether the hint of this problem is to send the version again.
fn is_to_be_sent(bench: &NodeUpdateBench) -> bool {
    let hint = problem(bench).expect("a problem").hint;
    let is_reason = hint.contains("do what the reason says");
    let is_to_be_sent = hint.contains("'alknet update NODE BUNDLE'");
    assert_ne!(is_reason, is_to_be_sent, "{hint}");
    is_to_be_sent
}

/// The data disk lost the note of the release, or the boot partition has another byte: to stage the version again writes
/// both.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_stages_again_what_pid_1_refuses_to_start() {
    for code in ["other-staged", "slot-damaged", "unverified"] {
        let bench = refused_follower(code).await;
        assert_eq!(available(&bench), None, "{code}");
        refuse_starts(&bench, None);
        // One decision stages it and starts it.
        act(&bench, 1).await;
        assert_eq!(sent(&bench)[3..], ["stage", "start"], "{code}");
        assert_eq!(available(&bench), None, "{code}");
    }
}

/// A byte of the head of the staged program has changed: the slot names another version, or none, of which PID 1 knows
/// no program.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_stages_a_damaged_program_again_whatever_version_its_slot_names() {
    for version in [None, Some("1.9.0")] {
        let bench = stable_follower().await;
        act(&bench, 2).await;
        let damage = || {
            mark_staged(&bench, "1.1.0");
            bench.set(|facts| {
                facts.update.other_version = version.map(str::to_owned);
                facts.update.other_sha256 = None;
            });
        };
        damage();
        refuse_starts(&bench, Some("slot-damaged"));
        act(&bench, 1).await;
        assert_eq!(sent(&bench), ["look", "stage", "start"], "{version:?}");
        // PID 1 writes the slot, and the disk damages it once more: this is bounded, and a problem.
        act(&bench, 20).await;
        assert_eq!(sent(&bench)[3..], ["stage", "start"], "{version:?}");
        let text = available(&bench).expect("a problem");
        assert!(text.starts_with("version 1.1.0 "), "{text}");
        // A later version is installed.
        pass_looks(&bench, 1);
        bench.judge(Verdict::PlansVersion("1.2.0"));
        act(&bench, 1).await;
        act(&bench, 1).await;
        assert_eq!(sent(&bench)[5..7], ["look", "stage"], "{version:?}");
    }
}

/// A disk that an attacker had refuses the version for good: its later release still arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_pid_1_refuses_keeps_no_later_version_away() {
    let bench = refused_follower("unverified").await;
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[3..], ["stage", "start"]);
    assert_eq!(bench.updates.auto_shown()["next"], "start-refused");
    let refusal = json!({ "code": "unverified", "text": "another request is under way" });
    assert_eq!(bench.updates.auto_shown()["refusal"], refusal);
    let text = available(&bench).expect("a problem");
    assert!(
        text.starts_with("version 1.1.0 ") && text.ends_with("another request is under way"),
        "{text}"
    );
    assert!(is_to_be_sent(&bench));
    // The channel has nothing newer: the start is tried once more.
    pass_looks(&bench, 1);
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[5..], ["look", "start"]);
    assert!(available(&bench).is_some());
    // A look in between says nothing of the start.
    pass_looks(&bench, 2);
    bench.judge(Verdict::PlansVersion("1.2.0"));
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[7..], ["look"]);
    let auto = bench.updates.auto_shown();
    assert_eq!((&auto["refusal"], &auto["error"]), (&refusal, &Value::Null));
    withhold_look(&bench);
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[7..], ["look", "stage"]);
    mark_staged(&bench, "1.2.0");
    assert_eq!(available(&bench), None);
    assert_eq!(bench.updates.auto_shown()["refusal"], Value::Null);
    refuse_starts(&bench, None);
    act(&bench, 1).await;
    let expected = UpdateRequest::Apply {
        sha256: Some("b2".to_owned()),
        agreed_floor: unchanged(),
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
    act(&bench, 2).await;
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
        assert!(!is_to_be_sent(&bench), "{code}");
        // An hour later the next look is not due.
        set_clock(&bench, 3600);
        act(&bench, 20).await;
        assert_eq!(sent(&bench)[3..], *later, "{code}");
    }
}

/// The attack: a client with `update:stage` brings other signed metadata, with a higher floor, for the program of the channel,
/// before the machine stages it or afterwards. No person reads the plan, so the floor of the channel counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_agrees_to_the_floor_of_its_channel_and_to_no_higher_one() {
    let bench = stable_follower().await;
    let raise = |floor| bench.seen.lock().expect("no panic").raises = floor;
    bench.judge(Verdict::PlansBelowFloor("1.1.0"));
    raise(Some("1.1.0"));
    act(&bench, 2).await;
    mark_staged(&bench, "1.1.0");
    act(&bench, 20).await;
    assert_eq!(sent(&bench), ["look", "stage", "start"]);
    let refusal = json!({ "code": "floor-raised", "text": "the floor is a higher one" });
    assert_eq!(bench.updates.auto_shown()["refusal"], refusal);
    assert!(!is_to_be_sent(&bench));
    // That the machine sees the higher floor at its next look is no agreement.
    pass_looks(&bench, 1);
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[3..], ["look", "start"]);
    assert!(available(&bench).is_some());
    // The channel itself has the higher floor.
    bench.judge(Verdict::PlansFloor("1.1.0"));
    pass_looks(&bench, 2);
    act(&bench, 2).await;
    assert_eq!(sent(&bench)[5..], ["look", "start"]);
    assert_eq!(available(&bench), None);
    let (start, _) = bench.requests().pop().expect("a start");
    let expected = UpdateRequest::Apply {
        sha256: Some("a1".to_owned()),
        agreed_floor: Some("1.1.0".parse().expect("a floor")),
        limited: true,
        unasked: true,
    };
    assert_eq!(start, expected);
}

/// The clock is ahead while the machine looks and its start is refused, and is set back.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_keeps_no_look_and_no_start_away() {
    let bench = stable_follower().await;
    refuse_starts(&bench, Some("below-floor"));
    set_clock(&bench, AHEAD_S);
    act(&bench, 2).await;
    mark_staged(&bench, "1.1.0");
    act(&bench, 20).await;
    assert_eq!(sent(&bench), ["look", "stage", "start"]);
    set_clock(&bench, 0);
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[3..], ["look"]);
    pass_looks(&bench, 1);
    act(&bench, 20).await;
    assert_eq!(sent(&bench)[4..], ["look", "start"]);
}

/// The clock is ahead at the start of a machine with a delay, and is set back before the first look.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_keeps_the_first_look_within_the_delay() {
    let document =
        "[update]\nurl = \"https://updates.example.org\"\nauto = \"apply\"\njitter = \"24h\"\n";
    let bench = NodeUpdateBench::with(document, StagingPace::default(), None);
    let next_look = || {
        let auto = bench.updates.auto_shown();
        assert_eq!(auto["next"], "look");
        let at = auto["at"].as_str().expect("a moment");
        at.parse::<jiff::Timestamp>().expect("a moment").as_second()
    };
    set_clock(&bench, AHEAD_S);
    act(&bench, 1).await;
    let ahead = next_look();
    set_clock(&bench, 0);
    let now = jiff::Timestamp::now().as_second();
    act(&bench, 1).await;
    let first = next_look();
    assert!(first > now && first <= now + 87_000, "{first}");
    assert!(first < ahead - 300 * 86_400, "{ahead}");
    // The delay does not begin again at each decision.
    set_clock(&bench, 3600);
    act(&bench, 1).await;
    let again = next_look();
    assert!((again - first).abs() < 1800, "{first} {again}");
    // Nor does it begin again with each step of the clock back.
    set_clock(&bench, 0);
    pass_steady(&bench, 1800);
    act(&bench, 1).await;
    let again = next_look();
    assert!((first - 1800 - again).abs() < 600, "{first} {again}");
}

/// A time server sets the clock back to the moment after the last look, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_after_each_look_keeps_no_look_away() {
    let bench = refused_follower("below-floor").await;
    let half = LOOK_PERIOD_S.unsigned_abs() / 2;
    for looks in 1..4 {
        pass_steady(&bench, half);
        act(&bench, 3).await;
        assert_eq!(sent(&bench).len(), 3 + looks - 1);
        pass_steady(&bench, half);
        act(&bench, 3).await;
        assert_eq!(sent(&bench)[3..], vec!["look"; looks]);
    }
}

/// A client that may only stage takes the slot after the start was refused. That the machine takes it back is not the one
/// time for which the machine stages a version again because of what the slot has.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_another_caller_replaced_is_still_staged_again_once() {
    for code in ["locked", "other-staged"] {
        let bench = refused_follower(code).await;
        bench.judge(Verdict::PlansVersion("1.0.5"));
        let node = UpdateCaller::new(&bench.updates);
        let client = ("eve", &[STAGE_SCOPE][..]);
        upload(&node, client, b"other").await.expect("staged");
        mark_staged(&bench, "1.0.5");
        bench.judge(Verdict::Plans);
        withhold_look(&bench);
        // The upload of the client is one of the four before it.
        act_until(&bench, 5).await;
        assert_eq!(sent(&bench)[3..], ["stage", "stage"], "{code}");
        mark_staged(&bench, "1.1.0");
        refuse_starts(&bench, Some("unverified"));
        act(&bench, 20).await;
        assert_eq!(sent(&bench)[5..], ["start", "stage", "start"], "{code}");
    }
}

/// A caller that may start versions, or may change the vault, keeps PID 1 busy at each try of the machine's start.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_for_which_pid_1_is_busy_keeps_no_look_away() {
    let bench = refused_follower("busy").await;
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[3..], ["start"]);
    // A start that is not judged has no refusal.
    assert_eq!(available(&bench), None);
    assert_eq!(bench.updates.auto_shown()["refusal"], Value::Null);
    // The next look is due.
    pass_looks(&bench, 1);
    act(&bench, 3).await;
    assert_eq!(sent(&bench)[4..], ["look", "start", "start"]);
    pass_looks(&bench, 2);
    bench.judge(Verdict::PlansVersion("1.2.0"));
    withhold_look(&bench);
    act(&bench, 2).await;
    assert_eq!(sent(&bench)[7..], ["look", "stage"]);
    mark_staged(&bench, "1.2.0");
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[9..], ["start"]);
    // A reason that PID 1 has judged counts until it judges the next start.
    refuse_starts(&bench, Some("locked"));
    act(&bench, 1).await;
    refuse_starts(&bench, Some("busy"));
    set_clock(&bench, 24 * 3600 + 3700);
    act(&bench, 1).await;
    assert_eq!(sent(&bench)[10..], ["start", "start"]);
    assert_eq!(bench.updates.auto_shown()["refusal"]["code"], "locked");
}
