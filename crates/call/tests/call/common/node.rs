//! A node that serves those operations, over both carriages.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::limits::{PeerLimits, PeerTimeouts};
use alknet_call::{ALPN, CallClient, CallConnection, CallHandler, Dispatcher};
use alknet_core::{
    AuthContext, Carriage, Connection, HandlerError, Identity, ProtocolHandler, memory_pair,
};
use alknet_test_support::deadline;

use super::{OperationProbe, TokenIdentities, identity, registry, single_pair};

/// A node and the probe in its operations.
pub struct CallTestNode {
    pub dispatcher: Arc<Dispatcher>,
    pub handler: Arc<CallHandler>,
    pub probe: Arc<OperationProbe>,
    pub tokens: Arc<TokenIdentities>,
}

impl Default for CallTestNode {
    fn default() -> Self {
        Self::new()
    }
}

impl CallTestNode {
    pub fn new() -> Self {
        Self::with_limits(PeerLimits::AUTHENTICATED)
    }

    pub fn with_limits(limits: PeerLimits) -> Self {
        Self::with(limits, PeerTimeouts::default())
    }

    /// A node that waits for a peer no longer than a moment.
    pub fn impatient() -> Self {
        let moment = deadline(Duration::from_millis(30));
        let patience = PeerTimeouts {
            partial_frame: moment,
            blocked_stream: moment,
            // Later than the end of a stream that has half a frame.
            unknown_idle: 4 * moment,
            goodbye: moment,
            ..PeerTimeouts::default()
        };
        Self::with(PeerLimits::AUTHENTICATED, patience)
    }

    /// A node that closes no connection before the peer has the last events on it.
    pub fn patient() -> Self {
        let patience = PeerTimeouts {
            goodbye: deadline(Duration::from_secs(60)),
            ..PeerTimeouts::default()
        };
        Self::with(PeerLimits::AUTHENTICATED, patience)
    }

    pub fn with_patience(patience: PeerTimeouts) -> Self {
        Self::with(PeerLimits::AUTHENTICATED, patience)
    }

    fn with(limits: PeerLimits, patience: PeerTimeouts) -> Self {
        let probe = Arc::default();
        let tokens: Arc<TokenIdentities> = Arc::default();
        let dispatcher = Dispatcher::new(registry(&probe))
            .with_identities(Arc::clone(&tokens) as _)
            .with_limits(limits)
            .with_patience(patience)
            .with_node("test-node");
        Self {
            tokens,
            ..Self::with_dispatcher(dispatcher, probe)
        }
    }

    /// Serves a dispatcher that the test made.
    pub fn with_dispatcher(dispatcher: Dispatcher, probe: Arc<OperationProbe>) -> Self {
        let dispatcher = Arc::new(dispatcher);
        Self {
            handler: Arc::new(CallHandler::new(Arc::clone(&dispatcher))),
            dispatcher,
            probe,
            tokens: Arc::default(),
        }
    }

    /// Connects to `hub`, which knows this node as `who`; this node knows the hub as `hub`.
    pub fn join(&self, hub: &Self, carriage: Carriage, who: Arc<Identity>) -> CallConnection {
        let (dialled, _) = hub.serve(carriage, Some(who));
        let known = dialled.set_identity(identity("hub", &["*"]));
        known.expect("no key was known before");
        CallClient::new(Arc::clone(&self.dispatcher)).attach(dialled, None)
    }

    /// Serves one end of a pair; returns the other, and the result of serving.
    pub fn serve(
        &self,
        carriage: Carriage,
        who: Option<Arc<Identity>>,
    ) -> (
        Connection,
        tokio::task::JoinHandle<Result<(), HandlerError>>,
    ) {
        let (dialled, _, served) = self.accept(carriage, who);
        (dialled, served)
    }

    /// The same, returning the served end as well.
    pub(super) fn accept(
        &self,
        carriage: Carriage,
        who: Option<Arc<Identity>>,
    ) -> (
        Connection,
        Connection,
        tokio::task::JoinHandle<Result<(), HandlerError>>,
    ) {
        let (dialled, accepted) = match carriage {
            Carriage::Tcp => single_pair(),
            _ => memory_pair(ALPN),
        };
        let served = self.serve_end(&accepted, who);
        (dialled, accepted, served)
    }

    /// Serves the accepting end of any connection.
    pub fn serve_end(
        &self,
        accepted: &Connection,
        who: Option<Arc<Identity>>,
    ) -> tokio::task::JoinHandle<Result<(), HandlerError>> {
        let auth = AuthContext {
            identity: who,
            key: None,
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: accepted.carriage(),
            early_data: false,
        };
        let handler: Arc<dyn ProtocolHandler> = Arc::clone(&self.handler) as _;
        tokio::spawn(handler.handle(accepted.clone(), auth))
    }

    pub fn client(&self, carriage: Carriage, who: Option<Arc<Identity>>) -> CallConnection {
        let (dialled, _) = self.serve(carriage, who);
        CallClient::without_operations().attach(dialled, None)
    }
}

/// Both carriages: many streams, and one.
pub const CARRIAGES: [Carriage; 2] = [Carriage::Memory, Carriage::Tcp];
