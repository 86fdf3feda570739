//! The node that a verb asks: at the other end of a connection, or a peer of the hub that is there.

use std::time::Duration;

use alknet_call::{
    CallBody, CallConnection, CallError, CallOptions, ErrorCode, OperationSpec, OperationSummary,
    Subscription, SubscriptionEvent,
};
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::call::meant_operation;
use super::name_hint::{name_list, nearest_name};
use super::output::one_line;
use super::target::NodeRoute;
use crate::node::{ADMIN, scope_of};

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
        let options = self.addressed(options);
        let answer = self.connection.call_with(operation, input, &options).await;
        let answer = answer.map_err(|error| self.late(operation, options.timeout, error));
        self.explained(operation, answer).await
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
        let options = self.addressed(options);
        let mut input = input;
        let is_binary = self.takes_binary().await?;
        let (value, tail) = match is_binary {
            true => (json!({ "$bin": [0, data.len()] }), data),
            false => (Value::String(BASE64.encode(data)), &[][..]),
        };
        input[name] = value;
        let called = self
            .connection
            .call_with_data(operation, &input, tail, &options);
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

/// The part of a hub's answer about its peers that is read here.
#[derive(Debug, Deserialize)]
struct PeerRows<T> {
    peers: Vec<T>,
}

/// A peer over whose connection a hub passes calls on.
#[derive(Debug, Deserialize)]
struct AttachedPeerRow {
    peer: String,
    #[serde(default)]
    operations: Vec<OperationSummary>,
}

/// A peer that has enrolled with a hub.
#[derive(Debug, Deserialize)]
struct EnrolledPeerRow {
    peer_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    state: String,
}

/// What a hub says of its peers to this key; `None` where it refuses.
#[derive(Debug, Default)]
struct HubPeers {
    attached: Option<Vec<AttachedPeerRow>>,
    enrolled: Option<Vec<EnrolledPeerRow>>,
}

/// What a hub gives as `reason` in the details of `NOT_FOUND` where it tells the cases apart itself.
const REASONS: [&str; 3] = ["peer_not_attached", "unknown_operation", "unknown_peer"];

/// Whether an error of a hub says why a request was not passed on.
fn says_why(error: &CallError) -> bool {
    let reason = error.details.as_ref().and_then(|it| it["reason"].as_str());
    reason.is_some_and(|reason| REASONS.contains(&reason))
}

/// What an enrolled peer is in that an administrator has put out.
const REMOVED: &str = "removed";

impl HubPeers {
    /// The id behind a name or an id.
    fn row(&self, peer: &str) -> Option<&EnrolledPeerRow> {
        let mut rows = self.enrolled.iter().flatten();
        rows.find(|row| row.peer_id == peer || row.name == peer)
    }

    /// What an attached peer serves.
    fn operations_of(&self, peer: &str) -> Option<&[OperationSummary]> {
        let id = self.row(peer).map_or(peer, |row| &row.peer_id);
        let mut attached = self.attached.iter().flatten();
        let found = attached.find(|row| row.peer == id)?;
        Some(&found.operations)
    }

    /// Every name by which a peer can be asked for.
    fn names(&self) -> Vec<&str> {
        let enrolled = self.enrolled.iter().flatten();
        let there: Vec<_> = enrolled.filter(|row| row.state != REMOVED).collect();
        let mut names: Vec<_> = there.iter().map(|row| row.name.as_str()).collect();
        let is_named = |id: &str| self.enrolled.iter().flatten().any(|row| row.peer_id == id);
        let attached = self.attached.iter().flatten().map(|row| row.peer.as_str());
        names.extend(attached.filter(|id| !is_named(id)));
        names.sort_unstable();
        names
    }

    /// Why a peer is not attached, as far as the hub says.
    fn absent(&self, hub: &str, peer: &str) -> String {
        match self.row(peer) {
            Some(row) if row.state == REMOVED => {
                format!("'{peer}' is no peer of '{hub}' any more: an administrator removed it")
            }
            Some(row) => format!(
                "'{peer}' is not attached to '{hub}' at the moment: the hub calls it {}",
                one_line(&row.state)
            ),
            None => {
                let names = self.names();
                let known = match names.is_empty() {
                    true => ": no peer is attached to it".to_owned(),
                    false => {
                        let names = name_list(names.iter().copied());
                        format!("; it knows {}", one_line(&names))
                    }
                };
                // A misspelt name is enough of a reason.
                let is_like_one = nearest_name(names.into_iter(), peer).is_some();
                let mut rows = self.enrolled.iter().flatten();
                let removed = match !is_like_one && rows.any(|row| row.state == REMOVED) {
                    true => {
                        "; a removed peer has lost its name, and 'alknet hub list' shows its id"
                    }
                    false => "",
                };
                format!("'{hub}' has no peer '{peer}'{known}{removed}")
            }
        }
    }

    /// What `NOT_FOUND` means for this operation of this peer.
    fn explain(&self, hub: &str, peer: &str, operation: &str, error: CallError) -> CallError {
        let text = match (self.operations_of(peer), &self.attached) {
            // It is the operation's own answer.
            (Some(served), _) if served.iter().any(|it| it.name == operation) => return error,
            (Some(served), _) => not_served(hub, peer, operation, served),
            (None, Some(_)) => self.absent(hub, peer),
            (None, None) if self.enrolled.is_some() && !self.may_be_attached(peer) => {
                self.absent(hub, peer)
            }
            // This key may not see the peers, and the hub has said which it is.
            (None, None) if says_why(&error) => error.message,
            (None, None) => {
                // The protocol's own text blames the operation, which may be there.
                let said = match is_unknown_operation(&error, operation) {
                    true => String::new(),
                    false => format!("; the answer was: {}", error.message),
                };
                format!(
                    "'{hub}' passes no '{operation}' on to '{peer}': the peer is not attached, or does not \
                     serve this to the hub; the scope peer:list shows which{said}"
                )
            }
        };
        CallError::new(ErrorCode::NotFound, text)
    }

    fn may_be_attached(&self, peer: &str) -> bool {
        let state = self.row(peer).map(|row| row.state.as_str());
        matches!(state, Some("ready" | "degraded" | "draining"))
    }
}

/// An operation that a peer does not serve to its hub: the name is wrong, or the hub lacks a right there.
fn not_served(hub: &str, peer: &str, operation: &str, served: &[OperationSummary]) -> String {
    // The name of an operation that every node has is no mistake.
    let meant = match crate::node::has_operation(operation) {
        true => String::new(),
        false => meant_operation(served, operation),
    };
    let (meant, if_right) = match meant.is_empty() {
        true => (String::new(), "if"),
        false => (meant, "If"),
    };
    let of_peer = match hub.contains('@') {
        true => format!("{hub} --peer {peer}"),
        false => format!("{peer}@{hub}"),
    };
    let refused = format!("'{peer}' does not serve '{operation}' to '{hub}'");
    let listed = format!("'alknet ops {of_peer}' lists what it serves");
    match scope_of(operation) {
        // No configuration gives a peer this scope.
        Some(ADMIN) => format!(
            "{refused}: that needs the scope 'admin', which join.scopes cannot give; add the key of '{hub}' to \
             node.admin_keys on the worker, if the hub may administer the worker; {listed}"
        ),
        Some(scope) => {
            format!("{refused}: add the scope '{scope}' to join.scopes on the worker; {listed}")
        }
        None => format!(
            "{refused}; {meant}{if_right} the name is right, add its scope to join.scopes on the worker; {listed}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(name: &str) -> OperationSummary {
        let summary = json!({ "name": name, "namespace": "node", "op_type": "query" });
        serde_json::from_value(summary).expect("a summary")
    }

    fn attached(peer: &str, operations: &[&str]) -> AttachedPeerRow {
        AttachedPeerRow {
            peer: peer.to_owned(),
            operations: operations.iter().map(|name| summary(name)).collect(),
        }
    }

    fn enrolled(name: &str, state: &str) -> EnrolledPeerRow {
        EnrolledPeerRow {
            peer_id: format!("p-{name}"),
            name: name.to_owned(),
            state: state.to_owned(),
        }
    }

    /// What a user reads where the hub found nothing.
    fn said(peers: &HubPeers, peer: &str, operation: &str) -> String {
        let error = CallError::not_found(operation);
        let explained = peers.explain("attic", peer, operation, error);
        assert_eq!(explained.code, ErrorCode::NotFound);
        explained.message
    }

    fn hub() -> HubPeers {
        HubPeers {
            attached: Some(vec![
                attached("p-kitchen", &["node/info"]),
                attached("configured", &["node/info"]),
            ]),
            enrolled: Some(vec![
                enrolled("kitchen", "ready"),
                enrolled("hall", "offline"),
                enrolled("cellar", REMOVED),
            ]),
        }
    }

    #[test]
    fn an_unknown_peer_and_an_unserved_operation_give_different_errors() {
        let hub = hub();
        let unknown = said(&hub, "kitchn", "node/info");
        assert_eq!(
            unknown,
            "'attic' has no peer 'kitchn'; it knows configured, hall, kitchen"
        );
        assert!(said(&hub, "hall", "node/info").contains("not attached to 'attic'"));
        assert!(said(&hub, "cellar", "node/info").contains("an administrator removed it"));
        // A removed peer loses its name, so that this may be its former one.
        let removed = "; a removed peer has lost its name, and 'alknet hub list' shows its id";
        let known = "'attic' has no peer 'pantry'; it knows configured, hall, kitchen";
        assert_eq!(
            said(&hub, "pantry", "node/info"),
            format!("{known}{removed}")
        );
        let alone = HubPeers {
            attached: Some(Vec::new()),
            enrolled: Some(vec![enrolled("cellar", REMOVED)]),
        };
        let known = "'attic' has no peer 'pantry': no peer is attached to it";
        assert_eq!(
            said(&alone, "pantry", "node/info"),
            format!("{known}{removed}")
        );
        for peer in ["kitchen", "p-kitchen", "configured"] {
            for (operation, what) in [
                ("update/stage", "; if the name is right, add its scope"),
                (
                    "runtime/eval",
                    ": add the scope 'runtime:debug' to join.scopes",
                ),
                ("token/make", "; add the key of 'attic' to node.admin_keys"),
            ] {
                let text = said(&hub, peer, operation);
                let refused = format!("does not serve '{operation}' to 'attic'");
                assert!(text.contains(&refused) && text.contains(what), "{text}");
            }
        }
        let text = said(&hub, "kitchen", "node/inf");
        assert_eq!(
            text,
            "'kitchen' does not serve 'node/inf' to 'attic'; did you mean 'node/info'? If the name is right, add its \
             scope to join.scopes on the worker; 'alknet ops kitchen@attic' lists what it serves"
        );
    }

    #[test]
    fn the_own_answer_of_an_operation_is_left_as_it_is() {
        let error = CallError::new(ErrorCode::NotFound, "no such token");
        let kept = hub().explain("attic", "kitchen", "node/info", error.clone());
        assert_eq!(kept, error);
    }

    #[test]
    fn a_hub_that_shows_less_is_quoted() {
        let enrolled_only = HubPeers {
            attached: None,
            ..hub()
        };
        assert!(said(&enrolled_only, "kitchn", "a/b").contains("it knows hall, kitchen"));
        assert!(said(&enrolled_only, "hall", "a/b").contains("offline"));
        for (peers, peer) in [
            (&enrolled_only, "kitchen"),
            (&HubPeers::default(), "kitchn"),
        ] {
            let text = said(peers, peer, "a/b");
            assert!(text.contains("scope peer:list shows which"), "{text}");
            assert!(!text.contains("no operation"), "{text}");
        }
        let why = CallError::new(ErrorCode::NotFound, "this node knows no peer 'kitchn'");
        let why = why.with_details(json!({ "reason": "unknown_peer" }));
        let passed_on = HubPeers::default().explain("attic", "kitchn", "a/b", why);
        assert_eq!(passed_on.message, "this node knows no peer 'kitchn'");
        let own = CallError::new(ErrorCode::NotFound, "no such token");
        let quoted = HubPeers::default().explain("attic", "kitchen", "a/b", own);
        assert!(quoted.message.ends_with("no such token"), "{quoted}");
        let attached_only = HubPeers {
            enrolled: None,
            ..hub()
        };
        assert!(said(&attached_only, "x", "a/b").contains("it knows configured, p-kitchen"));
    }

    #[test]
    fn operations_are_found_by_id_and_by_name() {
        let hub = hub();
        for peer in ["kitchen", "p-kitchen"] {
            let found = hub.operations_of(peer).expect("it is attached");
            assert_eq!(found, [summary("node/info")], "{peer}");
        }
        assert!(hub.operations_of("hall").is_none());
    }
}
