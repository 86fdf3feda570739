//! Where an image is written to: a disk that the computer does not use, or a file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::disk_use::refuse_used;
use crate::error::FlashError;
use crate::facts::{DiskFacts, SystemFolders, device_folder, name_of};

/// A disk or a file, opened for writing. Of a disk, no other program can mount or claim any part while it is open.
#[derive(Debug)]
pub struct DiskTarget {
    file: File,
    facts: DiskFacts,
    is_device: bool,
}

impl DiskTarget {
    /// Opens the disk at `path`, if the computer does not use it. Nothing is written.
    ///
    /// # Errors
    /// It is no whole disk, it is read-only, or a part of it is in use.
    pub fn disk(path: &Path, folders: &SystemFolders) -> Result<Self, FlashError> {
        let open = |source| FlashError::Open {
            path: path.to_owned(),
            source,
        };
        let found = fs::metadata(path).map_err(open)?;
        if !found.file_type().is_block_device() {
            return Err(FlashError::NotDisk {
                path: path.to_owned(),
            });
        }
        let facts = usable(folders, found.rdev(), path)?;
        let mut options = OpenOptions::new();
        // On a block device, the kernel refuses O_EXCL if a file system, a volume or another program has claimed a part
        // of it, in whatever way the tables above do not show (open(2)).
        options.read(true).write(true).custom_flags(libc::O_EXCL);
        match options.open(path) {
            Ok(file) => Ok(Self {
                file,
                facts,
                is_device: true,
            }),
            Err(source) => Err(match source.raw_os_error() {
                Some(libc::EBUSY) => FlashError::Busy { disk: facts.name },
                Some(libc::EROFS) => FlashError::ReadOnly { disk: facts.name },
                _ => open(source),
            }),
        }
    }

    /// Opens a regular file, and makes it if it is missing. Its content stays until [`flash`](crate::flash).
    ///
    /// # Errors
    /// The path is something else, or cannot be opened.
    pub fn file(path: &Path) -> Result<Self, FlashError> {
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(FlashError::NotFile {
                path: path.to_owned(),
            });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // A configuration that is placed on the disk may have secrets.
        options.mode(0o600);
        let file = options.open(path).map_err(|source| FlashError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file,
            facts: DiskFacts {
                name: path.display().to_string(),
                bytes: 0,
                model: None,
                serial: None,
                is_read_only: false,
            },
            is_device: false,
        })
    }

    /// What it is.
    #[must_use]
    pub const fn facts(&self) -> &DiskFacts {
        &self.facts
    }

    pub(crate) const fn handle(&self) -> &File {
        &self.file
    }

    pub(crate) const fn is_device(&self) -> bool {
        self.is_device
    }

    /// The error of a write or read.
    pub(crate) fn failed(
        &self,
        what: &'static str,
    ) -> impl FnOnce(io::Error) -> FlashError + use<> {
        let disk = self.facts.name.clone();
        move |source| FlashError::Device { disk, what, source }
    }
}

/// The facts of a whole disk that is not in use.
fn usable(folders: &SystemFolders, device: u64, path: &Path) -> Result<DiskFacts, FlashError> {
    let open = |source| FlashError::Open {
        path: path.to_owned(),
        source,
    };
    let folder = device_folder(folders, device).map_err(open)?;
    if folder.join("partition").exists() {
        return Err(FlashError::Partition {
            partition: name_of(&folder),
            disk: folder.parent().map(name_of).unwrap_or_default(),
        });
    }
    let facts = DiskFacts::read(&folder).map_err(open)?;
    refuse_used(folders, &folder)?;
    match facts.is_read_only {
        true => Err(FlashError::ReadOnly { disk: facts.name }),
        false => Ok(facts),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The numbers of a disk that no computer has: those for experiments.
    const DEVICE: (u64, u64) = (240, 1);

    /// A computer with one disk, with these files in the disk's folder.
    fn computer(files: &[(&str, &str)]) -> (tempfile::TempDir, SystemFolders) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folders = SystemFolders {
            sys: dir.path().join("sys"),
            proc: dir.path().join("proc"),
        };
        let disk = folders.sys.join("devices/vda/vda1");
        fs::create_dir_all(&disk).expect("creatable");
        fs::create_dir_all(folders.sys.join("dev/block")).expect("creatable");
        fs::create_dir_all(folders.proc.join("self")).expect("creatable");
        fs::write(folders.proc.join("self/mountinfo"), "").expect("writable");
        let link = folders
            .sys
            .join(format!("dev/block/{}:{}", DEVICE.0, DEVICE.1));
        symlink(&disk, link).expect("creatable");
        for (file, content) in files {
            fs::write(disk.join(file), content).expect("writable");
        }
        (dir, folders)
    }

    fn found(files: &[(&str, &str)]) -> Result<DiskFacts, FlashError> {
        let (_dir, folders) = computer(files);
        let device = nix::sys::stat::makedev(DEVICE.0, DEVICE.1);
        usable(&folders, device, Path::new("/dev/vda1"))
    }

    #[test]
    fn a_partition_is_refused_and_its_disk_named() {
        let refused = found(&[("partition", "1"), ("size", "8")]).expect_err("a partition");
        let said = refused.to_string();
        assert!(
            said.contains("vda1 is a partition") && said.contains("disk vda,"),
            "{said}"
        );
    }

    #[test]
    fn a_disk_that_takes_no_writes_is_refused() {
        let refused = found(&[("size", "8"), ("ro", "1\n")]).expect_err("read-only");
        assert!(matches!(refused, FlashError::ReadOnly { .. }), "{refused}");
        assert!(found(&[("size", "8"), ("ro", "0\n")]).is_ok());
    }

    #[test]
    fn a_file_is_no_disk_and_a_folder_is_no_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("file");
        fs::write(&file, "content").expect("writable");
        let refused = DiskTarget::disk(&file, &SystemFolders::default()).expect_err("a file");
        assert!(refused.to_string().contains("--to-file"), "{refused}");
        let refused = DiskTarget::file(dir.path()).expect_err("a folder");
        assert!(matches!(refused, FlashError::NotFile { .. }), "{refused}");
        let missing = DiskTarget::disk(&dir.path().join("x"), &SystemFolders::default());
        assert!(matches!(missing, Err(FlashError::Open { .. })));
        DiskTarget::file(&file).expect("a file");
        assert_eq!(fs::read(&file).expect("readable"), b"content");
    }
}
