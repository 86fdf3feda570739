//! Services of one author, more of them than the author has workers for other callers.

use std::path::PathBuf;

use alknet_tests::{CliRunner, TestBench};
use serde_json::json;

use super::promoted_callers::configuration;

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
            "uses": [format!("js/other-{place}")],
        },
        "entry": "./main.js", "export": "count", "service": true,
        "tests": [{ "input": {}, "expect": { "output": 1 } }],
    });
    let source = "let n = 0;
export const init = (prev) => { n = prev?.n ?? 0; };
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

/// A service never ends by itself: eight of them would keep all workers of their author's callers.
#[test]
fn one_caller_of_all_services_of_an_author_leaves_a_worker_to_each() {
    let bench = TestBench::new();
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.user(name));
    let scopes: Vec<String> = (0..SERVICES)
        .map(|place| format!("call:js:place-{place}"))
        .collect();
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("bob", &bob, &scopes),
        ],
    );
    let node = bench.host_with(&config);
    for place in 0..SERVICES {
        promote(&bench, node.target(), [&ada, &rev], place);
    }
    // The second round begins with a service that gave up its worker, and its state is there.
    for round in 1..=2 {
        for place in 0..SERVICES {
            let path = format!("js/place-{place}");
            let answer = bob.call(node.target(), &path, &json!({}), &[]);
            assert_eq!(answer.json(), json!(round), "{place}: {answer:?}");
        }
    }
    let listed = node.call("runtime/sessions", &json!({}));
    let sessions = listed["sessions"].as_array().expect("a list").iter();
    let services = sessions.filter(|it| it["mode"] == "service").count();
    assert_eq!(services, SERVICES - 1, "{listed}");
}
