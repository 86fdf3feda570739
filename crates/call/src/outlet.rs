//! Bytes waiting to be written on one stream.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_core::StreamCode;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::sync::lock;

/// The queue between everybody who answers on a stream and the one who writes it. Frames are
/// encoded straight into one buffer, so that whatever is queued goes out in one write.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    state: Mutex<State>,
    /// Something for the writer to do.
    work: Notify,
    /// The queue became shorter, or ended.
    room: Notify,
    /// The stream was given up.
    dead: Notify,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    /// Bytes handed to the writer and not yet on the wire.
    writing: usize,
    /// Bytes ever pushed and ever written: what a subscription's bytes are told by.
    pushed: u64,
    written: u64,
    marks: VecDeque<Mark>,
    finish: bool,
    ended: bool,
    killed: Option<StreamCode>,
}

/// Where the bytes of one subscription event end.
#[derive(Debug)]
struct Mark {
    end: u64,
    bytes: usize,
    meter: Arc<AtomicUsize>,
}

/// What the writer does next.
#[derive(Debug)]
pub(crate) enum Work {
    Finish,
    Kill(StreamCode),
    Write(Bytes),
}

impl Outlet {
    /// Queues what `encode` appends. `false` when the stream takes no more.
    pub(crate) fn push<R>(&self, encode: impl FnOnce(&mut Vec<u8>) -> R) -> Option<R> {
        self.push_metered(None, encode)
    }

    /// As [`push`](Self::push), counting the bytes in `meter` until they are written.
    pub(crate) fn push_metered<R>(
        &self,
        meter: Option<&Arc<AtomicUsize>>,
        encode: impl FnOnce(&mut Vec<u8>) -> R,
    ) -> Option<R> {
        let mut state = lock(&self.state);
        if state.ended || state.finish {
            return None;
        }
        let before = state.buffer.len();
        let result = encode(&mut state.buffer);
        let bytes = state.buffer.len() - before;
        state.pushed += bytes as u64;
        if let Some(meter) = meter {
            meter.fetch_add(bytes, Ordering::AcqRel);
            let end = state.pushed;
            state.marks.push_back(Mark {
                end,
                bytes,
                meter: Arc::clone(meter),
            });
        }
        drop(state);
        self.work.notify_one();
        Some(result)
    }

    /// Bytes queued or being written.
    pub(crate) fn backlog(&self) -> usize {
        let state = lock(&self.state);
        state.buffer.len() + state.writing
    }

    /// Whether everything pushed is written.
    pub(crate) fn is_idle(&self) -> bool {
        self.backlog() == 0
    }

    pub(crate) fn is_ended(&self) -> bool {
        let state = lock(&self.state);
        state.ended || state.finish
    }

    /// Waits until `ready` holds; it is asked again whenever bytes were written. Ends at once when
    /// the stream does.
    pub(crate) async fn wait_room(&self, ready: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.room.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if ready(self) || lock(&self.state).ended {
                return;
            }
            changed.await;
        }
    }

    /// Waits until fewer than `most` bytes are queued.
    pub(crate) async fn wait_below(&self, most: usize) {
        if self.backlog() >= most {
            self.wait_room(|outlet| outlet.backlog() < most).await;
        }
    }

    /// Ends the stream once the queue is written.
    pub(crate) fn finish(&self) {
        lock(&self.state).finish = true;
        self.work.notify_one();
    }

    /// Abandons the stream now.
    pub(crate) fn kill(&self, code: StreamCode) {
        let mut state = lock(&self.state);
        state.killed.get_or_insert(code);
        drop(state);
        self.dead.notify_one();
        self.end();
    }

    /// Waits until the stream is given up. One waiter: whoever runs it.
    pub(crate) async fn killed(&self) -> StreamCode {
        loop {
            let killed = lock(&self.state).killed;
            match killed {
                Some(code) => return code,
                None => self.dead.notified().await,
            }
        }
    }

    /// The stream is gone: nothing more is taken, nobody waits any longer.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        state.buffer = Vec::new();
        state.writing = 0;
        for mark in std::mem::take(&mut state.marks) {
            mark.meter.fetch_sub(mark.bytes, Ordering::AcqRel);
        }
        drop(state);
        self.work.notify_one();
        self.room.notify_waiters();
    }

    /// Asks the writer to look again whether it may finish.
    pub(crate) fn poke(&self) {
        self.work.notify_one();
    }

    /// Waits until something happened that the writer wants to know.
    pub(crate) async fn poked(&self) {
        self.work.notified().await;
    }

    /// What to write next; waits for it. `may_finish` is asked when there is nothing.
    pub(crate) async fn next_work(&self, may_finish: impl Fn() -> bool) -> Work {
        loop {
            if let Some(work) = self.try_work() {
                return work;
            }
            if may_finish() && self.is_idle() {
                lock(&self.state).finish = true;
                continue;
            }
            self.work.notified().await;
        }
    }

    fn try_work(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        if let Some(code) = state.killed {
            return Some(Work::Kill(code));
        }
        if !state.buffer.is_empty() {
            let bytes = std::mem::take(&mut state.buffer);
            state.writing = bytes.len();
            return Some(Work::Write(bytes.into()));
        }
        (state.finish || state.ended).then_some(Work::Finish)
    }

    /// `bytes` more are on the wire.
    pub(crate) fn wrote(&self, bytes: usize) {
        let mut state = lock(&self.state);
        state.writing = state.writing.saturating_sub(bytes);
        state.written += bytes as u64;
        let written = state.written;
        while let Some(mark) = state.marks.pop_front_if(|mark| mark.end <= written) {
            mark.meter.fetch_sub(mark.bytes, Ordering::AcqRel);
        }
        drop(state);
        self.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(outlet: &Outlet) -> Bytes {
        match outlet.next_work(|| false).await {
            Work::Write(bytes) => bytes,
            other => panic!("expected bytes, not {other:?}"),
        }
    }

    #[tokio::test]
    async fn whatever_is_queued_goes_out_together() {
        let outlet = Outlet::default();
        outlet.push(|out| out.extend_from_slice(b"ab"));
        outlet.push(|out| out.extend_from_slice(b"c"));
        assert_eq!(take(&outlet).await, "abc");
        assert_eq!(outlet.backlog(), 3);
        outlet.wrote(3);
        assert!(outlet.is_idle());
    }

    #[tokio::test]
    async fn meters_fall_when_their_bytes_are_written() {
        let outlet = Outlet::default();
        let meter = Arc::new(AtomicUsize::new(0));
        outlet.push(|out| out.extend_from_slice(b"other"));
        outlet.push_metered(Some(&meter), |out| out.extend_from_slice(b"mine"));
        take(&outlet).await;
        outlet.wrote(8);
        assert_eq!(meter.load(Ordering::Acquire), 4);
        outlet.wrote(1);
        assert_eq!(meter.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn finishing_comes_after_the_bytes_and_killing_before() {
        let outlet = Outlet::default();
        outlet.push(|out| out.push(1));
        outlet.finish();
        assert!(outlet.push(|out| out.push(2)).is_none());
        assert_eq!(take(&outlet).await, [1][..]);
        outlet.wrote(1);
        assert!(matches!(outlet.next_work(|| false).await, Work::Finish));
        outlet.kill(StreamCode::Cancelled);
        assert!(matches!(
            outlet.next_work(|| false).await,
            Work::Kill(StreamCode::Cancelled)
        ));
    }

    #[tokio::test]
    async fn waiting_for_room_ends_with_the_stream() {
        let outlet = Outlet::default();
        outlet.push(|out| out.extend_from_slice(&[0; 10]));
        let wait = outlet.wait_below(5);
        tokio::pin!(wait);
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
        outlet.end();
        wait.await;
    }
}
