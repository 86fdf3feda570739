//! A root directory of the worker's own, with nothing in it but what the host bound there.

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

/// Room of the root itself: for the names of what is bound, and nothing else.
const SETTINGS: &[(&str, &str)] = &[("size", "64k"), ("nr_inodes", "64"), ("mode", "0555")];
/// No programs, devices or set-user-ID files, anywhere in a worker's root.
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

/// Makes the root and moves into it. Until the last step succeeds the old root is still the root.
pub(crate) fn empty(binds: &[Bind]) -> Result<(), RootError> {
    // What is mounted from here on is visible to the worker only.
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
    // On top of the root: no folder has to exist for it, not even in an empty chroot. Paths that
    // begin at the root go on meaning the old one until the pivot.
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

/// Below the current folder, which is the new root.
fn bind(bind: &Bind) -> Result<(), RootError> {
    let target = bind.name.as_str();
    mkdir(target, Mode::from_raw_mode(0o555)).map_err(at("make a folder in the root"))?;
    mount_bind(bind.source.as_str(), target).map_err(at("bind a folder"))?;
    // What the mount was locked to outside must be said again, or the kernel refuses.
    let mut flags = MountFlags::BIND | LOCKED | kept(target)?;
    if !bind.writable {
        flags |= MountFlags::RDONLY;
    }
    mount_remount(target, flags, "").map_err(at("lock a bound folder"))
}

/// Times of access, and read-only, as the folder's mount has them.
fn kept(target: &str) -> Result<MountFlags, RootError> {
    let has = statvfs(target)
        .map_err(at("look at a bound folder"))?
        .f_flag;
    let pairs = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let kept = pairs
        .into_iter()
        .filter(|(has_it, _)| has.contains(*has_it));
    Ok(kept.fold(MountFlags::empty(), |flags, (_, flag)| flags | flag))
}

/// Makes the current folder the root.
fn change_root() -> Result<(), RootError> {
    // The same folder twice, as in pivot_root(2): the old root lies on the new one until it is
    // unmounted.
    match pivot_root(".", ".") {
        Ok(()) => {
            unmount(".", UnmountFlags::DETACH).map_err(at("let go of the old root"))?;
        }
        // The kernel's own first file system (an initramfs) cannot be unmounted. It stays below,
        // where no path leads: the worker keeps no descriptor of it and no right to change roots.
        Err(Errno::INVAL) => chroot(".").map_err(at("change the root"))?,
        Err(errno) => return Err(at("pivot to the root")(errno)),
    }
    chdir("/").map_err(at("enter the new root"))
}
