//! Sealed partitions before stock cryptsetup, and before the kernel of the appliance.

mod machine;
mod memory;
mod stock;

use std::path::Path;
use std::process::{Command, Output};

/// Runs stock cryptsetup, which asks nothing.
fn cryptsetup(arguments: &[&str]) -> Output {
    let output = Command::new("cryptsetup")
        .arg("--batch-mode")
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output();
    output.expect("cryptsetup is installed (package cryptsetup-bin)")
}

/// The same, and it has to succeed.
#[track_caller]
fn content(arguments: &[&str]) -> String {
    let output = cryptsetup(arguments);
    assert!(
        output.status.success(),
        "cryptsetup {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
