//! Updates of a machine under Secure Boot with its owner's key, whose vault the TPM opens by PCR 7, 11 and 12. And an
//! attacker who has the disk and the older version, which the owner signed as well: it starts, and opens nothing. Once the
//! owner has put its hash into the firmware's list of forbidden images (`dbx`), it does not start.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_boot_state::BootSlot;
use alknet_image::{ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES, disk_bytes_by_head};
use alknet_qemu::{PlatformOwner, Vm};
use alknet_tests::{BootVariant, CliOutput, MachineBuilder, MachineNode, TestBench, binary};
use alknet_tpm::predict::authenticode;
use serde_json::{Value, json};

use crate::interposer::{asking_for_the_slot, assert_refused, with};
use crate::knock;
use crate::power::is_full;
use crate::secure_boot::{self, OTHER_KEYS, OwnedPrograms, by, enrolled, enrolled_forbidding};
use crate::tpm::TPM_ALONE;
use crate::update::bundle::{ReleaseDraft, ReleaseKeys, write};
use crate::update::disk::SlotDiskImage;
use crate::update::program::{kernel_alone, versioned};
use crate::update::{FIRST, LIMIT, SECOND, failed_update, opening_slot, roll_back, stands, update};

/// The loader's message about a version that the firmware does not permit.
const NOT_PERMITTED: &str = "alknet-loader: slot b did not start: Secure Boot does not permit it";
/// Why the TPM does not open the vault for the older version, and why a machine does not take what opens an older one.
const OTHER_IMAGE: &str = "PCR 11 (the image or its command line)";
const OLDER_DISK: &str = "the disk is older than the last change that the TPM counted";
/// The programs on the disk after an update.
const PROGRAMS: [&str; 3] = [
    "EFI/ALKNET/A.EFI",
    "EFI/ALKNET/B.EFI",
    "EFI/BOOT/BOOTX64.EFI",
];
/// Longest wait from power-on until the console says so. Emulated firmware alone takes long.
const SAID_WITHIN: Duration = Duration::from_secs(60);
/// Where the two boot partitions lie, one behind the other: the first one has the record and the boot note, the second
/// one the loader and the slots.
const BOOT_BEGIN: u64 = 34 * LBA_BYTES;
const BOOT_END: u64 = ESP_FIRST_LBA * LBA_BYTES + ESP_BYTES;

/// To the owner's new version and back without a person, and in between the attacks of [`Rollback`]; then a version whose
/// bundle is signed and whose program another owner signed ends in the first version. In `cargo xtask soak update-cuts`
/// so does one whose program has no signature, which `secure_boot.rs` shows of the good slot in each run, and there alone
/// firmware forbids the first version. `alknet image verify` finds the owner's programs in both slots after the update, and
/// at the end the other owner's in the second one.
#[test]
fn update_under_secure_boot_and_back_starts_only_what_its_owner_signed() {
    let bench = TestBench::new();
    let [owner, other_owner] =
        ["owner", "other-owner"].map(|name| PlatformOwner::create(bench.path(), name));
    let [owner, other_owner] = [owner, other_owner].map(|made| made.expect("keys can be made"));
    let variables = enrolled(&bench, &owner, "owners");
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    OwnedPrograms::of_disk(&bench)
        .by(&bench, &owner, "first")
        .install(&bench);
    let second = versioned(&first, SECOND);
    let unsigned_second = write(bench.path(), "second", &second);
    let owners = by(&bench, &owner, &unsigned_second, "second-of-owner");
    let owners = std::fs::read(owners).expect("it was signed");
    // Firmware refuses the other two before it starts a kernel.
    let foreign = kernel_alone(&first, SECOND, "", &[]);
    let unsigned_other = write(bench.path(), "other", &foreign);
    let others = by(&bench, &other_owner, &unsigned_other, "second-of-other");
    let others = std::fs::read(others).expect("it was signed");
    let keys = ReleaseKeys::one(7);
    let bundle = |number, program: &[u8]| {
        keys.bundle(bench.path(), &ReleaseDraft::new(number, SECOND), program)
    };

    let configured = format!("{TPM_ALONE}\n{}", keys.config());
    let machine = || {
        let machine = bench.machine(BootVariant::UefiRaw).measured("own");
        machine.secured(&variables).configured(&configured)
    };
    let mut node = machine().boot();
    let identity = node.identity().to_owned();
    let slot_of_first = opened(&node);
    let rollback = Rollback::begin(&bench, node.vm());

    let mark = node.vm().console().mark();
    let done = update(
        bench.admin(),
        &node,
        &bundle(1, &owners),
        &["--yes", "--limit", LIMIT],
    );
    assert_eq!(done.status, 0, "{done:?}\n{}", node.vm().report());
    assert_eq!(done.json()["plan"]["needs_person"], Value::Null);
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[("version", SECOND), ("slot", "b"), ("state", "good")],
    );
    let slot_of_second = opened(&node);
    assert_ne!(slot_of_first, slot_of_second);
    node.end();
    all_are_signed(&bench, &owner);
    rollback.opens_nothing(&machine);
    if is_full() {
        rollback.starts_nothing_forbidden(&machine, &owner, &variables);
    }
    let mut node = machine().boot();
    assert_eq!(node.identity(), identity);
    assert_eq!(opened(&node), slot_of_second);

    let mark = node.vm().console().mark();
    let back = roll_back(bench.admin(), &node);
    assert_eq!(back.status, 0, "{back:?}\n{}", node.vm().report());
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    stands(
        &node,
        &[("version", FIRST), ("slot", "a"), ("state", "good")],
    );
    assert_ne!(opened(&node), slot_of_second);

    let unsigned = is_full().then_some((2, &foreign));
    for (number, program) in unsigned.into_iter().chain([(3, &others)]) {
        let mark = node.vm().console().mark();
        failed_update(bench.admin(), &mut node, &bundle(number, program));
        let said = node.vm().console().since(mark);
        assert!(said.contains(NOT_PERMITTED), "{said}");
        stands(
            &node,
            &[("version", FIRST), ("slot", "a"), ("state", "failed")],
        );
        opened(&node);
    }
    drop(node);
    let refused = verified(&bench, &owner);
    assert_eq!(refused.code(), "IMAGE_DIFFERS", "{refused:?}");
    let named = PROGRAMS.map(|path| refused.errors.contains(path));
    assert_eq!(named, [false, true, false], "{refused:?}");
}

/// The owner's certificate fits every program of a disk that was started, has grown and has a program in each slot.
fn all_are_signed(bench: &TestBench, owner: &PlatformOwner) {
    let disk = File::open(bench.raw()).expect("the disk is ours");
    let mut head = [0; 2 * LBA_BYTES as usize];
    disk.read_exact_at(&mut head, 0).expect("it is longer");
    let bytes = disk.metadata().expect("the disk is ours").len();
    let moved = disk_bytes_by_head(&head);
    assert_eq!(moved, Some(bytes), "the place of the table's backup");
    let found = verified(bench, owner).json();
    let expected = PROGRAMS.map(|path| format!("raw.raw: {path}"));
    assert_eq!(
        found["efi_programs"]["checked"],
        json!(expected),
        "{found:#}"
    );
}

/// What the command line says of the programs on the disk and this owner's certificate.
fn verified(bench: &TestBench, owner: &PlatformOwner) -> CliOutput {
    let mut verify = Command::new(binary());
    verify
        .args(["image", "verify", "--json", "--efi-cert"])
        .args([owner.certificate(), &bench.raw()])
        .stdin(Stdio::null());
    bench.admin().run(verify)
}

/// The number of the one slot of the vault, which is the TPM's and opened it.
fn opened(node: &MachineNode) -> Value {
    let slot = opening_slot(node, &json!([7, 11, 12]));
    assert_eq!(slot["protection"], "measured and enforced", "{slot:#}");
    slot["slot"].clone()
}

/// An attacker who has a copy of the disk from before an update.
struct Rollback<'a> {
    bench: &'a TestBench,
    before: PathBuf,
}

impl<'a> Rollback<'a> {
    /// Copies the disk of a machine that runs the first version.
    fn begin(bench: &'a TestBench, vm: &Vm) -> Self {
        let before = bench.path().join("before.raw");
        let copied = vm
            .pause()
            .and_then(|()| alknet_qemu::copy(&bench.raw(), &before));
        copied
            .and_then(|()| vm.resume())
            .unwrap_or_else(|error| panic!("{error}"));
        Self { bench, before }
    }

    /// After the update, while the machine is off. The owner signed the first version, so firmware starts it. The TPM
    /// opens nothing for it: its slot is gone, and the vault that still has it is older than the TPM's counter says. The
    /// disk is then as it was before the attack.
    fn opens_nothing<'b>(&self, machine: &dyn Fn() -> MachineBuilder<'b>) {
        let disk = self.bench.raw();
        let now = self.bench.path().join("now.raw");
        copy(&disk, &now);
        // The record and the slots of before, beside the newest data.
        self.put_boot_back();
        let attacker = asking_for_the_slot(&disk);
        let vm = with(machine(), &attacker).start();
        stays_closed(&vm, OTHER_IMAGE);
        assert_refused(&attacker, "PCR 11");
        drop(vm);
        // Everything of before.
        copy(&self.before, &disk);
        stays_closed(&machine().start(), OLDER_DISK);
        copy(&now, &disk);
    }

    /// The same attack with nothing but the record, after the owner has put the hash of the first version into `dbx` as
    /// docs/update.md says. Firmware refuses this version, and the loader starts the second one. The list is in PCR 7, so
    /// the TPM opens nothing for that one either until its slot is renewed. The disk and the list are then as before.
    fn starts_nothing_forbidden<'b>(
        &self,
        machine: &dyn Fn() -> MachineBuilder<'b>,
        owner: &PlatformOwner,
        variables: &Path,
    ) {
        let raw = self.bench.raw();
        let [now, permissive] = ["now.raw", "permissive"].map(|name| self.bench.path().join(name));
        copy(&raw, &now);
        copy(variables, &permissive);
        let disk = SlotDiskImage::new(&raw);
        let first = disk.program(BootSlot::A).expect("it was updated");
        let hash = authenticode(&first).unwrap_or_else(|error| panic!("{error}"));
        let forbidding = enrolled_forbidding(self.bench, owner, &hash, "forbidding");
        copy(&forbidding, variables);
        disk.make_good(BootSlot::A);
        let vm = machine().start();
        let second = "alknet-loader: starting slot b";
        for line in [secure_boot::NOT_PERMITTED, second, OTHER_KEYS] {
            let said = vm.wait_for(line, SAID_WITHIN);
            said.unwrap_or_else(|error| panic!("{error}"));
        }
        knock::serves_nothing(&vm);
        drop(vm);
        copy(&now, &raw);
        copy(&permissive, variables);
    }

    fn put_boot_back(&self) {
        let before = File::open(&self.before).expect("the copy is ours");
        let disk = File::options().write(true).open(self.bench.raw());
        let disk = disk.expect("the disk is ours");
        let mut buffer = vec![0; 1 << 20];
        let mut at = BOOT_BEGIN;
        while at < BOOT_END {
            let length = (BOOT_END - at).min(buffer.len() as u64);
            let piece = &mut buffer[..usize::try_from(length).expect("a usize has 64 bits")];
            let read = before.read_exact_at(piece, at);
            let written = read.and_then(|()| disk.write_all_at(piece, at));
            written.expect("both have the partitions");
            at += length;
        }
        let record = SlotDiskImage::new(self.bench.raw()).record();
        assert_eq!(record.expect("a record").good(), BootSlot::A);
    }
}

fn copy(from: &Path, to: &Path) {
    alknet_qemu::copy(from, to).unwrap_or_else(|error| panic!("{error}"));
}

/// The machine starts the first version, does not open its vault for this reason, and serves nothing.
fn stays_closed(vm: &Vm, why: &str) {
    for line in ["alknet-loader: starting slot a", why] {
        let said = vm.wait_for(line, SAID_WITHIN);
        said.unwrap_or_else(|error| panic!("{error}"));
    }
    knock::serves_nothing(vm);
}
