//! Which caller the facts name as the one that staged the version that waits.

use super::super::history;
use super::super::staged::staged_last;
use super::given_up::in_files;
use super::*;
use crate::control::{UpdateRecord, UpdateStager};

/// The part of a bundle that PID 1 does not need: it ends behind the last target.
const BUNDLE_TAIL_BYTES: usize = 512;

fn caller(by: &str, limited: bool) -> UpdateStager {
    UpdateStager {
        by: by.to_owned(),
        limited,
    }
}

fn order_of(bundle: &[u8], caller: &UpdateStager) -> StageOrder {
    StageOrder {
        by: caller.by.clone(),
        limited: caller.limited,
        ..order(bundle)
    }
}

fn stage_as(bench: &UpdateBench, release: &TestRelease, caller: &UpdateStager) {
    let bundle = bench.publisher.bundle(release);
    let staged = bench.stage_bundle(&bundle, &order_of(&bundle, caller));
    staged.expect("staged");
}

fn take_back(bench: &UpdateBench) {
    let back = apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules());
    assert_eq!(back, Ok(RollbackPlan::TakenBack));
}

/// This machine after a restart from this slot, and the folders that have its disk and its data.
fn restarted(bench: &UpdateBench, running: BootSlot) -> (UpdateSystem, [tempfile::TempDir; 2]) {
    let esp_bytes = BlockDevice::len(bench.disk.volume().device());
    let (disk, partitions) = in_files(&bench.disk, esp_bytes);
    let data = tempfile::tempdir().expect("a temporary directory");
    let folder = data.path().join("update");
    fs::create_dir(&folder).expect("a new folder");
    for note in fs::read_dir(bench.folder.path()).expect("readable") {
        let note = note.expect("readable");
        if note.file_type().expect("known").is_file() {
            fs::copy(note.path(), folder.join(note.file_name())).expect("writable");
        }
    }
    let mut system = UpdateSystem::on_disk(partitions, running);
    assert!(system.set_data(Some(data.path())));
    (system, [disk, data])
}

/// What the facts say after a restart of this machine.
fn shown(bench: &UpdateBench) -> Option<(String, UpdateStager)> {
    shown_in(bench, BootSlot::A)
}

/// The same if this slot runs then.
fn shown_in(bench: &UpdateBench, running: BootSlot) -> Option<(String, UpdateStager)> {
    let (system, _folders) = restarted(bench, running);
    let status = system.inspect();
    status.staged_version.zip(status.stager)
}

/// The attack: the sender gives its bundle up when PID 1 has all of the program. PID 1 needs neither the end of the bundle
/// nor its last frame, so it stages the version, and the node has no answer.
#[test]
fn the_facts_name_the_caller_of_a_bundle_that_was_given_up_too_late() {
    let bench = UpdateBench::new();
    let ada = caller("ada", false);
    stage_as(&bench, &TestRelease::new(NEW, 1), &ada);
    assert_eq!(shown(&bench), Some((NEW.to_owned(), ada)));
    let bundle = bench.publisher.bundle(&TestRelease::new("1.2.0", 2));
    let mut stream = framed(&bundle[..bundle.len() - BUNDLE_TAIL_BYTES], 40_000);
    stream.truncate(stream.len() - 4);
    stream.extend(UPDATE_FRAME_ABORT.to_be_bytes());
    let eve = caller("eve", true);
    let staged = bench.stage_stream(&bench.disk, &*stream, &order_of(&bundle, &eve));
    assert_eq!(staged.expect("staged").to, "1.2.0");
    assert_eq!(shown(&bench), Some(("1.2.0".to_owned(), eve)));
    take_back(&bench);
    assert_eq!(shown(&bench), None);
}

/// The attack: a client that may not start versions sends the program of an administrator again, so that the machine and
/// hubs would take it for one that they may replace.
#[test]
fn a_caller_that_may_only_stage_takes_no_program_over() {
    let bench = UpdateBench::new();
    let (release, other) = (TestRelease::new(NEW, 1), TestRelease::new(NEW, 3));
    let higher = TestRelease {
        floor: Some(NEW.to_owned()),
        program: Some(release.content()),
        ..TestRelease::new(NEW, 2)
    };
    let (ada, eve, bob) = (
        caller("ada", false),
        caller("eve", true),
        caller("bob", false),
    );
    let named = || shown(&bench).map(|(_, stager)| stager);
    for (release, by, expected) in [
        (&release, &ada, &ada),
        (&release, &eve, &ada),
        (&higher, &eve, &ada),
        (&higher, &bob, &bob),
        (&other, &eve, &eve),
        (&other, &ada, &ada),
    ] {
        stage_as(&bench, release, by);
        assert_eq!(named().as_ref(), Some(expected));
    }
    // It was taken back, so the client is the one that wants it.
    take_back(&bench);
    stage_as(&bench, &other, &eve);
    assert_eq!(named(), Some(eve));
}

/// An earlier version of PID 1 has noted the release without its caller, or the note is lost.
#[test]
fn without_a_noted_caller_the_facts_name_the_one_in_the_log() {
    let bench = UpdateBench::new();
    stage_as(&bench, &TestRelease::new(NEW, 1), &caller("ada", false));
    let folder = bench.folder.path();
    let mut release = StagedRelease::load(folder).expect("noted");
    release.stager = None;
    release.save(folder).expect("writable");
    assert_eq!(shown(&bench), None);
    let log = |version: &str, caller: &UpdateStager| {
        let record = UpdateRecord {
            event: history::STAGED.to_owned(),
            version: version.to_owned(),
            by: caller.by.clone(),
            limited: caller.limited,
            ..UpdateRecord::default()
        };
        history::append(folder, record, 0).expect("writable");
    };
    let eve = caller("eve", true);
    log(NEW, &eve);
    assert_eq!(shown(&bench), Some((NEW.to_owned(), eve.clone())));
    StagedRelease::remove(folder).expect("writable");
    assert_eq!(shown(&bench), Some((NEW.to_owned(), eve.clone())));
    // Of another version it says nothing.
    log("1.2.0", &eve);
    assert_eq!(shown(&bench), None);
}

/// A machine that keeps nothing has the caller in memory, together with the program.
#[test]
fn a_stateless_machine_knows_the_caller_until_it_restarts() {
    let bench = UpdateBench::new();
    let known = KnownStore::new(None);
    let stage_as = |caller: &UpdateStager| {
        let bundle = bench.publisher.bundle(&TestRelease::new(NEW, 1));
        let stream = framed(&bundle, 40_000);
        let order = order_of(&bundle, caller);
        let mut frames = BundleFrameReader::new(&*stream, order.bytes, Arc::default());
        let machine = StageMachine {
            running: bench.running,
            version: &bench.version,
            anchor: &bench.anchor,
            trust: &bench.trust,
            known: &known,
            clock: UpdateClock::Known(UnixSeconds(NOW)),
            init: &bench.folder.path().join("init"),
            folder: None,
            foreign: &bench.foreign,
            log: &bench.log,
        };
        let staged = stage(&mut bench.disk.open(), &mut frames, &order, &machine);
        staged.expect("staged");
    };
    let named =
        |known: &KnownStore| staged_last(None, BootSlot::B, known.load().of_slot(BootSlot::B));
    let (ada, eve) = (caller("ada", false), caller("eve", true));
    for (by, expected) in [(&eve, &eve), (&ada, &ada), (&eve, &ada)] {
        stage_as(by);
        assert_eq!(named(&known), Some((NEW.to_owned(), expected.clone())));
    }
    let restarted = KnownStore::new(None);
    assert_eq!(named(&restarted), None);
}

/// The attack: the machine or a hub decides to stage its version, and waits for the server of the channel. An administrator
/// stages another one meanwhile, which the machine or the hub would write over. A version of a client that may not start
/// versions is no reason to wait, nor is one of the machine itself.
#[test]
fn a_version_that_waits_for_an_administrator_is_replaced_only_for_one() {
    let bench = UpdateBench::new();
    let ada = caller("ada", false);
    let bundle = bench.publisher.bundle(&TestRelease::new("1.2.0", 2));
    let unasked = |by: &str| StageOrder {
        unasked: true,
        ..order_of(&bundle, &caller(by, false))
    };
    let named = || shown(&bench).map(|(version, stager)| (version, stager.by));
    let waits = |version: &str, by: &str| Some((version.to_owned(), by.to_owned()));
    stage_as(&bench, &TestRelease::new(NEW, 1), &ada);
    for by in ["the machine", "hub"] {
        bench.refuses(RefusalCode::OtherStaged, |bench| {
            bench.stage_bundle(&bundle, &unasked(by)).map(drop)
        });
        assert_eq!(named(), waits(NEW, "ada"));
        let dry = StageOrder {
            dry_run: true,
            ..unasked(by)
        };
        bench.stage_bundle(&bundle, &dry).expect("a plan");
    }
    let refused = bench.stage_bundle(&bundle, &unasked("hub"));
    let text = refused.expect_err("it waits").text;
    assert!(text.contains(NEW) && text.contains("ada"), "{text}");
    take_back(&bench);
    // What the machine has staged gives way to a hub, and each to a later version of its own.
    for by in ["the machine", "hub", "hub"] {
        bench.stage_bundle(&bundle, &unasked(by)).expect("staged");
        assert_eq!(named(), waits("1.2.0", by));
    }
    let of_machine = bench.stage_bundle(&bundle, &unasked("the machine"));
    let refused = of_machine.expect_err("the version of the hub waits");
    assert_eq!(refused.code, RefusalCode::OtherStaged);
    stage_as(&bench, &TestRelease::new(NEW, 3), &caller("eve", true));
    let later = bench.publisher.bundle(&TestRelease::new("1.3.0", 4));
    let order = StageOrder {
        bytes: later.len() as u64,
        ..unasked("the machine")
    };
    let replaced = bench.stage_bundle(&later, &order);
    assert_eq!(replaced.map(|plan| plan.to), Ok("1.3.0".to_owned()));
}

/// The disk damages the file of the staged program, and a client that may not start versions sends the program again. PID 1
/// writes it, and the version stays the administrator's by the note and by the log.
#[test]
fn the_log_and_the_note_name_the_same_caller_of_a_program_that_is_written_again() {
    let bench = UpdateBench::new();
    let data = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(data.path().join("update")).expect("a new folder");
    let mut system = UpdateSystem::absent(&bench.log);
    assert!(system.set_data(Some(data.path())));
    let bundle = bench.publisher.bundle(&TestRelease::new(NEW, 1));
    let stage = |by: &UpdateStager| {
        let stream = framed(&bundle, 65_536);
        let order = order_of(&bundle, by);
        let staged = bench.staged_stream(&bench.disk, &*stream, &order);
        system.log_staged(&staged.expect("staged"), &by.by, by.limited);
    };
    let (ada, eve) = (caller("ada", false), caller("eve", true));
    stage(&ada);
    bench.disk.lengthen_entry(BootSlot::B);
    stage(&eve);
    let noted = StagedRelease::load(bench.folder.path()).and_then(|noted| noted.stager);
    assert_eq!(noted, Some(ada));
    let records = system.records().into_iter();
    let lines: Vec<_> = records.map(|it| (it.event, it.by, it.limited)).collect();
    let line = |event: &str, by: &str, limited| (event.to_owned(), by.to_owned(), limited);
    let by_ada = line("staged", "ada", false);
    assert_eq!(lines, [by_ada.clone(), by_ada, line("noted", "eve", true)]);
}

/// The good slot did not start, so the slot runs that has what was staged: the other slot has no version that waits.
#[test]
fn the_facts_name_no_version_that_waits_on_a_machine_whose_good_slot_did_not_start() {
    let bench = UpdateBench::new();
    stage_as(&bench, &TestRelease::new(NEW, 1), &caller("ada", false));
    assert!(shown(&bench).is_some());
    // The version in slot a was staged once as well, and the log says so.
    let record = UpdateRecord {
        event: history::STAGED.to_owned(),
        version: OLD.to_owned(),
        by: "ada".to_owned(),
        ..UpdateRecord::default()
    };
    history::append(bench.folder.path(), record, 0).expect("writable");
    assert_eq!(shown_in(&bench, BootSlot::B), None);
}

/// An administrator takes back a version that was to start with the next restart. It is staged again, and the machine would
/// start its own once more.
#[test]
fn the_machine_leaves_its_own_version_that_is_taken_back_before_its_start() {
    for (by, expected) in [("the machine", vec![NEW.to_owned()]), ("ada", vec![])] {
        let bench = UpdateBench::new();
        stage_as(&bench, &TestRelease::new(NEW, 1), &caller(by, false));
        bench.arm(&bench.disk);
        let (system, _folders) = restarted(&bench, BootSlot::A);
        let back = system.plan_rollback("ada");
        assert_eq!(back, Ok(RollbackPlan::TakenBack));
        let status = system.inspect();
        assert_eq!((&*status.state, status.left), ("staged", expected), "{by}");
    }
}
