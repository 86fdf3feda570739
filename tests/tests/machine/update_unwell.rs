//! Versions that start and are not well: the machine returns to the version before, says why, and has lost nothing. And
//! one that is confirmed and ends afterwards: it stays until an administrator rolls back.
//!
//! All of them come one after the other onto the disk of one machine with a vault, and are started by GRUB. Their last
//! try is left, and the clock of the machine is quick, so the ten minutes of each trial pass at once. The version that
//! fills the memory in its trial has the time of the host: with the quick clock the guest's time goes on while it waits
//! for its disk, so the memory could be full before PID 1 has written a sector.

use std::convert::identity;
use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot};
use alknet_qemu::{
    ConsoleMark, DiskController, MachineKind, VirtioDisk, Vm, VmBuilder, WaitResult,
};
use alknet_test_support::skip;
use alknet_tests::{READY, TestBench};
use serde_json::json;

use crate::configuration::document;
use crate::power::is_full;
use crate::update::bundle::ReleaseKeys;
use crate::update::disk::SlotDiskImage;
use crate::update::program::{PROGRAM, changed, filling_program, renamed};
use crate::update::{FIRST, SECOND, has_token, machine, make_token, roll_back, serving, stands};
use crate::update_bad::quick;

/// Longest wait for one step of a trial.
const DONE_WITHIN: Duration = Duration::from_secs(120);
/// How a trial ends: PID 1 restarts the machine, or the kernel has no memory left and nothing to end.
const RESTARTS: &str = "alknet: going down";
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

#[test]
fn update_that_is_unwell_returns_and_one_that_ends_after_its_gate_stays() {
    if !is_full() {
        skip!(
            "campaign",
            "it starts twelve machines: `cargo xtask soak update-cuts` runs it"
        );
    }
    let unwell = UnwellUpdate::begin();
    let first = unwell.disk.program(BootSlot::A).expect("the image has it");

    let blind = changed(&first, SECOND, NO_MEDIUM, &[]);
    let why = unwell.returns_from(&blind);
    let waited = "it was not confirmed in time: it waited for";
    let vault = format!("{waited} the vault, which was open before the update");
    assert!(why.starts_with(&vault), "{why}");

    // The boot disk has a blank data partition, of which this version could make another node.
    let lost = changed(&first, SECOND, NO_DATA_DISK, &[]);
    let why = unwell.returns_from(&lost);
    assert!(why.starts_with(&vault), "{why}");

    // It serves, and the configuration alone keeps the gate closed.
    let strict = renamed(&first, SECOND, KEY, OTHER_KEY);
    let why = unwell.returns_from(&strict);
    let config = "the configuration, of which the version before took everything";
    assert_eq!(why, format!("{waited} {config}"));

    let fills = filling(&first, BEFORE_THE_GATE);
    let why = unwell.returned(unwell.trial(&fills, identity));
    // The kernel ends the node first. What that frees lasts for half a second, in which PID 1 may write the note again.
    assert!(why.ends_with("its memory ran short"), "{why}");

    unwell.confirms_and_ends(&filling(&first, AFTER_THE_GATE));
    unwell.rolls_back();
    assert!(
        unwell.disk.program(BootSlot::A) == Some(first),
        "slot a was changed"
    );
}

/// The program `base` as a version that fills its memory after a time.
fn filling(base: &[u8], after: Duration) -> Vec<u8> {
    let filler = filling_program(after);
    let words = format!("rdinit=/{FILLER}");
    changed(base, SECOND, &words, &[(FILLER, PROGRAM, &filler)])
}

/// A machine that served the first version, whose medium opens its vault, and that holds a token.
struct UnwellUpdate {
    bench: TestBench,
    disk: SlotDiskImage,
    config: String,
    identity: String,
}

impl UnwellUpdate {
    fn begin() -> Self {
        let bench = TestBench::new();
        let disk = SlotDiskImage::new(bench.raw());
        let config = format!(
            "{}[vault]\nunlock = [\"{OPENED_BY}\"]\n[http]\n{KEY} = 10\n{}",
            document(&bench, "edge"),
            ReleaseKeys::one(7).config()
        );
        let mut begun = Self {
            bench,
            disk,
            config,
            identity: String::new(),
        };
        let node = serving(&begun.bench, begun.builder());
        begun.identity = node.identity().to_owned();
        make_token(&node, "of the first version");
        begun
    }

    fn builder(&self) -> VmBuilder {
        let disk = VirtioDisk::file(self.disk.path());
        let data = VirtioDisk::file(self.bench.data()).data();
        machine(MachineKind::Q35, disk, &self.config)
            .disk(data.on(DiskController::Ahci))
            .fw_cfg(MEDIUM, SEED_KEY)
    }

    /// Starts the last try of a version, on the machine that `clock` makes of it.
    fn trial(&self, program: &[u8], clock: fn(VmBuilder) -> VmBuilder) -> (Vm, ConsoleMark) {
        self.disk.put_on_trial(program, 1, OPENED_BY);
        let vm = clock(self.builder()).start();
        let vm = vm.unwrap_or_else(|error| panic!("{error}"));
        let trial = "GRUB starts slot b on trial, tries left after this one: 0";
        let mark = wait(&vm, ConsoleMark::default(), trial);
        (vm, mark)
    }

    /// Runs the trial of a version that fails it, with a quick clock. Returns what the version before says about it.
    fn returns_from(&self, program: &[u8]) -> String {
        self.returned(self.trial(program, quick))
    }

    /// Waits until a trial has failed. Returns what the version before says about it.
    fn returned(&self, (vm, trial): (Vm, ConsoleMark)) -> String {
        let limit = vm.scale(DONE_WITHIN);
        let ended = vm.console().wait_any(trial, &[RESTARTS, DEADLOCKED], limit);
        assert!(matches!(ended, WaitResult::Said(_)), "{}", vm.report());
        if vm.console().since(trial).contains(DEADLOCKED) {
            // The kernel restarts the machine ten seconds later, through which an emulated processor spins.
            vm.reset_button().unwrap_or_else(|error| panic!("{error}"));
        }
        let good = wait(&vm, trial, "GRUB starts slot a");
        self.serves(&vm, good);
        let failed = format!("problem update-failed: version {SECOND} failed its trial");
        wait(&vm, good, &failed);
        let line = vm.wait_line(&failed, DONE_WITHIN);
        let line = line.unwrap_or_else(|error| panic!("{error}")).text;
        drop(vm);
        assert!(line.contains(&format!("returned to {FIRST}")), "{line}");
        let record = self.disk.record().expect("a record");
        assert_eq!(record.phase(), BootPhase::Failed);
        let (_, why) = line.split_once("': ").expect("the stage and the reason");
        why.to_owned()
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
        let mut node = serving(&self.bench, self.builder());
        assert_eq!(node.identity(), self.identity);
        let good = [("version", SECOND), ("slot", "b"), ("state", "good")];
        stands(&node, &good);
        make_token(&node, "of the second version");
        let mark = node.vm().console().mark();
        let back = roll_back(self.bench.admin(), &node);
        assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
        node.wait_ready(mark);
        assert_eq!(node.identity(), self.identity);
        let good = [("version", FIRST), ("slot", "a"), ("state", "good")];
        stands(&node, &good);
        let problems = node.info()["problems"].to_string();
        assert!(!problems.contains("update-failed"), "{problems}");
        for note in ["of the first version", "of the second version"] {
            has_token(&node, note);
        }
        let log = node.call("update/log", &json!({})).to_string();
        assert_eq!(log.matches("\"failed\"").count(), 4, "{log}");
    }

    /// Waits until the machine serves with the identity of the first version.
    fn serves(&self, vm: &Vm, after: ConsoleMark) {
        let ready = wait(vm, after, READY);
        wait(vm, ready, " port ");
        let text = vm.console().since(ready);
        let mut words = text.split_whitespace();
        let identity = words.find(|word| word.starts_with("ed25519:"));
        assert_eq!(identity, Some(&*self.identity));
    }
}

fn wait(vm: &Vm, after: ConsoleMark, line: &str) -> ConsoleMark {
    let found = vm.wait_for_after(after, line, DONE_WITHIN);
    found.unwrap_or_else(|error| panic!("{error}"))
}
