//! The same decision in GRUB's script language, and the record as a file of GRUB's.

use crate::note::{NOTE_BYTES, NOTE_LBA};
use crate::record::{RECORD_BYTES, RECORD_LBA, SECTOR_BYTES};

/// A part of GRUB's configuration that defines the function `alknet_choose`, which decides as [`loader_choice`].
///
/// Before the call, the caller sets `alknet_state` to [`GRUB_STATE_FILE`], and each of `alknet_a` and `alknet_b` to `1`
/// if that slot has a program, else to nothing. Afterwards `alknet_slot` is the slot to start, or nothing. If it cannot
/// be started, the caller empties that slot's variable and calls again. The script needs the modules `echo`, `loadenv`,
/// `normal`, `part_gpt`, `tar` and `test`.
///
/// GRUB checks only the variables that it needs. A record that [`parse`] refuses for another one is used there.
///
/// [`loader_choice`]: crate::loader_choice
/// [`parse`]: crate::BootRecord::parse
pub const GRUB_SCRIPT: &str = include_str!("choose.cfg");

/// GRUB's name of the record, where `alknet_disk` is the name of the disk that GRUB was started from, such as `hd0`.
/// Only in its prefix does GRUB fill an empty name in.
///
/// A list of blocks, `(hd0)2046+2`, would not do: GRUB 2.06 reads it and does not write it. Its `save_env` asks the file
/// system on which blocks the file lies, and the code for lists of blocks does not answer ("sparse file not allowed").
/// So the partition `alk-bios` is a [tar archive](grub_archive), which GRUB can write to in place.
pub const GRUB_STATE_FILE: &str = "(${alknet_disk},gpt1)/state";

/// GRUB's name of its configuration, in the same way.
pub const GRUB_CONFIG_FILE: &str = "(${alknet_disk},gpt1)/grub.cfg";

/// The sector of the disk at which GRUB's core image begins, behind the first header of the archive.
pub const GRUB_CORE_LBA: u64 = ARCHIVE_LBA + 1;

/// Most bytes of GRUB's core image.
pub const GRUB_CORE_BYTES_MAX: u64 = (CONFIG_HEADER_LBA - GRUB_CORE_LBA) * SECTOR_BYTES as u64;

/// The sector of the disk at which GRUB's configuration begins.
pub const GRUB_CONFIG_LBA: u64 = CONFIG_HEADER_LBA + 1;

/// Bytes of GRUB's configuration, with the line feeds that fill it up.
pub const GRUB_CONFIG_BYTES: u64 = (NOTE_HEADER_LBA - GRUB_CONFIG_LBA) * SECTOR_BYTES as u64;

/// The first sector of the partition `alk-bios`.
const ARCHIVE_LBA: u64 = 34;

/// The sector before GRUB's configuration, which takes 31 sectors.
const CONFIG_HEADER_LBA: u64 = NOTE_HEADER_LBA - 32;

/// The sector before the boot note.
const NOTE_HEADER_LBA: u64 = NOTE_LBA - 1;

/// The sector before the record.
const STATE_HEADER_LBA: u64 = RECORD_LBA - 1;

const _: () = assert!(
    NOTE_LBA + (NOTE_BYTES / SECTOR_BYTES) as u64 == STATE_HEADER_LBA,
    "the header of the record follows the note"
);

/// The sectors that make the partition `alk-bios` a tar archive of four files, each with its number on the disk: the
/// headers of GRUB's core image, of its configuration, of the boot note, and of the record. They are written once, with
/// the image.
#[must_use]
pub fn grub_archive() -> [(u64, [u8; SECTOR_BYTES]); 4] {
    [
        (ARCHIVE_LBA, header(b"core.img", GRUB_CORE_BYTES_MAX)),
        (CONFIG_HEADER_LBA, header(b"grub.cfg", GRUB_CONFIG_BYTES)),
        (NOTE_HEADER_LBA, header(b"note", NOTE_BYTES as u64)),
        (STATE_HEADER_LBA, header(b"state", RECORD_BYTES as u64)),
    ]
}

/// A header in the form of POSIX.1-1988 (`ustar`) of a file that every user may read, with the date of 1970.
fn header(name: &[u8], bytes: u64) -> [u8; SECTOR_BYTES] {
    let mut out = [0; SECTOR_BYTES];
    put(&mut out, 0, name);
    // Mode, user and group.
    put(&mut out, 100, b"0000444\0");
    put(&mut out, 108, b"0000000\x000000000\0");
    put(&mut out, 124, &octal::<11>(bytes));
    put(&mut out, 136, &octal::<11>(0));
    // An ordinary file.
    put(&mut out, 156, b"0");
    put(&mut out, 257, b"ustar\x0000");
    // The sum is over the header with spaces in the sum's place.
    put(&mut out, 148, b"        ");
    let sum = out.iter().map(|byte| u64::from(*byte)).sum();
    put(&mut out, 148, &octal::<6>(sum));
    put(&mut out, 154, b"\0 ");
    out
}

/// The last digits of a number to the base of eight.
fn octal<const DIGITS: usize>(mut number: u64) -> [u8; DIGITS] {
    let mut out = [b'0'; DIGITS];
    for digit in out.iter_mut().rev() {
        // Three bits.
        *digit = b'0' + (number % 8) as u8;
        number /= 8;
    }
    out
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    let place = out.iter_mut().skip(at);
    for (to, from) in place.zip(bytes) {
        *to = *from;
    }
}
