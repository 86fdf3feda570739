//! A session: one stream about one branch, from the hellos to a goodbye.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{Identity, PeerId};
use alknet_store::{
    BranchId, BranchName, BucketName, BucketSync, ContentFetchMode, ContentHash, ContentStatus,
    Store, StoreError,
};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::branch::{PeerExchange, SyncStep, SyncedBranch, check_synced};
use super::content::ContentFetcher;
use super::error::{ByeCode, SyncError};
use super::limits::{
    FETCHES_TIME_MAX, GOODBYE_TIME, HASHES_MAX, HEADS_MAX, HELLO_TIME, MESSAGE_TIME,
    PART_BYTES_MAX, SYNC_BYTES_MAX,
};
use super::message::{
    PROTOCOL_VERSION, SyncHello, SyncMessage, SyncPart, read_message, read_version, write_message,
};
use super::metrics::SyncCounters;
use super::permits::PeerPermit;
use super::rights::{check_right, lost_right};
use crate::lease::StoreLease;

/// Messages in a row that bring nothing. Two peers that understand each other need a few.
const IDLE_ROUNDS_MAX: u32 = 64;

/// Contents that a session fetches at once.
const FETCHES_MAX: usize = 4;

/// Answers about contents that wait for the fetches before them. The contents of a further one stay wanted.
const FETCH_LISTS_MAX: usize = 16;

/// How long a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Until one side leaves: changes of either go to the other when they happen.
    Follow,
    /// Until both have the same.
    Once,
}

/// What a session knows beside its stream.
pub(super) struct SessionContext {
    /// The store. Work that blocks has a share of the lease: a shutdown waits for it, also when the session is gone.
    pub(super) lease: Arc<StoreLease>,
    /// The document. That of an index is not looked at.
    pub(super) branch: Arc<SyncedBranch>,
    pub(super) hello: SyncHello,
    /// The last commit of the branch when the session began.
    pub(super) head_seq: u64,
    /// The last event and the changes of the document. What followed the look at the branch, before the hello, is a change
    /// of them: a session with equal hellos takes no other look.
    pub(super) last_event: watch::Receiver<i64>,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) settings: BucketSync,
    pub(super) peer: PeerId,
    pub(super) fetcher: Option<Arc<dyn ContentFetcher>>,
    pub(super) counters: Arc<SyncCounters>,
    pub(super) assembling: Arc<Semaphore>,
    /// The permit of a session that a peer opened. Work that blocks has a share of it: it may outlast the session.
    pub(super) permit: Option<Arc<PeerPermit>>,
    /// Time after which a session that brings nothing ends.
    pub(super) follow_idle_time: Duration,
    /// Time of one merge.
    pub(super) merge_time: Duration,
    /// Whether the node stops.
    pub(super) closing: watch::Receiver<bool>,
    /// How often the right of the peer is looked at while the session waits.
    pub(super) right_check_time: Duration,
}

/// The end of a session about a branch that does not exist, or that the node keeps for itself.
fn not_synchronised() -> SyncError {
    SyncError::refused(ByeCode::NotFound, "the branch is not synchronised")
}

/// A branch that is synchronised.
pub(super) struct CheckedBranch {
    pub(super) id: BranchId,
    pub(super) head_seq: u64,
    pub(super) settings: BucketSync,
}

/// Whether the store has the branch, and synchronises it. Blocks.
pub(super) fn check_branch(
    store: &Store,
    bucket: &BucketName,
    branch: &BranchName,
) -> Result<CheckedBranch, SyncError> {
    let (bucket, branch) = (bucket.clone(), branch.clone());
    let read = store.read(move |tx| {
        let bucket = tx.bucket_by_name(&bucket)?;
        let branch = tx.branch_by_name(bucket.id, &branch)?;
        Ok((bucket, branch))
    });
    let (bucket, branch) = match read.wait() {
        Ok(found) => found,
        Err(StoreError::NotFound(_)) => return Err(not_synchronised()),
        Err(error) => return Err(error.into()),
    };
    check_synced(&bucket, &branch, None)?;
    Ok(CheckedBranch {
        id: branch.id,
        head_seq: branch.head_seq,
        settings: bucket.sync,
    })
}

/// Reads the first message of a peer, which comes within this time.
pub(super) async fn read_hello(
    input: &mut (impl AsyncRead + Unpin),
    time: Duration,
) -> Result<SyncHello, SyncError> {
    let read = async {
        read_version(input).await?;
        read_message(input).await
    };
    let late = |_| SyncError::refused(ByeCode::Timeout, "no hello came");
    match timeout(time, read).await.map_err(late)?? {
        SyncMessage::Hello(hello) => Ok(hello),
        SyncMessage::Bye(code) => Err(SyncError::Ended(code)),
        _ => Err(unexpected("another message than a hello came first")),
    }
}

/// Writes the first bytes of this side.
pub(super) async fn write_first(
    output: &mut (impl AsyncWrite + Unpin),
    message: &SyncMessage,
) -> Result<(), SyncError> {
    let bytes = message.encode()?;
    let write = async {
        output.write_u8(PROTOCOL_VERSION).await?;
        write_message(output, &bytes).await
    };
    let late = |_| SyncError::refused(ByeCode::Timeout, "the peer takes no hello");
    Ok(timeout(HELLO_TIME, write).await.map_err(late)??)
}

/// What this side says of its document.
pub(super) struct OwnHello {
    pub(super) hello: SyncHello,
    /// Whether the document has taken in all that the store had when the session began.
    is_current: bool,
}

impl OwnHello {
    /// Whether both have the same, so that no document has to be looked at.
    pub(super) fn is_equal(&self, theirs: &SyncHello) -> bool {
        // A list without heads is that of an empty document, or of one that was not looked at. A full one may be a part.
        let is_whole = (1..HEADS_MAX).contains(&theirs.heads.len());
        self.is_current && is_whole && self.hello.heads == theirs.heads
    }
}

/// The hello of this side.
pub(super) async fn own_hello(context: &SessionContext) -> Result<OwnHello, SyncError> {
    let mut hello = context.hello.clone();
    if hello.part == SyncPart::Index {
        hello.heads = Vec::new();
        let is_current = false;
        return Ok(OwnHello { hello, is_current });
    }
    let key = context.branch.key().clone();
    let stored = context.lease.read(move |tx| tx.sync_heads(&key)).await?;
    let is_current = stored.is_some();
    match stored {
        Some(heads) => hello.heads = heads,
        None => {
            // A document that cannot be made fails here, before the peer hears of it. Nothing is said of its heads: those of
            // before the last rows could be those of the peer, which would leave.
            hello.heads = Vec::new();
            let (branch, store) = (Arc::clone(&context.branch), Arc::clone(&context.lease));
            let permit = context.permit.clone();
            blocking(move || {
                let ready = branch.prepare(&store);
                drop(permit);
                ready
            })
            .await?;
        }
    }
    // They only say where both may differ, so a part of them does.
    hello.heads.truncate(HEADS_MAX);
    Ok(OwnHello { hello, is_current })
}

/// How a session ended that ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SessionEnd {
    /// Number of the commit up to which both have the same. `None` if one side left before.
    pub(super) equal_seq: Option<u64>,
    /// Whether contents are to be fetched that were not in the session.
    pub(super) lacks_contents: bool,
}

/// Exchanges messages until the session is over. `identity` is asked for each message, and from time to time between two of
/// them: rights can change meanwhile. `is_equal` says that the hellos have the same heads.
pub(super) async fn exchange(
    context: &SessionContext,
    (mode, is_equal): (SyncMode, bool),
    identity: impl Fn() -> Option<Arc<Identity>> + Send + Sync,
    mut input: impl AsyncRead + Send + Unpin,
    mut output: impl AsyncWrite + Send + Unpin,
) -> Result<SessionEnd, SyncError> {
    let (to_peer, outgoing) = mpsc::channel(2);
    let (received, from_peer) = mpsc::channel(1);
    let (found, there) = mpsc::channel(FETCH_LISTS_MAX);
    let main = async {
        let session = GreetedSession::begin(context, mode, &identity, to_peer, from_peer, found);
        let mut session = session.await?;
        if is_equal {
            session.end.equal_seq = Some(context.head_seq);
        }
        let ended = session.run(is_equal).await;
        session.leave(&ended).await;
        ended.map(|()| session.end())
    };
    // Both directions go on by themselves: two peers that only wrote would wait for each other.
    let work = async {
        let writing = write_all(&mut output, outgoing);
        let mut talk = pin!(async { tokio::join!(main, writing).0 });
        let mut fetches = pin!(fetch_all(context, there));
        tokio::select! {
            ended = &mut talk => {
                // A peer that may not synchronise the bucket any more is asked for no further content.
                let is_lost =
                    matches!(&ended, Err(error) if error.code() == Some(ByeCode::NotFound));
                let is_late = !is_lost && timeout(FETCHES_TIME_MAX, fetches).await.is_err();
                ended.map(|end| SessionEnd {
                    lacks_contents: end.lacks_contents || is_late,
                    ..end
                })
            }
            () = &mut fetches => talk.await,
        }
    };
    let (mut work, mut reading) = (pin!(work), pin!(read_all(&mut input, received)));
    tokio::select! {
        ended = &mut work => {
            if mode == SyncMode::Once {
                // The connection of this side ends with its last session, and would take the goodbye along.
                timeout(GOODBYE_TIME, reading).await.ok();
            }
            ended
        }
        // The end of the input is a message for the session, which ends by itself.
        () = &mut reading => work.await,
    }
}

/// A session after the hellos.
struct GreetedSession<'a> {
    context: &'a SessionContext,
    mode: SyncMode,
    /// Finds the identity of the peer as it is by now.
    identity: &'a (dyn Fn() -> Option<Arc<Identity>> + Send + Sync),
    exchange: Option<PeerExchange>,
    to_peer: mpsc::Sender<Vec<u8>>,
    from_peer: mpsc::Receiver<Result<SyncMessage, SyncError>>,
    /// Contents that the peer has, to be fetched.
    found: mpsc::Sender<Vec<ContentHash>>,
    /// Parts of a sync message that is not yet complete.
    parts: Vec<u8>,
    assembling: Option<OwnedSemaphorePermit>,
    /// Contents that the peer was asked for.
    requested: BTreeSet<[u8; 32]>,
    has_heard: bool,
    idle_rounds: u32,
    /// When the session brought something last.
    active: Instant,
    end: SessionEnd,
}

impl<'a> GreetedSession<'a> {
    async fn begin(
        context: &'a SessionContext,
        mode: SyncMode,
        identity: &'a (dyn Fn() -> Option<Arc<Identity>> + Send + Sync),
        to_peer: mpsc::Sender<Vec<u8>>,
        from_peer: mpsc::Receiver<Result<SyncMessage, SyncError>>,
        found: mpsc::Sender<Vec<ContentHash>>,
    ) -> Result<Self, SyncError> {
        let (store, key) = (Arc::clone(&context.lease), context.branch.key().clone());
        let peer = context.peer.clone();
        let exchange = blocking(move || PeerExchange::resume(&store, &key, peer.as_str()));
        Ok(Self {
            context,
            mode,
            identity,
            exchange: Some(exchange.await?),
            to_peer,
            from_peer,
            found,
            parts: Vec::new(),
            assembling: None,
            requested: BTreeSet::new(),
            has_heard: false,
            idle_rounds: 0,
            active: Instant::now(),
            end: SessionEnd::default(),
        })
    }

    /// Steps until the session is over. With equal hellos nothing is to be done before one side changes.
    async fn run(&mut self, is_equal: bool) -> Result<(), SyncError> {
        let mut changes = self.context.changes.clone();
        let mut events = self.context.last_event.clone();
        let mut closing = self.context.closing.clone();
        let mut incoming = None;
        let mut is_known_equal = is_equal;
        self.has_heard = is_equal;
        loop {
            check_right(self.context, self.identity)?;
            let head_seq = self.check_branch().await?;
            // An event may be about another branch, or about a content alone.
            is_known_equal &= incoming.is_none() && head_seq == self.context.head_seq;
            let (is_waiting, is_equal) = match is_known_equal {
                true => (false, true),
                false => {
                    let step = self.step(incoming.take()).await?;
                    let state = (step.outgoing.is_some() || !step.is_equal, step.is_equal);
                    self.send_step(step).await?;
                    state
                }
            };
            let is_over = is_equal && self.has_heard && self.requested.is_empty();
            if is_over && self.mode == SyncMode::Once {
                return Ok(());
            }
            // Messages that are no step are handled until there is one.
            loop {
                let has_to_answer = is_waiting || !self.requested.is_empty();
                let time = match has_to_answer {
                    true => MESSAGE_TIME,
                    false => (self.context.follow_idle_time).saturating_sub(self.active.elapsed()),
                };
                if time.is_zero() {
                    // Before the next message, so that questions alone keep no session open. Nothing went wrong: the peer
                    // comes again when it has something.
                    return Ok(());
                }
                let message = tokio::select! {
                    message = timeout(time, self.from_peer.recv()) => message,
                    _ = changes.changed() => {
                        is_known_equal = false;
                        break;
                    }
                    Ok(()) = events.changed() => break,
                    _ = closing.wait_for(|is_closing| *is_closing) => return Ok(()),
                    // Otherwise a session that waits would keep its permit without the right.
                    error = lost_right(self.context, self.identity) => return Err(error),
                };
                if message.is_err() && !has_to_answer {
                    continue;
                }
                let late = |_| SyncError::refused(ByeCode::Timeout, "the peer does not answer");
                let ended =
                    || SyncError::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
                let message = message.map_err(late)?.ok_or_else(ended)??;
                match message {
                    SyncMessage::Bye(ByeCode::Done) => return Ok(()),
                    other => {
                        // Also for a message that is no step: the answer would tell which contents the bucket has.
                        check_right(self.context, self.identity)?;
                        incoming = self.take(other).await?;
                    }
                }
                if incoming.is_some() || self.is_done() {
                    break;
                }
            }
        }
    }

    /// Whether an answer about contents was the last thing that the session waited for.
    fn is_done(&self) -> bool {
        self.mode == SyncMode::Once && self.requested.is_empty() && self.parts.is_empty()
    }

    /// Handles a message, and returns a complete sync message.
    async fn take(&mut self, message: SyncMessage) -> Result<Option<Vec<u8>>, SyncError> {
        match message {
            SyncMessage::Hello(_) | SyncMessage::Tops(_) => {
                Err(unexpected("a message that begins a session"))
            }
            SyncMessage::Bye(code) => Err(SyncError::Ended(code)),
            SyncMessage::Sync { is_last, bytes } => self.assemble(is_last, bytes).await,
            SyncMessage::Want(hashes) => {
                let there = self.present(hashes).await?;
                self.send(&SyncMessage::Have(there)).await?;
                Ok(None)
            }
            SyncMessage::Have(hashes) => {
                let is_asked = |hash: &ContentHash| self.requested.contains(hash.as_bytes());
                if !hashes.iter().all(is_asked) {
                    return Err(unexpected("contents that nothing asked for"));
                }
                self.requested.clear();
                if !hashes.is_empty() {
                    // Not waited for: the session would not answer the peer meanwhile.
                    self.end.lacks_contents |= self.found.try_send(hashes).is_err();
                }
                Ok(None)
            }
        }
    }

    async fn assemble(
        &mut self,
        is_last: bool,
        bytes: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, SyncError> {
        if self.parts.is_empty() && is_last {
            return Ok(Some(bytes));
        }
        if bytes.is_empty() || self.parts.len() + bytes.len() > SYNC_BYTES_MAX {
            let reason = "a sync message is too long, or has an empty part";
            return Err(SyncError::refused(ByeCode::TooLarge, reason));
        }
        if self.assembling.is_none() {
            let context = self.context;
            let permits = Arc::clone(&context.assembling);
            let permit = timeout(MESSAGE_TIME, permits.acquire_owned()).await;
            let busy = || SyncError::refused(ByeCode::Busy, "too many long messages at once");
            self.assembling = permit.map_err(|_| busy())?.ok();
        }
        self.parts.extend_from_slice(&bytes);
        self.active = Instant::now();
        if !is_last {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.parts)))
    }

    /// Those contents that names of the bucket lead to and that are here.
    async fn present(&self, hashes: Vec<ContentHash>) -> Result<Vec<ContentHash>, SyncError> {
        let bucket = self.context.hello.bucket.clone();
        let read = self.context.lease.read(move |tx| {
            // It may have been switched off since the last step.
            if !tx.bucket_by_name(&bucket)?.sync.is_on {
                return Ok(None);
            }
            let mut there = Vec::new();
            for hash in hashes {
                // What other buckets have is not this peer's business.
                let status = tx.content_status_by_name(Some(&bucket), hash)?;
                if matches!(status, ContentStatus::Complete { .. }) {
                    there.push(hash);
                }
            }
            Ok(Some(there))
        });
        read.await?.ok_or_else(not_synchronised)
    }

    /// Ends the session if the branch is not synchronised any more, or takes no changes. Returns the number of its last commit.
    async fn check_branch(&self) -> Result<u64, SyncError> {
        let context = self.context;
        let SyncHello { bucket, branch, .. } = &context.hello;
        let (store, bucket, branch) = (Arc::clone(&context.lease), bucket.clone(), branch.clone());
        let checked = blocking(move || check_branch(&store, &bucket, &branch)).await?;
        // A later branch of the same name has a document of its own.
        if checked.id != context.branch.key().branch {
            return Err(not_synchronised());
        }
        match checked.settings.is_split == context.hello.part.is_split() {
            true => Ok(checked.head_seq),
            false => Err(SyncError::refused(
                ByeCode::SplitDiffers,
                "the bucket was split during the session, or is split no longer",
            )),
        }
    }

    async fn step(&mut self, incoming: Option<Vec<u8>>) -> Result<SyncStep, SyncError> {
        let context = self.context;
        let has_message = incoming.is_some();
        let lost = || SyncError::refused(ByeCode::Internal, "a step before did not end");
        let mut exchange = self.exchange.take().ok_or_else(lost)?;
        let (branch, store, settings) = (
            Arc::clone(&context.branch),
            Arc::clone(&context.lease),
            context.settings,
        );
        // Both go back when the work ends, and not when the session stops waiting for it: until then the thread and the
        // memory of a long message are in use.
        let assembled = incoming.as_ref().and_then(|_| self.assembling.take());
        let held = (context.permit.clone(), assembled);
        let work = blocking(move || {
            let step = branch.step(&store, &mut exchange, settings, incoming.as_deref());
            drop((incoming, held));
            step.map(|step| (exchange, step))
        });
        let late = |_| SyncError::refused(ByeCode::Timeout, "a merge takes too long");
        let done = timeout(context.merge_time, work).await.map_err(late)?;
        if done.is_err() && has_message {
            context.counters.failed_merges.add(1);
        }
        let (exchange, step) = done?;
        self.exchange = Some(exchange);
        if step.has_moved || step.outgoing.is_some() {
            self.active = Instant::now();
        }
        if step.is_equal {
            self.end.equal_seq = self.end.equal_seq.max(Some(step.applied));
        }
        if has_message {
            self.has_heard = true;
            context.counters.merges.add(1);
            self.idle_rounds = match step.has_moved {
                true => 0,
                false => self.idle_rounds + 1,
            };
            if self.idle_rounds > IDLE_ROUNDS_MAX {
                let reason = "messages of the peer bring nothing";
                return Err(SyncError::refused(ByeCode::InvalidDocument, reason));
            }
        }
        for (rule, count) in &step.refused {
            context.counters.refused_entries.add(*count);
            tracing::warn!(peer = %context.peer, rule, count, "entries of a peer were left out");
        }
        Ok(step)
    }

    /// Sends what a step brought.
    async fn send_step(&mut self, step: SyncStep) -> Result<(), SyncError> {
        if let Some(bytes) = step.outgoing {
            let mut parts = bytes.chunks(PART_BYTES_MAX).peekable();
            while let Some(part) = parts.next() {
                // A slow peer may take a minute for each part.
                check_right(self.context, self.identity)?;
                let is_last = parts.peek().is_none();
                let bytes = part.to_vec();
                self.send(&SyncMessage::Sync { is_last, bytes }).await?;
            }
        }
        let is_eager = self.context.settings.fetch == ContentFetchMode::Eager;
        if is_eager && self.context.fetcher.is_some() && !step.wanted.is_empty() {
            let room = HASHES_MAX.saturating_sub(self.requested.len());
            // The step lists no more than that.
            self.end.lacks_contents |= step.wanted.len() >= room;
            let wanted: Vec<_> = step.wanted.into_iter().take(room).collect();
            self.requested
                .extend(wanted.iter().map(|hash| *hash.as_bytes()));
            self.send(&SyncMessage::Want(wanted)).await?;
        }
        Ok(())
    }

    async fn send(&self, message: &SyncMessage) -> Result<(), SyncError> {
        let bytes = message.encode()?;
        let gone = || SyncError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let sent = timeout(MESSAGE_TIME, self.to_peer.send(bytes)).await;
        let late = |_| SyncError::refused(ByeCode::Timeout, "the peer takes nothing");
        sent.map_err(late)?.map_err(|_| gone())
    }

    /// How the session ended.
    fn end(&self) -> SessionEnd {
        SessionEnd {
            lacks_contents: self.end.lacks_contents || !self.requested.is_empty(),
            ..self.end
        }
    }

    /// Says goodbye, where the peer has not done so.
    async fn leave(&self, ended: &Result<(), SyncError>) {
        let code = match ended {
            Ok(()) => ByeCode::Done,
            Err(SyncError::Refused { code, .. }) => *code,
            Err(SyncError::Ended(_) | SyncError::Stream(_) | SyncError::Unreachable(_)) => return,
        };
        // The stream may be gone by now.
        self.send(&SyncMessage::Bye(code)).await.ok();
    }
}

/// Reads messages until the stream ends, or the peer says goodbye.
async fn read_all(
    input: &mut (impl AsyncRead + Unpin),
    received: mpsc::Sender<Result<SyncMessage, SyncError>>,
) {
    loop {
        let message = read_message(input).await;
        let is_last = matches!(message, Err(_) | Ok(SyncMessage::Bye(_)));
        // A session that is over waits for the goodbye of its peer alone.
        received.send(message).await.ok();
        if is_last {
            return;
        }
    }
}

/// Writes messages until there are no more of them.
async fn write_all(output: &mut (impl AsyncWrite + Unpin), mut messages: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = messages.recv().await {
        let written = timeout(MESSAGE_TIME, write_message(output, &bytes)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
    // The peer may be gone by now.
    timeout(HELLO_TIME, output.shutdown()).await.ok();
}

/// Fetches contents that the peer has.
async fn fetch_all(context: &SessionContext, mut there: mpsc::Receiver<Vec<ContentHash>>) {
    while let Some(hashes) = there.recv().await {
        let Some(fetcher) = &context.fetcher else {
            continue;
        };
        let fetches = stream::iter(hashes).for_each_concurrent(FETCHES_MAX, |hash| async move {
            let fetched = fetcher.fetch(&context.hello.bucket, hash, &context.peer);
            if let Err(error) = fetched.await {
                // It stays wanted: a read of it asks again.
                tracing::debug!(%hash, peer = %context.peer, "a content was not fetched: {error}");
            }
        });
        fetches.await;
    }
}

/// Runs work that blocks on a thread of the blocking pool.
pub(super) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SyncError> + Send + 'static,
) -> impl Future<Output = Result<T, SyncError>> {
    let running = tokio::task::spawn_blocking(work);
    async move {
        let broken = |_| SyncError::refused(ByeCode::Internal, "a step panicked");
        running.await.map_err(broken)?
    }
}

fn unexpected(reason: &str) -> SyncError {
    SyncError::refused(ByeCode::InvalidMessage, reason)
}
