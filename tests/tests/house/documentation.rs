//! Tests and files that docs/testing.md names, pictures that pages show, and examples in the documentation of libraries.

use std::collections::{BTreeSet, HashSet};

use alknet_tests::DOCS_PICTURES;

use super::names::pages;
use super::tree::{root, sources, tests_of};

/// The tables of docs/testing.md that say which test shows what.
fn acceptance_tables() -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/testing.md")).expect("the page exists");
    let sections = page.split("\n## ").map(str::to_owned);
    let tables = sections.filter(|section| section.starts_with("Acceptance of "));
    tables.collect()
}

#[test]
fn tests_that_the_documentation_names_exist() {
    let root = root();
    let tables = acceptance_tables();
    assert!(tables.len() >= 3, "the page has the tables");
    // In one pass over the sources.
    let named: HashSet<&str> = sources().iter().flat_map(|it| tests_of(&it.text)).collect();
    for table in tables {
        let quoted = table.split('`').skip(1).step_by(2);
        let (files, others): (Vec<_>, Vec<_>) = quoted.partition(|word| word.contains('/'));
        let tests: Vec<_> = others.into_iter().filter(|word| is_test(word)).collect();
        assert!(tests.len() > 10, "{tests:?}");
        for test in tests {
            assert!(named.contains(test), "no test {test}");
        }
        for file in files.iter().filter(|file| !file.contains("services/")) {
            assert!(root.join(file).exists(), "no file {file}");
        }
    }
}

/// Names of the pictures that the text of a page shows.
fn pictures_in(text: &str) -> BTreeSet<&str> {
    let images = text.split("![").skip(1);
    let targets = images.filter_map(|image| image.split_once("](")?.1.split_once(')'));
    let files = targets.filter_map(|(target, _)| target.split_once("pictures/"));
    files.map(|(_, file)| file).collect()
}

#[test]
fn pictures_of_the_docs_are_those_that_a_test_takes() {
    let pages = pages();
    let shown: BTreeSet<&str> = pages.iter().flat_map(|(_, it)| pictures_in(it)).collect();
    let taken: BTreeSet<&str> = DOCS_PICTURES.iter().map(|picture| picture.file).collect();
    assert_eq!(shown, taken, "shown on a page, and taken by a test");
    let folder = std::fs::read_dir(root().join("docs/pictures")).expect("the folder");
    let names = folder.map(|entry| entry.expect("a readable entry").file_name());
    let kept: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let kept: BTreeSet<&str> = kept.iter().map(String::as_str).collect();
    assert_eq!(kept, taken, "kept in docs/pictures, and taken by a test");
}

#[test]
fn pictures_of_a_page_are_found_however_the_page_names_their_folder() {
    let page = "![a](pictures/a.png) ![b](docs/pictures/b.png)\n[no picture](pictures/c.png)";
    assert_eq!(pictures_in(page), BTreeSet::from(["a.png", "b.png"]));
}

/// Names of tests are sentences.
fn is_test(word: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.contains('_') && word.chars().all(letters)
}

/// Libraries with examples that are not run: they were written before this rule.
const NOT_RUN: [&str; 2] = ["compute/host", "crates/worker"];

/// Whether an example of Rust stands in the documentation of a file.
fn has_example(text: &str) -> bool {
    let (mut is_inside, mut found) = (false, false);
    for line in text.lines() {
        let line = line.trim_start();
        let said = line
            .strip_prefix("///")
            .or_else(|| line.strip_prefix("//!"));
        let Some(said) = said else {
            is_inside = false;
            continue;
        };
        if let Some(mark) = said.trim().strip_prefix("```") {
            let kinds = ["", "compile_fail", "no_run", "rust", "should_panic"];
            found |= !is_inside && kinds.contains(&mark);
            is_inside = !is_inside;
        }
    }
    found
}

/// Rustdoc reads a whole library to find that it has no example, which takes as long as to run one.
#[test]
fn a_library_has_its_examples_run_or_has_none() {
    let root = root();
    let (mut libraries, mut with_examples) = (HashSet::new(), HashSet::new());
    for source in sources() {
        let Some((package, file)) = source.path.split_once("/src/") else {
            continue;
        };
        if file == "lib.rs" {
            libraries.insert(package);
        }
        if has_example(&source.text) {
            with_examples.insert(package);
        }
    }
    assert!(libraries.len() > 30, "{libraries:?}");
    let mut wrong = Vec::new();
    for package in libraries {
        let manifest = root.join(package).join("Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).expect("a package has one");
        let is_searched = !manifest.contains("\ndoctest = false\n");
        let has_examples = with_examples.contains(package) && !NOT_RUN.contains(&package);
        if is_searched != has_examples {
            wrong.push(format!(
                "{package}: searched for examples: {is_searched}, has some: {has_examples}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
