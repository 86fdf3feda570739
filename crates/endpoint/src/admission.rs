//! Who may start a handshake, and who may keep a connection. No sockets, no clock.
//!
//! Strangers are limited where they cost something. A QUIC packet may carry a forged address, so
//! nothing is charged to an address before it has proven that it is there; a TCP connection that
//! says nothing costs a place, and the oldest such place goes to the newest comer, so that a
//! caller who finishes its handshake gets in beside any number that never do.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use alknet_core::{Carriage, ConnId, PeerId};

use crate::limits::Limits;
use crate::penalty::PenaltyBox;
use crate::places::{Entry, Places};
use crate::prefix::Prefix;

/// Network prefixes remembered; beyond that the longest unseen is forgotten.
const BUCKETS_MAX: usize = 8192;

/// What to do with a first QUIC packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quic {
    /// Start the handshake.
    Accept(Ticket),
    /// Answer nothing.
    Ignore,
    /// Answer that there is no room.
    Refuse(Limit),
    /// Ask for proof of the address, because of a limit or because there is none yet.
    Retry(Option<Limit>),
}

/// What is known of the address that a first QUIC packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// It is proven.
    Proven,
    /// It may be forged.
    Unproven,
    /// It may be forged, and nobody can be told there why a handshake failed.
    Unanswerable,
}

/// What to do with an accepted TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tcp {
    /// Start the handshake, ending `evict` first.
    Accept {
        ticket: Ticket,
        evict: Option<Ticket>,
    },
    /// Drop it.
    Refuse(Limit),
}

/// Names one handshake under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// What there can be too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Connections,
    ConnectionsPerAddress,
    ConnectionsPerPeer,
    FailedLogins,
    HandshakeRate,
    Handshakes,
    HandshakesUnproven,
    Retries,
}

impl Limit {
    /// Every one with its name in metrics, in the order of their numbers.
    pub(crate) const ALL: [(Self, &'static str); 8] = [
        (Self::Connections, "connections"),
        (Self::ConnectionsPerAddress, "connections_per_address"),
        (Self::ConnectionsPerPeer, "connections_per_peer"),
        (Self::FailedLogins, "failed_logins"),
        (Self::HandshakeRate, "handshake_rate"),
        (Self::Handshakes, "handshakes"),
        (Self::HandshakesUnproven, "handshakes_unproven"),
        (Self::Retries, "retries"),
    ];
}

#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    next: u64,
    tcp: BTreeMap<Ticket, IpAddr>,
    quic: HashMap<Ticket, Validated>,
    unvalidated: u32,
    retries: Window,
    connections: u32,
    by_address: HashMap<IpAddr, u32>,
    peers: Places,
    penalties: PenaltyBox,
    buckets: HashMap<(Carriage, Prefix), Bucket>,
}

/// Whether the handshake's address was proven when it began.
type Validated = bool;

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            next: 0,
            tcp: BTreeMap::new(),
            quic: HashMap::new(),
            unvalidated: 0,
            retries: Window::default(),
            connections: 0,
            by_address: HashMap::new(),
            peers: Places::default(),
            penalties: PenaltyBox::default(),
            buckets: HashMap::new(),
        }
    }

    /// A client of QUIC, or of iroh's QUIC, wants in.
    pub(crate) fn quic(
        &mut self,
        carriage: Carriage,
        from: IpAddr,
        address: Address,
        now: Instant,
    ) -> Quic {
        if address == Address::Proven {
            return self.validated_quic(carriage, from, now);
        }
        let full = self.unvalidated >= self.limits.unvalidated_handshakes_max;
        if full || address == Address::Unanswerable {
            let room = self.retries.take(self.limits.retries_per_second_max, now);
            let limit = full.then_some(Limit::HandshakesUnproven);
            return if room {
                Quic::Retry(limit)
            } else {
                Quic::Ignore
            };
        }
        if self.connections >= self.limits.connections_max {
            return Quic::Refuse(Limit::Connections);
        }
        self.unvalidated += 1;
        Quic::Accept(self.start_quic(false))
    }

    fn validated_quic(&mut self, carriage: Carriage, from: IpAddr, now: Instant) -> Quic {
        let handshakes = self.quic.len() as u32 - self.unvalidated;
        if handshakes >= self.limits.validated_handshakes_max {
            return Quic::Refuse(Limit::Handshakes);
        }
        if let Some(limit) = self.full(from) {
            return Quic::Refuse(limit);
        }
        if !self.charge(carriage, from, now) {
            return Quic::Refuse(Limit::HandshakeRate);
        }
        Quic::Accept(self.start_quic(true))
    }

    fn start_quic(&mut self, validated: bool) -> Ticket {
        let ticket = self.ticket();
        self.quic.insert(ticket, validated);
        ticket
    }

    /// A TCP client connected. Its handshake is charged once it has sent a ClientHello.
    pub(crate) fn tcp(&mut self, from: IpAddr) -> Tcp {
        if let Some(limit) = self.full(from) {
            return Tcp::Refuse(limit);
        }
        let same = self.tcp.iter().filter(|(_, address)| **address == from);
        let (oldest, count) = same.fold((None, 0), |(oldest, n), (ticket, _)| {
            (oldest.or(Some(*ticket)), n + 1)
        });
        let evict = if count >= self.limits.tcp_handshakes_per_address_max {
            oldest
        } else if self.tcp.len() >= self.limits.tcp_handshakes_max as usize {
            self.tcp.keys().next().copied()
        } else {
            None
        };
        if let Some(evict) = evict {
            self.tcp.remove(&evict);
        }
        let ticket = self.ticket();
        self.tcp.insert(ticket, from);
        Tcp::Accept { ticket, evict }
    }

    /// Takes one handshake from the prefix of `from`; false when it has had too many.
    pub(crate) fn charge(&mut self, carriage: Carriage, from: IpAddr, now: Instant) -> bool {
        let key = (carriage, Prefix::of(from));
        if !self.buckets.contains_key(&key) {
            self.forget_one(now);
        }
        let burst = f64::from(self.limits.handshake_burst);
        let bucket = self.buckets.entry(key).or_insert(Bucket {
            tokens: burst,
            at: now,
        });
        bucket.refill(burst, f64::from(self.limits.handshakes_per_second), now);
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    /// Gives a handshake back: the peer turned out to be known.
    pub(crate) fn refund(&mut self, carriage: Carriage, from: IpAddr) {
        let burst = f64::from(self.limits.handshake_burst);
        if let Some(bucket) = self.buckets.get_mut(&(carriage, Prefix::of(from))) {
            bucket.tokens = (bucket.tokens + 1.0).min(burst);
        }
    }

    /// The handshake is over, well or not.
    pub(crate) fn finish(&mut self, ticket: Ticket) {
        self.tcp.remove(&ticket);
        if self.quic.remove(&ticket) == Some(false) {
            self.unvalidated -= 1;
        }
    }

    /// Counts a connection from `from`.
    pub(crate) fn connect(&mut self, from: IpAddr) -> Result<(), Limit> {
        if let Some(limit) = self.full(from) {
            return Err(limit);
        }
        self.connections += 1;
        *self.by_address.entry(from).or_default() += 1;
        Ok(())
    }

    /// Counts a connection of `peer`, who may have a number of its own.
    pub(crate) fn identify(
        &mut self,
        peer: &PeerId,
        conn: ConnId,
        newest_wins: bool,
        own_max: Option<u32>,
    ) -> Entry {
        let max = own_max.unwrap_or(self.limits.per_peer_max);
        self.peers.enter(peer, conn, newest_wins, max)
    }

    /// A counted connection ended.
    pub(crate) fn disconnect(&mut self, from: IpAddr, peer: Option<(&PeerId, ConnId)>) {
        self.connections = self.connections.saturating_sub(1);
        decrement(&mut self.by_address, &from);
        if let Some((peer, conn)) = peer {
            self.peers.leave(peer, conn);
        }
    }

    /// Somebody at `from` could not prove who it is. Returns how long the strangers of its network
    /// are shut out now, if this was one time too many.
    pub(crate) fn fail(&mut self, from: IpAddr, now: Instant) -> Option<Duration> {
        let max = self.limits.failures_per_minute_max;
        self.penalties.fail(Prefix::of(from), max, now)
    }

    /// Whether strangers at `from` are shut out.
    pub(crate) fn is_penalised(&self, from: IpAddr, now: Instant) -> bool {
        self.penalties.holds(Prefix::of(from), now)
    }

    /// Other limits from now on. Who is in stays.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    fn full(&self, from: IpAddr) -> Option<Limit> {
        let here = self.by_address.get(&from).copied().unwrap_or(0);
        if self.connections >= self.limits.connections_max {
            return Some(Limit::Connections);
        }
        (here >= self.limits.per_address_max).then_some(Limit::ConnectionsPerAddress)
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
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

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, burst: f64, per_second: f64, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + seconds * per_second).min(burst);
        self.at = now;
    }
}

/// Counts events within one second.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    start: Option<Instant>,
    count: u32,
}

impl Window {
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
