//! Why an applicant is not let in, and how the hub says so.

use std::time::Duration;

use alknet_core::IdentityStoreError;
use thiserror::Error;

use crate::names::NameError;
use crate::pending::PENDING_MAX;
use crate::record::USES_MAX;
use crate::store::TokenStoreError;
use crate::token::EnrolTokenError;
use crate::wire::JoinRefusal;

/// How long an applicant that waits leaves the hub alone between two requests, in milliseconds.
const REQUEST_AGAIN_MS: u64 = 5_000;
/// Like `REQUEST_AGAIN_MS`, for an applicant that finds no room.
const OVERLOADED_MS: u64 = 10_000;

/// Why an applicant is not let in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Like [`Invalid`](Self::Invalid), after too many such from the same network: for how long they are
    /// answered so.
    #[error("too many wrong tokens came from this network; a right one is taken at any time")]
    Guesses(Duration),
    /// The token is unknown, used, over or damaged, or enrolment is off: one answer for all, so that an attacker does
    /// not learn which.
    #[error("the token is not valid here, or not any more: ask for a new join string")]
    Invalid,
    /// No key, or one that is not Ed25519.
    #[error("show an Ed25519 key in the TLS handshake")]
    Key,
    /// A name or a label that breaks a rule.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Another peer has the name.
    #[error("the name '{0}' is taken: choose another")]
    NameTaken(String),
    /// No room at the moment: the applicant may try again.
    #[error("{0}")]
    Overloaded(&'static str),
    /// An administrator has to let the key in; the text is its fingerprint.
    #[error("waiting to be let in; tell an administrator of the hub: {0}")]
    Pending(String),
    /// The system has no random bytes to give.
    #[error("the hub has no random bytes")]
    Randomness,
    /// The peers cannot be written.
    #[error("the hub cannot keep its peers: {0}")]
    Store(#[from] IdentityStoreError),
    /// The tokens cannot be read or written.
    #[error("the hub cannot keep its tokens: {0}")]
    Tokens(#[from] TokenStoreError),
}

impl EnrolError {
    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid => "ENROLL_INVALID",
            Self::Key => "UNAUTHENTICATED",
            Self::Name(_) => "INVALID_INPUT",
            Self::NameTaken(_) => "ENROLL_NAME_TAKEN",
            Self::Guesses(_) | Self::Overloaded(_) => "OVERLOADED",
            Self::Pending(_) => "ENROLL_PENDING",
            Self::Randomness | Self::Store(_) | Self::Tokens(_) => "INTERNAL",
        }
    }

    /// The HTTP status that says the same.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Invalid => 403,
            Self::Key => 401,
            Self::Name(_) => 422,
            Self::NameTaken(_) => 409,
            // RFC 6585, section 4: the client may come again, and later.
            Self::Guesses(_) | Self::Overloaded(_) => 429,
            // RFC 9110, section 15.3.3: accepted, and an administrator decides later.
            Self::Pending(_) => 202,
            Self::Randomness | Self::Store(_) | Self::Tokens(_) => 500,
        }
    }

    /// Whether it may have been a guess.
    #[must_use]
    pub const fn is_suspicious(&self) -> bool {
        matches!(self, Self::Invalid | Self::Key)
    }

    /// The answer. What went wrong inside the hub is the hub's own business.
    #[must_use]
    pub fn refusal(&self) -> JoinRefusal {
        let retry_after_ms = match self {
            Self::Pending(_) => Some(REQUEST_AGAIN_MS),
            Self::Guesses(left) => Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            Self::Overloaded(_) => Some(OVERLOADED_MS),
            _ => None,
        };
        let message = match self.code() {
            "INTERNAL" => "the hub failed: look at its log".to_owned(),
            _ => self.to_string(),
        };
        JoinRefusal {
            code: self.code().into(),
            message,
            retryable: retry_after_ms.is_some(),
            retry_after_ms,
        }
    }
}

/// Why an administrator's approval fails.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ApproveError {
    /// The approver is not let in any more, or does not hold what the role gives.
    #[error("you are not let in any more, or do not hold what the role gives")]
    Approver,
    /// As for every other caller.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The key is of a peer that did not enrol, or that may do more than the approver, who is no administrator.
    #[error(
        "the key is of a peer that did not enrol here, or that may do more than you: an administrator lets it in"
    )]
    Peer,
    /// No applicant waits under this key or fingerprint.
    #[error(
        "no applicant waits under this key or fingerprint: at most {max} wait, for 10 minutes",
        max = PENDING_MAX
    )]
    Unknown,
}

/// Why no token is made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InviteError {
    /// The clock is not sane.
    #[error(
        "the clock of the hub is not set, so that nothing it makes would end: wait for the network"
    )]
    Clock,
    /// The inviter is not let in any more, or does not hold what the role gives.
    #[error("you are not let in any more, or do not hold what the role gives")]
    Maker,
    /// A label breaks a rule.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The peers cannot be read.
    #[error(transparent)]
    Peers(#[from] IdentityStoreError),
    /// The tokens cannot be read or written.
    #[error(transparent)]
    Store(#[from] TokenStoreError),
    /// The system has no random bytes to give.
    #[error(transparent)]
    Token(#[from] EnrolTokenError),
    /// Too many tokens wait to be used.
    #[error("a thousand tokens wait to be used already")]
    TooMany,
    /// Its life is too short or too long.
    #[error("a token lives 1 second to 30 days")]
    Ttl,
    /// It is for no use, or for too many.
    #[error("a token counts 1 to {max} times", max = USES_MAX)]
    Uses,
}
