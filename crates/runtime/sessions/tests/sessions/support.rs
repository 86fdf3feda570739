//! What every test has: a node with operations, sessions in real workers, and requests to open them
//! from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, CallOutput, CompositionAuthority,
    Ctx, Dispatcher, Env, ErrorDef, HandlerKind, OperationSpec, Registration, Registry,
    ScopedPeerEnv,
};
use alknet_core::{AuthContext, Identity, IdentityKind, ProtocolHandler, memory_pair};
use alknet_runtime::{IsolateWork, ModuleSet, RuntimeCode, ScriptFailure};
use alknet_sessions::limits::WALL_MAX_ONE_SHOT;
use alknet_sessions::{
    ScriptService, ScriptSession, ScriptSessions, SessionGrants, SessionOutput, SessionSpec,
    SessionsConfig, operations,
};
use alknet_test_support::{deadline, is_campaign};
use alknet_worker::limits::WORKERS_MAX;
use alknet_worker::{Executable, RoleConfig, WorkerRole, Workers};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

/// How long anything may take that has no limit of its own here.
fn long() -> Duration {
    deadline(Duration::from_secs(120))
}

/// Patient workers: a loaded machine must not be taken for a silent worker. In a campaign, which measures how soon
/// they are killed, they have the time to answer an abort that they have everywhere.
pub(crate) fn workers() -> Workers {
    workers_at_most(WORKERS_MAX)
}

/// The program of the workers.
const PROGRAM: &str = env!("CARGO_BIN_EXE_alknet-sessions-probe");

/// The same, as many at once as are named.
fn workers_at_most(most: usize) -> Workers {
    workers_of(PathBuf::from(PROGRAM), most)
}

fn workers_of(program: PathBuf, most: usize) -> Workers {
    let mut config = alknet_worker::WorkersConfig::this_executable();
    config.executable = Executable::File(program);
    config.silence = long();
    config.workers_max = most;
    if !is_campaign() {
        config.abort_grace = deadline(Duration::from_millis(100));
    }
    config.drain = deadline(config.drain);
    config.roles = vec![RoleConfig::new(WorkerRole::Js)];
    Workers::start(config).expect("a supervisor")
}

/// A node with sessions.
pub(crate) struct SessionLab {
    pub(crate) sessions: Arc<ScriptSessions>,
    pub(crate) probe: Arc<SessionProbe>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    handler: Arc<CallHandler>,
    entered: tokio::sync::Mutex<mpsc::UnboundedReceiver<Ctx>>,
}

/// What the operations of the node saw.
#[derive(Default)]
pub(crate) struct SessionProbe {
    pub(crate) started: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) yielded: AtomicU64,
    pub(crate) release: Notify,
}

struct OperationGuard(Arc<SessionProbe>);

impl Drop for OperationGuard {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl SessionLab {
    pub(crate) fn new() -> Self {
        Self::with(SessionsConfig::default(), Vec::new())
    }

    /// With so many workers at once.
    pub(crate) fn with_workers(most: usize) -> Self {
        Self::of_workers(workers_at_most(most), SessionsConfig::default(), Vec::new())
    }

    /// With workers that attackers have taken over, which do what `name` says (`probe/main.rs`). `folder` is for the
    /// program.
    pub(crate) fn with_hostile_workers(name: &str, folder: &Path) -> Self {
        let program = folder.join(name);
        std::fs::copy(PROGRAM, &program).expect("the folder is ours");
        let workers = workers_of(program, WORKERS_MAX);
        Self::of_workers(workers, SessionsConfig::default(), Vec::new())
    }

    pub(crate) fn with(config: SessionsConfig, more: Vec<Registration>) -> Self {
        Self::of_workers(workers(), config, more)
    }

    fn of_workers(workers: Workers, mut config: SessionsConfig, more: Vec<Registration>) -> Self {
        // A loaded machine must not be taken for services that do not end.
        config.eviction_time = deadline(config.eviction_time);
        let sessions = ScriptSessions::new(workers, config);
        let probe = Arc::default();
        let (enter, entered) = mpsc::unbounded_channel();
        let mut builder = Registry::builder();
        for registration in test_operations(&probe) {
            builder.add(registration);
        }
        for registration in operations(&sessions, ["test/*", "node/*"]) {
            builder.add(registration);
        }
        for registration in more {
            builder.add(registration);
        }
        // The request that a session is opened in: it lasts until its caller is gone.
        let handler = HandlerKind::stream(move |_, ctx| {
            // The test may be over.
            let _ = enter.send(ctx);
            stream::pending::<Result<Value, CallError>>()
        });
        let authority = CompositionAuthority::new("lab", ["*"]);
        let reach = ScopedPeerEnv::new(["test/*", "lab/*", "runtime/*", "tensor/*", "compute/*"]);
        let spec = OperationSpec::subscription("lab/enter", "For tests.");
        builder.add(Registration::new(spec, handler).composing(authority, reach));
        let registry = builder.build().expect("every rule is kept");
        let dispatcher = Arc::new(Dispatcher::new(registry));
        Self {
            sessions,
            probe,
            handler: Arc::new(CallHandler::new(Arc::clone(&dispatcher))),
            dispatcher,
            entered: tokio::sync::Mutex::new(entered),
        }
    }

    /// A connection to the node.
    pub(crate) fn client(&self, who: &Arc<Identity>) -> CallConnection {
        let (dialled, accepted) = memory_pair(ALPN);
        let auth = AuthContext {
            identity: Some(Arc::clone(who)),
            key: None,
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: accepted.carriage(),
            early_data: false,
        };
        let handler: Arc<dyn ProtocolHandler> = Arc::clone(&self.handler) as _;
        tokio::spawn(handler.handle(accepted, auth));
        CallClient::without_operations().attach(dialled, None)
    }

    /// A request that lasts until it is dropped.
    pub(crate) async fn request(&self) -> SessionTestRequest {
        self.request_by("lab").await
    }

    /// The same of another identity with every right.
    pub(crate) async fn request_by(&self, name: &str) -> SessionTestRequest {
        let client = self.client(&identity(name, &["*"]));
        let mut entered = self.entered.lock().await;
        let subscription = tokio::spawn(async move {
            let subscribed = client.subscribe("lab/enter", &json!({})).await;
            let mut subscription = subscribed.expect("a subscription");
            // Nothing comes; it ends with this task.
            let _ = subscription.next().await;
        });
        let ctx = entered.recv().await.expect("a request");
        SessionTestRequest { ctx, subscription }
    }

    /// Opens a session for an identity with every right.
    pub(crate) async fn open(
        &self,
        request: &SessionTestRequest,
        spec: SessionSpec,
    ) -> ScriptSession {
        let opened = self.sessions.open(&request.env(), spec).await;
        opened.expect("a session")
    }

    /// The same for a service.
    pub(crate) async fn service(
        &self,
        request: &SessionTestRequest,
        spec: SessionSpec,
    ) -> ScriptService {
        let started = ScriptService::start(&self.sessions, &request.env(), spec).await;
        started.expect("a service")
    }

    /// Runs one module in a session of its own.
    pub(crate) async fn run(&self, spec: SessionSpec) -> Result<SessionOutput, ScriptFailure> {
        let request = self.request().await;
        let env = request.env();
        let session = self.sessions.open(&env, spec).await?;
        soon(session.run(&env, main())).await
    }
}

pub(crate) struct SessionTestRequest {
    pub(crate) ctx: Ctx,
    subscription: tokio::task::JoinHandle<()>,
}

impl SessionTestRequest {
    pub(crate) fn env(&self) -> Env {
        self.ctx.env()
    }
}

impl Drop for SessionTestRequest {
    fn drop(&mut self) {
        self.subscription.abort();
    }
}

pub(crate) fn identity(id: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: id.parse().expect("an id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 0,
    })
}

/// A one-shot session over one module, for a tenant who may everything that is reached.
pub(crate) fn spec(source: &str) -> SessionSpec {
    spec_of("tenant", source)
}

pub(crate) fn spec_of(tenant: &str, source: &str) -> SessionSpec {
    let mut modules = ModuleSet::new();
    modules.insert("./main.js", source).expect("a module");
    let mut spec = SessionSpec::new(Some(identity(tenant, &["*"])), modules);
    spec.grants = SessionGrants::to(["test/*"]);
    spec.main = Some("./main.js".to_owned());
    spec.limits.wall = long().min(WALL_MAX_ONE_SHOT);
    spec
}

pub(crate) fn main() -> IsolateWork {
    IsolateWork::Module {
        module: "./main.js".to_owned(),
    }
}

pub(crate) fn export(name: &str, input: Value) -> IsolateWork {
    IsolateWork::Export {
        module: "./main.js".to_owned(),
        export: name.to_owned(),
        input,
    }
}

#[track_caller]
pub(crate) fn code(outcome: Result<SessionOutput, ScriptFailure>) -> RuntimeCode {
    match outcome {
        Ok(ran) => panic!("it came to {}", ran.value),
        Err(failure) => failure.code,
    }
}

/// Fails where the work takes much longer than it should.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(long(), work).await.expect("in time")
}

/// Waits for something that others are about to do.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let held = tokio::time::timeout(long(), async {
        // Nothing announces it: it is looked for again and again.
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(held.await.is_ok(), "not in time: {what}");
}

fn test_operations(probe: &Arc<SessionProbe>) -> Vec<Registration> {
    let query = |name| OperationSpec::query(name, "For tests.");
    let echo = HandlerKind::once(|input, _| async move { Ok(CallOutput::from(input)) });
    let p = Arc::clone(probe);
    let hang = HandlerKind::once(move |_, _| {
        p.started.fetch_add(1, Ordering::SeqCst);
        let guard = OperationGuard(Arc::clone(&p));
        async move {
            guard.0.release.notified().await;
            Ok(json!("released"))
        }
    });
    let mut fail = query("test/fail");
    fail.error_schemas.push(ErrorDef {
        code: "OUT_OF_INK".to_owned(),
        description: String::new(),
        schema: json!({}),
        http_status: None,
    });
    let failing = HandlerKind::once(|input, _| async move {
        let details = input.value().clone();
        Err::<Value, _>(CallError::operation("OUT_OF_INK", "no ink").with_details(details))
    });
    let who = HandlerKind::once(|_, ctx| async move {
        Ok(json!({ "id": ctx.identity().map(|who| who.id.to_string()), "depth": ctx.depth() }))
    });
    let bytes = HandlerKind::once(|_, _| async move {
        let value = json!({ "data": { "$bin": [1, 3] }, "n": 0.1 });
        Ok(CallOutput::Mixed(value, (&b"abcde"[..]).into()))
    });
    let p = Arc::clone(probe);
    let count = HandlerKind::stream(move |input, _| {
        let most = input.value().as_u64().unwrap_or(u64::MAX);
        let guard = OperationGuard(Arc::clone(&p));
        stream::unfold((0, guard), move |(n, guard)| async move {
            (n < most).then(|| {
                guard.0.yielded.fetch_add(1, Ordering::SeqCst);
                (Ok::<_, CallError>(json!(n)), (n + 1, guard))
            })
        })
    });
    let blocks = HandlerKind::stream(|_, _| {
        let block = |from: usize| {
            let value = json!({ "bytes": { "$bin": [from, 2] } });
            Ok::<_, CallError>(CallOutput::Mixed(value, (&b"abc"[..]).into()))
        };
        stream::iter([Ok(json!({ "length": 4 }).into()), block(0), block(1)])
    });
    let big = HandlerKind::once(|input, _| async move {
        let bytes: usize = input.parse()?;
        Ok(json!("x".repeat(bytes)))
    });
    let answers = || HandlerKind::once(|_, _| async { Ok(json!("yes")) });
    vec![
        Registration::new(query("test/echo"), echo),
        Registration::new(query("test/hang"), hang),
        Registration::new(fail, failing),
        Registration::new(query("test/who"), who),
        Registration::new(query("test/bytes"), bytes),
        Registration::new(query("test/big"), big),
        Registration::new(OperationSpec::subscription("test/count", ""), count),
        Registration::new(OperationSpec::subscription("test/blocks", ""), blocks),
        Registration::new(query("test/deep/one"), answers()),
        Registration::new(query("test/paper").with_scope("paper:read"), answers()),
        Registration::new(query("other/place"), answers()),
    ]
}
