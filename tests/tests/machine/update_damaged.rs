//! Slot b is damaged while its version is on trial: its program, the boot partition, the record or the note. Whatever it
//! is, the machine serves with its identity again, by the version before or by the new one where the damage does not
//! matter, and the boot partition is clean after the next start. Only damage of which a part runs before PID 1 arms its
//! watchdog may hang the machine, which then waits for the reset button.
//!
//! `ALKNET_SOAK=full` starts a machine with each of 100 images, half of them by a BIOS. Without it a model of the loader
//! chooses the slot, and one machine starts. `ALKNET_SEED` repeats a campaign.

mod program;
mod volume;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use alknet_boot_state::{
    BootNote, BootPhase, BootSlot, NOTE_BYTES, NOTE_OFFSET, NoteArea, NoteText, RECORD_OFFSET,
    SECTOR_BYTES,
};
use alknet_qemu::{ConsoleMark, MachineKind, VirtioDisk, Vm, WaitResult};
use alknet_test_support::{deadline, skip};
use alknet_tests::tools::tool;
use alknet_tests::{CliOutput, READY, TestBench, eventually};
use serde_json::Value;

use crate::power::{CampaignRng, Evidence, is_full};
use crate::update::bundle::ReleaseKeys;
use crate::update::disk::{SlotDiskImage, SlotNotes};
use crate::update::good::{GoodUpdate, KEPT};
use crate::update::program::{PROGRAM, kernel_alone, versioned};
use crate::update::{FIRST, SECOND, TOKENS, config, lists_token, machine, update};
use crate::update_bad::quick;
use program::{ProgramDamage, random};
use volume::VolumeDamage;

/// Images of a campaign for each firmware.
const IMAGES_FULL: usize = 50;
/// The operation by which a machine is asked whether it serves, and what.
const INFO: &str = "node/info";
/// The operation by which it says what it knows of its boot slots.
const STATUS: &str = "update/status";
/// The first bytes of a program.
const MARK: &[u8] = b"MZ";
/// The version before the update has no vault.
const VAULT: &str = "absent";
/// How the loaders begin the line about the slot that they start.
const STARTS: [&str; 2] = ["alknet: GRUB starts slot ", "alknet-loader: starting slot "];
/// Restarts the machine soon after a panic of the kernel; the last words count.
const QUICK_RESTART: &str = "panic=1";
/// What GRUB says of the last try of a version, and the kernel where it finds no program.
const TRIAL: &str = "GRUB starts slot b on trial, tries left after this one: 0";
const PANICS: &str = "Kernel panic";
/// Longest wait for a step of a start.
const DONE_WITHIN: Duration = Duration::from_secs(120);
/// How often a machine is asked how it is.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// A machine that says nothing for so long hangs: its owner presses the reset button. Emulated firmware and kernels are
/// silent for half a minute.
const SILENT_MAX: Duration = Duration::from_secs(240);
/// A machine that says nothing for so long may serve without a console: the damage may be to the name of its console.
const ASKED_AFTER: Duration = Duration::from_secs(60);
/// A version on trial is confirmed or has returned after so long.
const SETTLED_WITHIN: Duration = Duration::from_secs(900);
/// Most resets until the version before serves: the trial has one try left.
const RESETS_MAX: usize = 2;
/// Bit of the flags of an x86 processor: it takes interrupts.
const TAKES_INTERRUPTS: u64 = 1 << 9;

/// What is wrong with slot b.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotDamage {
    Program(ProgramDamage),
    Volume(VolumeDamage),
    /// Random bytes lie in the place of the record.
    Record,
    /// Random bytes lie in the place of the boot note.
    Note,
    /// The boot note is about slot a.
    OtherNote,
}

const DAMAGES: [SlotDamage; 31] = [
    SlotDamage::Program(ProgramDamage::ScriptWithoutProbe),
    SlotDamage::Program(ProgramDamage::Empty),
    SlotDamage::Program(ProgramDamage::Truncated),
    SlotDamage::Program(ProgramDamage::Random),
    SlotDamage::Program(ProgramDamage::RandomBehindMark),
    SlotDamage::Program(ProgramDamage::OtherArchitecture),
    SlotDamage::Program(ProgramDamage::BitsOfHeaders),
    SlotDamage::Program(ProgramDamage::BitsOfStub),
    SlotDamage::Program(ProgramDamage::BitsOfScript),
    SlotDamage::Program(ProgramDamage::BitsOfCommandLine),
    SlotDamage::Program(ProgramDamage::BitsOfKernel),
    SlotDamage::Program(ProgramDamage::BitsOfFiles),
    SlotDamage::Program(ProgramDamage::Zeros),
    SlotDamage::Program(ProgramDamage::ZerosOfKernel),
    SlotDamage::Program(ProgramDamage::ZerosOfFiles),
    SlotDamage::Program(ProgramDamage::RandomKernel),
    SlotDamage::Program(ProgramDamage::RandomFiles),
    SlotDamage::Volume(VolumeDamage::Folder),
    SlotDamage::Volume(VolumeDamage::LostChain),
    SlotDamage::Volume(VolumeDamage::TablesDiffer),
    SlotDamage::Volume(VolumeDamage::ChainCut),
    SlotDamage::Volume(VolumeDamage::ChainCircle),
    SlotDamage::Volume(VolumeDamage::ChainCrossed),
    SlotDamage::Volume(VolumeDamage::SizeWrong),
    SlotDamage::Volume(VolumeDamage::MarkedInUse),
    SlotDamage::Volume(VolumeDamage::InfoWrong),
    SlotDamage::Volume(VolumeDamage::NameDoubled),
    SlotDamage::Volume(VolumeDamage::NameLost),
    SlotDamage::Record,
    SlotDamage::Note,
    SlotDamage::OtherNote,
];

impl SlotDamage {
    /// Whether the version may serve without its console, or without knowing its slot. The names of both come from the
    /// script for GRUB and from the command line. By UEFI it is the stub that finds the command line, by the headers of
    /// the sections, and zeros anywhere may lie in each of these parts. Other damage leaves the names as they were.
    fn may_hide_words(self) -> bool {
        matches!(
            self,
            Self::Program(
                ProgramDamage::BitsOfScript
                    | ProgramDamage::BitsOfCommandLine
                    | ProgramDamage::ScriptWithoutProbe
                    | ProgramDamage::BitsOfHeaders
                    | ProgramDamage::BitsOfStub
                    | ProgramDamage::Zeros
            )
        )
    }

    /// Whether the version may hang where no watchdog runs: from the start of the kernel until PID 1 arms its own, and by
    /// a BIOS from power-on. It may if the damage is to what runs there, or to what the loader finds it by.
    fn may_hang(self, kind: MachineKind) -> bool {
        let Self::Program(damage) = self else {
            // From some byte on the file has bytes of the good program that belong elsewhere. Firmware and GRUB start
            // it all the same, and the kernel is a part of it.
            return self == Self::Volume(VolumeDamage::ChainCrossed);
        };
        match damage {
            ProgramDamage::BitsOfKernel
            | ProgramDamage::ZerosOfKernel
            | ProgramDamage::RandomKernel
            // PID 1 is one of the files, whose archive has no checksum.
            | ProgramDamage::BitsOfFiles
            | ProgramDamage::ZerosOfFiles
            | ProgramDamage::Zeros => true,
            // Firmware starts the stub, which the headers describe. GRUB reads neither.
            ProgramDamage::BitsOfHeaders | ProgramDamage::BitsOfStub => {
                kind == MachineKind::Q35Uefi
            }
            // It has the places of the kernel and the files, for GRUB alone.
            ProgramDamage::BitsOfScript => kind != MachineKind::Q35Uefi,
            // Nothing of these starts, or what starts before PID 1 is whole, and a kernel without files panics.
            ProgramDamage::Empty
            | ProgramDamage::Truncated
            | ProgramDamage::Random
            | ProgramDamage::RandomBehindMark
            | ProgramDamage::OtherArchitecture
            | ProgramDamage::BitsOfCommandLine
            | ProgramDamage::ScriptWithoutProbe
            | ProgramDamage::RandomFiles => false,
        }
    }

    /// Puts `second` on its last try into slot b of the disk, with this damage. Returns the slot that a loader then
    /// starts first.
    fn apply(self, disk: &SlotDiskImage, second: &[u8], dice: &mut CampaignRng) -> BootSlot {
        let mut is_program = true;
        match self {
            Self::Program(damage) => {
                let damaged = damage.damage(second, dice);
                is_program = damaged.starts_with(MARK);
                disk.put_on_trial(&damaged, 1, VAULT);
            }
            _ => disk.put_on_trial(second, 1, VAULT),
        }
        let write = |bytes: &[u8], at| {
            let file = File::options().write(true).open(disk.path());
            let written = file.and_then(|file| file.write_all_at(bytes, at));
            written.expect("the disk is ours");
        };
        match self {
            Self::Program(_) => {}
            Self::Volume(damage) => is_program = damage.apply(disk, dice),
            Self::Record => {
                write(&random(SECTOR_BYTES, dice), RECORD_OFFSET);
                // No record says that a version is on trial.
                is_program = false;
            }
            Self::Note => write(&random(NOTE_BYTES, dice), NOTE_OFFSET),
            Self::OtherNote => {
                let mut note = BootNote::new(BootSlot::A);
                note.version = NoteText::new(SECOND);
                let mut area = NoteArea::new([0; NOTE_BYTES]);
                area.put(&note);
                write(area.bytes(), NOTE_OFFSET);
            }
        }
        if is_program { BootSlot::B } else { BootSlot::A }
    }
}

/// One image of each kind, or all of a campaign: the loader starts slot b only if it has a program, counts its try, and
/// then starts the good program, which the repair of the partition leaves as it was.
#[test]
fn update_damaged_in_each_way_leaves_the_good_program() {
    let bench = TestBench::new();
    let base = bench.raw();
    let path = bench.path().join("damaged.raw");
    let image = Evidence(path.clone());
    let disk = SlotDiskImage::new(&path);
    let first = SlotDiskImage::new(&base).program(BootSlot::A);
    let first = first.expect("the image has it");
    let second = versioned(&first, SECOND);
    let notes = SlotNotes::new([&first, &second]);
    let mut dice = CampaignRng::from_environment();
    let mut chosen = [0; 2];
    let images = if is_full() {
        2 * IMAGES_FULL
    } else {
        DAMAGES.len()
    };
    for (number, damage) in DAMAGES.iter().cycle().take(images).enumerate() {
        eprintln!("image {number}: {damage:?}");
        alknet_qemu::copy(&base, &image.0).unwrap_or_else(|error| panic!("{error}"));
        let starts = damage.apply(&disk, &second, &mut dice);
        chosen[usize::from(starts == BootSlot::B)] += 1;
        assert_eq!(disk.pass_loader(), Some(starts), "{damage:?}");
        let good = |when: &str| {
            let has_it = disk.has_program(BootSlot::A, &first);
            assert_eq!(has_it, Some(true), "{when}: slot a has other bytes");
            // Slot b had its last try.
            assert_eq!(disk.chosen(), Some(BootSlot::A), "{when}: {damage:?}");
        };
        good("before the repair");
        assert_eq!(disk.pass_loader(), Some(BootSlot::A));
        let report = disk.repair(BootSlot::A, &notes);
        assert!(report.left.findings.is_empty(), "{report:?}");
        good("after the repair");
        assert!(is_clean(&bench, &disk), "{report:?}");
    }
    assert!(chosen.iter().all(|count| *count > 0), "{chosen:?}");
}

/// A script for GRUB that starts its program wherever it runs. GRUB runs it only where it has counted a try, so the
/// machine returns from a version whose kernel panics.
#[test]
fn update_damaged_in_its_script_starts_only_where_its_try_was_counted() {
    let bench = TestBench::new();
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    let panics = kernel_alone(
        &first,
        SECOND,
        QUICK_RESTART,
        &[("init", PROGRAM, b"no program")],
    );
    let mut dice = CampaignRng::from_environment();
    let bad = ProgramDamage::ScriptWithoutProbe.damage(&panics, &mut dice);
    disk.put_on_trial(&bad, 1, VAULT);
    let config = config(&bench, &ReleaseKeys::one(7));
    let vm = machine(MachineKind::Q35, VirtioDisk::file(disk.path()), &config).start();
    let vm = vm.unwrap_or_else(|error| panic!("{error}"));
    let wait = |mark, line: &str| {
        let found = vm.wait_for_after(mark, line, DONE_WITHIN);
        found.unwrap_or_else(|error| panic!("{error}"))
    };
    let limit = vm.scale(DONE_WITHIN);
    let begin = ConsoleMark::default();
    let first = vm.console().wait_any(begin, &[TRIAL, PANICS], limit);
    assert!(matches!(first, WaitResult::Said(_)), "{}", vm.report());
    let said = vm.console().text();
    assert!(said.contains(TRIAL), "it starts uncounted: {said}");
    let mark = wait(begin, PANICS);
    returns(&bench, &disk, vm, mark);
}

/// GRUB loads the kernel of a version, and then finds that the file ends within what it unpacks. The kernel of the good
/// version has its own command line then: without it, it has no console, does not know its slot, and is not locked down.
#[test]
fn update_damaged_behind_its_kernel_leaves_the_good_one_its_command_line() {
    let bench = TestBench::new();
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    let second = versioned(&first, SECOND);
    disk.put_on_trial(&second[..second.len() / 4 * 3], 1, VAULT);
    let config = config(&bench, &ReleaseKeys::one(7));
    let vm = machine(MachineKind::Q35, VirtioDisk::file(disk.path()), &config).start();
    let vm = vm.unwrap_or_else(|error| panic!("{error}"));
    let mark = vm.wait_for_after(ConsoleMark::default(), TRIAL, DONE_WITHIN);
    let mark = mark.unwrap_or_else(|error| panic!("{error}"));
    returns(&bench, &disk, vm, mark);
}

/// Waits until GRUB has started the good version, which knows its slot and repairs what the other one left.
fn returns(bench: &TestBench, disk: &SlotDiskImage, vm: Vm, mut mark: ConsoleMark) {
    for line in ["GRUB starts slot a", READY] {
        let found = vm.wait_for_after(mark, line, DONE_WITHIN);
        mark = found.unwrap_or_else(|error| panic!("{error}"));
    }
    eventually("the start repairs the boot partition", || {
        is_clean(bench, disk).then_some(())
    });
    drop(vm);
    let record = disk.record().expect("a record");
    assert_eq!(
        (record.good(), record.phase()),
        (BootSlot::A, BootPhase::Failed)
    );
}

#[test]
fn update_damaged_images_leave_a_serving_node_by_a_bios() {
    leave_a_serving_node(MachineKind::Q35);
}

#[test]
fn update_damaged_images_leave_a_serving_node_by_uefi() {
    leave_a_serving_node(MachineKind::Q35Uefi);
}

/// The images of a campaign, each on a copy of the disk of a machine that served before.
fn leave_a_serving_node(kind: MachineKind) {
    if !is_full() {
        skip!(
            "campaign",
            "it starts a hundred machines: `cargo xtask soak update-cuts` runs it"
        );
    }
    let campaign = DamageCampaign::begin(kind);
    let mut dice = CampaignRng::from_environment();
    let image = Evidence(campaign.bench.path().join("damaged.raw"));
    let mut outcomes = Vec::new();
    let damages = || DAMAGES.iter().cycle().take(IMAGES_FULL);
    for (number, damage) in damages().enumerate() {
        let begun = Instant::now();
        eprintln!("image {number} on {kind:?}: {damage:?}");
        let copied = alknet_qemu::copy(&campaign.base, &image.0);
        copied.unwrap_or_else(|error| panic!("{error}"));
        let disk = SlotDiskImage::new(&image.0);
        damage.apply(&disk, &campaign.second, &mut dice);
        let outcome = campaign.serves(&disk, *damage);
        eprintln!("image {number}: {outcome:?} after {:.0?}", begun.elapsed());
        outcomes.push(outcome);
    }
    let count = |fits: fn(&&DamageOutcome) -> bool| outcomes.iter().filter(fits).count();
    println!(
        "figure {IMAGES_FULL} damaged images on {kind:?}: the version before served after {}, the new one after {}; {} \
         hung until the test reset the machine, of {} whose damage permits that",
        count(|outcome| outcome.serves == BootSlot::A),
        count(|outcome| outcome.serves == BootSlot::B),
        count(|outcome| outcome.resets > 0),
        damages().filter(|damage| damage.may_hang(kind)).count(),
    );
    // The images have damage of each kind: no loader starts an empty file, and a wrong count of free clusters matters to
    // none.
    for slot in BootSlot::ALL {
        let serves = outcomes.iter().any(|outcome| outcome.serves == slot);
        assert!(serves, "slot {slot} never served: {outcomes:?}");
    }
}

/// Which slot served at the end, and how often the machine hung before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DamageOutcome {
    serves: BootSlot,
    resets: usize,
}

/// The disk of a machine that served the first version, made the token [`KEPT`] and staged the second version, and that
/// version.
struct DamageCampaign {
    bench: TestBench,
    kind: MachineKind,
    config: String,
    identity: String,
    base: PathBuf,
    second: Vec<u8>,
}

impl DamageCampaign {
    fn begin(kind: MachineKind) -> Self {
        let bench = TestBench::new();
        let base = bench.raw();
        let good = GoodUpdate::new(&bench);
        let config = good.config(&bench, "");
        let node = good.serving(&bench, machine(kind, VirtioDisk::file(&base), &config));
        // The machine notes both programs, as before each trial.
        let staged = update(bench.admin(), &node, &good.bundle, &["--stage"]);
        assert_eq!(staged.status, 0, "{staged:?}");
        let identity = node.identity().to_owned();
        node.end();
        let [_, second] = good.programs;
        Self {
            bench,
            kind,
            config,
            identity,
            base,
            second,
        }
    }

    /// Starts a machine from the disk, until it serves a version that is not on trial and its boot partition is clean.
    fn serves(&self, disk: &SlotDiskImage, damage: SlotDamage) -> DamageOutcome {
        let vm = machine(self.kind, VirtioDisk::file(disk.path()), &self.config);
        let vm = quick(vm).start().unwrap_or_else(|error| panic!("{error}"));
        let mut resets = 0;
        let ready = self.wait_serving(&vm, (damage, ConsoleMark::default()), &mut resets);
        if started_slot(&vm) == BootSlot::B {
            let returned = match self.wait_settled(&vm, disk, ready) {
                TrialEnd::Confirmed => None,
                TrialEnd::Returned(mark) => Some(mark),
                TrialEnd::SlotUnknown => {
                    let may = damage.may_hide_words();
                    assert!(
                        may,
                        "{damage:?}: it does not know its slot: {}",
                        vm.report()
                    );
                    eprintln!("it does not know its slot");
                    let mark = vm.console().mark();
                    vm.reset_button().unwrap_or_else(|error| panic!("{error}"));
                    Some(mark)
                }
            };
            if let Some(mark) = returned {
                self.wait_serving(&vm, (damage, mark), &mut resets);
                assert_eq!(started_slot(&vm), BootSlot::A, "{}", vm.report());
            }
        }
        if started_slot(&vm) == BootSlot::B && !is_clean(&self.bench, disk) {
            // A start on trial repairs nothing. The next one does.
            let mark = vm.console().mark();
            vm.reset_button().unwrap_or_else(|error| panic!("{error}"));
            self.wait_serving(&vm, (damage, mark), &mut resets);
        }
        eventually("the start repairs the boot partition", || {
            is_clean(&self.bench, disk).then_some(())
        });
        let serves = started_slot(&vm);
        self.answers(&vm, serves, damage);
        DamageOutcome { serves, resets }
    }

    /// Checks that the node answers, with the version of this slot, and has lost neither its key nor its token.
    fn answers(&self, vm: &Vm, slot: BootSlot, damage: SlotDamage) {
        let answer = |operation: &str| {
            eventually(&format!("{operation} is answered after {damage:?}"), || {
                // With the quick clock the node's limit for a handshake may pass while the client computes.
                let output = self.call(vm, operation);
                (output.status == 0).then(|| output.json())
            })
        };
        let info = answer(INFO);
        assert_eq!(info["identity"], self.identity, "{damage:?}: {info:#}");
        let version = match slot {
            BootSlot::A => FIRST,
            BootSlot::B => SECOND,
        };
        assert_eq!(info["version"], version, "{damage:?}: {info:#}");
        lists_token(&answer(TOKENS), KEPT);
    }

    /// Waits until a version that serves on trial was confirmed, or has returned, or says that it was started from no
    /// slot.
    fn wait_settled(&self, vm: &Vm, disk: &SlotDiskImage, ready: ConsoleMark) -> TrialEnd {
        alknet_test_support::eventually("the end of the trial", SETTLED_WITHIN, || {
            if let WaitResult::Said(mark) = vm.console().wait_any(ready, &STARTS, Duration::ZERO) {
                return Some(TrialEnd::Returned(mark));
            }
            let record = disk.record().ok();
            if record.is_some_and(|record| record.phase() == BootPhase::Good) {
                return Some(TrialEnd::Confirmed);
            }
            let status = self.call(vm, STATUS);
            // A machine that restarts in this moment does not answer.
            let is_unknown = status.status == 0 && status.json()["state"] == "absent";
            is_unknown.then_some(TrialEnd::SlotUnknown)
        })
    }

    fn call(&self, vm: &Vm, operation: &str) -> CliOutput {
        let address = vm.address().expect("it has a network card");
        let target = format!("{}@{address}", self.identity);
        let admin = self.bench.admin();
        admin.call(&target, operation, &Value::Null, &[])
    }

    /// Waits until the machine serves, with its identity. A machine that hangs is reset and counted, and only the
    /// damaged version may hang.
    fn wait_serving(
        &self,
        vm: &Vm,
        (damage, after): (SlotDamage, ConsoleMark),
        resets: &mut usize,
    ) -> ConsoleMark {
        let (mut seen, mut since) = (after, Instant::now());
        let ready = loop {
            match vm.console().wait(after, READY, ASKED_EVERY) {
                WaitResult::Said(ready) => break ready,
                WaitResult::Closed => panic!("{}", vm.report()),
                WaitResult::TimedOut => {}
            }
            let end = vm.console().mark();
            if end != seen {
                (seen, since) = (end, Instant::now());
            } else if since.elapsed() > deadline(ASKED_AFTER) && self.call(vm, INFO).status == 0 {
                let may = damage.may_hide_words() && started_slot(vm) == BootSlot::B;
                assert!(
                    may,
                    "{damage:?}: it serves without a console: {}",
                    vm.report()
                );
                eprintln!("it serves without a console");
                return end;
            } else if is_dead(vm) || since.elapsed() > deadline(SILENT_MAX) {
                eprintln!("it hangs after {} s", since.elapsed().as_secs());
                let may = damage.may_hang(self.kind) && started_slot(vm) == BootSlot::B;
                assert!(may, "{damage:?}: it hangs: {}", vm.report());
                *resets += 1;
                assert!(*resets <= RESETS_MAX, "{}", vm.report());
                vm.reset_button().unwrap_or_else(|error| panic!("{error}"));
                since = Instant::now();
            }
        };
        let named = vm.wait_for_after(ready, " port ", DONE_WITHIN);
        named.unwrap_or_else(|error| panic!("{error}"));
        let text = vm.console().since(ready);
        let mut words = text.split_whitespace();
        let identity = words.find(|word| word.starts_with("ed25519:"));
        assert_eq!(identity, Some(&*self.identity), "{}", vm.report());
        ready
    }
}

/// How the trial of a version that serves has ended.
enum TrialEnd {
    Confirmed,
    /// The mark is behind the restart.
    Returned(ConsoleMark),
    /// The damage is to the name of the slot, which GRUB's script gives the kernel: see `SlotDamage::may_hide_words`.
    /// The version serves and is never confirmed, and the next start is the one of the version before.
    SlotUnknown,
}

/// The slot that the loader started last.
fn started_slot(vm: &Vm) -> BootSlot {
    let text = vm.console().text();
    let lines = STARTS.iter().filter_map(|line| {
        let at = text.rfind(line)? + line.len();
        Some((at, text[at..].chars().next()?))
    });
    match lines.max() {
        Some((_, 'a')) => BootSlot::A,
        Some((_, 'b')) => BootSlot::B,
        _ => panic!("{}", vm.report()),
    }
}

/// Whether the processor has stopped and takes no interrupt, so that only a reset helps.
fn is_dead(vm: &Vm) -> bool {
    let registers = vm.qmp().human("info registers");
    let registers = registers.unwrap_or_else(|error| panic!("{error}"));
    let flags = registers.split("FL=").nth(1).and_then(|rest| {
        let digits = rest.split_whitespace().next()?;
        u64::from_str_radix(digits, 16).ok()
    });
    let flags = flags.unwrap_or_else(|| panic!("no flags: {registers}"));
    registers.contains("HLT=1") && flags & TAKES_INTERRUPTS == 0
}

/// What dosfstools says of the boot partition.
fn is_clean(bench: &TestBench, disk: &SlotDiskImage) -> bool {
    let partition = bench.path().join("boot.fat");
    disk.copy_partition(&partition);
    let judged = tool("fsck.vfat", &["-n", &partition.display().to_string()]);
    if !judged.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&judged.stdout));
    }
    judged.status.success()
}
