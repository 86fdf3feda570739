//! The one place where an unlocked vault keeps its seed, which two processes may share.
//!
//! PID 1 makes an area and unlocks; the node inherits its descriptor, maps it, and has the same vault.
//! `lock` in either wipes it for both, and a node that crashed finds it again while no owner types.
//!
//! The memory is `memfd_secret` where the kernel has it (x86-64 and arm64, 5.14 and later, if not
//! switched off): no other process, not even the kernel's own copies, reads it through another way than
//! the mapping. Elsewhere it is a memfd that can neither grow nor shrink, locked in memory and left out
//! of core dumps ([`AreaKind`] says which of them it is).
//!
//! ```text
//!  0  8  "ALKSEED1"                       40  8  how often it was locked hard
//!  8  8  layout, 1                        48  8  state: epoch × 4 + phase
//! 16  8  device                           56  8  zero
//! 24  8  key versions: current, oldest    64 64  seed
//! 32  8  kind: 1 memfd_secret, 2 memfd   128 32  SHA-256 of device and seed
//! ```
//!
//! Words of 64 bits in the order of the machine; every access is an atomic one, so that nothing that
//! the other process does at the same time is undefined here.
//!
//! Neither process waits for the other, which may have died in any step: writers take the state by one
//! exchange, and a reader believes a seed only if the state did not change meanwhile and the hash fits.
//! Both processes therefore see a whole seed or none. Two that unlock and lock within the same
//! microsecond may end with none, never with half of one.

#[expect(
    unsafe_code,
    reason = "mapping memory that two processes share, and asking the kernel what a descriptor is"
)]
mod sys;
mod words;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use thiserror::Error;

use crate::bip39::Seed;
use crate::derive::{KeyVersion, PathIndex};
use crate::vault::KeyVersions;
use sys::{AreaMapping, MemoryOrigin};
use words::{AreaWords, LAYOUT, MAGIC};

pub(crate) use words::UnlockedSeed;

/// Bytes of an area that is shared.
pub const AREA_BYTES: u64 = 4096;

/// What memory an area is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AreaKind {
    /// Of this process alone, on its heap.
    Private,
    /// A memfd of fixed size, locked in memory, not in core dumps. A process that may trace one of the
    /// two reads it.
    Sealed,
    /// `memfd_secret`: a process reads it through the mapping only.
    Secret,
}

impl AreaKind {
    /// Its name, for a status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Sealed => "memfd",
            Self::Secret => "memfd_secret",
        }
    }

    fn word(self) -> u64 {
        match self {
            Self::Private => 0,
            Self::Secret => 1,
            Self::Sealed => 2,
        }
    }
}

/// Why there is no area.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AreaError {
    /// The device is part of what is open.
    #[error("the device is set while the vault is locked")]
    Open,
    /// The kernel refused it.
    #[error("{what} failed ({source})")]
    Io {
        /// What was asked of it.
        what: &'static str,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The area of a later program.
    #[error("the area has layout {0}; this program knows 1")]
    Newer(u64),
    /// The descriptor is something else, or was changed.
    #[error("the descriptor is no area of a vault: {0}")]
    NotAnArea(&'static str),
}

impl AreaError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Memory for the seed of a vault. A private one is wiped when it is dropped; one that is shared only
/// goes with the last process that has it.
#[derive(Debug)]
pub struct SeedArea {
    memory: AreaMemory,
    kind: AreaKind,
}

#[derive(Debug)]
enum AreaMemory {
    Private(Box<AreaWords>),
    Shared(AreaMapping, OwnedFd),
}

impl SeedArea {
    /// The best that this kernel has for two processes, with nothing in it. The descriptor does not
    /// survive an exec by itself: the caller that starts the other process passes it on.
    pub fn create() -> Result<Self, AreaError> {
        match Self::create_as(AreaKind::Secret) {
            // Not built in, switched off, or no memory may be locked that way.
            Err(AreaError::Io { .. }) => Self::create_as(AreaKind::Sealed),
            made => made,
        }
    }

    /// The same of one kind, or an error where the kernel does not have it.
    pub fn create_as(kind: AreaKind) -> Result<Self, AreaError> {
        let fd = match kind {
            AreaKind::Private => return Ok(Self::private()),
            AreaKind::Secret => {
                sys::memfd_secret(AREA_BYTES).map_err(AreaError::io("memfd_secret"))
            }
            AreaKind::Sealed => sys::sealed_memfd(AREA_BYTES).map_err(AreaError::io("memfd")),
        }?;
        let area = Self::mapped(fd, kind)?;
        area.words().initialize(kind.word());
        Ok(area)
    }

    /// The area that this process inherited. What it holds may come from another process and is looked at
    /// before it is believed; the descriptor is kept from processes that this one starts.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, AreaError> {
        let look = sys::look_at(fd.as_fd()).map_err(AreaError::io("looking at the descriptor"))?;
        let kind = match look.origin {
            MemoryOrigin::Other => return Err(AreaError::NotAnArea("it is no memory of its own")),
            // Another process could cut it off under a mapping, which ends the process.
            MemoryOrigin::Memory { fixed: false } => {
                return Err(AreaError::NotAnArea("its size is not fixed"));
            }
            MemoryOrigin::Memory { fixed: true } => AreaKind::Sealed,
            MemoryOrigin::Secret => AreaKind::Secret,
        };
        if look.bytes != AREA_BYTES {
            return Err(AreaError::NotAnArea("it has another size"));
        }
        sys::keep_from_children(fd.as_fd()).map_err(AreaError::io("keeping the descriptor"))?;
        let area = Self::mapped(fd, kind)?;
        let words = area.words();
        if words.magic.load(Ordering::Acquire) != MAGIC {
            return Err(AreaError::NotAnArea("it begins with something else"));
        }
        match words.layout.load(Ordering::Acquire) {
            LAYOUT => {}
            other => return Err(AreaError::Newer(other)),
        }
        // What the other process believes of the memory and what this one sees must agree.
        if words.kind.load(Ordering::Acquire) != kind.word() {
            return Err(AreaError::NotAnArea("it says to be of another kind"));
        }
        if words.device().is_none() {
            return Err(AreaError::NotAnArea("its device number is invalid"));
        }
        if words.versions().is_none() {
            return Err(AreaError::NotAnArea("its key versions are invalid"));
        }
        Ok(area)
    }

    /// For a vault that is not shared with another process.
    pub(crate) fn private() -> Self {
        let words = Box::<AreaWords>::default();
        words.initialize(AreaKind::Private.word());
        Self {
            memory: AreaMemory::Private(words),
            kind: AreaKind::Private,
        }
    }

    /// What memory it is.
    #[must_use]
    pub fn kind(&self) -> AreaKind {
        self.kind
    }

    /// What the other process has to inherit; nothing for a private one.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.memory {
            AreaMemory::Private(_) => None,
            AreaMemory::Shared(_, fd) => Some(fd.as_fd()),
        }
    }

    /// Which of the nodes of its words it is for: 0 until [`set_device`](Self::set_device) says
    /// otherwise.
    #[must_use]
    pub fn device(&self) -> PathIndex {
        self.words().device().unwrap_or_default()
    }

    /// Says which of the nodes of its words it is for, before a vault is made over it.
    pub fn set_device(&self, device: PathIndex) -> Result<(), AreaError> {
        if self.words().is_open() {
            return Err(AreaError::Open);
        }
        let word = u64::from(device.number());
        self.words().device.store(word, Ordering::Release);
        Ok(())
    }

    pub(crate) fn versions(&self) -> KeyVersions {
        self.words().versions().unwrap_or_default()
    }

    pub(crate) fn set_versions(&self, versions: KeyVersions) {
        let (current, oldest) = (versions.current.number(), versions.oldest.number());
        let word = u64::from(current) << 32 | u64::from(oldest);
        self.words().versions.store(word, Ordering::Release);
    }

    /// Puts the seed in; answers the new epoch, or nothing where there is one already.
    pub(crate) fn unlock(&self, device: PathIndex, seed: &Seed) -> Option<u64> {
        self.words().unlock(device, seed)
    }

    /// Wipes the seed for both processes, without waiting for the other.
    pub(crate) fn lock(&self) -> bool {
        self.words().lock()
    }

    /// The seed, if there is a whole one of that device.
    pub(crate) fn read(&self, device: PathIndex) -> Option<UnlockedSeed> {
        self.words().read(device)
    }

    /// How often all keys were taken back, by whichever process.
    pub(crate) fn hard_locks(&self) -> u64 {
        self.words().hard.load(Ordering::Acquire)
    }

    /// One more time; answers how often now.
    pub(crate) fn count_hard_lock(&self) -> u64 {
        let before = self.words().hard.fetch_add(1, Ordering::AcqRel);
        before.wrapping_add(1)
    }

    fn mapped(fd: OwnedFd, kind: AreaKind) -> Result<Self, AreaError> {
        let locked = kind == AreaKind::Sealed;
        let mapping = AreaMapping::new(fd.as_fd(), AREA_BYTES, locked);
        let mapping = mapping.map_err(AreaError::io("mapping the area"))?;
        Ok(Self {
            memory: AreaMemory::Shared(mapping, fd),
            kind,
        })
    }

    fn words(&self) -> &AreaWords {
        match &self.memory {
            AreaMemory::Private(words) => words,
            AreaMemory::Shared(mapping, _) => mapping.words(),
        }
    }
}

impl Drop for SeedArea {
    fn drop(&mut self) {
        if let AreaMemory::Private(words) = &self.memory {
            words.wipe();
        }
    }
}

impl AreaWords {
    fn device(&self) -> Option<PathIndex> {
        let word = self.device.load(Ordering::Acquire);
        u32::try_from(word).ok().and_then(PathIndex::new)
    }

    fn versions(&self) -> Option<KeyVersions> {
        let word = self.versions.load(Ordering::Acquire);
        let version = |word: u64| u32::try_from(word).ok().and_then(KeyVersion::new);
        let current = version(word >> 32)?;
        let oldest = version(word & u64::from(u32::MAX))?;
        (oldest <= current).then_some(KeyVersions { current, oldest })
    }
}

#[cfg(test)]
mod tests;
