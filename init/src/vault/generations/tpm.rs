//! Requests of PID 1 that the machine's TPM counts. The TPM may be absent, another one, or silent.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use alknet_tpm::{StorageKey, Tpm, TpmError};

use crate::tpm;

/// How long the erasure of a disk waits for the TPM: a machine that goes down ends after 25 s,
/// erased or not.
const OUTDATE_MAX: Duration = Duration::from_secs(5);

/// Whether the TPM has a request to count and has not answered. It may count at any moment. A
/// counter that a new vault began meanwhile would then be ahead of its note, and the machine would
/// take its own disk for an old one.
static UNANSWERED: AtomicBool = AtomicBool::new(false);

/// Refuses to ask the TPM for its counter while another request about it is open.
pub(super) fn answered(unanswered: &AtomicBool) -> Result<(), TpmError> {
    match unanswered.load(Ordering::SeqCst) {
        true => Err(TpmError::Transport(io::ErrorKind::TimedOut.into())),
        false => Ok(()),
    }
}

/// The TPM of this machine with its storage key.
pub(super) fn chip() -> Result<(Tpm<File>, StorageKey), TpmError> {
    answered(&UNANSWERED)?;
    let mut tpm = tpm::connect()?;
    let key = tpm.storage_key()?;
    Ok((tpm, key))
}

/// Whether the machine has no TPM that could count: none, an old one, or one that the image is not
/// for.
pub(super) fn is_absent(error: &TpmError) -> bool {
    matches!(
        error,
        TpmError::Absent | TpmError::Unsupported(_) | TpmError::ForeignStorageKey
    )
}

/// Makes the TPM with this storage key count beyond every note.
///
/// # Errors
/// The TPM has not counted: it is not in this machine now, or switched off, or does not answer.
pub(super) fn retire(tpm: &str) -> Result<(), TpmError> {
    let (chip, key) = chip()?;
    if key.to_string() != tpm {
        return Err(TpmError::OtherTpm);
    }
    chip.require(key).outrun_notes()
}

/// Makes this machine's TPM count on, if it counts, without a disk that notes it, so that each
/// earlier copy of a disk is an older one. `by`: storage keys of the TPMs that counted that disk.
/// `has_to`: there is one, known or not.
///
/// # Errors
/// One of them has not counted, or does not answer within [`OUTDATE_MAX`].
pub(crate) fn outdate(by: &[String], has_to: bool) -> Result<(), TpmError> {
    let by = by.to_vec();
    within(OUTDATE_MAX, &UNANSWERED, move || {
        let counted = tpm::connect().and_then(|mut tpm| {
            if by.is_empty() {
                // It is unknown which TPM counted the disk, and this one may have.
                return tpm.outrun_notes();
            }
            let key = tpm.storage_key()?;
            let name = key.to_string();
            if by.contains(&name) {
                tpm.require(key).outrun_notes()?;
            }
            let is_another = by.iter().any(|one| *one != name);
            is_another.then_some(TpmError::OtherTpm).map_or(Ok(()), Err)
        });
        unless_none_has_to(counted, has_to || !by.is_empty())
    })
}

/// Accepts a machine without a TPM, or with one that the image is not for: if no slot was of a TPM,
/// there is nothing to count.
pub(super) fn unless_none_has_to(
    counted: Result<(), TpmError>,
    has_to: bool,
) -> Result<(), TpmError> {
    match counted {
        Err(error) if is_absent(&error) && !has_to => Ok(()),
        counted => counted,
    }
}

/// Asks a TPM on its own thread, because the kernel waits minutes for one that hangs. `unanswered`
/// is true until it has answered, or the machine restarts.
pub(super) fn within(
    most: Duration,
    unanswered: &'static AtomicBool,
    ask: impl FnOnce() -> Result<(), TpmError> + Send + 'static,
) -> Result<(), TpmError> {
    if unanswered.swap(true, Ordering::SeqCst) {
        return Err(TpmError::Transport(io::ErrorKind::TimedOut.into()));
    }
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new()
        .name("tpm".to_owned())
        .spawn(move || {
            let answer = ask();
            unanswered.store(false, Ordering::SeqCst);
            // The caller may have given up.
            drop(sender.send(answer));
        });
    if let Err(error) = spawned {
        unanswered.store(false, Ordering::SeqCst);
        return Err(TpmError::Transport(error));
    }
    // The thread stays where it hangs. `unanswered` keeps a later request from overtaking it.
    receiver
        .recv_timeout(most)
        .unwrap_or_else(|_| Err(TpmError::Transport(io::ErrorKind::TimedOut.into())))
}
