//! The appliance under Secure Boot with its owner's key: an image signed with it starts and opens
//! its vault with the TPM, and any other image does not start. On a machine whose firmware an
//! attacker changed to start another one, the TPM opens nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_qemu::{PlatformOwner, Vm};
use alknet_tests::tools::{tool, tool_says, variable};
use alknet_tests::{BootVariant, SnapshotPoint, TestBench};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::boot_entry::make_former_slot;
use crate::interposer::{asking_for_the_slot, assert_refused, with};
use crate::knock;
use crate::tpm::{PASSPHRASE, WITH_PASSPHRASE, asked, says, served, shown, type_line};

/// Names the folder of Python packages by other authors.
pub(crate) const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";
/// Time from power-on until the firmware, or the console, has printed its message.
const SAID_WITHIN: Duration = Duration::from_secs(30);

/// The firmware's message about a program that it does not start.
const REFUSED: &str = "Access Denied";
/// The console's message if other keys decide what starts, or if firmware forbids other programs.
pub(crate) const OTHER_KEYS: &str = "PCR 7 (Secure Boot or its keys)";

/// A string in the machine's SMBIOS that the stub appends to the image's command line, enough to
/// run another program first. Here it names the project's own, so that the machine starts and can
/// be asked.
const OEM_STRING: &str =
    "type=11,value=io.systemd.stub.kernel-cmdline-extra=rdinit=/init init=/init root=/dev/vda";

/// The loader's message about a program in slot a that the firmware does not permit.
pub(crate) const NOT_PERMITTED: &str =
    "alknet-loader: slot a did not start: Secure Boot does not permit it";

/// Where the EFI system partition begins on the disk, for mtools, and the programs there.
const BOOT_AT: &str = "1M";
pub(crate) const LOADER: &str = "::/EFI/BOOT/BOOTX64.EFI";
pub(crate) const PROGRAM: &str = "::/EFI/ALKNET/A.EFI";

#[test]
fn only_what_the_owner_signed_starts_and_opens_the_vault() {
    let bench = TestBench::new();
    let [owner, other_owner] =
        ["owner", "other-owner"].map(|name| PlatformOwner::create(bench.path(), name));
    let [owner, other_owner] = [owner, other_owner].map(|made| made.expect("keys can be made"));
    let variables = enrolled(&bench, &owner, "owners");
    let unsigned = OwnedPrograms::of_disk(&bench);
    let machine = |chip: &str, variables: &Path| {
        let machine = bench.machine(BootVariant::UefiRaw).measured(chip);
        let machine = machine.secured(variables);
        machine.configured("[vault]\nunlock = [\"tpm2\"]")
    };
    // The firmware with the owner's key, at the point before it reads what it will start.
    let recorder = || machine("recorder", &variables);
    let ready = bench.record("ready", SnapshotPoint::ReadyToBoot, recorder);
    let owners = || machine("own", &variables).resumed(&ready);

    refused(&owners().start(), REFUSED);
    let signed = unsigned.by(&bench, &owner, "signed");
    // The loader starts nothing that firmware would not start.
    put(&bench, &signed.loader, LOADER);
    refused(&owners().start(), NOT_PERMITTED);
    signed.install(&bench);
    let node = owners().boot();
    let identity = node.identity().to_owned();
    let status = node.call("vault/status", &Value::Null);
    let slot = json!({ "slot": 0, "pcrs": [7, 11, 12], "pin": false,
                       "protection": "measured and enforced" });
    assert_eq!(status["tpm2"], json!([slot]), "{status:#}");
    assert_eq!(node.info()["problems"], json!([]));
    node.end();

    // Signed with another key, which this firmware does not know.
    let other_signed = unsigned.by(&bench, &other_owner, "other-signed");
    put(&bench, &other_signed.program, PROGRAM);
    refused(&owners().start(), NOT_PERMITTED);
    other_signed.install(&bench);
    refused(&owners().start(), REFUSED);
    // An attacker who gives that key to the firmware has a machine that starts. So has one who
    // removes all keys, which is tested with the smaller image of the TPM's own tests
    // (`init/tpm/tests/swtpm/enforced.rs`).
    let theirs = enrolled(&bench, &other_owner, "theirs");
    let attacker = asking_for_the_slot(&bench.raw());
    let vm = with(machine("own", &theirs), &attacker).start();
    let waited = vm.wait_line(OTHER_KEYS, SAID_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
    assert_refused(&attacker, "PCR 7");
    knock::serves_nothing(&vm);
    drop(vm);
    // The machine as at its first boot, from power-on, opens its vault as before: real firmware
    // must open what was sealed after recorded firmware.
    signed.install(&bench);
    let node = machine("own", &variables).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
}

/// A TPM slot does not open with a command line from SMBIOS: neither a slot as the node makes it
/// now nor one that was made before slots covered SMBIOS. The node replaces such an old slot as
/// soon as the passphrase has opened the vault. An attacker who switches Secure Boot off for a
/// while can make firmware keep such a string. The TPM itself refuses the new slot, as in
/// `boot_entry.rs`.
#[test]
fn a_command_line_of_smbios_opens_nothing_under_secure_boot() {
    let bench = TestBench::new();
    let owner = PlatformOwner::create(bench.path(), "owner").expect("keys can be made");
    let variables = enrolled(&bench, &owner, "owners");
    let unsigned = OwnedPrograms::of_disk(&bench);
    unsigned.by(&bench, &owner, "signed").install(&bench);
    let machine = |chip: &str| {
        let machine = bench.machine(BootVariant::UefiRaw).measured(chip);
        machine.secured(&variables).configured(WITH_PASSPHRASE)
    };
    let attacked = |chip: &str| {
        let machine = machine(chip);
        machine.with(|vm| vm.argument("-smbios").argument(OEM_STRING))
    };
    // Firmware runs once without the string and once with it, and each time hands over to two machines.
    let own = bench.record("own", SnapshotPoint::Kernel, || machine("recorder"));
    let with_string = || attacked("recorder");
    let with_string = bench.record("with-string", SnapshotPoint::Kernel, with_string);

    let vm = machine("own").resumed(&own).start();
    asked(&vm, "new passphrase");
    type_line(&vm, PASSPHRASE);
    shown(&vm, "the same again");
    type_line(&vm, PASSPHRASE);
    let node = served(&bench, vm);
    let identity = node.identity().to_owned();
    let enforced = |slot: u32| {
        json!([{ "slot": slot, "pcrs": [7, 11, 12], "pin": false,
                 "protection": "measured and enforced" }])
    };
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["tpm2"], enforced(0), "{status:#}");
    node.end();

    make_former_slot(&bench.raw(), &bench.path().join("own.tpm"));
    let vm = attacked("own").resumed(&with_string).start();
    asked(&vm, "passphrase of the vault");
    says(&vm, "something from beside the image was started with it");
    knock::serves_nothing(&vm);
    type_line(&vm, PASSPHRASE);
    let node = served(&bench, vm);
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "passphrase", "{status:#}");
    assert_eq!(status["tpm2"], enforced(3), "{status:#}");
    node.end();

    // PCR 7 and 11 are as before.
    let attacker = asking_for_the_slot(&bench.raw());
    let vm = with(attacked("own").resumed(&with_string), &attacker).start();
    asked(&vm, "passphrase of the vault");
    says(
        &vm,
        "to: PCR 12 (a command line or add-on from beside the image) has another value",
    );
    assert_refused(&attacker, "PCR 12");
    knock::serves_nothing(&vm);
    drop(vm);

    // Without the string, the measurements open the new slot.
    let node = machine("own").resumed(&own).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "tpm2", "{status:#}");
    assert_eq!(status["tpm2"], enforced(3), "{status:#}");
    assert_eq!(node.info()["problems"], json!([]));
}

/// The firmware does not start what is on the disk, and something says so.
fn refused(vm: &Vm, says: &str) {
    let waited = vm.wait_for(says, SAID_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
    assert!(!vm.console().text().contains("alknet:"), "{}", vm.report());
}

/// What an owner signs for a disk.
pub(crate) struct OwnedPrograms {
    loader: PathBuf,
    program: PathBuf,
}

impl OwnedPrograms {
    /// Those of the disk.
    pub(crate) fn of_disk(bench: &TestBench) -> Self {
        Self {
            loader: copy_out(bench, LOADER, "unsigned-loader"),
            program: program(bench),
        }
    }

    /// The same, signed.
    pub(crate) fn by(&self, bench: &TestBench, owner: &PlatformOwner, name: &str) -> Self {
        Self {
            loader: by(bench, owner, &self.loader, &format!("{name}-loader")),
            program: by(bench, owner, &self.program, name),
        }
    }

    /// Puts both on the disk.
    pub(crate) fn install(&self, bench: &TestBench) {
        put(bench, &self.loader, LOADER);
        put(bench, &self.program, PROGRAM);
    }
}

/// Firmware variables that allow what this owner signed.
pub(crate) fn enrolled(bench: &TestBench, owner: &PlatformOwner, name: &str) -> PathBuf {
    let variables = bench.path().join(name);
    let enrolled = owner.enroll(&variables, variable(PACKAGES_VARIABLE).as_ref());
    enrolled.unwrap_or_else(|error| panic!("{error}"));
    variables
}

/// Firmware variables that allow what this owner signed, but not the program with this Authenticode hash.
pub(crate) fn enrolled_forbidding(
    bench: &TestBench,
    owner: &PlatformOwner,
    hash: &[u8],
    name: &str,
) -> PathBuf {
    let variables = bench.path().join(name);
    let hash = HEXLOWER.encode(hash);
    let packages = variable(PACKAGES_VARIABLE);
    let enrolled = owner.enroll_forbidding(&hash, &variables, packages.as_ref());
    enrolled.unwrap_or_else(|error| panic!("{error}"));
    variables
}

pub(crate) fn by(bench: &TestBench, owner: &PlatformOwner, program: &Path, name: &str) -> PathBuf {
    let signed = bench.path().join(name);
    let done = owner.sign(program, &signed);
    done.unwrap_or_else(|error| panic!("{error}"));
    signed
}

/// The boot partition of the disk, for mtools.
pub(super) fn boot_partition(bench: &TestBench) -> String {
    format!("{}@@{BOOT_AT}", bench.raw().display())
}

/// The original program of the disk.
pub(crate) fn program(bench: &TestBench) -> PathBuf {
    copy_out(bench, PROGRAM, "unsigned")
}

/// Copies a file from the boot partition of the disk.
pub(crate) fn copy_out(bench: &TestBench, from: &str, name: &str) -> PathBuf {
    let copy = bench.path().join(name);
    let disk = boot_partition(bench);
    let arguments = ["-i", &disk, from, &copy.display().to_string()];
    tool_says("mcopy", &arguments);
    copy
}

/// Puts a file on the boot partition of the disk.
pub(crate) fn put(bench: &TestBench, file: &Path, to: &str) {
    let disk = boot_partition(bench);
    let arguments = ["-o", "-i", &disk, &file.display().to_string(), to];
    let done = tool("mcopy", &arguments);
    assert!(done.status.success(), "{done:?}");
}
