//! A promoted service: what it knows outlives calls and changes of its code, but not its session.

use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_tests::{Bench, Cli, HostNode, eventually};
use serde_json::{Value, json};

const PATH: &str = "js/counter";

/// The folder of a version that counts in steps of so many.
fn draft(at: &Path, step: u64) -> PathBuf {
    std::fs::create_dir_all(at).expect("the folder is ours");
    let operation = json!({
        "spec": {
            "name": "counter", "kind": "mutation", "description": "Counts calls.",
            "input": { "type": "object" }, "output": { "type": "array" },
        },
        "entry": "./main.js", "export": "count", "service": true,
        "tests": [{ "input": {}, "expect": { "output": [step, step] } }],
    });
    let source = format!(
        "let n = 0;
export const init = (prev) => {{ n = prev?.n ?? 0; }};
export const dispose = () => ({{ n }});
export const count = () => [{step}, n += {step}];
"
    );
    std::fs::write(at.join("operation.json"), operation.to_string()).expect("room");
    std::fs::write(at.join("main.js"), source).expect("room");
    at.to_owned()
}

fn verb(who: &Cli, words: &[&str], more: &[&Path]) -> Value {
    let mut command: Command = who.command(words);
    command.args(more);
    who.run(command).json()
}

fn configuration(people: &[(&str, &Cli, &[&str])]) -> String {
    let peers = people.iter().map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let peers: String = peers.collect();
    format!("[promotion]\nactivate = \"live\"\n{peers}")
}

/// The one service that runs, once what it took the place of has left.
fn running(node: &HostNode) -> Value {
    eventually("one service runs", || {
        let listed = node.call("runtime/sessions", &json!({}));
        let sessions = listed["sessions"].as_array().expect("a list").iter();
        let mut services = sessions.filter(|it| it["mode"] == "service");
        let one = services.next().cloned();
        one.filter(|_| services.next().is_none())
    })
}

#[test]
fn a_service_keeps_what_it_knows_through_a_change_of_its_code() {
    let bench = Bench::new();
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.somebody(name));
    let node = bench.host_with(&configuration(&[
        ("ada", &ada, &["ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
        ("bob", &bob, &["call:js:counter"]),
    ]));
    let at = node.target();
    let promote = |step: u64| {
        let folder = draft(&bench.path().join(format!("by-{step}")), step);
        let proposed = verb(&ada, &["ops", "propose", at, "--as", "ada"], &[&folder]);
        let id = proposed["id"].as_str().expect("an id").to_owned();
        verb(&rev, &["ops", "promote", at, &id, "--external"], &[]);
    };
    let count = || bob.call(at, PATH, &json!({}), &[]).json();
    promote(1);
    assert_eq!(count(), json!([1, 1]));
    assert_eq!(count(), json!([1, 2]));
    let first = running(&node);
    assert_eq!(
        (&first["tenant"], &first["state"]),
        (&json!("ada"), &json!("idle"))
    );
    // The next version goes on where this one stopped, and so does this one again.
    promote(10);
    assert_eq!(count(), json!([10, 12]));
    let second = running(&node);
    assert_ne!(first["session"], second["session"]);
    let back = ["ops", "rollback", at, PATH];
    verb(&rev, &back, &[]);
    assert_eq!(count(), json!([1, 13]));
    // Whoever ends its session ends what it knew.
    let kill = json!({ "session": running(&node)["session"] });
    assert_eq!(node.call("runtime/kill", &kill), json!({ "killed": true }));
    assert_eq!(count(), json!([1, 1]));
    // Taken away, it leaves.
    verb(&rev, &back, &[]);
    assert_eq!(bob.call(at, PATH, &json!({}), &[]).code(), "NOT_FOUND");
}
