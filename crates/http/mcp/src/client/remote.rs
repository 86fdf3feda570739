//! The connection to one server and the calls on it.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{
    AdapterError, CallBody, CallError, CallOutput, Ctx, ErrorCode, ImportReservation, ImportShare,
};
use alknet_core::{Capability, DialErrorKind};
use alknet_http_client::{HttpClient, HttpError};
use http::HeaderMap;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
    ElicitRequestParams, ElicitResult, ErrorCode as RpcCode, Implementation, JsonObject,
    ListRootsRequestMethod, ListToolsRequest, PaginatedRequestParams, ProtocolVersion,
    ServerResult, SubscriptionFilter,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt, NotificationContext, Peer,
    RequestContext, RunningService, ServiceError,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransportConfig, StreamableHttpError,
};
use rmcp::{ClientHandler, ErrorData, RoleClient};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep, timeout};

use crate::client::answer_meter::AnswerMeter;
use crate::client::arguments::counted_arguments;
use crate::client::connection::McpConnection;
use crate::client::param_headers::{ParamHeaderValues, ParamHeaders};
use crate::client::permits::{McpCallPermit, McpCallPermits};
use crate::client::tool_list::{self, McpToolList};
use crate::client::tools::{SERVER_ERROR, bytes, shown};
use crate::client::transport::McpHttpTransport;
use crate::client::{McpImport, answer};
use crate::limits::{
    ANSWER_BYTES_MAX, CALL_TIMEOUT, CALLS_MAX, CANCEL_TIMEOUT, CHANGE_ANSWER_BYTES_MIN,
    EVENT_BYTES_MAX, LISTING_BYTES_MAX, LISTING_TIMEOUT, PAGES_MAX, REFRESH, RETRY_FIRST,
    RETRY_LONGEST, TOOLS_MAX,
};

/// The node's end of one server.
pub(super) struct McpRemote {
    pub(super) import: McpImport,
    http: McpHttpTransport,
    state: Mutex<McpRemoteState>,
    permits: Arc<McpCallPermits>,
    memory: ImportShare,
    changed: Arc<Notify>,
}

/// What a call needs to know about its tool.
#[derive(Debug)]
pub(super) struct McpToolTarget {
    /// The name that the server gives the tool.
    pub(super) name: String,
    /// Whether the server declared an output schema.
    pub(super) typed: bool,
    pub(super) headers: ParamHeaders,
}

#[derive(Default)]
struct McpRemoteState {
    connection: Option<Arc<McpConnection>>,
    failures: u32,
    /// The earliest time of the next attempt, and the reason of the last failure.
    again: Option<(Instant, McpCallError)>,
}

impl McpRemote {
    pub(super) fn new(client: HttpClient, import: McpImport, memory: ImportShare) -> Self {
        let changed: Arc<Notify> = Arc::default();
        Self {
            import,
            http: McpHttpTransport::new(client, Arc::clone(&changed), memory.clone()),
            state: Mutex::default(),
            permits: Arc::default(),
            memory,
            changed,
        }
    }

    /// Sets the credential for the following requests. It is the same for every operation that has a grant for it; an
    /// operation without a grant fails before this.
    pub(super) fn authorise(&self, capability: Option<&Capability>) {
        let capability = capability.cloned().map(Arc::new);
        self.http.credential.store(capability);
    }

    /// Waits until the server announces that its tools changed, or may have announced it before this node listened.
    pub(super) async fn tools_changed(&self) {
        self.changed.notified().await;
    }

    /// A meter for one request, or for several whose answers are kept together.
    pub(super) fn answer_meter(&self) -> AnswerMeter {
        AnswerMeter::new(&self.memory)
    }

    /// Reads all tools on all pages. They count as long as `counted` lives; the connection stores nothing of them.
    pub(super) async fn list(&self, counted: &AnswerMeter) -> Result<McpToolList, McpCallError> {
        tokio::select! {
            // The refusal is polled first, because the library's own error says less.
            biased;
            why = counted.refused() => Err(McpCallError::RefusingMcpClient(why)),
            tools = self.pages(counted) => tools,
        }
    }

    async fn pages(&self, counted: &AnswerMeter) -> Result<McpToolList, McpCallError> {
        let connection = self.connection().await?;
        let mut tools = Vec::new();
        let mut size = 0;
        let mut cursor = None;
        for _ in 0..PAGES_MAX {
            let mut request = ListToolsRequest {
                params: Some(PaginatedRequestParams::default().with_cursor(cursor)),
                ..ListToolsRequest::default()
            };
            request.extensions.insert(counted.clone());
            let request = ClientRequest::ListToolsRequest(request);
            let answer = connection.ask(request, None).await?;
            let page = tool_list::opened(answer).ok_or_else(|| {
                McpCallError::Protocol("it answered with no list of tools".to_owned())
            })?;
            size += page.tools.iter().map(bytes).sum::<usize>();
            tools.extend(page.tools);
            if tools.len() > TOOLS_MAX {
                return Err(McpCallError::TooLarge("tools"));
            }
            if size > LISTING_BYTES_MAX {
                return Err(McpCallError::TooLarge("schemas"));
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(McpToolList {
                    tools,
                    takes_headers: connection.takes_headers(),
                });
            }
        }
        Err(McpCallError::TooLarge("pages of tools"))
    }

    /// Calls a tool. If the future is dropped, the node reports to the server that the caller has given up.
    pub(super) async fn call(
        &self,
        tool: &McpToolTarget,
        input: CallBody,
        ctx: &Ctx,
    ) -> Result<CallOutput, CallError> {
        if let Some(name) = &self.import.credential {
            self.authorise(Some(ctx.capabilities().get(name)?));
        }
        // The permit is taken first, so nothing is copied for a call without a permit.
        let permit = self.permits.take(ctx)?;
        let memory = self.memory.for_call(ctx);
        let (arguments, request) = counted_arguments(&input, &memory)?;
        // The arguments are copied by now, and the input would count twice during the call.
        drop(input);
        // Once the server has made a change, it is too late to refuse the call for lack of memory.
        let reserve = || memory.reserve(ANSWER_BYTES_MAX, CHANGE_ANSWER_BYTES_MIN);
        let reserved = (!ctx.is_query()).then(reserve).transpose()?;
        let memory = reserved.as_ref().map_or(&memory, ImportReservation::share);
        let counted = AnswerMeter::for_call(memory, ctx);
        counted.add_request(request);
        let work = async {
            tokio::select! {
                // The refusal is polled first here too: its reason is more precise than the library's error.
                biased;
                why = counted.refused() => Err(McpCallError::RefusingMcpClient(why)),
                answer = self.ask(tool, arguments, &counted, Some(permit)) => answer,
            }
        };
        // Requests from outside have deadlines, but calls between operations may have none.
        let response = match ctx.deadline() {
            Some(_) => work.await,
            None => timeout(CALL_TIMEOUT, work)
                .await
                .unwrap_or_else(|_| Err(McpCallError::late(CALL_TIMEOUT))),
        };
        let response = response.map_err(|failed| self.failed(failed))?;
        let output = answer::outcome(response, tool.typed)?;
        Ok(CallOutput::Raw(counted.pass_on(output)?))
    }

    /// The error of a call, which names the import if its server was not reached.
    fn failed(&self, failed: McpCallError) -> CallError {
        let is_lost = matches!(failed, McpCallError::Lost(_));
        let mut error = CallError::from(failed);
        if is_lost {
            let import = &self.import.namespace;
            error.message = format!(
                "import '{import}': {}; is the server running?",
                error.message
            );
        }
        error
    }

    /// Like [`Peer::call_tool_once`], but `counted` counts the memory of the answer.
    pub(super) async fn ask(
        &self,
        tool: &McpToolTarget,
        arguments: Option<JsonObject>,
        counted: &AnswerMeter,
        permit: Option<McpCallPermit>,
    ) -> Result<ServerResult, McpCallError> {
        let connection = self.connection().await?;
        let headers = match &arguments {
            Some(arguments) if connection.takes_headers() => tool.headers.values(arguments),
            _ => Ok(HeaderMap::new()),
        };
        let headers = headers.map_err(McpCallError::Here)?;
        let mut params = CallToolRequestParams::new(tool.name.clone());
        params.arguments = arguments;
        let mut request = CallToolRequest::new(params);
        request.extensions.insert(counted.clone());
        request.extensions.insert(ParamHeaderValues(headers));
        let request = ClientRequest::CallToolRequest(request);
        // The library posts the request in a task of its own, even if the caller gives up before that.
        counted.set_sent(true);
        Ok(connection.ask(request, permit).await?)
    }

    /// Returns the connection. A lost connection is made again after the pause that follows a failure.
    async fn connection(&self) -> Result<Arc<McpConnection>, McpCallError> {
        // The lock is held during the handshake, so that calls which arrive meanwhile wait for the same connection.
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection
            && !connection.is_over()
        {
            return Ok(Arc::clone(connection));
        }
        state.connection = None;
        if let Some((when, why)) = &state.again
            && Instant::now() < *when
        {
            // During the pause, calls fail at once with the last reason.
            return Err(why.clone());
        }
        match self.connect().await {
            Ok(running) => {
                let connection = Arc::new(McpConnection::new(running));
                *state = McpRemoteState {
                    connection: Some(Arc::clone(&connection)),
                    ..McpRemoteState::default()
                };
                Ok(connection)
            }
            // The failure is on this node's side: the attempt did not load the server, and the fault may be corrected
            // at any moment, so there is no pause.
            Err(error @ McpCallError::Here(_)) => Err(error),
            Err(error) => {
                // The wait grows with each failure, so that calls do not load a server that is down.
                let wait = waiting(state.failures);
                state.failures = state.failures.saturating_add(1);
                state.again = Some((Instant::now() + wait, error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<RunningService<RoleClient, RefusingMcpClient>, McpCallError> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(&*self.import.url)
            .max_concurrent_requests(CALLS_MAX)
            .control_request_timeout(CANCEL_TIMEOUT);
        config.max_sse_event_size = EVENT_BYTES_MAX;
        let transport =
            StreamableHttpClientTransport::with_client(self.http.for_connection(), config);
        let handler = RefusingMcpClient(Arc::clone(&self.changed));
        let lifecycle = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        };
        let running = handler.serve_with_lifecycle(transport, lifecycle);
        let running = timeout(LISTING_TIMEOUT, running)
            .await
            .map_err(|_| McpCallError::late(LISTING_TIMEOUT))??;
        self.follow(running.peer());
        Ok(running)
    }

    /// Subscribes to changes of the tool list. Servers of the newest version announce changes only to clients that
    /// subscribe; older ones announce them to every client ([`ClientHandler::on_tool_list_changed`]).
    fn follow(&self, peer: &Peer<RoleClient>) {
        let newest = ProtocolVersion::V_2026_07_28;
        let subscribes = peer.peer_info().is_some_and(|info| {
            let tools = info.capabilities.tools.as_ref();
            info.protocol_version.as_str() >= newest.as_str()
                && tools.is_some_and(|tools| tools.list_changed == Some(true))
        });
        if !subscribes {
            return;
        }
        tokio::spawn(listen(peer.clone(), Arc::clone(&self.changed)));
    }
}

/// Listens for changes for as long as the connection is used. A server that was away may return with other tools, so
/// the node reads the list at the start of each new subscription.
async fn listen(peer: Peer<RoleClient>, changed: Arc<Notify>) {
    let mut failures = 0;
    while !peer.is_transport_closed() {
        let filter = SubscriptionFilter::builder().tools_list_changed().build();
        let began = Instant::now();
        let refused = match peer.listen(filter).await {
            Ok(mut events) => {
                changed.notify_one();
                while let Ok(Some(_)) = events.next().await {
                    changed.notify_one();
                }
                // Reading the list also finds out whether the server is still there.
                changed.notify_one();
                false
            }
            Err(error) => matches!(error, ServiceError::McpError(_)),
        };
        // A subscription that lasted was no failure, so the next wait is short again.
        if began.elapsed() > RETRY_LONGEST {
            failures = 0;
        }
        // If a server refuses the subscription, the node reads its tools at the regular interval.
        let wait = match refused {
            true => REFRESH,
            false => waiting(failures),
        };
        failures = failures.saturating_add(1);
        sleep(wait).await;
    }
}

/// How long the node waits before it tries the server again, after this number of earlier failures.
fn waiting(failures: u32) -> Duration {
    // The bound keeps the shift within the integer's bits; the longest wait is reached before that.
    let wait = RETRY_FIRST.saturating_mul(1 << failures.min(16));
    wait.min(RETRY_LONGEST)
}

/// Refuses the requests of a server: this node has no model, no person and no folder for them.
#[derive(Clone, Debug)]
pub(super) struct RefusingMcpClient(Arc<Notify>);

impl ClientHandler for RefusingMcpClient {
    fn get_info(&self) -> ClientConfig {
        let name = Implementation::new("alknet", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), name)
    }

    #[expect(deprecated, reason = "servers of older versions ask for it")]
    async fn list_roots(
        &self,
        _context: RequestContext<RoleClient>,
    ) -> Result<rmcp::model::ListRootsResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListRootsRequestMethod>())
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let message = "this node has no person to ask";
        Err(ErrorData::new(RpcCode::METHOD_NOT_FOUND, message, None))
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.0.notify_one();
    }
}

/// The reason why a call of a server failed.
#[derive(Clone, Debug)]
pub(super) enum McpCallError {
    /// The cause is on this node's side: a credential, a rule, or an address that the node may not dial.
    Here(CallError),
    /// The server did not answer in time.
    Late(Duration),
    /// The node cannot reach the server.
    Lost(String),
    /// The server answers with something that the protocol does not allow.
    Protocol(String),
    /// The server refuses with a JSON-RPC error.
    Refused(ErrorData),
    /// The server's message would take more memory than it may have.
    RefusingMcpClient(CallError),
    /// The server sends more than the node accepts.
    TooLarge(&'static str),
    /// The server does not authorise the node.
    Unauthorized,
}

impl McpCallError {
    pub(super) fn late(limit: Duration) -> Self {
        Self::Late(limit)
    }
}

impl From<ServiceError> for McpCallError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::McpError(error) => Self::Refused(error),
            ServiceError::TransportSend(error) => Self::from_source(error.error.as_ref()),
            ServiceError::Timeout { timeout } => Self::Late(timeout),
            ServiceError::UnexpectedResponse => {
                Self::Protocol("its answer is not one to what it was asked".to_owned())
            }
            error => Self::Lost(error.to_string()),
        }
    }
}

impl From<ClientInitializeError> for McpCallError {
    fn from(error: ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::TransportError { error, .. } => {
                Self::from_source(error.error.as_ref())
            }
            ClientInitializeError::LegacyFallbackFailed { fallback, .. } => (*fallback).into(),
            ClientInitializeError::JsonRpcError(error) => Self::Refused(error),
            ClientInitializeError::ConnectionClosed(why) => Self::Lost(why),
            error => Self::Protocol(error.to_string()),
        }
    }
}

impl McpCallError {
    /// Converts the innermost error of the transport that is known.
    fn from_source(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(one) = next {
            if let Some(known) = one.downcast_ref::<StreamableHttpError<HttpError>>() {
                return Self::of_http(known);
            }
            next = one.source();
        }
        Self::Lost(error.to_string())
    }

    fn of_http(error: &StreamableHttpError<HttpError>) -> Self {
        use StreamableHttpError as E;
        match error {
            E::Client(HttpError::Credential(error)) => Self::Here((*error).into()),
            E::Client(HttpError::TimedOut(limit) | HttpError::Idle(limit)) => Self::Late(*limit),
            E::Client(HttpError::TooLong(_)) => Self::TooLarge("bytes in an answer"),
            E::Client(error @ HttpError::NoRoom) => {
                Self::RefusingMcpClient(CallError::new(ErrorCode::Overloaded, error.to_string()))
            }
            E::Client(HttpError::Dial(error)) if error.kind == DialErrorKind::OutOfReach => {
                Self::Here(CallError::unavailable(error.to_string()))
            }
            E::Client(error @ (HttpError::Host(_) | HttpError::Plain(_) | HttpError::Uri(_))) => {
                Self::Here(CallError::unavailable(error.to_string()))
            }
            E::AuthRequired(_) | E::InsufficientScope(_) => Self::Unauthorized,
            E::Deserialize(_) | E::UnexpectedContentType(_) | E::UnexpectedServerResponse(_) => {
                Self::Protocol(error.to_string())
            }
            _ => Self::Lost(error.to_string()),
        }
    }
}

impl From<McpCallError> for CallError {
    fn from(failed: McpCallError) -> Self {
        match failed {
            McpCallError::Here(error) | McpCallError::RefusingMcpClient(error) => error,
            McpCallError::Late(limit) => {
                let message = format!("the server did not answer within {} s", limit.as_secs());
                Self::new(ErrorCode::Timeout, message)
            }
            McpCallError::Lost(why) => {
                Self::unavailable(format!("the server cannot be reached: {}", shown(&why)))
            }
            McpCallError::Protocol(why) => Self::operation(
                SERVER_ERROR,
                format!("the server does not speak as it should: {}", shown(&why)),
            ),
            McpCallError::Refused(error) => {
                let message = format!("the server refuses: {}", shown(&error.message));
                let details = serde_json::json!({"code": error.code.0});
                Self::operation(SERVER_ERROR, message).with_details(details)
            }
            McpCallError::TooLarge(what) => Self::new(
                ErrorCode::PayloadTooLarge,
                format!("the server says more {what} than this node takes"),
            ),
            McpCallError::Unauthorized => Self::operation(
                SERVER_ERROR,
                "the server does not take the node's credential; look at the import's 'credential'",
            ),
        }
    }
}

impl From<McpCallError> for AdapterError {
    fn from(failed: McpCallError) -> Self {
        match failed {
            McpCallError::TooLarge(what) => Self::TooLarge(what),
            McpCallError::RefusingMcpClient(error) if error.code == ErrorCode::PayloadTooLarge => {
                Self::TooLarge("values in its tools")
            }
            McpCallError::Unauthorized => Self::Unauthorized(failed.into()),
            McpCallError::Refused(_) | McpCallError::Protocol(_) => Self::Transport(failed.into()),
            other => Self::Transport(other.into()),
        }
    }
}
