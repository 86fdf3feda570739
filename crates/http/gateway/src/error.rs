//! Errors in the one form of all HTTP responses.

use alknet_call::{CallError, ErrorCode, LocalCallError};
use http::StatusCode;
use serde_json::{Value, json};
use thiserror::Error;

use crate::caller::RequestId;
use crate::limits::VIOLATIONS_MAX;

/// The message that callers get for a fault of this node.
const INTERNAL: &str = "the node failed; its log says more under the request's id";

/// The code of an error, which programs compare.
pub type Code = ErrorCode;

/// Why a request failed: a status and the body `{"error":{…}}`.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{status}: {error}")]
pub struct ApiError {
    /// The status of the response.
    pub status: StatusCode,
    /// The error that the body describes.
    pub error: Box<CallError>,
}

impl ApiError {
    /// An error of the gateway itself.
    pub fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self {
            status,
            error: Box::new(CallError::new(code, message)),
        }
    }

    /// The request does not match what the path takes: 400. `pointer` names the member (RFC 6901).
    pub fn malformed(pointer: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidInput, message);
        error.error.details = Some(Box::new(json!({ "pointer": pointer })));
        error
    }

    /// The token is missing, or belongs to no identity: 401.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorCode::Unauthenticated,
            message,
        )
    }

    /// The path does not exist, or the caller may not know of it: 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
    }

    /// A limit is reached: 429.
    pub fn overloaded(message: impl Into<String>, retry_after_ms: u64) -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Overloaded,
            message,
        );
        error.error.retry_after_ms = Some(retry_after_ms);
        error
    }

    /// A call's error for the caller of `request_id`. `known` is whether the caller has an identity.
    pub(crate) fn of_call(refused: LocalCallError, known: bool, request_id: &RequestId) -> Self {
        let LocalCallError {
            mut error,
            http_status,
        } = refused;
        // An unknown caller is asked for a token first (RFC 9110 section 15.5.2).
        if error.code == ErrorCode::Forbidden && !known {
            error.code = ErrorCode::Unauthenticated;
        }
        let status = status(&error, http_status);
        // The message of an internal failure may quote data that the caller must not read, so only the log gets it. A
        // status of its own says that the output is a server's, which the caller would have read.
        let is_own = error.code == ErrorCode::InvalidOutput && http_status.is_none();
        if is_own || error.code == ErrorCode::Internal {
            tracing::error!(%request_id, "a call failed: {error}");
            error.message = INTERNAL.to_owned();
            error.details = None;
        }
        if let Some(violations) = error.details.as_deref_mut().and_then(Value::as_array_mut) {
            // A long input can violate its schema at every item.
            violations.truncate(VIOLATIONS_MAX);
        }
        Self {
            status,
            error: Box::new(error),
        }
    }

    /// Seconds for `Retry-After`, rounded up; `None` if a retry cannot help.
    #[must_use]
    pub fn retry_after_s(&self) -> Option<u64> {
        let requested = self.error.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1));
        let expected = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        requested.or_else(|| expected.contains(&self.status).then_some(1))
    }

    /// The object in the member `error`.
    #[must_use]
    pub fn object(&self, request_id: &RequestId) -> Value {
        let error = &self.error;
        let mut object = json!({
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
        });
        if let Some(details) = &error.details {
            object["details"] = (**details).clone();
        }
        object["request_id"] = request_id.as_str().into();
        object
    }

    /// The whole body.
    #[must_use]
    pub fn body(&self, request_id: &RequestId) -> Value {
        json!({ "error": self.object(request_id) })
    }
}

fn status(error: &CallError, declared: Option<u16>) -> StatusCode {
    let ErrorCode::Operation(name) = &error.code else {
        if error.code == ErrorCode::InvalidOutput && declared == Some(502) {
            return StatusCode::BAD_GATEWAY;
        }
        // 499 appears in the log only, because the client is gone.
        let table = error.code.http_status();
        return StatusCode::from_u16(table).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let answered = name.strip_prefix("HTTP_");
    let imported = || answered?.parse().ok();
    let number = declared.or_else(imported);
    let number = match answered {
        Some(_) => number.map(relayed),
        None => number,
    };
    match number {
        None => StatusCode::UNPROCESSABLE_ENTITY,
        Some(number @ 400..=599) => {
            StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Some(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The status of this node for a status of a server that the node asked (RFC 9110 section 15.6): the client must not
/// take the server's verdict on the node's request for the node's verdict on the client's.
const fn relayed(status: u16) -> u16 {
    match status {
        // The server, or a proxy, wants the node to authenticate, so its challenge is not for the client.
        401 | 407 => 502,
        408 => 504,
        400..=499 | 503 | 504 => status,
        _ => 502,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode, http_status: Option<u16>) -> LocalCallError {
        LocalCallError {
            error: CallError::new(code, "secret cause"),
            http_status,
        }
    }

    fn status_of(code: &str, declared: Option<u16>, known: bool) -> u16 {
        let error = refused(ErrorCode::from_name(code), declared);
        ApiError::of_call(error, known, &RequestId::next())
            .status
            .as_u16()
    }

    #[test]
    fn codes_have_the_status_of_the_table() {
        for (code, status) in [
            ("NOT_FOUND", 404),
            ("UNAUTHENTICATED", 401),
            ("FORBIDDEN", 403),
            ("INVALID_INPUT", 422),
            ("INVALID_OPERATION_TYPE", 400),
            ("CONFLICT", 409),
            ("PAYLOAD_TOO_LARGE", 413),
            ("OVERLOADED", 429),
            ("INTERNAL", 500),
            ("INVALID_OUTPUT", 500),
            ("UNAVAILABLE", 503),
            ("TIMEOUT", 504),
        ] {
            assert_eq!(status_of(code, None, true), status, "{code}");
        }
        assert_eq!(status_of("FORBIDDEN", None, false), 401);
        assert_eq!(status_of("DISK_FULL", None, true), 422);
        assert_eq!(status_of("DISK_FULL", Some(507), true), 507);
        assert_eq!(status_of("DISK_FULL", Some(200), true), 500);
        assert_eq!(status_of("HTTP_418", None, true), 418);
    }

    #[test]
    fn a_failure_of_a_server_behind_the_node_is_no_failure_of_the_node() {
        for (code, status) in [
            ("HTTP_302", 502),
            ("HTTP_401", 502),
            ("HTTP_407", 502),
            ("HTTP_408", 504),
            ("HTTP_429", 429),
            ("HTTP_500", 502),
            ("HTTP_502", 502),
            ("HTTP_503", 503),
            ("HTTP_504", 504),
        ] {
            let number = code.strip_prefix("HTTP_").and_then(|it| it.parse().ok());
            assert_eq!(status_of(code, None, true), status, "{code}");
            // The document of the server may have declared it.
            assert_eq!(status_of(code, number, true), status, "{code}");
        }
        let error = refused(ErrorCode::from_name("HTTP_502"), None);
        let error = ApiError::of_call(error, true, &RequestId::next());
        assert_eq!(error.error.message, "secret cause", "the cause is named");
        let error = refused(ErrorCode::InvalidOutput, Some(502));
        let error = ApiError::of_call(error, true, &RequestId::next());
        assert_eq!(error.status, StatusCode::BAD_GATEWAY);
        assert_eq!(error.error.message, "secret cause", "the cause is named");
    }

    #[test]
    fn faults_of_the_node_say_nothing_but_where_to_look() {
        let id = RequestId::next();
        let error = ApiError::of_call(refused(ErrorCode::Internal, None), true, &id);
        let body = error.body(&id).to_string();
        assert!(!body.contains("secret") && body.contains(id.as_str()));
    }

    #[test]
    fn waiting_times_are_rounded_up() {
        assert_eq!(ApiError::overloaded("", 1).retry_after_s(), Some(1));
        assert_eq!(ApiError::overloaded("", 2001).retry_after_s(), Some(3));
        assert_eq!(ApiError::not_found("").retry_after_s(), None);
    }
}
