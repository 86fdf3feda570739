//! Bundles that take the place of another one while workers are being updated.

use super::*;

/// The attack: as a client with `hub:admin`, send the last piece of another bundle at the moment of a start. The workers of
/// one rollout would get pieces of two bundles.
#[tokio::test]
async fn a_rollout_and_the_last_piece_of_a_bundle_exclude_each_other() {
    let bench = RolloutBench::new();
    let fleet = bench.fleet(|_| Behaviour::Confirms, 3);
    let rollouts = Rollouts::open(bench.dir.path());
    let store = HubBundleStore::open(bench.dir.path().to_owned());
    // Another store would drop the upload of this one.
    let begin = || {
        rollouts.begin(
            (&|| store.agreed_bundle(None), store.path()),
            fleet.behaviours.keys().cloned().collect(),
            (plan(&[], 1), "admin".to_owned()),
            Arc::clone(&fleet) as _,
        )
    };
    let before = store.stored_bundle().expect("a bundle");
    let other = bundle::tests::unsigned("1.2.0", b"program");
    let (first, last) = other.split_at(other.len() - 1);
    store.begin("admin", other.len() as u64).expect("a length");
    let write = |offset: usize, piece: &[u8]| {
        store.write("admin", offset as u64, piece, || rollouts.claim_bundle())
    };
    write(0, first).expect("a piece");
    // `hub/update` has asked before the rollout begins, and a thread takes the last piece afterwards.
    let work = begin().expect("no last piece has come");
    let refused = write(first.len(), last).expect_err("workers read the bundle");
    assert!(matches!(refused, HubBundleError::InUse), "{refused}");
    assert_eq!(store.stored_bundle().as_ref(), Some(&before));
    work.await;
    let report = rollouts.report().expect("a report");
    assert_eq!(report.state, RolloutState::Done, "{report:?}");
    {
        let workers = fleet.workers.lock().expect("no panic");
        assert!(workers.values().all(|worker| worker.got == bench.bundle));
    }

    // The other way round: while the last piece is on its way to the disk, nothing starts.
    let claim = rollouts.claim_bundle().expect("no rollout runs");
    assert_eq!(begin().err(), Some(RolloutError::Replacing));
    drop(claim);
    // The piece that was refused is taken when it comes again.
    let (_, kept) = write(first.len(), last).expect("no rollout runs");
    assert_eq!(kept.expect("the last piece").version, "1.2.0");
    let refused = store.agreed_bundle(Some(&before));
    assert_eq!(refused, Err(RolloutError::OtherBundle));
    drop(begin().expect("both are over"));
}
