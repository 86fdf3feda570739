//! How fast a node takes the pieces of a bundle, so that other calls are answered as before.
//!
//! A slow processor has most of its work with the packets of a bundle, and not with what PID 1 does with them: on an
//! emulated one three quarters. This is work of the node's own threads, so no priority puts it behind the calls. A node
//! that has no other calls takes a bundle as fast as it can.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Fewest bytes of the piece that the node asks for.
pub(super) const PIECE_BYTES_LEAST: usize = 16 << 10;
/// Most bytes of one piece.
pub(super) const PIECE_BYTES_MAX: usize = 256 << 10;
/// Processor time of the node that a piece should cost: that long a call may wait for it.
const PIECE_WORK: Duration = Duration::from_millis(3);
/// How many times as long as it worked for a piece the node waits before it asks for the next one.
const PAUSE_OF_WORK: u32 = 2;
/// Longest such pause: a node that is busy with other calls takes 160 KiB a second or more.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How long after a request of another caller the node goes on in this way.
const OTHERS_WITHIN: Duration = Duration::from_secs(2);

/// How many requests the node has had, of all its callers.
#[derive(Clone)]
pub(crate) struct RequestCount(Arc<dyn Fn() -> u64 + Send + Sync>);

/// What the node does after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PiecePause {
    /// How long it waits before it asks for the next one.
    pub(super) pause: Duration,
    /// How many bytes it asks for.
    pub(super) next_bytes: usize,
}

/// The pieces of one bundle, beside the other requests of the node.
#[derive(Debug)]
pub(super) struct PiecePacing<'a> {
    count: &'a RequestCount,
    /// The requests of the node before the piece that is under way.
    requests: u64,
    /// The processor time of the node before it.
    used: Duration,
    /// When the last request of another caller was noticed.
    others: Option<Instant>,
}

impl RequestCount {
    pub(crate) fn new(count: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(count))
    }
}

impl fmt::Debug for RequestCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequestCount").field(&(self.0)()).finish()
    }
}

impl PiecePause {
    /// What follows a piece on a node that has no other calls.
    const NONE: Self = Self {
        pause: Duration::ZERO,
        next_bytes: PIECE_BYTES_MAX,
    };

    /// What follows a piece of so many bytes that cost so much processor time, together with everything else that the
    /// node did meanwhile.
    fn after(work: Duration, bytes: usize) -> Self {
        let fitting = bytes as u128 * PIECE_WORK.as_nanos() / work.as_nanos().max(1);
        let fitting = usize::try_from(fitting).unwrap_or(PIECE_BYTES_MAX);
        Self {
            pause: (work * PAUSE_OF_WORK).min(PAUSE_MAX),
            next_bytes: fitting.clamp(PIECE_BYTES_LEAST, PIECE_BYTES_MAX),
        }
    }
}

impl<'a> PiecePacing<'a> {
    pub(super) fn begin(count: &'a RequestCount) -> Self {
        Self {
            count,
            requests: (count.0)(),
            used: used(),
            others: None,
        }
    }

    /// What follows a piece of so many bytes.
    pub(super) fn note_piece(&mut self, bytes: usize) -> PiecePause {
        // One of them brought the piece.
        let others = (self.count.0)().wrapping_sub(self.requests) > 1;
        if others {
            self.others = Some(Instant::now());
        }
        let is_beside = self.others.is_some_and(|at| at.elapsed() < OTHERS_WITHIN);
        match is_beside {
            true => PiecePause::after(used().saturating_sub(self.used), bytes),
            false => PiecePause::NONE,
        }
    }

    /// The next piece is asked for.
    pub(super) fn go_on(&mut self) {
        // Requests of the pause count as well.
        self.used = used();
        self.requests = (self.count.0)();
    }
}

/// The processor time of this process. No Linux lacks this clock; without it there are no pauses.
fn used() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    now.map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_slow_processor_is_given_short_pieces_and_rests() {
        let after = |work, bytes| {
            let PiecePause { pause, next_bytes } = PiecePause::after(work, bytes);
            (pause, next_bytes)
        };
        assert_eq!(after(6 * MS, 128 << 10), (12 * MS, 64 << 10));
        assert_eq!(after(24 * MS, 64 << 10), (48 * MS, PIECE_BYTES_LEAST));
        // It was busy with something else.
        assert_eq!(after(1_000 * MS, 1), (PAUSE_MAX, PIECE_BYTES_LEAST));
    }

    #[test]
    fn a_quick_processor_is_given_long_pieces_at_once() {
        let after = PiecePause::after(MS, 256 << 10);
        assert_eq!((after.pause, after.next_bytes), (2 * MS, PIECE_BYTES_MAX));
        assert_eq!(PiecePause::after(Duration::ZERO, 1), PiecePause::NONE);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_node_with_other_requests_takes_its_time() {
        let requests = Arc::new(AtomicU64::new(7));
        let counted = Arc::clone(&requests);
        let count = RequestCount::new(move || counted.load(Ordering::Relaxed));
        let mut pacing = PiecePacing::begin(&count);
        let mut piece = |others| {
            requests.fetch_add(1 + others, Ordering::Relaxed);
            let after = used() + 2 * MS;
            while used() < after {}
            let after = pacing.note_piece(1);
            pacing.go_on();
            after
        };
        assert_eq!(piece(0), PiecePause::NONE);
        let beside = piece(1);
        assert!(beside.pause >= 4 * MS, "{beside:?}");
        assert_eq!(beside.next_bytes, PIECE_BYTES_LEAST);
        // It goes on for a while.
        tokio::time::advance(OTHERS_WITHIN - MS).await;
        assert_ne!(piece(0), PiecePause::NONE);
        tokio::time::advance(MS).await;
        assert_eq!(piece(0), PiecePause::NONE);
    }
}
