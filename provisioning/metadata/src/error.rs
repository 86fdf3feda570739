//! Why a metadata service gave no document.

use std::io;

use thiserror::Error;

use crate::http::ResponseParseError;

/// Why a metadata service gave no document, or took no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The response breaks HTTP/1.1 or a limit.
    #[error("it answered something that is no HTTP response: {0}")]
    Response(#[from] ResponseParseError),
    /// The content is not base64, which Azure uses.
    #[error("its user data are no base64")]
    Base64,
    /// The service refuses connections, or nothing is at its address.
    #[error("it cannot be reached ({0})")]
    Connect(io::Error),
    /// The wire server's goal state does not have what the report needs.
    #[error("its goal state lacks {0}")]
    GoalState(&'static str),
    /// The connection broke.
    #[error("the connection broke ({0})")]
    Io(io::Error),
    /// The user data are not an alknet document.
    #[error("its user data are {0}, and not an alknet document")]
    NotADocument(&'static str),
    /// Another program than Google's metadata server answered.
    #[error("the response has no Metadata-Flavor: Google, so it is not of a metadata server")]
    NoFlavor,
    /// EC2 gave no token. Its older protocol without a token is not used, because every request
    /// that a client makes for an attacker gets a response there.
    #[error("it gives no token of IMDSv2 ({0}), and IMDSv1 is not used")]
    NoToken(&'static str),
    /// The service sends the client elsewhere.
    #[error("it redirects (status {0}), and no redirect is followed")]
    Redirect(u16),
    /// Another status than 200 and 404.
    #[error("it refused with status {0}")]
    Status(u16),
    /// The time is over.
    #[error("it did not answer in time")]
    Time,
}

impl MetadataError {
    /// Whether another request a moment later may succeed.
    pub(crate) fn is_for_now(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Io(_) => true,
            // EC2 asks its clients to repeat requests that it throttled or failed.
            Self::Status(status) => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Whether the same request gets the same response until the owner changes something at the
    /// cloud.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Base64 | Self::NotADocument(_))
            || matches!(self, Self::Response(ResponseParseError::BodyLong(_)))
    }

    /// An error of a socket whose time ends with that of the whole request.
    pub(crate) fn from_io(error: io::Error) -> Self {
        match error.kind() {
            // A read timeout is `WouldBlock` on Linux.
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Time,
            _ => Self::Io(error),
        }
    }
}
