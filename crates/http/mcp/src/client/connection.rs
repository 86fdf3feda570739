//! A connection to one server, and the cancellation of requests that their callers have abandoned.

use std::sync::Arc;

use rmcp::RoleClient;
use rmcp::model::{
    CancelledNotificationParam, ClientRequest, ProtocolVersion, RequestId, ServerResult,
};
use rmcp::service::{Peer, PeerRequestOptions, RunningService, ServiceError};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use crate::client::permits::McpCallPermit;
use crate::client::remote::RefusingMcpClient;

/// A connection, which ends when the last reference to it is dropped.
pub(super) struct McpConnection {
    running: RunningService<RoleClient, RefusingMcpClient>,
    /// The library sends one cancellation after the other. The cancellations of this connection wait at this lock, at
    /// most one for each requester.
    cancelling: Mutex<()>,
}

impl McpConnection {
    pub(super) fn new(running: RunningService<RoleClient, RefusingMcpClient>) -> Self {
        Self {
            running,
            cancelling: Mutex::default(),
        }
    }

    pub(super) fn peer(&self) -> &Peer<RoleClient> {
        self.running.peer()
    }

    pub(super) fn is_over(&self) -> bool {
        self.running.is_closed() || self.running.is_transport_closed()
    }

    /// Whether the server may require arguments as headers, as servers of the newest version may.
    pub(super) fn takes_headers(&self) -> bool {
        let info = self.peer().peer_info();
        info.is_some_and(|info| info.protocol_version >= ProtocolVersion::STANDARD_HEADERS)
    }

    /// Sends a request to the server and waits for the answer. If this future is dropped, the server gets a
    /// `notifications/cancelled`, and the request keeps its `permit` until the cancellation is sent or given up; then
    /// the library forgets all that it has of the request.
    pub(super) async fn ask(
        self: &Arc<Self>,
        request: ClientRequest,
        permit: Option<McpCallPermit>,
    ) -> Result<ServerResult, ServiceError> {
        let options = PeerRequestOptions::no_options();
        let handle = self
            .peer()
            .send_request_with_option(request, options)
            .await?;
        let mut unanswered = UnansweredRequest(Some(RequestToCancel {
            connection: Arc::clone(self),
            id: handle.id.clone(),
            permit,
        }));
        let answer = handle.await_response().await;
        // An answered request needs no cancellation.
        unanswered.0 = None;
        answer
    }

    /// Sends the cancellation of a request that its caller has abandoned. The library gives up after
    /// [`CANCEL_TIMEOUT`](crate::limits::CANCEL_TIMEOUT), and forgets the request either way. If the server does not
    /// accept the cancellation, the connection stays open, because calls of other requesters use it.
    async fn cancel(&self, id: RequestId, permit: Option<&McpCallPermit>) {
        let requester = permit.map(McpCallPermit::cancelling);
        let _turn_of_requester = match &requester {
            Some(requester) => Some(requester.lock().await),
            None => None,
        };
        // The requester's lock comes first, so that one requester has at most one cancellation in this queue.
        let _turn = self.cancelling.lock().await;
        if self.is_over() {
            return;
        }
        let why = "the caller does not wait any more".to_owned();
        let cancelled = CancelledNotificationParam::new(Some(id), Some(why));
        if let Err(error) = self.peer().notify_cancelled(cancelled).await {
            // This is logged below a warning, because each caller of a slow server could otherwise write any number
            // of lines.
            tracing::debug!(%error, "a tool server does not take a cancellation");
        }
    }
}

/// A request whose caller waits for the answer until this is dropped.
struct UnansweredRequest(Option<RequestToCancel>);

struct RequestToCancel {
    connection: Arc<McpConnection>,
    id: RequestId,
    permit: Option<McpCallPermit>,
}

impl Drop for UnansweredRequest {
    fn drop(&mut self) {
        let Some(request) = self.0.take() else {
            return;
        };
        // Without a runtime the process is ending, and its connections end with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let RequestToCancel {
                    connection,
                    id,
                    permit,
                } = request;
                connection.cancel(id, permit.as_ref()).await;
                drop(permit);
            });
        }
    }
}
