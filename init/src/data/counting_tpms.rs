//! The TPMs that have to count before a vault is erased, in the memo of its partition: a factory
//! reset opens neither the vault nor the note beside the data. Neither the memo nor the list of
//! slots, to which it adds, is authenticated: an attacker who can write to the disk before a reset
//! can remove both.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use alknet_sealed::SealedPartition;
use alknet_sealed::limits::MEMO_BYTES;
use alknet_tpm::StorageKey;

/// Begin of the memo. The storage keys follow, in hex.
const BEGINNING: &str = "alknet: counted by";
/// Maximum number of storage keys in a memo.
pub(crate) const TPMS_MAX: usize = 7;

/// The storage keys of the TPMs in the memo of a device. Empty if the memo cannot be read.
pub(crate) fn counted_by(device: &Path) -> Vec<String> {
    let memo =
        File::open(device).and_then(|file| SealedPartition::memo(&file).map_err(io::Error::other));
    // The erasure of a disk that fails goes on all the same, and its owner learns what it may have left.
    let memo = memo.inspect_err(|error| {
        let device = device.display();
        tracing::error!(%device, %error, "which TPMs have to count cannot be read");
    });
    memo.map(|memo| parse(&memo)).unwrap_or_default()
}

/// Writes these TPMs, the first [`TPMS_MAX`] of them, into the memo. Returns when it is on the
/// disk.
pub(crate) fn set_counted_by(device: &Path, tpms: &[String]) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    SealedPartition::set_memo(&file, &memo(tpms)).map_err(io::Error::other)
}

fn memo(tpms: &[String]) -> [u8; MEMO_BYTES] {
    let mut memo = [0; MEMO_BYTES];
    // All zeros are the content of a disk on which no memo was ever written.
    if tpms.is_empty() {
        return memo;
    }
    let mut text = BEGINNING.to_owned();
    for tpm in tpms.iter().take(TPMS_MAX) {
        text.push(' ');
        text.push_str(tpm);
    }
    text.push('\n');
    let length = text.len().min(MEMO_BYTES);
    memo[..length].copy_from_slice(&text.as_bytes()[..length]);
    memo
}

/// Parses a memo. The result is empty if this program did not write it.
fn parse(memo: &[u8; MEMO_BYTES]) -> Vec<String> {
    let end = memo.iter().position(|byte| *byte == b'\n');
    let text = end.and_then(|end| std::str::from_utf8(&memo[..end]).ok());
    let Some(names) = text.and_then(|text| text.strip_prefix(BEGINNING)) else {
        return Vec::new();
    };
    let names = names.split_ascii_whitespace();
    let names = names.filter(|name| name.parse::<StorageKey>().is_ok());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_names_as_many_tpms_as_it_has_room_for() {
        let tpms: Vec<_> = (0..=TPMS_MAX)
            .map(|number| format!("{number:064x}"))
            .collect();
        for count in 0..=TPMS_MAX {
            assert_eq!(parse(&memo(&tpms[..count])), tpms[..count]);
        }
        assert_eq!(parse(&memo(&tpms)), tpms[..TPMS_MAX]);
        assert_eq!(memo(&[]), [0; MEMO_BYTES]);
        // Content of other programs, and a malformed name.
        for bytes in [0, b'\n', b' ', 0xff] {
            assert_eq!(parse(&[bytes; MEMO_BYTES]), Vec::<String>::new());
        }
        assert_eq!(parse(&memo(&["x".to_owned()])), Vec::<String>::new());
    }
}
