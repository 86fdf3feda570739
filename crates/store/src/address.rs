//! Addresses of entries: `bucket[@branch][#seq]:/path`.

use std::fmt;
use std::str::FromStr;

use crate::limits::{BRANCH_NAME_BYTES_MAX, BUCKET_NAME_BYTES_MAX, SEQ_MAX};
use crate::path::{EntryPath, InvalidPath, PathRule, SNAPSHOT_DIRECTORY};

/// The branch that each bucket begins with.
pub const MAIN_BRANCH: &str = "main";

/// Name of a bucket: 2 to 63 lower-case letters, digits, `.` and `-`, of which the first is a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketName(String);

/// Name of a branch or of a snapshot: 1 to 128 letters, digits, `.`, `_` and `-`, of which the first is a letter or a
/// digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchName(String);

impl BucketName {
    /// Checks a name.
    ///
    /// # Errors
    /// The name breaks [`PathRule::BucketName`].
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_inner = |byte: u8| is_letter(byte) || matches!(byte, b'.' | b'-');
        let is_long_enough = (2..=BUCKET_NAME_BYTES_MAX).contains(&text.len());
        let is_name = is_long_enough
            && text.bytes().all(is_inner)
            && text.bytes().next().is_some_and(is_letter);
        is_name
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| PathRule::BucketName.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a row, which the store checked when it wrote the row.
    pub(crate) const fn from_stored(name: String) -> Self {
        Self(name)
    }
}

impl BranchName {
    /// Checks a name.
    ///
    /// # Errors
    /// The name breaks [`PathRule::BranchName`].
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let is_inner =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let begins = text.bytes().next();
        let is_name = text.len() <= BRANCH_NAME_BYTES_MAX
            && text.bytes().all(is_inner)
            && begins.is_some_and(|byte| byte.is_ascii_alphanumeric());
        is_name
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| PathRule::BranchName.into())
    }

    /// The branch that each bucket begins with.
    #[must_use]
    pub fn main() -> Self {
        Self(MAIN_BRANCH.to_owned())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a row, which the store checked when it wrote the row.
    pub(crate) const fn from_stored(name: String) -> Self {
        Self(name)
    }
}

/// Which version of a bucket's tree an address means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TreeVersion {
    /// The newest one of a branch.
    Head(BranchName),
    /// That of a branch after the commit with this number.
    At(BranchName, u64),
    /// That which a snapshot names.
    Snapshot(BranchName),
}

/// An address `bucket[@branch][#seq]:/path`. Without a branch it means `main`. `bucket:/.snap/NAME/path` means a snapshot.
///
/// ```
/// use alknet_store::{EntryAddress, TreeVersion};
///
/// let address: EntryAddress = "docs@draft#17:/a/b".parse()?;
/// assert_eq!(address.bucket.as_str(), "docs");
/// assert_eq!(address.version, TreeVersion::At("draft".parse()?, 17));
/// assert_eq!(address.path.as_str(), "/a/b");
/// # Ok::<(), alknet_store::InvalidPath>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryAddress {
    /// The bucket's name.
    pub bucket: BucketName,
    /// The version of its tree.
    pub version: TreeVersion,
    /// The path in that tree.
    pub path: EntryPath,
}

impl EntryAddress {
    /// Whether nothing can be written there: only the head of a branch takes changes.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        !matches!(self.version, TreeVersion::Head(_))
    }
}

impl FromStr for EntryAddress {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        // Neither a bucket nor a branch has a colon in its name, and a path may have several.
        let (tree, path) = text.split_once(':').ok_or(PathRule::Separator)?;
        let (tree, seq) = match tree.split_once('#') {
            Some((tree, seq)) => (tree, Some(parse_seq(seq)?)),
            None => (tree, None),
        };
        let (bucket, branch) = match tree.split_once('@') {
            Some((bucket, branch)) => (bucket, Some(BranchName::parse(branch)?)),
            None => (tree, None),
        };
        let bucket = BucketName::parse(bucket)?;
        if branch.is_none()
            && seq.is_none()
            && let Some((snapshot, path)) = parse_snapshot(path)?
        {
            // Only without a branch and a number: a snapshot names both already, and two versions
            // would contradict each other.
            let version = TreeVersion::Snapshot(snapshot);
            return Ok(Self {
                bucket,
                version,
                path,
            });
        }
        let branch = branch.unwrap_or_else(BranchName::main);
        let version = match seq {
            Some(seq) => TreeVersion::At(branch, seq),
            None => TreeVersion::Head(branch),
        };
        let path = EntryPath::parse(path)?;
        Ok(Self {
            bucket,
            version,
            path,
        })
    }
}

impl fmt::Display for EntryAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bucket,
            version,
            path,
        } = self;
        match version {
            TreeVersion::Head(branch) if branch.as_str() == MAIN_BRANCH => {
                write!(f, "{bucket}:{path}")
            }
            TreeVersion::Head(branch) => write!(f, "{bucket}@{branch}:{path}"),
            TreeVersion::At(branch, seq) => write!(f, "{bucket}@{branch}#{seq}:{path}"),
            TreeVersion::Snapshot(snapshot) => {
                // The root of a snapshot has no slash behind it.
                let path = if path.is_root() { "" } else { path.as_str() };
                write!(f, "{bucket}:/{SNAPSHOT_DIRECTORY}/{snapshot}{path}")
            }
        }
    }
}

/// The snapshot and the path in it, if the path has that form.
fn parse_snapshot(path: &str) -> Result<Option<(BranchName, EntryPath)>, InvalidPath> {
    let rest = path.strip_prefix('/');
    let rest = rest.and_then(|rest| rest.strip_prefix(SNAPSHOT_DIRECTORY));
    let Some(rest) = rest.and_then(|rest| rest.strip_prefix('/')) else {
        return Ok(None);
    };
    let (name, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        // The root of a snapshot is shown without a slash, and that form has to be readable.
        None => (rest, "/"),
    };
    Ok(Some((BranchName::parse(name)?, EntryPath::parse(path)?)))
}

fn parse_seq(text: &str) -> Result<u64, PathRule> {
    // One number has one form: an address may be compared as text.
    let is_canonical =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let seq = text.parse().ok().filter(|seq| *seq <= SEQ_MAX);
    seq.filter(|_| is_canonical).ok_or(PathRule::Seq)
}

macro_rules! text_name {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = InvalidPath;

            fn from_str(text: &str) -> Result<Self, InvalidPath> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_name!(BucketName);
text_name!(BranchName);

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Option<PathRule> {
        let address = text.parse::<EntryAddress>();
        address.err().map(|invalid| invalid.rule)
    }

    #[test]
    fn an_address_comes_back_in_its_shortest_form() {
        for (text, shown) in [
            ("docs:/", "docs:/"),
            ("docs@main:/a:b#c@d", "docs:/a:b#c@d"),
            ("docs@draft_1.x:/a", "docs@draft_1.x:/a"),
            ("docs#0:/a", "docs@main#0:/a"),
            (
                "docs@x#4611686018427387904:/a/b",
                "docs@x#4611686018427387904:/a/b",
            ),
            ("docs:/.snap/monday", "docs:/.snap/monday"),
            ("docs:/.snap/monday/", "docs:/.snap/monday"),
            ("docs:/.snap/monday/a/b", "docs:/.snap/monday/a/b"),
            ("docs:/.snapshot", "docs:/.snapshot"),
        ] {
            let address: EntryAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn each_rule_of_an_address_is_refused_by_its_name() {
        for (text, expected) in [
            ("docs/a", PathRule::Separator),
            ("", PathRule::Separator),
            (":/a", PathRule::BucketName),
            ("d:/a", PathRule::BucketName),
            ("Docs:/a", PathRule::BucketName),
            (".docs:/a", PathRule::BucketName),
            ("do/cs:/a", PathRule::BucketName),
            ("docs@:/a", PathRule::BranchName),
            ("docs@-x:/a", PathRule::BranchName),
            ("docs@a/b:/a", PathRule::BranchName),
            ("docs@a@b:/a", PathRule::BranchName),
            ("docs#:/a", PathRule::Seq),
            ("docs#+1:/a", PathRule::Seq),
            ("docs#01:/a", PathRule::Seq),
            ("docs#4611686018427387905:/a", PathRule::Seq),
            ("docs#99999999999999999999:/a", PathRule::Seq),
            ("docs:a", PathRule::Absolute),
            ("docs:/../a", PathRule::DotDot),
            ("docs:/.snap", PathRule::Reserved),
            ("docs@main:/.snap/x", PathRule::Reserved),
            ("docs#1:/.snap/x", PathRule::Reserved),
            ("docs:/.snap/", PathRule::BranchName),
            ("docs:/.snap/x/.snap", PathRule::Reserved),
        ] {
            assert_eq!(rule(text), Some(expected), "{text}");
        }
        let long = format!("{}:/a", "a".repeat(BUCKET_NAME_BYTES_MAX + 1));
        assert_eq!(rule(&long), Some(PathRule::BucketName));
        let long = format!("docs@{}:/a", "a".repeat(BRANCH_NAME_BYTES_MAX + 1));
        assert_eq!(rule(&long), Some(PathRule::BranchName));
    }

    #[test]
    fn only_the_head_of_a_branch_takes_changes() {
        let is_read_only = |text: &str| text.parse::<EntryAddress>().map(|it| it.is_read_only());
        assert_eq!(is_read_only("docs:/a"), Ok(false));
        assert_eq!(is_read_only("docs#3:/a"), Ok(true));
        assert_eq!(is_read_only("docs:/.snap/x/a"), Ok(true));
    }
}
