//! Contents that this node fetches from its peers, each once at a time for a bucket.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_core::{CloseCode, PeerId};
use alknet_store::{BucketId, ContentHash, PartialContent, StoreError};
use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::FetchPace;
use super::peers::{BlobPeers, connect};
use super::penalties::FetchPenalties;
use super::receive::{ReceiveError, complete, receive};
use crate::error::FsError;
use crate::lease::StoreLease;
use crate::limits::{FETCH_RATE_GRACE, FETCHES_MAX, FETCHES_PER_BUCKET_MAX};
use crate::service::blocking;

/// How far a fetch came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchProgress {
    /// The content is here.
    Done,
    /// The fetch ended without the content.
    Failed(FetchFailure),
    /// Bytes are missing.
    Missing(MissingBytes),
}

/// How much of a content is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissingBytes {
    /// Bytes that are not here.
    pub(crate) missing: u64,
    /// All bytes of the content, as far as this node knows.
    pub(crate) size: u64,
}

impl MissingBytes {
    pub(super) fn from_content(content: &PartialContent) -> Self {
        Self {
            missing: content.missing_bytes(),
            size: content.size(),
        }
    }
}

/// Why a fetch ended without the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchFailure {
    /// None of the peers sent it: each with what it did.
    Peers(Vec<(PeerId, &'static str)>),
    /// This node could not store it.
    Store(StoreError),
}

/// What a fetch is for. Another bucket that waits for the same content fetches it for itself: how far a fetch came, and what
/// its peers say of the content, is for its own bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FetchKey {
    bucket: BucketId,
    hash: ContentHash,
}

/// The fetches that run, and the peers that are not asked.
#[derive(Debug)]
pub(crate) struct BlobFetches {
    running: Mutex<HashMap<FetchKey, Arc<watch::Sender<FetchProgress>>>>,
    penalties: FetchPenalties,
    /// Time for which a peer may be slower than the least rate.
    rate_grace: Duration,
}

impl Default for BlobFetches {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            penalties: FetchPenalties::default(),
            rate_grace: FETCH_RATE_GRACE,
        }
    }
}

/// What a fetch needs.
#[derive(Debug)]
pub(crate) struct FetchOrder {
    pub(crate) hash: ContentHash,
    /// Bytes by the word of the bucket that wants them.
    pub(crate) size: u64,
    /// The bucket that wants the content, and gets the right to its bytes.
    pub(crate) bucket: BucketId,
    /// The peers to ask, in this order.
    pub(crate) from: Vec<PeerId>,
    pub(crate) peers: Arc<dyn BlobPeers>,
    pub(crate) lease: StoreLease,
    /// Says `true` when the node shuts down.
    pub(crate) closing: watch::Receiver<bool>,
}

impl FetchOrder {
    const fn key(&self) -> FetchKey {
        FetchKey {
            bucket: self.bucket,
            hash: self.hash,
        }
    }

    /// Begins to receive the content, or goes on with what has arrived of it for this bucket.
    async fn open(&self, size: u64) -> Result<PartialContent, FsError> {
        let folder = self.lease.content().clone();
        let (bucket, hash) = (self.bucket, self.hash);
        blocking(move || Ok(folder.receive(bucket, hash, size)?)).await
    }

    /// The same for the size that a peer has proved. What came under another size begins again.
    async fn open_with_size(&self, size: u64) -> Result<PartialContent, FsError> {
        let (bucket, hash) = (self.bucket, self.hash);
        // Before the bytes, which would be of no use: the bucket may have announced fewer than it has room for.
        let room = self
            .lease
            .read(move |tx| tx.check_announced(bucket, hash, size));
        room.await?;
        self.open(size).await
    }
}

/// A fetch, as one of its callers sees it.
#[derive(Debug)]
pub(crate) struct JoinedFetch {
    pub(crate) progress: watch::Receiver<FetchProgress>,
    /// Whether this call began the fetch, so that its peers are asked.
    pub(crate) is_own: bool,
}

impl BlobFetches {
    /// The same with another time for slow peers, for tests.
    #[cfg(test)]
    pub(crate) fn with_rate_grace(rate_grace: Duration) -> Self {
        Self {
            rate_grace,
            ..Self::default()
        }
    }

    /// Whether a peer is not asked, because it sent wrong bytes.
    pub(crate) fn is_penalised(&self, peer: &PeerId) -> bool {
        self.penalties.has(peer, Instant::now())
    }

    /// Joins the fetch of a content that runs for the bucket, or begins one. It goes on for as long as one of its callers has
    /// the receiver.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if the node, or the bucket, fetches as much as it may.
    pub(crate) fn join(self: &Arc<Self>, order: FetchOrder) -> Result<JoinedFetch, FsError> {
        let mut running = self.running();
        let count = running.len();
        let of_bucket = running.keys().filter(|key| key.bucket == order.bucket);
        let count_in_bucket = of_bucket.count();
        match running.entry(order.key()) {
            Entry::Occupied(entry) => Ok(JoinedFetch {
                progress: entry.get().subscribe(),
                is_own: false,
            }),
            Entry::Vacant(_) if count >= FETCHES_MAX => {
                Err(StoreError::Busy("the node fetches as much as it may").into())
            }
            // The peers of one bucket may be slow, and must not keep the others from theirs.
            Entry::Vacant(_) if count_in_bucket >= FETCHES_PER_BUCKET_MAX => {
                Err(StoreError::Busy("the bucket fetches as much as it may").into())
            }
            Entry::Vacant(entry) => {
                let (sender, progress) = watch::channel(FetchProgress::Missing(MissingBytes {
                    missing: order.size,
                    size: order.size,
                }));
                let sender = Arc::new(sender);
                entry.insert(Arc::clone(&sender));
                let fetch = RunningFetch {
                    fetches: Arc::clone(self),
                    key: order.key(),
                    sender,
                };
                tokio::spawn(fetch.run(order));
                Ok(JoinedFetch {
                    progress,
                    is_own: true,
                })
            }
        }
    }

    /// Removes a fetch that no caller waits for. Returns whether it is gone.
    fn leave(&self, key: FetchKey, sender: &watch::Sender<FetchProgress>) -> bool {
        // Under the lock, so that no caller joins a fetch that ends.
        let mut running = self.running();
        let is_left = sender.receiver_count() == 0;
        if is_left {
            running.remove(&key);
        }
        is_left
    }

    /// A table of channels is never half changed.
    fn running(&self) -> MutexGuard<'_, HashMap<FetchKey, Arc<watch::Sender<FetchProgress>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fetch in its task.
struct RunningFetch {
    fetches: Arc<BlobFetches>,
    key: FetchKey,
    sender: Arc<watch::Sender<FetchProgress>>,
}

impl RunningFetch {
    async fn run(self, order: FetchOrder) {
        let mut closing = order.closing.clone();
        let outcome = {
            let mut fetch = std::pin::pin!(self.fetch(order));
            loop {
                tokio::select! {
                    outcome = &mut fetch => break Some(outcome),
                    _ = closing.wait_for(|closing| *closing) => break None,
                    () = self.sender.closed() => {
                        if self.fetches.leave(self.key, &self.sender) {
                            break None;
                        }
                    }
                }
            }
        };
        match outcome {
            Some(Ok(())) => self.end(FetchProgress::Done),
            Some(Err(failure)) => self.end(FetchProgress::Failed(failure)),
            // What has arrived stays for the next fetch.
            None => {}
        }
    }

    /// Ends the fetch for its callers. Later calls change nothing.
    fn end(&self, progress: FetchProgress) {
        // Gone from the table before its callers see the end, so that one that tries again begins a new one.
        let mut running = self.fetches.running();
        if running
            .get(&self.key)
            .is_some_and(|it| Arc::ptr_eq(it, &self.sender))
        {
            running.remove(&self.key);
        }
        drop(running);
        self.sender.send_if_modified(|present| {
            let is_under_way = matches!(present, FetchProgress::Missing(_));
            if is_under_way {
                *present = progress;
            }
            is_under_way
        });
    }

    async fn fetch(&self, order: FetchOrder) -> Result<(), FetchFailure> {
        let mut content = order.open(order.size).await.map_err(failure)?;
        let mut tried = Vec::new();
        let mut from = order.from.iter();
        while !is_whole(&content) {
            let Some(peer) = from.next() else {
                return Err(FetchFailure::Peers(tried));
            };
            let (rest, outcome) = self.ask(&order, peer, content).await?;
            content = rest;
            tried.extend(outcome.map(|outcome| (peer.clone(), outcome)));
        }
        let completed = complete(&order.lease, content, order.bucket).await;
        completed.map_err(failure)
    }

    /// Asks a peer for what is missing, as long as it sends some of it. Returns what went wrong with the peer.
    async fn ask(
        &self,
        order: &FetchOrder,
        peer: &PeerId,
        mut content: PartialContent,
    ) -> Result<(PartialContent, Option<&'static str>), FetchFailure> {
        if self.fetches.is_penalised(peer) {
            return Ok((content, Some("penalised")));
        }
        let Some(connection) = connect(&*order.peers, peer).await else {
            return Ok((content, Some("unreachable")));
        };
        let outcome = loop {
            let before = content.missing_bytes();
            let sender = Arc::clone(&self.sender);
            let progress = move |missing| {
                sender.send_replace(FetchProgress::Missing(missing));
            };
            let pace = FetchPace::new(self.fetches.rate_grace);
            let (rest, received) = receive(&connection, content, pace, progress).await;
            if let Err(ReceiveError::Store(error)) = received {
                return Err(failure(error));
            }
            let Some(rest) = rest else {
                return Err(failure(StoreError::Panicked("a write".to_owned()).into()));
            };
            content = rest;
            if content.missing_bytes() < before {
                content = mark_partial(content, peer).await.map_err(failure)?;
            }
            match received {
                // A request asks for a bounded number of ranges.
                Ok(()) if !content.is_whole() && content.missing_bytes() < before => {}
                Ok(()) => break None,
                Err(ReceiveError::OtherSize(size)) => {
                    // Who announced the wrong size is not known here, and the peers that have the content are honest. No
                    // two sizes have proofs, so that this happens once.
                    tracing::warn!(%peer, "a content has another size than was announced");
                    // The file of the content is locked until then.
                    drop(content);
                    content = order.open_with_size(size).await.map_err(failure)?;
                    let missing = MissingBytes::from_content(&content);
                    self.sender.send_replace(FetchProgress::Missing(missing));
                }
                Err(ReceiveError::Lied) => {
                    tracing::warn!(%peer, "a peer sent other bytes than the hash says");
                    self.fetches.penalties.add(peer, Instant::now());
                    break Some("wrong bytes");
                }
                Err(error @ ReceiveError::TooSlow) => {
                    tracing::debug!(%peer, %error, "a peer does not send a content");
                    break Some("too slow");
                }
                Err(error) => {
                    tracing::debug!(%peer, %error, "a peer does not send a content");
                    break Some("no content");
                }
            }
        };
        connection.close(CloseCode::Normal, "");
        Ok((content, outcome))
    }
}

/// Whether all bytes are here. A content of no bytes is one that was announced so, unless its hash says it too.
fn is_whole(content: &PartialContent) -> bool {
    content.is_whole() && (content.size() > 0 || content.hash() == ContentHash::EMPTY)
}

impl Drop for RunningFetch {
    /// A fetch that is given up, or that panics, must not keep its callers waiting.
    fn drop(&mut self) {
        let ended = StoreError::Busy("the fetch ended early");
        self.end(FetchProgress::Failed(FetchFailure::Store(ended)));
    }
}

async fn mark_partial(content: PartialContent, peer: &PeerId) -> Result<PartialContent, FsError> {
    let peer = peer.clone();
    blocking(move || {
        content.mark_partial(peer.as_str())?;
        Ok(content)
    })
    .await
}

/// What this node could not do.
fn failure(error: FsError) -> FetchFailure {
    FetchFailure::Store(match error {
        FsError::Store(error) => error,
        other => StoreError::ContentFolder(other.to_string()),
    })
}
