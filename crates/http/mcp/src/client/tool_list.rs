//! Hides lists of tools from the protocol's library. The library would store the schemas of each list by tool name
//! for as long as the connection lasts, so a server could fill the node's memory with new names.

use rmcp::model::{CustomResult, ListToolsResult, ServerResult, Tool};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The only member of the object that the library gets in the place of a list.
const SEALED: &str = "alknet/sealed";

/// The constant parts of a sealed message, between the values of its members.
const BEFORE_VERSION: &str = "{\"jsonrpc\":";
const BEFORE_ID: &str = ",\"id\":";
const BEFORE_RESULT: &str = ",\"result\":{\"alknet/sealed\":\"";
const AFTER_RESULT: &str = "\"}}";

/// How many copies of a sealed list's text exist at once: the sealed text itself, three while the library reads the
/// message before it knows its type, and one in the result.
pub(super) const SEALED_COPIES: usize = 5;

/// All tools on all pages.
#[derive(Debug)]
pub(super) struct McpToolList {
    pub(super) tools: Vec<Tool>,
    /// Whether the server may require arguments as headers.
    pub(super) takes_headers: bool,
}

/// An answer that is sealed before the library gets it.
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
    /// `None` if the library may read this message unchanged.
    pub(super) fn from_message(message: &'a [u8]) -> Option<Self> {
        // The library also refuses a message with two ids or two results.
        let answer: Self = serde_json::from_slice(message).ok()?;
        looks_like_list(answer.result.get()).then_some(answer)
    }

    /// The text before the result.
    fn head(&self) -> [&'a str; 5] {
        let (version, id) = (self.jsonrpc.get(), self.id.get());
        [BEFORE_VERSION, version, BEFORE_ID, id, BEFORE_RESULT]
    }

    /// The number of bytes of [`sealed`](Self::sealed).
    pub(super) fn sealed_bytes(&self) -> usize {
        let head: usize = self.head().map(str::len).iter().sum();
        let result = self.result.get();
        let escapes = result.chars().filter(|c| escape(*c).is_some()).count();
        head + result.len() + escapes + AFTER_RESULT.len()
    }

    /// The same message with its result as one string, which the library does not store as a list.
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

/// The character that follows the backslash if a string must escape `c`. JSON text has no other characters to escape.
const fn escape(c: char) -> Option<char> {
    match c {
        '"' | '\\' => Some(c),
        '\n' => Some('n'),
        '\r' => Some('r'),
        '\t' => Some('t'),
        _ => None,
    }
}

/// The members of a result that identify a list.
#[derive(Deserialize)]
struct ResultHead<'a> {
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow, rename = "alknet/sealed")]
    sealed: Option<&'a RawValue>,
}

/// Whether the library would read the result as a list, or [`opened`] would read it as a list that this node sealed.
fn looks_like_list(result: &str) -> bool {
    if !result.starts_with('{') {
        return false;
    }
    match serde_json::from_str::<ResultHead<'_>>(result) {
        Ok(head) => {
            let is_list = |tools: &RawValue| tools.get().starts_with('[');
            head.sealed.is_some() || head.tools.is_some_and(is_list)
        }
        // The result has one of the members twice, and each reader chooses which of the two counts.
        Err(_) => true,
    }
}

/// A page of the list that [`sealed`](McpListAnswer::sealed) made.
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
