//! Block devices, and looking into the volumes on them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{FileSystem, SourcePaths};

/// Most block devices looked at; more than any machine this runs on has.
const DEVICES_MAX: usize = 256;

/// Looks into volumes.
pub trait Mounter {
    /// Makes the content of `device` visible, at `at` if it has to be anywhere.
    ///
    /// # Errors
    /// Those of the kernel.
    fn mount(&self, device: &Path, file_system: FileSystem, at: &Path) -> io::Result<Mounted>;

    /// The same for writing. What was written is on the device once the answer is dropped.
    ///
    /// # Errors
    /// Those of the kernel; of a device that cannot be written, too.
    fn mount_writable(
        &self,
        device: &Path,
        file_system: FileSystem,
        at: &Path,
    ) -> io::Result<Mounted>;
}

/// A volume that is visible until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    root: PathBuf,
    unmount: bool,
}

impl Mounted {
    /// A directory that already holds the content.
    #[must_use]
    pub fn directory(root: PathBuf) -> Self {
        Self {
            root,
            unmount: false,
        }
    }

    /// Where the content is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.unmount {
            return;
        }
        // At once, so that what was written is on the disk; detached where a medium that was pulled
        // meanwhile, or another process, holds it.
        let now = umount2(&self.root, MntFlags::empty());
        if let Err(error) = now.or_else(|_| umount2(&self.root, MntFlags::MNT_DETACH)) {
            tracing::warn!(at = %self.root.display(), %error, "a volume stays mounted");
        }
    }
}

/// Mounts with the kernel's own file systems: no devices, no set-uid, no programs.
#[derive(Clone, Copy, Debug)]
pub struct KernelMounter;

impl KernelMounter {
    fn with(
        device: &Path,
        file_system: FileSystem,
        at: &Path,
        flags: MsFlags,
    ) -> io::Result<Mounted> {
        fs::create_dir_all(at)?;
        // A foreign medium brings no devices and no programs.
        let flags = flags | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let kind = Some(file_system.kernel_name());
        mount(Some(device), at, kind, flags, None::<&str>)?;
        Ok(Mounted {
            root: at.to_owned(),
            unmount: true,
        })
    }
}

impl Mounter for KernelMounter {
    fn mount(&self, device: &Path, file_system: FileSystem, at: &Path) -> io::Result<Mounted> {
        Self::with(device, file_system, at, MsFlags::MS_RDONLY)
    }

    fn mount_writable(
        &self,
        device: &Path,
        file_system: FileSystem,
        at: &Path,
    ) -> io::Result<Mounted> {
        Self::with(device, file_system, at, MsFlags::empty())
    }
}

/// Names of block devices that have a size, each place on a disk once.
pub(crate) fn devices(paths: &SourcePaths) -> Vec<String> {
    let Ok(entries) = fs::read_dir(&paths.block_class) else {
        // Without block devices, such as in a container, the other sources still count.
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let device = paths.block_class.join(name);
            !is_empty(&device) && !is_its_disk(&device)
        })
        .collect();
    // The folder has no order of its own, and which medium counts must be the same at each start.
    names.sort_unstable();
    // Each is opened and read, and a machine with many disks should still start in time.
    names.truncate(DEVICES_MAX);
    names
}

/// A drive without a medium, an unused loop device.
fn is_empty(device: &Path) -> bool {
    fs::read_to_string(device.join("size")).is_ok_and(|size| size.trim() == "0")
}

/// A partition that begins where its disk does: the first bytes of a FAT volume without a table of
/// partitions can be read as one. What it holds is found on the disk; a disk itself has no `start`.
fn is_its_disk(device: &Path) -> bool {
    fs::read_to_string(device.join("start")).is_ok_and(|start| start.trim() == "0")
}
