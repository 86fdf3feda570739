//! Answers of other servers whose values need much more memory than their text, in a worker with the state of a service.

use std::fs;

use alknet_tests::{HostServer, RelayOperation, TestBench};
use serde_json::{Value, json};

use super::{HERE, ImportNode, openapi};

/// What both operations of the author use: with the same rights they share a worker.
const USES: [&str; 1] = ["trees/*"];

/// The service.
const COUNTER: &str = "
let n = 0;
export const init = (left) => { n = left?.n ?? 0; };
export const dispose = () => ({ n });
export const run = () => ++n;
";

/// Answers to each shape.
const ROUNDS: usize = 2;

/// An author has a service, and an operation that calls a server. The server answers with each shape.
#[test]
fn a_servers_answer_takes_no_state_from_a_service_and_disables_no_operation() {
    let server = HostServer::trees();
    let imports = openapi("trees", server.port(), &server.url("/api.json"), HERE);
    let bench = TestBench::new();
    let relay = RelayOperation::new(&bench, &USES);
    let folder = bench.path().join("counter");
    fs::create_dir_all(&folder).expect("the folder is ours");
    let operation = json!({
        "spec": {
            "name": "counter", "kind": "mutation", "description": "Counts its calls.",
            "input": true, "output": true, "uses": USES,
        },
        "entry": "./main.js", "export": "run", "service": true,
        "tests": [{ "input": 0, "expect": { "output": 1 } }],
    });
    fs::write(folder.join("operation.json"), operation.to_string()).expect("room");
    fs::write(folder.join("main.js"), COUNTER).expect("room");
    let node = ImportNode::with_relay(bench, &imports, &relay);
    relay.promote_folder(node.target(), &folder);
    node.until_there("trees/shape");
    let ask = |shape: &str| {
        let input = RelayOperation::count("trees/shape", &json!({ "of": shape }));
        node.relay(&input).json()
    };
    let next = || node.web.node.call("js/counter", &Value::Null);
    let few = json!({ "output": 1 });
    assert_eq!(ask("few")["output"], few);
    assert_eq!(next(), 1);
    let mut calls = 1;
    for shape in ["lists", "deep-lists", "objects", "deep-objects"] {
        for _ in 0..ROUNDS {
            let told = ask(shape);
            let error = [&told["error"], &told["output"]["error"]];
            let code = error.iter().find_map(|error| error["code"].as_str());
            println!("figure an answer of {shape} in a script: {code:?}");
            // The script may have no room for the value. Its worker has.
            assert_ne!(code, Some("UNAVAILABLE"), "{shape}: {told}");
            calls += 1;
            assert_eq!(next(), calls, "{shape}");
        }
    }
    assert_eq!(ask("few")["output"], few);
    let log = node.log();
    for lost in ["a worker was killed", "a worker was lost", "set aside"] {
        assert!(!log.contains(lost), "{log}");
    }
}
