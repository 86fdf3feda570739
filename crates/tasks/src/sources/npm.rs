//! Packages of npm's registry, fetched by npm's own client, which knows the address and the proxies
//! of this machine's configuration. Nothing is installed, and no script of a package runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::sources::debian::only_file;

/// Takes the archive of `package`, `NAME@VERSION`, from the registry.
pub(super) fn fetch(cx: &XtaskContext, package: &str, to: &Path) -> Result<()> {
    cx.install_npm()?;
    let scratch = ScratchFolder::new(cx.cache(), "npm-")?;
    let [npm_cache, packed] = ["cache", "packed"].map(|name| scratch.path().join(name));
    fs::create_dir(&packed).map_err(TaskError::io("make a folder for a package"))?;
    let mut command = Command::new("npm");
    command
        .args(["pack", package, "--ignore-scripts", "--no-update-notifier"])
        .arg("--cache")
        .arg(&npm_cache)
        .arg("--pack-destination")
        .arg(&packed)
        .current_dir(scratch.path());
    cx.run(&mut command, &format!("download {package}"), "npm")?;
    let archive = only_file(&packed)?;
    fs::copy(&archive, to)
        .map(|_| ())
        .map_err(TaskError::io(format!("copy {}", archive.display())))
}
