//! Entity tags (RFC 9110 §8.8.3) and lists of them.

use std::fmt;

use alknet_store::ContentHash;
use http::{HeaderMap, HeaderName};

use crate::dav::error::DavError;
use crate::dav::limits::{ENTITY_TAGS_MAX, HEADER_BYTES_MAX};

/// What the opaque text of a file's tag begins with. The hash of the content follows.
const CONTENT_PREFIX: &str = "b3-";

/// An entity tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntityTag {
    is_weak: bool,
    opaque: String,
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntityTagList {
    /// `*`: any version.
    Any,
    /// These versions.
    Tags(Vec<EntityTag>),
}

impl EntityTag {
    /// The tag of a file with this content: `"b3-HASH"`, a strong one.
    #[must_use]
    pub fn of_content(hash: ContentHash) -> Self {
        Self {
            is_weak: false,
            opaque: format!("{CONTENT_PREFIX}{hash}"),
        }
    }

    /// Parses a tag alone.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (tag, rest) = Self::split(text)?;
        rest.is_empty().then_some(tag)
    }

    /// The tag that a text begins with, and the rest.
    pub(super) fn split(text: &str) -> Option<(Self, &str)> {
        let weak = text.strip_prefix("W/");
        let rest = weak.unwrap_or(text).strip_prefix('"')?;
        let (opaque, rest) = rest.split_once('"')?;
        // `etagc` without the bytes above ASCII.
        let is_tag = opaque.bytes().all(|byte| matches!(byte, 0x21..=0x7e));
        let tag = Self {
            is_weak: weak.is_some(),
            opaque: opaque.to_owned(),
        };
        is_tag.then_some((tag, rest))
    }

    /// The content that the tag means; `None` for a tag that no file of the store has.
    #[must_use]
    pub fn content(&self) -> Option<ContentHash> {
        let hash = self.opaque.strip_prefix(CONTENT_PREFIX)?;
        let hash = hash.parse().ok()?;
        (!self.is_weak).then_some(hash)
    }

    /// The strong comparison (RFC 9110 §8.8.3.2).
    #[must_use]
    pub fn is_strongly_equal(&self, other: &Self) -> bool {
        !self.is_weak && !other.is_weak && self.opaque == other.opaque
    }

    /// The weak comparison.
    #[must_use]
    pub fn is_weakly_equal(&self, other: &Self) -> bool {
        self.opaque == other.opaque
    }
}

impl fmt::Display for EntityTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weak = if self.is_weak { "W/" } else { "" };
        write!(f, "{weak}\"{}\"", self.opaque)
    }
}

impl EntityTagList {
    /// The field of a request, all its lines together.
    ///
    /// # Errors
    /// The field is not a list of tags, or has too many. It must not be ignored: a write would then have no condition.
    pub fn from_headers(
        headers: &HeaderMap,
        name: &HeaderName,
        field: &'static str,
    ) -> Result<Option<Self>, DavError> {
        let invalid = || DavError::header(field, "not a list of entity tags");
        let mut tags = Vec::new();
        let mut is_any = false;
        let mut bytes = 0;
        let mut lines = 0;
        for line in headers.get_all(name) {
            lines += 1;
            bytes += line.len();
            if bytes > HEADER_BYTES_MAX {
                return Err(DavError::header(field, "it is too long"));
            }
            let mut rest = line.to_str().map_err(|_| invalid())?.trim();
            if rest == "*" {
                is_any = true;
                continue;
            }
            while !rest.is_empty() {
                // A list can have empty elements (RFC 9110 §5.6.1.2).
                if let Some(behind) = rest.strip_prefix(',') {
                    rest = behind.trim_start();
                    continue;
                }
                let (tag, behind) = EntityTag::split(rest).ok_or_else(invalid)?;
                rest = behind.trim_start();
                if !rest.is_empty() && !rest.starts_with(',') {
                    return Err(invalid());
                }
                tags.push(tag);
                if tags.len() > ENTITY_TAGS_MAX {
                    return Err(DavError::header(field, "too many entity tags"));
                }
            }
        }
        match (lines, is_any, tags.is_empty()) {
            (0, ..) => Ok(None),
            (1, true, _) => Ok(Some(Self::Any)),
            (_, false, false) => Ok(Some(Self::Tags(tags))),
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::IF_MATCH;

    use super::*;

    fn read(lines: &[&str]) -> Result<Option<EntityTagList>, DavError> {
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_str(line).expect("a value");
            headers.append(IF_MATCH, value);
        }
        EntityTagList::from_headers(&headers, &IF_MATCH, "if-match")
    }

    #[test]
    fn the_tag_of_a_file_is_its_hash() {
        let tag = EntityTag::of_content(ContentHash::EMPTY);
        let text = tag.to_string();
        assert_eq!(text, format!("\"b3-{}\"", ContentHash::EMPTY));
        assert_eq!(EntityTag::parse(&text), Some(tag.clone()));
        assert_eq!(tag.content(), Some(ContentHash::EMPTY));
        let weak = EntityTag::parse(&format!("W/{text}")).expect("a tag");
        assert_eq!(weak.content(), None);
        assert!(!tag.is_strongly_equal(&weak) && tag.is_weakly_equal(&weak));
        assert!(tag.is_strongly_equal(&tag) && !weak.is_strongly_equal(&weak));
    }

    #[test]
    fn lists_are_read() {
        let tags = |texts: &[&str]| {
            let tags = texts.iter().map(|it| EntityTag::parse(it).expect("a tag"));
            Ok(Some(EntityTagList::Tags(tags.collect())))
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[" * "]), Ok(Some(EntityTagList::Any)));
        assert_eq!(read(&["\"a\""]), tags(&["\"a\""]));
        assert_eq!(
            read(&["\"a,b\" ,, W/\"c\"", "\"\""]),
            tags(&["\"a,b\"", "W/\"c\"", "\"\""])
        );
        for lines in [
            &["a"][..],
            &["\"a"],
            &["\"a\" \"b\""],
            &["\"a b\""],
            &["w/\"a\""],
            &["*", "\"a\""],
            &["\"a\", *"],
            &[""],
            &[","],
        ] {
            assert_eq!(read(lines).expect_err("invalid").status(), 400, "{lines:?}");
        }
        let many = "\"a\",".repeat(ENTITY_TAGS_MAX + 1);
        assert!(read(&[&many]).is_err());
    }
}
