//! Waiting for events from a cursor on.

use std::fmt;

use tokio::sync::watch;

use super::read::{EventFilter, EventPage};
use crate::db::StoreDb;
use crate::error::StoreError;

/// A resumable subscription. It keeps nothing in the file: the caller keeps the cursor and comes back with it, after a
/// restart too. It keeps the store open.
pub struct EventWatch {
    db: StoreDb,
    last_event: watch::Receiver<i64>,
    filter: EventFilter,
    cursor: i64,
}

impl EventWatch {
    /// Number of the last event that the watch has looked at.
    #[must_use]
    pub const fn cursor(&self) -> i64 {
        self.cursor
    }

    /// The next events, at most `limit` of them; waits until there is one. A future that is dropped loses no event.
    ///
    /// # Errors
    /// [`StoreError::EventGap`] if the outbox has removed events before the watch read them; then every further call fails
    /// so too. [`StoreError::Closed`] once the store is closed.
    pub async fn next_page(&mut self, limit: usize) -> Result<EventPage, StoreError> {
        loop {
            // Before the read: a commit between the read and the wait would go unnoticed
            // otherwise.
            self.last_event.mark_unchanged();
            let (cursor, filter) = (self.cursor, self.filter.clone());
            let read = self
                .db
                .read(move |tx| tx.read_events(cursor, &filter, limit));
            let page = read.await?;
            self.cursor = page.cursor;
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
        }
    }
}
