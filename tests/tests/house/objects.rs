//! What `alknet-objects` is built from by itself. Cargo's metadata of the workspace also has the features that the tests of
//! other packages switch on in its dependencies, so that the graph of `architecture.rs` has more than a program gets.

use std::collections::BTreeSet;
use std::process::Command;

use super::tree::root;

/// The packages of a build of this package alone.
fn built_from(package: &str) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let out = Command::new(cargo)
        .args(["tree", "--package", package, "--edges", "normal"])
        .args([
            "--locked",
            "--offline",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).expect("text");
    let names = text.lines().filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

/// The store of tensors and that of files stand on it, and each has its own names and wires.
#[test]
fn objects_know_no_network_and_no_database() {
    let all = built_from("alknet-objects");
    assert!(all.contains("blake3"), "{all:?}");
    let ours: Vec<_> = all
        .iter()
        .filter(|name| name.starts_with("alknet"))
        .collect();
    assert_eq!(ours, ["alknet-durable", "alknet-objects"]);
    for banned in ["http", "hyper", "rusqlite", "rustls", "tokio"] {
        assert!(
            !all.contains(banned),
            "alknet-objects must not depend on {banned}"
        );
    }
}
