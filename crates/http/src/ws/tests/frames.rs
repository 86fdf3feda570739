//! Frames: what is read and written, in whatever pieces.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::frame::{
    BINARY, CLOSE, PING, TEXT, WsEvent, WsFrameReader, WsProtocolError, unmask,
};
use super::super::limits::{FRAGMENTS_MAX, FRAME_SENT_BYTES};
use super::super::send_buffer::WsSendBuffer;
use super::{MASK, announcing, frame, split};

/// Bytes of the length before each message.
const PREFIX_BYTES: usize = 4;

fn prefixed(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes()[..], payload].concat()
}

/// Everything in `pieces`: data joined, the rest one by one.
fn read(pieces: &[&[u8]], most: usize) -> (Vec<u8>, Vec<WsEvent>, Option<WsProtocolError>) {
    let mut reader = WsFrameReader::default();
    let (mut data, mut rest) = (Vec::new(), Vec::new());
    for piece in pieces {
        reader.buffer.extend_from_slice(piece);
        loop {
            match reader.next(most) {
                Ok(Some(WsEvent::Data(bytes))) => data.extend_from_slice(&bytes),
                Ok(Some(got)) => rest.push(got),
                Ok(None) => break,
                Err(fault) => return (data, rest, Some(fault)),
            }
        }
    }
    (data, rest, None)
}

fn code_of(bytes: &[u8]) -> Option<u16> {
    read(&[bytes], 1000).2.map(|fault| fault.code)
}

#[test]
fn what_is_against_the_rules_has_its_code() {
    let plain = frame(BINARY, true, b"{}");
    let change = |at: usize, bits: u8| {
        let mut bytes = plain.clone();
        bytes[at] ^= bits;
        bytes
    };
    for (what, bytes, code) in [
        ("fine", plain.clone(), None),
        ("a reserved bit", change(0, 0x40), Some(1002)),
        ("not masked", change(1, 0x80), Some(1002)),
        ("an unassigned opcode", frame(3, true, b""), Some(1002)),
        ("a long ping", frame(PING, true, &[0; 126]), Some(1002)),
        ("a ping in pieces", frame(PING, false, b""), Some(1002)),
        ("continues nothing", frame(0, true, b""), Some(1002)),
        (
            "a message within another",
            [frame(BINARY, false, b"a"), frame(BINARY, true, b"b")].concat(),
            Some(1002),
        ),
        (
            "a long length",
            [&[0x82, 0xfe, 0, 5][..], &MASK].concat(),
            Some(1002),
        ),
        ("a longer length", announcing(BINARY, 65_535), Some(1002)),
        (
            "a negative length",
            announcing(BINARY, u64::MAX),
            Some(1002),
        ),
        ("a giant", announcing(BINARY, u64::MAX >> 1), Some(1009)),
        (
            "over the limit",
            frame(BINARY, true, &[0; 1001]),
            Some(1009),
        ),
        ("at the limit", frame(BINARY, true, &[0; 1000]), None),
        (
            "over the limit in pieces",
            [frame(BINARY, false, &[0; 600]), frame(0, true, &[0; 401])].concat(),
            Some(1009),
        ),
        (
            "text that is not UTF-8",
            frame(TEXT, true, b"\xff"),
            Some(1007),
        ),
        ("half a code", frame(CLOSE, true, b"\x03"), Some(1002)),
        (
            "a code that is never sent",
            frame(CLOSE, true, &1005u16.to_be_bytes()),
            Some(1002),
        ),
        (
            "a reason that is no text",
            frame(CLOSE, true, b"\x03\xe8\xff"),
            Some(1007),
        ),
    ] {
        assert_eq!(code_of(&bytes), code, "{what}");
    }
    let crumbs = |n: u32| {
        let mut bytes = frame(BINARY, false, b"");
        (1..n).for_each(|_| bytes.extend(frame(0, false, b"")));
        bytes
    };
    assert_eq!(code_of(&crumbs(FRAGMENTS_MAX)), None);
    assert_eq!(code_of(&crumbs(FRAGMENTS_MAX + 1)), Some(1009));
}

#[test]
fn a_head_costs_nothing_until_bytes_arrive() {
    for opcode in [BINARY, TEXT] {
        let mut reader = WsFrameReader::default();
        reader
            .buffer
            .extend_from_slice(&announcing(opcode, 1 << 20));
        let got = reader.next(1 << 20).expect("within the limit");
        assert_eq!(
            got,
            Some(WsEvent::Data(Bytes::from_static(&[0, 0x10, 0, 0])))
        );
        assert_eq!(reader.next(1 << 20), Ok(None));
        assert!(reader.buffer.is_empty() && !reader.is_partial());
        assert_eq!(reader.missing(), 1 << 20);
    }
}

/// A message in pieces is all that a reader keeps, and the reader reports its size to the byte.
#[test]
fn what_is_held_of_pieces_is_said_and_forgotten() {
    const MOST: usize = 100_000;
    let mut reader = WsFrameReader::default();
    let give = |reader: &mut WsFrameReader, bytes: &[u8]| {
        reader.buffer.extend_from_slice(bytes);
        reader.next(MOST)
    };
    // Of one that is whole nothing is held, text or not.
    let announced = announcing(TEXT, 70_000);
    assert!(matches!(
        give(&mut reader, &announced),
        Ok(Some(WsEvent::Data(_)))
    ));
    let mut text = [b'x'; 69_999];
    unmask(&mut text, MASK, 0);
    assert!(matches!(
        give(&mut reader, &text),
        Ok(Some(WsEvent::Data(_)))
    ));
    assert_eq!(reader.held_bytes(), 0);
    let mut reader = WsFrameReader::default();
    for n in 0..9_usize {
        let opcode = if n == 0 { TEXT } else { 0 };
        let piece = frame(opcode, false, &[b'x'; 10_000]);
        assert_eq!(give(&mut reader, &piece), Ok(None));
        let held = reader.held_bytes();
        let had = (n + 1) * 10_000;
        assert!((had..=(2 * had).min(MOST) + 4).contains(&held), "{held}");
    }
    let whole = give(&mut reader, &frame(0, true, &[b'x'; 10_000]));
    assert_eq!(
        whole,
        Ok(Some(WsEvent::Data(prefixed(&[b'x'; MOST]).into()))),
        "at the limit"
    );
    assert_eq!(reader.held_bytes(), 0);
    // Messages are thrown away from now on, and the close frame between them is still read.
    let begun = frame(BINARY, false, &[0; 10_000]);
    assert_eq!(give(&mut reader, &begun), Ok(None));
    reader.forget_messages();
    assert_eq!(give(&mut reader, &frame(0, false, &[0; 10_000])), Ok(None));
    assert_eq!(give(&mut reader, &frame(0, true, &[0; 10_000])), Ok(None));
    assert_eq!(reader.held_bytes(), 0);
    let goodbye = give(&mut reader, &frame(CLOSE, true, b""));
    assert_eq!(goodbye, Ok(Some(WsEvent::Close(None, String::new()))));
}

proptest! {
    #[test]
    fn every_split_reads_alike(
        messages in prop::collection::vec(
            (prop::collection::vec("[a-z{}\"]{0,40}", 1..4), any::<bool>(), any::<bool>()), 1..5),
        cut in 1usize..200,
        step in 1usize..9,
    ) {
        let (mut bytes, mut expected, mut pings) = (Vec::new(), Vec::new(), 0);
        for (pieces, text, ping) in &messages {
            for (n, piece) in pieces.iter().enumerate() {
                let opcode = match (n, text) { (0, true) => TEXT, (0, false) => BINARY, _ => 0 };
                bytes.extend(frame(opcode, n + 1 == pieces.len(), piece.as_bytes()));
                if *ping {
                    bytes.extend(frame(PING, true, b"?"));
                    pings += 1;
                }
            }
            expected.extend(prefixed(pieces.concat().as_bytes()));
        }
        let whole = read(&[&bytes], 1000);
        prop_assert_eq!(&whole.0, &expected);
        prop_assert_eq!(whole.1.len(), pings);
        prop_assert_eq!(whole.2, None);
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(&read(&[head, tail], 1000), &whole);
        let steps: Vec<_> = bytes.chunks(step).collect();
        prop_assert_eq!(&read(&steps, 1000), &whole);
    }

    /// Wherever a character is cut, in one frame or in pieces.
    #[test]
    fn text_is_looked_at_as_it_comes(
        text in "[aä€😀]{0,12}",
        spoiled in prop::option::of((0usize..40, any::<u8>())),
        cut in 0usize..40,
        step in 1usize..9,
        pieces in any::<bool>(),
    ) {
        let mut bytes = text.into_bytes();
        if let Some((at, byte)) = spoiled && let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let message = match pieces {
            false => frame(TEXT, true, &bytes),
            true => {
                let (head, tail) = bytes.split_at(cut.min(bytes.len()));
                [frame(TEXT, false, head), frame(0, true, tail)].concat()
            }
        };
        let steps: Vec<_> = message.chunks(step).collect();
        let (data, _, fault) = read(&steps, 1000);
        match std::str::from_utf8(&bytes) {
            Ok(_) => prop_assert_eq!((data, fault), (prefixed(&bytes), None)),
            Err(_) => {
                prop_assert_eq!(fault.map(|fault| fault.code), Some(1007));
                // What passed on is no whole message.
                prop_assert!(data.len() < PREFIX_BYTES + bytes.len());
            }
        }
    }

    #[test]
    fn any_bytes_end_in_frames_or_a_fault(bytes: Vec<u8>) {
        read(&[&bytes], 1000);
    }

    #[test]
    fn what_is_written_comes_out_whole(
        sizes in prop::collection::vec(1usize..200_000, 1..4),
        step in 1usize..70_000,
        text in any::<bool>(),
    ) {
        let bodies: Vec<Vec<u8>> = sizes.iter().map(|n| vec![b'{'; *n]).collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| prefixed(body)).collect();
        let mut out = WsSendBuffer::default();
        out.text = text;
        let mut wire = Vec::new();
        for piece in stream.chunks(step) {
            let mut chunk = Bytes::copy_from_slice(piece);
            while !chunk.is_empty() {
                out.take(&mut chunk);
                out.ping();
                let ready = out.ready().to_vec();
                out.wrote(ready.len());
                wire.extend(ready);
            }
        }
        out.close(1000, "the end");
        wire.extend_from_slice(out.ready());
        let mut messages = Vec::new();
        let mut open = Vec::new();
        let (mut rest, mut closed) = (&wire[..], false);
        while !rest.is_empty() {
            let (opcode, is_last, payload, after) = split(rest);
            match opcode {
                PING => {}
                CLOSE => closed = true,
                _ => {
                    prop_assert_eq!(opcode == 0, !open.is_empty());
                    prop_assert!(opcode == 0 || (opcode == TEXT) == text);
                    prop_assert!(payload.len() <= FRAME_SENT_BYTES);
                    open.extend_from_slice(payload);
                    if is_last {
                        messages.push(std::mem::take(&mut open));
                    }
                }
            }
            rest = after;
        }
        prop_assert!(closed);
        prop_assert_eq!(messages, bodies);
    }
}
