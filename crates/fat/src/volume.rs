//! A volume that is open.

use std::io::Read;

use crate::chain::TableCursor;
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::file::FatFile;
use crate::folder::{FolderEntry, FolderLocation, ParsedFolder, RawFolder};
use crate::geometry::{BOOT_BYTES, FatGeometry, RootLocation};
use crate::name::{ShortName, folded, parts_of};

/// A FAT12, FAT16 or FAT32 volume on a device, which has it alone: no system may have it mounted for writing.
///
/// Reading changes nothing, and works on each kind. [`repair`](Self::repair) and what writes files serve FAT32, the kind
/// of an EFI system partition.
#[derive(Debug)]
pub struct FatVolume<D> {
    pub(crate) device: D,
    pub(crate) geometry: FatGeometry,
}

impl<D: BlockDevice> FatVolume<D> {
    /// Opens the volume that begins with the device, and may end before it.
    ///
    /// # Errors
    /// The device cannot be read ([`FatError::Io`]), or its first sector describes no volume that fits it
    /// ([`FatError::NotFat`]).
    pub fn open(device: D) -> Result<Self, FatError> {
        let mut boot = [0; BOOT_BYTES];
        if device.len() < BOOT_BYTES as u64 {
            return Err(FatError::NotFat("the device is shorter than a sector"));
        }
        let read = device.read_at(&mut boot, 0);
        read.map_err(FatError::io("read the boot sector"))?;
        let geometry = FatGeometry::parse(&boot, device.len())?;
        Ok(Self { device, geometry })
    }

    /// The sizes of its parts.
    #[must_use]
    pub fn geometry(&self) -> &FatGeometry {
        &self.geometry
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Gives the device back.
    #[must_use]
    pub fn into_device(self) -> D {
        self.device
    }

    /// The name of the volume in its root folder, without the spaces at its end. `None` if it has none there; the boot
    /// sector may have one.
    ///
    /// # Errors
    /// The root folder cannot be read.
    pub fn label(&self) -> Result<Option<String>, FatError> {
        let parsed = self.parsed_folder(&FoundEntry::Root, "\\")?;
        let label = parsed.label.map(|label| {
            let label = String::from_utf8_lossy(&label).into_owned();
            label.trim_end_matches(' ').to_owned()
        });
        Ok(label)
    }

    /// The files and folders in a folder, in their order there, without `.`, `..` and the volume's name. Parts of a path
    /// are separated by `\` or `/`, and each is a long or a short name in upper or lower case.
    ///
    /// # Errors
    /// The path leads to no folder, or its folders are damaged. Entries that the specification forbids are left out;
    /// [`check`](Self::check) names them.
    pub fn list(&self, path: &str) -> Result<Vec<FolderEntry>, FatError> {
        let found = self.found(path)?;
        if matches!(&found, FoundEntry::Entry(entry) if !entry.is_folder()) {
            return Err(FatError::NotAFolder { path: path.into() });
        }
        let mut entries = self.parsed_folder(&found, path)?.entries;
        // A name with a forbidden byte, such as a slash, could be taken for another path.
        entries.retain(|entry| entry.has_name);
        Ok(entries)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// The path leads to no file, its folders are damaged, or its chain of clusters does not have its size.
    pub fn open_file(&self, path: &str) -> Result<FatFile<'_, D>, FatError> {
        let entry = match self.found(path)? {
            FoundEntry::Entry(entry) if !entry.is_folder() => entry,
            FoundEntry::Root | FoundEntry::Entry(_) => {
                return Err(FatError::NotAFile { path: path.into() });
            }
        };
        let mut table = TableCursor::new(&self.device, &self.geometry);
        let extents = table
            .file(entry.first_cluster, entry.size)?
            .map_err(|damage| FatError::Damaged {
                path: path.into(),
                damage,
            })?;
        Ok(FatFile {
            device: &self.device,
            size: entry.size,
            extents,
            piece: 0,
            taken: 0,
        })
    }

    /// Reads a whole file of at most `limit` bytes into memory.
    ///
    /// # Errors
    /// The errors of [`open_file`](Self::open_file) and of the device, and [`FatError::TooLarge`].
    pub fn read_file(&self, path: &str, limit: u32) -> Result<Vec<u8>, FatError> {
        let mut file = self.open_file(path)?;
        // Before the memory is reserved: the size is what the volume says.
        if file.size() > limit {
            return Err(FatError::TooLarge {
                size: file.size().into(),
                limit: limit.into(),
            });
        }
        let mut content = Vec::with_capacity(file.size() as usize);
        let read = file.read_to_end(&mut content);
        read.map_err(FatError::io("read a file"))?;
        Ok(content)
    }

    /// The root, or the first entry that each part of the path names.
    fn found(&self, path: &str) -> Result<FoundEntry, FatError> {
        let mut found = FoundEntry::Root;
        for part in parts_of(path)? {
            if matches!(&found, FoundEntry::Entry(entry) if !entry.is_folder()) {
                return Err(FatError::NotAFolder { path: path.into() });
            }
            let part = folded(part);
            let mut entries = self.parsed_folder(&found, path)?.entries.into_iter();
            // Firmware and Linux take the first one as well.
            let entry = entries.find(|entry| entry.has_name && entry.is_named(&part));
            let entry = entry.ok_or_else(|| FatError::NotFound { path: path.into() })?;
            found = FoundEntry::Entry(entry);
        }
        Ok(found)
    }

    /// The slots of a folder on a path.
    fn parsed_folder(&self, folder: &FoundEntry, path: &str) -> Result<ParsedFolder, FatError> {
        let first = match (folder, self.geometry.root) {
            (FoundEntry::Entry(entry), _) => Some(entry.first_cluster),
            (FoundEntry::Root, RootLocation::Chain(first)) => Some(first),
            (FoundEntry::Root, RootLocation::Fixed { .. }) => None,
        };
        let location = match (first, FolderLocation::fixed_root(&self.geometry)) {
            (None, Some(location)) => location,
            (first, _) => {
                let mut table = TableCursor::new(&self.device, &self.geometry);
                // Cluster 0 does not exist, and is refused as such.
                let clusters = table.folder(first.unwrap_or(0))?;
                FolderLocation::Clusters(clusters.map_err(|damage| FatError::Damaged {
                    path: path.into(),
                    damage,
                })?)
            }
        };
        let raw = RawFolder::read(&self.device, &self.geometry, location)?;
        Ok(raw.parse(self.geometry.kind))
    }
}

/// Where a path leads.
#[derive(Debug)]
enum FoundEntry {
    Root,
    Entry(FolderEntry),
}

/// The short names of a path that is written, at least one.
pub(crate) fn short_parts(path: &str) -> Result<Vec<ShortName>, FatError> {
    let parts = parts_of(path)?;
    let parts: Option<Vec<ShortName>> = parts
        .iter()
        .map(|part| ShortName::new(&part.to_ascii_uppercase()))
        .collect();
    match parts {
        Some(parts) if !parts.is_empty() => Ok(parts),
        _ => Err(FatError::LongPath { path: path.into() }),
    }
}
