//! Compares docs/promises.md with docs/SPECIFICATION.md and the sources: every promise with a test
//! is listed with that test, and every number of a promise is the one in the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::tree::{root, tests_of};

/// Promises that are measured instead of tested. Their rows need no test.
const MEASURED: &str = "`cargo xtask bench";

/// Parts of docs/performance.md that have the figures of a benchmark.
const PARTS: [(&str, &[&str]); 10] = [
    (
        "boot",
        &[
            "Boot",
            "What computing adds",
            "What HTTP adds to a boot",
            "What the binary holds",
        ],
    ),
    ("call", &["Calls"]),
    ("compute", &["Products of matrices"]),
    ("fs", &["Files"]),
    ("http", &["HTTP"]),
    ("image", &["An image beside a minimal Debian"]),
    ("runtime", &["Scripts"]),
    ("tensor", &["Tensors"]),
    ("update", &["Deltas", "Updates"]),
    ("vault", &["The vault", "Sealed machines"]),
];

/// How a test was judged, at the start of the last column.
const JUDGED: [&str; 3] = ["pending: ", "read: ", "seen: "];

/// Why the tests of an attack are in one crate only. A cell of the table of attacks says `, as`, one of these reasons and,
/// in parentheses, what else there is to say.
const REASONS: [&str; 15] = [
    "a load that causes it on one processor does not on another",
    "a test from outside cannot hit the moment",
    "it is a command about a file",
    "it needs a worker that an attacker has taken over",
    "it takes a second user",
    "it takes too long",
    "its test from outside is not written yet",
    "memory has to be full to the byte",
    "no answer shows it from outside",
    "no library of a client does this",
    "no node has a part in it",
    "the disk or the TPM has to change, hang or fail at one step",
    "the node chooses which sessions share a worker",
    "the program offers no way to it from outside",
    "the tests have no program that plays that part",
];

/// The table of promises.md with tests of attacks that belong to no promise.
const TESTS_OF_ATTACKS: &str = "Tests of attacks";

pub(super) fn page(name: &str) -> String {
    let path = root().join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of all table rows below each heading of the second level, by that heading. Rows of
/// column headings are included.
pub(super) fn tables(page: &str) -> BTreeMap<String, Vec<Vec<String>>> {
    let mut tables: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    let mut heading = String::new();
    for line in page.lines() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text.to_owned();
        }
        let inner = line
            .strip_prefix("| ")
            .and_then(|row| row.strip_suffix(" |"));
        if let Some(inner) = inner {
            let cells = inner.split(" | ").map(str::to_owned).collect();
            tables.entry(heading.clone()).or_default().push(cells);
        }
    }
    tables
}

/// Rows of the table of attacks, without its heading.
pub(super) fn attacks() -> Vec<Vec<String>> {
    let attacks = tables(&page("security.md")).remove("Attacks that worked once");
    let mut attacks = attacks.expect("the table");
    attacks.retain(|row| row[0] != "attack");
    attacks
}

/// Words between backquotes.
pub(super) fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The text outside of backquotes.
fn prose(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').step_by(2)
}

/// Whether the row has a test, and not only a benchmark.
fn is_tested(row: &[String]) -> bool {
    let shown = row[1..].join(" | ") + " |";
    row[0] != "promise" && !shown.starts_with(MEASURED)
}

fn is_judged(cell: &str) -> bool {
    JUDGED.iter().any(|how| cell.starts_with(how))
}

/// Tests that a cell names, each with the file before it.
pub(super) fn tests_named(cell: &str) -> Vec<(&str, &str)> {
    let mut file = "";
    let mut named = Vec::new();
    for word in quoted(cell) {
        match word.contains('/') {
            true => file = word,
            false => named.push((file, word)),
        }
    }
    named
}

#[test]
fn every_promise_names_the_test_that_would_notice_its_breach() {
    let promised = tables(&page("SPECIFICATION.md"));
    let listed = tables(&page("promises.md"));
    let mut rows = 0;
    for (heading, promised) in &promised {
        let listed = listed.get(heading).map_or(&[][..], Vec::as_slice);
        for row in promised.iter().filter(|row| is_tested(row)) {
            let found: Vec<_> = listed.iter().filter(|it| it[0] == row[0]).collect();
            let [found] = found.as_slice() else {
                panic!(
                    "docs/promises.md, {heading}: {} rows for {:?}",
                    found.len(),
                    row[0]
                );
            };
            let [promise, tests, judged] = found.as_slice() else {
                panic!("docs/promises.md, {heading}: three columns: {found:?}");
            };
            assert_tests_exist(promise, tests);
            assert!(
                is_judged(judged),
                "{promise:?}: {judged:?} does not begin with one of {JUDGED:?}"
            );
            rows += 1;
        }
        for row in listed.iter().filter(|row| row[0] != "promise") {
            let known = promised.iter().any(|it| it[0] == row[0]);
            assert!(known, "nothing promises {:?} in {heading}", row[0]);
        }
    }
    assert!(rows > 140, "{rows} rows were found");
}

/// A file without the test would lead a reader to the code under test, and prove nothing.
#[test]
fn what_shows_a_promise_has_a_test() {
    let mut files = 0;
    for (heading, rows) in tables(&page("SPECIFICATION.md")) {
        let mut shown_by = None;
        for row in &rows {
            if row[0] == "promise" {
                shown_by = row.iter().position(|cell| cell == "shown by");
                continue;
            }
            let cell = shown_by.and_then(|at| row.get(at));
            let cell = cell.unwrap_or_else(|| panic!("{heading}: what shows {row:?}?"));
            for word in quoted(cell).filter(|word| is_path(word)) {
                let promise = &row[0];
                assert!(
                    has_test(&root().join(word)),
                    "{promise:?}: no test in {word}"
                );
                files += 1;
            }
        }
    }
    assert!(files > 200, "{files} files were found");
}

#[test]
fn a_file_has_a_test_of_its_own_or_in_the_module_below_it() {
    let has_test = |path: &str| has_test(&root().join(path));
    assert!(has_test("tests/tests/house/promises.rs") && has_test("tests/tests/house"));
    assert!(has_test("crates/endpoint/src/admission.rs"));
    assert!(!has_test("tests/tests/house/tree.rs") && !has_test("tests/tests/house/none.rs"));
}

/// A command has a space, and an HTTP path begins with a slash.
fn is_path(word: &str) -> bool {
    word.contains('/') && !word.contains(' ') && !word.starts_with('/')
}

/// Whether the file, the module `tests` below it, or a file of the folder has a test.
fn has_test(path: &Path) -> bool {
    if path.is_dir() {
        let mut files = fs::read_dir(path).expect("a folder of this repository");
        files.any(|file| has_test(&file.expect("readable").path()))
    } else if path.is_file() && path.extension().is_some_and(|it| it == "rs") {
        let source = fs::read_to_string(path).expect("readable");
        let module = path.with_extension("");
        let mut below = ["tests.rs", "tests"].iter();
        !tests_of(&source).is_empty() || below.any(|name| has_test(&module.join(name)))
    } else {
        false
    }
}

/// `file`: `test`, `test`; `file`: `test`.
pub(super) fn assert_tests_exist(promise: &str, tests: &str) {
    let mut source = None;
    let mut count = 0;
    for word in quoted(tests) {
        if word.contains('/') {
            let text = fs::read_to_string(root().join(word));
            source = Some(text.unwrap_or_else(|error| panic!("{promise:?}: {word}: {error}")));
            continue;
        }
        let source = source.as_ref().expect("a file comes first");
        assert!(
            tests_of(source).contains(word),
            "{promise:?}: no test {word}"
        );
        count += 1;
    }
    assert!(count > 0, "{promise:?} names no test");
}

#[test]
fn the_table_of_attacks_names_tests_that_exist() {
    let mut rows = 0;
    for row in attacks() {
        let [attack, _, tests] = row.as_slice() else {
            panic!("docs/security.md: three columns: {row:?}");
        };
        // Refers to the row above.
        if tests != "the same" {
            assert_tests_exist(attack, tests);
        }
        rows += 1;
    }
    assert!(rows > 60, "{rows} rows were found");
}

/// Beside a promise that names the test as well, or in the table of such tests.
#[test]
fn every_test_of_an_attack_says_how_it_is_known_that_it_fails() {
    let listed = tables(&page("promises.md"));
    let mut known = BTreeSet::new();
    for row in listed.values().flatten() {
        let [.., tests, judged] = row.as_slice() else {
            continue;
        };
        if is_judged(judged) {
            known.extend(tests_named(tests));
        }
    }
    let attacks = attacks();
    let of_attacks: BTreeSet<_> = attacks
        .iter()
        .flat_map(|row| tests_named(&row[2]))
        .collect();
    assert!(of_attacks.len() > 200, "{} tests", of_attacks.len());
    let unknown: Vec<_> = of_attacks.difference(&known).collect();
    assert!(
        unknown.is_empty(),
        "docs/promises.md, {TESTS_OF_ATTACKS}: no row has {unknown:?}"
    );
    for row in rows_of_attacks(&listed) {
        let [tests, judged] = row.as_slice() else {
            panic!("docs/promises.md, {TESTS_OF_ATTACKS}: two columns: {row:?}");
        };
        assert_tests_exist(judged, tests);
        assert!(
            is_judged(judged),
            "{judged:?} begins with none of {JUDGED:?}"
        );
        for test in tests_named(tests) {
            assert!(of_attacks.contains(&test), "no attack names {test:?}");
        }
    }
}

fn rows_of_attacks(
    listed: &BTreeMap<String, Vec<Vec<String>>>,
) -> impl Iterator<Item = &Vec<String>> {
    let rows = listed.get(TESTS_OF_ATTACKS).expect("the table");
    rows.iter().filter(|row| row[0] != "test")
}

/// Whether a file has tests that start the program, and belong to no crate of its parts.
pub(super) fn is_outside(file: &str) -> bool {
    file.starts_with("tests/tests/") && !file.starts_with("tests/tests/house/")
}

/// What an attacker can do from outside is tested from outside.
#[test]
fn attacks_that_are_tested_in_one_crate_say_why() {
    let mut inside = 0;
    let mut unused = BTreeSet::from(REASONS);
    let attacks = attacks();
    for row in &attacks {
        let (attack, tests) = (&row[0], &row[2]);
        if tests == "the same" || quoted(tests).any(is_outside) {
            continue;
        }
        let before = prose(tests).next().unwrap_or_default();
        let gives = |reason: &&&str| {
            let ends = [": ", " ("].map(|end| format!(", as {reason}{end}"));
            ends.iter().any(|said| before.contains(said))
        };
        let reason = REASONS.iter().find(gives);
        let reason = reason.unwrap_or_else(|| panic!("docs/security.md: {attack:?}: {before:?}"));
        unused.remove(reason);
        inside += 1;
    }
    assert!(unused.is_empty(), "no attack has the reasons {unused:?}");
    let said = format!(
        "Of {} attacks {inside} have their tests in one crate only",
        attacks.len()
    );
    assert!(
        page("security.md").contains(&said),
        "docs/security.md does not say: {said}"
    );
}

/// What the page about security says of the page about tests.
#[test]
fn what_was_seen_to_fail_is_counted() {
    let promised = tables(&page("SPECIFICATION.md"));
    let listed = tables(&page("promises.md"));
    let with = |cells: &[&String], how: &str| {
        let with = cells.iter().filter(|cell| cell.starts_with(how));
        with.count()
    };
    let rows = listed
        .iter()
        .filter(|(name, _)| promised.contains_key(*name));
    let rows = rows.flat_map(|(_, rows)| rows).filter_map(|row| row.get(2));
    let rows: Vec<_> = rows.filter(|cell| is_judged(cell)).collect();
    let (read, seen) = (with(&rows, "read: "), with(&rows, "seen: "));
    let (mut tests, mut failed) = (0, 0);
    for row in rows_of_attacks(&listed) {
        let count = tests_named(&row[0]).len();
        tests += count;
        if row[1].starts_with("seen: ") {
            failed += count;
        }
    }
    let security = page("security.md");
    for said in [
        format!(
            "{read} of the {} rows of promises.md were judged by reading; {seen} are *seen*",
            rows.len()
        ),
        format!("Of {tests} tests of attacks that stand beside no promise {failed} are *seen*"),
    ] {
        assert!(security.contains(&said), "docs/security.md: {said:?}");
    }
}

/// Two pages that say which tests have run come to contradict each other.
#[test]
fn what_has_not_run_stands_on_one_page() {
    let mut cells = 0;
    for name in ["SPECIFICATION.md", "security.md"] {
        for (heading, rows) in tables(&page(name)) {
            for cell in rows.iter().flatten() {
                let is_said = prose(cell).any(|text| text.contains("pending"));
                assert!(!is_said, "docs/{name}, {heading}: {cell:?}");
                cells += 1;
            }
        }
    }
    assert!(cells > 500, "{cells} cells were found");
}

/// A test with limits of its own shows that a limit is kept, and not which: the numbers are held here.
#[test]
fn the_numbers_of_the_promises_are_those_of_the_code() {
    let promised = tables(&page("SPECIFICATION.md"));
    let rows: Vec<_> = promised.into_values().flatten().collect();
    let page = page("promises.md");
    let numbers = tables(&page).remove("Numbers").expect("the table");
    let mut checked = 0;
    for row in numbers.iter().filter(|row| row[0] != "promise") {
        let [promise, number, places] = row.as_slice() else {
            panic!("three columns: {row:?}");
        };
        let promised = rows.iter().find(|it| it[0] == *promise);
        let promised = promised.unwrap_or_else(|| panic!("nothing promises {promise:?}"));
        // The number stands with the promise, or beside it.
        let said = promised[..2].join(" | ");
        assert!(
            said.contains(number.as_str()),
            "{promise:?}: no {number} in {said:?}"
        );
        let mut words = quoted(places);
        let file = words.next().expect("a file");
        let source = fs::read_to_string(root().join(file));
        let source = source.unwrap_or_else(|error| panic!("{file}: {error}"));
        for declared in words {
            let found = source.matches(declared).count();
            assert_eq!(found, 1, "{promise:?}: {declared:?} in {file}");
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked} numbers were found");
}

/// Numbers of a text, each with how many decimals it has. `2,041` is one number.
pub(super) fn numbers(text: &str) -> Vec<(f64, usize)> {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !is_digit(at) {
            at += 1;
            continue;
        }
        let mut digits = String::new();
        let mut decimals = None;
        while is_digit(at) || (is_digit(at + 1) && matches!(bytes[at], b'.' | b',')) {
            match bytes[at] {
                b',' => {}
                b'.' => decimals = Some(digits.len()),
                digit => digits.push(char::from(digit)),
            }
            at += 1;
        }
        let whole = decimals.unwrap_or(digits.len());
        let decimals = digits.len() - whole;
        digits.insert(whole, '.');
        found.extend(digits.parse::<f64>().ok().map(|number| (number, decimals)));
    }
    found
}

/// Numbers of the parts of `performance` with the figures of `benchmark`.
fn figures(performance: &str, benchmark: &str) -> Vec<(f64, usize)> {
    let parts = PARTS.iter().find(|(name, _)| *name == benchmark);
    let (_, headings) = parts.unwrap_or_else(|| panic!("no part has {benchmark:?}"));
    let parts = performance.split("\n## ").filter(|part| {
        let heading = part.lines().next().unwrap_or_default();
        headings.contains(&heading)
    });
    parts.flat_map(numbers).collect()
}

/// A figure of the specification is one of the part of docs/performance.md about its benchmark, or rounded from one.
#[test]
fn figures_of_benchmarks_stand_in_the_page_about_them() {
    let promised = tables(&page("SPECIFICATION.md"));
    let performance = page("performance.md");
    let mut rows = 0;
    for row in promised.into_values().flatten() {
        let [promise, shown, measured] = row.as_slice() else {
            continue;
        };
        let Some(shown) = shown.strip_prefix(MEASURED) else {
            continue;
        };
        let benchmark = shown.split('`').next().unwrap_or_default().trim();
        let known = figures(&performance, benchmark);
        let is_known = |(figure, decimals): &(f64, usize)| {
            let rounded = |number: f64| format!("{number:.decimals$}");
            let wanted = rounded(*figure);
            known.iter().any(|(number, _)| rounded(*number) == wanted)
        };
        rows += 1;
        let unknown: Vec<_> = numbers(measured)
            .into_iter()
            .filter(|it| !is_known(it))
            .collect();
        assert!(
            unknown.is_empty(),
            "{promise:?}: {unknown:?} of {measured:?}"
        );
    }
    assert!(rows > 20, "{rows} rows were found");
}

#[test]
fn nothing_that_counts_takes_a_lock() {
    for file in [
        "crates/core/src/metrics.rs",
        "crates/core/src/stream.rs",
        "crates/endpoint/src/counters.rs",
        "crates/endpoint/src/metrics.rs",
    ] {
        let source = fs::read_to_string(root().join(file));
        let source = source.unwrap_or_else(|error| panic!("{file}: {error}"));
        for lock in ["Mutex", "RwLock", ".lock("] {
            assert!(!source.contains(lock), "{file}: {lock}");
        }
    }
}
