//! What a loader does at power-on.

use crate::record::{BootRecord, OtherSlot};
use crate::slot::{BootSlot, BootSlots};

/// A loader's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootChoice {
    /// The slot to start. `None` if neither slot has a program.
    pub start: Option<BootSlot>,
    /// The record to write, flush and read back before the slot is started.
    pub write: Option<BootRecord>,
    /// The slot to start instead if that write fails: a version on trial never starts uncounted while there is a good
    /// one.
    pub start_unwritten: Option<BootSlot>,
}

/// Decides which slot a loader starts.
///
/// `record` is `None` if it cannot be read. The loader then acts by [`BootRecord::FALLBACK`] and writes nothing, because
/// it does not know what it would overwrite.
///
/// `present` is the set of slots with a program. If a slot's program cannot be loaded or started, the loader takes that
/// slot out of the set and asks again, with the record as it is by then.
#[must_use]
pub fn loader_choice(record: Option<&BootRecord>, present: BootSlots) -> BootChoice {
    let Some(record) = record else {
        let start = present.prefer(BootRecord::FALLBACK.good());
        return BootChoice {
            start,
            write: None,
            start_unwritten: start,
        };
    };
    let mut next = *record;
    let mut start = present.prefer(record.good());
    let start_unwritten = start;
    if let OtherSlot::Trial { tries } = record.other {
        let trial = record.good().other();
        match tries.checked_sub(1).filter(|_| present.contains(trial)) {
            Some(left) => {
                next.other = OtherSlot::Trial { tries: left };
                start = Some(trial);
            }
            // It had all its tries, or there is nothing to try.
            None => next.other = OtherSlot::Failed,
        }
    }
    // Where no slot can be started, the record stays as it is: the programs may be back at the next power-on.
    if start.is_none() {
        next = *record;
    } else {
        next.booted = start;
    }
    BootChoice {
        start,
        // A record that says so already is not written again, which spares the disk.
        write: (next != *record).then_some(next),
        start_unwritten,
    }
}
