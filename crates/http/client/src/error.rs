//! The errors of a request to another server.

use std::time::Duration;

use alknet_core::{CapabilityError, DialError, PeerAddrError};
use http::Uri;
use thiserror::Error;

use crate::limits::{HEADERS_MAX, REDIRECTS_MAX, URI_BYTES_MAX};
use crate::origin::HttpOrigin;

/// Why a request got no response, or its response was not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The connection broke, or the server sent something other than HTTP.
    #[error("{origin} broke off: {}", chain(.source))]
    Broken {
        /// Scheme, host and port.
        origin: String,
        /// The error of hyper.
        source: hyper::Error,
    },
    /// The credential for the server cannot be used.
    #[error("the credential for this server cannot be used: {0}")]
    Credential(#[from] CapabilityError),
    /// The server cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The server sent more headers than the client reads.
    #[error("{origin} sends more than {HEADERS_MAX} headers")]
    Headers {
        /// Scheme, host and port.
        origin: String,
    },
    /// The host is not on the list.
    #[error(
        "{0} is not among the hosts that may be asked; list it where this server is configured"
    )]
    Host(String),
    /// The server sent nothing for this time.
    #[error("nothing more of the answer came within {} s", .0.as_secs())]
    Idle(Duration),
    /// Other responses use the memory for responses now.
    #[error("there is no room for the answer now; ask again later")]
    NoRoom,
    /// The server has no TLS.
    #[error("{0} is not https; list it as plain where this server is configured if that is meant")]
    Plain(String),
    /// The redirect leads to a server that the client does not follow to.
    #[error("{origin} redirects to {to}, which is not followed")]
    Redirect {
        /// Scheme, host and port.
        origin: String,
        /// The target, without its query.
        to: String,
    },
    /// The server redirected too often.
    #[error("{origin} redirects more than {REDIRECTS_MAX} times")]
    Redirects {
        /// Scheme, host and port of the last server.
        origin: String,
    },
    /// The URI names no server.
    #[error("'{uri}' names no server: {source}")]
    Target {
        /// The URI as written, without its query.
        uri: String,
        /// The mistake in it.
        source: PeerAddrError,
    },
    /// The server did not respond in time.
    #[error("no whole answer within {}", whole_units(*.0))]
    TimedOut(Duration),
    /// The response is longer than the limit.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The URI is not `https://host/…`.
    #[error("'{0}' is no https:// address")]
    Uri(String),
    /// The URI is longer than servers accept.
    #[error("the address of a request is longer than {URI_BYTES_MAX} bytes")]
    UriTooLong,
}

impl HttpError {
    /// Whether no byte of the request reached a server.
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

    /// The error of a connection to `origin`.
    pub(crate) fn broken(origin: &HttpOrigin, source: hyper::Error) -> Self {
        Self::Broken {
            origin: origin.to_string(),
            source,
        }
    }

    /// Whether the same request may succeed later.
    pub(crate) fn is_worth_another_try(&self) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::Dial(error) => !error.is_permanent(),
            _ => false,
        }
    }
}

/// A URI for a message, without its query and user, which may hold secrets.
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

/// The error with its causes, because hyper's own text says little.
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

/// A time limit in seconds, or in milliseconds if it is below one second, since a call may have less than a second
/// left.
fn whole_units(limit: Duration) -> String {
    match limit.as_secs() {
        0 => format!("{} ms", limit.as_millis()),
        seconds => format!("{seconds} s"),
    }
}
