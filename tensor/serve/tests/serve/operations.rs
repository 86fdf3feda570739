//! The store over `alknet/call`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, Dispatcher, ErrorCode, InputMemory,
    LocalCaller, LocalRequest, Registry,
};
use alknet_core::{AuthContext, Carriage, ProtocolHandler, memory_pair};
use alknet_tensor_serve::limits::UPLOADS_PER_PEER;
use alknet_tensor_serve::{StoreOptions, StorePath, operations};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::put::small;
use crate::scene::{NAME, StoreScene, file, identity, large, on_disk};

fn dispatcher(scene: &StoreScene) -> Arc<Dispatcher> {
    let mut builder = Registry::builder();
    for operation in operations(&scene.store) {
        builder.add(operation);
    }
    let registry = builder.build().expect("no rule is broken");
    Arc::new(Dispatcher::new(registry))
}

struct TensorOperationsNode(Arc<CallHandler>);

impl TensorOperationsNode {
    fn new(scene: &StoreScene) -> Self {
        Self(Arc::new(CallHandler::new(dispatcher(scene))))
    }

    fn peer(&self, name: Option<&str>, scopes: &[&str]) -> CallConnection {
        let (ours, theirs) = memory_pair(ALPN);
        let auth = AuthContext {
            identity: name.map(|name| identity(name, scopes)),
            key: None,
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: Carriage::Memory,
            early_data: false,
        };
        tokio::spawn(Arc::clone(&self.0).handle(theirs, auth));
        CallClient::without_operations().attach(ours, None)
    }
}

async fn refused(peer: &CallConnection, operation: &str, input: Value) -> (String, Value) {
    let error = peer
        .call(operation, &input)
        .await
        .expect_err("it is refused");
    let details = error.details.map(|details| *details).unwrap_or_default();
    (error.code.name().to_owned(), details["code"].clone())
}

#[tokio::test]
async fn files_are_described() {
    let (scene, id) = StoreScene::holding("models/a");
    let node = TensorOperationsNode::new(&scene);
    let peer = node.peer(Some("ada"), &["tensor:read:models"]);
    let src = json!({ "path": "models/a" });
    let opened = peer
        .call("tensor/open", &json!({ "src": src }))
        .await
        .expect("there");
    let opened = opened.value();
    assert_eq!(opened["id"], id.to_string());
    assert_eq!(opened["len"], file().len());
    assert_eq!(
        (&opened["level"], &opened["metadata"]["format"]),
        (&json!(1), &json!("pt"))
    );
    assert_eq!(
        opened["order"],
        json!(["large", "small", "points", "names"])
    );
    let large = &opened["tensors"][0];
    assert_eq!(large["kind"], "flat");
    assert_eq!(large["b3"].as_str().map(str::len), Some(64));
    let stat = json!({ "src": { "id": id.to_string() }, "name": "points" });
    let stat = peer.call("tensor/stat", &stat).await.expect("there");
    let stat = stat.value();
    assert_eq!(
        (&stat["kind"], &stat["len"], &stat["align"]),
        (&json!("struct"), &json!(16), &json!(64))
    );
    assert_eq!(stat["fields"][1]["path"], "/n");
}

#[tokio::test]
async fn a_list_has_the_paths_that_the_caller_may_read() {
    let (scene, id) = StoreScene::holding("models/a");
    let other = StorePath::parse("models-b").expect("a path");
    let added = scene.store.add(file().as_slice(), Some(other));
    added.expect("room for a path");
    let node = TensorOperationsNode::new(&scene);
    let listed = async |scopes: &[&str], input: Value| {
        let peer = node.peer(Some("ada"), scopes);
        let answer = peer.call("tensor/list", &input).await;
        let answer = answer.expect("a list").value().clone();
        assert_eq!(answer["next"], Value::Null, "{answer}");
        answer["files"].clone()
    };
    let row = |path: &str| json!({ "path": path, "id": id.to_string(), "bytes": file().len() });
    let (one, two) = (row("models/a"), row("models-b"));
    let all = listed(&["tensor:read:*"], Value::Null).await;
    assert_eq!(all, json!([two, one]));
    let below = listed(&["tensor:read:*"], json!({ "below": "models" })).await;
    assert_eq!(below, json!([one]));
    let after = listed(&["tensor:read:*"], json!({ "after": "models-b" })).await;
    assert_eq!(after, json!([one]));
    assert_eq!(
        listed(&["tensor:read:models"], Value::Null).await,
        json!([one])
    );
    assert_eq!(listed(&["tensor:read:b"], Value::Null).await, json!([]));
    let writer = node.peer(Some("ada"), &["tensor:write:*"]);
    let (code, _) = refused(&writer, "tensor/list", Value::Null).await;
    assert_eq!(code, "FORBIDDEN");
    let error = writer.call("tensor/list", &Value::Null).await;
    let message = error.expect_err("it is refused").message;
    for said in ["'tensor:read:*'", "join.scopes"] {
        assert!(message.contains(said), "{message}");
    }
    let unknown_peer = node.peer(None, &[]);
    let (code, _) = refused(&unknown_peer, "tensor/list", Value::Null).await;
    assert_eq!(code, "UNAUTHENTICATED");
    let peer = node.peer(Some("ada"), &["tensor:read:*"]);
    let wrong = refused(&peer, "tensor/list", json!({ "below": "../x" })).await;
    assert_eq!(wrong, ("INVALID_INPUT".to_owned(), json!("E_VALUE")));
}

#[tokio::test]
async fn codes_are_those_of_the_table() {
    let (scene, id) = StoreScene::holding("a");
    let node = TensorOperationsNode::new(&scene);
    let unknown_peer = node.peer(None, &[]);
    let open = json!({ "src": { "path": "a" } });
    let (code, _) = refused(&unknown_peer, "tensor/open", open.clone()).await;
    assert_eq!(code, "UNAUTHENTICATED");
    let eve = node.peer(Some("eve"), &["tensor:read:b"]);
    let forbidden = refused(&eve, "tensor/open", open.clone()).await;
    assert_eq!(
        forbidden,
        refused(&eve, "tensor/open", json!({ "src": { "path": "b" } })).await
    );
    assert_eq!(forbidden, ("NOT_FOUND".to_owned(), json!("E_NOTFOUND")));
    let ada = node.peer(Some("ada"), &["*"]);
    let stat = json!({ "src": { "path": "a" }, "name": "no" });
    let said = refused(&ada, "tensor/stat", stat).await;
    assert_eq!(said, ("INVALID_INPUT".to_owned(), json!("E_NOTFOUND")));
    let (code, _) = refused(&ada, "tensor/open", json!({ "src": {} })).await;
    assert_eq!(code, "INVALID_INPUT");
    let object = std::fs::OpenOptions::new()
        .write(true)
        .open(scene.object(id))
        .expect("ours");
    object.set_len(100).expect("writable");
    let said = refused(&ada, "tensor/open", open).await;
    assert_eq!(said.0, "TENSOR_INVALID");
}

#[tokio::test]
async fn fetch_says_what_comes_and_sends_it() {
    let (scene, _) = StoreScene::holding("a");
    let node = TensorOperationsNode::new(&scene);
    let peer = node.peer(Some("ada"), &["tensor:read:a"]);
    let input = json!({ "src": { "path": "a" }, "want": "tensor", "name": "large" });
    let mut events = peer.subscribe("tensor/fetch", &input).await.expect("there");
    let head = events.next().await.expect("a head").expect("a head");
    assert_eq!(head.output.value()["len"], large().len());
    let mut bytes = Vec::new();
    while let Some(event) = events.next().await {
        let event = event.expect("bytes");
        let said = &event.output.value()["bytes"];
        let piece = match event.output.binary(said) {
            Some(piece) => piece.to_vec(),
            None => STANDARD
                .decode(said.as_str().expect("base64"))
                .expect("base64"),
        };
        assert!(piece.len() <= 512 << 10);
        bytes.extend(piece);
    }
    assert!(bytes == large());
}

#[tokio::test]
async fn a_file_is_put_in_pieces() {
    let scene = StoreScene::new();
    let node = TensorOperationsNode::new(&scene);
    let peer = node.peer(Some("ada"), &["tensor:write:in", "tensor:read:in"]);
    let file = small(300_000);
    let len = u64::from_le_bytes(*file.first_chunk().expect("long enough")) as usize + 8;
    let (header, data) = file.split_at(len);
    let put = async |input: Value| peer.call("tensor/put", &input).await;
    let begin = json!({ "header": STANDARD.encode(header), "path": "in/x" });
    let upload = put(begin.clone()).await.expect("begun").value()["upload"].clone();
    let mut have = len as u64;
    for piece in data.chunks(100_000) {
        let input = json!({ "upload": upload, "offset": have, "bytes": STANDARD.encode(piece) });
        have = put(input).await.expect("taken").value()["have"]
            .as_u64()
            .expect("a number");
    }
    // What is out of its place is refused, with the place; the upload goes on.
    let odd = json!({ "upload": upload, "offset": 3, "bytes": "" });
    let error = put(odd).await.expect_err("out of place");
    assert_eq!(error.details.expect("the place")["have"], have);
    // Another peer's upload is not there.
    let eve = node.peer(Some("eve"), &["*"]);
    let commit = json!({ "upload": upload, "commit": true });
    assert_eq!(
        refused(&eve, "tensor/put", commit.clone()).await.0,
        "NOT_FOUND"
    );
    let id = put(commit.clone()).await.expect("stored").value()["id"].clone();
    assert_eq!(id, blake3::hash(&file).to_hex().to_string());
    assert_eq!(refused(&peer, "tensor/put", commit).await.0, "NOT_FOUND");
    peer.call("tensor/open", &json!({ "src": { "path": "in/x" } }))
        .await
        .expect("there");

    let other = json!({ "header": STANDARD.encode(header), "path": "out/x" });
    assert_eq!(refused(&peer, "tensor/put", other).await.0, "NOT_FOUND");
    let wrong = json!({ "header": STANDARD.encode(b"\x02\0\0\0\0\0\0\0[]"), "path": "in/x" });
    let said = refused(&peer, "tensor/put", wrong).await;
    assert_eq!(said, ("INVALID_INPUT".to_owned(), json!("E_HEADER")));
    let unclear = json!({ "upload": upload, "header": "" });
    assert_eq!(
        refused(&peer, "tensor/put", unclear).await.0,
        "INVALID_INPUT"
    );
    for _ in 0..UPLOADS_PER_PEER {
        put(begin.clone()).await.expect("begun");
    }
    assert_eq!(refused(&peer, "tensor/put", begin).await.0, "OVERLOADED");
}

#[tokio::test]
async fn a_removed_file_gives_its_room_back_and_is_read_to_its_end() {
    let room = StoreOptions {
        bytes_max: on_disk(file().len()) + 2 * NAME,
        ..StoreOptions::default()
    };
    let scene = StoreScene::with(room);
    let id = scene.add("models/a", &file());
    let node = TensorOperationsNode::new(&scene);
    let reader = node.peer(Some("ada"), &["tensor:read:*"]);
    let fetch = json!({ "src": { "path": "models/a" }, "want": "tensor", "name": "large" });
    let mut events = reader
        .subscribe("tensor/fetch", &fetch)
        .await
        .expect("it is there");
    events.next().await.expect("a head").expect("a head");

    let src = json!({ "src": { "path": "models/a" } });
    let writer = node.peer(Some("bob"), &["tensor:write:models"]);
    let removed = writer.call("tensor/remove", &src).await.expect("removed");
    let expected = json!({ "id": id.to_string(), "freed": file().len() });
    assert_eq!(removed.value(), &expected);
    let mut bytes = 0;
    while let Some(event) = events.next().await {
        let event = event.expect("bytes");
        let said = &event.output.value()["bytes"];
        let piece = event.output.binary(said).map(|piece| piece.len());
        bytes += piece.unwrap_or_else(|| {
            let text = said.as_str().expect("base64");
            STANDARD.decode(text).expect("base64").len()
        });
    }
    assert_eq!(bytes, large().len());
    let gone = refused(&reader, "tensor/open", src.clone()).await;
    assert_eq!(gone, ("NOT_FOUND".to_owned(), json!("E_NOTFOUND")));
    assert_eq!(refused(&writer, "tensor/remove", src).await, gone);
    // The store has room for one such file only.
    scene.add("models/b", &file());
}

#[tokio::test]
async fn a_file_is_removed_only_with_the_scope_to_write_it() {
    let (scene, id) = StoreScene::holding("models/a");
    let node = TensorOperationsNode::new(&scene);
    let by_path = json!({ "src": { "path": "models/a" } });
    let by_id = json!({ "src": { "id": id.to_string() } });
    let missing = ("NOT_FOUND".to_owned(), json!("E_NOTFOUND"));
    for scopes in [&["tensor:read:*"][..], &["tensor:write:other"]] {
        let peer = node.peer(Some("eve"), scopes);
        for src in [&by_path, &by_id] {
            let said = refused(&peer, "tensor/remove", src.clone()).await;
            assert_eq!(said, missing, "{scopes:?}");
        }
    }
    let unknown_peer = node.peer(None, &[]);
    let (code, _) = refused(&unknown_peer, "tensor/remove", by_path).await;
    assert_eq!(code, "UNAUTHENTICATED");
    let writer = node.peer(Some("ada"), &["tensor:write:id"]);
    let said = refused(&writer, "tensor/remove", by_id.clone()).await;
    assert_eq!(said, ("INVALID_INPUT".to_owned(), json!("E_VALUE")));
    assert!(scene.object(id).exists());
    scene.add("models/a", &small(10));
    writer
        .call("tensor/remove", &by_id)
        .await
        .expect("no path leads to it");
    assert!(!scene.object(id).exists());
}

/// Memory without end, and how much of it is taken.
#[derive(Debug, Default)]
struct EndlessMemory(AtomicUsize);

impl InputMemory for EndlessMemory {
    fn take(&self, bytes: usize) -> Result<(), CallError> {
        self.0.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// The most memory that this process had until now.
fn peak() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.expect("a number") << 10
}

/// From a peer that may neither read nor write: a tree of each would take 302 MB, before the peer's
/// scopes are looked at.
#[tokio::test]
async fn lists_of_short_values_cost_no_trees() {
    let scene = StoreScene::new();
    let dispatcher = dispatcher(&scene);
    let (near, _far) = memory_pair(b"h2");
    let gate = LocalCaller::new(&dispatcher, &near, None);
    let memory = Arc::new(EndlessMemory::default());
    let list = format!("[{}0]", "0,".repeat(4 << 20));
    let incoming = |operation: &'static str, input: String| LocalRequest {
        input: Some(Bytes::from(input)),
        memory: Some(Arc::clone(&memory) as Arc<dyn InputMemory>),
        identity: Some(identity("eve", &[])),
        ..LocalRequest::new("1", operation)
    };
    let before = peak();
    let mut errors = Vec::new();
    for input in [
        format!(r#"{{"header":{list}}}"#),
        format!(r#"{{"upload":"x","offset":0,"bytes":{list}}}"#),
    ] {
        let refused = gate.call(incoming("tensor/put", input)).await;
        errors.push(refused.expect_err("a put").error);
    }
    for want in ["rows", "range"] {
        let input =
            format!(r#"{{"src":{{"path":"a"}},"want":"{want}","name":"x","{want}":{list}}}"#);
        let events = gate.subscribe(incoming("tensor/fetch", input));
        let first = events.expect("it begins").next().await.expect("an end");
        errors.push(first.expect_err("a fetch").error);
    }
    for error in errors {
        assert_eq!(error.code, ErrorCode::InvalidInput, "{error}");
        // And not by what is in the list, which only a tree of it could say.
        assert!(error.message.contains("too many values"), "{error}");
    }
    assert_eq!(memory.0.load(Ordering::Acquire), 0, "what a tree takes");
    // The texts, and the tables by which they are checked.
    let grown = peak() - before;
    assert!(grown < 128 << 20, "{grown} bytes more");
    // A frame of 1 MiB made 72 MiB.
    let eve = TensorOperationsNode::new(&scene).peer(Some("eve"), &[]);
    let input = json!({ "header": vec![0; 500_000] });
    assert_eq!(refused(&eve, "tensor/put", input).await.0, "INVALID_INPUT");
}

/// A tree of the entries took some 160 MB for each call, on as many threads as the node has, and its text was refused
/// as longer than a frame.
#[test]
fn a_file_of_many_entries_costs_no_tree() {
    const NAME: &str = "operations::a_file_of_many_entries_costs_no_tree";
    alknet_test_support::alone(NAME, || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        runtime.block_on(many_entries_are_described());
    });
}

async fn many_entries_are_described() {
    // A header from the network may have 65,536.
    const ENTRIES: usize = 65_000;
    let scene = StoreScene::new();
    let entries = (0..ENTRIES).map(|at| {
        format!(r#""tensor.of.a.layer.{at:05}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    scene.add("many", &file);
    scene.add("one", &small(10));
    let peer = TensorOperationsNode::new(&scene).peer(Some("eve"), &["*"]);
    // Its header is read and kept first.
    let stat = json!({ "src": { "path": "many" }, "name": "tensor.of.a.layer.00007" });
    let stat = peer.call("tensor/stat", &stat).await.expect("it is there");
    assert_eq!(stat.value()["shape"], json!([0]));
    let before = peak();
    let open = |path: &str| json!({ "src": { "path": path } });
    for _ in 0..3 {
        let (code, details) = refused(&peer, "tensor/open", open("many")).await;
        assert_eq!((&*code, &details), ("INVALID_INPUT", &json!("E_LIMIT")));
    }
    let grown = peak() - before;
    assert!(grown < 16 << 20, "{grown} bytes more");
    let opened = peer.call("tensor/open", &open("one")).await;
    assert_eq!(opened.expect("it is short").value()["order"], json!(["x"]));
}
