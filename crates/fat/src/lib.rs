//! FAT volumes: created, read as hostile input, checked, repaired, and written so that a power cut loses no file.
//!
//! ```
//! use alknet_fat::{FatNode, FatVolume, NewFatVolume, RepairRules, ShortName, create};
//!
//! # fn main() -> Result<(), alknet_fat::FatError> {
//! // An EFI system partition in memory. A partition of a disk is a `FilePartition`.
//! let new = NewFatVolume {
//!     hidden_sectors: 2048,
//!     sectors: 270_336,
//!     cluster_sectors: 4,
//!     id: 7,
//!     label: *b"ALKESP     ",
//! };
//! let mut device = vec![0_u8; 270_336 * 512];
//! let folder = ShortName::new("EFI").expect("a short name");
//! create(&mut device, &new, &[FatNode::Folder(folder, Vec::new())])?;
//!
//! let mut volume = FatVolume::open(device)?;
//! let slots = [r"\EFI\ALKNET\A.EFI", r"\EFI\ALKNET\B.EFI"];
//! // Whatever a power cut left behind is repaired before the volume is written.
//! let repaired = volume.repair(&RepairRules { own: &slots, needed: 0, choose: &RepairRules::keep_own })?;
//! assert!(repaired.left.findings.is_empty());
//! volume.replace_file(slots[0], 5, &mut &b"first"[..], &mut |_written| {})?;
//! assert_eq!(volume.read_file(slots[0], 100)?, b"first");
//! # Ok(()) }
//! ```
//!
//! The format is that of Microsoft's *FAT: General Overview of On-Disk Format* (FAT specification), version 1.03 of
//! 2000-12-06, with the long names of its last chapters. Where systems differ from it, the code follows Linux and EDK2,
//! and says so.
//!
//! # What is trusted
//!
//! Nothing that a volume says. [`FatVolume::open`] checks the geometry against the device; every number of a chain and
//! of an entry is checked where it is used. Time and memory have the limits of [`limits`], whatever the bytes are. The
//! reader of files refuses a chain that is shorter or longer than the size of its file.
//!
//! # What a power cut may do
//!
//! A sector reaches the device as a whole or not at all. Between two flushes sectors reach it in any order, or never.
//! With that, [`FatVolume::replace_file`] leaves the file of before or the new one, and clusters that belong to no file
//! at worst, which [`FatVolume::repair`] frees. It never writes into a cluster that a file or a folder has, except for
//! the sector of a folder with the file's entry.
//!
//! The volume must not be mounted meanwhile.

mod boot_files;
#[cfg(test)]
mod boot_files_tests;
mod bytes;
mod chain;
mod check;
mod create;
#[cfg(test)]
mod cut_tests;
mod device;
mod error;
mod file;
mod folder;
mod geometry;
mod head;
pub mod limits;
mod name;
#[cfg(test)]
mod needed_tests;
#[cfg(test)]
mod read_back_tests;
mod repair;
#[cfg(test)]
mod repair_tests;
mod report;
mod scan;
mod table;
#[cfg(test)]
mod testing;
mod uniform;
mod volume;
mod write;
mod writer;

pub use boot_files::BootFiles;
pub use create::{FatNode, NewFatVolume, create, sectors_for};
pub use device::{BlockDevice, FilePartition};
pub use error::FatError;
pub use file::{FatExtent, FatFile};
pub use folder::FolderEntry;
pub use geometry::{FatGeometry, FatKind};
pub use name::ShortName;
pub use repair::{NameChoice, NamedChain, RepairReport, RepairRules};
pub use report::{ChainDamage, EntryDamage, FatFinding, FatReport};
pub use uniform::ListedFile;
pub use volume::FatVolume;
pub use writer::FatFileWriter;
