//! The handler of `alknet/tensor`: each request has a stream of its own.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Carriage, Connection, HandlerError, Identity,
    ProtocolHandler, RecvStream, SendStream, StreamBudget, StreamCode, StreamError,
};
use alknet_tensor::{PREFIX_BYTES, TensorErrorCode, header_len};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::access::{TensorAccess, allows};
use crate::error::ServeError;
use crate::limits::{BLOCK_BYTES, HEADER_TIME, REQUEST_TIME, STALLED_TIME, STREAMS};
use crate::part::{FilePart, TensorResponseHead};
use crate::path::StorePath;
use crate::request::{Fetch, TensorRequest};
use crate::store::{TensorStore, TensorUpload};
use crate::upload_memory::UploadMemoryShare;
use crate::wire::{self, FrameReadError};

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"alknet/tensor";
/// The path against which the scopes of a file without a path are checked.
pub(crate) const NAMELESS: &str = "id";
/// Bytes handed to the transport at a time, so that the timeout distinguishes a slow peer from one that stopped.
const STEP_BYTES: usize = 64 << 10;

/// How long this node waits for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeTimeouts {
    /// For the header of a file that the peer puts.
    pub header: Duration,
    /// For the whole request.
    pub request: Duration,
    /// For the next bytes, in either direction.
    pub stalled: Duration,
}

impl Default for ServeTimeouts {
    fn default() -> Self {
        Self {
            header: HEADER_TIME,
            request: REQUEST_TIME,
            stalled: STALLED_TIME,
        }
    }
}

/// Serves the files of a store.
#[derive(Debug)]
pub struct TensorHandler {
    store: Arc<TensorStore>,
    patience: ServeTimeouts,
    alpns: [AlpnSpec; 1],
}

impl TensorHandler {
    /// Serves `store` to known peers over QUIC, to each the files that its scopes allow.
    #[must_use]
    pub fn new(store: Arc<TensorStore>) -> Self {
        Self {
            store,
            patience: ServeTimeouts::default(),
            alpns: [AlpnSpec {
                carriage: Carriage::Quic,
                auth: AuthNeed::Tls,
                limits: StreamBudget::AUTHENTICATED,
                ..AlpnSpec::new(ALPN)
            }],
        }
    }

    /// Sets how long the handler waits for a peer.
    #[must_use]
    pub const fn with_patience(mut self, patience: ServeTimeouts) -> Self {
        self.patience = patience;
        self
    }

    async fn serve(self: Arc<Self>, connection: Connection) -> Result<(), HandlerError> {
        let permits = Arc::new(Semaphore::new(STREAMS));
        let mut running = JoinSet::new();
        loop {
            let pair = tokio::select! {
                pair = connection.accept_bi() => pair,
                Some(_) = running.join_next() => continue,
            };
            let (send, recv) = match pair {
                Ok(pair) => pair,
                Err(StreamError::Closed(_) | StreamError::Timeout) => return Ok(()),
                Err(error) => {
                    // One bad stream does not end the connection, whose other streams still work.
                    tracing::debug!(%error, "a stream could not be accepted");
                    continue;
                }
            };
            // The permit is not waited for: a peer above the limit gets a refusal at once.
            let permit = Arc::clone(&permits).try_acquire_owned().ok();
            let stream = TensorStream {
                store: Arc::clone(&self.store),
                connection: connection.clone(),
                patience: self.patience,
                send,
                recv,
            };
            // A refusal has a task as well: the loop does not wait for a peer that does not read it.
            running.spawn(async move {
                let busy = permit
                    .is_none()
                    .then_some(ServeError::Busy("requests", STREAMS as u64));
                stream.answer(busy).await;
                drop(permit);
            });
        }
    }
}

impl ProtocolHandler for TensorHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            if let Some(identity) = &auth.identity {
                let set = connection.set_identity(Arc::clone(identity));
                set.map_err(|error| HandlerError::Internal(error.into()))?;
                // From now on the connection may use what authenticated peers may.
                connection.raise_budget(StreamBudget::AUTHENTICATED);
            }
            self.serve(connection).await
        })
    }
}

/// How a stream ends that was not served to its end.
enum TensorStreamEnd {
    /// The server sends the peer this error.
    Refused(ServeError),
    /// The stream breaks off half-way, where the server can send no error message.
    Broken(StreamCode, String),
    /// The peer closed the stream.
    Gone,
}

impl From<ServeError> for TensorStreamEnd {
    fn from(error: ServeError) -> Self {
        Self::Refused(error)
    }
}

impl From<StreamError> for TensorStreamEnd {
    fn from(_: StreamError) -> Self {
        Self::Gone
    }
}

/// One request.
struct TensorStream {
    store: Arc<TensorStore>,
    connection: Connection,
    patience: ServeTimeouts,
    send: SendStream,
    recv: RecvStream,
}

impl TensorStream {
    /// The peer's identity, read again after each request has arrived: the administrator may change its scopes while
    /// the connection stays or a stream waits for its request.
    fn identity(&self) -> Result<Arc<Identity>, ServeError> {
        self.connection.identity().ok_or(ServeError::Missing)
    }

    async fn answer(mut self, busy: Option<ServeError>) {
        let ended = match busy {
            Some(busy) => Err(TensorStreamEnd::Refused(busy)),
            None => self.run().await,
        };
        match ended {
            Ok(()) => {
                // If the stream is gone, the peer does not wait for its end.
                let _ = self.send.finish();
            }
            Err(TensorStreamEnd::Refused(error)) => {
                // The node's system failed, or a stored file is damaged: the administrator should see it.
                if matches!(error, ServeError::Stored(_)) {
                    tracing::warn!(code = error.code(), "a tensor could not be served: {error}");
                }
                let refusal = json!({ "ok": false, "code": error.code(),
                                      "msg": error.to_string() });
                // An upload may still be under way; the peer need not send its rest.
                self.recv.stop(StreamCode::Cancelled);
                let sent = timeout(self.patience.stalled, wire::write(&mut self.send, &refusal));
                match sent.await {
                    Ok(Ok(())) => {
                        let _ = self.send.finish();
                    }
                    _ => self.send.reset(StreamCode::Cancelled),
                }
            }
            Err(TensorStreamEnd::Broken(code, why)) => {
                tracing::warn!("a tensor was not served to its end: {why}");
                self.send.reset(code);
                self.recv.stop(code);
            }
            Err(TensorStreamEnd::Gone) => {
                self.send.reset(StreamCode::Cancelled);
                self.recv.stop(StreamCode::Cancelled);
            }
        }
    }

    async fn run(&mut self) -> Result<(), TensorStreamEnd> {
        let request = timeout(self.patience.request, wire::read(&mut self.recv)).await;
        let text = match request {
            Ok(Ok(text)) => text,
            Ok(Err(FrameReadError::Long(len))) => {
                let what = format!("a request of {len} bytes");
                return Err(ServeError::input(TensorErrorCode::Limit, what).into());
            }
            Ok(Err(FrameReadError::Gone(_))) => return Err(TensorStreamEnd::Gone),
            Err(_) => return Err(late("a request")),
        };
        match TensorRequest::parse(&text)? {
            TensorRequest::Fetch(fetch) => self.fetch(fetch).await,
            TensorRequest::Put(path) => self.put(path).await,
        }
    }

    async fn fetch(&mut self, fetch: Fetch) -> Result<(), TensorStreamEnd> {
        let identity = self.identity()?;
        let store = Arc::clone(&self.store);
        let id = store.resolve(&identity.scopes, &fetch.src)?;
        let part = FilePart::prepare(&store, id, fetch, &identity.id).await?;
        let _flight = self
            .store
            .bytes_in_flight()
            .enter(&identity.id, part.head.len)?;
        // Parts that come earlier in the file's order have a higher priority.
        let order = i32::try_from(part.order).unwrap_or(i32::MAX);
        self.send.set_priority(-order);
        self.say(&part.head).await?;
        let mut next = read_on(part);
        loop {
            let (part, block) = next.await.map_err(|error| broken(&error))?;
            match block {
                Err(error) => return Err(broken(&error)),
                Ok(None) => return Ok(()),
                Ok(Some(block)) => {
                    // The next block is read from the disk while this one is sent.
                    next = read_on(part);
                    self.pass(block).await?;
                }
            }
        }
    }

    async fn put(&mut self, path: Option<StorePath>) -> Result<(), TensorStreamEnd> {
        let identity = self.identity()?;
        let place = path.as_ref().map_or(NAMELESS, StorePath::as_str);
        // The answer for a path that the peer may not write is that of a missing file, so it learns no names.
        if !allows(&identity.scopes, TensorAccess::Write, place) {
            return Err(ServeError::Missing.into());
        }
        let mut memory = self.store.upload_memory().share(&identity.id);
        let header = timeout(self.patience.header, self.header(&mut memory)).await;
        let header = header.map_err(|_| late("a header"))??;
        let store = Arc::clone(&self.store);
        // The peer's other headers wait; these count until they are read.
        let turn = store.header_turns().turn(&identity.id).await;
        let begin = move || {
            let _turn = turn;
            let upload = TensorUpload::begin(&store, &header, path)?;
            drop(header);
            // The header counts until here, also if the peer goes away meanwhile.
            memory.release();
            Ok((upload, memory))
        };
        let (mut upload, mut memory) = blocking(begin).await?;
        let go = TensorResponseHead {
            go: Some(true),
            ..TensorResponseHead::default()
        };
        self.say(&go).await?;
        let mut piece = Vec::new();
        loop {
            let chunk = timeout(self.patience.stalled, self.recv.read_chunk(BLOCK_BYTES)).await;
            let chunk = chunk.map_err(|_| late("content"))??;
            let ended = chunk.is_none();
            let chunk = chunk.unwrap_or_default();
            // If the peer holds as much as it may, the node writes the bytes at once and does not refuse them.
            let scarce = memory.grow(chunk.len()).is_err();
            piece.extend_from_slice(&chunk);
            // Whole blocks are written, because each write runs on a thread of the blocking pool.
            if piece.len() >= BLOCK_BYTES || ((ended || scarce) && !piece.is_empty()) {
                let full = std::mem::take(&mut piece);
                let write = move || {
                    upload.write(&full)?;
                    drop(full);
                    memory.release();
                    Ok((upload, memory))
                };
                (upload, memory) = blocking(write).await?;
            }
            if ended {
                break;
            }
        }
        let id = blocking(move || upload.commit()).await?;
        let done = TensorResponseHead {
            id: Some(id.to_string()),
            ..TensorResponseHead::default()
        };
        self.say(&done).await
    }

    /// Reads a header with its length prefix. Memory grows as the bytes arrive, and counts as the peer's.
    async fn header(&mut self, memory: &mut UploadMemoryShare) -> Result<Vec<u8>, TensorStreamEnd> {
        let mut header = Vec::new();
        let mut wanted = PREFIX_BYTES as usize;
        loop {
            while header.len() < wanted {
                let have = header.len();
                let step = (wanted - have).min(STEP_BYTES);
                memory.grow(step)?;
                // Not more than what was counted, which growing as usual would allocate.
                header.reserve_exact(step);
                header.resize(have + step, 0);
                let read = timeout(
                    self.patience.stalled,
                    self.recv.read_exact(&mut header[have..]),
                );
                match read.await.map_err(|_| late("a header"))? {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                        let what = format!("a header ends before its {wanted} bytes");
                        return Err(ServeError::input(TensorErrorCode::Header, what).into());
                    }
                    Err(_) => return Err(TensorStreamEnd::Gone),
                }
            }
            if wanted > PREFIX_BYTES as usize {
                return Ok(header);
            }
            let len = header_len(&header, u64::MAX, self.store.limits());
            // `header_len` has checked the limits, which are far below what memory can address.
            wanted += len.map_err(ServeError::Input)? as usize;
        }
    }

    async fn say(&mut self, head: &TensorResponseHead) -> Result<(), TensorStreamEnd> {
        let head = accepted(head);
        let sent = timeout(self.patience.stalled, wire::write(&mut self.send, &head));
        sent.await.map_err(|_| late("the head to be taken"))??;
        Ok(())
    }

    async fn pass(&mut self, mut block: Bytes) -> Result<(), TensorStreamEnd> {
        while !block.is_empty() {
            let step = block.split_to(block.len().min(STEP_BYTES));
            let sent = timeout(self.patience.stalled, self.send.write_chunk(step)).await;
            sent.map_err(|_| late("bytes to be taken"))??;
        }
        Ok(())
    }
}

fn accepted(head: &TensorResponseHead) -> Value {
    let mut object = json!(head);
    object["ok"] = true.into();
    object
}

fn late(what: &str) -> TensorStreamEnd {
    TensorStreamEnd::Broken(StreamCode::Deadline, format!("waited too long for {what}"))
}

fn broken(error: &ServeError) -> TensorStreamEnd {
    TensorStreamEnd::Broken(StreamCode::Internal, format!("{}: {error}", error.code()))
}

pub(crate) type Next =
    BoxFuture<'static, Result<(FilePart, Result<Option<Bytes>, ServeError>), ServeError>>;

/// Begins to read the next block.
pub(crate) fn read_on(mut part: FilePart) -> Next {
    let reading = tokio::task::spawn_blocking(move || {
        let block = part.next_block();
        (part, block)
    });
    Box::pin(async move { reading.await.map_err(|error| stopped(&error)) })
}

/// Runs work that blocks on a thread of the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| stopped(&error))?
}

fn stopped(error: &tokio::task::JoinError) -> ServeError {
    ServeError::io("work on a file", std::io::Error::other(error.to_string()))
}
