//! Requests that an operation of this node passes on to an attached peer which its input names.

use std::fmt;
use std::sync::{Arc, Mutex};

use alknet_core::{Identity, PeerId};
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use crate::access::{AccessControl, AccessDecision};
use crate::body::{CallBody, CallOutput, SubscriptionItem};
use crate::compiled::CompiledOperation;
use crate::compose::ResolvedOperation;
use crate::context::Ctx;
use crate::error::{CallError, ErrorCode};
use crate::handler::BoxStream;
use crate::limits::{OPERATION_BYTES_MAX, SESSION_RECHECK};
use crate::peers::absent::absent;
use crate::peers::reexport::{ask_around, follow};
use crate::peers::table::PeerSelectionError;
use crate::request_grant;
use crate::spec::OperationType;
use crate::sync::lock;

/// A call to pass on: its operation, the peer it goes to, and the rule of the way there.
///
/// This node checks two rules against its requester before it sends anything: that of the way, which comes first and
/// does not reveal which peers there are, and that which the peer announces for its operation. The peer then checks
/// its own against this node.
///
/// For requests from outside only: an operation that calls another does so by its own authority and names a
/// [`PeerRef`](crate::PeerRef).
#[derive(Clone)]
pub struct CallForwarder {
    operation: Box<str>,
    to: ForwardingTarget,
    way: Arc<ForwardAccess>,
}

/// The rule of the way to one peer, or to every peer.
type ForwardAccess = dyn Fn(Option<&str>) -> AccessControl + Send + Sync;

#[derive(Clone)]
enum ForwardingTarget {
    /// One of the suitable peers.
    Any(Arc<dyn Fn(&PeerId) -> bool + Send + Sync>),
    /// The peer of this id or alias.
    Named(Box<str>),
}

impl CallForwarder {
    /// To the peer of this id or alias only. `way` is the rule of the way to a peer; its argument is the peer's id,
    /// or the name where no peer has it.
    pub fn to(
        peer: &str,
        operation: &str,
        way: impl Fn(Option<&str>) -> AccessControl + Send + Sync + 'static,
    ) -> Self {
        Self::new(ForwardingTarget::Named(peer.into()), operation, way)
    }

    /// To one of the suitable peers that serve the operation: of those that answered lately the one with the fewest
    /// calls of this node in flight, in turn among equals. `way` without a peer is the rule of the way to every peer.
    /// Where the requester does not pass it, those peers are left whose own way it passes.
    pub fn to_any(
        suits: impl Fn(&PeerId) -> bool + Send + Sync + 'static,
        operation: &str,
        way: impl Fn(Option<&str>) -> AccessControl + Send + Sync + 'static,
    ) -> Self {
        Self::new(ForwardingTarget::Any(Arc::new(suits)), operation, way)
    }

    fn new(
        to: ForwardingTarget,
        operation: &str,
        way: impl Fn(Option<&str>) -> AccessControl + Send + Sync + 'static,
    ) -> Self {
        Self {
            operation: operation.trim_start_matches('/').into(),
            to,
            way: Arc::new(way),
        }
    }

    /// Calls a query or mutation there. Where the call may go to any peer and the first peer is lost, the node asks
    /// another for a query, once.
    ///
    /// # Errors
    /// `FORBIDDEN` and `UNAUTHENTICATED` by either rule, `NOT_FOUND` where the peer or the operation is absent,
    /// `UNAVAILABLE` where peers serve it and none is well, `INVALID_OPERATION_TYPE` for a subscription; and what the
    /// peer answers. The rights at the time of its answer decide a query.
    pub async fn call(self, input: CallBody, ctx: &Ctx) -> Result<CallOutput, CallError> {
        let elsewhere = matches!(self.to, ForwardingTarget::Any(_));
        let target = Mutex::new(None);
        let find = |input: &CallBody, except: Option<&PeerId>| {
            let (found, resource) = self.find(input, ctx, except)?;
            *lock(&target) = Some((found.clone(), resource));
            Ok(found)
        };
        let answer = ask_around(find, elsewhere, input, ctx).await;
        let target = lock(&target).take();
        if let Some((found, resource)) = target
            && found.operation.spec.op_type == OperationType::Query
            && !ctx.has_rights_of_now()
        {
            self.holds(&found, resource.as_deref(), ctx)?;
        }
        answer
    }

    /// Subscribes there. Ends with an error as soon as one of the rules does not hold any more.
    #[must_use]
    pub fn subscribe(
        self,
        input: CallBody,
        ctx: &Ctx,
    ) -> BoxStream<Result<SubscriptionItem, CallError>> {
        // The input itself is not kept while the subscription runs.
        let (found, resource) = match self.find(&input, ctx, None) {
            Ok(found) => found,
            Err(error) => return stream::iter([Err(error)]).boxed(),
        };
        let events = follow(&found, input, ctx.clone());
        let right = ForwardingGrant {
            forwarder: self,
            found,
            resource,
            ctx: ctx.clone(),
        };
        let withdrawn = Box::pin(right.withdrawn());
        stream::unfold(Some((events, withdrawn)), |running| async move {
            let (mut events, mut withdrawn) = running?;
            tokio::select! {
                biased;
                // First: an event that came at the same time is not the requester's any more.
                error = &mut withdrawn => Some((Err(error), None)),
                event = events.next() => event.map(|event| (event, Some((events, withdrawn)))),
            }
        })
        .boxed()
    }

    /// The operation at the peer, and the resource that the input names there.
    fn find(
        &self,
        input: &CallBody,
        ctx: &Ctx,
        except: Option<&PeerId>,
    ) -> Result<(ResolvedOperation, Option<Box<str>>), CallError> {
        // The input of a script must not choose the peer by the rights of the requester.
        if ctx.internal() {
            let message = "an operation calls a peer by its own authority: invoke with a PeerRef";
            return Err(CallError::new(ErrorCode::Forbidden, message));
        }
        let identity = ctx.identity().map(AsRef::as_ref);
        let found = match &self.to {
            ForwardingTarget::Named(name) => self.resolve_named(name, identity, ctx),
            ForwardingTarget::Any(suits) => self.any(&**suits, identity, ctx, except),
        }?;
        let resource = resource(&found.operation, identity, input)?;
        check_rule(&found.operation, identity, resource.as_deref(), ctx)?;
        Ok((found, resource))
    }

    /// Whether both rules hold now for this request to the found peer.
    fn holds(
        &self,
        found: &ResolvedOperation,
        resource: Option<&str>,
        ctx: &Ctx,
    ) -> Result<(), CallError> {
        let now = ctx.identity_now();
        let peer = found.peer().map(PeerId::as_str);
        let way = match self.may_go(None, now.as_deref()) {
            AccessDecision::Allowed if matches!(self.to, ForwardingTarget::Any(_)) => {
                AccessDecision::Allowed
            }
            _ => self.may_go(peer, now.as_deref()),
        };
        self.passed(way, now.as_deref(), ctx)?;
        check_rule(&found.operation, now.as_deref(), resource, ctx)
    }

    fn resolve_named(
        &self,
        name: &str,
        identity: Option<&Identity>,
        ctx: &Ctx,
    ) -> Result<ResolvedOperation, CallError> {
        let id = ctx.dispatcher().by_name(name);
        let scope = id.as_ref().map_or(name, PeerId::as_str);
        // Before the lookup: a requester without the way does not learn whether the peer exists.
        self.passed(self.may_go(Some(scope), identity), identity, ctx)?;
        let operation = id
            .as_ref()
            .filter(|_| self.operation.len() <= OPERATION_BYTES_MAX)
            .and_then(|id| ctx.dispatcher().peers.get(id, &self.operation));
        match operation {
            Some(operation) => Ok(ResolvedOperation {
                operation,
                peer: id,
            }),
            None => {
                let dispatcher = ctx.dispatcher();
                Err(absent(dispatcher, name, id.as_ref(), &self.operation))
            }
        }
    }

    /// A suitable peer. A requester that may go to some peers only does not learn whether others serve the operation.
    fn any(
        &self,
        suits: &(dyn Fn(&PeerId) -> bool + Send + Sync),
        identity: Option<&Identity>,
        ctx: &Ctx,
        except: Option<&PeerId>,
    ) -> Result<ResolvedOperation, CallError> {
        let everywhere = self.may_go(None, identity);
        let reaches = |peer: &PeerId| {
            everywhere == AccessDecision::Allowed
                || self.may_go(Some(peer.as_str()), identity) == AccessDecision::Allowed
        };
        let candidate = |peer: &PeerId, _: &CompiledOperation| {
            except != Some(peer) && suits(peer) && reaches(peer)
        };
        let peers = &ctx.dispatcher().peers;
        match peers.least_busy(&self.operation, candidate) {
            Ok(found) => Ok(found),
            Err(PeerSelectionError::Serves) => {
                self.passed(everywhere, identity, ctx)?;
                Err(self.not_there())
            }
            Err(PeerSelectionError::IsWell) => {
                let message = format!(
                    "every peer that serves '{}' is about to go, or did not answer lately",
                    self.operation
                );
                Err(CallError::unavailable(message))
            }
        }
    }

    fn may_go(&self, peer: Option<&str>, identity: Option<&Identity>) -> AccessDecision {
        (self.way)(peer).check(identity, None, None)
    }

    /// The error of a way that is closed to the requester. It names the rule of the way to every peer: that of one
    /// peer has the id behind an alias, and would reveal that there is such a peer.
    fn passed(
        &self,
        decision: AccessDecision,
        identity: Option<&Identity>,
        ctx: &Ctx,
    ) -> Result<(), CallError> {
        match decision {
            AccessDecision::Allowed => Ok(()),
            AccessDecision::Forbidden | AccessDecision::Unauthenticated => {
                Err((self.way)(None).refusal(identity, ctx.conn().key))
            }
        }
    }

    fn not_there(&self) -> CallError {
        // The error does not repeat a name that no operation can have.
        let is_valid = self.operation.len() <= OPERATION_BYTES_MAX;
        let name = if is_valid { &*self.operation } else { "…" };
        let message = format!("no peer that is attached and suits serves '{name}' to this node");
        CallError::new(ErrorCode::NotFound, message)
    }
}

impl fmt::Debug for CallForwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallForwarder")
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}

/// The resource that the input names, where the rule that the peer announces may be about one.
fn resource(
    operation: &CompiledOperation,
    identity: Option<&Identity>,
    input: &CallBody,
) -> Result<Option<Box<str>>, CallError> {
    match identity {
        Some(_) if !operation.spec.access_control.is_open() => operation.resource_id(input),
        _ => Ok(None),
    }
}

/// The rule that the peer announces for its operation.
fn check_rule(
    operation: &CompiledOperation,
    identity: Option<&Identity>,
    resource: Option<&str>,
    ctx: &Ctx,
) -> Result<(), CallError> {
    let rule = &operation.spec.access_control;
    let ownership = ctx.dispatcher().ownership.as_deref();
    rule.admit(identity, resource, ownership, ctx.conn().key)
}

/// The rights that a passed-on subscription depends on.
struct ForwardingGrant {
    forwarder: CallForwarder,
    found: ResolvedOperation,
    resource: Option<Box<str>>,
    ctx: Ctx,
}

impl ForwardingGrant {
    /// Resolves once the rights do not hold any more.
    async fn withdrawn(self) -> CallError {
        let changes = self.ctx.dispatcher().identity_changes();
        let Some(mut changes): Option<watch::Receiver<u64>> = changes else {
            return std::future::pending().await;
        };
        loop {
            // At first, too: rights may have changed since the request was admitted.
            if let Err(error) = self.holds() {
                return error;
            }
            if !request_grant::wait(&mut changes, SESSION_RECHECK).await {
                return std::future::pending().await;
            }
        }
    }

    fn holds(&self) -> Result<(), CallError> {
        let resource = self.resource.as_deref();
        self.forwarder.holds(&self.found, resource, &self.ctx)
    }
}
