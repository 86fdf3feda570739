//! The reasons for which the node has no certificate.

use std::path::PathBuf;

use alknet_core::BoxError;
use thiserror::Error;

use super::keys::SealError;
use crate::error::TlsError;
use crate::pair::PairError;

/// Why an order failed, or could not begin.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcmeError {
    /// The key of the account is not available now.
    #[error("cannot use the account at the authority: {0}")]
    AccountKey(#[source] BoxError),
    /// The DNS part could not publish the record.
    #[error("cannot publish the record the authority looks for: {0}")]
    Dns(BoxError),
    /// The stored key of the certificate does not open.
    #[error("cannot open {path}: {source}")]
    KeyOpen {
        /// The file.
        path: PathBuf,
        /// Error that caused this one.
        source: SealError,
    },
    /// A key could not be sealed, and is not stored in the clear.
    #[error("cannot seal the key of the certificate: {0}")]
    KeySeal(#[source] SealError),
    /// A certificate cannot hold these names.
    #[error("{0}")]
    Names(String),
    /// The node can answer no challenge that the authority offers.
    #[error(
        "no way to show the authority that {0} is ours: dns-01, the only way for a name with '*', \
         needs a DNS zone that the node serves, and no node serves one yet; http-01 needs \
         http.port80"
    )]
    NoWay(String),
    /// The issued certificate cannot be used.
    #[error("the authority sent a certificate that cannot be used: {0}")]
    Pair(#[from] PairError),
    /// The authority could not be reached, or broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// The authority refused the order.
    #[error("the authority refuses: {0}")]
    Refused(String),
    /// The authority took too long.
    #[error("the authority did not finish within {0} s")]
    TimedOut(u64),
    /// An error of the node's own keys or files.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl AcmeError {
    /// Whether only the seal is locked, so that a later attempt may succeed.
    pub(super) fn is_locked(&self) -> bool {
        matches!(
            self,
            Self::KeyOpen {
                source: SealError::Locked(_),
                ..
            } | Self::KeySeal(SealError::Locked(_))
        )
    }
}

impl From<instant_acme::Error> for AcmeError {
    fn from(error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Refused(problem.to_string()),
            other => Self::Protocol(format!("cannot talk to the authority: {other}")),
        }
    }
}
