//! A partition is erased: the mark first, then the TPM counts it, then everything that opens the data goes. Wherever
//! the power fails after the mark, the next start does all of it again.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use alknet_sealed::Sealed;
use alknet_tpm::TpmError;

use crate::vault::newest;

/// Writes the mark that a factory reset has begun, and returns when it is on the disk: whatever happens after
/// that, the next start ends the reset before anything else.
pub(crate) fn mark_erasing(device: &Path) -> io::Result<()> {
    Sealed::begin_erasing(&opened(device)?).map_err(io::Error::other)
}

/// Overwrites everything that opens the data of a device, and the vault. A copy of the disk from before opens by no
/// slot of this machine's TPM any more.
pub(crate) fn erase(device: &Path) -> io::Result<()> {
    erase_counted(device, newest::outdate)
}

/// The same with what has the TPM count.
fn erase_counted(device: &Path, outdate: impl FnOnce() -> Result<(), TpmError>) -> io::Result<()> {
    let file = opened(device)?;
    // The mark first: without it a power cut in between would leave a disk that its own machine takes for an old one.
    // Where the mark cannot be written, the erasure below says so.
    let _ = Sealed::begin_erasing(&file);
    if let Err(error) = outdate() {
        // The keys go all the same.
        tracing::error!(
            %error,
            "the TPM did not count that the disk is erased; a copy of it from before may still open"
        );
    }
    let bytes = super::size(&file)?;
    let erased = Sealed::erase(&file, bytes).map_err(io::Error::other)?;
    if let Err(error) = erased.discarded {
        tracing::info!(%error, "the device keeps the encrypted blocks");
    }
    Ok(())
}

fn opened(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(device)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use alknet_sealed::Content;
    use alknet_sealed::limits::DATA_AT;

    use super::*;
    use crate::data::{copies, keyslot_tests};

    /// An attacker has a copy of the disk, and cuts the power while the machine is reset: where the vault were gone
    /// and the TPM had not counted it, nothing would ever have it count again.
    #[test]
    fn a_reset_is_counted_before_the_vault_is_gone_whenever_the_power_goes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = dir.path().join("disk");
        let file = File::create_new(&disk).expect("a new file");
        file.set_len(DATA_AT).expect("a sparse file");
        let made = keyslot_tests::vault();
        copies(&disk).create(&made).expect("written");
        let has_vault = || copies(&disk).load().expect("readable").is_some();
        let is_marked = || {
            let content = Sealed::probe(&opened(&disk).expect("there"), DATA_AT);
            matches!(content.expect("readable"), Content::Erasing)
        };
        assert!(has_vault() && !is_marked());
        // A power cut at any step before the last: the mark is there, and so a later start does the rest.
        let counted = Cell::new(0);
        let count = || {
            assert!(has_vault() && is_marked(), "the mark, the TPM, the vault");
            counted.set(counted.get() + 1);
            Ok(())
        };
        erase_counted(&disk, count).expect("a disk that works");
        assert_eq!(counted.get(), 1);
        assert!(!has_vault() && !is_marked());

        // Cut short when the TPM had counted: the next start has it count once more, and erases.
        copies(&disk).create(&made).expect("written");
        mark_erasing(&disk).expect("written");
        erase_counted(&disk, count).expect("a disk that works");
        assert_eq!(counted.get(), 2);
        assert!(!has_vault() && !is_marked());

        // A TPM that does not answer keeps no key alive.
        copies(&disk).create(&made).expect("written");
        let silent = || Err(TpmError::Transport(io::ErrorKind::TimedOut.into()));
        erase_counted(&disk, silent).expect("a disk that works");
        assert!(!has_vault() && !is_marked());
    }
}
