//! Runs an isolate in turns: enter the engine, run its jobs, check the calls, and wait.

use std::future::poll_fn;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use rquickjs::{Ctx, Promise, Value as JsValue};

use super::failure::NULL;
use super::pending::Arrival;
use super::shared::{PromiseSettler, Timer};
use super::{
    ActiveEntry, EntryOutcome, EntryStats, Isolate, IsolateCommand, IsolateWork, Rejected,
    SessionMode, failure,
};
use crate::error::{OpError, RuntimeCode, ScriptFailure};
use crate::host::{OpReply, SinkStopped, ValueSink};
use crate::isolate::shared::IsolateState;
use crate::json::{self, ScriptValueWriter};
use crate::limits::JOBS_PER_TURN;

/// The jobs between two checks of the clock: the engine checks it only inside long jobs.
const JOBS_PER_LOOK: u64 = 64;

/// An event that ends a wait.
enum DriveEvent {
    Command(IsolateCommand),
    Arrived(PromiseSettler, Arrival),
    Due(Timer),
    Stopped,
    /// No event can settle the calls any more.
    Stalled,
}

impl Isolate {
    /// Begins a call. [`next`](Self::next) returns its outcome with the same id.
    pub fn start(&mut self, entry: u64, work: IsolateWork) {
        if let Some(closed) = self.closed.clone() {
            self.refuse(entry, closed);
            return;
        }
        let (limits, budget) = (&self.shared.spec.limits, &self.shared.budget);
        match self.entries.is_empty() {
            true => {
                self.heap.forget_refusal();
                budget.renew(limits.fuel_ticks, limits.cpu);
            }
            false => budget.allow(limits.fuel_ticks, limits.cpu),
        }
        let started =
            self.enter(|ctx, isolate| ActiveEntry::start(ctx, &isolate.shared, entry, work));
        match started {
            Ok(active) => self.entries.push(active),
            Err(failure) => {
                let failure = self.judged(failure);
                self.refuse(entry, failure);
            }
        }
        self.turn();
    }

    /// Begins a call and waits for its outcome. The outcomes of other calls are kept for
    /// [`next`](Self::next).
    pub async fn run(&mut self, work: IsolateWork) -> EntryOutcome {
        let entry = u64::MAX;
        self.start(entry, work);
        let mut others = Vec::new();
        loop {
            let outcome = self.next().await;
            if outcome.entry == entry {
                self.finished.extend(others);
                return outcome;
            }
            others.push(outcome);
        }
    }

    /// Returns the next call that ended, or waits for one; dropping the future loses nothing.
    pub async fn next(&mut self) -> EntryOutcome {
        loop {
            if let Some(outcome) = self.finished.pop_front() {
                return outcome;
            }
            let event = poll_fn(|cx| self.poll_event(cx)).await;
            self.handle(event);
        }
    }

    fn poll_event(&mut self, cx: &mut TaskContext<'_>) -> Poll<DriveEvent> {
        // The waker is registered first: otherwise a stop between the check and the wait would not
        // wake this task.
        self.shared.budget.waker().register(cx.waker());
        if self.closed.is_none() && self.shared.budget.stopped().is_some() {
            return Poll::Ready(DriveEvent::Stopped);
        }
        if let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            return Poll::Ready(DriveEvent::Command(command));
        }
        let arrival = self.shared.pending_calls.borrow_mut().poll(cx);
        if let Poll::Ready((settle, arrival)) = arrival {
            return Poll::Ready(DriveEvent::Arrived(settle, arrival));
        }
        if let Poll::Ready(timer) = self.poll_timer(cx) {
            return Poll::Ready(DriveEvent::Due(timer));
        }
        let waits = !self.shared.pending_calls.borrow().is_empty()
            || !self.shared.timers.borrow().is_empty();
        // A later call into a service may still settle the promise.
        let can_stall = self.shared.spec.mode != SessionMode::Service && !self.entries.is_empty();
        match can_stall && !waits {
            true => Poll::Ready(DriveEvent::Stalled),
            false => Poll::Pending,
        }
    }

    /// The earliest timer, once it is due. A virtual clock advances to it if the script awaits no
    /// answer.
    fn poll_timer(&mut self, cx: &mut TaskContext<'_>) -> Poll<Timer> {
        let shared = &self.shared;
        let Some((due, _)) = shared.timers.borrow().keys().next().copied() else {
            return Poll::Pending;
        };
        let mut clock = shared.clock.borrow_mut();
        let now = clock.elapsed_ms();
        if now < due {
            if !clock.is_virtual() {
                return self.sleep_until_due(due - now, cx);
            }
            // An answer may arrive before the timer, so a virtual clock must not pass it.
            if !shared.pending_calls.borrow().is_empty() {
                return Poll::Pending;
            }
            clock.advance_to(due);
        }
        match shared.timers.borrow_mut().pop_first() {
            Some((_, timer)) => Poll::Ready(timer),
            None => Poll::Pending,
        }
    }

    /// Asks the host to wake this task. The host is not trusted: the clock is checked again
    /// afterwards.
    fn sleep_until_due(&self, ms: u64, cx: &mut TaskContext<'_>) -> Poll<Timer> {
        let mut sleep: LocalBoxFuture<'static, ()> =
            self.shared.host.sleep(Duration::from_millis(ms));
        if sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        *self.sleeping.borrow_mut() = Some(sleep);
        Poll::Pending
    }

    fn handle(&mut self, event: DriveEvent) {
        match event {
            DriveEvent::Command(IsolateCommand::Start(entry, work)) => {
                return self.start(entry, work);
            }
            DriveEvent::Command(IsolateCommand::Abort(entry)) => return self.abort(entry),
            DriveEvent::Arrived(settle, arrival) => self.deliver(settle, arrival),
            DriveEvent::Due(timer) => {
                let called = self.enter(|ctx, _| timer.run.restore(ctx)?.call::<_, ()>(()));
                self.fail_on_exception(called);
            }
            DriveEvent::Stopped => {}
            DriveEvent::Stalled => {
                // There may have been no memory for the code that would have settled it.
                let text = "the promise can never settle: nothing is awaited any more";
                let failure = match self.heap.was_refused() {
                    true => failure::ended(&self.shared, RuntimeCode::Memory),
                    false => ScriptFailure::new(RuntimeCode::Exception, text),
                };
                self.fail_all(&failure);
            }
        }
        self.turn();
    }

    /// Ends one call with `E_ABORT`. If it is the only one, the calls that it awaits are aborted
    /// too.
    pub fn abort(&mut self, entry: u64) {
        let Some(at) = self.entries.iter().position(|active| active.id == entry) else {
            return;
        };
        let mut active = self.entries.remove(at);
        self.enter(|ctx, _| active.abort(ctx));
        let outcome = active.outcome(
            &self.shared,
            Err(failure::ended(&self.shared, RuntimeCode::Abort)),
        );
        self.finished.push_back(outcome);
        if self.entries.is_empty() {
            if self.shared.spec.mode == SessionMode::OneShot {
                self.enter(|ctx, isolate| {
                    let session = isolate.shared.hook(ctx, "sessionAbort");
                    // Without the grant to call, there is no such hook, and no code listens.
                    if session.and_then(|abort| abort.call::<_, ()>(())).is_err() {
                        ctx.catch();
                    }
                });
            }
            drop(self.shared.pending_calls.borrow_mut().cancel_all());
            self.shared.timers.borrow_mut().clear();
        }
        self.turn();
    }

    /// Settles a promise with the host's answer.
    fn deliver(&mut self, settle: PromiseSettler, arrival: Arrival) {
        let settled = self.enter(|ctx, isolate| {
            let shared = &isolate.shared;
            let written = arrival.and_then(|reply| match reply {
                Some(reply) => written(ctx, shared, reply).map(|value| (value, false)),
                None => Ok((JsValue::new_undefined(ctx.clone()), true)),
            });
            match written {
                Err(error) => {
                    let called_at = settle.called_at.map(|stack| stack.restore(ctx));
                    let error = shared.op_error(ctx, &error, called_at.transpose()?)?;
                    settle.reject.restore(ctx)?.call::<_, ()>((error,))
                }
                Ok((value, end)) => settle.resolve.restore(ctx)?.call::<_, ()>((value, end)),
            }
        });
        self.fail_on_exception(settled);
    }

    /// Handles an exception that no promise carries.
    fn fail_on_exception(&mut self, called: rquickjs::Result<()>) {
        if let Err(error) = called {
            let failure = self.enter(|ctx, isolate| failure::of_error(ctx, &isolate.shared, error));
            self.fail_all(&failure);
        }
    }

    /// Runs jobs and calls until all of them wait, and closes the isolate if a limit was reached.
    fn turn(&mut self) {
        loop {
            if let Err(failure) = self.drain() {
                self.fail_all(&failure);
            }
            let before = self.finished.len();
            let mut entries = std::mem::take(&mut self.entries);
            entries.retain_mut(|active| {
                let answer = self.enter(|ctx, isolate| active.advance(ctx, &isolate.shared));
                let Some(answer) = answer else { return true };
                let answer = answer.map_err(|failure| self.judged(failure));
                let outcome = active.outcome(&self.shared, answer);
                self.finished.push_back(outcome);
                false
            });
            self.entries = entries;
            self.close_if_over();
            // Ended calls may have left jobs, and jobs may have ended other calls.
            let quiet = self.finished.len() == before && !self.runtime.is_job_pending();
            if quiet || self.closed.is_some() {
                break;
            }
        }
    }

    /// Runs jobs until there are no more, or the budget is used up.
    fn drain(&self) -> Result<(), ScriptFailure> {
        let budget = &self.shared.budget;
        let mut uncaught = None;
        let mut jobs = 0;
        budget.enter();
        while budget.stopped().is_none() {
            match self.runtime.execute_pending_job() {
                Ok(false) => break,
                Ok(true) => {}
                Err(exception) => {
                    let failure = exception.0.with(|ctx| {
                        failure::of_error(&ctx, &self.shared, rquickjs::Error::Exception)
                    });
                    uncaught.get_or_insert(failure);
                }
            }
            jobs += 1;
            // Short jobs that create further jobs would never end: the engine checks its limits
            // only inside long ones.
            if jobs >= JOBS_PER_TURN && self.runtime.is_job_pending() {
                budget.stop(RuntimeCode::Fuel);
            } else if jobs % JOBS_PER_LOOK == 0 {
                budget.over_time();
            }
        }
        budget.leave();
        let unheard = self.enter(unheard);
        // After a limit, its own code counts instead of the exception that it caused.
        match uncaught.or(unheard) {
            Some(failure) if budget.stopped().is_none() => Err(self.judged(failure)),
            _ => Ok(()),
        }
    }

    /// If memory was refused, a thrown `null` is the engine's way to report that an error did not
    /// fit.
    fn judged(&self, failure: ScriptFailure) -> ScriptFailure {
        let null = failure.code == RuntimeCode::Exception && failure.message == NULL;
        match null && self.heap.was_refused() {
            true => failure::ended(&self.shared, RuntimeCode::Memory),
            false => failure,
        }
    }

    /// After a limit, no code that the script left behind may run.
    fn close_if_over(&mut self) {
        let over = self.shared.budget.stopped();
        let over = over.map(|code| failure::ended(&self.shared, code));
        let mut failed = self
            .finished
            .iter()
            .filter_map(|outcome| outcome.result.as_ref().err());
        let over = over.or_else(|| failed.find(|failure| failure.closes()).cloned());
        let Some(over) = over.filter(|_| self.closed.is_none()) else {
            return;
        };
        self.closed = Some(over.clone());
        self.fail_all(&over);
        self.shared.timers.borrow_mut().clear();
        drop(self.shared.pending_calls.borrow_mut().cancel_all());
    }

    fn fail_all(&mut self, failure: &ScriptFailure) {
        for active in std::mem::take(&mut self.entries) {
            let outcome = active.outcome(&self.shared, Err(failure.clone()));
            self.finished.push_back(outcome);
        }
    }

    fn refuse(&mut self, entry: u64, failure: ScriptFailure) {
        let stats = EntryStats {
            calls: self.shared.calls.get(),
            ..EntryStats::default()
        };
        self.finished.push_back(EntryOutcome {
            entry,
            result: Err(failure),
            shown: None,
            stats,
        });
    }

    /// The only way into the engine, which charges the time spent inside.
    pub(super) fn enter<R>(&self, run: impl FnOnce(&Ctx<'_>, &Self) -> R) -> R {
        self.shared.budget.enter();
        let result = self.context.with(|ctx| run(&ctx, self));
        self.shared.budget.leave();
        result
    }
}

/// The failure of the first promise that was rejected without a handler.
fn unheard(ctx: &Ctx<'_>, isolate: &Isolate) -> Option<ScriptFailure> {
    let list = ctx.userdata::<Rejected<'_>>()?.take();
    let first = list.into_iter().next()?;
    let promise: Promise<'_> = first.into_promise()?;
    match promise.result::<JsValue<'_>>() {
        Some(Err(error)) => Some(failure::of_error(ctx, &isolate.shared, error)),
        _ => None,
    }
}

/// The code of an answer that a script has no room for.
const NO_ROOM: &str = "QUOTA_EXCEEDED";

/// The script's value of an answer. An answer that does not fit is an error of its call: others choose how large it is,
/// and the session, with the state of a service, goes on.
fn written<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    reply: OpReply,
) -> Result<JsValue<'js>, OpError> {
    shared.heap.with_reserve(|| {
        let mut writer = ScriptValueWriter::new(ctx, shared);
        let stopped = |SinkStopped| OpError::new(NO_ROOM, SinkStopped.to_string());
        let sent = match reply {
            OpReply::Json(value) => json::send(&value, &mut writer).map_err(stopped),
            OpReply::Bytes(bytes) => writer.buffer(bytes).map_err(stopped),
            OpReply::Mixed(value, bytes) => {
                writer.bytes(bytes);
                json::send(&value, &mut writer).map_err(stopped)
            }
            OpReply::Deferred(deferred) => deferred.write(&mut writer),
        };
        if let Some(why) = writer.stopped() {
            return Err(OpError::new(NO_ROOM, why.to_string()));
        }
        sent?;
        let incomplete = || OpError::new("INVALID_INPUT", "the answer has no end");
        writer.into_value().ok_or_else(incomplete)
    })
}
