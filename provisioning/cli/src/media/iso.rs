//! ISO 9660 (ECMA-119) with Joliet names, one folder, and nothing that depends on the time of
//! writing.

use zeroize::Zeroizing;

use super::{LABEL, VolumeFile, put};

const SECTOR: usize = 2048;
const FIRST_DESCRIPTOR: usize = 16;
/// Path tables in both byte orders, first with plain names, then with Joliet names.
const PATH_TABLES: usize = 19;
/// The two root folders, of one sector each.
const ROOTS: usize = 23;
const FIRST_FILE: usize = 25;
/// Some drives do not accept fewer sectors.
const SECTORS_MIN: usize = 64;
/// 1980-01-01 in the form of a folder record.
const DAY: [u8; 7] = [80, 1, 1, 0, 0, 0, 0];

/// How names are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IsoNaming {
    Plain,
    /// UCS-2, big endian, upper and lower case.
    Joliet,
}

impl IsoNaming {
    fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Self::Plain => text.as_bytes().to_vec(),
            Self::Joliet => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }

    /// Plain names are upper case, with a dot and a version.
    fn of_file(self, name: &str) -> Vec<u8> {
        match self {
            Self::Plain => {
                let dot = if name.contains('.') { "" } else { "." };
                format!("{}{dot};1", name.to_ascii_uppercase()).into_bytes()
            }
            Self::Joliet => self.encode(name),
        }
    }

    fn root(self) -> usize {
        match self {
            Self::Plain => ROOTS,
            Self::Joliet => ROOTS + 1,
        }
    }

    fn tables(self) -> usize {
        match self {
            Self::Plain => PATH_TABLES,
            Self::Joliet => PATH_TABLES + 2,
        }
    }
}

/// The whole image.
pub(crate) fn iso(files: &[VolumeFile<'_>]) -> Zeroizing<Vec<u8>> {
    let mut next = FIRST_FILE;
    let placed: Vec<_> = files
        .iter()
        .map(|file| {
            let at = next;
            next += file.content.len().div_ceil(SECTOR);
            (*file, at)
        })
        .collect();
    let sectors = next.max(SECTORS_MIN);
    let mut image = Zeroizing::new(vec![0; sectors * SECTOR]);
    let mut sector = |number: usize, content: &[u8]| put(&mut image, number * SECTOR, content);
    // A system without Joliet reads the first descriptor, with names in capitals.
    sector(FIRST_DESCRIPTOR, &descriptor(IsoNaming::Plain, sectors));
    sector(
        FIRST_DESCRIPTOR + 1,
        &descriptor(IsoNaming::Joliet, sectors),
    );
    // Ends the descriptors.
    sector(FIRST_DESCRIPTOR + 2, b"\xffCD001\x01");
    for names in [IsoNaming::Plain, IsoNaming::Joliet] {
        let root = names.root() as u32;
        // Each path table exists in both byte orders.
        sector(
            names.tables(),
            &path_table(root.to_le_bytes(), 1_u16.to_le_bytes()),
        );
        sector(
            names.tables() + 1,
            &path_table(root.to_be_bytes(), 1_u16.to_be_bytes()),
        );
        sector(names.root(), &folder(names, &placed));
    }
    for (file, at) in &placed {
        sector(*at, file.content);
    }
    image
}

fn descriptor(names: IsoNaming, sectors: usize) -> [u8; SECTOR] {
    let mut out = [0; SECTOR];
    let filler: &[u8] = if names == IsoNaming::Plain {
        b" "
    } else {
        b"\0 "
    };
    for text in [8..72, 190..813] {
        out[text]
            .iter_mut()
            .zip(filler.iter().cycle())
            .for_each(|(to, from)| *to = *from);
    }
    put(&mut out, 0, &[1 + u8::from(names == IsoNaming::Joliet)]);
    put(&mut out, 1, b"CD001\x01");
    put(&mut out, 40, &names.encode(LABEL));
    put(&mut out, 80, &both_u32(sectors));
    if names == IsoNaming::Joliet {
        // The escape sequence of UCS-2, level 3.
        put(&mut out, 88, b"%/E");
    }
    put(&mut out, 120, &both_u16(1));
    put(&mut out, 124, &both_u16(1));
    put(&mut out, 128, &both_u16(SECTOR as u16));
    put(&mut out, 132, &both_u32(PATH_TABLE_BYTES));
    put(&mut out, 140, &(names.tables() as u32).to_le_bytes());
    put(&mut out, 148, &(names.tables() as u32 + 1).to_be_bytes());
    put(&mut out, 156, &record(&[0], names.root(), SECTOR, true));
    // Zero digits mean that no date is given. Zero bytes would not be digits.
    for date in [813, 830, 847, 864] {
        put(&mut out, date, b"0000000000000000\0");
    }
    put(&mut out, 881, &[1]);
    out
}

const PATH_TABLE_BYTES: usize = 10;

/// A path table with only the root.
fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0], &root[..], &parent, &[0, 0]].concat()
}

fn folder(names: IsoNaming, files: &[(VolumeFile<'_>, usize)]) -> Vec<u8> {
    let root = names.root();
    let mut entries: Vec<_> = files
        .iter()
        .map(|(file, at)| (names.of_file(file.name), *at, file.content.len()))
        .collect();
    // A folder's records are in the order of their names (ECMA-119, 9.3).
    entries.sort_unstable();
    let own = [
        record(&[0], root, SECTOR, true),
        // The root is its own parent.
        record(&[1], root, SECTOR, true),
    ];
    let files = entries
        .iter()
        .map(|(name, at, bytes)| record(name, *at, *bytes, false));
    own.into_iter().chain(files).flatten().collect()
}

fn record(name: &[u8], at: usize, bytes: usize, is_folder: bool) -> Vec<u8> {
    // The length must be even, and the name's length precedes it.
    let length = (33 + name.len()).next_multiple_of(2);
    let mut out = vec![0; length];
    put(&mut out, 0, &[length as u8]);
    put(&mut out, 2, &both_u32(at));
    put(&mut out, 10, &both_u32(bytes));
    put(&mut out, 18, &DAY);
    put(&mut out, 25, &[u8::from(is_folder) * 2]);
    put(&mut out, 28, &both_u16(1));
    put(&mut out, 32, &[name.len() as u8]);
    put(&mut out, 33, name);
    out
}

/// Little endian, then big endian.
fn both_u32(number: usize) -> [u8; 8] {
    // Both byte orders, one after the other (ECMA-119, 7.3.3).
    let [a, b, c, d] = (number as u32).to_le_bytes();
    [a, b, c, d, d, c, b, a]
}

fn both_u16(number: u16) -> [u8; 4] {
    // Both byte orders, one after the other (ECMA-119, 7.2.3).
    let [a, b] = number.to_le_bytes();
    [a, b, b, a]
}
