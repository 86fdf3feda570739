//! HTTP over TCP by hand, to send what this project's clients never would: connections that send
//! anything, and frames of HTTP/2 (RFC 9113 section 4.1).

use std::time::Duration;

use alknet_core::{Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::Target;
use alknet_test_support::deadline;
use alknet_tls::NodeKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dialer::patient_dialer;

/// ALPN of HTTP/1.1.
pub const H1: &[u8] = b"http/1.1";
/// ALPN of HTTP/2.
pub const H2: &[u8] = b"h2";

/// Types of frames (RFC 9113 section 6).
pub const DATA: u8 = 0;
/// Fields of a request or a response.
pub const HEADERS: u8 = 1;
/// The end of one stream.
pub const RST_STREAM: u8 = 3;
/// The settings of one side.
pub const SETTINGS: u8 = 4;
/// Answered after everything before it was read.
pub const PING: u8 = 6;
/// More fields.
pub const CONTINUATION: u8 = 9;

/// Flags of frames: the last frame of one side of the stream, and the last frame of the fields.
pub const END_STREAM: u8 = 1;
/// See [`END_STREAM`].
pub const END_HEADERS: u8 = 4;

/// The status 200, as the first byte of a response's fields (RFC 7541 appendix A).
pub const OK: u8 = 0x88;
/// The same for 206.
pub const PARTIAL: u8 = 0x8a;

/// Bytes before the payload of a frame.
const FRAME_HEAD_BYTES: usize = 9;

/// Payload of the ping that checks whether everything was read.
const ASKS: [u8; 8] = [7; 8];

/// How long anything may take before a test counts as hung.
const HUNG: Duration = Duration::from_secs(120);

/// The same, adjusted for this machine.
#[must_use]
pub fn hung() -> Duration {
    deadline(HUNG)
}

/// The output of a future.
///
/// # Panics
/// It hangs.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(hung(), work).await.expect("it hangs")
}

/// A frame of HTTP/2.
#[derive(Clone, Debug)]
pub struct Http2Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The number of its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// What happened to the requests of an HTTP/2 connection, as far as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Http2Tally {
    /// Responses that began with the status 200.
    pub served: u32,
    /// Responses that began with another status.
    pub refused: u32,
    /// Complete responses.
    pub whole: u32,
    /// Streams that the node reset.
    pub reset: u32,
}

impl Http2Tally {
    /// Responses that began.
    #[must_use]
    pub fn begun(&self) -> u32 {
        self.served + self.refused
    }

    /// Requests that are finished.
    #[must_use]
    pub fn over(&self) -> u32 {
        self.whole + self.reset
    }

    fn count(&mut self, frame: &Http2Frame) {
        match (frame.kind, frame.payload.first()) {
            (HEADERS, Some(&OK)) => self.served += 1,
            (HEADERS, _) => self.refused += 1,
            (RST_STREAM, _) => self.reset += 1,
            _ => {}
        }
        let ends = [HEADERS, DATA].contains(&frame.kind) && frame.flags & END_STREAM != 0;
        self.whole += u32::from(ends);
    }
}

/// A connection that can send anything.
#[derive(Debug)]
pub struct RawQuicConnection {
    _connection: Connection,
    /// To the node.
    pub send: SendStream,
    /// From the node.
    pub recv: RecvStream,
    /// Received bytes that are not a whole frame yet.
    heard: Vec<u8>,
    tally: Http2Tally,
}

impl RawQuicConnection {
    /// Connects with a new key, as an unknown peer.
    ///
    /// # Panics
    /// The node has no connection slot left.
    pub async fn open(target: &Target, alpn: &'static [u8]) -> Self {
        let key = NodeKey::generate().expect("the system has entropy");
        Self::open_as(target, alpn, key).await
    }

    /// Connects with this key.
    ///
    /// # Panics
    /// As [`open`](Self::open).
    pub async fn open_as(target: &Target, alpn: &'static [u8], key: NodeKey) -> Self {
        let dialer = patient_dialer(Some(key));
        let connection = dialer.dial_over(Carriage::Tcp, target, alpn).await;
        let connection = connection.expect("every client may connect");
        let (send, recv) = connection.accept_bi().await.expect("one stream");
        Self {
            _connection: connection,
            send,
            recv,
            heard: Vec::new(),
            tally: Http2Tally::default(),
        }
    }

    /// An HTTP/2 connection that reads as much of each response as clients usually do.
    ///
    /// # Panics
    /// As [`open`](Self::open).
    pub async fn open_two(target: &Target) -> Self {
        let mut raw = Self::open(target, H2).await;
        raw.preface(&[]).await;
        raw
    }

    /// An HTTP/2 connection that reads one byte of each response: SETTINGS_INITIAL_WINDOW_SIZE (RFC
    /// 9113 section 6.5.2).
    ///
    /// # Panics
    /// As [`open`](Self::open).
    pub async fn open_left_alone(target: &Target) -> Self {
        let mut raw = Self::open(target, H2).await;
        raw.preface(&[0, 4, 0, 0, 0, 1]).await;
        raw
    }

    async fn preface(&mut self, settings: &[u8]) {
        self.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        self.frame(SETTINGS, 0, 0, settings).await;
    }

    /// Sends bytes. Returns whether the node still accepts them.
    ///
    /// # Panics
    /// It hangs.
    pub async fn say(&mut self, bytes: &[u8]) -> bool {
        let said =
            async { self.send.write_all(bytes).await.is_ok() && self.send.flush().await.is_ok() };
        within(said).await
    }

    /// The same with an HTTP/2 frame.
    ///
    /// # Panics
    /// It hangs.
    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.say(&frame(kind, flags, stream, payload)).await
    }

    /// Reads HTTP/1.1 until it contains `end`, and returns everything read.
    ///
    /// # Panics
    /// It does not come in time.
    pub async fn hear_until(&mut self, end: &str, within: Duration) -> String {
        let mut heard = std::mem::take(&mut self.heard);
        let work = async {
            while !String::from_utf8_lossy(&heard).contains(end) {
                let read = self.recv.read_buf(&mut heard).await.expect("it goes on");
                assert_ne!(read, 0, "it ended before {end:?}");
            }
        };
        let over = tokio::time::timeout(within, work).await;
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(over.is_ok(), "no {end:?} in time: {heard}");
        heard
    }

    /// Everything until the node ends the connection.
    ///
    /// # Panics
    /// The node does not end it.
    pub async fn hear(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.heard);
        // How it ends does not matter.
        let _ = within(self.recv.read_to_end(&mut all)).await;
        all
    }

    /// Sends this repeatedly, with a pause each time, as long as the node accepts it. Returns what
    /// the node sent, once that is enough or the node has ended the connection.
    ///
    /// # Panics
    /// Neither happens.
    pub async fn drip(
        mut self,
        piece: &[u8],
        pause: Duration,
        is_enough: impl Fn(&[u8]) -> bool,
    ) -> Vec<u8> {
        let (send, recv, mut all) = (&mut self.send, &mut self.recv, self.heard);
        let drips = async {
            loop {
                tokio::time::sleep(pause).await;
                if send.write_all(piece).await.is_err() || send.flush().await.is_err() {
                    break;
                }
            }
            // Earlier output of the node may still have to be read.
            std::future::pending::<()>().await;
        };
        let hears = within(async {
            // How it ends does not matter.
            while !is_enough(&all) && matches!(recv.read_buf(&mut all).await, Ok(1..)) {}
        });
        tokio::select! {
            () = hears => {}
            () = drips => {}
        }
        all
    }

    /// The next HTTP/2 frame. `None` after the end of the connection.
    ///
    /// # Panics
    /// Neither comes.
    pub async fn next_frame(&mut self) -> Option<Http2Frame> {
        loop {
            if let Some(frame) = self.take_frame() {
                self.tally.count(&frame);
                return Some(frame);
            }
            match within(self.recv.read_buf(&mut self.heard)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    fn take_frame(&mut self) -> Option<Http2Frame> {
        let [a, b, c, kind, flags, stream @ ..]: [u8; FRAME_HEAD_BYTES] =
            *self.heard.first_chunk()?;
        let end = FRAME_HEAD_BYTES + u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = self.heard.get(FRAME_HEAD_BYTES..end)?.to_vec();
        self.heard.drain(..end);
        Some(Http2Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    /// Reads frames until `is_so`, or until the connection has ended. Returns the tally of all
    /// requests so far.
    ///
    /// # Panics
    /// The node sends nothing more before.
    pub async fn until(&mut self, is_so: impl Fn(&Http2Tally) -> bool) -> Http2Tally {
        while !is_so(&self.tally) && self.next_frame().await.is_some() {}
        self.tally
    }

    /// Sends requests and resets each of them, `at_once` at a time. Returns `most`, or how many the
    /// node accepted before it ended the connection.
    ///
    /// # Panics
    /// It hangs.
    pub async fn resets(&mut self, most: u32, at_once: u32) -> u32 {
        for first in (0..most).step_by(at_once as usize) {
            let mut bytes = Vec::new();
            for n in first..first + at_once {
                let stream = n * 2 + 1;
                bytes.extend(get(stream, "/healthz"));
                bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            }
            if !self.say(&bytes).await || !self.until_read().await {
                return first;
            }
        }
        most
    }

    /// Requests `/healthz` on a new HTTP/2 connection, with a head in two frames, and waits for the
    /// answer 200. A head that goes on with [`long_field`] for ever begins as this one does.
    ///
    /// # Panics
    /// The node answers something else.
    pub async fn continued_head_is_served(&mut self) {
        let first = frame(HEADERS, END_STREAM, 1, &asks("/healthz"));
        let last = frame(CONTINUATION, END_HEADERS, 1, &long_field());
        assert!(self.say(&[first, last].concat()).await, "it goes on");
        let tally = self.until(|tally| tally.over() > 0).await;
        assert_eq!((tally.served, tally.whole), (1, 1), "{tally:?}");
    }

    /// Whether the node has read all HTTP/2 frames that were sent, and continues: it answers a ping
    /// after them.
    ///
    /// # Panics
    /// It hangs.
    pub async fn until_read(&mut self) -> bool {
        if !self.frame(PING, 0, 0, &ASKS).await {
            return false;
        }
        while let Some(frame) = self.next_frame().await {
            if frame.kind == PING && frame.payload == ASKS {
                return true;
            }
        }
        false
    }
}

/// The bytes of a frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields of a request for this path, with the static table and literals that are not indexed (RFC
/// 7541 section 6.2.2 and appendix A).
#[must_use]
pub fn asks(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x04, length(path)];
    block.extend(path.as_bytes());
    block.extend([0x01, 9]);
    block.extend(b"localhost");
    block
}

/// These fields as literals that are not indexed.
#[must_use]
pub fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(length(text));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A field with a value of 4,000 bytes, as a literal that is not indexed: 127 bytes and 3,873 more,
/// seven bits of which stand in each byte (RFC 7541 section 5.1).
#[must_use]
pub fn long_field() -> Vec<u8> {
    let mut field = vec![0x00, 1, b'a', 0x7f, 0xa1, 0x1e];
    field.extend([b'a'; 4_000]);
    field
}

/// A length in one byte.
fn length(text: &str) -> u8 {
    assert!(text.len() < 127, "{text:?} is too long");
    text.len() as u8
}

/// The frame of a complete request for this path.
#[must_use]
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &asks(path))
}
