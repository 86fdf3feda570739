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
    /// The node's for this call and the run of its key.
    pub(crate) number: u64,
    pub(crate) parent_number: u64,
    pub(crate) depth: usize,
    pub(crate) root: Arc<InboundRequest>,
    pub(crate) operation: Arc<CompiledOperation>,
    /// What the one that calls may do.
    pub(crate) by: Option<Arc<CompositionAuthority>>,
    pub(crate) env: Arc<dyn OperationEnv>,
    pub(crate) tokens: CancellationTokens,
    pub(crate) deadline: Option<Instant>,
    /// The call that made it left clearly less time than the operation has by itself.
    pub(crate) hurried: bool,
    /// Its deadline is that of the call that made it, which is hurried.
    pub(crate) hastened: bool,
    pub(crate) trace: Option<Box<str>>,
    /// Its idempotency key, where that counts: the call then only waits for the run of the key, which is
    /// counted instead.
    pub(crate) key: Option<Box<str>>,
    /// It named no single peer: another call with its key may be led to another peer.
    pub(crate) elsewhere: bool,
    /// What it changes was sent to a server outside of this node.
    pub(crate) sent: AtomicBool,
    /// What it has sent, and every call below it.
    pub(crate) changes: Arc<SentChanges>,
}

impl ChildCall {
    /// The same call without the one that made it: no abort reaches it. A keyed mutation runs as one.
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
            // The run of its key says so itself.
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

    /// What became of it. No error is `retryable` once a change was sent in the course of it, whether the server answered
    /// that call or not.
    pub(crate) fn settled<T>(&self, outcome: Result<T, CallError>) -> Result<T, CallError> {
        outcome.map_err(|error| self.changes.settled(error))
    }

    /// Notes what its operation answered where that says nothing about the call that made it. That there was no room
    /// is this node's word where the operation speaks for itself; one that calls others notes what it refuses itself,
    /// by [`Env::excuse`](crate::Env::excuse).
    pub(crate) fn note(&self, error: &CallError) {
        self.note_upstream(error);
        let by = match error.code {
            ErrorCode::Timeout if self.hastened => Hindrance::Here,
            ErrorCode::Overloaded if self.operation.speaks_for_itself() => Hindrance::Here,
            ErrorCode::Overloaded => Hindrance::Elsewhere,
            _ => return,
        };
        self.root.tree().hinder(by);
    }

    /// Notes how the server or the peer failed that an imported operation asked, if `error` says so.
    fn note_upstream(&self, error: &CallError) {
        if self.operation.provenance.is_remote()
            && let Some(failure) = UpstreamFailure::from_code(&error.code)
        {
            self.root.tree().note_upstream(failure);
        }
    }

    /// What the one that calls, and with it the requester, may see of a failure.
    pub(crate) fn visible(&self, error: CallError) -> CallError {
        self.root.visible_error(&self.operation, error)
    }

    /// Notes that this node has no room for it, if `error` says so.
    pub(crate) fn note_refusal(&self, error: &CallError) {
        if error.code == ErrorCode::Overloaded {
            self.root.tree().hinder(Hindrance::Here);
        }
    }

    /// What its operation answered, if it may answer so.
    pub(crate) fn checked(&self, output: CallOutput) -> Result<CallOutput, CallError> {
        let share = PermitShare::for_identity(self.root.identity());
        let checked = self.operation.checked(output, share);
        checked.inspect_err(|error| {
            self.note_upstream(error);
            self.note_refusal(error);
        })
    }
}

/// Counts a child as running as long as it lives, and ends what depends on it.
pub(crate) struct ChildCallGuard(Arc<ChildCall>);

impl ChildCallGuard {
    /// Takes a place among the children of the root and among the calls of the operation.
    pub(crate) fn new(child: ChildCall) -> Result<Self, CallError> {
        let count = &child.root.children;
        let room = |n| (n < COMPOSITION_CHILDREN_MAX).then(|| n + 1);
        count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, room)
            .map_err(|_| {
                child.root.tree().hinder(Hindrance::Below);
                CallError::overloaded("calls below one request", COMPOSITION_CHILDREN_MAX)
            })?;
        // With a key, the run takes the place in the operation, once for all calls that wait for
        // it.
        if child.key.is_none()
            && let Err(error) = child.operation.enter()
        {
            child.note_refusal(&error);
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
        // A panic of one operation ends its call, and not the task with the request above it.
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
        child.tokens.end();
        if child.key.is_none() {
            child.operation.leave();
        }
        child.root.children.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a call that was given up ends with.
pub(crate) fn aborted() -> CallError {
    CallError::new(ErrorCode::Aborted, "the request it belongs to was aborted")
}
