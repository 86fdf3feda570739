//! A cgroup (version 2) of one worker.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{DelegatedCgroup, RoleConfig};
use crate::{ConfinementGap, SandboxLayer};

/// Length of the period of `cpu.max`, in microseconds.
const PERIOD_US: u64 = 100_000;
/// Number of attempts, and the pause between them, to remove a group whose last process has not quite gone.
const REMOVALS_MAX: usize = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(2);

/// The cgroup of one worker. It is made before the worker and removed after it.
#[derive(Debug)]
pub(super) struct WorkerCgroup {
    path: PathBuf,
    folder: OwnedFd,
    /// `cgroup.kill`, opened early, so that a kill needs no path.
    kill: Option<OwnedFd>,
}

impl WorkerCgroup {
    /// Makes the group and sets its limits. A limit that the kernel does not offer becomes a gap.
    pub(super) fn make(
        parent: &DelegatedCgroup,
        name: &str,
        role: &RoleConfig,
        gaps: &mut Vec<ConfinementGap>,
    ) -> io::Result<Self> {
        // An error here means that the controllers are on already, or that the host may not switch them on: the
        // writes below show which.
        let control = parent.path.join("cgroup.subtree_control");
        for controller in ["+memory", "+cpu", "+pids"] {
            let _ = fs::write(&control, controller);
        }
        let path = parent.path.join(name);
        fs::create_dir(&path)?;
        match Self::limit(&path, role, gaps) {
            Ok((folder, kill)) => Ok(Self { path, folder, kill }),
            Err(error) => {
                // A group without its limits must not stay behind.
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    fn limit(
        path: &Path,
        role: &RoleConfig,
        gaps: &mut Vec<ConfinementGap>,
    ) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        let memory = role.memory_bytes.to_string();
        let quota = role.cpu_percent.map_or_else(
            || format!("max {PERIOD_US}"),
            |percent| format!("{} {PERIOD_US}", u64::from(percent) * PERIOD_US / 100),
        );
        let settings = [
            (SandboxLayer::CgroupMemory, "memory.max", memory),
            (
                SandboxLayer::CgroupCpu,
                "cpu.weight",
                role.cpu_weight.to_string(),
            ),
            (SandboxLayer::CgroupCpu, "cpu.max", quota),
            (SandboxLayer::CgroupPids, "pids.max", role.pids.to_string()),
        ];
        for (layer, file, value) in settings {
            if let Err(error) = fs::write(path.join(file), value)
                && !gaps.iter().any(|gap| gap.layer == layer)
            {
                gaps.push(ConfinementGap::new(layer, format!("{file}: {error}")));
            }
        }
        // A kernel without swap has no such file, which is as good as the limit.
        let _ = fs::write(path.join("memory.swap.max"), "0");
        let _ = fs::write(path.join("memory.oom.group"), "1");
        let folder = openat(
            CWD,
            path,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let write = OFlags::WRONLY | OFlags::CLOEXEC;
        // The file exists since Linux 5.14. Without it the worker is killed by its pidfd alone.
        let kill = openat(&folder, "cgroup.kill", write, Mode::empty()).ok();
        Ok((folder, kill))
    }

    /// Sets the limit of its memory.
    pub(super) fn set_memory(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.path.join("memory.max"), bytes.to_string())
    }

    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Kills all its processes.
    pub(super) fn kill(&self) {
        if let Some(kill) = &self.kill {
            // An error is ignored, because the worker is being killed by its pidfd as well.
            let _ = rustix::io::write(kill, b"1");
        }
    }

    /// Whether the kernel killed one of its processes for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        // If the file cannot be read, memory does not count as the cause.
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count != "0")
    }

    /// Removes the group of a worker that was collected. For a thread that may wait.
    pub(super) fn remove(self) {
        for _ in 0..REMOVALS_MAX {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(REMOVAL_PAUSE);
                }
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) => {
                    let group = self.path.display();
                    tracing::warn!(%group, %error, "a worker's cgroup could not be removed");
                    return;
                }
            }
        }
        tracing::warn!(group = %self.path.display(), "a worker's cgroup could not be removed");
    }
}

/// The gaps of a worker without a cgroup.
pub(super) fn none(why: &str) -> [ConfinementGap; 3] {
    [
        SandboxLayer::CgroupCpu,
        SandboxLayer::CgroupMemory,
        SandboxLayer::CgroupPids,
    ]
    .map(|layer| ConfinementGap::new(layer, why))
}
