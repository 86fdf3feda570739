//! Where shares are kept so that the disk alone does not tell them.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::entry::ShareId;

/// The node's vault, as far as shares need it. Every method may wait for a disk.
pub trait EscrowVault: Send + Sync + 'static {
    /// Keeps `secret` sealed, in the place of what was there.
    fn put(&self, id: &ShareId, secret: &[u8]) -> Result<(), EscrowVaultError>;

    /// What is kept.
    fn get(&self, id: &ShareId) -> Result<Zeroizing<Vec<u8>>, EscrowVaultError>;

    /// Destroys what is kept, also while the vault is locked; nothing there is fine.
    fn remove(&self, id: &ShareId) -> Result<(), EscrowVaultError>;
}

/// Why the safe did not do it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EscrowVaultError {
    /// This node has no vault.
    #[error("this node has no vault to keep shares in")]
    Absent,
    /// The disk refuses, or what it has cannot be read.
    #[error("the share cannot be kept or read: {0}")]
    Failed(String),
    /// The vault is locked.
    #[error("the vault of this node is locked; its owner opens it at its console")]
    Locked,
}
