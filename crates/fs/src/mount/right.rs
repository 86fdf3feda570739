//! The right to a request that is under way.

use alknet_core::MountCaller;
use alknet_store::{BucketId, BucketName, ContentHash, StoreError, StoreObject};

use crate::recheck::RecheckPace;
use crate::requester::FsRequester;
use crate::rights::{FsRight, VisibleBuckets};

use super::DavFiles;
use super::call::CallerFiles;
use super::failure::DavFailure;

/// What a request that is under way needs a right to.
#[derive(Clone, Debug)]
pub(super) enum MountedObject {
    /// A bucket, by its name. With a number it is that bucket, and not a later one of the same name.
    Bucket {
        right: FsRight,
        name: BucketName,
        id: Option<BucketId>,
    },
    /// A content by its hash.
    Content(ContentHash),
    /// The list of the buckets that the caller may read, which are these.
    List(VisibleBuckets),
}

/// The right of a caller to a request that goes on: a download, a listing, an upload. The caller may lose it at any time, by
/// the end of its token, by other scopes, or because the bucket is deleted.
pub(super) struct MountRight<F> {
    files: CallerFiles<F>,
    caller: MountCaller,
    object: MountedObject,
    pace: RecheckPace,
}

impl<F: DavFiles> MountRight<F> {
    /// A right that was looked at just now.
    pub(super) fn new(files: CallerFiles<F>, caller: MountCaller, object: MountedObject) -> Self {
        Self {
            files,
            caller,
            object,
            pace: RecheckPace::new(),
        }
    }

    /// Notes bytes that are sent or were received.
    pub(super) const fn note_bytes(&mut self, bytes: usize) {
        self.pace.note_bytes(bytes);
    }

    /// Looks at the right again if that is due. Blocks.
    pub(super) fn check_if_due(&mut self) -> Result<(), DavFailure> {
        match self.pace.take_due() {
            true => self.check(),
            false => Ok(()),
        }
    }

    /// Looks at the right again. Blocks, if the object is in the store.
    pub(super) fn check(&self) -> Result<(), DavFailure> {
        // A caller that is gone has no right in any bucket.
        let gone = || StoreError::NotFound(StoreObject::Bucket);
        let identity = self.caller.identity_now().ok_or_else(gone)?;
        let requester = FsRequester::of_identity(identity);
        match &self.object {
            MountedObject::Bucket { right, name, id } => {
                requester.require(*right, name)?;
                if let Some(id) = *id {
                    let lease = self.files.open()?;
                    lease.read(move |tx| tx.bucket(id)).wait()?;
                }
                Ok(())
            }
            // With other buckets it is another list.
            MountedObject::List(buckets) => match requester.buckets(&[FsRight::Read]) == *buckets {
                true => Ok(()),
                false => Err(gone().into()),
            },
            MountedObject::Content(hash) => {
                let (hash, buckets) = (*hash, requester.buckets(&[FsRight::Read]));
                let lease = self.files.open()?;
                match lease
                    .read(move |tx| buckets.have_content(tx, hash))
                    .wait()?
                {
                    true => Ok(()),
                    false => Err(StoreError::NotFound(StoreObject::Content).into()),
                }
            }
        }
    }
}
