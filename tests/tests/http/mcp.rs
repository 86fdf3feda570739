//! The interface for models: with curl, and with the protocol's own kits.

use std::path::PathBuf;
use std::process::Command;

use alknet_tests::tools::run_with_json;
use alknet_tests::{CurlResponse, TestBench, WebNode};
use serde_json::{Value, json};

const PINNED: &str = "[http.mcp]\ntools = [\"node/info\", \"node/reboot\"]\n";
const ACCEPT: &str = "Accept: application/json, text/event-stream";

fn message(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
}

fn call(tool: &str, arguments: &Value) -> String {
    message("tools/call", &json!({"name": tool, "arguments": arguments}))
}

fn ask(web: &WebNode, token: &str, version: &str, body: &str) -> CurlResponse {
    let arguments = [version, "--header", ACCEPT, "--json", body];
    web.curl_as(token, "/mcp", &arguments)
}

fn names(told: &CurlResponse) -> Vec<String> {
    let answer = told.json();
    let tools = answer["result"]["tools"].as_array().expect("tools").iter();
    let name = |tool: &Value| tool["name"].as_str().expect("a name").to_owned();
    tools.map(name).collect()
}

#[test]
fn models_find_and_call_operations_over_every_version() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, PINNED);
    let list = message("tools/list", &json!({}));
    for version in ["--http1.1", "--http2"] {
        let told = ask(&web, &web.admin, version, &list);
        assert_eq!(told.status, 200, "{told:?}");
        let all = [
            "search",
            "schema",
            "call",
            "batch",
            "node_info",
            "node_reboot",
        ];
        assert_eq!(names(&told), all);
        let search = call("search", &json!({"q": "node/info"}));
        let found = ask(&web, &web.admin, version, &search).json();
        let found = &found["result"]["structuredContent"]["operations"];
        assert_eq!(found[0]["operation"], "/node/info");
        for info in [
            call("call", &json!({"operation": "/node/info"})),
            call("node_info", &json!({})),
        ] {
            let answer = ask(&web, &web.admin, version, &info).json();
            let output = &answer["result"]["structuredContent"];
            assert_eq!(output["problems"], json!([]), "{answer}");
        }
    }
    // Operations that may not be called are not listed either.
    let told = ask(&web, &web.reader, "--http2", &list);
    assert!(!names(&told).contains(&"node_reboot".to_owned()));
    let refused = ask(
        &web,
        &web.reader,
        "--http2",
        &call("node_reboot", &json!({})),
    )
    .json();
    let unknown = ask(
        &web,
        &web.reader,
        "--http2",
        &call("node_rebuut", &json!({})),
    )
    .json();
    assert_eq!(refused["error"]["code"], -32602);
    assert_eq!(refused["error"]["code"], unknown["error"]["code"]);
}

#[test]
fn models_need_a_token_and_the_right_name() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let list = message("tools/list", &json!({}));
    let unknown_peer = web.curl("/mcp", &["--header", ACCEPT, "--json", &list]);
    assert_eq!(unknown_peer.status, 401);
    let challenge = unknown_peer.header("www-authenticate");
    assert_eq!(challenge, Some("Bearer realm=\"alknet\""));
    assert_eq!(ask(&web, &web.expired, "--http2", &list).status, 401);
    let evil = [
        "--header",
        "Host: evil.example",
        "--header",
        ACCEPT,
        "--json",
        &list,
    ];
    assert_ne!(web.curl_as(&web.admin, "/mcp", &evil).status, 200);
    let evil = [
        "--header",
        "Origin: https://evil.example",
        "--header",
        ACCEPT,
        "--json",
        &list,
    ];
    assert_eq!(web.curl_as(&web.admin, "/mcp", &evil).status, 403);
    let get = web.curl_as(&web.admin, "/mcp", &["--header", ACCEPT]);
    assert_eq!(get.status, 405);
}

fn folder(variable: &str) -> PathBuf {
    let folder = std::env::var_os(variable);
    folder
        .unwrap_or_else(|| panic!("{variable} names a folder; cargo xtask test sets it"))
        .into()
}

fn client(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "clients", name]
        .iter()
        .collect()
}

fn says_fine(command: &mut Command, web: &WebNode) {
    let facts = json!({ "url": web.url("/mcp"), "token": web.admin });
    let output = run_with_json(command, &facts);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("fine"), "{text}");
}

#[test]
fn pythons_kit_uses_a_node() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, PINNED);
    let mut python = Command::new("python3");
    python.arg("-S").arg(client("mcp_node.py"));
    python.env("PYTHONPATH", folder("ALKNET_TEST_MCP_PYTHON"));
    says_fine(&mut python, &web);
}

#[test]
fn typescripts_kit_uses_a_node() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, PINNED);
    let mut node = Command::new("node");
    node.arg(client("mcp_node.mjs"))
        .arg(folder("ALKNET_TEST_MCP_NODE"));
    // The node's certificate is self-signed.
    node.env("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    says_fine(&mut node, &web);
}
