//! The shapes of requests and responses. They are a contract: see `docs/http.md`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{ErrorDef, InputMemory, OperationSpec, OperationType, read_object};
use bytes::Bytes;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::limits::{
    BATCH_CALLS_MAX, NAMESPACE_CHARS_MAX, NESTING_MAX, SEARCH_BYTES_MAX, SEARCH_LIMIT,
    SEARCH_LIMIT_MAX, TIMEOUT_MS_MAX,
};
use crate::memory::RequestText;

/// The body of `/call` and `/subscribe`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRequest<'a> {
    /// The operation, with or without a leading slash.
    #[serde(borrow)]
    pub operation: Cow<'a, str>,
    /// The input of the operation; an absent input stands for `null`.
    #[serde(borrow, default)]
    pub input: Option<&'a RawValue>,
    /// The caller wants the response within this number of milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// A mutation that the caller repeats with the same key runs once.
    #[serde(borrow, default)]
    pub idempotency_key: Option<Cow<'a, str>>,
    /// The peer to which the node forwards the call.
    #[serde(borrow, default)]
    pub peer: Option<Cow<'a, str>>,
}

/// The members of [`CallRequest`] and the kind of value that each must have.
const CALL_MEMBERS: [(&str, MemberKind); 5] = [
    ("operation", MemberKind::Text),
    ("input", MemberKind::Any),
    ("timeout_ms", MemberKind::Number),
    ("idempotency_key", MemberKind::Text),
    ("peer", MemberKind::Text),
];

impl<'a> CallRequest<'a> {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// A 400 that names the invalid member.
    pub fn read(body: &'a [u8]) -> Result<Self, ApiError> {
        read_object(body, NESTING_MAX)
            .map_err(|error| diagnose(body, "", &CALL_MEMBERS, &["operation"], error.message))
    }

    /// The call that the request describes. The request was read from `body`.
    ///
    /// # Errors
    /// A 400 if the time is out of range.
    pub fn invocation(&self, body: &RequestText) -> Result<GatewayCall, ApiError> {
        let timeout_ms = self.timeout_ms;
        if timeout_ms.is_some_and(|ms| !(1..=TIMEOUT_MS_MAX).contains(&ms)) {
            let message = format!("timeout_ms is 1 to {TIMEOUT_MS_MAX}");
            return Err(ApiError::malformed("/timeout_ms", message));
        }
        let input = self
            .input
            .map(|raw| body.text.slice_ref(raw.get().as_bytes()));
        Ok(GatewayCall {
            operation: self.operation.as_ref().to_owned(),
            input,
            memory: body.memory(),
            timeout: timeout_ms.map(Duration::from_millis),
            idempotency_key: self.idempotency_key.as_deref().map(str::to_owned),
            peer: self.peer.as_deref().map(str::to_owned),
        })
    }
}

/// A call that a caller requests.
#[derive(Clone, Debug, Default)]
pub struct GatewayCall {
    /// The operation, with or without a leading slash.
    pub operation: String,
    /// Checked JSON text; `None` stands for `null`.
    pub input: Option<Bytes>,
    /// The memory that the input counts against.
    pub memory: Option<Arc<dyn InputMemory>>,
    /// The caller wants the response within this time.
    pub timeout: Option<Duration>,
    /// A mutation that the caller repeats with the same key runs once.
    pub idempotency_key: Option<String>,
    /// The peer to which the node forwards the call.
    pub peer: Option<String>,
}

impl GatewayCall {
    /// A call of `operation` with an input.
    #[must_use]
    pub fn for_operation(operation: &str, input: &Value) -> Self {
        Self {
            operation: operation.to_owned(),
            input: Some(input.to_string().into()),
            ..Self::default()
        }
    }
}

/// The body of `/batch`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest<'a> {
    /// The calls, 64 at most. A batch without calls has no results. Of a batch with too many calls,
    /// only one call above the maximum is read.
    #[serde(borrow, deserialize_with = "first_calls")]
    pub calls: Vec<BatchItem<'a>>,
    /// How the calls follow each other.
    #[serde(default)]
    pub mode: BatchMode,
}

/// One call of a batch.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchItem<'a> {
    /// The name of its result, which is unique in the batch.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// As in [`CallRequest`].
    #[serde(borrow)]
    pub operation: Cow<'a, str>,
    /// As in [`CallRequest`].
    #[serde(borrow, default)]
    pub input: Option<&'a RawValue>,
    /// As in [`CallRequest`].
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// As in [`CallRequest`].
    #[serde(borrow, default)]
    pub idempotency_key: Option<Cow<'a, str>>,
    /// As in [`CallRequest`].
    #[serde(borrow, default)]
    pub peer: Option<Cow<'a, str>>,
}

/// How the calls of a batch follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchMode {
    /// Eight calls run at once.
    #[default]
    Parallel,
    /// One call runs after the other.
    Sequential,
    /// One call runs after the other, and the first failure ends the batch.
    StopOnError,
}

const ITEM_MEMBERS: [(&str, MemberKind); 6] = [
    ("id", MemberKind::Text),
    CALL_MEMBERS[0],
    CALL_MEMBERS[1],
    CALL_MEMBERS[2],
    CALL_MEMBERS[3],
    CALL_MEMBERS[4],
];

impl<'a> BatchRequest<'a> {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// A 400 that names the invalid member.
    pub fn read(body: &'a [u8]) -> Result<Self, ApiError> {
        read_object(body, NESTING_MAX).map_err(|error| {
            let members = [("calls", MemberKind::List), ("mode", MemberKind::Text)];
            let outer = diagnose(body, "", &members, &["calls"], error.message);
            // The first call that is invalid by itself gives a more precise reason than the error
            // of the whole body.
            let calls: Option<RawBatch<'_>> = serde_json::from_slice(body).ok();
            let calls = calls.into_iter().flat_map(|listed| listed.calls);
            let item_fault = calls.enumerate().find_map(|(n, item)| {
                let at = format!("/calls/{n}");
                fault(item.get(), &at, &ITEM_MEMBERS, &["id", "operation"])
            });
            item_fault.unwrap_or(outer)
        })
    }
}

impl BatchItem<'_> {
    /// The call that the item describes. The item was read from `body`.
    ///
    /// # Errors
    /// A 400 if the time is out of range.
    pub fn invocation(&self, body: &RequestText) -> Result<GatewayCall, ApiError> {
        let request = CallRequest {
            operation: self.operation.clone(),
            input: self.input,
            timeout_ms: self.timeout_ms,
            idempotency_key: self.idempotency_key.clone(),
            peer: self.peer.clone(),
        };
        request.invocation(body)
    }
}

/// The result of one call of a batch.
#[derive(Clone, Debug)]
pub struct BatchResult {
    /// The id of the call.
    pub id: String,
    /// Its output or its error.
    pub outcome: Result<alknet_call::CallOutput, ApiError>,
}

/// The conditions of a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchQuery {
    /// A part of a name, a summary or a tag; the case of letters does not matter.
    pub q: String,
    /// The first part of the names.
    pub namespace: Option<String>,
    /// If set, the search finds only operations of this type.
    pub op_type: Option<OperationType>,
    /// If set, the search leaves out subscriptions, which have several outputs.
    pub no_subscriptions: bool,
    /// The highest number of operations on a page.
    pub limit: Option<usize>,
    /// The last name of the previous page.
    pub cursor: Option<String>,
}

impl SearchQuery {
    /// Sets one member of a query string, or of a tool's arguments.
    ///
    /// # Errors
    /// A 400 that names the member.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ApiError> {
        let at = || format!("/{name}");
        // The search compares the text with every operation, so its length is limited.
        if value.len() > SEARCH_BYTES_MAX {
            let message = format!("'{name}' has at most {SEARCH_BYTES_MAX} bytes");
            return Err(ApiError::malformed(&at(), message));
        }
        match name {
            // The search ignores case, and this converts its text once instead of for each
            // operation.
            "q" => self.q = value.to_lowercase(),
            "namespace" if value.chars().count() > NAMESPACE_CHARS_MAX => {
                let message = format!("'namespace' has at most {NAMESPACE_CHARS_MAX} characters");
                return Err(ApiError::malformed(&at(), message));
            }
            "namespace" => self.namespace = Some(value.to_owned()),
            "cursor" => self.cursor = Some(value.to_owned()),
            "type" => {
                self.op_type = Some(match value {
                    "query" => OperationType::Query,
                    "mutation" => OperationType::Mutation,
                    "subscription" => OperationType::Subscription,
                    _ => {
                        let message = "type is query, mutation or subscription";
                        return Err(ApiError::malformed(&at(), message));
                    }
                });
            }
            "limit" => {
                let limit = value.parse().ok();
                let limit = limit.filter(|n| (1..=SEARCH_LIMIT_MAX).contains(n));
                self.limit = Some(limit.ok_or_else(|| {
                    let message = format!("limit is 1 to {SEARCH_LIMIT_MAX}");
                    ApiError::malformed(&at(), message)
                })?);
            }
            _ => {
                let message = format!(
                    "there is no '{name}' here; there are q, namespace, type, limit and cursor"
                );
                return Err(ApiError::malformed(&at(), message));
            }
        }
        Ok(())
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.unwrap_or(SEARCH_LIMIT)
    }

    pub(crate) fn finds(&self, spec: &OperationSpec) -> bool {
        let text = |text: &str| text.to_lowercase().contains(&self.q);
        let namespace = self.namespace.as_deref();
        let cursor = self.cursor.as_deref().unwrap_or_default();
        // Pages are in the order of names, so the next page begins after the cursor.
        spec.name.as_str() > cursor.strip_prefix('/').unwrap_or(cursor)
            && namespace.is_none_or(|namespace| spec.namespace == namespace)
            && self.op_type.is_none_or(|kind| spec.op_type == kind)
            && !(self.no_subscriptions && spec.op_type == OperationType::Subscription)
            && (self.q.is_empty()
                || text(&format!("/{}", spec.name))
                || text(&spec.description)
                || spec.tags.iter().any(|tag| text(tag)))
    }
}

/// The response of `/search`.
#[derive(Clone, Debug, Serialize)]
pub struct SearchPage {
    /// The operations that the search found, in order of name.
    pub operations: Vec<SearchSummary>,
    /// The cursor at which the next page begins.
    pub next: Option<String>,
}

/// The short form of an operation.
#[derive(Clone, Debug, Serialize)]
pub struct SearchSummary {
    /// Its name, with the leading slash.
    pub operation: String,
    /// Query, mutation or subscription.
    #[serde(rename = "type")]
    pub op_type: OperationType,
    /// A description of one line.
    pub summary: String,
    /// The first part of its name.
    pub namespace: String,
    /// Always `ok`, because the search lists only operations that the caller may call.
    pub access: &'static str,
}

impl SearchSummary {
    pub(crate) fn from_spec(spec: &OperationSpec) -> Self {
        Self {
            operation: format!("/{}", spec.name),
            op_type: spec.op_type,
            summary: summary(spec),
            namespace: spec.namespace.clone(),
            access: "ok",
        }
    }
}

/// The first line of the operation's description.
fn summary(spec: &OperationSpec) -> String {
    spec.description
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The response of `/schema`.
#[derive(Clone, Debug, Serialize)]
pub struct OperationDescription {
    /// Its name, with the leading slash.
    pub operation: String,
    /// Query, mutation or subscription.
    #[serde(rename = "type")]
    pub op_type: OperationType,
    /// A description of one line.
    pub summary: String,
    /// The whole description.
    pub description: String,
    /// The JSON Schema of the input.
    pub input_schema: Value,
    /// The JSON Schema of the output, or of each event.
    pub output_schema: Value,
    /// The errors that the operation declares.
    pub errors: Vec<ErrorShape>,
    /// Example inputs.
    pub examples: Vec<Value>,
}

/// An error that an operation declares.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorShape {
    /// The code of the error.
    pub code: String,
    /// The HTTP status of a response with this error.
    pub http_status: u16,
    /// The JSON Schema of the error's details.
    pub schema: Value,
}

impl OperationDescription {
    pub(crate) fn from_spec(spec: &OperationSpec) -> Self {
        let error = |declared: &ErrorDef| ErrorShape {
            code: declared.code.clone(),
            http_status: declared.http_status.unwrap_or(422),
            schema: declared.schema.clone(),
        };
        Self {
            operation: format!("/{}", spec.name),
            op_type: spec.op_type,
            summary: summary(spec),
            description: spec.description.clone(),
            input_schema: spec.input_schema.clone(),
            output_schema: spec.output_schema.clone(),
            errors: spec.error_schemas.iter().map(error).collect(),
            examples: examples(&spec.input_schema),
        }
    }
}

/// The examples of an input, which JSON Schema holds in `examples`.
fn examples(schema: &Value) -> Vec<Value> {
    let listed = schema.get("examples").and_then(Value::as_array);
    listed.cloned().unwrap_or_default()
}

/// The kind of value that a member must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemberKind {
    Any,
    List,
    Number,
    Text,
}

impl MemberKind {
    fn takes(self, value: &str) -> bool {
        match self {
            Self::Any => true,
            Self::List => value.starts_with('['),
            // Members with numbers are optional, and `null` counts as absent.
            Self::Number => value == "null" || value.parse::<u64>().is_ok(),
            Self::Text => value.starts_with('"'),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "anything",
            Self::List => "a list",
            Self::Number => "a whole number that is not negative",
            Self::Text => "a string",
        }
    }
}

/// The reason why a body was refused, with the location of the fault if it can be found.
fn diagnose(
    body: &[u8],
    at: &str,
    members: &[(&str, MemberKind)],
    needed: &[&str],
    otherwise: String,
) -> ApiError {
    // For a body that is no JSON, the error of the first read is the answer.
    let Ok(text) = serde_json::from_slice::<&RawValue>(body) else {
        return ApiError::malformed(at, format!("the body is no JSON: {otherwise}"));
    };
    let fault = fault(text.get(), at, members, needed);
    fault.unwrap_or_else(|| ApiError::malformed(at, otherwise))
}

/// The fault in a JSON text. The text is read member by member and never stored.
fn fault(
    text: &str,
    at: &str,
    members: &[(&str, MemberKind)],
    needed: &[&str],
) -> Option<ApiError> {
    if !text.starts_with('{') {
        return Some(ApiError::malformed(at, "an object is expected"));
    }
    let mut missing = needed.to_vec();
    let faults = MemberChecker {
        at,
        members,
        missing: &mut missing,
    };
    let found = serde_json::Deserializer::from_str(text).deserialize_map(faults);
    found.ok()?.or_else(|| {
        let name = missing.first()?;
        Some(ApiError::malformed(at, format!("'{name}' is missing")))
    })
}

/// Finds the first invalid member.
struct MemberChecker<'a, 'm> {
    at: &'a str,
    members: &'a [(&'a str, MemberKind)],
    /// The required members that were not found yet.
    missing: &'a mut Vec<&'m str>,
}

impl<'de> Visitor<'de> for MemberChecker<'_, '_> {
    type Value = Option<ApiError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
        let mut first = None;
        while let Some(BodyMemberName(name)) = all.next_key()? {
            let value = all.next_value::<&RawValue>()?;
            // A required member with an invalid value counts as present: its own fault is the one
            // to report.
            self.missing.retain(|needed| *needed != name);
            if first.is_none() {
                first = member_fault(&name, value.get(), self.at, self.members);
            }
        }
        Ok(first)
    }
}

#[derive(Deserialize)]
struct BodyMemberName<'a>(#[serde(borrow)] Cow<'a, str>);

fn member_fault(
    name: &str,
    value: &str,
    at: &str,
    members: &[(&str, MemberKind)],
) -> Option<ApiError> {
    // The pointer escapes these two characters (RFC 6901 section 3).
    let pointer = || format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
    match members.iter().find(|(known, _)| *known == name) {
        None => Some(ApiError::malformed(
            &pointer(),
            format!("'{name}' is not known here"),
        )),
        Some((_, kind)) if !kind.takes(value) => {
            let message = format!("'{name}' has to be {}", kind.name());
            Some(ApiError::malformed(&pointer(), message))
        }
        Some(_) => None,
    }
}

/// The calls of a batch as raw JSON text.
#[derive(Deserialize)]
struct RawBatch<'a> {
    #[serde(borrow, deserialize_with = "first_calls")]
    calls: Vec<&'a RawValue>,
}

/// At most as many calls as a batch may have, and one more if it has too many.
fn first_calls<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct FirstElements<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstElements<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Vec<T>, A::Error> {
            let mut first = Vec::new();
            while first.len() <= BATCH_CALLS_MAX {
                match all.next_element()? {
                    Some(call) => first.push(call),
                    None => return Ok(first),
                }
            }
            // The rest is read without storing it: serde refuses a list that its visitor leaves
            // unread.
            while all.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }

    deserializer.deserialize_seq(FirstElements(PhantomData))
}

#[cfg(test)]
mod tests;
