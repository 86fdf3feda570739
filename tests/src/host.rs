//! The node on this host: `alknet serve`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use alknet_test_support::skipped_whole;
use serde_json::Value;

use crate::cli::{CliOutput, CliRunner};

/// A node that the binary serves. It is ended on drop.
#[derive(Debug)]
pub struct HostNode {
    child: Child,
    target: String,
    iroh: Option<String>,
    admin: CliRunner,
    state: PathBuf,
}

impl HostNode {
    /// Starts it on a free port of 127.0.0.1 with its state in `state`.
    ///
    /// # Panics
    /// It does not report that it serves.
    pub fn start(state: &Path, admin: &CliRunner) -> Self {
        Self::start_with(state, admin, None)
    }

    /// The same with a configuration file.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with(state: &Path, admin: &CliRunner, config: Option<&Path>) -> Self {
        Self::start_at(state, admin, config, 0)
    }

    /// The same inside `folder`, with the name of a configuration file there.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_in(folder: &Path, name: &str, state: &Path, admin: &CliRunner) -> Self {
        let mut command = serves(state, admin, Some(Path::new(name)), 0);
        command.current_dir(folder);
        Self::started(command, state, admin)
    }

    /// The same on this port. 0 means a free port.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_at(state: &Path, admin: &CliRunner, config: Option<&Path>, port: u16) -> Self {
        Self::started(serves(state, admin, config, port), state, admin)
    }

    /// The same on a machine that seems to the node to have this much memory. Its limits depend on
    /// `/proc/meminfo`, which is the test's file in a mount namespace of the node. Only root can
    /// make a namespace: otherwise there is no node, and the test is recorded as skipped.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_on(
        memory_bytes: u64,
        state: &Path,
        admin: &CliRunner,
        config: Option<&Path>,
    ) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped_whole("root", "no mount namespace can be made");
            return None;
        }
        let says = state.with_extension("meminfo");
        let kib = memory_bytes >> 10;
        let text = ["MemTotal", "MemFree", "MemAvailable"].map(|it| format!("{it}: {kib} kB\n"));
        fs::write(&says, text.concat()).expect("the folder is ours");
        let serves = serves(state, admin, config, 0);
        let command = beside_mount("mount --bind \"$0\" /proc/meminfo", &says, &serves);
        Some(Self::started(command, state, admin))
    }

    /// The same with the state directory on a new file system of so many bytes and inodes, in a mount namespace of the
    /// node. `/proc/PID/root` below [`pid`](Self::pid) leads to its files. Only root can make a namespace: otherwise
    /// there is no node, and the test is recorded as skipped.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_on_disk(
        (bytes, inodes): (u64, u64),
        state: &Path,
        admin: &CliRunner,
        config: Option<&Path>,
    ) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped_whole("root", "no mount namespace can be made");
            return None;
        }
        fs::create_dir_all(state).expect("the folder is ours");
        let mount =
            format!("mount -t tmpfs -o size={bytes},nr_inodes={inodes},mode=0700 none \"$0\"");
        let command = beside_mount(&mount, state, &serves(state, admin, config, 0));
        Some(Self::started(command, state, admin))
    }

    /// The same with so many files that the node may have open.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_with_files(
        files: u64,
        state: &Path,
        admin: &CliRunner,
        config: Option<&Path>,
    ) -> Self {
        let serves = serves(state, admin, config, 0);
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile={files}:{files}"))
            .arg(serves.get_program())
            .args(serves.get_args())
            .stdin(Stdio::null());
        Self::started(command, state, admin)
    }

    /// The same with an allocator that returns freed memory to the kernel at once, so that the resident memory of the
    /// node is what the node uses.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_without_free_memory(
        state: &Path,
        admin: &CliRunner,
        config: Option<&Path>,
    ) -> Self {
        let mut command = serves(state, admin, config, 0);
        command.env("MIMALLOC_PURGE_DELAY", "0");
        Self::started(command, state, admin)
    }

    fn started(command: Command, state: &Path, admin: &CliRunner) -> Self {
        let (child, value) = serve(command);
        Self {
            child,
            target: value["target"].as_str().unwrap_or_default().to_owned(),
            iroh: value["iroh"].as_str().map(str::to_owned),
            admin: admin.clone(),
            state: state.to_owned(),
        }
    }

    /// The target in the form for the command line.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The same for iroh, if it is served.
    pub fn iroh(&self) -> Option<&str> {
        self.iroh.as_deref()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Calls an operation as administrator.
    ///
    /// # Panics
    /// The call fails.
    pub fn call(&self, operation: &str, input: &Value) -> Value {
        self.try_call(operation, input).json()
    }

    /// The same, but may fail.
    pub fn try_call(&self, operation: &str, input: &Value) -> CliOutput {
        self.admin.call(&self.target, operation, input, &[])
    }
}

/// The command that serves.
fn serves(state: &Path, admin: &CliRunner, config: Option<&Path>, port: u16) -> Command {
    let node = CliRunner::new(state.to_owned());
    let mut command = node.command(&["serve", "--listen", "127.0.0.1"]);
    command.args(["--port", &port.to_string()]);
    command.args(["--admin", &admin.identity()]);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command
}

/// The command in a mount namespace of its own, after `mount`, in which `$0` is this path.
fn beside_mount(mount: &str, path: &Path, serves: &Command) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        // The shell's last program replaces the shell, so the process becomes the node.
        .arg(format!("{mount} && exec \"$@\""))
        .arg(path)
        .arg(serves.get_program())
        .args(serves.get_args())
        .stdin(Stdio::null());
    command
}

/// Starts `alknet serve --json` and returns the line that reports its address, with its `target`.
///
/// # Panics
/// It does not print this line.
pub fn serve(mut command: Command) -> (Child, Value) {
    command.stdout(Stdio::piped());
    let mut child = command.spawn().expect("the binary can be started");
    let mut line = String::new();
    let output = child.stdout.take().expect("it was asked for above");
    BufReader::new(output)
        .read_line(&mut line)
        .expect("it says where it serves");
    let said: Value = serde_json::from_str(&line).unwrap_or_default();
    assert!(said["target"].is_string(), "no target: {line:?}");
    (child, said)
}

impl Drop for HostNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
