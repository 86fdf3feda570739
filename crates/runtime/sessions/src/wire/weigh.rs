//! The memory that a worker's CBOR will take once it is parsed.
//!
//! The bytes are scanned once, without allocating values. The scan refuses what the node never needs: values of
//! indefinite length, tags, and lengths beyond the data.

use alknet_runtime::weight::{self, VALUE};
use alknet_worker::WorkerFrameError;

use crate::limits::NESTING_MAX;

/// The bytes of memory for the values in `bytes`, in the unit of [`weight`]. Each member's name counts as a value.
pub(crate) fn weigh(bytes: &[u8]) -> Result<usize, WorkerFrameError> {
    let mut rest = bytes;
    let mut weight = 0_usize;
    // The numbers of values that are still to come, the innermost last.
    let mut open = vec![1_u64];
    while let Some(left) = open.last_mut() {
        let Some(less) = left.checked_sub(1) else {
            open.pop();
            continue;
        };
        *left = less;
        let head = CborHead::read(&mut rest)?;
        weight = weight.saturating_add(VALUE);
        match head {
            CborHead::Plain => {}
            CborHead::Bytes(len) => weight = weight.saturating_add(take(&mut rest, len)?.len()),
            CborHead::Text(len) => {
                let text = weight::text(take(&mut rest, len)?);
                weight = weight.saturating_add(text);
            }
            CborHead::Values(values) => {
                // Each value takes at least one byte.
                if values > rest.len() as u64 {
                    return Err(cut());
                }
                if open.len() > NESTING_MAX {
                    return Err(WorkerFrameError::Nesting);
                }
                open.push(values);
            }
        }
    }
    match rest.is_empty() {
        true => Ok(weight),
        false => Err(refused("something follows the value")),
    }
}

/// The head of a value (RFC 8949 section 3).
enum CborHead {
    Bytes(u64),
    /// A number or a simple value.
    Plain,
    Text(u64),
    /// An array with this many values, or a map with half as many members.
    Values(u64),
}

impl CborHead {
    fn read(rest: &mut &[u8]) -> Result<Self, WorkerFrameError> {
        let initial = take(rest, 1)?[0];
        // The argument is in the initial byte, or in this many following bytes in network byte order (RFC 8949
        // section 3).
        let argument = match initial & 0x1f {
            small @ 0..=23 => u64::from(small),
            size @ 24..=27 => {
                let bytes = take(rest, 1 << (size - 24))?;
                bytes
                    .iter()
                    .fold(0, |all, byte| all << 8 | u64::from(*byte))
            }
            // 31 means an indefinite length, and 28 to 30 are reserved (RFC 8949 section 3).
            _ => return Err(refused("a value of no stated length")),
        };
        // The major types (RFC 8949 section 3.1).
        Ok(match initial >> 5 {
            2 => Self::Bytes(argument),
            3 => Self::Text(argument),
            4 => Self::Values(argument),
            5 => Self::Values(argument.checked_mul(2).ok_or_else(cut)?),
            6 => return Err(refused("a tag")),
            _ => Self::Plain,
        })
    }
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Result<&'a [u8], WorkerFrameError> {
    let len = usize::try_from(len).map_err(|_| cut())?;
    let (taken, left) = rest.split_at_checked(len).ok_or_else(cut)?;
    *rest = left;
    Ok(taken)
}

fn cut() -> WorkerFrameError {
    refused("it ends too early")
}

fn refused(what: &str) -> WorkerFrameError {
    WorkerFrameError::Cbor(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::{pack, unpack};

    #[test]
    fn what_is_weighed_is_what_is_read() {
        for value in [
            json!(null),
            json!([0.5, u64::MAX, -1, "\u{0}\u{e9}", true]),
            json!({ "a": { "b": [[], {}, ""] }, "c": "x".repeat(70_000) }),
            json!(vec![Value::Null; 100_000]),
        ] {
            let bytes = pack(&value).expect("CBOR");
            assert_eq!(weigh(&bytes).expect("weighed"), weight::estimate(&value));
        }
    }

    #[test]
    fn what_lies_about_its_length_is_refused() {
        for bytes in [
            &[][..],
            &[0x81],
            &[0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0],
            &[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x62, b'a'],
            &[0x19, 0],
            // Of no stated length, a tag, and two values.
            &[0x9f, 0xff],
            &[0xc1, 0],
            &[0, 0],
        ] {
            assert!(weigh(bytes).is_err(), "{bytes:?}");
        }
        assert!(weigh(&[vec![0x81; 1_000_000], vec![0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_read_was_weighed(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            // No panic on any bytes; and what weighs nothing is no value.
            if let Ok(weight) = weigh(&bytes) {
                prop_assert!(weight >= VALUE);
            }
            let _ = unpack::<Value>(&bytes);
        }
    }
}
