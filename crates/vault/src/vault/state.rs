//! How a vault is, and who hears of it.

use crate::audit::AuditEvent;
use crate::derive::KeyVersion;

/// Which unlocking it is: 1 is the first since the memory of the seed was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub(super) u64);

impl Epoch {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Whether keys can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VaultState {
    /// Nothing is in memory.
    Locked,
    /// The seed is in memory.
    Unlocked {
        /// Since which unlocking.
        epoch: Epoch,
    },
}

/// What changed without this process having done it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// How it is now.
    pub state: VaultState,
    /// Whether all keys that had been handed out were taken back.
    pub revoked: bool,
}

/// Hears what the vault did: the audit log's writer.
pub trait Observer: Send + Sync {
    /// Called after the fact and outside all locks, so that the vault may be used from inside.
    fn happened(&self, event: &AuditEvent);
}

/// Which versions of the credential key are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyVersions {
    /// What new blobs are sealed with.
    pub current: KeyVersion,
    /// The oldest that is still opened; older ones were rotated away.
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
