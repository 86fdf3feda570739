//! Frees the memory of killed workers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use super::worker::WorkerProcess;
use crate::limits::{KILLED_TABLES_MAX, RELEASES_MAX};
use crate::sys::{ProcessMemory, release_killed};

/// A thread that frees the memory of killed workers, which themselves would first have to get a processor. It is not the
/// supervisor's: how long it takes depends on what a worker has mapped, and meanwhile the limits of others are kept.
#[derive(Debug)]
pub(super) struct MemoryReleaser {
    killed: SyncSender<KilledProcess>,
}

#[derive(Debug)]
struct KilledProcess {
    memory: Arc<ProcessMemory>,
    pidfd: OwnedFd,
}

impl MemoryReleaser {
    pub(super) fn start() -> io::Result<Self> {
        let (killed, queue) = sync_channel::<KilledProcess>(RELEASES_MAX);
        let work = move || {
            for process in queue {
                if is_quick(&process.memory) {
                    release_killed(&process.pidfd);
                }
            }
        };
        let builder = thread::Builder::new().name("worker-memory".to_owned());
        builder.spawn(work)?;
        Ok(Self { killed })
    }

    /// Frees the memory of a worker that was killed, a moment later. The worker does it itself where that is not possible.
    pub(super) fn release(&self, worker: &WorkerProcess) {
        if let Ok(pidfd) = worker.pidfd().try_clone() {
            let memory = Arc::clone(worker.memory());
            // As many others may wait already.
            let _ = self.killed.try_send(KilledProcess { memory, pidfd });
        }
    }
}

/// Whether a process has so few pages, of its own memory, mapped files, or the page of zeros, that they are unmapped in some
/// tens of milliseconds. The number of its mappings is not read: with the most that a process may have, these take some
/// 140 ms. `false` for one that has ended.
fn is_quick(memory: &ProcessMemory) -> bool {
    let tables = memory.page_table_bytes();
    tables.is_some_and(|bytes| bytes <= KILLED_TABLES_MAX)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_with_little_memory_is_quick() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("it starts");
        let pid = i32::try_from(child.id()).expect("a process id");
        let memory = ProcessMemory::open(pid).expect("it lives");
        assert!(is_quick(&memory));
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert!(!is_quick(&memory));
    }
}
