//! The quotas for unread bytes of a connection: of its requester, and of the node.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::sleep;

use crate::limits::{UNREAD_BYTES_FREE, UNREAD_ROOM_EVERY, UNREAD_SLACK_BYTES, UNREAD_STEP_BYTES};
use crate::request_bytes::{GrowLimit, RequestBytes, Requester};
use crate::sync::lock;

/// A part of the node's capacity. It grows and shrinks in steps with the unread bytes of a connection, and is given
/// back when this is dropped. A connection with few unread bytes has none, so that most responses take no lock.
pub(crate) struct UnreadQuota {
    all: Arc<RequestBytes>,
    /// The requester at present: a connection may gain an identity.
    requester: Arc<RequesterSource>,
    held: Mutex<UnreadUsage>,
    /// Whether `held` may be more than zero.
    holds: AtomicBool,
    /// One task at a time waits for capacity, however many streams need it.
    turn: tokio::sync::Mutex<()>,
}

/// Returns the requester for which the bytes of a connection count.
pub(crate) type RequesterSource = dyn Fn() -> Requester + Send + Sync;

/// The bytes of a connection, and the requester for which they count.
#[derive(Debug, Default)]
struct UnreadUsage {
    owner: Option<Requester>,
    bytes: usize,
}

impl UnreadQuota {
    /// A quota that has nothing of `all` yet.
    pub(crate) fn new(all: &Arc<RequestBytes>, requester: &Arc<RequesterSource>) -> Self {
        Self {
            all: Arc::clone(all),
            requester: Arc::clone(requester),
            held: Mutex::default(),
            holds: AtomicBool::new(false),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Makes the quota as large as the waiting bytes need, within `fit`. Returns false, and leaves it, if that does
    /// not fit.
    pub(super) fn cover(&self, waiting: &AtomicUsize, fit: GrowLimit) -> bool {
        if waiting.load(Ordering::SeqCst) <= UNREAD_BYTES_FREE {
            return true;
        }
        let mut held = lock(&self.held);
        // The flag is set before the number is read: a task that takes bytes meanwhile sees it, and checks in its
        // turn.
        self.holds.store(true, Ordering::SeqCst);
        let needed = needed(waiting.load(Ordering::SeqCst));
        let covered = needed <= held.bytes || self.grow(&mut held, needed, fit);
        self.holds.store(held.bytes > 0, Ordering::SeqCst);
        covered
    }

    fn grow(&self, held: &mut UnreadUsage, needed: usize, fit: GrowLimit) -> bool {
        let requester = (self.requester)();
        // The peer may have authenticated since: its bytes then count for the new identity.
        if held.owner.as_ref() != Some(&requester) {
            self.hand_over(held, &requester);
        }
        let more = needed - held.bytes;
        let grown = self.all.grow(&requester, more, fit)
            || fit == GrowLimit::First && self.all.grow_alone(&requester, more, held.bytes);
        if grown {
            held.bytes = needed;
        }
        grown
    }

    /// Counts the bytes for another requester from now on.
    fn hand_over(&self, held: &mut UnreadUsage, to: &Requester) {
        let before = held.owner.replace(to.clone());
        if let Some(before) = before.filter(|_| held.bytes > 0) {
            self.all.shrink(&before, held.bytes);
            self.all.grow(to, held.bytes, GrowLimit::Anyway);
        }
    }

    /// Gives back what is no longer needed.
    pub(super) fn release(&self, waiting: &AtomicUsize) {
        if !self.holds.load(Ordering::SeqCst) {
            return;
        }
        let mut held = lock(&self.held);
        let needed = needed(waiting.load(Ordering::SeqCst));
        let surplus = held.bytes.saturating_sub(needed);
        // A small surplus stays for the next response, which then needs no lock of the node.
        if surplus > 0 && (needed == 0 || surplus >= UNREAD_SLACK_BYTES) {
            self.give_back(&mut held, surplus);
        }
        self.holds.store(held.bytes > 0, Ordering::SeqCst);
    }

    fn give_back(&self, held: &mut UnreadUsage, bytes: usize) {
        held.bytes -= bytes;
        if let Some(owner) = &held.owner {
            self.all.shrink(owner, bytes);
        }
    }

    /// Whether it may grow.
    pub(super) fn has_capacity(&self) -> bool {
        self.all.has_capacity(|| (self.requester)())
    }

    /// Whether the requester has used its own whole quota, whatever others have.
    pub(super) fn is_spent(&self) -> bool {
        self.all.is_spent(&(self.requester)())
    }

    /// Waits until it may grow.
    pub(super) async fn wait_for_capacity(&self) {
        let _turn = self.turn.lock().await;
        while !self.has_capacity() {
            // Other connections free the room, and none of them knows which tasks wait.
            sleep(UNREAD_ROOM_EVERY).await;
        }
    }
}

impl Drop for UnreadQuota {
    fn drop(&mut self) {
        let mut held = std::mem::take(&mut *lock(&self.held));
        let all = held.bytes;
        if all > 0 {
            self.give_back(&mut held, all);
        }
    }
}

impl fmt::Debug for UnreadQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnreadQuota")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// Bytes of the quota for this many waiting bytes.
fn needed(waiting: usize) -> usize {
    let counted = waiting.saturating_sub(UNREAD_BYTES_FREE);
    counted.next_multiple_of(UNREAD_STEP_BYTES)
}
