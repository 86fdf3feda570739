//! The program for GPUs from outside: how it is linked, what it computes, and what it survives.

mod cache;
mod command_line;
mod linked;
mod operations;
mod shaders;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_alknet-gpu"))
}

/// Runs it with nothing in its environment.
fn gpu(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("it starts")
}

fn command() -> Command {
    let mut command = Command::new(program());
    command.env_clear();
    command
}

/// A shader of this folder.
fn shader(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/shaders");
    folder.join(name).display().to_string()
}

/// Each line of standard output as JSON.
fn rows(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let row = |line| serde_json::from_str(line).expect("a line is JSON");
    text.lines().map(row).collect()
}

fn diagnostics(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The drivers that this build has.
fn drivers() -> Vec<String> {
    let info = gpu(&["info", "--json"]);
    assert!(info.status.success(), "{}", diagnostics(&info));
    let names = rows(&info)[0]["drivers"].as_array().cloned();
    let names = names.expect("a list of names").into_iter();
    names
        .map(|name| name.as_str().expect("a name").to_owned())
        .collect()
}

/// Why shaders cannot run here. A build without drivers (`--vulkan none`) must say so, in place of what
/// the test would have asked of it; one with drivers for real GPUs only is not tested on machines without
/// them.
fn adapter() -> Result<(), &'static str> {
    static FOUND: LazyLock<Result<(), String>> = LazyLock::new(find_adapter);
    FOUND.as_ref().copied().map_err(String::as_str)
}

fn find_adapter() -> Result<(), String> {
    let drivers = drivers();
    if drivers.iter().any(|name| name == "llvmpipe") {
        return Ok(());
    }
    let output = gpu(&["selftest"]);
    let expected = if drivers.is_empty() { 3 } else { 4 };
    let text = diagnostics(&output);
    assert_eq!(output.status.code(), Some(expected), "{text}");
    assert!(
        text.contains("no Vulkan driver linked") || text.contains("no adapter"),
        "{text}"
    );
    Err(text.trim().to_owned())
}
