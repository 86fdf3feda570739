//! BLAKE3 of bytes that come in pieces of any length.
//!
//! BLAKE3 is a tree over chunks of 1 KiB and hashes sixteen of them at once, if it gets them at once. Pieces that
//! begin and end anywhere leave a few chunks over at either end, which are hashed one by one and cost as much as
//! sixteen: a quarter of the time for pieces of 128 KiB. The aligner therefore passes whole subtrees to the hasher,
//! and keeps the rest for the next piece.

use blake3::hazmat::{ChainingValue, HasherExt};
use blake3::{Hash, Hasher};

/// Bytes of the subtrees that are hashed at once: enough to make the level above sixteen chunks cost next to nothing.
const UNIT_BYTES: usize = 128 << 10;

/// A hash that is not complete.
#[derive(Debug, Default)]
pub(super) struct ChunkAligner {
    hasher: Hasher,
    /// Bytes that do not fill a unit yet.
    buffered: Vec<u8>,
}

impl ChunkAligner {
    /// Hashes a part of a tree that begins at `offset`, which must be a multiple of the part's length.
    pub(super) fn at(offset: u64) -> Self {
        let mut even = Self::default();
        even.hasher.set_input_offset(offset);
        even
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        if !self.buffered.is_empty() {
            let room = UNIT_BYTES - self.buffered.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffered.extend_from_slice(now);
            bytes = later;
            if self.buffered.len() < UNIT_BYTES {
                return;
            }
            self.hasher.update(&self.buffered);
            self.buffered.clear();
        }
        let whole = bytes.len() / UNIT_BYTES * UNIT_BYTES;
        self.hasher.update(&bytes[..whole]);
        self.buffered.extend_from_slice(&bytes[whole..]);
    }

    /// Returns the hash of all bytes with `bytes` as the last ones, and starts over.
    pub(super) fn last(&mut self, bytes: &[u8]) -> Hash {
        if self.buffered.len() + bytes.len() >= UNIT_BYTES && !self.buffered.is_empty() {
            self.update(bytes);
            return self.last(&[]);
        }
        self.hasher.update(&self.buffered).update(bytes);
        let hash = self.hasher.finalize();
        self.hasher.reset();
        self.buffered.clear();
        hash
    }

    /// The chaining value of a subtree that is not the whole tree.
    pub(super) fn subtree(mut self) -> ChainingValue {
        self.hasher.update(&self.buffered);
        self.hasher.finalize_non_root()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_hash_of_the_whole() {
        let data: Vec<u8> = (0..900_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        let mut even = ChunkAligner::default();
        for len in [0, 1, UNIT_BYTES - 1, UNIT_BYTES, UNIT_BYTES + 1, data.len()] {
            for piece in [1000, UNIT_BYTES - 1, UNIT_BYTES, 300_000] {
                for last in [0, 1, UNIT_BYTES, 2 * UNIT_BYTES + 5] {
                    let (first, last) = data[..len].split_at(len.saturating_sub(last));
                    first.chunks(piece).for_each(|piece| even.update(piece));
                    assert!(even.buffered.len() < UNIT_BYTES);
                    let hash = even.last(last);
                    assert_eq!(hash, blake3::hash(&data[..len]), "{len} {piece}");
                }
            }
        }
    }
}
