//! Rights that are taken away while a response is under way.

use std::sync::atomic::{AtomicU64, Ordering};

use alknet_store::{ContentShareId, StoreDbOptions, TimeSource};

use super::*;
use crate::limits::RIGHT_CHECK_BYTES;

const KEY: PeerKey = PeerKey::Ed25519([7; 32]);

/// Bytes of a content that is longer than what is sent until the store is asked again.
const LONG: usize = 12 << 20;

/// Bytes that a stream of these tests takes in without a reader, with the blocks that are read ahead.
const AHEAD: usize = 2 << 20;

/// How long a share lasts.
const SHARE_TIME: Duration = Duration::from_secs(3600);

/// A clock that a test moves.
struct ShareClock(AtomicU64);

impl TimeSource for ShareClock {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A node with such a clock, which begins at 2027-01-15, 08:00 UTC.
async fn node_with_clock() -> (BlobNode, Arc<ShareClock>) {
    let clock = Arc::new(ShareClock(AtomicU64::new(1_800_000_000_000)));
    let options = FileStoreOptions {
        db: StoreDbOptions {
            time: Arc::clone(&clock) as _,
            ..StoreDbOptions::default()
        },
        ..FileStoreOptions::default()
    };
    (BlobNode::with_files(options).await, clock)
}

/// A connection of `ada` with this key, and the node's end of it.
fn connect(node: &BlobNode, key: Option<PeerKey>) -> (Connection, Connection) {
    let (ours, theirs) = memory_pair(BLOBS_ALPN);
    let auth = AuthContext {
        identity: Some(identity("ada", &["fs:read:docs"])),
        key,
        alpn: BLOBS_ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    };
    let server = theirs.clone();
    tokio::spawn(Arc::clone(&node.handler).handle(theirs, auth));
    (ours, server)
}

/// A stream whose response has begun.
async fn begin(connection: &Connection, hash: ContentHash) -> (SendStream, RecvStream) {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let request = get_all(hash);
    send.write_chunk(request.into()).await.expect("taken");
    drop(send.finish());
    let first = tokio::time::timeout(hung(), recv.read_chunk(1024));
    let first = first.await.expect("in time").expect("the stream lasts");
    assert!(first.is_some());
    (send, recv)
}

/// The rest of a response.
async fn rest((_send, mut recv): (SendStream, RecvStream)) -> BlobTestResponse {
    let rest = tokio::time::timeout(hung(), response(&mut recv));
    rest.await.expect("in time")
}

/// Shares a content of the bucket `secret` with the key.
async fn share(node: &BlobNode, hash: ContentHash, uses_max: Option<u64>) -> ContentShareId {
    let new = NewShare {
        hash,
        bucket: node.bucket("secret").await,
        grantee: KEY.to_string(),
        owner: "alice".to_owned(),
        time: SHARE_TIME,
        bytes_max: None,
        uses_max,
    };
    let lease = node.lease().await;
    let made = lease.write(move |tx| tx.create_share(&new));
    made.await.expect("room").id
}

async fn delete(node: &BlobNode, bucket: &str) {
    let bucket = node.bucket(bucket).await;
    let lease = node.lease().await;
    let deleted = lease.write(move |tx| tx.delete_bucket(bucket));
    deleted.await.expect("there");
}

/// Whether a response broke off, as one about an unknown content, before this many bytes.
fn breaks_off(response: &BlobTestResponse, bytes_max: usize) -> bool {
    response.code == Some(1) && response.bytes.len() <= bytes_max
}

#[tokio::test]
async fn a_response_breaks_off_with_the_right_to_it() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(LONG)).await;
    for left in [Some("fs:read:secret"), Some("fs:write:docs"), None] {
        let (ada, server) = connect(&node, None);
        let begun = begin(&ada, hash).await;
        match left {
            Some(scope) => {
                let set = server.set_identity(identity("ada", &[scope]));
                set.expect("the same peer");
            }
            None => server.revoke_identity(),
        }
        // At the next block: the identity is compared for each of them.
        let response = rest(begun).await;
        let bytes = response.bytes.len();
        assert!(breaks_off(&response, AHEAD), "{left:?}: {bytes}");
        assert_eq!(ask(&ada, &get_all(hash)).await.code, Some(1));
    }
}

#[tokio::test]
async fn a_response_goes_on_with_the_right_that_is_left() {
    let node = BlobNode::new().await;
    let bytes = noise(LONG);
    let hash = node.put("docs", "/a", &bytes).await;
    let (ada, server) = connect(&node, None);
    let begun = begin(&ada, hash).await;
    for scopes in [&["fs:read:docs"][..], &["fs:read:*"]] {
        let set = server.set_identity(identity("ada", scopes));
        set.expect("the same peer");
    }
    let response = rest(begun).await;
    assert_eq!(response.code, None);
    assert!(response.bytes.len() + 1024 > LONG);
}

#[tokio::test]
async fn a_response_breaks_off_with_its_bucket() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(LONG)).await;
    let (ada, _server) = connect(&node, None);
    let begun = begin(&ada, hash).await;
    delete(&node, "docs").await;
    let response = rest(begun).await;
    let most = RIGHT_CHECK_BYTES as usize + AHEAD;
    assert!(breaks_off(&response, most), "{}", response.bytes.len());
}

/// It ends by the hand of an administrator, by its time, and with the bucket.
#[tokio::test]
async fn a_response_breaks_off_with_its_share() {
    for end in ["removed", "over", "deleted"] {
        let (node, clock) = node_with_clock().await;
        let hash = node.put("secret", "/a", &noise(LONG)).await;
        let id = share(&node, hash, Some(1)).await;
        let (outsider, _served) = node.outsider(KEY);
        let begun = begin(&outsider, hash).await;
        match end {
            "removed" => {
                let bucket = node.bucket("secret").await;
                let lease = node.lease().await;
                let removed = lease.write(move |tx| tx.remove_share(bucket, id));
                assert_eq!(removed.await, Ok(true));
            }
            "over" => {
                let ms = u64::try_from(SHARE_TIME.as_millis()).expect("small");
                clock.0.fetch_add(ms, Ordering::SeqCst);
            }
            _ => delete(&node, "secret").await,
        }
        let response = rest(begun).await;
        let bytes = response.bytes.len();
        let most = RIGHT_CHECK_BYTES as usize + AHEAD;
        assert!(breaks_off(&response, most), "{end}: {bytes}");
    }
}

/// What a request takes of a share is taken when it begins.
#[tokio::test]
async fn the_last_request_of_a_share_goes_to_its_end() {
    let node = BlobNode::new().await;
    let bytes = noise(LONG);
    let hash = node.put("secret", "/a", &bytes).await;
    share(&node, hash, Some(2)).await;
    let (outsider, _served) = node.outsider(KEY);
    let first = begin(&outsider, hash).await;
    let last = begin(&outsider, hash).await;
    assert_eq!(ask(&outsider, &get_all(hash)).await.code, Some(1));
    for begun in [first, last] {
        let response = rest(begun).await;
        assert_eq!(response.code, None);
        assert!(response.bytes.len() + 1024 > LONG);
    }
}

/// A share does not stand in for a bucket, because it did not count the request.
#[tokio::test]
async fn a_response_does_not_go_over_to_a_share() {
    let node = BlobNode::new().await;
    let hash = node.put("docs", "/a", &noise(LONG)).await;
    node.put("secret", "/a", &noise(LONG)).await;
    share(&node, hash, None).await;
    let (ada, server) = connect(&node, Some(KEY));
    let begun = begin(&ada, hash).await;
    let set = server.set_identity(identity("ada", &["fs:read:other"]));
    set.expect("the same peer");
    let response = rest(begun).await;
    assert!(breaks_off(&response, AHEAD), "{}", response.bytes.len());
    // The next request is one of the share.
    assert_eq!(ask(&ada, &get_all(hash)).await.code, None);
}
