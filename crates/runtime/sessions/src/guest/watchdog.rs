//! Checks the running calls every few milliseconds: it reports their progress for the heartbeats, stops calls that
//! ignored an abort, and sends lines of the console.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Instant;

use alknet_runtime::{IsolateHandle, RuntimeCode, ScriptFailure};
use alknet_worker::{Guest, GuestCall};

use super::bridge::Bridge;
use super::{lock, refuse_after};
use crate::limits::{ABORT_LISTEN, PULSE};

/// The watchdog and the calls that it checks.
#[derive(Debug)]
pub(super) struct CallWatchdog {
    guest: Guest,
    state: Mutex<WatchdogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WatchdogState {
    calls: HashMap<u64, WatchedCall>,
    /// The reference is weak, so that a session that has ended drops its bridge.
    sessions: HashMap<u64, Weak<Bridge>>,
    /// Whether a session has lines to send.
    lines: bool,
}

#[derive(Debug)]
struct WatchedCall {
    call: GuestCall,
    /// Set once the isolate has the call: its handle, and its fuel when the call began.
    running: Option<(IsolateHandle, u64)>,
    /// When the call was aborted, and the isolate's fuel at that time.
    aborted: Option<(Instant, u64)>,
}

impl CallWatchdog {
    pub(super) fn new(guest: Guest) -> Self {
        Self {
            guest,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn run(&self) -> ! {
        loop {
            let mut state = lock(&self.state);
            while state.calls.is_empty() && !state.lines {
                let slept = self.changed.wait(state);
                state = slept.unwrap_or_else(PoisonError::into_inner);
            }
            let slept = self.changed.wait_timeout(state, PULSE);
            let (mut state, _) = slept.unwrap_or_else(PoisonError::into_inner);
            self.check(&mut state);
            state.lines = false;
            state.sessions.retain(|_, bridge| bridge.strong_count() > 0);
            let sessions = state.sessions.values();
            let bridges: Vec<Arc<Bridge>> = sessions.filter_map(Weak::upgrade).collect();
            // Each bridge has its own lock, and writing to the host takes time.
            drop(state);
            // This includes scripts that write and then compute, whose own threads do not return.
            bridges.iter().for_each(|bridge| bridge.flush());
        }
    }

    fn check(&self, state: &mut WatchdogState) {
        let now = Instant::now();
        let mut silent = Vec::new();
        for (id, watched) in &mut state.calls {
            if let Some((remote, from)) = &watched.running {
                let budget = remote.budget();
                watched
                    .call
                    .progress(budget.ticks().saturating_sub(*from), budget.external().0);
            }
            if watched.call.is_aborted() {
                let isolate = watched.running.as_ref();
                let ticks = isolate.map(|(remote, _)| remote.budget().ticks());
                let first = (now, ticks.unwrap_or(0));
                let (since, before) = *watched.aborted.get_or_insert(first);
                if now.duration_since(since) >= ABORT_LISTEN {
                    silent.push((*id, ticks.is_some_and(|ticks| ticks > before)));
                }
            }
        }
        for (id, computed) in silent {
            self.stop(state, id, computed);
        }
    }

    /// Ends a call that ignored its abort. If it is the only call in its isolate, the isolate is stopped, with the
    /// calls that wait for its end. If other calls have begun there, the call is answered from here, so that they go
    /// on; what it still consumes counts as theirs until their budget is used up. An isolate that has not `computed`
    /// since the abort is not stopped: it waits for a processor, and handles the abort before anything else.
    fn stop(&self, state: &mut WatchdogState, id: u64, computed: bool) {
        let Some(watched) = state.calls.get(&id) else {
            return;
        };
        let sid = watched.call.sid();
        let siblings = state
            .calls
            .values()
            .filter(|other| other.call.sid() == sid && other.running.is_some())
            .count();
        match &watched.running {
            Some((remote, _)) if siblings == 1 => {
                if computed {
                    remote.stop(RuntimeCode::Abort);
                }
            }
            _ => {
                let failure =
                    ScriptFailure::new(RuntimeCode::Abort, "the call was ended from outside");
                let peaks = watched.running.as_ref();
                let peaks =
                    peaks.map(|(remote, _)| (remote.heap_peak(), remote.budget().external().1));
                let peaks = peaks.unwrap_or_default();
                refuse_after(&self.guest, &watched.call, &failure, peaks);
                state.calls.remove(&id);
            }
        }
    }

    pub(super) fn add_session(&self, sid: u64, bridge: Arc<Bridge>) {
        lock(&self.state)
            .sessions
            .insert(sid, Arc::downgrade(&bridge));
    }

    /// Adds a call that its isolate has not begun.
    pub(super) fn expect(&self, call: &GuestCall) {
        let watched = WatchedCall {
            call: call.clone(),
            running: None,
            aborted: None,
        };
        lock(&self.state).calls.insert(call.id(), watched);
        self.changed.notify_one();
    }

    /// Records that the isolate begins a call. Returns whether the call is still wanted.
    pub(super) fn begin(&self, id: u64, remote: &IsolateHandle) -> bool {
        let mut state = lock(&self.state);
        let Some(watched) = state.calls.get_mut(&id) else {
            return false;
        };
        watched.running = Some((remote.clone(), remote.budget().ticks()));
        true
    }

    /// Records that a call has ended. Returns whether it has no answer yet.
    pub(super) fn end(&self, id: u64) -> bool {
        lock(&self.state).calls.remove(&id).is_some()
    }

    pub(super) fn knows(&self, id: u64) -> bool {
        lock(&self.state).calls.contains_key(&id)
    }

    /// Records that a session has lines to send.
    pub(super) fn has_lines(&self) {
        let mut state = lock(&self.state);
        if !state.lines {
            state.lines = true;
            self.changed.notify_one();
        }
    }
}
