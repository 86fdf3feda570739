//! Conditions of RFC 9110 §13 on what a request is sent to.

use alknet_store::{ContentHash, EntryPrecondition};
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, HeaderName, Method};

use crate::dav::error::DavError;
use crate::dav::time::parse_http_date;

use super::{EntityTag, EntityTagList};

/// The present version of a resource that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityVersion {
    /// Its tag; `None` for a collection.
    pub tag: Option<EntityTag>,
    /// Time of its last modification, in seconds since 1970-01-01 UTC.
    pub modified_s: i64,
}

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestCondition {
    /// All of them hold.
    Holds,
    /// The client has the present version (status 304).
    NotModified,
    /// The resource is in another state (status 412).
    Failed,
}

impl RequestCondition {
    /// Evaluates the conditions in the order of RFC 9110 §13.2.2. `current` is `None` where nothing is.
    ///
    /// # Errors
    /// A list of tags is invalid.
    pub fn evaluate(
        method: &Method,
        headers: &HeaderMap,
        current: Option<&EntityVersion>,
    ) -> Result<Self, DavError> {
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        let tag = current.and_then(|it| it.tag.as_ref());
        let modified = current.map(|it| it.modified_s);
        let if_match = EntityTagList::from_headers(headers, &IF_MATCH, "if-match")?;
        let if_none_match = EntityTagList::from_headers(headers, &IF_NONE_MATCH, "if-none-match")?;
        let is_met = match if_match {
            Some(EntityTagList::Any) => current.is_some(),
            Some(EntityTagList::Tags(tags)) => {
                tag.is_some_and(|tag| tags.iter().any(|it| it.is_strongly_equal(tag)))
            }
            None => match (date(headers, &IF_UNMODIFIED_SINCE), modified) {
                (Some(date), Some(modified)) => modified <= date,
                _ => true,
            },
        };
        if !is_met {
            return Ok(Self::Failed);
        }
        // A date counts only beside no list of tags (RFC 9110 §13.1.3).
        let is_known = match if_none_match {
            Some(EntityTagList::Any) => current.is_some(),
            Some(EntityTagList::Tags(tags)) => {
                tag.is_some_and(|tag| tags.iter().any(|it| it.is_weakly_equal(tag)))
            }
            None if is_read => match (date(headers, &IF_MODIFIED_SINCE), modified) {
                (Some(date), Some(modified)) => modified <= date,
                _ => false,
            },
            None => false,
        };
        // A read of what the client has needs no body; a change of it is refused.
        Ok(match (is_known, is_read) {
            (false, _) => Self::Holds,
            (true, true) => Self::NotModified,
            (true, false) => Self::Failed,
        })
    }
}

/// What a write expects of its commit, after its conditions held for the version `current`: that version, if a condition
/// was about versions. So of two requests with one condition only one is carried out.
#[must_use]
pub fn pin_version(
    headers: &HeaderMap,
    is_if_header_about_versions: bool,
    current: Option<ContentHash>,
) -> EntryPrecondition {
    // A condition that held a moment ago may not hold at the commit.
    let fields = [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE];
    let is_conditional = fields.iter().any(|it| headers.contains_key(it));
    if !is_conditional && !is_if_header_about_versions {
        return EntryPrecondition::Any;
    }
    current.map_or(EntryPrecondition::Absent, EntryPrecondition::Content)
}

/// The date of a field. An invalid one is as if it was not there (RFC 9110 §13.1.3).
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    parse_http_date(headers.get(name)?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const DATE_S: i64 = 784_111_777;

    fn file() -> EntityVersion {
        EntityVersion {
            tag: EntityTag::parse("\"a\""),
            modified_s: DATE_S,
        }
    }

    fn evaluate(
        method: &Method,
        fields: &[(HeaderName, &str)],
        current: Option<&EntityVersion>,
    ) -> RequestCondition {
        let fields = fields.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (name.clone(), value)
        });
        let headers: HeaderMap = fields.collect();
        RequestCondition::evaluate(method, &headers, current).expect("valid")
    }

    #[test]
    fn tags_decide_before_dates() {
        use RequestCondition::{Failed, Holds, NotModified};
        let before = "Sun, 06 Nov 1994 08:49:36 GMT";
        for (field, value, get, put, absent) in [
            (IF_MATCH, "\"a\"", Holds, Holds, Failed),
            (IF_MATCH, "\"b\", \"a\"", Holds, Holds, Failed),
            (IF_MATCH, "W/\"a\"", Failed, Failed, Failed),
            (IF_MATCH, "*", Holds, Holds, Failed),
            (IF_NONE_MATCH, "\"a\"", NotModified, Failed, Holds),
            (IF_NONE_MATCH, "W/\"a\"", NotModified, Failed, Holds),
            (IF_NONE_MATCH, "\"b\"", Holds, Holds, Holds),
            (IF_NONE_MATCH, "*", NotModified, Failed, Holds),
            (IF_UNMODIFIED_SINCE, DATE, Holds, Holds, Holds),
            (IF_UNMODIFIED_SINCE, before, Failed, Failed, Holds),
            (IF_MODIFIED_SINCE, DATE, NotModified, Holds, Holds),
            (IF_MODIFIED_SINCE, before, Holds, Holds, Holds),
            (IF_MODIFIED_SINCE, "yesterday", Holds, Holds, Holds),
        ] {
            let fields = [(field, value)];
            let file = file();
            assert_eq!(
                evaluate(&Method::GET, &fields, Some(&file)),
                get,
                "{fields:?}"
            );
            assert_eq!(
                evaluate(&Method::PUT, &fields, Some(&file)),
                put,
                "{fields:?}"
            );
            assert_eq!(evaluate(&Method::PUT, &fields, None), absent, "{fields:?}");
        }
        let both = [(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, DATE)];
        assert_eq!(evaluate(&Method::GET, &both, Some(&file())), Holds);
        let both = [(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, before)];
        assert_eq!(evaluate(&Method::GET, &both, Some(&file())), Holds);
    }

    #[test]
    fn a_collection_has_no_version() {
        let directory = EntityVersion {
            tag: None,
            modified_s: DATE_S,
        };
        let found = evaluate(&Method::PUT, &[(IF_MATCH, "\"a\"")], Some(&directory));
        assert_eq!(found, RequestCondition::Failed);
        let found = evaluate(&Method::PUT, &[(IF_NONE_MATCH, "*")], Some(&directory));
        assert_eq!(found, RequestCondition::Failed);
    }

    #[test]
    fn an_invalid_list_is_no_missing_one() {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, HeaderValue::from_static("b3-0"));
        let refused = RequestCondition::evaluate(&Method::PUT, &headers, None);
        assert_eq!(refused.expect_err("invalid").status(), 400);
    }

    #[test]
    fn the_commit_expects_the_version_that_was_looked_at() {
        let hash = ContentHash::EMPTY;
        let mut headers = HeaderMap::new();
        assert_eq!(
            pin_version(&headers, false, Some(hash)),
            EntryPrecondition::Any
        );
        let pinned = EntryPrecondition::Content(hash);
        assert_eq!(pin_version(&headers, true, Some(hash)), pinned);
        headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        assert_eq!(
            pin_version(&headers, false, None),
            EntryPrecondition::Absent
        );
        headers.insert(IF_MATCH, HeaderValue::from_static("*"));
        assert_eq!(pin_version(&headers, false, Some(hash)), pinned);
    }
}
