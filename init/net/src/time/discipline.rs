//! Decides when to ask which server, and what to do to the clock. It has no clock itself.

use std::time::Duration;

use super::sntp::{ClockSample, KissOfDeath};

/// The first offset beyond this is stepped. A later one is doubted first.
const STEP_NS: i64 = 500_000_000;
/// First and maximum pause between answers while offsets are small.
const POLL_MIN: Duration = Duration::from_secs(64);
const POLL_MAX: Duration = Duration::from_secs(1024);
/// The pauses grow after an offset below this. Any larger one resets them.
const CALM_NS: i64 = 50_000_000;
/// First and maximum pause between rounds in which no server answers.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(64);
/// After the first step, another one needs this many answers in a row that agree within `AGREE_NS`,
/// at this pause: a machine that slept is far off at every answer, and a wrong answer comes once.
const DOUBT_ANSWERS: u32 = 3;
const DOUBT_PAUSE: Duration = Duration::from_secs(8);
const AGREE_NS: i64 = 250_000_000;
/// How long a server that denies access is not asked.
const DENIED_FOR: Duration = Duration::from_secs(86_400);

/// The result of asking a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollOutcome {
    Kiss(KissOfDeath),
    Sample(ClockSample),
    Silent,
}

/// An action on the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClockAction {
    /// Wait for the next answer.
    Nothing,
    /// Every server failed in this round.
    RoundFailed,
    /// Let the clock run faster or slower until this offset is made up for.
    Slew(i64),
    /// Change the clock by this offset at once.
    Step(i64),
}

#[derive(Clone, Debug)]
pub(super) struct ClockDiscipline {
    /// For each server, the time before which it is not asked.
    barred: Vec<Duration>,
    current: usize,
    failures: usize,
    next: Duration,
    poll: Duration,
    poll_min: Duration,
    retry: Duration,
    synced: bool,
    doubt: Option<(i64, u32)>,
}

impl ClockDiscipline {
    pub(super) fn new(servers: usize, now: Duration) -> Self {
        Self {
            barred: vec![Duration::ZERO; servers],
            current: 0,
            failures: 0,
            next: now,
            poll: POLL_MIN,
            poll_min: POLL_MIN,
            retry: RETRY_MIN,
            synced: false,
            doubt: None,
        }
    }

    /// Takes other servers and asks them at once. What is known about the clock stays.
    pub(super) fn replace(&mut self, servers: usize, now: Duration) {
        let synced = self.synced;
        *self = Self::new(servers, now);
        // New servers are no reason to step a clock that was right.
        self.synced = synced;
    }

    /// The next server, and when to ask it. `None` without servers.
    pub(super) fn next(&self) -> Option<(Duration, usize)> {
        let free = self.barred.get(self.current)?;
        Some((self.next.max(*free), self.current))
    }

    pub(super) fn take(&mut self, now: Duration, outcome: PollOutcome) -> ClockAction {
        match outcome {
            PollOutcome::Sample(sample) => self.sample(now, sample.offset_ns),
            PollOutcome::Kiss(kiss) => self.kissed(now, kiss),
            PollOutcome::Silent => self.failed(now),
        }
    }

    fn sample(&mut self, now: Duration, offset: i64) -> ClockAction {
        self.failures = 0;
        self.retry = RETRY_MIN;
        if self.synced && offset.abs() > STEP_NS {
            return self.doubtful(now, offset);
        }
        self.doubt = None;
        let calm = self.synced && offset.abs() < CALM_NS;
        self.poll = if calm {
            (self.poll * 2).min(POLL_MAX)
        } else {
            POLL_MIN
        };
        self.poll = self.poll.max(self.poll_min);
        self.next = now + self.poll;
        let first = !std::mem::replace(&mut self.synced, true);
        match first && offset.abs() > STEP_NS {
            true => ClockAction::Step(offset),
            false => ClockAction::Slew(offset),
        }
    }

    fn doubtful(&mut self, now: Duration, offset: i64) -> ClockAction {
        let agreeing = match self.doubt {
            Some((before, count)) if (offset - before).abs() < AGREE_NS => count + 1,
            _ => 1,
        };
        self.doubt = Some((offset, agreeing));
        self.next = now
            + DOUBT_PAUSE.max(if self.poll_min > POLL_MIN {
                self.poll_min
            } else {
                DOUBT_PAUSE
            });
        if agreeing < DOUBT_ANSWERS {
            return ClockAction::Nothing;
        }
        self.doubt = None;
        self.poll = self.poll_min;
        self.next = now + self.poll;
        ClockAction::Step(offset)
    }

    fn kissed(&mut self, now: Duration, kiss: KissOfDeath) -> ClockAction {
        match kiss {
            KissOfDeath::Rate => {
                self.poll_min = (self.poll_min * 2).min(POLL_MAX);
                self.barred[self.current] = now + self.poll_min;
            }
            KissOfDeath::Deny => self.barred[self.current] = now + DENIED_FOR,
            // RFC 5905 §7.4: other codes are informational and do not bar a server.
            KissOfDeath::Other => {}
        }
        self.failed(now)
    }

    /// Moves on to the next server, with a pause after all of them.
    fn failed(&mut self, now: Duration) -> ClockAction {
        // The answers that justify a step must come in a row.
        self.doubt = None;
        self.failures += 1;
        self.next = now;
        let round = self.failures.is_multiple_of(self.barred.len().max(1));
        if round {
            self.next = now + self.retry;
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
        self.advance(now);
        if round {
            ClockAction::RoundFailed
        } else {
            ClockAction::Nothing
        }
    }

    /// Chooses the next server that may be asked, or the one that may be asked first.
    fn advance(&mut self, now: Duration) {
        let count = self.barred.len();
        let order = (1..=count).map(|n| (self.current + n) % count);
        // `max(now)` makes all servers that may be asked now equal, so that the next in order is
        // chosen.
        let best = order.min_by_key(|n| self.barred[*n].max(now));
        self.current = best.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    const fn sample(offset_ns: i64) -> PollOutcome {
        PollOutcome::Sample(ClockSample {
            offset_ns,
            delay_ns: 0,
        })
    }

    fn synced() -> ClockDiscipline {
        let mut discipline = ClockDiscipline::new(1, secs(0));
        assert_eq!(discipline.take(secs(0), sample(0)), ClockAction::Slew(0));
        discipline
    }

    #[test]
    fn the_first_answer_steps_only_when_far_off() {
        let mut near = ClockDiscipline::new(1, secs(0));
        assert_eq!(near.next(), Some((secs(0), 0)));
        assert_eq!(
            near.take(secs(0), sample(STEP_NS)),
            ClockAction::Slew(STEP_NS)
        );
        let mut far = ClockDiscipline::new(1, secs(0));
        assert_eq!(
            far.take(secs(0), sample(-STEP_NS - 1)),
            ClockAction::Step(-STEP_NS - 1)
        );
    }

    #[test]
    fn pauses_grow_while_calm_and_shrink_otherwise() {
        let mut discipline = synced();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let now = discipline.next().expect("a server").0;
            discipline.take(now, sample(MS));
            pauses.push((discipline.next().expect("a server").0 - now).as_secs());
        }
        assert_eq!(pauses, [128, 256, 512, 1024, 1024, 1024]);
        discipline.take(secs(9000), sample(300 * MS));
        assert_eq!(discipline.next(), Some((secs(9064), 0)));
    }

    #[test]
    fn one_wild_answer_does_not_move_a_synced_clock() {
        let mut discipline = synced();
        assert_eq!(
            discipline.take(secs(64), sample(9000 * MS)),
            ClockAction::Nothing
        );
        assert_eq!(discipline.next(), Some((secs(72), 0)));
        assert_eq!(discipline.take(secs(72), sample(MS)), ClockAction::Slew(MS));
    }

    #[test]
    fn three_answers_that_agree_step_it() {
        let mut discipline = synced();
        let hour = 3_600_000 * MS;
        assert_eq!(
            discipline.take(secs(64), sample(-hour)),
            ClockAction::Nothing
        );
        assert_eq!(
            discipline.take(secs(72), sample(hour)),
            ClockAction::Nothing
        );
        assert_eq!(
            discipline.take(secs(80), sample(hour + MS)),
            ClockAction::Nothing
        );
        assert_eq!(
            discipline.take(secs(88), sample(hour)),
            ClockAction::Step(hour)
        );
        assert_eq!(discipline.next(), Some((secs(88 + 64), 0)));
    }

    #[test]
    fn silent_servers_are_asked_in_turn_and_for_ever() {
        let mut discipline = ClockDiscipline::new(2, secs(0));
        assert_eq!(
            discipline.take(secs(2), PollOutcome::Silent),
            ClockAction::Nothing
        );
        assert_eq!(discipline.next(), Some((secs(2), 1)));
        assert_eq!(
            discipline.take(secs(4), PollOutcome::Silent),
            ClockAction::RoundFailed
        );
        assert_eq!(discipline.next(), Some((secs(5), 0)));
        for _ in 0..40 {
            let (now, _) = discipline.next().expect("a server");
            discipline.take(now, PollOutcome::Silent);
            assert!(discipline.next().expect("a server").0 - now <= RETRY_MAX);
        }
    }

    #[test]
    fn a_denying_server_is_left_alone_and_the_other_asked() {
        let mut discipline = ClockDiscipline::new(2, secs(0));
        discipline.take(secs(0), PollOutcome::Kiss(KissOfDeath::Deny));
        for _ in 0..5 {
            let (now, server) = discipline.next().expect("a server");
            assert_eq!(server, 1);
            discipline.take(now, PollOutcome::Silent);
        }
        discipline.take(secs(100), PollOutcome::Kiss(KissOfDeath::Deny));
        assert!(discipline.next().expect("a server").0 >= DENIED_FOR);
    }

    #[test]
    fn a_server_that_wants_fewer_questions_gets_fewer() {
        let mut discipline = ClockDiscipline::new(1, secs(0));
        discipline.take(secs(0), PollOutcome::Kiss(KissOfDeath::Rate));
        assert_eq!(discipline.next(), Some((secs(128), 0)));
        discipline.take(secs(128), sample(MS));
        assert_eq!(discipline.next(), Some((secs(256), 0)));
    }

    #[test]
    fn without_servers_there_is_nothing_to_do_and_new_ones_are_asked_at_once() {
        let mut discipline = ClockDiscipline::new(0, secs(0));
        assert_eq!(discipline.next(), None);
        discipline.replace(1, secs(9));
        assert_eq!(discipline.next(), Some((secs(9), 0)));
    }
}
