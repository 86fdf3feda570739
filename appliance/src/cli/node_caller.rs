//! The node that a verb asks: at the other end of a connection, or a peer of the hub that is there.

mod hub_peers;

use std::time::Duration;

use alknet_call::{
    CallBody, CallConnection, CallError, CallOptions, ErrorCode, OperationSpec, OperationSummary,
    Subscription, SubscriptionEvent,
};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::target::NodeRoute;
use hub_peers::{AttachedPeerRow, EnrolledPeerRow, HubPeers, NOT_ATTACHED, PeerRows};

/// What a hub answers about the peers that are attached to it.
const ATTACHED: &str = "services/list-peers";
/// What a hub answers about the peers that have enrolled.
const ENROLLED: &str = "hub/peers";
/// What the names of the operations begin with that only hubs have.
const OF_HUBS: &str = "hub/";
/// What lists the operations of a node.
const LISTED: &str = "services/list";
/// What describes one of them.
const DESCRIBED: &str = "services/schema";
/// What every hub serves to each of its callers.
const WHOAMI: &str = "hub/whoami";

/// The node that a verb asks. Every request of a verb goes through here, and with it the name of the peer that it
/// is for: a verb cannot ask the hub in the place of its peer.
pub(crate) struct NodeCaller {
    connection: CallConnection,
    /// The dialled node as the user calls it.
    name: String,
    /// The hub as the user calls it, and its peer that is asked.
    behind: Option<(String, String)>,
    /// How long the command waits for an answer.
    timeout: Duration,
    /// Whether the dialled node takes binary data, once it was asked.
    takes_binary: OnceCell<bool>,
}

/// Whether an error says nothing about the request: the connection ended, or no answer came.
pub(crate) fn is_lost(error: &CallError) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout)
}

/// Whether the details of a hub's error say that the peer is not attached to it. A worker dials its hub again.
pub(crate) fn is_peer_away(details: Option<&Value>) -> bool {
    details.is_some_and(|details| details["reason"] == NOT_ATTACHED)
}

impl NodeCaller {
    pub(super) fn new(connection: CallConnection, route: &NodeRoute, timeout: Duration) -> Self {
        let behind = route.peer.clone().map(|peer| (route.name.clone(), peer));
        Self {
            connection,
            name: route.name.clone(),
            behind,
            timeout,
            takes_binary: OnceCell::new(),
        }
    }

    /// The hub that passes the requests on, as the user calls it.
    pub(crate) fn hub(&self) -> Option<&str> {
        self.behind.as_ref().map(|(hub, _)| hub.as_str())
    }

    /// Whether a hub passes the requests on.
    pub(crate) fn is_behind_hub(&self) -> bool {
        self.behind.is_some()
    }

    /// Whether the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.connection.is_closed()
    }

    /// Calls a query or mutation, within the time of the command.
    ///
    /// # Errors
    /// What the node answers, or its hub; `UNAVAILABLE` when the connection is lost.
    pub(crate) async fn call(&self, operation: &str, input: &Value) -> Result<CallBody, CallError> {
        let options = CallOptions {
            timeout: Some(self.timeout),
            ..CallOptions::default()
        };
        self.call_with(operation, input, options).await
    }

    /// Like `call`, with options.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub(crate) async fn call_with(
        &self,
        operation: &str,
        input: &Value,
        options: CallOptions,
    ) -> Result<CallBody, CallError> {
        self.send(operation, input, &[], options).await
    }

    /// Like `call_with`, with binary data in the place of its base64: it is the member `name` of the input.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub(crate) async fn call_with_data(
        &self,
        operation: &str,
        input: Value,
        (name, data): (&str, &[u8]),
        options: CallOptions,
    ) -> Result<CallBody, CallError> {
        let mut input = input;
        let is_binary = self.takes_binary().await?;
        let (value, tail) = match is_binary {
            true => (json!({ "$bin": [0, data.len()] }), data),
            false => (Value::String(BASE64.encode(data)), &[][..]),
        };
        input[name] = value;
        self.send(operation, &input, tail, options).await
    }

    /// Sends a request, to the peer if there is one, with `tail` as the binary data to which the input refers.
    async fn send(
        &self,
        operation: &str,
        input: &Value,
        tail: &[u8],
        options: CallOptions,
    ) -> Result<CallBody, CallError> {
        let options = self.addressed(options);
        let called = self
            .connection
            .call_with_data(operation, input, tail, &options);
        let answer = called.await;
        let answer = answer.map_err(|error| self.late(operation, options.timeout, error));
        self.explained(operation, answer).await
    }

    /// Whether the node takes binary data, which it is asked once. Base64 needs no answer to this.
    async fn takes_binary(&self) -> Result<bool, CallError> {
        let asked = self.takes_binary.get_or_try_init(async || {
            match self.connection.takes_binary().await {
                Err(error) if is_lost(&error) => Err(error),
                answer => Ok(answer.unwrap_or(false)),
            }
        });
        asked.await.copied()
    }

    /// Like `call_with`, and calls again where the call is safe to repeat and the error says that it may help. What a
    /// peer of a hub serves is not known, so that nothing is repeated there.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub(crate) async fn call_retrying(
        &self,
        operation: &str,
        input: &Value,
        options: CallOptions,
    ) -> Result<CallBody, CallError> {
        if self.behind.is_some() {
            return self.call_with(operation, input, options).await;
        }
        let answer = self.connection.call_retrying(operation, input, &options);
        let answer = answer.await;
        answer.map_err(|error| self.late(operation, options.timeout, error))
    }

    /// The error of an answer that did not come in time, with what was asked and how long.
    fn late(&self, operation: &str, timeout: Option<Duration>, mut error: CallError) -> CallError {
        // An operation may have a deadline of its own, and says what passed.
        let is_ours = error.code == ErrorCode::Timeout
            && error.message == CallError::timeout().message
            && error.details.is_none();
        if let Some(timeout) = timeout.filter(|_| is_ours) {
            let seconds = timeout.as_secs_f64();
            error.message = format!("'{operation}' gave no answer within {seconds} s");
            if timeout == self.timeout {
                error.message.push_str("; --timeout TIME waits longer");
            }
        }
        error
    }

    /// What comes of a question that takes no options, within the time of the command.
    async fn in_time<T>(
        &self,
        operation: &str,
        asked: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let outcome = tokio::time::timeout(self.timeout, asked).await;
        let outcome = outcome.unwrap_or_else(|_| Err(CallError::timeout()));
        outcome.map_err(|error| self.late(operation, Some(self.timeout), error))
    }

    /// Makes several calls at the same time; returns the outcome of each, in their order.
    pub(crate) async fn call_all<'c>(
        &self,
        calls: impl Iterator<Item = (&'c str, &'c Value, CallOptions)>,
    ) -> Vec<Result<CallBody, CallError>> {
        let mut batch = self.connection.batch();
        let mut operations = Vec::new();
        for (operation, input, options) in calls {
            batch.add_with(operation, input, &self.addressed(options));
            operations.push(operation);
        }
        let mut outcomes = Vec::with_capacity(operations.len());
        for (operation, outcome) in operations.into_iter().zip(batch.send().await) {
            outcomes.push(self.explained(operation, outcome).await);
        }
        outcomes
    }

    /// Starts a subscription. Dropping it aborts.
    ///
    /// # Errors
    /// The connection is gone; everything else comes as an event.
    pub(crate) async fn subscribe(
        &self,
        operation: &str,
        input: &Value,
        options: CallOptions,
    ) -> Result<NodeEvents<'_>, CallError> {
        let options = CallOptions {
            timeout: None,
            ..self.addressed(options)
        };
        let events = self.connection.subscribe_with(operation, input, &options);
        Ok(NodeEvents {
            events: events.await?,
            node: self,
            operation: operation.to_owned(),
        })
    }

    /// Every operation that this key may call, of a peer of a hub those that it serves to the hub.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub(crate) async fn operations(&self) -> Result<Vec<OperationSummary>, CallError> {
        let Some((hub, peer)) = &self.behind else {
            let listed = self.connection.operations("");
            return self.in_time(LISTED, listed).await;
        };
        let attached = self.attached().await?;
        let peers = HubPeers {
            attached: Some(attached),
            enrolled: self.enrolled().await,
        };
        match peers.operations_of(peer) {
            Some(operations) => Ok(operations.to_vec()),
            None => Err(CallError::new(ErrorCode::NotFound, peers.absent(hub, peer))),
        }
    }

    /// The whole description of an operation. A hub does not describe what its peers serve.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call); `INVALID_INPUT` for a peer of a hub.
    pub(crate) async fn schema(&self, operation: &str) -> Result<OperationSpec, CallError> {
        match &self.behind {
            None => {
                let described = self.connection.schema(operation);
                self.in_time(DESCRIBED, described).await
            }
            Some((hub, _)) => Err(CallError::invalid_input(format!(
                "'{hub}' does not describe the operations of its peers"
            ))),
        }
    }

    /// Requests that the node takes from this side at once, as far as it says so.
    pub(crate) async fn requests_max(&self) -> Option<usize> {
        self.connection.ask_requests_max().await.ok().flatten()
    }

    fn addressed(&self, options: CallOptions) -> CallOptions {
        CallOptions {
            peer: self.behind.as_ref().map(|(_, peer)| peer.clone()),
            ..options
        }
    }

    /// A hub answers `NOT_FOUND` for a peer that it does not know, for one that is not attached, and for an
    /// operation that the peer does not serve to it. Of these, the error then says which it is.
    async fn explained(
        &self,
        operation: &str,
        answer: Result<CallBody, CallError>,
    ) -> Result<CallBody, CallError> {
        match answer {
            Err(error) => Err(self.explain(operation, error).await),
            answer => answer,
        }
    }

    async fn explain(&self, operation: &str, error: CallError) -> CallError {
        let Some((hub, peer)) = &self.behind else {
            return self
                .explain_hub(operation.trim_start_matches('/'), error)
                .await;
        };
        // Only this answer is ambiguous: it may mean the hub's table, the peer or the operation.
        if error.code != ErrorCode::NotFound {
            return error;
        }
        let asked = self.connection.call(WHOAMI, &Value::Null).await;
        // Every hub has this operation, for any key.
        if asked.is_err_and(|error| error.code == ErrorCode::NotFound) {
            let text = format!("'{hub}' is no hub: it passes no calls on to peers");
            return CallError::new(ErrorCode::NotFound, text);
        }
        let peers = HubPeers {
            attached: self.attached().await.ok(),
            enrolled: self.enrolled().await,
        };
        peers.explain(hub, peer, operation.trim_start_matches('/'), error)
    }

    /// A node that is no hub has no operation of a hub, and says no more than that.
    async fn explain_hub(&self, operation: &str, error: CallError) -> CallError {
        let is_missing = operation.starts_with(OF_HUBS) && is_unknown_operation(&error, operation);
        if !is_missing || operation == WHOAMI {
            return error;
        }
        let asked = self.connection.call(WHOAMI, &Value::Null).await;
        match asked {
            Err(answer) if answer.code == ErrorCode::NotFound => {
                CallError::new(ErrorCode::NotFound, no_hub(&self.name))
            }
            _ => error,
        }
    }

    /// The attached peers of the hub, with what this key may call there.
    async fn attached(&self) -> Result<Vec<AttachedPeerRow>, CallError> {
        let input = json!({});
        let answer: PeerRows<AttachedPeerRow> =
            self.connection.call_typed(ATTACHED, &input).await?;
        Ok(answer.peers)
    }

    /// The peers that have enrolled with the hub, where this key may see them.
    async fn enrolled(&self) -> Option<Vec<EnrolledPeerRow>> {
        let answer = self.connection.call(ENROLLED, &Value::Null).await.ok()?;
        let answer: PeerRows<EnrolledPeerRow> = answer.parse().ok()?;
        Some(answer.peers)
    }
}

/// What a user reads for the operation of a hub at another node.
fn no_hub(node: &str) -> String {
    format!("'{node}' is no hub: '[hub] enabled = true' in its configuration makes it one")
}

/// Whether the node answered that it has no such operation. `operation` has no slash in front.
pub(crate) fn is_unknown_operation(error: &CallError, operation: &str) -> bool {
    error.code == ErrorCode::NotFound && error.message == CallError::not_found(operation).message
}

/// The events of a subscription. Ends after its first error; dropping it aborts.
pub(crate) struct NodeEvents<'n> {
    events: Subscription,
    node: &'n NodeCaller,
    operation: String,
}

impl NodeEvents<'_> {
    /// The next event; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<SubscriptionEvent, CallError>> {
        match self.events.next().await? {
            Err(error) => Some(Err(self.node.explain(&self.operation, error).await)),
            event => Some(event),
        }
    }
}
