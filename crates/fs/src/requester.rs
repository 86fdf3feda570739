//! The caller of an operation or of the HTTP mount, and the script or operation that calls on its behalf.

use std::iter;
use std::sync::Arc;

use alknet_call::{CallError, Ctx, ErrorCode};
use alknet_core::{Identity, PeerId, ScopeSet};
use alknet_store::{BucketName, StoreError, StoreObject};

use crate::error::FsError;
use crate::rights::{FsRight, VisibleBuckets};

/// The caller's identity, and the scopes of the operation that calls on its behalf, if one does. Both need the scope: an
/// operation does not gain its caller's rights, and a caller does not gain the operation's.
#[derive(Clone, Debug)]
pub struct FsRequester {
    identity: Arc<Identity>,
    calls: Option<ScopeSet>,
}

impl FsRequester {
    /// An identity that asks by itself, over a protocol without operations.
    #[must_use]
    pub const fn of_identity(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            calls: None,
        }
    }

    /// The requester of a call.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` if the caller has no identity.
    pub fn from_ctx(ctx: &Ctx) -> Result<Self, FsError> {
        Self::with_identity(ctx, ctx.identity().cloned())
    }

    /// The requester of a call that is under way, with the scopes that its identity has by now.
    ///
    /// # Errors
    /// As for [`from_ctx`](Self::from_ctx).
    pub fn as_of_now(ctx: &Ctx) -> Result<Self, FsError> {
        Self::with_identity(ctx, ctx.identity_now())
    }

    fn with_identity(ctx: &Ctx, identity: Option<Arc<Identity>>) -> Result<Self, FsError> {
        let unknown = || CallError::new(ErrorCode::Unauthenticated, "files need an identity");
        let identity = identity.ok_or_else(unknown)?;
        let calls = match (ctx.internal(), ctx.calling_authority()) {
            (false, _) => None,
            (true, Some(authority)) => Some(authority.scopes.clone()),
            // An operation without an authority has no scopes, so it may reach nothing.
            (true, None) => Some(ScopeSet::default()),
        };
        Ok(Self { identity, calls })
    }

    /// Whether the caller may do this in a bucket, which need not exist.
    #[must_use]
    pub fn may(&self, right: FsRight, bucket: &BucketName) -> bool {
        self.scopes().all(|scopes| right.is_allowed(scopes, bucket))
    }

    /// Whether the caller has any right in a bucket. Otherwise the bucket does not exist for it.
    #[must_use]
    pub fn sees(&self, bucket: &BucketName) -> bool {
        FsRight::ALL.iter().any(|right| self.may(*right, bucket))
    }

    /// Refuses a call without this right. Nothing was looked up by then, so that the answer and its time do not depend on
    /// whether the bucket exists.
    ///
    /// # Errors
    /// `NOT_FOUND` for a bucket in which the caller has no right at all, `FORBIDDEN` otherwise.
    pub fn require(&self, right: FsRight, bucket: &BucketName) -> Result<(), FsError> {
        self.require_any(&[right], bucket)
    }

    /// The same for one of several rights. The error names the first one.
    ///
    /// # Errors
    /// As for [`require`](Self::require).
    pub fn require_any(&self, rights: &[FsRight], bucket: &BucketName) -> Result<(), FsError> {
        if rights.iter().any(|right| self.may(*right, bucket)) {
            return Ok(());
        }
        match rights.first().filter(|_| self.sees(bucket)) {
            Some(right) => Err(FsError::Forbidden(*right)),
            None => Err(StoreError::NotFound(StoreObject::Bucket).into()),
        }
    }

    /// Refuses a call without this right for every bucket.
    ///
    /// # Errors
    /// `FORBIDDEN`.
    pub fn require_everywhere(&self, right: FsRight) -> Result<(), FsError> {
        let is_allowed = |scopes| right.is_allowed_everywhere(scopes);
        match self.scopes().all(is_allowed) {
            true => Ok(()),
            false => Err(FsError::ForbiddenEverywhere(right)),
        }
    }

    /// The buckets in which the caller has one of these rights.
    #[must_use]
    pub fn buckets(&self, rights: &[FsRight]) -> VisibleBuckets {
        let all = self.scopes();
        let all = all.map(|scopes| VisibleBuckets::from_scopes(scopes, rights));
        all.fold(VisibleBuckets::All, VisibleBuckets::and)
    }

    /// Whether both may do the same.
    pub(crate) fn has_rights_of(&self, other: &Self) -> bool {
        self.scopes().eq(other.scopes())
    }

    /// The identity that quotas count for.
    #[must_use]
    pub fn id(&self) -> &PeerId {
        &self.identity.id
    }

    /// The name in histories and of sessions and locks.
    #[must_use]
    pub fn actor(&self) -> &str {
        self.identity.id.as_str()
    }

    fn scopes(&self) -> impl Iterator<Item = &ScopeSet> {
        iter::once(&self.identity.scopes).chain(&self.calls)
    }
}
