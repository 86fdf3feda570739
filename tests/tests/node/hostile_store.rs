//! Peers that read and write a node's stored tensors in order to use up its memory, its threads or its disk.

use std::fs;
use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallConnection, ErrorCode};
use alknet_core::{Carriage, Connection};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{CliRunner, HostNode, TestBench, wire};
use alknet_tls::NodeKey;
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::manual_peer::{caller, people};
use super::tensors::head;
use super::unread::memory;

const MIB: u64 = 1 << 20;

/// The protocol of the store.
const TENSOR: &[u8] = b"alknet/tensor";
/// Requests that one connection may have, as in docs/tensor-store.md.
const STREAMS: usize = 64;

/// A small data disk: it has an inode for each 16 KiB, as ext4 makes them, and the store may have half of its bytes.
const DISK: (u64, u64) = (32 * MIB, 2048);

/// Bytes of headers that one peer may send, as in `tensor/serve/src/limits.rs`, and the length that each header claims.
const HEADERS_MAX: u64 = 32 * MIB;
const HEADER_BYTES: u64 = 16 * MIB - 8;
/// Bytes that the attacker sends of each header.
const ARRIVED: u64 = 4 * MIB;
/// Growth of the node's memory in bytes beside the headers: connections with their windows, and the allocator.
const REST_MAX: u64 = 48 * MIB;
/// The same while headers come: a buffer that grows exists twice for a moment, and what the node does not read of refused
/// headers waits in the windows of the connections. Without a limit the headers take 512 MiB.
const REST_OF_HEADERS_MAX: u64 = 112 * MIB;

/// Entries of the file whose description is longer than a frame, and calls at once that want the description.
const ENTRIES: usize = 65_000;
const DESCRIBED_AT_ONCE: usize = 4;

/// Entries of the file of which a reader wants a proof for each.
const SHORT_ENTRIES: usize = 300;

/// Bytes of the file whose hash tree a reader wants again and again. It has holes only.
const LARGE: u64 = 256 * MIB;
/// Readers, requests that each makes at once, and how often. All requests together are more than the threads of a node
/// for work that blocks, which are 512.
const READERS: usize = 4;
const AT_ONCE: usize = 60;
const TIMES: usize = 3;

async fn within<T>(work: impl Future<Output = T>) -> T {
    let hung = deadline(Duration::from_secs(60));
    tokio::time::timeout(hung, work).await.expect("it hangs")
}

fn key(who: &CliRunner) -> NodeKey {
    let key = NodeKey::load_or_create(&who.state().join("identity.key"));
    key.expect("a key").0
}

/// A connection to the store of a node, and its dialer.
async fn dial(node: &HostNode, who: &CliRunner) -> (EndpointDialer, Connection) {
    let dialer = EndpointDialer::new(Some(key(who)));
    let target: Target = node.target().parse().expect("the node's own target");
    let dialled = within(dialer.dial_over(Carriage::Quic, &target, TENSOR)).await;
    (dialer, dialled.expect("it is known"))
}

/// Its frames have the form of those of `alknet/call`.
fn request(request: &Value) -> Bytes {
    wire::frame(request.to_string().as_bytes()).into()
}

fn puts(path: &str) -> Bytes {
    request(&json!({ "v": 1, "want": "put", "path": path }))
}

/// Stores a file, and returns the node's last word.
async fn put(connection: &Connection, path: &str, file: Vec<u8>) -> Value {
    let work = async {
        let (mut send, mut recv) = wire::stream(connection).await.expect("connected");
        // If the node refuses the file, it takes no more of it.
        let mut chunks = [puts(path), file.into()];
        if send.write_chunks(&mut chunks).await.is_ok() {
            let _ = send.finish();
        }
        let said = wire::event(&mut recv).await.expect("an answer");
        match said["go"] == true {
            true => wire::event(&mut recv).await.expect("an answer"),
            false => said,
        }
    };
    within(work).await
}

/// A file of 30 bytes beside its header, one of many.
fn small(n: usize) -> Vec<u8> {
    let entry = json!({ "x": { "dtype": "U8", "shape": [30], "data_offsets": [0, 30] } });
    let mut file = head(&entry);
    file.extend(format!("{n:030}").into_bytes());
    file
}

/// A file with so many entries of so many bytes.
fn entries(count: usize, bytes: usize) -> Vec<u8> {
    let entry = |n: usize| {
        let (from, to) = (n * bytes, (n + 1) * bytes);
        let entry = json!({ "dtype": "U8", "shape": [bytes], "data_offsets": [from, to] });
        (format!("t{n:05}"), entry)
    };
    let entries: serde_json::Map<String, Value> = (0..count).map(entry).collect();
    let mut file = head(&Value::Object(entries));
    file.resize(file.len() + count * bytes, 7);
    file
}

/// Runs `work`, and asserts that the peak of the node's memory grew by no more than `most` bytes.
async fn grows_at_most(node: &HostNode, what: &str, most: u64, work: impl Future<Output = ()>) {
    fs::write(format!("/proc/{}/clear_refs", node.pid()), "5").expect("it is our process");
    let before = memory(node, "VmRSS:");
    work.await;
    let grown = memory(node, "VmHWM:").saturating_sub(before);
    println!("figure {what}: {} KiB", grown >> 10);
    assert!(grown <= most, "{what}: {grown} bytes");
}

/// Eve may write and read, and wants all of the node's memory and of its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_a_store_uses_up_neither_memory_nor_disk() {
    let bench = TestBench::new();
    let [eve, ada] = ["eve", "ada"].map(|name| bench.user(name));
    let scopes = &["tensor:read:*", "tensor:write:*"][..];
    let config = people([("eve", &eve, scopes), ("ada", &ada, scopes)]);
    if let Some(node) = bench.host_on_disk(DISK, &config) {
        keeps_memory_and_disk(&node, &eve, &ada).await;
    }
}

async fn keeps_memory_and_disk(node: &HostNode, eve: &CliRunner, ada: &CliRunner) {
    let (_adas, honest) = dial(node, ada).await;
    // The memory that the node keeps for its lifetime.
    assert_eq!(put(&honest, "own", small(0)).await["ok"], true);
    let (_callers, client) = caller(node, ada).await;

    headers_that_do_not_end_are_bounded(node, eve, &honest).await;
    a_long_description_costs_no_tree(node, &client, &honest).await;
    short_entries_leave_no_files(node, &honest, &client).await;
    small_files_leave_inodes(node, &honest).await;
}

/// Each stream of two connections has a header of 16 MiB whose end does not come.
async fn headers_that_do_not_end_are_bounded(
    node: &HostNode,
    eve: &CliRunner,
    honest: &Connection,
) {
    // A stream that waits has one more piece counted, so fewer than this number fit.
    const FIT: usize = (HEADERS_MAX / ARRIVED) as usize;
    let beginning: Bytes = [
        &HEADER_BYTES.to_le_bytes()[..],
        &b" ".repeat(ARRIVED as usize),
    ]
    .concat()
    .into();
    let connections = [dial(node, eve).await, dial(node, eve).await];
    let attack = async {
        let mut streams = JoinSet::new();
        for (_, connection) in &connections {
            for _ in 0..STREAMS {
                let (connection, beginning) = (connection.clone(), beginning.clone());
                streams.spawn(async move {
                    let (mut send, mut recv) = wire::stream(&connection).await.expect("connected");
                    // If the node refuses the header, it takes no more of it.
                    let _ = send.write_chunks(&mut [puts("x"), beginning]).await;
                    wire::event(&mut recv).await.expect("an answer")
                });
            }
        }
        for _ in FIT..connections.len() * STREAMS {
            let said = within(streams.join_next()).await.expect("a refusal");
            assert_eq!(said.expect("no panic")["code"], "E_BUSY");
        }
        // The others wait for the rest of their headers, and leave room for another peer.
        assert_eq!(put(honest, "own", small(1)).await["ok"], true);
    };
    grows_at_most(node, "headers", HEADERS_MAX + REST_OF_HEADERS_MAX, attack).await;
}

/// The answer would be longer than a frame.
async fn a_long_description_costs_no_tree(
    node: &HostNode,
    client: &CallConnection,
    honest: &Connection,
) {
    let said = put(honest, "many", entries(ENTRIES, 1)).await;
    assert_eq!(said["ok"], true, "{said}");
    let src = json!({ "src": { "path": "many" } });
    let describe = async || {
        let refused = within(client.call("tensor/open", &src)).await;
        let refused = refused.expect_err("it is too long");
        let details = refused.details.as_deref();
        let code = details.map(|details| &details["code"]);
        assert_eq!(
            (&refused.code, code),
            (&ErrorCode::InvalidInput, Some(&json!("E_LIMIT"))),
            "{refused}"
        );
    };
    // The header is read for the first call.
    describe().await;
    let attack = async {
        join_all((0..DESCRIBED_AT_ONCE).map(|_| describe())).await;
    };
    grows_at_most(node, "descriptions", REST_MAX, attack).await;
    let removed = within(client.call("tensor/remove", &src)).await;
    removed.expect("the peer may write");
}

/// A reader wants a proof for each of many short entries.
async fn short_entries_leave_no_files(
    node: &HostNode,
    honest: &Connection,
    client: &CallConnection,
) {
    let said = put(honest, "short", entries(SHORT_ENTRIES, 32)).await;
    assert_eq!(said["ok"], true, "{said}");
    for n in 0..SHORT_ENTRIES {
        let (mut send, mut recv) = within(wire::stream(honest)).await.expect("connected");
        let wanted = request(&json!({
            "v": 1, "want": "tensor", "name": format!("t{n:05}"), "encoding": "bao16",
            "src": { "path": "short" },
        }));
        within(send.write_chunk(wanted)).await.expect("taken");
        let _ = send.finish();
        let said = within(wire::event(&mut recv)).await.expect("an answer");
        assert_eq!((&said["ok"], &said["len"]), (&json!(true), &json!(32)));
    }
    let state = node.state().strip_prefix("/").expect("it is absolute");
    let root = format!("/proc/{}/root", node.pid());
    let store = std::path::Path::new(&root)
        .join(state)
        .join("state/tensors");
    let count = |folder: &str| fs::read_dir(store.join(folder)).expect("a folder").count();
    assert_eq!((count("outboards"), count("uploads")), (0, 0));
    assert!(count("objects") > 0);
    let src = json!({ "src": { "path": "short" } });
    let removed = within(client.call("tensor/remove", &src)).await;
    removed.expect("the peer may write");
}

/// A peer stores different files under one path until the store is full. Each takes one inode, and few bytes.
async fn small_files_leave_inodes(node: &HostNode, connection: &Connection) {
    // Half of the disk's bytes, by what a file takes of it.
    const STORED_MAX: u64 = DISK.0 / 2 / (24 << 10);
    let mut stored = 0;
    let refused = loop {
        let said = put(connection, "x", small(stored + 2)).await;
        if said["ok"] != true {
            break said;
        }
        stored += 1;
        assert!(stored as u64 <= STORED_MAX, "{stored} files are stored");
    };
    println!("figure small files: {stored}");
    assert_eq!(refused["code"], "E_QUOTA", "{refused}");
    assert!(stored as u64 > STORED_MAX / 2, "{stored}");
    // The rest of the disk is for everything else.
    let made = node.call("token/make", &json!({ "scopes": ["node:read"] }));
    assert!(made["token"].is_string(), "{made}");
    assert_eq!(node.call("node/info", &Value::Null)["problems"], json!([]));
}

/// Bytes that a node has read, from files and from everything else.
fn bytes_read(node: &HostNode) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{}/io", node.pid())).expect("procfs");
    let read = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.expect("a count").parse().expect("a number")
}

/// A file in a node's store before it starts: sending it would take longer than the attack.
fn plant(bench: &TestBench, path: &str) {
    let store = bench.path().join("host/state/tensors");
    let id = "0".repeat(64);
    for folder in ["objects/00", "names"] {
        fs::create_dir_all(store.join(folder)).expect("the folder is ours");
    }
    fs::write(store.join("names").join(path), format!("{id}\n")).expect("room");
    let entry = json!({ "dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE] });
    let head = head(&json!({ "all": entry }));
    let object = store.join("objects/00").join(id);
    fs::write(&object, &head).expect("room");
    let file = fs::File::options().write(true).open(object);
    let grown = file.expect("just made").set_len(head.len() as u64 + LARGE);
    grown.expect("zeros that are not written take no room");
}

/// Each reader gives all of its requests up. The node makes the hash tree once, and has threads for the removal of the
/// reader meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_hash_trees_delay_no_removal_of_a_peer() {
    const { assert!(READERS * AT_ONCE * TIMES > 512) };
    let bench = TestBench::new();
    plant(&bench, "large");
    let node = bench.host();
    let (_admins, admin) = caller(&node, bench.admin()).await;
    let target: Target = node.target().parse().expect("the node's own target");
    let wanted = json!({
        "src": { "path": "large" }, "want": "range", "name": "all", "range": [0, 1],
        "encoding": "bao16",
    });
    let before = bytes_read(&node);
    for n in 0..READERS {
        let key = NodeKey::generate().expect("the system has entropy");
        let peer = json!({
            "peer_id": format!("eve-{n}"), "keys": [key.public().to_string()],
            "scopes": ["tensor:read:*"],
        });
        let added = within(admin.call("peer/add", &peer)).await;
        added.expect("the administrator may");
        let dialer = EndpointDialer::new(Some(key));
        let connection = within(dialer.dial_over(Carriage::Quic, &target, ALPN)).await;
        let eve = CallClient::without_operations().attach(connection.expect("it is known"), None);
        for _ in 0..TIMES {
            let asking = (0..AT_ONCE).map(|_| eve.subscribe("tensor/fetch", &wanted));
            let asked = within(join_all(asking)).await;
            // The node has begun what came before.
            let listed = within(eve.call("services/list", &json!({ "limit": 1 }))).await;
            listed.expect("it is known");
            assert!(asked.iter().all(Result::is_ok));
        }
        let removal = json!({ "peer": format!("eve-{n}") });
        let removed = within(admin.call("peer/remove", &removal)).await;
        let removed = removed.expect("the administrator may");
        assert_eq!(removed.value()["peer_id"], removal["peer"]);
        within(eve.closed()).await;
    }
    // Before this reader the node makes the tree, if it has not made it for those.
    let mut events = within(admin.subscribe("tensor/fetch", &wanted))
        .await
        .expect("it is sent");
    let first = within(events.next()).await.expect("an event");
    let first = first.expect("an administrator may read");
    assert_eq!(first.output.value()["size"], LARGE, "{first:?}");
    let read = bytes_read(&node) - before;
    println!("figure read for a tree of {LARGE} bytes: {read}");
    assert!((LARGE..2 * LARGE).contains(&read), "{read} bytes were read");
}
