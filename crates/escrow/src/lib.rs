//! Shares of other nodes' keys, kept for the nodes of one owner: `escrow/*`.
//!
//! A node whose vault has a slot of type `kms` keeps one half of that slot's key beside its vault and
//! leaves the other half, its *share*, with a node of the same owner. Neither half says anything about
//! the key. At each start the node asks for its share; the owner may bind that to addresses, to an
//! approval, or take the share back, after which the stolen machine stays closed.
//!
//! Who asks is the key that the connection proved, never a field of the request. A share belongs to the
//! key that deposited it, and a key has one share.
//!
//! [`ShareRegistry`] decides and keeps the list; a [`EscrowVault`], which is the node's vault, keeps the shares
//! themselves; [`register`] makes operations of both. Nothing here knows a transport or a vault.

mod entry;
mod error;
mod index;
mod ops;
mod rate;
mod share_registry;
mod vault;

pub use entry::{KeyShare, ShareEntry, ShareId, ShareRelease, ShareRevocation};
pub use error::EscrowError;
pub use index::IndexError;
pub use ops::{ADMIN_SCOPE, CLIENT_SCOPE, register};
pub use rate::{RELEASE_INTERVAL, RELEASES_PER_MINUTE, RELEASES_PER_MINUTE_ALL};
pub use share_registry::{
    SHARES_MAX, ShareChange, ShareDeposit, ShareListing, ShareRegistry, ShareRequest,
};
pub use vault::{EscrowVault, EscrowVaultError};

#[cfg(test)]
mod tests;
