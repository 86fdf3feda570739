//! The synchronisation of a node: sessions that peers open, and sessions that it opens itself.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxError, BoxFuture, Carriage, Connection, HandlerError,
    Identity, PeerId, PeerKey, ProtocolHandler, RecvStream, SendStream, StreamBudget, StreamError,
};
use alknet_store::{BranchId, BranchName, BucketName};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::branch::SyncedBranch;
use super::content::{ContentFetcher, SyncSettings};
use super::error::{ByeCode, SyncError};
use super::limits::{ASSEMBLED_MAX, HELLO_TIME, PAUSE_MIN, SESSIONS_MAX, SESSIONS_PER_PEER_MAX};
use super::message::{SyncHello, SyncMessage};
use super::metrics::SyncCounters;
use super::pauses::{PauseKey, SyncPauses};
use super::session::{
    SessionContext, SyncMode, blocking, check_branch, exchange, may_sync, own_hello, read_hello,
    write_first,
};
use crate::service::FsService;

/// The protocol's name in TLS.
pub const SYNC_ALPN: &[u8] = b"alknet/fs-sync";

/// How a node synchronises.
#[derive(Clone, Debug)]
pub struct SyncOptions {
    /// The key of the node. The writer in its documents follows from it.
    pub node_key: PeerKey,
    /// Settings of every bucket that has none of its own.
    pub settings: SyncSettings,
    /// Settings of single buckets.
    pub buckets: BTreeMap<BucketName, SyncSettings>,
    /// What gets contents from peers. Without it none are fetched.
    pub fetcher: Option<Arc<dyn ContentFetcher>>,
}

impl SyncOptions {
    /// The default settings.
    #[must_use]
    pub fn new(node_key: PeerKey) -> Self {
        Self {
            node_key,
            settings: SyncSettings::default(),
            buckets: BTreeMap::new(),
            fetcher: None,
        }
    }
}

/// Opens connections to peers.
pub trait SyncDialer: Send + Sync + 'static {
    /// A connection to a peer with the protocol [`SYNC_ALPN`]. It has the identity of the peer, which proved its key.
    ///
    /// # Errors
    /// The peer cannot be reached. The caller tries again later.
    fn dial<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, BoxError>>;
}

/// Synchronises branches with peers. Clones share it.
///
/// As a [`ProtocolHandler`] it serves sessions that peers open, each on a stream of its own. [`sync_once`](Self::sync_once)
/// and [`follow`](Self::follow) open sessions.
#[derive(Clone)]
pub struct SyncService(Arc<SyncInner>);

struct SyncInner {
    files: FsService,
    options: SyncOptions,
    node_key: Arc<[u8]>,
    alpns: [AlpnSpec; 1],
    /// Branches with a session. The document of one without is on the disk alone.
    branches: Mutex<HashMap<BranchId, Weak<SyncedBranch>>>,
    sessions: Arc<Semaphore>,
    assembling: Arc<Semaphore>,
    pauses: SyncPauses,
    counters: Arc<SyncCounters>,
}

impl SyncService {
    /// The synchronisation of the files of a service. Does nothing yet.
    #[must_use]
    pub fn new(files: FsService, options: SyncOptions) -> Self {
        let node_key = options.node_key.to_string().into_bytes().into();
        Self(Arc::new(SyncInner {
            files,
            options,
            node_key,
            alpns: [AlpnSpec {
                carriage: Carriage::Both,
                auth: AuthNeed::Tls,
                limits: StreamBudget::AUTHENTICATED,
                ..AlpnSpec::new(SYNC_ALPN)
            }],
            branches: Mutex::default(),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            assembling: Arc::new(Semaphore::new(ASSEMBLED_MAX)),
            pauses: SyncPauses::default(),
            counters: Arc::default(),
        }))
    }

    /// What the synchronisation did.
    #[must_use]
    pub fn counters(&self) -> &SyncCounters {
        &self.0.counters
    }

    /// Synchronises a branch with the peer of a connection until both have the same.
    ///
    /// # Errors
    /// The session ended before. What both had in common by then stays.
    pub async fn sync_once(
        &self,
        connection: &Connection,
        bucket: &BucketName,
        branch: &BranchName,
    ) -> Result<(), SyncError> {
        self.open_session(connection, bucket, branch, SyncMode::Once)
            .await
    }

    /// Keeps a branch the same as that of a peer, for as long as the future is polled and the node does not stop. After an
    /// error it pauses and dials again.
    pub async fn follow(
        &self,
        dialer: &dyn SyncDialer,
        peer: &PeerId,
        bucket: &BucketName,
        branch: &BranchName,
    ) {
        let mut closing = self.0.files.closing();
        let work = async {
            loop {
                self.follow_session(dialer, peer, bucket, branch).await;
                let key = (peer.clone(), bucket.clone(), branch.clone());
                let left = self.0.pauses.left(&key, Instant::now());
                tokio::time::sleep(left.max(PAUSE_MIN)).await;
            }
        };
        tokio::select! {
            () = work => {}
            _ = closing.wait_for(|is_closing| *is_closing) => {}
        }
    }

    /// One session that goes on until it ends by itself.
    async fn follow_session(
        &self,
        dialer: &dyn SyncDialer,
        peer: &PeerId,
        bucket: &BucketName,
        branch: &BranchName,
    ) {
        match dialer.dial(peer).await {
            Ok(connection) => {
                let mode = SyncMode::Follow;
                let ended = self.open_session(&connection, bucket, branch, mode).await;
                if let Err(error) = ended {
                    tracing::info!(%peer, %bucket, %branch, "a synchronisation ended: {error}");
                }
            }
            Err(error) => {
                tracing::debug!(%peer, "a peer to synchronise with cannot be reached: {error}");
            }
        }
    }

    async fn open_session(
        &self,
        connection: &Connection,
        bucket: &BucketName,
        branch: &BranchName,
        mode: SyncMode,
    ) -> Result<(), SyncError> {
        let hello = SyncHello {
            bucket: bucket.clone(),
            branch: branch.clone(),
            heads: Vec::new(),
        };
        let identity = connection.identity().ok_or_else(unknown_peer)?;
        let key = (identity.id.clone(), bucket.clone(), branch.clone());
        let ended = self
            .dialled_session(connection, &identity, hello, mode)
            .await;
        self.note(key, &ended);
        ended
    }

    async fn dialled_session(
        &self,
        connection: &Connection,
        identity: &Identity,
        hello: SyncHello,
        mode: SyncMode,
    ) -> Result<(), SyncError> {
        // What comes from the peer needs the right here, also in a session that this node opens.
        if !may_sync(Some(identity), &hello) {
            let reason = "the peer has no right to synchronise the bucket";
            return Err(SyncError::refused(ByeCode::NotFound, reason));
        }
        let context = self.context(hello, &identity.id).await?;
        let opened = timeout(HELLO_TIME, connection.open_bi()).await;
        let late = |_| SyncError::refused(ByeCode::Timeout, "no stream could be opened");
        let opened = opened.map_err(late)?;
        let (mut send, mut recv) = opened.map_err(std::io::Error::from)?;
        let own = own_hello(&context).await?;
        write_first(&mut send, &SyncMessage::Hello(own)).await?;
        let theirs = read_hello(&mut recv).await?;
        if theirs.document_id() != context.hello.document_id() {
            let reason = "the peer answers with another document";
            return Err(SyncError::refused(ByeCode::InvalidMessage, reason));
        }
        self.0.counters.sessions.add(1);
        exchange(&context, mode, || connection.identity(), recv, send).await
    }

    /// Serves a stream that a peer opened.
    async fn serve_stream(
        &self,
        connection: &Connection,
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        let Some(identity) = connection.identity() else {
            return;
        };
        let hello = match read_hello(&mut recv).await {
            Ok(hello) => hello,
            Err(error) => return self.refuse(&mut send, &error).await,
        };
        let key = (
            identity.id.clone(),
            hello.bucket.clone(),
            hello.branch.clone(),
        );
        let context = match self.accept(&identity, hello, &key).await {
            Ok(context) => context,
            Err(error) => return self.refuse(&mut send, &error).await,
        };
        let ended = match own_hello(&context).await {
            Ok(own) => write_first(&mut send, &SyncMessage::Hello(own)).await,
            Err(error) => return self.refuse(&mut send, &error).await,
        };
        let ended = match ended {
            Ok(()) => {
                self.0.counters.sessions.add(1);
                let identity = || connection.identity();
                exchange(&context, SyncMode::Follow, identity, recv, send).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &ended {
            tracing::info!(peer = %context.peer, "a synchronisation ended: {error}");
        }
        self.note(key, &ended);
    }

    /// Decides about a session that a peer opens.
    async fn accept(
        &self,
        identity: &Identity,
        hello: SyncHello,
        key: &PauseKey,
    ) -> Result<SessionContext, SyncError> {
        // Before anything is looked up: the answer must not say whether the bucket exists.
        if !may_sync(Some(identity), &hello) {
            let reason = "the branch is not synchronised";
            return Err(SyncError::refused(ByeCode::NotFound, reason));
        }
        if !self.0.pauses.left(key, Instant::now()).is_zero() {
            let reason = "the last session ended with an error a short while ago";
            return Err(SyncError::refused(ByeCode::Busy, reason));
        }
        self.context(hello, &identity.id).await
    }

    async fn refuse(&self, send: &mut SendStream, error: &SyncError) {
        self.0.counters.refused_sessions.add(1);
        if let SyncError::Refused { code, .. } = error {
            // The peer may be gone.
            write_first(send, &SyncMessage::Bye(*code)).await.ok();
            send.finish().ok();
        }
    }

    async fn context(&self, hello: SyncHello, peer: &PeerId) -> Result<SessionContext, SyncError> {
        let lease = self.0.files.lease_for(peer.as_str()).await;
        let unserved = |_| SyncError::refused(ByeCode::Internal, "the files are not served");
        let lease = Arc::new(lease.map_err(unserved)?);
        let (store, wanted) = (Arc::clone(&lease), hello.clone());
        let id = blocking(move || check_branch(&store, &wanted)).await?;
        let options = &self.0.options;
        let settings = options.buckets.get(&hello.bucket);
        Ok(SessionContext {
            lease,
            branch: self.branch(id),
            settings: settings.copied().unwrap_or(options.settings),
            hello,
            peer: peer.clone(),
            fetcher: options.fetcher.clone(),
            counters: Arc::clone(&self.0.counters),
            assembling: Arc::clone(&self.0.assembling),
            closing: self.0.files.closing(),
        })
    }

    /// The one value that all sessions about a branch share.
    fn branch(&self, id: BranchId) -> Arc<SyncedBranch> {
        let branches = self.0.branches.lock();
        let mut branches = branches.unwrap_or_else(PoisonError::into_inner);
        if let Some(branch) = branches.get(&id).and_then(Weak::upgrade) {
            return branch;
        }
        branches.retain(|_, branch| branch.strong_count() > 0);
        let branch = Arc::new(SyncedBranch::new(id, &self.0.node_key));
        branches.insert(id, Arc::downgrade(&branch));
        branch
    }

    fn note(&self, key: PauseKey, ended: &Result<(), SyncError>) {
        let code = match ended {
            Ok(()) => Some(ByeCode::Done),
            Err(error) => {
                self.0.counters.failed_sessions.add(1);
                error.code()
            }
        };
        self.0.pauses.note(key, code, Instant::now());
    }

    async fn serve(&self, connection: Connection) -> Result<(), HandlerError> {
        let own = Arc::new(Semaphore::new(SESSIONS_PER_PEER_MAX));
        let mut running = JoinSet::new();
        loop {
            let pair = tokio::select! {
                pair = connection.accept_bi() => pair,
                Some(_) = running.join_next() => continue,
            };
            let (mut send, recv) = match pair {
                Ok(pair) => pair,
                Err(StreamError::Closed(_) | StreamError::Timeout) => return Ok(()),
                Err(error) => {
                    // A single stream may fail without the connection. An error that stays must not spin.
                    tracing::debug!(%error, "a stream could not be accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let permits = (
                Arc::clone(&own).try_acquire_owned().ok(),
                Arc::clone(&self.0.sessions).try_acquire_owned().ok(),
            );
            let (service, connection) = (self.clone(), connection.clone());
            running.spawn(async move {
                match &permits {
                    (Some(_), Some(_)) => service.serve_stream(&connection, send, recv).await,
                    _ => {
                        let busy = SyncError::refused(ByeCode::Busy, "too many sessions");
                        service.refuse(&mut send, &busy).await;
                    }
                }
                drop(permits);
            });
        }
    }
}

impl ProtocolHandler for SyncService {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.0.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            let Some(identity) = &auth.identity else {
                return Err(HandlerError::AuthRequired);
            };
            let set = connection.set_identity(Arc::clone(identity));
            set.map_err(|error| HandlerError::Internal(error.into()))?;
            // From now on the connection may use what authenticated peers may.
            connection.raise_budget(StreamBudget::AUTHENTICATED);
            self.serve(connection).await
        })
    }
}

fn unknown_peer() -> SyncError {
    SyncError::refused(ByeCode::NotFound, "the peer of the connection is not known")
}

impl fmt::Debug for SyncService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncService")
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}
