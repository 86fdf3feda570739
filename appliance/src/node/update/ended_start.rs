//! Planned starts that do not happen: what the problems, the status and the log of updates say of them.

use alknet_init::control::UpdateRequest;

use super::NodeUpdates;
use super::act::StagedProgram;
use super::auto::BY;
use super::scheduled_start::ScheduledStart;
use super::session::StagingOutcome;

impl NodeUpdates {
    /// The start that did not happen, or will not, until a version is started, or the start is forgotten as taken back.
    pub(super) fn failed_start(&self) -> Option<ScheduledStart> {
        let start = self.0.scheduled.current();
        let failed = start.filter(|it| !it.failure.is_empty());
        failed.filter(|_| !self.was_started())
    }

    /// Ends a start that is for another program than the one that is staged now, or whose caller has agreed to a lower floor
    /// than this program has now, also one that has failed. The caller that planned it expects a restart, so the problems,
    /// the status and the log of updates say why it does not come.
    pub(super) fn end_start_of_others(&self) {
        let Some(staged) = self.known_program() else {
            return;
        };
        let version = self.staged_version();
        // After a restart the node does not know who staged it, and PID 1 does.
        let known = self.0.sessions.staged_by().map(|request| request.by);
        let facts = self.0.facts.load();
        let noted = || facts.update.stager.as_ref().map(|stager| stager.by.clone());
        let by = known.or_else(noted);
        let why = match &by {
            Some(by) => format!("{by} has staged another program, of version {version}"),
            None => format!("another program was staged, of version {version}"),
        };
        let by = by.unwrap_or_else(|| BY.to_owned());
        self.end_start_if(|it| it.sha256 != staged.sha256, why, by);
        let Some(floor) = &staged.floor else {
            return;
        };
        let by = self.floor_sender(&staged);
        let why = match &by {
            Some(by) => format!("{by} has staged its program with a higher floor, {floor}"),
            None => format!("its program was staged with a higher floor, {floor}"),
        };
        let is_over = |it: &ScheduledStart| it.sha256 == staged.sha256 && !it.is_for(&staged);
        self.end_start_if(is_over, why, by.unwrap_or_else(|| BY.to_owned()));
    }

    /// The caller whose bundle has raised the floor of this program, if it was the last one since the node began. A client
    /// that sends the program of another caller again is not the one by whose request the program is staged.
    fn floor_sender(&self, staged: &StagedProgram) -> Option<String> {
        let ended = self.0.sessions.ended()?;
        let StagingOutcome::Planned(plan) = &ended.outcome else {
            return None;
        };
        let has_raised = !ended.request.dry_run
            && plan.sha256 == staged.sha256
            && plan.floor == staged.floor
            && plan.bundle_floor == plan.floor;
        has_raised.then_some(ended.request.by)
    }

    /// Ends this start, which is not for what is staged. Leaves it if a bundle has begun since this was known.
    pub(super) fn end_start(&self, start: &ScheduledStart) {
        if !self.knows_slots() {
            return;
        }
        if self.was_started() {
            tracing::info!(at = %start.at, "a planned start is forgotten: a version was started");
            self.0.scheduled.forget_if(|it| it == start);
        } else if self.known_program().is_some() {
            self.end_start_of_others();
        } else {
            // PID 1 empties the slot before it writes another program there, and the power may fail meanwhile.
            let why = "its program is not staged any more".to_owned();
            self.end_start_if(|it| it == start, why, BY.to_owned());
        }
    }

    /// Takes the planned start back after a rollback: a version that was taken back must not start at the moment that was
    /// set for it. The start of an administrator is not forgotten for another caller (`limited`), also if it has
    /// failed or ended before: it ends with a reason. Otherwise this caller could stage any other program afterwards, set
    /// a moment of its own, and so hide that the administrator's start does not happen.
    pub(super) fn take_back_start(&self, by: String, limited: bool) {
        if limited {
            // What was staged a moment ago may have ended the start already, and that is the reason then.
            self.end_start_of_others();
            let why = format!("{by} has taken it back");
            self.end_start_if(|it| !it.limited, why, by);
        }
        self.0.scheduled.forget_if(|it| it.limited || !limited);
    }

    /// Makes up for what was not known of a start when it failed, or what an earlier node did not come to: it may have ended
    /// after a version was started, or another one staged, and before it noted this.
    pub(super) async fn settle_failed_start(self, start: ScheduledStart) {
        while !self.knows_slots() {
            tokio::time::sleep(self.0.scheduled.step()).await;
        }
        match self.was_started() {
            true => self.end_start(&start),
            false => self.end_start_of_others(),
        }
    }

    /// Whether the version that was staged last was started since. Outdated facts do not say this: they may be from before
    /// that version was staged.
    fn was_started(&self) -> bool {
        let facts = self.0.facts.load();
        let is_state = matches!(
            facts.update.state.as_str(),
            "pending" | "trial" | "good" | "failed"
        );
        is_state && !facts.update.outdated && self.staged_sha256().is_none()
    }

    fn end_start_if(&self, is_over: impl FnOnce(&ScheduledStart) -> bool, why: String, by: String) {
        if let Some(start) = self.0.scheduled.end_if(is_over, why) {
            tracing::warn!(by = start.by, at = %start.at, failure = start.failure, "a planned start ended");
            self.log_unscheduled(start, by);
        }
    }

    /// Has PID 1 add to the log of updates that a start does not happen.
    fn log_unscheduled(&self, start: ScheduledStart, by: String) {
        let (at, planner, failure) = (start.at, &start.by, &start.failure);
        let request = UpdateRequest::Unscheduled {
            reason: format!("it does not start at {at}, as {planner} had planned: {failure}"),
            version: start.version.clone(),
        };
        let updates = self.clone();
        // A task of its own, because the one of the start ends here.
        tokio::spawn(async move {
            if let Err(error) = updates.send_request(request, &by).await {
                tracing::warn!(%error, "the end of a planned start is not in the log of updates");
            }
        });
    }
}
