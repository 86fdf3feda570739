//! Compares docs/renames.md with the sources: each current name on the page exists, in the package
//! that the row names.

use std::collections::BTreeMap;

use super::names::declaration;
use super::promises::{page, quoted, tables};
use super::tree::{root, sources};

/// Heading of the first column, in both tables.
const FORMER: &str = "until 2026-11-26";

/// Rows of the table below this heading, without column headings.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let mut rows = tables(&page("renames.md"))
        .remove(heading)
        .expect("the table");
    rows.retain(|row| row[0] != FORMER);
    rows
}

/// The only word between backquotes in a cell.
fn name(cell: &str) -> &str {
    let mut words = quoted(cell);
    match (words.next(), words.next()) {
        (Some(name), None) => name,
        _ => panic!("docs/renames.md: one name in {cell:?}"),
    }
}

/// The type, or the type alias, that a line of Rust declares.
pub(super) fn declared(line: &str) -> Option<&str> {
    if let Some(declared) = declaration(line) {
        return Some(declared.name);
    }
    let (visibility, rest) = line.trim_start().split_once("type ")?;
    let is_item = visibility.is_empty() || visibility.starts_with("pub");
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
    end.filter(|_| is_item).map(|end| &rest[..end])
}

/// Whether a file is a source of the package in this folder, and not of a package below it.
fn is_source_of(path: &str, folder: &str) -> bool {
    let path = path.strip_prefix(folder);
    path.is_some_and(|path| path.starts_with("/src/"))
}

#[test]
fn each_new_name_of_a_type_is_declared_in_the_package_of_its_row() {
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in sources() {
        for name in source.text.lines().filter_map(declared) {
            places.entry(name).or_default().push(&source.path);
        }
    }
    let rows = rows("Types");
    assert!(rows.len() > 1800, "{} rows were found", rows.len());
    let mut missing = Vec::new();
    for row in &rows {
        let [former, current, packages] = row.as_slice() else {
            panic!("docs/renames.md: three columns: {row:?}");
        };
        let current = name(current);
        let mut folders = quoted(packages);
        let declares = folders.next().expect("a package");
        let places = places.get(current).map_or(&[][..], Vec::as_slice);
        if !places.iter().any(|path| is_source_of(path, declares)) {
            missing.push(format!(
                "{former}: no type {current} in {declares}, but {places:?}"
            ));
        }
        for folder in folders {
            let uses =
                |path: &str, text: &str| is_source_of(path, folder) && text.contains(current);
            if !sources().iter().any(|it| uses(&it.path, &it.text)) {
                missing.push(format!("{former}: {folder} does not use {current}"));
            }
        }
    }
    assert!(missing.is_empty(), "docs/renames.md: {missing:#?}");
}

#[test]
fn each_new_name_of_a_module_or_folder_is_its_path_today() {
    let root = root();
    let rows = rows("Modules and folders");
    assert!(rows.len() > 80, "{} rows were found", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let [former, current] = row.as_slice() else {
            panic!("docs/renames.md: two columns: {row:?}");
        };
        if !root.join(name(current)).exists() {
            wrong.push(format!("{current} does not exist"));
        }
        if root.join(name(former)).exists() {
            wrong.push(format!("{former} still exists"));
        }
    }
    assert!(wrong.is_empty(), "docs/renames.md: {wrong:#?}");
}

#[test]
fn aliases_are_types_and_associated_types_are_found_too() {
    for (line, name) in [
        ("pub(crate) type Boxed = Box<u8>;", "Boxed"),
        ("type Alone<T> = Vec<T>;", "Alone"),
        ("    type Nested: Send;", "Nested"),
        ("pub struct Plain;", "Plain"),
    ] {
        assert_eq!(declared(line), Some(name), "{line}");
    }
    for line in ["/// A type of its own.", "let kind = 1; // type Hidden;"] {
        assert_eq!(declared(line), None, "{line}");
    }
    assert!(is_source_of("init/src/lib.rs", "init"));
    assert!(!is_source_of("init/net/src/lib.rs", "init"));
}
