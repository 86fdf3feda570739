//! No key is made before there is randomness for it, and no key is made twice.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alknet_qemu::{TCG_CPU, VirtioDisk, VmBuilder};
use alknet_tests::{BootVariant, MachineBuilder, MachineNode, TestBench};

/// The processor's random generator, which it lacks besides what the harness leaves out.
const GENERATORS: &str = "-rdrand,-rdseed";
/// A clock that always starts at the same time, and counts the machine's instructions.
const CLOCK: &str = "base=2026-11-20T00:00:00,clock=vm";
/// Time from power-on until PID 1 waits.
const WAITS_WITHIN: Duration = Duration::from_secs(30);
/// Everything that a vault is written to at the first boot.
const HEAD_BYTES: usize = 16 << 20;
/// Bytes of the data disks, which are small so that copies are quick.
const DISK_BYTES: u64 = 256 << 20;

/// The kernel's generator gets no input: no device, no processor, and a clock that is the same on
/// every machine.
fn poor(vm: VmBuilder) -> VmBuilder {
    let processor = format!("{TCG_CPU},{GENERATORS}");
    ["-cpu", &processor, "-rtc", CLOCK]
        .into_iter()
        .fold(vm, VmBuilder::argument)
}

#[test]
fn no_key_is_made_before_the_kernel_has_randomness() {
    let bench = TestBench::new();
    let data = bench.disk("poor", DISK_BYTES);
    // In counted time, a second of gathering is a thousand million instructions, which is long
    // enough to check the disk.
    let machine = bench
        .machine(BootVariant::MicrovmErofs)
        .data(Some(VirtioDisk::file(&data).data()))
        .append("loglevel=6")
        .with(|vm| poor(vm).count_instructions());
    let vm = machine.start();
    let waits = vm.wait_for(
        "alknet: waiting for the kernel to gather randomness",
        WAITS_WITHIN,
    );
    waits.unwrap_or_else(|error| panic!("{error}"));
    vm.pause().unwrap_or_else(|error| panic!("{error}"));
    let text = vm.console().text();
    assert!(!text.contains("crng init done"), "too late to look: {text}");
    let mut head = vec![0; HEAD_BYTES];
    let disk = File::open(&data).expect("the disk is ours");
    disk.read_exact_at(&mut head, 0).expect("it is long enough");
    assert!(head.iter().all(|byte| *byte == 0), "something was made");
    vm.resume().unwrap_or_else(|error| panic!("{error}"));
    let node = MachineNode::new(vm, BootVariant::MicrovmErofs, bench.admin().clone());
    let text = node.vm().console().text();
    let place = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("no {what}: {text}"))
    };
    let order = [
        "waiting for the kernel",
        "crng init done",
        alknet_tests::READY,
    ]
    .map(place);
    assert!(order.is_sorted(), "{order:?}: {text}");
}

/// One machine is stopped while its kernel starts, and continues twice.
#[test]
fn two_machines_of_one_snapshot_make_different_vaults() {
    let bench = TestBench::new();
    let machine = |disk: &Path| -> MachineBuilder<'_> {
        bench
            .machine(BootVariant::MicrovmErofs)
            .data(Some(VirtioDisk::file(disk).data()))
            .append("loglevel=7")
            .with(poor)
    };
    let saved = bench.path().join("saved");
    std::fs::create_dir(&saved).expect("the folder is ours");
    let template = machine(&bench.disk("template", DISK_BYTES));
    let vm = template.with(VmBuilder::saveable).start();
    let started = vm.wait_for("Linux version", WAITS_WITHIN);
    started.unwrap_or_else(|error| panic!("{error}"));
    vm.save(&saved, WAITS_WITHIN)
        .unwrap_or_else(|error| panic!("{error}"));
    let text = vm.console().text();
    assert!(
        !text.contains("crng init done"),
        "too late for this test: {text}"
    );
    drop(vm);

    let of_it = |name: &str| {
        let disk = bench.disk(name, DISK_BYTES);
        let node = machine(&disk).with(|vm| vm.restore(&saved)).boot();
        let identity = node.identity().to_owned();
        // A serving node has its header on the disk.
        drop(node);
        let dump =
            alknet_tests::tools::tool_says("cryptsetup", &["luksUUID".as_ref(), disk.as_os_str()]);
        (identity, dump)
    };
    let (one, two) = (of_it("one"), of_it("two"));
    assert_ne!(one.0, two.0, "the same node twice");
    assert_ne!(one.1, two.1, "the same partition twice");
}
