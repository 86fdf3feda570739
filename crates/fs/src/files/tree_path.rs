//! Paths of the tree: `/BUCKET[@BRANCH][#SEQ]/PATH`, and `/BUCKET/.snap/NAME/PATH`.

use alknet_store::limits::{BRANCH_NAME_BYTES_MAX, BUCKET_NAME_BYTES_MAX, PATH_BYTES_MAX};
use alknet_store::{BucketName, EntryAddress, InvalidPath, PathRule, SNAPSHOT_DIRECTORY};

/// Bytes of the longest path of the tree: a bucket, a branch or a snapshot, a path of the bucket, and between them signs
/// and the digits of a number.
const TREE_PATH_BYTES_MAX: usize =
    BUCKET_NAME_BYTES_MAX + BRANCH_NAME_BYTES_MAX + PATH_BYTES_MAX + 32;

/// What a path of a [`FileTree`](super::FileTree) names. It need not exist.
///
/// ```
/// use alknet_fs::TreePath;
///
/// let Ok(TreePath::Entry(address)) = TreePath::parse("/docs@draft/a") else {
///     panic!("the path of an entry");
/// };
/// assert_eq!(address.to_string(), "docs@draft:/a");
/// assert_eq!(TreePath::parse("/"), Ok(TreePath::Root));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreePath {
    /// The directory of buckets.
    Root,
    /// The directory of the snapshots of a bucket.
    Snapshots(BucketName),
    /// An entry of a bucket.
    Entry(EntryAddress),
}

impl TreePath {
    /// Parses an absolute path.
    ///
    /// # Errors
    /// The path breaks a rule.
    pub fn parse(path: &str) -> Result<Self, InvalidPath> {
        // First of all: below, the path is copied.
        if path.len() > TREE_PATH_BYTES_MAX {
            return Err(PathRule::PathLength.into());
        }
        let path = path.strip_prefix('/').ok_or(PathRule::Absolute)?;
        if path.is_empty() {
            return Ok(Self::Root);
        }
        let (tree, path) = path.split_once('/').unwrap_or((path, ""));
        // In an address a colon ends the tree.
        if tree.contains(':') {
            return Err(PathRule::BucketName.into());
        }
        if path == SNAPSHOT_DIRECTORY
            && let Ok(bucket) = BucketName::parse(tree)
        {
            return Ok(Self::Snapshots(bucket));
        }
        format!("{tree}:/{path}").parse().map(Self::Entry)
    }
}

/// The absolute path that a client means by `path` in the directory `directory`: without `.`, without `..` and without
/// empty names. Above the root is the root.
///
/// ```
/// use alknet_fs::resolve_path;
///
/// assert_eq!(resolve_path("/docs/2026", "../latest.txt"), "/docs/latest.txt");
/// assert_eq!(resolve_path("/docs", "../../../etc"), "/etc");
/// ```
#[must_use]
pub fn resolve_path(directory: &str, path: &str) -> String {
    let directory = match path.starts_with('/') {
        true => "",
        false => directory,
    };
    let mut names = Vec::new();
    for name in directory.split('/').chain(path.split('/')) {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use alknet_store::limits::SEQ_MAX;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_name_what_the_grammar_says() {
        let address = |path: &str| match TreePath::parse(path) {
            Ok(TreePath::Entry(address)) => address.to_string(),
            other => panic!("{path}: {other:?}"),
        };
        for (path, expected) in [
            ("/docs", "docs:/"),
            ("/docs/", "docs:/"),
            ("/docs/a/b c", "docs:/a/b c"),
            ("/docs@draft/a", "docs@draft:/a"),
            ("/docs@draft#17/a:b", "docs@draft#17:/a:b"),
            ("/docs/.snap/v1", "docs:/.snap/v1"),
            ("/docs/.snap/v1/a", "docs:/.snap/v1/a"),
        ] {
            assert_eq!(address(path), expected, "{path}");
        }
        assert_eq!(TreePath::parse("/"), Ok(TreePath::Root));
        let bucket = BucketName::parse("docs").expect("a name");
        assert_eq!(
            TreePath::parse("/docs/.snap"),
            Ok(TreePath::Snapshots(bucket))
        );
        for (path, rule) in [
            ("docs/a", PathRule::Absolute),
            ("", PathRule::Absolute),
            ("/docs/../a", PathRule::DotDot),
            ("/docs/./a", PathRule::Dot),
            ("/docs//a", PathRule::EmptyComponent),
            ("/docs/a/", PathRule::EmptyComponent),
            ("/docs/a\0", PathRule::Nul),
            ("/Docs/a", PathRule::BucketName),
            ("//a", PathRule::BucketName),
            ("/docs:/a", PathRule::BucketName),
            ("/docs@draft/.snap/v1", PathRule::Reserved),
        ] {
            assert_eq!(TreePath::parse(path), Err(rule.into()), "{path}");
        }
    }

    #[test]
    fn the_longest_path_is_read_and_a_longer_one_is_refused() {
        let component = "a".repeat(255);
        let longest = format!("/{component}").repeat(PATH_BYTES_MAX / 256);
        assert_eq!(longest.len(), PATH_BYTES_MAX);
        let bucket = "b".repeat(BUCKET_NAME_BYTES_MAX);
        let branch = "c".repeat(BRANCH_NAME_BYTES_MAX);
        let seq = SEQ_MAX;
        for tree in [
            format!("{bucket}@{branch}#{seq}"),
            format!("{bucket}/.snap/{branch}"),
        ] {
            let path = TreePath::parse(&format!("/{tree}{longest}"));
            assert!(matches!(path, Ok(TreePath::Entry(_))), "{path:?}");
            let path = TreePath::parse(&format!("/{tree}{longest}/a"));
            assert_eq!(path, Err(PathRule::PathLength.into()));
        }
        // A name of this length is wrong as well; its length is what ends the reading.
        let path = TreePath::parse(&format!("/{}", "a".repeat(TREE_PATH_BYTES_MAX)));
        assert_eq!(path, Err(PathRule::PathLength.into()));
    }

    #[test]
    fn a_path_of_a_client_stays_in_the_tree() {
        for (directory, path, expected) in [
            ("/", "", "/"),
            ("/", ".", "/"),
            ("/docs", "", "/docs"),
            ("/docs", "a/./b//c/", "/docs/a/b/c"),
            ("/docs/a", "../b", "/docs/b"),
            ("/docs", "../../../etc", "/etc"),
            ("/docs", "/other/../../x", "/x"),
            ("", "a", "/a"),
        ] {
            assert_eq!(
                resolve_path(directory, path),
                expected,
                "{directory} {path}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_resolved_stays_as_it_is(directory in "[/.a-c]{0,20}", path in "[/.a-c]{0,20}") {
            let resolved = resolve_path(&directory, &path);
            prop_assert!(resolved.starts_with('/'));
            prop_assert!(!resolved.split('/').any(|name| name == "." || name == ".."));
            prop_assert_eq!(resolve_path("/elsewhere", &resolved), resolved);
        }

        #[test]
        fn no_path_makes_the_parser_panic(path in "\\PC{0,40}") {
            drop(TreePath::parse(&path));
        }
    }
}
