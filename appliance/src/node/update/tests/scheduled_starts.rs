//! Starts that wait for their moment while the node restarts.

use std::path::PathBuf;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallHandler, CallOptions, Dispatcher, Registry,
};
use alknet_core::{ApiKey, AuthContext, AuthToken, ProtocolHandler, TokenHash, memory_pair};
use alknet_test_support::deadline;
use jiff::{SignedDuration, Timestamp};

use super::operations::{ADMIN, UpdateCaller};
use super::*;
use crate::node::update::act::StartOrder;
use crate::node::update::scheduled_start::{LATE_S_MAX, ScheduledStart, StartPlanner, StartTurn};

/// A node on which this program is staged.
fn bench() -> NodeUpdateBench {
    let bench = NodeUpdateBench::new();
    staged(&bench, "a1");
    bench
}

fn staged(bench: &NodeUpdateBench, sha256: &str) {
    bench.set(|facts| {
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some("1.1.0".to_owned());
        facts.update.other_sha256 = Some(sha256.to_owned());
    });
}

fn file(bench: &NodeUpdateBench) -> PathBuf {
    bench.dir.path().join("state/scheduled-start.json")
}

/// A start of an administrator, so many seconds from now.
fn start(seconds: i64) -> ScheduledStart {
    ScheduledStart {
        at: Timestamp::now() + SignedDuration::from_secs(seconds),
        sha256: "a1".to_owned(),
        version: "1.1.0".to_owned(),
        by: "admin".to_owned(),
        key: Some(PeerKey::Ed25519([1; 32])),
        token: None,
        limited: false,
        failure: String::new(),
        replaced: false,
    }
}

/// Restarts the node with this start in its folder.
fn restart_with(bench: &mut NodeUpdateBench, start: &ScheduledStart) {
    let text = serde_json::to_vec(start).expect("JSON");
    std::fs::create_dir_all(bench.dir.path().join("state")).expect("writable");
    std::fs::write(file(bench), text).expect("writable");
    bench.restart();
}

/// Lets the tasks of a node that has just restarted run: what follows would hold of a node that has done nothing.
async fn let_tasks_run() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(deadline(Duration::from_secs(60)), waiting).await;
    waited.expect("it happens");
}

fn limited_order() -> StartOrder {
    StartOrder {
        sha256: None,
        limited: true,
        unasked: false,
    }
}

fn admin() -> StartPlanner {
    StartPlanner {
        id: "admin".to_owned(),
        key: start(0).key,
        token: None,
    }
}

/// Begins to stage a bundle, and then plans a start of the version that waits.
async fn plan_beside(bench: &NodeUpdateBench, bundle: StagingRequest) {
    let session = bench.updates.0.sessions.begin(bundle, None);
    drop(session.expect("it begins"));
    wait_until(|| bench.seen.lock().expect("no panic").is_staging).await;
    let set = bench
        .updates
        .start_at(start(2).at, limited_order(), admin());
    set.expect("it waits");
}

/// How often PID 1 was asked to start the version.
fn starts(bench: &NodeUpdateBench) -> usize {
    let requests = bench.requests().into_iter();
    let starts = requests.filter(|(it, _)| matches!(it, UpdateRequest::Apply { .. }));
    starts.count()
}

/// The text of the problem that a version did not start.
fn not_started(bench: &NodeUpdateBench) -> Option<String> {
    let problems = bench.updates.problems();
    let problem = problems
        .into_iter()
        .find(|it| it.code == "update-not-started");
    problem.map(|it| it.text)
}

#[tokio::test]
async fn a_moment_outlives_a_restart_until_its_version_is_taken_back() {
    let mut bench = bench();
    let at = start(3600).at;
    let node = UpdateCaller::new(&bench.updates);
    let set = node.call(ADMIN, "update/apply", json!({ "at": at.to_string() }));
    set.await.expect("it waits");
    bench.restart();
    let_tasks_run().await;
    assert_eq!(bench.updates.start_moment(), Some(at));
    assert!(bench.requests().is_empty(), "it does not start before");
    let node = UpdateCaller::new(&bench.updates);
    let back = node.call(ADMIN, "update/rollback", Value::Null);
    back.await.expect("taken back");
    assert!(!file(&bench).exists());
    bench.restart();
    let_tasks_run().await;
    assert_eq!(bench.updates.start_moment(), None);
}

#[tokio::test]
async fn a_moment_that_passed_a_minute_ago_is_made_up_for_once() {
    let mut bench = bench();
    restart_with(&mut bench, &start(-60));
    wait_until(|| !file(&bench).exists()).await;
    let expected = UpdateRequest::Apply {
        sha256: Some("a1".to_owned()),
        limited: false,
        unasked: false,
    };
    assert_eq!(bench.requests(), [(expected, "admin".to_owned())]);
    assert_eq!(not_started(&bench), None);
}

#[tokio::test]
async fn a_moment_that_passed_long_ago_starts_nothing_and_is_a_problem() {
    let mut bench = bench();
    restart_with(&mut bench, &start(-LATE_S_MAX - 60));
    wait_until(|| not_started(&bench).is_some()).await;
    assert_eq!(bench.updates.start_moment(), None);
    // The problem stays until a caller acts.
    bench.restart();
    let_tasks_run().await;
    let text = not_started(&bench).expect("a problem");
    assert!(
        text.starts_with("version 1.1.0 did not start at "),
        "{text}"
    );
    assert!(bench.requests().is_empty());
    let node = UpdateCaller::new(&bench.updates);
    let later = json!({ "at": start(3600).at.to_string() });
    let set = node.call(ADMIN, "update/apply", later).await;
    assert!(set.is_ok(), "{set:?}");
    assert_eq!(not_started(&bench), None);
}

/// A client has the channel checked at the moment of the start, and PID 1 does one thing at a time.
#[tokio::test]
async fn a_pid_1_that_is_busy_at_the_moment_does_not_spend_the_start() {
    for code in ["busy", "no-slots"] {
        let mut bench = bench();
        bench.seen.lock().expect("no panic").refuses_start = Some(code);
        let planned = start(-60);
        restart_with(&mut bench, &planned);
        wait_until(|| starts(&bench) >= 2).await;
        assert_eq!(not_started(&bench), None, "{code}");
        assert_eq!(bench.updates.start_moment(), Some(planned.at));
        // The moment outlives a restart of the node also then.
        bench.restart();
        let before = starts(&bench);
        wait_until(|| starts(&bench) > before).await;
        bench.seen.lock().expect("no panic").refuses_start = None;
        wait_until(|| !file(&bench).exists()).await;
        assert_eq!(not_started(&bench), None, "{code}");
    }
}

#[tokio::test]
async fn a_start_that_pid_1_refused_until_it_was_too_late_is_a_problem_with_the_last_reason() {
    let mut bench = bench();
    bench.seen.lock().expect("no panic").refuses_start = Some("busy");
    restart_with(&mut bench, &start(-60));
    wait_until(|| starts(&bench) >= 2).await;
    bench
        .clock
        .0
        .store(LATE_S_MAX.unsigned_abs(), Ordering::Relaxed);
    wait_until(|| not_started(&bench).is_some()).await;
    let text = not_started(&bench).expect("a problem");
    assert!(text.ends_with("another request is under way"), "{text}");
    // Another request would not change this answer, so there is no second try.
    let mut other = self::bench();
    other.seen.lock().expect("no panic").refuses_start = Some("unverified");
    restart_with(&mut other, &start(-60));
    wait_until(|| not_started(&other).is_some()).await;
    assert_eq!(starts(&other), 1);
}

/// A caller that has used up its starts plans another one, and PID 1 refuses it again and again: that others' bundles end
/// would not help it.
#[tokio::test]
async fn a_start_that_waits_for_something_else_leaves_the_bundles_of_others() {
    let bench = bench();
    bench.seen.lock().expect("no panic").refuses_start = Some("too-often");
    let of_hub = StagingRequest {
        unasked: true,
        ..request(9)
    };
    plan_beside(&bench, of_hub).await;
    wait_until(|| starts(&bench) >= 2).await;
    assert!(bench.updates.0.sessions.current().is_some());
    // With PID 1 busy it is given up.
    bench.seen.lock().expect("no panic").refuses_start = None;
    wait_until(|| !file(&bench).exists()).await;
    assert_eq!(bench.bundles(), [(Vec::<u8>::new(), false)]);
}

/// A client that may only stage, or a hub, sends a bundle for hours, as slowly as it may.
#[tokio::test]
async fn a_start_gives_up_the_bundle_of_a_client_that_may_not_start_versions() {
    for (limited, unasked, dry_run) in [
        (true, false, false),
        (false, true, false),
        (false, false, true),
        (false, false, false),
    ] {
        let bench = bench();
        let slow = StagingRequest {
            limited,
            unasked,
            dry_run,
            ..request(9)
        };
        plan_beside(&bench, slow).await;
        if !(limited || unasked || dry_run) {
            // A caller that may start versions is not interrupted.
            wait_until(|| starts(&bench) >= 2).await;
            assert!(bench.updates.0.sessions.current().is_some());
            let why = "the test ends it".to_owned();
            assert!(bench.updates.0.sessions.cancel(why).await);
        }
        wait_until(|| !file(&bench).exists()).await;
        assert!(bench.updates.0.sessions.current().is_none());
        assert_eq!(bench.bundles(), [(Vec::<u8>::new(), false)]);
        assert_eq!(not_started(&bench), None);
    }
}

/// Eve planned a start, and was removed, or lost her scope, before its moment.
#[tokio::test]
async fn a_caller_that_lost_its_right_has_no_version_started() {
    let mut bench = bench();
    let eve = |scope| admins_and("eve", &[2], &[scope]);
    let planned = ScheduledStart {
        by: "eve".to_owned(),
        key: Some(PeerKey::Ed25519([2; 32])),
        ..start(-1)
    };
    for entries in [admins(), eve(READ_SCOPE)] {
        bench.identities.identities.replace_config(entries);
        let by_eve = ScheduledStart {
            limited: true,
            ..planned.clone()
        };
        restart_with(&mut bench, &by_eve);
        wait_until(|| not_started(&bench).is_some()).await;
        assert!(bench.requests().is_empty());
    }
    // A right that returns repeats no start that has failed.
    let entries = eve(APPLY_SCOPE);
    bench.identities.identities.replace_config(entries);
    bench.restart();
    let_tasks_run().await;
    assert!(not_started(&bench).is_some());
    assert!(bench.requests().is_empty());
    // PID 1 counts the starts of a caller that is no administrator any more.
    restart_with(&mut bench, &planned);
    wait_until(|| !bench.requests().is_empty()).await;
    let (request, by) = bench.requests().remove(0);
    assert_eq!(by, "eve");
    assert!(
        matches!(request, UpdateRequest::Apply { limited: true, .. }),
        "{request:?}"
    );
}

/// A peer with other keys got the id of the administrator that planned the start.
#[tokio::test]
async fn another_peer_with_the_id_of_the_caller_has_no_version_started() {
    let mut bench = bench();
    let [of_admin, other] = [1, 2].map(|byte| PeerKey::Ed25519([byte; 32]));
    let by_key = |key| ScheduledStart {
        key: Some(key),
        ..start(-1)
    };
    restart_with(&mut bench, &by_key(other));
    wait_until(|| not_started(&bench).is_some()).await;
    assert!(bench.requests().is_empty());
    restart_with(&mut bench, &by_key(of_admin));
    wait_until(|| !bench.requests().is_empty()).await;
}

/// The administrators of a node on which this token of a program may start versions.
fn with_token(hash: TokenHash) -> IdentityEntries {
    let token = ApiKey {
        scopes: [APPLY_SCOPE].into_iter().collect(),
        ..ApiKey::new(hash)
    };
    IdentityEntries {
        api_keys: vec![token],
        ..admins()
    }
}

/// The token that planned the start was removed, and another one of the same name was issued before the moment.
#[tokio::test]
async fn another_token_with_the_name_of_the_caller_has_no_version_started() {
    let mut bench = bench();
    let [own, other] = [7, 8].map(|byte| TokenHash {
        key_id: "a1b2c3d4".parse().expect("a name"),
        sha256: [byte; 32],
    });
    let by_token = ScheduledStart {
        by: "key:a1b2c3d4".to_owned(),
        key: None,
        token: Some(own),
        limited: true,
        ..start(-1)
    };
    let without_proof = ScheduledStart {
        token: None,
        ..by_token.clone()
    };
    let entries = with_token(other);
    bench.identities.identities.replace_config(entries);
    for planned in [&by_token, &without_proof] {
        restart_with(&mut bench, planned);
        wait_until(|| not_started(&bench).is_some()).await;
        assert!(bench.requests().is_empty());
    }
    let entries = with_token(own);
    bench.identities.identities.replace_config(entries);
    restart_with(&mut bench, &by_token);
    wait_until(|| !bench.requests().is_empty()).await;
    let (_, by) = bench.requests().remove(0);
    assert_eq!(by, "key:a1b2c3d4");
}

/// A connection to the node by a client that proved this key.
fn connected(bench: &NodeUpdateBench, key: PeerKey) -> CallConnection {
    let mut builder = Registry::builder();
    bench.updates.register(&mut builder);
    let registry = builder.build().expect("every rule is kept");
    let identities = Arc::clone(&bench.updates.0.identities);
    let (dialled, accepted) = memory_pair(ALPN);
    let auth = AuthContext {
        identity: identities.by_key(&key),
        key: Some(key),
        alpn: ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: accepted.carriage(),
        early_data: false,
    };
    let dispatcher = Arc::new(Dispatcher::new(registry).with_identities(identities));
    let handler = Arc::new(CallHandler::new(dispatcher));
    tokio::spawn(handler.handle(accepted, auth));
    CallClient::without_operations().attach(dialled, None)
}

/// A client with several keys plans starts, and names other callers in its requests.
#[tokio::test]
async fn a_start_is_kept_with_what_its_caller_proved() {
    let bench = bench();
    let shown = PeerKey::Ed25519([3; 32]);
    let token = AuthToken::generate().expect("randomness");
    let hash = token.hash().expect("a token");
    let entries = IdentityEntries {
        api_keys: with_token(hash).api_keys,
        ..admins_and("ada", &[2, 3], &[APPLY_SCOPE])
    };
    bench.identities.identities.replace_config(entries);
    let node = connected(&bench, shown);
    let stored = || {
        let kept = ScheduledStartStore::new(bench.dir.path(), STEP).read();
        let kept = kept.expect("readable").expect("it waits");
        (kept.by, kept.key, kept.token)
    };
    let at = start(3600).at.to_string();
    let of_admin = start(0).key.map(|key| key.to_string());
    for (field, value) in [
        ("key", json!(of_admin)),
        ("token", json!(hash)),
        ("by", json!("admin")),
    ] {
        let mut input = json!({ "at": at });
        input[field] = value;
        let refused = node.call("update/apply", &input).await.map(drop);
        let refused = refused.expect_err("no such field");
        assert_eq!(refused.code, ErrorCode::InvalidInput, "{field}");
        assert!(!file(&bench).exists());
    }
    let input = json!({ "at": at });
    let set = node.call("update/apply", &input).await;
    set.expect("it waits");
    // Not its first key, nor that of the administrator.
    assert_eq!(stored(), ("ada".to_owned(), Some(shown), None));
    let options = CallOptions {
        auth_token: Some(token.expose().to_owned()),
        ..CallOptions::default()
    };
    let set = node.call_with("update/apply", &input, &options).await;
    set.expect("it waits");
    // The token alone asked, and not the peer whose connection carried it.
    assert_eq!(stored(), (format!("key:{}", hash.key_id), None, Some(hash)));
}

/// The ends of planned starts that PID 1 was to log: the version, the reason and the caller.
fn unscheduled(bench: &NodeUpdateBench) -> Vec<[String; 3]> {
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

/// The node starts before PID 1 has read its slots, and the clock may not be set yet.
#[tokio::test]
async fn a_start_waits_for_the_slots_and_the_time() {
    let bench = bench();
    assert_eq!(bench.updates.start_turn(&start(60)), StartTurn::Waits);
    assert_eq!(bench.updates.start_turn(&start(-1)), StartTurn::Now);
    let missed = start(-LATE_S_MAX - 60);
    assert_eq!(bench.updates.start_turn(&missed), StartTurn::Missed);
    bench.set(|facts| facts.clock = "unset".to_owned());
    assert_eq!(bench.updates.start_turn(&missed), StartTurn::Waits);
    bench.set(|facts| {
        facts.clock = "sntp".to_owned();
        facts.update = UpdateFacts::default();
    });
    assert_eq!(bench.updates.start_turn(&missed), StartTurn::Waits);
    // The version was started, and the node ended before it forgot the start.
    for state in ["pending", "trial", "good", "failed"] {
        bench.set(|facts| facts.update.state = state.to_owned());
        assert_eq!(
            bench.updates.start_turn(&start(-1)),
            StartTurn::Over,
            "{state}"
        );
    }
}

/// What the first version stored, with a member that a later version may add.
#[test]
fn the_first_format_of_a_planned_start_is_read() {
    const WAITS: &str = r#"{"at":"2027-01-31T02:00:00Z","sha256":"a1","version":"1.1.0","by":"ada","key":"ed25519:0202020202020202020202020202020202020202020202020202020202020202","limited":true,"later":1}"#;
    const FAILED: &str = r#"{"at":"2027-01-31T02:00:00Z","sha256":"a1","version":"1.1.0","by":"key:a1b2c3d4","token":"a1b2c3d4:0707070707070707070707070707070707070707070707070707070707070707","limited":true,"failure":"too late","later":1}"#;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = ScheduledStartStore::new(folder.path(), STEP);
    let expected = |by: &str, key, token, failure: &str| ScheduledStart {
        at: "2027-01-31T02:00:00Z".parse().expect("a moment"),
        by: by.to_owned(),
        key,
        token,
        limited: true,
        failure: failure.to_owned(),
        ..start(0)
    };
    assert_eq!(store.read().expect("no start"), None);
    let key = PeerKey::Ed25519([2; 32]);
    let token = TokenHash {
        key_id: "a1b2c3d4".parse().expect("a name"),
        sha256: [7; 32],
    };
    let of_token = expected("key:a1b2c3d4", None, Some(token), "too late");
    for (sample, start) in [
        (WAITS, expected("ada", Some(key), None, "")),
        (FAILED, of_token),
    ] {
        std::fs::create_dir_all(folder.path().join("state")).expect("writable");
        let file = folder.path().join("state/scheduled-start.json");
        std::fs::write(file, sample).expect("writable");
        assert_eq!(store.read().expect("readable"), Some(start));
    }
}
