//! The GUIDs that a disk has from the image, and what PID 1 does not do on a disk that keeps them.

use super::find::DataDevice;
use super::refuse;
use crate::control::MachineDiagnostic;

/// Whether a disk has the GUIDs of the image, which each disk of one build has until its first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ImageGuids {
    /// It has others, or it has no partition table.
    Absent,
    /// It has them, or may have them, and PID 1 could not replace them.
    Present,
}

impl ImageGuids {
    /// Permits the vault of a first boot on a disk. With the GUIDs of the image, nothing tells the disk from those of other
    /// machines, nor this vault from one that the disk had before the image was written: the next start would overwrite it.
    pub(super) fn permit_vault(self, found: &DataDevice) -> Result<(), Box<MachineDiagnostic>> {
        match self {
            Self::Absent => Ok(()),
            Self::Present => refuse(
                "data-unwritable",
                format!(
                    "no vault is made on the data disk {}: it keeps the GUIDs of the image, because a copy of its \
                     partition table cannot be written, or not be read back",
                    found.name()
                ),
                "the log says what failed; replace the disk, write the image to the new one, and reboot",
            ),
        }
    }
}
