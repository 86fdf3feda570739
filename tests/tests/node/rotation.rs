//! `alknet key rotate` with `alknet serve`, for peers in the node's store and in its configuration.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alknet_call::{ALPN, CallClient, CallConnection, CallOptions, ForwardedFor};
use alknet_core::{
    ApiKey, AuthToken, Carriage, CloseReason, Connection, IdentityPersistence, KeySuccession,
    PeerEntry, PeerKey, StoreChange, StoredIdentities,
};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_identity_store::IdentityDb;
use alknet_test_support::{deadline, seconds};
use alknet_tests::{CliOutput, CliRunner, HostNode, TestBench};
use alknet_tls::NodeKey;
use data_encoding::BASE64URL_NOPAD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::promoted_callers::{OperationDraft, configuration, promote};

/// How long anything may take before a test counts as hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// Opens the store of a node that does not run.
fn store(state: &Path) -> (IdentityDb, StoredIdentities) {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state.join("identity"))
        .expect("the folder is ours");
    let (db, stored) = IdentityDb::open(&state.join("identity/identity.db"));
    assert_eq!(db.diagnostics(), []);
    (db, stored)
}

fn entry(name: &str, who: &CliRunner) -> PeerEntry {
    PeerEntry {
        keys: vec![who.identity().parse().expect("a key")],
        scopes: ["peer:list"].into_iter().collect(),
        ..PeerEntry::new(name.parse().expect("a peer id"))
    }
}

/// A node with its state in `name`, whose store has these peers.
fn node(bench: &TestBench, name: &str, peers: &[(&str, &CliRunner)]) -> HostNode {
    let state = bench.path().join(name);
    let changes = peers
        .iter()
        .map(|(name, who)| StoreChange::PutPeer(entry(name, who)));
    let (db, _) = store(&state);
    db.persist(&changes.collect::<Vec<_>>()).expect("room");
    drop(db);
    HostNode::start(&state, bench.admin())
}

fn rotate(who: &CliRunner, words: &[&str]) -> CliOutput {
    let mut command = who.command(&["key", "rotate"]);
    command.args(words);
    who.run(command)
}

fn list(who: &CliRunner, target: &str) -> CliOutput {
    who.run(who.command(&["peers", target]))
}

fn key_file(who: &CliRunner, suffix: &str) -> PathBuf {
    who.state().join(format!("identity.key{suffix}"))
}

/// A connection made with the key in this file.
async fn dial(file: &Path, target: &str) -> (EndpointDialer, Connection, CallConnection) {
    let key = NodeKey::load(file).expect("readable").expect("a key");
    let dialer = EndpointDialer::new(Some(key));
    let target: Target = target.parse().expect("a target");
    let connection = dialer.dial_over(Carriage::Quic, &target, ALPN).await;
    let connection = connection.unwrap_or_else(|error| panic!("{error}"));
    let client = CallClient::without_operations().attach(connection.clone(), None);
    (dialer, connection, client)
}

async fn may_list(client: &CallConnection) -> bool {
    let answer = client.call("peer/list", &Value::Null);
    let answer = timeout(hung(), answer).await.expect("an answer in time");
    answer.is_ok()
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("the clock is set").as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_the_same_peer_and_the_old_one_ends() {
    let bench = TestBench::new();
    let edge = bench.user("edge");
    let served = node(&bench, "host", &[("edge", &edge)]);
    let target = served.target().to_owned();
    let before = edge.identity();
    let (_dialer, _connection, live) = dial(&key_file(&edge, ""), &target).await;
    assert!(may_list(&live).await);

    let done = rotate(&edge, &[&target]).json();
    assert_eq!(done["rotated"], true, "{done:#}");
    assert_eq!(done["targets"][0]["peer_id"], "edge", "{done:#}");
    let after = edge.identity();
    assert_ne!(after, before);
    assert_eq!(done["identity"], after);
    let peers = list(&edge, &target).json();
    let me = &peers["peers"][1];
    assert_eq!(
        (&me["peer_id"], &me["source"]),
        (&json!("edge"), &json!("store"))
    );
    assert_eq!(me["keys"], json!([before, after]), "{peers:#}");
    let ends = me["key_ends"][&before].as_str().expect("an end");
    assert_eq!(done["targets"][0]["old_key_ends"], ends);
    // The file of the old key is not removed before the node's announced time. The next second may
    // have begun meanwhile.
    let deleted = done["old_key_ends"].as_str().expect("an end");
    assert!(deleted >= ends, "{done:#}");
    let connections = me["connections"].to_string();
    for key in [&before, &after] {
        assert!(connections.contains(key), "{peers:#}");
    }
    let admin = &peers["peers"][0];
    assert_eq!(
        (&admin["peer_id"], &admin["source"]),
        (&json!("admin"), &json!("config"))
    );

    // Existing connections continue, and until the end of its time the old key makes connections of
    // the same peer.
    assert!(may_list(&live).await);
    let old = key_file(&edge, ".old");
    let (_dialer, _connection, again) = dial(&old, &target).await;
    assert!(may_list(&again).await);
    assert!(!key_file(&edge, ".new").exists());
    let repeated = rotate(&edge, &[]).json();
    assert_eq!(repeated["identity"], after, "one rotation at a time");

    // A killed node still knows it. A second of the day is left.
    drop(served);
    let state = bench.path().join("host");
    let (db, stored) = store(&state);
    let mut entry = stored.peers[0].clone();
    let (old_key, new_key): (PeerKey, PeerKey) = (
        before.parse().expect("a key"),
        after.parse().expect("a key"),
    );
    assert_eq!(entry.keys, [old_key, new_key]);
    entry.key_ends = [(old_key, now_s() + 5)].into();
    db.persist(&[StoreChange::PutPeer(entry)]).expect("room");
    drop(db);
    let served = HostNode::start(&state, bench.admin());
    let (_dialer, connection, last) = dial(&old, served.target()).await;
    // Unless this took so long that the time is already over.
    may_list(&last).await;
    let ended = timeout(hung(), connection.closed()).await;
    assert!(
        matches!(ended, Ok(CloseReason::Peer(Some(1), _))),
        "{ended:?}"
    );
    let (_dialer, _connection, unknown_peer) = dial(&old, served.target()).await;
    assert!(!may_list(&unknown_peer).await);
    assert_eq!(list(&edge, served.target()).status, 0);
}

#[test]
fn a_silent_node_learns_the_new_key_later() {
    let bench = TestBench::new();
    let edge = bench.user("edge");
    let near = node(&bench, "near", &[("edge", &edge)]);
    let far = node(&bench, "far", &[("edge-2", &edge)]);
    let before = edge.identity();
    let far_pid = Pid::from_raw(far.pid().cast_signed());
    kill(far_pid, Signal::SIGSTOP).expect("it runs");
    let wait = seconds(Duration::from_secs(3));
    let stopped = rotate(&edge, &[near.target(), far.target(), "--timeout", &wait]);
    assert_eq!(stopped.status, 5, "{stopped:?}");
    let said: Value = serde_json::from_str(&stopped.output).expect("JSON");
    assert_eq!(said["rotated"], false, "{said:#}");
    assert_eq!(said["targets"][0]["notified"], true, "{said:#}");
    assert_eq!(said["targets"][1]["notified"], false, "{said:#}");
    assert_eq!(
        edge.identity(),
        before,
        "in use until every hub knows the new one"
    );
    assert_eq!(list(&edge, near.target()).status, 0);

    kill(far_pid, Signal::SIGCONT).expect("it runs");
    let done = rotate(&edge, &[]).json();
    assert_eq!(done["rotated"], true, "{done:#}");
    assert_eq!(done["targets"][1]["peer_id"], "edge-2", "{done:#}");
    for served in [&near, &far] {
        assert_eq!(list(&edge, served.target()).status, 0);
    }

    // A peer that is gone is given up.
    let nowhere = format!("{before}@127.0.0.1:1");
    let failed = rotate(&edge, &[&nowhere, "--timeout", &wait]);
    assert_ne!(failed.status, 0, "{failed:?}");
    let done = rotate(&edge, &["--drop", &nowhere]).json();
    assert_eq!(
        done["targets"].as_array().map(Vec::len),
        Some(2),
        "{done:#}"
    );
}

#[test]
fn a_node_that_was_forgotten_hears_of_it_from_the_old_key() {
    let bench = TestBench::new();
    let edge = bench.user("edge");
    let first = node(&bench, "first", &[("edge", &edge)]);
    let forgotten = node(&bench, "forgotten", &[("edge", &edge)]);
    rotate(&edge, &[first.target()]).json();
    assert_eq!(list(&edge, forgotten.target()).code(), "UNAUTHENTICATED");
    let told = rotate(&edge, &[forgotten.target()]).json();
    assert_eq!(told["targets"][1]["notified"], true, "{told:#}");
    assert_eq!(list(&edge, forgotten.target()).status, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_what_to_do() {
    let bench = TestBench::new();
    let (edge, ada) = (bench.user("edge"), bench.user("ada"));
    for has_key in [false, true] {
        let nothing = rotate(&edge, &[]);
        assert_eq!((nothing.status, nothing.code().as_str()), (2, "USAGE"));
        let says = if has_key {
            "name the nodes"
        } else {
            "alknet identity"
        };
        assert!(nothing.errors.contains(says), "{nothing:?}");
        edge.identity();
    }
    let token = AuthToken::generate().expect("randomness");
    let state = bench.path().join("host");
    let (db, _) = store(&state);
    let key = ApiKey {
        scopes: ["peer:list"].into_iter().collect(),
        ..ApiKey::new(token.hash().expect("a token"))
    };
    db.persist(&[
        StoreChange::PutApiKey(key),
        StoreChange::PutPeer(entry("ada", &ada)),
    ])
    .expect("room");
    drop(db);
    let served = HostNode::start(&state, bench.admin());
    let target = served.target();

    // The key of an unknown peer, and a key of the configuration.
    let unknown_peer = rotate(&edge, &[target]);
    assert_eq!(
        (unknown_peer.status, unknown_peer.code().as_str()),
        (4, "UNAUTHENTICATED")
    );
    let admin = rotate(bench.admin(), &[target]);
    assert_eq!((admin.status, admin.code().as_str()), (1, "CONFLICT"));
    assert!(admin.errors.contains("node.admin_keys"), "{admin:?}");

    let (_dialer, _connection, client) = dial(&key_file(&ada, ""), target).await;
    let asked = client.call("peer/rotate-key", &Value::Null).await;
    let asked = asked.expect("what to sign");
    assert_eq!(asked.value()["peer_id"], "ada");
    assert_eq!(asked.value()["old_key"], ada.identity());
    // A token is not enough, nor is another peer's proof or a part of the input.
    let options = CallOptions {
        auth_token: Some(token.expose().to_owned()),
        ..CallOptions::default()
    };
    let refused = client.call_with("peer/rotate-key", &Value::Null, &options);
    let code = refused
        .await
        .map(drop)
        .map_err(|error| error.code.name().to_owned());
    assert_eq!(code, Err("FORBIDDEN".to_owned()));
    let new = NodeKey::generate().expect("a key").public();
    for (input, code) in [
        (json!({ "new_key": new }), "INVALID_INPUT"),
        (
            json!({ "new_key": new, "time": 1, "proof": "A".repeat(86),
                    "old_proof": "A".repeat(86) }),
            "INVALID_INPUT",
        ),
        (
            json!({ "new_key": new, "time": now_s(), "proof": "A".repeat(86),
                    "old_proof": "A".repeat(86) }),
            "FORBIDDEN",
        ),
    ] {
        let refused = client.call("peer/rotate-key", &input).await;
        let refused = refused
            .map(drop)
            .map_err(|error| error.code.name().to_owned());
        assert_eq!(refused, Err(code.to_owned()), "{input}");
    }
    assert!(may_list(&client).await);
}

#[test]
fn a_peer_of_the_configuration_is_rotated_by_its_keeper() {
    let bench = TestBench::new();
    let ada = bench.user("ada");
    let served = bench.host();
    let admin = bench.admin();
    let apply = |keys: &[&str]| {
        let document = format!(
            "node.admin_keys = [\"{}\"]\n[[peers]]\npeer_id = \"ada\"\nkeys = {}\n\
             scopes = [\"peer:list\"]\n",
            admin.identity(),
            json!(keys)
        );
        let input = json!({ "document": document });
        admin
            .call(served.target(), "config/apply", &input, &[])
            .json();
    };
    let before = ada.identity();
    apply(&[&before]);
    let refused = rotate(&ada, &[served.target()]);
    assert_eq!((refused.status, refused.code().as_str()), (1, "CONFLICT"));
    let said: Value = serde_json::from_str(&refused.output).expect("JSON");
    let new = said["new"].as_str().expect("a key");
    assert!(
        refused.errors.contains(new),
        "it says which key to add: {refused:?}"
    );
    assert_eq!(ada.identity(), before);

    apply(&[&before, new]);
    let done = rotate(&ada, &[]).json();
    assert_eq!(
        (&done["rotated"], &done["identity"]),
        (&json!(true), &json!(new))
    );
    assert_eq!(done["targets"][0]["old_key_ends"], Value::Null, "{done:#}");
    apply(&[new]);
    assert_eq!(list(&ada, served.target()).status, 0);
}

#[test]
fn a_damaged_store_is_announced_and_keeps_no_node_from_starting() {
    let bench = TestBench::new();
    let edge = bench.user("edge");
    drop(node(&bench, "host", &[("edge", &edge)]));
    let state = bench.path().join("host");
    std::fs::write(state.join("identity/identity.db"), "no database").expect("ours");
    for start in 0..2 {
        let served = HostNode::start(&state, bench.admin());
        let info = served.call("node/info", &Value::Null);
        assert_eq!(
            info["problems"][0]["code"], "identity-store-damaged",
            "{start}: {info:#}"
        );
        assert!(
            info["problems"]
                .to_string()
                .contains("identity.db.damaged-1")
        );
        assert_eq!(list(&edge, served.target()).code(), "UNAUTHENTICATED");
    }
}

/// A peer that calls another's operation, or runs another's script, is connected with a key that
/// the author wants to replace by its own.
#[tokio::test(flavor = "multi_thread")]
async fn no_operation_and_no_node_in_between_replaces_a_key() {
    let bench = TestBench::new();
    let [edge, ada, rev] = ["edge", "ada", "rev"].map(|name| bench.user(name));
    let state = bench.path().join("host");
    let may = ["call:js:steal", "runtime:debug", "forward:identity"];
    let peer = PeerEntry {
        scopes: may.into_iter().collect(),
        ..entry("edge", &edge)
    };
    let (db, _) = store(&state);
    db.persist(&[StoreChange::PutPeer(peer)]).expect("room");
    drop(db);
    let people: [(&str, &CliRunner, &[&str]); 2] = [
        ("ada", &ada, &["ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
    ];
    let file = bench.path().join("node.toml");
    std::fs::write(&file, configuration("", &people)).expect("the folder is ours");
    let served = HostNode::start_with(&state, bench.admin(), Some(&file));
    let target = served.target();

    // Everything that the node requires, signed by the author's key.
    let (hub, _) = target.split_once('@').expect("a pinned target");
    let (hub, old): (PeerKey, PeerKey) = (
        hub.parse().expect("a key"),
        edge.identity().parse().expect("a key"),
    );
    let taker = NodeKey::generate().expect("a key");
    let (new, time) = (taker.public(), now_s());
    let edge_id = "edge".parse().expect("a peer id");
    let statement = KeySuccession {
        hub: &hub,
        peer: &edge_id,
        old: &old,
        new: &new,
        time_s: time,
    };
    let proof = BASE64URL_NOPAD.encode(&taker.sign(&statement.transcript()));
    // The author has no signature by the old key, and presents one of the same form.
    let input = json!({ "new_key": new, "time": time, "proof": proof, "old_proof": proof });
    let steals = format!(
        "const steal = async () => {{
             try {{ return await ops.call('peer/rotate-key', {input}); }}
             catch (error) {{ return [error.code, error.message.includes('not for an operation')]; }}
         }};"
    );
    let source = format!("{steals} export const run = (go) => go ? steal() : 'done';");
    let draft = OperationDraft {
        uses: &["peer/rotate-key"],
        input: json!({ "type": "boolean" }),
        example: json!(false),
        source: &source,
        ..OperationDraft::waits("steal")
    };
    promote(&bench, target, ("ada", &ada), &rev, &draft);
    let refused = json!(["FORBIDDEN", true]);
    let told = edge.call(target, "js/steal", &json!(true), &[]).json();
    assert_eq!(told, refused);
    let script = json!({ "source": format!("{steals} export default await steal();") });
    let ran = edge.call(target, "runtime/eval", &script, &[]).json();
    assert_eq!(ran["value"], refused, "{ran}");

    // A node that forwards requests has its own key there, and not that of a peer behind it.
    let (_dialer, _connection, client) = dial(&key_file(&edge, ""), target).await;
    let options = CallOptions {
        forwarded_for: Some(ForwardedFor::new("somebody")),
        ..CallOptions::default()
    };
    let passed_on = client.call_with("peer/rotate-key", &input, &options).await;
    let passed_on = passed_on.expect_err("it is not the holder who asks");
    assert_eq!(passed_on.code.name(), "FORBIDDEN");
    assert!(
        passed_on.message.contains("not for an operation"),
        "{passed_on}"
    );
    // If a node does not disclose for which peer it asks, the missing signature of the old key
    // shows that it is not the holder.
    let unsaid = client.call("peer/rotate-key", &input).await;
    let unsaid = unsaid.expect_err("the old key did not sign");
    assert!(unsaid.message.contains("the old key"), "{unsaid}");
    let peers = list(bench.admin(), target).json();
    let listed = peers["peers"].as_array().expect("a list");
    let listed = listed.iter().find(|peer| peer["peer_id"] == "edge");
    assert_eq!(
        listed.expect("it is known")["keys"],
        json!([edge.identity()])
    );
    let asked = client.call("peer/rotate-key", &Value::Null).await;
    assert_eq!(asked.expect("its own key").value()["peer_id"], "edge");
}
