//! What a request has to pass before its operation runs, in this order: lookup, visibility,
//! identity, access, room, schema, and what its idempotency key says. A requester that may not call
//! learns nothing about the schema.

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
use crate::envelope::{self, Envelope, ForwardedFor, RequestPayload as Payload};
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

/// Scope that lets a caller name the peer its request goes to; followed by the peer's id.
const ROUTE_SCOPE: &str = "peer:route";
/// Scope that lets a peer name the identity that it forwards a request for.
const FORWARD_SCOPE: &str = "forward:identity";
/// Milliseconds since 1970 before which a clock was never set: 2024-01-01.
const SANE_CLOCK_MS: u64 = 1_704_067_200_000;

/// Starts a request or answers why not. An error ends the stream: the peer broke the protocol.
pub(crate) async fn admit(
    link: &Arc<CallConnectionState>,
    stream: &Arc<CallStream>,
    body: &FrameBody,
    event: &Envelope<'_>,
) -> Result<(), StreamEnd> {
    // A peer that leaves its answers unread gets no further requests begun.
    link.wait_until_read().await;
    link.asked();
    DispatcherCounters::add(&link.dispatcher.counters.requests);
    if !link.may_be_peers(&event.id) {
        return Err(StreamEnd::Protocol("id of the other side"));
    }
    if link.inbound.find(&event.id).is_some() {
        // Two requests with one id could not be told apart by their answers.
        return Err(StreamEnd::Protocol("id is in flight"));
    }
    match check(link, stream, body, event) {
        Ok(admitted) => start(admitted).await,
        Err(error) => {
            DispatcherCounters::add(&link.dispatcher.counters.errors);
            stream.out.push_waiting(&link.unread, |out| {
                envelope::append_error(out, &event.id, &error);
            });
        }
    }
    Ok(())
}

/// A request that passed every check.
struct AdmittedRequest {
    in_flight: InFlight,
    input: CallBody,
    /// What it does instead of running, where it has an idempotency key that counts.
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
    link: &Arc<CallConnectionState>,
    stream: &Arc<CallStream>,
    body: &FrameBody,
    event: &Envelope<'_>,
) -> Result<AdmittedRequest, CallError> {
    let payload = parse(event)?;
    let checked = passed(
        link,
        &event.id,
        &payload,
        Instant::now(),
        |payload| identify(link, payload),
        || input(body, &payload),
    )?;
    let (mut head, name, input) = (checked.head, checked.name, checked.input);
    let kept = match is_subscription(&checked.operation) {
        true => RequestRetention::Subscribed,
        false => RequestRetention::Once,
    };
    head._claim = claim(link, body, head.identity.as_deref(), kept)?;
    let in_flight = make_room(head, link, stream, checked.operation)?;
    let request = in_flight.request();
    check_schema(request.operation(), &input, request.identity())?;
    let begin = |name| keyed::begin(link, request.operation(), name, &input);
    let keyed = name.map(begin).transpose()?;
    Ok(AdmittedRequest {
        in_flight,
        input,
        keyed,
    })
}

/// Counts the bytes of a request for its requester. A server of another protocol counts those of its own
/// requests.
fn claim(
    link: &CallConnectionState,
    body: &FrameBody,
    identity: Option<&Identity>,
    kept: RequestRetention,
) -> Result<Option<Arc<RequestClaim>>, CallError> {
    let tail = body.tail.as_ref().map_or(0, |tail| tail.len());
    let requester = Requester::from_identity(identity, link.info.remote_addr);
    let Dispatcher {
        request_bytes,
        counters,
        ..
    } = &*link.dispatcher;
    let claimed = request_bytes.claim(requester, body.envelope.len() + tail, kept);
    claimed.inspect_err(|_| DispatcherCounters::add(&counters.request_bytes_full))
}

/// Whose a request is, and the token of its own that says so.
pub(crate) struct RequestPrincipal {
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) token: Option<Arc<AuthToken>>,
}

/// A request that may be made, before it takes its place.
pub(crate) struct CheckedRequest {
    pub(crate) operation: Arc<CompiledOperation>,
    pub(crate) head: RequestHead,
    pub(crate) input: CallBody,
    /// What its result is found by, where it has an idempotency key that counts.
    pub(crate) name: Option<IdempotencyKey>,
}

/// Everything that has to be true of a request before it takes its place and its input is looked at.
/// It has time from `now` on; `who` tells whose it is, once there is such an operation at all.
pub(crate) fn passed<'a>(
    link: &Arc<CallConnectionState>,
    id: &str,
    payload: &Payload<'a>,
    now: Instant,
    who: impl FnOnce(&Payload<'a>) -> Result<RequestPrincipal, CallError>,
    input: impl FnOnce() -> CallBody,
) -> Result<CheckedRequest, CallError> {
    if link.dispatcher.is_draining() {
        return Err(CallError::draining());
    }
    // A named peer needs the identity first: whether there is such a peer is for callers with the
    // scope. Without one, an operation that does not exist costs no look at the token.
    let (operation, asker, route) = match payload.peer.as_deref() {
        None => (lookup(link, payload)?, who(payload)?, None),
        Some(peer) => {
            let asker = who(payload)?;
            let (operation, route) = routed(link, payload, peer, asker.identity.as_deref())?;
            (operation, asker, Some(route))
        }
    };
    let RequestPrincipal { identity, token } = asker;
    let input = input();
    let resource = check_access(link, &operation, identity.as_deref(), &input)?;
    let open = operation.spec.access_control.is_open() && route.is_none() && token.is_none();
    let standing = (!open || is_subscription(&operation)).then_some(RequestGrant {
        proved_by: None,
        resource,
        route,
    });
    let name = keyed::name(link, &operation, identity.as_deref(), payload);
    let asked = timeout(payload.timeout_ms, payload.deadline)?;
    let deadline = deadline(&link.dispatcher, &operation, asked, now);
    let hurried = asked.is_some() && is_hurried(&link.dispatcher, &operation, deadline, now);
    let head = RequestHead {
        key: name.as_ref().map(|name| name.key.clone()),
        id: id.into(),
        forwarded_for: forwarded_for(link, payload.forwarded_for.clone()),
        trace: payload.trace.as_deref().map(Into::into),
        deadline,
        hurried,
        idle: payload.idle_ms.map(Duration::from_millis),
        window: payload.window,
        identity,
        token,
        standing,
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

/// Refuses an input that its operation does not take.
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
    link: &CallConnectionState,
    payload: &Payload<'_>,
) -> Result<Arc<CompiledOperation>, CallError> {
    let name = operation_name(payload)?;
    let found = link.dispatcher.registry.lookup(name);
    found
        // operation| operation.is_external()|An internal operation answers as one that does not
        // exist, so that no caller learns of it.
        .filter(|operation| operation.is_external() && operation.is_callable())
        .ok_or_else(|| CallError::not_found(name.trim_start_matches('/')))
}

/// An operation of an attached peer, by the peer's id or an alias of it, for callers that may route to
/// it. The scope is checked before the lookup: a caller without it does not learn which peers there
/// are. A caller with it learns whether the peer is unknown, not attached, or without the operation.
fn routed(
    link: &CallConnectionState,
    payload: &Payload<'_>,
    peer: &str,
    identity: Option<&Identity>,
) -> Result<(Arc<CompiledOperation>, AccessControl), CallError> {
    let name = operation_name(payload)?;
    let name = name.strip_prefix('/').unwrap_or(name);
    if !link.dispatcher.routes {
        return Err(routes_nowhere(name, identity));
    }
    let id = link.dispatcher.by_name(peer);
    // The scope has the peer's id, so that a right outlives an alias. An unknown name goes through
    // the same check, and only callers with the scope learn that it is unknown.
    let route = AccessControl {
        required_scopes: vec![route_scope(id.as_ref().map_or(peer, PeerId::as_str))],
        ..AccessControl::default()
    };
    if route.check(identity, None, None) != AccessDecision::Allowed {
        return Err(no_way(identity, link.info.key));
    }
    let found = id
        .as_ref()
        .and_then(|id| link.dispatcher.peers.get(id, name));
    let found = found.ok_or_else(|| absent(&link.dispatcher, peer, id.as_ref(), name))?;
    Ok((found, route))
}

/// The scope of those who may name the peer with this id.
pub(crate) fn route_scope(peer: &str) -> String {
    format!("{ROUTE_SCOPE}:{peer}")
}

/// The error for a caller that may not go to the peer which it named. It has no peer's id: the one behind an alias
/// would say that there is such a peer.
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

/// The answer of a node that passes nothing on. An unknown caller does not learn that it is no hub.
fn routes_nowhere(operation: &str, identity: Option<&Identity>) -> CallError {
    if identity.is_none() {
        return CallError::not_found(operation);
    }
    let message =
        "this node is no hub: it passes no requests on to peers; leave 'peer' out, or call a hub";
    CallError::new(ErrorCode::NotFound, message).with_details(json!({ "reason": "no_hub" }))
}

/// The name as it was sent; `NOT_FOUND` for one that no operation can have.
fn operation_name<'a>(payload: &'a Payload<'_>) -> Result<&'a str, CallError> {
    let name = payload.operation.as_ref();
    if name.len() > OPERATION_BYTES_MAX {
        return Err(CallError::not_found("…"));
    }
    Ok(name)
}

/// The identity of this request: the token's, which replaces the connection's and never falls
/// back to it.
fn identify(
    link: &CallConnectionState,
    payload: &Payload<'_>,
) -> Result<RequestPrincipal, CallError> {
    let Some(token) = payload.auth_token.as_deref() else {
        return Ok(RequestPrincipal {
            identity: link.identity(),
            token: None,
        });
    };
    Ok(RequestPrincipal {
        identity: Some(link.by_token(token)?),
        token: Some(Arc::new(AuthToken::new(token.to_owned()))),
    })
}

fn forwarded_for(link: &CallConnectionState, claim: Option<ForwardedFor>) -> Option<ForwardedFor> {
    claim.filter(|_| {
        let peer = link.identity();
        peer.is_some_and(|peer| peer.scopes.allows(FORWARD_SCOPE))
    })
}

fn check_access(
    link: &CallConnectionState,
    operation: &CompiledOperation,
    identity: Option<&Identity>,
    input: &CallBody,
) -> Result<Option<Box<str>>, CallError> {
    let access = &operation.spec.access_control;
    if access.is_open() {
        return Ok(None);
    }
    // Which servers the node uses is not for unknown callers.
    if identity.is_none() && operation.provenance.is_server() {
        return Err(CallError::not_found(&operation.spec.name));
    }
    // A caller without the scopes is refused before its input is read.
    access.admit_scopes(identity, link.info.key)?;
    let resource_id = operation.resource_id(input)?;
    let ownership = link.dispatcher.ownership.as_deref();
    access.admit(identity, resource_id.as_deref(), ownership, link.info.key)?;
    Ok(resource_id)
}

fn input(body: &FrameBody, payload: &Payload<'_>) -> CallBody {
    match payload.input {
        Some(raw) => CallBody::from_parts(
            body.envelope.slice_ref(raw.get().as_bytes()),
            body.tail.clone().unwrap_or_default(),
        ),
        None => CallBody::null(),
    }
}

/// What the requester asks for: relative, or absolute where both clocks are set.
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
    // A clock before 1970 was never set, as one before `SANE_CLOCK_MS`.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    match now {
        ..=SANE_CLOCK_MS => Ok(None),
        now if at <= now => Err(CallError::timeout()),
        now => Ok(Some(Duration::from_millis(at - now))),
    }
}

/// The earliest of what the requester, the operation and this node allow.
pub(crate) fn deadline(
    dispatcher: &Dispatcher,
    operation: &CompiledOperation,
    asked: Option<Duration>,
    now: Instant,
) -> Option<Instant> {
    let subscription = is_subscription(operation);
    let own = operation
        .spec
        .default_timeout_ms
        .map(|ms| Duration::from_millis(ms.into()));
    // A subscription runs until a side ends it: no default and no longest time of this node
    // applies.
    let fallback = (!subscription).then_some(CALL_TIMEOUT_DEFAULT);
    let most = (!subscription).then_some(dispatcher.timeout_max);
    let chosen = match (asked, own) {
        (Some(asked), Some(own)) => Some(asked.min(own)),
        (asked, own) => asked.or(own).or(fallback),
    };
    let chosen = match (chosen, most) {
        (Some(chosen), Some(most)) => Some(chosen.min(most)),
        (chosen, most) => chosen.or(most),
    };
    // A deadline that overflows the clock is treated as no deadline.
    chosen.and_then(|timeout| now.checked_add(timeout))
}

/// Whether a deadline leaves clearly less time than the operation has where the caller names no timeout.
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

fn make_room(
    head: RequestHead,
    link: &Arc<CallConnectionState>,
    stream: &Arc<CallStream>,
    operation: Arc<CompiledOperation>,
) -> Result<InFlight, CallError> {
    let limits = link.limits();
    let (requests, subscriptions) = link.inbound.counts();
    let counters = &link.dispatcher.counters;
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
    // With a key, the run takes the place in the operation, once for all requests that wait for it.
    if head.key.is_none() {
        let entered = operation.enter();
        entered.inspect_err(|_| DispatcherCounters::add(&counters.operation_full))?;
    }
    let request = Arc::new(InboundRequest::new(head, link, stream, operation));
    link.inbound.remember(&request);
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
        for (node, operation, asked, left) in [
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
            let deadline = deadline(node, operation, asked, now);
            assert_eq!(deadline, left.map(|left| now + left), "{name} {asked:?}");
        }
    }
}
