//! Tests and files that docs/testing.md names.

use std::collections::HashSet;

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

/// Names of tests are sentences.
fn is_test(word: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.contains('_') && word.chars().all(letters)
}
