//! A socket that hands datagrams over one by one.
//!
//! The kernel joins datagrams that follow each other from one sender, up to 64 KiB of them. The library keeps what was
//! joined for as long as any byte of it waits to be read, and counts the one datagram that this byte came in: a peer
//! that sends little else than what is read at once, or thrown away, would have it keep some forty times what it counts.

use std::array;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, UdpPoller};

/// The socket.
pub(crate) struct Apart {
    socket: Arc<dyn AsyncUdpSocket>,
    received: Mutex<Received>,
}

/// What the kernel handed over, in as many places as it fills at once.
struct Received {
    bytes: Box<[u8]>,
    metas: [RecvMeta; BATCH_SIZE],
    /// Places that are filled.
    filled: usize,
    /// The place, and the byte of it, at which the next datagram begins.
    next: (usize, usize),
}

impl Apart {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>, config: &EndpointConfig) -> Arc<Self> {
        let longest = config.get_max_udp_payload_size();
        let longest = usize::try_from(longest).unwrap_or(usize::MAX).min(64 << 10);
        let joined = longest * socket.max_receive_segments();
        Arc::new(Self {
            socket,
            received: Mutex::new(Received::new(joined)),
        })
    }
}

impl Received {
    /// With `joined` bytes in each place.
    fn new(joined: usize) -> Self {
        Self {
            bytes: vec![0; joined * BATCH_SIZE].into(),
            metas: [RecvMeta::default(); BATCH_SIZE],
            filled: 0,
            next: (0, 0),
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>, socket: &dyn AsyncUdpSocket) -> Poll<io::Result<()>> {
        let joined = self.bytes.len() / BATCH_SIZE;
        let mut places = self.bytes.chunks_mut(joined).map(IoSliceMut::new);
        let mut places: [_; BATCH_SIZE] =
            array::from_fn(|_| places.next().expect("the bytes have as many places"));
        self.filled = ready!(socket.poll_recv(cx, &mut places, &mut self.metas))?;
        self.next = (0, 0);
        Poll::Ready(Ok(()))
    }

    /// Copies as many datagrams as there are, and as there is room for; returns how many. One that is longer than its
    /// buffer is lost, as it is where the kernel fills that.
    fn give(&mut self, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let joined = self.bytes.len() / BATCH_SIZE;
        let mut given = 0;
        while given < bufs.len().min(metas.len()) && self.next.0 < self.filled {
            let (place, begin) = self.next;
            let whole = self.metas[place];
            let rest = &self.bytes[place * joined..][begin..whole.len];
            let datagram = &rest[..rest.len().min(whole.stride)];
            let is_last = datagram.len() == rest.len() || datagram.is_empty();
            self.next = match is_last {
                true => (place + 1, 0),
                false => (place, begin + datagram.len()),
            };
            if let Some(room) = bufs[given].get_mut(..datagram.len()) {
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

impl AsyncUdpSocket for Apart {
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

impl fmt::Debug for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Apart").field(&self.socket).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given, with room for two at a time.
    fn all(received: &mut Received, room: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let (mut one, mut other) = (vec![0; room], vec![0; room]);
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
        let of = |places: &[(&[u8], usize)]| {
            let mut received = Received::new(16);
            for (at, (bytes, stride)) in places.iter().enumerate() {
                received.bytes[at * 16..][..bytes.len()].copy_from_slice(bytes);
                let meta = &mut received.metas[at];
                (meta.len, meta.stride) = (bytes.len(), *stride);
                meta.addr.set_port(7);
            }
            received.filled = places.len();
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
}
