//! Contents of new names, over the protocol of blobs.

use alknet_core::{BoxError, BoxFuture, PeerId};
use alknet_store::{BucketName, ContentHash};

use super::content::ContentFetcher;
use crate::service::FsService;

/// Gets contents from peers for the files of a service, each once at a time. A peer that sent wrong bytes is not asked for
/// a time.
#[derive(Clone, Debug)]
pub struct PeerContentFetcher(FsService);

impl PeerContentFetcher {
    /// Gets contents for the buckets of this service, from the peers that it was given.
    #[must_use]
    pub const fn new(files: FsService) -> Self {
        Self(files)
    }
}

impl ContentFetcher for PeerContentFetcher {
    fn fetch<'a>(
        &'a self,
        bucket: &'a BucketName,
        hash: ContentHash,
        peer: &'a PeerId,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move {
            let fetched = self.0.fetch_content(bucket, hash, vec![peer.clone()]);
            fetched.await.map_err(BoxError::from)
        })
    }
}
