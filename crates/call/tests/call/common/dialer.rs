//! A dialer that reaches a node of this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{CallClient, DialCredentials, OnConnect, ReconnectingClient};
use alknet_core::{
    BoxFuture, Carriage, CloseCode, Connection, DialError, DialErrorKind, DialRequest,
    DialedConnection, Dialer, Identity, PeerAddr, PeerVerification,
};

use super::{CallTestNode, SERVER_KEY};

/// Dials a node of this process.
pub struct TestDialer {
    pub node: Arc<CallTestNode>,
    pub carriage: Carriage,
    pub who: Option<Arc<Identity>>,
    /// The number of dials that fail before one works.
    pub failing: AtomicUsize,
    pub dials: AtomicUsize,
    accepted: std::sync::Mutex<Option<Connection>>,
}

impl TestDialer {
    pub fn new(carriage: Carriage, who: Option<Arc<Identity>>) -> Arc<Self> {
        Arc::new(Self {
            node: Arc::new(CallTestNode::new()),
            carriage,
            who,
            failing: AtomicUsize::new(0),
            dials: AtomicUsize::new(0),
            accepted: std::sync::Mutex::default(),
        })
    }

    /// A client that dials with this.
    pub fn client(self: &Arc<Self>) -> CallClient {
        CallClient::without_operations().with_dialer(Arc::clone(self) as _)
    }

    /// An arbitrary address: this dialer reaches one node only.
    pub fn addr() -> PeerAddr {
        format!("{SERVER_KEY}@node.test")
            .parse()
            .expect("an address")
    }

    pub fn reconnecting(self: &Arc<Self>, on_connect: Option<OnConnect>) -> ReconnectingClient {
        let credentials = DialCredentials::default();
        ReconnectingClient::start(self.client(), Self::addr(), credentials, on_connect)
    }

    /// Makes the node end the connection.
    pub fn hang_up(&self, code: CloseCode) {
        let accepted = self.accepted.lock().expect("no panics here").take();
        accepted.expect("a connection").close(code, "");
    }
}

impl std::fmt::Debug for TestDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestDialer")
    }
}

impl Dialer for TestDialer {
    fn connect(&self, request: DialRequest) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let less = |n: usize| n.checked_sub(1);
        let fails = self
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        let result = if request.expect != PeerVerification::Pinned(vec![SERVER_KEY]) {
            Err(DialError::new(DialErrorKind::Impostor, "another key"))
        } else if fails.is_ok() {
            Err(DialError::new(DialErrorKind::Unreachable, "no route"))
        } else {
            let (dialled, accepted, _) = self.node.accept(self.carriage, self.who.clone());
            *self.accepted.lock().expect("no panics here") = Some(accepted);
            Ok(DialedConnection {
                connection: dialled,
                keys: vec![SERVER_KEY],
            })
        };
        Box::pin(async {
            // A dial over a network yields, too: a caller that dials without a pause must not keep the thread.
            tokio::task::yield_now().await;
            result
        })
    }
}
