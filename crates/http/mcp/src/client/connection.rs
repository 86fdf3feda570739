//! A connection to one server, and requests on it that nothing waits for any more.

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

/// A connection, which ends with the last of these that is dropped.
pub(super) struct McpConnection {
    running: RunningService<RoleClient, RefusingMcpClient>,
    /// The library cancels one request after the other. Those that wait for it wait here, each requester with one.
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

    /// Whether the server may want arguments as headers: those of the newest version may.
    pub(super) fn takes_headers(&self) -> bool {
        let info = self.peer().peer_info();
        info.is_some_and(|info| info.protocol_version >= ProtocolVersion::STANDARD_HEADERS)
    }

    /// Asks the server. If this is dropped the server gets a `notifications/cancelled`, and the request keeps its
    /// `place` until that is sent or given up: what the library has of a request it forgets with it.
    pub(super) async fn ask(
        self: &Arc<Self>,
        request: ClientRequest,
        place: Option<McpCallPermit>,
    ) -> Result<ServerResult, ServiceError> {
        let options = PeerRequestOptions::no_options();
        let handle = self
            .peer()
            .send_request_with_option(request, options)
            .await?;
        let mut unanswered = UnansweredRequest(Some(RequestToCancel {
            connection: Arc::clone(self),
            id: handle.id.clone(),
            place,
        }));
        let answer = handle.await_response().await;
        unanswered.0 = None;
        answer
    }

    /// Tells the server that nothing waits for this answer. The library gives up after
    /// [`CANCEL_TIMEOUT`](crate::limits::CANCEL_TIMEOUT), and forgets the request either way. The connection stays where
    /// the server does not take the cancellation: calls of other requesters are on it.
    async fn cancel(&self, id: RequestId, place: Option<&McpCallPermit>) {
        let requester = place.map(McpCallPermit::cancelling);
        let _turn_of_requester = match &requester {
            Some(requester) => Some(requester.lock().await),
            None => None,
        };
        let _turn = self.cancelling.lock().await;
        if self.is_over() {
            return;
        }
        let why = "the caller does not wait any more".to_owned();
        let cancelled = CancelledNotificationParam::new(Some(id), Some(why));
        if let Err(error) = self.peer().notify_cancelled(cancelled).await {
            // Below a warning: each caller of a slow server could write as many lines as it likes.
            tracing::debug!(%error, "a tool server does not take a cancellation");
        }
    }
}

/// A request whose answer is waited for until this is dropped.
struct UnansweredRequest(Option<RequestToCancel>);

struct RequestToCancel {
    connection: Arc<McpConnection>,
    id: RequestId,
    place: Option<McpCallPermit>,
}

impl Drop for UnansweredRequest {
    fn drop(&mut self) {
        let Some(request) = self.0.take() else {
            return;
        };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let RequestToCancel {
                    connection,
                    id,
                    place,
                } = request;
                connection.cancel(id, place.as_ref()).await;
                drop(place);
            });
        }
    }
}
