//! Versions that fail. After each the first version serves with its identity, and says why.

use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot};
use alknet_qemu::{Accel, ConsoleMark, MachineKind, VirtioDisk, Vm, VmBuilder, WatchdogAction};
use alknet_tests::{MachineNode, READY, TestBench};

use crate::update::bundle::{ReleaseDraft, ReleaseKeys};
use crate::update::disk::SlotDiskImage;
use crate::update::program::{AddedFile, FOLDER, PROGRAM, changed, hanging_program, kernel_alone};
use crate::update::{FIRST, SECOND, config, failed_update, machine, serving, stands};

/// Longest wait until the first version serves again.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Leaves out the protocols of the internet, and two parts of the kernel that need them: PID 1 runs, and the node ends
/// because it has no port to serve.
const NO_PORT: &str =
    "initcall_blacklist=inet_init,inet6_init,inet_blackhole_dev_init,cubictcp_register";
/// The guest's clock goes on to the next timer whenever the guest waits, so the five minutes after which PID 1 restarts a
/// machine without a node pass at once.
const QUICK_CLOCK: [&str; 2] = ["-icount", "shift=3,sleep=off"];

/// From `alknet update`: the kernel finds no program that it can start, three times.
#[test]
fn update_that_panics_at_boot_returns_and_says_so() {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    let bad = kernel_alone(&first, SECOND, &[("init", PROGRAM, b"no program")]);
    let bundle = keys.bundle(bench.path(), &ReleaseDraft::new(1, SECOND), &bad);
    let vm = machine(
        MachineKind::Q35Uefi,
        VirtioDisk::file(disk.path()),
        &config(&bench, &keys),
    );
    let mut node = serving(&bench, vm);
    let mark = node.vm().console().mark();
    let failed = failed_update(bench.admin(), &mut node, &bundle);
    assert!(failed.errors.contains("did not start"), "{failed:?}");
    let said = node.vm().console().since(mark);
    for left in [2, 1, 0] {
        let trial = format!("starting slot b on trial, tries left after this one: {left}");
        assert!(said.contains(&trial), "{trial} in {said}");
    }
    assert_reason(&node, "did not start");
    assert_eq!(node.info()["problems"][0]["code"], "update-failed");
    assert!(
        disk.program(BootSlot::A) == Some(first),
        "slot a was changed"
    );
}

/// Versions whose last try is left, on the disk of a machine that served before.
#[test]
fn update_that_hangs_or_does_not_serve_returns_and_says_so() {
    let bench = TestBench::new();
    let keys = ReleaseKeys::one(7);
    let disk = SlotDiskImage::new(bench.raw());
    let config = config(&bench, &keys);
    let first = disk.program(BootSlot::A).expect("the image has it");
    let builder = || machine(MachineKind::Q35Uefi, VirtioDisk::file(disk.path()), &config);
    let node = serving(&bench, builder());
    let identity = node.identity().to_owned();
    node.end();

    let hangs = hanging_program();
    let files: [AddedFile<'_>; 2] = [("dev", FOLDER, b""), ("init", PROGRAM, &hangs)];
    let hangs = kernel_alone(&first, SECOND, &files);
    disk.put_on_trial(&hangs, 1, "absent");
    let vm = builder().watchdog(WatchdogAction::Reset);
    let node = serving(&bench, vm);
    let bite = node.vm().qmp().wait_event("WATCHDOG", 0, Duration::ZERO);
    assert!(bite.is_some(), "no watchdog\n{}", node.vm().report());
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[
            ("version", FIRST),
            ("state", "failed"),
            ("other_version", SECOND),
        ],
    );
    assert_reason(&node, "did not start");
    node.end();

    let silent = changed(&first, SECOND, NO_PORT, &[]);
    disk.put_on_trial(&silent, 1, "absent");
    let vm = back(quick(builder()));
    let why = "problem update-failed: version 0.2.0 failed its trial";
    let told = vm.wait_for(why, BACK_WITHIN);
    told.unwrap_or_else(|error| panic!("{error}"));
    drop(vm);
    let record = disk.record().expect("a record");
    assert_eq!(record.phase(), BootPhase::Failed);
    let node = serving(&bench, builder());
    assert_eq!(node.identity(), identity);
    assert_reason(&node, "its node ended");
}

/// The machine with [`QUICK_CLOCK`], which only an emulated processor has.
pub(crate) fn quick(builder: VmBuilder) -> VmBuilder {
    QUICK_CLOCK
        .iter()
        .fold(builder.accel(Accel::Tcg), |vm, word| vm.argument(*word))
}

/// Waits until the trial is over and the first version serves.
fn back(builder: VmBuilder) -> Vm {
    let vm = builder.start().unwrap_or_else(|error| panic!("{error}"));
    let wait = |mark, line: &str| {
        let found = vm.wait_for_after(mark, line, BACK_WITHIN);
        found.unwrap_or_else(|error| panic!("{error}"))
    };
    let trial = wait(ConsoleMark::default(), "starting slot b on trial");
    let good = wait(trial, "alknet-loader: starting slot a");
    wait(good, READY);
    vm
}

fn assert_reason(node: &MachineNode, why: &str) {
    let status = stands(node, &[("version", FIRST), ("state", "failed")]);
    let last = &status["last"];
    assert_eq!(last["outcome"], "failed", "{status:#}");
    assert_eq!(last["version"], SECOND, "{status:#}");
    let reason = last["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(why), "{status:#}");
}
