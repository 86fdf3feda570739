//! When a machine looks for updates by itself, and when it starts one: functions of what is known, without a clock.

use alknet_core::config::{AutoUpdate, UpdateJitter, UpdateSection, UpdateWindow};
use alknet_init::control::{UpdateFacts, UpdatePlan};
use sha2::{Digest, Sha256};

use super::refusal::StartRefusal;

/// How often a machine looks at its channel, in seconds.
pub(super) const LOOK_PERIOD_S: i64 = 6 * 3600;
/// Seconds of a day, without leap seconds, as Unix time counts them.
const DAY_S: i64 = 86_400;

/// The part of the jitter that is this machine's, in seconds: always the same, and another one at each machine.
pub(super) fn own_delay(identity: &str, jitter: UpdateJitter) -> i64 {
    let digest = Sha256::digest(identity.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    let share = u64::from_be_bytes(first) % (u64::from(jitter.seconds()) + 1);
    // At most a day, by the range of the jitter.
    i64::try_from(share).unwrap_or(0)
}

/// The first moment, not before `now`, at which the machine may restart. Within the window the machine is later by its
/// own delay, but never so much that the window is over.
pub(super) fn next_start(now: i64, window: Option<UpdateWindow>, delay: i64) -> i64 {
    let Some(window) = window else { return now };
    let length = i64::from(window.minutes()) * 60;
    let begin = i64::from(window.begin_minute()) * 60;
    let today = now.div_euclid(DAY_S) * DAY_S;
    // Yesterday's window may go over midnight.
    let windows = [-1, 0, 1].map(|day| today + day * DAY_S + begin);
    let open = windows.into_iter().find(|open| now < open + length);
    let open = open.unwrap_or(today + DAY_S + begin);
    now.max(open + delay.min(length - 60))
}

/// What may help a start that PID 1 refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartRemedy {
    /// To stage the program again.
    StageAgain,
    /// The same, after the next look at the channel: the program could not be staged again.
    StageLater,
    /// Nothing that the machine does by itself.
    Nothing,
}

/// A start of the machine itself that PID 1 refused.
#[derive(Clone, Debug)]
pub(super) struct RefusedStart {
    pub(super) version: String,
    /// SHA-256 of the program, in hex.
    pub(super) sha256: String,
    /// What PID 1 said.
    pub(super) reason: StartRefusal,
    pub(super) remedy: StartRemedy,
    /// Before this moment the start is not tried again, in Unix time.
    pub(super) next_try: i64,
}

/// What the node knows when it decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct AutoView<'a> {
    pub(super) section: &'a UpdateSection,
    /// The node's key.
    pub(super) identity: &'a str,
    /// Unix time. `None` while the clock is not set.
    pub(super) now: Option<i64>,
    /// When the node began to know the time. Not later than `now`.
    pub(super) began: i64,
    /// When the node looked at the channel last. Not later than `now`.
    pub(super) looked: Option<i64>,
    /// Seconds until the next look is due by the clock that no time server sets, whatever `looked` says.
    pub(super) look_left: i64,
    /// Before this moment it does not look again, because another caller blocked the last look.
    pub(super) look_again: Option<i64>,
    /// The same about a staging.
    pub(super) stage_again: Option<i64>,
    pub(super) facts: &'a UpdateFacts,
    /// The version in the slot that does not run. One that the node has staged by itself counts by the name that it had
    /// then, also if its program was damaged since.
    pub(super) waiting: Option<&'a str>,
    /// Versions that the machine does not install by itself, beside those of the facts.
    pub(super) left: &'a [String],
    /// What the channel had then.
    pub(super) found: Option<&'a UpdatePlan>,
    /// The last start by the machine itself, if PID 1 refused it.
    pub(super) refused: Option<&'a RefusedStart>,
    /// Whether the last start was blocked, also by what kept its version from being staged: another caller had the
    /// session, or PID 1 had other work or did not answer.
    pub(super) was_blocked: bool,
    /// Whether the version that waits was staged by the node itself.
    pub(super) is_own: bool,
    /// Whether it was staged by a caller that may not start versions.
    pub(super) is_replaceable: bool,
    /// Whether a bundle is being sent, or PID 1 has not read the slots since.
    pub(super) is_busy: bool,
}

/// What the machine does by itself now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AutoStep {
    /// The configuration does not ask for anything.
    Off,
    /// The machine has no boot slots, or cannot read their state.
    NoSlots,
    /// Nothing is done without the time.
    NoClock,
    /// An update is under way.
    Busy,
    /// A version waits for an administrator: `auto` is `stage`, or an administrator staged it.
    WaitsForAdministrator,
    /// The version that waits needs a person at the machine.
    WaitsForPerson,
    /// The version failed before, and is not tried again.
    FailedBefore,
    /// An administrator left the version, and the machine does not go back to it by itself.
    LeftBefore,
    /// The next look at the channel is at this moment.
    LookAt(i64),
    /// Look at the channel now.
    Look,
    /// Write the version of the channel to the free slot.
    Stage,
    /// The same at this moment, because another caller blocked the last try.
    StageAt(i64),
    /// The start is at this moment.
    StartAt(i64),
    /// Start the version that waits.
    Start,
    /// PID 1 refused the start, and it is tried again at this moment.
    StartRefused(i64),
}

/// What the machine does now.
pub(super) fn step(view: &AutoView<'_>) -> AutoStep {
    let AutoView { section, facts, .. } = *view;
    if section.auto == AutoUpdate::Off || section.url.is_none() {
        return AutoStep::Off;
    }
    let state = facts.state.as_str();
    if matches!(state, "" | "absent" | "unreadable") {
        return AutoStep::NoSlots;
    }
    let Some(now) = view.now else {
        return AutoStep::NoClock;
    };
    if view.is_busy || matches!(state, "pending" | "trial") {
        return AutoStep::Busy;
    }
    let delay = own_delay(view.identity, section.jitter);
    let is_of_other = state == "staged" && !view.is_own;
    let due = match view.looked {
        None => view.began + delay,
        Some(looked) => looked + LOOK_PERIOD_S,
    };
    // Else a time server that sets the clock back after each look would keep the next one away.
    let due = due.min(now.saturating_add(view.look_left));
    let due = view.look_again.map_or(due, |again| due.max(again));
    // A start that PID 1 refuses, or for which it has no time, must not keep a later version away.
    let looks_first = due <= now && (refused(view).is_some() || view.was_blocked);
    if state == "staged"
        && !is_of_other
        && !looks_first
        && section.auto == AutoUpdate::Apply
        && let Some(step) = start(view, now, delay)
    {
        return step;
    }
    if due <= now {
        return AutoStep::Look;
    }
    // Another version than an administrator chose must not take its place.
    if is_of_other && !view.is_replaceable {
        return AutoStep::WaitsForAdministrator;
    }
    match found(view, now) {
        Some(step) => step,
        None => AutoStep::LookAt(due),
    }
}

/// The staging of the version of the channel, now or once the pause after a blocked one is over.
fn stage(view: &AutoView<'_>, now: i64) -> AutoStep {
    match view.stage_again.filter(|again| *again > now) {
        Some(again) => AutoStep::StageAt(again),
        None => AutoStep::Stage,
    }
}

/// The start of the version that the node staged. `None` if it does not start: it failed before, it needs a person, or
/// the channel has not said yet what it needs.
fn start(view: &AutoView<'_>, now: i64, delay: i64) -> Option<AutoStep> {
    let version = view.waiting?;
    let plan = view.found.filter(|plan| plan.to == version)?;
    if has_failed(view.facts, version)
        || is_left_by_machine(view, version)
        || plan.needs_person.is_some()
    {
        return None;
    }
    let refused = refused(view).filter(|refused| refused.sha256 == plan.sha256);
    if refused.is_some_and(|refused| refused.remedy != StartRemedy::Nothing) {
        return Some(stage(view, now));
    }
    let earliest = refused.map_or(now, |refused| refused.next_try.max(now));
    Some(match next_start(earliest, view.section.window, delay) {
        at if at <= now => AutoStep::Start,
        at if refused.is_some() => AutoStep::StartRefused(at),
        at => AutoStep::StartAt(at),
    })
}

/// The start of the version that waits, if PID 1 refused it.
fn refused<'a>(view: &AutoView<'a>) -> Option<&'a RefusedStart> {
    view.refused
        .filter(|refused| view.waiting == Some(refused.version.as_str()))
}

/// What is done with what the channel had at the last look. `None`: nothing.
fn found(view: &AutoView<'_>, now: i64) -> Option<AutoStep> {
    let plan = view.found.filter(|plan| plan.step == "upgrade")?;
    if has_failed(view.facts, &plan.to) {
        return Some(AutoStep::FailedBefore);
    }
    if is_left_by_machine(view, &plan.to) {
        return Some(AutoStep::LeftBefore);
    }
    // The machine makes the version of a client its own by staging the same once more, so that it may start it.
    let is_staged =
        view.is_own && view.facts.state == "staged" && view.waiting == Some(plan.to.as_str());
    Some(match (is_staged, plan.needs_person.is_some()) {
        (false, _) => stage(view, now),
        (true, true) => AutoStep::WaitsForPerson,
        (true, false) => AutoStep::WaitsForAdministrator,
    })
}

/// Whether the last trial was of this version, and failed.
fn has_failed(facts: &UpdateFacts, version: &str) -> bool {
    let last = facts.last.as_ref();
    last.is_some_and(|last| last.version == version && last.outcome != "confirmed")
}

/// Whether an administrator left the version, or it failed before another one was confirmed.
pub(super) fn is_left(facts: &UpdateFacts, version: &str) -> bool {
    facts.left.iter().any(|left| left == version)
}

/// Whether the version was left, by what the facts or the notes of the node say.
fn is_left_by_machine(view: &AutoView<'_>, version: &str) -> bool {
    is_left(view.facts, version) || view.left.iter().any(|left| left == version)
}

#[cfg(test)]
mod tests {
    use alknet_init::control::UpdateOutcome;

    use super::*;

    /// 2027-01-31T00:00:00Z.
    const MIDNIGHT: i64 = 1_801_353_600;

    fn window(text: &str) -> Option<UpdateWindow> {
        Some(text.parse().expect("a window"))
    }

    fn at(hour: i64, minute: i64) -> i64 {
        MIDNIGHT + hour * 3600 + minute * 60
    }

    #[test]
    fn a_start_is_in_the_window_and_later_by_the_own_delay() {
        let night = window("02:00-04:00");
        assert_eq!(next_start(at(1, 0), None, 900), at(1, 0));
        assert_eq!(next_start(at(1, 0), night, 0), at(2, 0));
        assert_eq!(next_start(at(1, 0), night, 900), at(2, 15));
        assert_eq!(next_start(at(2, 30), night, 900), at(2, 30));
        assert_eq!(next_start(at(3, 59), night, 900), at(3, 59));
        assert_eq!(next_start(at(4, 0), night, 900), at(26, 15));
        // A delay that is longer than the window ends in its last minute.
        assert_eq!(next_start(at(1, 0), night, 86_400), at(3, 59));
    }

    #[test]
    fn a_window_over_midnight_is_open_after_it() {
        let late = window("23:30-00:30");
        assert_eq!(next_start(at(0, 10), late, 0), at(0, 10));
        assert_eq!(next_start(at(0, 30), late, 0), at(23, 30));
        assert_eq!(next_start(at(0, 0), late, 2400), at(0, 10));
    }

    #[test]
    fn a_delay_is_the_same_at_each_start_and_within_the_jitter() {
        let jitter: UpdateJitter = "30m".parse().expect("a jitter");
        let delays: Vec<_> = (0..100)
            .map(|n| own_delay(&format!("ed25519:{n:064x}"), jitter))
            .collect();
        assert!(delays.iter().all(|delay| (0..=1800).contains(delay)));
        let mut different = delays.clone();
        different.sort_unstable();
        different.dedup();
        assert!(different.len() > 80, "{different:?}");
        let again = own_delay(&format!("ed25519:{:064x}", 7), jitter);
        assert_eq!(again, delays[7]);
        assert_eq!(own_delay("ed25519:00", "0s".parse().expect("a jitter")), 0);
    }

    fn plan(to: &str) -> UpdatePlan {
        UpdatePlan {
            from: "1.0.0".to_owned(),
            to: to.to_owned(),
            step: "upgrade".to_owned(),
            ..UpdatePlan::default()
        }
    }

    fn facts(state: &str, other: Option<&str>) -> UpdateFacts {
        UpdateFacts {
            state: state.to_owned(),
            other_version: other.map(str::to_owned),
            ..UpdateFacts::default()
        }
    }

    fn section(auto: AutoUpdate) -> UpdateSection {
        UpdateSection {
            auto,
            url: Some("https://a.example".to_owned()),
            window: window("02:00-04:00"),
            jitter: "0s".parse().expect("a jitter"),
            ..UpdateSection::default()
        }
    }

    fn view<'a>(section: &'a UpdateSection, facts: &'a UpdateFacts) -> AutoView<'a> {
        AutoView {
            section,
            identity: "ed25519:00",
            now: Some(at(12, 0)),
            began: at(11, 0),
            looked: None,
            look_left: i64::MAX,
            look_again: None,
            stage_again: None,
            facts,
            waiting: facts.other_version.as_deref(),
            left: &[],
            found: None,
            refused: None,
            was_blocked: false,
            is_own: true,
            is_replaceable: false,
            is_busy: false,
        }
    }

    #[test]
    fn nothing_happens_where_nothing_is_asked_for_or_possible() {
        let (apply, off) = (section(AutoUpdate::Apply), section(AutoUpdate::Off));
        let idle = facts("idle", None);
        assert_eq!(step(&view(&off, &idle)), AutoStep::Off);
        let no_url = UpdateSection {
            url: None,
            ..apply.clone()
        };
        assert_eq!(step(&view(&no_url, &idle)), AutoStep::Off);
        for state in ["", "absent", "unreadable"] {
            assert_eq!(step(&view(&apply, &facts(state, None))), AutoStep::NoSlots);
        }
        for state in ["pending", "trial"] {
            assert_eq!(step(&view(&apply, &facts(state, None))), AutoStep::Busy);
        }
        let busy = AutoView {
            is_busy: true,
            ..view(&apply, &idle)
        };
        assert_eq!(step(&busy), AutoStep::Busy);
    }

    #[test]
    fn nothing_is_started_without_a_clock() {
        let apply = section(AutoUpdate::Apply);
        let staged = facts("staged", Some("1.1.0"));
        let found = plan("1.1.0");
        let blind = AutoView {
            now: None,
            found: Some(&found),
            ..view(&apply, &staged)
        };
        assert_eq!(step(&blind), AutoStep::NoClock);
    }

    #[test]
    fn a_machine_looks_after_its_delay_and_then_by_the_period() {
        let mut stage = section(AutoUpdate::Stage);
        let idle = facts("idle", None);
        assert_eq!(step(&view(&stage, &idle)), AutoStep::Look);
        stage.jitter = "24h".parse().expect("a jitter");
        let delay = own_delay("ed25519:00", stage.jitter);
        assert!(delay > 3600, "{delay}");
        let expected = AutoStep::LookAt(at(11, 0) + delay);
        assert_eq!(step(&view(&stage, &idle)), expected);
        let looked = |at| AutoView {
            looked: Some(at),
            ..view(&stage, &idle)
        };
        assert_eq!(step(&looked(at(11, 30))), AutoStep::LookAt(at(17, 30)));
        assert_eq!(step(&looked(at(6, 0))), AutoStep::Look);
    }

    #[test]
    fn what_the_channel_has_is_staged_once() {
        let stage = section(AutoUpdate::Stage);
        let found = plan("1.1.0");
        let look = |facts: &UpdateFacts, found: &UpdatePlan| {
            step(&AutoView {
                looked: Some(at(11, 30)),
                found: Some(found),
                ..view(&stage, facts)
            })
        };
        assert_eq!(look(&facts("idle", None), &found), AutoStep::Stage);
        let staged = facts("staged", Some("1.1.0"));
        assert_eq!(look(&staged, &found), AutoStep::WaitsForAdministrator);
        // The node staged an older one before.
        let older = facts("staged", Some("1.0.5"));
        assert_eq!(look(&older, &found), AutoStep::Stage);
        let same = UpdatePlan {
            step: "same".to_owned(),
            ..plan("1.0.0")
        };
        let at = look(&facts("idle", None), &same);
        assert!(matches!(at, AutoStep::LookAt(_)), "{at:?}");
    }

    #[test]
    fn what_an_administrator_staged_is_left_alone() {
        let apply = section(AutoUpdate::Apply);
        let staged = facts("staged", Some("1.1.0"));
        let found = plan("1.2.0");
        let view = AutoView {
            is_own: false,
            looked: Some(at(11, 30)),
            found: Some(&found),
            ..view(&apply, &staged)
        };
        assert_eq!(step(&view), AutoStep::WaitsForAdministrator);
        // It goes on to look, so that `update/status` says what the channel has.
        let later = AutoView {
            looked: Some(at(1, 0)),
            ..view
        };
        assert_eq!(step(&later), AutoStep::Look);
    }

    /// A client that may only stage must not end the updates that the machine does by itself.
    #[test]
    fn what_a_client_staged_that_may_not_start_it_is_replaced() {
        let apply = section(AutoUpdate::Apply);
        let staged = facts("staged", Some("1.1.0"));
        // Also where the client has sent the version of the channel itself.
        for (version, expected) in [("1.2.0", AutoStep::Stage), ("1.1.0", AutoStep::Stage)] {
            let found = plan(version);
            let view = AutoView {
                is_own: false,
                is_replaceable: true,
                now: Some(at(2, 30)),
                looked: Some(at(2, 0)),
                found: Some(&found),
                ..view(&apply, &staged)
            };
            assert_eq!(step(&view), expected, "{version}");
            let never_looked = AutoView {
                looked: None,
                began: at(1, 0),
                ..view
            };
            assert_eq!(step(&never_looked), AutoStep::Look);
        }
    }

    #[test]
    fn a_staged_version_starts_in_the_window_and_needs_no_person() {
        let apply = section(AutoUpdate::Apply);
        let staged = facts("staged", Some("1.1.0"));
        let found = plan("1.1.0");
        let now = |now| AutoView {
            now: Some(now),
            looked: Some(now),
            found: Some(&found),
            ..view(&apply, &staged)
        };
        assert_eq!(step(&now(at(12, 0))), AutoStep::StartAt(at(26, 0)));
        assert_eq!(step(&now(at(2, 30))), AutoStep::Start);
        let pin = UpdatePlan {
            needs_person: Some("pin".to_owned()),
            ..plan("1.1.0")
        };
        let with_pin = AutoView {
            found: Some(&pin),
            ..now(at(2, 30))
        };
        assert_eq!(step(&with_pin), AutoStep::WaitsForPerson);
    }

    #[test]
    fn a_refused_start_is_tried_later_and_keeps_no_look_away() {
        let apply = section(AutoUpdate::Apply);
        let staged = facts("staged", Some("1.1.0"));
        let refused = |remedy| RefusedStart {
            version: "1.1.0".to_owned(),
            sha256: String::new(),
            reason: StartRefusal::default(),
            remedy,
            next_try: at(8, 0),
        };
        let decide = |refused: &RefusedStart, (now, looked): (i64, i64), found: &UpdatePlan| {
            step(&AutoView {
                now: Some(now),
                looked: Some(looked),
                found: Some(found),
                refused: Some(refused),
                ..view(&apply, &staged)
            })
        };
        let (same, newer) = (plan("1.1.0"), plan("1.2.0"));
        for remedy in [StartRemedy::StageAgain, StartRemedy::StageLater] {
            let refused = refused(remedy);
            let soon = decide(&refused, (at(2, 1), at(2, 0)), &same);
            assert_eq!(soon, AutoStep::Stage, "{remedy:?}");
            let late = decide(&refused, (at(2, 1), at(-4, 0)), &same);
            assert_eq!(late, AutoStep::Look, "{remedy:?}");
        }
        let lasting = refused(StartRemedy::Nothing);
        let next_night = AutoStep::StartRefused(at(26, 0));
        for (now, looked, expected) in [
            (at(2, 1), at(2, 0), next_night.clone()),
            (at(9, 0), at(8, 30), next_night),
            (at(9, 0), at(3, 0), AutoStep::Look),
            (at(26, 0), at(25, 0), AutoStep::Start),
            (at(26, 0), at(20, 0), AutoStep::Look),
        ] {
            assert_eq!(decide(&lasting, (now, looked), &same), expected, "{now}");
        }
        assert_eq!(
            decide(&lasting, (at(2, 1), at(2, 0)), &newer),
            AutoStep::Stage
        );
        let other_program = RefusedStart {
            sha256: "b2".to_owned(),
            ..lasting
        };
        let start = decide(&other_program, (at(2, 1), at(2, 0)), &same);
        assert_eq!(start, AutoStep::Start);
    }

    #[test]
    fn what_another_caller_blocked_is_tried_again_after_its_pause() {
        let apply = section(AutoUpdate::Apply);
        let (idle, found, again) = (facts("idle", None), plan("1.1.0"), at(12, 10));
        let look = AutoView {
            look_again: Some(again),
            ..view(&apply, &idle)
        };
        let stage = AutoView {
            looked: Some(at(11, 30)),
            stage_again: Some(again),
            found: Some(&found),
            ..view(&apply, &idle)
        };
        for (view, waits, tries) in [
            (look, AutoStep::LookAt(again), AutoStep::Look),
            (stage, AutoStep::StageAt(again), AutoStep::Stage),
        ] {
            assert_eq!(step(&view), waits);
            let now = Some(again);
            assert_eq!(step(&AutoView { now, ..view }), tries);
        }
        // A stateless machine has no list of PID 1.
        let left = ["1.1.0".to_owned()];
        let noted = AutoView {
            left: &left,
            ..stage
        };
        assert_eq!(step(&noted), AutoStep::LeftBefore);
    }

    /// The version before was confirmed after the rollback, and is the last end of an update.
    #[test]
    fn a_version_that_an_administrator_left_is_not_tried_again() {
        let apply = section(AutoUpdate::Apply);
        let mut back = facts("good", Some("1.1.0"));
        back.left = vec!["1.1.0".to_owned()];
        back.last = Some(UpdateOutcome {
            version: "1.0.0".to_owned(),
            outcome: "confirmed".to_owned(),
            ..UpdateOutcome::default()
        });
        let look = |facts: &UpdateFacts, found: &UpdatePlan| {
            step(&AutoView {
                now: Some(at(2, 30)),
                looked: Some(at(2, 0)),
                found: Some(found),
                ..view(&apply, facts)
            })
        };
        assert_eq!(look(&back, &plan("1.1.0")), AutoStep::LeftBefore);
        assert_eq!(look(&back, &plan("1.1.1")), AutoStep::Stage);
        back.state = "staged".to_owned();
        assert_eq!(look(&back, &plan("1.1.0")), AutoStep::LeftBefore);
    }

    #[test]
    fn a_version_that_failed_is_not_tried_again() {
        let apply = section(AutoUpdate::Apply);
        let found = plan("1.1.0");
        let mut failed = facts("failed", Some("1.1.0"));
        failed.last = Some(UpdateOutcome {
            version: "1.1.0".to_owned(),
            outcome: "failed".to_owned(),
            ..UpdateOutcome::default()
        });
        let look = |facts: &UpdateFacts, found: &UpdatePlan| {
            step(&AutoView {
                now: Some(at(2, 30)),
                looked: Some(at(2, 0)),
                found: Some(found),
                ..view(&apply, facts)
            })
        };
        assert_eq!(look(&failed, &found), AutoStep::FailedBefore);
        // An administrator staged it again: it still does not start by itself.
        let staged = UpdateFacts {
            state: "staged".to_owned(),
            ..failed.clone()
        };
        assert_eq!(look(&staged, &found), AutoStep::FailedBefore);
        assert_eq!(look(&failed, &plan("1.1.1")), AutoStep::Stage);
    }
}
