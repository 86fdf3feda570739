//! The content of the area: words that two processes read and write at the same time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use zeroize::Zeroizing;

use crate::bip39::Seed;
use crate::crypto;
use crate::derive::{KeyVersion, PathIndex};

pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"ALKSEED1");
pub(super) const LAYOUT: u64 = 1;

/// The bits of the state that hold the phase.
const PHASE: u64 = 3;
const LOCKED: u64 = 0;
const WRITING: u64 = 1;
const OPEN: u64 = 2;

/// How often a reader retries while the other process writes, which takes a microsecond. After that the other process
/// has died or is hostile, and the reader finds no seed.
const LOOKS: usize = 1000;

/// The words in the order of the layout.
#[repr(C)]
#[derive(Default)]
pub(super) struct AreaWords {
    pub(super) magic: AtomicU64,
    pub(super) layout: AtomicU64,
    pub(super) device: AtomicU64,
    pub(super) versions: AtomicU64,
    pub(super) kind: AtomicU64,
    pub(super) hard: AtomicU64,
    pub(super) state: AtomicU64,
    _reserved: AtomicU64,
    pub(super) seed: [AtomicU64; 8],
    pub(super) check: [AtomicU64; 4],
}

/// Debug output shows none of the words.
impl fmt::Debug for AreaWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AreaWords(..)")
    }
}

/// A whole seed, and the epoch of its unlocking.
pub(crate) struct UnlockedSeed {
    pub(crate) seed: Seed,
    pub(crate) epoch: u64,
}

impl AreaWords {
    /// Makes zeroed memory an empty area.
    pub(super) fn initialize(&self, kind: u64) {
        let version = u64::from(KeyVersion::FIRST.number());
        self.versions
            .store(version << 32 | version, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.layout.store(LAYOUT, Ordering::Relaxed);
        // The magic number is stored last: a reader that finds it finds the other words as well.
        self.magic.store(MAGIC, Ordering::Release);
    }

    /// Whether the state says that there is a seed; [`AreaWords::read`] checks it.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) & PHASE != LOCKED
    }

    pub(super) fn unlock(&self, device: PathIndex, seed: &Seed) -> Option<u64> {
        let mine = (0..LOOKS).find_map(|_| {
            let state = self.state.load(Ordering::Acquire);
            // Each unlocking has an epoch of its own, by which a reader detects a change and back.
            let mine = (state >> 2).wrapping_add(1) << 2 | WRITING;
            // A phase without a whole seed was left by a process that died; this call starts again.
            match self.read(device) {
                Some(_) => Some(None),
                None => self.exchange(state, mine).is_ok().then_some(Some(mine)),
            }
        });
        let mine = mine.flatten()?;
        // The phase becomes "writing" before any word of the seed changes, as in a sequence lock.
        fence(Ordering::Release);
        let check = check(device, seed);
        for (word, bytes) in self.seed.iter().zip(seed.expose().chunks_exact(8)) {
            word.store(word_of(bytes), Ordering::Relaxed);
        }
        for (word, bytes) in self.check.iter().zip(check.chunks_exact(8)) {
            word.store(word_of(bytes), Ordering::Relaxed);
        }
        match self.exchange(mine, mine - WRITING + OPEN) {
            Ok(()) => Some(mine >> 2),
            // The other process, or another thread, has locked meanwhile: words written after that are wiped as well.
            Err(now) if now & PHASE == LOCKED => {
                self.wipe();
                Some(mine >> 2)
            }
            // The other process, or another thread, has unlocked.
            Err(_) => None,
        }
    }

    pub(super) fn lock(&self) -> bool {
        // The phase changes before the words are wiped: a reader under way notices it, and no new one starts.
        let before = self.state.fetch_and(!PHASE, Ordering::AcqRel);
        fence(Ordering::Release);
        self.wipe();
        before & PHASE != LOCKED
    }

    pub(super) fn read(&self, device: PathIndex) -> Option<UnlockedSeed> {
        for _ in 0..LOOKS {
            let state = self.state.load(Ordering::Acquire);
            match state & PHASE {
                OPEN => {}
                WRITING => {
                    std::hint::spin_loop();
                    continue;
                }
                _ => return None,
            }
            let mut seed = Seed::zeroed();
            for (bytes, word) in seed.expose_mut().chunks_exact_mut(8).zip(&self.seed) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
            let mut stored = Zeroizing::new([0; 32]);
            for (bytes, word) in stored.chunks_exact_mut(8).zip(&self.check) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
            // The words are read before the state is read again: if it is unchanged, they belong together.
            fence(Ordering::Acquire);
            if self.state.load(Ordering::Relaxed) != state {
                continue;
            }
            let epoch = state >> 2;
            // The hash also detects a seed of another device, and words that another process left half written.
            return (check(device, &seed) == stored).then_some(UnlockedSeed { seed, epoch });
        }
        None
    }

    pub(super) fn wipe(&self) {
        for word in self.seed.iter().chain(&self.check) {
            word.store(0, Ordering::Relaxed);
        }
        // The fence completes the stores before any later access, even though no code reads the words.
        fence(Ordering::SeqCst);
        std::hint::black_box(self);
    }

    fn exchange(&self, from: u64, to: u64) -> Result<(), u64> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let exchanged = self.state.compare_exchange(from, to, success, failure);
        exchanged.map(|_| ())
    }
}

/// The hash that identifies a whole seed of that device.
fn check(device: PathIndex, seed: &Seed) -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 4 + 64]);
    bytes[..4].copy_from_slice(&device.number().to_be_bytes());
    bytes[4..].copy_from_slice(seed.expose());
    Zeroizing::new(crypto::sha256(bytes.as_slice()))
}

fn word_of(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().expect("pieces of eight bytes"))
}
