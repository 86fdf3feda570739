//! Whether the partition table of a disk is the one of this project's layout, in each copy from which firmware may read
//! it (UEFI 2.10 sections 5.2 and 5.3).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use alknet_boot_state::grub_archive;
use alknet_fat::FilePartition;
use crc::{CRC_32_ISO_HDLC, Crc};

use crate::disk::{
    BACKUP_LBAS, BIOS_FIRST_LBA, BIOS_LAST_LBA, DATA_FIRST_LBA, ESP_BYTES, ESP_FIRST_LBA,
    LBA_BYTES, TYPE_BIOS, TYPE_DATA, TYPE_ESP, system_volume,
};
use crate::disk_end::end_difference;
use crate::ids::BuildIds;

const SUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// What a header of revision 1.0 begins with.
const MAGIC: &[u8; 12] = b"EFI PART\0\0\x01\0";
/// Bytes of a header that its checksum covers.
const HEADER_BYTES: usize = 92;
/// Entries of the table, and bytes of each.
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
/// Place of the partition's identity in an entry.
const ENTRY_ID_AT: usize = 16;
/// Blocks of all entries.
const ENTRIES_LBAS: u64 = (ENTRIES * ENTRY_BYTES) as u64 / LBA_BYTES;
/// Places of a header's fields. Behind the checksum and behind the header, the block is reserved and has zeros.
const SUM_AT: usize = 16;
const RESERVED_AT: usize = 20;
const OWN_LBA_AT: usize = 24;
const OTHER_LBA_AT: usize = 32;
const FIRST_USABLE_AT: usize = 40;
const LAST_USABLE_AT: usize = 48;
const DISK_ID_AT: usize = 56;
const ENTRIES_LBA_AT: usize = 72;
const ENTRIES_SUM_AT: usize = 88;
/// The data partition of an image ends less than so many bytes before the image does.
const TAIL_BYTES_MAX: u64 = 1 << 20;
/// The first block behind the code for a BIOS, without the number of blocks in the one record: a disk identity of zero,
/// and the record of a protective table.
const PROTECTIVE: [u8; 18] = [
    0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0,
];
const PROTECTIVE_AT: usize = 440;
/// The number of blocks in that record.
const COUNT_AT: usize = PROTECTIVE_AT + PROTECTIVE.len();
/// Bytes of the disk and of each partition in which a volume for firmware would have its marks.
const BEGIN_BYTES: usize = 64 << 10;
/// First byte of a volume of FAT, exFAT or NTFS, as EDK2 takes it for one.
const JUMPS: [u8; 3] = [0xe9, 0xeb, 0x49];
/// Where the descriptors of ISO 9660 and UDF begin, bytes of each, and their marks (ECMA-119 and ECMA-167).
const OPTICAL_AT: usize = 32 << 10;
const OPTICAL_BYTES: usize = 2048;
const OPTICAL_MARKS: [&[u8; 5]; 4] = [b"CD001", b"BEA01", b"NSR02", b"NSR03"];
/// Where HFS and its successors have their marks, and where ext4 and its predecessors have theirs. Firmware of some
/// machines reads these.
const HFS_AT: usize = 1024;
const HFS_MARKS: [&[u8; 2]; 3] = [b"BD", b"H+", b"HX"];
const EXT_AT: usize = 1080;
const EXT_MARK: &[u8; 2] = b"\x53\xef";
/// Where the other three records of that table are.
const OTHER_RECORDS: std::ops::Range<usize> = 462..510;

/// Sizes by which a table is judged, in blocks.
#[derive(Clone, Copy, Debug)]
struct DiskBlocks {
    image: u64,
    disk: u64,
}

/// One copy of the table, whose checksums hold.
#[derive(Debug)]
struct TableCopy {
    header: Vec<u8>,
    entries: Vec<u8>,
}

/// Compares the partition table of a disk, and its backup, with the layout of an image. The identities of disk and
/// partitions may be others, and the last partition may have grown. Compares also the beginning of each partition: none but
/// the EFI system partition may have a volume that firmware reads, and no partition may have others within it. No
/// block at the end of the disk may begin as another table, see [`end_difference`]. Returns what differs.
///
/// The backup lies at the end of the disk, or of the image as long as no machine was started from the disk.
///
/// # Errors
/// The disk cannot be read.
pub fn table_difference(
    disk: &File,
    image_bytes: u64,
    disk_bytes: u64,
) -> io::Result<Option<String>> {
    let blocks = DiskBlocks {
        image: image_bytes / LBA_BYTES,
        disk: disk_bytes / LBA_BYTES,
    };
    if blocks.disk.min(blocks.image) <= DATA_FIRST_LBA + BACKUP_LBAS {
        return Ok(Some("it is shorter than the layout".to_owned()));
    }
    let begin = read_begin(disk, 0)?;
    if !is_protective(&begin[..LBA_BYTES as usize], blocks) {
        return Ok(Some("the first block behind the boot code".to_owned()));
    }
    // In a CD drive a block has 2048 bytes, so firmware finds no partition table of ours there and looks for these.
    if is_optical(&begin) {
        return Ok(Some(
            "first 64 KiB: a machine may start a program from them as from a CD".to_owned(),
        ));
    }
    let primary = match TableCopy::read(disk, 1, 2)? {
        Ok(copy) => copy,
        Err(what) => return Ok(Some(format!("partition table: {what}"))),
    };
    let last = primary.number(OTHER_LBA_AT);
    if ![blocks.disk - 1, blocks.image - 1].contains(&last) {
        return Ok(Some("partition table: place of its backup".to_owned()));
    }
    let backup = match TableCopy::read(disk, last, last - ENTRIES_LBAS)? {
        Ok(copy) => copy,
        Err(what) => return Ok(Some(format!("backup of the partition table: {what}"))),
    };
    if backup.number(OTHER_LBA_AT) != 1 || !primary.is_same(&backup) {
        return Ok(Some(
            "backup of the partition table: it is another table".to_owned(),
        ));
    }
    if let Some(what) = primary.difference(blocks, last) {
        return Ok(Some(what));
    }
    match volume_difference(disk)? {
        Some(what) => Ok(Some(what)),
        None => end_difference(disk, disk_bytes),
    }
}

/// Firmware starts programs from each volume that it can read, whatever the type of its partition, and looks for more
/// partitions within one. Returns a place beside the files of the EFI system partition where it could find either.
fn volume_difference(disk: &File) -> io::Result<Option<String>> {
    // A tar archive, and a partition that is encrypted or ext4.
    let loader = ("partition 1 (alk-bios)", read_begin(disk, BIOS_FIRST_LBA)?);
    let data = ("data partition", read_begin(disk, DATA_FIRST_LBA)?);
    if let Some((name, _)) = [&loader, &data].into_iter().find(|it| is_volume(&it.1)) {
        let text = format!("{name}: firmware may start a program from it");
        return Ok(Some(text));
    }
    let (name, begin) = loader;
    match bios_difference(&begin) {
        Some(what) => Ok(Some(format!("{name}: {what}"))),
        None => esp_difference(disk),
    }
}

/// Whether firmware takes a partition that begins so for a volume, or for a disk with partitions of its own.
fn is_volume(begin: &[u8]) -> bool {
    let is_fat = JUMPS.contains(&begin[0]) || begin[510..512] == [0x55, 0xaa];
    let is_table = begin[512..].starts_with(&MAGIC[..8]);
    is_fat || is_table || is_optical(begin)
}

/// What differs in the partition of the loader for a BIOS, which is erased or begins with the archive of the build. Nothing
/// changes the header of that archive.
fn bios_difference(begin: &[u8]) -> Option<&'static str> {
    let [(_, header), ..] = grub_archive();
    let first = &begin[..LBA_BYTES as usize];
    let is_erased = first.iter().all(|byte| *byte == 0);
    let is_hfs = HFS_MARKS
        .iter()
        .any(|mark| begin[HFS_AT..].starts_with(*mark));
    if !is_erased && *first != header {
        Some("its first block is neither erased nor the header of the archive with the loader")
    } else if is_hfs || begin[EXT_AT..].starts_with(EXT_MARK) {
        Some("firmware that reads HFS or ext4 may start a program from it")
    } else {
        None
    }
}

/// Firmware looks for a partition table within the EFI system partition before it takes it for a volume of FAT. Returns
/// where it could find one.
fn esp_difference(disk: &File) -> io::Result<Option<String>> {
    let name = "EFI system partition";
    let partition = FilePartition::new(disk, ESP_FIRST_LBA * LBA_BYTES, ESP_BYTES);
    // Whatever its serial number is.
    if let Some(what) = system_volume(0).head_difference(&partition)? {
        return Ok(Some(format!("{name}: {what}")));
    }
    // Behind these sectors is the table of clusters, where clusters of no file may have any bytes.
    let is_other = is_optical(&read_begin(disk, ESP_FIRST_LBA)?);
    Ok(is_other.then(|| format!("{name}: a machine may start a program from it as from a CD")))
}

fn read_begin(disk: &File, first_lba: u64) -> io::Result<Vec<u8>> {
    let mut begin = vec![0; BEGIN_BYTES];
    disk.read_exact_at(&mut begin, first_lba * LBA_BYTES)?;
    Ok(begin)
}

/// Whether a disk or partition that begins so has a volume of ISO 9660 or UDF.
fn is_optical(begin: &[u8]) -> bool {
    let descriptors = begin[OPTICAL_AT..].chunks_exact(OPTICAL_BYTES);
    let mut marks = descriptors.map(|descriptor| &descriptor[1..6]);
    marks.any(|mark| OPTICAL_MARKS.iter().any(|it| mark == *it))
}

/// Whether the first block has a protective table, whose record has all blocks of the image, or of the disk once a machine
/// has grown the last partition.
fn is_protective(first: &[u8], blocks: DiskBlocks) -> bool {
    let count = u64::from(u32_at(first, COUNT_AT));
    // A record has no more of a larger disk.
    let of_disk = (blocks.disk - 1).min(u64::from(u32::MAX));
    [blocks.image - 1, of_disk].contains(&count)
        && first[PROTECTIVE_AT..COUNT_AT] == PROTECTIVE
        && first[OTHER_RECORDS].iter().all(|byte| *byte == 0)
        && first[OTHER_RECORDS.end..] == [0x55, 0xaa]
}

impl TableCopy {
    /// Reads the copy at a block, with its entries where the layout has them. The inner error says what is wrong.
    fn read(disk: &File, at: u64, entries_at: u64) -> io::Result<Result<Self, &'static str>> {
        let mut header = vec![0; LBA_BYTES as usize];
        disk.read_exact_at(&mut header, at * LBA_BYTES)?;
        let mut copy = Self {
            header,
            entries: vec![0; ENTRIES * ENTRY_BYTES],
        };
        if !copy.header.starts_with(MAGIC) {
            return Ok(Err("it does not exist"));
        }
        let mut summed = copy.header[..HEADER_BYTES].to_vec();
        summed[SUM_AT..SUM_AT + 4].fill(0);
        let is_sound = copy.small(12) == HEADER_BYTES as u32
            && copy.small(SUM_AT) == SUM.checksum(&summed)
            && copy.number(OWN_LBA_AT) == at;
        if !is_sound {
            return Ok(Err("its checksum"));
        }
        let mut reserved = copy.header[RESERVED_AT..OWN_LBA_AT]
            .iter()
            .chain(&copy.header[HEADER_BYTES..]);
        if reserved.any(|byte| *byte != 0) {
            return Ok(Err("its reserved bytes, which are not zeros"));
        }
        let has_place = copy.number(ENTRIES_LBA_AT) == entries_at
            && copy.small(80) == ENTRIES as u32
            && copy.small(84) == ENTRY_BYTES as u32;
        if !has_place {
            return Ok(Err("place or number of its entries"));
        }
        disk.read_exact_at(&mut copy.entries, entries_at * LBA_BYTES)?;
        match copy.small(ENTRIES_SUM_AT) == SUM.checksum(&copy.entries) {
            true => Ok(Ok(copy)),
            false => Ok(Err("the checksum of its entries")),
        }
    }

    /// Whether a restored copy would be this table.
    fn is_same(&self, other: &Self) -> bool {
        let fields = [FIRST_USABLE_AT, LAST_USABLE_AT];
        fields
            .iter()
            .all(|at| self.number(*at) == other.number(*at))
            && self.header[DISK_ID_AT..DISK_ID_AT + 16] == other.header[DISK_ID_AT..DISK_ID_AT + 16]
            && self.entries == other.entries
    }

    /// What differs from the layout, with the backup in block `last`.
    fn difference(&self, blocks: DiskBlocks, last: u64) -> Option<String> {
        let usable_end = last - BACKUP_LBAS;
        if self.number(FIRST_USABLE_AT) != BIOS_FIRST_LBA
            || self.number(LAST_USABLE_AT) != usable_end
        {
            return Some("partition table: its usable blocks".to_owned());
        }
        let layout = [
            ("alk-bios", TYPE_BIOS, BIOS_FIRST_LBA, Some(BIOS_LAST_LBA)),
            ("alk-esp", TYPE_ESP, ESP_FIRST_LBA, Some(DATA_FIRST_LBA - 1)),
            ("alk-data", TYPE_DATA, DATA_FIRST_LBA, None),
        ];
        for (number, (name, kind, begin, end)) in layout.into_iter().enumerate() {
            let entry = &self.entries[number * ENTRY_BYTES..][..ENTRY_BYTES];
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            let is_right = match end {
                Some(end) => last == end,
                // The machine only makes it larger.
                None => {
                    let least = blocks.image.saturating_sub(TAIL_BYTES_MAX / LBA_BYTES);
                    last > first && last >= least && last <= usable_end
                }
            };
            let number = number + 1;
            if first != begin || !is_right {
                return Some(format!("place of partition {number}"));
            }
            // No attribute: one of them makes firmware ignore a partition.
            if entry[..16] != kind.to_bytes_le() || u64_at(entry, 48) != 0 {
                return Some(format!("type of partition {number}"));
            }
            if entry[56..] != name_field(name) {
                return Some(format!("name of partition {number}"));
            }
        }
        let others = &self.entries[layout.len() * ENTRY_BYTES..];
        match others.iter().all(|byte| *byte == 0) {
            true => None,
            false => Some("partition table: it has more than three partitions".to_owned()),
        }
    }

    fn number(&self, at: usize) -> u64 {
        u64_at(&self.header, at)
    }

    fn small(&self, at: usize) -> u32 {
        u32_at(&self.header, at)
    }
}

/// A partition's name as an entry has it: UTF-16, padded with zeros.
fn name_field(name: &str) -> [u8; 72] {
    let mut field = [0; 72];
    for (place, unit) in field.chunks_exact_mut(2).zip(name.encode_utf16()) {
        place.copy_from_slice(&unit.to_le_bytes());
    }
    field
}

/// Bytes of the disk whose beginning this is, by the place of its table's backup. `None` without a table.
#[must_use]
pub fn disk_bytes_by_head(head: &[u8]) -> Option<u64> {
    let header = head.get(LBA_BYTES as usize..)?.get(..HEADER_BYTES)?;
    if !header.starts_with(MAGIC) {
        return None;
    }
    u64_at(header, OTHER_LBA_AT)
        .checked_add(1)?
        .checked_mul(LBA_BYTES)
}

/// The first byte behind the data partition, which is the last one. Expects a table in which [`table_difference`] finds
/// nothing.
///
/// # Errors
/// The disk cannot be read, or the end of the partition is no place on a disk.
pub fn data_partition_end(disk: &File) -> io::Result<u64> {
    let mut entry = [0; ENTRY_BYTES];
    disk.read_exact_at(&mut entry, 2 * LBA_BYTES + 2 * ENTRY_BYTES as u64)?;
    let blocks = u64_at(&entry, 40).checked_add(1);
    blocks
        .and_then(|blocks| blocks.checked_mul(LBA_BYTES))
        .ok_or_else(|| io::Error::other("the data partition ends behind every disk"))
}

/// Whether a disk has the identity that each disk of a build has (version 5, RFC 9562). The first start of a machine
/// replaces it.
///
/// # Errors
/// The disk cannot be read.
pub fn has_image_identity(disk: &File) -> io::Result<bool> {
    let mut id = [0; 16];
    disk.read_exact_at(&mut id, LBA_BYTES + DISK_ID_AT as u64)?;
    Ok(is_version_5(&id))
}

/// The first three fields are little endian, so the version is the high half of byte 7.
const fn is_version_5(id: &[u8; 16]) -> bool {
    id[7] >> 4 == 5
}

/// Whose identity a disk or a partition has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdentityOwner {
    /// Each disk of this build has it.
    Image,
    /// A first start, or another program, made it for this disk.
    Disk,
    /// Each disk of another build has it.
    OtherImage,
}

/// Compares the identities (GUIDs) of a disk and its partitions with those of an image of this build, or of a disk that a
/// machine was started from: a first start replaces those of the disk and of the data partition at once, and no machine
/// replaces the others. Returns what differs. Expects a table in which [`table_difference`] finds nothing.
///
/// # Errors
/// The disk cannot be read.
pub fn identity_difference(disk: &File, version: &str, git: &str) -> io::Result<Option<String>> {
    let ids = BuildIds::new(version, git);
    let owner = |role: &str, at: u64| {
        let mut id = [0; 16];
        disk.read_exact_at(&mut id, at)?;
        io::Result::Ok(match id {
            id if id == ids.uuid(role).to_bytes_le() => IdentityOwner::Image,
            id if is_version_5(&id) => IdentityOwner::OtherImage,
            _ => IdentityOwner::Disk,
        })
    };
    let entry_at = |number: u64| {
        let entries = 2 * LBA_BYTES + (number - 1) * ENTRY_BYTES as u64;
        entries + ENTRY_ID_AT as u64
    };
    for (number, name) in [(1, "alk-bios"), (2, "alk-esp")] {
        if owner(name, entry_at(number))? != IdentityOwner::Image {
            let text =
                format!("identity of partition {number}: no machine replaces that of the image");
            return Ok(Some(text));
        }
    }
    let of_disk = owner("disk", LBA_BYTES + DISK_ID_AT as u64)?;
    let of_data = owner("alk-data", entry_at(3))?;
    let is_left = of_disk == of_data && of_disk != IdentityOwner::OtherImage;
    let text = "identities of the disk and of partition 3: a first start replaces both, and gives them to no other disk";
    Ok((!is_left).then(|| text.to_owned()))
}

/// Whether the beginning of a disk has a table with this project's EFI system partition.
#[must_use]
pub fn head_has_layout(head: &[u8]) -> bool {
    let entry = 2 * LBA_BYTES as usize + ENTRY_BYTES;
    let entry = head.get(entry..entry + ENTRY_BYTES);
    disk_bytes_by_head(head).is_some()
        && entry.is_some_and(|entry| {
            entry[..16] == TYPE_ESP.to_bytes_le() && u64_at(entry, 32) == ESP_FIRST_LBA
        })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut digits = [0; 4];
    digits.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(digits)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut digits = [0; 8];
    digits.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{self, DISK_BYTES};

    /// Beginnings of what firmware may start a program from, each with its place in a partition.
    const VOLUME_MARKS: [(u64, &[u8]); 5] = [
        (0, b"\xeb\x58\x90"),
        (510, b"\x55\xaa"),
        (512, b"EFI PART"),
        (32_769, b"CD001"),
        (32_769 + 2048, b"NSR03"),
    ];

    fn written() -> File {
        disk::tests::written(b"program", "a")
    }

    #[test]
    fn the_table_that_is_written_is_the_layout_and_its_head_says_so() {
        let disk = written();
        let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
        assert_eq!(found, None);
        let mut head = vec![0; 1 << 20];
        disk.read_exact_at(&mut head, 0).expect("readable");
        assert_eq!(disk_bytes_by_head(&head), Some(DISK_BYTES));
        assert!(head_has_layout(&head));
        assert_eq!(disk_bytes_by_head(&head[..600]), None);
        head[512] = 0;
        assert!(!head_has_layout(&head));
    }

    #[test]
    fn a_volume_for_firmware_in_the_partition_of_the_bios_loader_is_named() {
        for (at, bytes) in VOLUME_MARKS {
            let disk = written();
            let put = disk.write_all_at(bytes, BIOS_FIRST_LBA * LBA_BYTES + at);
            put.expect("writable");
            let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
            let found = found.unwrap_or_else(|| panic!("{bytes:?} is not looked at"));
            let is_named = found.starts_with("partition 1 (alk-bios): ");
            assert!(is_named, "{bytes:?}: {found}");
        }
    }

    /// The attack: a volume of HFS+ or ext4, or anything else in the place of the archive's header.
    #[test]
    fn the_partition_of_the_bios_loader_begins_with_the_archive_of_the_build_or_is_erased() {
        let erased = [0; LBA_BYTES as usize];
        let disk = written();
        disk.write_all_at(&erased, BIOS_FIRST_LBA * LBA_BYTES)
            .expect("writable");
        let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
        assert_eq!(found, None);
        for (at, bytes, expected) in [
            (0, &b"XFSB"[..], "first block"),
            (32, b"NXSB", "first block"),
            (500, b"x", "first block"),
            (1024, b"H+\0\x04", "HFS or ext4"),
            (1024, b"HX\0\x05", "HFS or ext4"),
            (1024 + 56, b"\x53\xef", "HFS or ext4"),
        ] {
            let disk = written();
            disk.write_all_at(bytes, BIOS_FIRST_LBA * LBA_BYTES + at)
                .expect("writable");
            let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
            let found = found.unwrap_or_else(|| panic!("{bytes:?} is not looked at"));
            let is_named =
                found.starts_with("partition 1 (alk-bios): ") && found.contains(expected);
            assert!(is_named, "{bytes:?}: {found}");
        }
    }

    /// The attack: bytes of either copy of the table that no checksum covers, or whose checksum is made again.
    #[test]
    fn bytes_that_are_reserved_in_a_header_are_named() {
        let last = DISK_BYTES / LBA_BYTES - 1;
        for (block, copy) in [
            (1, "partition table: "),
            (last, "backup of the partition table: "),
        ] {
            for at in [RESERVED_AT, RESERVED_AT + 3, HEADER_BYTES, 511] {
                let disk = written();
                let mut header = [0; LBA_BYTES as usize];
                let place = block * LBA_BYTES;
                disk.read_exact_at(&mut header, place).expect("readable");
                header[at] = b'x';
                header[SUM_AT..SUM_AT + 4].fill(0);
                let sum = SUM.checksum(&header[..HEADER_BYTES]);
                header[SUM_AT..SUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
                disk.write_all_at(&header, place).expect("writable");
                let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
                let found = found.unwrap_or_else(|| panic!("byte {at} of {copy} is not read"));
                assert!(
                    found.starts_with(copy) && found.contains("reserved"),
                    "{at}: {found}"
                );
            }
        }
    }

    #[test]
    fn the_last_partition_ends_before_the_backup() {
        let end = data_partition_end(&written()).expect("readable");
        assert_eq!(end, DISK_BYTES - BACKUP_LBAS * LBA_BYTES);
    }

    #[test]
    fn a_table_within_the_efi_system_partition_is_named() {
        // The record of a partition, the header of a table over FSInfo, and the descriptor of a CD in the table of
        // clusters, which begins 16 KiB into the partition.
        for (at, bytes, expected) in [
            (450, &b"\x0c"[..], "byte 450 of the boot sector (sector 0)"),
            (512, b"EFI PART", "byte 0 of FSInfo (sector 1)"),
            (32_769, b"CD001", "as from a CD"),
            (32_769, b"BEA01", "as from a CD"),
        ] {
            let disk = written();
            disk.write_all_at(bytes, ESP_FIRST_LBA * LBA_BYTES + at)
                .expect("writable");
            let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
            let found = found.unwrap_or_else(|| panic!("{bytes:?} is not looked at"));
            let is_named = found.starts_with("EFI system partition: ") && found.contains(expected);
            assert!(is_named, "{bytes:?}: {found}");
        }
    }

    #[test]
    fn a_volume_for_firmware_in_the_data_partition_is_named() {
        let data = DATA_FIRST_LBA * LBA_BYTES;
        for (at, bytes) in VOLUME_MARKS {
            let disk = written();
            disk.write_all_at(bytes, data + at).expect("writable");
            let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
            let found = found.unwrap_or_else(|| panic!("{bytes:?} is not looked at"));
            assert!(found.contains("data partition"), "{bytes:?}: {found}");
        }
        // The beginning of an encrypted partition, and the superblock of ext4.
        let disk = written();
        disk.write_all_at(b"LUKS\xba\xbe\0\x02", data)
            .expect("writable");
        disk.write_all_at(&[0x53, 0xef], data + 1024 + 56)
            .expect("writable");
        let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
        assert_eq!(found, None);
    }

    #[test]
    fn a_medium_that_is_also_the_disk_is_named() {
        let disk = written();
        disk.write_all_at(b"CD001", 32_769).expect("writable");
        let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
        let found = found.expect("it is not looked at");
        assert!(found.contains("as from a CD"), "{found}");
    }

    #[test]
    fn other_records_in_the_first_block_are_named() {
        let disk = written();
        let count = |count: u32| {
            let written = disk.write_all_at(&count.to_le_bytes(), COUNT_AT as u64);
            written.expect("writable");
        };
        // A machine writes the number of the disk's blocks there, and nothing else.
        for (disk_bytes, blocks) in [
            (DISK_BYTES + (1 << 20), DISK_BYTES / LBA_BYTES + 2047),
            (4 << 40, u64::from(u32::MAX)),
        ] {
            disk.set_len(disk_bytes).expect("sparse");
            let found = table_difference(&disk, DISK_BYTES, disk_bytes).expect("readable");
            assert_eq!(found, None, "as on the image");
            count(u32::try_from(blocks).expect("32 bits"));
            let found = table_difference(&disk, DISK_BYTES, disk_bytes).expect("readable");
            assert_eq!(found, None, "{blocks}");
            let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
            let found = found.expect("a number of no disk");
            assert!(found.contains("first block"), "{found}");
            count(u32::try_from(DISK_BYTES / LBA_BYTES - 1).expect("32 bits"));
        }
        for at in [446, 450, 458, 462, 511] {
            let disk = written();
            disk.write_all_at(&[7], at).expect("writable");
            let found = table_difference(&disk, DISK_BYTES, DISK_BYTES).expect("readable");
            let found = found.unwrap_or_else(|| panic!("byte {at} is not looked at"));
            assert!(found.contains("first block"), "{at}: {found}");
        }
    }
}
