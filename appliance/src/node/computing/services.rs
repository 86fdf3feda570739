//! Promoted services. Each has one session, which keeps its state from call to call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alknet_core::PeerId;
use alknet_promotion::{InstalledService, PromotedInvocation};
use alknet_runtime::{RuntimeCode, ScriptFailure};
use alknet_sessions::{ScriptService, ScriptSessions, SessionSpec};
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinError;

use super::promoted::spec;

/// Number of calls to other operations after which a service continues in a new session: a session
/// may make a limited number of calls, and a service runs without an end.
const RENEW_AFTER: u64 = 1000;
/// How long an ending node waits for its services to save their state. Each has half a second once
/// it is idle.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// The running service, if any. A caller locks it for the whole call: a service answers one call at
/// a time, so that calls which the service makes are never attributed to another caller.
type ServiceCell = Arc<tokio::sync::Mutex<Option<ServiceHandle>>>;
type ServiceGuard = OwnedMutexGuard<Option<ServiceHandle>>;

/// The turns of a service's callers. Each caller has one turn at a time, so at most one of its calls waits for the
/// service: who calls again and again delays the calls of another caller by one call, and not by all that it may have.
#[derive(Default)]
struct CallerTurns(Mutex<HashMap<Option<PeerId>, Weak<tokio::sync::Mutex<()>>>>);

impl CallerTurns {
    /// Waits until no earlier call of this caller waits or runs; `None` are all unknown peers. The turn ends when the
    /// guard is dropped.
    async fn take(&self, caller: Option<PeerId>) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // The table has no more entries than there are callers with calls.
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(&caller).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(caller, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

struct ServiceHandle {
    service: ScriptService,
    is: InstalledService,
    /// The exported function that answers calls.
    export: String,
}

/// The services of this node.
pub(super) struct PromotedServices {
    sessions: Arc<ScriptSessions>,
    /// The services by the operation's path.
    entries: Mutex<BTreeMap<String, ServiceSlot>>,
}

#[derive(Clone)]
struct ServiceSlot {
    now: InstalledService,
    slot: ServiceCell,
    turns: Arc<CallerTurns>,
}

impl PromotedServices {
    pub(super) fn new(sessions: &Arc<ScriptSessions>) -> Self {
        Self {
            sessions: Arc::clone(sessions),
            entries: Mutex::default(),
        }
    }

    /// Installs these services. The next call changes a running service to the new code, because
    /// that call has the rights that `init` needs. A running service that is not in `services`
    /// ends.
    pub(super) fn in_place(&self, services: BTreeMap<String, InstalledService>) {
        let mut entries = self.lock();
        let mut before = std::mem::take(&mut *entries);
        for (path, now) in services {
            // Cell and turns stay the same over a change, so that a call that waits for them finds
            // the new service.
            let kept = before.remove(&path).map(|entry| (entry.slot, entry.turns));
            let (slot, turns) = kept.unwrap_or_default();
            entries.insert(path, ServiceSlot { now, slot, turns });
        }
        drop(entries);
        for (path, entry) in before {
            // The task runs without the table's lock: a busy service would otherwise block the
            // change.
            tokio::spawn(leave(path, entry.slot));
        }
    }

    /// Calls the service of this operation, and takes the input out of the call. Returns `None` if
    /// no such service is installed, or it was removed.
    ///
    /// The running service answers a call that began before the present code was installed. Such a
    /// call never brings replaced code back.
    pub(super) async fn call(
        &self,
        call: &mut PromotedInvocation,
    ) -> Result<Option<Value>, ScriptFailure> {
        let path = call.ctx.operation();
        let Some(entry) = self.entry(path) else {
            return Ok(None);
        };
        let caller = call.ctx.identity().map(|who| who.id.clone());
        let turn = entry.turns.take(caller).await;
        let mut held = entry.slot.lock_owned().await;
        // The service may have changed while this call waited for the lock.
        if let Some(now) = self.now(path, &held)
            && is_of(call, &now)
            && !is_fit(held.as_ref(), &now).await
        {
            held = self.change(held, call, now).await?;
        }
        let (env, input) = (call.ctx.env(), std::mem::take(&mut call.input));
        let charge = call.charge.clone();
        // The call runs in a task of its own, to its end even if the caller leaves. The session is shared: an abort
        // would stop its isolate while the script computes, and any caller could destroy the service's state. What the
        // script calls ends with the caller's request all the same, and the service's own limits end the call. Until
        // then it counts for its caller, and keeps the service.
        let calling = tokio::spawn(async move {
            let _counted = (charge, turn);
            let Some(service) = held.as_ref() else {
                return Ok(None);
            };
            let ran = service.service.call(&env, &service.export, input).await?;
            Ok(Some(ran.value))
        });
        ended(calling.await)?
    }

    /// Ends all services when the node ends.
    pub(super) async fn stop(&self) {
        let entries = std::mem::take(&mut *self.lock());
        let all = entries
            .into_iter()
            .map(|(path, entry)| leave(path, entry.slot));
        if tokio::time::timeout(LEAVE_MAX, join_all(all))
            .await
            .is_err()
        {
            tracing::warn!("services did not leave in time");
        }
    }

    /// Opens the installed service, with the state that the code before it left.
    async fn change(
        &self,
        mut held: ServiceGuard,
        call: &PromotedInvocation,
        now: InstalledService,
    ) -> Result<ServiceGuard, ScriptFailure> {
        let (sessions, env) = (Arc::clone(&self.sessions), call.ctx.env());
        let charge = call.charge.clone();
        let (spec, export) = service_spec(call)?;
        // The change runs in a task of its own, to its end even if the caller gives up: half a
        // change would lose the service's state.
        let changing = tokio::spawn(async move {
            let _charge = charge;
            let done = match held.take() {
                Some(mut running) => {
                    let done = running.service.replace(&env, spec).await;
                    if done.is_ok() {
                        (running.is, running.export) = (now, export);
                    }
                    // The handle goes back even if the change failed: the old service continues to
                    // serve.
                    *held = Some(running);
                    done
                }
                None => {
                    let started = ScriptService::start(&sessions, &env, spec).await;
                    started.map(|service| {
                        *held = Some(ServiceHandle {
                            service,
                            is: now,
                            export,
                        });
                    })
                }
            };
            (held, done)
        });
        let (held, done) = ended(changing.await)?;
        done.map(|()| held)
    }

    /// The installed service that belongs to the locked cell.
    fn now(&self, path: &str, held: &ServiceGuard) -> Option<InstalledService> {
        let entry = self.entry(path)?;
        // The cell is compared by address: a removed and installed service has another cell, and
        // the lock on the old one protects nothing.
        Arc::ptr_eq(OwnedMutexGuard::mutex(held), &entry.slot).then_some(entry.now)
    }

    fn entry(&self, path: &str) -> Option<ServiceSlot> {
        self.lock().get(path).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ServiceSlot>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of a task that ended.
fn ended<T>(task: Result<T, JoinError>) -> Result<T, ScriptFailure> {
    task.map_err(|error| ScriptFailure::new(RuntimeCode::WorkerLost, error.to_string()))
}

/// Whether the call belongs to the installed code, and not to earlier code.
fn is_of(call: &PromotedInvocation, now: &InstalledService) -> bool {
    call.code.id == now.code && call.ctx.env().authority() == Some(&now.authority)
}

/// Whether the running service is the installed one, and may make more calls.
async fn is_fit(running: Option<&ServiceHandle>, now: &InstalledService) -> bool {
    let Some(running) = running.filter(|running| running.is == *now) else {
        return false;
    };
    let calls = running.service.session().await.info().calls;
    calls.values().sum::<u64>() < RENEW_AFTER
}

/// The session specification of a service, and the function that answers calls.
fn service_spec(call: &PromotedInvocation) -> Result<(SessionSpec, String), ScriptFailure> {
    let service = call.code.service();
    let (module, export) = service
        .ok_or_else(|| ScriptFailure::new(RuntimeCode::Limit, "the operation is no service"))?;
    let mut spec = spec(call);
    spec.main = Some(module.to_owned());
    // The session outlives the call and serves all callers, so that no caller's quota pays for it.
    spec.payer = None;
    // The limit is twice as high, so that calls under way end before they reach it.
    spec.limits.runtime.calls = 2 * RENEW_AFTER;
    Ok((spec, export.to_owned()))
}

async fn leave(path: String, slot: ServiceCell) {
    let running = slot.lock().await.take();
    let Some(running) = running else { return };
    if let Err(failure) = running.service.dispose().await {
        tracing::warn!(operation = path, %failure, "a service left nothing");
    }
}
