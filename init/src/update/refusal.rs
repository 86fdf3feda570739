//! Why PID 1 refuses a request about updates: a stable name, and a sentence for a person.

use std::fmt;

use alknet_boot_state::BootRefusal;
use alknet_fat::FatError;
use alknet_update::{UpdateError, VersionRefusal};

use super::boot_partitions::BootPartitionsError;
use super::disk::BootDiskError;
use crate::control::NO_PREVIOUS;

pub(crate) use crate::control::RefusalCode;

/// A request was refused. Both boot slots and the record are as they were, unless the text says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct UpdateRefusal {
    pub(crate) code: RefusalCode,
    /// What was wrong, and what to do.
    pub(crate) text: String,
}

impl UpdateRefusal {
    pub(crate) fn new(code: RefusalCode, text: impl fmt::Display) -> Self {
        let text = text.to_string();
        Self { code, text }
    }

    pub(crate) fn no_slots(why: impl fmt::Display) -> Self {
        Self::new(
            RefusalCode::NoSlots,
            format_args!(
                "this machine has no boot slots to update: {why}; write a new image to it, as docs/update.md says"
            ),
        )
    }

    /// The bundle was given up by the node or by PID 1.
    pub(crate) fn given_up() -> Self {
        Self::new(
            RefusalCode::Aborted,
            "the upload was given up; send the bundle again",
        )
    }

    /// A part of PID 1 panicked.
    pub(crate) fn failed() -> Self {
        Self::new(
            RefusalCode::Failed,
            "a part of PID 1 failed; nothing was staged: the log says why, please report it, and try again",
        )
    }
}

impl From<UpdateError> for UpdateRefusal {
    fn from(error: UpdateError) -> Self {
        let code = match &error {
            UpdateError::Expired { .. } => RefusalCode::Expired,
            UpdateError::Hash { .. } => RefusalCode::Hash,
            UpdateError::OtherMachine { .. } => RefusalCode::OtherMachine,
            UpdateError::Equivocation { .. }
            | UpdateError::Removed { .. }
            | UpdateError::Rollback { .. } => RefusalCode::Rollback,
            UpdateError::Signatures { valid: 0, .. } => RefusalCode::Signature,
            UpdateError::Signatures { .. } => RefusalCode::Threshold,
            UpdateError::Source { .. } => RefusalCode::Truncated,
            UpdateError::TooLarge { .. } => RefusalCode::TooLarge,
            UpdateError::Trust { .. } => RefusalCode::TrustDamaged,
            UpdateError::UnmetNeeds { .. } => RefusalCode::UnmetNeeds,
            UpdateError::Version(VersionRefusal::BelowFloor { .. }) => RefusalCode::BelowFloor,
            UpdateError::Version(VersionRefusal::Downgrade { .. }) => RefusalCode::Downgrade,
            _ => RefusalCode::Malformed,
        };
        Self::new(code, error)
    }
}

impl From<FatError> for UpdateRefusal {
    fn from(error: FatError) -> Self {
        match &error {
            FatError::Full { needed, free } => Self::new(
                RefusalCode::Full,
                format_args!(
                    "the boot partition has {free} bytes free, and {needed} are necessary; remove foreign files from it"
                ),
            ),
            other => Self::new(
                RefusalCode::Disk,
                format_args!(
                    "the boot partition cannot be used: {other}; check the disk, or write a new image to another one"
                ),
            ),
        }
    }
}

impl From<BootDiskError> for UpdateRefusal {
    fn from(error: BootDiskError) -> Self {
        let (code, hint) = match &error {
            BootDiskError::Record(_) => (
                RefusalCode::StateLost,
                "restart the machine, which writes a new one",
            ),
            BootDiskError::Changed { .. } | BootDiskError::Io { .. } => {
                (RefusalCode::Disk, "check the disk, or replace it")
            }
        };
        Self::new(code, format_args!("{error}; {hint}"))
    }
}

impl From<BootPartitionsError> for UpdateRefusal {
    fn from(error: BootPartitionsError) -> Self {
        Self::no_slots(error)
    }
}

impl From<BootRefusal> for UpdateRefusal {
    fn from(refusal: BootRefusal) -> Self {
        let (code, hint) = match refusal {
            BootRefusal::NoPrevious => {
                return Self::new(RefusalCode::NoPrevious, NO_PREVIOUS);
            }
            BootRefusal::NotStaged | BootRefusal::NotVacated => {
                (RefusalCode::NotStaged, "stage one first")
            }
            BootRefusal::OnTrial => (
                RefusalCode::OnTrial,
                "`alknet rollback` gives it up, and `alknet update` continues after its confirmation",
            ),
            _ => (
                RefusalCode::NotOnTrial,
                "`alknet update` stages and applies one",
            ),
        };
        Self::new(code, format_args!("{refusal}; {hint}"))
    }
}
