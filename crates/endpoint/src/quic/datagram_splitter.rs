//! A socket that hands over datagrams one by one, and the last packet of a datagram apart from those before it.
//!
//! The kernel joins datagrams that follow each other from one sender, up to 64 KiB of them. The library keeps the
//! joined bytes for as long as any of them waits to be read, and counts only the one datagram of that byte. An
//! attacker that sends few bytes which stay unread, among many that the node reads or throws away at once, would have
//! it keep some forty times what it counts. Of a datagram with several packets (RFC 9000 section 12.2) the library
//! counts the one that has the byte, and keeps all: those before it may be any bytes, which it throws away. After the
//! handshake the one that counts is the last, whose header is short.

use std::array;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, UdpPoller};

/// First bit of a long header (RFC 9000 section 17.2), which has the length of its packet.
const LONG_HEADER: u8 = 0x80;
/// Bytes of the version after the first byte.
const VERSION_BYTES: usize = 4;
/// QUIC version 1, and its drafts that the library speaks as well.
const VERSION: u32 = 1;
const DRAFTS: std::ops::RangeInclusive<u32> = 0xff00_001d..=0xff00_0022;
/// Bits of a long header's first byte that hold the type of the packet in version 1.
const TYPE_BITS: u8 = 0x30;
const INITIAL: u8 = 0x00;
const RETRY: u8 = 0x30;

/// The socket, and the batch of datagrams that it received last.
pub(crate) struct DatagramSplitter {
    socket: Arc<dyn AsyncUdpSocket>,
    received: Mutex<ReceiveBatch>,
}

/// The datagrams that the kernel handed over, in as many buffers as it fills at once.
struct ReceiveBatch {
    bytes: Box<[u8]>,
    /// Bytes of the longest datagram that the library accepts, as it announces to peers.
    longest: usize,
    metas: [RecvMeta; BATCH_SIZE],
    /// Number of buffers that are filled.
    filled: usize,
    /// The buffer, and the byte in it, at which the next datagram begins.
    next: (usize, usize),
}

impl DatagramSplitter {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, config: &EndpointConfig) -> Arc<Self> {
        let longest = config.get_max_udp_payload_size();
        // UDP's length field has 16 bits (RFC 768), so that no datagram is longer, whatever the library announces.
        let longest = usize::try_from(longest).unwrap_or(usize::MAX).min(64 << 10);
        let received = ReceiveBatch::new(longest, socket.max_receive_segments());
        Arc::new(Self {
            socket,
            received: Mutex::new(received),
        })
    }
}

impl ReceiveBatch {
    /// Makes buffers for `segments` of the longest datagrams each.
    fn new(longest: usize, segments: usize) -> Self {
        Self {
            bytes: vec![0; longest * segments * BATCH_SIZE].into(),
            longest,
            metas: [RecvMeta::default(); BATCH_SIZE],
            filled: 0,
            next: (0, 0),
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>, socket: &dyn AsyncUdpSocket) -> Poll<io::Result<()>> {
        let joined = self.bytes.len() / BATCH_SIZE;
        let mut buffers = self.bytes.chunks_mut(joined).map(IoSliceMut::new);
        let mut buffers: [_; BATCH_SIZE] =
            array::from_fn(|_| buffers.next().expect("the bytes have as many buffers"));
        self.filled = ready!(socket.poll_recv(cx, &mut buffers, &mut self.metas))?;
        self.next = (0, 0);
        Poll::Ready(Ok(()))
    }

    /// Copies as many datagrams as there are, and as `bufs` has room for. Returns how many. A datagram that is longer
    /// than any may be, or than its buffer, is dropped, as the kernel would drop it.
    fn give(&mut self, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let joined = self.bytes.len() / BATCH_SIZE;
        let mut given = 0;
        while given < bufs.len().min(metas.len()) && self.next.0 < self.filled {
            let (buffer, begin) = self.next;
            let whole = self.metas[buffer];
            // An empty datagram has a stride of zero, by which the code must not divide.
            let stride = whole.stride.max(1);
            // A part of the datagram with this byte may have been handed over already.
            let own = begin / stride * stride;
            let end = (own + stride).min(whole.len);
            let rest = &self.bytes[buffer * joined..][begin..end];
            let len = last_packet(rest).unwrap_or(rest.len());
            let next = begin + len;
            self.next = match next >= whole.len {
                true => (buffer + 1, 0),
                false => (buffer, next),
            };
            let datagram = &rest[..len];
            if end - own <= self.longest
                && let Some(room) = bufs[given].get_mut(..datagram.len())
            {
                room.copy_from_slice(datagram);
                metas[given] = RecvMeta {
                    len: datagram.len(),
                    stride: datagram.len(),
                    ..whole
                };
                given += 1;
            }
        }
        given
    }
}

/// The byte at which the last packet of a datagram begins, if its header is short and other packets stand before it.
/// Zeros are no packet: some clients fill their first datagram up with them to the length that it must have (RFC 9000
/// section 14.1).
fn last_packet(datagram: &[u8]) -> Option<usize> {
    let mut begin = 0;
    loop {
        let packet = datagram.get(begin..)?;
        if packet.first()? & LONG_HEADER == 0 {
            let is_filler = packet.iter().all(|byte| *byte == 0);
            return (begin > 0 && !is_filler).then_some(begin);
        }
        begin += long_packet(packet)?;
    }
}

/// Length of the packet with a long header at the start of `bytes`, as the header says. `None` for versions that the
/// library does not speak: it keeps nothing of their packets.
fn long_packet(bytes: &[u8]) -> Option<usize> {
    let kind = bytes.first()? & TYPE_BITS;
    let version = bytes.get(1..=VERSION_BYTES)?;
    let version = u32::from_be_bytes(version.try_into().ok()?);
    // Neither a Retry nor a Version Negotiation packet has a length, because no packet follows them (RFC 9000 section
    // 17.2).
    if kind == RETRY || !(version == VERSION || DRAFTS.contains(&version)) {
        return None;
    }
    let mut at = 1 + VERSION_BYTES;
    // The connection ids of destination and source.
    for _ in 0..2 {
        at += 1 + usize::from(*bytes.get(at)?);
    }
    if kind == INITIAL {
        let token = variable(bytes, &mut at)?;
        at = at.checked_add(token)?;
    }
    // A header may claim more bytes than there are. Then nothing is split, and the library throws the datagram away.
    let payload = variable(bytes, &mut at)?;
    at.checked_add(payload).filter(|len| *len <= bytes.len())
}

/// The variable-length integer (RFC 9000 section 16) at `at`, which moves behind it.
fn variable(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let first = *bytes.get(*at)?;
    let len = 1 << (first >> 6);
    let number = bytes.get(*at..)?.get(..len)?;
    *at += len;
    let rest = number[1..].iter();
    let number = rest.fold(u64::from(first & 0x3f), |number, byte| {
        (number << 8) | u64::from(*byte)
    });
    usize::try_from(number).ok()
}

impl AsyncUdpSocket for DatagramSplitter {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let given = received.give(bufs, metas);
            if given > 0 {
                return Poll::Ready(Ok(given));
            }
            ready!(received.fill(cx, &*self.socket))?;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for DatagramSplitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatagramSplitter")
            .field(&self.socket)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given, with room for two at a time.
    fn all(received: &mut ReceiveBatch, buffer_bytes: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let (mut one, mut other) = (vec![0; buffer_bytes], vec![0; buffer_bytes]);
            let mut metas = [RecvMeta::default(); 2];
            let mut bufs = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut other)];
            let given = received.give(&mut bufs, &mut metas);
            if given == 0 {
                break all;
            }
            for (buf, meta) in bufs.iter().zip(metas).take(given) {
                assert_eq!(meta.stride, meta.len);
                assert_eq!(meta.addr.port(), 7);
                all.push(buf[..meta.len].to_vec());
            }
        }
    }

    #[test]
    fn what_was_joined_is_given_one_by_one() {
        let of = |buffers: &[(&[u8], usize)]| {
            let mut received = ReceiveBatch::new(8, 2);
            for (at, (bytes, stride)) in buffers.iter().enumerate() {
                received.bytes[at * 16..][..bytes.len()].copy_from_slice(bytes);
                let meta = &mut received.metas[at];
                (meta.len, meta.stride) = (bytes.len(), *stride);
                meta.addr.set_port(7);
            }
            received.filled = buffers.len();
            received
        };
        let mut received = of(&[(b"abcabcab", 3), (b"", 0), (b"hello", 5), (b"xy", 1)]);
        let whole: Vec<_> = all(&mut received, 8);
        let expected: [&[u8]; 7] = [b"abc", b"abc", b"ab", b"", b"hello", b"x", b"y"];
        assert_eq!(whole, expected);
        assert!(all(&mut received, 8).is_empty(), "each once");
        // What does not fit is lost, and nothing besides.
        let mut received = of(&[(b"abcabcab", 3), (b"hello", 5)]);
        assert_eq!(
            all(&mut received, 3),
            [b"abc".to_vec(), b"abc".to_vec(), b"ab".to_vec()]
        );
    }

    /// A packet with a long header of version 1, of this first byte, with so many bytes of anything.
    fn long(first: u8, payload: usize) -> Vec<u8> {
        let mut packet = vec![first, 0, 0, 0, 1, 2, b'd', b'd', 1, b's'];
        if first & TYPE_BITS == INITIAL {
            packet.extend([3, b't', b't', b't']);
        }
        let len = u16::try_from(payload).expect("short") | 0x4000;
        packet.extend(len.to_be_bytes());
        packet.resize(packet.len() + payload, 0x55);
        packet
    }

    /// What is given of datagrams that the kernel joined.
    fn given(joined: &[Vec<u8>]) -> Vec<Vec<u8>> {
        const LONGEST: usize = 400;
        let mut received = ReceiveBatch::new(LONGEST, 3);
        let bytes = joined.concat();
        received.bytes[..bytes.len()].copy_from_slice(&bytes);
        let meta = &mut received.metas[0];
        (meta.len, meta.stride) = (bytes.len(), joined[0].len());
        meta.addr.set_port(7);
        received.filled = 1;
        all(&mut received, 2 * LONGEST)
    }

    /// The library would keep what stands before it for one byte of it.
    #[test]
    fn the_last_packet_is_given_apart_from_others() {
        const HANDSHAKE: u8 = 0xe0;
        const ZERO_RTT: u8 = 0xd0;
        let short = b"\x40short".to_vec();
        let before = [
            long(HANDSHAKE, 300),
            [long(0xc0, 70), long(HANDSHAKE, 20)].concat(),
            [long(ZERO_RTT, 90), long(ZERO_RTT, 0)].concat(),
        ];
        for before in before {
            let whole = [&before[..], &short].concat();
            let parts = [before, short.clone()];
            assert_eq!(given(std::slice::from_ref(&whole)), parts);
            // The next one begins where it did.
            let both = given(&[whole, short.clone()]);
            assert_eq!(both, [&parts[..], std::slice::from_ref(&short)].concat());
        }
        // Nothing follows these, whatever their bytes are.
        let retry = [long(0xf0, 4), short.clone()].concat();
        let mut versions = long(HANDSHAKE, 4);
        versions[4] = 0;
        let versions = [versions, short.clone()].concat();
        let mut too_long = long(HANDSHAKE, 4);
        too_long.pop();
        let cut = long(HANDSHAKE, 4)[..7].to_vec();
        let alone = long(HANDSHAKE, 4);
        // Nor is what fills a datagram a packet.
        let filled = [long(0xc0, 70), vec![0; 200]].concat();
        // In version 2 (RFC 9369) this is an Initial packet with a token of no length, as long as what follows says.
        let mut other = [&long(ZERO_RTT, 0)[..], &[0x40, 90], &[0x55; 90]].concat();
        other[1..=VERSION_BYTES].copy_from_slice(&0x6b33_43cf_u32.to_be_bytes());
        for whole in [retry, versions, too_long, cut, alone, short, filled, other] {
            assert_eq!(given(std::slice::from_ref(&whole)), [whole]);
        }
    }

    #[test]
    fn what_is_longer_than_any_may_be_is_lost() {
        let longest = vec![0x40; 400];
        assert_eq!(given(std::slice::from_ref(&longest)), [longest]);
        assert!(given(&[vec![0x40; 401]]).is_empty());
        // However many packets it has.
        let whole = [long(0xe0, 390), b"\x40short".to_vec()].concat();
        assert!(given(&[whole]).is_empty());
    }
}
