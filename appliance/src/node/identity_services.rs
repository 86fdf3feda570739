//! `config/apply` and `peer/list`: change who may connect, and list who is connected.

use std::sync::{Arc, OnceLock};

use alknet_call::{CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_core::config::{ApplyError, CONFIG_BYTES_MAX, ConfigChange, ConfigSource};
use alknet_core::{ApiKey, Identities, IdentityEntries, PeerEntry, PeerId, PeerKey};
use alknet_endpoint::{ConnectionSummary, EndpointServer};
use alknet_identity_store::IdentityDb;
use alknet_init::control::MachineDiagnostic;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::join::HubConnections;
use super::ops::empty_input;
use super::reload::Reloader;
use super::store;

/// Scope of callers that may list connected peers.
const LIST_SCOPE: &str = "peer:list";
/// Scope of callers that may change the configuration. Such a caller can give itself every right.
pub(super) const ADMIN_SCOPE: &str = "admin";

/// The server, once it is bound.
pub(crate) type SharedServer = Arc<OnceLock<Arc<EndpointServer>>>;

/// What these operations use.
#[derive(Clone)]
pub(crate) struct IdentityServices {
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) identities: Arc<Identities>,
    /// The database behind `identities`.
    pub(crate) store: IdentityDb,
    pub(crate) server: SharedServer,
    /// The connections that this node itself made to hubs.
    pub(crate) hubs: HubConnections,
}

impl IdentityServices {
    /// The problems of the configuration and of the store.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let mut problems = self.reloader.problems().to_vec();
        problems.extend(store::problems(&self.store));
        problems
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplyInput {
    document: String,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    generation: Option<u64>,
}

/// `config/apply`
pub(crate) fn apply(identity_services: IdentityServices) -> Registration {
    let spec = OperationSpec::mutation(
        "config/apply",
        "Applies a configuration document: all of it, or nothing if it has a mistake.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["document"],
        "additionalProperties": false,
        "properties": {
            "document": { "type": "string", "maxLength": CONFIG_BYTES_MAX,
                          "description": "The TOML document" },
            "dry_run": { "type": "boolean", "default": false,
                         "description": "Return what would change, and change nothing" },
            "generation": { "type": ["integer", "null"], "minimum": 1,
                            "description": "Refuse unless this generation is in force" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["generation", "changed", "dry_run", "restart_required", "peers", "kept"],
        "properties": {
            "generation": { "type": "integer" }, "changed": { "type": "boolean" },
            "dry_run": { "type": "boolean" }, "restart_required": { "type": "array" },
            "warnings": { "type": "array" }, "peers": { "type": "object" },
            "kept": { "type": "boolean" }, "kept_error": { "type": "string" },
            "kept_in": { "type": "string", "description": "The file that has the document now, or on a dry run would have" },
            "replaced": { "type": "boolean", "description": 
                "Whether that file had another document before, which is not kept" },
        }
    }))
    .with_scope(ADMIN_SCOPE);
    let handler = HandlerKind::once(move |input: alknet_call::CallBody, ctx: Ctx| {
        let identity_services = identity_services.clone();
        async move {
            if ctx.internal() {
                // The configuration that this operation puts in force outlives the call, and can
                // give any right.
                let message =
                    "an operation may not apply a configuration for its caller; call this directly";
                return Err(CallError::new(ErrorCode::Forbidden, message));
            }
            let input: ApplyInput = input.parse()?;
            // The access rule refuses callers without an identity, so this does not fail.
            let who = ctx.identity().ok_or_else(no_identity)?;
            let change = ConfigChange {
                document: input.document.as_bytes(),
                source: ConfigSource::Operation(who.id.to_string()),
                generation: input.generation,
                dry_run: input.dry_run,
                admin: Some((Arc::clone(who), ctx.conn().key)),
            };
            let outcome = identity_services
                .reloader
                .apply(&change)
                .await
                .map_err(refused)?;
            // Connections are closed before the answer, because the caller may rely on the removed
            // peers being disconnected.
            if let Some(server) = identity_services.server.get() {
                server.sweep();
            }
            serde_json::to_value(outcome).map_err(|error| CallError::internal(error.to_string()))
        }
    });
    Registration::new(spec, handler)
}

pub(crate) fn no_identity() -> CallError {
    CallError::new(
        ErrorCode::Unauthenticated,
        "the operation needs an identity",
    )
}

fn refused(error: ApplyError) -> CallError {
    let message = error.to_string();
    match error {
        ApplyError::Refused(errors) => {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            CallError::invalid_input(message).with_details(json!({ "errors": errors }))
        }
        ApplyError::Conflict { actual, .. } => CallError::new(ErrorCode::Conflict, message)
            .with_details(json!({ "generation": actual })),
        _ => CallError::internal(message),
    }
}

/// `peer/list`
pub(crate) fn list(identity_services: IdentityServices) -> Registration {
    let spec = OperationSpec::query("peer/list", "Lists the peers and their connections.")
        .with_input(empty_input())
        .with_output(json!({
            "type": "object",
            "required": ["generation", "peers", "unknown_peers"],
            "properties": {
                "generation": { "type": "integer" },
                "unknown_peers": { "type": "integer", "description": "Connections of unknown peers" },
                "peers": { "type": "array", "items": { "type": "object",
                    "required": ["peer_id", "kind", "source", "enabled", "connections"] } },
            }
        }))
        .with_scope(LIST_SCOPE);
    let handler = HandlerKind::once(move |_input, _ctx| {
        let server = identity_services.server.get();
        let connections = server
            .map(|server| server.connections())
            .unwrap_or_default();
        let mut answer = listed(
            identity_services.reloader.current().generation,
            &identity_services.identities.entries(),
            |id| identity_services.identities.is_configured(id),
            &connections,
        );
        mark_dialled(&mut answer, |hub| identity_services.hubs.get(hub).is_some());
        std::future::ready(Ok::<_, CallError>(answer))
    });
    Registration::new(spec, handler)
}

/// Marks the hubs that this node is connected to: the table of connections has only those that others made.
fn mark_dialled(answer: &mut Value, is_dialled: impl Fn(&PeerKey) -> bool) {
    for row in answer["peers"].as_array_mut().into_iter().flatten() {
        let keys = row["keys"].as_array().into_iter().flatten();
        let mut keys = keys.filter_map(|key| key.as_str()?.parse().ok());
        if keys.any(|key| is_dialled(&key)) {
            row["dialled"] = true.into();
        }
    }
}

fn listed(
    generation: u64,
    entries: &IdentityEntries,
    is_configured: impl Fn(&PeerId) -> bool,
    connections: &[ConnectionSummary],
) -> Value {
    let row = |id: &PeerId, about: Value| {
        let source = if is_configured(id) { "config" } else { "store" };
        row(id, source, about, connections)
    };
    let admins = entries.admins.iter().map(|(id, key)| {
        let about = json!({ "kind": "admin", "enabled": true, "keys": [key], "scopes": ["*"] });
        row(id, about)
    });
    let peers = entries.peers.iter();
    let peers = peers.map(|peer| row(&peer.peer_id, about_peer(peer)));
    let keys = entries.api_keys.iter();
    let keys = keys.map(|key| row(&key.id(), about_key(key)));
    let unknown_peers = connections.iter().filter(|one| one.peer.is_none()).count();
    json!({
        "generation": generation,
        "peers": admins.chain(peers).chain(keys).collect::<Vec<_>>(),
        "unknown_peers": unknown_peers,
    })
}

pub(super) fn about_peer(peer: &PeerEntry) -> Value {
    let tokens: Vec<_> = peer.token_hashes.iter().map(|token| token.key_id).collect();
    let ends = peer.key_ends.iter();
    let ends: Map<_, _> = ends
        .filter_map(|(key, end)| Some((key.to_string(), moment(*end)?.into())))
        .collect();
    json!({
        "kind": "peer",
        "display_name": peer.display_name,
        "enabled": peer.enabled,
        "keys": peer.keys,
        "key_ends": Some(ends).filter(|ends| !ends.is_empty()),
        "tokens": tokens,
        "scopes": peer.scopes,
        "addresses": peer.addresses,
        "expires": peer.expires.and_then(moment),
        "max_connections": peer.max_connections,
    })
}

fn about_key(key: &ApiKey) -> Value {
    json!({
        "kind": "api_key",
        "display_name": key.description,
        "enabled": true,
        "tokens": [key.token.key_id],
        "scopes": key.scopes,
        "expires": key.expires.and_then(moment),
    })
}

/// A row of the list: the known members of an identity, without absent ones, and its connections.
pub(super) fn row(
    id: &PeerId,
    source: &str,
    about: Value,
    connections: &[ConnectionSummary],
) -> Value {
    let mut row = Map::new();
    row.insert("peer_id".to_owned(), id.as_str().into());
    row.insert("source".to_owned(), source.into());
    if let Value::Object(about) = about {
        row.extend(about.into_iter().filter(|(_, value)| !value.is_null()));
    }
    let own = connections
        .iter()
        .filter(|one| one.peer.as_ref() == Some(id));
    row.insert("connections".to_owned(), own.map(connection).collect());
    Value::Object(row)
}

fn connection(one: &ConnectionSummary) -> Value {
    json!({
        "conn": one.id.0,
        "alpn": String::from_utf8_lossy(&one.alpn),
        "carriage": one.carriage.to_string(),
        "addr": one.remote_addr.map(|addr| addr.to_string()),
        "key": one.key,
        "seconds": one.since.elapsed().as_secs(),
    })
}

/// The time as RFC 3339 writes it.
pub(crate) fn moment(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok()?;
    Timestamp::from_second(seconds)
        .ok()
        .map(|at| at.to_string())
}

#[cfg(test)]
mod tests {
    use alknet_core::config::NodeConfig;
    use alknet_core::{Carriage, ConnId};

    use super::*;

    #[test]
    fn every_identity_is_listed_with_what_is_connected() {
        let document = format!(
            "node.admin_keys = [\"ed25519:{}\"]\n[[peers]]\npeer_id = \"edge\"\n\
             keys = [\"ed25519:{}\"]\nscopes = [\"a:b\"]\nexpires = \"2030-01-01T00:00:00Z\"\n\
             [[api_keys]]\nkey_id = \"monitor0\"\nsha256 = \"{}\"\n",
            "01".repeat(32),
            "02".repeat(32),
            "03".repeat(32)
        );
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let of = |peer: Option<&str>| ConnectionSummary {
            id: ConnId(7),
            alpn: b"alknet/call"[..].into(),
            carriage: Carriage::Quic,
            peer: peer.map(|id| id.parse().expect("a peer id")),
            key: None,
            remote_addr: None,
            since: tokio::time::Instant::now(),
        };
        let mut entries = config.entries();
        entries.peers[0].key_ends = [(entries.peers[0].keys[0], 1_900_000_000)].into();
        let connections = [of(Some("edge")), of(None)];
        let answer = listed(3, &entries, |id| id.as_str() != "edge", &connections);
        assert_eq!(
            (&answer["generation"], &answer["unknown_peers"]),
            (&json!(3), &json!(1))
        );
        let peers = answer["peers"].as_array().expect("a list");
        let ids: Vec<_> = peers.iter().map(|peer| &peer["peer_id"]).collect();
        assert_eq!(ids, ["admin", "edge", "key:monitor0"]);
        let sources: Vec<_> = peers.iter().map(|peer| &peer["source"]).collect();
        assert_eq!(sources, ["config", "store", "config"]);
        let ends = &peers[1]["key_ends"][format!("ed25519:{}", "02".repeat(32))];
        assert_eq!(ends, "2030-03-17T17:46:40Z");
        assert!(peers[0].get("key_ends").is_none());
        assert_eq!(peers[1]["expires"], "2030-01-01T00:00:00Z");
        assert_eq!(peers[1]["connections"][0]["alpn"], "alknet/call");
        assert_eq!(peers[0]["connections"], json!([]));
        let mut marked = answer.clone();
        let key = entries.peers[0].keys[0];
        mark_dialled(&mut marked, |hub| *hub == key);
        let dialled = marked["peers"].as_array().expect("rows").iter();
        let dialled: Vec<_> = dialled.filter(|row| row["dialled"] == true).collect();
        assert_eq!(dialled.len(), 1, "{marked}");
        assert_eq!(dialled[0]["keys"], json!([key]));
        let text = answer.to_string();
        assert!(
            !text.contains(&"03".repeat(32)),
            "no hash of a token is shown"
        );
    }
}
