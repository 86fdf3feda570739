//! Versions that start, and fail later. After each the right version serves with the node's identity, the console says
//! why, and what the node had promised to keep is there.
//!
//! Each trial has one try left, on the disk of a machine that served before. The guest's clock goes on to the next timer
//! whenever the guest waits (`quick`), so the ten minutes of a gate pass within seconds.

use std::time::Duration;

use alknet_boot_state::{BootPhase, BootSlot};
use alknet_image::ProgramParts;
use alknet_qemu::{ConsoleMark, MachineKind, VirtioDisk, Vm, VmBuilder};
use alknet_tests::{MachineNode, READY, TestBench};
use data_encoding::BASE64;
use memchr::memmem;
use serde_json::{Value, json};

use crate::configuration::document;
use crate::media::{KEY, OTHER_VAULT};
use crate::update::disk::SlotDiskImage;
use crate::update::program::{PROGRAM, changed};
use crate::update::static_program::{changing_program, filling_program, killing_program};
use crate::update::{FIRST, SECOND, machine, serving, stands};
use crate::update_bad::quick;

/// Longest wait for the next line. Under emulation the ten minutes of a gate take a minute on a busy host.
const SAID_WITHIN: Duration = Duration::from_secs(240);
/// Leaves out the driver of fw_cfg, where the machine finds the key that opens its vault.
const NO_KEY: &str = "initcall_blacklist=fw_cfg_sysfs_init";
/// Starts a program of the test before PID 1.
const STARTED_FIRST: &str = "rdinit=/first";
const FIRST_FILE: &str = "first";
/// A former name of a key of the configuration, which a version on trial does not know any more. No part of the machine
/// passes it on, so only the reader of the document misses it.
const FORMER_KEY: &str = "stranger_requests_per_second";
const CHANGED_KEY: &str = "stranger_requests_per_seconz";
/// A vault that a key of the hypervisor opens.
const UNLOCKED_BY_KEY: &str =
    "[http]\nstranger_requests_per_second = 7\n[vault]\nunlock = [\"provisioning\"]\n";
const SLOT_TYPE: &str = "provisioning";
const KEY_FILE: &str = "opt/org.alknet/seed.key";
const NODE_KILLED: &str = "alknet: problem node-failed: the node killed by SIGKILL";

/// A machine with boot slots and a vault.
struct UnwellBench {
    bench: TestBench,
    disk: SlotDiskImage,
    first: Vec<u8>,
    identity: String,
}

#[test]
fn update_that_fails_after_its_start_returns_and_one_that_fails_after_its_gate_stays() {
    let bench = UnwellBench::new();
    let refusing = bench.refusing();
    let filling = bench.beside(&filling_program());
    let locked = changed(&bench.first, SECOND, NO_KEY, &[]);
    for (program, trial_says, why) in [
        (
            locked,
            "no medium with its seed.key is attached",
            "it waited for the vault, which was open before the update",
        ),
        (filling, NODE_KILLED, "its node ended: killed by SIGKILL"),
        (
            refusing,
            "unknown key 'stranger_requests_per_second'",
            "it waited for the configuration, of which the version before took everything",
        ),
    ] {
        bench.fails(&program, trial_says, why);
    }
    bench.ends_its_node_after_the_gate();

    let node = serving(&bench.bench, bench.machine());
    assert_eq!(node.identity(), bench.identity);
    let status = stands(
        &node,
        &[("version", SECOND), ("slot", "b"), ("state", "good")],
    );
    assert_eq!(status["last"]["outcome"], "confirmed", "{status:#}");
    assert_eq!(status["other_version"], FIRST, "{status:#}");
    assert_has_token(&node);
}

impl UnwellBench {
    /// A machine that served once, and promised to keep a token.
    fn new() -> Self {
        let bench = TestBench::new();
        let disk = SlotDiskImage::new(bench.raw());
        let first = disk.program(BootSlot::A).expect("the image has it");
        let mut out = Self {
            bench,
            disk,
            first,
            identity: String::new(),
        };
        let node = serving(&out.bench, out.machine());
        out.identity = node.identity().to_owned();
        let status = node.call("vault/status", &Value::Null);
        assert_eq!(status["opened_by"], SLOT_TYPE, "{status:#}");
        let token = json!({ "scopes": ["node:read"], "note": "stays" });
        node.call("token/make", &token);
        node.end();
        out
    }

    fn machine(&self) -> VmBuilder {
        let key = BASE64.encode(&[KEY; 32]);
        let key = format!("alknet-seed-1 {OTHER_VAULT} {key}\n");
        let config = document(&self.bench, "edge") + UNLOCKED_BY_KEY;
        let disk = VirtioDisk::file(self.disk.path());
        machine(MachineKind::Q35Uefi, disk, &config).fw_cfg(KEY_FILE, key)
    }

    /// A version with a program that starts before PID 1, and becomes it.
    fn beside(&self, program: &[u8]) -> Vec<u8> {
        let files = [(FIRST_FILE, PROGRAM, program)];
        changed(&self.first, SECOND, STARTED_FIRST, &files)
    }

    /// A version that does not know a key of the stored configuration any more.
    fn refusing(&self) -> Vec<u8> {
        let parts = ProgramParts::unpack(&self.first).expect("it is the image's");
        let init = parts.as_old().init;
        let places: Vec<_> = memmem::find_iter(init, FORMER_KEY).collect();
        assert!(!places.is_empty(), "no {FORMER_KEY} in PID 1");
        self.beside(&changing_program(&[(CHANGED_KEY.as_bytes(), &places[..])]))
    }

    /// A version on trial says `trial_says`, and ends. The first version serves, and says `why`.
    fn fails(&self, program: &[u8], trial_says: &str, why: &str) {
        let (vm, trial) = self.start_trial(program);
        wait(&vm, trial, trial_says);
        let good = wait(&vm, trial, "alknet-loader: starting slot a");
        let ended = "problem update-failed: version 0.2.0 failed its trial and the machine returned to 0.1.0";
        let told = wait(&vm, good, ended);
        wait(&vm, told, why);
        self.serves_since(&vm, good);
        let record = self.disk.record().expect("a record");
        assert_eq!(record.phase(), BootPhase::Failed, "{}", vm.report());
    }

    /// A version whose node ends after the confirmation. It serves again, and stays.
    fn ends_its_node_after_the_gate(&self) {
        let (vm, trial) = self.start_trial(&self.beside(&killing_program()));
        wait(&vm, trial, READY);
        alknet_test_support::eventually("it is confirmed", vm.scale(SAID_WITHIN), || {
            let record = self.disk.record().expect("a record");
            (record.good() == BootSlot::B).then_some(())
        });
        let confirmed = vm.console().mark();
        let killed = wait(&vm, confirmed, NODE_KILLED);
        self.serves_since(&vm, killed);
        let record = self.disk.record().expect("a record");
        assert_eq!(record.good(), BootSlot::B, "{}", vm.report());
    }

    /// A machine on which this version begins its last try.
    fn start_trial(&self, program: &[u8]) -> (Vm, ConsoleMark) {
        self.disk.put_on_trial(program, 1, SLOT_TYPE);
        let vm = quick(self.machine()).start();
        let vm = vm.unwrap_or_else(|error| panic!("{error}"));
        let trial = "starting slot b on trial, tries left after this one: 0";
        let trial = wait(&vm, ConsoleMark::default(), trial);
        (vm, trial)
    }

    /// Waits until the node serves after `mark`, by the key that it has always had.
    fn serves_since(&self, vm: &Vm, mark: ConsoleMark) {
        let ready = wait(vm, mark, READY);
        wait(vm, ready, " port ");
        let said = vm.console().since(ready);
        assert!(said.contains(&self.identity), "{}: {said}", self.identity);
    }
}

fn wait(vm: &Vm, mark: ConsoleMark, line: &str) -> ConsoleMark {
    let found = vm.wait_for_after(mark, line, SAID_WITHIN);
    found.unwrap_or_else(|error| panic!("{error}"))
}

fn assert_has_token(node: &MachineNode) {
    let tokens = node.call("token/list", &Value::Null);
    assert!(tokens.to_string().contains("\"stays\""), "{tokens:#}");
}
