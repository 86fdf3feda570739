//! One request: who asks, for what, and with which rights.

use std::sync::Arc;

use alknet_core::{BoxFuture, MountCaller, PeerId};
use alknet_store::{
    BranchId, BucketId, BucketName, ContentHash, Durability, EntryAddress, ReadTransaction, Store,
    StoreError, TreeVersion,
};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

use crate::dav::{DavTarget, RequestOrigin, TargetEntry};
use crate::error::FsError;
use crate::requester::FsRequester;
use crate::rights::FsRight;

use super::DavFiles;
use super::failure::DavFailure;
use super::right::{MountRight, MountedObject};
use super::uploads::PendingUploads;

/// The files that a request is about, read for its caller.
pub(super) struct CallerFiles<F> {
    files: Arc<F>,
    identity: PeerId,
}

impl<F: DavFiles> CallerFiles<F> {
    /// The store. Blocks.
    pub(super) fn open(&self) -> Result<F::Lease, FsError> {
        self.files.open(self.identity.as_str())
    }

    /// Gets a content that a bucket waits for, or that is damaged here, from other nodes.
    pub(super) fn fetch(
        &self,
        bucket: BucketId,
        hash: ContentHash,
    ) -> BoxFuture<'_, Result<(), FsError>> {
        self.files.fetch(bucket, hash)
    }
}

impl<F> Clone for CallerFiles<F> {
    fn clone(&self) -> Self {
        Self {
            files: Arc::clone(&self.files),
            identity: self.identity.clone(),
        }
    }
}

/// A request to the mount.
pub(super) struct DavCall<F> {
    files: CallerFiles<F>,
    uploads: Arc<PendingUploads>,
    requester: FsRequester,
    caller: MountCaller,
    parts: Parts,
    target: DavTarget,
}

/// The head of a branch, which takes changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct DavBranch {
    pub(super) branch: BranchId,
    pub(super) durability: Durability,
}

impl DavBranch {
    /// The branch that an address means.
    pub(super) fn find(
        tx: &ReadTransaction<'_>,
        address: &EntryAddress,
    ) -> Result<Self, StoreError> {
        // Before any look-up: a former version takes no change, whether its bucket exists or not.
        let TreeVersion::Head(branch) = &address.version else {
            return Err(StoreError::ReadOnly(
                "only the head of a branch takes changes",
            ));
        };
        let bucket = tx.bucket_by_name(&address.bucket)?;
        let branch = tx.branch_by_name(bucket.id, branch)?;
        Ok(Self {
            branch: branch.id,
            durability: bucket.durability,
        })
    }
}

impl<F: DavFiles> DavCall<F> {
    pub(super) fn new(
        (files, uploads): (&Arc<F>, &Arc<PendingUploads>),
        (requester, caller): (FsRequester, &MountCaller),
        parts: Parts,
    ) -> Result<Self, DavFailure> {
        Ok(Self {
            files: CallerFiles {
                files: Arc::clone(files),
                identity: requester.id().clone(),
            },
            uploads: Arc::clone(uploads),
            requester,
            caller: caller.clone(),
            target: DavTarget::parse(parts.uri.path())?,
            parts,
        })
    }

    pub(super) const fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(super) const fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(super) const fn target(&self) -> &DavTarget {
        &self.target
    }

    pub(super) const fn files(&self) -> &CallerFiles<F> {
        &self.files
    }

    pub(super) const fn uploads(&self) -> &Arc<PendingUploads> {
        &self.uploads
    }

    pub(super) const fn requester(&self) -> &FsRequester {
        &self.requester
    }

    /// The right to an object, which was looked at, for as long as the request goes on.
    pub(super) fn right_to(&self, object: MountedObject) -> MountRight<F> {
        MountRight::new(self.files.clone(), self.caller.clone(), object)
    }

    /// The name in histories, and of sessions and locks.
    pub(super) fn actor(&self) -> &str {
        self.requester.actor()
    }

    /// The host that the request was sent to.
    pub(super) fn origin(&self) -> Result<RequestOrigin, DavFailure> {
        RequestOrigin::from_parts(&self.parts).ok_or(DavFailure::Status(StatusCode::BAD_REQUEST))
    }

    /// The entry that the request is for. Other resources of the mount take reads only.
    pub(super) fn entry(&self) -> Result<&TargetEntry, DavFailure> {
        match &self.target {
            DavTarget::Entry(entry) => Ok(entry),
            _ => Err(DavFailure::Status(StatusCode::METHOD_NOT_ALLOWED)),
        }
    }

    /// Refuses a caller that may not read a bucket. Nothing is looked up, so that a bucket in which the caller has no right
    /// answers as one that does not exist.
    pub(super) fn require_read(&self, bucket: &BucketName) -> Result<(), DavFailure> {
        Ok(self.requester.require(FsRight::Read, bucket)?)
    }

    /// The same for changes.
    pub(super) fn require_write(&self, bucket: &BucketName) -> Result<(), DavFailure> {
        Ok(self.requester.require(FsRight::Write, bucket)?)
    }

    /// Runs work on the store, on a thread that may block.
    pub(super) async fn with_store<T, W>(&self, work: W) -> Result<T, DavFailure>
    where
        T: Send + 'static,
        W: FnOnce(&Store) -> Result<T, DavFailure> + Send + 'static,
    {
        let files = self.files.clone();
        run_blocking(move || {
            // The first request opens the store, which can take seconds after a power cut.
            let lease = files.open()?;
            work(&lease)
        })
        .await
    }
}

/// Runs work on a thread that may block.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DavFailure> + Send + 'static,
) -> Result<T, DavFailure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => {
            // The panic ends this request. Its text may name a file, and stays out of the answer and of this record.
            tracing::error!("a request for files panicked");
            Err(DavFailure::Status(StatusCode::INTERNAL_SERVER_ERROR))
        }
    }
}
