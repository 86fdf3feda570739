//! The arguments of a tool as the client sent them. The protocol's library makes a tree of the whole message, with up
//! to 75 times its bytes, before the node knows the caller and the operation. So the library gets the message without
//! the arguments.

use alknet_call::{CallBody, read_object};
use alknet_gateway::{ApiError, Code, RequestText};
use bytes::Bytes;
use http::StatusCode;
use rmcp::model::JsonObject;
use serde::de::IgnoredAny;

use crate::limits::{MESSAGE_BYTES_MAX, NESTING_MAX};

/// The text that replaces the arguments.
const NOTHING: &[u8] = b"{}";

/// The arguments of a tool call, as the text of a JSON object.
#[derive(Clone, Debug)]
pub(super) struct ToolArguments(pub(super) RequestText);

impl ToolArguments {
    /// The arguments of a message that was short enough to keep them.
    pub(super) fn from_object(arguments: Option<JsonObject>) -> Self {
        let arguments = serde_json::Value::Object(arguments.unwrap_or_default());
        Self(Bytes::from(arguments.to_string()).into())
    }

    /// Parses all arguments, for tools whose arguments are small.
    ///
    /// # Errors
    /// The arguments are too long.
    pub(super) fn read(&self) -> Result<JsonObject, ApiError> {
        if self.0.text.len() > MESSAGE_BYTES_MAX {
            return Err(too_long("the arguments of this tool have"));
        }
        read_object(&self.0.text, NESTING_MAX)
            .map_err(|error| ApiError::malformed("", error.message))
    }

    /// One argument as the client sent it.
    pub(super) fn one(&self, name: &str) -> Option<Bytes> {
        let all = CallBody::from_text(self.0.text.clone());
        all.member(name).map(|one| one.raw().clone())
    }

    /// Checks the arguments by the rules for all JSON text from outside.
    fn check(&self) -> Result<(), ApiError> {
        read_object::<IgnoredAny>(&self.0.text, NESTING_MAX)
            .map(|_| ())
            .map_err(|error| ApiError::malformed("", error.message))
    }
}

fn too_long(what: &str) -> ApiError {
    let message = format!("{what} at most {MESSAGE_BYTES_MAX} bytes");
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Code::PayloadTooLarge,
        message,
    )
}

/// The message without its arguments, and the arguments.
///
/// # Errors
/// The rest is too long for the library, a member of the arguments occurs twice, or they are nested too deeply.
pub(super) fn split(upload: RequestText) -> Result<(Bytes, Option<ToolArguments>), ApiError> {
    let text = &upload.text;
    let message = CallBody::from_text(text.clone());
    let arguments = message
        .member("params")
        .and_then(|params| params.member("arguments"))
        .map(|arguments| arguments.raw().clone())
        // Arguments that are no object stay in the message, and the library refuses them with the protocol's own
        // error.
        .filter(|arguments| arguments.starts_with(b"{"));
    let left = text.len() - arguments.as_ref().map_or(0, Bytes::len);
    if left > MESSAGE_BYTES_MAX {
        return Err(too_long("a message without the arguments of its tool has"));
    }
    let Some(arguments) = arguments else {
        return Ok((upload.text, None));
    };
    // `arguments` is a slice of `text`, so their addresses give its position.
    let from = arguments.as_ptr() as usize - text.as_ptr() as usize;
    let rest = &text[from + arguments.len()..];
    let short = [&text[..from], NOTHING, rest].concat();
    let arguments = ToolArguments(RequestText {
        text: arguments,
        lease: upload.lease,
    });
    arguments.check()?;
    Ok((short.into(), Some(arguments)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Option<String>) {
        let upload = RequestText::from(Bytes::copy_from_slice(text.as_bytes()));
        let (short, arguments) = split(upload).expect("short enough");
        let read = |bytes: Bytes| String::from_utf8(bytes.to_vec()).expect("text");
        (
            read(short),
            arguments.map(|arguments| read(arguments.0.text)),
        )
    }

    #[test]
    fn arguments_are_taken_out_of_their_message() {
        let text = r#"{"id":1,"params": {"name":"call","arguments": {"a":[1, 2]}, "x":{}},"n":0}"#;
        let (short, arguments) = parts(text);
        assert_eq!(
            short,
            r#"{"id":1,"params": {"name":"call","arguments": {}, "x":{}},"n":0}"#
        );
        assert_eq!(arguments.as_deref(), Some(r#"{"a":[1, 2]}"#));
        for other in [
            "{}",
            "[]",
            "nonsense",
            r#"{"params":[1]}"#,
            r#"{"params":{"arguments":[1]}}"#,
            r#"{"arguments":{"a":1}}"#,
        ] {
            assert_eq!(parts(other), (other.to_owned(), None));
        }
    }

    #[test]
    fn what_is_left_is_short() {
        let many = "0,".repeat(MESSAGE_BYTES_MAX);
        for text in [
            format!(r#"{{"params":{{"arguments":{{}},"x":[{many}0]}}}}"#),
            format!(r#"{{"params":{{"arguments":[{many}0]}}}}"#),
            format!("[{many}0]"),
        ] {
            let refused = split(Bytes::from(text).into()).expect_err("too long");
            assert_eq!(refused.status, 413);
        }
        let fine = format!(r#"{{"params":{{"arguments":{{"x":[{many}0]}}}}}}"#);
        assert!(parts(&fine).1.is_some());
    }
}
