//! The table of sessions, and a session's entry in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_runtime::ScriptFailure;
use tokio::sync::mpsc;

use super::actor::SessionCommand;
use super::shared::{SessionEndReason, SessionShared};
use super::{ScriptSessions, SessionInfo, SessionSpec, lock, opening};

/// Target of what the log says of ended sessions: a script ends as often and as it likes, so the log counts them by
/// `owner`.
pub const SESSION_END_TARGET: &str = "alknet_sessions::end";

#[derive(Debug)]
pub(super) struct SessionEntry {
    pub(super) shared: Arc<SessionShared>,
    pub(super) commands: mpsc::WeakUnboundedSender<SessionCommand>,
}

impl ScriptSessions {
    pub(super) fn admit(
        self: &Arc<Self>,
        tenant: &str,
        spec: &SessionSpec,
    ) -> Result<SessionPermit, ScriptFailure> {
        let mut table = self.lock();
        let own = || {
            let all = table.values().map(|known| &known.shared);
            all.filter(|shared| shared.tenant() == tenant)
        };
        let lent = || own().filter(|shared| shared.is_lent()).count();
        if table.len() >= self.config.sessions_max
            || own().count() >= self.config.of_tenant_max
            || spec.lent && lent() >= self.config.of_tenant_max.div_ceil(2)
        {
            return Err(ScriptFailure::no_capacity("too many sessions are open"));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let memory = self.memory.share(&account(tenant, spec));
        let mut shared = SessionShared::new(id, tenant, spec.mode, memory);
        shared.set_lent(spec.lent);
        let shared = Arc::new(shared);
        // The sender is already closed, and the actor's one replaces it.
        let (closed, _) = mpsc::unbounded_channel();
        let known = SessionEntry {
            shared: Arc::clone(&shared),
            commands: closed.downgrade(),
        };
        table.insert(id, known);
        Ok(SessionPermit {
            sessions: Arc::clone(self),
            shared,
            is_open: false,
        })
    }

    pub(super) fn know(
        &self,
        shared: &SessionShared,
        commands: &mpsc::UnboundedSender<SessionCommand>,
    ) {
        if let Some(known) = self.lock().get_mut(&shared.id()) {
            known.commands = commands.downgrade();
        }
    }

    /// Removes a session that has ended.
    pub(super) fn forget(&self, shared: &SessionShared, reason: SessionEndReason) {
        shared.close(reason);
        if self.lock().remove(&shared.id()).is_some() {
            *lock(&self.counters.closed)
                .entry(shared.reason())
                .or_default() += 1;
            log_end(&shared.info(), &shared.called(), shared.reason());
        }
    }
}

/// The account whose share of the node's memory the session's values use.
fn account(tenant: &str, spec: &SessionSpec) -> String {
    match (&spec.payer, spec.lent) {
        (Some(payer), _) => opening::tenant(Some(payer)),
        // Callers of a service must not use up the author's own share.
        (None, true) => format!("lent {tenant}"),
        (None, false) => tenant.to_owned(),
    }
}

/// Logs how a session ended, at a higher level if it ended before its work was done.
fn log_end(info: &SessionInfo, called: &[String], outcome: SessionEndReason) {
    let calls_out: u64 = info.calls.values().sum();
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: SESSION_END_TARGET,
                session = info.id,
                owner = info.tenant.as_str(),
                %outcome,
                calls = info.ended,
                fuel = info.ticks,
                cpu_ms = millis(info.cpu),
                wall_ms = millis(info.wall),
                gpu_ms = millis(info.gpu),
                heap_peak = info.heap_peak,
                external_peak = info.external_peak,
                calls_out,
                called = called.join(","),
                "a script session is over"
            )
        };
    }
    match outcome {
        SessionEndReason::Done => line!(debug),
        _ => line!(info),
    }
}

/// A session's entry while it is being opened. The caller may give up at any moment, which removes
/// the entry.
pub(super) struct SessionPermit {
    sessions: Arc<ScriptSessions>,
    pub(super) shared: Arc<SessionShared>,
    is_open: bool,
}

impl SessionPermit {
    /// Keeps the entry of an opened session, which its task removes later.
    pub(super) fn into_opened(mut self) -> Arc<SessionShared> {
        self.is_open = true;
        Arc::clone(&self.shared)
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        if !self.is_open {
            self.sessions.lock().remove(&self.shared.id());
        }
    }
}
