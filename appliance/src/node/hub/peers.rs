//! `hub/peers`, `hub/peers/approve`, `hub/peers/label`, `hub/peers/remove`, and `hub/whoami`.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use alknet_call::{
    CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, PeerState, Registration,
};
use alknet_core::{Identity, IdentityKind, PeerEntry, PeerId, PeerKey};
use alknet_endpoint::ConnectionSummary;
use alknet_hub::{Alias, Approval, ApproveError, PendingKey, TokenRecord};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{HubContext, enrolment_error, not_enrolled, requester};
use crate::node::identity_services;
use crate::node::ops::empty_input;

/// Scope of callers that may list peers.
const READ_SCOPE: &str = "hub:read";
/// Scope of callers that may change peers.
const ADMIN_SCOPE: &str = "hub:admin";
/// The label by which a hub marks what an enrolled peer became.
pub(super) const ROLE_LABEL: &str = "role";
/// The values of a row's `state`.
const STATES: [&str; 8] = [
    CONNECTED,
    "identified",
    "discovering",
    "ready",
    "degraded",
    "draining",
    OFFLINE,
    REMOVED,
];
/// The peer is connected with another protocol than that of calls. The hub does not know whether it
/// serves operations.
const CONNECTED: &str = "connected";
const OFFLINE: &str = "offline";
const REMOVED: &str = "removed";

/// `hub/peers`
pub(super) fn list(hub: HubContext) -> Registration {
    let spec = OperationSpec::query(
        "hub/peers",
        "Lists the enrolled peers, the keys that wait for approval, and the open invitations.",
    )
    .with_input(empty_input())
    .with_output(json!({
        "type": "object",
        "required": ["peers", "waiting", "invitations"],
        "properties": {
            "peers": { "type": "array", "items": { "type": "object",
                "required": ["peer_id", "name", "state", "labels"],
                "properties": { "state": { "enum": STATES } } } },
            "waiting": { "type": "array" }, "invitations": { "type": "array" },
        }
    }))
    .with_scope(READ_SCOPE);
    let handler = HandlerKind::once(move |_input: CallBody, _ctx: Ctx| {
        let hub = hub.clone();
        async move { hub.listed().await }
    });
    Registration::new(spec, handler)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovePeerInput {
    key: String,
    role: String,
    #[serde(default)]
    name: Option<String>,
}

/// `hub/peers/approve`
pub(super) fn approve(hub: HubContext) -> Registration {
    let spec = OperationSpec::mutation("hub/peers/approve", "Enrols a key that waits.")
        .with_input(json!({
            "type": "object",
            "required": ["key", "role"],
            "additionalProperties": false,
            "properties": {
                "key": { "type": "string", "description": "The key, or its fingerprint in six words" },
                "role": { "type": "string" },
                "name": { "type": ["string", "null"] },
            }
        }))
        .with_output(json!({ "type": "object", "required": ["peer_id", "name"] }))
        .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let hub = hub.clone();
        async move {
            let who = requester(&ctx)?;
            let approver = hub.key_of_maker(&ctx, &who.id);
            hub.approve(input.parse()?, who, approver).await
        }
    });
    Registration::new(spec, handler)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RelabelInput {
    peer: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    unset: Vec<String>,
}

/// `hub/peers/label`
pub(super) fn label(hub: HubContext) -> Registration {
    let spec = OperationSpec::mutation("hub/peers/label", "Changes a peer's name and labels.")
        .with_input(json!({
            "type": "object",
            "required": ["peer"],
            "additionalProperties": false,
            "properties": {
                "peer": { "type": "string", "description": "Its id or its name" },
                "name": { "type": ["string", "null"] },
                "set": { "type": "object", "additionalProperties": { "type": "string" } },
                "unset": { "type": "array", "items": { "type": "string" } },
            }
        }))
        .with_output(json!({ "type": "object", "required": ["peer_id", "name", "labels"] }))
        .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let hub = hub.clone();
        async move {
            let input: RelabelInput = input.parse()?;
            hub.check_may_change(&input.peer, requester(&ctx)?).await?;
            hub.relabel(input).await
        }
    });
    Registration::new(spec, handler)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemovePeerInput {
    peer: String,
    /// Also closes the invitations that the peer neither joined by nor made, as far as the caller may.
    #[serde(default)]
    close_invitations: bool,
}

/// `hub/peers/remove`
pub(super) fn remove(hub: HubContext) -> Registration {
    let spec = OperationSpec::mutation(
        "hub/peers/remove",
        "Removes a peer: the hub closes its connections, and refuses its keys from then on.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["peer"],
        "additionalProperties": false,
        "properties": {
            "peer": { "type": "string", "description": "Its id or its name; its id if it is removed already" },
            "close_invitations": {
                "type": "boolean",
                "description": "Also close every other invitation whose role has no scope that the caller lacks, as \
                                the peer may have its join string; an administrator closes all",
            },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["peer_id", "closed", "open"],
        "properties": {
            "closed": {
                "type": "array", "items": { "type": "string" },
                "description": "Invitations that the hub has closed for further keys: those that the peer joined by \
                                or made, and with close_invitations all others that the caller may close",
            },
            "open": {
                "type": "array",
                "description": "Invitations that stay open, as in hub/peers. If the peer has the join string of one, \
                                it gets in by another key",
            },
        }
    }))
    .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let hub = hub.clone();
        async move {
            let input: RemovePeerInput = input.parse()?;
            let who = requester(&ctx)?;
            hub.check_may_change(&input.peer, who).await?;
            hub.remove(input, who).await
        }
    });
    Registration::new(spec, handler)
}

/// `hub/whoami`
pub(super) fn whoami(hub: HubContext) -> Registration {
    let spec = OperationSpec::query("hub/whoami", "Returns which peer the caller is.")
        .with_input(empty_input())
        .with_output(json!({
            "type": "object",
            "required": ["peer_id"],
            "properties": { "peer_id": { "type": ["string", "null"] } }
        }));
    let handler = HandlerKind::once(move |_input: CallBody, ctx: Ctx| {
        let peer = ctx.identity().filter(|who| who.kind == IdentityKind::Peer);
        let answer = json!({
            "peer_id": peer.map(|who| who.id.as_str()),
            "hub": hub.description.identity(),
        });
        std::future::ready(Ok::<_, CallError>(answer))
    });
    Registration::new(spec, handler)
}

impl HubContext {
    async fn listed(&self) -> Result<Value, CallError> {
        let peers = self
            .enrolment
            .peers()
            .await
            .map_err(|error| enrolment_error(&error))?;
        let open = self.open_invitations().await?;
        let waiting = self.enrolment.waiting(Instant::now());
        let server = self.identities.server.get();
        let connections = server
            .map(|server| server.connections())
            .unwrap_or_default();
        let dispatcher = self.dispatcher.get().and_then(std::sync::Weak::upgrade);
        let states = dispatcher.map(|it| it.peer_states()).unwrap_or_default();
        Ok(json!({
            "peers": peers.iter().map(|peer| row(peer, &states, &connections)).collect::<Value>(),
            "waiting": waiting.iter().map(pending_key).collect::<Value>(),
            "invitations": open,
        }))
    }

    /// `made_by_key` is the key of `who` that counts as the approver.
    async fn approve(
        &self,
        input: ApprovePeerInput,
        who: &Identity,
        made_by_key: Option<PeerKey>,
    ) -> Result<Value, CallError> {
        let role = self.role_from(&input.role, who)?;
        let approval = Approval {
            role,
            name: alias(input.name.as_deref())?,
            made_by: who.id.to_string(),
            made_by_key,
        };
        let now_s = self.clock.now_s();
        let approved = self
            .enrolment
            .approve(&input.key, approval, now_s, Instant::now());
        match approved.await {
            Ok(enrolled) => Ok(json!({ "peer_id": enrolled.peer_id, "name": enrolled.name })),
            Err(ApproveError::Enrol(error)) => Err(enrolment_error(&error)),
            Err(error @ (ApproveError::Approver | ApproveError::Peer)) => {
                Err(CallError::new(ErrorCode::Forbidden, error.to_string()))
            }
            Err(error) => Err(CallError::new(ErrorCode::NotFound, error.to_string())),
        }
    }

    async fn relabel(&self, input: RelabelInput) -> Result<Value, CallError> {
        let is_role = |name: &String| name == ROLE_LABEL;
        // By this label a hub chooses the workers that it updates, so a change would admit or leave out a machine.
        if input.set.keys().chain(&input.unset).any(is_role) {
            return Err(CallError::invalid_input(format!(
                "the label '{ROLE_LABEL}' says what the peer enrolled as, and stays"
            )));
        }
        let peer = self.enrolled_peer(&input.peer)?;
        let name = alias(input.name.as_deref())?;
        let changed = self.enrolment.relabel(&peer, name, |labels| {
            labels.retain(|name, _| !input.unset.contains(name));
            labels.extend(input.set);
        });
        let changed = changed.await.map_err(|error| enrolment_error(&error))?;
        Ok(json!({
            "peer_id": changed.peer_id,
            "name": name_of(&changed),
            "labels": changed.labels,
        }))
    }

    async fn remove(&self, input: RemovePeerInput, who: &Identity) -> Result<Value, CallError> {
        let peer = self.enrolled_peer(&input.peer)?;
        // What the caller cannot make it does not close either: other peers wait with it.
        let is_admin = who.scopes.allows(identity_services::ADMIN_SCOPE);
        let may_close = |token: &TokenRecord| is_admin || who.scopes.covers(&token.role.scopes);
        let removed = match input.close_invitations {
            true => self.enrolment.remove_and_close(&peer, may_close).await,
            false => self.enrolment.remove(&peer).await,
        };
        // Connections are closed before the answer, because the caller may rely on it.
        if let Some(server) = self.identities.server.get() {
            server.sweep();
        }
        let closed = removed.map_err(|error| enrolment_error(&error))?;
        tracing::info!(by = who.id.as_str(), %peer, "hub.remove");
        let open = self.open_invitations().await?;
        Ok(json!({ "peer_id": peer, "closed": closed, "open": open }))
    }

    /// The invitations by which a further key may join, as rows of an answer.
    async fn open_invitations(&self) -> Result<Value, CallError> {
        let tokens = self.enrolment.tokens().await;
        let tokens = tokens.map_err(|error| enrolment_error(&error))?;
        // Without a sane clock no token is good for anything, so none is open.
        let now = self.clock.now_s();
        let is_open = |token: &&TokenRecord| now.is_some_and(|now| token.is_open(now));
        Ok(tokens.iter().filter(is_open).map(invitation).collect())
    }

    /// Whether `who` may change this peer by the scope [`ADMIN_SCOPE`].
    ///
    /// # Errors
    /// The peer did not enrol, or may do more than `who`, who is no administrator; or there is no such peer.
    async fn check_may_change(&self, name: &str, who: &Identity) -> Result<(), CallError> {
        // The operations peer/set and peer/remove let an administrator do the same.
        if who.scopes.allows(identity_services::ADMIN_SCOPE) {
            return Ok(());
        }
        let peer = self.enrolled_peer(name)?;
        let all = self.enrolment.peers().await;
        let all = all.map_err(|error| enrolment_error(&error))?;
        // An entry of the configuration is not among them: the store refuses to change it.
        let Some(entry) = all.iter().find(|entry| entry.peer_id == peer) else {
            return Ok(());
        };
        let refused = match entry.labels.contains_key(ROLE_LABEL) {
            true if entry.is_covered_by(&who.scopes) => return Ok(()),
            true => "this peer may do more than you: an administrator changes it",
            false => {
                "this peer did not enrol here: an administrator changes it by peer/set or peer/remove"
            }
        };
        Err(CallError::new(ErrorCode::Forbidden, refused))
    }

    fn enrolled_peer(&self, name: &str) -> Result<PeerId, CallError> {
        let found = self.enrolment.peer_named(name);
        found.ok_or_else(|| CallError::new(ErrorCode::NotFound, not_enrolled()))
    }
}

fn alias(name: Option<&str>) -> Result<Option<Alias>, CallError> {
    let alias = name.map(str::parse::<Alias>).transpose();
    alias.map_err(|error| CallError::invalid_input(error.to_string()))
}

fn row(
    peer: &PeerEntry,
    states: &HashMap<PeerId, PeerState>,
    connections: &[ConnectionSummary],
) -> Value {
    let mine = |one: &&ConnectionSummary| one.peer.as_ref() == Some(&peer.peer_id);
    // The latest connection counts: an older one may be lost, and the hub has not noticed yet.
    let connection = connections.iter().rev().find(mine);
    let calls = states.get(&peer.peer_id).copied();
    let state = state(peer.enabled, connection.is_some(), calls);
    json!({
        "peer_id": peer.peer_id,
        "name": name_of(peer),
        "state": state,
        "labels": peer.labels,
        "scopes": peer.scopes,
        "keys": peer.keys,
        "addr": connection.and_then(|one| Some(one.remote_addr?.to_string())),
        "seconds": connection.map(|one| one.since.elapsed().as_secs()),
    })
}

/// The state of a peer: whether the hub admits it, whether it has a connection, and the state of
/// the connection over which it calls and serves.
fn state(enabled: bool, connected: bool, calls: Option<PeerState>) -> &'static str {
    match (enabled, calls) {
        (false, _) => REMOVED,
        (true, Some(PeerState::Gone)) | (true, None) if !connected => OFFLINE,
        (true, Some(PeerState::Gone)) | (true, None) => CONNECTED,
        (true, Some(state)) => state.name(),
    }
}

fn name_of(peer: &PeerEntry) -> &str {
    let name = peer.display_name.as_deref();
    name.unwrap_or_else(|| peer.peer_id.as_str())
}

fn pending_key(pending_key: &PendingKey) -> Value {
    json!({
        "key": pending_key.key,
        "fingerprint": pending_key.fingerprint,
        "name": pending_key.name,
        "labels": pending_key.labels,
        "addr": pending_key.from.map(|from| from.to_string()),
        "seconds": pending_key.since.elapsed().as_secs(),
    })
}

/// An invitation, by its name. The hub does not know the token itself any more.
pub(crate) fn invitation(token: &TokenRecord) -> Value {
    json!({
        "key_id": token.hash.key_id,
        "role": token.role.name,
        "left": token.uses_left(),
        "expires": moment(token.expires),
        "made_by": token.made_by,
    })
}

/// The time as RFC 3339 writes it.
pub(super) fn moment(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok()?;
    let at = Timestamp::from_second(seconds).ok()?;
    Some(at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_in_one_of_the_states() {
        let calls = [
            PeerState::Identified,
            PeerState::Discovering,
            PeerState::Ready,
            PeerState::Degraded,
            PeerState::Draining,
            PeerState::Gone,
        ];
        for enabled in [true, false] {
            for connected in [true, false] {
                for calls in calls.into_iter().map(Some).chain([None]) {
                    let said = state(enabled, connected, calls);
                    assert!(STATES.contains(&said), "{said}");
                    assert_eq!(said == REMOVED, !enabled);
                }
            }
        }
        assert_eq!(state(true, false, None), OFFLINE);
        assert_eq!(state(true, false, Some(PeerState::Gone)), OFFLINE);
        assert_eq!(state(true, true, None), CONNECTED);
        assert_eq!(state(true, true, Some(PeerState::Degraded)), "degraded");
    }
}
