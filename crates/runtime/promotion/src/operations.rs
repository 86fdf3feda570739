//! The operations `ops/*` on the wire.

use std::sync::Arc;

use alknet_call::{
    CallBody, CallError, Ctx, ErrorCode, ErrorDef, HandlerKind, Idempotence, OperationSpec,
    Registration,
};
use alknet_core::Identity;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::bundle::Blake3Hash;
use crate::error::{CHECK_FAILED, PromotionError, STORE_FULL, TESTS_FAILED};
use crate::limits::{PAGE_MAX, REASON_BYTES_MAX, SCOPES_MAX, TRIAL_MAX, TRIALS_AT_ONCE};
use crate::service::{Promotion, ProposalQuery, ReviewTerms};

/// The scope for sending bundles.
const PROPOSE: &str = "ops:propose";
/// The scope for deciding about bundles.
pub(crate) const PROMOTE: &str = "ops:promote";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromoteInput {
    id: Blake3Hash,
    /// The digest of the document that the reviewer read.
    digest: Option<Blake3Hash>,
    accept: bool,
    path: Option<String>,
    external: Option<bool>,
    scopes: Option<Vec<String>>,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackInput {
    path: String,
    version: Option<u64>,
    #[serde(default)]
    reason: String,
}

pub(crate) fn registrations(promotion: &Arc<Promotion>) -> Vec<Registration> {
    let once = |run: fn(Arc<Promotion>, CallBody, Ctx) -> PromotionFuture| {
        let promotion = Arc::clone(promotion);
        HandlerKind::once(move |input, ctx| run(Arc::clone(&promotion), input, ctx))
    };
    [
        (
            propose_spec(),
            once(|it, input, ctx| Box::pin(propose(it, input, ctx))),
        ),
        (
            promote_spec(),
            once(|it, input, ctx| Box::pin(promote(it, input, ctx))),
        ),
        (
            proposals_spec(),
            once(|it, input, _| Box::pin(proposals(it, input))),
        ),
        (
            rollback_spec(),
            once(|it, input, ctx| Box::pin(rollback(it, input, ctx))),
        ),
    ]
    .map(|(spec, handler)| Registration::new(spec, handler))
    .into()
}

type PromotionFuture = alknet_core::BoxFuture<'static, Result<Value, CallError>>;

async fn propose(promotion: Arc<Promotion>, input: CallBody, ctx: Ctx) -> Result<Value, CallError> {
    let who = known(&ctx)?;
    // The text is used as it was sent, because a parsed value would hide a member that occurs
    // twice.
    let bundle = input.member("bundle");
    let bundle = bundle.ok_or_else(|| CallError::invalid_input("the input has a bundle"))?;
    Ok(promotion.propose(bundle.raw(), &who).await?)
}

async fn promote(promotion: Arc<Promotion>, input: CallBody, ctx: Ctx) -> Result<Value, CallError> {
    let who = oneself(&ctx)?;
    let input: PromoteInput = read(&input)?;
    check_reason(&input.reason)?;
    if !input.accept {
        // A term that a rejection ignores would suggest to the reviewer that it had an effect.
        if input.path.is_some() || input.external.is_some() || input.scopes.is_some() {
            let text = "path, external and scopes go with accept";
            return Err(CallError::invalid_input(text));
        }
        let done = promotion.reject(input.id, input.digest, &who, &input.reason);
        return Ok(done.await?);
    }
    let wanted = ReviewTerms {
        path: input.path,
        external: input.external.unwrap_or(false),
        scopes: input.scopes,
    };
    let reviewer = (&*who, ctx.conn().key);
    let done = promotion.accept(input.id, input.digest, wanted, reviewer, &input.reason);
    Ok(done.await?)
}

async fn rollback(
    promotion: Arc<Promotion>,
    input: CallBody,
    ctx: Ctx,
) -> Result<Value, CallError> {
    let who = oneself(&ctx)?;
    let input: RollbackInput = read(&input)?;
    check_reason(&input.reason)?;
    let who = who.id.as_str();
    let done = promotion.rollback(&input.path, input.version, who, &input.reason);
    Ok(done.await?)
}

async fn proposals(promotion: Arc<Promotion>, input: CallBody) -> Result<Value, CallError> {
    let show: Option<ProposalQuery> = match input.is_null() {
        true => None,
        false => Some(read(&input)?),
    };
    let query = show.unwrap_or_default().into_request()?;
    Ok(promotion.show(query).await?)
}

fn read<T: DeserializeOwned>(input: &CallBody) -> Result<T, CallError> {
    // serde also reads a struct from an array, which the schema of the input does not allow.
    match input.raw().trim_ascii_start().starts_with(b"{") {
        true => input.parse(),
        false => Err(CallError::invalid_input("the input is an object")),
    }
}

fn known(ctx: &Ctx) -> Result<Arc<Identity>, CallError> {
    let known = ctx.identity().map(Arc::clone);
    known.ok_or_else(|| {
        CallError::new(
            ErrorCode::Unauthenticated,
            "this node does not know the caller",
        )
    })
}

/// A reviewer must decide by a request of its own: an operation that decided on the reviewer's
/// behalf would let the operation's author decide. By a node in between one reviewer would be two, and an author
/// another peer than its own: this node sees that node as the caller.
fn oneself(ctx: &Ctx) -> Result<Arc<Identity>, CallError> {
    if ctx.internal() {
        let text = "an operation may not review for its caller; call this directly".to_owned();
        return Err(PromotionError::Forbidden(text).into());
    }
    if ctx.is_forwarded() {
        let text = "a reviewer decides over a connection of its own, and not through a hub; call \
             this node directly"
            .to_owned();
        return Err(PromotionError::Forbidden(text).into());
    }
    known(ctx)
}

fn check_reason(reason: &str) -> Result<(), CallError> {
    match reason.len() <= REASON_BYTES_MAX {
        true => Ok(()),
        false => {
            let text = format!("a reason has at most {REASON_BYTES_MAX} bytes");
            Err(CallError::invalid_input(text))
        }
    }
}

fn own(code: &str, description: &str, schema: Value) -> ErrorDef {
    ErrorDef {
        code: code.to_owned(),
        description: description.to_owned(),
        schema,
        http_status: None,
    }
}

/// Adds the errors of tests and checks.
fn tried(mut spec: OperationSpec) -> OperationSpec {
    let object = |name: &str| json!({ "type": "object", "required": [name] });
    spec.error_schemas = vec![
        own(
            CHECK_FAILED,
            "The check of the bundle found mistakes.",
            object("findings"),
        ),
        own(
            TESTS_FAILED,
            "A test of the bundle fails.",
            object("report"),
        ),
        own(STORE_FULL, "The store of the node is full.", json!({})),
    ];
    // Each of these calls runs the bundle's tests, so only a few may run at once.
    spec.concurrency = Some(TRIALS_AT_ONCE);
    // The time covers the scan, all tests, and a reserve for the work around them.
    let most = (TRIAL_MAX * 2).as_millis() + 10_000;
    spec.default_timeout_ms = u32::try_from(most).ok();
    spec
}

fn propose_spec() -> OperationSpec {
    let spec = OperationSpec::mutation(
        "ops/propose",
        "Stores a signed bundle for review, and returns the grants that it asks for.",
    )
    .with_scope(PROPOSE)
    .with_input(json!({
        "type": "object",
        "properties": { "bundle": { "type": "object" } },
        "required": ["bundle"],
        "additionalProperties": false,
    }))
    .with_output(json!({
        "type": "object",
        "required": ["id", "digest", "state", "grants", "report"],
    }));
    OperationSpec {
        idempotent: Idempotence::Yes,
        ..tried(spec)
    }
}

fn id_schema() -> Value {
    json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
}

fn promote_spec() -> OperationSpec {
    let spec = OperationSpec::mutation(
        "ops/promote",
        "Reviews a proposal of another peer: makes it an operation of the node, or rejects it.",
    )
    .with_scope(PROMOTE)
    .with_input(json!({
        "type": "object",
        "properties": {
            "id": id_schema(),
            "digest": {
                "type": "string", "pattern": "^[0-9a-f]{64}$",
                "description": "the digest of the proposal that was read; CONFLICT if another one took its place",
            },
            "accept": { "type": "boolean" },
            "path": { "type": "string", "description": "the path of the operation; js/<name> unless given" },
            "external": { "type": "boolean", "description": "whether peers may call the operation" },
            "scopes": {
                "type": "array", "items": { "type": "string" }, "maxItems": SCOPES_MAX,
                "description": "scopes that peers need for the operation; call:<path with colons> unless given",
            },
            "reason": { "type": "string", "maxLength": REASON_BYTES_MAX },
        },
        "required": ["id", "accept"],
        "additionalProperties": false,
    }))
    .with_output(json!({ "type": "object", "required": ["id", "state"] }));
    tried(spec)
}

fn rollback_spec() -> OperationSpec {
    OperationSpec::mutation(
        "ops/rollback",
        "Replaces a promoted operation by its earlier version, or removes the operation if it has none.",
    )
    .with_scope(PROMOTE)
    .with_input(json!({
        "type": "object",
        "properties": {
            "path": { "type": "string" },
            "version": {
                "type": "integer", "minimum": 1,
                "description": "the version to go back to; unless given, the one before the present one",
            },
            "reason": { "type": "string", "maxLength": REASON_BYTES_MAX },
        },
        "required": ["path"],
        "additionalProperties": false,
    }))
    .with_output(json!({
        "type": "object",
        "required": ["path", "version", "generation", "active"],
    }))
}

fn proposals_spec() -> OperationSpec {
    let mut spec = OperationSpec::query(
        "ops/proposals",
        "Lists proposals; returns one proposal in full, or the versions of an operation.",
    )
    .with_input(json!({
        "type": ["object", "null"],
        "properties": {
            "id": id_schema(),
            "path": { "type": "string" },
            "bundle": { "type": "boolean" },
            "state": { "enum": ["promoted", "proposed", "rejected", "retired"] },
            "cursor": { "type": "integer" },
            "limit": { "type": "integer", "minimum": 1, "maximum": PAGE_MAX },
        },
        "additionalProperties": false,
    }))
    .with_output(json!({ "type": "object" }));
    // Authors and reviewers may both read proposals.
    spec.access_control.required_scopes_any = Some(vec![PROPOSE.to_owned(), PROMOTE.to_owned()]);
    spec
}
