//! A call made by another call of this node.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::body::{CallBody, CallOutput};
use crate::call_tree::{Hindrance, SentChanges};
use crate::compiled::CompiledOperation;
use crate::compose::authority::CompositionAuthority;
use crate::compose::env::OperationEnv;
use crate::compose::tokens::CancellationTokens;
use crate::context::Ctx;
use crate::error::{CallError, ErrorCode};
use crate::handler::OnceHandler;
use crate::limits::COMPOSITION_CHILDREN_MAX;
use crate::request::{self, InboundRequest};
use crate::schema::PermitShare;
use crate::upstream::UpstreamFailure;

/// One call in the tree below a request.
pub(crate) struct ChildCall {
    pub(crate) id: Box<str>,
    pub(crate) parent: Box<str>,
    /// The node's number for this call and the run of its key.
    pub(crate) number: u64,
    pub(crate) parent_number: u64,
    pub(crate) depth: usize,
    pub(crate) root: Arc<InboundRequest>,
    pub(crate) operation: Arc<CompiledOperation>,
    /// What the calling operation may do.
    pub(crate) by: Option<Arc<CompositionAuthority>>,
    pub(crate) env: Arc<dyn OperationEnv>,
    pub(crate) tokens: CancellationTokens,
    pub(crate) deadline: Option<Instant>,
    /// The call that made it left clearly less time than the operation has by itself.
    pub(crate) hurried: bool,
    /// Whether it has the deadline of the call that made it, and that call is hurried.
    pub(crate) hastened: bool,
    pub(crate) trace: Option<Box<str>>,
    /// Its idempotency key, where the key counts. The call then only waits for the run of the key, and the operation
    /// counts the run in place of the call.
    pub(crate) key: Option<Box<str>>,
    /// Whether the call named no single peer: this node may route another call with its key to another peer.
    pub(crate) elsewhere: bool,
    /// Whether the node sent what the call changes to a server outside.
    pub(crate) sent: AtomicBool,
    /// What the call and every call below it have sent.
    pub(crate) changes: Arc<SentChanges>,
}

impl ChildCall {
    /// The same call without its caller: no abort reaches it. A keyed mutation runs as such a call.
    pub(crate) fn detached(&self) -> Self {
        let root = self.root.detached_below(&self.changes);
        Self {
            id: self.id.clone(),
            parent: self.parent.clone(),
            number: self.number,
            parent_number: self.parent_number,
            depth: self.depth,
            operation: Arc::clone(&self.operation),
            by: self.by.clone(),
            env: Arc::clone(&self.env),
            tokens: CancellationTokens::root(&CancellationToken::new()),
            deadline: self.deadline,
            hurried: self.hurried,
            hastened: self.hastened,
            trace: self.trace.clone(),
            key: self.key.clone(),
            elsewhere: self.elsewhere,
            // The run of the key keeps its own flag.
            sent: AtomicBool::new(false),
            changes: Arc::clone(root.tree().changes()),
            root,
        }
    }

    /// See [`Ctx::set_sent`].
    pub(crate) fn set_sent(&self, sent: bool) {
        if self.sent.swap(sent, Ordering::AcqRel) != sent {
            self.changes.note(sent);
        }
    }

    /// The outcome of the call. No error is `retryable` once the call or one below it sent a change, whether or not
    /// the server answered that call.
    pub(crate) fn settled<T>(&self, outcome: Result<T, CallError>) -> Result<T, CallError> {
        outcome.map_err(|error| self.changes.settled(error))
    }

    /// Notes an answer of its operation that says nothing about the call that made it. Where the operation calls no
    /// others, its word that there was no room is this node's word. An operation that calls others notes what it
    /// refuses itself, by [`Env::excuse`](crate::Env::excuse).
    pub(crate) fn note(&self, error: &CallError) {
        self.note_upstream(error);
        let by = match error.code {
            // The caller's haste set this deadline: the operation is not to blame.
            ErrorCode::Timeout if self.hastened => Hindrance::Here,
            ErrorCode::Overloaded if self.operation.speaks_for_itself() => Hindrance::Here,
            ErrorCode::Overloaded => Hindrance::Elsewhere,
            _ => return,
        };
        self.root.tree().hinder(by);
    }

    /// Notes how the server or the peer behind an imported operation failed, if `error` says so.
    fn note_upstream(&self, error: &CallError) {
        if self.operation.provenance.is_remote()
            && let Some(failure) = UpstreamFailure::from_code(&error.code)
        {
            self.root.tree().note_upstream(failure);
        }
    }

    /// What the calling operation, and with it the requester, may see of a failure.
    pub(crate) fn visible(&self, error: CallError) -> CallError {
        self.root.visible_error(&self.operation, error)
    }

    /// Notes that this node has no room for the call, if `error` says so.
    pub(crate) fn note_refusal(&self, error: &CallError) {
        if error.code == ErrorCode::Overloaded {
            self.root.tree().hinder(Hindrance::Here);
        }
    }

    /// The answer of its operation, if the operation may answer so.
    pub(crate) fn checked(&self, output: CallOutput) -> Result<CallOutput, CallError> {
        let share = PermitShare::for_identity(self.root.identity());
        let checked = self.operation.checked(output, share);
        checked.inspect_err(|error| {
            self.note_upstream(error);
            self.note_refusal(error);
        })
    }
}

/// Counts a child as running while the guard lives, and then ends what depends on it.
pub(crate) struct ChildCallGuard(Arc<ChildCall>);

impl ChildCallGuard {
    /// Takes a permit among the children of the root and one among the calls of the operation.
    pub(crate) fn new(child: ChildCall) -> Result<Self, CallError> {
        let count = &child.root.children;
        let room = |n| (n < COMPOSITION_CHILDREN_MAX).then(|| n + 1);
        // Bounds the work that one request can cause, however its operations call each other.
        count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, room)
            .map_err(|_| {
                child.root.tree().hinder(Hindrance::Below);
                CallError::overloaded("calls below one request", COMPOSITION_CHILDREN_MAX)
            })?;
        // With a key, the run takes the operation's permit, once for all calls that wait for the run.
        if child.key.is_none()
            && let Err(error) = child.operation.enter()
        {
            child.note_refusal(&error);
            // Drop does not run for a guard that was never made.
            count.fetch_sub(1, Ordering::AcqRel);
            return Err(error);
        }
        Ok(Self(Arc::new(child)))
    }

    pub(crate) fn child(&self) -> &Arc<ChildCall> {
        &self.0
    }

    /// Runs the handler until it answers, its deadline passes or it is stopped.
    pub(crate) async fn run(
        self,
        handler: Arc<dyn OnceHandler>,
        input: CallBody,
    ) -> Result<CallBody, CallError> {
        let child = &self.0;
        let ctx = Ctx::child(Arc::clone(child));
        // A panic of one operation ends its call and leaves the task with the request above it alone. The block also
        // catches a panic before the handler's future exists.
        let work = AssertUnwindSafe(async move { handler.call(input, ctx).await }).catch_unwind();
        let work = async {
            match child.deadline {
                Some(deadline) => timeout_at(deadline, work)
                    .await
                    .unwrap_or_else(|_| Ok(Err(CallError::timeout()))),
                None => work.await,
            }
        };
        let outcome = match child.tokens.run().run_until_cancelled(work).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(request::panicked(&child.root, &child.operation.spec.name)),
            None => Err(aborted()),
        };
        let outcome = outcome
            .inspect_err(|error| child.note(error))
            .and_then(|output| child.checked(output));
        child
            .settled(outcome)
            .map(CallBody::from)
            .map_err(|error| child.visible(error))
    }
}

impl Drop for ChildCallGuard {
    fn drop(&mut self) {
        let child = &self.0;
        // The calls below depend on this one, however it ended.
        child.tokens.end();
        if child.key.is_none() {
            child.operation.leave();
        }
        child.root.children.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The error of a call whose caller gave it up.
pub(crate) fn aborted() -> CallError {
    CallError::new(ErrorCode::Aborted, "the request it belongs to was aborted")
}
