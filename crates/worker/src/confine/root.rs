//! The root directory of a worker, which holds only the folders that the host bound there.

use std::fmt;
use std::os::fd::AsFd;

use rustix::fs::{CWD, Mode, StatVfsMountFlags, mkdir, statvfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_change,
    mount_remount, move_mount, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use crate::Bind;

/// Size of the root: for the names of bound folders only.
const SETTINGS: &[(&str, &str)] = &[("size", "64k"), ("nr_inodes", "64"), ("mode", "0555")];
/// Flags of every mount in a worker's root: no programs, devices or set-user-ID files.
const LOCKED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// A step that the kernel refused.
#[derive(Debug)]
pub(crate) struct RootError {
    step: &'static str,
    errno: Errno,
}

impl fmt::Display for RootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.step, self.errno)
    }
}

fn at(step: &'static str) -> impl Fn(Errno) -> RootError {
    move |errno| RootError { step, errno }
}

/// Makes the root and enters it. Until the last step succeeds the old root stays in force.
pub(crate) fn empty(binds: &[Bind]) -> Result<(), RootError> {
    // Mounts from here on are visible to the worker only.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(at("part from the mounts outside"))?;
    let filesystem =
        fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(at("open a file system"))?;
    for (key, value) in SETTINGS {
        fsconfig_set_string(filesystem.as_fd(), *key, *value)
            .map_err(at("size the file system"))?;
    }
    fsconfig_create(filesystem.as_fd()).map_err(at("create the file system"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(
        filesystem.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )
    .map_err(at("mount the file system"))?;
    // The mount goes on top of the root: no folder has to exist for it, not even in an empty chroot. Absolute paths
    // mean the old root until the pivot.
    let from_here = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root.as_fd(), "", CWD, "/", from_here).map_err(at("place the root"))?;
    fchdir(root.as_fd()).map_err(at("enter the root"))?;
    for one in binds {
        bind(one)?;
    }
    change_root()?;
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | LOCKED, "")
        .map_err(at("make the root read-only"))
}

/// Binds a folder below the current one, which is the new root.
fn bind(bind: &Bind) -> Result<(), RootError> {
    let target = bind.name.as_str();
    mkdir(target, Mode::from_raw_mode(0o555)).map_err(at("make a folder in the root"))?;
    mount_bind(bind.source.as_str(), target).map_err(at("bind a folder"))?;
    // The flags that locked the mount outside must be given again, or the kernel refuses the remount
    // (mount_namespaces(7)).
    let mut flags = MountFlags::BIND | LOCKED | inherited_flags(target)?;
    if !bind.writable {
        flags |= MountFlags::RDONLY;
    }
    mount_remount(target, flags, "").map_err(at("lock a bound folder"))
}

/// The flags for access times and read-only of the folder's mount.
fn inherited_flags(target: &str) -> Result<MountFlags, RootError> {
    let has = statvfs(target)
        .map_err(at("look at a bound folder"))?
        .f_flag;
    let pairs = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let inherited_flags = pairs
        .into_iter()
        .filter(|(has_it, _)| has.contains(*has_it));
    Ok(inherited_flags.fold(MountFlags::empty(), |flags, (_, flag)| flags | flag))
}

/// Makes the current folder the root.
fn change_root() -> Result<(), RootError> {
    // Both arguments are the same folder, as in pivot_root(2): the old root is on top of the new one until it is
    // unmounted.
    match pivot_root(".", ".") {
        Ok(()) => {
            unmount(".", UnmountFlags::DETACH).map_err(at("let go of the old root"))?;
        }
        // The kernel's own first file system (an initramfs) cannot be unmounted. It stays below, where no path leads:
        // the worker has no descriptor of it and no right to change roots.
        Err(Errno::INVAL) => chroot(".").map_err(at("change the root"))?,
        Err(errno) => return Err(at("pivot to the root")(errno)),
    }
    chdir("/").map_err(at("enter the new root"))
}
