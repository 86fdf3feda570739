//! The events of the audit log.

use std::fmt;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::blob::BlobLabel;
use crate::derive::{KeyPurpose, KeyVersion};
use crate::signer::ExportReason;
use crate::slots::{SlotId, SlotType};

/// A slot as the log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotName {
    /// The type of its key.
    pub kind: SlotType,
    /// Its number.
    pub id: SlotId,
}

/// The secret that left the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportedSecret {
    /// The bytes of a key.
    Key(KeyPurpose),
    /// The recovery words.
    Phrase,
}

impl fmt::Display for ExportedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(purpose) => purpose.fmt(f),
            Self::Phrase => f.write_str("phrase"),
        }
    }
}

/// An event of the vault.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditEvent {
    /// New words were made.
    Created,
    /// A key was derived and given to a program.
    Derived {
        /// Purpose of the derived key.
        purpose: KeyPurpose,
    },
    /// Events were dropped, because the log could not be written and the buffer was full.
    Dropped {
        /// How many events.
        count: u64,
    },
    /// A secret left the vault.
    Exported {
        /// Kind of the exported secret.
        what: ExportedSecret,
        /// The reason of the export.
        reason: ExportReason,
    },
    /// An administrator typed or provisioned existing words.
    Imported,
    /// The vault was locked.
    Locked {
        /// Whether keys in use were revoked.
        hard: bool,
    },
    /// The log ended in half a line, which a power cut leaves, and the line was removed.
    LogRepaired {
        /// Bytes of the half line.
        bytes: u64,
    },
    /// The vault was replaced by one with other words.
    Migrated {
        /// The Ed25519 key of its new identity.
        to: [u8; 32],
    },
    /// A sealed record was opened.
    Opened {
        /// Label of the record.
        label: BlobLabel,
    },
    /// The vault has a new master key; old copies of its file open no later record.
    Rekeyed,
    /// All data were erased.
    Reset,
    /// A record was sealed again under another key version.
    Rotated {
        /// Label of the record.
        label: BlobLabel,
        /// The new key version.
        to: KeyVersion,
    },
    /// A record was sealed.
    Sealed {
        /// Label of the record.
        label: BlobLabel,
    },
    /// A slot was added.
    SlotAdded(SlotName),
    /// A slot was removed.
    SlotRemoved(SlotName),
    /// An attempt to open a slot failed.
    UnlockFailed(SlotName),
    /// A slot opened.
    Unlocked(SlotName),
}

impl AuditEvent {
    /// The event's name in the log.
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
            Self::Migrated { .. } => "migrated",
            Self::Opened { .. } => "opened",
            Self::Rekeyed => "rekeyed",
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
            // The detail is always an object, so that a reader needs no second form.
            Self::Created | Self::Imported | Self::Rekeyed | Self::Reset => json!({}),
            Self::Derived { purpose } => json!({"purpose": purpose.to_string()}),
            Self::Dropped { count } => json!({"count": count}),
            Self::Exported { what, reason } => {
                json!({"what": what.to_string(), "reason": reason.to_string()})
            }
            Self::Locked { hard } => json!({"hard": hard}),
            Self::LogRepaired { bytes } => json!({"bytes": bytes}),
            Self::Migrated { to } => json!({"to": HEXLOWER.encode(to)}),
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

impl AuditEvent {
    /// The event with this name and detail; `None` if [`AuditEvent::detail`] would write something else.
    pub(crate) fn from_parts(name: &str, detail: &Value) -> Option<Self> {
        let text = |field: &str| detail[field].as_str();
        let number = |field: &str| detail[field].as_u64();
        let label = || text("label")?.parse().ok();
        let slot = || {
            let id = SlotId::new(number("id")?.try_into().ok()?);
            let kind = SlotType::from_name(text("type")?)?;
            Some(SlotName { kind, id })
        };
        let event = match name {
            "created" => Self::Created,
            "derived" => Self::Derived {
                purpose: text("purpose")?.parse().ok()?,
            },
            "dropped" => Self::Dropped {
                count: number("count")?,
            },
            "exported" => Self::Exported {
                what: match text("what")? {
                    "phrase" => ExportedSecret::Phrase,
                    purpose => ExportedSecret::Key(purpose.parse().ok()?),
                },
                reason: text("reason")?.parse().ok()?,
            },
            "imported" => Self::Imported,
            "locked" => Self::Locked {
                hard: detail["hard"].as_bool()?,
            },
            "log_repaired" => Self::LogRepaired {
                bytes: number("bytes")?,
            },
            "migrated" => Self::Migrated {
                to: HEXLOWER
                    .decode(text("to")?.as_bytes())
                    .ok()?
                    .try_into()
                    .ok()?,
            },
            "opened" => Self::Opened { label: label()? },
            "rekeyed" => Self::Rekeyed,
            "reset" => Self::Reset,
            "rotated" => Self::Rotated {
                label: label()?,
                to: KeyVersion::new(number("to")?.try_into().ok()?)?,
            },
            "sealed" => Self::Sealed { label: label()? },
            "slot_added" => Self::SlotAdded(slot()?),
            "slot_removed" => Self::SlotRemoved(slot()?),
            "unlock_failed" => Self::UnlockFailed(slot()?),
            "unlocked" => Self::Unlocked(slot()?),
            _ => return None,
        };
        // The detail must be exactly what this program would write, with no further member.
        (event.detail() == *detail).then_some(event)
    }
}

impl fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.detail())
    }
}
