//! The bytes behind the names: what gets them.

use std::fmt;

use alknet_core::{BoxError, BoxFuture, PeerId};
use alknet_store::{BucketName, ContentHash};

/// Gets contents from peers.
pub trait ContentFetcher: fmt::Debug + Send + Sync + 'static {
    /// Gets a content that `peer` said to have, verifies it, and stores it. It may be here by now, or be fetched already.
    /// The session that asks drops the future when it ends.
    ///
    /// # Errors
    /// The peer does not give it. It stays wanted, and a later session asks again.
    fn fetch<'a>(
        &'a self,
        bucket: &'a BucketName,
        hash: ContentHash,
        peer: &'a PeerId,
    ) -> BoxFuture<'a, Result<(), BoxError>>;
}
