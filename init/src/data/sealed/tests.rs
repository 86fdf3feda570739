//! Partitions of a first boot that was cut short.

use std::fs;

use alknet_vault::Entropy;
use alknet_vault::slots::{FirstBootPermissions, NewSlot, NewVault};

use super::*;
use crate::vault::UnlockCredentials;

/// An attacker exchanges the data disk while a version is on trial.
#[test]
fn a_version_on_trial_ends_no_first_boot() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("disk");
    let mut options = FileOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path);
    let file = file.expect("a new file");
    file.set_len(SEALED_BYTES_MIN).expect("a sparse file");
    let vault = NewVault {
        pending: FirstBootPermissions::ALL,
        ..NewVault::new(Entropy::from_bytes(&[7; 32]).expect("32 bytes"), 0)
    };
    let made = OpenAlkv::create(vault, NewSlot::None).expect("made");
    copies(&path).create(&made).expect("written");
    let before = fs::read(&path).expect("ours");
    let found = DataDevice::Disk {
        // An absolute path stays as it is below /dev.
        name: path.to_str().expect("text").to_owned(),
    };
    let disk = DataBlockDevice {
        found: &found,
        file: &file,
        bytes: SEALED_BYTES_MIN,
    };
    let vault_handle = VaultHandle::new().expect("memory");
    let (offer, log) = (UnlockCredentials::default(), InitLog::default());
    let access = DataAccess {
        vault: &vault_handle,
        offer: &offer,
        log: &log,
        takes_blank: false,
    };
    let problem = match open(&disk, access) {
        Ok(_) => panic!("it was opened"),
        Err(DataError::Problem(problem)) => *problem,
        Err(DataError::Waiting(waiting, _)) => waiting.problem,
    };
    assert!(
        problem.text.contains("this version is or may be on trial"),
        "{problem:?}"
    );
    assert!(!vault_handle.is_open());
    assert!(
        fs::read(&path).expect("ours") == before,
        "it was written to"
    );
}
