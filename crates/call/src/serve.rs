//! The call protocol as the endpoint knows it.

use std::sync::Arc;

use alknet_core::{
    AlpnSpec, AuthContext, BoxFuture, Connection, HandlerError, ProtocolHandler, StreamBudget,
};

use crate::connection::CallConnectionState;
use crate::dispatcher::Dispatcher;

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"alknet/call";

/// Serves `alknet/call`.
#[derive(Debug)]
pub struct CallHandler {
    dispatcher: Arc<Dispatcher>,
    alpns: [AlpnSpec; 1],
}

impl CallHandler {
    /// Serves the operations of `dispatcher`.
    #[must_use]
    pub fn new(dispatcher: Arc<Dispatcher>) -> Self {
        let limits = StreamBudget::CALL;
        Self {
            dispatcher,
            alpns: [AlpnSpec {
                limits,
                newest_wins: true,
                ..AlpnSpec::new(ALPN)
            }],
        }
    }
}

impl ProtocolHandler for CallHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            if let Some(identity) = &auth.identity {
                // The endpoint may have set it already; another name would be the endpoint's mistake.
                connection
                    .set_identity(Arc::clone(identity))
                    .map_err(|error| HandlerError::Internal(error.into()))?;
                connection.raise_budget(StreamBudget::CALL);
            }
            let dispatcher = Arc::clone(&self.dispatcher);
            CallConnectionState::new(connection, dispatcher, Some(&auth))
                .drive()
                .await
        })
    }

    fn drain(&self) -> BoxFuture<'static, ()> {
        let dispatcher = Arc::clone(&self.dispatcher);
        Box::pin(async move { dispatcher.drain().await })
    }
}
