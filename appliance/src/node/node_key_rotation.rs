//! `node/rotate-key`: replaces the key that this node serves and dials with.
//!
//! The node keeps its old key until every hub that it joins knows the new one. It notifies the hubs
//! over its open connections, and uses the new key from its next start: every listener, dialler and
//! name of the running process has the old key, and a node starts in a second.
//!
//! This is for a key in a file. A vault derives its key at a fixed path, where the key has no
//! successor: its rotation is another vault, and this operation says so.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_core::PeerKey;
use alknet_tls::{NodeDiagnostics, NodeKey};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::identity_services::IdentityServices;
use super::join::{self, HubConnections};
use crate::cli::CommandError;
use crate::key::{
    KeyFiles, RotationKeys, RotationNoticeError, RotationRecord, RotationStage, tell,
};

/// Code of the problem that a new key waits for the next start.
pub(super) const NODE_KEY_WAITS: &str = "node-key-waits";
/// Scope of callers that may replace the node's key. Such a caller can give itself every right.
const SCOPE: &str = "admin";
/// Maximum time for one hub to answer.
const TELL_TIMEOUT: Duration = Duration::from_secs(15);

/// The node's key, and what its replacement needs.
pub(crate) struct NodeKeyRotation {
    /// `None` if the key is derived.
    files: Option<KeyFiles>,
    /// The key in use until this process ends.
    key: NodeKey,
    identities: IdentityServices,
    reached: HubConnections,
    problems: Arc<NodeDiagnostics>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeyRotateInput {
    drop: Vec<PeerKey>,
}

/// A hub, and why the notice to it failed.
type Refusal = (String, CallError);

/// `node/rotate-key`
pub(crate) fn operation(own: Arc<NodeKeyRotation>) -> Registration {
    let key = json!({ "type": "string", "pattern": "^ed25519:[0-9a-f]{64}$" });
    let spec = OperationSpec::mutation(
        "node/rotate-key",
        "Makes a new key for this node and sends it to the node's hubs. The node uses the key from its next start.",
    )
    .with_input(json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": {
            "drop": { "type": "array", "items": key, "maxItems": 64,
                      "description": "Hubs, by their keys, that do not get the new key" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["node_key", "new_key", "replaced", "in_use", "hubs"],
        "properties": {
            "node_key": key, "new_key": key,
            "replaced": { "type": "boolean",
                "description": "Whether every hub knows the new key, so that the node uses it from its next start" },
            "in_use": { "type": "boolean", "description": "Whether this process uses the new key" },
            "old_key_ends": { "type": ["string", "null"], "format": "date-time" },
            "hubs": { "type": "array", "items": { "type": "object",
                "required": ["hub", "notified"] } },
        }
    }))
    .with_scope(SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, _ctx: Ctx| {
        let own = Arc::clone(&own);
        async move {
            let input: KeyRotateInput = match input.try_value()? {
                Value::Null => KeyRotateInput::default(),
                _ => input.parse()?,
            };
            own.rotate(&input.drop).await
        }
    });
    Registration::new(spec, handler)
}

impl NodeKeyRotation {
    /// `files` are those of the key in use, if a file holds it.
    pub(crate) fn new(
        files: Option<KeyFiles>,
        key: NodeKey,
        identity_services: IdentityServices,
        reached: HubConnections,
        problems: Arc<NodeDiagnostics>,
    ) -> Self {
        if let Some(files) = &files {
            files.tidy();
        }
        Self {
            files,
            key,
            identities: identity_services,
            reached,
            problems,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Rotates as far as possible, and reports how far that is. The next call tries again what
    /// failed.
    async fn rotate(&self, drop: &[PeerKey]) -> Result<Value, CallError> {
        // Two concurrent rotations would each make a key.
        let _turn = self.turn.lock().await;
        let files = self.files()?;
        files.tidy();
        let mut record = files.record().map_err(local)?;
        let keys = files.keys(&record).map_err(local)?;
        if keys.stage == RotationStage::After {
            return Ok(self.answer(files, &keys, &record, &[]));
        }
        self.check(&keys)?;
        let hubs = join::hubs(
            &self.identities.reloader.current().config,
            &self.key.public(),
        );
        let waited_for = hubs.iter().filter(|hub| !drop.contains(hub));
        record.wait_for(waited_for.map(ToString::to_string).collect());
        let keys = files.begin(keys, &mut record).map_err(local)?;
        let refusals = self.notify_all(&keys, &mut record).await;
        // A hub that does not know the new key would refuse the node after its restart.
        if record.is_announced() {
            files.swap(&keys, &mut record).map_err(local)?;
            self.replaced(&keys, &record);
        } else {
            // The record says which hubs know the new key. Another call notifies the others.
            files.write(&record).map_err(local)?;
        }
        Ok(self.answer(files, &keys, &record, &refusals))
    }

    fn files(&self) -> Result<&KeyFiles, CallError> {
        self.files.as_ref().ok_or_else(|| {
            let what = "this node's key is derived from the words of its vault, and stays as long as \
                        they do: another vault is another key ('alknet vault migrate')";
            CallError::new(ErrorCode::Conflict, what)
        })
    }

    /// Checks whether a rotation may begin.
    fn check(&self, keys: &RotationKeys) -> Result<(), CallError> {
        let conflict = |what: &str| Err(CallError::new(ErrorCode::Conflict, what));
        // The notice is signed with the key of the connection, which is the key that this process
        // holds.
        if keys.old.as_ref().map(NodeKey::public) != Some(self.key.public()) {
            return conflict("another key was put in place: restart the node, which then uses it");
        }
        let identities = &self.identities.identities;
        let hub = self.identities.reloader.current().config.hub.enabled;
        let peers = identities.entries().peers;
        let mut enrolled = peers
            .iter()
            .filter(|peer| peer.enabled && !identities.is_configured(&peer.peer_id));
        if hub && enrolled.next().is_some() {
            return conflict(
                "this node is a hub: its key is in what its peers joined by, and they would not \
                 find it again",
            );
        }
        Ok(())
    }

    /// Notifies every hub that does not know the new key yet, all at the same time.
    async fn notify_all(&self, keys: &RotationKeys, record: &mut RotationRecord) -> Vec<Refusal> {
        let waiting = record.targets.iter_mut().filter(|hub| !hub.notified);
        let all = waiting.map(|hub| async move {
            match self.notify(&hub.target, &keys.new).await {
                Ok(response) => {
                    hub.notified = true;
                    hub.peer_id = Some(response.peer_id);
                    hub.old_key_ends = response.old_key_ends;
                    None
                }
                Err(error) => Some((hub.target.clone(), error)),
            }
        });
        let refusals = futures_util::future::join_all(all).await;
        refusals.into_iter().flatten().collect()
    }

    async fn notify(
        &self,
        hub: &str,
        new: &NodeKey,
    ) -> Result<crate::key::RotationResponse, CallError> {
        let not_connected =
            || CallError::unavailable("there is no connection to this hub at the moment");
        let hub: PeerKey = hub.parse().map_err(|_| not_connected())?;
        // The notice goes over the open connection: the hub accepts it only from the key that it is
        // about.
        let connection = self.reached.get(&hub).ok_or_else(not_connected)?;
        let pins = [hub];
        let response = tell(&connection, &pins, &self.key, new);
        let response = timeout(TELL_TIMEOUT, response).await;
        response
            .map_err(|_| CallError::new(ErrorCode::Timeout, "the hub did not answer in time"))?
            .map_err(|error| match error {
                RotationNoticeError::Call(error) => error,
                RotationNoticeError::Clock => CallError::unavailable(error.to_string()),
                RotationNoticeError::Protocol(what) => CallError::internal(what),
            })
    }

    fn replaced(&self, keys: &RotationKeys, record: &RotationRecord) {
        let new = keys.new.public();
        tracing::info!(
            old = self.key.public().short(),
            new = new.short(),
            hubs = record.targets.len(),
            "node.rotate-key"
        );
        let mut text = "this key is used from the next start on".to_owned();
        if let Some(until) = record.old_until() {
            text.push_str(&format!("; the old one counts until {until}"));
        }
        self.problems.set(NODE_KEY_WAITS, &new.to_string(), text);
    }

    fn answer(
        &self,
        files: &KeyFiles,
        keys: &RotationKeys,
        record: &RotationRecord,
        refusals: &[Refusal],
    ) -> Value {
        let new = keys.new.public();
        let hubs = record.targets.iter().map(|hub| {
            let refusal = refusals.iter().find(|(target, _)| *target == hub.target);
            let error = refusal.map(|(_, error)| {
                json!({ "code": error.code.name(), "message": error.message,
                        "details": error.details })
            });
            json!({
                "hub": hub.target,
                "notified": hub.notified,
                "peer_id": hub.peer_id,
                "old_key_ends": hub.old_key_ends,
                "error": error,
            })
        });
        json!({
            "node_key": self.key.public(),
            "new_key": new,
            "replaced": files.in_use().is_ok_and(|key| key == new),
            "in_use": self.key.public() == new,
            "old_key_ends": record.old_until(),
            "hubs": hubs.collect::<Value>(),
        })
    }
}

/// The error of the key's files.
fn local(failure: CommandError) -> CallError {
    CallError::unavailable(failure.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{ConfigOverlay, ConfigStore};
    use alknet_core::config::NodeConfig;
    use alknet_core::{IdentityStore, PeerEntry};

    struct KeyRotationTest {
        dir: tempfile::TempDir,
        config: NodeConfig,
    }

    impl KeyRotationTest {
        fn new(document: &str) -> Self {
            let config = NodeConfig::parse(document.as_bytes());
            Self {
                dir: tempfile::tempdir().expect("a temporary directory"),
                config: config.expect("a correct document"),
            }
        }

        /// The rotation of a node after a start.
        fn start(&self) -> NodeKeyRotation {
            let path = self.dir.path().join("node.key");
            let (key, _) = NodeKey::load_or_create(&path).expect("a key");
            std::fs::create_dir_all(self.dir.path().join("identity")).expect("our own folder");
            let identity_services = crate::node::build_identity_services(
                &self.config,
                ConfigOverlay::default(),
                ConfigStore::nowhere(),
                Vec::new(),
                crate::node::store::open(self.dir.path()),
            );
            let files = KeyFiles::at(path);
            NodeKeyRotation::new(
                Some(files),
                key,
                identity_services,
                HubConnections::default(),
                Arc::default(),
            )
        }
    }

    const HUB: &str = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[tokio::test]
    async fn a_node_without_hubs_has_its_new_key_after_a_start() {
        let place = KeyRotationTest::new("");
        let own = place.start();
        let before = own.key.public();
        let done = own.rotate(&[]).await.expect("room");
        assert_eq!(
            (&done["replaced"], &done["in_use"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(done["node_key"], json!(before));
        assert_eq!(own.problems.list()[0].code, NODE_KEY_WAITS);
        // Another call continues the same rotation.
        let again = own.rotate(&[]).await.expect("the same");
        assert_eq!(again["new_key"], done["new_key"]);
        drop(own);
        let own = place.start();
        assert_eq!(json!(own.key.public()), done["new_key"]);
        let after = own.rotate(&[]).await.expect("the same");
        assert_eq!(
            (&after["new_key"], &after["in_use"]),
            (&done["new_key"], &json!(true))
        );
        assert!(own.problems.list().is_empty());
    }

    #[tokio::test]
    async fn a_hub_that_is_not_there_is_waited_for_or_given_up() {
        let place = KeyRotationTest::new(&format!(
            "[[join]]\naddress = \"192.0.2.1\"\nkey = \"{HUB}\"\n"
        ));
        let own = place.start();
        let waits = own.rotate(&[]).await.expect("room");
        assert_eq!(waits["replaced"], false);
        assert_eq!(
            (&waits["hubs"][0]["hub"], &waits["hubs"][0]["notified"]),
            (&json!(HUB), &json!(false))
        );
        assert_eq!(waits["hubs"][0]["error"]["code"], "UNAVAILABLE");
        // The power is cut: the old key is in use, and the new one stays the same.
        let before = own.key.public();
        drop(own);
        let own = place.start();
        assert_eq!(own.key.public(), before);
        let given_up = [HUB.parse().expect("a key")];
        let done = own.rotate(&given_up).await.expect("room");
        assert_eq!(
            (&done["replaced"], &done["new_key"]),
            (&json!(true), &waits["new_key"])
        );
        assert_eq!(done["hubs"], json!([]));
    }

    #[tokio::test]
    async fn a_hub_with_workers_keeps_its_key() {
        let place = KeyRotationTest::new("[hub]\nenabled = true\n");
        let own = place.start();
        let joined = PeerEntry {
            keys: vec![HUB.parse().expect("a key")],
            ..PeerEntry::new("p1".parse().expect("a peer id"))
        };
        let identities = Arc::clone(&own.identities.identities);
        identities.put(joined).await.expect("room");
        let refused = own.rotate(&[]).await.expect_err("it is pinned");
        assert_eq!(refused.code, ErrorCode::Conflict);
    }
}
