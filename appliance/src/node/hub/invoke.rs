//! `hub/invoke` and `hub/subscribe`: operations of peers, for clients that can only name an
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

/// Scope of those who may have requests passed on; followed by the namespace of the operation, and
/// by a peer's id where it is good for that peer only.
const SCOPE: &str = "hub:invoke";
/// Whichever peer is best, also where one is called so.
const ANY: &str = "any";
/// Most labels that a peer has to carry.
const LABELS_MAX: usize = alknet_hub::LABELS_MAX;
/// Longest name of an operation, in characters.
const OPERATION_CHARS_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InvokeInput {
    peer: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    operation: String,
    /// Passed on as it came, and not read here.
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
    // Under one key a request runs once here. The key that goes along sees to it there where the peer takes one; from
    // any other peer nothing is asked again that the peer has taken.
    spec.idempotent = Idempotence::Keyed;
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        // Before the future, which would keep all of the input until the peer answers.
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

/// The handler decides for each request, by its input, who may: the specification only requires an
/// identity.
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
        // Read past what is passed on: whatever its size, nothing is made of it here.
        let asked: InvokeInput = serde_json::from_slice(input.raw())
            .map_err(|error| CallError::invalid_input(error.to_string()))?;
        let operation = asked.operation.trim_start_matches('/').to_owned();
        let namespace = operation.split('/').next().unwrap_or_default().to_owned();
        let way = move |peer: Option<&str>| way(&namespace, peer);
        let forwarder = match (asked.peer.as_str(), asked.labels.is_empty()) {
            (ANY, true) => CallForwarder::to_any(|_| true, &operation, way),
            (ANY, false) => {
                let carriers = self.carriers(&asked.labels);
                CallForwarder::to_any(move |peer| carriers.contains(peer), &operation, way)
            }
            (peer, true) => CallForwarder::to(peer, &operation, way),
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

    /// The peers that carry all of these labels.
    fn carriers(&self, labels: &BTreeMap<String, String>) -> HashSet<PeerId> {
        let peers = self.people.identities.entries().peers.into_iter();
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

/// One of two scopes: for every peer, or for this one.
fn way(namespace: &str, peer: Option<&str>) -> AccessControl {
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
            way("fs", peer).check(Some(&who), None, None) == AccessDecision::Allowed
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
            way("fs", None).check(None, None, None),
            AccessDecision::Unauthenticated
        );
    }
}
