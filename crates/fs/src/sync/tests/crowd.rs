//! Peers that take more of a node than their part: its sessions, and the threads and the memory of these.

use std::time::Duration;

use alknet_core::memory_pair;
use tokio::io::AsyncWriteExt;

use super::hostile::{NOW_MS, RawSyncPeer, failed, file, holds, victim};
use super::scene::{SyncNode, hung, identity, serve};
use crate::sync::limits::{
    HARMED_DOCUMENTS_MAX, HELLOS_PER_PEER_MAX, SESSIONS_MAX, SESSIONS_PER_PEER_MAX,
};
use crate::sync::{ByeCode, PROTOCOL_VERSION, SYNC_ALPN, SyncHello, SyncMessage, SyncPart};

/// A hello about a document of the bucket.
fn hello(part: SyncPart, heads: Vec<[u8; 32]>) -> SyncHello {
    SyncHello {
        bucket: "docs".parse().expect("a name"),
        branch: "main".parse().expect("a name"),
        part,
        heads,
    }
}

/// The attack: one peer, which needs no right, begins streams on several connections and says no more.
#[tokio::test]
async fn silent_streams_of_one_peer_leave_the_sessions_to_others() {
    let node = victim().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let (here, there) = memory_pair(SYNC_ALPN);
        serve(&node, there, Some(identity("mallory", &[])));
        for _ in 0..SESSIONS_MAX / 4 {
            let (mut send, recv) = here.open_bi().await.expect("a stream");
            // The node may have refused the stream already.
            send.write_u8(PROTOCOL_VERSION).await.ok();
            held.push((here.clone(), send, recv));
        }
    }
    let refused = (SESSIONS_MAX - HELLOS_PER_PEER_MAX) as u64;
    let wait = async {
        while node.sync.counters().refused_sessions.get() < refused {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(hung(), wait).await.expect("refusals");
    holds(&node, "silent streams").await;
}

/// The attack: one peer takes all sessions, by several connections.
#[tokio::test]
async fn sessions_of_one_peer_are_limited() {
    let node = victim().await;
    let mut peers = Vec::new();
    for _ in 0..SESSIONS_PER_PEER_MAX {
        // Each has a connection of its own: the peer counts.
        peers.push(RawSyncPeer::greeted(&node).await);
    }
    let mallory = "mallory".parse().expect("a name");
    assert_eq!(node.sync.count_sessions(&mallory), SESSIONS_PER_PEER_MAX);
    let mut further = RawSyncPeer::new(&node).await;
    let answer = further.greet("docs", "main").await;
    assert_eq!(answer, SyncMessage::Bye(ByeCode::Busy));
    holds(&node, "sessions").await;
    peers[0].exchange().await;
}

/// The attack: the peer has the same as the node, says so, and keeps the session by questions.
#[tokio::test]
async fn a_session_that_brings_nothing_ends() {
    let idle = Duration::from_millis(50);
    let node = SyncNode::with("victim", |options| options.follow_idle_time = idle).await;
    node.put("/kept", 1).await;
    let honest = SyncNode::new("honest").await;
    honest.sync(&node).await.expect("synchronised");
    let wait = async {
        loop {
            if let Some(heads) = node.heads().await {
                break heads;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let heads = tokio::time::timeout(hung(), wait).await.expect("stored");
    let mut peer = RawSyncPeer::new(&node).await;
    let answer = peer.say_hello(hello(SyncPart::Whole, heads.clone())).await;
    assert!(
        matches!(&answer, SyncMessage::Hello(hello) if hello.heads == heads),
        "{answer:?}"
    );
    let ended = async {
        loop {
            peer.say(&SyncMessage::Want(Vec::new())).await;
            match peer.hear().await.expect("an answer") {
                SyncMessage::Have(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                SyncMessage::Bye(code) => break code,
                other => panic!("{other:?}"),
            }
        }
    };
    let code = tokio::time::timeout(hung(), ended).await;
    assert_eq!(code.expect("an end"), ByeCode::Done);
    assert_eq!(node.paths().await, ["/kept"]);
}

/// The attack: merges that take longer than the node waits for them, one after the other. The thread of each stays.
#[tokio::test]
async fn a_merge_that_is_given_up_counts_until_its_thread_is_free() {
    let merge = Duration::from_millis(50);
    let node = SyncNode::with("victim", |options| options.merge_time = merge).await;
    node.put("/kept", 1).await;
    let (release, waits) = std::sync::mpsc::channel::<()>();
    let store = node.store().await;
    // The writer of the store takes its time.
    let slow = store.write(move |_| {
        waits.recv().ok();
        Ok(())
    });
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.put(&[("/new", file(2, NOW_MS))]);
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::Timeout);
    // The task of the session does not wait between this and its end, and the test has one thread.
    failed(&node, 1).await;
    let mallory = "mallory".parse().expect("a name");
    assert_eq!(node.sync.count_sessions(&mallory), 1);
    drop(release);
    slow.await.expect("written");
    let wait = async {
        while node.sync.count_sessions(&mallory) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(hung(), wait).await.expect("an end");
}

/// The attack: in a split bucket, each bad message is about a name that the peer makes up.
#[tokio::test]
async fn a_peer_that_fails_with_three_names_has_to_pause_with_a_fourth() {
    let node = victim().await;
    node.split(true).await;
    for number in 0..HARMED_DOCUMENTS_MAX {
        let mut peer = RawSyncPeer::new(&node).await;
        let part = SyncPart::Top(format!("name{number}"));
        let answer = peer.say_hello(hello(part, Vec::new())).await;
        assert!(matches!(answer, SyncMessage::Hello(_)), "{answer:?}");
        peer.say(&SyncMessage::Sync {
            is_last: true,
            bytes: vec![1, 2, 3],
        })
        .await;
        assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
        failed(&node, number as u64 + 1).await;
    }
    let mut peer = RawSyncPeer::new(&node).await;
    let part = SyncPart::Top("another".to_owned());
    let answer = peer.say_hello(hello(part, Vec::new())).await;
    assert_eq!(answer, SyncMessage::Bye(ByeCode::Busy));
    let honest = SyncNode::new("honest").await;
    honest.split(true).await;
    honest.sync(&node).await.expect("another peer goes on");
    assert_eq!(honest.paths().await, ["/kept"]);
}
