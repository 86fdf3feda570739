//! Hashes of the data and of each entry in it. Their trees begin at other offsets than the file's, so each byte is
//! hashed twice more; long data is hashed on a second thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use blake3::Hash;

use crate::writer::batch::WriteBatch;
use crate::writer::chunk_aligner::ChunkAligner;

/// Batches that wait for the other thread.
const BATCHES: usize = 3;
/// Bytes of data from which a second thread is worth its start.
const THREAD_FROM: u64 = 4 << 20;

#[derive(Debug, Default)]
pub(super) struct Hashers {
    data: ChunkAligner,
    entry: ChunkAligner,
    entries: Vec<Hash>,
}

impl Hashers {
    fn take(&mut self, batch: &WriteBatch) {
        self.data.update(&batch.bytes);
        let mut start = 0;
        for end in &batch.ends {
            self.entries
                .push(self.entry.last(&batch.bytes[start..*end]));
            start = *end;
        }
        self.entry.update(&batch.bytes[start..]);
    }
}

/// The hashers, on this thread or on another one.
#[derive(Debug)]
pub(super) enum HashPipeline {
    This(Box<Hashers>),
    Other {
        full: SyncSender<Arc<WriteBatch>>,
        done: Receiver<Arc<WriteBatch>>,
        thread: JoinHandle<Box<Hashers>>,
    },
}

impl HashPipeline {
    /// Prepares to hash `data_len` bytes.
    pub(super) fn new(data_len: u64) -> Self {
        // If no thread can be started, this thread hashes.
        let other = (data_len >= THREAD_FROM).then(start).and_then(Result::ok);
        other.unwrap_or_else(|| Self::This(Box::default()))
    }

    /// Hashes a batch, or sends it to the thread that hashes.
    pub(super) fn take(&mut self, batch: &Arc<WriteBatch>) -> io::Result<()> {
        match self {
            Self::This(hashers) => hashers.take(batch),
            Self::Other { full, .. } => full.send(Arc::clone(batch)).map_err(|_| gone())?,
        }
        Ok(())
    }

    /// A batch that the other thread has hashed, if there is one by now.
    pub(super) fn done(&self) -> Option<Arc<WriteBatch>> {
        match self {
            Self::This(_) => None,
            Self::Other { done, .. } => done.try_recv().ok(),
        }
    }

    /// The hash of the data, and of each entry.
    pub(super) fn end(self) -> io::Result<(Hash, Vec<Hash>)> {
        let mut hashers = match self {
            Self::This(hashers) => hashers,
            Self::Other { full, thread, .. } => {
                // Dropping the sender ends the loop of the other thread.
                drop(full);
                thread.join().map_err(|_| gone())?
            }
        };
        Ok((hashers.data.last(&[]), hashers.entries))
    }
}

/// The error if the other thread ended early, which only exhausted memory can cause.
fn gone() -> io::Error {
    io::Error::other("the thread that hashes ended")
}

fn start() -> io::Result<HashPipeline> {
    // The bound keeps a fast writer from filling memory with batches.
    let (full, batches) = sync_channel::<Arc<WriteBatch>>(BATCHES);
    let (back, done) = channel();
    let thread = thread::Builder::new()
        .name("tensor-hash".to_owned())
        .spawn(move || {
            let mut hashers = Box::<Hashers>::default();
            for batch in batches {
                hashers.take(&batch);
                // A writer that failed no longer receives batches.
                let _ = back.send(batch);
            }
            hashers
        })?;
    Ok(HashPipeline::Other { full, done, thread })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_parts_on_either_thread() {
        let data: Vec<u8> = (0..1_300_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        let lens = [0, 1, 0, 262_143, 262_144, 700_000, 5, 0];
        for data_len in [0, THREAD_FROM] {
            let mut sums = HashPipeline::new(data_len);
            assert_eq!(matches!(sums, HashPipeline::Other { .. }), data_len > 0);
            let (mut start, mut expected, mut batch) = (0, Vec::new(), WriteBatch::default());
            let mut pass = |batch: &mut WriteBatch| {
                let full = batch.share();
                sums.take(&full).expect("it hashes");
                batch.reuse(full);
            };
            for len in lens {
                let entry = &data[start..start + len];
                for mut piece in entry.chunks(100_000) {
                    while !piece.is_empty() {
                        piece = &piece[batch.fill(piece)..];
                        if batch.is_full() {
                            pass(&mut batch);
                        }
                    }
                }
                batch.ends.push(batch.bytes.len());
                expected.push(blake3::hash(entry));
                start += len;
            }
            pass(&mut batch);
            let (all, entries) = sums.end().expect("it hashes");
            assert_eq!(all, blake3::hash(&data[..start]));
            assert_eq!(entries, expected);
        }
    }
}
