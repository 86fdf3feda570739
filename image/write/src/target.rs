//! Where an image is written to: a disk that the computer does not use, or a file.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc;

use crate::disk_use::refuse_used;
use crate::error::FlashError;
use crate::facts::{DiskFacts, SystemFolders, device_folder, name_of};
use crate::sys;

/// Mode of a file that only its owner reads and writes.
const PRIVATE_MODE: u32 = 0o600;

/// A disk or a file, opened for writing. Of a disk, no other program can mount or claim any part while it is open.
#[derive(Debug)]
pub struct DiskTarget {
    file: File,
    facts: DiskFacts,
    /// Of a disk: its numbers, and the folders in which the kernel says what it is.
    device: Option<(u64, SystemFolders)>,
}

/// How a disk is found out about. A test has no disk, and changes the path between the steps.
struct DiskSteps<'a> {
    /// The numbers of what is a block device.
    numbers: fn(&Metadata) -> Option<u64>,
    bytes: fn(&File) -> io::Result<u64>,
    opened: &'a dyn Fn(),
}

fn block_numbers(found: &Metadata) -> Option<u64> {
    found.file_type().is_block_device().then(|| found.rdev())
}

impl DiskTarget {
    /// Opens the disk at `path`, if the computer does not use it. Nothing is written.
    ///
    /// # Errors
    /// It is no whole disk, it is read-only, or a part of it is in use.
    pub fn disk(path: &Path, folders: &SystemFolders) -> Result<Self, FlashError> {
        let steps = DiskSteps {
            numbers: block_numbers,
            bytes: sys::disk_bytes,
            opened: &|| {},
        };
        Self::disk_by(path, folders, &steps)
    }

    fn disk_by(
        path: &Path,
        folders: &SystemFolders,
        steps: &DiskSteps<'_>,
    ) -> Result<Self, FlashError> {
        let open = |source| FlashError::Open {
            path: path.to_owned(),
            source,
        };
        let numbers = |found: &Metadata| {
            (steps.numbers)(found).ok_or_else(|| FlashError::NotDisk {
                path: path.to_owned(),
            })
        };
        // Opening a pipe or a tape has effects of its own, so the path is looked at first.
        let named = numbers(&fs::metadata(path).map_err(open)?)?;
        let mut options = OpenOptions::new();
        // On a block device, the kernel refuses O_EXCL if a file system, a volume or another program has claimed a part
        // of it, in whatever way the tables above do not show (open(2)).
        options.read(true).write(true).custom_flags(libc::O_EXCL);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(source) => {
                // What the kernel says of the disk is more use to a person than its refusal.
                let facts = usable(folders, named, path)?;
                return Err(match source.raw_os_error() {
                    Some(libc::EBUSY) => FlashError::Busy { disk: facts.name },
                    Some(libc::EROFS) => FlashError::ReadOnly { disk: facts.name },
                    _ => open(source),
                });
            }
        };
        (steps.opened)();
        // The path may lead to another disk by now. All that follows is about the one that is open.
        let device = numbers(&file.metadata().map_err(open)?)?;
        let mut facts = usable(folders, device, path)?;
        facts.bytes = (steps.bytes)(&file).map_err(open)?;
        Ok(Self {
            file,
            facts,
            device: Some((device, folders.clone())),
        })
    }

    /// Reads again what names the disk, after a person has confirmed it.
    ///
    /// # Errors
    /// The computer uses the disk by now, or another disk has taken its place.
    pub fn check_unchanged(&self) -> Result<(), FlashError> {
        let Some((device, folders)) = &self.device else {
            return Ok(());
        };
        let mut now = usable(folders, *device, Path::new(&self.facts.name))?;
        now.bytes = self.facts.bytes;
        let is_same = now.name == self.facts.name && now.proof() == self.facts.proof();
        match is_same {
            true => Ok(()),
            false => Err(FlashError::OtherDisk {
                disk: now.name.clone(),
                before: self.facts.proof(),
                now: now.proof(),
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
        options.mode(PRIVATE_MODE);
        let file = options.open(path).map_err(|source| FlashError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::by_file(file, path))
    }

    /// Opens a regular file for an image with a configuration, which may have secrets: only its owner, who is the user
    /// of this process, can read it from here on. A link is not followed.
    ///
    /// # Errors
    /// The errors of [`DiskTarget::file`]; or the file belongs to another user.
    pub fn private_file(path: &Path) -> Result<Self, FlashError> {
        let open = |source| FlashError::Open {
            path: path.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Another user may have put a pipe there, for whose other end an open would wait.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        options.mode(PRIVATE_MODE).custom_flags(flags);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(source) => {
                let is_other = fs::symlink_metadata(path).is_ok_and(|found| !found.is_file());
                return Err(match is_other {
                    true => FlashError::NotFile {
                        path: path.to_owned(),
                    },
                    false => open(source),
                });
            }
        };
        let found = file.metadata().map_err(open)?;
        if !found.is_file() {
            return Err(FlashError::NotFile {
                path: path.to_owned(),
            });
        }
        if found.uid() != nix::unistd::geteuid().as_raw() {
            return Err(FlashError::NotOwn {
                path: path.to_owned(),
            });
        }
        // The mode of above is that of a new file only.
        let mode = fs::Permissions::from_mode(PRIVATE_MODE);
        file.set_permissions(mode).map_err(open)?;
        Ok(Self::by_file(file, path))
    }

    fn by_file(file: File, path: &Path) -> Self {
        Self {
            file,
            facts: DiskFacts {
                name: path.display().to_string(),
                bytes: 0,
                model: None,
                serial: None,
                is_read_only: false,
            },
            device: None,
        }
    }

    /// Read when the target was opened; a drive that is exchanged later keeps them.
    #[must_use]
    pub const fn facts(&self) -> &DiskFacts {
        &self.facts
    }

    pub(crate) const fn handle(&self) -> &File {
        &self.file
    }

    pub(crate) const fn is_device(&self) -> bool {
        self.device.is_some()
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

    /// A computer with two disks, whose device files are regular ones here: their numbers are those of the inodes.
    struct TwoDisks {
        dir: tempfile::TempDir,
        folders: SystemFolders,
    }

    impl TwoDisks {
        fn new() -> Self {
            let (dir, folders) = computer(&[]);
            for (name, serial) in [("sda", "FIRST"), ("sdb", "SECOND")] {
                let device = dir.path().join(name);
                fs::write(&device, name).expect("writable");
                let disk = folders.sys.join("devices").join(name);
                fs::create_dir_all(&disk).expect("creatable");
                fs::write(disk.join("size"), "8\n").expect("writable");
                fs::write(disk.join("serial"), serial).expect("writable");
                let number = inode(&fs::metadata(&device).expect("ours")).expect("a number");
                let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
                let link = folders.sys.join(format!("dev/block/{major}:{minor}"));
                symlink(&disk, link).expect("creatable");
            }
            let disks = Self { dir, folders };
            disks.turn("sda");
            disks
        }

        /// The path that a person names.
        fn path(&self) -> std::path::PathBuf {
            self.dir.path().join("disk")
        }

        /// Makes the path lead to another disk.
        fn turn(&self, name: &str) {
            let link = self.path();
            fs::remove_file(&link).ok();
            symlink(self.dir.path().join(name), link).expect("creatable");
        }

        fn open(&self, opened: &dyn Fn()) -> DiskTarget {
            let steps = DiskSteps {
                numbers: inode,
                bytes: |_| Ok(4096),
                opened,
            };
            DiskTarget::disk_by(&self.path(), &self.folders, &steps).expect("not in use")
        }
    }

    fn inode(found: &Metadata) -> Option<u64> {
        found.is_file().then(|| found.ino())
    }

    #[test]
    fn what_is_shown_of_a_disk_is_of_the_one_that_is_open() {
        let disks = TwoDisks::new();
        let target = disks.open(&|| disks.turn("sdb"));
        assert_eq!(target.facts().serial.as_deref(), Some("FIRST"));
        let content = io::read_to_string(target.handle()).expect("readable");
        assert_eq!(
            content, "sda",
            "another disk is open than the one that is shown"
        );
        target.check_unchanged().expect("it is the same disk");
    }

    #[test]
    fn a_disk_that_is_another_one_after_the_confirmation_is_refused() {
        let disks = TwoDisks::new();
        let target = disks.open(&|| {});
        let serial = disks.folders.sys.join("devices/sda/serial");
        fs::write(serial, "THIRD").expect("writable");
        let refused = target.check_unchanged().expect_err("another serial number");
        let said = refused.to_string();
        assert!(said.contains("FIRST") && said.contains("THIRD"), "{said}");
    }

    #[test]
    fn a_file_for_a_configuration_is_of_its_owner_alone_and_no_link() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("file");
        fs::write(&file, "content").expect("writable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("ours");
        let target = DiskTarget::private_file(&file).expect("ours");
        let mode = target.handle().metadata().expect("ours").mode();
        assert_eq!(mode & 0o777, PRIVATE_MODE);
        assert_eq!(fs::read(&file).expect("readable"), b"content");
        let link = dir.path().join("link");
        symlink(&file, &link).expect("creatable");
        let refused = DiskTarget::private_file(&link).expect_err("a link");
        assert!(matches!(refused, FlashError::NotFile { .. }), "{refused}");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("creatable");
        let refused = DiskTarget::private_file(&pipe).expect_err("a pipe");
        assert!(matches!(refused, FlashError::NotFile { .. }), "{refused}");
    }

    #[test]
    fn a_file_of_another_user_gets_no_configuration() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("file");
        fs::write(&file, "content").expect("writable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("ours");
        let other = nix::unistd::Uid::from_raw(12_345);
        if nix::unistd::chown(&file, Some(other), None).is_err() {
            alknet_test_support::skip!("root", "only root gives a file to another user");
        }
        let refused = DiskTarget::private_file(&file).expect_err("another user's");
        assert!(matches!(refused, FlashError::NotOwn { .. }), "{refused}");
        let mode = fs::metadata(&file).expect("readable").mode();
        assert_ne!(mode & 0o777, PRIVATE_MODE, "it was changed");
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
