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
/// What a child on a helper task may have: one connection, and the program itself.
const HELPER_MEMORY_MAX: &str = "134217728";
const HELPER_PIDS_MAX: &str = "32";
/// What is handed on at each level.
const CONTROLLERS: &str = "+memory +cpu +pids";
/// Share of the processors that all workers get together where the node, which has 100, wants them too.
const WORKERS_CPU_WEIGHT: &str = "50";
/// Part of the memory that all workers get together: the rest is the node's, PID 1's and the kernel's.
const WORKERS_MEMORY_PERCENT: u64 = 75;
/// Processes and threads of all workers together.
const WORKERS_PIDS_MAX: &str = "2048";
/// Files of a delegated group that the process it is delegated to has to write.
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
/// How often, and after what pause, a group is removed whose processes are not quite gone.
const REMOVALS_MAX: usize = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// Makes the groups. Where the kernel has none, workers have fewer walls, which the node says.
pub(crate) fn prepare() -> Result<(), InitError> {
    hand_on(Path::new(ROOT))?;
    let ours = Path::new(OURS);
    make(ours)?;
    hand_on(ours)?;
    make(Path::new(NODE))?;
    let task = Path::new(HELPER);
    make(task)?;
    set(task, "memory.max", HELPER_MEMORY_MAX)?;
    set(task, "pids.max", HELPER_PIDS_MAX)?;
    let workers = Path::new(WORKERS_CGROUP);
    make(workers)?;
    hand_on(workers)?;
    let memory = memory_bytes().saturating_mul(WORKERS_MEMORY_PERCENT) / 100;
    set(workers, "memory.max", &memory.to_string())?;
    set(workers, "cpu.weight", WORKERS_CPU_WEIGHT)?;
    set(workers, "pids.max", WORKERS_PIDS_MAX)?;
    give(&ours.join("cgroup.procs"))?;
    give(workers)?;
    for file in DELEGATED {
        give(&workers.join(file))?;
    }
    Ok(())
}

/// The file that moves the process that writes to it into the node's group. Opened here, because the node may not
/// open it: the kernel checks the rights of the process that opened the file, not of the one that writes.
pub(crate) fn node_cgroup() -> io::Result<File> {
    cgroup_procs(NODE)
}

/// The same for a child on a helper task.
pub(crate) fn helper_cgroup() -> io::Result<File> {
    cgroup_procs(HELPER)
}

/// Ends whatever a child on a helper task left.
pub(crate) fn clear_helper_task() -> Result<(), InitError> {
    set(Path::new(HELPER), "cgroup.kill", "1")
}

fn cgroup_procs(group: &str) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .open(Path::new(group).join("cgroup.procs"))
}

/// Ends what an earlier node left behind, and removes its groups.
pub(crate) fn clear_workers() -> Result<(), InitError> {
    let workers = Path::new(WORKERS_CGROUP);
    let left = match fs::read_dir(workers) {
        Ok(left) => left,
        // There are no groups on this machine.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(InitError::at("look into", workers)(error)),
    };
    for entry in left {
        let path = entry.map_err(InitError::at("look into", workers))?.path();
        if path.is_dir() {
            // cgroup.kill also reaches processes that fork meanwhile (admin-guide/cgroup-v2); a list of PIDs would
            // not.
            set(&path, "cgroup.kill", "1")?;
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(group: &Path) -> Result<(), InitError> {
    for _ in 0..REMOVALS_MAX {
        match fs::remove_dir(group) {
            // The kill returns before the processes are gone; until then the folder is busy.
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

fn hand_on(group: &Path) -> Result<(), InitError> {
    set(group, "cgroup.subtree_control", CONTROLLERS)
}

fn set(group: &Path, file: &str, value: &str) -> Result<(), InitError> {
    let path: PathBuf = group.join(file);
    fs::write(&path, value).map_err(InitError::at("write", path))
}

fn give(path: &Path) -> Result<(), InitError> {
    chown(path, Some(NODE_UID), Some(NODE_UID)).map_err(InitError::at("give away", path))
}

fn memory_bytes() -> u64 {
    // Without the figure there is no limit: one that is too small would end every worker.
    sysinfo().map_or(u64::MAX, |info| info.ram_total())
}
