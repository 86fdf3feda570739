//! What a hub says of its peers, and what its `NOT_FOUND` means by that.

use alknet_call::{CallError, ErrorCode, OperationSummary};
use serde::Deserialize;

use super::is_unknown_operation;
use crate::cli::call::meant_operation;
use crate::cli::name_hint::{name_list, nearest_name};
use crate::cli::output::one_line;
use crate::node::{ADMIN, scope_of};

/// The part of a hub's answer about its peers that is read here.
#[derive(Debug, Deserialize)]
pub(super) struct PeerRows<T> {
    pub(super) peers: Vec<T>,
}

/// A peer over whose connection a hub passes calls on.
#[derive(Debug, Deserialize)]
pub(super) struct AttachedPeerRow {
    peer: String,
    #[serde(default)]
    operations: Vec<OperationSummary>,
}

/// A peer that has enrolled with a hub.
#[derive(Debug, Deserialize)]
pub(super) struct EnrolledPeerRow {
    peer_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    state: String,
}

/// What a hub says of its peers to this key; `None` where it refuses.
#[derive(Debug, Default)]
pub(super) struct HubPeers {
    pub(super) attached: Option<Vec<AttachedPeerRow>>,
    pub(super) enrolled: Option<Vec<EnrolledPeerRow>>,
}

/// The reason of a peer that the hub knows, and that is not connected at the moment.
pub(super) const NOT_ATTACHED: &str = "peer_not_attached";
/// What a hub gives as `reason` in the details of `NOT_FOUND` where it tells the cases apart itself.
const REASONS: [&str; 3] = [NOT_ATTACHED, "unknown_operation", "unknown_peer"];

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
    pub(super) fn operations_of(&self, peer: &str) -> Option<&[OperationSummary]> {
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
    pub(super) fn absent(&self, hub: &str, peer: &str) -> String {
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
    pub(super) fn explain(
        &self,
        hub: &str,
        peer: &str,
        operation: &str,
        error: CallError,
    ) -> CallError {
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
        // A command that waits for a peer goes by the reason of the hub.
        CallError {
            details: error.details,
            ..CallError::new(ErrorCode::NotFound, text)
        }
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
    use serde_json::json;

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
        assert_eq!(
            passed_on.details.expect("the reason")["reason"],
            "unknown_peer"
        );
        let own = CallError::new(ErrorCode::NotFound, "no such token");
        let quoted = HubPeers::default().explain("attic", "kitchen", "a/b", own);
        assert!(quoted.message.ends_with("no such token"), "{quoted}");
        let attached_only = HubPeers {
            enrolled: None,
            ..hub()
        };
        assert!(said(&attached_only, "x", "a/b").contains("it knows configured, p-kitchen"));
    }

    /// A command that waits for a worker to dial again goes by the reason of the hub.
    #[test]
    fn the_reason_of_a_hub_stays_beside_an_explanation() {
        let away = CallError::new(ErrorCode::NotFound, "the peer 'hall' is not attached");
        let away = away.with_details(json!({ "reason": NOT_ATTACHED }));
        for peers in [hub(), HubPeers::default()] {
            let explained = peers.explain("attic", "hall", "update/write", away.clone());
            assert_eq!(explained.details, away.details, "{explained}");
        }
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
