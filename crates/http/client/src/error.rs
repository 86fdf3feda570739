//! Why there is no answer.

use std::time::Duration;

use alknet_core::{CapabilityError, DialError, PeerAddrError};
use http::Uri;
use thiserror::Error;

use crate::limits::{HEADERS_MAX, REDIRECTS_MAX, URI_BYTES_MAX};
use crate::origin::HttpOrigin;

/// Why a request was not answered, or its answer not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The connection broke, or what came is no HTTP.
    #[error("{origin} broke off: {}", chain(.source))]
    Broken {
        /// Scheme, host and port.
        origin: String,
        /// As hyper tells it.
        source: hyper::Error,
    },
    /// The secret for the server cannot be used.
    #[error("the credential for this server cannot be used: {0}")]
    Credential(#[from] CapabilityError),
    /// The server cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The server sends more headers than are read.
    #[error("{origin} sends more than {HEADERS_MAX} headers")]
    Headers {
        /// Scheme, host and port.
        origin: String,
    },
    /// A host that is not listed.
    #[error(
        "{0} is not among the hosts that may be asked; list it where this server is configured"
    )]
    Host(String),
    /// Nothing came for so long.
    #[error("nothing more of the answer came within {} s", .0.as_secs())]
    Idle(Duration),
    /// The memory for answers is taken by others now.
    #[error("there is no room for the answer now; ask again later")]
    NoRoom,
    /// A server without TLS.
    #[error("{0} is not https; list it as plain where this server is configured if that is meant")]
    Plain(String),
    /// Somewhere else than can be followed to.
    #[error("{origin} redirects to {to}, which is not followed")]
    Redirect {
        /// Scheme, host and port.
        origin: String,
        /// Where to, without its query.
        to: String,
    },
    /// One redirect after the other.
    #[error("{origin} redirects more than {REDIRECTS_MAX} times")]
    Redirects {
        /// Scheme, host and port of the last.
        origin: String,
    },
    /// Nothing that can be dialled.
    #[error("'{uri}' names no server: {source}")]
    Target {
        /// As it was written, without its query.
        uri: String,
        /// What is wrong with it.
        source: PeerAddrError,
    },
    /// No answer in time.
    #[error("no whole answer within {}", whole_units(*.0))]
    TimedOut(Duration),
    /// The answer is longer than it may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// Not `https://host/…`.
    #[error("'{0}' is no https:// address")]
    Uri(String),
    /// A URI that no server would read.
    #[error("the address of a request is longer than {URI_BYTES_MAX} bytes")]
    UriTooLong,
}

impl HttpError {
    /// Whether nothing of the request reached a server.
    #[must_use]
    pub fn is_before_sending(&self) -> bool {
        matches!(
            self,
            Self::Credential(_)
                | Self::Dial(_)
                | Self::Host(_)
                | Self::Plain(_)
                | Self::Target { .. }
                | Self::Uri(_)
                | Self::UriTooLong
        )
    }

    /// What hyper says of a connection to `origin`.
    pub(crate) fn broken(origin: &HttpOrigin, source: hyper::Error) -> Self {
        Self::Broken {
            origin: origin.to_string(),
            source,
        }
    }

    /// Whether the same request may do better later.
    pub(crate) fn is_worth_another_try(&self) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::Dial(error) => !error.is_permanent(),
            _ => false,
        }
    }
}

/// A URI as a message may show it: queries hold keys now and then.
pub(crate) fn shown(uri: &Uri) -> String {
    let mut text = uri.to_string();
    text.truncate(text.find(['?', '#']).unwrap_or(text.len()));
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            text.replace_range(scheme + 3..=at, "");
        }
        _ => {}
    }
    text
}

/// hyper's own text says little; what it stands on says the rest.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// A time limit in seconds, or in milliseconds where it is shorter than one: a call may have less than a second left.
fn whole_units(limit: Duration) -> String {
    match limit.as_secs() {
        0 => format!("{} ms", limit.as_millis()),
        seconds => format!("{seconds} s"),
    }
}
