//! An update to a good version under UEFI and back, by the commands of docs/update.md, and the power fails at any moment
//! of it: the loader then starts a whole program. First each write is cut in its order, and then a disk loses writes that
//! were not flushed, at random moments.
//!
//! Beside the disk that the machine was started from is another one with both boot partitions of an image, to which
//! neither the update nor the way back writes.
//!
//! `ALKNET_SOAK=full` makes the 5,000 cuts that the project promises. `ALKNET_SEED` repeats a campaign.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use alknet_boot_state::BootSlot;
use alknet_fat::RepairReport;
use alknet_image::{ESP_BYTES, ESP_FIRST_LBA, ImageForm, LBA_BYTES, OutputRole};
use alknet_qemu::{DiskRecorder, DiskRecording, MachineKind, VirtioDisk, WrittenPart};
use alknet_tests::tools::{tool, tool_says};
use alknet_tests::{BuiltImageFolder, TestBench, eventually};

use crate::power::{CampaignRng, Evidence, is_full};
use crate::update::administrator::UpdateByPage;
use crate::update::disk::{SlotDiskImage, SlotNotes, slot_path};
use crate::update::good::KEPT;
use crate::update::{FIRST, SECOND, has_token, machine, serving, status};

const PAGE: &str = include_str!("../../../docs/update.md");

/// Cuts of a campaign, and how many of them start a machine.
const CUTS: usize = 50;
const CUTS_FULL: usize = 5000;
const BOOTS: usize = 1;
const BOOTS_FULL: usize = 25;
/// Of so many cuts one is also looked at by dosfstools, and so are the first ones of each kind of repair.
const JUDGED_OF: usize = 10;
const JUDGED_OF_A_KIND: usize = 2;
/// Of so many writes to the boot partition the short form cuts one, and the full one each.
const CUT_OF: usize = 4;
/// Where the last byte that a loader reads ends.
const LOADERS_END: u64 = ESP_FIRST_LBA * LBA_BYTES + ESP_BYTES;

/// The recording of an update from its first byte to the confirmation.
struct UpdateRecording {
    bench: TestBench,
    recording: DiskRecording,
    /// Moments before the update began.
    begun: usize,
    config: String,
    identity: String,
    programs: [Vec<u8>; 2],
    notes: SlotNotes,
}

/// What a repair of the boot partition had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RepairKind {
    dropped_names: bool,
    dropped_files: bool,
    cut_chains: bool,
    freed_clusters: bool,
    copied_entries: bool,
    wrote_info: bool,
    was_dirty: bool,
}

impl RepairKind {
    fn from_report(report: &RepairReport) -> Self {
        Self {
            dropped_names: !report.dropped_names.is_empty(),
            dropped_files: !report.dropped_files.is_empty(),
            cut_chains: !report.cut_chains.is_empty(),
            freed_clusters: report.freed_clusters > 0,
            copied_entries: report.copied_entries > 0,
            wrote_info: report.wrote_info,
            was_dirty: report.was_dirty,
        }
    }
}

#[test]
fn update_good_and_back_under_uefi_and_its_cuts_leave_a_whole_program() {
    let session = UpdateRecording::record();
    session.cut_each_write();
    let mut dice = CampaignRng::from_environment();
    let (cuts, boots) = if is_full() {
        (CUTS_FULL, BOOTS_FULL)
    } else {
        (CUTS, BOOTS)
    };
    let moments = session.recording.len() - session.begun;
    // Every second cut is beside a write of the record or the note: they are few, and decide most.
    let deciding = session.recording.writes_in(0..ESP_FIRST_LBA * LBA_BYTES);
    let deciding: Vec<_> = deciding
        .into_iter()
        .filter(|at| *at >= session.begun)
        .collect();
    assert!(deciding.len() > 4, "{deciding:?}");
    let path = session.bench.path().join("cut.raw");
    let image = Evidence(path.clone());
    let mut chosen = [0; 2];
    let mut repairs = BTreeMap::new();
    for number in 0..cuts {
        let moment = match number % 2 {
            0 => session.begun + dice.below(moments + 1),
            _ => deciding[dice.below(deciding.len())] + dice.below(3),
        };
        let (moment, seed) = (moment.min(session.recording.len()), dice.next());
        let cut = session.recording.cut(moment, seed, &image.0);
        let cut = cut.unwrap_or_else(|error| panic!("{error}"));
        eprintln!(
            "cut {number}: moment {moment} of {}, seed {seed}: {cut:?}",
            session.recording.len()
        );
        let disk = SlotDiskImage::new(&path);
        let (slot, repair) = session.has_whole_program(&disk);
        let of_kind: &mut usize = repairs.entry(repair).or_default();
        *of_kind += 1;
        if number % JUDGED_OF == 0 || *of_kind <= JUDGED_OF_A_KIND {
            let judged = session.judge(&disk);
            assert!(judged.status.success(), "{judged:?}");
        }
        chosen[usize::from(slot == BootSlot::B)] += 1;
        if number < boots {
            session.serves(moment, seed, &path, slot);
        }
    }
    eprintln!("repairs: {repairs:?}");
    eprintln!(
        "the loader chose slot a {} times and slot b {} times",
        chosen[0], chosen[1]
    );
    assert!(chosen.iter().all(|count| *count > 0), "{chosen:?}");
}

/// Another disk with the image and GUIDs of its own, as one that served a machine has, but without the data partition:
/// with two of them a machine serves nothing (`two_disks.rs`).
fn disk_without_data(bench: &TestBench) -> PathBuf {
    let image = BuiltImageFolder::get().file(ImageForm::Raw, OutputRole::Disk);
    let path = bench.path().join("other.raw");
    alknet_qemu::copy(&image, &path).unwrap_or_else(|error| panic!("{error}"));
    let name = path.display().to_string();
    tool_says("sgdisk", &["-d", "3", "-G", &name]);
    path
}

fn sum(disk: &Path) -> u64 {
    alknet_qemu::checksum(disk).unwrap_or_else(|error| panic!("{error}"))
}

impl UpdateRecording {
    /// Records an update to a good version, and then lets the machine go back.
    fn record() -> Self {
        let bench = TestBench::new();
        let recorder = DiskRecorder::serve(&bench.raw()).unwrap_or_else(|error| panic!("{error}"));
        let other = disk_without_data(&bench);
        let before = sum(&other);
        let mut updating = UpdateByPage::start(&bench, PAGE, |config| {
            let disk = VirtioDisk::recorded(&recorder);
            machine(MachineKind::Q35Uefi, disk, config).disk(VirtioDisk::file(&other))
        });
        let begun = recorder.recording().len();
        updating.updates();
        let recording = recorder.recording();
        // The recorder leaves the file of the disk as it was.
        let path = bench.path().join("updated.raw");
        let whole = recording.cut(recording.len(), 0, &path);
        whole.unwrap_or_else(|error| panic!("{error}"));
        updating.good.is_on(&SlotDiskImage::new(path));
        updating.looks();
        updating.goes_back();
        let config = updating.config.clone();
        let identity = updating.node.identity().to_owned();
        let programs = updating.good.programs.clone();
        drop(updating);
        assert_eq!(sum(&other), before, "the other disk was written to");
        Self {
            recording,
            begun,
            config,
            identity,
            notes: SlotNotes::new([&programs[0], &programs[1]]),
            programs,
            bench,
        }
    }

    /// Cuts each write to what a loader reads, before it, within it and after it. The writes before it are all there, in
    /// their order. Writes of the record and the note are all cut, also in the short form.
    fn cut_each_write(&self) {
        let path = self.bench.path().join("each.raw");
        let image = Evidence(path.clone());
        let of_update = |places| {
            let writes = self.recording.writes_in(places).into_iter();
            writes.filter(|at| *at >= self.begun)
        };
        let deciding: Vec<_> = of_update(0..ESP_FIRST_LBA * LBA_BYTES).collect();
        let every = if is_full() { 1 } else { CUT_OF };
        let writes: Vec<_> = of_update(0..LOADERS_END).collect();
        let chosen = writes.iter().enumerate();
        let chosen =
            chosen.filter(|(count, at)| count.is_multiple_of(every) || deciding.contains(at));
        let chosen: Vec<_> = chosen.map(|(_, at)| *at).collect();
        let disk = SlotDiskImage::new(&path);
        let mut starts = [0; 2];
        let mut halves = 0;
        let cuts = self.recording.cut_each(&chosen, &image.0, &mut |at, part| {
            let slot = self.chosen_program(&disk, &format!("moment {at}, {part:?}"));
            starts[usize::from(slot == BootSlot::B)] += 1;
            halves += usize::from(part == WrittenPart::Half);
        });
        let cuts = cuts.unwrap_or_else(|error| panic!("{error}"));
        let (all, cut) = (writes.len(), chosen.len());
        eprintln!("{cut} of {all} writes cut {cuts} times, {halves} within; slots {starts:?}");
        // The program alone is written by more than a hundred requests.
        assert!(
            all > 100 && halves * every > 100,
            "{all} writes, {halves} halves"
        );
        assert!(starts.iter().all(|count| *count > 0), "{starts:?}");
    }

    /// The slot that the loader starts, which has a whole program, as the one has to which a trial falls back. `when`
    /// names the cut.
    fn chosen_program(&self, disk: &SlotDiskImage, when: &str) -> BootSlot {
        // A sector is written whole or not at all, so the record is always one.
        let record = disk.record();
        let record = record.unwrap_or_else(|error| panic!("{when}: {error}"));
        let slot = disk.chosen();
        let slot = slot.unwrap_or_else(|| panic!("{when}: no program"));
        let mut needed = vec![slot, record.good()];
        needed.dedup();
        for slot in needed {
            self.assert_whole(disk, slot, when);
        }
        slot
    }

    fn assert_whole(&self, disk: &SlotDiskImage, slot: BootSlot, when: &str) {
        let is_known = self.programs.iter().any(|program| {
            let has_it = disk.has_program(slot, program);
            has_it.unwrap_or_else(|| panic!("{when}: no {}", slot_path(slot)))
        });
        assert!(is_known, "{when}: slot {slot} has other bytes");
    }

    /// Checks that the loader starts a whole program, before the machine repairs its boot partition and after it.
    /// Returns its slot, and what was repaired.
    fn has_whole_program(&self, disk: &SlotDiskImage) -> (BootSlot, RepairKind) {
        let slot = self.chosen_program(disk, "before the repair");
        let report = disk.repair(slot, &self.notes);
        assert!(report.left.findings.is_empty(), "{report:?}");
        assert_eq!(disk.chosen(), Some(slot));
        self.assert_whole(disk, slot, "after the repair");
        (slot, RepairKind::from_report(&report))
    }

    /// What dosfstools says of the boot partition.
    fn judge(&self, disk: &SlotDiskImage) -> Output {
        let partition = self.bench.path().join("boot.fat");
        disk.copy_partition(&partition);
        tool("fsck.vfat", &["-n", &partition.display().to_string()])
    }

    /// Starts a machine from the disk of a cut, as the cut left it. The loader has to start the slot that the model of it
    /// chose.
    fn serves(&self, moment: usize, seed: u64, path: &Path, slot: BootSlot) {
        let cut = self.recording.cut(moment, seed, path);
        cut.unwrap_or_else(|error| panic!("{error}"));
        let vm = machine(MachineKind::Q35Uefi, VirtioDisk::file(path), &self.config);
        let node = serving(&self.bench, vm);
        assert_eq!(node.identity(), self.identity);
        has_token(&node, KEPT);
        let status = eventually("PID 1 has read the boot slots", || {
            let status = status(&node);
            (status["state"] != "unreadable").then_some(status)
        });
        let state = status["state"].as_str().unwrap_or_default();
        // Only the second version goes on trial, and it runs from then on. Its start counts a try, so it is not pending.
        let (version, states) = match slot {
            BootSlot::A => (FIRST, ["idle", "staged"]),
            BootSlot::B => (SECOND, ["trial", "good"]),
        };
        assert!(states.contains(&state), "{status:#}");
        assert_eq!(status["version"], version, "{status:#}");
        assert_eq!(
            status["slot"],
            slot.letter(),
            "moment {moment}, seed {seed}: {status:#}"
        );
        // A version on trial leaves the partition as it is.
        if state != "trial" {
            let disk = SlotDiskImage::new(path);
            eventually("the start repairs the boot partition", || {
                self.judge(&disk).status.success().then_some(())
            });
        }
    }
}
