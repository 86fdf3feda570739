//! What docs and the console's hints promise of hardware is what the kernel has drivers for.

use std::fs;
use std::path::{Path, PathBuf};

/// A driver, and phrases that promise what it drives.
const PROMISES: [(&str, &[&str]); 2] = [
    (
        "CONFIG_USB_STORAGE=y",
        &["a stick", "another stick", "no stick", "the stick"],
    ),
    (
        "CONFIG_VT_CONSOLE=y",
        &[
            "its screen",
            "(and a screen",
            "line, screen",
            "attach a keyboard",
        ],
    ),
];

#[test]
fn docs_and_hints_promise_no_hardware_without_a_driver() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let kernel: String = files(&root.join("kernel-config"), "config")
        .iter()
        .map(|path| fs::read_to_string(path).expect("readable"))
        .collect();
    let mut told = files(&root.join("docs"), "md");
    told.push(root.join("README.md"));
    for sources in ["init/src", "provisioning/src", "provisioning/cli/src"] {
        told.extend(files(&root.join(sources), "rs"));
    }
    assert!(told.len() > 100, "{} files", told.len());
    let mut broken = Vec::new();
    for (driver, phrases) in PROMISES {
        if kernel.lines().any(|line| line == driver) {
            continue;
        }
        for path in &told {
            let text = fs::read_to_string(path).expect("readable");
            // A hint may go over the end of a line.
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let found = phrases.iter().filter(|phrase| text.contains(**phrase));
            broken.extend(found.map(|phrase| format!("{}: {phrase:?}", path.display())));
        }
    }
    assert!(broken.is_empty(), "no driver for {broken:#?}");
}

/// Files of that ending, in all folders below; tests say what they want.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).expect("a folder of this repository");
    for entry in entries {
        let path = entry.expect("readable").path();
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if path.is_dir() && !is_test {
            found.extend(files(&path, ending));
        } else if !is_test && path.extension().is_some_and(|it| it == ending) {
            found.push(path);
        }
    }
    found
}
