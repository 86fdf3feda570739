//! Peers that let a node hold more and more, in memory or on the disk, by messages that each look harmless.

use std::time::Duration;

use alknet_store::TreeChange;
use automerge::{Automerge, ROOT, ReadDoc};

use crate::sync::limits::{CHANGE_OPERATIONS_MAX, INVALID_KEYS_MAX};
use crate::sync::{ByeCode, SyncError};

use super::hostile::{NOW_MS, RawSyncPeer, failed, file, holds, message_with, victim};
use super::scene::{MAY_SYNC, SyncNode, hash, hung, path, put};
use super::unpack::change_of_operations;

fn code(ended: Result<(), SyncError>) -> Option<ByeCode> {
    ended.err().and_then(|error| error.code())
}

/// The attack: a mebibyte stands for four million operations, of which each takes hundreds of bytes in memory.
#[tokio::test]
async fn a_short_message_with_millions_of_operations_is_refused() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let change = change_of_operations(4_000_000);
    assert!(change.len() < (1 << 20) + 100);
    let bytes = message_with(vec![change], Vec::new());
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    holds(&node, "operations").await;
}

#[tokio::test]
async fn a_change_has_a_limited_number_of_operations() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let names: Vec<_> = (0..=CHANGE_OPERATIONS_MAX)
        .map(|number| format!("/{number}"))
        .collect();
    let values: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), file(1, NOW_MS)))
        .collect();
    peer.put(&values);
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    holds(&node, "one change").await;
}

/// A document with so many changes of one path.
fn many_changes(peer: &mut RawSyncPeer, count: u64) -> Vec<automerge::Change> {
    for number in 0..count {
        peer.put(&[("/new", file(number, NOW_MS + number))]);
    }
    peer.doc.get_changes(&[])
}

/// The attack: changes that wait for a first one, which never comes. The library holds all of them in memory.
#[tokio::test]
async fn changes_that_wait_for_another_one_are_limited() {
    let node = SyncNode::with("victim", |options| {
        options.limits.waiting_bytes_max = 4096;
    })
    .await;
    node.put("/kept", 1).await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let changes = many_changes(&mut peer, 100);
    let size = changes.iter().map(|it| it.raw_bytes().len()).sum::<usize>();
    assert!(size > 3 * 4096, "{size}");
    for change in &changes[1..] {
        let bytes = message_with(vec![change.raw_bytes().to_vec()], vec![change.hash()]);
        peer.say_sync(&bytes).await;
    }
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    failed(&node, 1).await;
    // Those that waited are gone: alone, the first one brings the first version.
    let mut other = RawSyncPeer::greeted_as(&node, "other").await;
    other.doc = Automerge::new();
    let first = other.doc.apply_changes(changes[..1].to_vec());
    first.expect("a change");
    other.exchange().await;
    assert_eq!(node.paths().await, ["/kept", "/new"]);
    assert_eq!(node.history("/new").await, [Some(hash(0))]);
}

/// A filter of hashes leaves out one in a hundred changes that the peer lacks: what follows it waits until it is there.
#[tokio::test]
async fn a_change_that_comes_late_brings_those_that_waited_for_it() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let changes = many_changes(&mut peer, 50);
    let heads = peer.doc.get_heads();
    for some in [&changes[1..], &changes[..1]] {
        let some = some.iter().map(|it| it.raw_bytes().to_vec());
        peer.say_sync(&message_with(some.collect(), heads.clone()))
            .await;
    }
    peer.exchange().await;
    assert_eq!(node.history("/new").await[0], Some(hash(49)));
}

fn link(at: &str, bytes: usize) -> TreeChange {
    TreeChange::Symlink {
        path: path(at),
        target: "t".repeat(bytes),
        may_replace: true,
    }
}

/// The attack: links with long targets, few enough for the limit of paths.
#[tokio::test]
async fn a_document_with_long_targets_is_refused_on_both_sides() {
    let limited = |name| SyncNode::with(name, |options| options.limits.path_bytes_max = 8192);
    let (ada, bob) = (limited("ada").await, SyncNode::new("bob").await);
    ada.apply(vec![link("/a", 4000), link("/b", 4000)]).await;
    ada.sync(&bob).await.expect("below the limit");
    ada.apply(vec![link("/c", 4000)]).await;
    assert_eq!(code(ada.sync(&bob).await), Some(ByeCode::TooLarge));
    // Shorter targets of the same paths make room. Without the pause after the failure:
    let bob = bob.restarted().await;
    ada.apply(vec![link("/a", 10)]).await;
    ada.sync(&bob).await.expect("below the limit");
    assert_eq!(ada.tree().await, bob.tree().await);
    let cyd = limited("cyd").await;
    bob.apply(vec![link("/a", 4000)]).await;
    assert_eq!(code(bob.sync(&cyd).await), Some(ByeCode::TooLarge));
    assert!(cyd.paths().await.is_empty());
}

#[tokio::test]
async fn a_directory_whose_many_files_go_is_empty_on_both_sides() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    let names: Vec<_> = (0..5000).map(|number| format!("/d/{number}")).collect();
    for some in names.chunks(1000) {
        ada.apply(some.iter().map(|at| put(at, 1)).collect()).await;
    }
    ada.sync(&bob).await.expect("synchronised");
    for some in names.chunks(1000) {
        let deletions = some.iter().map(|at| TreeChange::delete(path(at)));
        ada.apply(deletions.collect()).await;
    }
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(bob.paths().await, ["/d"]);
    assert_eq!(ada.tree().await, bob.tree().await);
}

/// The attack: keys that break a rule, which no listing shows and no quota counts, and which stay for ever.
#[tokio::test]
async fn many_keys_that_break_a_rule_are_not_stored() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    // The node stores its document before it says something of it.
    peer.hear().await.expect("a message");
    let before = node.stored_bytes().await;
    assert!(before > 0);
    let names: Vec<_> = (0..10_000).map(|number| format!("/../{number}")).collect();
    let values: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), vec![7; 100]))
        .collect();
    peer.put(&values);
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    failed(&node, 1).await;
    assert_eq!(node.stored_bytes().await, before);
    holds(&node, "keys").await;
}

/// A few of them end no session: each node removes them, so that an honest peer never has many.
#[tokio::test]
async fn a_few_keys_that_break_a_rule_are_removed_from_the_document() {
    let (node, honest) = (victim().await, SyncNode::new("honest").await);
    for round in 0..20 {
        let mut peer = RawSyncPeer::greeted_as(&node, &format!("peer{round}")).await;
        let names: Vec<_> = (0..INVALID_KEYS_MAX - 1)
            .map(|number| format!("/../{round}-{number}"))
            .collect();
        let invalid = names.iter().map(|name| (name.as_str(), vec![7; 100]));
        let mut values: Vec<_> = invalid.collect();
        // A path with a value that is no version, beside the one that it has.
        values.push(("/kept", vec![1, 2, 3]));
        peer.put(&values);
        peer.exchange().await;
        assert!(!peer.doc.keys(ROOT).any(|key| key.starts_with("/../")));
    }
    honest.sync(&node).await.expect("synchronised");
    assert_eq!(honest.tree().await, node.tree().await);
    assert_eq!(honest.history("/kept").await, [Some(hash(1))]);
    assert_eq!(honest.sync.counters().refused_entries.get(), 0);
}

/// The attack: a full disk, whose reserve is for deletions.
#[tokio::test]
async fn a_document_that_grows_needs_room_on_the_disk() {
    let (node, honest) = (victim().await, SyncNode::new("honest").await);
    honest.sync(&node).await.expect("synchronised");
    let before = node.stored_bytes().await;
    node.disk.set_full(true);
    for (name, key) in [("one", "/../key"), ("two", "/kept")] {
        let mut peer = RawSyncPeer::greeted_as(&node, name).await;
        peer.put(&[(key, vec![7; 8000])]);
        let bytes = peer.whole_document();
        peer.say_sync(&bytes).await;
        assert_eq!(peer.bye().await, ByeCode::NoSpace, "{key}");
        assert_eq!(node.stored_bytes().await, before);
    }
    honest.delete("/kept").await;
    honest.sync(&node).await.expect("a deletion has room");
    assert!(node.paths().await.is_empty());
}

async fn small_document(name: &str) -> SyncNode {
    SyncNode::with(name, |options| options.limits.operations_max = 60).await
}

/// The attack: one path that is written again and again, of which the document keeps each version, until no new node can
/// take it in.
#[tokio::test]
async fn a_document_of_many_versions_is_made_again_on_both_sides() {
    let (ada, bob) = (small_document("ada").await, small_document("bob").await);
    bob.put("/bob", 7).await;
    ada.put("/gone", 8).await;
    ada.sync(&bob).await.expect("synchronised");
    bob.delete("/gone").await;
    let mut most = 0;
    for round in 0..150 {
        ada.put("/ada", round).await;
        ada.sync(&bob).await.expect("synchronised");
        assert_eq!(ada.tree().await, bob.tree().await, "{round}");
        most = most.max(ada.parts().await).max(bob.parts().await);
    }
    assert!((20..70).contains(&most), "{most}");
    assert_eq!(ada.paths().await, ["/ada", "/bob"]);
    // Both have the same changes: the hellos are enough.
    let connection = ada.connect(&bob, &[MAY_SYNC], &[MAY_SYNC]);
    ada.sync_on(&connection).await.expect("synchronised");
    let traffic = connection.traffic();
    assert!(traffic.rx.get() + traffic.tx.get() < 512);
    let (ada, bob) = (ada.restarted().await, bob.restarted().await);
    bob.put("/more", 9).await;
    bob.sync(&ada).await.expect("synchronised");
    assert_eq!(ada.paths().await, ["/ada", "/bob", "/more"]);
}

/// A node that was away meanwhile has the former document, and deletes nothing and brings nothing back.
#[tokio::test]
async fn a_node_with_the_former_document_gets_what_it_lacks() {
    let mut nodes = Vec::new();
    for name in ["ada", "bob", "cyd"] {
        nodes.push(small_document(name).await);
    }
    let [ada, bob, cyd] = nodes.as_slice() else {
        panic!("three");
    };
    ada.apply(vec![put("/a", 1), put("/gone", 2)]).await;
    ada.sync(bob).await.expect("synchronised");
    ada.sync(cyd).await.expect("synchronised");
    ada.delete("/gone").await;
    for round in 0..100 {
        ada.put("/a", round).await;
        ada.sync(bob).await.expect("synchronised");
    }
    assert!(ada.parts().await < 70);
    cyd.put("/cyd", 3).await;
    for (one, other) in [(cyd, bob), (bob, ada), (ada, cyd), (cyd, bob)] {
        one.sync(other).await.expect("synchronised");
    }
    for node in &nodes {
        assert_eq!(node.paths().await, ["/a", "/cyd"], "{}", node.name);
        assert_eq!(node.history("/a").await[0], Some(hash(99)));
    }
}

/// The same by one message of a peer, which a new node gets in far less.
#[tokio::test]
async fn a_message_with_very_many_versions_leaves_a_small_document() {
    let node = small_document("victim").await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let changes = many_changes(&mut peer, 400);
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    let taken_in = async {
        while node.paths().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(hung(), taken_in).await;
    waited.expect("the message is taken in");
    let size: usize = changes.iter().map(|it| it.raw_bytes().len()).sum();
    assert!(node.stored_bytes().await < size / 20);
    let honest = small_document("honest").await;
    honest.sync(&node).await.expect("synchronised");
    assert_eq!(honest.history("/new").await, [Some(hash(399))]);
    assert!(honest.stored_bytes().await < size / 20);
}
