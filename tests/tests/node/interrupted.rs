//! Ctrl-C at a command that waits for a node that restarts, or for the answer of a person.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use alknet_test_support::deadline;
use alknet_tests::{CliRunner, binary, eventually};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::scripted_node::{CUT, ScriptedNode, not_found};

/// How long a command may take to end after Ctrl-C. It waits for the node for half an hour, and for the person for ever.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Exit code of docs/command-line.md.
const ABORTED: i32 = 130;

/// A node, and a hub, on which a version waits. Once it was asked to start the version, it answers no status: it has
/// this error.
fn restarting_node(after: Value) -> ScriptedNode {
    let is_started = AtomicBool::new(false);
    ScriptedNode::start(move |operation, _| match operation {
        "update/apply" => {
            is_started.store(true, Ordering::SeqCst);
            Ok(json!({}))
        }
        "update/status" if is_started.load(Ordering::SeqCst) => Err(after.clone()),
        "update/status" => Ok(json!({
            "state": "staged", "version": "1.0.0", "other_version": "1.1.0", "other_sha256": "ab".repeat(32),
            "plan": null,
        })),
        "hub/update_status" => Ok(json!({ "bundle": { "version": "1.1.0" }, "rollout": null })),
        _ => Err(not_found()),
    })
}

/// Sends Ctrl-C to a command, and returns its exit code. `None`: it did not end in time, and was killed.
fn interrupt(mut child: Child) -> Option<i32> {
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("the child was not waited for yet");
    let until = Instant::now() + deadline(ENDS_WITHIN);
    while Instant::now() < until {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status.code();
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it is our child");
    child.wait().expect("it is our child");
    None
}

/// The attack: the node takes the start, and is gone afterwards: it breaks each connection, or never answers.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_command_that_waits_for_a_node_that_restarts() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    for after in [CUT, Value::Null] {
        let node = restarting_node(after.clone());
        let mut update = cli.command(&["update"]);
        update.arg(node.target()).arg("--yes");
        let update = update.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let update = update.expect("it starts");
        eventually("the command asks the node that restarts", || {
            (node.asked_for("update/status") > 1).then_some(())
        });
        assert_eq!(node.asked_for("update/apply"), 1, "{after}");
        assert_eq!(interrupt(update), Some(ABORTED), "{after}");
    }
}

/// The command has had a connection before it asks, so that the signal does not end the process by itself.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_command_at_its_question() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let node = restarting_node(CUT);
    for words in [&["update"][..], &["update", "--workers"], &["rollback"]] {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let input = pty.slave.try_clone().expect("a descriptor");
        let mut command = Command::new(binary());
        command
            .args(words)
            .arg(node.target())
            .arg("--state")
            .arg(cli.state())
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(pty.slave))
            .stderr(Stdio::null());
        let child = command.spawn().expect("the binary can be started");
        // From here on only the command has this side of the terminal.
        drop(command);
        let mut shown = Vec::new();
        let mut terminal = File::from(pty.master);
        while !shown.ends_with(b"[y/N] ") {
            let mut byte = [0];
            let read = terminal.read_exact(&mut byte);
            let text = String::from_utf8_lossy(&shown);
            read.unwrap_or_else(|error| panic!("{words:?}: no question: {error}: {text}"));
            shown.extend(byte);
        }
        assert_eq!(interrupt(child), Some(ABORTED), "{words:?}");
    }
    for operation in ["update/apply", "update/rollback", "hub/update"] {
        assert_eq!(node.asked_for(operation), 0, "{operation}");
    }
}
