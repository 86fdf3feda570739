//! Why PID 1 refuses a request about updates: a stable name, and a sentence for a person.

use std::fmt;

use alknet_boot_state::BootRefusal;
use alknet_fat::FatError;
use alknet_update::{UpdateError, VersionRefusal};

use super::boot_partitions::BootPartitionsError;
use super::disk::BootDiskError;
use crate::control::NO_PREVIOUS;

/// The stable name of a refusal. `docs/update.md` lists all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalCode {
    /// The node gave the bundle up.
    Aborted,
    /// The version is older than the floor.
    BelowFloor,
    /// Another request about updates or the vault is under way.
    Busy,
    /// The delta of the bundle does not make the program.
    Delta,
    /// The disk cannot be read or written, or did not keep what was written.
    Disk,
    /// The version is older than the one that runs, and no administrator named it.
    Downgrade,
    /// A document of the bundle has expired.
    Expired,
    /// A part of PID 1 failed.
    Failed,
    /// The boot partition has too little room.
    Full,
    /// A document or the program has other bytes than the signed hash says.
    Hash,
    /// An administrator left the version, or it failed, and none asks for it now.
    Left,
    /// The vault has to be open.
    Locked,
    /// The bundle or its program is not what it has to be.
    Malformed,
    /// The start needs a person at the machine, and no administrator asks for it.
    NeedsPerson,
    /// The machine has no key that could have signed an update.
    NoKeys,
    /// There is no version to return to.
    NoPrevious,
    /// The machine has no boot slots.
    NoSlots,
    /// No version is on trial.
    NotOnTrial,
    /// No version is staged.
    NotStaged,
    /// A version is on trial.
    OnTrial,
    /// The bundle has the differences from another program than the one that runs.
    OtherBase,
    /// The version is one of the channel `beta`, the machine follows `stable`, and no administrator asks for it.
    OtherChannel,
    /// The program of a delta was compressed by another version of the library.
    OtherLibrary,
    /// The bundle is for other machines.
    OtherMachine,
    /// Another program is staged than the one that was to start.
    OtherStaged,
    /// The metadata are older than some that this machine has seen.
    Rollback,
    /// The program runs already.
    RunsAlready,
    /// The documents lack every necessary signature.
    Signature,
    /// A program on the boot partition is damaged.
    SlotDamaged,
    /// The boot state record cannot be read.
    StateLost,
    /// Fewer keys have signed than have to.
    Threshold,
    /// The bundle or a file in it is larger than any may be.
    TooLarge,
    /// Callers that are no administrators started versions too often.
    TooOften,
    /// The bundle ended early.
    Truncated,
    /// The machine's own file of what it trusts is damaged.
    TrustDamaged,
    /// The release needs something that this machine does not know.
    UnmetNeeds,
    /// The TPM would not open the vault for the next program.
    Unpredictable,
    /// The program in the slot is not one that this machine verified or ran.
    Unverified,
}

impl RefusalCode {
    /// Every code, for the page that lists them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 38] = [
        Self::Aborted,
        Self::BelowFloor,
        Self::Busy,
        Self::Delta,
        Self::Disk,
        Self::Downgrade,
        Self::Expired,
        Self::Failed,
        Self::Full,
        Self::Hash,
        Self::Left,
        Self::Locked,
        Self::Malformed,
        Self::NeedsPerson,
        Self::NoKeys,
        Self::NoPrevious,
        Self::NoSlots,
        Self::NotOnTrial,
        Self::NotStaged,
        Self::OnTrial,
        Self::OtherBase,
        Self::OtherChannel,
        Self::OtherLibrary,
        Self::OtherMachine,
        Self::OtherStaged,
        Self::Rollback,
        Self::RunsAlready,
        Self::Signature,
        Self::SlotDamaged,
        Self::StateLost,
        Self::Threshold,
        Self::TooLarge,
        Self::TooOften,
        Self::Truncated,
        Self::TrustDamaged,
        Self::UnmetNeeds,
        Self::Unpredictable,
        Self::Unverified,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::BelowFloor => "below-floor",
            Self::Busy => "busy",
            Self::Delta => "delta",
            Self::Disk => "disk",
            Self::Downgrade => "downgrade",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Full => "full",
            Self::Hash => "hash",
            Self::Left => "left",
            Self::Locked => "locked",
            Self::Malformed => "malformed",
            Self::NeedsPerson => "needs-person",
            Self::NoKeys => "no-keys",
            Self::NoPrevious => "no-previous",
            Self::NoSlots => "no-slots",
            Self::NotOnTrial => "not-on-trial",
            Self::NotStaged => "not-staged",
            Self::OnTrial => "on-trial",
            Self::OtherBase => "other-base",
            Self::OtherChannel => "other-channel",
            Self::OtherLibrary => "other-library",
            Self::OtherMachine => "other-machine",
            Self::OtherStaged => "other-staged",
            Self::Rollback => "rollback",
            Self::RunsAlready => "runs-already",
            Self::Signature => "signature",
            Self::SlotDamaged => "slot-damaged",
            Self::StateLost => "state-lost",
            Self::Threshold => "threshold",
            Self::TooLarge => "too-large",
            Self::TooOften => "too-often",
            Self::Truncated => "truncated",
            Self::TrustDamaged => "trust-damaged",
            Self::UnmetNeeds => "unmet-needs",
            Self::Unpredictable => "unpredictable",
            Self::Unverified => "unverified",
        }
    }
}

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Codes of the page with which the node refuses a start that it does not bring to PID 1.
    const OF_THE_NODE: [&str; 1] = ["outside-window"];

    /// The node compares its lists of these codes with the page, so a code that PID 1 does not have any more must not stay
    /// there.
    #[test]
    fn the_page_has_every_refusal_and_no_other_one() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/update.md");
        let page = fs::read_to_string(page).expect("the page exists");
        let mut sections = page.split("\n## ");
        let section = sections.find(|it| it.starts_with("What the machine refuses\n"));
        let rows = section.expect("the section").lines();
        let rows = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
        let rows: BTreeSet<_> = rows.collect();
        let codes = RefusalCode::ALL.iter().map(|code| code.name());
        let codes: BTreeSet<_> = codes.chain(OF_THE_NODE).collect();
        assert_eq!(rows, codes);
    }
}
