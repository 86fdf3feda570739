//! Services: sessions that stay open across changes of their code.

use std::sync::Arc;

use alknet_call::Env;
use alknet_runtime::{IsolateWork, ModuleSet, RuntimeCode, ScriptFailure, SessionMode};
use alknet_worker::CallerCharge;
use serde_json::Value;

use super::failure::of_worker;
use super::idle_eviction::ServiceSession;
use super::session::{ScriptSession, SessionOutput};
use super::session_table::SESSION_END_TARGET;
use super::{ScriptSessions, SessionSpec, opening};

/// The export that takes the state of the earlier code.
const INIT: &str = "init";

/// A module whose exports are called for as long as the node runs. It may export `init(prev)`, which is called before
/// anything else, and `dispose()`, which is called when its code is replaced. The successor gets only the result of
/// `dispose`.
#[derive(Debug)]
pub struct ScriptService {
    sessions: Arc<ScriptSessions>,
    /// Each call holds a read lock, so a change of the code waits for running calls.
    current: Arc<ServiceSession>,
}

#[derive(Debug)]
pub(super) struct CurrentSession {
    session: ScriptSession,
    /// The settings for opening the session again.
    spec: SessionSpec,
    /// The state of a session that ended for others. It counts against the memory of the service's account.
    rested: Option<SessionOutput>,
    /// Bytes of the state that it left when it last ended; 0 before that.
    left_bytes: usize,
}

impl CurrentSession {
    /// The number of its session.
    pub(super) fn id(&self) -> u64 {
        self.session.id()
    }

    /// Bytes of the state that it left when it last ended; 0 before that.
    pub(super) const fn left_bytes(&self) -> usize {
        self.left_bytes
    }

    /// Whether the node has room for its state beside so many bytes of other states of its account.
    pub(super) fn may_rest_beside(&self, states: usize) -> bool {
        self.session.memory().may_rest_beside(states)
    }

    /// Ends the session. The next call opens it again, with the state that its `dispose` returns. Returns false if
    /// the node has no room for the state: then the session goes on.
    pub(super) async fn rest(&mut self) -> bool {
        // Another search may have ended it meanwhile, and has kept its state then.
        if self.session.is_over() {
            return true;
        }
        match self.session.rest().await {
            None => return false,
            Some(Ok(state)) => self.keep_state(state),
            Some(Err(failure)) => log_no_state(&self.session, &failure),
        }
        self.session.end().await;
        true
    }

    fn keep_state(&mut self, state: SessionOutput) {
        self.left_bytes = state.bytes();
        self.rested = Some(state);
    }

    /// Opens an ended session again, with its state if it ended for others. Returns what counts its worker for the
    /// caller.
    async fn open_again(
        &mut self,
        sessions: &Arc<ScriptSessions>,
        env: &Env,
    ) -> Result<CallerCharge, ScriptFailure> {
        let (session, charge) = open(sessions, env, &self.spec).await?;
        let state = self.rested.as_ref().map(|state| state.value.clone());
        let begun = init(&session, env, main(&self.spec)?, state.unwrap_or_default());
        match begun.await {
            Ok(()) => self.rested = None,
            Err(failure) => {
                // A state with which the service does not begin would keep it from beginning for ever.
                if is_for_its_state(&session, &failure) {
                    self.rested = None;
                }
                // The next call needs its place.
                session.end().await;
                return Err(failure);
            }
        }
        self.session = session;
        Ok(charge)
    }

    /// Counts the worker for the caller that `env` belongs to, whose call is to run. `None` for a service that runs
    /// for its owner alone.
    async fn charge(
        &self,
        sessions: &ScriptSessions,
        env: &Env,
    ) -> Result<Option<CallerCharge>, ScriptFailure> {
        if !self.spec.lent {
            return Ok(None);
        }
        let caller = opening::tenant(env.identity().map(AsRef::as_ref));
        let charged = sessions
            .workers
            .charge(self.session.worker_session(), caller);
        let charged = charged.await.map_err(|error| of_worker(&error))?;
        Ok(Some(charged))
    }
}

/// Whether `init` failed by its own code, so that it would fail again with the same state. A lost worker or a passed
/// deadline is no such failure: a call of another session in the worker may have ended it, and a busy machine the time.
/// A caller decides which calls of `init` are refused, by its rights, its place in a chain of calls and the calls
/// beside it. Callers together use up the room for values and for registered operations, which `init` sees as an error
/// that it may pass on.
fn is_for_its_state(session: &ScriptSession, failure: &ScriptFailure) -> bool {
    let is_own = matches!(
        failure.code,
        RuntimeCode::Exception
            | RuntimeCode::Encode
            | RuntimeCode::Fuel
            | RuntimeCode::Memory
            | RuntimeCode::Stack
            | RuntimeCode::Limit
    );
    is_own && session.info().calls.is_empty() && !session.has_met_full()
}

impl ScriptService {
    /// Opens the session of `spec` as a service, evaluates its `main` and calls its `init`.
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] without a `main`; the errors of [`ScriptSessions::open`]; the failures of the module or
    /// of `init`.
    pub async fn start(
        sessions: &Arc<ScriptSessions>,
        env: &Env,
        mut spec: SessionSpec,
    ) -> Result<Self, ScriptFailure> {
        spec.mode = SessionMode::Service;
        let (session, _charge) = open(sessions, env, &spec).await?;
        init(&session, env, main(&spec)?, Value::Null).await?;
        let current = CurrentSession {
            session,
            spec,
            rested: None,
            left_bytes: 0,
        };
        let current = Arc::new(ServiceSession::new(current));
        sessions.register_service(&current);
        Ok(Self {
            sessions: Arc::clone(sessions),
            current,
        })
    }

    /// Calls an export of the module for the request that `env` belongs to. If a limit or a crash has ended the
    /// session, it is opened again first, without its state. If the session ended because others needed its place, it
    /// is opened again with its state.
    ///
    /// # Errors
    /// The script's failure; that there is no room, also if calls of this caller run in as many workers as one caller
    /// may have.
    pub async fn call(
        &self,
        env: &Env,
        export: &str,
        input: Value,
    ) -> Result<SessionOutput, ScriptFailure> {
        let mut current = self.current.read().await;
        let mut charge = None;
        if current.session.is_over() {
            // The write lock waits for all readers, including this one.
            drop(current);
            let mut changing = self.current.write().await;
            // Another call may have opened the session while this one waited.
            if changing.session.is_over() {
                charge = Some(changing.open_again(&self.sessions, env).await?);
            }
            // The downgrade leaves no gap, so a change of the code cannot come between.
            current = changing.downgrade();
        }
        // Until the call ends: one caller's slow calls would otherwise keep all workers of the author's callers.
        let _charge = match charge {
            Some(charge) => Some(charge),
            None => current.charge(&self.sessions, env).await?,
        };
        let work = IsolateWork::Export {
            module: main(&current.spec)?.to_owned(),
            export: export.to_owned(),
            input,
        };
        current.session.run(env, work).await
    }

    /// Replaces the code. The new code is compiled and `test`ed while the old code still serves. Then new calls wait
    /// until the running ones have ended, the old code's `dispose` has returned (within 500 ms) and the new code's
    /// `init` has taken the result. If `init` fails, the old code is opened again with the same state.
    ///
    /// # Errors
    /// The failure of the new code, its test or its `init`; the old code continues to serve.
    pub async fn reload<T, F>(
        &self,
        env: &Env,
        modules: ModuleSet,
        test: T,
    ) -> Result<(), ScriptFailure>
    where
        T: FnOnce(ScriptSession) -> F,
        F: Future<Output = Result<(), ScriptFailure>>,
    {
        let mut spec = self.current.read().await.spec.clone();
        spec.modules = modules;
        // Tests leave state behind, so the session that serves is opened separately.
        let (trial, charge) = open(&self.sessions, env, &spec).await?;
        test(trial).await?;
        drop(charge);
        self.replace(env, spec).await
    }

    /// Like `reload`, for tested code, with all other settings of the session.
    ///
    /// # Errors
    /// The failure of the new code or its `init`; the old code continues to serve.
    pub async fn replace(&self, env: &Env, mut spec: SessionSpec) -> Result<(), ScriptFailure> {
        spec.mode = SessionMode::Service;
        let main = main(&spec)?.to_owned();
        // The session is opened before the lock is taken, so the old code serves meanwhile.
        let (fresh, charge) = open(&self.sessions, env, &spec).await?;
        let mut current = self.current.write().await;
        if current.rested.is_none() {
            let left = current.session.hand_over(env).await;
            match left
                .ok_or_else(|| ScriptFailure::no_capacity("no room for the service's state"))?
            {
                Ok(state) => current.keep_state(state),
                // Code that does not return in time passes no state on, and must not prevent its replacement.
                Err(failure) => log_no_state(&current.session, &failure),
            }
            // It answers no further call. A change that is given up here goes on with the old code and its state.
            current.session.end().await;
        }
        let prev = current.rested.as_ref().map(|state| state.value.clone());
        match init(&fresh, env, &main, prev.unwrap_or_default()).await {
            Ok(()) => {
                *current = CurrentSession {
                    session: fresh,
                    spec,
                    rested: None,
                    left_bytes: current.left_bytes,
                };
                Ok(())
            }
            Err(failure) => {
                drop((fresh, charge));
                // If the old code does not begin either, the next call tries it again with its state, unless the
                // state itself is the reason.
                current.open_again(&self.sessions, env).await?;
                Err(failure)
            }
        }
    }

    /// Ends the service: waits for running calls, then for its `dispose`.
    ///
    /// # Errors
    /// The failure of `dispose`.
    pub async fn stop(self, env: &Env) -> Result<Value, ScriptFailure> {
        let mut current = self.current.write().await;
        if let Some(state) = current.rested.take() {
            return Ok(state.value);
        }
        current.session.dispose(env).await.map(|ran| ran.value)
    }

    /// Like `stop`, without a request, for example when the node stops: `dispose` can call nothing.
    ///
    /// # Errors
    /// The failure of `dispose`.
    pub async fn dispose(self) -> Result<Value, ScriptFailure> {
        let mut current = self.current.write().await;
        if let Some(state) = current.rested.take() {
            return Ok(state.value);
        }
        current.session.farewell().await.map(|ran| ran.value)
    }

    /// The service's current session.
    pub async fn session(&self) -> ScriptSession {
        self.current.read().await.session.clone()
    }
}

/// A service's author decides how its `dispose` fails, and its callers how often it is called.
fn log_no_state(session: &ScriptSession, failure: &ScriptFailure) {
    let owner = session.info().tenant;
    tracing::warn!(
        target: SESSION_END_TARGET,
        session = session.id(),
        owner = owner.as_str(),
        %failure,
        "a service left nothing"
    );
}

fn main(spec: &SessionSpec) -> Result<&str, ScriptFailure> {
    let text = "a service names the module that it is";
    spec.main
        .as_deref()
        .ok_or_else(|| ScriptFailure::new(RuntimeCode::Limit, text))
}

/// Opens the session and evaluates its module. The charge counts its worker for the caller that `env` belongs to.
async fn open(
    sessions: &Arc<ScriptSessions>,
    env: &Env,
    spec: &SessionSpec,
) -> Result<(ScriptSession, CallerCharge), ScriptFailure> {
    let module = main(spec)?.to_owned();
    let session = sessions.open(env, spec.clone()).await?;
    let charge = sessions.workers.charge_of_lease(session.worker_session());
    session.run(env, IsolateWork::Module { module }).await?;
    Ok((session, charge))
}

async fn init(
    session: &ScriptSession,
    env: &Env,
    module: &str,
    prev: Value,
) -> Result<(), ScriptFailure> {
    let work = IsolateWork::Export {
        module: module.to_owned(),
        export: INIT.to_owned(),
        input: prev,
    };
    match session.run(env, work).await {
        // A service need not export `init`.
        Err(failure) if failure.code == RuntimeCode::NotFound => Ok(()),
        outcome => outcome.map(drop),
    }
}
