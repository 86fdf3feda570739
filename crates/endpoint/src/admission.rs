//! Decides which client may start a handshake and which may keep a connection. No sockets, no clock.
//!
//! Unknown peers are limited where they cost something. A QUIC packet may carry a forged address, so the node charges
//! nothing to an address before a client has proved that it is there. A silent TCP connection costs one slot, and the
//! newest client takes the oldest such slot: a client that finishes its handshake gets in beside any number that
//! never do.
//!
//! Unknown peers are counted by network. A share of the connection slots is for known peers, which also take the slot
//! of an unknown peer where no other is left.

mod decision;
mod handshakes;
mod known_addresses;
mod rates;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use alknet_core::{Carriage, ConnId, NetworkPrefix, PeerId, SitePrefix};

use crate::closing::{ClosingConnection, ClosingTotals, UnservedConnections, decrement};
use crate::connection_slots::{ConnectionSlots, SlotDecision};
use crate::limits::EndpointLimits;
use crate::penalty::PenaltyBox;
use crate::windows::WindowOwner;

use handshakes::Handshakes;
use known_addresses::KnownAddresses;
use rates::{HandshakeBuckets, RateLimit, RateWindow};

pub(crate) use decision::{
    AddressValidation, AdmissionLimit, CapacityScope, QuicDecision, TcpDecision,
};
pub(crate) use known_addresses::RecognisedPeer;

/// A site's unknown peers may have this many times what those of one network may have. A site has 256 networks, and
/// one host may have all their addresses.
const SITE_NETWORKS: u32 = 4;

/// A known peer has this many times the handshakes of a network for free. Each costs the node a signature. Beyond
/// them the peer's address pays, as for unknown peers.
const PEER_TIMES: u32 = 10;

/// Limit of QUIC connections that the libraries have and the node does not serve. Beyond it every client has to prove
/// its address, so that its network pays for its handshake and is charged for what the library keeps of it. Without
/// that proof an attacker may end a handshake in a forged name, and choose that the library keeps it for 50 seconds,
/// with up to 284 KiB of pieces: 36 MiB for all of these. An honest client needs one more round trip then, and gets
/// in.
const UNSERVED_MAX: usize = 128;

/// Limit of ended and refused QUIC connections that a library still has of the unknown peers of a network or a site,
/// as a multiple of the connections that these peers may have. Beyond it the node refuses handshakes from there
/// before they begin. The library keeps each connection that is refused after its handshake as well. The multiple is
/// more than one, so that known peers get in from addresses of such a network that the node has not seen: only the
/// handshake proves who they are.
const CLOSING_TIMES: u32 = 2;

/// Number of one handshake under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HandshakeId(u64);

#[cfg(test)]
impl HandshakeId {
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// Who pays for a handshake under way, and counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum HandshakePayer {
    /// An address at which the node saw a known peer: it does not pay for its neighbours.
    Address(IpAddr),
    Network(NetworkPrefix),
    /// All networks of one site. Each of them pays for its own handshakes as well.
    Site(SitePrefix),
}

impl HandshakePayer {
    /// The site of the payer; `None` for the address of a known peer.
    fn site(self) -> Option<SitePrefix> {
        match self {
            Self::Address(_) => None,
            Self::Network(network) => Some(network.site()),
            Self::Site(site) => Some(site),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Admission {
    limits: EndpointLimits,
    next: u64,
    tcp: Handshakes,
    proven: Handshakes,
    unproven: HashSet<HandshakeId>,
    /// Handshakes begun in this second with addresses that are not proven.
    begun: RateWindow,
    retries: RateWindow,
    /// Connections of all peers.
    connections: u32,
    /// The connections of unknown peers, each with its network.
    unknown_peers: HashMap<ConnId, NetworkPrefix>,
    by_network: HashMap<NetworkPrefix, u32>,
    by_site: HashMap<SitePrefix, u32>,
    /// Connections of peers that were unknown until they showed a token.
    token_holders: HashMap<ConnId, PeerId>,
    by_token: HashMap<PeerId, u32>,
    peers: ConnectionSlots,
    /// Connections that ended or were refused, and that the library still has.
    closing: ClosingTotals,
    /// Connections of all clients that the library has and the node does not serve.
    unserved: UnservedConnections,
    penalties: PenaltyBox,
    buckets: HandshakeBuckets,
    known_addresses: KnownAddresses,
}

impl Admission {
    pub(crate) fn new(limits: EndpointLimits) -> Self {
        Self {
            limits,
            next: 0,
            tcp: Handshakes::default(),
            proven: Handshakes::default(),
            unproven: HashSet::new(),
            begun: RateWindow::default(),
            retries: RateWindow::default(),
            connections: 0,
            unknown_peers: HashMap::new(),
            by_network: HashMap::new(),
            by_site: HashMap::new(),
            token_holders: HashMap::new(),
            by_token: HashMap::new(),
            peers: ConnectionSlots::default(),
            closing: ClosingTotals::default(),
            unserved: UnservedConnections::default(),
            penalties: PenaltyBox::default(),
            known_addresses: KnownAddresses::default(),
            buckets: HandshakeBuckets::default(),
        }
    }

    /// Decides about the first packet of a client of QUIC, or of iroh's QUIC.
    pub(crate) fn quic(
        &mut self,
        carriage: Carriage,
        from: IpAddr,
        address: AddressValidation,
        now: Instant,
    ) -> QuicDecision {
        if address == AddressValidation::Proven {
            return self.validated_quic(carriage, from, now);
        }
        let mut full = self.unproven.len() >= self.limits.unvalidated_handshakes_max as usize
            || self.unserved.count() >= UNSERVED_MAX;
        if !full && address == AddressValidation::Unproven {
            // A client can give its handshake up, and a forger can do so in its name, after the node's signature and
            // before a peer or a network pays. Hence the node also counts how many handshakes begin.
            let most = self.limits.unvalidated_handshakes_per_second_max;
            full = !self.begun.take(most, now);
        }
        // Either the network used up its rate, or an attacker forges its addresses. The proof of the address tells
        // which.
        let spent = self.is_spent(carriage, from, now);
        let kept_out = self.is_kept_out(from);
        if full || spent || kept_out || address == AddressValidation::Unanswerable {
            let room = self.retries.take(self.limits.retries_per_second_max, now);
            let limit = if full {
                Some(AdmissionLimit::HandshakesUnproven)
            } else if spent {
                Some(AdmissionLimit::HandshakeRate)
            } else {
                kept_out.then_some(AdmissionLimit::ConnectionsPerAddress)
            };
            return if room {
                QuicDecision::Retry(limit)
            } else {
                QuicDecision::Ignore
            };
        }
        // No connection may end for this client, of a known peer or not: the node saves the signature.
        if self.is_full_of_peers() {
            return QuicDecision::Refuse(AdmissionLimit::Connections);
        }
        let ticket = self.ticket();
        self.unproven.insert(ticket);
        QuicDecision::Accept {
            ticket,
            evict: None,
            paid: false,
        }
    }

    fn validated_quic(&mut self, carriage: Carriage, from: IpAddr, now: Instant) -> QuicDecision {
        if self.is_full_of_peers() {
            return QuicDecision::Refuse(AdmissionLimit::Connections);
        }
        if self.is_kept_out(from) {
            return QuicDecision::Refuse(AdmissionLimit::ConnectionsPerAddress);
        }
        if !self.charge(carriage, from, now) {
            return QuicDecision::Refuse(AdmissionLimit::HandshakeRate);
        }
        // The address is proven here, so one more handshake ends an older one. It is not refused, which would let
        // stalled handshakes keep honest clients out.
        let most = self.limits.validated_handshakes_max;
        let payer = self.holder(&self.proven, from, most);
        let ticket = self.ticket();
        let evict = self.proven.enter(ticket, payer, u32::MAX, most);
        QuicDecision::Accept {
            ticket,
            evict,
            paid: true,
        }
    }

    /// Decides about a TCP client that connected. Its handshake is charged once it has sent a ClientHello.
    pub(crate) fn tcp(&mut self, from: IpAddr) -> TcpDecision {
        if self.is_full_of_peers() {
            return TcpDecision::Refuse(AdmissionLimit::Connections);
        }
        let (each, all) = (
            self.limits.tcp_handshakes_per_address_max,
            self.limits.tcp_handshakes_max,
        );
        let payer = self.holder(&self.tcp, from, all);
        let ticket = self.ticket();
        let evict = self.tcp.enter(ticket, payer, each, all);
        TcpDecision::Accept { ticket, evict }
    }

    /// Takes one handshake from the network of `from` and from its site; false when either has used up its rate.
    pub(crate) fn charge(&mut self, carriage: Carriage, from: IpAddr, now: Instant) -> bool {
        let payers = self.payers(from);
        self.buckets.charge(&self.limits, carriage, payers, now)
    }

    /// Whether the payers of `from` cannot pay for another handshake now.
    fn is_spent(&self, carriage: Carriage, from: IpAddr, now: Instant) -> bool {
        let payers = self.payers(from);
        self.buckets.is_spent(&self.limits, carriage, payers, now)
    }

    /// Returns a handshake that was paid for to its payers, because the peer turned out to be known.
    fn refund(&mut self, carriage: Carriage, from: IpAddr) {
        let payers = self.payers(from);
        self.buckets.refund(&self.limits, carriage, payers);
    }

    /// The handshake from `from` turned out to be the known `peer`'s. The peer pays nothing, and gets back no more
    /// than was `paid`, until it has used up its free handshakes. From then on it pays as every
    /// peer there does, so that the node refuses further handshakes before they cost a signature. Returns false where
    /// the peer has to pay for this one and cannot.
    pub(crate) fn recognise(
        &mut self,
        carriage: Carriage,
        peer: &RecognisedPeer,
        from: IpAddr,
        paid: bool,
        now: Instant,
    ) -> bool {
        let rate = RateLimit::times(&self.limits, PEER_TIMES);
        let is_free = self.known_addresses.takes_free(&peer.id, rate, now);
        let allowed = match (is_free, paid) {
            (true, true) => {
                self.refund(carriage, from);
                true
            }
            (true, false) | (false, true) => true,
            (false, false) => self.charge(carriage, from, now),
        };
        // This comes last: from here on the address pays for itself, but its network paid for this handshake.
        self.remember(peer, from, now);
        allowed
    }

    /// All payers of a handshake from `from`.
    fn payers(&self, from: IpAddr) -> impl Iterator<Item = HandshakePayer> + Clone + use<> {
        let network = NetworkPrefix::from_ip(from);
        let (payer, site) = if self.known_addresses.contains(from) {
            (HandshakePayer::Address(from), None)
        } else {
            let site = network.has_neighbours().then(|| network.site());
            (HandshakePayer::Network(network), site)
        };
        [Some(payer), site.map(HandshakePayer::Site)]
            .into_iter()
            .flatten()
    }

    /// The payer of a new handshake in `under_way`, which holds at most `all`: the address itself where a known peer
    /// was seen and its own share is not full, otherwise the network.
    fn holder(&self, under_way: &Handshakes, from: IpAddr, all: u32) -> HandshakePayer {
        let own = self.known_addresses.contains(from) && under_way.has_capacity_for(from, all);
        if own {
            HandshakePayer::Address(from)
        } else {
            HandshakePayer::Network(NetworkPrefix::from_ip(from))
        }
    }

    /// The node saw a known peer at `from`: from now on this address does not pay for its neighbours' handshakes, nor
    /// they for its own.
    pub(crate) fn remember(&mut self, peer: &RecognisedPeer, from: IpAddr, now: Instant) {
        self.known_addresses.see(peer, from, now);
    }

    /// The peers whose addresses the node remembers, each as its last handshake showed it.
    pub(crate) fn remembered(&self) -> Vec<RecognisedPeer> {
        self.known_addresses.peers().cloned().collect()
    }

    /// Forgets the addresses of peers that the node no longer lets in.
    pub(crate) fn forget(&mut self, peers: &[PeerId]) {
        peers
            .iter()
            .for_each(|peer| self.known_addresses.forget(peer));
    }

    /// Removes a handshake that is over, whatever its result.
    pub(crate) fn finish(&mut self, ticket: HandshakeId) {
        let known = self.tcp.leave(ticket) || self.proven.leave(ticket);
        if !known {
            self.unproven.remove(&ticket);
        }
    }

    /// Counts a connection from `from`. `is_kept`: the library keeps its memory for a while after its end, as QUIC
    /// does.
    pub(crate) fn connect(
        &mut self,
        conn: ConnId,
        from: IpAddr,
        known: bool,
        is_kept: bool,
    ) -> Result<(), CapacityScope> {
        let full = self.connections >= self.limits.connections_max;
        if known {
            // A connection of an unknown peer may end for it, else one of the known peer that has the most, which the
            // caller tries next.
            if full {
                return Err(CapacityScope::All);
            }
        } else {
            let network = NetworkPrefix::from_ip(from);
            if is_kept && self.is_full_of_closing(network, 1) {
                return Err(CapacityScope::Closing);
            }
            let here = self.by_network.get(&network).copied().unwrap_or(0);
            if here >= self.limits.per_address_max {
                return Err(CapacityScope::Network(network));
            }
            let site = self.by_site.get(&network.site()).copied().unwrap_or(0);
            if site >= self.limits.per_address_max.saturating_mul(SITE_NETWORKS) {
                return Err(CapacityScope::Site(network));
            }
            if full || self.unknown_peers.len() >= self.limits.unknown_peers_max() as usize {
                return Err(CapacityScope::UnknownPeers(network));
            }
        }
        self.connect_for(conn, from, known);
        Ok(())
    }

    /// Counts a connection that takes the slot of another one, which the node is ending. Until that one is gone, the
    /// node has one connection more than its limit.
    pub(crate) fn connect_for(&mut self, conn: ConnId, from: IpAddr, known: bool) {
        self.connections += 1;
        if !known {
            let network = NetworkPrefix::from_ip(from);
            self.unknown_peers.insert(conn, network);
            *self.by_network.entry(network).or_default() += 1;
            *self.by_site.entry(network.site()).or_default() += 1;
        }
    }

    /// The peer of a counted connection has shown a token of `who`. Returns whether the connection has a known peer's
    /// slot now. It does not get one where the token's connections have reached the limit of a network, or those of
    /// all tokens half of the slots: a client with the least token cannot keep an administrator out. `is_kept` is as
    /// for [`connect`](Self::connect): only such a connection is weighed against the ended ones that the library
    /// still has.
    pub(crate) fn authenticated(&mut self, conn: ConnId, who: &PeerId, is_kept: bool) -> bool {
        // A connection that is not in the table has a known peer's slot already.
        if !self.unknown_peers.contains_key(&conn) {
            return true;
        }
        let own = self.by_token.get(who).copied().unwrap_or(0);
        let all = self.token_holders.len();
        let closing = match is_kept {
            true => self.closing.owner_count(&WindowOwner::Peer(who.clone())),
            false => 0,
        };
        let most = self.limits.per_address_max;
        if own.max(closing) >= most || all >= self.limits.token_holders_max() as usize {
            return false;
        }
        self.forget_unknown(conn);
        self.token_holders.insert(conn, who.clone());
        *self.by_token.entry(who.clone()).or_default() += 1;
        true
    }

    fn forget_unknown(&mut self, conn: ConnId) {
        if let Some(network) = self.unknown_peers.remove(&conn) {
            decrement(&mut self.by_network, &network);
            decrement(&mut self.by_site, &network.site());
        }
    }

    /// Counts a connection of `peer`, which may have a limit of its own, `own_max`. `is_kept` as for
    /// [`connect`](Self::connect).
    pub(crate) fn identify(
        &mut self,
        peer: &PeerId,
        conn: ConnId,
        newest_wins: bool,
        own_max: Option<u32>,
        is_kept: bool,
    ) -> SlotDecision {
        let closing = self.closing.owner_count(&WindowOwner::Peer(peer.clone()));
        if is_kept && closing >= self.limits.per_address_max {
            return SlotDecision::Full;
        }
        let max = own_max.unwrap_or(self.limits.per_peer_max);
        self.peers.enter(peer, conn, newest_wins, max)
    }

    /// Whether `peer`, which may have a limit of its own, may have one more connection beside those that it has.
    pub(crate) fn has_capacity(&self, peer: &PeerId, own_max: Option<u32>) -> bool {
        let max = own_max.unwrap_or(self.limits.per_peer_max);
        self.peers.has_capacity(peer, max)
    }

    /// The connections of `peer` that may end for a newer one of it, the oldest first.
    pub(crate) fn replaceable(&self, peer: &PeerId) -> Vec<ConnId> {
        self.peers.replaceable(peer)
    }

    /// Whether an unknown peer may take the slot of a known one that has more than one, where all slots are taken:
    /// unknown peers have fewer than are theirs in any case.
    pub(crate) fn has_capacity_for_unknown(&self) -> bool {
        let least = self.limits.unknown_peers_min();
        let least = least.min(self.limits.unknown_peers_max());
        self.unknown_peers.len() < least as usize
    }

    /// Whether unknown peers have more slots than are theirs in any case, so that a connection of them may end for every
    /// known peer.
    pub(crate) fn has_surplus_of_unknown(&self) -> bool {
        self.unknown_peers.len() > self.limits.unknown_peers_min() as usize
    }

    /// Whether `peer` has a connection, by its key or by a token.
    pub(crate) fn has_connection(&self, peer: &PeerId) -> bool {
        self.by_token.contains_key(peer) || self.peers.has(peer)
    }

    /// Removes a counted connection that ended. Returns the owner that it counted for.
    pub(crate) fn disconnect(
        &mut self,
        conn: ConnId,
        peer: Option<&PeerId>,
    ) -> Option<WindowOwner> {
        self.connections = self.connections.saturating_sub(1);
        let network = self
            .unknown_peers
            .get(&conn)
            .copied()
            .map(WindowOwner::Network);
        self.forget_unknown(conn);
        let holder = self.token_holders.remove(&conn);
        if let Some(who) = &holder {
            decrement(&mut self.by_token, who);
        }
        if let Some(peer) = peer {
            self.peers.leave(peer, conn);
        }
        let known = peer.cloned().or(holder).map(WindowOwner::Peer);
        known.or(network)
    }

    /// Counts a connection from `from` that ended or was refused, and that the library still has. It counts for
    /// `owner`. Where `owner` is a known peer of which the library has too many, it counts for the network of `from`,
    /// so that the node refuses further handshakes from there before they begin, whichever key the client would show.
    pub(crate) fn count_closing(&mut self, owner: WindowOwner, from: IpAddr) -> ClosingConnection {
        let most = self.limits.per_address_max.saturating_mul(CLOSING_TIMES);
        let has_too_many =
            matches!(owner, WindowOwner::Peer(_)) && self.closing.owner_count(&owner) >= most;
        let owner = if has_too_many {
            WindowOwner::Network(NetworkPrefix::from_ip(from))
        } else {
            owner
        };
        // The network counts it as well: otherwise a peer that comes from another address each time would have room
        // at each of them.
        let is_apart =
            matches!(owner, WindowOwner::Network(_)) && self.known_addresses.contains(from);
        let kept = ClosingConnection {
            owner,
            address: is_apart.then_some(from),
        };
        self.closing.add(&kept);
        kept
    }

    /// Removes a connection of which the library has freed everything.
    pub(crate) fn let_go(&mut self, kept: &ClosingConnection) {
        self.closing.let_go(kept);
    }

    /// Connections that the library has and that the node does not serve.
    pub(crate) const fn unserved(&self) -> &UnservedConnections {
        &self.unserved
    }

    /// Ended connections of unknown peers that the library still has.
    pub(crate) const fn closing_of_unknown(&self) -> u32 {
        self.closing.of_unknown()
    }

    /// Whether the node refuses a handshake from `from` before it begins, because the library would have one more
    /// connection to keep at its end, of a known or an unknown peer.
    fn is_kept_out(&self, from: IpAddr) -> bool {
        if self.known_addresses.contains(from) {
            let most = self.limits.per_address_max.saturating_mul(CLOSING_TIMES);
            return self.closing.at(from) >= most;
        }
        self.is_full_of_closing(NetworkPrefix::from_ip(from), CLOSING_TIMES)
    }

    /// Whether the library still has `times` as many ended connections of this network's or site's unknown peers as
    /// these may have open ones. Also true where that holds for all unknown peers together and this site has a part
    /// in it: the sites that have none are let in.
    fn is_full_of_closing(&self, network: NetworkPrefix, times: u32) -> bool {
        let most = self.limits.per_address_max.saturating_mul(times);
        let all = self.limits.unknown_peers_max().saturating_mul(times);
        let of_site = self.closing.of_site(network);
        self.closing.owner_count(&WindowOwner::Network(network)) >= most
            || of_site >= most.saturating_mul(SITE_NETWORKS)
            || of_site > 0 && self.closing.of_unknown() >= all
    }

    /// The connections of peers that were unknown until they showed a token, each with its peer.
    pub(crate) fn token_holders(&self) -> HashMap<ConnId, PeerId> {
        self.token_holders.clone()
    }

    /// Counts a failed proof of identity from `from`. Returns for how long the node now refuses guesses from its
    /// network, if this failure was the last one allowed.
    pub(crate) fn fail(&mut self, from: IpAddr, now: Instant) -> Option<Duration> {
        let max = self.limits.failures_per_minute_max;
        self.penalties.fail(NetworkPrefix::from_ip(from), max, now)
    }

    /// For how long the node still refuses guesses from the network of `from`, if it does.
    pub(crate) fn penalty(&self, from: IpAddr, now: Instant) -> Option<Duration> {
        self.penalties.left(NetworkPrefix::from_ip(from), now)
    }

    /// The networks whose guesses the node refuses, and for how long.
    pub(crate) fn penalties(&self, now: Instant) -> Vec<(NetworkPrefix, Duration)> {
        self.penalties.all(now).collect()
    }

    /// Replaces the limits. Connections that are open stay.
    pub(crate) fn set_limits(&mut self, limits: EndpointLimits) {
        self.limits = limits;
    }

    /// Whether known peers have every slot, and none of them one that may end for another peer's connection or for a
    /// newer one of its own: then the node can end no connection for a new client.
    fn is_full_of_peers(&self) -> bool {
        self.connections >= self.limits.connections_max
            && self.unknown_peers.is_empty()
            && !self.peers.may_give()
            && self.by_token.values().all(|count| *count < 2)
    }

    fn ticket(&mut self) -> HandshakeId {
        self.next += 1;
        HandshakeId(self.next)
    }
}

#[cfg(test)]
mod tests;
