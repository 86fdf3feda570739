//! Who gets a content by its hash.

use std::sync::Arc;

use alknet_core::{Connection, Identity, PeerKey};
use alknet_store::{ContentHash, ContentShareId, ContentStatus, Store, StoreError};

use crate::rights::{FsRight, VisibleBuckets};

/// The client of a connection: an identity that the node knows, or the holder of a key with which contents may be shared.
#[derive(Clone, Debug)]
pub(super) struct BlobClient {
    identity: Option<Arc<Identity>>,
    /// The key that the TLS client proved, as shares have it.
    key: Option<Arc<str>>,
}

/// How a client may have a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobAccess {
    /// A bucket of the identity wants it, and has no right to the bytes.
    Announced {
        /// Bytes by the word of the announcement.
        size: u64,
    },
    /// A bucket of the identity has it.
    Bucket,
    /// It is shared with the key.
    Share,
}

/// For what a content is sent to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobGrant {
    /// A bucket of the identity has it.
    Bucket,
    /// This share with the key, which counted the request.
    Share(ContentShareId),
}

impl BlobClient {
    /// The client at this time: its identity may change while the connection lasts.
    pub(super) fn from_connection(connection: &Connection, key: Option<&PeerKey>) -> Self {
        Self {
            identity: connection.identity(),
            key: key.map(|key| key.to_string().into()),
        }
    }

    /// The name by which its rate is counted.
    pub(super) fn name(&self) -> &str {
        match (&self.identity, &self.key) {
            (Some(identity), _) => identity.id.as_str(),
            (None, Some(key)) => key,
            (None, None) => "",
        }
    }

    /// Whether the client has the rights of this one.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        // The key of a connection stays, so that only the identity can differ. A change of another one makes another object
        // with the same scopes, for which the store need not be asked.
        match (&self.identity, &other.identity) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other) || own.scopes == other.scopes,
            (None, None) => true,
            _ => false,
        }
    }

    /// Whether the client can have any content at all. Blocks.
    pub(super) fn may_have_any(&self, store: &Store) -> Result<bool, StoreError> {
        if self.identity.is_some() {
            return Ok(true);
        }
        let Some(key) = self.key.clone() else {
            return Ok(false);
        };
        let now_ms = store.db().unix_ms();
        store.read(move |tx| tx.has_any_share(&key, now_ms)).wait()
    }

    /// How the client may have a content, if at all. A content that exists and may not be had takes the same look-ups as one
    /// that does not exist. Blocks.
    pub(super) fn access(
        &self,
        store: &Store,
        hash: ContentHash,
    ) -> Result<Option<BlobAccess>, StoreError> {
        let identity = self.identity.as_deref();
        let buckets = identity.map(|it| VisibleBuckets::from_scopes(&it.scopes, &[FsRight::Read]));
        let key = self.key.clone();
        let now_ms = store.db().unix_ms();
        // One transaction, so that no bucket is deleted between the two look-ups.
        let found = store.read(move |tx| {
            let known = match &buckets {
                Some(buckets) => buckets.content_status(tx, hash)?,
                None => ContentStatus::Missing,
            };
            let announced = match known {
                ContentStatus::Complete { .. } | ContentStatus::Bad { .. } => {
                    return Ok(Some(BlobAccess::Bucket));
                }
                ContentStatus::Wanted { size } | ContentStatus::Partial { size } => {
                    Some(BlobAccess::Announced { size })
                }
                ContentStatus::Missing => None,
            };
            // Asked for unknown contents too: otherwise the time would tell which exist.
            let is_shared = match &key {
                Some(key) => tx.has_share(key, hash, 0, now_ms)?,
                None => false,
            };
            Ok(is_shared.then_some(BlobAccess::Share).or(announced))
        });
        found.wait()
    }

    /// Whether the client may have the rest of a content. A request for which a bucket stood does not go over to a share,
    /// which would not count it, nor from one share to another one. Blocks.
    pub(super) fn may_go_on(
        &self,
        store: &Store,
        hash: ContentHash,
        grant: BlobGrant,
    ) -> Result<bool, StoreError> {
        if let BlobGrant::Share(share) = grant {
            let now_ms = store.db().unix_ms();
            let lasts = store.read(move |tx| tx.share_lasts(share, now_ms));
            if lasts.wait()? {
                return Ok(true);
            }
        }
        Ok(self.access(store, hash)? == Some(BlobAccess::Bucket))
    }

    /// Takes a request for this many bytes of a content from a share. Returns the one that allows it. Blocks.
    pub(super) fn use_share(
        &self,
        store: &Store,
        hash: ContentHash,
        bytes: u64,
    ) -> Result<Option<ContentShareId>, StoreError> {
        let Some(key) = self.key.clone() else {
            return Ok(None);
        };
        store
            .write(move |tx| tx.use_share(&key, hash, bytes))
            .wait()
    }
}
