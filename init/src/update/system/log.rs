//! What updates did, as the log of updates says it, and the starts that count.

use std::io::Read;

use super::UpdateSystem;
use crate::control::{UpdatePlan, UpdateRecord};
use crate::update::anchor::UpdateAnchor;
use crate::update::frames::BundleFrameReader;
use crate::update::refusal::{RefusalCode, UpdateRefusal};
use crate::update::stage::StageOrder;
use crate::update::staged::StagedBundle;
use crate::update::{history, starts};

impl UpdateSystem {
    /// Stages a bundle that comes in frames, and logs what came of it.
    pub(crate) fn stage_for<R: Read>(
        &self,
        frames: &mut BundleFrameReader<R>,
        order: &StageOrder,
        anchor: &UpdateAnchor,
        is_time_known: bool,
    ) -> Result<UpdatePlan, UpdateRefusal> {
        let outcome = self.stage(frames, order, anchor, is_time_known);
        match &outcome {
            // Nothing was to change, and callers that may only read can repeat it.
            _ if order.dry_run => {}
            Ok(staged) => self.log_staged(staged, &order.by, order.limited),
            Err(refusal) => self.append(history::REFUSED, "", &order.by, &refusal.text),
        }
        outcome.map(|staged| staged.plan)
    }

    /// Logs that a version was staged, unless the disk and the log say so already: a caller may repeat it at will. The record
    /// has the floor that the caller's own bundle brings: a later caller of the same program keeps the floor, and would
    /// otherwise be the only one in the log. If the caller has changed the note of a staged version, that is logged as well,
    /// whichever caller it is.
    pub(in crate::update) fn log_staged(&self, staged: &StagedBundle, by: &str, limited: bool) {
        let record = UpdateRecord {
            event: history::STAGED.to_owned(),
            version: staged.plan.to.clone(),
            by: by.to_owned(),
            limited,
            reason: staged
                .plan
                .bundle_floor
                .as_deref()
                .map_or_else(String::new, floor_text),
            ..UpdateRecord::default()
        };
        // The log says who staged the version that waits, so that a hub does not replace that of an administrator. The note
        // says the same: it keeps the caller of a program that another one may not take over.
        let staging = match &staged.kept_stager {
            Some(stager) => UpdateRecord {
                by: stager.by.clone(),
                limited: stager.limited,
                // The floor is the one of the sender's bundle.
                reason: String::new(),
                ..record.clone()
            },
            None => record.clone(),
        };
        let is_known = |folder| history::has_staging(folder, &staging);
        let is_repeated = staged.was_staged && self.folder.as_deref().is_some_and(is_known);
        // An event of its own, because the version may stay the one of the caller who staged it. What may run after its
        // confirmation is not what that caller has agreed to any more.
        let was_staged = staged.was_staged || staged.kept_stager.is_some();
        let noted = (was_staged && !staged.was_noted).then(|| UpdateRecord {
            event: history::NOTED.to_owned(),
            reason: match &staged.plan.floor {
                Some(floor) => floor_text(floor),
                None => "its release was noted again".to_owned(),
            },
            ..record
        });
        if !is_repeated {
            self.append_record(staging, 0);
        }
        if let Some(noted) = noted {
            self.append_record(noted, 0);
        }
    }

    /// Refuses a start by a caller that is no administrator, after so many in the last hour.
    pub(crate) fn check_rate(&self, by: &str) -> Result<(), UpdateRefusal> {
        let folder = self.folder.as_deref();
        folder.map_or(Ok(()), |folder| starts::check(folder, by))
    }

    /// Counts a start by such a caller. A start that cannot be counted is refused: a full disk would end the limit.
    pub(in crate::update) fn count_start(&self, by: &str) -> Result<(), UpdateRefusal> {
        let folder = self.folder.as_deref();
        let counted = folder.map_or(Ok(()), |folder| starts::count(folder, by));
        counted.map_err(|error| {
            let text = format_args!(
                "the start cannot be noted on the data disk: {error}; free space there, or let an administrator start it"
            );
            UpdateRefusal::new(RefusalCode::Disk, text)
        })
    }

    /// Logs that a start, which a caller had planned, does not happen.
    pub(crate) fn log_unscheduled(&self, version: &str, by: &str, reason: &str) {
        self.append(history::UNSCHEDULED, version, by, reason);
    }

    /// The log of updates, the oldest record first.
    pub(crate) fn records(&self) -> Vec<UpdateRecord> {
        let folder = self.folder.as_deref();
        folder.map(history::read).unwrap_or_default()
    }

    /// Adds a record to the log of updates.
    pub(super) fn append(&self, event: &str, version: &str, by: &str, reason: &str) {
        self.append_as(event, version, by, reason, 0);
    }

    pub(super) fn append_as(&self, event: &str, version: &str, by: &str, reason: &str, seq: u64) {
        let record = UpdateRecord {
            event: event.to_owned(),
            version: version.to_owned(),
            by: by.to_owned(),
            reason: reason.to_owned(),
            ..UpdateRecord::default()
        };
        self.append_record(record, seq);
    }

    fn append_record(&self, record: UpdateRecord, seq: u64) {
        let UpdateRecord {
            event,
            version,
            by,
            reason,
            ..
        } = &record;
        let colon = if reason.is_empty() { "" } else { ": " };
        self.log.info(format_args!(
            "update {version} {event} by {by}{colon}{reason}"
        ));
        let Some(folder) = &self.folder else {
            return;
        };
        if let Err(error) = history::append(folder, record, seq) {
            self.log
                .warn(format_args!("the log of updates is not written: {error}"));
        }
    }
}

/// What a record says of a version that raises the floor to this one.
fn floor_text(floor: &str) -> String {
    format!("once it is confirmed, no version before {floor} runs here")
}
