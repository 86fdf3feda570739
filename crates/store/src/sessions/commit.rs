//! The close of a session.

use super::state::{SessionStaging, WriteSessionState};
use super::{ClosedSession, WriteSessionId, WriteSessionMode, WriteSessions};
use crate::content::{CommitStep, PreparedContent};
use crate::error::{StoreError, StoreObject};
use crate::limits::SESSION_MEMORY_BYTES;
use crate::names::{ChangeRequest, EntryPrecondition, TreeChange};

impl WriteSessions {
    /// Makes what was written the content of the file, durable when this returns. The session is over, also after an error,
    /// with one exception: after [`StoreError::Busy`] it stays open with the whole content, and takes no writes any more,
    /// but another close, or an [`abort`](Self::abort).
    ///
    /// # Errors
    /// The file is not what the session or this call expects ([`StoreError::PreconditionFailed`] has its present content);
    /// the size is not the declared one; a lock covers the path ([`StoreError::Locked`]); the bucket has no quota; the disk is
    /// full; too many writes wait. The file is as before then.
    pub fn close(
        &self,
        id: WriteSessionId,
        identity: &str,
        precondition: Option<EntryPrecondition>,
    ) -> Result<ClosedSession, StoreError> {
        let slot = self.registry.find(id, identity, self.time.unix_ms())?;
        // From here on no other call finds the state, so that no write comes between the hash and the commit.
        let state = slot.lock().take();
        let mut state = state.ok_or(StoreError::NotFound(StoreObject::Session))?;
        let closed = self.commit(&mut state, precondition);
        match &closed {
            Ok(_) => self.registry.end(id, identity, state.charged),
            // The upload is whole, and only the writer had no room for one more job.
            Err(StoreError::Busy(_)) if state.prepared.is_some() => {
                *slot.lock() = Some(state);
            }
            // The caller gets the reason, which says more than an error of the removal.
            Err(_) => self.discard_later(&state),
        }
        closed
    }

    fn commit(
        &self,
        state: &mut WriteSessionState,
        precondition: Option<EntryPrecondition>,
    ) -> Result<ClosedSession, StoreError> {
        let known = state.size.saturating_sub(state.origin);
        if let Some(given) = state.new.expected_size
            && known != given
        {
            return Err(StoreError::SizeMismatch { known, given });
        }
        let precondition = match (precondition, state.new.precondition, state.new.mode) {
            (Some(precondition), _, _) => precondition,
            // Something may have come to the path since the session was opened.
            (None, EntryPrecondition::Any, WriteSessionMode::Create) => EntryPrecondition::Absent,
            (None, precondition, _) => precondition,
        };
        let prepared = match state.prepared.take() {
            Some(prepared) => prepared,
            None => self.prepare(state)?,
        };
        // For another close, if the writer is too busy for this one.
        state.prepared = Some(prepared.clone());
        let (hash, size) = (prepared.hash(), prepared.size());
        let new = &state.new;
        let put = TreeChange::Put {
            path: new.path.clone(),
            content: prepared.content(),
            attributes: new.attributes.clone(),
            precondition,
        };
        let request = ChangeRequest::new(new.branch, &new.identity, put);
        let tokens = new.lock_tokens.clone();
        let (id, bucket, saved) = (state.id, state.bucket, state.saved);
        let observer = self.content.observer();
        let committed = self.db.write_with(state.durability, move |tx| {
            // The session's own bytes give way first, so that they do not count beside the content.
            tx.remove_session(id, bucket, saved)?;
            tx.record_content(&prepared)?;
            let receipt = tx.apply_locked(&request, &tokens)?;
            observer.observe_step(CommitStep::RowsWritten)?;
            Ok(receipt)
        });
        let receipt = committed.wait()?;
        self.content
            .observer()
            .observe_step(CommitStep::Committed)?;
        Ok(ClosedSession {
            hash,
            size,
            seq: receipt.seq,
        })
    }

    /// The whole content, made ready to be named.
    fn prepare(&self, state: &mut WriteSessionState) -> Result<PreparedContent, StoreError> {
        let whole = 0..state.size;
        if state.size <= SESSION_MEMORY_BYTES {
            return self.content.put_bytes(&state.read(whole)?);
        }
        let gaps = state.base_gaps(&whole);
        let copied: u64 = gaps.iter().map(|gap| gap.end - gap.start).sum();
        // The bytes of the base become staged bytes for as long as the close takes.
        self.registry.charge(&state.new.identity, copied)?;
        state.charged += copied;
        self.content.check_space(copied)?;
        state.spill(&self.content)?;
        let empty = SessionStaging::Memory(Vec::new());
        let SessionStaging::File(mut file) = std::mem::replace(&mut state.staging, empty) else {
            return Err(StoreError::NotFound(StoreObject::Session));
        };
        for gap in gaps {
            let Some(base) = &state.base else {
                continue;
            };
            let mut at = gap.start;
            for block in base.blocks(gap) {
                let block = block?;
                file.write_at(at, &block)?;
                at += block.len() as u64;
            }
        }
        // A length that was set behind the last write.
        if file.size() != state.size {
            file.set_len(state.size)?;
        }
        self.content.put_staged(file)
    }
}
