//! The synchronisation of a node, and sessions that peers open.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Carriage, Connection, HandlerError, Identity,
    PeerId, PeerKey, ProtocolHandler, RecvStream, SendStream, StreamBudget, StreamError,
};
use alknet_store::SyncDocumentKey;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::branch::SyncedBranch;
use super::content::ContentFetcher;
use super::error::{ByeCode, SyncError};
use super::limits::{
    ASSEMBLED_MAX, DocumentLimits, FOLLOW_IDLE_TIME, HELLO_TIME, HELLOS_MAX, HELLOS_PER_PEER_MAX,
    MERGE_TIME, SESSION_TIME_MAX, SESSIONS_MAX, SESSIONS_PER_PEER_MAX,
};
use super::message::{SyncHello, SyncMessage, SyncPart};
use super::metrics::SyncCounters;
use super::pauses::{PauseKey, SyncPauses};
use super::permits::PeerPermits;
use super::records::{SyncRecord, SyncRecords, SyncTarget};
use super::rights::may_sync;
use super::session::{
    SessionContext, SessionEnd, SyncMode, blocking, check_branch, exchange, own_hello, read_hello,
    write_first,
};
use super::tops::exchange_tops;
use crate::lease::StoreLease;
use crate::limits::IDLE_RIGHT_CHECK_TIME;
use crate::service::FsService;

/// The protocol's name in TLS.
pub const SYNC_ALPN: &[u8] = b"alknet/fs-sync";

/// How a node synchronises.
#[derive(Clone, Debug)]
pub struct SyncOptions {
    /// The key of the node. The writer in its documents follows from it.
    pub node_key: PeerKey,
    /// What gets contents from peers. Without it none are fetched.
    pub fetcher: Option<Arc<dyn ContentFetcher>>,
    /// Limits of one document.
    pub limits: DocumentLimits,
    /// Time after which a session that a peer opened ends, if it brings nothing. Tests have less.
    pub follow_idle_time: Duration,
    /// Time of one merge. Tests have less.
    pub merge_time: Duration,
    /// How often the right of a peer is looked at whose session waits for changes. Tests have less.
    pub right_check_time: Duration,
}

impl SyncOptions {
    /// Names alone.
    #[must_use]
    pub fn new(node_key: PeerKey) -> Self {
        Self {
            node_key,
            fetcher: None,
            limits: DocumentLimits::default(),
            follow_idle_time: FOLLOW_IDLE_TIME,
            merge_time: MERGE_TIME,
            right_check_time: IDLE_RIGHT_CHECK_TIME,
        }
    }
}

/// Synchronises branches with peers. Clones share it.
///
/// As a [`ProtocolHandler`] it serves sessions that peers open, each on a stream of its own. [`sync_once`](Self::sync_once)
/// and [`keep_synced`](Self::keep_synced) open sessions. How a bucket is synchronised is among its settings.
#[derive(Clone)]
pub struct SyncService(Arc<SyncInner>);

struct SyncInner {
    files: FsService,
    options: SyncOptions,
    node_key: Arc<[u8]>,
    alpns: [AlpnSpec; 1],
    /// Documents with a session. One without is on the disk alone.
    documents: Mutex<HashMap<SyncDocumentKey, Weak<SyncedBranch>>>,
    /// Sessions that peers opened, from the check of the right on.
    sessions: Arc<PeerPermits>,
    /// Streams whose hello has not come.
    hellos: Arc<PeerPermits>,
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
            documents: Mutex::default(),
            sessions: PeerPermits::new(SESSIONS_PER_PEER_MAX, SESSIONS_MAX),
            hellos: PeerPermits::new(HELLOS_PER_PEER_MAX, HELLOS_MAX),
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

    /// How the last sessions with each peer ended, since the node started.
    #[must_use]
    pub fn list_records(&self) -> Vec<(SyncTarget, SyncRecord)> {
        self.records().list()
    }

    /// The files that it synchronises.
    pub(super) fn files(&self) -> &FsService {
        &self.0.files
    }

    /// How the last sessions ended.
    pub(super) fn records(&self) -> &SyncRecords {
        self.0.files.sync_records()
    }

    /// What gets contents from peers.
    pub(super) fn fetcher(&self) -> Option<&Arc<dyn ContentFetcher>> {
        self.0.options.fetcher.as_ref()
    }

    /// Sessions that a peer has on this node.
    #[cfg(test)]
    pub(super) fn count_sessions(&self, peer: &PeerId) -> usize {
        self.0.sessions.count(peer)
    }

    /// Records that both have the same names, if they have.
    pub(super) fn record_equal(&self, target: &SyncTarget, seq: Option<u64>) {
        if let Ok(Some(lease)) = self.0.files.opened() {
            let now_ms = lease.db().unix_ms();
            self.records().note_equal(target, seq, now_ms);
        }
    }

    /// The store.
    pub(super) async fn store(&self) -> Result<StoreLease, SyncError> {
        let lease = self.0.files.lease().await;
        lease.map_err(|_| SyncError::refused(ByeCode::Internal, "the files are not served"))
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
        // Apart from the sessions: a peer without a right anywhere may be silent as well.
        let Some(waiting) = self.0.hellos.acquire(&identity.id) else {
            return self.refuse(&mut send, &busy("too many hellos")).await;
        };
        let hello = read_hello(&mut recv, HELLO_TIME).await;
        drop(waiting);
        let hello = match hello {
            Ok(hello) => hello,
            Err(error) => return self.refuse(&mut send, &error).await,
        };
        let key = PauseKey::new(&identity.id, &hello);
        let accepted = self.accept(&identity, hello, &key).await;
        let context = match accepted {
            Ok(context) => context,
            Err(error) => return self.refuse(&mut send, &error).await,
        };
        // From here on the peer names a document that is there.
        let target = target_of(&context);
        let own = match own_hello(&context).await {
            Ok(own) => own,
            Err(error) => {
                self.records().note_failure(&target, &error);
                return self.refuse(&mut send, &error).await;
            }
        };
        let is_equal = own.is_equal(&context.hello);
        let ended = match write_first(&mut send, &SyncMessage::Hello(own.hello)).await {
            Ok(()) => {
                self.0.counters.sessions.add(1);
                let streams = (send, recv);
                self.serve_greeted(connection, &context, is_equal, streams)
                    .await
            }
            Err(error) => Err(error),
        };
        match &ended {
            // Contents that are still lacking are fetched in a session that this node opens, which is due at once.
            Ok(end) if end.equal_seq.is_some() => {
                let seq = end.equal_seq.filter(|_| !end.lacks_contents);
                self.record_equal(&target, seq);
            }
            Ok(_) => {}
            Err(error) => self.records().note_failure(&target, error),
        }
        self.note(key, &ended);
    }

    /// Goes on behind the hellos.
    async fn serve_greeted(
        &self,
        connection: &Connection,
        context: &SessionContext,
        is_equal: bool,
        (send, recv): (SendStream, RecvStream),
    ) -> Result<SessionEnd, SyncError> {
        match context.hello.part {
            SyncPart::Index => {
                let tops = exchange_tops(context, recv, send).await?;
                // Documents that differ have sessions of their own, behind which the peer asks again.
                let equal_seq = tops.differing.is_empty().then_some(tops.head_seq);
                Ok(SessionEnd {
                    equal_seq,
                    lacks_contents: false,
                })
            }
            SyncPart::Whole | SyncPart::Top(_) => {
                let mode = (SyncMode::Follow, is_equal);
                let identity = || connection.identity();
                let session = exchange(context, mode, identity, recv, send);
                // The peer decides what it sends and when: without a limit it could keep the session for good.
                let ended = timeout(SESSION_TIME_MAX, session).await;
                let late = |_| SyncError::refused(ByeCode::Timeout, "the session takes too long");
                let mut end = ended.map_err(late)??;
                if context.hello.part.is_split() {
                    // One document says nothing of the others.
                    end.equal_seq = None;
                }
                Ok(end)
            }
        }
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
            return Err(busy(
                "the last session ended with an error a short while ago",
            ));
        }
        // Behind the right: what has none must not take the sessions of those that have it.
        let permit = self.0.sessions.acquire(&identity.id);
        let permit = permit.ok_or_else(|| busy("too many sessions"))?;
        let context = self.context(hello, &identity.id).await?;
        Ok(SessionContext {
            permit: Some(Arc::new(permit)),
            ..context
        })
    }

    async fn refuse(&self, send: &mut SendStream, error: &SyncError) {
        self.0.counters.refused_sessions.add(1);
        if let SyncError::Refused { code, .. } = error {
            // The peer may be gone.
            write_first(send, &SyncMessage::Bye(*code)).await.ok();
            send.finish().ok();
        }
    }

    /// What a session needs beside its stream.
    pub(super) async fn context(
        &self,
        hello: SyncHello,
        peer: &PeerId,
    ) -> Result<SessionContext, SyncError> {
        let lease = Arc::new(self.store().await?.reading_as(peer.as_str()));
        let last_event = lease.db().last_event();
        let (store, wanted) = (Arc::clone(&lease), hello.clone());
        let checked = blocking(move || check_branch(&store, &wanted.bucket, &wanted.branch));
        let checked = checked.await?;
        if hello.part.is_split() != checked.settings.is_split {
            let reason = "the bucket is split on one of both nodes only";
            return Err(SyncError::refused(ByeCode::SplitDiffers, reason));
        }
        let top = hello.part.top().map(str::to_owned);
        let branch = checked.id;
        let branch = self.document(SyncDocumentKey { branch, top });
        Ok(SessionContext {
            lease,
            changes: branch.changes(),
            branch,
            head_seq: checked.head_seq,
            last_event,
            settings: checked.settings,
            hello,
            peer: peer.clone(),
            fetcher: self.0.options.fetcher.clone(),
            counters: Arc::clone(&self.0.counters),
            assembling: Arc::clone(&self.0.assembling),
            permit: None,
            follow_idle_time: self.0.options.follow_idle_time,
            merge_time: self.0.options.merge_time,
            closing: self.0.files.closing(),
            right_check_time: self.0.options.right_check_time,
        })
    }

    /// The one value that all sessions about a document share.
    fn document(&self, key: SyncDocumentKey) -> Arc<SyncedBranch> {
        let documents = self.0.documents.lock();
        let mut documents = documents.unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = documents.get(&key).and_then(Weak::upgrade) {
            return document;
        }
        documents.retain(|_, document| document.strong_count() > 0);
        let limits = self.0.options.limits;
        let document = SyncedBranch::new(key.clone(), &self.0.node_key, limits);
        let document = Arc::new(document);
        documents.insert(key, Arc::downgrade(&document));
        document
    }

    /// Notes how a session ended, for the pauses and the counters.
    pub(super) fn note<T>(&self, key: PauseKey, ended: &Result<T, SyncError>) {
        let code = match ended {
            Ok(_) => Some(ByeCode::Done),
            // There was no session.
            Err(SyncError::Unreachable(_)) => None,
            Err(error) => {
                self.0.counters.failed_sessions.add(1);
                error.code()
            }
        };
        self.0.pauses.note(key, code, Instant::now());
    }

    async fn serve(&self, connection: Connection) -> Result<(), HandlerError> {
        let mut running = JoinSet::new();
        loop {
            let pair = tokio::select! {
                pair = connection.accept_bi() => pair,
                Some(_) = running.join_next() => continue,
            };
            let (send, recv) = match pair {
                Ok(pair) => pair,
                Err(StreamError::Closed(_) | StreamError::Timeout) => break,
                Err(error) => {
                    // A single stream may fail without the connection. An error that stays must not spin.
                    tracing::debug!(%error, "a stream could not be accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let (service, connection) = (self.clone(), connection.clone());
            running.spawn(async move { service.serve_stream(&connection, send, recv).await });
        }
        // A peer leaves when it has said goodbye. How its sessions ended is still to be noted.
        let rest = async { while running.join_next().await.is_some() {} };
        timeout(HELLO_TIME, rest).await.ok();
        Ok(())
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

fn busy(reason: &str) -> SyncError {
    SyncError::refused(ByeCode::Busy, reason)
}

fn target_of(context: &SessionContext) -> SyncTarget {
    SyncTarget {
        bucket: context.hello.bucket.clone(),
        branch: context.hello.branch.clone(),
        peer: context.peer.clone(),
    }
}

impl fmt::Debug for SyncService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncService")
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}
