//! FAT12 of the size of a floppy disk (Microsoft's FAT specification, version 1.03), with long
//! names. Every reader of FAT reads it.

use zeroize::Zeroizing;

use super::{LABEL, VolumeFile, put};

const SECTOR: usize = 512;
const SECTORS: usize = 2880;
const TABLE_SECTORS: usize = 9;
const ROOT_ENTRIES: usize = 224;
const ENTRY: usize = 32;
const ROOT: usize = 1 + 2 * TABLE_SECTORS;
const FIRST_CLUSTER: usize = ROOT + ROOT_ENTRIES * ENTRY / SECTOR;
const CHAIN_END: u16 = 0xfff;
const MEDIA: u8 = 0xf0;
/// 1980-01-01 as a FAT date.
const DAY: [u8; 2] = [0x21, 0];
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_LONG: u8 = 0x0f;
const ATTRIBUTE_FILE: u8 = 0x20;
/// UTF-16 units of a long name in one entry.
const UNITS: usize = 13;

/// The whole image, with a serial number. `None` if the files do not fit.
pub(crate) fn fat(files: &[VolumeFile<'_>], serial: [u8; 4]) -> Option<Zeroizing<Vec<u8>>> {
    let mut image = Zeroizing::new(vec![0; SECTORS * SECTOR]);
    // The first two entries belong to no cluster: the media byte, and an end mark.
    let mut table = vec![0xf00 | u16::from(MEDIA), CHAIN_END];
    let mut root = entry(*b"CIDATA     ", ATTRIBUTE_LABEL, 0, 0).to_vec();
    debug_assert!(root.starts_with(LABEL.as_bytes()));
    for (number, file) in files.iter().enumerate() {
        let first = table.len();
        let clusters = file.content.len().div_ceil(SECTOR);
        // Data clusters are numbered from 2.
        let at = (FIRST_CLUSTER + first - 2) * SECTOR;
        if at + clusters * SECTOR > image.len() {
            return None;
        }
        put(&mut image, at, file.content);
        table.extend((1..clusters).map(|next| (first + next) as u16));
        table.extend((clusters > 0).then_some(CHAIN_END));
        let short = short_name(number);
        root.extend(long_entries(file.name, &short));
        // An empty file has no cluster, and its entry has 0.
        let first = if clusters > 0 { first as u16 } else { 0 };
        let bytes = u32::try_from(file.content.len()).ok()?;
        root.extend(entry(short, ATTRIBUTE_FILE, first, bytes));
    }
    if root.len() > ROOT_ENTRIES * ENTRY {
        return None;
    }
    put(&mut image, 0, &boot_sector(serial));
    let table = packed(&table);
    // A driver may read either copy of the table.
    for copy in 0..2 {
        put(&mut image, (1 + copy * TABLE_SECTORS) * SECTOR, &table);
    }
    put(&mut image, ROOT * SECTOR, &root);
    Some(image)
}

fn boot_sector(serial: [u8; 4]) -> [u8; SECTOR] {
    let mut out = [0; SECTOR];
    // Some systems accept a volume as FAT only with this name after a jump.
    put(&mut out, 0, b"\xeb\x3c\x90MSDOS5.0");
    put(&mut out, 11, &(SECTOR as u16).to_le_bytes());
    put(&mut out, 13, &[1, 1, 0, 2]);
    put(&mut out, 17, &(ROOT_ENTRIES as u16).to_le_bytes());
    put(&mut out, 19, &(SECTORS as u16).to_le_bytes());
    put(&mut out, 21, &[MEDIA, TABLE_SECTORS as u8, 0, 18, 0, 2, 0]);
    put(&mut out, 38, &[0x29]);
    put(&mut out, 39, &serial);
    put(&mut out, 43, b"CIDATA     FAT12   ");
    put(&mut out, 510, &[0x55, 0xaa]);
    out
}

/// Two entries of 12 bits in three bytes.
fn packed(table: &[u16]) -> Vec<u8> {
    let pair = |pair: &[u16]| {
        let (a, b) = (pair[0], pair.get(1).copied().unwrap_or(0));
        [a as u8, (a >> 8 | b << 4) as u8, (b >> 4) as u8]
    };
    table.chunks(2).flat_map(pair).collect()
}

/// A short name that no file has as its long name.
fn short_name(number: usize) -> [u8; 11] {
    let mut name = *b"SEED~1  BIN";
    name[5] = b'1' + (number % 9) as u8;
    name
}

fn entry(name: [u8; 11], attributes: u8, cluster: u16, bytes: u32) -> [u8; ENTRY] {
    let mut out = [0; ENTRY];
    put(&mut out, 0, &name);
    put(&mut out, 11, &[attributes]);
    for date in [16, 18, 24] {
        put(&mut out, date, &DAY);
    }
    put(&mut out, 26, &cluster.to_le_bytes());
    put(&mut out, 28, &bytes.to_le_bytes());
    out
}

/// The entries of a long name, with the name's last part first.
fn long_entries(name: &str, short: &[u8; 11]) -> Vec<u8> {
    let sum = short
        .iter()
        // The checksum of the short name links the long entries to it. A system that knows only
        // short names may have moved the file.
        .fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units: Vec<u16> = name.encode_utf16().collect();
    let parts = units.len().div_ceil(UNITS);
    // A zero after the name if there is room for it, and 0xffff after that.
    if units.len() < parts * UNITS {
        units.push(0);
    }
    units.resize(parts * UNITS, 0xffff);
    let part = |number: usize| {
        let mut out = [0; ENTRY];
        // The highest part is marked, and comes first on the disk.
        let last = if number + 1 == parts { 0x40 } else { 0 };
        put(&mut out, 0, &[(number as u8 + 1) | last]);
        put(&mut out, 11, &[ATTRIBUTE_LONG, 0, sum]);
        let units = &units[number * UNITS..(number + 1) * UNITS];
        let places = (1..11)
            .step_by(2)
            .chain((14..26).step_by(2))
            .chain([28, 30]);
        for (at, unit) in places.zip(units) {
            put(&mut out, at, &unit.to_le_bytes());
        }
        out
    };
    (0..parts).rev().flat_map(part).collect()
}
