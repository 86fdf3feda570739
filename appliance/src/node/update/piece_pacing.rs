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
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Bytes a second that a node takes however busy it is with other calls, if its sender and its processor can: no pause
/// is longer than a piece takes at this rate, and a piece that came slower is followed by a longer one.
const PACED_BYTES_S: u64 = 160 << 10;
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
    /// Requests that bring a piece.
    own: u64,
    /// The requests of the node until the last piece. None before the first one.
    requests: Option<u64>,
    /// The processor time of the node when the piece under way was asked for, and when that was.
    asked: (Duration, Instant),
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

    /// What follows a piece of so many bytes, for which the node worked so long, other calls included, and which came so
    /// long after it was asked for.
    fn after(bytes: usize, work: Duration, took: Duration) -> Self {
        let fitting = bytes as u128 * PIECE_WORK.as_nanos() / work.as_nanos().max(1);
        let fitting = usize::try_from(fitting).unwrap_or(PIECE_BYTES_MAX);
        let at_rate = took.as_secs_f64() * PACED_BYTES_S as f64;
        let paced = Duration::from_secs_f64(bytes as f64 / PACED_BYTES_S as f64);
        Self {
            pause: (work * PAUSE_OF_WORK).min(PAUSE_MAX).min(paced),
            next_bytes: fitting
                .max(at_rate as usize)
                .clamp(PIECE_BYTES_LEAST, PIECE_BYTES_MAX),
        }
    }
}

impl<'a> PiecePacing<'a> {
    /// For a bundle whose pieces a caller sends, or one that the node fetches itself.
    pub(super) fn begin(count: &'a RequestCount, by_calls: bool) -> Self {
        Self {
            count,
            own: u64::from(by_calls),
            requests: None,
            asked: (used(), Instant::now()),
            others: None,
        }
    }

    /// What follows a piece of so many bytes.
    pub(super) fn note_piece(&mut self, bytes: usize) -> PiecePause {
        let now = Instant::now();
        let requests = (self.count.0)();
        if let Some(before) = self.requests.replace(requests)
            && requests.wrapping_sub(before) > self.own
        {
            self.others = Some(now);
        }
        let is_beside = self
            .others
            .is_some_and(|at| now.duration_since(at) < OTHERS_WITHIN);
        let (used_before, asked) = self.asked;
        match is_beside {
            true => PiecePause::after(bytes, used().saturating_sub(used_before), now - asked),
            false => PiecePause::NONE,
        }
    }

    /// The next piece is asked for.
    pub(super) fn go_on(&mut self) {
        self.asked = (used(), Instant::now());
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
        let after = |bytes, work| {
            let PiecePause { pause, next_bytes } = PiecePause::after(bytes, work, work);
            (pause, next_bytes)
        };
        assert_eq!(after(128 << 10, 6 * MS), (12 * MS, 64 << 10));
        assert_eq!(after(64 << 10, 24 * MS), (48 * MS, PIECE_BYTES_LEAST));
    }

    #[test]
    fn a_quick_processor_is_given_long_pieces_at_once() {
        let after = PiecePause::after(256 << 10, MS, MS);
        assert_eq!((after.pause, after.next_bytes), (2 * MS, PIECE_BYTES_MAX));
        let none = PiecePause::after(1, Duration::ZERO, Duration::ZERO);
        assert_eq!(none, PiecePause::NONE);
    }

    /// Other callers keep the node busy, and an answer takes long. The bundle comes with the promised rate.
    #[test]
    fn a_busy_node_takes_a_bundle_at_its_rate() {
        for answer in [0, 20, 150, 400, 1_000, 1_500] {
            let answer = answer * MS;
            let (mut bytes, mut sent, mut took) = (PIECE_BYTES_LEAST, 0, Duration::ZERO);
            for _ in 0..1_000 {
                let after = PiecePause::after(bytes, 1_000 * MS, answer);
                sent += bytes;
                took += answer + after.pause;
                bytes = after.next_bytes;
            }
            // Half of the time may be pauses.
            let least = took.as_secs_f64() * PACED_BYTES_S as f64 / 2.0;
            assert!(sent as f64 >= least, "{answer:?}: {sent} of {least}");
        }
        // The same for short pieces of a download.
        let after = PiecePause::after(1 << 10, 1_000 * MS, Duration::ZERO);
        assert!(after.pause < 7 * MS, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_node_with_other_requests_takes_its_time() {
        for by_calls in [true, false] {
            let requests = Arc::new(AtomicU64::new(7));
            let counted = Arc::clone(&requests);
            let count = RequestCount::new(move || counted.load(Ordering::Relaxed));
            let mut pacing = PiecePacing::begin(&count, by_calls);
            // What the sender asked before does not count.
            requests.fetch_add(5, Ordering::Relaxed);
            let mut piece = |others: u64| {
                requests.fetch_add(u64::from(by_calls) + others, Ordering::Relaxed);
                let after = used() + 2 * MS;
                while used() < after {}
                let after = pacing.note_piece(64 << 10);
                pacing.go_on();
                after
            };
            for _ in 0..3 {
                assert_eq!(piece(0), PiecePause::NONE);
            }
            let beside = piece(1);
            assert!(beside.pause >= 4 * MS, "{beside:?}");
            // It goes on for a while.
            tokio::time::advance(OTHERS_WITHIN - MS).await;
            assert_ne!(piece(0), PiecePause::NONE);
            tokio::time::advance(MS).await;
            assert_eq!(piece(0), PiecePause::NONE);
        }
    }
}
