//! The opened data: a mapping in the kernel.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::cipher::SectorCipher;
use crate::dm::{self, CryptTable, DeviceMapper, DmError, DmRemoval, DmStatus, LoadedKey};
use crate::error::SealedError;
use crate::luks2::LuksSegment;
use crate::secret::VolumeKey;

/// Name of the mapping.
const NAME: &str = "alknet-data";
/// Unit in which device mapper counts, in bytes.
const UNIT: u64 = 512;

/// Options of the mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Name of the mapping.
    pub name: String,
    /// Passes deletions in the file system on to the device. An attacker who sees the device then
    /// knows which blocks are in use.
    pub discards: bool,
    /// Decrypts in the context that completes the read, instead of a kernel thread.
    pub no_read_workqueue: bool,
    /// Encrypts in the context that begins the write, instead of a kernel thread.
    pub no_write_workqueue: bool,
    /// Refuses writes.
    pub read_only: bool,
    /// Folder for the device node, on a system without devtmpfs.
    pub nodes: Option<PathBuf>,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            name: NAME.to_owned(),
            discards: false,
            no_read_workqueue: false,
            no_write_workqueue: false,
            read_only: false,
            nodes: None,
        }
    }
}

impl VolumeOptions {
    fn words(&self, segment: &LuksSegment) -> Vec<String> {
        let mut words = Vec::new();
        for (wanted, word) in [
            (self.discards, "allow_discards"),
            (self.no_read_workqueue, "no_read_workqueue"),
            (self.no_write_workqueue, "no_write_workqueue"),
        ] {
            if wanted {
                words.push(word.to_owned());
            }
        }
        // `iv_large_sectors` is never used: LUKS2 numbers sectors in units of 512 bytes.
        if u64::from(segment.sector) != UNIT {
            words.push(format!("sector_size:{}", segment.sector));
        }
        words
    }
}

/// An opened partition. Dropping it leaves the mapping open: the data outlive the process that
/// opened them.
#[derive(Debug)]
pub struct OpenVolume {
    path: PathBuf,
    device: (u32, u32),
    bytes: u64,
    cipher: SectorCipher,
    options: VolumeOptions,
}

impl OpenVolume {
    /// The block device with the data.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major and minor number of the device.
    #[must_use]
    pub const fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Bytes of the data.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Cipher of the data.
    #[must_use]
    pub const fn cipher(&self) -> SectorCipher {
        self.cipher
    }

    /// Name of the mapping.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Closes the mapping, and the kernel forgets the volume key. Returns whether that has
    /// happened. A deferred close happens when the last process has closed the data.
    pub fn close(self, removal: DmRemoval) -> Result<bool, SealedError> {
        let gone = close(self.name(), removal)?;
        if self.options.nodes.is_some() {
            fs::remove_file(&self.path).map_err(SealedError::io("remove the node of"))?;
        }
        Ok(gone)
    }

    /// The kernel's state of the mapping.
    pub fn status(&self) -> Result<DmStatus, SealedError> {
        Ok(DeviceMapper::open()?.status(self.name())?)
    }

    pub(crate) fn grow(
        &mut self,
        disk: &File,
        bytes: u64,
        segment: &LuksSegment,
        key: &VolumeKey,
    ) -> Result<bool, SealedError> {
        let grown = mapped_bytes(bytes, segment)?;
        if grown <= self.bytes {
            return Ok(false);
        }
        let control = DeviceMapper::open()?;
        let loaded = LoadedKey::new(key)?;
        let table = table(disk, grown, segment, &loaded, &self.options)?;
        control.run(self.name(), &table)?;
        loaded.unlink()?;
        self.bytes = grown;
        Ok(true)
    }
}

/// Closes the mapping of this name, even if another process opened it.
pub fn close(name: &str, removal: DmRemoval) -> Result<bool, SealedError> {
    Ok(DeviceMapper::open()?.remove(name, removal)?)
}

/// Opens the data on `disk`.
pub(crate) fn map(
    disk: &File,
    bytes: u64,
    uuid: &str,
    segment: &LuksSegment,
    key: &VolumeKey,
    options: &VolumeOptions,
) -> Result<OpenVolume, SealedError> {
    let length = mapped_bytes(bytes, segment)?;
    let control = DeviceMapper::open()?;
    // The form is that of cryptsetup, which finds the partition's header by it.
    let uuid = format!("CRYPT-LUKS2-{}-", uuid.replace('-', ""));
    not_mapped(&control, &uuid)?;
    let uuid = format!("{uuid}{}", options.name);
    control.create(&options.name, &uuid)?;
    let begun = MappingGuard {
        control: &control,
        name: &options.name,
        armed: true,
    };
    let loaded = LoadedKey::new(key)?;
    let table = table(disk, length, segment, &loaded, options)?;
    let device = control.run(&options.name, &table)?.device;
    loaded.unlink()?;
    let path = node(device, options)?;
    begun.finish();
    Ok(OpenVolume {
        path,
        device,
        bytes: length,
        cipher: segment.cipher,
        options: options.clone(),
    })
}

/// Refuses a partition that is mapped already: the kernel allows a second mapping, and the two
/// would not see each other's writes.
fn not_mapped(control: &DeviceMapper, uuid: &str) -> Result<(), SealedError> {
    for listed in control.list()? {
        match control.status(&listed.name) {
            Ok(status) if status.uuid.starts_with(uuid) => {
                return Err(DmError::Exists(listed.name).into());
            }
            // The mapping was closed after it was listed.
            Ok(_) | Err(DmError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes a mapping on drop, unless `finish` was called.
struct MappingGuard<'a> {
    control: &'a DeviceMapper,
    name: &'a str,
    armed: bool,
}

impl MappingGuard<'_> {
    fn finish(mut self) {
        self.armed = false;
    }
}

impl Drop for MappingGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            // The caller gets the error that led to the removal.
            drop(self.control.remove(self.name, DmRemoval::Deferred));
        }
    }
}

/// Bytes of data on a partition of `bytes` bytes.
fn mapped_bytes(bytes: u64, segment: &LuksSegment) -> Result<u64, SealedError> {
    let room = bytes.checked_sub(segment.offset);
    let room = room.ok_or(SealedError::TooSmall(bytes))?;
    let length = segment.length.unwrap_or(room);
    if length > room {
        return Err(SealedError::Unsupported(
            "its data are longer than the partition",
        ));
    }
    let unit = u64::from(segment.sector);
    match length / unit * unit {
        0 => Err(SealedError::TooSmall(bytes)),
        length => Ok(length),
    }
}

fn table(
    disk: &File,
    length: u64,
    segment: &LuksSegment,
    key: &LoadedKey,
    options: &VolumeOptions,
) -> Result<CryptTable, SealedError> {
    let metadata = disk.metadata().map_err(SealedError::io("look at"))?;
    if !metadata.file_type().is_block_device() {
        return Err(SealedError::NotABlockDevice);
    }
    Ok(CryptTable {
        cipher: segment.cipher.name().to_owned(),
        key: key.reference(),
        tweak: segment.tweak,
        device: (libc::major(metadata.rdev()), libc::minor(metadata.rdev())),
        offset: segment.offset / UNIT,
        sectors: length / UNIT,
        options: options.words(segment),
        read_only: options.read_only,
    })
}

/// The block device of a mapping.
fn node(device: (u32, u32), options: &VolumeOptions) -> Result<PathBuf, SealedError> {
    if let Some(folder) = &options.nodes {
        let path = folder.join(&options.name);
        dm::make_node(&path, device).map_err(SealedError::io("make a node for"))?;
        return Ok(path);
    }
    let path = PathBuf::from(format!("/dev/dm-{}", device.1));
    if !path.exists() {
        return Err(SealedError::NoNode(path));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::DATA_AT;

    fn segment() -> LuksSegment {
        LuksSegment {
            offset: DATA_AT,
            length: None,
            tweak: 0,
            cipher: SectorCipher::AesXts,
            sector: 4096,
        }
    }

    #[test]
    fn only_whole_sectors_of_the_partition_are_mapped() {
        let of = |bytes| mapped_bytes(bytes, &segment());
        assert!(matches!(of(DATA_AT - 1), Err(SealedError::TooSmall(_))));
        assert!(matches!(of(DATA_AT + 4095), Err(SealedError::TooSmall(_))));
        assert_eq!(of(DATA_AT + 4096).expect("one sector"), 4096);
        assert_eq!(of(DATA_AT + 8191).expect("one sector"), 4096);
        let fixed = LuksSegment {
            length: Some(8192),
            ..segment()
        };
        assert_eq!(mapped_bytes(DATA_AT + 9000, &fixed).expect("two"), 8192);
        assert!(matches!(
            mapped_bytes(DATA_AT + 4096, &fixed),
            Err(SealedError::Unsupported(_))
        ));
    }

    #[test]
    fn options_are_only_those_asked_for() {
        let mut options = VolumeOptions::default();
        assert_eq!(options.words(&segment()), ["sector_size:4096"]);
        options.discards = true;
        options.no_read_workqueue = true;
        options.no_write_workqueue = true;
        let all = [
            "allow_discards",
            "no_read_workqueue",
            "no_write_workqueue",
            "sector_size:4096",
        ];
        assert_eq!(options.words(&segment()), all);
        let small = LuksSegment {
            sector: 512,
            ..segment()
        };
        assert!(VolumeOptions::default().words(&small).is_empty());
    }

    #[test]
    fn a_file_is_no_block_device() {
        let file = tempfile::tempfile().expect("a file");
        let key = VolumeKey::random(64).expect("random numbers");
        let loaded = LoadedKey::new(&key).expect("a kernel with keyrings");
        let refused = table(&file, 4096, &segment(), &loaded, &VolumeOptions::default());
        assert!(matches!(refused, Err(SealedError::NotABlockDevice)));
    }
}
