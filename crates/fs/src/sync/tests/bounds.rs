//! Peers that let a node hold more and more, in memory or on the disk, by messages that each look harmless.

use crate::sync::ByeCode;
use crate::sync::limits::CHANGE_OPERATIONS_MAX;

use super::hostile::{NOW_MS, RawSyncPeer, file, holds, message_with, victim};
use super::unpack::change_of_operations;

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
