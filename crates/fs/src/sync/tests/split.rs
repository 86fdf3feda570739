//! Buckets with a document for each name in the root.

use alknet_store::limits::{BATCH_CHANGES_MAX, SYNC_TOPS_MAX};
use alknet_store::{BucketSettings, TreeChange};

use super::scene::{MAY_SYNC, SyncNode, hash, path, put};
use crate::sync::{ByeCode, SyncError};

fn code(ended: Result<(), SyncError>) -> Option<ByeCode> {
    ended.err().and_then(|error| error.code())
}

/// Two nodes whose bucket is split, with documents of ten paths.
async fn split_nodes() -> [SyncNode; 2] {
    let mut nodes = Vec::new();
    for name in ["ada", "bob"] {
        let node = SyncNode::with(name, |options| options.limits.paths_max = 10).await;
        node.split(true).await;
        nodes.push(node);
    }
    nodes.try_into().unwrap_or_else(|_| panic!("two"))
}

#[tokio::test]
async fn two_nodes_have_the_same_after_a_session_about_each_document() {
    let [ada, bob] = split_nodes().await;
    ada.apply(vec![put("/a/x", 1), put("/b/y", 2), put("/c.txt", 3)])
        .await;
    ada.mkdir("/empty").await;
    bob.apply(vec![put("/b/z", 4), put("/d", 5)]).await;
    ada.sync(&bob).await.expect("synchronised");
    let expected = ["/a", "/a/x", "/b", "/b/y", "/b/z", "/c.txt", "/d", "/empty"];
    assert_eq!(ada.paths().await, expected);
    assert_eq!(ada.tree().await, bob.tree().await);
    // Two documents had something for ada, and four for bob.
    assert_eq!((ada.merges().await.len(), bob.merges().await.len()), (2, 4));
    let (ada, bob) = (ada.restarted().await, bob.restarted().await);
    ada.delete("/a").await;
    bob.apply(vec![TreeChange::rename(path("/b"), path("/f"))])
        .await;
    ada.sync(&bob).await.expect("synchronised");
    let expected = ["/c.txt", "/d", "/empty", "/f", "/f/y", "/f/z"];
    assert_eq!(bob.paths().await, expected);
    assert_eq!(ada.tree().await, bob.tree().await);
}

#[tokio::test]
async fn only_documents_with_something_new_have_sessions() {
    let [ada, bob] = split_nodes().await;
    let names: Vec<_> = (0..50).map(|number| format!("/{number}/x")).collect();
    ada.apply(names.iter().map(|at| put(at, 1)).collect()).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(ada.tree().await, bob.tree().await);
    let sessions = || ada.sync.counters().sessions.get();
    // One about the names in the root, and one about each of them.
    assert_eq!(sessions(), 51);
    let (before, merges) = (sessions(), bob.merges().await.len());
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(sessions(), before + 1);
    bob.put("/7/y", 2).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(sessions(), before + 3);
    assert_eq!(ada.tree().await, bob.tree().await);
    assert_eq!(bob.merges().await.len(), merges);
}

#[tokio::test]
async fn more_paths_than_one_document_has_are_synchronised_in_several() {
    let [ada, bob] = split_nodes().await;
    let names: Vec<_> = (0..24)
        .map(|number| format!("/{}/{number}", number / 8))
        .collect();
    ada.apply(names.iter().map(|at| put(at, 1)).collect()).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(ada.tree().await, bob.tree().await);
    for node in [&ada, &bob] {
        node.split(false).await;
    }
    ada.put("/0/more", 2).await;
    assert_eq!(code(ada.sync(&bob).await), Some(ByeCode::TooLarge));
    assert_eq!(ada.record("bob").failure, Some("too-large"));
    assert!(ada.record("bob").is_lasting);
    assert_eq!(bob.paths().await.len(), 27);
}

#[tokio::test]
async fn a_name_with_too_many_paths_does_not_keep_the_others_back() {
    let [ada, bob] = split_nodes().await;
    let large: Vec<_> = (0..11).map(|number| format!("/large/{number}")).collect();
    ada.apply(large.iter().map(|at| put(at, 1)).collect()).await;
    ada.apply(vec![put("/a", 1), put("/z/x", 2)]).await;
    for failures in 1..=2 {
        let refused = ada.sync(&bob).await.expect_err("too large");
        assert_eq!(refused.code(), Some(ByeCode::TooLarge));
        assert!(!refused.to_string().contains("large/"), "{refused}");
        assert_eq!(bob.paths().await, ["/a", "/z", "/z/x"]);
        let record = ada.record("bob");
        assert_eq!(
            (record.failures, record.failure),
            (failures, Some("too-large"))
        );
        let tops: Vec<_> = record.failed_tops.into_iter().collect();
        assert_eq!(tops, [("large".to_owned(), "too-large")]);
    }
    // The peer is not asked for it, so that it has no pause for this node.
    assert_eq!(bob.sync.counters().failed_sessions.get(), 0);
    ada.delete("/large/0").await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(ada.tree().await, bob.tree().await);
    assert!(ada.record("bob").failed_tops.is_empty());
}

#[tokio::test]
async fn a_bucket_that_is_split_on_one_node_alone_is_not_synchronised() {
    let [ada, bob] = split_nodes().await;
    ada.put("/a/x", 1).await;
    bob.split(false).await;
    for (one, other) in [(&ada, &bob), (&bob, &ada)] {
        assert_eq!(code(one.sync(other).await), Some(ByeCode::SplitDiffers));
        assert_eq!(one.record(&other.name).failure, Some("split-differs"));
    }
    assert!(bob.paths().await.is_empty());
    bob.split(true).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(bob.paths().await, ["/a", "/a/x"]);
}

/// The attack: a peer without the right asks for names in the root.
#[tokio::test]
async fn a_peer_without_the_right_learns_no_names_in_the_root() {
    let [ada, bob] = split_nodes().await;
    ada.put("/secret/x", 1).await;
    let connection = bob.connect(&ada, &["fs:read:docs"], &[MAY_SYNC]);
    let refused = bob.sync_on(&connection).await;
    assert_eq!(code(refused), Some(ByeCode::NotFound));
    assert!(bob.paths().await.is_empty());
}

#[tokio::test]
async fn a_file_and_a_directory_of_one_name_in_the_root_both_stay() {
    let [ada, bob] = split_nodes().await;
    ada.put("/d", 1).await;
    bob.put("/d/x", 2).await;
    for _ in 0..2 {
        ada.sync(&bob).await.expect("synchronised");
    }
    assert_eq!(ada.tree().await, bob.tree().await);
    let paths = ada.paths().await;
    assert_eq!((paths[0].as_str(), paths[2].as_str()), ("/d", "/d/x"));
    assert!(paths[1].starts_with("/d.conflict-"), "{paths:?}");
}

#[tokio::test]
async fn a_file_that_loses_in_the_root_is_kept_beside() {
    let [ada, bob] = split_nodes().await;
    for node in [&ada, &bob] {
        node.set(BucketSettings {
            keeps_both: Some(true),
            ..BucketSettings::default()
        })
        .await;
    }
    ada.put("/a", 1).await;
    bob.clock.advance(1);
    bob.put("/a", 2).await;
    for _ in 0..2 {
        ada.sync(&bob).await.expect("synchronised");
    }
    let tree = ada.tree().await;
    assert_eq!(tree, bob.tree().await);
    let contents: Vec<_> = tree.values().map(|row| row.1).collect();
    assert_eq!(contents, [Some(hash(2)), Some(hash(1))]);
}

#[tokio::test]
async fn a_root_with_too_many_names_is_refused() {
    let [ada, bob] = split_nodes().await;
    let names: Vec<_> = (0..=SYNC_TOPS_MAX)
        .map(|number| format!("/{number}"))
        .collect();
    // One change of the store has as many as the root may have names.
    for some in names.chunks(BATCH_CHANGES_MAX) {
        ada.apply(some.iter().map(|at| put(at, 1)).collect()).await;
    }
    assert_eq!(code(ada.sync(&bob).await), Some(ByeCode::TooLarge));
    assert!(bob.paths().await.is_empty());
}
