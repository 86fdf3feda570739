//! Addresses at which the node saw known peers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use alknet_core::{PeerId, PeerKey};

use super::rates::{RateLimit, TokenBucket};

/// Addresses that the node remembers of one peer. One more replaces the one not seen for longest. A peer of the least
/// rights can have its key seen at any number of addresses, and a remembered address has rights that others do not
/// have.
pub(super) const ADDRESSES_MAX: usize = 4;
/// Peers of which the node remembers addresses. One more replaces the peer not seen for longest.
pub(super) const PEERS_MAX: usize = 1024;

#[derive(Debug)]
struct KnownPeerAddresses {
    /// The key by which the node recognised the peer.
    key: PeerKey,
    /// Oldest first: the address at which the node saw the peer last comes last.
    at: Vec<IpAddr>,
    last: Instant,
    /// Handshakes that the peer has for free, from any address; `None`, which counts as full, until the first is
    /// taken.
    free: Option<TokenBucket>,
}

/// All remembered addresses. Several peers may share one.
#[derive(Debug, Default)]
pub(super) struct KnownAddresses {
    peers: HashMap<PeerId, KnownPeerAddresses>,
    /// The number of peers seen at each address.
    addresses: HashMap<IpAddr, u32>,
}

impl KnownAddresses {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Remembers that `peer` proved `key` at `from`.
    pub(super) fn see(&mut self, peer: &PeerId, key: PeerKey, from: IpAddr, now: Instant) {
        if !self.peers.contains_key(peer) && self.peers.len() >= PEERS_MAX {
            let oldest = self.peers.iter().min_by_key(|(_, seen)| seen.last);
            if let Some(oldest) = oldest.map(|(peer, _)| peer.clone()) {
                self.forget(&oldest);
            }
        }
        let seen = self
            .peers
            .entry(peer.clone())
            .or_insert_with(|| KnownPeerAddresses {
                key,
                at: Vec::new(),
                last: now,
                free: None,
            });
        (seen.key, seen.last) = (key, now);
        // An address that is known moves to the end of the list, and its count stays.
        if let Some(known) = seen.at.iter().position(|at| *at == from) {
            seen.at.remove(known);
            return seen.at.push(from);
        }
        seen.at.push(from);
        let left = (seen.at.len() > ADDRESSES_MAX).then(|| seen.at.remove(0));
        *self.addresses.entry(from).or_default() += 1;
        if let Some(left) = left {
            super::decrement(&mut self.addresses, &left);
        }
    }

    /// Takes one of the free handshakes of `peer`, which earns them back at `rate`; false once it has used them up.
    /// The first handshake of a peer that is not remembered is not counted.
    pub(super) fn takes_free(&mut self, peer: &PeerId, rate: RateLimit, now: Instant) -> bool {
        let Some(seen) = self.peers.get_mut(peer) else {
            return true;
        };
        let free = seen
            .free
            .get_or_insert_with(|| TokenBucket::full(rate, now));
        free.refill(rate, now);
        free.take()
    }

    /// Forgets a peer that the node no longer lets in.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        for address in self.peers.remove(peer).into_iter().flat_map(|seen| seen.at) {
            super::decrement(&mut self.addresses, &address);
        }
    }

    /// The peers, each with the key that it showed last.
    pub(super) fn peers(&self) -> impl Iterator<Item = (&PeerId, PeerKey)> {
        self.peers.iter().map(|(peer, seen)| (peer, seen.key))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }
}
