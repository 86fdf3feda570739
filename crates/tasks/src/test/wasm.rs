//! The check that the packages which a browser can use compile for WebAssembly (`docs/wasm.md`).
//!
//! Cargo itself knows what did not change, so a check of an unchanged tree takes a second.

use crate::context::XtaskContext;
use crate::failure::Result;
use crate::third_party::{self, FLAGS_SEPARATOR, WASM};

/// The packages that compile for WebAssembly, each as a whole library.
const PACKAGES: [&str; 4] = [
    "alknet-call",
    "alknet-core",
    "alknet-tensor",
    "alknet-typedef",
];

pub(super) fn check(cx: &XtaskContext) -> Result<()> {
    // No other build would show what only this target leaves unused.
    let mut flags = vec!["-Dwarnings".to_owned()];
    if let Some(sysroot) = third_party::sysroot(cx, &WASM)? {
        flags.push(format!("--sysroot={}", sysroot.display()));
    }
    let mut command = cx.cargo("check");
    // With a named target, cargo gives these to no build script and no procedural macro, which need
    // the library of this machine.
    command
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(FLAGS_SEPARATOR))
        .args(["--release", "--target", WASM.triple]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    cx.run(&mut command, "libraries for WebAssembly", "wasm")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package that is checked and not on the page, or the reverse, misleads its users.
    #[test]
    fn the_page_lists_the_packages_that_are_checked() {
        let page = include_str!("../../../../docs/wasm.md");
        // Later tables have the packages that do not compile.
        let before_headings = page.split("\n## ").next().unwrap_or_default();
        let rows = before_headings
            .lines()
            .filter_map(|row| row.strip_prefix("| `alknet-"));
        let listed: Vec<String> = rows
            .filter_map(|row| Some(format!("alknet-{}", row.split_once('`')?.0)))
            .collect();
        assert_eq!(listed, PACKAGES);
    }
}
