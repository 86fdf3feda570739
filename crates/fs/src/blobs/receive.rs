//! A content as it arrives from a peer: each group is compared with the hash before it is written.

use std::io::{self, ErrorKind};

use alknet_core::{Connection, RecvStream, StreamCode};
use alknet_objects::limits::GROUP_BYTES;
use alknet_objects::{ChunkSelection, ExpectedHashes, PAIR_BYTES, TreeStep, TreeSteps};
use alknet_store::limits::FILE_BYTES_MAX;
use alknet_store::{BucketId, ContentHash, ContentStatus, PartialContent};
use thiserror::Error;
use tokio::io::BufReader;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::fetch::MissingBytes;
use super::pace::FetchPace;
use super::peers::{read_exact, request};
use super::wire::{BlobRequest, BlobSelections};
use crate::error::FsError;
use crate::lease::StoreLease;
use crate::limits::{BLOB_STALLED_TIME, FETCH_BLOCK_BYTES, FETCH_RANGES_MAX};
use crate::service::blocking;

/// Blocks that wait to be written. The peer waits while there are so many.
const BLOCKS_WAITING: usize = 4;

/// Why a peer sent no more of a content.
#[derive(Debug, Error)]
pub(super) enum ReceiveError {
    /// The peer sent bytes that do not have the hash. It is not asked again for a while.
    #[error("the peer sent other bytes than the hash says")]
    Lied,
    /// The content has this many bytes, and not those that were announced. The peer has proved it by the hash.
    #[error("the content has {0} bytes, and others were announced")]
    OtherSize(u64),
    /// The peer sends less than the least rate.
    #[error("the peer is too slow")]
    TooSlow,
    /// The peer does not have the content, broke off, or stalled.
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
    pace: FetchPace,
    progress: impl Fn(MissingBytes) + Send + 'static,
) -> (Option<PartialContent>, Result<(), ReceiveError>) {
    let selection = content.missing(FETCH_RANGES_MAX);
    let (hash, size) = (content.hash(), content.size());
    let (blocks, waiting) = mpsc::channel(BLOCKS_WAITING);
    let writer = tokio::task::spawn_blocking(move || write(content, waiting, &progress));
    let read = read(connection, (hash, size), &selection, pace, blocks).await;
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
    progress: &impl Fn(MissingBytes),
) -> (PartialContent, Result<(), FsError>) {
    let mut written = Ok(());
    while let Some(block) = blocks.blocking_recv() {
        written = content.write_verified(block.at, &block.bytes);
        if written.is_err() {
            break;
        }
        progress(MissingBytes::from_content(&content));
    }
    // What came before an error stays, for the next peer or the next fetch.
    let saved = content.save();
    (content, written.and(saved).map_err(FsError::from))
}

async fn read(
    connection: &Connection,
    (hash, size): (ContentHash, u64),
    selection: &ChunkSelection,
    pace: FetchPace,
    blocks: mpsc::Sender<VerifiedBlock>,
) -> Result<(), ReceiveError> {
    let (mut recv, said) = ask(connection, hash, selection).await?;
    let read = match said == size {
        true => {
            let groups = GroupReader::new(&mut recv, hash, pace);
            read_blocks(groups, size, selection, blocks).await
        }
        false => Ok(()),
    };
    // Whatever the peer would still send is of no use. A peer that serves one request at a time serves no other one before.
    recv.get_mut().stop(StreamCode::Cancelled);
    match said == size {
        true => read,
        false => Err(check_said_size(connection, hash, said, pace).await),
    }
}

/// Asks for chunks of a content. Returns what comes behind the number of its bytes, and that number by the word of the peer.
async fn ask(
    connection: &Connection,
    hash: ContentHash,
    selection: &ChunkSelection,
) -> Result<(BufReader<RecvStream>, u64), ReceiveError> {
    let selections = BlobSelections::of_one(selection.clone());
    let get = BlobRequest::Get { hash, selections };
    let opened = timeout(BLOB_STALLED_TIME, request(connection, &get)).await;
    let opened = opened.map_err(|_| io::Error::from(ErrorKind::TimedOut))?;
    let (_send, recv) = opened.map_err(io::Error::from)?;
    // Pairs of hashes are short and read one at a time, so reads are buffered.
    let mut recv = BufReader::with_capacity(FETCH_BLOCK_BYTES, recv);
    let mut length = [0; 8];
    read_exact(&mut recv, &mut length, BLOB_STALLED_TIME).await?;
    Ok((recv, u64::from_le_bytes(length)))
}

/// Asks a peer that says another size than was announced for the last chunk, whose way through the hash tree proves the
/// size. Returns who was wrong: the announcement or the peer.
async fn check_said_size(
    connection: &Connection,
    hash: ContentHash,
    said: u64,
    pace: FetchPace,
) -> ReceiveError {
    match prove_size(connection, hash, said, pace).await {
        Ok(()) => ReceiveError::OtherSize(said),
        Err(error) => error,
    }
}

async fn prove_size(
    connection: &Connection,
    hash: ContentHash,
    said: u64,
    pace: FetchPace,
) -> Result<(), ReceiveError> {
    if said > FILE_BYTES_MAX {
        // No file of this store can have it, so that the truth does not matter.
        return Err(io::Error::from(ErrorKind::FileTooLarge).into());
    }
    let last = ChunkSelection::last();
    let (mut recv, again) = ask(connection, hash, &last).await?;
    if again != said {
        return Err(ReceiveError::Lied);
    }
    let mut groups = GroupReader::new(&mut recv, hash, pace);
    for step in TreeSteps::selected(said, &last) {
        groups.read(step).await?;
    }
    Ok(())
}

/// Reads selected chunks, and hands them to the writer in blocks.
async fn read_blocks(
    mut groups: GroupReader<'_>,
    size: u64,
    selection: &ChunkSelection,
    blocks: mpsc::Sender<VerifiedBlock>,
) -> Result<(), ReceiveError> {
    let mut block = VerifiedBlock {
        at: 0,
        bytes: Vec::with_capacity(FETCH_BLOCK_BYTES),
    };
    let mut read = Ok(());
    for step in TreeSteps::selected(size, selection) {
        read = match groups.read(step).await {
            Ok(Some((start, group))) => block.add(start, group, &blocks).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if read.is_err() {
            break;
        }
    }
    // The groups before a lie or a break are whole and stay.
    let passed = block.pass(&blocks).await;
    read.and(passed)
}

/// Reads the steps of an encoded part, and compares each with its hash.
struct GroupReader<'r> {
    recv: &'r mut BufReader<RecvStream>,
    expected: ExpectedHashes,
    buffer: Box<[u8]>,
    pace: FetchPace,
}

impl<'r> GroupReader<'r> {
    fn new(recv: &'r mut BufReader<RecvStream>, hash: ContentHash, pace: FetchPace) -> Self {
        let root = blake3::Hash::from_bytes(*hash.as_bytes());
        Self {
            recv,
            expected: ExpectedHashes::root(&root),
            buffer: vec![0; GROUP_BYTES as usize].into(),
            pace,
        }
    }

    /// Reads a pair or a group. Returns the place and the bytes of a group.
    async fn read(&mut self, step: TreeStep) -> Result<Option<(u64, &[u8])>, ReceiveError> {
        let (is_expected, group) = match step {
            TreeStep::Pair {
                root, left, right, ..
            } => {
                let mut pair = [0; PAIR_BYTES];
                read_paced(self.recv, &mut pair, &mut self.pace).await?;
                (self.expected.pair(&pair, (root, left, right)), None)
            }
            TreeStep::Group { start, len, root } => {
                // A group of the tree has no more bytes than the buffer.
                let group = self.buffer.get_mut(..len).unwrap_or_default();
                read_paced(self.recv, group, &mut self.pace).await?;
                let is_expected = self.expected.group(start, group, root);
                (is_expected, Some((start, &*group)))
            }
        };
        match is_expected {
            true => Ok(group),
            false => Err(ReceiveError::Lied),
        }
    }
}

/// Fills a buffer, unless the peer is too slow for its bytes so far.
async fn read_paced(
    recv: &mut BufReader<RecvStream>,
    buffer: &mut [u8],
    pace: &mut FetchPace,
) -> Result<(), ReceiveError> {
    let (began, limit) = (Instant::now(), pace.left());
    match read_exact(recv, buffer, limit).await {
        // A shorter time than that of a pause is what the rate leaves.
        Err(error) if error.kind() == ErrorKind::TimedOut && limit < BLOB_STALLED_TIME => {
            return Err(ReceiveError::TooSlow);
        }
        read => read?,
    }
    pace.note(buffer.len(), began.elapsed());
    Ok(())
}

impl VerifiedBlock {
    /// Adds a group behind the others. The block is handed on first if it is full or ends elsewhere.
    async fn add(
        &mut self,
        start: u64,
        group: &[u8],
        blocks: &mpsc::Sender<Self>,
    ) -> Result<(), ReceiveError> {
        let end = self.at + self.bytes.len() as u64;
        if end != start || self.bytes.len() + group.len() > FETCH_BLOCK_BYTES {
            self.pass(blocks).await?;
            self.at = start;
        }
        self.bytes.extend_from_slice(group);
        Ok(())
    }

    /// Hands what is there to the writer.
    async fn pass(&mut self, blocks: &mpsc::Sender<Self>) -> Result<(), ReceiveError> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.at;
        // The writer ends early only with an error, which the caller sees.
        let sent = blocks.send(Self { at, bytes }).await;
        Ok(sent.map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?)
    }
}

/// Gives a whole content its place, notes that it is here, and gives this bucket, which waits for it, the right to it. Other
/// buckets that wait for it fetch it for themselves: that one bucket may have the bytes gives the others none.
pub(super) async fn complete(
    lease: &StoreLease,
    content: PartialContent,
    bucket: BucketId,
) -> Result<(), FsError> {
    let placed = blocking(move || Ok(content.place()?)).await?;
    lease.complete_content(placed.clone()).await?;
    let received = lease.write(
        move |tx| match tx.content_status_in(bucket, placed.hash())? {
            // It has the right, and the content that was damaged is whole again.
            ContentStatus::Complete { .. } => Ok(()),
            _ => tx.receive_content(bucket, &placed),
        },
    );
    Ok(received.await?)
}
