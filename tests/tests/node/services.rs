//! A promoted service: its state outlives calls and changes of its code, but not its session.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alknet_test_support::deadline;
use alknet_tests::{CliRunner, HostNode, TestBench, eventually, serve};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const PATH: &str = "js/counter";

/// The folder of a version that counts in steps of `step`.
fn draft(at: &Path, step: u64) -> PathBuf {
    draft_of(at, "counter", true, step)
}

/// The same, of another operation, which may be no service.
fn draft_of(at: &Path, name: &str, is_service: bool, step: u64) -> PathBuf {
    fs::create_dir_all(at).expect("the folder is ours");
    let operation = json!({
        "spec": {
            "name": name, "kind": "mutation", "description": "Counts calls.",
            "input": { "type": "object" }, "output": { "type": "array" },
            "uses": ["compute/info"],
        },
        "entry": "./main.js", "export": "count", "service": is_service,
        "tests": [{ "input": {}, "expect": { "output": [step, step] } }],
    });
    let source = format!(
        "let n = 0;
export const init = (prev) => {{ n = prev?.n ?? 0; }};
export const dispose = () => {{
  console.warn(`leaves at ${{n}}`);
  return {{ n }};
}};
const text = 'a'.repeat(1 << 24), sought = 'a'.repeat(1 << 15) + 'b';
export const count = async ({{ calls = 0, spins = 0, waits = 0, seeks = false }}) => {{
  if (seeks) await ops.call('compute/info', {{}});
  while (seeks) text.indexOf(sought);
  if (waits > 0) await new Promise((resolve) => setTimeout(resolve, waits));
  if (spins > 0) {{
    await ops.call('compute/info', {{}});
    const list = Array.from({{ length: 20000 }}, (_, i) => String((i * 7919) % 20011));
    for (const end = Date.now() + spins; Date.now() < end;) list.slice().sort();
    return [n, n];
  }}
  for (let called = 0; called < calls; called++) await ops.call('compute/info', {{}});
  return [{step}, n += {step}];
}};
"
    );
    fs::write(at.join("operation.json"), operation.to_string()).expect("room");
    fs::write(at.join("main.js"), source).expect("room");
    at.to_owned()
}

fn verb(who: &CliRunner, words: &[&str], more: &[&Path]) -> Value {
    let mut command: Command = who.command(words);
    command.args(more);
    who.run(command).json()
}

fn configuration(people: &[(&str, &CliRunner, &[&str])]) -> String {
    let peers = people.iter().map(|(name, who, scopes)| {
        let key = who.identity();
        format!("[[peers]]\npeer_id = \"{name}\"\nkeys = [\"{key}\"]\nscopes = {scopes:?}\n")
    });
    let peers: String = peers.collect();
    format!("[promotion]\nactivate = \"live\"\n{peers}")
}

/// Proposes a version, promotes it, and lets others call it.
fn promote(bench: &TestBench, at: &str, people: [&CliRunner; 2], step: u64) {
    let folder = draft(&bench.path().join(format!("by-{step}")), step);
    promote_draft(at, people, &folder);
}

fn promote_draft(at: &str, [ada, rev]: [&CliRunner; 2], folder: &Path) {
    let proposed = verb(ada, &["ops", "propose", at, "--as", "ada"], &[folder]);
    let id = proposed["id"].as_str().expect("an id");
    verb(rev, &["ops", "promote", at, id, "--external"], &[]);
}

/// The peers who propose, promote and call, and their entries in the node's configuration.
fn people(bench: &TestBench) -> ([CliRunner; 3], String) {
    let [ada, rev, bob] = ["ada", "rev", "bob"].map(|name| bench.user(name));
    let known = configuration(&[
        ("ada", &ada, &["compute:read", "ops:propose"]),
        ("rev", &rev, &["ops:promote"]),
        ("bob", &bob, &["call:js:counter"]),
    ]);
    ([ada, rev, bob], known)
}

/// The only running service, after the one that it replaced has ended.
fn running(node: &HostNode) -> Value {
    eventually("one service runs", || {
        let listed = node.call("runtime/sessions", &json!({}));
        let sessions = listed["sessions"].as_array().expect("a list").iter();
        let mut services = sessions.filter(|it| it["mode"] == "service");
        let one = services.next().cloned();
        one.filter(|_| services.next().is_none())
    })
}

#[test]
fn a_service_keeps_what_it_knows_through_a_change_of_its_code() {
    let bench = TestBench::new();
    let ([ada, rev, bob], known) = people(&bench);
    let node = bench.host_with(&known);
    let at = node.target();
    let promote = |step| promote(&bench, at, [&ada, &rev], step);
    let count = || bob.call(at, PATH, &json!({}), &[]).json();
    promote(1);
    assert_eq!(count(), json!([1, 1]));
    assert_eq!(count(), json!([1, 2]));
    let first = running(&node);
    assert_eq!(
        (&first["tenant"], &first["state"]),
        (&json!("ada"), &json!("idle"))
    );
    // The next version continues where this one stopped, and so does this one again.
    promote(10);
    assert_eq!(count(), json!([10, 12]));
    let second = running(&node);
    assert_ne!(first["session"], second["session"]);
    let back = ["ops", "rollback", at, PATH];
    verb(&rev, &back, &[]);
    assert_eq!(count(), json!([1, 13]));
    // A caller that ends its session also ends its state.
    let kill = json!({ "session": running(&node)["session"] });
    assert_eq!(node.call("runtime/kill", &kill), json!({ "killed": true }));
    assert_eq!(count(), json!([1, 1]));
    // After its removal it ends.
    verb(&rev, &back, &[]);
    assert_eq!(bob.call(at, PATH, &json!({}), &[]).code(), "NOT_FOUND");
}

/// The number of calls in one session is limited, but a service does not end.
#[test]
fn after_a_thousand_calls_a_service_goes_on_in_a_fresh_session() {
    let bench = TestBench::new();
    let ([ada, rev, bob], known) = people(&bench);
    let node = bench.host_with(&known);
    promote(&bench, node.target(), [&ada, &rev], 1);
    let count = |calls: u64| {
        let input = json!({ "calls": calls });
        bob.call(node.target(), PATH, &input, &[]).json()
    };
    assert_eq!(count(500), json!([1, 1]));
    assert_eq!(count(499), json!([1, 2]));
    let first = running(&node);
    assert_eq!(first["calls_out"]["compute/info"], 999, "{first:#}");
    // Still in the same session, which has made a thousand calls by then.
    assert_eq!(count(1), json!([1, 3]));
    assert_eq!(running(&node)["session"], first["session"]);
    assert_eq!(count(1), json!([1, 4]));
    let second = running(&node);
    assert_ne!(second["session"], first["session"]);
    assert_eq!(second["calls_out"]["compute/info"], 1, "{second:#}");
}

/// Rounds of the attack. Three lost workers within a minute would disable the operation.
const ATTACK_ROUNDS: u64 = 6;
/// How long the attacker's call computes, ms: it sorts, which takes time and hardly any fuel. The watchdog would stop a
/// script 5 ms after the abort.
const SPIN_MS: u64 = 1000;

/// A caller gives up calls in which the script computes. The session is that of all callers.
#[test]
fn callers_that_leave_neither_end_a_service_nor_disable_it() {
    let bench = TestBench::new();
    let ([ada, rev, bob], known) = people(&bench);
    let node = bench.host_with(&known);
    promote(&bench, node.target(), [&ada, &rev], 1);
    let count = || bob.call(node.target(), PATH, &json!({}), &[]).json();
    assert_eq!([count(), count()], [json!([1, 1]), json!([1, 2])]);
    let first = running(&node);
    for round in 1..=ATTACK_ROUNDS {
        let mut command = bob.command(&["call", node.target(), PATH]);
        command.arg(json!({ "spins": SPIN_MS }).to_string());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut calling = command.spawn().expect("the command starts");
        // The script calls an operation, and computes from then on.
        eventually("the script computes", || {
            let session = running(&node);
            (session["calls_out"]["compute/info"] == round).then_some(())
        });
        kill(Pid::from_raw(calling.id().cast_signed()), Signal::SIGINT).expect("it runs");
        calling.wait().expect("it is our child");
        assert_eq!(count(), json!([1, 2 + round]), "round {round}");
    }
    assert_eq!(running(&node)["session"], first["session"]);
    // The first calls of a version decide whether the node takes it back, and none of these failed.
    let versions = json!({ "path": PATH });
    let told = rev
        .call(node.target(), "ops/proposals", &versions, &[])
        .json();
    assert_eq!(told["versions"][0]["errors"], 0, "{told:#}");
}

/// A node with a promoted counter of ada and rev, which bob may call, and eve with this scope.
fn counter_of_bob(bench: &TestBench, of_eve: &str) -> (HostNode, [CliRunner; 4]) {
    let users = ["ada", "rev", "bob", "eve"].map(|name| bench.user(name));
    let [ada, rev, bob, eve] = &users;
    let known = configuration(&[
        ("ada", ada, &["compute:read", "ops:propose"]),
        ("rev", rev, &["ops:promote"]),
        ("bob", bob, &["call:js:counter"]),
        ("eve", eve, &[of_eve]),
    ]);
    let node = bench.host_with(&known);
    promote(bench, node.target(), [ada, rev], 1);
    (node, users)
}

/// A call of another operation of the author, with the same rights, is given up in native code, and the node kills its
/// worker. The service has another worker.
#[test]
fn a_call_given_up_in_another_operation_takes_no_state_from_a_service() {
    let bench = TestBench::new();
    let (node, [ada, rev, bob, eve]) = counter_of_bob(&bench, "call:js:other");
    let at = node.target();
    let other = draft_of(&bench.path().join("other"), "other", false, 1);
    promote_draft(at, [&ada, &rev], &other);
    let count = || bob.call(at, PATH, &json!({}), &[]).json();
    assert_eq!([count(), count()], [json!([1, 1]), json!([1, 2])]);
    let input = json!({ "seeks": true }).to_string();
    let mut command = eve.command(&["call", at, "js/other"]);
    command
        .arg(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut calling = command.spawn().expect("the command starts");
    let others = || {
        let listed = node.call("runtime/sessions", &json!({}));
        let sessions = listed["sessions"].as_array().expect("a list").clone();
        let others = sessions.into_iter().filter(|it| it["mode"] != "service");
        others.collect::<Vec<_>>()
    };
    eventually("the script computes", || {
        let others = others();
        let mut computing = others.iter();
        computing
            .find(|it| it["calls_out"]["compute/info"] == 1)
            .map(drop)
    });
    kill(Pid::from_raw(calling.id().cast_signed()), Signal::SIGINT).expect("it runs");
    calling.wait().expect("it is our child");
    // The search ends neither by itself nor by the abort, so the node kills the worker.
    eventually("the session ended", || others().is_empty().then_some(()));
    assert_eq!(count(), json!([1, 3]));
}

/// Calls of one caller that wait in the service, one after the other.
const CALLS_OF_ONE: usize = 10;
/// How long each of them waits at rest, ms: longer than from the first one's start until all of them are there.
const WAIT_MS: u64 = 1500;
/// How long on a busy machine at most, ms. A call has thirty seconds, and waits for two others.
const WAIT_MS_MAX: u64 = 10_000;

/// Each caller has one call in the service's queue: the calls of another caller wait for one of them, not for all.
#[test]
fn one_callers_waiting_calls_leave_others_their_turn() {
    let bench = TestBench::new();
    let (node, [_, _, bob, eve]) = counter_of_bob(&bench, "call:js:counter");
    let at = node.target();
    let count = || bob.call(at, PATH, &json!({}), &[]).json();
    assert_eq!(count(), json!([1, 1]));
    // Requests that the node has received and not answered.
    let running = || {
        let told = node.call("node/metrics", &Value::Null);
        let value = |name: &str| told["values"][name].as_f64().expect("a number");
        value("alknet_call_requests_total") - value("alknet_call_seconds_count")
    };
    let before = running();
    let waits = deadline(Duration::from_millis(WAIT_MS)).as_millis();
    let waits = u64::try_from(waits).map_or(WAIT_MS_MAX, |waits| waits.min(WAIT_MS_MAX));
    let input = json!({ "waits": waits }).to_string();
    let mut calling: Vec<_> = std::iter::repeat_with(|| {
        let mut command = eve.command(&["call", at, PATH, &input]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the command starts")
    })
    .take(CALLS_OF_ONE)
    .collect();
    let all = before + CALLS_OF_ONE as f64;
    eventually("all of them wait", || (running() >= all).then_some(()));
    let counted = count();
    // The one that ran, and one that came next before the node had the call.
    let at_most = 4;
    assert!(counted[1].as_u64() <= Some(at_most), "{counted}");
    for child in &mut calling {
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
    }
}

/// A node that the test ends, and a file with its log.
struct ServiceNode {
    child: Child,
    target: String,
    log: PathBuf,
}

impl ServiceNode {
    fn start(bench: &TestBench, known: &str) -> Self {
        let [file, log] = ["node.toml", "log"].map(|name| bench.path().join(name));
        fs::write(&file, known).expect("the folder is ours");
        let host = CliRunner::new(bench.path().join("host"));
        let mut command = host.command(&["serve", "--port", "0", "--listen", "127.0.0.1"]);
        command.args(["--admin", &bench.admin().identity(), "--config"]);
        command.arg(&file);
        command.stderr(File::create(&log).expect("the folder is ours"));
        let (child, said) = serve(command);
        let target = said["target"].as_str().unwrap_or_default().to_owned();
        Self { child, target, log }
    }

    /// Ends it as its owner would, and reads its log.
    fn end(mut self) -> String {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it runs");
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{status}");
        fs::read_to_string(&self.log).expect("it was written")
    }
}

impl Drop for ServiceNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_service_leaves_when_its_node_ends() {
    let bench = TestBench::new();
    let ([ada, rev, bob], known) = people(&bench);
    let node = ServiceNode::start(&bench, &known);
    promote(&bench, &node.target, [&ada, &rev], 1);
    let count = || bob.call(&node.target, PATH, &json!({}), &[]).json();
    assert_eq!([count(), count()], [json!([1, 1]), json!([1, 2])]);
    let log = node.end();
    assert!(log.contains("script: leaves at 2"), "{log}");
}
