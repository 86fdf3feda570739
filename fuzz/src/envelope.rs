//! Envelopes, compared with a generic JSON reader's result for the same bytes.

use alknet_call::limits::{ID_BYTES_MAX, NESTING_MAX, NESTING_UNAUTHENTICATED};
use alknet_call::{Envelope, EventKind, encode_event};
use serde_json::Value;

use crate::json::{ParsedDocument, ReferenceParse, opinion};

/// Checks under both limits of nesting.
pub fn envelope(data: &[u8]) -> bool {
    let unknown = check(data, NESTING_UNAUTHENTICATED);
    let peer = check(data, NESTING_MAX);
    assert!(
        peer || !unknown,
        "an unknown peer may send what a peer may not"
    );
    peer
}

/// Whether the parser takes `data`, which it does exactly when the generic reader does.
pub(crate) fn check(data: &[u8], nesting_max: usize) -> bool {
    let parsed = Envelope::parse(data, nesting_max);
    let Ok(text) = std::str::from_utf8(data) else {
        assert!(parsed.is_err(), "not UTF-8");
        return false;
    };
    match opinion(text) {
        ReferenceParse::Invalid => assert!(parsed.is_err(), "no JSON: {text}"),
        // Only a caller that asks for the value gets an error; see `CallBody::try_value`.
        ReferenceParse::Unholdable => {}
        ReferenceParse::Document(document) => {
            let right = is_envelope(&document, nesting_max);
            assert_eq!(parsed.is_ok(), right, "{text}: {:?}", parsed.as_ref().err());
            if let Ok(envelope) = &parsed {
                agrees(envelope, &document.value);
            }
        }
    }
    if let Ok(envelope) = &parsed {
        is_written_as_read(envelope, nesting_max);
    }
    parsed.is_ok()
}

fn is_envelope(document: &ParsedDocument, nesting_max: usize) -> bool {
    let id = |id: &str| {
        (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'!'..=b'~'))
    };
    document.value.is_object()
        && document.value["type"].is_string()
        && document.value["id"].as_str().is_some_and(id)
        && document.depth <= nesting_max
        && !document.twice
}

fn agrees(envelope: &Envelope<'_>, value: &Value) {
    let kind = value["type"].as_str();
    if envelope.kind != EventKind::Unknown {
        assert_eq!(Some(envelope.kind.name()), kind);
    }
    assert_eq!(Some(envelope.id.as_ref()), value["id"].as_str());
    let payload: Value = serde_json::from_str(envelope.payload).expect("a part of JSON is JSON");
    match value.get("payload") {
        None | Some(Value::Null) => assert_eq!(envelope.payload, "{}"),
        Some(expected) => assert_eq!(&payload, expected),
    }
}

/// A parsed event can be written, and then parses as the same.
fn is_written_as_read(envelope: &Envelope<'_>, nesting_max: usize) {
    if envelope.kind == EventKind::Unknown {
        return;
    }
    let frame = encode_event(envelope.kind, &envelope.id, envelope.payload);
    let again = Envelope::parse(&frame[4..], nesting_max).expect("our own text");
    assert_eq!(
        (again.kind, &again.id, again.payload),
        (envelope.kind, &envelope.id, envelope.payload)
    );
}
