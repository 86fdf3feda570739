//! Fetching whole files and some of their tensors, with connections that are cut.

use std::fs::{self, File, OpenOptions};
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use alknet_core::CloseCode;
use alknet_tensor::tools::strip;
use alknet_tensor::{ContainerLimits, ContainerReader, SchemaLayouts, VerifyDepth, verify};
use alknet_tensor_serve::{TensorClient, TensorFileRef};

use crate::scene::{StoreScene, at, file, large};

/// What may be fetched twice where a connection is cut.
const AGAIN_BYTES: u64 = 64 << 10;

fn names(scene: &StoreScene) -> Vec<String> {
    let entries = fs::read_dir(scene.folder.path()).expect("readable");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("readable").file_name();
    let names = entries.map(|entry| name(entry).into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name != "store").collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_whole_file_comes_as_it_was_stored() {
    let (scene, id) = StoreScene::holding("models/a");
    let client = scene.client(&["tensor:read:models"]);
    let target = scene.path("a.mt");
    let last = AtomicU64::new(0);
    let told = |done, total| {
        assert!(done <= total);
        last.store(done, Ordering::Relaxed);
    };
    for src in [at("models/a"), TensorFileRef::Id(id)] {
        let pulled = client.pull(&src, &target, &told).await.expect("served");
        assert_eq!((pulled.id, pulled.bytes), (id, file().len() as u64));
        assert!(fs::read(&target).expect("there") == file());
        assert_eq!(last.load(Ordering::Relaxed), pulled.bytes);
    }
    assert_eq!(names(&scene), ["a.mt"]);
}

#[tokio::test]
async fn a_cut_costs_less_than_64_kib() {
    let (scene, id) = StoreScene::holding("a");
    let target = scene.path("a.mt");
    let connection = scene.peer("ada", &["tensor:read:a"]);
    let cut = connection.clone();
    let seen = AtomicU64::new(0);
    let told = |done, _| {
        seen.store(done, Ordering::Relaxed);
        if done > 400_000 {
            cut.close(CloseCode::Normal, "cut");
        }
    };
    let error = TensorClient::new(connection)
        .pull(&at("a"), &target, &told)
        .await;
    let error = error.expect_err("it was cut");
    assert_eq!(error.code(), "E_IO");
    assert!(!target.exists());
    let before = seen.load(Ordering::Relaxed);
    assert!(before < id_len(&scene), "{before}");

    let client = scene.client(&["tensor:read:a"]);
    let pulled = client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect("it goes on");
    assert_eq!(pulled.id, id);
    assert!(before + pulled.fetched < pulled.bytes + AGAIN_BYTES);
    assert!(pulled.fetched < pulled.bytes - 300_000);
    assert!(fs::read(&target).expect("there") == file());
    assert_eq!(names(&scene), ["a.mt"]);
}

fn id_len(_: &StoreScene) -> u64 {
    file().len() as u64
}

/// What a disk changed between two attempts is found out, and fetched again.
#[tokio::test]
async fn a_part_that_was_changed_here_is_thrown_away() {
    let (scene, id) = StoreScene::holding("a");
    let target = scene.path("a.mt");
    let digits = id.to_string();
    let part = scene.path(&format!(".a.mt.{}.part", &digits[..16]));
    fs::write(&part, vec![0; 100_000]).expect("writable");
    let client = scene.client(&["tensor:read:a"]);
    let error = client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect_err("another file");
    assert_eq!(error.code(), "E_HASH");
    assert!(names(&scene).is_empty());
    let pulled = client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect("again");
    assert_eq!(pulled.fetched, pulled.bytes);

    let held = File::create(&part).expect("writable");
    held.lock().expect("it has no other holder");
    let error = client
        .pull(&at("a"), &target, &|_, _| {})
        .await
        .expect_err("another process");
    assert_eq!(error.code(), "E_IO");
}

#[tokio::test]
async fn some_tensors_make_a_container_of_their_own() {
    let (scene, _) = StoreScene::holding("a");
    let client = scene.client(&["tensor:read:a"]);
    let target = scene.path("some.mt");
    let keep = |name: &str| name != "large";
    let pulled = client.pull_some(&at("a"), &target, &keep, &|_, _| {}).await;
    let pulled = pulled.expect("served");
    assert_eq!(pulled.fetched, 6 + 16 + 8 + 32);
    let reader = ContainerReader::open(
        File::open(&target).expect("made"),
        &ContainerLimits::default(),
    );
    let reader = reader.expect("good");
    assert_eq!(
        reader.names().collect::<Vec<_>>(),
        ["small", "points", "names"]
    );
    assert_eq!(&*reader.item("names", 2).expect("there"), b"three");
    assert_eq!(reader.meta().metadata_value("format"), Some("pt"));
    let report = verify(&reader, VerifyDepth::Full, Some(&SchemaLayouts::default()));
    assert!(report.expect("readable").is_good());

    let none = |name: &str| name == "no";
    let error = client.pull_some(&at("a"), &target, &none, &|_, _| {}).await;
    assert_eq!(error.expect_err("none").code(), "E_NOTFOUND");
    let alone = |name: &str| name == "large";
    client
        .pull_some(&at("a"), &target, &alone, &|_, _| {})
        .await
        .expect("served");
    let reader = ContainerReader::open(
        File::open(&target).expect("made"),
        &ContainerLimits::default(),
    );
    assert!(reader.expect("good").view("large").expect("there").bytes() == large());
}

/// A file whose header has a hash of every tensor, and one whose header has none.
#[tokio::test]
async fn some_tensors_go_on_where_they_were_cut() {
    let scene = StoreScene::new();
    let ours = file();
    let reader = ContainerReader::open(&ours[..], &ContainerLimits::default()).expect("good");
    let plain = strip(&reader, Cursor::new(Vec::new())).expect("memory");
    scene.add("with", &ours);
    scene.add("without", &plain.1.into_inner());
    for path in ["with", "without"] {
        let target = scene.path("some.mt");
        let keep = |name: &str| ["small", "large", "points"].contains(&name);
        let connection = scene.peer("ada", &["tensor:read:*"]);
        let cut = connection.clone();
        let seen = AtomicU64::new(0);
        let told = |done, _| {
            seen.store(done, Ordering::Relaxed);
            if done > 400_000 {
                cut.close(CloseCode::Normal, "cut");
            }
        };
        let client = TensorClient::new(connection);
        let error = client.pull_some(&at(path), &target, &keep, &told).await;
        assert_eq!(error.expect_err("it was cut").code(), "E_IO", "{path}");
        assert!(!target.exists());
        let before = seen.load(Ordering::Relaxed);

        // What was fetched for others is not mistaken for it.
        let client = scene.client(&["tensor:read:*"]);
        let other = |name: &str| name == "small";
        let small = client
            .pull_some(&at(path), &target, &other, &|_, _| {})
            .await;
        assert_eq!(small.expect("served").fetched, 6);

        let pulled = client
            .pull_some(&at(path), &target, &keep, &|_, _| {})
            .await;
        let pulled = pulled.expect("it goes on");
        let total = large().len() as u64 + 6 + 16;
        assert!(
            before + pulled.fetched < total + AGAIN_BYTES,
            "{path}: {before} {pulled:?}"
        );
        assert!(pulled.fetched < total - 300_000);
        let reader = ContainerReader::open(
            File::open(&target).expect("made"),
            &ContainerLimits::default(),
        );
        let reader = reader.expect("good");
        assert!(reader.view("large").expect("there").bytes() == large());
        assert_eq!(reader.names().count(), 3);
        assert_eq!(names(&scene), ["some.mt"]);
        fs::remove_file(&target).expect("there");

        // What a disk changed meanwhile is found out, and fetched again.
        let cut_again = scene.peer("ada", &["tensor:read:*"]);
        let closing = cut_again.clone();
        let told = |done, _| {
            if done > 400_000 {
                closing.close(CloseCode::Normal, "cut");
            }
        };
        let cut = TensorClient::new(cut_again)
            .pull_some(&at(path), &target, &keep, &told)
            .await;
        cut.expect_err("it was cut");
        let [part] = &names(&scene)[..] else {
            panic!("one file is kept");
        };
        let file = OpenOptions::new().write(true).open(scene.path(part));
        let file = file.expect("ours");
        file.write_all_at(&[0xaa; 64], 100_000).expect("writable");
        let error = client
            .pull_some(&at(path), &target, &keep, &|_, _| {})
            .await;
        assert_eq!(error.expect_err("another file").code(), "E_HASH");
        assert!(names(&scene).is_empty());
    }
}
