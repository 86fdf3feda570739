//! Whose windows have how many bytes, and how many more they may have.

use std::collections::HashMap;
use std::iter;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_core::limits::leaves_room;
use alknet_core::{NetworkPrefix, PeerId, SitePrefix};

/// Which part of all bytes the windows of one peer may have: a half.
const SHARE: usize = 2;
/// Which part of them those of all unknown peers may have: a quarter.
const STRANGERS: usize = 4;
/// Which part of the unknown peers' those of one network may have: a quarter.
const STRANGERS_SHARE: usize = 4;
/// Which part of the unknown peers' those of one site may have: a half.
const SITE_SHARE: usize = 2;
/// Which part of all bytes, and of what one peer may have, windows may have before anything is read: a half. Many
/// connections that say nothing leave room for one that needs a large window.
const START_SHARE: usize = 2;
/// Bytes below which nothing is granted: each grant is a frame to the peer.
const STEP_BYTES: usize = 16 << 10;

/// The bytes of all windows, beside those with which each begins.
#[derive(Debug)]
pub(crate) struct ReceiveWindows {
    most: usize,
    taken: Mutex<WindowTotals>,
}

#[derive(Debug, Default)]
struct WindowTotals {
    all: usize,
    strangers: usize,
    each: HashMap<WindowOwner, usize>,
    sites: HashMap<SitePrefix, usize>,
}

/// Whose windows count together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WindowOwner {
    Peer(PeerId),
    /// Unknown peers.
    Network(NetworkPrefix),
}

/// What a window grows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowDemand {
    /// Its peer is read as fast as it may send.
    Read,
    /// Its peer is known.
    Start,
}

impl ReceiveWindows {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Mutex::default(),
        }
    }

    /// Takes `bytes`, or a half, a quarter and so on, what there is room for; returns how many.
    pub(super) fn grant(&self, owner: &WindowOwner, bytes: usize, need: WindowDemand) -> usize {
        let mut taken = self.lock();
        let halves = iter::successors(Some(bytes), |bytes| Some(bytes / 2));
        let mut sizes = halves.take_while(|bytes| *bytes >= STEP_BYTES);
        let granted = sizes.find(|bytes| self.has_room(&taken, owner, *bytes, need));
        let granted = granted.unwrap_or(0);
        taken.add(owner, granted);
        granted
    }

    /// Counts for `new` what counted for `old`; false where `new` has no room for that.
    pub(super) fn hand_over(&self, old: &WindowOwner, new: &WindowOwner, bytes: usize) -> bool {
        let mut taken = self.lock();
        // Taken off first: bytes that only change their owner have room in the total.
        taken.take(old, bytes);
        let has_room = bytes == 0 || self.has_room(&taken, new, bytes, WindowDemand::Read);
        taken.add(if has_room { new } else { old }, bytes);
        has_room
    }

    pub(super) fn give_back(&self, owner: &WindowOwner, bytes: usize) {
        self.lock().take(owner, bytes);
    }

    fn has_room(
        &self,
        taken: &WindowTotals,
        owner: &WindowOwner,
        bytes: usize,
        need: WindowDemand,
    ) -> bool {
        let (own, all) = (taken.owner_bytes(owner) + bytes, taken.all + bytes);
        let each = match owner {
            WindowOwner::Peer(_) => self.most / SHARE,
            WindowOwner::Network(network) => {
                let strangers = self.most / STRANGERS;
                let site = taken.of_site(*network) + bytes;
                if taken.strangers + bytes > strangers || site > strangers / SITE_SHARE {
                    return false;
                }
                strangers / STRANGERS_SHARE
            }
        };
        match need {
            WindowDemand::Read => own <= each && leaves_room(own, all, self.most),
            WindowDemand::Start => own <= each / START_SHARE && all <= self.most / START_SHARE,
        }
    }

    fn lock(&self) -> MutexGuard<'_, WindowTotals> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All bytes, and of how many owners.
    #[cfg(test)]
    pub(super) fn taken(&self) -> (usize, usize) {
        let taken = self.lock();
        (taken.all, taken.each.len() + taken.sites.len())
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
            self.strangers += bytes;
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
            self.strangers -= bytes;
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
