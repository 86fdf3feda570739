//! The UEFI loader of a disk with two boot slots: reads the boot state record, writes down what it is about to do, and
//! starts a slot.
//!
//! Everything that is decided is in this library, behind two traits, and is tested without firmware. `src/bin/loader.rs`
//! implements the traits with UEFI. `docs/boot.md` says why the project has a loader of its own.

#![no_std]
#![forbid(unsafe_code)]

mod run;
mod store;

pub use run::{
    LoaderMachine, PREFIX, RESTART_AFTER, RESTART_WATCHDOG, SLOT_WATCHDOG, SlotStartError, run,
};
pub use store::{BLOCK_BYTES_MAX, RecordBlocks, RecordDisk, RecordIoError, load, store};
