//! `hub/invoke` and `hub/subscribe`: call operations of peers, for clients that can only name an
//! operation of the hub.

use std::collections::{BTreeMap, HashSet};

use alknet_call::{
    AccessControl, CallBody, CallError, CallForwarder, Ctx, HandlerKind, Idempotence,
    OperationSpec, OperationType, Registration,
};
use alknet_core::PeerId;
use futures_util::stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::HubContext;

/// Scope of callers that may have requests passed on. The namespace of the operation follows it,
/// and then a peer's id if the scope is for that peer only.
const SCOPE: &str = "hub:invoke";
/// Stands for the peer that is least busy, even if a peer has this name.
const ANY: &str = "any";
/// Maximum number of labels that a caller may require of a peer.
const LABELS_MAX: usize = alknet_hub::LABELS_MAX;
/// Maximum length of an operation's name, in characters.
const OPERATION_CHARS_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InvokeInput {
    peer: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    operation: String,
    /// The input goes to the peer unchanged, and the hub does not parse it.
    #[serde(default, rename = "input")]
    _input: IgnoredAny,
}

/// `hub/invoke`
pub(super) fn invoke(hub: HubContext) -> Registration {
    let mut spec = spec(
        "hub/invoke",
        OperationType::Mutation,
        "Calls a query or mutation of a peer: one by its id or name, or any that serves it.",
    );
    // This hub runs a request once for each key. If the peer's operation takes keys, the key goes
    // to the peer, which then runs the request once as well. For any other peer, the hub repeats no
    // request that the peer has received.
    spec.idempotent = Idempotence::Keyed;
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        // This runs before the future is made, because the future would keep all of the input until
        // the peer answers.
        let forwarder = hub.forwarder(&input);
        async move {
            let (forwarder, input) = forwarder?;
            forwarder.call(input, &ctx).await
        }
    });
    Registration::new(spec, handler).passing_errors_on()
}

/// `hub/subscribe`
pub(super) fn subscribe(hub: HubContext) -> Registration {
    let spec = spec(
        "hub/subscribe",
        OperationType::Subscription,
        "Subscribes to an operation of a peer: one by its id or name, or any that serves it.",
    );
    let handler =
        HandlerKind::stream(
            move |input: CallBody, ctx: Ctx| match hub.forwarder(&input) {
                Ok((forwarder, input)) => forwarder.subscribe(input, &ctx),
                Err(error) => Box::pin(stream::iter([Err(error)])),
            },
        );
    Registration::new(spec, handler).passing_errors_on()
}

/// The handler decides for each request, by its input, whether the caller may send it. The
/// specification only requires an identity.
fn spec(name: &str, op_type: OperationType, what: &str) -> OperationSpec {
    OperationSpec::new(name, op_type, what)
        .with_input(json!({
            "type": "object",
            "required": ["peer", "operation"],
            "additionalProperties": false,
            "properties": {
                "peer": { "type": "string", "minLength": 1, "maxLength": 64,
                          "description": "The id or the name of the peer; 'any' for the least busy peer that serves the operation" },
                "labels": { "type": "object", "maxProperties": LABELS_MAX,
                            "additionalProperties": { "type": "string" },
                            "description": "With 'any': labels that the peer must have" },
                "operation": { "type": "string", "minLength": 1, "maxLength": OPERATION_CHARS_MAX },
                "input": { "description": "The input of the operation; null unless given" },
            }
        }))
        .with_identity()
}

impl HubContext {
    fn forwarder(&self, input: &CallBody) -> Result<(CallForwarder, CallBody), CallError> {
        // The parser skips the input that is passed on, so that its size costs no memory here.
        let request: InvokeInput = serde_json::from_slice(input.raw())
            .map_err(|error| CallError::invalid_input(error.to_string()))?;
        let operation = request.operation.trim_start_matches('/').to_owned();
        let namespace = operation.split('/').next().unwrap_or_default().to_owned();
        let required_access = move |peer: Option<&str>| required_access(&namespace, peer);
        let forwarder = match (request.peer.as_str(), request.labels.is_empty()) {
            (ANY, true) => CallForwarder::to_any(|_| true, &operation, required_access),
            (ANY, false) => {
                let carriers = self.carriers(&request.labels);
                CallForwarder::to_any(
                    move |peer| carriers.contains(peer),
                    &operation,
                    required_access,
                )
                // The set is made once: later changes of labels do not count for this call.
            }
            (peer, true) => CallForwarder::to(peer, &operation, required_access),
            (_, false) => {
                let message = "labels choose among peers: give them with peer \"any\"";
                return Err(CallError::invalid_input(message));
            }
        };
        let input = match input.member("input") {
            Some(input) => input,
            None => CallBody::json(&Value::Null)?,
        };
        Ok((forwarder, input))
    }

    /// The peers that have all of these labels.
    fn carriers(&self, labels: &BTreeMap<String, String>) -> HashSet<PeerId> {
        let peers = self.identities.identities.entries().peers.into_iter();
        let carries = |own: &BTreeMap<String, String>| {
            let mut wanted = labels.iter();
            wanted.all(|(name, value)| own.get(name) == Some(value))
        };
        peers
            .filter(|peer| carries(&peer.labels))
            .map(|peer| peer.peer_id)
            .collect()
    }
}

/// Requires one of two scopes: the one for every peer, or the one for this peer.
fn required_access(namespace: &str, peer: Option<&str>) -> AccessControl {
    let everywhere = format!("{SCOPE}:{namespace}");
    let there = peer.map(|peer| format!("{everywhere}:{peer}"));
    AccessControl {
        required_scopes_any: Some([everywhere].into_iter().chain(there).collect()),
        ..AccessControl::default()
    }
}

#[cfg(test)]
mod tests {
    use alknet_call::AccessDecision;
    use alknet_core::{Identity, IdentityKind};

    use super::*;

    #[test]
    fn a_scope_is_for_a_namespace_and_maybe_for_one_peer() {
        let may = |scope: &str, peer: Option<&str>| {
            let who = Identity {
                id: "ada".parse().expect("a peer id"),
                kind: IdentityKind::Peer,
                scopes: [scope].into_iter().collect(),
                resources: BTreeMap::new(),
                generation: 0,
            };
            required_access("fs", peer).check(Some(&who), None, None) == AccessDecision::Allowed
        };
        for scope in ["*", "hub:invoke:*", "hub:invoke:fs"] {
            assert!(may(scope, None) && may(scope, Some("p1")), "{scope}");
        }
        assert!(may("hub:invoke:fs:p1", Some("p1")));
        assert!(!may("hub:invoke:fs:p1", Some("p2")) && !may("hub:invoke:fs:p1", None));
        assert!(may("hub:invoke:fs:*", Some("p2")));
        for scope in ["hub:invoke", "hub:invoke:f", "hub:invoke:git", "fs:*"] {
            assert!(!may(scope, None) && !may(scope, Some("p1")), "{scope}");
        }
        assert_eq!(
            required_access("fs", None).check(None, None, None),
            AccessDecision::Unauthenticated
        );
    }
}
