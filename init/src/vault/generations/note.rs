//! The note beside the data: the newest vault, and the TPMs that have to count before nothing older
//! opens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::TPMS_MAX;
use crate::log::InitLog;

/// Name of the file in the configuration's folder, which is root's.
const NAME: &str = "vault-newest.json";
/// Longest note in bytes: fields of fixed length, of [`TPMS_MAX`] TPMs at most, and some room.
pub(super) const BYTES_MAX: u64 = 2048;

/// The newest vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerationNote {
    pub(super) vault: String,
    pub(super) generation: u64,
    /// The count of changes by a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) counted: Option<TpmCount>,
    /// TPMs that have not counted its last change. Each opens a copy of the disk from before as if
    /// it were the newest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) owed: Vec<PendingTpmCount>,
}

/// A TPM's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TpmCount {
    /// Storage key of the TPM.
    pub(super) tpm: String,
    pub(super) count: u64,
}

/// What a TPM has yet to count: a change of the vault, the removal of its last slot, or the erasure
/// of the disk before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PendingTpmCount {
    /// Storage key of the TPM.
    pub(super) tpm: String,
    /// The value of its counter. `None` if only the disk before, which was erased, had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<u64>,
}

impl GenerationNote {
    /// Every TPM that counted a vault of this disk and has not counted its last change or its end.
    pub(super) fn tpms(&self) -> Vec<String> {
        let counted = self.counted.iter().map(|one| &one.tpm);
        let all = counted.chain(self.owed.iter().map(|one| &one.tpm));
        all.take(TPMS_MAX).cloned().collect()
    }

    /// Forgets the TPMs that owe for longest, if there are more than the note has room for.
    pub(super) fn bound(&mut self) {
        let many = self.owed.len().saturating_sub(TPMS_MAX - 1);
        self.owed.drain(..many);
    }

    /// The count in the note of the TPM with this storage key.
    pub(super) fn count_of(&self, tpm: &str) -> Option<u64> {
        let counted = self.counted.iter().find(|one| one.tpm == tpm);
        let owed = || self.owed.iter().find(|one| one.tpm == tpm)?.count;
        counted.map(|one| one.count).or_else(owed)
    }
}

impl From<TpmCount> for PendingTpmCount {
    fn from(counted: TpmCount) -> Self {
        Self {
            tpm: counted.tpm,
            count: Some(counted.count),
        }
    }
}

pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("config").join(NAME)
}

/// Reads the note, if there is one. It is written by a rename, so a power cut leaves no unreadable
/// note.
///
/// # Errors
/// There is a file that is no note, or the disk cannot read it.
pub(super) fn read(state_dir: &Path) -> io::Result<Option<GenerationNote>> {
    let path = path(state_dir);
    let length = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // An attacker who writes to the disk must not make PID 1 read gigabytes.
    if length > BYTES_MAX {
        return Err(io::Error::other("it is too long"));
    }
    Ok(Some(serde_json::from_slice(&fs::read(&path)?)?))
}

/// The note, if there is a readable one. Without it the TPM's counter shows that the disk is an
/// older one.
pub(super) fn read_if_whole(state_dir: &Path, log: &InitLog) -> Option<GenerationNote> {
    read(state_dir).unwrap_or_else(|error| {
        log.error(format_args!("{}: {error}", path(state_dir).display()));
        None
    })
}

/// Writes the note, and returns when it is on the disk.
pub(super) fn write(state_dir: &Path, note: &GenerationNote) -> io::Result<()> {
    let text = serde_json::to_vec(note).map_err(io::Error::other)?;
    let path = path(state_dir);
    // At a first boot this is the first file.
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    alknet_durable::replace(&path, &text, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_anything_else_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = InitLog::default();
        assert_eq!(read(dir.path()).expect("it does not exist"), None);
        let owed = |number| PendingTpmCount {
            tpm: format!("{number:064x}"),
            count: Some(u64::MAX),
        };
        let note = GenerationNote {
            vault: uuid::Uuid::max().to_string(),
            generation: u64::MAX,
            counted: Some(TpmCount {
                tpm: "ab".repeat(32),
                count: u64::MAX,
            }),
            owed: (1..TPMS_MAX).map(owed).collect(),
        };
        write(dir.path(), &note).expect("writable");
        let path = path(dir.path());
        let text = fs::read(&path).expect("it was written");
        assert!(text.len() as u64 <= BYTES_MAX);
        assert_eq!(read_if_whole(dir.path(), &log).as_ref(), Some(&note));
        assert_eq!(note.tpms().len(), TPMS_MAX);
        // A note from a program that did not know owed counts.
        let before = r#"{"vault":"of this","generation":7,"counted":{"tpm":"ab","count":7}}"#;
        fs::write(&path, before).expect("writable");
        let read_before = read_if_whole(dir.path(), &log).expect("a note");
        assert_eq!(read_before.count_of("ab"), Some(7));
        assert_eq!(
            serde_json::to_string(&read_before).expect("plain values"),
            before
        );
        let long = vec![b' '; BYTES_MAX as usize + 1];
        for bad in [&text[1..], b"", &long] {
            fs::write(&path, bad).expect("writable");
            assert!(read(dir.path()).is_err(), "it is not as if there were none");
            assert_eq!(read_if_whole(dir.path(), &log), None);
        }
    }
}
