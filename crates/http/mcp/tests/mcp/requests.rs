//! Messages as they are, of each version of the protocol.

use serde_json::{Value, json};

use crate::node::{GUEST, McpTestNode, McpTestProof};

const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
const NEWEST: &str = "2026-07-28";

fn message(method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string()
}

fn call(tool: &str, arguments: &Value) -> String {
    message("tools/call", &json!({"name": tool, "arguments": arguments}))
}

async fn result(node: &McpTestNode, headers: &[(&str, &str)], body: &str) -> Value {
    let (status, answer) = node.post(headers, body).await;
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["id"], 7);
    answer["result"].clone()
}

/// What the tool `call` answers, and whether it failed.
async fn called(node: &McpTestNode, operation: &str, input: Value) -> (Value, bool) {
    let arguments = json!({"operation": operation, "input": input});
    let result = result(node, &[], &call("call", &arguments)).await;
    let text = result["content"][0]["text"].as_str().expect("a text");
    let value = serde_json::from_str(text).expect("JSON");
    (value, result["isError"] == true)
}

async fn names(node: &McpTestNode, headers: &[(&str, &str)]) -> Vec<String> {
    let result = result(node, headers, &message("tools/list", &json!({}))).await;
    let tools = result["tools"].as_array().expect("tools").iter();
    tools
        .map(|tool| tool["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[tokio::test]
async fn each_older_version_is_greeted_and_served() {
    let node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    for version in VERSIONS {
        let greeting = json!({
            "protocolVersion": version,
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        });
        let answer = result(&node, &[], &message("initialize", &greeting)).await;
        assert_eq!(answer["protocolVersion"], version);
        assert_eq!(answer["serverInfo"]["name"], "alknet");
        assert!(answer["capabilities"]["tools"].is_object());
        assert!(
            answer["capabilities"]["prompts"].is_null(),
            "there are none"
        );
        let header = [("MCP-Protocol-Version", version)];
        assert_eq!(
            names(&node, &header).await,
            ["search", "schema", "call", "batch"]
        );
        let add = json!({"operation": "/demo/add", "input": {"a": 2, "b": 3}});
        let answer = result(&node, &header, &call("call", &add)).await;
        assert_eq!(answer["structuredContent"], json!({"sum": 5}));
        assert_eq!(answer["content"][0]["text"], "{\"sum\":5}");
    }
}

#[tokio::test]
async fn the_newest_version_needs_no_greeting() {
    let node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": NEWEST,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let with = |method: &str, mut params: Value| {
        params["_meta"] = meta.clone();
        message(method, &params)
    };
    let head = |method: &'static str| [("MCP-Protocol-Version", NEWEST), ("Mcp-Method", method)];
    let found = result(
        &node,
        &head("server/discover"),
        &with("server/discover", json!({})),
    )
    .await;
    let versions = found["supportedVersions"].as_array().expect("versions");
    assert_eq!(versions.len(), VERSIONS.len() + 1);
    // Only here may a result be something else than an object.
    let seven = json!({"name": "call", "arguments": {"operation": "demo/seven"}});
    let headers = [
        ("MCP-Protocol-Version", NEWEST),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "call"),
    ];
    let answer = result(&node, &headers, &with("tools/call", seven)).await;
    assert_eq!(answer["structuredContent"], 7);
}

#[tokio::test]
async fn the_four_tools_do_what_they_say() {
    let node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    let found = result(
        &node,
        &[],
        &call("search", &json!({"q": "DEMO/", "limit": 3})),
    )
    .await;
    let found = &found["structuredContent"];
    assert_eq!(found["operations"].as_array().map(Vec::len), Some(3));
    assert_eq!(found["next"], found["operations"][2]["operation"]);
    let all = result(
        &node,
        &[],
        &call("search", &json!({"limit": 500, "cursor": null})),
    )
    .await;
    let all = all.to_string();
    assert!(all.contains("/demo/secret"));
    assert!(
        !all.contains("/demo/ticks") && !all.contains("/demo/inner"),
        "{all}"
    );

    let about = result(
        &node,
        &[],
        &call("schema", &json!({"operation": "demo/add"})),
    )
    .await;
    let about = &about["structuredContent"];
    assert_eq!(about["operation"], "/demo/add");
    assert_eq!(about["input_schema"]["required"], json!(["a", "b"]));

    assert_eq!(
        called(&node, "demo/echo", json!(["x"])).await,
        (json!(["x"]), false)
    );
    let batch = json!({"calls": [
        {"id": "a", "operation": "demo/seven"},
        {"id": "b", "operation": "demo/nothing"},
    ]});
    let results = result(&node, &[], &call("batch", &batch)).await;
    assert_eq!(results["isError"], false);
    let results = &results["structuredContent"]["results"];
    assert_eq!(results[0], json!({"id": "a", "status": 200, "output": 7}));
    assert_eq!(
        (&results[1]["status"], &results[1]["error"]["code"]),
        (&json!(404), &json!("NOT_FOUND"))
    );
}

#[tokio::test]
async fn errors_are_results_that_say_so() {
    let node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    for (operation, input, code) in [
        ("demo/fill", json!(null), "DISK_FULL"),
        ("demo/add", json!({"a": 1}), "INVALID_INPUT"),
        ("demo/ticks", json!(null), "INVALID_OPERATION_TYPE"),
        ("demo/inner", json!(null), "NOT_FOUND"),
        ("demo/nothing", json!(null), "NOT_FOUND"),
    ] {
        let (error, failed) = called(&node, operation, input).await;
        assert!(failed && error["code"] == code, "{operation}: {error}");
        assert!(error["request_id"].is_string());
    }
    for (tool, arguments, word) in [
        ("call", json!({}), "operation"),
        ("call", json!({"operation": "a/b", "more": 1}), "more"),
        (
            "search",
            json!({"type": "subscription"}),
            "query or mutation",
        ),
        ("search", json!({"q": 7}), "string"),
        ("search", json!({"sort": "a"}), "sort"),
        ("schema", json!({"operation": "demo/ticks"}), "subscription"),
        ("schema", json!({"name": "demo/add"}), "name"),
        ("batch", json!({"calls": 1}), "calls"),
    ] {
        let answer = result(&node, &[], &call(tool, &arguments)).await;
        let text = answer["content"][0]["text"].as_str().expect("a text");
        assert!(
            answer["isError"] == true && text.contains(word),
            "{tool}: {text}"
        );
    }
}

#[tokio::test]
async fn pinned_operations_are_tools_for_permitted_callers() {
    let pinned = [
        "/demo/add",
        "demo/secret",
        "demo/ticks",
        "demo/inner",
        "demo/none",
        "demo/seven",
    ];
    let node = McpTestNode::start(McpTestProof::Nothing, &pinned).await;
    let guest = format!("Bearer {GUEST}");
    let guest = [("Authorization", guest.as_str())];
    let fixed = 4;
    assert_eq!(
        names(&node, &[]).await[fixed..],
        ["demo_add", "demo_secret", "demo_seven"]
    );
    assert_eq!(
        names(&node, &guest).await[fixed..],
        ["demo_add", "demo_seven"]
    );
    let answer = result(&node, &[], &call("demo_add", &json!({"a": 1, "b": 1}))).await;
    assert_eq!(answer["structuredContent"], json!({"sum": 2}));
    // Older clients take objects only; the text says it all.
    let answer = result(&node, &[], &call("demo_seven", &json!({}))).await;
    assert!(answer["structuredContent"].is_null() && answer["content"][0]["text"] == "7");

    // What one may not use is not there, whatever the reason.
    let mut told = Vec::new();
    for tool in [
        "demo_secret",
        "demo_inner",
        "demo_none",
        "demo_ticks",
        "demo_what",
    ] {
        let (status, answer) = node.post(&guest, &call(tool, &json!({}))).await;
        told.push((status, answer.replace(tool, "TOOL")));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].1.contains("Unknown tool: TOOL"));

    node.server.set_options(alknet_mcp::McpOptions::default());
    assert_eq!(
        names(&node, &[]).await.len(),
        fixed,
        "options change while it runs"
    );
}

#[tokio::test]
async fn unknown_peers_and_wrong_names_stay_outside() {
    let node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    let list = message("tools/list", &json!({}));
    for headers in [
        [("Authorization", "")],
        [("Authorization", "Bearer alk_wrong")],
    ] {
        assert_eq!(node.post(&headers, &list).await.0, 401);
    }
    assert_eq!(node.post(&[("Host", "evil.example")], &list).await.0, 403);
    assert_eq!(
        node.post(&[("Origin", "https://evil.example")], &list)
            .await
            .0,
        403
    );
    let own = format!("http://localhost:{}", node.port);
    assert_eq!(node.post(&[("Origin", &own)], &list).await.0, 200);
    assert_eq!(
        node.post(&[("Origin", "http://localhost")], &list).await.0,
        403
    );
    let by_key = McpTestNode::start(McpTestProof::Key, &[]).await;
    assert_eq!(by_key.post(&[("Authorization", "")], &list).await.0, 200);
}

#[tokio::test]
async fn spoiled_messages_are_refused_and_others_served() {
    let node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_input = format!(
        r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"call","arguments":{{"operation":"a/b","input":{deep}}}}}}}"#
    );
    let long = "x".repeat(alknet_mcp::limits::REQUEST_BYTES_MAX + 1);
    for (body, statuses) in [
        ("", 400..=499),
        ("{", 400..=499),
        ("[]", 400..=499),
        (deep.as_str(), 400..=499),
        (deep_input.as_str(), 400..=499),
        (long.as_str(), 413..=413),
    ] {
        let (status, answer) = node.post(&[], body).await;
        let start: String = body.chars().take(20).collect();
        assert!(statuses.contains(&status), "{start}: {status} {answer}");
    }
    let (_, answer) = node
        .post(&[], &message("prompts/get", &json!({"name": "x"})))
        .await;
    assert!(answer.contains("-32601"), "{answer}");
    assert_eq!(called(&node, "demo/seven", json!(null)).await.0, 7);
}

#[tokio::test]
async fn a_client_that_goes_away_is_not_worked_for() {
    let mut node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    let body = call("call", &json!({"operation": "demo/slow"}));
    let stream = node.begin(&[], &body).await;
    node.slow
        .wait_for(|running| *running == 1)
        .await
        .expect("it begins");
    drop(stream);
    node.slow
        .wait_for(|running| *running == 0)
        .await
        .expect("it ends");
}
