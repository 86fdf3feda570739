//! The node's memory that scripts' values take.
//!
//! What comes from a worker is weighed before it is read ([`wire::weigh`]), and its weight is taken from
//! the session's share, its tenant's and that of all sessions, until the node is done with it. What finds
//! no room is refused and never made.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use alknet_runtime::{Code, OpError, Room};
use alknet_worker::Blob;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::lock;
use crate::limits::{
    MEMORY_MAX, MEMORY_OF_SESSION_MAX, MEMORY_OF_TENANT_MAX, REGISTERED_FACTOR, VALUE_BYTES_MAX,
};
use crate::wire;

/// What all sessions of a node may take.
#[derive(Debug)]
pub(super) struct Memory {
    all: Arc<Account>,
    tenants: Mutex<HashMap<String, Weak<Account>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            all: Arc::new(Account::new(MEMORY_MAX, None)),
            tenants: Mutex::default(),
        }
    }
}

impl Memory {
    /// The share of a new session.
    pub(super) fn share(&self, tenant: &str) -> Share {
        let mut tenants = lock(&self.tenants);
        tenants.retain(|_, account| account.strong_count() > 0);
        let known = tenants.get(tenant).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            let all = Some(Arc::clone(&self.all));
            let own = Arc::new(Account::new(MEMORY_OF_TENANT_MAX, all));
            tenants.insert(tenant.to_owned(), Arc::downgrade(&own));
            own
        });
        Share(Arc::new(Account::new(MEMORY_OF_SESSION_MAX, Some(own))))
    }

    /// Bytes that are taken.
    pub(super) fn used(&self) -> usize {
        self.all.used.load(Ordering::Relaxed)
    }
}

/// Bytes that are taken, of so many; and of what stands above.
#[derive(Debug)]
struct Account {
    used: AtomicUsize,
    max: usize,
    above: Option<Arc<Self>>,
}

impl Account {
    const fn new(max: usize, above: Option<Arc<Self>>) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max,
            above,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| {
            let mutant = std::env::var("ALKNET_MUTANT").unwrap_or_default();
            *used <= self.max
                || mutant == "2050" && self.max == MEMORY_OF_SESSION_MAX
                || mutant == "2051" && self.max == MEMORY_OF_TENANT_MAX
                || mutant == "2052" && self.max == MEMORY_MAX
        });
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        if self.used.fetch_update(set, get, more).is_err() {
            return false;
        }
        let fits = self.above.as_ref().is_none_or(|above| above.take(bytes));
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(above) = &self.above {
            above.give(bytes);
        }
    }
}

/// What one session may take. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Share(Arc<Account>);

impl Share {
    /// Takes so many bytes until what is returned is dropped.
    fn take(&self, bytes: usize) -> Result<Held, Refused> {
        match self.0.take(bytes) {
            true => Ok(Held {
                account: Arc::clone(&self.0),
                bytes,
            }),
            false => Err(Refused::Full),
        }
    }

    /// Takes what a record of calls grows by.
    pub(super) fn recording(&self) -> Arc<dyn Room> {
        let none = Held {
            account: Arc::clone(&self.0),
            bytes: 0,
        };
        Arc::new(Growing(Mutex::new(none)))
    }

    /// Reads a value of a worker's that may lie beside its frame.
    pub(super) fn open<T: DeserializeOwned>(
        &self,
        blob: Blob,
        fds: &[OwnedFd],
    ) -> Result<(T, Held), Refused> {
        let mut held = self.take(len(&blob)?)?;
        let bytes = blob
            .read(fds, VALUE_BYTES_MAX)
            .map_err(|_| Refused::Wrong)?;
        let weight = wire::weigh(&bytes).map_err(|_| Refused::Wrong)?;
        held.becomes(weight.max(bytes.len()))?;
        Ok((wire::unpack(&bytes).map_err(|_| Refused::Wrong)?, held))
    }

    /// Reads what lies in a frame.
    pub(super) fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<(T, Held), Refused> {
        self.read_times(bytes, 1)
    }

    /// The same for an operation that stays registered.
    pub(super) fn keep<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<(T, Held), Refused> {
        self.read_times(bytes, REGISTERED_FACTOR)
    }

    fn read_times<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
        times: usize,
    ) -> Result<(T, Held), Refused> {
        let weight = wire::weigh(bytes).map_err(|_| Refused::Wrong)?;
        let held = self.take(weight.saturating_mul(times))?;
        Ok((wire::unpack(bytes).map_err(|_| Refused::Wrong)?, held))
    }

    /// Reads bytes that are no value.
    pub(super) fn bytes(&self, blob: Blob, fds: &[OwnedFd]) -> Result<(Vec<u8>, Held), Refused> {
        let held = self.take(len(&blob)?)?;
        let bytes = blob
            .read(fds, VALUE_BYTES_MAX)
            .map_err(|_| Refused::Wrong)?;
        Ok((bytes, held))
    }
}

/// What grows piece by piece, as a record of calls does.
#[derive(Debug)]
struct Growing(Mutex<Held>);

impl Room for Growing {
    fn take(&self, bytes: usize) -> bool {
        let mut held = lock(&self.0);
        let all = held.bytes.saturating_add(bytes);
        held.becomes(all).is_ok()
    }
}

fn len(blob: &Blob) -> Result<usize, Refused> {
    usize::try_from(blob.len()).map_err(|_| Refused::Full)
}

/// Bytes that are given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    account: Arc<Account>,
    bytes: usize,
}

impl Held {
    /// Takes the difference, or gives it back.
    fn becomes(&mut self, bytes: usize) -> Result<(), Refused> {
        match bytes.checked_sub(self.bytes) {
            Some(more) if !self.account.take(more) => return Err(Refused::Full),
            Some(_) => {}
            None => self.account.give(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Takes as much again, for the text that the value is passed on as.
    pub(super) fn twice(&mut self) -> Result<(), Refused> {
        self.becomes(self.bytes.saturating_mul(2))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.give(self.bytes);
    }
}

/// Why something of a worker's was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no room for it.
    Full,
    /// It is no value of its kind, or larger than one may be.
    Wrong,
}

impl Refused {
    /// As the script is told of it.
    pub(super) fn error(self, what: &str) -> OpError {
        match self {
            Self::Full => OpError {
                retryable: true,
                details: Box::new(json!({ "code": Code::Quota.name() })),
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

    #[test]
    fn memory_is_shared_and_given_back() {
        let memory = Memory::default();
        let ours: Vec<_> = (0..5).map(|_| memory.share("ours")).collect();
        let mut held = Vec::new();
        for share in &ours {
            while let Ok(more) = share.take(MEMORY_OF_SESSION_MAX / 8) {
                held.push(more);
            }
        }
        assert_eq!(memory.used(), MEMORY_OF_TENANT_MAX, "of four of the five");
        let theirs = memory.share("theirs");
        let all = theirs.take(MEMORY_OF_SESSION_MAX).expect("another tenant");
        assert_eq!(theirs.take(1).expect_err("full"), Refused::Full);
        drop((held, all));
        assert_eq!(memory.used(), 0);
        drop((ours, theirs));
        drop(memory.share("third"));
        assert_eq!(lock(&memory.tenants).len(), 1, "the others are forgotten");
    }

    #[test]
    fn all_tenants_together_have_a_bound() {
        let memory = Memory::default();
        let shares: Vec<_> = ["a", "b", "c", "d"]
            .iter()
            .flat_map(|tenant| [(); 4].map(|()| memory.share(tenant)))
            .collect();
        let mut held = Vec::new();
        for share in &shares {
            held.extend(share.take(MEMORY_OF_SESSION_MAX));
        }
        assert_eq!(held.len(), 8, "two tenants have all of it");
        assert_eq!(memory.used(), MEMORY_MAX);
        let last = shares.last().expect("some");
        assert_eq!(last.take(1).expect_err("none is left"), Refused::Full);
        drop(held);
        assert!(last.take(1).is_ok(), "it was given back");
    }

    #[test]
    fn what_has_no_room_is_refused_before_it_is_made() {
        let memory = Memory::default();
        let share = memory.share("a");
        let refused = |bytes: &[u8]| share.read::<Value>(bytes).map(drop).expect_err("no room");
        assert_eq!(refused(&nulls(1_000_000)), Refused::Full);
        assert_eq!(refused(&[0x9f, 0xf6, 0xff]), Refused::Wrong);
        let (value, held) = share.read::<Value>(&nulls(1000)).expect("room");
        assert_eq!(value.as_array().map(Vec::len), Some(1000));
        assert_eq!(memory.used(), 1001 * alknet_runtime::weight::VALUE);
        drop(held);
        let mut fds = Vec::new();
        let blob = Blob::pack(nulls(1_000_000), &mut fds).expect("packed");
        let refused = share.open::<Value>(blob, &fds).map(drop).expect_err("none");
        assert_eq!(refused, Refused::Full);
        assert_eq!(memory.used(), 0);
    }
}
