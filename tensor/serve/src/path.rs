//! The name of a file in a store: its path, or its id.

use std::borrow::Borrow;
use std::fmt;

use alknet_tensor::{FileId, TensorErrorCode};

use crate::error::ServeError;
use crate::limits::{PATH_BYTES, PATH_SEGMENTS};

/// The first segment of the paths that stand for ids.
const ID_SEGMENT: &str = "id";

/// A path in a store: segments of letters, digits, `.`, `_` and `-` that do not begin with a dot,
/// joined by `/`. A path does not begin with the segment `id`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorePath(String);

impl StorePath {
    /// Checks that a text follows the grammar.
    ///
    /// # Errors
    /// `E_VALUE`, and `E_LIMIT` for a path that is too long.
    pub fn parse(text: &str) -> Result<Self, ServeError> {
        if text.len() > PATH_BYTES || text.split('/').count() > PATH_SEGMENTS {
            let what =
                format!("a path of more than {PATH_BYTES} bytes or {PATH_SEGMENTS} segments");
            return Err(ServeError::input(TensorErrorCode::Limit, what));
        }
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        // A segment that begins with a dot would be `..` or a hidden file.
        let good = |segment: &str| {
            !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(plain)
        };
        // Paths below `id` stand for ids in scopes, and a stored path must not collide with them.
        if !text.split('/').all(good) || text.split('/').next() == Some(ID_SEGMENT) {
            let what = "a path is segments of letters, digits, '.', '_' and '-' joined by '/', \
                        the first of them not 'id'";
            return Err(ServeError::input(TensorErrorCode::Value, what));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Paths are ordered as their texts are, so a map of paths is searched by texts that are no paths.
impl Borrow<str> for StorePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a request names a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorFileRef {
    /// By its content.
    Id(FileId),
    /// By a path that leads to the file at this moment.
    Path(StorePath),
}

impl TensorFileRef {
    /// The path against which scopes are checked.
    #[must_use]
    pub fn scope_path(&self) -> String {
        match self {
            Self::Id(id) => format!("{ID_SEGMENT}/{id}"),
            Self::Path(path) => path.0.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_nowhere_else() {
        for good in ["a", "models/bert-1.5_x.mt", "A/b/c", "ids/x", "a/id"] {
            assert_eq!(StorePath::parse(good).expect(good).as_str(), good);
        }
        let deep = vec!["a"; PATH_SEGMENTS + 1].join("/");
        let long = "a".repeat(PATH_BYTES + 1);
        let bad = [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".a", "a/.b", "a b", "a\0", "ä",
            "id", "id/x", "a\\b", &deep, &long,
        ];
        for bad in bad {
            assert!(StorePath::parse(bad).is_err(), "{bad:?}");
        }
    }
}
