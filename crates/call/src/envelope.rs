//! Events on the wire: `{"type":…,"id":…,"payload":…}`.

use std::borrow::Cow;
use std::io::Write;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::error::CallError;
use crate::frame::{CallFrameError, append_frame, append_mixed};
use crate::json::{self, JsonDefect};
use crate::limits::ID_BYTES_MAX;
use crate::text;

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// `call.aborted`: either side gives up; terminal.
    Aborted,
    /// `call.completed`: the subscription ended well; terminal.
    Completed,
    /// `call.credit`: the requester takes more events.
    Credit,
    /// `call.error`: the call failed; terminal.
    Error,
    /// `call.goaway`: the sender asks for no new requests.
    Goaway,
    /// `call.requested`: a request.
    Requested,
    /// `call.responded`: the answer, or one event of a subscription.
    Responded,
    /// Any other type: ignored.
    Unknown,
}

/// `id` of events that belong to no request.
pub const NO_REQUEST: &str = "-";

impl EventKind {
    /// The text in `type`; empty for unknown kinds.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aborted => "call.aborted",
            Self::Completed => "call.completed",
            Self::Credit => "call.credit",
            Self::Error => "call.error",
            Self::Goaway => "call.goaway",
            Self::Requested => "call.requested",
            Self::Responded => "call.responded",
            Self::Unknown => "",
        }
    }

    fn from_name(name: &str) -> Self {
        match name {
            "call.aborted" => Self::Aborted,
            "call.completed" => Self::Completed,
            "call.credit" => Self::Credit,
            "call.error" => Self::Error,
            "call.goaway" => Self::Goaway,
            "call.requested" => Self::Requested,
            "call.responded" => Self::Responded,
            _ => Self::Unknown,
        }
    }
}

/// A parsed event; borrows from its frame.
#[derive(Clone, Debug)]
pub struct Envelope<'a> {
    /// What it means.
    pub kind: EventKind,
    /// The request that it is about.
    pub id: Cow<'a, str>,
    /// The payload's JSON text; `{}` when absent.
    pub payload: &'a str,
}

#[derive(Deserialize)]
struct RawEnvelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Parses the JSON of one frame.
    ///
    /// # Errors
    /// Not UTF-8, not a JSON object, `type` or `id` missing, a member twice, nested deeper than `nesting_max`, or an
    /// id outside its grammar.
    pub fn parse(body: &'a [u8], nesting_max: usize) -> Result<Self, CallFrameError> {
        // JSON between systems is UTF-8: RFC 8259, section 8.1.
        let text = std::str::from_utf8(body).map_err(|_| CallFrameError::Utf8)?;
        // Before `check`, which reads valid JSON only.
        let raw: RawEnvelope<'a> =
            json::parse_object(text).map_err(|error| CallFrameError::Json(error.to_string()))?;
        // Which of two equal members counts is up to each reader (RFC 8259, section 4): two readers on the way could
        // see two requests.
        json::check(text, nesting_max).map_err(|flaw| match flaw {
            JsonDefect::Duplicate => CallFrameError::Duplicate,
            JsonDefect::Nesting => CallFrameError::Nesting(nesting_max),
        })?;
        // Ids go into log lines and frames unescaped.
        if !is_id(&raw.id) {
            return Err(CallFrameError::Id);
        }
        Ok(Self {
            kind: EventKind::from_name(&raw.kind),
            id: raw.id,
            payload: raw.payload.map_or("{}", RawValue::get),
        })
    }

    /// The members of the payload.
    pub(crate) fn members<T: Deserialize<'a>>(&self) -> serde_json::Result<T> {
        json::parse_object(self.payload)
    }
}

/// 1 to 64 bytes of `[!-~]`.
pub(crate) fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

/// Payload of `call.requested`; `I` is the source of its input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RequestPayload<'a, I = &'a RawValue> {
    #[serde(rename = "operationId", borrow)]
    pub(crate) operation: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input: Option<I>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) auth_token: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) forwarded_for: Option<ForwardedFor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    /// Absolute milliseconds since 1970, as peers of the TypeScript package send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<u32>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency_key: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<Cow<'a, str>>,
    /// How often nodes passed it on, whether or not it names a peer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) hops: u8,
}

fn is_zero(hops: &u8) -> bool {
    *hops == 0
}

/// A forwarder's claim about the identity that it acts for: for audit and rate keys, never for access.
///
/// Operations can read it as a name and write it to a log. The claimed scopes and resources of the originator stay
/// inside: no code here can decide by them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForwardedFor {
    id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<serde_json::Value>,
}

/// [`ForwardedFor`], in the form that the library derives, which also reads an array.
#[derive(Deserialize)]
struct ForwardedForClaim {
    id: String,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default)]
    resources: Option<serde_json::Value>,
}

impl<'de> Deserialize<'de> for ForwardedFor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ForwardedForClaim {
            id,
            scopes,
            resources,
        } = json::object(deserializer)?;
        Ok(Self {
            id,
            scopes,
            resources,
        })
    }
}

impl ForwardedFor {
    /// Forwarded for `id`.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            scopes: Vec::new(),
            resources: None,
        }
    }

    /// Adds what the originator may do at the forwarder.
    #[must_use]
    pub fn with_scopes(mut self, scopes: Vec<String>) -> Self {
        self.scopes = scopes;
        self
    }

    /// Adds what the originator holds at the forwarder.
    #[must_use]
    pub fn with_resources(mut self, resources: serde_json::Value) -> Self {
        self.resources = Some(resources);
        self
    }

    /// The originator's id, as the forwarder knows it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Payload of `call.responded`.
#[derive(Debug, Deserialize)]
pub(crate) struct Response<'a> {
    #[serde(borrow)]
    pub(crate) output: Option<&'a RawValue>,
    #[serde(default)]
    pub(crate) dropped: u64,
    #[serde(borrow)]
    pub(crate) cursor: Option<&'a RawValue>,
}

/// Payload of `call.goaway`, as far as this side reads it.
#[derive(Debug, Deserialize)]
pub(crate) struct GoawayPayload<'a> {
    #[serde(default, borrow)]
    pub(crate) reason: Cow<'a, str>,
}

/// Payload of `call.credit`.
#[derive(Debug, Deserialize)]
pub(crate) struct CreditPayload {
    pub(crate) n: u32,
}

/// Appends one event as a whole frame; returns the length of its body.
pub(crate) fn append_event(
    out: &mut Vec<u8>,
    kind: EventKind,
    id: &str,
    payload: impl FnOnce(&mut Vec<u8>),
) -> usize {
    append_frame(out, |out| append_envelope(out, kind, id, payload))
}

/// Appends one event with binary data as a mixed frame, without the `tail` bytes of data, which the caller appends.
/// Returns the length of its body, those bytes included.
pub(crate) fn append_mixed_event(
    out: &mut Vec<u8>,
    kind: EventKind,
    id: &str,
    tail: usize,
    payload: impl FnOnce(&mut Vec<u8>),
) -> usize {
    append_mixed(out, tail, |out| append_envelope(out, kind, id, payload))
}

fn append_envelope(
    out: &mut Vec<u8>,
    kind: EventKind,
    id: &str,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.name().as_bytes());
    out.extend_from_slice(b"\",\"id\":\"");
    for byte in id.bytes() {
        // An id is visible ASCII, of which JSON escapes these two alone: RFC 8259, section 7.
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.extend_from_slice(b"\",\"payload\":");
    payload(out);
    out.push(b'}');
}

/// Appends a value's JSON text.
pub(crate) fn append_json(out: &mut Vec<u8>, value: &impl Serialize) {
    let start = out.len();
    if text::append(out, value).is_err() {
        // Only a map with keys that are no strings can fail here, and no payload has one. The frame stays well formed
        // all the same.
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

/// One whole frame with the given payload, for other clients and for tests.
///
/// `payload` is the JSON text of an object.
#[must_use]
pub fn encode_event(kind: EventKind, id: &str, payload: &str) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + 64);
    append_event(&mut out, kind, id, |out| {
        out.extend_from_slice(payload.as_bytes());
    });
    out.into()
}

/// Appends `call.error`; returns the length of the frame's body.
pub(crate) fn append_error(out: &mut Vec<u8>, id: &str, error: &CallError) -> usize {
    append_event(out, EventKind::Error, id, |out| append_json(out, error))
}

/// Appends `call.aborted`.
pub(crate) fn append_abort(out: &mut Vec<u8>, id: &str) {
    append_event(out, EventKind::Aborted, id, |out| {
        out.extend_from_slice(b"{}");
    });
}

/// Appends `call.goaway`.
pub(crate) fn append_goaway(out: &mut Vec<u8>, reason: &str, drain_ms: u64) {
    append_event(out, EventKind::Goaway, NO_REQUEST, |out| {
        append_json(
            out,
            &serde_json::json!({ "reason": reason, "drain_ms": drain_ms }),
        );
    });
}

/// Appends `call.credit`.
pub(crate) fn append_credit(out: &mut Vec<u8>, id: &str, n: u32) {
    append_event(out, EventKind::Credit, id, |out| {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{{\"n\":{n}}}");
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{FrameBody, FrameReader};
    use crate::json::parse_object;

    fn parse(text: &str) -> Result<Envelope<'_>, CallFrameError> {
        Envelope::parse(text.as_bytes(), 32)
    }

    #[test]
    fn members_come_in_any_order_and_unknown_ones_are_ignored() {
        let env =
            parse(r#" {"payload":{"a":[1]},"x":{"y":1},"id":"7","type":"call.requested"}"#.trim())
                .expect("well formed");
        assert_eq!(env.kind, EventKind::Requested);
        assert_eq!((env.id.as_ref(), env.payload), ("7", r#"{"a":[1]}"#));
        let env = parse(r#"{"type":"call.\u0065rror","id":"\u0041"}"#).expect("escapes");
        assert_eq!((env.kind, env.id.as_ref()), (EventKind::Error, "A"));
        assert_eq!(env.payload, "{}");
        let env = parse(r#"{"type":"call.later","id":"1","payload":null}"#).expect("unknown");
        assert_eq!(env.kind, EventKind::Unknown);
    }

    #[test]
    fn malformed_envelopes_are_refused() {
        let deep = format!(
            r#"{{"type":"x","id":"1","payload":{}{}}}"#,
            "[".repeat(32),
            "]".repeat(32)
        );
        let long = format!(r#"{{"type":"x","id":"{}"}}"#, "i".repeat(65));
        for bad in [
            "",
            "{",
            "{}",
            "[]",
            "null",
            r#"{"type":"x"}"#,
            r#"{"id":"1"}"#,
            r#"{"type":1,"id":"1"}"#,
            r#"{"type":"x","id":1}"#,
            r#"{"type":"x","id":""}"#,
            r#"{"type":"x","id":"a b"}"#,
            r#"{"type":"x","id":"ä"}"#,
            r#"{"type":"x","type":"x","id":"1"}"#,
            r#"{"type":"x","id":"1","payload":{"a":1,"a":1}}"#,
            r#"["call.requested","1",{}]"#,
            r#"{"type":"x","id":"1"} x"#,
            r#"{"type":"x","id":"1",}"#,
            &deep,
            &long,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Envelope::parse(b"{\"type\":\"\xff\",\"id\":\"1\"}", 9).err(),
            Some(CallFrameError::Utf8)
        );
    }

    #[test]
    fn members_have_names_and_no_order() {
        assert!(parse_object::<CreditPayload>(r#"{"n":1}"#).is_ok());
        assert!(parse_object::<RequestPayload<'_>>(r#"{"operationId":"/a/b"}"#).is_ok());
        for array in ["[1]", " [1]", r#"["/a/b",{}]"#, "null", ""] {
            assert!(parse_object::<CreditPayload>(array).is_err(), "{array}");
            assert!(
                parse_object::<RequestPayload<'_>>(array).is_err(),
                "{array}"
            );
        }
    }

    #[test]
    fn claims_of_forwarders_are_objects() {
        let claim = |text: &str| serde_json::from_str::<ForwardedFor>(text);
        let whole = r#"{"id":"a","scopes":["s"],"resources":{"r":["x"]},"later":1}"#;
        let read = ForwardedFor::new("a")
            .with_scopes(vec!["s".to_owned()])
            .with_resources(serde_json::json!({ "r": ["x"] }));
        assert_eq!(claim(whole).expect("an object"), read);
        assert_eq!(
            claim(r#"{"id":"a"}"#).expect("short"),
            ForwardedFor::new("a")
        );
        let text = serde_json::to_string(&read).expect("JSON");
        assert_eq!(claim(&text).expect("own text"), read);
        for bad in [
            r#"["a"]"#,
            r#"["a",["s"],null]"#,
            r#""a""#,
            "{}",
            r#"{"id":1}"#,
            "1",
        ] {
            assert!(claim(bad).is_err(), "{bad}");
            let request = format!(r#"{{"operationId":"/a/b","forwarded_for":{bad}}}"#);
            assert!(
                parse_object::<RequestPayload<'_>>(&request).is_err(),
                "{bad}"
            );
        }
        let request = r#"{"operationId":"/a/b","forwarded_for":null}"#;
        assert!(parse_object::<RequestPayload<'_>>(request).is_ok());
    }

    #[test]
    fn ids_with_quotes_are_escaped() {
        let frame = encode_event(EventKind::Completed, "\"\\~", "{}");
        let env = Envelope::parse(&frame[4..], 9).expect("own text");
        assert_eq!(env.id, "\"\\~");
    }

    proptest! {
        #[test]
        fn events_round_trip(id in "[!-~]{1,64}", text in any::<String>(), kind in 0usize..7) {
            let kind = [
                EventKind::Aborted, EventKind::Completed, EventKind::Credit, EventKind::Error,
                EventKind::Goaway, EventKind::Requested, EventKind::Responded,
            ][kind];
            let payload = serde_json::json!({ "text": text }).to_string();
            let mut reader = FrameReader::new();
            reader.push(encode_event(kind, &id, &payload));
            let body = reader.next_frame(1 << 20).expect("fits").expect("whole");
            let body = FrameBody::parse(body).expect("JSON");
            let env = Envelope::parse(&body.envelope, 32).expect("own text");
            prop_assert_eq!(env.kind, kind);
            prop_assert_eq!(env.id.as_ref(), id.as_str());
            prop_assert_eq!(env.payload, payload.as_str());
        }

        #[test]
        fn every_truncation_is_an_error(id in "[!-~]{1,8}", text in any::<String>()) {
            let payload = serde_json::json!({ "text": text }).to_string();
            let frame = encode_event(EventKind::Requested, &id, &payload);
            for cut in 4..frame.len() {
                prop_assert!(Envelope::parse(&frame[4..cut], 32).is_err());
            }
        }

        #[test]
        fn any_text_parses_or_fails(text in any::<Vec<u8>>()) {
            let _ = Envelope::parse(&text, 32);
        }
    }
}
