//! Hashes of the data and of each entry in it. They begin at other places than the file does, so each
//! byte is hashed twice more; where there is much of it, on a thread beside the one that writes.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use blake3::{Hash, Hasher};

/// Bytes that are hashed at once.
const BATCH_BYTES: usize = 256 << 10;
/// Batches under way to the other thread.
const BATCHES: usize = 4;
/// Bytes of data from which on another thread is worth its start.
const THREAD_FROM: u64 = 4 << 20;

/// Bytes of data, and where entries end in them.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

#[derive(Debug, Default)]
struct Hashers {
    data: Hasher,
    entry: Hasher,
    entries: Vec<Hash>,
}

impl Hashers {
    fn take(&mut self, batch: &Batch) {
        self.data.update(&batch.bytes);
        let mut start = 0;
        for end in &batch.ends {
            self.entry.update(&batch.bytes[start..*end]);
            self.entries.push(self.entry.finalize());
            self.entry.reset();
            start = *end;
        }
        self.entry.update(&batch.bytes[start..]);
    }
}

/// Who hashes.
#[derive(Debug)]
enum Who {
    This(Box<Hashers>),
    Other {
        full: SyncSender<Batch>,
        empty: Receiver<Batch>,
        thread: JoinHandle<Box<Hashers>>,
    },
}

/// The hashes on their way.
#[derive(Debug)]
pub(super) struct Sums {
    batch: Batch,
    who: Who,
}

impl Sums {
    /// For so many bytes of data.
    pub(super) fn new(data_len: u64) -> Self {
        // Where no thread can be had, this one does it.
        let other = (data_len >= THREAD_FROM).then(start).and_then(Result::ok);
        Self {
            batch: Batch::default(),
            who: other.unwrap_or_else(|| Who::This(Box::default())),
        }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BATCH_BYTES - self.batch.bytes.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.batch.bytes.extend_from_slice(now);
            bytes = later;
            if self.batch.bytes.len() == BATCH_BYTES {
                self.pass()?;
            }
        }
        Ok(())
    }

    pub(super) fn end_entry(&mut self) {
        self.batch.ends.push(self.batch.bytes.len());
    }

    /// Hash of the data, and of each entry.
    pub(super) fn end(mut self) -> io::Result<(Hash, Vec<Hash>)> {
        self.pass()?;
        let hashers = match self.who {
            Who::This(hashers) => hashers,
            Who::Other { full, thread, .. } => {
                drop(full);
                thread.join().map_err(|_| gone())?
            }
        };
        Ok((hashers.data.finalize(), hashers.entries))
    }

    fn pass(&mut self) -> io::Result<()> {
        match &mut self.who {
            Who::This(hashers) => hashers.take(&self.batch),
            Who::Other { full, empty, .. } => {
                let next = empty.recv().map_err(|_| gone())?;
                let batch = std::mem::replace(&mut self.batch, next);
                full.send(batch).map_err(|_| gone())?;
            }
        }
        self.batch.bytes.clear();
        self.batch.ends.clear();
        Ok(())
    }
}

/// Nothing in the other thread can fail but memory.
fn gone() -> io::Error {
    io::Error::other("the thread that hashes ended")
}

fn start() -> io::Result<Who> {
    let (full, batches) = sync_channel::<Batch>(BATCHES);
    let (back, empty) = sync_channel(BATCHES);
    for _ in 0..BATCHES {
        back.send(Batch::default()).map_err(|_| gone())?;
    }
    let thread = thread::Builder::new()
        .name("tensor-hash".to_owned())
        .spawn(move || {
            let mut hashers = Box::<Hashers>::default();
            for batch in batches {
                hashers.take(&batch);
                // Whoever gave up wants no batch back.
                let _ = back.send(batch);
            }
            hashers
        })?;
    Ok(Who::Other {
        full,
        empty,
        thread,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_parts_on_either_thread() {
        let data: Vec<u8> = (0..1_300_000_u32).map(|at| (at * 31 % 251) as u8).collect();
        let lens = [0, 1, 0, 262_143, 262_144, 700_000, 5, 0];
        for data_len in [0, THREAD_FROM] {
            let mut sums = Sums::new(data_len);
            assert_eq!(matches!(sums.who, Who::Other { .. }), data_len > 0);
            let (mut start, mut expected) = (0, Vec::new());
            for len in lens {
                let entry = &data[start..start + len];
                for piece in entry.chunks(100_000) {
                    sums.update(piece).expect("it hashes");
                }
                sums.end_entry();
                expected.push(blake3::hash(entry));
                start += len;
            }
            let (all, entries) = sums.end().expect("it hashes");
            assert_eq!(all, blake3::hash(&data[..start]));
            assert_eq!(entries, expected);
        }
    }
}
