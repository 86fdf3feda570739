//! What happened to the vault, until the node writes it down: PID 1 opens the vault before there is
//! a place for its log, and the node alone writes that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_vault::audit::{BootId, Event, Record};

/// Most events kept; the oldest, which tell how it began.
const EVENTS_MAX: usize = 1_000;

/// Events that nobody has written yet.
#[derive(Debug)]
pub(crate) struct Events {
    boot: BootId,
    waiting: Mutex<Vec<Record>>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            boot: boot_id(),
            waiting: Mutex::default(),
        }
    }
}

impl Events {
    pub(crate) fn add(&self, event: Event) {
        let mut waiting = self.waiting();
        if waiting.len() < EVENTS_MAX {
            waiting.push(Record::new(now_ms(), self.boot.clone(), event));
        }
    }

    /// All of them, as the node reads them, and none is left.
    pub(crate) fn take(&self) -> Vec<String> {
        let records = std::mem::take(&mut *self.waiting());
        // None has a text longer than a label or the name of a slot.
        let texts = records.iter().filter_map(|record| record.to_json().ok());
        texts.collect()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Record>> {
        // A list is whole after any panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// The kernel's name of this boot.
fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let known = text.unwrap_or_default().trim().parse();
    let known = known.or_else(|_| "unknown".parse());
    known.unwrap_or_else(|_| unreachable!("a plain name is one"))
}
