//! The bytes behind the names: whether a node asks for them at once, and who gets them.

use std::fmt;

use alknet_core::{BoxError, BoxFuture, PeerId};
use alknet_store::{BucketName, ContentHash};

/// When the content of a name that a peer made is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ContentFetchMode {
    /// As soon as the name is there.
    Eager,
    /// When the content is read.
    #[default]
    Lazy,
    /// Never: a read of a content that is not here fails.
    None,
}

impl ContentFetchMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Eager, Self::Lazy, Self::None];

    /// The name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
            Self::None => "none",
        }
    }

    /// The mode with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How the branches of a bucket are synchronised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncSettings {
    /// When contents are fetched.
    pub content: ContentFetchMode,
    /// Whether a file that loses against a concurrent version is put beside it under a name of its own. It is in the
    /// history in any case.
    pub keeps_both: bool,
}

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
