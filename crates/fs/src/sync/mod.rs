//! Synchronisation of names between nodes.
//!
//! Each synchronised branch has a document: a map from paths to values, which every node changes by itself and which merges
//! without a leader. Of the values that writers gave a path concurrently, the one with the greatest hybrid timestamp counts
//! on every node; the others are in the history. The bytes of files are no part of it: a [`ContentFetcher`] gets them.
//!
//! [`SyncService`] serves the protocol `alknet/fs-sync` and opens sessions. A peer that may synchronise a bucket may write
//! anything in its branches; what it sends is measured, checked and merged in a transaction that all of it or nothing goes
//! through. An error ends the session, and the document stays as it was.

mod branch;
mod content;
mod document;
mod entry;
mod error;
mod incoming;
pub mod limits;
mod message;
mod metrics;
mod pauses;
mod service;
mod session;
mod unpack;

pub use content::{ContentFetchMode, ContentFetcher, SyncSettings};
pub use entry::{InvalidEntry, SyncActor, SyncedEntry};
pub use error::{ByeCode, SyncError};
pub use message::{PROTOCOL_VERSION, SyncHello, SyncMessage};
pub use metrics::SyncCounters;
pub use service::{SYNC_ALPN, SyncDialer, SyncOptions, SyncService};
pub use session::SyncMode;
pub use unpack::{UnpackedSize, measure_changes};

#[cfg(test)]
mod tests;
