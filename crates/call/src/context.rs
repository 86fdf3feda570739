//! What an operation knows about its caller.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use alknet_core::{
    AuthContext, AuthToken, Capabilities, Carriage, ConnId, Connection, Identity, PeerKey,
};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::{AccessControl, AccessDecision};
use crate::body::CallBody;
use crate::call_tree::{Hindrance, SentChanges};
use crate::client::Caller;
use crate::compiled::CompiledOperation;
use crate::compose::{CancellationTokens, ChildCall, CompositionAuthority, Env};
use crate::dispatcher::{Dispatcher, DispatcherCounters};
use crate::envelope::ForwardedFor;
use crate::error::{CallError, ErrorCode};
use crate::request::InboundRequest;
use crate::request_bytes::{RequestClaim, RequestRetention, Requester};
use crate::spec::OperationType;
use crate::upstream::{CAUSE_TARGET, UpstreamFailure};

/// The connection a request came over.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Its number in logs.
    pub id: ConnId,
    /// The key the peer proved to hold, known or not.
    pub key: Option<PeerKey>,
    /// The other end.
    pub remote_addr: Option<SocketAddr>,
    /// What the bytes travel on.
    pub carriage: Carriage,
}

impl ConnInfo {
    pub(crate) fn new(connection: &Connection, auth: Option<&AuthContext>) -> Self {
        Self {
            id: connection.id(),
            key: auth.and_then(|auth| auth.key),
            remote_addr: connection.remote_addr(),
            carriage: connection.carriage(),
        }
    }
}

/// Keeps a tree of an input counted: see [`Ctx::counted_tree`].
#[derive(Debug)]
pub struct CountedTree {
    _claim: Option<Arc<RequestClaim>>,
}

/// One request or one call between operations, as its operation sees it. Cheap to clone.
#[derive(Clone)]
pub struct Ctx(CallOrigin);

#[derive(Clone)]
enum CallOrigin {
    Request(Arc<InboundRequest>),
    Child(Arc<ChildCall>),
}

impl Ctx {
    pub(crate) fn request(request: &Arc<InboundRequest>) -> Self {
        Self(CallOrigin::Request(Arc::clone(request)))
    }

    pub(crate) fn child(child: Arc<ChildCall>) -> Self {
        Self(CallOrigin::Child(child))
    }

    /// The requester's id for it; unique among its connection's requests in flight. Calls between
    /// operations have the id of the request they belong to and a number.
    #[must_use]
    pub fn request_id(&self) -> &str {
        match &self.0 {
            CallOrigin::Request(request) => request.id(),
            CallOrigin::Child(child) => &child.id,
        }
    }

    /// The id of the call that made this one; `None` for a request from outside.
    #[must_use]
    pub fn parent_request_id(&self) -> Option<&str> {
        match &self.0 {
            CallOrigin::Request(_) => None,
            CallOrigin::Child(child) => Some(&child.parent),
        }
    }

    /// The id of the request everything belongs to.
    #[must_use]
    pub fn root_request_id(&self) -> &str {
        self.root().id()
    }

    /// A number of the node's for the request everything belongs to. Two requests may have one id: requesters choose
    /// theirs, and all calls of a batch over HTTP have that of the batch.
    #[must_use]
    pub fn root_number(&self) -> u64 {
        self.root().tree().number()
    }

    /// A number of the node's for this call alone, which the run of its idempotency key has as well. Ids do not tell
    /// calls apart: the calls in such a run are counted from one again.
    #[must_use]
    pub fn call_number(&self) -> u64 {
        match &self.0 {
            CallOrigin::Request(request) => request.tree().number(),
            CallOrigin::Child(child) => child.number,
        }
    }

    /// That of the call that made this one; `None` for a request from outside.
    #[must_use]
    pub fn parent_call_number(&self) -> Option<u64> {
        match &self.0 {
            CallOrigin::Request(_) => None,
            CallOrigin::Child(child) => Some(child.parent_number),
        }
    }

    /// Whether this node refused something in the course of the request everything belongs to for want of room, or
    /// something ended because a caller left it too little time. Who calls can bring that about: an operation that
    /// fails then need not be to blame. What a peer or a server answers excuses none, and the number of calls below
    /// one request does not excuse the operation that was asked for.
    #[must_use]
    pub fn is_excused(&self) -> bool {
        match self.root().tree().hindrance() {
            Hindrance::None | Hindrance::Elsewhere => false,
            Hindrance::Below => self.internal(),
            Hindrance::Here => true,
        }
    }

    /// Whether something in the course of the request everything belongs to was refused for want of room, by whomever,
    /// or ended because a caller left it too little time: what failed may succeed later.
    #[must_use]
    pub fn is_hindered(&self) -> bool {
        self.root().tree().hindrance() != Hindrance::None
    }

    /// The error for the caller of this operation where it lets pass an error of an imported operation, with this code
    /// and message: [`BAD_GATEWAY`](crate::BAD_GATEWAY), `UNAVAILABLE` or `TIMEOUT`. `None` where no server was seen to
    /// fail so in the course of the request, whatever a script says. The message has addresses of servers, and what they
    /// said: only a requester with the scope `node:read` gets it, and the log. All others read how the server failed.
    #[must_use]
    pub fn upstream_error(&self, code: &str, message: &str) -> Option<CallError> {
        let code = ErrorCode::from_name(code);
        let failure = UpstreamFailure::from_code(&code)?;
        if !self.root().tree().saw_upstream(failure) {
            return None;
        }
        if self.root().reads_causes() {
            return Some(failure.error(message));
        }
        // The text is a server's: escaped, it cannot forge lines of the log.
        tracing::warn!(
            target: CAUSE_TARGET,
            request_id = self.root_request_id(),
            operation = self.operation(),
            code = code.name(),
            "a server of an import failed: {message:?}"
        );
        Some(failure.error(&failure.words(&code)))
    }

    /// Notes what happened in the course of the request everything belongs to.
    pub(crate) fn hinder(&self, by: Hindrance) {
        if by != Hindrance::None {
            self.root().tree().hinder(by);
        }
    }

    /// Whether who called left clearly less time than the operation has by itself.
    pub(crate) fn is_hurried(&self) -> bool {
        match &self.0 {
            CallOrigin::Request(request) => request.head.hurried,
            CallOrigin::Child(child) => child.hurried,
        }
    }

    /// Whether another operation of this node calls, and not a peer or client outside.
    #[must_use]
    pub fn internal(&self) -> bool {
        matches!(self.0, CallOrigin::Child(_))
    }

    /// What the operation or the script that calls may do itself; `None` for a request from outside, and where what
    /// calls may do nothing. An operation that allows more than its access control says asks this in a call between
    /// operations: the rights of the peer that asked from outside are nothing that the calling operation was lent.
    #[must_use]
    pub fn calling_authority(&self) -> Option<&CompositionAuthority> {
        match &self.0 {
            CallOrigin::Request(_) => None,
            CallOrigin::Child(child) => child.by.as_deref(),
        }
    }

    /// The name of the operation.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.compiled().spec.name
    }

    /// Who asked from outside: the token's identity where one was sent, else the connection's. In
    /// a call between operations this tells on whose behalf it happens; it was not checked again.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.root().identity()
    }

    /// Whether a list names an operation with this rule: the peer that asked from outside may call it, and so may the
    /// operation or the script that asks here, where one does. Otherwise its author would learn what its callers may do.
    pub(crate) fn is_shown(&self, rule: &AccessControl) -> bool {
        self.shows(rule, self.identity().map(AsRef::as_ref))
    }

    /// The same where the peer that asked from outside is `identity` by now.
    pub(crate) fn shows(&self, rule: &AccessControl, identity: Option<&Identity>) -> bool {
        let asks = self.calling_authority();
        rule.check_scopes(identity) == AccessDecision::Allowed
            && (!self.internal()
                || rule.is_open()
                || asks.is_some_and(|asks| rule.scopes_allow(&asks.scopes)))
    }

    /// Whose request it is as things are now: with the scopes of this moment, or `None` where the peer that
    /// asked is gone.
    pub(crate) fn identity_now(&self) -> Option<Arc<Identity>> {
        self.root().identity_now()
    }

    /// Whether the requester has the rights that the request was let in by, so that no identity need be looked up
    /// again.
    pub(crate) fn has_rights_of_now(&self) -> bool {
        let who = self.identity();
        who.is_none_or(|who| self.dispatcher().is_current(who))
    }

    /// The token that says who asked, where one does: for an operation that gives out what has to end with it. Nothing
    /// in a call between operations.
    #[must_use]
    pub fn token(&self) -> Option<&Arc<AuthToken>> {
        match &self.0 {
            CallOrigin::Request(request) => request.proof(),
            CallOrigin::Child(_) => None,
        }
    }

    /// The identity that a trusted forwarder claims to act for. The claim allows nothing, and operations called by
    /// operations do not see it.
    #[must_use]
    pub fn forwarded_for(&self) -> Option<&ForwardedFor> {
        match &self.0 {
            CallOrigin::Request(request) => request.forwarded_for(),
            CallOrigin::Child(_) => None,
        }
    }

    /// Whether a node in between passed on the request that everything belongs to. Such a node may leave its client
    /// unnamed, and the name counts with `forward:identity` only; the number of hops is always sent.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.forwarded_for().is_some() || self.hops() > 0
    }

    /// How often the request that everything belongs to was passed on before it came here.
    pub(crate) fn hops(&self) -> u8 {
        self.root().head.hops
    }

    /// The key under which it runs once, however often it is asked for. An operation called by another
    /// has the key that this one gave it, never the request's: it may run many times for one request.
    pub(crate) fn idempotency_key(&self) -> Option<&str> {
        match &self.0 {
            CallOrigin::Request(request) => request.idempotency_key(),
            CallOrigin::Child(child) => child.key.as_deref(),
        }
    }

    /// Whether an operation calls it and named no single peer: another call with its key may be led to another peer.
    pub(crate) fn may_go_elsewhere(&self) -> bool {
        match &self.0 {
            CallOrigin::Request(_) => false,
            CallOrigin::Child(child) => child.elsewhere,
        }
    }

    /// The same without the requester: no abort reaches it. A keyed mutation runs as one.
    pub(crate) fn detached(&self) -> Self {
        match &self.0 {
            CallOrigin::Request(request) => Self::request(&request.detached()),
            CallOrigin::Child(child) => Self::child(Arc::new(child.detached())),
        }
    }

    /// Stops what it left running.
    pub(crate) fn end(&self) {
        self.root().abort();
        if let CallOrigin::Child(child) = &self.0 {
            child.tokens.end();
        }
    }

    /// W3C `traceparent`, as the caller sent it.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        match &self.0 {
            CallOrigin::Request(request) => request.trace(),
            CallOrigin::Child(child) => child.trace.as_deref(),
        }
    }

    /// What this operation was registered with; never what its caller was.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.compiled().capabilities
    }

    /// The input as a tree of its own, for operations of other packages, whose authors expect a tree.
    /// It counts with the bytes of the requester, for as long as what is returned beside it is kept.
    ///
    /// # Errors
    /// As [`CallBody::try_into_value`]; `OVERLOADED` where there is no room now.
    pub fn counted_tree(&self, input: CallBody) -> Result<(Value, CountedTree), CallError> {
        // Over another protocol the server of that protocol counts it.
        let claim = match input.memory() {
            Some(_) => None,
            None => {
                let requester = self.requester();
                let kept = match self.root().is_subscription() {
                    true => RequestRetention::Subscribed,
                    false => RequestRetention::Once,
                };
                let dispatcher = self.dispatcher();
                let claimed = dispatcher
                    .request_bytes
                    .claim(requester, input.tree_bytes()?, kept);
                claimed.inspect_err(|_| {
                    DispatcherCounters::add(&dispatcher.counters.request_bytes_full)
                })?
            }
        };
        Ok((input.try_into_value()?, CountedTree { _claim: claim }))
    }

    /// Whose requests the request that everything belongs to is counted with.
    pub(crate) fn requester(&self) -> Requester {
        let identity = self.identity().map(AsRef::as_ref);
        Requester::from_identity(identity, self.conn().remote_addr)
    }

    /// Whether its operation is a query, which changes nothing.
    #[must_use]
    pub fn is_query(&self) -> bool {
        self.compiled().spec.op_type == OperationType::Query
    }

    /// Notes that what this call changes is on its way to a server outside of this node, or, with `false`, that the
    /// server has not taken it. From then on no error of the call is `retryable`, its own deadline included, since the
    /// change may have been made, and neither is any of the calls above it, whatever they do after that. The run of an
    /// idempotency key that the call belongs to does not come again either.
    pub fn set_sent(&self, sent: bool) {
        match &self.0 {
            CallOrigin::Request(request) => request.set_sent(sent),
            CallOrigin::Child(child) => child.set_sent(sent),
        }
    }

    /// What the call has sent to servers, and every call below it.
    pub(crate) fn changes(&self) -> &Arc<SentChanges> {
        match &self.0 {
            CallOrigin::Request(request) => request.tree().changes(),
            CallOrigin::Child(child) => &child.changes,
        }
    }

    /// The operations this one may call.
    #[must_use]
    pub fn env(&self) -> Env {
        let resolver = match &self.0 {
            CallOrigin::Request(request) => request.env(),
            CallOrigin::Child(child) => &child.env,
        };
        Env::new(self.clone(), Arc::clone(resolver))
    }

    /// Cancelled when the request ends before its handler does: abort, deadline, connection lost.
    /// The handler's own future is dropped then anyway; this is for work it spawned.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        match &self.0 {
            CallOrigin::Request(request) => request.cancel_token(),
            CallOrigin::Child(child) => child.tokens.run(),
        }
    }

    /// When the request must be answered.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.0 {
            CallOrigin::Request(request) => request.deadline(),
            CallOrigin::Child(child) => child.deadline,
        }
    }

    /// The connection it came over.
    #[must_use]
    pub fn conn(&self) -> &ConnInfo {
        &self.root().link().info
    }

    /// The way back: calls operations of the caller over the same connection.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller::new(Arc::clone(self.root().link()))
    }

    pub(crate) fn dispatcher(&self) -> &Dispatcher {
        &self.root().link().dispatcher
    }

    pub(crate) fn compiled(&self) -> &Arc<CompiledOperation> {
        match &self.0 {
            CallOrigin::Request(request) => request.operation(),
            CallOrigin::Child(child) => &child.operation,
        }
    }

    /// The request from outside that everything belongs to.
    pub(crate) fn root(&self) -> &Arc<InboundRequest> {
        match &self.0 {
            CallOrigin::Request(request) => request,
            CallOrigin::Child(child) => &child.root,
        }
    }

    pub(crate) fn tokens(&self) -> CancellationTokens {
        match &self.0 {
            CallOrigin::Request(request) => CancellationTokens::root(request.cancel_token()),
            CallOrigin::Child(child) => child.tokens.clone(),
        }
    }

    /// How many calls of operations by operations lie above this one; 0 for a request from outside.
    #[must_use]
    pub fn depth(&self) -> usize {
        match &self.0 {
            CallOrigin::Request(_) => 0,
            CallOrigin::Child(child) => child.depth,
        }
    }
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("operation", &self.operation())
            .field("request_id", &self.request_id())
            .finish_non_exhaustive()
    }
}
