//! The sealed data partition: a real LUKS2 header and dm-crypt, without cryptsetup, udev or a library.
//!
//! ```no_run
//! use std::fs::File;
//! use alknet_sealed::{Cipher, Content, NewHeader, OpenOptions, Removal, Sealed};
//!
//! # fn main() -> Result<(), alknet_sealed::SealedError> {
//! # let (bytes, uuid, vault): (u64, uuid::Uuid, &str) = (1 << 30, uuid::Uuid::nil(), "");
//! # let (phrase, recovery): (&[u8], &[u8]) = (b"one", b"two");
//! let disk = File::options().read(true).write(true).open("/dev/vda3").expect("root");
//! let sealed = match Sealed::probe(&disk, bytes)? {
//!     Content::Sealed(_) => Sealed::load(disk, bytes)?,
//!     Content::HalfFormatted => {
//!         let phrases = [phrase, recovery];
//!         let cipher = Cipher::for_this_machine();
//!         Sealed::format(disk, bytes, &NewHeader { uuid, vault, cipher, phrases: &phrases })?
//!     }
//!     // Whoever calls knows whether it is blank.
//!     other => panic!("{other:?}"),
//! };
//! let volume = sealed.open(0, phrase, &OpenOptions::default())?;
//! println!("mount {}", volume.path().display());
//! volume.close(Removal::Now)?;
//! # Ok(()) }
//! ```
//!
//! This crate knows nothing of vaults: it is handed phrases. The two raw areas of the vault lie in the
//! gap of the header ([`limits`]), and only [`Sealed::erase`] touches them. The format is described in
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

pub use cipher::Cipher;
pub use disk::Disk;
pub use dm::{DmError, Removal};
pub use error::{HeaderError, SealedError};
pub use luks2::{CopyId, NewHeader, Segment, Slot};
pub use sealed::{Content, Erased, Preparing, Sealed, Summary};
pub use secret::VolumeKey;
pub use volume::{OpenOptions, Volume, close};
