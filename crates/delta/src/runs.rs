//! Long runs of bytes that two programs share. Of programs that hardly differ they are nearly everything, and are found in
//! a second; sorting all suffixes takes a minute.

use std::collections::HashMap;

/// Bytes of the blocks that are looked up. A shorter run is not found.
const BLOCK_BYTES: usize = 4 << 10;
/// Multiplier of the rolling hash: odd, and without a pattern.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes that both have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedRun {
    pub(crate) old: usize,
    pub(crate) new: usize,
    pub(crate) bytes: usize,
}

/// Runs in the order of their places in `new`, which do not overlap there.
pub(crate) fn shared_runs(old: &[u8], new: &[u8]) -> Vec<SharedRun> {
    let blocks = old.chunks_exact(BLOCK_BYTES).map(hash);
    let mut places = HashMap::new();
    for (number, block) in blocks.enumerate() {
        places.entry(block).or_insert(number * BLOCK_BYTES);
    }
    let first_weight = (1..BLOCK_BYTES).fold(1, |weight: u64, _| weight.wrapping_mul(MULTIPLIER));
    let mut runs: Vec<SharedRun> = Vec::new();
    let (mut at, mut end) = (0, 0);
    let mut rolling = new.get(..BLOCK_BYTES).map(hash);
    while let Some(found) = rolling {
        let run = places
            .get(&found)
            .and_then(|place| extended(old, new, *place, at, end));
        let next = match run {
            Some(run) => {
                runs.push(run);
                end = run.new + run.bytes;
                end
            }
            None => at + 1,
        };
        rolling = match new.get(next..next + BLOCK_BYTES) {
            None => None,
            Some(block) if next > at + 1 => Some(hash(block)),
            Some(block) => {
                let out = u64::from(new[at]).wrapping_mul(first_weight);
                let rest = found.wrapping_sub(out).wrapping_mul(MULTIPLIER);
                Some(rest.wrapping_add(block[BLOCK_BYTES - 1].into()))
            }
        };
        at = next;
    }
    runs
}

fn hash(block: &[u8]) -> u64 {
    let add = |sum: u64, byte: &u8| sum.wrapping_mul(MULTIPLIER).wrapping_add((*byte).into());
    block.iter().fold(0, add)
}

/// The run around a block of both, if the bytes are the same and not only the hashes. It begins at `end` or later.
fn extended(old: &[u8], new: &[u8], place: usize, at: usize, end: usize) -> Option<SharedRun> {
    let same = |one: &[u8], other: &[u8]| {
        let pairs = one.iter().zip(other);
        pairs.take_while(|(one, other)| one == other).count()
    };
    let behind = same(&old[place..], &new[at..]);
    if behind < BLOCK_BYTES {
        return None;
    }
    let pairs = old[..place].iter().rev().zip(new[end..at].iter().rev());
    let before = pairs.take_while(|(one, other)| one == other).count();
    Some(SharedRun {
        old: place - before,
        new: at - before,
        bytes: before + behind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(bytes: u32) -> Vec<u8> {
        let words = (0..bytes / 4).map(|at| at.wrapping_mul(2_654_435_761) ^ at >> 7);
        words.flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn what_was_put_in_is_between_two_runs() {
        let old = noise(40_000);
        let mut new = old.clone();
        new.splice(10_001..10_003, *b"put in");
        let runs = shared_runs(&old, &new);
        let run = |old, new, bytes| SharedRun { old, new, bytes };
        assert_eq!(runs, [run(0, 0, 10_001), run(10_003, 10_007, 29_997)]);
        assert_eq!(shared_runs(&old, &old), [run(0, 0, 40_000)]);
        assert_eq!(shared_runs(&old, &old[..BLOCK_BYTES - 1]), []);
        assert_eq!(shared_runs(&old[..BLOCK_BYTES - 1], &old), []);
        assert_eq!(shared_runs(b"", b""), []);
    }

    proptest! {
        #[test]
        fn runs_are_in_order_and_shared(
            cuts in proptest::collection::vec((0_usize..60_000, 0_usize..9_000), 0..12),
        ) {
            let old = noise(60_000);
            let mut new = Vec::new();
            for (at, bytes) in cuts {
                new.extend_from_slice(&old[at..(at + bytes).min(old.len())]);
                new.push(7);
            }
            let mut end = 0;
            for run in shared_runs(&old, &new) {
                prop_assert!(run.new >= end && run.bytes >= BLOCK_BYTES);
                end = run.new + run.bytes;
                prop_assert!(new[run.new..end] == old[run.old..run.old + run.bytes]);
            }
        }
    }
}
