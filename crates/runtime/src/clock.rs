//! The time that a script sees.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The source of a session's time.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum SessionTimeSource {
    /// Real time.
    System,
    /// Virtual time. It begins at these milliseconds since 1970 and advances only when a timer is
    /// due. Timers fire in their order when no call is in flight, without waiting.
    Virtual {
        /// Milliseconds since 1970-01-01T00:00:00Z.
        start_ms: i64,
    },
}

/// The clock of a running session.
#[derive(Debug)]
pub(crate) struct SessionClock {
    kind: SessionTimeSource,
    /// Milliseconds that a virtual clock has advanced since the session began.
    moved_ms: u64,
    since: Instant,
}

impl SessionClock {
    pub(crate) fn new(kind: SessionTimeSource) -> Self {
        Self {
            kind,
            moved_ms: 0,
            since: Instant::now(),
        }
    }

    pub(crate) const fn is_virtual(&self) -> bool {
        matches!(self.kind, SessionTimeSource::Virtual { .. })
    }

    /// Milliseconds since 1970, as `Date.now()` returns them.
    pub(crate) fn now_ms(&self) -> f64 {
        match self.kind {
            SessionTimeSource::Virtual { start_ms } => start_ms as f64 + self.moved_ms as f64,
            SessionTimeSource::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                // A clock that is set to a time before 1970 shows 1970.
                .map_or(0.0, |since| (since.as_millis() as f64).trunc()),
        }
    }

    /// Milliseconds since the session began, which never decrease.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        match self.kind {
            SessionTimeSource::Virtual { .. } => self.moved_ms,
            SessionTimeSource::System => {
                u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
            }
        }
    }

    /// Whole seconds of real time since the session began, also for a virtual clock.
    pub(crate) fn real_seconds(&self) -> u64 {
        self.since.elapsed().as_secs()
    }

    /// Advances a virtual clock to a timer's time; a real clock has advanced by itself.
    pub(crate) fn advance_to(&mut self, elapsed_ms: u64) {
        self.moved_ms = self.moved_ms.max(elapsed_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_clock_moves_only_by_advance_and_never_back() {
        let mut clock = SessionClock::new(SessionTimeSource::Virtual { start_ms: 1_000 });
        clock.advance_to(50);
        clock.advance_to(20);
        assert_eq!(clock.now_ms(), 1_050.0);
        assert_eq!(clock.elapsed_ms(), 50);
    }
}
