//! The verbs of the command line that connect to a node, by the manual pages that the binary writes.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use alknet_tests::binary;

/// What the page of each verb has that connects to a node, as troff writes it.
const DIALS: &str = "\\-\\-anonymous";

/// Earlier spellings that have no page, with the one that has.
const EARLIER: [(&str, &str); 7] = [
    ("escrow change", "escrow set"),
    ("escrow revoke", "escrow remove"),
    ("hub label", "hub set"),
    ("hub peers", "hub list"),
    ("peers", "peer list"),
    ("token make", "token add"),
    ("token revoke", "token remove"),
];

/// Verbs that connect to a node, each with its noun: `token add`.
fn all() -> BTreeSet<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(binary());
    let written = command.arg("man").arg(folder.path()).output();
    let written = written.expect("the binary can be started");
    assert!(written.status.success(), "{written:?}");
    let pages = fs::read_dir(folder.path()).expect("it was written");
    let pages = pages.map(|page| page.expect("readable").path());
    let dialling = pages.filter(|page| {
        let text = fs::read_to_string(page).expect("readable");
        text.contains(DIALS)
    });
    let verb = |page: std::path::PathBuf| {
        let name = page.file_stem()?.to_str()?;
        Some(name.strip_prefix("alknet-")?.replace('-', " "))
    };
    dialling.filter_map(verb).collect()
}

/// Verbs that connect to a node and begin none of these command lines.
pub(crate) fn left_out(lines: &[&[&str]]) -> Vec<String> {
    let lines: Vec<_> = lines.iter().map(|words| line(words)).collect();
    let all = all();
    assert!(all.len() > 40, "{all:?}");
    let is_left_out = |verb: &String| {
        let verb = format!("{verb} ");
        !lines.iter().any(|line| line.starts_with(&verb))
    };
    all.into_iter().filter(is_left_out).collect()
}

/// A command line with the spelling that has a page, and a space at its end.
fn line(words: &[&str]) -> String {
    let line = words.join(" ") + " ";
    let earlier = EARLIER.iter().find_map(|(earlier, now)| {
        let rest = line.strip_prefix(earlier)?.strip_prefix(' ')?;
        Some(format!("{now} {rest}"))
    });
    earlier.unwrap_or(line)
}
