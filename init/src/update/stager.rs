//! The caller that staged a version: which one is noted, and whether an order that no administrator gave may replace what
//! it staged.

use alknet_boot_state::{BootPhase, BootRecord, BootSlot};

use super::history;
use super::refusal::{RefusalCode, UpdateRefusal};
use super::stage::{StageMachine, StageOrder};
use super::staged::{StagedRelease, staged_last};
use crate::control::UpdateStager;
use crate::text::cut_text;

/// The name under which the machine acts by itself. The node sends it with what it stages and starts by the configuration.
pub(super) const MACHINE: &str = "the machine";

/// Refuses an order of the machine itself or of a hub while a version waits that a caller staged who may start it: it waits
/// for that caller. The node looks at this as well, but it decides before it opens its channel, which may take a minute, and
/// a session of that caller may end meanwhile.
pub(super) fn require_replaceable(
    record: &BootRecord,
    slot: BootSlot,
    order: &StageOrder,
    at: &StageMachine<'_>,
) -> Result<(), UpdateRefusal> {
    if !order.unasked || order.dry_run || record.phase() != BootPhase::Staged {
        return Ok(());
    }
    let known = at.known.load();
    // Of a version whose caller is not known the node decides.
    let Some((version, stager)) = staged_last(at.folder, slot, known.of_slot(slot)) else {
        return Ok(());
    };
    let is_own = stager.by == noted_name(&order.by);
    if stager.limited || is_own || stager.by == MACHINE {
        return Ok(());
    }
    Err(UpdateRefusal::new(
        RefusalCode::OtherStaged,
        format_args!(
            "version {version} waits, which {} has staged: start it, take it back by `alknet rollback`, or have an \
             administrator send the other version by `alknet update`",
            stager.by
        ),
    ))
}

/// The caller that staged this program last, if the slot has it.
pub(super) fn noted_stager(
    slot: BootSlot,
    release: &StagedRelease,
    at: &StageMachine<'_>,
) -> Option<UpdateStager> {
    let known = at.known.load();
    let known = known.of_slot(slot);
    let known = known.filter(|known| known.sha256 == release.sha256)?;
    staged_last(at.folder, slot, Some(known)).map(|(_, stager)| stager)
}

/// The caller to note for a program that `noted` has staged before and that is staged still.
pub(super) fn stager_to_note(noted: Option<&UpdateStager>, order: &StageOrder) -> UpdateStager {
    match noted {
        Some(noted) if keeps_stager(noted, order) => noted.clone(),
        _ => UpdateStager {
            by: noted_name(&order.by),
            limited: order.limited,
        },
    }
}

/// Whether the program stays the one of `noted`. A caller that may not start versions does not take the program of another
/// one over by sending it again: the machine would replace it then.
pub(super) const fn keeps_stager(noted: &UpdateStager, order: &StageOrder) -> bool {
    order.limited && !noted.limited
}

/// The name of a caller as it is noted.
fn noted_name(by: &str) -> String {
    let mut by = by.to_owned();
    cut_text(&mut by, history::TEXT_BYTES_MAX);
    by
}
