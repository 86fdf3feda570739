//! Sessions whose peer loses the right to them, or whose bucket takes part in none any more.

use std::time::Duration;

use alknet_core::Connection;
use alknet_store::BucketSettings;

use super::hostile::{NOW_MS, RawSyncPeer, file, holds};
use super::scene::{SyncNode, hash, identity};
use crate::sync::{ByeCode, SyncMessage};

/// A node with a file.
async fn node() -> SyncNode {
    let node = SyncNode::new("node").await;
    node.put("/kept", 1).await;
    node
}

/// Takes the right from a peer, and leaves it another one for the bucket, or no identity.
fn take_right(server: &Connection, name: &str, leaves_identity: bool) {
    match leaves_identity {
        true => {
            let set = server.set_identity(identity(name, &["fs:read:docs"]));
            set.expect("the same peer");
        }
        false => server.revoke_identity(),
    }
}

#[tokio::test]
async fn a_right_that_is_taken_away_ends_the_session() {
    let node = node().await;
    for (name, leaves_identity) in [("reader", true), ("removed", false)] {
        let (mut peer, server) = RawSyncPeer::greeted_both(&node, name).await;
        take_right(&server, name, leaves_identity);
        peer.put(&[("/new", file(2, NOW_MS))]);
        let bytes = peer.whole_document();
        peer.say_sync(&bytes).await;
        assert_eq!(peer.bye().await, ByeCode::NotFound, "{name}");
    }
    holds(&node, "revoked").await;
}

/// A question about contents is no step of the document, and its answer would tell which contents the bucket has.
#[tokio::test]
async fn no_answer_about_contents_comes_after_the_right_was_taken_away() {
    let node = node().await;
    let here = node.put_bytes("/here", b"here").await;
    for (name, leaves_identity) in [("reader", true), ("removed", false)] {
        let (mut peer, server) = RawSyncPeer::greeted_both(&node, name).await;
        take_right(&server, name, leaves_identity);
        peer.say(&SyncMessage::Want(vec![here, hash(99)])).await;
        // A `Have` fails this.
        assert_eq!(peer.bye().await, ByeCode::NotFound, "{name}");
    }
}

/// It has nothing to send, and would keep its permit for as long as the connection lasts.
#[tokio::test]
async fn a_session_that_waits_ends_with_the_right_to_it() {
    let change = |options: &mut crate::sync::SyncOptions| {
        options.right_check_time = Duration::from_millis(10);
    };
    let node = SyncNode::with("node", change).await;
    node.put("/kept", 1).await;
    for (name, leaves_identity) in [("reader", true), ("removed", false)] {
        let (mut peer, server) = RawSyncPeer::greeted_both(&node, name).await;
        peer.exchange().await;
        take_right(&server, name, leaves_identity);
        assert_eq!(peer.bye().await, ByeCode::NotFound, "{name}");
    }
    holds(&node, "waiting").await;
}

/// A change of the settings wakes a session that waits.
#[tokio::test]
async fn a_session_ends_when_its_bucket_is_switched_off_frozen_or_deleted() {
    let off = BucketSettings {
        is_synced: Some(false),
        ..BucketSettings::default()
    };
    let frozen = BucketSettings {
        is_frozen: Some(true),
        ..BucketSettings::default()
    };
    for (settings, code) in [
        (Some(off), ByeCode::NotFound),
        (Some(frozen), ByeCode::ReadOnly),
        (None, ByeCode::NotFound),
    ] {
        let node = node().await;
        let (mut peer, _server) = RawSyncPeer::greeted_both(&node, "mallory").await;
        peer.exchange().await;
        match settings.clone() {
            Some(settings) => node.set(settings).await,
            None => {
                let (store, bucket) = (node.store().await, node.bucket().await.id);
                let deleted = store.write(move |tx| tx.delete_bucket(bucket));
                deleted.await.expect("there");
            }
        }
        assert_eq!(peer.bye().await, code, "{settings:?}");
    }
}
