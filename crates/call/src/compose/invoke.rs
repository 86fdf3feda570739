//! How an operation calls another.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use alknet_core::{Identity, PeerId, ScopeSet};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::access::{AccessControl, AccessDecision};
use crate::admission;
use crate::body::CallBody;
use crate::call_tree::{self, Hindrance, SentChanges};
use crate::compiled::CompiledOperation;
use crate::compose::authority::{CompositionAuthority, Provenance};
use crate::compose::child::{ChildCall, ChildCallGuard, aborted};
use crate::compose::env::{OperationEnv, OperationLookup, ResolvedOperation};
use crate::compose::follow::Followed;
use crate::context::Ctx;
use crate::error::{CallError, ErrorCode};
use crate::handler::{HandlerKind, OnceHandler};
use crate::keyed;
use crate::limits::{COMPOSITION_DEPTH_MAX, HOP_MARGIN, IDEMPOTENCY_KEY_BYTES_MAX};
use crate::peers::{PeerRef, ScopedPeerEnv};
use crate::refusal::MissingScopes;
use crate::schema::PermitShare;
use crate::spec::OperationType;

/// What happens to a call when the one that made it is aborted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnAbort {
    /// It is aborted, too, and whatever depends on it, on this node and on others.
    #[default]
    AbortDependents,
    /// If it runs already it finishes, within its own deadline, and this node discards its answer. Nothing starts
    /// below it any more.
    ContinueRunning,
}

/// How an operation is called by another.
#[derive(Clone, Debug, Default)]
pub struct InvokeOptions {
    /// On which peer. By default: here if it is found here, else the first attached peer that
    /// serves it.
    pub peer: Option<PeerRef>,
    /// The caller wants the answer within this time, unless its own deadline is earlier.
    pub timeout: Option<Duration>,
    /// What becomes of it when the caller is aborted.
    pub on_abort: OnAbort,
    /// W3C `traceparent` for it. The node passes on nothing of the caller's request by itself.
    pub trace: Option<String>,
    /// Runs a keyed mutation once, however often this operation calls it with the same key for the same
    /// requester; other operations ignore it. 1 to 64 bytes.
    pub idempotency_key: Option<String>,
}

impl InvokeOptions {
    /// On a peer.
    #[must_use]
    pub fn on(peer: PeerRef) -> Self {
        Self {
            peer: Some(peer),
            ..Self::default()
        }
    }
}

/// The operations an operation may call.
///
/// The node checks a call against what the calling operation was registered with, never against its caller: the
/// called operation has to be reachable in the calling one's [`ScopedPeerEnv`], else it is `NOT_FOUND`, and the
/// calling one's [`CompositionAuthority`] has to pass the access control of the called one. The called operation
/// works with its own authority, its own reach and its own capabilities.
#[derive(Clone)]
pub struct Env {
    ctx: Ctx,
    resolver: Arc<dyn OperationEnv>,
    authority: Option<Arc<CompositionAuthority>>,
    scope: Option<Arc<ScopedPeerEnv>>,
    /// Whether a session calls: its own operations need not be listed in its reach.
    in_session: bool,
}

impl Env {
    pub(crate) fn new(ctx: Ctx, resolver: Arc<dyn OperationEnv>) -> Self {
        let operation = ctx.compiled();
        Self {
            authority: operation.authority.clone(),
            scope: operation.scoped_env.clone(),
            in_session: operation.provenance == Provenance::Session,
            ctx,
            resolver,
        }
    }

    /// Like `new`, for code that may do less.
    pub(crate) fn narrowed(
        &self,
        resolver: Arc<dyn OperationEnv>,
        authority: Arc<CompositionAuthority>,
        scope: Arc<ScopedPeerEnv>,
    ) -> Self {
        Self {
            ctx: self.ctx.clone(),
            resolver,
            authority: Some(authority),
            scope: Some(scope),
            in_session: true,
        }
    }

    pub(crate) fn resolver(&self) -> &Arc<dyn OperationEnv> {
        &self.resolver
    }

    /// Notes that this node refused something of this request for want of room: see [`Ctx::is_excused`]. Operations
    /// that call others note it themselves: their `OVERLOADED` may be a peer's word.
    pub fn excuse(&self) {
        self.ctx.root().tree().hinder(Hindrance::Here);
    }

    /// Notes that a capability of this node had nothing to act with: see [`Ctx::met_vacancy`].
    pub fn note_vacancy(&self) {
        self.ctx.root().tree().note_vacant();
    }

    /// The number of calls of operations by operations above the one that calls through it.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.ctx.depth()
    }

    /// The requester from outside, as [`Ctx::identity`]: the operation calls on its behalf.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.ctx.identity()
    }

    /// What the operation may do through it.
    #[must_use]
    pub fn authority(&self) -> Option<&CompositionAuthority> {
        self.authority.as_deref()
    }

    /// What the operation can reach through it.
    #[must_use]
    pub fn scope(&self) -> Option<&ScopedPeerEnv> {
        self.scope.as_deref()
    }

    /// Calls a query or mutation. Dropping the future aborts it.
    ///
    /// # Errors
    /// `NOT_FOUND` when it is out of reach or does not exist, `FORBIDDEN` when the authority does
    /// not suffice, `INVALID_OPERATION_TYPE` for a subscription, `ABORTED` when the request this
    /// belongs to is over, and what the operation answers.
    pub async fn invoke(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
    ) -> Result<CallBody, CallError> {
        self.invoke_with(operation, input, &InvokeOptions::default())
            .await
    }

    /// Like [`invoke`](Self::invoke), with options.
    ///
    /// # Errors
    /// The errors of [`invoke`](Self::invoke).
    pub async fn invoke_with(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &InvokeOptions,
    ) -> Result<CallBody, CallError> {
        self.invoke_body(operation, CallBody::json(input)?, options)
            .await
    }

    /// Like [`invoke_with`](Self::invoke_with), with an input that has its JSON form already, such as
    /// the caller's own; binary data goes along.
    ///
    /// # Errors
    /// The errors of [`invoke`](Self::invoke).
    pub async fn invoke_body(
        &self,
        operation: &str,
        input: CallBody,
        options: &InvokeOptions,
    ) -> Result<CallBody, CallError> {
        let name = operation.trim_start_matches('/');
        let found = self.resolve(name, options, None)?;
        let lost = match self.start(&found, input.clone(), options).await {
            Err(error) if error.code == ErrorCode::Unavailable => error,
            outcome => return outcome,
        };
        // The node may ask a query twice, but not another peer where the caller named one.
        let elsewhere = found.peer.as_ref().filter(|_| may_retry(&found, options));
        let Some(gone) = elsewhere else {
            return Err(lost);
        };
        match self.resolve(name, options, Some(gone)) {
            Ok(found) => self.start(&found, input, options).await,
            // How the first peer failed says more than that no other peer serves it.
            Err(_) => Err(lost),
        }
    }

    /// Follows a subscription. The stream ends after its first error; dropping it ends the work
    /// behind it. It lives no longer than the request that this belongs to.
    ///
    /// # Errors
    /// The errors of [`invoke`](Self::invoke); `INVALID_OPERATION_TYPE` for what answers once.
    pub fn follow(
        &self,
        operation: &str,
        input: CallBody,
        options: &InvokeOptions,
    ) -> Result<Followed, CallError> {
        let name = operation.trim_start_matches('/');
        let found = self.resolve(name, options, None)?;
        let operation = &found.operation;
        self.check_access(operation, &input)?;
        let HandlerKind::Stream(handler) = &operation.handler else {
            let message = format!("'{name}' is no subscription; it cannot be followed");
            return Err(CallError::new(ErrorCode::InvalidOperationType, message));
        };
        let mut child = self.child(operation, options)?;
        // Without a timeout from the caller, a subscription lasts until it ends or the request's deadline passes.
        if options.timeout.is_none() {
            child.deadline = self.ctx.deadline();
            child.hurried = child.deadline.is_some();
            child.hastened = child.hurried && self.ctx.is_hurried();
        }
        let running = self.enter(child, &input)?;
        Ok(running.follow(Arc::clone(handler), input))
    }

    /// Takes the permits for a call, and refuses an input that its operation does not take.
    fn enter(&self, child: ChildCall, input: &CallBody) -> Result<ChildCallGuard, CallError> {
        // An aborted tree starts no calls, not even ones that would end at once.
        if child.tokens.gate().is_cancelled() {
            return Err(aborted());
        }
        let running = ChildCallGuard::new(child)?;
        let child = running.child();
        // After the permits: checking a long input is work that they bound.
        if child.operation.checks_input() {
            let share = PermitShare::for_identity(child.root.identity());
            let checked = child.operation.check_input(input, share);
            checked.inspect_err(|error| child.note_refusal(error))?;
        }
        Ok(running)
    }

    /// The operation that a call by this name reaches, wherever it is; `None` where the call would be `NOT_FOUND`.
    /// The method does not check whether the authority suffices.
    #[must_use]
    pub fn find(&self, operation: &str, options: &InvokeOptions) -> Option<ResolvedOperation> {
        let name = operation.trim_start_matches('/');
        self.resolve(name, options, None).ok()
    }

    /// The operations of this node that it may call, as far as scopes decide that; in order of name within each
    /// layer.
    #[must_use]
    pub fn reachable(&self) -> Vec<ResolvedOperation> {
        let Some(scope) = self.scope.as_deref() else {
            return Vec::new();
        };
        let no_scopes = ScopeSet::default();
        let scopes = self.authority().map_or(&no_scopes, |own| &own.scopes);
        let mut every = self.resolver.every();
        // Resources are not checked here: they depend on the input of each call.
        every.retain(|found| {
            let rule = &found.operation.spec.access_control;
            (self.is_own(found) || scope.reaches(found.operation(), None))
                && !self.leaves_out(scope, found)
                && found.operation.is_callable()
                && (rule.is_open() || rule.scopes_allow(scopes))
        });
        every
    }

    fn resolve(
        &self,
        name: &str,
        options: &InvokeOptions,
        except: Option<&PeerId>,
    ) -> Result<ResolvedOperation, CallError> {
        // Every refusal here looks like an unknown name, so that an operation learns nothing beyond its reach.
        let unknown = || CallError::not_found(name);
        let scope = self.scope.as_deref().ok_or_else(unknown)?;
        // That a script reaches the namespace of a server, or of the node, is no reason to ask a peer in its place.
        let dispatcher = self.ctx.dispatcher();
        let is_kept = dispatcher.registry.is_kept(name, options.peer.as_ref());
        let pinned = is_kept.then(|| scope.on_peers_alone());
        let on_peers = pinned.as_ref().unwrap_or(scope);
        let is_routed = self.is_routed(on_peers, name, options)?;
        let lookup = OperationLookup {
            operation: name,
            peer: options.peer.as_ref(),
            scope,
            except,
        };
        self.resolver
            .resolve(&lookup)
            .filter(|found| {
                self.is_own(found)
                    || match &found.peer {
                        Some(peer) => is_routed || on_peers.reaches(name, Some(peer)),
                        None => scope.reaches(name, None),
                    }
            })
            .filter(|found| !self.leaves_out(scope, found))
            // A description without code must not look like a failing operation.
            .filter(|found| found.operation.is_callable())
            .ok_or_else(|| {
                // It reaches the server's operations, so it knows of the import.
                let here = options.peer.is_none() && scope.reaches(name, None);
                let unread = here.then(|| dispatcher.registry.unread_import(name));
                unread.flatten().unwrap_or_else(unknown)
            })
    }

    /// Whether only the scope for the way to a peer lets the call reach the peer that it names. In the namespaces of
    /// the node that is always so: the peer admits this node, and knows nothing of what the calling operation may do.
    ///
    /// # Errors
    /// The route is the only way, and the authority lacks its scope. The error is the same for every name of a peer,
    /// known or not.
    fn is_routed(
        &self,
        scope: &ScopedPeerEnv,
        name: &str,
        options: &InvokeOptions,
    ) -> Result<bool, CallError> {
        let Some(PeerRef::Specific(peer)) = &options.peer else {
            return Ok(false);
        };
        let is_by_name = match self.ctx.dispatcher().registry.is_of_node(name) {
            true => scope.pins(name, peer),
            false => scope.reaches(name, Some(peer)),
        };
        if is_by_name || !(scope.routes(name) || scope.reaches(name, Some(peer))) {
            return Ok(false);
        }
        let way = admission::route_scope(peer.as_str());
        let authority = self.authority();
        match authority.is_some_and(|own| own.scopes.allows(&way)) {
            true => Ok(true),
            // The same error for known and unknown peers: a script cannot probe for names.
            false => Err(admission::no_way(
                self.ctx.identity().map(AsRef::as_ref),
                None,
            )),
        }
    }

    /// Whether the operation is one of this node that the scope leaves out: an internal one whose rule is open was
    /// written for operations that name it, and acts with the rights of its author.
    fn leaves_out(&self, scope: &ScopedPeerEnv, found: &ResolvedOperation) -> bool {
        let operation = &found.operation;
        scope.leaves_internal()
            && found.peer.is_none()
            && operation.provenance == Provenance::Local
            && !operation.is_external()
            && operation.spec.access_control.is_open()
    }

    /// Whether a session found one of its own operations. A lookup never finds those of other sessions.
    fn is_own(&self, found: &ResolvedOperation) -> bool {
        self.in_session && found.operation.provenance == Provenance::Session
    }

    async fn start(
        &self,
        found: &ResolvedOperation,
        input: CallBody,
        options: &InvokeOptions,
    ) -> Result<CallBody, CallError> {
        let operation = &found.operation;
        self.check_access(operation, &input)?;
        // Before a permit is taken: a call of the wrong type costs nothing.
        let handler = once(operation)?;
        let child = self.child(operation, options)?;
        let running = self.enter(child, &input)?;
        let keyed = keyed::begin_child(running.child(), found.peer.as_ref(), &input);
        let keyed = keyed.inspect_err(|error| running.child().note_refusal(error))?;
        let handler = match keyed {
            Some(keyed) => keyed.handler(handler),
            None => handler,
        };
        match options.on_abort {
            OnAbort::AbortDependents => running.run(handler, input).await,
            OnAbort::ContinueRunning => detach(running, handler, input).await,
        }
    }

    fn check_access(
        &self,
        operation: &CompiledOperation,
        input: &CallBody,
    ) -> Result<(), CallError> {
        let access = &operation.spec.access_control;
        if access.is_open() {
            return Ok(());
        }
        let resource_id = operation.resource_id(input).inspect_err(|error| {
            // The node had no room to read the input.
            if error.code == ErrorCode::Overloaded {
                self.excuse();
            }
        })?;
        match access.check_authority(self.authority(), resource_id.as_deref()) {
            AccessDecision::Allowed => Ok(()),
            _ => Err(self.forbidden(operation)),
        }
    }

    /// The error for a call that exceeds the authority.
    fn forbidden(&self, operation: &CompiledOperation) -> CallError {
        // A session has those rights of its identity that the operation that opened it has as well.
        let (caller, source) = match self.authority() {
            Some(own) if self.in_session => (&*own.label, "its session has"),
            _ => (self.ctx.operation(), "its registration grants"),
        };
        let spec = &operation.spec;
        let lacked = self.lacked(&spec.access_control);
        let name = &spec.name;
        let message =
            format!("'{caller}' may not call '{name}'; {source} no such authority{lacked}");
        CallError::new(ErrorCode::Forbidden, message)
    }

    /// The scopes that the authority lacks, for a request of a known caller. An unknown caller learns no rule.
    fn lacked(&self, rule: &AccessControl) -> String {
        let no_scopes = ScopeSet::default();
        let scopes = self.authority().map_or(&no_scopes, |own| &own.scopes);
        let missing = MissingScopes::from_rule(rule, scopes);
        match self.ctx.identity().is_some() && !missing.is_empty() {
            true => format!(": it lacks {missing}"),
            false => String::new(),
        }
    }

    fn child(
        &self,
        operation: &Arc<CompiledOperation>,
        options: &InvokeOptions,
    ) -> Result<ChildCall, CallError> {
        let parent = &self.ctx;
        let depth = parent.depth() + 1;
        // Operations that call each other in a circle end here.
        if depth > COMPOSITION_DEPTH_MAX {
            let message =
                format!("operations call each other {COMPOSITION_DEPTH_MAX} deep at most");
            return Err(CallError::internal(message));
        }
        let tokens = parent.tokens();
        let root = parent.root();
        let CallDeadline {
            deadline,
            hurried,
            hastened,
        } = self.time(operation, options)?;
        Ok(ChildCall {
            id: root.next_child_id(),
            parent: parent.request_id().into(),
            number: call_tree::next_number(),
            parent_number: parent.call_number(),
            depth,
            operation: Arc::clone(operation),
            by: self.authority.clone(),
            env: Arc::clone(&self.resolver),
            tokens: match options.on_abort {
                OnAbort::AbortDependents => tokens.dependent(),
                OnAbort::ContinueRunning => tokens.detached(),
            },
            deadline,
            hurried,
            hastened,
            trace: options.trace.as_deref().map(Into::into),
            key: self.key(operation, options)?,
            elsewhere: !matches!(options.peer, Some(PeerRef::Specific(_))),
            sent: AtomicBool::new(false),
            changes: SentChanges::below(parent.changes()),
            root: Arc::clone(root),
        })
    }

    /// The key under which the call runs once, where the key counts. Keys of two operations stay two, and so do those
    /// of an operation and of its requester.
    fn key(
        &self,
        operation: &CompiledOperation,
        options: &InvokeOptions,
    ) -> Result<Option<Box<str>>, CallError> {
        let Some(key) = options.idempotency_key.as_deref() else {
            return Ok(None);
        };
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            let text = format!("an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes");
            return Err(CallError::invalid_input(text));
        }
        // On other operations a key has no meaning, and must not change the run.
        let is_keyed = keyed::is_keyed(&operation.spec);
        Ok(is_keyed.then(|| keyed::key_for(self.ctx.operation(), key).into()))
    }

    /// The earliest of the requested deadline, the limits of the operation and of this node, and the caller's own
    /// deadline, less the time that the caller needs to answer in turn.
    fn time(
        &self,
        operation: &CompiledOperation,
        options: &InvokeOptions,
    ) -> Result<CallDeadline, CallError> {
        let (dispatcher, now) = (self.ctx.dispatcher(), Instant::now());
        let own = admission::deadline(dispatcher, operation, options.timeout, now);
        let Some(parents) = self.ctx.deadline() else {
            return Ok(CallDeadline {
                deadline: own,
                hurried: admission::is_hurried(dispatcher, operation, own, now),
                hastened: false,
            });
        };
        let left = parents.checked_duration_since(now);
        // The caller needs a little of its time to answer after this call has.
        let Some(left) = left.and_then(|left| left.checked_sub(HOP_MARGIN)) else {
            // The caller left too little time, and this operation is not to blame.
            if self.ctx.is_hurried() {
                self.excuse();
            }
            return Err(CallError::timeout());
        };
        let inherited = now + left;
        let deadline = Some(own.map_or(inherited, |own| own.min(inherited)));
        Ok(CallDeadline {
            deadline,
            hurried: admission::is_hurried(dispatcher, operation, deadline, now),
            hastened: deadline == Some(inherited) && self.ctx.is_hurried(),
        })
    }
}

/// How long a call may take, and whose limit decided.
struct CallDeadline {
    deadline: Option<Instant>,
    /// Same as [`ChildCall::hurried`].
    hurried: bool,
    /// Same as [`ChildCall::hastened`].
    hastened: bool,
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env")
            .field("ctx", &self.ctx)
            .field("authority", &self.authority)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

fn once(operation: &CompiledOperation) -> Result<Arc<dyn OnceHandler>, CallError> {
    match &operation.handler {
        HandlerKind::Once(handler) => Ok(Arc::clone(handler)),
        HandlerKind::Stream(_) => Err(CallError::new(
            ErrorCode::InvalidOperationType,
            format!(
                "'{}' is a subscription; it cannot be invoked",
                operation.spec.name
            ),
        )),
    }
}

fn may_retry(found: &ResolvedOperation, options: &InvokeOptions) -> bool {
    let query = found.operation.spec.op_type == OperationType::Query;
    query && !matches!(options.peer, Some(PeerRef::Specific(_)))
}

/// Runs the call in a task that outlives the future of its caller.
async fn detach(
    running: ChildCallGuard,
    handler: Arc<dyn OnceHandler>,
    input: CallBody,
) -> Result<CallBody, CallError> {
    let (done, answer) = oneshot::channel();
    let gate = running.child().tokens.gate().clone();
    let not_started = gate.clone();
    tokio::spawn(async move {
        // The tree was aborted before the runtime first polled the task: a call that has not begun does not begin.
        if not_started.is_cancelled() {
            return;
        }
        // The caller may have given up: the send fails, and the answer is discarded.
        let _ = done.send(running.run(handler, input).await);
    });
    tokio::select! {
        biased;
        // A finished answer wins over an abort in the same moment.
        answer = answer => answer.unwrap_or_else(|_| Err(aborted())),
        () = gate.cancelled() => Err(aborted()),
    }
}
