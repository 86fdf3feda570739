//! Writes an image to a disk, checks a file or a disk against its manifest, and signs.
//!
//! [`DiskTarget`] finds out what a path is, and refuses a disk that the computer uses. [`flash`] writes to it, and reads
//! back what the disk has. [`minisign`] makes and checks signatures in the form of the program minisign, and
//! [`authenticode`] signs EFI programs
//! and checks their signatures. Nothing here asks a person or uses a network.
//!
//! ```no_run
//! use alknet_image_write::{DiskTarget, FlashOptions, ImageSource, SystemFolders, flash};
//!
//! let target = DiskTarget::disk("/dev/sdb".as_ref(), &SystemFolders::default())?;
//! assert_eq!(target.facts().serial.as_deref(), Some("S4EVNX0N"));
//! let file = std::fs::File::open("alknet_0.1.0.raw.zst").expect("the file exists");
//! let mut source = ImageSource::new(Box::new(file), None)?;
//! flash(&mut source, &target, &FlashOptions::default(), &mut |_| {})?;
//! # Ok::<(), alknet_image_write::FlashError>(())
//! ```

pub mod authenticode;
mod content;
mod disk_use;
mod error;
mod facts;
mod flash;
pub mod minisign;
mod other_form;
mod read_back;
mod signed_programs;
mod source;
mod sys;
mod target;
mod verify;

pub use error::FlashError;
pub use facts::{DiskFacts, SystemFolders};
pub use flash::{FlashOptions, FlashReport, FlashStep, PlacedFile, flash};
pub use signed_programs::{SignedPrograms, SignedProgramsError, verify_programs};
pub use source::ImageSource;
pub use target::DiskTarget;
pub use verify::{
    CheckedPart, ImageCheck, VerifyError, is_configuration, verify_disk, verify_file,
};
