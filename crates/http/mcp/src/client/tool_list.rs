//! Lists of tools, which the protocol's library does not get to see: it keeps the schemas of each list by the names of
//! the tools, for as long as the connection lasts. A server could fill the node's memory with new names.

use rmcp::model::{CustomResult, ListToolsResult, ServerResult, Tool};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The only member of what the library gets in the place of a list.
const SEALED: &str = "alknet/sealed";

/// What a sealed message is, but for the values of its members.
const BEFORE_VERSION: &str = "{\"jsonrpc\":";
const BEFORE_ID: &str = ",\"id\":";
const BEFORE_RESULT: &str = ",\"result\":{\"alknet/sealed\":\"";
const AFTER_RESULT: &str = "\"}}";

/// How often the text of a sealed list is there at once: as it was sealed, three times in what the library reads a
/// message into before it knows what the message is, and in the result.
pub(super) const SEALED_COPIES: usize = 5;

/// Every tool on every page.
#[derive(Debug)]
pub(super) struct McpToolList {
    pub(super) tools: Vec<Tool>,
    /// Whether the server may want arguments as headers.
    pub(super) takes_headers: bool,
}

/// An answer that the library does not get as it is.
#[derive(Debug, Deserialize)]
pub(super) struct McpListAnswer<'a> {
    #[serde(borrow)]
    jsonrpc: &'a RawValue,
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    result: &'a RawValue,
}

impl<'a> McpListAnswer<'a> {
    /// `None` where the library may read this message as it is.
    pub(super) fn from_message(message: &'a [u8]) -> Option<Self> {
        // What has two ids or two results the library does not read either.
        let answer: Self = serde_json::from_slice(message).ok()?;
        looks_like_list(answer.result.get()).then_some(answer)
    }

    /// What stands before its result.
    fn head(&self) -> [&'a str; 5] {
        let (version, id) = (self.jsonrpc.get(), self.id.get());
        [BEFORE_VERSION, version, BEFORE_ID, id, BEFORE_RESULT]
    }

    /// Bytes of [`sealed`](Self::sealed).
    pub(super) fn sealed_bytes(&self) -> usize {
        let head: usize = self.head().map(str::len).iter().sum();
        let result = self.result.get();
        let escapes = result.chars().filter(|c| escape(*c).is_some()).count();
        head + result.len() + escapes + AFTER_RESULT.len()
    }

    /// The same message with its result as one string, which the library knows as nothing that it keeps.
    pub(super) fn sealed(&self) -> String {
        let mut sealed = String::with_capacity(self.sealed_bytes());
        sealed.extend(self.head());
        for c in self.result.get().chars() {
            if escape(c).is_some() {
                sealed.push('\\');
            }
            sealed.push(escape(c).unwrap_or(c));
        }
        sealed.push_str(AFTER_RESULT);
        sealed
    }
}

/// What stands after a backslash for a character that a string cannot hold. JSON text has no other ones.
const fn escape(c: char) -> Option<char> {
    match c {
        '"' | '\\' => Some(c),
        '\n' => Some('n'),
        '\r' => Some('r'),
        '\t' => Some('t'),
        _ => None,
    }
}

/// Of a result, what tells a list.
#[derive(Deserialize)]
struct ResultHead<'a> {
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow, rename = "alknet/sealed")]
    sealed: Option<&'a RawValue>,
}

/// Whether the library would read it as a list, or [`opened`] as one that was sealed here.
fn looks_like_list(result: &str) -> bool {
    if !result.starts_with('{') {
        return false;
    }
    match serde_json::from_str::<ResultHead<'_>>(result) {
        Ok(head) => {
            let is_list = |tools: &RawValue| tools.get().starts_with('[');
            head.sealed.is_some() || head.tools.is_some_and(is_list)
        }
        // It names one of them twice, and which counts is the reader's choice.
        Err(_) => true,
    }
}

/// A page of the list that was sealed.
pub(super) fn opened(result: ServerResult) -> Option<ListToolsResult> {
    let ServerResult::CustomResult(CustomResult(Value::Object(mut members))) = result else {
        return None;
    };
    match members.remove(SEALED) {
        Some(Value::String(text)) => serde_json::from_str(&text).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::ServerJsonRpcMessage;

    use super::*;

    fn sealed(message: &str) -> Option<String> {
        let answer = McpListAnswer::from_message(message.as_bytes())?;
        let sealed = answer.sealed();
        assert_eq!(sealed.len(), answer.sealed_bytes(), "{sealed}");
        Some(sealed)
    }

    /// What the library makes of a message that is passed on to it.
    fn result_of(message: &str) -> Option<ServerResult> {
        let sealed = sealed(message);
        let message = sealed.as_deref().unwrap_or(message);
        match serde_json::from_str(message) {
            Ok(ServerJsonRpcMessage::Response(response)) => Some(response.result),
            _ => None,
        }
    }

    fn answer(result: &str) -> String {
        format!("{{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{result}}}")
    }

    const TOOL: &str =
        "{\"name\":\"a\",\"inputSchema\":{\"type\":\"object\",\"title\":\"\\u00e9\"}}";

    #[test]
    fn a_list_comes_through_whole_and_is_no_list_to_the_library() {
        let list = format!("{{\"nextCursor\":\"2\",\"tools\":[{TOOL}]}}");
        let result = result_of(&answer(&list)).expect("a result");
        assert!(
            matches!(result, ServerResult::CustomResult(_)),
            "{result:?}"
        );
        let page = opened(result).expect("a list");
        assert_eq!(page.next_cursor.as_deref(), Some("2"));
        assert_eq!(page.tools[0].input_schema["title"], "é");
    }

    /// Whatever it answers, and however it writes it.
    #[test]
    fn no_answer_is_a_list_to_the_library() {
        for list in [
            format!("{{\"tools\":[{TOOL}],\"content\":[]}}"),
            format!("{{\"t\\u006fols\":[{TOOL}]}}"),
            format!(" {{ \"_meta\":{{}},\r\n\t\"tools\" : [{TOOL}] }} "),
            format!("{{\"tools\":[],\"tools\":[{TOOL}]}}"),
            format!("{{\"tools\":null,\"tools\":[{TOOL}]}}"),
            format!("{{\"tools\":[{TOOL}],\"protocolVersion\":\"2026-07-28\"}}"),
        ] {
            let result = result_of(&answer(&list));
            assert!(
                !matches!(result, Some(ServerResult::ListToolsResult(_))),
                "{list}"
            );
            let twice =
                format!("{{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{{}},\"result\":{list}}}");
            assert!(result_of(&twice).is_none(), "{list}");
        }
    }

    /// What is in such a string was not counted as the values that it holds.
    #[test]
    fn a_server_seals_nothing_itself() {
        let text = Value::from(format!("{{\"tools\":[{TOOL}]}}"));
        for forged in [
            format!("{{\"{SEALED}\":{text}}}"),
            format!("{{\"{SEALED}\":0,\"{SEALED}\":{text}}}"),
            format!("{{\"alknet\\/sealed\":{text}}}"),
        ] {
            let result = result_of(&answer(&forged)).expect("a result");
            assert!(opened(result).is_none(), "{forged}");
        }
    }

    #[test]
    fn other_answers_are_passed_on_as_they_came() {
        for result in [
            "{\"content\":[],\"structuredContent\":{\"tools\":[]}}",
            "{\"content\":[],\"tools\":7}",
            "{}",
            "[]",
            "null",
        ] {
            assert_eq!(sealed(&answer(result)), None, "{result}");
        }
        let error = "{\"jsonrpc\":\"2.0\",\"id\":7,\"error\":{\"code\":1,\"message\":\"a\"}}";
        assert_eq!(sealed(error), None);
    }
}
