//! What a machine knows of the health of its disks and of what lies on them.

use serde::{Deserialize, Serialize};

/// The health of the disks, and of the programs in the boot slots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageFacts {
    /// The disks that the machine starts from and has its data on.
    pub disks: Vec<DiskHealthFacts>,
    /// What the last check found in each boot slot.
    pub slots: Vec<SlotCheckFacts>,
    /// Whether a check of the boot slots is under way.
    pub checking: bool,
}

/// What a disk and the kernel say of it. A member is `None` if neither says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskHealthFacts {
    /// Its name below `/dev`.
    pub name: String,
    /// How it is asked for its health: `flash`, `nvme`, `sata`, or `other`, which is not asked.
    pub kind: String,
    pub model: Option<String>,
    /// The last characters of its serial number.
    pub serial_end: Option<String>,
    /// `ok`, `failing`, or `unknown` for a disk that does not say it.
    pub health: String,
    /// The facts by which the disk says that it fails.
    pub failing: Vec<String>,
    /// Whether the disk says that its temperature is outside of what it is made for.
    pub temperature_warning: bool,
    /// The part of its life that is used, in percent. It may exceed 100.
    pub wear_percent: Option<u16>,
    /// The spare capacity that is left, in percent.
    pub spare_percent: Option<u8>,
    /// Errors of the medium that the disk could not correct.
    pub media_errors: Option<u64>,
    pub power_on_hours: Option<u64>,
    pub temperature_c: Option<i32>,
    /// Commands that ended with an error, as the kernel counts them since its start. Some are harmless.
    pub kernel_errors: Option<u64>,
    /// Errors that the kernel recorded in mounted file systems of the disk.
    pub filesystem_errors: Option<u64>,
}

/// What a check found in a boot slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotCheckFacts {
    /// `a` or `b`.
    pub slot: String,
    /// The version that the machine knows there.
    pub version: Option<String>,
    /// `whole`, `damaged`, `unreadable`, or `skipped`.
    pub result: String,
    /// Why the slot is damaged, could not be read or was skipped.
    pub detail: Option<String>,
    /// When the slot was read to its end, RFC 3339, UTC. `None` while the clock is not set.
    pub checked: Option<String>,
}
