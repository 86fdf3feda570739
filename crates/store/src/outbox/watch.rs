//! Waiting for events from a cursor on.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::read::{EventFilter, EventPage};
use crate::db::StoreDb;
use crate::error::StoreError;
use crate::limits::WATCH_PAUSE;

/// A resumable subscription. It keeps nothing in the file: the caller keeps the cursor and comes back with it, after a
/// restart too. It keeps the store open.
pub struct EventWatch {
    db: StoreDb,
    last_event: watch::Receiver<i64>,
    filter: EventFilter,
    cursor: i64,
    pace: WatchPace,
}

/// How often a watch reads. Every watch wakes up at each commit, and of most commits it takes nothing: without a pause,
/// many watches and one busy writer would keep all readers busy.
#[derive(Clone, Copy, Debug, Default)]
struct WatchPace {
    /// When the watch had read all events.
    ended: Option<Instant>,
}

impl WatchPace {
    /// Notes a read that came to the end of the outbox, or to no end.
    fn note_read(&mut self, now: Instant, is_end: bool) {
        self.ended = is_end.then_some(now);
    }

    /// How long the watch waits before its next read.
    fn pause(self, now: Instant) -> Duration {
        let passed = |ended| now.saturating_duration_since(ended);
        self.ended.map_or(Duration::ZERO, |ended| {
            WATCH_PAUSE.saturating_sub(passed(ended))
        })
    }
}

impl EventWatch {
    /// Number of the last event that the watch has looked at.
    #[must_use]
    pub const fn cursor(&self) -> i64 {
        self.cursor
    }

    /// The next events, at most `limit` of them; waits until there is one. A future that is dropped loses no event. It
    /// waits for `sleep` before a read that would come too soon after the one before: the store has no clock of its own
    /// that a task could wait for.
    ///
    /// # Errors
    /// [`StoreError::EventGap`] if the outbox has removed events before the watch read them; then every further call fails
    /// so too. [`StoreError::NotFound`] if the bucket of the filter was deleted. [`StoreError::Closed`] once the store is
    /// closed.
    pub async fn next_page<F: Future<Output = ()>>(
        &mut self,
        limit: usize,
        sleep: impl Fn(Duration) -> F,
    ) -> Result<EventPage, StoreError> {
        loop {
            let pause = self.pace.pause(Instant::now());
            if !pause.is_zero() {
                sleep(pause).await;
            }
            // Before the read: a commit between the read and the wait would go unnoticed
            // otherwise.
            self.last_event.mark_unchanged();
            let (cursor, filter) = (self.cursor, self.filter.clone());
            let read = self.db.read(move |tx| {
                if let Some(bucket) = filter.bucket {
                    // No event would ever end the watch of one that is gone.
                    tx.bucket(bucket)?;
                }
                tx.read_events(cursor, &filter, limit)
            });
            let page = read.await?;
            self.cursor = page.cursor;
            self.pace.note_read(Instant::now(), page.is_end);
            if !page.events.is_empty() {
                return Ok(page);
            }
            if page.is_end {
                let changed = self.last_event.changed().await;
                // The writer ends when the store is closed, and its sender goes with it.
                changed.map_err(|_| StoreError::Closed)?;
            }
        }
    }
}

impl fmt::Debug for EventWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventWatch")
            .field("cursor", &self.cursor)
            .field("filter", &self.filter)
            .finish_non_exhaustive()
    }
}

impl StoreDb {
    /// Watches the events behind `from`, or those from now on. The first page says whether there is a gap.
    #[must_use]
    pub fn watch_events(&self, filter: EventFilter, from: Option<i64>) -> EventWatch {
        let last_event = self.last_event();
        let cursor = from.unwrap_or_else(|| *last_event.borrow());
        EventWatch {
            db: self.clone(),
            last_event,
            filter,
            cursor,
            pace: WatchPace::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_one_pause_cost_one_read() {
        let start = Instant::now();
        let mut pace = WatchPace::default();
        assert_eq!(pace.pause(start), Duration::ZERO);
        pace.note_read(start, true);
        assert_eq!(pace.pause(start), WATCH_PAUSE);
        assert_eq!(pace.pause(start + WATCH_PAUSE / 4), WATCH_PAUSE * 3 / 4);
        assert_eq!(pace.pause(start + WATCH_PAUSE), Duration::ZERO);
        // A watch that is behind reads on.
        pace.note_read(start, false);
        assert_eq!(pace.pause(start), Duration::ZERO);
    }
}
