//! Records the events of a vault while a command runs.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use alknet_vault::Observer;
use alknet_vault::audit::{AuditEvent, AuditRecord, BootId, SlotName, UnwrittenEvents};
use alknet_vault::slots::{KeySlot, LoadedCopies, SlotType};

/// The events that wait to be written to the log.
#[derive(Clone)]
pub(crate) struct AuditRecorder {
    pending: Arc<Mutex<UnwrittenEvents>>,
    boot: BootId,
}

impl AuditRecorder {
    pub(crate) fn new() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let boot = boot.and_then(|boot| boot.trim().parse().ok());
        let unknown = || "unknown".parse().expect("a plain name");
        Self {
            pending: Arc::default(),
            boot: boot.unwrap_or_else(unknown),
        }
    }

    pub(crate) fn record(&self, event: AuditEvent) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let t_ms = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(0);
        let record = AuditRecord::new(t_ms, self.boot.clone(), event);
        self.lock().push(record);
    }

    /// Records that an attempt at the first slot of that type failed.
    pub(crate) fn failed(&self, found: &LoadedCopies, kind: SlotType) {
        let slot = found.newest.slots().iter().find(|slot| slot.kind() == kind);
        if let Some(slot) = slot {
            self.record(AuditEvent::UnlockFailed(name_of(slot)));
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, UnwrittenEvents> {
        self.pending
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Observer for AuditRecorder {
    fn happened(&self, event: &AuditEvent) {
        self.record(event.clone());
    }
}

pub(crate) fn name_of(slot: &KeySlot) -> SlotName {
    SlotName {
        kind: slot.kind(),
        id: slot.id(),
    }
}
