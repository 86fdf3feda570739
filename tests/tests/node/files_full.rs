//! A node whose disk is full: it takes deletions of files, and serves everything else.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_call::CallConnection;
use alknet_test_support::deadline;
use alknet_tests::{HostNode, TestBench, eventually};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::manual_peer::caller;

const MIB: u64 = 1 << 20;

/// Bytes and inodes of the disk.
const DISK: (u64, u64) = (64 * MIB, 8192);
/// Bytes of each file.
const FILE_BYTES: usize = 400 << 10;
/// The file that the store gives back when the disk is full, so that deletions have room.
const RESERVE: &str = "state/fs/fs.db-reserve";

async fn within<T>(work: impl Future<Output = T>) -> T {
    let hung = deadline(Duration::from_secs(60));
    tokio::time::timeout(hung, work).await.expect("it hangs")
}

/// The answer of an operation, or the code of its error.
async fn answer(client: &CallConnection, operation: &str, input: Value) -> Result<Value, String> {
    let answer = within(client.call(operation, &input)).await;
    answer
        .map(|answer| answer.value().clone())
        .map_err(|error| error.code.name().to_owned())
}

/// Puts a file whose bytes no other file has.
async fn put(client: &CallConnection, path: &str, len: usize) -> Result<Value, String> {
    let mut bytes = path.as_bytes().to_vec();
    bytes.resize(len, 7);
    let input = json!({ "path": path, "bytes": BASE64.encode(&bytes) });
    answer(client, "fs/put", input).await
}

/// The state of a node, as a path of this process.
fn state_of(node: &HostNode) -> PathBuf {
    let state = node.state().strip_prefix("/").expect("it is absolute");
    Path::new(&format!("/proc/{}/root", node.pid())).join(state)
}

/// Takes all room of the disk that is left.
fn fill(file: &Path) {
    let mut file = File::create(file).expect("there is room for a name");
    for bytes in [1 << 20, 4096, 1] {
        let zeros = vec![0; bytes];
        while file.write_all(&zeros).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_deletions_of_files_and_serves_the_rest() {
    let bench = TestBench::new();
    if let Some(node) = bench.host_on_disk(DISK, "") {
        let (_dialer, client) = caller(&node, bench.admin()).await;
        deletions_are_taken(&node, &client).await;
    }
}

async fn deletions_are_taken(node: &HostNode, client: &CallConnection) {
    let bucket = json!({ "bucket": "docs" });
    let made = answer(client, "fs/bucket/create", bucket).await;
    made.expect("room");
    put(client, "docs:/kept", 1000).await.expect("room");
    let reserve = state_of(node).join(RESERVE);
    eventually("the store keeps its reserve", || {
        reserve.exists().then_some(())
    });
    // The store leaves a part of the disk to everything else.
    let mut stored = 0;
    let refused = loop {
        match put(client, &format!("docs:/f/{stored}"), FILE_BYTES).await {
            Ok(_) => stored += 1,
            Err(code) => break code,
        }
        assert!((stored * FILE_BYTES) as u64 <= DISK.0, "{stored} files");
    };
    println!("figure files on a disk of 64 MiB: {stored}");
    assert_eq!(refused, "NO_SPACE");
    assert!((stored * FILE_BYTES) as u64 > DISK.0 / 3, "{stored} files");

    // Another program takes the rest.
    let filler = state_of(node).join("filler");
    fill(&filler);
    assert_eq!(
        put(client, "docs:/new", 10).await,
        Err("NO_SPACE".to_owned())
    );
    let deletion = json!({ "path": "docs:/f", "recursive": true });
    let deleted = answer(client, "fs/delete", deletion).await;
    deleted.expect("a deletion has room");
    assert!(!reserve.exists(), "it was given back");
    let listed = answer(client, "fs/list", json!({ "path": "docs:/" })).await;
    let listed = listed.expect("a read needs no room");
    let paths = listed["entries"].as_array().expect("a list").iter();
    let paths: Vec<_> = paths.map(|entry| entry["path"].clone()).collect();
    assert_eq!(paths, ["/kept"]);
    let info = answer(client, "node/info", Value::Null).await;
    info.expect("the node serves everything else");

    fs::remove_file(&filler).expect("it is ours");
    let kept = answer(client, "fs/stat", json!({ "path": "docs:/kept" })).await;
    assert_eq!(kept.expect("it is there")["size"], 1000);
}
