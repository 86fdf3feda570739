use std::{io, net::SocketAddr};

use thiserror::Error;

/// Errors of the network's or the clock's setup.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// A static address in the configuration does not parse.
    #[error("`{0}` is no address with prefix length; write it as 192.0.2.10/24 or 2001:db8::1/64")]
    BadAddress(String),
    /// The kernel refused a call that sets the clock.
    #[error("cannot set the clock: {0}; it needs CAP_SYS_TIME")]
    Clock(#[source] io::Error),
    /// A time server did not give the time.
    #[error("{server} did not give the time: {source}")]
    Exchange {
        /// The server.
        server: SocketAddr,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A name could not be resolved.
    #[error("cannot resolve {name}: {reason}")]
    Lookup {
        /// The name.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {source}")]
    Netlink {
        /// The request to the kernel.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A socket could not be made.
    #[error("cannot open {what}: {source}; is the kernel built with it, and are we root?")]
    Socket {
        /// The kind of the socket.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
