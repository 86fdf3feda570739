//! How many long files of a site are open at once. A client that reads nothing of an answer keeps its file open for as
//! long as the answer may wait.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::SITE_OPEN_FILES_RESERVED;

/// The files that may be open.
pub(super) struct OpenFilePermits {
    all: Arc<Semaphore>,
    unknown_peers: Arc<Semaphore>,
}

/// One of them. Dropping it gives it back.
pub(super) struct OpenFilePermit {
    _all: OwnedSemaphorePermit,
    _unknown_peers: Option<OwnedSemaphorePermit>,
}

impl OpenFilePermits {
    pub(super) fn new(most: usize) -> Self {
        let unknown_peers = most - most / SITE_OPEN_FILES_RESERVED;
        Self {
            all: Arc::new(Semaphore::new(most)),
            unknown_peers: Arc::new(Semaphore::new(unknown_peers)),
        }
    }

    /// `None` while as many are open as may be.
    pub(super) fn take(&self, is_unknown: bool) -> Option<OpenFilePermit> {
        let one = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned().ok();
        Some(OpenFilePermit {
            _unknown_peers: match is_unknown {
                true => Some(one(&self.unknown_peers)?),
                false => None,
            },
            _all: one(&self.all)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_peers_leave_files_to_known_ones() {
        let permits = OpenFilePermits::new(8);
        let take = |is_unknown| std::iter::from_fn(|| permits.take(is_unknown)).collect::<Vec<_>>();
        let unknown_peers = take(true);
        let known = take(false);
        assert_eq!((unknown_peers.len(), known.len()), (6, 2));
        drop(known);
        assert!(permits.take(true).is_none(), "they have all of theirs");
        drop(unknown_peers);
        assert_eq!(take(false).len(), 8);
        assert_eq!(take(true).len(), 6);
    }
}
