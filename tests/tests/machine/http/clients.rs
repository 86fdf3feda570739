//! Clients that are programs: aioquic, the documentation's module in Node, SDKs of the Model Context Protocol, and the
//! command line.

use std::path::PathBuf;
use std::time::Duration;

use alknet_test_support::limited;
use alknet_tests::tools::{client, run_with_json, variable};
use alknet_tests::{CliOutput, TestBench, http3};
use serde_json::{Value, json};

use super::Machine;
use super::gateway::{BODY_BYTES_MAX, body};

/// Longest run of a client.
const DONE_WITHIN: Duration = Duration::from_secs(300);

/// Program that runs the uses of `module.js` with the facts from standard input.
const RUN: &str = r#"import { readFileSync } from "node:fs";
import { use } from "./module.mjs";
import { Alknet, CallError } from "./alknet.mjs";
const facts = JSON.parse(readFileSync(0, "utf8"));
const WebSocket = (await import(facts.ws)).default;
for (const name of await use(Alknet, CallError, facts, { WebSocket })) console.log(name);
process.exit(0);
"#;

/// Number of uses in `module.js`.
pub(super) const USES: usize = 5;

/// Returns the text of a file of the project, by its path from this package.
pub(super) fn text(path: &str) -> String {
    let path = [env!("CARGO_MANIFEST_DIR"), path]
        .iter()
        .collect::<PathBuf>();
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Paths of the documentation's module, and of the uses that the test makes of it.
pub(super) const MODULE: &str = "../docs/examples/alknet.js";
pub(super) const USED: &str = "tests/machine/http/module.js";

/// The input of the module's program.
pub(super) fn facts(web: &Machine) -> Value {
    json!({
        "url": format!("wss://{}/alknet/call", web.address()),
        "token": web.admin,
        "identity": web.node.identity(),
    })
}

pub(super) fn aioquic_speaks_http3(web: &Machine) {
    let bearer = format!("Bearer {}", web.admin);
    let headers = json!({ "authorization": bearer, "content-type": "application/json" });
    let mut events = headers.clone();
    events["accept"] = "text/event-stream".into();
    let info = r#"{"operation":"/node/info"}"#;
    let follow = r#"{"operation":"/node/log","input":{"follow":true,"last":2}}"#;
    let heard = http3(
        web.address(),
        &json!([
            { "method": "GET", "path": "/healthz" },
            { "method": "POST", "path": "/call", "headers": headers, "body": info },
            { "method": "POST", "path": "/call", "body": info },
            { "method": "GET", "path": "/search?q=reboot", "headers": headers },
            { "method": "GET", "path": "/nonsense" },
            { "method": "POST", "path": "/subscribe", "headers": events, "body": follow, "events": 2 },
            // The client gave up the previous stream, and the connection goes on.
            { "method": "GET", "path": "/healthz" },
        ]),
    );
    let statuses: Vec<_> = heard.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [200, 200, 401, 200, 404, 200, 200]);
    assert_eq!(heard[0].body, b"ok\n");
    let answer: Value = serde_json::from_slice(&heard[1].body).expect("JSON");
    assert_eq!(answer["output"]["identity"], web.node.identity());
    assert!(
        heard[5].body.starts_with(b"id: 1\nevent: data\n"),
        "events come"
    );
}

/// The limit is exact to the byte, as over TCP: the node refuses a longer body, and its connection goes on.
pub(super) fn bodies_have_the_same_limit_over_http3(web: &Machine) {
    let bearer = format!("Bearer {}", web.admin);
    let headers = json!({ "authorization": bearer, "content-type": "application/json" });
    let call = |bytes| {
        let body = body(bytes);
        json!({ "method": "POST", "path": "/call", "headers": headers, "body": body })
    };
    let mut told_before = call(BODY_BYTES_MAX + 1);
    told_before["headers"]["content-length"] = (BODY_BYTES_MAX + 1).to_string().into();
    let heard = http3(
        web.address(),
        &json!([
            call(BODY_BYTES_MAX),
            // This request does not announce the length of its body.
            call(BODY_BYTES_MAX + 1),
            told_before,
            call(100),
        ]),
    );
    let statuses: Vec<_> = heard.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [200, 413, 413, 200]);
    let answers: Vec<Value> = heard
        .iter()
        .map(|one| serde_json::from_slice(&one.body).expect("JSON"))
        .collect();
    // Only a call that arrives to its last byte is JSON and has an output.
    for n in [0, 3] {
        let answer = &answers[n];
        assert!(answer["output"].is_object(), "{answer}");
        assert_eq!(heard[n].headers["x-request-id"], answer["request_id"]);
    }
    for answer in &answers[1..3] {
        assert_eq!(answer["error"]["code"], "PAYLOAD_TOO_LARGE", "{answer}");
    }
}

pub(super) fn the_module_works_in_node(web: &Machine) {
    // Node recognises a module by the name of its file.
    let folder = tempfile::tempdir().expect("the temporary directory is writable");
    for (name, content) in [
        ("alknet.mjs", text(MODULE)),
        ("module.mjs", text(USED)),
        ("run.mjs", RUN.to_owned()),
    ] {
        std::fs::write(folder.path().join(name), content).expect("the folder is ours");
    }
    let mut facts = facts(web);
    facts["ws"] = format!("{}/wrapper.mjs", variable("ALKNET_TEST_WS")).into();
    let mut node = limited(DONE_WITHIN, "node");
    node.arg("--no-warnings")
        .arg(folder.path().join("run.mjs"))
        // The machine made its certificate itself, so Node accepts it only without verification.
        .env("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    let output = run_with_json(&mut node, &facts);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{why}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.lines().count(), USES, "{said}");
}

pub(super) fn models_use_it(web: &Machine) {
    let facts = json!({ "url": web.url("/mcp"), "token": web.admin });
    let mut python = limited(DONE_WITHIN, "python3");
    python
        .arg("-S")
        .arg(client("mcp_node.py"))
        .env("PYTHONPATH", variable("ALKNET_TEST_MCP_PYTHON"));
    let mut node = limited(DONE_WITHIN, "node");
    node.arg(client("mcp_node.mjs"))
        .arg(variable("ALKNET_TEST_MCP_NODE"))
        // The machine made its certificate itself, so Node accepts it only without verification.
        .env("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    for kit in [&mut python, &mut node] {
        let output = run_with_json(kit, &facts);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success() && text.contains("fine"), "{text}");
    }
}

pub(super) fn tokens_are_made_listed_and_taken_back(bench: &TestBench, web: &Machine) {
    let token = |verb: &str, more: &[&str]| -> CliOutput {
        let admin = bench.admin();
        let mut command = admin.command(&["token", verb, &web.node.target()]);
        command.args(more);
        admin.run(command)
    };
    let wanted = [
        "--scope",
        "node:read",
        "--expires",
        "1h",
        "--note",
        "the hall",
    ];
    let made = token("make", &wanted).json();
    let text = made["token"].as_str().expect("a token").to_owned();
    let key_id = made["key_id"].as_str().expect("its name").to_owned();
    let info = r#"{"operation":"/node/info"}"#;
    assert_eq!(web.post(&text, "/call", info).status, 200);

    let listed = token("list", &[]);
    assert!(!listed.output.contains(&text[13..]), "no secret is listed");
    let listed = listed.json();
    let all = listed["tokens"].as_array().expect("a list");
    let found = all.iter().find(|one| one["key_id"] == key_id);
    let found = found.unwrap_or_else(|| panic!("no {key_id}: {listed:#}"));
    assert_eq!(
        (&found["note"], &found["source"], &found["scopes"]),
        (&json!("the hall"), &json!("store"), &json!(["node:read"]))
    );
    assert!(found["last_used"].is_string(), "it was used: {found}");

    assert_eq!(token("revoke", &[&key_id]).json()["revoked"], true);
    let told = web.post(&text, "/call", info);
    assert_eq!(
        (told.status, told.code().as_str()),
        (401, "UNAUTHENTICATED")
    );
    assert_eq!(token("revoke", &[&key_id]).code(), "NOT_FOUND");
}
