//! The NoCloud data source: a volume labelled `cidata` or `CIDATA` with `meta-data` and
//! `user-data`, as cloud-init defines it. `user-data` holds our TOML document.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::label::{FileSystem, volume_label};
use crate::{Document, Paths, Problem, ProvisioningError, Source, file};

/// Most block devices looked at; more than any machine this runs on has.
const DEVICES_MAX: usize = 256;

/// Looks into volumes.
pub trait Mounter {
    /// Makes the content of `device` visible, at `at` if it has to be anywhere.
    ///
    /// # Errors
    /// Those of the kernel.
    fn mount(&self, device: &Path, file_system: FileSystem, at: &Path) -> io::Result<Mounted>;
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
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.unmount {
            return;
        }
        // Detached, so that a medium pulled meanwhile cannot keep it.
        if let Err(error) = umount2(&self.root, MntFlags::MNT_DETACH) {
            tracing::warn!(at = %self.root.display(), %error, "a volume stays mounted");
        }
    }
}

/// Mounts with the kernel's own file systems: read-only, no devices, no set-uid, no programs.
#[derive(Clone, Copy, Debug)]
pub struct KernelMounter;

impl Mounter for KernelMounter {
    fn mount(&self, device: &Path, file_system: FileSystem, at: &Path) -> io::Result<Mounted> {
        fs::create_dir_all(at)?;
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let kind = Some(file_system.kernel_name());
        mount(Some(device), at, kind, flags, None::<&str>)?;
        Ok(Mounted {
            root: at.to_owned(),
            unmount: true,
        })
    }
}

/// The document of the first complete NoCloud volume, in the order of device names.
pub(crate) fn find(
    paths: &Paths,
    mounter: &dyn Mounter,
    problems: &mut Vec<Problem>,
) -> Option<Document> {
    devices(paths).into_iter().find_map(|name| {
        let device = paths.dev.join(name.replace('!', "/"));
        let file_system = labelled_cidata(&device)?;
        match read_volume(&device, file_system, paths, mounter, problems) {
            Ok(bytes) => bytes.map(|bytes| Document {
                source: Source::NoCloud { device: name },
                bytes,
            }),
            Err(error) => {
                problems.push(Problem::new(
                    "provisioning-unreadable",
                    format!("nocloud ({name}): {error}"),
                    "write the NoCloud volume anew",
                ));
                None
            }
        }
    })
}

/// Names of block devices that have a size.
fn devices(paths: &Paths) -> Vec<String> {
    let Ok(entries) = fs::read_dir(&paths.block_class) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !is_empty(&paths.block_class.join(name)))
        .collect();
    names.sort_unstable();
    names.truncate(DEVICES_MAX);
    names
}

/// A drive without a medium, an unused loop device.
fn is_empty(device: &Path) -> bool {
    fs::read_to_string(device.join("size")).is_ok_and(|size| size.trim() == "0")
}

fn labelled_cidata(device: &Path) -> Option<FileSystem> {
    let mut opened = file::open(device).ok()?;
    let kind = opened.metadata().ok()?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return None;
    }
    // A device that cannot be read is no medium; whoever needs it will say so.
    let found = volume_label(&mut opened).ok()??;
    matches!(found.label.as_str(), "cidata" | "CIDATA").then_some(found.file_system)
}

fn read_volume(
    device: &Path,
    file_system: FileSystem,
    paths: &Paths,
    mounter: &dyn Mounter,
    problems: &mut Vec<Problem>,
) -> Result<Option<Vec<u8>>, ProvisioningError> {
    let mounted = mounter
        .mount(device, file_system, &paths.mount_point)
        .map_err(|source| ProvisioningError::Mount {
            device: device.to_owned(),
            source,
        })?;
    let meta_data = file::read_bounded(&mounted.root.join("meta-data"))?;
    let user_data = file::read_bounded(&mounted.root.join("user-data"))?;
    for (name, found) in [("meta-data", &meta_data), ("user-data", &user_data)] {
        if found.is_none() {
            problems.push(Problem::new(
                "nocloud-incomplete",
                format!(
                    "{}: the NoCloud volume has no {name} and is not used",
                    device.display()
                ),
                format!("add {name}; both files must be there, meta-data may be empty"),
            ));
        }
    }
    for name in ["network-config", "vendor-data"] {
        if mounted.root.join(name).symlink_metadata().is_ok() {
            problems.push(Problem::new(
                "nocloud-ignored",
                format!("{}: {name} is not read", device.display()),
                "put its settings into user-data (docs/configuration.md)",
            ));
        }
    }
    Ok(meta_data.and(user_data))
}
