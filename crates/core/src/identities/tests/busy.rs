//! Changes while the node is busy with the work of peers.

use super::*;

/// The runtime's threads for blocking work are all in use, as by a peer that reads stored files.
#[test]
fn no_work_of_peers_delays_the_removal_of_one() {
    let token = AuthToken::generate().expect("randomness");
    let key_id = token.hash().expect("a token").key_id;
    let stored = StoredIdentities {
        peers: vec![peer("eve", &[1]), peer("edge", &[2])],
        api_keys: vec![api_key(&token)],
    };
    let all = Identities::with_store(
        IdentityEntries::default(),
        stored,
        Arc::new(RecordingPersistence::default()),
        Arc::new(IdentityTestClock(AtomicU64::new(1_000))),
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .expect("a runtime");
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    for _ in 0..600 {
        let held = Arc::clone(&held);
        // It ends when the test drops `release`.
        runtime.spawn_blocking(move || {
            let _ = held.lock().expect("whole").recv();
        });
    }
    let changes = async {
        assert_eq!(all.remove(id("eve")).await, Ok(true));
        assert_eq!(all.revoke_token(key_id).await, Ok(true));
        let rotated = all.rotate(id("edge"), key(2), key(3)).await;
        assert!(rotated.expect("a rotation").is_some());
        all.keep_uses().await.expect("room");
    };
    let limit = alknet_test_support::deadline(Duration::from_secs(20));
    let done = runtime.block_on(async { tokio::time::timeout(limit, changes).await });
    // The test ends in either case.
    drop(release);
    done.expect("the changes wait for no thread of the pool");
    assert!(all.by_key(&key(1)).is_none() && all.by_token(&token).is_none());
}
