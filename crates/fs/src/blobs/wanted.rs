//! Contents that a bucket waits for, or that are damaged here, fetched for the bucket alone.

use alknet_core::PeerId;
use alknet_store::{
    Bucket, BucketId, BucketName, ContentFetchMode, ContentHash, ContentStatus, StoreError,
    StoreObject,
};
use tokio::sync::watch;
use tokio::time::timeout;

use super::fetch::{FetchFailure, FetchOrder, FetchProgress};
use crate::error::FsError;
use crate::limits::FETCH_PEERS_MAX;
use crate::service::FsService;

impl FsService {
    /// Fetches a content that a read found to be on peers only, or damaged here, if its bucket is synchronised and fetches
    /// contents for reads. What has arrived when the time is over stays, and the next read goes on with it.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] if no peer sends it within the time that the node gives a read;
    /// [`StoreError::ContentMissing`] in its place if the content was here.
    pub(crate) async fn fetch_for_read(
        &self,
        bucket: BucketId,
        hash: ContentHash,
    ) -> Result<(), FsError> {
        let lease = self.lease().await?;
        let read = lease.read(move |tx| {
            let status = tx.content_status_in(bucket, hash)?;
            Ok((tx.bucket(bucket)?, status))
        });
        let (bucket, status) = read.await?;
        let fetched = match is_fetched_for_reads(&bucket) {
            true => self.fetch_in_time(&bucket.name, hash).await,
            false => Err(unasked(hash)),
        };
        match (fetched, status) {
            // That it is damaged here is what a person has to know. The next read asks the peers again.
            (Err(error), ContentStatus::Bad { .. }) if error.is_unavailable() => {
                Err(StoreError::ContentMissing { hash }.into())
            }
            (fetched, _) => fetched,
        }
    }

    /// Fetches a content from the peers of its bucket, within the time that the node gives a read.
    async fn fetch_in_time(&self, bucket: &BucketName, hash: ContentHash) -> Result<(), FsError> {
        let from = self.providers(bucket);
        let fetch = self.fetch_content(bucket, hash, from.clone());
        let fetched = timeout(self.fetch_time(), fetch).await;
        fetched.unwrap_or_else(|_| {
            // Also of those that were not asked: none of them sent it.
            let tried = from.into_iter().map(|peer| (peer, "not in time"));
            let tried = tried.collect();
            Err(FsError::Unavailable { hash, tried })
        })
    }

    /// The peers to ask for contents of a bucket: those with which it was synchronised, the last one first, and then others
    /// that may synchronise it.
    fn providers(&self, bucket: &BucketName) -> Vec<PeerId> {
        let Some(peers) = self.peers() else {
            return Vec::new();
        };
        let allowed = peers.synced(bucket);
        let mut found = self.sync_records().peers_of(bucket);
        found.retain(|peer| allowed.contains(peer));
        let others: Vec<_> = allowed
            .into_iter()
            .filter(|peer| !found.contains(peer))
            .collect();
        found.extend(others);
        found.truncate(FETCH_PEERS_MAX);
        found
    }

    /// Fetches a content that a bucket waits for, or that is damaged here, from these peers in this order, and waits for it.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] if none of the peers sends it, and any error of the store.
    pub(crate) async fn fetch_content(
        &self,
        bucket: &BucketName,
        hash: ContentHash,
        from: Vec<PeerId>,
    ) -> Result<(), FsError> {
        loop {
            let lease = self.lease().await?;
            let name = bucket.clone();
            // The bytes go to this bucket alone, whatever others have of that hash.
            let status = lease.read(move |tx| {
                let bucket = tx.bucket_by_name(&name)?.id;
                Ok((bucket, tx.content_status_in(bucket, hash)?))
            });
            let (id, status) = status.await?;
            let size = match status {
                ContentStatus::Complete { .. } => return Ok(()),
                ContentStatus::Missing => {
                    return Err(StoreError::NotFound(StoreObject::Content).into());
                }
                ContentStatus::Wanted { size }
                | ContentStatus::Partial { size }
                | ContentStatus::Bad { size } => size,
            };
            let peers = self.peers();
            let order = FetchOrder {
                hash,
                size,
                bucket: id,
                from: from.clone(),
                peers: peers.ok_or_else(|| unasked(hash))?,
                lease,
                closing: self.closing(),
            };
            let joined = self.fetches().join(order)?;
            match end_of(joined.progress).await {
                Some(FetchProgress::Done) if joined.is_own => return Ok(()),
                Some(FetchProgress::Failed(FetchFailure::Peers(tried))) if joined.is_own => {
                    return Err(FsError::Unavailable { hash, tried });
                }
                Some(FetchProgress::Failed(FetchFailure::Store(error))) if joined.is_own => {
                    return Err(error.into());
                }
                // Another caller began that fetch, for its own buckets and with its own peers.
                Some(_) => {}
                None => return Err(FsError::Unserved),
            }
        }
    }
}

/// The error of a content for which no peer is asked.
const fn unasked(hash: ContentHash) -> FsError {
    FsError::Unavailable {
        hash,
        tried: Vec::new(),
    }
}

/// Whether reads of the bucket may ask peers.
fn is_fetched_for_reads(bucket: &Bucket) -> bool {
    bucket.sync.is_on && bucket.sync.fetch != ContentFetchMode::None
}

/// How a fetch ends. `None` if it is given up.
async fn end_of(mut progress: watch::Receiver<FetchProgress>) -> Option<FetchProgress> {
    let is_over = |progress: &FetchProgress| !matches!(progress, FetchProgress::Missing(_));
    let ended = progress.wait_for(is_over).await;
    ended.ok().map(|ended| ended.clone())
}
