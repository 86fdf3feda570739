//! Compares docs/decisions.md with the sources: the tests and files that a line names exist.

use std::collections::BTreeSet;
use std::fs;

use super::promises::{page, quoted, tables, tests_named};
use super::tree::{root, tests_of};

/// Cells of a line: the decision, its state, the reason, its door, and what enforces it.
const COLUMNS: usize = 5;

/// States in which no part still has to build something.
const STATES: [&str; 3] = ["changed", "dropped", "kept"];

/// The beginning of a decision that is not built yet, before the name of the part that will build
/// it.
const OPEN: &str = "open: ";

/// The enforcement of a decision by the compiler, or by one list, without a test.
const WITHOUT_TEST: &str = ", by its ";

/// Nothing enforces it, because there is nothing to test.
const NOTHING: &str = "–";

/// Lines about decisions, without column headings.
fn decisions() -> Vec<Vec<String>> {
    let rows = tables(&page("decisions.md")).into_values().flatten();
    rows.filter(|row| row.len() == COLUMNS && row[COLUMNS - 1] != "held by")
        .collect()
}

/// Names of the parts that will build something.
fn parts() -> BTreeSet<String> {
    let rows = tables(&page("decisions.md")).into_values().flatten();
    let parts = rows.filter(|row| row.len() == 2).map(|row| row[0].clone());
    let parts: Vec<_> = parts.collect();
    let named = parts.iter().flat_map(|part| part.split("; "));
    named.map(str::to_owned).collect()
}

/// Files and tests that do not exist, and files without a test or another enforcement.
fn missing(held_by: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for file in quoted(held_by).filter(|word| word.contains('/')) {
        if !root().join(file).is_file() {
            missing.push(format!("no file {file}"));
        }
        let has_test = tests_named(held_by).iter().any(|(of, _)| *of == file);
        if !has_test && !held_by.contains(WITHOUT_TEST) {
            missing.push(format!("no test of {file} is named"));
        }
    }
    for (file, test) in tests_named(held_by) {
        let source = fs::read_to_string(root().join(file)).unwrap_or_default();
        if !tests_of(&source).contains(test) {
            missing.push(format!("no test {test} in {file:?}"));
        }
    }
    if missing.is_empty() && held_by != NOTHING && quoted(held_by).next().is_none() {
        missing.push(format!("neither a file nor {NOTHING:?}"));
    }
    missing
}

#[test]
fn what_holds_a_decision_exists() {
    let decisions = decisions();
    assert!(decisions.len() > 400, "{} lines", decisions.len());
    let mut wrong = Vec::new();
    for row in &decisions {
        let missing = missing(&row[COLUMNS - 1]);
        wrong.extend(missing.into_iter().map(|what| (&row[0], what)));
    }
    assert!(wrong.is_empty(), "docs/decisions.md: {wrong:#?}");
    let with_test = decisions
        .iter()
        .filter(|row| !tests_named(&row[4]).is_empty());
    assert!(with_test.count() > 250, "lines with a test are found");
}

#[test]
fn a_file_or_a_test_that_does_not_exist_is_found() {
    let this = "`tests/tests/house/decisions.rs`";
    for held_by in [
        NOTHING.to_owned(),
        format!("{this}: `what_holds_a_decision_exists`"),
        format!("{this}, by its list"),
    ] {
        assert!(missing(&held_by).is_empty(), "{held_by}");
    }
    for held_by in [
        String::new(),
        this.to_owned(),
        format!("{this}: `no_test_has_this_name`"),
        format!("{this}: `missing`"),
        "`what_holds_a_decision_exists`".to_owned(),
        "`tests/tests/house/no_file.rs`, by its list".to_owned(),
        format!("{this}: `what_holds_a_decision_exists`; `docs/decisions.md`"),
    ] {
        assert!(!missing(&held_by).is_empty(), "{held_by}");
    }
}

/// The other tests here would skip a line with too few cells.
#[test]
fn each_line_says_what_became_of_its_decision() {
    let parts = parts();
    assert!(parts.len() > 6, "{parts:?}");
    let is_known = |state: &str| match state.strip_prefix(OPEN) {
        Some(part) => parts.contains(part),
        None => STATES.contains(&state),
    };
    for row in tables(&page("decisions.md")).values().flatten() {
        assert!([2, COLUMNS].contains(&row.len()), "{row:?}");
    }
    for row in decisions() {
        assert!(is_known(&row[1]), "{:?}: {:?}", row[0], row[1]);
        let door = row[3].as_str();
        assert!(
            ["one-way", "two-way"].contains(&door),
            "{:?}: {door:?}",
            row[0]
        );
    }
}
