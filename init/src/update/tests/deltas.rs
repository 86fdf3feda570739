//! Programs that are made from the one that runs. A delta that does not fit changes nothing on the disk.

use alknet_delta::limits::{GROUP_BYTES_MAX, READS_OF_PROGRAM_MAX};
use alknet_delta::{
    DeltaBase, DeltaError, FrameRecipe, NewProgram, OldProgram, library_version, make_delta,
};
use alknet_fat::FatVolume;

use super::*;
use crate::update::delta::RunningProgram;
use crate::update::disk::SharedDevice;
use crate::update::known_programs::digest_of;
use crate::update::testing::TestDelta;

/// What the initial file system of a version has.
fn init(seed: u32) -> Vec<u8> {
    let words = 0..60_000_u32;
    let words = words.map(|at| at.wrapping_mul(2_654_435_761) ^ (seed * u32::from(at % 64 == 0)));
    words.flat_map(u32::to_le_bytes).collect()
}

/// A release whose program ends with a compressed part, and a delta from the program that runs.
#[derive(Clone)]
struct DeltaRelease {
    release: TestRelease,
    delta: TestDelta,
}

impl DeltaRelease {
    fn new(bench: &UpdateBench) -> Self {
        let (old, archive) = (init(0), [b"a header".to_vec(), init(9)].concat());
        fs::write(bench.folder.path().join("init"), &old).expect("writable");
        let running = bench.disk.file(BootSlot::A).expect("it runs");
        let mut content = program(NEW, 4096, 3);
        let begin = content.len();
        let recipe = FrameRecipe::INITRAMFS;
        recipe.compress(&archive, &mut content).expect("in memory");
        let frame = begin..content.len();
        content.extend([0; 100]);
        let delta = make_delta(
            &OldProgram {
                program: &running,
                before: running.len() - 900,
                init: &old,
            },
            &NewProgram {
                program: &content,
                frame,
                archive: &archive,
                recipe,
            },
        );
        Self {
            release: TestRelease {
                program: Some(content),
                ..TestRelease::new(NEW, 1)
            },
            delta: TestDelta {
                name: "alknet.delta".to_owned(),
                base: digest_of(&running),
                library: library_version(),
                bytes: delta.expect("a delta"),
            },
        }
    }

    /// The same with a change, and with documents of a number that no other one has.
    fn changed(&self, number: u64, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        changed.release.number = number;
        change(&mut changed);
        changed
    }

    fn content(&mut self) -> &mut Vec<u8> {
        self.release.program.as_mut().expect("it was set")
    }

    fn bundle(&self, bench: &UpdateBench) -> Vec<u8> {
        let deltas = [self.delta.clone()];
        bench.publisher.bundle_with(&self.release, &deltas, false)
    }

    /// Asserts that the bundle is refused, and changes nothing.
    fn is_refused(&self, bench: &UpdateBench, code: RefusalCode) -> String {
        let bundle = self.bundle(bench);
        let mut text = String::new();
        bench.refuses(code, |bench| {
            let staged = bench.stage_bundle(&bundle, &order(&bundle));
            staged
                .map(drop)
                .inspect_err(|refusal| text.clone_from(&refusal.text))
        });
        assert!(
            text.contains("send the bundle with the whole program"),
            "{text}"
        );
        text
    }
}

#[test]
fn a_delta_makes_the_program_that_was_signed() {
    let bench = UpdateBench::new();
    let made = DeltaRelease::new(&bench);
    let content = made.release.content();
    let bundle = made.bundle(&bench);
    assert!(bundle.len() * 2 < content.len(), "{} bytes", bundle.len());
    let dry = StageOrder {
        dry_run: true,
        ..order(&bundle)
    };
    let plan = bench.stage_bundle(&bundle, &dry).expect("a plan");
    assert_eq!(plan.bytes, content.len() as u64);
    assert_eq!(plan.delta_bytes, Some(made.delta.bytes.len() as u64));
    assert_eq!(bench.stage_bundle(&bundle, &order(&bundle)), Ok(plan));
    assert!(bench.disk.file(BootSlot::B) == Some(content));
    assert_eq!(bench.disk.record().phase(), BootPhase::Staged);
    bench.arm(&bench.disk);
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::B));
}

/// A machine that does not know what it runs reads it: a stateless one forgets that at each restart.
#[test]
fn the_program_that_runs_is_read_where_it_was_not_noted() {
    let mut bench = UpdateBench::new();
    let made = DeltaRelease::new(&bench);
    bench.known = KnownStore::new(None);
    let bundle = made.bundle(&bench);
    let plan = bench
        .stage_bundle(&bundle, &order(&bundle))
        .expect("staged");
    assert!(plan.delta_bytes.is_some());
}

#[test]
fn the_program_is_taken_where_the_delta_is_for_another_one() {
    let bench = UpdateBench::new();
    let mut made = DeltaRelease::new(&bench);
    made.delta.base = "ab".repeat(32);
    let deltas = [made.delta.clone()];
    let bundle = bench.publisher.bundle_with(&made.release, &deltas, true);
    let plan = bench
        .stage_bundle(&bundle, &order(&bundle))
        .expect("staged");
    assert_eq!(plan.delta_bytes, None);
    assert!(bench.disk.file(BootSlot::B) == Some(made.release.content()));
}

#[test]
fn a_delta_for_another_program_or_library_is_refused() {
    let bench = UpdateBench::new();
    let good = DeltaRelease::new(&bench);
    let base = good.changed(2, |it| it.delta.base = "ab".repeat(32));
    let library = good.changed(3, |it| it.delta.library += 1);
    for (made, code) in [
        (base, RefusalCode::OtherBase),
        (library, RefusalCode::OtherLibrary),
    ] {
        made.is_refused(&bench, code);
        let bundle = made.bundle(&bench);
        let dry = StageOrder {
            dry_run: true,
            ..order(&bundle)
        };
        let planned = bench.stage_bundle(&bundle, &dry).expect_err("no plan");
        assert_eq!(planned.code, code);
    }
}

/// Each of these deltas is signed.
#[test]
fn a_delta_that_makes_something_else_leaves_both_slots() {
    let bench = UpdateBench::new();
    let good = DeltaRelease::new(&bench);
    let delta = &good.delta.bytes;
    for (number, cut) in (2..).zip([0, 20, 44, delta.len() / 2, delta.len() - 1]) {
        let cut = good.changed(number, |it| it.delta.bytes.truncate(cut));
        let text = cut.is_refused(&bench, RefusalCode::Delta);
        assert!(text.contains("cannot be read to its end"), "{text}");
    }
    let none = good.changed(10, |it| it.delta.bytes = vec![7; 5000]);
    let text = none.is_refused(&bench, RefusalCode::Delta);
    assert!(text.contains("the file has no delta"), "{text}");
    // The program is another one, so the release says other bytes.
    let another = good.changed(11, |it| it.content()[9000] ^= 1);
    let text = another.is_refused(&bench, RefusalCode::Delta);
    assert!(text.contains("did not make the signed program"), "{text}");
    for (number, more) in [(12, 1), (13, 60_000)] {
        let longer = good.changed(number, |it| it.content().extend(vec![0; more]));
        let text = longer.is_refused(&bench, RefusalCode::Delta);
        assert!(text.contains("makes fewer than the"), "{text}");
    }
    let length = good.release.content().len() - 1;
    let shorter = good.changed(14, |it| it.content().truncate(length));
    let text = shorter.is_refused(&bench, RefusalCode::Delta);
    assert!(text.contains("makes more than the"), "{text}");
}

/// The file of the slot or of PID 1 is not what the publisher made the delta from.
#[test]
fn a_base_that_is_not_as_noted_is_refused() {
    let bench = UpdateBench::new();
    let made = DeltaRelease::new(&bench);
    let path = bench.folder.path().join("init");
    let known = fs::read(&path).expect("written");
    fs::write(&path, &known[1..]).expect("writable");
    made.is_refused(&bench, RefusalCode::OtherBase);
    let mut changed = known.clone();
    changed[100] ^= 1;
    fs::write(&path, &changed).expect("writable");
    let text = made.is_refused(&bench, RefusalCode::Delta);
    assert!(text.contains("did not make the signed program"), "{text}");
    fs::remove_file(&path).expect("written");
    let text = made.is_refused(&bench, RefusalCode::Delta);
    assert!(
        text.contains("the program that runs cannot be read"),
        "{text}"
    );
    fs::write(&path, &known).expect("writable");
    let bundle = made.bundle(&bench);
    bench
        .stage_bundle(&bundle, &order(&bundle))
        .expect("staged");
}

/// An administrator cancels the update, or the node ends, while PID 1 has all bytes of the bundle: at each of its writes.
#[test]
fn a_delta_that_is_given_up_while_it_is_applied_leaves_the_slot_idle() {
    let bench = UpdateBench::new();
    let made = DeltaRelease::new(&bench);
    let bundle = made.bundle(&bench);
    let (stream, order) = (framed(&bundle, 40_000), order(&bundle));
    let whole = made.release.content().len() as u64;
    let mut written = Vec::new();
    let plan = (1..).find_map(|writes| {
        let progress = Arc::new(StagingProgress::default());
        bench.disk.give_up_after(writes, &progress);
        let staged = bench.staged_with(&bench.disk, &*stream, &order, Arc::clone(&progress));
        let refusal = staged.as_ref().err();
        if let Some(refusal) = refusal {
            assert_eq!(refusal.code, RefusalCode::Aborted, "{writes} writes");
            let record = bench.disk.record();
            assert_eq!(record.phase(), BootPhase::Idle, "{writes} writes");
            assert_eq!(bench.disk.file(BootSlot::B), None, "{writes} writes");
            written.extend(progress.written());
        } else {
            assert_eq!(bench.disk.record().phase(), BootPhase::Staged);
        }
        staged.ok()
    });
    // Once PID 1 has read the program back, it is too late.
    assert_eq!(plan.expect("staged").plan.bytes, whole);
    assert!(bench.disk.file(BootSlot::B) == Some(made.release.content()));
    // It ends within a group of pieces, and what was written is counted until then.
    assert!(written.len() > 10, "{written:?}");
    let (first, _) = written[0];
    assert!(first <= GROUP_BYTES_MAX, "{first} of {whole} bytes");
    assert!(written.is_sorted() && written.last() == Some(&(whole, whole)));
}

/// What the network cuts or changes is no defect of the delta.
#[test]
fn a_delta_that_was_damaged_on_its_way_is_named_so() {
    let bench = UpdateBench::new();
    let made = DeltaRelease::new(&bench);
    let bundle = made.bundle(&bench);
    let mut damaged = bundle.clone();
    let middle = bundle.len() - made.delta.bytes.len() / 2 - 1024;
    damaged[middle] ^= 1;
    bench.refuses(RefusalCode::Hash, |bench| {
        bench.stage_bundle(&damaged, &order(&damaged)).map(drop)
    });
    bench.refuses(RefusalCode::Truncated, |bench| {
        let cut = &bundle[..middle];
        bench.stage_bundle(cut, &order(cut)).map(drop)
    });
}

/// The place that is read alternates between the beginning and the end of the program. A disk reads a whole block each
/// time.
#[test]
fn a_delta_of_far_places_reads_the_program_eight_times_over_and_no_more() {
    let bench = UpdateBench::new();
    let init = bench.folder.path().join("init");
    fs::write(&init, b"a file").expect("writable");
    let mut disk = bench.disk.open();
    let device = disk.shared();
    let volume = FatVolume::open(SharedDevice(&device)).expect("a volume");
    let running = RunningProgram::open(&volume, BootSlot::A, &init, &Arc::default());
    let running = running.expect("it runs");
    let bytes = running.program_bytes();
    let mut reads = 0;
    let mut places = [0, bytes - 2].into_iter().cycle().take(1_000_000);
    let refused = places.find_map(|at| {
        reads += 1;
        running.read_program(&mut [0; 2], at).err()
    });
    let refused = refused.expect("it ends").downcast::<DeltaError>();
    assert!(matches!(refused, Ok(DeltaError::Reads)), "{refused:?}");
    let blocks = bytes / (64 << 10);
    let permitted = READS_OF_PROGRAM_MAX * blocks..=2 * READS_OF_PROGRAM_MAX * (blocks + 1);
    assert!(permitted.contains(&reads), "{reads} of {blocks} blocks");
}
