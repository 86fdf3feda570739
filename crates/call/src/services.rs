//! The operations by which a node describes its own operations.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::body::{CallBody, CallOutput};
use crate::compiled::CompiledOperation;
use crate::context::Ctx;
use crate::error::CallError;
use crate::handler::HandlerKind;
use crate::registry::Registration;
use crate::session;
use crate::spec::{OperationSpec, OperationType};
use crate::watch;

/// The namespace of the protocol's own operations.
pub(crate) const NAMESPACE: &str = "services";
/// Operations on one page, unless the caller asks for another number.
const PAGE_DEFAULT: usize = 100;
/// Operations on one page at most.
const PAGE_MAX: usize = 1000;
/// Specs in one answer at most.
const NAMES_MAX: usize = 64;
/// Version of the protocol.
const VERSION: u32 = 1;
/// Extensions this node understands.
const FEATURES: [&str; 3] = ["bin1", "credit1", "goaway1"];

/// One operation of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSummary {
    /// All segments: `node/info`.
    pub name: String,
    /// The first segment of its name.
    pub namespace: String,
    /// How it is called.
    pub op_type: OperationType,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// The answer of `services/list`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationListing {
    /// One page.
    pub operations: Vec<OperationSummary>,
    /// `cursor` of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Changes when any operation does.
    #[serde(default)]
    pub registry: String,
    /// The protocol that the node speaks.
    #[serde(default)]
    pub protocol: Protocol,
}

/// The protocol that a node speaks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Protocol {
    /// Version of the protocol, 1.
    pub version: u32,
    /// Names of extensions.
    pub features: Vec<String>,
    /// Bytes of the longest frame that it takes from this caller.
    pub max_frame: Option<usize>,
    /// Requests that it takes at once from this caller.
    pub max_inflight: Option<usize>,
    /// Its peer id or key.
    pub node: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListInput {
    prefix: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

#[derive(Default, Deserialize)]
struct SchemaInput {
    #[serde(default, deserialize_with = "not_null")]
    name: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    names: Option<Vec<String>>,
}

/// A member that may be missing, but not `null`.
fn not_null<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

pub(crate) fn registrations() -> [Registration; 5] {
    let list = OperationSpec::query(
        "services/list",
        "Lists the operations the caller may call, by name.",
    )
    .with_input(list_schema());
    let schema = OperationSpec::query(
        "services/schema",
        "Shows the full specs of operations the caller may call.",
    )
    .with_input(schema_schema());
    [
        Registration::new(
            list,
            HandlerKind::once(|input, ctx| std::future::ready(run_list(&input, &ctx))),
        )
        .schema_is_type(),
        Registration::new(
            schema,
            HandlerKind::once(|input, ctx| std::future::ready(run_schema(&input, &ctx))),
        )
        .schema_is_type(),
        crate::peers::listing(),
        session::registration(),
        watch::registration(),
    ]
}

fn list_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "properties": {
            "prefix": { "type": ["string", "null"] },
            "cursor": { "type": ["string", "null"] },
            "limit": { "type": ["integer", "null"], "minimum": 1, "maximum": PAGE_MAX },
        },
    })
}

fn schema_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "names": { "type": "array", "items": { "type": "string" }, "maxItems": NAMES_MAX },
        },
        "oneOf": [{ "required": ["name"] }, { "required": ["names"] }],
    })
}

fn run_list(input: &CallBody, ctx: &Ctx) -> Result<CallOutput, CallError> {
    let input: ListInput = members(input)?.unwrap_or_default();
    let prefix = input.prefix.unwrap_or_default();
    let prefix = prefix.trim_start_matches('/');
    let limit = input.limit.unwrap_or(PAGE_DEFAULT);
    // A page is built in memory at once.
    if !(1..=PAGE_MAX).contains(&limit) {
        let message = format!("limit is 1 to {PAGE_MAX}, not {limit}");
        return Err(CallError::invalid_input(message));
    }
    let now = ctx.dispatcher().registry.now();
    // A cursor is the last name of the page before: stable whatever is registered later.
    let cursor = input.cursor.unwrap_or_default();
    let mut operations: Vec<_> = now
        .after(&cursor)
        .filter(|operation| operation.spec.name.starts_with(prefix))
        .filter(|operation| is_shown(operation, ctx))
        // One more shows whether there is another page.
        .take(limit + 1)
        .map(|operation| summary(&operation.spec))
        .collect();
    let more = operations.len() > limit;
    operations.truncate(limit);
    let next = operations.last().filter(|_| more).map(|o| o.name.clone());
    CallOutput::json(&OperationListing {
        operations,
        next,
        registry: now.digest(),
        protocol: protocol(ctx),
    })
}

/// The members of an object; `None` for `null`. Serde alone would also take them from an array.
pub(crate) fn members<T: DeserializeOwned>(input: &CallBody) -> Result<Option<T>, CallError> {
    if input.raw().trim_ascii_start().starts_with(b"[") {
        return Err(CallError::invalid_input("the input is an object, no array"));
    }
    input.parse()
}

pub(crate) fn summary(spec: &OperationSpec) -> OperationSummary {
    OperationSummary {
        name: spec.name.clone(),
        namespace: spec.namespace.clone(),
        op_type: spec.op_type,
        description: spec.description.clone(),
    }
}

fn protocol(ctx: &Ctx) -> Protocol {
    let state = ctx.root().connection_state();
    Protocol {
        version: VERSION,
        features: FEATURES.map(str::to_owned).into(),
        max_frame: Some(state.frame_bytes()),
        max_inflight: Some(state.limits().requests),
        node: ctx.dispatcher().node.clone(),
    }
}

fn run_schema(input: &CallBody, ctx: &Ctx) -> Result<CallOutput, CallError> {
    let input: SchemaInput = members(input)?.unwrap_or_default();
    let names = match (input.name, input.names) {
        (Some(name), None) => return CallOutput::json(&spec_of(&name, ctx)?.spec),
        // Specs are long: an answer of more would exceed the frames of many peers.
        (None, Some(names)) if names.len() <= NAMES_MAX => names,
        _ => {
            let message = format!("give name, or names with at most {NAMES_MAX} of them");
            return Err(CallError::invalid_input(message));
        }
    };
    let specs = names
        .iter()
        .map(|name| spec_of(name, ctx))
        .collect::<Result<Vec<_>, _>>()?;
    let specs: Vec<_> = specs.iter().map(|operation| &operation.spec).collect();
    CallOutput::json(&json!({ "specs": specs }))
}

fn spec_of(name: &str, ctx: &Ctx) -> Result<Arc<CompiledOperation>, CallError> {
    let found = ctx.dispatcher().registry.lookup(name);
    found
        .filter(|operation| is_shown(operation, ctx))
        .ok_or_else(|| {
            // Unknown callers must not learn which servers the node uses.
            let known = ctx.identity().is_some();
            let unread = known.then(|| ctx.dispatcher().registry.unread_import(name));
            unread
                .flatten()
                .unwrap_or_else(|| CallError::not_found(name))
        })
}

/// Whether a list shows the operation to the caller: only one that the caller may call.
fn is_shown(operation: &CompiledOperation, ctx: &Ctx) -> bool {
    operation.is_external()
        && operation.is_callable()
        && ctx.is_shown(&operation.spec.access_control)
}
