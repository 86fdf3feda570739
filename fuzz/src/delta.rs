//! Deltas between programs: the file as it is, and the items in one, which no mutation of compressed bytes finds.

use std::io::Write;

use alknet_delta::{DeltaError, OldProgram, apply_delta, library_version};

/// The program that runs.
const BASE: OldProgram<'_> = OldProgram {
    program: b"a kernel, and what follows it",
    before: 8,
    init: b"the file from which PID 1 was started",
};
/// The first bytes of a delta.
const MAGIC: &[u8; 16] = b"alknet-delta\0\0\0\x01";
/// Bytes before the items of an input: the length of the program, little-endian.
const LENGTH_BYTES: usize = 2;

/// Reads the input as a delta; and as the length of a program and the items of a delta.
pub fn delta(data: &[u8]) -> bool {
    let is_delta = applied(data, 1000);
    let is_items = data
        .split_first_chunk::<LENGTH_BYTES>()
        .is_some_and(|(length, items)| {
            let length = u16::from_le_bytes(*length).into();
            applied(&packed(items, length), length)
        });
    is_delta || is_items
}

/// A delta with these items.
fn packed(items: &[u8], length: u64) -> Vec<u8> {
    let mut delta = MAGIC.to_vec();
    delta.extend(library_version().to_le_bytes());
    for bytes in [BASE.before as u64, BASE.init.len() as u64, length] {
        delta.extend(bytes.to_le_bytes());
    }
    let mut encoder = zstd::Encoder::new(delta, 1).expect("memory");
    encoder.write_all(items).expect("into memory");
    encoder.finish().expect("into memory")
}

/// Makes a program of this length, and no byte more of it.
fn applied(delta: &[u8], length: u64) -> bool {
    let mut made = Vec::new();
    let result = apply_delta(delta, &BASE, length, &mut made);
    assert!(made.len() as u64 <= length, "{} bytes", made.len());
    match result {
        Ok(()) => {
            assert_eq!(made.len() as u64, length, "it is whole");
            true
        }
        Err(error) => {
            assert!(
                !matches!(error, DeltaError::Base(_)),
                "every place was checked: {error}"
            );
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
