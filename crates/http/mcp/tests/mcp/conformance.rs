//! The protocol's own suite, against a node whose operations are what it looks for. What it asks for and
//! the node does not have is in `conformance.yml`, each with the reason.

use std::process::Stdio;

use crate::fixtures::SUITE;
use crate::kits::{folder, node_program};
use crate::node::{McpTestNode, McpTestProof};

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_fails_where_it_should_and_nowhere_else() {
    let node = McpTestNode::start(McpTestProof::Key, &SUITE).await;
    let results = tempfile::tempdir().expect("a folder");
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mcp");
    let suite = folder("ALKNET_TEST_MCP_NODE")
        .join("node_modules/@modelcontextprotocol/conformance/dist/index.js");
    let output = node_program()
        .arg("--import")
        .arg(format!("{tests}/clients/older_node.mjs"))
        .arg(suite)
        .args(["server", "--suite", "all", "--url", &node.url()])
        .arg("--expected-failures")
        .arg(format!("{tests}/conformance.yml"))
        .current_dir(results.path())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("node runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    println!("{text}");
}
