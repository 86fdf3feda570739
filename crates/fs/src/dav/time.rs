//! Dates of HTTP (RFC 9110 §5.6.7).

use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};

/// Nanoseconds of a second.
const SECOND_NS: i64 = 1_000_000_000;

/// The date of a time in nanoseconds since 1970-01-01 UTC. A fraction of a second is cut off, so that no date lies in the
/// future of its time.
///
/// ```
/// use alknet_fs::dav::{http_date, parse_http_date};
///
/// let date = http_date(784_111_777_900_000_000);
/// assert_eq!(date.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
/// assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
/// ```
#[must_use]
pub fn http_date(time_ns: i64) -> Option<String> {
    let time = Timestamp::from_second(time_ns.div_euclid(SECOND_NS)).ok()?;
    DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&time)
        .ok()
}

/// The seconds since 1970-01-01 UTC of a date. The obsolete forms of RFC 850 and asctime are not read, and such a field is
/// as if it was not there.
#[must_use]
pub fn parse_http_date(text: &str) -> Option<i64> {
    let text = text.trim();
    // The library reads each date of mail, and HTTP has one zone only.
    let date = DateTimeParser::new().parse_timestamp(text).ok()?;
    text.ends_with("GMT").then(|| date.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_standard() {
        let text = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(http_date(784_111_777 * SECOND_NS).as_deref(), Some(text));
        assert_eq!(
            http_date(784_111_778 * SECOND_NS - 1).as_deref(),
            Some(text)
        );
        assert_eq!(parse_http_date(text), Some(784_111_777));
        let before = http_date(-1);
        assert_eq!(before.as_deref(), Some("Wed, 31 Dec 1969 23:59:59 GMT"));
        for other in [
            "",
            "yesterday",
            "Sun, 06 Nov 1994 08:49:37 +0100",
            "784111777",
        ] {
            assert_eq!(parse_http_date(other), None, "{other}");
        }
    }
}
