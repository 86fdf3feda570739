//! How the store of a node is opened, and what an administrator does when it cannot be.

use std::fs;
use std::time::Duration;

use alknet_fs::{FsFigures, FsService};
use alknet_store::FileStoreOptions;
use alknet_test_support::eventually;
use serde_json::{Value, json};

use crate::scene::{FilesNode, next};

fn codes(service: &FsService) -> Vec<&'static str> {
    service
        .problems()
        .iter()
        .map(|problem| problem.code)
        .collect()
}

#[tokio::test]
async fn nothing_is_made_before_the_first_use() {
    let node = FilesNode::new();
    node.service.start();
    assert!(!node.service.folder().exists());
    let ada = node.peer("ada", &["fs:read:docs"]);
    // A refused call opens nothing either.
    let foreign = ada.code("fs/stat", json!({ "path": "other:/" })).await;
    assert_eq!(foreign.0, "NOT_FOUND");
    assert!(!node.service.folder().exists());
    assert_eq!(
        ada.code("fs/stat", json!({ "path": "docs:/" })).await.0,
        "NOT_FOUND"
    );
    assert!(node.path("fs.db").exists());
    assert!(codes(&node.service).is_empty());
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"kept").await;
    let node = node.restarted().await;
    let admin = node.peer("root", &["fs:*"]);
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"kept");
}

#[tokio::test]
async fn a_damaged_file_is_a_problem_and_is_repaired_from_its_copy() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"kept").await;
    let copied = admin.call("fs/backup", Value::Null).await;
    // There is one a day, and the chores may have made it before there was a bucket.
    let day = copied["day"].as_str().expect("a day");
    fs::remove_file(node.path(&format!("fs.db.copy-{day}"))).expect("it is there");
    assert_eq!(admin.call("fs/backup", Value::Null).await["day"], day);
    let node = node
        .restarted_after(|folder| {
            fs::write(folder.join("fs.db"), b"no database at all").expect("writable");
        })
        .await;
    let admin = node.peer("root", &["fs:*"]);
    let stat = json!({ "path": "docs:/a" });
    let refusal = admin.refused("fs/stat", stat.clone()).await;
    assert_eq!(refusal.code, "UNAVAILABLE");
    assert!(!refusal.message.contains("fs.db"), "{}", refusal.message);
    assert_eq!(codes(&node.service), ["files-damaged"]);
    let problem = &node.service.problems()[0];
    assert!(problem.hint.contains("fs/repair"), "{problem:?}");
    let repaired = admin.call("fs/repair", Value::Null).await;
    assert_eq!(repaired["copy"], copied["day"]);
    let (_, bytes) = admin.read(json!({ "path": "docs:/a" })).await;
    assert_eq!(bytes, b"kept");
    assert!(codes(&node.service).is_empty());
    let again = admin.code("fs/repair", Value::Null).await;
    assert_eq!(again.0, "CONFLICT");
}

#[tokio::test]
async fn a_start_finds_what_is_wrong_without_a_request() {
    let node = FilesNode::new();
    node.admin().await;
    let node = node
        .restarted_after(|folder| {
            fs::write(folder.join("fs.db"), b"no database at all").expect("writable");
        })
        .await;
    node.service.start();
    let service = node.service.clone();
    let found = tokio::task::spawn_blocking(move || {
        let is_known = || codes(&service) == ["files-damaged"];
        eventually("the problem is known", Duration::from_secs(60), is_known);
    });
    found.await.expect("no panic");
}

/// They begin with the opening, and take no request.
#[tokio::test]
async fn the_chores_copy_the_names_and_check_the_contents() {
    let node = FilesNode::new();
    node.admin().await;
    let folder = node.service.folder().to_owned();
    let done = tokio::task::spawn_blocking(move || {
        eventually("the chores are done", Duration::from_secs(60), || {
            let files = fs::read_dir(&folder).expect("readable");
            let names = files.map(|file| file.expect("readable").file_name());
            let names: Vec<_> = names
                .map(|name| name.to_string_lossy().into_owned())
                .collect();
            let has = |part: &str| names.iter().any(|name| name.contains(part));
            has(".copy-") && has("scrubbed")
        });
    });
    done.await.expect("no panic");
}

#[tokio::test]
async fn without_a_copy_an_administrator_may_begin_again() {
    let node = FilesNode::new();
    node.admin().await;
    let node = node
        .restarted_after(|folder| {
            for file in fs::read_dir(&folder).expect("readable") {
                let path = file.expect("readable").path();
                let name = path.to_string_lossy().into_owned();
                if name.contains("copy") {
                    fs::remove_file(&path).expect("writable");
                }
            }
            fs::write(folder.join("fs.db"), b"no database at all").expect("writable");
        })
        .await;
    let admin = node.peer("root", &["fs:*"]);
    admin.refused("fs/bucket/list", Value::Null).await;
    let refused = admin.code("fs/repair", Value::Null).await;
    assert_eq!(refused, ("NO_COPY".to_owned(), json!({ "rejected": 0 })));
    admin
        .call("fs/repair", json!({ "begin_again": true }))
        .await;
    let listed = admin.call("fs/bucket/list", Value::Null).await;
    assert_eq!(listed["buckets"], json!([]));
    admin
        .call("fs/repair", json!({ "release_sweep": true }))
        .await;
}

#[tokio::test]
async fn an_unusable_folder_is_a_problem() {
    let folder = tempfile::tempdir().expect("writable");
    let file = folder.path().join("fs");
    fs::write(&file, b"no folder").expect("writable");
    let service = FsService::new(&file, FileStoreOptions::default());
    assert!(service.lease().await.is_err());
    assert_eq!(codes(&service), ["files-unusable"]);
}

#[tokio::test]
async fn collections_and_checks_report_until_they_are_done() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    admin.put("docs:/a", b"a").await;
    for operation in ["fs/gc", "fs/scrub"] {
        let mut reports = admin.subscribe(operation, Value::Null).await;
        let mut is_done = false;
        while !is_done {
            let report = next(&mut reports).await;
            is_done = report.output.value()["done"] == true;
        }
        let end = futures_util::StreamExt::next(&mut reports).await;
        assert!(end.is_none(), "{operation}");
    }
    let status = admin.call("fs/stat", json!({ "path": "docs:/a" })).await;
    let hash = status["hash"].clone();
    admin.call("fs/blob/pin", json!({ "hash": hash })).await;
    admin.call("fs/blob/unpin", json!({ "hash": hash })).await;
    let mut reports = admin
        .subscribe("fs/blob/verify", json!({ "hash": hash }))
        .await;
    let report = next(&mut reports).await;
    let expected = json!({ "verified": 1, "size": 1, "done": true });
    assert_eq!(report.output.value(), &expected);
}

#[tokio::test]
async fn a_repeated_call_with_a_key_runs_once() {
    let node = FilesNode::new();
    let admin = node.admin().await;
    let put = json!({ "path": "docs:/a", "bytes": "" });
    let first = admin.keyed("fs/put", put.clone(), "k1").await;
    let again = admin.keyed("fs/put", put.clone(), "k1").await;
    assert_eq!(first, again);
    let other = admin.keyed("fs/put", put, "k2").await;
    assert!(other["seq"].as_u64() > first["seq"].as_u64());
}

#[tokio::test]
async fn figures_count_and_open_nothing() {
    let node = FilesNode::new();
    let closed = node.service.measure().await;
    assert_eq!(closed.expect("nothing is asked"), None);
    assert!(!node.service.folder().exists());
    let admin = node.admin().await;
    admin.put("docs:/a", b"four").await;
    admin.put("docs:/b", b"four").await;
    let open = json!({ "path": "docs:/c", "mode": "create" });
    admin.call("fs/write/open", open).await;
    let figures = node.service.measure().await.expect("it is whole");
    let expected = FsFigures {
        buckets: 1,
        entries: 2,
        content_bytes: 4,
        staged_bytes: 0,
        sessions: 1,
        watches: 0,
    };
    assert_eq!(figures, Some(expected));
    node.service.shutdown().await;
    assert_eq!(node.service.measure().await.expect("it is closed"), None);
}
