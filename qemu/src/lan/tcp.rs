//! TCP from machines to services of the host, as much as a request and an answer need.
//!
//! The cable loses nothing unless a machine is too slow to read, so one segment at a time is under
//! way to a machine, and goes again until the machine acknowledges it. No frames and no clock are
//! here: [`TcpLinks`] takes segments and returns segments.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};

use super::wire::{ACK, FIN, Mac, PUSH, RST, SYN, TcpSegment};

/// The first sequence number of every connection. The peers are our own, so it need not be random.
const FIRST: u32 = 1_000;
/// Most bytes of a segment, below what an Ethernet frame takes.
pub(crate) const SEGMENT_BYTES_MAX: usize = 1200;

/// A machine's end and a service's end.
pub(crate) type LinkKey = (SocketAddrV4, SocketAddrV4);

/// A segment to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpReply {
    pub(crate) mac: Mac,
    pub(crate) key: LinkKey,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

/// What a segment of a machine leads to.
#[derive(Debug, Default)]
pub(crate) struct TcpOutcome {
    pub(crate) reply: Option<TcpReply>,
    /// A new connection to a service, whose answer is to be carried to the machine.
    pub(crate) opened: Option<TcpStream>,
}

/// The connections of a network.
#[derive(Debug, Default)]
pub(crate) struct TcpLinks {
    services: Vec<(SocketAddrV4, SocketAddr)>,
    links: BTreeMap<LinkKey, TcpLink>,
}

#[derive(Debug)]
struct TcpLink {
    mac: Mac,
    stream: TcpStream,
    /// The next byte of the machine.
    expected: u32,
    /// The next byte to the machine, and what of it the machine has.
    next: u32,
    acked: u32,
}

impl TcpLinks {
    /// Machines that connect to `at` reach `host`.
    pub(crate) fn serve(&mut self, at: SocketAddrV4, host: SocketAddr) {
        self.services.retain(|(known, _)| *known != at);
        self.services.push((at, host));
    }

    /// Handles a segment of a machine.
    pub(crate) fn take(&mut self, mac: Mac, key: LinkKey, segment: &TcpSegment<'_>) -> TcpOutcome {
        if segment.flags & RST != 0 {
            self.links.remove(&key);
            return TcpOutcome::default();
        }
        if segment.flags & SYN != 0 {
            return self.open(mac, key, segment);
        }
        let reply = match self.links.get_mut(&key) {
            Some(link) => link.take(key, segment),
            None => Some(refusal(mac, key, segment)),
        };
        TcpOutcome {
            reply,
            opened: None,
        }
    }

    fn open(&mut self, mac: Mac, key: LinkKey, segment: &TcpSegment<'_>) -> TcpOutcome {
        let (_, at) = key;
        let host = self.services.iter().find(|(known, _)| *known == at);
        let known = self.links.contains_key(&key);
        let mut opened = None;
        if !known {
            let connect = || {
                let stream = TcpStream::connect(host?.1).ok()?;
                let reader = stream.try_clone().ok()?;
                Some((stream, reader))
            };
            let Some((stream, reader)) = connect() else {
                return TcpOutcome {
                    reply: Some(refusal(mac, key, segment)),
                    opened: None,
                };
            };
            opened = Some(reader);
            self.links.insert(
                key,
                TcpLink {
                    mac,
                    stream,
                    expected: segment.seq.wrapping_add(1),
                    next: FIRST.wrapping_add(1),
                    acked: FIRST,
                },
            );
        }
        // A machine that lost the answer asks again, and gets the same one.
        let reply = TcpReply {
            mac,
            key,
            seq: FIRST,
            ack: segment.seq.wrapping_add(1),
            flags: SYN | ACK,
            payload: Vec::new(),
        };
        TcpOutcome {
            reply: Some(reply),
            opened,
        }
    }

    /// The next segment to a machine, with bytes of the service, or its end if there are none.
    /// `None` if the connection is gone.
    pub(crate) fn send(&mut self, key: LinkKey, payload: &[u8]) -> Option<TcpReply> {
        let link = self.links.get_mut(&key)?;
        let (flags, length) = match payload.len() {
            0 => (FIN | ACK, 1),
            length => (PUSH | ACK, u32::try_from(length).unwrap_or(u32::MAX)),
        };
        let seq = link.next;
        link.next = seq.wrapping_add(length);
        Some(TcpReply {
            mac: link.mac,
            key,
            seq,
            ack: link.expected,
            flags,
            payload: payload.to_vec(),
        })
    }

    /// Whether the machine has everything that was sent. `None` if the connection is gone.
    pub(crate) fn is_acknowledged(&self, key: LinkKey) -> Option<bool> {
        let link = self.links.get(&key)?;
        Some(link.acked == link.next)
    }

    /// Forgets a connection whose machine does not answer.
    pub(crate) fn forget(&mut self, key: LinkKey) {
        self.links.remove(&key);
    }

    /// Ends all connections, so that the threads that read from services end.
    pub(crate) fn end_all(&mut self) {
        for link in self.links.values() {
            // The service may have closed it before.
            let _ = link.stream.shutdown(Shutdown::Both);
        }
        self.links.clear();
    }
}

impl TcpLink {
    fn take(&mut self, key: LinkKey, segment: &TcpSegment<'_>) -> Option<TcpReply> {
        // A number before the last one would be of a segment that was overtaken.
        let is_newer = segment.ack.wrapping_sub(self.acked) < u32::MAX / 2;
        if segment.flags & ACK != 0 && is_newer {
            self.acked = segment.ack;
        }
        let is_next = segment.seq == self.expected;
        let has_end = segment.flags & FIN != 0;
        if segment.payload.is_empty() && !has_end {
            return None;
        }
        if is_next {
            let length = u32::try_from(segment.payload.len()).unwrap_or(u32::MAX);
            self.expected = self.expected.wrapping_add(length);
            // A service that has closed its end does not read the rest.
            let _ = self.stream.write_all(segment.payload);
            if has_end {
                self.expected = self.expected.wrapping_add(1);
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
        // A segment out of its order gets an acknowledgement too, and the machine sends again.
        Some(TcpReply {
            mac: self.mac,
            key,
            seq: self.next,
            ack: self.expected,
            flags: ACK,
            payload: Vec::new(),
        })
    }
}

/// The answer at a port where no service is (RFC 9293, 3.10.7.1).
fn refusal(mac: Mac, key: LinkKey, segment: &TcpSegment<'_>) -> TcpReply {
    let length = segment.payload.len() + usize::from(segment.flags & SYN != 0);
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    TcpReply {
        mac,
        key,
        seq: segment.ack,
        ack: segment.seq.wrapping_add(length),
        flags: RST | ACK,
        payload: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 20), 40_001);
    const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);
    const KEY: LinkKey = (GUEST, SERVICE);
    const CARD: Mac = [2, 0, 0, 0, 0, 1];

    fn segment(seq: u32, ack: u32, flags: u8, payload: &[u8]) -> TcpSegment<'_> {
        TcpSegment {
            seq,
            ack,
            flags,
            payload,
        }
    }

    #[test]
    fn a_request_reaches_the_service_once_and_its_answer_the_machine() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let mut links = TcpLinks::default();
        links.serve(SERVICE, listener.local_addr().expect("bound"));
        let first = links.take(CARD, KEY, &segment(77, 0, SYN, b""));
        assert!(first.opened.is_some());
        let reply = first.reply.expect("an answer");
        assert_eq!((reply.seq, reply.ack, reply.flags), (FIRST, 78, SYN | ACK));
        let again = links.take(CARD, KEY, &segment(77, 0, SYN, b""));
        assert!(again.opened.is_none(), "the same connection");
        let (mut served, _) = listener.accept().expect("it connected");

        links.take(CARD, KEY, &segment(78, FIRST + 1, ACK, b""));
        assert_eq!(links.is_acknowledged(KEY), Some(true));
        for _ in 0..2 {
            let outcome = links.take(CARD, KEY, &segment(78, FIRST + 1, PUSH | ACK, b"GET"));
            assert_eq!(outcome.reply.expect("an acknowledgement").ack, 81);
        }
        let early = links.take(CARD, KEY, &segment(90, FIRST + 1, PUSH | ACK, b"later"));
        assert_eq!(early.reply.expect("an acknowledgement").ack, 81);

        let sent = links.send(KEY, b"answer").expect("a segment");
        assert_eq!((sent.seq, sent.flags), (FIRST + 1, PUSH | ACK));
        assert_eq!(links.is_acknowledged(KEY), Some(false));
        links.take(CARD, KEY, &segment(81, FIRST + 7, ACK, b""));
        assert_eq!(links.is_acknowledged(KEY), Some(true));
        let end = links.send(KEY, b"").expect("a segment");
        assert_eq!(end.flags, FIN | ACK);
        let outcome = links.take(CARD, KEY, &segment(81, FIRST + 8, FIN | ACK, b""));
        assert_eq!(outcome.reply.expect("an acknowledgement").ack, 82);
        let mut request = String::new();
        served.read_to_string(&mut request).expect("its end came");
        assert_eq!(request, "GET");
    }

    #[test]
    fn a_port_without_a_service_refuses() {
        let mut links = TcpLinks::default();
        let outcome = links.take(CARD, KEY, &segment(77, 0, SYN, b""));
        let reply = outcome.reply.expect("a refusal");
        assert_eq!((reply.ack, reply.flags), (78, RST | ACK));
        assert_eq!(links.is_acknowledged(KEY), None);
        assert_eq!(links.send(KEY, b"x"), None);
    }
}
