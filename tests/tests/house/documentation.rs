//! Checks the pages listed in docs/README.md, the links of all pages, the tests and files named in
//! docs/testing.md, the pictures on pages, the omissions listed in docs/wasm.md, and the examples in
//! the libraries' documentation.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;

use alknet_tests::DOCS_PICTURES;

use super::names::pages;
use super::promises::{page, quoted};
use super::tree::{root, sources, tests_of};

/// The list of all pages.
const LIST: &str = "README.md";

/// Sources of the packages that compile for WebAssembly.
const FOR_WEBASSEMBLY: [&str; 4] = [
    "crates/call/src/",
    "crates/core/src/",
    "crates/typedef/src/",
    "tensor/src/",
];

/// The line before an item that WebAssembly does not have.
const NOT_FOR_WEBASSEMBLY: &str = "#[cfg(not(target_family = \"wasm\"))]";

/// Files that a page links to, without their headings.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split([')', '#']).next());
    targets.filter(|target| !target.is_empty()).collect()
}

/// The list has every page exactly once.
#[test]
fn each_page_has_one_row_in_the_list() {
    let list = page(LIST);
    let rows = list.lines().filter(|line| line.starts_with("| "));
    let listed: Vec<&str> = rows.flat_map(links).collect();
    let folder = fs::read_dir(root().join("docs")).expect("the docs");
    let names = folder.map(|entry| entry.expect("a readable entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let pages = names.filter(|name| name.ends_with(".md") && name != LIST);
    let pages: Vec<String> = pages.collect();
    assert!(pages.len() > 30, "{pages:?}");
    for page in pages {
        let rows = listed.iter().filter(|link| **link == page).count();
        assert_eq!(rows, 1, "docs/{LIST}: rows of {page}");
    }
}

#[test]
fn the_list_of_pages_links_to_what_exists() {
    let list = page(LIST);
    let links = links(&list);
    assert!(links.len() > 40, "{links:?}");
    for link in links {
        assert!(
            root().join("docs").join(link).exists(),
            "docs/{LIST}: {link}"
        );
    }
}

/// What a page links to within the repository: the file, which is empty for the page itself, and the
/// heading, if the link names one.
fn link_targets(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split(')').next());
    let is_path = |target: &&str| !target.contains("://") && !target.contains(char::is_whitespace);
    targets
        .filter(is_path)
        .map(|target| match target.split_once('#') {
            Some((file, heading)) => (file, Some(heading)),
            None => (target, None),
        })
}

/// The path of a linked file, from the root of the repository.
fn linked_path(page: &str, file: &str) -> String {
    let mut path: Vec<&str> = page.split('/').collect();
    if !file.is_empty() {
        path.pop();
    }
    for part in file.split('/').filter(|part| !part.is_empty()) {
        match part {
            ".." => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path.join("/")
}

/// The anchors of a page's headings, as GitHub makes them: in lower case, without punctuation, with
/// `-` for each space. A heading that the page had before gets a number.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for line in page.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let text = line.trim_start_matches('#');
        let level = line.len() - text.len();
        let heading = text.strip_prefix(' ').filter(|_| (1..=6).contains(&level));
        let Some(heading) = heading.filter(|_| !is_code) else {
            continue;
        };
        let anchor = anchor(heading);
        let count = counts.entry(anchor.clone()).or_default();
        anchors.insert(match *count {
            0 => anchor,
            count => format!("{anchor}-{count}"),
        });
        *count += 1;
    }
    anchors
}

/// The anchor of a heading without a number.
fn anchor(heading: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    let heading = heading.trim().to_lowercase();
    let text = heading.chars().filter(is_kept);
    text.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_of_all_pages_lead_to_files_and_headings_that_exist() {
    let pages = pages();
    let anchors = pages
        .iter()
        .map(|(path, text)| (path.clone(), anchors(text)));
    let anchors: BTreeMap<String, BTreeSet<String>> = anchors.collect();
    let mut headings = 0;
    let mut dead = Vec::new();
    for (page, text) in &pages {
        for (file, heading) in link_targets(text) {
            let path = linked_path(page, file);
            let exists = match heading {
                Some(heading) => anchors.get(&path).is_some_and(|all| all.contains(heading)),
                None => root().join(&path).exists(),
            };
            headings += usize::from(heading.is_some());
            if !exists {
                dead.push(format!("{page}: {file}#{}", heading.unwrap_or_default()));
            }
        }
    }
    assert!(headings > 500, "{headings} links to headings");
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn a_link_has_a_file_a_heading_or_both() {
    let page = "[a](b.md) [c](../d.md#e-f)\n[g](#h) [i](https://j.example/#k) call[0](l, m)";
    let found: Vec<_> = link_targets(page).collect();
    let expected = [("b.md", None), ("../d.md", Some("e-f")), ("", Some("h"))];
    assert_eq!(found, expected);
    let paths = found.iter().map(|(file, _)| linked_path("a/n.md", file));
    let paths: Vec<_> = paths.collect();
    assert_eq!(paths, ["a/b.md", "d.md", "a/n.md"]);
    assert_eq!(linked_path("README.md", "a/b.md"), "a/b.md");
}

#[test]
fn anchors_are_those_that_github_makes() {
    let page = "# A `word`: x_y, and — more\n## Same\n```sh\n# code\n```\n### Same\n#none\n####### none\n## same!";
    let expected = ["a-word-x_y-and--more", "same", "same-1", "same-2"];
    let expected = BTreeSet::from(expected.map(str::to_owned));
    assert_eq!(anchors(page), expected);
}

/// Pages with a table of exit codes: of `alknet`, of `cargo xtask`, and of the program that builds
/// images. Another page links to the table of its program.
const EXIT_CODE_PAGES: [&str; 3] = [
    "docs/command-line.md",
    "docs/development.md",
    "docs/image.md",
];

#[test]
fn each_program_has_one_table_of_exit_codes() {
    let pages = pages();
    let has_table = |text: &str| text.lines().any(|line| line.starts_with("| exit code |"));
    let found = pages.iter().filter(|(_, text)| has_table(text));
    let found: BTreeSet<&str> = found.map(|(path, _)| path.as_str()).collect();
    assert_eq!(found, BTreeSet::from(EXIT_CODE_PAGES));
}

/// Items that are exported only for other targets than WebAssembly.
fn left_out(source: &str) -> BTreeSet<&str> {
    let items = source.split(NOT_FOR_WEBASSEMBLY).skip(1);
    let exports = items.filter_map(|rest| rest.trim_start().strip_prefix("pub use "));
    let exports = exports.filter_map(|rest| rest.split(';').next());
    let names = exports.flat_map(|path| {
        let names = path.rsplit("::").next().unwrap_or_default();
        names.split(['{', '}', ',', ' ', '\n'])
    });
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn what_webassembly_lacks_is_on_its_page() {
    let page = page("wasm.md");
    let words: BTreeSet<&str> = quoted(&page).flat_map(|word| word.split("::")).collect();
    let sources = sources().iter();
    let sources = sources.filter(|it| FOR_WEBASSEMBLY.iter().any(|at| it.path.starts_with(at)));
    let names: BTreeSet<&str> = sources.flat_map(|it| left_out(&it.text)).collect();
    assert!(names.contains("MappedFile"), "{names:?}");
    let unsaid: Vec<_> = names.difference(&words).collect();
    assert!(unsaid.is_empty(), "docs/wasm.md does not name {unsaid:?}");
}

#[test]
fn names_that_are_left_out_are_found_one_by_one() {
    let source = format!(
        "{NOT_FOR_WEBASSEMBLY}\npub use a::One;\npub use a::Kept;\n{NOT_FOR_WEBASSEMBLY}\npub use b::{{\n    Two, \
         three,\n}};\n{NOT_FOR_WEBASSEMBLY}\nmod own;\n"
    );
    let found: Vec<_> = left_out(&source).into_iter().collect();
    assert_eq!(found, ["One", "Two", "three"]);
}

/// The tables of docs/testing.md about which test proves what.
fn acceptance_tables() -> Vec<String> {
    let page = page("testing.md");
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

/// Names of the pictures on a page.
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
    let folder = fs::read_dir(root().join("docs/pictures")).expect("the folder");
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

/// Test names are sentences.
fn is_test(word: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.contains('_') && word.chars().all(letters)
}

/// Libraries with examples that are not run, because they were written before this rule.
const NOT_RUN: [&str; 1] = ["compute/host"];

/// Whether a file's documentation has a Rust example.
pub(super) fn has_example(text: &str) -> bool {
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

/// Rustdoc reads a whole library to find that it has no example, which takes as long as running
/// one.
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
        let manifest = fs::read_to_string(manifest).expect("a package has one");
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
