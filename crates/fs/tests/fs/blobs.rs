//! Contents by hash between nodes: who may share them, fetch them, and ask peers for them.

use std::sync::Arc;

use alknet_core::{
    AuthContext, BoxFuture, Carriage, Connection, DialError, DialErrorKind, PeerId, PeerKey,
    ProtocolHandler, memory_pair,
};
use alknet_fs::{
    BLOBS_ALPN, BlobHandler, BlobOptions, BlobPeers, BlobRequest, BlobSelections, FileOpening,
    FileTree, FsFileTree, FsRequester, OpenFile,
};
use alknet_store::{
    ChangeRequest, ContentHash, ContentPresence, FileContent, MAIN_BRANCH, TreeChange,
};
use serde_json::{Value, json};

use crate::mount_client::MountClient;
use crate::scene::{FilesNode, FilesPeer, base64, broken_off, hung, identity, next, noise};

const KEY: PeerKey = PeerKey::Ed25519([7; 32]);

/// One peer, `bob`, to which the getter is the holder of [`KEY`].
#[derive(Debug)]
struct Bob(Arc<BlobHandler>);

impl BlobPeers for Bob {
    fn known(&self) -> Vec<PeerId> {
        vec!["bob".parse().expect("a peer id")]
    }

    fn connect<'a>(&'a self, peer: &'a PeerId) -> BoxFuture<'a, Result<Connection, DialError>> {
        Box::pin(async move {
            match peer.as_str() {
                "bob" => Ok(connect(&self.0)),
                _ => Err(DialError::new(DialErrorKind::UnknownPeer, "no such peer")),
            }
        })
    }
}

fn connect(handler: &Arc<BlobHandler>) -> Connection {
    let (ours, theirs) = memory_pair(BLOBS_ALPN);
    let auth = AuthContext {
        identity: None,
        key: Some(KEY),
        alpn: BLOBS_ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    };
    tokio::spawn(Arc::clone(handler).handle(theirs, auth));
    ours
}

fn handler(node: &FilesNode) -> Arc<BlobHandler> {
    Arc::new(BlobHandler::new(&node.service, BlobOptions::default()))
}

/// Names a content whose bytes are on peers only, as an exchange of names does.
async fn want(node: &FilesNode, path: &str, bytes: &[u8]) -> String {
    want_in(node, "docs", path, bytes).await
}

async fn want_in(node: &FilesNode, bucket: &str, path: &str, bytes: &[u8]) -> String {
    let hash = ContentHash::new(*blake3::hash(bytes).as_bytes());
    let wanted = FileContent {
        presence: ContentPresence::Wanted,
        ..FileContent::new(hash, bytes.len() as u64)
    };
    let put = TreeChange::put(path.parse().expect("a path"), wanted);
    let lease = node.service.lease().await.expect("a store");
    let (bucket, main) = (
        bucket.parse().expect("a name"),
        MAIN_BRANCH.parse().expect("a name"),
    );
    let found = lease.read(move |tx| {
        let bucket = tx.bucket_by_name(&bucket)?;
        tx.branch_by_name(bucket.id, &main)
    });
    let branch = found.await.expect("there").id;
    let request = ChangeRequest::new(branch, "alice", put);
    lease.apply(request, Vec::new()).await.expect("a name");
    hash.to_string()
}

async fn share(admin: &FilesPeer, hash: &Value) -> Value {
    let share = json!({ "bucket": "docs", "hash": hash, "key": KEY.to_string(), "time_s": 3600 });
    admin.call("fs/share", share).await
}

#[tokio::test]
async fn a_content_is_shared_found_and_fetched() {
    let (bob, node) = (FilesNode::new(), FilesNode::new());
    let (bobs_admin, admin) = (bob.admin().await, node.admin().await);
    let bytes = noise(700_000);
    let hash = bobs_admin.upload("docs:/a", &bytes).await["hash"].clone();
    node.service.set_peers(Arc::new(Bob(handler(&bob))));
    want(&node, "/a", &bytes).await;
    assert_eq!(
        admin.call("fs/blob/status", json!({ "hash": hash })).await["status"],
        "wanted"
    );
    let asked = json!({ "hash": hash, "from": ["bob", "carol"] });
    let statuses = async |asked: &Value| {
        let answer = admin.call("fs/blob/providers", asked.clone()).await;
        let providers = answer["providers"].as_array().expect("a list").clone();
        let status = |provider: &Value| provider["status"].as_str().expect("a text").to_owned();
        providers.iter().map(status).collect::<Vec<_>>()
    };
    // Without a share the peer does not even keep the connection.
    assert_eq!(statuses(&asked).await, ["unreachable", "unreachable"]);
    let wanted = json!({ "bucket": "docs", "hash": hash, "from": ["bob", "carol"] });
    let ended = admin.broken("fs/blob/fetch", wanted).await;
    assert_eq!(ended.0, "CONTENT_UNAVAILABLE");
    share(&bobs_admin, &hash).await;
    assert_eq!(statuses(&asked).await, ["complete", "unreachable"]);
    assert_eq!(statuses(&json!({ "hash": hash })).await, ["complete"]);
    let wanted = json!({ "bucket": "docs", "hash": hash });
    let mut items = admin.subscribe("fs/blob/fetch", wanted).await;
    let last = loop {
        let item = next(&mut items).await.output.value().clone();
        if item["done"] == json!(true) {
            break item;
        }
    };
    assert_eq!(
        last,
        json!({ "fetched": 700_000, "size": 700_000, "done": true })
    );
    let (head, read) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(head["hash"], hash);
    assert!(read == bytes);
    // What is here is not fetched again.
    let wanted = json!({ "bucket": "docs", "hash": hash });
    let mut items = admin.subscribe("fs/blob/fetch", wanted).await;
    let first = next(&mut items).await.output.value().clone();
    assert_eq!(first["done"], json!(true));
}

/// Changes a byte of a content in the folder of a node.
fn damage(node: &FilesNode, hash: &Value, at: usize) {
    let hash = hash.as_str().expect("a text");
    let object = node.path("content/objects").join(&hash[..2]).join(hash);
    let mut bytes = std::fs::read(&object).expect("it lies there");
    bytes[at] ^= 1;
    std::fs::remove_file(&object).expect("writable");
    std::fs::write(&object, &bytes).expect("writable");
}

/// Whatever reads the file: an operation, a client over HTTP, or one with open files.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_content_is_a_problem_until_a_peer_has_sent_it_again() {
    const GROUP: usize = 16 << 10;
    const DAMAGED_AT: usize = 200_000;
    let (bob, node) = (FilesNode::new(), FilesNode::checked());
    let (bobs_admin, admin) = (bob.admin().await, node.admin().await);
    let client = MountClient::new(&node, "root", &["fs:*"]);
    let requester = FsRequester::of_identity(identity("root", &["fs:*"]));
    let tree = FsFileTree::new(node.service.clone(), requester);
    node.service.set_peers(Arc::new(Bob(handler(&bob))));
    let problems = || {
        let problems = node.service.problems().into_iter();
        let shown = problems.map(|it| format!("{}: {}", it.code, it.text));
        shown.collect::<Vec<_>>()
    };
    let contents = [noise(300_000), noise(400_000), noise(500_000)];
    let paths = ["docs:/a", "docs:/b", "docs:/c"];
    for (path, content) in paths.iter().zip(&contents) {
        let hash = admin.upload(path, content).await["hash"].clone();
        bobs_admin.upload(path, content).await;
        share(&bobs_admin, &hash).await;
        damage(&node, &hash, DAMAGED_AT);
    }
    assert_eq!(problems(), [""; 0], "nothing has read them");
    for path in paths {
        let ended = admin.broken("fs/read", json!({ "path": path })).await;
        let before = DAMAGED_AT / GROUP * GROUP;
        assert_eq!(ended, ("CONTENT_MISSING".to_owned(), before), "{path}");
    }
    let damaged = problems();
    let expected = "files-content-damaged: 3 contents";
    assert!(
        damaged.len() == 1 && damaged[0].starts_with(expected),
        "{damaged:?}"
    );
    // Without synchronisation no peer is asked.
    let ended = admin.broken("fs/read", json!({ "path": paths[0] })).await;
    assert_eq!(ended, ("CONTENT_MISSING".to_owned(), 0));
    client.get("/fs/docs/b").await.expect(500);
    let refused = tree.open("/docs/c", FileOpening::reading()).await;
    assert_eq!(refused.expect_err("damaged").sftp_status(), 4);
    let lazy = json!({ "bucket": "docs", "synced": true, "fetch": "lazy" });
    admin.call("fs/bucket/set", lazy).await;
    let (_, read) = admin.read(json!({ "path": paths[0] })).await;
    assert!(read == contents[0]);
    assert!(problems()[0].starts_with("files-content-damaged: 2 contents"));
    assert!(client.get("/fs/docs/b").await.expect(200).body == contents[1]);
    let file = tree.open("/docs/c", FileOpening::reading()).await;
    let part = file.expect("it comes").read_at(0, 1 << 20).await;
    let part = part.expect("whole");
    assert!(!part.is_empty() && contents[2].starts_with(&part));
    assert_eq!(problems(), [""; 0]);
}

/// The attack: a peer names a content of another bucket, whose hash it knows, and reads it under that name.
#[tokio::test]
async fn a_name_that_was_announced_opens_no_content_of_another_bucket() {
    let (bob, node) = (FilesNode::new(), FilesNode::new());
    let (bobs_admin, admin) = (bob.admin().await, node.admin().await);
    let secret = json!({ "bucket": "secret" });
    admin.call("fs/bucket/create", secret).await;
    let bytes = noise(300_000);
    let hash = admin.upload("secret:/a", &bytes).await["hash"].clone();
    want(&node, "/mine", &bytes).await;
    let by_hash = json!({ "hash": hash });
    let reader = node.peer("ada", &["fs:read:docs", "fs:sync:docs"]);
    for input in [json!({ "path": "docs:/mine" }), by_hash.clone()] {
        let (code, sent) = reader.broken("fs/read", input).await;
        assert_eq!((&*code, sent), ("CONTENT_UNAVAILABLE", 0));
    }
    let status = reader.call("fs/blob/status", by_hash.clone()).await;
    assert_eq!(status["status"], "wanted");
    // What a peer sends for the bucket is its own.
    let theirs = bobs_admin.upload("docs:/a", &bytes).await["hash"].clone();
    assert_eq!(theirs, hash);
    share(&bobs_admin, &hash).await;
    node.service.set_peers(Arc::new(Bob(handler(&bob))));
    let wanted = json!({ "bucket": "docs", "hash": hash });
    let mut items = reader.subscribe("fs/blob/fetch", wanted).await;
    while next(&mut items).await.output.value()["done"] != json!(true) {}
    let (_, read) = reader.read(json!({ "path": "docs:/mine" })).await;
    assert!(read == bytes);
}

#[tokio::test]
async fn a_fetch_that_fails_names_what_the_peers_did() {
    let (bob, node) = (FilesNode::new(), FilesNode::new());
    let (bobs_admin, admin) = (bob.admin().await, node.admin().await);
    // A share of another content lets the connection stand.
    let put = json!({ "path": "docs:/b", "bytes": base64(b"other") });
    let other = bobs_admin.call("fs/put", put).await["hash"].clone();
    share(&bobs_admin, &other).await;
    node.service.set_peers(Arc::new(Bob(handler(&bob))));
    let hash = want(&node, "/a", &noise(300)).await;
    let input = json!({ "bucket": "docs", "hash": hash, "from": ["carol", "bob"] });
    let details = details(&admin, "fs/blob/fetch", input).await;
    let tried = json!([
        { "peer": "carol", "outcome": "unreachable" },
        { "peer": "bob", "outcome": "no content" },
    ]);
    assert_eq!(details, json!({ "hash": hash, "tried": tried }));
}

/// The details of the error with which a subscription ends.
async fn details(peer: &FilesPeer, operation: &str, input: Value) -> Value {
    let mut items = peer.subscribe(operation, input).await;
    let (error, _) = broken_off(&mut items).await;
    error.details.map(|details| *details).unwrap_or_default()
}

/// So does a read. The names of the peers are for callers that exchange contents with them.
#[tokio::test]
async fn a_read_that_fails_says_what_the_peers_did() {
    let (bob, node) = (FilesNode::new(), FilesNode::new());
    let (bobs_admin, admin) = (bob.admin().await, node.admin().await);
    let put = json!({ "path": "docs:/b", "bytes": base64(b"other") });
    let other = bobs_admin.call("fs/put", put).await["hash"].clone();
    share(&bobs_admin, &other).await;
    node.service.set_peers(Arc::new(Bob(handler(&bob))));
    let hash = want(&node, "/a", &noise(300)).await;
    let reader = node.peer("ada", &["fs:read:docs"]);
    let both = node.peer("eve", &["fs:read:docs", "fs:sync:docs"]);
    let read = json!({ "path": "docs:/a" });
    let unasked = details(&both, "fs/read", read.clone()).await;
    assert_eq!(unasked, json!({ "hash": hash, "tried": [] }));
    let lazy = json!({ "bucket": "docs", "synced": true, "fetch": "lazy" });
    admin.call("fs/bucket/set", lazy).await;
    for (peer, attempt) in [
        (&reader, json!({ "outcome": "no content" })),
        (&both, json!({ "peer": "bob", "outcome": "no content" })),
    ] {
        let said = details(peer, "fs/read", read.clone()).await;
        assert_eq!(said, json!({ "hash": hash, "tried": [attempt] }));
    }
}

#[tokio::test]
async fn peers_are_asked_only_for_what_a_bucket_wants_and_by_those_who_may() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let hash = want(&node, "/a", b"wanted").await;
    let by_hash = json!({ "hash": hash });
    let input = json!({ "bucket": "docs", "hash": hash });
    let reader = node.peer("ada", &["fs:read:docs", "fs:write:docs"]);
    assert_eq!(
        reader.broken("fs/blob/fetch", input.clone()).await.0,
        "FORBIDDEN"
    );
    assert_eq!(
        reader.code("fs/blob/providers", by_hash).await.0,
        "NOT_FOUND"
    );
    for unknown in [
        json!({ "bucket": "docs", "hash": "00".repeat(32) }),
        json!({ "bucket": "absent", "hash": hash }),
    ] {
        assert_eq!(admin.broken("fs/blob/fetch", unknown).await.0, "NOT_FOUND");
    }
    // The node has no peers.
    assert_eq!(admin.broken("fs/blob/fetch", input).await.0, "UNAVAILABLE");
    let wrong = json!({ "bucket": "docs", "hash": hash, "from": ["No Name"] });
    let bob = FilesNode::new();
    node.service.set_peers(Arc::new(Bob(handler(&bob))));
    assert_eq!(
        admin.broken("fs/blob/fetch", wrong).await.0,
        "INVALID_INPUT"
    );
}

/// The attack: a tenant announces a content whose hash it knows, and waits until an administrator of all buckets fetches that
/// content for another one.
#[tokio::test]
async fn a_fetch_by_an_administrator_opens_the_content_to_its_bucket_alone() {
    let (bob, node) = (FilesNode::new(), FilesNode::new());
    let (bobs_admin, admin) = (bob.admin().await, node.admin().await);
    let secret = json!({ "bucket": "secret" });
    admin.call("fs/bucket/create", secret).await;
    let bytes = noise(300_000);
    let hash = bobs_admin.upload("docs:/a", &bytes).await["hash"].clone();
    share(&bobs_admin, &hash).await;
    node.service.set_peers(Arc::new(Bob(handler(&bob))));
    want_in(&node, "secret", "/a", &bytes).await;
    want_in(&node, "docs", "/mine", &bytes).await;
    let tenant = node.peer("ada", &["fs:read:docs", "fs:sync:docs"]);
    let topics = json!({ "path": "docs:/", "topics": ["blob.complete", "fs.put"] });
    let mut events = tenant.subscribe("fs/watch", topics).await;
    next(&mut events).await;
    let fetch = json!({ "bucket": "secret", "hash": hash });
    let mut items = admin.subscribe("fs/blob/fetch", fetch).await;
    while next(&mut items).await.output.value()["done"] != json!(true) {}
    let (_, read) = admin.read(json!({ "path": "secret:/a" })).await;
    assert!(read == bytes);
    let (code, sent) = tenant
        .broken("fs/read", json!({ "path": "docs:/mine" }))
        .await;
    assert_eq!((&*code, sent), ("CONTENT_UNAVAILABLE", 0));
    let status = tenant.call("fs/blob/status", json!({ "hash": hash })).await;
    assert_eq!(status["status"], "wanted");
    // Neither do events say that the content is here, before its bytes have come for the tenant.
    admin.put("docs:/later", b"x").await;
    let first = next(&mut events).await.output.value().clone();
    assert_eq!(
        (&first["topic"], &first["path"]),
        (&json!("fs.put"), &json!("/later"))
    );
    let fetch = json!({ "bucket": "docs", "hash": hash });
    let mut items = tenant.subscribe("fs/blob/fetch", fetch).await;
    while next(&mut items).await.output.value()["done"] != json!(true) {}
    let second = next(&mut events).await.output.value().clone();
    assert_eq!(
        (&second["topic"], &second["hash"]),
        (&json!("blob.complete"), &hash)
    );
    assert_eq!(second["bucket"], "docs");
}

#[tokio::test]
async fn shares_are_listed_and_revoked() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let put = json!({ "path": "docs:/a", "bytes": base64(b"shared") });
    let hash = admin.call("fs/put", put).await["hash"].clone();
    let made = share(&admin, &hash).await;
    let shares = admin
        .call("fs/share/list", json!({ "bucket": "docs" }))
        .await;
    assert_eq!(shares["shares"], json!([made]));
    let peer = connect(&handler(&node));
    assert!(has(&peer, &hash).await);
    let revoke = json!({ "bucket": "docs", "share": made["share"] });
    admin.call("fs/share/revoke", revoke.clone()).await;
    assert!(!has(&peer, &hash).await);
    let again = admin.code("fs/share/revoke", revoke).await;
    assert_eq!(
        again,
        ("NOT_FOUND".to_owned(), json!({ "object": "share" }))
    );
    // The right to read is not enough, and only what the bucket has is shared.
    let reader = node.peer("ada", &["fs:read:docs"]);
    let input = json!({ "bucket": "docs", "hash": hash, "key": KEY.to_string() });
    assert_eq!(reader.code("fs/share", input).await.0, "FORBIDDEN");
    let input = json!({ "bucket": "docs", "hash": "00".repeat(32), "key": KEY.to_string() });
    assert_eq!(admin.code("fs/share", input).await.0, "NOT_FOUND");
    let input = json!({ "bucket": "docs", "hash": hash, "key": "password" });
    assert_eq!(admin.code("fs/share", input).await.0, "INVALID_INPUT");
}

/// Whether the holder of the key gets a content.
async fn has(peer: &Connection, hash: &Value) -> bool {
    let hash = hash.as_str().expect("a text").parse().expect("a hash");
    let selections = BlobSelections::of_one(alknet_objects::ChunkSelection::all());
    let (mut send, mut recv) = peer.open_bi().await.expect("a stream");
    let request = BlobRequest::Get { hash, selections }.encode();
    send.write_chunk(request.into()).await.expect("room");
    send.finish().expect("it is open");
    let first = tokio::time::timeout(hung(), recv.read_chunk(64)).await;
    first.expect("in time").is_ok()
}
