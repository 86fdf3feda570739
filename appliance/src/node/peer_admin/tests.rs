//! Adds, changes and removes peers of a store, without a connection.

use alknet_call::Registry;
use alknet_core::IdentityKind;
use alknet_core::config::NodeConfig;
use tempfile::TempDir;

use super::*;
use crate::node::{ConfigOverlay, ConfigStore};

/// When the token of these nodes ends.
const MONITOR_ENDS: &str = "2090-01-01T00:00:00Z";

/// A node with one administrator, one configured peer, one token that ends, and one role.
struct PeerAdminTestNode {
    admin: PeerAdmin,
    _folder: TempDir,
}

fn key(n: u8) -> PeerKey {
    PeerKey::Ed25519([n; 32])
}

fn node() -> PeerAdminTestNode {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let document = format!(
        "node.admin_keys = [\"{}\"]\n[[peers]]\npeer_id = \"fixed\"\nkeys = [\"{}\"]\n\
         [[api_keys]]\nkey_id = \"monitor0\"\nsha256 = \"{}\"\nexpires = \"{MONITOR_ENDS}\"\n\
         [[hub.role]]\nname = \"reader\"\nscopes = [\"node:read\"]\n",
        key(100),
        key(101),
        "03".repeat(32)
    );
    let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
    // A node makes this folder with its key.
    std::fs::create_dir(folder.path().join("identity")).expect("the folder is ours");
    let store = crate::node::store::open(folder.path());
    let (overlay, config_store) = (ConfigOverlay::default(), ConfigStore::nowhere());
    let identity_services =
        crate::node::build_identity_services(&config, overlay, config_store, Vec::new(), store);
    PeerAdminTestNode {
        admin: PeerAdmin {
            identities: identity_services,
            enrolment: None,
            turn: Arc::default(),
        },
        _folder: folder,
    }
}

fn who(scopes: &[&str]) -> Identity {
    Identity {
        id: "admin".parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: BTreeMap::new(),
        generation: 0,
    }
}

impl PeerAdminTestNode {
    async fn add(&self, input: Value) -> Result<Value, CallError> {
        let input = serde_json::from_value(input).expect("the input of peer/add");
        self.admin.add(input, &who(&["*"])).await
    }

    async fn set(&self, input: Value) -> Result<Value, CallError> {
        let input = serde_json::from_value(input).expect("the input of peer/set");
        self.admin.set(input, &who(&["*"])).await
    }

    async fn remove(&self, peer: &str) -> Result<Value, CallError> {
        let input = PeerRemoveInput {
            peer: peer.to_owned(),
        };
        self.admin.remove(input, &who(&["*"])).await
    }

    fn knows(&self, n: u8) -> bool {
        self.admin.identities.identities.by_key(&key(n)).is_some()
    }

    fn allows(&self, n: u8, scope: &str) -> bool {
        let holder = self.admin.identities.identities.by_key(&key(n));
        holder.is_some_and(|holder| holder.scopes.allows(scope))
    }
}

/// The error code of a refusal.
fn code(answer: Result<Value, CallError>) -> ErrorCode {
    answer.expect_err("it is refused").code
}

#[test]
fn every_schema_of_these_operations_compiles() {
    let node = node();
    let mut builder = Registry::builder();
    register(&mut builder, &node.admin.identities, None);
    let registry = builder.build().expect("every schema is one");
    for name in ["peer/add", "peer/remove", "peer/set"] {
        assert!(registry.spec(name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn a_peer_is_added_changed_and_removed() {
    let node = node();
    let ada = json!({ "peer_id": "ada", "keys": [key(1)], "role": "reader",
                      "display_name": " Ada's laptop " });
    let added = node.add(ada).await.expect("a new peer");
    assert_eq!(added["display_name"], "Ada's laptop");
    assert_eq!(
        (&added["source"], &added["enabled"]),
        (&json!("store"), &json!(true))
    );
    assert!(node.allows(1, "node:read") && !node.allows(1, "peer:list"));

    let more = json!({ "peer": "ada", "keys": [key(2)], "scopes": ["peer:list"],
                       "display_name": null, "ttl_s": 3600 });
    let changed = node.set(more).await.expect("it is there");
    assert!(changed["expires"].is_string(), "{changed}");
    assert!(changed.get("display_name").is_none(), "{changed}");
    assert!(!node.knows(1) && node.allows(2, "peer:list") && !node.allows(2, "node:read"));
    let endless = node.set(json!({ "peer": "ada", "ttl_s": null })).await;
    assert!(endless.expect("it is there").get("expires").is_none());
    assert_eq!(
        code(node.set(json!({ "peer": "ada" })).await),
        ErrorCode::InvalidInput
    );

    let removed = node.remove("ada").await.expect("it is there");
    assert_eq!(removed["known"], false);
    assert!(!node.knows(2));
    assert_eq!(code(node.remove("ada").await), ErrorCode::NotFound);
    let again = json!({ "peer_id": "ada", "keys": [key(2)] });
    assert_eq!(
        node.add(again).await.expect("a new peer")["scopes"],
        json!([])
    );
}

#[tokio::test]
async fn a_name_and_a_key_belong_to_one_peer() {
    let node = node();
    let ada = json!({ "peer_id": "ada", "keys": [key(1)], "display_name": "laptop" });
    node.add(ada).await.expect("a new peer");
    for (id, n, expected) in [
        ("ada", 2, ErrorCode::Conflict),
        ("laptop", 2, ErrorCode::Conflict),
        ("fixed", 2, ErrorCode::Conflict),
        ("bob", 1, ErrorCode::Conflict),
        ("bob", 100, ErrorCode::Conflict),
        ("bob", 101, ErrorCode::Conflict),
        ("admin", 2, ErrorCode::InvalidInput),
        ("admin-7", 2, ErrorCode::InvalidInput),
        ("Bob", 2, ErrorCode::InvalidInput),
    ] {
        let refused = node.add(json!({ "peer_id": id, "keys": [key(n)] })).await;
        assert_eq!(code(refused), expected, "{id} {n}");
    }
    // Entries of the configuration can only be changed in the configuration.
    for peer in ["fixed", "admin"] {
        let refused = node.set(json!({ "peer": peer, "enabled": false })).await;
        assert_eq!(code(refused), ErrorCode::Conflict, "{peer}");
        assert_eq!(code(node.remove(peer).await), ErrorCode::Conflict, "{peer}");
    }
    assert!(node.knows(100) && node.knows(101));
}

#[tokio::test]
async fn a_caller_gives_no_more_than_it_holds() {
    let node = node();
    for scope in ["*", "admin", "admin:*", "a b"] {
        let input = json!({ "peer_id": "ada", "keys": [key(1)], "scopes": [scope] });
        assert_eq!(
            code(node.add(input).await),
            ErrorCode::InvalidInput,
            "{scope}"
        );
    }
    let strong = json!({ "peer_id": "ada", "keys": [key(1)], "scopes": ["fs:read"] });
    node.add(strong).await.expect("a new peer");
    let weak = who(&["admin"]);
    let input = PeerAddInput {
        peer_id: "bob".to_owned(),
        keys: vec![key(2).to_string()],
        scopes: Some(vec!["fs:read".to_owned()]),
        role: None,
        display_name: None,
        ttl_s: None,
    };
    assert_eq!(
        code(node.admin.add(input, &weak).await),
        ErrorCode::Forbidden
    );
    // A caller that adds its own key would gain the peer's rights.
    let own_key = json!({ "peer": "ada", "keys": [key(3)] });
    let own_key = serde_json::from_value(own_key).expect("the input of peer/set");
    assert_eq!(
        code(node.admin.set(own_key, &weak).await),
        ErrorCode::Forbidden
    );
    assert!(!node.knows(3) && node.knows(1));
    // A caller that only takes rights away needs no more than the scope of the operation.
    let off = json!({ "peer": "ada", "enabled": false });
    let off = serde_json::from_value(off).expect("the input of peer/set");
    node.admin.set(off, &weak).await.expect("it is there");
    assert!(!node.knows(1));
}

/// A caller's own key on a peer without an end would outlive the caller's access.
#[tokio::test]
async fn a_caller_gives_access_for_no_longer_than_it_has_itself() {
    let node = node();
    let caller = Identity {
        id: node.admin.identities.identities.entries().api_keys[0].id(),
        ..who(&["*"])
    };
    let set = async |input: Value| {
        let input = serde_json::from_value(input).expect("the input of peer/set");
        node.admin.set(input, &caller).await
    };
    let ada =
        json!({ "peer_id": "ada", "keys": [key(1), key(2)], "scopes": ["fs:read", "fs:write"] });
    node.add(ada).await.expect("a new peer");
    for gives in [
        json!({ "peer": "ada", "keys": [key(1), key(3)] }),
        json!({ "peer": "ada", "scopes": ["node:read"] }),
        json!({ "peer": "ada", "ttl_s": 4_000_000_000_u64 }),
    ] {
        assert_eq!(
            code(set(gives.clone()).await),
            ErrorCode::Forbidden,
            "{gives}"
        );
    }
    assert!(!node.knows(3) && !node.allows(1, "node:read"));
    // Every caller may take rights away.
    let fewer = json!({ "peer": "ada", "keys": [key(1)], "scopes": ["fs:read"] });
    set(fewer).await.expect("it gives nothing");
    set(json!({ "peer": "ada", "enabled": false }))
        .await
        .expect("it gives nothing");
    let back = set(json!({ "peer": "ada", "enabled": true })).await;
    assert_eq!(code(back), ErrorCode::Forbidden);
    // With the caller's own end, the peer is enabled again.
    let ended = set(json!({ "peer": "ada", "enabled": true, "ttl_s": null })).await;
    assert_eq!(ended.expect("it ends")["expires"], MONITOR_ENDS);
    assert!(node.allows(1, "fs:read"));
    let more = json!({ "peer": "ada", "scopes": ["node:read"] });
    set(more).await.expect("it ends as the caller does");
}

/// Who found the key may have the text of an invitation of the peer.
#[tokio::test]
async fn a_key_that_an_enrolled_peer_loses_stays_known_and_out() {
    let node = node();
    let identities = &node.admin.identities.identities;
    for (name, n) in [("enrolled", 1), ("added", 2)] {
        let peer = json!({ "peer_id": name, "keys": [key(n)] });
        node.add(peer).await.expect("a new peer");
    }
    // As a hub marks a peer that enrolled.
    let mark = PeerPatch {
        labels: Some([(ROLE_LABEL.to_owned(), WORKER.to_owned())].into()),
        ..PeerPatch::default()
    };
    let id: PeerId = "enrolled".parse().expect("a peer id");
    identities.patch(id, mark).await.expect("it is there");
    for (name, n, stays_known) in [("enrolled", 1, true), ("added", 2, false)] {
        let other = json!({ "peer": name, "keys": [key(n + 2)] });
        node.set(other).await.expect("it is there");
        assert!(!node.knows(n) && node.knows(n + 2), "{name}");
        let all = identities.list().await.expect("listed");
        let entry = all.iter().find(|peer| peer.peer_id.as_str() == name);
        let entry = entry.expect("it is there");
        let found = (entry.keys.contains(&key(n)), entry.removal.is_some());
        assert_eq!(found, (stays_known, stays_known), "{name}");
        let back = node.set(json!({ "peer": name, "keys": [key(n)] })).await;
        assert_eq!(back.is_err(), stays_known, "{name}");
    }
}

#[tokio::test]
async fn a_disabled_peer_keeps_what_it_had_and_a_removed_one_names_its_keys() {
    let node = node();
    let ada = json!({ "peer_id": "ada", "keys": [key(1), key(2)], "scopes": ["node:read"] });
    node.add(ada).await.expect("a new peer");
    let off = node.set(json!({ "peer": "ada", "enabled": false })).await;
    assert_eq!(off.expect("it is there")["enabled"], false);
    assert!(!node.knows(1) && !node.knows(2));
    let on = node.set(json!({ "peer": "ada", "enabled": true })).await;
    on.expect("it is there");
    assert!(node.allows(1, "node:read") && node.knows(2));
    // A key that such a peer loses stays known, and is not admitted again.
    let fewer = json!({ "peer": "ada", "keys": [key(1)] });
    node.set(fewer).await.expect("it is there");
    assert!(node.knows(1) && !node.knows(2));
    let back = node.set(json!({ "peer": "ada", "keys": [key(2)] })).await;
    assert_eq!(code(back), ErrorCode::Conflict);

    // A hub leaves a removed peer in this state.
    let tombstone = PeerPatch {
        enabled: Some(false),
        scopes: Some(ScopeSet::default()),
        removal: Some(9),
        ..PeerPatch::default()
    };
    let id: PeerId = "ada".parse().expect("a peer id");
    let patched = node.admin.identities.identities.patch(id, tombstone).await;
    patched.expect("it is there");
    let unasked = node.set(json!({ "peer": "ada", "enabled": true })).await;
    assert_eq!(code(unasked), ErrorCode::Conflict);
    let named = json!({ "peer": "ada", "enabled": true, "keys": [key(4)] });
    node.set(named).await.expect("its key is new");
    assert!(node.knows(4) && !node.knows(1));
}

/// Its entry stays because an invitation was open, or because it enrolled.
#[tokio::test]
async fn who_adds_the_name_of_a_removed_peer_learns_what_to_do() {
    let node = node();
    let enrolled = (ROLE_LABEL.to_owned(), WORKER.to_owned());
    for (name, n, labels) in [("added", 1, None), ("enrolled", 2, Some(enrolled))] {
        let is_forgotten = labels.is_none();
        let removed = PeerEntry {
            keys: vec![key(n)],
            labels: labels.into_iter().collect(),
            enabled: false,
            removal: Some(1),
            ..PeerEntry::new(name.parse().expect("a peer id"))
        };
        let put = node.admin.identities.identities.put(removed).await;
        put.expect("a new peer");
        let other = json!({ "peer_id": name, "keys": [key(n + 2)] });
        let refused = node.add(other.clone()).await.expect_err("it is known");
        assert_eq!(refused.code, ErrorCode::Conflict);
        let set = format!("'alknet peer set NODE {name} --enable --key KEY'");
        let message = &refused.message;
        assert!(
            message.contains("invite it") && message.contains(&set),
            "{message}"
        );
        assert_eq!(
            message.contains("repeat peer/remove"),
            is_forgotten,
            "{message}"
        );
        // What the message says helps.
        let again = node.remove(name).await.expect("it is known");
        assert_eq!(again["known"], !is_forgotten);
        assert_eq!(node.add(other).await.is_ok(), is_forgotten, "{name}");
        let key = json!({ "peer": name, "enabled": true, "keys": [key(n + 4)] });
        node.set(key).await.expect("its key is new");
        assert!(node.knows(n + 4), "{name}");
    }
}
