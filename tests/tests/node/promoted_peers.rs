//! Promoted operations that call peers, which may cooperate with their author.

use std::collections::{BTreeMap, BTreeSet};

use alknet_call::{CallConnection, ErrorCode, OperationSpec};
use alknet_core::CloseCode;
use alknet_tests::{CliRunner, HostNode, TestBench, eventually};
use serde_json::{Value, json};

use super::manual_peer::{ManualPeer, caller, until_attached};
use super::promoted_callers::{OperationDraft, configuration, promote, propose};

/// Calls of which one more fails than may, if they count.
const FAILING: usize = 21;

/// The new version calls the peer, which never has room, and fails in its own name. A node that
/// accepts the peer's error as an excuse would never roll it back.
#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_a_peer_does_not_keep_a_version_that_fails() {
    let bench = TestBench::new();
    let [ada, mate, rev, eve] = ["ada", "mate", "rev", "eve"].map(|name| bench.user(name));
    let config = configuration(
        "rollback_on_errors = true\n[hub]\nenabled = true\n",
        &[
            ("ada", &ada, &["ops:propose", "peer:route:mate"]),
            ("mate", &mate, &[]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:first"]),
        ],
    );
    let node = bench.host_with(&config);
    let never = OperationSpec::query("node/never", "Never has room.");
    let mate = ManualPeer::start(&node, &mate, never).await;
    until_attached(&node);
    let asks = "if (n) try { await ops.call('node/never', {}, { peer: 'mate' }); } catch {}";
    for fails in ["", "if (n) throw new Error('in its own name');"] {
        let source =
            format!("export const run = async (n) => {{ {asks} {fails} return 'done'; }};");
        let draft = OperationDraft {
            uses: &["node/never"],
            source: &source,
            ..OperationDraft::waits("first")
        };
        promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    }
    let (_dialer, client) = caller(&node, &eve).await;
    for _ in 0..FAILING {
        let failed = client.call("js/first", &json!(1)).await;
        let failed = failed.expect_err("the new version fails");
        assert_ne!(failed.code, ErrorCode::Overloaded, "{failed}");
    }
    assert_eq!(mate.asked("node/never"), FAILING, "it was the peer's word");
    let told = eventually("the new version is taken back", || {
        let told = node.call("ops/proposals", &json!({ "path": "js/first" }));
        (told["active"] == 1).then_some(told)
    });
    assert_eq!(told["versions"][0]["errors"], FAILING, "{told}");
    // The previous version calls the same peer, and does not fail for it.
    let answer = client.call("js/first", &json!(1)).await;
    assert_eq!(answer.expect("it is back").value(), &json!("done"));
    mate.connection.close(CloseCode::Normal, "");
}

/// Namespaces of the node in which this one may have no operation.
const WITHOUT_OPERATIONS: [&str; 3] = ["capability", "channel", "escrow"];

/// A name in a namespace that is not the node's: a call of it that names no peer reaches the peer.
const OF_PEERS: &str = "shop/pay";

/// A name that the node does not have in each namespace of its operations. Those of the protocol no peer serves.
fn names_of_its_own(node: &HostNode) -> Vec<String> {
    let listed = node.call("services/list", &json!({ "limit": 1000 }));
    let rows = listed["operations"].as_array().expect("a list").iter();
    let mut namespaces: BTreeSet<_> = rows.filter_map(|row| row["namespace"].as_str()).collect();
    assert!(namespaces.contains("node"), "{namespaces:?}");
    namespaces.extend(WITHOUT_OPERATIONS);
    let protocol = ["services", "session"];
    let others = namespaces.iter().filter(|it| !protocol.contains(it));
    let names = others.map(|namespace| format!("{namespace}/stray"));
    names.chain(["js/pay".to_owned()]).collect()
}

/// The peer has no scope, and serves a name in each namespace of the node's own operations. A script that calls such a
/// name means an operation of the node which is not there yet, or was taken back.
#[tokio::test(flavor = "multi_thread")]
async fn no_peer_takes_the_place_of_an_operation_of_the_node() {
    let bench = TestBench::new();
    let [ada, mate, rev, eve] = ["ada", "mate", "rev", "eve"].map(|name| bench.user(name));
    let config = configuration(
        "[hub]\nenabled = true\n",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("mate", &mate, &[]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:first"]),
        ],
    );
    let node = bench.host_with(&config);
    let own = names_of_its_own(&node);
    let mut names: Vec<_> = own.iter().map(String::as_str).collect();
    names.push(OF_PEERS);
    let specs = names
        .iter()
        .map(|name| OperationSpec::mutation(name, "Takes what it gets."));
    let mate = ManualPeer::serving(&node, &mate, specs.collect()).await;
    until_attached(&node);
    let tries = |names: Value| {
        format!(
            "const told = {{}};
             for (const name of {names}) {{
                 try {{ told[name] = await ops.call(name, {{ card: 42 }}); }}
                 catch (error) {{ told[name] = error.code; }}
             }}"
        )
    };
    let source = format!(
        "export const run = async (n) => {{ if (!n) return 'done'; {} return told; }};",
        tries(json!(names))
    );
    let draft = OperationDraft {
        uses: &names,
        source: &source,
        ..OperationDraft::waits("first")
    };
    promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    let unknown = own.iter().map(|name| (name.as_str(), "NOT_FOUND"));
    let unknown: BTreeMap<_, _> = unknown.collect();
    let (_dialer, client) = caller(&node, &eve).await;
    let promoted = client.call("js/first", &json!(1)).await;
    // The operation reaches the peer where the name may be a peer's.
    let mut told = unknown.clone();
    told.insert(OF_PEERS, "done");
    assert_eq!(promoted.expect("it answers").value(), &json!(told));
    assert_eq!(mate.asked(OF_PEERS), 1);
    // Nor where an administrator runs a script, unless it names the peer.
    let run = |source: &str| node.call("runtime/eval", &json!({ "source": source }));
    let ran = run(&format!("{} export default told", tries(json!(own))));
    assert_eq!(ran["value"], json!(unknown), "{ran}");
    assert!(own.iter().all(|name| mate.asked(name) == 0));
    let ran = run("export default await ops.call('js/pay', {}, { peer: 'mate' })");
    assert_eq!((&ran["value"], mate.asked("js/pay")), (&json!("done"), 1));
    mate.connection.close(CloseCode::Normal, "");
}

/// The path of the operation is in no namespace of the node. The peer serves its name, and waits for a call that means
/// the operation: while reviewers vote, and after the operation was taken back. A reviewer that alone wants this path
/// for another proposal keeps the name no longer than the proposal waits.
#[tokio::test(flavor = "multi_thread")]
async fn no_peer_takes_the_place_of_a_promoted_operation_that_is_not_there() {
    let bench = TestBench::new();
    let [ada, mate, rev, bob, dan, eve] =
        ["ada", "mate", "rev", "bob", "dan", "eve"].map(|name| bench.user(name));
    let config = configuration(
        "reviews = 2\n[hub]\nenabled = true\n",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("mate", &mate, &[]),
            ("rev", &rev, &["ops:promote"]),
            ("bob", &bob, &["ops:promote"]),
            ("dan", &dan, &["ops:promote"]),
            ("eve", &eve, &["call:js:first"]),
        ],
    );
    let node = bench.host_with(&config);
    let spec = || OperationSpec::query("billing/pay", "Takes what it gets.");
    let accept = |who: &CliRunner, id: &str, terms: &Value| {
        let mut vote = terms.clone();
        (vote["id"], vote["accept"]) = (json!(id), json!(true));
        who.call(node.target(), "ops/promote", &vote, &[]).json()
    };
    let first = OperationDraft {
        uses: &["billing/pay"],
        source: "export const run = async (n) => {
            if (!n) return 'done';
            try { return await ops.call('billing/pay', { card: 42 }); }
            catch (error) { return error.code; }
        };",
        ..OperationDraft::waits("first")
    };
    let pay = OperationDraft {
        input: json!({ "type": ["integer", "object"] }),
        source: "export const run = (it) => it ? 'ours' : 'done';",
        ..OperationDraft::waits("pay")
    };
    let other = OperationDraft::waits("other");
    let [first, pay, other] =
        [&first, &pay, &other].map(|draft| propose(&bench, node.target(), ("ada", &ada), draft));
    for who in [&rev, &bob] {
        accept(who, &first, &json!({ "external": true }));
    }
    let peer = ManualPeer::start(&node, &mate, spec()).await;
    until_attached(&node);
    let (_dialer, client) = caller(&node, &eve).await;
    let said = async |client: &CallConnection| {
        let answer = client.call("js/first", &json!(1)).await;
        answer.expect("it answers").value().clone()
    };
    // The name says nothing about this node yet.
    assert_eq!(
        (said(&client).await, peer.asked("billing/pay")),
        (json!("done"), 1)
    );
    let terms = json!({ "path": "billing/pay" });
    assert_eq!(accept(&rev, &other, &terms)["reviews"], 1);
    assert_eq!(said(&client).await, "NOT_FOUND");
    for who in [&bob, &dan] {
        accept(who, &other, &json!({}));
    }
    assert_eq!(
        (said(&client).await, peer.asked("billing/pay")),
        (json!("done"), 2)
    );
    assert_eq!(accept(&rev, &pay, &terms)["reviews"], 1);
    assert_eq!(said(&client).await, "NOT_FOUND");
    assert_eq!(accept(&bob, &pay, &terms)["active"], true);
    assert_eq!(said(&client).await, "ours");
    node.call("ops/rollback", &terms);
    assert_eq!(said(&client).await, "NOT_FOUND");
    assert_eq!(peer.asked("billing/pay"), 2);
    peer.connection.close(CloseCode::Normal, "");
    // The next start knows it as well.
    drop(node);
    let node = bench.host_with(&config);
    let peer = ManualPeer::start(&node, &mate, spec()).await;
    until_attached(&node);
    let (_dialer, client) = caller(&node, &eve).await;
    assert_eq!(said(&client).await, "NOT_FOUND");
    assert_eq!(peer.asked("billing/pay"), 0);
    peer.connection.close(CloseCode::Normal, "");
}

/// The value of a script that the caller runs on the node.
fn ran(who: &CliRunner, node: &HostNode, input: &Value) -> Value {
    let mut answer = who.call(node.target(), "runtime/eval", input, &[]).json();
    answer["value"].take()
}

/// The inner operation reads what its author may read, for the outer one, which checks its callers. A peer that may run
/// scripts, and that lacks the author's scopes, asks the inner one itself.
#[test]
fn a_script_does_not_reach_what_was_promoted_for_other_operations() {
    let bench = TestBench::new();
    let [ada, rev, dev] = ["ada", "rev", "dev"].map(|name| bench.user(name));
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["ops:propose", "node:read"]),
            ("rev", &rev, &["ops:promote"]),
            ("dev", &dev, &["runtime:debug", "call:js:outer"]),
        ],
    );
    let node = bench.host_with(&config);
    let inner = OperationDraft {
        uses: &["node/info"],
        source: "export const run = async (n) => n ? (await ops.call('node/info')).name : 'done';",
        ..OperationDraft::waits("inner")
    };
    let id = propose(&bench, node.target(), ("ada", &ada), &inner);
    let promoted = rev.run(rev.command(&["ops", "promote", node.target(), &id]));
    assert_eq!(promoted.json()["active"], true);
    let outer = OperationDraft {
        uses: &["js/inner"],
        source: "export const run = async (n) => n ? await ops.call('js/inner', n) : 'done';",
        ..OperationDraft::waits("outer")
    };
    promote(&bench, node.target(), ("ada", &ada), &rev, &outer);

    let source = "const told = {};
        for (const path of ['js/inner', 'js/outer', 'node/info']) {
            try { told[path] = await ops.call(path, path === 'node/info' ? null : 1); }
            catch (error) { told[path] = error.code; }
        }
        export default { told, listed: ops.list('js').map((it) => it.path) }";
    let name = node.call("node/info", &Value::Null)["name"].take();
    let expected = json!({
        "told": { "js/inner": "NOT_FOUND", "js/outer": name, "node/info": "FORBIDDEN" },
        "listed": ["js/outer"],
    });
    let uses = ["js/inner", "js/outer", "node/info"];
    for input in [
        json!({ "source": source }),
        json!({ "source": source, "uses": uses }),
    ] {
        assert_eq!(ran(&dev, &node, &input), expected, "{input}");
    }
    // Nor does an administrator, whose script is no operation of the node either.
    let source = "export default await ops.call('js/inner', 1)";
    let refused = bench.admin().call(
        node.target(),
        "runtime/eval",
        &json!({ "source": source }),
        &[],
    );
    assert!(refused.errors.contains("NOT_FOUND"), "{refused:?}");
}

/// The worker lets its hub read a folder. Its operations for tensors ask for a known caller, whose scopes they look up
/// themselves, and the caller that the worker sees is the hub, whichever script of the hub calls.
#[test]
fn a_script_or_operation_has_not_the_rights_of_the_hub_at_a_worker() {
    let bench = TestBench::new();
    let [ada, bea, rev, dev, way] =
        ["ada", "bea", "rev", "dev", "way"].map(|name| bench.user(name));
    let config = configuration(
        "[hub]\nenabled = true\n",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("bea", &bea, &["ops:propose", "peer:route:*"]),
            ("rev", &rev, &["ops:promote"]),
            (
                "dev",
                &dev,
                &["runtime:debug", "call:js:first", "call:js:second"],
            ),
            ("way", &way, &["runtime:debug", "peer:route:*"]),
        ],
    );
    let hub = bench.host_with(&config);
    let admin = bench.admin();
    let invited = admin.run(admin.command(&["hub", "invite", hub.target()]));
    let invited = invited.json();
    let join = invited["join"].as_str().expect("a join string");
    let document = format!(
        "[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{join}\"\n\
         scopes = [\"tensor:read:models\", \"tensor:write:models\"]\n"
    );
    let config = bench.path().join("worker.toml");
    std::fs::write(&config, document).expect("the folder is ours");
    let _worker = HostNode::start_with(&bench.path().join("worker"), admin, Some(&config));
    let id = eventually("the worker", || {
        let mut listed = hub.call("services/list-peers", &Value::Null);
        let is_there = listed.to_string().contains("tensor/list");
        is_there.then(|| listed["peers"][0]["peer"].take())
    });
    let id = id.as_str().expect("an id");

    let tries = |operation: &str, peer: &str| {
        format!("await ops.call('{operation}', null, {{ peer: '{peer}' }})")
    };
    let told = |tries: &str| {
        format!(
            "let told; try {{ told = {tries}; }} catch (error) {{ told = error.code; }}
             export default told"
        )
    };
    let script = |who, operation: &str, peer: &str| {
        let input = json!({ "source": told(&tries(operation, peer)) });
        ran(who, &hub, &input)
    };
    let files = json!({ "files": [] });
    assert_eq!(script(&way, "tensor/list", id), files);
    for (operation, peer) in [
        ("tensor/list", id),
        ("tensor/remove", id),
        ("node/info", id),
        // An unknown peer looks the same.
        ("tensor/list", "cellar"),
    ] {
        let said = script(&dev, operation, peer);
        assert_eq!(said, "FORBIDDEN", "{operation} {peer}");
    }

    // What is promoted acts with the scopes of its author, and not with those of the hub.
    let source = format!(
        "export const run = async (n) => {{
             if (!n) return 'done';
             try {{ return {}; }} catch (error) {{ return error.code; }}
         }};",
        tries("tensor/list", id)
    );
    for (name, author, path, expected) in [
        ("ada", &ada, "first", json!("FORBIDDEN")),
        ("bea", &bea, "second", files),
    ] {
        let draft = OperationDraft {
            uses: &["tensor/list"],
            source: &source,
            ..OperationDraft::waits(path)
        };
        promote(&bench, hub.target(), (name, author), &rev, &draft);
        let said = dev.call(hub.target(), &format!("js/{path}"), &json!(1), &[]);
        assert_eq!(said.json(), expected, "{name}");
    }
}

/// Two reviewers have to agree. One of them is a peer of the node's hub as well, to which the node gives the scope of a
/// reviewer, and so is the author.
#[test]
fn a_reviewer_is_one_also_through_a_hub() {
    let bench = TestBench::new();
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.user(name));
    let way: &[&str] = &["peer:route:*", "hub:invoke:ops", "ops:promote"];
    let hub = configuration(
        "[hub]\nenabled = true\n",
        &[("ada", &ada, way), ("rev", &rev, way)],
    );
    let hub = bench.host_with(&hub);
    let admin = bench.admin();
    let invited = admin.run(admin.command(&["hub", "invite", hub.target()]));
    let invited = invited.json();
    let join = invited["join"].as_str().expect("a join string");
    let people: [(&str, &CliRunner, &[&str]); 3] = [
        ("ada", &ada, &["ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
        ("bob", &bob, &["ops:promote"]),
    ];
    let document = format!(
        "{}[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{join}\"\nscopes = [\"ops:promote\"]\n",
        configuration("reviews = 2\n", &people)
    );
    let config = bench.path().join("worker.toml");
    std::fs::write(&config, document).expect("the folder is ours");
    let worker = HostNode::start_with(&bench.path().join("worker"), admin, Some(&config));
    eventually("the worker", || {
        let listed = hub.call("services/list-peers", &Value::Null);
        listed.to_string().contains("ops/promote").then_some(())
    });

    let draft = OperationDraft::waits("first");
    let id = propose(&bench, worker.target(), ("ada", &ada), &draft);
    let vote = json!({ "id": id, "accept": true });
    let accept = |who: &CliRunner| who.call(worker.target(), "ops/promote", &vote, &[]).json();
    let through = |who: &CliRunner, operation: &str, input: &Value| {
        let invoke = json!({ "peer": "kitchen", "operation": operation, "input": input });
        [
            who.call(hub.target(), operation, input, &["--peer", "kitchen"]),
            who.call(hub.target(), "hub/invoke", &invoke, &[]),
        ]
    };
    assert_eq!(accept(&rev)["reviews"], 1);
    for who in [&ada, &rev] {
        let shown = through(who, "ops/proposals", &json!({ "id": id }));
        assert!(shown.iter().all(|shown| shown.status == 0), "{shown:?}");
        for refused in through(who, "ops/promote", &vote) {
            assert_eq!(refused.code(), "FORBIDDEN", "{refused:?}");
            assert!(refused.errors.contains("through a hub"), "{refused:?}");
        }
        let back = through(who, "ops/rollback", &json!({ "path": "js/first" }));
        assert!(back.iter().all(|it| it.code() == "FORBIDDEN"), "{back:?}");
    }
    assert_eq!(accept(&bob)["active"], true);
}
