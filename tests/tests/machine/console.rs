//! A user at the console gives a booted machine its configuration. `vault/locking.rs` tests how the
//! vault is changed there.

use std::time::Duration;

use alknet_qemu::{ConsoleMark, Vm};
use alknet_tests::{BootVariant, MachineNode, TestBench};
use serde_json::{Value, json};

/// Time from typing to the effect, on a native processor.
const DONE_WITHIN: Duration = Duration::from_secs(20);

/// Words that a test has on paper.
const PHRASE: &str = "legal winner thank year wave sausage worth useful legal winner thank yellow";

#[test]
fn an_unconfigured_machine_takes_everything_in_one_line() {
    let bench = TestBench::new();
    let mut node = bench.machine(BootVariant::MicrovmErofs).config("").boot();
    let call = |node: &MachineNode| node.try_call("node/info", &Value::Null, &[]);
    assert_eq!(call(&node).code(), "UNAUTHENTICATED");

    let at = |name: &str| bench.path().join(name);
    std::fs::write(at("words"), PHRASE).expect("the folder is ours");
    // As long as a document with many comments.
    let comments = "# a line that an owner wrote to remember something by\n".repeat(800);
    let document = format!("{comments}[node]\nname = \"pasted\"\n");
    std::fs::write(at("node.toml"), document).expect("the folder is ours");
    let mut provision = bench.admin().command(&["provision", "--form", "console"]);
    for (option, file) in [
        ("--config", "node.toml"),
        ("--words-file", "words"),
        ("--out", "line"),
    ] {
        provision.arg(option).arg(at(file));
    }
    let made = bench.admin().run(provision).json();
    let line = std::fs::read_to_string(at("line")).expect("it was written");
    let line = line.trim();
    assert!(line.len() > 50_000, "{} bytes", line.len());

    let mark = node.vm().console().mark();
    let damaged = [&line[..100], &line[104..]].concat();
    type_line(node.vm(), &damaged);
    said(node.vm(), mark, "characters were lost on the way");
    let mark = node.vm().console().mark();
    type_line(node.vm(), line);
    said(
        node.vm(),
        mark,
        "its words replace those that this machine made",
    );
    node.wait_ready(mark);
    let text = node.vm().console().text();
    assert!(!text.contains(&line[14..60]), "it is not shown");
    assert_eq!(made["identity"], node.identity(), "{made:#}");
    let info = node.info();
    assert_eq!(info["name"], "pasted", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["words_kept"], true, "{status:#}");
    let identity = node.identity().to_owned();
    node.end();

    let node = bench.machine(BootVariant::MicrovmErofs).config("").boot();
    assert_eq!(node.identity(), identity);
    let info = node.info();
    assert_eq!(info["config"]["source"], "config.toml", "{info:#}");
}

/// Opens the list of commands, whatever the console asks now. Only Ctrl-C ends a command's
/// question, and the first key shows new words. A machine that is changing its vault ignores keys.
pub(super) fn commands(vm: &Vm) {
    alknet_tests::eventually("the console lists the commands", || {
        let mark = vm.console().mark();
        let sent = vm.console().send("\x03\r\x1bv");
        sent.unwrap_or_else(|error| panic!("{error}"));
        vm.wait_for_after(mark, "factory-reset", DONE_WITHIN).ok()
    });
}

/// Types a line, and waits for its effect.
pub(super) fn typed(vm: &Vm, line: &str, leads_to: &str) {
    let mark = vm.console().mark();
    type_line(vm, line);
    said(vm, mark, leads_to);
}

pub(super) fn said(vm: &Vm, mark: ConsoleMark, what: &str) {
    let waited = vm.wait_for_after(mark, what, DONE_WITHIN);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

fn type_line(vm: &Vm, line: &str) {
    let sent = vm.console().send(&format!("{line}\r"));
    sent.unwrap_or_else(|error| panic!("{error}"));
}
