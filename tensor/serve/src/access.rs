//! Access to stored files by scopes.
//!
//! A scope is `tensor:read:PREFIX` or `tensor:write:PREFIX`. A prefix is a path or whole segments
//! of its beginning; `tensor:read:*` is everything. A file without a path, or one that a peer names
//! by its id, has the path `id/HEX`.

use alknet_core::ScopeSet;

use crate::path::StorePath;

/// What a peer wants to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorAccess {
    /// `tensor:read:…`
    Read,
    /// `tensor:write:…`
    Write,
}

impl TensorAccess {
    const fn scope(self) -> &'static str {
        match self {
            Self::Read => "tensor:read:",
            Self::Write => "tensor:write:",
        }
    }
}

/// Whether `scopes` allow `deed` at a path.
#[must_use]
pub fn allows(scopes: &ScopeSet, deed: TensorAccess, path: &str) -> bool {
    let mut scope = format!("{}{path}", deed.scope());
    let least = deed.scope().len();
    // A scope for a folder covers what lies below it, so each prefix of whole segments is tried.
    loop {
        if scopes.allows(&scope) {
            return true;
        }
        match scope.rfind('/').filter(|at| *at > least) {
            Some(at) => scope.truncate(at),
            None => return false,
        }
    }
}

/// The paths that a caller may read, by which a list finds them without looking at others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadablePaths {
    /// All paths.
    All,
    /// These paths and the paths below them: in order, and none of them below another.
    Below(Vec<StorePath>),
}

impl ReadablePaths {
    /// The paths that [`allows`] lets a caller with these scopes read; `None` if no scope is about reading.
    #[must_use]
    pub fn from_scopes(scopes: &ScopeSet) -> Option<Self> {
        let read = TensorAccess::Read.scope();
        if scopes.allows(&format!("{read}*")) {
            return Some(Self::All);
        }
        let scopes = Vec::<String>::from(scopes.clone());
        let places = scopes.iter().filter_map(|it| it.strip_prefix(read));
        let places: Vec<_> = places.map(StorePath::parse).collect();
        // A scope for an id, or for what no path can be, is one for reading as well, and leads to no stored path.
        (!places.is_empty()).then(|| Self::below(places.into_iter().flatten()))
    }

    /// These paths and the paths below them.
    pub(crate) fn below(paths: impl IntoIterator<Item = StorePath>) -> Self {
        let mut all: Vec<_> = paths.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        let highest = |it: &&StorePath| match it.as_str().rsplit_once('/') {
            Some((above, _)) => !is_covered(&all, above),
            None => true,
        };
        let highest = all.iter().filter(highest).cloned().collect();
        Self::Below(highest)
    }

    /// The paths that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, one) | (one, Self::All) => one,
            (Self::Below(ours), Self::Below(theirs)) => {
                let in_theirs = ours.iter().filter(|it| is_covered(&theirs, it.as_str()));
                let in_ours = theirs.iter().filter(|it| is_covered(&ours, it.as_str()));
                Self::below(in_theirs.chain(in_ours).cloned())
            }
        }
    }

    /// The ranges of these paths in order, each from its first text up to its second one, which is outside of it.
    pub(crate) fn ranges(&self) -> Vec<(String, String)> {
        let mut ranges = Vec::new();
        match self {
            // A path has ASCII characters only, which are below DEL.
            Self::All => ranges.push((String::new(), "\u{7f}".to_owned())),
            Self::Below(paths) => {
                for path in paths {
                    // Other paths may lie between a path and the paths below it, such as `a-b` between `a` and `a/b`.
                    ranges.push((path.to_string(), format!("{path}\0")));
                    // `0` is the character behind `/`.
                    ranges.push((format!("{path}/"), format!("{path}0")));
                }
                ranges.sort_unstable();
            }
        }
        ranges
    }
}

/// Whether a path, or one above it, is among `paths`, which are in order.
fn is_covered(paths: &[StorePath], path: &str) -> bool {
    let mut path = path;
    loop {
        if paths.binary_search_by(|it| it.as_str().cmp(path)).is_ok() {
            return true;
        }
        match path.rsplit_once('/') {
            Some((above, _)) => path = above,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 8] = ["a", "a-b", "a/b", "a/b-c", "a/b/c", "a/bc", "a0", "b"];

    /// The paths of [`PATHS`] that are in the ranges, in the order of the ranges.
    fn in_ranges(readable: &ReadablePaths) -> Vec<&'static str> {
        let ranges = readable.ranges().into_iter();
        let found = ranges.flat_map(|(from, to)| {
            let is_in = move |path: &&str| *path >= &*from && *path < &*to;
            PATHS.into_iter().filter(is_in)
        });
        found.collect()
    }

    #[test]
    fn ranges_have_the_paths_that_scopes_allow() {
        let sets: [&[&str]; 9] = [
            &["tensor:read:*"],
            &["tensor:*"],
            &["*"],
            &["tensor:read:a"],
            &["tensor:read:a/b", "tensor:read:a-b"],
            &["tensor:read:b", "tensor:read:a/b/c", "tensor:read:a/b"],
            &["tensor:read:a/", "tensor:read:", "tensor:read:id/x"],
            &["tensor:read:a:*"],
            &["tensor:read:a0", "tensor:write:a"],
        ];
        let sets = sets.map(|set| set.iter().collect::<ScopeSet>());
        for set in &sets {
            let readable = ReadablePaths::from_scopes(set).expect("a scope for reading");
            let mut allowed = PATHS.to_vec();
            allowed.retain(|path| allows(set, TensorAccess::Read, path));
            assert_eq!(in_ranges(&readable), allowed, "{set:?}");
            for other in &sets {
                let others = ReadablePaths::from_scopes(other).expect("a scope for reading");
                let mut both = allowed.clone();
                both.retain(|path| allows(other, TensorAccess::Read, path));
                let found = in_ranges(&readable.clone().and(others));
                assert_eq!(found, both, "{set:?} {other:?}");
            }
        }
        for none in [&["tensor:write:*", "tensor:read"][..], &[]] {
            let none = none.iter().collect();
            assert_eq!(ReadablePaths::from_scopes(&none), None);
        }
    }

    #[test]
    fn nothing_is_allowed_that_no_scope_says() {
        let set = |scopes: &[&str]| scopes.iter().collect::<ScopeSet>();
        let read = |scopes: &[&str], path| allows(&set(scopes), TensorAccess::Read, path);
        assert!(!read(&[], "a/b"));
        assert!(read(&["tensor:read:a"], "a/b/c"));
        assert!(read(&["tensor:read:a/b"], "a/b"));
        assert!(!read(&["tensor:read:a/b"], "a/bc"));
        assert!(!read(&["tensor:read:a/b"], "a"));
        assert!(!read(&["tensor:read:"], "a"));
        assert!(!read(&["tensor:write:a", "tensor:read"], "a"));
        for all in ["tensor:read:*", "tensor:*", "*"] {
            assert!(read(&[all], "a/b"), "{all}");
        }
        assert!(allows(
            &set(&["tensor:write:a"]),
            TensorAccess::Write,
            "a/x"
        ));
    }
}
