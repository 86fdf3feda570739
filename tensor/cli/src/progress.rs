//! The progress line of a command that takes long.

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use alknet_tensor::ReadAt;

/// How long a command may run before it shows progress.
const SILENCE: Duration = Duration::from_secs(2);
/// How often the progress line is updated after that.
const EVERY: Duration = Duration::from_millis(500);

/// Shows how many bytes have passed once a command takes long. Dropping it ends the line.
#[derive(Debug)]
pub struct ByteProgress {
    bytes: Arc<AtomicU64>,
    /// The bytes in all; 0 if they are not known.
    total: Arc<AtomicU64>,
    ended: Option<(Sender<()>, JoinHandle<()>)>,
}

impl ByteProgress {
    /// Counts towards `total` bytes, or without a percentage if `total` is unknown. If `shown` is
    /// false, no line is ever shown.
    #[must_use]
    pub fn new(what: &'static str, total: Option<u64>, shown: bool) -> Self {
        match shown {
            true => Self::with_output(what, total, SILENCE, io::stderr()),
            false => Self::unshown(total),
        }
    }

    /// Like `new`, with the line on `out`, where it begins after `silence`.
    #[must_use]
    pub fn with_output(
        what: &'static str,
        total: Option<u64>,
        silence: Duration,
        mut out: impl Write + Send + 'static,
    ) -> Self {
        let mut progress = Self::unshown(total);
        let (counted, all) = (Arc::clone(&progress.bytes), Arc::clone(&progress.total));
        let (end, ended) = channel::<()>();
        let tell = move || {
            let (mut wait, mut is_begun) = (silence, false);
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let total = all.load(Ordering::Relaxed);
                let text = line(what, counted.load(Ordering::Relaxed), total);
                // A closed standard error is no reason to fail the command.
                write!(out, "\r{text}").ok();
                (wait, is_begun) = (EVERY, true);
            }
            // A line was shown and does not end yet.
            if is_begun {
                writeln!(out).ok();
            }
        };
        // If the thread cannot start, the command runs without progress.
        let thread = thread::Builder::new().spawn(tell).ok();
        progress.ended = thread.map(|thread| (end, thread));
        progress
    }

    fn unshown(total: Option<u64>) -> Self {
        Self {
            bytes: Arc::default(),
            total: Arc::new(AtomicU64::new(total.unwrap_or(0))),
            ended: None,
        }
    }

    /// Sets how many of how many bytes have passed.
    pub fn set(&self, bytes: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Counts what passes through `inner`.
    pub(crate) fn watch<T>(&self, inner: T) -> CountedIo<T> {
        CountedIo {
            inner,
            bytes: Arc::clone(&self.bytes),
        }
    }
}

impl Drop for ByteProgress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.ended.take() {
            // Closing the channel wakes the thread at once.
            drop(end);
            thread.join().ok();
        }
    }
}

/// The progress line. All lines of a command are equally long, so each covers the one before it.
fn line(what: &str, bytes: u64, total: u64) -> String {
    let mb = bytes / 1_000_000;
    match total {
        // A command may read a file more than once, so more bytes may pass than the file has.
        total if total > 0 && bytes <= total => {
            // A product of 64 bits would overflow above 184 PB.
            let percent = u128::from(bytes) * 100 / u128::from(total);
            format!("{what}: {mb} MB, {percent:>3} %")
        }
        _ => format!("{what}: {mb} MB      "),
    }
}

/// Bytes that are counted as they pass.
#[derive(Debug)]
pub(crate) struct CountedIo<T> {
    inner: T,
    bytes: Arc<AtomicU64>,
}

impl<T> CountedIo<T> {
    pub(crate) fn into_inner(self) -> T {
        self.inner
    }

    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl<T: ReadAt> ReadAt for CountedIo<T> {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)?;
        self.count(buffer.len());
        Ok(())
    }
}

impl<T: Write> Write for CountedIo<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Seek> Seek for CountedIo<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_it_is() {
        assert_eq!(line("hash", 5_000_000, 10_000_000), "hash: 5 MB,  50 %");
        assert_eq!(line("pack", 5_000_000, 0).trim_end(), "pack: 5 MB");
        assert_eq!(line("hash", 2, 1).trim_end(), "hash: 0 MB");
    }

    #[test]
    fn bytes_are_counted_both_ways() {
        let progress = ByteProgress::new("x", None, true);
        let read = progress.watch(&b"abcdef"[..]);
        let mut two = [0; 2];
        read.read_exact_at(&mut two, 1).expect("in memory");
        let mut written = progress.watch(Vec::new());
        written.write_all(b"abc").expect("in memory");
        assert_eq!(progress.bytes.load(Ordering::Relaxed), 5);
    }
}
