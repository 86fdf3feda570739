//! Mesa's shader cache, in a program without a file of its own to go by.

use std::fs;
use std::path::Path;
use std::process::Output;

use alknet_test_support::skip;

use crate::{adapter, command, diagnostics, shader};

/// Runs a shader with a cache in `folder`; Mesa tells at the end how often it was asked.
fn run(folder: &Path, name: &str) -> Output {
    let output = command()
        .args(["run", &shader(name)])
        .env("MESA_SHADER_CACHE_DIR", folder)
        .env("MESA_SHADER_CACHE_SHOW_STATS", "true")
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", diagnostics(&output));
    output
}

/// A number of Mesa's statistics, which say `hits = N, misses = N` behind our own output.
fn count(output: &Output, what: &str) -> u64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.split_once(&format!("{what} = "));
    let (_, rest) = found.unwrap_or_else(|| panic!("no {what} in: {text}"));
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.unwrap_or_default().parse().expect("a number")
}

#[test]
fn a_second_process_finds_what_the_first_compiled() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = run(folder.path(), "double.wgsl");
    assert!(count(&first, "misses") > 0);
    let kept = fs::read_dir(folder.path()).expect("readable").count();
    assert!(kept > 0, "nothing was kept");
    let second = run(folder.path(), "double.wgsl");
    assert!(count(&second, "hits") > 0 && count(&second, "misses") == 0);
    assert_eq!(words(&first), words(&second));
}

#[test]
fn a_shader_that_is_another_is_not_found() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(folder.path(), "double.wgsl");
    let other = run(folder.path(), "many.wgsl");
    assert!(count(&other, "misses") > 0);
}

#[test]
fn without_a_folder_nothing_is_written() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let home = tempfile::tempdir().expect("a temporary folder");
    let output = command()
        .args(["run", &shader("double.wgsl")])
        .env("HOME", home.path())
        .env("XDG_CACHE_HOME", home.path())
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", diagnostics(&output));
    assert_eq!(fs::read_dir(home.path()).expect("readable").count(), 0);
}

fn words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let row = text.lines().next().expect("a row");
    let row: serde_json::Value = serde_json::from_str(row).expect("a line is JSON");
    row["words"].to_string()
}
