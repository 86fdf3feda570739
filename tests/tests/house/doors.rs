//! docs/ARCHITECTURE.md, "Doors": each library is on the page, and each door begins with an example
//! that compiles.

use std::collections::BTreeSet;
use std::fs;

use super::documentation::has_example;
use super::promises::{page, quoted, tables};
use super::tree::{SourceFile, root, sources};

/// The section with the two tables.
const SECTION: &str = "Doors";

/// Heading of the first column, in both tables.
const LIBRARY: &str = "library";

/// Heading of the second column of the table of doors.
const EXAMPLE: &str = "its example";

/// The first file of a library.
const FIRST_FILE: &str = "/src/lib.rs";

/// Folders of libraries.
#[derive(Default)]
struct DoorTables {
    doors: BTreeSet<String>,
    /// Libraries that a program reaches through a door.
    behind: BTreeSet<String>,
}

impl DoorTables {
    fn read(page: &str) -> Self {
        let mut read = Self::default();
        let mut is_door = false;
        for row in tables(page).remove(SECTION).expect("the section") {
            match row.as_slice() {
                [library, second] if library == LIBRARY => is_door = second == EXAMPLE,
                [library, _] => {
                    let library = quoted(library).next().expect("a folder").to_owned();
                    let table = if is_door {
                        &mut read.doors
                    } else {
                        &mut read.behind
                    };
                    assert!(table.insert(library.clone()), "two rows of {library}");
                }
                _ => panic!("docs/ARCHITECTURE.md, {SECTION}: two columns: {row:?}"),
            }
        }
        read
    }
}

/// The first file of each library, by its folder.
fn libraries() -> impl Iterator<Item = (&'static str, &'static SourceFile)> {
    let sources = sources().iter();
    sources.filter_map(|source| Some((source.path.strip_suffix(FIRST_FILE)?, source)))
}

/// The documentation of the library itself, at the start of its first file.
fn module_docs(text: &str) -> String {
    let lines = text.lines().take_while(|line| line.starts_with("//!"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn each_library_is_a_door_or_names_the_door_before_it() {
    let DoorTables { doors, behind } = DoorTables::read(&page("ARCHITECTURE.md"));
    let both: Vec<_> = doors.intersection(&behind).collect();
    assert!(both.is_empty(), "in both tables: {both:?}");
    let listed: BTreeSet<&str> = doors.union(&behind).map(String::as_str).collect();
    let libraries: BTreeSet<&str> = libraries().map(|(folder, _)| folder).collect();
    assert!(libraries.len() > 30, "{libraries:?}");
    let unlisted: Vec<_> = libraries.difference(&listed).collect();
    assert!(
        unlisted.is_empty(),
        "write an example into the documentation of {unlisted:?} and a row into docs/ARCHITECTURE.md, {SECTION}, or \
         name the door that a program reaches them by"
    );
    let gone: Vec<_> = listed.difference(&libraries).collect();
    assert!(
        gone.is_empty(),
        "docs/ARCHITECTURE.md, {SECTION}: no library {gone:?}"
    );
}

#[test]
fn each_door_begins_with_an_example_that_compiles() {
    let DoorTables { doors, .. } = DoorTables::read(&page("ARCHITECTURE.md"));
    assert!(doors.len() > 12, "{doors:?}");
    let mut wrong = Vec::new();
    for (folder, source) in libraries().filter(|(folder, _)| doors.contains(*folder)) {
        let manifest = root().join(folder).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a package has one");
        if !has_example(&module_docs(&source.text)) {
            wrong.push(format!(
                "{}: no example of Rust in the `//!` at its start",
                source.path
            ));
        }
        if manifest.contains("\ndoctest = false\n") {
            wrong.push(format!("{folder}: rustdoc does not compile its examples"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_example_of_an_item_or_in_another_language_is_none_of_its_library() {
    let docs = module_docs("//! A library.\n//!\n//! ```no_run\n//! work();\n//! ```\nmod a;\n");
    assert!(has_example(&docs));
    for text in [
        "//! A library.\n\n/// ```\n/// work();\n/// ```\npub fn work() {}\n",
        "//! A library.\n//!\n//! ```text\n//! a picture\n//! ```\n",
        "//! ```ignore\n//! work();\n//! ```\n",
    ] {
        assert!(!has_example(&module_docs(text)), "{text}");
    }
}
