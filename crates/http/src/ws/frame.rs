//! Parses the frames of RFC 6455 as a server. The parser uses no socket and no clock.
//!
//! A message becomes what every other carriage of the call protocol has: its length, and then its bytes. The parser
//! passes on a message in a single frame as its bytes arrive, also a text message. It passes on a fragmented message
//! once it is complete.

use bytes::{Buf, Bytes, BytesMut};

use super::limits::FRAGMENTS_MAX;

/// The bytes of the length that the call protocol puts before each message.
const PREFIX_BYTES: usize = 4;
/// The most bytes of a control frame's payload (RFC 6455 section 5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// The opcodes (RFC 6455 section 5.2).
const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// What the peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WsEvent {
    /// The peer closes the connection.
    Close(Option<u16>, String),
    /// Bytes of the call protocol.
    Data(Bytes),
    /// A ping, whose payload the answer must repeat.
    Ping(Bytes),
    /// The answer to a ping.
    Pong,
}

/// The reason why the connection ends: the peer broke RFC 6455 or exceeded a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WsProtocolError {
    /// A code of RFC 6455 section 7.4.
    pub(super) code: u16,
    /// The reason, which is constant.
    pub(super) reason: &'static str,
}

const fn protocol(reason: &'static str) -> WsProtocolError {
    WsProtocolError { code: 1002, reason }
}

const fn too_big(reason: &'static str) -> WsProtocolError {
    WsProtocolError { code: 1009, reason }
}

const NOT_UTF8: WsProtocolError = WsProtocolError {
    code: 1007,
    reason: "not UTF-8",
};

/// Parses frames from pieces of any size.
#[derive(Debug, Default)]
pub(super) struct WsFrameReader {
    pub(super) buffer: BytesMut,
    frame: Option<WsFrame>,
    message: Option<WsMessage>,
    /// Whether the first message was a text message.
    text: Option<bool>,
    /// Whether messages are discarded, so that only control frames still count.
    forgets: bool,
}

/// A frame whose header was parsed.
#[derive(Clone, Copy, Debug)]
struct WsFrame {
    opcode: u8,
    is_last: bool,
    mask: [u8; 4],
    len: usize,
    /// The bytes of the frame that were passed on.
    done: usize,
}

/// An incomplete message.
#[derive(Debug)]
struct WsMessage {
    /// Checks a text message.
    text: Option<Utf8Validator>,
    fragments: u32,
    /// Room for the length, and the bytes that arrived; empty for a message that is passed on as it arrives.
    whole: Vec<u8>,
    passes: bool,
}

/// Checks text in pieces. It keeps the bytes at the end of a piece that begin a character.
#[derive(Debug, Default)]
struct Utf8Validator {
    begun: [u8; 4],
    len: usize,
}

/// The header of a frame at the front of the buffer.
struct WsFrameHead {
    frame: WsFrame,
    bytes: usize,
}

impl WsFrameReader {
    /// The next event in the buffer; `None` if more bytes are needed. The longest allowed message has `most` bytes.
    pub(super) fn next(&mut self, most: usize) -> Result<Option<WsEvent>, WsProtocolError> {
        loop {
            let Some(frame) = &mut self.frame else {
                let Some(head) = head(&self.buffer)? else {
                    return Ok(None);
                };
                match self.begin(&head, most)? {
                    Some(got) => return Ok(Some(got)),
                    None => continue,
                }
            };
            if frame.opcode >= CLOSE {
                if self.buffer.len() < frame.len {
                    return Ok(None);
                }
                let (opcode, mask, len) = (frame.opcode, frame.mask, frame.len);
                self.frame = None;
                let mut payload = self.buffer.split_to(len);
                unmask(&mut payload, mask, 0);
                return control(opcode, &payload.freeze()).map(Some);
            }
            let take = (frame.len - frame.done).min(self.buffer.len());
            if take == 0 && frame.done < frame.len {
                return Ok(None);
            }
            let mut bytes = self.buffer.split_to(take);
            unmask(&mut bytes, frame.mask, frame.done);
            frame.done += take;
            if let Some(got) = self.take(bytes, most)? {
                return Ok(Some(got));
            }
        }
    }

    /// Whether a message or frame began that the call protocol does not know of yet.
    pub(super) fn is_partial(&self) -> bool {
        let in_control = self.frame.is_some_and(|frame| frame.opcode >= CLOSE);
        let joined = self.message.as_ref().is_some_and(|message| !message.passes);
        joined || in_control || (self.frame.is_none() && !self.buffer.is_empty())
    }

    /// The bytes that a fragmented message holds.
    pub(super) fn held_bytes(&self) -> usize {
        let message = self.message.as_ref();
        message.map_or(0, |message| message.whole.capacity())
    }

    /// Discards messages from now on, so that only control frames still count.
    pub(super) fn forget_messages(&mut self) {
        self.forgets = true;
        if let Some(message) = &mut self.message {
            message.whole = Vec::new();
        }
    }

    /// Whether the peer's first message was a text message.
    pub(super) fn speaks_text(&self) -> bool {
        self.text == Some(true)
    }

    /// The missing bytes of the current frame.
    pub(super) fn missing(&self) -> usize {
        let frame = self.frame.as_ref();
        let rest = frame.map_or(0, |frame| frame.len - frame.done);
        rest.saturating_sub(self.buffer.len())
    }

    /// Begins a frame. A frame that is a whole message is passed on from here; its length overwrites the end of its
    /// header.
    fn begin(
        &mut self,
        head: &WsFrameHead,
        most: usize,
    ) -> Result<Option<WsEvent>, WsProtocolError> {
        let frame = head.frame;
        if frame.opcode >= CLOSE {
            self.buffer.advance(head.bytes);
            self.frame = Some(frame);
            return Ok(None);
        }
        self.check(&frame, most)?;
        let begins = frame.opcode != CONTINUATION;
        let passes = begins && frame.is_last;
        if begins {
            // The first message decides the form of all messages to this client.
            self.text.get_or_insert(frame.opcode == TEXT);
            self.message = Some(WsMessage {
                text: (frame.opcode == TEXT).then(Utf8Validator::default),
                fragments: 0,
                whole: Vec::new(),
                passes,
            });
        }
        if let Some(message) = &mut self.message {
            message.fragments += 1;
        }
        if !passes {
            self.buffer.advance(head.bytes);
            self.frame = Some(frame);
            return Ok(None);
        }
        // A masked header has at least six bytes.
        self.buffer.advance(head.bytes - PREFIX_BYTES);
        let take = frame.len.min(self.buffer.len() - PREFIX_BYTES);
        let mut bytes = self.buffer.split_to(PREFIX_BYTES + take);
        bytes[..PREFIX_BYTES].copy_from_slice(&prefix(frame.len));
        unmask(&mut bytes[PREFIX_BYTES..], frame.mask, 0);
        let ends = take == frame.len;
        if let Some(message) = &mut self.message {
            message.check_text(&bytes[PREFIX_BYTES..], ends)?;
        }
        if ends {
            self.message = None;
        } else {
            self.frame = Some(WsFrame {
                done: take,
                ..frame
            });
        }
        Ok(Some(WsEvent::Data(bytes.freeze())))
    }

    /// Refuses a frame that cannot follow the earlier ones, or that exceeds a limit.
    fn check(&self, frame: &WsFrame, most: usize) -> Result<(), WsProtocolError> {
        let before = match (&self.message, frame.opcode) {
            (None, CONTINUATION) => return Err(protocol("continues no message")),
            (Some(message), CONTINUATION) => message,
            // Messages do not interleave without an extension (RFC 6455 section 5.4).
            (Some(_), _) => return Err(protocol("begins within a message")),
            (None, _) if frame.len > most => return Err(too_big("message too long")),
            (None, _) => return Ok(()),
        };
        if before.fragments >= FRAGMENTS_MAX {
            return Err(too_big("too many fragments"));
        }
        if frame.len > most.saturating_sub(before.len()) {
            return Err(too_big("message too long"));
        }
        Ok(())
    }

    /// Takes bytes of the current frame, and returns what can be passed on now.
    fn take(&mut self, bytes: BytesMut, most: usize) -> Result<Option<WsEvent>, WsProtocolError> {
        let (Some(frame), Some(message)) = (self.frame, &mut self.message) else {
            return Ok(None);
        };
        let ends = frame.done == frame.len;
        if ends {
            self.frame = None;
        }
        let is_whole = ends && frame.is_last;
        message.check_text(&bytes, is_whole)?;
        if !message.passes && !self.forgets {
            message.append(&bytes, most);
        }
        let passes = message.passes;
        let message = if is_whole { self.message.take() } else { None };
        Ok(match message {
            _ if passes => Some(WsEvent::Data(bytes.freeze())),
            Some(message) if !self.forgets => Some(WsEvent::Data(message.joined())),
            _ => None,
        })
    }
}

impl WsMessage {
    /// The bytes that arrived of a fragmented message.
    fn len(&self) -> usize {
        self.whole.len().saturating_sub(PREFIX_BYTES)
    }

    /// Refuses a text message that is not UTF-8.
    fn check_text(&mut self, bytes: &[u8], ends: bool) -> Result<(), WsProtocolError> {
        let Some(text) = &mut self.text else {
            return Ok(());
        };
        let is_text = text.take(bytes) && !(ends && text.len > 0);
        if is_text { Ok(()) } else { Err(NOT_UTF8) }
    }

    /// Appends bytes. The buffer grows to no more than a message of `most` bytes needs, because all of its memory
    /// counts.
    fn append(&mut self, bytes: &[u8], most: usize) {
        let whole = &mut self.whole;
        if whole.is_empty() {
            whole.reserve_exact(PREFIX_BYTES + bytes.len());
            whole.extend_from_slice(&[0; PREFIX_BYTES]);
        }
        let needed = whole.len() + bytes.len();
        if needed > whole.capacity() {
            // The buffer doubles, so that many small fragments do not copy it each time.
            let twice = (2 * whole.capacity()).min(PREFIX_BYTES + most);
            whole.reserve_exact(twice.max(needed) - whole.len());
        }
        whole.extend_from_slice(bytes);
    }

    /// The whole message after its length.
    fn joined(mut self) -> Bytes {
        let prefix = prefix(self.len());
        if let Some(room) = self.whole.first_chunk_mut() {
            *room = prefix;
        }
        self.whole.into()
    }
}

impl Utf8Validator {
    /// Whether the earlier bytes and `bytes` may be text.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while self.len > 0 {
            let Some((first, rest)) = bytes.split_first() else {
                return true;
            };
            bytes = rest;
            self.begun[self.len] = *first;
            self.len += 1;
            match std::str::from_utf8(&self.begun[..self.len]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        let Err(error) = std::str::from_utf8(bytes) else {
            return true;
        };
        let begun = &bytes[error.valid_up_to()..];
        // A character has at most four bytes (RFC 3629 section 3), so an incomplete one has at most three.
        if error.error_len().is_some() || begun.len() >= self.begun.len() {
            return false;
        }
        self.begun[..begun.len()].copy_from_slice(begun);
        self.len = begun.len();
        true
    }
}

/// Parses the header at the front, if it is complete.
fn head(buffer: &[u8]) -> Result<Option<WsFrameHead>, WsProtocolError> {
    let &[first, second, ref rest @ ..] = buffer else {
        return Ok(None);
    };
    let (opcode, is_last) = (first & 0xf, first & 0x80 != 0);
    // These bits have a meaning only in extensions, and the handshake accepts none (RFC 6455 section 5.2).
    if first & 0x70 != 0 {
        return Err(protocol("a reserved bit is set"));
    }
    if !matches!(opcode, CONTINUATION..=BINARY | CLOSE..=PONG) {
        return Err(protocol("no such frame"));
    }
    // A server closes the connection of a client that does not mask (RFC 6455 section 5.1).
    if second & 0x80 == 0 {
        return Err(protocol("not masked"));
    }
    let short = usize::from(second & 0x7f);
    // Control frames are short and not fragmented (RFC 6455 section 5.5).
    if opcode >= CLOSE && (!is_last || short > CONTROL_BYTES_MAX) {
        return Err(protocol("a control frame is short and whole"));
    }
    let (len, extra) = match short {
        126 => {
            let Some(len) = rest.first_chunk::<2>() else {
                return Ok(None);
            };
            (u64::from(u16::from_be_bytes(*len)), 2)
        }
        127 => {
            let Some(len) = rest.first_chunk::<8>() else {
                return Ok(None);
            };
            (u64::from_be_bytes(*len), 8)
        }
        short => (short as u64, 0),
    };
    // Only the shortest form is valid, and the highest bit of the longest form is zero (RFC 6455 section 5.2).
    let shortest = match extra {
        0 => true,
        2 => len > 125,
        _ => len > 0xffff && len >> 63 == 0,
    };
    if !shortest {
        return Err(protocol("a length is not in its shortest form"));
    }
    // The call protocol's own length has 32 bits.
    let Ok(len) = u32::try_from(len) else {
        return Err(too_big("message too long"));
    };
    let Some(mask) = rest[extra..].first_chunk::<4>() else {
        return Ok(None);
    };
    let frame = WsFrame {
        opcode,
        is_last,
        mask: *mask,
        len: len as usize,
        done: 0,
    };
    Ok(Some(WsFrameHead {
        frame,
        bytes: 2 + extra + 4,
    }))
}

fn control(opcode: u8, payload: &Bytes) -> Result<WsEvent, WsProtocolError> {
    match opcode {
        PING => Ok(WsEvent::Ping(payload.clone())),
        PONG => Ok(WsEvent::Pong),
        _ => close(payload),
    }
}

fn close(payload: &[u8]) -> Result<WsEvent, WsProtocolError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        // A close frame has a code or no payload (RFC 6455 section 5.5.1).
        return match payload {
            [] => Ok(WsEvent::Close(None, String::new())),
            _ => Err(protocol("half a close code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455 section 7.4 and its registry define these codes, and an endpoint never sends others.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("no such close code"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
    Ok(WsEvent::Close(Some(code), reason.to_owned()))
}

/// A length in the form of the call protocol. The parser refuses headers with longer ones.
fn prefix(len: usize) -> [u8; PREFIX_BYTES] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

/// Removes the mask from bytes that begin at `offset` in their frame.
pub(super) fn unmask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut key = mask;
    key.rotate_left(offset % 4);
    let wide = u64::from_ne_bytes([
        key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3],
    ]);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        // The conversion cannot fail, because each chunk has eight bytes.
        if let Ok(value) = <[u8; 8]>::try_from(&*word) {
            word.copy_from_slice(&(u64::from_ne_bytes(value) ^ wide).to_ne_bytes());
        }
    }
    let rest = words.into_remainder().iter_mut();
    rest.zip(key.iter().cycle())
        .for_each(|(byte, key)| *byte ^= key);
}
