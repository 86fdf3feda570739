//! Versions that start and are not well: the machine returns to the version before, says why, and has lost nothing. And
//! one that is confirmed and ends afterwards: it stays until an administrator rolls back.
//!
//! Each test has a copy of the disks of one machine with a vault, which GRUB starts unless the test says otherwise. The
//! start that makes these disks leaves the loader out. The last try of a version is left, and the clock of the machine is
//! quick, so the ten minutes of a trial pass at once. The version that fills the memory in its trial has the time of the
//! host: with the quick clock the guest's time goes on while it waits for its disk, so the memory could be full before
//! PID 1 has written a sector.
//!
//! All but the version that refuses the configuration run in `cargo xtask soak update-cuts` only, which has each under
//! UEFI as well. The gate gives each of them up in the same way, with and without its data, and PID 1 does the same under
//! both loaders. In each run of the tests, `update_sealed.rs` has a version under UEFI that cannot open the vault, and
//! returns from it.

use std::convert::identity;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot};
use alknet_qemu::{
    ConsoleMark, DiskController, MachineKind, ScratchDir, VirtioDisk, Vm, VmBuilder, WaitResult,
};
use alknet_test_support::skip;
use alknet_tests::{READY, TestBench};
use serde_json::json;

use crate::configuration::document;
use crate::power::is_full;
use crate::update::bundle::ReleaseKeys;
use crate::update::disk::SlotDiskImage;
use crate::update::program::{PROGRAM, changed, filling_program, renamed};
use crate::update::{
    FIRST, ONLY_CAMPAIGN, SECOND, has_token, machine, make_token, roll_back, serving, stands,
    without_grub,
};
use crate::update_bad::{BIOS, LoaderUnderTest, UEFI, quick};

/// Longest wait for one step of a trial.
const DONE_WITHIN: Duration = Duration::from_secs(120);
/// How a trial ends: PID 1 restarts the machine, or the kernel has no memory left and nothing to end.
pub(crate) const RESTARTS: &str = "alknet: going down";
const DEADLOCKED: &str = "System is deadlocked on memory";
/// Where the machine finds the key that opens its vault, and the key.
const MEDIUM: &str = "opt/org.alknet/seed.key";
const SEED_KEY: &str = "alknet-seed-1 27209049-2f6c-46bf-a462-c718ee429cc0 XV1dXV1dXV1dXV1dXV1dXV1dXV1dXV1dXV1dXV1dXV0=\n";
/// How the boot note names what opens the vault.
const OPENED_BY: &str = "provisioning";
/// Leaves out the part of the kernel that shows PID 1 the medium, and the driver of the data disk.
const NO_MEDIUM: &str = "initcall_blacklist=fw_cfg_sysfs_init";
const NO_DATA_DISK: &str = "initcall_blacklist=ahci_pci_driver_init";
/// The former name of a key of the configuration, and what the binary of a version has in its place that does not take
/// it any more. Only the reader of documents has this name: PID 1 and the node call the value by another one.
const KEY: &str = "stranger_requests_per_second";
const OTHER_KEY: &str = "stranger_requests_any_second";
/// The program by which the kernel starts a version that fills its memory.
const FILLER: &str = "filler";
/// When such a version begins to fill it: after its node started and before the minute of its gate is over, or long after
/// that.
const BEFORE_THE_GATE: Duration = Duration::from_secs(30);
const AFTER_THE_GATE: Duration = Duration::from_secs(900);

/// What the version before says of a trial that did not pass its gate.
const NOT_CONFIRMED: &str = "it was not confirmed in time: it waited for";
const VAULT: &str = "the vault, which was open before the update";
const CONFIGURATION: &str = "the configuration, of which the version before took everything";
/// What the version before says of each trial.
const WITHOUT_MEDIUM: TrialEvidence = TrialEvidence {
    stages: &["config", "network"],
    code: "vault-locked",
};
const WITHOUT_DATA_DISK: TrialEvidence = TrialEvidence {
    stages: &["config", "network"],
    code: "data-missing",
};
const WITH_SALVAGED_CONFIG: TrialEvidence = TrialEvidence {
    stages: &["ready", "network"],
    code: "config-refused",
};
const WITHOUT_MEMORY: TrialEvidence = TrialEvidence {
    stages: &["node-start", "ready", "network"],
    code: "memory-short",
};
/// Notes of tokens that the versions made.
const OF_FIRST: &str = "of the first version";
const OF_SECOND: &str = "of the second version";

#[test]
fn update_that_cannot_open_the_vault_returns_and_says_so() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    cannot_open_the_vault(&BIOS);
}

#[test]
fn update_that_does_not_find_its_data_returns_and_says_so() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    does_not_find_its_data(&BIOS);
}

#[test]
fn update_that_refuses_the_configuration_returns_and_says_so() {
    refuses_the_configuration(&BIOS);
}

#[test]
fn update_that_is_not_well_returns_by_uefi() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    cannot_open_the_vault(&UEFI);
    does_not_find_its_data(&UEFI);
    refuses_the_configuration(&UEFI);
    fills_the_memory(&UEFI);
}

fn cannot_open_the_vault(loader: &'static LoaderUnderTest) {
    let unwell = UnwellUpdate::begin(loader);
    let blind = changed(&unwell.first, SECOND, NO_MEDIUM, &[]);
    let why = unwell.returns_from(&blind, &WITHOUT_MEDIUM);
    let vault = format!("{NOT_CONFIRMED} {VAULT}");
    assert!(why.starts_with(&vault), "{why}");
}

/// The boot disk has a blank data partition, of which this version could make another node.
fn does_not_find_its_data(loader: &'static LoaderUnderTest) {
    let unwell = UnwellUpdate::begin(loader);
    let lost = changed(&unwell.first, SECOND, NO_DATA_DISK, &[]);
    let why = unwell.returns_from(&lost, &WITHOUT_DATA_DISK);
    let vault = format!("{NOT_CONFIRMED} {VAULT}");
    assert!(why.starts_with(&vault), "{why}");
}

/// It serves, and the configuration alone keeps the gate closed.
fn refuses_the_configuration(loader: &'static LoaderUnderTest) {
    let unwell = UnwellUpdate::begin(loader);
    let strict = renamed(&unwell.first, SECOND, KEY, OTHER_KEY);
    let why = unwell.returns_from(&strict, &WITH_SALVAGED_CONFIG);
    assert_eq!(why, format!("{NOT_CONFIRMED} {CONFIGURATION}"));
}

#[test]
fn update_that_fills_the_memory_returns_and_says_so() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    fills_the_memory(&BIOS);
}

/// In its trial, before the gate lets it be confirmed.
fn fills_the_memory(loader: &'static LoaderUnderTest) {
    let unwell = UnwellUpdate::begin(loader);
    let fills = filling(&unwell.first, BEFORE_THE_GATE);
    let why = unwell.returned(unwell.trial(&fills, identity), &WITHOUT_MEMORY);
    // The kernel ends the node first. What that frees lasts for half a second, in which PID 1 may write the note again.
    assert!(why.ends_with("its memory ran short"), "{why}");
}

#[test]
fn update_that_fills_the_memory_after_its_gate_stays_until_a_rollback() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    fills_the_memory_after_its_gate(&BIOS);
}

#[test]
fn update_that_fills_the_memory_after_its_gate_stays_by_uefi() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    fills_the_memory_after_its_gate(&UEFI);
}

/// It is confirmed, and an administrator rolls it back.
fn fills_the_memory_after_its_gate(loader: &'static LoaderUnderTest) {
    let unwell = UnwellUpdate::begin(loader);
    unwell.confirms_and_ends(&filling(&unwell.first, AFTER_THE_GATE));
    unwell.rolls_back();
}

/// The program `base` as a version that fills its memory after a time.
fn filling(base: &[u8], after: Duration) -> Vec<u8> {
    let filler = filling_program(after);
    let words = format!("rdinit=/{FILLER}");
    changed(base, SECOND, &words, &[(FILLER, PROGRAM, &filler)])
}

/// How far a version came that failed its trial, as the version before says it on the console.
struct TrialEvidence {
    /// The last stage of the boot is one of these: no machine waits for its network, so that stage may come at any time.
    stages: &'static [&'static str],
    /// The code of a problem that the version had, maybe among others.
    code: &'static str,
}

impl TrialEvidence {
    /// Checks the problem `update-failed` in a line of the console. Returns the reason in it.
    #[track_caller]
    fn reason_in<'l>(&self, line: &'l str) -> &'l str {
        let reached = line.split_once("; it reached the stage '");
        let stage = reached.and_then(|(_, progress)| progress.split_once('\''));
        let (stage, rest) = stage.unwrap_or_else(|| panic!("no stage in {line}"));
        assert!(self.stages.contains(&stage), "{line}");
        let (codes, reason) = rest
            .split_once(": ")
            .unwrap_or_else(|| panic!("no reason in {line}"));
        let mut words = codes.split([',', ' ']);
        assert!(words.any(|word| word == self.code), "{line}");
        reason
    }
}

/// The disks of a machine that served the first version, whose medium opens its vault, and that holds a token. They are
/// made once for all tests.
struct ServedMachine {
    bench: TestBench,
    config: String,
    identity: String,
}

impl ServedMachine {
    fn get() -> &'static Self {
        static ONE: OnceLock<ServedMachine> = OnceLock::new();
        ONE.get_or_init(Self::serve)
    }

    fn serve() -> Self {
        let bench = TestBench::new();
        let config = format!(
            "{}[vault]\nunlock = [\"{OPENED_BY}\"]\n[http]\n{KEY} = 10\n{}",
            document(&bench, "edge"),
            ReleaseKeys::one(7).config()
        );
        let disk = VirtioDisk::file(bench.raw());
        let data = VirtioDisk::file(bench.data());
        let vm = machine_with(MachineKind::Q35, disk, data, &config);
        let vm = without_grub(vm, &SlotDiskImage::new(bench.raw()));
        let node = serving(&bench, vm);
        let identity = node.identity().to_owned();
        make_token(&node, OF_FIRST);
        node.end();
        Self {
            bench,
            config,
            identity,
        }
    }
}

/// The machine from these disks, with the medium.
fn machine_with(kind: MachineKind, disk: VirtioDisk, data: VirtioDisk, config: &str) -> VmBuilder {
    machine(kind, disk, config)
        .disk(data.data().on(DiskController::Ahci))
        .fw_cfg(MEDIUM, SEED_KEY)
}

/// Copies of these disks for one test.
struct UnwellUpdate {
    served: &'static ServedMachine,
    loader: &'static LoaderUnderTest,
    _folder: ScratchDir,
    disk: SlotDiskImage,
    data: PathBuf,
    first: Vec<u8>,
}

impl UnwellUpdate {
    fn begin(loader: &'static LoaderUnderTest) -> Self {
        let served = ServedMachine::get();
        let folder = ScratchDir::new().unwrap_or_else(|error| panic!("{error}"));
        let [disk, data] = ["raw", "data"].map(|name| folder.file(name));
        for (from, to) in [(served.bench.raw(), &disk), (served.bench.data(), &data)] {
            alknet_qemu::copy(&from, to).unwrap_or_else(|error| panic!("{error}"));
        }
        let disk = SlotDiskImage::new(disk);
        let first = disk.program(BootSlot::A).expect("the image has it");
        Self {
            served,
            loader,
            _folder: folder,
            disk,
            data,
            first,
        }
    }

    fn builder(&self) -> VmBuilder {
        let disk = VirtioDisk::file(self.disk.path());
        let data = VirtioDisk::file(&self.data);
        machine_with(self.loader.kind, disk, data, &self.served.config)
    }

    /// Starts the last try of a version, on the machine that `clock` makes of it.
    fn trial(&self, program: &[u8], clock: fn(VmBuilder) -> VmBuilder) -> (Vm, ConsoleMark) {
        self.disk.put_on_trial(program, 1, OPENED_BY);
        let vm = clock(self.builder()).start();
        let vm = vm.unwrap_or_else(|error| panic!("{error}"));
        let trial = format!("{}0", self.loader.trial);
        let mark = wait(&vm, ConsoleMark::default(), &trial);
        (vm, mark)
    }

    /// Runs the trial of a version that fails it, with a quick clock. Returns the reason that the version before gives.
    fn returns_from(&self, program: &[u8], evidence: &TrialEvidence) -> String {
        self.returned(self.trial(program, quick), evidence)
    }

    /// Waits until a trial has failed. Returns the reason that the version before gives, which has lost nothing and says
    /// how far the other one came.
    fn returned(&self, (vm, trial): (Vm, ConsoleMark), evidence: &TrialEvidence) -> String {
        let limit = vm.scale(DONE_WITHIN);
        let ended = vm.console().wait_any(trial, &[RESTARTS, DEADLOCKED], limit);
        assert!(matches!(ended, WaitResult::Said(_)), "{}", vm.report());
        if vm.console().since(trial).contains(DEADLOCKED) {
            // The kernel restarts the machine ten seconds later, through which an emulated processor spins.
            vm.reset_button().unwrap_or_else(|error| panic!("{error}"));
        }
        let good = wait(&vm, trial, self.loader.good);
        self.serves(&vm, good);
        let failed = format!("problem update-failed: version {SECOND} failed its trial");
        wait(&vm, good, &failed);
        let line = vm.wait_line(&failed, DONE_WITHIN);
        let line = line.unwrap_or_else(|error| panic!("{error}")).text;
        drop(vm);
        assert!(line.contains(&format!("returned to {FIRST}")), "{line}");
        let record = self.disk.record().expect("a record");
        assert_eq!(record.phase(), BootPhase::Failed);
        self.has_lost_nothing();
        self.has_first();
        evidence.reason_in(&line).to_owned()
    }

    /// Runs the trial of a version that passes it, until its node ends.
    fn confirms_and_ends(&self, program: &[u8]) {
        let (vm, trial) = self.trial(program, quick);
        self.serves(&vm, trial);
        wait(
            &vm,
            trial,
            "problem node-failed: the node killed by SIGKILL",
        );
        drop(vm);
        let record = self.disk.record().expect("a record");
        assert_eq!(
            (record.good(), record.phase()),
            (BootSlot::B, BootPhase::Good)
        );
    }

    /// The confirmed version is started again, until an administrator takes the one before.
    fn rolls_back(&self) {
        let admin = self.served.bench.admin();
        let mut node = serving(&self.served.bench, self.builder());
        assert_eq!(node.identity(), self.served.identity);
        let good = [("version", SECOND), ("slot", "b"), ("state", "good")];
        stands(&node, &good);
        make_token(&node, OF_SECOND);
        let mark = node.vm().console().mark();
        let back = roll_back(admin, &node);
        assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
        node.wait_ready(mark);
        assert_eq!(node.identity(), self.served.identity);
        let good = [("version", FIRST), ("slot", "a"), ("state", "good")];
        stands(&node, &good);
        let problems = node.info()["problems"].to_string();
        assert!(!problems.contains("update-failed"), "{problems}");
        for note in [OF_FIRST, OF_SECOND] {
            has_token(&node, note);
        }
        self.has_first();
    }

    /// After a failed trial: a start of the version before has the token, and its log has the end of the trial once.
    fn has_lost_nothing(&self) {
        let node = serving(&self.served.bench, self.builder());
        assert_eq!(node.identity(), self.served.identity);
        let failed = [("version", FIRST), ("slot", "a"), ("state", "failed")];
        stands(&node, &failed);
        has_token(&node, OF_FIRST);
        let log = node.call("update/log", &json!({})).to_string();
        assert_eq!(log.matches("\"failed\"").count(), 1, "{log}");
    }

    /// The first version is as it was.
    fn has_first(&self) {
        let has_it = self.disk.has_program(BootSlot::A, &self.first);
        assert_eq!(has_it, Some(true), "slot a was changed");
    }

    /// Waits until the machine serves with the identity of the first version.
    fn serves(&self, vm: &Vm, after: ConsoleMark) {
        let ready = wait(vm, after, READY);
        wait(vm, ready, " port ");
        let text = vm.console().since(ready);
        let mut words = text.split_whitespace();
        let identity = words.find(|word| word.starts_with("ed25519:"));
        assert_eq!(identity, Some(&*self.served.identity));
    }
}

fn wait(vm: &Vm, after: ConsoleMark, line: &str) -> ConsoleMark {
    let found = vm.wait_for_after(after, line, DONE_WITHIN);
    found.unwrap_or_else(|error| panic!("{error}"))
}
