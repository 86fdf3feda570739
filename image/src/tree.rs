//! The root tree: one executable, what the image says about itself, and the empty folders on which PID 1 mounts.

/// The root document of updates, in the root folder. PID 1 reads it there.
pub const UPDATE_ROOT_FILE: &str = "update-root.json";

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

/// The files of the root tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RootFiles<'a> {
    /// The executable, which becomes `/init`.
    pub(crate) binary: &'a [u8],
    /// The version of the image, in a line.
    pub(crate) version: &'a [u8],
    /// The root document of updates.
    pub(crate) update_root: Option<&'a [u8]>,
}

/// The root tree around these files.
///
/// `/dev/console` and `/dev/null` are there because standard input and output, and a runtime that
/// requires three open descriptors, come before the first mount. A root drive omits them: the
/// kernel mounts `/dev` on it itself.
pub(crate) fn root(files: RootFiles<'_>) -> Vec<TreeEntry<'_>> {
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
    let file = |path, mode, bytes| TreeEntry {
        path,
        mode,
        kind: TreeEntryKind::File(bytes),
    };
    let mut tree = vec![
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
        file("init", 0o755, files.binary),
        dir("proc", 0o555),
        dir("run", 0o755),
        dir("sys", 0o555),
        dir("tmp", 0o1777),
    ];
    if let Some(document) = files.update_root {
        tree.push(file(UPDATE_ROOT_FILE, 0o444, document));
    }
    tree.push(file("version", 0o444, files.version));
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: RootFiles<'_> = RootFiles {
        binary: b"x",
        version: b"1\n",
        update_root: Some(b"{}"),
    };

    #[test]
    fn the_tree_is_sorted_and_parents_come_first() {
        let tree = root(FILES);
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
    fn the_binary_is_the_only_executable() {
        let files = |update_root| {
            let tree = root(RootFiles {
                update_root,
                ..FILES
            });
            let files = tree.into_iter();
            let files = files.filter(|entry| matches!(entry.kind, TreeEntryKind::File(_)));
            files.map(|entry| (entry.path, entry.mode)).collect()
        };
        let all: Vec<_> = files(FILES.update_root);
        let (init, root, version) = (
            ("init", 0o755),
            ("update-root.json", 0o444),
            ("version", 0o444),
        );
        assert_eq!(all, [init, root, version]);
        assert_eq!(files(None), [init, version]);
    }
}
