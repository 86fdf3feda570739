//! `peer/add`, `peer/set` and `peer/remove`: change peers of the store while the node runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use alknet_call::{
    CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration, RegistryBuilder,
};
use alknet_core::config::{is_admin_id, is_admin_scope};
use alknet_core::{
    Identity, IdentityEntries, IdentityProvider, IdentityStore, IdentityStoreError, KEY_TAKEN_S,
    KeyId, PeerEntry, PeerId, PeerKey, PeerPatch, ScopeSet,
};
use alknet_hub::{EnrolError, EnrolmentService, TokenStore};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::hub::{HubContext, StoredTokens, invitation, requester};
use super::identity_services::{self, ADMIN_SCOPE, IdentityServices};
use super::tokens::{
    SCOPES_MAX, TTL_S_MAX, check_end, ends, ends_of, may_give, scopes as parsed_scopes,
    warnings_schema,
};

/// Maximum number of peers that `peer/add` puts into the store, which is also that of enrolled
/// peers of a hub.
const PEERS_MAX: usize = 1000;
/// Maximum number of keys that one call can give to a peer.
const KEYS_MAX: usize = 16;
/// Maximum number of keys of an entry, including ended keys that stay known.
const KEYS_KEPT_MAX: usize = 64;
/// Maximum length of a display name in characters: one line of a console.
const NAME_CHARS_MAX: usize = 80;
/// Maximum length of a key in characters. It leaves room for longer texts, which the grammar then
/// refuses.
const KEY_CHARS_MAX: usize = 128;
/// The label with which a hub marks the role of an enrolled peer.
const ROLE_LABEL: &str = "role";
/// The role that exists without an entry in the configuration, and has no scope.
const WORKER: &str = "worker";

/// What these operations use. Clones share it.
#[derive(Clone)]
struct PeerAdmin {
    identities: IdentityServices,
    /// The service that decides about enrolled peers, on a hub.
    enrolment: Option<Arc<EnrolmentService>>,
    /// Held from reading the entries until the change is in force.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Adds the operations to a registry.
pub(crate) fn register(
    builder: &mut RegistryBuilder,
    identity_services: &IdentityServices,
    hub: Option<&HubContext>,
) {
    let admin = PeerAdmin {
        identities: identity_services.clone(),
        enrolment: hub.map(HubContext::enrolment),
        turn: Arc::default(),
    };
    builder.add(add(admin.clone()));
    builder.add(set(admin.clone()));
    builder.add(remove(admin));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerAddInput {
    peer_id: String,
    keys: Vec<String>,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    display_name: Option<String>,
    #[serde(default)]
    ttl_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerSetInput {
    peer: String,
    #[serde(default)]
    keys: Option<Vec<String>>,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    role: Option<String>,
    /// A name, `null` for no name, or absent for no change.
    #[serde(default, deserialize_with = "given")]
    display_name: Option<Option<String>>,
    /// A lifetime, `null` for no end, or absent for no change.
    #[serde(default, deserialize_with = "given")]
    ttl_s: Option<Option<u64>>,
    #[serde(default)]
    enabled: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerRemoveInput {
    peer: String,
}

/// A member that is present, null or not. An absent one is `None` by `serde`'s default.
fn given<'de, D, T>(from: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(from).map(Some)
}

/// JSON Schema of the members that `peer/add` and `peer/set` have in common.
fn common_members() -> Value {
    json!({
        "keys": { "type": "array", "minItems": 1, "maxItems": KEYS_MAX,
                  "items": { "type": "string", "maxLength": KEY_CHARS_MAX },
                  "description": "All of its keys, ed25519:<64 hex>" },
        "scopes": { "type": "array", "items": { "type": "string" }, "maxItems": SCOPES_MAX,
                    "description": "All that it may do; a caller gives at most what it holds" },
        "role": { "type": "string",
                  "description": "In the place of scopes: those that a [[hub.role]] has now" },
        "display_name": { "type": ["string", "null"], "maxLength": NAME_CHARS_MAX,
                          "description": "What people call it" },
        "ttl_s": { "type": ["integer", "null"], "minimum": 1, "maximum": TTL_S_MAX,
                   "description": "Seconds until the entry ends; null: it does not" },
    })
}

fn add(admin: PeerAdmin) -> Registration {
    let mut members = common_members();
    members["peer_id"] = json!({ "type": "string", "maxLength": PeerId::MAX_BYTES,
        "description": "Its name: 1 to 63 of a-z, 0-9, '.', '_' and '-'" });
    let spec = OperationSpec::mutation("peer/add", "Adds a peer to the node's store, by its key.")
        .with_input(json!({
            "type": "object",
            "required": ["peer_id", "keys"],
            "additionalProperties": false,
            "properties": members,
        }))
        .with_output(json!({
            "type": "object",
            "required": ["peer_id", "keys", "scopes", "warnings"],
            "properties": { "warnings": warnings_schema() },
        }))
        .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let admin = admin.clone();
        async move {
            let who = requester(&ctx)?;
            admin.add(input.parse()?, who).await
        }
    });
    Registration::new(spec, handler)
}

fn set(admin: PeerAdmin) -> Registration {
    let mut members = common_members();
    members["peer"] = json!({ "type": "string", "description": "Its id or its name" });
    members["enabled"] = json!({ "type": "boolean", "description": "Whether it is let in" });
    let spec = OperationSpec::mutation(
        "peer/set",
        "Changes a peer of the node's store: what is absent stays as it is.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["peer"],
        "additionalProperties": false,
        "properties": members,
    }))
    .with_output(json!({
        "type": "object",
        "required": ["peer_id", "enabled", "keys", "scopes", "closed", "warnings"],
        "properties": { "closed": closed_schema(), "warnings": warnings_schema() },
    }))
    .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let admin = admin.clone();
        async move {
            let who = requester(&ctx)?;
            admin.set(input.parse()?, who).await
        }
    });
    Registration::new(spec, handler)
}

fn remove(admin: PeerAdmin) -> Registration {
    let spec = OperationSpec::mutation(
        "peer/remove",
        "Removes a peer of the node's store. The node closes its connections, and refuses its keys.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["peer"],
        "additionalProperties": false,
        "properties": { "peer": { "type": "string", "description": "Its id or its name" } },
    }))
    .with_output(json!({
        "type": "object",
        "required": ["peer_id", "known", "closed"],
        "properties": {
            "peer_id": { "type": "string" },
            "known": { "type": "boolean",
                "description": "Whether its keys stay known, so that no older invitation lets them in" },
            "closed": closed_schema(),
            "open": { "type": "array", "description": "Invitations that stay open, as in hub/peers" },
        },
    }))
    .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let admin = admin.clone();
        async move {
            let who = requester(&ctx)?;
            admin.remove(input.parse()?, who).await
        }
    });
    Registration::new(spec, handler)
}

fn closed_schema() -> Value {
    json!({ "type": "array", "items": { "type": "string" },
            "description": "Invitations of the peer, which admit no peer any more" })
}

impl PeerAdmin {
    async fn add(&self, input: PeerAddInput, who: &Identity) -> Result<Value, CallError> {
        let _turn = self.turn.lock().await;
        let identities = &self.identities.identities;
        let entries = identities.entries();
        let id = self.new_id(&input.peer_id)?;
        self.check_capacity(&entries)?;
        let scopes = self.granted(input.scopes, input.role)?;
        let name = input.display_name.as_deref();
        let entry = PeerEntry {
            keys: parsed_keys(&input.keys)?,
            scopes: scopes.unwrap_or_default(),
            display_name: name.map(|name| self.free_name(name, &id)).transpose()?,
            expires: ends(input.ttl_s, identities.now_s(), ends_of(&entries, &who.id))?,
            ..PeerEntry::new(id.clone())
        };
        may_give(who, &entry.scopes, &entry.resources)?;
        let warnings = self.identities.reloader.scope_warnings(&id, &entry.scopes);
        identities.put(entry).await.map_err(refused)?;
        tracing::info!(by = who.id.as_str(), peer = id.as_str(), "peer.add");
        let mut answer = self.listed(&id)?;
        answer["warnings"] = json!(warnings);
        Ok(answer)
    }

    async fn set(&self, input: PeerSetInput, who: &Identity) -> Result<Value, CallError> {
        let _turn = self.turn.lock().await;
        let before = self.stored(&input.peer).await?;
        let id = before.peer_id.clone();
        let enabled = input.enabled;
        let keeps_keys = input.keys.is_some() && self.keeps_keys_of(&before).await?;
        let patch = self.patch(&before, input, who, keeps_keys)?;
        if patch == PeerPatch::default() && enabled.is_none() {
            return Err(CallError::invalid_input("nothing to change is given"));
        }
        let given = patch.scopes.clone().unwrap_or_default();
        let warnings = self.identities.reloader.scope_warnings(&id, &given);
        let closed = match enabled {
            Some(false) => self.shut_out(&id, patch).await?,
            _ => {
                let patch = PeerPatch { enabled, ..patch };
                check_return(&before, &patch)?;
                self.change(&id, patch).await?
            }
        };
        self.sweep();
        tracing::info!(by = who.id.as_str(), peer = id.as_str(), "peer.set");
        let mut answer = self.listed(&id)?;
        answer["closed"] = json!(closed);
        answer["warnings"] = json!(warnings);
        Ok(answer)
    }

    async fn remove(&self, input: PeerRemoveInput, who: &Identity) -> Result<Value, CallError> {
        let _turn = self.turn.lock().await;
        let before = self.stored(&input.peer).await?;
        let id = before.peer_id;
        let tombstone = PeerPatch {
            scopes: Some(ScopeSet::default()),
            display_name: Some(None),
            ..PeerPatch::default()
        };
        let closed = self.shut_out(&id, tombstone).await?;
        // A peer that enrolled may have the text of other invitations, and so may one that was added, as long as one is
        // open: it stays known as one that is not let in.
        let open = self.open_invitations().await?;
        let known = before.labels.contains_key(ROLE_LABEL) || !open.is_empty();
        if !known {
            let removed = self.identities.identities.remove(id.clone()).await;
            removed.map_err(refused)?;
        }
        self.sweep();
        tracing::info!(by = who.id.as_str(), peer = id.as_str(), "peer.remove");
        Ok(json!({ "peer_id": id, "known": known, "closed": closed, "open": open }))
    }

    /// Whether the keys that a peer loses stay known: it was put out once, or has the text of an invitation.
    async fn keeps_keys_of(&self, peer: &PeerEntry) -> Result<bool, CallError> {
        let tokens = StoredTokens::new(self.identities.store.clone());
        let has_invitation = alknet_hub::has_invitation(&tokens, peer).await;
        Ok(has_invitation.map_err(from_enrolment_error)? || peer.removal.is_some())
    }

    /// The invitations by which a key that the node does not know may enrol, now or once its clock is set.
    async fn open_invitations(&self) -> Result<Vec<Value>, CallError> {
        let tokens = StoredTokens::new(self.identities.store.clone())
            .list()
            .await;
        let tokens = tokens.map_err(|error| from_enrolment_error(error.into()))?;
        let now_s = self.identities.identities.now_s().unwrap_or_default();
        let open = tokens.iter().filter(|token| token.is_open(now_s));
        Ok(open.map(invitation).collect())
    }

    /// What `input` changes of an entry, all but whether it is let in. If `keeps_keys`, the keys that it loses stay
    /// known.
    fn patch(
        &self,
        before: &PeerEntry,
        input: PeerSetInput,
        who: &Identity,
        keeps_keys: bool,
    ) -> Result<PeerPatch, CallError> {
        let identities = &self.identities.identities;
        let now_s = identities.now_s();
        let mut patch = PeerPatch {
            scopes: self.granted(input.scopes, input.role)?,
            ..PeerPatch::default()
        };
        if let Some(keys) = &input.keys {
            let (keys, ends) = keys_after(before, parsed_keys(keys)?, now_s, keeps_keys)?;
            (patch.keys, patch.key_ends) = (Some(keys), Some(ends));
        }
        if let Some(name) = &input.display_name {
            let name = name.as_deref();
            let name = name.map(|name| self.free_name(name, &before.peer_id));
            patch.display_name = Some(name.transpose()?);
        }
        let own = ends_of(&identities.entries(), &who.id);
        if let Some(ttl_s) = input.ttl_s {
            patch.expires = Some(ends(ttl_s, now_s, own)?);
        }
        let gives = patch.keys.is_some() || patch.scopes.is_some() || patch.expires.is_some();
        if gives || input.enabled == Some(true) {
            // This also holds if the scopes stay: a caller that adds a key of its own would gain
            // them.
            let after = before.clone().patched(patch.clone());
            may_give(who, &after.scopes, &after.resources)?;
            let returns = input.enabled == Some(true) && !before.enabled;
            let has_new_key = after.keys.iter().any(|key| !before.keys.contains(key));
            // A change that only takes rights away needs no end, so a caller with access for an
            // hour may make it.
            if returns || has_new_key || !before.scopes.covers(&after.scopes) {
                check_end(after.expires, own)?;
            }
        }
        Ok(patch)
    }

    /// Changes a peer that stays let in, or comes back. If it loses scopes, keys or time, its invitations are closed.
    async fn change(&self, peer: &PeerId, change: PeerPatch) -> Result<Vec<KeyId>, CallError> {
        let closed = match &self.enrolment {
            Some(enrolment) => enrolment.change(peer, change).await,
            None => {
                let tokens = StoredTokens::new(self.identities.store.clone());
                alknet_hub::change_peer(&tokens, &*self.identities.identities, peer, change).await
            }
        };
        closed.map_err(from_enrolment_error)
    }

    /// Disables a peer, and closes its invitations.
    async fn shut_out(&self, peer: &PeerId, change: PeerPatch) -> Result<Vec<KeyId>, CallError> {
        let closed = match &self.enrolment {
            Some(enrolment) => enrolment.shut_out(peer, change).await,
            None => {
                // The invitations of a node that once was a hub are still in the store.
                let tokens = StoredTokens::new(self.identities.store.clone());
                alknet_hub::shut_out(&tokens, &*self.identities.identities, peer, change).await
            }
        };
        closed.map_err(from_enrolment_error)
    }

    /// A peer id that no other peer and no entry of the configuration has.
    fn new_id(&self, text: &str) -> Result<PeerId, CallError> {
        let id: PeerId = text.parse().map_err(|_| {
            CallError::invalid_input(
                "peer_id is 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first",
            )
        })?;
        if is_admin_id(text) {
            return Err(CallError::invalid_input(format!(
                "'{id}' is what the keys of node.admin_keys are called: choose another name"
            )));
        }
        let message = match self.identities.identities.by_name(text) {
            None => return Ok(id),
            Some(_) if self.identities.identities.is_configured(&id) => {
                return Err(refused(IdentityStoreError::ReadOnly(id)));
            }
            Some(other) if other == id => {
                let entries = self.identities.identities.entries();
                let known = entries.peers.iter().find(|peer| peer.peer_id == id);
                taken(&id, known)
            }
            Some(other) => format!("'{id}' is what the peer '{other}' is called"),
        };
        Err(CallError::new(ErrorCode::Conflict, message))
    }

    /// A display name that no other peer has.
    fn free_name(&self, text: &str, id: &PeerId) -> Result<String, CallError> {
        let name = text.trim();
        let is_length_valid = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
        if !is_length_valid || name.contains(char::is_control) {
            return Err(CallError::invalid_input(format!(
                "display_name is one line of 1 to {NAME_CHARS_MAX} characters"
            )));
        }
        match self.identities.identities.by_name(name) {
            Some(other) if other != *id => {
                let message = format!("'{name}' is the peer '{other}' already");
                Err(CallError::new(ErrorCode::Conflict, message))
            }
            _ => Ok(name.to_owned()),
        }
    }

    fn check_capacity(&self, entries: &IdentityEntries) -> Result<(), CallError> {
        let identities = &self.identities.identities;
        let stored = entries.peers.iter();
        let stored = stored.filter(|peer| !identities.is_configured(&peer.peer_id));
        // Removed peers stay known, and do not count against the limit.
        let stored = stored.filter(|peer| peer.enabled || peer.removal.is_none());
        if stored.count() < PEERS_MAX {
            return Ok(());
        }
        let message = format!("there are {PEERS_MAX} peers in the store: remove unused ones");
        Err(CallError::new(ErrorCode::Conflict, message))
    }

    /// The requested scopes, given directly or as those of a role. Returns `None` if neither is
    /// given.
    fn granted(
        &self,
        scopes: Option<Vec<String>>,
        role: Option<String>,
    ) -> Result<Option<ScopeSet>, CallError> {
        let given = match (scopes, role) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(CallError::invalid_input("give scopes or a role, not both"));
            }
            (Some(scopes), None) => scopes,
            (None, Some(role)) => self.scopes_of_role(&role)?,
        };
        if let Some(scope) = given.iter().find(|scope| is_admin_scope(scope)) {
            return Err(CallError::invalid_input(format!(
                "the scope '{scope}' belongs to administrators: list the key in node.admin_keys"
            )));
        }
        parsed_scopes(&given).map(Some)
    }

    fn scopes_of_role(&self, name: &str) -> Result<Vec<String>, CallError> {
        let config = self.identities.reloader.current();
        let roles = &config.config.hub.role;
        match roles.iter().find(|role| role.name == name) {
            Some(role) => Ok(role.scopes.clone()),
            None if name == WORKER => Ok(Vec::new()),
            None => {
                let known = roles.iter().map(|role| role.name.as_str());
                let known: Vec<_> = known.chain([WORKER]).collect();
                Err(CallError::invalid_input(format!(
                    "there is no such role; known here: {}",
                    known.join(", ")
                )))
            }
        }
    }

    /// The entry of the store with this id or name.
    async fn stored(&self, name: &str) -> Result<PeerEntry, CallError> {
        let identities = &self.identities.identities;
        let unknown = || {
            let name: String = name.chars().take(NAME_CHARS_MAX).collect();
            let message = format!("there is no peer '{name}'; 'alknet peer list' shows the peers");
            CallError::new(ErrorCode::NotFound, message)
        };
        let id = identities.by_name(name).ok_or_else(unknown)?;
        if identities.is_configured(&id) {
            return Err(refused(IdentityStoreError::ReadOnly(id)));
        }
        let all = identities.list().await.map_err(refused)?;
        let found = all.into_iter().find(|peer| peer.peer_id == id);
        found.ok_or_else(unknown)
    }

    /// Closes the connections of removed peers. It runs before the answer, because the caller may
    /// rely on it.
    fn sweep(&self) {
        if let Some(server) = self.identities.server.get() {
            server.sweep();
        }
    }

    /// The row of a peer, as in `peer/list`.
    fn listed(&self, id: &PeerId) -> Result<Value, CallError> {
        let entries = self.identities.identities.entries();
        let peer = entries.peers.iter().find(|peer| peer.peer_id == *id);
        let peer = peer.ok_or_else(|| refused(IdentityStoreError::Unknown(id.clone())))?;
        let server = self.identities.server.get();
        let connections = server
            .map(|server| server.connections())
            .unwrap_or_default();
        let about = identity_services::about_peer(peer);
        Ok(identity_services::row(id, "store", about, &connections))
    }
}

/// Whether a peer was removed, and is kept in order to refuse its keys.
fn was_removed(peer: &PeerEntry) -> bool {
    let was_put_out = peer.removal.is_some() && !peer.enabled;
    was_put_out && peer.scopes.is_empty() && peer.display_name.is_none()
}

/// Why no peer is added under the name of this one, and what to do.
fn taken(id: &PeerId, known: Option<&PeerEntry>) -> String {
    let Some(removed) = known.filter(|peer| was_removed(peer)) else {
        return format!("there is a peer '{id}' already: change it with 'alknet peer set'");
    };
    // The node never forgets one that enrolled.
    let forget = match removed.labels.contains_key(ROLE_LABEL) {
        true => "",
        false => ". Or forget it: repeat peer/remove once no invitation is open",
    };
    format!(
        "'{id}' was removed, and the node keeps its keys in order to refuse them: invite it, or give the keys that are \
         let in ('alknet peer set NODE {id} --enable --key KEY'){forget}"
    )
}

/// A removed peer lost its rights and may have lost a key, so its keys do not return without being
/// named.
fn check_return(before: &PeerEntry, patch: &PeerPatch) -> Result<(), CallError> {
    if patch.enabled != Some(true) || !was_removed(before) || patch.keys.is_some() {
        return Ok(());
    }
    let message = format!(
        "'{}' was removed: give the keys that are let in again, or invite it",
        before.peer_id
    );
    Err(CallError::new(ErrorCode::Conflict, message))
}

fn parsed_keys(texts: &[String]) -> Result<Vec<PeerKey>, CallError> {
    let mut keys = Vec::new();
    for text in texts {
        let key: PeerKey = text.parse().map_err(|_| {
            CallError::invalid_input(
                "this is no key: write ed25519:<64 hex>, spki:<64 hex> or SHA256:<64 hex>; \
                 'alknet identity' prints it on the peer's machine",
            )
        })?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// The keys of a peer once `given` are those that count, and when some of them end. Keys that ended stay known, and if
/// `keeps_keys` so do those that the peer loses: no older invitation lets them in.
fn keys_after(
    before: &PeerEntry,
    given: Vec<PeerKey>,
    now_s: Option<u64>,
    keeps_keys: bool,
) -> Result<(Vec<PeerKey>, BTreeMap<PeerKey, u64>), CallError> {
    let has_ended = |key: &PeerKey| {
        let end = before.key_ends.get(key);
        end.is_some_and(|end| now_s.is_none_or(|now_s| now_s >= *end))
    };
    if let Some(key) = given.iter().find(|key| has_ended(key)) {
        let message = format!(
            "the key {key} of '{}' has ended: give another one",
            before.peer_id
        );
        return Err(CallError::new(ErrorCode::Conflict, message));
    }
    let mut ends = before.key_ends.clone();
    let mut keys = given;
    for key in &before.keys {
        if keys.contains(key) {
            continue;
        }
        if has_ended(key) {
            keys.push(*key);
        } else if keeps_keys {
            ends.insert(*key, KEY_TAKEN_S);
            keys.push(*key);
        }
    }
    if keys.len() > KEYS_KEPT_MAX {
        let message = format!(
            "'{}' had {KEYS_KEPT_MAX} keys: remove it, and add it by another name",
            before.peer_id
        );
        return Err(CallError::new(ErrorCode::Conflict, message));
    }
    Ok((keys, ends))
}

fn refused(error: IdentityStoreError) -> CallError {
    let code = match &error {
        IdentityStoreError::KeyTaken(..)
        | IdentityStoreError::ReadOnly(_)
        | IdentityStoreError::TokenTaken(_) => ErrorCode::Conflict,
        IdentityStoreError::Unknown(_) => ErrorCode::NotFound,
        IdentityStoreError::Unavailable(_) | IdentityStoreError::ClockUnset => {
            ErrorCode::Unavailable
        }
        _ => ErrorCode::Internal,
    };
    CallError::new(code, error.to_string())
}

fn from_enrolment_error(error: EnrolError) -> CallError {
    match error {
        EnrolError::Store(error) => refused(error),
        EnrolError::Overloaded(_) => CallError::new(ErrorCode::Overloaded, error.to_string()),
        EnrolError::Tokens(_) => CallError::new(ErrorCode::Unavailable, error.to_string()),
        error => CallError::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
