//! The entries in the order of their bytes, each tried against its size and its neighbours.

use std::cmp::Ordering;

use crate::dtype::ElementType;
use crate::error::{Code, Quoted, Result, TensorError, fail};
use crate::header::entries::RawEntry;
use crate::header::json::duplicate;

/// Entries sorted, with what is needed to look at them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    pub(super) text: &'a str,
    pub(super) entries: &'a [RawEntry],
    pub(super) dims: &'a [u64],
    pub(super) by_name: &'a [u32],
}

impl<'a> Table<'a> {
    pub(super) fn name(&self, entry: u32) -> &'a str {
        let entry = self.entries.get(entry as usize);
        entry.map_or("", |entry| entry.name.of(self.text))
    }

    pub(super) fn find(&self, name: &str) -> Option<u32> {
        find(self.by_name, self.entries, self.text, name)
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

pub(crate) fn find(by_name: &[u32], entries: &[RawEntry], text: &str, name: &str) -> Option<u32> {
    let name_of = |at: &u32| {
        entries
            .get(*at as usize)
            .map_or("", |entry| entry.name.of(text))
    };
    let place = by_name.binary_search_by(|at| name_of(at).cmp(name)).ok()?;
    by_name.get(place).copied()
}

/// Sorts entries by their bytes; those without any come before what begins where they lie.
pub(super) fn sort(entries: &mut [RawEntry], text: &str) {
    entries.sort_unstable_by(|a, b| {
        let bytes = (a.start, a.end).cmp(&(b.start, b.end));
        bytes.then_with(|| a.name.of(text).cmp(b.name.of(text)))
    });
}

/// The places of the entries by name.
///
/// # Errors
/// `E_DUPKEY`: two have one name.
pub(super) fn by_name(entries: &[RawEntry], text: &str) -> Result<Vec<u32>> {
    let name = |at: &u32| entries[*at as usize].name.of(text);
    // At most a million.
    let mut places: Vec<u32> = (0..entries.len() as u32).collect();
    places.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    match places.windows(2).find(|two| name(&two[0]) == name(&two[1])) {
        None => Ok(places),
        Some(two) => Err(duplicate("header", name(&two[0]))),
    }
}

/// Each entry is as long as its shape says, begins where the one before ends, and the last ends
/// with the data.
pub(super) fn check_tiling(table: &Table<'_>, data_len: u64) -> Result<()> {
    let mut at = 0;
    for entry in table.entries {
        let said = || format!("entry {}", Quoted(entry.name.of(table.text)));
        if entry.start > entry.end {
            let what = format!(
                "{}: begins at {} and ends at {}",
                said(),
                entry.start,
                entry.end
            );
            return fail(Code::Tiling, what);
        }
        match entry.start.cmp(&at) {
            Ordering::Equal => {}
            Ordering::Greater => {
                let what = format!(
                    "{}: begins at {}, what is before it ends at {at}",
                    said(),
                    entry.start
                );
                return fail(Code::Tiling, what);
            }
            Ordering::Less => {
                let what = format!(
                    "{}: begins at {}, before the end of another at {at}",
                    said(),
                    entry.start
                );
                return fail(Code::Tiling, what);
            }
        }
        let held = entry.end - entry.start;
        if let Some(dtype) = entry.dtype {
            let shape = table.shape(entry);
            let wanted = byte_len(ElementType::Known(dtype), shape);
            let wanted = wanted.map_err(|error| error.of(said()))?;
            if wanted != held {
                let what = format!(
                    "{}: {dtype} of shape {shape:?} is {wanted} bytes, the entry has {held}",
                    said()
                );
                return fail(Code::Shape, what);
            }
        }
        at = entry.end;
    }
    if at != data_len {
        let what = format!("entries end at {at}, the data at {data_len}");
        return fail(Code::Tiling, what);
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
            Quoted(&dtype.to_string())
        );
        return fail(Code::Dtype, what);
    };
    let count = shape
        .iter()
        .try_fold(1_u64, |count, size| count.checked_mul(*size));
    let bits = count.and_then(|count| count.checked_mul(dtype.bits()));
    let bits = bits.ok_or_else(|| {
        let what = format!("{dtype} of shape {shape:?} is more than 2^64 bits");
        TensorError::new(Code::Overflow, what)
    })?;
    if bits % 8 != 0 {
        let what = format!("{dtype} of shape {shape:?} is {bits} bits, which fill no whole bytes");
        return fail(Code::Dtype, what);
    }
    Ok(bits / 8)
}
