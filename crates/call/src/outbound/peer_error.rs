//! Reads errors of peers, which choose the size of the tree.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::body::tree_bytes;
use crate::envelope::Envelope;
use crate::error::{CallError, ErrorCode};
use crate::limits::ERROR_TREE_BYTES_MAX;

/// Bytes of the longest text whose tree cannot exceed [`ERROR_TREE_BYTES_MAX`]: a value of a list has a byte and a
/// comma at least, and counts for two items.
const TEXT_BYTES_FREE: usize = ERROR_TREE_BYTES_MAX / size_of::<Value>();

/// The members of an error that take no more memory than their text.
#[derive(Deserialize)]
struct ErrorWithoutDetails<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(default)]
    retryable: bool,
    #[serde(default)]
    details: Option<IgnoredAny>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
}

/// The error in `event`, abridged if its tree would take more than [`ERROR_TREE_BYTES_MAX`].
pub(super) fn read(event: &Envelope<'_>) -> serde_json::Result<CallError> {
    let text = event.payload;
    // Most errors are so short that they need no measuring.
    let is_small = text.len() <= TEXT_BYTES_FREE
        || tree_bytes(text.as_bytes()).is_ok_and(|bytes| bytes <= ERROR_TREE_BYTES_MAX);
    if is_small {
        return event.members();
    }
    let large: ErrorWithoutDetails<'_> = event.members()?;
    let error = CallError {
        code: ErrorCode::from_name(&large.code),
        message: large.message.into_owned(),
        retryable: large.retryable,
        details: large.details.map(|_| Box::default()),
        retry_after_ms: large.retry_after_ms,
    };
    Ok(error.abridged())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::envelope::EventKind;

    fn read_text(payload: &str) -> serde_json::Result<CallError> {
        read(&Envelope {
            kind: EventKind::Error,
            id: "1".into(),
            payload,
        })
    }

    #[test]
    fn a_text_that_is_not_measured_makes_no_large_tree() {
        let zeros = |bytes: usize| format!("[{}0]", "0,".repeat(bytes / 2 - 2));
        let longest = zeros(TEXT_BYTES_FREE);
        let bytes = tree_bytes(longest.as_bytes()).expect("JSON");
        assert!(bytes <= ERROR_TREE_BYTES_MAX, "{bytes}");
        let twice = tree_bytes(zeros(2 * TEXT_BYTES_FREE).as_bytes());
        assert!(twice.expect("JSON") > ERROR_TREE_BYTES_MAX);
    }

    #[test]
    fn what_stays_of_a_large_error_is_what_programs_decide_by() {
        let mut sent = json!({
            "code": "CONFLICT",
            "message": "no",
            "retryable": true,
            "retry_after_ms": 7,
            "later": {},
        });
        let whole = read_text(&sent.to_string()).expect("an error");
        sent["details"] = json!(vec![0; 10_000]);
        let read = read_text(&sent.to_string()).expect("an error");
        let omitted = whole.with_details(json!({ "omitted": true }));
        assert_eq!(read, omitted);
        sent["details"] = json!("x".repeat(100_000));
        let read = read_text(&sent.to_string()).expect("an error");
        assert_eq!(read.details.as_deref(), Some(&sent["details"]), "one value");
        sent["code"] = json!(vec![0; 10_000]);
        assert!(read_text(&sent.to_string()).is_err());
    }
}
