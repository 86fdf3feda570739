//! Parts of a file (RFC 9110 section 14).

use std::ops::Range;

use crate::limits::SITE_RANGES_MAX;

/// The part of a file to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ByteRange {
    /// The whole file: the request has no range, an invalid one, or too many.
    All,
    /// No part: the range begins after the end.
    Beyond,
    /// These bytes.
    Part(Range<u64>),
}

/// Parses a `Range` header for a file of `len` bytes.
pub(super) fn parse(text: &str, len: u64) -> ByteRange {
    // A server ignores a unit that it does not know (RFC 9110 section 14.2).
    let Some(ranges) = text.trim().strip_prefix("bytes=") else {
        return ByteRange::All;
    };
    let mut ranges = ranges
        .split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty());
    let (Some(one), rest) = (ranges.next(), ranges.count()) else {
        return ByteRange::All;
    };
    // The standard allows a server to ignore ranges (RFC 9110 section 14.2), and many small ranges cost more than the
    // file.
    if rest + 1 > SITE_RANGES_MAX {
        return ByteRange::All;
    }
    let Some((from, to)) = one.split_once('-') else {
        return ByteRange::All;
    };
    let number = |text: &str| {
        // `parse` accepts a plus sign, which no range has.
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(from), number(to)) {
        (Some(from), _) if from >= len => ByteRange::Beyond,
        (Some(from), None) if to.is_empty() => ByteRange::Part(from..len),
        // The end may be any number, up to the largest one.
        (Some(from), Some(to)) if from <= to => {
            ByteRange::Part(from..to.saturating_add(1).min(len))
        }
        // A suffix of zero bytes is empty (RFC 9110 section 14.1.2).
        (None, Some(0)) if from.is_empty() => ByteRange::Beyond,
        (None, Some(last)) if from.is_empty() && len > 0 => {
            ByteRange::Part(len.saturating_sub(last)..len)
        }
        (None, Some(_)) if from.is_empty() => ByteRange::Beyond,
        _ => ByteRange::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (text, wanted) in [
            ("bytes=0-9", ByteRange::Part(0..10)),
            ("bytes=90-", ByteRange::Part(90..100)),
            ("bytes=90-1000", ByteRange::Part(90..100)),
            ("bytes=-10", ByteRange::Part(90..100)),
            ("bytes=-1000", ByteRange::Part(0..100)),
            ("bytes=100-", ByteRange::Beyond),
            ("bytes=-0", ByteRange::Beyond),
            ("bytes=9-0", ByteRange::All),
            ("bytes=a-b", ByteRange::All),
            ("bytes=0-1,5-6", ByteRange::All),
            ("lines=0-9", ByteRange::All),
            ("bytes=99999999999999999999999-", ByteRange::Beyond),
        ] {
            assert_eq!(parse(text, 100), wanted, "{text}");
        }
        assert_eq!(parse("bytes=0-", 0), ByteRange::Beyond);
    }
}
