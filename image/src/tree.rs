//! The root tree: one executable, and the empty folders on which PID 1 mounts.

/// One entry of the tree. Parents come before their children, and names are sorted.
#[derive(Debug)]
pub(crate) struct TreeEntry<'a> {
    /// Path without a leading slash.
    pub(crate) path: &'static str,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) kind: TreeEntryKind<'a>,
}

/// What an entry is.
#[derive(Debug)]
pub(crate) enum TreeEntryKind<'a> {
    /// A character device.
    Char {
        major: u32,
        minor: u32,
    },
    Dir,
    File(&'a [u8]),
    /// A symbolic link to this target.
    Link(&'static str),
}

impl TreeEntryKind<'_> {
    /// The bytes that are stored for it: a file's contents or a link's target.
    pub(crate) fn contents(&self) -> &[u8] {
        match self {
            Self::File(bytes) => bytes,
            Self::Link(target) => target.as_bytes(),
            Self::Char { .. } | Self::Dir => &[],
        }
    }
}

/// The root tree around `binary`, which becomes `/init`.
///
/// `/dev/console` and `/dev/null` are there because standard input and output, and a runtime that
/// requires three open descriptors, come before the first mount. A root drive omits them: the
/// kernel mounts `/dev` on it itself.
pub(crate) fn root(binary: &[u8]) -> Vec<TreeEntry<'_>> {
    let dir = |path, mode| TreeEntry {
        path,
        mode,
        kind: TreeEntryKind::Dir,
    };
    let node = |path, mode, major, minor| TreeEntry {
        path,
        mode,
        kind: TreeEntryKind::Char { major, minor },
    };
    vec![
        dir("data", 0o755),
        dir("dev", 0o755),
        node("dev/console", 0o600, 5, 1),
        node("dev/null", 0o666, 1, 3),
        dir("etc", 0o755),
        // PID 1 writes the target, because the root may be read-only.
        TreeEntry {
            path: "etc/resolv.conf",
            mode: 0o777,
            kind: TreeEntryKind::Link("/run/resolv.conf"),
        },
        TreeEntry {
            path: "init",
            mode: 0o755,
            kind: TreeEntryKind::File(binary),
        },
        dir("proc", 0o555),
        dir("run", 0o755),
        dir("sys", 0o555),
        dir("tmp", 0o1777),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sorted_and_parents_come_first() {
        let tree = root(b"");
        assert!(tree.is_sorted_by_key(|entry| entry.path));
        for entry in &tree {
            let Some((parent, _)) = entry.path.rsplit_once('/') else {
                continue;
            };
            assert!(
                tree.iter().any(|other| other.path == parent),
                "{parent} is missing"
            );
        }
    }

    #[test]
    fn the_binary_is_the_only_file() {
        let tree = root(b"x");
        let files: Vec<_> = tree
            .iter()
            .filter(|e| matches!(e.kind, TreeEntryKind::File(_)))
            .collect();
        assert_eq!(files.len(), 1);
        assert_eq!((files[0].path, files[0].mode), ("init", 0o755));
    }
}
