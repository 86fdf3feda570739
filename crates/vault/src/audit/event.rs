//! What is worth a line.

use std::fmt;

use serde_json::{Value, json};

use crate::blob::Label;
use crate::derive::{KeyVersion, Purpose};
use crate::signer::Reason;
use crate::slots::{SlotId, SlotType};

/// A slot, as the log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotName {
    /// What opens it.
    pub kind: SlotType,
    /// Its number.
    pub id: SlotId,
}

/// Something that happened to the vault.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// New words were made.
    Created,
    /// A key was derived and handed out.
    Derived {
        /// Which.
        purpose: Purpose,
    },
    /// More happened while the log could not be written than was kept.
    Dropped {
        /// How many events.
        count: u64,
    },
    /// Bytes of a key left the vault.
    Exported {
        /// What: a purpose, or `phrase`.
        what: String,
        /// What for.
        reason: Reason,
    },
    /// Words were typed in or provisioned.
    Imported,
    /// The vault was locked.
    Locked {
        /// Whether keys that had been handed out were taken back.
        hard: bool,
    },
    /// The log ended in half a line, which was removed: a power cut.
    LogRepaired {
        /// How many bytes.
        bytes: u64,
    },
    /// A sealed record was opened.
    Opened {
        /// Which.
        label: Label,
    },
    /// Everything was erased.
    Reset,
    /// A record was sealed anew.
    Rotated {
        /// Which.
        label: Label,
        /// Under which key.
        to: KeyVersion,
    },
    /// A record was sealed.
    Sealed {
        /// Which.
        label: Label,
    },
    /// A slot was added.
    SlotAdded(SlotName),
    /// A slot was removed.
    SlotRemoved(SlotName),
    /// A slot was tried and did not open.
    UnlockFailed(SlotName),
    /// A slot opened.
    Unlocked(SlotName),
}

impl Event {
    /// Its name in the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Derived { .. } => "derived",
            Self::Dropped { .. } => "dropped",
            Self::Exported { .. } => "exported",
            Self::Imported => "imported",
            Self::Locked { .. } => "locked",
            Self::LogRepaired { .. } => "log_repaired",
            Self::Opened { .. } => "opened",
            Self::Reset => "reset",
            Self::Rotated { .. } => "rotated",
            Self::Sealed { .. } => "sealed",
            Self::SlotAdded(_) => "slot_added",
            Self::SlotRemoved(_) => "slot_removed",
            Self::UnlockFailed(_) => "unlock_failed",
            Self::Unlocked(_) => "unlocked",
        }
    }

    pub(crate) fn detail(&self) -> Value {
        match self {
            Self::Created | Self::Imported | Self::Reset => json!({}),
            Self::Derived { purpose } => json!({"purpose": purpose.to_string()}),
            Self::Dropped { count } => json!({"count": count}),
            Self::Exported { what, reason } => {
                json!({"what": what, "reason": reason.to_string()})
            }
            Self::Locked { hard } => json!({"hard": hard}),
            Self::LogRepaired { bytes } => json!({"bytes": bytes}),
            Self::Opened { label } | Self::Sealed { label } => json!({"label": label.as_str()}),
            Self::Rotated { label, to } => json!({"label": label.as_str(), "to": to.number()}),
            Self::SlotAdded(slot)
            | Self::SlotRemoved(slot)
            | Self::UnlockFailed(slot)
            | Self::Unlocked(slot) => {
                json!({"type": slot.kind.name(), "id": slot.id.number()})
            }
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.detail())
    }
}
