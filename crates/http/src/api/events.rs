//! Streams of server-sent events (WHATWG HTML, section 9.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::CallerProof;
use alknet_gateway::{ApiError, Code, GatewaySubscription, HttpCaller, MemoryLease, RequestId};
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use super::{invocation, key, upload_allowance};
use crate::access::AccessLogEntry;
use crate::answer::{self, JSON};
use crate::limits::EVENT_BYTES_MAX;
use crate::request_body;
use crate::routes::TICKET;
use crate::shared::HttpShared;

/// With this header, a client accepts that the response comes later and elsewhere (RFC 7240).
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Forbids proxies to buffer the events.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";

pub(super) async fn subscribe(
    shared: &Arc<HttpShared>,
    caller: &HttpCaller,
    (parts, body): (&Parts, &mut Body),
    entry: &mut AccessLogEntry,
) -> Result<Response<Body>, ApiError> {
    let later = prefers_later(&parts.headers);
    if !later && !accepts_events(&parts.headers) {
        return Err(ApiError::new(
            StatusCode::NOT_ACCEPTABLE,
            Code::InvalidInput,
            "send 'Accept: text/event-stream', or 'Prefer: respond-async' for an address to read from",
        ));
    }
    let key = key(&parts.headers)?;
    let body = request_body::json(&parts.headers, body, upload_allowance(shared, caller)).await?;
    let call = invocation(&body, key)?;
    entry.calls([call.operation.as_str()]);
    if !later {
        let subscription = shared.gateway.subscribe(caller.clone(), call)?;
        return Ok(events(shared, subscription));
    }
    // A caller that may not call the operation gets no ticket.
    shared.gateway.find(caller, &call.operation)?;
    let time = shared.tickets.time().as_secs();
    let bytes = body.text.len();
    let Some(owner) = caller.identity.as_ref().map(|who| who.id.clone()) else {
        return Err(ApiError::unauthenticated(answer::NO_TOKEN));
    };
    let name = shared.tickets.make(&owner, (caller.clone(), call), bytes)?;
    let ticket = json!({ "url": format!("{TICKET}{name}"), "expires_in": time });
    Ok(answer::api(
        StatusCode::CREATED,
        JSON,
        ticket.to_string().into(),
    ))
}

/// The response for a ticket; `None` if the ticket is invalid.
pub(crate) fn ticket(
    shared: &HttpShared,
    parts: &Parts,
    stealth: bool,
    entry: &mut AccessLogEntry,
) -> Option<Response<Body>> {
    // A HEAD request must not use up the ticket.
    if parts.method != Method::GET {
        return None;
    }
    // A browser that lost the connection asks again, and stops for good at a 204. It also stops at a 404, which an
    // unknown peer gets from a node that hides.
    if parts.headers.contains_key(LAST_EVENT_ID) && !stealth {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        answer::private(&mut response);
        return Some(response);
    }
    let name = parts.uri.path().strip_prefix(TICKET)?;
    let (caller, call) = shared.tickets.take(name)?;
    if let Some(who) = &caller.identity {
        entry.set_caller(who);
    }
    entry.calls([call.operation.as_str()]);
    let id = caller.request_id;
    let caller = match current_caller(shared, caller) {
        Ok(caller) => caller,
        Err(error) => return Some(answer::error(&error, &id)),
    };
    Some(match shared.gateway.subscribe(caller, call) {
        Ok(subscription) => events(shared, subscription),
        Err(error) => answer::error(&error, &id),
    })
}

/// The caller who made a ticket, with its current identity: its token or key may have been revoked since. The
/// connection that the ticket was made on may be closed, but keeps its identity.
fn current_caller(shared: &HttpShared, caller: HttpCaller) -> Result<HttpCaller, ApiError> {
    let gate = &caller.gate;
    let (identity, proved_by) = match (&caller.token, gate.key()) {
        (Some(token), _) => {
            let known = shared.gateway.authenticate(gate, Some(token.expose()))?;
            (known.identity, None)
        }
        (None, Some(key)) => (gate.by_key(key), Some(CallerProof::Key(key))),
        // The handler of the connection names the peer.
        (None, None) => (gate.identity(), None),
    };
    let previous = caller.identity.as_ref().map(|previous| &previous.id);
    let identity = identity.filter(|now| previous == Some(&now.id));
    if identity.is_none() {
        return Err(ApiError::unauthenticated(answer::NO_TOKEN));
    }
    Ok(HttpCaller {
        identity,
        proved_by,
        account: None,
        ..caller
    })
}

fn prefers_later(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(PREFER).iter();
    values.any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|one| one.trim() == "respond-async")
    })
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(ACCEPT).iter();
    values.any(|value| {
        let value = value.to_str().unwrap_or_default();
        value.split(',').any(|one| {
            let one = one.split(';').next().unwrap_or_default().trim();
            one.eq_ignore_ascii_case(EVENT_STREAM)
        })
    })
}

/// The position in a stream of events.
struct EventStreamState {
    subscription: Option<GatewaySubscription>,
    id: RequestId,
    sent: u64,
    /// Counts the last event until the client has received it.
    lease: MemoryLease,
    counted: usize,
    /// The node sends a comment if there is no event for this time.
    ping: Duration,
}

/// The events of a subscription. The node asks for the next event when the connection has room for it.
fn events(shared: &HttpShared, subscription: GatewaySubscription) -> Response<Body> {
    let reading = EventStreamState {
        id: subscription.caller().request_id,
        lease: shared.gateway.lease(subscription.caller()),
        counted: 0,
        subscription: Some(subscription),
        sent: 0,
        ping: shared.settings().patience.event_ping,
    };
    let frames = stream::unfold(reading, |mut reading| async move {
        let frame = reading.next().await?;
        Some((Ok::<_, Infallible>(frame), reading))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(UNBUFFERED, HeaderValue::from_static("no"));
    answer::private(&mut response);
    response
}

impl EventStreamState {
    async fn next(&mut self) -> Option<Bytes> {
        // The connection asks for the next event, so the client has received the last one.
        self.lease.less(std::mem::take(&mut self.counted));
        let subscription = self.subscription.as_mut()?;
        let event = tokio::time::timeout(self.ping, subscription.next()).await;
        let Ok(event) = event else {
            // A comment keeps proxies from closing an idle connection.
            return Some(Bytes::from_static(b": ping\n\n"));
        };
        let frame = match event {
            Some(Ok(event)) => {
                let mut data = Vec::new();
                event.output.append_to(&mut data);
                match self.count_bytes(data.len()) {
                    Ok(()) => {
                        self.sent += 1;
                        return Some(frame(Some(self.sent), "data", &data));
                    }
                    Err(error) => failed(&error, &self.id),
                }
            }
            Some(Err(error)) => failed(&error, &self.id),
            None => frame(None, "completed", b"{}"),
        };
        self.subscription = None;
        Some(frame)
    }

    /// Counts the bytes of an event.
    fn count_bytes(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes > EVENT_BYTES_MAX {
            let message = format!("an event has {bytes} bytes, and {EVENT_BYTES_MAX} fit");
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            return Err(ApiError::new(status, Code::PayloadTooLarge, message));
        }
        self.lease.more(bytes)?;
        self.counted = bytes;
        Ok(())
    }
}

fn failed(error: &ApiError, id: &RequestId) -> Bytes {
    frame(None, "error", error.object(id).to_string().as_bytes())
}

/// One event. JSON text escapes line breaks within strings, but an operation's own text may have line breaks between
/// its tokens.
fn frame(id: Option<u64>, event: &str, data: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(data.len() + 48);
    if let Some(id) = id {
        text.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    text.extend_from_slice(format!("event: {event}\ndata: ").as_bytes());
    let line = |byte: &u8| {
        if matches!(byte, b'\r' | b'\n') {
            b' '
        } else {
            *byte
        }
    };
    text.extend(data.iter().map(line));
    text.extend_from_slice(b"\n\n");
    text.into()
}
