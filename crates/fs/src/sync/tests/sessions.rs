use std::sync::{Arc, Mutex, PoisonError};

use alknet_core::{BoxError, BoxFuture, PeerId};
use alknet_store::{BucketName, BucketSettings, ContentFetchMode, ContentHash, TreeChange};
use std::time::Duration;

use super::scene::{MAY_SYNC, SyncNode, hash, hung, path, put};
use crate::sync::limits::TOMBSTONE_MS;
use crate::sync::{ByeCode, ContentFetcher, SyncError};

fn code(ended: Result<(), SyncError>) -> Option<ByeCode> {
    ended.err().and_then(|error| error.code())
}

#[tokio::test]
async fn two_nodes_have_the_same_after_a_session() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/a.txt", 1).await;
    ada.mkdir("/empty").await;
    bob.put("/b/c.txt", 2).await;
    ada.sync(&bob).await.expect("synchronised");
    let expected = ["/a.txt", "/b", "/b/c.txt", "/empty"];
    assert_eq!(ada.paths().await, expected);
    assert_eq!(ada.tree().await, bob.tree().await);
    // One commit with one event on each side.
    assert_eq!((ada.merges().await.len(), bob.merges().await.len()), (1, 1));
    let merges = bob.merges().await;
    assert_eq!(merges[0].payload.actor.as_deref(), Some("ada"));
    // Nothing new makes no event.
    bob.sync(&ada).await.expect("synchronised");
    assert_eq!((ada.merges().await.len(), bob.merges().await.len()), (1, 1));
    ada.delete("/b").await;
    bob.put("/a.txt", 3).await;
    bob.sync(&ada).await.expect("synchronised");
    assert_eq!(ada.paths().await, ["/a.txt", "/empty"]);
    assert_eq!(ada.tree().await, bob.tree().await);
    assert_eq!(ada.history("/a.txt").await, [Some(hash(3)), Some(hash(1))]);
}

#[tokio::test]
async fn what_loses_is_in_the_history_of_both() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/a", 1).await;
    bob.clock.advance(1);
    bob.put("/a", 2).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(ada.history("/a").await, [Some(hash(2)), Some(hash(1))]);
    // The version of ada came to bob and lost: it lies under the present one.
    assert_eq!(
        bob.history("/a").await,
        [Some(hash(2)), Some(hash(1)), Some(hash(2))]
    );
    assert_eq!(ada.paths().await, ["/a"]);
    assert_eq!(ada.tree().await, bob.tree().await);
}

#[tokio::test]
async fn keep_both_puts_the_version_that_lost_beside() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
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
    ada.sync(&bob).await.expect("synchronised");
    let tree = ada.tree().await;
    assert_eq!(tree, bob.tree().await);
    let contents: Vec<_> = tree.values().map(|row| row.1).collect();
    assert_eq!(contents, [Some(hash(2)), Some(hash(1))]);
    let beside = ada.paths().await.pop().expect("two");
    assert!(beside.starts_with("/a.conflict-"), "{beside}");
    // A version that lies beside is a file like others: its deletion stays.
    ada.delete(&beside).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(bob.paths().await, ["/a"]);
}

#[tokio::test]
async fn a_file_and_a_directory_of_the_same_name_both_stay() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/d", 1).await;
    bob.put("/d/x", 2).await;
    ada.sync(&bob).await.expect("synchronised");
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(ada.tree().await, bob.tree().await);
    let paths = ada.paths().await;
    assert_eq!((paths[0].as_str(), paths[2].as_str()), ("/d", "/d/x"));
    assert!(paths[1].starts_with("/d.conflict-"), "{paths:?}");
}

#[tokio::test]
async fn a_directory_stays_while_a_peer_writes_into_it() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/d/old", 1).await;
    ada.sync(&bob).await.expect("synchronised");
    ada.delete("/d").await;
    bob.put("/d/new", 2).await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(ada.paths().await, ["/d", "/d/new"]);
    assert_eq!(ada.tree().await, bob.tree().await);
    // The last file goes, and the directory that its owner left there stays.
    ada.delete("/d/new").await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(bob.paths().await, ["/d"]);
}

#[tokio::test]
async fn a_session_after_a_restart_sends_what_is_new() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    for from in 0..5 {
        let some = from * 1000..(from + 1) * 1000;
        let some = some.map(|it| put(&format!("/d/{it}"), it));
        ada.apply(some.collect()).await;
    }
    ada.sync(&bob).await.expect("synchronised");
    let (ada, bob) = (ada.restarted().await, bob.restarted().await);
    bob.put("/d/one-more", 7).await;
    let connection = ada.connect(&bob, &[MAY_SYNC], &[MAY_SYNC]);
    ada.sync_on(&connection).await.expect("synchronised");
    assert_eq!(ada.tree().await, bob.tree().await);
    assert_eq!(ada.tree().await.len(), 5002);
    let traffic = connection.traffic();
    let bytes = traffic.rx.get() + traffic.tx.get();
    assert!(bytes < 8 << 10, "{bytes} bytes");
    // Nothing new is seen by the hellos, also after a restart.
    let merges = ada.sync.counters().merges.get();
    let connection = ada.connect(&bob, &[MAY_SYNC], &[MAY_SYNC]);
    ada.sync_on(&connection).await.expect("synchronised");
    let traffic = connection.traffic();
    let bytes = traffic.rx.get() + traffic.tx.get();
    assert!(bytes < 256, "{bytes} bytes");
    assert_eq!(ada.sync.counters().merges.get(), merges);
}

#[tokio::test]
async fn a_session_says_up_to_which_commit_both_have_the_same() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/a", 1).await;
    bob.put("/b", 2).await;
    for _ in 0..2 {
        ada.sync(&bob).await.expect("synchronised");
        let wait = async {
            while bob.record("ada").equal_seq.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(hung(), wait).await.expect("an end");
        for (node, peer) in [(&ada, "bob"), (&bob, "ada")] {
            let store = node.store().await;
            let branches = store.read(|tx| tx.syncable_branches(10)).await;
            let branches = branches.expect("readable");
            assert_eq!(node.record(peer).equal_seq, Some(branches[0].head_seq));
        }
    }
}

#[tokio::test]
async fn the_parts_of_a_document_do_not_grow_without_end() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    let mut most = 0;
    for round in 0..45 {
        let changes = (0..100).map(|it| put(&format!("/{it}"), round * 100 + it));
        ada.apply(changes.collect()).await;
        ada.sync(&bob).await.expect("synchronised");
        most = most.max(ada.parts().await);
    }
    // They were put together when they were as long as the limit.
    let parts = ada.parts().await;
    assert!((10..44).contains(&most) && parts < most, "{parts}, {most}");
    assert_eq!(ada.tree().await, bob.tree().await);
}

#[tokio::test]
async fn a_peer_needs_the_right_on_both_sides_and_learns_no_names() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/a", 1).await;
    for scopes in [&["fs:sync:other", "fs:write:docs"][..], &[]] {
        let connection = ada.connect(&bob, scopes, &[MAY_SYNC]);
        assert_eq!(
            code(ada.sync_on(&connection).await),
            Some(ByeCode::NotFound)
        );
        let connection = ada.connect(&bob, &[MAY_SYNC], scopes);
        assert_eq!(
            code(ada.sync_on(&connection).await),
            Some(ByeCode::NotFound)
        );
    }
    assert!(bob.paths().await.is_empty() && bob.merges().await.is_empty());
}

#[tokio::test]
async fn a_branch_that_takes_no_changes_is_not_synchronised() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.put("/a", 1).await;
    bob.set(BucketSettings {
        is_frozen: Some(true),
        ..BucketSettings::default()
    })
    .await;
    assert_eq!(code(ada.sync(&bob).await), Some(ByeCode::ReadOnly));
    assert!(bob.paths().await.is_empty());
}

#[tokio::test]
async fn a_bucket_without_room_keeps_what_it_had() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    bob.put("/b", 1).await;
    bob.set(BucketSettings {
        quota_entries: Some(Some(3)),
        ..BucketSettings::default()
    })
    .await;
    ada.apply((0..5).map(|it| put(&format!("/{it}"), it)).collect())
        .await;
    assert_eq!(code(ada.sync(&bob).await), Some(ByeCode::NoSpace));
    assert_eq!(bob.paths().await, ["/b"]);
    assert_eq!(bob.sync.counters().failed_merges.get(), 1);
    // The peer is asked to pause, once its session is over.
    let wait = async {
        while bob.sync.counters().failed_sessions.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(hung(), wait).await.expect("an end");
    assert_eq!(code(ada.sync(&bob).await), Some(ByeCode::Busy));
}

#[tokio::test]
async fn a_deletion_that_all_have_heard_of_leaves_the_document() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.apply(vec![put("/a", 1), put("/b", 2)]).await;
    ada.sync(&bob).await.expect("synchronised");
    ada.delete("/a").await;
    ada.sync(&bob).await.expect("synchronised");
    for node in [&ada, &bob] {
        node.clock.advance(TOMBSTONE_MS + 1000);
    }
    let (ada, bob) = (ada.restarted().await, bob.restarted().await);
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(bob.paths().await, ["/b"]);
    assert_eq!(ada.tree().await, bob.tree().await);
}

#[tokio::test]
async fn a_renamed_tree_is_renamed_everywhere() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    ada.apply(vec![put("/d/x", 1), put("/d/e/y", 2)]).await;
    ada.sync(&bob).await.expect("synchronised");
    bob.apply(vec![TreeChange::rename(path("/d"), path("/f"))])
        .await;
    ada.sync(&bob).await.expect("synchronised");
    assert_eq!(ada.paths().await, ["/f", "/f/e", "/f/e/y", "/f/x"]);
}

/// Notes what it is asked for.
#[derive(Debug, Default)]
pub(super) struct NotingFetcher(Mutex<Vec<(ContentHash, String)>>);

impl NotingFetcher {
    /// What was asked for, and the peers.
    pub(super) fn fetched(&self) -> Vec<(ContentHash, String)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ContentFetcher for NotingFetcher {
    fn fetch<'a>(
        &'a self,
        _bucket: &'a BucketName,
        hash: ContentHash,
        peer: &'a PeerId,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        let mut fetched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.push((hash, peer.to_string()));
        Box::pin(std::future::ready(Ok(())))
    }
}

#[tokio::test]
async fn contents_are_fetched_at_once_where_the_bucket_says_so() {
    for (mode, expected) in [(ContentFetchMode::Eager, 2), (ContentFetchMode::Lazy, 0)] {
        let fetcher = Arc::new(NotingFetcher::default());
        let own = Arc::clone(&fetcher);
        let ada = SyncNode::with("ada", |options| options.fetcher = Some(own)).await;
        ada.set(BucketSettings {
            fetch: Some(mode),
            ..BucketSettings::default()
        })
        .await;
        let bob = SyncNode::new("bob").await;
        ada.put_bytes("/own", b"nine").await;
        let mut wanted = vec![
            bob.put_bytes("/a", b"one").await,
            bob.put_bytes("/b", b"two").await,
        ];
        bob.put_bytes("/c", b"nine").await;
        ada.sync(&bob).await.expect("synchronised");
        let mut fetched = fetcher.fetched();
        fetched.sort_by_key(|(hash, _)| *hash.as_bytes());
        wanted.sort_by_key(|hash| *hash.as_bytes());
        wanted.truncate(expected);
        let hashes: Vec<_> = fetched.iter().map(|(hash, _)| *hash).collect();
        assert_eq!(hashes, wanted, "{mode:?}");
        assert!(fetched.iter().all(|(_, peer)| peer == "bob"));
    }
}
