//! Tests of the HTTP server by other authors' tools.
//!
//! If such a tool reports something that is intended, or that is caused by another library, it is
//! in a list beside its test, with the reason. A test fails if there is one more fault, and also if
//! one on its list is no longer found, so that the line is removed.

mod document;
mod generated;
mod http2;
mod http3;
mod slow;
mod tls;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use alknet_tests::WebNode;

/// The faults that were found, by name.
type Faults = BTreeMap<String, String>;

/// How much an attack may make the node's memory grow, with what the allocator keeps.
const GROWTH_BYTES: u64 = 64 << 20;

/// Fails unless `faults` are those in `list`. Each line has a fault's name or its beginning, ` | `
/// and the reason. `#` begins a remark. `? ` precedes a fault that is found or not, depending on
/// which of two events is faster.
fn judge(list: &str, faults: &Faults) {
    let lines = list.lines().map(str::trim);
    let known: Vec<(&str, bool)> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(known)
        .collect();
    let mut wrong = String::new();
    for (name, seen) in faults {
        if !known.iter().any(|(known, _)| name.starts_with(known)) {
            let _ = writeln!(wrong, "new: {name}: {seen}");
        }
    }
    for (known, always) in known {
        if always && !faults.keys().any(|name| name.starts_with(known)) {
            let _ = writeln!(wrong, "found no more, take it out of the list: {known}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A line of a list: the name, and whether it is always found.
fn known(line: &str) -> (&str, bool) {
    let Some((name, _reason)) = line.split_once(" | ") else {
        panic!("'{line}' gives no reason");
    };
    match name.strip_prefix("? ") {
        Some(name) => (name, false),
        None => (name, true),
    }
}

/// How long a suite of checks may take.
const SUITE: Duration = Duration::from_secs(350);

/// A program's output on both streams.
fn printed(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask test` installs it"));
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Memory of the node's process.
fn resident(web: &WebNode) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", web.node.pid()));
    let text = text.expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("the kernel says how much") << 10
}
