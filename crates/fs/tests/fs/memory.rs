//! The memory of clients that take their time. Each test runs alone in its process.

use alknet_fs::limits::{IDLE_WATCH_BYTES_MAX, SLOW_RESPONSE_BYTES_MAX};
use alknet_store::limits::OPEN_READ_BYTES_MAX;
use alknet_test_support::{alone, resident_bytes};
use http_body_util::BodyExt;
use serde_json::json;

use crate::mount_client::MountClient;
use crate::scene::{FilesNode, FilesPeer, next, noise};

const READERS: u64 = 64;
/// Bytes of the content that they read.
const CONTENT_BYTES: usize = 32 << 20;

const WATCHERS: u64 = 1000;
/// Subscriptions of each peer.
const WATCHERS_OF_PEER: u64 = 50;

async fn node_with_a_content() -> (FilesNode, FilesPeer) {
    let node = FilesNode::new();
    let admin = node.admin().await;
    // In a function of its own, so that the bytes are gone before anything is measured.
    admin.upload("docs:/a", &noise(CONTENT_BYTES)).await;
    (node, admin)
}

#[test]
fn slow_readers_have_a_block_each() {
    alone("memory::slow_readers_have_a_block_each", measure_readers);
}

#[tokio::main(flavor = "current_thread")]
async fn measure_readers() {
    let (node, _admin) = node_with_a_content().await;
    // In the store itself, behind the first block of each.
    let lease = node.service.lease().await.expect("a store");
    let found = lease.read(|tx| {
        let bucket = tx.bucket_by_name(&"docs".parse()?)?;
        let main = tx.branch_by_name(bucket.id, &"main".parse()?)?;
        let entry = tx.stat(&tx.view(main.id, None)?, &"/a".parse()?)?;
        Ok(entry.state.hash)
    });
    let hash = found.await.expect("there").expect("a file");
    let measured = tokio::task::spawn_blocking(move || {
        let open = || {
            let reader = lease.read_content(hash).expect("whole");
            let mut blocks = reader.blocks(0..reader.size());
            let first = blocks.next().expect("a block").expect("whole");
            (blocks, first)
        };
        drop(open());
        let before = resident_bytes();
        let readers: Vec<_> = (0..READERS).map(|_| open()).collect();
        let grown = resident_bytes().saturating_sub(before) / READERS;
        assert!(grown <= OPEN_READ_BYTES_MAX, "{grown} bytes for each");
        drop(readers);
    });
    measured.await.expect("within the bound");
    // Over HTTP, whose clients have taken one frame.
    let client = MountClient::new(&node, "ada", &["fs:read:docs"]);
    let ask = async || {
        let mut body = client.begin("/fs/docs/a").await;
        let frame = body.frame().await.expect("a frame").expect("whole");
        (body, frame)
    };
    drop(ask().await);
    let before = resident_bytes();
    let mut responses = Vec::new();
    for _ in 0..READERS {
        responses.push(ask().await);
    }
    let grown = resident_bytes().saturating_sub(before) / READERS;
    assert!(grown <= SLOW_RESPONSE_BYTES_MAX, "{grown} bytes for each");
    // All of them go on.
    for (mut body, frame) in responses {
        let mut bytes = frame.into_data().expect("data").len();
        while let Some(frame) = body.frame().await {
            let frame = frame.expect("whole");
            bytes += frame.into_data().map_or(0, |data| data.len());
        }
        assert_eq!(bytes, CONTENT_BYTES);
    }
}

#[test]
fn idle_watchers_cost_little() {
    alone("memory::idle_watchers_cost_little", measure_watchers);
}

#[tokio::main(flavor = "current_thread")]
async fn measure_watchers() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let mut peers = Vec::new();
    for number in 0..WATCHERS / WATCHERS_OF_PEER {
        peers.push(node.peer(&format!("p{number}"), &["fs:read:docs"]));
    }
    let watch = || json!({ "path": "docs:/quiet" });
    // What the connections and the first subscription cost comes before.
    let mut events = Vec::new();
    for peer in &peers {
        events.push(peer.subscribe("fs/watch", watch()).await);
    }
    for events in &mut events {
        next(events).await;
    }
    let before = resident_bytes();
    for peer in &peers {
        for _ in 1..WATCHERS_OF_PEER {
            let mut subscription = peer.subscribe("fs/watch", watch()).await;
            next(&mut subscription).await;
            events.push(subscription);
        }
    }
    assert_eq!(events.len() as u64, WATCHERS);
    // Each wakes up, and takes nothing of these.
    for number in 0..20 {
        admin.put(&format!("docs:/loud/{number}"), b"x").await;
    }
    let grown = resident_bytes().saturating_sub(before) / WATCHERS;
    assert!(grown <= IDLE_WATCH_BYTES_MAX, "{grown} bytes for each");
    // All of them are served.
    admin.put("docs:/quiet/a", b"x").await;
    for events in &mut events {
        let event = next(events).await.output.value().clone();
        // The directory first, or the file.
        let path = event["path"].as_str().expect("a path");
        assert!(path.starts_with("/quiet"), "{event}");
    }
}
