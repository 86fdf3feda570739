//! The files of the workspace, for the tests that read them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// These files contain the words that are searched for.
const RULES: [&str; 2] = [
    "tests/tests/house/architecture.rs",
    "tests/tests/house/placement.rs",
];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the workspace exists")
}

/// A Rust file.
pub(crate) struct SourceFile {
    /// From the root of the workspace.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every Rust file of the workspace. They are read once, because many tests read all of them.
pub(crate) fn sources() -> &'static [SourceFile] {
    static SOURCES: LazyLock<Vec<SourceFile>> = LazyLock::new(|| {
        let root = root();
        let mut found = Vec::new();
        files(&root, &["rs"], &mut found);
        found.into_iter().map(|file| read(&root, &file)).collect()
    });
    &SOURCES
}

/// Every file of the workspace whose name has this ending.
pub(crate) fn others(ends: &[&str]) -> Vec<SourceFile> {
    let root = root();
    let mut found = Vec::new();
    files(&root, ends, &mut found);
    found.iter().map(|file| read(&root, file)).collect()
}

fn read(root: &Path, file: &Path) -> SourceFile {
    SourceFile {
        path: file
            .strip_prefix(root)
            .expect("below the root")
            .display()
            .to_string(),
        text: std::fs::read_to_string(file).expect("a readable file"),
    }
}

/// Every file below `dir` whose name has this ending.
fn files(dir: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, ends, found);
        } else if path
            .extension()
            .is_some_and(|end| ends.iter().any(|one| end == *one))
        {
            found.push(path);
        }
    }
}

/// Names of the test functions in a source.
pub(crate) fn tests_of(text: &str) -> HashSet<&str> {
    let mut tests = HashSet::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, function)) = line.split_once("fn ").filter(|_| is_test) {
            tests.extend(function.split_once('(').map(|(name, _)| name));
            is_test = false;
        }
    }
    tests
}

/// Only files whose path begins with one of `allowed` may contain one of `needles`.
#[track_caller]
pub(crate) fn only_in(what: &str, needles: &[&str], allowed: &[&str]) {
    for SourceFile { path, text } in sources() {
        if RULES.contains(&path.as_str()) || allowed.iter().any(|a| path.starts_with(a)) {
            continue;
        }
        for needle in needles {
            assert!(
                !text.contains(needle),
                "{path}: {what} ({needle}) does not belong here"
            );
        }
    }
}
