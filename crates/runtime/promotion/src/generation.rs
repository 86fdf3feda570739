//! Makes operations of the node from promoted versions: layer 0b.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use alknet_call::{
    AccessControl, BAD_GATEWAY, BoxStream, CallBody, CallError, CompositionAuthority, CountedTree,
    Ctx, ErrorCode, ErrorDef, HandlerKind, OperationSpec, OperationType, Registration,
    ScopedPeerEnv, Visibility, bad_gateway_def,
};
use alknet_core::{BoxFuture, Capabilities};
use alknet_runtime::{ModulePosition, OpError, RuntimeCode, ScriptFailure, ScriptOperationKind};
use futures_util::{StreamExt, future, stream};
use serde_json::{Value, json};

use crate::bundle::{Blake3Hash, OperationCode};
use crate::callers::{PromotedCallOrigin, PromotedCallPermit, PromotedCalls};
use crate::error::{lacked_capacity, no_capacity};
use crate::limits::{ACTS, CALLS_AT_ONCE};
use crate::store::{AuthoritySnapshot, PromotionTerms};
use crate::tally::{CallTally, CrashHistory, TallyVerdict};

/// Runs the code of promoted operations; the sessions in workers implement it. Dropping the returned future or stream
/// gives the call up: one that has begun in a [service](OperationCode::service) may run to its end.
pub trait Invoker: Send + Sync + 'static {
    /// Runs a query or a mutation: performs [`OperationCode::steps`] in an engine with [`OperationCode::modules`],
    /// and returns the result of the last step. The script calls operations through the context's [`env`](Ctx::env),
    /// which has the operation's own authority and reach.
    fn invoke(&self, call: PromotedInvocation) -> BoxFuture<'static, Result<Value, ScriptFailure>>;

    /// Runs a subscription: the same, with the items that the handler yields. The stream ends after the first error.
    fn subscribe(&self, call: PromotedInvocation) -> BoxStream<Result<Value, ScriptFailure>>;

    /// Sets the services that are installed from now on, by the names of their operations. All other services finish
    /// their current calls and end. Calls that began earlier may still arrive with earlier code.
    fn in_place(&self, services: BTreeMap<String, InstalledService>);
}

/// An installed [service](OperationCode::service).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledService {
    /// The id of its code.
    pub code: Blake3Hash,
    /// The authority of the service.
    pub authority: CompositionAuthority,
}

/// One call of a promoted operation.
#[derive(Clone, Debug)]
pub struct PromotedInvocation {
    /// The code to run.
    pub code: Arc<OperationCode>,
    /// The input, which matches the operation's schema.
    pub input: Value,
    /// The caller, the deadline, and what the operation may call.
    pub ctx: Ctx,
    /// Counts the call for its caller. An [`Invoker`] whose work goes on after its caller has left keeps it until that
    /// work ends.
    pub charge: PromotedCallCharge,
}

/// Counts a call until the last clone is dropped: as a call of the author's operations, and by the memory of its input.
#[derive(Clone, Debug)]
pub struct PromotedCallCharge {
    _counted: Arc<(PromotedCallPermit, CountedTree)>,
}

/// Receives verdicts about versions.
pub(crate) trait VerdictSink: Send + Sync + 'static {
    fn take_verdict(&self, path: &str, version: u64, verdict: TallyVerdict);
}

/// The parts of an operation.
pub(crate) struct PromotedOperationParts {
    pub(crate) code: Arc<OperationCode>,
    pub(crate) terms: PromotionTerms,
    pub(crate) version: u64,
    pub(crate) author: String,
    pub(crate) authority: AuthoritySnapshot,
    pub(crate) tally: Arc<CallTally>,
    pub(crate) crashes: Arc<CrashHistory>,
    pub(crate) callers: Arc<PromotedCalls>,
    pub(crate) capabilities: Capabilities,
    pub(crate) invoker: Arc<dyn Invoker>,
    pub(crate) judge: Arc<dyn VerdictSink>,
}

impl PromotedOperationParts {
    /// The operation. It has the authority that its author had when it was proposed and still has, reaches the
    /// operations that its bundle declares, and admits the callers that the reviewer agreed to.
    pub(crate) fn registration(self) -> Registration {
        let spec = spec(&self.code, &self.terms, self.version);
        let authority = composition(&self.author, &self.authority);
        let reach = ScopedPeerEnv::new(&self.code.spec.uses);
        let streams = self.code.spec.kind == ScriptOperationKind::Subscription;
        let capabilities = self.capabilities.clone();
        let running = Arc::new(self);
        let handler = match streams {
            true => HandlerKind::stream(move |input, ctx| running.clone().stream(input, ctx)),
            false => HandlerKind::once(move |input, ctx| running.clone().once(input, ctx)),
        };
        Registration::new(spec, handler)
            .composing(authority, reach)
            .with_capabilities(capabilities)
            .checking_output()
    }

    async fn once(self: Arc<Self>, input: CallBody, ctx: Ctx) -> Result<Value, CallError> {
        let call = self.begin(input, ctx.clone())?;
        let _counted = call.charge.clone();
        let answer = self.invoker.invoke(call).await;
        self.ended(&ctx, answer.as_ref().err());
        answer.map_err(|failure| call_error(&self.code, failure, &ctx))
    }

    fn stream(self: Arc<Self>, input: CallBody, ctx: Ctx) -> BoxStream<Result<Value, CallError>> {
        let call = match self.begin(input, ctx.clone()) {
            Ok(begun) => begun,
            Err(error) => return Box::pin(stream::iter([Err(error)])),
        };
        let counted = call.charge.clone();
        let items = self.invoker.subscribe(call);
        let (operation, of) = (Arc::clone(&self), ctx.clone());
        let end = stream::once(future::lazy(move |_| operation.ended(&of, None)));
        let items = items.map(Some).chain(end.map(|()| None));
        // The end counts once: as an error, or after the last item.
        let items = items.scan(false, move |failed, item| {
            // The guard lives as long as the stream.
            let _ = &counted;
            let item = match item {
                Some(Ok(item)) => Some(Ok(item)),
                Some(Err(failure)) if !*failed => {
                    *failed = true;
                    self.ended(&ctx, Some(&failure));
                    Some(Err(call_error(&self.code, failure, &ctx)))
                }
                _ => None,
            };
            future::ready(item)
        });
        Box::pin(items)
    }

    /// The call to run, which is counted from here on.
    fn begin(&self, input: CallBody, ctx: Ctx) -> Result<PromotedInvocation, CallError> {
        if self.crashes.is_aside(self.code.id) {
            let text = "the operation lost its worker too often; it is set aside until the node \
                 starts again or another version is promoted";
            let details = json!({ "code": RuntimeCode::Policy.name() });
            let mut error = CallError::unavailable(text).with_details(details);
            // A retry cannot succeed before the node restarts or another version is promoted.
            error.retryable = false;
            return Err(error);
        }
        // The call is counted before its input is parsed.
        let counted = self
            .callers
            .enter(&self.author, PromotedCallOrigin::from_ctx(&ctx));
        let counted = counted.inspect_err(|error| excuse(&ctx, error))?;
        let tree = ctx.counted_tree(input);
        let (input, tree) = tree.inspect_err(|error| excuse(&ctx, error))?;
        Ok(PromotedInvocation {
            code: Arc::clone(&self.code),
            input,
            ctx,
            charge: PromotedCallCharge {
                _counted: Arc::new((counted, tree)),
            },
        })
    }

    fn ended(&self, ctx: &Ctx, failure: Option<&ScriptFailure>) {
        // Callers could cause this failure as often as they like, so it does not count against the version. A peer's
        // answer is no excuse, because the peer's owner may be the version's author.
        if failure.is_some_and(|it| it.excused || it.is_no_capacity()) {
            ctx.env().excuse();
            return;
        }
        let lost = failure.is_some_and(|it| it.code == RuntimeCode::WorkerLost);
        if lost && self.crashes.lost(self.code.id, Instant::now()) {
            tracing::error!(
                operation = self.terms.path,
                "set aside: it lost its worker too often"
            );
        }
        let failed = failure.is_some_and(|failure| is_fault(&self.code, failure, ctx));
        if failed && ctx.is_excused() {
            return;
        }
        if let Some(verdict) = self.tally.count(failed) {
            self.judge
                .take_verdict(&self.terms.path, self.version, verdict);
        }
    }
}

/// Marks the request as excused if `error` says that there was no room for one of its calls.
fn excuse(ctx: &Ctx, error: &CallError) {
    if error.code == ErrorCode::Overloaded {
        ctx.env().excuse();
    }
}

/// The authority of an author's operation when it calls others.
pub(crate) fn composition(author: &str, may: &AuthoritySnapshot) -> CompositionAuthority {
    let mut authority = CompositionAuthority::new(author, &may.scopes);
    for (kind, ids) in &may.resources {
        authority = authority.with_resources(kind, ids);
    }
    authority
}

/// Whether a failure counts against the code. Declared errors, and calls that the caller aborted, do not.
fn is_fault(code: &OperationCode, failure: &ScriptFailure, ctx: &Ctx) -> bool {
    let declared = failure.operation.as_ref();
    let declared = declared.is_some_and(|error| code.spec.errors.contains_key(&error.code));
    let error = failure.operation.as_deref();
    let vacant = error.is_some_and(|error| is_vacant(error, ctx));
    !declared && !vacant && failure.code != RuntimeCode::Abort
}

fn spec(code: &OperationCode, terms: &PromotionTerms, version: u64) -> OperationSpec {
    let registration = &code.spec;
    let op_type = match registration.kind {
        ScriptOperationKind::Mutation => OperationType::Mutation,
        ScriptOperationKind::Query => OperationType::Query,
        ScriptOperationKind::Subscription => OperationType::Subscription,
    };
    let mut spec = OperationSpec::new(&terms.path, op_type, &registration.description)
        .with_input(registration.input.clone())
        .with_output(registration.output.clone());
    spec.version = version.to_string();
    spec.concurrency = Some(CALLS_AT_ONCE);
    spec.tags = vec!["promoted".to_owned()];
    spec.error_schemas = errors(code);
    spec.visibility = match terms.external {
        true => Visibility::External,
        false => Visibility::Internal,
    };
    spec.access_control = AccessControl {
        required_scopes: terms.scopes.clone(),
        identified: true,
        ..AccessControl::default()
    };
    if !terms.external {
        // The `uses` of another operation decide whether it can call this one.
        spec.access_control = AccessControl::default();
    }
    spec
}

/// The errors that the bundle declares, and those that the runtime can cause.
fn errors(code: &OperationCode) -> Vec<ErrorDef> {
    let own = code.spec.errors.iter().map(|(code, schema)| ErrorDef {
        code: code.clone(),
        description: String::new(),
        schema: schema.clone(),
        http_status: None,
    });
    let runtime = RuntimeCode::ALL.into_iter().filter_map(|it| {
        let (name, _) = it.on_the_wire();
        ErrorCode::may_declare(name).then(|| ErrorDef {
            code: name.to_owned(),
            description: format!("The script ended with {it}."),
            schema: Value::Bool(true),
            http_status: None,
        })
    });
    let mut all: Vec<_> = own.chain(runtime).collect();
    if !code.spec.errors.contains_key(BAD_GATEWAY) {
        all.push(bad_gateway_def());
    }
    all
}

/// Whether the error is that of a capability action that found nothing to act with. A script can make such an error, so
/// the node's own record decides as well.
fn is_vacant(error: &OpError, ctx: &Ctx) -> bool {
    let is_like_one = error.path.starts_with(ACTS) && error.code == ErrorCode::Unavailable.name();
    is_like_one && ctx.met_vacancy()
}

/// The error that callers see for a failure. The cases are a capability that does not act, a declared error as it is,
/// a called operation without room, a failed server of an import, and the runtime's own errors by the table of codes.
pub(crate) fn call_error(code: &OperationCode, failure: ScriptFailure, ctx: &Ctx) -> CallError {
    if failure.is_no_capacity() {
        return no_capacity(failure);
    }
    let place = failure.position();
    if let Some(error) = failure.operation {
        if is_vacant(&error, ctx) {
            // The operation is not at fault, and a retry may succeed once an administrator has unlocked the vault.
            let mut answer = CallError::unavailable(error.message);
            answer.retryable = error.retryable;
            return answer.with_details(*error.details);
        }
        if code.spec.errors.contains_key(&error.code) {
            let mut answer = CallError::operation(&error.code, error.message);
            answer.retryable = error.retryable;
            return match *error.details {
                Value::Null => answer,
                details => answer.with_details(details),
            };
        }
        let details = json!({ "code": error.code, "path": error.path });
        let details = with_place(details, place);
        // A script can claim a lack of room itself, so the node's own record of the refusal decides.
        if ctx.is_hindered() && error.says_no_capacity() {
            return lacked_capacity(error.message, error.retryable).with_details(details);
        }
        // The context also has the failure of an imported server.
        let Some(mut answer) = ctx.upstream_error(&error.code, &error.message) else {
            return CallError::internal(error.message).with_details(details);
        };
        // Another operation may already have done something.
        answer.retryable = error.retryable && code.spec.kind == ScriptOperationKind::Query;
        return answer.with_details(details);
    }
    let (name, retryable) = failure.code.on_the_wire();
    let details = with_place(json!({ "code": failure.code.name() }), place);
    let mut error = CallError::operation(name, failure.message).with_details(details);
    error.retryable = retryable;
    error
}

/// Adds the line of the bundle that failed, for its author.
fn with_place(mut details: Value, place: Option<ModulePosition>) -> Value {
    if let Some(place) = place {
        details["module"] = place.module.into();
        details["line"] = place.line.into();
    }
    details
}
