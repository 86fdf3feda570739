//! The conditions and the range of a request (RFC 9110 sections 13 and 14).

use std::ops::Range;

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};

/// What the response sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MirrorRange {
    /// The whole file.
    All,
    /// Nothing: the range begins at or after the end of the file.
    Beyond,
    /// Nothing: the client means another version of the file.
    Changed,
    /// Nothing: the client has this version.
    Known,
    /// These bytes.
    Part(Range<u64>),
}

/// What the client wants of the file with this tag and of `len` bytes; `whole` ignores `Range`.
pub(super) fn wanted(asked: &HeaderMap, tag: &str, len: u64, whole: bool) -> MirrorRange {
    let same = |one: &str| one == tag;
    // Conditions in the order of RFC 9110 section 13.2.2; this one compares strongly (section 13.1.1).
    if lists(asked, IF_MATCH, same) == Some(false) {
        return MirrorRange::Changed;
    }
    // A proxy that compressed the file on the way marks the tag as weak; its client has the content nevertheless
    // (weak comparison, RFC 9110 section 13.1.2).
    let alike = |one: &str| same(one.strip_prefix("W/").unwrap_or(one));
    if lists(asked, IF_NONE_MATCH, alike) == Some(true) {
        return MirrorRange::Known;
    }
    // RFC 9110 section 13.1.5: a range counts only if the client's version, compared strongly, is this one.
    let meant = asked
        .get(IF_RANGE)
        .is_none_or(|one| one.as_bytes() == tag.as_bytes());
    let range = asked.get(RANGE).filter(|_| meant && !whole);
    match range.and_then(|range| range.to_str().ok()) {
        Some(range) => part(range, len),
        None => MirrorRange::All,
    }
}

/// Whether a tag that the header lists matches; `None` if the header is absent.
fn lists(asked: &HeaderMap, name: HeaderName, meant: impl Fn(&str) -> bool) -> Option<bool> {
    let mut lists = asked.get_all(name).iter().peekable();
    lists.peek()?;
    Some(lists.any(|list| {
        let tags = list.to_str().unwrap_or_default().split(',');
        tags.map(str::trim).any(|tag| tag == "*" || meant(tag))
    }))
}

/// Reads a `Range`. Several ranges, and one that cannot be read, stand for the whole file.
fn part(text: &str, len: u64) -> MirrorRange {
    let bytes = text
        .split_once('=')
        .filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"));
    // RFC 9110 section 14.2 lets a server ignore a range that it does not understand.
    let Some((first, last)) = bytes.and_then(|(_, range)| range.trim().split_once('-')) else {
        return MirrorRange::All;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        // A number that overflows lies behind the end of every file.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let range = match (first, number(first), last, number(last)) {
        (_, Some(first), "", _) => first..len,
        (_, Some(first), _, Some(last)) if first <= last => first..last.saturating_add(1).min(len),
        ("", _, _, Some(bytes)) => len.saturating_sub(bytes)..len,
        _ => return MirrorRange::All,
    };
    match range.start < range.end {
        true => MirrorRange::Part(range),
        false => MirrorRange::Beyond,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"0a\"";

    fn range_for(headers: &[(HeaderName, &'static str)]) -> MirrorRange {
        let headers = headers.iter().cloned();
        let headers = headers.map(|(name, value)| (name, http::HeaderValue::from_static(value)));
        wanted(&headers.collect(), TAG, 100, false)
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (text, range) in [
            ("bytes=0-9", 0..10),
            ("Bytes = 0-9", 0..10),
            ("bytes=90-", 90..100),
            ("bytes=90-1000", 90..100),
            ("bytes=-10", 90..100),
            ("bytes=-1000", 0..100),
            ("bytes=0-99999999999999999999999", 0..100),
        ] {
            assert_eq!(
                range_for(&[(RANGE, text)]),
                MirrorRange::Part(range),
                "{text}"
            );
        }
        for text in [
            "bytes=100-",
            "bytes=100-200",
            "bytes=-0",
            "bytes=99999999999999999999999-",
        ] {
            assert_eq!(range_for(&[(RANGE, text)]), MirrorRange::Beyond, "{text}");
        }
        for text in [
            "bytes=9-0",
            "bytes=a-b",
            "bytes=-",
            "bytes=0-1,5-6",
            "bytes=5-,0-1",
            "bytes=+1-2",
            "lines=0-9",
            "0-9",
        ] {
            assert_eq!(range_for(&[(RANGE, text)]), MirrorRange::All, "{text}");
        }
    }

    #[test]
    fn a_part_is_sent_of_the_file_that_is_meant() {
        let part = (RANGE, "bytes=0-9");
        for (conditions, wanted) in [
            (
                [part.clone(), (IF_RANGE, "\"0a\"")],
                MirrorRange::Part(0..10),
            ),
            ([part.clone(), (IF_RANGE, "\"0b\"")], MirrorRange::All),
            ([part.clone(), (IF_RANGE, "W/\"0a\"")], MirrorRange::All),
            (
                [part.clone(), (IF_NONE_MATCH, "\"0a\"")],
                MirrorRange::Known,
            ),
            (
                [part.clone(), (IF_NONE_MATCH, "\"b\", W/\"0a\"")],
                MirrorRange::Known,
            ),
            ([part.clone(), (IF_NONE_MATCH, "*")], MirrorRange::Known),
            (
                [part.clone(), (IF_NONE_MATCH, "\"0b\"")],
                MirrorRange::Part(0..10),
            ),
            (
                [part.clone(), (IF_MATCH, "\"0a\"")],
                MirrorRange::Part(0..10),
            ),
            ([part.clone(), (IF_MATCH, "*")], MirrorRange::Part(0..10)),
            ([part.clone(), (IF_MATCH, "W/\"0a\"")], MirrorRange::Changed),
            ([part, (IF_MATCH, "\"0b\"")], MirrorRange::Changed),
        ] {
            assert_eq!(range_for(&conditions), wanted, "{conditions:?}");
        }
    }

    #[test]
    fn a_part_is_not_sent_where_there_is_none_to_be_had() {
        let headers = [(RANGE, http::HeaderValue::from_static("bytes=0-9"))];
        let headers = headers.into_iter().collect();
        assert_eq!(wanted(&headers, TAG, 100, true), MirrorRange::All);
    }
}
