//! Why a session ends.

use std::io;

use alknet_core::BoxError;
use alknet_store::{StoreError, StoreErrorCode};
use thiserror::Error;

/// Code of a [`Bye`](super::SyncMessage::Bye). The numbers stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ByeCode {
    /// 7: more sessions than a limit, or the peer is asked to pause. Come again later.
    Busy,
    /// 5: an entry has a time more than five minutes ahead of this node's clock.
    ClockAhead,
    /// 0: both have the same, or one of them stops.
    Done,
    /// 8: an error of the node that sends the code.
    Internal,
    /// 6: the document or a message of it is invalid, or unpacks to far more than its size.
    InvalidDocument,
    /// 2: a message is not one of the protocol, or comes when it is not expected.
    InvalidMessage,
    /// 1: there is no such bucket or branch, or the peer has no right there, or it is not synchronised.
    NotFound,
    /// 10: the bucket has no room for the changes, or the disk is full.
    NoSpace,
    /// 9: the branch takes no changes.
    ReadOnly,
    /// 11: the bucket is split on one side only.
    SplitDiffers,
    /// 4: a time limit passed.
    Timeout,
    /// 3: a message, a document or a tree is above a limit.
    TooLarge,
}

impl ByeCode {
    /// Every code, in the order of the numbers.
    pub const ALL: [Self; 12] = [
        Self::Done,
        Self::NotFound,
        Self::InvalidMessage,
        Self::TooLarge,
        Self::Timeout,
        Self::ClockAhead,
        Self::InvalidDocument,
        Self::Busy,
        Self::Internal,
        Self::ReadOnly,
        Self::NoSpace,
        Self::SplitDiffers,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NotFound => 1,
            Self::InvalidMessage => 2,
            Self::TooLarge => 3,
            Self::Timeout => 4,
            Self::ClockAhead => 5,
            Self::InvalidDocument => 6,
            Self::Busy => 7,
            Self::Internal => 8,
            Self::ReadOnly => 9,
            Self::NoSpace => 10,
            Self::SplitDiffers => 11,
        }
    }

    /// The code with this number. One of a later version counts as [`Internal`](Self::Internal).
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        let known = Self::ALL.into_iter().find(|code| code.number() == number);
        known.unwrap_or(Self::Internal)
    }

    /// The name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::ClockAhead => "clock-ahead",
            Self::Done => "done",
            Self::Internal => "internal",
            Self::InvalidDocument => "invalid-document",
            Self::InvalidMessage => "invalid-message",
            Self::NotFound => "not-found",
            Self::NoSpace => "no-space",
            Self::ReadOnly => "read-only",
            Self::SplitDiffers => "split-differs",
            Self::Timeout => "timeout",
            Self::TooLarge => "too-large",
        }
    }
}

/// Why a session ends before both sides have the same.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The peer ended the session.
    #[error("the peer ended the session: {}", .0.name())]
    Ended(ByeCode),
    /// The stream broke off, or ended without a goodbye.
    #[error("the stream broke off: {0}")]
    Stream(#[from] io::Error),
    /// This side ends the session.
    #[error("{reason} ({})", .code.name())]
    Refused {
        /// What the peer gets.
        code: ByeCode,
        /// What was wrong, for the log of this node. It names no files.
        reason: String,
    },
    /// The peer cannot be reached.
    #[error("the peer cannot be reached: {0}")]
    Unreachable(BoxError),
}

impl SyncError {
    /// An end by this side.
    pub(crate) fn refused(code: ByeCode, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Refused { code, reason }
    }

    /// The code that the session ended with, if it has one.
    #[must_use]
    pub const fn code(&self) -> Option<ByeCode> {
        match self {
            Self::Ended(code) | Self::Refused { code, .. } => Some(*code),
            Self::Stream(_) | Self::Unreachable(_) => None,
        }
    }

    /// The code, or a word for an end without one.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ended(code) | Self::Refused { code, .. } => code.name(),
            Self::Stream(_) => "broken-off",
            Self::Unreachable(_) => "unreachable",
        }
    }

    /// Whether a person has to change something before a session can succeed. The other ends pass by themselves, or when the
    /// peer is there and its owner lets this node in.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        match self.code() {
            None | Some(ByeCode::Busy | ByeCode::Done | ByeCode::NotFound) => false,
            Some(_) => true,
        }
    }
}

impl From<StoreError> for SyncError {
    fn from(error: StoreError) -> Self {
        let code = match error.code() {
            // A tree that takes too long to read does so again. As a passing error, it would never be a problem of the node.
            // The peer did not cause it.
            _ if error == StoreError::TimedOut => ByeCode::Internal,
            StoreErrorCode::NotFound => ByeCode::NotFound,
            StoreErrorCode::Busy => ByeCode::Busy,
            StoreErrorCode::ReadOnly | StoreErrorCode::Denied => ByeCode::ReadOnly,
            StoreErrorCode::NoSpace | StoreErrorCode::QuotaExceeded => ByeCode::NoSpace,
            StoreErrorCode::TooLarge => ByeCode::TooLarge,
            _ => ByeCode::Internal,
        };
        // Its text has paths.
        let reason = match &error {
            StoreError::TooLarge { .. } | StoreError::TimedOut => error.to_string(),
            other => format!("the store refuses the step: {}", other.code().name()),
        };
        Self::refused(code, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attack: a tree whose comparison always takes longer than it may, so that its branch is never synchronised again.
    #[test]
    fn a_read_that_takes_too_long_is_shown_to_the_owner() {
        let late = SyncError::from(StoreError::TimedOut);
        assert_eq!(late.code(), Some(ByeCode::Internal));
        assert!(late.is_lasting());
        let busy = SyncError::from(StoreError::Busy("too many reads wait"));
        assert!(!busy.is_lasting());
    }

    #[test]
    fn a_code_comes_back_by_its_number() {
        for (number, code) in (0..).zip(ByeCode::ALL) {
            assert_eq!(code.number(), number);
            assert_eq!(ByeCode::from_number(number), code);
        }
        assert_eq!(ByeCode::from_number(255), ByeCode::Internal);
    }
}
