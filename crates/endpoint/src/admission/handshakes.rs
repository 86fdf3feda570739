//! Handshakes under way, and which of them ends for a newer one.

use std::collections::{BTreeMap, HashMap};

use super::{Payer, Ticket};

/// Those of one kind, oldest first.
#[derive(Debug, Default)]
pub(super) struct Handshakes(BTreeMap<Ticket, Payer>);

impl Handshakes {
    /// Adds one. Returns the one that ends for it: the oldest of the same network where that has `each`,
    /// or, where there are `all`, the oldest of the network that has the most. So a client whose network
    /// has few is not ended for those of a network that has many, and a client at an address at which a known
    /// peer was seen is not ended for those of any number of networks.
    pub(super) fn enter(
        &mut self,
        ticket: Ticket,
        from: Payer,
        each: u32,
        all: u32,
    ) -> Option<Ticket> {
        let evict = if self.of(from).count() >= each as usize {
            self.of(from).next()
        } else if self.0.len() >= all as usize {
            self.most().and_then(|payer| self.of(payer).next())
        } else {
            None
        };
        if let Some(evict) = evict {
            self.0.remove(&evict);
        }
        self.0.insert(ticket, from);
        evict
    }

    /// Whether it was there.
    pub(super) fn leave(&mut self, ticket: Ticket) -> bool {
        self.0.remove(&ticket).is_some()
    }

    fn of(&self, payer: Payer) -> impl Iterator<Item = Ticket> {
        let same = self.0.iter().filter(move |(_, from)| **from == payer);
        same.map(|(ticket, _)| *ticket)
    }

    /// The network that has the most; of those that have as many the one with the oldest. An address of a known
    /// peer only where there is nothing else.
    fn most(&self) -> Option<Payer> {
        let mut counts: HashMap<Payer, u32> = HashMap::new();
        for from in self.0.values() {
            *counts.entry(*from).or_default() += 1;
        }
        // The last maximum is taken: the oldest comes last.
        self.0
            .values()
            .rev()
            .copied()
            .max_by_key(|from| (matches!(from, Payer::Network(_)), counts[from]))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
