//! Writes and reads of an open session.

use std::ops::Range;

use super::state::WriteSessionState;
use super::{WriteSessionId, WriteSessions};
use crate::content::check_file_size;
use crate::error::{QuotaResource, StoreError, StoreObject};
use crate::limits::{READ_BLOCK_BYTES, SESSION_SAVE_BYTES};
use crate::names::{BucketId, EntryAttributes};

impl WriteSessions {
    /// Writes bytes at an offset. Several calls may be under way for one session; they come after each other, in any order.
    /// What no write reaches shows the content of before, or is zero.
    ///
    /// # Errors
    /// The identity has no such session or too many staged bytes. After a write behind the declared size, one that exceeds
    /// the quota of the bucket, and one that the disk refuses, the session is over and its staging file removed.
    pub fn write(
        &self,
        id: WriteSessionId,
        identity: &str,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        self.with_state(id, identity, |state| self.write_state(state, at, bytes))
    }

    /// Sets the length. Bytes beyond it are gone; a file that grows has zeros there.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn set_len(&self, id: WriteSessionId, identity: &str, size: u64) -> Result<(), StoreError> {
        self.with_state(id, identity, |state| {
            check_file_size(size)?;
            state.check_declared(size)?;
            // A hole takes no room, and its zeros are hashed at the close.
            self.check_quota(state, size)?;
            let freed = state.set_len(size)?;
            state.charged = state.charged.saturating_sub(freed);
            self.registry.release(identity, freed);
            self.save_if_due(state)
        })
    }

    /// Sets attributes that the file gets at the close, beside those of the opening.
    ///
    /// # Errors
    /// The identity has no such session.
    pub fn set_attributes(
        &self,
        id: WriteSessionId,
        identity: &str,
        attributes: &EntryAttributes,
    ) -> Result<(), StoreError> {
        self.with_state(id, identity, |state| {
            let given = attributes.clone();
            let own = &mut state.new.attributes;
            own.mode = given.mode.or(own.mode);
            own.mtime_ns = given.mtime_ns.or(own.mtime_ns);
            own.xattr = given.xattr.or_else(|| own.xattr.take());
            Ok(())
        })
    }

    /// At most [`READ_BLOCK_BYTES`] bytes of what the file would be if the session was closed now. Fewer come at the end.
    ///
    /// # Errors
    /// The identity has no such session, or the content of before is damaged.
    pub fn read(
        &self,
        id: WriteSessionId,
        identity: &str,
        range: Range<u64>,
    ) -> Result<Vec<u8>, StoreError> {
        let end = range
            .end
            .min(range.start.saturating_add(READ_BLOCK_BYTES as u64));
        self.with_state(id, identity, |state| state.read(range.start..end))
    }

    /// Bytes that the file would have if the session was closed now.
    ///
    /// # Errors
    /// The identity has no such session.
    pub fn size(&self, id: WriteSessionId, identity: &str) -> Result<u64, StoreError> {
        self.with_state(id, identity, |state| Ok(state.size))
    }

    /// The bucket that a session writes to. A caller that checks rights asks before it closes the session: they may have
    /// changed since it was opened.
    ///
    /// # Errors
    /// The identity has no such session.
    pub fn bucket(&self, id: WriteSessionId, identity: &str) -> Result<BucketId, StoreError> {
        self.with_state(id, identity, |state| Ok(state.bucket))
    }

    /// Returns when what was written is on the disk. It is no version yet, and a restart removes it.
    ///
    /// # Errors
    /// The identity has no such session. After an error of the disk the session is over: the system reports what it lost
    /// once, so that a close would succeed without the bytes.
    pub fn sync(&self, id: WriteSessionId, identity: &str) -> Result<(), StoreError> {
        self.with_state(id, identity, |state| {
            state.spill(&self.content)?;
            if let super::SessionStaging::File(file) = &mut state.staging {
                let synced = file.sync();
                state.is_broken |= synced.is_err();
                synced?;
            }
            self.save(state)
        })
    }

    /// Runs a call on an open session, and ends the session after an error that it cannot go on from.
    fn with_state<T>(
        &self,
        id: WriteSessionId,
        identity: &str,
        call: impl FnOnce(&mut WriteSessionState) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let slot = self.registry.find(id, identity, self.time.unix_ms())?;
        let mut locked = slot.lock();
        let state = locked.as_mut();
        let state = state.ok_or(StoreError::NotFound(StoreObject::Session))?;
        if state.prepared.is_some() {
            return Err(StoreError::Busy("the session waits for its close"));
        }
        let result = call(state);
        let is_over = state.is_broken
            || match &result {
                // The declared size was wrong, or the bucket can never take the content.
                Err(StoreError::SizeMismatch { .. }) => true,
                Err(StoreError::QuotaExceeded { resource, .. }) => {
                    *resource == QuotaResource::Bytes
                }
                _ => false,
            };
        if is_over && let Some(state) = locked.take() {
            // The caller gets the reason of the end, which says more than an error of the removal.
            self.discard_later(&state);
        }
        result
    }

    fn write_state(
        &self,
        state: &mut WriteSessionState,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let range = state.check_write(at, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let added = state.written.missing_bytes(&range);
        let size = state.size.max(range.end);
        // Before the first byte is written, so that nothing has to be taken back.
        self.registry.charge(&state.new.identity, added)?;
        state.charged += added;
        if let Err(error) = self.check_quota(state, size) {
            // The caller may try again, and must not pay twice.
            state.charged -= added;
            self.registry.release(&state.new.identity, added);
            return Err(error);
        }
        if let Err(error) = state.store(&self.content, range, bytes) {
            state.is_broken = true;
            return Err(error);
        }
        self.save_if_due(state)
    }

    /// Refuses a size above what the bucket had left, once the bucket was looked at again.
    fn check_quota(&self, state: &mut WriteSessionState, size: u64) -> Result<(), StoreError> {
        if state.quota_left.is_some_and(|left| size > left) {
            let bucket = state.bucket;
            let left = self.db.read(move |tx| tx.check_quota(bucket, size));
            state.quota_left = left.wait()?;
        }
        Ok(())
    }

    fn save_if_due(&self, state: &mut WriteSessionState) -> Result<(), StoreError> {
        match state.charged.abs_diff(state.saved) >= SESSION_SAVE_BYTES {
            true => self.save(state),
            false => Ok(()),
        }
    }

    /// Writes how far the session came to its row, and looks at the quota and the room on the disk again.
    fn save(&self, state: &mut WriteSessionState) -> Result<(), StoreError> {
        self.content.check_space(0)?;
        let progress = state.progress();
        // No sync of the disk: after a power cut the session is swept anyway.
        let saved = self
            .db
            .write_with(crate::db::Durability::Normal, move |tx| {
                tx.save_session(&progress)
            });
        state.quota_left = saved.wait()?;
        state.saved = state.charged;
        Ok(())
    }
}
