//! When the client sends a request again.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, Response, StatusCode};

use crate::error::HttpError;
use crate::limits::{RETRY_AFTER_MAX, RETRY_DELAY};

/// The time before the same request is sent again; `None` if the response counts.
pub(crate) fn delay<B>(answer: &Result<Response<B>, HttpError>, tried: u32) -> Option<Duration> {
    let usual = RETRY_DELAY * 2u32.saturating_pow(tried);
    match answer {
        Err(error) => error.is_worth_another_try().then_some(usual),
        Ok(answer) if may_recover(answer.status()) => match requested(answer.headers()) {
            Some(requested) => (requested <= RETRY_AFTER_MAX).then(|| requested.max(usual)),
            None => Some(usual),
        },
        Ok(_) => None,
    }
}

fn may_recover(status: StatusCode) -> bool {
    [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ]
    .contains(&status)
}

/// The time that `retry-after` requests (RFC 9110 section 10.2.3): seconds or a date.
fn requested(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows is longer than any delay that the client accepts.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .relaxed_weekday(true)
        .parse_timestamp(text)
        .ok()?;
    let then = SystemTime::from(date);
    Some(then.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, after: Option<&str>) -> Option<Duration> {
        let mut response = Response::builder().status(status);
        if let Some(after) = after {
            response = response.header("retry-after", after);
        }
        delay(&Ok(response.body(()).expect("an answer")), 1)
    }

    #[test]
    fn servers_are_asked_again_only_if_they_may_recover_soon() {
        let usual = Some(RETRY_DELAY * 2);
        for status in [429, 502, 503, 504] {
            assert_eq!(answer(status, None), usual);
        }
        for status in [200, 400, 401, 404, 500, 501] {
            assert_eq!(answer(status, Some("1")), None);
        }
        assert_eq!(answer(503, Some("7")), Some(Duration::from_secs(7)));
        assert_eq!(answer(503, Some("0")), usual);
        assert_eq!(answer(503, Some("31")), None);
        assert_eq!(answer(503, Some("99999999999999999999999")), None);
        assert_eq!(answer(503, Some("soon")), usual);
        assert_eq!(answer(503, Some("Sun, 06 Nov 1994 08:49:37 GMT")), usual);
        assert_eq!(answer(503, Some("Sun, 06 Nov 2094 08:49:37 GMT")), None);
    }
}
