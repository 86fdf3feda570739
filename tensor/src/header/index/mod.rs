//! `mt.index`: the kind, hash and alignment of each tensor, the order in which a reader loads them,
//! and the nested view.

mod tensor;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use blake3::Hash;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::json::{
    IgnoredMembers, JsonBounds, MemberWatcher, ObjectKeys, TextArena, TextSpan, ValueWalk,
    VisitorContext, duplicate,
};
use crate::header::table::EntryTable;
use crate::keys::INDEX;
use crate::layout::FieldType;
use crate::limits::ContainerLimits;

use tensor::TensorSeed;

/// A tensor as the index describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawTensor {
    /// The position of its entry among the entries.
    pub(crate) entry: u32,
    pub(crate) kind: RawKind,
    pub(crate) align: Option<u32>,
    pub(crate) hash: Option<Hash>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum RawKind {
    Flat,
    Struct {
        def: TextSpan,
        stride: u64,
        count: u64,
        /// The index of its first field, and the number of fields.
        fields: (u32, u32),
    },
    Blob {
        enc: TextSpan,
        shape_of: Option<u32>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RawField {
    pub(crate) path: TextSpan,
    pub(crate) kind: FieldType,
    pub(crate) off: u64,
    pub(crate) len: u64,
}

/// The index. It refers to entries by position.
#[derive(Debug, Default)]
pub(crate) struct TensorIndex {
    pub(crate) text: TextArena,
    pub(crate) tensors: Vec<RawTensor>,
    /// For each entry, its position among `tensors` plus one; 0 if the index does not list it.
    pub(crate) slots: Vec<u32>,
    pub(crate) fields: Vec<RawField>,
    pub(crate) order: Vec<u32>,
    /// The range of the nested view in the text of the index.
    pub(crate) root: Option<(u32, u32)>,
}

impl TensorIndex {
    /// The tensor that the index lists for an entry.
    pub(crate) fn tensor_at(&self, entry: u32) -> Option<&RawTensor> {
        let slot = *self.slots.get(entry as usize)?;
        self.tensors.get((slot as usize).checked_sub(1)?)
    }
}

/// Reads the index. Every name in it is a name of `table`; no other fact is checked against the
/// entries.
pub(super) fn read(
    text: &str,
    table: &EntryTable<'_>,
    limits: &ContainerLimits,
) -> Result<TensorIndex> {
    let context = VisitorContext::new(INDEX, TensorErrorCode::Schema);
    let bounds = JsonBounds::new(limits.json_depth, u64::MAX);
    let mut index = TensorIndex {
        slots: vec![0; table.entries.len()],
        ..TensorIndex::default()
    };
    let mut seen = [false; 2];
    // Writers usually list tensors in the order of the entries, so a search begins at the last one
    // found.
    let near = Cell::new(0);
    let top = IndexSeed {
        state: IndexState {
            context: &context,
            bounds: &bounds,
            table,
            near: &near,
            index: &mut index,
        },
        text,
        seen: &mut seen,
    };
    context.read(text, top)?;
    // Missing members are found once the whole object was read, because JSON members have no order.
    for (present, key) in seen.into_iter().zip(["tensors", "order"]) {
        if !present {
            return fail(TensorErrorCode::Schema, format!("{INDEX}: no {key}"));
        }
    }
    Ok(index)
}

/// Checks that every leaf of the nested view names a tensor.
pub(super) fn check_root(
    root: &str,
    limits: &ContainerLimits,
    is_tensor: impl Fn(&str) -> bool,
) -> Result<()> {
    // The walk below would accept a single leaf as well.
    if !root.starts_with('{') {
        return fail(
            TensorErrorCode::Schema,
            format!("{INDEX}: root is no object"),
        );
    }
    let context = VisitorContext::new("mt.index root", TensorErrorCode::Schema);
    let bounds = JsonBounds::new(limits.json_depth, u64::MAX);
    let watch = Leaves(is_tensor);
    context.read(
        root,
        ValueWalk {
            context: &context,
            bounds: &bounds,
            watch: &watch,
            // The view lies inside of the object of the index.
            depth: 1,
            parent: "",
            key: "",
        },
    )
}

struct Leaves<F>(F);

impl<F: Fn(&str) -> bool> MemberWatcher for Leaves<F> {
    fn text(&self, _: &str, key: &str, text: &str) -> Result<()> {
        match text.strip_prefix('#') {
            Some(name) if (self.0)(name) => Ok(()),
            _ => fail(
                TensorErrorCode::Schema,
                format!(
                    "{INDEX}: root: {} is {}, which names no tensor",
                    QuotedText(key),
                    QuotedText(text)
                ),
            ),
        }
    }

    fn other(&self) -> Result<()> {
        let what = format!("{INDEX}: root: a leaf that is no \"#NAME\"");
        fail(TensorErrorCode::Schema, what)
    }

    fn list(&self) -> Result<()> {
        fail(TensorErrorCode::Schema, format!("{INDEX}: root: a list"))
    }
}

struct IndexState<'a> {
    context: &'a VisitorContext,
    bounds: &'a JsonBounds,
    table: &'a EntryTable<'a>,
    /// The position of the entry that the index probably names next.
    near: &'a Cell<u32>,
    index: &'a mut TensorIndex,
}

impl IndexState<'_> {
    const fn lend(&mut self) -> IndexState<'_> {
        IndexState {
            context: self.context,
            bounds: self.bounds,
            table: self.table,
            near: self.near,
            index: self.index,
        }
    }

    const fn skip(&self, depth: u32) -> ValueWalk<'_, IgnoredMembers> {
        ValueWalk {
            context: self.context,
            bounds: self.bounds,
            watch: &IgnoredMembers,
            depth,
            parent: "",
            key: "",
        }
    }

    /// Reads the name of an entry.
    fn entry(&self) -> StringSeed<'_, impl FnOnce(&str) -> Result<u32> + use<'_>, u32> {
        let (table, near) = (self.table, self.near);
        StringSeed::new(self.context, "the name of an entry", move |name| {
            table.find_near(name, near).ok_or_else(|| {
                let what = format!("{INDEX}: no entry {}", QuotedText(name));
                TensorError::new(TensorErrorCode::Schema, what)
            })
        })
    }
}

/// Reads a string and converts it with `take`.
struct StringSeed<'a, F, T> {
    context: &'a VisitorContext,
    what: &'static str,
    take: F,
    made: PhantomData<T>,
}

impl<'a, T, F: FnOnce(&str) -> Result<T>> StringSeed<'a, F, T> {
    const fn new(context: &'a VisitorContext, what: &'static str, take: F) -> Self {
        Self {
            context,
            what,
            take,
            made: PhantomData,
        }
    }
}

impl<'de, T, F: FnOnce(&str) -> Result<T>> DeserializeSeed<'de> for StringSeed<'_, F, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<T, D::Error> {
        json.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> Result<T>> Visitor<'_> for StringSeed<'_, F, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.take)(text).map_err(|error| self.context.raise(error))
    }
}

/// Reads a key as one of `known`, of which there are at most 32. It notes a known key that comes
/// twice; other keys are collected to find one of them that comes twice.
struct KnownKeySeed<'a>(&'a [&'static str], &'a mut SeenKeys);

/// The keys of one object that were read so far.
#[derive(Debug, Default)]
struct SeenKeys {
    known: u32,
    twice: Option<&'static str>,
    others: ObjectKeys,
}

impl SeenKeys {
    /// `E_DUPKEY` if a key came twice in the object that errors call `what`.
    fn check(self, what: impl fmt::Display) -> Result<()> {
        match self.twice {
            Some(key) => Err(duplicate(what, key)),
            None => self.others.check(what),
        }
    }
}

impl<'de> DeserializeSeed<'de> for KnownKeySeed<'_> {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<&'static str, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for KnownKeySeed<'_> {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<&'static str, E> {
        let Self(known, seen) = self;
        let Some(at) = known.iter().position(|known| *known == key) else {
            seen.others.add(key);
            return Ok("");
        };
        if seen.known & (1 << at) != 0 {
            seen.twice = Some(known[at]);
        }
        seen.known |= 1 << at;
        Ok(known[at])
    }
}

/// Digits of a hash.
const HASH_DIGITS: usize = 64;

/// A hash in 64 lower-case hex digits. A header has one for each tensor, so the loop is written for
/// the compiler to vectorise.
pub(super) fn hash(text: &str, code: TensorErrorCode) -> Result<Hash> {
    let mut values = [0_u8; HASH_DIGITS];
    let mut good = text.len() == HASH_DIGITS;
    for (value, digit) in values.iter_mut().zip(text.as_bytes()) {
        // A smaller byte wraps around to a large value, so one comparison checks both bounds.
        let (decimal, letter) = (digit.wrapping_sub(b'0'), digit.wrapping_sub(b'a'));
        *value = if decimal < 10 {
            decimal
        } else {
            letter.wrapping_add(10)
        };
        // An early return would add a branch for each digit, which prevents vectorisation.
        good &= (decimal < 10) | (letter < 6);
    }
    if !good {
        let what = format!(
            "{} is no hash of 64 lower-case hex digits",
            QuotedText(text)
        );
        return fail(code, what);
    }
    let mut bytes = [0; 32];
    let (pairs, _) = values.as_chunks::<2>();
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = high << 4 | low;
    }
    Ok(Hash::from_bytes(bytes))
}

struct IndexSeed<'a> {
    state: IndexState<'a>,
    text: &'a str,
    seen: &'a mut [bool; 2],
}

impl<'de> DeserializeSeed<'de> for IndexSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IndexSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with tensors and order")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        const KNOWN: [&str; 3] = ["tensors", "order", "root"];
        let mut keys = SeenKeys::default();
        while let Some(key) = members.next_key_seed(KnownKeySeed(&KNOWN, &mut keys))? {
            match key {
                // A second one is skipped here; `keys` refuses it once all keys were read.
                "tensors" if !self.seen[0] => {
                    self.seen[0] = true;
                    members.next_value_seed(TensorsSeed(self.state.lend()))?;
                    // Later errors of the index do not concern the last tensor.
                    self.state.context.subject("");
                }
                "order" if !self.seen[1] => {
                    self.seen[1] = true;
                    members.next_value_seed(OrderSeed(self.state.lend()))?;
                }
                "root" => {
                    let root = members.next_value::<&RawValue>()?.get();
                    // The value borrows from the text, so its address gives its position.
                    let start = root.as_ptr().addr() - self.text.as_ptr().addr();
                    self.state.index.root = Some((start as u32, root.len() as u32));
                }
                // Members of other programs are allowed, but their depth and their keys are
                // checked.
                _ => members.next_value_seed(self.state.skip(1))?,
            }
        }
        keys.check(INDEX)
            .map_err(|error| self.state.context.raise(error))
    }
}

struct OrderSeed<'a>(IndexState<'a>);

impl<'de> DeserializeSeed<'de> for OrderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for OrderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<(), A::Error> {
        while let Some(entry) = names.next_element_seed(self.0.entry())? {
            self.0.index.order.push(entry);
        }
        Ok(())
    }
}

struct TensorsSeed<'a>(IndexState<'a>);

impl<'de> DeserializeSeed<'de> for TensorsSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        while let Some(entry) = members.next_key_seed(self.0.entry())? {
            let name = self.0.table.name(entry);
            self.0.context.subject(name);
            let slot = entry as usize;
            // The slot table finds a second description of one entry without comparing names.
            if self.0.index.slots[slot] != 0 {
                return Err(self.0.context.raise(duplicate(INDEX, name)));
            }
            let tensor = members.next_value_seed(TensorSeed {
                state: self.0.lend(),
                entry,
                name,
            })?;
            self.0.index.tensors.push(tensor);
            self.0.index.slots[slot] = self.0.index.tensors.len() as u32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_64_lower_case_digits() {
        let good = blake3::hash(b"x");
        let text = good.to_hex().to_string();
        assert_eq!(hash(&text, TensorErrorCode::Schema).expect("good"), good);
        let upper = text.to_uppercase();
        let odd = format!("{}g", &text[..63]);
        for bad in [
            "",
            &text[1..],
            &upper,
            &odd,
            &format!("{text}0"),
            &"ä".repeat(32),
        ] {
            assert_eq!(
                hash(bad, TensorErrorCode::Schema).expect_err(bad).code(),
                TensorErrorCode::Schema
            );
        }
    }
}
