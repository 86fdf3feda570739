//! What the loop of PID 1 and the thread that stages a bundle tell each other.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::refusal::UpdateRefusal;

/// How far the staging of one bundle is, and whether the node still wants it.
///
/// A thread that applies a delta may read nothing of the stream for minutes. So it asks here, and not the stream, whether
/// to go on.
#[derive(Debug, Default)]
pub(crate) struct StagingProgress {
    /// Bytes of the bundle that were read.
    read: AtomicU64,
    /// Bytes of the program that were written to its slot.
    written: AtomicU64,
    /// Bytes of the program. Zero until the first one is written.
    program_bytes: AtomicU64,
    is_given_up: AtomicBool,
}

impl StagingProgress {
    /// Ends the staging: the node gave the bundle up or ended, a person waits for the media, or the machine goes down.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Bytes of the bundle that were read.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes of the program that were written, and all that it has, once it is being written.
    pub(crate) fn written(&self) -> Option<(u64, u64)> {
        let whole = self.program_bytes.load(Ordering::Relaxed);
        (whole > 0).then(|| (self.written.load(Ordering::Relaxed), whole))
    }

    /// Counts bytes of the bundle, and returns their sum.
    pub(super) fn count_read(&self, bytes: u64) -> u64 {
        self.read.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// A program of so many bytes is being written.
    pub(super) fn begin_program(&self, bytes: u64) {
        self.program_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Refuses to go on with a bundle that was given up.
    pub(super) fn require_wanted(&self) -> Result<(), UpdateRefusal> {
        match self.is_given_up() {
            true => Err(UpdateRefusal::given_up()),
            false => Ok(()),
        }
    }
}

/// What reads and writes of a bundle end with once it was given up.
pub(super) fn aborted() -> io::Error {
    io::Error::new(ErrorKind::ConnectionAborted, "the node gave the bundle up")
}
