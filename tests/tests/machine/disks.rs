//! How PID 1 treats all kinds of disks: missing, full, damaged, another system's, larger than
//! before. PID 1 reports each on the console and in `node/info`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_qemu::{DiskRecorder, VirtioDisk, Vm};
use alknet_tests::tools::{RAW_DATA_AT, assert_clean, debugfs, tool_says};
use alknet_tests::{BootVariant, HUB, MachineNode, TestBench, eventually};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::knock::{self, SecondCard};

/// How long after its message that the node serves the console may report a problem.
const SAID_WITHIN: Duration = Duration::from_secs(10);
/// Time from power-on until a machine that serves nothing says why.
const CLOSED_WITHIN: Duration = Duration::from_secs(30);
/// The smallest data disk.
const SMALL_BYTES: u64 = 128 << 20;
/// How much is left free on a disk filled by a test. Less than 4 MiB counts as full.
const LEFT_BYTES: usize = 1 << 20;
/// The beginning of the console's message about that.
const DATA_FULL: &str = "alknet: problem data-full: ";
/// Offset of ext4's superblock, and its size.
const SUPER_AT: u64 = 1024;
/// Block 1: the group descriptors of a file system with blocks of 4 KiB.
const GROUPS_AT: u64 = 4096;
/// Uploads of files that the node accepts at the same time, and bytes of each piece of one.
const UPLOADS: usize = 4;
const PIECE_BYTES: usize = 512 << 10;
/// A partition table and its backup: 34 sectors at the front, 33 at the end.
const TABLE_BYTES: usize = 34 * 512;
const BACKUP_BYTES: u64 = 33 * 512;

/// Without its disk the machine does not know its key. A new key would be another node's, so the
/// machine shows no key to clients until the disk is there.
#[test]
fn without_its_data_disk_it_serves_nothing_and_goes_on_with_it() {
    let bench = TestBench::new();
    let identity = bench.snapshot(BootVariant::MicrovmErofs).switched_off();
    let disk = VirtioDisk::file(bench.data()).data().unplugged();
    let (link, machine) = (SecondCard::new(), bench.machine(BootVariant::Q35Initramfs));
    let vm = link.join(machine.data(Some(disk))).start();
    closed(&vm, "data-missing", "no disk with serial alk-data");
    link.hears(&vm, "data-missing");
    vm.plug_disk(0).unwrap_or_else(|error| panic!("{error}"));
    let node = MachineNode::new(vm, BootVariant::Q35Initramfs, bench.admin().clone());
    assert_eq!(node.identity(), identity);
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
}

#[test]
fn a_stateless_node_needs_no_disk_and_takes_none_that_holds_something() {
    let bench = TestBench::new();
    let machine = || {
        let machine = bench.machine(BootVariant::MicrovmErofs);
        machine.config(stateless(&bench))
    };
    let first = machine().data(None).boot();
    let info = first.info();
    assert_eq!(info["data"]["mode"], "volatile", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    let identity = first.identity().to_owned();
    drop(first);
    // A blank disk stays blank.
    let second = machine().boot();
    assert_ne!(second.identity(), identity, "memory does not keep");
    second.end();
    let written = alknet_qemu::content(&bench.data()).unwrap_or_else(|error| panic!("{error}"));
    assert!(written.is_empty(), "it was written to");

    let bench = TestBench::new();
    let identity = bench.snapshot(BootVariant::MicrovmErofs).switched_off();
    let machine = bench.machine(BootVariant::MicrovmErofs);
    let link = SecondCard::new();
    let vm = link.join(machine.config(stateless(&bench))).start();
    closed(&vm, "data-unwanted", "this node is stateless");
    link.hears(&vm, "data-unwanted");
    drop(vm);
    let node = bench.machine(BootVariant::MicrovmErofs).boot();
    assert_eq!(node.identity(), identity);
}

/// A configuration of a node that keeps nothing.
fn stateless(bench: &TestBench) -> String {
    let admin = bench.admin().identity();
    format!("[node]\nadmin_keys = [\"{admin}\"]\nstateless = true\n")
}

/// The disk does not take the backup of its partition table, so a first start cannot give it GUIDs of its own. Two machines
/// with such disks could not be told apart.
#[test]
fn a_disk_that_keeps_the_guids_of_the_image_gets_no_vault() {
    let bench = TestBench::new();
    let image = bench.raw();
    let disk_bytes = fs::metadata(&image).expect("the disk is ours").len();
    let recorder = DiskRecorder::serve(&image).unwrap_or_else(|error| panic!("{error}"));
    recorder.refuse_writes(disk_bytes - BACKUP_BYTES..disk_bytes);
    let machine = || {
        let machine = bench.machine(BootVariant::MicrovmErofs);
        machine.data(Some(VirtioDisk::recorded(&recorder)))
    };
    let link = SecondCard::new();
    let vm = link.join(machine()).start();
    closed(&vm, "data-unwritable", "it keeps the GUIDs of the image");
    link.hears(&vm, "data-unwritable");
    drop(vm);
    // A node that keeps nothing has nothing to tell apart.
    let node = machine().config(stateless(&bench)).boot();
    let info = node.info();
    assert_eq!(info["data"]["mode"], "volatile", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    node.end();
    let written = recorder.recording().writes_in(RAW_DATA_AT..disk_bytes);
    assert!(written.is_empty(), "its data partition: {written:?}");

    recorder.refuse_writes(0..0);
    let node = machine().boot();
    let info = node.info();
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert!(log(&node).contains("fresh GUIDs"), "{}", log(&node));
}

#[test]
fn two_disks_of_that_name_serve_nothing() {
    let bench = TestBench::new();
    let other = VirtioDisk::file(bench.disk("other", SMALL_BYTES)).data();
    let link = SecondCard::new();
    let machine = bench.machine(BootVariant::MicrovmErofs).disk(other);
    let vm = link.join(machine).start();
    closed(
        &vm,
        "data-ambiguous",
        "several disks call themselves alk-data",
    );
    link.hears(&vm, "data-ambiguous");
}

/// An attacker who replaces a sealed partition by a plain one gets no node that accepts it as its
/// own.
#[test]
fn a_plain_partition_is_for_a_node_that_is_configured_for_one() {
    let bench = TestBench::new();
    let node = small(&bench);
    let identity = node.identity().to_owned();
    // No stored configuration closes the machine at its next start.
    let file = bench.path().join("applied.toml");
    let admin = bench.admin().identity();
    fs::write(&file, format!("[node]\nadmin_keys = [\"{admin}\"]\n")).expect("the folder is ours");
    let mut apply = bench.admin().command(&["config", "apply", &node.target()]);
    apply.arg(&file);
    let applied = bench.admin().run(apply).json();
    assert_eq!(applied["kept"], false, "{applied:#}");
    node.end();
    // A node that was never told of it is closed, and leaves the partition to the node that was:
    // this one's next start.
    let link = SecondCard::new();
    let vm = link.join(bench.machine(BootVariant::MicrovmErofs)).start();
    closed(&vm, "data-unsealed", "does not say vault.init = \"off\"");
    link.hears(&vm, "data-unsealed");
    drop(vm);
    // Errors were recorded in it meanwhile, so it is read, but not written.
    debugfs(&bench.data(), "ssv state 2");
    let node = bench.machine(BootVariant::MicrovmErofs).plain().boot();
    let info = problem(&node, "data-damaged");
    assert_eq!(info["data"]["mode"], "read-only", "{info:#}");
    assert_eq!(node.identity(), identity, "it can still be read");
    node.end();
    // It was repaired, and its key was lost with a damaged block. It makes no new key.
    debugfs(&bench.data(), "ssv state 1");
    debugfs(&bench.data(), "rm identity/node.key");
    let vm = bench.machine(BootVariant::MicrovmErofs).plain().start();
    closed(&vm, "data-damaged", "identity/node.key, cannot be read");
}

/// Nearly full until a file is deleted, then without a free block. The machine serves and keeps its
/// data, and after the disk was enlarged, there is room.
#[test]
fn a_full_disk_serves_and_says_so_until_it_became_larger() {
    let bench = TestBench::new();
    let identity = small_off(&bench);
    let image = bench.data();
    let boot = |name: &str| {
        let admin = bench.admin().identity();
        let config = format!("[node]\nname = \"{name}\"\nadmin_keys = [\"{admin}\"]\n");
        let machine = bench.machine(BootVariant::MicrovmErofs).config(config);
        let node = machine.plain().boot();
        assert_eq!(node.identity(), identity);
        node
    };
    let filler = |bytes: usize| {
        let filler = bench.path().join("filler");
        fs::write(&filler, vec![7; bytes]).expect("the bench is ours");
        filler
    };
    let total = |info: &Value| info["data"]["total_bytes"].as_u64().expect("a number");
    let free = |info: &Value| info["data"]["free_bytes"].as_u64().expect("a number");
    // The rest of an upload. The node deletes it when it starts, and PID 1 has checked before.
    let left = filler(free_bytes(&image) - LEFT_BYTES);
    debugfs(
        &image,
        &format!("write {} state/tensors/uploads/left", left.display()),
    );
    let node = boot("crowded");
    let said = node.vm().wait_for(DATA_FULL, SAID_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    let info = eventually("the end of data-full", || {
        let info = node.info();
        let problems = info["problems"].as_array().expect("a list");
        let is_full = problems.iter().any(|it| it["code"] == "data-full");
        (!is_full).then_some(info)
    });
    assert_eq!(info["name"], "crowded", "its configuration is in force");
    assert!(free(&info) > 4 << 20, "{info:#}");
    node.end();

    // A few of the blocks hold the file's own map, and the rest of the file is refused.
    debugfs_overfull(&image, &filler(free_bytes(&image)));
    assert_eq!(free_bytes(&image), 0);
    let node = boot("packed");
    let info = problem(&node, "data-full");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["name"], "packed", "its configuration is in force");
    assert!(free(&info) < 4 << 20, "{info:#}");
    let before = total(&info);
    node.end();

    let file = File::options().write(true).open(&image);
    let file = file.expect("the disk is ours");
    file.set_len(4 * SMALL_BYTES).expect("the disk is ours");
    let node = boot("roomy-again");
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert!(total(&info) > 3 * before, "{info:#} after {before}");
    assert!(free(&info) > 2 * before, "{info:#} after {before}");
    node.end();
    assert_clean(&image, 0);
}

/// Each of the uploads begins while the store is empty, and could have all the room that stored files may take of the
/// disk. Their pieces come in turn, until one has no room.
#[test]
fn uploads_that_begin_together_share_the_room_of_a_small_disk() {
    let bench = TestBench::new();
    let node = small(&bench);
    let listed = node.call("config/list-files", &Value::Null);
    let room = listed["bytes_max"].as_u64().expect("a number");
    assert!(room < SMALL_BYTES / 4, "{listed:#}");
    let runtime = Runtime::new().expect("a runtime");
    let sent = runtime.block_on(send_in_turn(&node, room));
    let pieces = room / PIECE_BYTES as u64;
    assert!(sent + 2 > pieces, "{sent} pieces of {pieces} had room");
    let listed = node.call("config/list-files", &Value::Null);
    let bytes = listed["bytes"].as_u64().expect("a number");
    assert!(bytes <= room, "{listed:#}");
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
}

/// Begins all uploads, and sends pieces until the node refuses one. Returns how many it accepted, which may not have
/// more than `room` bytes.
async fn send_in_turn(node: &MachineNode, room: u64) -> u64 {
    let (_dialer, client) = node.client().await.expect("it serves");
    let step = async |input: Value| client.call("config/store-file", &input).await;
    let mut uploads = Vec::new();
    for number in 0..UPLOADS {
        let begun = step(json!({ "name": format!("site/s{number}") })).await;
        let begun = begun.unwrap_or_else(|error| panic!("{error}"));
        uploads.push(begun.value()["upload"].clone());
    }
    let bytes = BASE64.encode(&vec![b'x'; PIECE_BYTES]);
    let mut sent = 0;
    loop {
        let upload = &uploads[sent % UPLOADS];
        let offset = sent / UPLOADS * PIECE_BYTES;
        let piece = json!({ "upload": upload, "offset": offset, "bytes": bytes });
        if let Err(error) = step(piece).await {
            assert_eq!(error.code.to_string(), "QUOTA_EXCEEDED", "{error}");
            return sent as u64;
        }
        sent += 1;
        let all = (sent * PIECE_BYTES) as u64;
        assert!(all <= room, "{all} bytes were accepted, and {room} may be");
    }
}

/// A client that is about to lose its rights on a hub fills the disk with a bundle for workers, but for the last byte: the
/// removal of its peer could not be written.
#[test]
fn a_bundle_for_workers_leaves_room_on_a_small_disk() {
    let bench = TestBench::new();
    let snapshot = bench.snapshot(BootVariant::MicrovmErofs);
    let snapshot = snapshot.data_bytes(SMALL_BYTES).plain().configured(HUB);
    let node = snapshot.restore();
    for mib in [512, 110] {
        let upload = json!({ "bytes": mib << 20 });
        let refused = node.try_call("hub/update", &upload, &[]);
        assert_eq!(refused.code(), "CONFLICT", "{refused:?}");
        assert!(refused.errors.contains("no room"), "{refused:?}");
    }
    // One with a whole program has room.
    let begun = node.call("hub/update", &json!({ "bytes": 48 << 20 }));
    assert_eq!(begun["offset"], 0, "{begun:#}");
}

/// The free space of a disk's file system, by its own tools.
fn free_bytes(image: &Path) -> usize {
    let statistics = tool_says("dumpe2fs", &["-h".as_ref(), image.as_os_str()]);
    let line = statistics
        .lines()
        .find_map(|line| line.strip_prefix("Free blocks:"));
    let free: usize = line.expect("it counts").trim().parse().expect("a number");
    free * 4096
}

fn debugfs_overfull(image: &Path, filler: &Path) {
    let request = format!("write {} state/more", filler.display());
    let arguments = [
        "-w".as_ref(),
        "-R".as_ref(),
        request.as_ref(),
        image.as_os_str(),
    ];
    tool_says("debugfs", &arguments);
}

/// Its own file system with damaged group descriptors, with a damaged superblock, below another
/// system's file system, and on an unreadable disk. Another system's encrypted partition, and data
/// in a position where only a disk that is not blank has any.
#[test]
fn what_is_no_file_system_of_its_own_is_refused_and_never_formatted() {
    let bench = TestBench::new();
    small_off(&bench);
    let own = bench.data();
    let [descriptors, superblock, fat] = ["descriptors", "superblock", "fat"].map(|name| {
        let image = bench.path().join(format!("{name}.raw"));
        alknet_qemu::copy(&own, &image).unwrap_or_else(|error| panic!("{error}"));
        image
    });
    overwrite(&descriptors, &[0xa5; 1024], GROUPS_AT);
    overwrite(&superblock, &[0xa5; 1024], SUPER_AT);
    let name = fat.display().to_string();
    tool_says(
        "mformat",
        &[
            "-i", &name, "-v", "PHOTOS", "-T", "262144", "-h", "64", "-s", "32", "::",
        ],
    );
    let text = bench.disk("text", SMALL_BYTES);
    overwrite(&text, b"a diary", (1 << 20) - 512);
    let foreign = encrypted_elsewhere(&bench);
    let unknown = "neither blank nor a file system";
    let locked = "data disk vdb is encrypted, and no vault is in its header";
    let mut heard = BTreeSet::new();
    for (disk, image, code, why) in [
        (
            VirtioDisk::file(&descriptors),
            &descriptors,
            "data-damaged",
            "data disk vdb cannot be mounted",
        ),
        (
            VirtioDisk::file(&superblock),
            &superblock,
            "data-damaged",
            unknown,
        ),
        (VirtioDisk::file(&fat), &fat, "data-damaged", unknown),
        (VirtioDisk::file(&text), &text, "data-damaged", unknown),
        (VirtioDisk::file(&foreign), &foreign, "data-locked", locked),
        (
            VirtioDisk::unreadable(&own),
            &own,
            "data-unreadable",
            "data disk vdb cannot be read",
        ),
    ] {
        let before = checksum(image);
        let machine = bench
            .machine(BootVariant::MicrovmErofs)
            .data(Some(disk.data()));
        let link = SecondCard::new();
        let vm = link.join(machine.plain()).start();
        closed(&vm, code, why);
        if heard.insert(code) {
            link.hears(&vm, code);
        }
        drop(vm);
        let after = checksum(image);
        assert_eq!(before, after, "{} was written to", image.display());
    }
}

/// A disk that cryptsetup encrypted with its defaults: there is noise where this machine would have
/// its vault.
fn encrypted_elsewhere(bench: &TestBench) -> PathBuf {
    let image = bench.disk("foreign", SMALL_BYTES);
    let key = bench.path().join("foreign.key");
    fs::write(&key, "of another system").expect("the folder is ours");
    let arguments =
        "luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    let mut arguments: Vec<_> = arguments.split(' ').map(OsStr::new).collect();
    arguments.extend([image.as_os_str(), key.as_os_str()]);
    tool_says("cryptsetup", &arguments);
    image
}

#[test]
fn an_image_on_a_larger_disk_grows_once() {
    let bench = TestBench::new();
    let image = bench.raw();
    let shipped = table_of(&image);
    let disk_bytes = fs::metadata(&image).expect("the disk is ours").len();
    let node = bench
        .machine(BootVariant::UefiRaw)
        .after_firmware()
        .plain()
        .boot();
    let identity = node.identity().to_owned();
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");
    assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
    assert_eq!(info["data"]["device"], "/dev/vda3", "{info:#}");
    let total = info["data"]["total_bytes"].as_u64().expect("a number");
    assert!(
        total > (disk_bytes - RAW_DATA_AT) / 10 * 9,
        "{total} of {disk_bytes}"
    );
    let said = log(&node);
    for words in ["grown to the disk's end", "formatting the blank data disk"] {
        assert!(said.contains(words), "no {words}: {said}");
    }
    node.end();

    let grown = table_of(&image);
    assert_ne!(grown, shipped);
    let verdict = tool_says("sgdisk", &["-v".as_ref(), image.as_os_str()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    assert_clean(&image, RAW_DATA_AT);

    // The treatment of the disk does not depend on the kind of machine, and this kind starts
    // faster.
    let machine = bench.machine(BootVariant::MicrovmErofs);
    let node = machine.data(Some(VirtioDisk::file(&image))).plain().boot();
    assert_eq!(node.identity(), identity);
    let info = node.info();
    assert_eq!(info["data"]["total_bytes"].as_u64(), Some(total));
    assert_eq!(info["data"]["clean"], true);
    let said = log(&node);
    for word in ["partition table", "formatting", "grown"] {
        assert!(!said.contains(word), "{word} at the second boot: {said}");
    }
    node.end();
    assert!(
        table_of(&image) == grown,
        "the second boot wrote the partition table"
    );
}

/// A machine without a vault that serves from the smallest data disk, which is the bench's.
pub(super) fn small(bench: &TestBench) -> MachineNode {
    let snapshot = bench.snapshot(BootVariant::MicrovmErofs);
    snapshot.data_bytes(SMALL_BYTES).plain().restore()
}

/// The disk of such a machine after power off, and the node's identity.
pub(super) fn small_off(bench: &TestBench) -> String {
    let snapshot = bench.snapshot(BootVariant::MicrovmErofs);
    snapshot.data_bytes(SMALL_BYTES).plain().switched_off()
}

/// A hash of everything on a disk, because comparing whole disks takes half as long as a boot.
fn checksum(image: &Path) -> u64 {
    alknet_qemu::checksum(image).unwrap_or_else(|error| panic!("{error}"))
}

/// Waits until the console reports this about a machine, and asserts that it serves nothing.
fn closed(vm: &Vm, code: &str, text: &str) {
    for said in [&format!("alknet: problem {code}: "), text] {
        let waited = vm.wait_for(said, CLOSED_WITHIN);
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
    knock::serves_nothing(vm);
}

/// Asserts that this problem is on the console and in `node/info`, and returns the latter.
fn problem(node: &MachineNode, code: &str) -> Value {
    let line = format!("alknet: problem {code}: ");
    let said = node.vm().wait_for(&line, SAID_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    // PID 1 tells the consoles before the node.
    let info = eventually("the node knows the problem", || {
        let info = node.info();
        let problems = info["problems"].as_array();
        let known = problems.is_some_and(|all| all.iter().any(|one| one["code"] == code));
        known.then_some(info)
    });
    let problems = info["problems"].as_array().expect("a list");
    let found = problems.iter().find(|problem| problem["code"] == code);
    let found = found.unwrap_or_else(|| panic!("no {code}: {info:#}"));
    assert_ne!(found["hint"], "", "a problem says what to do");
    info
}

/// Every message that a node has logged, one per line.
fn log(node: &MachineNode) -> String {
    let records = node.subscribe("node/log", &json!({ "last": 10_000 }));
    let messages = records.map(|record| record["message"].as_str().unwrap_or_default().to_owned());
    messages.collect::<Vec<_>>().join("\n")
}

fn overwrite(image: &Path, bytes: &[u8], at: u64) {
    let file = File::options()
        .write(true)
        .open(image)
        .expect("the disk is ours");
    file.write_all_at(bytes, at).expect("the disk is ours");
}

/// Both copies of the partition table.
fn table_of(image: &Path) -> Vec<u8> {
    let file = File::open(image).expect("the disk is ours");
    let end = file.metadata().expect("it is open").len() - TABLE_BYTES as u64;
    let mut bytes = vec![0; 2 * TABLE_BYTES];
    let (front, back) = bytes.split_at_mut(TABLE_BYTES);
    let read = file
        .read_exact_at(front, 0)
        .and_then(|()| file.read_exact_at(back, end));
    read.expect("the disk is ours");
    bytes
}
