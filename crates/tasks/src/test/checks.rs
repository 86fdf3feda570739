//! Checks of the source that need no test program: its format, licences and dependencies. The lints
//! come with the build of the tests.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::context::XtaskContext;
use crate::failure::Result;
use crate::third_party;

/// The licence and dependency checker's name in `sources.toml`.
pub(crate) const DENY: &str = "cargo-deny";

pub(super) fn format(cx: &XtaskContext) -> Result<()> {
    let mut command = cx.cargo("fmt");
    cx.show(command.args(["--all", "--check"]), "format")
}

/// Checks dependencies. Licences, bans and sources need no network. Known vulnerabilities need a
/// database on a code host. If that cannot be reached, the check says so and does not fail the
/// tree.
pub(super) fn dependencies(cx: &XtaskContext) -> Result<()> {
    let program = deny_program(cx)?;
    let check = |what: &[&str]| {
        let mut command = Command::new(&program);
        command
            .current_dir(cx.root())
            .args(["--all-features", "check"])
            .args(what);
        command
    };
    cx.say("licences and dependencies");
    cx.show(
        &mut check(&["licenses", "bans", "sources"]),
        "licences and dependencies",
    )?;
    advisories(cx, &mut check(&["advisories"]))
}

fn advisories(cx: &XtaskContext, check: &mut Command) -> Result<()> {
    let what = "known vulnerabilities";
    // git must fail instead of asking for a password, which would hang the run (git(1)).
    check.env("GIT_TERMINAL_PROMPT", "0");
    let Err(error) = cx.run(check, what, "advisories") else {
        return Ok(());
    };
    if is_finding(&fs::read_to_string(cx.log("advisories")).unwrap_or_default()) {
        return Err(error);
    }
    let text = format!("{what}: not checked, the advisory database cannot be reached");
    cx.board().print(&text);
    Ok(())
}

/// Whether the checker reported our dependencies, and not its database.
fn is_finding(output: &str) -> bool {
    output.contains("advisories FAILED")
}

/// The checker, whose own dependencies are no part of this workspace.
pub fn deny_program(cx: &XtaskContext) -> Result<PathBuf> {
    third_party::installed(cx, DENY, "cargo-deny")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_database_differs_from_a_finding() {
        assert!(is_finding(
            "error[vulnerability]: something bad\nadvisories FAILED\n"
        ));
        assert!(!is_finding(
            "[ERROR] failed to fetch advisory database: cannot resolve host"
        ));
    }
}
