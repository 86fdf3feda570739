//! Services: sessions that live on through changes of their code.

use std::sync::Arc;

use alknet_call::Env;
use alknet_runtime::{IsolateWork, ModuleSet, RuntimeCode, ScriptFailure, SessionMode};
use serde_json::Value;
use tokio::sync::RwLock;

use super::session::{ScriptSession, SessionOutput};
use super::shared::SessionState;
use super::{ScriptSessions, SessionSpec};

/// Takes what the code before it left.
const INIT: &str = "init";

/// A module whose exports are called for as long as the node runs. It may export `init(prev)`, called
/// before anything else, and `dispose()`, called when its code is replaced: what that answers is all
/// that its successor gets.
#[derive(Debug)]
pub struct ScriptService {
    sessions: Arc<ScriptSessions>,
    /// Held for reading by every call, so that a change of code waits for those that run.
    current: RwLock<CurrentSession>,
}

#[derive(Debug)]
struct CurrentSession {
    session: ScriptSession,
    /// How to open it again.
    spec: SessionSpec,
}

impl ScriptService {
    /// Opens the session of `spec` as a service, evaluates its `main` and calls its `init`.
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] without a `main`; as [`ScriptSessions::open`]; what the module or `init` ends with.
    pub async fn start(
        sessions: &Arc<ScriptSessions>,
        env: &Env,
        mut spec: SessionSpec,
    ) -> Result<Self, ScriptFailure> {
        spec.mode = SessionMode::Service;
        let session = open(sessions, env, &spec).await?;
        init(&session, env, main(&spec)?, Value::Null).await?;
        Ok(Self {
            sessions: Arc::clone(sessions),
            current: RwLock::new(CurrentSession { session, spec }),
        })
    }

    /// Calls an export of the module, in the course of the request that `env` belongs to. One that
    /// was ended by a limit or a crash is opened again first, without what it knew.
    ///
    /// # Errors
    /// What the script ends with.
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
            // The lock for writing waits for every reader, this one too.
            drop(current);
            let mut changing = self.current.write().await;
            // Another call may have opened it while this one waited.
            if is_over(&changing.session) {
                let session = open(&self.sessions, env, &changing.spec).await?;
                init(&session, env, main(&changing.spec)?, Value::Null).await?;
                changing.session = session;
            }
            // Without a gap: a change of code cannot come between.
            current = changing.downgrade();
        }
        let work = IsolateWork::Export {
            module: main(&current.spec)?.to_owned(),
            export: export.to_owned(),
            input,
        };
        current.session.run(env, work).await
    }

    /// Replaces the code. The new one is compiled and `test`ed while the old one still serves; then
    /// calls wait until those that run have ended, the old one's `dispose` has answered (at most
    /// 500 ms) and the new one's `init` has taken that. Where `init` fails, the old code is opened
    /// again with the same state.
    ///
    /// # Errors
    /// What the new code, its test or its `init` ends with; the old code serves on.
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
        // Tests leave something behind: what serves is opened afresh.
        let trial = open(&self.sessions, env, &spec).await?;
        test(trial).await?;
        self.replace(env, spec).await
    }

    /// The same for code that was tested, with everything else that a session is made of.
    ///
    /// # Errors
    /// What the new code or its `init` ends with; the old code serves on.
    pub async fn replace(&self, env: &Env, mut spec: SessionSpec) -> Result<(), ScriptFailure> {
        spec.mode = SessionMode::Service;
        let main = main(&spec)?.to_owned();
        // Before the lock is taken: the old code serves meanwhile.
        let fresh = open(&self.sessions, env, &spec).await?;
        let mut current = self.current.write().await;
        let prev = match current.session.dispose(env).await {
            Ok(ran) => ran.value,
            // What does not leave in time leaves nothing; that must not keep a better one out.
            Err(failure) => {
                tracing::warn!(session = current.session.id(), %failure, "a service left nothing");
                Value::Null
            }
        };
        match init(&fresh, env, &main, prev.clone()).await {
            Ok(()) => {
                *current = CurrentSession {
                    session: fresh,
                    spec,
                };
                Ok(())
            }
            Err(failure) => {
                current.session = self.again(env, &current, prev).await?;
                Err(failure)
            }
        }
    }

    /// Opens the old code with what it left. Where that fails, too, the next call begins with a fresh session.
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

    /// Lets it leave: waits for the calls that run, then for its `dispose`.
    ///
    /// # Errors
    /// What `dispose` ends with.
    pub async fn stop(self, env: &Env) -> Result<Value, ScriptFailure> {
        let current = self.current.into_inner();
        current.session.dispose(env).await.map(|ran| ran.value)
    }

    /// The same in the course of no request, as when the node ends: `dispose` can call nothing.
    ///
    /// # Errors
    /// What `dispose` ends with.
    pub async fn dispose(self) -> Result<Value, ScriptFailure> {
        let current = self.current.into_inner();
        current.session.farewell().await.map(|ran| ran.value)
    }

    /// Its session at this moment.
    pub async fn session(&self) -> ScriptSession {
        self.current.read().await.session.clone()
    }
}

fn main(spec: &SessionSpec) -> Result<&str, ScriptFailure> {
    let text = "a service names the module that it is";
    spec.main
        .as_deref()
        .ok_or_else(|| ScriptFailure::new(RuntimeCode::Limit, text))
}

/// Opens it and evaluates its module.
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
        // A service need not export it.
        Err(failure) if failure.code == RuntimeCode::NotFound => Ok(()),
        outcome => outcome.map(drop),
    }
}
