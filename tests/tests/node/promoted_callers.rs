//! Callers of promoted operations, which run with their author's rights. A caller that calls them
//! endlessly leaves the author, and other callers, their shares.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallConnection, ErrorCode};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{CliRunner, Curl, HostNode, TestBench, assert_known_labels};
use alknet_tls::NodeKey;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// The operations that the tests call.
const NAMES: [&str; 2] = ["first", "second"];
/// Calls of each of them that the attacker has in progress or retries at once: together more than
/// all sessions that one identity may have.
const ATTEMPTS: usize = 140;
/// Sessions that one caller may have of one author.
const CALLER_MAX: usize = 64;
/// Duration of each of its calls, in milliseconds.
const LASTS_MS: u64 = 25_000;
/// How long it waits before it retries.
const AGAIN: Duration = Duration::from_millis(200);

/// A connection, and its dialer.
pub(super) async fn dial(node: &HostNode, who: &CliRunner) -> (EndpointDialer, CallConnection) {
    let file = who.state().join("identity.key");
    let (key, _) = NodeKey::load_or_create(&file).expect("a key");
    let dialer = EndpointDialer::new(Some(key));
    let target: Target = node.target().parse().expect("the node's own target");
    let connection = dialer.dial(&target, ALPN).await.expect("it is known");
    let client = CallClient::without_operations().attach(connection, None);
    (dialer, client)
}

/// A proposal.
pub(super) struct OperationDraft<'a> {
    pub(super) name: &'a str,
    pub(super) uses: &'a [&'a str],
    /// The schema of its input, and an input to which its export `run` answers `'done'`.
    pub(super) input: Value,
    pub(super) example: Value,
    pub(super) source: &'a str,
    pub(super) service: bool,
}

impl<'a> OperationDraft<'a> {
    /// Lasts as long as its caller says.
    pub(super) fn waits(name: &'a str) -> Self {
        Self {
            name,
            uses: &[],
            input: json!({ "type": "integer" }),
            example: json!(0),
            source: "export const run = (ms) =>
                ms ? new Promise((done) => setTimeout(() => done('done'), ms)) : 'done';",
            service: false,
        }
    }

    /// The same in a service.
    pub(super) fn waits_in_a_service(name: &'a str) -> Self {
        Self {
            source: "export const init = () => {};
                export const run = (ms) =>
                ms ? new Promise((done) => setTimeout(() => done('done'), ms)) : 'done';",
            service: true,
            ..Self::waits(name)
        }
    }

    fn write(&self, bench: &TestBench) -> PathBuf {
        let at = bench.path().join(self.name);
        std::fs::create_dir_all(&at).expect("the folder is ours");
        let operation = json!({
            "spec": { "name": self.name, "kind": "query", "input": self.input, "uses": self.uses },
            "entry": "./main.js", "export": "run", "service": self.service,
            "tests": [{ "input": self.example, "expect": { "output": "done" } }],
        });
        std::fs::write(at.join("operation.json"), operation.to_string()).expect("room");
        std::fs::write(at.join("main.js"), self.source).expect("room");
        at
    }
}

/// Proposes it, and returns the id.
pub(super) fn propose(
    bench: &TestBench,
    at: &str,
    (name, author): (&str, &CliRunner),
    draft: &OperationDraft<'_>,
) -> String {
    let mut propose = author.command(&["ops", "propose", at, "--as", name]);
    propose.arg(draft.write(bench));
    let proposed = author.run(propose).json();
    proposed["id"].as_str().expect("an id").to_owned()
}

pub(super) fn promote(
    bench: &TestBench,
    at: &str,
    author: (&str, &CliRunner),
    rev: &CliRunner,
    draft: &OperationDraft<'_>,
) {
    let id = propose(bench, at, author, draft);
    let promoted = rev.run(rev.command(&["ops", "promote", at, &id, "--external"]));
    assert_eq!(promoted.json()["active"], true);
}

/// The known peers, and the settings of promotion.
pub(super) fn configuration(settings: &str, people: &[(&str, &CliRunner, &[&str])]) -> String {
    let people = people.iter().map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let people: String = people.collect();
    format!("[promotion]\nactivate = \"live\"\n{settings}{people}")
}

/// Calls both operations as often as it may, over as many connections as that needs.
struct CallAttack {
    _dialers: Vec<EndpointDialer>,
    calls: JoinSet<()>,
    ends: Arc<AtomicBool>,
    /// Attempts whose first call was refused. Accepted calls last longer than it takes to start all
    /// of them.
    refused: Arc<AtomicUsize>,
}

impl CallAttack {
    async fn begin(node: &HostNode, who: &CliRunner) -> Self {
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

/// Sessions of an identity.
async fn sessions_of(admin: &CallConnection, tenant: &str) -> usize {
    sessions(admin, |it| it["tenant"] == tenant).await
}

/// Calls into the session of a service before those of its callers: of its module, and of its `init`.
const BEGINNING_CALLS: u64 = 2;

/// Whether a session of `runtime/sessions` is of a service that runs a call of a caller. While a service begins, calls
/// run in it as well, and a caller that leaves then leaves no call.
pub(super) fn is_service_with_call(session: &Value) -> bool {
    let has_begun = session["calls_ended"].as_u64() >= Some(BEGINNING_CALLS);
    session["mode"] == "service" && session["state"] == "running" && has_begun
}

async fn sessions(admin: &CallConnection, are_meant: impl Fn(&Value) -> bool) -> usize {
    let listed = admin.call("runtime/sessions", &json!({})).await;
    let listed = listed.expect("it is answered");
    let sessions = listed.value()["sessions"].as_array();
    let sessions = sessions.expect("a list").iter();
    sessions.filter(|it| are_meant(it)).count()
}

/// Promotes both operations of ada.
fn promote_all(bench: &TestBench, node: &HostNode, ada: &CliRunner, rev: &CliRunner) {
    for name in NAMES {
        promote(
            bench,
            node.target(),
            ("ada", ada),
            rev,
            &OperationDraft::waits(name),
        );
    }
}

/// The metrics of a node with connected peers, an author's sessions, and running promoted
/// operations. None of their labels contains a name.
async fn names_no_identity(admin: &CallConnection) {
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
async fn endless_calls_of_one_caller_leave_the_author_and_others_their_quota() {
    let bench = TestBench::new();
    let [ada, rev, eve, bob] = ["ada", "rev", "eve", "bob"].map(|name| bench.user(name));
    let calls = NAMES.map(|name| format!("call:js:{name}"));
    let calls = calls.each_ref().map(String::as_str);
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["runtime:debug", "ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &calls),
            ("bob", &bob, &calls),
        ],
    );
    let node = bench.host_with(&config);
    promote_all(&bench, &node, &ada, &rev);

    let (_admins, admin) = dial(&node, bench.admin()).await;
    let attack = CallAttack::begin(&node, &eve).await;
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
    names_no_identity(&admin).await;

    // Another caller, and the author's own scripts, which have a share besides other callers'
    // sessions.
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

/// Sends a batch over HTTP, and does not wait.
fn post_batch(node: &HostNode, token: &str, calls: &Value) -> Child {
    let (_, address) = node.target().rsplit_once('@').expect("key and address");
    let batch = json!({ "calls": calls, "mode": "parallel" });
    let (batch, url) = (batch.to_string(), format!("https://{address}/batch"));
    let bearer = format!("Authorization: Bearer {token}");
    let fixed = ["--silent", "--insecure", "--max-time", "300", "--url", &url];
    let asks = ["--header", &bearer, "--json", &batch];
    Curl::new(&[&fixed[..], &asks].concat()).start(Stdio::null())
}

/// All calls of a batch have one ID. The first is of an author's operation, and the other calls are
/// not part of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_batch_are_not_taken_for_one_another() {
    let bench = TestBench::new();
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.user(name));
    let calls = NAMES.map(|name| format!("call:js:{name}"));
    let calls = calls.each_ref().map(String::as_str);
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("bob", &bob, &calls),
        ],
    );
    let node = bench.host_with(&config);
    promote_all(&bench, &node, &ada, &rev);
    let eve = json!({ "scopes": ["runtime:debug", calls[0], calls[1]] });
    let eve = node.call("token/make", &eve);
    let eve = eve["token"].as_str().expect("a token");
    // As many at once as a script may call, after the first call of the batch runs.
    let source = format!(
        "await new Promise((done) => setTimeout(done, 1000));
         const calls = Array.from({{ length: 64 }}, (_, n) =>
             ops.call(n % 2 ? 'js/first' : 'js/second', {LASTS_MS}));
         await Promise.allSettled(calls);
         export default calls.length;"
    );
    let script =
        |id| json!({ "id": id, "operation": "/runtime/eval", "input": { "source": source } });
    let first = json!({ "id": "first", "operation": "/js/first", "input": LASTS_MS });
    let batch = json!([first, script("a"), script("b"), script("c")]);
    let mut curl = post_batch(&node, eve, &batch);

    let (_admins, admin) = dial(&node, bench.admin()).await;
    let settled = async {
        let (mut before, mut same) = (0, 0);
        while before < CALLER_MAX || same < 10 {
            tokio::time::sleep(AGAIN).await;
            let now = sessions_of(&admin, "ada").await;
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        before
    };
    let settled = tokio::time::timeout(deadline(Duration::from_secs(60)), settled).await;
    let taken = settled.expect("the attacker has what it may have");
    assert!(taken < 2 * CALLER_MAX, "{taken} sessions");
    let (_bobs, bob) = dial(&node, &bob).await;
    for name in NAMES {
        let answer = bob.call(&format!("js/{name}"), &json!(0)).await;
        assert_eq!(answer.expect("there is room").value(), &json!("done"));
    }
    curl.kill().expect("it is our child");
    curl.wait().expect("it is our child");
}

/// A machine with this much memory has 32 MiB for requests, and 16 MiB for those of one identity.
const SMALL: u64 = 256 << 20;
/// Calls with a list of short values, whose trees have 1.6 MB each: together twice the limit.
const TREES: usize = 20;

/// They are much longer than their frames and the operation's input.
#[tokio::test(flavor = "multi_thread")]
async fn trees_of_inputs_count_for_who_sent_them() {
    let bench = TestBench::new();
    let [ada, rev, eve, bob] = ["ada", "rev", "eve", "bob"].map(|name| bench.user(name));
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:tree"]),
            ("bob", &bob, &["call:js:tree"]),
        ],
    );
    if let Some(node) = bench.host_on(SMALL, &config) {
        let draft = OperationDraft {
            input: json!({ "type": "array" }),
            example: json!([0]),
            source: "export const run = (list) => list[0]
                ? new Promise((done) => setTimeout(() => done('done'), list[0])) : 'done';",
            ..OperationDraft::waits("tree")
        };
        promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
        let list = |ms: u64| {
            let mut list = vec![0; 11_000];
            list[0] = ms;
            json!(list)
        };
        let (_eves, eve) = dial(&node, &eve).await;
        let mut calls = JoinSet::new();
        for _ in 0..TREES {
            let (eve, list) = (eve.clone(), list(LASTS_MS));
            calls.spawn(async move { eve.call("js/tree", &list).await });
        }
        // Calls without room are refused at once, and calls with room continue.
        for _ in 0..TREES / 2 {
            let ended = tokio::time::timeout(deadline(Duration::from_secs(60)), calls.join_next());
            let ended = ended.await.expect("half of them are refused");
            let refused = ended.expect("some run").expect("no panic");
            let refused = refused.expect_err("there is no room");
            assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
            // Other limits are `OVERLOADED` as well: those of calls, sessions and workers.
            let why = "bytes of requests of one identity";
            assert!(refused.message.contains(why), "{refused}");
        }
        let (_bobs, bob) = dial(&node, &bob).await;
        let answer = bob.call("js/tree", &list(0)).await;
        assert_eq!(answer.expect("there is room").value(), &json!("done"));
        // A few more may be refused. The rest has room, and continues.
        while calls.try_join_next().is_some() {}
        assert!(calls.len() >= TREES / 4, "{} go on", calls.len());
        calls.abort_all();
    }
}

/// Operations of one author, each with other rights, so that no two share a worker. One caller may have four of the
/// workers for the author's callers (docs/workers.md).
const PLACES: [&str; 6] = [
    "place-a", "place-b", "place-c", "place-d", "place-e", "place-f",
];
const PLACES_OF_CALLER: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn slow_calls_of_operations_with_other_rights_leave_other_callers_workers() {
    leave_other_callers_workers(OperationDraft::waits).await;
}

/// The session of a service outlives its calls, and a call in it goes on if its caller leaves.
#[tokio::test(flavor = "multi_thread")]
async fn slow_calls_of_services_leave_other_callers_workers() {
    leave_other_callers_workers(OperationDraft::waits_in_a_service).await;
}

/// How often the attacker tries again once it has left its calls.
const TRIES: usize = 10;

async fn leave_other_callers_workers(operation: fn(&'static str) -> OperationDraft<'static>) {
    let bench = TestBench::new();
    let [ada, rev, eve, bob] = ["ada", "rev", "eve", "bob"].map(|name| bench.user(name));
    let calls = PLACES.map(|name| format!("call:js:{name}"));
    let calls = calls.each_ref().map(String::as_str);
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &calls),
            ("bob", &bob, &calls),
        ],
    );
    let node = bench.host_with(&config);
    for name in PLACES {
        let other = format!("js/other-{name}");
        let draft = OperationDraft {
            uses: &[&other],
            ..operation(name)
        };
        promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    }
    let is_service = operation(PLACES[0]).service;
    let (_eves, eve) = dial(&node, &eve).await;
    let mut calls = JoinSet::new();
    for name in PLACES {
        let eve = eve.clone();
        let call = async move { eve.call(&format!("js/{name}"), &json!(LASTS_MS)).await };
        calls.spawn(async move { (name, call.await) });
    }
    let mut free = Vec::new();
    for _ in PLACES_OF_CALLER..PLACES.len() {
        let ended = tokio::time::timeout(deadline(Duration::from_secs(60)), calls.join_next());
        let ended = ended.await.expect("the rest is refused");
        let (name, refused) = ended.expect("some run").expect("no panic");
        let refused = refused.expect_err("she has her share");
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
        free.push(name);
    }
    let (_bobs, bob) = dial(&node, &bob).await;
    // A service answers one call after the other.
    let others: &[_] = if is_service { &free } else { &PLACES };
    for name in others {
        let answer = bob.call(&format!("js/{name}"), &json!(0)).await;
        assert_eq!(answer.expect("there is room").value(), &json!("done"));
    }
    assert_eq!(calls.len(), PLACES_OF_CALLER, "they go on");
    if !is_service {
        return;
    }
    let (_admins, admin) = dial(&node, bench.admin()).await;
    let run = async {
        while sessions(&admin, is_service_with_call).await < PLACES_OF_CALLER {
            tokio::time::sleep(AGAIN).await;
        }
    };
    let run = tokio::time::timeout(deadline(Duration::from_secs(60)), run);
    run.await.expect("the services run her calls");
    calls.shutdown().await;
    // She has left. Her calls run to their ends, and count for her until then.
    for _ in 0..TRIES {
        let again = eve.call(&format!("js/{}", free[0]), &json!(0)).await;
        let refused = again.expect_err("her calls still run");
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Values that each need most of the permitted steps of a check: more of them than may wait for
/// their turn.
const CHECKED: usize = 200;
/// Items of each, and how many an item is compared with.
const ITEMS: usize = 9_000;
const COMPARED: u32 = 100;

/// One caller has as many large values checked as possible, and another's value is still checked.
#[tokio::test(flavor = "multi_thread")]
async fn one_caller_does_not_take_all_checks() {
    let bench = TestBench::new();
    let [ada, rev, eve, bob] = ["ada", "rev", "eve", "bob"].map(|name| bench.user(name));
    let config = configuration(
        "",
        &[
            ("ada", &ada, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:picky"]),
            ("bob", &bob, &["call:js:picky"]),
        ],
    );
    let node = bench.host_with(&config);
    let numbers: Vec<_> = (0..COMPARED).map(|n| f64::from(n) + 0.5).collect();
    let last = f64::from(COMPARED) - 0.5;
    let draft = OperationDraft {
        input: json!({ "type": "array", "items": { "enum": numbers } }),
        example: json!([last]),
        source: "export const run = () => 'done';",
        ..OperationDraft::waits("picky")
    };
    promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    let fits = vec![last; ITEMS];
    let mut wrong = fits.clone();
    wrong.push(7.0);
    let (_eves, eve) = dial(&node, &eve).await;
    let (_bobs, bob) = dial(&node, &bob).await;
    let (fits, wrong) = (json!(fits), Arc::new(json!(wrong)));
    let mut checks = JoinSet::new();
    for _ in 0..CHECKED {
        let (eve, wrong) = (eve.clone(), Arc::clone(&wrong));
        checks.spawn(async move { eve.call("js/picky", &wrong).await });
    }
    let (mut checked, mut refused) = (0, 0);
    let mut answer = None;
    while let Some(ended) = checks.join_next().await {
        match ended.expect("no panic").expect_err("it does not fit").code {
            ErrorCode::InvalidInput => checked += 1,
            ErrorCode::Overloaded => refused += 1,
            code => panic!("{code:?}"),
        }
        // From now on, the maximum of its values wait.
        if refused > 0 && answer.is_none() {
            let four = (0..4).map(|_| bob.call("js/picky", &fits));
            answer = Some(join_all(four).await);
        }
    }
    for answer in answer.expect("more are refused than wait") {
        assert_eq!(answer.expect("his have a turn").value(), &json!("done"));
    }
    assert!(checked > 0, "{refused} of {CHECKED} are refused");
}

/// Calls of a new version: more of them fail than may, if they count against it.
const FAILING: usize = 30;

/// Ada's operation calls bob's, which has no room left for a caller of both.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_takes_all_room_has_no_version_taken_back() {
    let bench = TestBench::new();
    let [ada, bob, rev, eve] = ["ada", "bob", "rev", "eve"].map(|name| bench.user(name));
    let config = configuration(
        "rollback_on_errors = true\n",
        &[
            ("ada", &ada, &["ops:propose", "call:js:second"]),
            ("bob", &bob, &["ops:propose"]),
            ("rev", &rev, &["ops:promote"]),
            ("eve", &eve, &["call:js:first", "call:js:second"]),
        ],
    );
    let node = bench.host_with(&config);
    promote(
        &bench,
        node.target(),
        ("bob", &bob),
        &rev,
        &OperationDraft::waits("second"),
    );
    for version in [1, 2] {
        let source = format!(
            "// {version}
             export const run = async (n) => {{ if (n) await ops.call('js/second', 0); return 'done'; }};"
        );
        let draft = OperationDraft {
            uses: &["js/second"],
            source: &source,
            ..OperationDraft::waits("first")
        };
        promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    }
    let (_admins, admin) = dial(&node, bench.admin()).await;
    let (_eves, eve) = dial(&node, &eve).await;
    let mut held = JoinSet::new();
    for _ in 0..CALLER_MAX {
        let eve = eve.clone();
        held.spawn(async move { eve.call("js/second", &json!(LASTS_MS)).await });
    }
    let full = async {
        while sessions_of(&admin, "bob").await < CALLER_MAX {
            tokio::time::sleep(AGAIN).await;
        }
    };
    let waited = tokio::time::timeout(deadline(Duration::from_secs(60)), full).await;
    waited.expect("the attacker has what it may have");
    for _ in 0..FAILING {
        let refused = eve.call("js/first", &json!(1)).await;
        let refused = refused.expect_err("there is no room below it");
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
        assert!(refused.retryable, "{refused}");
        let details = refused.details.expect("why");
        assert_eq!(details["code"], "OVERLOADED", "{details}");
    }
    held.abort_all();
    let told = admin
        .call("ops/proposals", &json!({ "path": "js/first" }))
        .await;
    let told = told.expect("it is answered");
    let told = told.value();
    let newest = &told["versions"][0];
    assert_eq!(
        (&newest["version"], &newest["errors"]),
        (&json!(2), &json!(0)),
        "{told}"
    );
    assert_eq!(told["active"], 2, "{told}");
}
