//! Codes of what can be wrong with a node: one spelling, and one list of all.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::tree::root;

/// Where programs live that say what is wrong with a node.
const SOURCES: [&str; 5] = [
    "appliance/identity-store/src",
    "appliance/src",
    "crates/tls/src",
    "init",
    "provisioning/src",
];

/// Words of those programs that have the spelling of a code and are none.
const NO_CODES: [&str; 43] = [
    "a5b5d94b-6cb1-4e0e-9b1c-5d3c8d1f0a02",
    "aes-256-xts",
    "aes-xts-plain64",
    "alk-data",
    "alknet-data",
    "alknet-errand",
    "alknet-node-1",
    "boot-loader",
    "boot-partition",
    "build-time",
    "built-in",
    "data-partition",
    "date-time",
    "factory-reset",
    "handler-hang",
    "handler-panic",
    "housekeep-panic",
    "init-hang",
    "init-housekeep-panic",
    "init-net-panic",
    "init-open-panic",
    "init-orphans",
    "init-panic",
    "meta-data",
    "net-panic",
    "network-config",
    "node-hang",
    "node-kill",
    "node-panic",
    "node-segv",
    "node-start",
    "open-panic",
    "random-read",
    "random-write",
    "read-only",
    "replay-nonce",
    "user-data",
    "vendor-data",
    "words-kept",
    "words-wrong",
    "worker-kill",
    "x-secret",
    "xdg-open",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if path.is_dir() {
            if name != "tests" {
                files(&path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// Whether a text is lower-case words with `-` between them, at least two.
fn is_kebab(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let word = |word: &str| !word.is_empty() && word.bytes().all(plain);
    text.contains('-')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.split('-').all(word)
}

/// Literals of that spelling, of the programs and not of their tests.
fn written() -> BTreeSet<String> {
    let mut found = Vec::new();
    SOURCES
        .iter()
        .for_each(|folder| files(&root().join(folder), &mut found));
    let mut words = BTreeSet::new();
    for path in found {
        let text = fs::read_to_string(&path).expect("text");
        let own = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        // Every second part lies between quotes, or between the end of one text and the next.
        words.extend(
            own.split('"')
                .filter(|part| is_kebab(part))
                .map(str::to_owned),
        );
    }
    words
}

/// The codes of the table.
fn listed() -> Vec<String> {
    let page = root().join("docs/observability.md");
    let page = fs::read_to_string(page).expect("the page");
    let rows = page.lines().skip_while(|line| *line != "## What is wrong");
    let codes = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    codes.map(str::to_owned).collect()
}

#[test]
fn every_code_is_in_the_list_once_and_in_one_spelling() {
    let listed = listed();
    assert!(listed.len() > 40 && listed.is_sorted(), "{listed:?}");
    let set: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(set.len(), listed.len(), "each once");
    let odd: Vec<_> = set.iter().filter(|code| !is_kebab(code)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    let mut written = written();
    written.retain(|word| !NO_CODES.contains(&word.as_str()));
    let unlisted: Vec<_> = written.difference(&set).collect();
    let hint = "a code belongs into docs/observability.md, another word into NO_CODES";
    assert!(unlisted.is_empty(), "{hint}: {unlisted:?}");
    let gone: Vec<_> = set.difference(&written).collect();
    assert!(gone.is_empty(), "no program says {gone:?}");
}
