//! Peers that let a node hold more and more, in memory or on the disk, by messages that each look harmless.

use alknet_store::TreeChange;
use automerge::Automerge;

use crate::sync::limits::CHANGE_OPERATIONS_MAX;
use crate::sync::{ByeCode, SyncError};

use super::hostile::{NOW_MS, RawSyncPeer, file, holds, message_with, victim};
use super::scene::{SyncNode, hash, path, put};
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
