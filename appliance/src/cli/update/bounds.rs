//! What ends a command whose node or hub answers without an end.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::source::PIECE_BYTES_LEAST;
use crate::cli::{CommandError, CommandExit};
use crate::node::SESSION_TIME_MAX;

/// How long a node may take for the last piece: it writes, reads back and verifies the program meanwhile.
pub(super) const PIECE_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a whole bundle may take: a node gives its session up before.
const BUNDLE_TIME_MAX: Duration =
    Duration::from_secs(SESSION_TIME_MAX.as_secs() + PIECE_TIMEOUT.as_secs());
/// Answers in a row after which the receiver gets no further piece: they name another offset, or one that is hardly
/// higher.
const STALLED_MAX: u32 = 8;
/// How often an upload is taken up again after its connection was lost, without a whole piece in between.
const TRIES_MAX: u32 = 5;
/// How long a hub may say that its worker is away, without a whole piece in between. A worker notices within 45 s that
/// its connection is gone, and dials again after pauses of at most 30 s.
const AWAY_MAX: Duration = Duration::from_secs(300);

/// When a bundle has taken too long. Each answer may be progress, and the bundle have no end all the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct BundleDeadline(Instant);

impl BundleDeadline {
    pub(super) fn begin() -> Self {
        Self(Instant::now() + BUNDLE_TIME_MAX)
    }

    /// What comes of the work.
    ///
    /// # Errors
    /// The errors of the work; `TIMEOUT`: it took too long.
    pub(super) async fn finish<T>(
        self,
        work: impl Future<Output = Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        let done = timeout_at(self.0, work).await;
        done.unwrap_or_else(|_| {
            let seconds = BUNDLE_TIME_MAX.as_secs();
            let text = format!("the bundle did not come to its end within {seconds} s");
            Err(CommandError::new(CommandExit::Timeout, "TIMEOUT", text))
        })
    }
}

/// How far an upload is, by what its receiver says.
#[derive(Clone, Copy, Debug)]
pub(super) struct UploadOffset {
    /// What the receiver is, for errors.
    receiver: &'static str,
    /// Bytes of the bundle.
    bytes: u64,
    offset: u64,
    /// The highest offset that counts as progress: a whole piece beyond the one before.
    progress_offset: u64,
    /// Answers in a row without progress.
    stalled: u32,
}

impl UploadOffset {
    pub(super) const fn begin(receiver: &'static str, bytes: u64) -> Self {
        Self {
            receiver,
            bytes,
            offset: 0,
            progress_offset: 0,
            stalled: 0,
        }
    }

    /// Bytes of the bundle.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the next piece begins.
    pub(super) const fn value(&self) -> u64 {
        self.offset
    }

    /// The highest offset that counts as progress.
    pub(super) const fn progress_offset(&self) -> u64 {
        self.progress_offset
    }

    /// Whether the receiver has all bytes.
    pub(super) const fn is_end(&self) -> bool {
        self.offset >= self.bytes
    }

    /// Goes on at the offset that the receiver names. Returns whether this is progress.
    ///
    /// # Errors
    /// `PROTOCOL`: the bundle ends before this offset.
    pub(super) fn go_on_at(&mut self, offset: u64) -> Result<bool, CommandError> {
        if offset > self.bytes {
            let text = format!(
                "the {} says that it has {offset} bytes of a bundle of {}",
                self.receiver, self.bytes
            );
            return Err(CommandError::new(CommandExit::Failed, "PROTOCOL", text));
        }
        self.offset = offset;
        // Only the last piece may be shorter. An offset that falls and rises again is no progress either.
        let is_progress = offset.saturating_sub(self.progress_offset) >= PIECE_BYTES_LEAST as u64;
        if is_progress {
            self.progress_offset = offset;
        }
        Ok(is_progress)
    }

    /// Goes on at the offset in the answer to a piece.
    ///
    /// # Errors
    /// `PROTOCOL`: it is no higher one, or one of many that are hardly higher; the errors of [`Self::go_on_at`].
    pub(super) fn take_answer(&mut self, answer: &Value) -> Result<(), CommandError> {
        let next = answer["offset"].as_u64().filter(|next| *next > self.offset);
        let Some(next) = next else {
            return Err(self.takes_no_more());
        };
        match self.go_on_at(next)? {
            true => self.stalled = 0,
            false => self.stalled += 1,
        }
        match self.stalled > STALLED_MAX {
            true => Err(self.takes_no_more()),
            false => Ok(()),
        }
    }

    /// Goes on at the offset that a refusal of a piece names. Returns `false` after too many such refusals.
    ///
    /// # Errors
    /// The errors of [`Self::go_on_at`].
    pub(super) fn take_correction(&mut self, offset: u64) -> Result<bool, CommandError> {
        // A receiver that names other offsets in turn would let this command send for ever.
        if self.stalled >= STALLED_MAX {
            return Ok(false);
        }
        self.stalled += 1;
        self.go_on_at(offset)?;
        Ok(true)
    }

    /// The error of a receiver whose answers bring the upload no further.
    fn takes_no_more(&self) -> CommandError {
        let text = format!("the {} takes no more of the bundle", self.receiver);
        CommandError::new(CommandExit::Failed, "PROTOCOL", text)
    }
}

/// Which failures an upload has outlived since its last whole piece.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UploadPatience {
    failures: u32,
    /// How many of them were lost connections.
    lost: u32,
    /// When the hub said for the first time that the worker is away.
    away_since: Option<Instant>,
}

impl UploadPatience {
    /// How many failures there were.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure, of a connection, or of a worker that `is_away` from its hub. Returns whether it is one too
    /// many.
    pub(super) fn is_spent(&mut self, is_away: bool) -> bool {
        self.failures += 1;
        if is_away {
            // The hub answers at once, so that attempts are no measure of the time that the worker needs.
            let since = *self.away_since.get_or_insert_with(Instant::now);
            return since.elapsed() > AWAY_MAX;
        }
        self.lost += 1;
        self.lost > TRIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::sleep;

    use super::*;

    /// A node whose offset grows by less than a piece, or falls and rises again, brings the upload no further.
    #[test]
    fn only_a_piece_beyond_the_highest_offset_is_progress() {
        let piece = PIECE_BYTES_LEAST as u64;
        let mut sending = UploadOffset::begin("node", 9 * piece);
        for (offset, counted) in [
            (1, 0),
            (piece - 1, 0),
            (piece, piece),
            (0, piece),
            (2 * piece - 1, piece),
            (2 * piece, 2 * piece),
            (9 * piece, 9 * piece),
            (0, 9 * piece),
        ] {
            sending.go_on_at(offset).expect("within the bundle");
            assert_eq!((sending.offset, sending.progress_offset), (offset, counted));
        }
        assert!(!sending.is_end());
        sending.go_on_at(9 * piece).expect("the end");
        assert!(sending.is_end());
        for beyond in [9 * piece + 1, u64::MAX] {
            let refused = sending.go_on_at(beyond).expect_err("beyond the end");
            assert_eq!(refused.code, "PROTOCOL", "{refused}");
        }
    }

    /// The attack: each answer of a node is progress, and comes just before the command would give up waiting for it.
    #[tokio::test(start_paused = true)]
    async fn a_bundle_that_comes_on_without_an_end_is_left() {
        let mut sending = UploadOffset::begin("node", u64::MAX);
        let mut answers = 0_u64;
        let began = Instant::now();
        let upload = BundleDeadline::begin().finish(async {
            loop {
                sleep(PIECE_TIMEOUT - Duration::from_secs(1)).await;
                answers += 1;
                let offset = answers * PIECE_BYTES_LEAST as u64;
                sending.take_answer(&json!({ "offset": offset }))?;
            }
        });
        let ended: Result<(), CommandError> = upload.await;
        let ended = ended.expect_err("it has no end");
        assert_eq!(
            (ended.exit, &*ended.code),
            (CommandExit::Timeout, "TIMEOUT")
        );
        assert_eq!(began.elapsed().as_secs(), BUNDLE_TIME_MAX.as_secs());
        assert_eq!(answers, 13, "the answers of three hours and a quarter");
    }

    /// The attack: a hub says without an end that the worker is away, or breaks each connection.
    #[tokio::test(start_paused = true)]
    async fn an_upload_waits_for_a_worker_for_minutes_and_not_for_ever() {
        let mut patience = UploadPatience::default();
        let began = Instant::now();
        while !patience.is_spent(true) {
            sleep(Duration::from_secs(2)).await;
        }
        let waited = began.elapsed();
        assert!(waited >= AWAY_MAX && waited < 2 * AWAY_MAX, "{waited:?}");

        // A lost connection in between does not begin the time again, and neither do these count as one.
        let mut patience = UploadPatience::default();
        for _ in 0..TRIES_MAX {
            assert!(!patience.is_spent(true));
            assert!(!patience.is_spent(false));
            sleep(Duration::from_secs(2)).await;
        }
        assert!(patience.is_spent(false));
        sleep(AWAY_MAX).await;
        assert!(patience.is_spent(true));
        assert_eq!(patience.failures(), 2 * TRIES_MAX + 2);
    }
}
