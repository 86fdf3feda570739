//! Counts the node's memory that scripts' values use.
//!
//! The node weighs a worker's value before it parses it ([`wire::weigh`]). The weight counts against the session's
//! share, its tenant's and that of all sessions, until the node has finished with the value. A value without room is
//! refused and never parsed. A tenant has at most half of the memory, and less of the last quarter the less is left,
//! so two tenants cannot use all of it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_call::limits::leaves_capacity;
use alknet_runtime::{OpError, RecorderCapacity, RuntimeCode};
use alknet_worker::FrameBlob;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::lock;
use crate::limits::{
    MEMORY_MAX, MEMORY_OF_SESSION_MAX, MEMORY_OF_TENANT_MAX, REGISTERED_FACTOR, REGISTERED_MAX,
    REGISTERED_OF_TENANT_MAX, RESTED_MAX, RESTED_OF_TENANT_MAX, RESTED_VALUE_MAX, VALUE_BYTES_MAX,
};
use crate::wire;

/// The memory for all sessions of a node. Clones share their state.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionMemoryPool(Arc<Mutex<PoolUsage>>);

impl SessionMemoryPool {
    /// The share of a new session.
    pub(super) fn share(&self, tenant: &str) -> MemoryShare {
        MemoryShare(Arc::new(SessionUsage {
            memory: self.clone(),
            tenant: tenant.into(),
            bytes: AtomicUsize::new(0),
        }))
    }

    /// The bytes in use.
    pub(super) fn used(&self) -> usize {
        lock(&self.0).all.bytes
    }

    /// The most bytes that were in use at once.
    pub(super) fn peak(&self) -> usize {
        lock(&self.0).peak
    }
}

/// The accounts of the node's memory.
#[derive(Debug, Default)]
struct PoolUsage {
    all: PoolBytes,
    /// The most bytes of all sessions at once so far.
    peak: usize,
    tenants: HashMap<Arc<str>, PoolBytes>,
}

/// Bytes in use.
#[derive(Clone, Copy, Debug, Default)]
struct PoolBytes {
    bytes: usize,
    /// The bytes of registered operations among them, which stay as long as their session.
    registered: usize,
    /// The bytes of services' states among them, which stay until the service is called.
    rested: usize,
}

impl PoolBytes {
    fn with_kind(bytes: usize, kind: ReservationKind) -> Self {
        let only = |counts: bool| if counts { bytes } else { 0 };
        Self {
            bytes,
            registered: only(kind == ReservationKind::Registered),
            rested: only(kind == ReservationKind::Rested),
        }
    }

    const fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(more.bytes),
            registered: self.registered.saturating_add(more.registered),
            rested: self.rested.saturating_add(more.rested),
        }
    }

    const fn minus(self, less: Self) -> Self {
        Self {
            bytes: self.bytes - less.bytes,
            registered: self.registered - less.registered,
            rested: self.rested - less.rested,
        }
    }
}

/// How long bytes stay in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReservationKind {
    /// Until a call ends or an item is taken.
    Passing,
    /// As long as an operation is registered.
    Registered,
    /// Until the next session of a service whose session ended for others or for other code.
    Rested,
}

impl PoolUsage {
    /// The bytes of the tenant and of all with so many more. `None` without room for them.
    fn with(&self, tenant: &str, more: PoolBytes) -> Option<(PoolBytes, PoolBytes)> {
        let own = self.tenants.get(tenant).copied().unwrap_or_default();
        let (own, all) = (own.plus(more), self.all.plus(more));
        let has_capacity = own.bytes <= MEMORY_OF_TENANT_MAX
            && leaves_capacity(own.bytes, all.bytes, MEMORY_MAX)
            && (more.registered == 0
                || own.registered <= REGISTERED_OF_TENANT_MAX
                    && leaves_capacity(own.registered, all.registered, REGISTERED_MAX))
            && (more.rested == 0
                || own.rested <= RESTED_OF_TENANT_MAX
                    && leaves_capacity(own.rested, all.rested, RESTED_MAX));
        has_capacity.then_some((own, all))
    }

    /// Takes bytes. Returns whether there was room.
    fn take(&mut self, tenant: &Arc<str>, more: PoolBytes) -> bool {
        let Some((own, all)) = self.with(tenant, more) else {
            return false;
        };
        self.tenants.insert(Arc::clone(tenant), own);
        self.all = all;
        self.peak = self.peak.max(all.bytes);
        true
    }

    fn give(&mut self, tenant: &Arc<str>, less: PoolBytes) {
        self.all = self.all.minus(less);
        if let Some(own) = self.tenants.get_mut(tenant) {
            *own = own.minus(less);
            // Tenants come and go, and empty accounts would accumulate.
            if own.bytes == 0 {
                self.tenants.remove(tenant);
            }
        }
    }
}

/// The bytes of one session.
#[derive(Debug)]
struct SessionUsage {
    memory: SessionMemoryPool,
    tenant: Arc<str>,
    bytes: AtomicUsize,
}

impl SessionUsage {
    fn take(&self, bytes: usize, kind: ReservationKind) -> Result<(), ReadRefusal> {
        if bytes == 0 {
            return Ok(());
        }
        let more = |own: usize| {
            own.checked_add(bytes)
                .filter(|own| *own <= MEMORY_OF_SESSION_MAX)
        };
        // The counter is a sum that orders no other memory access.
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let taken = self.bytes.fetch_update(set, get, more);
        taken.map_err(|_| ReadRefusal::TooMuch)?;
        if lock(&self.memory.0).take(&self.tenant, PoolBytes::with_kind(bytes, kind)) {
            return Ok(());
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(ReadRefusal::Full)
    }

    fn give(&self, bytes: usize, kind: ReservationKind) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        lock(&self.memory.0).give(&self.tenant, PoolBytes::with_kind(bytes, kind));
    }
}

/// The share of one session. Clones share their state.
#[derive(Clone, Debug)]
pub(super) struct MemoryShare(Arc<SessionUsage>);

impl MemoryShare {
    /// Takes bytes until the returned reservation is dropped.
    fn take(&self, bytes: usize, kind: ReservationKind) -> Result<MemoryReservation, ReadRefusal> {
        self.0.take(bytes, kind)?;
        Ok(MemoryReservation {
            own: Arc::clone(&self.0),
            bytes,
            kind,
        })
    }

    /// The capacity for a record of calls, which grows.
    pub(super) fn recording(&self) -> Arc<dyn RecorderCapacity> {
        let none = MemoryReservation {
            own: Arc::clone(&self.0),
            bytes: 0,
            kind: ReservationKind::Passing,
        };
        Arc::new(GrowingReservation(Mutex::new(none)))
    }

    /// Reads a worker's value, which may be stored beside its frame.
    pub(super) fn open<T: DeserializeOwned>(
        &self,
        blob: FrameBlob,
        fds: &[OwnedFd],
    ) -> Result<(T, MemoryReservation), ReadRefusal> {
        // The bytes themselves are counted before they are read.
        let held = self.take(len(&blob)?, ReservationKind::Passing)?;
        held.open(blob, fds)
    }

    /// Room for what a service leaves whose session ends for others, before it is asked for that: until its next call.
    pub(super) fn for_rest(&self) -> Result<MemoryReservation, ReadRefusal> {
        self.take(RESTED_VALUE_MAX, ReservationKind::Rested)
    }

    /// Like `for_rest`, for a service whose code changes: until its next session has it. If the session has used up
    /// most of its own memory, this is what it has left: what it has registered must not prevent its replacement.
    pub(super) fn for_successor(&self) -> Result<MemoryReservation, ReadRefusal> {
        let used = self.0.bytes.load(Ordering::Relaxed);
        let left = MEMORY_OF_SESSION_MAX.saturating_sub(used);
        self.take(left.min(RESTED_VALUE_MAX), ReservationKind::Rested)
    }

    /// Whether a service could leave as much as it may now, beside so many bytes of other states of its account.
    pub(super) fn may_rest_beside(&self, states: usize) -> bool {
        let used = self.0.bytes.load(Ordering::Relaxed);
        if used.saturating_add(RESTED_VALUE_MAX) > MEMORY_OF_SESSION_MAX {
            return false;
        }
        let bytes = states.saturating_add(RESTED_VALUE_MAX);
        let more = PoolBytes::with_kind(bytes, ReservationKind::Rested);
        lock(&self.0.memory.0).with(&self.0.tenant, more).is_some()
    }

    /// Reads a value in a frame.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
    ) -> Result<(T, MemoryReservation), ReadRefusal> {
        self.read_times(bytes, 1, ReservationKind::Passing)
    }

    /// Like `read`, for an operation that stays registered.
    pub(super) fn read_registered<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
    ) -> Result<(T, MemoryReservation), ReadRefusal> {
        self.read_times(bytes, REGISTERED_FACTOR, ReservationKind::Registered)
    }

    fn read_times<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
        times: usize,
        kind: ReservationKind,
    ) -> Result<(T, MemoryReservation), ReadRefusal> {
        let weight = wire::weigh(bytes).map_err(|_| ReadRefusal::Wrong)?;
        let held = self.take(weight.saturating_mul(times), kind)?;
        Ok((wire::unpack(bytes).map_err(|_| ReadRefusal::Wrong)?, held))
    }

    /// Reads bytes that are no value.
    pub(super) fn bytes(
        &self,
        blob: FrameBlob,
        fds: &[OwnedFd],
    ) -> Result<(Vec<u8>, MemoryReservation), ReadRefusal> {
        let held = self.take(len(&blob)?, ReservationKind::Passing)?;
        let bytes = blob
            .read(fds, VALUE_BYTES_MAX)
            .map_err(|_| ReadRefusal::Wrong)?;
        Ok((bytes, held))
    }
}

/// A reservation that grows step by step, such as that of a record of calls.
#[derive(Debug)]
struct GrowingReservation(Mutex<MemoryReservation>);

impl RecorderCapacity for GrowingReservation {
    fn take(&self, bytes: usize) -> bool {
        let mut held = lock(&self.0);
        let all = held.bytes.saturating_add(bytes);
        held.becomes(all).is_ok()
    }
}

fn len(blob: &FrameBlob) -> Result<usize, ReadRefusal> {
    usize::try_from(blob.len()).map_err(|_| ReadRefusal::TooMuch)
}

/// Bytes that are returned when this is dropped.
#[derive(Debug)]
pub(super) struct MemoryReservation {
    own: Arc<SessionUsage>,
    bytes: usize,
    kind: ReservationKind,
}

impl MemoryReservation {
    /// Takes the difference, or returns it.
    fn becomes(&mut self, bytes: usize) -> Result<(), ReadRefusal> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.own.take(more, self.kind)?,
            None => self.own.give(self.bytes - bytes, self.kind),
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Reads a worker's value into this reservation, which becomes as large as the value.
    pub(super) fn open<T: DeserializeOwned>(
        mut self,
        blob: FrameBlob,
        fds: &[OwnedFd],
    ) -> Result<(T, Self), ReadRefusal> {
        let len = len(&blob)?;
        if len > self.bytes {
            self.becomes(len)?;
        }
        let bytes = blob
            .read(fds, VALUE_BYTES_MAX)
            .map_err(|_| ReadRefusal::Wrong)?;
        // A short text may become a large value, so its weight counts before it is parsed.
        let weight = wire::weigh(&bytes).map_err(|_| ReadRefusal::Wrong)?;
        self.becomes(weight.max(bytes.len()))?;
        Ok((wire::unpack(&bytes).map_err(|_| ReadRefusal::Wrong)?, self))
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the same amount again, for the text in which the value is passed on.
    pub(super) fn twice(&mut self) -> Result<(), ReadRefusal> {
        self.becomes(self.bytes.saturating_mul(2))
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.own.give(self.bytes, self.kind);
    }
}

/// The reason why something of a worker was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadRefusal {
    /// Others use too much memory.
    Full,
    /// The session itself uses too much memory.
    TooMuch,
    /// It is no value of its kind, or too large.
    Wrong,
}

impl ReadRefusal {
    /// The error for the script.
    pub(super) fn error(self, what: &str) -> OpError {
        match self {
            Self::Full | Self::TooMuch => OpError {
                // Waiting does not free what the session itself uses.
                retryable: self == Self::Full,
                details: Box::new(json!({ "code": RuntimeCode::Quota.name() })),
                ..OpError::new(
                    "QUOTA_EXCEEDED",
                    format!(
                        "there is no room for the {what}: a session may have values of {} MiB under \
                         way; wait for answers, or send less",
                        MEMORY_OF_SESSION_MAX >> 20
                    ),
                )
            },
            Self::Wrong => OpError::new(
                "INVALID_INPUT",
                format!("the {what} is larger than it may be, or none"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn nulls(count: usize) -> Vec<u8> {
        wire::pack(&vec![Value::Null; count]).expect("CBOR")
    }

    /// Pieces as large as `bytes`, until no more is given.
    fn fills(share: &MemoryShare, bytes: usize, kind: ReservationKind) -> Vec<MemoryReservation> {
        std::iter::from_fn(|| share.take(bytes, kind).ok()).collect()
    }

    #[test]
    fn memory_is_shared_and_given_back() {
        let memory = SessionMemoryPool::default();
        let ours: Vec<_> = (0..5).map(|_| memory.share("ours")).collect();
        let fill = |share| fills(share, MEMORY_OF_SESSION_MAX / 8, ReservationKind::Passing);
        let held: Vec<_> = ours.iter().flat_map(fill).collect();
        assert_eq!(memory.used(), MEMORY_OF_TENANT_MAX, "of four of the five");
        let more = |share: &MemoryShare| share.take(1, ReservationKind::Passing).expect_err("full");
        assert_eq!(more(&ours[0]), ReadRefusal::TooMuch);
        assert_eq!(more(&ours[4]), ReadRefusal::Full);
        let theirs = memory.share("theirs");
        let all = theirs.take(MEMORY_OF_SESSION_MAX, ReservationKind::Passing);
        let all = all.expect("another tenant");
        assert_eq!(more(&theirs), ReadRefusal::TooMuch);
        drop((held, all));
        assert_eq!(memory.used(), 0);
        let most = MEMORY_OF_TENANT_MAX + MEMORY_OF_SESSION_MAX;
        assert_eq!(memory.peak(), most, "without what was refused");
        assert!(lock(&memory.0).tenants.is_empty(), "they are forgotten");
    }

    #[test]
    fn all_tenants_together_have_a_bound_and_two_leave_others_room() {
        let memory = SessionMemoryPool::default();
        let fill = |tenant: &str, bytes: usize| -> Vec<MemoryReservation> {
            let shares = [(); 4].map(|()| memory.share(tenant));
            let all = shares
                .iter()
                .flat_map(|share| fills(share, bytes, ReservationKind::Passing));
            all.collect()
        };
        let mut held = fill("eve", MEMORY_OF_SESSION_MAX);
        held.extend(fill("mallory", MEMORY_OF_SESSION_MAX));
        assert_eq!(
            memory.used(),
            MEMORY_MAX / 4 * 3,
            "the last quarter is left"
        );
        assert!(fill("mallory", 1).is_empty());
        // What the input of a call with 64 KiB takes, and as much for its answer.
        let ada = fill("ada", 128 << 10);
        assert!(ada.len() >= 2, "{}", ada.len());
        for n in 0..100 {
            held.extend(fill(&format!("other-{n}"), 16 << 10));
        }
        assert!(memory.used() < MEMORY_MAX);
        let last = memory.share("last");
        assert!(last.take(4 << 10, ReservationKind::Passing).is_ok());
        drop((held, ada));
        assert!(
            last.take(MEMORY_OF_SESSION_MAX, ReservationKind::Passing)
                .is_ok()
        );
    }

    /// They stay for as long as a session, and values have deadlines.
    #[test]
    fn registered_operations_leave_three_quarters_to_values() {
        let memory = SessionMemoryPool::default();
        let fill = |tenant: &str, bytes: usize| -> Vec<MemoryReservation> {
            let shares = [(); 4].map(|()| memory.share(tenant));
            let all = shares
                .iter()
                .flat_map(|share| fills(share, bytes, ReservationKind::Registered));
            all.collect()
        };
        let mut held = fill("eve", 1 << 20);
        assert_eq!(memory.used(), REGISTERED_OF_TENANT_MAX);
        for n in 0..100 {
            held.extend(fill(&format!("other-{n}"), 1 << 10));
            held.extend(fill(&format!("large-{n}"), 1 << 20));
        }
        assert!(memory.used() < REGISTERED_MAX);
        let ada = memory.share("ada");
        assert!(ada.take(4 << 10, ReservationKind::Registered).is_ok());
        let passing = [(); 4].map(|()| memory.share("ada"));
        let fill = |share| fills(share, 1 << 20, ReservationKind::Passing);
        assert_eq!(passing.iter().flat_map(fill).count(), 32);
        drop(held);
        let accounts = lock(&memory.0);
        assert_eq!((accounts.all.bytes, accounts.all.registered), (0, 0));
    }

    /// Services that are not called keep their states without an end, and values have deadlines.
    #[test]
    fn states_of_resting_services_leave_others_room() {
        let memory = SessionMemoryPool::default();
        let rest = |tenant: &str, bytes: usize| -> Vec<MemoryReservation> {
            let state = || {
                let mut held = memory.share(tenant).for_rest().ok()?;
                held.becomes(bytes).ok()?;
                Some(held)
            };
            std::iter::from_fn(state).collect()
        };
        let mut held = rest("lent eve", 1 << 20);
        held.extend(rest("lent eve", 64 << 10));
        held.extend(rest("lent mallory", 1 << 20));
        assert!(memory.used() > RESTED_OF_TENANT_MAX - RESTED_VALUE_MAX);
        assert!(memory.used() <= 2 * RESTED_OF_TENANT_MAX);
        let filled = ["eve", "mallory"].map(|tenant| {
            let share = memory.share(&format!("lent {tenant}"));
            let mut all = fills(&share, 1 << 20, ReservationKind::Rested);
            all.extend(fills(&share, 1 << 10, ReservationKind::Rested));
            all
        });
        assert_eq!(memory.used(), 2 * RESTED_OF_TENANT_MAX);
        let third = memory.share("lent ada").for_rest();
        assert!(third.is_ok(), "a third author's service can rest");
        let ada = memory.share("ada");
        assert!(ada.take(4 << 20, ReservationKind::Passing).is_ok());
        drop((held, filled, third));
        let accounts = lock(&memory.0);
        assert_eq!((accounts.all.bytes, accounts.all.rested), (0, 0));
    }

    #[test]
    fn a_state_that_is_to_rest_counts_with_the_others() {
        let memory = SessionMemoryPool::default();
        let share = memory.share("lent eve");
        let state = share.for_successor().expect("room");
        assert_eq!(lock(&memory.0).all.rested, RESTED_VALUE_MAX);
        let second = memory.share("lent eve");
        assert!(!second.may_rest_beside(0), "one beside it is too much");
        let refused = second.for_successor().map(drop);
        assert_eq!(refused, Err(ReadRefusal::Full), "the author's share");
        drop(state);
        assert!(second.may_rest_beside(RESTED_OF_TENANT_MAX - RESTED_VALUE_MAX));
        assert!(!second.may_rest_beside(RESTED_OF_TENANT_MAX - RESTED_VALUE_MAX + 1));
        // What the session itself has registered leaves less for its state, and the service can be changed.
        let registered = second.take(MEMORY_OF_SESSION_MAX - 1, ReservationKind::Registered);
        let state = second.for_successor().expect("the rest");
        assert_eq!(lock(&memory.0).all.rested, 1);
        drop((state, registered.expect("room")));
        let accounts = lock(&memory.0);
        assert_eq!((accounts.all.bytes, accounts.all.rested), (0, 0));
    }

    /// Values of others leave by themselves; those of the session leave when its own calls end.
    #[test]
    fn only_room_that_others_have_is_worth_another_try() {
        for (refused, retryable) in [
            (ReadRefusal::Full, true),
            (ReadRefusal::TooMuch, false),
            (ReadRefusal::Wrong, false),
        ] {
            let error = refused.error("input");
            assert_eq!(error.retryable, retryable, "{error}");
            assert_eq!(error.says_no_capacity(), retryable, "{error}");
        }
    }

    #[test]
    fn what_has_no_room_is_refused_before_it_is_made() {
        let memory = SessionMemoryPool::default();
        let share = memory.share("a");
        let refused = |bytes: &[u8]| share.read::<Value>(bytes).map(drop).expect_err("no room");
        assert_eq!(refused(&nulls(1_000_000)), ReadRefusal::TooMuch);
        assert_eq!(refused(&[0x9f, 0xf6, 0xff]), ReadRefusal::Wrong);
        let (value, held) = share.read::<Value>(&nulls(1000)).expect("room");
        assert_eq!(value.as_array().map(Vec::len), Some(1000));
        assert_eq!(memory.used(), 1001 * alknet_runtime::weight::VALUE);
        drop(held);
        let mut fds = Vec::new();
        let blob = FrameBlob::pack(nulls(1_000_000), &mut fds).expect("packed");
        let refused = share.open::<Value>(blob, &fds).map(drop).expect_err("none");
        assert_eq!(refused, ReadRefusal::TooMuch);
        assert_eq!(memory.used(), 0);
    }
}
