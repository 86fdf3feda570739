//! What an operation knows about its caller.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use alknet_core::{
    AuthContext, AuthToken, Capabilities, Carriage, ConnId, Connection, Identity, PeerKey,
};
use serde_json::Value;
use tokio::sync::watch;
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
    /// The key that the peer proved to hold, known or not.
    pub key: Option<PeerKey>,
    /// The other end.
    pub remote_addr: Option<SocketAddr>,
    /// What carries the bytes.
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

/// Keeps the tree of an input counted: see [`Ctx::counted_tree`].
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

    /// The requester's id for it; unique among the requests in flight on its connection. Calls between operations
    /// have the id of their request and a number.
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

    /// The id of the request that this call belongs to.
    #[must_use]
    pub fn root_request_id(&self) -> &str {
        self.root().id()
    }

    /// The node's number for the request that this call belongs to. Two requests may have one id: requesters choose
    /// theirs, and all calls of a batch over HTTP have that of the batch.
    #[must_use]
    pub fn root_number(&self) -> u64 {
        self.root().tree().number()
    }

    /// The node's number for this call alone, which the run of its idempotency key has as well. Ids do not tell calls
    /// apart: the calls in such a run count from one again.
    #[must_use]
    pub fn call_number(&self) -> u64 {
        match &self.0 {
            CallOrigin::Request(request) => request.tree().number(),
            CallOrigin::Child(child) => child.number,
        }
    }

    /// The number of the call that made this one; `None` for a request from outside.
    #[must_use]
    pub fn parent_call_number(&self) -> Option<u64> {
        match &self.0 {
            CallOrigin::Request(_) => None,
            CallOrigin::Child(child) => Some(child.parent_number),
        }
    }

    /// Whether this node refused something in the course of the request for want of room, or a call ended because its
    /// caller left it too little time. A caller can bring that about: an operation that fails then need not be to
    /// blame. The answer of a peer or a server excuses no operation, and the number of calls below one request does
    /// not excuse the operation that the requester called.
    #[must_use]
    pub fn is_excused(&self) -> bool {
        match self.root().tree().hindrance() {
            Hindrance::None | Hindrance::Elsewhere => false,
            Hindrance::Below => self.internal(),
            Hindrance::Here => true,
        }
    }

    /// Whether this node, a peer or a server refused something in the course of the request for want of room, or a
    /// call ended because its caller left it too little time: a later attempt may succeed.
    #[must_use]
    pub fn is_hindered(&self) -> bool {
        self.root().tree().hindrance() != Hindrance::None
    }

    /// Whether a capability of this node had nothing to act with in the course of the request, because the vault is
    /// locked or lacks the secret. That is no fault of the code that asked for it.
    #[must_use]
    pub fn met_vacancy(&self) -> bool {
        self.root().tree().saw_vacant()
    }

    /// The error for the caller of this operation where the operation lets an imported operation's error pass, with
    /// this code and message: [`BAD_GATEWAY`](crate::BAD_GATEWAY), `UNAVAILABLE` or `TIMEOUT`. `None` where no server
    /// failed so in the course of the request, whatever a script says. The message has addresses and words of
    /// servers: only a requester with the scope `node:read` gets it, and the log. All others read how the server
    /// failed.
    #[must_use]
    pub fn upstream_error(&self, code: &str, message: &str) -> Option<CallError> {
        let code = ErrorCode::from_name(code);
        // A script chooses the code and the message itself, so that only what a server really answered counts.
        let failure = UpstreamFailure::from_code(&code)?;
        if !self.root().tree().saw_upstream(failure) {
            return None;
        }
        // The administrator may read the text that the server sent.
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

    /// Notes a hindrance in the course of the request.
    pub(crate) fn hinder(&self, by: Hindrance) {
        if by != Hindrance::None {
            self.root().tree().hinder(by);
        }
    }

    /// Whether the caller left clearly less time than the operation has by itself.
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

    /// What the calling operation or script may do itself; `None` for a request from outside, and where the caller
    /// may do nothing. An operation that allows more than its access control says checks this in a call between
    /// operations: the calling operation was not lent the rights of the requester from outside.
    #[must_use]
    pub fn calling_authority(&self) -> Option<&CompositionAuthority> {
        match &self.0 {
            // A request from outside is checked against the scopes of its identity.
            CallOrigin::Request(_) => None,
            CallOrigin::Child(child) => child.by.as_deref(),
        }
    }

    /// The name of the operation.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.compiled().spec.name
    }

    /// The requester from outside: the token's identity where the requester sent one, else the connection's. A call
    /// between operations happens on its behalf; the node did not check it again.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.root().identity()
    }

    /// A key by which the requester from outside is known again, for work that outlasts the request. `None` if it has
    /// no key, such as the token of a program.
    #[must_use]
    pub fn lasting_key(&self) -> Option<PeerKey> {
        let who = self.identity()?;
        self.dispatcher().lasting_key(&who.id, self.conn().key)
    }

    /// Whether the requester from outside has this key: another peer may have got its id since.
    #[must_use]
    pub fn has_key(&self, key: &PeerKey) -> bool {
        let holder = self.dispatcher().by_keys(&[*key]);
        holder.is_some_and(|holder| self.identity().is_some_and(|who| who.id == holder.id))
    }

    /// Whether a list names an operation with this rule: the requester from outside may call it, and so may the
    /// operation or the script that asks for the list, where one does. Otherwise the author of a script would learn
    /// what its callers may do.
    pub(crate) fn is_shown(&self, rule: &AccessControl) -> bool {
        self.shows(rule, self.identity().map(AsRef::as_ref))
    }

    /// Like `is_shown`, where the requester from outside is `identity` by now.
    pub(crate) fn shows(&self, rule: &AccessControl, identity: Option<&Identity>) -> bool {
        let authority = self.calling_authority();
        rule.check_scopes(identity) == AccessDecision::Allowed
            && (!self.internal()
                || rule.is_open()
                || authority.is_some_and(|own| rule.scopes_allow(&own.scopes)))
    }

    /// The requester as it is now: with its present scopes, or `None` where it is gone. A subscription that asks its
    /// requester's scopes itself looks before each event, unless [`has_rights_of_now`](Self::has_rights_of_now).
    #[must_use]
    pub fn identity_now(&self) -> Option<Arc<Identity>> {
        self.root().identity_now()
    }

    /// Whether the requester still has the rights with which the request was admitted, so that the node need not look
    /// up its identity again.
    #[must_use]
    pub fn has_rights_of_now(&self) -> bool {
        let identity = self.identity();
        identity.is_none_or(|one| self.dispatcher().is_current(one))
    }

    /// Signals that the requester may have other rights than before; `None` where they never change. A subscription that
    /// waits for something else listens, and then compares [`identity_now`](Self::identity_now).
    #[must_use]
    pub fn identity_changes(&self) -> Option<watch::Receiver<u64>> {
        self.dispatcher().identity_changes()
    }

    /// The token that names the requester, where one does: for an operation that gives out something that has to end
    /// with the token. `None` in a call between operations.
    #[must_use]
    pub fn token(&self) -> Option<&Arc<AuthToken>> {
        match &self.0 {
            CallOrigin::Request(request) => request.proof(),
            // What a called operation gives out ends with the calling operation's rights.
            CallOrigin::Child(_) => None,
        }
    }

    /// The identity that a trusted forwarder claims to act for. The claim allows nothing, and operations that others
    /// call do not see it.
    #[must_use]
    pub fn forwarded_for(&self) -> Option<&ForwardedFor> {
        match &self.0 {
            CallOrigin::Request(request) => request.forwarded_for(),
            CallOrigin::Child(_) => None,
        }
    }

    /// Whether another node passed on the request. Such a node may leave its client unnamed, and the name counts with
    /// `forward:identity` only; the node always sends the number of hops.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.forwarded_for().is_some() || self.hops() > 0
    }

    /// How often nodes passed the request on before it arrived here.
    pub(crate) fn hops(&self) -> u8 {
        self.root().head.hops
    }

    /// The key under which the call runs once, however often it is repeated. A called operation has the key from the
    /// calling one, never the request's: it may run many times for one request.
    pub(crate) fn idempotency_key(&self) -> Option<&str> {
        match &self.0 {
            CallOrigin::Request(request) => request.idempotency_key(),
            CallOrigin::Child(child) => child.key.as_deref(),
        }
    }

    /// Whether an operation makes the call and named no single peer: this node may route another call with its key to
    /// another peer.
    pub(crate) fn may_go_elsewhere(&self) -> bool {
        match &self.0 {
            // The requester from outside named the operation of one node.
            CallOrigin::Request(_) => false,
            CallOrigin::Child(child) => child.elsewhere,
        }
    }

    /// This context without the requester: no abort reaches it. A keyed mutation runs as such a call.
    pub(crate) fn detached(&self) -> Self {
        match &self.0 {
            CallOrigin::Request(request) => Self::request(&request.detached()),
            CallOrigin::Child(child) => Self::child(Arc::new(child.detached())),
        }
    }

    /// Stops the work that the call left running.
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

    /// The capabilities that this operation was registered with; never those of its caller.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.compiled().capabilities
    }

    /// The input as a tree of its own, for operations of other packages, whose authors expect a tree. The tree counts
    /// with the bytes of the requester, while the second returned value lives.
    ///
    /// # Errors
    /// The errors of [`CallBody::try_into_value`]; `OVERLOADED` where there is no room now.
    pub fn counted_tree(&self, input: CallBody) -> Result<(Value, CountedTree), CallError> {
        // Over another protocol the server of that protocol counts it.
        let claim = match input.memory() {
            Some(_) => None,
            None => {
                let requester = self.requester();
                let retention = match self.root().is_subscription() {
                    true => RequestRetention::Subscribed,
                    false => RequestRetention::Once,
                };
                let dispatcher = self.dispatcher();
                let claimed =
                    dispatcher
                        .request_bytes
                        .claim(requester, input.tree_bytes()?, retention);
                claimed.inspect_err(|_| {
                    DispatcherCounters::add(&dispatcher.counters.request_bytes_full)
                })?
            }
        };
        Ok((input.try_into_value()?, CountedTree { _claim: claim }))
    }

    /// The requester whose bytes the request counts with.
    pub(crate) fn requester(&self) -> Requester {
        let identity = self.identity().map(AsRef::as_ref);
        Requester::from_identity(identity, self.conn().remote_addr)
    }

    /// Whether its operation is a query, which changes nothing.
    #[must_use]
    pub fn is_query(&self) -> bool {
        self.compiled().spec.op_type == OperationType::Query
    }

    /// Notes that a change of this call is on its way to a server outside of this node, or, with `false`, that the
    /// server has not taken it. From then on no error of the call is `retryable`, its own deadline included, since
    /// the server may have made the change. Neither is any error of the calls above it, whatever they do after that.
    /// The run of an idempotency key that the call belongs to is not repeated either.
    pub fn set_sent(&self, sent: bool) {
        match &self.0 {
            CallOrigin::Request(request) => request.set_sent(sent),
            CallOrigin::Child(child) => child.set_sent(sent),
        }
    }

    /// What the call and every call below it have sent to servers.
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

    /// Cancelled when the request ends before its handler does: abort, deadline, connection lost. The node drops the
    /// handler's own future then anyway; this token is for work that the handler spawned.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        match &self.0 {
            CallOrigin::Request(request) => request.cancel_token(),
            CallOrigin::Child(child) => child.tokens.run(),
        }
    }

    /// Resolves once the node drains, or the node that passed the request on, with the error for a subscription that
    /// has no end of its own. Such a subscription ends then: the drain would otherwise wait for it until its time is
    /// over. The node in between cannot end it, because it does not know which subscriptions have an end.
    pub fn draining(&self) -> impl Future<Output = CallError> + Send + use<> {
        let drain = self.dispatcher().drain_token().clone();
        // A client that stops may read to the end what it asked for itself.
        let forwarder = self.is_forwarded().then(|| {
            let connection = self.root().connection_state();
            connection.peer_stops().clone()
        });
        async move {
            match forwarder {
                Some(stops) => tokio::select! {
                    () = drain.cancelled() => {}
                    () = stops.cancelled() => {}
                },
                None => drain.cancelled().await,
            }
            CallError::draining()
        }
    }

    /// When the node has to answer the request.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.0 {
            CallOrigin::Request(request) => request.deadline(),
            CallOrigin::Child(child) => child.deadline,
        }
    }

    /// The connection that the request came over.
    #[must_use]
    pub fn conn(&self) -> &ConnInfo {
        &self.root().connection_state().info
    }

    /// The way back: calls operations of the caller over the same connection.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller::new(Arc::clone(self.root().connection_state()))
    }

    pub(crate) fn dispatcher(&self) -> &Dispatcher {
        &self.root().connection_state().dispatcher
    }

    pub(crate) fn compiled(&self) -> &Arc<CompiledOperation> {
        match &self.0 {
            CallOrigin::Request(request) => request.operation(),
            CallOrigin::Child(child) => &child.operation,
        }
    }

    /// The request from outside that this call belongs to.
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

    /// The number of calls of operations by operations above this one; 0 for a request from outside.
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
