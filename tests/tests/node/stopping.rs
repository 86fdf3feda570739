//! A user stops waiting, and the node stops working.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, CallOptions, Dispatcher, HandlerKind,
    OperationSpec, Registration, Registry,
};
use alknet_core::{
    AlpnSpec, AuthContext, BoxFuture, CloseCode, Connection, HandlerError, HandlerRegistry,
    Identities, IdentityEntries, PeerKey, ProtocolHandler, SystemClock,
};
use alknet_endpoint::{EndpointDialer, EndpointServer, ServerOptions};
use alknet_test_support::{deadline, skip, took};
use alknet_tests::{
    CliOutput, CliRunner, Curl, TestBench, WebNode, eventually, serve, whole_seconds,
};
use alknet_tls::NodeKey;
use futures_util::FutureExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Mutex, Semaphore};

use crate::enrolment::{EnrolmentNode, hub_config, invite, peer};

/// Serves calls, and reports each connection that they come over.
struct WatchedCalls {
    calls: Arc<CallHandler>,
    connections: UnboundedSender<Connection>,
}

impl ProtocolHandler for WatchedCalls {
    fn alpns(&self) -> &[AlpnSpec] {
        self.calls.alpns()
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        // The test may have finished already.
        self.connections.send(connection.clone()).ok();
        Arc::clone(&self.calls).handle(connection, auth)
    }
}

/// Reports when its work is dropped.
struct DroppedWork(Arc<Semaphore>);

impl Drop for DroppedWork {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

/// A node whose only operation serves one caller at a time, and never ends for the first.
struct BusyNode {
    server: EndpointServer,
    key: NodeKey,
    began: Arc<Semaphore>,
    /// Whether the work for the first caller was dropped.
    dropped: Arc<Semaphore>,
    connections: UnboundedReceiver<Connection>,
}

/// How long the node may take to start or drop a call: longer than a connection may be silent, so
/// that the test recognises an end by silence.
const BEGINS_OR_ENDS_WITHIN: Duration = Duration::from_secs(60);

impl BusyNode {
    fn start() -> Self {
        let began = Arc::new(Semaphore::new(0));
        let dropped = Arc::new(Semaphore::new(0));
        let (turn, first) = (Arc::new(Mutex::new(true)), Arc::clone(&began));
        let first_dropped = Arc::clone(&dropped);
        let work = HandlerKind::once(move |_, _| {
            let (turn, began) = (Arc::clone(&turn), Arc::clone(&first));
            let dropped = Arc::clone(&first_dropped);
            async move {
                let mut turn = turn.lock().await;
                if std::mem::take(&mut *turn) {
                    let _work = DroppedWork(dropped);
                    began.add_permits(1);
                    std::future::pending::<()>().await;
                }
                Ok::<_, CallError>(json!("done"))
            }
        });
        let spec = OperationSpec::query("test/work", "Takes one caller at a time.");
        let registry = Registry::builder().with(Registration::new(spec, work));
        let registry = registry.build().expect("every rule is kept");
        let calls = Arc::new(CallHandler::new(Arc::new(Dispatcher::new(registry))));
        let (sends, connections) = mpsc::unbounded_channel();
        let watched = WatchedCalls {
            calls,
            connections: sends,
        };
        let mut handlers = HandlerRegistry::new();
        handlers.register(Arc::new(watched)).expect("the only one");
        let key = NodeKey::generate().expect("a key");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let known = Arc::new(Identities::new(IdentityEntries::default(), clock));
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, known).expect("a free port");
        Self {
            server,
            key,
            began,
            dropped,
            connections,
        }
    }

    fn call(&self, cli: &CliRunner, carriage: &str, within: Duration) -> Command {
        let port = self.server.port();
        let target = format!("{}@{}:{port}", self.key.public(), Ipv4Addr::LOCALHOST);
        let mut command = cli.command(&["call", "--carriage", carriage]);
        command.args(["--timeout", &whole_seconds(within), &target, "test/work"]);
        command
    }
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("the child was not waited for yet");
}

/// Waits until the node has started a call, or dropped one.
async fn seen(what: &Semaphore) {
    let seen = tokio::time::timeout(deadline(BEGINS_OR_ENDS_WITHIN), what.acquire());
    seen.await.expect("it hangs").expect("it is open").forget();
}

/// A client over UDP that was killed, and its connection to a node of its own.
async fn silent_client(cli: &CliRunner) -> (BusyNode, Connection) {
    let mut node = BusyNode::start();
    let mut call = node.call(cli, "quic", Duration::from_secs(600));
    let call = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut call = call.expect("it starts");
    seen(&node.began).await;
    let connection = node.connections.recv().await.expect("a call came over it");
    call.kill().expect("it is our child");
    call.wait().expect("it is our child");
    (node, connection)
}

/// Over UDP a node notices only by the silence of its connection that a client's process is gone.
/// Unless the client cancels its call or closes the connection, the next caller would have to wait
/// for the call of a client that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_interrupted_ends_at_the_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().to_owned());
    for carriage in ["quic", "tcp"] {
        let (_other, silent) = silent_client(&cli).await;
        let node = BusyNode::start();
        let mut first = node.call(&cli, carriage, Duration::from_secs(600));
        let first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut first = first.expect("it starts");
        seen(&node.began).await;
        interrupt(&first);
        seen(&node.dropped).await;
        // A client that was silent for longer is still there.
        let ended = silent.closed().now_or_never();
        assert_eq!(ended, None, "{carriage}: it said nothing");
        // A tenth of the time that the first would have had.
        let next = node.call(&cli, carriage, Duration::from_secs(20));
        let next_cli = cli.clone();
        let next = tokio::task::spawn_blocking(move || next_cli.run(next));
        let next: CliOutput = next.await.expect("it runs");
        assert_eq!(next.json(), Value::from("done"), "{carriage}");
        let ended = tokio::task::spawn_blocking(move || first.wait())
            .await
            .expect("it runs");
        let status = ended.expect("it is our child").code();
        assert_eq!(status, Some(130), "{carriage}");
    }
}

/// Reads a child's standard error until a line that contains `what`, and returns that line.
fn line_with(child: &mut Child, what: &str) -> String {
    let errors = child.stderr.take().expect("it was asked for");
    let mut lines = BufReader::new(errors).lines();
    let found = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(what)));
    found.expect("it says so").expect("text")
}

/// A user who stops a node sees what it waits for, and need not wait for it.
#[test]
fn a_node_says_what_it_waits_for_and_a_second_interrupt_ends_it_at_once() {
    let bench = TestBench::new();
    let admin = bench.admin();
    let mut serves = bench
        .user("host")
        .command(&["serve", "--listen", "127.0.0.1"]);
    serves.args(["--port", "0", "--admin", &admin.identity()]);
    serves.stderr(Stdio::piped());
    let (mut node, said) = serve(serves);
    let target = said["target"].as_str().expect("a target");
    let script = "await new Promise((done) => setTimeout(done, 500000));";
    let asked = json!({ "source": script, "limits": { "wall_ms": 600_000 } });
    let mut call = admin.command(&["call", "--timeout", "600", target, "runtime/eval"]);
    call.arg(asked.to_string());
    let call = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut call = call.expect("it starts");
    eventually("the script runs", || {
        let listed = admin.call(target, "runtime/sessions", &Value::Null, &[]);
        let listed: Value = serde_json::from_str(&listed.output).ok()?;
        (!listed["sessions"].as_array()?.is_empty()).then_some(())
    });
    interrupt(&node);
    let line = line_with(&mut node, "stopping: ");
    assert!(line.contains("1 running call and "), "{line}");
    assert!(line.contains("press Ctrl-C again"), "{line}");
    interrupt(&node);
    // A node that waited for the script would end normally.
    let status = node.wait().expect("it is our child").code();
    assert_eq!(status, Some(130));
    call.kill().ok();
    call.wait().expect("it is our child");
}

/// A followed log has no end of its own. The worker ends it once the hub stops, so that the hub does not wait.
#[test]
fn a_hub_that_stops_does_not_wait_for_a_log_of_its_worker() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let join = invite(&bench, &hub, &["--role", "worker"]);
    // Only administrators of the worker read its log.
    let config = format!(
        "[node]\nname = \"kitchen\"\nadmin_keys = [\"{}\"]\n[[join]]\ncode = \"{join}\"\n",
        hub.key()
    );
    let _worker = EnrolmentNode::start(&bench, "worker", &config, "0");
    peer(&bench, &hub, "kitchen", "ready");
    let mut follows = bench.admin().command(&["logs", "--follow"]);
    follows.args([&hub.target, "--peer", "kitchen"]);
    let follows = follows.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut follows = follows.spawn().expect("it starts");
    let records = follows.stdout.take().expect("it was asked for");
    let mut records = BufReader::new(records).lines();
    records.next().expect("a record").expect("text");
    assert_eq!(hub.stop(), Some(0));
    // After ten seconds the hub would have cut the log off, and the error would say that the node stopped.
    let error = line_with(&mut follows, "UNAVAILABLE");
    assert!(error.contains("shutting down"), "{error}");
    follows.wait().expect("it is our child");
}

/// A shader that does not end before the node stops.
const ENDLESS: &str = "@group(0) @binding(0) var<storage, read_write> data: array<u32>;
    @compute @workgroup_size(1) fn main() {
        loop { data[0] = data[0] * 5u + 1u; if data[1] == 7u { break; } }
    }";

/// A shader that ends at once.
const SHORT: &str = "@group(0) @binding(0) var<storage, read_write> data: array<u32>;
    @compute @workgroup_size(1) fn main() { data[0] = 7u; }";

/// How long a request may wait for the previous one: less than the time until a node notices by
/// silence that a client over UDP is gone (45 s), and part of that client's shader time.
const NEXT_WITHIN: Duration = Duration::from_secs(20);

/// How long it waits on an idle machine: the stopped shader's worker is ended, and another is
/// started.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How much more processor time an endless shader may use than short ones, in ticks of 10 ms.
const TICKS: u64 = 20;

/// How long a script continues after its shader has ended. The node replaces the worker meanwhile.
const STAYS: Duration = Duration::from_secs(1);

fn shader(wgsl: &str) -> Value {
    json!({
        "wgsl": wgsl, "entry": "main", "groups": [1, 1, 1],
        "bindings": [{ "binding": 0, "out": { "dtype": "U32", "shape": [2] } }],
    })
}

/// A script that runs this shader.
fn eval(wgsl: &str) -> Value {
    let stays = deadline(STAYS).as_millis();
    let script = format!(
        "const shader = gpu.module(`{wgsl}`);
         await gpu.dispatch(shader, 'main', [{{ binding: 0, out: {{ dtype: 'U32', shape: [2] }} }}]);
         await new Promise((done) => setTimeout(done, {stays}));"
    );
    json!({ "source": script, "limits": { "wall_ms": 600_000 } })
}

/// A node on which a shader may run as long as a call.
struct ComputeNode {
    bench: TestBench,
    web: WebNode,
    /// Ticks that a shader which ends at once takes, with starting its worker and compiling it.
    short: u64,
    /// Those, or the ticks of the workers of a script that runs such a shader, whichever are more.
    script: u64,
}

impl ComputeNode {
    /// Processor time of all processes that the node started, in ticks.
    fn ticks(&self) -> u64 {
        let mut parents = HashMap::new();
        let mut used = HashMap::new();
        for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // It may have ended.
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let Some((_, fields)) = stat.rsplit_once(") ") else {
                continue;
            };
            // proc_pid_stat(5): after the name, the second field is the parent, and 12 and 13 are
            // the times.
            let fields: Vec<_> = fields.split(' ').collect();
            let number = |n: usize| fields.get(n).and_then(|text| text.parse::<u64>().ok());
            let (Some(parent), Some(user), Some(system)) = (number(1), number(11), number(12))
            else {
                continue;
            };
            parents.insert(pid, parent as u32);
            used.insert(pid, user + system);
        }
        let node = self.web.node.pid();
        let is_below = |pid: u32| {
            let mut above = parents.get(&pid);
            while let Some(parent) = above {
                if *parent == node {
                    return true;
                }
                above = parents.get(parent);
            }
            false
        };
        let below = used.iter().filter(|(pid, _)| is_below(**pid));
        below.map(|(_, ticks)| ticks).sum()
    }

    /// The most ticks that a call which ends by itself took. Workers that have ended no longer
    /// count.
    fn ticks_of(&self, mut call: Command) -> u64 {
        let before = self.ticks();
        let call = call.stdout(Stdio::null()).spawn();
        let mut call = call.expect("it starts");
        let mut most = before;
        let status = eventually("a short shader ends", || {
            most = most.max(self.ticks());
            call.try_wait().expect("it is our child")
        });
        assert!(status.success(), "{status}");
        most - before
    }

    /// Waits until a shader has run for a while since `before`. First, workers may have to start
    /// for the script and for the shader, and it is compiled, which takes at most twice the time of
    /// a short one.
    fn until_busy(&self, since: u64, short: u64) {
        let busy = since + 2 * short + TICKS;
        eventually("the shader runs", || (self.ticks() > busy).then_some(()));
    }

    /// Starts a client over QUIC with a new key, and kills its process, so that the node notices
    /// only the silence of the connection. Returns the log's name for the key.
    fn falls_silent(&self, name: &str) -> String {
        let client = self.bench.user(name);
        let key: PeerKey = client.identity().parse().expect("a key");
        let mut follows = client.command(&["call", "--carriage", "quic"]);
        follows.args([self.web.node.target(), "services/watch", "null"]);
        let follows = follows.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut follows = follows.expect("it starts");
        eventually("a client has its connection", || {
            self.log_has("conn.open", &key.short()).then_some(())
        });
        follows.kill().expect("it is our child");
        follows.wait().expect("it is our child");
        key.short()
    }

    /// Whether the log has a line with this beginning about a connection of this key.
    fn log_has(&self, event: &str, key8: &str) -> bool {
        let (target, all) = (self.web.node.target(), json!({ "last": 100_000 }));
        let mut log = self.bench.admin().subscribe(target, "node/log", &all);
        let key = format!(" key8={key8} ");
        log.any(|record| {
            let text = record["message"].as_str().unwrap_or_default();
            text.starts_with(event) && text.contains(&key)
        })
    }

    fn call(&self, carriage: &str, operation: &str, input: &Value, within: Duration) -> Command {
        let mut command = self.bench.admin().command(&["call"]);
        command.args(["--carriage", carriage, "--timeout", &whole_seconds(within)]);
        command.args([self.web.node.target(), operation, &input.to_string()]);
        command
    }

    /// The same identity's next request gets its turn.
    fn next_is_served(&self, after: &str) {
        let next = self.call("quic", "compute/dispatch", &shader(SHORT), NEXT_WITHIN);
        let began = Instant::now();
        let told = self.bench.admin().run(next);
        let outputs = &told.json()["outputs"]["0"];
        assert_eq!(outputs["inline"], "BwAAAAAAAAA=", "{after}: {told:?}");
        took(&format!("the next after {after}"), AT_ONCE, began.elapsed());
    }

    fn next_is_served_over_http(&self, after: &str) {
        let within = deadline(NEXT_WITHIN).as_millis() as u64;
        let call = json!({
            "operation": "compute/dispatch", "input": shader(SHORT), "timeout_ms": within,
        });
        let began = Instant::now();
        let told = self.web.post(&self.web.admin, "/call", &call.to_string());
        let output = &told.json()["output"]["outputs"]["0"];
        assert_eq!(output["inline"], "BwAAAAAAAAA=", "{after}: {told:?}");
        took(&format!("the next after {after}"), AT_ONCE, began.elapsed());
    }

    /// A connection of the administrator.
    async fn client(&self) -> (EndpointDialer, CallConnection) {
        let file = self.bench.admin().state().join("identity.key");
        let (key, _) = NodeKey::load_or_create(&file).expect("a key");
        let dialer = EndpointDialer::new(Some(key));
        let target = self.web.target();
        let connection = dialer.dial(&target, ALPN).await.expect("a connection");
        let client = CallClient::without_operations().attach(connection, None);
        (dialer, client)
    }
}

/// The longest permitted time of an endless shader's call.
const LONG: Duration = Duration::from_secs(600);

/// Ctrl-C, over either carriage. The client's message ends the shader, not its silence.
fn ctrl_c_stops(node: &ComputeNode, operation: &str, input: &Value, short: u64) {
    for carriage in ["quic", "tcp"] {
        // Its silence begins before the first client comes, and ends its connection before that of
        // the first would end by silence. Over TCP the kernel reports that a process is gone.
        let silent = (carriage == "quic").then(|| {
            let name = operation.replace('/', "-");
            node.falls_silent(&format!("silent-{name}"))
        });
        let since = node.ticks();
        let mut first = node.call(carriage, operation, input, LONG);
        let first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut first = first.expect("it starts");
        node.until_busy(since, short);
        interrupt(&first);
        node.next_is_served(&format!("Ctrl-C of {operation} over {carriage}"));
        if let Some(key8) = silent {
            let is_late = node.log_has("conn.close", &key8);
            assert!(
                !is_late,
                "{operation}: it had to wait for a client's silence"
            );
        }
        let status = first.wait().expect("it is our child").code();
        assert_eq!(status, Some(130), "{operation} over {carriage}");
    }
}

/// A call that is abandoned on a connection that continues, and one whose connection ends.
async fn what_a_connection_says_stops(node: &ComputeNode) {
    let (_dialer, client) = node.client().await;
    for ends in [false, true] {
        let since = node.ticks();
        let caller = client.clone();
        let call = tokio::spawn(async move {
            let options = CallOptions {
                timeout: Some(LONG),
                ..CallOptions::default()
            };
            let endless = shader(ENDLESS);
            let answer = caller.call_with("compute/dispatch", &endless, &options);
            answer.await
        });
        node.until_busy(since, node.short);
        assert!(!call.is_finished(), "an endless shader has an answer");
        if ends {
            client.close(CloseCode::Normal, "");
            node.next_is_served("the end of a connection");
        } else {
            // Its future is dropped.
            call.abort();
            let short = shader(SHORT);
            let began = Instant::now();
            let next = client.call("compute/dispatch", &short);
            let next = tokio::time::timeout(deadline(NEXT_WITHIN), next).await;
            let next = next.expect("it waits for the call that was given up");
            let answer = next.expect("a short shader");
            let output = &answer.value()["outputs"]["0"];
            assert_eq!(output["inline"], "BwAAAAAAAAA=", "an abort");
            took("the next after an abort", AT_ONCE, began.elapsed());
        }
    }
}

/// The end of a client that sends its request over HTTP.
fn the_end_of_curl_stops(node: &ComputeNode, version: &str) {
    let since = node.ticks();
    // Without a time of its own the call would end by itself before the next one gives up.
    let call = json!({
        "operation": "compute/dispatch", "input": shader(ENDLESS), "timeout_ms": 600_000,
    });
    let (call, url) = (call.to_string(), node.web.url("/call"));
    let bearer = format!("Authorization: Bearer {}", node.web.admin);
    let asks = ["--silent", "--insecure", version, "--json", &call];
    let more = ["--header", &bearer, "--url", &url];
    let mut first = Curl::new(&[&asks[..], &more].concat()).start(Stdio::null());
    node.until_busy(since, node.short);
    first.kill().expect("it is our child");
    first.wait().expect("it is our child");
    node.next_is_served_over_http(&format!("the end of curl {version}"));
}

/// Whichever way a caller stops: it does not end the request of the same identity that comes next, which would
/// otherwise wait until the shader has used up its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_shader_whose_caller_stops_is_stopped() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "[compute]\ngpu_seconds = 600\n");
    let mut node = ComputeNode {
        bench,
        web,
        short: 0,
        script: 0,
    };
    let before = node.ticks();
    // It starts the worker in which the first shader is compiled.
    let first = node.call("quic", "compute/dispatch", &shader(SHORT), LONG);
    let first = node.bench.admin().run(first);
    if first.status != 0 {
        let info = node.web.node.call("compute/info", &json!({}));
        assert_eq!(info["state"], "none", "{first:?}");
        let reason = info["reason"].as_str().unwrap_or_default();
        skip!("Vulkan adapter", "{reason}");
    }
    let dispatched = node.ticks().saturating_sub(before);
    node.next_is_served("nothing");
    let evaluated = node.ticks_of(node.call("quic", "runtime/eval", &eval(SHORT), LONG));
    println!("figure a short shader: {dispatched} ticks; from a script: {evaluated} ticks");
    node.short = dispatched;
    node.script = dispatched.max(evaluated);
    assert!(dispatched > 0, "nothing was seen of its worker");
    node.next_is_served_over_http("nothing");

    ctrl_c_stops(&node, "compute/dispatch", &shader(ENDLESS), node.short);
    ctrl_c_stops(&node, "runtime/eval", &eval(ENDLESS), node.script);
    what_a_connection_says_stops(&node).await;
    for version in ["--http1.1", "--http2"] {
        the_end_of_curl_stops(&node, version);
    }
}
