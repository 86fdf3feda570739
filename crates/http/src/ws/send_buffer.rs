//! Writes the frames of RFC 6455 as a server, from the call protocol's stream.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{BINARY, CLOSE, CONTROL_BYTES_MAX, PING, PONG, TEXT};
use super::limits::{FRAME_SENT_BYTES, KEPT_BYTES_MAX};

/// The bytes of the length before each message of the call protocol.
const PREFIX_BYTES: usize = 4;
/// The first byte of a text message of the call protocol.
const OPENS_TEXT: u8 = b'{';

/// The bytes that wait to be written. A frame is written only once it is complete, so that a control frame can always
/// be sent before it.
#[derive(Debug, Default)]
pub(super) struct WsSendBuffer {
    buffer: BytesMut,
    /// The bytes at the front of `buffer` that are complete frames.
    whole: usize,
    /// The bytes of `buffer` up to the end of its last pong or ping; 0 when both were written.
    control_end: usize,
    /// Whether text messages are sent as text.
    pub(super) text: bool,
    /// The length of the next message, as far as it has arrived.
    prefix: Vec<u8>,
    /// The missing bytes of the message.
    message_left: usize,
    /// The missing bytes of its frame.
    frame_left: usize,
    /// Whether an earlier frame of the message was begun.
    continues: bool,
    /// Control frames that wait for the end of a frame.
    pong: Option<Bytes>,
    ping: bool,
    close: Option<(u16, &'static str)>,
    closed: bool,
}

impl WsSendBuffer {
    /// Takes as much of `chunk` as there is room for, and cuts it into frames.
    pub(super) fn take(&mut self, chunk: &mut Bytes) -> usize {
        let before = chunk.len();
        let has_capacity = |out: &Self| out.frame_left > 0 || out.buffer.len() < FRAME_SENT_BYTES;
        while !chunk.is_empty() && has_capacity(self) {
            if self.message_left == 0 {
                self.take_prefix(chunk);
                continue;
            }
            if self.frame_left == 0 {
                self.begin_frame(chunk[0]);
            }
            let bytes = chunk.split_to(self.frame_left.min(chunk.len()));
            self.buffer.put_slice(&bytes);
            self.frame_left -= bytes.len();
            self.message_left -= bytes.len();
            if self.frame_left == 0 {
                self.whole = self.buffer.len();
            }
        }
        before - chunk.len()
    }

    fn take_prefix(&mut self, chunk: &mut Bytes) {
        let bytes = chunk.split_to((PREFIX_BYTES - self.prefix.len()).min(chunk.len()));
        self.prefix.extend_from_slice(&bytes);
        if let Some(len) = self.prefix.first_chunk::<PREFIX_BYTES>() {
            self.message_left = u32::from_be_bytes(*len) as usize;
            self.prefix.clear();
            self.continues = false;
        }
    }

    fn begin_frame(&mut self, first: u8) {
        let len = self.message_left.min(FRAME_SENT_BYTES);
        let opcode = match (self.continues, self.text && first == OPENS_TEXT) {
            (true, _) => 0,
            (false, true) => TEXT,
            (false, false) => BINARY,
        };
        put_head(&mut self.buffer, opcode, len == self.message_left, len);
        self.frame_left = len;
        self.continues = true;
    }

    /// Answers a ping. If several wait for an answer, only the last gets one (RFC 6455 section 5.5.3). The payload is
    /// copied: it is a part of the read buffer, and would keep all of that.
    pub(super) fn pong(&mut self, payload: Bytes) {
        self.pong = Some(Bytes::copy_from_slice(&payload));
    }

    /// Sends a ping.
    pub(super) fn ping(&mut self) {
        self.ping = true;
    }

    /// Ends the stream after the complete frames.
    pub(super) fn close(&mut self, code: u16, reason: &'static str) {
        self.close = Some((code, reason));
    }

    /// The bytes that can be written now.
    pub(super) fn ready(&mut self) -> &[u8] {
        self.put_controls();
        &self.buffer[..self.whole]
    }

    /// Removes bytes that were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        self.whole -= bytes;
        self.control_end = self.control_end.saturating_sub(bytes);
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = BytesMut::new();
        }
    }

    /// Appends control frames, if no frame is incomplete or the incomplete one will never end.
    fn put_controls(&mut self) {
        let quiet = self.pong.is_none() && !self.ping && self.close.is_none();
        if quiet || self.closed {
            return;
        }
        if self.close.is_some() {
            // The incomplete frame is dropped, because nothing may follow the close frame (RFC 6455 section 5.5.1).
            self.buffer.truncate(self.whole);
        } else if self.buffer.len() > self.whole || self.control_end > 0 {
            // A client that receives nothing may send any number of pings, so one pong is in the buffer and one waits
            // here.
            return;
        }
        if let Some(payload) = self.pong.take() {
            put_control(&mut self.buffer, PONG, &payload);
        }
        if std::mem::take(&mut self.ping) {
            put_control(&mut self.buffer, PING, &[]);
        }
        if let Some((code, reason)) = self.close.take() {
            let mut payload = code.to_be_bytes().to_vec();
            payload.extend_from_slice(reason.as_bytes());
            payload.truncate(CONTROL_BYTES_MAX);
            put_control(&mut self.buffer, CLOSE, &payload);
            self.closed = true;
        }
        self.whole = self.buffer.len();
        self.control_end = self.whole;
    }
}

fn put_control(out: &mut BytesMut, opcode: u8, payload: &[u8]) {
    put_head(out, opcode, true, payload.len());
    out.put_slice(payload);
}

/// A server's frames have no mask (RFC 6455 section 5.1).
fn put_head(out: &mut BytesMut, opcode: u8, is_last: bool, len: usize) {
    out.put_u8(opcode | if is_last { 0x80 } else { 0 });
    match len {
        0..=125 => out.put_u8(len as u8),
        126..=0xffff => {
            out.put_u8(126);
            out.put_u16(len as u16);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(len as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that takes nothing of what it is sent sends pings.
    #[test]
    fn pongs_that_are_not_taken_do_not_pile_up() {
        const PINGS: u32 = 100_000;
        let mut out = WsSendBuffer::default();
        let payload = |n: u32| Bytes::from([&n.to_be_bytes()[..], &[0; 121]].concat());
        for n in 0..PINGS {
            out.pong(payload(n));
            assert!(out.ready().len() <= 2 * (2 + CONTROL_BYTES_MAX), "{n}");
        }
        assert!(out.buffer.capacity() <= 4096, "{}", out.buffer.capacity());
        // The first was on its way; of the others the last one is answered.
        for n in [0, PINGS - 1] {
            let written = out.ready();
            assert_eq!(written[..2], [0x80 | PONG, 125]);
            assert_eq!(written[2..], payload(n));
            // In two pieces: nothing is put behind the first one.
            let len = written.len();
            out.wrote(len - 1);
            assert_eq!(out.ready().len(), 1);
            out.wrote(1);
        }
        assert_eq!(out.ready(), b"");
    }

    /// A client that takes some of a long answer has its pings answered meanwhile.
    #[test]
    fn a_pong_comes_between_two_frames_of_a_long_message() {
        let mut out = WsSendBuffer::default();
        let message = vec![b' '; 4 * FRAME_SENT_BYTES];
        let prefix = (message.len() as u32).to_be_bytes();
        let mut chunk = Bytes::from([&prefix[..], &message].concat());
        out.take(&mut chunk);
        out.pong(Bytes::from_static(b"a"));
        let mut written = Vec::new();
        loop {
            let bytes = out.ready();
            if bytes.is_empty() {
                break;
            }
            let some = bytes.len().min(1000);
            written.extend_from_slice(&bytes[..some]);
            out.wrote(some);
            out.take(&mut chunk);
        }
        let pong = [0x80 | PONG, 1, b'a'];
        let at = written.windows(3).position(|bytes| bytes == pong);
        let at = at.expect("a pong");
        assert!(at < 2 * FRAME_SENT_BYTES, "{at} of {}", written.len());
    }
}
