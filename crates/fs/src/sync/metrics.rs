//! What the synchronisation did since the start of the node.

use alknet_core::metrics::Counter;

/// Numbers since the start of the node.
#[derive(Debug, Default)]
pub struct SyncCounters {
    /// Messages of peers that were merged.
    pub merges: Counter,
    /// Messages of peers whose merge failed. Nothing of them was taken in.
    pub failed_merges: Counter,
    /// Entries of peers that were left out because they break a rule.
    pub refused_entries: Counter,
    /// Sessions that began with both hellos.
    pub sessions: Counter,
    /// Sessions that ended with an error.
    pub failed_sessions: Counter,
    /// Sessions that were refused because of a limit or a pause.
    pub refused_sessions: Counter,
}
