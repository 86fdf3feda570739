//! What the machine does by itself about updates, by the configuration.

use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::CallError;
use alknet_init::control::{UpdateAnswer, UpdatePlan, UpdateRecord, UpdateRequest};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::NodeUpdates;
use super::act::StartOrder;
use super::download::planned;
use super::refusal::{StartRefusal, ends_by_staging, is_about_delta, is_busy, may_pass};
use super::schedule::{AutoStep, AutoView, LOOK_PERIOD_S, RefusedStart, StartRemedy, step};
use super::scheduled_start::LATE_S_MAX;
use super::session::StagingOutcome;
use super::stage::{DownloadOrigin, DownloadRequest};
use crate::update_plan::agreed_floor;

/// How often the node decides.
const TICK: Duration = Duration::from_secs(60);
/// How long the node waits, in seconds, after PID 1 refused a start for a reason that may pass, such as a closed vault:
/// each try makes PID 1 read the whole program. After any other reason it waits for [`LOOK_PERIOD_S`].
const START_PAUSE_S: i64 = 600;
/// How long PID 1 is busy at each try of the start, in seconds, before this is a problem: as long as a planned start is
/// tried.
const BUSY_S_MAX: i64 = LATE_S_MAX;
/// Who asks, in the log, if the node does so by itself.
pub(super) const BY: &str = "the machine";

/// Tries of a start, one after the other, at which PID 1 had other work, or which it did not answer.
#[derive(Debug)]
struct BusyTries {
    /// The moments of the first one and of the last one, in Unix time.
    first: i64,
    last: i64,
    /// What came of the last one.
    reason: StartRefusal,
}

/// What the node remembers between two decisions.
#[derive(Debug, Default)]
pub(super) struct AutoMemory {
    /// When the node began to know the time.
    began: Option<i64>,
    /// When it looked at the channel last.
    looked: Option<i64>,
    /// What the channel had.
    found: Option<UpdatePlan>,
    /// SHA-256 of the program of which a delta was not staged: it would most likely end in the same way again, so the
    /// whole program is taken for this one.
    whole: Option<String>,
    /// The last start, if PID 1 refused it.
    refused: Option<RefusedStart>,
    /// The last tries of the start, if PID 1 was busy at them. A refusal of before counts until PID 1 judges the start.
    busy: Option<BusyTries>,
    /// SHA-256 of the program that was staged again because PID 1 refused its start. If this does not help, it most likely
    /// does not help the next time either.
    staged_again: Option<String>,
    /// The version that the node staged by itself. `None` before PID 1 was asked after a start.
    own: Option<String>,
    /// Whether the version that waits is of a caller that may not start versions.
    is_replaceable: bool,
    /// Whether PID 1 was asked who staged the version that waits.
    has_asked: bool,
    /// What it decided last.
    step: Option<AutoStep>,
    /// Why the last look, stage or start failed.
    error: Option<String>,
}

impl AutoMemory {
    /// Brings the moments of what the node waits for up to `now`, in Unix time. The clock may have been set back since they
    /// were noted, and the node would wait for as long as the clock was ahead.
    fn settle_clock(&mut self, now: i64) {
        self.began = Some(self.began.map_or(now, |began| began.min(now)));
        self.looked = self.looked.filter(|looked| *looked <= now);
        if let Some(refused) = &mut self.refused {
            refused.next_try = refused.next_try.min(now + LOOK_PERIOD_S);
        }
        if let Some(busy) = &mut self.busy {
            busy.first = busy.first.min(now);
            busy.last = busy.last.min(now);
        }
    }

    /// The node has staged this version by itself. `before` is the version that the slot had.
    fn note_staged(&mut self, plan: UpdatePlan, before: Option<&str>) {
        self.busy = None;
        let refused = self.refused.take();
        // Only what the slot had of this version was mended by it. A version of another caller there, or a refusal for
        // another reason, must not spend the one time for which this is tried.
        let is_mended = refused.is_some_and(|refused| {
            refused.sha256 == plan.sha256
                && refused.remedy != StartRemedy::Nothing
                && before == Some(refused.version.as_str())
        });
        if is_mended {
            self.staged_again = Some(plan.sha256.clone());
        }
        self.own = Some(plan.to.clone());
        self.is_replaceable = false;
        self.found = Some(plan);
    }

    /// The node could not stage this version.
    fn note_not_staged(&mut self, plan: &UpdatePlan) {
        if let Some(refused) = &mut self.refused
            && refused.sha256 == plan.sha256
            && refused.remedy != StartRemedy::Nothing
        {
            refused.remedy = StartRemedy::StageLater;
        }
    }

    /// PID 1 was busy at a try of the start, or did not answer, at the moment `now` in Unix time: it has not judged the
    /// start.
    fn note_busy(&mut self, error: &CallError, now: i64) {
        let first = self.busy.as_ref().map_or(now, |busy| busy.first);
        self.busy = Some(BusyTries {
            first,
            last: now,
            reason: error.into(),
        });
    }

    /// PID 1 refused to start this version at the moment `now`, in Unix time.
    fn note_refused(&mut self, plan: &UpdatePlan, error: &CallError, now: i64) {
        let is_repeated = self.staged_again.as_ref() == Some(&plan.sha256);
        let pause = match may_pass(error) {
            true => START_PAUSE_S,
            false => LOOK_PERIOD_S,
        };
        self.busy = None;
        self.refused = Some(RefusedStart {
            version: plan.to.clone(),
            sha256: plan.sha256.clone(),
            reason: error.into(),
            remedy: match ends_by_staging(error) && !is_repeated {
                true => StartRemedy::StageAgain,
                false => StartRemedy::Nothing,
            },
            next_try: now + pause,
        });
    }

    /// Why this version, which the machine staged by itself, does not start. `None` while it is about to be staged again
    /// for that, and while PID 1 is busy for a short time.
    fn start_refusal(&self, version: &str) -> Option<&StartRefusal> {
        if self.own.as_deref() != Some(version) {
            return None;
        }
        let refused = self.refused.as_ref().filter(|refused| {
            refused.version == version && refused.remedy != StartRemedy::StageAgain
        });
        let busy = self.busy.as_ref();
        let busy = busy.filter(|busy| busy.last - busy.first >= BUSY_S_MAX);
        let reason = refused.map(|refused| &refused.reason);
        reason.or_else(|| busy.map(|busy| &busy.reason))
    }
}

impl NodeUpdates {
    /// Decides again and again. Never resolves.
    pub(crate) async fn keep_updated(self) {
        if self.0.init.check().is_err() {
            // On a host there is nothing to do, ever.
            return;
        }
        loop {
            tokio::time::sleep(TICK).await;
            self.act().await;
        }
    }

    /// Decides once, and does it.
    pub(super) async fn act(&self) {
        if !self.auto().has_asked {
            self.remember_own().await;
        }
        let now = self.now_s();
        let step = self.decide(now);
        self.auto().step = Some(step.clone());
        let done = match (step, now) {
            (AutoStep::Look, Some(now)) => self.ask_channel(now).await,
            (AutoStep::Stage, _) => self.stage_found().await,
            (AutoStep::Start, Some(now)) => self.start_own(now).await,
            _ => return,
        };
        let error = done.err().map(|error| error.message);
        if let Some(error) = &error {
            tracing::warn!(error, "update.auto");
        }
        self.auto().error = error;
    }

    /// What the machine does at the moment `now`, in Unix time. `None`: it does not know the time.
    fn decide(&self, now: Option<i64>) -> AutoStep {
        let config = self.0.reloader.current();
        let facts = self.0.facts.load();
        let mut auto = self.auto();
        if let Some(now) = now {
            auto.settle_clock(now);
        }
        let other = facts.update.other_version.as_deref();
        step(&AutoView {
            section: &config.config.update,
            identity: &self.0.identity,
            now,
            began: auto.began.unwrap_or_default(),
            looked: auto.looked,
            facts: &facts.update,
            found: auto.found.as_ref(),
            refused: auto.refused.as_ref(),
            was_busy: auto.busy.is_some(),
            is_own: auto.own.is_some() && auto.own.as_deref() == other,
            is_replaceable: auto.is_replaceable,
            // By outdated facts the version of an administrator may be one that does not wait.
            is_busy: self.0.sessions.current().is_some() || facts.update.outdated,
        })
    }

    /// Asks PID 1 who staged the version that waits: the node may have restarted since, or another caller may have staged
    /// one.
    async fn remember_own(&self) {
        // Before the question: a version that is staged meanwhile leads to another one.
        self.auto().has_asked = true;
        let Some(staged) = self.logged_staging().await else {
            self.auto().has_asked = false;
            return;
        };
        // A machine that keeps no data has no log.
        let of_session = self.0.sessions.staged_by();
        let mut auto = self.auto();
        auto.is_replaceable = match &staged {
            Some(record) => record.limited,
            None => of_session.is_some_and(|request| request.limited),
        };
        let own = staged.filter(|record| record.by == BY);
        auto.own = own.map(|record| record.version);
    }

    /// The record of the log about what was staged last. `None` if PID 1 does not answer.
    pub(super) async fn logged_staging(&self) -> Option<Option<UpdateRecord>> {
        let answer = self.0.init.ask(UpdateRequest::Log, BY).await;
        let Ok(UpdateAnswer::Log { records }) = answer else {
            return None;
        };
        let mut records = records.into_iter().rev();
        Some(records.find(|record| record.event == "staged"))
    }

    /// Starts what the machine staged by itself, and nothing that took its place meanwhile. It is decided at the moment
    /// `now`, in Unix time.
    async fn start_own(&self, now: i64) -> Result<(), CallError> {
        let Some(found) = self.auto().found.clone() else {
            return Ok(());
        };
        let order = StartOrder {
            sha256: Some(found.sha256.clone()),
            // That of the channel: no person reads the plan if another caller has brought a higher one.
            agreed_floor: Some(agreed_floor(found.bundle_floor.as_deref())),
            limited: true,
            unasked: true,
        };
        let started = self.start(BY, order).await;
        // The pause counts from the answer: PID 1 may have read the whole program for it.
        let now = self.now_s().unwrap_or(now);
        let mut auto = self.auto();
        match &started {
            Err(error) if is_busy(error) => auto.note_busy(error, now),
            Err(error) => auto.note_refused(&found, error, now),
            Ok(()) => {
                auto.refused = None;
                auto.busy = None;
            }
        }
        started
    }

    /// Asks the channel what it has, at the moment `now` in Unix time.
    async fn ask_channel(&self, now: i64) -> Result<(), CallError> {
        // A look that fails is repeated after the whole period: the channel may be down for a while, and other machines
        // ask it, too.
        self.auto().looked = Some(now);
        let plan = self.stage_from_channel(None).await?;
        self.auto().found = Some(plan);
        Ok(())
    }

    /// Stages what the channel has.
    async fn stage_found(&self) -> Result<(), CallError> {
        // If it fails, the next look decides whether it is tried again.
        let Some(found) = self.auto().found.take() else {
            return Ok(());
        };
        let before = self.0.facts.load().update.other_version.clone();
        match self.stage_from_channel(Some(&found)).await {
            Ok(plan) => {
                tracing::info!(version = plan.to, "update.auto staged");
                self.auto().note_staged(plan, before.as_deref());
                Ok(())
            }
            Err(error) => {
                self.auto().note_not_staged(&found);
                Err(error)
            }
        }
    }

    /// The bundle of the channel, to its end. Without `found`, what the channel had at the last look, PID 1 only looks at
    /// it, and at the whole one: a delta may be left of an earlier release. Otherwise it is that with a delta, unless one
    /// of this program was not staged before.
    async fn stage_from_channel(
        &self,
        found: Option<&UpdatePlan>,
    ) -> Result<UpdatePlan, CallError> {
        let dry_run = found.is_none();
        let request = |whole| DownloadRequest {
            owner: BY.to_owned(),
            by: BY.to_owned(),
            origin: DownloadOrigin::Channel(None),
            downgrade: None,
            dry_run,
            whole,
            anywhere: true,
            // What a dry run finds is judged here, by what the machine left.
            unasked: !dry_run,
            limited: false,
            take_over: false,
        };
        let is_noted = |found: &UpdatePlan| self.auto().whole.as_ref() == Some(&found.sha256);
        let whole = found.is_none_or(is_noted);
        let begun = self.fetch(request(whole)).await?;
        let is_delta = begun.is_delta;
        let ended = planned(self.0.sessions.outcome(begun.session).await);
        let (Err(error), Some(found), true) = (&ended, found, is_delta) else {
            return ended;
        };
        self.auto().whole = Some(found.sha256.clone());
        if !is_about_delta(error) {
            return ended;
        }
        tracing::warn!("the channel's delta is of no use: {}", error.message);
        let begun = self.fetch(request(true)).await?;
        planned(self.0.sessions.outcome(begun.session).await)
    }

    /// Counts how a session ends.
    pub(super) fn watch(&self, session: &std::sync::Arc<super::session::StagingSession>) {
        let updates = self.clone();
        let session = std::sync::Arc::clone(session);
        tokio::spawn(async move {
            let (by, is_dry) = (session.request.by.clone(), session.request.dry_run);
            let outcome = updates.0.sessions.outcome(session).await;
            let attempts = &updates.0.attempts;
            let count = match &outcome {
                StagingOutcome::Planned(_) if is_dry => return,
                StagingOutcome::Planned(_) => &attempts.staged,
                StagingOutcome::Refused { .. } => &attempts.refused,
                StagingOutcome::GivenUp(_) => &attempts.given_up,
            };
            count.fetch_add(1, Ordering::Relaxed);
            match outcome {
                StagingOutcome::Planned(plan) => {
                    tracing::info!(by, version = plan.to, "update.stage");
                    updates.end_start_of_others();
                    if by != BY {
                        // Until PID 1 has said whose it is, it counts as that of an administrator.
                        let mut auto = updates.auto();
                        auto.own = None;
                        auto.is_replaceable = false;
                        auto.has_asked = false;
                    }
                }
                StagingOutcome::Refused { code, text } => {
                    tracing::warn!(by, code, "update.stage refused: {text}");
                }
                StagingOutcome::GivenUp(why) => tracing::warn!(by, "update.stage given up: {why}"),
            }
        });
    }

    /// What `update/status` says about it.
    pub(super) fn auto_shown(&self) -> Value {
        let config = self.0.reloader.current();
        let section = &config.config.update;
        let facts = self.0.facts.load();
        let staged = Some(&facts.update).filter(|facts| facts.state == "staged");
        let staged = staged.and_then(|facts| facts.other_version.as_deref());
        let auto = self.auto();
        // Not in `error`, which the next look replaces: it may be hours until the next try of the start.
        let refusal = staged.and_then(|version| auto.start_refusal(version));
        let (next, at) = auto.step.as_ref().map_or(("off", None), shown);
        json!({
            "mode": section.auto,
            "channel": section.channel,
            "url": section.url,
            "window": section.window,
            "found": auto.found.as_ref().map(|plan| &plan.to),
            "looked": auto.looked.and_then(moment),
            "next": next,
            "at": at.and_then(moment),
            "refusal": refusal,
            "error": auto.error,
        })
    }

    /// What the machine does by itself next, for problems.
    pub(super) fn auto_step(&self) -> Option<AutoStep> {
        self.auto().step.clone()
    }

    /// Why this version, which the machine staged by itself, does not start, for problems.
    pub(super) fn start_refusal(&self, version: &str) -> Option<StartRefusal> {
        self.auto().start_refusal(version).cloned()
    }
}

fn moment(seconds: i64) -> Option<String> {
    Some(Timestamp::from_second(seconds).ok()?.to_string())
}

/// The step in one word, and its moment.
fn shown(step: &AutoStep) -> (&'static str, Option<i64>) {
    match step {
        AutoStep::Off => ("off", None),
        AutoStep::NoSlots => ("no-slots", None),
        AutoStep::NoClock => ("no-clock", None),
        AutoStep::Busy => ("busy", None),
        AutoStep::WaitsForAdministrator => ("waits-for-administrator", None),
        AutoStep::WaitsForPerson => ("waits-for-person", None),
        AutoStep::FailedBefore => ("failed-before", None),
        AutoStep::LeftBefore => ("left-before", None),
        AutoStep::LookAt(at) => ("look", Some(*at)),
        AutoStep::Look => ("look", None),
        AutoStep::Stage => ("stage", None),
        AutoStep::StartAt(at) => ("start", Some(*at)),
        AutoStep::Start => ("start", None),
        AutoStep::StartRefused(at) => ("start-refused", Some(*at)),
    }
}
