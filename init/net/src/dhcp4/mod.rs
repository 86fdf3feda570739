//! A DHCPv4 client (RFC 2131) as a state machine.
//!
//! Bytes and time go in, [`Dhcp4Event`]s come out; the owner sends, receives and keeps the time. Time
//! is a [`Duration`] since any fixed moment.
//!
//! The client never gives up: without an answer it repeats its question after 1 s, then after twice
//! as long each time, up to 64 s. A card that lost its carrier asks again when the carrier returns
//! and keeps its address in the meantime, as long as the lease lasts.

mod lease;
mod message;

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use message::{Dhcp4MessageType, Dhcp4Reply, Dhcp4Request};

pub use lease::Dhcp4Lease;

use crate::retry::{NetRng, RetransmitBackoff};

/// Port a server listens on.
pub const SERVER_PORT: u16 = 67;
/// Port a client listens on.
pub const CLIENT_PORT: u16 = 68;

/// First pause before a question is repeated.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause, RFC 2131 §4.1.
const RETRY_MAX: Duration = Duration::from_secs(64);
/// How far a pause strays, so that machines started together do not ask together.
const JITTER_PERCENT: u32 = 20;
/// Requests sent for one offer before looking for another.
const REQUESTS_MAX: u32 = 4;
/// Shortest pause between renewals, RFC 2131 §4.4.5.
const RENEW_PAUSE_MIN: Duration = Duration::from_secs(60);
/// Pause after a refusal, so that a server that always refuses is not flooded.
const NAK_PAUSE: Duration = Duration::from_secs(1);

/// What the owner has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dhcp4Event {
    /// The lease is granted or was extended: configure it. It replaces the one before.
    Bound(Dhcp4Lease),
    /// The lease ended: remove its address.
    Lost(LeaseLoss),
    /// Send this to port [`SERVER_PORT`]; `to` is the broadcast address or a server's.
    Send {
        /// Destination address.
        to: Ipv4Addr,
        /// The message.
        bytes: Vec<u8>,
    },
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseLoss {
    /// It ended before a server extended it.
    Expired,
    /// The server refused to extend it.
    Refused,
}

#[derive(Clone, Debug)]
enum Dhcp4State {
    Stopped,
    Selecting,
    Requesting { offer: Dhcp4Lease, sent: u32 },
    Bound,
    Renewing,
    Rebinding,
}

#[derive(Clone, Debug)]
struct Dhcp4Binding {
    lease: Dhcp4Lease,
    since: Duration,
}

impl Dhcp4Binding {
    fn ends(&self) -> Option<Duration> {
        self.lease.lasts.map(|l| self.since + l)
    }
}

/// The client of one card.
#[derive(Clone, Debug)]
pub struct Dhcp4Client {
    mac: [u8; 6],
    hostname: String,
    rng: NetRng,
    backoff: RetransmitBackoff,
    step: Dhcp4State,
    xid: u32,
    began: Duration,
    /// When the question that is under way was sent.
    asked: Duration,
    send_at: Option<Duration>,
    held: Option<Dhcp4Binding>,
    events: VecDeque<Dhcp4Event>,
    refused: u64,
}

impl Dhcp4Client {
    /// A client that does nothing until [`Dhcp4Client::start`]. `seed` drives transaction numbers and
    /// jitter.
    pub fn new(mac: [u8; 6], hostname: &str, seed: u64) -> Self {
        Self {
            mac,
            hostname: hostname.to_owned(),
            rng: NetRng::new(seed),
            backoff: RetransmitBackoff::new(RETRY_FIRST, RETRY_MAX),
            step: Dhcp4State::Stopped,
            xid: 0,
            began: Duration::ZERO,
            asked: Duration::ZERO,
            send_at: None,
            held: None,
            events: VecDeque::new(),
            refused: 0,
        }
    }

    /// The carrier is there: look for a server at once. A lease held from before stays in use
    /// and is asked for again.
    pub fn start(&mut self, now: Duration) {
        self.discover(now, now);
    }

    /// The carrier went away: be silent. The lease keeps running.
    pub fn pause(&mut self) {
        self.step = Dhcp4State::Stopped;
        self.send_at = None;
    }

    /// Tells servers another name from now on.
    pub fn set_hostname(&mut self, hostname: &str) {
        self.hostname = hostname.to_owned();
    }

    /// The lease held, if any.
    pub fn lease(&self) -> Option<&Dhcp4Lease> {
        self.held.as_ref().map(|h| &h.lease)
    }

    /// Replies refused: malformed, foreign, implausible or out of turn.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// When [`Dhcp4Client::handle_timeout`] wants to be called; in the past means now.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let ends = self.held.as_ref().and_then(Dhcp4Binding::ends);
        self.send_at.into_iter().chain(ends).min()
    }

    /// What to do next; call until `None` after every other call.
    pub fn poll_event(&mut self) -> Option<Dhcp4Event> {
        self.events.pop_front()
    }

    /// A datagram came from [`SERVER_PORT`].
    pub fn handle_packet(&mut self, now: Duration, bytes: &[u8]) {
        let taken = Dhcp4Reply::decode(bytes)
            // Replies are broadcast: those to other clients of the link arrive here as well (RFC 2131 §4.1).
            .filter(|r| r.xid == self.xid && r.mac == self.mac)
            .and_then(|reply| self.take(now, &reply));
        if taken.is_none() {
            self.refused += 1;
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        // The end of the lease comes first, so that a question due at the same time no longer asks for the lost
        // address.
        if self
            .held
            .as_ref()
            .and_then(Dhcp4Binding::ends)
            .is_some_and(|end| now >= end)
        {
            self.lose(now, LeaseLoss::Expired);
        }
        if self.send_at.is_some_and(|at| now >= at) {
            self.ask(now);
        }
    }

    /// Acts on a reply to the question under way; `None` if the reply does not answer it.
    fn take(&mut self, now: Duration, reply: &Dhcp4Reply) -> Option<()> {
        match (self.step.clone(), reply.kind) {
            (Dhcp4State::Selecting, Dhcp4MessageType::Offer) => {
                // RFC 2131 §4.4.1 lets a client take the first offer; waiting for more would delay each boot.
                let offer = Dhcp4Lease::read(reply)?;
                self.step = Dhcp4State::Requesting { offer, sent: 0 };
                self.backoff.reset();
                self.ask(now);
            }
            (Dhcp4State::Requesting { offer, .. }, kind) => {
                self.answer(now, kind, reply, Some(offer.server))?;
            }
            (Dhcp4State::Renewing, kind) => {
                // RFC 2131 §4.4.5 renews at the server that granted the lease; after T2 any server may extend it.
                let server = self.lease().map(|l| l.server);
                self.answer(now, kind, reply, server)?;
            }
            (Dhcp4State::Rebinding, kind) => self.answer(now, kind, reply, None)?,
            // A second server's offer arrives while the first one's is requested. The client has chosen already.
            _ => return None,
        }
        Some(())
    }

    fn answer(
        &mut self,
        now: Duration,
        kind: Dhcp4MessageType,
        reply: &Dhcp4Reply,
        from: Option<Ipv4Addr>,
    ) -> Option<()> {
        let server = reply.address(message::code::SERVER)?;
        if from.is_some_and(|f| f != server) {
            return None;
        }
        match kind {
            Dhcp4MessageType::Ack => self.bind(Dhcp4Lease::read(reply)?),
            Dhcp4MessageType::Nak => self.lose(now, LeaseLoss::Refused),
            _ => return None,
        }
        Some(())
    }

    fn bind(&mut self, lease: Dhcp4Lease) {
        // A lease counts from the question, not from the answer (RFC 2131 §4.4.1).
        let since = self.asked;
        self.send_at = lease.lasts.map(|_| since + lease.renew_after);
        self.step = Dhcp4State::Bound;
        self.backoff.reset();
        self.held = Some(Dhcp4Binding {
            lease: lease.clone(),
            since,
        });
        self.events.push_back(Dhcp4Event::Bound(lease));
    }

    fn lose(&mut self, now: Duration, loss: LeaseLoss) {
        if self.held.take().is_some() {
            self.events.push_back(Dhcp4Event::Lost(loss));
        }
        match (&self.step, loss) {
            // In both states the client asks for no lease that just ended. To begin again would undo the back-off.
            (Dhcp4State::Stopped | Dhcp4State::Selecting, _) => {}
            // The offer under way replaces the lease that ended.
            (Dhcp4State::Requesting { .. }, LeaseLoss::Expired) => {}
            (_, LeaseLoss::Refused) => self.discover(now, now + NAK_PAUSE),
            (_, LeaseLoss::Expired) => self.discover(now, now),
        }
    }

    /// Starts over; the first question goes out at `at`.
    fn discover(&mut self, now: Duration, at: Duration) {
        self.step = Dhcp4State::Selecting;
        // RFC 2131 §4.1: a new number for each exchange, so that a late reply to the old one is refused.
        self.xid = self.rng.next_u32();
        self.began = now;
        self.backoff.reset();
        self.send_at = Some(at);
        if at <= now {
            self.ask(now);
        }
    }

    /// Asks what this step asks, and sets when to ask again.
    fn ask(&mut self, now: Duration) {
        match &mut self.step {
            Dhcp4State::Stopped => self.send_at = None,
            Dhcp4State::Selecting => self.ask_everyone(now, Dhcp4MessageType::Discover, None, None),
            // RFC 2131 §3.1 step 5: after these repetitions the client begins with a DISCOVER.
            Dhcp4State::Requesting { sent, .. } if *sent >= REQUESTS_MAX => self.discover(now, now),
            Dhcp4State::Requesting { offer, sent } => {
                *sent += 1;
                let (address, server) = (offer.address, offer.server);
                self.ask_everyone(now, Dhcp4MessageType::Request, Some(address), Some(server));
            }
            Dhcp4State::Bound => {
                self.step = Dhcp4State::Renewing;
                self.extend(now);
            }
            Dhcp4State::Renewing | Dhcp4State::Rebinding => self.extend(now),
        }
    }

    fn ask_everyone(
        &mut self,
        now: Duration,
        kind: Dhcp4MessageType,
        requested: Option<Ipv4Addr>,
        server: Option<Ipv4Addr>,
    ) {
        // RFC 2131 §4.4.1: a DISCOVER may name the address that the client wants. After a pause it is the one in use.
        let requested = requested.or_else(|| self.lease().map(|l| l.address));
        let query = Dhcp4Request {
            // Without an address the kernel drops a unicast answer.
            broadcast: true,
            requested,
            server,
            ..self.query(now, kind)
        };
        let bytes = query.encode();
        self.asked = now;
        self.send_at = Some(now + self.backoff.pause(&mut self.rng, JITTER_PERCENT));
        self.events.push_back(Dhcp4Event::Send {
            to: Ipv4Addr::BROADCAST,
            bytes,
        });
    }

    /// Renews at the server, or after T2 at any.
    fn extend(&mut self, now: Duration) {
        let Some(held) = self.held.clone() else {
            return self.discover(now, now);
        };
        let rebind_at = held.since + held.lease.rebind_after;
        let (to, until) = if now < rebind_at {
            (held.lease.server, rebind_at)
        } else {
            self.step = Dhcp4State::Rebinding;
            (Ipv4Addr::BROADCAST, held.ends().unwrap_or(Duration::MAX))
        };
        self.xid = self.rng.next_u32();
        // RFC 2131 §4.3.2: a client that extends has its address in `ciaddr` and sends neither requested address nor
        // server.
        let query = Dhcp4Request {
            client_address: held.lease.address,
            ..self.query(now, Dhcp4MessageType::Request)
        };
        let bytes = query.encode();
        self.asked = now;
        // RFC 2131 §4.4.5: half of the time that remains, and never less than a minute.
        let pause = (until.saturating_sub(now) / 2).max(RENEW_PAUSE_MIN);
        self.send_at = Some((now + pause).min(until));
        self.events.push_back(Dhcp4Event::Send { to, bytes });
    }

    fn query(&self, now: Duration, kind: Dhcp4MessageType) -> Dhcp4Request<'_> {
        let secs = now.saturating_sub(self.began).as_secs();
        Dhcp4Request {
            kind,
            xid: self.xid,
            // A relay reads the field as "waited for long"; past 18 hours the exact figure says no more.
            secs: secs.try_into().unwrap_or(u16::MAX),
            broadcast: false,
            client_address: Ipv4Addr::UNSPECIFIED,
            mac: self.mac,
            requested: None,
            server: None,
            hostname: &self.hostname,
        }
    }
}

#[cfg(test)]
mod tests;
