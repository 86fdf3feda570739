//! The booted image goes on after each injected fault.
//!
//! The operation `node/fault` injects the faults. It exists only on a machine whose hypervisor enabled it.

use std::thread;
use std::time::{Duration, Instant};

use alknet_boot_state::BootSlot;
use alknet_qemu::{MachineKind, VirtioDisk, WatchdogAction};
use alknet_test_support::skip;
use alknet_tests::{BootVariant, CliSubscription, FAULTS_FILE, MachineNode, TestBench, WebNode};
use serde_json::{Value, json};

use crate::power::is_full;
use crate::update::bundle::ReleaseKeys;
use crate::update::disk::SlotDiskImage;
use crate::update::program::versioned;
use crate::update::{
    FIRST, ONLY_CAMPAIGN, SECOND, config, has_token, machine, make_token, serving, stands,
};

/// Longest wait for one condition, on a processor that runs guests without emulation.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two requests. Each request is a handshake, which takes an emulated processor longer than the condition
/// for which the test waits.
const PAUSE: Duration = Duration::from_millis(300);

/// How long handlers hang and the node computes, ms of the guest's time: longer than PID 1 waits for a node that
/// neither answers its health checks nor computes.
const HANG_MS: u64 = 25_000;

/// The log's record of a panic of PID 1 after which it goes on.
const PASSED_OVER: &str = "a part of PID 1 failed and was passed over";

/// The note of a token that a version on trial makes.
const OF_TRIAL: &str = "of the trial";

#[test]
fn an_image_without_fault_injection_takes_no_fault() {
    let bench = TestBench::new();
    let node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    assert_eq!(node.info()["fault_injection"], false);
    let listed = node
        .call("services/list", &json!({ "limit": 1000 }))
        .to_string();
    assert!(listed.contains("node/info"), "{listed}");
    assert!(!listed.contains("node/fault"), "{listed}");
    let refused = node.try_call("node/fault", &json!({ "kind": "node-kill" }), &[]);
    assert_eq!(refused.code(), "NOT_FOUND");
    assert_eq!(node.info()["node_restarts"], 0);
}

#[test]
fn a_broken_part_does_not_take_the_others_along() {
    let bench = TestBench::new();
    let node = with_faults(&bench);
    assert_eq!(node.info()["fault_injection"], true);

    let hung: Vec<_> = (0..4).map(|_| inject(&node, "handler-hang")).collect();
    logged(&node, "handler-hang");

    for kind in ["handler-panic", "handler-panic"] {
        let answer = node.try_call("node/fault", &json!({ "kind": kind }), &[]);
        assert_eq!(answer.code(), "INTERNAL", "{answer:?}");
        assert!(
            !answer.errors.contains("injected"),
            "the caller sees inside"
        );
    }
    node.call("node/fault", &json!({ "kind": "node-panic" }));
    node.call("node/fault", &json!({ "kind": "init-panic" }));
    logged(&node, PASSED_OVER);

    node.call("node/fault", &json!({ "kind": "init-net-panic" }));
    logged(&node, "the network failed and is started again");
    let info = eventually(&node, "a network that runs again", |info| {
        // The log may say so before PID 1 has told the node of the problem.
        let both = codes(info).count() == 2;
        both && info["links"][0]["sources"] == json!(["dhcp4", "slaac"])
    });
    let problems: Vec<_> = codes(&info).collect();
    assert_eq!(problems, ["internal-error", "internal-error"], "{info}");

    node.call("node/fault", &json!({ "kind": "init-orphans" }));
    logged(&node, "10000 orphans collected");

    // PID 1 keeps a node whose handlers hang, and a node that computes and answers no peer. The guest's clock runs as
    // fast as the test's, so the test sleeps first: earlier requests would be useless.
    let since = uptime_ms(&node.info());
    let computes = inject(&node, "node-computes");
    thread::sleep(Duration::from_millis(HANG_MS));
    logged(&node, "node-computes");
    let info = eventually(&node, "a time in which a hung node is noticed", |info| {
        uptime_ms(info) > since + HANG_MS
    });
    assert_eq!(info["node_restarts"], 0);
    assert_eq!(info["last_words"], Value::Null);
    drop((hung, computes));
    node.end();
}

/// PID 1 may also panic on a thread of its own that keeps house or opens the vault. The user can open the vault after
/// such a panic.
#[test]
fn a_panic_while_the_vault_is_opened_leaves_it_to_be_opened_again() {
    let bench = TestBench::new();
    let node = with_faults(&bench);
    node.call("node/fault", &json!({ "kind": "init-housekeep-panic" }));
    logged(&node, "housekeeping failed");
    node.call("node/fault", &json!({ "kind": "init-open-panic" }));
    node.call("vault/lock", &Value::Null);
    let asks = "alknet: asks: passphrase of the vault";
    let asked = node.vm().wait_for(asks, PATIENCE);
    let mark = asked.unwrap_or_else(|error| panic!("{error}"));
    let enter = || {
        let sent = node.vm().console().send("\r");
        sent.unwrap_or_else(|error| panic!("{error}"));
    };
    enter();
    let failed = node.vm().wait_for_after(mark, "internal-error", PATIENCE);
    failed.unwrap_or_else(|error| panic!("{error}"));
    logged(&node, "opening the vault failed");
    let state = |node: &MachineNode| node.call("vault/status", &Value::Null)["state"].take();
    assert_eq!(state(&node), "locked");
    alknet_tests::eventually("it is opened", || {
        enter();
        (state(&node) == "unlocked").then_some(())
    });
}

#[test]
fn a_node_that_dies_or_hangs_is_started_again() {
    let bench = TestBench::new();
    let mut node = with_faults(&bench);
    let identity = node.identity().to_owned();
    let deaths = [
        ("node-segv", "killed by SIGSEGV"),
        ("node-kill", "killed by SIGKILL"),
        ("node-hang", "killed by SIGKILL"),
    ];
    for (count, (kind, end)) in (1..).zip(deaths) {
        let mark = node.vm().console().mark();
        let caller = inject(&node, kind);
        let said = format!("problem node-failed: the node {end}");
        let said = node.vm().wait_for_after(mark, &said, PATIENCE);
        let mark = said.unwrap_or_else(|error| panic!("{kind}: {error}"));
        node.wait_ready(mark);
        drop(caller);

        assert_eq!(node.identity(), identity, "{kind}");
        let info = node.info();
        assert_eq!(info["node_restarts"], count, "{kind}");
        let words = info["last_words"].as_str().unwrap_or_default();
        assert!(words.starts_with(end) && words.contains(kind), "{words}");
        assert_eq!(info["problems"], json!([]), "{kind}");
    }
    logged(&node, "the node does not answer for its health");
}

/// The version that hangs is on trial, so the same two starts also show what the version before says of such an end.
#[test]
fn a_hung_pid_1_is_rebooted_by_the_hardware_watchdog() {
    let last = hangs_on_trial(|_| {});
    assert_eq!(last["cause"], "silence", "{last:#}");
    let reason = last["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("without a word"), "{last:#}");
}

/// PID 1 goes on after the panic, and hangs later: the machine cannot know that the panic did not end the trial.
#[test]
fn update_that_hangs_after_a_panic_of_pid_1_returns_and_says_so() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    let last = hangs_on_trial(|node| {
        // While PID 1 writes its note for a new stage, it does not note a panic.
        eventually(node, "all stages", |info| {
            let stages = info["boot"]["stages"].as_array().into_iter().flatten();
            let names: Vec<_> = stages.map(|stage| &stage["name"]).collect();
            ["ready", "network"]
                .iter()
                .all(|stage| names.contains(&&json!(stage)))
        });
        thread::sleep(PAUSE);
        node.call("node/fault", &json!({ "kind": "init-panic" }));
        logged(node, PASSED_OVER);
    });
    assert_eq!(last["cause"], "panic", "{last:#}");
    let reason = last["reason"].as_str().unwrap_or_default();
    let place = reason.strip_prefix("a part of it panicked: ");
    assert!(place.is_some_and(|it| it.contains(".rs:")), "{last:#}");
}

/// PID 1 of a version on trial hangs, once `before` has returned. The machine is one with a hardware watchdog, which has to
/// restart it, and the version is on its last try: so GRUB has to start the version before, which has the key and a token of
/// the trial. Returns what this version says of the trial.
fn hangs_on_trial(before: impl FnOnce(&MachineNode)) -> Value {
    let bench = TestBench::new();
    let disk = SlotDiskImage::new(bench.raw());
    let first = disk.program(BootSlot::A).expect("the image has it");
    disk.put_on_first_trial(&versioned(&first, SECOND));
    let config = config(&bench, &ReleaseKeys::one(7));
    let vm = machine(MachineKind::Q35, VirtioDisk::file(disk.path()), &config);
    let vm = vm.fw_cfg(FAULTS_FILE, "1").watchdog(WatchdogAction::Reset);
    let mut node = serving(&bench, vm);
    let identity = node.identity().to_owned();
    let trial = [("version", SECOND), ("slot", "b"), ("state", "trial")];
    stands(&node, &trial);
    make_token(&node, OF_TRIAL);
    let info = node.info();
    let watchdog = info["watchdog"].as_str().unwrap_or_default();
    assert!(watchdog.contains("i6300ESB"), "{info}");
    before(&node);

    let mark = node.vm().console().mark();
    let caller = inject(&node, "init-hang");
    let bite = node
        .vm()
        .qmp()
        .wait_event("WATCHDOG", 0, node.vm().scale(PATIENCE));
    assert!(bite.is_some(), "no reset\n{}", node.vm().report());
    node.wait_ready(mark);
    drop(caller);
    assert_eq!(node.identity(), identity);
    assert_eq!(
        node.info()["node_restarts"],
        0,
        "another boot counts from zero"
    );
    let failed = [("version", FIRST), ("slot", "a"), ("state", "failed")];
    let last = stands(&node, &failed)["last"].take();
    assert_eq!(last["version"], SECOND, "{last:#}");
    assert_eq!(last["outcome"], "failed", "{last:#}");
    // PID 1 begins the note with `mounts`, and the loop that hung has to have written a later stage.
    let stage = last["stage"].as_str().unwrap_or_default();
    assert!(!["", "mounts"].contains(&stage), "{last:#}");
    has_token(&node, OF_TRIAL);
    last
}

/// A machine with fault injection: a copy of the machine that the tests in `computing` use.
fn with_faults(bench: &TestBench) -> MachineNode {
    WebNode::restore(bench.snapshot(BootVariant::MicrovmErofs).faults(), "").node
}

/// Calls `node/fault` for a fault that may end the node before it answers. Dropping the subscription ends the caller.
fn inject(node: &MachineNode, kind: &str) -> CliSubscription {
    node.subscribe("node/fault", &json!({ "kind": kind }))
}

/// Waits until a record of the node's log contains `words`. A node that computes accepts no connection for a while, so
/// the command is repeated.
#[track_caller]
fn logged(node: &MachineNode, words: &str) {
    let deadline = Instant::now() + node.vm().scale(PATIENCE);
    let is_found = || {
        let follow = json!({ "last": 1000, "follow": true });
        node.subscribe("node/log", &follow).any(|record| {
            let message = record["message"].as_str();
            message.is_some_and(|message| message.contains(words))
        })
    };
    while !is_found() {
        let late = Instant::now() > deadline;
        assert!(!late, "no {words:?} in the log\n{}", node.vm().report());
        thread::sleep(PAUSE);
    }
}

/// Requests the node's facts until `fits` accepts them.
#[track_caller]
fn eventually(node: &MachineNode, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + node.vm().scale(PATIENCE);
    loop {
        let info = node.info();
        if fits(&info) {
            return info;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "no {what}: {info}\n{}", node.vm().report());
        thread::sleep(PAUSE);
    }
}

fn uptime_ms(info: &Value) -> u64 {
    info["uptime_ms"].as_u64().expect("a number")
}

fn codes(info: &Value) -> impl Iterator<Item = &str> {
    let problems = info["problems"].as_array().into_iter().flatten();
    problems.filter_map(|problem| problem["code"].as_str())
}
