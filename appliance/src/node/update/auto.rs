//! What the machine does by itself about updates, by the configuration.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::CallError;
use alknet_core::config::AutoUpdate;
use alknet_init::control::{UpdateFacts, UpdatePlan};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::NodeUpdates;
use super::act::StartOrder;
use super::auto_memory::AutoMemory;
use super::blocked::{AutoTry, SentProgram, is_start_near};
use super::download::planned;
use super::refusal::{StartRefusal, is_about_delta, is_unanswered, waits_for_other};
use super::schedule::{AutoStep, AutoView, own_delay, step};
use super::session::{SessionTurn, StagingOutcome};
use super::stage::{BegunDownload, DownloadOrigin, DownloadRequest, LOOK_STEP};
use super::waiting::{is_own, is_replaceable, waiting_version};
use crate::update_plan::agreed_floor;

/// How often the node decides.
const TICK: Duration = Duration::from_secs(60);
/// Who asks, in the log, if the node does so by itself.
pub(super) const BY: &str = "the machine";

/// What came of a bundle of the channel.
struct ChannelStaging {
    ended: Result<UpdatePlan, CallError>,
    /// Whether it was the bundle with a delta.
    is_delta: bool,
    /// The turn after its session, if the version may start by itself and no other caller took it.
    turn: Option<SessionTurn>,
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
        let now = self.now_s();
        let step = self.decide(now);
        self.auto().step = Some(step.clone());
        match (step, now) {
            (AutoStep::Look, Some(now)) => self.ask_channel(now).await,
            (AutoStep::Stage, Some(_)) => self.stage_and_start().await,
            (AutoStep::Start, Some(now)) => self.start_own(now).await,
            _ => {}
        }
    }

    /// What the machine does at the moment `now`, in Unix time. `None`: it does not know the time.
    fn decide(&self, now: Option<i64>) -> AutoStep {
        let config = self.0.reloader.current();
        let facts = self.0.facts.load();
        self.note_failure(&facts);
        let left = self.noted_left();
        let steady = self.steady_now();
        // By outdated facts the version of an administrator may be one that does not wait.
        let is_busy = self.0.sessions.current().is_some() || facts.update.outdated;
        let blocked = self.current_block();
        let mut auto = self.auto();
        if let Some(now) = now {
            auto.settle_clock(now, steady);
        }
        let again = |kind| {
            let pause = auto.blocked.pause_left_s(kind, steady);
            pause.zip(now).map(|(pause, now)| now + pause)
        };
        let delay = own_delay(&self.0.identity, config.config.update.jitter);
        let view = AutoView {
            section: &config.config.update,
            identity: &self.0.identity,
            now,
            began: auto.began.unwrap_or_default(),
            looked: auto.looked,
            look_left: auto.look_left_s(steady, delay),
            look_again: again(AutoTry::Look),
            stage_again: again(AutoTry::Stage),
            facts: &facts.update,
            waiting: waiting_version(&facts.update),
            left: &left,
            found: auto.found.as_ref(),
            refused: auto.refused.as_ref(),
            was_blocked: auto.blocked.has(AutoTry::Start),
            is_own: is_own(&facts.update),
            is_replaceable: is_replaceable(&facts),
            is_busy: false,
        };
        let wanted = step(&view);
        let decided = step(&AutoView { is_busy, ..view });
        let is_before_start =
            matches!(wanted, AutoStep::Look | AutoStep::Stage) && is_start_near(&view);
        auto.is_before_start = is_before_start;
        // Outdated facts do not say what the machine does not want any more. What it wanted before still counts as blocked: a
        // caller that begins one session after the other keeps PID 1 from reading the slots.
        if !facts.update.outdated {
            // In the place of a client's version the machine still wants its own, until a look says otherwise.
            let is_kept = is_own(&facts.update) || auto.found.is_none();
            let is_staged = facts.update.state == "staged" && is_kept;
            auto.blocked.end_unwanted(&wanted, is_staged);
            if config.config.update.auto != AutoUpdate::Apply {
                auto.blocked.end(AutoTry::Start);
            }
        }
        if let (Some(kind), AutoStep::Busy) = (AutoTry::of_step(&wanted), &decided) {
            if is_before_start {
                let start = blocked.clone();
                auto.blocked.note_wait(AutoTry::Start, steady, start);
            }
            auto.blocked.note_wait(kind, steady, blocked);
        }
        decided
    }

    /// Notes how a try of the machine itself ended; `sent` is the program of a staging. Returns whether another caller or
    /// PID 1's other work blocked it.
    fn end_try(&self, kind: AutoTry, error: Option<&CallError>, sent: Option<SentProgram>) -> bool {
        let blocked = error.and_then(|error| self.find_block(error));
        if let Some(error) = error {
            tracing::warn!(error = error.message, "update.auto");
        }
        let (now, is_blocked) = (self.steady_now(), blocked.is_some());
        let mut auto = self.auto();
        match blocked {
            Some(blocked) => {
                if auto.is_before_start && kind != AutoTry::Start {
                    let start = blocked.clone();
                    auto.blocked.note_wait(AutoTry::Start, now, start);
                }
                let is_slow = blocked.by.is_none() && error.is_some_and(is_unanswered);
                match sent.filter(|_| is_slow) {
                    Some(program) => auto.blocked.note_slow_staging(now, blocked, program),
                    None => auto.blocked.note_try(kind, now, blocked),
                }
            }
            // A start that this kept away counts until PID 1 judges one.
            None => auto.blocked.end(kind),
        }
        auto.error = error.map(|error| error.message.clone());
        is_blocked
    }

    /// Starts what the machine staged by itself, and nothing that took its place meanwhile. It is decided at the moment
    /// `now`, in Unix time.
    async fn start_own(&self, now: i64) {
        let Some(found) = self.begin_try().found.clone() else {
            return;
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
        let is_blocked = self.end_try(AutoTry::Start, started.as_ref().err(), None);
        let mut auto = self.auto();
        match &started {
            Ok(()) => auto.refused = None,
            Err(error) if !is_blocked => auto.note_refused(&found, error, now),
            Err(_) => {}
        }
    }

    /// Begins a look, a staging or a start.
    fn begin_try(&self) -> MutexGuard<'_, AutoMemory> {
        let mut auto = self.auto();
        auto.interrupted = None;
        auto
    }

    /// Asks the channel what it has, at the moment `now` in Unix time.
    async fn ask_channel(&self, now: i64) {
        // A look that fails is repeated after the whole period: the channel may be down for a while, and other machines
        // ask it, too.
        let steady = self.steady_now();
        let before = self.begin_try().note_look(now, steady);
        let ended = self.stage_from_channel(None).await.ended;
        let is_blocked = self.end_try(AutoTry::Look, ended.as_ref().err(), None);
        let mut auto = self.auto();
        match ended {
            Ok(plan) => {
                auto.blocked.note_found(&plan.sha256);
                auto.found = Some(plan);
            }
            // One that another caller blocked says nothing of the channel, and is repeated after a short pause.
            Err(_) if is_blocked => auto.forget_look(before),
            Err(_) => {}
        }
    }

    /// Stages what the channel has, and starts it at once if its start is due. Otherwise a caller that begins one session
    /// after the other would have PID 1 busy, or another version in the slot, at the next decision.
    async fn stage_and_start(&self) {
        // If it fails, the next look decides whether it is tried again.
        let Some(found) = self.begin_try().found.take() else {
            return;
        };
        let facts = self.0.facts.load_full();
        let before = waiting_version(&facts.update);
        let staging = self.stage_from_channel(Some(&found)).await;
        let sent = SentProgram {
            sha256: found.sha256.clone(),
            is_delta: staging.is_delta,
        };
        let is_blocked = self.end_try(AutoTry::Stage, staging.ended.as_ref().err(), Some(sent));
        let plan = match staging.ended {
            Ok(plan) => plan,
            Err(error) => {
                // An administrator staged another version since this was decided. The machine waits, and PID 1 has not said
                // that its own version is of no use.
                let is_kept = is_blocked || waits_for_other(&error);
                return self.auto().note_not_staged(found, is_kept);
            }
        };
        tracing::info!(version = plan.to, "update.auto staged");
        self.auto().note_staged(plan, before);
        self.wait_for_facts().await;
        let now = self.now_s();
        if let (AutoStep::Start, Some(now)) = (self.decide(now), now) {
            self.auto().step = Some(AutoStep::Start);
            self.start_own(now).await;
        }
        // Until here no other session could begin.
        drop(staging.turn);
    }

    /// Waits for a short time until PID 1 has read the slots since they changed.
    pub(super) async fn wait_for_facts(&self) {
        let known = async {
            while self.0.facts.load().update.outdated {
                tokio::time::sleep(LOOK_STEP).await;
            }
        };
        let longest = self.0.sessions.pace.slots;
        // Without the facts the next decision follows in a minute.
        tokio::time::timeout(longest, known).await.ok();
    }

    /// The bundle of the channel, to its end. Without `found`, what the channel had at the last look, PID 1 only looks at
    /// it, and at the whole one: a delta may be left of an earlier release. Otherwise it is that with a delta, unless one
    /// of this program was not staged before.
    async fn stage_from_channel(&self, found: Option<&UpdatePlan>) -> ChannelStaging {
        let is_noted = |found: &UpdatePlan| self.auto().whole.as_ref() == Some(&found.sha256);
        let whole = found.is_none_or(is_noted);
        let staging = self.carry_from_channel(found.is_none(), whole).await;
        let (Err(error), Some(found), true) = (&staging.ended, found, staging.is_delta) else {
            return staging;
        };
        // What another caller blocked, or what it has staged, is not the fault of the delta. One that PID 1 did not finish in
        // time may be too much for the disk, so the next try is without it.
        let is_blocked = self.find_block(error).is_some() && !is_unanswered(error);
        if is_blocked || waits_for_other(error) {
            return staging;
        }
        self.auto().whole = Some(found.sha256.clone());
        if !is_about_delta(error) {
            return staging;
        }
        tracing::warn!("the channel's delta is of no use: {}", error.message);
        // The turn would keep the machine itself from the next session.
        drop(staging);
        self.carry_from_channel(false, true).await
    }

    /// One bundle of the channel, to the end of its session.
    async fn carry_from_channel(&self, dry_run: bool, whole: bool) -> ChannelStaging {
        let request = DownloadRequest {
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
        let BegunDownload {
            session, is_delta, ..
        } = match self.fetch(request).await {
            Ok(begun) => begun,
            Err(error) => {
                return ChannelStaging {
                    ended: Err(error),
                    is_delta: false,
                    turn: None,
                };
            }
        };
        let sessions = &self.0.sessions;
        let mode = self.0.reloader.current().config.update.auto;
        let starts = mode == AutoUpdate::Apply && !dry_run;
        let claim = starts.then(|| sessions.claim_turn(&session));
        let ended = planned(sessions.outcome(session).await);
        let turn = match claim {
            Some(claim) => claim.await.ok(),
            None => None,
        };
        ChannelStaging {
            ended,
            is_delta,
            turn,
        }
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
                StagingOutcome::GivenUp(_) | StagingOutcome::Unanswered(_) => &attempts.given_up,
            };
            count.fetch_add(1, Ordering::Relaxed);
            match outcome {
                StagingOutcome::Planned(plan) => {
                    tracing::info!(by, version = plan.to, "update.stage");
                    updates.end_start_of_others();
                }
                StagingOutcome::Refused { code, text } => {
                    tracing::warn!(by, code, "update.stage refused: {text}");
                }
                StagingOutcome::GivenUp(why) | StagingOutcome::Unanswered(why) => {
                    tracing::warn!(by, "update.stage given up: {why}");
                }
            }
        });
    }

    /// What `update/status` says about it.
    pub(super) fn auto_shown(&self) -> Value {
        let config = self.0.reloader.current();
        let section = &config.config.update;
        let facts = self.0.facts.load();
        let auto = self.auto();
        // Not in `error`, which the next look replaces: it may be hours until the next try of the start.
        let refusal = auto.start_refusal(&facts.update);
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
            "blocked": auto.blocked.shown(),
            "error": auto.error,
        })
    }

    /// What the machine does by itself next, for problems.
    pub(super) fn auto_step(&self) -> Option<AutoStep> {
        self.auto().step.clone()
    }

    /// What the problem says about tries that others blocked.
    pub(super) fn blocked_text(&self) -> Option<String> {
        self.auto().blocked.text()
    }

    /// Why the version that waits, which the machine staged by itself, does not start, for problems.
    pub(super) fn start_refusal(&self, facts: &UpdateFacts) -> Option<StartRefusal> {
        self.auto().start_refusal(facts).cloned()
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
        AutoStep::StageAt(at) => ("stage", Some(*at)),
        AutoStep::StartAt(at) => ("start", Some(*at)),
        AutoStep::Start => ("start", None),
        AutoStep::StartRefused(at) => ("start-refused", Some(*at)),
    }
}
