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

/// A worker that follows `stable` looks at its channel, or gets a bundle of its hub.
fn of_stable(bundle: &[u8], dry_run: bool) -> StageOrder {
    StageOrder {
        dry_run,
        unasked: !dry_run,
        follows_stable: true,
        ..order(bundle)
    }
}

/// The attack: a hub with `update:offer`, or the server of the channel `stable`, sends a signed bundle of `beta`. The machine
/// refuses it, and each release of its own channel as too old from then on. The bundle may also have another reason to be
/// refused first, or end behind any of its documents, before a version is known.
#[test]
fn a_refused_bundle_of_beta_makes_no_release_of_stable_too_old() {
    let bench = UpdateBench::new();
    let own = bench.publisher.bundle(&TestRelease::new(NEW, 11));
    let seen = bench.stage_bundle(&own, &of_stable(&own, true));
    assert_eq!(seen.expect("a plan").to, NEW);
    let other_machine = TestRelease {
        arch: "pdp11".to_owned(),
        ..TestRelease::new("1.3.0-beta.1", 14)
    };
    for (code, beta) in [
        (
            RefusalCode::OtherChannel,
            TestRelease::new("1.2.0-beta.1", 12),
        ),
        (RefusalCode::Downgrade, TestRelease::new("0.9.0-beta.1", 13)),
        (RefusalCode::OtherMachine, other_machine),
    ] {
        let beta = bench.publisher.bundle(&beta);
        bench.refuses(code, |bench| {
            bench
                .stage_bundle(&beta, &of_stable(&beta, false))
                .map(drop)
        });
        // The headers in the archive are at multiples of 512 bytes.
        for cut in (512..beta.len().min(32_768)).step_by(512) {
            let cut = &beta[..cut];
            let refused = bench.stage_bundle(cut, &of_stable(cut, false));
            assert!(refused.is_err(), "{}", cut.len());
        }
        bench
            .stage_bundle(&own, &of_stable(&own, true))
            .expect("a plan");
    }
    // The machine looks at a channel whose server has the other bundle.
    let beta = bench
        .publisher
        .bundle(&TestRelease::new("1.2.0-beta.2", 15));
    let look = bench.stage_bundle(&beta, &of_stable(&beta, true));
    assert_eq!(look.expect("a plan").to, "1.2.0-beta.2");
    let staged = bench.stage_bundle(&own, &of_stable(&own, false));
    assert_eq!(staged.expect("staged").to, NEW);
}

/// What a bundle of `beta` leaves as it was still protects from replays, also of `beta`. This is about the limits of the rule
/// by which bundles of `beta` do not count as seen. It fails if such a bundle takes back what was seen, if a replay of `beta`
/// is not compared with it, or if a version that an administrator chose does not count. Without the rule it passes.
#[test]
fn a_bundle_of_beta_opens_no_replay_on_a_machine_that_follows_stable() {
    let bench = UpdateBench::new();
    let own = bench.publisher.bundle(&TestRelease::new(NEW, 11));
    bench
        .stage_bundle(&own, &of_stable(&own, false))
        .expect("staged");
    let beta = bench
        .publisher
        .bundle(&TestRelease::new("1.2.0-beta.1", 12));
    bench.refuses(RefusalCode::OtherChannel, |bench| {
        bench
            .stage_bundle(&beta, &of_stable(&beta, false))
            .map(drop)
    });
    for replayed in ["1.2.0", "1.2.0-beta.0"] {
        let replayed = bench.publisher.bundle(&TestRelease::new(replayed, 10));
        for dry_run in [true, false] {
            bench.refuses(RefusalCode::Rollback, |bench| {
                let order = of_stable(&replayed, dry_run);
                bench.stage_bundle(&replayed, &order).map(drop)
            });
        }
    }
    // One that an administrator has the machine install counts.
    let chosen = StageOrder {
        follows_stable: true,
        ..order(&beta)
    };
    bench.stage_bundle(&beta, &chosen).expect("staged");
    bench.refuses(RefusalCode::Rollback, |bench| {
        bench.stage_bundle(&own, &of_stable(&own, false)).map(drop)
    });
}
