//! Control groups (cgroup v2): one for the node, beside it one in which the node makes others for its
//! workers.
//!
//! ```text
//! /sys/fs/cgroup            PID 1
//! └── alknet
//!     ├── helper            a child that PID 1 sends out while the vault is locked
//!     ├── node              the node; no limit
//!     └── workers           the node's to divide; of all memory and processor time less than all
//!         └── worker-…      one worker each, made and removed by the node
//! ```
//!
//! The kernel lets the node put a process into a group below `workers` only if the node may write
//! `cgroup.procs` of the nearest group above both, which is `alknet`; and a group that hands controllers
//! on holds no process itself, which is why the node has a group of its own.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::sysinfo::sysinfo;

use crate::{InitError, control::WORKERS_CGROUP, data::NODE_UID};

const ROOT: &str = "/sys/fs/cgroup";
const OURS: &str = "/sys/fs/cgroup/alknet";
const NODE: &str = "/sys/fs/cgroup/alknet/node";
const HELPER: &str = "/sys/fs/cgroup/alknet/helper";
/// Limits of a helper child, which needs memory for one connection and for the program itself.
const HELPER_MEMORY_MAX: &str = "134217728";
const HELPER_PIDS_MAX: &str = "32";
/// Controllers that each level delegates.
const CONTROLLERS: &str = "+memory +cpu +pids";
/// CPU weight of all workers together. The node has 100, so they get half as much if both want
/// processors.
const WORKERS_CPU_WEIGHT: &str = "50";
/// Percentage of the memory that all workers get together. The rest is for the node, PID 1 and the
/// kernel.
const WORKERS_MEMORY_PERCENT: u64 = 75;
/// Maximum number of processes and threads of all workers together.
const WORKERS_PIDS_MAX: &str = "2048";
/// Files of a delegated group that its owner has to write.
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
/// How many times, and with what pause, the removal of a group is tried whose processes have not
/// all ended.
const REMOVALS_MAX: usize = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// Makes the groups. If the kernel has none, workers have less confinement, and the node reports
/// that.
pub(crate) fn prepare() -> Result<(), InitError> {
    delegate_controllers(Path::new(ROOT))?;
    let ours = Path::new(OURS);
    make(ours)?;
    delegate_controllers(ours)?;
    make(Path::new(NODE))?;
    let task = Path::new(HELPER);
    make(task)?;
    set(task, "memory.max", HELPER_MEMORY_MAX)?;
    set(task, "pids.max", HELPER_PIDS_MAX)?;
    let workers = Path::new(WORKERS_CGROUP);
    make(workers)?;
    delegate_controllers(workers)?;
    let memory = memory_bytes().saturating_mul(WORKERS_MEMORY_PERCENT) / 100;
    set(workers, "memory.max", &memory.to_string())?;
    set(workers, "cpu.weight", WORKERS_CPU_WEIGHT)?;
    set(workers, "pids.max", WORKERS_PIDS_MAX)?;
    give_to_node(&ours.join("cgroup.procs"))?;
    give_to_node(workers)?;
    for file in DELEGATED {
        give_to_node(&workers.join(file))?;
    }
    Ok(())
}

/// The file that moves the writing process into the node's group. PID 1 opens it, because the node
/// may not: the kernel checks the rights of the process that opened the file, and not of the one
/// that writes. `None` if the machine has no control groups, or the file cannot be opened, which is
/// logged.
pub(crate) fn node_cgroup() -> Option<File> {
    cgroup_procs(NODE)
}

/// Like `node_cgroup`, for a helper child.
pub(crate) fn helper_cgroup() -> Option<File> {
    cgroup_procs(HELPER)
}

/// Kills every process that a helper child left.
pub(crate) fn clear_helper_task() -> Result<(), InitError> {
    set(Path::new(HELPER), "cgroup.kill", "1")
}

fn cgroup_procs(group: &str) -> Option<File> {
    let file = Path::new(group).join("cgroup.procs");
    let opened = OpenOptions::new().write(true).open(&file);
    opened
        .inspect_err(|error| {
            // The log has said at the start that the machine has no control groups.
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "{} cannot be opened: a process runs without limits", file.display());
            }
        })
        .ok()
}

/// Kills the workers that an earlier node left, and removes their groups.
pub(crate) fn clear_workers() -> Result<(), InitError> {
    let workers = Path::new(WORKERS_CGROUP);
    let left = match fs::read_dir(workers) {
        Ok(left) => left,
        // This machine has no control groups.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(InitError::at("look into", workers)(error)),
    };
    for entry in left {
        let path = entry.map_err(InitError::at("look into", workers))?.path();
        if path.is_dir() {
            // cgroup.kill also reaches processes that fork meanwhile (admin-guide/cgroup-v2). A
            // list of process ids would not.
            set(&path, "cgroup.kill", "1")?;
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(group: &Path) -> Result<(), InitError> {
    for _ in 0..REMOVALS_MAX {
        match fs::remove_dir(group) {
            // The kill returns before the processes have ended, and until then the folder is busy.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(REMOVAL_PAUSE);
            }
            outcome => return outcome.map_err(InitError::at("remove", group)),
        }
    }
    let busy = io::ErrorKind::ResourceBusy.into();
    Err(InitError::at("remove", group)(busy))
}

fn make(group: &Path) -> Result<(), InitError> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(InitError::at("make", group)(error))
        }
        _ => Ok(()),
    }
}

fn delegate_controllers(group: &Path) -> Result<(), InitError> {
    set(group, "cgroup.subtree_control", CONTROLLERS)
}

fn set(group: &Path, file: &str, value: &str) -> Result<(), InitError> {
    let path: PathBuf = group.join(file);
    fs::write(&path, value).map_err(InitError::at("write", path))
}

fn give_to_node(path: &Path) -> Result<(), InitError> {
    chown(path, Some(NODE_UID), Some(NODE_UID)).map_err(InitError::at("give away", path))
}

fn memory_bytes() -> u64 {
    // Without the figure there is no limit: a limit that is too small would kill every worker.
    sysinfo().map_or(u64::MAX, |info| info.ram_total())
}
