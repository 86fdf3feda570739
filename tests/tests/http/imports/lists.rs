//! Answers of other servers that are lists of short values: a parser turns a few bytes of text into a tree of many
//! bytes.

use std::thread;

use alknet_tests::{CurlResponse, HostServer, RelayOperation, TestBench, curl, eventually};
use serde_json::{Value, json};

use super::{HERE, ImportNode, mcp_at, openapi};

/// Limit in bytes for the growth of the node while an API sends events of 1 MiB, one stream after the other. The
/// node needs some 10 MiB: the line, its data and the text that it passes on, each in a buffer that may have grown
/// to twice the size, and three more events that wait. A tree of one event is 38 MiB.
const EVENTS_GROWTH_BYTES: u64 = 32 << 20;

/// The limit while the node answers four calls at once with 4 MiB each. Each call needs some 18 MiB: the body in a
/// buffer that may have grown to twice the size, the text that the node checks, and the part that goes to the
/// script. A tree of one answer is 151 MiB.
const LISTS_GROWTH_BYTES: u64 = 128 << 20;

/// The limit while tool servers send 16 MiB. The node counts 128 MiB of one server at most, and copies buffers when
/// they grow. A tree of one answer is 600 MiB.
const TOOLS_GROWTH_BYTES: u64 = 288 << 20;

/// Calls of each kind of answer, and events of each stream.
const CALLS: usize = 4;
const EVENTS: usize = 4;

/// Values in the list that the API answers with.
const LIST_VALUES: usize = ((4 << 20) - 1000) / 2;

/// Requests of a server that asks for the roots of its client, and limit of the log records about them: the records
/// of two minutes from one place in the library.
const SERVER_REQUESTS: usize = 300;
const SERVER_RECORDS_MAX: usize = 2 * 10;

/// Error codes of a call whose answer the node refused, or for which the node sent no request.
const NOT_TAKEN: [&str; 5] = [
    "FORBIDDEN",
    "NOT_FOUND",
    "OVERLOADED",
    "PAYLOAD_TOO_LARGE",
    "UNAVAILABLE",
];

/// A node that imports an API, and tools of a server whose answers are lists of short values.
struct ListImports {
    server: HostServer,
    node: ImportNode,
}

impl ListImports {
    fn start() -> Self {
        let server = HostServer::trees();
        let document = server.url("/api.json");
        let tools = |name: &str| mcp_at(name, server.port(), &format!("/{name}/mcp"));
        let imports = [
            openapi("trees", server.port(), &document, HERE),
            tools("answers"),
            tools("listing"),
            tools("unasked"),
            tools("asks"),
        ];
        let uses = ["trees/*", "answers/*", "listing/*", "unasked/*"];
        let node = ImportNode::start(TestBench::new(), &imports.concat(), &uses);
        for there in ["trees/list", "answers/list", "listing/list", "unasked/list"] {
            node.until_there(there);
        }
        Self { server, node }
    }

    /// The server's counter with this name.
    fn count(&self, what: &str) -> usize {
        let count = curl(&self.server.url(&format!("/count/{what}")), &[]).json();
        count.as_u64().expect("a number") as usize
    }

    /// Makes the server send these lists from now on.
    fn arm(&self, what: &str) {
        let armed = curl(&self.server.url(&format!("/arm/{what}")), &[]);
        assert_eq!(armed.status, 200);
    }

    /// The responses to [`CALLS`] calls of the script at once.
    fn at_once(&self, input: &Value) -> Vec<CurlResponse> {
        thread::scope(|scope| {
            let calls: Vec<_> = (0..CALLS)
                .map(|_| scope.spawn(|| self.node.relay(input)))
                .collect();
            let told = calls
                .into_iter()
                .map(|call| call.join().expect("an answer"));
            told.collect()
        })
    }

    /// Asserts that `work` makes the node grow by less than `most` bytes.
    fn grows_by(&self, most: u64, what: &str, work: impl FnOnce()) {
        let grown = self.node.growth(what, work);
        assert!(grown < most, "{what}: {grown} bytes");
    }

    /// This test runs first, before the node has had long data: memory that the node has free would hide the tree of
    /// an event.
    fn events_become_no_tree(&self) {
        self.grows_by(EVENTS_GROWTH_BYTES, "events that are lists", || {
            let before = self.count("api");
            let input = RelayOperation::count_events("trees/events", &Value::Null);
            for _ in 0..CALLS {
                let told = self.node.relay(&input).json();
                assert_eq!(told["output"], json!({ "output": EVENTS }), "{told}");
            }
            assert_eq!(self.count("api"), before + CALLS * EVENTS);
        });
    }

    fn answers_of_an_api_become_no_tree(&self) {
        self.grows_by(LISTS_GROWTH_BYTES, "lists that an API answers with", || {
            let before = self.count("api");
            let input = RelayOperation::count("trees/list", &Value::Null);
            let whole = json!({ "output": LIST_VALUES });
            for told in self.at_once(&input) {
                let answer = told.json();
                // The script's own limits decide whether it accepts a list of this length. The node accepted the
                // answer.
                let errors = [&answer["error"], &answer["output"]["error"]];
                let code = errors.iter().find_map(|error| error["code"].as_str());
                println!("figure a list in a script: {} {code:?}", told.status);
                let is_taken = match code {
                    None => answer["output"] == whole,
                    Some(code) => !NOT_TAKEN.contains(&code),
                };
                assert!(is_taken, "{told:?}");
            }
            assert_eq!(self.count("api"), before + CALLS);
        });
    }

    fn answers_of_tools_become_no_tree(&self) {
        self.arm("answers");
        self.grows_by(TOOLS_GROWTH_BYTES, "lists that a tool answers with", || {
            let before = self.count("answers");
            self.at_once(&RelayOperation::input("answers/list", &json!({})));
            assert_eq!(self.count("answers"), before + CALLS);
        });
        // A single answer has room, and the node refuses it for the size of its tree.
        let code = self.node.code("answers/list", &json!({}));
        assert_eq!(code, "PAYLOAD_TOO_LARGE");
    }

    fn schemas_of_tools_become_no_tree(&self) {
        let what = "a tool with a list in its schema";
        self.grows_by(TOOLS_GROWTH_BYTES, what, || {
            self.arm("listing");
            eventually("the listing is refused", || {
                let log = self.node.log();
                log.contains("more values in its tools").then_some(())
            });
        });
        assert!(self.count("listing") > 0);
        // The operations of the server's earlier list still work.
        self.node.answer("listing/list", &json!({}));
    }

    fn what_answers_no_request_becomes_no_tree(&self) {
        let streams = || self.count("unasked-streams");
        let before = eventually("the server has a stream to speak on", || {
            let streams = streams();
            (streams > 0).then_some(streams)
        });
        let what = "lists that answer no request";
        self.grows_by(TOOLS_GROWTH_BYTES, what, || {
            self.arm("unasked");
            eventually("the node ends the stream and opens another", || {
                (streams() > before).then_some(())
            });
        });
    }
}

/// A server may send requests without limit, and the library writes a record for each request that it refuses. The
/// log keeps a few of these records per minute, and all other records of the node.
#[test]
fn requests_of_a_server_leave_the_log_to_others() {
    let imports = ListImports::start();
    imports.arm("asks");
    eventually("the server has its answers", || {
        (imports.count("asks-answers") == SERVER_REQUESTS).then_some(())
    });
    let log = imports.node.log();
    let records = log.matches("rmcp").count();
    println!("figure records of {SERVER_REQUESTS} requests of a server: {records}");
    assert!((1..=SERVER_RECORDS_MAX).contains(&records), "{records}");
}

/// A server chooses the length of its names and the number of errors that it causes. Neither may fill the node's own
/// answers, or its log.
#[test]
fn mistakes_of_a_server_are_reported_in_few_words_and_once() {
    /// Limit for the text of one diagnostic in bytes, from docs/observability.md.
    const DIAGNOSTIC_BYTES_MAX: usize = 2 << 10;
    /// Listings in the test: the node lists the tools again after five seconds.
    const LISTINGS: usize = 2;
    let server = HostServer::trees();
    let imports = [
        openapi("wide", server.port(), &server.url("/wide.json"), HERE),
        mcp_at("refused", server.port(), "/refused/mcp"),
    ];
    let node = ImportNode::start(TestBench::new(), &imports.concat(), &["refused/*"]);
    assert_eq!(curl(&server.url("/arm/refused"), &[]).status, 200);
    let text_of = |namespace: &str| {
        let start = format!("import {namespace}: ");
        let problems = node.web.node.call("node/info", &Value::Null)["problems"].take();
        let problems = problems.as_array().cloned().unwrap_or_default();
        let mut texts = problems.iter().filter_map(|one| one["text"].as_str());
        let text = texts.find(|text| text.starts_with(&start));
        text.map(str::to_owned)
    };
    for (namespace, ends_in) in [("wide", "…"), ("refused", "; and 1016 more")] {
        let text = eventually("the node says what is wrong", || text_of(namespace));
        assert!(text.len() <= DIAGNOSTIC_BYTES_MAX, "{namespace}: {text}");
        assert!(text.contains(ends_in) || text.ends_with('…'), "{text}");
    }
    eventually("the tools were listed again", || {
        let listed = curl(&server.url("/count/refused"), &[]).json();
        (listed.as_u64() > Some(LISTINGS as u64)).then_some(())
    });
    let log = node.log();
    assert_eq!(log.matches("import refused: ").count(), 1, "{log}");
    assert!(!log.contains("a tool is not imported"), "{log}");
}

/// A value of two bytes needs 72 bytes or more in a tree. Before this limit, the tree of an answer of 16 MiB took
/// 600 MiB, and a tool server could send such an answer without a request.
#[test]
fn answers_of_servers_cost_no_trees() {
    let imports = ListImports::start();
    imports.node.answer("answers/list", &json!({}));
    imports.events_become_no_tree();
    imports.answers_of_an_api_become_no_tree();
    imports.answers_of_tools_become_no_tree();
    imports.schemas_of_tools_become_no_tree();
    imports.what_answers_no_request_becomes_no_tree();
    assert_eq!(imports.node.health(), "ok\n");
}

/// Calls of one server's tools that may run at once, and those of them that one identity may have (docs/imports.md).
const SERVER_CALLS_MAX: usize = 32;
const SERVER_CALLS_OF_ONE: usize = 16;

/// A tool that never answers keeps each of its calls until the call's deadline.
#[test]
fn calls_of_a_silent_tool_leave_other_callers_theirs() {
    let server = HostServer::trees();
    let imports = mcp_at("silent", server.port(), "/silent/mcp");
    let node = ImportNode::start(TestBench::new(), &imports, &["silent/*"]);
    node.until_there("silent/list");
    let [attacker, other] = [(); 2].map(|()| {
        let scopes = json!({ "scopes": ["import:silent:list"] });
        let made = node.web.node.call("token/make", &scopes);
        made["token"].as_str().expect("a token").to_owned()
    });
    let body = json!({ "operation": "/silent/list", "input": {} }).to_string();
    let options = format!(
        "http2\nheader = \"Authorization: Bearer {attacker}\"\n\
         header = \"Content-Type: application/json\"\ndata = {body:?}\n"
    );
    let paths = ["/call"; SERVER_CALLS_MAX];
    let _hanging = node
        .web
        .at_once(&node.bench, &paths, SERVER_CALLS_MAX, &options);
    // curl says nothing before all are over, but the access log does.
    let refused = SERVER_CALLS_MAX - SERVER_CALLS_OF_ONE;
    eventually("the calls beyond the share are refused", || {
        (node.log().matches(" status=429 ").count() == refused).then_some(())
    });
    let again = node.call(&attacker, "/silent/list", &json!({}));
    assert_eq!(again.code(), "OVERLOADED", "{again:?}");
    let answers = json!({ "answers": true });
    let answer = node.call(&other, "/silent/list", &answers).json();
    assert!(answer["error"].is_null(), "{answer:#}");
    // The server gets the calls that were not refused, and this one. Some may still be on their way.
    eventually("all calls of the share are there", || {
        let asked = curl(&server.url("/count/silent"), &[]).json();
        (asked == SERVER_CALLS_OF_ONE + 1).then_some(())
    });
}
