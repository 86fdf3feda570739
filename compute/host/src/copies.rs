//! Copies of stored tensors, and the room for them.
//!
//! Three quarters of the room are for copies of any length. One identity gets at most half of the whole room, and at
//! least one tensor of the largest size; a request that finds no room waits behind the requests before it. The last
//! quarter is for small copies: an identity gets a part of the free rest, at once or not at all, so a request with
//! little to copy never waits for one with much.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_core::limits::leaves_capacity;
use alknet_worker::RevocableMemfd;
use tokio::sync::Notify;

use crate::compute::lock;
use crate::error::{Error, Result};
use crate::limits::{REFERENCED_BYTES_UNIT, TENSOR_BYTES_MAX};

/// Bytes that a worker gets for one request. Dropping them takes them back from the worker, and only then is their
/// room free.
#[derive(Debug)]
pub(crate) struct CopiedTensors {
    // The fields are dropped in this order.
    memory: RevocableMemfd,
    _claim: Option<Arc<CopyReservation>>,
}

impl CopiedTensors {
    /// A copy of a stored tensor.
    pub(crate) fn stored(memory: RevocableMemfd, claim: &Arc<CopyReservation>) -> Self {
        let claim = Some(Arc::clone(claim));
        Self {
            memory,
            _claim: claim,
        }
    }

    /// The bytes of the request itself, which count where requests do.
    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let memory = RevocableMemfd::written(|memory| memory.write_all(bytes))?;
        Ok(Self {
            memory,
            _claim: None,
        })
    }
}

impl Deref for CopiedTensors {
    type Target = RevocableMemfd;

    fn deref(&self) -> &RevocableMemfd {
        &self.memory
    }
}

/// The room of a node for copies.
#[derive(Debug)]
pub(crate) struct CopyBudget {
    /// Bytes of all copies.
    most: usize,
    /// Of these, bytes of copies of any length.
    long: usize,
    /// Of those, bytes of one identity.
    each: usize,
    counted: Mutex<CopyUsage>,
    /// Notified when a claim ends or a request stops waiting.
    changed: Notify,
}

#[derive(Debug, Default)]
struct CopyUsage {
    long: CopyBytes,
    short: CopyBytes,
    /// The waiting requests, in the order in which they came.
    waiting: VecDeque<WaitingCopy>,
    /// The number of the last waiting request.
    number: u64,
}

/// The bytes in use of one of the two parts.
#[derive(Debug, Default)]
struct CopyBytes {
    all: usize,
    each: HashMap<Arc<str>, usize>,
}

#[derive(Clone, Debug)]
struct WaitingCopy {
    number: u64,
    identity: Arc<str>,
    bytes: usize,
}

/// The part of the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyPool {
    Long,
    Short,
}

impl CopyBytes {
    fn held_by(&self, identity: &str) -> usize {
        self.each.get(identity).copied().unwrap_or_default()
    }

    fn add(&mut self, identity: &Arc<str>, bytes: usize) {
        self.all += bytes;
        *self.each.entry(Arc::clone(identity)).or_default() += bytes;
    }

    fn take(&mut self, identity: &Arc<str>, bytes: usize) {
        self.all -= bytes;
        if let Some(own) = self.each.get_mut(identity) {
            *own -= bytes;
            // Identities come and go; an entry of 0 would stay in memory for each of them.
            if *own == 0 {
                self.each.remove(identity);
            }
        }
    }
}

impl CopyUsage {
    fn part(&mut self, part: CopyPool) -> &mut CopyBytes {
        match part {
            CopyPool::Long => &mut self.long,
            CopyPool::Short => &mut self.short,
        }
    }
}

impl CopyBudget {
    /// Room for `most` bytes of all copies.
    pub(crate) fn new(most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let long = most / 4 * 3;
        let tensor = usize::try_from(TENSOR_BYTES_MAX).unwrap_or(usize::MAX);
        Self {
            most,
            long,
            // At least one tensor of the largest size must fit, or no request could refer to it.
            each: (most / 2).max(tensor).min(long),
            counted: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Counts `bytes` for an identity until the claim is dropped. A request that finds no room waits, at most for
    /// `patience`.
    ///
    /// # Errors
    /// The bytes exceed the limit of one identity, or other requests hold the room for too long.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        identity: &str,
        bytes: u64,
        patience: Duration,
    ) -> Result<CopyReservation> {
        let bytes = self.counted_as(bytes)?;
        let identity = Arc::from(identity);
        if let Some(claim) = self.take_short(&identity, bytes) {
            return Ok(claim);
        }
        let place = self.queue(identity, bytes);
        let served = tokio::time::timeout(patience, place.served()).await;
        served.map_err(|_| {
            let most = self.most;
            Error::Overloaded(format!(
                "others have the room for copies of stored tensors: {most} bytes"
            ))
        })
    }

    /// The bytes rounded up to the unit of counting.
    fn counted_as(&self, bytes: u64) -> Result<usize> {
        let counted = bytes.checked_next_multiple_of(REFERENCED_BYTES_UNIT);
        let counted = counted.and_then(|bytes| usize::try_from(bytes).ok());
        counted.filter(|bytes| *bytes <= self.each).ok_or_else(|| {
            let most = self.each;
            Error::TooLarge(format!(
                "the stored tensors that this request refers to have {bytes} bytes; {most} are the most"
            ))
        })
    }

    /// Claims room in the last quarter, in which each identity leaves room for others.
    fn take_short(self: &Arc<Self>, identity: &Arc<str>, bytes: usize) -> Option<CopyReservation> {
        let mut counted = lock(&self.counted);
        let own = counted.short.held_by(identity) + bytes;
        let all = self.long + counted.short.all + bytes;
        leaves_capacity(own, all, self.most)
            .then(|| self.count(&mut counted, CopyPool::Short, identity, bytes))
    }

    /// Claims room in the other three quarters for a waiting request, if there is room and no other request has to be
    /// served first.
    fn take_long(self: &Arc<Self>, number: u64) -> Option<CopyReservation> {
        let mut counted = lock(&self.counted);
        let at = (counted.waiting.iter()).position(|waiting| waiting.number == number)?;
        let has_its_share = |waiting: &WaitingCopy| {
            counted.long.held_by(&waiting.identity) + waiting.bytes > self.each
        };
        // A request that waits for copies of its own identity does not keep requests of other identities waiting.
        let is_next = counted.waiting.iter().take(at).all(has_its_share);
        let WaitingCopy {
            identity, bytes, ..
        } = counted.waiting[at].clone();
        let has_capacity =
            !has_its_share(&counted.waiting[at]) && counted.long.all + bytes <= self.long;
        if !(is_next && has_capacity) {
            return None;
        }
        counted.waiting.remove(at);
        Some(self.count(&mut counted, CopyPool::Long, &identity, bytes))
    }

    fn count(
        self: &Arc<Self>,
        counted: &mut CopyUsage,
        part: CopyPool,
        identity: &Arc<str>,
        bytes: usize,
    ) -> CopyReservation {
        counted.part(part).add(identity, bytes);
        CopyReservation {
            budget: Arc::clone(self),
            part,
            identity: Arc::clone(identity),
            bytes,
        }
    }

    fn queue(self: &Arc<Self>, identity: Arc<str>, bytes: usize) -> CopyQueuePosition {
        let mut counted = lock(&self.counted);
        counted.number += 1;
        let number = counted.number;
        counted.waiting.push_back(WaitingCopy {
            number,
            identity,
            bytes,
        });
        let budget = Arc::clone(self);
        CopyQueuePosition { budget, number }
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(crate) struct CopyReservation {
    budget: Arc<CopyBudget>,
    part: CopyPool,
    identity: Arc<str>,
    bytes: usize,
}

impl Drop for CopyReservation {
    fn drop(&mut self) {
        let mut counted = lock(&self.budget.counted);
        counted.part(self.part).take(&self.identity, self.bytes);
        drop(counted);
        self.budget.changed.notify_waiters();
    }
}

/// The position of a waiting request; dropping it leaves the queue.
#[derive(Debug)]
struct CopyQueuePosition {
    budget: Arc<CopyBudget>,
    number: u64,
}

impl CopyQueuePosition {
    async fn served(&self) -> CopyReservation {
        loop {
            // The notification is created before the check, so that no change is missed.
            let changed = self.budget.changed.notified();
            if let Some(claim) = self.budget.take_long(self.number) {
                return claim;
            }
            changed.await;
        }
    }
}

impl Drop for CopyQueuePosition {
    fn drop(&mut self) {
        let mut counted = lock(&self.budget.counted);
        (counted.waiting).retain(|waiting| waiting.number != self.number);
        drop(counted);
        // The next request may have its turn.
        self.budget.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::limits::{REFERENCED_BYTES_MIN, REFERENCED_WAIT};

    const MIB: u64 = 1 << 20;

    /// Of a machine with 512 MiB of memory.
    fn small() -> Arc<CopyBudget> {
        Arc::new(CopyBudget::new(REFERENCED_BYTES_MIN))
    }

    /// A claim for which there is room at this moment.
    fn now(budget: &Arc<CopyBudget>, identity: &str, bytes: u64) -> Option<CopyReservation> {
        let claim = budget.claim(identity, bytes, REFERENCED_WAIT);
        claim
            .now_or_never()
            .map(|claim| claim.expect("not too large"))
    }

    #[tokio::test]
    async fn an_identity_that_has_all_it_may_leaves_others_what_is_small() {
        let budget = small();
        let eve = now(&budget, "eve", TENSOR_BYTES_MAX).expect("one tensor");
        assert!(now(&budget, "eve", 5 * MIB).is_none());
        for name in ["ada", "bob"] {
            assert!(now(&budget, name, MIB).is_some(), "{name}");
        }
        // More than the tensor leaves of the three quarters, and too large a part of the last one.
        let refused = budget.claim("ada", 5 * MIB, Duration::ZERO).await;
        assert!(matches!(refused, Err(Error::Overloaded(_))), "{refused:?}");
        drop(eve);
        assert!(now(&budget, "ada", TENSOR_BYTES_MAX).is_some());

        // Two fill the three quarters, with copies that are too long for the last one.
        let long = [("eve", TENSOR_BYTES_MAX - 8 * MIB), ("mallory", 12 * MIB)];
        let held = long.map(|(name, bytes)| now(&budget, name, bytes).expect("room"));
        for name in ["ada", "bob"] {
            assert!(now(&budget, name, MIB).is_some(), "{name}");
        }
        drop(held);
    }

    #[tokio::test]
    async fn one_identity_has_half_where_that_is_more_than_a_tensor() {
        let budget = Arc::new(CopyBudget::new(1 << 30));
        let too_large = budget.claim("eve", 513 * MIB, REFERENCED_WAIT).await;
        assert!(matches!(too_large, Err(Error::TooLarge(_))));
        let eve: Vec<_> = (0..4)
            .map(|_| now(&budget, "eve", TENSOR_BYTES_MAX).expect("room"))
            .collect();
        assert!(now(&budget, "eve", TENSOR_BYTES_MAX).is_none());
        assert!(now(&budget, "ada", 2 * TENSOR_BYTES_MAX).is_some());
        // The last quarter is for what is small, also of one that has its half.
        assert!(now(&budget, "eve", MIB).is_some());
        drop(eve);
    }

    #[tokio::test]
    async fn requests_that_wait_are_served_in_order_and_one_that_gave_up_is_skipped() {
        let budget = small();
        let first = now(&budget, "eve", TENSOR_BYTES_MAX).expect("room");
        let mut waits = Box::pin(budget.claim("ada", TENSOR_BYTES_MAX, REFERENCED_WAIT));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(first);
        // It would fit, and another request came before it.
        let later = budget.claim("eve", TENSOR_BYTES_MAX, REFERENCED_WAIT);
        let mut later = Box::pin(later);
        assert!(later.as_mut().now_or_never().is_none());
        let claim = waits.await.expect("its turn");
        let mut gives_up = Box::pin(budget.claim("bob", TENSOR_BYTES_MAX, REFERENCED_WAIT));
        assert!(gives_up.as_mut().now_or_never().is_none());
        drop(gives_up);
        drop(claim);
        later.await.expect("no other waits");
    }

    #[tokio::test]
    async fn a_request_that_waits_for_its_own_identity_keeps_no_other_waiting() {
        let budget = Arc::new(CopyBudget::new(1 << 30));
        let eve: Vec<_> = (0..4)
            .map(|_| now(&budget, "eve", TENSOR_BYTES_MAX).expect("room"))
            .collect();
        let mut waits = Box::pin(budget.claim("eve", TENSOR_BYTES_MAX, REFERENCED_WAIT));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(now(&budget, "ada", TENSOR_BYTES_MAX).is_some());
        drop(eve);
        waits.await.expect("its turn");
    }

    #[tokio::test]
    async fn what_is_dropped_leaves_nothing_behind() {
        let budget = small();
        let claims = [("eve", TENSOR_BYTES_MAX), ("ada", MIB), ("bob", 1)];
        let claims = claims.map(|(name, bytes)| now(&budget, name, bytes).expect("room"));
        drop(claims);
        let counted = lock(&budget.counted);
        for bytes in [&counted.long, &counted.short] {
            assert_eq!(bytes.all, 0);
            assert!(bytes.each.is_empty());
        }
        assert!(counted.waiting.is_empty());
    }

    #[test]
    fn a_tensor_of_the_largest_kind_fits_on_every_machine() {
        let budget = small();
        assert_eq!(budget.each as u64, TENSOR_BYTES_MAX);
        assert!(budget.long as u64 >= TENSOR_BYTES_MAX);
    }
}
