//! Peers that use the protocol by hand. Some have schemas that attack the hub, which imports them
//! and checks the input of its own operations and scripts with them. One counts the requests that
//! it gets. Some read no requests, or answer none, and the answers of some have binary data.

use std::fs;
use std::time::Duration;

use alknet_call::{CallConnection, CallOptions, ErrorCode, Idempotence, OperationSpec};
use alknet_core::CloseCode;
use alknet_test_support::{deadline, took};
use alknet_tests::{CliRunner, HostNode, RequestLoop, TestBench, eventually, wire};
use serde_json::{Map, Value, json};
use tokio::task::{JoinHandle, JoinSet};

use super::manual_peer::{ManualPeer, OFTEN, POINTED, caller, dial, people, until_attached};
use super::unread::memory;

/// The hub answers within this time meanwhile.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// How much the hub may grow by importing from hostile peers and refusing expensive values. The
/// long name, written before each schema after it, takes 900 MB.
const SCHEMAS_GROWTH_MAX: u64 = 48 << 20;

/// Inputs of nearly 1 MiB that are forwarded, one after the other.
const PASSED_ON: usize = 48;
/// How much they may make the hub grow, half of their size, because only one is in transit at a
/// time.
const PASSED_ON_GROWTH_MAX: u64 = 24 << 20;

/// Inputs of this size that a peer does not read: more than its connection's windows and the hub
/// can hold.
const UNREAD: usize = 96;
/// The smallest number of refusals, and how much all inputs may make the hub grow: 16 MiB wait in
/// the windows of the connection that they come over, 4 MiB are kept, and the rest is in transit
/// (31,892 KiB were seen for 64).
const UNREAD_REFUSED_MIN: usize = 32;
const UNREAD_GROWTH_MAX: u64 = 48 << 20;

/// How much the hub may grow for an answer that points to the same data thousands of times.
const OFTEN_GROWTH_MAX: u64 = 32 << 20;
/// How much it may grow for two answers with 450,000 short values. A tree of one takes 32 MiB or
/// more.
const LISTS_GROWTH_MAX: u64 = 24 << 20;

/// How long anything may take before a test counts as hung.
const HUNG: Duration = Duration::from_secs(60);
/// How long nothing must happen before the test assumes the end.
const QUIET: Duration = Duration::from_millis(500);

/// A chain of forty, each twice as large as the next.
fn chain() -> Value {
    let mut defs = json!({ "d40": { "type": "string" } });
    for at in 0..40 {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        defs[format!("d{at}")] = json!({ "allOf": [next, next] });
    }
    json!({ "$ref": "#/$defs/d0", "$defs": defs })
}

/// A name that the library writes before each of the schemas after it: gigabytes.
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

/// The code and the text of the error of a script's call to a peer's operation. `None` if the call
/// is answered.
fn called(hub: &HostNode, peer: &str, input: &str) -> (String, String) {
    let source = format!(
        "let told = ['', ''];
         try {{ await ops.call('node/do', {input}, {{ peer: '{peer}' }}); }}
         catch (error) {{ told = [String(error.code), String(error.message)]; }}
         export default told"
    );
    let told = hub.call("runtime/eval", &json!({ "source": source }))["value"].take();
    serde_json::from_value(told).expect("two texts")
}

/// The configuration of a hub that knows these peers.
fn knows<'a>(known: impl Iterator<Item = (&'a str, &'a CliRunner)>) -> String {
    let none: &[&str] = &[];
    let known = known.map(|(name, who)| (name, who, none));
    "[hub]\nenabled = true\n".to_owned() + &people(known)
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_peers_cost_the_hub_little_time() {
    let bench = TestBench::new();
    let names = ["fine", "chain", "name", "numbers"];
    let people = names.map(|name| bench.user(name));
    // At this level the hub logs why something is not imported.
    let config = knows(names.iter().copied().zip(&people)) + "[log]\nlevel = \"debug\"\n";
    let hub = bench.host_with(&config);
    let [fine, chained, named, many] = &people;
    // The first script's lasting allocations: a worker, tables, threads.
    hub.call("runtime/eval", &json!({ "source": "export default 1" }));
    fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
    let held = memory(&hub, "VmRSS:");
    // From before the first of them connects until the last was refused.
    let asking = RequestLoop::begin(hub.target(), bench.admin());
    let does = |schema| OperationSpec::query("node/do", "Works.").with_input(schema);
    // An operation's fault must not be the lack of another.
    let both = |schema| vec![does(schema), OperationSpec::query("node/rest", "Rests.")];
    let fine = ManualPeer::start(&hub, fine, does(json!({ "type": "array" }))).await;
    let chained = ManualPeer::serving(&hub, chained, both(chain())).await;
    let named = ManualPeer::serving(&hub, named, both(long_name())).await;
    let many = ManualPeer::start(&hub, many, does(numbers())).await;
    until_read(&hub, ["chain", "name"]);

    let list = "new Array(40000).fill(7)";
    for (name, peer) in [("fine", &fine), ("numbers", &many)] {
        eventually(name, || {
            let (code, _) = called(&hub, name, "[]");
            (code.is_empty() && peer.asked("node/do") > 0).then_some(())
        });
    }
    assert_eq!(called(&hub, "fine", list).0, "");
    // Checks that would take hours are refused before they begin, and the peer gets no request.
    let before = many.asked("node/do");
    let (code, said) = called(&hub, "numbers", list);
    assert_eq!(code, "INVALID_INPUT", "{said}");
    assert!(said.contains("steps"), "{said}");
    assert_eq!(many.asked("node/do"), before);
    // A schema that no value could be checked against, or that compiles to far more than its size,
    // is not imported.
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

/// A hundred thousand numbers, for each of the items.
fn too_many_numbers() -> Value {
    let numbers: Vec<f64> = (0..100_000).map(|n| f64::from(n) + 0.5).collect();
    json!({ "items": { "enum": numbers } })
}

/// Thirty of them, each of which looks again into all that are within it.
fn unevaluated() -> Value {
    let within = |schema, _| json!({ "unevaluatedProperties": schema });
    (0..30).fold(json!({ "type": "string" }), within)
}

/// The values that such schemas are written for are not compared with them: the schemas are not imported.
#[tokio::test(flavor = "multi_thread")]
async fn schemas_of_peers_cost_the_hub_little_time_however_wide_or_deep() {
    let bench = TestBench::new();
    let names = ["wide", "deep"];
    let people = names.map(|name| bench.user(name));
    let config = knows(names.iter().copied().zip(&people)) + "[log]\nlevel = \"debug\"\n";
    let hub = bench.host_with(&config);
    // What is made by the first script stays: a worker, tables, threads.
    hub.call("runtime/eval", &json!({ "source": "export default 1" }));
    let asking = RequestLoop::begin(hub.target(), bench.admin());
    let does = |schema| OperationSpec::query("node/do", "Works.").with_input(schema);
    let wide = ManualPeer::start(&hub, &people[0], does(too_many_numbers())).await;
    let deep = ManualPeer::start(&hub, &people[1], does(unevaluated())).await;
    eventually("both are refused", || {
        let log = hub.try_call("node/log", &json!({ "last": 10_000 })).output;
        let refused = log
            .lines()
            .filter(|line| line.contains("the peer's operations are not imported"));
        let refused: Vec<_> = refused.collect();
        let is_refused = |name: &&str| {
            let who = format!("peer={name} ");
            refused.iter().any(|line| line.contains(&who))
        };
        names.iter().all(is_refused).then_some(())
    });
    let list = "new Array(400000).fill(7)";
    let nested = "(() => { let v = 1; for (let i = 0; i < 30; i++) v = { v }; return v; })()";
    for (name, peer, input) in [("wide", &wide, list), ("deep", &deep, nested)] {
        assert!(peer.asked("services/schema") > 0, "{name}");
        let (code, said) = called(&hub, name, "'x'");
        assert_eq!(code, "NOT_FOUND", "{name}: {said}");
        let (code, said) = called(&hub, name, input);
        assert!(!code.is_empty(), "{name}: {said}");
        assert_eq!(peer.asked("node/do"), 0, "{name}");
    }
    let what = "an answer beside wide and deep schemas of peers";
    took(what, ANSWER_WITHIN, asking.end());
    assert_eq!(hub.call("node/info", &Value::Null)["problems"], json!([]));
    for peer in [wide, deep] {
        peer.connection.close(CloseCode::Normal, "");
    }
}

/// A thousand operations, each with patterns that compile to the largest permitted size.
fn patterns() -> Vec<OperationSpec> {
    let operation = |n: usize| {
        let one = |m| json!({ "pattern": format!("^[ab]{{2000}}c{n}-{m}") });
        let patterns: Vec<_> = (0..8).map(one).collect();
        let name = match n {
            0 => "node/do".to_owned(),
            n => format!("node/do-{n}"),
        };
        OperationSpec::query(&name, "Works.").with_input(json!({ "anyOf": patterns }))
    };
    (0..1000).map(operation).collect()
}

/// Each reference reads the names of members once more.
fn references() -> Value {
    let to = |n: usize| json!({ "$ref": format!("#/$defs/{n}") });
    let all: Vec<_> = (0..2_500).map(to).collect();
    let defs: Map<_, _> = (0..2_500).map(|n| (n.to_string(), json!({}))).collect();
    json!({ "propertyNames": { "allOf": all }, "$defs": defs })
}

/// Each keyword reads the members once more.
fn through_members() -> Value {
    json!({ "allOf": vec![json!({ "propertyNames": {} }); 5_000] })
}

/// The cost of compiling patterns is counted for all operations of a peer together, the cost of
/// reading names is counted, and none of them is copied.
#[tokio::test(flavor = "multi_thread")]
async fn patterns_and_names_of_peers_are_counted() {
    let bench = TestBench::new();
    let names = ["patterns", "references", "members"];
    let people = names.map(|name| bench.user(name));
    let config = knows(names.iter().copied().zip(&people)) + "[log]\nlevel = \"debug\"\n";
    let hub = bench.host_with(&config);
    let does = |schema| OperationSpec::query("node/do", "Works.").with_input(schema);
    let refused = ManualPeer::serving(&hub, &people[0], patterns()).await;
    let references = ManualPeer::start(&hub, &people[1], does(references())).await;
    let members = ManualPeer::start(&hub, &people[2], does(through_members())).await;
    until_read(&hub, ["patterns"]);
    assert!(refused.asked("services/schema") > 0);
    assert_eq!(called(&hub, "patterns", "'x'").0, "NOT_FOUND");
    // The first values make the hub compile the schemas.
    for (name, peer) in [("references", &references), ("members", &members)] {
        eventually(name, || {
            let (code, _) = called(&hub, name, "({})");
            (code.is_empty() && peer.asked("node/do") > 0).then_some(())
        });
    }
    fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
    let held = memory(&hub, "VmRSS:");
    let one_name = "({ ['a'.repeat(500000)]: 0 })";
    assert_eq!(called(&hub, "references", one_name).0, "");
    // JSON needs six characters for each of these.
    let escaped = "Object.fromEntries([0, 1, 2, 3].map((n) => ['\\u0001'.repeat(37000) + n, 0]))";
    let before = members.asked("node/do");
    let (code, said) = called(&hub, "members", escaped);
    assert_eq!(code, "INVALID_INPUT", "{said}");
    assert!(said.contains("steps"), "{said}");
    assert_eq!(members.asked("node/do"), before);
    let grown = memory(&hub, "VmHWM:").saturating_sub(held);
    println!("figure names of peers: {} KiB", grown >> 10);
    assert!(grown <= SCHEMAS_GROWTH_MAX, "{grown} bytes");
    for peer in [refused, references, members] {
        peer.connection.close(CloseCode::Normal, "");
    }
}

/// Waits until the hub has imported each peer's operations, or logs why it did not.
fn until_read<const N: usize>(hub: &HostNode, peers: [&str; N]) {
    eventually("what the peers serve was read", || {
        let listed = hub.call("services/list-peers", &Value::Null);
        let log = hub.try_call("node/log", &json!({ "last": 10_000 })).output;
        let is_imported = |name: &str| {
            let mut listed = listed["peers"].as_array().into_iter().flatten();
            listed.any(|one| one["peer"] == *name && one["operations"] != json!([]))
        };
        let is_refused = |name: &str| {
            let who = format!("peer={name} ");
            log.lines()
                .filter(|line| line.contains("the peer's operations are not imported"))
                .any(|line| line.contains(&who) && line.contains("node/do"))
        };
        let mut peers = peers.iter().copied();
        peers
            .all(|name| is_imported(name) || is_refused(name))
            .then_some(())
    });
}

/// A requester has them forwarded to a peer that cooperates with it.
#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_a_peer_has_read_are_not_kept_by_the_hub() {
    let bench = TestBench::new();
    let sink = bench.user("sink");
    let hub = bench.host_with(&knows([("sink", &sink)].into_iter()));
    let sink = ManualPeer::start(&hub, &sink, OperationSpec::query("node/hold", "Waits.")).await;
    until_attached(&hub);
    let (_dialer, client) = caller(&hub, bench.admin()).await;
    let mut calls: Vec<JoinHandle<_>> = Vec::new();
    let mut before = 0;
    for n in 0..=PASSED_ON {
        // The first one allocates what stays: streams, tables, pages of the allocator.
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

/// The same, and the peer reads none of them.
#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_a_peer_does_not_read_are_refused() {
    let bench = TestBench::new();
    let sink = bench.user("sink");
    let hub = bench.host_with(&knows([("sink", &sink)].into_iter()));
    let sink = ManualPeer::start(&hub, &sink, OperationSpec::query("node/hold", "Waits.")).await;
    until_attached(&hub);
    let (_dialer, client) = caller(&hub, bench.admin()).await;
    let holds = || {
        let client = client.clone();
        async move {
            let input = "x".repeat((1 << 20) - 1000);
            let input = json!({ "peer": "sink", "operation": "node/hold", "input": input });
            let options = CallOptions {
                timeout: Some(Duration::from_secs(600)),
                ..CallOptions::default()
            };
            client.call_with("hub/invoke", &input, &options).await
        }
    };
    // The first one allocates what stays.
    let mut calls = JoinSet::new();
    calls.spawn(holds());
    eventually("it is passed on", || {
        (sink.asked("node/hold") > 0).then_some(())
    });
    sink.falls_deaf();
    fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
    let before = memory(&hub, "VmRSS:");
    for _ in 0..UNREAD {
        calls.spawn(holds());
    }
    let mut refused = 0;
    while refused < UNREAD_REFUSED_MIN {
        let ended = tokio::time::timeout(deadline(HUNG), calls.join_next()).await;
        let ended = ended.unwrap_or_else(|_| panic!("{refused} are refused"));
        let outcome = ended.expect("some run").expect("no panic");
        let error = outcome.expect_err("no peer answers it");
        assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
        assert!(error.message.contains("wait to be read"), "{error}");
        refused += 1;
    }
    // Some of the rest may still be refused.
    while let Ok(Some(ended)) = tokio::time::timeout(deadline(QUIET), calls.join_next()).await {
        let error = ended.expect("no panic").expect_err("no peer answers it");
        assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
        refused += 1;
    }
    let grown = memory(&hub, "VmHWM:").saturating_sub(before);
    println!(
        "figure {UNREAD} unread inputs: {} KiB, {refused} refused",
        grown >> 10
    );
    assert!(grown <= UNREAD_GROWTH_MAX, "{grown} bytes");
    assert_eq!(hub.call("node/info", &Value::Null)["problems"], json!([]));
}

/// The beginning of an answer for a requester without binary data.
async fn asked_as_text(hub: &HostNode, who: &CliRunner, operation: &str) -> Value {
    let (_dialer, connection) = dial(hub, who).await;
    let (mut send, mut recv) = wire::stream(&connection).await.expect("it is connected");
    let payload = json!({ "operationId": operation, "input": null, "peer": "blob" });
    let event = json!({ "type": "call.requested", "id": "1", "payload": payload });
    let frame = wire::frame(event.to_string().as_bytes());
    send.write_chunk(frame.into())
        .await
        .expect("the node reads");
    let event = tokio::time::timeout(deadline(HUNG), wire::event(&mut recv)).await;
    event.expect("it hangs").expect("an answer")
}

/// If thousands of values in a peer's answer point to the same data, its text for a client without
/// binary data would be a thousand times as long.
#[tokio::test(flavor = "multi_thread")]
async fn binary_data_of_a_peer_is_not_repeated_without_end() {
    let bench = TestBench::new();
    let blob = bench.user("blob");
    let hub = bench.host_with(&knows([("blob", &blob)].into_iter()));
    let specs = ["node/once", "node/often"].map(|name| OperationSpec::query(name, "Answers."));
    let blob = ManualPeer::serving(&hub, &blob, specs.into()).await;
    until_attached(&hub);
    let once = asked_as_text(&hub, bench.admin(), "/node/once").await;
    let output = once["payload"]["output"].as_str().map(str::len);
    assert_eq!(output, Some(POINTED / 3 * 4), "{}", once["type"]);
    fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
    let before = memory(&hub, "VmRSS:");
    let often = asked_as_text(&hub, bench.admin(), "/node/often").await;
    // If the text would be equally long, the answer stays as it came.
    let pointer = json!({ "$bin": [0, POINTED] });
    assert_eq!(often["payload"]["output"], json!(vec![pointer; OFTEN]));
    let grown = memory(&hub, "VmHWM:").saturating_sub(before);
    println!(
        "figure data that is pointed to {OFTEN} times: {} KiB",
        grown >> 10
    );
    assert!(grown <= OFTEN_GROWTH_MAX, "{grown} bytes");
    assert_eq!(blob.asked("node/often"), 1);
}

/// A peer's GPU time is not this node's, and the long list beside it has no effect.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_says_of_its_gpu_ends_no_script() {
    let bench = TestBench::new();
    let liar = bench.user("liar");
    let hub = bench.host_with(&knows([("liar", &liar)].into_iter()));
    let spec = OperationSpec::query("compute/dispatch", "Lies.");
    let liar = ManualPeer::start(&hub, &liar, spec).await;
    until_attached(&hub);
    // The first script's lasting allocations.
    hub.call("runtime/eval", &json!({ "source": "export default 1" }));
    fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
    let before = memory(&hub, "VmRSS:");
    let source = "const said = [];
        for (let n = 0; n < 2; n++) {
            said.push((await ops.call('compute/dispatch', {}, { peer: 'liar' })).gpu_ms);
        }
        export default said";
    let ran = hub.call("runtime/eval", &json!({ "source": source }));
    assert_eq!(ran["value"], json!([3_600_000, 3_600_000]), "{ran}");
    assert_eq!(liar.asked("compute/dispatch"), 2);
    let grown = memory(&hub, "VmHWM:").saturating_sub(before);
    println!("figure answers with long lists: {} KiB", grown >> 10);
    assert!(grown <= LISTS_GROWTH_MAX, "{grown} bytes");
}

/// A script that does not know whether its call arrived repeats it with the same key. The peer,
/// which runs every request, gets one request for each key.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_script_s_call_has_it_run_once() {
    let bench = TestBench::new();
    let bank = bench.user("bank");
    let hub = bench.host_with(&knows([("bank", &bank)].into_iter()));
    let mut spec = OperationSpec::mutation("node/pay", "Pays.").with_scope("bank");
    spec.idempotent = Idempotence::Keyed;
    let bank = ManualPeer::start(&hub, &bank, spec).await;
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

/// A script on a worker calls a peer of the worker, which has no room at first. The client that
/// called the script on the hub with an idempotency key calls again.
#[tokio::test(flavor = "multi_thread")]
async fn that_there_was_no_room_is_not_kept_for_a_key() {
    let bench = TestBench::new();
    let (admin, bank) = (bench.admin(), bench.user("bank"));
    let hub = bench.host_with("[hub]\nenabled = true\n");
    let invited = admin.run(admin.command(&["hub", "invite", hub.target()]));
    let invited = invited.json();
    let join = invited["join"].as_str().expect("a join string");
    let config = bench.path().join("worker.toml");
    let document = format!(
        "{}[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{join}\"\n\
         scopes = [\"runtime:debug\", \"peer:route:bank\"]\n",
        knows([("bank", &bank)].into_iter())
    );
    fs::write(&config, document).expect("the folder is ours");
    let worker = HostNode::start_with(&bench.path().join("worker"), admin, Some(&config));
    let full = OperationSpec::query("node/full", "Has no room at first.");
    let bank = ManualPeer::start(&worker, &bank, full).await;
    for (node, operation) in [(&worker, "node/full"), (&hub, "runtime/eval")] {
        eventually(operation, || {
            let listed = node.call("services/list-peers", &Value::Null);
            listed.to_string().contains(operation).then_some(())
        });
    }
    let (_dialer, client) = caller(&hub, admin).await;
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

/// Calls a mutation through the hub, which the peer `to` does not answer, and cuts that peer's
/// connection. Returns which peer had taken the call.
async fn cut_after_a_mutation(client: &CallConnection, to: &str, peers: &[ManualPeer]) -> usize {
    let asked = || peers.iter().map(|peer| peer.asked("node/hold"));
    let before: Vec<_> = asked().collect();
    let client = client.clone();
    let input = json!({ "peer": to, "operation": "node/hold" });
    let call = tokio::spawn(async move {
        let options = CallOptions::default();
        client.call_retrying("hub/invoke", &input, &options).await
    });
    let took = eventually("a peer has taken it", || {
        asked().zip(&before).position(|(now, before)| now > *before)
    });
    peers[took].connection.close(CloseCode::Normal, "cut");
    let ended = tokio::time::timeout(deadline(HUNG), call).await;
    let lost = ended.expect("it is answered").expect("no panic");
    let lost = lost.expect_err("its answer is lost");
    let said = (&lost.code, lost.retryable);
    assert_eq!(said, (&ErrorCode::Unavailable, false), "{to}: {lost}");
    took
}

/// The attacker cuts the connection of a peer that has received a mutation. The client repeats its
/// call to the hub with its key if the error allows that. The hub might then call the other peer,
/// which does not know the key. A call to any peer and a call to one peer have a defence each.
#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_that_one_peer_took_is_not_sent_to_another() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let banks = ["first", "second"].map(|name| (name, bench.user(name)));
    let known = knows(banks.iter().map(|(name, bank)| (*name, bank)));
    let hub = bench.host_with(&known);
    let mut peers = Vec::new();
    for (_, bank) in &banks {
        let pay = OperationSpec::mutation("node/hold", "Pays, and does not answer.");
        peers.push(ManualPeer::start(&hub, bank, pay).await);
    }
    eventually("both peers are attached", || {
        let listed = hub.call("services/list-peers", &Value::Null).to_string();
        (listed.matches("node/hold").count() == 2).then_some(())
    });
    let (_dialer, client) = caller(&hub, admin).await;
    let first = cut_after_a_mutation(&client, "any", &peers).await;
    let (left, _) = banks[1 - first];
    cut_after_a_mutation(&client, left, &peers).await;
    let asked = peers.iter().map(|peer| peer.asked("node/hold"));
    assert_eq!(asked.collect::<Vec<_>>(), [1, 1]);
}
