//! Lists block devices, and mounts their volumes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{FileSystem, SourcePaths};

/// Most block devices that are read. No supported machine has more.
const DEVICES_MAX: usize = 256;
/// Linux 5.10 and later follow no symbolic link at such a mount. Earlier ones ignore the flag.
const NO_LINKS: MsFlags = MsFlags::from_bits_retain(libc::MS_NOSYMFOLLOW);

/// Gives access to the files of volumes.
pub trait Mounter {
    /// Makes the files of `device` accessible, at `at` if a mount point is needed.
    ///
    /// # Errors
    /// Errors of the kernel.
    fn mount(&self, device: &Path, file_system: FileSystem, at: &Path) -> io::Result<Mounted>;

    /// The same for writing. What was written is on the device after the returned value is dropped.
    ///
    /// # Errors
    /// Errors of the kernel, or the device cannot be written.
    fn mount_writable(
        &self,
        device: &Path,
        file_system: FileSystem,
        at: &Path,
    ) -> io::Result<Mounted>;
}

/// A volume whose files are accessible until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    root: PathBuf,
    unmount: bool,
}

impl Mounted {
    /// A directory that already has the files.
    #[must_use]
    pub fn directory(root: PathBuf) -> Self {
        Self {
            root,
            unmount: false,
        }
    }

    /// The root of the files.
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
        // Unmounted at once, so that what was written is on the disk. Detached if a pulled medium
        // or another process prevents that.
        let now = umount2(&self.root, MntFlags::empty());
        if let Err(error) = now.or_else(|_| umount2(&self.root, MntFlags::MNT_DETACH)) {
            tracing::warn!(at = %self.root.display(), %error, "a volume stays mounted");
        }
    }
}

/// Mounts with the kernel's own file systems, without devices, set-uid bits or programs. The kernel follows no symbolic
/// link of such a volume.
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
        // A foreign medium must not bring devices or programs.
        let flags = flags | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let flags = flags | NO_LINKS;
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

/// Names of block devices that are not empty. A partition that starts where its disk starts is left
/// out.
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
    // The folder is not ordered, but the choice of the medium must be the same at each start.
    names.sort_unstable();
    // Each device is opened and read, and a machine with many disks should still start in time.
    names.truncate(DEVICES_MAX);
    names
}

/// Whether this is a drive without a medium, or an unused loop device.
fn is_empty(device: &Path) -> bool {
    fs::read_to_string(device.join("size")).is_ok_and(|size| size.trim() == "0")
}

/// Whether this partition starts where its disk starts. The first bytes of a FAT volume without a
/// partition table can look like such a table. The volume's files are then found on the disk, which
/// has no `start`.
fn is_its_disk(device: &Path) -> bool {
    fs::read_to_string(device.join("start")).is_ok_and(|start| start.trim() == "0")
}
