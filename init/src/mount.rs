//! The table of mounts and kernel settings, and standard streams on the console.
//!
//! The root may be an initramfs or a read-only erofs, with or without the folders that LinuxKit
//! adds. Everything that changes lives below `/run` or on the data partition.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sys::stat::Mode,
};

use crate::InitError;

/// One line of the table.
#[derive(Debug)]
struct MountEntry {
    source: &'static str,
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
    when: MountRequirement,
}

/// Whether a missing mount matters.
#[derive(Debug, PartialEq, Eq)]
enum MountRequirement {
    /// The machine cannot work without it.
    Always,
    /// Only if the kernel offers the folder.
    FolderExists,
}

const LOCKED: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

const TABLE: &[MountEntry] = &[
    MountEntry {
        source: "proc",
        target: "/proc",
        fstype: "proc",
        flags: LOCKED,
        data: None,
        when: MountRequirement::Always,
    },
    MountEntry {
        source: "sysfs",
        target: "/sys",
        fstype: "sysfs",
        flags: LOCKED,
        data: None,
        when: MountRequirement::Always,
    },
    MountEntry {
        source: "devtmpfs",
        target: "/dev",
        fstype: "devtmpfs",
        // Device files are the purpose of devtmpfs, so not MS_NODEV.
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: Some("mode=0755"),
        when: MountRequirement::Always,
    },
    MountEntry {
        source: "devpts",
        target: "/dev/pts",
        fstype: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: Some("mode=0620,ptmxmode=0666"),
        when: MountRequirement::Always,
    },
    MountEntry {
        source: "tmpfs",
        target: "/run",
        fstype: "tmpfs",
        flags: LOCKED,
        // Files there use memory, which the node and its workers then lack.
        data: Some("mode=0755,size=25%"),
        when: MountRequirement::Always,
    },
    MountEntry {
        source: "cgroup2",
        target: "/sys/fs/cgroup",
        fstype: "cgroup2",
        flags: LOCKED,
        // Delegated groups cannot change the limits that their parent set (admin-guide/cgroup-v2, "Delegation").
        data: Some("nsdelegate"),
        when: MountRequirement::FolderExists,
    },
    MountEntry {
        source: "efivarfs",
        target: "/sys/firmware/efi/efivars",
        fstype: "efivarfs",
        // Read-only: PID 1 writes no variables, and a stray write can stop firmware.
        flags: LOCKED.union(MsFlags::MS_RDONLY),
        data: None,
        when: MountRequirement::FolderExists,
    },
];

/// Kernel settings. Each path is below `/proc/sys`. A missing one is not an error.
const SETTINGS: &[(&str, &str)] = &[
    // A machine that cannot go on restarts by itself.
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    // Looking for media must not close an open tray.
    ("dev/cdrom/autoclose", "0"),
    // Kernel addresses and messages are for PID 1 only.
    ("kernel/kptr_restrict", "2"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/yama/ptrace_scope", "2"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    // Bytes of datagram buffers that QUIC needs at a gigabit.
    ("net/core/rmem_max", "7500000"),
    ("net/core/wmem_max", "7500000"),
];

/// Mounts the table. Returns the errors of mounts that are not essential.
pub(crate) fn mount_all() -> Result<Vec<InitError>, InitError> {
    let mut failed = Vec::new();
    for entry in TABLE {
        match (mount_one(entry), &entry.when) {
            (Ok(()), _) => {}
            (Err(error), MountRequirement::Always) => return Err(error),
            (Err(error), MountRequirement::FolderExists) => failed.push(error),
        }
    }
    Ok(failed)
}

fn mount_one(entry: &MountEntry) -> Result<(), InitError> {
    let target = Path::new(entry.target);
    if !target.is_dir() {
        if entry.when == MountRequirement::FolderExists {
            return Ok(());
        }
        fs::create_dir(target).map_err(InitError::at("create the folder", target))?;
    }
    let outcome = mount(
        Some(entry.source),
        target,
        Some(entry.fstype),
        entry.flags,
        entry.data,
    );
    match outcome {
        // The kernel mounts /dev itself if the root is a disk.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(InitError::Path {
            what: "mount",
            path: target.into(),
            source: error.into(),
        }),
    }
}

/// Writes every kernel setting.
pub(crate) fn apply_settings() {
    for (name, value) in SETTINGS {
        set(name, value);
    }
}

/// Lets the unprivileged node bind `port` and those above it.
pub(crate) fn allow_port(port: u16) {
    set(
        "net/ipv4/ip_unprivileged_port_start",
        &port.min(1024).to_string(),
    );
}

/// Writes one setting. The kernel omits settings together with the options behind them, so a
/// missing one is no news.
fn set(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name);
    if let Err(error) = fs::write(&path, value) {
        tracing::debug!(setting = name, %error, "not set");
    }
}

/// Puts descriptors 0 to 2 on the console, and keeps descriptor 3 taken, so that only the node's
/// control channel gets it. A machine without a console goes on silently.
pub(crate) fn standard_streams() -> Result<(), InitError> {
    for (path, first, last) in [("/dev/console", 0, 2), ("/dev/null", 3, 3)] {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = open(path, flags, Mode::empty())
            .map_err(|error| InitError::at("open", path)(error.into()))?;
        for fd in first..=last {
            duplicate(&file, fd)?;
        }
        // The file is one of the wanted descriptors already. Dropping it would close that
        // descriptor.
        if (first..=last).contains(&file.as_raw_fd()) {
            std::mem::forget(file);
        }
    }
    Ok(())
}

fn duplicate(file: &OwnedFd, fd: i32) -> Result<(), InitError> {
    // Standard streams stay open in children, but the placeholder at 3 does not.
    let flags = if fd > 2 { libc::O_CLOEXEC } else { 0 };
    if file.as_raw_fd() == fd {
        return Ok(());
    }
    // SAFETY: dup3 takes no memory. Descriptors 0 to 3 belong to this process: PID 1 has just
    // started and opened nothing yet.
    let outcome = unsafe { libc::dup3(file.as_raw_fd(), fd, flags) };
    Errno::result(outcome)
        .map(drop)
        .map_err(|error| InitError::at("place descriptor on", "/dev/console")(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_mounted_here_may_hold_set_user_id_programs() {
        for entry in TABLE {
            assert!(entry.flags.contains(MsFlags::MS_NOSUID), "{}", entry.target);
            assert!(entry.flags.contains(MsFlags::MS_NOEXEC), "{}", entry.target);
        }
    }

    #[test]
    fn only_the_device_folders_hold_devices() {
        for entry in TABLE {
            let devices = !entry.flags.contains(MsFlags::MS_NODEV);
            assert_eq!(
                devices,
                entry.target.starts_with("/dev"),
                "{}",
                entry.target
            );
        }
    }

    #[test]
    fn parents_are_mounted_before_their_children() {
        for (at, entry) in TABLE.iter().enumerate() {
            for later in &TABLE[at..] {
                let inside = Path::new(entry.target).starts_with(later.target);
                assert!(!inside || entry.target == later.target);
            }
        }
    }
}
