//! What a caller may do, by its scopes: `fs:RIGHT:BUCKET`, or `fs:RIGHT:*` for every bucket.

use std::collections::BTreeSet;
use std::fmt;

use alknet_core::ScopeSet;
use alknet_store::{Bucket, BucketName, ContentHash, ContentStatus, ReadTransaction, StoreError};

/// What a caller wants to do in a bucket.
///
/// ```
/// use alknet_core::ScopeSet;
/// use alknet_fs::FsRight;
///
/// let scopes: ScopeSet = ["fs:read:docs"].into_iter().collect();
/// let docs = "docs".parse().expect("a name");
/// assert!(FsRight::Read.is_allowed(&scopes, &docs));
/// assert!(!FsRight::Write.is_allowed(&scopes, &docs));
/// assert!(!FsRight::Read.is_allowed_everywhere(&scopes));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FsRight {
    /// Make, change and delete buckets, delete branches with their snapshots, pin contents: `fs:admin:…`.
    Admin,
    /// Merge into protected branches: `fs:merge:…`.
    Merge,
    /// Send contents by the protocol of blobs: `fs:push:…`. The node takes none over it yet, so that the right lets a
    /// caller see that a bucket exists, and nothing else.
    Push,
    /// See names and contents: `fs:read:…`.
    Read,
    /// Exchange names and contents with peers: `fs:sync:…`.
    Sync,
    /// Change names and contents: `fs:write:…`.
    Write,
}

impl FsRight {
    /// Every right.
    pub const ALL: [Self; 6] = [
        Self::Admin,
        Self::Merge,
        Self::Push,
        Self::Read,
        Self::Sync,
        Self::Write,
    ];

    /// What the scopes of the right begin with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Admin => "fs:admin:",
            Self::Merge => "fs:merge:",
            Self::Push => "fs:push:",
            Self::Read => "fs:read:",
            Self::Sync => "fs:sync:",
            Self::Write => "fs:write:",
        }
    }

    /// Whether `scopes` allow this in a bucket.
    #[must_use]
    pub fn is_allowed(self, scopes: &ScopeSet, bucket: &BucketName) -> bool {
        scopes.allows(&format!("{}{bucket}", self.prefix()))
    }

    /// Whether `scopes` allow this in every bucket.
    #[must_use]
    pub fn is_allowed_everywhere(self, scopes: &ScopeSet) -> bool {
        // No bucket has this name, so that only a scope for all of them allows it.
        scopes.allows(&format!("{}*", self.prefix()))
    }
}

impl fmt::Display for FsRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "administer",
            Self::Merge => "merge into",
            Self::Push => "push to",
            Self::Read => "read",
            Self::Sync => "synchronise",
            Self::Write => "write to",
        })
    }
}

/// The buckets for which a caller has a right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VisibleBuckets {
    /// Every bucket.
    All,
    /// These, which need not exist.
    Named(BTreeSet<BucketName>),
}

impl VisibleBuckets {
    /// The buckets for which `scopes` give one of these rights.
    #[must_use]
    pub fn from_scopes(scopes: &ScopeSet, rights: &[FsRight]) -> Self {
        let is_all = |right: &FsRight| right.is_allowed_everywhere(scopes);
        if rights.iter().any(is_all) {
            return Self::All;
        }
        let texts = Vec::<String>::from(scopes.clone());
        let bucket = |text: &String| {
            let names = rights
                .iter()
                .filter_map(|it| text.strip_prefix(it.prefix()));
            // A text that is no name of a bucket leads to none.
            names.filter_map(|it| BucketName::parse(it).ok()).next()
        };
        Self::Named(texts.iter().filter_map(bucket).collect())
    }

    /// The buckets that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, one) | (one, Self::All) => one,
            (Self::Named(ours), Self::Named(theirs)) => {
                Self::Named(ours.intersection(&theirs).cloned().collect())
            }
        }
    }

    /// Whether a bucket is among them.
    #[must_use]
    pub fn contains(&self, bucket: &BucketName) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(bucket),
        }
    }

    /// Those that exist, in the order of their names, behind one name and at most as many. The others are not looked at,
    /// so that the time does not depend on their number.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn existing(
        &self,
        tx: &ReadTransaction<'_>,
        after: Option<&BucketName>,
        limit: usize,
    ) -> Result<Vec<Bucket>, StoreError> {
        let names = match self {
            Self::All => return tx.buckets(after, limit),
            Self::Named(names) => names,
        };
        let behind = names
            .iter()
            .filter(|name| after.is_none_or(|after| *name > after));
        let mut found = Vec::new();
        for name in behind {
            if found.len() >= limit {
                break;
            }
            match tx.bucket_by_name(name) {
                Ok(bucket) => found.push(bucket),
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// What they know of a content. A hash is no capability: the caller gets what one of its buckets has, and every other
    /// hash looks like one that no bucket has. Neither is a name that was only announced: it is wanted, whatever other buckets
    /// have. There is one look-up for each bucket of the caller, so that the time does not tell.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn content_status(
        &self,
        tx: &ReadTransaction<'_>,
        hash: ContentHash,
    ) -> Result<ContentStatus, StoreError> {
        let names = match self {
            Self::All => return tx.content_status_by_name(None, hash),
            Self::Named(names) => names,
        };
        let mut found = ContentStatus::Missing;
        for name in names {
            match tx.content_status_by_name(Some(name), hash)? {
                ContentStatus::Missing => {}
                status @ (ContentStatus::Complete { .. } | ContentStatus::Bad { .. }) => {
                    return Ok(status);
                }
                status => found = status,
            }
        }
        Ok(found)
    }

    /// Whether one of them has a right to the bytes of a content.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn have_content(
        &self,
        tx: &ReadTransaction<'_>,
        hash: ContentHash,
    ) -> Result<bool, StoreError> {
        let status = self.content_status(tx, hash)?;
        Ok(matches!(
            status,
            ContentStatus::Complete { .. } | ContentStatus::Bad { .. }
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(scopes: &[&str]) -> ScopeSet {
        scopes.iter().collect()
    }

    fn bucket(name: &str) -> BucketName {
        name.parse().expect("a name")
    }

    #[test]
    fn a_scope_is_for_one_right_in_one_bucket() {
        let docs = bucket("docs");
        for right in FsRight::ALL {
            let one = format!("{}docs", right.prefix());
            for other in FsRight::ALL {
                let is_same = other == right;
                assert_eq!(other.is_allowed(&set(&[&one]), &docs), is_same, "{other:?}");
            }
            assert!(!right.is_allowed(&set(&[&one]), &bucket("docs2")));
            assert!(!right.is_allowed_everywhere(&set(&[&one])));
            for all in [&*format!("{}*", right.prefix()), "fs:*", "*"] {
                assert!(right.is_allowed(&set(&[all]), &docs), "{all}");
                assert!(right.is_allowed_everywhere(&set(&[all])), "{all}");
            }
            // A star counts only as a whole segment.
            let part = format!("{}do*", right.prefix());
            assert!(!right.is_allowed(&set(&[&part]), &docs));
        }
    }

    #[test]
    fn visible_buckets_are_those_that_a_scope_names() {
        let rights = [FsRight::Read, FsRight::Write];
        let named =
            |names: &[&str]| VisibleBuckets::Named(names.iter().map(|name| bucket(name)).collect());
        let of = |scopes: &[&str]| VisibleBuckets::from_scopes(&set(scopes), &rights);
        assert_eq!(
            of(&["fs:read:docs", "fs:write:logs"]),
            named(&["docs", "logs"])
        );
        assert_eq!(
            of(&["fs:admin:docs", "fs:read:No Name", "fs:read"]),
            named(&[])
        );
        assert_eq!(of(&["fs:read:docs", "fs:write:*"]), VisibleBuckets::All);
        let both = of(&["fs:read:docs", "fs:read:logs"]).and(of(&["fs:read:logs"]));
        assert_eq!(both, named(&["logs"]));
        assert_eq!(VisibleBuckets::All.and(named(&["docs"])), named(&["docs"]));
        assert!(both.contains(&bucket("logs")) && !both.contains(&bucket("docs")));
        assert!(VisibleBuckets::All.contains(&bucket("docs")));
    }
}
