//! What the store has, in numbers for the metrics of a node.

use crate::error::FsError;
use crate::service::FsService;

/// Counts and bytes of the store. No name is among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsFigures {
    /// Buckets that are not deleted.
    pub buckets: u64,
    /// Versions of entries of all buckets, deletions left out.
    pub entries: u64,
    /// Bytes of contents. Those that two buckets have count twice, as their quotas do.
    pub content_bytes: u64,
    /// Bytes of open write sessions that their buckets already count.
    pub staged_bytes: u64,
    /// Open write sessions.
    pub sessions: u64,
    /// Open subscriptions to events.
    pub watches: u64,
}

impl FsService {
    /// Counts what the open store has. `None` while it is not open; this opens nothing.
    ///
    /// # Errors
    /// The database refuses the query.
    pub async fn measure(&self) -> Result<Option<FsFigures>, FsError> {
        // A store that cannot be opened is among the problems already.
        let Ok(Some(lease)) = self.opened() else {
            return Ok(None);
        };
        let (buckets, usage) = lease.read(|tx| tx.total_usage()).await?;
        Ok(Some(FsFigures {
            buckets,
            entries: usage.entries,
            content_bytes: usage.bytes,
            staged_bytes: usage.staged,
            sessions: lease.sessions().count() as u64,
            watches: self.watches().count() as u64,
        }))
    }
}
