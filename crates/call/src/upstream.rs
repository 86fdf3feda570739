//! Failures of peers, and of servers that speak another protocol, as an operation that uses them passes them on.
//!
//! A script that calls an imported operation and lets its error pass would otherwise end with `INTERNAL`, as for a
//! fault of its own. The node itself notes how an imported operation failed: scripts can make any error.

use serde_json::json;

use crate::compiled::CompiledOperation;
use crate::error::{CallError, ErrorCode};
use crate::request::InboundRequest;
use crate::spec::ErrorDef;

/// Code of an operation whose server answered with an error, or with an invalid answer. Over HTTP it is 502; a server
/// that cannot be reached is `UNAVAILABLE` (503), and one that does not answer in time `TIMEOUT` (504).
pub const BAD_GATEWAY: &str = "HTTP_502";
/// The beginning of codes for the statuses of servers.
const STATUS_CODE: &str = "HTTP_";
/// The beginning of codes of servers of tools.
const TOOL_CODE: &str = "MCP_";

/// The target of the log's records of why servers and peers failed. Callers bring them about: a log keeps some of
/// them.
pub const CAUSE_TARGET: &str = "alknet_call::upstream";

/// The scope of callers that read the node's own record, and so the whole cause.
const CAUSE_SCOPE: &str = "node:read";

/// How the server or the peer behind an imported operation failed. The values are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum UpstreamFailure {
    /// It answered with an error, or with an invalid answer.
    BadAnswer = 1,
    /// It did not answer in time.
    TimedOut = 2,
    /// It cannot be reached, or refuses work at this moment.
    Unavailable = 4,
}

impl UpstreamFailure {
    /// How it failed, by the code of the imported operation. `None` where the request was to blame, or this node.
    pub(crate) fn from_code(code: &ErrorCode) -> Option<Self> {
        match code {
            ErrorCode::Unavailable => Some(Self::Unavailable),
            ErrorCode::Timeout => Some(Self::TimedOut),
            ErrorCode::InvalidOutput | ErrorCode::PayloadTooLarge => Some(Self::BadAnswer),
            ErrorCode::Operation(name) => match name.strip_prefix(STATUS_CODE) {
                // RFC 6585, section 4, and RFC 9110, section 15.6.4: the server works again later.
                Some("429" | "503") => Some(Self::Unavailable),
                // RFC 9110, sections 15.5.9 and 15.6.5.
                Some("408" | "504") => Some(Self::TimedOut),
                Some(_) => Some(Self::BadAnswer),
                None => name.starts_with(TOOL_CODE).then_some(Self::BadAnswer),
            },
            _ => None,
        }
    }

    /// How it failed, in the node's own words, where the imported operation ended with `code`. The server's words and
    /// this node's way to it are for readers of the node's log.
    pub(crate) fn words(self, code: &ErrorCode) -> String {
        let status = status(code);
        let how = match (self, status) {
            (Self::BadAnswer | Self::Unavailable, Some(status)) => {
                format!("answered with status {status}")
            }
            (Self::BadAnswer, None) => {
                "answered with an error, or with an answer that does not fit".to_owned()
            }
            (Self::TimedOut, _) => "did not answer in time".to_owned(),
            (Self::Unavailable, None) => "cannot be reached or used now".to_owned(),
        };
        format!("a server or peer that the operation uses {how}")
    }

    /// The error for the caller of the operation that used it. Not retryable: that operation may have done other
    /// things.
    pub(crate) fn error(self, message: &str) -> CallError {
        let code = match self {
            Self::BadAnswer => ErrorCode::from_name(BAD_GATEWAY),
            Self::TimedOut => ErrorCode::Timeout,
            Self::Unavailable => ErrorCode::Unavailable,
        };
        let mut error = CallError::new(code, message);
        // The operation may have changed something before its server failed.
        error.retryable = false;
        error
    }
}

impl InboundRequest {
    /// Whether its requester may read why a server failed. A node that passes requests on may have the scope, and its
    /// requester need not.
    pub(crate) fn reads_causes(&self) -> bool {
        let is_own = self.head.hops == 0 && self.forwarded_for().is_none();
        let identity = self.identity();
        is_own && identity.is_some_and(|it| it.scopes.allows(CAUSE_SCOPE))
    }

    /// The failure of its own operation, as its requester may see it.
    pub(crate) fn visible(&self, error: CallError) -> CallError {
        self.visible_error(self.operation(), error)
    }

    /// Like `visible`, for an operation called in the course of it. This node's way to the server of an import, and why
    /// it failed, are for readers of the node's log, which gets the text in that case. The server's answer stays: it
    /// answers this request.
    pub(crate) fn visible_error(
        &self,
        operation: &CompiledOperation,
        error: CallError,
    ) -> CallError {
        let error = operation.visible(error);
        let is_cause = matches!(error.code, ErrorCode::Timeout | ErrorCode::Unavailable);
        // An error with details is this node's own, such as that of a locked vault.
        let hides = operation.provenance.is_server() && is_cause && error.details.is_none();
        // The administrator may read addresses and texts of the node's servers.
        if !hides || self.reads_causes() {
            return error;
        }
        let Some(failure) = UpstreamFailure::from_code(&error.code) else {
            return error;
        };
        // The text is a server's: escaped, it cannot forge lines of the log.
        tracing::warn!(
            target: CAUSE_TARGET,
            request_id = self.id(),
            operation = operation.spec.name,
            code = error.code.name(),
            "a server of an import failed: {:?}",
            error.message
        );
        CallError {
            message: failure.words(&error.code),
            ..error
        }
    }
}

/// The status of the server's answer, by the code of the imported operation. [`BAD_GATEWAY`] may come from an
/// operation in between, which names no status.
fn status(code: &ErrorCode) -> Option<u16> {
    let name = code.name();
    let digits = name.strip_prefix(STATUS_CODE)?;
    let status = digits.parse().ok()?;
    (name != BAD_GATEWAY && (100..=599).contains(&status)).then_some(status)
}

/// The declaration of an operation that may end with [`BAD_GATEWAY`].
#[must_use]
pub fn bad_gateway_def() -> ErrorDef {
    ErrorDef {
        code: BAD_GATEWAY.to_owned(),
        description:
            "A server that the operation uses answered with an error or with a wrong answer."
                .to_owned(),
        schema: json!({
            "type": "object",
            "properties": { "code": { "type": "string" }, "path": { "type": "string" } },
        }),
        http_status: Some(502),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_imported_operations_say_how_the_server_failed() {
        use UpstreamFailure::{BadAnswer, TimedOut, Unavailable};
        for (code, failure) in [
            ("UNAVAILABLE", Some(Unavailable)),
            ("HTTP_429", Some(Unavailable)),
            ("HTTP_503", Some(Unavailable)),
            ("TIMEOUT", Some(TimedOut)),
            ("HTTP_408", Some(TimedOut)),
            ("HTTP_504", Some(TimedOut)),
            ("HTTP_401", Some(BadAnswer)),
            ("HTTP_404", Some(BadAnswer)),
            ("HTTP_500", Some(BadAnswer)),
            ("HTTP_502", Some(BadAnswer)),
            ("INVALID_OUTPUT", Some(BadAnswer)),
            ("MCP_SERVER_ERROR", Some(BadAnswer)),
            ("MCP_TOOL_ERROR", Some(BadAnswer)),
            ("PAYLOAD_TOO_LARGE", Some(BadAnswer)),
            // The faults of the caller's input, this node's room and this node's rules.
            ("INVALID_INPUT", None),
            ("OVERLOADED", None),
            ("FORBIDDEN", None),
            ("OUT_OF_INK", None),
        ] {
            assert_eq!(
                UpstreamFailure::from_code(&ErrorCode::from_name(code)),
                failure,
                "{code}"
            );
        }
    }

    #[test]
    fn words_say_how_it_failed() {
        for (code, words) in [
            ("UNAVAILABLE", "cannot be reached or used now"),
            ("HTTP_503", "answered with status 503"),
            ("HTTP_404", "answered with status 404"),
            ("TIMEOUT", "did not answer in time"),
            ("HTTP_504", "did not answer in time"),
            ("HTTP_502", "answered with an error"),
            ("HTTP_teapot", "answered with an error"),
            ("MCP_TOOL_ERROR", "answered with an error"),
        ] {
            let code = ErrorCode::from_name(code);
            let failure = UpstreamFailure::from_code(&code).expect("a server's");
            let text = failure.words(&code);
            assert!(text.contains(words), "{code:?}: {text}");
        }
    }

    #[test]
    fn each_failure_has_its_own_status() {
        use UpstreamFailure::{BadAnswer, TimedOut, Unavailable};
        let code = |failure: UpstreamFailure| failure.error("x").code;
        assert_eq!(code(BadAnswer).name(), BAD_GATEWAY);
        assert_eq!(code(TimedOut).http_status(), 504);
        assert_eq!(code(Unavailable).http_status(), 503);
        assert_eq!(bad_gateway_def().http_status, Some(502));
        assert!(ErrorCode::may_declare(BAD_GATEWAY));
    }
}
