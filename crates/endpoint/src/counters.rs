//! The counters of the port since it was bound.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident),+ $(,)?) => {
        /// Totals since the port was bound, except where a field says otherwise.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct EndpointCounters {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl EndpointCounters {
            /// Every counter with its name, for metrics.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct EndpointTotals {
            $(pub(crate) $name: AtomicCount,)+
        }

        impl EndpointTotals {
            pub(crate) fn snapshot(&self) -> EndpointCounters {
                EndpointCounters { $($name: self.$name.0.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Keys and tokens of no known peer, shown where one was required.
    auth_failures,
    /// Connections being served now.
    connections_open,
    /// Connections handed to a handler over iroh.
    connections_iroh,
    /// Connections handed to a handler over QUIC.
    connections_quic,
    /// Connections handed to a handler over TCP.
    connections_tcp,
    /// Connections of unknown peers that the node ended because others needed their slot.
    evicted,
    /// Handlers that panicked.
    handler_panics,
    /// Handshakes that the node ended because newer ones needed their slot.
    handshakes_evicted,
    /// Handshakes that failed: alerts, resets, garbage.
    handshakes_failed,
    /// Packets of a flood that got no answer.
    handshakes_ignored,
    /// Handshakes finished.
    handshakes_ok,
    /// Handshakes refused by a limit.
    handshakes_refused,
    /// QUIC clients asked to prove their address.
    handshakes_retried,
    /// Handshakes that took too long.
    handshakes_timeout,
    /// Connections refused for lack of a handler.
    no_handler,
    /// Connections refused because one peer had too many.
    peer_limit_hits,
    /// Times that a network had too many failed logins.
    penalties,
    /// Guesses refused because their network had made too many.
    penalty_refusals,
    /// Connections refused because the protocol wants a known key.
    policy_refusals,
    /// Connections ended because the machine had little memory left.
    relieved,
    /// Connections ended because their peer was removed or disabled.
    revoked,
    /// Connections that gave way to a newer one of the same peer.
    superseded,
}

#[derive(Debug, Default)]
pub(crate) struct AtomicCount(AtomicU64);

impl EndpointTotals {
    /// Handshakes that failed without an alert.
    pub(crate) fn failed_otherwise(&self) -> u64 {
        self.handshakes_failed.0.load(Ordering::Relaxed)
    }
}

impl AtomicCount {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
