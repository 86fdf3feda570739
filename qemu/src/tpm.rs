//! A TPM in software for a machine: swtpm, which QEMU talks to over a socket pair.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::process::{FIRST_FD, Process};

/// Starts the chip whose memory is in `state`, for the one machine that has the other end of `control`.
/// It ends with that machine, or with this process. Nothing else may use the folder meanwhile.
pub(crate) fn start(state: &Path, control: OwnedFd, log: &Path) -> Result<Process> {
    let what = || format!("making the TPM's folder {}", state.display());
    fs::create_dir_all(state).map_err(Error::io(what()))?;
    let log = File::create(log).map_err(Error::io("making the file for the TPM's errors"))?;
    let mut folder = OsString::from("dir=");
    folder.push(state);
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
        .arg(folder)
        .args(["--ctrl", &format!("type=unixio,clientfd={FIRST_FD}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    tracing::debug!(?command, "starting swtpm");
    let started = Process::spawn(command, vec![control]);
    started.map_err(Error::io("starting swtpm (install the package swtpm)"))
}
