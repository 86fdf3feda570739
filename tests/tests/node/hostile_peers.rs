//! Peers that speak the protocol by hand: with schemas that are written against the hub, which imports them and
//! checks with them what its own operations and scripts call; one that counts what it is asked; and one that reads
//! requests and answers none.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::{
    ALPN, CallClient, CallOptions, Envelope, ErrorCode, EventKind, FrameBody, FrameReader,
    Idempotence, OperationSpec, encode_event,
};
use alknet_core::{CloseCode, Connection, RecvStream, SendStream};
use alknet_endpoint::{Dialer, Target};
use alknet_test_support::took;
use alknet_tests::{Asking, Bench, Cli, HostNode, eventually};
use alknet_tls::NodeKey;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

use super::unread::memory;

/// What the hub answers within meanwhile.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// What importing from hostile peers and refusing what it would take may make the hub grow by: the long name, written
/// before each schema behind it, takes 900 MB.
const SCHEMAS_GROWTH_MAX: u64 = 48 << 20;

/// Inputs of nearly 1 MiB that are passed on, one after the other.
const PASSED_ON: usize = 48;
/// What they may make the hub grow by, half of what they have: one is on its way at a time.
const PASSED_ON_GROWTH_MAX: u64 = 24 << 20;

/// A chain of forty, each twice the next.
fn chain() -> Value {
    let mut defs = json!({ "d40": { "type": "string" } });
    for at in 0..40 {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        defs[format!("d{at}")] = json!({ "allOf": [next, next] });
    }
    json!({ "$ref": "#/$defs/d0", "$defs": defs })
}

/// A name that the library writes before each of the schemas behind it: gigabytes.
fn long_name() -> Value {
    let mut properties = Map::new();
    properties.insert(
        "x".repeat(100_000),
        json!({ "anyOf": vec![json!({}); 9_000] }),
    );
    json!({ "properties": properties })
}

/// Ten thousand numbers, for each of the items.
fn numbers() -> Value {
    let numbers: Vec<f64> = (0..10_000).map(|n| f64::from(n) + 0.5).collect();
    json!({ "items": { "enum": numbers } })
}

/// A peer that says of itself what it likes.
struct Peer {
    _dialer: Dialer,
    connection: Connection,
    /// What it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

/// A connection to the hub, and what made it.
async fn dial(hub: &HostNode, who: &Cli) -> (Dialer, Connection) {
    let file = who.state().join("identity.key");
    let (key, _) = NodeKey::load_or_create(&file).expect("a key");
    let dialer = Dialer::new(Some(key));
    let target: Target = hub.target().parse().expect("the hub's own target");
    let connection = dialer.dial(&target, ALPN).await.expect("it is known");
    (dialer, connection)
}

impl Peer {
    async fn start(hub: &HostNode, who: &Cli, spec: OperationSpec) -> Self {
        Self::serving(hub, who, vec![spec]).await
    }

    async fn serving(hub: &HostNode, who: &Cli, specs: Vec<OperationSpec>) -> Self {
        let (dialer, connection) = dial(hub, who).await;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let specs: Arc<[Value]> = specs.into_iter().map(|spec| json!(spec)).collect();
        let (incoming, note) = (connection.clone(), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((send, recv)) = incoming.accept_bi().await {
                tokio::spawn(answer(send, recv, Arc::clone(&specs), Arc::clone(&note)));
            }
        });
        Self {
            _dialer: dialer,
            connection,
            asked,
        }
    }

    fn asked(&self, operation: &str) -> usize {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|one| *one == operation).count()
    }
}

/// A row of `services/list`.
fn listed(spec: &Value) -> Value {
    json!({ "name": spec["name"], "namespace": "node", "op_type": "query" })
}

async fn answer(
    mut send: SendStream,
    mut recv: RecvStream,
    specs: Arc<[Value]>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let mut frames = FrameReader::new();
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10).await {
        frames.push(chunk);
        while let Some(frame) = frames.next_frame(64 << 20).expect("a good node") {
            let body = FrameBody::parse(frame).expect("a good node");
            let event = Envelope::parse(&body.envelope, 64).expect("a good node");
            if event.kind != EventKind::Requested {
                continue;
            }
            let payload: Value = serde_json::from_str(event.payload).expect("JSON");
            let operation = payload["operationId"].as_str().unwrap_or_default();
            let operation = operation.trim_start_matches('/').to_owned();
            let output = match operation.as_str() {
                "services/list" => {
                    let all: Value = specs.iter().map(listed).collect();
                    json!({ "operations": all, "registry": "r" })
                }
                "services/schema" => json!({ "specs": &*specs }),
                // It tells of no changes.
                "services/watch" => continue,
                "node/hold" => {
                    asked.lock().expect("no panic").push(operation);
                    continue;
                }
                _ => json!("done"),
            };
            let full = {
                let mut asked = asked.lock().expect("no panic");
                let full = operation == "node/full" && !asked.contains(&operation);
                asked.push(operation);
                full
            };
            let (kind, payload) = match full {
                true => (
                    EventKind::Error,
                    json!({ "code": "OVERLOADED", "retryable": true }),
                ),
                false => (EventKind::Responded, json!({ "output": output })),
            };
            let bytes = encode_event(kind, &event.id, &payload.to_string());
            if send.write_chunk(bytes).await.is_err() {
                return;
            }
        }
    }
}

/// The code and the text that a script's call of an operation of a peer's ends with; nothing where it is answered.
fn called(hub: &HostNode, peer: &str, input: &str) -> (String, String) {
    let source = format!(
        "let told = ['', ''];
         try {{ await ops.call('node/do', {input}, {{ peer: '{peer}' }}); }}
         catch (error) {{ told = [error.code, error.message]; }}
         export default told"
    );
    let told = hub.call("runtime/eval", &json!({ "source": source }))["value"].take();
    serde_json::from_value(told).expect("two texts")
}

/// The configuration of a hub that knows these peers.
fn knows<'a>(people: impl Iterator<Item = (&'a str, &'a Cli)>) -> String {
    let mut config = "[hub]\nenabled = true\n".to_owned();
    for (name, who) in people {
        let key = who.identity();
        config += &format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\n");
    }
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_peers_cost_the_hub_little_time() {
    let bench = Bench::new();
    let names = ["fine", "chain", "name", "numbers"];
    let people = names.map(|name| bench.somebody(name));
    // Why something is not imported is said at this level.
    let config = knows(names.iter().copied().zip(&people)) + "[log]\nlevel = \"debug\"\n";
    let hub = bench.host_with(&config);
    let [fine, chained, named, many] = &people;
    // What is made by the first script stays: a worker, tables, threads.
    hub.call("runtime/eval", &json!({ "source": "export default 1" }));
    fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
    let held = memory(&hub, "VmRSS:");
    // From before the first of them is attached until the last was refused.
    let asking = Asking::begin(hub.target(), bench.admin());
    let does = |schema| OperationSpec::query("node/do", "Works.").with_input(schema);
    // What is wrong with one operation must not be for lack of another.
    let both = |schema| vec![does(schema), OperationSpec::query("node/rest", "Rests.")];
    let fine = Peer::start(&hub, fine, does(json!({ "type": "array" }))).await;
    let chained = Peer::serving(&hub, chained, both(chain())).await;
    let named = Peer::serving(&hub, named, both(long_name())).await;
    let many = Peer::start(&hub, many, does(numbers())).await;
    until_read(&hub, ["chain", "name"]);

    let list = "new Array(40000).fill(7)";
    for (name, peer) in [("fine", &fine), ("numbers", &many)] {
        eventually(name, || {
            let (code, _) = called(&hub, name, "[]");
            (code.is_empty() && peer.asked("node/do") > 0).then_some(())
        });
    }
    assert_eq!(called(&hub, "fine", list).0, "");
    // What would take hours is refused before it begins, and the peer is not asked.
    let before = many.asked("node/do");
    let (code, said) = called(&hub, "numbers", list);
    assert_eq!(code, "INVALID_INPUT", "{said}");
    assert!(said.contains("steps"), "{said}");
    assert_eq!(many.asked("node/do"), before);
    // What no value could be checked against, or compiles to far more than it is, is not imported.
    for (name, peer) in [("chain", &chained), ("name", &named)] {
        assert!(peer.asked("services/schema") > 0, "{name}");
        let (code, said) = called(&hub, name, "'x'");
        assert_eq!(code, "NOT_FOUND", "{name}: {said}");
        assert_eq!(peer.asked("node/do"), 0, "{name}");
    }
    let grown = memory(&hub, "VmHWM:").saturating_sub(held);
    println!("figure hostile schemas of peers: {} KiB", grown >> 10);
    assert!(grown <= SCHEMAS_GROWTH_MAX, "{grown} bytes");
    let what = "an answer beside hostile schemas of peers";
    took(what, ANSWER_WITHIN, asking.end());
    assert_eq!(hub.call("node/info", &Value::Null)["problems"], json!([]));
    for peer in [fine, chained, named, many] {
        peer.connection.close(CloseCode::Normal, "");
    }
}

/// Waits until the hub has imported what these peers serve, or says in its log, of each, why it does not.
fn until_read<const N: usize>(hub: &HostNode, peers: [&str; N]) {
    eventually("what the peers serve was read", || {
        let listed = hub.call("services/list-peers", &Value::Null);
        let imported = listed["peers"].as_array()?.iter();
        let imported = imported.filter(|one| peers.iter().any(|name| one["peer"] == *name));
        let imported = imported.filter(|one| one["operations"] != json!([]));
        let log = hub.try_call("node/log", &json!({ "last": 10_000 })).output;
        let refused = log.lines().filter(|line| {
            line.contains("the peer's operations are not imported") && line.contains("node/do")
        });
        (imported.count() + refused.count() >= N).then_some(())
    });
}

/// Waits until an operation of a peer is there.
fn until_attached(hub: &HostNode) {
    eventually("the peer is attached", || {
        let listed = hub.call("services/list-peers", &Value::Null);
        let peers = listed["peers"].as_array()?.iter();
        let operations = peers.filter_map(|peer| peer["operations"].as_array());
        operations.flatten().next().map(drop)
    });
}

/// A requester has them passed on to a peer that is in league with it.
#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_a_peer_has_read_are_not_kept_by_the_hub() {
    let bench = Bench::new();
    let sink = bench.somebody("sink");
    let hub = bench.host_with(&knows([("sink", &sink)].into_iter()));
    let sink = Peer::start(&hub, &sink, OperationSpec::query("node/hold", "Waits.")).await;
    until_attached(&hub);
    let (_dialer, connection) = dial(&hub, bench.admin()).await;
    let client = CallClient::without_operations().attach(connection, None);
    let mut calls: Vec<JoinHandle<_>> = Vec::new();
    let mut before = 0;
    for n in 0..=PASSED_ON {
        // The first one makes what stays: streams, tables, pages of the allocator.
        if n == 1 {
            fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
            before = memory(&hub, "VmRSS:");
        }
        let client = client.clone();
        calls.push(tokio::spawn(async move {
            let input = "x".repeat((1 << 20) - 1000);
            let input = json!({ "peer": "sink", "operation": "node/hold", "input": input });
            let options = CallOptions {
                timeout: Some(Duration::from_secs(600)),
                ..CallOptions::default()
            };
            client.call_with("hub/invoke", &input, &options).await
        }));
        eventually("it is passed on", || {
            (sink.asked("node/hold") > n).then_some(())
        });
    }
    let grown = memory(&hub, "VmHWM:").saturating_sub(before);
    println!(
        "figure {PASSED_ON} inputs that were passed on: {} KiB",
        grown >> 10
    );
    assert!(grown <= PASSED_ON_GROWTH_MAX, "{grown} bytes");
    assert!(!calls.iter().any(JoinHandle::is_finished));
    calls.iter().for_each(JoinHandle::abort);
    sink.connection.close(CloseCode::Normal, "");
}

/// A script that does not know whether its call arrived asks again under the same key. The peer, which runs whatever
/// it is asked, is asked once for each.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_script_s_call_has_it_run_once() {
    let bench = Bench::new();
    let bank = bench.somebody("bank");
    let hub = bench.host_with(&knows([("bank", &bank)].into_iter()));
    let mut spec = OperationSpec::mutation("node/pay", "Pays.").with_scope("bank");
    spec.idempotent = Idempotence::Keyed;
    let bank = Peer::start(&hub, &bank, spec).await;
    until_attached(&hub);
    let source = "const pay = (idempotencyKey) =>
            ops.call('node/pay', {}, { peer: 'bank', idempotencyKey });
        export default [await pay('a'), await pay('a'), await pay('b'), await pay()];";
    let ran = hub.call("runtime/eval", &json!({ "source": source }));
    assert_eq!(
        ran["value"],
        json!(["done", "done", "done", "done"]),
        "{ran}"
    );
    assert_eq!(bank.asked("node/pay"), 3);
}

/// A script on a worker calls a peer of the worker's, which has no room at first. Whoever asked the hub for it under a
/// key asks again.
#[tokio::test(flavor = "multi_thread")]
async fn that_there_was_no_room_is_not_kept_for_a_key() {
    let bench = Bench::new();
    let (admin, bank) = (bench.admin(), bench.somebody("bank"));
    let hub = bench.host_with("[hub]\nenabled = true\n");
    let invited = admin.run(admin.command(&["hub", "invite", hub.target()]));
    let invited = invited.json();
    let join = invited["join"].as_str().expect("a join string");
    let config = bench.path().join("worker.toml");
    let document = format!(
        "{}[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{join}\"\n\
         scopes = [\"runtime:debug\"]\n",
        knows([("bank", &bank)].into_iter())
    );
    fs::write(&config, document).expect("the folder is ours");
    let worker = HostNode::start_with(&bench.path().join("worker"), admin, Some(&config));
    let full = OperationSpec::query("node/full", "Has no room at first.");
    let bank = Peer::start(&worker, &bank, full).await;
    for (node, operation) in [(&worker, "node/full"), (&hub, "runtime/eval")] {
        eventually(operation, || {
            let listed = node.call("services/list-peers", &Value::Null);
            listed.to_string().contains(operation).then_some(())
        });
    }
    let (_dialer, connection) = dial(&hub, admin).await;
    let client = CallClient::without_operations().attach(connection, None);
    let source = "export default await ops.call('node/full', {}, { peer: 'bank' })";
    let input = json!({
        "peer": "kitchen", "operation": "runtime/eval", "input": { "source": source },
    });
    let options = CallOptions {
        idempotency_key: Some("k".to_owned()),
        ..CallOptions::default()
    };
    let ask = async || client.call_with("hub/invoke", &input, &options).await;
    let refused = ask().await.expect_err("there is no room");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    assert!(refused.retryable, "{refused}");
    for _ in 0..2 {
        let answer = ask().await.expect("there is room by now");
        assert_eq!(answer.value()["value"], "done");
    }
    assert_eq!(bank.asked("node/full"), 2);
    bank.connection.close(CloseCode::Normal, "");
}
