//! Paths of the tree: `/BUCKET[@BRANCH][#SEQ]/PATH`, and `/BUCKET/.snap/NAME/PATH`.

use alknet_store::{BucketName, EntryAddress, InvalidPath, PathRule, SNAPSHOT_DIRECTORY};

/// What a path names. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TreePath {
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
    pub(super) fn parse(path: &str) -> Result<Self, InvalidPath> {
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
