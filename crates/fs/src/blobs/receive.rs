//! A content as it arrives from a peer: each group is compared with the hash before it is written.

use std::io::{self, ErrorKind};

use alknet_core::{Connection, RecvStream, StreamCode};
use alknet_objects::limits::GROUP_BYTES;
use alknet_objects::{ChunkSelection, ExpectedHashes, PAIR_BYTES, TreeStep, TreeSteps};
use alknet_store::{ContentHash, PartialContent};
use thiserror::Error;
use tokio::io::BufReader;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::peers::{read_exact, request};
use super::wire::{BlobRequest, BlobSelections};
use crate::error::FsError;
use crate::lease::StoreLease;
use crate::limits::{BLOB_STALLED_TIME, FETCH_BLOCK_BYTES, FETCH_RANGES_MAX};
use crate::rights::VisibleBuckets;
use crate::service::blocking;

/// Blocks that wait to be written. The peer waits while there are so many.
const BLOCKS_WAITING: usize = 4;

/// Why a peer sent no more of a content.
#[derive(Debug, Error)]
pub(super) enum ReceiveError {
    /// The peer sent bytes that do not have the hash, or another length. It is not asked again for a while.
    #[error("the peer sent other bytes than the hash says")]
    Lied,
    /// The peer does not have the content, broke off, or is too slow.
    #[error("the peer broke off: {0}")]
    Broke(#[from] io::Error),
    /// This node cannot store the content.
    #[error(transparent)]
    Store(#[from] FsError),
}

/// Verified bytes and their place.
struct VerifiedBlock {
    at: u64,
    bytes: Vec<u8>,
}

/// Asks a peer for what is missing of a content, and writes what it sends. `progress` gets the missing bytes from time to
/// time. The content is returned in every case, with what has arrived.
pub(super) async fn receive(
    connection: &Connection,
    content: PartialContent,
    progress: impl Fn(u64) + Send + 'static,
) -> (Option<PartialContent>, Result<(), ReceiveError>) {
    let selection = content.missing(FETCH_RANGES_MAX);
    let (hash, size) = (content.hash(), content.size());
    let (blocks, waiting) = mpsc::channel(BLOCKS_WAITING);
    let writer = tokio::task::spawn_blocking(move || write(content, waiting, &progress));
    let read = read(connection, hash, size, &selection, blocks).await;
    let (content, written) = match writer.await {
        Ok((content, written)) => (Some(content), written),
        // A panic: the file is closed, and the next fetch goes on with what was saved.
        Err(error) => {
            let failed = alknet_store::StoreError::Panicked(error.to_string());
            (None, Err(failed.into()))
        }
    };
    // The disk first: when it fails, the reader sees only that nothing takes its blocks.
    let received = written.map_err(ReceiveError::Store).and(read);
    (content, received)
}

/// Writes blocks until no more come. Blocks.
fn write(
    mut content: PartialContent,
    mut blocks: mpsc::Receiver<VerifiedBlock>,
    progress: &impl Fn(u64),
) -> (PartialContent, Result<(), FsError>) {
    let mut written = Ok(());
    while let Some(block) = blocks.blocking_recv() {
        written = content.write_verified(block.at, &block.bytes);
        if written.is_err() {
            break;
        }
        progress(content.missing_bytes());
    }
    // What came before an error stays, for the next peer or the next fetch.
    let saved = content.save();
    (content, written.and(saved).map_err(FsError::from))
}

async fn read(
    connection: &Connection,
    hash: ContentHash,
    size: u64,
    selection: &ChunkSelection,
    blocks: mpsc::Sender<VerifiedBlock>,
) -> Result<(), ReceiveError> {
    let selections = BlobSelections::of_one(selection.clone());
    let get = BlobRequest::Get { hash, selections };
    let opened = timeout(BLOB_STALLED_TIME, request(connection, &get)).await;
    let opened = opened.map_err(|_| io::Error::from(ErrorKind::TimedOut))?;
    let (_send, recv) = opened.map_err(io::Error::from)?;
    // Pairs of hashes are short and read one at a time, so reads are buffered.
    let mut recv = BufReader::with_capacity(FETCH_BLOCK_BYTES, recv);
    let read = read_verified(&mut recv, hash, size, selection, blocks).await;
    // Whatever the peer would still send is of no use.
    recv.get_mut().stop(StreamCode::Cancelled);
    read
}

async fn read_verified(
    recv: &mut BufReader<RecvStream>,
    hash: ContentHash,
    size: u64,
    selection: &ChunkSelection,
    blocks: mpsc::Sender<VerifiedBlock>,
) -> Result<(), ReceiveError> {
    let mut length = [0; 8];
    read_exact(recv, &mut length, BLOB_STALLED_TIME).await?;
    if u64::from_le_bytes(length) != size {
        return Err(ReceiveError::Lied);
    }
    let root = blake3::Hash::from_bytes(*hash.as_bytes());
    let mut expected = ExpectedHashes::root(&root);
    let mut block = VerifiedBlock {
        at: 0,
        bytes: Vec::with_capacity(FETCH_BLOCK_BYTES),
    };
    let mut read = Ok(());
    for step in TreeSteps::selected(size, selection) {
        read = read_step(recv, step, &mut expected, &blocks, &mut block).await;
        if read.is_err() {
            break;
        }
    }
    // The groups before a lie or a break are whole and stay.
    let passed = pass(&blocks, &mut block).await;
    read.and(passed)
}

/// Reads a pair or a group, and compares it with its hash. A group is added to the block.
async fn read_step(
    recv: &mut BufReader<RecvStream>,
    step: TreeStep,
    expected: &mut ExpectedHashes,
    blocks: &mpsc::Sender<VerifiedBlock>,
    block: &mut VerifiedBlock,
) -> Result<(), ReceiveError> {
    let is_expected = match step {
        TreeStep::Pair {
            root, left, right, ..
        } => {
            let mut pair = [0; PAIR_BYTES];
            read_exact(recv, &mut pair, BLOB_STALLED_TIME).await?;
            expected.pair(&pair, (root, left, right))
        }
        TreeStep::Group { start, len, root } => {
            let end = block.at + block.bytes.len() as u64;
            if end != start || block.bytes.len() + len > FETCH_BLOCK_BYTES {
                pass(blocks, block).await?;
                block.at = start;
            }
            let mut group = [0; GROUP_BYTES as usize];
            // A group of the tree has no more bytes than the buffer.
            let group = group.get_mut(..len).unwrap_or_default();
            read_exact(recv, group, BLOB_STALLED_TIME).await?;
            let is_expected = expected.group(start, group, root);
            if is_expected {
                block.bytes.extend_from_slice(group);
            }
            is_expected
        }
    };
    match is_expected {
        true => Ok(()),
        false => Err(ReceiveError::Lied),
    }
}

/// Hands a block to the writer.
async fn pass(
    blocks: &mpsc::Sender<VerifiedBlock>,
    block: &mut VerifiedBlock,
) -> Result<(), ReceiveError> {
    let bytes = std::mem::take(&mut block.bytes);
    if bytes.is_empty() {
        return Ok(());
    }
    let sent = blocks.send(VerifiedBlock {
        at: block.at,
        bytes,
    });
    // The writer ends early only with an error, which the caller sees.
    let sent = sent.await;
    Ok(sent.map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?)
}

/// Gives a whole content its place, notes that it is here, and gives those of these buckets that wait for it the right to it.
pub(super) async fn complete(
    lease: &StoreLease,
    content: PartialContent,
    buckets: VisibleBuckets,
) -> Result<(), FsError> {
    let placed = blocking(move || Ok(content.place()?)).await?;
    lease.complete_content(placed.clone()).await?;
    let hash = placed.hash();
    let awaiting = lease.read(move |tx| buckets.awaiting(tx, hash)).await?;
    let mut received = Ok(());
    for bucket in awaiting {
        let content = placed.clone();
        // Each in a job of its own: a bucket without the quota for the content must not keep it from the others.
        let job = lease.write(move |tx| tx.receive_content(bucket, &content));
        received = received.and(job.await);
    }
    Ok(received?)
}
