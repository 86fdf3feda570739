//! The mount over the service, which opens the store when the first request comes and counts the requests that use it.

use alknet_core::BoxFuture;
use alknet_store::{BucketId, ContentHash};

use crate::error::FsError;
use crate::lease::StoreLease;
use crate::service::FsService;

use super::DavFiles;

impl DavFiles for FsService {
    type Lease = StoreLease;

    fn open(&self, identity: &str) -> Result<StoreLease, FsError> {
        self.open_for(identity)
    }

    fn fetch(&self, bucket: BucketId, hash: ContentHash) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(self.fetch_for_read(bucket, hash))
    }
}
