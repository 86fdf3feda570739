//! Synchronisation of names between nodes.
//!
//! Each synchronised branch has a document: a map from paths to values, which every node changes by itself and which merges
//! without a leader. Of the values that writers gave a path concurrently, the one with the greatest hybrid timestamp counts
//! on every node; the others are in the history. The bytes of files are no part of it: a [`ContentFetcher`] gets them.
//!
//! A bucket that is split has a document for each name in the root of a branch, because one document has a limited number of
//! paths.
//!
//! [`SyncService`] serves the protocol `alknet/fs-sync` and opens sessions. A peer that may synchronise a bucket may write
//! anything in its branches; what it sends is measured, checked and merged in a transaction that all of it or nothing goes
//! through. An error ends the session, and the document stays as it was.

mod branch;
mod content;
mod document;
mod entry;
mod error;
mod eviction;
mod fetcher;
mod incoming;
pub mod limits;
mod message;
mod metrics;
mod opening;
mod pauses;
mod permits;
mod records;
mod rights;
mod rounds;
mod service;
mod session;
mod tops;
mod unpack;

pub use content::ContentFetcher;
pub use entry::{InvalidEntry, SyncActor, SyncedEntry};
pub use error::{ByeCode, SyncError};
pub use fetcher::PeerContentFetcher;
pub use message::{
    PROTOCOL_VERSION, SyncHello, SyncMessage, SyncPart, UNKNOWN_HEADS, heads_digest,
};
pub use metrics::SyncCounters;
pub use opening::SyncDialer;
pub(crate) use records::SyncRecords;
pub use records::{SyncRecord, SyncTarget};
pub use service::{SYNC_ALPN, SyncOptions, SyncService};
pub use session::SyncMode;
pub use unpack::{UnpackedSize, measure_changes};

#[cfg(test)]
mod tests;
