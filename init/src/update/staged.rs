//! What PID 1 knows of the version that it staged, on the data partition: the release of which the program is, for the
//! time after its trial.

use std::fs;
use std::io;
use std::path::Path;

use alknet_boot_state::BootSlot;
use alknet_update::ReleaseVersion;
use serde::{Deserialize, Serialize};

/// Name of the file in the folder of updates.
const FILE: &str = "staged.json";
/// The node may read it, and nothing in it is secret.
const MODE: u32 = 0o644;
/// Most bytes of the file: the changes have 4 KiB.
const BYTES_MAX: u64 = 64 << 10;

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
        }
    }

    /// Whether it is about this slot.
    pub(super) fn is_of(&self, slot: BootSlot) -> bool {
        self.slot == slot.letter()
    }

    pub(super) fn save(&self, folder: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        alknet_durable::replace(&folder.join(FILE), &bytes, MODE)
    }

    /// The release that was staged last. `None` also if the file is damaged: then the machine confirms the version
    /// without raising its floor.
    pub(super) fn load(folder: &Path) -> Option<Self> {
        let path = folder.join(FILE);
        let is_short = fs::metadata(&path).is_ok_and(|about| about.len() <= BYTES_MAX);
        let bytes = is_short.then(|| fs::read(path).ok()).flatten()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Removes the file. It does not matter if a power cut brings it back: what it says was done is done again.
    pub(super) fn remove(folder: &Path) {
        fs::remove_file(folder.join(FILE)).ok();
    }
}
