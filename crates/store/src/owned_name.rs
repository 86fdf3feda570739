//! Names of what a bucket has in a table of all buckets: its queues and the consumers of its events.

use crate::bounds::check_name;
use crate::error::StoreError;
use crate::limits::CONSUMER_NAME_BYTES_MAX;
use crate::names::BucketId;

/// What every such name in a row begins with. No lock, and no row of a file of the first format, begins with it.
const SIGN: char = '#';

/// A name in a bucket. The row has the number of the bucket before it, and not the name of the bucket, which another bucket
/// may have later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OwnedName {
    bucket: BucketId,
    row: String,
}

impl OwnedName {
    /// Checks a name.
    ///
    /// # Errors
    /// The name breaks a rule.
    pub(crate) fn parse(bucket: BucketId, text: &str) -> Result<Self, StoreError> {
        check_name(text, CONSUMER_NAME_BYTES_MAX)?;
        let row = format!("{SIGN}{bucket}/{text}");
        Ok(Self { bucket, row })
    }

    pub(crate) const fn bucket(&self) -> BucketId {
        self.bucket
    }

    /// The name as rows have it.
    pub(crate) fn row(&self) -> &str {
        &self.row
    }

    /// The name in the bucket.
    pub(crate) fn name(&self) -> &str {
        split_row(&self.row).map_or("", |(_, name)| name)
    }
}

/// The number of the bucket and the name in it. `None` for a row that is of no bucket.
fn split_row(row: &str) -> Option<(BucketId, &str)> {
    // The number has no slash, and the name may have some.
    let (number, name) = row.strip_prefix(SIGN)?.split_once('/')?;
    Some((BucketId::new(number.parse().ok()?), name))
}

/// The bucket whose row has this name.
pub(crate) fn owning_bucket(row: &str) -> Option<BucketId> {
    split_row(row).map(|(bucket, _)| bucket)
}

/// The range of the names of a bucket in rows, both ends left out.
pub(crate) fn rows_of_bucket(bucket: BucketId) -> (String, String) {
    // `0` is the sign behind the slash, so that bucket 1 has no row of bucket 10.
    (format!("{SIGN}{bucket}/"), format!("{SIGN}{bucket}0"))
}

/// The range of the names of all buckets.
pub(crate) fn rows_of_buckets() -> (String, String) {
    // `$` is the sign behind `#`.
    (SIGN.to_string(), "$".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lie_in_the_range_of_their_bucket_alone() {
        let (one, ten) = (BucketId::new(1), BucketId::new(10));
        for text in ["a", "0", "a/b", "-", "z"] {
            let name = OwnedName::parse(one, text).expect("a name");
            assert_eq!((name.bucket(), name.name()), (one, text));
            assert_eq!(owning_bucket(name.row()), Some(one));
            for (bucket, is_in) in [(one, true), (ten, false), (BucketId::new(2), false)] {
                let (first, end) = rows_of_bucket(bucket);
                assert_eq!(*name.row() > *first && *name.row() < *end, is_in, "{text}");
            }
            let (first, end) = rows_of_buckets();
            assert!(*name.row() > *first && *name.row() < *end);
        }
        for row in ["lock", "docs/a", "#", "#/a", "#x/a"] {
            assert_eq!(owning_bucket(row), None, "{row}");
        }
    }
}
