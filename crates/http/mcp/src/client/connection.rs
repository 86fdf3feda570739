//! A connection to one server, and requests on it that nothing waits for any more.

use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{
    CancelledNotificationParam, ClientRequest, ProtocolVersion, RequestId, ServerResult,
};
use rmcp::service::{Peer, PeerRequestOptions, RunningService, ServiceError};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::client::permits::McpCallPermit;
use crate::client::remote::RefusingMcpClient;
use crate::limits::CANCEL_TIMEOUT;

/// How long the library lets the connection send what it does not wait for. This module gives up before.
pub(super) const CONTROL_TIMEOUT: Duration = CANCEL_TIMEOUT.saturating_mul(2);

/// A connection, which ends with the last of these that is dropped.
pub(super) struct McpConnection {
    running: RunningService<RoleClient, RefusingMcpClient>,
    /// The library cancels one request after the other. The time for one begins when it is its turn.
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
    /// `place` until that is sent: what the library has of a request it forgets with it.
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

    /// Tells the server that nothing waits for this answer. A server that does not take that in time has lost its
    /// connection: otherwise what it has not taken would keep its places, one after the other.
    async fn cancel(&self, id: RequestId) {
        let _turn = self.cancelling.lock().await;
        if self.is_over() {
            return;
        }
        let why = "the caller does not wait any more".to_owned();
        let cancelled = CancelledNotificationParam::new(Some(id), Some(why));
        let sent = self.peer().notify_cancelled(cancelled);
        // What the server answers to it means nothing.
        if timeout(CANCEL_TIMEOUT, sent).await.is_err() {
            let seconds = CANCEL_TIMEOUT.as_secs();
            tracing::warn!(
                seconds,
                "a tool server does not take a cancellation; its connection ends"
            );
            self.running.cancellation_token().cancel();
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
                connection.cancel(id).await;
                drop(place);
            });
        }
    }
}
