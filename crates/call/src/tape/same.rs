//! Decides which values are the same, whatever way they are written.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use jsonschema::JsonType;
use jsonschema::json::{Node as _, cmp};
use serde_json::Number;

use super::CONTAINER;
use super::node::{TapeNode, UnparsedItems, unquoted};

/// Random keys: a peer that sends names cannot know which of them collide.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The number of values that the first pass compares.
const FIRST_COMPARED: usize = 1024;
/// The factor of the next passes.
const MORE_COMPARED: usize = 16;

pub(super) fn hash_of(name: &str) -> u32 {
    KEYS.hash_one(name) as u32
}

/// The hash of the name whose quote has the offset in `word`.
pub(super) fn name_hash(text: &str, word: u32) -> u32 {
    let from = (word & !CONTAINER) as usize;
    hash_of(&unquoted(text.get(from..).unwrap_or_default()))
}

/// Equal for values that are the same.
fn hash(node: &TapeNode<'_>) -> u64 {
    let mut state = KEYS.build_hasher();
    let kind = node.json_type();
    (kind as u8).hash(&mut state);
    match kind {
        JsonType::Array => {
            for item in node.as_array().into_iter().flatten() {
                hash(&item).hash(&mut state);
            }
        }
        // The order of members does not count.
        JsonType::Object => {
            let mut all = 0_u64;
            let mut members = node.as_object();
            while let Some((name, value)) = members.as_mut().and_then(UnparsedItems::next_member) {
                let name = name.string().unwrap_or_default();
                // A sum does not depend on the order, unlike a running hash.
                all = all.wrapping_add(KEYS.hash_one((name, hash(&value))));
            }
            all.hash(&mut state);
        }
        JsonType::String => node.string().hash(&mut state),
        JsonType::Boolean => node.as_boolean().hash(&mut state),
        JsonType::Null => {}
        _ => match node.as_number().as_ref().and_then(whole) {
            Some(number) => number.hash(&mut state),
            None => {
                let number = node.as_number().and_then(|number| number.as_f64());
                number.unwrap_or_default().to_bits().hash(&mut state);
            }
        },
    }
    state.finish()
}

/// A number without a fraction, up to 64 bits: 1 and 1.0 are one number, and so are 0 and -0. Exact, since a thousand
/// integers near 2^63 are one `f64`, and values with one hash are compared pairwise.
fn whole(number: &Number) -> Option<i128> {
    if let Some(number) = number.as_u64() {
        return Some(number.into());
    }
    if let Some(number) = number.as_i64() {
        return Some(number.into());
    }
    let number = number.as_f64()?;
    let is_whole = number.fract() == 0.0 && number.abs() <= u64::MAX as f64;
    is_whole.then_some(number as i128)
}

fn same(one: &TapeNode<'_>, other: &TapeNode<'_>) -> bool {
    if one.json_type() != other.json_type() {
        return false;
    }
    match one.json_type() {
        JsonType::Array => match (one.as_array(), other.as_array()) {
            (Some(one), Some(other)) => {
                one.count_left() == other.count_left()
                    && one.zip(other).all(|(one, other)| same(&one, &other))
            }
            _ => false,
        },
        JsonType::Object => match (one.as_object(), other.as_object()) {
            (Some(mut one), Some(other)) if one.count_left() == other.count_left() => {
                while let Some((name, value)) = one.next_member() {
                    let name = name.string().unwrap_or_default();
                    let found = other.get_named(&name);
                    if !found.is_some_and(|found| same(&value, &found)) {
                        return false;
                    }
                }
                true
            }
            _ => false,
        },
        JsonType::String => one.string() == other.string(),
        JsonType::Boolean => one.as_boolean() == other.as_boolean(),
        JsonType::Null => true,
        _ => match (one.as_number(), other.as_number()) {
            (Some(one), Some(other)) => cmp::equal_numbers(&one, &other),
            _ => false,
        },
    }
}

/// Whether no two of the values are the same. A longer pass takes more memory, so the first one is short: where there
/// are many short values, two of the first ones are the same.
pub(super) fn all_differ(items: &UnparsedItems<'_>) -> bool {
    let mut most = FIRST_COMPARED;
    loop {
        let compared = most.min(items.count_left());
        let mut hashed = Vec::with_capacity(compared);
        hashed.extend(
            items
                .clone()
                .take(compared)
                .map(|item| (hash(&item) as u32, item.address().1)),
        );
        hashed.sort_unstable();
        let Some(first) = items.clone().next() else {
            return true;
        };
        let alike = hashed.chunk_by(|one, other| one.0 == other.0);
        for group in alike.filter(|group| group.len() > 1) {
            let nodes: Vec<_> = group.iter().map(|(_, at)| first.within(*at)).collect();
            for (n, one) in nodes.iter().enumerate() {
                if nodes[..n].iter().any(|other| same(one, other)) {
                    return false;
                }
            }
        }
        if compared == items.count_left() {
            return true;
        }
        // The passes grow fast: all of them together take little more than the last.
        most = most.saturating_mul(MORE_COMPARED);
    }
}
