//! The memory in which an unlocked vault keeps its seed, and which two processes may share.
//!
//! PID 1 makes an area and unlocks the vault; the node inherits the area's descriptor, maps it, and has the same
//! vault. `lock` in either process wipes the seed for both, and a node that restarts after a crash finds the vault
//! open without an owner at the console.
//!
//! The memory is `memfd_secret` if the kernel has it (x86-64 and arm64, 5.14 and later, if not switched off): a
//! process can read it only through a mapping, and the kernel keeps no copies of it (memfd_secret(2)). Otherwise it
//! is a memfd that can neither grow nor shrink, is locked in memory and is left out of core dumps. [`AreaKind`] says
//! which of them it is.
//!
//! ```text
//!  0  8  "ALKSEED1"                       40  8  how often it was locked hard
//!  8  8  layout, 1                        48  8  state: epoch × 4 + phase
//! 16  8  device                           56  8  zero
//! 24  8  key versions: current, oldest    64 64  seed
//! 32  8  kind: 1 memfd_secret, 2 memfd   128 32  SHA-256 of device and seed
//! ```
//!
//! The area holds words of 64 bits in the machine's byte order. Every access is atomic, so concurrent accesses of the
//! other process are no undefined behaviour.
//!
//! Neither process waits for the other, which may have died at any step: a writer takes the state by one exchange,
//! and a reader accepts a seed only if the state did not change meanwhile and the hash matches. Both processes
//! therefore see a whole seed or none. Two processes that unlock and lock within the same microsecond may end without
//! a seed, but never with half of one.

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

/// Bytes of a shared area.
pub const AREA_BYTES: u64 = 4096;

/// The kind of memory of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AreaKind {
    /// Heap memory of this process.
    Private,
    /// A memfd of fixed size, locked in memory and left out of core dumps. A process that may trace one of the two
    /// can read it.
    Sealed,
    /// `memfd_secret`: a process can read it through a mapping only.
    Secret,
}

impl AreaKind {
    /// The name that a status shows.
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

/// Why an area cannot be made or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AreaError {
    /// The caller tried to set the device while the vault is open.
    #[error("the device is set while the vault is locked")]
    Open,
    /// The kernel refused a call.
    #[error("{what} failed ({source})")]
    Io {
        /// The name of the call.
        what: &'static str,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A later program made the area.
    #[error("the area has layout {0}; this program knows 1")]
    Newer(u64),
    /// The descriptor is no area, or its content was changed.
    #[error("the descriptor is no area of a vault: {0}")]
    NotAnArea(&'static str),
}

impl AreaError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Memory for the seed of a vault. Dropping a private area wipes it; a shared one lives until the last process that
/// maps it ends.
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
    /// An empty area of the best kind that this kernel has. The descriptor is closed at an exec: the caller that
    /// starts the other process has to pass it on.
    pub fn create() -> Result<Self, AreaError> {
        match Self::create_as(AreaKind::Secret) {
            // The kernel lacks it or has it switched off, or the limit of locked memory is reached.
            Err(AreaError::Io { .. }) => Self::create_as(AreaKind::Sealed),
            made => made,
        }
    }

    /// An empty area of this kind, or an error if the kernel does not have it.
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

    /// The area that this process inherited. Another process may have written its content, so it is checked first;
    /// processes that this one starts do not inherit the descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, AreaError> {
        let info = sys::describe(fd.as_fd()).map_err(AreaError::io("looking at the descriptor"))?;
        let kind = match info.origin {
            MemoryOrigin::Other => return Err(AreaError::NotAnArea("it is no memory of its own")),
            // Another process could truncate it under the mapping, and the next access would end this process with
            // SIGBUS.
            MemoryOrigin::Memory { fixed: false } => {
                return Err(AreaError::NotAnArea("its size is not fixed"));
            }
            MemoryOrigin::Memory { fixed: true } => AreaKind::Sealed,
            MemoryOrigin::Secret => AreaKind::Secret,
        };
        if info.bytes != AREA_BYTES {
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
        // Both processes must agree on the kind of the memory.
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

    /// An area for a vault that is not shared.
    pub(crate) fn private() -> Self {
        let words = Box::<AreaWords>::default();
        words.initialize(AreaKind::Private.word());
        Self {
            memory: AreaMemory::Private(words),
            kind: AreaKind::Private,
        }
    }

    /// The kind of memory.
    #[must_use]
    pub fn kind(&self) -> AreaKind {
        self.kind
    }

    /// The descriptor that the other process has to inherit; `None` for a private area.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.memory {
            AreaMemory::Private(_) => None,
            AreaMemory::Shared(_, fd) => Some(fd.as_fd()),
        }
    }

    /// The number of the node among the nodes of its words: 0 until [`set_device`](Self::set_device) sets it.
    #[must_use]
    pub fn device(&self) -> PathIndex {
        self.words().device().unwrap_or_default()
    }

    /// Sets the number of the node among the nodes of its words, before a vault is made over the area.
    pub fn set_device(&self, device: PathIndex) -> Result<(), AreaError> {
        // The device is a part of the hash over the seed, so it cannot change under an open vault.
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
        // Both versions share one word, so that the other process never sees one without the other.
        let word = u64::from(current) << 32 | u64::from(oldest);
        self.words().versions.store(word, Ordering::Release);
    }

    /// Stores the seed; returns the new epoch, or `None` if there is a seed already.
    pub(crate) fn unlock(&self, device: PathIndex, seed: &Seed) -> Option<u64> {
        self.words().unlock(device, seed)
    }

    /// Wipes the seed for both processes, without waiting for the other one.
    pub(crate) fn lock(&self) -> bool {
        self.words().lock()
    }

    /// The seed, if there is a whole one for that device.
    pub(crate) fn read(&self, device: PathIndex) -> Option<UnlockedSeed> {
        self.words().read(device)
    }

    /// How often one of the processes has revoked all keys.
    pub(crate) fn hard_locks(&self) -> u64 {
        self.words().hard.load(Ordering::Acquire)
    }

    /// Counts one more revocation; returns the new count.
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
