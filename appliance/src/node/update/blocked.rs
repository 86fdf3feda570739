//! The machine's own looks at its channel, stagings and starts that other callers block: a caller that keeps the one
//! session or PID 1 busy must not keep a machine from its updates unseen.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::CallError;
use alknet_core::config::AutoUpdate;
use serde_json::{Value, json};

use super::NodeUpdates;
use super::auto::BY;
use super::refusal::is_busy;
use super::schedule::{AutoStep, AutoView, LOOK_PERIOD_S, next_start, own_delay, step};

/// How long the tries of one kind are blocked before this is a problem.
pub(super) const BLOCKED_MAX: Duration = Duration::from_secs(3600);
/// The longest pause between two blocked tries that counts as blocked. The machine tries each kind more often while it
/// wants it; outside its window it tries no start. A pause that it has made longer itself counts as well.
const GAP_MAX: Duration = Duration::from_secs(900);
/// How long the machine waits after a look or a staging that was blocked: the channel is asked for each try.
pub(super) const BLOCKED_PAUSE: Duration = Duration::from_secs(600);

/// The longest pause between two stagings of a program that PID 1 does not finish in time.
const SLOW_PAUSE_MAX: Duration = Duration::from_secs(LOOK_PERIOD_S.unsigned_abs());

/// What tells the time since the node began. It goes on whatever a time server or a person does with the clock.
pub(super) type SteadyClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the machine does by itself, and others can block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AutoTry {
    Look,
    Stage,
    Start,
}

impl AutoTry {
    const ALL: [Self; 3] = [Self::Look, Self::Stage, Self::Start];

    /// The one that a step is, if it needs the session or PID 1.
    pub(super) fn of_step(step: &AutoStep) -> Option<Self> {
        match step {
            AutoStep::Look => Some(Self::Look),
            AutoStep::Stage => Some(Self::Stage),
            AutoStep::Start => Some(Self::Start),
            _ => None,
        }
    }

    /// The word for it in the status.
    fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Stage => "stage",
            Self::Start => "start",
        }
    }

    /// What it does, for people.
    fn purpose(self) -> &'static str {
        match self {
            Self::Look => "look at its channel",
            Self::Stage => "stage the version of its channel",
            Self::Start => "start the version of its channel",
        }
    }

    fn pause(self) -> Duration {
        match self {
            Self::Look | Self::Stage => BLOCKED_PAUSE,
            // A window may be short, and PID 1 refuses this at once.
            Self::Start => Duration::ZERO,
        }
    }
}

/// A try that was blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockedTry {
    /// The caller that had the session, or a request that PID 1 worked on. `None` if it is not known, or if it was none:
    /// PID 1 is busy also while it changes the vault.
    pub(super) by: Option<String>,
    pub(super) reason: String,
}

/// Tries of one kind that were blocked, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BlockedTries {
    /// The moment of the last one, by the [`SteadyClock`].
    last: Duration,
    /// The time from the first one to the last one, in which each pause counts up to [`GAP_MAX`].
    lasted: Duration,
    /// There is no further try before this moment.
    next_try: Duration,
    /// The last one.
    blocked: BlockedTry,
    /// The last caller that was known, and how long the tries had lasted then.
    known: Option<(String, Duration)>,
}

impl BlockedTries {
    /// The pause after the last one.
    fn pause(&self) -> Duration {
        self.next_try.saturating_sub(self.last)
    }

    /// The last caller that was known, if it blocked none of the last tries itself. One of more than [`BLOCKED_MAX`] ago has
    /// no part in the problem any more.
    fn earlier(&self) -> Option<&str> {
        let (by, lasted) = self.known.as_ref()?;
        let is_recent = self.lasted - *lasted < BLOCKED_MAX;
        (self.blocked.by.is_none() && is_recent).then_some(by.as_str())
    }
}

/// A program on its way to its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SentProgram {
    /// SHA-256 of the program, in hex.
    pub(super) sha256: String,
    /// Whether PID 1 gets a delta, and makes the program of it.
    pub(super) is_delta: bool,
}

/// Stagings of one program that PID 1 did not finish in time, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SlowStagings {
    program: SentProgram,
    /// The pause after the next one.
    next_pause: Duration,
}

/// The blocked tries of each kind. A kind has none once a try of it goes through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockedUpdates {
    tries: [Option<BlockedTries>; 3],
    /// Whether the last blocked staging was one of these.
    slow: Option<SlowStagings>,
}

impl BlockedUpdates {
    /// A try of this kind was blocked at the moment `now`. The next one comes after a pause.
    pub(super) fn note_try(&mut self, kind: AutoTry, now: Duration, blocked: BlockedTry) {
        if kind == AutoTry::Stage {
            self.slow = None;
        }
        self.note(kind, now, kind.pause(), blocked);
    }

    /// The same for a staging of this program that PID 1 did not finish in time, although no other caller had it busy: the
    /// disk may be too slow for the program, and each staging writes all of it. Each further one of the same program doubles
    /// the pause, up to that between two looks. A delta and the whole program are different work for the disk.
    pub(super) fn note_slow_staging(
        &mut self,
        now: Duration,
        blocked: BlockedTry,
        program: SentProgram,
    ) {
        let before = self.slow.take().filter(|slow| slow.program == program);
        let pause = before.map_or(BLOCKED_PAUSE, |slow| slow.next_pause);
        self.note(AutoTry::Stage, now, pause, blocked);
        self.slow = Some(SlowStagings {
            program,
            next_pause: (pause * 2).min(SLOW_PAUSE_MAX),
        });
    }

    /// The channel has this program, by its SHA-256. If another one was too much for the disk, this one may be not, so it
    /// does not wait longer than after any other blocked staging.
    pub(super) fn note_found(&mut self, sha256: &str) {
        let slow = self.slow.take_if(|slow| slow.program.sha256 != sha256);
        if slow.is_some()
            && let Some(tries) = &mut self.tries[AutoTry::Stage as usize]
        {
            tries.next_try = tries.next_try.min(tries.last + BLOCKED_PAUSE);
        }
    }

    /// At the moment `now` there is no try of this kind, because it would be blocked. That the session or PID 1 is free
    /// costs nothing to see, so this begins no pause.
    pub(super) fn note_wait(&mut self, kind: AutoTry, now: Duration, blocked: BlockedTry) {
        self.note(kind, now, Duration::ZERO, blocked);
    }

    fn note(&mut self, kind: AutoTry, now: Duration, pause: Duration, blocked: BlockedTry) {
        let before = self.tries[kind as usize].take();
        let (lasted, known) = match before {
            Some(before) => {
                // A pause that the machine itself made longer counts as a whole.
                let longer = before.pause().saturating_sub(kind.pause());
                let gap = now.saturating_sub(before.last).min(GAP_MAX + longer);
                (before.lasted + gap, before.known)
            }
            None => (Duration::ZERO, None),
        };
        let known = blocked.by.clone().map(|by| (by, lasted)).or(known);
        self.tries[kind as usize] = Some(BlockedTries {
            last: now,
            lasted,
            next_try: now + pause,
            blocked,
            known,
        });
    }

    /// A try of this kind went through.
    pub(super) fn end(&mut self, kind: AutoTry) {
        self.tries[kind as usize] = None;
        if kind == AutoTry::Stage {
            self.slow = None;
        }
    }

    /// Forgets the kinds that the machine does not want any more, by what it would do if it were not blocked.
    pub(super) fn end_unwanted(&mut self, step: &AutoStep, is_staged: bool) {
        let unwanted: &[AutoTry] = match step {
            AutoStep::Off | AutoStep::NoSlots => &AutoTry::ALL,
            AutoStep::WaitsForAdministrator
            | AutoStep::WaitsForPerson
            | AutoStep::FailedBefore
            | AutoStep::LeftBefore => &[AutoTry::Stage, AutoTry::Start],
            // The channel has nothing to stage. What is staged waits until a look has said what its start needs.
            AutoStep::LookAt(_) if is_staged => &[AutoTry::Stage],
            AutoStep::LookAt(_) => &[AutoTry::Stage, AutoTry::Start],
            AutoStep::Busy
            | AutoStep::Look
            | AutoStep::NoClock
            | AutoStep::Stage
            | AutoStep::StageAt(_)
            | AutoStep::Start
            | AutoStep::StartAt(_)
            | AutoStep::StartRefused(_) => &[],
        };
        for kind in unwanted {
            self.end(*kind);
        }
    }

    /// Whether the last try of this kind was blocked.
    pub(super) fn has(&self, kind: AutoTry) -> bool {
        self.tries[kind as usize].is_some()
    }

    /// Seconds until the next try of this kind, rounded up. `None` if there is no pause at the moment `now`.
    pub(super) fn pause_left_s(&self, kind: AutoTry, now: Duration) -> Option<i64> {
        let tries = self.tries[kind as usize].as_ref()?;
        let left = tries.next_try.checked_sub(now)?;
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        i64::try_from(seconds).ok().filter(|seconds| *seconds > 0)
    }

    /// The first kind whose tries have been blocked for [`BLOCKED_MAX`], and these tries.
    fn find_lasting(&self) -> Option<(AutoTry, &BlockedTries)> {
        let mut kinds = AutoTry::ALL.into_iter();
        kinds.find_map(|kind| {
            let tries = self.tries[kind as usize].as_ref()?;
            (tries.lasted >= BLOCKED_MAX).then_some((kind, tries))
        })
    }

    /// What the problem says. `None` if no kind has been blocked for so long.
    pub(super) fn text(&self) -> Option<String> {
        let (kind, tries) = self.find_lasting()?;
        let BlockedTry { by, reason } = &tries.blocked;
        let had = "had the session for a bundle, or a request at PID 1";
        let by = match (by, tries.earlier()) {
            (Some(by), _) => format!("; {by} {had}"),
            (None, Some(earlier)) => format!("; earlier, {earlier} {had}"),
            (None, None) => String::new(),
        };
        let purpose = kind.purpose();
        Some(format!(
            "for an hour this machine has not been able to {purpose}, at each of its tries: {reason}{by}"
        ))
    }

    /// What `update/status` says about it.
    pub(super) fn shown(&self) -> Value {
        let (Some((kind, tries)), Some(text)) = (self.find_lasting(), self.text()) else {
            return Value::Null;
        };
        let (by, earlier) = (&tries.blocked.by, tries.earlier());
        json!({ "step": kind.name(), "by": by, "earlier": earlier, "text": text })
    }
}

/// Whether the version of the channel would start now if neither a look nor its staging were in the way. A caller that
/// puts another version into the slot before the window, and has the session until the window is over, keeps the start
/// away as well: the machine only comes to stage its version, and never to the start.
pub(super) fn is_start_near(view: &AutoView<'_>) -> bool {
    let Some(now) = view.now else {
        return false;
    };
    let section = view.section;
    let delay = own_delay(view.identity, section.jitter);
    let is_open = next_start(now, section.window, delay) <= now;
    let needs_person = view.found.is_none_or(|plan| plan.needs_person.is_some());
    let unblocked = AutoView {
        looked: Some(now),
        look_left: i64::MAX,
        look_again: None,
        stage_again: None,
        is_busy: false,
        ..*view
    };
    section.auto == AutoUpdate::Apply
        && is_open
        && !needs_person
        && matches!(step(&unblocked), AutoStep::Stage | AutoStep::Start)
}

impl NodeUpdates {
    /// The time since the node began.
    pub(super) fn steady_now(&self) -> Duration {
        (self.0.steady)()
    }

    /// The caller that has the session now, or whose request PID 1 works on. Not the machine itself.
    fn blocking_caller(&self) -> Option<String> {
        let session = self.0.sessions.current();
        let of_session = session.map(|session| session.request.by.clone());
        let of_session = of_session.filter(|by| by != BY);
        of_session.or_else(|| self.0.init.blocking_caller(BY))
    }

    /// Why nothing is tried now: a session is under way, or PID 1 has not read the slots since one.
    pub(super) fn current_block(&self) -> BlockedTry {
        let reason = match self.0.sessions.current().is_some() {
            true => "another update was being sent",
            false => "PID 1 had not read the boot slots since they changed",
        };
        BlockedTry {
            by: self.blocking_caller(),
            reason: reason.to_owned(),
        }
    }

    /// The caller `by` is about to end the session under way. If it is the machine's own, its end is no judgement about
    /// the version.
    pub(super) fn note_interruption(&self, by: &str) {
        let session = self.0.sessions.current();
        if session.is_some_and(|session| session.request.owner == BY) {
            self.auto().interrupted = Some(by.to_owned());
        }
    }

    /// What blocked a try of the machine itself that ended with this error. `None` if it was not blocked.
    pub(super) fn find_block(&self, error: &CallError) -> Option<BlockedTry> {
        let interrupted = self.auto().interrupted.clone();
        // A session that PID 1 has judged was not interrupted, and the refusal has a code.
        let interrupted = interrupted.filter(|_| error.details.is_none());
        let by = match interrupted {
            None if !is_busy(error) => return None,
            None => self.blocking_caller(),
            interrupted => interrupted,
        };
        Some(BlockedTry {
            by,
            reason: error.message.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    fn by(by: Option<&str>) -> BlockedTry {
        BlockedTry {
            by: by.map(str::to_owned),
            reason: "another update was being sent".to_owned(),
        }
    }

    /// The same as the machine tries it: a look each ten minutes, a start each minute.
    #[test]
    fn an_hour_of_blocked_tries_is_a_problem_until_one_goes_through() {
        for (kind, pause) in [
            (AutoTry::Look, 10),
            (AutoTry::Stage, 10),
            (AutoTry::Start, 1),
        ] {
            let mut blocked = BlockedUpdates::default();
            for at in (0..60).step_by(pause) {
                blocked.note_try(kind, minutes(at), by(Some("eve")));
                assert_eq!(blocked.text(), None, "{kind:?} {at}");
            }
            blocked.note_try(kind, minutes(60), by(Some("eve")));
            let (lasting, tries) = blocked.find_lasting().expect("a problem");
            let last = tries.blocked.by.as_deref();
            assert_eq!((lasting, last), (kind, Some("eve")));
            // A try of another kind says nothing of this one.
            for other in AutoTry::ALL.into_iter().filter(|other| *other != kind) {
                blocked.end(other);
            }
            let text = blocked.text().expect("a problem");
            assert!(
                text.contains(kind.purpose()) && text.contains("eve"),
                "{text}"
            );
            assert_eq!(blocked.shown()["step"], kind.name());
            blocked.end(kind);
            assert_eq!(blocked, BlockedUpdates::default());
            assert_eq!(blocked.shown(), Value::Null);
            // The next row begins with its first try.
            blocked.note_try(kind, minutes(61), by(Some("eve")));
            assert_eq!(blocked.text(), None);
        }
    }

    /// Two lost races, a day apart, are no day of blocked tries. A window of half an hour that is blocked each night is
    /// seen in the second night.
    #[test]
    fn the_time_without_tries_counts_for_little() {
        let mut rare = BlockedUpdates::default();
        rare.note_try(AutoTry::Start, minutes(0), by(None));
        rare.note_try(AutoTry::Start, minutes(24 * 60), by(None));
        assert_eq!(rare.find_lasting(), None);
        let mut nights = BlockedUpdates::default();
        let mut seen = None;
        for night in 0..3_u64 {
            for minute in 0..30 {
                nights.note_try(AutoTry::Start, minutes(night * 24 * 60 + minute), by(None));
                seen = seen.or_else(|| nights.find_lasting().map(|_| night));
            }
        }
        assert_eq!(seen, Some(1));
    }

    /// Eve sent bundles, and then an administrator changed the vault for hours.
    #[test]
    fn a_caller_of_earlier_tries_is_named_as_such_and_not_for_ever() {
        let mut blocked = BlockedUpdates::default();
        for (at, caller) in [(0, Some("ada")), (15, Some("eve")), (30, None), (45, None)] {
            blocked.note_try(AutoTry::Look, minutes(at), by(caller));
        }
        blocked.note_wait(AutoTry::Look, minutes(60), by(None));
        let shown = blocked.shown();
        assert_eq!(
            (&shown["by"], &shown["earlier"]),
            (&Value::Null, &json!("eve"))
        );
        let text = blocked.text().expect("a problem");
        assert!(text.contains("; earlier, eve had the session"), "{text}");
        blocked.note_try(AutoTry::Look, minutes(75), by(None));
        assert_eq!(blocked.shown()["earlier"], Value::Null);
        let text = blocked.text().expect("a problem");
        assert!(text.ends_with("another update was being sent"), "{text}");
        blocked.note_try(AutoTry::Look, minutes(80), by(Some("eve")));
        let shown = blocked.shown();
        assert_eq!(
            (&shown["by"], &shown["earlier"]),
            (&json!("eve"), &Value::Null)
        );
        // Work of PID 1 with the vault has no caller.
        let mut vault = BlockedUpdates::default();
        for at in (0..=60).step_by(5) {
            vault.note_try(AutoTry::Start, minutes(at), by(None));
        }
        let text = vault.text().expect("a problem");
        assert!(text.ends_with("another update was being sent"), "{text}");
        assert_eq!(vault.shown()["by"], Value::Null);
    }

    #[test]
    fn a_blocked_look_or_staging_is_tried_again_ten_minutes_later() {
        let mut blocked = BlockedUpdates::default();
        let now = minutes(7) + Duration::from_millis(1);
        for kind in [AutoTry::Look, AutoTry::Stage] {
            assert_eq!(blocked.pause_left_s(kind, now), None);
            blocked.note_try(kind, now, by(None));
            assert_eq!(blocked.pause_left_s(kind, now), Some(600));
            assert_eq!(blocked.pause_left_s(kind, minutes(17)), Some(1));
            assert_eq!(blocked.pause_left_s(kind, minutes(18)), None);
            // Without a try there is no pause.
            blocked.note_wait(kind, minutes(18), by(None));
            assert_eq!(blocked.pause_left_s(kind, minutes(18)), None);
        }
        blocked.note_try(AutoTry::Start, now, by(None));
        assert_eq!(blocked.pause_left_s(AutoTry::Start, now), None);
    }

    fn program(sha256: &str, is_delta: bool) -> SentProgram {
        SentProgram {
            sha256: sha256.to_owned(),
            is_delta,
        }
    }

    /// The disk is too slow for the program. The machine would download and write it each ten minutes without end.
    #[test]
    fn a_bundle_that_is_never_finished_in_time_is_tried_ever_more_rarely() {
        let mut blocked = BlockedUpdates::default();
        let (kind, mut now) = (AutoTry::Stage, minutes(0));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            blocked.note_slow_staging(now, by(None), program("a1", false));
            // A look finds the same program.
            blocked.note_found("a1");
            let pause = blocked.pause_left_s(kind, now).expect("a pause");
            pauses.push(pause / 60);
            now += Duration::from_secs(pause.unsigned_abs());
            assert_eq!(blocked.pause_left_s(kind, now), None);
            // A client has the session at this decision.
            blocked.note_wait(kind, now, by(Some("eve")));
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 360, 360]);
        // The pauses count, or the problem would come hours later.
        let mut slow = BlockedUpdates::default();
        for at in [0, 10, 30] {
            slow.note_slow_staging(minutes(at), by(None), program("a1", false));
            assert_eq!(slow.text(), None, "{at}");
        }
        slow.note_slow_staging(minutes(70), by(None), program("a1", false));
        assert!(slow.text().is_some());
        // Another reason begins with the short pause.
        blocked.note_try(kind, now, by(Some("eve")));
        blocked.note_slow_staging(now, by(None), program("a1", false));
        assert_eq!(blocked.pause_left_s(kind, now), Some(600));
    }

    /// A smaller release, or the whole program in the place of a delta, may be staged in time.
    #[test]
    fn the_pause_of_a_program_that_was_too_much_for_the_disk_is_not_that_of_another_one() {
        let slow = |programs: &[SentProgram]| {
            let mut blocked = BlockedUpdates::default();
            for program in programs {
                blocked.note_slow_staging(minutes(0), by(None), program.clone());
            }
            blocked
        };
        let pause = |blocked: &BlockedUpdates| blocked.pause_left_s(AutoTry::Stage, minutes(0));
        let whole = program("a1", false);
        let thrice = vec![whole.clone(); 3];
        assert_eq!(pause(&slow(&thrice)), Some(40 * 60));
        let others = [program("b2", false), program("a1", true)];
        for other in others {
            let after = slow(&[&thrice[..], std::slice::from_ref(&other)].concat());
            assert_eq!(pause(&after), Some(600), "{other:?}");
        }
        // A pause that has begun ends for a newer release as well.
        let mut blocked = slow(&thrice);
        blocked.note_found("b2");
        assert_eq!(pause(&blocked), Some(600));
        blocked.note_slow_staging(minutes(10), by(None), whole);
        let again = blocked.pause_left_s(AutoTry::Stage, minutes(10));
        assert_eq!(again, Some(600), "the row has ended");
        // Without a slow staging there is nothing to end.
        let mut none = BlockedUpdates::default();
        none.note_found("b2");
        assert_eq!(none, BlockedUpdates::default());
    }

    #[test]
    fn what_the_machine_does_not_want_any_more_is_no_problem() {
        let all = || {
            let mut blocked = BlockedUpdates::default();
            for kind in AutoTry::ALL {
                blocked.note_try(kind, minutes(0), by(None));
            }
            blocked
        };
        for (step, is_staged, expected) in [
            (AutoStep::Off, false, [false; 3]),
            (AutoStep::NoSlots, true, [false; 3]),
            (AutoStep::WaitsForAdministrator, true, [true, false, false]),
            (AutoStep::LeftBefore, false, [true, false, false]),
            (AutoStep::LookAt(0), false, [true, false, false]),
            (AutoStep::LookAt(0), true, [true, false, true]),
            (AutoStep::StartAt(0), true, [true; 3]),
            (AutoStep::Busy, true, [true; 3]),
            (AutoStep::NoClock, true, [true; 3]),
        ] {
            let mut blocked = all();
            blocked.end_unwanted(&step, is_staged);
            let has = AutoTry::ALL.map(|kind| blocked.has(kind));
            assert_eq!(has, expected, "{step:?}");
        }
    }
}
