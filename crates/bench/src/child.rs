//! Processes that a benchmark starts and has to end.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::node::ReachableNode;

/// A process that is ended and waited for when this is dropped.
pub(crate) struct ChildGuard(Child);

impl ChildGuard {
    /// Takes the process over.
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    /// The pipe from the process, if there is one and it was not taken before.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// How the process ended, if it has.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.0.try_wait();
        ended.map_err(TaskError::io("wait for a process"))
    }
}

/// Starts a node by its command of `serve` with `--json`, and waits until it says where it can be reached.
pub(crate) fn start_node(mut serve: Command) -> Result<(ChildGuard, ReachableNode)> {
    // A full pipe would stop the node, and its log is not read.
    serve
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let child = serve.spawn().map_err(TaskError::io("start the node"))?;
    let mut child = ChildGuard::new(child);
    let mut line = String::new();
    if let Some(said) = child.take_stdout() {
        let read = BufReader::new(said).read_line(&mut line);
        read.map_err(TaskError::io("read what the node says"))?;
    }
    let node = ReachableNode::of_serve(&line).ok_or_else(|| TaskError::Step {
        what: "starting the node".into(),
        how: format!("it says no target: '{}'", line.trim()),
        log: None,
    })?;
    Ok((child, node))
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // It may have ended by itself, which is just as well.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
