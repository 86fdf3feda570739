//! A medium that opens the vault: removed, missing, and inserted again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alknet_qemu::{VirtioDisk, Vm};
use alknet_tests::tools::tool_says;
use alknet_tests::{BootVariant, MachineBuilder, MachineNode, TestBench, eventually};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::console::{commands, typed};
use super::tpm::leave_commands;
use super::vault::{asked, shown, type_line};

/// Makes a vault that its medium or a passphrase opens.
const UNLOCK: &str = "[vault]\nunlock = [\"provisioning\", \"passphrase\"]";
const PASSPHRASE: &str = "correct horse";
/// Reads that are further apart than this are different checks.
const LOOK_LASTS: Duration = Duration::from_secs(1);
/// The vault that the medium names, which is not secret, and another one.
const VAULT: &str = "27209049-2f6c-46bf-a462-c718ee429cc0";
pub(super) const OTHER_VAULT: &str = "7cccc8ae-7f8c-4f5e-925a-596b2b44a511";
/// Numbers of the machine's disks. The first one is the data disk.
const STICK: usize = 1;
const OTHER: usize = 2;
const FORGED: usize = 3;
/// The byte that a medium's key is made of, and that of a thief's.
pub(super) const KEY: u8 = 0x5e;
const THIEFS_KEY: u8 = 0xe5;
/// Size of a volume, in KiB.
const VOLUME_KIB: &str = "1440";
/// Time from power-on, or a lock, until the console says what it waits for.
const SAID_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_medium_that_was_pulled_is_missed_and_is_enough_when_it_is_put_in() {
    let bench = TestBench::new();
    let [stick, other, forged] = [
        ("stick", VAULT, KEY),
        ("other", OTHER_VAULT, KEY),
        ("forged", VAULT, THIEFS_KEY),
    ]
    .map(|(name, vault, key)| stick(&bench, name, vault, key));
    let machine = |boot, disks: Vec<VirtioDisk>| -> MachineBuilder<'_> {
        let machine = bench.machine(boot).configured(UNLOCK);
        disks.into_iter().fold(machine, MachineBuilder::disk)
    };
    let plugged = || VirtioDisk::file(&stick).read_only();

    let vm = machine(BootVariant::MicrovmErofs, vec![plugged()]).start();
    asked(&vm, "new passphrase");
    type_line(&vm, PASSPHRASE);
    shown(&vm, "the same again");
    type_line(&vm, PASSPHRASE);
    let node = MachineNode::new(vm, BootVariant::MicrovmErofs, bench.admin().clone());
    let identity = node.identity().to_owned();
    node.end();

    // The medium is there, so the console does not ask.
    let node = machine(BootVariant::MicrovmErofs, vec![plugged()]).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "provisioning", "{status:#}");
    assert_eq!(status["sealed"], true, "{status:#}");
    node.end();

    // Without it, the console asks and says why, and nothing is served. The medium of another vault
    // does not help, nor does a thief's, whose key names this vault. The right one does, without a
    // keystroke, although the machine finds the thief's first.
    let absent =
        [&stick, &other, &forged].map(|medium| VirtioDisk::file(medium).read_only().unplugged());
    let vm = machine(BootVariant::Q35Initramfs, absent.into()).start();
    asked(&vm, "passphrase of the vault");
    let said = vm.wait_for("no medium with its seed.key is attached", SAID_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    for disk in [OTHER, FORGED] {
        vm.plug_disk(disk).unwrap_or_else(|error| panic!("{error}"));
    }
    looked_at(&vm, FORGED, 2);
    let text = vm.console().text();
    assert!(!text.contains(alknet_tests::READY), "{text}");
    vm.plug_disk(STICK)
        .unwrap_or_else(|error| panic!("{error}"));
    let mut node = MachineNode::new(vm, BootVariant::Q35Initramfs, bench.admin().clone());
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "provisioning", "{status:#}");

    makes_no_slot_of_a_thiefs_key(&node);
    // An open vault stays open without the medium.
    for disk in [STICK, OTHER] {
        pull(node.vm(), disk);
    }
    assert_eq!(node.info()["problems"], json!([]));

    // After it is closed, the passphrase opens it as well.
    let mark = node.vm().console().mark();
    node.try_call("vault/lock", &json!({ "hard": true }), &[]);
    let closed =
        node.vm()
            .wait_for_after(mark, "alknet: asks: passphrase of the vault", SAID_WITHIN);
    let mark = closed.unwrap_or_else(|error| panic!("{error}"));
    type_line(node.vm(), PASSPHRASE);
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "passphrase", "{status:#}");
}

/// The owner has a key made for a medium, and a thief left a medium with the thief's own key in the
/// machine. No slot of the vault opens with that key afterwards.
fn makes_no_slot_of_a_thiefs_key(node: &MachineNode) {
    let slots = || node.call("vault/status", &Value::Null)["slots"].take();
    let before = slots();
    commands(node.vm());
    typed(
        node.vm(),
        "slot add provisioning",
        "passphrase of the vault: _",
    );
    typed(node.vm(), PASSPHRASE, "that names this vault");
    assert_eq!(slots(), before);
    leave_commands(node.vm());
}

/// Removes a disk, and waits until the machine has released it.
pub(super) fn pull(vm: &Vm, disk: usize) {
    vm.unplug_disk(disk)
        .unwrap_or_else(|error| panic!("{error}"));
    let device = format!("plugged{disk}");
    eventually("the medium is gone", || {
        let events = vm.qmp().events();
        let mut deleted = events.iter().filter(|it| it.name == "DEVICE_DELETED");
        deleted
            .any(|it| it.data["device"] == device.as_str())
            .then_some(())
    });
}

/// Waits until the machine has checked an inserted disk this many times. It looks for media every 3
/// s, and reads what is on them.
pub(super) fn looked_at(vm: &Vm, disk: usize, times: usize) {
    let device = format!("disk{disk}");
    let reads = || {
        let all = vm.qmp().execute("query-blockstats", json!({}));
        let all = all.unwrap_or_else(|error| panic!("{error}"));
        let mut all = all.as_array().into_iter().flatten();
        let one = all.find(|one| one["device"] == device.as_str());
        one.and_then(|one| one["stats"]["rd_operations"].as_u64())
            .unwrap_or_else(|| panic!("no {device}"))
    };
    // Reads close together belong to one check.
    let (mut looks, mut seen, mut last) = (0, reads(), Instant::now());
    eventually("the machine looks at the medium", || {
        let now = reads();
        if now != seen {
            looks += usize::from(last.elapsed() > LOOK_LASTS || looks == 0);
            (seen, last) = (now, Instant::now());
        }
        (looks > times).then_some(())
    });
}

/// A volume with only a key, made of one byte, for the vault with that name.
pub(super) fn stick(bench: &TestBench, name: &str, vault: &str, key: u8) -> PathBuf {
    let image = drive(bench, name);
    let key = BASE64.encode(&[key; 32]);
    put(
        bench,
        &image,
        "seed.key",
        &format!("alknet-seed-1 {vault} {key}\n"),
    );
    image
}

/// An empty volume with the label of a medium, without the partition table by which mformat would
/// make it two.
pub(super) fn drive(bench: &TestBench, name: &str) -> PathBuf {
    let image = bench.path().join(format!("{name}.img"));
    let path = image.display().to_string();
    tool_says("mkfs.vfat", &["-C", "-n", "CIDATA", &path, VOLUME_KIB]);
    image
}

/// Puts a file with this text into the root of a volume.
pub(super) fn put(bench: &TestBench, volume: &Path, name: &str, text: &str) {
    let file = bench.path().join("put");
    std::fs::write(&file, text).expect("the folder is ours");
    let [volume, file] = [volume, &file].map(|path| path.display().to_string());
    tool_says("mcopy", &["-i", &volume, &file, &format!("::{name}")]);
}
