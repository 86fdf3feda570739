//! Why there is no certificate.

use std::path::PathBuf;

use alknet_core::BoxError;
use thiserror::Error;

use super::keys::SealError;
use crate::error::TlsError;
use crate::pair::PairError;

/// Why an order gave no certificate, or none could be begun.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcmeError {
    /// The key of the account is not to be had now.
    #[error("cannot use the account at the authority: {0}")]
    AccountKey(#[source] BoxError),
    /// The DNS part did not publish the record.
    #[error("cannot publish the record the authority looks for: {0}")]
    Dns(BoxError),
    /// The key of the certificate that was kept does not open.
    #[error("cannot open {path}: {source}")]
    KeyOpen {
        /// The file.
        path: PathBuf,
        /// Error that caused this one.
        source: SealError,
    },
    /// A key cannot be sealed, and is not written without.
    #[error("cannot seal the key of the certificate: {0}")]
    KeySeal(#[source] SealError),
    /// The names cannot stand in one certificate.
    #[error("{0}")]
    Names(String),
    /// Nothing the authority offers can be answered.
    #[error(
        "no way to show the authority that {0} is ours; a name with '*' needs DNS, and any way \
         that tls.acme.challenge names must be there"
    )]
    NoWay(String),
    /// The certificate that came cannot be used.
    #[error("the authority sent a certificate that cannot be used: {0}")]
    Pair(#[from] PairError),
    /// The authority could not be talked to.
    #[error("{0}")]
    Protocol(String),
    /// The authority is not convinced.
    #[error("the authority refuses: {0}")]
    Refused(String),
    /// The authority took too long.
    #[error("the authority did not finish within {0} s")]
    TimedOut(u64),
    /// Keys or files of our own.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl AcmeError {
    /// Whether all that is missing is what opens and seals keys, so that it may do later.
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
