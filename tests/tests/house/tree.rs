//! The files of the workspace, for what reads them.

use std::path::{Path, PathBuf};

/// They say what is looked for, and so have it themselves.
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

/// Every Rust file below `dir`.
pub(crate) fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Only files whose path begins with one of `allowed` may have one of `needles`.
#[track_caller]
pub(crate) fn only_in(what: &str, needles: &[&str], allowed: &[&str]) {
    let root = root();
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let short = file
            .strip_prefix(&root)
            .expect("below the root")
            .display()
            .to_string();
        if RULES.contains(&short.as_str()) || allowed.iter().any(|a| short.starts_with(a)) {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a readable file");
        for needle in needles {
            assert!(
                !text.contains(needle),
                "{short}: {what} ({needle}) does not belong here"
            );
        }
    }
}
