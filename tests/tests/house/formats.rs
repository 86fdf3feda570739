//! The formats of stored data: a page of the docs lists each number, and a number above one has a migration with a test. A
//! machine whose trial fails runs the version before, which has to open what the new one wrote.

use std::collections::BTreeSet;

use super::promises::{assert_tests_exist, quoted, tables};
use super::tree::{others, sources};

/// The section of the page about updates.
const SECTION: &str = "\n### Formats of stored data\n";
/// The migration of a first format.
const NONE: &str = "–";
/// Names of the constants that have such a number, or their ends.
const NAMES: [&str; 3] = ["CONFIG_VERSION", "FORMAT", "SCHEMA_VERSION"];
/// Folders whose files are no part of a node, or test it.
const OUTSIDE: [&str; 6] = [
    "crates/bench",
    "crates/tasks",
    "fuzz",
    "image",
    "qemu",
    "tests",
];

/// A number of a format: the file that declares it, the constant, and the number.
type DeclaredFormat = (String, String, u64);

/// `const NAME: TYPE = NUMBER;` in a line.
fn declared(line: &str) -> Option<(&str, u64)> {
    let (before, rest) = line.split_once("const ")?;
    let (name, value) = rest.split_once(": ")?;
    let (_, value) = value.split_once(" = ")?;
    let number = value.strip_suffix(';')?.parse().ok()?;
    let is_format = NAMES.iter().any(|end| name.ends_with(end));
    let is_item = before.is_empty() || before.starts_with("pub");
    (is_format && is_item).then_some((name, number))
}

/// The formats in the sources.
fn written() -> BTreeSet<DeclaredFormat> {
    let is_outside = |path: &str| {
        let below = |folder: &str| path.starts_with(&format!("{folder}/"));
        path.contains("/tests") || OUTSIDE.into_iter().any(below)
    };
    let of_programs = sources().iter().filter(|it| !is_outside(&it.path));
    let mut found = BTreeSet::new();
    for file in of_programs {
        let formats = file.text.lines().filter_map(declared);
        found.extend(formats.map(|(name, number)| (file.path.clone(), name.to_owned(), number)));
    }
    found
}

/// The rows of the table, without its heading.
fn rows() -> Vec<Vec<String>> {
    let pages = others(&["md"]);
    let mut sections = pages
        .iter()
        .filter_map(|page| page.text.split_once(SECTION));
    let (_, section) = sections.next().expect("a page has the section");
    let section = section.split("\n### ").next().unwrap_or_default();
    let mut rows = tables(section).remove("").expect("a table");
    rows.remove(0);
    rows
}

#[test]
fn every_format_of_stored_data_is_the_first_one_or_has_a_migration_with_a_test() {
    let mut listed = BTreeSet::new();
    for row in rows() {
        let [store, number, declared, migration] = row.as_slice() else {
            panic!("{SECTION}: four columns: {row:?}");
        };
        let number: u64 = number.parse().expect("a number");
        let [file, name] = quoted(declared).collect::<Vec<_>>()[..] else {
            panic!("{SECTION}: a file and a constant: {declared:?}");
        };
        match (number, migration.as_str()) {
            (1, NONE) => {}
            (1, _) => panic!("{store}: a first format has no migration"),
            (_, migration) => assert_tests_exist(store, migration),
        }
        let new = listed.insert((file.to_owned(), name.to_owned(), number));
        assert!(new, "{SECTION}: {declared} twice");
    }
    let written = written();
    assert!(written.len() > 10, "{written:?}");
    assert_eq!(listed, written, "the page has the numbers of the sources");
}

#[test]
fn numbers_of_formats_are_found() {
    assert_eq!(declared("const FORMAT: u64 = 1;"), Some(("FORMAT", 1)));
    let public = "pub(super) const SCHEMA_VERSION: i64 = 12;";
    assert_eq!(declared(public), Some(("SCHEMA_VERSION", 12)));
    for other in [
        "const FORMAT: &str = \"a\";",
        "// const FORMAT: u64 = 1;",
        "    const FORMAT: u64 = 1;",
        "const FORMATS: u64 = 1;",
        "const VERSION: u32 = 1;",
    ] {
        assert_eq!(declared(other), None, "{other}");
    }
}
