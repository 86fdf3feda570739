//! Counters of sessions since the node started.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use alknet_core::Metrics;

use super::{ScriptSessions, SessionEndReason, lock};

/// The counters since the node started.
#[derive(Debug, Default)]
pub(super) struct SessionCounters {
    pub(super) opened: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) calls_out: AtomicU64,
    pub(super) closed: Mutex<BTreeMap<SessionEndReason, u64>>,
}

impl ScriptSessions {
    /// Adds the counters to the node's metrics.
    pub fn collect(&self, into: &mut Metrics) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let plain = [
            (
                "alknet_script_sessions_opened_total",
                "Script sessions that were opened.",
                read(&self.counters.opened),
            ),
            (
                "alknet_script_sessions_refused_total",
                "Script sessions that were not opened.",
                read(&self.counters.refused),
            ),
            (
                "alknet_script_calls_total",
                "Calls into scripts.",
                read(&self.counters.calls),
            ),
            (
                "alknet_script_calls_out_total",
                "Calls and subscriptions that scripts began.",
                read(&self.counters.calls_out),
            ),
        ];
        for (name, help, value) in plain {
            into.counter(name, help, &[], value);
        }
        let open = self.lock().len();
        let help = "Script sessions that are open.";
        into.gauge("alknet_script_sessions", help, &[], open as f64);
        let help = "Bytes of the node's memory that values of scripts take.";
        let used = self.memory.used();
        into.gauge("alknet_script_memory_bytes", help, &[], used as f64);
        let help = "The most of these bytes at once since the node started.";
        let peak = self.memory.peak();
        into.gauge("alknet_script_memory_peak_bytes", help, &[], peak as f64);
        for (reason, count) in lock(&self.counters.closed).iter() {
            let help = "Script sessions that ended, by reason.";
            let labels = [("reason", reason.name())];
            into.counter("alknet_script_sessions_ended_total", help, &labels, *count);
        }
        self.collect_workers(into);
    }

    fn collect_workers(&self, into: &mut Metrics) {
        let stats = self.workers.stats();
        for (role, running) in &stats.workers {
            let labels = [("role", role.name())];
            let help = "Worker processes that run, by role.";
            into.gauge("alknet_workers", help, &labels, *running as f64);
        }
        for (reason, count) in &stats.ended {
            let labels = [("reason", reason.name())];
            let help = "Worker processes that ended, by reason.";
            into.counter("alknet_workers_ended_total", help, &labels, *count);
        }
        let help = "Bytes of workers' log that were dropped.";
        into.counter(
            "alknet_workers_log_dropped_total",
            help,
            &[],
            stats.log_dropped,
        );
    }

    pub(super) fn count_call(&self) {
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_call_out(&self) {
        self.counters.calls_out.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of opened and of refused sessions since the node started.
    pub(crate) fn opened(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.counters.opened), read(&self.counters.refused))
    }

    /// The reasons of ended sessions since the node started.
    pub(crate) fn closed(&self) -> BTreeMap<SessionEndReason, u64> {
        lock(&self.counters.closed).clone()
    }
}
