//! Stock age encrypts a vault's words to a recipient elsewhere, and `alknet vault` asks its node.

use std::path::Path;
use std::process::Command;

use alknet_qemu::{DiskRecorder, VirtioDisk};
use alknet_tests::tools::{age, tool, tool_says};
use alknet_tests::{BootVariant, CliRunner, MachineNode, TestBench, binary, run_with_input};
use alknet_vault::slots::{FileCopyStorage, SeedKey, UnlockKey, VaultCopies};
use serde_json::{Value, json};

use crate::console::{commands, typed};
use crate::media::drive;
use crate::power::cut_now;
use crate::tpm::leave_commands;
use crate::vault::{VAULT_A_AT, VAULT_B_AT};

/// The file of age is the owner's only possible copy of the words. The machine writes it to the disk before the node
/// reports the words as kept, so it survives any power cut after that report. So does a key that opens the vault from a
/// drive, of which the machine keeps no copy, once the console says that the slot was added.
#[test]
fn words_that_a_machine_makes_outlive_a_power_cut_open_with_age_and_are_its_own() {
    let bench = TestBench::new();
    let (recipient, key) = age_key(&bench, "far-away.key");
    let (_, other_key) = age_key(&bench, "other.key");
    let config = format!("[vault]\nwords_to = [\"{recipient}\"]");
    let machine = |disk: VirtioDisk| {
        let machine = bench.machine(BootVariant::MicrovmErofs).configured(&config);
        machine.data(Some(disk.data()))
    };
    // This disk may lose what it has not flushed when the power goes.
    let recorder = DiskRecorder::serve(&bench.data()).unwrap_or_else(|error| panic!("{error}"));
    let mut node = machine(VirtioDisk::recorded(&recorder)).boot();
    let status = node.call("vault/status", &Value::Null);
    let recording = recorder.recording();
    let cut = node.vm_mut().cut_power();
    cut.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(status["words_kept"], true, "{status:#}");
    let sealed = status["words_age"].as_str().expect("the encrypted words");
    // A user who has only the console can copy the encrypted words from there.
    let text = node.vm().console().text();
    let mut lines = text.lines().map(str::trim_end);
    lines
        .find(|line| *line == "alknet: the words of this node, for 'age --decrypt':")
        .unwrap_or_else(|| panic!("no words: {text}"));
    for line in sealed.lines() {
        assert_eq!(lines.next(), Some(line), "{text}");
    }
    assert!(!text.contains("alknet: problem "), "{text}");

    let file = bench.path().join("words.age");
    std::fs::write(&file, sealed).expect("the folder is ours");
    let file = file.display().to_string();
    let opened = tool(&age("age"), &["-d", "-i", &other_key, &file]);
    assert!(!opened.status.success(), "{opened:?}");
    let words = tool_says(&age("age"), &["-d", "-i", &key, &file]);
    assert_eq!(words.split_whitespace().count(), 24);
    let mut derive = Command::new(binary());
    derive.args(["vault", "pub", "node-identity", "--mnemonic-stdin"]);
    let derived = run_with_input(derive, &words);
    assert_eq!(derived.status, 0, "{}", derived.errors);
    assert_eq!(
        node.identity(),
        format!("ed25519:{}", derived.output.trim())
    );
    let beginning: Vec<_> = words.split_whitespace().take(4).collect();
    let beginning = beginning.join(" ");
    assert!(!text.contains(&beginning));
    let identity = node.identity().to_owned();
    drop(node);

    let cut = bench.path().join("cut.raw");
    cut_now(&recording, &cut);
    let medium = DiskRecorder::serve(&drive(&bench, "medium"));
    let medium = medium.unwrap_or_else(|error| panic!("{error}"));
    // On this kind of machine the configuration is on no volume beside the drive.
    let machine = bench
        .machine(BootVariant::Q35Initramfs)
        .configured(&config)
        .data(Some(VirtioDisk::file(&cut).data()));
    let node = machine.disk(VirtioDisk::recorded(&medium)).boot();
    has_them_at_a_later_start(&node, sealed);
    assert_eq!(node.identity(), identity);
    let text = node.vm().console().text();
    assert!(!text.contains(&beginning));
    a_key_on_a_drive_is_there(&bench, &node, &medium, &cut);
    let status = node.call("vault/status", &Value::Null);
    asked_and_locked(&bench, &node, &status);
}

/// The node reports the encrypted words at later starts too, and no longer shows them at the console.
fn has_them_at_a_later_start(node: &MachineNode, sealed: &str) {
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["words_age"], sealed, "{status:#}");
    assert_eq!(status["words_kept"], true, "{status:#}");
    let info = node.info();
    assert_eq!(info["vault"]["words_age"], sealed, "{info:#}");
    let text = node.vm().console().text();
    assert!(!text.contains("BEGIN AGE"), "{text}");
}

/// The user adds a slot that opens by a key on the drive. If the power goes as soon as the console says so, the drive
/// has the key, and the key opens the vault on the data disk `disk`.
fn a_key_on_a_drive_is_there(
    bench: &TestBench,
    node: &MachineNode,
    medium: &DiskRecorder,
    disk: &Path,
) {
    let added = "slot 1 (provisioning) was added";
    commands(node.vm());
    typed(node.vm(), "slot add provisioning", added);
    let [image, file] = ["medium-cut.img", "seed.key"].map(|name| bench.path().join(name));
    cut_now(&medium.recording(), &image);
    leave_commands(node.vm());
    let [image, read] = [&image, &file].map(|path| path.display().to_string());
    tool_says("mcopy", &["-n", "-i", &image, "::seed.key", &read]);
    let line = std::fs::read_to_string(&file).expect("the drive has it");
    let key = SeedKey::parse(line.trim()).expect("a whole key");
    let area = |at| FileCopyStorage::at(disk, at);
    let found = VaultCopies::new(area(VAULT_A_AT), area(VAULT_B_AT)).load();
    let found = found.expect("a vault").expect("a vault");
    let open = found.open(&mut UnlockKey::Seed(&key));
    assert_eq!(open.expect("its key").opened_by().number(), 1);
}

/// An administrator and an unknown peer run `alknet vault status` and `alknet vault lock`.
fn asked_and_locked(bench: &TestBench, node: &MachineNode, status: &Value) {
    let ask = |who: &CliRunner| who.run(who.command(&["vault", "status", &node.target()]));
    assert_eq!(ask(bench.admin()).json(), *status);
    let refused = ask(&bench.user("nobody"));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (4, "UNAUTHENTICATED")
    );

    let lock = |who: &CliRunner| who.run(who.command(&["vault", "lock", &node.target()]));
    let refused = lock(&bench.user("unknown-peer"));
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (4, "UNAUTHENTICATED")
    );
    assert_eq!(lock(bench.admin()).json(), json!({ "state": "locked" }));
    assert_eq!(ask(bench.admin()).json()["state"], "locked");
}

/// Returns a recipient that age-keygen made, and the file with the key that decrypts.
fn age_key(bench: &TestBench, name: &str) -> (String, String) {
    let file = bench.path().join(name);
    let path = file.display().to_string();
    tool_says(&age("age-keygen"), &["-o", &path]);
    let text = std::fs::read_to_string(&file).expect("it was written");
    let mut lines = text.lines();
    let recipient = lines.find_map(|line| line.strip_prefix("# public key: "));
    (recipient.expect("a public key").to_owned(), path)
}
