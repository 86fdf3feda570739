//! Bundles of another channel than the one that a machine follows, whose releases have higher numbers.

use super::*;

/// What a client asks for that may only stage, or an administrator who names the other channel.
fn from_other_source(bundle: &[u8], dry_run: bool) -> StageOrder {
    StageOrder {
        dry_run,
        other_source: true,
        ..order(bundle)
    }
}

/// A client has a machine look at the other channel once, or stages a version of it, and the machine refuses its own channel
/// as too old from then on.
#[test]
fn a_bundle_of_another_channel_makes_no_release_of_the_own_one_too_old() {
    let bench = UpdateBench::new();
    let own = bench.publisher.bundle(&TestRelease::new(NEW, 11));
    let look_at_own = StageOrder {
        dry_run: true,
        ..order(&own)
    };
    bench.stage_bundle(&own, &look_at_own).expect("a plan");
    let beta = bench
        .publisher
        .bundle(&TestRelease::new("1.2.0-beta.1", 12));
    let plan = bench.stage_bundle(&beta, &from_other_source(&beta, true));
    assert_eq!(plan.expect("a plan").to, "1.2.0-beta.1");
    bench.stage_bundle(&own, &look_at_own).expect("a plan");
    // A bundle that is refused after its documents were verified, and one that is staged.
    let old = bench.publisher.bundle(&TestRelease::new("0.9.0", 13));
    bench.refuses(RefusalCode::Downgrade, |bench| {
        let order = from_other_source(&old, false);
        bench.stage_bundle(&old, &order).map(drop)
    });
    let staged = bench.stage_bundle(&beta, &from_other_source(&beta, false));
    assert_eq!(staged.expect("staged").to, "1.2.0-beta.1");
    let staged = bench.stage_bundle(&own, &order(&own));
    assert_eq!(staged.expect("staged").to, NEW);
}

/// What the machine has seen of its own channel counts for each source.
#[test]
fn a_replayed_bundle_is_refused_from_another_source_as_well() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 11)).expect("staged");
    let replayed = bench.publisher.bundle(&TestRelease::new("1.2.0", 10));
    for dry_run in [true, false] {
        bench.refuses(RefusalCode::Rollback, |bench| {
            let order = from_other_source(&replayed, dry_run);
            bench.stage_bundle(&replayed, &order).map(drop)
        });
    }
    // From its own channel, a release raises what the machine demands.
    bench.stage(&TestRelease::new("1.3.0", 14)).expect("staged");
    let between = bench.publisher.bundle(&TestRelease::new("1.4.0", 13));
    bench.refuses(RefusalCode::Rollback, |bench| {
        bench.stage_bundle(&between, &order(&between)).map(drop)
    });
}
