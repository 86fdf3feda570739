//! Two machines of one owner: one of them keeps a share of the other's key. Over the network the other machine creates
//! and opens its vault, waits for the share, and loses it, without input at a console.

use std::path::PathBuf;
use std::time::Duration;

use alknet_qemu::{ConsoleMark, VirtioDisk, VmBuilder};
use alknet_tests::{BootVariant, CliOutput, MachineBuilder, MachineNode, TestBench, eventually};
use serde_json::{Value, json};

use crate::console::{commands, typed};

/// The host's address as a machine on QEMU's network sees it, with the ports of the other machine.
const GATEWAY: &str = "10.0.2.2";
/// Size of a data disk, in bytes; the file is sparse.
const DATA_BYTES: u64 = 1 << 30;
/// Longest wait from a reset until the console says what the vault waits for.
const SAID_WITHIN: Duration = Duration::from_secs(30);

/// The machine that keeps shares for others.
const SHARE_SERVER: &str = r#"
[hub]
enabled = true

[[hub.role]]
name = "escrow"
scopes = ["escrow"]
"#;

/// The share server's name for the share of the other machine.
const SHARE: &str = "kitchen-vault";

fn machine<'a>(
    bench: &'a TestBench,
    disk: PathBuf,
    name: &str,
    config: &str,
) -> MachineBuilder<'a> {
    let document = format!(
        "[node]\nname = \"{name}\"\nadmin_keys = [\"{}\"]\n{config}",
        bench.admin().identity()
    );
    let machine = bench.machine(BootVariant::MicrovmErofs).config(document);
    machine.data(Some(VirtioDisk::file(disk).data()))
}

fn run(bench: &TestBench, words: &[&str]) -> CliOutput {
    let admin = bench.admin();
    admin.run(admin.command(words))
}

/// Returns the only share that the share server has.
fn share(bench: &TestBench, share_server: &MachineNode) -> Value {
    let listed = run(bench, &["escrow", "list", &share_server.target()]).json();
    assert_eq!(
        listed["shares"].as_array().map(Vec::len),
        Some(1),
        "{listed:#}"
    );
    listed["shares"][0].clone()
}

/// Waits until the console prints `what` after `mark`.
fn said(node: &MachineNode, mark: ConsoleMark, what: &str) {
    let waited = node.vm().wait_for_after(mark, what, SAID_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

fn reset(node: &MachineNode) -> ConsoleMark {
    let mark = node.vm().console().mark();
    let reset = node.vm().reset_button();
    reset.unwrap_or_else(|error| panic!("{error}"));
    mark
}

#[test]
fn another_machine_keeps_half_of_the_key_and_takes_it_back() {
    let bench = TestBench::set_up();
    // This test is not about the vault of the machine that keeps the share.
    let share_server = machine(&bench, bench.data(), "attic", SHARE_SERVER).boot();
    let address = format!("{GATEWAY}:{}", share_server.address().port());
    let invited = run(
        &bench,
        &[
            "hub",
            "invite",
            &share_server.target(),
            "--role",
            "escrow",
            "--address",
            &address,
        ],
    );
    let join = invited.json()["join"].as_str().map(str::to_owned);
    let join = join.unwrap_or_else(|| panic!("no join string: {invited:?}"));

    // A machine with a blank disk starts, and its node serves.
    let config = format!("[vault]\nunlock = [\"kms\"]\n[vault.kms]\ncode = \"{join}\"\n");
    let blank = bench.disk("kitchen", DATA_BYTES);
    let kitchen = machine(&bench, blank, "kitchen", &config);
    let mut node = kitchen.with(VmBuilder::boot_after_reset).boot();
    let identity = node.identity().to_owned();
    let status = node.call("vault/status", &Value::Null);
    for (key, value) in [
        ("state", json!("unlocked")),
        ("sealed", json!(true)),
        ("slots", json!(["kms"])),
        ("opened_by", json!("kms")),
    ] {
        assert_eq!(status[key], value, "{key}: {status:#}");
    }
    let row = share(&bench, &share_server);
    assert_eq!(
        (&row["name"], &row["state"], &row["releases"]),
        (&json!(SHARE), &json!("kept"), &json!(0))
    );
    let info = node.info();
    assert_eq!(info["problems"], json!([]), "{info:#}");

    // While the share server is paused the other machine waits, and then it goes on by itself.
    let pause = |what: &str| {
        let done = share_server.vm().qmp().execute(what, json!({}));
        done.unwrap_or_else(|error| panic!("{error}"));
    };
    pause("stop");
    let mark = reset(&node);
    said(&node, mark, "the vault is locked: kms: node ");
    pause("cont");
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    assert_eq!(share(&bench, &share_server)["releases"], 1);

    // The user makes another master key, and the share server releases the share again. Both halves of the key stay as
    // they are.
    commands(node.vm());
    let mark = node.vm().console().mark();
    typed(node.vm(), "rekey", "type REKEY to go on: _");
    let told = node.vm().console().since(mark);
    assert!(told.contains("slot 0 (kms) stays"), "{told}");
    typed(node.vm(), "REKEY", "The vault has a new master key");
    assert_eq!(share(&bench, &share_server)["releases"], 2);

    // From now on the share server asks an administrator before it releases the share.
    let change = [
        "escrow",
        "change",
        &share_server.target(),
        SHARE,
        "--approve",
        "true",
    ];
    assert_eq!(run(&bench, &change).json()["approve"], true);
    let mark = reset(&node);
    said(&node, mark, "waits for an administrator's approval");
    eventually("a waiting machine", || {
        (share(&bench, &share_server)["state"] == "waiting").then_some(())
    });
    run(
        &bench,
        &["escrow", "approve", &share_server.target(), SHARE],
    )
    .json();
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);

    // The administrator revokes the share, as after a theft of the machine.
    run(&bench, &["escrow", "revoke", &share_server.target(), SHARE]).json();
    let mark = reset(&node);
    said(&node, mark, "this share was revoked");
    let after = node.vm().console().since(mark);
    assert!(!after.contains("alknet: ready"), "{after}");
    assert_eq!(share(&bench, &share_server)["state"], "revoked");
}

/// A thief with a copy of a machine's disk has the key of its slot, and replaces it at the node that keeps the share.
/// After a day nothing would have the old key, which alone gets the share.
#[test]
fn a_key_that_has_a_share_is_not_replaced() {
    let bench = TestBench::new();
    let share_server = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let (target, slot) = (share_server.target(), bench.user("slot"));
    let key = slot.identity();
    let add = [
        "peer", "add", &target, SHARE, "--key", &key, "--scope", "escrow",
    ];
    run(&bench, &add).json();
    let deposit = json!({ "share": "07".repeat(32), "vault": "v" });
    let left = slot.call(&target, "escrow/deposit", &deposit, &[]).json();
    let rotate = || slot.run(slot.command(&["key", "rotate", &target]));
    let refused = rotate();
    assert_eq!(refused.code(), "CONFLICT", "{refused:?}");
    assert!(refused.errors.contains("keeps a share"), "{refused:?}");
    let released = slot.call(&target, "escrow/release", &json!({ "id": left["id"] }), &[]);
    assert_eq!(released.json()["share"], deposit["share"]);
    // The owner decides otherwise.
    run(&bench, &["escrow", "revoke", &target, SHARE]).json();
    assert_eq!(rotate().status, 0);
    share_server.end();
}
