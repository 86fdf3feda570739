//! A DHCPv6 client (RFC 8415) as a state machine.
//!
//! Like [`crate::dhcp4`]: bytes and time in, [`Event`]s out, never giving up. It asks for one
//! address ([`Mode::Stateful`]) or only for name and time servers ([`Mode::Stateless`]), as the
//! router's advertisement says.

mod message;

use std::{collections::VecDeque, net::Ipv6Addr, time::Duration};

use message::{Association, Kind, Query, Reply};

use crate::retry::{Backoff, Rng};

/// Port servers listen on.
pub const SERVER_PORT: u16 = 547;
/// Port clients listen on.
pub const CLIENT_PORT: u16 = 546;
/// All servers and relays of a link.
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

const JITTER_PERCENT: u32 = 10;
/// First pause of SOLICIT, REQUEST and INFORMATION-REQUEST.
const ASK_FIRST: Duration = Duration::from_secs(1);
/// Longest pause. RFC 8415 allows an hour; RFC 3315's two minutes find a server that appears late
/// soon enough to matter.
const ASK_MAX: Duration = Duration::from_secs(120);
/// First and longest pause of RENEW and REBIND.
const EXTEND_FIRST: Duration = Duration::from_secs(10);
const EXTEND_MAX: Duration = Duration::from_secs(600);
/// Requests sent to one server before looking for another (REQ_MAX_RC).
const REQUESTS_MAX: u32 = 10;
/// When stateless information is asked for again if the server does not say (IRT_DEFAULT), and
/// the least it may say (IRT_MINIMUM).
const REFRESH_DEFAULT: Duration = Duration::from_secs(86_400);
const REFRESH_MIN: Duration = Duration::from_secs(600);
/// Shortest lifetime taken, in seconds.
const VALID_SECS_MIN: u32 = 4;
/// Most addresses, servers or domains kept.
const LIST_MAX: usize = 8;
/// Lifetime that means for ever.
const FOREVER: u32 = u32::MAX;

const STATUS_OK: u16 = 0;
/// A server that does not know our association wants a REQUEST (RFC 8415 §18.2.10.1).
const STATUS_NO_BINDING: u16 = 3;

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An address and servers (flag M).
    Stateful,
    /// Name and time servers only (flag O).
    Stateless,
}

/// What the owner has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The lease is granted or was extended, or servers are known: this replaces what was before.
    Bound(Lease),
    /// The lease ended: remove its addresses and servers.
    Lost,
    /// Send to [`SERVERS`], port [`SERVER_PORT`].
    Send(Vec<u8>),
}

/// What a DHCPv6 server granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Addresses; none in stateless mode.
    pub addresses: Vec<Address>,
    /// Name servers.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Time servers.
    pub ntp: Vec<Ipv6Addr>,
}

/// One address of a lease; lifetimes in seconds, `u32::MAX` for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address; its prefix length is 128.
    pub address: Ipv6Addr,
    /// New connections use it this long.
    pub preferred_secs: u32,
    /// It exists this long.
    pub valid_secs: u32,
}

#[derive(Clone, Debug)]
enum Step {
    Stopped,
    Informing,
    Informed,
    Soliciting { best: Option<Box<Reply>>, sent: u32 },
    Requesting { chosen: Box<Reply>, sent: u32 },
    Bound,
    Renewing,
    Rebinding,
}

#[derive(Clone, Debug)]
struct Held {
    server: Vec<u8>,
    addresses: Vec<Ipv6Addr>,
    rebind_at: Option<Duration>,
    ends_at: Option<Duration>,
}

/// The client of one card.
#[derive(Clone, Debug)]
pub struct Client {
    mac: [u8; 6],
    rng: Rng,
    step: Step,
    xid: u32,
    began: Duration,
    backoff: Backoff,
    send_at: Option<Duration>,
    held: Option<Held>,
    events: VecDeque<Event>,
    refused: u64,
}

impl Client {
    /// A client that does nothing until [`Client::start`].
    pub fn new(mac: [u8; 6], seed: u64) -> Self {
        Self {
            mac,
            rng: Rng::new(seed),
            step: Step::Stopped,
            xid: 0,
            began: Duration::ZERO,
            backoff: Backoff::new(ASK_FIRST, ASK_MAX),
            send_at: None,
            held: None,
            events: VecDeque::new(),
            refused: 0,
        }
    }

    /// The link is there: ask at once. Addresses held from before stay and are asked for again.
    pub fn start(&mut self, now: Duration, mode: Mode) {
        let step = match mode {
            Mode::Stateful => Step::Soliciting {
                best: None,
                sent: 0,
            },
            Mode::Stateless => Step::Informing,
        };
        self.enter(now, step);
    }

    /// The carrier went away: be silent. Lifetimes keep running.
    pub fn pause(&mut self) {
        self.step = Step::Stopped;
        self.send_at = None;
    }

    /// Replies refused: malformed, foreign, implausible or out of turn.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// When [`Client::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let ends = self.held.as_ref().and_then(|h| h.ends_at);
        self.send_at.into_iter().chain(ends).min()
    }

    /// What to do next; call until `None` after every other call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A datagram came to port [`CLIENT_PORT`].
    pub fn handle_packet(&mut self, now: Duration, bytes: &[u8]) {
        let taken = Reply::decode(bytes, self.mac)
            .filter(|r| r.xid == self.xid)
            .and_then(|reply| self.take(now, reply));
        if taken.is_none() {
            self.refused += 1;
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        let ends = self.held.as_ref().and_then(|h| h.ends_at);
        if ends.is_some_and(|end| now >= end) {
            self.lose(now);
        }
        if self.send_at.is_some_and(|at| now >= at) {
            self.turn(now);
        }
    }

    fn take(&mut self, now: Duration, reply: Reply) -> Option<()> {
        match (&mut self.step, reply.kind) {
            (Step::Informing, Kind::Reply) => self.inform(now, &reply),
            (Step::Soliciting { .. }, Kind::Reply) if reply.rapid => self.bind(now, reply)?,
            (Step::Soliciting { best, sent }, Kind::Advertise) => {
                usable(&reply)?;
                // RFC 8415 §18.2.1: collect until the first pause ends, unless a server says it
                // is the best there is.
                if reply.preference == u8::MAX || *sent > 1 {
                    self.request(now, reply);
                } else if best
                    .as_ref()
                    .is_none_or(|b| b.preference < reply.preference)
                {
                    *best = Some(Box::new(reply));
                }
            }
            (Step::Requesting { chosen, .. }, Kind::Reply) if chosen.server == reply.server => {
                if self.bind(now, reply).is_none() {
                    self.refused += 1;
                    self.start(now, Mode::Stateful);
                }
            }
            (Step::Renewing | Step::Rebinding, Kind::Reply) => self.extended(now, reply)?,
            _ => return None,
        }
        Some(())
    }

    fn extended(&mut self, now: Duration, reply: Reply) -> Option<()> {
        let association = reply.association.as_ref()?;
        if association.status == STATUS_NO_BINDING {
            self.request(now, reply);
            return Some(());
        }
        self.bind(now, reply)
    }

    fn inform(&mut self, now: Duration, reply: &Reply) {
        let asked = reply.refresh.map(|s| Duration::from_secs(s.into()));
        let refresh = asked.unwrap_or(REFRESH_DEFAULT).max(REFRESH_MIN);
        self.step = Step::Informed;
        self.send_at = Some(now + refresh);
        self.events.push_back(Event::Bound(lease(reply)));
    }

    fn request(&mut self, now: Duration, chosen: Reply) {
        let chosen = Box::new(chosen);
        self.enter(now, Step::Requesting { chosen, sent: 0 });
    }

    fn bind(&mut self, now: Duration, reply: Reply) -> Option<()> {
        let association = usable(&reply)?;
        let after = |secs: u32| (secs != FOREVER).then(|| now + Duration::from_secs(secs.into()));
        let (t1, t2) = times(association);
        let valid = association.addresses.iter().map(|a| a.valid).max()?;
        self.held = Some(Held {
            server: reply.server.clone(),
            addresses: association.addresses.iter().map(|a| a.address).collect(),
            rebind_at: after(t2),
            ends_at: after(valid),
        });
        self.step = Step::Bound;
        self.send_at = after(t1);
        self.events.push_back(Event::Bound(lease(&reply)));
        Some(())
    }

    fn lose(&mut self, now: Duration) {
        self.held = None;
        self.events.push_back(Event::Lost);
        if !matches!(self.step, Step::Stopped | Step::Soliciting { .. }) {
            self.start(now, Mode::Stateful);
        }
    }

    /// Begins a step and asks its question.
    fn enter(&mut self, now: Duration, step: Step) {
        let extending = matches!(step, Step::Renewing | Step::Rebinding);
        self.backoff = if extending {
            Backoff::new(EXTEND_FIRST, EXTEND_MAX)
        } else {
            Backoff::new(ASK_FIRST, ASK_MAX)
        };
        self.step = step;
        self.xid = self.rng.next_u32() >> 8;
        self.began = now;
        self.ask(now);
    }

    /// The pause is over: move on or ask again.
    fn turn(&mut self, now: Duration) {
        let rebind = self.held.as_ref().and_then(|h| h.rebind_at);
        match &mut self.step {
            Step::Stopped => self.send_at = None,
            Step::Informed => self.enter(now, Step::Informing),
            Step::Soliciting { best, .. } if best.is_some() => {
                if let Some(best) = best.take() {
                    self.request(now, *best);
                }
            }
            Step::Requesting { sent, .. } if *sent >= REQUESTS_MAX => {
                self.start(now, Mode::Stateful);
            }
            Step::Bound => self.enter(now, Step::Renewing),
            Step::Renewing if rebind.is_some_and(|at| now >= at) => {
                self.enter(now, Step::Rebinding);
            }
            _ => self.ask(now),
        }
    }

    fn ask(&mut self, now: Duration) {
        let held = self.held.as_ref();
        let ours = held.map_or(&[][..], |h| &h.addresses);
        let offered;
        let (kind, server, addresses) = match &mut self.step {
            Step::Soliciting { sent, .. } => {
                *sent += 1;
                (Kind::Solicit, None, ours)
            }
            Step::Requesting { chosen, sent } => {
                *sent += 1;
                offered = chosen.association.as_ref().map(Association::offered);
                let addresses = offered.as_deref().unwrap_or_default();
                (Kind::Request, Some(chosen.server.as_slice()), addresses)
            }
            Step::Renewing => (Kind::Renew, held.map(|h| h.server.as_slice()), ours),
            Step::Rebinding => (Kind::Rebind, None, ours),
            Step::Informing => (Kind::InformationRequest, None, &[][..]),
            Step::Stopped | Step::Informed | Step::Bound => return,
        };
        let elapsed = now.saturating_sub(self.began).as_millis() / 10;
        let query = Query {
            kind,
            xid: self.xid,
            mac: self.mac,
            elapsed: elapsed.try_into().unwrap_or(u16::MAX),
            server,
            addresses,
        };
        self.events.push_back(Event::Send(query.encode()));
        let next = now + self.backoff.pause(&mut self.rng, JITTER_PERCENT);
        let limit = held
            .and_then(|h| h.rebind_at)
            .filter(|_| kind == Kind::Renew);
        self.send_at = Some(limit.map_or(next, |limit| next.min(limit)));
    }
}

impl Association {
    fn offered(&self) -> Vec<Ipv6Addr> {
        self.addresses.iter().map(|a| a.address).collect()
    }
}

/// The association of a reply that grants something.
fn usable(reply: &Reply) -> Option<&Association> {
    let association = reply.association.as_ref()?;
    let fine = reply.status == STATUS_OK && association.status == STATUS_OK;
    let lasts = association
        .addresses
        .iter()
        .any(|a| a.valid >= VALID_SECS_MIN);
    (fine && lasts).then_some(association)
}

/// T1 and T2 in seconds: the server's where they are in order, else half and 4/5 of the shortest
/// preferred lifetime (RFC 8415 §21.4).
fn times(association: &Association) -> (u32, u32) {
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

fn lease(reply: &Reply) -> Lease {
    let granted = reply.association.iter().flat_map(|a| &a.addresses);
    let alive = granted.filter(|a| a.valid >= VALID_SECS_MIN);
    Lease {
        addresses: alive
            .map(|a| Address {
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
