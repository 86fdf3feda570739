//! Callers of promoted operations, which run as their author's: whoever calls them without end leaves the author, and
//! other callers, what is theirs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallConnection, ErrorCode};
use alknet_endpoint::{Dialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{Bench, Cli, HostNode, assert_known_labels};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// The operations that are called.
const NAMES: [&str; 2] = ["first", "second"];
/// Calls of each of them that the attacker has under way or tries again at once: together more than all sessions that
/// one identity may have.
const ATTEMPTS: usize = 140;
/// Sessions that one caller may have of one author's.
const CALLER_MAX: usize = 64;
/// How long each of its calls lasts, in milliseconds.
const LASTS_MS: u64 = 25_000;
/// How long it waits before it tries again.
const AGAIN: Duration = Duration::from_millis(200);

/// A connection, and what made it.
async fn dial(node: &HostNode, who: &Cli) -> (Dialer, CallConnection) {
    let file = who.state().join("identity.key");
    let (key, _) = NodeKey::load_or_create(&file).expect("a key");
    let dialer = Dialer::new(Some(key));
    let target: Target = node.target().parse().expect("the node's own target");
    let connection = dialer.dial(&target, ALPN).await.expect("it is known");
    let client = CallClient::without_operations().attach(connection, None);
    (dialer, client)
}

/// The folder of an operation that lasts as long as its caller says.
fn draft(bench: &Bench, name: &str) -> PathBuf {
    let at = bench.path().join(name);
    std::fs::create_dir_all(&at).expect("the folder is ours");
    let operation = json!({
        "spec": { "name": name, "kind": "query", "input": { "type": "integer" } },
        "entry": "./main.js", "export": "wait",
        "tests": [{ "input": 0, "expect": { "output": "done" } }],
    });
    let source = "export const wait = (ms) =>
        ms ? new Promise((done) => setTimeout(() => done('done'), ms)) : 'done';";
    std::fs::write(at.join("operation.json"), operation.to_string()).expect("room");
    std::fs::write(at.join("main.js"), source).expect("room");
    at
}

fn promote(bench: &Bench, at: &str, [ada, rev]: [&Cli; 2], name: &str) {
    let mut propose = ada.command(&["ops", "propose", at, "--as", "ada"]);
    propose.arg(draft(bench, name));
    let proposed = ada.run(propose).json();
    let id = proposed["id"].as_str().expect("an id");
    let promoted = rev.run(rev.command(&["ops", "promote", at, id, "--external"]));
    assert_eq!(promoted.json()["active"], true);
}

/// Calls both operations again and again, as often as it is let, over as many connections as that takes.
struct Attack {
    _dialers: Vec<Dialer>,
    calls: JoinSet<()>,
    ends: Arc<AtomicBool>,
    /// Attempts whose first call was refused. What is let in lasts longer than it takes to begin all of them.
    refused: Arc<AtomicUsize>,
}

impl Attack {
    async fn begin(node: &HostNode, who: &Cli) -> Self {
        let (mut dialers, mut calls) = (Vec::new(), JoinSet::new());
        let (ends, refused) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        for name in NAMES {
            let (dialer, client) = dial(node, who).await;
            dialers.push(dialer);
            for _ in 0..ATTEMPTS {
                let (client, ends, refused) =
                    (client.clone(), Arc::clone(&ends), Arc::clone(&refused));
                calls.spawn(async move {
                    let mut is_first = true;
                    while !ends.load(Ordering::Relaxed) {
                        let path = format!("js/{name}");
                        if let Err(error) = client.call(&path, &json!(LASTS_MS)).await
                            && error.code == ErrorCode::Overloaded
                            && is_first
                        {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        is_first = false;
                        tokio::time::sleep(AGAIN).await;
                    }
                });
            }
        }
        Self {
            _dialers: dialers,
            calls,
            ends,
            refused,
        }
    }

    fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.calls.abort_all();
    }
}

/// Sessions of an identity's, in which calls run.
async fn sessions_of(admin: &CallConnection, tenant: &str) -> usize {
    let listed = admin.call("runtime/sessions", &json!({})).await;
    let listed = listed.expect("it is answered");
    let sessions = listed.value()["sessions"]
        .as_array()
        .expect("a list")
        .iter();
    sessions.filter(|it| it["tenant"] == tenant).count()
}

/// The metrics of a node with peers that are connected, sessions of an author's, and promoted operations that run: none
/// of their labels has a name.
async fn names_nobody(admin: &CallConnection) {
    let metrics = admin.call("node/metrics", &Value::Null).await;
    let metrics = metrics.expect("an administrator");
    let values = metrics.value()["values"].as_object().expect("by series");
    let of = |series: &str| values.get(series).and_then(Value::as_f64).unwrap_or(0.0);
    assert!(of("alknet_script_sessions") >= 1.0, "{values:?}");
    assert!(of("alknet_workers{role=\"js\"}") >= 1.0, "{values:?}");
    for series in values.keys() {
        assert_known_labels(series, &[]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_calls_without_end_leaves_the_author_and_others_theirs() {
    let bench = Bench::new();
    let [ada, rev, eve, bob] = ["ada", "rev", "eve", "bob"].map(|name| bench.somebody(name));
    let calls = NAMES.map(|name| format!("call:js:{name}"));
    let calls = calls.each_ref().map(String::as_str);
    let people: [(&str, &Cli, &[&str]); 4] = [
        ("ada", &ada, &["runtime:debug", "ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
        ("eve", &eve, &calls),
        ("bob", &bob, &calls),
    ];
    let people = people.map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let config = format!("[promotion]\nactivate = \"live\"\n{}", people.concat());
    let node = bench.host_with(&config);
    for name in NAMES {
        promote(&bench, node.target(), [&ada, &rev], name);
    }

    let (_admins, admin) = dial(&node, bench.admin()).await;
    let attack = Attack::begin(&node, &eve).await;
    let full = async {
        while attack.refused.load(Ordering::Relaxed) < NAMES.len() * ATTEMPTS - CALLER_MAX
            || sessions_of(&admin, "ada").await < CALLER_MAX
        {
            tokio::time::sleep(AGAIN).await;
        }
    };
    let waited = tokio::time::timeout(deadline(Duration::from_secs(60)), full).await;
    waited.expect("the attacker has what it may have, and is refused the rest");
    assert!(sessions_of(&admin, "ada").await < 2 * CALLER_MAX);
    names_nobody(&admin).await;

    // Another caller, and the author's own scripts, which are beside what others have run.
    let (_bobs, bob) = dial(&node, &bob).await;
    let (_adas, ada) = dial(&node, &ada).await;
    for name in NAMES {
        let answer = bob.call(&format!("js/{name}"), &json!(0)).await;
        assert_eq!(answer.expect("there is room").value(), &json!("done"));
        let ran = ada
            .call("runtime/eval", &json!({ "source": "export default 7" }))
            .await;
        assert_eq!(ran.expect("half of them are hers").value()["value"], 7);
    }
    attack.end();
    let problems = admin
        .call("node/info", &Value::Null)
        .await
        .expect("answered");
    assert_eq!(problems.value()["problems"], json!([]));
}
