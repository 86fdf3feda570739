//! What the node remembers between two decisions about the machine's own updates.

use std::time::Duration;

use alknet_call::CallError;
use alknet_init::control::{UpdateFacts, UpdatePlan};

use super::blocked::BlockedUpdates;
use super::refusal::{StartRefusal, ends_by_staging, may_pass};
use super::schedule::{AutoStep, LOOK_PERIOD_S, RefusedStart, StartRemedy};
use super::waiting::{is_own, waiting_version};

/// How long the node waits, in seconds, after PID 1 refused a start for a reason that may pass, such as a closed vault:
/// each try makes PID 1 read the whole program. After any other reason it waits for [`LOOK_PERIOD_S`].
const START_PAUSE_S: i64 = 600;

/// When the node looked at the channel last, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct LookMoments {
    looked: Option<i64>,
    looked_steady: Option<Duration>,
}

/// What the node remembers between two decisions.
#[derive(Debug, Default)]
pub(super) struct AutoMemory {
    /// When the node began to know the time.
    pub(super) began: Option<i64>,
    /// When it looked at the channel last, other than by a look that was blocked.
    pub(super) looked: Option<i64>,
    /// The same two moments by the [`SteadyClock`](super::blocked::SteadyClock).
    began_steady: Option<Duration>,
    looked_steady: Option<Duration>,
    /// What the channel had.
    pub(super) found: Option<UpdatePlan>,
    /// SHA-256 of the program of which a delta was not staged: it would most likely end in the same way again, so the
    /// whole program is taken for this one.
    pub(super) whole: Option<String>,
    /// The last start, if PID 1 refused it. It counts until PID 1 judges the next one.
    pub(super) refused: Option<RefusedStart>,
    /// The tries that others blocked.
    pub(super) blocked: BlockedUpdates,
    /// Whether the look or the staging that was decided last keeps a start away if it is blocked.
    pub(super) is_before_start: bool,
    /// The caller that has ended the session of the try under way.
    pub(super) interrupted: Option<String>,
    /// SHA-256 of the program that was staged again because PID 1 refused its start. If this does not help, it most likely
    /// does not help the next time either.
    staged_again: Option<String>,
    /// What it decided last.
    pub(super) step: Option<AutoStep>,
    /// Why the last look, stage or start failed.
    pub(super) error: Option<String>,
}

impl AutoMemory {
    /// Brings the moments of what the node waits for up to `now`, in Unix time. The clock may have been set back since they
    /// were noted, and the node would wait for as long as the clock was ahead.
    pub(super) fn settle_clock(&mut self, now: i64, steady: Duration) {
        self.began_steady.get_or_insert(steady);
        self.began = Some(self.began.map_or(now, |began| began.min(now)));
        self.looked = self.looked.filter(|looked| *looked <= now);
        if let Some(refused) = &mut self.refused {
            refused.next_try = refused.next_try.min(now + LOOK_PERIOD_S);
        }
    }

    /// The node looks at the channel at the moment `now`, in Unix time. Returns the look before.
    pub(super) fn note_look(&mut self, now: i64, steady: Duration) -> LookMoments {
        LookMoments {
            looked: self.looked.replace(now),
            looked_steady: self.looked_steady.replace(steady),
        }
    }

    /// The look was blocked, so the one before is still the last one.
    pub(super) fn forget_look(&mut self, before: LookMoments) {
        self.looked = before.looked;
        self.looked_steady = before.looked_steady;
    }

    /// Seconds until the next look is due by the steady clock, at its moment `steady`. Before the first look this is what
    /// is left of `delay`, in seconds.
    pub(super) fn look_left_s(&self, steady: Duration, delay: i64) -> i64 {
        let (begin, pause) = match self.looked_steady {
            Some(looked) => (looked, LOOK_PERIOD_S),
            None => (self.began_steady.unwrap_or(steady), delay),
        };
        let passed = steady.saturating_sub(begin).as_secs();
        pause.saturating_sub_unsigned(passed).max(0)
    }

    /// The node has staged this version by itself. `before` is the version that waited before.
    pub(super) fn note_staged(&mut self, plan: UpdatePlan, before: Option<&str>) {
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
        self.found = Some(plan);
    }

    /// The node could not stage this version, which the channel had at the last look.
    pub(super) fn note_not_staged(&mut self, plan: UpdatePlan, is_blocked: bool) {
        if is_blocked {
            // It was not judged: the next try is of the same version.
            self.found = Some(plan);
        } else if let Some(refused) = &mut self.refused
            && refused.sha256 == plan.sha256
            && refused.remedy != StartRemedy::Nothing
        {
            refused.remedy = StartRemedy::StageLater;
        }
    }

    /// PID 1 refused to start this version at the moment `now`, in Unix time.
    pub(super) fn note_refused(&mut self, plan: &UpdatePlan, error: &CallError, now: i64) {
        let is_repeated = self.staged_again.as_ref() == Some(&plan.sha256);
        let pause = match may_pass(error) {
            true => START_PAUSE_S,
            false => LOOK_PERIOD_S,
        };
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

    /// Why the version that waits, which the machine staged by itself, does not start. `None` while it is about to be staged
    /// again for that.
    pub(super) fn start_refusal(&self, facts: &UpdateFacts) -> Option<&StartRefusal> {
        let version = waiting_version(facts).filter(|_| is_own(facts))?;
        let refused = self.refused.as_ref().filter(|refused| {
            refused.version == version && refused.remedy != StartRemedy::StageAgain
        });
        refused.map(|refused| &refused.reason)
    }
}
