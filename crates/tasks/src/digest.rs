//! SHA-256 of files, and folder names from it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// Read size in bytes: large enough that system calls do not matter.
const CHUNK_BYTES: usize = 1 << 20;

/// Hexadecimal digits of a folder name: 64 bits, which make an accidental collision most unlikely.
const KEY_DIGITS: usize = 16;

/// SHA-256 of a file's content, as 64 hexadecimal digits.
pub(crate) fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(HEXLOWER.encode(&hasher.finalize()));
        }
        hasher.update(&chunk[..read]);
    }
}

/// One SHA-256 for several files below a folder: that of what `sha256sum` prints about them in this order.
pub(crate) fn of_list(folder: &Path, names: &BTreeSet<String>) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for name in names {
        let sum = of_file(&folder.join(name))?;
        hasher.update(format!("{sum}  {name}\n"));
    }
    Ok(HEXLOWER.encode(&hasher.finalize()))
}

/// A short name for a set of inputs. Their order and their bounds count.
pub(crate) fn key<'a>(inputs: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for input in inputs {
        // The length is hashed too, so that no two lists of inputs make the same bytes.
        hasher.update((input.len() as u64).to_le_bytes());
        hasher.update(input);
    }
    let mut name = HEXLOWER.encode(&hasher.finalize());
    name.truncate(KEY_DIGITS);
    name
}

/// Whether [`key`] makes such names.
pub(crate) fn is_key(name: &str) -> bool {
    is_hex(name, KEY_DIGITS)
}

/// Whether a name consists of so many hexadecimal digits, in the form of this module.
pub(crate) fn is_hex(name: &str, digits: usize) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == digits && name.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_hashes_as_everyone_else_does() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "abc").expect("it is writable");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_file(file.path()).expect("readable"), expected);
    }

    #[test]
    fn bounds_of_inputs_count() {
        assert_ne!(key([&b"ab"[..], b"c"]), key([&b"a"[..], b"bc"]));
        assert_eq!(key([&b"a"[..]]).len(), KEY_DIGITS);
    }
}
