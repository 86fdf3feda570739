//! Contents between nodes that are connected in this process.

mod fetching;
mod foreign;
mod requests;
mod serving;
mod stock;
mod upstream;
mod wanted;
mod withdrawn;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    AuthContext, Carriage, Connection, HandlerError, Identity, IdentityKind, PeerKey,
    ProtocolHandler, RecvStream, SendStream, StreamError, memory_pair,
};
use alknet_objects::{ChunkSelection, ExpectedHashes, PAIR_BYTES, TreeStep, TreeSteps};
use alknet_store::{
    BucketId, ChangeRequest, ContentHash, ContentPresence, ContentStatus, FileContent,
    FileStoreOptions, MAIN_BRANCH, NewBucket, NewShare, TreeChange,
};
use alknet_test_support::deadline;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use super::wire::{BlobRequest, BlobSelections};
use super::{BLOBS_ALPN, BlobHandler, BlobOptions};
use crate::error::FsError;
use crate::lease::StoreLease;
use crate::service::{FsService, blocking};

const GROUP: usize = 16 << 10;

/// How long anything may take before a test calls it hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// Bytes without a pattern that a mistake of a whole group would hide.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}

fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash::new(*blake3::hash(bytes).as_bytes())
}

/// A node with files in buckets `docs` and `secret`.
struct BlobNode {
    service: FsService,
    handler: Arc<BlobHandler>,
    /// Removed last.
    dir: TempDir,
}

impl BlobNode {
    async fn new() -> Self {
        Self::with_files(FileStoreOptions::default()).await
    }

    async fn with_files(options: FileStoreOptions) -> Self {
        let dir = tempfile::tempdir().expect("writable");
        let service = FsService::new(&dir.path().join("fs"), options);
        // No limit that a busy machine could reach.
        let options = BlobOptions {
            request_time: hung(),
            stalled_time: hung(),
            ..BlobOptions::default()
        };
        let handler = Arc::new(BlobHandler::new(&service, options));
        let node = Self {
            service,
            handler,
            dir,
        };
        for name in ["docs", "secret"] {
            let new = NewBucket::new(name.parse().expect("a name"), "alice");
            let created = node.lease().await.write(move |tx| tx.create_bucket(&new));
            created.await.expect("a bucket");
        }
        node
    }

    /// The same node with other limits.
    fn with_options(self, options: BlobOptions) -> Self {
        let handler = Arc::new(BlobHandler::new(&self.service, options));
        Self { handler, ..self }
    }

    /// The same node after an orderly end.
    async fn restarted(self) -> Self {
        self.service.shutdown().await;
        let service = FsService::new(&self.dir.path().join("fs"), FileStoreOptions::default());
        let handler = Arc::new(BlobHandler::new(&service, *self.handler.options()));
        Self {
            service,
            handler,
            dir: self.dir,
        }
    }

    async fn lease(&self) -> StoreLease {
        self.service.lease().await.expect("a store")
    }

    /// Stores a content, and names it in a bucket.
    async fn put(&self, bucket: &str, path: &str, bytes: &[u8]) -> ContentHash {
        let lease = self.lease().await;
        let content = lease.put_bytes(bytes).expect("room");
        let hash = content.hash();
        let put = TreeChange::put(path.parse().expect("a path"), content.content());
        let request = self.request(bucket, put).await;
        lease.apply(request, vec![content]).await.expect("a name");
        hash
    }

    /// Names a content whose bytes are on peers only.
    async fn want(&self, bucket: &str, path: &str, bytes: &[u8]) -> ContentHash {
        self.want_sized(bucket, path, bytes, bytes.len()).await
    }

    /// The same with a size that may be wrong.
    async fn want_sized(&self, bucket: &str, path: &str, bytes: &[u8], size: usize) -> ContentHash {
        let hash = hash_of(bytes);
        let wanted = FileContent {
            presence: ContentPresence::Wanted,
            ..FileContent::new(hash, size as u64)
        };
        let put = TreeChange::put(path.parse().expect("a path"), wanted);
        let request = self.request(bucket, put).await;
        let applied = self.lease().await.apply(request, Vec::new());
        applied.await.expect("a name");
        hash
    }

    async fn bucket(&self, name: &str) -> BucketId {
        let name = name.parse().expect("a name");
        let found = self.lease().await.read(move |tx| tx.bucket_by_name(&name));
        found.await.expect("there").id
    }

    /// What a bucket knows of a content.
    async fn status_in(&self, bucket: &str, hash: ContentHash) -> ContentStatus {
        let bucket = self.bucket(bucket).await;
        let status = self.lease().await;
        let status = status.read(move |tx| tx.content_status_in(bucket, hash));
        status.await.expect("readable")
    }

    async fn request(&self, bucket: &str, change: TreeChange) -> ChangeRequest {
        let bucket = bucket.parse().expect("a name");
        let main = MAIN_BRANCH.parse().expect("a name");
        let found = self.lease().await.read(move |tx| {
            let bucket = tx.bucket_by_name(&bucket)?;
            tx.branch_by_name(bucket.id, &main)
        });
        ChangeRequest::new(found.await.expect("there").id, "alice", change)
    }

    async fn share(&self, bucket: &str, hash: ContentHash, key: PeerKey, bytes_max: Option<u64>) {
        let bucket = bucket.parse().expect("a name");
        let shared = self.lease().await.write(move |tx| {
            let bucket = tx.bucket_by_name(&bucket)?.id;
            tx.create_share(&NewShare {
                hash,
                bucket,
                grantee: key.to_string(),
                owner: "alice".to_owned(),
                time: Duration::from_secs(3600),
                bytes_max,
                uses_max: None,
            })
        });
        shared.await.expect("room");
    }

    async fn status(&self, hash: ContentHash) -> ContentStatus {
        let status = self.lease().await.read(move |tx| tx.content_status(hash));
        status.await.expect("readable")
    }

    /// All bytes of a content.
    async fn bytes(&self, hash: ContentHash) -> Vec<u8> {
        self.read(hash).await.expect("whole")
    }

    async fn read(&self, hash: ContentHash) -> Result<Vec<u8>, FsError> {
        let lease = self.lease().await;
        let read = blocking(move || {
            let reader = lease.read_content(hash)?;
            Ok(reader.read(0..reader.size())?)
        });
        read.await
    }

    /// The file of a content.
    fn object(&self, hash: ContentHash) -> PathBuf {
        let hex = hash.to_string();
        let objects = self.dir.path().join("fs/content/objects");
        objects.join(&hex[..2]).join(&hex)
    }

    /// Changes one byte of a content on the disk.
    fn damage(&self, hash: ContentHash, at: usize) {
        let file = self.object(hash);
        let mut bytes = std::fs::read(&file).expect("readable");
        bytes[at] ^= 1;
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("ours");
        std::fs::write(&file, bytes).expect("room");
    }

    /// A connection of a peer with these scopes.
    fn peer(&self, name: &str, scopes: &[&str]) -> Connection {
        self.connect(Some(identity(name, scopes)), None).0
    }

    /// A connection of a peer that the node does not know, and how the handler ends it.
    fn outsider(&self, key: PeerKey) -> (Connection, JoinHandle<Result<(), HandlerError>>) {
        self.connect(None, Some(key))
    }

    fn connect(
        &self,
        identity: Option<Arc<Identity>>,
        key: Option<PeerKey>,
    ) -> (Connection, JoinHandle<Result<(), HandlerError>>) {
        let (ours, theirs) = memory_pair(BLOBS_ALPN);
        let auth = AuthContext {
            identity,
            key,
            alpn: BLOBS_ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: Carriage::Memory,
            early_data: false,
        };
        let served = tokio::spawn(Arc::clone(&self.handler).handle(theirs, auth));
        (ours, served)
    }
}

fn identity(name: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: name.parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 1,
    })
}

/// A response, up to its end or the code with which it breaks off.
#[derive(Debug, PartialEq)]
struct BlobTestResponse {
    bytes: Vec<u8>,
    code: Option<u64>,
}

/// Sends bytes as a request, and reads the response.
async fn ask(connection: &Connection, request: &[u8]) -> BlobTestResponse {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    // The node may stop reading in the middle of a request.
    for piece in request.chunks(64 << 10) {
        if send.write_chunk(piece.to_vec().into()).await.is_err() {
            break;
        }
    }
    drop(send.finish());
    let response = tokio::time::timeout(hung(), response(&mut recv));
    response.await.expect("in time")
}

async fn response(recv: &mut RecvStream) -> BlobTestResponse {
    let mut bytes = Vec::new();
    let code = loop {
        match recv.read_chunk(1 << 20).await {
            Ok(Some(chunk)) => bytes.extend(chunk),
            Ok(None) => break None,
            Err(StreamError::Reset(code)) => break Some(code),
            Err(error) => panic!("{error}"),
        }
    };
    BlobTestResponse { bytes, code }
}

/// The request for selected chunks of one content.
fn get(hash: ContentHash, selection: ChunkSelection) -> Vec<u8> {
    let selections = BlobSelections::of_one(selection);
    BlobRequest::Get { hash, selections }.encode()
}

fn get_all(hash: ContentHash) -> Vec<u8> {
    get(hash, ChunkSelection::all())
}

fn observe(hash: ContentHash) -> Vec<u8> {
    let selection = ChunkSelection::all();
    BlobRequest::Observe { hash, selection }.encode()
}

/// Verifies a response as a receiver does. Returns the bytes of its groups, and whether it was whole.
fn verified(response: &[u8], hash: ContentHash, selection: &ChunkSelection) -> (Vec<u8>, bool) {
    let Some((size, mut rest)) = response.split_first_chunk() else {
        return (Vec::new(), false);
    };
    let root = blake3::Hash::from_bytes(*hash.as_bytes());
    let mut expected = ExpectedHashes::root(&root);
    let mut bytes = Vec::new();
    let mut is_whole = true;
    for step in TreeSteps::selected(u64::from_le_bytes(*size), selection) {
        let len = match step {
            TreeStep::Pair { .. } => PAIR_BYTES,
            TreeStep::Group { len, .. } => len,
        };
        let Some((part, behind)) = rest.split_at_checked(len) else {
            is_whole = false;
            break;
        };
        rest = behind;
        let is_expected = match step {
            TreeStep::Pair {
                root, left, right, ..
            } => expected.pair(part.try_into().expect("a pair"), (root, left, right)),
            TreeStep::Group { start, root, .. } => {
                bytes.extend(part);
                expected.group(start, part, root)
            }
        };
        assert!(is_expected, "{step:?}");
    }
    assert!(!is_whole || rest.is_empty());
    (bytes, is_whole)
}

/// Waits until the node has stopped to read the request of a stream.
async fn stopped(send: &mut SendStream) -> Option<u64> {
    let stopped = tokio::time::timeout(hung(), async {
        loop {
            // A stream in this process whose end was sent does not wait for the other side.
            match send.stopped().await.expect("the connection lasts") {
                Some(code) => break code,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    });
    stopped.await.ok()
}

/// The bytes of a request, as a peer that is written by hand reads them.
async fn request_bytes(recv: &mut RecvStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    recv.read_to_end(&mut bytes).await.expect("a request");
    bytes
}

/// Sends a response and its end.
async fn respond(send: &mut SendStream, bytes: &[u8]) {
    for piece in bytes.chunks(64 << 10) {
        if send.write_chunk(piece.to_vec().into()).await.is_err() {
            break;
        }
    }
    drop(send.finish());
}
