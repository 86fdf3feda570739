//! The command line, as users and scripts use it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use alknet_test_support::deadline;
use serde_json::Value;

use crate::image::binary;
use crate::wait::whole_seconds;

/// Longest wait for one call. Long, because guests may run in emulation.
const CALL_WITHIN: Duration = Duration::from_secs(120);

/// A command that a test waits for is killed after this time. It is longer than any call, and
/// shorter than the silence after which the test runner ends a program without a message.
const COMMAND_WITHIN: Duration = Duration::from_secs(600);

/// The binary with its own state directory.
#[derive(Clone, Debug)]
pub struct CliRunner {
    state: PathBuf,
}

/// The output of a command.
#[derive(Clone, Debug)]
pub struct CliOutput {
    /// Exit status, see `alknet --help`. -1 if a signal ended it.
    pub status: i32,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl CliOutput {
    fn from_output(output: &Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The JSON on standard output.
    ///
    /// # Panics
    /// The command failed or printed something else.
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 0, "{self:?}");
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The error's code: `FORBIDDEN`, `NOT_FOUND` ….
    ///
    /// # Panics
    /// The command succeeded.
    pub fn code(&self) -> String {
        assert_ne!(self.status, 0, "{self:?}");
        let value: Value = serde_json::from_str(self.errors.trim()).unwrap_or_default();
        let code = value.pointer("/error/code").or_else(|| value.get("code"));
        code.and_then(Value::as_str)
            .map_or_else(|| self.errors.clone(), str::to_owned)
    }
}

impl CliRunner {
    /// Uses `state` as the state directory.
    pub fn new(state: PathBuf) -> Self {
        Self { state }
    }

    /// Directory of its key.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its public key, `ed25519:…`.
    ///
    /// # Panics
    /// The command failed.
    pub fn identity(&self) -> String {
        let answer = self.run(self.command(&["identity"]));
        let identity = answer.json()["identity"].as_str().map(str::to_owned);
        identity.unwrap_or_else(|| panic!("no identity: {answer:?}"))
    }

    /// Calls an operation of `target`. `more` are further arguments, such as `--carriage tcp`.
    pub fn call(&self, target: &str, operation: &str, input: &Value, more: &[&str]) -> CliOutput {
        let mut command = self.command(&["call", "--timeout", &whole_seconds(CALL_WITHIN)]);
        command
            .args(more)
            .args([target, operation, &input.to_string()]);
        self.run(command)
    }

    /// Subscribes to an operation of `target`.
    ///
    /// # Panics
    /// The command cannot be started.
    pub fn subscribe(&self, target: &str, operation: &str, input: &Value) -> CliSubscription {
        let mut command = self.command(&["call", "--timeout", &whole_seconds(CALL_WITHIN)]);
        command
            .args([target, operation, &input.to_string()])
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let lines = BufReader::new(child.stdout.take().expect("it was asked for above"));
        CliSubscription { child, lines }
    }

    /// The binary with a verb and `--json`, and this state.
    pub fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(verb)
            .arg("--json")
            .arg("--state")
            .arg(&self.state)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// It cannot be started, or does not end.
    pub fn run(&self, mut command: Command) -> CliOutput {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = piped.spawn().expect("the binary can be started");
        CliOutput::from_output(&output_of(child, &format!("{command:?}")))
    }
}

/// The output of a child until it ends.
fn output_of(child: Child, what: &str) -> Output {
    use nix::sys::signal::{Signal, kill};
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (sends, ended) = mpsc::channel();
    let waits = thread::spawn(move || {
        let output = child.wait_with_output();
        // The receiver may have timed out already.
        sends.send(()).ok();
        output.expect("it is our child")
    });
    let limit = deadline(COMMAND_WITHIN);
    let is_late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
    if is_late {
        // It ends at this moment, or still runs.
        kill(pid, Signal::SIGKILL).ok();
    }
    let output = waits.join().expect("it only waits");
    assert!(
        !is_late,
        "after {limit:?} it had not ended: {what}: {output:?}"
    );
    output
}

/// Runs a command to its end with `input` on its standard input.
///
/// # Panics
/// It cannot be started.
pub fn run_with_input(mut command: Command, input: &str) -> CliOutput {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let child = piped.stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the binary can be started");
    let mut stdin = child.stdin.take().expect("it was asked for above");
    // A command that fails early does not read it.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    CliOutput::from_output(&child.wait_with_output().expect("it is our child"))
}

/// Events of a subscription, one JSON value per line. It is cancelled on drop.
#[derive(Debug)]
pub struct CliSubscription {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl CliSubscription {
    /// Ends it like Ctrl-C, and returns the exit status.
    ///
    /// # Panics
    /// It is no longer a child of this process.
    pub fn interrupt(mut self) -> i32 {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGINT).expect("the child was not waited for yet");
        self.child
            .wait()
            .expect("it is our child")
            .code()
            .unwrap_or(-1)
    }
}

impl Iterator for CliSubscription {
    type Item = Value;

    /// The next event. `None` after the end of the stream.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).ok()?;
        (read > 0).then(|| serde_json::from_str(&line).unwrap_or(Value::String(line)))
    }
}

impl Drop for CliSubscription {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
