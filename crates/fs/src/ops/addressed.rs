//! From the texts of a request to what they mean: addresses with the right to use them, conditions, attributes.

use std::str::FromStr;

use alknet_store::{
    BranchId, BranchName, BucketId, BucketName, ContentHash, Durability, EntryAddress,
    EntryAttributes, EntryPrecondition, LockToken, ReadTransaction, StoreError, TreeVersion,
};
use serde::Deserialize;

use super::FsCall;
use super::shown::NS_PER_MS;
use crate::error::FsError;
use crate::path::parse_address;
use crate::rights::FsRight;

/// The head of a branch, which takes changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BranchTarget {
    pub(crate) bucket: BucketId,
    pub(crate) branch: BranchId,
    pub(crate) durability: Durability,
    pub(crate) is_protected: bool,
}

/// Members of an input that say what is expected at a path.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ConditionInput {
    if_match: Option<String>,
    if_none_match: Option<String>,
}

/// Members of an input that set attributes.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AttributesInput {
    mode: Option<u32>,
    mtime_ms: Option<i64>,
}

/// Members of an input that every change has.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CommitInput {
    pub(super) message: Option<String>,
    #[serde(default)]
    lock_tokens: Vec<String>,
}

impl FsCall {
    /// An address for which the caller has a right.
    pub(super) fn address(&self, right: FsRight, text: &str) -> Result<EntryAddress, FsError> {
        let address = parse_address(text)?;
        // Before any look-up: a bucket in which the caller has no right answers as one that does not exist.
        self.requester.require(right, &address.bucket)?;
        Ok(address)
    }

    /// The name of a bucket for which the caller has a right.
    pub(super) fn bucket(&self, right: FsRight, text: &str) -> Result<BucketName, FsError> {
        let bucket = text.parse::<BucketName>()?;
        self.requester.require(right, &bucket)?;
        Ok(bucket)
    }

    /// The branch that an address means, to be changed.
    pub(super) async fn head(&self, address: &EntryAddress) -> Result<BranchTarget, FsError> {
        let branch = head_name(address)?.clone();
        self.branch_target(address.bucket.clone(), branch).await
    }

    /// A branch by its names.
    pub(super) async fn branch_target(
        &self,
        bucket: BucketName,
        branch: BranchName,
    ) -> Result<BranchTarget, FsError> {
        self.read(move |tx| target(tx, &bucket, &branch)).await
    }

    /// The number of a bucket.
    pub(super) async fn bucket_id(&self, bucket: BucketName) -> Result<BucketId, FsError> {
        self.read(move |tx| Ok(tx.bucket_by_name(&bucket)?.id))
            .await
    }
}

/// The branch of an address that takes changes.
pub(crate) fn head_name(address: &EntryAddress) -> Result<&BranchName, FsError> {
    match &address.version {
        TreeVersion::Head(branch) => Ok(branch),
        TreeVersion::At(..) | TreeVersion::Snapshot(_) => {
            Err(StoreError::ReadOnly("only the head of a branch takes changes").into())
        }
    }
}

/// The branch with these names.
pub(crate) fn target(
    tx: &ReadTransaction<'_>,
    bucket: &BucketName,
    branch: &BranchName,
) -> Result<BranchTarget, StoreError> {
    let bucket = tx.bucket_by_name(bucket)?;
    let branch = tx.branch_by_name(bucket.id, branch)?;
    Ok(BranchTarget {
        bucket: bucket.id,
        branch: branch.id,
        durability: bucket.durability,
        is_protected: branch.is_protected,
    })
}

/// The branch of this name, or `main`.
pub(super) fn branch_or_main(text: Option<&str>) -> Result<BranchName, FsError> {
    match text {
        Some(text) => Ok(text.parse()?),
        None => Ok(BranchName::main()),
    }
}

/// A hash as requests write it.
pub(super) fn content_hash(text: &str) -> Result<ContentHash, FsError> {
    ContentHash::from_str(text).map_err(|error| FsError::input(error.to_string()))
}

impl ConditionInput {
    /// What is expected.
    pub(super) fn precondition(&self) -> Result<EntryPrecondition, FsError> {
        match (self.if_match.as_deref(), self.if_none_match.as_deref()) {
            (Some(_), Some(_)) => Err(FsError::input(
                "if_match and if_none_match contradict each other",
            )),
            // As in HTTP, the star is for any version.
            (Some("*"), None) => Ok(EntryPrecondition::Present),
            (Some(hash), None) => Ok(EntryPrecondition::Content(content_hash(hash)?)),
            (None, Some(_)) => Ok(EntryPrecondition::Absent),
            (None, None) => Ok(EntryPrecondition::Any),
        }
    }

    /// Whether the request says anything.
    pub(super) const fn is_given(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some()
    }
}

impl AttributesInput {
    pub(super) fn attributes(&self) -> EntryAttributes {
        EntryAttributes {
            mode: self.mode,
            mtime_ns: mtime_ns(self.mtime_ms),
            xattr: None,
        }
    }
}

/// The time in the unit of the store. The schema bounds it.
pub(super) fn mtime_ns(mtime_ms: Option<i64>) -> Option<i64> {
    mtime_ms.map(|ms| ms.saturating_mul(NS_PER_MS))
}

impl CommitInput {
    pub(super) fn tokens(&self) -> Result<Vec<LockToken>, FsError> {
        lock_tokens(&self.lock_tokens)
    }
}

pub(super) fn lock_tokens(texts: &[String]) -> Result<Vec<LockToken>, FsError> {
    let tokens = texts.iter().map(|text| text.parse::<LockToken>());
    Ok(tokens.collect::<Result<_, _>>()?)
}
