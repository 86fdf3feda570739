//! The boot state record of a disk with two boot slots, and the state machine of updates.
//!
//! The record is a GRUB environment block of 1,024 bytes at [`RECORD_OFFSET`] of the disk, outside of every file
//! system. The loader for UEFI, GRUB on a BIOS and PID 1 read and write the same record. `docs/boot.md` has the format,
//! the states and the hazards.
//!
//! Beside the record lies the [`BootNote`], in which a version on trial writes how far it came.
//!
//! This crate decides and does no I/O: each transition is a function from a record to a new record, and
//! [`loader_choice`] is what a loader does at power-on. It allocates nothing, so that the loader can use it.
//!
//! ```
//! use alknet_boot_state::{BootPhase, BootRecord, BootSlot, BootSlots, TRIES, loader_choice};
//!
//! // An updater has written a new version into slot b, and wants it to be tried.
//! let record = BootRecord::new(BootSlot::A).vacate()?.stage()?.arm()?;
//! assert_eq!(record.phase(), BootPhase::Pending);
//!
//! // The loader counts the try before it starts the slot.
//! let choice = loader_choice(Some(&record), BootSlots::ALL);
//! assert_eq!(choice.start, Some(BootSlot::B));
//! let record = choice.write.expect("a try is counted");
//! assert_eq!((record.phase(), record.tries()), (BootPhase::Trial, TRIES - 1));
//!
//! // The new version is well, so it is the good one from now on.
//! let record = record.confirm(BootSlot::B)?;
//! assert_eq!((record.good(), record.phase()), (BootSlot::B, BootPhase::Good));
//! assert_eq!(BootRecord::parse(&record.encode()), Ok(record));
//! # Ok::<(), alknet_boot_state::BootRefusal>(())
//! ```

#![no_std]
#![forbid(unsafe_code)]

mod before;
mod choice;
mod error;
mod grub;
mod note;
mod record;
mod slot;
mod text;
mod transition;

pub use before::ProgramNotes;
pub use choice::{BootChoice, loader_choice};
pub use error::{BootNoteError, BootRecordError, BootRefusal};
pub use grub::{
    GRUB_CONFIG_BYTES, GRUB_CONFIG_FILE, GRUB_CONFIG_LBA, GRUB_CORE_BYTES_MAX, GRUB_CORE_LBA,
    GRUB_SCRIPT, GRUB_STATE_FILE, grub_archive,
};
pub use note::{
    BootNote, NOTE_BYTES, NOTE_CODES_BYTES_MAX, NOTE_HALF_BYTES, NOTE_LBA, NOTE_LINE_BYTES_MAX,
    NOTE_NAME_BYTES_MAX, NOTE_OFFSET, NOTE_VERSION_BYTES_MAX, NoteArea, NoteText,
};
pub use record::{
    BootRecord, FOREIGN_BYTES_MAX, RECORD_BYTES, RECORD_LBA, RECORD_OFFSET, SECTOR_BYTES,
    VARIABLES_BYTES_MAX,
};
pub use slot::{BootSlot, BootSlots};
pub use transition::{BootPhase, TRIES};
