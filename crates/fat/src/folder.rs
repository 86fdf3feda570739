//! Folders: slots of 32 bytes (FAT specification, "FAT Directory Structure").

use std::ops::Range;

use crate::bytes::{u16_at, u32_at};
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::geometry::{ENTRY_BYTES, FatGeometry, FatKind, RootLocation};
use crate::name::{LongNameParts, SHORT_BYTES, ShortName, folded};

/// First byte of a slot behind which no slot is in use.
pub(crate) const END_MARK: u8 = 0;
/// First byte of a slot that is free.
pub(crate) const FREE_MARK: u8 = 0xe5;
pub(crate) const ATTRIBUTE_LABEL: u8 = 0x08;
pub(crate) const ATTRIBUTE_FOLDER: u8 = 0x10;
pub(crate) const ATTRIBUTE_ARCHIVE: u8 = 0x20;
/// Bits that the specification reserves. Some systems compare attributes without them.
const ATTRIBUTES_RESERVED: u8 = 0xc0;
/// All of read-only, hidden, system and label together, which no file has.
const ATTRIBUTE_LONG: u8 = 0x0f;
const ATTRIBUTE_LONG_MASK: u8 = 0x3f;

/// A file or a folder as its folder has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderEntry {
    /// Its long name, or the short one as systems show it.
    pub(crate) name: String,
    pub(crate) short: ShortName,
    pub(crate) attributes: u8,
    pub(crate) first_cluster: u32,
    pub(crate) size: u32,
    /// Its slots: those of the long name, and the one of the short name at the end.
    pub(crate) slots: Range<usize>,
    /// Whether the specification allows the short name.
    pub(crate) has_name: bool,
}

impl FolderEntry {
    /// Its long name, or the short one if it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its short name in capitals. Characters outside ASCII are unknown, and replaced.
    #[must_use]
    pub fn short_name(&self) -> String {
        self.short.shown(0).unwrap_or_default()
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.attributes & ATTRIBUTE_FOLDER != 0
    }

    /// Size of a file in bytes. 0 for a folder.
    #[must_use]
    pub fn size(&self) -> u32 {
        if self.is_folder() { 0 } else { self.size }
    }

    /// Whether a part of a path means this entry: its long or its short name, in upper or lower case.
    pub(crate) fn is_named(&self, folded_part: &str) -> bool {
        folded(&self.name) == folded_part || self.short.is_named(folded_part)
    }
}

/// The slots of a folder.
#[derive(Debug)]
pub(crate) struct RawFolder {
    pub(crate) bytes: Vec<u8>,
    location: FolderLocation,
}

/// Where the slots of a folder lie.
#[derive(Debug)]
pub(crate) enum FolderLocation {
    Fixed { sector: u32, slots: u32 },
    Clusters(Vec<u32>),
}

impl FolderLocation {
    /// The root of FAT12 and FAT16. `None` in FAT32, where it is a chain.
    pub(crate) fn fixed_root(geometry: &FatGeometry) -> Option<Self> {
        match geometry.root {
            RootLocation::Fixed { sector, slots } => Some(Self::Fixed { sector, slots }),
            RootLocation::Chain(_) => None,
        }
    }
}

impl RawFolder {
    /// Reads all slots. The place has at most the clusters of the largest folder.
    pub(crate) fn read(
        device: &impl BlockDevice,
        geometry: &FatGeometry,
        location: FolderLocation,
    ) -> Result<Self, FatError> {
        let doing = "read a folder";
        let mut bytes = Vec::new();
        match &location {
            FolderLocation::Fixed { sector, slots } => {
                bytes.resize(*slots as usize * ENTRY_BYTES, 0);
                let read = device.read_at(&mut bytes, geometry.sector_at(*sector));
                read.map_err(FatError::io(doing))?;
            }
            FolderLocation::Clusters(clusters) => {
                let cluster_bytes = geometry.cluster_bytes() as usize;
                // The caller has counted the clusters, so a hostile chain does not decide about the memory.
                bytes.resize(clusters.len() * cluster_bytes, 0);
                for (cluster, out) in clusters.iter().zip(bytes.chunks_exact_mut(cluster_bytes)) {
                    let read = device.read_at(out, geometry.cluster_at(*cluster));
                    read.map_err(FatError::io(doing))?;
                }
            }
        }
        Ok(Self { bytes, location })
    }

    /// How many slots it has, with free ones.
    pub(crate) fn slots(&self) -> usize {
        self.bytes.len() / ENTRY_BYTES
    }

    pub(crate) fn slot(&self, slot: usize) -> &[u8] {
        &self.bytes[slot * ENTRY_BYTES..(slot + 1) * ENTRY_BYTES]
    }

    /// The position of a slot on the device, in bytes.
    pub(crate) fn slot_at(&self, geometry: &FatGeometry, slot: usize) -> u64 {
        let at = slot * ENTRY_BYTES;
        match &self.location {
            FolderLocation::Fixed { sector, .. } => geometry.sector_at(*sector) + at as u64,
            FolderLocation::Clusters(clusters) => {
                let cluster_bytes = geometry.cluster_bytes() as usize;
                let cluster = clusters[at / cluster_bytes];
                geometry.cluster_at(cluster) + (at % cluster_bytes) as u64
            }
        }
    }

    /// Whether a slot is a part of a long name.
    pub(crate) fn is_long_part(&self, slot: usize) -> bool {
        let slot = self.slot(slot);
        slot[0] != FREE_MARK && slot[0] != END_MARK && is_long(slot)
    }

    /// How many slots in use some systems may take for files and others not: labels in another place than the root or
    /// with content, `.` and `..` elsewhere than at the beginning, reserved attributes, and what lies behind the end.
    pub(crate) fn strays(&self, is_root: bool) -> u32 {
        let mut strays = 0;
        let (mut is_behind_end, mut has_label) = (false, false);
        for number in 0..self.slots() {
            let slot = self.slot(number);
            let (first, attributes) = (slot[0], slot[11]);
            is_behind_end |= first == END_MARK;
            if first == END_MARK || first == FREE_MARK {
                continue;
            }
            // Linux reads on behind the end, and EDK2 does not.
            let is_stray = if is_behind_end || attributes & ATTRIBUTES_RESERVED != 0 {
                true
            } else if is_long(slot) {
                false
            } else if attributes & ATTRIBUTE_LABEL != 0 {
                // A label has neither a chain nor a size (FAT specification, `ATTR_VOLUME_ID`).
                let is_plain = attributes & !ATTRIBUTE_ARCHIVE == ATTRIBUTE_LABEL
                    && u16_at(slot, 20) == 0
                    && u16_at(slot, 26) == 0
                    && u32_at(slot, 28) == 0;
                let is_second = std::mem::replace(&mut has_label, true);
                !is_root || is_second || !is_plain
            } else if slot[..SHORT_BYTES] == ShortName::DOT.0 {
                is_root || number != 0
            } else if slot[..SHORT_BYTES] == ShortName::DOT_DOT.0 {
                is_root || number != 1
            } else {
                false
            };
            strays += u32::from(is_stray);
        }
        strays
    }

    /// The entries of the folder.
    pub(crate) fn parse(&self, kind: FatKind) -> ParsedFolder {
        let mut parsed = ParsedFolder::default();
        let mut long: Option<LongNameParts> = None;
        // Slots of long names that wait for the short one.
        let mut waiting = 0;
        for number in 0..self.slots() {
            let slot = self.slot(number);
            match slot[0] {
                // The folder ends here. The bytes behind may be those of a file that had the cluster before.
                END_MARK => break,
                FREE_MARK => parsed.orphans += end_of(&mut long, &mut waiting),
                _ if is_long(slot) => {
                    let with = long.take().and_then(|name| name.with(slot));
                    if with.is_none() {
                        // What came before belongs to no file.
                        parsed.orphans += end_of(&mut long, &mut waiting);
                    }
                    long = with.or_else(|| LongNameParts::begin(slot));
                    waiting += 1;
                }
                _ => parsed.take(slot, number, kind, &mut long, &mut waiting),
            }
        }
        parsed.orphans += end_of(&mut long, &mut waiting);
        parsed
    }
}

/// Forgets a long name without a short one, and returns how many slots it had.
fn end_of(long: &mut Option<LongNameParts>, waiting: &mut u32) -> u32 {
    *long = None;
    std::mem::take(waiting)
}

fn is_long(slot: &[u8]) -> bool {
    slot[11] & ATTRIBUTE_LONG_MASK == ATTRIBUTE_LONG
}

/// What the slots of a folder say.
#[derive(Debug, Default)]
pub(crate) struct ParsedFolder {
    pub(crate) entries: Vec<FolderEntry>,
    /// Slots of long names that belong to no entry.
    pub(crate) orphans: u32,
    /// First clusters of `.` and `..`, if they are the first two slots.
    pub(crate) dots: [Option<u32>; 2],
    pub(crate) label: Option<[u8; SHORT_BYTES]>,
}

impl ParsedFolder {
    /// Takes a slot that is in use and no part of a long name.
    fn take(
        &mut self,
        slot: &[u8],
        number: usize,
        kind: FatKind,
        long: &mut Option<LongNameParts>,
        waiting: &mut u32,
    ) {
        let mut short = [0; SHORT_BYTES];
        short.copy_from_slice(&slot[..SHORT_BYTES]);
        let short = ShortName(short);
        let attributes = slot[11];
        let long_slots = std::mem::take(waiting);
        let long_name = long.take().and_then(|name| name.finish(short));
        if long_name.is_none() {
            self.orphans += long_slots;
        }
        // FAT12 and FAT16 use the upper half for something else.
        let high = match kind {
            FatKind::Fat12 | FatKind::Fat16 => 0,
            FatKind::Fat32 => u32::from(u16_at(slot, 20)) << 16,
        };
        let first_cluster = high | u32::from(u16_at(slot, 26));
        if attributes & ATTRIBUTE_LABEL != 0 {
            self.label.get_or_insert(short.0);
        } else if short == ShortName::DOT || short == ShortName::DOT_DOT {
            // The specification has them in these two slots and nowhere else.
            let expected = [ShortName::DOT, ShortName::DOT_DOT];
            if expected.get(number) == Some(&short) {
                self.dots[number] = Some(first_cluster);
            }
        } else {
            let shown = short.shown(slot[12]);
            let has_name = shown.is_some();
            let first_slot = match &long_name {
                Some(_) => number - long_slots as usize,
                None => number,
            };
            let unreadable = || String::from_utf8_lossy(&short.0).into_owned();
            self.entries.push(FolderEntry {
                name: long_name.unwrap_or_else(|| shown.unwrap_or_else(unreadable)),
                short,
                attributes,
                first_cluster,
                size: u32_at(slot, 28),
                slots: first_slot..number + 1,
                has_name,
            });
        }
    }
}
