//! The table of sessions, and a session's place in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_runtime::Failure;
use tokio::sync::mpsc;

use super::actor::Command;
use super::shared::{Reason, Shared};
use super::{SessionInfo, SessionSpec, Sessions, lock, opening};

#[derive(Debug)]
pub(super) struct Known {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::WeakUnboundedSender<Command>,
}

impl Sessions {
    pub(super) fn admit(
        self: &Arc<Self>,
        tenant: &str,
        spec: &SessionSpec,
    ) -> Result<Place, Failure> {
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
            return Err(Failure::no_room("too many sessions are open"));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let memory = self.memory.share(&account(tenant, spec));
        let mut shared = Shared::new(id, tenant, spec.mode, memory);
        shared.set_lent(spec.lent);
        let shared = Arc::new(shared);
        let (nobody, _) = mpsc::unbounded_channel();
        let known = Known {
            shared: Arc::clone(&shared),
            commands: nobody.downgrade(),
        };
        table.insert(id, known);
        Ok(Place {
            sessions: Arc::clone(self),
            shared,
            kept: false,
        })
    }

    pub(super) fn know(&self, shared: &Shared, commands: &mpsc::UnboundedSender<Command>) {
        if let Some(known) = self.lock().get_mut(&shared.id()) {
            known.commands = commands.downgrade();
        }
    }

    /// A session is over.
    pub(super) fn forget(&self, shared: &Shared, reason: Reason) {
        shared.close(reason);
        if self.lock().remove(&shared.id()).is_some() {
            *lock(&self.counters.closed)
                .entry(shared.reason())
                .or_default() += 1;
            tell(&shared.info(), shared.reason());
        }
    }
}

/// Whose share of the node's memory the values of a session take.
fn account(tenant: &str, spec: &SessionSpec) -> String {
    match (&spec.payer, spec.lent) {
        (Some(payer), _) => opening::tenant(Some(payer)),
        // Callers of a service do not take what is the author's.
        (None, true) => format!("lent {tenant}"),
        (None, false) => tenant.to_owned(),
    }
}

/// What a session came to, for the log: plainly where it ended before its work was done.
fn tell(info: &SessionInfo, outcome: Reason) {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                session = info.id,
                tenant = info.tenant,
                %outcome,
                calls = info.ended,
                fuel = info.ticks,
                cpu_ms = millis(info.cpu),
                wall_ms = millis(info.wall),
                gpu_ms = millis(info.gpu),
                heap_peak = info.heap_peak,
                external_peak = info.external_peak,
                calls_out = ?info.calls,
                "a script session is over"
            )
        };
    }
    match outcome {
        Reason::Done => line!(debug),
        _ => line!(info),
    }
}

/// A session's place in the table while it is opened. Whoever opens it may give up at any moment.
pub(super) struct Place {
    sessions: Arc<Sessions>,
    pub(super) shared: Arc<Shared>,
    kept: bool,
}

impl Place {
    /// It is open: from now on its task keeps the place.
    pub(super) fn keep(mut self) -> Arc<Shared> {
        self.kept = true;
        Arc::clone(&self.shared)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            self.sessions.lock().remove(&self.shared.id());
        }
    }
}
