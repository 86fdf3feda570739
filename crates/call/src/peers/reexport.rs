//! Operations of peers that this node offers as its own.

use std::sync::Arc;

use alknet_core::{BoxFuture, PeerId};
use futures_util::{StreamExt, stream};

use crate::access::AccessControl;
use crate::body::{CallBody, CallOutput, SubscriptionItem};
use crate::compose::{OperationLookup, ResolvedOperation};
use crate::context::Ctx;
use crate::error::{CallError, ErrorCode};
use crate::handler::{BoxStream, HandlerKind, OnceHandler, StreamHandler};
use crate::peers::{PeerRef, ScopedPeerEnv};
use crate::registry::Registration;
use crate::spec::{OperationSpec, OperationType};

/// An operation of a peer that this node offers to its callers under its own rule.
///
/// It is curated like any other operation: fixed when the registry is built, listed whether or not a peer serves it
/// at the moment, and never a replacement for another. The peer checks its own rule, against this node. Without the
/// peer, calls end with `NOT_FOUND`.
///
/// ```
/// use alknet_call::*;
///
/// let exec = ReExport::new(OperationType::Mutation, "container/exec", PeerRef::Any)
///     .with_name("farm/exec")
///     .with_scope("farm:exec");
/// let registry = Registry::builder().with(exec.into()).build();
/// assert!(registry.expect("a scope is required").spec("farm/exec").is_some());
/// ```
#[derive(Clone, Debug)]
pub struct ReExport {
    peer: PeerRef,
    remote: String,
    spec: OperationSpec,
}

impl ReExport {
    /// Offers `operation` of the peer that `peer` selects, under the same name and to every caller: set a rule to
    /// restrict it. Its schemas take everything; the peer checks.
    #[must_use]
    pub fn new(op_type: OperationType, operation: &str, peer: PeerRef) -> Self {
        let remote = operation.trim_start_matches('/').to_owned();
        Self {
            peer,
            spec: OperationSpec::new(&remote, op_type, ""),
            remote,
        }
    }

    /// Under another name.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        let named = OperationSpec::new(name, self.spec.op_type, "");
        self.spec.name = named.name;
        self.spec.namespace = named.namespace;
        self
    }

    /// Requires a scope.
    #[must_use]
    pub fn with_scope(mut self, scope: &str) -> Self {
        self.spec = self.spec.with_scope(scope);
        self
    }

    /// Under this rule.
    #[must_use]
    pub fn with_access(mut self, access: AccessControl) -> Self {
        self.spec.access_control = access;
        self
    }

    /// With this description and these schemas, errors, rules and limits.
    #[must_use]
    pub fn with_spec(mut self, spec: OperationSpec) -> Self {
        self.spec = spec;
        self
    }
}

impl From<ReExport> for Registration {
    fn from(export: ReExport) -> Self {
        let relay = Arc::new(ReExportHandler {
            peer: export.peer,
            remote: export.remote.into(),
        });
        let handler = match export.spec.op_type {
            OperationType::Subscription => HandlerKind::Stream(relay),
            OperationType::Mutation | OperationType::Query => HandlerKind::Once(relay),
        };
        Self::new(export.spec, handler)
    }
}

struct ReExportHandler {
    peer: PeerRef,
    remote: Box<str>,
}

impl ReExportHandler {
    fn find(&self, ctx: &Ctx, except: Option<&PeerId>) -> Result<ResolvedOperation, CallError> {
        let lookup = OperationLookup {
            operation: &self.remote,
            peer: Some(&self.peer),
            scope: &ScopedPeerEnv::new([&*self.remote]),
            except,
        };
        let found = ctx.dispatcher().peers.pick(&self.peer, &lookup);
        found.ok_or_else(|| {
            let message = format!("no peer serves '{}' at the moment", ctx.operation());
            CallError::new(ErrorCode::NotFound, message)
        })
    }

    async fn once(&self, input: CallBody, ctx: Ctx) -> Result<CallOutput, CallError> {
        // A re-export that names one peer asks no other.
        let elsewhere = !matches!(self.peer, PeerRef::Specific(_));
        let find = |_: &CallBody, except: Option<&PeerId>| self.find(&ctx, except);
        ask_around(find, elsewhere, input, &ctx).await
    }
}

/// Asks the peer that `find` selects. Where the peer of a query is lost and `elsewhere` allows it, asks another one,
/// once: `find` gets the id of the lost peer. The input is kept for that alone until the answer is there.
pub(super) async fn ask_around(
    find: impl Fn(&CallBody, Option<&PeerId>) -> Result<ResolvedOperation, CallError> + Send,
    elsewhere: bool,
    input: CallBody,
    ctx: &Ctx,
) -> Result<CallOutput, CallError> {
    let found = find(&input, None)?;
    let again = elsewhere && found.operation.spec.op_type == OperationType::Query;
    let retry_input = again.then(|| input.clone());
    // Another run of its key may be routed to another peer, which knows nothing of the key. The handler takes this
    // note back where it did not ask the peer.
    if elsewhere && found.operation.spec.op_type == OperationType::Mutation {
        ctx.set_sent(true);
    }
    let lost = match ask(&found, input, ctx).await {
        Err(error) if error.code == ErrorCode::Unavailable => error,
        outcome => return outcome,
    };
    let Some(input) = retry_input else {
        return Err(lost);
    };
    match find(&input, found.peer.as_ref()) {
        Ok(found) => ask(&found, input, ctx).await,
        // How the first peer failed says more than that no other serves the operation.
        Err(_) => Err(lost),
    }
}

/// Passes on the codes that the peer's own description names; others are codes that the peer did not describe.
async fn ask(
    found: &ResolvedOperation,
    input: CallBody,
    ctx: &Ctx,
) -> Result<CallOutput, CallError> {
    let answer = match &found.operation.handler {
        HandlerKind::Once(handler) => Arc::clone(handler).call(input, ctx.clone()).await,
        HandlerKind::Stream(_) => Err(other_type(found)),
    };
    answer.map_err(|error| found.operation.visible(error))
}

/// The events of a subscription at the found peer.
pub(super) fn follow(
    found: &ResolvedOperation,
    input: CallBody,
    ctx: Ctx,
) -> BoxStream<Result<SubscriptionItem, CallError>> {
    match &found.operation.handler {
        HandlerKind::Stream(handler) => {
            let operation = Arc::clone(&found.operation);
            let events = Arc::clone(handler).call(input, ctx);
            Box::pin(events.map(move |event| event.map_err(|error| operation.visible(error))))
        }
        HandlerKind::Once(_) => stream::iter([Err(other_type(found))]).boxed(),
    }
}

impl OnceHandler for ReExportHandler {
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxFuture<'static, Result<CallOutput, CallError>> {
        Box::pin(async move { self.once(input, ctx).await })
    }
}

impl StreamHandler for ReExportHandler {
    fn call(
        self: Arc<Self>,
        input: CallBody,
        ctx: Ctx,
    ) -> BoxStream<Result<SubscriptionItem, CallError>> {
        match self.find(&ctx, None) {
            Ok(found) => follow(&found, input, ctx),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }
}

fn other_type(found: &ResolvedOperation) -> CallError {
    let message = format!("the peer serves '{}' as another type", found.operation());
    CallError::new(ErrorCode::InvalidOperationType, message)
}
