//! Contents from peers: honest ones, lying ones, and ones that break off.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_core::{BoxFuture, DialError, DialErrorKind, PeerId};
use alknet_store::{BucketSettings, QuotaResource, StoreError};
use tokio::sync::{Semaphore, watch};

use super::*;
use crate::blobs::{
    BlobFetches, BlobPeers, FetchFailure, FetchOrder, FetchProgress, JoinedFetch, MissingBytes,
    ProviderStatus, ask_provider,
};

/// How a peer serves one connection.
pub(super) type ServePeer = Box<dyn Fn(Connection) + Send + Sync>;

#[derive(Default)]
pub(super) struct TestPeers {
    pub(super) peers: HashMap<PeerId, ServePeer>,
    pub(super) connections: AtomicUsize,
}

impl std::fmt::Debug for TestPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestPeers").finish_non_exhaustive()
    }
}

impl BlobPeers for TestPeers {
    fn known(&self) -> Vec<PeerId> {
        let mut known: Vec<_> = self.peers.keys().cloned().collect();
        // A test says by the names which peer is asked first.
        known.sort();
        known
    }

    fn connect<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, DialError>> {
        Box::pin(async move {
            self.connections.fetch_add(1, Ordering::SeqCst);
            let unknown = || DialError::new(DialErrorKind::UnknownPeer, "no such peer");
            let serve = self.peers.get(peer).ok_or_else(unknown)?;
            let (ours, theirs) = memory_pair(BLOBS_ALPN);
            serve(theirs);
            Ok(ours)
        })
    }
}

pub(super) fn id(name: &str) -> PeerId {
    name.parse().expect("a peer id")
}

/// A peer that serves the files of a node to a reader of everything.
pub(super) fn honest(node: &BlobNode) -> ServePeer {
    let handler = Arc::clone(&node.handler);
    Box::new(move |connection| {
        let auth = AuthContext {
            identity: Some(identity("getter", &["fs:read:*"])),
            key: None,
            alpn: BLOBS_ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: Carriage::Memory,
            early_data: false,
        };
        tokio::spawn(Arc::clone(&handler).handle(connection, auth));
    })
}

/// A peer that answers each request with what a function makes of an honest response.
pub(super) fn scripted(
    content: Vec<u8>,
    answer: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static,
) -> ServePeer {
    let answer = Arc::new(answer);
    let content = Arc::new(content);
    Box::new(move |connection| {
        let (answer, content) = (Arc::clone(&answer), Arc::clone(&content));
        tokio::spawn(async move {
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let request = request_bytes(&mut recv).await;
                let honest = honest_response(&content, &request);
                respond(&mut send, &answer(honest)).await;
            }
        });
    })
}

/// The chunks that a request asks for.
pub(super) fn requested(request: &[u8]) -> ChunkSelection {
    let mut parser = crate::blobs::BlobRequestParser::new();
    parser.push(request).expect("a request");
    match parser.finish().expect("a request") {
        BlobRequest::Get { selections, .. } => selections.selection(0).cloned().unwrap_or_default(),
        BlobRequest::Observe { .. } => ChunkSelection::default(),
    }
}

/// The response to a request for any chunks of a content.
pub(super) fn honest_response(content: &[u8], request: &[u8]) -> Vec<u8> {
    let selection = requested(request);
    // A folder of objects of its own encodes it.
    let dir = tempfile::tempdir().expect("writable");
    let policy = alknet_objects::OutboardPolicy::Placed;
    let objects = alknet_objects::ObjectFolder::open(dir.path(), policy).expect("writable");
    let mut staged = objects.stage().expect("writable");
    staged.write_at(0, content).expect("room");
    let placed = staged.place().expect("room");
    let reader = objects.reader(&placed.hash()).expect("there");
    let blocks = reader
        .selected(&selection)
        .map(|block| block.expect("whole"));
    let mut response = (content.len() as u64).to_le_bytes().to_vec();
    response.extend(blocks.collect::<Vec<_>>().concat());
    response
}

/// A node that wants contents.
pub(super) struct Getter {
    pub(super) node: BlobNode,
    pub(super) fetches: Arc<BlobFetches>,
    closing: watch::Sender<bool>,
}

impl Getter {
    pub(super) async fn new() -> Self {
        Self::with(BlobFetches::default()).await
    }

    pub(super) async fn with(fetches: BlobFetches) -> Self {
        Self {
            node: BlobNode::new().await,
            fetches: Arc::new(fetches),
            closing: watch::channel(false).0,
        }
    }

    /// A fetch for a bucket.
    pub(super) async fn order(
        &self,
        bucket: &str,
        peers: &Arc<TestPeers>,
        (hash, size): (ContentHash, usize),
        from: &[&str],
    ) -> FetchOrder {
        FetchOrder {
            hash,
            size: size as u64,
            bucket: self.node.bucket(bucket).await,
            from: from.iter().map(|name| id(name)).collect(),
            peers: Arc::clone(peers) as Arc<dyn BlobPeers>,
            lease: self.node.lease().await,
            closing: self.closing.subscribe(),
        }
    }

    async fn join(
        &self,
        peers: &Arc<TestPeers>,
        hash: ContentHash,
        size: usize,
        from: &[&str],
    ) -> JoinedFetch {
        let order = self.order("docs", peers, (hash, size), from).await;
        self.fetches.join(order).expect("room")
    }

    /// Fetches a content, and returns how that ended.
    pub(super) async fn fetch(
        &self,
        peers: &Arc<TestPeers>,
        hash: ContentHash,
        size: usize,
        from: &[&str],
    ) -> FetchProgress {
        let joined = self.join(peers, hash, size, from).await;
        end(joined).await
    }
}

pub(super) async fn end(mut joined: JoinedFetch) -> FetchProgress {
    let is_over = |progress: &FetchProgress| !matches!(progress, FetchProgress::Missing(_));
    let ended = tokio::time::timeout(hung(), joined.progress.wait_for(is_over)).await;
    ended.expect("in time").expect("it ends").clone()
}

pub(super) fn failed(outcomes: &[(&str, &'static str)]) -> FetchProgress {
    let tried = outcomes.iter().map(|(peer, outcome)| (id(peer), *outcome));
    FetchProgress::Failed(FetchFailure::Peers(tried.collect()))
}

#[tokio::test]
async fn contents_come_from_a_peer() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), honest(&provider))]),
        ..TestPeers::default()
    });
    for len in [1, 700, GROUP, GROUP + 1, 70 * GROUP + 77] {
        let bytes = noise(len);
        let path = format!("/{len}");
        let hash = provider.put("docs", &path, &bytes).await;
        assert_eq!(getter.node.want("docs", &path, &bytes).await, hash);
        let ended = getter.fetch(&peers, hash, len, &["bob"]).await;
        assert_eq!(ended, FetchProgress::Done);
        assert!(getter.node.bytes(hash).await == bytes);
        let size = len as u64;
        assert_eq!(
            getter.node.status(hash).await,
            ContentStatus::Complete { size }
        );
    }
    // A content that is damaged here is mended.
    let bytes = noise(70 * GROUP + 77);
    let hash = hash_of(&bytes);
    getter.node.damage(hash, 5);
    getter.node.read(hash).await.expect_err("damaged");
    let ended = getter.fetch(&peers, hash, bytes.len(), &["bob"]).await;
    assert_eq!(ended, FetchProgress::Done);
    assert!(getter.node.bytes(hash).await == bytes);
}

/// A byte that is flipped on the way costs the group that has it, and the peer its trust.
#[tokio::test]
async fn a_lying_peer_is_dropped_and_not_asked_again() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let bytes = noise(70 * GROUP);
    let hash = provider.put("docs", "/a", &bytes).await;
    getter.node.want("docs", "/a", &bytes).await;
    let flipped = |at: usize| {
        move |mut response: Vec<u8>| {
            let end = response.len();
            response[at.min(end - 1)] ^= 1;
            response
        }
    };
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([
            (id("late"), scripted(bytes.clone(), flipped(50 * GROUP))),
            (id("first"), scripted(bytes.clone(), flipped(8))),
            (id("size"), scripted(bytes.clone(), flipped(1))),
            (
                id("other"),
                scripted(noise(70 * GROUP - 1), |response| response),
            ),
            (id("bob"), honest(&provider)),
        ]),
        ..TestPeers::default()
    });
    let len = bytes.len();
    let liars = ["late", "first", "size", "other"];
    let ended = getter.fetch(&peers, hash, len, &liars).await;
    assert_eq!(ended, failed(&liars.map(|name| (name, "wrong bytes"))));
    // What came before the lie is whole and stays.
    let size = len as u64;
    assert_eq!(
        getter.node.status(hash).await,
        ContentStatus::Partial { size }
    );
    let (lease, docs) = (getter.node.lease().await, getter.node.bucket("docs").await);
    let partial = lease.content().receive(docs, hash, size).expect("room");
    assert!((20 * GROUP as u64..30 * GROUP as u64).contains(&partial.missing_bytes()));
    drop(partial);
    // They are not even dialled.
    let before = peers.connections.load(Ordering::SeqCst);
    let ended = getter.fetch(&peers, hash, len, &liars).await;
    assert_eq!(ended, failed(&liars.map(|name| (name, "penalised"))));
    assert_eq!(peers.connections.load(Ordering::SeqCst), before);
    let ended = getter.fetch(&peers, hash, len, &["late", "bob"]).await;
    assert_eq!(ended, FetchProgress::Done);
    assert!(getter.node.bytes(hash).await == bytes);
}

/// Nothing is known of the liar before it is asked.
#[tokio::test]
async fn a_fetch_drops_a_lying_peer_and_asks_the_next_one() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let bytes = noise(70 * GROUP);
    let hash = provider.put("docs", "/a", &bytes).await;
    getter.node.want("docs", "/a", &bytes).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let liar = scripted(bytes.clone(), move |mut response: Vec<u8>| {
        counted.fetch_add(1, Ordering::SeqCst);
        response[9 * GROUP] ^= 1;
        response
    });
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("liar"), liar), (id("bob"), honest(&provider))]),
        ..TestPeers::default()
    });
    let order = ["liar", "bob"];
    let ended = getter.fetch(&peers, hash, bytes.len(), &order).await;
    assert_eq!(ended, FetchProgress::Done);
    assert!(getter.node.bytes(hash).await == bytes);
    // The liar was dialled and asked once, and has a penalty alone.
    assert_eq!(peers.connections.load(Ordering::SeqCst), 2);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    let penalised = order.map(|name| getter.fetches.is_penalised(&id(name)));
    assert_eq!(penalised, [true, false]);
}

/// Bytes by the word of an announcement are no proof: the peers that have the content know better, and prove it.
#[tokio::test]
async fn a_wrong_announced_size_makes_no_honest_peer_a_liar() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), honest(&provider))]),
        ..TestPeers::default()
    });
    let mut number = 0;
    for len in [0, 1, GROUP, 70 * GROUP + 77] {
        let wrong = [
            0,
            1,
            len / 2,
            len.saturating_sub(1),
            len + 1,
            3 * len,
            100 * GROUP,
        ];
        for announced in wrong.into_iter().filter(|wrong| *wrong != len) {
            // A content of its own, of which no earlier case knows the size.
            number += 1;
            let mut bytes = noise(len);
            bytes.iter_mut().take(1).for_each(|byte| *byte = number);
            let path = format!("/{len}-{announced}");
            let hash = provider.put("docs", &path, &bytes).await;
            getter
                .node
                .want_sized("docs", &path, &bytes, announced)
                .await;
            let ended = getter.fetch(&peers, hash, announced, &["bob"]).await;
            assert_eq!(ended, FetchProgress::Done, "{len} and not {announced}");
            assert!(getter.node.bytes(hash).await == bytes);
            let size = len as u64;
            let status = getter.node.status_in("docs", hash).await;
            assert_eq!(status, ContentStatus::Complete { size });
            assert!(!getter.fetches.is_penalised(&id("bob")));
        }
    }
}

/// What came before it was known keeps nothing from the true size.
#[tokio::test]
async fn a_fetch_reports_the_size_that_a_peer_proved() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let bytes = noise(3 * GROUP);
    let hash = provider.put("docs", "/a", &bytes).await;
    getter.node.want_sized("docs", "/a", &bytes, 7).await;
    let (permits, requests) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
    let peers = Arc::new(TestPeers {
        // It answers the first request, and the one for the proof waits.
        peers: HashMap::from([(id("bob"), held(bytes.clone(), &permits, &requests))]),
        ..TestPeers::default()
    });
    let mut joined = getter.join(&peers, hash, 7, &["bob"]).await;
    let missing = |size: u64| {
        FetchProgress::Missing(MissingBytes {
            missing: size,
            size,
        })
    };
    assert_eq!(*joined.progress.borrow_and_update(), missing(7));
    permits.add_permits(1);
    let changed = tokio::time::timeout(hung(), joined.progress.changed()).await;
    changed.expect("in time").expect("it goes on");
    assert_eq!(
        *joined.progress.borrow_and_update(),
        missing(bytes.len() as u64)
    );
    permits.add_permits(100);
    assert_eq!(end(joined).await, FetchProgress::Done);
}

/// The attack: a bucket announces contents as short, and lets the node fetch what it has no quota for.
#[tokio::test]
async fn a_content_beyond_the_quota_is_not_fetched_under_a_smaller_size() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let bytes = noise(70 * GROUP);
    let hash = provider.put("docs", "/a", &bytes).await;
    let (bucket, limit) = (getter.node.bucket("docs").await, 20 * GROUP as u64);
    let settings = BucketSettings {
        quota_bytes: Some(Some(limit)),
        ..BucketSettings::default()
    };
    let lease = getter.node.lease().await;
    let set = lease.write(move |tx| tx.set_bucket(bucket, &settings, "alice"));
    set.await.expect("there");
    getter.node.want_sized("docs", "/a", &bytes, 7).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let count = move |response: Vec<u8>| {
        counted.fetch_add(response.len(), Ordering::SeqCst);
        response
    };
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), scripted(bytes.clone(), count))]),
        ..TestPeers::default()
    });
    let refused = StoreError::QuotaExceeded {
        resource: QuotaResource::Bytes,
        limit,
        used: 7,
    };
    let ended = getter.fetch(&peers, hash, 7, &["bob"]).await;
    assert_eq!(ended, FetchProgress::Failed(FetchFailure::Store(refused)));
    // The response to the first request, which is not read, and the proof of the size.
    assert!(sent.load(Ordering::SeqCst) < 3 * GROUP);
    let status = getter.node.status_in("docs", hash).await;
    assert_eq!(status, ContentStatus::Wanted { size: 7 });
}

/// That one bucket gets the bytes gives the others that wait for them none: a hash is no capability.
#[tokio::test]
async fn a_fetch_gives_the_bytes_to_its_bucket_alone() {
    let (getter, provider) = (Getter::new().await, BlobNode::new().await);
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), honest(&provider))]),
        ..TestPeers::default()
    });
    for len in [700, 5 * GROUP] {
        let (bytes, size) = (noise(len), len as u64);
        let path = format!("/{len}");
        let hash = provider.put("docs", &path, &bytes).await;
        for bucket in ["docs", "secret"] {
            getter.node.want(bucket, &path, &bytes).await;
        }
        let ended = getter.fetch(&peers, hash, len, &["bob"]).await;
        assert_eq!(ended, FetchProgress::Done);
        let status = getter.node.status_in("docs", hash).await;
        assert_eq!(status, ContentStatus::Complete { size });
        let other = getter.node.status_in("secret", hash).await;
        assert_eq!(other, ContentStatus::Wanted { size });
    }
}

/// What a peer has sent before it broke off is not asked for again.
#[tokio::test]
async fn a_fetch_goes_on_with_what_is_here() {
    let getter = Getter::new().await;
    let bytes = noise(70 * GROUP);
    let hash = getter.node.want("docs", "/a", &bytes).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([
            (
                id("breaks"),
                scripted(bytes.clone(), |mut response| {
                    response.truncate(40 * GROUP);
                    response
                }),
            ),
            (
                id("rest"),
                scripted(bytes.clone(), move |response| {
                    counted.fetch_add(response.len(), Ordering::SeqCst);
                    response
                }),
            ),
        ]),
        ..TestPeers::default()
    });
    let len = bytes.len();
    let ended = getter.fetch(&peers, hash, len, &["absent", "breaks"]).await;
    assert_eq!(
        ended,
        failed(&[("absent", "unreachable"), ("breaks", "no content")])
    );
    // The next call goes on from there, also after a restart.
    let getter = Getter {
        node: getter.node.restarted().await,
        ..getter
    };
    let ended = getter.fetch(&peers, hash, len, &["rest"]).await;
    assert_eq!(ended, FetchProgress::Done);
    assert!(getter.node.bytes(hash).await == bytes);
    let sent = sent.load(Ordering::SeqCst);
    assert!((30 * GROUP..35 * GROUP).contains(&sent), "{sent}");
}

/// A peer whose responses wait for a permit each.
pub(super) fn held(
    bytes: Vec<u8>,
    permits: &Arc<Semaphore>,
    requests: &Arc<AtomicUsize>,
) -> ServePeer {
    let (permits, requests) = (Arc::clone(permits), Arc::clone(requests));
    let bytes = Arc::new(bytes);
    Box::new(move |connection| {
        let (permits, requests, bytes) = (
            Arc::clone(&permits),
            Arc::clone(&requests),
            Arc::clone(&bytes),
        );
        tokio::spawn(async move {
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let request = request_bytes(&mut recv).await;
                requests.fetch_add(1, Ordering::SeqCst);
                permits.acquire().await.expect("it stays open").forget();
                respond(&mut send, &honest_response(&bytes, &request)).await;
            }
        });
    })
}

#[tokio::test]
async fn a_content_is_fetched_once_at_a_time() {
    let getter = Getter::new().await;
    let bytes = noise(10 * GROUP);
    let hash = getter.node.want("docs", "/a", &bytes).await;
    let (permits, requests) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), held(bytes.clone(), &permits, &requests))]),
        ..TestPeers::default()
    });
    let len = bytes.len();
    let mut joined = Vec::new();
    for _ in 0..5 {
        joined.push(getter.join(&peers, hash, len, &["bob"]).await);
    }
    let own = joined.iter().filter(|joined| joined.is_own).count();
    assert_eq!(own, 1);
    permits.add_permits(100);
    for joined in joined {
        assert_eq!(end(joined).await, FetchProgress::Done);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

/// A fetch that no caller follows ends, and a later one may begin.
#[tokio::test]
async fn a_fetch_ends_with_its_last_caller() {
    let getter = Getter::new().await;
    let bytes = noise(10 * GROUP);
    let hash = getter.node.want("docs", "/a", &bytes).await;
    let (permits, requests) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), held(bytes.clone(), &permits, &requests))]),
        ..TestPeers::default()
    });
    let len = bytes.len();
    let first = getter.join(&peers, hash, len, &["bob"]).await;
    let second = getter.join(&peers, hash, len, &["bob"]).await;
    drop(first);
    assert!(!second.is_own);
    drop(second);
    // The file of the content is free once the fetch has ended.
    let size = len as u64;
    let (lease, docs) = (getter.node.lease().await, getter.node.bucket("docs").await);
    let free = tokio::time::timeout(hung(), async {
        while lease.content().receive(docs, hash, size).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    free.await.expect("in time");
    permits.add_permits(100);
    let ended = getter.fetch(&peers, hash, len, &["bob"]).await;
    assert_eq!(ended, FetchProgress::Done);
}

/// A shutdown does not wait for a peer.
#[tokio::test]
async fn a_shutdown_ends_a_fetch() {
    let getter = Getter::new().await;
    let bytes = noise(10 * GROUP);
    let hash = getter.node.want("docs", "/a", &bytes).await;
    let (permits, requests) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let peers = Arc::new(TestPeers {
        peers: HashMap::from([(id("bob"), held(bytes.clone(), &permits, &requests))]),
        ..TestPeers::default()
    });
    let joined = getter.join(&peers, hash, bytes.len(), &["bob"]).await;
    getter.closing.send_replace(true);
    let ended = end(joined).await;
    assert!(
        matches!(ended, FetchProgress::Failed(FetchFailure::Store(_))),
        "{ended:?}"
    );
}

#[tokio::test]
async fn peers_say_what_they_have() {
    let provider = BlobNode::new().await;
    let bytes = noise(3 * GROUP);
    let here = provider.put("docs", "/a", &bytes).await;
    let wanted = provider.want("docs", "/b", b"wanted").await;
    let peers = TestPeers {
        peers: HashMap::from([
            (id("bob"), honest(&provider)),
            (id("odd"), scripted(bytes, |_| vec![255; 40])),
            (
                id("long"),
                scripted(Vec::new(), |_| vec![255, 255, 255, 127]),
            ),
        ]),
        ..TestPeers::default()
    };
    let ask = |name: &'static str, hash| {
        let peers = &peers;
        async move { ask_provider(peers, &id(name), hash).await }
    };
    let size = 3 * GROUP as u64;
    assert_eq!(ask("bob", here).await, ProviderStatus::Complete { size });
    assert_eq!(
        ask("bob", wanted).await,
        ProviderStatus::Partial { size: 6 }
    );
    let unknown = ContentHash::new([9; 32]);
    assert_eq!(ask("bob", unknown).await, ProviderStatus::Absent);
    for name in ["odd", "long"] {
        assert_eq!(ask(name, here).await, ProviderStatus::Absent, "{name}");
    }
    assert_eq!(ask("carol", here).await, ProviderStatus::Unreachable);
}
