//! What a peer sends for a document, checked before and after the library takes it in.

use std::collections::{BTreeSet, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use alknet_store::HybridTimestamp;
use alknet_store::limits::CLOCK_AHEAD_MS_MAX;
#[cfg(test)]
use automerge::ChangeHash;
use automerge::legacy::{Key, ObjectId, OpType};
use automerge::sync::Message;
use automerge::{Change, ScalarValue};

use super::entry::SyncedEntry;
use super::error::{ByeCode, SyncError};
use super::limits::{CHANGE_OPERATIONS_MAX, HEADS_MAX, VALUE_BYTES_MAX};
use super::unpack::{ScannedChange, scan_changes};

/// Filters of hashes in one message, of which the library sends one.
const FILTERS_MAX: usize = 4;

/// Bits of a filter for each hash, and bits that each hash sets. The library has 10 and 7.
const FILTER_NUMBERS_MAX: u64 = 32;

/// A message with this head makes the library panic in tests, behind the changes that it has taken in by then.
#[cfg(test)]
pub(super) const PANICKING_HEAD: ChangeHash = ChangeHash([0xee; 32]);

/// The operation that wrote a value: its number, and the bytes of its writer.
pub(super) type OperationId = (u64, Vec<u8>);

/// What a message of a peer added to the document.
#[derive(Debug, Default)]
pub(super) struct ReceivedChanges {
    /// Keys that were written, valid paths or not.
    pub(super) keys: BTreeSet<String>,
    /// The operations that wrote them.
    pub(super) operations: HashSet<OperationId>,
    /// The latest time among the values.
    pub(super) latest: Option<HybridTimestamp>,
}

impl ReceivedChanges {
    /// Checks and notes the operations of a change.
    pub(super) fn add(&mut self, change: &Change, now_ms: u64) -> Result<(), SyncError> {
        let latest = now_ms.saturating_add(CLOCK_AHEAD_MS_MAX);
        // Before they are unpacked into a list.
        if change.len() > CHANGE_OPERATIONS_MAX {
            return Err(invalid("a change has too many operations"));
        }
        let change = change.decode();
        let actor = change.actor_id.to_bytes();
        for (number, operation) in (change.start_op.get()..).zip(change.operations) {
            let (ObjectId::Root, Key::Map(key)) = (&operation.obj, &operation.key) else {
                return Err(invalid("an operation is not on the map of paths"));
            };
            // The library makes no such operation, and could not remove the key again.
            if key.is_empty() {
                return Err(invalid("an operation has an empty key"));
            }
            match &operation.action {
                OpType::Delete => {}
                OpType::Put(ScalarValue::Bytes(bytes)) if bytes.len() <= VALUE_BYTES_MAX => {
                    if let Ok(entry) = SyncedEntry::decode(bytes) {
                        // A value from the future would win against every later one of the others.
                        if entry.timestamp.ms() > latest {
                            let reason = format!("an entry has the time {}", entry.timestamp);
                            return Err(SyncError::refused(ByeCode::ClockAhead, reason));
                        }
                        self.latest = self.latest.max(Some(entry.timestamp));
                    }
                    self.operations.insert((number, actor.to_vec()));
                }
                _ => return Err(invalid("an operation puts no bytes")),
            }
            self.keys.insert(key.to_string());
        }
        Ok(())
    }
}

/// Reads a sync message whose contents the library can take without harm, and lists the changes in it that are no part of a
/// whole document.
pub(super) fn checked_message(bytes: &[u8]) -> Result<(Message, Vec<ScannedChange>), SyncError> {
    let message = contain(|| Message::decode(bytes))?;
    let message = message.map_err(|error| invalid(error.to_string()))?;
    let lists = message.have.iter().map(|have| have.last_sync.len());
    let longest = lists.chain([message.heads.len()]).max();
    if longest.unwrap_or_default() > HEADS_MAX || message.have.len() > FILTERS_MAX {
        return Err(invalid("a sync message has too many heads or filters"));
    }
    for have in &message.have {
        check_filter(&contain(|| have.bloom.to_bytes())?)?;
    }
    let chunks: Vec<&[u8]> = message.changes.iter().collect();
    let scanned = scan_changes(&chunks.concat())?;
    Ok((message, scanned.changes))
}

/// Refuses a filter for which the library would divide by zero, or take memory by a number that the peer wrote.
fn check_filter(bytes: &[u8]) -> Result<(), SyncError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut rest = bytes;
    let mut numbers = [0_u64; 3];
    for number in &mut numbers {
        let mut shift = 0_u32;
        loop {
            let Some((byte, tail)) = rest.split_first() else {
                return Err(invalid("a filter ends early"));
            };
            rest = tail;
            *number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    let [_, bits, probes] = numbers;
    let is_usual = |number: u64| (1..=FILTER_NUMBERS_MAX).contains(&number);
    match is_usual(bits) && is_usual(probes) && !rest.is_empty() {
        true => Ok(()),
        false => Err(invalid("a filter has unusual numbers")),
    }
}

/// Runs a call of the library. A panic in it is an error of the one session: it was caused by what the peer sent.
pub(super) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, SyncError> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.map_err(|_| invalid("the library of documents panicked"))
}

pub(super) fn invalid(reason: impl Into<String>) -> SyncError {
    SyncError::refused(ByeCode::InvalidDocument, reason)
}
