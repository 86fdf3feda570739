//! How often the node asks again for the right to a transfer that is under way.

use std::time::{Duration, Instant};

use crate::limits::{RIGHT_CHECK_BYTES, RIGHT_CHECK_TIME};

/// Says when the right to a transfer is to be looked at again: after so many bytes, and after so long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecheckPace {
    /// Bytes since the last look.
    bytes: u64,
    since: Instant,
}

impl RecheckPace {
    /// A transfer to which the right was looked at just now.
    pub(crate) fn new() -> Self {
        Self {
            bytes: 0,
            since: Instant::now(),
        }
    }

    /// Notes bytes that are sent or were received.
    pub(crate) const fn note_bytes(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Whether the next look is due. If it is, the pace begins again.
    pub(crate) fn take_due(&mut self) -> bool {
        let is_due = self.is_due(self.since.elapsed());
        if is_due {
            *self = Self::new();
        }
        is_due
    }

    fn is_due(&self, passed: Duration) -> bool {
        // A client that reads slowly gets few bytes in a long time, and a fast one many in a short time.
        self.bytes >= RIGHT_CHECK_BYTES || passed >= RIGHT_CHECK_TIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_due_after_so_many_bytes_or_so_long() {
        let mut pace = RecheckPace::new();
        assert!(!pace.is_due(Duration::ZERO));
        assert!(!pace.is_due(RIGHT_CHECK_TIME - Duration::from_millis(1)));
        assert!(pace.is_due(RIGHT_CHECK_TIME));
        let most = usize::try_from(RIGHT_CHECK_BYTES).expect("small");
        pace.note_bytes(most - 1);
        assert!(!pace.is_due(Duration::ZERO));
        pace.note_bytes(1);
        assert!(pace.is_due(Duration::ZERO));
        assert!(pace.take_due());
        assert_eq!(pace.bytes, 0);
    }
}
