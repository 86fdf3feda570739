//! Other servers as operations of a node: an API that a document describes, and tools.

mod callers;
mod lists;
mod shapes;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use alknet_test_support::{ReservedPort, took};
use alknet_tests::tools::client;
use alknet_tests::{
    CurlResponse, HostServer, RelayOperation, RequestLoop, TestBench, WebNode, binary, curl,
    eventually,
};
use data_encoding::BASE64;
use serde_json::{Value, json};

/// A secret that only the server may see.
const HUSH: &str = "hush-7c1d-this-is-for-the-server-alone";

/// SHA-256 of `hello`, as `sha256sum` computes it.
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

/// The node answers within this time while foreign schemas are checked.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// How much the node may grow while an input causes requests that would repeat a long name: the
/// longest that is written of one, and copies of the input.
const REQUEST_GROWTH_BYTES: u64 = 48 << 20;

/// Allows an import to use this host, without TLS.
const HERE: &str = "private = [\"127.0.0.1\"]";

fn openapi(namespace: &str, port: u16, document: &str, more: &str) -> String {
    format!(
        "[[http.import]]\nkind = \"openapi\"\nnamespace = \"{namespace}\"\nplain = true\n\
         document = \"{document}\"\nbase_url = \"http://127.0.0.1:{port}/api\"\n{more}\n"
    )
}

fn mcp(namespace: &str, port: u16) -> String {
    mcp_at(namespace, port, "/mcp")
}

fn mcp_at(namespace: &str, port: u16, path: &str) -> String {
    format!(
        "[[http.import]]\nkind = \"mcp\"\nnamespace = \"{namespace}\"\nplain = true\n\
         url = \"http://127.0.0.1:{port}{path}\"\n{HERE}\n"
    )
}

/// A node with these imports, and an operation that uses them.
struct ImportNode {
    web: WebNode,
    bench: TestBench,
}

impl ImportNode {
    fn start(bench: TestBench, imports: &str, uses: &[&str]) -> Self {
        let relay = RelayOperation::new(&bench, uses);
        Self::with_relay(bench, imports, &relay)
    }

    fn with_relay(bench: TestBench, imports: &str, relay: &RelayOperation) -> Self {
        let description = fs::copy(client("api.yaml"), bench.path().join("api.yaml"));
        description.expect("the folder is ours");
        let web = WebNode::start(&bench, &format!("{}{imports}", relay.configuration()));
        relay.promote(web.node.target());
        Self { web, bench }
    }

    fn target(&self) -> &str {
        self.web.node.target()
    }

    fn ask(&self, operation: &str, input: &Value) -> Value {
        RelayOperation::ask(self.bench.admin(), self.target(), operation, input)
    }

    fn answer(&self, operation: &str, input: &Value) -> Value {
        let mut answer = self.ask(operation, input);
        assert!(answer["error"].is_null(), "{operation}: {answer:#}");
        answer["output"].take()
    }

    fn error(&self, operation: &str, input: &Value) -> Value {
        let mut answer = self.ask(operation, input);
        assert!(answer["error"].is_object(), "{operation}: {answer:#}");
        answer["error"].take()
    }

    fn code(&self, operation: &str, input: &Value) -> String {
        let code = self.error(operation, input)["code"].take();
        code.as_str().unwrap_or_default().to_owned()
    }

    fn list(&self, prefix: &str) -> Value {
        RelayOperation::list(self.bench.admin(), self.target(), prefix)
    }

    /// Waits for an operation, which exists after its import is done.
    fn until_there(&self, operation: &str) {
        eventually(operation, || {
            let listed = self.list(operation);
            let found = listed.as_array().expect("a list");
            found.iter().any(|one| one == operation).then_some(())
        });
    }

    /// The node's answer to an unauthenticated health check.
    fn health(&self) -> String {
        self.web.curl("/healthz", &[]).text()
    }

    fn log(&self) -> String {
        let input = json!({ "last": 100_000 });
        let admin = self.bench.admin();
        admin.call(self.target(), "node/log", &input, &[]).output
    }

    /// A request as a model's client would send it, by hand.
    fn model(&self, token: &str, operation: &str, input: &Value) -> CurlResponse {
        let arguments = json!({ "operation": operation, "input": input });
        let params = json!({ "name": "call", "arguments": arguments });
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
        let accept = "Accept: application/json, text/event-stream";
        let arguments = ["--header", accept, "--json", &body.to_string()];
        self.web.curl_as(token, "/mcp", &arguments)
    }

    /// Calls the operation that uses them with an input that is longer than a command's argument
    /// may be, and returns the answer.
    fn relay(&self, input: &Value) -> CurlResponse {
        let body = json!({ "operation": format!("/{}", RelayOperation::PATH), "input": input });
        let file = self
            .bench
            .path()
            .join(format!("input-{:?}", thread::current().id()));
        fs::write(&file, body.to_string()).expect("the folder is ours");
        let (json, body) = (
            "Content-Type: application/json",
            format!("@{}", file.display()),
        );
        let arguments = ["--header", json, "--data-binary", &body];
        self.web.curl_as(&self.web.admin, "/call", &arguments)
    }

    /// A value from the kernel about the node's memory, in bytes.
    fn memory(&self, name: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.web.node.pid()));
        let text = text.expect("the node runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("the kernel says it") << 10
    }

    /// How much the node grew during `work`.
    fn growth(&self, what: &str, work: impl FnOnce()) -> u64 {
        // Resets the peak, so that it is that of the work.
        let file = format!("/proc/{}/clear_refs", self.web.node.pid());
        fs::write(file, "5").expect("it is our process");
        let before = self.memory("VmRSS:");
        work();
        let grown = self.memory("VmHWM:").saturating_sub(before);
        println!("figure {what}: {} KiB", grown >> 10);
        grown
    }

    fn call(&self, token: &str, operation: &str, input: &Value) -> CurlResponse {
        let body = json!({ "operation": operation, "input": input });
        self.web.post(token, "/call", &body.to_string())
    }
}

/// The requests that a server got at a path.
fn request_count(server: &HostServer, method: &str, path: &str) -> usize {
    let all = curl(&server.url("/told"), &[]).json();
    let all = all.as_array().expect("a list").iter();
    all.filter(|one| one["method"] == method && one["path"] == path)
        .count()
}

#[test]
fn an_api_becomes_operations_that_answer_as_it_does() {
    let api = HostServer::api(0, None);
    let imports = openapi("api", api.port(), "cfg:/api.yaml", HERE);
    let node = ImportNode::start(TestBench::new(), &imports, &["api/*"]);
    node.until_there("api/getNote");
    let all = [
        "addFile",
        "addNote",
        "away",
        "busy/ask",
        "busy/change",
        "events",
        "getNote",
        "me",
    ];
    let all: Vec<_> = all.iter().map(|name| format!("api/{name}")).collect();
    assert_eq!(node.list("api/"), json!(all));

    // The document does not contain the server's address.
    let note = node.answer("api/getNote", &json!({ "id": "a/b c", "lang": "de" }));
    assert_eq!(note, json!({ "id": 1, "text": "a/b c", "lang": "de" }));
    assert_eq!(
        request_count(&api, "GET", "/api/notes/a%2Fb%20c?lang=de"),
        1
    );
    let kept = node.answer("api/addNote", &json!({ "body": { "text": "x" } }));
    assert_eq!(kept, json!({ "id": 7, "text": "x" }));
    let body = json!({ "name": "n", "data": BASE64.encode(b"hello") });
    let file = node.answer("api/addFile", &json!({ "body": body }));
    assert_eq!(file["data"], json!({ "bytes": 5, "sha256": HELLO }));
    let follow = |operation| {
        let input = Value::Null;
        RelayOperation::follow(node.bench.admin(), node.target(), operation, &input)
    };
    let event = |n: u32| json!({ "event": "tick", "id": n.to_string(), "data": { "n": n } });
    assert_eq!(
        follow("api/events")["output"],
        json!([event(0), event(1), event(2)])
    );

    // Invalid input is not sent, and the server's refusals are forwarded in its words.
    let wrong = json!({ "body": { "text": "" } });
    assert_eq!(node.code("api/addNote", &wrong), "INVALID_INPUT");
    assert_eq!(request_count(&api, "POST", "/api/notes"), 1);
    let error = node.error("api/getNote", &json!({ "id": "none" }));
    assert_eq!(error["code"], "HTTP_404", "{error:#}");
    assert_eq!(error["details"]["body"]["message"], "no note none");
    // A query is retried if the server may answer later, but a change is not.
    assert_eq!(node.answer("api/busy/ask", &Value::Null), "12");
    assert_eq!(request_count(&api, "GET", "/api/busy"), 3);
    // The server may have made the change all the same.
    let error = node.error("api/busy/change", &Value::Null);
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("HTTP_503"), &json!(false))
    );
    assert_eq!(request_count(&api, "POST", "/api/busy"), 1);
    // The node follows no redirect.
    assert_eq!(node.code("api/away", &Value::Null), "UNAVAILABLE");
}

#[test]
fn imports_are_reached_through_operations_that_name_them() {
    let api = HostServer::api(0, None);
    let imports = openapi("api", api.port(), "cfg:/api.yaml", HERE);
    let node = ImportNode::start(TestBench::new(), &imports, &["api/getNote"]);
    node.until_there("api/getNote");
    let (web, id) = (&node.web, json!({ "id": "a" }));
    let note = json!({ "id": 1, "text": "a", "lang": null });

    // Every client that may call the relay operation calls it over every protocol.
    let input = RelayOperation::input("api/getNote", &id);
    let path = format!("/{}", RelayOperation::PATH);
    let answer = node.call(&web.admin, &path, &input).json();
    assert_eq!(answer["output"]["output"], note, "{answer:#}");
    let answer = node.model(&web.admin, &path, &input).json();
    let output = &answer["result"]["structuredContent"]["output"];
    assert_eq!(*output, note, "{answer:#}");
    assert_eq!(node.call(&web.reader, &path, &input).status, 403);
    // It reaches the operations it was given and nothing else of the server.
    assert_eq!(node.code("api/me", &Value::Null), "NOT_FOUND");
    assert_eq!(request_count(&api, "GET", "/api/notes/a"), 2);
}

#[test]
fn a_server_that_is_gone_or_may_not_be_asked_stops_nothing_else() {
    let unused = ReservedPort::claim_all::<2>();
    let [port, gone] = unused.each_ref().map(ReservedPort::number);
    let api = HostServer::api(0, None);
    let imports = [
        openapi("api", api.port(), "cfg:/api.yaml", HERE),
        openapi("near", api.port(), "cfg:/api.yaml", ""),
        openapi("gone", gone, "cfg:/api.yaml", HERE),
        openapi("absent", api.port(), "cfg:/absent.yaml", HERE),
        openapi(
            "later",
            port,
            &format!("http://127.0.0.1:{port}/api.yaml"),
            HERE,
        ),
    ];
    let uses = ["api/*", "near/*", "gone/*", "absent/*", "later/*"];
    let node = ImportNode::start(TestBench::new(), &imports.concat(), &uses);
    for there in ["api/getNote", "near/getNote", "gone/getNote"] {
        node.until_there(there);
    }
    let id = json!({ "id": "a" });
    let well = |namespace: &str| {
        let note = node.answer(&format!("{namespace}/getNote"), &id);
        assert_eq!(note["text"], "a", "{namespace}");
    };
    well("api");
    let error = node.error("near/getNote", &id);
    assert_eq!(error["code"], "UNAVAILABLE", "{error:#}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("no public address"), "{message}");
    assert_eq!(node.code("gone/getNote", &id), "UNAVAILABLE");
    assert_eq!(request_count(&api, "GET", "/api/notes/a"), 1);

    // The node reports the problem, and lacks only the operations concerned. Another server's
    // failure is no reason for the supervisor of this node to restart it.
    let problems = node.web.node.call("node/info", &Value::Null)["problems"].take();
    let codes = problems.as_array().expect("a list").iter();
    let codes: BTreeSet<_> = codes.filter_map(|one| one["code"].as_str()).collect();
    assert_eq!(codes, BTreeSet::from(["import-failed"]), "{problems}");
    assert_eq!(node.health(), "ok\n");
    assert_eq!(node.code("absent/getNote", &id), "NOT_FOUND");
    let log = node.log();
    for wrong in ["import absent: ", "import later: "] {
        assert!(log.contains(wrong), "{wrong}");
    }
    well("api");
    // A document that is missing is requested again.
    let later = HostServer::api(port, None);
    node.until_there("later/getNote");
    well("later");
    assert_eq!(request_count(&later, "GET", "/api.yaml"), 1);

    // A server that dies does not affect others, and is used again when it is back.
    drop(later);
    let error = node.error("later/getNote", &id);
    assert_eq!(error["code"], "UNAVAILABLE", "{error:#}");
    let message = error["message"].as_str().expect("a message");
    let named = message.starts_with("import 'later': cannot reach ");
    assert!(
        named && message.ends_with("; is the server running?"),
        "{message}"
    );
    well("api");
    let _later = HostServer::api(port, None);
    well("later");
}

/// `credentials.rs` tests what happens after the secret is set, and
/// `tests/tests/machine/imports.rs` tests it on a machine.
#[test]
fn an_import_whose_secret_is_not_set_asks_no_server() {
    let bench = TestBench::new();
    let file = bench.path().join("token");
    fs::write(&file, HUSH).expect("the folder is ours");
    let api = HostServer::api(0, file.to_str());
    let credential = "[[credentials]]\nname = \"api\"\nkind = \"bearer\"\n";
    let imports = [
        credential.to_owned(),
        openapi(
            "mine",
            api.port(),
            "cfg:/api.yaml",
            &format!("{HERE}\ncredential = \"api\""),
        ),
        openapi("open", api.port(), "cfg:/api.yaml", HERE),
    ];
    let node = ImportNode::start(bench, &imports.concat(), &["mine/*", "open/*"]);
    for there in ["mine/me", "open/me"] {
        node.until_there(there);
    }
    let error = node.error("mine/me", &Value::Null);
    assert_eq!(error["code"], "UNAVAILABLE", "{error:#}");
    assert_eq!(
        error["details"]["reason"], "credential_missing",
        "{error:#}"
    );
    assert_eq!(request_count(&api, "GET", "/api/me"), 0);
    // If the node sends no token, the server refuses the call.
    assert_eq!(node.code("open/me", &Value::Null), "HTTP_401");
    // An operation that the document declares without authentication needs no token.
    assert_eq!(
        node.answer("mine/getNote", &json!({ "id": "a" }))["text"],
        "a"
    );
}

#[test]
fn tools_of_another_server_come_and_go_with_it() {
    let unused = ReservedPort::claim().expect("a port");
    let port = unused.number();
    let node = ImportNode::start(TestBench::new(), &mcp("tools", port), &["tools/*"]);
    // The server does not run yet: there is nothing to call, and the node is unaffected.
    let sum = json!({ "a": 2, "b": 3 });
    assert_eq!(node.code("tools/add", &sum), "NOT_FOUND");
    let server = HostServer::mcp(port, None);
    node.until_there("tools/add");
    assert_eq!(
        node.list("tools/"),
        json!(["tools/add", "tools/fail", "tools/files_list", "tools/grow"])
    );
    assert_eq!(node.answer("tools/add", &sum), json!({ "sum": 5 }));
    let text = node.answer("tools/files_list", &json!({}));
    assert_eq!(text["content"][0]["text"], "{\"looks\": \"like JSON\"}");
    let error = node.error("tools/fail", &json!({}));
    assert_eq!(error["code"], "MCP_TOOL_ERROR", "{error:#}");
    let path = format!("/{}", RelayOperation::PATH);
    let input = RelayOperation::input("tools/add", &sum);
    let answer = node.model(&node.web.admin, &path, &input).json();
    let output = &answer["result"]["structuredContent"]["output"];
    assert_eq!(*output, json!({ "sum": 5 }), "{answer:#}");

    // The server announces another tool.
    node.answer("tools/grow", &json!({}));
    node.until_there("tools/late");
    let late = node.answer("tools/late", &json!({}));
    assert_eq!(late["content"][0]["text"], "better late");

    // It dies, and the imported operations remain without an answer.
    drop(server);
    assert_eq!(node.code("tools/add", &sum), "UNAVAILABLE");
    assert_eq!(
        node.call(&node.web.admin, "/node/info", &json!({})).status,
        200
    );
    // It comes back without the new tool. It announced that to no client, because none was
    // connected.
    let _server = HostServer::mcp(port, None);
    eventually("the tools of the new server", || {
        let listed = node.list("tools/late");
        listed.as_array().is_some_and(Vec::is_empty).then_some(())
    });
    assert_eq!(node.answer("tools/add", &sum), json!({ "sum": 5 }));
    assert_eq!(node.code("tools/late", &json!({})), "NOT_FOUND");
}

/// No imported operation replaces one of the node's own, or is reachable as one.
#[test]
fn namespaces_of_the_node_are_its_own() {
    let bench = TestBench::new();
    let node = bench.host();
    let listed = node.call("services/list", &json!({ "limit": 1000 }));
    let operations = listed["operations"].as_array().expect("a list").iter();
    let names = operations.map(|one| one["namespace"].as_str().expect("a name"));
    let names: BTreeSet<_> = names.collect();
    assert!(names.contains("node"), "{names:?}");
    let file = bench.path().join("taken.toml");
    for name in names {
        let document = openapi(name, 1, "cfg:/api.yaml", HERE);
        fs::write(&file, document).expect("the folder is ours");
        let mut command = Command::new(binary());
        command.args(["config", "check"]).arg(&file);
        let checked = command.output().expect("the binary can be started");
        let said = [checked.stdout, checked.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let refused = !checked.status.success() && said.contains("is the node's own");
        assert!(refused, "{name}: {said}");
    }
}

/// A description by another server is a kind of program. A schema that no value could be checked
/// against is not imported, and a schema that would take hours for one value is refused for that
/// value.
#[test]
fn schemas_of_servers_cost_the_node_little_time() {
    let server = HostServer::bombs();
    let document = |name: &str| server.url(&format!("/{name}.json"));
    let names = ["chain", "deep", "numbers", "wide"];
    let mut imports = names.map(|name| openapi(name, server.port(), &document(name), HERE));
    imports[0].push_str(&mcp("tools", server.port()));
    let uses = ["chain/*", "deep/*", "numbers/*", "tools/*", "wide/*"];
    let node = ImportNode::start(TestBench::new(), &imports.concat(), &uses);
    let asking = RequestLoop::begin(node.target(), node.bench.admin());
    for name in names {
        node.until_there(&format!("{name}/do"));
    }
    for there in ["tools/fine", "tools/numbers"] {
        node.until_there(there);
    }
    // Schemas that no value could be checked against are left out. Missing members of an object are
    // not checked.
    assert_eq!(node.list("tools/"), json!(["tools/fine", "tools/numbers"]));
    let asked = || curl(&server.url("/asked"), &[]).json();
    // The maximum of a tree, whatever its text is.
    let list = json!(vec![7; 10_000]);
    for (operation, input) in [
        ("chain/do", json!({ "body": "x" })),
        ("numbers/do", json!({ "body": list })),
        ("tools/numbers", json!({ "v": list })),
    ] {
        let error = node.error(operation, &input);
        assert_eq!(error["code"], "INVALID_INPUT", "{error:#}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains("steps"), "{message}");
    }
    // Where a description is too wide, or has a keyword that is not taken, the node checks nothing. The list is
    // refused for its number of values.
    let wide = RelayOperation::input("wide/do", &json!({ "body": vec![7; 400_000] }));
    let answer = node.relay(&wide).json();
    assert!(answer["output"]["output"].is_null(), "{answer:#}");
    assert_eq!(asked(), 0, "nothing was sent");
    let nested = (0..30).fold(json!(1), |value, _| json!({ "v": value }));
    for (n, operation, input) in [(1, "wide/do", &list), (2, "deep/do", &nested)] {
        node.ask(operation, &json!({ "body": input }));
        assert_eq!(asked(), n, "{operation}: the server decides");
    }
    let what = "an answer beside hostile schemas of servers";
    took(what, ANSWER_WITHIN, asking.end());
    node.answer("tools/fine", &json!({ "v": list }));
    assert_eq!(asked(), 3);
    assert_eq!(node.health(), "ok\n");
}

/// A caller names something once in its input that the request would repeat for each of 4,000
/// values: 256 KiB become 1 GiB.
#[test]
fn a_request_that_would_repeat_a_long_name_is_not_written() {
    let server = HostServer::trees();
    let document = server.url("/api.json");
    let imports = openapi("trees", server.port(), &document, HERE);
    let node = ImportNode::start(TestBench::new(), &imports, &["trees/*"]);
    node.until_there("trees/parts");
    let asked = || curl(&server.url("/count/api"), &[]).json();
    let name = "n".repeat(256 << 10);
    let tree = |name: &str| json!({ (name): vec![0; 4_000] });
    // Called once before, so that the lasting cost of a first call is not measured.
    node.answer("trees/fields", &json!({ "body": { "a": [1, 2] } }));
    let asking = RequestLoop::begin(node.target(), node.bench.admin());
    let grown = node.growth("requests that would repeat a long name", || {
        for (operation, input) in [
            ("trees/fields", json!({ "body": tree(&name) })),
            ("trees/parts", json!({ "body": tree(&name) })),
            ("trees/find", json!({ "created": tree(&name) })),
        ] {
            let answer = node.relay(&RelayOperation::input(operation, &input)).json();
            let error = &answer["output"]["error"];
            assert_eq!(error["code"], "INVALID_INPUT", "{operation}: {answer}");
            let message = error["message"].as_str().unwrap_or_default();
            assert!(
                message.contains("the request would have"),
                "{operation}: {message}"
            );
        }
        // The search for a boundary that occurs in no part: this part contains each candidate.
        let guesses: String = (0..20_000).map(|n| format!("alknet-{n:016x} ")).collect();
        let input = RelayOperation::input("trees/parts", &json!({ "body": { "a": guesses } }));
        let answer = node.relay(&input).json();
        assert_eq!(answer["output"], json!({ "output": null }), "{answer}");
    });
    let what = "an answer beside requests that would repeat a long name";
    took(what, ANSWER_WITHIN, asking.end());
    assert!(grown < REQUEST_GROWTH_BYTES, "{grown} bytes");
    assert_eq!(asked(), 2, "what would be too long was not sent");
    assert_eq!(node.health(), "ok\n");
}
