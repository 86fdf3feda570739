//! The calls of the node to its own port, by which PID 1 finds out whether a version on trial serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallError, ErrorCode, OperationListing};
use alknet_core::{Carriage, CloseReason};
use alknet_endpoint::{EndpointDialError, EndpointServer};
use alknet_init::control::{InitMessage, SelfCallResult};
use alknet_tls::NodeKey;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Time for a handshake and its call. Emulated machines on busy hosts are slow.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// The operation that the node calls. Every caller may call it, and it changes nothing.
const OPERATION: &str = "services/list";

/// Calls the node's own port as a peer with the node's key does.
#[derive(Clone)]
pub(crate) struct SelfCaller {
    server: Arc<EndpointServer>,
    key: NodeKey,
    client: CallClient,
    patience: Duration,
    /// One permit, because one call is enough at a time.
    turn: Arc<Semaphore>,
}

impl SelfCaller {
    /// Calls `server`, which has `key`.
    pub(crate) fn new(server: Arc<EndpointServer>, key: NodeKey) -> Self {
        Self {
            server,
            key,
            client: CallClient::without_operations(),
            patience: ANSWERED_WITHIN,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Begins a call in a task of its own, which sends PID 1 the result. Does nothing while one is under way.
    pub(crate) fn begin(&self, to_init: &mpsc::Sender<InitMessage>) {
        let Ok(permit) = Arc::clone(&self.turn).try_acquire_owned() else {
            return;
        };
        let (caller, to_init) = (self.clone(), to_init.clone());
        tokio::spawn(async move {
            let result = caller.call().await;
            drop(permit);
            // If PID 1 is gone, this process is about to end, too.
            to_init
                .send(InitMessage::CalledItself { result })
                .await
                .ok();
        });
    }

    /// Calls the node over both carriages at each address of its port, all at once: however many addresses there are,
    /// the time for one call is that for all. The worst result counts.
    async fn call(&self) -> SelfCallResult {
        let addresses = self.server.own_addresses();
        if addresses.is_empty() {
            let reason = "the machine has no address of the port".to_owned();
            return SelfCallResult::Unanswered { reason };
        }
        let calls = addresses.into_iter().flat_map(|address| {
            [Carriage::Quic, Carriage::Tcp].map(|carriage| self.call_over(carriage, address))
        });
        let results = join_all(calls).await;
        results.into_iter().fold(SelfCallResult::Answered, worse)
    }

    async fn call_over(&self, carriage: Carriage, address: SocketAddr) -> SelfCallResult {
        let place = || format!("over {carriage} at {address}");
        match timeout(self.patience, self.ask(carriage, address)).await {
            Ok(Ok(())) => SelfCallResult::Answered,
            Ok(Err(SelfCallError::Failed(error))) => SelfCallResult::Failed {
                reason: format!("{}: {error}", place()),
            },
            Ok(Err(SelfCallError::Busy(error))) => SelfCallResult::Unanswered {
                reason: format!("{}: {error}", place()),
            },
            Err(_) => SelfCallResult::Unanswered {
                reason: format!("{}: no answer in {:?}", place(), self.patience),
            },
        }
    }

    /// Dials one socket, and calls the operation. The answer has to name the node.
    async fn ask(&self, carriage: Carriage, address: SocketAddr) -> Result<(), SelfCallError> {
        let dialled = self.server.dial_itself(carriage, address, &self.key, ALPN);
        let connection = self.client.attach(dialled.await?, None);
        let answer = connection.call(OPERATION, &json!({ "limit": 1 })).await?;
        let listing: OperationListing = answer.parse()?;
        let own = self.key.public().to_string();
        match listing.protocol.node {
            node if node == own => Ok(()),
            node => Err(SelfCallError::Failed(format!("'{node}' answered"))),
        }
    }
}

/// Why a call was not answered.
#[derive(Debug)]
enum SelfCallError {
    /// Clients can cause this, because they took what the call needed.
    Busy(String),
    Failed(String),
}

impl From<EndpointDialError> for SelfCallError {
    fn from(error: EndpointDialError) -> Self {
        use EndpointDialError as E;
        let text = error.to_string();
        match error {
            // QUIC refuses first packets while too many wait.
            E::Refused {
                reason: CloseReason::Peer(..),
                ..
            }
            // The process has no descriptor left.
            | E::Local(_)
            | E::TimedOut { .. } => Self::Busy(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<CallError> for SelfCallError {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        match error.code {
            ErrorCode::Overloaded | ErrorCode::Timeout => Self::Busy(text),
            _ => Self::Failed(text),
        }
    }
}

/// The one of two results that says more against the node.
fn worse(first: SelfCallResult, second: SelfCallResult) -> SelfCallResult {
    match (&first, &second) {
        (SelfCallResult::Failed { .. }, _) | (_, SelfCallResult::Answered) => first,
        (SelfCallResult::Unanswered { .. }, SelfCallResult::Unanswered { .. }) => first,
        _ => second,
    }
}

#[cfg(test)]
mod tests;
