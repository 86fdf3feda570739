//! Clients made with the protocol's own kits.

use std::path::PathBuf;
use std::process::Output;

use tokio::process::Command;

use crate::node::{ADMIN, McpTestNode, McpTestProof};

/// Where `cargo xtask test` put something.
pub(crate) fn folder(variable: &str) -> PathBuf {
    let folder = std::env::var_os(variable);
    folder
        .unwrap_or_else(|| panic!("{variable} names a folder; cargo xtask test sets it"))
        .into()
}

fn script(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/mcp/clients", name]
        .iter()
        .collect()
}

/// Python with the packages of a folder, and with no others.
pub(crate) fn python(variable: &str, name: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg("-S").arg(script(name));
    command
        .env("PYTHONPATH", folder(variable))
        .kill_on_drop(true);
    command
}

pub(crate) fn node_program() -> Command {
    let mut command = Command::new("node");
    command.kill_on_drop(true);
    command
}

/// A script of ours for Node. Node looks for packages beside a script, so an argument names their folder.
pub(crate) fn node_script(name: &str) -> Command {
    let mut command = node_program();
    command
        .arg(script(name))
        .arg(folder("ALKNET_TEST_MCP_NODE"));
    command
}

async fn run(mut command: Command) {
    let node = McpTestNode::start(McpTestProof::Nothing, &["demo/add", "test/image_content"]).await;
    let output = command.args([&node.url(), ADMIN]).output().await;
    says_fine(&output.expect("it runs"));
}

fn says_fine(output: &Output) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        output.status.success() && text.trim().ends_with("fine"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn python_newest() {
    run(python("ALKNET_TEST_MCP_PYTHON", "newest.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_of_2025() {
    run(python("ALKNET_TEST_MCP_PYTHON_OLD", "older.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_newest() {
    run(node_script("newest.mjs")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript_of_2025() {
    run(node_script("older.mjs")).await;
}

/// The command of docs/mcp.md, for this node.
#[tokio::test(flavor = "multi_thread")]
async fn curl_as_the_page_says() {
    let page = include_str!("../../../../../docs/mcp.md");
    let command = page.lines().find(|line| line.starts_with("curl "));
    let command = command.expect("the page has it");
    assert!(command.ends_with("https://node.example/mcp"));
    let node = McpTestNode::start(McpTestProof::Nothing, &[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let header = format!("Authorization: Bearer {ADMIN}\n");
    std::fs::write(folder.path().join("node.header"), header).expect("it is ours");
    let output = Command::new("sh")
        .arg("-c")
        .arg(command.replace("https://node.example/mcp", &node.url()))
        .current_dir(folder.path())
        .output()
        .await
        .expect("it runs");
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && answer.contains("/demo/add"),
        "{output:?}"
    );
}
