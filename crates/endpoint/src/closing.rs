//! QUIC connections that ended or were refused, and that the library has not let go of (RFC 9000, 10.2: closing and
//! draining). What came on them stays in memory for three probe timeouts, of which the peer chooses a part: up to 50
//! seconds. No sockets.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_core::{NetworkPrefix, SitePrefix};

use crate::windows::WindowOwner;

/// How many there are, by whose they were.
#[derive(Debug, Default)]
pub(crate) struct ClosingTotals {
    owners: HashMap<WindowOwner, u32>,
    /// Those of unknown peers again, by the sites of their networks.
    sites: HashMap<SitePrefix, u32>,
    /// All of unknown peers.
    unknown: u32,
    /// Those of them again that came from an address at which a known peer was seen, by that address.
    addresses: HashMap<IpAddr, u32>,
}

/// What one of them counts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClosingConnection {
    pub(crate) owner: WindowOwner,
    /// The address where it counts as well.
    pub(crate) address: Option<IpAddr>,
}

impl ClosingTotals {
    pub(crate) fn keep(&mut self, kept: &ClosingConnection) {
        *self.owners.entry(kept.owner.clone()).or_default() += 1;
        if let WindowOwner::Network(network) = kept.owner {
            *self.sites.entry(network.site()).or_default() += 1;
            self.unknown += 1;
        }
        if let Some(address) = kept.address {
            *self.addresses.entry(address).or_default() += 1;
        }
    }

    pub(crate) fn let_go(&mut self, kept: &ClosingConnection) {
        decrement(&mut self.owners, &kept.owner);
        if let WindowOwner::Network(network) = kept.owner {
            decrement(&mut self.sites, &network.site());
            self.unknown = self.unknown.saturating_sub(1);
        }
        if let Some(address) = &kept.address {
            decrement(&mut self.addresses, address);
        }
    }

    /// Those that came from an address at which a known peer was seen.
    pub(crate) fn at(&self, address: IpAddr) -> u32 {
        self.addresses.get(&address).copied().unwrap_or(0)
    }

    pub(crate) fn owner_count(&self, owner: &WindowOwner) -> u32 {
        self.owners.get(owner).copied().unwrap_or(0)
    }

    pub(crate) fn of_site(&self, network: NetworkPrefix) -> u32 {
        self.sites.get(&network.site()).copied().unwrap_or(0)
    }

    pub(crate) const fn of_unknown(&self) -> u32 {
        self.unknown
    }
}

/// QUIC connections that the library has and that were not served: their handshake is under way or failed, or they were
/// refused after it.
#[derive(Debug, Default)]
pub(crate) struct UnservedConnections(Arc<AtomicUsize>);

/// One of them. Dropping it counts one less.
#[derive(Debug)]
pub(crate) struct UnservedGuard(Arc<AtomicUsize>);

impl UnservedConnections {
    /// Counts one more.
    pub(crate) fn begin(&self) -> UnservedGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        UnservedGuard(Arc::clone(&self.0))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for UnservedGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one less of a key, which is forgotten with its last.
pub(crate) fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
