//! Errors of the port, and of dialling another one.

use std::io;
use std::net::{IpAddr, SocketAddr};

use alknet_core::{CloseReason, DialErrorKind, PeerKey};
use alknet_tls::{PinMismatch, TlsError};
use thiserror::Error;

/// The reason for which the port is not served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The socket could not be bound to the address.
    #[error("cannot listen on {address}: {source}; {}", bind_hint(.source))]
    Bind {
        /// Address of the socket.
        address: SocketAddr,
        /// Error of the operating system.
        source: io::Error,
    },
    /// No address was given.
    #[error("listen.addrs is empty; '::' means every address of both families")]
    NoAddress,
    /// The iroh endpoint cannot be set up.
    #[error("iroh cannot be set up: {0}; check iroh.port and iroh.relays")]
    Iroh(String),
    /// The QUIC side refused its TLS configuration.
    #[error("QUIC cannot be set up: {0}")]
    Quic(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

fn bind_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program has the port; stop it or take another port",
        io::ErrorKind::AddrNotAvailable => {
            "this computer does not have the address: 'ip address' shows those that it has; '::' in listen.addrs or \
             --listen means all of them"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root, CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit of systemd), or a lower \
             net.ipv4.ip_unprivileged_port_start; or take one above, for example --port 8443"
        }
        _ => "check listen.addrs and listen.port",
    }
}

/// Why a connection could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EndpointDialError {
    /// The server's certificate chain or name is not valid.
    #[error(
        "the certificate of {target} is not trusted: {reason}; pin its key: ed25519:<64 hex>@{target}"
    )]
    Certificate {
        /// Host and port.
        target: String,
        /// The verifier's reason.
        reason: String,
    },
    /// This machine could not open a socket for the connection.
    #[error("cannot open a socket: {0}")]
    Local(io::Error),
    /// The server does not serve the protocol.
    #[error("{target} does not serve '{alpn}'")]
    NoProtocol {
        /// Host and port.
        target: String,
        /// The protocol that the client asked for.
        alpn: String,
    },
    /// No address of the name may be dialled.
    #[error(
        "{target} is at {address}, which is no public address; list its range where this server is \
         configured if it is meant"
    )]
    OutOfReach {
        /// Host and port.
        target: String,
        /// The first of its addresses.
        address: IpAddr,
    },
    /// The server holds another key than the pinned one, and its library does not say which.
    #[error(
        "{target} does not hold the key {expected}; if its identity changed on purpose, pin the \
         new key"
    )]
    OtherKey {
        /// Host and port.
        target: String,
        /// The pin.
        expected: PeerKey,
    },
    /// The server holds another key than the pinned one.
    #[error(transparent)]
    PinMismatch(#[from] PinMismatch),
    /// The server answered and refused the connection.
    #[error("{target} refused the connection: {reason}")]
    Refused {
        /// Host and port.
        target: String,
        /// The server's reason.
        reason: CloseReason,
    },
    /// The name has no address.
    #[error("cannot resolve '{host}': {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Error of the operating system.
        source: io::Error,
    },
    /// No answer came in time.
    #[error("{target} did not answer within {seconds} s")]
    TimedOut {
        /// Host and port.
        target: String,
        /// The time limit.
        seconds: u64,
    },
    /// TLS failed for another reason.
    #[error("TLS with {target} failed: {reason}")]
    Tls {
        /// Host and port.
        target: String,
        /// Reason, for a person.
        reason: String,
    },
    /// The client's own key cannot be used.
    #[error(transparent)]
    TlsSetup(#[from] TlsError),
    /// The target is an address without a pin, for which no server can prove anything.
    #[error("{target} is an address without a pinned key; write ed25519:<64 hex>@{target}")]
    UnknownPeer {
        /// Host and port.
        target: String,
    },
    /// The operating system could not reach the address.
    #[error("cannot reach {target}: {source}")]
    Unreachable {
        /// Host and port.
        target: String,
        /// Error of the operating system.
        source: io::Error,
    },
}

impl EndpointDialError {
    /// Whether a server answered that is not the expected one: another carriage would reach it again.
    pub(crate) fn is_wrong_server(&self) -> bool {
        matches!(
            self,
            Self::Certificate { .. } | Self::OtherKey { .. } | Self::PinMismatch(_)
        )
    }

    /// How much this error says about the server. Of two failed attempts the caller gets the one that says more.
    pub(crate) fn weight(&self) -> u8 {
        match self {
            Self::Local(_)
            | Self::OutOfReach { .. }
            | Self::Resolve { .. }
            | Self::UnknownPeer { .. } => 1,
            Self::TimedOut { .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::Tls { .. } | Self::TlsSetup(_) => 4,
            Self::Refused { .. } => 5,
            Self::NoProtocol { .. } => 6,
            Self::Certificate { .. } => 7,
            Self::OtherKey { .. } | Self::PinMismatch(_) => 8,
        }
    }
}

impl From<EndpointDialError> for alknet_core::DialError {
    fn from(error: EndpointDialError) -> Self {
        let kind = match &error {
            EndpointDialError::Certificate { .. }
            | EndpointDialError::OtherKey { .. }
            | EndpointDialError::PinMismatch(_) => DialErrorKind::Impostor,
            EndpointDialError::Local(_) | EndpointDialError::TlsSetup(_) => DialErrorKind::Local,
            EndpointDialError::NoProtocol { .. } => DialErrorKind::NoProtocol,
            EndpointDialError::OutOfReach { .. } => DialErrorKind::OutOfReach,
            EndpointDialError::Refused { .. } => DialErrorKind::Refused,
            EndpointDialError::TimedOut { .. } => DialErrorKind::TimedOut,
            EndpointDialError::UnknownPeer { .. } => DialErrorKind::UnknownPeer,
            EndpointDialError::Resolve { .. }
            | EndpointDialError::Tls { .. }
            | EndpointDialError::Unreachable { .. } => DialErrorKind::Unreachable,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_cannot_be_had_says_what_to_do() {
        for (kind, next) in [
            (io::ErrorKind::AddrInUse, "take another port"),
            (
                io::ErrorKind::AddrNotAvailable,
                "this computer does not have the address",
            ),
            (io::ErrorKind::PermissionDenied, "--port 8443"),
            (io::ErrorKind::Other, "check listen.addrs"),
        ] {
            let error = EndpointError::Bind {
                address: SocketAddr::from(([192, 0, 2, 77], 443)),
                source: kind.into(),
            };
            assert!(error.to_string().contains(next), "{error}");
        }
    }
}
