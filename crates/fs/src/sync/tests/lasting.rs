//! What once kept two nodes apart for good: settings, writers and clocks that change.

use alknet_store::BucketSettings;
use automerge::ReadDoc;

use super::hostile::{NOW_MS, RawSyncPeer, file, victim};
use super::scene::{SyncNode, hash};
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
    node.split(true).await;
    node.split(false).await;
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
