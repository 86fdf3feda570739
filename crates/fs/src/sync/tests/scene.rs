//! Nodes that synchronise in this process.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use alknet_core::{
    AuthContext, BoxError, BoxFuture, Carriage, Connection, Identity, IdentityKind, PeerId,
    PeerKey, ProtocolHandler, memory_pair,
};
use alknet_store::{
    Bucket, BucketSettings, ChangeRequest, ContentHash, EntryAttributes, EntryKind, EntryPath,
    EntryPrecondition, EventFilter, EventTopic, FileContent, FileStoreOptions, HybridTimestamp,
    ListRequest, NewBucket, SpaceSource, StoreDbOptions, StoreError, StoreEvent, StoreSpace,
    TimeSource, TreeChange,
};
use alknet_test_support::deadline;
use tempfile::TempDir;

use crate::FsService;
use crate::lease::StoreLease;
use crate::sync::{SYNC_ALPN, SyncDialer, SyncError, SyncOptions, SyncRecord, SyncService};

/// Where the clocks of tests begin: 2027-01-15, 08:00 UTC.
const START_MS: u64 = 1_800_000_000_000;

/// The scope of a peer that may synchronise.
pub(super) const MAY_SYNC: &str = "fs:sync:docs";

/// How long anything may take before a test calls it hung.
pub(super) fn hung() -> Duration {
    deadline(Duration::from_secs(120))
}

/// A clock that a test moves.
#[derive(Debug)]
pub(super) struct TestClock(AtomicU64);

impl TestClock {
    pub(super) fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    pub(super) fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl TimeSource for TestClock {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A disk with room, whatever the machine has, until a test says that it is full.
#[derive(Debug, Default)]
pub(super) struct FillableDisk(AtomicBool);

impl FillableDisk {
    pub(super) fn set_full(&self, is_full: bool) {
        self.0.store(is_full, Ordering::SeqCst);
    }
}

impl SpaceSource for FillableDisk {
    fn measure(&self, _folder: &Path) -> io::Result<StoreSpace> {
        let total = 1 << 40;
        let free = match self.0.load(Ordering::SeqCst) {
            true => 0,
            false => total,
        };
        Ok(StoreSpace { total, free })
    }
}

/// What a path has, as far as peers agree on it.
pub(super) type TreeRow = (EntryKind, Option<ContentHash>, u64, u32, Option<String>);

/// A node with the synchronised bucket `docs`.
pub(super) struct SyncNode {
    pub(super) name: String,
    pub(super) sync: Arc<SyncService>,
    pub(super) files: FsService,
    pub(super) clock: Arc<TestClock>,
    pub(super) disk: Arc<FillableDisk>,
    options: SyncOptions,
    folder: TempDir,
}

impl SyncNode {
    pub(super) async fn new(name: &str) -> Self {
        Self::with(name, |_| {}).await
    }

    pub(super) async fn with(name: &str, change: impl FnOnce(&mut SyncOptions)) -> Self {
        let mut key = [0; 32];
        key[..name.len()].copy_from_slice(name.as_bytes());
        let mut options = SyncOptions::new(PeerKey::Ed25519(key));
        change(&mut options);
        let clock = Arc::new(TestClock(AtomicU64::new(START_MS)));
        let folder = tempfile::tempdir().expect("writable");
        let disk = Arc::new(FillableDisk::default());
        let files = open(&folder, &clock, &disk);
        let node = Self {
            name: name.to_owned(),
            sync: Arc::new(SyncService::new(files.clone(), options.clone())),
            files,
            clock,
            disk,
            options,
            folder,
        };
        let store = node.store().await;
        let new = NewBucket::new("docs".parse().expect("a name"), "root");
        let settings = BucketSettings {
            is_synced: Some(true),
            ..BucketSettings::default()
        };
        let made = store.write(move |tx| {
            let (bucket, _) = tx.create_bucket(&new)?;
            tx.set_bucket(bucket.id, &settings, "root")
        });
        made.await.expect("a bucket");
        node
    }

    /// The same node after an orderly end.
    pub(super) async fn restarted(self) -> Self {
        self.files.shutdown().await;
        let files = open(&self.folder, &self.clock, &self.disk);
        Self {
            sync: Arc::new(SyncService::new(files.clone(), self.options.clone())),
            files,
            ..self
        }
    }

    pub(super) async fn store(&self) -> StoreLease {
        self.files.lease().await.expect("a store")
    }

    pub(super) async fn bucket(&self) -> Bucket {
        let read = self
            .store()
            .await
            .read(|tx| tx.bucket_by_name(&"docs".parse()?));
        read.await.expect("a bucket")
    }

    pub(super) async fn set(&self, settings: BucketSettings) {
        let bucket = self.bucket().await.id;
        let store = self.store().await;
        let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
        set.await.expect("there");
    }

    pub(super) async fn apply(&self, changes: Vec<TreeChange>) -> HybridTimestamp {
        let store = self.store().await;
        let done = store.write(move |tx| {
            let bucket = tx.bucket_by_name(&"docs".parse()?)?;
            let branch = tx.branch_by_name(bucket.id, &"main".parse()?)?;
            tx.apply(&ChangeRequest {
                branch: branch.id,
                actor: "alice".to_owned(),
                message: None,
                changes: changes.clone(),
            })
        });
        done.await.expect("applied").timestamp
    }

    /// Writes a file whose content has this number.
    pub(super) async fn put(&self, at: &str, number: u64) -> HybridTimestamp {
        self.apply(vec![put(at, number)]).await
    }

    /// Writes a file with these bytes, which the store has, and returns its content.
    pub(super) async fn put_bytes(&self, at: &str, bytes: &'static [u8]) -> ContentHash {
        let store = self.store().await;
        let bucket = self.bucket().await.id;
        let read = store.read(move |tx| tx.branch_by_name(bucket, &"main".parse()?));
        let branch = read.await.expect("a branch").id;
        let at = path(at);
        let put = tokio::task::spawn_blocking(move || {
            let content = store.put_bytes(bytes)?;
            let hash = content.content().hash;
            let put = TreeChange::put(at, content.content());
            let put = ChangeRequest::new(branch, "alice", put);
            store.apply(put, vec![content]).wait()?;
            Ok::<_, StoreError>(hash)
        });
        put.await.expect("no panic").expect("applied")
    }

    pub(super) async fn mkdir(&self, at: &str) {
        self.apply(vec![TreeChange::mkdir(path(at))]).await;
    }

    pub(super) async fn delete(&self, at: &str) -> HybridTimestamp {
        self.apply(vec![TreeChange::delete(path(at))]).await
    }

    /// Everything that the branch shows.
    pub(super) async fn tree(&self) -> BTreeMap<String, TreeRow> {
        let store = self.store().await;
        let read = store.read(|tx| {
            let bucket = tx.bucket_by_name(&"docs".parse()?)?;
            let branch = tx.branch_by_name(bucket.id, &"main".parse()?)?;
            let view = tx.view(branch.id, None)?;
            let mut request = ListRequest {
                is_recursive: true,
                ..ListRequest::new(EntryPath::root())
            };
            let mut entries = Vec::new();
            loop {
                let page = tx.list(&view, &request)?;
                entries.extend(page.entries);
                if page.next.is_none() {
                    return Ok(entries);
                }
                request.after = page.next;
            }
        });
        let rows = read.await.expect("readable").into_iter().map(|entry| {
            let state = entry.state;
            let row = (state.kind, state.hash, state.size, state.mode, state.target);
            (entry.path.to_string(), row)
        });
        rows.collect()
    }

    /// The paths of everything that the branch shows.
    pub(super) async fn paths(&self) -> Vec<String> {
        self.tree().await.into_keys().collect()
    }

    /// Contents of the versions of a path, the newest first.
    pub(super) async fn history(&self, at: &str) -> Vec<Option<ContentHash>> {
        let (store, at) = (self.store().await, path(at));
        let read = store.read(move |tx| {
            let bucket = tx.bucket_by_name(&"docs".parse()?)?;
            let branch = tx.branch_by_name(bucket.id, &"main".parse()?)?;
            tx.history(&tx.view(branch.id, None)?, &at, None, 100)
        });
        let versions = read.await.expect("readable").into_iter();
        versions.map(|version| version.state.hash).collect()
    }

    /// The events about changes of peers.
    pub(super) async fn merges(&self) -> Vec<StoreEvent> {
        let filter = EventFilter {
            topics: vec![EventTopic::SyncMerged],
            ..EventFilter::default()
        };
        let store = self.store().await;
        let read = store.read(move |tx| tx.read_events(0, &filter, 1000));
        read.await.expect("readable").events
    }

    /// Number of the last commit of the branch.
    pub(super) async fn head_seq(&self) -> u64 {
        let store = self.store().await;
        let read = store.read(|tx| {
            let bucket = tx.bucket_by_name(&"docs".parse()?)?;
            Ok(tx.branch_by_name(bucket.id, &"main".parse()?)?.head_seq)
        });
        read.await.expect("readable")
    }

    /// How the last session with a peer ended.
    pub(super) fn record(&self, peer: &str) -> SyncRecord {
        let mut records = self.files.sync_records().list().into_iter();
        let found = records.find(|(target, _)| target.peer.as_str() == peer);
        found.map(|(_, record)| record).unwrap_or_default()
    }

    /// The last changes of the stored document, once it has taken in every commit.
    pub(super) async fn heads(&self) -> Option<Vec<[u8; 32]>> {
        let store = self.store().await;
        let read = store.read(|tx| {
            let bucket = tx.bucket_by_name(&"docs".parse()?)?;
            let branch = tx.branch_by_name(bucket.id, &"main".parse()?)?;
            tx.sync_heads(&branch.id.into())
        });
        read.await.expect("readable")
    }

    /// Gives each name in the root a document of its own, or not.
    pub(super) async fn split(&self, is_split: bool) {
        self.set(BucketSettings {
            is_split: Some(is_split),
            ..BucketSettings::default()
        })
        .await;
    }

    /// Bytes of the stored document.
    pub(super) async fn stored_bytes(&self) -> usize {
        self.stored_parts().await.iter().map(Vec::len).sum()
    }

    /// Parts that the stored document has.
    pub(super) async fn parts(&self) -> usize {
        self.stored_parts().await.len()
    }

    /// The bytes of the stored document, by its parts.
    pub(super) async fn stored_parts(&self) -> Vec<Vec<u8>> {
        let store = self.store().await;
        let read = store.read(|tx| {
            let bucket = tx.bucket_by_name(&"docs".parse()?)?;
            let branch = tx.branch_by_name(bucket.id, &"main".parse()?)?;
            tx.sync_document(&branch.id.into())
        });
        let document = read.await.expect("readable");
        document.map_or_else(Vec::new, |document| document.chunks)
    }

    /// A connection to another node. Each knows the other one with these scopes.
    pub(super) fn connect(&self, other: &Self, ours: &[&str], theirs: &[&str]) -> Connection {
        let (here, there) = memory_pair(SYNC_ALPN);
        let known = here.set_identity(identity(&other.name, theirs));
        known.expect("the first identity");
        serve(other, there, Some(identity(&self.name, ours)));
        here
    }

    /// Opens a session with another node until both have the same.
    pub(super) async fn sync(&self, other: &Self) -> Result<(), SyncError> {
        let connection = self.connect(other, &[MAY_SYNC], &[MAY_SYNC]);
        self.sync_on(&connection).await
    }

    pub(super) async fn sync_on(&self, connection: &Connection) -> Result<(), SyncError> {
        let (bucket, branch) = ("docs".parse(), "main".parse());
        let (bucket, branch) = (bucket.expect("a name"), branch.expect("a name"));
        let session = self.sync.sync_once(connection, &bucket, &branch);
        let session = tokio::time::timeout(hung(), session);
        session.await.expect("an end")
    }
}

fn open(folder: &TempDir, clock: &Arc<TestClock>, disk: &Arc<FillableDisk>) -> FsService {
    let options = FileStoreOptions {
        db: StoreDbOptions {
            time: Arc::clone(clock) as _,
            space: Arc::clone(disk) as _,
            ..StoreDbOptions::default()
        },
        ..FileStoreOptions::default()
    };
    FsService::new(&folder.path().join("fs"), options)
}

/// The nodes that a node dials, while they are not parted.
#[derive(Debug)]
pub(super) struct MemoryDialer {
    own: String,
    others: Vec<(PeerId, Arc<SyncService>)>,
    is_parted: AtomicBool,
    /// Connections that were dialled.
    pub(super) dials: AtomicUsize,
}

impl MemoryDialer {
    pub(super) fn new(own: &SyncNode, others: &[&SyncNode]) -> Arc<Self> {
        let others = others.iter().map(|node| {
            let peer = node.name.parse().expect("a peer id");
            (peer, Arc::clone(&node.sync))
        });
        Arc::new(Self {
            own: own.name.clone(),
            others: others.collect(),
            is_parted: AtomicBool::new(false),
            dials: AtomicUsize::new(0),
        })
    }

    /// Lets every dial fail, or none.
    pub(super) fn part(&self, is_parted: bool) {
        self.is_parted.store(is_parted, Ordering::SeqCst);
    }
}

impl SyncDialer for MemoryDialer {
    fn peers(&self) -> Vec<PeerId> {
        self.others.iter().map(|(peer, _)| peer.clone()).collect()
    }

    fn identity(&self, peer: &PeerId) -> Option<Arc<Identity>> {
        Some(identity(peer.as_str(), &[MAY_SYNC]))
    }

    fn dial<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, BoxError>> {
        let other = self.others.iter().find(|(known, _)| known == peer);
        let dialled = match other {
            Some((_, sync)) if !self.is_parted.load(Ordering::SeqCst) => {
                self.dials.fetch_add(1, Ordering::SeqCst);
                let (here, there) = memory_pair(SYNC_ALPN);
                serve_by(sync, there, Some(identity(&self.own, &[MAY_SYNC])));
                Ok(here)
            }
            _ => Err("parted".into()),
        };
        Box::pin(std::future::ready(dialled))
    }
}

/// Serves a connection.
pub(super) fn serve(node: &SyncNode, connection: Connection, peer: Option<Arc<Identity>>) {
    serve_by(&node.sync, connection, peer);
}

fn serve_by(sync: &Arc<SyncService>, connection: Connection, peer: Option<Arc<Identity>>) {
    let auth = AuthContext {
        identity: peer,
        key: None,
        alpn: SYNC_ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    };
    tokio::spawn(Arc::clone(sync).handle(connection, auth));
}

pub(super) fn identity(name: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: name.parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 1,
    })
}

pub(super) fn path(text: &str) -> EntryPath {
    text.parse().expect("a path")
}

pub(super) fn hash(number: u64) -> ContentHash {
    ContentHash::new(*blake3::hash(&number.to_be_bytes()).as_bytes())
}

/// A change that gives a file the content with this number.
pub(super) fn put(at: &str, number: u64) -> TreeChange {
    TreeChange::Put {
        path: path(at),
        content: FileContent::new(hash(number), number),
        attributes: EntryAttributes::default(),
        precondition: EntryPrecondition::Any,
    }
}
