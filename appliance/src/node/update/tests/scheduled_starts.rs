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
pub(super) fn bench() -> NodeUpdateBench {
    let bench = NodeUpdateBench::new();
    staged(&bench, "a1");
    bench
}

/// PID 1 has looked at the slots, and this program is staged.
pub(super) fn staged(bench: &NodeUpdateBench, sha256: &str) {
    bench.set(|facts| {
        facts.update.outdated = false;
        facts.update.state = "staged".to_owned();
        facts.update.other_version = Some("1.1.0".to_owned());
        facts.update.other_sha256 = Some(sha256.to_owned());
    });
}

pub(super) fn file(bench: &NodeUpdateBench) -> PathBuf {
    bench.dir.path().join("state/scheduled-start.json")
}

/// A start of an administrator, so many seconds from now, as the first version stored one.
pub(super) fn start(seconds: i64) -> ScheduledStart {
    ScheduledStart {
        at: Timestamp::now() + SignedDuration::from_secs(seconds),
        sha256: "a1".to_owned(),
        version: "1.1.0".to_owned(),
        agreed_floor: None,
        by: "admin".to_owned(),
        key: Some(PeerKey::Ed25519([1; 32])),
        token: None,
        limited: false,
        failure: String::new(),
        replaced: false,
    }
}

/// Restarts the node with this start in its folder.
pub(super) fn restart_with(bench: &mut NodeUpdateBench, start: &ScheduledStart) {
    let text = serde_json::to_vec(start).expect("JSON");
    std::fs::create_dir_all(bench.dir.path().join("state")).expect("writable");
    std::fs::write(file(bench), text).expect("writable");
    bench.restart();
}

/// Lets the tasks of a node that has just restarted run: what follows would hold of a node that has done nothing.
pub(super) async fn let_tasks_run() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn wait_until(is_so: impl Fn() -> bool) {
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
        agreed_floor: None,
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
pub(super) fn starts(bench: &NodeUpdateBench) -> usize {
    let requests = bench.requests().into_iter();
    let starts = requests.filter(|(it, _)| matches!(it, UpdateRequest::Apply { .. }));
    starts.count()
}

/// The text of the problem that a version did not start.
pub(super) fn not_started(bench: &NodeUpdateBench) -> Option<String> {
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
        agreed_floor: None,
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
pub(super) fn connected(bench: &NodeUpdateBench, key: PeerKey) -> CallConnection {
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

/// The start in the file of the node.
pub(super) fn stored(bench: &NodeUpdateBench) -> ScheduledStart {
    let kept = ScheduledStartStore::new(bench.dir.path(), STEP).read();
    kept.expect("readable").expect("it waits")
}

/// The peer ada, which may start versions, with two keys and these tokens.
fn ada_with(tokens: &[TokenHash]) -> IdentityEntries {
    let mut entries = admins_and("ada", &[2, 3], &[APPLY_SCOPE]);
    entries.peers[0].token_hashes = tokens.to_vec();
    entries
}

/// A call that shows this token.
fn by_token(token: &AuthToken) -> CallOptions {
    CallOptions {
        auth_token: Some(token.expose().to_owned()),
        ..CallOptions::default()
    }
}

/// A client with several keys plans starts, and names other callers in its requests.
#[tokio::test]
async fn a_start_is_kept_with_what_its_caller_proved() {
    let bench = bench();
    let shown = PeerKey::Ed25519([3; 32]);
    let [token, of_peer] = [(); 2].map(|()| AuthToken::generate().expect("randomness"));
    let [hash, hash_of_peer] = [&token, &of_peer].map(|token| token.hash().expect("a token"));
    let entries = IdentityEntries {
        api_keys: with_token(hash).api_keys,
        ..ada_with(&[hash_of_peer])
    };
    bench.identities.identities.replace_config(entries);
    let node = connected(&bench, shown);
    let proved = || {
        let kept = stored(&bench);
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
    assert_eq!(proved(), ("ada".to_owned(), Some(shown), None));
    // The token alone asked, and not the peer whose connection carried it, also if it is a token of this peer.
    for (token, by, hash) in [
        (&token, format!("key:{}", hash.key_id), hash),
        (&of_peer, "ada".to_owned(), hash_of_peer),
    ] {
        let set = node
            .call_with("update/apply", &input, &by_token(token))
            .await;
        set.expect("it waits");
        assert_eq!(proved(), (by, None, Some(hash)));
    }
}

/// A program with a token of the peer ada, whose key it does not have, planned a start. The token was removed before the
/// moment, and the peer stayed.
#[tokio::test]
async fn a_start_that_a_token_of_a_peer_planned_ends_with_the_token() {
    let mut bench = bench();
    let token = AuthToken::generate().expect("randomness");
    let hash = token.hash().expect("a token");
    bench
        .identities
        .identities
        .replace_config(ada_with(&[hash]));
    let node = connected(&bench, PeerKey::Ed25519([9; 32]));
    let input = json!({ "at": start(3600).at.to_string() });
    let set = node
        .call_with("update/apply", &input, &by_token(&token))
        .await;
    set.expect("it waits");
    let due = ScheduledStart {
        at: start(-1).at,
        ..stored(&bench)
    };
    bench.identities.identities.replace_config(ada_with(&[]));
    restart_with(&mut bench, &due);
    wait_until(|| not_started(&bench).is_some()).await;
    assert!(bench.requests().is_empty());
    // With the token the same start happens.
    bench
        .identities
        .identities
        .replace_config(ada_with(&[hash]));
    restart_with(&mut bench, &due);
    wait_until(|| !bench.requests().is_empty()).await;
    let (request, by) = bench.requests().remove(0);
    assert_eq!(by, "ada");
    assert!(
        matches!(request, UpdateRequest::Apply { limited: true, .. }),
        "{request:?}"
    );
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
