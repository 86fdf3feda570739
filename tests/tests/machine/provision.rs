//! `alknet provision`, from the workstation to a sealed node that is a peer of a hub: without input
//! at the console, and with the identity that the command printed.

use std::path::Path;
use std::time::Duration;

use alknet_qemu::{VirtioDisk, VmBuilder};
use alknet_tests::{BootVariant, HUB, HostNode, MachineNode, TestBench, eventually};
use serde_json::{Value, json};

/// The host's address for a machine on QEMU's network.
const GATEWAY: &str = "10.0.2.2";
/// Size of a data disk, which is sparse.
const DATA_BYTES: u64 = 1 << 30;
/// How long after its message that the node serves the console may report a problem.
const SAID_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_blank_disk_and_a_seed_become_an_enrolled_node_unattended() {
    let bench = TestBench::new();
    let hub = bench.host_with(HUB);
    let base = format!("[[join]]\ncode = \"{}\"\n", join(&bench, &hub));
    let base = written(&bench, "base.toml", &base);
    let made = provision(&bench, "seed.iso", &["--config", &base, "--show-words"]);
    let seed = bench.path().join("seed.iso");
    let machine = bench.machine(BootVariant::Q35Initramfs).config("");
    let node = machine.with(|vm| cd(vm, &seed)).boot();
    let left = "recovery words in vault.words are still there";
    is_sealed_as_said(&node, &made, "nocloud (sr0)", left);
    let peer = eventually("a peer of the hub", || {
        let peers = run(&bench, &["hub", "peers", hub.target()]);
        let row = peers["peers"][0].clone();
        (row["state"] == "ready").then_some(row)
    });
    assert_eq!(
        (&peer["name"], &peer["keys"]),
        (&json!("kitchen"), &json!([made["identity"]])),
        "{peer:#}"
    );
    drop(node);

    // Other disks and other forms, but the same words, give the same node.
    let words = made["words"].as_str().expect("they were asked for");
    let words = written(&bench, "words", words);
    for (form, source, more) in [
        ("fw-cfg", "fw_cfg", &[][..]),
        ("smbios", "smbios", &["--unlock", "provisioning"][..]),
    ] {
        let options = [&["--form", form, "--words-file", &words][..], more].concat();
        let again = provision(&bench, form, &options);
        assert_eq!(again["identity"], made["identity"]);
        let disk = VirtioDisk::file(bench.disk(form, DATA_BYTES)).data();
        let machine = bench
            .machine(BootVariant::Q35Initramfs)
            .config("")
            .data(Some(disk));
        let node = machine.with(|vm| as_printed(vm, &again)).boot();
        is_sealed_as_said(&node, &again, source, "recovery words are still there");
    }
}

/// Asserts that the node has the identity in the command's answer, and was opened by the seed
/// without input at the console. Its only problem must be the words that it could not erase.
fn is_sealed_as_said(node: &MachineNode, made: &Value, source: &str, left: &str) {
    assert_eq!(made["identity"], node.identity(), "{made:#}");
    let status = node.call("vault/status", &Value::Null);
    for (key, value) in [
        ("state", json!("unlocked")),
        ("sealed", json!(true)),
        ("slots", json!(["provisioning"])),
        ("opened_by", json!("provisioning")),
        ("words_kept", json!(true)),
    ] {
        assert_eq!(status[key], value, "{key}: {status:#}");
    }
    let line = format!("alknet: problem secrets-left: {source}: the {left}");
    let waited = node.vm().wait_for(&line, SAID_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
    // PID 1 tells the consoles before the node.
    let info = eventually("the node knows the problem", || {
        let info = node.info();
        let problems = info["problems"].as_array();
        let known = problems.is_some_and(|all| all.iter().any(|one| one["code"] == "secrets-left"));
        known.then_some(info)
    });
    assert_eq!(info["name"], "kitchen", "{info:#}");
    assert_eq!(info["config"]["source"], source, "{info:#}");
    let problems = info["problems"].as_array().expect("a list").iter();
    let codes: Vec<_> = problems.filter_map(|one| one["code"].as_str()).collect();
    assert_eq!(codes, ["secrets-left"], "{info:#}");
    let text = node.vm().console().text();
    assert!(!text.contains("alknet: asks: "), "{text}");
}

/// A join string of the hub, for a peer that reaches it from a machine.
fn join(bench: &TestBench, hub: &HostNode) -> String {
    let (_, port) = hub.target().rsplit_once(':').expect("a port");
    let address = format!("{GATEWAY}:{port}");
    let invited = run(
        bench,
        &["hub", "invite", hub.target(), "--address", &address],
    );
    let join = invited["join"].as_str().map(str::to_owned);
    join.unwrap_or_else(|| panic!("no join string: {invited:#}"))
}

/// The answer of `alknet provision`, which makes a seed for the kitchen.
fn provision(bench: &TestBench, out: &str, options: &[&str]) -> Value {
    let out = bench.path().join(out).display().to_string();
    let common = ["provision", "--name", "kitchen", "--out", &out];
    run(bench, &[&common[..], options].concat())
}

fn run(bench: &TestBench, words: &[&str]) -> Value {
    let admin = bench.admin();
    admin.run(admin.command(words)).json()
}

/// The path of a file with this text.
fn written(bench: &TestBench, name: &str, text: &str) -> String {
    let file = bench.path().join(name);
    std::fs::write(&file, text).expect("the folder is ours");
    file.display().to_string()
}

/// A CD drive with that disc in it.
fn cd(vm: VmBuilder, disc: &Path) -> VmBuilder {
    let disc = disc.display();
    let drive = format!("if=none,id=cd,media=cdrom,format=raw,readonly=on,file={disc}");
    let device = "ide-cd,bus=ide.0,drive=cd";
    ["-drive", &drive, "-device", device]
        .into_iter()
        .fold(vm, VmBuilder::argument)
}

/// The machine with the options that the command printed.
fn as_printed(vm: VmBuilder, made: &Value) -> VmBuilder {
    let options = made["usage"].as_array().expect("a list").iter();
    let options = options.filter_map(Value::as_str);
    options
        .flat_map(|option| option.split(' '))
        .fold(vm, VmBuilder::argument)
}
