//! Erases a partition: first it writes the mark, then the TPM counts the erasure, and then
//! everything that opens the data is overwritten. If the power fails after the mark, or the TPM did
//! not count, the next start does all of it again. The vault and the memo of the partition name the
//! TPMs that have to count: the vault is erased, and the memo stays until they have counted.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_sealed::SealedPartition;
use alknet_tpm::TpmError;
use alknet_vault::slots::{Alkv, SlotType};

use super::copies;
use super::counting_tpms::{counted_by, set_counted_by};
use crate::control::MachineDiagnostic;
use crate::vault::generations;

/// Why this machine's TPM has not counted a reset that this start, or an earlier one, finished. The
/// node reports it until the note beside the new data has it, or until the next start: while the
/// first boot waits for an administrator, it is tried more than once.
static UNCOUNTED: Mutex<Option<String>> = Mutex::new(None);

/// Writes the mark that a factory reset has begun, and returns when it is on the disk. From then
/// on, the next start finishes the reset before anything else.
pub(crate) fn mark_erasing(device: &Path) -> io::Result<()> {
    SealedPartition::begin_erasing(&opened(device)?).map_err(io::Error::other)
}

/// Overwrites everything that opens the data of a device, and the vault. An older copy of the disk
/// then opens by no slot of this machine's TPM. If the TPM does not count, the mark stays, for
/// [`end_erasing`].
pub(crate) fn erase(device: &Path) -> io::Result<()> {
    erase_counted(device, generations::outdate, TpmRetry::No).map(drop)
}

/// Like `erase`, at a start that found the mark, which it removes. If the TPM did not count, the node
/// reports that, and the memo stays.
pub(super) fn end_erasing(device: &Path) -> io::Result<()> {
    if let Some(error) = erase_counted(device, generations::outdate, TpmRetry::Yes)? {
        *lock_uncounted() = Some(error.to_string());
    }
    Ok(())
}

/// Makes the TPMs in the memo of a blank disk count the reset that an earlier start finished, once
/// in each start.
pub(super) fn recall(device: &Path) {
    let by = counted_by(device);
    if by.is_empty() || lock_uncounted().is_some() {
        return;
    }
    let counted = generations::outdate(&by, true).map_err(|error| error.to_string());
    let forgotten = counted.and_then(|()| {
        set_counted_by(device, &[]).map_err(|error| format!("the disk cannot be written: {error}"))
    });
    *lock_uncounted() = forgotten.err();
}

/// Notes that the record beside the new data now has the TPMs that did not count, and reports it
/// from here on.
pub(super) fn noted_uncounted() {
    *lock_uncounted() = None;
}

/// The problem of a reset that the TPM has not counted.
pub(super) fn uncounted() -> Option<MachineDiagnostic> {
    lock_uncounted().as_deref().map(reset_uncounted)
}

fn lock_uncounted() -> MutexGuard<'static, Option<String>> {
    // The text is whole even after a panic elsewhere.
    UNCOUNTED.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn reset_uncounted(why: &str) -> MachineDiagnostic {
    super::problem(
        "reset-uncounted",
        format!("this machine was reset, and its TPM did not count that: {why}"),
        "each start with that TPM has it count; until then a copy of the disk from before may open by it: destroy such \
         copies, or clear the TPM in the firmware's setup before the new vault has a slot of it, and have 'tpm forget' \
         at the console (v) end this",
    )
}

/// Whether this is another try with a TPM that did not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TpmRetry {
    No,
    Yes,
}

/// Like `erase`, with `outdate`, which makes the TPM count. `outdate` gets the TPMs that counted the
/// disk, and whether one has to count. Returns why it did not.
fn erase_counted(
    device: &Path,
    outdate: impl FnOnce(&[String], bool) -> Result<(), TpmError>,
    last: TpmRetry,
) -> io::Result<Option<TpmError>> {
    let file = opened(device)?;
    // A header that cannot be read counts as settled: the mark is then written once more, which is
    // harmless.
    let unsettled = SealedPartition::is_unsettled(&file).unwrap_or(false);
    // The vault may be erased already, while the memo names its TPMs. A vault without a TPM slot
    // may have had one whose removal was not counted.
    let mut by = counted_by(device);
    let (of_slots, opens_by_tpm) = tpms_of_slots(device);
    by.extend(of_slots);
    by.sort();
    by.dedup();
    let has_to = unsettled || opens_by_tpm || !by.is_empty();
    if !unsettled {
        // The mark comes first: without it, a power cut in between would leave a disk that its own
        // machine takes for an outdated one. If the mark cannot be written, the erasure below
        // returns an error.
        let _ = SealedPartition::begin_erasing(&file);
    }
    let uncounted = outdate(&by, has_to).err();
    if let Some(error) = &uncounted {
        if !by.is_empty()
            && let Err(error) = set_counted_by(device, &by)
        {
            tracing::error!(%error, "which TPMs have to count is not on the disk");
        }
        // The keys are erased even if the TPM did not count.
        tracing::error!(
            %error,
            "the TPM did not count that the disk is erased; a copy of it from before may still open"
        );
    }
    let bytes = super::size(&file)?;
    let erased = match (&uncounted, last) {
        (None, _) => SealedPartition::erase(&file, bytes),
        (Some(_), TpmRetry::No) => SealedPartition::erase_unsettled(&file, bytes),
        (Some(_), TpmRetry::Yes) => SealedPartition::erase_all_but_memo(&file, bytes),
    };
    let erased = erased.map_err(io::Error::other)?;
    if let Err(error) = erased.discarded {
        tracing::info!(%error, "the device keeps the encrypted blocks");
    }
    Ok(uncounted)
}

/// The TPMs for which the vault of a device has slots, as far as they can be read, and whether it
/// has any: the record of a slot's TPM may be damaged.
fn tpms_of_slots(device: &Path) -> (Vec<String>, bool) {
    let has_one = |alkv: &Alkv| {
        let mut slots = alkv.slots().iter();
        slots.any(|slot| slot.kind() == SlotType::Tpm2)
    };
    let Ok(Some(found)) = copies(device).load() else {
        return (Vec::new(), false);
    };
    // The older copy may still open by a TPM that the newest has dropped.
    let both = [Some(&found.newest), found.other.as_ref()];
    let mut both = both.into_iter().flatten();
    let tpms = both.clone().flat_map(generations::tpms_of).collect();
    (tpms, both.any(has_one))
}

fn opened(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(device)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    use alknet_sealed::PartitionContent;
    use alknet_sealed::limits::{DATA_AT, MEMO_AT};

    use super::*;
    use crate::data::keyslot_tests;

    /// An attacker has a copy of the disk, and cuts the power during a reset: if the vault were
    /// erased before the TPM counted, nothing would make it count later.
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
            let content = SealedPartition::probe(&opened(&disk).expect("there"), DATA_AT);
            matches!(content.expect("readable"), PartitionContent::Erasing)
        };
        assert!(has_vault() && !is_marked());
        // A power cut at any step before the last leaves the mark, so that a later start does the
        // rest.
        let counted = Cell::new(0);
        let count = |by: &[String], has_to: bool| {
            assert!(
                by.is_empty() && !has_to,
                "no slot of this vault is of a TPM"
            );
            assert!(has_vault() && is_marked(), "the mark, the TPM, the vault");
            counted.set(counted.get() + 1);
            Ok(())
        };
        let uncounted = erase_counted(&disk, count, TpmRetry::No).expect("a disk that works");
        assert!(uncounted.is_none());
        assert_eq!(counted.get(), 1);
        assert!(!has_vault() && !is_marked());

        // The power is cut after the TPM counted: the next start makes it count once more, and
        // erases.
        copies(&disk).create(&made).expect("written");
        mark_erasing(&disk).expect("written");
        let uncounted = erase_counted(&disk, count, TpmRetry::No).expect("a disk that works");
        assert!(uncounted.is_none());
        assert_eq!(counted.get(), 2);
        assert!(!has_vault() && !is_marked());

        // A TPM that does not answer saves no key, and the next start asks it again.
        copies(&disk).create(&made).expect("written");
        let silent = |_: &[String], _| Err(TpmError::Transport(io::ErrorKind::TimedOut.into()));
        let uncounted = erase_counted(&disk, silent, TpmRetry::No).expect("a disk that works");
        assert!(matches!(uncounted, Some(TpmError::Transport(_))));
        assert!(!has_vault() && is_marked());
        // The TPM is gone. The vault cannot say that a TPM had counted, and the mark does.
        let absent = |_: &[String], has_to: bool| {
            assert!(has_to && is_marked());
            Err(TpmError::Absent)
        };
        let uncounted = erase_counted(&disk, absent, TpmRetry::No).expect("a disk that works");
        assert!(matches!(uncounted, Some(TpmError::Absent)) && is_marked());
        let uncounted = erase_counted(&disk, absent, TpmRetry::Yes).expect("a disk that works");
        assert!(matches!(uncounted, Some(TpmError::Absent)));
        assert!(
            !is_marked(),
            "the missing count is reported, and not tried for ever"
        );

        // If the TPM answers then, it has counted, and there is no problem to report.
        copies(&disk).create(&made).expect("written");
        erase_counted(&disk, silent, TpmRetry::No).expect("a disk that works");
        let answers = |_: &[String], has_to: bool| has_to.then_some(()).ok_or(TpmError::Absent);
        let uncounted = erase_counted(&disk, answers, TpmRetry::Yes).expect("a disk that works");
        assert!(uncounted.is_none() && !has_vault() && !is_marked());
    }

    /// The node's status and the console show problems: the log of a restarted machine is lost.
    #[test]
    fn an_uncounted_reset_is_reported_by_the_start_that_ends_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = dir.path().join("disk");
        let file = File::create_new(&disk).expect("a new file");
        file.set_len(DATA_AT).expect("a sparse file");
        // This process has no machine's TPM, and the disk says that one has to count.
        SealedPartition::erase_unsettled(&file, DATA_AT).expect("a disk that works");
        end_erasing(&disk).expect("a disk that works");
        let told = uncounted().expect("it is reported");
        assert_eq!(told.code, "reset-uncounted");
        assert!(!SealedPartition::is_unsettled(&file).expect("readable"));

        // If the disk names the TPM, each start reports it until the new data have a note of it.
        let tpm = ["ab".repeat(32)];
        set_counted_by(&disk, &tpm).expect("writable");
        SealedPartition::erase_unsettled(&file, DATA_AT).expect("a disk that works");
        for start in [
            end_erasing as fn(&Path) -> io::Result<()>,
            recalled,
            recalled,
        ] {
            noted_uncounted();
            start(&disk).expect("a disk that works");
            assert!(uncounted().is_some());
            let content = SealedPartition::probe(&file, DATA_AT).expect("readable");
            assert!(matches!(content, PartitionContent::Unsealed), "{content:?}");
            assert_eq!(counted_by(&disk), tpm);
        }
        noted_uncounted();
        set_counted_by(&disk, &[]).expect("writable");
        recall(&disk);
        assert_eq!(uncounted(), None);
    }

    fn recalled(disk: &Path) -> io::Result<()> {
        recall(disk);
        Ok(())
    }

    /// An attacker switches the TPM off, or another one on, while its last slot is removed and when
    /// the machine is reset afterwards. The erased vault then has no slot of the TPM any more.
    #[test]
    fn a_reset_knows_of_a_removal_that_was_not_counted() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = dir.path().join("disk");
        let file = File::create_new(&disk).expect("a new file");
        file.set_len(DATA_AT).expect("a sparse file");
        copies(&disk)
            .create(&keyslot_tests::vault())
            .expect("written");
        let tpm = "ab".repeat(32);
        set_counted_by(&disk, std::slice::from_ref(&tpm)).expect("writable");
        let absent = |by: &[String], has_to: bool| {
            assert!(has_to);
            assert_eq!(by, [tpm.as_str()]);
            Err(TpmError::Absent)
        };
        for last in [TpmRetry::No, TpmRetry::Yes] {
            let uncounted = erase_counted(&disk, absent, last).expect("a disk that works");
            assert!(matches!(uncounted, Some(TpmError::Absent)));
            assert_eq!(
                SealedPartition::is_unsettled(&file).expect("readable"),
                last == TpmRetry::No
            );
            assert!(copies(&disk).load().expect("readable").is_none());
            assert_eq!(counted_by(&disk), [tpm.as_str()]);
        }
        let counts = |by: &[String], has_to: bool| {
            assert!(has_to && by.len() == 1);
            Ok(())
        };
        let uncounted = erase_counted(&disk, counts, TpmRetry::No).expect("a disk that works");
        assert!(uncounted.is_none());
        let mut memo = [1; 512];
        file.read_exact_at(&mut memo, MEMO_AT).expect("readable");
        assert_eq!(memo, [0; 512], "it is over");
    }
}
