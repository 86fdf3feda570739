//! Checks the table of docs/adding-tests.md, which has the test of each page's commands, and the
//! pages that sources name.

use std::collections::BTreeSet;

use super::names::pages;
use super::promises::{page, tables, tests_named};
use super::tree::{others, root, sources, tests_of};

/// The section with the table.
const SECTION: &str = "Commands on pages";

/// The second column if no test runs the commands.
const NO_TEST: &str = "none";

/// Python packages that the tests of the Model Context Protocol install.
const PYTHON_PACKAGES: &str = "crates/tasks/python-mcp.txt";

/// Other files than Rust sources that name pages.
const ENDS: [&str; 5] = ["config", "py", "sh", "toml", "txt"];

/// Whether a page has a block of shell commands or of a shell session.
fn has_commands(text: &str) -> bool {
    let mut languages = text.lines().filter_map(|line| {
        let info = line.trim_start().strip_prefix("```")?;
        info.split(' ').next()
    });
    languages.any(|language| ["bash", "console", "sh"].contains(&language))
}

/// Whether a page has a block of commands that a reader takes for tested ones.
fn has_tested_block(text: &str) -> bool {
    let mut languages = text.lines().filter_map(|line| {
        let info = line.trim_start().strip_prefix("```")?;
        info.split(' ').next()
    });
    languages.any(|language| language == "sh")
}

/// The table without column headings: the page's path from the root, tests, what is not run.
fn rows() -> Vec<[String; 3]> {
    let mut rows = tables(&page("adding-tests.md"))
        .remove(SECTION)
        .expect("the table");
    rows.retain(|row| row[0] != "page");
    let row = |cells: Vec<String>| {
        let [name, tests, rest] = <[String; 3]>::try_from(cells)
            .unwrap_or_else(|cells| panic!("docs/adding-tests.md: three columns: {cells:?}"));
        let link = name.split_once("](").map(|(_, link)| link);
        let link = link
            .and_then(|link| link.strip_suffix(')'))
            .expect("a link");
        let path = match link.strip_prefix("../") {
            Some(path) => path.to_owned(),
            None => format!("docs/{link}"),
        };
        [path, tests, rest]
    };
    rows.into_iter().map(row).collect()
}

#[test]
fn each_page_with_commands_says_which_test_runs_them() {
    let pages = pages();
    let with_commands = pages.iter().filter(|(_, text)| has_commands(text));
    let with_commands: BTreeSet<&str> = with_commands.map(|(path, _)| path.as_str()).collect();
    assert!(with_commands.len() > 20, "{with_commands:?}");
    let rows = rows();
    let listed: BTreeSet<&str> = rows.iter().map(|[path, ..]| path.as_str()).collect();
    assert_eq!(listed.len(), rows.len(), "a page has one row");
    assert_eq!(
        listed, with_commands,
        "in the table, and with a block for a shell"
    );
}

#[test]
fn tests_that_run_the_commands_of_a_page_exist_and_read_it() {
    let (not_run, run): (Vec<_>, Vec<_>) = rows()
        .into_iter()
        .partition(|[_, tests, _]| tests == NO_TEST);
    assert!(run.len() > 5, "{} pages are run", run.len());
    for [path, _, rest] in not_run {
        assert_ne!(rest, "nothing", "{path}: the row says why no test runs it");
    }
    for [path, tests, _] in run {
        let tests = tests_named(&tests);
        assert!(!tests.is_empty(), "{path}: a test, or '{NO_TEST}'");
        for (file, test) in tests {
            let source = sources().iter().find(|it| it.path == file);
            let source = source.unwrap_or_else(|| panic!("{path}: no file {file}"));
            assert!(tests_of(&source.text).contains(test), "{file}: no {test}");
            let include = format!("/{path}\")");
            assert!(
                source.text.contains(&include),
                "{file} does not read {path}"
            );
        }
    }
}

/// In `bash` blocks are commands that no test runs, so a page without a test has no others.
#[test]
fn a_page_without_a_test_marks_its_commands_as_such() {
    let pages = pages();
    let rows = rows();
    let not_run = rows.iter().filter(|[_, tests, _]| tests == NO_TEST);
    let not_run: BTreeSet<&str> = not_run.map(|[path, ..]| path.as_str()).collect();
    assert!(not_run.len() > 5, "{not_run:?}");
    let tested = pages.iter().filter(|(_, text)| has_tested_block(text));
    let tested: BTreeSet<&str> = tested.map(|(path, _)| path.as_str()).collect();
    let unmarked: Vec<_> = not_run.intersection(&tested).copied().collect();
    assert!(
        unmarked.is_empty(),
        "no test runs the commands: write them into blocks of `bash`: {unmarked:?}"
    );
}

/// A reader of the page gets the same packages as the test of its program.
#[test]
fn packages_that_the_first_import_installs_are_those_of_its_test() {
    let page = page("imports-first.md");
    let pinned = others(&["txt"]);
    let pinned = pinned.iter().find(|it| it.path == PYTHON_PACKAGES);
    let pinned = &pinned.expect("the packages").text;
    let installed = page.split("`pip install ").skip(1);
    let installed = installed.filter_map(|rest| rest.split('`').next());
    let installed: Vec<_> = installed.flat_map(str::split_whitespace).collect();
    assert!(!installed.is_empty(), "the page installs packages");
    for package in installed {
        let line = format!("{package} \\");
        assert!(pinned.lines().any(|it| it == line), "{package}");
    }
}

/// Names of pages in a text, with `docs/`.
fn named_pages(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    let names = text.split("docs/").skip(1).map(|rest| {
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        rest[..end].trim_end_matches('.')
    });
    names.filter(|name| name.ends_with(".md")).collect()
}

#[test]
fn pages_that_sources_name_exist() {
    let root = root();
    let others = others(&ENDS);
    let mut names = 0;
    let mut missing = Vec::new();
    for source in sources().iter().chain(&others) {
        for name in named_pages(&source.text) {
            names += 1;
            if !root.join("docs").join(name).is_file() {
                missing.push(format!("{}: docs/{name}", source.path));
            }
        }
    }
    assert!(names > 100, "{names} names of pages were found");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn names_of_pages_are_found_with_and_without_marks() {
    let text = "See docs/".to_owned() + "a-b.md. `docs/" + "c.md`, docs/" + "pictures/d.png docs/";
    let found: Vec<_> = named_pages(&text).into_iter().collect();
    assert_eq!(found, ["a-b.md", "c.md"]);
    assert!(has_commands("a\n   ```sh again\nb\n```") && !has_commands("```text\nsh\n```"));
    assert!(has_tested_block("   ```sh again\nb\n```") && !has_tested_block("```bash\nsh\n```"));
}
