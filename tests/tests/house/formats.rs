//! The formats of stored data: docs/update-inside.md lists each number, and a number above one has a migration with a test. A
//! machine whose trial fails runs the version before, which has to open what the new one wrote. Each store, also one
//! without a number, has a sample of its first format that a test reads.

use std::collections::BTreeSet;

use super::promises::{assert_tests_exist, page, quoted, tables};
use super::tree::{SourceFile, sources};

/// The sections of docs/update-inside.md.
const SECTION: &str = "\n### Formats of stored data\n";
const UNNUMBERED: &str = "\n### Stored data without a number\n";
/// What a version does with a member of a file that it does not know.
const UNKNOWN: [&str; 2] = ["ignored", "refused"];
/// Ends of the names of files that a program writes as JSON.
const JSON_ENDS: [&str; 2] = [".json", ".jsonl"];
/// Constants that name other JSON files. The first three have a number, which another constant declares.
const OTHERS: [(&str, &str); 11] = [
    ("appliance/src/credentials/mod.rs", "SEALED_FILE"),
    ("crates/escrow/src/index.rs", "FILE"),
    ("init/src/update/trust_store.rs", "FILE"),
    // Of the command line, on the computer of a person.
    ("appliance/src/cli/node_book.rs", "HUBS_FILE"),
    ("appliance/src/cli/node_book.rs", "NODES_FILE"),
    ("crates/runtime/promotion/src/draft.rs", "DRAFT_FILE"),
    // A node on a host, which has no versions on trial.
    ("appliance/src/node/host.rs", "SERVE_FILE"),
    // Measured again if they cannot be read.
    ("appliance/src/node/computing/mod.rs", "MEASURED_FILE"),
    ("appliance/src/node/self_probe/trust_history.rs", "FILE"),
    // Documents in a bundle, which name the version of TUF's formats.
    ("crates/update/src/bundle.rs", "TIMESTAMP"),
    ("crates/update/src/cosign.rs", "ROOT"),
];
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

/// The name of a JSON file's constant, if a line declares one.
fn declared_file(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("const ")?;
    let (name, value) = rest.split_once(": &str = \"")?;
    let file = value.strip_suffix("\";")?;
    let is_json = JSON_ENDS.iter().any(|end| file.ends_with(end)) && !file.contains(' ');
    let is_item = before.is_empty() || before.starts_with("pub");
    (is_json && is_item).then_some(name)
}

/// Sources of programs that store data on a node.
fn program_sources() -> impl Iterator<Item = &'static SourceFile> {
    let is_outside = |path: &str| {
        let below = |folder: &str| path.starts_with(&format!("{folder}/"));
        path.contains("/tests") || OUTSIDE.into_iter().any(below)
    };
    sources().iter().filter(move |it| !is_outside(&it.path))
}

/// The formats in the sources.
fn written() -> BTreeSet<DeclaredFormat> {
    let mut found = BTreeSet::new();
    for file in program_sources() {
        let formats = file.text.lines().filter_map(declared);
        found.extend(formats.map(|(name, number)| (file.path.clone(), name.to_owned(), number)));
    }
    found
}

/// The rows of a section's table, without its heading.
fn rows(section: &str) -> Vec<Vec<String>> {
    let page = page("update-inside.md");
    let (_, section) = page.split_once(section).expect("the section");
    let section = section.split("\n### ").next().unwrap_or_default();
    let mut rows = tables(section).remove("").expect("a table");
    rows.remove(0);
    rows
}

#[test]
fn every_format_of_stored_data_is_the_first_one_or_has_a_migration_with_a_test() {
    let mut listed = BTreeSet::new();
    for row in rows(SECTION) {
        let [store, number, declared, migration, sample] = row.as_slice() else {
            panic!("docs/update-inside.md: five columns: {row:?}");
        };
        assert_tests_exist(store, sample);
        let number: u64 = number.parse().expect("a number");
        let [file, name] = quoted(declared).collect::<Vec<_>>()[..] else {
            panic!("docs/update-inside.md: a file and a constant: {declared:?}");
        };
        match (number, migration.as_str()) {
            (1, NONE) => {}
            (1, _) => panic!("{store}: a first format has no migration"),
            (_, migration) => assert_tests_exist(store, migration),
        }
        let new = listed.insert((file.to_owned(), name.to_owned(), number));
        assert!(new, "docs/update-inside.md: {declared} twice");
    }
    let written = written();
    assert!(written.len() > 10, "{written:?}");
    assert_eq!(
        listed, written,
        "docs/update-inside.md has the numbers of the sources"
    );
}

#[test]
fn every_stored_file_without_a_number_is_listed_and_has_a_sample() {
    let mut listed: BTreeSet<_> = OTHERS
        .iter()
        .map(|(file, name)| ((*file).to_owned(), (*name).to_owned()))
        .collect();
    for row in rows(UNNUMBERED) {
        let [store, declared, unknown, sample] = row.as_slice() else {
            panic!("docs/update-inside.md: four columns: {row:?}");
        };
        assert!(UNKNOWN.contains(&unknown.as_str()), "{store}: {unknown}");
        assert_tests_exist(store, sample);
        let [file, name] = quoted(declared).collect::<Vec<_>>()[..] else {
            panic!("docs/update-inside.md: a file and a constant: {declared:?}");
        };
        let new = listed.insert((file.to_owned(), name.to_owned()));
        assert!(new, "docs/update-inside.md: {declared} twice");
    }
    let mut written = BTreeSet::new();
    for file in program_sources() {
        let names = file.text.lines().filter_map(declared_file);
        written.extend(names.map(|name| (file.path.clone(), name.to_owned())));
    }
    assert_eq!(
        listed, written,
        "docs/update-inside.md has the stored files of the sources"
    );
}

#[test]
fn names_of_stored_files_are_found() {
    let line = "pub(super) const FILE: &str = \"log.jsonl\";";
    assert_eq!(declared_file(line), Some("FILE"));
    for other in [
        "    const FILE: &str = \"log.json\";",
        "const FILE: &str = \"log.txt\";",
        "const BYTES: u64 = 1;",
    ] {
        assert_eq!(declared_file(other), None, "{other}");
    }
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
