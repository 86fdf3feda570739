//! Reads the pause that an authority asks for. The protocol's library passes on the error, and drops the header that
//! has the time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

/// Pause after an authority reports too many requests and names no time.
pub const RATE_LIMITED_S: u64 = 3_600;

/// Longest pause that the node grants. An authority that asks for more may be wrong, and the certificate ends
/// meanwhile.
pub const RETRY_AFTER_MAX_S: u64 = 7 * 86_400;

/// The error type for too many requests (RFC 8555 section 6.7).
const RATE_LIMITED: &str = "urn:ietf:params:acme:error:rateLimited";

/// Most characters of an authority's error text that the node shows.
const WORDS_MAX: usize = 500;

/// The earliest time of the next request, in seconds from now or as Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RetryTime {
    In(u64),
    At(u64),
}

/// The pause of the last refusal.
#[derive(Debug, Default)]
pub(super) struct RetryAfter(Mutex<Option<RetryTime>>);

impl RetryAfter {
    /// Records what a response says about the next request.
    pub(super) fn record(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) {
        if let Some(retry_time) = retry_time(status, headers, body) {
            *self.lock() = Some(retry_time);
        }
    }

    /// Seconds from `now` for which no request may be sent, if a response asked for that since the last call.
    pub(super) fn take(&self, now: u64) -> Option<u64> {
        let seconds = match self.lock().take()? {
            RetryTime::In(seconds) => seconds,
            RetryTime::At(then) => then.saturating_sub(now),
        };
        Some(seconds.min(RETRY_AFTER_MAX_S))
    }

    fn lock(&self) -> MutexGuard<'_, Option<RetryTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the authority refused the request.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// A refusal as text.
pub(super) fn refusal_text(status: StatusCode, body: &[u8]) -> String {
    let problem = problem(body);
    let words = ["detail", "type"].map(|name| problem[name].as_str().unwrap_or_default());
    let mut text = format!("it answers {status}");
    for words in words.iter().filter(|words| !words.is_empty()) {
        text.push_str(": ");
        text.extend(words.chars().take(WORDS_MAX));
    }
    text
}

/// The problem document (RFC 9457) of a refusal; null if the body is not one.
pub(super) fn problem(body: &[u8]) -> Value {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    if value.is_object() {
        value
    } else {
        Value::Null
    }
}

fn retry_time(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<RetryTime> {
    if !is_refusal(status) {
        return None;
    }
    let too_often = || {
        let limited = problem(body)["type"] == RATE_LIMITED;
        limited || status == StatusCode::TOO_MANY_REQUESTS
    };
    header(headers).or_else(|| too_often().then_some(RetryTime::In(RATE_LIMITED_S)))
}

/// The header `Retry-After` (RFC 9110 section 10.2.3): seconds or a date.
fn header(headers: &HeaderMap) -> Option<RetryTime> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number with more digits than a u64 has is a long time as well, and `take` bounds it.
        return Some(RetryTime::In(text.parse().unwrap_or(u64::MAX)));
    }
    // HTTP's date (RFC 9110 section 5.6.7) is a form of the mail format's. A wrong day of the week does not matter.
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .relaxed_weekday(true)
        .parse_timestamp(text)
        .ok()?;
    Some(RetryTime::At(u64::try_from(date.as_second()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const LIMITED: &str = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"slow"}"#;

    /// The pause at the time 1,000,000,000 after such an answer.
    fn pause(status: u16, header: Option<&str>, body: &str) -> Option<u64> {
        let retry_after = RetryAfter::default();
        let status = StatusCode::from_u16(status).expect("a status");
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            let value = HeaderValue::from_str(header).expect("a header");
            headers.insert(RETRY_AFTER, value);
        }
        retry_after.record(status, &headers, body.as_bytes());
        let seconds = retry_after.take(1_000_000_000);
        assert_eq!(retry_after.take(1_000_000_000), None, "it is said once");
        seconds
    }

    #[test]
    fn the_pause_is_the_one_that_is_asked_for() {
        assert_eq!(pause(429, Some("7200"), LIMITED), Some(7200));
        assert_eq!(pause(503, Some(" 60 "), "<html>"), Some(60));
        assert_eq!(pause(403, Some("5"), "{}"), Some(5));
        // 2001-09-09 01:46:40 UTC is the time above.
        let date = "Sun, 09 Sep 2001 02:46:40 GMT";
        assert_eq!(pause(503, Some(date), ""), Some(3600));
        let past = "Sun, 09 Sep 2001 00:46:40 GMT";
        assert_eq!(pause(503, Some(past), ""), Some(0));
    }

    #[test]
    fn too_often_is_an_hour_where_nothing_else_is_said() {
        assert_eq!(pause(429, None, LIMITED), Some(RATE_LIMITED_S));
        assert_eq!(pause(403, None, LIMITED), Some(RATE_LIMITED_S));
        assert_eq!(pause(429, Some("soon"), "<html>"), Some(RATE_LIMITED_S));
    }

    #[test]
    fn an_answer_without_retry_after_gets_the_usual_pause() {
        for (status, header, body) in [
            (200, Some("7200"), "{}"),
            (503, None, "<html>"),
            (503, Some("soon"), ""),
            (503, Some(""), "[1]"),
            (
                400,
                None,
                r#"{"type":"urn:ietf:params:acme:error:badNonce"}"#,
            ),
        ] {
            assert_eq!(pause(status, header, body), None, "{status} {header:?}");
        }
    }

    #[test]
    fn no_pause_is_longer_than_the_limit() {
        let week = Some(RETRY_AFTER_MAX_S);
        assert_eq!(pause(429, Some("99999999999999999999999"), ""), week);
        assert_eq!(pause(429, Some("Sun, 06 Nov 2094 08:49:37 GMT"), ""), week);
    }

    #[test]
    fn a_refusal_quotes_the_authority() {
        let limited = refusal_text(StatusCode::TOO_MANY_REQUESTS, LIMITED.as_bytes());
        let expected = "it answers 429 Too Many Requests: slow: \
                        urn:ietf:params:acme:error:rateLimited";
        assert_eq!(limited, expected);
        let away = refusal_text(StatusCode::SERVICE_UNAVAILABLE, b"<html>");
        assert_eq!(away, "it answers 503 Service Unavailable");
        let long = format!(r#"{{"detail":"{}"}}"#, "x".repeat(100_000));
        assert!(refusal_text(StatusCode::BAD_GATEWAY, long.as_bytes()).len() < 600);
    }
}
