//! `alknet serve --config FILE` and the commands that change the file's effect.

use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::{
    ALPN, CallBody, CallClient, CallConnection, CallError, CallOptions, Dispatcher, HandlerKind,
    OperationSpec, Registration, Registry,
};
use alknet_core::{Carriage, CloseReason, Connection};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::{eventually, skip, took};
use alknet_tests::{CliOutput, CliRunner, TestBench, TokenCallers, binary, notes_of_tokens};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::lab::hung;

/// A served file.
struct FileNode {
    bench: TestBench,
    child: Child,
    target: String,
    file: PathBuf,
}

impl FileNode {
    /// Serves a document that begins with the administrator.
    fn start(rest: &str) -> Self {
        let bench = TestBench::new();
        let file = bench.path().join("node.toml");
        std::fs::write(&file, with_admin(&bench, rest)).expect("the folder is ours");
        let (child, target) = serve(&bench, &file);
        Self {
            bench,
            child,
            target,
            file,
        }
    }

    fn write(&self, rest: &str) {
        // As a careful editor does it: the whole file, by rename.
        let new = self.file.with_extension("new");
        std::fs::write(&new, with_admin(&self.bench, rest)).expect("the folder is ours");
        std::fs::rename(&new, &self.file).expect("the folder is ours");
    }

    fn run(&self, verb: &[&str], arguments: &[&str]) -> CliOutput {
        let admin = self.bench.admin();
        let mut command = admin.command(verb);
        command.args(arguments);
        admin.run(command)
    }

    fn info(&self) -> Value {
        self.call("node/info").json()
    }

    /// Waits until `node/info` shows this.
    fn wait_for(&self, what: &str, said: impl Fn(&Value) -> bool) -> Value {
        eventually(what, Duration::from_secs(60), || {
            let info = self.info();
            if said(&info) {
                Ok(info)
            } else {
                Err(format!("{info:#}"))
            }
        })
    }

    async fn dial(
        &self,
        who: &CliRunner,
        carriage: Carriage,
    ) -> (EndpointDialer, Connection, CallConnection) {
        let (dialer, connection) = self.connect(who, carriage).await;
        let client = CallClient::without_operations().attach(connection.clone(), None);
        (dialer, connection, client)
    }

    async fn connect(&self, who: &CliRunner, carriage: Carriage) -> (EndpointDialer, Connection) {
        // The binary makes the key, and its folder.
        who.identity();
        let path = who.state().join("identity.key");
        let (key, _) = NodeKey::load_or_create(&path).expect("a key");
        let dialer = EndpointDialer::new(Some(key));
        let target: Target = self.target.parse().expect("a target");
        let connection = dialer.dial_over(carriage, &target, ALPN).await;
        let connection = connection.unwrap_or_else(|error| panic!("{error}"));
        (dialer, connection)
    }

    /// Calls an operation without an input, as the administrator.
    fn call(&self, operation: &str) -> CliOutput {
        let admin = self.bench.admin();
        admin.call(&self.target, operation, &Value::Null, &[])
    }

    /// Serves the same document again, with the same state, after the node has ended.
    fn start_again(&mut self) {
        (self.child, self.target) = serve(&self.bench, &self.file);
    }

    fn tell_to_end(&self) {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it runs");
    }
}

impl Drop for FileNode {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn with_admin(bench: &TestBench, rest: &str) -> String {
    format!(
        "node.admin_keys = [\"{}\"]\n{rest}",
        bench.admin().identity()
    )
}

fn serve(bench: &TestBench, file: &std::path::Path) -> (Child, String) {
    let host = CliRunner::new(bench.path().join("host"));
    let mut command = host.command(&["serve", "--port", "0", "--listen", "127.0.0.1"]);
    command.arg("--config").arg(file);
    let (child, said) = alknet_tests::serve(command);
    (
        child,
        said["target"].as_str().unwrap_or_default().to_owned(),
    )
}

fn peer(name: &str, who: &CliRunner, scopes: &str) -> String {
    format!(
        "[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{}\"]\nscopes = [{scopes}]\n",
        who.identity()
    )
}

fn hang_up(child: &Child) {
    use nix::sys::signal::{Signal, kill};
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGHUP).expect("it runs");
}

/// The longest time until a changed file is read, and the longest time until it then takes effect.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);
const ENDED_WITHIN: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_taken_out_of_the_file_is_gone_and_others_see_nothing() {
    let served = FileNode::start("");
    let (gone, stays) = (served.bench.user("gone"), served.bench.user("stays"));
    let both = peer("gone", &gone, "\"peer:list\"") + &peer("stays", &stays, "\"peer:list\"");
    served.write(&both);
    served.wait_for("both are in", |info| info["config"]["generation"] == 2);

    let mut inside = Vec::new();
    for (who, carriage) in [
        (&gone, Carriage::Quic),
        (&gone, Carriage::Tcp),
        (&stays, Carriage::Quic),
        (&stays, Carriage::Tcp),
    ] {
        let (dialer, connection, client) = served.dial(who, carriage).await;
        let answer = client
            .call("peer/list", &Value::Null)
            .await
            .expect("allowed");
        assert_eq!(answer.value()["generation"], 2);
        inside.push((dialer, connection, client));
    }
    let began = Instant::now();
    served.write(&peer("stays", &stays, "\"peer:list\""));
    let ended = timeout(hung(), inside[0].1.closed()).await;
    assert!(
        matches!(ended, Ok(CloseReason::Peer(Some(1), _))),
        "{ended:?}"
    );
    let ended = timeout(hung(), inside[1].1.closed()).await;
    assert!(matches!(ended, Ok(CloseReason::Peer(None, _))), "{ended:?}");
    let within = NOTICED_WITHIN + ENDED_WITHIN;
    took(
        "connections of a peer end that is taken out of the file",
        within,
        began.elapsed(),
    );
    for (_, _, client) in &inside[2..] {
        client
            .call("peer/list", &Value::Null)
            .await
            .expect("nothing happened to it");
    }
    let info = served.wait_for("one is gone", |info| info["config"]["generation"] == 3);
    assert_eq!(info["problems"], json!([]), "{info:#}");
}

/// The same for the whole program: SIGTERM while peers call. It keeps each token that it has confirmed, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn on_sigterm_it_answers_accepted_calls_and_exits_with_success() {
    let mut served = FileNode::start("");
    let mut callers = TokenCallers::default();
    let mut connections = Vec::new();
    for (number, carriage) in [Carriage::Quic, Carriage::Tcp].repeat(2).iter().enumerate() {
        let (dialer, connection, client) = served.dial(served.bench.admin(), *carriage).await;
        callers.start(&client, &format!("{carriage:?}-{number}"), None);
        connections.push((dialer, connection, client));
    }
    callers.are_answered().await;
    served.tell_to_end();
    let confirmed = callers.refused().await;
    let ended = served.child.wait().expect("it is our child");
    assert_eq!(ended.code(), Some(0));
    served.start_again();
    let listed = served.call("token/list").json();
    assert_eq!(notes_of_tokens(&listed), confirmed);
}

/// A peer of a hub that answers once the test releases it.
struct WaitingPeer {
    client: CallClient,
    begun: watch::Receiver<bool>,
    release: Arc<Notify>,
}

impl WaitingPeer {
    fn new() -> Self {
        let (begins, begun) = watch::channel(false);
        let release = Arc::new(Notify::new());
        let held = Arc::clone(&release);
        let wait = HandlerKind::once(move |_: CallBody, _| {
            begins.send_replace(true);
            let held = Arc::clone(&held);
            async move {
                held.notified().await;
                Ok::<_, CallError>(json!("waited"))
            }
        });
        let ready = HandlerKind::once(|_: CallBody, _| async { Ok::<_, CallError>(Value::Null) });
        let query = |name| OperationSpec::query(name, "For tests.");
        let registry = Registry::builder()
            .with(Registration::new(query("test/ready"), ready))
            .with(Registration::new(query("test/wait"), wait))
            .build();
        let dispatcher = Dispatcher::new(registry.expect("correct operations"));
        Self {
            client: CallClient::new(Arc::new(dispatcher)),
            begun,
            release,
        }
    }
}

/// The call waits for a peer while the node gets SIGTERM, and the same client follows the log.
#[tokio::test(flavor = "multi_thread")]
async fn on_sigterm_it_waits_for_a_running_call() {
    const HUB: &str = "[hub]\nenabled = true\n";
    let mut served = FileNode::start(HUB);
    let slow = served.bench.user("slow");
    served.write(&(HUB.to_owned() + &peer("slow", &slow, "")));
    served.wait_for("it is in", |info| info["config"]["generation"] == 2);
    let mut waiting = WaitingPeer::new();
    let (_dialer, connection) = served.connect(&slow, Carriage::Quic).await;
    let _slow = waiting.client.attach(connection, None);
    let (_caller, _connection, client) = served.dial(served.bench.admin(), Carriage::Tcp).await;
    let options = CallOptions {
        peer: Some("slow".to_owned()),
        ..CallOptions::default()
    };
    let there = async {
        // Nothing announces it, so the test polls.
        while client
            .call_with("test/ready", &Value::Null, &options)
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(hung(), there).await.expect("it is found");
    let running = {
        let client = client.clone();
        tokio::spawn(async move { client.call_with("test/wait", &Value::Null, &options).await })
    };
    let begun = timeout(hung(), waiting.begun.wait_for(|begun| *begun)).await;
    let begun = begun.is_ok_and(|begun| begun.is_ok());
    assert!(begun, "it never arrived");
    let mut log = client
        .subscribe("node/log", &json!({ "last": 1, "follow": true }))
        .await
        .expect("the connection is open");
    let first = timeout(hung(), log.next()).await.expect("in time");
    first.expect("a record").expect("a record");
    served.tell_to_end();
    drains(&client).await;
    // A followed log has no end of its own: the node ends it, and waits for the call.
    let end = async {
        loop {
            if let Err(error) = log.next().await.expect("an error is the last event") {
                return error;
            }
        }
    };
    let end = timeout(hung(), end).await.expect("the log ends first");
    assert_eq!(end.code.name(), "UNAVAILABLE", "{end:?}");
    assert!(!running.is_finished(), "nothing has released the call");
    waiting.release.notify_one();
    let answer = timeout(hung(), running).await.expect("an end");
    let answer = answer.expect("no panic").expect("it was let finish");
    assert_eq!(answer.value(), "waited");
    let ended = served.child.wait().expect("it is our child");
    assert_eq!(ended.code(), Some(0));
}

/// The node is asked to stop twice while scripts of clients run.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_calls_at_once() {
    let mut served = FileNode::start("");
    let script = "await new Promise((done) => setTimeout(done, 500000));";
    let asked = json!({ "source": script, "limits": { "wall_ms": 600_000 } });
    let options = CallOptions {
        timeout: Some(Duration::from_secs(600)),
        ..CallOptions::default()
    };
    let mut callers = Vec::new();
    for (number, carriage) in [Carriage::Quic, Carriage::Tcp].into_iter().enumerate() {
        let (dialer, connection, client) = served.dial(served.bench.admin(), carriage).await;
        let (caller, asked, options) = (client.clone(), asked.clone(), options.clone());
        let call = async move { caller.call_with("runtime/eval", &asked, &options).await };
        let call = tokio::spawn(call);
        let runs = async {
            // Nothing announces it, so the test polls.
            loop {
                let listed = client.call("runtime/sessions", &Value::Null).await;
                let listed = listed.expect("it serves");
                let sessions = listed.value()["sessions"].as_array().map(Vec::len);
                if sessions > Some(number) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(hung(), runs).await.expect("the script runs");
        callers.push((carriage, dialer, connection, client, call));
    }
    served.tell_to_end();
    for (_, _, _, client, _) in &callers {
        drains(client).await;
    }
    served.tell_to_end();
    for (carriage, _dialer, connection, _client, call) in callers {
        let ended = timeout(hung(), call).await.expect("in time");
        let error = ended.expect("no panic").expect_err("it was cut off");
        assert_eq!(error.code.name(), "UNAVAILABLE", "{error:?}");
        assert!(error.message.contains("the node stopped"), "{error:?}");
        let reason = timeout(hung(), connection.closed()).await;
        // Over TCP the end has no code.
        let is_told = matches!(reason, Ok(CloseReason::Peer(Some(3), _)));
        assert!(is_told || carriage == Carriage::Tcp, "{reason:?}");
    }
    let ended = served.child.wait().expect("it is our child");
    assert_eq!(ended.code(), Some(130));
}

/// Waits until the node has told this client that it ends.
async fn drains(client: &CallConnection) {
    let drains = async {
        while !client.is_draining() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(hung(), drains).await.expect("it says that it ends");
}

#[test]
fn a_wrong_file_changes_nothing_until_it_is_right() {
    let mut served = FileNode::start("log.level = \"debug\"\n");
    served.write("log.level = \"loud\"\n");
    let info = served.wait_for("the mistake is seen", |info| info["problems"] != json!([]));
    assert_eq!(info["config"]["generation"], 1);
    assert_eq!(info["problems"][0]["code"], "config-refused", "{info:#}");
    served.write("log.level = \"warn\"\n");
    served.wait_for("it is right again", |info| {
        info["config"]["generation"] == 2
    });

    // The file is damaged while the node is down: the node starts with the last good configuration,
    // and reports that.
    served.child.kill().expect("it runs");
    served.child.wait().expect("it is our child");
    std::fs::write(&served.file, "[node\n").expect("the folder is ours");
    (served.child, served.target) = serve(&served.bench, &served.file);
    let info = served.info();
    let codes: Vec<_> = [0usize, 1]
        .map(|n| info["problems"][n]["code"].clone())
        .into();
    assert_eq!(codes, ["config-refused", "config-last-good"], "{info:#}");

    // The file is correct again. SIGHUP does not wait for the watch of the folder.
    std::fs::write(&served.file, with_admin(&served.bench, "")).expect("the folder is ours");
    hang_up(&served.child);
    served.wait_for("it is right again", |info| info["problems"] == json!([]));
}

/// An administrator who sends SIGHUP learns that it arrived.
#[test]
fn a_signal_after_no_change_is_logged() {
    let served = FileNode::start("");
    hang_up(&served.child);
    eventually("the line of the signal", Duration::from_secs(60), || {
        let log = served.run(&["logs", "--last", "100"], &[&served.target]);
        match log
            .output
            .contains("node.toml was read again, and nothing changed")
        {
            true => Ok(()),
            false => Err(format!("{log:?}")),
        }
    });
    assert_eq!(served.info()["config"]["generation"], 1);
}

#[test]
fn a_document_is_tried_applied_and_kept() {
    let served = FileNode::start("");
    let edge = served.bench.user("edge");
    let new = served.bench.path().join("new.toml");
    let document = with_admin(
        &served.bench,
        &peer("edge", &edge, "\"peer:list\", \"fs:reed\""),
    ) + "max_connections = 2\n[listen]\nport = 4433\n";
    std::fs::write(&new, &document).expect("the folder is ours");
    let new = new.to_str().expect("plain names");
    let apply = |more: &[&str]| served.run(&["config", "apply", &served.target, new], more);

    let tried = apply(&["--dry-run"]).json();
    assert_eq!(
        (&tried["generation"], &tried["changed"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(tried["peers"]["added"], json!(["edge"]));
    assert_eq!(served.info()["config"]["generation"], 1);

    let applied = apply(&["--generation", "1"]).json();
    assert_eq!(
        (&applied["generation"], &applied["kept"]),
        (&json!(2), &json!(true))
    );
    // The command line's port wins, so no change waits for a restart.
    assert_eq!(applied["restart_required"], json!([]), "{applied}");
    assert_eq!(applied["warnings"][0]["id"], "edge", "{applied}");
    assert_eq!(
        std::fs::read_to_string(&served.file).ok().as_ref(),
        Some(&document)
    );
    let conflict = apply(&["--generation", "1"]);
    assert_eq!((conflict.status, conflict.code().as_str()), (1, "CONFLICT"));
    assert_eq!(apply(&[]).json()["changed"], false);

    let peers = served.run(&["peers", &served.target], &[]).json();
    let ids: Vec<_> = [0usize, 1]
        .map(|n| peers["peers"][n]["peer_id"].clone())
        .into();
    assert_eq!(ids, ["admin", "edge"], "{peers:#}");
    assert_eq!(peers["peers"][0]["connections"][0]["alpn"], "alknet/call");
    assert_eq!(peers["peers"][1]["max_connections"], 2);
}

#[test]
fn what_is_refused_says_why_and_with_which_code() {
    let served = FileNode::start("");
    let edge = served.bench.user("edge");
    let unknown_peer = served.bench.user("unknown-peer");
    served.write(&peer("edge", &edge, ""));
    served.wait_for("the peer is in", |info| info["config"]["generation"] == 2);
    let new = served.bench.path().join("new.toml");
    let path = new.to_str().expect("plain names");
    let apply = |who: &CliRunner, document: &str| {
        std::fs::write(&new, document).expect("the folder is ours");
        who.run(who.command(&["config", "apply", &served.target, path]))
    };
    let refused = apply(served.bench.admin(), "listen.port = 0\nlog.level = 1\n");
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (2, "INVALID_INPUT")
    );
    for words in [
        "new.toml: line 1, listen.port",
        "new.toml: line 2, log.level",
    ] {
        assert!(refused.errors.contains(words), "{refused:?}");
    }
    let lockout = apply(served.bench.admin(), "");
    assert_eq!(
        (lockout.status, lockout.code().as_str()),
        (2, "INVALID_INPUT")
    );
    assert!(lockout.errors.contains("node.admin_keys"), "{lockout:?}");
    for (who, code) in [(&edge, "FORBIDDEN"), (&unknown_peer, "UNAUTHENTICATED")] {
        let denied = apply(who, "");
        assert_eq!((denied.status, denied.code().as_str()), (4, code));
        let peers = who.run(who.command(&["peers", &served.target]));
        assert_eq!((peers.status, peers.code().as_str()), (4, code));
    }
    assert_eq!(served.info()["config"]["generation"], 2);
    let missing = served.run(&["config", "apply", &served.target, "no-such-file"], &[]);
    assert_eq!(missing.status, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_token_works_once_its_hash_is_in_the_file() {
    let served = FileNode::start("");
    let made = std::process::Command::new(binary())
        .args(["token", "new", "--json"])
        .output()
        .expect("the binary can be started");
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let text = |key: &str| made[key].as_str().unwrap_or_default().to_owned();
    let unknown_peer = served.bench.user("unknown-peer");
    let (_dialer, _connection, client) = served.dial(&unknown_peer, Carriage::Quic).await;
    let options = CallOptions {
        auth_token: Some(text("token")),
        ..CallOptions::default()
    };
    let call = || client.call_with("peer/list", &Value::Null, &options);
    assert!(call().await.is_err());
    served.write(&format!(
        "[[api_keys]]\nkey_id = \"{}\"\nsha256 = \"{}\"\nscopes = [\"peer:list\"]\n",
        text("key_id"),
        text("sha256")
    ));
    served.wait_for("the token is in", |info| info["config"]["generation"] == 2);
    let answer = call().await.expect("a right token");
    let listed = answer.value()["peers"].to_string();
    assert!(listed.contains(&format!("key:{}", text("key_id"))));
    assert!(!listed.contains(&text("sha256")));
}

/// A root that serves the document of another user: that user's links lead wherever the user likes.
#[test]
fn root_keeps_no_configuration_in_a_folder_of_another_user() {
    /// A user without rights.
    const OTHER: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        skip!("root", "no file can be given to another user");
    }
    let bench = TestBench::new();
    let folder = bench.path().join("theirs");
    let target = bench.path().join("file of root");
    std::fs::create_dir(&folder).expect("the folder is ours");
    std::fs::write(&target, "untouched").expect("the folder is ours");
    chown(&folder, Some(OTHER), None).expect("root may");
    let copy = folder.join("node.last-good.toml");
    symlink(&target, &copy).expect("root may");
    let file = folder.join("node.toml");
    let document = with_admin(&bench, "");
    std::fs::write(&file, &document).expect("root may");
    let (child, target_of_node) = serve(&bench, &file);
    let mut served = FileNode {
        bench,
        child,
        target: target_of_node,
        file,
    };
    served.write("log.level = \"debug\"\n");
    served.wait_for("the new document", |info| info["config"]["generation"] == 2);
    let new = served.bench.path().join("new.toml");
    std::fs::write(&new, &document).expect("the folder is ours");
    let new = new.to_str().expect("plain names");
    let applied = served.run(&["config", "apply", &served.target, new], &[]);
    let applied = applied.json();
    assert_eq!(applied["kept"], false, "{applied}");
    let why = applied["kept_error"].as_str().unwrap_or_default();
    assert!(why.contains("belongs to user 65534"), "{applied}");
    let text = std::fs::read_to_string(&target).expect("it is there");
    assert_eq!(text, "untouched");

    // What that user puts there is not read as a copy of the node's own.
    served.child.kill().expect("it runs");
    served.child.wait().expect("it is our child");
    std::fs::remove_file(&copy).expect("root may");
    std::fs::write(&copy, &document).expect("root may");
    std::fs::write(&served.file, "[node\n").expect("root may");
    let host = CliRunner::new(served.bench.path().join("host"));
    let mut command = host.command(&["serve", "--port", "0", "--listen", "127.0.0.1"]);
    command.arg("--config").arg(&served.file);
    let refused = host.run(command);
    assert_eq!(refused.code(), "USAGE", "{refused:?}");
}

/// A user who may write to the folder of the configuration makes a named pipe where the node keeps its copy. A node that
/// opens it waits for a writer.
#[test]
fn a_pipe_in_the_place_of_the_copy_does_not_hold_the_node() {
    let bench = TestBench::new();
    let copy = bench.path().join("node.last-good.toml");
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&copy, mode).expect("the folder is ours");
    let node = bench.host_with("");
    let answer = node.call(
        "config/apply",
        &json!({ "document": "node.name = \"attic\"" }),
    );
    assert_eq!(answer["kept"], true, "{answer}");
    let kept = std::fs::read_to_string(&copy).expect("a file");
    assert!(kept.contains("attic"), "{kept}");
}
