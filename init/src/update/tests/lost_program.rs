//! A disk that loses the new program, disks that refuse writes, and senders that give a bundle up: the other slot keeps the
//! file that it had.

use std::os::unix::fs::MetadataExt;

use alknet_tpm::predict::MeasuredImage;

use super::*;

/// The notes on the data disk about the programs.
fn notes(bench: &UpdateBench) -> (known_programs::KnownPrograms, Option<StagedRelease>) {
    let staged = StagedRelease::load(bench.folder.path());
    (bench.known.load(), staged)
}

/// A machine whose other slot has no program, one that is staged, or the version before.
fn benches() -> [UpdateBench; 3] {
    let staged = UpdateBench::new();
    staged.stage(&TestRelease::new("1.0.1", 1)).expect("staged");
    [UpdateBench::new(), staged, UpdateBench::updated()]
}

fn newer() -> TestRelease {
    TestRelease::new("1.2.0", 2)
}

/// Whether the log of PID 1 has this text.
fn says(bench: &UpdateBench, text: &str) -> bool {
    let ring = bench.log.ring();
    ring.since(0)
        .any(|(_, record)| record.message.contains(text))
}

/// Asserts that the disk of each machine, which from now on does not keep what is written to some sectors, leaves the
/// other slot with its file and its notes.
fn loses(part: &str, lost: impl Fn(&ModelDisk) -> std::ops::Range<u64>) {
    for bench in benches() {
        bench.disk.forget_writes(lost(&bench.disk));
        let before = notes(&bench);
        bench.refuses(RefusalCode::Disk, |bench| {
            let staged = bench.stage(&newer()).map(drop);
            let refused = staged.as_ref().expect_err(part);
            assert!(refused.text.contains("did not keep"), "{}", refused.text);
            staged
        });
        assert!(notes(&bench) == before, "{part}: the notes are others");
        // A program that was staged before still starts.
        if bench.disk.record().phase() == BootPhase::Staged {
            bench.arm(&bench.disk);
            let (slot, started) = bench.disk.power_on();
            assert_eq!(slot, Some(BootSlot::B), "{part}");
            assert!(started == Some(TestRelease::new("1.0.1", 1).content()));
            continue;
        }
        bench.disk.forget_writes(0..0);
        bench.stage(&newer()).expect("the disk keeps all again");
        let written = bench.disk.file(bench.running.other());
        assert!(written == Some(newer().content()), "{part}");
        let report = bench.disk.volume().check(&[]).expect("a volume");
        assert!(report.findings.is_empty(), "{part}: {report:?}");
    }
}

/// The disk says that it has written the program, and has not.
#[test]
fn a_disk_that_loses_bytes_of_the_program_leaves_the_slot_as_it_was() {
    loses("the program", ModelDisk::behind_programs);
}

#[test]
fn a_disk_that_loses_the_chain_or_the_entry_leaves_the_slot_as_it_was() {
    loses("the chain", ModelDisk::tables);
    loses("the entry", ModelDisk::folder_of_programs);
}

/// A disk that loses the chain of the new file once: after each write of an update.
#[test]
fn only_a_loss_after_the_switch_leaves_the_slot_empty() {
    let earlier = TestRelease::new("1.0.1", 1);
    let (mut kept, mut emptied) = (0, 0);
    for writes in 1.. {
        let bench = UpdateBench::new();
        bench.stage(&earlier).expect("staged");
        let lost = bench.disk.tables_behind(BootSlot::B);
        bench.disk.lose_after(writes, lost);
        let staged = bench.stage(&newer());
        if bench.disk.is_loss_due() {
            break;
        }
        let (file, phase) = (bench.disk.file(BootSlot::B), bench.disk.record().phase());
        match staged {
            // The chain was not written yet, or was lost after the version was staged.
            Ok(_) => assert!(
                file.is_none() || file == Some(newer().content()),
                "{writes}"
            ),
            Err(refused) => {
                assert_eq!(refused.code, RefusalCode::Disk, "{writes}");
                if refused.text.contains("is empty now") {
                    assert!(file.is_none() && phase == BootPhase::Idle, "{writes}");
                    emptied += 1;
                } else {
                    let is_earlier = file == Some(earlier.content());
                    assert!(is_earlier && phase == BootPhase::Staged, "{writes}");
                    kept += 1;
                }
            }
        }
        assert_eq!(bench.disk.power_on().0, Some(BootSlot::A), "{writes}");
    }
    assert!(kept > 0 && emptied > 0, "{kept} kept, {emptied} emptied");
}

/// An administrator cancels the update at each of its writes, also while PID 1 reads the program back.
#[test]
fn a_bundle_that_is_given_up_leaves_the_slot_as_it_was() {
    for bench in benches() {
        let bundle = bench.publisher.bundle(&newer());
        let (stream, order) = (framed(&bundle, 40_000), order(&bundle));
        let (before, noted) = (bench.state(), notes(&bench));
        let mut written = None;
        for writes in 1.. {
            let progress = Arc::new(StagingProgress::default());
            bench.disk.give_up_after(writes, &progress);
            let staged = bench.staged_with(&bench.disk, &*stream, &order, Arc::clone(&progress));
            let Err(refusal) = staged else { break };
            assert_eq!(refusal.code, RefusalCode::Aborted, "{writes} writes");
            assert!(bench.state() == before, "{writes} writes");
            assert!(notes(&bench) == noted, "{writes} writes");
            written = progress.written();
        }
        let bytes = newer().content().len() as u64;
        assert_eq!(written, Some((bytes, bytes)), "it was read back");
        let staged = bench.disk.file(bench.running.other());
        assert!(staged == Some(newer().content()));
    }
}

/// An administrator cancels the update when the file of the slot is the new one already, and the disk loses that file.
#[test]
fn a_bundle_that_is_given_up_too_late_does_not_hide_that_the_slot_is_empty() {
    let (mut kept, mut emptied) = (0, 0);
    for writes in 1.. {
        let bench = UpdateBench::new();
        bench.stage(&TestRelease::new("1.0.1", 1)).expect("staged");
        let bundle = bench.publisher.bundle(&newer());
        let (stream, order) = (framed(&bundle, 40_000), order(&bundle));
        let lost = bench.disk.tables_behind(BootSlot::B);
        let progress = Arc::new(StagingProgress::default());
        bench.disk.lose_after(writes, lost);
        bench.disk.give_up_after(writes, &progress);
        let staged = bench.staged_with(&bench.disk, &*stream, &order, progress);
        if bench.disk.is_loss_due() {
            break;
        }
        match (staged, bench.disk.file(BootSlot::B)) {
            // The last writes are too late for both.
            (Ok(_), _) => {}
            (Err(_), Some(_)) => kept += 1,
            (Err(refused), None) => {
                assert_eq!(refused.code, RefusalCode::Disk, "{writes}: {refused}");
                for part in ["is empty now", "nor the one from before", "send the bundle"] {
                    assert!(refused.text.contains(part), "{writes}: {refused}");
                }
                assert_eq!(bench.disk.record().phase(), BootPhase::Idle, "{writes}");
                emptied += 1;
            }
        }
    }
    assert!(kept > 0 && emptied > 0, "{kept} kept, {emptied} emptied");
}

/// A note that the data disk refuses, after any write of an update that fails: what the log says, and what the machine
/// does about the version that was staged before.
struct RefusedNote {
    name: &'static str,
    text: &'static str,
    phase: BootPhase,
    code: RefusalCode,
}

impl RefusedNote {
    /// Stages a version over an earlier one, on a disk that loses the entry of the new file, so that the refusal comes
    /// after the notes were written. Returns the machine and what lies in the way of the note, `None` if the update has
    /// fewer writes.
    fn refused_after(&self, writes: usize) -> Option<(UpdateBench, std::path::PathBuf)> {
        let bench = UpdateBench::new();
        bench.stage(&TestRelease::new("1.0.1", 1)).expect("staged");
        let entry = bench.disk.folder_of_programs();
        bench.disk.forget_writes(entry);
        let obstacle = bench.folder.path().join(format!(".{}.new", self.name));
        bench.disk.obstruct_after(writes, &obstacle);
        let refused = bench.stage(&newer()).expect_err("the entry is lost");
        assert_eq!(refused.code, RefusalCode::Disk, "{writes}: {refused}");
        let kept = bench.disk.file(BootSlot::B);
        assert!(kept == Some(TestRelease::new("1.0.1", 1).content()));
        obstacle.exists().then_some((bench, obstacle))
    }

    /// Whether the version that was staged before may start, and why not.
    fn refusal_of_start(bench: &UpdateBench) -> Option<RefusalCode> {
        let mut disk = bench.disk.open();
        let plan = apply::plan_apply(&mut disk, bench.running, bench.rules(), &ANY);
        plan.err().map(|refused| refused.code)
    }

    fn check(&self) {
        let (mut restored, mut lost) = (0, 0);
        for writes in 1.. {
            let Some((bench, obstacle)) = self.refused_after(writes) else {
                break;
            };
            let phase = bench.disk.record().phase();
            let refusal = Self::refusal_of_start(&bench);
            if says(&bench, self.text) {
                assert_eq!(phase, self.phase, "{}: {writes}", self.name);
                assert_eq!(refusal, Some(self.code), "{}: {writes}", self.name);
                assert_eq!(bench.disk.power_on().0, Some(BootSlot::A));
                // Both disks keep all again.
                fs::remove_dir(&obstacle).expect("it is ours");
                bench.disk.forget_writes(0..0);
                bench.stage(&newer()).expect("nothing is in its way");
                lost += 1;
            } else {
                assert_eq!(phase, BootPhase::Staged, "{}: {writes}", self.name);
                assert_eq!(refusal, None, "{}: {writes}", self.name);
                restored += 1;
            }
        }
        let name = self.name;
        assert!(restored > 0 && lost > 0, "{name}: {restored}, {lost}");
    }
}

/// A version does not start by notes that are not those from before: neither the new one, whose program the slot does
/// not have, nor the earlier one in its place.
#[test]
fn notes_that_cannot_be_restored_leave_a_slot_that_starts_nothing() {
    let staged = RefusedNote {
        name: "staged.json",
        text: "what is noted of the staged version is not as before",
        phase: BootPhase::Idle,
        code: RefusalCode::NotStaged,
    };
    let programs = RefusedNote {
        name: "programs.json",
        text: "what is known of the programs is not as before",
        phase: BootPhase::Staged,
        code: RefusalCode::Unverified,
    };
    for note in [staged, programs] {
        note.check();
    }
}

/// A data disk that is full has no room to restore a note either, so it has to refuse before a note is replaced.
#[test]
fn a_data_disk_that_refuses_one_new_note_keeps_both_earlier_ones() {
    let names = ["staged.json", "programs.json"];
    for refused in names {
        let bench = UpdateBench::new();
        bench.stage(&TestRelease::new("1.0.1", 1)).expect("staged");
        let before = notes(&bench);
        let paths = names.map(|name| bench.folder.path().join(name));
        // As long as they are open, no other file gets their inode numbers.
        let earlier = paths
            .each_ref()
            .map(|path| fs::File::open(path).expect("it is noted"));
        let obstacle = bench.folder.path().join(format!(".{refused}.new"));
        fs::create_dir(&obstacle).expect("a new folder");
        bench.refuses(RefusalCode::Disk, |bench| {
            let staged = bench.stage(&newer()).map(drop);
            let refusal = staged.as_ref().expect_err(refused);
            assert!(refusal.text.contains("free space"), "{}", refusal.text);
            staged
        });
        assert!(notes(&bench) == before, "{refused}: the notes are others");
        for (path, earlier) in paths.iter().zip(&earlier) {
            let about = [fs::metadata(path), earlier.metadata()];
            let [found, wanted] = about.map(|about| about.expect("a file").ino());
            assert_eq!(found, wanted, "{refused}: {} is new", path.display());
        }
        assert_eq!(RefusedNote::refusal_of_start(&bench), None, "{refused}");
        fs::remove_dir(&obstacle).expect("it is ours");
        bench.stage(&newer()).expect("nothing is in its way");
    }
}

/// The slot has the program already, so staging it needs only the notes and the record, and the disk refuses the record.
#[test]
fn a_disk_that_refuses_the_record_of_a_program_in_its_slot_leaves_the_notes_as_they_were() {
    let bench = UpdateBench::new();
    let plan = bench.stage(&newer()).expect("staged");
    apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules()).expect("staged");
    // So that both notes differ from those that staging writes.
    let image = MeasuredImage::from_digests([[1; 32]; 3]);
    bench.known.note_measured(BootSlot::B, &plan.sha256, &image);
    StagedRelease::remove(bench.folder.path()).expect("it was staged");
    let before = notes(&bench);
    bench.disk.refuse_after(0);
    bench.refuses(RefusalCode::Disk, |bench| bench.stage(&newer()).map(drop));
    // The refusal was that of the record.
    assert!(says(&bench, "the boot state record is not as before"));
    assert!(notes(&bench) == before, "the notes are others");
    bench.disk.refuse_after(usize::MAX);
    bench.stage(&newer()).expect("the disk takes writes again");
    assert_eq!(bench.disk.record().phase(), BootPhase::Staged);
    assert!(notes(&bench) != before, "nothing was noted");
}

/// The attack: a disk takes the record of a program that its slot has already, reports that it did not, and refuses the
/// earlier record, or loses it in a power cut. With the notes from before the version would be confirmed without its floor.
#[test]
fn a_record_that_the_disk_took_and_refused_is_not_without_its_floor() {
    const FLOOR: &str = "1.2.0";

    let release = TestRelease {
        floor: Some(FLOOR.to_owned()),
        ..newer()
    };
    for writes in [1, usize::MAX] {
        let mut bench = UpdateBench::new();
        bench.stage(&release).expect("staged");
        apply::plan_rollback(&mut bench.disk.open(), BootSlot::A, bench.rules()).expect("staged");
        StagedRelease::remove(bench.folder.path()).expect("it was staged");
        let before = bench.disk.record();
        let staged = before.vacate().and_then(|vacated| vacated.stage());
        let staged = staged.expect("it is idle");
        bench.disk.refuse_after(writes);
        bench.disk.refuse_flushes(true);
        let refused = bench.stage(&release).expect_err("no flush succeeds");
        assert_eq!(refused.code, RefusalCode::Disk, "{}", refused.text);
        assert!(says(&bench, "the boot state record is not as before"));
        let left = if writes == 1 { staged } else { before };
        assert_eq!(bench.disk.record(), left, "{writes} writes");
        // The disk is well again. It kept the first of the writes.
        bench.disk.refuse_after(usize::MAX);
        bench.disk.refuse_flushes(false);
        bench.disk.put_record(&staged.encode());
        bench.arm(&bench.disk);
        assert_eq!(bench.disk.power_on().0, Some(BootSlot::B));
        apply::confirm(&mut bench.disk.open(), BootSlot::B).expect("it runs");
        bench.running = BootSlot::B;
        bench.version = FLOOR.to_owned();
        let floor = bench.rules().floor(BootSlot::B);
        assert_eq!(floor, Ok(Some(version(FLOOR))), "{writes} writes");
        bench.refuses(RefusalCode::BelowFloor, |bench| {
            apply::plan_rollback(&mut bench.disk.open(), BootSlot::B, bench.rules()).map(drop)
        });
    }
}

/// The release of a staged version is lost on the data disk, or that of another program is there.
#[test]
fn a_staged_version_without_its_release_does_not_start_and_is_staged_again() {
    let bench = UpdateBench::new();
    let plan = bench.stage(&newer()).expect("staged");
    let folder = bench.folder.path();
    let noted = StagedRelease::load(folder).expect("noted");
    let of = |slot, version_text, sha256: &str| {
        StagedRelease::new(
            slot,
            version(version_text),
            plan.bytes,
            sha256.to_owned(),
            None,
        )
    };
    for other in [
        None,
        Some(of(BootSlot::A, "1.2.0", &plan.sha256)),
        Some(of(BootSlot::B, NEW, &plan.sha256)),
        Some(of(BootSlot::B, "1.2.0", &"00".repeat(32))),
    ] {
        StagedRelease::remove(folder).expect("writable");
        if let Some(other) = &other {
            other.save(folder).expect("writable");
        }
        bench.refuses(RefusalCode::Unverified, |bench| {
            apply::plan_apply(&mut bench.disk.open(), BootSlot::A, bench.rules(), &ANY).map(drop)
        });
        bench.disk.forget_steps();
        assert_eq!(bench.stage(&newer()), Ok(plan.clone()));
        assert!(
            !bench.disk.is_written(),
            "{other:?}: only the note was lost"
        );
        assert_eq!(StagedRelease::load(folder), Some(noted.clone()));
        assert_eq!(RefusedNote::refusal_of_start(&bench), None, "{other:?}");
    }
}
