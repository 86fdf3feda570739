//! The node's way to PID 1 for updates: requests on the control channel, and bundles on a stream of their own.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_init::control::{
    InitMessage, UPDATE_FD, UPDATE_FRAME_ABORT, UPDATE_FRAME_BYTES_MAX, UpdateAnswer, UpdateRequest,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};

/// How long a request waits for PID 1, which may have to write and read back a whole program meanwhile.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// The stream that PID 1 left at [`UPDATE_FD`].
#[derive(Debug)]
pub(crate) struct UpdateStream(StdStream);

impl UpdateStream {
    /// Takes over the descriptor. `None` if PID 1 left none. Call it once, before this process opens anything: a
    /// descriptor that it opens could have the same number.
    pub(crate) fn take_over() -> Option<Self> {
        // SAFETY: the descriptor is borrowed for one `fstat`, which fails with an error if the descriptor is not open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(UPDATE_FD) };
        nix::sys::stat::fstat(borrowed).ok()?;
        // SAFETY: `fstat` just showed that the descriptor is open. By the contract of `alknet_init::control` this
        // process alone has it, and this function is called once.
        let stream = StdStream::from(unsafe { OwnedFd::from_raw_fd(UPDATE_FD) });
        stream.peer_addr().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Self(stream))
    }

    /// The stream for this runtime.
    fn into_tokio(self) -> io::Result<UnixStream> {
        UnixStream::from_std(self.0)
    }

    #[cfg(test)]
    pub(super) fn of_test(stream: StdStream) -> Self {
        stream.set_nonblocking(true).expect("a socket");
        Self(stream)
    }
}

/// Why PID 1 gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpdateClientError {
    /// There is no PID 1 of this program, as on an ordinary host.
    Absent,
    /// PID 1 does not listen, or its stream is broken.
    Broken,
    /// PID 1 did not answer within [`ANSWER_TIMEOUT`].
    Late,
}

impl fmt::Display for UpdateClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str(
                "this node runs on an ordinary host, which replaces its own programs: install the new binary and \
                 restart 'alknet serve', as docs/update.md says under \"A node on a host\"",
            ),
            Self::Broken => f.write_str("PID 1 of this machine does not listen"),
            Self::Late => write!(
                f,
                "PID 1 of this machine did not answer within {} s",
                ANSWER_TIMEOUT.as_secs()
            ),
        }
    }
}

/// How many of the last requests are remembered although their callers went away: PID 1 may still work on them.
const LEFT_REQUESTS_MAX: u64 = 64;

/// A request that PID 1 has not answered yet.
struct SentUpdateRequest {
    answer: oneshot::Sender<UpdateAnswer>,
    /// The caller, if PID 1 refuses other requests meanwhile.
    blocks_for: Option<String>,
}

/// The requests that wait for an answer.
#[derive(Default)]
struct OpenRequests {
    last: u64,
    /// By their numbers, which count up.
    open: BTreeMap<u64, SentUpdateRequest>,
}

/// The way to PID 1. Clones share it.
#[derive(Clone)]
pub(crate) struct UpdateClient {
    /// `None` on an ordinary host.
    to_init: Option<mpsc::Sender<InitMessage>>,
    requests: Arc<Mutex<OpenRequests>>,
    /// `None` if PID 1 gave no stream.
    frames: Option<Arc<tokio::sync::Mutex<UnixStream>>>,
}

impl UpdateClient {
    /// A client over the channels of this process. Must run inside a runtime if there is a stream.
    pub(crate) fn new(
        to_init: Option<mpsc::Sender<InitMessage>>,
        stream: Option<UpdateStream>,
    ) -> Self {
        let stream = stream.and_then(|stream| {
            let stream = stream.into_tokio();
            stream
                .inspect_err(|error| tracing::error!(%error, "no updates: the stream to PID 1"))
                .ok()
        });
        Self {
            to_init,
            requests: Arc::default(),
            frames: stream.map(|stream| Arc::new(tokio::sync::Mutex::new(stream))),
        }
    }

    /// Whether there is a PID 1 that takes bundles.
    pub(super) fn check(&self) -> Result<(), UpdateClientError> {
        match (&self.to_init, &self.frames) {
            (None, _) => Err(UpdateClientError::Absent),
            (Some(_), None) => Err(UpdateClientError::Broken),
            (Some(_), Some(_)) => Ok(()),
        }
    }

    /// Hands the answer of PID 1 to the request of this number.
    pub(crate) fn answered(&self, n: u64, answer: UpdateAnswer) {
        let request = self.lock().open.remove(&n);
        // A request that waited too long is not there any more.
        if let Some(request) = request {
            request.answer.send(answer).ok();
        }
    }

    /// Sends a request. Returns its number, and the receiver that gets the answer.
    pub(super) async fn begin(
        &self,
        request: UpdateRequest,
        by: &str,
    ) -> Result<(u64, oneshot::Receiver<UpdateAnswer>), UpdateClientError> {
        let (sender, answer) = oneshot::channel();
        let n = {
            let mut requests = self.lock();
            requests.last += 1;
            let n = requests.last;
            // A request whose caller went away has no receiver any more.
            let is_late = |sent: u64| sent + LEFT_REQUESTS_MAX > n;
            requests
                .open
                .retain(|sent, request| !request.answer.is_closed() || is_late(*sent));
            let sent = SentUpdateRequest {
                answer: sender,
                blocks_for: is_blocking(&request).then(|| by.to_owned()),
            };
            requests.open.insert(n, sent);
            n
        };
        let message = InitMessage::Update {
            n,
            request,
            by: by.to_owned(),
        };
        self.send(message).await?;
        Ok((n, answer))
    }

    /// The caller of the oldest request, other than `own`, for which PID 1 refuses other requests as busy.
    pub(super) fn blocking_caller(&self, own: &str) -> Option<String> {
        let requests = self.lock();
        let mut callers = requests
            .open
            .values()
            .filter_map(|it| it.blocks_for.as_ref());
        callers.find(|by| *by != own).cloned()
    }

    /// Tells PID 1 to give up the bundle of the request of this number, whose frames it may not be reading.
    pub(super) async fn give_up(&self, n: u64) -> Result<(), UpdateClientError> {
        self.send(InitMessage::GiveUpBundle { n }).await
    }

    async fn send(&self, message: InitMessage) -> Result<(), UpdateClientError> {
        let to_init = self.to_init.as_ref().ok_or(UpdateClientError::Absent)?;
        let sent = to_init.send(message).await;
        sent.map_err(|_| UpdateClientError::Broken)
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(
        &self,
        request: UpdateRequest,
        by: &str,
    ) -> Result<UpdateAnswer, UpdateClientError> {
        let (_, answer) = self.begin(request, by).await?;
        wait(answer, ANSWER_TIMEOUT).await
    }

    /// The stream of bundles, for one bundle.
    pub(super) async fn frames(&self) -> Result<BundleFrames, UpdateClientError> {
        self.check()?;
        let frames = self.frames.as_ref().ok_or(UpdateClientError::Broken)?;
        Ok(BundleFrames(Arc::clone(frames).lock_owned().await))
    }

    fn lock(&self) -> MutexGuard<'_, OpenRequests> {
        // The table is whole after any panic.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether PID 1 refuses other requests while it works on this one.
fn is_blocking(request: &UpdateRequest) -> bool {
    !matches!(
        request,
        UpdateRequest::Log | UpdateRequest::Unscheduled { .. }
    )
}

/// Waits for an answer of PID 1.
pub(super) async fn wait(
    answer: oneshot::Receiver<UpdateAnswer>,
    longest: Duration,
) -> Result<UpdateAnswer, UpdateClientError> {
    match tokio::time::timeout(longest, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(UpdateClientError::Broken),
        Err(_) => Err(UpdateClientError::Late),
    }
}

/// The stream while one bundle is sent.
pub(super) struct BundleFrames(OwnedMutexGuard<UnixStream>);

impl BundleFrames {
    /// Sends bytes of the bundle. If the future is dropped, the stream has half a frame and is of no use.
    pub(super) async fn data(&mut self, bytes: &[u8]) -> Result<(), UpdateClientError> {
        for frame in bytes.chunks(UPDATE_FRAME_BYTES_MAX as usize) {
            // A chunk is at most as long as the constant, so the cast keeps its length.
            self.length(frame.len() as u32).await?;
            self.write(frame).await?;
        }
        Ok(())
    }

    /// Ends the bundle.
    pub(super) async fn end(&mut self) -> Result<(), UpdateClientError> {
        self.length(0).await
    }

    /// Gives the bundle up.
    pub(super) async fn abort(&mut self) -> Result<(), UpdateClientError> {
        self.length(UPDATE_FRAME_ABORT).await
    }

    async fn length(&mut self, length: u32) -> Result<(), UpdateClientError> {
        self.write(&length.to_be_bytes()).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), UpdateClientError> {
        let written = self.0.write_all(bytes).await;
        written.map_err(|_| UpdateClientError::Broken)
    }
}
