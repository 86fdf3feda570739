//! The check of the programs in the boot slots: each is read from the disk in pieces, and compared with the hash that the
//! machine keeps of it.

use std::io::ErrorKind;

use alknet_boot_state::{BootPhase, BootRecord, BootSlot};
use alknet_fat::{BlockDevice, FatError};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::UpdateSystem;
use crate::update::disk::{SlotDisk, SlotFile, slot_path};
use crate::update::known_programs::{KnownProgram, KnownPrograms};

/// Bytes of a piece. The boot partition is open, and other parts of PID 1 wait for it, while a piece is read.
pub(crate) const PIECE_BYTES: u64 = 4 << 20;
/// Bytes that are read at a time.
const READ_BYTES: usize = 128 << 10;

/// What a check found in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotFinding {
    pub(crate) slot: BootSlot,
    /// The version that the machine knows there.
    pub(crate) version: Option<String>,
    pub(crate) result: ScrubResult,
}

/// How a slot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScrubResult {
    /// Its program is the one that the machine knows.
    Whole,
    /// Why the program is not that one.
    Damaged(String),
    /// Why it was not read.
    Skipped(String),
    /// Why the disk did not give the program. It may be whole.
    Unreadable(String),
}

/// A slot that was not read to its end.
#[derive(Debug)]
pub(crate) struct SlotScrub {
    expected: KnownProgram,
    /// Where the file begins on the volume, and its size.
    extent: (u64, u64),
    hash: Sha256,
    done: u64,
}

/// What a piece came to.
#[derive(Debug)]
pub(crate) enum ScrubTurn {
    /// The slot has more pieces.
    More(SlotScrub),
    Done(SlotFinding),
}

#[cfg(test)]
impl SlotScrub {
    /// A slot of which nothing was read.
    pub(crate) fn begin_for_tests() -> Self {
        Self {
            expected: KnownProgram::new("1.0.0".parse().expect("a version"), String::new()),
            extent: (0, 0),
            hash: Sha256::new(),
            done: 0,
        }
    }
}

impl UpdateSystem {
    /// Name of the disk with the boot slots, below `/dev`.
    pub(crate) fn disk_name(&self) -> Option<&str> {
        self.partitions
            .as_ref()
            .ok()
            .map(|found| found.disk.as_str())
    }

    /// Reads the next piece of a slot. `begun` is what the last piece of the same slot returned, and `None` begins.
    pub(crate) fn scrub(&self, slot: BootSlot, begun: Option<SlotScrub>) -> ScrubTurn {
        let known = self.known.load();
        match self.open() {
            Ok(mut on) => scrub_piece(&mut on.disk, on.running, slot, &known, begun, PIECE_BYTES),
            Err(refusal) => finding(slot, &known, ScrubResult::Skipped(refusal.text)),
        }
    }
}

/// Reads at most `piece` bytes.
pub(in crate::update) fn scrub_piece<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    running: BootSlot,
    slot: BootSlot,
    known: &KnownPrograms,
    begun: Option<SlotScrub>,
    piece: u64,
) -> ScrubTurn {
    let done = |result| finding(slot, known, result);
    let skipped = match disk.record() {
        Ok(record) => why_skipped(&record, running, slot),
        Err(_) => Some("the boot state record cannot be read"),
    };
    if let Some(why) = skipped {
        return done(ScrubResult::Skipped(why.to_owned()));
    }
    let Some(expected) = known.of_slot(slot) else {
        let why = "the machine has noted no hash of it";
        return done(ScrubResult::Skipped(why.to_owned()));
    };
    match read_piece(disk, slot, expected, begun, piece) {
        Err(error) => done(match is_of_disk(&error) {
            true => ScrubResult::Unreadable(error.to_string()),
            false => ScrubResult::Damaged(error.to_string()),
        }),
        Ok((scrub, false)) => ScrubTurn::More(scrub),
        Ok((scrub, true)) => {
            let is_same = HEXLOWER.encode(&scrub.hash.finalize()) == expected.sha256;
            done(match is_same {
                true => ScrubResult::Whole,
                false => {
                    let why = "its SHA-256 is another one than when the machine verified it";
                    ScrubResult::Damaged(why.to_owned())
                }
            })
        }
    }
}

/// Whether the disk did not answer, or with an error. A file system that leads behind its end is damaged.
fn is_of_disk(error: &FatError) -> bool {
    matches!(error, FatError::Io { source, .. } if source.kind() != ErrorKind::UnexpectedEof)
}

/// Why a slot is left alone.
fn why_skipped(record: &BootRecord, running: BootSlot, slot: BootSlot) -> Option<&'static str> {
    let is_good = record.good() == slot;
    match record.phase() {
        _ if record.trial() == Some(slot) => Some("its version is on trial"),
        // A slot that is being written has no version, either.
        BootPhase::Idle if !is_good && slot != running => Some("it has no version"),
        BootPhase::Failed if !is_good && slot != running => {
            Some("its version failed, and does not start again")
        }
        _ => None,
    }
}

/// Returns the slot after this piece, and whether that was the last one.
fn read_piece<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
    slot: BootSlot,
    expected: &KnownProgram,
    begun: Option<SlotScrub>,
    piece: u64,
) -> Result<(SlotScrub, bool), FatError> {
    let volume = disk.volume()?;
    let extent = volume.open_file(&slot_path(slot))?;
    let first = extent.extents().first().map_or(0, |extent| extent.at);
    let extent = (first, u64::from(extent.size()));
    // An update may have written the slot since the last piece.
    let begun = begun.filter(|begun| begun.expected == *expected && begun.extent == extent);
    let mut scrub = begun.unwrap_or_else(|| SlotScrub {
        expected: expected.clone(),
        extent,
        hash: Sha256::new(),
        done: 0,
    });
    let file = SlotFile::open(&volume, &slot_path(slot))?;
    let end = file.len().min(scrub.done.saturating_add(piece));
    let mut buffer = vec![0; READ_BYTES];
    while scrub.done < end {
        let left = usize::try_from(end - scrub.done).unwrap_or(usize::MAX);
        let bytes = &mut buffer[..left.min(READ_BYTES)];
        let read = file.read_at(bytes, scrub.done);
        read.map_err(|source| FatError::Io {
            doing: "read the program",
            source,
        })?;
        scrub.hash.update(&*bytes);
        scrub.done += bytes.len() as u64;
    }
    let is_last = scrub.done == file.len();
    Ok((scrub, is_last))
}

fn finding(slot: BootSlot, known: &KnownPrograms, result: ScrubResult) -> ScrubTurn {
    let version = known.of_slot(slot).map(|known| known.version.to_string());
    ScrubTurn::Done(SlotFinding {
        slot,
        version,
        result,
    })
}
