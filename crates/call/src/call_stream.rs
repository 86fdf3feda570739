//! One stream and its traffic: reads frames, writes the send queue, and ends with the right code.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use alknet_core::{CloseCode, RecvStream, SendStream, StreamCode, StreamError};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::backpressure::UnreadBytes;
use crate::connection::CallConnectionState;
use crate::frame::{CallFrameError, FrameReader};
use crate::limits::{FRAMES_PER_TURN, OVERFULL_TIMEOUT, READ_STEP_BYTES, WRITE_STEP_BYTES};
use crate::outbound::PartialEvent;
use crate::send_queue::{SendQueue, WriterAction};
use crate::unfinished::{AssemblyLimitError, PartialMessage};

/// A bidirectional stream in use.
#[derive(Debug, Default)]
pub(crate) struct CallStream {
    pub(crate) out: SendQueue,
    /// Number of the peer's requests that this side answers and that have not ended.
    pub(crate) inbound: AtomicUsize,
    /// Whether the peer has ended its sending half.
    read_done: AtomicBool,
    /// Whether it carries one request of this side, and ends with it.
    single_call: bool,
    /// The counter for events on it, if they are forwarded.
    waiting: Option<Arc<UnreadBytes>>,
}

/// Why a stream ended early.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The connection has ended.
    Closed,
    /// Everything was answered, and this node is shutting down.
    Drained,
    /// This side gave the stream up.
    Killed(StreamCode),
    /// More bytes wait to be sent than the peer takes, or a frame needs more capacity than it gets in time.
    Overload(&'static str),
    /// The peer gave it up.
    PeerLeft,
    /// The peer broke the protocol.
    Protocol(&'static str),
    /// A time limit passed.
    Timeout(&'static str),
}

impl From<CallFrameError> for StreamEnd {
    fn from(error: CallFrameError) -> Self {
        Self::Protocol(match error {
            CallFrameError::TooLong { .. } => "frame too long",
            CallFrameError::Empty => "empty frame",
            CallFrameError::Nesting(_) => "nested too deeply",
            CallFrameError::Duplicate => "duplicate member",
            CallFrameError::Id => "invalid id",
            _ => "malformed frame",
        })
    }
}

impl From<AssemblyLimitError> for StreamEnd {
    fn from(_: AssemblyLimitError) -> Self {
        Self::Overload("too many bytes of requests that are not finished")
    }
}

impl From<StreamError> for StreamEnd {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset(_) | StreamError::Stopped(_) => Self::PeerLeft,
            // Every other error of a stream comes from the end of its connection.
            _ => Self::Closed,
        }
    }
}

impl CallStream {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn single_call(waiting: Option<Arc<UnreadBytes>>) -> Self {
        Self {
            single_call: true,
            waiting,
            ..Self::default()
        }
    }

    /// Whether it carries one request only: the peer's once the peer has ended its half, or one of this side.
    pub(crate) fn is_single_call(&self) -> bool {
        self.single_call
    }

    /// The priority of its bytes: shared streams go first, then streams of one request, and those with much binary
    /// data last. A stream of the peer counts as shared until the peer ends its half.
    fn priority(&self) -> i32 {
        let one_request = self.single_call || self.read_done.load(Ordering::Acquire);
        match (one_request, self.out.is_bulk()) {
            (false, _) => 1,
            (true, false) => 0,
            (true, true) => -1,
        }
    }

    /// Whether the peer may leave the stream unread for as long as it likes: while a subscription runs on a stream of
    /// its own, for which this side stores little. An unread response keeps others from beginning.
    fn may_pause(&self) -> bool {
        self.read_done.load(Ordering::Acquire) && self.inbound.load(Ordering::Acquire) > 0
    }

    /// Whether it still takes requests of this side.
    pub(crate) fn is_usable(&self) -> bool {
        !self.read_done.load(Ordering::Acquire) && !self.out.is_ended()
    }

    fn may_finish(&self, state: &CallConnectionState) -> bool {
        // Credit of a subscription on another stream may come on this one.
        let is_needed = || state.has_outbound() || state.inbound.is_windowed();
        let over =
            self.read_done.load(Ordering::Acquire) || (state.has_sent_goaway() && !is_needed());
        over && self.inbound.load(Ordering::Acquire) == 0
    }
}

/// Serves one stream until it ends, and signals the end to the peer.
pub(crate) async fn run(
    state: Arc<CallConnectionState>,
    stream: Arc<CallStream>,
    send: SendStream,
    recv: RecvStream,
) {
    let mut halves = StreamHalves {
        send,
        recv,
        ended: false,
    };
    let work = async {
        tokio::try_join!(
            read_loop(&state, &stream, &mut halves.recv),
            write_loop(&state, &stream, &mut halves.send),
        )
    };
    let end = tokio::select! {
        biased;
        // This comes first: a stream that was given up sends nothing more.
        code = stream.out.killed() => Some(StreamEnd::Killed(code)),
        ended = work => ended.err(),
    };
    stream.out.end();
    state.stream_ended(&stream, end.is_some());
    halves.ended = true;
    match end {
        None => arrival(&state, &stream, &mut halves.send).await,
        // The connection has ended, or the peer has everything: there is nothing to give up.
        Some(StreamEnd::Closed | StreamEnd::Drained) => {}
        Some(StreamEnd::Killed(code)) => halves.give_up(code),
        Some(StreamEnd::Overload(why)) => {
            state.fail_if_single(CloseCode::Overload, why);
            halves.give_up(StreamCode::Overload);
        }
        Some(StreamEnd::PeerLeft) => halves.give_up(StreamCode::Cancelled),
        Some(StreamEnd::Protocol(why)) => {
            // Counted and logged: the peer sees only the code.
            state.protocol_error(why);
            state.fail_if_single(CloseCode::Protocol, why);
            halves.give_up(StreamCode::Protocol);
        }
        Some(StreamEnd::Timeout(why)) => {
            state.fail_if_single(CloseCode::Timeout, why);
            halves.give_up(StreamCode::Deadline);
        }
    }
}

/// The two halves of a stream. Dropped early it is given up: otherwise the carriage would end it as if it were
/// complete.
struct StreamHalves {
    send: SendStream,
    recv: RecvStream,
    ended: bool,
}

impl StreamHalves {
    fn give_up(&mut self, code: StreamCode) {
        self.send.reset(code);
        self.recv.stop(code);
    }
}

impl Drop for StreamHalves {
    fn drop(&mut self) {
        if !self.ended {
            self.give_up(StreamCode::Cancelled);
        }
    }
}

/// Keeps a stream that ended well, one of many, until the peer has all of it: a connection that closes discards bytes
/// under way, and a drain closes it as soon as no stream is left.
async fn arrival(state: &CallConnectionState, stream: &CallStream, send: &mut SendStream) {
    // A call stream of this side has its one response already.
    if !state.connection.is_multi() || stream.is_single_call() {
        return;
    }
    let given_up = async {
        state.draining().await;
        tokio::time::sleep(state.dispatcher.patience.goodbye).await;
    };
    tokio::select! {
        _ = send.stopped() => {}
        () = given_up => {}
    }
}

async fn read_loop(
    state: &Arc<CallConnectionState>,
    stream: &Arc<CallStream>,
    recv: &mut RecvStream,
) -> Result<(), StreamEnd> {
    let mut frames = FrameReader::new();
    let mut begun = None;
    let mut unfinished = PartialMessage::default();
    let mut making = PartialEvent::default();
    let mut turn = 0;
    loop {
        while let Some(frame) = frames.next_frame(state.frame_bytes())? {
            begun = None;
            let made = std::mem::take(&mut making);
            state.receive(stream, frame, made).await?;
            unfinished = PartialMessage::default();
            // Requests of this side, and the frames that end them, count here. Responses do not.
            let room = |out: &SendQueue| out.backlog() < state.limits().queued_bytes;
            stream.out.wait_for_capacity(room).await;
            turn += 1;
            if turn % FRAMES_PER_TURN == 0 {
                // A peer with many frames at hand would keep the other tasks of this thread waiting.
                tokio::task::yield_now().await;
            }
        }
        if frames.is_partial() {
            let since = *begun.get_or_insert_with(Instant::now);
            match &stream.waiting {
                // Reading on would store bytes of an event that has no room.
                Some(waiting) if !making.count(waiting, frames.held_bytes()) => {
                    state.outbound.refuse_on(state, stream);
                    return Err(StreamEnd::Killed(StreamCode::Cancelled));
                }
                Some(_) => {}
                // This side caused the answer, and bounds it by its own limit of a frame.
                None if is_asked_for(state, stream) => {}
                None => {
                    let counted = unfinished.count_from(state, frames.held_bytes(), since);
                    begun = Some(counted.await?);
                }
            }
        }
        match next_chunk(state, recv, begun).await? {
            Some(chunk) => frames.push(chunk),
            None if frames.is_partial() => {
                return Err(StreamEnd::Protocol("stream ends within a frame"));
            }
            None => break,
        }
    }
    stream.read_done.store(true, Ordering::Release);
    state.credit_in_advance(stream);
    stream.out.wake_writer();
    Ok(())
}

/// Whether a partial frame answers a request of this side, as far as the stream tells. On the only stream of a
/// connection it may be another frame as well: there is one at a time, as for each request elsewhere.
fn is_asked_for(state: &CallConnectionState, stream: &CallStream) -> bool {
    stream.is_single_call() || state.ends_with_stream() && state.has_outbound()
}

/// The next bytes, within the time of a partial frame or of a silent unknown peer.
async fn next_chunk(
    state: &CallConnectionState,
    recv: &mut RecvStream,
    begun: Option<Instant>,
) -> Result<Option<Bytes>, StreamEnd> {
    let patience = &state.dispatcher.patience;
    loop {
        let (deadline, why) = match begun {
            Some(begun) => (begun + patience.partial_frame, "partial frame"),
            None if state.is_unknown_on_single() => {
                (Instant::now() + patience.unknown_idle, "idle")
            }
            None => return Ok(recv.read_chunk(READ_STEP_BYTES).await?),
        };
        match timeout_at(deadline, recv.read_chunk(READ_STEP_BYTES)).await {
            Ok(read) => return Ok(read?),
            // An unknown peer whose request still runs is not idle.
            Err(_) if begun.is_none() && !state.inbound.is_empty() => {}
            Err(_) => return Err(StreamEnd::Timeout(why)),
        }
    }
}

async fn write_loop(
    state: &CallConnectionState,
    stream: &CallStream,
    send: &mut SendStream,
) -> Result<(), StreamEnd> {
    let mut priority = None;
    loop {
        let work = tokio::select! {
            biased;
            work = stream.out.next_work(|| stream.may_finish(state)) => work,
            stopped = send.stopped() => {
                // An error here means the connection ended, which is not the peer's choice.
                stopped?;
                return Err(StreamEnd::PeerLeft);
            }
        };
        match work {
            WriterAction::Write(bytes) => {
                let wanted = stream.priority();
                // Each change is a call into the carriage, and most writes change nothing.
                if priority.replace(wanted) != Some(wanted) {
                    send.set_priority(wanted);
                }
                write(state, stream, send, bytes).await?;
            }
            WriterAction::Kill(code) => return Err(StreamEnd::Killed(code)),
            WriterAction::Finish => break,
        }
    }
    send.finish()?;
    if state.has_sent_goaway() && !state.has_outbound() {
        // The connection ends after this, and bytes under way must arrive first.
        let arrived = async {
            // Requests that the peer sent before it received the notice of the drain are read to the end of its half:
            // if this side stopped reading, TCP would send a reset and QUIC a STOP_SENDING, either of which overtakes
            // responses that the peer has received and not read.
            while !stream.read_done.load(Ordering::Acquire) {
                stream.out.poked().await;
            }
            if state.connection.is_multi() {
                let _ = send.stopped().await;
            }
        };
        // A peer that does not read in time loses the rest, because the drain has to end.
        let _ = tokio::time::timeout(state.dispatcher.patience.goodbye, arrived).await;
        return Err(StreamEnd::Drained);
    }
    Ok(())
}

/// Writes in steps, so that a peer that takes bytes slowly differs from one that takes none.
async fn write(
    state: &CallConnectionState,
    stream: &CallStream,
    send: &mut SendStream,
    mut bytes: Bytes,
) -> Result<(), StreamEnd> {
    while !bytes.is_empty() {
        let step = bytes.split_to(bytes.len().min(WRITE_STEP_BYTES));
        let len = step.len();
        write_step(state, stream, send, step).await?;
        stream.out.wrote(len);
    }
    Ok(())
}

async fn write_step(
    state: &CallConnectionState,
    stream: &CallStream,
    send: &mut SendStream,
    step: Bytes,
) -> Result<(), StreamEnd> {
    let written = send.write_chunk(step);
    tokio::pin!(written);
    loop {
        tokio::select! {
            biased;
            // A completed step counts, also if its time ended in the same moment.
            written = &mut written => return Ok(written?),
            () = tokio::time::sleep(state.dispatcher.patience.blocked_stream) => {
                // If its requester's quota is used up, a paused stream keeps the requester's other requests from
                // being answered.
                if !stream.may_pause() || state.unread.is_spent() {
                    return Err(StreamEnd::Timeout("blocked"));
                }
            }
            () = overfull(state, stream) => return Err(StreamEnd::Overload("too much waits to be sent")),
        }
    }
}

/// Resolves once too many bytes wait for an unknown peer that takes none of them. Responses to its earlier requests
/// go on coming after it has stopped reading, and it can come back.
async fn overfull(state: &CallConnectionState, stream: &CallStream) {
    if !state.is_guest() {
        return std::future::pending().await;
    }
    while stream.out.backlog() <= state.dispatcher.limits.queued_bytes {
        stream.out.poked().await;
    }
    tokio::time::sleep(OVERFULL_TIMEOUT).await;
}
