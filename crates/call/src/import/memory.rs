//! Bytes that imported servers make this node keep: their answers, and the requests that are written for them.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::error::{CallError, ErrorCode};
use crate::limits::{BYTES_SHARE, bytes_for_memory, leaves_room};
use crate::sync::lock;

/// The account of all imports of a node. Each import has a [share](Self::share) of it. Clones are the same account.
#[derive(Clone, Debug)]
pub struct ImportMemory(Arc<ImportAccount>);

#[derive(Debug)]
struct ImportAccount {
    most: usize,
    taken: Mutex<ImportUsage>,
}

/// Bytes that are taken now.
#[derive(Debug, Default)]
struct ImportUsage {
    all: usize,
    /// Of each import, in the order in which they began.
    each: Vec<usize>,
}

impl ImportMemory {
    /// For a machine with so much memory: as much as requests that run may have.
    #[must_use]
    pub fn for_machine(memory_bytes: u64) -> Self {
        Self(Arc::new(ImportAccount {
            most: bytes_for_memory(memory_bytes),
            taken: Mutex::default(),
        }))
    }

    /// The share of one more import: half of all, and of the last quarter a part of what is left.
    #[must_use]
    pub fn share(&self) -> ImportShare {
        let mut taken = lock(&self.0.taken);
        taken.each.push(0);
        ImportShare {
            account: Arc::clone(&self.0),
            number: taken.each.len() - 1,
        }
    }

    /// Bytes that are taken now.
    #[must_use]
    pub fn taken(&self) -> usize {
        lock(&self.0.taken).all
    }
}

/// On a machine with enough memory.
impl Default for ImportMemory {
    fn default() -> Self {
        Self::for_machine(u64::MAX)
    }
}

/// What one import may take. Clones are the same share.
#[derive(Clone, Debug)]
pub struct ImportShare {
    account: Arc<ImportAccount>,
    number: usize,
}

impl ImportShare {
    /// Counts nothing yet.
    #[must_use]
    pub fn claim(&self) -> ImportClaim {
        ImportClaim {
            share: self.clone(),
            bytes: 0,
        }
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub struct ImportClaim {
    share: ImportShare,
    bytes: usize,
}

impl ImportClaim {
    /// Bytes that it counts.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts so many bytes instead of those that it counts.
    ///
    /// # Errors
    /// `OVERLOADED` where there is no room for them now, `PAYLOAD_TOO_LARGE` where there never is. It counts then as
    /// before.
    pub fn becomes(&mut self, bytes: usize) -> Result<(), CallError> {
        let ImportAccount { most, taken } = &*self.share.account;
        let each = most / BYTES_SHARE;
        let mut taken = lock(taken);
        let own = taken.each[self.share.number] - self.bytes + bytes;
        let all = taken.all - self.bytes + bytes;
        if bytes > self.bytes {
            if bytes > each {
                let message = format!("one imported server may make this node keep {each} bytes");
                return Err(CallError::new(ErrorCode::PayloadTooLarge, message));
            }
            if own > each {
                let what = "bytes of what one imported server sends and gets at once";
                return Err(CallError::overloaded(what, each));
            }
            if !leaves_room(own, all, *most) {
                let what = "bytes of what all imported servers send and get at once";
                return Err(CallError::overloaded(what, *most));
            }
        }
        taken.each[self.share.number] = own;
        taken.all = all;
        self.bytes = bytes;
        Ok(())
    }

    /// The same bytes, which stay counted until the last clone of them is dropped.
    #[must_use]
    pub fn hold(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(ImportHolding {
            bytes,
            _claim: self,
        })
    }
}

impl Drop for ImportClaim {
    fn drop(&mut self) {
        let mut taken = lock(&self.share.account.taken);
        taken.each[self.share.number] -= self.bytes;
        taken.all -= self.bytes;
    }
}

struct ImportHolding {
    bytes: Bytes,
    _claim: ImportClaim,
}

impl AsRef<[u8]> for ImportHolding {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Claims pieces of so many bytes, until no more are given.
    fn fill(share: &ImportShare, bytes: usize) -> Vec<ImportClaim> {
        let next = || {
            let mut claim = share.claim();
            claim.becomes(bytes).ok().map(|()| claim)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn one_import_has_half_and_two_leave_others_room() {
        let memory = ImportMemory::for_machine(512 << 20);
        let (eve, mallory, ada) = (memory.share(), memory.share(), memory.share());
        let held = fill(&eve, MIB);
        assert_eq!(held.len(), 32);
        let refused = eve.claim().becomes(1).expect_err("half");
        assert_eq!(refused.code, ErrorCode::Overloaded);
        let more = fill(&mallory, MIB);
        assert_eq!(more.len(), 16, "the last quarter is left");
        assert!(!fill(&ada, 64 << 10).is_empty());
        assert_eq!(memory.taken(), 48 * MIB);
        let refused = ada.claim().becomes(33 * MIB).expect_err("more than a half");
        assert_eq!(refused.code, ErrorCode::PayloadTooLarge);
        drop((held, more));
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn bytes_count_until_their_last_clone_is_dropped() {
        let memory = ImportMemory::default();
        let mut claim = memory.share().claim();
        claim.becomes(100).expect("room");
        claim.becomes(10).expect("less");
        let held = claim.hold(Bytes::from_static(b"0123456789"));
        let part = held.slice(3..5);
        drop(held);
        assert_eq!((memory.taken(), &part[..]), (10, &b"34"[..]));
        drop(part);
        assert_eq!(memory.taken(), 0);
    }
}
