//! Promoted services: one session for each, which keeps what it knows from call to call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_promotion::{InstalledService, PromotedInvocation};
use alknet_runtime::{RuntimeCode, ScriptFailure};
use alknet_sessions::{ScriptService, ScriptSessions, SessionSpec};
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::promoted::spec;

/// Calls of other operations after which a service goes on in a fresh session: those of one are
/// limited, and a service has no end.
const RENEW_AFTER: u64 = 1000;
/// How long a node that ends waits for its services to leave: each has half a second once it is idle.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// The running service, if any. A caller locks it for the whole call: a service answers one call at a time, so that the
/// calls it makes are never taken for another caller's.
type ServiceCell = Arc<tokio::sync::Mutex<Option<ServiceHandle>>>;
type ServiceGuard = OwnedMutexGuard<Option<ServiceHandle>>;

struct ServiceHandle {
    service: ScriptService,
    is: InstalledService,
    /// The function that answers.
    export: String,
}

/// The services of this node.
pub(super) struct PromotedServices {
    sessions: Arc<ScriptSessions>,
    /// By the name that each is called by.
    places: Mutex<BTreeMap<String, ServiceSlot>>,
}

#[derive(Clone)]
struct ServiceSlot {
    now: InstalledService,
    slot: ServiceCell,
}

impl PromotedServices {
    pub(super) fn new(sessions: &Arc<ScriptSessions>) -> Self {
        Self {
            sessions: Arc::clone(sessions),
            places: Mutex::default(),
        }
    }

    /// These are in place from now on. What runs of one is changed by the next call, which has the
    /// rights that `init` needs; of any other, it leaves.
    pub(super) fn in_place(&self, services: BTreeMap<String, InstalledService>) {
        let mut places = self.lock();
        let mut before = std::mem::take(&mut *places);
        for (path, now) in services {
            let slot = before.remove(&path).map(|place| place.slot);
            // The slot stays the same over a change, so that a call that waits for it finds the new service.
            let slot = slot.unwrap_or_default();
            places.insert(path, ServiceSlot { now, slot });
        }
        drop(places);
        for (path, place) in before {
            // Without the lock, and by itself: a service that is busy would hold up the change.
            tokio::spawn(leave(path, place.slot));
        }
    }

    /// Calls the service of this name, which takes the input out of the call. `None` where no such service is
    /// installed, or it was removed.
    ///
    /// A call that began before the present code was in place is answered by whatever runs: it never
    /// brings back what was replaced.
    pub(super) async fn call(
        &self,
        call: &mut PromotedInvocation,
    ) -> Result<Option<Value>, ScriptFailure> {
        let path = call.ctx.operation();
        let Some(place) = self.place(path) else {
            return Ok(None);
        };
        let mut held = place.slot.lock_owned().await;
        // It may have changed while others were served.
        if let Some(now) = self.now(path, &held)
            && is_of(call, &now)
            && !is_fit(held.as_ref(), &now).await
        {
            held = self.change(held, call, now).await?;
        }
        let Some(kept) = held.as_ref() else {
            return Ok(None);
        };
        let (env, input) = (call.ctx.env(), std::mem::take(&mut call.input));
        let ran = kept.service.call(&env, &kept.export, input).await?;
        Ok(Some(ran.value))
    }

    /// Lets all of them leave, as the node ends.
    pub(super) async fn stop(&self) {
        let places = std::mem::take(&mut *self.lock());
        let all = places
            .into_iter()
            .map(|(path, place)| leave(path, place.slot));
        if tokio::time::timeout(LEAVE_MAX, join_all(all))
            .await
            .is_err()
        {
            tracing::warn!("services did not leave in time");
        }
    }

    /// Opens what is in place, with what the code before it left.
    async fn change(
        &self,
        mut held: ServiceGuard,
        call: &PromotedInvocation,
        now: InstalledService,
    ) -> Result<ServiceGuard, ScriptFailure> {
        let (sessions, env) = (Arc::clone(&self.sessions), call.ctx.env());
        let (spec, export) = of_service(call)?;
        // To its end, whether or not the caller waits: half of it would forget what was known.
        let changing = tokio::spawn(async move {
            let done = match held.take() {
                Some(mut kept) => {
                    let done = kept.service.replace(&env, spec).await;
                    if done.is_ok() {
                        (kept.is, kept.export) = (now, export);
                    }
                    // Back in its place also where the change failed: the old one serves on.
                    *held = Some(kept);
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
        let (held, done) = changing
            .await
            .map_err(|error| ScriptFailure::new(RuntimeCode::WorkerLost, error.to_string()))?;
        done.map(|()| held)
    }

    /// What is in place of the service that is held.
    fn now(&self, path: &str, held: &ServiceGuard) -> Option<InstalledService> {
        let place = self.place(path)?;
        Arc::ptr_eq(OwnedMutexGuard::mutex(held), &place.slot).then_some(place.now)
    }

    fn place(&self, path: &str) -> Option<ServiceSlot> {
        self.lock().get(path).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ServiceSlot>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the call is one of what is in place, and not of what was before.
fn is_of(call: &PromotedInvocation, now: &InstalledService) -> bool {
    call.code.id == now.code && call.ctx.env().authority() == Some(&now.authority)
}

/// Whether what runs is what is in place, and may go on.
async fn is_fit(kept: Option<&ServiceHandle>, now: &InstalledService) -> bool {
    let Some(kept) = kept.filter(|kept| kept.is == *now) else {
        return false;
    };
    let calls = kept.service.session().await.info().calls;
    calls.values().sum::<u64>() < RENEW_AFTER
}

/// The session of a service, and the function that answers.
fn of_service(call: &PromotedInvocation) -> Result<(SessionSpec, String), ScriptFailure> {
    let service = call.code.service();
    let (module, export) = service
        .ok_or_else(|| ScriptFailure::new(RuntimeCode::Limit, "the operation is no service"))?;
    let mut spec = spec(call);
    spec.main = Some(module.to_owned());
    // It outlives the call, and serves all callers.
    spec.payer = None;
    // Twice, so that calls under way end before the limit.
    spec.limits.runtime.calls = 2 * RENEW_AFTER;
    Ok((spec, export.to_owned()))
}

async fn leave(path: String, slot: ServiceCell) {
    let kept = slot.lock().await.take();
    let Some(kept) = kept else { return };
    if let Err(failure) = kept.service.dispose().await {
        tracing::warn!(operation = path, %failure, "a service left nothing");
    }
}
