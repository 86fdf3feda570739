//! The cpio "newc" archive, which the kernel unpacks into its first root
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source).

use std::ops::Range;

use crate::tree::{TreeEntry, TreeEntryKind};

/// The first bytes of a header.
const MAGIC: &[u8] = b"070701";
/// Each of the thirteen fields behind it is a hexadecimal number.
const FIELD_DIGITS: usize = 8;
const HEADER_BYTES: usize = MAGIC.len() + 13 * FIELD_DIGITS;
const TRAILER: &str = "TRAILER!!!";
/// Headers and contents start at multiples of this many bytes.
const ALIGN_BYTES: usize = 4;
/// Archives end at a multiple of this many bytes, as cpio(1) writes them.
const BLOCK_BYTES: usize = 512;

/// The bits of a mode that say what an entry is.
const MODE_KIND: u32 = 0o170_000;
const MODE_DIR: u32 = 0o040_000;
const MODE_FILE: u32 = 0o100_000;
const MODE_LINK: u32 = 0o120_000;
const MODE_CHAR: u32 = 0o020_000;

/// Archives the entries in the order given: owner root, time zero, inodes counted from 1.
pub(crate) fn archive(entries: &[TreeEntry<'_>]) -> Vec<u8> {
    let contents: usize = entries
        .iter()
        .map(|entry| entry.kind.contents().len())
        .sum();
    let mut out = Vec::with_capacity(contents + (entries.len() + 2) * BLOCK_BYTES);
    for (index, entry) in entries.iter().enumerate() {
        member(
            &mut out,
            index as u32 + 1,
            entry.path,
            type_bits(&entry.kind) | entry.mode,
            &entry.kind,
        );
    }
    // Documentation/driver-api/early-userspace/buffer-format.rst: "TRAILER!!!" ends an archive.
    member(&mut out, 0, TRAILER, 0, &TreeEntryKind::File(&[]));
    pad(&mut out, BLOCK_BYTES);
    out
}

fn member(out: &mut Vec<u8>, inode: u32, name: &str, mode: u32, kind: &TreeEntryKind<'_>) {
    // A folder has at least its own name and the entry "." in it.
    let links = if matches!(kind, TreeEntryKind::Dir) {
        2
    } else {
        1
    };
    let (major, minor) = match kind {
        TreeEntryKind::Char { major, minor } => (*major, *minor),
        _ => (0, 0),
    };
    let contents = kind.contents();
    let size = u32::try_from(contents.len()).expect("a file of the tree is far below 4 GiB");
    out.extend_from_slice(MAGIC);
    // The size of a name counts the NUL behind it.
    let name_size = name.len() as u32 + 1;
    // uid, gid and time are zero, and so are the device that has the file and the unused checksum.
    for field in [
        inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
    ] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out, ALIGN_BYTES);
    out.extend_from_slice(contents);
    pad(out, ALIGN_BYTES);
}

/// Where the content of a file lies in an archive.
pub(crate) fn file(archive: &[u8], name: &str) -> Option<Range<usize>> {
    let mut at = 0;
    loop {
        let header = archive.get(at..at + HEADER_BYTES)?;
        let field = |number: usize| {
            let begin = MAGIC.len() + number * FIELD_DIGITS;
            let digits = std::str::from_utf8(header.get(begin..begin + FIELD_DIGITS)?).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        if !header.starts_with(MAGIC) {
            return None;
        }
        let name_at = at + HEADER_BYTES;
        let found = archive.get(name_at..name_at + name_size.checked_sub(1)?)?;
        let begin = (name_at + name_size).next_multiple_of(ALIGN_BYTES);
        let end = begin
            .checked_add(size)
            .filter(|end| *end <= archive.len())?;
        if found == TRAILER.as_bytes() {
            return None;
        }
        if found == name.as_bytes() && mode as u32 & MODE_KIND == MODE_FILE {
            return Some(begin..end);
        }
        at = end.next_multiple_of(ALIGN_BYTES);
    }
}

const fn type_bits(kind: &TreeEntryKind<'_>) -> u32 {
    match kind {
        TreeEntryKind::Char { .. } => MODE_CHAR,
        TreeEntryKind::Dir => MODE_DIR,
        TreeEntryKind::File(_) => MODE_FILE,
        TreeEntryKind::Link(_) => MODE_LINK,
    }
}

fn pad(out: &mut Vec<u8>, align: usize) {
    out.resize(out.len().next_multiple_of(align), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_the_documented_layout() {
        let entries = [TreeEntry {
            path: "init",
            mode: 0o755,
            kind: TreeEntryKind::File(b"hello"),
        }];
        let out = archive(&entries);
        assert_eq!(&out[..14], b"07070100000001");
        assert_eq!(&out[14..22], b"000081ed");
        assert_eq!(&out[54..62], b"00000005");
        assert_eq!(&out[110..115], b"init\0");
        assert_eq!(&out[116..124], b"hello\0\0\0");
        assert_eq!(&out[124..130], b"070701");
        assert_eq!(out.len() % BLOCK_BYTES, 0);
    }

    #[test]
    fn a_file_is_found_behind_others_and_nothing_behind_the_end() {
        let entry = |path, kind| TreeEntry {
            path,
            mode: 0o755,
            kind,
        };
        let out = archive(&[
            entry("dir", TreeEntryKind::Dir),
            entry("before", TreeEntryKind::File(b"123")),
            entry("init", TreeEntryKind::File(b"hello")),
        ]);
        let found = file(&out, "init").expect("it is there");
        assert_eq!(&out[found.clone()], b"hello");
        for name in ["dir", "other", TRAILER] {
            assert_eq!(file(&out, name), None, "{name}");
        }
        for end in 0..found.end {
            assert_eq!(file(&out[..end], "init"), None, "{end}");
        }
    }

    #[test]
    fn nodes_carry_their_device_numbers() {
        let kind = TreeEntryKind::Char { major: 5, minor: 1 };
        let out = archive(&[TreeEntry {
            path: "dev/console",
            mode: 0o600,
            kind,
        }]);
        assert_eq!(&out[14..22], b"00002180");
        assert_eq!(&out[78..94], b"0000000500000001");
    }
}
