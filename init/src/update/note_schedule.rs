//! Keeps the boot note of a version on trial: in place, at most once in a while, and at once where something panics.

use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use alknet_boot_state::{BootNote, NoteText};

use super::direct::DirectDevice;
use super::disk::write_note;
use crate::control::MEMORY_SHORT;

/// Shortest time between two writes of what changed, ms.
const WRITE_EVERY_MS: u64 = 1_000;
/// Most writes because of panics in one start: a part that panics all the time must not wear a disk out.
const PANIC_WRITES_MAX: u32 = 8;

/// The note of this start, if it is a trial. The panic hook finds it here.
static NOTE: Mutex<Option<TrialNote>> = Mutex::new(None);

#[derive(Debug)]
struct TrialNote {
    /// The device of `alk-bios`.
    bios: PathBuf,
    note: BootNote,
    panics: u32,
}

/// The note as the loop keeps it: what it has to say, and when it may be written next.
#[derive(Debug, Default)]
pub(crate) struct NoteSchedule {
    /// The last note that was written or is being written.
    sent: Option<BootNote>,
    /// When the next write may begin, in ms after the kernel's start.
    next: u64,
    is_writing: bool,
}

impl NoteSchedule {
    /// The schedule of a note that the disk has.
    pub(crate) fn new(note: BootNote) -> Self {
        Self {
            sent: Some(note),
            next: 0,
            is_writing: false,
        }
    }

    /// The note to write now, if `note` says something else than the disk and the last write was long enough ago.
    /// [`written`](Self::written) has to follow.
    pub(crate) fn take_due(&mut self, note: &BootNote, now: u64) -> Option<BootNote> {
        if self.deadline(note).is_none_or(|due| now < due) {
            return None;
        }
        self.is_writing = true;
        self.next = now + WRITE_EVERY_MS;
        self.sent = Some(*note);
        Some(*note)
    }

    /// The write ended. One that failed is tried again.
    pub(crate) fn written(&mut self, is_ok: bool) {
        self.is_writing = false;
        if !is_ok {
            self.sent = None;
        }
    }

    /// Whether the disk has this note.
    pub(crate) fn is_written(&self, note: &BootNote) -> bool {
        !self.is_writing && self.sent.as_ref() == Some(note)
    }

    /// When to write, if `note` waits for its turn.
    pub(crate) fn deadline(&self, note: &BootNote) -> Option<u64> {
        if self.is_writing || self.is_written(note) {
            return None;
        }
        let is_urgent = self.sent.is_some_and(|sent| is_urgent(&sent, note));
        Some(if is_urgent { 0 } else { self.next })
    }
}

/// From now on panics are written to this note.
pub(super) fn arm(bios: PathBuf, note: BootNote) {
    *lock_note() = Some(TrialNote {
        bios,
        note,
        panics: 0,
    });
}

/// The trial is over.
pub(super) fn disarm() {
    *lock_note() = None;
}

/// Writes the note to the disk, with what panics have added to it. Blocks on the disk.
pub(super) fn write(note: &BootNote) -> Result<(), String> {
    let mut kept = lock_note();
    match kept.as_mut() {
        Some(kept) => match kept.take(note) {
            true => kept.write(),
            false => Ok(()),
        },
        None => Ok(()),
    }
}

/// Whether `note` has news after which the machine may not get as far as the next write: PID 1 restarts the machine, its
/// node ended, as the kernel ends it where memory is full, or memory ran short. The supervisor's pauses keep these writes
/// few.
fn is_urgent(sent: &BootNote, note: &BootNote) -> bool {
    let is_short = |note: &BootNote| note.problems().any(|code| code == MEMORY_SHORT);
    let is_other = (sent.reason, sent.node_end) != (note.reason, note.node_end);
    is_other || (is_short(note) && !is_short(sent))
}

impl TrialNote {
    /// Returns whether `note` is to be written. Each write has a thread of its own, so that an older note may come
    /// after the one with the reason for which the machine is about to restart.
    fn take(&mut self, note: &BootNote) -> bool {
        if note.reason.as_str().is_empty() && !self.note.reason.as_str().is_empty() {
            return false;
        }
        let panic = self.note.panic;
        self.note = *note;
        self.note.panic = panic;
        true
    }

    fn write(&self) -> Result<(), String> {
        let mut bios = DirectDevice::open(&self.bios, false).map_err(|error| error.to_string())?;
        write_note(&mut bios, &self.note).map_err(|error| error.to_string())
    }
}

/// Notes a panic of any part of PID 1, at once: the machine may not get further. Blocks on the disk, for a version on
/// trial only.
pub(crate) fn note_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string);
    note_location(&place.unwrap_or_else(|| "an unknown place".to_owned()));
}

/// Like `note_panic`, for the reason for which PID 1 cannot go on.
pub(crate) fn note_location(place: &str) {
    // The thread that panics may have the lock, and would wait for itself.
    let mut kept = match NOTE.try_lock() {
        Ok(kept) => kept,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some(kept) = kept.as_mut()
        && kept.panics < PANIC_WRITES_MAX
    {
        kept.panics += 1;
        kept.note.panic = NoteText::new(place);
        if let Err(error) = kept.write() {
            tracing::debug!(%error, "the boot note is not written");
        }
    }
}

fn lock_note() -> MutexGuard<'static, Option<TrialNote>> {
    // The value is changed as a whole.
    NOTE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use alknet_boot_state::BootSlot;

    use super::*;

    fn note(stage: &str) -> BootNote {
        let mut note = BootNote::new(BootSlot::B);
        note.stage = NoteText::new(stage);
        note
    }

    #[test]
    fn the_reason_outlives_an_older_note_that_comes_after_it() {
        let mut kept = TrialNote {
            bios: PathBuf::new(),
            note: note("data"),
            panics: 0,
        };
        let mut last = note("ready");
        last.reason = NoteText::new("it waited for the vault");
        assert!(kept.take(&note("ready")));
        assert!(kept.take(&last));
        assert!(!kept.take(&note("ready")), "it began before");
        assert_eq!(kept.note, last);
        last.stage = NoteText::new("stopped");
        assert!(kept.take(&last));
        assert_eq!(kept.note, last);
    }

    #[test]
    fn what_changed_is_written_once_and_not_too_often() {
        let mut schedule = NoteSchedule::new(note("init"));
        assert_eq!(schedule.take_due(&note("init"), 0), None);
        assert_eq!(schedule.take_due(&note("data"), 10), Some(note("data")));
        assert_eq!(
            schedule.take_due(&note("ready"), 5_000),
            None,
            "a write is under way"
        );
        schedule.written(true);
        assert_eq!(schedule.deadline(&note("data")), None);
        assert_eq!(schedule.take_due(&note("ready"), 1_009), None);
        assert_eq!(schedule.deadline(&note("ready")), Some(1_010));
        assert_eq!(
            schedule.take_due(&note("ready"), 1_010),
            Some(note("ready"))
        );
        schedule.written(false);
        assert_eq!(
            schedule.take_due(&note("ready"), 2_010),
            Some(note("ready"))
        );
    }

    #[test]
    fn the_end_of_the_node_and_short_memory_are_written_at_once() {
        let mut schedule = NoteSchedule::new(note("ready"));
        let mut last = note("ready");
        last.add_problem("vault-locked");
        assert_eq!(schedule.take_due(&last, 10), Some(last));
        schedule.written(true);
        last.add_problem("data-full");
        assert_eq!(schedule.take_due(&last, 20), None);
        last.add_problem(MEMORY_SHORT);
        assert_eq!(schedule.deadline(&last), Some(0));
        assert_eq!(schedule.take_due(&last, 20), Some(last));
        last.node_end = NoteText::new("killed by SIGKILL");
        assert_eq!(schedule.take_due(&last, 30), None, "a write is under way");
        schedule.written(true);
        assert_eq!(schedule.take_due(&last, 30), Some(last));
        // A write that failed is tried again with the pause, so a disk that refuses writes is not asked all the time.
        schedule.written(false);
        assert_eq!(schedule.take_due(&last, 40), None);
        assert_eq!(schedule.take_due(&last, 1_030), Some(last));
    }
}
