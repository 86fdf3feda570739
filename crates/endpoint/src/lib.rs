//! The one port: QUIC on UDP and TLS on TCP of the same number, both ways.
//!
//! [`EndpointServer`] binds, admits, finishes handshakes and hands each connection to the handler its ALPN
//! names. [`EndpointDialer`] reaches such a port, by pinned key or by public name. An iroh endpoint can stand
//! beside it. Handlers and callers see `alknet-core`'s `Connection` only.

mod accept;
mod admission;
mod closing;
mod connection_slots;
mod counters;
mod dial;
mod error;
mod eviction;
mod hello;
mod iroh;
mod limits;
mod live;
mod metrics;
mod nesting;
mod penalty;
mod plain;
mod quic;
mod serve;
mod server;
mod sockets;
mod tcp;
mod windows;

pub use alknet_core::{DialHost, PeerAddr as Target, PeerAddrError as TargetError};

pub use self::iroh::IrohOptions;
pub use counters::EndpointCounters;
pub use dial::EndpointDialer;
pub use error::{EndpointDialError, EndpointError};
pub use limits::EndpointLimits;
pub use live::{ConnectionSummary, ReliefScope};
pub use nesting::Nesting;
pub use plain::{PlainListener, plain_listeners};
pub use server::{DrainSummary, EndpointHealth, EndpointServer, ServerOptions};
