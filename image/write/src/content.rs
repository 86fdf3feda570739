//! The hash of an image, taken beside the writing, and what each of its blocks has to be when the disk is read back.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// Bytes of each block of an image but the last one.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that may wait for the thread that hashes. Each takes its bytes of memory.
const WAITING_MAX: usize = 2;
/// Blocks in memory at once: those that wait, the one that is hashed, and the one that is read or written.
const BUFFERS: usize = WAITING_MAX + 2;

/// What was written behind the head.
pub(crate) struct WrittenContent {
    blocks: Vec<BlockContent>,
    /// SHA-256 of the whole image in lower-case hexadecimal.
    pub(crate) sha256: String,
}

/// One block. Most of an image is zeros, which are compared sooner than hashed.
enum BlockContent {
    Zeros,
    Sha256([u8; 32]),
}

impl BlockContent {
    fn new(bytes: &[u8]) -> Self {
        match has_only_zeros(bytes) {
            true => Self::Zeros,
            false => Self::Sha256(Sha256::digest(bytes).into()),
        }
    }

    fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Zeros => has_only_zeros(bytes),
            Self::Sha256(hash) => *hash == <[u8; 32]>::from(Sha256::digest(bytes)),
        }
    }
}

impl WrittenContent {
    /// Whether block `index` has these bytes.
    pub(crate) fn has(&self, index: usize, bytes: &[u8]) -> bool {
        self.blocks.get(index).is_some_and(|block| block.is(bytes))
    }
}

/// Hands blocks to the thread that hashes them.
pub(crate) struct BlockQueue {
    blocks: SyncSender<Arc<Vec<u8>>>,
    buffers: [Arc<Vec<u8>>; BUFFERS],
    next: usize,
}

impl BlockQueue {
    /// Fills a block by `read`, which returns how many bytes it has, and hands it to the thread. The block is returned,
    /// for the disk.
    pub(crate) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Arc<Vec<u8>>, E> {
        let slot = &mut self.buffers[self.next];
        self.next = (self.next + 1) % BUFFERS;
        // The thread is done with a block before the queue takes the third one after it, unless the caller kept it.
        let mut buffer = std::mem::take(slot);
        let bytes = Arc::make_mut(&mut buffer);
        bytes.resize(BLOCK_BYTES, 0);
        let read = read(bytes)?;
        bytes.truncate(read);
        *slot = Arc::clone(&buffer);
        if read > 0 {
            // It fails only if the thread ended by a panic, which its handle returns.
            self.blocks.send(Arc::clone(&buffer)).ok();
        }
        Ok(buffer)
    }
}

/// Starts the thread that hashes `head` and the blocks behind it, and ends when the queue is dropped.
///
/// # Errors
/// The system starts no thread.
pub(crate) fn start_hashing<'scope>(
    scope: &'scope Scope<'scope, '_>,
    head: &[u8],
) -> io::Result<(BlockQueue, ScopedJoinHandle<'scope, WrittenContent>)> {
    let mut whole = Sha256::new();
    whole.update(head);
    let (blocks, handed) = sync_channel(WAITING_MAX);
    let thread = Builder::new().name("image-hash".to_owned());
    let thread = thread.spawn_scoped(scope, move || hash(whole, &handed))?;
    let queue = BlockQueue {
        blocks,
        buffers: std::array::from_fn(|_| Arc::default()),
        next: 0,
    };
    Ok((queue, thread))
}

fn hash(mut whole: Sha256, handed: &Receiver<Arc<Vec<u8>>>) -> WrittenContent {
    let mut blocks = Vec::new();
    for block in handed {
        whole.update(&**block);
        blocks.push(BlockContent::new(&block));
    }
    WrittenContent {
        blocks,
        sha256: HEXLOWER.encode(&whole.finalize()),
    }
}

/// Whether all bytes are zero, eight at a time: most bytes of an image are.
pub(crate) fn has_only_zeros(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let (groups, words) = words.as_chunks::<8>();
    let is_zero = |words: &[[u8; 8]]| {
        let any = words
            .iter()
            .fold(0, |any, word| any | u64::from_ne_bytes(*word));
        any == 0
    };
    groups.iter().all(|group| is_zero(group))
        && is_zero(words)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn one_byte_that_is_not_zero_is_found_anywhere() {
        for length in [0, 1, 7, 8, 63, 64, 65, 200] {
            let mut bytes = vec![0; length];
            assert!(has_only_zeros(&bytes), "{length}");
            for at in 0..length {
                bytes[at] = 0x80;
                assert!(!has_only_zeros(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }

    /// More blocks than buffers, some of zeros, and a short one at the end.
    #[test]
    fn each_block_is_known_by_its_bytes_and_all_by_one_hash() {
        let lengths = [BLOCK_BYTES; 9].into_iter().chain([700]);
        let contents: Vec<Vec<u8>> = lengths
            .enumerate()
            .map(|(index, length)| [index as u8 % 3, 0].repeat(length / 2))
            .collect();
        let written = std::thread::scope(|scope| {
            let (mut queue, thread) = start_hashing(scope, b"head").expect("a thread");
            for content in contents.iter().chain([&Vec::new()]) {
                let filled = queue.fill(|block| {
                    block[..content.len()].copy_from_slice(content);
                    Ok::<_, Infallible>(content.len())
                });
                let Ok(filled) = filled;
                assert!(*filled == *content);
            }
            drop(queue);
            thread.join().expect("no panic")
        });
        let whole = Sha256::digest([&b"head"[..], &contents.concat()].concat());
        assert_eq!(written.sha256, HEXLOWER.encode(&whole));
        for (index, content) in contents.iter().enumerate() {
            assert!(written.has(index, content), "{index}");
            let mut other = content.clone();
            other[content.len() - 1] ^= 1;
            assert!(!written.has(index, &other), "{index}");
        }
        assert!(!written.has(contents.len(), b""));
    }
}
