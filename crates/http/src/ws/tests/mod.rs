//! Frames in whatever pieces they come, and sessions over a pipe and through hyper.

mod client;
mod frames;
mod handshakes;
mod sessions;

use super::frame::unmask;

const MASK: [u8; 4] = [0x12, 0xf4, 0x56, 0x78];
const TOKEN: &str = "alk_abcdefgh_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A client's frame.
fn frame(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![opcode | if is_last { 0x80 } else { 0 }];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let at = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[at..], MASK, 0);
    out
}

/// A head that announces more than follows.
fn announcing(opcode: u8, len: u64) -> Vec<u8> {
    let mut out = vec![0x80 | opcode, 0x80 | 127];
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&MASK);
    out
}

/// A server's frame at the front.
fn split(bytes: &[u8]) -> (u8, bool, &[u8], &[u8]) {
    let (len, at) = match bytes[1] {
        126 => (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
        127 => {
            let len = bytes[2..10].try_into().expect("eight bytes");
            (u64::from_be_bytes(len) as usize, 10)
        }
        short => (usize::from(short), 2),
    };
    let (payload, rest) = bytes[at..].split_at(len);
    (bytes[0] & 15, bytes[0] & 0x80 != 0, payload, rest)
}
