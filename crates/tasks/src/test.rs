//! `test`: everything continuous integration runs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::{binary, kernel};

/// The licence and dependency checker, built once into the cache.
const DENY_VERSION: &str = "0.20.2";

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains this, and no other checks
    filter: Option<String>,
    /// Further arguments for cargo test, such as `--package NAME`
    #[arg(last = true)]
    cargo: Vec<String>,
}

/// Runs the checks, then the tests, whose own lines come last.
pub(crate) fn run(cx: &mut Context, arguments: &Arguments) -> Result<()> {
    cx.step("kernel", |cx| kernel::ensure(cx))?;
    let lock = cx.claim()?;
    if arguments.filter.is_none() {
        checks(cx)?;
    }
    cx.step("build tests", |cx| {
        let mut command = tests(cx, arguments)?;
        command.arg("--no-run").stderr(Stdio::inherit());
        cx.show(&mut command, "building the tests")
    })?;
    eprint!("{}", cx.table());
    let mut command = tests(cx, arguments)?;
    if let Some(filter) = &arguments.filter {
        command.args(["--", filter]);
    }
    let result = cx.show(&mut command, "tests");
    drop(lock);
    result
}

fn tests(cx: &Context, arguments: &Arguments) -> Result<Command> {
    let mut command = cx.cargo("test");
    command
        .args(["--release", "--workspace", "--no-fail-fast"])
        .args(&arguments.cargo)
        .env("ALKNET_TEST_BIN", binary::path(cx)?)
        .env("ALKNET_CACHE", cx.cache());
    Ok(command)
}

fn checks(cx: &mut Context) -> Result<()> {
    cx.step("format", |cx| {
        let mut command = cx.cargo("fmt");
        command.args(["--all", "--check"]);
        cx.show(&mut command, "format")
    })?;
    cx.step("lints", |cx| {
        let mut command = cx.cargo("clippy");
        command.args([
            "--release",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]);
        cx.show(&mut command, "lints")
    })?;
    cx.step("licences and dependencies", |cx| deny(cx))
}

/// Licences, bans and sources need no network. Known vulnerabilities need a database that lies on
/// a code host; where that cannot be reached, the check says so and is not held against the tree.
fn deny(cx: &Context) -> Result<()> {
    let program = deny_program(cx)?;
    let check = |what: &[&str]| {
        let mut command = Command::new(&program);
        command
            .current_dir(cx.root())
            .args(["--all-features", "check"])
            .args(what);
        command
    };
    cx.show(
        &mut check(&["licenses", "bans", "sources"]),
        "licences and dependencies",
    )?;
    advisories(cx, &mut check(&["advisories"]))
}

fn advisories(cx: &Context, check: &mut Command) -> Result<()> {
    let what = "known vulnerabilities";
    check.env("GIT_TERMINAL_PROMPT", "0");
    let Err(error) = cx.run(check, what, "advisories") else {
        return Ok(());
    };
    if is_finding(&fs::read_to_string(cx.log("advisories")).unwrap_or_default()) {
        return Err(error);
    }
    eprintln!("{what}: not checked, the advisory database cannot be reached");
    Ok(())
}

/// Whether the checker spoke about our dependencies, rather than about its database.
fn is_finding(output: &str) -> bool {
    output.contains("advisories FAILED")
}

/// Builds the checker once; its own dependencies are no part of this workspace.
pub(crate) fn deny_program(cx: &Context) -> Result<PathBuf> {
    let root = cx
        .cache()
        .join("tools")
        .join(format!("cargo-deny-{DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if program.exists() {
        return Ok(program);
    }
    let scratch =
        tempfile::tempdir_in(cx.cache()).map_err(Failure::io("make a folder for cargo-deny"))?;
    let mut command = cx.cargo("install");
    command
        .args([
            "cargo-deny",
            "--locked",
            "--no-default-features",
            "--version",
            DENY_VERSION,
        ])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(scratch.path())
        .current_dir(scratch.path());
    cx.run(&mut command, "cargo-deny (built once)", "cargo-deny")?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_database_is_told_from_a_finding() {
        assert!(is_finding(
            "error[vulnerability]: something bad\nadvisories FAILED\n"
        ));
        assert!(!is_finding(
            "[ERROR] failed to fetch advisory database: cannot resolve host"
        ));
    }
}
