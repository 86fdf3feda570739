//! What a caller may not have takes as long as what does not exist, and answers the same: contents by their hash over every
//! carriage, and buckets by their name.

use std::time::{Duration, Instant};

use alknet_core::{AuthContext, Carriage, Connection, ProtocolHandler, StreamError, memory_pair};
use alknet_fs::{BLOBS_ALPN, BlobHandler, BlobOptions, BlobRequest, BlobSelections};
use alknet_objects::ChunkSelection;
use alknet_test_support::{
    TIMING_SAMPLES, TimedKinds, timing_bound, timing_difference, timing_distance,
};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::mount_client::MountClient;
use crate::scene::{FilesNode, base64, hung, identity, noise};

/// Contents of another tenant that are asked for in turns, half of them rows and half of them files.
const CONTENTS: usize = 64;

/// The scopes of a tenant that has nothing of the bucket `secret`.
const SCOPES: [&str; 3] = ["fs:read:docs", "fs:admin:docs", "fs:sync:docs"];

/// A node with contents in the bucket `secret`.
struct TimedNode {
    node: FilesNode,
    /// Hashes of contents that the bucket has, and as many of no content.
    hashes: [Vec<String>; 2],
    runtime: Runtime,
}

impl TimedNode {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (node, secret) = runtime.block_on(async {
            let node = FilesNode::new();
            let admin = node.admin().await;
            let bucket = json!({ "bucket": "secret" });
            admin.call("fs/bucket/create", bucket).await;
            // The tenant has contents too, so that its bucket is no empty one.
            admin.put("docs:/a", b"own").await;
            let mut hashes = Vec::new();
            for number in 0..CONTENTS {
                let len = if number % 2 == 0 { 1000 } else { 20_000 };
                let mut bytes = noise(len);
                bytes[0] = number as u8;
                let path = format!("secret:/{number}");
                let put = json!({ "path": path, "bytes": base64(&bytes) });
                let put = admin.call("fs/put", put).await;
                hashes.push(put["hash"].as_str().expect("a text").to_owned());
            }
            (node, hashes)
        });
        let unknown = |number: usize| blake3::hash(&number.to_le_bytes()).to_string();
        Self {
            node,
            hashes: [secret, (0..CONTENTS).map(unknown).collect()],
            runtime,
        }
    }

    /// Sends requests of both kinds in turns, and compares their times. Every answer is the same.
    fn check<A: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        mut ask: impl AsyncFnMut(usize, usize) -> A,
    ) {
        let mut samples = async |kinds: [usize; 2]| {
            let nothing = ask(1, 0).await;
            let mut times = [Vec::new(), Vec::new()];
            for number in 0..TIMING_SAMPLES {
                // The second one may have an advantage, so neither is always second.
                let turns = if number % 2 == 0 { [0, 1] } else { [1, 0] };
                for turn in turns {
                    let (took, answer) = timed(ask(kinds[turn], number % CONTENTS)).await;
                    assert_eq!(answer, nothing, "{what}");
                    times[turn].push(took);
                }
            }
            let [one, other] = times;
            timing_distance(one, other)
        };
        let difference = timing_difference(|kinds| {
            self.runtime.block_on(samples(match kinds {
                TimedKinds::Both => [0, 1],
                TimedKinds::FirstTwice => [0, 0],
            }))
        });
        let bound = timing_bound();
        assert_eq!(difference, None, "{what}: more than {bound} apart");
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let began = Instant::now();
    let done = work.await;
    (began.elapsed(), done)
}

#[test]
fn a_hash_of_another_tenant_takes_as_long_as_any_in_operations() {
    let timed = TimedNode::new();
    let eve = {
        let _entered = timed.runtime.enter();
        timed.node.peer("eve", &SCOPES)
    };
    for operation in ["fs/blob/status", "fs/blob/pin", "fs/blob/providers"] {
        timed.check(operation, async |kind, number| {
            let input = json!({ "hash": timed.hashes[kind][number] });
            eve.refused(operation, input).await
        });
    }
    for operation in ["fs/read", "fs/blob/fetch"] {
        timed.check(operation, async |kind, number| {
            let hash = &timed.hashes[kind][number];
            let input = match operation {
                "fs/blob/fetch" => json!({ "bucket": "docs", "hash": hash }),
                _ => json!({ "hash": hash }),
            };
            eve.broken(operation, input).await
        });
    }
}

#[test]
fn a_hash_of_another_tenant_takes_as_long_as_any_over_http() {
    let timed = TimedNode::new();
    let eve = MountClient::new(&timed.node, "eve", &SCOPES);
    timed.check("/fs/.blob", async |kind, number| {
        let hash = &timed.hashes[kind][number];
        let answer = eve.get(&format!("/fs/.blob/{hash}")).await;
        assert_eq!(answer.status, 404);
        answer
    });
}

#[test]
fn a_hash_of_another_tenant_takes_as_long_as_any_over_the_protocol_of_blobs() {
    let timed = TimedNode::new();
    // Requests are not to wait for the rate of the peer.
    let options = BlobOptions {
        bytes_per_second: 1 << 50,
        request_time: hung(),
        stalled_time: hung(),
    };
    let connection = {
        let _entered = timed.runtime.enter();
        blobs_connection(&timed.node, options)
    };
    timed.check("get", async |kind, number| {
        let hash = timed.hashes[kind][number].parse().expect("a hash");
        let selections = BlobSelections::of_one(ChunkSelection::all());
        code_of(&connection, &BlobRequest::Get { hash, selections }).await
    });
    timed.check("observe", async |kind, number| {
        let hash = timed.hashes[kind][number].parse().expect("a hash");
        let selection = ChunkSelection::all();
        code_of(&connection, &BlobRequest::Observe { hash, selection }).await
    });
}

/// A connection of the tenant for contents by their hash.
fn blobs_connection(node: &FilesNode, options: BlobOptions) -> Connection {
    let (ours, theirs) = memory_pair(BLOBS_ALPN);
    let auth = AuthContext {
        identity: Some(identity("eve", &SCOPES)),
        key: None,
        alpn: BLOBS_ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    };
    let handler = std::sync::Arc::new(BlobHandler::new(&node.service, options));
    tokio::spawn(handler.handle(theirs, auth));
    ours
}

/// The code with which the node resets the stream of a request.
async fn code_of(connection: &Connection, request: &BlobRequest) -> u64 {
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let sent = send.write_chunk(request.encode().into()).await;
    sent.expect("the node reads");
    send.finish().expect("it is open");
    match recv.read_chunk(64).await {
        Err(StreamError::Reset(code)) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hidden_bucket_takes_as_long_as_one_that_does_not_exist() {
    let timed = TimedNode::new();
    let (eve, mount) = {
        let _entered = timed.runtime.enter();
        let eve = timed.node.peer("eve", &SCOPES);
        (eve, MountClient::new(&timed.node, "eve", &SCOPES))
    };
    // Names of one length.
    let buckets = ["secret", "absent"];
    for (operation, member) in [
        ("fs/stat", "path"),
        ("fs/list", "path"),
        ("fs/branch/list", "bucket"),
        ("fs/bucket/usage", "bucket"),
    ] {
        timed.check(operation, async |kind, number| {
            let named = match member {
                "path" => format!("{}:/{number}", buckets[kind]),
                _ => buckets[kind].to_owned(),
            };
            let mut input = json!({});
            input[member] = Value::from(named);
            eve.refused(operation, input).await
        });
    }
    for (method, below) in [("GET", true), ("PROPFIND", false)] {
        timed.check(method, async |kind, number| {
            let path = match below {
                true => format!("/fs/{}/{number}", buckets[kind]),
                false => format!("/fs/{}/", buckets[kind]),
            };
            let answer = mount.send(method, &path, &[("depth", "0")], "").await;
            assert_eq!(answer.status, 404);
            // An error may name the path of the request.
            let text = answer.text();
            text.replace(&path, "").replace(buckets[kind], "")
        });
    }
}
