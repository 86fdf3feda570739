//! The call protocol over WebSocket, with clients by other authors (Python's `websockets`, `h2`
//! with `wsproto`, `ws` in Node) and with the documentation's module.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command};
use std::time::Duration;

use alknet_test_support::limited;
use alknet_tests::tools::{run_with_json, start_with_json};
use alknet_tests::{TestBench, WebNode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::test_node::GatewayTestNode;

/// The operations of this project's dependencies in Python, put into the cache by the set-up.
const PYTHON_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";
/// The folder of `ws`.
const WS_VARIABLE: &str = "ALKNET_TEST_WS";
/// How long all tests of a client may take. In Python, 100 s of that are waits for the node's
/// limits.
const PATIENCE: Duration = Duration::from_secs(240);

/// Tests during which no other client uses the node.
const BY_THEMSELVES: [&str; 11] = [
    "answers_in_the_kind_it_was_asked_in",
    "a_header_and_a_pair_and_a_call_say_who_asks",
    "wrong_handshakes_are_refused",
    "messages_are_bounded_to_the_byte",
    "what_is_against_the_rules_ends_with_its_code",
    "fragment_bombs_and_giants_cost_little",
    "readers_that_never_read_cost_little",
    "pings_are_answered_and_asked_for",
    "http2_carries_it_too",
    "a_client_that_answers_no_ping_is_closed",
    "an_unknown_client_that_asks_nothing_is_disconnected",
];

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set; run these tests with `cargo xtask test`"))
}

/// Python, running some of its tests.
struct PythonWebSocket {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl PythonWebSocket {
    fn start(facts: &Value, tests: &[&str]) -> Self {
        let mut python = limited(PATIENCE, "python3");
        python
            .arg(file("clients/websocket.py"))
            .args(tests)
            .env("PYTHONPATH", variable(PYTHON_VARIABLE))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = start_with_json(&mut python, facts);
        let lines = BufReader::new(child.stdout.take().expect("it was asked for above"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a pipe");
        line.trim_end().to_owned()
    }

    /// The rest of its output, after it has succeeded.
    fn end(mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            match self.line() {
                line if line.is_empty() => break,
                line => said.push(line),
            }
        }
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{said:?}");
        said
    }
}

fn facts(web: &WebNode) -> Value {
    json!({
        "url": format!("wss://{}/alknet/call", web.address()),
        "token": web.reader,
        "scopes": ["node:read"],
        "query": "node/info",
        "pid": web.node.pid(),
    })
}

const FAST: &str = "[http]\nrequests_per_second = 10000\nrequests_burst = 10000\n\
                    unknown_peer_requests_per_second = 10000\n";

#[test]
fn python_speaks_it_over_both_versions_of_http() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let said = PythonWebSocket::start(&facts(&web), &BY_THEMSELVES).end();
    let expected: Vec<_> = BY_THEMSELVES
        .iter()
        .map(|name| format!("ok {name}"))
        .collect();
    assert_eq!(said, expected);
    assert_eq!(
        web.node.call("node/info", &Value::Null)["problems"],
        json!([])
    );
}

/// A revoked token ends the calls that it started, and so does a node that ends.
#[test]
fn sessions_end_with_what_they_rest_on() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let mut python =
        PythonWebSocket::start(&facts(&web), &["a_client_that_loses_its_token_is_closed"]);
    assert_eq!(python.line(), "revoke");
    // The same configuration without a token.
    let document = format!(
        "node.admin_keys = [\"{}\"]\n{FAST}",
        bench.admin().identity()
    );
    let applied = web
        .node
        .call("config/apply", &json!({ "document": document }));
    assert!(applied.is_object() || applied.is_null(), "{applied}");
    assert_eq!(python.end(), ["ok a_client_that_loses_its_token_is_closed"]);

    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let mut python = PythonWebSocket::start(&facts(&web), &["a_draining_node_says_so"]);
    assert_eq!(python.line(), "drain");
    let pid = i32::try_from(web.node.pid()).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("the node is ours");
    assert_eq!(python.end(), ["ok a_draining_node_says_so"]);
}

/// A node in stealth mode answers a client without a valid token as it answers a missing path.
#[test]
fn a_node_that_hides_says_nothing_of_it() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "[http]\nstealth = true\n");
    let asks = [
        "--http1.1",
        "--header",
        "Upgrade: websocket",
        "--header",
        "Connection: Upgrade",
        "--header",
        "Sec-WebSocket-Version: 13",
        "--header",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    // Everything except the date, which may change between two answers.
    let ask = |path: &str, more: &[&str]| {
        let mut told = web.curl(path, &[&asks[..], more].concat());
        told.headers.retain(|(name, _)| name != "date");
        (told.status, told.headers, told.body)
    };
    let nothing = ask("/nonsense", &[]);
    let wrong = format!(
        "Sec-WebSocket-Protocol: alknet.call, alknet.bearer.{}",
        web.expired
    );
    for more in [&[][..], &["--header", &wrong]] {
        assert_eq!(ask("/alknet/call", more), nothing);
    }
    let known = ["a_header_and_a_pair_and_a_call_say_who_asks"];
    let mut facts = facts(&web);
    // An unknown peer may not even connect here, so only the first half of that test can pass.
    facts["hidden"] = json!(true);
    assert_eq!(
        PythonWebSocket::start(&facts, &known).end(),
        [format!("ok {}", known[0])]
    );
}

/// The output of Node, which runs the module's tests.
fn node(place: &GatewayTestNode, ws: Option<&str>) -> Vec<String> {
    // Node recognises a module by its file name.
    let folder = tempfile::tempdir().expect("the temporary directory is writable");
    for (from, to) in [
        (file("clients/session.js"), "session.mjs"),
        (file("clients/session_node.mjs"), "run.mjs"),
        (file("../docs/examples/alknet.js"), "alknet.mjs"),
    ] {
        let text = std::fs::read_to_string(from).expect("it is there");
        let text = text.replace("./session.js", "./session.mjs");
        std::fs::write(folder.path().join(to), text).expect("the folder is ours");
    }
    let facts = json!({
        "url": place.session_url(),
        "token": place.token,
        "module": folder.path().join("alknet.mjs"),
        "ws": ws,
    });
    let mut node = limited(PATIENCE, "node");
    node.arg("--no-warnings")
        .arg(folder.path().join("run.mjs"))
        // The node's certificate is self-signed.
        .env("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    let output = run_with_json(&mut node, &facts);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{why}");
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().map(str::to_owned).collect()
}

/// How many tests the module has.
const SUITE: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn the_module_works_in_node() {
    let place = GatewayTestNode::start(&[]);
    let ws = format!("{}/wrapper.mjs", variable(WS_VARIABLE));
    let said = tokio::task::block_in_place(|| node(&place, Some(&ws)));
    assert_eq!(said.len(), SUITE, "{said:?}");
    // Node has had its own since version 22, which the set-up puts before Debian's in the path.
    let said = tokio::task::block_in_place(|| node(&place, None));
    assert_eq!(said.len(), SUITE, "{said:?}");
}

/// The page of the documentation shows JavaScript, and the module has no dependencies.
#[test]
fn the_examples_stand_alone() {
    let module = std::fs::read_to_string(file("../docs/examples/alknet.js")).expect("it is there");
    assert!(!module.contains("import ") && module.lines().count() < 320);
    let page = std::fs::read_to_string(file("../docs/websocket.md")).expect("it is there");
    let snippets: Vec<_> = page.split("```js\n").skip(1).collect();
    assert!(snippets.len() >= 4);
    let folder = tempfile::tempdir().expect("the temporary directory is writable");
    for (n, snippet) in snippets.iter().enumerate() {
        let code = snippet.split("```").next().unwrap_or_default();
        let path = folder.path().join(format!("{n}.mjs"));
        std::fs::write(&path, code).expect("the folder is ours");
        let checked = Command::new("node").arg("--check").arg(&path).output();
        let checked = checked.expect("Node is installed by the set-up");
        let why = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{code}\n{why}");
    }
}
