use std::fs;
use std::path::PathBuf;

use alknet_init::control::{MachineFacts, SlotCheckFacts};
use alknet_tensor_serve::{StoreOptions, StorePath};
use arc_swap::ArcSwap;

use super::*;

/// A file of tensors.
fn tensors() -> Vec<u8> {
    use alknet_tensor::{ContainerWriter, Dtype};

    let mut writer = ContainerWriter::new(std::io::Cursor::new(Vec::new()));
    let content = vec![7; 64].into();
    writer
        .flat("x", Dtype::U8, &[64], content)
        .expect("it fits");
    writer.finish().expect("memory").1.into_inner()
}

/// A store with a file, and the place of the file.
fn store() -> (tempfile::TempDir, Arc<TensorStore>, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let store = TensorStore::open(folder.path(), StoreOptions::default()).expect("writable");
    let path = StorePath::parse("weights/first").expect("a path");
    let id = store.add(tensors().as_slice(), Some(path));
    let id = id.expect("a good file").to_string();
    let place = folder.path().join("objects").join(&id[..2]).join(&id);
    (folder, store, place)
}

fn facts(facts: MachineFacts) -> SharedFacts {
    Arc::new(ArcSwap::from_pointee(facts))
}

#[tokio::test]
async fn a_damaged_file_is_a_problem_with_its_path_until_a_check_finds_it_whole() {
    let (_folder, store, place) = store();
    let check = StoredFilesCheck::new(Some(Arc::clone(&store)));
    let pause = std::time::Duration::ZERO;
    check.check(&store, 10, pause).await;
    assert_eq!(check.problem(), None);
    assert_eq!(check.shown()["files"], 1);
    let whole = fs::read(&place).expect("stored");
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    fs::write(&place, damaged).expect("ours");
    check.check(&store, 10, pause).await;
    let problem = check.problem().expect("it is damaged");
    assert_eq!(problem.code, "stored-damaged");
    assert!(problem.text.ends_with(": weights/first"), "{problem:?}");
    assert_eq!(check.shown()["damaged_files"], 1);
    fs::write(&place, whole).expect("ours");
    check.check_now();
    assert!(check.problem().is_some(), "the next check decides");
    check.check(&store, 10, pause).await;
    assert_eq!(check.problem(), None);
}

/// The answer of PID 1 goes to the request of its number, and a host has no PID 1.
#[tokio::test]
async fn a_check_asks_pid_1_and_a_host_has_no_disks_of_its_own() {
    let (to_init, mut messages) = mpsc::channel(8);
    let storage = NodeStorage::new(Some(to_init), facts(MachineFacts::default()), None);
    let asked = storage.clone();
    let answer = tokio::spawn(async move { asked.check_now("ada").await });
    let Some(InitMessage::CheckStorage { n, by }) = messages.recv().await else {
        panic!("another message");
    };
    assert_eq!(by, "ada");
    let found = StorageFacts {
        slots: vec![SlotCheckFacts {
            slot: "a".to_owned(),
            result: "whole".to_owned(),
            ..SlotCheckFacts::default()
        }],
        ..StorageFacts::default()
    };
    storage.checked(n + 1, StorageFacts::default(), Vec::new());
    storage.checked(n, found, Vec::new());
    let answer = answer.await.expect("no panic").expect("an answer");
    assert_eq!(answer["slots"][0]["result"], "whole");
    assert_eq!(answer["stored"]["running"], false, "there is no store");

    let host = NodeStorage::new(None, facts(MachineFacts::default()), None);
    let answer = host.check_now("ada").await.expect("an answer");
    assert_eq!(answer["disks"], json!([]));
}

#[test]
fn metrics_have_what_a_disk_says() {
    let disk = DiskHealthFacts {
        name: "nvme0n1".to_owned(),
        failing: vec!["it takes no more writes".to_owned()],
        wear_percent: Some(101),
        temperature_c: Some(-4),
        ..DiskHealthFacts::default()
    };
    let mut machine = MachineFacts::default();
    machine.storage.disks = vec![disk];
    let storage = NodeStorage::new(None, facts(machine), None);
    let mut metrics = Metrics::default();
    storage.collect(&mut metrics);
    let values = metrics.values();
    let value = |name: &str| {
        let series = format!("alknet_disk_{name}{{disk=\"nvme0n1\"}}");
        values.get(series.as_str()).copied()
    };
    assert_eq!(value("failing"), Some(1.0));
    assert_eq!(value("wear_percent"), Some(101.0));
    assert_eq!(value("temperature_celsius"), Some(-4.0));
    assert_eq!(value("media_errors"), None, "the disk does not say it");
}
