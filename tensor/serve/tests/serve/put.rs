//! Storing over the protocol.

use std::path::Path;
use std::process::Command;

use alknet_tensor_serve::{StoreOptions, StorePath, TensorRemoval, TensorStore};

use crate::scene::{NAME, StoreScene, at, file, on_disk};

/// A program that knows nothing of us calls a file as its store does.
#[tokio::test]
async fn the_id_is_what_b3sum_says() {
    let (scene, id) = StoreScene::holding("a");
    let said = Command::new("b3sum")
        .arg("--no-names")
        .arg(scene.object(id))
        .output()
        .expect("b3sum is not here; run these tests with `cargo xtask test`, which installs it");
    assert!(said.status.success(), "{said:?}");
    let said = String::from_utf8(said.stdout).expect("digits");
    assert_eq!(said.trim_end(), id.to_string());
}

#[tokio::test]
async fn what_is_put_can_be_pulled_after_a_restart() {
    let scene = StoreScene::new();
    let client = scene.client(&["tensor:write:in", "tensor:read:in"]);
    let file = file();
    let id = client
        .put(file.as_slice(), Some("in/a"), &|_, _| {})
        .await
        .expect("stored");
    assert_eq!(id.0, blake3::hash(&file));
    // Twice is once.
    let again = client
        .put(file.as_slice(), Some("in/b"), &|_, _| {})
        .await
        .expect("stored");
    assert_eq!(again, id);
    assert_eq!((scene.count("objects"), scene.count("uploads")), (1, 0));

    let root = scene.path("store");
    let again = TensorStore::open(root, StoreOptions::default()).expect("it is there");
    let paths: Vec<_> = again
        .paths()
        .into_iter()
        .map(|(path, id)| (path.to_string(), id))
        .collect();
    assert_eq!(paths, [("in/a".to_owned(), id), ("in/b".to_owned(), id)]);
    let target = scene.path("a.mt");
    client
        .pull(&at("in/b"), &target, &|_, _| {})
        .await
        .expect("served");
    assert!(std::fs::read(target).expect("there") == file);
}

#[tokio::test]
async fn what_is_damaged_is_mended_by_storing_it_again() {
    let (scene, id) = StoreScene::holding("a");
    let client = scene.client(&["tensor:read:*"]);
    let target = scene.path("a.mt");
    let object = scene.object(id);
    let mut damaged = file();
    *damaged.last_mut().expect("it has bytes") ^= 1;
    std::fs::remove_file(&object).expect("there");
    std::fs::write(&object, damaged).expect("writable");
    let pull = client.pull(&at("a"), &target, &|_, _| {}).await;
    assert_eq!(pull.expect_err("damaged").code(), "E_HASH");
    assert_eq!(scene.add("a", &file()), id);
    let pull = client.pull(&at("a"), &target, &|_, _| {}).await;
    pull.expect("whole again");
    assert!(std::fs::read(target).expect("there") == file());
}

#[tokio::test]
async fn the_store_is_never_larger_than_it_may_be() {
    let file = file();
    let options = StoreOptions {
        bytes_max: on_disk(file.len()) + NAME + 100,
        ..StoreOptions::default()
    };
    let scene = StoreScene::with(options);
    let client = scene.client(&["*"]);
    client
        .put(file.as_slice(), Some("a"), &|_, _| {})
        .await
        .expect("it fits");
    let small = small(1000);
    let put = client.put(small.as_slice(), Some("b"), &|_, _| {}).await;
    assert_eq!(put.expect_err("no room").code(), "E_QUOTA");
    // The same file needs no more room once it is known to be the same, but room to arrive.
    let put = client.put(file.as_slice(), Some("c"), &|_, _| {}).await;
    assert_eq!(put.expect_err("no room").code(), "E_QUOTA");
    assert_eq!(scene.count("uploads"), 0);
}

/// Files of some hundred bytes in half of a disk with an inode for each 16 KiB: the store counted their bytes only, so
/// that no inode was left long before the store was full.
#[tokio::test]
async fn many_small_files_use_up_the_quota() {
    // A quarter of the smallest data disk.
    const DISK: u64 = 32 << 20;
    let file = |at: usize| small_with(at.to_le_bytes().to_vec());
    assert!(file(0).len() < 1024);
    let options = StoreOptions {
        bytes_max: DISK / 2,
        ..StoreOptions::default()
    };
    // All to one path, after which each file stays under its id; or each to a path of its own.
    for path in [|_: usize| "a".to_owned(), |at: usize| format!("a/{at}/b/c")] {
        let scene = StoreScene::with(options);
        let mut stored = 0;
        loop {
            let path = StorePath::parse(&path(stored)).expect("a path");
            match scene.store.add(file(stored).as_slice(), Some(path)) {
                Ok(_) => stored += 1,
                Err(error) => {
                    assert_eq!(error.code(), "E_QUOTA");
                    break;
                }
            }
        }
        let inodes = entries_below(&scene.path("store"));
        assert!(stored > 100, "{stored} files");
        assert!(inodes < DISK / (16 << 10) / 2, "{inodes} inodes");
        // A start counts the same.
        let again = TensorStore::open(scene.path("store"), options).expect("it is there");
        let full = again.add(
            file(stored).as_slice(),
            StorePath::parse(&path(stored)).ok(),
        );
        assert_eq!(full.expect_err("no room").code(), "E_QUOTA");
    }
}

/// Files and folders below this one.
fn entries_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("readable");
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("readable").path();
        match path.is_dir() {
            true => 1 + entries_below(&path),
            false => 1,
        }
    };
    entries.map(count).sum()
}

#[tokio::test]
async fn a_path_is_a_file_or_a_folder() {
    let scene = StoreScene::new();
    let client = scene.client(&["*"]);
    let put = async |path| {
        client
            .put(small(10).as_slice(), Some(path), &|_, _| {})
            .await
    };
    put("a/b").await.expect("stored");
    for path in ["a", "a/b/c"] {
        assert_eq!(put(path).await.expect_err(path).code(), "E_VALUE");
    }
    for path in ["../x", "id/x", ""] {
        assert_eq!(put(path).await.expect_err(path).code(), "E_VALUE");
    }
    put("a/b").await.expect("it leads to the same again");
}

#[tokio::test]
async fn what_is_removed_makes_room_and_leaves_nothing() {
    let (scene, id) = StoreScene::holding("a");
    scene.add("b/c", &file());
    let client = scene.client(&["tensor:read:*"]);
    let target = scene.path("a.mt");
    client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect("served");
    let [a, c] = ["a", "b/c"].map(|path| StorePath::parse(path).expect(path));
    let removed = scene.store.remove(&a).expect("there");
    assert_eq!(removed, TensorRemoval { id, freed: 0 });
    let gone = client.pull(&at("a"), &target, &|_, _| {}).await;
    assert_eq!(gone.expect_err("gone").code(), "E_NOTFOUND");
    assert!(scene.object(id).exists() && scene.count("outboards") > 0);
    // What cannot be taken from the disk is still there.
    let name = scene.path("store/names/b/c");
    std::fs::remove_file(&name).expect("there");
    std::fs::create_dir(&name).expect("writable");
    let stays = scene.store.remove(&c).expect_err("a folder");
    assert_eq!(stays.code(), "E_IO");
    assert!(scene.object(id).exists() && scene.store.paths().len() == 1);
    std::fs::remove_dir(&name).expect("ours");
    let removed = scene.store.remove(&c).expect("there");
    let freed = file().len() as u64;
    assert_eq!(removed, TensorRemoval { id, freed });
    assert!(!scene.object(id).exists());
    assert_eq!(scene.count("outboards"), 0);
    let again = scene.store.remove(&c).expect_err("gone");
    assert_eq!(again.code(), "E_NOTFOUND");
    scene.add("a", &file());
}

/// A folder that stayed would refuse a file of its name.
#[tokio::test]
async fn the_folders_of_a_removed_path_are_removed_with_it() {
    let scene = StoreScene::new();
    for path in ["a/b/c", "a/d"] {
        scene.add(path, &small(10));
    }
    let path = |path| StorePath::parse(path).expect(path);
    scene.store.remove(&path("a/b/c")).expect("there");
    assert!(!scene.path("store/names/a/b").exists());
    scene.add("a/b", &small(20));
    for removed in ["a/b", "a/d"] {
        scene.store.remove(&path(removed)).expect("there");
    }
    scene.add("a", &small(30));
}

#[tokio::test]
async fn a_file_without_a_path_is_removed_by_its_id() {
    let (scene, id) = StoreScene::holding("a");
    let led_to = scene.store.remove_file(id).expect_err("a path leads to it");
    assert_eq!(led_to.code(), "E_VALUE");
    // The path leads to another file now, and the first one stays without a path.
    scene.add("a", &small(10));
    let freed = file().len() as u64;
    let removed = scene.store.remove_file(id).expect("it is there");
    assert_eq!(removed, TensorRemoval { id, freed });
    assert!(!scene.object(id).exists());
    let gone = scene.store.remove_file(id).expect_err("it is gone");
    assert_eq!(gone.code(), "E_NOTFOUND");
}

pub(crate) fn small(len: u64) -> Vec<u8> {
    small_with(vec![3; len as usize])
}

fn small_with(content: Vec<u8>) -> Vec<u8> {
    let mut writer = alknet_tensor::ContainerWriter::new(std::io::Cursor::new(Vec::new()));
    let len = content.len() as u64;
    writer
        .flat("x", alknet_tensor::Dtype::U8, &[len], content.into())
        .expect("it fits");
    writer.finish().expect("memory").1.into_inner()
}
