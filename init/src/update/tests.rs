//! Updates on a model of a disk: each refusal, and a power cut at each write.

mod again;
mod agreed_floor;
mod cuts;
mod damaged_program;
mod deltas;
mod first_formats;
mod given_up;
mod lost_note;
mod lost_program;
mod lying_hub;
mod other_channel;
mod scrub;
mod stager;
mod verified_programs;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use alknet_boot_state::{BootNote, BootPhase, BootRecord, BootSlot, SECTOR_BYTES};
use alknet_fat::BlockDevice;
use alknet_update::{ReleaseVersion, UnixSeconds, UpdateClock};

use super::anchor::UpdateAnchor;
use super::apply::{self, RollbackPlan, StartTerms, TrialRules};
use super::disk::{LOADER, slot_path};
use super::frames::BundleFrameReader;
use super::known_programs::{self, KnownStore};
use super::left_versions::{self, LeftVersions};
use super::measured;
use super::partition_repair::ForeignCount;
use super::progress::StagingProgress;
use super::refusal::{RefusalCode, UpdateRefusal};
use super::stage::{StageMachine, StageOrder, stage};
use super::staged::{StagedBundle, StagedRelease};
use super::system::UpdateSystem;
use super::testing::{ModelDisk, NOW, TestPublisher, TestRelease, framed, program};
use super::trust_store::TrustStore;
use crate::control::{UPDATE_FRAME_ABORT, UpdatePlan};
use crate::log::InitLog;

const OLD: &str = "1.0.0";
const NEW: &str = "1.1.0";
/// The terms of a caller that starts any staged version.
const ANY: StartTerms = StartTerms {
    sha256: None,
    floor: None,
};

/// A machine that runs version 1.0.0 from slot a, with a publisher that it trusts.
struct UpdateBench {
    disk: ModelDisk,
    publisher: TestPublisher,
    anchor: UpdateAnchor,
    folder: tempfile::TempDir,
    trust: TrustStore,
    known: KnownStore,
    foreign: ForeignCount,
    running: BootSlot,
    version: String,
    log: InitLog,
}

impl UpdateBench {
    fn new() -> Self {
        let publisher = TestPublisher::new();
        let folder = tempfile::tempdir().expect("a temporary directory");
        let none = UpdateAnchor::of_root(Path::new("/missing"));
        let bench = Self {
            disk: ModelDisk::new(&program(OLD, 4096, 0)),
            anchor: none.with_owner(&[publisher.key()], 1),
            trust: TrustStore::new(Some(folder.path().to_owned())),
            known: KnownStore::new(Some(folder.path().to_owned())),
            foreign: ForeignCount::default(),
            publisher,
            folder,
            running: BootSlot::A,
            version: OLD.to_owned(),
            log: InitLog::default(),
        };
        let noted = bench.note_running();
        assert_eq!(noted, Ok(true), "the machine's first start");
        bench
    }

    fn note_running(&self) -> Result<bool, UpdateRefusal> {
        known_programs::note_running(
            &mut self.disk.open(),
            self.running,
            &self.version,
            &self.known,
            || true,
        )
    }

    fn rules(&self) -> TrialRules<'_> {
        TrialRules {
            trust: &self.trust,
            known: &self.known,
            folder: Some(self.folder.path()),
            version: &self.version,
        }
    }

    fn stage_stream(
        &self,
        disk: &ModelDisk,
        stream: impl Read,
        order: &StageOrder,
    ) -> Result<UpdatePlan, UpdateRefusal> {
        let staged = self.staged_stream(disk, stream, order);
        staged.map(|staged| staged.plan)
    }

    fn staged_stream(
        &self,
        disk: &ModelDisk,
        stream: impl Read,
        order: &StageOrder,
    ) -> Result<StagedBundle, UpdateRefusal> {
        self.staged_with(disk, stream, order, Arc::default())
    }

    fn staged_with(
        &self,
        disk: &ModelDisk,
        stream: impl Read,
        order: &StageOrder,
        progress: Arc<StagingProgress>,
    ) -> Result<StagedBundle, UpdateRefusal> {
        let mut frames = BundleFrameReader::new(stream, order.bytes, progress);
        let machine = StageMachine {
            running: self.running,
            version: &self.version,
            anchor: &self.anchor,
            trust: &self.trust,
            known: &self.known,
            clock: UpdateClock::Known(UnixSeconds(NOW)),
            init: &self.folder.path().join("init"),
            folder: Some(self.folder.path()),
            foreign: &self.foreign,
            log: &self.log,
        };
        stage(&mut disk.open(), &mut frames, order, &machine)
    }

    fn stage_bundle(&self, bundle: &[u8], order: &StageOrder) -> Result<UpdatePlan, UpdateRefusal> {
        self.stage_stream(&self.disk, &*framed(bundle, 40_000), order)
    }

    fn stage(&self, release: &TestRelease) -> Result<UpdatePlan, UpdateRefusal> {
        let bundle = self.publisher.bundle(release);
        self.stage_bundle(&bundle, &order(&bundle))
    }

    /// What no refusal may change.
    fn state(&self) -> (Option<BootRecord>, [Option<Vec<u8>>; 2], Vec<u8>) {
        let record = self.disk.open().record().ok();
        let files = BootSlot::ALL.map(|slot| self.disk.file(slot));
        (record, files, self.disk.loader())
    }

    /// Asserts that what `act` does is refused with this code, and changes nothing.
    fn refuses(&self, code: RefusalCode, act: impl FnOnce(&Self) -> Result<(), UpdateRefusal>) {
        let before = self.state();
        let refused = act(self).expect_err(code.name());
        assert_eq!(refused.code, code, "{}", refused.text);
        assert!(refused.text.len() > 20, "{}", refused.text);
        assert!(
            self.state() == before,
            "{}: the disk is another one",
            code.name()
        );
    }

    fn arm(&self, disk: &ModelDisk) {
        let mut opened = disk.open();
        let plan =
            apply::plan_apply(&mut opened, self.running, self.rules(), &ANY).expect("staged");
        apply::arm(&mut opened, &plan, &BootNote::new(plan.slot)).expect("written");
    }

    /// Stages version 1.1.0, starts it, and confirms it.
    fn updated() -> Self {
        let mut bench = Self::new();
        bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
        bench.arm(&bench.disk);
        assert_eq!(bench.disk.power_on().0, Some(BootSlot::B));
        apply::confirm(&mut bench.disk.open(), BootSlot::B).expect("it runs");
        bench.running = BootSlot::B;
        bench.version = NEW.to_owned();
        bench
    }
}

fn order(bundle: &[u8]) -> StageOrder {
    StageOrder {
        bytes: bundle.len() as u64,
        ..StageOrder::default()
    }
}

fn version(text: &str) -> ReleaseVersion {
    text.parse().expect("a version")
}

#[test]
fn a_version_is_staged_whole_and_started_after_it_was_armed() {
    let bench = UpdateBench::new();
    let release = TestRelease {
        floor: Some("0.9.0".to_owned()),
        ..TestRelease::new(NEW, 1)
    };
    let plan = bench.stage(&release).expect("staged");
    assert_eq!((&*plan.from, &*plan.to, &*plan.step), (OLD, NEW, "upgrade"));
    assert_eq!(plan.bytes, release.content().len() as u64);
    assert_eq!(plan.floor.as_deref(), Some("0.9.0"));
    assert!(plan.time_known);
    assert_eq!(bench.disk.record().phase(), BootPhase::Staged);
    assert!(bench.disk.file(BootSlot::B) == Some(release.content()));
    let staged = StagedRelease::load(bench.folder.path()).expect("noted");
    assert!(staged.is_of(BootSlot::B));
    assert_eq!(staged.floor, Some(version("0.9.0")));

    assert_eq!(bench.disk.power_on().0, Some(BootSlot::A), "it waits");
    bench.arm(&bench.disk);
    let (slot, started) = bench.disk.power_on();
    assert_eq!(slot, Some(BootSlot::B));
    assert!(started == Some(release.content()));
    let note = bench.disk.open().note().expect("readable").expect("a note");
    assert_eq!(note.slot, BootSlot::B);
}

#[test]
fn a_dry_run_plans_and_writes_nothing_to_the_disk() {
    let bench = UpdateBench::new();
    let bundle = bench.publisher.bundle(&TestRelease::new(NEW, 1));
    let dry = StageOrder {
        dry_run: true,
        ..order(&bundle)
    };
    bench.disk.forget_steps();
    let plan = bench.stage_bundle(&bundle, &dry).expect("a plan");
    assert_eq!(plan.to, NEW);
    assert!(!bench.disk.is_written());
    // A program that does not fit is refused in a dry run as well.
    bench.refuses(RefusalCode::Full, |bench| {
        fill(&bench.disk);
        bench.stage_bundle(&bundle, &dry).map(drop)
    });
}

/// Fills the boot partition up to less than a program.
fn fill(disk: &ModelDisk) {
    let mut volume = disk.volume();
    let report = volume.check(&[]).expect("a volume");
    let bytes = u64::from(report.free_clusters - 1000) * 512;
    volume
        .replace_file(
            r"\FILL",
            bytes,
            &mut std::io::repeat(1).take(bytes),
            &mut |_| {},
        )
        .expect("room");
}

#[test]
fn a_bundle_that_is_not_to_be_trusted_is_refused() {
    let release = TestRelease::new("1.2.0", 5);
    let bench = UpdateBench::updated();
    let path = bench.folder.path().join("trust.json");
    fs::remove_file(&path).expect("saved with the version that runs");
    let bundle = bench.publisher.bundle(&release);
    let stage =
        |bench: &UpdateBench, bundle: &[u8]| bench.stage_bundle(bundle, &order(bundle)).map(drop);
    let foreign = TestPublisher::with(&[9], 1);
    bench.refuses(RefusalCode::Signature, |bench| {
        stage(bench, &foreign.bundle(&release))
    });
    let mut two = UpdateBench::updated();
    two.anchor = two
        .anchor
        .with_owner(&[two.publisher.key(), foreign.key()], 2);
    two.refuses(RefusalCode::Threshold, |bench| stage(bench, &bundle));
    let mut none = UpdateBench::updated();
    none.anchor = none.anchor.with_owner(&[], 1);
    none.refuses(RefusalCode::NoKeys, |bench| stage(bench, &bundle));
    let expired = TestRelease {
        expires: NOW - 1,
        ..release.clone()
    };
    bench.refuses(RefusalCode::Expired, |bench| {
        bench.stage(&expired).map(drop)
    });
    bench.refuses(RefusalCode::TrustDamaged, |bench| {
        let known = fs::read(&path).expect("saved, also after a refusal");
        fs::write(&path, "{").expect("writable");
        let refused = bench.stage(&release).map(drop);
        fs::write(&path, known).expect("writable");
        refused
    });
    // Metadata of an earlier release, after a later one was seen.
    let dry = StageOrder {
        dry_run: true,
        ..order(&bundle)
    };
    bench.stage_bundle(&bundle, &dry).expect("a plan");
    let replayed = TestRelease::new("1.3.0", 4);
    bench.refuses(RefusalCode::Rollback, |bench| {
        bench.stage(&replayed).map(drop)
    });
    bench.stage(&release).expect("the release itself is good");
}

#[test]
fn a_version_that_this_machine_may_not_run_is_refused() {
    let bench = UpdateBench::updated();
    let other = TestRelease {
        arch: "pdp11".to_owned(),
        ..TestRelease::new("1.2.0", 2)
    };
    bench.refuses(RefusalCode::OtherMachine, |bench| {
        bench.stage(&other).map(drop)
    });
    let needy = TestRelease {
        needs: vec!["loader-2".to_owned()],
        ..TestRelease::new("1.2.0", 3)
    };
    let bundle = bench.publisher.bundle(&needy);
    for dry_run in [true, false] {
        let order = StageOrder {
            dry_run,
            ..order(&bundle)
        };
        bench.refuses(RefusalCode::UnmetNeeds, |bench| {
            bench.stage_bundle(&bundle, &order).map(drop)
        });
    }
    let old = TestRelease::new("0.9.0", 4);
    bench.refuses(RefusalCode::Downgrade, |bench| bench.stage(&old).map(drop));
    let bundle = bench.publisher.bundle(&old);
    let named = |name: &str| StageOrder {
        downgrade: Some(name.to_owned()),
        ..order(&bundle)
    };
    bench.refuses(RefusalCode::Downgrade, |bench| {
        bench.stage_bundle(&bundle, &named("0.8.0")).map(drop)
    });
    let plan = bench.stage_bundle(&bundle, &named("0.9.0")).expect("named");
    assert_eq!(plan.step, "downgrade");
    let mut trust = bench.trust.load(&bench.anchor).expect("seen");
    trust.raise_floor(Some(&version("1.0.0")));
    bench.trust.save(&trust).expect("written");
    bench.refuses(RefusalCode::BelowFloor, |bench| {
        bench.stage_bundle(&bundle, &named("0.9.0")).map(drop)
    });
    // What was staged before the floor rose does not start either.
    bench.refuses(RefusalCode::BelowFloor, |bench| {
        apply::plan_apply(&mut bench.disk.open(), bench.running, bench.rules(), &ANY).map(drop)
    });
}

/// A stream that panics in the middle of a bundle.
struct PanickingStream<'a>(&'a [u8]);

impl Read for PanickingStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        assert!(!self.0.is_empty(), "a fault of the test");
        self.0.read(buffer)
    }
}

#[test]
fn a_bundle_that_does_not_arrive_as_it_was_signed_is_refused() {
    let bench = UpdateBench::new();
    // Something is staged already, and stays.
    bench.stage(&TestRelease::new("1.0.1", 1)).expect("staged");
    let release = TestRelease::new(NEW, 2);
    let bundle = bench.publisher.bundle(&release);
    let whole = order(&bundle);
    bench.refuses(RefusalCode::TooLarge, |bench| {
        let endless = StageOrder {
            bytes: u64::MAX,
            ..whole.clone()
        };
        bench.stage_bundle(&bundle, &endless).map(drop)
    });
    for cut in [100, 5_000, bundle.len() / 2, bundle.len() - 700] {
        bench.refuses(RefusalCode::Truncated, |bench| {
            bench.stage_bundle(&bundle[..cut], &whole).map(drop)
        });
        let mut stream = framed(&bundle[..cut], 40_000);
        stream.truncate(stream.len() - 4);
        // The node ends, or sends something else.
        bench.refuses(RefusalCode::Truncated, |bench| {
            bench.stage_stream(&bench.disk, &*stream, &whole).map(drop)
        });
        bench.refuses(RefusalCode::Failed, |bench| {
            let stream = PanickingStream(&stream);
            bench.stage_stream(&bench.disk, stream, &whole).map(drop)
        });
        stream.extend(UPDATE_FRAME_ABORT.to_be_bytes());
        bench.refuses(RefusalCode::Aborted, |bench| {
            bench.stage_stream(&bench.disk, &*stream, &whole).map(drop)
        });
    }
    let mut damaged = bundle.clone();
    let at = damaged.len() - 5_000;
    damaged[at] ^= 1;
    bench.refuses(RefusalCode::Hash, |bench| {
        bench.stage_bundle(&damaged, &whole).map(drop)
    });
    bench.refuses(RefusalCode::Malformed, |bench| {
        let junk = vec![b'x'; 4096];
        bench.stage_bundle(&junk, &order(&junk)).map(drop)
    });
    bench
        .stage_bundle(&bundle, &whole)
        .expect("the bundle is good");
}

#[test]
fn a_program_that_is_not_what_its_release_says_is_refused() {
    let bench = UpdateBench::updated();
    let mismatched = TestRelease {
        osrel: "1.3.0".to_owned(),
        ..TestRelease::new("1.2.0", 2)
    };
    let short = TestRelease {
        program: Some(program("1.2.0", 4096, 1)[..9000].to_vec()),
        ..TestRelease::new("1.2.0", 3)
    };
    let junk = TestRelease {
        program: Some(vec![b'x'; 2_000_000]),
        ..TestRelease::new("1.2.0", 4)
    };
    for release in [mismatched, short, junk] {
        bench.refuses(RefusalCode::Malformed, |bench| {
            bench.stage(&release).map(drop)
        });
    }
    bench.stage(&TestRelease::new("1.2.0", 5)).expect("good");
    bench.refuses(RefusalCode::Unpredictable, |bench| {
        measured::programs(&mut bench.disk.open(), BootSlot::A, None, &bench.known).map(drop)
    });
}

#[test]
fn a_disk_that_cannot_be_used_is_refused() {
    let release = TestRelease::new("1.2.0", 2);
    let bench = UpdateBench::updated();
    bench.disk.refuse_after(0);
    bench.refuses(RefusalCode::Disk, |bench| bench.stage(&release).map(drop));

    let bench = UpdateBench::updated();
    bench.disk.put_record(&[b'x'; 1024]);
    bench.refuses(RefusalCode::StateLost, |bench| {
        bench.stage(&release).map(drop)
    });

    let bench = UpdateBench::updated();
    fill(&bench.disk);
    bench.refuses(RefusalCode::Full, |bench| bench.stage(&release).map(drop));
}

#[test]
fn a_damaged_program_that_has_to_stay_is_not_touched() {
    for path in [LOADER.to_owned(), slot_path(BootSlot::A)] {
        let bench = UpdateBench::new();
        break_chain(&bench.disk, &path);
        let before = bench.disk.sectors();
        let refused = bench.stage(&TestRelease::new(NEW, 1)).expect_err("damaged");
        assert_eq!(refused.code, RefusalCode::SlotDamaged, "{}", refused.text);
        assert!(refused.text.contains(&path), "{}", refused.text);
        assert!(bench.disk.sectors() == before);
    }
}

/// Frees the second cluster of a file, in both copies of the table.
fn break_chain(disk: &ModelDisk, path: &str) {
    let volume = disk.volume();
    let first = volume.open_file(path).expect("a file").extents()[0].at;
    let mut esp = volume.into_device();
    let mut boot = [0; SECTOR_BYTES];
    esp.read_at(&mut boot, 0).expect("a sector");
    let reserved = u64::from(u16::from_le_bytes([boot[14], boot[15]]));
    let table = u64::from(u32::from_le_bytes([boot[36], boot[37], boot[38], boot[39]]));
    let data = (reserved + 2 * table) * SECTOR_BYTES as u64;
    // The file's second cluster, of one sector.
    let cluster = (first - data) / SECTOR_BYTES as u64 + 2 + 1;
    for copy in 0..2 {
        let at = (reserved + copy * table) * SECTOR_BYTES as u64 + cluster * 4;
        let begin = at / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        let mut sector = [0; SECTOR_BYTES];
        esp.read_at(&mut sector, begin).expect("a sector");
        let within = (at - begin) as usize;
        sector[within..within + 4].fill(0);
        esp.write_at(&sector, begin).expect("writable");
    }
}

#[test]
fn requests_that_do_not_fit_the_state_are_refused() {
    let bench = UpdateBench::new();
    bench.refuses(RefusalCode::NotStaged, |bench| {
        apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), &ANY).map(drop)
    });
    bench.refuses(RefusalCode::NoPrevious, |bench| {
        apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules()).map(drop)
    });
    bench.refuses(RefusalCode::NotOnTrial, |bench| {
        apply::confirm(&mut bench.disk.open(), BootSlot::A).map(drop)
    });
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    bench.arm(&bench.disk);
    bench.disk.power_on();
    bench.refuses(RefusalCode::OnTrial, |bench| {
        bench.stage(&TestRelease::new("1.2.0", 2)).map(drop)
    });
    bench.refuses(RefusalCode::OnTrial, |bench| {
        apply::plan_apply(&mut bench.disk.open(), BootSlot::B, bench.rules(), &ANY).map(drop)
    });
    // The good slot runs, because the loader could not start the other one.
    bench.refuses(RefusalCode::NotOnTrial, |bench| {
        apply::confirm(&mut bench.disk.open(), BootSlot::A).map(drop)
    });
    let absent = UpdateSystem::absent(&InitLog::default());
    let refused = absent.plan_apply(&ANY).expect_err("no slots");
    assert_eq!(refused.code, RefusalCode::NoSlots);
}

#[test]
fn a_staged_file_that_changed_does_not_go_on_trial() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    let mut changed = bench.disk.file(BootSlot::B).expect("staged");
    changed[500_000] ^= 1;
    verified_programs::put(&bench.disk, BootSlot::B, &changed);
    bench.refuses(RefusalCode::Unverified, |bench| {
        apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), &ANY).map(drop)
    });
}

#[test]
fn a_rollback_returns_to_the_version_before_and_not_below_the_floor() {
    let bench = UpdateBench::updated();
    let mut higher = UpdateBench::updated();
    higher.trust = TrustStore::new(None);
    let mut trust = higher.trust.load(&higher.anchor).expect("seen");
    trust.raise_floor(Some(&version("1.0.5")));
    higher.trust.save(&trust).expect("kept");
    higher.refuses(RefusalCode::BelowFloor, |bench| {
        apply::plan_rollback(&mut bench.disk.open(), BootSlot::B, bench.rules()).map(drop)
    });
    let mut disk = bench.disk.open();
    let plan =
        apply::plan_rollback(&mut disk, BootSlot::B, bench.rules()).expect("a version before");
    let RollbackPlan::Trial(plan) = plan else {
        panic!("the version before goes on trial, not {plan:?}");
    };
    assert_eq!(
        (plan.slot, plan.version.clone()),
        (BootSlot::A, version(OLD))
    );
    apply::arm(&mut disk, &plan, &BootNote::new(plan.slot)).expect("written");
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::A));
    apply::confirm(&mut bench.disk.open(), BootSlot::A).expect("it runs");
    assert_eq!(bench.disk.record().good(), BootSlot::A);
}

#[test]
fn a_version_that_was_not_started_is_taken_back_and_a_trial_is_given_up() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    bench.arm(&bench.disk);
    let mut disk = bench.disk.open();
    let plan = apply::plan_rollback(&mut disk, BootSlot::A, bench.rules()).expect("pending");
    assert_eq!(plan, RollbackPlan::TakenBack);
    assert_eq!(bench.disk.record().phase(), BootPhase::Staged);
    bench.arm(&bench.disk);
    bench.disk.power_on();
    let plan = apply::plan_rollback(&mut disk, BootSlot::B, bench.rules()).expect("on trial");
    let RollbackPlan::GiveUp(record) = plan else {
        panic!("the trial is given up, not {plan:?}");
    };
    disk.write_record(&record).expect("written");
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::A));
}

#[test]
fn a_staged_version_is_taken_back_and_does_not_start() {
    let bench = UpdateBench::new();
    bench.stage(&TestRelease::new(NEW, 1)).expect("staged");
    let mut disk = bench.disk.open();
    let plan = apply::plan_rollback(&mut disk, BootSlot::A, bench.rules()).expect("staged");
    assert_eq!(plan, RollbackPlan::TakenBack);
    assert_eq!(bench.disk.record().phase(), BootPhase::Idle);
    bench.refuses(RefusalCode::NotStaged, |bench| {
        apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), &ANY).map(drop)
    });
    bench
        .stage(&TestRelease::new(NEW, 2))
        .expect("staged again");
}

/// The good version's file is damaged, so the loader started the other one, which an update can still write.
#[test]
fn the_slot_that_runs_takes_over_from_a_good_one_that_does_not_start() {
    let mut bench = UpdateBench::updated();
    bench.running = BootSlot::A;
    bench.version = OLD.to_owned();
    let plan = bench.stage(&TestRelease::new("1.2.0", 2)).expect("staged");
    assert_eq!(plan.from, OLD);
    let record = bench.disk.record();
    assert_eq!(
        (record.good(), record.phase()),
        (BootSlot::A, BootPhase::Staged)
    );
    assert_eq!(bench.disk.power_on().0, Some(BootSlot::A));
}

#[test]
fn a_machine_that_keeps_nothing_remembers_metadata_until_it_restarts() {
    let mut bench = UpdateBench::new();
    bench.trust = TrustStore::new(None);
    bench.stage(&TestRelease::new(NEW, 5)).expect("staged");
    let replayed = TestRelease::new("1.2.0", 4);
    bench.refuses(RefusalCode::Rollback, |bench| {
        bench.stage(&replayed).map(drop)
    });
    let ring = bench.log.ring();
    let said = ring
        .since(0)
        .any(|(_, record)| record.message.contains("is kept in memory"));
    assert!(said);
}
