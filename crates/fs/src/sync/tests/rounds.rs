//! Sessions that nodes open by themselves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_store::{BucketSettings, ContentFetchMode, NewBranch, NewBucket};
use tokio::task::JoinHandle;

use super::scene::{MemoryDialer, SyncNode, hung};
use crate::sync::SyncDialer;
use crate::sync::limits::BRANCHES_MAX;

/// A pause that no test waits for.
const LONG: Duration = Duration::from_secs(3600);
/// A pause that tests wait for.
const SHORT: Duration = Duration::from_millis(50);

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(hung(), wait).await.expect(what);
}

async fn shows(node: &SyncNode, at: &str) {
    until(at, async || {
        node.paths().await.iter().any(|path| path == at)
    })
    .await;
}

fn begin(node: &SyncNode, dialer: &Arc<MemoryDialer>, pause: Duration) -> JoinHandle<()> {
    let (sync, dialer) = (
        Arc::clone(&node.sync),
        Arc::clone(dialer) as Arc<dyn SyncDialer>,
    );
    tokio::spawn(async move { sync.keep_synced(dialer, pause).await })
}

#[tokio::test]
async fn changes_go_to_the_peers_and_those_of_peers_are_fetched_after_a_pause() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    let cyd = SyncNode::new("cyd").await;
    // Neither is dialled by bob: what ada writes reaches cyd because cyd asks.
    let own = MemoryDialer::new(&ada, &[&bob]);
    let mut tasks = vec![begin(&ada, &own, SHORT)];
    let further = MemoryDialer::new(&cyd, &[&bob]);
    tasks.push(begin(&cyd, &further, SHORT));
    ada.put("/from-ada", 1).await;
    shows(&bob, "/from-ada").await;
    shows(&cyd, "/from-ada").await;
    cyd.put("/from-cyd", 2).await;
    shows(&ada, "/from-cyd").await;
    bob.put("/from-bob", 3).await;
    shows(&ada, "/from-bob").await;
    shows(&cyd, "/from-bob").await;
    for node in [&ada, &cyd] {
        node.files.shutdown().await;
    }
    for task in tasks {
        let ended = tokio::time::timeout(hung(), task).await;
        ended.expect("the shutdown ends it").expect("no panic");
    }
}

#[tokio::test]
async fn a_session_begins_at_once_when_something_is_new_and_not_before_the_pause_otherwise() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    let dialer = MemoryDialer::new(&ada, &[&bob]);
    let task = begin(&ada, &dialer, LONG);
    let dials = || dialer.dials.load(Ordering::SeqCst);
    for (number, at) in (1..).zip(["/a", "/b"]) {
        ada.put(at, number).await;
        shows(&bob, at).await;
        // A session that goes on takes the next change along.
        let head_seq = Some(ada.head_seq().await);
        until("the end is noted", async || {
            ada.record("bob").equal_seq >= head_seq
        })
        .await;
    }
    // One for the start, and one for each change.
    assert!((2..=3).contains(&dials()), "{}", dials());
    // What came by a session of the peer is not sent back.
    let before = dials();
    bob.put("/c", 3).await;
    bob.sync(&ada).await.expect("synchronised");
    assert!(ada.paths().await.contains(&"/c".to_owned()));
    ada.put("/d", 4).await;
    shows(&bob, "/d").await;
    assert_eq!(dials(), before + 1);
    task.abort();
}

#[tokio::test]
async fn a_peer_that_is_away_is_asked_again_and_its_failures_count() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    let dialer = MemoryDialer::new(&ada, &[&bob]);
    dialer.part(true);
    let task = begin(&ada, &dialer, SHORT);
    ada.put("/a", 1).await;
    until("three failures", async || ada.record("bob").failures >= 3).await;
    let record = ada.record("bob");
    assert_eq!(record.failure, Some("unreachable"));
    assert!(!record.is_lasting && record.equal_ms.is_none());
    // No session has failed: there was none.
    assert_eq!(ada.sync.counters().failed_sessions.get(), 0);
    dialer.part(false);
    shows(&bob, "/a").await;
    until("the end is noted", async || ada.record("bob").failures == 0).await;
    assert_eq!(ada.record("bob").failure, None);
    task.abort();
}

#[tokio::test]
async fn a_bucket_that_the_peer_does_not_synchronise_fails_without_a_trace_there() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    bob.set(BucketSettings {
        is_synced: Some(false),
        ..BucketSettings::default()
    })
    .await;
    let dialer = MemoryDialer::new(&ada, &[&bob]);
    let task = begin(&ada, &dialer, SHORT);
    ada.put("/a", 1).await;
    until("two failures", async || ada.record("bob").failures >= 2).await;
    assert_eq!(ada.record("bob").failure, Some("not-found"));
    assert_eq!(bob.record("ada"), Default::default());
    bob.set(BucketSettings {
        is_synced: Some(true),
        ..BucketSettings::default()
    })
    .await;
    shows(&bob, "/a").await;
    task.abort();
}

/// Contents that no session fetched are fetched behind a later one.
#[tokio::test]
async fn contents_that_are_lacking_are_fetched_behind_a_session() {
    let fetcher = Arc::new(super::sessions::NotingFetcher::default());
    let own = Arc::clone(&fetcher);
    let ada = SyncNode::with("ada", |options| options.fetcher = Some(own)).await;
    let bob = SyncNode::new("bob").await;
    let wanted = bob.put_bytes("/a", b"one").await;
    ada.sync(&bob).await.expect("synchronised");
    assert!(
        fetcher.fetched().is_empty(),
        "not at once: the bucket says so"
    );
    ada.set(BucketSettings {
        fetch: Some(ContentFetchMode::Eager),
        ..BucketSettings::default()
    })
    .await;
    let dialer = MemoryDialer::new(&ada, &[&bob]);
    let task = begin(&ada, &dialer, LONG);
    until("it is fetched", async || !fetcher.fetched().is_empty()).await;
    assert_eq!(fetcher.fetched(), [(wanted, "bob".to_owned())]);
    task.abort();
}

/// Makes a synchronised bucket with as many branches as a round looks at.
async fn make_crowd(node: &SyncNode, name: &str) {
    let store = node.store().await;
    let new = NewBucket::new(name.parse().expect("a name"), "mallory");
    let settings = BucketSettings {
        is_synced: Some(true),
        ..BucketSettings::default()
    };
    let made = store.write(move |tx| {
        let (bucket, main) = tx.create_bucket(&new)?;
        tx.set_bucket(bucket.id, &settings, "mallory")?;
        Ok(main.id)
    });
    let main = made.await.expect("a bucket");
    for from in (1..BRANCHES_MAX).step_by(250) {
        let made = store.write(move |tx| {
            for number in from..(from + 250).min(BRANCHES_MAX) {
                let name = format!("b{number}").parse()?;
                tx.create_branch(&NewBranch::new(name, main, "mallory"))?;
            }
            Ok(())
        });
        made.await.expect("branches");
    }
}

/// The attack: a tenant makes so many branches that a round has no room for those of a later bucket.
#[tokio::test]
async fn a_bucket_with_many_branches_keeps_no_later_one_from_its_peers() {
    let (ada, bob) = (SyncNode::new("ada").await, SyncNode::new("bob").await);
    make_crowd(&ada, "archive").await;
    let dialer = MemoryDialer::new(&ada, &[&bob]);
    let task = begin(&ada, &dialer, SHORT);
    ada.put("/a", 1).await;
    shows(&bob, "/a").await;
    until("both have the same", async || {
        ada.record("bob").equal_seq.is_some()
    })
    .await;
    assert_eq!(ada.tree().await, bob.tree().await);
    task.abort();
}
