//! A cgroup (version 2) of one worker.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{DelegatedCgroup, RoleConfig};
use crate::{Gap, Wall};

/// Length of the period that `cpu.max` counts in, microseconds.
const PERIOD_US: u64 = 100_000;
/// How often, and after what pause, a group is removed whose last process is not quite gone.
const REMOVALS_MAX: usize = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(2);

/// The group of one worker. Made before it, removed after it.
#[derive(Debug)]
pub(super) struct WorkerCgroup {
    path: PathBuf,
    folder: OwnedFd,
    /// `cgroup.kill`, open, so that a kill needs no path.
    kill: Option<OwnedFd>,
}

impl WorkerCgroup {
    /// Makes the group and sets its limits. What the kernel does not offer becomes a gap.
    pub(super) fn make(
        parent: &DelegatedCgroup,
        name: &str,
        role: &RoleConfig,
        gaps: &mut Vec<Gap>,
    ) -> io::Result<Self> {
        // Where the controllers are on already, or the host may not switch them on, the files below
        // say so.
        let control = parent.path.join("cgroup.subtree_control");
        for controller in ["+memory", "+cpu", "+pids"] {
            let _ = fs::write(&control, controller);
        }
        let path = parent.path.join(name);
        fs::create_dir(&path)?;
        match Self::limit(&path, role, gaps) {
            Ok((folder, kill)) => Ok(Self { path, folder, kill }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    fn limit(
        path: &Path,
        role: &RoleConfig,
        gaps: &mut Vec<Gap>,
    ) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        let memory = role.memory_bytes.to_string();
        let quota = role.cpu_percent.map_or_else(
            || format!("max {PERIOD_US}"),
            |percent| format!("{} {PERIOD_US}", u64::from(percent) * PERIOD_US / 100),
        );
        let settings = [
            (Wall::CgroupMemory, "memory.max", memory),
            (Wall::CgroupCpu, "cpu.weight", role.cpu_weight.to_string()),
            (Wall::CgroupCpu, "cpu.max", quota),
            (Wall::CgroupPids, "pids.max", role.pids.to_string()),
        ];
        for (wall, file, value) in settings {
            if let Err(error) = fs::write(path.join(file), value)
                && !gaps.iter().any(|gap| gap.wall == wall)
            {
                gaps.push(Gap::new(wall, format!("{file}: {error}")));
            }
        }
        // A kernel without swap has no such file; the other is as good as its being there.
        let _ = fs::write(path.join("memory.swap.max"), "0");
        let _ = fs::write(path.join("memory.oom.group"), "1");
        let folder = openat(
            CWD,
            path,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let write = OFlags::WRONLY | OFlags::CLOEXEC;
        // Since Linux 5.14; without it the worker is killed by its pidfd alone.
        let kill = openat(&folder, "cgroup.kill", write, Mode::empty()).ok();
        Ok((folder, kill))
    }

    /// Lets what is in it hold so many bytes.
    pub(super) fn set_memory(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.path.join("memory.max"), bytes.to_string())
    }

    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Kills everything in it.
    pub(super) fn kill(&self) {
        if let Some(kill) = &self.kill {
            // What is in it is being killed by its pidfd as well.
            let _ = rustix::io::write(kill, b"1");
        }
    }

    /// Whether the kernel killed something in it for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        // Where the file cannot be read, memory is not held to be the cause.
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count != "0")
    }

    /// Removes the group of a worker that has been collected. For a thread that may wait.
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

/// The gaps where there is no group at all.
pub(super) fn none(why: &str) -> [Gap; 3] {
    [Wall::CgroupCpu, Wall::CgroupMemory, Wall::CgroupPids].map(|wall| Gap::new(wall, why))
}
