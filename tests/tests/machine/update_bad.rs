//! Versions that fail. After each the first version serves with its identity, and says why.

use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot, TRIES};
use alknet_qemu::{
    Accel, ConsoleMark, DiskController, MachineKind, VirtioDisk, Vm, VmBuilder, WatchdogAction,
};
use alknet_tests::{MachineNode, READY, TestBench};
use serde_json::Value;

use crate::update::bundle::{ReleaseDraft, ReleaseKeys};
use crate::update::disk::SlotDiskImage;
use crate::update::program::{AddedFile, FOLDER, PROGRAM, changed, hanging_program, kernel_alone};
use crate::update::{
    FIRST, SECOND, config, failed_update, has_token, machine, make_token, serving, stands,
    start_after_firmware,
};

/// The note of a token that the first version made.
const KEPT: &str = "stays";
/// Longest wait until the first version serves again.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Leaves out the protocols of the internet, and two parts of the kernel that need them: PID 1 runs, and the node ends
/// because it has no port to serve.
const NO_PORT: &str =
    "initcall_blacklist=inet_init,inet6_init,inet_blackhole_dev_init,cubictcp_register";
/// A kernel that panicked restarts the machine after a second. The words of an image say ten, through which an emulated
/// processor spins; the last ones count.
const QUICK_RESTART: &str = "panic=1";
/// The guest's clock goes on to the next timer whenever the guest waits, so the five minutes after which PID 1 restarts a
/// machine without a node pass at once.
const QUICK_CLOCK: [&str; 2] = ["-icount", "shift=3,sleep=off"];

/// From `alknet update`, by a BIOS on a SATA disk: the kernel finds no program that it can start, three times.
#[test]
fn update_that_panics_at_boot_returns_and_says_so() {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    let files: [AddedFile<'_>; 1] = [("init", PROGRAM, b"no program")];
    let bad = kernel_alone(&first, SECOND, QUICK_RESTART, &files);
    let bundle = keys.bundle(bench.path(), &ReleaseDraft::new(1, SECOND), &bad);
    let sata = VirtioDisk::file(disk.path()).on(DiskController::Ahci);
    let config = config(&bench, &keys);
    let mut node = serving(&bench, machine(MachineKind::Q35, sata, &config));
    make_token(&node, KEPT);
    let mark = node.vm().console().mark();
    let failed = failed_update(bench.admin(), &mut node, &bundle);
    assert!(failed.errors.contains("did not start"), "{failed:?}");
    let said = node.vm().console().since(mark);
    for left in [2, 1, 0] {
        let trial =
            format!("alknet: GRUB starts slot b on trial, tries left after this one: {left}");
        assert!(said.contains(&trial), "{trial} in {said}");
    }
    assert_failed(&node, "did not start", "start");
    assert!(
        disk.program(BootSlot::A) == Some(first),
        "slot a was changed"
    );
}

/// A version that has all of its tries, and one whose last try is left, on the disk of a machine that served before.
#[test]
fn update_that_hangs_or_does_not_serve_returns_and_says_so() {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let config = config(&bench, &keys);
    let first = disk.program(BootSlot::A).expect("the image has it");
    let builder = || machine(MachineKind::Q35Uefi, VirtioDisk::file(disk.path()), &config);
    let node = start_after_firmware(&bench, &config);
    let identity = node.identity().to_owned();
    make_token(&node, KEPT);
    node.end();

    let hangs = hanging_program();
    let files: [AddedFile<'_>; 2] = [("dev", FOLDER, b""), ("init", PROGRAM, &hangs)];
    let hangs = kernel_alone(&first, SECOND, "", &files);
    disk.put_on_trial(&hangs, TRIES, "absent");
    let vm = back(quick(builder().watchdog(WatchdogAction::Reset)), TRIES);
    let events = vm.qmp().events().into_iter();
    let bites = events.filter(|event| event.name == "WATCHDOG").count();
    assert_eq!(bites, usize::from(TRIES), "{}", vm.report());
    drop(vm);
    let node = start_after_firmware(&bench, &config);
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[
            ("version", FIRST),
            ("state", "failed"),
            ("other_version", SECOND),
        ],
    );
    assert_failed(&node, "did not start", "start");
    node.end();

    let silent = changed(&first, SECOND, NO_PORT, &[]);
    disk.put_on_trial(&silent, 1, "absent");
    let vm = back(quick(builder()), 1);
    let why = "problem update-failed: version 0.2.0 failed its trial";
    let told = vm.wait_for(why, BACK_WITHIN);
    told.unwrap_or_else(|error| panic!("{error}"));
    drop(vm);
    let record = disk.record().expect("a record");
    assert_eq!(record.phase(), BootPhase::Failed);
    let node = start_after_firmware(&bench, &config);
    assert_eq!(node.identity(), identity);
    assert_failed(&node, "its node ended", "restart");
}

/// The machine with [`QUICK_CLOCK`], which only an emulated processor has.
pub(crate) fn quick(builder: VmBuilder) -> VmBuilder {
    QUICK_CLOCK
        .iter()
        .fold(builder.accel(Accel::Tcg), |vm, word| vm.argument(*word))
}

/// Waits until the trial with so many tries is over and the first version serves.
fn back(builder: VmBuilder, tries: u8) -> Vm {
    let vm = builder.start().unwrap_or_else(|error| panic!("{error}"));
    let wait = |mark, line: &str| {
        let found = vm.wait_for_after(mark, line, BACK_WITHIN);
        found.unwrap_or_else(|error| panic!("{error}"))
    };
    let trial = (0..tries).rev().fold(ConsoleMark::default(), |mark, left| {
        let line = format!("starting slot b on trial, tries left after this one: {left}");
        wait(mark, &line)
    });
    let good = wait(trial, "alknet-loader: starting slot a");
    wait(good, READY);
    vm
}

/// Checks that the first version runs with what it acknowledged before, and says why the second one failed: in its state,
/// as a problem, and in its metrics.
#[track_caller]
fn assert_failed(node: &MachineNode, why: &str, cause: &str) {
    let status = stands(node, &[("version", FIRST), ("state", "failed")]);
    let last = &status["last"];
    assert_eq!(last["outcome"], "failed", "{status:#}");
    assert_eq!(last["version"], SECOND, "{status:#}");
    let reason = last["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(why), "{status:#}");
    assert_eq!(last["cause"], cause, "{status:#}");
    let stage = match last["stage"].as_str().unwrap_or_default() {
        // The kernel did not get as far.
        "" => "none",
        stage => stage,
    };
    assert_eq!(stage == "none", cause == "start", "{status:#}");
    let info = node.info();
    let problems = info["problems"].as_array().expect("a list").iter();
    let mut texts = problems
        .filter(|problem| problem["code"] == "update-failed")
        .filter_map(|problem| problem["text"].as_str());
    assert!(
        texts.any(|text| text.ends_with(reason)),
        "{reason}: {info:#}"
    );
    let metrics = node.call("node/metrics", &Value::Null);
    let text = metrics["text"].as_str().unwrap_or_default();
    let series = format!(
        "alknet_update_last_info{{outcome=\"failed\",cause=\"{cause}\",stage=\"{stage}\"}} 1\n"
    );
    assert!(text.contains(&series), "{series} in {text}");
    has_token(node, KEPT);
}
