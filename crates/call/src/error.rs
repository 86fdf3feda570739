//! What a call can fail with: stable codes that peers switch on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::CapabilityError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use crate::limits::{DRAIN_RETRY_MS, ERROR_MESSAGE_BYTES_MAX, OVERLOAD_RETRY_MS};

/// The code of a [`CallError`].
///
/// ```
/// use alknet_call::ErrorCode;
///
/// assert_eq!(ErrorCode::from_name("NOT_FOUND"), ErrorCode::NotFound);
/// assert_eq!(ErrorCode::NotFound.http_status(), 404);
/// assert!(ErrorCode::Overloaded.retryable());
/// assert!(ErrorCode::may_declare("NO_SUCH_NOTE"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Local view of an abort.
    Aborted,
    /// The state does not allow it: a reused idempotency key, a lost compare-and-swap.
    Conflict,
    /// The identity lacks the right.
    Forbidden,
    /// A fault of this node: panic, undeclared error.
    Internal,
    /// The input violates the operation's schema.
    InvalidInput,
    /// The call used the wrong operation type.
    InvalidOperationType,
    /// The output violates the operation's schema.
    InvalidOutput,
    /// No such operation, or the caller may not know of it.
    NotFound,
    /// A code of the operation itself, declared in its `error_schemas`.
    Operation(Arc<str>),
    /// Too much in flight.
    Overloaded,
    /// The response would exceed the peer's frame limit.
    PayloadTooLarge,
    /// The deadline passed.
    Timeout,
    /// The operation needs an identity and the caller has none, or the token is not valid.
    Unauthenticated,
    /// Connection lost, peer draining, dependency down.
    Unavailable,
}

/// One row of the table that every part of the system shares.
struct ErrorCodeRow {
    code: ErrorCode,
    name: &'static str,
    retryable: bool,
    http: u16,
    exit: u8,
}

const fn row(
    code: ErrorCode,
    name: &'static str,
    retryable: bool,
    http: u16,
    exit: u8,
) -> ErrorCodeRow {
    ErrorCodeRow {
        code,
        name,
        retryable,
        http,
        exit,
    }
}

static TABLE: [ErrorCodeRow; 13] = [
    row(ErrorCode::NotFound, "NOT_FOUND", false, 404, 1),
    row(ErrorCode::Unauthenticated, "UNAUTHENTICATED", false, 401, 4),
    row(ErrorCode::Forbidden, "FORBIDDEN", false, 403, 4),
    // RFC 9110, section 15.5.21: the syntax is right, and the content is not what the operation takes.
    row(ErrorCode::InvalidInput, "INVALID_INPUT", false, 422, 2),
    row(ErrorCode::InvalidOutput, "INVALID_OUTPUT", false, 500, 1),
    row(
        ErrorCode::InvalidOperationType,
        "INVALID_OPERATION_TYPE",
        false,
        400,
        2,
    ),
    row(ErrorCode::Timeout, "TIMEOUT", true, 504, 5),
    // No RFC has a status for a client that went away: 499 is what web servers log. 130 is how shells report an
    // interrupt.
    row(ErrorCode::Aborted, "ABORTED", false, 499, 130),
    // RFC 6585, section 4: the requester is to try again later. The node itself works, which 503 would deny.
    row(ErrorCode::Overloaded, "OVERLOADED", true, 429, 1),
    row(
        ErrorCode::PayloadTooLarge,
        "PAYLOAD_TOO_LARGE",
        false,
        413,
        1,
    ),
    row(ErrorCode::Unavailable, "UNAVAILABLE", true, 503, 3),
    row(ErrorCode::Conflict, "CONFLICT", false, 409, 1),
    row(ErrorCode::Internal, "INTERNAL", false, 500, 1),
];

/// HTTP status of an operation's own error that declares no status.
const OPERATION_HTTP: u16 = 422;

/// Bytes of the longest code that an operation may declare.
const CODE_BYTES_MAX: usize = 64;

impl ErrorCode {
    /// Every code of the protocol itself.
    pub fn table() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.code.clone())
    }

    /// The code behind a name; a name outside of the table is an operation's own.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        TABLE
            .iter()
            .find(|row| row.name == name)
            // Names outside of the table are legal: an operation declares its own codes.
            .map_or_else(|| Self::Operation(name.into()), |row| row.code.clone())
    }

    /// The name on the wire.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Operation(name) => name,
            _ => self.row().map_or("INTERNAL", |row| row.name),
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.row().is_some_and(|row| row.retryable)
    }

    /// The HTTP status with the same meaning.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        self.row().map_or(OPERATION_HTTP, |row| row.http)
    }

    /// Exit code of the command line.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.row().map_or(1, |row| row.exit)
    }

    /// Whether an operation may declare `name` as a code of its own: `[A-Z][A-Z0-9_]{2,63}`, and no name of the
    /// table.
    #[must_use]
    pub fn may_declare(name: &str) -> bool {
        let mut bytes = name.bytes();
        (3..=CODE_BYTES_MAX).contains(&name.len())
            && bytes.next().is_some_and(|b| b.is_ascii_uppercase())
            && bytes.all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
            && TABLE.iter().all(|row| row.name != name)
    }

    fn row(&self) -> Option<&'static ErrorCodeRow> {
        TABLE.iter().find(|row| row.code == *self)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::from_name(&name))
    }
}

/// How a call failed; the payload of `call.error`.
///
/// ```
/// use alknet_call::CallError;
/// use serde_json::json;
///
/// let error = CallError::operation("NO_SUCH_NOTE", "there is no note 7");
/// let error = error.with_details(json!({ "id": 7 }));
/// assert_eq!(error.to_string(), "NO_SUCH_NOTE: there is no note 7");
/// assert!(!error.retryable);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Error)]
#[error("{code}: {message}")]
pub struct CallError {
    /// The code that programs switch on.
    pub code: ErrorCode,
    /// Text for people; programs never parse it.
    #[serde(default)]
    pub message: String,
    /// Whether the same call may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// Facts for programs, by code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Value>>,
    /// How long to wait before a retry, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl CallError {
    /// An error that is retryable as the table says.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            retryable: code.retryable(),
            code,
            message: message.into(),
            details: None,
            retry_after_ms: None,
        }
    }

    /// An operation's own error. The operation must declare `code` in its `error_schemas`, or the caller sees
    /// `INTERNAL`.
    #[must_use]
    pub fn operation(code: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::from_name(code), message)
    }

    /// Facts for programs.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// How long the caller should wait before it tries again.
    #[must_use]
    pub fn with_retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The same error for a call that the caller must not repeat.
    pub(crate) fn not_retryable(mut self) -> Self {
        self.retryable = false;
        self.retry_after_ms = None;
        self
    }

    /// The same error with `{"omitted": true}` in place of its details, and the beginning of its message: what stays
    /// of an error that is too large to keep or to send.
    pub(crate) fn abridged(&self) -> Self {
        let omitted = || Box::new(json!({ "omitted": true }));
        // No operation can declare a longer code, so no caller decides by it.
        let code = match self.code.name().len() <= CODE_BYTES_MAX {
            true => self.code.clone(),
            false => ErrorCode::Internal,
        };
        Self {
            code,
            message: beginning(&self.message),
            retryable: self.retryable,
            details: self.details.as_ref().map(|_| omitted()),
            retry_after_ms: self.retry_after_ms,
        }
    }

    /// Bytes of memory that its code, message and details take.
    pub(crate) fn kept_bytes(&self) -> usize {
        let code = match &self.code {
            ErrorCode::Operation(name) => name.len(),
            _ => 0,
        };
        let details = self.details.as_ref();
        code + self.message.len() + details.map_or(0, |details| VALUE_BYTES + within(details))
    }

    /// The input is not what the operation takes.
    #[must_use]
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidInput, message)
    }

    /// A fault of this node.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// The other side cannot be reached at present.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// No such operation, or one that the caller may not know of: both look the same.
    #[must_use]
    pub fn not_found(operation: &str) -> Self {
        let message = format!("there is no operation '{operation}'; services/list names them");
        Self::new(ErrorCode::NotFound, message)
    }

    /// The token is not valid: this node never made it, it has ended, or the text is no token.
    #[must_use]
    pub fn bad_token() -> Self {
        let message = "the token is unknown or expired; 'alknet token add' makes a new one";
        Self::new(ErrorCode::Unauthenticated, message)
    }

    /// The token is not valid, and neither were too many others from the same network lately. `left` is how long
    /// wrong tokens still get this error.
    #[must_use]
    pub fn too_many_guesses(left: Duration) -> Self {
        let message =
            "too many wrong tokens came from this network; a right one is taken at any time";
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Self::new(ErrorCode::Overloaded, message).with_retry_after_ms(left_ms)
    }

    pub(crate) fn draining() -> Self {
        Self::unavailable("the node is shutting down; connect again in a moment")
            .with_retry_after_ms(DRAIN_RETRY_MS)
    }

    pub(crate) fn overloaded(what: &str, most: usize) -> Self {
        let message = format!("at most {most} {what}; wait for one to end");
        Self::new(ErrorCode::Overloaded, message).with_retry_after_ms(OVERLOAD_RETRY_MS)
    }

    /// The error of a request whose deadline passed.
    #[must_use]
    pub fn timeout() -> Self {
        Self::new(ErrorCode::Timeout, "the deadline passed")
    }

    /// What a peer sees of an error whose code the operation does not declare.
    pub(crate) fn undeclared(self) -> Self {
        let details = json!({ "code": self.code.name() });
        Self::internal(self.message).with_details(details)
    }
}

/// What a caller sees of an operation that needed a capability which does not act. Only a locked vault is worth
/// another try.
impl From<CapabilityError> for CallError {
    fn from(error: CapabilityError) -> Self {
        let code = match error {
            CapabilityError::Locked
            | CapabilityError::Missing
            | CapabilityError::NoVault
            | CapabilityError::Unusable => ErrorCode::Unavailable,
            CapabilityError::NotGranted => ErrorCode::Forbidden,
            _ => ErrorCode::InvalidInput,
        };
        let details = json!({ "reason": error.reason() });
        Self {
            retryable: error == CapabilityError::Locked,
            ..Self::new(code, error.to_string()).with_details(details)
        }
    }
}

/// Bytes of an item of a list. Lists grow by doubling.
const VALUE_BYTES: usize = 2 * size_of::<Value>();

/// Bytes that a value holds besides its own place.
fn within(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(|item| VALUE_BYTES + within(item)).sum(),
        Value::Object(members) => {
            // The name is another item.
            let member =
                |(name, member): (&String, &Value)| 2 * VALUE_BYTES + name.len() + within(member);
            members.iter().map(member).sum()
        }
        Value::String(text) => text.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// The first [`ERROR_MESSAGE_BYTES_MAX`] bytes of a message, with a sign where more follow.
fn beginning(message: &str) -> String {
    if message.len() <= ERROR_MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let mut ends = (0..=ERROR_MESSAGE_BYTES_MAX).rev();
    let end = ends.find(|at| message.is_char_boundary(*at));
    let text = end.and_then(|end| message.get(..end));
    format!("{}\u{2026}", text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code decides what a program does, so it stays. The size of the rest was another node's choice.
    #[test]
    fn an_abridged_error_says_what_it_lacks() {
        let long = CallError::operation("DISK_FULL", "\u{e4}".repeat(1 << 20));
        let long = long
            .with_details(json!(vec![0; 1000]))
            .with_retry_after_ms(7);
        let short = CallError {
            retryable: true,
            ..long
        }
        .abridged();
        assert_eq!(short.code.name(), "DISK_FULL");
        assert_eq!(short.details.as_deref(), Some(&json!({ "omitted": true })));
        assert_eq!((short.retryable, short.retry_after_ms), (true, Some(7)));
        let cut = short.message.strip_suffix('\u{2026}').expect("it was cut");
        assert_eq!(cut.len(), ERROR_MESSAGE_BYTES_MAX);
        let plain = CallError::timeout();
        assert_eq!(plain.abridged(), plain);
        let nameless = CallError::operation(&"N".repeat(CODE_BYTES_MAX + 1), "no");
        assert_eq!(nameless.abridged().code, ErrorCode::Internal);
    }

    #[test]
    fn errors_weigh_as_much_as_their_trees() {
        let of = |details: Value| CallError::timeout().with_details(details).kept_bytes();
        assert!(of(json!(vec![0; 1000])) >= 1024 * size_of::<Value>());
        assert!(of(json!(vec![Vec::<u8>::new(); 1000])) >= 1024 * size_of::<Value>());
        let object: serde_json::Map<_, _> =
            (0..1000).map(|n| (n.to_string(), Value::Null)).collect();
        assert!(of(Value::Object(object)) >= 1000 * (size_of::<Value>() + size_of::<String>()));
        assert!(of(json!({ "a": { "b": "x".repeat(1000) } })) >= 1000);
        let code = CallError::operation(&"N".repeat(1000), "m".repeat(1000));
        assert_eq!(code.kept_bytes(), 2000);
        assert_eq!(
            CallError::timeout().kept_bytes(),
            "the deadline passed".len()
        );
    }

    #[test]
    fn a_locked_vault_is_worth_another_try_and_nothing_else_is() {
        let told = |error: CapabilityError| {
            let told = CallError::from(error);
            let details = told.details.expect("a reason");
            let reason = details["reason"].as_str().expect("text").to_owned();
            (told.code, told.retryable, reason)
        };
        let reason = |text: &str| text.to_owned();
        assert_eq!(
            told(CapabilityError::Locked),
            (ErrorCode::Unavailable, true, reason("vault_locked"))
        );
        assert_eq!(
            told(CapabilityError::Missing),
            (ErrorCode::Unavailable, false, reason("credential_missing"))
        );
        assert_eq!(
            told(CapabilityError::NotGranted),
            (ErrorCode::Forbidden, false, reason("not_granted"))
        );
        assert_eq!(
            told(CapabilityError::NotOpened),
            (ErrorCode::InvalidInput, false, reason("not_opened"))
        );
    }

    #[test]
    fn a_refused_token_is_answered_with_the_command_that_makes_one() {
        let refused = CallError::bad_token();
        assert_eq!(refused.code, ErrorCode::Unauthenticated);
        assert!(refused.message.contains("'alknet token add'"), "{refused}");
    }

    #[test]
    fn every_code_has_one_row_and_its_name_leads_back() {
        for code in ErrorCode::table() {
            assert_eq!(ErrorCode::from_name(code.name()), code);
            assert!(!ErrorCode::may_declare(code.name()), "{code}");
            assert!((400..600).contains(&code.http_status()));
        }
        assert_eq!(ErrorCode::table().count(), 13);
    }

    #[test]
    fn retry_and_exit_codes_are_the_documented_ones() {
        let retryable: Vec<_> = ErrorCode::table()
            .filter(ErrorCode::retryable)
            .map(|c| c.name().to_owned())
            .collect();
        assert_eq!(retryable, ["TIMEOUT", "OVERLOADED", "UNAVAILABLE"]);
        assert_eq!(ErrorCode::Timeout.exit_code(), 5);
        assert_eq!(ErrorCode::Forbidden.exit_code(), 4);
        assert_eq!(ErrorCode::Aborted.exit_code(), 130);
        assert_eq!(ErrorCode::Unavailable.exit_code(), 3);
    }

    #[test]
    fn own_codes_follow_the_grammar() {
        for good in ["ABC", "DISK_FULL", "E2BIG"] {
            assert!(ErrorCode::may_declare(good), "{good}");
        }
        for bad in ["", "AB", "abc", "1AB", "A-B", "INTERNAL", &"A".repeat(65)] {
            assert!(!ErrorCode::may_declare(bad), "{bad}");
        }
        assert_eq!(ErrorCode::from_name("DISK_FULL").http_status(), 422);
    }

    #[test]
    fn the_wire_form_is_the_documented_one() {
        let error = CallError::overloaded("requests in flight", 8);
        let text = serde_json::to_string(&error).expect("serialisable");
        assert_eq!(
            text,
            r#"{"code":"OVERLOADED","message":"at most 8 requests in flight; wait for one to end","retryable":true,"retry_after_ms":100}"#
        );
        assert_eq!(
            serde_json::from_str::<CallError>(&text).expect("its own text"),
            error
        );
        let bare: CallError = serde_json::from_str(r#"{"code":"X_Y_Z"}"#).expect("only a code");
        assert!(!bare.retryable && bare.message.is_empty());
    }
}
