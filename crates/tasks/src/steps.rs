//! Programs whose results lie in the cache under the name of what went into them. Nothing of the caller's environment
//! decides what they make, and no settings of the caller's: names have none of that.
//!
//! This file is a part of those names, as are the files with the steps.

use std::env;
use std::process::Command;

/// Where they are looked for, and what they start. Those of Debian: another Python or compiler before these may lack what
/// a build needs, and would not be the one that the name has the version of.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What of the caller's environment they see: where temporary files go.
const LET_THROUGH: [&str; 1] = ["TMPDIR"];

/// What they see besides: no translations, and neither the user's nor the system's settings of git.
const SET: [(&str, &str); 4] = [
    ("PATH", PATH),
    ("LC_ALL", "C"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
];

/// Such a program.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().envs(SET);
    for variable in LET_THROUGH {
        if let Some(value) = env::var_os(variable) {
            command.env(variable, value);
        }
    }
    command
}

#[cfg(test)]
mod tests;
