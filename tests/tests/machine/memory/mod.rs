//! What remains in the memory of a machine whose vault was locked, read from outside, where nothing
//! can hide.

mod secrets;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_qemu::Vm;
use alknet_tests::tools::RAW_DATA_AT;
use alknet_tests::{BootVariant, MachineBuilder, MachineNode, TestBench};
use alknet_vault::{Entropy, WordCount};
use serde_json::{Value, json};

use super::vault::{VAULT_A_AT, VAULT_B_AT, asked, shown, type_line};
pub(crate) use secrets::Opener;
use secrets::{IDENTITY, NamedSecrets, SEED, VOLUME_KEY};

/// Typed at the console.
const PASSPHRASE: &str = "quagga vexes plumb jinx of nettle wharf dozy";
/// A node that is ending takes some time, and then the kernel reclaims its memory. What remains is
/// reported before the runner ends a silent test.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// Time from the decision until the machine has stopped.
const OFF_WITHIN: Duration = Duration::from_secs(30);

/// The released image, on its disk.
#[test]
fn a_locked_machine_remembers_nothing_but_the_key_of_its_data() {
    remembers_nothing(BootVariant::UefiRaw, RAW_DATA_AT, "");
}

/// The quickest machine, whose command line has what the other's has. It asks for its passphrase at
/// every boot, and refuses a wrong one.
#[test]
fn a_locked_microvm_remembers_nothing_but_the_key_of_its_data() {
    remembers_nothing(BootVariant::MicrovmErofs, 0, "init_on_free=1");
}

fn remembers_nothing(boot: BootVariant, data_at: u64, command_line: &str) {
    let bench = TestBench::new();
    let words = Entropy::generate(WordCount::TwentyFour).expect("this host has randomness");
    let machine = |config: &str| -> MachineBuilder<'_> {
        let machine = bench.machine(boot).configured(config);
        let machine = match boot {
            BootVariant::UefiRaw => machine.after_firmware(),
            _ => machine.append(command_line),
        };
        // Memory stays at its place when the machine is switched off.
        machine.with(|vm| {
            vm.exit_on_reset()
                .argument("-action")
                .argument("shutdown=pause")
        })
    };
    let phrase = words.phrase();
    let first = format!(
        "[vault]\ninit = \"provisioned\"\nunlock = [\"passphrase\"]\n[secrets]\nwords = \"{}\"",
        phrase.expose()
    );
    let vm = machine(&first).start();
    asked(&vm, "new passphrase");
    type_line(&vm, PASSPHRASE);
    shown(&vm, "the same again");
    type_line(&vm, PASSPHRASE);
    let mut node = MachineNode::new(vm, boot, bench.admin().clone());
    let disk = match boot {
        BootVariant::UefiRaw => bench.raw(),
        _ => bench.data(),
    };
    let look = MemoryScan::new(
        &bench,
        &words,
        Opener::Passphrase(PASSPHRASE),
        &disk,
        data_at,
    );
    look.sees_what_is_there(node.vm());
    let identity = node.identity().to_owned();
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["sealed"], true, "{status:#}");

    // After the words and the passphrase were typed, and all keys were derived.
    lock_hard(&node, &bench);
    look.sees_only(node.vm(), &[VOLUME_KEY]);

    // The same after the vault was opened again, and when the machine is switched off.
    let mark = node.vm().console().mark();
    type_line(node.vm(), PASSPHRASE);
    node.wait_ready(mark);
    node.call("node/reboot", &Value::Null);
    let limit = node.vm().scale(OFF_WITHIN);
    let off = node.vm().qmp().wait_event("SHUTDOWN", 0, limit);
    assert!(off.is_some(), "it goes on\n{}", node.vm().report());
    look.sees_only(node.vm(), &[]);
    drop(node);

    // And after a boot with only the passphrase.
    let vm = machine("[vault]\nunlock = [\"passphrase\"]").start();
    asked(&vm, "passphrase of the vault");
    type_line(&vm, "wrong horse");
    shown(&vm, "passphrase is wrong");
    type_line(&vm, PASSPHRASE);
    let node = MachineNode::new(vm, boot, bench.admin().clone());
    assert_eq!(node.identity(), identity);
    look.sees_what_is_there(node.vm());
    lock_hard(&node, &bench);
    look.sees_only(node.vm(), &[VOLUME_KEY]);
}

fn lock_hard(node: &MachineNode, bench: &TestBench) {
    let mark = node.vm().console().mark();
    let locked = bench
        .admin()
        .call(&node.target(), "vault/lock", &json!({ "hard": true }), &[]);
    drop(locked);
    // Reading the memory of a node that is still ending would be useless.
    let asks = "alknet: asks: passphrase of the vault";
    let asked = node.vm().wait_for_after(mark, asks, OFF_WITHIN);
    asked.unwrap_or_else(|error| panic!("{error}"));
    alknet_tests::eventually("the port is closed", || {
        let answer = node.try_call("node/info", &Value::Null, &[]);
        (answer.status != 0).then_some(())
    });
}

/// A search of a machine's memory for its secrets.
pub(crate) struct MemoryScan {
    secrets: NamedSecrets,
    dump: PathBuf,
    memory: RefCell<Vec<u8>>,
}

impl MemoryScan {
    /// For the secrets of a machine whose data partition begins at byte `at` of `disk`.
    pub(crate) fn new(
        bench: &TestBench,
        words: &Entropy,
        opener: Opener<'_>,
        disk: &Path,
        at: u64,
    ) -> Self {
        Self {
            secrets: NamedSecrets::collect(words, opener, disk, at, &bench.path().join("head")),
            dump: bench.path().join("dump"),
            memory: RefCell::default(),
        }
    }

    fn found(&self, vm: &Vm) -> Vec<(&'static str, String)> {
        let dumped = vm.dump_memory(&self.dump);
        dumped.unwrap_or_else(|error| panic!("{error}"));
        self.secrets
            .found_in(&self.dump, &mut self.memory.borrow_mut())
    }

    /// The search finds what a serving node must have.
    pub(crate) fn sees_what_is_there(&self, vm: &Vm) {
        let found = self.found(vm);
        for name in [IDENTITY, SEED, VOLUME_KEY] {
            let is_there = found.iter().any(|(what, _)| *what == name);
            assert!(is_there, "{name} is not found where it is needed");
        }
    }

    /// Only these are there, as soon as the node has ended.
    pub(crate) fn sees_only(&self, vm: &Vm, allowed: &[&str]) {
        let until = std::time::Instant::now() + vm.scale(GONE_WITHIN);
        loop {
            let mut found = self.found(vm);
            found.retain(|(what, _)| !allowed.contains(what));
            if found.is_empty() {
                return;
            }
            if std::time::Instant::now() > until {
                let lines: Vec<String> = found
                    .iter()
                    .map(|(what, place)| format!("{what} {place}"))
                    .collect();
                panic!("{} places:\n{}", lines.len(), lines.join("\n"));
            }
            // Each read stops the machine while it lasts, so the machine needs time in between.
            eprintln!("{} secrets are there still", found.len());
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
