//! A user at the console changes a vault, and an administrator locks a vault while its node serves. The passphrase
//! opens it again, and the log has both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use alknet_qemu::{ConsoleMark, VirtioDisk, Vm};
use alknet_tests::tools::tool_says;
use alknet_tests::{BootVariant, MachineNode, TestBench, eventually};
use serde_json::{Value, json};

use crate::console::{commands, typed};
use crate::media::{drive, put};

use super::{ASKED_WITHIN, DONE_WITHIN, PHRASE, PICTURE_ENDS, VAULT_A_AT, asked, type_line};

/// Number of wrong passphrases in a row. The console takes five at once and delays the sixth. An emulated processor
/// needs a second and a half for each.
const WRONG: usize = 6;
/// Bytes of both copies of the vault, which lie one after the other.
const COPIES_BYTES: usize = 128 << 10;

#[test]
fn a_vault_that_is_locked_serves_what_it_has_and_ends_when_it_must() {
    let bench = TestBench::new();
    let mut node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let identity = node.identity().to_owned();
    let locked = json!({ "state": "locked" });
    assert_eq!(node.call("vault/lock", &Value::Null), locked);
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["state"], "locked", "{status:#}");
    asked(node.vm(), "passphrase of the vault");
    type_line(node.vm(), "");
    eventually("the vault is open again", || {
        let status = node.call("vault/status", &Value::Null);
        (status["state"] == "unlocked").then_some(())
    });

    let mark = node.vm().console().mark();
    node.try_call("vault/lock", &json!({ "hard": true }), &[]);
    let closed = node
        .vm()
        .wait_for_after(mark, "passphrase of the vault", ASKED_WITHIN);
    closed.unwrap_or_else(|error| panic!("{error}"));
    eventually("the port is closed", || {
        let answer = node.try_call("node/info", &Value::Null, &[]);
        (answer.status != 0).then_some(())
    });
    let mark = node.vm().console().mark();
    type_line(node.vm(), "");
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
}

/// A hard lock ends the node, which alone writes the log. PID 1 keeps the events until the next node starts, and the
/// user can read them at the console. Before the lock the user gives the vault another passphrase and another master
/// key, and with these it opens then and after a boot.
#[test]
fn slots_and_master_key_are_changed_at_the_console_and_a_hard_lock_is_in_the_log() {
    let bench = TestBench::new();
    let mut node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let identity = node.identity().to_owned();
    let before = copies(&bench);
    // The user adds a passphrase and removes the key that lies beside the vault, which opens it without input.
    let vm = node.vm();
    commands(vm);
    typed(vm, "slot list", "the key lies beside it");
    typed(vm, "slot add passphrase", "new passphrase: _");
    typed(vm, "correct horse", "the same again: _");
    typed(vm, "correct horse", "slot 1 (passphrase) was added");
    typed(vm, "slot remove 0", "slot 0 (none) was removed");
    // The console may say so before the node knows.
    let status = eventually("the vault has the passphrase alone", || {
        let status = node.call("vault/status", &Value::Null);
        (status["slots"] == json!(["passphrase"])).then_some(status)
    });
    assert_eq!(status["sealed"], true, "{status:#}");
    assert_eq!(status["slots"], json!(["passphrase"]), "{status:#}");
    typed(vm, "rekey", "passphrase of slot 1, or Enter");
    typed(vm, "wrong horse", "that passphrase is wrong");
    typed(vm, "correct horse", "type REKEY to go on: _");
    typed(vm, "REKEY", "The vault has a new master key");

    let mark = node.vm().console().mark();
    node.try_call("vault/lock", &json!({ "hard": true }), &[]);
    asked_after(node.vm(), mark, "passphrase of the vault");
    for _ in 0..WRONG {
        let mark = node.vm().console().mark();
        type_line(node.vm(), "wrong horse");
        asked_after(node.vm(), mark, "passphrase of the vault");
    }
    let mark = node.vm().console().mark();
    type_line(node.vm(), "correct horse");
    node.wait_ready(mark);

    let mark = node.vm().console().mark();
    let sent = node.vm().console().send("v");
    sent.expect("the console takes it");
    asked_after(node.vm(), mark, "vault");
    let events = eventually("the log has all of it", || {
        let events = audited(node.vm());
        let locked = events
            .iter()
            .position(|event| event.starts_with("locked "))?;
        let after = events[locked..].to_vec();
        let is_there = |name, count| {
            let found = after.iter().filter(|event| event.starts_with(name));
            found.count() >= count
        };
        // Another line of the console may come into a picture and hide one of its lines.
        let is_all = is_there("unlock_failed ", WRONG) && is_there("unlocked ", 1);
        is_all.then_some(after)
    });
    assert_eq!(events[0], r#"locked {"hard":true}"#, "{events:#?}");
    for (name, count) in [("locked ", 1), ("unlock_failed ", WRONG), ("unlocked ", 1)] {
        let found = events.iter().filter(|event| event.starts_with(name));
        assert_eq!(found.count(), count, "{name} in {events:#?}");
    }
    node.end();
    is_rekeyed(&bench);
    gives_no_key_slot_to(&before, &bench);
    opens_and_is_changed_again(&bench, &identity);
}

/// The data have no key slot of the old master key any more, and the key slot of the words is in its old place.
fn is_rekeyed(bench: &TestBench) {
    let dump = tool_says(
        "cryptsetup",
        &["luksDump".as_ref(), bench.data().as_os_str()],
    );
    assert!(
        dump.contains("1: luks2") && dump.contains("2: luks2") && !dump.contains("0: luks2"),
        "{dump}"
    );
}

/// The old copy of the vault opens by itself, and its words are still those of the data. It is older than the data, so
/// the machine adds no key slot for it.
fn gives_no_key_slot_to(before: &[u8], bench: &TestBench) {
    let put = |copies: &[u8]| {
        let disk = File::options().write(true).open(bench.data());
        let put = disk.and_then(|disk| disk.write_all_at(copies, VAULT_A_AT));
        put.expect("the disk is ours");
    };
    let now = copies(bench);
    put(before);
    let vm = bench.machine(BootVariant::MicrovmErofs).start();
    let said = vm.wait_line("the vault is older than the data beside it", ASKED_WITHIN);
    said.unwrap_or_else(|error| panic!("{error}"));
    drop(vm);
    is_rekeyed(bench);
    put(&now);
}

/// Returns both copies of the vault.
fn copies(bench: &TestBench) -> Vec<u8> {
    let mut copies = vec![0; COPIES_BYTES];
    let disk = File::open(bench.data());
    let read = disk.and_then(|disk| disk.read_exact_at(&mut copies, VAULT_A_AT));
    read.expect("the disk is ours");
    copies
}

/// After a boot the passphrase opens the vault. The user changes it, and with the new one the console shows the words.
/// Two attached drives could each take a key, and one of them is a thief's: the machine writes to neither. The owner's
/// drive has words from which this vault was not made, and the machine reports a conflict.
fn opens_and_is_changed_again(bench: &TestBench, identity: &str) {
    let drives = ["thiefs", "owners"].map(|name| drive(bench, name));
    put(bench, &drives[1], "vault.words", PHRASE);
    let content = || {
        drives
            .each_ref()
            .map(|drive| fs::read(drive).expect("it is there"))
    };
    let before = content();
    let machine = drives.iter().fold(
        bench.machine(BootVariant::MicrovmErofs),
        |machine, drive| machine.disk(VirtioDisk::file(drive)),
    );
    let vm = machine.start();
    asked(&vm, "passphrase of the vault");
    type_line(&vm, "correct horse");
    let node = MachineNode::new(vm, BootVariant::MicrovmErofs, bench.admin().clone());
    assert_eq!(node.identity(), identity);
    let vm = node.vm();
    commands(vm);
    typed(vm, "slot add provisioning", "passphrase of the vault: _");
    typed(vm, "correct horse", "could each take");
    assert!(content() == before, "a drive was written to");
    typed(vm, "slot set", "passphrase of the vault: _");
    typed(vm, "correct horse", "new passphrase: _");
    typed(vm, "battery staple", "the same again: _");
    typed(vm, "battery staple", "the passphrase was changed");
    typed(vm, "words show", "passphrase of the vault: _");
    let mark = vm.console().mark();
    typed(vm, "battery staple", "Enter wipes them: _");
    let table = vm.console().since(mark);
    for number in [1, 12, 24] {
        assert!(table.contains(&format!("{number:>3} ")), "{table}");
    }
    typed(vm, "", "[ok] node");
    let info = node.info();
    let problems = info["problems"].as_array().into_iter().flatten();
    let codes: BTreeSet<_> = problems.filter_map(|one| one["code"].as_str()).collect();
    let of_drives = BTreeSet::from(["nocloud-incomplete", "provisioning-conflict"]);
    assert!(codes.contains("provisioning-conflict"), "{info:#}");
    assert!(codes.is_subset(&of_drives), "{info:#}");
}

/// Waits until the console, attended or not, asks for `what` after `mark`.
fn asked_after(vm: &Vm, mark: ConsoleMark, what: &str) -> ConsoleMark {
    let line = format!("alknet: asks: {what}");
    let waited = vm.wait_for_after(mark, &line, DONE_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"))
}

/// Returns every event of the log with its detail, oldest first, as the commands of the console show them page by page.
fn audited(vm: &Vm) -> Vec<String> {
    let mut events = BTreeMap::new();
    let mut command = "audit".to_owned();
    loop {
        let mark = vm.console().mark();
        type_line(vm, &command);
        let mark = asked_after(vm, mark, "vault");
        let drawn = vm.wait_for_after(mark, PICTURE_ENDS, DONE_WITHIN);
        drawn.unwrap_or_else(|error| panic!("{error}"));
        let text = vm.console().since(mark);
        // The text may end with a part of the next picture.
        let text = text.split(PICTURE_ENDS).next().unwrap_or_default();
        assert!(text.contains("are as they were written"), "{text}");
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let number = words.next().and_then(|word| word.parse::<u64>().ok());
            // The second word of an event is its time; "12 lines" is no event.
            let is_event = words.next().is_some_and(|word| word.ends_with('Z'));
            if let Some(number) = number.filter(|_| is_event) {
                events.insert(number, words.collect::<Vec<_>>().join(" "));
            }
        }
        let first = events.keys().next().copied();
        match first.unwrap_or_else(|| panic!("no event: {text}")) {
            1 => return events.into_values().collect(),
            first => command = format!("audit {}", first - 1),
        }
    }
}
