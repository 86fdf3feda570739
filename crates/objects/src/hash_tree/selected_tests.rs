//! Selections of chunks, encoded as the library encodes them.

use bao_tree::ChunkRangesRef;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges_validated;

use super::*;

/// What the steps say, from the bytes and the outboard. Each pair and each group is verified as a receiver does it.
fn encode(data: &[u8], outboard: &PreOrderMemOutboard, selection: &ChunkSelection) -> Vec<u8> {
    let mut encoded = Vec::new();
    let mut expected = ExpectedHashes::root(&outboard.root);
    for step in TreeSteps::selected(data.len() as u64, selection) {
        match step {
            TreeStep::Pair {
                at,
                start,
                len,
                root,
                left,
                right,
            } => {
                let below = &data[start as usize..][..len as usize];
                let stored = |at: u64| {
                    *outboard.data[at as usize * PAIR_BYTES..]
                        .first_chunk()
                        .expect("a pair")
                };
                let bytes = at.map_or_else(|| pair_below(start, below), stored);
                assert!(expected.pair(&bytes, (root, left, right)), "{step:?}");
                encoded.extend(bytes);
            }
            TreeStep::Group { start, len, root } => {
                let group = &data[start as usize..][..len];
                assert!(expected.group(start, group, root), "{step:?}");
                encoded.extend(group);
            }
        }
    }
    encoded
}

/// Boundaries from a generator, so that each run has the same.
fn boundaries(seed: u64, chunks: u64) -> Vec<u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let count = next() % 8;
    let mut all: Vec<u64> = (0..count).map(|_| next() % (chunks + 4)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn selections_are_encoded_as_the_library_does() {
    let data: Vec<u8> = (0..300_000_u32).map(|at| (at * 31 % 251) as u8).collect();
    for len in [
        0_usize, 1, 1024, 1025, 5000, 16_384, 16_385, 40_000, 65_537, 300_000,
    ] {
        let data = &data[..len];
        let outboard = PreOrderMemOutboard::create(data, BLOCK);
        let chunks = (len as u64).div_ceil(1024);
        let mut all: Vec<Vec<u64>> = (0..200).map(|seed| boundaries(seed, chunks)).collect();
        // Everything; a proof of the size; a range up to the last chunk; behind the end.
        all.extend([
            vec![0],
            vec![u64::MAX],
            vec![0, chunks.max(1)],
            vec![chunks + 9, chunks + 10],
        ]);
        for boundaries in all {
            let ranges: Vec<_> = boundaries.iter().copied().map(ChunkNum).collect();
            let ranges = ChunkRangesRef::new(&ranges).expect("in order");
            let mut theirs = Vec::new();
            encode_ranges_validated(data, &outboard, ranges, &mut theirs).expect("whole");
            let selection = ChunkSelection::from_boundaries(boundaries).expect("in order");
            let ours = encode(data, &outboard, &selection);
            assert!(ours == theirs, "{selection:?} of {len}");
            if len as u64 <= GROUP_BYTES {
                assert!(
                    encode_group(data, &selection) == theirs,
                    "{selection:?} of {len}"
                );
            }
        }
    }
}
