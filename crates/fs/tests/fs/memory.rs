//! The memory of clients that take their time, and of a large file. Each test runs alone in its process.

use std::ops::Range;

use alknet_fs::StoreLease;
use alknet_fs::limits::{CHUNK_BYTES_MAX, IDLE_WATCH_BYTES_MAX, SLOW_RESPONSE_BYTES_MAX};
use alknet_store::limits::{FILE_BYTES_MAX, FILE_MEMORY_BYTES_MAX, OPEN_READ_BYTES_MAX};
use alknet_store::{ContentHash, NewWriteSession, WriteSessionMode};
use alknet_test_support::{alone, is_campaign, peak_resident_bytes, resident_bytes};
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

/// Bytes of each of the three pieces of the large file, which lie at its start, in its middle and at its end.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes of the file that is large enough for every kind of file and memory of its store.
const FIRST_FILE_BYTES: u64 = 256 << 20;

#[test]
fn a_file_of_holes_takes_named_memory() {
    alone("memory::a_file_of_holes_takes_named_memory", measure_holes);
}

#[tokio::main(flavor = "current_thread")]
async fn measure_holes() {
    // BLAKE3 mixes the offset of each chunk into its hash, so that the zeros of a hole have to be hashed like any other
    // bytes: 64 GiB of them take about a minute, which only a campaign has.
    let size = match is_campaign() {
        true => FILE_BYTES_MAX,
        false => FILE_BYTES_MAX / 16,
    };
    let node = FilesNode::new();
    let admin = node.admin().await;
    // Holes count against the quota of a bucket, although they take no space.
    let quota = json!({ "bucket": "docs", "quota_bytes": 2 * FILE_BYTES_MAX });
    admin.call("fs/bucket/set", quota).await;
    // What every file costs comes before.
    check_holes(&node, &admin, "first", FIRST_FILE_BYTES).await;
    let before = resident_bytes();
    check_holes(&node, &admin, "large", size).await;
    let grown = peak_resident_bytes().saturating_sub(before);
    assert!(grown <= FILE_MEMORY_BYTES_MAX, "{grown} bytes");
}

/// Stores a file with holes between three pieces, and reads ranges of it.
async fn check_holes(node: &FilesNode, admin: &FilesPeer, name: &str, size: u64) {
    let lease = node.service.lease().await.expect("a store");
    let path = format!("/{name}");
    // In the store itself: a call that takes minutes meets the deadline of all calls.
    let stored = tokio::task::spawn_blocking(move || store_holes(&lease, &path, size));
    let hash = stored.await.expect("it is stored");
    let piece = PIECE_BYTES as u64;
    let middle = piece_starts(size)[1];
    for range in [
        0..piece + 1000,
        middle - 1000..middle + piece + 1000,
        size - piece - 1000..size,
    ] {
        let input = json!({
            "path": format!("docs:/{name}"), "offset": range.start, "length": range.end - range.start,
        });
        let (head, bytes) = admin.read(input).await;
        assert_eq!(head["size"], size);
        assert_eq!(head["hash"], hash.to_string());
        assert!(bytes == bytes_with_holes(size, &range), "{range:?}");
    }
}

/// Where the pieces begin. The second one begins within a group of the hash tree.
fn piece_starts(size: u64) -> [u64; 3] {
    [0, size / 2 + 1000, size - PIECE_BYTES as u64]
}

fn store_holes(lease: &StoreLease, path: &str, size: u64) -> ContentHash {
    let found = lease.read(|tx| {
        let bucket = tx.bucket_by_name(&"docs".parse()?)?;
        Ok(tx.branch_by_name(bucket.id, &"main".parse()?)?.id)
    });
    let branch = found.wait().expect("there");
    let path = path.parse().expect("a path");
    let new = NewWriteSession::new(branch, path, WriteSessionMode::Create, "root");
    let id = lease.open_session(&new).expect("it may be opened");
    for start in piece_starts(size) {
        for (number, part) in noise(PIECE_BYTES).chunks(CHUNK_BYTES_MAX).enumerate() {
            let at = start + (number * CHUNK_BYTES_MAX) as u64;
            let written = lease.sessions().write(id, "root", at, part);
            written.expect("room");
        }
    }
    let closed = lease.sessions().close(id, "root", None).expect("room");
    assert_eq!(closed.size, size);
    closed.hash
}

/// The bytes of a range of the file.
fn bytes_with_holes(size: u64, range: &Range<u64>) -> Vec<u8> {
    let piece = noise(PIECE_BYTES);
    let mut bytes = vec![0; (range.end - range.start) as usize];
    for start in piece_starts(size) {
        let end = start + PIECE_BYTES as u64;
        let (from, to) = (start.max(range.start), end.min(range.end));
        if from < to {
            let inside = &piece[(from - start) as usize..(to - start) as usize];
            let at = (from - range.start) as usize;
            bytes[at..at + inside.len()].copy_from_slice(inside);
        }
    }
    bytes
}
