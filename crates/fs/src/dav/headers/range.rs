//! Ranges of a file (RFC 9110 §14).

use std::ops::Range;

use http::HeaderMap;
use http::header::{IF_RANGE, RANGE};

use crate::dav::limits::RANGES_MAX;
use crate::dav::time::parse_http_date;

use super::precondition::EntityVersion;
use super::{EntityTag, parse_digits};

/// What of a file a response has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeSelection {
    /// All of it (status 200).
    Whole,
    /// These ranges (status 206), in the order of the request: none is empty, and no two overlap.
    Parts(Vec<Range<u64>>),
    /// Nothing: every range begins after the end (status 416).
    Unsatisfiable,
}

impl RangeSelection {
    /// What a GET asks for, of a file with this size and version. A server may ignore ranges (RFC 9110 §14.2), and this one
    /// does where they cost more than the file: if they are more than [`RANGES_MAX`], or overlap.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap, size: u64, current: &EntityVersion) -> Self {
        let field = |name| headers.get(name).and_then(|it| it.to_str().ok());
        // Two lines make no valid field, and joined they would be another request.
        let is_single = headers.get_all(RANGE).iter().nth(1).is_none();
        let Some(range) = field(RANGE).filter(|_| is_single) else {
            return Self::Whole;
        };
        if headers.contains_key(IF_RANGE)
            && !field(IF_RANGE).is_some_and(|it| is_current(it, current))
        {
            return Self::Whole;
        }
        Self::parse(range, size)
    }

    /// Parses the value of a `Range` field.
    #[must_use]
    pub fn parse(text: &str, size: u64) -> Self {
        // A server ignores units that it does not know.
        let text = text.trim();
        let unit = text.get(..6).filter(|it| it.eq_ignore_ascii_case("bytes="));
        if unit.is_none() {
            return Self::Whole;
        }
        let mut parts: Vec<Range<u64>> = Vec::new();
        let ranges = text[6..].split(',').map(str::trim);
        for (at, range) in ranges.filter(|it| !it.is_empty()).enumerate() {
            if at >= RANGES_MAX {
                return Self::Whole;
            }
            match parse_range(range, size) {
                // One invalid range makes the field invalid.
                None => return Self::Whole,
                Some(range) if range.is_empty() => {}
                Some(range) => {
                    let overlaps = |it: &Range<u64>| it.start < range.end && range.start < it.end;
                    if parts.iter().any(overlaps) {
                        return Self::Whole;
                    }
                    parts.push(range);
                }
            }
        }
        let has_ranges = text[6..].bytes().any(|it| it.is_ascii_digit());
        match parts.is_empty() {
            false => Self::Parts(parts),
            true if has_ranges => Self::Unsatisfiable,
            true => Self::Whole,
        }
    }
}

/// One range, cut at the end of the file; empty if nothing of it is in the file, and `None` if it is invalid.
fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.split_once('-')?;
    match (parse_digits(first), parse_digits(last)) {
        (Some(first), None) if last.is_empty() => Some(first.min(size)..size),
        (Some(first), Some(last)) if first <= last => {
            let end = last.saturating_add(1).min(size);
            Some(first.min(end)..end)
        }
        // The last bytes.
        (None, Some(length)) if first.is_empty() => Some(size.saturating_sub(length)..size),
        _ => None,
    }
}

/// Whether an `If-Range` names the present version (RFC 9110 §13.1.5): by a strong tag, or by its very date.
fn is_current(text: &str, current: &EntityVersion) -> bool {
    match EntityTag::parse(text.trim()) {
        Some(tag) => current
            .tag
            .as_ref()
            .is_some_and(|it| it.is_strongly_equal(&tag)),
        None => parse_http_date(text) == Some(current.modified_s),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn parts(ranges: &[(u64, u64)]) -> RangeSelection {
        RangeSelection::Parts(ranges.iter().map(|(start, end)| *start..*end).collect())
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (text, expected) in [
            ("bytes=0-9", parts(&[(0, 10)])),
            ("BYTES=90-", parts(&[(90, 100)])),
            ("bytes=90-1000", parts(&[(90, 100)])),
            ("bytes=-10", parts(&[(90, 100)])),
            ("bytes=-1000", parts(&[(0, 100)])),
            ("bytes=0-1, 5-6 ,,", parts(&[(0, 2), (5, 7)])),
            ("bytes=5-6,0-1,200-", parts(&[(5, 7), (0, 2)])),
            ("bytes=100-", RangeSelection::Unsatisfiable),
            ("bytes=-0", RangeSelection::Unsatisfiable),
            ("bytes=100-,200-300", RangeSelection::Unsatisfiable),
            (
                "bytes=99999999999999999999999-",
                RangeSelection::Unsatisfiable,
            ),
            ("bytes=0-99999999999999999999999", parts(&[(0, 100)])),
            ("bytes=9-0", RangeSelection::Whole),
            ("bytes=a-b", RangeSelection::Whole),
            ("bytes=0-1,x", RangeSelection::Whole),
            ("bytes=+0-1", RangeSelection::Whole),
            ("bytes=-", RangeSelection::Whole),
            ("bytes=", RangeSelection::Whole),
            ("bytes=0-5,5-6", RangeSelection::Whole),
            ("lines=0-9", RangeSelection::Whole),
            ("", RangeSelection::Whole),
        ] {
            assert_eq!(RangeSelection::parse(text, 100), expected, "{text}");
        }
        assert_eq!(
            RangeSelection::parse("bytes=0-", 0),
            RangeSelection::Unsatisfiable
        );
        assert_eq!(
            RangeSelection::parse("bytes=-5", 0),
            RangeSelection::Unsatisfiable
        );
    }

    #[test]
    fn too_many_ranges_are_the_whole_file() {
        let ranges = |count: u64| {
            let ranges: Vec<_> = (0..count).map(|at| format!("{0}-{0}", 2 * at)).collect();
            RangeSelection::parse(&format!("bytes={}", ranges.join(",")), 1 << 20)
        };
        let most = RANGES_MAX as u64;
        assert!(matches!(ranges(most), RangeSelection::Parts(parts) if parts.len() == RANGES_MAX));
        assert_eq!(ranges(most + 1), RangeSelection::Whole);
        assert_eq!(ranges(1000), RangeSelection::Whole);
    }

    #[test]
    fn a_range_of_another_version_is_the_whole_file() {
        let current = EntityVersion {
            tag: EntityTag::parse("\"a\""),
            modified_s: 784_111_777,
        };
        for (condition, is_part) in [
            (None, true),
            (Some("\"a\""), true),
            (Some("W/\"a\""), false),
            (Some("\"b\""), false),
            (Some("Sun, 06 Nov 1994 08:49:37 GMT"), true),
            (Some("Sun, 06 Nov 1994 08:49:38 GMT"), false),
            (Some("junk"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
            if let Some(condition) = condition {
                headers.insert(IF_RANGE, HeaderValue::from_static(condition));
            }
            let found = RangeSelection::from_headers(&headers, 10, &current);
            let expected = if is_part {
                parts(&[(0, 1)])
            } else {
                RangeSelection::Whole
            };
            assert_eq!(found, expected, "{condition:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append(RANGE, HeaderValue::from_static("bytes=0-0"));
        twice.append(RANGE, HeaderValue::from_static("bytes=2-2"));
        let found = RangeSelection::from_headers(&twice, 10, &current);
        assert_eq!(found, RangeSelection::Whole);
    }

    proptest! {
        #[test]
        fn parts_lie_in_the_file_and_do_not_overlap(text in "bytes=[0-9,-]{0,30}", size in 0..1000_u64) {
            if let RangeSelection::Parts(parts) = RangeSelection::parse(&text, size) {
                prop_assert!(!parts.is_empty() && parts.len() <= RANGES_MAX);
                let total: u64 = parts.iter().map(|it| it.end - it.start).sum();
                prop_assert!(total <= size);
                for part in parts {
                    prop_assert!(part.start < part.end && part.end <= size);
                }
            }
        }
    }
}
