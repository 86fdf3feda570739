use std::fs;

use alknet_call::Registry;

use super::*;
use crate::node::{has_operation, scope_of};

/// The key of the node.
const OWN: PeerKey = PeerKey::Ed25519([7; 32]);

fn codes(files: &NodeFileStore) -> Vec<String> {
    let problems = files.problems().into_iter();
    problems.map(|problem| problem.code).collect()
}

fn service(files: &NodeFileStore) -> &FsService {
    files.0.service.as_ref().expect("it is wanted")
}

/// Opens the store as the first request does.
async fn open(files: &NodeFileStore) -> bool {
    service(files).lease().await.is_ok()
}

fn text(files: &NodeFileStore) -> String {
    let mut metrics = Metrics::default();
    files.collect(&mut metrics);
    metrics.to_text()
}

/// The running node compiles the schemas when they are first needed.
#[test]
fn the_program_knows_each_operation_and_each_schema_compiles() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = NodeFileStore::new(dir.path(), &FsSection::default(), OWN);
    let mut builder = Registry::builder();
    files.register(&mut builder);
    let registry = builder.build().expect("every schema is one");
    let own = registry.specs().filter(|spec| spec.namespace == "fs");
    let names: Vec<_> = own.map(|spec| spec.name.as_str()).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(has_operation(name), "{name}: add it to known_names.rs");
        // It depends on the bucket.
        assert_eq!(scope_of(name), None, "{name}");
    }
    assert_eq!(files.mounts().len(), 1);
    let mut handlers = HandlerRegistry::new();
    files.serve(&mut handlers).expect("the protocol is free");
    let served: Vec<_> = handlers.specs().map(alknet_core::AlpnSpec::name).collect();
    assert_eq!(served, ["/iroh-bytes/4", "alknet/fs-sync"]);
    assert!(!dir.path().join(STORE_DIR).exists(), "nothing is opened");
}

#[tokio::test]
async fn a_node_whose_owner_wants_no_files_has_no_operation_for_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let section = FsSection {
        enabled: false,
        ..FsSection::default()
    };
    let files = NodeFileStore::new(dir.path(), &section, OWN);
    let mut builder = Registry::builder();
    files.register(&mut builder);
    let registry = builder.build().expect("there is nothing to refuse");
    assert!(registry.specs().all(|spec| spec.namespace != "fs"));
    assert!(files.mounts().is_empty());
    let mut handlers = HandlerRegistry::new();
    files
        .serve(&mut handlers)
        .expect("there is nothing to refuse");
    assert_eq!(handlers.specs().count(), 0);
    files.start();
    files.clone().keep_counted().await;
    files.clone().keep_synced().await;
    files.stop().await;
    assert!(codes(&files).is_empty());
    assert!(!dir.path().join(STORE_DIR).exists());
}

#[test]
fn the_defaults_of_the_configuration_are_those_of_the_store() {
    let own = options(&FsSection::default());
    let store = FileStoreOptions::default();
    assert_eq!(own.sessions, store.sessions);
    assert_eq!(own.boot_verify_bytes, store.boot_verify_bytes);
    let served = blob_options(&FsSection::default());
    assert_eq!(served, BlobOptions::default());
    let section = FsSection {
        boot_verify_mib: 0,
        staging_mib: 1,
        session_seconds: 60,
        blob_rate: 2,
        ..FsSection::default()
    };
    let own = options(&section);
    assert_eq!(own.boot_verify_bytes, 0);
    let limits = (own.sessions.staged_bytes_max, own.sessions.ttl_ms);
    assert_eq!(limits, (1 << 20, 60_000));
    assert_eq!(blob_options(&section).bytes_per_second, 2 << 20);
}

#[tokio::test]
async fn the_metrics_have_numbers_of_an_open_store() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = NodeFileStore::new(dir.path(), &FsSection::default(), OWN);
    files.count(service(&files)).await;
    assert_eq!(text(&files), "", "the store was not used");
    assert!(open(&files).await);
    files.count(service(&files)).await;
    let text = text(&files);
    assert!(text.contains("alknet_fs_buckets 0\n"), "{text}");
    files.stop().await;
    assert!(codes(&files).is_empty());
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_is_a_problem() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = dir.path().join(STORE_DIR);
    fs::create_dir_all(folder.parent().expect("it has one")).expect("writable");
    fs::write(&folder, "no folder").expect("writable");
    let files = NodeFileStore::new(dir.path(), &FsSection::default(), OWN);
    assert!(codes(&files).is_empty());
    assert!(!open(&files).await);
    assert_eq!(codes(&files), ["files-unusable"]);
    let problem = &files.problems()[0];
    let place = folder.display().to_string();
    assert!(problem.text.contains(&place), "{problem:?}");
    files.stop().await;
}

fn record(bucket: &str, failures: u32, failure: &'static str) -> (SyncTarget, SyncRecord) {
    let target = SyncTarget {
        bucket: bucket.parse().expect("a name"),
        branch: "main".parse().expect("a name"),
        peer: "bob".parse().expect("a name"),
    };
    let record = SyncRecord {
        failures,
        failure: Some(failure),
        is_lasting: failure != "unreachable",
        failed_tops: [("secret-name".to_owned(), failure)].into(),
        ..SyncRecord::default()
    };
    (target, record)
}

#[test]
fn a_synchronisation_that_a_person_has_to_see_to_is_a_problem() {
    let passing = [
        record("docs", 2, "too-large"),
        record("docs", 50, "unreachable"),
    ];
    assert_eq!(unsynced(&passing), None);
    assert_eq!(unsynced(&[]), None);
    let names = ["aa", "bb", "cc", "dd", "ee", "ff"];
    let lasting = names.map(|name| record(name, 3, "too-large"));
    let problem = unsynced(&lasting).expect("a problem");
    assert_eq!(problem.code, FILES_NOT_SYNCED);
    let text = problem.text;
    assert!(
        text.contains("aa@main with bob (too-large, 3 times in a row)"),
        "{text}"
    );
    assert!(text.ends_with(" and 2 more"), "{text}");
    assert!(!text.contains("secret-name"), "{text}");
}
