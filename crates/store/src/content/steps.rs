//! The steps of a commit, in the only order that is allowed.

use std::fmt;
use std::sync::Arc;

use alknet_objects::{ObjectDisk, SystemObjectDisk};

use crate::error::StoreError;

/// A step of a commit that has just ended. A name leads to a content only from [`CommitStep::Committed`] on, and its bytes
/// are durable since [`CommitStep::ObjectPlaced`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommitStep {
    /// All bytes are staged. Nothing of them is durable.
    StagingComplete,
    /// The object and its outboard are synced and have their names. Contents of a row skip this step.
    ObjectPlaced,
    /// The rows are written in a transaction that is open.
    RowsWritten,
    /// The transaction is durable. The client has no answer yet.
    Committed,
}

/// What is informed of each step. Tests end a commit at one of them, or copy the files as a power cut leaves them.
pub(crate) trait CommitObserver: fmt::Debug + Send + Sync {
    /// The step has ended. An error ends the commit there.
    fn observe_step(&self, step: CommitStep) -> Result<(), StoreError>;

    /// How files of contents get to the disk.
    fn disk(&self) -> Arc<dyn ObjectDisk> {
        Arc::new(SystemObjectDisk)
    }
}

/// Lets every commit go on.
#[derive(Debug)]
pub(crate) struct UnobservedCommits;

impl CommitObserver for UnobservedCommits {
    fn observe_step(&self, _: CommitStep) -> Result<(), StoreError> {
        Ok(())
    }
}
