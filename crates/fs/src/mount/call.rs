//! One request: who asks, for what, and with which rights.

use std::sync::Arc;

use alknet_core::Identity;
use alknet_store::{
    BranchId, BucketName, Durability, EntryAddress, ReadTransaction, Store, StoreError,
    StoreObject, TreeVersion,
};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

use crate::dav::{DavTarget, RequestOrigin, TargetEntry};

use super::DavFiles;
use super::failure::DavFailure;
use super::uploads::PendingUploads;

/// A request to the mount.
pub(super) struct DavCall<F> {
    files: Arc<F>,
    uploads: Arc<PendingUploads>,
    identity: Arc<Identity>,
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
        identity: Arc<Identity>,
        parts: Parts,
    ) -> Result<Self, DavFailure> {
        Ok(Self {
            files: Arc::clone(files),
            uploads: Arc::clone(uploads),
            identity,
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

    pub(super) const fn files(&self) -> &Arc<F> {
        &self.files
    }

    pub(super) const fn uploads(&self) -> &Arc<PendingUploads> {
        &self.uploads
    }

    pub(super) const fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The name in histories, and of sessions and locks.
    pub(super) fn actor(&self) -> &str {
        self.identity.id.as_str()
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

    /// Refuses a caller that may not read a bucket. A bucket in which it has no right looks like one that does not exist.
    pub(super) fn require_read(&self, bucket: &BucketName) -> Result<(), DavFailure> {
        self.require(bucket, self.files.may_read(&self.identity, bucket))
    }

    /// The same for changes.
    pub(super) fn require_write(&self, bucket: &BucketName) -> Result<(), DavFailure> {
        self.require(bucket, self.files.may_write(&self.identity, bucket))
    }

    fn require(&self, bucket: &BucketName, is_allowed: bool) -> Result<(), DavFailure> {
        if is_allowed {
            return Ok(());
        }
        let is_visible = self.files.may_read(&self.identity, bucket)
            || self.files.may_write(&self.identity, bucket);
        Err(if is_visible {
            DavFailure::Status(StatusCode::FORBIDDEN)
        } else {
            StoreError::NotFound(StoreObject::Bucket).into()
        })
    }

    /// Runs work on the store, on a thread that may block.
    pub(super) async fn with_store<T, W>(&self, work: W) -> Result<T, DavFailure>
    where
        T: Send + 'static,
        W: FnOnce(&Store) -> Result<T, DavFailure> + Send + 'static,
    {
        let files = Arc::clone(&self.files);
        run_blocking(move || {
            let lease = open(&*files)?;
            work(&lease)
        })
        .await
    }
}

/// The store, for as long as a response reads it. Blocks.
pub(super) fn open<F: DavFiles>(files: &F) -> Result<F::Lease, DavFailure> {
    files
        .open()
        .ok_or(DavFailure::Status(StatusCode::SERVICE_UNAVAILABLE))
}

/// Runs work on a thread that may block.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DavFailure> + Send + 'static,
) -> Result<T, DavFailure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!("a request for files panicked: {error}");
            Err(DavFailure::Status(StatusCode::INTERNAL_SERVER_ERROR))
        }
    }
}
