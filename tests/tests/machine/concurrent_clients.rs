//! Connections of other clients that follow the log during a failure: over the call protocol, as
//! events over HTTP, and over WebSocket with the documentation's module.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command};

use alknet_tests::tools::{start_with_json, variable};
use alknet_tests::{CliSubscription, CurlEvents, MachineNode, WebNode};
use serde_json::{Value, json};

/// Prints each record, for at most five minutes. A lost connection ends the subscription with an
/// error, and so ends the program.
const FOLLOW: &str = r#"import { readFileSync } from "node:fs";
import { Alknet } from "./alknet.mjs";
const { url, token, ws } = JSON.parse(readFileSync(0, "utf8"));
setTimeout(() => process.exit(1), 300_000);
const WebSocket = (await import(ws)).default;
const node = new Alknet(url, { token, WebSocket });
for await (const record of node.subscribe("node/log", { last: 1, follow: true })) {
  console.log(JSON.stringify(record));
}
"#;

/// All of them, each with a subscription.
pub(super) struct ConcurrentClients {
    call: CliSubscription,
    http: CurlEvents,
    websocket: NodeJsSession,
}

impl ConcurrentClients {
    /// Starts them, and waits until each has received something.
    pub(super) fn start(web: &WebNode<MachineNode>) -> Self {
        let follow = json!({ "last": 1, "follow": true });
        let asked = json!({ "operation": "/node/log", "input": follow });
        let mut beside = Self {
            call: web.node.subscribe("node/log", &follow),
            http: web.events(&web.admin, &asked.to_string(), &[]),
            websocket: NodeJsSession::start(web),
        };
        for (name, records) in beside.each() {
            assert!(records.next().is_some(), "{name}: nothing came");
        }
        beside
    }

    /// Each receives a record with this word afterwards, so the node closed none of the
    /// connections.
    pub(super) fn are_reported(&mut self, word: &str) {
        for (name, records) in self.each() {
            assert!(any_contains(records, word), "{name}: the log was cut");
        }
    }

    fn each(&mut self) -> [(&'static str, &mut dyn Iterator<Item = Value>); 3] {
        [
            ("call", &mut self.call),
            ("HTTP", &mut self.http),
            ("WebSocket", &mut self.websocket),
        ]
    }
}

fn any_contains(mut records: impl Iterator<Item = Value>, word: &str) -> bool {
    records.any(|record| record.to_string().contains(word))
}

/// The module in Node. It is ended on drop.
struct NodeJsSession {
    node: Child,
    lines: BufReader<ChildStdout>,
    _folder: tempfile::TempDir,
}

impl NodeJsSession {
    fn start(web: &WebNode<MachineNode>) -> Self {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let module: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../docs/examples/alknet.js"]
            .iter()
            .collect();
        // Node recognises a module by its file name.
        std::fs::copy(module, folder.path().join("alknet.mjs")).expect("the folder is ours");
        let program = folder.path().join("follow.mjs");
        std::fs::write(&program, FOLLOW).expect("the folder is ours");
        let facts = json!({
            "url": format!("wss://{}/alknet/call", web.address()),
            "token": web.admin,
            "ws": format!("{}/wrapper.mjs", variable("ALKNET_TEST_WS")),
        });
        let mut command = Command::new("node");
        command
            .arg("--no-warnings")
            .arg(&program)
            // The machine's certificate is self-signed.
            .env("NODE_TLS_REJECT_UNAUTHORIZED", "0");
        let mut node = start_with_json(&mut command, &facts);
        let lines = BufReader::new(node.stdout.take().expect("it is piped"));
        Self {
            node,
            lines,
            _folder: folder,
        }
    }
}

impl Iterator for NodeJsSession {
    type Item = Value;

    /// The next record. `None` after the last one.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).ok()?;
        (read > 0).then(|| serde_json::from_str(&line).unwrap_or(Value::String(line)))
    }
}

impl Drop for NodeJsSession {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}
