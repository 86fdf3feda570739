//! Files that change under the store while they are served.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};

use alknet_core::{Connection, memory_pair};
use alknet_tensor::FileId;
use alknet_tensor_serve::{ALPN, TensorClient};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::scene::{StoreScene, answer, ask, at, file, hung, large, refused};

/// Puts one byte of the large tensor right again and again: the file's times change, its bytes do
/// not always.
pub(crate) fn scribble(scene: &StoreScene, id: FileId, at: u64, byte: u8) {
    let path = scene.object(id);
    let mut permissions = fs::metadata(&path).expect("there").permissions();
    #[expect(
        clippy::permissions_set_readonly_false,
        reason = "a test's own file in a test's own folder"
    )]
    permissions.set_readonly(false);
    fs::set_permissions(&path, permissions).expect("ours");
    let object = OpenOptions::new().write(true).open(&path).expect("ours");
    object.write_all_at(&[byte], at).expect("writable");
}

/// Reads until the stream ends in one way or the other.
async fn rest(mut recv: alknet_core::RecvStream) -> (usize, bool) {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(hung(), recv.read_to_end(&mut bytes)).await;
    (bytes.len(), read.expect("in time").is_ok())
}

#[tokio::test]
async fn a_file_that_is_cut_short_ends_its_streams() {
    for encoding in ["raw", "bao16"] {
        let (scene, id) = StoreScene::holding("a");
        let peer = scene.peer("ada", &["tensor:read:a"]);
        let request = json!({ "v": 1, "src": { "path": "a" }, "want": "tensor", "name": "large",
                              "encoding": encoding });
        let (head, recv) = ask(&peer, &request).await;
        assert_eq!(head["ok"], true);
        let object = OpenOptions::new()
            .write(true)
            .open(scene.object(id))
            .expect("root or ours");
        object.set_len(10_000).expect("writable");
        let (len, whole) = rest(recv).await;
        assert!(
            !whole && (len as u64) < head["len"].as_u64().expect("a length"),
            "{encoding}"
        );
        // Nothing of it is served afterwards, and everything else is.
        assert_eq!(refused(&peer, request).await, "E_TILING");
    }
}

/// A disk that lost the end of a file, or a program that added to it: no byte is sent, whatever is asked for.
#[tokio::test]
async fn a_file_of_another_length_is_refused_before_its_first_byte() {
    let (scene, id) = StoreScene::holding("a");
    let peer = scene.peer("ada", &["tensor:read:a"]);
    let (whole, path) = (file(), scene.object(id));
    let end = whole.len();
    let requests = [
        json!({ "v": 1, "src": { "path": "a" }, "want": "header" }),
        json!({ "v": 1, "src": { "path": "a" }, "want": "tensor", "name": "small" }),
        json!({ "v": 1, "src": { "path": "a" }, "want": "range", "range": [0, 100] }),
    ];
    for len in [0, 7, 8, 100, 10_000, end / 2, end - 1, end + 1, 2 * end] {
        fs::remove_file(&path).expect("there");
        let mut bytes = whole.clone();
        bytes.resize(len, 0);
        fs::write(&path, bytes).expect("room");
        for request in &requests {
            let code = refused(&peer, request.clone()).await;
            assert!(code.starts_with("E_"), "{len}: {code}");
        }
    }
    // The file that was stored is served again.
    fs::remove_file(&path).expect("there");
    fs::write(&path, whole).expect("room");
    for request in requests {
        let (head, recv) = ask(&peer, &request).await;
        assert_eq!(head["ok"], true);
        assert!(rest(recv).await.1);
    }
}

/// The attack of a program with access to the folder: a link shows another file under the id, and a pipe keeps the node
/// waiting.
#[tokio::test]
async fn what_is_no_file_in_the_place_of_an_object_is_not_opened() {
    let (scene, id) = StoreScene::holding("a");
    let peer = scene.peer("ada", &["tensor:read:a"]);
    let request = json!({ "v": 1, "src": { "path": "a" }, "want": "tensor", "name": "small" });
    let path = scene.object(id);
    let elsewhere = scene.path("elsewhere");
    fs::rename(&path, &elsewhere).expect("there");
    symlink(&elsewhere, &path).expect("room");
    assert_eq!(refused(&peer, request.clone()).await, "E_HASH");
    fs::remove_file(&path).expect("a link");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, path.as_path(), FileType::Fifo, mode, 0).expect("room");
    assert_eq!(refused(&peer, request.clone()).await, "E_HASH");
    fs::remove_file(&path).expect("a pipe");
    fs::rename(&elsewhere, &path).expect("there");
    let (head, recv) = ask(&peer, &request).await;
    assert_eq!(head["ok"], true);
    assert!(rest(recv).await.1);
}

#[tokio::test]
async fn a_changed_file_is_not_served_to_its_end() {
    let (scene, id) = StoreScene::holding("a");
    let peer = scene.peer("ada", &["tensor:read:a"]);
    let request = json!({ "v": 1, "src": { "path": "a" }, "want": "tensor", "name": "large" });
    let (head, recv) = ask(&peer, &request).await;
    assert_eq!(head["ok"], true);
    scribble(&scene, id, file().len() as u64 - 1, 9);
    let (_, whole) = rest(recv).await;
    assert!(!whole);
}

/// What rots on the disk does not reach a client that asks for proof.
#[tokio::test]
async fn a_byte_that_changed_is_a_hash_that_does_not_hold() {
    let (scene, id) = StoreScene::holding("a");
    let target = scene.path("a.mt");
    let client = scene.client(&["tensor:read:a"]);
    // So that the tree is kept as it was.
    client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect("good");
    fs::remove_file(&target).expect("there");
    let len = file().len() as u64;
    let middle = len / 2 / 16_384 * 16_384 + 5;
    let byte = file()[middle as usize] ^ 1;
    scribble(&scene, id, middle, byte);
    let error = client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect_err("it rotted");
    assert_eq!(error.code(), "E_IO", "{error}");
    assert!(!target.exists());
    let digits = id.to_string();
    let part = fs::read(scene.path(&format!(".a.mt.{}.part", &digits[..16]))).expect("there");
    // Everything before the group with the byte, and nothing of it.
    assert!(part.len() as u64 <= middle / 16_384 * 16_384);
    assert!(part == file()[..part.len()]);

    // A tree that was made of what rotted is not the one of the file.
    fs::remove_dir_all(scene.path("store/outboards")).expect("there");
    fs::create_dir(scene.path("store/outboards")).expect("ours");
    let peer = scene.peer("ada", &["tensor:read:a"]);
    let whole = json!({ "src": { "path": "a" }, "want": "range", "range": [0, 1],
                        "encoding": "bao16" });
    assert_eq!(refused(&peer, whole).await, "E_HASH");
    let tensor = json!({ "src": { "path": "a" }, "want": "tensor", "name": "large",
                         "encoding": "bao16" });
    assert_eq!(refused(&peer, tensor).await, "E_HASH");
    let good = json!({ "v": 1, "src": { "path": "a" }, "want": "tensor", "name": "small",
                       "encoding": "bao16" });
    assert_eq!(ask(&peer, &good).await.0["ok"], true);
}

/// A tree that another program wrote into the folder is found out.
#[tokio::test]
async fn kept_trees_are_not_trusted() {
    let (scene, _) = StoreScene::holding("a");
    let client = scene.client(&["tensor:read:a"]);
    let target = scene.path("a.mt");
    client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect("good");
    for entry in fs::read_dir(scene.path("store/outboards")).expect("there") {
        let path = entry.expect("readable").path();
        let kept = OpenOptions::new().write(true).open(&path).expect("ours");
        kept.write_all_at(&[0xaa; 64], 32).expect("writable");
    }
    let error = client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect_err("another tree");
    assert_eq!(error.code(), "E_IO", "{error}");
    // The store makes one of another length again.
    for entry in fs::read_dir(scene.path("store/outboards")).expect("there") {
        fs::write(entry.expect("readable").path(), [1; 40]).expect("writable");
    }
    client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect("made again");
}

/// A peer that answers as the store does, but for this byte of each part that travels with its hashes.
fn liar(scene: &StoreScene, at: usize) -> Connection {
    let honest = scene.peer("ada", &["tensor:read:a"]);
    let (ours, theirs) = memory_pair(ALPN);
    tokio::spawn(async move {
        while let Ok((mut send, recv)) = theirs.accept_bi().await {
            let honest = honest.clone();
            tokio::spawn(async move {
                let (request, _recv) = answer(recv).await;
                let (head, mut part) = ask(&honest, &request).await;
                let mut bytes = Vec::new();
                part.read_to_end(&mut bytes).await.expect("to the end");
                if request["encoding"] == "bao16"
                    && let Some(byte) = bytes.get_mut(at)
                {
                    *byte ^= 1;
                }
                let head = head.to_string();
                let mut said = (head.len() as u32).to_be_bytes().to_vec();
                said.extend(head.into_bytes());
                said.extend(bytes);
                // A client that finds it out reads no further.
                send.write_all(&said).await.ok();
                send.finish().ok();
            });
        }
    });
    ours
}

/// What is kept of an attempt that failed, which is taken away.
fn taken_part(scene: &StoreScene) -> Vec<u8> {
    let entries = fs::read_dir(scene.folder.path()).expect("readable");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let mut parts = paths.filter(|path| path.extension().is_some_and(|it| it == "part"));
    let path = parts.next().expect("a part is kept");
    let part = fs::read(&path).expect("readable");
    fs::remove_file(&path).expect("ours");
    part
}

/// Bytes of a part that come before the first hash of its right half, and how many of them are of the file.
fn left_half(len: usize) -> (usize, usize) {
    let left = len.div_ceil(1024).next_power_of_two() / 2 * 1024;
    let pairs = left / 16_384;
    (pairs * 64 + left, left)
}

/// A peer that lies is found out at the first pair or group that is another one: nothing of it is written.
#[tokio::test]
async fn a_peer_that_lies_has_nothing_written_that_is_not_proven() {
    let (scene, _) = StoreScene::holding("a");
    let target = scene.path("a.mt");
    let client = TensorClient::new(liar(&scene, usize::MAX));
    let pulled = client.pull(&at("a"), &target, &|_, _| {}).await;
    pulled.expect("it says the truth where nothing is changed");
    fs::remove_file(&target).expect("there");
    for (what, good) in [("file", file()), ("tensor", large())] {
        let (right, half) = left_half(good.len());
        let changes = [
            ("the first pair", 5, 0),
            ("the last group of the left half", right - 1, half - 16_384),
            ("a pair between groups", right + 5, half),
        ];
        for (place, byte, proven) in changes {
            let client = TensorClient::new(liar(&scene, byte));
            let seen = AtomicU64::new(0);
            let told = |done, _| seen.store(done, Ordering::Relaxed);
            let keep = |name: &str| name == "large";
            let pulled = match what {
                "file" => client.pull(&at("a"), &target, &told).await,
                _ => client.pull_some(&at("a"), &target, &keep, &told).await,
            };
            let error = pulled.expect_err("it lied");
            assert_eq!(error.code(), "E_HASH", "{what}, {place}: {error}");
            assert!(!target.exists(), "{what}, {place}");
            let part = taken_part(&scene);
            assert_eq!(part.len(), proven, "{what}, {place}");
            assert!(part == good[..proven], "{what}, {place}");
            assert_eq!(seen.into_inner(), proven as u64, "{what}, {place}");
        }
    }
    // Short ones are asked for at once, and have one group each.
    let client = TensorClient::new(liar(&scene, 0));
    let short = |name: &str| name != "large";
    let pulled = client
        .pull_some(&at("a"), &target, &short, &|_, _| {})
        .await;
    assert_eq!(pulled.expect_err("it lied").code(), "E_HASH");
    assert!(!target.exists() && taken_part(&scene).is_empty());
}
