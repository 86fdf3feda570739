//! The totals of all windows, and how many more bytes each owner may have.

use std::collections::HashMap;
use std::iter;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::limits::leaves_capacity;
use alknet_core::{NetworkPrefix, PeerId, SitePrefix};

/// One peer's windows may have this part of all bytes: a half.
const SHARE: usize = 2;
/// All unknown peers' windows may have this part of all bytes: a quarter.
const UNKNOWN_PEERS_SHARE: usize = 4;
/// One network's unknown peers may have this part of the unknown peers' bytes: a quarter.
const NETWORK_SHARE: usize = 4;
/// One site's unknown peers may have this part of the unknown peers' bytes: a half.
const SITE_SHARE: usize = 2;
/// Windows may have this part of all bytes, and of one peer's, before anything is read: a half. Many silent
/// connections leave room for one that needs a large window.
const START_SHARE: usize = 2;
/// Smallest grant in bytes: each grant costs a frame to the peer.
const STEP_BYTES: usize = 16 << 10;

/// The bytes of all windows, beyond those with which each begins.
#[derive(Debug)]
pub(crate) struct ReceiveWindows {
    most: usize,
    used: Mutex<WindowTotals>,
}

#[derive(Debug, Default)]
struct WindowTotals {
    all: usize,
    unknown_peers: usize,
    each: HashMap<WindowOwner, usize>,
    sites: HashMap<SitePrefix, usize>,
}

/// The owner of windows that count together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WindowOwner {
    Peer(PeerId),
    /// The unknown peers of a network.
    Network(NetworkPrefix),
}

/// The reason for which a window grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowDemand {
    /// The node reads as fast as the peer may send.
    Read,
    /// The peer is known.
    Start,
}

impl ReceiveWindows {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            used: Mutex::default(),
        }
    }

    /// Grants `bytes`, or a half, a quarter and so on, as much as there is room for. Returns how many.
    pub(super) fn grant(&self, owner: &WindowOwner, bytes: usize, need: WindowDemand) -> usize {
        let mut used = self.lock();
        // A smaller grant is better than none: the window may still double later.
        let halves = iter::successors(Some(bytes), |bytes| Some(bytes / 2));
        let mut sizes = halves.take_while(|bytes| *bytes >= STEP_BYTES);
        let granted = sizes.find(|bytes| self.has_capacity(&used, owner, *bytes, need));
        let granted = granted.unwrap_or(0);
        used.add(owner, granted);
        granted
    }

    /// Moves the count of `bytes` from `old` to `new`. Returns false, and leaves the count, where `new` has no room
    /// for them.
    pub(super) fn hand_over(&self, old: &WindowOwner, new: &WindowOwner, bytes: usize) -> bool {
        let mut used = self.lock();
        // The bytes are taken off first: bytes that only change their owner have room in the total.
        used.take(old, bytes);
        let has_capacity = bytes == 0 || self.has_capacity(&used, new, bytes, WindowDemand::Read);
        used.add(if has_capacity { new } else { old }, bytes);
        has_capacity
    }

    pub(super) fn give_back(&self, owner: &WindowOwner, bytes: usize) {
        self.lock().take(owner, bytes);
    }

    fn has_capacity(
        &self,
        used: &WindowTotals,
        owner: &WindowOwner,
        bytes: usize,
        need: WindowDemand,
    ) -> bool {
        let (own, all) = (used.owner_bytes(owner) + bytes, used.all + bytes);
        let each = match owner {
            WindowOwner::Peer(_) => self.most / SHARE,
            WindowOwner::Network(network) => {
                let unknown_peers = self.most / UNKNOWN_PEERS_SHARE;
                let site = used.of_site(*network) + bytes;
                if used.unknown_peers + bytes > unknown_peers || site > unknown_peers / SITE_SHARE {
                    return false;
                }
                unknown_peers / NETWORK_SHARE
            }
        };
        match need {
            WindowDemand::Read => own <= each && leaves_capacity(own, all, self.most),
            WindowDemand::Start => own <= each / START_SHARE && all <= self.most / START_SHARE,
        }
    }

    fn lock(&self) -> MutexGuard<'_, WindowTotals> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All bytes, and the number of owners.
    #[cfg(test)]
    pub(super) fn used(&self) -> (usize, usize) {
        let used = self.lock();
        (used.all, used.each.len() + used.sites.len())
    }
}

impl WindowTotals {
    fn owner_bytes(&self, owner: &WindowOwner) -> usize {
        self.each.get(owner).copied().unwrap_or_default()
    }

    fn of_site(&self, network: NetworkPrefix) -> usize {
        let site = self.sites.get(&network.site());
        site.copied().unwrap_or_default()
    }

    fn add(&mut self, owner: &WindowOwner, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.all += bytes;
        *self.each.entry(owner.clone()).or_default() += bytes;
        if let WindowOwner::Network(network) = owner {
            self.unknown_peers += bytes;
            *self.sites.entry(network.site()).or_default() += bytes;
        }
    }

    fn take(&mut self, owner: &WindowOwner, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.all -= bytes;
        subtract(&mut self.each, owner, bytes);
        if let WindowOwner::Network(network) = owner {
            self.unknown_peers -= bytes;
            subtract(&mut self.sites, &network.site(), bytes);
        }
    }
}

fn subtract<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K, bytes: usize) {
    if let Some(count) = counts.get_mut(key) {
        *count -= bytes;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
