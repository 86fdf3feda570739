//! Decides when the node is started, asked for its health, stopped and started again. It has no clock and no
//! process: the caller passes times and gets orders.

/// First pause before a restart, ms. Each restart doubles it.
const PAUSE_MS_MIN: u64 = 100;
/// Longest pause before a restart, ms.
const PAUSE_MS_MAX: u64 = 30_000;
/// A node that was well for this long starts again with the shortest pause, ms.
const WELL_MS_RESET: u64 = 60_000;
/// How often PID 1 asks the node for its health, ms.
const ASK_EVERY_MS: u64 = 5_000;
/// How long an answer may take, ms: emulated machines on busy hosts are slow.
const ANSWER_MS_MAX: u64 = 15_000;
/// How long an answer may take if the node computes, ms. A request of a peer takes long on a slow processor, and if
/// PID 1 ended the node for it, peers could end nodes.
const ANSWER_MS_MAX_COMPUTING: u64 = 60_000;
/// A node computes if it used at least one in this many parts of a processor while it was silent. A node without
/// requests uses less than a hundredth.
const COMPUTING_PART: u64 = 10;
/// How late PID 1 must look for an answer to conclude that the whole machine stood still, ms: the node could not
/// have answered either. The delay does not count, and a late look counts as one in time, so looks that are all
/// late come to an end as well.
const LATE_MS: u64 = 2_000;
/// How long the node may take from its start until it serves, ms.
const READY_MS_MAX: u64 = 60_000;
/// How long it may take if it computes, ms: peers have work for it before it reports that it serves. Together with
/// [`PAUSE_MS_MAX`] and [`ABORT_MS_MAX`] this is less than [`GRACE_MS`], which the end of the previous node began
/// again.
const READY_MS_MAX_COMPUTING: u64 = 240_000;
/// Answers "unwell" in a row before PID 1 restarts the node. Those of a node that computes do not count for
/// [`ANSWER_MS_MAX_COMPUTING`]: its tasks wait for their turn, and peers can cause that.
const UNWELL_ANSWERS_MAX: u32 = 3;
/// How many of the last answers [`NodeSupervisor::is_well`] looks at: those of a minute.
const LAST_ANSWERS: u32 = 12;
/// How long a hung node may take to die of SIGABRT, ms. SIGKILL follows.
const ABORT_MS_MAX: u64 = 2_000;
/// How long a requested restart may take to finish running calls, ms.
pub(crate) const DRAIN_MS_MAX: u64 = 10_000;
/// How much longer the node may take to close its connections with their codes, ms.
const GOODBYE_MS_MAX: u64 = 2_000;
/// How long the machine counts as alive without a healthy node, ms: restarts with every pause of the back-off fit
/// in. After that PID 1 no longer feeds the watchdog.
pub(crate) const GRACE_MS: u64 = 300_000;
/// How many nodes in a row restart [`GRACE_MS`] as they end, if they computed until PID 1 aborted them or asked
/// them to end. Peers can make one node silent and keep the next from serving. A machine that reboots for it stays
/// closed if its owner has to type what opens its vault.
const GRACES_MAX: u32 = 2;

/// What to do to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SupervisorAction {
    Abort,
    Ask(u64),
    Drain,
    Kill,
    Spawn,
}

#[derive(Debug)]
enum SupervisorState {
    /// The node does not run, and is started at this time.
    Waiting {
        until: u64,
    },
    Running(RunningNode),
    /// The node has the request to stop. `next` follows at `at` if it does not.
    Stopping {
        next: SupervisorAction,
        at: u64,
        after: RestartPolicy,
    },
    /// The node was killed, and PID 1 waits for its end.
    Dying {
        after: RestartPolicy,
    },
    /// The machine goes down and starts no node.
    Held,
    /// The node is not wanted: what it would serve from is locked.
    Idle,
}

/// What follows the end of a node that the supervisor stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RestartPolicy {
    /// The node was ill and computed all the while: as after a failure, with more time for the next node.
    Computing,
    /// The node was ill: a restart after a pause.
    Failure,
    /// Nothing, until the node is wanted again.
    Idle,
    /// The next node starts at once.
    Next,
}

#[derive(Debug)]
struct RunningNode {
    started: u64,
    /// The wait until the node serves.
    start: NodeWait,
    ready: bool,
    question: Option<HealthQuestion>,
    ask_at: u64,
    /// When PID 1 last asked the node, and the processor time that it had used by then.
    last_asked: (u64, u64),
    unwell: u32,
    answers: LastAnswers,
    /// When PID 1 asked the question that got the first of the present row of "unwell" answers.
    unwell_since: Option<u64>,
    /// Whether the node computed before the last of those answers.
    unwell_computing: bool,
}

/// The last [`LAST_ANSWERS`] answers.
#[derive(Debug)]
struct LastAnswers {
    /// One bit for each, the newest in the lowest place, set if the node said that it was well.
    well: u16,
    count: u32,
}

/// A question without an answer yet.
#[derive(Debug)]
struct HealthQuestion {
    number: u64,
    answer: NodeWait,
    /// When PID 1 asked the question before, and the processor time used by then. An answer comes too soon after
    /// its own question to show whether the node computes.
    before: (u64, u64),
}

/// A wait for something that the node is to do.
#[derive(Debug)]
struct NodeWait {
    /// When the wait began, plus the time for which the whole machine stood still since then.
    since: u64,
    /// When PID 1 last looked whether the node computes, and the processor time used by then.
    looked: (u64, u64),
    /// Whether a look was late.
    late: bool,
}

/// How long something may take, ms, for a node that does not compute and for one that does.
#[derive(Clone, Copy, Debug)]
struct WaitLimits {
    idle: u64,
    computing: u64,
}

const ANSWER: WaitLimits = WaitLimits {
    idle: ANSWER_MS_MAX,
    computing: ANSWER_MS_MAX_COMPUTING,
};

const READY: WaitLimits = WaitLimits {
    idle: READY_MS_MAX,
    computing: READY_MS_MAX_COMPUTING,
};

/// The decisions about the one node.
#[derive(Debug)]
pub(crate) struct NodeSupervisor {
    state: SupervisorState,
    pause: u64,
    number: u64,
    /// When the node was last well, or the grace began again.
    last_well: u64,
    /// How often the grace began again since the node was last well.
    graces: u32,
    restarts: u32,
}

impl NodeSupervisor {
    /// A supervisor of a node that is not wanted yet.
    pub(crate) const fn new(now: u64) -> Self {
        Self {
            state: SupervisorState::Idle,
            pause: PAUSE_MS_MIN,
            number: 0,
            last_well: now,
            graces: 0,
            restarts: 0,
        }
    }

    /// The node is wanted from `now` on.
    pub(crate) const fn start(&mut self, now: u64) {
        match &mut self.state {
            SupervisorState::Idle => {
                self.state = SupervisorState::Waiting { until: now };
                // The time in which the node was not wanted must not count against it.
                self.last_well = now;
                self.graces = 0;
            }
            SupervisorState::Stopping { after, .. } | SupervisorState::Dying { after } => {
                if matches!(after, RestartPolicy::Idle) {
                    *after = RestartPolicy::Next;
                }
            }
            SupervisorState::Waiting { .. }
            | SupervisorState::Running(_)
            | SupervisorState::Held => {}
        }
    }

    /// The node is not wanted any more. Returns the request for it, if it runs.
    pub(crate) const fn idle(&mut self, now: u64) -> Option<SupervisorAction> {
        match &mut self.state {
            SupervisorState::Running(_) => self.drain(now, RestartPolicy::Idle),
            SupervisorState::Stopping { after, .. } | SupervisorState::Dying { after } => {
                *after = RestartPolicy::Idle;
                None
            }
            SupervisorState::Waiting { .. } => {
                self.state = SupervisorState::Idle;
                None
            }
            SupervisorState::Held | SupervisorState::Idle => None,
        }
    }

    /// The next order. The caller calls this until it returns `None`. It answers [`SupervisorAction::Spawn`] with
    /// [`Self::spawned`] or [`Self::exited`].
    ///
    /// `computed` is the processor time that the node has used since its start, ms.
    pub(crate) fn order(&mut self, now: u64, computed: u64) -> Option<SupervisorAction> {
        match &mut self.state {
            SupervisorState::Waiting { until } if now >= *until => Some(SupervisorAction::Spawn),
            SupervisorState::Running(running) => {
                let order = running.order(now, computed, &mut self.number)?;
                if order == SupervisorAction::Abort {
                    let after = match running.is_computing(now, computed) {
                        true => RestartPolicy::Computing,
                        false => RestartPolicy::Failure,
                    };
                    self.state = SupervisorState::Stopping {
                        next: SupervisorAction::Kill,
                        at: now + ABORT_MS_MAX,
                        after,
                    };
                }
                Some(order)
            }
            SupervisorState::Stopping { next, at, after } if now >= *at => {
                let (next, after) = (*next, *after);
                self.state = SupervisorState::Dying { after };
                Some(next)
            }
            _ => None,
        }
    }

    /// When to call [`Self::order`] next, if nothing else happens.
    pub(crate) const fn deadline(&self) -> Option<u64> {
        match &self.state {
            SupervisorState::Waiting { until } => Some(*until),
            SupervisorState::Running(running) => Some(running.deadline()),
            SupervisorState::Stopping { at, .. } => Some(*at),
            SupervisorState::Dying { .. } | SupervisorState::Held | SupervisorState::Idle => None,
        }
    }

    pub(crate) const fn spawned(&mut self, now: u64) {
        self.state = SupervisorState::Running(RunningNode {
            started: now,
            start: NodeWait::new(now, 0),
            ready: false,
            question: None,
            // The node answers only once it serves.
            ask_at: u64::MAX,
            last_asked: (now, 0),
            unwell: 0,
            answers: LastAnswers { well: 0, count: 0 },
            unwell_since: None,
            unwell_computing: false,
        });
    }

    /// The node serves.
    pub(crate) const fn ready(&mut self, now: u64) {
        if let SupervisorState::Running(running) = &mut self.state {
            running.ready = true;
            running.ask_at = now + ASK_EVERY_MS;
            self.last_well = now;
            self.graces = 0;
        }
    }

    /// The node answered question `number`. `computed` is as for [`Self::order`].
    pub(crate) fn answered(&mut self, number: u64, well: bool, now: u64, computed: u64) {
        let SupervisorState::Running(running) = &mut self.state else {
            return;
        };
        // An answer to an earlier question says nothing about now.
        let Some(question) = running
            .question
            .take_if(|question| question.number == number)
        else {
            return;
        };
        running.answers.add(well);
        if !well {
            running.said_unwell(&question, now, computed);
            return;
        }
        running.unwell = 0;
        running.unwell_since = None;
        // Only a node that serves is well: one that answers and never serves has to end as well.
        if running.ready {
            self.last_well = now;
            self.graces = 0;
        }
    }

    /// The node ended or could not be started. Returns whether that was unexpected.
    pub(crate) fn exited(&mut self, now: u64) -> bool {
        let after = match &self.state {
            SupervisorState::Held | SupervisorState::Idle => return false,
            SupervisorState::Stopping { after, .. } | SupervisorState::Dying { after } => *after,
            SupervisorState::Running(running) => {
                if running.ready && now.saturating_sub(running.started) >= WELL_MS_RESET {
                    self.pause = PAUSE_MS_MIN;
                }
                RestartPolicy::Failure
            }
            SupervisorState::Waiting { .. } => RestartPolicy::Failure,
        };
        match after {
            RestartPolicy::Computing => self.begin_grace_again(now),
            RestartPolicy::Failure => {}
            RestartPolicy::Idle => {
                self.state = SupervisorState::Idle;
                return false;
            }
            RestartPolicy::Next => {
                self.begin_grace_again(now);
                self.state = SupervisorState::Waiting { until: now };
                return false;
            }
        }
        self.restarts = self.restarts.saturating_add(1);
        self.state = SupervisorState::Waiting {
            until: now + self.pause,
        };
        self.pause = (self.pause * 2).min(PAUSE_MS_MAX);
        true
    }

    /// Gives the next node all of its time to serve, unless too many before it had that.
    const fn begin_grace_again(&mut self, now: u64) {
        if self.graces < GRACES_MAX {
            self.graces += 1;
            self.last_well = now;
        }
    }

    /// Restarts the node in order, for a new configuration. Returns the request for it, if it runs.
    pub(crate) const fn restart(&mut self, now: u64) -> Option<SupervisorAction> {
        if !matches!(self.state, SupervisorState::Running(_)) {
            return None;
        }
        self.drain(now, RestartPolicy::Next)
    }

    const fn drain(&mut self, now: u64, after: RestartPolicy) -> Option<SupervisorAction> {
        self.state = SupervisorState::Stopping {
            next: SupervisorAction::Kill,
            at: now + DRAIN_MS_MAX + GOODBYE_MS_MAX,
            after,
        };
        Some(SupervisorAction::Drain)
    }

    /// The control channel broke. PID 1 can no longer ask the node, so it stops the node.
    pub(crate) const fn lost(&mut self, now: u64) {
        if matches!(self.state, SupervisorState::Running(_)) {
            self.state = SupervisorState::Stopping {
                next: SupervisorAction::Kill,
                at: now + ABORT_MS_MAX,
                after: RestartPolicy::Failure,
            };
        }
    }

    /// The machine goes down: PID 1 starts no node any more.
    pub(crate) const fn hold(&mut self) {
        self.state = SupervisorState::Held;
    }

    /// Whether the node answered for its health lately enough for the watchdog. A node that is not wanted counts as
    /// alive.
    pub(crate) const fn alive(&self, now: u64) -> bool {
        matches!(self.state, SupervisorState::Idle)
            || now.saturating_sub(self.last_well) <= GRACE_MS
    }

    /// Whether the node serves its port.
    pub(crate) const fn serves(&self) -> bool {
        matches!(&self.state, SupervisorState::Running(running) if running.ready)
    }

    /// Whether the node serves and is well by its answers: at least half of the last ones were good, and since the last
    /// good one none that [counts](UNWELL_ANSWERS_MAX) was bad. If one late answer were enough, peers could keep a version
    /// from its confirmation. A node that has not answered yet is not well.
    pub(crate) const fn is_well(&self) -> bool {
        matches!(
            &self.state,
            SupervisorState::Running(running)
                if running.ready && running.unwell == 0 && running.answers.are_good()
        )
    }

    /// How often the node ended without a request.
    pub(crate) const fn restarts(&self) -> u32 {
        self.restarts
    }
}

impl RunningNode {
    fn order(&mut self, now: u64, computed: u64, number: &mut u64) -> Option<SupervisorAction> {
        if self.is_hung(now, computed) {
            return Some(SupervisorAction::Abort);
        }
        if self.question.is_some() || now < self.ask_at {
            return None;
        }
        *number += 1;
        self.question = Some(HealthQuestion {
            number: *number,
            answer: NodeWait::new(now, computed),
            before: self.last_asked,
        });
        self.last_asked = (now, computed);
        self.ask_at = now + ASK_EVERY_MS;
        Some(SupervisorAction::Ask(*number))
    }

    fn is_hung(&mut self, now: u64, computed: u64) -> bool {
        let question = self.question.as_mut();
        let silent =
            question.is_some_and(|question| question.answer.is_over(ANSWER, now, computed));
        let late = !self.ready && self.start.is_over(READY, now, computed);
        silent || late || self.unwell >= UNWELL_ANSWERS_MAX
    }

    /// Whether a node that hangs computes, or had no chance to, because the whole machine stood still.
    const fn is_computing(&self, now: u64, computed: u64) -> bool {
        let wait = match &self.question {
            Some(question) => &question.answer,
            None if self.ready => return self.unwell_computing,
            None => &self.start,
        };
        wait.late || computes(wait.looked, now, computed)
    }

    /// The node reported that it is unwell.
    const fn said_unwell(&mut self, question: &HealthQuestion, now: u64, computed: u64) {
        let since = match self.unwell_since {
            Some(since) => since,
            None => question.answer.since,
        };
        self.unwell_since = Some(since);
        self.unwell_computing = computes(question.before, now, computed);
        if now >= since + ANSWER_MS_MAX_COMPUTING || !self.unwell_computing {
            self.unwell += 1;
        }
    }

    const fn deadline(&self) -> u64 {
        match &self.question {
            Some(question) => question.answer.look_at(ANSWER),
            None if self.ready => self.ask_at,
            None => self.start.look_at(READY),
        }
    }
}

impl LastAnswers {
    const fn add(&mut self, well: bool) {
        self.well = (self.well << 1 | well as u16) & ((1 << LAST_ANSWERS) - 1);
        if self.count < LAST_ANSWERS {
            self.count += 1;
        }
    }

    /// Whether there are answers, and at least half of them are good.
    const fn are_good(&self) -> bool {
        self.well != 0 && self.well.count_ones() * 2 >= self.count
    }
}

/// Whether the node computes since an earlier time, by when it had used so much processor time.
const fn computes((earlier, by_then): (u64, u64), now: u64, computed: u64) -> bool {
    let had = computed.saturating_sub(by_then);
    had > 0 && had * COMPUTING_PART >= now.saturating_sub(earlier)
}

impl NodeWait {
    const fn new(now: u64, computed: u64) -> Self {
        Self {
            since: now,
            looked: (now, computed),
            late: false,
        }
    }

    const fn look_at(&self, limits: WaitLimits) -> u64 {
        self.looked.0 + limits.idle
    }

    /// Whether the node hangs: it takes longer than any node may, or longer than a node that does not compute may.
    const fn is_over(&mut self, limits: WaitLimits, now: u64, computed: u64) -> bool {
        let look_at = self.look_at(limits);
        if now < look_at {
            return false;
        }
        let is_late = now >= look_at + LATE_MS;
        if is_late {
            self.since += now - look_at;
            self.late = true;
        }
        let is_over = now >= self.since + limits.computing;
        if is_over || !is_late && !computes(self.looked, now, computed) {
            return true;
        }
        self.looked = (now, computed);
        false
    }
}

#[cfg(test)]
mod tests;
