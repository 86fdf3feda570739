//! Small volumes, damage, and a device that records what is written, for tests.

use std::collections::BTreeMap;
use std::io;

use crate::bytes::u32_at;
use crate::create::{NewGeometry, write};
use crate::device::BlockDevice;
use crate::geometry::{BOOT_BYTES, FatGeometry};
use crate::scan::VolumeScan;
use crate::{FatNode, FatVolume, NewFatVolume};

/// Sectors of a small volume, of 512 bytes: six for each table and 656 clusters of one sector.
pub(crate) const SMALL_SECTORS: u32 = 700;
const SECTOR_BYTES: usize = 512;

/// A small volume of FAT32 with these files.
pub(crate) fn small_image(root: &[FatNode<'_>]) -> Vec<u8> {
    let volume = NewFatVolume {
        hidden_sectors: 0,
        sectors: SMALL_SECTORS,
        cluster_sectors: 1,
        id: 1,
        label: *b"SMALL      ",
    };
    let geometry = NewGeometry::of_any_size(&volume);
    let mut image = vec![0; SMALL_SECTORS as usize * SECTOR_BYTES];
    write(&mut image, &volume, root, &geometry).expect("it fits");
    image
}

pub(crate) fn small_boot_sector() -> [u8; BOOT_BYTES] {
    let mut boot = [0; BOOT_BYTES];
    boot.copy_from_slice(&small_image(&[])[..BOOT_BYTES]);
    boot
}

/// Bytes of a file, which differ from those of files with other seeds.
pub(crate) fn content(seed: usize, bytes: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(101)) as u8;
    (0..bytes).map(byte).collect()
}

/// Each file of a volume by its path, with its bytes.
pub(crate) fn contents(image: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let volume = FatVolume::open(image.to_vec()).expect("a volume");
    let mut files = BTreeMap::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in volume.list(&folder).expect("a folder") {
            let path = format!("{folder}\\{}", entry.name());
            if entry.is_folder() {
                folders.push(path);
            } else {
                let bytes = volume.read_file(&path, u32::MAX).expect("a whole file");
                files.insert(path, bytes);
            }
        }
    }
    files
}

pub(crate) fn geometry(image: &[u8]) -> FatGeometry {
    let volume = FatVolume::open(image.to_vec()).expect("a volume");
    volume.geometry().clone()
}

/// The first cluster of a file or a folder.
pub(crate) fn first_cluster(image: &[u8], path: &str) -> u32 {
    with_entry(image, path, |scan, index| scan.entries[index].first_cluster)
}

/// The position of the slot with the short name of a file or a folder.
pub(crate) fn slot_at(image: &[u8], path: &str) -> usize {
    with_entry(image, path, |scan, index| {
        let slots = &scan.entries[index].slots_at;
        *slots.last().expect("a slot") as usize
    })
}

fn with_entry<T>(image: &[u8], path: &str, get: impl Fn(&VolumeScan, usize) -> T) -> T {
    let scan = VolumeScan::read(&image.to_vec(), &geometry(image)).expect("a volume");
    let index = scan.resolve(path);
    get(&scan, *index.first().unwrap_or_else(|| panic!("no {path}")))
}

/// Changes an entry in one copy of the table.
pub(crate) fn set_link_in(image: &mut [u8], copy: u32, cluster: u32, value: u32) {
    let at = geometry(image).table_at(copy) as usize + cluster as usize * 4;
    image[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Changes an entry in both copies of the table.
pub(crate) fn set_link(image: &mut [u8], cluster: u32, value: u32) {
    set_link_in(image, 0, cluster, value);
    set_link_in(image, 1, cluster, value);
}

/// An entry of the first copy of the table.
pub(crate) fn link(image: &[u8], cluster: u32) -> u32 {
    let at = geometry(image).table_at(0) as usize + cluster as usize * 4;
    u32_at(image, at)
}

/// What a device was asked to do.
#[derive(Clone, Debug)]
pub(crate) enum DeviceStep {
    Write(u64, Vec<u8>),
    Flush,
}

/// A device in memory that records each write and each flush.
#[derive(Debug)]
pub(crate) struct RecordingDevice {
    pub(crate) bytes: Vec<u8>,
    pub(crate) steps: Vec<DeviceStep>,
}

impl RecordingDevice {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            steps: Vec::new(),
        }
    }
}

impl BlockDevice for RecordingDevice {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.bytes.read_at(buffer, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.steps.push(DeviceStep::Write(at, bytes.to_vec()));
        self.bytes.write_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.steps.push(DeviceStep::Flush);
        Ok(())
    }

    fn len(&self) -> u64 {
        BlockDevice::len(&self.bytes)
    }
}

/// Each state in which a power cut during these steps may leave a device: everything before a flush, and of what follows
/// it any of the sectors, up to the next flush.
pub(crate) fn states_after_cuts(base: &[u8], steps: &[DeviceStep], each: &mut dyn FnMut(Vec<u8>)) {
    let mut state = base.to_vec();
    let epochs = steps.split(|step| matches!(step, DeviceStep::Flush));
    for epoch in epochs.map(sectors_of) {
        for subset in subsets(epoch.len()) {
            let mut cut = state.clone();
            let kept = epoch.iter().zip(&subset).filter(|(_, is_kept)| **is_kept);
            for ((at, bytes), _) in kept {
                cut[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            each(cut);
        }
        for (at, bytes) in &epoch {
            state[*at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    each(state);
}

/// The sectors of these writes: the position and the bytes of each.
fn sectors_of(steps: &[DeviceStep]) -> Vec<(usize, Vec<u8>)> {
    let mut sectors = Vec::new();
    for step in steps {
        if let DeviceStep::Write(at, bytes) = step {
            assert!(
                at.is_multiple_of(SECTOR_BYTES as u64),
                "within a sector: {at}"
            );
            assert!(
                bytes.len().is_multiple_of(SECTOR_BYTES),
                "a part of a sector"
            );
            let starts = (*at as usize..).step_by(SECTOR_BYTES);
            let pieces = bytes.chunks(SECTOR_BYTES).map(<[u8]>::to_vec);
            sectors.extend(starts.zip(pieces));
        }
    }
    sectors
}

/// Which of `count` sectors reach the device: all choices for few, and for many those that a queue or a cache makes
/// likely, and some others.
fn subsets(count: usize) -> Vec<Vec<bool>> {
    const ALL_CHOICES_MAX: usize = 6;
    const OTHERS: usize = 12;

    if count <= ALL_CHOICES_MAX {
        let choice = |mask: usize| (0..count).map(|at| (mask >> at) & 1 == 1).collect();
        return (0..(1_usize << count)).map(choice).collect();
    }
    let mut subsets: Vec<Vec<bool>> = Vec::new();
    for number in 0..=count {
        subsets.push((0..count).map(|at| at < number).collect());
        subsets.push((0..count).map(|at| at != number).collect());
        subsets.push((0..count).map(|at| at == number).collect());
    }
    // A generator of Knuth's, so that each run has the same ones.
    let mut random = 1_u64;
    for _ in 0..OTHERS {
        let mut one = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            random >> 63 == 1
        };
        subsets.push((0..count).map(|_| one()).collect());
    }
    subsets
}
