//! Processes that a benchmark starts and has to end.

use std::process::{Child, ChildStdout, ExitStatus};

use alknet_tasks::failure::{Result, TaskError};

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

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // It may have ended by itself, which is just as well.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
