//! Bodies of requests.

use std::collections::BTreeMap;

use alknet_call::CallError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};

use super::byte_budget::RequestByteBudget;
use super::error::DocumentError;
use super::parameter::{
    ESCAPED, PairWriter, ParameterLocation, ParameterSerialization, ParameterStyle,
};
use super::refs::{OpenApiSourceDocument, escaped};
use super::schema::SchemaBuilder;

/// The body that an operation takes.
#[derive(Debug)]
pub(super) struct BodyPlan {
    pub(super) is_required: bool,
    /// The media type for the header. The form adds its own parameters.
    media: String,
    form: BodyForm,
}

#[derive(Debug)]
enum BodyForm {
    /// Bytes, which JSON holds in base64.
    Bytes,
    /// Pairs of a form, with how each member is written.
    Fields(BTreeMap<String, ParameterSerialization>),
    Json,
    /// Parts of a form, with what the document declares about each member.
    Parts(BTreeMap<String, MultipartPart>),
    Text,
}

#[derive(Debug, Default, Clone)]
struct MultipartPart {
    media: Option<String>,
    is_bytes: bool,
}

/// The rank of a media type; the lowest is the best.
fn rank(media: &str) -> usize {
    match kind(media) {
        "json" => 0,
        "form" => 1,
        "parts" => 2,
        "text" => 3,
        _ => 4,
    }
}

/// The kind of a media type.
pub(super) fn kind(media: &str) -> &'static str {
    // Parameters and the case of letters do not change the type (RFC 9110 section 8.3.1).
    let media = media.split(';').next().unwrap_or_default().trim();
    let media = media.to_ascii_lowercase();
    match media.as_str() {
        "application/json" | "text/json" => "json",
        "application/x-www-form-urlencoded" => "form",
        "multipart/form-data" => "parts",
        "text/event-stream" => "events",
        // The suffix means that the content is JSON too (RFC 6839 section 3.1).
        _ if media.ends_with("+json") => "json",
        _ if media.starts_with("text/") => "text",
        _ => "bytes",
    }
}

impl BodyPlan {
    /// The body that `node` describes, and its schema. If the document offers several media types, the one closest to
    /// JSON is chosen.
    pub(super) fn read<'a>(
        document: &'a OpenApiSourceDocument,
        node: &'a Value,
        at: &str,
        schemas: &mut SchemaBuilder<'a>,
    ) -> Result<Option<(Self, Value)>, DocumentError> {
        let body = document.object(node, at)?;
        let Some(content) = body.get("content").and_then(Value::as_object) else {
            return Ok(None);
        };
        let Some((media, described)) = content.iter().min_by_key(|(media, _)| rank(media)) else {
            return Ok(None);
        };
        let at = format!("{at}/content/{}", escaped(media));
        let described = document.object(described, &at)?;
        let node = described.get("schema");
        let own = match node {
            Some(node) => document.resolve(node, &at)?,
            None => &Value::Null,
        };
        let whole = |schemas: &mut SchemaBuilder<'a>| match node {
            Some(node) => schemas.add(node),
            None => Ok(json!({})),
        };
        let (form, schema) = match kind(media) {
            "json" => (BodyForm::Json, whole(schemas)?),
            "form" => {
                let fields = members(own).map(|(name, _)| {
                    let writing = match encoding(described, name) {
                        Some(encoding) => {
                            ParameterSerialization::from_node(encoding, ParameterLocation::Query)
                        }
                        None => ParameterSerialization::FORM,
                    };
                    (name.clone(), writing)
                });
                (BodyForm::Fields(fields.collect()), whole(schemas)?)
            }
            "parts" => {
                // The schema is copied, not referenced, because members that are bytes are described differently
                // here.
                let mut schema = match node {
                    Some(_) => schemas.add(own)?,
                    None => json!({}),
                };
                let mut parts = BTreeMap::new();
                for (name, node) in members(own) {
                    let node = document.resolve(node, &at)?;
                    let part = MultipartPart::from_node(node, encoding(described, name));
                    if part.is_bytes {
                        set_bytes(&mut schema, name, node);
                    }
                    parts.insert(name.clone(), part);
                }
                (BodyForm::Parts(parts), schema)
            }
            "text" | "events" => (BodyForm::Text, json!({ "type": "string" })),
            _ => (BodyForm::Bytes, bytes_schema()),
        };
        let is_required = body.get("required").and_then(Value::as_bool) == Some(true);
        // A range of types is no type that a request could have.
        let media = match media.contains('*') {
            true => "application/octet-stream",
            false => media,
        };
        let media = media.to_owned();
        let plan = Self {
            is_required,
            media,
            form,
        };
        Ok(Some((plan, schema)))
    }

    /// The media type and the bytes of the body for `value`.
    pub(super) fn write(&self, value: &Value) -> Result<(String, Vec<u8>), CallError> {
        let media = self.media.clone();
        let object = || {
            value
                .as_object()
                .ok_or_else(|| CallError::invalid_input("the body has to be an object"))
        };
        Ok(match &self.form {
            BodyForm::Json => (media, value.to_string().into_bytes()),
            BodyForm::Text => (media, text(value).into_bytes()),
            BodyForm::Bytes => (media, decoded(value, "body")?),
            BodyForm::Fields(fields) => {
                let mut budget = RequestByteBudget::body();
                let mut pairs = PairWriter::new(&mut budget, "&");
                for (name, value) in object()? {
                    let writing = fields
                        .get(name)
                        .copied()
                        .unwrap_or(ParameterSerialization::FORM);
                    field(&mut pairs, name, value, writing)?;
                }
                (media, pairs.finish().into_bytes())
            }
            BodyForm::Parts(parts) => multipart(object()?, parts)?,
        })
    }
}

/// The named members of an object's schema, without those in its `allOf`.
fn members(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten()
}

fn encoding<'a>(described: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    described.get("encoding")?.get(name)
}

/// Writes a member of a form. The specification makes a value JSON if it has no form of its own as pairs.
fn field(
    pairs: &mut PairWriter<'_>,
    name: &str,
    value: &Value,
    writing: ParameterSerialization,
) -> Result<(), CallError> {
    let nested = |value: &Value| value.is_object() || value.is_array();
    // In a form, reserved characters would end a name or a value, so they are always escaped.
    let writing = ParameterSerialization {
        reserved: false,
        ..writing
    };
    match value {
        _ if writing.style == ParameterStyle::DeepObject => pairs.add(name, value, writing),
        Value::Object(_) => pairs.json(name, value, ESCAPED),
        Value::Array(list) if list.iter().any(nested) => pairs.json(name, value, ESCAPED),
        value => pairs.add(name, value, writing),
    }
}

/// The text of a body.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

impl MultipartPart {
    fn from_node(node: &Value, encoding: Option<&Value>) -> Self {
        let text = |name: &str| node.get(name).and_then(Value::as_str);
        let items = |node: &Value| node.get("items").is_some_and(is_bytes);
        let media = encoding
            .and_then(|one| one.get("contentType"))
            .and_then(Value::as_str);
        let media = media.or_else(|| text("contentMediaType"));
        // A list of types or a range leaves the choice to the sender.
        let media = media.filter(|media| {
            !media.contains(['*', ',']) && media.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        });
        Self {
            media: media.map(str::to_owned),
            is_bytes: is_bytes(node) || items(node),
        }
    }
}

fn is_bytes(node: &Value) -> bool {
    let text = |name: &str| node.get(name).and_then(Value::as_str);
    let octets = text("contentMediaType") == Some("application/octet-stream");
    text("format") == Some("binary") || (octets && text("contentEncoding").is_none())
}

pub(super) fn bytes_schema() -> Value {
    json!({ "type": "string", "contentEncoding": "base64" })
}

/// Describes a member as base64 in the schema.
fn set_bytes(schema: &mut Value, name: &str, node: &Value) {
    let own = match node.get("items").is_some_and(is_bytes) {
        true => json!({ "type": "array", "items": bytes_schema() }),
        false => bytes_schema(),
    };
    if let Some(Value::Object(properties)) = schema.get_mut("properties")
        && properties.contains_key(name)
    {
        properties.insert(name.to_owned(), own);
    }
}

fn decoded(value: &Value, what: &str) -> Result<Vec<u8>, CallError> {
    let text = value.as_str().unwrap_or_default();
    let fine = value.is_string().then(|| BASE64.decode(text));
    match fine {
        Some(Ok(bytes)) => Ok(bytes),
        _ => Err(CallError::invalid_input(format!(
            "{what} has to be bytes in base64"
        ))),
    }
}

/// Writes a multipart form (RFC 7578).
fn multipart(
    object: &Map<String, Value>,
    parts: &BTreeMap<String, MultipartPart>,
) -> Result<(String, Vec<u8>), CallError> {
    let boundary = boundary()?;
    let begin = format!("--{boundary}\r\n");
    let unknown = MultipartPart::default();
    let mut budget = RequestByteBudget::body();
    let mut body = Vec::new();
    for (name, value) in object {
        let part = parts.get(name).unwrap_or(&unknown);
        // Several values become several parts with one name (RFC 7578 section 4.3).
        let each = match value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in each.iter().filter(|value| !value.is_null()) {
            budget.push_bytes(&mut body, begin.as_bytes())?;
            write_part(&mut body, &mut budget, name, value, part)?;
            budget.push_bytes(&mut body, b"\r\n")?;
        }
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok((format!("multipart/form-data; boundary={boundary}"), body))
}

fn write_part(
    body: &mut Vec<u8>,
    budget: &mut RequestByteBudget,
    name: &str,
    value: &Value,
    part: &MultipartPart,
) -> Result<(), CallError> {
    budget.push_bytes(body, b"content-disposition: form-data; name=")?;
    write_quoted(body, budget, name)?;
    // Servers recognise a file by its filename (RFC 7578 section 4.2).
    if part.is_bytes {
        budget.push_bytes(body, b"; filename=")?;
        write_quoted(body, budget, name)?;
    }
    // A part without a type is plain text (RFC 7578 section 4.4).
    let usual = match value {
        _ if part.is_bytes => Some("application/octet-stream"),
        Value::Object(_) => Some("application/json"),
        _ => None,
    };
    if let Some(media) = part.media.as_deref().or(usual) {
        budget.push_bytes(body, b"\r\ncontent-type: ")?;
        budget.push_bytes(body, media.as_bytes())?;
    }
    budget.push_bytes(body, b"\r\n\r\n")?;
    match part.is_bytes {
        true => {
            let bytes = decoded(value, &format!("the member '{name}' of the body"))?;
            budget.push_bytes(body, &bytes)
        }
        false => {
            let text = budget.scalar(value)?;
            budget.push_bytes(body, text.as_bytes())
        }
    }
}

/// Writes a name between quotes, as browsers do (WHATWG HTML, section 4.10.21.8).
fn write_quoted(
    body: &mut Vec<u8>,
    budget: &mut RequestByteBudget,
    name: &str,
) -> Result<(), CallError> {
    budget.push_bytes(body, b"\"")?;
    for piece in name.split_inclusive(['"', '\r', '\n']) {
        let plain = piece.trim_end_matches(['"', '\r', '\n']);
        budget.push_bytes(body, plain.as_bytes())?;
        let escaped: &[u8] = match piece.as_bytes().last() {
            Some(b'"') => b"%22",
            Some(b'\r') => b"%0D",
            Some(b'\n') => b"%0A",
            _ => b"",
        };
        budget.push_bytes(body, escaped)?;
    }
    budget.push_bytes(body, b"\"")
}

/// Random bytes of a boundary.
const BOUNDARY_BYTES: usize = 16;

/// A boundary that none of the parts contains. The parts are not searched for it: their author could not know it, and
/// 128 random bits occur in none of them by chance.
fn boundary() -> Result<String, CallError> {
    let mut bytes = [0; BOUNDARY_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| CallError::internal(error.to_string()))?;
    Ok(format!("alknet-{}", HEXLOWER.encode(&bytes)))
}
