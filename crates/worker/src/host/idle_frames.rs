//! Frames of a worker that begin and end nothing. Each costs the supervisor's one thread the time to decode it, and the
//! worker next to none.

use crate::limits::{
    CALLS_IN_MAX, IDLE_FRAMES_OF_CALL, IDLE_FRAMES_OF_CALL_PER_S, IDLE_FRAMES_PER_S,
};

const US_PER_S: u64 = 1_000_000;

/// A token bucket of such frames. Times are microseconds.
#[derive(Debug)]
pub(super) struct IdleFrames {
    /// Frames, in millionths.
    left: u64,
    at: u64,
}

impl Default for IdleFrames {
    fn default() -> Self {
        let left = Self::MOST;
        Self { left, at: 0 }
    }
}

impl IdleFrames {
    /// Room for two seconds of a worker without a call.
    const MOST: u64 = 2 * IDLE_FRAMES_PER_S * US_PER_S;

    /// A call begins.
    pub(super) fn begun(&mut self) {
        let left = self.left.saturating_add(IDLE_FRAMES_OF_CALL * US_PER_S);
        // A worker that answers many calls at once saves nothing for later.
        self.left = left.min(Self::MOST + CALLS_IN_MAX as u64 * IDLE_FRAMES_OF_CALL * US_PER_S);
    }

    /// Counts a frame of a worker in which `calls` run. Returns false if that is one too many.
    pub(super) fn take(&mut self, now: u64, calls: usize) -> bool {
        let rate = IDLE_FRAMES_PER_S + IDLE_FRAMES_OF_CALL_PER_S * calls as u64;
        let since = now.saturating_sub(self.at);
        self.at = now;
        // What calls brought beyond the most stays, and time adds nothing to it.
        let most = self.left.max(2 * rate * US_PER_S);
        self.left = self
            .left
            .saturating_add(since.saturating_mul(rate))
            .min(most);
        let rest = self.left.checked_sub(US_PER_S);
        self.left = rest.unwrap_or(self.left);
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HEARTBEAT_EVERY;

    #[test]
    fn heartbeats_of_all_calls_pass_and_a_flood_does_not() {
        let mut frames = IdleFrames::default();
        let every = u64::try_from(HEARTBEAT_EVERY.as_micros()).expect("short");
        for beat in 0..500 {
            for _ in 0..CALLS_IN_MAX {
                assert!(frames.take(beat * every, CALLS_IN_MAX), "{beat}");
            }
        }
        let mut frames = IdleFrames::default();
        let passed = (0..100_000).filter(|_| frames.take(0, 0)).count() as u64;
        assert_eq!(passed, 2 * IDLE_FRAMES_PER_S);
        assert!(frames.take(US_PER_S / IDLE_FRAMES_PER_S, 0));
        assert!(!frames.take(US_PER_S / IDLE_FRAMES_PER_S, 0));
    }
}
