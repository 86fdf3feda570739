//! The TPM of a machine whose disk is recorded: what the TPM kept at each moment of the recording.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use alknet_qemu::{DiskRecorder, Interposer, VmBuilder};

/// The file in a TPM's folder with the state that the TPM keeps while it is off.
const STATE_FILE: &str = "tpm2-00.permall";
/// The folder of the TPM on a bench that `tpm::set_up` made, and the file with the firmware's variables.
const CHIP: &str = "own.tpm";
const VARIABLES: &str = "variables.fd";
/// The folder of the TPM of a machine whose power was cut.
const CHIP_AFTER_CUT: &str = "cut.tpm";

/// Reads the state of the TPM after each command of a machine. The TPM writes its state before it answers, and the
/// machine waits for the answer, so each state belongs to one moment of the disk.
#[derive(Debug)]
pub(super) struct ChipRecorder {
    /// The bench's folder.
    folder: PathBuf,
    disk: Arc<DiskRecorder>,
    /// In the order of their moments.
    states: Mutex<Vec<ChipState>>,
}

#[derive(Debug)]
struct ChipState {
    /// Events on the disk before it.
    moment: usize,
    content: Vec<u8>,
}

impl ChipRecorder {
    pub(super) fn new(folder: &Path, disk: &Arc<DiskRecorder>) -> Arc<Self> {
        Arc::new(Self {
            folder: folder.to_owned(),
            disk: Arc::clone(disk),
            states: Mutex::default(),
        })
    }

    /// Gives the machine this TPM.
    pub(super) fn attach(chip: &Arc<Self>, vm: VmBuilder) -> VmBuilder {
        let between = Arc::clone(chip);
        let vm = vm.tpm(chip.folder.join(CHIP)).interposer(between);
        vm.variables(chip.folder.join(VARIABLES))
    }

    /// Gives a machine the TPM as it was at this moment.
    pub(super) fn attach_after_cut(&self, vm: VmBuilder, moment: usize) -> VmBuilder {
        let folder = self.folder.join(CHIP_AFTER_CUT);
        let states = self.states.lock().expect("no reader panics");
        let state = states.iter().rev().find(|state| state.moment <= moment);
        let state = state.expect("firmware asks the TPM before the machine writes");
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join(STATE_FILE), &state.content));
        written.expect("the folder is ours");
        vm.tpm(folder).variables(self.folder.join(VARIABLES))
    }

    /// The moments of these at which the TPM had just changed what it keeps.
    pub(super) fn changes(&self, moments: Range<usize>) -> Vec<usize> {
        let states = self.states.lock().expect("no reader panics");
        let changes = states.iter().map(|state| state.moment);
        changes.filter(|moment| moments.contains(moment)).collect()
    }

    fn note(&self) -> io::Result<()> {
        let content = fs::read(self.folder.join(CHIP).join(STATE_FILE))?;
        let mut states = self.states.lock().expect("no reader panics");
        if states.last().is_none_or(|last| last.content != content) {
            let moment = self.disk.recording().len();
            states.push(ChipState { moment, content });
        }
        Ok(())
    }
}

impl Interposer for ChipRecorder {
    fn exchange(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let answer = chip(command)?;
        self.note()?;
        Ok(answer)
    }
}
