//! The state of a vault, and its observer.

use crate::audit::AuditEvent;
use crate::derive::KeyVersion;

/// The number of an unlocking: 1 is the first since the memory of the seed was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub(super) u64);

impl Epoch {
    /// The number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Whether the vault gives keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VaultState {
    /// The seed is not in memory.
    Locked,
    /// The seed is in memory.
    Unlocked {
        /// The unlocking since which it is open.
        epoch: Epoch,
    },
}

/// A change that the other process made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The state after the change.
    pub state: VaultState,
    /// Whether all keys in use were revoked.
    pub revoked: bool,
}

/// Observes the vault's events; the writer of the audit log implements it.
pub trait Observer: Send + Sync {
    /// Called after the event and without locks, so it may use the vault.
    fn happened(&self, event: &AuditEvent);
}

/// The versions of the credential key in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyVersions {
    /// The version that seals new blobs.
    pub current: KeyVersion,
    /// The oldest version that is still opened; records of older ones were rotated.
    pub oldest: KeyVersion,
}

impl Default for KeyVersions {
    fn default() -> Self {
        Self {
            current: KeyVersion::FIRST,
            oldest: KeyVersion::FIRST,
        }
    }
}
