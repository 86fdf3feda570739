//! A node keeps shares for other nodes. The tests check over real connections which peers get a share, and what the
//! command line shows of the shares.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use alknet_call::{ALPN, CallClient, CallConnection, CallError, CallOptions, ErrorCode, Registry};
use alknet_core::config::NodeConfig;
use alknet_core::{AuthToken, Connection, Identities, SystemClock};
use alknet_endpoint::{EndpointDialer, EndpointLimits, Target};
use alknet_escrow::{EscrowVault, EscrowVaultError, ShareId, ShareRegistry, register};
use alknet_tests::{RawTcpConnection, TestBench, wire};
use alknet_tls::NodeKey;
use alknet_vault::{BlobLabel, Entropy, SealedBlob, SecretStr, Vault, VaultError, WordCount};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::local_node::LocalNode;

/// A vault, and the records that it has sealed.
struct SealedShareRecords {
    vault: Vault,
    blobs: Mutex<BTreeMap<ShareId, SealedBlob>>,
}

impl SealedShareRecords {
    fn open() -> Self {
        let vault = Vault::locked();
        let words = Entropy::generate(WordCount::TwentyFour).expect("randomness");
        vault
            .unlock(&words, &SecretStr::empty())
            .expect("it is locked");
        Self {
            vault,
            blobs: Mutex::default(),
        }
    }

    fn label(id: &ShareId) -> BlobLabel {
        format!("escrow:{id}").parse().expect("a label")
    }
}

fn failed(error: VaultError) -> EscrowVaultError {
    match error {
        VaultError::Locked => EscrowVaultError::Locked,
        other => EscrowVaultError::Failed(other.to_string()),
    }
}

impl EscrowVault for SealedShareRecords {
    fn put(&self, id: &ShareId, secret: &[u8]) -> Result<(), EscrowVaultError> {
        let sealed = self.vault.seal(&Self::label(id), secret).map_err(failed)?;
        let mut blobs = self.blobs.lock().expect("no panics here");
        blobs.insert(id.clone(), sealed);
        Ok(())
    }

    fn get(&self, id: &ShareId) -> Result<zeroize::Zeroizing<Vec<u8>>, EscrowVaultError> {
        let blobs = self.blobs.lock().expect("no panics here");
        let sealed = blobs
            .get(id)
            .ok_or(EscrowVaultError::Failed(String::new()))?;
        let secret = self.vault.open(&Self::label(id), sealed).map_err(failed)?;
        Ok(zeroize::Zeroizing::new(secret.expose().to_vec()))
    }

    fn remove(&self, id: &ShareId) -> Result<(), EscrowVaultError> {
        self.blobs.lock().expect("no panics here").remove(id);
        Ok(())
    }
}

/// A node with a share registry, and the keys of the peers that it knows.
struct EscrowFixture {
    here: LocalNode,
    records: Arc<SealedShareRecords>,
    keys: BTreeMap<&'static str, NodeKey>,
    token: AuthToken,
}

impl EscrowFixture {
    fn start(dir: &Path) -> Self {
        let names = [
            "owner", "kitchen", "cellar", "shed", "spare", "guest", "nobody",
        ];
        let keys = names.map(|name| (name, NodeKey::generate().expect("a key")));
        let keys = BTreeMap::from(keys);
        let token = AuthToken::generate().expect("randomness");
        let hash = token.hash().expect("it is well formed");
        let peer = |name: &str, rest: &str| {
            let key = keys[name].public();
            format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\n{rest}\n")
        };
        let document = [
            format!("[node]\nadmin_keys = [\"{}\"]\n", keys["owner"].public()),
            peer(
                "kitchen",
                &format!("scopes = [\"escrow\"]\ntokens = [\"{hash}\"]"),
            ),
            peer("cellar", "scopes = [\"escrow\"]"),
            peer("guest", "scopes = [\"node:read\"]"),
            // A peer with two keys.
            format!(
                "[[peers]]\npeer_id = \"shed\"\nkeys = [\"{}\", \"{}\"]\nscopes = [\"escrow\"]\n",
                keys["shed"].public(),
                keys["spare"].public()
            ),
        ];
        let config = NodeConfig::parse(document.concat().as_bytes());
        let config = config.unwrap_or_else(|errors| panic!("{errors:#?}"));
        let records = Arc::new(SealedShareRecords::open());
        let share_registry = Arc::new(ShareRegistry::open(dir, Arc::clone(&records) as _));
        // The share registry and the node look peers up in the same configuration.
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(config.entries(), clock));
        let mut builder = Registry::builder();
        register(&mut builder, &share_registry, &identities);
        let operations = builder.build().expect("every schema is one");
        Self {
            here: LocalNode::start(&config, operations, EndpointLimits::default()),
            records,
            keys,
            token,
        }
    }

    async fn call(&self, who: &str, operation: &str, input: Value) -> Result<Value, CallError> {
        let (_dialer, client) = self.connect(who).await;
        client
            .call(operation, &input)
            .await
            .map(|answer| answer.value().clone())
    }

    async fn connect(&self, who: &str) -> (EndpointDialer, CallConnection) {
        let (dialer, connection) = self.dial(who).await;
        (
            dialer,
            CallClient::without_operations().attach(connection, None),
        )
    }

    fn target(&self) -> Target {
        Target {
            pins: vec![self.here.key.public()],
            host: alknet_core::DialHost::Ip(Ipv4Addr::LOCALHOST.into()),
            port: self.here.server.port(),
        }
    }

    async fn dial(&self, who: &str) -> (EndpointDialer, Connection) {
        let dialer = EndpointDialer::new(Some(self.keys[who].clone()));
        let connection = dialer.dial(&self.target(), ALPN).await;
        (dialer, connection.expect("it serves"))
    }

    /// What the node answers to a request from this address for the share of `kitchen`.
    fn release_from(&self, from: Ipv4Addr, wanted: &Value) -> Value {
        let key = Some(self.keys["kitchen"].clone());
        block_in_place(|| {
            let connection = RawTcpConnection::connect(&self.target(), from, key, ALPN);
            let mut connection = connection.expect("it is known");
            let request = wire::request("1", "escrow/release", wanted);
            connection.say(&request).expect("it is taken");
            connection.event().expect("an answer")["payload"].take()
        })
    }
}

fn code(result: Result<Value, CallError>) -> String {
    result.expect_err("refused").code.name().to_owned()
}

fn deposit(byte: u8) -> Value {
    let share = data_encoding::HEXLOWER.encode(&[byte; 32]);
    json!({ "share": share, "vault": "f0f1f2f3-f4f5-46f7-b8f9-fafbfcfdfeff" })
}

#[tokio::test]
async fn a_share_is_released_to_the_key_that_left_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let scene = EscrowFixture::start(dir.path());
    for (who, refused) in [("nobody", "UNAUTHENTICATED"), ("guest", "FORBIDDEN")] {
        let answer = scene.call(who, "escrow/deposit", deposit(1)).await;
        assert_eq!(code(answer), refused, "{who}");
    }
    let answer = scene.call("kitchen", "escrow/deposit", deposit(7)).await;
    let id = answer.expect("taken")["id"].clone();
    let wanted = json!({ "id": id });
    let got = scene
        .call("kitchen", "escrow/release", wanted.clone())
        .await;
    assert_eq!(got.expect("its own")["share"], deposit(7)["share"]);

    // The node refuses a share to the keys of another peer and of the owner: a share belongs to one key.
    for who in ["cellar", "owner"] {
        let answer = scene.call(who, "escrow/release", wanted.clone()).await;
        assert_eq!(code(answer), "NOT_FOUND", "{who}");
    }
    // A token of the same peer does not replace the peer's key.
    let (_dialer, client) = scene.connect("nobody").await;
    let options = CallOptions {
        auth_token: Some(scene.token.expose().to_owned()),
        ..CallOptions::default()
    };
    let answer = client.call_with("escrow/release", &wanted, &options).await;
    assert_eq!(answer.expect_err("refused").code, ErrorCode::Forbidden);
    // A peer that deposits shares may not manage them.
    for operation in [
        "escrow/list",
        "escrow/approve",
        "escrow/change",
        "escrow/revoke",
    ] {
        let input = match operation {
            "escrow/list" => Value::Null,
            _ => json!({ "share": id }),
        };
        assert_eq!(
            code(scene.call("kitchen", operation, input).await),
            "FORBIDDEN"
        );
    }
    for bad in [
        json!({}),
        json!({ "share": "07", "vault": "v" }),
        json!({ "share": "0".repeat(64), "vault": "v", "key": "ed25519:00" }),
        json!({ "share": "0".repeat(64), "vault": "v", "from": ["192.0.2.1/24"] }),
        json!({ "share": "0".repeat(64), "vault": "a b" }),
    ] {
        let answer = scene.call("cellar", "escrow/deposit", bad).await;
        assert_eq!(code(answer), "INVALID_INPUT");
    }
}

/// A hub passes a request of its client on, and does not name the client. The request has the hub's key, and only the
/// number of hops shows that the hub does not ask for itself.
#[tokio::test]
async fn a_share_is_kept_and_released_through_no_node_in_between() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let scene = EscrowFixture::start(dir.path());
    let (_dialer, connection) = scene.dial("kitchen").await;
    let ask = async |operation: &str, input: Value, hops: u8| {
        let id = format!("{operation}-{hops}");
        let operation = format!("/{operation}");
        let payload = json!({ "operationId": operation, "input": input, "hops": hops });
        let event = json!({ "type": "call.requested", "id": id, "payload": payload });
        let (mut send, mut recv) = wire::stream(&connection).await.expect("it is open");
        let frame = wire::frame(event.to_string().as_bytes());
        send.write_chunk(frame.into()).await.expect("it is open");
        wire::event(&mut recv).await.expect("an answer")
    };
    let passed_on = ask("escrow/deposit", deposit(8), 1).await;
    assert_eq!(passed_on["payload"]["code"], "FORBIDDEN", "{passed_on}");
    // The client behind the hub has not taken the place of the hub's own share.
    let own = ask("escrow/deposit", deposit(7), 0).await;
    assert_eq!(own["type"], "call.responded", "{own}");
    let wanted = json!({ "id": own["payload"]["output"]["id"] });
    let passed_on = ask("escrow/release", wanted.clone(), 1).await;
    assert_eq!(passed_on["payload"]["code"], "FORBIDDEN", "{passed_on}");
    let own = ask("escrow/release", wanted, 0).await;
    assert_eq!(own["payload"]["output"]["share"], deposit(7)["share"]);
}

#[tokio::test]
async fn the_owner_binds_approves_and_takes_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let scene = EscrowFixture::start(dir.path());
    let answer = scene.call("kitchen", "escrow/deposit", deposit(7)).await;
    let id = answer.expect("taken")["id"].clone();
    let wanted = json!({ "id": id });
    let release = async || {
        scene
            .call("kitchen", "escrow/release", wanted.clone())
            .await
    };
    let owner = async |operation: &str, input: Value| {
        let answer = scene.call("owner", operation, input).await;
        answer.unwrap_or_else(|error| panic!("{operation}: {error}"))
    };

    owner(
        "escrow/change",
        json!({ "share": "kitchen", "from": ["192.0.2.0/24"] }),
    )
    .await;
    let refused = release().await.expect_err("it comes from elsewhere");
    assert_eq!(refused.code, ErrorCode::Forbidden);
    assert_eq!(refused.details.expect("why")["reason"], "address");
    let home = json!({ "share": "kitchen", "from": ["127.0.0.0/8"], "approve": true });
    owner("escrow/change", home).await;
    assert_eq!(code(release().await), "APPROVAL_PENDING");
    let listed = owner("escrow/list", Value::Null).await;
    let row = &listed["shares"][0];
    assert_eq!(
        (&row["state"], &row["waiting_at"]),
        (&json!("waiting"), &json!("127.0.0.1"))
    );
    assert_eq!((&row["refusals"], &row["releases"]), (&json!(2), &json!(0)));
    assert!(!listed.to_string().contains("0707"), "{listed}");
    owner("escrow/approve", json!({ "share": id, "seconds": 60 })).await;
    assert!(release().await.is_ok());
    let listed = owner("escrow/list", Value::Null).await;
    let row = &listed["shares"][0];
    assert_eq!(
        (&row["state"], &row["releases"]),
        (&json!("kept"), &json!(1))
    );
    assert_eq!(row["released_to"], "127.0.0.1");

    // The release used the approval up.
    owner("escrow/approve", json!({ "share": id, "seconds": 60 })).await;
    scene.records.vault.lock();
    let locked = release().await.expect_err("the vault is locked");
    assert_eq!(locked.code, ErrorCode::Unavailable);
    assert_eq!(locked.details.expect("why")["reason"], "vault_locked");
    // The owner can revoke a share while the vault is locked.
    owner("escrow/revoke", json!({ "share": "kitchen" })).await;
    assert_eq!(code(release().await), "REVOKED");
    assert!(
        scene
            .records
            .blobs
            .lock()
            .expect("no panics here")
            .is_empty()
    );
    let listed = owner("escrow/list", Value::Null).await;
    assert_eq!(listed["shares"][0]["revoked_by"], "admin");
    let none = scene
        .call("owner", "escrow/revoke", json!({ "share": "cellar" }))
        .await;
    assert_eq!(code(none), "NOT_FOUND");
}

/// Two shares of one peer have one name, by which the owner could take back neither.
#[tokio::test]
async fn a_peer_has_one_share_whichever_key_it_shows() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let scene = EscrowFixture::start(dir.path());
    let left = scene.call("shed", "escrow/deposit", deposit(7)).await;
    let wanted = json!({ "id": left.expect("taken")["id"] });
    let second = scene.call("spare", "escrow/deposit", deposit(8)).await;
    assert_eq!(code(second), "CONFLICT");
    let released = scene.call("shed", "escrow/release", wanted).await;
    assert_eq!(released.expect("its own")["share"], deposit(7)["share"]);
    let revoke = json!({ "share": "shed" });
    let revoked = scene.call("owner", "escrow/revoke", revoke).await;
    revoked.expect("it has one name");
    let second = scene.call("spare", "escrow/deposit", deposit(8)).await;
    assert!(second.is_ok(), "{second:?}");
}

/// A copy of the machine's disk has the key of its slot, and asks from another address, every few seconds. The
/// administrator approves the start of the machine.
#[tokio::test(flavor = "multi_thread")]
async fn an_approval_opens_no_copy_of_the_disk() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let scene = EscrowFixture::start(dir.path());
    let mut bound = deposit(7);
    bound["approve"] = json!(true);
    let answer = scene.call("kitchen", "escrow/deposit", bound).await;
    let wanted = json!({ "id": answer.expect("taken")["id"] });
    let ask = |last: u8| scene.release_from(Ipv4Addr::new(127, 0, 0, last), &wanted);
    let approve = async |address: Option<&str>| {
        let input = json!({ "share": "kitchen", "address": address });
        scene.call("owner", "escrow/approve", input).await
    };
    let (machine, copy) = (2, 3);
    for last in [copy, machine, copy] {
        assert_eq!(ask(last)["code"], "APPROVAL_PENDING");
    }
    let listed = scene.call("owner", "escrow/list", Value::Null).await;
    let row = &listed.expect("a list")["shares"][0];
    assert_eq!(row["waiting_from"], json!(["127.0.0.2", "127.0.0.3"]));
    let unsaid = approve(None).await.expect_err("two of them wait");
    assert_eq!(unsaid.code, ErrorCode::Conflict);
    assert!(unsaid.message.contains("127.0.0.3"), "{unsaid}");
    approve(Some("127.0.0.2")).await.expect("approved");
    assert_eq!(ask(copy)["code"], "APPROVAL_PENDING");
    assert_eq!(ask(machine)["output"]["share"], deposit(7)["share"]);
    for last in [copy, machine] {
        assert_eq!(ask(last)["code"], "APPROVAL_PENDING");
    }
}

/// A node without a vault cannot keep a share, and refuses a deposit with `CONFLICT`.
#[test]
fn a_node_without_a_vault_keeps_no_shares() {
    let bench = TestBench::new();
    let node = bench.host();
    let admin = bench.admin();
    let answer = admin.call(node.target(), "escrow/deposit", &deposit(7), &[]);
    assert_eq!(answer.code(), "CONFLICT", "{answer:?}");
    let list = admin.run(admin.command(&["escrow", "list", node.target()]));
    assert_eq!(list.json(), json!({ "shares": [] }));
    let revoke = admin.run(admin.command(&["escrow", "revoke", node.target(), "kitchen"]));
    assert_eq!((revoke.status, revoke.code()), (1, "NOT_FOUND".to_owned()));
    let nothing = admin.run(admin.command(&["escrow", "change", node.target(), "kitchen"]));
    assert_eq!((nothing.status, nothing.code()), (2, "USAGE".to_owned()));
    let user = bench.user("somebody");
    let answer = user.call(node.target(), "escrow/list", &Value::Null, &[]);
    assert_eq!(answer.code(), "UNAUTHENTICATED", "{answer:?}");
}
