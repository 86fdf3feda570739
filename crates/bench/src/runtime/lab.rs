//! A node with sessions in workers of the built binary, and a client of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, CallOutput, CompositionAuthority,
    Ctx, Dispatcher, Env, HandlerKind, OperationSpec, Registration, Registry, ScopedPeerEnv,
};
use alknet_core::{Carriage, HandlerRegistry, Identity};
use alknet_endpoint::{EndpointDialer, EndpointServer};
use alknet_runtime::{IsolateWork, ModuleSet, SessionMode};
use alknet_sessions::{
    ScriptSession, ScriptSessions, SessionGrants, SessionSpec, SessionsConfig, operations,
};
use alknet_worker::{Executable, RoleConfig, WorkerRole, Workers};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::memory::{OneFileStore, TENSOR};
use super::{RuntimeSample, failed, timed};
use crate::call::node::bind;
use crate::call::sides::{BenchKeys, SideRuntimes};
use alknet_tasks::failure::Result;

const MAIN: &str = "./main.js";
const ENTER: &str = "bench/enter";
const ECHO: &str = "bench/echo";
/// What sessions here may call.
const REACH: [&str; 3] = ["bench/*", "runtime/*", "tensor/*"];

/// The node, its client, and a request that lasts as long as this does.
pub(super) struct SessionBench {
    pub(super) sessions: Arc<ScriptSessions>,
    connection: CallConnection,
    request: Ctx,
    _waits: JoinHandle<()>,
    _dialer: EndpointDialer,
    _server: EndpointServer,
}

impl SessionBench {
    pub(super) async fn start(sides: &SideRuntimes, program: &Path, tensor: &Path) -> Result<Self> {
        let mut config = alknet_worker::WorkersConfig::this_executable();
        config.executable = Executable::File(PathBuf::from(program));
        config.roles = vec![RoleConfig::new(WorkerRole::Js)];
        let workers = Workers::start(config).map_err(failed("starting workers"))?;
        let config = SessionsConfig {
            files: Some(Arc::new(OneFileStore(tensor.to_owned()))),
            ..SessionsConfig::default()
        };
        let sessions = ScriptSessions::new(workers, config);
        // Sessions are opened by a request: here by one that never ends.
        let (enter, mut entered) = mpsc::unbounded_channel();
        let mut handlers = HandlerRegistry::new();
        let dispatcher = Arc::new(Dispatcher::new(registry(&sessions, enter)?));
        let handler = Arc::new(CallHandler::new(dispatcher));
        handlers
            .register(handler)
            .map_err(failed("assembling the node"))?;
        let keys = BenchKeys::new(1)?;
        let server = bind(sides, &keys, handlers)?;
        let dialer = EndpointDialer::new(keys.clients.first().cloned());
        let target = keys.target(server.port())?;
        let dialled = dialer.dial_over(Carriage::Quic, &target, ALPN).await;
        let dialled = dialled.map_err(failed("dialling the node"))?;
        let connection = CallClient::without_operations().attach(dialled, None);
        let client = connection.clone();
        let waits = tokio::spawn(async move {
            if let Ok(mut request) = client.subscribe(ENTER, &json!({})).await {
                // Nothing comes.
                let _ = request.next().await;
            }
        });
        let request = entered.recv().await;
        let request = request.ok_or_else(|| failed("entering the node")("no request came"))?;
        Ok(Self {
            sessions,
            connection,
            request,
            _waits: waits,
            _dialer: dialer,
            _server: server,
        })
    }

    pub(super) fn env(&self) -> Env {
        self.request.env()
    }

    /// Opens a session over one module.
    pub(super) async fn open(&self, source: &str, mode: SessionMode) -> Result<ScriptSession> {
        self.open_for(None, source, mode).await
    }

    /// The same in the workers of this identity.
    pub(super) async fn open_for(
        &self,
        identity: Option<Arc<Identity>>,
        source: &str,
        mode: SessionMode,
    ) -> Result<ScriptSession> {
        let mut modules = ModuleSet::new();
        let inserted = modules.insert(MAIN, source);
        inserted.map_err(failed("making a module"))?;
        let mut spec = SessionSpec::new(identity, modules);
        spec.grants = SessionGrants::to(REACH);
        spec.mode = mode;
        spec.limits.runtime.calls = 1_000_000;
        spec.limits.runtime.external_bytes = 1 << 30;
        let opened = self.sessions.open(&self.env(), spec).await;
        opened.map_err(failed("opening a session"))
    }

    /// Evaluates the module of a session.
    pub(super) async fn main(&self, session: &ScriptSession) -> Result<Value> {
        let work = IsolateWork::Module {
            module: MAIN.to_owned(),
        };
        let ran = session.run(&self.env(), work).await;
        Ok(ran.map_err(failed("running a module"))?.value)
    }

    /// Calls what a session exports.
    pub(super) async fn export(
        &self,
        session: &ScriptSession,
        name: &str,
        input: Value,
    ) -> Result<Value> {
        let work = IsolateWork::Export {
            module: MAIN.to_owned(),
            export: name.to_owned(),
            input,
        };
        let ran = session.run(&self.env(), work).await;
        Ok(ran.map_err(failed("calling an export"))?.value)
    }

    /// Sessions from their opening to their answer, one after the other; the worker runs.
    pub(super) async fn sessions(&self, count: u32) -> Result<RuntimeSample> {
        let once = || async {
            let session = self
                .open("export default 6 * 7", SessionMode::OneShot)
                .await?;
            self.main(&session).await.map(drop)
        };
        // The first starts the worker.
        once().await?;
        timed(count, async {
            for _ in 0..count {
                once().await?;
            }
            Ok(())
        })
        .await
    }

    /// Calls of one script's, one after the other.
    pub(super) async fn calls(&self, count: u32) -> Result<RuntimeSample> {
        let source = format!(
            "export const calls = async (n) => {{ for (let i = 0; i < n; i++) await ops.call('{ECHO}', {{ a: i }}); }}"
        );
        let session = self.open(&source, SessionMode::Service).await?;
        // Loads the module: only the calls are timed.
        self.export(&session, "calls", json!(1)).await?;
        let sample = timed(count, async {
            let called = self.export(&session, "calls", json!(count)).await;
            called.map(drop)
        })
        .await;
        // A service lasts until it is ended.
        session.kill();
        sample
    }

    /// The operation that people call, over the network.
    pub(super) async fn evals(&self, count: u32) -> Result<RuntimeSample> {
        let input = json!({ "source": "export default 6 * 7" });
        timed(count, async {
            for _ in 0..count {
                let answer = self.connection.call("runtime/eval", &input).await;
                answer.map_err(failed("runtime/eval"))?;
            }
            Ok(())
        })
        .await
    }
}

fn registry(sessions: &Arc<ScriptSessions>, enter: mpsc::UnboundedSender<Ctx>) -> Result<Registry> {
    let handler = HandlerKind::stream(move |_, ctx| {
        // The benchmark that waits for it may be gone.
        let _ = enter.send(ctx);
        stream::pending::<std::result::Result<Value, CallError>>()
    });
    let echo = HandlerKind::once(|input, _| async move { Ok(CallOutput::from(input)) });
    // As the node's own answers; `OneFileStore` has the same file for any id.
    let open = HandlerKind::once(|_, _| async move {
        Ok(json!({ "id": "00", "tensors": [{ "name": TENSOR }] }))
    });
    let query = |name| OperationSpec::query(name, "Serves a benchmark.");
    let subscription = OperationSpec::subscription(ENTER, "Serves a benchmark.");
    let authority = CompositionAuthority::new("bench", ["*"]);
    let enter =
        Registration::new(subscription, handler).composing(authority, ScopedPeerEnv::new(REACH));
    let mut builder = Registry::builder()
        .with(enter)
        .with(Registration::new(query(ECHO), echo))
        .with(Registration::new(query("tensor/open"), open));
    for operation in operations(sessions, ["bench/*"]) {
        builder.add(operation);
    }
    builder
        .build()
        .map_err(failed("registering the operations"))
}
