//! The fuzz targets: the table of docs/testing.md has each of them, and each row about their runs says which have run.

use std::collections::BTreeSet;
use std::fs;

use super::promises::{page, quoted, tables};
use super::tree::root;

/// The promise in docs/SPECIFICATION.md and docs/promises.md, and how it begins.
const PROMISE: &str = "fuzz targets; targets that ran for ten minutes";
/// The end of the sentence of docs/testing.md about targets without a run.
const NOT_RUN: &str = "only their corpora have run through them.";

/// The programs of the targets. `fuzz/tests/corpus.rs` compares them with the list in `fuzz/src/lib.rs`.
fn targets() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("fuzz/targets")).expect("a folder");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let names = paths.map(|path| path.file_stem().map(|it| it.to_string_lossy().into_owned()));
    names.map(|name| name.expect("a file has a name")).collect()
}

/// The words between backquotes of a part of a sentence.
fn targets_of(part: &str) -> BTreeSet<String> {
    quoted(part).map(str::to_owned).collect()
}

/// What the section "Fuzzing" of docs/testing.md says.
struct FuzzingSection {
    /// The targets of the first table.
    listed: BTreeSet<String>,
    /// Those of the tables about runs, with fewer minutes than ten or with ten.
    short: BTreeSet<String>,
    whole: BTreeSet<String>,
    not_run: BTreeSet<String>,
}

impl FuzzingSection {
    fn read() -> Self {
        let page = page("testing.md");
        let rows = tables(&page).remove("Fuzzing").expect("the tables");
        let mut section = Self {
            listed: BTreeSet::new(),
            short: BTreeSet::new(),
            whole: BTreeSet::new(),
            not_run: BTreeSet::new(),
        };
        let mut is_short = false;
        for row in rows {
            if row[0] == "target" {
                is_short = row[1] == "minutes";
                continue;
            }
            let new = match row[0].strip_prefix('`') {
                Some(name) => section.listed.insert(name.trim_end_matches('`').to_owned()),
                None if is_short => section.short.insert(row[0].clone()),
                None => section.whole.insert(row[0].clone()),
            };
            assert!(new, "docs/testing.md: two rows for {}", row[0]);
        }
        // A sentence may go over the end of a line.
        let text = page.replace('\n', " ");
        let before = text.split(NOT_RUN).next().unwrap_or_default();
        let sentence = before.rsplit(". ").next().unwrap_or_default();
        if before.len() < text.len() {
            section.not_run = targets_of(sentence);
        }
        section
    }
}

/// The row of the promise in a page.
fn promise(name: &str) -> Vec<String> {
    let tables = tables(&page(name));
    let mut rows = tables.into_values().flatten();
    let row = rows.find(|row| row[0].starts_with(PROMISE));
    row.unwrap_or_else(|| panic!("docs/{name} has the promise"))
}

#[test]
fn every_fuzz_target_is_listed_and_has_run_or_is_named_as_one_that_has_not() {
    let targets = targets();
    let section = FuzzingSection::read();
    assert_eq!(section.listed, targets, "the table of docs/testing.md");
    let mut told: Vec<_> = [&section.whole, &section.short, &section.not_run]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    told.sort();
    let all: Vec<_> = targets.iter().cloned().collect();
    assert_eq!(told, all, "docs/testing.md says once of each how it ran");

    let counts = format!("{}; {}", targets.len(), section.whole.len());
    assert_eq!(promise("SPECIFICATION.md")[1], counts);
    for page in ["SPECIFICATION.md", "promises.md"] {
        // "…; targets that ran …, of which every finding is mended. `a` ran for …; `b` have not run"
        let row = promise(page);
        let others = row[0].split_once(". ").map_or("", |(_, others)| others);
        let (short, not_run) = match others.split_once("; ") {
            Some((short, not_run)) => (short, not_run),
            None if others.contains("have not run") => ("", others),
            None => (others, ""),
        };
        assert_eq!(targets_of(short), section.short, "docs/{page}");
        assert_eq!(targets_of(not_run), section.not_run, "docs/{page}");
    }
}
