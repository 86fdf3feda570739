//! Whether a disk is also a file of another form, in which other programs find another disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use alknet_image::BOOT_CODE_BEGIN;

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
const ZIP_COMMENT_BYTES_MAX: usize = u16::MAX as usize;
/// Places in that record: bytes of the list of files, which ends with the record's beginning, and bytes of the comment.
const ZIP_LIST_BYTES_AT: usize = 12;
const ZIP_COMMENT_BYTES_AT: usize = 20;
/// What the list of files begins with, and what a large archive has before that record.
const ZIP_LIST_MARK: &[u8; 4] = b"PK\x01\x02";
const ZIP64_LOCATOR_MARK: &[u8; 4] = b"PK\x06\x07";
const ZIP64_LOCATOR_BYTES: u64 = 20;

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

/// The form that a disk of so many bytes has beside its own, by its beginning or by its end. The footer of a fixed VHD is
/// permitted: it has each block in the place where a raw disk has it.
pub(crate) fn form_beside_raw(disk: &File, bytes: u64) -> io::Result<Option<&'static str>> {
    let mut head = [0; CODE_BYTES];
    disk.read_exact_at(&mut head, 0)?;
    if let Some(what) = form_by_head(&head) {
        return Ok(Some(what));
    }
    if !begins_as_disk(&head) {
        return Ok(Some(UNKNOWN_FORM));
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

/// Whether programs that read ZIP archives find one at the end of a file of so many bytes. What a machine writes to its
/// data has one of these marks somewhere, but not with another one, or the right length, in the right place.
fn has_zip_end(disk: &File, bytes: u64) -> io::Result<bool> {
    let searched = bytes.min((ZIP_END_BYTES + ZIP_COMMENT_BYTES_MAX) as u64);
    let start = bytes - searched;
    let mut end = vec![0; searched as usize];
    disk.read_exact_at(&mut end, start)?;
    for (at, record) in end.windows(ZIP_END_BYTES).enumerate() {
        if !record.starts_with(ZIP_END_MARK) {
            continue;
        }
        let comment = [
            record[ZIP_COMMENT_BYTES_AT],
            record[ZIP_COMMENT_BYTES_AT + 1],
        ];
        if at + ZIP_END_BYTES + usize::from(u16::from_le_bytes(comment)) == end.len() {
            return Ok(true);
        }
        // Some programs ignore what is behind the comment.
        let mut list_bytes = [0; 4];
        list_bytes.copy_from_slice(&record[ZIP_LIST_BYTES_AT..ZIP_LIST_BYTES_AT + 4]);
        let list_bytes = u64::from(u32::from_le_bytes(list_bytes));
        for (before, mark) in [
            (list_bytes, ZIP_LIST_MARK),
            (ZIP64_LOCATOR_BYTES, ZIP64_LOCATOR_MARK),
        ] {
            let mut found = [0; 4];
            if let Some(place) = (start + at as u64).checked_sub(before) {
                disk.read_exact_at(&mut found, place)?;
            }
            if found == *mark {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
