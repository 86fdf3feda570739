//! The peers of this node: their operations, and which peer answers a call.

mod absent;
mod attach;
mod forward;
mod forwarder;
mod health;
mod list;
mod reexport;
mod scope;
mod state;
mod table;

use std::sync::Arc;

use alknet_core::PeerId;

pub use attach::ImportSummary;
pub use forwarder::CallForwarder;
pub use reexport::ReExport;
pub use scope::{NameSet, ScopedPeerEnv};
pub use state::PeerState;
pub use table::PeerTable;

pub(crate) use absent::absent;
pub(crate) use attach::{follow, peer_of};
pub(crate) use forward::forwarding;
pub(crate) use health::watch_over;
pub(crate) use list::listing;
pub(crate) use state::{AtomicPeerState, PeerEvent};

/// The peer that a call goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerRef {
    /// The first attached peer that serves the operation, in the order they attached.
    Any,
    /// One of the peers that serve the operation.
    Policy(RoutingPolicy),
    /// This peer only: `NOT_FOUND` when it is not attached or does not serve the operation.
    Specific(PeerId),
}

/// How a call chooses one of several peers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoutingPolicy {
    /// The same peer for the same key, while it is attached; when peers come or go, only the keys of those move.
    Affinity(Arc<str>),
    /// The peer with the fewest calls of this node in flight; in turn among equals.
    LeastInFlight,
    /// Each in turn.
    RoundRobin,
}
