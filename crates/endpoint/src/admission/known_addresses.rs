//! Addresses at which the node saw known peers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use alknet_core::{Identity, PeerId, PeerKey};

use super::rates::{RateLimit, TokenBucket};

/// Addresses that the node remembers of one peer. One more replaces the one not seen for longest. A peer of the least
/// rights can have its key seen at any number of addresses, and a remembered address has rights that others do not
/// have.
pub(super) const ADDRESSES_MAX: usize = 4;
/// Peers of which the node remembers addresses. One more replaces the peer not seen for longest.
pub(super) const PEERS_MAX: usize = 1024;
/// As many administrators, and no more, are replaced by no peer: one holder of an invitation may have as many keys as
/// there are peers here.
pub(super) const ADMINS_KEPT: usize = PEERS_MAX / 2;

/// A scope that every administrator holds, and no other peer.
const ADMIN_SCOPE: &str = "admin";

/// A known peer, as its last handshake showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecognisedPeer {
    pub(crate) id: PeerId,
    /// The key by which the node recognised the peer.
    pub(crate) key: PeerKey,
    pub(crate) is_admin: bool,
}

impl RecognisedPeer {
    pub(crate) fn new(identity: &Identity, key: PeerKey) -> Self {
        Self {
            id: identity.id.clone(),
            key,
            is_admin: identity.scopes.allows(ADMIN_SCOPE),
        }
    }
}

#[derive(Debug)]
struct KnownPeerAddresses {
    peer: RecognisedPeer,
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

    /// Remembers that the node saw `peer` at `from`.
    pub(super) fn see(&mut self, peer: &RecognisedPeer, from: IpAddr, now: Instant) {
        if !self.peers.contains_key(&peer.id) && self.peers.len() >= PEERS_MAX {
            self.evict();
        }
        let seen = self
            .peers
            .entry(peer.id.clone())
            .or_insert_with(|| KnownPeerAddresses {
                peer: peer.clone(),
                at: Vec::new(),
                last: now,
                free: None,
            });
        seen.peer.clone_from(peer);
        seen.last = now;
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

    /// Forgets the peer not seen for longest, but no administrator unless more than half are administrators.
    fn evict(&mut self) {
        let admins = self.peers.values().filter(|seen| seen.peer.is_admin);
        let may_go = admins.count() > ADMINS_KEPT;
        let peers = self.peers.values();
        let oldest = peers
            .filter(|seen| may_go || !seen.peer.is_admin)
            .min_by_key(|seen| seen.last);
        if let Some(oldest) = oldest.map(|seen| seen.peer.id.clone()) {
            self.forget(&oldest);
        }
    }

    /// The peers, each as its last handshake showed it.
    pub(super) fn peers(&self) -> impl Iterator<Item = &RecognisedPeer> {
        self.peers.values().map(|seen| &seen.peer)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }
}
