//! Fetches for one bucket, and what they show to another one or take from it.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError};

use alknet_store::{ContentFetchMode, StoreError};
use tokio::sync::Semaphore;

use super::fetching::{
    Getter, ServePeer, TestPeers, end, failed, held, honest, honest_response, id, requested,
    scripted,
};
use super::wanted::is_unavailable;
use super::*;
use crate::blobs::{BlobFetches, FetchProgress, MissingBytes};
use crate::limits::FETCHES_PER_BUCKET_MAX;

/// Beginnings and ends of the chunks that were asked for, one request after the other.
type Requests = Arc<Mutex<Vec<Vec<u64>>>>;

fn note(requests: &Requests, boundaries: Vec<u64>) {
    let mut noted = requests.lock().unwrap_or_else(PoisonError::into_inner);
    noted.push(boundaries);
}

/// A peer that has a content without its beginning.
fn without_beginning(content: Vec<u8>, requests: &Requests) -> ServePeer {
    let (content, requests) = (Arc::new(content), Arc::clone(requests));
    Box::new(move |connection| {
        let (content, requests) = (Arc::clone(&content), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let request = request_bytes(&mut recv).await;
                let boundaries = requested(&request).boundaries().to_vec();
                let needs_beginning = boundaries.first() == Some(&0);
                note(&requests, boundaries);
                let mut response = honest_response(&content, &request);
                if needs_beginning {
                    response.truncate(8);
                }
                respond(&mut send, &response).await;
            }
        });
    })
}

/// The attack: a tenant waits for a content of which a part has come for another tenant, and has a peer with the rest. The
/// first request of this node would say which part is there, and the tenant would get all bytes.
#[tokio::test]
async fn a_bucket_gets_no_part_of_what_came_for_another_one() {
    let getter = Getter::new().await;
    let bytes = noise(70 * GROUP);
    let hash = getter.node.want("docs", "/a", &bytes).await;
    getter.node.want("secret", "/b", &bytes).await;
    let breaks = scripted(bytes.clone(), |mut response| {
        response.truncate(40 * GROUP);
        response
    });
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("breaks"), breaks)]),
        ..TestPeers::default()
    });
    let ended = getter.fetch(&peers, hash, bytes.len(), &["breaks"]).await;
    assert_eq!(ended, failed(&[("breaks", "no content")]));
    getter
        .node
        .synchronise("secret", ContentFetchMode::Lazy)
        .await;
    let requests = Requests::default();
    let rest = without_beginning(bytes.clone(), &requests);
    getter.node.know(HashMap::from([(id("rest"), rest)]));
    assert!(is_unavailable(
        getter.node.fetch_for_read("secret", hash).await
    ));
    let noted = requests.lock().map(|noted| noted.clone());
    // Each group has 16 chunks.
    assert_eq!(noted.expect("no panic"), [vec![0, 70 * 16]]);
    let size = bytes.len() as u64;
    let status = getter.node.status_in("secret", hash).await;
    assert_eq!(status, ContentStatus::Wanted { size });
}

/// The attack: a tenant follows the fetch of another one, and learns how long the content is and how far the fetch came.
#[tokio::test]
async fn a_fetch_is_not_shown_to_another_bucket() {
    let getter = Getter::new().await;
    let bytes = noise(10 * GROUP);
    let hash = getter.node.want("docs", "/a", &bytes).await;
    getter.node.want_sized("secret", "/b", &bytes, 5).await;
    let (permits, requests) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), held(bytes.clone(), &permits, &requests))]),
        ..TestPeers::default()
    });
    let wanted = (hash, bytes.len());
    let order = getter.order("docs", &peers, wanted, &["bob"]).await;
    let own = getter.fetches.join(order).expect("room");
    let order = getter.order("secret", &peers, (hash, 5), &[]).await;
    let other = getter.fetches.join(order).expect("room");
    assert!(own.is_own && other.is_own);
    let announced = MissingBytes {
        missing: 5,
        size: 5,
    };
    let shown = other.progress.borrow().clone();
    assert_eq!(shown, FetchProgress::Missing(announced));
    assert_eq!(end(other).await, failed(&[]));
    permits.add_permits(100);
    assert_eq!(end(own).await, FetchProgress::Done);
}

/// A peer that sends a byte from time to time.
fn trickling(content: Vec<u8>) -> ServePeer {
    let content = Arc::new(content);
    Box::new(move |connection| {
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let request = request_bytes(&mut recv).await;
                for byte in honest_response(&content, &request) {
                    if send.write_chunk(vec![byte].into()).await.is_err() {
                        break;
                    }
                    // What makes the peer slow.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    })
}

/// The attack: the peer of one bucket keeps all fetches of the node busy.
#[tokio::test]
async fn slow_peers_of_one_bucket_leave_fetches_to_others() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let bytes = noise(3 * GROUP);
    let hash = provider.put("docs", "/a", &bytes).await;
    getter.node.want("secret", "/a", &bytes).await;
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([
            (id("slow"), trickling(bytes.clone())),
            (id("bob"), honest(&provider)),
        ]),
        ..TestPeers::default()
    });
    let mut under_way = Vec::new();
    for number in 0..=FETCHES_PER_BUCKET_MAX {
        let mut other = bytes.clone();
        other[..8].copy_from_slice(&number.to_be_bytes());
        let hash = getter
            .node
            .want("docs", &format!("/{number}"), &other)
            .await;
        let wanted = (hash, other.len());
        let order = getter.order("docs", &peers, wanted, &["slow"]).await;
        under_way.push(getter.fetches.join(order));
    }
    let refused = under_way.pop().expect("some").expect_err("one too many");
    assert!(
        matches!(refused, FsError::Store(StoreError::Busy(_))),
        "{refused:?}"
    );
    assert!(under_way.iter().all(Result::is_ok));
    let wanted = (hash, bytes.len());
    let order = getter.order("secret", &peers, wanted, &["bob"]).await;
    let joined = getter.fetches.join(order).expect("of another bucket");
    assert_eq!(end(joined).await, FetchProgress::Done);
}

#[tokio::test]
async fn a_peer_that_trickles_is_given_up() {
    // In place of half a minute.
    let fetches = BlobFetches::with_rate_grace(Duration::from_millis(50));
    let getter = Getter::with(fetches).await;
    let bytes = noise(3 * GROUP);
    let hash = getter.node.want("docs", "/a", &bytes).await;
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("slow"), trickling(bytes.clone()))]),
        ..TestPeers::default()
    });
    let ended = getter.fetch(&peers, hash, bytes.len(), &["slow"]).await;
    assert_eq!(ended, failed(&[("slow", "too slow")]));
}
