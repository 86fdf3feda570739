//! Bytes that wait to be written on one stream.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_core::StreamCode;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::backpressure::UnreadBytes;
use crate::limits::{BULK_BYTES, COPY_BYTES_MAX, WRITE_STEP_BYTES};
use crate::sync::lock;

/// The queue between the tasks that answer on a stream and the one that writes it. The tasks encode frames straight
/// into one buffer, so that everything queued goes out in one write; the queue takes long binary data without a copy.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    state: Mutex<SendQueueState>,
    /// Notified when there is work for the writer.
    work: Notify,
    /// Notified when the queue became shorter, or ended.
    freed: Notify,
    /// Notified when this side gave the stream up.
    dead: Notify,
}

#[derive(Debug, Default)]
struct SendQueueState {
    /// The bytes before `buffer`, which the queue does not copy.
    parts: VecDeque<Bytes>,
    parts_bytes: usize,
    buffer: Vec<u8>,
    /// Bytes that the writer has taken and that are not yet on the wire.
    writing: usize,
    /// Bytes ever pushed and ever written: the end of a frame is a position in this count.
    pushed: u64,
    written: u64,
    marks: VecDeque<FrameMark>,
    /// Whether long binary data passed, for which other streams should not have to wait.
    bulk: bool,
    finish: bool,
    ended: bool,
    killed: Option<StreamCode>,
}

/// Where the bytes of one answer or event end, and how many of them are left to write.
#[derive(Debug)]
struct FrameMark {
    end: u64,
    bytes: usize,
    /// The count of a subscription's bytes.
    meter: Option<Arc<AtomicUsize>>,
    /// The count of the whole connection's bytes.
    unread: Arc<UnreadBytes>,
}

impl FrameMark {
    /// Takes off so many of its bytes.
    fn pass(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if let Some(meter) = &self.meter {
            meter.fetch_sub(bytes, Ordering::AcqRel);
        }
        self.unread.taken(bytes);
    }
}

impl SendQueueState {
    fn queued(&self) -> usize {
        self.parts_bytes + self.buffer.len()
    }

    /// Queues the last bytes of a frame.
    fn append(&mut self, tail: &Bytes) {
        self.bulk |= tail.len() > BULK_BYTES;
        // A short copy is cheaper than another write.
        if tail.len() <= COPY_BYTES_MAX {
            self.buffer.extend_from_slice(tail);
            return;
        }
        let before = std::mem::take(&mut self.buffer);
        self.parts_bytes += before.len() + tail.len();
        self.parts.push_back(before.into());
        self.parts.push_back(tail.clone());
    }

    /// Moves a buffer that is long enough for a write to the parts, without its spare room: the waiting bytes are
    /// counted, and a buffer that grows for a reader that takes nothing would hold twice as much.
    fn set_aside(&mut self) {
        if self.buffer.len() >= WRITE_STEP_BYTES {
            let mut full = std::mem::take(&mut self.buffer);
            full.shrink_to_fit();
            self.parts_bytes += full.len();
            self.parts.push_back(full.into());
        }
    }

    fn next_part(&mut self) -> Option<Bytes> {
        let part = match self.parts.pop_front() {
            Some(part) => {
                self.parts_bytes -= part.len();
                part
            }
            None => std::mem::take(&mut self.buffer).into(),
        };
        (!part.is_empty()).then_some(part)
    }
}

/// The result of an append to a queue whose bytes are counted.
#[derive(Debug, Default)]
pub(crate) struct QueueAppend<'a, R> {
    /// The value to return.
    pub(crate) result: R,
    /// The data after the appended bytes.
    pub(crate) tail: Option<&'a Bytes>,
    /// Bytes that count already.
    pub(crate) claimed: usize,
}

/// The writer's next action.
#[derive(Debug)]
pub(crate) enum WriterAction {
    Finish,
    Kill(StreamCode),
    Write(Bytes),
}

impl SendQueue {
    /// Queues the bytes that `encode` appends. `None` when the stream takes no more.
    pub(crate) fn push<R>(&self, encode: impl FnOnce(&mut Vec<u8>) -> R) -> Option<R> {
        let mut state = lock(&self.state);
        if state.ended || state.finish {
            return None;
        }
        let before = state.queued();
        let result = encode(&mut state.buffer);
        state.pushed += (state.queued() - before) as u64;
        state.set_aside();
        drop(state);
        // `Notify` keeps the notice: a busy writer finds it afterwards.
        self.work.notify_one();
        Some(result)
    }

    /// Like [`push`](Self::push), counting the bytes in `unread` until they are written.
    pub(crate) fn push_waiting(
        &self,
        unread: &Arc<UnreadBytes>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Option<()> {
        self.push_counted(unread, None, |out| {
            encode(out);
            QueueAppend::default()
        })
    }

    /// Like [`push_waiting`](Self::push_waiting), counting the bytes in `meter`, too.
    pub(crate) fn push_counted<'a, R>(
        &self,
        unread: &Arc<UnreadBytes>,
        meter: Option<&Arc<AtomicUsize>>,
        encode: impl FnOnce(&mut Vec<u8>) -> QueueAppend<'a, R>,
    ) -> Option<R> {
        let mut state = lock(&self.state);
        if state.ended || state.finish {
            return None;
        }
        let before = state.queued();
        let QueueAppend {
            result,
            tail,
            claimed,
        } = encode(&mut state.buffer);
        if let Some(tail) = tail {
            state.append(tail);
        }
        let bytes = state.queued() - before;
        state.pushed += bytes as u64;
        state.set_aside();
        // The answer's length was claimed before; a refusal in its place has another length.
        unread.add(bytes.saturating_sub(claimed));
        unread.taken(claimed.saturating_sub(bytes));
        if let Some(meter) = meter {
            meter.fetch_add(bytes, Ordering::AcqRel);
        }
        let end = state.pushed;
        state.marks.push_back(FrameMark {
            end,
            bytes,
            meter: meter.cloned(),
            unread: Arc::clone(unread),
        });
        drop(state);
        self.work.notify_one();
        Some(result)
    }

    /// Bytes queued or being written.
    pub(crate) fn backlog(&self) -> usize {
        let state = lock(&self.state);
        state.queued() + state.writing
    }

    /// Whether long binary data was queued.
    pub(crate) fn is_bulk(&self) -> bool {
        lock(&self.state).bulk
    }

    /// Whether everything pushed is written.
    pub(crate) fn is_idle(&self) -> bool {
        self.backlog() == 0
    }

    pub(crate) fn is_ended(&self) -> bool {
        let state = lock(&self.state);
        state.ended || state.finish
    }

    /// Waits until `ready` holds, checking again whenever the writer wrote bytes. Ends at once when the stream does.
    pub(crate) async fn wait_for_capacity(&self, ready: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.freed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if ready(self) || lock(&self.state).ended {
                return;
            }
            changed.await;
        }
    }

    /// Ends the stream once the queue is written.
    pub(crate) fn finish(&self) {
        self.finish_with(|_| {});
    }

    /// Like `finish`, with the bytes that `encode` appends as the last ones: no other frame comes after them.
    pub(crate) fn finish_with(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut state = lock(&self.state);
        if !state.ended && !state.finish {
            let before = state.buffer.len();
            encode(&mut state.buffer);
            state.pushed += (state.buffer.len() - before) as u64;
            state.finish = true;
        }
        drop(state);
        self.work.notify_one();
    }

    /// Abandons the stream now.
    pub(crate) fn kill(&self, code: StreamCode) {
        let mut state = lock(&self.state);
        state.killed.get_or_insert(code);
        drop(state);
        // `Notify` keeps one notice: the task may not be waiting yet.
        self.dead.notify_one();
        self.end();
    }

    /// Waits until this side gives the stream up. Only the task that runs the stream may wait here.
    pub(crate) async fn killed(&self) -> StreamCode {
        loop {
            let killed = lock(&self.state).killed;
            match killed {
                Some(code) => return code,
                None => self.dead.notified().await,
            }
        }
    }

    /// Notes that the stream is gone: it takes nothing more, and every task that waits for room goes on.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        state.parts = VecDeque::new();
        state.parts_bytes = 0;
        state.buffer = Vec::new();
        state.writing = 0;
        for mut mark in std::mem::take(&mut state.marks) {
            mark.pass(mark.bytes);
        }
        drop(state);
        self.work.notify_one();
        self.freed.notify_waiters();
    }

    /// Wakes the writer to check again whether it may finish.
    pub(crate) fn wake_writer(&self) {
        self.work.notify_one();
    }

    /// Waits for a notice to the writer.
    pub(crate) async fn poked(&self) {
        self.work.notified().await;
    }

    /// The next action; waits for it. `may_finish` is called when the queue is empty.
    pub(crate) async fn next_work(&self, may_finish: impl Fn() -> bool) -> WriterAction {
        loop {
            if let Some(work) = self.try_work() {
                return work;
            }
            // In this order: an answer is queued before its request counts as over.
            if may_finish() && self.is_idle() {
                lock(&self.state).finish = true;
                continue;
            }
            self.work.notified().await;
        }
    }

    fn try_work(&self) -> Option<WriterAction> {
        let mut state = lock(&self.state);
        if let Some(code) = state.killed {
            return Some(WriterAction::Kill(code));
        }
        if let Some(bytes) = state.next_part() {
            state.writing = bytes.len();
            return Some(WriterAction::Write(bytes));
        }
        (state.finish || state.ended).then_some(WriterAction::Finish)
    }

    /// Notes that `bytes` more are on the wire.
    pub(crate) fn wrote(&self, bytes: usize) {
        let mut state = lock(&self.state);
        // Where the stream ended meanwhile, no bytes count as being written.
        state.writing = state.writing.saturating_sub(bytes);
        state.written += bytes as u64;
        let written = state.written;
        while let Some(mark) = state.marks.front_mut() {
            let begin = mark.end - mark.bytes as u64;
            let now = written.min(mark.end).saturating_sub(begin) as usize;
            mark.pass(now);
            // Later marks end behind this one, which is not written yet.
            if mark.bytes > 0 {
                break;
            }
            state.marks.pop_front();
        }
        drop(state);
        self.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backpressure::UnreadLimitError;
    use crate::request_bytes::GrowLimit;

    async fn take(send_queue: &SendQueue) -> Bytes {
        match send_queue.next_work(|| false).await {
            WriterAction::Write(bytes) => bytes,
            other => panic!("expected bytes, not {other:?}"),
        }
    }

    #[tokio::test]
    async fn whatever_is_queued_goes_out_together() {
        let send_queue = SendQueue::default();
        send_queue.push(|out| out.extend_from_slice(b"ab"));
        send_queue.push(|out| out.extend_from_slice(b"c"));
        assert_eq!(take(&send_queue).await, "abc");
        assert_eq!(send_queue.backlog(), 3);
        send_queue.wrote(3);
        assert!(send_queue.is_idle());
    }

    #[tokio::test]
    async fn meters_fall_when_their_bytes_are_written() {
        let send_queue = SendQueue::default();
        let (unread, meter) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let push = |meter: Option<&Arc<AtomicUsize>>, text: &[u8]| {
            send_queue.push_counted(&unread, meter, |out| {
                out.extend_from_slice(text);
                QueueAppend::<()>::default()
            });
        };
        let counted = || (meter.load(Ordering::Acquire), unread.bytes());
        push(None, b"other");
        push(Some(&meter), b"mine");
        assert_eq!(counted(), (4, 9));
        take(&send_queue).await;
        send_queue.wrote(5);
        assert_eq!(counted(), (4, 4));
        send_queue.wrote(3);
        assert_eq!(counted(), (1, 1));
        send_queue.wrote(1);
        assert_eq!(counted(), (0, 0));
        push(Some(&meter), b"never written");
        let room = unread.wait_below(1);
        tokio::pin!(room);
        assert!(futures_util::poll!(room.as_mut()).is_pending());
        send_queue.end();
        room.await;
        assert_eq!(counted(), (0, 0));
    }

    #[tokio::test]
    async fn long_tails_are_not_copied_and_keep_their_order() {
        let send_queue = SendQueue::default();
        let long = Bytes::from(vec![7; BULK_BYTES + 1]);
        let short = Bytes::from_static(b"short");
        let push = |head: &'static [u8], tail: &Bytes| {
            let unread = Arc::<UnreadBytes>::default();
            let claimed = head.len() + tail.len();
            let claim = |bytes| unread.claim(bytes, GrowLimit::Wholly, |waiting| waiting == 0);
            assert_eq!(claim(claimed), Ok(()));
            assert_eq!(claim(1), Err(UnreadLimitError::Here(claimed)));
            send_queue.push_counted(&unread, None, |out| {
                out.extend_from_slice(head);
                QueueAppend {
                    result: (),
                    tail: Some(tail),
                    claimed,
                }
            });
            assert_eq!(unread.bytes(), claimed);
        };
        push(b"a", &short);
        assert!(!send_queue.is_bulk());
        push(b"b", &long);
        push(b"c", &short);
        assert!(send_queue.is_bulk());
        assert_eq!(send_queue.backlog(), 13 + long.len());
        assert_eq!(take(&send_queue).await, "ashortb");
        send_queue.wrote(7);
        assert_eq!(take(&send_queue).await.as_ptr(), long.as_ptr());
        send_queue.wrote(long.len());
        assert_eq!(take(&send_queue).await, "cshort");
        send_queue.wrote(6);
        assert!(send_queue.is_idle());
    }

    /// However many answers a reader leaves unread, the queue holds no more than it counts.
    #[tokio::test]
    async fn what_waits_holds_no_room_to_grow() {
        let send_queue = SendQueue::default();
        for n in 0..10_000_u32 {
            send_queue.push(|out| out.extend_from_slice(&[(n % 256) as u8; 100]));
        }
        assert_eq!(send_queue.backlog(), 1_000_000);
        let room = lock(&send_queue.state).buffer.capacity();
        assert!(room <= 2 * WRITE_STEP_BYTES, "{room}");
        let mut all = Vec::new();
        while !send_queue.is_idle() {
            let part = take(&send_queue).await;
            let bytes = part.try_into_mut().expect("it has no other holder");
            assert!(bytes.capacity() <= bytes.len().max(2 * WRITE_STEP_BYTES));
            send_queue.wrote(bytes.len());
            all.extend_from_slice(&bytes);
        }
        let wanted = (0..10_000_u32).flat_map(|n| [(n % 256) as u8; 100]);
        assert!(all.into_iter().eq(wanted), "in order");
    }

    #[tokio::test]
    async fn finishing_comes_after_the_bytes_and_killing_before() {
        let send_queue = SendQueue::default();
        send_queue.push(|out| out.push(1));
        send_queue.finish_with(|out| out.push(2));
        assert!(send_queue.push(|out| out.push(3)).is_none());
        send_queue.finish_with(|out| out.push(4));
        assert_eq!(take(&send_queue).await, [1, 2][..]);
        send_queue.wrote(2);
        assert!(matches!(
            send_queue.next_work(|| false).await,
            WriterAction::Finish
        ));
        send_queue.kill(StreamCode::Cancelled);
        assert!(matches!(
            send_queue.next_work(|| false).await,
            WriterAction::Kill(StreamCode::Cancelled)
        ));
    }

    #[tokio::test]
    async fn waiting_for_room_ends_with_the_stream() {
        let send_queue = SendQueue::default();
        send_queue.push(|out| out.extend_from_slice(&[0; 10]));
        let wait = send_queue.wait_for_capacity(|send_queue| send_queue.backlog() < 5);
        tokio::pin!(wait);
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
        send_queue.end();
        wait.await;
    }
}
