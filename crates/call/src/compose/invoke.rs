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
    /// If it runs already it finishes, within its own deadline; its answer goes nowhere. Nothing
    /// starts below it any more.
    ContinueRunning,
}

/// How an operation is called by another.
#[derive(Clone, Debug, Default)]
pub struct InvokeOptions {
    /// On which peer. By default: here if it is found here, else the first attached peer that
    /// serves it.
    pub peer: Option<PeerRef>,
    /// The answer is wanted within this time, if the caller's own deadline is not earlier.
    pub timeout: Option<Duration>,
    /// What becomes of it when the caller is aborted.
    pub on_abort: OnAbort,
    /// W3C `traceparent` for it. Nothing of the caller's request is passed on by itself.
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
/// A call is checked against what the calling operation was registered with, never against who
/// called it: it has to be reachable in its [`ScopedPeerEnv`], else it is `NOT_FOUND`, and its
/// [`CompositionAuthority`] has to pass the access control of what it calls. The called operation
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

    /// The same for code that may do less.
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

    /// This node refused something that belongs to this request for want of room: see [`Ctx::is_excused`]. Operations
    /// that call others say so themselves: that they answer `OVERLOADED` may be a peer's word.
    pub fn excuse(&self) {
        self.ctx.root().tree().hinder(Hindrance::Here);
    }

    /// How many calls of operations by operations lie above the one that calls through it.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.ctx.depth()
    }

    /// Who asked from outside, as [`Ctx::identity`]: what calls through it does so on their behalf.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.ctx.identity()
    }

    /// What may be done through it.
    #[must_use]
    pub fn authority(&self) -> Option<&CompositionAuthority> {
        self.authority.as_deref()
    }

    /// What can be reached through it.
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

    /// As [`invoke`](Self::invoke), with options.
    ///
    /// # Errors
    /// As [`invoke`](Self::invoke).
    pub async fn invoke_with(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &InvokeOptions,
    ) -> Result<CallBody, CallError> {
        self.invoke_body(operation, CallBody::json(input)?, options)
            .await
    }

    /// As [`invoke_with`](Self::invoke_with), with an input that has its JSON form already, such as
    /// the caller's own; binary data goes along.
    ///
    /// # Errors
    /// As [`invoke`](Self::invoke).
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
        // A query may be asked twice, but not of another peer where the caller named one.
        let elsewhere = found.peer.as_ref().filter(|_| may_retry(&found, options));
        let Some(gone) = elsewhere else {
            return Err(lost);
        };
        match self.resolve(name, options, Some(gone)) {
            Ok(found) => self.start(&found, input, options).await,
            // How the first peer failed says more than that there is no other.
            Err(_) => Err(lost),
        }
    }

    /// Follows a subscription. The stream ends after its first error; dropping it ends the work
    /// behind it. It lives no longer than the request that this belongs to.
    ///
    /// # Errors
    /// As [`invoke`](Self::invoke); `INVALID_OPERATION_TYPE` for what answers once.
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
        // Without a timeout of the caller's, a subscription lasts until it ends or the request's deadline
        // passes.
        if options.timeout.is_none() {
            child.deadline = self.ctx.deadline();
            child.hurried = child.deadline.is_some();
            child.hastened = child.hurried && self.ctx.is_hurried();
        }
        let running = self.enter(child, &input)?;
        Ok(running.follow(Arc::clone(handler), input))
    }

    /// Takes a place for a call, and refuses an input that its operation does not take.
    fn enter(&self, child: ChildCall, input: &CallBody) -> Result<ChildCallGuard, CallError> {
        if child.tokens.gate().is_cancelled() {
            return Err(aborted());
        }
        let running = ChildCallGuard::new(child)?;
        let child = running.child();
        if child.operation.checks_input() {
            let share = PermitShare::for_identity(child.root.identity());
            let checked = child.operation.check_input(input, share);
            checked.inspect_err(|error| child.note_refusal(error))?;
        }
        Ok(running)
    }

    /// What a call by this name reaches, wherever it is; `None` where it would be `NOT_FOUND`. Whether
    /// the authority suffices is not asked.
    #[must_use]
    pub fn find(&self, operation: &str, options: &InvokeOptions) -> Option<ResolvedOperation> {
        let name = operation.trim_start_matches('/');
        self.resolve(name, options, None).ok()
    }

    /// What may be called through it on this node, as far as scopes decide it; in order of name
    /// within each layer.
    #[must_use]
    pub fn reachable(&self) -> Vec<ResolvedOperation> {
        let Some(scope) = self.scope.as_deref() else {
            return Vec::new();
        };
        let no_scopes = ScopeSet::default();
        let scopes = self.authority().map_or(&no_scopes, |own| &own.scopes);
        let mut every = self.resolver.every();
        every.retain(|found| {
            let rule = &found.operation.spec.access_control;
            (self.is_own(found) || scope.reaches(found.operation(), None))
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
            .filter(|found| found.operation.is_callable())
            .ok_or_else(unknown)
    }

    /// Whether a call goes to the peer that it names by the scope for the way there, and by nothing else.
    ///
    /// # Errors
    /// It would, and the authority lacks the scope. The error is the same for every name of a peer, known or not.
    fn is_routed(
        &self,
        scope: &ScopedPeerEnv,
        name: &str,
        options: &InvokeOptions,
    ) -> Result<bool, CallError> {
        let Some(PeerRef::Specific(peer)) = &options.peer else {
            return Ok(false);
        };
        if scope.reaches(name, Some(peer)) || !scope.routes(name) {
            return Ok(false);
        }
        let way = admission::route_scope(peer.as_str());
        let authority = self.authority();
        match authority.is_some_and(|own| own.scopes.allows(&way)) {
            true => Ok(true),
            false => Err(admission::no_way(
                self.ctx.identity().map(AsRef::as_ref),
                None,
            )),
        }
    }

    /// Whether a session found one of its own operations. No other session's are ever found.
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
            // There was no room to look at it.
            if error.code == ErrorCode::Overloaded {
                self.excuse();
            }
        })?;
        match access.check_authority(self.authority(), resource_id.as_deref()) {
            AccessDecision::Allowed => Ok(()),
            _ => Err(self.forbidden(operation)),
        }
    }

    /// The error for a call that the authority does not suffice for.
    fn forbidden(&self, operation: &CompiledOperation) -> CallError {
        // A session's authority is that of its identity, as far as the operation that opened it has it as well.
        let (who, whose) = match self.authority() {
            Some(own) if self.in_session => (&*own.label, "its session has"),
            _ => (self.ctx.operation(), "its registration grants"),
        };
        let spec = &operation.spec;
        let lacked = self.lacked(&spec.access_control);
        let name = &spec.name;
        let message = format!("'{who}' may not call '{name}'; {whose} no such authority{lacked}");
        CallError::new(ErrorCode::Forbidden, message)
    }

    /// The scopes that the authority lacks, for a request of a known caller: an unknown one learns no rule.
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

    /// The key under which the call runs once, where that counts. Keys of two operations stay two, and so
    /// do those of an operation and of its requester.
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
        let is_keyed = keyed::is_keyed(&operation.spec);
        Ok(is_keyed.then(|| keyed::key_for(self.ctx.operation(), key).into()))
    }

    /// The earliest of what is asked, what the operation and this node allow, and what the caller
    /// has left, less what it needs to answer in turn.
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
        let Some(left) = left.and_then(|left| left.checked_sub(HOP_MARGIN)) else {
            // The caller left too little time, for which this operation is not to blame.
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

/// How long a call may take, and by whose will.
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

/// Runs in a task that outlives the future of its caller.
async fn detach(
    running: ChildCallGuard,
    handler: Arc<dyn OnceHandler>,
    input: CallBody,
) -> Result<CallBody, CallError> {
    let (done, answer) = oneshot::channel();
    let gate = running.child().tokens.gate().clone();
    let not_started = gate.clone();
    tokio::spawn(async move {
        // Aborted before the task was first polled: what has not begun does not begin.
        if not_started.is_cancelled() {
            return;
        }
        // The caller may have given up: then the answer is discarded.
        let _ = done.send(running.run(handler, input).await);
    });
    tokio::select! {
        biased;
        // An answer that is there is given, although the request was aborted in the same moment.
        answer = answer => answer.unwrap_or_else(|_| Err(aborted())),
        () = gate.cancelled() => Err(aborted()),
    }
}
