//! Services: sessions that stay open across changes of their code.

use std::sync::Arc;

use alknet_call::Env;
use alknet_runtime::{IsolateWork, ModuleSet, RuntimeCode, ScriptFailure, SessionMode};
use serde_json::Value;

use super::making_room::ServiceSession;
use super::session::{ScriptSession, SessionOutput};
use super::session_table::SESSION_END_TARGET;
use super::shared::SessionState;
use super::{ScriptSessions, SessionSpec};

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
}

impl CurrentSession {
    /// The number of its session.
    pub(super) fn id(&self) -> u64 {
        self.session.id()
    }

    /// Ends the session. The next call opens it again, with the state that its `dispose` returns.
    pub(super) async fn rest(&mut self) {
        match self.session.farewell().await {
            Ok(state) => self.rested = Some(state),
            Err(failure) => log_no_state(&self.session, &failure),
        }
        self.session.end().await;
    }

    /// Opens an ended session again, with its state if it ended for others.
    async fn open_again(
        &mut self,
        sessions: &Arc<ScriptSessions>,
        env: &Env,
    ) -> Result<(), ScriptFailure> {
        let session = open(sessions, env, &self.spec).await?;
        let state = self.rested.as_ref().map(|state| state.value.clone());
        let begun = init(&session, env, main(&self.spec)?, state.unwrap_or_default());
        let begun = begun.await;
        // A state with which the service does not begin would keep it from beginning for ever.
        if !matches!(&begun, Err(failure) if failure.is_no_room()) {
            self.rested = None;
        }
        begun.map(|()| self.session = session)
    }
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
        let session = open(sessions, env, &spec).await?;
        init(&session, env, main(&spec)?, Value::Null).await?;
        let current = CurrentSession {
            session,
            spec,
            rested: None,
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
    /// The script's failure.
    pub async fn call(
        &self,
        env: &Env,
        export: &str,
        input: Value,
    ) -> Result<SessionOutput, ScriptFailure> {
        let is_over =
            |session: &ScriptSession| matches!(session.info().state, SessionState::Closed(_));
        let mut current = self.current.read().await;
        if is_over(&current.session) {
            // The write lock waits for all readers, including this one.
            drop(current);
            let mut changing = self.current.write().await;
            // Another call may have opened the session while this one waited.
            if is_over(&changing.session) {
                changing.open_again(&self.sessions, env).await?;
            }
            // The downgrade leaves no gap, so a change of the code cannot come between.
            current = changing.downgrade();
        }
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
        let trial = open(&self.sessions, env, &spec).await?;
        test(trial).await?;
        self.replace(env, spec).await
    }

    /// The same for tested code, with all other settings of the session.
    ///
    /// # Errors
    /// The failure of the new code or its `init`; the old code continues to serve.
    pub async fn replace(&self, env: &Env, mut spec: SessionSpec) -> Result<(), ScriptFailure> {
        spec.mode = SessionMode::Service;
        let main = main(&spec)?.to_owned();
        // The session is opened before the lock is taken, so the old code serves meanwhile.
        let fresh = open(&self.sessions, env, &spec).await?;
        let mut current = self.current.write().await;
        let disposed = match current.rested.take() {
            // Its session has ended already.
            Some(state) => Ok(state),
            None => current.session.dispose(env).await,
        };
        let prev = match disposed {
            Ok(ran) => ran.value,
            // Code that does not return in time passes no state on, and must not prevent its replacement.
            Err(failure) => {
                log_no_state(&current.session, &failure);
                Value::Null
            }
        };
        match init(&fresh, env, &main, prev.clone()).await {
            Ok(()) => {
                *current = CurrentSession {
                    session: fresh,
                    spec,
                    rested: None,
                };
                Ok(())
            }
            Err(failure) => {
                current.session = self.again(env, &current, prev).await?;
                Err(failure)
            }
        }
    }

    /// Opens the old code with its state. If that fails too, the next call begins with a fresh session.
    async fn again(
        &self,
        env: &Env,
        old: &CurrentSession,
        prev: Value,
    ) -> Result<ScriptSession, ScriptFailure> {
        let opened = async {
            let back = open(&self.sessions, env, &old.spec).await?;
            init(&back, env, main(&old.spec)?, prev).await?;
            Ok::<_, ScriptFailure>(back)
        };
        opened.await.inspect_err(|_| old.session.kill())
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

    /// The same without a request, for example when the node stops: `dispose` can call nothing.
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

/// Opens the session and evaluates its module.
async fn open(
    sessions: &Arc<ScriptSessions>,
    env: &Env,
    spec: &SessionSpec,
) -> Result<ScriptSession, ScriptFailure> {
    let module = main(spec)?.to_owned();
    let session = sessions.open(env, spec.clone()).await?;
    session.run(env, IsolateWork::Module { module }).await?;
    Ok(session)
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
