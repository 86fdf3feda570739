//! What a disk had before the image was written to it.
//!
//! The image ends before the vault's areas and the memo of TPMs, so the program that writes an image may leave there
//! what the disk had before. A vault behind a blank header says that a first boot was interrupted, and the machine
//! would go on with the keys of a person who had the disk earlier. A disk onto which the image was written has the GUIDs
//! of the image until its first start, by which that vault is distinguished from this machine's own.

use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use alknet_core::config::{VaultInit, VaultSection};
use alknet_sealed::limits::{DATA_AT, MEMO_AT};
use alknet_vault::slots::Alkv;

use super::ext4::BLANK_BYTES;
use super::gpt::DiskAccess;
use super::{DataAccess, problem};
use crate::control::MachineDiagnostic;
use crate::log::InitLog;
use crate::media::VaultMedia;

/// What the data partition has on a disk onto which the image was just written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EarlierContent {
    /// Nothing that a first boot reads.
    Blank,
    /// The header was blank. What was in the areas of the vault and in the memo is overwritten now.
    Overwritten,
    /// The data of a node or of another system, which stay.
    Kept,
}

/// The disk over whose data the image was written. The node reports it until the next start: while the vault waits for its
/// owner, the data are opened more than once, and the GUIDs are replaced at the first time.
static KEPT: OnceLock<String> = OnceLock::new();

/// Says what a disk has from before the image was written to it.
pub(super) fn say(disk: &str, found: Option<EarlierContent>, log: &InitLog) {
    match found {
        Some(EarlierContent::Overwritten) => log.warn(format_args!(
            "{disk} had bytes in the place of the vault from before the image was written: they are overwritten"
        )),
        Some(EarlierContent::Kept) => {
            // A start has one disk with data, so another name was not set before.
            let _ = KEPT.set(disk.to_owned());
        }
        Some(EarlierContent::Blank) | None => {}
    }
}

/// The problem of an image that was written over data.
pub(super) fn kept_data_problem() -> Option<MachineDiagnostic> {
    let disk = KEPT.get()?;
    Some(problem(
        "data-kept",
        format!(
            "the image was written over {disk}, and its data partition has content from before: it stays, and a node in \
             it goes on"
        ),
        "if this should be a new node, zero the first 16 MiB of that partition in another system; the next start does not \
         say this again",
    ))
}

/// Overwrites the memo and both areas of the vault on a partition of `disk`, unless its beginning shows that it is in
/// use. When this returns, the disk has them as zeros.
pub(super) fn overwrite(
    disk: &dyn DiskAccess,
    partition: &Range<u64>,
) -> io::Result<EarlierContent> {
    let within = |from: u64, to: u64| {
        let [from, to] = [from, to].map(|at| partition.start.saturating_add(at).min(partition.end));
        from..to
    };
    if !is_zero(disk, within(0, BLANK_BYTES as u64))? {
        return Ok(EarlierContent::Kept);
    }
    let areas = within(MEMO_AT, DATA_AT);
    if is_zero(disk, areas.clone())? {
        return Ok(EarlierContent::Blank);
    }
    let zeros = vec![0; length(&areas)?];
    disk.write_sectors(&zeros, areas.start)?;
    disk.sync()?;
    // A disk may say that it took a write, and not have it.
    match is_zero(disk, areas)? {
        true => Ok(EarlierContent::Overwritten),
        false => Err(io::Error::other("the disk did not keep the zeros")),
    }
}

fn is_zero(disk: &dyn DiskAccess, range: Range<u64>) -> io::Result<bool> {
    let mut content = vec![0; length(&range)?];
    disk.read_sectors(&mut content, range.start)?;
    Ok(content.iter().all(|byte| *byte == 0))
}

fn length(range: &Range<u64>) -> io::Result<usize> {
    usize::try_from(range.end - range.start).map_err(io::Error::other)
}

/// The problem of a vault with which a first boot goes on, and which opens otherwise than the configuration asks: the
/// first boot may have been another machine's. The console names what opens the vault in any case.
pub(super) fn unasked(
    disk: &str,
    vault: &Alkv,
    access: DataAccess<'_>,
) -> Option<MachineDiagnostic> {
    let slots = vault.slots().iter();
    let mut kinds: Vec<_> = slots.map(|slot| slot.kind().name()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let opens_by = kinds.join(", ");
    access
        .log
        .warn(format_args!("that vault opens by: {opens_by}"));
    // A configuration that cannot be read is a problem of its own.
    let media = VaultMedia::read(access.offer.pasted.as_ref()).ok()?;
    let asks_for = requested_slots(&kinds, &media.vault)?;
    Some(problem(
        "vault-unasked",
        format!(
            "the vault with which the first boot of {disk} went on opens by: {opens_by}; the configuration asks for: \
             {asks_for}"
        ),
        "if you did not begin that first boot, its words are another person's: reset the machine at the console (v), \
         or attach a disk whose first 16 MiB are zero",
    ))
}

/// What the configuration asks for, if it is something else. A configuration without `vault.unlock` leaves the slots to
/// the machine.
fn requested_slots(kinds: &[&str], config: &VaultSection) -> Option<String> {
    if config.init == VaultInit::Off {
        return Some("no vault".to_owned());
    }
    let mut requested_slots: Vec<_> = config.unlock.iter().map(|one| one.name()).collect();
    requested_slots.sort_unstable();
    requested_slots.dedup();
    (!requested_slots.is_empty() && requested_slots != kinds).then(|| requested_slots.join(", "))
}

#[cfg(test)]
mod tests {
    use alknet_core::config::NodeConfig;

    use super::*;

    #[test]
    fn an_image_over_data_is_a_problem_of_that_start() {
        let log = InitLog::default();
        for found in [
            None,
            Some(EarlierContent::Blank),
            Some(EarlierContent::Overwritten),
        ] {
            say("vda", found, &log);
            assert_eq!(kept_data_problem(), None, "{found:?}");
        }
        for found in [Some(EarlierContent::Kept), None] {
            say("vda", found, &log);
            let problem = kept_data_problem().expect("it is reported");
            assert!(problem.text.contains("over vda"), "{}", problem.text);
        }
    }

    #[test]
    fn a_vault_that_opens_otherwise_than_asked_is_named() {
        for (document, kinds, expected) in [
            ("", &["none"][..], None),
            ("[vault]\nunlock = [\"tpm2\"]\n", &["tpm2"], None),
            ("[vault]\nunlock = [\"tpm2\"]\n", &["none"], Some("tpm2")),
            (
                "[vault]\nunlock = [\"tpm2\"]\n",
                &["kms", "tpm2"],
                Some("tpm2"),
            ),
            (
                "[vault]\nunlock = [\"tpm2\", \"passphrase\"]\n",
                &["passphrase", "tpm2"],
                None,
            ),
            ("[vault]\ninit = \"off\"\n", &["none"], Some("no vault")),
        ] {
            let config = NodeConfig::parse(document.as_bytes()).expect("a right one");
            let found = requested_slots(kinds, &config.vault);
            assert_eq!(found.as_deref(), expected, "{document:?} {kinds:?}");
        }
    }
}
