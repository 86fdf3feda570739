//! A DHCPv4 client (RFC 2131) as a state machine.
//!
//! Its owner passes in bytes and time, and takes out [`Dhcp4Event`]s. The owner sends, receives and
//! keeps the time. A time is a [`Duration`] since any fixed moment.
//!
//! The client never gives up: without a reply it repeats its request after 1 s, and then after
//! twice as long each time, up to 64 s. When a card loses its carrier, the client keeps the address
//! as long as the lease lasts, and sends a request when the carrier returns.

mod lease;
mod message;

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use message::{Dhcp4MessageType, Dhcp4Reply, Dhcp4Request};

pub use lease::Dhcp4Lease;

use crate::retry::{NetRng, RetransmitBackoff};

/// The port that servers listen on.
pub const SERVER_PORT: u16 = 67;
/// The port that clients listen on.
pub const CLIENT_PORT: u16 = 68;

/// First pause before a request is repeated.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Maximum pause, RFC 2131 §4.1.
const RETRY_MAX: Duration = Duration::from_secs(64);
/// Random part of a pause, so that machines which start together do not send together.
const JITTER_PERCENT: u32 = 20;
/// Maximum number of requests for one offer before the client looks for another.
const REQUESTS_MAX: u32 = 4;
/// Minimum pause between renewals, RFC 2131 §4.4.5.
const RENEW_PAUSE_MIN: Duration = Duration::from_secs(60);
/// Pause after a refusal, so that the client does not flood a server that always refuses.
const NAK_PAUSE: Duration = Duration::from_secs(1);

/// An action for the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dhcp4Event {
    /// A server granted or extended the lease: configure it in place of the one before.
    Bound(Dhcp4Lease),
    /// The lease ended: remove its address.
    Lost(LeaseLoss),
    /// Send this to port [`SERVER_PORT`]. `to` is the broadcast address or that of a server.
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
    /// The lease ended before a server extended it.
    Expired,
    /// The server refused to extend the lease.
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
    /// When the last request was sent.
    sent_at: Duration,
    send_at: Option<Duration>,
    held: Option<Dhcp4Binding>,
    events: VecDeque<Dhcp4Event>,
    refused: u64,
}

impl Dhcp4Client {
    /// A client that does nothing until [`Dhcp4Client::start`]. `seed` determines its transaction
    /// numbers and its jitter.
    pub fn new(mac: [u8; 6], hostname: &str, seed: u64) -> Self {
        Self {
            mac,
            hostname: hostname.to_owned(),
            rng: NetRng::new(seed),
            backoff: RetransmitBackoff::new(RETRY_FIRST, RETRY_MAX),
            step: Dhcp4State::Stopped,
            xid: 0,
            began: Duration::ZERO,
            sent_at: Duration::ZERO,
            send_at: None,
            held: None,
            events: VecDeque::new(),
            refused: 0,
        }
    }

    /// The card has a carrier: the client looks for a server at once. A lease from before stays in
    /// use, and the client asks for it again.
    pub fn start(&mut self, now: Duration) {
        self.discover(now, now);
    }

    /// The card lost its carrier: the client sends nothing. The lease continues.
    pub fn pause(&mut self) {
        self.step = Dhcp4State::Stopped;
        self.send_at = None;
    }

    /// Sets the host name that the client sends to servers from now on.
    pub fn set_hostname(&mut self, hostname: &str) {
        self.hostname = hostname.to_owned();
    }

    /// The present lease, if any.
    pub fn lease(&self) -> Option<&Dhcp4Lease> {
        self.held.as_ref().map(|h| &h.lease)
    }

    /// Number of refused replies: malformed, for another client, implausible or out of turn.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// When the owner has to call [`Dhcp4Client::handle_timeout`]. A past time means now.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let ends = self.held.as_ref().and_then(Dhcp4Binding::ends);
        self.send_at.into_iter().chain(ends).min()
    }

    /// The next action. After every other call, the owner calls this until it returns `None`.
    pub fn poll_event(&mut self) -> Option<Dhcp4Event> {
        self.events.pop_front()
    }

    /// Handles a datagram from [`SERVER_PORT`].
    pub fn handle_packet(&mut self, now: Duration, bytes: &[u8]) {
        let taken = Dhcp4Reply::decode(bytes)
            // Replies are broadcast: those to other clients of the link arrive here as well (RFC 2131 §4.1).
            .filter(|r| r.xid == self.xid && r.mac == self.mac)
            .and_then(|reply| self.take(now, &reply));
        if taken.is_none() {
            self.refused += 1;
        }
    }

    /// Handles the passage of time.
    pub fn handle_timeout(&mut self, now: Duration) {
        // The end of the lease is handled first, so that a request which is due at the same time
        // does not ask for the lost address.
        if self
            .held
            .as_ref()
            .and_then(Dhcp4Binding::ends)
            .is_some_and(|end| now >= end)
        {
            self.lose(now, LeaseLoss::Expired);
        }
        if self.send_at.is_some_and(|at| now >= at) {
            self.send_request(now);
        }
    }

    /// Acts on a reply to the present request. Returns `None` if the reply does not answer it.
    fn take(&mut self, now: Duration, reply: &Dhcp4Reply) -> Option<()> {
        match (self.step.clone(), reply.kind) {
            (Dhcp4State::Selecting, Dhcp4MessageType::Offer) => {
                // RFC 2131 §4.4.1 lets a client take the first offer; waiting for more would delay each boot.
                let offer = Dhcp4Lease::read(reply)?;
                self.step = Dhcp4State::Requesting { offer, sent: 0 };
                self.backoff.reset();
                self.send_request(now);
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
            // A second server's offer may arrive after the client has chosen the first one's.
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
        // The time of a lease counts from the request, not from the reply (RFC 2131 §4.4.1).
        let since = self.sent_at;
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
            // In both states the client asks for no lease that just ended. A new start would undo
            // the back-off.
            (Dhcp4State::Stopped | Dhcp4State::Selecting, _) => {}
            // The offer that the client is requesting replaces the lease that ended.
            (Dhcp4State::Requesting { .. }, LeaseLoss::Expired) => {}
            (_, LeaseLoss::Refused) => self.discover(now, now + NAK_PAUSE),
            (_, LeaseLoss::Expired) => self.discover(now, now),
        }
    }

    /// Starts over. The first request is sent at `at`.
    fn discover(&mut self, now: Duration, at: Duration) {
        self.step = Dhcp4State::Selecting;
        // RFC 2131 §4.1: a new number for each exchange, so that a late reply to the old one is refused.
        self.xid = self.rng.next_u32();
        self.began = now;
        self.backoff.reset();
        self.send_at = Some(at);
        if at <= now {
            self.send_request(now);
        }
    }

    /// Sends the request of the present state, and sets when to repeat it.
    fn send_request(&mut self, now: Duration) {
        match &mut self.step {
            Dhcp4State::Stopped => self.send_at = None,
            Dhcp4State::Selecting => self.broadcast(now, Dhcp4MessageType::Discover, None, None),
            // RFC 2131 §3.1 step 5: after these repetitions the client begins with a DISCOVER.
            Dhcp4State::Requesting { sent, .. } if *sent >= REQUESTS_MAX => self.discover(now, now),
            Dhcp4State::Requesting { offer, sent } => {
                *sent += 1;
                let (address, server) = (offer.address, offer.server);
                self.broadcast(now, Dhcp4MessageType::Request, Some(address), Some(server));
            }
            Dhcp4State::Bound => {
                self.step = Dhcp4State::Renewing;
                self.extend(now);
            }
            Dhcp4State::Renewing | Dhcp4State::Rebinding => self.extend(now),
        }
    }

    fn broadcast(
        &mut self,
        now: Duration,
        kind: Dhcp4MessageType,
        requested: Option<Ipv4Addr>,
        server: Option<Ipv4Addr>,
    ) {
        // RFC 2131 §4.4.1: a DISCOVER may name the address that the client prefers. After a pause
        // it is the one in use.
        let requested = requested.or_else(|| self.lease().map(|l| l.address));
        let query = Dhcp4Request {
            // Without an address, the kernel drops a unicast reply.
            broadcast: true,
            requested,
            server,
            ..self.query(now, kind)
        };
        let bytes = query.encode();
        self.sent_at = now;
        self.send_at = Some(now + self.backoff.pause(&mut self.rng, JITTER_PERCENT));
        self.events.push_back(Dhcp4Event::Send {
            to: Ipv4Addr::BROADCAST,
            bytes,
        });
    }

    /// Renews the lease at its server, or after T2 at any server.
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
        self.sent_at = now;
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
            // A relay reads the field as "waited for long". Beyond 18 hours the exact number tells
            // a relay no more.
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
