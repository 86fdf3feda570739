//! Services of one author, more of them than the author has workers for other callers.

use std::path::PathBuf;
use std::time::Duration;

use alknet_call::ErrorCode;
use alknet_test_support::deadline;
use alknet_tests::{CliRunner, HostNode, TestBench, eventually};
use serde_json::{Value, json};
use tokio::task::{JoinSet, block_in_place};

use super::manual_peer::caller;
use super::promoted_callers::{
    OperationDraft, configuration, is_service_with_call, promote as promote_draft,
};

/// One service more than there are workers for the callers of one author (docs/workers.md).
const SERVICES: usize = 9;

/// The folder of a service that counts its calls. Each may call another operation, so that none shares a worker with
/// another.
fn draft(bench: &TestBench, place: usize) -> PathBuf {
    let at = bench.path().join(format!("place-{place}"));
    std::fs::create_dir_all(&at).expect("the folder is ours");
    let operation = json!({
        "spec": {
            "name": format!("place-{place}"), "kind": "mutation", "description": "Counts calls.",
            "input": { "type": "object" }, "output": { "type": "integer" },
            "uses": [format!("js/other-{place}"), "compute/info"],
        },
        "entry": "./main.js", "export": "count", "service": true,
        "tests": [{
            "input": {}, "calls": [{ "path": "compute/info", "input": {}, "output": {} }],
            "expect": { "output": 1 },
        }],
    });
    let source = "let n = 0;
export const init = async (prev) => {
  await ops.call('compute/info', {});
  n = prev?.n ?? 0;
};
export const dispose = () => ({ n });
export const count = () => n += 1;
";
    std::fs::write(at.join("operation.json"), operation.to_string()).expect("room");
    std::fs::write(at.join("main.js"), source).expect("room");
    at
}

fn promote(bench: &TestBench, at: &str, [ada, rev]: [&CliRunner; 2], place: usize) {
    let mut propose = ada.command(&["ops", "propose", at, "--as", "ada"]);
    propose.arg(draft(bench, place));
    let proposed = ada.run(propose).json();
    let id = proposed["id"].as_str().expect("an id");
    let promoted = rev.run(rev.command(&["ops", "promote", at, id, "--external"]));
    assert_eq!(promoted.json()["active"], true);
}

/// Calls of itself by which an operation brings the last one so deep that what that one calls may call nothing.
const BELOW: usize = 15;

/// An operation that calls itself this many times, and then a service.
fn deep(path: &str) -> String {
    format!(
        "export const run = async (n) => {{
            if (n < 0) return 'done';
            return await ops.call(...(n ? ['js/deep', n - 1] : ['{path}', {{}}]));
        }};"
    )
}

/// A service never ends by itself: eight of them would keep all workers of their author's callers. A caller whose call of
/// a service that ended for others lets its `init` fail takes no state from it.
#[test]
fn one_caller_of_all_services_of_an_author_leaves_a_worker_to_each() {
    let bench = TestBench::new();
    let [ada, rev, bob, eve] = ["ada", "rev", "bob", "eve"].map(|name| bench.user(name));
    let scopes: Vec<String> = (0..SERVICES)
        .map(|place| format!("call:js:place-{place}"))
        .collect();
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let (of_author, of_deep) = (["ops:propose", "compute:read"], ["call:js:deep", scopes[0]]);
    let config = configuration(
        "",
        &[
            ("ada", &ada, &[of_author, of_deep].concat()),
            ("rev", &rev, &["ops:promote"]),
            ("bob", &bob, &scopes),
            ("eve", &eve, &["call:js:deep"]),
        ],
    );
    let node = bench.host_with(&config);
    for place in 0..SERVICES {
        promote(&bench, node.target(), [&ada, &rev], place);
    }
    let count = |place: usize| {
        let path = format!("js/place-{place}");
        let answer = bob.call(node.target(), &path, &json!({}), &[]);
        answer.json()
    };
    // The second round begins with a service that gave up its worker, and its state is there.
    for round in 1..=2 {
        for place in 0..SERVICES {
            assert_eq!(count(place), json!(round), "{place}");
        }
    }
    let listed = node.call("runtime/sessions", &json!({}));
    let sessions = listed["sessions"].as_array().expect("a list").iter();
    let services = sessions.filter(|it| it["mode"] == "service").count();
    assert_eq!(services, SERVICES - 1, "{listed}");
    // The first one has given up its worker again, and begins below so many calls that its `init` may call nothing.
    let source = deep("js/place-0");
    let deep = OperationDraft {
        uses: &["js/deep", "js/place-0"],
        source: &source,
        example: json!(-1),
        ..OperationDraft::waits("deep")
    };
    promote_draft(&bench, node.target(), ("ada", &ada), &rev, &deep);
    for _ in 0..2 {
        let refused = eve.call(node.target(), "js/deep", &json!(BELOW), &[]);
        assert!(refused.errors.contains("deep at most"), "{refused:?}");
    }
    assert_eq!(count(0), json!(3), "its state is there");
}

/// Calls that one caller may have of the operations of one author at once (docs/promotion.md).
const CALLER_MAX: usize = 64;
/// Duration of each call, in milliseconds. A call of a service may take 30 s.
const LASTS_MS: u64 = 25_000;

/// The sessions of a node that are meant.
fn sessions(node: &HostNode, is_meant: impl Fn(&Value) -> bool) -> Vec<Value> {
    let listed = block_in_place(|| node.call("runtime/sessions", &json!({})));
    let all = listed["sessions"].as_array().expect("a list").iter();
    all.filter(|it| is_meant(it)).cloned().collect()
}

/// Requests that a node has while it is asked for their number: that one.
const AT_REST: u64 = 1;

/// Requests that the node has received and not answered.
fn requests(node: &HostNode) -> u64 {
    let told = block_in_place(|| node.call("node/metrics", &Value::Null));
    let value = |name: &str| told["values"][name].as_f64().expect("a number") as u64;
    value("alknet_call_requests_total") - value("alknet_call_seconds_count")
}

/// A service goes on with a call that its caller leaves. If that call no longer counted, a caller could have any number
/// of them run in as many services.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_left_counts_until_it_ends() {
    let bench = TestBench::new();
    let [ada, rev, eve] = ["ada", "rev", "eve"].map(|name| bench.user(name));
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:kept", "call:js:first"]),
        ],
    );
    let node = bench.host_with(&config);
    for draft in [
        OperationDraft::waits_in_a_service("kept"),
        OperationDraft::waits("first"),
    ] {
        promote_draft(&bench, node.target(), ("ada", &ada), &rev, &draft);
    }
    let (_dialer, client) = caller(&node, &eve).await;
    let of_eve = client.clone();
    let left = tokio::spawn(async move { of_eve.call("js/kept", &json!(LASTS_MS)).await });
    // A call that is left before the service has begun does not run.
    let kept = eventually("the service runs the call", || {
        sessions(&node, is_service_with_call).pop()
    });
    left.abort();
    eventually("the node has no request of hers", || {
        (requests(&node) == AT_REST).then_some(())
    });
    // The other calls wait for it: one caller cannot have so many sessions.
    let mut calls = JoinSet::new();
    for _ in 1..CALLER_MAX {
        let client = client.clone();
        calls.spawn(async move { client.call("js/kept", &json!(0)).await });
    }
    eventually("the other calls wait", || {
        (requests(&node) == AT_REST + CALLER_MAX as u64 - 1).then_some(())
    });
    let refused = client.call("js/first", &json!(0)).await;
    let refused = refused.expect_err("the call that was left is the last one");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    let kill = json!({ "session": kept["session"] });
    let killed = block_in_place(|| node.call("runtime/kill", &kill));
    assert_eq!(killed, json!({ "killed": true }));
    // The node answers as soon as the session is killed. The call that was left ends after that.
    let admitted = async {
        let refused = ErrorCode::Overloaded;
        let mut answer = client.call("js/first", &json!(0)).await;
        while answer.as_ref().is_err_and(|error| error.code == refused) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            answer = client.call("js/first", &json!(0)).await;
        }
        answer
    };
    let answer = tokio::time::timeout(deadline(Duration::from_secs(60)), admitted).await;
    let answer = answer.expect("there is room in the end");
    assert_eq!(answer.expect("it is answered").value(), &json!("done"));
}
