//! The open sessions, and what each identity has staged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::WriteSessionId;
use super::state::WriteSessionState;
use crate::error::{QuotaResource, StoreError, StoreObject};
use crate::limits::{SESSIONS_MAX, SESSIONS_PER_IDENTITY_MAX, SESSIONS_SHARE_DIVISOR};

/// A session, and who has opened it. Its writes come one after the other.
#[derive(Debug)]
pub(super) struct WriteSessionSlot {
    pub(super) identity: String,
    /// Time of the last call, in milliseconds.
    pub(super) touched_ms: AtomicU64,
    /// `None` once the session is over.
    pub(super) state: Mutex<Option<WriteSessionState>>,
}

impl WriteSessionSlot {
    /// A panic of another write leaves a state that a commit still checks against its hash.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<WriteSessionState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct IdentityUse {
    sessions: usize,
    staged: u64,
}

/// All open sessions.
#[derive(Debug)]
pub(super) struct SessionRegistry {
    tables: Mutex<RegistryTables>,
    staged_max: u64,
}

#[derive(Debug, Default)]
struct RegistryTables {
    slots: HashMap<WriteSessionId, Arc<WriteSessionSlot>>,
    identities: HashMap<String, IdentityUse>,
}

impl SessionRegistry {
    pub(super) fn new(staged_max: u64) -> Self {
        Self {
            tables: Mutex::default(),
            staged_max,
        }
    }

    /// Counts a session that is being opened, and refuses one too many.
    pub(super) fn begin(&self, identity: &str, declared: u64) -> Result<(), StoreError> {
        let mut tables = self.lock();
        let open: usize = tables.identities.values().map(|it| it.sessions).sum();
        let staged_max = self.staged_max;
        let used = tables.identities.get(identity).copied().unwrap_or_default();
        // Fewer for each, the more are open: a few identities must not take those of all others.
        let share = SESSIONS_MAX.saturating_sub(open) / SESSIONS_SHARE_DIVISOR;
        let most = share.clamp(1, SESSIONS_PER_IDENTITY_MAX);
        if used.sessions >= most {
            return Err(StoreError::QuotaExceeded {
                resource: QuotaResource::OpenSessions,
                limit: most as u64,
                used: used.sessions as u64,
            });
        }
        // Behind the limit of the identity, which names a reason that the identity can do something about.
        if open >= SESSIONS_MAX {
            return Err(StoreError::Busy("too many write sessions are open"));
        }
        // The declared bytes are not counted yet: an identity that declares and never writes takes no room.
        if used.staged.saturating_add(declared) > staged_max {
            return Err(exceeded(staged_max, used.staged));
        }
        let entry = tables.identities.entry(identity.to_owned()).or_default();
        entry.sessions += 1;
        Ok(())
    }

    pub(super) fn insert(&self, id: WriteSessionId, slot: WriteSessionSlot) {
        self.lock().slots.insert(id, Arc::new(slot));
    }

    /// The session of an identity. Another identity gets the error of a session that does not exist.
    pub(super) fn find(
        &self,
        id: WriteSessionId,
        identity: &str,
        now_ms: u64,
    ) -> Result<Arc<WriteSessionSlot>, StoreError> {
        let slot = self.lock().slots.get(&id).cloned();
        let slot = slot.filter(|slot| slot.identity == identity);
        let slot = slot.ok_or(StoreError::NotFound(StoreObject::Session))?;
        slot.touched_ms.store(now_ms, Ordering::Relaxed);
        Ok(slot)
    }

    pub(super) fn is_open(&self, id: WriteSessionId) -> bool {
        self.lock().slots.contains_key(&id)
    }

    /// Sessions without a call since this time.
    pub(super) fn idle_since(&self, ms: u64) -> Vec<Arc<WriteSessionSlot>> {
        let tables = self.lock();
        let idle = tables.slots.values();
        let idle = idle.filter(|slot| slot.touched_ms.load(Ordering::Relaxed) <= ms);
        idle.cloned().collect()
    }

    /// Counts bytes that an identity is about to stage.
    pub(super) fn charge(&self, identity: &str, bytes: u64) -> Result<(), StoreError> {
        let mut tables = self.lock();
        let staged_max = self.staged_max;
        let entry = tables.identities.entry(identity.to_owned()).or_default();
        if entry.staged.saturating_add(bytes) > staged_max {
            return Err(exceeded(staged_max, entry.staged));
        }
        entry.staged += bytes;
        Ok(())
    }

    /// Gives back bytes of an identity.
    pub(super) fn release(&self, identity: &str, bytes: u64) {
        if let Some(entry) = self.lock().identities.get_mut(identity) {
            entry.staged = entry.staged.saturating_sub(bytes);
        }
    }

    /// Ends the count of a session, with the bytes that it has staged.
    pub(super) fn end(&self, id: WriteSessionId, identity: &str, bytes: u64) {
        let mut tables = self.lock();
        tables.slots.remove(&id);
        if let Some(entry) = tables.identities.get_mut(identity) {
            entry.sessions = entry.sessions.saturating_sub(1);
            entry.staged = entry.staged.saturating_sub(bytes);
            // Identities come and go, and each row takes memory.
            if entry.sessions == 0 {
                tables.identities.remove(identity);
            }
        }
    }

    /// Number of open sessions.
    pub(super) fn count(&self) -> usize {
        self.lock().slots.len()
    }

    /// A panic while the lock is held leaves the counters correct.
    fn lock(&self) -> MutexGuard<'_, RegistryTables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn exceeded(limit: u64, used: u64) -> StoreError {
    StoreError::QuotaExceeded {
        resource: QuotaResource::StagedBytes,
        limit,
        used,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sixty-four identities with as many sessions as one may have would leave none to others.
    #[test]
    fn many_identities_leave_sessions_to_others() {
        let registry = SessionRegistry::new(1);
        for number in 0..SESSIONS_MAX / SESSIONS_PER_IDENTITY_MAX {
            let identity = format!("crowd-{number}");
            while registry.begin(&identity, 0).is_ok() {}
        }
        assert_eq!(registry.begin("alice", 0), Ok(()));
    }
}
