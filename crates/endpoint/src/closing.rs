//! QUIC connections that ended or were refused, and that the library still has (RFC 9000 section 10.2, closing and
//! draining). What came on them stays in memory for three probe timeouts, of which the peer chooses a part: up to 50
//! seconds. No sockets.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_core::{NetworkPrefix, SitePrefix};

use crate::windows::WindowOwner;

/// The number of such connections for each owner.
#[derive(Debug, Default)]
pub(crate) struct ClosingTotals {
    owners: HashMap<WindowOwner, u32>,
    /// The unknown peers' part of them, by the sites of their networks.
    sites: HashMap<SitePrefix, u32>,
    /// The number of all unknown peers' connections.
    unknown: u32,
    /// The number of these connections that came from an address at which the node saw a known peer, by that address.
    addresses: HashMap<IpAddr, u32>,
}

/// What one such connection counts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClosingConnection {
    pub(crate) owner: WindowOwner,
    /// The address for which it counts as well.
    pub(crate) address: Option<IpAddr>,
}

impl ClosingTotals {
    pub(crate) fn add(&mut self, kept: &ClosingConnection) {
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

    /// The number that came from this address, at which the node saw a known peer.
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

/// The number of QUIC connections that the library has and the node did not serve: their handshake is under way,
/// failed, or the node refused them after it.
#[derive(Debug, Default)]
pub(crate) struct UnservedConnections(Arc<AtomicUsize>);

/// One such connection. Dropping it counts one less.
#[derive(Debug)]
pub(crate) struct UnservedGuard(Arc<AtomicUsize>);

impl UnservedConnections {
    /// Counts one more.
    pub(crate) fn begin(&self) -> UnservedGuard {
        // The number stands for itself, and no other memory is published by it: relaxed ordering is enough.
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

/// Counts one less for `key`, and removes the key with its last.
pub(crate) fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        // An entry for each address that was ever connected would fill the memory.
        if *count == 0 {
            counts.remove(key);
        }
    }
}
