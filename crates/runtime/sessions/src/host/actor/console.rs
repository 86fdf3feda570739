//! The console of a session, which goes to the log and to its listener.

use std::time::{Duration, Instant};

use alknet_runtime::ConsoleLevel;

use super::SessionActor;
use crate::host::SessionConsoleLine;
use crate::limits::{LOG_BYTES_PER_S, LOG_LINE_EXTRA_BYTES};

/// Target of the lines of scripts in the log: a script writes as many as it likes, so the log counts them by `owner`.
pub const CONSOLE_TARGET: &str = "alknet_sessions::console";

impl SessionActor {
    pub(super) fn line(&mut self, level: ConsoleLevel, text: String) {
        let bytes = text.len() as u64;
        if !self.log.takes(bytes + LOG_LINE_EXTRA_BYTES) {
            self.shared.count_dropped(bytes);
            return;
        }
        let session = self.shared.id();
        let owner = self.shared.tenant();
        let owner = owner.as_str();
        // An error of a script is no error of the node.
        match level {
            ConsoleLevel::Error | ConsoleLevel::Warn => {
                tracing::info!(target: CONSOLE_TARGET, session, owner, ?level, "script: {text}")
            }
            _ => tracing::debug!(target: CONSOLE_TARGET, session, owner, ?level, "script: {text}"),
        }
        if let Some(console) = &self.console {
            // The log has the lines that the listener does not take in time.
            let _ = console.try_send(SessionConsoleLine { level, text });
        }
    }
}

/// The bytes of console output per second.
pub(super) struct LogBudget {
    since: Instant,
    left: u64,
}

impl LogBudget {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            left: LOG_BYTES_PER_S,
        }
    }

    fn takes(&mut self, bytes: u64) -> bool {
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Self::new();
        }
        let left = self.left.checked_sub(bytes);
        // A line that is too long uses up nothing, because a shorter one may still fit.
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_console_holds_what_it_may() {
        let mut log = LogBudget::new();
        assert!(log.takes(LOG_BYTES_PER_S - 1));
        assert!(!log.takes(2) && log.takes(1) && !log.takes(1));
        log.since -= Duration::from_secs(1);
        assert!(log.takes(LOG_BYTES_PER_S));
    }
}
