//! Why a share was not taken, released or changed.

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use crate::index::IndexError;
use crate::share_registry::SHARES_MAX;
use crate::vault::EscrowVaultError;

/// What a share registry answers in the place of what it was asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EscrowError {
    /// It may not be asked for from there.
    #[error("this share is not released to the address that asks")]
    Address,
    /// Several are called so.
    #[error("several shares belong to a peer of that name; take the id that escrow/list shows")]
    Ambiguous,
    /// The share that is there is another.
    #[error("this key has deposited another share already")]
    Conflict,
    /// As many shares as there may be.
    #[error("there are {SHARES_MAX} shares, more are not kept here")]
    Full,
    /// The list cannot be kept.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The peer has a share under another key.
    #[error(
        "another key of this peer has deposited a share already; an administrator removes it first"
    )]
    OtherKey,
    /// An administrator has to approve the release.
    #[error("the release of share {0} waits for an administrator's approval")]
    Pending(String),
    /// Too often.
    #[error("this share was released too often; try again in {} s", .0.as_secs() + 1)]
    Rate(Duration),
    /// Several addresses wait for a release.
    #[error("several addresses wait for this share: {0}; say which one gets it")]
    Several(String),
    /// It was taken back.
    #[error("this share was revoked")]
    Revoked,
    /// The vault of this node.
    #[error(transparent)]
    Safe(#[from] EscrowVaultError),
    /// No such share, or that of another key: both look the same.
    #[error("there is no such share")]
    Unknown,
}

impl EscrowError {
    /// The error for an approval that does not say which of these addresses it is for.
    pub(crate) fn several(addresses: &[Option<IpAddr>]) -> Self {
        let each = addresses.iter().map(|address| match address {
            Some(address) => address.to_string(),
            None => "an unknown address".to_owned(),
        });
        Self::Several(each.collect::<Vec<_>>().join(", "))
    }
}
