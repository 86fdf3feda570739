//! The entries in the order of their bytes, each checked against its size and its neighbours.

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

/// Sorted entries, with their names and dimensions.
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

    /// The same for names that mostly come in the order of the bytes, as writers list them: the
    /// entry after the last one found, and the one after that, are tried first.
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

/// The positions of entries by name. The hash has a random seed for each file, so an attacker
/// cannot choose names that collide.
#[derive(Default)]
pub(crate) struct EntryNames {
    positions: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl EntryNames {
    /// # Errors
    /// `E_DUPKEY` if two entries have the same name.
    pub(super) fn build(entries: &[RawEntry], text: &str) -> Result<Self> {
        let name = |at: u32| {
            let entry = entries.get(at as usize);
            entry.map_or("", |entry| entry.name.text_in(text))
        };
        let mut names = Self {
            positions: HashTable::with_capacity(entries.len()),
            hasher: DefaultHashBuilder::default(),
        };
        let hasher = &names.hasher;
        // At most a million entries, so the cast keeps the value.
        for at in 0..entries.len() as u32 {
            let own = name(at);
            let slot = names.positions.entry(
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
        self.positions
            .find(self.hasher.hash_one(name), named)
            .copied()
    }
}

impl fmt::Debug for EntryNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryNames({})", self.positions.len())
    }
}

/// Sorts entries by their bytes; an empty entry comes before the entry that begins at the same
/// byte.
pub(super) fn sort(entries: &mut [RawEntry], text: &str) {
    entries.sort_unstable_by(|a, b| {
        // The name decides between empty entries at one offset, so that the order is always the
        // same.
        let bytes = (a.start, a.end).cmp(&(b.start, b.end));
        bytes.then_with(|| a.name.text_in(text).cmp(b.name.text_in(text)))
    });
}

/// Checks that each entry has the size of its shape, begins where the one before it ends, and that
/// the last ends with the data.
pub(super) fn check_tiling(table: &EntryTable<'_>, data_len: u64) -> Result<()> {
    let mut at = 0;
    for entry in table.entries {
        let label = || format!("entry {}", QuotedText(entry.name.text_in(table.text)));
        if entry.start > entry.end {
            let what = format!(
                "{}: begins at {} and ends at {}",
                label(),
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
                    label(),
                    entry.start
                );
                return fail(TensorErrorCode::Tiling, what);
            }
            Ordering::Less => {
                let what = format!(
                    "{}: begins at {}, before the end of another at {at}",
                    label(),
                    entry.start
                );
                return fail(TensorErrorCode::Tiling, what);
            }
        }
        let held = entry.end - entry.start;
        // The size of an unknown type is unknown as well, so only its range can be checked.
        if let Some(dtype) = entry.dtype {
            let shape = table.shape(entry);
            let wanted = byte_len(ElementType::Known(dtype), shape);
            let wanted = wanted.map_err(|error| error.with_subject(label()))?;
            if wanted != held {
                let what = format!(
                    "{}: {dtype} of shape {shape:?} is {wanted} bytes, the entry has {held}",
                    label()
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
/// `E_OVERFLOW` above 64 bits; `E_DTYPE` if they do not fill whole bytes, or their type is unknown.
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
