//! An update to a good version under UEFI and back, by the commands of docs/update.md, and the power fails at any moment
//! of it: the loader then starts a whole program. First each write is cut in its order, and then a disk loses writes that
//! were not flushed, at random moments.
//!
//! Beside the disk that the machine was started from is another one with both boot partitions of an image, to which
//! neither the update nor the way back writes.
//!
//! `ALKNET_SOAK=full` makes the 5,000 cuts that the project promises, and cuts the writes of the update to the data
//! partition as well. It also cuts an update under a BIOS, each write of it and at random moments, and one of a machine
//! whose vault the TPM opens, at random moments. Of the random cuts the first ones start a machine, and then the first one
//! of each kind that has not started one, up to a maximum. The kind is the phase of the record, the slot that the loader
//! chooses and what the repair has to do. The summary names the kinds that started no machine. `ALKNET_SEED` repeats a
//! campaign.

mod chip;
mod data;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot};
use alknet_fat::RepairReport;
use alknet_image::{ESP_BYTES, ESP_FIRST_LBA, ImageForm, LBA_BYTES, OutputRole};
use alknet_qemu::{DiskRecorder, DiskRecording, MachineKind, VirtioDisk, WrittenPart};
use alknet_test_support::skip;
use alknet_tests::tools::{tool, tool_says};
use alknet_tests::{BootVariant, BuiltImageFolder, MachineNode, TestBench, eventually};
use serde_json::{Value, json};

use crate::power::{CampaignRng, Evidence, is_full};
use crate::tpm::{TPM_ALONE, set_up};
use crate::update::administrator::UpdateByPage;
use crate::update::disk::{SlotDiskImage, SlotNotes, slot_path};
use crate::update::good::{GoodUpdate, KEPT};
use crate::update::{
    FIRST, LIMIT, ONLY_CAMPAIGN, SECOND, config, has_token, machine, opening_slot, serving, stands,
    status, update,
};
use chip::ChipRecorder;

const PAGE: &str = include_str!("../../../docs/update.md");

/// Cuts of a campaign, how many of the first ones start a machine, and how many cuts do at most.
const CUTS: usize = 50;
const CUTS_FULL: usize = 5000;
const BOOTS: usize = 1;
const BOOTS_FULL: usize = 25;
const BOOTS_FULL_MAX: usize = 40;
/// The same of an update under a BIOS, and of one of a machine whose vault the TPM opens.
const CUTS_BESIDE: usize = 500;
const BOOTS_BESIDE: usize = 5;
const BOOTS_BESIDE_MAX: usize = 15;
/// Of so many cuts one is also looked at by dosfstools, and so are the first ones of each kind of repair. A look takes a
/// tenth of a second, most of it for the copy of the partition, so those of the full form take about five minutes.
const JUDGED_OF: usize = 10;
const JUDGED_OF_FULL: usize = 2;
const JUDGED_OF_A_KIND: usize = 2;
/// Of so many writes to the boot partition the short form cuts one, and the full one each.
const CUT_OF: usize = 4;
/// A version on trial is confirmed after so long: the minute of its gate, of an emulated machine beside others.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(600);
/// Where the last byte that a loader reads ends.
const LOADERS_END: u64 = ESP_FIRST_LBA * LBA_BYTES + ESP_BYTES;

/// How many cuts at random moments are made.
#[derive(Clone, Copy, Debug)]
struct CutCounts {
    cuts: usize,
    /// So many of the first cuts start a machine.
    boots: usize,
    /// Later cuts start one if they are the first of their kind, until so many have.
    boots_max: usize,
    judged_of: usize,
}

impl CutCounts {
    const SHORT: Self = Self {
        cuts: CUTS,
        boots: BOOTS,
        boots_max: BOOTS,
        judged_of: JUDGED_OF,
    };
    const FULL: Self = Self {
        cuts: CUTS_FULL,
        boots: BOOTS_FULL,
        boots_max: BOOTS_FULL_MAX,
        judged_of: JUDGED_OF_FULL,
    };
    const BESIDE: Self = Self {
        cuts: CUTS_BESIDE,
        boots: BOOTS_BESIDE,
        boots_max: BOOTS_BESIDE_MAX,
        judged_of: JUDGED_OF_FULL,
    };
}

/// The recording of an update from its first byte to the confirmation.
struct UpdateRecording {
    bench: TestBench,
    kind: MachineKind,
    recording: DiskRecording,
    /// Moments before the update began.
    begun: usize,
    config: String,
    identity: String,
    programs: [Vec<u8>; 2],
    notes: SlotNotes,
    /// The TPM of a machine whose vault it opens.
    chip: Option<Arc<ChipRecorder>>,
}

/// What a repair of the boot partition had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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

/// What decides which way a machine takes when it starts after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CutKind {
    /// The phase of the record, and the letter of the slot that the loader chooses.
    phase: &'static str,
    slot: &'static str,
    repair: RepairKind,
}

impl fmt::Display for CutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            phase,
            slot,
            repair,
        } = self;
        write!(f, "{phase} with slot {slot}")?;
        let steps = [
            (repair.dropped_names, "names dropped"),
            (repair.dropped_files, "files dropped"),
            (repair.cut_chains, "chains cut"),
            (repair.freed_clusters, "clusters freed"),
            (repair.copied_entries, "entries copied"),
            (repair.wrote_info, "counters written"),
            (repair.was_dirty, "mark removed"),
        ];
        let mut done = steps.into_iter().filter(|(is_done, _)| *is_done);
        done.try_for_each(|(_, step)| write!(f, ", {step}"))
    }
}

/// Which kinds of cuts there were, and which of them started a machine.
#[derive(Debug)]
struct BootedCuts {
    counts: CutCounts,
    boots: usize,
    has_booted: BTreeMap<CutKind, bool>,
}

impl BootedCuts {
    const fn new(counts: CutCounts) -> Self {
        Self {
            counts,
            boots: 0,
            has_booted: BTreeMap::new(),
        }
    }

    /// Whether the cut of this number and this kind starts a machine, which is then counted.
    fn take(&mut self, number: usize, kind: CutKind) -> bool {
        let has_booted = self.has_booted.entry(kind).or_default();
        let is_new = !*has_booted && self.boots < self.counts.boots_max;
        let takes = number < self.counts.boots || is_new;
        *has_booted |= takes;
        self.boots += usize::from(takes);
        takes
    }

    /// The kinds of which no cut started a machine.
    fn left(&self) -> Vec<CutKind> {
        let kinds = self.has_booted.iter();
        let left = kinds.filter(|(_, has_booted)| !**has_booted);
        left.map(|(kind, _)| *kind).collect()
    }

    /// For the summary of a campaign: how many of all kinds of these cuts started a machine, and the others.
    fn figure(&self, cuts: &str) -> String {
        let left: Vec<_> = self.left().iter().map(ToString::to_string).collect();
        let all = self.has_booted.len();
        let names = match left.is_empty() {
            true => "no kind".to_owned(),
            false => left.join("; "),
        };
        format!(
            "{cuts}: {} started a machine, of {} of {all} kinds; without a start: {names}",
            self.boots,
            all - left.len()
        )
    }
}

#[test]
fn update_cuts_of_each_kind_start_a_machine_up_to_the_maximum() {
    let mut booted = BootedCuts::new(CutCounts {
        boots: 2,
        boots_max: 3,
        ..CutCounts::SHORT
    });
    let kind = |phase| CutKind {
        phase,
        slot: "a",
        repair: RepairKind::default(),
    };
    let phases = ["idle", "idle", "idle", "staged", "staged", "trial"];
    let cuts = phases.into_iter().enumerate();
    let taken: Vec<_> = cuts
        .map(|(number, phase)| booted.take(number, kind(phase)))
        .collect();
    assert_eq!(taken, [true, true, false, true, false, false]);
    assert_eq!((booted.boots, booted.left()), (3, vec![kind("trial")]));
    assert_eq!(
        booted.figure("6 cuts"),
        "6 cuts: 3 started a machine, of 2 of 3 kinds; without a start: trial with slot a"
    );
}

#[test]
fn update_good_and_back_under_uefi_and_its_cuts_leave_a_whole_program() {
    let session = UpdateRecording::record_page();
    session.cut_each_write();
    let counts = if is_full() {
        session.cut_each_data_write();
        CutCounts::FULL
    } else {
        CutCounts::SHORT
    };
    session.cut_at_random(counts);
}

/// GRUB starts the slots and writes the record, both sectors of it. Each write is cut before it, within it and after it,
/// as under UEFI.
#[test]
fn update_under_a_bios_and_its_cuts_leave_a_whole_program() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    let bench = TestBench::new();
    let config = config(&bench, &GoodUpdate::keys());
    let session = UpdateRecording::record(bench, MachineKind::Q35, config, VaultOpening::None);
    session.cut_each_write();
    session.cut_at_random(CutCounts::BESIDE);
}

/// The machine adds a slot of the TPM for the next program before it starts it, and removes the one of the program before
/// when the next one is confirmed. After each cut the TPM opens the vault without a person.
#[test]
fn update_of_a_sealed_machine_and_its_cuts_leave_a_vault_that_opens() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    // The same machine as in `update_sealed.rs`, so that it is set up once.
    let configured = format!("{TPM_ALONE}\n{}", GoodUpdate::keys().config());
    let (bench, identity) = set_up(&configured);
    // A sealed machine takes no other document, and notes that it got one.
    let first = bench.machine(BootVariant::UefiRaw).configured(&configured);
    let config = first.config_text().to_owned();
    let session = UpdateRecording::record(bench, MachineKind::Q35Uefi, config, VaultOpening::Tpm);
    assert_eq!(session.identity, identity);
    session.cut_at_random(CutCounts::BESIDE);
}

/// What opens the vault of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VaultOpening {
    /// It has none.
    None,
    Tpm,
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
    /// Records an update to a good version by the commands of docs/update.md under UEFI, and then lets the machine go
    /// back.
    fn record_page() -> Self {
        let bench = TestBench::new();
        let recorder = DiskRecorder::serve(&bench.raw()).unwrap_or_else(|error| panic!("{error}"));
        let other = disk_without_data(&bench);
        let before = sum(&other);
        let kind = MachineKind::Q35Uefi;
        let mut updating = UpdateByPage::start(&bench, PAGE, |config| {
            let disk = VirtioDisk::recorded(&recorder);
            machine(kind, disk, config).disk(VirtioDisk::file(&other))
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
        if is_full() {
            updating.ends_trial();
        }
        let config = updating.config.clone();
        let identity = updating.node.identity().to_owned();
        let programs = updating.good.programs.clone();
        drop(updating);
        assert_eq!(sum(&other), before, "the other disk was written to");
        Self {
            recording,
            kind,
            begun,
            config,
            identity,
            notes: SlotNotes::new([&programs[0], &programs[1]]),
            programs,
            chip: None,
            bench,
        }
    }

    /// Records an update to a good version by one command.
    fn record(bench: TestBench, kind: MachineKind, config: String, opening: VaultOpening) -> Self {
        let recorder = DiskRecorder::serve(&bench.raw());
        let recorder = Arc::new(recorder.unwrap_or_else(|error| panic!("{error}")));
        let good = GoodUpdate::new(&bench);
        let mut vm = machine(kind, VirtioDisk::recorded(&recorder), &config);
        let has_chip = opening == VaultOpening::Tpm;
        let chip = has_chip.then(|| ChipRecorder::new(bench.path(), &recorder));
        if let Some(chip) = &chip {
            vm = ChipRecorder::attach(chip, vm);
        }
        let mut node = good.serving(&bench, vm);
        let identity = node.identity().to_owned();
        let begun = recorder.recording().len();
        let mark = node.vm().console().mark();
        let yes = ["--yes", "--limit", LIMIT];
        let done = update(bench.admin(), &node, &good.bundle, &yes);
        assert_eq!(done.status, 0, "{done:?}\n{}", node.vm().report());
        if has_chip {
            // The recording ends when the slot of the program before is gone.
            opening_slot(&node, &json!([4, 11, 12]));
        }
        // No person was there to write the words of a vault down.
        let problems: &[_] = if has_chip {
            &["words-unconfirmed"]
        } else {
            &[]
        };
        good.is_confirmed_beside(problems, &mut node, mark, &identity);
        let recording = recorder.recording();
        drop(node);
        let programs = good.programs;
        Self {
            recording,
            kind,
            begun,
            config,
            identity,
            notes: SlotNotes::new([&programs[0], &programs[1]]),
            programs,
            chip,
            bench,
        }
    }

    /// The moments of all writes of the update that begin in these bytes of the disk.
    fn writes_of_update(&self, places: Range<u64>) -> Vec<usize> {
        let writes = self.recording.writes_in(places).into_iter();
        writes.filter(|at| *at >= self.begun).collect()
    }

    /// The moments of the writes that decide most: of the record and the note, and beside a change of what the TPM keeps.
    fn deciding(&self) -> Vec<usize> {
        let mut deciding = self.writes_of_update(0..ESP_FIRST_LBA * LBA_BYTES);
        assert!(deciding.len() > 4, "{deciding:?}");
        if let Some(chip) = &self.chip {
            let changes = chip.changes(self.begun..self.recording.len());
            assert!(!changes.is_empty(), "the TPM sealed nothing");
            deciding.extend(changes);
        }
        deciding
    }

    /// Cuts the power at random moments of all writes, where the disk loses those that were not flushed.
    fn cut_at_random(&self, counts: CutCounts) {
        let mut dice = CampaignRng::from_environment();
        let moments = self.recording.len() - self.begun;
        // Every second cut is beside one of these: they are few.
        let deciding = self.deciding();
        let path = self.bench.path().join("cut.raw");
        let image = Evidence(path.clone());
        let disk = SlotDiskImage::new(path);
        let mut chosen = [0; 2];
        let (mut repairs, mut all_judged) = (BTreeMap::new(), 0);
        let mut booted = BootedCuts::new(counts);
        for number in 0..counts.cuts {
            let moment = match number % 2 {
                0 => self.begun + dice.below(moments + 1),
                _ => deciding[dice.below(deciding.len())] + dice.below(3),
            };
            let (moment, seed) = (moment.min(self.recording.len()), dice.next());
            let cut = self.recording.cut(moment, seed, &image.0);
            let cut = cut.unwrap_or_else(|error| panic!("{error}"));
            eprintln!(
                "cut {number}: moment {moment} of {}, seed {seed}: {cut:?}",
                self.recording.len()
            );
            let (slot, kind) = self.has_whole_program(&disk);
            let of_repair: &mut usize = repairs.entry(kind.repair).or_default();
            *of_repair += 1;
            if number.is_multiple_of(counts.judged_of) || *of_repair <= JUDGED_OF_A_KIND {
                let judged = self.judge(&disk);
                assert!(judged.status.success(), "{judged:?}");
                all_judged += 1;
            }
            chosen[usize::from(slot == BootSlot::B)] += 1;
            if booted.take(number, kind) {
                // The machine starts from the disk as the cut left it, before the repair.
                let again = self.recording.cut(moment, seed, &image.0);
                again.unwrap_or_else(|error| panic!("{error}"));
                let when = format!("moment {moment}, seed {seed}, {kind:?}");
                self.serves(&disk, moment, slot, &when);
            }
        }
        eprintln!("{:?}: repairs: {repairs:?}; {all_judged} judged", self.kind);
        println!("figure {}", booted.figure(&self.cuts_named(counts.cuts)));
        eprintln!(
            "the loader chose slot a {} times and slot b {} times",
            chosen[0], chosen[1]
        );
        assert!(chosen.iter().all(|count| *count > 0), "{chosen:?}");
    }

    /// So many cuts of this recording, for a summary.
    fn cuts_named(&self, cuts: usize) -> String {
        let sealed = match &self.chip {
            Some(_) => "sealed ",
            None => "",
        };
        format!("{cuts} cuts on a {sealed}{:?}", self.kind)
    }

    /// Cuts each write to what a loader reads, before it, within it and after it. The writes before it are all there, in
    /// their order. Writes of the record and the note are all cut, also in the short form.
    fn cut_each_write(&self) {
        let path = self.bench.path().join("each.raw");
        let image = Evidence(path.clone());
        let deciding = self.writes_of_update(0..ESP_FIRST_LBA * LBA_BYTES);
        let every = if is_full() { 1 } else { CUT_OF };
        let writes = self.writes_of_update(0..LOADERS_END);
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
    /// Returns its slot, and the kind of the cut.
    fn has_whole_program(&self, disk: &SlotDiskImage) -> (BootSlot, CutKind) {
        let slot = self.chosen_program(disk, "before the repair");
        let record = disk.record().unwrap_or_else(|error| panic!("{error}"));
        let report = disk.repair(slot, &self.notes);
        assert!(report.left.findings.is_empty(), "{report:?}");
        assert_eq!(disk.chosen(), Some(slot));
        self.assert_whole(disk, slot, "after the repair");
        let kind = CutKind {
            phase: record.phase().name(),
            slot: slot.letter(),
            repair: RepairKind::from_report(&report),
        };
        (slot, kind)
    }

    /// What dosfstools says of the boot partition.
    fn judge(&self, disk: &SlotDiskImage) -> Output {
        let partition = self.bench.path().join("boot.fat");
        disk.copy_partition(&partition);
        tool("fsck.vfat", &["-n", &partition.display().to_string()])
    }

    /// Starts a machine from the disk of a cut at this moment, as the cut left it. The loader has to start the slot that
    /// the model of it chose. `when` names the cut.
    fn serves(&self, disk: &SlotDiskImage, moment: usize, slot: BootSlot, when: &str) {
        let mut vm = machine(self.kind, VirtioDisk::file(disk.path()), &self.config);
        if let Some(chip) = &self.chip {
            vm = chip.attach_after_cut(vm, moment);
        }
        let mut node = serving(&self.bench, vm);
        assert_eq!(node.identity(), self.identity, "{when}");
        has_token(&node, KEPT);
        if self.chip.is_some() {
            opened_by_tpm(&node, when);
        }
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
        assert!(states.contains(&state), "{when}: {status:#}");
        assert_eq!(status["version"], version, "{when}: {status:#}");
        assert_eq!(status["slot"], slot.letter(), "{when}: {status:#}");
        if state == "trial" {
            self.confirms(&mut node, disk, when);
        }
        eventually("the start repairs the boot partition", || {
            self.judge(disk).status.success().then_some(())
        });
    }

    /// Waits until the machine confirms the version that is on trial after a cut. A start on trial leaves the boot
    /// partition as it is, and the next one repairs it: the campaign always makes that one, and each run of the tests if
    /// the partition needs it.
    fn confirms(&self, node: &mut MachineNode, disk: &SlotDiskImage, when: &str) {
        let what = format!("{when}: the version on trial is confirmed");
        alknet_test_support::eventually(&what, CONFIRMED_WITHIN, || {
            // The record costs the machine no handshake.
            let phase = disk.record().ok()?.phase();
            let may = [BootPhase::Trial, BootPhase::Good].contains(&phase);
            assert!(may, "{when}: {phase:?}: {}", node.vm().report());
            (phase == BootPhase::Good).then_some(())
        });
        if !is_full() && self.judge(disk).status.success() {
            return;
        }
        let mark = node.vm().console().mark();
        let pressed = node.vm().reset_button();
        pressed.unwrap_or_else(|error| panic!("{error}"));
        node.wait_ready(mark);
        assert_eq!(node.identity(), self.identity, "{when}");
        has_token(node, KEPT);
        if self.chip.is_some() {
            opened_by_tpm(node, when);
        }
        let good = [("version", SECOND), ("slot", "b"), ("state", "good")];
        stands(node, &good);
    }
}

/// No person was there who could type anything. A slot for another program may be there as well.
fn opened_by_tpm(node: &MachineNode, when: &str) {
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{when}: {status:#}");
    let slots = status["slots"].as_array().expect("a list");
    assert!(
        slots.iter().all(|slot| slot == "tpm2"),
        "{when}: {status:#}"
    );
}
