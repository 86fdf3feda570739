//! Chunks of an object that a request wants.

use std::ops::Range;

use bao_tree::{ChunkNum, ChunkRanges, ChunkRangesRef};

use crate::limits::{CHUNK_BYTES, GROUP_BYTES};

/// A set of chunks of [`CHUNK_BYTES`] each. It is not bound to an object: if chunks behind the end of an object are
/// selected, they stand for its last one, so that a client which does not know the size gets a proof of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ChunkSelection {
    /// Numbers of chunks, strictly increasing. Chunks from the first to before the second are selected, from the third to
    /// before the fourth, and so on; the last range may be open.
    boundaries: Vec<u64>,
}

impl ChunkSelection {
    /// Every chunk.
    #[must_use]
    pub fn all() -> Self {
        Self {
            boundaries: vec![0],
        }
    }

    /// The last chunk, whatever the size of the object is. It comes with the hashes that prove the size.
    #[must_use]
    pub fn last() -> Self {
        Self {
            boundaries: vec![u64::MAX],
        }
    }

    /// Takes the numbers at which ranges begin and end, in turn. `None` unless they are strictly increasing.
    #[must_use]
    pub fn from_boundaries(boundaries: Vec<u64>) -> Option<Self> {
        let is_increasing = boundaries.windows(2).all(|pair| pair[0] < pair[1]);
        is_increasing.then_some(Self { boundaries })
    }

    /// The chunks of the groups that these ranges of bytes touch. The ranges are in order and do not overlap.
    #[must_use]
    pub fn of_groups(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut boundaries: Vec<u64> = Vec::new();
        for range in ranges {
            let start = range.start / GROUP_BYTES * GROUP_BYTES / CHUNK_BYTES;
            let end = range.end.div_ceil(GROUP_BYTES) * (GROUP_BYTES / CHUNK_BYTES);
            match boundaries.last_mut() {
                // Two ranges in one group, or in neighbours.
                Some(last) if *last >= start => *last = end.max(*last),
                _ if start < end => boundaries.extend([start, end]),
                _ => {}
            }
        }
        Self { boundaries }
    }

    /// The numbers at which ranges begin and end, in turn.
    #[must_use]
    pub fn boundaries(&self) -> &[u64] {
        &self.boundaries
    }

    /// Whether no chunk is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.boundaries.is_empty()
    }

    /// Bytes of an object of this many bytes that are selected.
    #[must_use]
    pub fn bytes(&self, len: u64) -> u64 {
        let chunks = self.chunks(len);
        let ranges = chunks.boundaries().chunks(2).map(|range| {
            let at = |at: usize| range.get(at).map_or(len, |chunk| chunk.to_bytes().min(len));
            at(1) - at(0)
        });
        ranges.sum()
    }

    /// The selected chunks of an object of this many bytes, in the type of the library.
    pub(crate) fn chunks(&self, len: u64) -> ChunkRanges {
        let last = len.div_ceil(CHUNK_BYTES).saturating_sub(1);
        let is_before = self.boundaries.partition_point(|at| *at < last);
        let (before, rest) = self.boundaries.split_at(is_before);
        let mut boundaries: Vec<_> = before.iter().copied().map(ChunkNum).collect();
        let is_inside = before.len() % 2 == 1;
        match rest {
            // A range ends right before the last chunk, and nothing comes after it.
            [end] if is_inside && *end == last => boundaries.push(ChunkNum(last)),
            // A range begins at the last chunk or behind the object: it means the last chunk.
            [_, ..] if !is_inside => boundaries.push(ChunkNum(last)),
            // The present range, or a later one, has the last chunk; or no chunk is left.
            _ => {}
        }
        let ranges = ChunkRangesRef::new(&boundaries);
        // A union with nothing copies what is borrowed.
        ranges.map_or_else(ChunkRanges::empty, |ranges| {
            ranges.union(&ChunkRanges::empty())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_in_order() {
        assert!(ChunkSelection::from_boundaries(vec![1, 2, 3]).is_some());
        for wrong in [vec![1, 1], vec![2, 1], vec![0, 5, 5]] {
            assert_eq!(ChunkSelection::from_boundaries(wrong), None);
        }
    }

    #[test]
    fn bytes_are_counted_within_the_object() {
        let of = |boundaries: &[u64]| {
            let selection = ChunkSelection::from_boundaries(boundaries.to_vec());
            selection.expect("in order").bytes(10_000)
        };
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[0]), 10_000);
        assert_eq!(of(&[1, 3]), 2048);
        assert_eq!(of(&[0, 1, 5, 6]), 2048);
        // The last chunk has what is left.
        assert_eq!(of(&[u64::MAX]), 10_000 - 9 * 1024);
        assert_eq!(ChunkSelection::last().bytes(10_000), 10_000 - 9 * 1024);
        assert_eq!(of(&[8, 100]), 10_000 - 8 * 1024);
    }

    #[test]
    fn ranges_become_whole_groups() {
        let of = |ranges: &[(u64, u64)]| {
            let ranges = ranges.iter().map(|(start, end)| *start..*end);
            ChunkSelection::of_groups(ranges).boundaries().to_vec()
        };
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[(0, 1)]), [0, 16]);
        assert_eq!(of(&[(0, 1), (20_000, 20_001)]), [0, 32]);
        assert_eq!(of(&[(0, 1), (40_000, 40_001)]), [0, 16, 32, 48]);
        assert!(of(&[(16_384, 16_384)]).is_empty());
    }
}
