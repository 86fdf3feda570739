//! Files that change under the store while they are served.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use alknet_tensor::FileId;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::scene::{Scene, ask, at, file, hung, refused};

/// Puts one byte of the large tensor right again and again: the file's times change, its bytes do
/// not always.
pub(crate) fn scribble(scene: &Scene, id: FileId, at: u64, byte: u8) {
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
        let (scene, id) = Scene::holding("a");
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

#[tokio::test]
async fn a_changed_file_is_not_served_to_its_end() {
    let (scene, id) = Scene::holding("a");
    let peer = scene.peer("ada", &["tensor:read:a"]);
    let request = json!({ "v": 1, "src": { "path": "a" }, "want": "tensor", "name": "large" });
    let (head, recv) = ask(&peer, &request).await;
    assert_eq!(head["ok"], true);
    scribble(&scene, id, file().len() as u64 - 1, 9);
    let (_, whole) = rest(recv).await;
    assert!(!whole);
}

/// What rots on the disk reaches nobody who asks for proof.
#[tokio::test]
async fn a_byte_that_changed_is_a_hash_that_does_not_hold() {
    let (scene, id) = Scene::holding("a");
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

/// A tree that somebody wrote into the folder is found out.
#[tokio::test]
async fn kept_trees_are_not_trusted() {
    let (scene, _) = Scene::holding("a");
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
    // One of another length is made anew.
    for entry in fs::read_dir(scene.path("store/outboards")).expect("there") {
        fs::write(entry.expect("readable").path(), [1; 40]).expect("writable");
    }
    client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect("made anew");
}
