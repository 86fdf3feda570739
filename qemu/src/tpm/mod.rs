//! A TPM in software for a machine: swtpm, which QEMU talks to over a socket pair.

mod command;
mod relay;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::machine::{GuestMemory, MachineSpec};
use crate::process::{ChildProcess, FIRST_FD};
use relay::TpmRelay;

pub use relay::Interposer;

/// In the folder of a saved machine: what its firmware asked the chip.
const COMMANDS: &str = "tpm";

/// The chip of one machine. It ends with that machine, or with this process.
#[derive(Debug)]
pub(crate) struct TpmChip {
    /// Between QEMU and the chip.
    relay: TpmRelay,
    // Last: it ends when nothing talks to it any more.
    _process: ChildProcess,
}

impl TpmChip {
    /// Starts the chip whose memory is in `state`, for the one machine that has the other end of `qemu`.
    /// Nothing else may use the folder meanwhile.
    ///
    /// The chip of a saved machine is not saved. A copy of that machine has a chip of its own, whose
    /// memory is whatever `state` has, and which is asked first what firmware asked the other one.
    pub(crate) fn start(
        state: &Path,
        qemu: UnixStream,
        log: &Path,
        machine: &MachineSpec,
    ) -> Result<Self> {
        let pair = UnixStream::pair();
        let (ours, theirs) = pair.map_err(Error::io("making a socket pair"))?;
        let process = spawn(state, theirs.into(), log)?;
        let before = match &machine.memory {
            GuestMemory::Restored(folder) => Some(command::read(&folder.join(COMMANDS))?),
            _ => None,
        };
        let relay = TpmRelay::start(qemu, ours, before, machine.interposer.clone());
        let relay = relay.map_err(Error::io("repeating to a TPM what firmware asked it"))?;
        Ok(Self {
            relay,
            _process: process,
        })
    }

    /// Writes into `folder` what the chip was asked since its machine was switched on.
    ///
    /// # Errors
    /// The TPM received a command that cannot be replayed to another TPM.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        command::write(&folder.join(COMMANDS), &self.relay.exchanges())
    }

    /// Keeps back the response to the next command of any kind, so that the guest stands still there.
    pub(crate) fn hold(&self) {
        self.relay.hold(|_| true);
    }

    /// The same where firmware is ready to boot and has not read yet what it is going to start.
    ///
    /// # Errors
    /// It has come further already.
    pub(crate) fn hold_ready_to_boot(&self) -> Result<()> {
        self.relay.hold(command::is_ready_to_boot);
        let mut asked = self.relay.exchanges();
        asked.retain(|one| command::is_ready_to_boot(&one.command));
        if asked.len() > usize::from(self.is_held()) {
            let why = "its firmware reads already what it is going to start";
            return Err(Error::TooLate(why.to_owned()));
        }
        Ok(())
    }

    /// The guest stands still there.
    pub(crate) fn is_held(&self) -> bool {
        self.relay.is_held()
    }

    /// Lets the response go.
    pub(crate) fn release(&self) {
        self.relay.release();
    }

    /// The machine has taken over what was saved, and from now on switches its chip off and on itself.
    pub(crate) fn taken_over(&self) {
        self.relay.taken_over();
    }
}

fn spawn(state: &Path, control: OwnedFd, log: &Path) -> Result<ChildProcess> {
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
    let started = ChildProcess::spawn(command, vec![control]);
    started.map_err(Error::io("starting swtpm (install the package swtpm)"))
}
