//! How slow a bundle may come before the node gives it up, and how long an offer waits.

use std::time::Duration;

use tokio::time::Instant;

use super::init_client::ANSWER_TIMEOUT;
use super::session::{
    ABORT_TIMEOUT, SESSION_IDLE, SESSION_RATE_BYTES_S_MIN, SESSION_RATE_GRACE, SESSION_TIME_MAX,
};
use super::stage::LOOK_TIMEOUT;

/// How slow a bundle may come, and how long an offer waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct StagingPace {
    /// The longest pause between two pieces.
    pub(super) idle: Duration,
    /// The longest time of the whole.
    pub(super) whole: Duration,
    /// Fewest bytes a second.
    pub(super) rate: u64,
    /// How far behind the rate it may be.
    pub(super) grace: Duration,
    /// How long PID 1 may take for a bundle that is complete.
    pub(super) answer: Duration,
    /// How long PID 1 may take to notice that a bundle was given up.
    pub(super) abort: Duration,
    /// How long PID 1 may take to read slots that have changed, while an offer of a hub waits.
    pub(super) slots: Duration,
}

impl Default for StagingPace {
    fn default() -> Self {
        Self {
            idle: SESSION_IDLE,
            whole: SESSION_TIME_MAX,
            rate: SESSION_RATE_BYTES_S_MIN,
            grace: SESSION_RATE_GRACE,
            answer: ANSWER_TIMEOUT,
            abort: ABORT_TIMEOUT,
            slots: LOOK_TIMEOUT,
        }
    }
}

impl StagingPace {
    /// When a session is given up unless another piece comes, and why. `piece` is when the last one came.
    pub(super) fn due(&self, (began, piece): (Instant, Instant), sent: u64) -> (Instant, String) {
        let rate = self.rate.max(1);
        let behind = began + self.grace + Duration::from_secs(sent / rate);
        let seconds = |time: Duration| time.as_secs();
        let all = [
            (
                piece + self.idle,
                format!("no piece came for {} s", seconds(self.idle)),
            ),
            (
                began + self.whole,
                format!("it did not come within {} s", seconds(self.whole)),
            ),
            (
                behind,
                format!("it comes with less than {rate} bytes a second"),
            ),
        ];
        let [first, more @ ..] = all;
        more.into_iter().fold(
            first,
            |least, other| if other.0 < least.0 { other } else { least },
        )
    }
}
