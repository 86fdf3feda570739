//! Counts the names of members that the engine cannot tell apart quickly.
//!
//! The engine has one table of all names, by a hash without a seed, so others can choose names that share a bucket in
//! it. It walks through all names of a bucket to find one, and again to free one, in native code that nothing
//! interrupts: 150,000 names of one bucket take longer than a call may take, whether they are in one object or in one
//! each.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use crate::limits::NAMES_ALIKE_MAX;

/// The engine's hash of a name (`hash_string` in `quickjs.c`) begins with the kind of the name: a string.
const HASH_START: u32 = 1;
/// The factor of that hash.
const HASH_FACTOR: u32 = 263;

/// The different names in one value, by their buckets in the engine's table.
#[derive(Default)]
pub(super) struct NameBuckets {
    /// With a seed, so that others cannot choose names that count as one.
    seed: RandomState,
    known: HashSet<u64>,
    /// By the last bits of the engine's hash. A table of fewer buckets has several of these in one, and has room for
    /// fewer names before the engine doubles it.
    counts: HashMap<u16, usize>,
}

impl NameBuckets {
    /// Counts a name. Returns whether no more than [`NAMES_ALIKE_MAX`] different ones share its bucket.
    pub(super) fn admit(&mut self, name: &str) -> bool {
        // The engine keeps such a name as a number, outside the table.
        let is_index = name.parse::<i32>().is_ok_and(|index| index >= 0);
        if is_index || !self.known.insert(self.seed.hash_one(name)) {
            return true;
        }
        let count = self.counts.entry(bucket(name)).or_default();
        *count += 1;
        *count <= NAMES_ALIKE_MAX
    }
}

fn bucket(name: &str) -> u16 {
    let hash = name.encode_utf16().fold(HASH_START, |hash, unit| {
        hash.wrapping_mul(HASH_FACTOR).wrapping_add(unit.into())
    });
    hash as u16
}

/// Names that all have one hash in the engine.
#[cfg(test)]
pub(super) fn names_of_one_hash(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|at| {
        // The first unit of a pair counts 263 times, so all pairs have the same hash, and so have all lists of pairs.
        let pair = |at: usize| {
            let units = [0x0800 + at as u32, 0xd700 - HASH_FACTOR * at as u32];
            units.into_iter().filter_map(char::from_u32)
        };
        pair(at % PAIRS)
            .chain(pair(at / PAIRS % PAIRS))
            .chain(pair(at / PAIRS / PAIRS))
            .collect()
    })
}

/// The pairs of units that have the same hash, and are no surrogates.
#[cfg(test)]
const PAIRS: usize = 150;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_place_are_counted_once_each() {
        let mut buckets = NameBuckets::default();
        for name in names_of_one_hash(NAMES_ALIKE_MAX) {
            assert!(buckets.admit(&name) && buckets.admit(&name), "{name}");
        }
        let more: Vec<String> = names_of_one_hash(NAMES_ALIKE_MAX + 1).collect();
        assert!(more.iter().rev().skip(1).all(|name| buckets.admit(name)));
        assert!(!buckets.admit(&more[NAMES_ALIKE_MAX]));
        assert!(buckets.admit("another place"));
    }

    /// Names as programs make them are spread over all buckets.
    #[test]
    fn a_hundred_thousand_common_names_are_admitted() {
        let forms: [fn(u32) -> String; 6] = [
            |at| at.to_string(),
            |at| format!("user-{at:06}"),
            |at| format!("{at:08x}"),
            |at| (1_700_000_000_000 + u64::from(at) * 65_536).to_string(),
            |at| format!("/a/{}/{}", at / 100, at % 100),
            |at| format!("{at:020b}"),
        ];
        for form in forms {
            let mut buckets = NameBuckets::default();
            assert!((0..100_000).map(form).all(|name| buckets.admit(&name)));
        }
    }
}
