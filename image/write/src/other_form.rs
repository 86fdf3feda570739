//! Whether a disk is also a file of another form, in which other programs find another disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use alknet_image::{BOOT_CODE_BEGIN, LBA_BYTES, data_partition_end, table_end};

use crate::source::ZSTANDARD;

/// Forms that are no raw disk, each by bytes of it and their place. They name the form of a file. That the beginning of a
/// signed disk is of none of them is no reason to accept it: [`begins_as_disk`] decides.
const OTHER_FORMS: [(usize, &[u8], &str); 21] = [
    (0, b"QFI\xfb", "a qcow2 container"),
    (0, b"KDMV", "a VMDK container"),
    (0, b"COWD", "a VMDK container"),
    (0, b"#", "a script, or the description of a VMDK container"),
    (0, b"vhdxfile", "a VHDX container"),
    (0, VHD_MARK, "a VHD container"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI container"),
    (0, b"QED\0", "a QED container"),
    (0, b"WithoutFreeSpace", "a Parallels container"),
    (0, b"WithouFreSpacExt", "a Parallels container"),
    (0, b"Bochs Virtual HD Image", "a container of Bochs"),
    (0, b"composite_disk\x1d", "a composite disk of crosvm"),
    (0, b"\x3a\xff\x26\xed", "a sparse image of Android"),
    (257, b"ustar", "a tar archive"),
    // `image write` unpacks this before it looks, so there it is packed twice.
    (0, &ZSTANDARD, "packed with Zstandard"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"\xfd7zXZ", "compressed with xz"),
    (0, b"BZh", "compressed with bzip2"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"MZ", "an EFI program"),
    (0, b"\x7fELF", "a program or a kernel"),
];
/// The mark of a frame that Zstandard skips, behind its first byte, which is 0x50 to 0x5f (RFC 8878 section 3.1.2). Another
/// frame may follow it.
const SKIPPED_FRAME: &[u8] = &[0x2a, 0x4d, 0x18];
const SKIPPED_FRAME_FIRST: u8 = 0x50;
/// What a disk is called that begins in another way than all disks of this project.
const UNKNOWN_FORM: &str = "of another form by its first bytes, which are neither zeros nor those \
                            of the loader for a BIOS";
/// Bytes before the disk identity in the first block, which no partition table needs.
const CODE_BYTES: usize = 440;
/// What each description of a VMDK container has, which is a text and may have anything before it.
const DESCRIPTION_MARK: &[u8] = b"createType";
/// What the footer of a VHD container begins with. It has the last 512 bytes of the file, or the last 511.
const VHD_MARK: &[u8] = b"conectix";
const FOOTER_BYTES: u64 = 512;
/// Places in a footer: where a further header is, how large the disk is, and its kind.
const FURTHER_HEADER_AT: usize = 16;
const DISK_BYTES_AT: usize = 48;
const KIND_AT: usize = 60;
/// The kind of a disk that has each block in its place.
const FIXED: [u8; 4] = 2_u32.to_be_bytes();
/// What the end of a disk image of macOS begins with. Programs search it in the last bytes.
const DMG_MARK: &[u8] = b"koly";
const DMG_END_BYTES: usize = 1024;
/// What the last record of a ZIP archive begins with, and its bytes before a comment (APPNOTE 6.3.10 section 4.3.16).
/// Programs search it from the end of the file, whatever the file begins with.
const ZIP_END_MARK: &[u8; 4] = b"PK\x05\x06";
const ZIP_END_BYTES: usize = 22;
/// Bytes of the end of a file in which that record is searched. The longest comment takes 65,535 of them, and Info-ZIP
/// searches 66,000.
const ZIP_SEARCHED_BYTES: u64 = 66_000;
/// Place of the number of the comment's bytes in that record.
const ZIP_COMMENT_BYTES_AT: usize = 20;
/// Place and bytes of the checksum in the first header of a tar archive. The form of the seventh Unix has no other mark.
const TAR_SUM_AT: usize = 148;
const TAR_SUM_BYTES: usize = 8;
/// What the checksum counts in its own place: a space for each byte.
const TAR_SUM_BLANKS: i64 = 8 * 0x20;

/// The form of a file that begins so, if no raw disk of this project does.
pub(crate) fn form_by_head(head: &[u8]) -> Option<&'static str> {
    let is_at = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
    let mut others = OTHER_FORMS.iter();
    if let Some((_, _, what)) = others.find(|(at, mark, _)| is_at(*at, mark)) {
        return Some(*what);
    }
    let is_skipped = head
        .first()
        .is_some_and(|first| first & 0xf0 == SKIPPED_FRAME_FIRST);
    if is_skipped && is_at(1, SKIPPED_FRAME) {
        return Some("packed with Zstandard");
    }
    let code = &head[..head.len().min(CODE_BYTES)];
    let mut parts = code.windows(DESCRIPTION_MARK.len());
    parts
        .any(|part| part == DESCRIPTION_MARK)
        .then_some("the description of a VMDK container")
}

/// Whether the code for a BIOS begins as that of each disk of this project, or was erased. No list has all forms that
/// programs know by their first bytes.
fn begins_as_disk(code: &[u8]) -> bool {
    code.starts_with(&BOOT_CODE_BEGIN) || code.iter().all(|byte| *byte == 0)
}

/// Whether programs take a file that begins with this block for a tar archive by the checksum of the header. Some count
/// bytes as numbers with a sign, so that the sum may be negative. Some accept other bytes than digits before, within or
/// behind the number: Python accepts white space, a sign, the prefix `0o`, and `_` between digits. Some accept a binary
/// number.
fn has_tar_checksum(block: &[u8; LBA_BYTES as usize]) -> bool {
    let (before, rest) = block.split_at(TAR_SUM_AT);
    let (field, behind) = rest.split_at(TAR_SUM_BYTES);
    let summed = || before.iter().chain(behind);
    let unsigned: i64 = summed().map(|byte| i64::from(*byte)).sum();
    let signed: i64 = summed()
        .map(|byte| i64::from(i8::from_ne_bytes([*byte])))
        .sum();
    let is_sum = |number: i64| [unsigned, signed].contains(&(number - TAR_SUM_BLANKS));
    let has_minus = field.contains(&b'-');
    // Each number that the digits are, wherever a program ends it and whatever it skips.
    let digits = field.iter().filter(|byte| matches!(**byte, b'0'..=b'7'));
    let mut numbers = digits.scan(0_i64, |number, digit| {
        *number = *number * 8 + i64::from(digit - b'0');
        Some(*number)
    });
    let mut text = field.iter().take_while(|byte| **byte != 0);
    let is_blank = text.all(|byte| *byte <= b' ');
    numbers.any(|number| is_sum(number) || (has_minus && is_sum(-number)))
        || (is_blank && is_sum(0))
        || binary_number(field).is_some_and(is_sum)
}

/// The number of a field of a tar archive that begins with the bit for a binary one. The next bit is the sign.
fn binary_number(field: &[u8]) -> Option<i64> {
    const BINARY: u8 = 0x80;
    const SIGN: u8 = 0x40;

    let mut digits: [u8; TAR_SUM_BYTES] = field.try_into().ok()?;
    if digits[0] & BINARY == 0 {
        return None;
    }
    if digits[0] & SIGN == 0 {
        digits[0] &= !BINARY;
    }
    Some(i64::from_be_bytes(digits))
}

/// The form that a disk of so many bytes has beside its own, by its beginning or by its end. The footer of a fixed VHD is
/// permitted: it has each block in the place where a raw disk has it. Expects a disk with the partition table of this
/// project.
pub(crate) fn form_beside_raw(disk: &File, bytes: u64) -> io::Result<Option<&'static str>> {
    let mut head = [0; LBA_BYTES as usize];
    disk.read_exact_at(&mut head, 0)?;
    let code = &head[..CODE_BYTES];
    if let Some(what) = form_by_head(code) {
        return Ok(Some(what));
    }
    if !begins_as_disk(code) {
        return Ok(Some(UNKNOWN_FORM));
    }
    // A header of zeros leads nowhere, whatever the rest of the block adds up to.
    let is_erased = code.iter().all(|byte| *byte == 0);
    if !is_erased && has_tar_checksum(&head) {
        return Ok(Some("a tar archive"));
    }
    if has_zip_end(disk, bytes)? {
        return Ok(Some("a ZIP archive"));
    }
    let mut end = [0; DMG_END_BYTES];
    disk.read_exact_at(&mut end, bytes.saturating_sub(DMG_END_BYTES as u64))?;
    let content_bytes = bytes.saturating_sub(FOOTER_BYTES);
    let footer = &end[end.len() - FOOTER_BYTES as usize..];
    let is_fixed = footer[KIND_AT..].starts_with(&FIXED)
        && footer[FURTHER_HEADER_AT..].starts_with(&u64::MAX.to_be_bytes())
        && footer[DISK_BYTES_AT..].starts_with(&content_bytes.to_be_bytes());
    let is_other_vhd = match footer.starts_with(VHD_MARK) {
        true => !is_fixed,
        // Old programs write a footer of 511 bytes.
        false => footer[1..].starts_with(VHD_MARK),
    };
    Ok(if is_other_vhd {
        Some("a VHD container that is not fixed or has another size")
    } else if end.windows(DMG_MARK.len()).any(|it| it == DMG_MARK) {
        Some("a disk image of macOS")
    } else {
        None
    })
}

/// Bytes behind the backup of the partition table on a disk of so many bytes. The footer of a VHD does not count. Expects a
/// disk with the partition table of this project.
pub(crate) fn bytes_behind_table(disk: &File, bytes: u64) -> io::Result<u64> {
    let content_bytes = bytes.saturating_sub(FOOTER_BYTES);
    let mut footer = [0; FOOTER_BYTES as usize];
    disk.read_exact_at(&mut footer, content_bytes)?;
    let end = match footer.starts_with(VHD_MARK) {
        true => content_bytes,
        false => bytes,
    };
    Ok(end.saturating_sub(table_end(disk)?))
}

/// Whether programs that search the last record of a ZIP archive find one at the end of a file of so many bytes.
///
/// No data of a machine lies behind the last partition, so there the mark is refused, whatever the record says: programs
/// differ in which of its numbers they believe. A machine may have an archive at the end of its data, so there only the
/// record is refused that every program accepts: its comment reaches exactly to the end of the file. Some programs accept
/// others there.
fn has_zip_end(disk: &File, bytes: u64) -> io::Result<bool> {
    let data_end = data_partition_end(disk)?;
    let searched = bytes.min(ZIP_SEARCHED_BYTES);
    let start = bytes - searched;
    let mut end = vec![0; searched as usize];
    disk.read_exact_at(&mut end, start)?;
    let mut records = end.windows(ZIP_END_BYTES).enumerate();
    Ok(records.any(|(at, record)| {
        let comment = [
            record[ZIP_COMMENT_BYTES_AT],
            record[ZIP_COMMENT_BYTES_AT + 1],
        ];
        let comment_at = at + ZIP_END_BYTES;
        let is_behind_data = start + comment_at as u64 > data_end;
        let is_whole = comment_at + usize::from(u16::from_le_bytes(comment)) == end.len();
        record.starts_with(ZIP_END_MARK) && (is_behind_data || is_whole)
    }))
}
