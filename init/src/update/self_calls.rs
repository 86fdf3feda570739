//! The results of the calls by which the node of a version on trial finds out whether it answers. No clock: the caller
//! passes times.

use crate::control::SelfCallResult;

use super::gate::GATE_HOLD_MS;

/// Whether the node answers itself, by its calls since it began to serve.
///
/// A call that failed counts at once. A call without an answer proves nothing, because clients can make the node late:
/// one that was answered counts for [`GATE_HOLD_MS`], whatever clients do meanwhile. This is as long as the gate has to
/// hold, so a version is confirmed after two answered calls at the least.
#[derive(Debug, Default)]
pub(crate) struct SelfCalls {
    /// When the last call was answered, unless one failed since then.
    answered: Option<u64>,
}

impl SelfCalls {
    pub(crate) const fn add(&mut self, result: &SelfCallResult, now: u64) {
        match result {
            SelfCallResult::Answered => self.answered = Some(now),
            SelfCallResult::Failed { .. } => self.answered = None,
            SelfCallResult::Unanswered { .. } => {}
        }
    }

    pub(crate) fn are_answered(&self, now: u64) -> bool {
        self.answered
            .is_some_and(|at| now.saturating_sub(at) < GATE_HOLD_MS)
    }

    /// The node ended. Its answers do not count for the next one.
    pub(crate) const fn forget(&mut self) {
        self.answered = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::{GateBaseline, GateStep, GateView, UpdateGate};

    fn failed() -> SelfCallResult {
        let reason = "it has no certificate".to_owned();
        SelfCallResult::Failed { reason }
    }

    fn unanswered() -> SelfCallResult {
        let reason = "no answer in 10 s".to_owned();
        SelfCallResult::Unanswered { reason }
    }

    /// How the gate of a machine ends that is well but for its calls, which have these results, one every 5 s.
    fn trial(result: impl Fn(u64) -> SelfCallResult) -> (GateStep, u64) {
        let mut gate = UpdateGate::new(GateBaseline::from_note(None), 0);
        let mut calls = SelfCalls::default();
        for number in 1_u64.. {
            let now = number * 5_000;
            calls.add(&result(number), now);
            let view = GateView {
                answers_itself: calls.are_answered(now),
                ..GateView::WELL
            };
            match gate.step(&view, now) {
                Some(GateStep::Wait(_)) => {}
                step => return (step.expect("the gate is not over"), number),
            }
        }
        unreachable!("the gate gives up after ten minutes");
    }

    #[test]
    fn a_version_that_does_not_answer_itself_is_not_confirmed() {
        let waited = GateStep::GiveUp("the node's answer to a call of its own".to_owned());
        assert_eq!(trial(|_| failed()).0, waited);
        assert_eq!(trial(|_| unanswered()).0, waited);
        // One answer is not enough: the node hangs from then on.
        let once = trial(|number| match number {
            1 => SelfCallResult::Answered,
            _ => unanswered(),
        });
        assert_eq!(once.0, waited);
        // A call that fails begins the minute again.
        let (step, number) = trial(|number| match number {
            12 => failed(),
            _ => SelfCallResult::Answered,
        });
        assert_eq!((step, number), (GateStep::Confirm, 25));
    }

    /// Clients keep the processors busy, so that most calls have no answer in time.
    #[test]
    fn clients_that_leave_calls_unanswered_keep_no_version_from_its_confirmation() {
        let (step, number) = trial(|number| match number % 6 {
            1 => SelfCallResult::Answered,
            _ => unanswered(),
        });
        assert_eq!((step, number), (GateStep::Confirm, 13));
    }

    #[test]
    fn the_calls_of_a_node_that_ended_do_not_count() {
        let mut calls = SelfCalls::default();
        calls.add(&SelfCallResult::Answered, 0);
        assert!(calls.are_answered(GATE_HOLD_MS - 1));
        assert!(!calls.are_answered(GATE_HOLD_MS));
        calls.forget();
        assert!(!calls.are_answered(1));
    }
}
