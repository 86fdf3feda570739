//! A DHCPv6 client (RFC 8415) as a state machine.
//!
//! Like [`crate::dhcp4`], it takes bytes and time, gives [`Dhcp6Event`]s, and never gives up. It
//! asks for one address ([`Dhcp6Mode::Stateful`]) or only for name and time servers
//! ([`Dhcp6Mode::Stateless`]), as the router's advertisement says.

mod message;

use std::{collections::VecDeque, net::Ipv6Addr, time::Duration};

use message::{Dhcp6MessageType, Dhcp6Reply, Dhcp6Request, IdentityAssociation};

use crate::retry::{NetRng, RetransmitBackoff};

/// The port that servers listen on.
pub const SERVER_PORT: u16 = 547;
/// The port that clients listen on.
pub const CLIENT_PORT: u16 = 546;
/// The multicast address of all servers and relays of a link.
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

const JITTER_PERCENT: u32 = 10;
/// First pause of SOLICIT, REQUEST and INFORMATION-REQUEST.
const ASK_FIRST: Duration = Duration::from_secs(1);
/// Maximum pause. RFC 8415 allows an hour. With the two minutes of RFC 3315, the client finds a
/// server that appears late soon enough.
const ASK_MAX: Duration = Duration::from_secs(120);
/// First and maximum pause of RENEW and REBIND.
const EXTEND_FIRST: Duration = Duration::from_secs(10);
const EXTEND_MAX: Duration = Duration::from_secs(600);
/// Maximum number of requests to one server before the client looks for another (REQ_MAX_RC).
const REQUESTS_MAX: u32 = 10;
/// When the client asks for stateless information again if the server names no time (IRT_DEFAULT),
/// and the minimum time that a server may name (IRT_MINIMUM).
const REFRESH_DEFAULT: Duration = Duration::from_secs(86_400);
const REFRESH_MIN: Duration = Duration::from_secs(600);
/// Minimum lifetime in seconds.
const VALID_SECS_MIN: u32 = 4;
/// Maximum number of addresses, servers or domains that are kept.
const LIST_MAX: usize = 8;
/// Lifetime without an end.
const FOREVER: u32 = u32::MAX;

const STATUS_OK: u16 = 0;
/// A server that does not know the client's association expects a REQUEST (RFC 8415 §18.2.10.1).
const STATUS_NO_BINDING: u16 = 3;

/// What the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dhcp6Mode {
    /// An address and servers (flag M).
    Stateful,
    /// Name and time servers only (flag O).
    Stateless,
}

/// An action for the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dhcp6Event {
    /// A server granted or extended the lease, or the servers are known: this replaces the lease
    /// before.
    Bound(Dhcp6Lease),
    /// The lease ended: remove its addresses and servers.
    Lost,
    /// Send this to [`SERVERS`], port [`SERVER_PORT`].
    Send(Vec<u8>),
}

/// The lease that a DHCPv6 server granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dhcp6Lease {
    /// The leased addresses. Empty in stateless mode.
    pub addresses: Vec<Dhcp6Address>,
    /// Name servers.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Time servers.
    pub ntp: Vec<Ipv6Addr>,
}

/// One address of a lease. The lifetimes are in seconds, and `u32::MAX` means without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dhcp6Address {
    /// The address. Its prefix length is 128.
    pub address: Ipv6Addr,
    /// How long new connections use the address.
    pub preferred_secs: u32,
    /// How long the address exists.
    pub valid_secs: u32,
}

#[derive(Clone, Debug)]
enum Dhcp6State {
    Stopped,
    Informing,
    Informed,
    Soliciting {
        best: Option<Box<Dhcp6Reply>>,
        sent: u32,
    },
    Requesting {
        chosen: Box<Dhcp6Reply>,
        sent: u32,
    },
    Bound,
    Renewing,
    Rebinding,
}

#[derive(Clone, Debug)]
struct Dhcp6Binding {
    server: Vec<u8>,
    addresses: Vec<Ipv6Addr>,
    rebind_at: Option<Duration>,
    ends_at: Option<Duration>,
}

/// The client of one card.
#[derive(Clone, Debug)]
pub struct Dhcp6Client {
    mac: [u8; 6],
    rng: NetRng,
    step: Dhcp6State,
    xid: u32,
    began: Duration,
    backoff: RetransmitBackoff,
    send_at: Option<Duration>,
    held: Option<Dhcp6Binding>,
    events: VecDeque<Dhcp6Event>,
    refused: u64,
}

impl Dhcp6Client {
    /// A client that does nothing until [`Dhcp6Client::start`].
    pub fn new(mac: [u8; 6], seed: u64) -> Self {
        Self {
            mac,
            rng: NetRng::new(seed),
            step: Dhcp6State::Stopped,
            xid: 0,
            began: Duration::ZERO,
            backoff: RetransmitBackoff::new(ASK_FIRST, ASK_MAX),
            send_at: None,
            held: None,
            events: VecDeque::new(),
            refused: 0,
        }
    }

    /// The card has a carrier: the client sends a request at once. Addresses from before stay, and
    /// the client asks for them again.
    pub fn start(&mut self, now: Duration, mode: Dhcp6Mode) {
        let step = match mode {
            Dhcp6Mode::Stateful => Dhcp6State::Soliciting {
                best: None,
                sent: 0,
            },
            Dhcp6Mode::Stateless => Dhcp6State::Informing,
        };
        self.enter(now, step);
    }

    /// The card lost its carrier: the client sends nothing. The lifetimes continue.
    pub fn pause(&mut self) {
        self.step = Dhcp6State::Stopped;
        self.send_at = None;
    }

    /// Number of refused replies: malformed, for another client, implausible or out of turn.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// When the owner has to call [`Dhcp6Client::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Duration> {
        let ends = self.held.as_ref().and_then(|h| h.ends_at);
        self.send_at.into_iter().chain(ends).min()
    }

    /// The next action. After every other call, the owner calls this until it returns `None`.
    pub fn poll_event(&mut self) -> Option<Dhcp6Event> {
        self.events.pop_front()
    }

    /// Handles a datagram to port [`CLIENT_PORT`].
    pub fn handle_packet(&mut self, now: Duration, bytes: &[u8]) {
        let taken = Dhcp6Reply::decode(bytes, self.mac)
            // Replies come by unicast from any server of the link. The transaction number shows
            // that a reply belongs to the present request.
            .filter(|r| r.xid == self.xid)
            .and_then(|reply| self.take(now, reply));
        if taken.is_none() {
            self.refused += 1;
        }
    }

    /// Handles the passage of time.
    pub fn handle_timeout(&mut self, now: Duration) {
        let ends = self.held.as_ref().and_then(|h| h.ends_at);
        // The loss is handled first: it starts over and sets its own time to send.
        if ends.is_some_and(|end| now >= end) {
            self.lose(now);
        }
        if self.send_at.is_some_and(|at| now >= at) {
            self.turn(now);
        }
    }

    fn take(&mut self, now: Duration, reply: Dhcp6Reply) -> Option<()> {
        match (&mut self.step, reply.kind) {
            (Dhcp6State::Informing, Dhcp6MessageType::Reply) => self.inform(now, &reply),
            // RFC 8415 §18.2.1: a Reply to a SOLICIT without Rapid Commit is discarded.
            (Dhcp6State::Soliciting { .. }, Dhcp6MessageType::Reply) if reply.rapid => {
                self.bind(now, reply)?
            }
            (Dhcp6State::Soliciting { best, sent }, Dhcp6MessageType::Advertise) => {
                usable(&reply)?;
                // RFC 8415 §18.2.1: the client collects advertisements until the first pause ends,
                // unless a server has the maximum preference.
                if reply.preference == u8::MAX || *sent > 1 {
                    self.request(now, reply);
                } else if best
                    .as_ref()
                    .is_none_or(|b| b.preference < reply.preference)
                {
                    *best = Some(Box::new(reply));
                }
            }
            (Dhcp6State::Requesting { chosen, .. }, Dhcp6MessageType::Reply)
                if chosen.server == reply.server =>
            {
                // The chosen server changed its mind. Another SOLICIT finds the next server.
                // Another request to this one would be refused again.
                if self.bind(now, reply).is_none() {
                    self.refused += 1;
                    self.start(now, Dhcp6Mode::Stateful);
                }
            }
            (Dhcp6State::Renewing | Dhcp6State::Rebinding, Dhcp6MessageType::Reply) => {
                self.extended(now, reply)?
            }
            // Advertisements of further servers may arrive after the choice.
            _ => return None,
        }
        Some(())
    }

    fn extended(&mut self, now: Duration, reply: Dhcp6Reply) -> Option<()> {
        let association = reply.association.as_ref()?;
        if association.status == STATUS_NO_BINDING {
            self.request(now, reply);
            return Some(());
        }
        self.bind(now, reply)
    }

    fn inform(&mut self, now: Duration, reply: &Dhcp6Reply) {
        let requested = reply.refresh.map(|s| Duration::from_secs(s.into()));
        // RFC 8415 §21.23: a smaller value is treated as IRT_MINIMUM.
        let refresh = requested.unwrap_or(REFRESH_DEFAULT).max(REFRESH_MIN);
        self.step = Dhcp6State::Informed;
        self.send_at = Some(now + refresh);
        self.events.push_back(Dhcp6Event::Bound(lease(reply)));
    }

    fn request(&mut self, now: Duration, chosen: Dhcp6Reply) {
        let chosen = Box::new(chosen);
        self.enter(now, Dhcp6State::Requesting { chosen, sent: 0 });
    }

    fn bind(&mut self, now: Duration, reply: Dhcp6Reply) -> Option<()> {
        let association = usable(&reply)?;
        let after = |secs: u32| (secs != FOREVER).then(|| now + Duration::from_secs(secs.into()));
        let (t1, t2) = times(association);
        // The binding ends with its last address. The kernel ends each other address by its own
        // lifetime.
        let valid = association.addresses.iter().map(|a| a.valid).max()?;
        self.held = Some(Dhcp6Binding {
            server: reply.server.clone(),
            addresses: association.addresses.iter().map(|a| a.address).collect(),
            rebind_at: after(t2),
            ends_at: after(valid),
        });
        self.step = Dhcp6State::Bound;
        self.send_at = after(t1);
        self.events.push_back(Dhcp6Event::Bound(lease(&reply)));
        Some(())
    }

    fn lose(&mut self, now: Duration) {
        self.held = None;
        self.events.push_back(Dhcp6Event::Lost);
        // A paused client stays silent, and a soliciting client is already looking for a server.
        if !matches!(
            self.step,
            Dhcp6State::Stopped | Dhcp6State::Soliciting { .. }
        ) {
            self.start(now, Dhcp6Mode::Stateful);
        }
    }

    /// Enters a state and sends its request.
    fn enter(&mut self, now: Duration, step: Dhcp6State) {
        let extending = matches!(step, Dhcp6State::Renewing | Dhcp6State::Rebinding);
        self.backoff = if extending {
            RetransmitBackoff::new(EXTEND_FIRST, EXTEND_MAX)
        } else {
            RetransmitBackoff::new(ASK_FIRST, ASK_MAX)
        };
        self.step = step;
        // RFC 8415 §8: the transaction number has 24 bits.
        self.xid = self.rng.next_u32() >> 8;
        self.began = now;
        self.send_request(now);
    }

    /// The pause is over: enters the next state, or repeats the request.
    fn turn(&mut self, now: Duration) {
        let rebind = self.held.as_ref().and_then(|h| h.rebind_at);
        match &mut self.step {
            Dhcp6State::Stopped => self.send_at = None,
            Dhcp6State::Informed => self.enter(now, Dhcp6State::Informing),
            Dhcp6State::Soliciting { best, .. } if best.is_some() => {
                if let Some(best) = best.take() {
                    // RFC 8415 §18.2.1: the first pause is over, and the best of the advertisements is taken.
                    self.request(now, *best);
                }
            }
            Dhcp6State::Requesting { sent, .. } if *sent >= REQUESTS_MAX => {
                // RFC 8415 §18.2.2: after REQ_MAX_RC requests the client looks for another server.
                self.start(now, Dhcp6Mode::Stateful);
            }
            Dhcp6State::Bound => self.enter(now, Dhcp6State::Renewing),
            Dhcp6State::Renewing if rebind.is_some_and(|at| now >= at) => {
                // RFC 8415 §18.2.4: RENEW ends at T2. From then on any server may extend the lease.
                self.enter(now, Dhcp6State::Rebinding);
            }
            _ => self.send_request(now),
        }
    }

    fn send_request(&mut self, now: Duration) {
        let held = self.held.as_ref();
        let ours = held.map_or(&[][..], |h| &h.addresses);
        let offered;
        let (kind, server, addresses) = match &mut self.step {
            Dhcp6State::Soliciting { sent, .. } => {
                *sent += 1;
                (Dhcp6MessageType::Solicit, None, ours)
            }
            Dhcp6State::Requesting { chosen, sent } => {
                *sent += 1;
                offered = chosen
                    .association
                    .as_ref()
                    .map(IdentityAssociation::address_list);
                let addresses = offered.as_deref().unwrap_or_default();
                (
                    Dhcp6MessageType::Request,
                    Some(chosen.server.as_slice()),
                    addresses,
                )
            }
            Dhcp6State::Renewing => (
                Dhcp6MessageType::Renew,
                held.map(|h| h.server.as_slice()),
                ours,
            ),
            // RFC 8415 §18.2.5: a REBIND goes to every server and hence names none.
            Dhcp6State::Rebinding => (Dhcp6MessageType::Rebind, None, ours),
            Dhcp6State::Informing => (Dhcp6MessageType::InformationRequest, None, &[][..]),
            Dhcp6State::Stopped | Dhcp6State::Informed | Dhcp6State::Bound => return,
        };
        let elapsed = now.saturating_sub(self.began).as_millis() / 10;
        let query = Dhcp6Request {
            kind,
            xid: self.xid,
            mac: self.mac,
            // RFC 8415 §21.9: 0xffff stands for everything longer.
            elapsed: elapsed.try_into().unwrap_or(u16::MAX),
            server,
            addresses,
        };
        self.events.push_back(Dhcp6Event::Send(query.encode()));
        let next = now + self.backoff.pause(&mut self.rng, JITTER_PERCENT);
        let limit = held
            .and_then(|h| h.rebind_at)
            // Only a RENEW ends early: the REBIND is sent at T2, and not a pause later.
            .filter(|_| kind == Dhcp6MessageType::Renew);
        self.send_at = Some(limit.map_or(next, |limit| next.min(limit)));
    }
}

impl IdentityAssociation {
    fn address_list(&self) -> Vec<Ipv6Addr> {
        self.addresses.iter().map(|a| a.address).collect()
    }
}

/// The association of a reply that grants at least one address.
fn usable(reply: &Dhcp6Reply) -> Option<&IdentityAssociation> {
    let association = reply.association.as_ref()?;
    let fine = reply.status == STATUS_OK && association.status == STATUS_OK;
    let lasts = association
        .addresses
        .iter()
        .any(|a| a.valid >= VALID_SECS_MIN);
    (fine && lasts).then_some(association)
}

/// T1 and T2 in seconds: the server's if they are in order, else half and 4/5 of the shortest
/// preferred lifetime (RFC 8415 §21.4).
fn times(association: &IdentityAssociation) -> (u32, u32) {
    let alive = association
        .addresses
        .iter()
        .filter(|a| a.valid >= VALID_SECS_MIN);
    let shortest = alive.map(|a| a.preferred.max(VALID_SECS_MIN)).min();
    let shortest = shortest.unwrap_or(VALID_SECS_MIN);
    let (t1, t2) = (association.t1, association.t2);
    if t1 > 0 && t1 <= t2 {
        return (t1, t2);
    }
    if shortest == FOREVER {
        return (FOREVER, FOREVER);
    }
    (shortest / 2, shortest / 5 * 4)
}

fn lease(reply: &Dhcp6Reply) -> Dhcp6Lease {
    let granted = reply.association.iter().flat_map(|a| &a.addresses);
    let alive = granted.filter(|a| a.valid >= VALID_SECS_MIN);
    Dhcp6Lease {
        addresses: alive
            .map(|a| Dhcp6Address {
                address: a.address,
                preferred_secs: a.preferred,
                valid_secs: a.valid,
            })
            .take(LIST_MAX)
            .collect(),
        dns: reply.dns.iter().copied().take(LIST_MAX).collect(),
        search: reply.search.iter().take(LIST_MAX).cloned().collect(),
        ntp: reply.ntp.iter().copied().take(LIST_MAX).collect(),
    }
}

#[cfg(test)]
mod tests;
