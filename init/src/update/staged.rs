//! What PID 1 knows of the version that it staged, on the data partition: the release of which the program is, for the
//! time after its trial.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use alknet_boot_state::BootSlot;
use alknet_update::{ReleaseVersion, raised_floor};
use serde::{Deserialize, Serialize};

use super::history;
use super::known_programs::KnownProgram;
use super::refusal::{RefusalCode, UpdateRefusal};
use crate::control::{UpdatePlan, UpdateStager};

/// Name of the file in the folder of updates.
const FILE: &str = "staged.json";
/// The node may read it, and nothing in it is secret.
const MODE: u32 = 0o644;
/// Most bytes of the file: the changes have 4 KiB.
const BYTES_MAX: u64 = 64 << 10;

/// A bundle whose program lies in the slot, or that was only looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StagedBundle {
    pub(super) plan: UpdatePlan,
    /// Whether the record said already that this program is staged.
    pub(super) was_staged: bool,
    /// Whether the note of the release was already what it is now. With `was_staged`, `false` says that the sender has
    /// changed what is noted of a staged program: its floor has risen, or the note was lost.
    pub(super) was_noted: bool,
    /// The caller whose version this stays, if the sender has not taken it over.
    pub(super) kept_stager: Option<UpdateStager>,
}

/// A version that was staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagedRelease {
    /// `a` or `b`.
    slot: String,
    pub(super) version: ReleaseVersion,
    pub(super) bytes: u64,
    /// SHA-256 of the program, in hex.
    pub(super) sha256: String,
    /// The floor after the confirmation.
    pub(super) floor: Option<ReleaseVersion>,
    /// The caller that staged it. `None` in a note of an earlier version of PID 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stager: Option<UpdateStager>,
}

impl StagedRelease {
    pub(super) fn new(
        slot: BootSlot,
        version: ReleaseVersion,
        bytes: u64,
        sha256: String,
        floor: Option<ReleaseVersion>,
    ) -> Self {
        Self {
            slot: slot.letter().to_owned(),
            version,
            bytes,
            sha256,
            floor,
            stager: None,
        }
    }

    /// Whether this is the same release, whichever callers have staged the two.
    pub(super) fn is_same_release(&self, other: &Self) -> bool {
        let of_other = Self {
            stager: other.stager.clone(),
            ..self.clone()
        };
        of_other == *other
    }

    /// The noted release of a program, whose floor counts after the trial of this program.
    pub(super) fn load_of_program(
        folder: &Path,
        slot: BootSlot,
        version: &ReleaseVersion,
        sha256: &str,
    ) -> Option<Self> {
        let noted = Self::load(folder);
        noted.filter(|noted| noted.is_of_program(slot, version, sha256))
    }

    fn is_of_program(&self, slot: BootSlot, version: &ReleaseVersion, sha256: &str) -> bool {
        self.is_of(slot) && self.version == *version && self.sha256 == sha256
    }

    /// This release, with the noted floor of the same program in the same slot if that one is higher: the publisher may sign
    /// metadata for a program again with another floor, and the order in which callers send them must not matter. The one
    /// note has the highest floor as long as no other program is staged in between and the note is not lost. After that the
    /// newest signed metadata count: those that come next, because staging refuses older ones than the machine keeps as seen.
    pub(super) fn with_noted_floor(mut self, folder: Option<&Path>, slot: BootSlot) -> Self {
        let noted = folder
            .and_then(|folder| Self::load_of_program(folder, slot, &self.version, &self.sha256));
        self.floor = raised_floor(self.floor, noted.and_then(|noted| noted.floor).as_ref());
        self
    }

    /// Whether it is about this slot.
    pub(super) fn is_of(&self, slot: BootSlot) -> bool {
        self.slot == slot.letter()
    }

    pub(super) fn save(&self, folder: &Path) -> io::Result<()> {
        let (path, bytes) = self.file(folder)?;
        alknet_durable::replace(&path, &bytes, MODE)
    }

    /// The path of its file in this folder, and the content.
    pub(super) fn file(&self, folder: &Path) -> io::Result<(PathBuf, Vec<u8>)> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        Ok((folder.join(FILE), bytes))
    }

    /// The release that was staged last. `None` also if the file is damaged: then the machine does not put the version on
    /// trial, and confirms one that is on trial without raising its floor.
    pub(super) fn load(folder: &Path) -> Option<Self> {
        Self::read(folder).ok().flatten()
    }

    /// Like `load`, with the reason if there is a file, and it cannot be read.
    pub(super) fn read(folder: &Path) -> io::Result<Option<Self>> {
        let path = folder.join(FILE);
        let bytes = match fs::metadata(&path) {
            Ok(about) if about.len() > BYTES_MAX => return Err(ErrorKind::FileTooLarge.into()),
            Ok(_) => fs::read(path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    /// The floor that the version which runs still owes: it was confirmed, and a power cut or a full disk came before the
    /// floor was raised.
    pub(super) fn owed_floor(
        folder: Option<&Path>,
        running: BootSlot,
        version: &str,
    ) -> Option<ReleaseVersion> {
        let owes = folder.and_then(Self::load)?;
        let is_own = owes.is_of(running) && owes.version.to_string() == version;
        owes.floor.filter(|_| is_own)
    }

    /// Refuses to write over what the version that runs still owes: its floor would be lost.
    pub(super) fn require_settled(
        folder: Option<&Path>,
        running: BootSlot,
        version: &str,
    ) -> Result<(), UpdateRefusal> {
        match Self::owed_floor(folder, running, version) {
            Some(floor) => Err(UpdateRefusal::new(
                RefusalCode::Disk,
                format_args!(
                    "it cannot be noted on the data disk that {floor} is the oldest version that may run here; free space \
                     there, or replace the disk"
                ),
            )),
            None => Ok(()),
        }
    }

    /// Removes the file, if there is one. After a power cut it may be back.
    pub(super) fn remove(folder: &Path) -> io::Result<()> {
        match fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Which version was staged into a slot last, and by which caller. `program` is what is known of the program there. Where
/// the note of the release lacks the caller, because an earlier version of PID 1 wrote it, or is lost, the log says it.
pub(super) fn staged_last(
    folder: Option<&Path>,
    slot: BootSlot,
    program: Option<&KnownProgram>,
) -> Option<(String, UpdateStager)> {
    let known = program.map(|program| program.version.to_string());
    let Some(folder) = folder else {
        return known.zip(program?.stager.as_deref().cloned());
    };
    let is_its = |noted: &StagedRelease| match program {
        Some(program) => noted.is_of_program(slot, &program.version, &program.sha256),
        None => noted.is_of(slot),
    };
    let noted = StagedRelease::load(folder).filter(is_its);
    let (noted, stager) = match noted {
        Some(noted) => (Some(noted.version.to_string()), noted.stager),
        None => (None, None),
    };
    if let (Some(version), Some(stager)) = (&noted, stager) {
        return Some((version.clone(), stager));
    }
    let expected = noted.or(known);
    let logged = history::last_staging(folder)?;
    let is_it = expected.is_none_or(|expected| expected == logged.version);
    let stager = UpdateStager {
        by: logged.by,
        limited: logged.limited,
    };
    is_it.then_some((logged.version, stager))
}

/// The floor after the confirmation of a release with this floor, if that raises the floor of the machine.
pub(super) fn raised_by<'a>(
    floor: Option<&ReleaseVersion>,
    release: Option<&'a ReleaseVersion>,
) -> Option<&'a ReleaseVersion> {
    release.filter(|release| floor.is_none_or(|floor| *release > floor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_that_cannot_be_read_is_no_missing_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(StagedRelease::read(folder.path()).expect("no file"), None);
        let version: ReleaseVersion = "1.1.0".parse().expect("a version");
        let floor = Some(version.clone());
        let release = StagedRelease::new(BootSlot::B, version, 4096, String::new(), floor);
        release.save(folder.path()).expect("writable");
        let read = StagedRelease::read(folder.path());
        assert_eq!(read.expect("readable"), Some(release));
        let path = folder.path().join(FILE);
        let too_long = vec![b' '; BYTES_MAX as usize + 1];
        for damaged in [&b"{\"slot\":"[..], b"\xff", b"", &too_long] {
            fs::write(&path, damaged).expect("writable");
            StagedRelease::read(folder.path()).expect_err("it is damaged");
            assert_eq!(StagedRelease::load(folder.path()), None);
        }
        StagedRelease::remove(folder.path()).expect("a file");
        StagedRelease::remove(folder.path()).expect("no file");
        fs::create_dir(&path).expect("writable");
        StagedRelease::remove(folder.path()).expect_err("it stays");
    }
}
