//! The entries in the order of their bytes, each tried against its size and its neighbours.

use std::cell::Cell;
use std::cmp::Ordering;
use std::fmt;
use std::hash::BuildHasher;

use hashbrown::hash_table::Entry as Slot;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::dtype::ElementType;
use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::entries::RawEntry;
use crate::header::json::duplicate;

/// Entries sorted, with what is needed to look at them.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryTable<'a> {
    pub(super) text: &'a str,
    pub(super) entries: &'a [RawEntry],
    pub(super) dims: &'a [u64],
    pub(super) by_name: &'a EntryNames,
}

impl<'a> EntryTable<'a> {
    pub(super) fn name(&self, entry: u32) -> &'a str {
        let entry = self.entries.get(entry as usize);
        entry.map_or("", |entry| entry.name.text_in(self.text))
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.by_name.find(self.entries, self.text, name)
    }

    /// The same where names mostly come in the order of the bytes, as writers put them: the entry
    /// behind the last one, or behind the pad that follows it, is looked at first.
    pub(super) fn find_near(&self, name: &str, near: &Cell<u32>) -> Option<u32> {
        let next = near.get();
        let is_it = |at: &u32| self.entries.get(*at as usize).is_some() && self.name(*at) == name;
        let after = [next, next.saturating_add(1)];
        let found = after.into_iter().find(is_it).or_else(|| self.find(name))?;
        near.set(found.saturating_add(1));
        Some(found)
    }

    pub(super) fn shape(&self, entry: &RawEntry) -> &'a [u64] {
        shape(self.dims, entry)
    }
}

pub(crate) fn shape<'a>(dims: &'a [u64], entry: &RawEntry) -> &'a [u64] {
    let start = entry.dims_start as usize;
    let shape = dims.get(start..start + usize::from(entry.rank));
    shape.unwrap_or_default()
}

/// The places of entries by name. The hash has a seed of its own for each file, so that an attacker
/// cannot choose names that share a slot.
#[derive(Default)]
pub(crate) struct EntryNames {
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl EntryNames {
    /// # Errors
    /// `E_DUPKEY`: two have one name.
    pub(super) fn build(entries: &[RawEntry], text: &str) -> Result<Self> {
        let name = |at: u32| {
            let entry = entries.get(at as usize);
            entry.map_or("", |entry| entry.name.text_in(text))
        };
        let mut names = Self {
            places: HashTable::with_capacity(entries.len()),
            hasher: DefaultHashBuilder::default(),
        };
        let hasher = &names.hasher;
        // At most a million.
        for at in 0..entries.len() as u32 {
            let own = name(at);
            let slot = names.places.entry(
                hasher.hash_one(own),
                |other| name(*other) == own,
                |other| hasher.hash_one(name(*other)),
            );
            match slot {
                Slot::Vacant(slot) => slot.insert(at),
                Slot::Occupied(_) => return Err(duplicate("header", own)),
            };
        }
        Ok(names)
    }

    pub(crate) fn find(&self, entries: &[RawEntry], text: &str, name: &str) -> Option<u32> {
        let named = |at: &u32| {
            let entry = entries.get(*at as usize);
            entry.is_some_and(|entry| entry.name.text_in(text) == name)
        };
        self.places.find(self.hasher.hash_one(name), named).copied()
    }
}

impl fmt::Debug for EntryNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryNames({})", self.places.len())
    }
}

/// Sorts entries by their bytes; those without any come before what begins where they lie.
pub(super) fn sort(entries: &mut [RawEntry], text: &str) {
    entries.sort_unstable_by(|a, b| {
        let bytes = (a.start, a.end).cmp(&(b.start, b.end));
        bytes.then_with(|| a.name.text_in(text).cmp(b.name.text_in(text)))
    });
}

/// Each entry is as long as its shape says, begins where the one before ends, and the last ends
/// with the data.
pub(super) fn check_tiling(table: &EntryTable<'_>, data_len: u64) -> Result<()> {
    let mut at = 0;
    for entry in table.entries {
        let said = || format!("entry {}", QuotedText(entry.name.text_in(table.text)));
        if entry.start > entry.end {
            let what = format!(
                "{}: begins at {} and ends at {}",
                said(),
                entry.start,
                entry.end
            );
            return fail(TensorErrorCode::Tiling, what);
        }
        match entry.start.cmp(&at) {
            Ordering::Equal => {}
            Ordering::Greater => {
                let what = format!(
                    "{}: begins at {}, what is before it ends at {at}",
                    said(),
                    entry.start
                );
                return fail(TensorErrorCode::Tiling, what);
            }
            Ordering::Less => {
                let what = format!(
                    "{}: begins at {}, before the end of another at {at}",
                    said(),
                    entry.start
                );
                return fail(TensorErrorCode::Tiling, what);
            }
        }
        let held = entry.end - entry.start;
        if let Some(dtype) = entry.dtype {
            let shape = table.shape(entry);
            let wanted = byte_len(ElementType::Known(dtype), shape);
            let wanted = wanted.map_err(|error| error.with_subject(said()))?;
            if wanted != held {
                let what = format!(
                    "{}: {dtype} of shape {shape:?} is {wanted} bytes, the entry has {held}",
                    said()
                );
                return fail(TensorErrorCode::Shape, what);
            }
        }
        at = entry.end;
    }
    if at != data_len {
        let what = format!("entries end at {at}, the data at {data_len}");
        return fail(TensorErrorCode::Tiling, what);
    }
    Ok(())
}

/// Bytes that elements of this type and shape take.
///
/// # Errors
/// `E_OVERFLOW` beyond 64 bits; `E_DTYPE` where they do not fill whole bytes, or are unknown.
pub(crate) fn byte_len(dtype: ElementType<'_>, shape: &[u64]) -> Result<u64> {
    let ElementType::Known(dtype) = dtype else {
        let what = format!(
            "elements of an unknown type, {}, have no size",
            QuotedText(&dtype.to_string())
        );
        return fail(TensorErrorCode::Dtype, what);
    };
    let count = shape
        .iter()
        .try_fold(1_u64, |count, size| count.checked_mul(*size));
    let bits = count.and_then(|count| count.checked_mul(dtype.bits()));
    let bits = bits.ok_or_else(|| {
        let what = format!("{dtype} of shape {shape:?} is more than 2^64 bits");
        TensorError::new(TensorErrorCode::Overflow, what)
    })?;
    if bits % 8 != 0 {
        let what = format!("{dtype} of shape {shape:?} is {bits} bits, which fill no whole bytes");
        return fail(TensorErrorCode::Dtype, what);
    }
    Ok(bits / 8)
}
