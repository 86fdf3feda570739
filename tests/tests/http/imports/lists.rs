//! Answers of other servers that are lists of short values: text of a few bytes, of which a parser makes a tree of many.

use std::thread;

use alknet_tests::{CurlResponse, HostServer, RelayOperation, TestBench, curl, eventually};
use serde_json::{Value, json};

use super::{HERE, ImportNode, mcp_at, openapi};

/// What the node may grow by while an API sends events of 1 MiB, one stream after the other: the line, its data, the
/// text that is passed on, each in a buffer that may have grown to twice as much, and three more events that wait, some
/// 10 MiB. A tree of one of them is 38 MiB.
const EVENTS_GROWTH_BYTES: u64 = 32 << 20;

/// The same while it answers four calls at once with 4 MiB each: the body in a buffer that may have grown to twice as
/// much, the text that is checked, and what of it goes to the script, some 18 MiB for each call. A tree of one answer
/// is 151 MiB.
const LISTS_GROWTH_BYTES: u64 = 128 << 20;

/// The same while servers of tools send 16 MiB: what is counted of one server is 128 MiB at most, beside which buffers
/// are copied where they grow. A tree of one answer is 600 MiB.
const TOOLS_GROWTH_BYTES: u64 = 288 << 20;

/// Calls of each kind of answer, and events of each stream.
const CALLS: usize = 4;
const EVENTS: usize = 4;

/// Values in the list that the API answers with.
const LIST_VALUES: usize = ((4 << 20) - 1000) / 2;

/// Requests of a server that asks for the roots of its client, and records that the log may have of them: two minutes at
/// one place in the library.
const SERVER_REQUESTS: usize = 300;
const SERVER_RECORDS_MAX: usize = 2 * 10;

/// Codes of calls whose answer the node did not take, or did not ask for.
const NOT_TAKEN: [&str; 5] = [
    "FORBIDDEN",
    "NOT_FOUND",
    "OVERLOADED",
    "PAYLOAD_TOO_LARGE",
    "UNAVAILABLE",
];

/// A node that imports an API and tools of a server whose answers are lists of short values.
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

    /// What the server has counted under this name.
    fn count(&self, what: &str) -> usize {
        let count = curl(&self.server.url(&format!("/count/{what}")), &[]).json();
        count.as_u64().expect("a number") as usize
    }

    /// From now on it sends these lists.
    fn arm(&self, what: &str) {
        let armed = curl(&self.server.url(&format!("/arm/{what}")), &[]);
        assert_eq!(armed.status, 200);
    }

    /// What the script says of so many calls at once.
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

    /// `work` makes the node grow by no more than that.
    fn grows_by(&self, most: u64, what: &str, work: impl FnOnce()) {
        let grown = self.node.growth(what, work);
        assert!(grown < most, "{what}: {grown} bytes");
    }

    /// First, while the node has had nothing so long: what it has free would hide what the tree of an event takes.
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
                // Whether a script takes so long a list is its own limits' business. The node took it.
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
        // One that comes alone has room, and is refused for what it would become.
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
        // What its list had before is there.
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

/// A server asks as often as it likes, and the library writes a record of each request that it refuses: the log keeps a few
/// of them in a minute, and all others of the node.
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

/// A server decides how long its names are and how often it is asked: neither fills the node's own answers, or its log.
#[test]
fn mistakes_of_a_server_are_reported_in_few_words_and_once() {
    /// Bytes of one diagnostic's text, as docs/observability.md has it.
    const DIAGNOSTIC_BYTES_MAX: usize = 2 << 10;
    /// The node lists the tools again after five seconds.
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

/// A value of two bytes has 72 and more in a tree: an answer of 16 MiB had 600 MiB, and a server of tools could send it
/// unasked.
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
