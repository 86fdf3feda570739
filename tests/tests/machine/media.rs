//! A medium that opens the vault: pulled, missed, and put in again.

use std::path::PathBuf;
use std::time::Duration;

use alknet_qemu::Disk;
use alknet_tests::tools::tool_says;
use alknet_tests::{Bench, Boot, Machine, Node};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::vault::{asked, shown, type_line};

/// What makes a vault that its medium opens, or else a passphrase.
const UNLOCK: &str = "[vault]\nunlock = [\"provisioning\", \"passphrase\"]";
const PASSPHRASE: &str = "correct horse";
/// From power-on until the console says what it waits for.
const SAID_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_medium_that_was_pulled_is_missed_and_is_enough_when_it_is_put_in() {
    let bench = Bench::new();
    let stick = stick(&bench, "stick", "27209049-2f6c-46bf-a462-c718ee429cc0");
    let other = self::stick(&bench, "other", "7cccc8ae-7f8c-4f5e-925a-596b2b44a511");
    let machine = |disks: Vec<Disk>| -> Machine<'_> {
        let machine = bench.machine(Boot::Q35Initramfs).configured(UNLOCK);
        machine.with(|vm| disks.into_iter().fold(vm, |vm, disk| vm.disk(disk)))
    };
    let plugged = || Disk::file(&stick).read_only();

    let vm = machine(vec![plugged()]).start();
    asked(&vm, "new passphrase");
    type_line(&vm, PASSPHRASE);
    shown(&vm, "the same again");
    type_line(&vm, PASSPHRASE);
    let node = Node::new(vm, Boot::Q35Initramfs, bench.admin().clone());
    let identity = node.identity().to_owned();
    node.end();

    // It is there: nobody is asked.
    let node = machine(vec![plugged()]).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "provisioning", "{status:#}");
    assert_eq!(status["sealed"], true, "{status:#}");
    node.end();

    // It is not: the console asks and says why, and nothing is served. Somebody else's medium does not
    // help; the right one does, without a key.
    let waiting = machine(vec![
        plugged().unplugged(),
        Disk::file(&other).read_only().unplugged(),
    ]);
    let vm = waiting.start();
    asked(&vm, "passphrase of the vault");
    let said = vm.wait_for("no medium with its seed.key is attached", SAID_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    vm.plug_disk(1).unwrap_or_else(|error| panic!("{error}"));
    // Longer than two rounds of looking for media, by the clock of the machine.
    let rounds = vm.scale(Duration::from_secs(1));
    std::thread::sleep(rounds);
    let text = vm.console().text();
    assert!(!text.contains(alknet_tests::READY), "{text}");
    vm.plug_disk(0).unwrap_or_else(|error| panic!("{error}"));
    let node = Node::new(vm, Boot::Q35Initramfs, bench.admin().clone());
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "provisioning", "{status:#}");

    // What is open stays open without it.
    for disk in [0, 1] {
        let pulled = node.vm().unplug_disk(disk);
        pulled.unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(node.info()["problems"], json!([]));
    node.end();

    // The passphrase opens it as well.
    let vm = machine(vec![plugged().unplugged()]).start();
    asked(&vm, "passphrase of the vault");
    type_line(&vm, PASSPHRASE);
    let node = Node::new(vm, Boot::Q35Initramfs, bench.admin().clone());
    assert_eq!(node.identity(), identity);
    node.end();
}

/// A volume with nothing but a key for the vault of that name, as mtools makes it.
fn stick(bench: &Bench, name: &str, vault: &str) -> PathBuf {
    let key = BASE64.encode(&[0x5e; 32]);
    let file = bench.path().join(format!("{name}.key"));
    let line = format!("alknet-seed-1 {vault} {key}\n");
    std::fs::write(&file, line).expect("the folder is ours");
    let image = bench.path().join(format!("{name}.img"));
    let path = image.display().to_string();
    tool_says(
        "mformat",
        &["-C", "-f", "1440", "-v", "CIDATA", "-i", &path, "::"],
    );
    let file = file.display().to_string();
    tool_says("mcopy", &["-i", &path, &file, "::seed.key"]);
    image
}
