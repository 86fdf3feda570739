//! A medium that opens the vault: pulled, missed, and put in again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use alknet_qemu::{Disk, Vm};
use alknet_tests::tools::tool_says;
use alknet_tests::{Bench, Boot, Machine, Node, eventually};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::vault::{asked, shown, type_line};

/// What makes a vault that its medium opens, or else a passphrase.
const UNLOCK: &str = "[vault]\nunlock = [\"provisioning\", \"passphrase\"]";
const PASSPHRASE: &str = "correct horse";
/// Looks that are further apart than this are not the same one.
const LOOK_LASTS: Duration = Duration::from_secs(1);
/// Numbers of the machine's disks: the first one is that of its data.
const STICK: usize = 1;
const OTHER: usize = 2;
/// From power-on, or a lock, until the console says what it waits for.
const SAID_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_medium_that_was_pulled_is_missed_and_is_enough_when_it_is_put_in() {
    let bench = Bench::new();
    let stick = stick(&bench, "stick", "27209049-2f6c-46bf-a462-c718ee429cc0");
    let other = self::stick(&bench, "other", "7cccc8ae-7f8c-4f5e-925a-596b2b44a511");
    let machine = |boot, disks: Vec<Disk>| -> Machine<'_> {
        let machine = bench.machine(boot).configured(UNLOCK);
        disks.into_iter().fold(machine, Machine::disk)
    };
    let plugged = || Disk::file(&stick).read_only();

    let vm = machine(Boot::MicrovmErofs, vec![plugged()]).start();
    asked(&vm, "new passphrase");
    type_line(&vm, PASSPHRASE);
    shown(&vm, "the same again");
    type_line(&vm, PASSPHRASE);
    let node = Node::new(vm, Boot::MicrovmErofs, bench.admin().clone());
    let identity = node.identity().to_owned();
    node.end();

    // It is there: nobody is asked.
    let node = machine(Boot::MicrovmErofs, vec![plugged()]).boot();
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "provisioning", "{status:#}");
    assert_eq!(status["sealed"], true, "{status:#}");
    node.end();

    // It is not: the console asks and says why, and nothing is served. Somebody else's medium does not
    // help; the right one does, without a key.
    let absent = [plugged(), Disk::file(&other).read_only()].map(Disk::unplugged);
    let vm = machine(Boot::Q35Initramfs, absent.into()).start();
    asked(&vm, "passphrase of the vault");
    let said = vm.wait_for("no medium with its seed.key is attached", SAID_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    vm.plug_disk(OTHER)
        .unwrap_or_else(|error| panic!("{error}"));
    looked_at(&vm, OTHER, 2);
    let text = vm.console().text();
    assert!(!text.contains(alknet_tests::READY), "{text}");
    vm.plug_disk(STICK)
        .unwrap_or_else(|error| panic!("{error}"));
    let mut node = Node::new(vm, Boot::Q35Initramfs, bench.admin().clone());
    assert_eq!(node.identity(), identity);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["opened_by"], "provisioning", "{status:#}");

    // What is open stays open without it.
    for disk in [STICK, OTHER] {
        pull(node.vm(), disk);
    }
    assert_eq!(node.info()["problems"], json!([]));

    // Once it is closed the passphrase opens it as well.
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

/// Pulls a disk, and waits until the machine has let go of it.
fn pull(vm: &Vm, disk: usize) {
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

/// Waits until the machine has looked so many times at a disk that was put in: it looks for media every 3 s,
/// and reads what is on them.
fn looked_at(vm: &Vm, disk: usize, times: usize) {
    let device = format!("disk{disk}");
    let reads = || {
        let all = vm.qmp().execute("query-blockstats", json!({}));
        let all = all.unwrap_or_else(|error| panic!("{error}"));
        let mut all = all.as_array().into_iter().flatten();
        let one = all.find(|one| one["device"] == device.as_str());
        one.and_then(|one| one["stats"]["rd_operations"].as_u64())
            .unwrap_or_else(|| panic!("no {device}"))
    };
    // What is read at once belongs to one look.
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
