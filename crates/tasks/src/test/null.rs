//! The null device, which any program that runs as root can replace by a file.
//!
//! A program that writes its output by renaming does that if its output is `/dev/null`. Tests then
//! read what others wrote there, and fail for a reason that none of them names. So a run checks the
//! device before it begins and after each part, restores it, and reports between which two checks
//! it was lost.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::context::XtaskContext;

/// The device's path for every program.
const PATH: &str = "/dev/null";

/// Numbers of the device, major and minor.
const NUMBERS: (u64, u64) = (1, 3);

/// Bytes shown of the file that replaced it.
const SHOWN: u64 = 300;

/// The device, and the findings during a run.
#[derive(Debug)]
pub(super) struct NullDevice {
    path: PathBuf,
    found: Mutex<NullDeviceFindings>,
}

#[derive(Debug, Default)]
struct NullDeviceFindings {
    /// One line each.
    texts: Vec<String>,
    /// Whether it could not be restored: every check would find the same.
    is_gone: bool,
}

impl NullDevice {
    pub(super) fn new() -> Self {
        Self::at(Path::new(PATH))
    }

    fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            found: Mutex::default(),
        }
    }

    /// Restores the device if it is lost, and prints that. `when` says since when it may be lost.
    pub(super) fn restore_if_lost(&self, cx: &XtaskContext, when: &str) {
        if let Some(text) = self.find(when) {
            cx.board().print(&text);
        }
    }

    /// The findings of the run, one line each. Empty if the device was never lost.
    pub(super) fn report(&self) -> String {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = found.texts.iter().map(|text| format!("  {text}\n"));
        lines.collect()
    }

    fn find(&self, when: &str) -> Option<String> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let there = fs::symlink_metadata(&self.path);
        if found.is_gone || there.as_ref().is_ok_and(is_null) {
            return None;
        }
        let what = there.map_or_else(|error| error.to_string(), |about| self.describe(&about));
        let put_back = self.put_back();
        found.is_gone = put_back.is_err();
        let outcome = match put_back {
            Ok(()) => "it is the null device again".to_owned(),
            Err(error) => format!(
                "it cannot be put back: {error}; as root: mknod -m 666 {0}.new c 1 3 && mv -f {0}.new {0}",
                self.path.display()
            ),
        };
        let text = format!(
            "{} was not the null device {when}: {what}; {outcome}",
            self.path.display()
        );
        found.texts.push(text.clone());
        Some(text)
    }

    /// The owner, the time and the beginning of the file, which identify the program that wrote it.
    fn describe(&self, about: &Metadata) -> String {
        let mut content = Vec::new();
        if about.is_file() {
            // The file may have everything that was written to the device since.
            let read =
                File::open(&self.path).and_then(|file| file.take(SHOWN).read_to_end(&mut content));
            if let Err(error) = read {
                content = format!("it cannot be read: {error}").into_bytes();
            }
        }
        let shown = String::from_utf8_lossy(&content);
        format!(
            "mode {:o}, owner {}, written at {}, {} bytes that begin with {shown:?}",
            about.mode(),
            about.uid(),
            about.mtime(),
            about.len()
        )
    }

    /// Makes the device beside the path and moves it there, so that other programs find the one or
    /// the other.
    fn put_back(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or_else(|| Path::new("/"));
        let device = tempfile::Builder::new()
            .prefix("null.")
            .make_in(folder, |path| {
                let mode = Mode::from_bits_truncate(0o666);
                mknod(path, SFlag::S_IFCHR, mode, makedev(NUMBERS.0, NUMBERS.1))?;
                // The umask may have removed some permissions.
                fs::set_permissions(path, Permissions::from_mode(0o666))
            })?;
        device.persist(&self.path).map_err(|failed| failed.error)
    }
}

fn is_null(about: &Metadata) -> bool {
    let numbers = (
        nix::sys::stat::major(about.rdev()),
        nix::sys::stat::minor(about.rdev()),
    );
    about.file_type().is_char_device() && numbers == NUMBERS
}

#[cfg(test)]
mod tests {
    use alknet_test_support::skipped;

    use super::*;

    #[test]
    fn a_null_device_is_left_alone() {
        let device = NullDevice::at(Path::new("/dev/null"));
        let about = fs::symlink_metadata(&device.path).expect("every system has one");
        assert!(is_null(&about), "this machine has lost it");
        assert_eq!(device.find("now"), None);
        assert_eq!(device.report(), "");
    }

    #[test]
    fn a_file_in_its_place_is_described_and_the_device_put_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("null");
        fs::write(&path, "written by a test\n").expect("writable");
        let device = NullDevice::at(&path);
        let text = device.find("after alknet-core lib").expect("it is a file");
        assert!(text.contains("after alknet-core lib"), "{text}");
        assert!(
            text.contains("18 bytes that begin with \"written by"),
            "{text}"
        );
        assert!(device.report().contains(&text));
        // In a user namespace root makes no devices.
        let device_made = mknod(
            &folder.path().join("probe"),
            SFlag::S_IFCHR,
            Mode::empty(),
            makedev(NUMBERS.0, NUMBERS.1),
        );
        if device_made.is_ok() {
            fs::remove_file(folder.path().join("probe")).expect("it was made");
            assert!(text.ends_with("it is the null device again"), "{text}");
            let about = fs::metadata(&path).expect("it is there");
            assert!(is_null(&about));
            assert_eq!(about.permissions().mode() & 0o777, 0o666);
            assert_eq!(device.find("later"), None);
        } else {
            skipped(
                "devices",
                "mknod is not allowed: only the refusal is tested",
            );
            assert!(text.contains("as root: mknod"), "{text}");
            assert_eq!(device.find("later"), None, "it is reported once");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_path_without_anything_is_a_lost_device() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let device = NullDevice::at(&folder.path().join("null"));
        let text = device.find("before the run").expect("it is lost");
        assert!(text.contains("No such file"), "{text}");
    }
}
