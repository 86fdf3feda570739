//! Contents that a bucket waits for, fetched for its readers.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use alknet_core::PeerId;
use alknet_store::{BucketSettings, ContentFetchMode, StoreError};

use super::fetching::{ServePeer, TestPeers, honest, id, scripted};
use super::*;
use crate::blobs::BlobPeers;

impl BlobNode {
    /// Synchronises a bucket, which fetches contents in this way.
    pub(super) async fn synchronise(&self, name: &str, fetch: ContentFetchMode) {
        let bucket = self.bucket(name).await;
        let settings = BucketSettings {
            is_synced: Some(true),
            fetch: Some(fetch),
            ..BucketSettings::default()
        };
        let set = self
            .lease()
            .await
            .write(move |tx| tx.set_bucket(bucket, &settings, "alice"));
        set.await.expect("there");
    }

    pub(super) async fn fetch_for_read(
        &self,
        bucket: &str,
        hash: ContentHash,
    ) -> Result<(), FsError> {
        let bucket = self.bucket(bucket).await;
        let fetch = self.service.fetch_for_read(bucket, hash);
        tokio::time::timeout(hung(), fetch).await.expect("in time")
    }

    /// What a reader of a bucket gets.
    async fn bytes_in(&self, bucket: &str, hash: ContentHash) -> Result<Vec<u8>, FsError> {
        let (lease, bucket) = (self.lease().await, self.bucket(bucket).await);
        let read = blocking(move || {
            let reader = lease.read_content_in(bucket, hash)?;
            Ok(reader.read(0..reader.size())?)
        });
        read.await
    }

    /// Gives the node these peers.
    pub(super) fn know(&self, peers: HashMap<PeerId, ServePeer>) -> Arc<TestPeers> {
        let peers = Arc::new(TestPeers {
            peers,
            ..TestPeers::default()
        });
        self.service
            .set_peers(Arc::clone(&peers) as Arc<dyn BlobPeers>);
        peers
    }
}

pub(super) fn is_unavailable(fetched: Result<(), FsError>) -> bool {
    fetched.is_err_and(|error| error.is_unavailable())
}

#[tokio::test]
async fn a_reader_gets_a_content_that_only_a_peer_has() {
    let (reader, provider) = (BlobNode::new().await, BlobNode::new().await);
    let bytes = noise(70 * GROUP + 77);
    let hash = provider.put("docs", "/a", &bytes).await;
    for bucket in ["docs", "secret"] {
        reader.want(bucket, "/a", &bytes).await;
    }
    let liar = scripted(bytes.clone(), |mut response| {
        response[9 * GROUP] ^= 1;
        response
    });
    // The liar is asked first: none of both was synchronised with, so that the names decide.
    let peers = [(id("ada"), liar), (id("bob"), honest(&provider))];
    let peers = reader.know(HashMap::from(peers));
    assert!(is_unavailable(reader.fetch_for_read("docs", hash).await));
    reader.synchronise("docs", ContentFetchMode::None).await;
    assert!(is_unavailable(reader.fetch_for_read("docs", hash).await));
    assert_eq!(peers.connections.load(Ordering::SeqCst), 0);
    reader.synchronise("docs", ContentFetchMode::Lazy).await;
    let fetched = reader.fetch_for_read("docs", hash).await;
    fetched.expect("a peer has it");
    assert!(reader.bytes_in("docs", hash).await.expect("here") == bytes);
    assert_eq!(peers.connections.load(Ordering::SeqCst), 2);
    assert!(reader.service.fetches().is_penalised(&id("ada")));
    // The other bucket has no right to bytes that came for this one.
    let other = reader.bytes_in("secret", hash).await.map(drop);
    assert!(is_unavailable(other));
}

/// A peer that is away leaves the content what it is: damaged, and not one that is elsewhere.
#[tokio::test]
async fn a_damaged_content_comes_from_a_peer_that_has_it() {
    let (reader, provider) = (BlobNode::new().await, BlobNode::new().await);
    let bytes = noise(70 * GROUP + 77);
    let hash = reader.put("docs", "/a", &bytes).await;
    reader.synchronise("docs", ContentFetchMode::Lazy).await;
    reader.know(HashMap::from([(id("bob"), honest(&provider))]));
    reader.damage(hash, 40 * GROUP);
    reader.bytes_in("docs", hash).await.expect_err("damaged");
    let size = bytes.len() as u64;
    let damaged = |fetched| {
        matches!(
            fetched,
            Err(FsError::Store(StoreError::ContentMissing { .. }))
        )
    };
    assert!(damaged(reader.fetch_for_read("docs", hash).await));
    let status = reader.status_in("docs", hash).await;
    assert_eq!(status, ContentStatus::Bad { size });
    provider.put("docs", "/a", &bytes).await;
    let fetched = reader.fetch_for_read("docs", hash).await;
    fetched.expect("the peer has it");
    assert!(reader.bytes_in("docs", hash).await.expect("whole") == bytes);
}

#[tokio::test]
async fn a_reader_waits_for_a_limited_time() {
    let reader = BlobNode::new().await;
    let hash = reader.want("docs", "/a", &noise(GROUP)).await;
    reader.synchronise("docs", ContentFetchMode::Lazy).await;
    let silent: ServePeer = Box::new(|connection| {
        tokio::spawn(async move { connection.closed().await });
    });
    reader.know(HashMap::from([(id("silent"), silent)]));
    reader.service.set_fetch_time(Duration::from_millis(50));
    let late = reader.fetch_for_read("docs", hash).await;
    let Err(FsError::Unavailable { tried, .. }) = late else {
        panic!("{late:?}");
    };
    assert_eq!(tried, [(id("silent"), "not in time")]);
}

#[tokio::test]
async fn readers_of_one_content_cost_one_fetch() {
    let (reader, provider) = (BlobNode::new().await, BlobNode::new().await);
    let bytes = noise(70 * GROUP);
    let hash = provider.put("docs", "/a", &bytes).await;
    for bucket in ["docs", "secret"] {
        reader.want(bucket, "/a", &bytes).await;
        reader.synchronise(bucket, ContentFetchMode::Lazy).await;
    }
    let peers = reader.know(HashMap::from([(id("bob"), honest(&provider))]));
    let (one, same, other) = tokio::join!(
        reader.fetch_for_read("docs", hash),
        reader.fetch_for_read("docs", hash),
        reader.fetch_for_read("secret", hash),
    );
    for fetched in [one, same, other] {
        fetched.expect("a peer has it");
    }
    for bucket in ["docs", "secret"] {
        assert!(reader.bytes_in(bucket, hash).await.expect("here") == bytes);
    }
    // One for each bucket at most: bytes that came for one give the other no right.
    let connections = peers.connections.load(Ordering::SeqCst);
    assert!((1..=3).contains(&connections), "{connections}");
}
