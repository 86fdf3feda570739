//! A node that answers the call protocol by hand, with answers that a real node cannot give:
//! endless lists, codes of several lines, names as long as a frame, and a hub's claim about its
//! peer's address. `uploads.rs` has nodes that close the connection in the place of an answer.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, CloseCode, Connection, HandlerError,
    HandlerRegistry, Identities, IdentityEntries, ProtocolHandler, RecvStream, SendStream,
    SystemClock,
};
use alknet_endpoint::{EndpointServer, ServerOptions};
use alknet_tests::{CliOutput, CliRunner, binary, whole_seconds, wire};
use alknet_tls::NodeKey;
use nix::pty::openpty;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lying_node::{ENTERS, NAMES, PATHS, TICKET, run};

/// A second line that looks like one of a command's own.
const FORGED: &str = "X\r\nhealth     ok\nalknet: all is well";

/// In the place of an error: the node closes the connection without an answer.
pub(crate) const CUT: Value = Value::Bool(false);

/// The output or the error of an operation, by its name and its input. An error of null is no answer, and [`CUT`] ends
/// the connection.
type ScriptedAnswer = dyn Fn(&str, &Value) -> Result<Value, Value> + Send + Sync;

/// `alknet/call`, where each request gets the test's answer.
struct ScriptedCalls {
    alpns: [AlpnSpec; 1],
    answer: Box<ScriptedAnswer>,
    /// Operations that were called.
    requests: Mutex<Vec<String>>,
}

impl ScriptedCalls {
    async fn answer_stream(
        self: Arc<Self>,
        connection: Connection,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> io::Result<()> {
        loop {
            let len = recv.read_u32().await?;
            let mut body = vec![0; len as usize];
            recv.read_exact(&mut body).await?;
            let event: Value = serde_json::from_slice(&body)?;
            if event["type"] != "call.requested" {
                continue;
            }
            let operation = event["payload"]["operationId"].as_str().unwrap_or_default();
            let operation = operation.trim_start_matches('/');
            self.requests().push(operation.to_owned());
            let (kind, said) = match (self.answer)(operation, &event["payload"]["input"]) {
                Ok(output) => ("call.responded", json!({ "output": output })),
                // The test wants no answer.
                Err(Value::Null) => continue,
                Err(error) if error == CUT => {
                    connection.close(CloseCode::Internal, "cut");
                    break Ok(());
                }
                Err(error) => ("call.error", error),
            };
            let answer = json!({ "type": kind, "id": event["id"], "payload": said });
            send.write_all(&wire::frame(answer.to_string().as_bytes()))
                .await?;
            send.flush().await?;
        }
    }

    fn requests(&self) -> MutexGuard<'_, Vec<String>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProtocolHandler for ScriptedCalls {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        _: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                let calls = Arc::clone(&self);
                tokio::spawn(calls.answer_stream(connection.clone(), send, recv));
            }
            // Over TCP there is one stream.
            connection.closed().await;
            Ok(())
        })
    }
}

pub(crate) struct ScriptedNode {
    server: EndpointServer,
    key: NodeKey,
    calls: Arc<ScriptedCalls>,
}

impl ScriptedNode {
    pub(crate) fn start(
        answer: impl Fn(&str, &Value) -> Result<Value, Value> + Send + Sync + 'static,
    ) -> Self {
        let calls = Arc::new(ScriptedCalls {
            alpns: [AlpnSpec {
                auth: AuthNeed::Open,
                ..AlpnSpec::new(alknet_call::ALPN)
            }],
            answer: Box::new(answer),
            requests: Mutex::default(),
        });
        let mut handlers = HandlerRegistry::new();
        let registered = handlers.register(Arc::clone(&calls) as _);
        registered.expect("the only one");
        let key = NodeKey::generate().expect("a key");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let known = Arc::new(Identities::new(IdentityEntries::default(), clock));
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, known).expect("a free port");
        Self { server, key, calls }
    }

    pub(crate) fn target(&self) -> String {
        let (key, port) = (self.key.public(), self.server.port());
        format!("{key}@{}:{port}", Ipv4Addr::LOCALHOST)
    }

    /// How often an operation was called.
    pub(crate) fn asked_for(&self, operation: &str) -> usize {
        let requests = self.calls.requests();
        requests.iter().filter(|name| *name == operation).count()
    }

    /// The operations that were called, in their order.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.calls.requests().clone()
    }

    /// Runs a command with this node's target for each argument `@`.
    pub(crate) async fn run(&self, cli: &CliRunner, words: &[&str]) -> CliOutput {
        let word = |word: &&str| match *word {
            "@" => self.target(),
            word => word.to_owned(),
        };
        run(cli, words.iter().map(word).collect()).await
    }
}

pub(crate) fn not_found() -> Value {
    json!({ "code": "NOT_FOUND", "message": "it is not there", "retryable": false })
}

/// The node takes the request and never answers it.
#[tokio::test(flavor = "multi_thread")]
async fn a_verb_waits_for_an_answer_as_long_as_its_option_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, two] = ["one", "two"].map(|name| CliRunner::new(folder.path().join(name)));
    let node = ScriptedNode::start(|_, _| Err(Value::Null));
    // Long enough for the connection.
    let within = whole_seconds(Duration::from_secs(2));
    let listed = ["token", "list", "@", "--timeout", &within];
    let shown = ["ops", "show", "@", "node/info", "--timeout", &within];
    let (listed, shown) = tokio::join!(node.run(&one, &listed), node.run(&two, &shown));
    for (silent, operation) in [(listed, "token/list"), (shown, "services/schema")] {
        assert_eq!(silent.status, 5, "{silent:?}");
        let said = format!("'{operation}' gave no answer within {within} s");
        assert!(silent.errors.contains(&said), "{silent:?}");
    }
}

/// The list has new operations on every page, the same one, or none. The command still ends, and
/// reports that this is not a list. Before the calls in a file, a command requests the node's
/// limits, which are on the first page.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_operations_without_end_is_ended() {
    /// Operations per page.
    const ROWS: u64 = 500;
    /// Pages after which a command that reads them all is disconnected, so that the test fails.
    const ENDLESS: u64 = 40;
    /// The operations of page `n`.
    type PageRows = fn(u64) -> Vec<u64>;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let batch = folder.path().join("batch");
    fs::write(&batch, "{\"operation\":\"a/one\"}\n").expect("the folder is ours");
    let batch = batch.display().to_string();
    let kinds: [(&str, PageRows); 3] = [
        ("new", |n| (n * ROWS..(n + 1) * ROWS).collect()),
        ("the same", |_| vec![0]),
        ("none", |_| Vec::new()),
    ];
    for (kind, rows) in kinds {
        let node = ScriptedNode::start(move |operation, input| match operation {
            "a/one" => Ok(json!(1)),
            "services/list" => {
                let cursor = input["cursor"].as_str().and_then(|it| it.parse().ok());
                let cursor: u64 = cursor.unwrap_or_default();
                let row = |n: u64| json!({ "name": format!("a/op-{n}"), "namespace": "a", "op_type": "query" });
                let rows: Vec<_> = rows(cursor).into_iter().map(row).collect();
                match cursor < ENDLESS {
                    true => Ok(json!({ "operations": rows, "next": (cursor + 1).to_string() })),
                    false => Err(not_found()),
                }
            }
            _ => Err(not_found()),
        });
        let listed = node.run(&cli, &["--json", "ops", "@"]).await;
        assert_eq!(listed.code(), "INVALID_OUTPUT", "{kind}: {listed:?}");
        let pages = node.asked_for("services/list");
        let words = ["--json", "call", "@", "--batch", &batch];
        let called = node.run(&cli, &words).await.json();
        assert_eq!(called["output"], 1, "{kind}");
        assert_eq!(node.asked_for("services/list") - pages, 1, "{kind}");
    }
}

/// The peer sends codes as well as messages, and the parts of a script's failure.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_node_makes_no_line_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let node = ScriptedNode::start(|operation, _| {
        Err(match operation {
            "services/schema" => not_found(),
            "runtime/eval" => json!({
                "code": "SCRIPT_FAILED", "message": FORGED,
                "details": { "code": FORGED, "name": FORGED, "module": FORGED, "line": 1, "stack": FORGED },
            }),
            _ => json!({ "code": FORGED, "message": FORGED, "details": [FORGED] }),
        })
    });
    for (words, errors) in [
        (&["status", "@"][..], 1),
        (&["call", "@", "evil/refused"], 1),
        (&["call", "@", "evil/refused", "--also", "@"], 2),
        (&["token", "list", "@"], 1),
        (&["js", "run", "@", "-"], 1),
    ] {
        let refused = node.run(&cli, words).await;
        assert_ne!(refused.status, 0, "{words:?}: {refused:?}");
        // Indented lines are a script's stack.
        let lines = refused.errors.lines();
        let lines: Vec<_> = lines.filter(|line| !line.starts_with("    ")).collect();
        assert_eq!(lines.len(), errors, "{words:?}: {refused:?}");
        let are_own = lines.iter().all(|line| line.starts_with("alknet: "));
        assert!(are_own, "{words:?}: {refused:?}");
        // The whole code is there, with its line breaks as escapes.
        let has_code = lines[0].contains("X\\u{d}\\u{a}health     ok");
        assert!(has_code, "{words:?}: {refused:?}");
    }
}

/// The node refuses a delta, so that it downloads the whole program next, and refuses that as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_reason_of_a_node_that_takes_the_whole_program_is_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let node = ScriptedNode::start(|operation, _| match operation {
        "update/stage" => Ok(json!({ "session": "s1", "bytes": 9, "offset": 0 })),
        "update/status" => Ok(json!({
            "session": null,
            "ended": {
                "session": "s1", "source": "https://updates.example.org/beta/from-ab12.tar",
                "error": { "code": "delta", "text": FORGED },
            },
        })),
        _ => Err(not_found()),
    });
    let words = ["update", "@", "--channel", "beta", "--stage"];
    let refused = node.run(&cli, &words).await;
    assert_ne!(refused.status, 0, "{refused:?}");
    assert_eq!(node.asked_for("update/stage"), 2, "{refused:?}");
    let lines: Vec<_> = refused.errors.lines().collect();
    let [note, error] = lines.as_slice() else {
        panic!("a note and an error: {refused:?}");
    };
    assert!(
        note.starts_with("delta: X\\u{d}\\u{a}health     ok"),
        "{refused:?}"
    );
    assert!(
        note.ends_with("; it takes the whole program"),
        "{refused:?}"
    );
    assert!(
        error.starts_with("alknet: CONFLICT: delta: X\\u{d}"),
        "{refused:?}"
    );
}

/// A name may be as long as a frame.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_name_is_its_own_row_s_alone() {
    /// Bytes of a row without a long field.
    const ROW_BYTES_MAX: usize = 300;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let long = "x".repeat(usize::from(u16::MAX) + 1);
    let name = format!("a/{long}");
    let wanted = name.clone();
    let node = ScriptedNode::start(move |operation, _| match operation {
        "services/list" => {
            let row = |name: &str| json!({ "name": name, "namespace": "a", "op_type": "query" });
            Ok(json!({ "operations": [row("a/b"), row(&name)] }))
        }
        "peer/list" => Ok(json!({ "peers": [{ "peer_id": "edge" }, { "peer_id": name }] })),
        "token/list" => Ok(json!({ "tokens": [
            { "key_id": "bbbbbbbb", "holder": "edge", "scopes": [] },
            { "key_id": "aaaaaaaa", "holder": name, "scopes": [] },
        ] })),
        "vault/status" => Ok(json!({ "credentials": [
            { "name": "edge", "kind": "bearer", "state": "ready" },
            { "name": name, "kind": name, "state": "ready" },
        ] })),
        _ => Err(not_found()),
    });
    for (words, short) in [
        (&["ops", "@"][..], "a/b"),
        (&["peers", "@"], "edge"),
        (&["token", "list", "@"], "bbbbbbbb"),
        (&["credential", "list", "@"], "edge"),
    ] {
        let listed = node.run(&cli, words).await;
        assert_eq!(listed.status, 0, "{words:?}: {}", listed.errors);
        let mut rows = listed.output.lines();
        let row = rows.find(|row| row.starts_with(short));
        let len = row.map(str::len);
        assert!(
            len.is_some_and(|len| len < ROW_BYTES_MAX),
            "{words:?}: {len:?}"
        );
        assert!(listed.output.contains(&long), "{words:?}");
    }
    let shown = node.run(&cli, &["credential", "show", "@", &wanted]).await;
    assert_eq!(shown.status, 0, "{}", shown.errors);
    assert!(shown.output.contains(&long), "the row that was asked for");
}

/// The output of `open` for a user at a desktop, and the file that it opens in a browser, if it
/// opens one.
fn open_at_a_desktop(cli: &CliRunner, folder: &Path, node: &str) -> (String, Option<String>) {
    let opener = folder.join("xdg-open");
    if !opener.exists() {
        symlink("/bin/true", &opener).expect("the folder is ours");
    }
    let pty = openpty(None, None).expect("a pseudo-terminal");
    let mut command = Command::new(binary());
    command
        .args(["open", node, "--state"])
        .arg(cli.state())
        .env("PATH", folder)
        .env("DISPLAY", ":0")
        .stdin(Stdio::null())
        .stdout(Stdio::from(pty.slave))
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("the binary can be started");
    // From here on only the command has this side of the terminal.
    drop(command);
    let mut said = Vec::new();
    // After the last output, the kernel reports an error for a terminal that no program has open.
    File::from(pty.master).read_to_end(&mut said).ok();
    child.wait().expect("it is our child");
    let led = cli.state().join("open.html");
    let opened = fs::read_to_string(&led).ok();
    fs::remove_file(&led).ok();
    (String::from_utf8_lossy(&said).into_owned(), opened)
}

/// The hub invents its peer's address, for example that of a page that asks for a token.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_at_an_address_that_a_hub_names_is_not_opened() {
    const PATH: &str = "/status/enter/0123456789abcdefABCDEF_-0123456789abcdefABC";
    const SAID: &str = "https://203.0.113.6:444";
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let peer = NodeKey::from_seed(&[7; 32]).public();
    let node = ScriptedNode::start(move |operation, _| match operation {
        "node/info" => Ok(json!({
            "identity": peer, "addresses": ["203.0.113.6"], "listen": { "port": 444 },
        })),
        "node/page-ticket" => {
            Ok(json!({ "path": PATH, "expires_in": 60, "names": ["evil.example"] }))
        }
        _ => Err(not_found()),
    });
    let (direct, behind) = (node.target(), format!("kitchen@{}", node.target()));
    let link = format!("{SAID}{PATH}");
    let words = ["--json", "open", "--print", &behind];
    let printed = node.run(&cli, &words).await.json();
    assert_eq!(printed["url"], link.as_str(), "{printed}");
    assert_eq!(printed["address_known"], false, "{printed}");
    let printed = node.run(&cli, &words[1..]).await;
    assert_eq!(printed.output.trim_end(), link, "{printed:?}");
    assert!(printed.errors.contains("nothing proves it"), "{printed:?}");
    let (state, at) = (cli.clone(), folder.path().to_owned());
    let desktop = move |node: String| open_at_a_desktop(&state, &at, &node);
    let desktop = Arc::new(desktop);
    for (target, own) in [(behind, false), (direct, true)] {
        let run = Arc::clone(&desktop);
        let opened = tokio::task::spawn_blocking(move || run(target));
        let (said, page) = opened.await.expect("it runs");
        // The same desktop, but the user typed the address.
        assert_eq!(said.contains("Opening"), own, "{said}");
        assert_eq!(page.is_some(), own, "{said}");
        assert_eq!(said.contains(SAID), !own, "{said}");
    }
}

/// A node that answers `alknet open` with this path, and with names of its own choice.
fn node_with_link(path: String) -> ScriptedNode {
    ScriptedNode::start(move |operation, _| match operation {
        "node/page-ticket" => Ok(json!({ "path": path, "expires_in": 60, "names": NAMES })),
        _ => Err(not_found()),
    })
}

/// The command writes a file of HTML for the browser. No path that is no link gets into it, and no name of the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_gets_no_file_with_texts_of_a_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().join("state"));
    let (state, at) = (cli.clone(), folder.path().to_owned());
    let desktop = Arc::new(move |node: String| open_at_a_desktop(&state, &at, &node));
    let opens = async |target: String| {
        let run = Arc::clone(&desktop);
        let opened = tokio::task::spawn_blocking(move || run(target));
        opened.await.expect("it runs")
    };
    for path in PATHS {
        let node = node_with_link(path.to_owned());
        let (said, page) = opens(node.target()).await;
        assert_eq!(node.asked_for("node/page-ticket"), 1, "{path:?}: {said}");
        assert_eq!(page, None, "{path:?}: {said}");
        assert!(!said.contains("Opening"), "{path:?}: {said}");
    }
    let path = format!("{ENTERS}{TICKET}");
    let node = node_with_link(path.clone());
    let by_address = node.target();
    let by_name = by_address.replace(&Ipv4Addr::LOCALHOST.to_string(), "localhost");
    let port = node.server.port();
    let links = ["127.0.0.1", "[::1]", "localhost"].map(|host| format!("{host}:{port}{path}\""));
    for target in [by_address, by_name] {
        let (said, page) = opens(target.clone()).await;
        let page = page.unwrap_or_else(|| panic!("{target}: no file for the browser: {said}"));
        let led: Vec<_> = page.split("https://").skip(1).collect();
        assert_eq!(led.len(), 2, "{target}: {page}");
        for to in led {
            let is_known = links.iter().any(|link| to.starts_with(link.as_str()));
            assert!(is_known, "{target}: {page}");
        }
        let has_text = ["evil", "script"].iter().any(|text| page.contains(text));
        assert!(!has_text, "{target}: {page}");
    }
}
