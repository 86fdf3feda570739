//! The names of a node's metrics: docs/observability.md has each of them, and no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::tree::{root, sources};

/// How the names begin.
const PREFIX: &str = "alknet_";

/// Folders of code that is part of no node, or that tests metrics.
const OUTSIDE: [&str; 8] = [
    "benches",
    "crates/bench",
    "crates/tasks",
    "crates/xtask",
    "fuzz",
    "qemu",
    "tests",
    "crates/test-support",
];

/// Words in the programs that begin so, and are no metrics: targets of log records, variables of GRUB, and the series of a
/// histogram.
const NO_METRICS: [&str; 8] = [
    "alknet_access",
    "alknet_arguments",
    "alknet_call_seconds_bucket",
    "alknet_found",
    "alknet_init",
    "alknet_init_net",
    "alknet_probe",
    "alknet_provisioning",
];

/// The names in these lines that stand between `quote`s.
fn names(text: &str, quote: char) -> impl Iterator<Item = &str> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let parts = text.split(quote);
    parts.filter(move |part| {
        part.len() > PREFIX.len() && part.starts_with(PREFIX) && part.chars().all(is_plain)
    })
}

fn is_outside(path: &str) -> bool {
    let is_test = Path::new(path)
        .file_name()
        .is_some_and(|it| it == "tests.rs");
    let below = |folder: &str| path.starts_with(&format!("{folder}/"));
    is_test
        || path.contains("/tests/")
        || path.contains("/benches/")
        || OUTSIDE.into_iter().any(below)
}

/// Every literal of the programs that is spelled like a metric.
fn written() -> BTreeSet<&'static str> {
    let of_programs = sources().iter().filter(|it| !is_outside(&it.path));
    let own = of_programs.map(|it| it.text.split("#[cfg(test)]\nmod tests {").next());
    own.flatten().flat_map(|text| names(text, '"')).collect()
}

#[test]
fn the_table_of_metrics_has_every_metric_once_and_no_other() {
    let page = fs::read_to_string(root().join("docs/observability.md")).expect("the page");
    let table = page
        .split("| metric | labels | counts |")
        .nth(1)
        .expect("the table");
    let rows = table.lines().skip(1).take_while(|row| row.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let listed: Vec<&str> = cells.flat_map(|cell| names(cell, '`')).collect();
    let set: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!(set.len(), listed.len(), "each once");
    let mut written = written();
    let unused: Vec<_> = NO_METRICS
        .iter()
        .filter(|it| !written.contains(*it))
        .collect();
    assert!(unused.is_empty(), "no program has {unused:?}");
    written.retain(|name| !NO_METRICS.contains(name));
    assert!(written.len() > 40, "{written:?}");
    let unlisted: Vec<_> = written.difference(&set).collect();
    let hint = "a metric belongs into docs/observability.md, another word into NO_METRICS";
    assert!(unlisted.is_empty(), "{hint}: {unlisted:?}");
    let gone: Vec<_> = set.difference(&written).collect();
    assert!(gone.is_empty(), "no program counts {gone:?}");
}
