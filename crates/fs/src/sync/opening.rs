//! Sessions that this node opens.

use std::fmt;
use std::sync::Arc;

use alknet_core::{
    BoxError, BoxFuture, Connection, Identity, PeerId, RecvStream, SendStream, StreamBudget,
};
use alknet_store::{BranchName, BucketName};
use tokio::time::timeout;

use super::error::{ByeCode, SyncError};
use super::limits::{HELLO_TIME, MESSAGE_TIME};
use super::message::{SyncHello, SyncMessage, SyncPart};
use super::pauses::PauseKey;
use super::records::SyncTarget;
use super::rights::may_sync;
use super::service::SyncService;
use super::session::{
    SessionContext, SessionEnd, SyncMode, blocking, check_branch, exchange, own_hello, read_hello,
    write_first,
};
use super::tops::{ExchangedTops, exchange_tops};
use crate::limits::FETCH_CONNECT_TIME;

/// The peers of a node. The node implements it by its dialler and its table of peers.
pub trait SyncDialer: fmt::Debug + Send + Sync + 'static {
    /// The peers that the node can dial.
    fn peers(&self) -> Vec<PeerId>;

    /// What a peer may do at this time. `None` if the node does not know it any more.
    fn identity(&self, peer: &PeerId) -> Option<Arc<Identity>>;

    /// A connection to a peer with the protocol [`SYNC_ALPN`](super::SYNC_ALPN), only if it proves one of its keys.
    ///
    /// # Errors
    /// The peer cannot be reached. The caller tries again later.
    fn dial<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, BoxError>>;
}

/// Where the streams to a peer come from.
pub(super) struct PeerLink<'a> {
    /// What opens further connections. Without it there is the one.
    dialer: Option<(&'a dyn SyncDialer, &'a PeerId)>,
    connection: Option<Connection>,
    is_used: bool,
    /// Whether the last dial, if there was one, succeeded.
    is_reachable: bool,
}

impl<'a> PeerLink<'a> {
    /// Streams of this connection, which has the identity of the peer.
    pub(super) const fn connected(connection: Connection) -> Self {
        Self {
            dialer: None,
            connection: Some(connection),
            is_used: false,
            is_reachable: true,
        }
    }

    /// Streams of connections that are dialled when they are needed.
    pub(super) const fn dialled(dialer: &'a dyn SyncDialer, peer: &'a PeerId) -> Self {
        Self {
            dialer: Some((dialer, peer)),
            connection: None,
            is_used: false,
            is_reachable: true,
        }
    }

    /// What the peer may do at this time.
    fn identity(&self) -> Option<Arc<Identity>> {
        match self.dialer {
            Some((dialer, peer)) => dialer.identity(peer),
            None => self.connection.as_ref()?.identity(),
        }
    }

    /// Whether the last dial, if there was one, succeeded.
    pub(super) const fn is_reachable(&self) -> bool {
        self.is_reachable
    }

    /// A connection that takes one more stream.
    async fn connection(&mut self) -> Result<Connection, SyncError> {
        // TCP carries one stream.
        let has_streams = |connection: &&Connection| connection.is_multi() || !self.is_used;
        if let Some(connection) = self.connection.as_ref().filter(has_streams) {
            let connection = connection.clone();
            self.is_used = true;
            return Ok(connection);
        }
        let Some((dialer, peer)) = self.dialer else {
            let text = "the connection has no further stream";
            return Err(SyncError::Unreachable(text.into()));
        };
        let dialled = timeout(FETCH_CONNECT_TIME, dialer.dial(peer)).await;
        let dialled = dialled.unwrap_or_else(|_| Err("it does not answer in time".into()));
        self.is_reachable = dialled.is_ok();
        let connection = dialled.map_err(SyncError::Unreachable)?;
        connection.raise_budget(StreamBudget::AUTHENTICATED);
        self.connection = Some(connection.clone());
        self.is_used = true;
        Ok(connection)
    }
}

/// A session after the hellos.
struct GreetedSession {
    context: SessionContext,
    /// Whether both have the same.
    is_equal: bool,
    send: SendStream,
    recv: RecvStream,
}

impl SyncService {
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
        let identity = connection.identity().ok_or_else(unknown_peer)?;
        let target = SyncTarget {
            bucket: bucket.clone(),
            branch: branch.clone(),
            peer: identity.id.clone(),
        };
        let mut link = PeerLink::connected(connection.clone());
        self.sync_target(&mut link, &target).await.map(drop)
    }

    /// Synchronises a branch with a peer until both have the same, and records how that ended.
    pub(super) async fn sync_target(
        &self,
        link: &mut PeerLink<'_>,
        target: &SyncTarget,
    ) -> Result<SessionEnd, SyncError> {
        let ended = self.sync_documents(link, target).await;
        match &ended {
            Ok(end) if end.equal_seq.is_some() => self.record_equal(target, end.equal_seq),
            Ok(_) => {}
            Err(error) => self.records().note_failure(target, error),
        }
        ended
    }

    /// The one document of the branch, or all that differ.
    async fn sync_documents(
        &self,
        link: &mut PeerLink<'_>,
        target: &SyncTarget,
    ) -> Result<SessionEnd, SyncError> {
        let hello = |part| SyncHello {
            bucket: target.bucket.clone(),
            branch: target.branch.clone(),
            part,
            heads: Vec::new(),
        };
        if !self.is_split(target).await? {
            return self.sync_document(link, hello(SyncPart::Whole)).await;
        }
        let exchanged = self.sync_index(link, hello(SyncPart::Index)).await?;
        let mut end = SessionEnd {
            equal_seq: Some(exchanged.head_seq),
            lacks_contents: false,
        };
        let mut failure: Option<SyncError> = None;
        for top in exchanged.differing {
            let part = SyncPart::Top(top.clone());
            match self.sync_document(link, hello(part)).await {
                Ok(of_top) => {
                    self.records().note_top(target, &top, None);
                    end.lacks_contents |= of_top.lacks_contents;
                }
                // The peer is gone, or lets this node in no longer: further documents fare no better.
                Err(error) if matches!(error.code(), None | Some(ByeCode::NotFound)) => {
                    return Err(error);
                }
                // The other documents do not wait for one that a person has to see to, or that pauses.
                Err(error) => {
                    self.records().note_top(target, &top, Some(error.name()));
                    // What a person has to see to says more than a pause.
                    if !failure.as_ref().is_some_and(SyncError::is_lasting) {
                        failure = Some(error);
                    }
                }
            }
        }
        failure.map_or(Ok(end), Err)
    }

    /// Whether the branch has a document for each name in its root.
    async fn is_split(&self, target: &SyncTarget) -> Result<bool, SyncError> {
        let (lease, target) = (self.store().await?, target.clone());
        let checked = blocking(move || check_branch(&lease, &target.bucket, &target.branch));
        Ok(checked.await?.settings.is_split)
    }

    /// One session about a document.
    async fn sync_document(
        &self,
        link: &mut PeerLink<'_>,
        hello: SyncHello,
    ) -> Result<SessionEnd, SyncError> {
        let key = self.pause_key(link, &hello)?;
        let ended = match self.greet(link, hello).await {
            Ok(greeted) => {
                let GreetedSession {
                    context,
                    is_equal,
                    send,
                    recv,
                } = greeted;
                let mode = (SyncMode::Once, is_equal);
                exchange(&context, mode, || link.identity(), recv, send).await
            }
            Err(error) => Err(error),
        };
        self.note(key, &ended);
        ended
    }

    /// One session about the names in the root.
    async fn sync_index(
        &self,
        link: &mut PeerLink<'_>,
        hello: SyncHello,
    ) -> Result<ExchangedTops, SyncError> {
        let key = self.pause_key(link, &hello)?;
        let ended = match self.greet(link, hello).await {
            Ok(GreetedSession {
                context,
                send,
                recv,
                ..
            }) => exchange_tops(&context, recv, send).await,
            Err(error) => Err(error),
        };
        self.note(key, &ended);
        ended
    }

    fn pause_key(&self, link: &PeerLink<'_>, hello: &SyncHello) -> Result<PauseKey, SyncError> {
        let identity = link.identity().ok_or_else(unknown_peer)?;
        // What comes from the peer needs the right here, also in a session that this node opens.
        if !may_sync(Some(&identity), hello) {
            let reason = "the peer has no right to synchronise the bucket";
            return Err(SyncError::refused(ByeCode::NotFound, reason));
        }
        Ok(PauseKey::new(&identity.id, hello))
    }

    /// Opens a stream and exchanges hellos.
    async fn greet(
        &self,
        link: &mut PeerLink<'_>,
        hello: SyncHello,
    ) -> Result<GreetedSession, SyncError> {
        let identity = link.identity().ok_or_else(unknown_peer)?;
        // First, because the peer may be away, and a large document takes a second to read.
        let connection = link.connection().await?;
        let context = self.context(hello, &identity.id).await?;
        // A document above a limit is found here, before the peer is asked for anything.
        let own = own_hello(&context).await?;
        let opened = timeout(HELLO_TIME, connection.open_bi()).await;
        let late = |_| SyncError::refused(ByeCode::Timeout, "no stream could be opened");
        let opened = opened.map_err(late)?;
        let (mut send, mut recv) = opened.map_err(std::io::Error::from)?;
        write_first(&mut send, &SyncMessage::Hello(own.hello.clone())).await?;
        // The peer may have to read its document first.
        let theirs = read_hello(&mut recv, MESSAGE_TIME).await?;
        if theirs.document_id() != context.hello.document_id() {
            let reason = "the peer answers with another document";
            return Err(SyncError::refused(ByeCode::InvalidMessage, reason));
        }
        self.counters().sessions.add(1);
        Ok(GreetedSession {
            is_equal: own.is_equal(&theirs),
            context,
            send,
            recv,
        })
    }
}

pub(super) fn unknown_peer() -> SyncError {
    SyncError::refused(ByeCode::NotFound, "the peer of the connection is not known")
}
