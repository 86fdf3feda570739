//! The sealed data partition: a real LUKS2 header and dm-crypt, without cryptsetup, udev or a library.
//!
//! ```no_run
//! use std::fs::File;
//! use alknet_sealed::{SectorCipher, PartitionContent, NewHeader, VolumeOptions, DmRemoval, SealedPartition};
//!
//! # fn main() -> Result<(), alknet_sealed::SealedError> {
//! # let (bytes, uuid, vault): (u64, uuid::Uuid, &str) = (1 << 30, uuid::Uuid::nil(), "");
//! # let (phrase, recovery): (&[u8], &[u8]) = (b"one", b"two");
//! let disk = File::options().read(true).write(true).open("/dev/vda3").expect("root");
//! let sealed = match SealedPartition::probe(&disk, bytes)? {
//!     PartitionContent::Sealed(_) => SealedPartition::load(disk, bytes)?,
//!     PartitionContent::HalfFormatted => {
//!         let phrases = [phrase, recovery];
//!         let cipher = SectorCipher::for_this_machine();
//!         SealedPartition::format(disk, bytes, &NewHeader { uuid, vault, cipher, phrases: &phrases })?
//!     }
//!     // Only the caller knows whether it is blank.
//!     other => panic!("{other:?}"),
//! };
//! let volume = sealed.open(0, phrase, &VolumeOptions::default())?;
//! println!("mount {}", volume.path().display());
//! volume.close(DmRemoval::Now)?;
//! # Ok(()) }
//! ```
//!
//! This crate knows nothing of vaults: it is handed phrases. The two raw areas of the vault lie in the
//! gap of the header ([`limits`]), and only [`SealedPartition::erase`] touches them. The format is described in
//! `docs/sealed.md`.

mod cipher;
mod disk;
pub mod dm;
mod error;
pub mod limits;
pub mod luks2;
#[cfg(test)]
mod power;
mod sealed;
mod secret;
#[cfg(test)]
mod testing;
mod volume;

pub use cipher::SectorCipher;
pub use disk::BlockStorage;
pub use dm::{DmError, DmRemoval};
pub use error::{HeaderError, SealedError};
pub use luks2::{HeaderCopyId, KeyslotInfo, LuksSegment, NewHeader};
pub use sealed::{
    EraseReport, FormattingPartition, PartitionContent, SealedPartition, SealedSummary,
};
pub use secret::VolumeKey;
pub use volume::{OpenVolume, VolumeOptions, close};
