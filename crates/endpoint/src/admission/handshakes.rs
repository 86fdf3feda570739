//! Handshakes under way, and the choice of the one that ends for a newer one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use alknet_core::SitePrefix;

use super::{HandshakeId, HandshakePayer};

/// Handshakes under way that the address of a known peer has for itself. Further ones count for its network.
pub(super) const OWN_MAX: usize = 4;

/// The handshakes of one kind, oldest first, each with its payer.
#[derive(Debug, Default)]
pub(super) struct Handshakes(BTreeMap<HandshakeId, HandshakePayer>);

impl Handshakes {
    /// Adds a handshake. Returns the one that the node ends for it: the oldest of the same payer where that has
    /// `each`, or, where there are `all`, the oldest of the network that has the most. So a client whose network has
    /// few handshakes does not lose its own to those of a network that has many, and the first few clients at an
    /// address at which a known peer was seen lose theirs to no number of networks.
    pub(super) fn enter(
        &mut self,
        ticket: HandshakeId,
        from: HandshakePayer,
        each: u32,
        all: u32,
    ) -> Option<HandshakeId> {
        // A network that has its share pays for itself, whatever room the others leave.
        let evict = if self.by_payer(from).count() >= each as usize {
            self.by_payer(from).next()
        } else if self.0.len() >= all as usize {
            self.most().and_then(|payer| self.by_payer(payer).next())
        } else {
            None
        };
        if let Some(evict) = evict {
            self.0.remove(&evict);
        }
        self.0.insert(ticket, from);
        evict
    }

    /// Whether another handshake from the address of a known peer counts for the address alone. All such addresses
    /// together have half of the `all` slots: otherwise those of a few peers would leave nothing for the rest.
    pub(super) fn has_capacity_for(&self, address: IpAddr, all: u32) -> bool {
        let own = self.by_payer(HandshakePayer::Address(address)).count();
        let payers = self.0.values();
        let addresses = payers.filter(|payer| matches!(payer, HandshakePayer::Address(_)));
        own < OWN_MAX && addresses.count() < all as usize / 2
    }

    /// Removes a handshake. Returns whether it was in this table.
    pub(super) fn leave(&mut self, ticket: HandshakeId) -> bool {
        self.0.remove(&ticket).is_some()
    }

    fn by_payer(&self, payer: HandshakePayer) -> impl Iterator<Item = HandshakeId> {
        let same = self.0.iter().filter(move |(_, from)| **from == payer);
        same.map(|(ticket, _)| *ticket)
    }

    /// The payer that loses a handshake: the network that has the most, in the site that has the most, and among
    /// equals the one with the oldest handshake. An address of a known peer is chosen only where no network has one.
    fn most(&self) -> Option<HandshakePayer> {
        let mut counts: HashMap<HandshakePayer, u32> = HashMap::new();
        let mut sites: HashMap<Option<SitePrefix>, u32> = HashMap::new();
        for from in self.0.values() {
            *counts.entry(*from).or_default() += 1;
            *sites.entry(from.site()).or_default() += 1;
        }
        // `max_by_key` takes the last of equal elements: in reverse order that is the oldest.
        self.0
            .values()
            .rev()
            .copied()
            .max_by_key(|from| (from.site().is_some(), sites[&from.site()], counts[from]))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(super) fn of_addresses(&self) -> usize {
        let payers = self.0.values();
        payers.filter(|payer| payer.site().is_none()).count()
    }
}
