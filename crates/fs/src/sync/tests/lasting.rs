//! What once kept two nodes apart for good: settings, writers and clocks that change.

use alknet_store::BucketSettings;

use super::hostile::{NOW_MS, RawSyncPeer, file, victim};
use super::scene::{SyncNode, hash, put};
use crate::sync::{ByeCode, SyncMessage};

/// A bucket that is switched off, or not.
fn switched(is_synced: bool) -> BucketSettings {
    BucketSettings {
        is_synced: Some(is_synced),
        ..BucketSettings::default()
    }
}

/// The attack: a session that began before the bucket was switched off goes on.
#[tokio::test]
async fn a_bucket_that_is_switched_off_ends_its_sessions() {
    let node = victim().await;
    let [mut writer, mut asker] = [
        RawSyncPeer::greeted_as(&node, "writer").await,
        RawSyncPeer::greeted_as(&node, "asker").await,
    ];
    for peer in [&mut writer, &mut asker] {
        peer.exchange().await;
    }
    node.set(switched(false)).await;
    writer.put(&[("/new", file(2, NOW_MS))]);
    let bytes = writer.whole_document();
    writer.say_sync(&bytes).await;
    assert_eq!(writer.bye().await, ByeCode::NotFound);
    asker.say(&SyncMessage::Want(vec![hash(1)])).await;
    assert_eq!(asker.bye().await, ByeCode::NotFound);
    assert_eq!(node.paths().await, ["/kept"]);
}

/// The attack: a part of a document is stored whose beginning was removed, when the bucket was split and joined again.
#[tokio::test]
async fn a_bucket_that_is_split_and_joined_within_a_session_keeps_a_whole_document() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.exchange().await;
    // In one transaction: the session sees neither of both.
    let (store, bucket) = (node.store().await, node.bucket().await.id);
    let toggled = store.write(move |tx| {
        for is_split in [true, false] {
            let settings = BucketSettings {
                is_split: Some(is_split),
                ..BucketSettings::default()
            };
            tx.set_bucket(bucket, &settings, "root")?;
        }
        let branch = tx.branch_by_name(bucket, &"main".parse()?)?;
        tx.sync_document(&branch.id.into())
    });
    // The session may store it again at once.
    assert!(toggled.await.expect("there").is_none());
    drop(store);
    peer.put(&[("/new", file(2, NOW_MS))]);
    peer.exchange().await;
    assert_eq!(node.paths().await, ["/kept", "/new"]);
    let node = node.restarted().await;
    let honest = SyncNode::new("honest").await;
    honest.put("/own", 3).await;
    honest.sync(&node).await.expect("a whole document");
    assert_eq!(node.paths().await, ["/kept", "/new", "/own"]);
    assert_eq!(honest.tree().await, node.tree().await);
}

/// While it is split, the session of the whole branch ends.
#[tokio::test]
async fn a_bucket_that_is_split_ends_the_sessions_of_its_former_document() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.exchange().await;
    node.split(true).await;
    peer.put(&[("/new", file(2, NOW_MS))]);
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::SplitDiffers);
    assert_eq!(node.paths().await, ["/kept"]);
}

/// The nodes without the pauses that follow failures.
async fn restart(nodes: Vec<SyncNode>) -> Vec<SyncNode> {
    let mut restarted = Vec::new();
    for node in nodes {
        restarted.push(node.restarted().await);
    }
    restarted
}

/// The attack: a change with the writer of a node and its next number is sent to another node. The writer's own change of
/// that number is refused there from then on.
#[tokio::test]
async fn a_forged_change_of_a_writer_keeps_no_nodes_apart() {
    let mut nodes = Vec::new();
    for name in ["ada", "bob", "cyd"] {
        nodes.push(SyncNode::new(name).await);
    }
    nodes[0].put("/a", 1).await;
    for other in [1, 2] {
        nodes[0].sync(&nodes[other]).await.expect("synchronised");
    }
    let mut peer = RawSyncPeer::greeted(&nodes[1]).await;
    peer.exchange().await;
    let writers: Vec<_> = peer.doc.get_changes(&[]);
    let writer = writers[0].actor_id().clone();
    peer.doc.set_actor(writer);
    peer.put(&[("/forged", file(2, NOW_MS))]);
    peer.exchange().await;
    assert_eq!(nodes[1].paths().await, ["/a", "/forged"]);
    nodes[0].put("/b", 3).await;
    nodes[0]
        .sync(&nodes[2])
        .await
        .expect("the forged one is not there");
    let refused = nodes[0].sync(&nodes[1]).await.expect_err("contradicting");
    assert_eq!(refused.code(), Some(ByeCode::InvalidDocument));
    nodes = restart(nodes).await;
    let mut failures = 0;
    for _ in 0..3 {
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            // A pair may find the contradiction once more, until no node has either of both changes.
            if nodes[one].sync(&nodes[other]).await.is_err() {
                failures += 1;
                nodes = restart(nodes).await;
            }
        }
    }
    assert!(failures <= 6, "{failures}");
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        let synced = nodes[one].sync(&nodes[other]).await;
        synced.expect("no contradiction is left");
    }
    for node in &nodes {
        assert_eq!(node.paths().await, ["/a", "/b", "/forged"], "{}", node.name);
    }
}

/// The first millisecond of the year 2100.
const YEAR_2100_MS: u64 = 4_102_444_800_000;

/// The attack: a time server says the year 2100 for the time of one write.
#[tokio::test]
async fn entries_of_a_clock_that_was_far_ahead_are_synchronised_once_it_is_right() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/before", 1).await;
    ada.sync(&bob).await.expect("synchronised");
    ada.clock.set(YEAR_2100_MS);
    ada.put("/a", 2).await;
    ada.put("/once", 3).await;
    let refused = ada.sync(&bob).await.expect_err("of the future");
    assert_eq!(refused.code(), Some(ByeCode::ClockAhead));
    ada.put("/never-sent", 4).await;
    ada.clock.set(NOW_MS + 1000);
    ada.put("/a", 5).await;
    ada.delete("/before").await;
    let bob = bob.restarted().await;
    ada.sync(&bob).await.expect("the clock is right");
    assert_eq!(bob.paths().await, ["/a", "/never-sent", "/once"]);
    assert_eq!(ada.tree().await, bob.tree().await);
    for node in [&ada, &bob] {
        assert_eq!(node.history("/a").await[0], Some(hash(5)));
    }
    // What follows is later than the corrected entries, on both sides.
    bob.clock.set(NOW_MS + 2000);
    bob.put("/once", 6).await;
    bob.sync(&ada).await.expect("synchronised");
    assert_eq!(ada.history("/once").await[0], Some(hash(6)));
    ada.put("/never-sent", 7).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(bob.history("/never-sent").await[0], Some(hash(7)));
}

/// A board without a battery has a clock of 1970 until it is set: that corrects nothing.
#[tokio::test]
async fn a_clock_that_is_not_set_yet_changes_no_times() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/a", 1).await;
    ada.sync(&bob).await.expect("synchronised");
    ada.clock.set(1000);
    ada.put("/a", 2).await;
    ada.sync(&bob)
        .await
        .expect("its entries have the time of the one before");
    ada.clock.set(NOW_MS + 1000);
    bob.put("/b", 3).await;
    ada.sync(&bob).await.expect("synchronised");
    for node in [&ada, &bob] {
        assert_eq!(node.history("/a").await[0], Some(hash(2)));
        assert_eq!(node.paths().await, ["/a", "/b"]);
    }
}

/// More paths came and went since the last session than a document may have, and few are left.
#[tokio::test]
async fn more_changes_than_a_document_has_paths_are_found_in_the_tree() {
    let limited = |name| SyncNode::with(name, |options| options.limits.paths_max = 10);
    let (ada, bob) = (limited("ada").await, limited("bob").await);
    ada.apply((0..5).map(|it| put(&format!("/d/{it}"), it)).collect())
        .await;
    ada.sync(&bob).await.expect("synchronised");
    for number in 0..20 {
        let at = format!("/came/and-went-{number}");
        ada.put(&at, number).await;
        ada.delete(&at).await;
    }
    ada.delete("/d/0").await;
    ada.put("/d/1", 7).await;
    ada.sync(&bob).await.expect("few paths are left");
    let expected = ["/came", "/d", "/d/1", "/d/2", "/d/3", "/d/4"];
    assert_eq!(bob.paths().await, expected);
    assert_eq!(ada.tree().await, bob.tree().await);
    // The deletion is one like others.
    bob.put("/d/0", 8).await;
    bob.sync(&ada).await.expect("synchronised");
    assert_eq!(ada.history("/d/0").await[0], Some(hash(8)));
}
