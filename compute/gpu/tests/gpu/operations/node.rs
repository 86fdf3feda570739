//! A node that computes, and people who ask it.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use alknet_call::limits::PeerLimits;
use alknet_call::{
    ALPN, CallBody, CallClient, CallConnection, CallError, CallHandler, CallOptions,
    CompositionAuthority, Ctx, Dispatcher, HandlerKind, OperationSpec, Registration, Registry,
    ScopedPeerEnv,
};
use alknet_compute::{Compute, ComputeSettings, TensorReferences, operations, role};
use alknet_core::{AuthContext, Identity, IdentityKind, ProtocolHandler, memory_pair};
use alknet_test_support::deadline;
use alknet_worker::{Executable, RoleConfig, WorkerRole, Workers, WorkersConfig};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::program;

/// How long anything may take that has no limit of its own here.
pub(super) const LONG: Duration = Duration::from_secs(300);

/// Authors whose operations `lent/0` and so on the node has.
pub(super) const AUTHORS: usize = 4;

/// Scopes of a caller that may do everything here.
const SCOPES: [&str; 3] = ["compute:read", "compute:run", "compute:kernel"];

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads"));

/// One for all tests that need nothing of their own.
pub(super) static NODE: LazyLock<GpuTestNode> =
    LazyLock::new(|| GpuTestNode::start(patient(), |_| {}));

pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.block_on(work)
}

/// A loaded machine must not be taken for a request that does not end.
pub(super) fn patient() -> ComputeSettings {
    let mut settings = ComputeSettings::default();
    settings.gpu_time = deadline(LONG);
    settings.lease = deadline(LONG);
    settings.referenced_wait = deadline(LONG);
    settings.tenants_max = 64;
    settings
}

/// A node.
pub(super) struct GpuTestNode {
    handler: Arc<CallHandler>,
    pub(super) workers: Workers,
}

impl GpuTestNode {
    pub(super) fn start(settings: ComputeSettings, change: impl FnOnce(&mut RoleConfig)) -> Self {
        Self::with_program(program(), settings, change)
    }

    /// The same, with tensors that are stored elsewhere.
    pub(super) fn with_references(
        settings: ComputeSettings,
        references: Arc<dyn TensorReferences>,
    ) -> Self {
        Self::make(program(), settings, Some(references), |_| {})
    }

    /// The same with another program for the workers.
    pub(super) fn with_program(
        program: &Path,
        settings: ComputeSettings,
        change: impl FnOnce(&mut RoleConfig),
    ) -> Self {
        Self::make(program, settings, None, change)
    }

    fn make(
        program: &Path,
        settings: ComputeSettings,
        references: Option<Arc<dyn TensorReferences>>,
        change: impl FnOnce(&mut RoleConfig),
    ) -> Self {
        let _inside = RUNTIME.enter();
        let mut config = WorkersConfig::this_executable();
        config.silence = deadline(LONG);
        let mut gpu = role(&settings);
        change(&mut gpu);
        config.roles = vec![gpu];
        config.programs = vec![(WorkerRole::Gpu, Executable::File(program.to_owned()))];
        let workers = Workers::start(config).expect("a supervisor");
        let compute = match references {
            Some(references) => Compute::with_references(workers.clone(), settings, references),
            None => Compute::new(workers.clone(), settings),
        };
        let mut builder = Registry::builder();
        for operation in operations(&compute) {
            builder.add(operation);
        }
        for author in 0..AUTHORS {
            builder.add(lent(author));
        }
        let registry = builder.build().expect("sound operations");
        let dispatcher = Dispatcher::new(registry)
            .with_limits(PeerLimits::AUTHENTICATED)
            .with_node("test-node");
        let handler = Arc::new(CallHandler::new(Arc::new(dispatcher)));
        Self { handler, workers }
    }

    /// A caller with a connection of its own.
    pub(super) fn person(&self, name: &str) -> GpuTestCaller {
        self.person_with(name, &SCOPES)
    }

    pub(super) fn person_with(&self, name: &str, scopes: &[&str]) -> GpuTestCaller {
        let _inside = RUNTIME.enter();
        let identity = Identity {
            id: name.parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: scopes.iter().collect(),
            resources: Default::default(),
            generation: 0,
        };
        let (dialled, accepted) = memory_pair(ALPN);
        let auth = AuthContext {
            identity: Some(Arc::new(identity)),
            key: None,
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: accepted.carriage(),
            early_data: false,
        };
        let handler: Arc<dyn ProtocolHandler> = Arc::clone(&self.handler) as _;
        RUNTIME.spawn(handler.handle(accepted, auth));
        let connection = CallClient::without_operations().attach(dialled, None);
        GpuTestCaller(connection)
    }
}

/// Calls the operation that its input names by the rights of its author, as a promoted operation does.
fn lent(author: usize) -> Registration {
    let spec =
        OperationSpec::mutation(&format!("lent/author-{author}"), "Calls another operation.");
    let handler = HandlerKind::once(|input: CallBody, ctx: Ctx| async move {
        let input = input.value();
        let operation = input["operation"].as_str().unwrap_or_default();
        let answer = ctx.env().invoke(operation, &input["input"]).await?;
        Ok::<_, CallError>(answer.value().clone())
    });
    let authority = CompositionAuthority::new(&format!("script of author {author}"), SCOPES);
    let reach = ScopedPeerEnv::new(["compute/*", "tensor/*"]);
    Registration::new(spec, handler)
        .open()
        .composing(authority, reach)
}

/// A caller of the node's operations.
pub(super) struct GpuTestCaller(pub(super) CallConnection);

impl GpuTestCaller {
    /// Asks and waits.
    pub(super) fn try_ask(&self, operation: &str, input: &Value) -> Result<CallBody, CallError> {
        block_on(self.asking(operation, input))
    }

    pub(super) async fn asking(
        &self,
        operation: &str,
        input: &Value,
    ) -> Result<CallBody, CallError> {
        let options = CallOptions {
            timeout: Some(deadline(LONG)),
            ..CallOptions::default()
        };
        self.0.call_with(operation, input, &options).await
    }

    #[track_caller]
    pub(super) fn ask(&self, operation: &str, input: &Value) -> CallBody {
        let answer = self.try_ask(operation, input);
        answer.unwrap_or_else(|error| panic!("{operation}: {error:?}"))
    }

    /// The error's name on the wire, and the code inside.
    #[track_caller]
    pub(super) fn refused(&self, operation: &str, input: &Value) -> (String, String) {
        let error = self.try_ask(operation, input).expect_err("refused");
        codes(&error)
    }

    /// Calls an author's operation, which calls `operation`.
    pub(super) fn try_lent(
        &self,
        author: usize,
        operation: &str,
        input: &Value,
    ) -> Result<CallBody, CallError> {
        let input = json!({ "operation": operation, "input": input });
        self.try_ask(&format!("lent/author-{author}"), &input)
    }

    /// A tensor with these bytes, row by row where they are many.
    pub(super) fn create(&self, dtype: &str, shape: &[usize], bytes: &[u8]) -> Value {
        let made = self.ask("tensor/create", &json!({ "dtype": dtype, "shape": shape }));
        let handle = made.value()["handle"].clone();
        let rows = shape.first().copied().unwrap_or(1).max(1);
        let each = (bytes.len() / rows).max(1);
        let rows_at_once = ((512 << 10) / each).max(1);
        for (at, part) in bytes.chunks(rows_at_once * each).enumerate() {
            let from = at * rows_at_once;
            let to = (from + rows_at_once).min(rows);
            let rows = if shape.is_empty() {
                Value::Null
            } else {
                json!([from, to])
            };
            let input = json!({ "handle": handle, "rows": rows, "bytes": STANDARD.encode(part) });
            self.ask("tensor/write", &input);
        }
        handle
    }

    /// The bytes of a tensor in an answer, wherever they are.
    pub(super) fn bytes(&self, answer: &CallBody, tensor: &Value) -> Vec<u8> {
        match tensor.get("handle") {
            Some(handle) => {
                let read = self.ask("tensor/read", &json!({ "handle": handle }));
                let bytes = read.value()["bytes"].clone();
                binary(&read, &bytes)
            }
            None => binary(answer, &tensor["inline"]),
        }
    }
}

/// Bytes that came in the frame, or as base64.
pub(super) fn binary(answer: &CallBody, value: &Value) -> Vec<u8> {
    if let Some(bytes) = answer.binary(value) {
        return bytes.to_vec();
    }
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("no bytes: {value}"));
    STANDARD.decode(text).expect("base64")
}

pub(super) fn codes(error: &CallError) -> (String, String) {
    let inside = error.details.as_ref().map(|details| &details["code"]);
    let inside = inside.and_then(Value::as_str).unwrap_or_default();
    (error.code.name().to_owned(), inside.to_owned())
}

/// A tensor inside a request.
pub(super) fn inline(dtype: &str, shape: &[usize], bytes: &[u8]) -> Value {
    json!({ "inline": STANDARD.encode(bytes), "dtype": dtype, "shape": shape })
}

pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    words.iter().copied().map(f32::from_le_bytes).collect()
}

pub(super) fn le(floats: &[f32]) -> Vec<u8> {
    floats
        .iter()
        .flat_map(|float| float.to_le_bytes())
        .collect()
}

/// Numbers that look random and are the same each time.
pub(super) struct MatrixRng(u64);

impl MatrixRng {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(super) fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most as u64).expect("small")
    }

    /// From -1 to 1.
    pub(super) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}
