//! Sends the protocol's requests through the node's own HTTP client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallError, ErrorCode, ImportClaim, ImportShare, tree_bytes};
use alknet_core::Capability;
use alknet_http_client::{HttpClient, HttpError, HttpRequestOptions, ResponseBody};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use rmcp::ErrorData;
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, GetExtensions, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    AuthRequiredError, InsufficientScopeError, SseError, StreamableHttpClient, StreamableHttpError,
    StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};
use tokio::sync::Notify;

use crate::client::answer_meter::{AnswerMeter, MessageScale, WeighedMessage};
use crate::client::arguments::json_text;
use crate::client::param_headers::ParamHeaderValues;
use crate::client::server_requests::ServerRequests;
use crate::limits::{
    ANSWER_BYTES_MAX, EVENT_BYTES_MAX, NOTE_TREE_BYTES_MAX, REFUSAL_BYTES_MAX, STREAM_BYTES_MAX,
};

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");

/// The limit for the head of a response. A server that answers in one piece sends the head only when the work is
/// done; the waiting call has its own deadline.
const HEAD_TIMEOUT: Duration = Duration::from_secs(600);

type Refusal = StreamableHttpError<HttpError>;

/// The HTTP client with the node's credential and memory limits.
#[derive(Clone)]
pub(super) struct McpHttpTransport {
    client: HttpClient,
    pub(super) credential: Arc<ArcSwapOption<Capability>>,
    changed: Arc<Notify>,
    memory: ImportShare,
    server_requests: ServerRequests,
}

impl McpHttpTransport {
    /// Makes a transport. It notifies `changed` when the server opens a stream of its own announcements, because the
    /// server may have announced earlier changes when no client listened. What the server sends counts against
    /// `memory`.
    pub(super) fn new(client: HttpClient, changed: Arc<Notify>, memory: ImportShare) -> Self {
        Self {
            client,
            credential: Arc::default(),
            changed,
            memory,
            server_requests: ServerRequests::default(),
        }
    }

    /// A copy for another connection, on which the server has no open requests yet.
    pub(super) fn for_connection(&self) -> Self {
        Self {
            server_requests: ServerRequests::default(),
            ..self.clone()
        }
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        let invalid = || StreamableHttpError::Client(HttpError::Uri(uri.to_owned()));
        *request.uri_mut() = uri.parse().map_err(|_| invalid())?;
        *request.headers_mut() = headers;
        let credential = self.credential.load_full();
        let credential = credential.map(|one| Capability::clone(&one));
        let mut exchange = HttpRequestOptions::streaming().with_credential(credential);
        exchange.head = HEAD_TIMEOUT;
        let answer = self.client.send_with(request, &exchange).await;
        let answer = answer.map_err(StreamableHttpError::Client)?;
        authorised(&answer)?;
        Ok(answer)
    }

    /// The events of a body. Each event is counted before the library parses it. A request that the library must not
    /// get loses its data, but does not end the stream: that would end the call of a requester who did nothing wrong,
    /// and the library would open another stream.
    fn events(
        &self,
        body: ResponseBody,
        memory: &ImportShare,
        counted: Option<AnswerMeter>,
    ) -> BoxStream<'static, Result<Sse, SseError>> {
        let mut scale = MessageScale::new(memory, counted.clone(), &self.server_requests);
        let bytes = bounded(body.into_data_stream(), EVENT_BYTES_MAX, memory, counted);
        let weighed = SseStream::from_bytes_stream(bytes).map(move |event| {
            let mut event = event?;
            let data = event.data.as_deref().unwrap_or_default();
            let weighed = scale.weigh(data.as_bytes());
            let weighed =
                weighed.map_err(|why| SseError::Body(Box::new(SseLimitError::Room(why))))?;
            match weighed {
                WeighedMessage::AsItIs => {}
                WeighedMessage::Dropped => event.data = None,
                WeighedMessage::Sealed(sealed) => event.data = Some(sealed),
            }
            Ok(event)
        });
        until_error(weighed).boxed()
    }

    /// The message of a body, or the reason why it has none.
    ///
    /// # Errors
    /// The body breaks off, or is longer than the node accepts from a server.
    async fn parsed(
        &self,
        body: ResponseBody,
        memory: &ImportShare,
        counted: Option<AnswerMeter>,
    ) -> Result<Result<ServerJsonRpcMessage, Refusal>, Refusal> {
        let mut claim = memory.claim();
        let has_capacity = |bytes| counts(&mut claim, bytes, counted.as_ref());
        let text = body.collect_counted(ANSWER_BYTES_MAX, has_capacity).await;
        let text = text.map_err(StreamableHttpError::Client)?;
        let mut scale = MessageScale::new(memory, counted, &self.server_requests);
        let weighed = scale.weigh(&text).map_err(|why| too_heavy(&why))?;
        let parsed = match &weighed {
            WeighedMessage::Sealed(sealed) => serde_json::from_str(sealed),
            _ => serde_json::from_slice(&text),
        };
        let parsed = parsed.map_err(StreamableHttpError::Deserialize);
        Ok(parsed.and_then(|message| match weighed {
            WeighedMessage::Dropped => {
                let why = "it asks in place of an answer, and has asked for too much before";
                Err(StreamableHttpError::UnexpectedServerResponse(why.into()))
            }
            _ => Ok(message),
        }))
    }

    /// Posts a message. The call of `counted` records that the message is on its way.
    async fn post(
        &self,
        uri: &str,
        headers: HeaderMap,
        body: Bytes,
        counted: Option<&AnswerMeter>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let note = |sent| {
            if let Some(counted) = counted {
                counted.set_sent(sent);
            }
        };
        let in_session = headers.contains_key(SESSION);
        // This is recorded before the request is sent: if the future is dropped during the exchange, the server may
        // already have the message.
        note(true);
        let answer = self.send(Method::POST, uri, headers, body).await;
        let is_unsent = match &answer {
            Err(StreamableHttpError::Client(error)) => error.is_before_sending(),
            Err(_) => false,
            // The server has ended the session, and the library posts the message in a new one.
            Ok(answer) => answer.status() == StatusCode::NOT_FOUND && in_session,
        };
        if is_unsent {
            note(false);
        }
        answer
    }
}

/// Whether the server authorises the node.
fn authorised<B>(answer: &Response<B>) -> Result<(), Refusal> {
    let challenge = || {
        let header = answer.headers().get(WWW_AUTHENTICATE);
        let text = header.and_then(|value| value.to_str().ok());
        text.unwrap_or_default().chars().take(256).collect()
    };
    match answer.status() {
        StatusCode::UNAUTHORIZED => Err(StreamableHttpError::AuthRequired(AuthRequiredError::new(
            challenge(),
        ))),
        StatusCode::FORBIDDEN => Err(StreamableHttpError::InsufficientScope(
            InsufficientScopeError::new(challenge(), None),
        )),
        _ => Ok(()),
    }
}

fn headers(
    accept: &'static str,
    session: Option<&str>,
    custom: HashMap<HeaderName, HeaderValue>,
) -> Result<HeaderMap, Refusal> {
    let mut headers: HeaderMap = custom.into_iter().collect();
    headers.insert(ACCEPT, HeaderValue::from_static(accept));
    if let Some(session) = session {
        let invalid =
            || StreamableHttpError::UnexpectedServerResponse("an invalid session id".into());
        headers.insert(SESSION, session.parse().map_err(|_| invalid())?);
    }
    Ok(headers)
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value.unwrap_or_default().split(';').next();
    essence.unwrap_or_default().trim()
}

fn is(headers: &HeaderMap, kind: &str) -> bool {
    media_type(headers).eq_ignore_ascii_case(kind)
}

impl StreamableHttpClient for McpHttpTransport {
    type Error = HttpError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Refusal> {
        let mut headers = headers(
            "application/json, text/event-stream",
            session_id.as_deref(),
            custom_headers,
        )?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        let counted = meter(&message);
        // The guard lives until the answer is posted, also if the post fails.
        let _answering = self.server_requests.answering(&message);
        if let Some(values) = param_headers(&message) {
            headers.extend(values.clone());
        }
        let body = json_text(&message)?;
        let sent = self.post(&uri, headers, body.into(), counted.as_ref());
        let (head, body) = sent.await?.into_parts();
        let memory = counted.as_ref().map_or(&self.memory, AnswerMeter::memory);
        let memory = memory.clone();
        // The protocol has 202 for messages that need no answer; some servers send 204.
        if matches!(head.status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        // The protocol uses 404 for a session that has ended; the library then begins a new session.
        if head.status == StatusCode::NOT_FOUND && session_id.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        if !head.status.is_success() {
            let text = body.collect_bounded(REFUSAL_BYTES_MAX).await;
            let text = text.map_err(StreamableHttpError::Client)?;
            return refused(&message, session_id.is_some(), head.status, &text);
        }
        let session = head.headers.get(SESSION);
        let session = session
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        if is(&head.headers, EVENTS) {
            let events = self.events(body, &memory, counted);
            return Ok(StreamableHttpPostResponse::Sse(events, session));
        }
        let waits = matches!(message, ClientJsonRpcMessage::Request(_));
        let is_json = is(&head.headers, JSON);
        match self.parsed(body, &memory, counted).await? {
            // The message expects no answer: the body was read only so that the connection can be used again.
            _ if !waits => Ok(StreamableHttpPostResponse::Accepted),
            Ok(answer) if is_json => Ok(StreamableHttpPostResponse::Json(answer, session)),
            Err(error) if is_json => Err(error),
            _ => Err(StreamableHttpError::UnexpectedContentType(Some(
                media_type(&head.headers).chars().take(64).collect(),
            ))),
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Refusal> {
        let headers = headers(JSON, Some(&session_id), custom_headers)?;
        // The client stops using the session, whatever the server responds.
        self.send(Method::DELETE, &uri, headers, Bytes::new())
            .await?;
        Ok(())
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Refusal> {
        let mut headers = headers(EVENTS, session_id.as_deref(), custom_headers)?;
        // An id that is no valid header value is left out: the stream then begins with the events from now on.
        if let Some(id) = last_event_id.and_then(|id| id.parse().ok()) {
            headers.insert(LAST_EVENT, id);
        }
        let answer = self.send(Method::GET, &uri, headers, Bytes::new()).await?;
        match answer.status() {
            status if status.is_success() && is(answer.headers(), EVENTS) => {
                self.changed.notify_one();
                let body = answer.into_body();
                Ok(self.events(body, &self.memory, None))
            }
            status if status.is_success() => Err(StreamableHttpError::UnexpectedContentType(None)),
            // The protocol uses this status for a server without such a stream.
            StatusCode::METHOD_NOT_ALLOWED => Err(StreamableHttpError::ServerDoesNotSupportSse),
            StatusCode::NOT_FOUND if session_id.is_some() => {
                Err(StreamableHttpError::SessionExpired)
            }
            status => Err(unexpected(status)),
        }
    }
}

/// The meter of a request's answer; a message that is no request of this node has none.
fn meter(message: &ClientJsonRpcMessage) -> Option<AnswerMeter> {
    request_extension(message).cloned()
}

/// The arguments that the request's server requires as headers.
fn param_headers(message: &ClientJsonRpcMessage) -> Option<&HeaderMap> {
    request_extension(message).map(|ParamHeaderValues(values)| values)
}

/// A value that the client attached to a request for the transport.
fn request_extension<T: Send + Sync + 'static>(message: &ClientJsonRpcMessage) -> Option<&T> {
    match message {
        ClientJsonRpcMessage::Request(request) => request.request.extensions().get(),
        _ => None,
    }
}

/// Whether memory has room for this number of body bytes. If not, `counted` gets the reason.
fn counts(claim: &mut ImportClaim, bytes: usize, counted: Option<&AnswerMeter>) -> bool {
    let room = claim.becomes(bytes).inspect_err(|why| {
        if let Some(counted) = counted {
            counted.refuse(why);
        }
    });
    room.is_ok()
}

/// The error for an answer that is not parsed because of its size.
fn too_heavy(why: &CallError) -> Refusal {
    match why.code {
        ErrorCode::Overloaded => StreamableHttpError::Client(HttpError::NoRoom),
        _ => StreamableHttpError::UnexpectedServerResponse(why.message.clone().into()),
    }
}

fn unexpected(status: StatusCode) -> Refusal {
    StreamableHttpError::UnexpectedServerResponse(format!("HTTP {status}").into())
}

/// The meaning of a refused message. The response's body may give the reason as a message of the protocol. A server
/// that does not know `server/discover` may refuse it with any body, which means that the server is an older one.
fn refused(
    message: &ClientJsonRpcMessage,
    in_session: bool,
    status: StatusCode,
    body: &[u8],
) -> Result<StreamableHttpPostResponse, Refusal> {
    // The size of the tree is checked before parsing, because parsing allocates it.
    let small = tree_bytes(body).is_ok_and(|bytes| bytes <= NOTE_TREE_BYTES_MAX);
    let reported = match small.then(|| serde_json::from_slice(body)) {
        Some(Ok(ServerJsonRpcMessage::Error(error))) => Some(error.error),
        _ => None,
    };
    let ClientJsonRpcMessage::Request(request) = message else {
        return Err(unexpected(status));
    };
    let discovers = matches!(request.request, ClientRequest::DiscoverRequest(_))
        && !in_session
        && status.is_client_error();
    let error = match (reported, discovers) {
        (Some(error), _) => error,
        (None, true) => ErrorData::invalid_request(format!("HTTP {status}"), None),
        (None, false) => return Err(unexpected(status)),
    };
    let answer = ServerJsonRpcMessage::error(error, Some(request.id.clone()));
    Ok(StreamableHttpPostResponse::Json(answer, None))
}

/// The items up to and including the first error.
fn until_error<T: Send + 'static, E: Send + 'static>(
    items: impl Stream<Item = Result<T, E>> + Send + 'static,
) -> impl Stream<Item = Result<T, E>> + Send + 'static {
    let mut over = false;
    items.take_while(move |item| {
        let goes_on = !over;
        over = item.is_err();
        std::future::ready(goes_on)
    })
}

/// The reason why reading of a stream ended.
#[derive(Debug, thiserror::Error)]
enum SseLimitError {
    #[error("an event is longer than {0} bytes")]
    Event(usize),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{0}")]
    Room(CallError),
    #[error("a stream is longer than {0} bytes")]
    Whole(usize),
}

/// Ends a stream of events if it, or one of its events, is too long, or if memory is short. An event ends at an empty
/// line (WHATWG HTML, section 9.2.5); a line ends with CR, LF or both.
fn bounded(
    body: impl Stream<Item = Result<Bytes, HttpError>> + Send + 'static,
    longest: usize,
    memory: &ImportShare,
    counted: Option<AnswerMeter>,
) -> impl Stream<Item = Result<Bytes, SseLimitError>> + Send + 'static {
    let mut meter = SseMeter::new(longest);
    let mut claim = memory.claim();
    let pieces = body.map(move |chunk| {
        let chunk = chunk?;
        meter.take(&chunk)?;
        // The bytes count twice: as the line that is read, and as the data of the event.
        let room = claim.becomes(2 * meter.event + chunk.len());
        room.map_err(|why| {
            if let Some(counted) = &counted {
                counted.refuse(&why);
            }
            SseLimitError::Room(why)
        })?;
        Ok(chunk)
    });
    until_error(pieces)
}

/// Counts the bytes of an event stream.
struct SseMeter {
    longest: usize,
    event: usize,
    whole: usize,
    empty_line: bool,
    after_cr: bool,
}

impl SseMeter {
    fn new(longest: usize) -> Self {
        Self {
            longest,
            event: 0,
            whole: 0,
            empty_line: true,
            after_cr: false,
        }
    }

    fn take(&mut self, chunk: &[u8]) -> Result<(), SseLimitError> {
        self.whole += chunk.len();
        if self.whole > STREAM_BYTES_MAX {
            return Err(SseLimitError::Whole(STREAM_BYTES_MAX));
        }
        for byte in chunk {
            // An LF after a CR ends the same line.
            let second_half = *byte == b'\n' && self.after_cr;
            self.after_cr = *byte == b'\r';
            if second_half {
                continue;
            }
            self.event += 1;
            match byte {
                b'\r' | b'\n' if self.empty_line => self.event = 0,
                b'\r' | b'\n' => self.empty_line = true,
                _ => self.empty_line = false,
            }
            if self.event > self.longest {
                return Err(SseLimitError::Event(self.longest));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(chunks: &[&str]) -> bool {
        let mut meter = SseMeter::new(10);
        chunks
            .iter()
            .all(|chunk| meter.take(chunk.as_bytes()).is_ok())
    }

    #[test]
    fn events_are_measured_one_by_one() {
        assert!(fits(&[
            "data: 123\n\n",
            "data: 123\n\n",
            "data: 123\r\n\r\n"
        ]));
        assert!(fits(&["data: 123\r", "\n\r", "\ndata: 1\r\rdata: 2\n\n"]));
        assert!(!fits(&["data: 1234567"]));
        assert!(!fits(&["data: 1\n", "data: 2\n", "\n"]));
        assert!(!fits(&[":comment that is long"]));
    }

    #[test]
    fn streams_end_somewhere() {
        let mut meter = SseMeter::new(10);
        let event = "data: 1\n\n".repeat(1 << 16);
        let most = STREAM_BYTES_MAX / event.len();
        for _ in 0..most {
            assert!(meter.take(event.as_bytes()).is_ok());
        }
        assert!(matches!(
            meter.take(event.as_bytes()),
            Err(SseLimitError::Whole(_))
        ));
    }
}
