//! Paths within a bucket, and the rules that each of them obeys.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::limits::{COMPONENT_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX};

/// Name at the root of each bucket that views list snapshots under. No entry can have it.
pub const SNAPSHOT_DIRECTORY: &str = ".snap";

/// A rule of paths and addresses. An error names the first one that a text breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathRule {
    /// A path begins with a slash.
    Absolute,
    /// The name of a branch or a snapshot has 1 to 128 letters, digits, `.`, `_` and `-`, and begins with a letter or a
    /// digit.
    BranchName,
    /// The name of a bucket has 2 to 63 lower-case letters, digits, `.` and `-`, and begins with a letter or a digit.
    BucketName,
    /// A component has at most 255 bytes.
    ComponentLength,
    /// A path has at most 64 components.
    Depth,
    /// No component is `.`.
    Dot,
    /// No component is `..`.
    DotDot,
    /// No component is empty: no slash stands beside another one or at the end.
    EmptyComponent,
    /// A directory is not moved or copied into itself.
    IntoItself,
    /// No byte is 0.
    Nul,
    /// The token of a page is a path of the directory that is listed.
    PageToken,
    /// A path has at most 4096 bytes.
    PathLength,
    /// `.snap` at the root of a bucket is reserved for snapshots.
    Reserved,
    /// The root of a branch is always there, and is not changed.
    Root,
    /// A colon stands between the branch and the path.
    Separator,
    /// A sequence number has digits only, no leading zero, and is at most 2^62.
    Seq,
    /// A path is valid UTF-8.
    Utf8,
}

impl PathRule {
    /// Every rule.
    pub const ALL: [Self; 17] = [
        Self::Absolute,
        Self::BranchName,
        Self::BucketName,
        Self::ComponentLength,
        Self::Depth,
        Self::Dot,
        Self::DotDot,
        Self::EmptyComponent,
        Self::IntoItself,
        Self::Nul,
        Self::PageToken,
        Self::PathLength,
        Self::Reserved,
        Self::Root,
        Self::Separator,
        Self::Seq,
        Self::Utf8,
    ];

    /// The name of the rule in responses, which stays as it is.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absolute => "absolute",
            Self::BranchName => "branch-name",
            Self::BucketName => "bucket-name",
            Self::ComponentLength => "component-length",
            Self::Depth => "depth",
            Self::Dot => "dot",
            Self::DotDot => "dot-dot",
            Self::EmptyComponent => "empty-component",
            Self::IntoItself => "into-itself",
            Self::Nul => "nul",
            Self::PageToken => "page-token",
            Self::PathLength => "path-length",
            Self::Reserved => "reserved",
            Self::Root => "root",
            Self::Separator => "separator",
            Self::Seq => "seq",
            Self::Utf8 => "utf-8",
        }
    }

    /// What a text that breaks the rule has to be like instead.
    #[must_use]
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Absolute => "a path begins with a slash",
            Self::BranchName => {
                "a branch or a snapshot has a name of 1 to 128 letters, digits, '.', '_' and '-' that begins with a letter \
                 or a digit"
            }
            Self::BucketName => {
                "a bucket has a name of 2 to 63 lower-case letters, digits, '.' and '-' that begins with a letter or a \
                 digit"
            }
            Self::ComponentLength => "a component of a path has at most 255 bytes",
            Self::Depth => "a path has at most 64 components",
            Self::Dot => "no component of a path is '.'",
            Self::DotDot => "no component of a path is '..'",
            Self::EmptyComponent => "no component of a path is empty",
            Self::IntoItself => "a directory cannot be moved or copied into itself",
            Self::Nul => "no byte of a path is 0",
            Self::PageToken => "the token of a page is a path of the directory that is listed",
            Self::PathLength => "a path has at most 4096 bytes",
            Self::Reserved => "'.snap' at the root of a bucket is reserved for snapshots",
            Self::Root => "the root of a branch cannot be changed",
            Self::Separator => "a colon stands between the branch and the path",
            Self::Seq => "a sequence number has digits only, no leading zero, and is at most 2^62",
            Self::Utf8 => "a path is valid UTF-8",
        }
    }
}

impl fmt::Display for PathRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A path or an address that breaks a rule.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("invalid path ({}): {}", rule.name(), rule.explanation())]
pub struct InvalidPath {
    /// The first rule that the text breaks.
    pub rule: PathRule,
}

impl From<PathRule> for InvalidPath {
    fn from(rule: PathRule) -> Self {
        Self { rule }
    }
}

/// An absolute path within a bucket, which obeys every rule. Paths are compared by their bytes: the store knows no case
/// folding and no Unicode normalisation.
///
/// ```
/// use alknet_store::{EntryPath, PathRule};
///
/// let path: EntryPath = "/models/tiny.bin".parse()?;
/// assert_eq!(path.split(), Some(("/models", "tiny.bin")));
/// let refused = "/models/../secret".parse::<EntryPath>().unwrap_err();
/// assert_eq!(refused.rule, PathRule::DotDot);
/// # Ok::<(), alknet_store::InvalidPath>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPath(String);

impl EntryPath {
    /// The root of a branch.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// Checks a path.
    ///
    /// # Errors
    /// The path breaks a rule.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        check(text)?;
        Ok(Self(text.to_owned()))
    }

    /// Checks a path that may not be text.
    ///
    /// # Errors
    /// The path breaks a rule.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidPath> {
        // Length first, so that a refusal costs as little as the limit says.
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathRule::PathLength.into());
        }
        let text = std::str::from_utf8(bytes).map_err(|_| PathRule::Utf8)?;
        Self::parse(text)
    }

    /// The path of a row. The row was checked when the store wrote it.
    pub(crate) fn from_stored(parent: &str, name: &str) -> Self {
        match parent {
            "/" => Self(format!("/{name}")),
            parent => Self(format!("{parent}/{name}")),
        }
    }

    /// The whole path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The path of the directory, and the name in it. `None` for the root.
    #[must_use]
    pub fn split(&self) -> Option<(&str, &str)> {
        let (parent, name) = self.0.rsplit_once('/')?;
        match (parent, name) {
            (_, "") => None,
            ("", name) => Some(("/", name)),
            both => Some(both),
        }
    }

    /// Both columns of a row.
    ///
    /// # Errors
    /// The root has no row.
    pub(crate) fn columns(&self) -> Result<(&str, &str), InvalidPath> {
        self.split().ok_or_else(|| PathRule::Root.into())
    }

    /// The directory that the path is in. `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (parent, _) = self.split()?;
        Some(Self(parent.to_owned()))
    }

    /// The directories above the path without the root, the topmost first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        let slashes = self.0.match_indices('/').skip(1);
        slashes.map(|(at, _)| Self(self.0[..at].to_owned()))
    }

    /// The path of a name in this directory.
    ///
    /// # Errors
    /// The name, or the path with it, breaks a rule. A name with a slash has two components.
    pub fn child(&self, name: &str) -> Result<Self, InvalidPath> {
        let path = Self::from_stored(&self.0, name);
        check(&path.0)?;
        Ok(path)
    }

    /// Whether the path lies below this directory. No directory lies below itself.
    #[must_use]
    pub fn is_below(&self, directory: &Self) -> bool {
        if directory.is_root() {
            return !self.is_root();
        }
        // With the slash, because `/ab` begins with `/a` and is not below it.
        let rest = self.0.strip_prefix(&directory.0);
        rest.is_some_and(|rest| rest.starts_with('/'))
    }

    /// The path that this one has after its directory `from` was moved to `to`. A path that is not `from` and not below
    /// it stays.
    ///
    /// # Errors
    /// The new path is too long or too deep.
    pub(crate) fn moved(&self, from: &Self, to: &Self) -> Result<Self, InvalidPath> {
        if self == from {
            return Ok(to.clone());
        }
        if !self.is_below(from) {
            return Ok(self.clone());
        }
        let rest = self.0.strip_prefix(&from.0).unwrap_or(&self.0);
        let rest = rest.trim_start_matches('/');
        // Checked again: a move to a deeper directory can take the path over its length or depth.
        Self::parse(Self::from_stored(&to.0, rest).as_str())
    }
}

impl FromStr for EntryPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        Self::parse(text)
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(text: &str) -> Result<(), PathRule> {
    // First of all: everything below looks at each byte.
    if text.len() > PATH_BYTES_MAX {
        return Err(PathRule::PathLength);
    }
    let rest = text.strip_prefix('/').ok_or(PathRule::Absolute)?;
    if rest.is_empty() {
        return Ok(());
    }
    for (depth, component) in rest.split('/').enumerate() {
        if depth >= PATH_DEPTH_MAX {
            return Err(PathRule::Depth);
        }
        check_component(component)?;
    }
    // Only the first component: views list snapshots at the root alone, and deeper the name is
    // free.
    match rest.split('/').next() {
        Some(SNAPSHOT_DIRECTORY) => Err(PathRule::Reserved),
        _ => Ok(()),
    }
}

fn check_component(component: &str) -> Result<(), PathRule> {
    match component {
        "" => Err(PathRule::EmptyComponent),
        "." => Err(PathRule::Dot),
        ".." => Err(PathRule::DotDot),
        long if long.len() > COMPONENT_BYTES_MAX => Err(PathRule::ComponentLength),
        // C programs end a text at this byte, so that two names could pass for one.
        with if with.contains('\0') => Err(PathRule::Nul),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rule(text: &str) -> Option<PathRule> {
        EntryPath::parse(text).err().map(|invalid| invalid.rule)
    }

    #[test]
    fn each_rule_of_a_path_is_refused_by_its_name() {
        let long = format!("/{}", "a".repeat(COMPONENT_BYTES_MAX + 1));
        let deep = "/a".repeat(PATH_DEPTH_MAX + 1);
        let huge = format!("/{}", "a/".repeat(PATH_BYTES_MAX));
        for (text, expected) in [
            ("", PathRule::Absolute),
            ("a", PathRule::Absolute),
            ("//", PathRule::EmptyComponent),
            ("/a//b", PathRule::EmptyComponent),
            ("/a/", PathRule::EmptyComponent),
            ("/.", PathRule::Dot),
            ("/a/./b", PathRule::Dot),
            ("/..", PathRule::DotDot),
            ("/a/../b", PathRule::DotDot),
            ("/a\0b", PathRule::Nul),
            (&long, PathRule::ComponentLength),
            (&deep, PathRule::Depth),
            (&huge, PathRule::PathLength),
            ("/.snap", PathRule::Reserved),
            ("/.snap/a", PathRule::Reserved),
        ] {
            assert_eq!(rule(text), Some(expected), "{text}");
        }
        let invalid = EntryPath::from_bytes(b"/a\xff").expect_err("no UTF-8");
        assert_eq!(invalid.rule, PathRule::Utf8);
    }

    #[test]
    fn paths_at_their_limits_and_with_odd_names_are_taken() {
        let long = format!("/{}", "ä".repeat(COMPONENT_BYTES_MAX / 2));
        let deep = "/a".repeat(PATH_DEPTH_MAX);
        let component = format!("/{}", "a".repeat(63));
        let longest = component.repeat(PATH_DEPTH_MAX);
        assert_eq!(longest.len(), PATH_BYTES_MAX);
        let odd = [
            "/",
            "/a",
            "/a/.snap",
            "/.snapshot",
            "/...",
            "/a\nb",
            "/a\\b",
            "/ ",
        ];
        let all = odd.into_iter().chain([&*long, &deep, &longest]);
        for text in all {
            assert_eq!(rule(text), None, "{text}");
        }
    }

    #[test]
    fn a_path_is_split_as_its_row_is_stored() {
        for (text, split) in [
            ("/", None),
            ("/a", Some(("/", "a"))),
            ("/a/b/c", Some(("/a/b", "c"))),
        ] {
            let path = EntryPath::parse(text).expect("valid");
            assert_eq!(path.split(), split);
            let again = split.map(|(parent, name)| EntryPath::from_stored(parent, name));
            assert!(again.is_none_or(|again| again == path));
        }
    }

    #[test]
    fn ancestors_come_from_the_top_and_without_the_root() {
        let path = EntryPath::parse("/a/b/c").expect("valid");
        let above: Vec<_> = path.ancestors().map(|it| it.to_string()).collect();
        assert_eq!(above, ["/a", "/a/b"]);
        assert_eq!(EntryPath::root().ancestors().count(), 0);
    }

    #[test]
    fn a_name_that_begins_like_a_directory_is_not_below_it() {
        let path = |text: &str| EntryPath::parse(text).expect("valid");
        assert!(path("/a/b").is_below(&path("/a")));
        assert!(path("/a").is_below(&EntryPath::root()));
        for (inside, directory) in [("/ab", "/a"), ("/a", "/a"), ("/a", "/a/b"), ("/", "/")] {
            assert!(!path(inside).is_below(&path(directory)), "{inside}");
        }
    }

    #[test]
    fn a_move_keeps_what_is_below_and_checks_the_new_path() {
        let path = |text: &str| EntryPath::parse(text).expect("valid");
        let moved = |from: &str, to: &str, it: &str| path(it).moved(&path(from), &path(to));
        assert_eq!(moved("/a", "/x/y", "/a/b/c"), Ok(path("/x/y/b/c")));
        assert_eq!(moved("/a", "/x", "/a"), Ok(path("/x")));
        assert_eq!(moved("/a", "/x", "/ab"), Ok(path("/ab")));
        let deep = "/d".repeat(PATH_DEPTH_MAX);
        let refused = moved("/a", &deep, "/a/b").expect_err("too deep");
        assert_eq!(refused.rule, PathRule::Depth);
    }

    #[test]
    fn the_names_of_the_rules_differ() {
        let names: BTreeSet<_> = PathRule::ALL.iter().map(|rule| rule.name()).collect();
        assert_eq!(names.len(), PathRule::ALL.len());
    }
}
