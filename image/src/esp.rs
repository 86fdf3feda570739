//! The FAT32 volume on the EFI system partition of a written disk: lists its files, reads them, and adds one.
//!
//! It is for a disk that no machine runs from: additions are not safe against a power cut.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;

use crate::disk::{ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};

const ENTRY_BYTES: usize = 32;
const ROOT_ENTRY_END: u8 = 0;
const ENTRY_DELETED: u8 = 0xe5;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;
const ATTRIBUTE_LONG: u8 = 0x0f;
/// Bits of a table entry that name a cluster; the others are reserved.
const CLUSTER_MASK: u32 = 0x0fff_ffff;
/// This value and higher ones end a chain.
const CHAIN_END_MIN: u32 = 0x0fff_fff8;
const CHAIN_END: u32 = 0x0fff_ffff;
const FIRST_CLUSTER: u32 = 2;
/// UTF-16 units of a long name in one entry.
const LONG_UNITS: usize = 13;
/// Places of those units in the entry.
const LONG_PLACES: [usize; LONG_UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// Longest name, in UTF-16 units (FAT specification, version 1.03, section 7).
const NAME_UNITS_MAX: usize = 255;
/// Folders within folders that are followed. The images have three levels.
const DEPTH_MAX: usize = 8;
/// Entries of all folders that are read. A damaged volume could have folders without end.
const ENTRIES_MAX: usize = 65_536;
/// Short names that are tried for a long one.
const ALIASES_MAX: u32 = 9;
/// 1980-01-01, the first day that FAT knows.
const FIRST_DAY: u16 = (1 << 5) | 1;

/// The volume labelled `ALKESP` on a disk in this project's layout.
#[derive(Debug)]
pub struct EspVolume<'f> {
    disk: &'f File,
    cluster_bytes: u64,
    table_at: u64,
    table_bytes: u64,
    tables: u64,
    info_at: u64,
    data_at: u64,
    root: u32,
    table: Vec<u32>,
}

/// A file on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspFile {
    /// The path from the root, with `/` between the names.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    first: u32,
}

/// An entry of a folder.
#[derive(Clone, Debug)]
struct EspEntry {
    name: String,
    short: [u8; 11],
    is_folder: bool,
    first: u32,
    bytes: u32,
}

impl<'f> EspVolume<'f> {
    /// Opens the volume on `disk`, which is a whole disk or its image.
    ///
    /// # Errors
    /// The disk cannot be read, or has no such volume at the layout's place.
    pub fn open(disk: &'f File) -> io::Result<Self> {
        let start = ESP_FIRST_LBA * LBA_BYTES;
        let mut boot = [0; LBA_BYTES as usize];
        disk.read_exact_at(&mut boot, start)?;
        let is_ours = boot[510..] == [0x55, 0xaa]
            && boot[82..90] == *b"FAT32   "
            && boot[71..82] == *b"ALKESP     "
            && le16(&boot, 11) == LBA_BYTES as u16;
        if !is_ours {
            return Err(damaged(
                "the disk has no EFI system partition of an alknet image",
            ));
        }
        let sectors = u64::from(le32(&boot, 32));
        let reserved = u64::from(le16(&boot, 14));
        let tables = u64::from(boot[16]);
        let table_sectors = u64::from(le32(&boot, 36));
        let cluster_sectors = u64::from(boot[13]);
        let data = reserved + tables * table_sectors;
        let root = le32(&boot, 44);
        let is_sane = sectors * LBA_BYTES <= ESP_BYTES
            && cluster_sectors.is_power_of_two()
            && (1..=2).contains(&tables)
            && data < sectors
            // Without a cluster the root would be an empty folder.
            && (FIRST_CLUSTER..CHAIN_END_MIN).contains(&root);
        if !is_sane {
            return Err(damaged(
                "the boot sector of the EFI system partition is damaged",
            ));
        }
        let clusters = (sectors - data) / cluster_sectors;
        let table_bytes = table_sectors * LBA_BYTES;
        let entries = (clusters + u64::from(FIRST_CLUSTER)).min(table_bytes / 4);
        let table_at = start + reserved * LBA_BYTES;
        let mut raw = vec![0; entries as usize * 4];
        disk.read_exact_at(&mut raw, table_at)?;
        let table = raw
            .chunks_exact(4)
            .map(|entry| le32(entry, 0) & CLUSTER_MASK);
        Ok(Self {
            disk,
            cluster_bytes: cluster_sectors * LBA_BYTES,
            table_at,
            table_bytes,
            tables,
            info_at: start + u64::from(le16(&boot, 48)) * LBA_BYTES,
            data_at: start + data * LBA_BYTES,
            root,
            table: table.collect(),
        })
    }

    /// Every file, sorted by path.
    ///
    /// # Errors
    /// The disk cannot be read, or the volume is damaged.
    pub fn files(&self) -> io::Result<Vec<EspFile>> {
        let mut files = Vec::new();
        let mut seen = 0;
        let mut open = vec![(String::new(), self.root, 0)];
        while let Some((folder, first, depth)) = open.pop() {
            for entry in self.entries(first)? {
                seen += 1;
                if seen > ENTRIES_MAX || depth > DEPTH_MAX {
                    return Err(damaged(
                        "the folders of the EFI system partition have no end",
                    ));
                }
                let path = format!("{folder}{}", entry.name);
                match entry.is_folder {
                    true => open.push((format!("{path}/"), entry.first, depth + 1)),
                    false => files.push(EspFile {
                        path,
                        bytes: u64::from(entry.bytes),
                        first: entry.first,
                    }),
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Writes the content of a file to `out`.
    ///
    /// # Errors
    /// The disk cannot be read, the chain of the file is too short, or `out` refuses.
    pub fn copy(&self, file: &EspFile, out: &mut dyn Write) -> io::Result<()> {
        let mut left = file.bytes;
        let mut cluster = vec![0; self.cluster_bytes as usize];
        for number in self.chain(file.first)? {
            let wanted = left.min(self.cluster_bytes) as usize;
            self.disk
                .read_exact_at(&mut cluster[..wanted], self.cluster_at(number))?;
            out.write_all(&cluster[..wanted])?;
            left -= wanted as u64;
        }
        match left {
            0 => Ok(()),
            _ => Err(damaged("a file of the EFI system partition is cut short")),
        }
    }

    /// The end of the last cluster in use, in bytes from the start of the disk.
    #[must_use]
    pub fn used_end(&self) -> u64 {
        let last = self.table.iter().rposition(|entry| *entry != 0);
        let next = last.map_or(FIRST_CLUSTER, |last| last as u32 + 1);
        self.cluster_at(next.max(FIRST_CLUSTER))
    }

    /// Adds a file, and the folders above it that are missing. `path` has `/` between the names.
    ///
    /// # Errors
    /// A file of this name exists, a name is no name of FAT, the volume is full or damaged, or the disk refuses.
    pub fn add(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let before = self.table.clone();
        let added = self.add_file(path, content);
        if added.is_err() {
            // The clusters of a file that was not added stay free.
            self.table = before;
        }
        added?;
        self.write_table()
    }

    fn add_file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let mut names: Vec<&str> = path.split('/').collect();
        let name = names.pop().unwrap_or_default();
        let mut folder = self.root;
        for part in names {
            folder = self.folder_in(folder, part)?;
        }
        if self.find(folder, name)?.is_some() {
            let text = format!("the EFI system partition has a file {path} already");
            return Err(io::Error::new(ErrorKind::AlreadyExists, text));
        }
        let bytes = u32::try_from(content.len()).map_err(|_| full())?;
        let first = self.store(content)?;
        self.enter(folder, name, ATTRIBUTE_ARCHIVE, first, bytes)
    }

    /// The first cluster of the folder `name` in `parent`, which is made if it is missing.
    fn folder_in(&mut self, parent: u32, name: &str) -> io::Result<u32> {
        match self.find(parent, name)? {
            Some(entry) if entry.is_folder => return Ok(entry.first),
            Some(_) => {
                let text = format!("{name} of the EFI system partition is a file and no folder");
                return Err(io::Error::new(ErrorKind::NotADirectory, text));
            }
            None => {}
        }
        // The root's number is zero in the entry of a folder below it (FAT specification, section 6.5).
        let up = if parent == self.root { 0 } else { parent };
        let own = self.reserve(1)?;
        let mut cluster = vec![0; self.cluster_bytes as usize];
        let dots = [(*b".          ", own), (*b"..         ", up)];
        for (place, (dot, first)) in cluster.chunks_exact_mut(ENTRY_BYTES).zip(dots) {
            place.copy_from_slice(&short_entry(dot, ATTRIBUTE_FOLDER, first, 0));
        }
        self.disk.write_all_at(&cluster, self.cluster_at(own))?;
        self.enter(parent, name, ATTRIBUTE_FOLDER, own, 0)?;
        Ok(own)
    }

    fn find(&self, folder: u32, name: &str) -> io::Result<Option<EspEntry>> {
        let entries = self.entries(folder)?;
        // Names differ by more than upper and lower case (FAT specification, section 7).
        let mut entries = entries.into_iter();
        Ok(entries.find(|entry| entry.name.eq_ignore_ascii_case(name)))
    }

    /// Stores bytes in free clusters, and returns the first; 0 for no bytes.
    fn store(&mut self, content: &[u8]) -> io::Result<u32> {
        if content.is_empty() {
            return Ok(0);
        }
        let clusters = (content.len() as u64).div_ceil(self.cluster_bytes);
        let first = self.reserve(clusters)?;
        let chain = self.chain(first)?;
        for (number, piece) in chain
            .into_iter()
            .zip(content.chunks(self.cluster_bytes as usize))
        {
            let mut cluster = vec![0; self.cluster_bytes as usize];
            cluster[..piece.len()].copy_from_slice(piece);
            self.disk.write_all_at(&cluster, self.cluster_at(number))?;
        }
        Ok(first)
    }

    /// Chains free clusters, at least one, and returns the first.
    fn reserve(&mut self, clusters: u64) -> io::Result<u32> {
        let free = self.table.iter().enumerate().skip(FIRST_CLUSTER as usize);
        let free = free
            .filter(|(_, entry)| **entry == 0)
            .map(|(number, _)| number);
        let chosen: Vec<usize> = free.take(clusters as usize).collect();
        let Some(first) = chosen.first().copied() else {
            return Err(full());
        };
        if (chosen.len() as u64) < clusters {
            return Err(full());
        }
        for pair in chosen.windows(2) {
            self.table[pair[0]] = pair[1] as u32;
        }
        if let Some(last) = chosen.last() {
            self.table[*last] = CHAIN_END;
        }
        Ok(first as u32)
    }

    /// Writes an entry with a long name into a folder, which grows if it has no room.
    fn enter(
        &mut self,
        folder: u32,
        name: &str,
        attribute: u8,
        first: u32,
        bytes: u32,
    ) -> io::Result<()> {
        let taken: Vec<_> = self
            .entries(folder)?
            .into_iter()
            .map(|entry| entry.short)
            .collect();
        let short = alias(name, &taken)?;
        let mut added = long_entries(name, &short)?;
        added.push(short_entry(short, attribute, first, bytes));
        let place = match self.gap(folder, added.len())? {
            Some(place) => place,
            None => {
                self.grow(folder)?;
                self.gap(folder, added.len())?.ok_or_else(full)?
            }
        };
        let per_cluster = self.cluster_bytes as usize / ENTRY_BYTES;
        let chain = self.chain(folder)?;
        for (number, entry) in (place..).zip(added) {
            let within = (number % per_cluster * ENTRY_BYTES) as u64;
            let at = self.cluster_at(chain[number / per_cluster]) + within;
            self.disk.write_all_at(&entry, at)?;
        }
        Ok(())
    }

    /// The first of `count` free entries in a row.
    fn gap(&self, folder: u32, count: usize) -> io::Result<Option<usize>> {
        let content = self.content(folder)?;
        let mut free = 0;
        for (number, entry) in content.chunks_exact(ENTRY_BYTES).enumerate() {
            match entry[0] {
                ROOT_ENTRY_END | ENTRY_DELETED => free += 1,
                _ => free = 0,
            }
            if free == count {
                return Ok(Some(number + 1 - count));
            }
        }
        Ok(None)
    }

    fn grow(&mut self, folder: u32) -> io::Result<()> {
        let last = self.chain(folder)?.last().copied().unwrap_or(folder);
        let more = self.reserve(1)?;
        let zeros = vec![0; self.cluster_bytes as usize];
        self.disk.write_all_at(&zeros, self.cluster_at(more))?;
        self.table[last as usize] = more;
        Ok(())
    }

    /// Writes the tables, and the count of free clusters.
    fn write_table(&self) -> io::Result<()> {
        let raw: Vec<u8> = self
            .table
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect();
        for copy in 0..self.tables {
            self.disk
                .write_all_at(&raw, self.table_at + copy * self.table_bytes)?;
        }
        let used = self.table.iter().skip(FIRST_CLUSTER as usize);
        let free = used.filter(|entry| **entry == 0).count() as u32;
        // Offsets of the FSInfo sector (FAT specification, section 5).
        self.disk
            .write_all_at(&free.to_le_bytes(), self.info_at + 488)?;
        self.disk
            .write_all_at(&FIRST_CLUSTER.to_le_bytes(), self.info_at + 492)
    }

    fn cluster_at(&self, number: u32) -> u64 {
        self.data_at + u64::from(number - FIRST_CLUSTER) * self.cluster_bytes
    }

    /// The clusters of a file or folder; none for an empty file.
    fn chain(&self, first: u32) -> io::Result<Vec<u32>> {
        let mut chain = Vec::new();
        let mut next = first;
        while next != 0 && next < CHAIN_END_MIN {
            let known = self.table.get(next as usize).copied();
            // A chain that is longer than the table has a loop.
            let entry = known.filter(|_| next >= FIRST_CLUSTER && chain.len() < self.table.len());
            let Some(entry) = entry else {
                return Err(damaged("the table of the EFI system partition is damaged"));
            };
            chain.push(next);
            next = entry;
        }
        Ok(chain)
    }

    /// The bytes of a folder.
    fn content(&self, folder: u32) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        for number in self.chain(folder)? {
            if content.len() / ENTRY_BYTES > ENTRIES_MAX {
                return Err(damaged("a folder of the EFI system partition is too long"));
            }
            let begun = content.len();
            content.resize(begun + self.cluster_bytes as usize, 0);
            self.disk
                .read_exact_at(&mut content[begun..], self.cluster_at(number))?;
        }
        Ok(content)
    }

    fn entries(&self, folder: u32) -> io::Result<Vec<EspEntry>> {
        let content = self.content(folder)?;
        let mut entries = Vec::new();
        let mut long = Vec::new();
        for raw in content.chunks_exact(ENTRY_BYTES) {
            match (raw[0], raw[11]) {
                (ROOT_ENTRY_END, _) => break,
                (ENTRY_DELETED, _) => long.clear(),
                (_, attribute) if attribute & 0x3f == ATTRIBUTE_LONG => long.push(raw),
                (_, attribute) if attribute & ATTRIBUTE_LABEL != 0 => long.clear(),
                (_, attribute) => {
                    let mut short = [0; 11];
                    short.copy_from_slice(&raw[..11]);
                    let name = long_name(&long, &short).unwrap_or_else(|| short_name(raw));
                    long.clear();
                    if name == "." || name == ".." {
                        continue;
                    }
                    entries.push(EspEntry {
                        name,
                        short,
                        is_folder: attribute & ATTRIBUTE_FOLDER != 0,
                        first: u32::from(le16(raw, 20)) << 16 | u32::from(le16(raw, 26)),
                        bytes: le32(raw, 28),
                    });
                }
            }
        }
        Ok(entries)
    }
}

/// The name of long entries, in the order of the disk: the last part first. `None` if they belong to another entry.
fn long_name(parts: &[&[u8]], short: &[u8; 11]) -> Option<String> {
    let sum = checksum(short);
    if parts.is_empty() || parts.iter().any(|part| part[13] != sum) {
        return None;
    }
    let parts = parts.iter().rev();
    let units = parts.flat_map(|part| LONG_PLACES.iter().map(move |at| le16(part, *at)));
    let units: Vec<u16> = units
        .take_while(|unit| *unit != 0 && *unit != 0xffff)
        .collect();
    String::from_utf16(&units).ok()
}

/// The name in eight and three bytes. Bits of byte 12 say that a part is in lower case.
fn short_name(raw: &[u8]) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if lower { text.to_lowercase() } else { text }
    };
    let stem = part(&raw[..8], raw[12] & 0x08 != 0);
    let extension = part(&raw[8..11], raw[12] & 0x10 != 0);
    match extension.is_empty() {
        true => stem,
        false => format!("{stem}.{extension}"),
    }
}

/// A short name for a long one that no other entry of the folder has (FAT specification, section 7.4).
fn alias(name: &str, taken: &[[u8; 11]]) -> io::Result<[u8; 11]> {
    let plain = |text: &str| -> Vec<u8> {
        let upper = text.bytes().map(|byte| byte.to_ascii_uppercase());
        upper.filter(u8::is_ascii_alphanumeric).collect()
    };
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let (mut stem, mut extension) = (plain(stem), plain(extension));
    stem.truncate(6);
    extension.truncate(3);
    for number in 1..=ALIASES_MAX {
        let mut short = [b' '; 11];
        short[..stem.len()].copy_from_slice(&stem);
        short[stem.len()] = b'~';
        short[stem.len() + 1] = b'0' + number as u8;
        short[8..8 + extension.len()].copy_from_slice(&extension);
        if !taken.contains(&short) {
            return Ok(short);
        }
    }
    Err(full())
}

/// The entries of a long name, with the name's last part first.
fn long_entries(name: &str, short: &[u8; 11]) -> io::Result<Vec<[u8; ENTRY_BYTES]>> {
    let mut units: Vec<u16> = name.encode_utf16().collect();
    let forbidden = |c: char| c < ' ' || "\"*/:<>?\\|".contains(c);
    if units.is_empty() || units.len() > NAME_UNITS_MAX || name.contains(forbidden) {
        let text = format!("{name:?} is no name of a file on a FAT volume");
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    let parts = units.len().div_ceil(LONG_UNITS);
    // A zero after the name if there is room for it, and 0xffff after that.
    if units.len() < parts * LONG_UNITS {
        units.push(0);
    }
    units.resize(parts * LONG_UNITS, 0xffff);
    let sum = checksum(short);
    let part = |number: usize| {
        let mut out = [0; ENTRY_BYTES];
        // The highest part is marked, and comes first on the disk.
        let last = if number + 1 == parts { 0x40 } else { 0 };
        out[0] = (number as u8 + 1) | last;
        out[11] = ATTRIBUTE_LONG;
        out[13] = sum;
        let units = &units[number * LONG_UNITS..(number + 1) * LONG_UNITS];
        for (at, unit) in LONG_PLACES.iter().zip(units) {
            out[*at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        out
    };
    Ok((0..parts).rev().map(part).collect())
}

/// The checksum of a short name, which links the long entries to it.
fn checksum(short: &[u8; 11]) -> u8 {
    short
        .iter()
        .fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

fn short_entry(short: [u8; 11], attribute: u8, first: u32, bytes: u32) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    out[..11].copy_from_slice(&short);
    out[11] = attribute;
    // The days of creation, last access and last write.
    for date_at in [16, 18, 24] {
        out[date_at..date_at + 2].copy_from_slice(&FIRST_DAY.to_le_bytes());
    }
    let [low_0, low_1, high_0, high_1] = first.to_le_bytes();
    out[20..22].copy_from_slice(&[high_0, high_1]);
    out[26..28].copy_from_slice(&[low_0, low_1]);
    out[28..].copy_from_slice(&bytes.to_le_bytes());
    out
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn full() -> io::Error {
    io::Error::new(ErrorKind::StorageFull, "the EFI system partition is full")
}

#[cfg(test)]
mod tests;
