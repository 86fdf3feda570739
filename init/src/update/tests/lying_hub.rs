//! A hub that sends something else than the bundle which its worker was promised. Each lie is refused for its reason, and
//! both slots, the record and the loader stay as they are.
//!
//! PID 1 does not know what the hub has promised to the node: it decides by the bundle alone, which no administrator
//! asks for.

use super::*;

/// A worker that runs version 1.1.0 from slot b, has the version before in slot a, and has seen the documents of release
/// 5, of version 1.2.0, which its hub promises.
fn worker() -> (UpdateBench, TestRelease) {
    let bench = UpdateBench::updated();
    let promised = TestRelease::new("1.2.0", 5);
    let bundle = bench.publisher.bundle(&promised);
    let dry = StageOrder {
        dry_run: true,
        ..from_hub(bundle.len())
    };
    bench.stage_bundle(&bundle, &dry).expect("it is good");
    (bench, promised)
}

fn from_hub(bytes: usize) -> StageOrder {
    StageOrder {
        bytes: bytes as u64,
        unasked: true,
        ..StageOrder::default()
    }
}

/// Asserts that this stream of the hub is refused with this code, that both slots have the programs of before, and that
/// the machine starts from its own.
fn refuses_stream(bench: &UpdateBench, code: RefusalCode, announced: usize, stream: impl Read) {
    let programs = || BootSlot::ALL.map(|slot| bench.disk.file(slot));
    let before = programs();
    assert!(before.iter().all(Option::is_some), "both slots are in use");
    bench.refuses(code, |bench| {
        let staged = bench.stage_stream(&bench.disk, stream, &from_hub(announced));
        staged.map(drop)
    });
    assert!(programs() == before, "{}: a slot was changed", code.name());
    assert_eq!(bench.disk.record().phase(), BootPhase::Good);
    let (slot, started) = bench.disk.power_on();
    assert_eq!(slot, Some(BootSlot::B));
    assert!(started == before[1], "another program starts");
}

/// The same of a whole bundle.
fn refuses_bundle(bench: &UpdateBench, code: RefusalCode, bundle: &[u8]) {
    refuses_stream(bench, code, bundle.len(), &*framed(bundle, 40_000));
}

/// The hub may be honest again.
fn takes(bench: &UpdateBench, promised: &TestRelease) {
    let bundle = bench.publisher.bundle(promised);
    let plan = bench.stage_bundle(&bundle, &from_hub(bundle.len()));
    assert_eq!(plan.map(|plan| plan.to), Ok(promised.version.clone()));
    assert!(bench.disk.file(BootSlot::A) == Some(promised.content()));
}

#[test]
fn a_bundle_of_an_older_version_under_the_promised_name_changes_neither_slot() {
    let (bench, promised) = worker();
    let older = bench.publisher.bundle(&TestRelease::new("1.0.5", 6));
    refuses_bundle(&bench, RefusalCode::Downgrade, &older);
    takes(&bench, &TestRelease::new(&promised.version, 7));
}

/// An administrator went back from that version, or it failed. The node would not have wanted it by its own name.
#[test]
fn a_bundle_of_a_version_that_was_left_under_the_promised_name_changes_neither_slot() {
    let (bench, promised) = worker();
    left_versions::leave(bench.folder.path(), &version("1.1.9")).expect("written");
    let left = bench.publisher.bundle(&TestRelease::new("1.1.9", 6));
    refuses_bundle(&bench, RefusalCode::Left, &left);
    takes(&bench, &TestRelease::new(&promised.version, 7));
}

#[test]
fn a_bundle_of_another_owner_under_the_promised_name_changes_neither_slot() {
    let (bench, promised) = worker();
    let foreign = TestPublisher::with(&[9], 1);
    refuses_bundle(&bench, RefusalCode::Signature, &foreign.bundle(&promised));
    takes(&bench, &promised);
}

#[test]
fn a_bundle_for_another_kind_of_machine_changes_neither_slot() {
    let (bench, promised) = worker();
    let other = TestRelease {
        arch: "pdp11".to_owned(),
        number: 6,
        ..promised.clone()
    };
    let other = bench.publisher.bundle(&other);
    refuses_bundle(&bench, RefusalCode::OtherMachine, &other);
    takes(&bench, &TestRelease::new(&promised.version, 7));
}

/// The hub says how long its bundle is. It ends early with the whole length announced, or with its own, or goes on behind
/// the announced length.
#[test]
fn a_truncated_bundle_changes_neither_slot() {
    let (bench, promised) = worker();
    let bundle = bench.publisher.bundle(&promised);
    for cut in [100, 5_000, bundle.len() / 2, bundle.len() - 1_500] {
        for announced in [bundle.len(), cut] {
            let stream = framed(&bundle[..cut], 40_000);
            refuses_stream(&bench, RefusalCode::Truncated, announced, &*stream);
        }
    }
    let stream = framed(&bundle, 40_000);
    let half = bundle.len() / 2;
    refuses_stream(&bench, RefusalCode::Truncated, half, &*stream);
    takes(&bench, &promised);
}

#[test]
fn other_bytes_than_the_promised_ones_change_neither_slot() {
    let (bench, promised) = worker();
    let mut bundle = bench.publisher.bundle(&promised);
    let at = bundle.len() - 5_000;
    bundle[at] ^= 1;
    refuses_bundle(&bench, RefusalCode::Hash, &bundle);
    takes(&bench, &promised);
}

/// All documents of an earlier release, or its timestamp alone beside those of a newer one.
#[test]
fn a_replayed_timestamp_changes_neither_slot() {
    let (bench, promised) = worker();
    let earlier = TestRelease::new("1.2.0", 4);
    let replayed = bench.publisher.bundle(&earlier);
    refuses_bundle(&bench, RefusalCode::Rollback, &replayed);
    let newer = TestRelease::new("1.3.0", 6);
    let mixed = bench.publisher.bundle_with_timestamp_of(&earlier, &newer);
    refuses_bundle(&bench, RefusalCode::Rollback, &mixed);
    takes(&bench, &promised);
}

/// The hub goes on to offer what was the newest release once, so that its worker does not get a newer one.
#[test]
fn a_bundle_that_the_hub_offers_for_too_long_changes_neither_slot() {
    let (bench, promised) = worker();
    let expired = TestRelease {
        expires: NOW - 1,
        number: 6,
        ..promised.clone()
    };
    let expired = bench.publisher.bundle(&expired);
    refuses_bundle(&bench, RefusalCode::Expired, &expired);
    takes(&bench, &TestRelease::new(&promised.version, 7));
}

/// A hub that sends so much, and nothing more.
struct SilentStream<'a>(&'a [u8]);

impl Read for SilentStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.is_empty() {
            // The node's socket has a time-out.
            true => Err(std::io::ErrorKind::WouldBlock.into()),
            false => self.0.read(buffer),
        }
    }
}

/// The hub stops within the documents or within the program. PID 1 gives the bundle up after a while, or at the word of
/// the node, to which an administrator or its own limit of time has said so.
#[test]
fn a_withheld_bundle_changes_neither_slot() {
    let (bench, promised) = worker();
    let bundle = bench.publisher.bundle(&promised);
    let whole = framed(&bundle, 40_000);
    for sent in [0, 3_000, whole.len() / 2, whole.len() - 2_000] {
        let silent = SilentStream(&whole[..sent]);
        refuses_stream(&bench, RefusalCode::Silent, bundle.len(), silent);
    }
    let mut given_up = framed(&bundle[..bundle.len() / 2], 40_000);
    given_up.truncate(given_up.len() - 4);
    given_up.extend(UPDATE_FRAME_ABORT.to_be_bytes());
    refuses_stream(&bench, RefusalCode::Aborted, bundle.len(), &*given_up);
    takes(&bench, &promised);
}

/// A hub offers the promised version, and sends one that is to be tried before its release. Or the server of the channel
/// `stable` has a bundle of `beta`: the same keys have signed both.
#[test]
fn a_bundle_of_the_other_channel_under_the_promised_name_changes_neither_slot() {
    let (bench, _) = worker();
    let beta = TestRelease::new("1.3.0-beta.1", 6);
    let bundle = bench.publisher.bundle(&beta);
    let programs = || BootSlot::ALL.map(|slot| bench.disk.file(slot));
    let before = programs();
    bench.refuses(RefusalCode::OtherChannel, |bench| {
        let order = StageOrder {
            follows_stable: true,
            ..from_hub(bundle.len())
        };
        bench.stage_bundle(&bundle, &order).map(drop)
    });
    assert!(programs() == before, "a slot was changed");
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::B));
    // A release is taken.
    let release = bench.publisher.bundle(&TestRelease::new("1.2.5", 7));
    let order = StageOrder {
        follows_stable: true,
        ..from_hub(release.len())
    };
    let plan = bench.stage_bundle(&release, &order);
    assert_eq!(plan.map(|plan| plan.to), Ok("1.2.5".to_owned()));
    // So is the other version where the machine follows that channel, or an administrator asks.
    for (number, unasked, follows_stable) in [(8, true, false), (9, false, true)] {
        let beta = TestRelease::new("1.3.0-beta.1", number);
        let bundle = bench.publisher.bundle(&beta);
        let order = StageOrder {
            unasked,
            follows_stable,
            ..from_hub(bundle.len())
        };
        let plan = bench.stage_bundle(&bundle, &order);
        assert_eq!(plan.map(|plan| plan.to), Ok(beta.version));
    }
}
