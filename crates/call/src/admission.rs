//! The checks that a request has to pass before its operation runs, in this order: lookup, visibility, identity,
//! access, capacity, schema, idempotency key. A requester that may not call learns nothing about the schema.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alknet_core::{AuthToken, Identity, PeerId, PeerKey};
use serde_json::json;
use tokio::time::Instant;

use crate::access::{AccessControl, AccessDecision};
use crate::body::CallBody;
use crate::call_stream::{CallStream, StreamEnd};
use crate::compiled::CompiledOperation;
use crate::connection::CallConnectionState;
use crate::dispatcher::{Dispatcher, DispatcherCounters};
use crate::envelope::{Envelope, ForwardedFor, RequestPayload as Payload};
use crate::error::{CallError, ErrorCode};
use crate::frame::FrameBody;
use crate::handler::HandlerKind;
use crate::idempotency::IdempotencyKey;
use crate::keyed::{self, KeyedExecution};
use crate::limits::{
    CALL_TIMEOUT_DEFAULT, HASTE_PART, IDEMPOTENCY_KEY_BYTES_MAX, OPERATION_BYTES_MAX,
};
use crate::peers::absent;
use crate::pump;
use crate::refusal::unknown_caller;
use crate::request::{self, InFlight, InboundRequest, RequestHead};
use crate::request_bytes::{RequestClaim, RequestRetention, Requester};
use crate::request_grant::RequestGrant;
use crate::schema::PermitShare;
use crate::spec::OperationType;

/// Scope that lets a caller name the peer to which its request goes; the peer's id follows it.
const ROUTE_SCOPE: &str = "peer:route";
/// Scope that lets a peer name the identity for which it forwards a request.
const FORWARD_SCOPE: &str = "forward:identity";
/// Milliseconds since 1970 before which a clock counts as not set: 2024-01-01.
const SANE_CLOCK_MS: u64 = 1_704_067_200_000;

/// Starts a request, or answers with an error. An `Err` ends the stream, because the peer broke the protocol.
pub(crate) async fn admit(
    state: &Arc<CallConnectionState>,
    stream: &Arc<CallStream>,
    body: &FrameBody,
    event: &Envelope<'_>,
) -> Result<(), StreamEnd> {
    // While a peer leaves its responses unread, no further request of it begins.
    state.wait_until_read().await;
    state.note_request();
    DispatcherCounters::add(&state.dispatcher.counters.requests);
    if !state.may_be_peers(&event.id) {
        return Err(StreamEnd::Protocol("id of the other side"));
    }
    if state.inbound.find(&event.id).is_some() {
        // Their responses could not tell two requests with one id apart.
        return Err(StreamEnd::Protocol("id is in flight"));
    }
    match check(state, stream, body, event) {
        Ok(admitted) => start(admitted).await,
        Err(error) => {
            DispatcherCounters::add(&state.dispatcher.counters.errors);
            request::push_error(state, stream, &event.id, &error);
        }
    }
    Ok(())
}

/// A request that passed every check.
struct AdmittedRequest {
    in_flight: InFlight,
    input: CallBody,
    /// Runs the request under its idempotency key, if it has one that counts.
    keyed: Option<KeyedExecution>,
}

async fn start(admitted: AdmittedRequest) {
    let AdmittedRequest {
        in_flight,
        input,
        keyed,
    } = admitted;
    let operation = Arc::clone(in_flight.request().operation());
    match &operation.handler {
        HandlerKind::Once(handler) => {
            let handler = Arc::clone(handler);
            let handler = match keyed {
                Some(keyed) => keyed.handler(handler),
                None => handler,
            };
            request::start_once(in_flight, handler, input)
                .poll_or_spawn()
                .await;
        }
        HandlerKind::Stream(handler) => pump::start(in_flight, Arc::clone(handler), input),
    }
}

fn check(
    state: &Arc<CallConnectionState>,
    stream: &Arc<CallStream>,
    body: &FrameBody,
    event: &Envelope<'_>,
) -> Result<AdmittedRequest, CallError> {
    let payload = parse(event)?;
    let checked = passed(
        state,
        &event.id,
        &payload,
        Instant::now(),
        |payload| identify(state, payload),
        || input(body, &payload),
    )?;
    let (mut head, name, input) = (checked.head, checked.name, checked.input);
    let retention = match is_subscription(&checked.operation) {
        true => RequestRetention::Subscribed,
        false => RequestRetention::Once,
    };
    // Before the schema check: checking a long input takes memory that this counts.
    head._claim = claim(state, body, head.identity.as_deref(), retention)?;
    let in_flight = admit_in_flight(head, state, stream, checked.operation)?;
    let request = in_flight.request();
    check_schema(request.operation(), &input, request.identity())?;
    let begin = |name| keyed::begin(state, request.operation(), name, &input);
    let keyed = name.map(begin).transpose()?;
    Ok(AdmittedRequest {
        in_flight,
        input,
        keyed,
    })
}

/// Counts the bytes of a request for its requester. A server of another protocol counts the bytes of its own
/// requests.
fn claim(
    state: &CallConnectionState,
    body: &FrameBody,
    identity: Option<&Identity>,
    retention: RequestRetention,
) -> Result<Option<Arc<RequestClaim>>, CallError> {
    let tail = body.tail.as_ref().map_or(0, |tail| tail.len());
    let requester = Requester::from_identity(identity, state.info.remote_addr);
    let Dispatcher {
        request_bytes,
        counters,
        ..
    } = &*state.dispatcher;
    let claimed = request_bytes.claim(requester, body.envelope.len() + tail, retention);
    claimed.inspect_err(|_| DispatcherCounters::add(&counters.request_bytes_full))
}

/// The identity of a request, and its own token that proved it.
pub(crate) struct RequestPrincipal {
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) token: Option<Arc<AuthToken>>,
}

/// A request that passed the checks and has taken no capacity yet.
pub(crate) struct CheckedRequest {
    pub(crate) operation: Arc<CompiledOperation>,
    pub(crate) head: RequestHead,
    pub(crate) input: CallBody,
    /// The key under which its result is found, if it has an idempotency key that counts.
    pub(crate) name: Option<IdempotencyKey>,
}

/// All checks of a request before it takes capacity and its input is validated. Its time runs from `now`. `identify`
/// returns its identity, and is called only if the operation exists.
pub(crate) fn passed<'a>(
    state: &Arc<CallConnectionState>,
    id: &str,
    payload: &Payload<'a>,
    now: Instant,
    identify: impl FnOnce(&Payload<'a>) -> Result<RequestPrincipal, CallError>,
    input: impl FnOnce() -> CallBody,
) -> Result<CheckedRequest, CallError> {
    if state.dispatcher.is_draining() {
        return Err(CallError::draining());
    }
    // A named peer needs the identity first, because only callers with the scope may learn whether that peer exists.
    // Without one, a request for an unknown operation costs no check of the token.
    let (operation, principal, route) = match payload.peer.as_deref() {
        None => match lookup(state, payload) {
            Ok(operation) => (operation, identify(payload)?, None),
            Err(error) => return Err(unread_import(state, payload, identify).unwrap_or(error)),
        },
        Some(peer) => {
            let principal = identify(payload)?;
            let (operation, route) = routed(state, payload, peer, principal.identity.as_deref())?;
            (operation, principal, Some(route))
        }
    };
    let RequestPrincipal { identity, token } = principal;
    let input = input();
    let resource = check_access(state, &operation, identity.as_deref(), &input)?;
    // Without a rule, a route and a token there is no right that could end while the request runs.
    let open = operation.spec.access_control.is_open() && route.is_none() && token.is_none();
    let grant = (!open || is_subscription(&operation)).then_some(RequestGrant {
        proved_by: None,
        resource,
        route,
    });
    // After the access check: a requester without the right must not learn of earlier results.
    let name = keyed::name(state, &operation, identity.as_deref(), payload);
    let requested = timeout(payload.timeout_ms, payload.deadline)?;
    let deadline = deadline(&state.dispatcher, &operation, requested, now);
    let hurried = requested.is_some() && is_hurried(&state.dispatcher, &operation, deadline, now);
    let head = RequestHead {
        key: name.as_ref().map(|name| name.key.clone()),
        id: id.into(),
        forwarded_for: forwarded_for(state, payload.forwarded_for.clone()),
        trace: payload.trace.as_deref().map(Into::into),
        deadline,
        hurried,
        idle: payload.idle_ms.map(Duration::from_millis),
        window: payload.window,
        identity,
        token,
        grant,
        hops: payload.hops,
        _claim: None,
    };
    Ok(CheckedRequest {
        operation,
        head,
        input,
        name,
    })
}

/// Refuses an input that does not match the operation's schema.
pub(crate) fn check_schema(
    operation: &CompiledOperation,
    input: &CallBody,
    identity: Option<&Arc<Identity>>,
) -> Result<(), CallError> {
    if operation.checks_input() {
        operation.check_input(input, PermitShare::for_identity(identity))?;
    }
    Ok(())
}

fn parse<'a>(event: &Envelope<'a>) -> Result<Payload<'a>, CallError> {
    let payload: Payload<'_> = event
        .members()
        .map_err(|error| CallError::invalid_input(format!("the payload is no request: {error}")))?;
    check_key(&payload)?;
    Ok(payload)
}

pub(crate) fn check_key(payload: &Payload<'_>) -> Result<(), CallError> {
    let key = payload.idempotency_key.as_deref().unwrap_or_default();
    if key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let message = format!("an idempotency_key has at most {IDEMPOTENCY_KEY_BYTES_MAX} bytes");
        return Err(CallError::invalid_input(message));
    }
    Ok(())
}

fn lookup(
    state: &CallConnectionState,
    payload: &Payload<'_>,
) -> Result<Arc<CompiledOperation>, CallError> {
    let name = operation_name(payload)?;
    let found = state.dispatcher.registry.lookup(name);
    found
        // An internal operation is answered as one that does not exist, so that no caller learns of it.
        .filter(|operation| operation.is_external() && operation.is_callable())
        .ok_or_else(|| CallError::not_found(name.trim_start_matches('/')))
}

/// The error for an operation of an import that this node has not read yet.
fn unread_import<'a>(
    state: &CallConnectionState,
    payload: &Payload<'a>,
    identify: impl FnOnce(&Payload<'a>) -> Result<RequestPrincipal, CallError>,
) -> Option<CallError> {
    let name = operation_name(payload).ok()?;
    let unread = state.dispatcher.registry.unread_import(name)?;
    // Unknown callers must not learn which servers the node uses.
    identify(payload).ok()?.identity.map(|_| unread)
}

/// Finds an operation of an attached peer, by the peer's id or its alias, for callers that may route to it. The scope
/// is checked before the lookup: a caller without it does not learn which peers exist. A caller with it learns
/// whether the peer is unknown, not attached, or has no such operation.
fn routed(
    state: &CallConnectionState,
    payload: &Payload<'_>,
    peer: &str,
    identity: Option<&Identity>,
) -> Result<(Arc<CompiledOperation>, AccessControl), CallError> {
    let name = operation_name(payload)?;
    let name = name.strip_prefix('/').unwrap_or(name);
    if !state.dispatcher.routes {
        return Err(routes_nowhere(name, identity));
    }
    let id = state.dispatcher.by_name(peer);
    // The scope has the peer's id, so that a right does not depend on an alias. An unknown name passes the same
    // check, and only callers with the scope learn that it is unknown.
    let route = AccessControl {
        required_scopes: vec![route_scope(id.as_ref().map_or(peer, PeerId::as_str))],
        ..AccessControl::default()
    };
    if route.check(identity, None, None) != AccessDecision::Allowed {
        return Err(no_way(identity, state.info.key));
    }
    let found = id
        .as_ref()
        .and_then(|id| state.dispatcher.peers.get(id, name));
    let found = found.ok_or_else(|| absent(&state.dispatcher, peer, id.as_ref(), name))?;
    Ok((found, route))
}

/// The scope that lets a caller name the peer with this id.
pub(crate) fn route_scope(peer: &str) -> String {
    format!("{ROUTE_SCOPE}:{peer}")
}

/// The error for a caller that may not route to the peer that it named. It has no peer id: the id behind an alias
/// would reveal that the peer exists.
pub(crate) fn no_way(identity: Option<&Identity>, key: Option<PeerKey>) -> CallError {
    if identity.is_none() {
        return unknown_caller(key);
    }
    let message = format!(
        "a request that names a peer needs the scope '{ROUTE_SCOPE}:' with the peer's id behind it, or \
         '{ROUTE_SCOPE}:*' for every peer; ask an administrator for it"
    );
    CallError::new(ErrorCode::Forbidden, message)
}

/// The response of a node that forwards nothing. An unknown caller does not learn that the node is no hub.
fn routes_nowhere(operation: &str, identity: Option<&Identity>) -> CallError {
    if identity.is_none() {
        return CallError::not_found(operation);
    }
    let message =
        "this node is no hub: it passes no requests on to peers; leave 'peer' out, or call a hub";
    CallError::new(ErrorCode::NotFound, message).with_details(json!({ "reason": "no_hub" }))
}

/// The name as the requester sent it; `NOT_FOUND` for one that no operation can have.
fn operation_name<'a>(payload: &'a Payload<'_>) -> Result<&'a str, CallError> {
    let name = payload.operation.as_ref();
    if name.len() > OPERATION_BYTES_MAX {
        return Err(CallError::not_found("…"));
    }
    Ok(name)
}

/// The identity of this request: that of its token, which replaces the connection's identity and never falls back to
/// it.
fn identify(
    state: &CallConnectionState,
    payload: &Payload<'_>,
) -> Result<RequestPrincipal, CallError> {
    let Some(token) = payload.auth_token.as_deref() else {
        return Ok(RequestPrincipal {
            identity: state.identity(),
            token: None,
        });
    };
    Ok(RequestPrincipal {
        identity: Some(state.by_token(token)?),
        token: Some(Arc::new(AuthToken::new(token.to_owned()))),
    })
}

fn forwarded_for(state: &CallConnectionState, claim: Option<ForwardedFor>) -> Option<ForwardedFor> {
    claim.filter(|_| {
        let peer = state.identity();
        peer.is_some_and(|peer| peer.scopes.allows(FORWARD_SCOPE))
    })
}

fn check_access(
    state: &CallConnectionState,
    operation: &CompiledOperation,
    identity: Option<&Identity>,
    input: &CallBody,
) -> Result<Option<Box<str>>, CallError> {
    let access = &operation.spec.access_control;
    if access.is_open() {
        return Ok(None);
    }
    // Unknown callers must not learn which servers the node uses.
    if identity.is_none() && operation.provenance.is_server() {
        return Err(CallError::not_found(&operation.spec.name));
    }
    // The input of a caller without the scopes is not read.
    access.admit_scopes(identity, state.info.key)?;
    let resource_id = operation.resource_id(input)?;
    let ownership = state.dispatcher.ownership.as_deref();
    access.admit(identity, resource_id.as_deref(), ownership, state.info.key)?;
    Ok(resource_id)
}

fn input(body: &FrameBody, payload: &Payload<'_>) -> CallBody {
    match payload.input {
        // Slices of the frame: the input is not copied.
        Some(raw) => CallBody::from_parts(
            body.envelope.slice_ref(raw.get().as_bytes()),
            body.tail.clone().unwrap_or_default(),
        ),
        None => CallBody::null(),
    }
}

/// The timeout that the requester asks for: relative, or absolute if both clocks are set.
fn timeout(
    relative_ms: Option<u64>,
    absolute_ms: Option<u64>,
) -> Result<Option<Duration>, CallError> {
    if let Some(ms) = relative_ms {
        return Ok(Some(Duration::from_millis(ms)));
    }
    let Some(at) = absolute_ms else {
        return Ok(None);
    };
    // A clock before 1970 counts as not set, like one before `SANE_CLOCK_MS`.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    match now {
        ..=SANE_CLOCK_MS => Ok(None),
        now if at <= now => Err(CallError::timeout()),
        now => Ok(Some(Duration::from_millis(at - now))),
    }
}

/// The earliest deadline of the requester, the operation and this node.
pub(crate) fn deadline(
    dispatcher: &Dispatcher,
    operation: &CompiledOperation,
    requested: Option<Duration>,
    now: Instant,
) -> Option<Instant> {
    let subscription = is_subscription(operation);
    let own = operation
        .spec
        .default_timeout_ms
        .map(|ms| Duration::from_millis(ms.into()));
    // A subscription runs until a side ends it: this node's default and longest time do not apply.
    let fallback = (!subscription).then_some(CALL_TIMEOUT_DEFAULT);
    let most = (!subscription).then_some(dispatcher.timeout_max);
    let chosen = match (requested, own) {
        (Some(requested), Some(own)) => Some(requested.min(own)),
        (requested, own) => requested.or(own).or(fallback),
    };
    let chosen = match (chosen, most) {
        (Some(chosen), Some(most)) => Some(chosen.min(most)),
        (chosen, most) => chosen.or(most),
    };
    // A deadline that overflows the clock is treated as no deadline.
    chosen.and_then(|timeout| now.checked_add(timeout))
}

/// Whether a deadline leaves clearly less time than the operation has if the caller names no timeout.
pub(crate) fn is_hurried(
    dispatcher: &Dispatcher,
    operation: &CompiledOperation,
    deadline: Option<Instant>,
    now: Instant,
) -> bool {
    let left =
        |at: Option<Instant>| at.map_or(Duration::MAX, |at| at.saturating_duration_since(now));
    let own = left(self::deadline(dispatcher, operation, None, now));
    left(deadline) < own - own / HASTE_PART
}

fn is_subscription(operation: &CompiledOperation) -> bool {
    operation.spec.op_type == OperationType::Subscription
}

fn admit_in_flight(
    head: RequestHead,
    state: &Arc<CallConnectionState>,
    stream: &Arc<CallStream>,
    operation: Arc<CompiledOperation>,
) -> Result<InFlight, CallError> {
    let limits = state.limits();
    let (requests, subscriptions) = state.inbound.counts();
    let counters = &state.dispatcher.counters;
    // Each connection has its own limit: a peer with many requests refuses only its own further ones.
    if requests >= limits.requests {
        DispatcherCounters::add(&counters.requests_full);
        return Err(CallError::overloaded(
            "requests in flight on a connection",
            limits.requests,
        ));
    }
    if is_subscription(&operation) && subscriptions >= limits.subscriptions {
        DispatcherCounters::add(&counters.subscriptions_full);
        return Err(CallError::overloaded(
            "subscriptions in flight on a connection",
            limits.subscriptions,
        ));
    }
    // With a key, the run takes the operation's capacity, once for all requests that wait for it.
    if head.key.is_none() {
        let entered = operation.enter();
        entered.inspect_err(|_| DispatcherCounters::add(&counters.operation_full))?;
    }
    let request = Arc::new(InboundRequest::new(head, state, stream, operation));
    state.inbound.remember(&request);
    Ok(InFlight::new(request))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::Value;

    use super::*;
    use crate::limits::CALL_TIMEOUT_MAX;
    use crate::registry::{Registration, Registry};
    use crate::spec::OperationSpec;

    fn compiled(spec: OperationSpec) -> CompiledOperation {
        let handler = match spec.op_type {
            OperationType::Subscription => {
                HandlerKind::stream(|_, _| stream::pending::<Result<Value, CallError>>())
            }
            _ => HandlerKind::once(|_, _| async { Ok(Value::Null) }),
        };
        CompiledOperation::new(Registration::new(spec, handler)).expect("every rule is kept")
    }

    fn dispatcher() -> Dispatcher {
        Dispatcher::new(Registry::builder().build().expect("no operations"))
    }

    #[tokio::test]
    async fn a_deadline_is_the_earliest_of_what_is_asked_for_and_allowed() {
        let plain = compiled(OperationSpec::query("a/plain", ""));
        let events = compiled(OperationSpec::subscription("a/events", ""));
        let mut own = OperationSpec::query("a/own", "");
        own.default_timeout_ms = Some(20_000);
        let own = compiled(own);
        let [second, own_time, hour] = [1, 20, 3600].map(Duration::from_secs);
        let (usual, short) = (dispatcher(), dispatcher().with_timeout_max(second));
        let now = Instant::now();
        for (node, operation, requested, left) in [
            (&usual, &plain, None, Some(CALL_TIMEOUT_DEFAULT)),
            (&usual, &plain, Some(second), Some(second)),
            (&usual, &plain, Some(hour), Some(CALL_TIMEOUT_MAX)),
            (&usual, &own, None, Some(own_time)),
            (&usual, &own, Some(second), Some(second)),
            (&usual, &own, Some(hour), Some(own_time)),
            (&short, &plain, None, Some(second)),
            (&short, &plain, Some(hour), Some(second)),
            (&short, &own, None, Some(second)),
            // A subscription ends when its caller says so.
            (&usual, &events, None, None),
            (&short, &events, Some(hour), Some(hour)),
        ] {
            let name = &operation.spec.name;
            let deadline = deadline(node, operation, requested, now);
            assert_eq!(
                deadline,
                left.map(|left| now + left),
                "{name} {requested:?}"
            );
        }
    }
}
