//! Tools of other servers as operations: servers made with the kits, old and new, and one of our own.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{
    CallBody, CallError, CallOutput, CompositionAuthority, Ctx, Dispatcher, HandlerKind,
    Idempotence, ImportMemory, LocalCaller, LocalRequest, OperationAdapter, OperationSpec,
    OperationType, Registration, Registry, ScopedPeerEnv,
};
use alknet_core::{
    BoxFuture, Capability, CapabilityBackend, CapabilityError, CapabilityKind, DialAllowList,
    DialError, DialErrorKind, DialRequest, DialedConnection, Dialer, Identity, Secret, capability,
    memory_pair,
};
use alknet_http_client::{ClientOptions, HttpClient};
use alknet_mcp::{FromMcp, McpImport};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::kits::{node_script, python};
use crate::node::{ADMIN, McpTestNode, McpTestProof, identity};

/// Refuses every dial: the servers of these tests are reached without TLS.
#[derive(Debug)]
struct McpTestDialer;

impl Dialer for McpTestDialer {
    fn connect(&self, _request: DialRequest) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
        let error = DialError::new(DialErrorKind::Local, "nothing is dialled here");
        Box::pin(std::future::ready(Err(error)))
    }
}

pub(crate) fn http(port: u16) -> HttpClient {
    let options = ClientOptions {
        reach: DialAllowList::Anywhere,
        plain: vec![format!("127.0.0.1:{port}").parse().expect("a place")],
        ..ClientOptions::default()
    };
    HttpClient::new(Arc::new(McpTestDialer), options)
}

pub(crate) fn adapter(port: u16, capability: Option<Capability>) -> FromMcp {
    adapter_in(&ImportMemory::default(), port, capability)
}

/// One whose answers count against `memory`.
pub(crate) fn adapter_in(
    memory: &ImportMemory,
    port: u16,
    capability: Option<Capability>,
) -> FromMcp {
    let import = McpImport {
        namespace: "tools".to_owned(),
        url: format!("http://127.0.0.1:{port}/mcp"),
        credential: capability.is_some().then(|| "tools".to_owned()),
        only: Vec::new(),
    };
    FromMcp::new(http(port), import, capability, memory).expect("an address")
}

/// A node that has the tools, and an operation that calls whichever its input names.
pub(crate) struct McpImporter {
    gate: LocalCaller,
    _ends: (alknet_core::Connection, alknet_core::Connection),
}

impl McpImporter {
    pub(crate) fn with_registrations(registrations: Vec<Registration>) -> Self {
        let relay = |input: CallBody, ctx: Ctx| async move {
            let operation = input.value()["op"].as_str().unwrap_or_default().to_owned();
            let answer = ctx
                .env()
                .invoke(&operation, &input.value()["input"])
                .await?;
            Ok::<CallOutput, CallError>(answer.into())
        };
        let composing = |spec: OperationSpec| {
            let authority = CompositionAuthority::new("test", ["*:*"]);
            Registration::new(spec, HandlerKind::once(relay))
                .composing(authority, ScopedPeerEnv::new(["tools/*"]))
                .passing_errors_on()
        };
        let query = OperationSpec::query("test/relay", "Calls another.");
        let mut once = OperationSpec::mutation("test/once", "Calls another once for a key.");
        once.idempotent = Idempotence::Keyed;
        let own = [composing(query), composing(once).open()];
        let builder = own
            .into_iter()
            .chain(registrations)
            .fold(Registry::builder(), alknet_call::RegistryBuilder::with);
        let dispatcher = Arc::new(Dispatcher::new(builder.build().expect("operations")));
        let ends = memory_pair(b"h2");
        let gate = LocalCaller::new(&dispatcher, &ends.1, None);
        Self { gate, _ends: ends }
    }

    pub(crate) async fn call(&self, tool: &str, input: Value) -> Result<Value, CallError> {
        self.call_within(tool, input, None).await
    }

    /// The same with a deadline of the caller's.
    pub(crate) async fn call_within(
        &self,
        tool: &str,
        input: Value,
        timeout: Option<Duration>,
    ) -> Result<Value, CallError> {
        self.call_of(None, tool, input, timeout).await
    }

    /// The same for this identity.
    pub(crate) async fn call_as(
        &self,
        who: &str,
        tool: &str,
        input: Value,
    ) -> Result<Value, CallError> {
        let who = identity(who, &["*"]);
        self.call_of(Some(who), tool, input, None).await
    }

    async fn call_of(
        &self,
        identity: Option<Arc<Identity>>,
        tool: &str,
        input: Value,
        timeout: Option<Duration>,
    ) -> Result<Value, CallError> {
        let incoming = LocalRequest {
            identity,
            timeout,
            ..LocalRequest::new("r1", "test/relay")
        };
        let output = self.output(incoming, tool, input).await?;
        Ok(CallBody::from(output).value().clone())
    }

    /// The same for this identity, through a mutation that runs once where there is a key. What it answers counts until
    /// it is dropped.
    pub(crate) async fn call_once(
        &self,
        who: &str,
        key: Option<&str>,
        tool: &str,
        input: Value,
    ) -> Result<CallOutput, CallError> {
        let through = key.map_or("test/relay", |_| "test/once");
        let incoming = LocalRequest {
            identity: Some(identity(who, &["*"])),
            idempotency_key: key,
            ..LocalRequest::new("r1", through)
        };
        self.output(incoming, tool, input).await
    }

    async fn output(
        &self,
        incoming: LocalRequest<'_>,
        tool: &str,
        input: Value,
    ) -> Result<CallOutput, CallError> {
        let input = json!({"op": format!("tools/{tool}"), "input": input}).to_string();
        let incoming = LocalRequest {
            input: Some(input.into()),
            ..incoming
        };
        let answer = self.gate.call(incoming).await;
        answer.map_err(|refused| refused.error)
    }
}

/// A server in a process of its own.
struct McpTestServer {
    child: Child,
    port: u16,
}

impl McpTestServer {
    async fn start(mut command: Command) -> Self {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = child.spawn().expect("it runs");
        let output = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .await
            .expect("text");
        let port = line.trim().parse().expect("the server says its port");
        Self { child, port }
    }

    async fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("it is piped");
        input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("it reads");
    }
}

fn kind(registrations: &[Registration], name: &str) -> OperationType {
    let found = registrations.iter().find(|one| one.spec().name == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {registrations:?}"))
        .spec()
        .op_type
}

async fn try_server(server: &McpTestServer) {
    let found = adapter(server.port, None).import().await.expect("tools");
    assert_eq!(kind(&found, "tools/add"), OperationType::Query);
    assert_eq!(kind(&found, "tools/files_list"), OperationType::Mutation);
    let node = McpImporter::with_registrations(found);
    let sum = node.call("add", json!({"a": 2, "b": 3})).await;
    assert_eq!(sum.expect("a sum")["sum"], 5);
    // It looks like JSON, and is text all the same.
    let text = node.call("files_list", json!({})).await.expect("text");
    assert_eq!(text["content"][0]["text"], "{\"looks\": \"like JSON\"}");
    let failed = node
        .call("fail", json!({}))
        .await
        .expect_err("it always fails");
    assert_eq!(failed.code.name(), "MCP_TOOL_ERROR");
    assert!(failed.message.contains("no such luck"), "{failed}");
    // The node has no people to ask.
    let asked = node
        .call("ask", json!({}))
        .await
        .expect_err("no server answers");
    assert!(
        ["MCP_TOOL_ERROR", "MCP_SERVER_ERROR"].contains(&asked.code.name()),
        "{asked}"
    );
    let wrong = node
        .call("add", json!({"a": "x"}))
        .await
        .expect_err("no number");
    assert_eq!(wrong.code.name(), "INVALID_INPUT");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_the_newest_python_kit() {
    try_server(&McpTestServer::start(python("ALKNET_TEST_MCP_PYTHON", "server_newest.py")).await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_the_older_python_kit() {
    // It knows no typed output, so that `add` answers with text.
    let server =
        McpTestServer::start(python("ALKNET_TEST_MCP_PYTHON_OLD", "server_older.py")).await;
    let found = adapter(server.port, None).import().await.expect("tools");
    let node = McpImporter::with_registrations(found);
    let sum = node
        .call("add", json!({"a": 2, "b": 3}))
        .await
        .expect("a sum");
    assert_eq!(sum, json!({"content": [{"type": "text", "text": "5"}]}));
    let failed = node
        .call("fail", json!({}))
        .await
        .expect_err("it always fails");
    assert_eq!(failed.code.name(), "MCP_TOOL_ERROR");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_the_typescript_kit() {
    let mut server = McpTestServer::start(node_script("server.mjs")).await;
    try_server(&server).await;

    // The server announces a tool that comes later.
    let adapter = adapter(server.port, None);
    let before = adapter.import().await.expect("tools").len();
    server.tell("grow").await;
    finds_one_more(&adapter, before).await;
}

/// The kit of TypeScript says that its tools changed on a stream which the client opens after the first listing, and
/// forgets what no client hears: what changed between the two is found when the stream is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_came_before_the_server_could_say_so_is_found() {
    let mut script = node_script("server.mjs");
    script.arg("hold-stream");
    let mut server = McpTestServer::start(script).await;
    let adapter = adapter(server.port, None);
    let before = adapter.import().await.expect("tools").len();
    server.tell("grow").await;
    server.tell("give-stream").await;
    finds_one_more(&adapter, before).await;
}

/// Waits for one tool more than there were. It comes long before tools are listed again without a reason.
async fn finds_one_more(adapter: &FromMcp, before: usize) {
    let more = async {
        loop {
            adapter.changed().await;
            let now = adapter.import().await.expect("tools").len();
            if now == before + 1 {
                break;
            }
            assert_eq!(now, before, "the only tool that comes is one");
        }
    };
    let limit = deadline(Duration::from_secs(60));
    let in_time = tokio::time::timeout(limit, more).await;
    in_time.expect("the change is found");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_another_node_with_a_credential() {
    let other =
        McpTestNode::start(McpTestProof::Nothing, &["demo/add", "test/image_content"]).await;
    let gate: alknet_core::CapabilityGate = Arc::new(|| true);
    let (capability, filler) = capability("tools", CapabilityKind::Bearer, gate);
    // A new adapter each time: one that failed does not try again at once.
    let again = || adapter(other.port, Some(capability.clone()));
    let locked = again().import().await;
    let locked = locked.expect_err("there is no secret yet").to_string();
    assert!(locked.contains("locked"), "{locked}");

    filler.fill(CapabilityBackend::Bearer(Secret::new(b"wrong".to_vec())));
    let refused = again().import().await.expect_err("this token is not known");
    assert!(
        matches!(refused, alknet_call::AdapterError::Unauthorized(_)),
        "{refused}"
    );

    filler.fill(CapabilityBackend::Bearer(Secret::new(
        ADMIN.as_bytes().to_vec(),
    )));
    let adapter = again();
    let found = adapter.import().await.expect("tools");
    assert_eq!(found.len(), 6);
    let node = McpImporter::with_registrations(found);
    let sum = node.call("demo_add", json!({"a": 2, "b": 3})).await;
    assert_eq!(sum, Ok(json!({"sum": 5})));
    let image = node
        .call("test_image_content", json!({}))
        .await
        .expect("an image");
    assert_eq!(image["content"][0]["type"], "image");
    // The credential is looked at when the call is made.
    filler.empty(CapabilityError::Locked);
    let locked = node.call("demo_add", json!({"a": 2, "b": 3})).await;
    assert!(locked.expect_err("no secret").message.contains("locked"));
}
