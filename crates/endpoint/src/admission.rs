//! Who may start a handshake, and who may keep a connection. No sockets, no clock.
//!
//! Strangers are limited where they cost something. A QUIC packet may carry a forged address, so
//! nothing is charged to an address before it has proven that it is there; a TCP connection that
//! says nothing costs a place, and the oldest such place goes to the newest comer, so that a
//! caller who finishes its handshake gets in beside any number that never do.
//!
//! Unknown peers are counted by network. A share of the places is for known peers, who also take the place of an
//! unknown peer where no other is left.

mod handshakes;
mod known_addresses;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use alknet_core::{Carriage, ConnId, NetworkPrefix, PeerId, PeerKey, SitePrefix};

use crate::closing::{ClosingConnection, ClosingTotals, UnservedConnections, decrement};
use crate::connection_slots::{ConnectionSlots, SlotDecision};
use crate::limits::EndpointLimits;
use crate::penalty::PenaltyBox;
use crate::windows::WindowOwner;

use handshakes::Handshakes;
use known_addresses::KnownAddresses;

/// Rates remembered, of networks, sites and known peers' addresses; beyond that the longest unseen is
/// forgotten.
const BUCKETS_MAX: usize = 8192;

/// Networks that a site counts for: its unknown peers may have as many times what those of one network may. A site has
/// 256 networks, which one host can have all addresses of.
const SITE_NETWORKS: u32 = 4;

/// Handshakes that a known peer has for nothing: as many times what a network may have. Each costs the node a
/// signature. Beyond them the address that it comes from pays, as for those of unknown peers.
const PEER_TIMES: u32 = 10;

/// QUIC connections that the libraries have and the node does not serve, from which on every client has to prove its
/// address, so that its network pays for its handshake and counts what is kept of it. Without that proof a client may end
/// a handshake in a forged name, and choose that the library keeps it for 50 seconds, with up to 284 KiB of pieces: 36 MiB
/// for all of these. An honest client needs one more round trip then, and gets in.
const UNSERVED_MAX: usize = 128;

/// Ended and refused QUIC connections of the unknown peers of a network or a site in a library, from which on handshakes
/// from there are refused before they begin: as many times the connections that these peers may have. The library keeps
/// each connection that is refused after its handshake as well. It is more than once, so that known peers get in from
/// addresses of such a network that the node has not seen: only the handshake tells who they are.
const CLOSING_TIMES: u32 = 2;

/// What to do with a first QUIC packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuicDecision {
    /// Start the handshake, ending `evict` first. One that was not `paid` for is charged once it has proven
    /// its address by finishing.
    Accept {
        ticket: HandshakeId,
        evict: Option<HandshakeId>,
        paid: bool,
    },
    /// Answer nothing.
    Ignore,
    /// Answer that there is no room.
    Refuse(AdmissionLimit),
    /// Ask for proof of the address, because of a limit or because it is not proven yet.
    Retry(Option<AdmissionLimit>),
}

/// What is known of the address that a first QUIC packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressValidation {
    /// It is proven.
    Proven,
    /// It may be forged.
    Unproven,
    /// It may be forged, and the node cannot send it the reason for a failed handshake.
    Unanswerable,
}

/// What to do with an accepted TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpDecision {
    /// Start the handshake, ending `evict` first.
    Accept {
        ticket: HandshakeId,
        evict: Option<HandshakeId>,
    },
    /// Drop it.
    Refuse(AdmissionLimit),
}

/// Names one handshake under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HandshakeId(u64);

#[cfg(test)]
impl HandshakeId {
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// What there can be too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdmissionLimit {
    Connections,
    ConnectionsPerAddress,
    ConnectionsPerPeer,
    FailedLogins,
    HandshakeRate,
    Handshakes,
    HandshakesUnproven,
    Memory,
    Retries,
}

impl AdmissionLimit {
    /// Every one with its name in metrics, in the order of their numbers.
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Connections, "connections"),
        (Self::ConnectionsPerAddress, "connections_per_address"),
        (Self::ConnectionsPerPeer, "connections_per_peer"),
        (Self::FailedLogins, "failed_logins"),
        (Self::HandshakeRate, "handshake_rate"),
        (Self::Handshakes, "handshakes"),
        (Self::HandshakesUnproven, "handshakes_unproven"),
        (Self::Memory, "memory"),
        (Self::Retries, "retries"),
    ];
}

/// Where a connection finds no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CapacityScope {
    /// For any peer: a known peer takes the place of an unknown one.
    All,
    /// For unknown peers of this network.
    Network(NetworkPrefix),
    /// For unknown peers of the site that this network, from which one came, is in.
    Site(NetworkPrefix),
    /// For unknown peers. The one that came is of this network.
    UnknownPeers(NetworkPrefix),
    /// For unknown peers of a network or site, or for all, of whose ended connections too many still have memory: ending
    /// another one gives none back soon.
    Closing,
}

impl CapacityScope {
    /// The limit that was reached.
    pub(crate) const fn limit(self) -> AdmissionLimit {
        match self {
            Self::All | Self::UnknownPeers(_) => AdmissionLimit::Connections,
            Self::Network(_) | Self::Site(_) | Self::Closing => {
                AdmissionLimit::ConnectionsPerAddress
            }
        }
    }
}

/// Who pays for a handshake, and has one of those at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum HandshakePayer {
    /// An address at which a known peer was seen: it does not pay for its neighbours.
    Address(IpAddr),
    Network(NetworkPrefix),
    /// All networks of one site, which pay for their own as well.
    Site(SitePrefix),
}

impl HandshakePayer {
    /// The site of what pays, unless it is the address of a known peer.
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
    /// Handshakes begun without proof.
    begun: RateWindow,
    retries: RateWindow,
    /// Connections of all peers.
    connections: u32,
    /// Those of unknown peers among them.
    strangers: HashMap<ConnId, NetworkPrefix>,
    by_network: HashMap<NetworkPrefix, u32>,
    by_site: HashMap<SitePrefix, u32>,
    /// Those of peers that were unknown until they showed a token.
    token_holders: HashMap<ConnId, PeerId>,
    by_token: HashMap<PeerId, u32>,
    peers: ConnectionSlots,
    /// Those that ended or were refused, and that the library still has.
    closing: ClosingTotals,
    /// Those that the library has and that the node does not serve, of all clients.
    unserved: UnservedConnections,
    penalties: PenaltyBox,
    buckets: HashMap<(Carriage, HandshakePayer), TokenBucket>,
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
            strangers: HashMap::new(),
            by_network: HashMap::new(),
            by_site: HashMap::new(),
            token_holders: HashMap::new(),
            by_token: HashMap::new(),
            peers: ConnectionSlots::default(),
            closing: ClosingTotals::default(),
            unserved: UnservedConnections::default(),
            penalties: PenaltyBox::default(),
            known_addresses: KnownAddresses::default(),
            buckets: HashMap::new(),
        }
    }

    /// A client of QUIC, or of iroh's QUIC, wants in.
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
            // A client can give its handshake up, and a forger do so in its name, after the signature that it cost
            // and before it is charged to a peer or a network. Those that begin are counted, too.
            let most = self.limits.unvalidated_handshakes_per_second_max;
            full = !self.begun.take(most, now);
        }
        // The network used up its rate, or an attacker forges its addresses: the proof of the address tells which.
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

    /// A TCP client connected. Its handshake is charged once it has sent a ClientHello.
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

    /// Takes one handshake from the network of `from`, and from its site; false when either has had too many.
    pub(crate) fn charge(&mut self, carriage: Carriage, from: IpAddr, now: Instant) -> bool {
        let mut payers = self.payers(from);
        let allowed = payers.all(|payer| self.bucket(carriage, payer, now).has_one());
        if allowed {
            for payer in self.payers(from) {
                self.bucket(carriage, payer, now).take();
            }
        }
        allowed
    }

    /// The bucket of a payer as it is now.
    fn bucket(
        &mut self,
        carriage: Carriage,
        payer: HandshakePayer,
        now: Instant,
    ) -> &mut TokenBucket {
        let key = (carriage, payer);
        if !self.buckets.contains_key(&key) {
            self.forget_one(now);
        }
        let rate = self.rate(payer);
        let full = || TokenBucket::full(rate, now);
        let bucket = self.buckets.entry(key).or_insert_with(full);
        bucket.refill(rate, now);
        bucket
    }

    /// How many handshakes a payer may have.
    fn rate(&self, payer: HandshakePayer) -> RateLimit {
        match payer {
            HandshakePayer::Address(_) | HandshakePayer::Network(_) => self.rate_times(1),
            HandshakePayer::Site(_) => self.rate_times(SITE_NETWORKS),
        }
    }

    /// As many times the handshakes that a network may have.
    fn rate_times(&self, times: u32) -> RateLimit {
        let limits = &self.limits;
        RateLimit {
            burst: f64::from(limits.handshake_burst.saturating_mul(times)),
            per_second: f64::from(limits.handshakes_per_second.saturating_mul(times)),
        }
    }

    /// Whether `from` has had so many that it cannot pay for another one now.
    fn is_spent(&self, carriage: Carriage, from: IpAddr, now: Instant) -> bool {
        self.payers(from).any(|payer| {
            let rate = self.rate(payer);
            let bucket = self.buckets.get(&(carriage, payer));
            bucket.is_some_and(|bucket| {
                let mut bucket = *bucket;
                bucket.refill(rate, now);
                !bucket.has_one()
            })
        })
    }

    /// Gives back a handshake that was paid for: the peer turned out to be known.
    fn refund(&mut self, carriage: Carriage, from: IpAddr) {
        for payer in self.payers(from) {
            let rate = self.rate(payer);
            if let Some(bucket) = self.buckets.get_mut(&(carriage, payer)) {
                bucket.give_back(rate);
            }
        }
    }

    /// A handshake at `from` turned out to be the known `peer`'s, who showed `key`. It pays nothing, and gets back what
    /// was `paid` and no more, until it has had too many: from then on it pays as every peer there does, so that further
    /// ones are refused before they cost a signature. False where this one has to be paid for and cannot be.
    pub(crate) fn recognise(
        &mut self,
        carriage: Carriage,
        (peer, key): (&PeerId, PeerKey),
        from: IpAddr,
        paid: bool,
        now: Instant,
    ) -> bool {
        let rate = self.rate_times(PEER_TIMES);
        let is_free = self.known_addresses.takes_free(peer, rate, now);
        let allowed = match (is_free, paid) {
            (true, true) => {
                self.refund(carriage, from);
                true
            }
            (true, false) | (false, true) => true,
            (false, false) => self.charge(carriage, from, now),
        };
        // Last: from here on this address pays for itself, and what was paid was paid by its network.
        self.remember(peer, key, from, now);
        allowed
    }

    /// All that pay for a handshake from `from`.
    fn payers(&self, from: IpAddr) -> impl Iterator<Item = HandshakePayer> + use<> {
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

    /// The payer of a new handshake among `under_way`, of which there may be `all`: a known peer's address while it has
    /// room, otherwise the network.
    fn holder(&self, under_way: &Handshakes, from: IpAddr, all: u32) -> HandshakePayer {
        let own = self.known_addresses.contains(from) && under_way.has_room_for(from, all);
        if own {
            HandshakePayer::Address(from)
        } else {
            HandshakePayer::Network(NetworkPrefix::from_ip(from))
        }
    }

    /// A known peer was seen at `from`: from now on this address does not pay for its neighbours'
    /// handshakes, nor they for its own.
    pub(crate) fn remember(&mut self, peer: &PeerId, key: PeerKey, from: IpAddr, now: Instant) {
        self.known_addresses.see(peer, key, from, now);
    }

    /// The peers whose addresses are remembered, each with the key that it showed last.
    pub(crate) fn remembered(&self) -> Vec<(PeerId, PeerKey)> {
        let peers = self.known_addresses.peers();
        peers.map(|(peer, key)| (peer.clone(), key)).collect()
    }

    /// These peers are let in no more.
    pub(crate) fn forget(&mut self, peers: &[PeerId]) {
        peers
            .iter()
            .for_each(|peer| self.known_addresses.forget(peer));
    }

    /// The handshake is over, well or not.
    pub(crate) fn finish(&mut self, ticket: HandshakeId) {
        let known = self.tcp.leave(ticket) || self.proven.leave(ticket);
        if !known {
            self.unproven.remove(&ticket);
        }
    }

    /// Counts a connection from `from`. `is_kept`: the library keeps it for a while after its end, as QUIC's.
    pub(crate) fn connect(
        &mut self,
        conn: ConnId,
        from: IpAddr,
        known: bool,
        is_kept: bool,
    ) -> Result<(), CapacityScope> {
        let full = self.connections >= self.limits.connections_max;
        if known {
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
            if full || self.strangers.len() >= self.limits.strangers_max() as usize {
                return Err(CapacityScope::UnknownPeers(network));
            }
        }
        self.connect_for(conn, from, known);
        Ok(())
    }

    /// Counts a connection that takes the place of another, which the node is ending: until that one is gone, there is
    /// one more than may be.
    pub(crate) fn connect_for(&mut self, conn: ConnId, from: IpAddr, known: bool) {
        self.connections += 1;
        if !known {
            let network = NetworkPrefix::from_ip(from);
            self.strangers.insert(conn, network);
            *self.by_network.entry(network).or_default() += 1;
            *self.by_site.entry(network.site()).or_default() += 1;
        }
    }

    /// The peer of a counted connection has shown a token of `who`. Returns whether it has a known peer's place
    /// now. It has not where the token has as many already as all unknown peers of a network may have, or all
    /// tokens have half of the places: a client with the least token cannot keep an administrator out. `is_kept` as for
    /// [`connect`](Self::connect): what the library has of ended connections counts for such as that one only.
    pub(crate) fn authenticated(&mut self, conn: ConnId, who: &PeerId, is_kept: bool) -> bool {
        if !self.strangers.contains_key(&conn) {
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
        if let Some(network) = self.strangers.remove(&conn) {
            decrement(&mut self.by_network, &network);
            decrement(&mut self.by_site, &network.site());
        }
    }

    /// Counts a connection of `peer`, who may have a number of its own. `is_kept` as for [`connect`](Self::connect).
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

    /// A counted connection ended. Returns whose it was.
    pub(crate) fn disconnect(
        &mut self,
        conn: ConnId,
        peer: Option<&PeerId>,
    ) -> Option<WindowOwner> {
        self.connections = self.connections.saturating_sub(1);
        let network = self.strangers.get(&conn).copied().map(WindowOwner::Network);
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

    /// The library still has a connection from `from`, which ended or was refused. Returns what it counts for: `owner`;
    /// or the network of `from`, where `owner` is a known peer of which the library has too many, so that further
    /// handshakes from there are refused before they begin, whichever key they would show.
    pub(crate) fn keep(&mut self, owner: WindowOwner, from: IpAddr) -> ClosingConnection {
        let most = self.limits.per_address_max.saturating_mul(CLOSING_TIMES);
        let has_too_many =
            matches!(owner, WindowOwner::Peer(_)) && self.closing.owner_count(&owner) >= most;
        let owner = if has_too_many {
            WindowOwner::Network(NetworkPrefix::from_ip(from))
        } else {
            owner
        };
        // For the network all the same: else a peer that comes from another address each time has room at each.
        let is_apart =
            matches!(owner, WindowOwner::Network(_)) && self.known_addresses.contains(from);
        let kept = ClosingConnection {
            owner,
            address: is_apart.then_some(from),
        };
        self.closing.keep(&kept);
        kept
    }

    /// The library has let go of it.
    pub(crate) fn let_go(&mut self, kept: &ClosingConnection) {
        self.closing.let_go(kept);
    }

    /// Connections that the library has and that are not served.
    pub(crate) const fn unserved(&self) -> &UnservedConnections {
        &self.unserved
    }

    /// Ended connections of unknown peers that the library still has.
    pub(crate) const fn closing_of_unknown(&self) -> u32 {
        self.closing.of_unknown()
    }

    /// Whether the node refuses a handshake from `from` before it begins: at its end the library would have one more
    /// connection to keep, of a known or an unknown peer.
    fn is_kept_out(&self, from: IpAddr) -> bool {
        if self.known_addresses.contains(from) {
            let most = self.limits.per_address_max.saturating_mul(CLOSING_TIMES);
            return self.closing.at(from) >= most;
        }
        self.is_full_of_closing(NetworkPrefix::from_ip(from), CLOSING_TIMES)
    }

    /// Whether the library has as many ended connections of unknown peers of this network, or of its site, as so many
    /// times what they may have that live; or as many of all of them, and of these some of this site: others are let in
    /// whatever one has.
    fn is_full_of_closing(&self, network: NetworkPrefix, times: u32) -> bool {
        let most = self.limits.per_address_max.saturating_mul(times);
        let all = self.limits.strangers_max().saturating_mul(times);
        let of_site = self.closing.of_site(network);
        self.closing.owner_count(&WindowOwner::Network(network)) >= most
            || of_site >= most.saturating_mul(SITE_NETWORKS)
            || of_site > 0 && self.closing.of_unknown() >= all
    }

    /// Whose connections are those of peers that were unknown until they showed a token.
    pub(crate) fn token_holders(&self) -> HashMap<ConnId, PeerId> {
        self.token_holders.clone()
    }

    /// Counts a failed proof of identity from `from`. Returns how long guesses from its network are refused now, if
    /// this was one time too many.
    pub(crate) fn fail(&mut self, from: IpAddr, now: Instant) -> Option<Duration> {
        let max = self.limits.failures_per_minute_max;
        self.penalties.fail(NetworkPrefix::from_ip(from), max, now)
    }

    /// How long guesses from the network of `from` are refused, if they are.
    pub(crate) fn penalty(&self, from: IpAddr, now: Instant) -> Option<Duration> {
        self.penalties.left(NetworkPrefix::from_ip(from), now)
    }

    /// The networks whose guesses are refused, and how long they are.
    pub(crate) fn penalties(&self, now: Instant) -> Vec<(NetworkPrefix, Duration)> {
        self.penalties.all(now).collect()
    }

    /// Other limits from now on. Who is in stays.
    pub(crate) fn set_limits(&mut self, limits: EndpointLimits) {
        self.limits = limits;
    }

    /// Whether every place is a known peer's: then nothing can be made room for.
    fn is_full_of_peers(&self) -> bool {
        self.connections >= self.limits.connections_max && self.strangers.is_empty()
    }

    fn ticket(&mut self) -> HandshakeId {
        self.next += 1;
        HandshakeId(self.next)
    }

    /// Makes room for one more bucket: full ones say nothing and go first, then the oldest.
    fn forget_one(&mut self, now: Instant) {
        if self.buckets.len() < BUCKETS_MAX {
            return;
        }
        let refill = f64::from(self.limits.handshake_burst)
            / f64::from(self.limits.handshakes_per_second.max(1));
        let refill = Duration::from_secs_f64(refill);
        self.buckets
            .retain(|_, bucket| now.saturating_duration_since(bucket.at) < refill);
        if self.buckets.len() >= BUCKETS_MAX
            && let Some(oldest) = self.buckets.iter().min_by_key(|(_, bucket)| bucket.at)
        {
            let oldest = *oldest.0;
            self.buckets.remove(&oldest);
        }
    }
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
struct RateLimit {
    burst: f64,
    /// Earned back in a second.
    per_second: f64,
}

#[derive(Clone, Copy, Debug)]
struct TokenBucket {
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    fn full(rate: RateLimit, now: Instant) -> Self {
        Self {
            tokens: rate.burst,
            at: now,
        }
    }

    fn refill(&mut self, rate: RateLimit, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + seconds * rate.per_second).min(rate.burst);
        self.at = now;
    }

    fn has_one(&self) -> bool {
        self.tokens >= 1.0
    }

    /// Takes one, if there is one.
    fn take(&mut self) -> bool {
        let has = self.has_one();
        if has {
            self.tokens -= 1.0;
        }
        has
    }

    fn give_back(&mut self, rate: RateLimit) {
        self.tokens = (self.tokens + 1.0).min(rate.burst);
    }
}

/// Counts events within one second.
#[derive(Clone, Copy, Debug, Default)]
struct RateWindow {
    start: Option<Instant>,
    count: u32,
}

impl RateWindow {
    fn take(&mut self, max: u32, now: Instant) -> bool {
        let fresh = self
            .start
            .is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1));
        if fresh {
            *self = Self {
                start: Some(now),
                count: 0,
            };
        }
        self.count += 1;
        self.count <= max
    }
}

#[cfg(test)]
mod tests;
