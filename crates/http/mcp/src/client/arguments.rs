//! Prepares the arguments that the node sends to a server.

use std::io::{self, Write};

use alknet_call::{CallBody, CallError, ImportClaim, ImportShare, tree_bytes};
use rmcp::model::JsonObject;
use serde::Serialize;
use serde_json::Value;

use crate::client::answer_meter::COPIES;

/// The arguments of a call as a tree for the library, and the claim that counts it. The claim also counts the second
/// tree that the library makes and the text that it sends, for as long as the library has the request.
///
/// # Errors
/// `INVALID_INPUT` if the input is no object or has too many values; `OVERLOADED` if memory is short.
pub(super) fn counted_arguments(
    input: &CallBody,
    memory: &ImportShare,
) -> Result<(Option<JsonObject>, ImportClaim), CallError> {
    let mut claim = memory.claim();
    match input.try_value()? {
        Value::Object(members) => {
            let text = input.raw();
            // The text's length covers the strings of the tree, which the tree copies.
            let tree = tree_bytes(text)?.saturating_add(text.len());
            let sent = json_bytes(members);
            let sent = sent.map_err(|error| CallError::invalid_input(error.to_string()))?;
            claim.becomes(COPIES.saturating_mul(tree).saturating_add(sent))?;
            Ok((Some(members.clone()), claim))
        }
        Value::Null => Ok((None, claim)),
        _ => Err(CallError::invalid_input("a tool takes an object")),
    }
}

/// `message` as JSON text. The buffer is allocated at its final size, because a growing buffer needs the memory of
/// both its old and its new copy.
///
/// # Errors
/// `message` has no JSON form.
pub(super) fn json_text(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(json_bytes(message)?);
    serde_json::to_writer(&mut text, message)?;
    Ok(text)
}

/// The number of bytes of the JSON text of `message`.
fn json_bytes(message: &impl Serialize) -> serde_json::Result<usize> {
    let mut counter = RequestTextCounter(0);
    serde_json::to_writer(&mut counter, message)?;
    Ok(counter.0)
}

struct RequestTextCounter(usize);

impl Write for RequestTextCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alknet_call::ImportMemory;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_counts_before_it_is_copied() {
        let memory = ImportMemory::default();
        let value = json!({"text": "x".repeat(1 << 20), "list": vec![0; 1000]});
        let input = CallBody::json(&value).expect("a body");
        let (arguments, claim) = counted_arguments(&input, &memory.share()).expect("room");
        assert_eq!(arguments.as_ref(), value.as_object());
        // Two trees, with 1,000 values and the text, and what is sent.
        let taken = memory.taken();
        assert!((3 << 20..4 << 20).contains(&taken), "{taken} bytes");
        assert!(
            taken > (3 << 20) + 2 * 1000 * size_of::<Value>(),
            "{taken} bytes"
        );
        drop(claim);
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn text_is_as_long_as_it_was_counted() {
        let value = json!({"a\n": [1.5, "\u{1}ü", null, true], "b": {}});
        let text = json_text(&value).expect("text");
        assert_eq!(text.len(), text.capacity());
        assert_eq!(text, value.to_string().into_bytes());
    }
}
