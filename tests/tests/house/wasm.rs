//! docs/wasm.md names every package of the workspace: those that compile for WebAssembly, and the others with the
//! reason why they are left out.

use std::collections::BTreeSet;

use super::architecture::PackageGraph;
use super::promises::{page, quoted};

/// Packages whose names begin in another way than those of the libraries.
const TOOLS: [&str; 1] = ["xtask"];

/// The names of packages in the first cells of all tables of a page.
fn packages(page: &str) -> Vec<&str> {
    let is_package = |name: &&str| {
        let is_library = name.strip_prefix("alknet").is_some_and(|rest| {
            let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
            rest.is_empty() || rest.starts_with('-') && rest.chars().all(is_name)
        });
        is_library || TOOLS.contains(name)
    };
    let cells = page.lines().filter_map(|line| {
        let cell = line.strip_prefix("| ")?.split(" | ").next()?;
        // Rows about parts of a package begin with the part.
        let first = quoted(cell).next()?;
        is_package(&first).then_some(cell)
    });
    cells.flat_map(quoted).filter(is_package).collect()
}

#[test]
fn each_package_compiles_for_webassembly_or_has_the_reason_why_it_is_left_out() {
    let page = page("wasm.md");
    let named = packages(&page);
    let once: BTreeSet<&str> = named.iter().copied().collect();
    assert_eq!(once.len(), named.len(), "a package has one row: {named:?}");
    let members = &PackageGraph::load().members;
    let members: BTreeSet<&str> = members.iter().map(String::as_str).collect();
    assert!(members.len() > 40, "{members:?}");
    assert_eq!(
        once, members,
        "docs/wasm.md has each package of the workspace"
    );
}

#[test]
fn packages_are_found_in_rows_about_packages_alone() {
    let page = "| packages | reason |\n|---|---|\n| `alknet-a`, `xtask` | as `alknet-b` |\n\
                | `Clock` of `alknet-c` | memory |\n| `alknet`, `alknet_d::f` | – |\n";
    assert_eq!(packages(page), ["alknet-a", "xtask", "alknet"]);
}
