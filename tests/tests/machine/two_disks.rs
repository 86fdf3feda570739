//! Two disks that both carry the image: a machine whose own disk is beside a copy, for example. If both have data, the
//! machine cannot know which are its own, so it serves nothing, says why, and writes to neither. GRUB alone notes in the
//! record which slot it starts. If only one disk has data, it is the machine's own, and its boot slots are as well.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use alknet_boot_state::RECORD_LBA;
use alknet_image::LBA_BYTES;
use alknet_qemu::{MachineKind, VirtioDisk};
use alknet_tests::TestBench;
use alknet_tests::tools::tool_says;

use crate::configuration::{NO_VAULT, document};
use crate::knock;
use crate::update::{machine, serving, stands, start_after_firmware};

/// Longest wait from power-on until the machine says why it serves nothing.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);
/// The problem, and the partitions that it names.
const AMBIGUOUS: &str =
    "alknet: problem data-ambiguous: several disks call themselves alk-data: vda3, vdb3";

/// GRUB starts the first disk. Both are blank, so a machine that chose one would make a file system there.
#[test]
fn two_disks_with_the_image_serve_nothing_and_stay_as_they_are() {
    let bench = TestBench::new();
    let [one, two] = ["one", "two"].map(|name| {
        let path = bench.path().join(format!("{name}.raw"));
        alknet_qemu::copy(&bench.raw(), &path).unwrap_or_else(|error| panic!("{error}"));
        path
    });
    let before = sum(&one);
    assert_eq!(sum(&two), before, "copies differ");
    let config = document(&bench, "edge") + NO_VAULT;
    let vm =
        machine(MachineKind::Q35, VirtioDisk::file(&one), &config).disk(VirtioDisk::file(&two));
    let vm = vm.start().unwrap_or_else(|error| panic!("{error}"));
    let said = vm.wait_for(AMBIGUOUS, CLOSED_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    knock::serves_nothing(&vm);
    drop(vm);
    // GRUB notes in the record of its own disk which slot it starts.
    let record = |disk| File::options().read(true).write(true).open(disk);
    let [of_one, of_two] = [&one, &two].map(|disk| record(disk).expect("it is there"));
    let mut sector = vec![0; LBA_BYTES as usize];
    let at = RECORD_LBA * LBA_BYTES;
    of_two.read_exact_at(&mut sector, at).expect("readable");
    of_one.write_all_at(&sector, at).expect("writable");
    for disk in [&one, &two] {
        assert_eq!(sum(disk), before, "{} was written to", disk.display());
    }
}

/// An attacker attaches a copy of the machine's disk without its data. Both have the GUID of the boot partition that
/// firmware names.
#[test]
fn of_two_disks_of_one_build_the_one_with_the_data_has_the_boot_slots() {
    let bench = TestBench::new();
    let config = document(&bench, "edge") + NO_VAULT;
    let own = || machine(MachineKind::Q35Uefi, VirtioDisk::file(bench.raw()), &config);
    let node = start_after_firmware(&bench, &config);
    stands(&node, &[("state", "idle"), ("slot", "a")]);
    let identity = node.identity().to_owned();
    node.end();
    let other = bench.path().join("other.raw");
    alknet_qemu::copy(&bench.raw(), &other).unwrap_or_else(|error| panic!("{error}"));
    tool_says("sgdisk", &["-d", "3", &other.display().to_string()]);
    let before = sum(&other);
    let node = serving(&bench, own().disk(VirtioDisk::file(&other)));
    assert_eq!(node.identity(), identity);
    stands(&node, &[("state", "idle"), ("slot", "a")]);
    node.end();
    assert_eq!(sum(&other), before, "the other disk was written to");
}

fn sum(disk: &Path) -> u64 {
    alknet_qemu::checksum(disk).unwrap_or_else(|error| panic!("{error}"))
}
