//! Operations that a session registered, in the form for the registry.

use std::sync::Arc;

use alknet_call::{
    BAD_GATEWAY, CallBody, CallError, Ctx, ErrorDef, HandlerKind, OperationSpec, OperationType,
    Registration, SessionError, bad_gateway_def,
};
use alknet_runtime::{OpError, RuntimeCode, ScriptOperationKind};
use futures_util::{Stream, stream};
use serde_json::{Value, json};

use super::failure::{declared_errors, to_call_error};
use super::memory::MemoryReservation;
use super::session::{WeakSession, YieldedItems};
use crate::wire::SessionOffer;

/// The operation `js/<name>`, which calls the script.
pub(super) fn registration(
    weak_session: &WeakSession,
    offer: SessionOffer,
    held: MemoryReservation,
) -> Result<Registration, OpError> {
    let name = format!("js/{}", offer.name);
    if !alknet_call::is_operation_name(&name) {
        let text = "a name that is called has one to three parts of 1 to 63 characters, each \
                    beginning with a letter";
        return Err(refusal(text));
    }
    let kind = match offer.kind {
        ScriptOperationKind::Mutation => OperationType::Mutation,
        ScriptOperationKind::Query => OperationType::Query,
        ScriptOperationKind::Subscription => OperationType::Subscription,
    };
    let mut spec = OperationSpec::new(&name, kind, &offer.description)
        .with_input(offer.input)
        .with_output(offer.output)
        .internal();
    spec.error_schemas = errors(offer.errors);
    let declares: Arc<[String]> = spec
        .error_schemas
        .iter()
        .map(|def| def.code.clone())
        .collect();
    // The script itself cannot cause this code, only a failed server of an import can.
    if declares.iter().all(|own| own != BAD_GATEWAY) {
        spec.error_schemas.push(bad_gateway_def());
    }
    let script = Arc::new(ScriptOperation {
        weak_session: weak_session.clone(),
        name: offer.name,
        declares,
        _held: held,
    });
    let handler = match offer.kind {
        ScriptOperationKind::Subscription => {
            HandlerKind::stream(move |input, ctx| follow(&script, input, &ctx))
        }
        ScriptOperationKind::Mutation | ScriptOperationKind::Query => {
            HandlerKind::once(move |input, ctx| {
                let script = Arc::clone(&script);
                async move { script.call(input, ctx).await }
            })
        }
    };
    // The script's worker checks the input: the node neither compiles nor evaluates a schema of a script, which may
    // use any amount of memory and time.
    Ok(Registration::new(spec, handler).schema_is_type())
}

/// The script's own errors, and those of all scripts.
fn errors(own: serde_json::Map<String, Value>) -> Vec<ErrorDef> {
    let mut all = declared_errors();
    for (code, schema) in own {
        // A script cannot redefine the errors of all scripts.
        if all.iter().all(|known| known.code != code) {
            all.push(ErrorDef {
                code,
                description: String::new(),
                schema,
                http_status: None,
            });
        }
    }
    all
}

/// The script's error for an operation that the registry refuses.
pub(super) fn refused(error: SessionError) -> OpError {
    match error {
        SessionError::TooMany => OpError {
            details: Box::new(json!({ "code": RuntimeCode::Quota.name() })),
            ..OpError::new("QUOTA_EXCEEDED", error.to_string())
        },
        other => refusal(&other.to_string()),
    }
}

fn refusal(text: &str) -> OpError {
    OpError {
        details: Box::new(json!({ "code": RuntimeCode::Limit.name() })),
        ..OpError::new("INVALID_INPUT", text)
    }
}

struct ScriptOperation {
    weak_session: WeakSession,
    name: String,
    declares: Arc<[String]>,
    /// The reservation lasts as long as the operation is registered.
    _held: MemoryReservation,
}

impl ScriptOperation {
    async fn call(&self, input: CallBody, ctx: Ctx) -> Result<Value, CallError> {
        let input = self.input(&input)?;
        let ran = self.weak_session.invoke(&self.name, input, ctx.env()).await;
        ran.map(|ran| ran.value)
            .map_err(|failure| self.error(&failure, &ctx))
    }

    fn input<'a>(&self, input: &'a CallBody) -> Result<&'a Value, CallError> {
        match input.tail().is_empty() {
            true => input.try_value(),
            false => Err(CallError::invalid_input("a script takes no bytes as input")),
        }
    }

    fn error(&self, failure: &alknet_runtime::ScriptFailure, ctx: &Ctx) -> CallError {
        let declares = |code: &str| self.declares.iter().any(|own| own == code);
        let passed = failure.operation.as_deref();
        let passed = passed.filter(|error| !declares(&error.code));
        // The error may come from a failed server of an import.
        let upstream = passed.and_then(|error| {
            let upstream_error = ctx.upstream_error(&error.code, &error.message)?;
            Some(upstream_error.with_details(json!({ "code": error.code, "path": error.path })))
        });
        upstream.unwrap_or_else(|| to_call_error(failure, ctx.is_hindered(), declares))
    }
}

/// The items that a script yields.
fn follow(
    script: &Arc<ScriptOperation>,
    input: CallBody,
    ctx: &Ctx,
) -> impl Stream<Item = Result<Value, CallError>> + Send + use<> {
    let input = script.input(&input).cloned();
    let begun = input.and_then(|input| {
        let following = script
            .weak_session
            .follow_operation(&script.name, &input, ctx.env());
        following.map_err(|failure| script.error(&failure, ctx))
    });
    let state: SubscriptionState = match begun {
        Ok(following) => SubscriptionState::Runs(Box::new(following)),
        Err(error) => SubscriptionState::Failed(error),
    };
    let (script, ctx) = (Arc::clone(script), ctx.clone());
    stream::unfold(state, move |state| {
        let (script, ctx) = (Arc::clone(&script), ctx.clone());
        async move {
            match state {
                SubscriptionState::Over => None,
                SubscriptionState::Failed(error) => Some((Err(error), SubscriptionState::Over)),
                SubscriptionState::Runs(mut following) => match following.next().await? {
                    Ok(item) => Some((Ok(item), SubscriptionState::Runs(following))),
                    Err(failure) => {
                        Some((Err(script.error(&failure, &ctx)), SubscriptionState::Over))
                    }
                },
            }
        }
    })
}

enum SubscriptionState {
    Failed(CallError),
    Over,
    Runs(Box<YieldedItems>),
}
