//! Nodes and laptops join a hub with only the binary: invitations, workers that dial the hub, laptops, and calls
//! through the hub.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::Duration;

use alknet_hub::REPEAT_TIME_S;
use alknet_test_support::is_campaign;
use alknet_tests::{CliOutput, CliRunner, HUB, TestBench, eventually, health, serve};
use serde_json::{Value, json};

/// The hub's roles besides the role of its workers.
const CALLERS: &str = r#"
[[hub.role]]
name = "user"
scopes = ["node:read", "peer:route:*"]

[[hub.role]]
name = "caller"
scopes = ["node:read", "hub:invoke:node"]

[[hub.role]]
name = "porter"
scopes = ["hub:invite", "hub:admin"]
"#;

/// Seconds after [`REPEAT_TIME_S`] when a removed worker was let in once.
const LATER_S: u64 = 61;

/// The configuration of a hub with all these roles.
pub(crate) fn hub_config() -> String {
    format!("{HUB}{CALLERS}")
}

/// A running `alknet serve` with a configuration file.
pub(crate) struct EnrolmentNode {
    child: Child,
    pub(crate) target: String,
}

impl EnrolmentNode {
    pub(crate) fn start(bench: &TestBench, name: &str, config: &str, port: &str) -> Self {
        let node = bench.user(name);
        let file: PathBuf = bench.path().join(format!("{name}.toml"));
        std::fs::write(&file, config).expect("the folder is ours");
        let mut command = node.command(&["serve", "--listen", "127.0.0.1", "--port", port]);
        command
            .arg("--config")
            .arg(&file)
            .args(["--admin", &bench.admin().identity()]);
        let (child, said) = serve(command);
        let target = said["target"].as_str().unwrap_or_default().to_owned();
        Self { child, target }
    }

    pub(crate) fn key(&self) -> &str {
        self.target.split_once('@').expect("a pinned target").0
    }

    fn port(&self) -> &str {
        self.target.rsplit_once(':').expect("a port").1
    }

    /// Sends the node SIGTERM, waits until the process has ended, and returns its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("the child was not waited for yet");
        self.child.wait().expect("it is our child").code()
    }
}

impl Drop for EnrolmentNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(cli: &CliRunner, words: &[&str]) -> CliOutput {
    cli.run(cli.command(words))
}

/// The hub's administrator makes a join string.
pub(crate) fn invite(bench: &TestBench, hub: &EnrolmentNode, more: &[&str]) -> String {
    let words = [&["hub", "invite", &hub.target][..], more].concat();
    let answer = run(bench.admin(), &words).json();
    let join = answer["join"].as_str();
    join.unwrap_or_else(|| panic!("no join string: {answer}"))
        .to_owned()
}

fn hub_peers(bench: &TestBench, hub: &EnrolmentNode) -> Value {
    run(bench.admin(), &["hub", "peers", &hub.target]).json()
}

/// Waits until the peer with this name is in this state, and returns its row.
pub(crate) fn peer(bench: &TestBench, hub: &EnrolmentNode, name: &str, state: &str) -> Value {
    eventually(&format!("{name} {state}"), || {
        let answer = hub_peers(bench, hub);
        let rows = answer["peers"].as_array().cloned().unwrap_or_default();
        let wanted = |row: &Value| row["name"] == name && row["state"] == state;
        rows.into_iter().find(wanted)
    })
}

fn info(cli: &CliRunner, target: &str, more: &[&str]) -> CliOutput {
    cli.call(target, "node/info", &json!({}), more)
}

#[test]
fn a_worker_that_dialled_out_is_called_through_the_hub() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let join = invite(
        &bench,
        &hub,
        &["--role", "worker", "--label", "room=cellar"],
    );
    let config = format!("[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{join}\"\n");
    let worker = EnrolmentNode::start(&bench, "worker", &config, "0");
    let row = peer(&bench, &hub, "kitchen", "ready");
    let id = row["peer_id"].as_str().expect("an id").to_owned();
    assert!(id.starts_with('p') && id.len() == 27, "{row}");
    assert_eq!(
        row["labels"],
        json!({ "pool": "edge", "role": "worker", "room": "cellar" })
    );

    // The hub's administrator calls the worker by its name and by its id.
    for name in ["kitchen", &id] {
        let answer = info(bench.admin(), &hub.target, &["--peer", name]).json();
        assert_eq!(answer["identity"], worker.key(), "{name}");
    }
    // The hub passes on only the operations that the worker grants to it.
    let admin = bench.admin();
    let log = admin.call(&hub.target, "node/log", &json!({}), &["--peer", "kitchen"]);
    assert_eq!(log.code(), "NOT_FOUND", "{log:?}");

    // A laptop joins the hub, and calls the worker by its name.
    let laptop = bench.user("laptop");
    let join = invite(&bench, &hub, &["--role", "user"]);
    let words = ["enroll", &join, "--name", "ada", "--hub", "attic"];
    let joined = run(&laptop, &words).json();
    assert_eq!(
        (&joined["name"], &joined["hub"]),
        (&json!("ada"), &json!("attic"))
    );
    let answer = info(&laptop, "attic", &["--peer", "kitchen"]).json();
    assert_eq!(answer["identity"], worker.key());
    assert_eq!(info(&laptop, "attic", &[]).json()["identity"], hub.key());
    let unknown_peer = info(&laptop, "attic", &["--peer", "cellar"]);
    assert_eq!(unknown_peer.code(), "NOT_FOUND", "{unknown_peer:?}");
    assert!(
        unknown_peer.errors.contains("knows no peer"),
        "{unknown_peer:?}"
    );

    // The hub does not pass on a request of an unknown peer.
    let unknown_peer = info(
        &bench.user("unknown-peer"),
        &hub.target,
        &["--peer", "kitchen"],
    );
    assert_eq!(
        (unknown_peer.status, unknown_peer.code().as_str()),
        (4, "UNAUTHENTICATED")
    );

    // The hub no longer serves a removed peer, and the peer's old invitation does not admit it again.
    let removed = run(admin, &["hub", "remove", &hub.target, "kitchen"]).json();
    assert_eq!(removed["peer_id"], id.as_str());
    let gone = info(admin, &hub.target, &["--peer", &id]);
    assert_ne!(gone.status, 0, "{gone:?}");
    eventually("the end of its connections", || {
        let peers = run(admin, &["peers", &hub.target]).json();
        let rows = peers["peers"].as_array()?.clone();
        let row = rows.into_iter().find(|row| row["peer_id"] == id.as_str())?;
        (row["connections"] == json!([])).then_some(())
    });
    peer(&bench, &hub, &id, "removed");
    let gone = info(admin, &hub.target, &["--peer", &id]);
    assert_eq!(gone.code(), "NOT_FOUND", "{gone:?}");
    assert!(
        gone.errors.contains("an administrator removed it"),
        "{gone:?}"
    );

    // The node reports this to the worker's own administrators, and `/healthz` of the worker stays 200.
    eventually("the worker says that its hub put it out", || {
        let status = run(admin, &["status", &worker.target]);
        let info: Value = serde_json::from_str(&status.output).ok()?;
        let problems = info["problems"].as_array()?.clone();
        let found = problems.iter().find(|one| one["code"] == "hub-refuses")?;
        assert!(
            found["text"].as_str()?.contains("does not take this node"),
            "{found}"
        );
        Some(())
    });
    // A 503 at `/healthz` would make a monitor restart the worker, and a restart would not help.
    let well = health(&worker.target);
    assert_eq!((well.status, &*well.text()), (200, "ok\n"));
}

#[test]
fn a_client_that_can_only_name_an_operation_is_passed_on() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let mut workers = Vec::new();
    for name in ["kitchen", "cellar"] {
        let join = invite(&bench, &hub, &["--label", &format!("room={name}")]);
        let config = format!("[node]\nname = \"{name}\"\n[[join]]\ncode = \"{join}\"\n");
        workers.push(EnrolmentNode::start(&bench, name, &config, "0"));
        peer(&bench, &hub, name, "ready");
    }
    let [kitchen, cellar] = &workers[..] else {
        panic!("two were started");
    };
    let laptop = bench.user("laptop");
    let join = invite(&bench, &hub, &["--role", "caller"]);
    run(&laptop, &["enroll", &join, "--hub", "attic"]).json();
    let invoke = |who: &CliRunner, input: &Value| who.call(&hub.target, "hub/invoke", input, &[]);
    let info = json!({ "operation": "node/info" });
    let ask = |peer: &str, more: Value| {
        let mut input = info.clone();
        input["peer"] = json!(peer);
        if let (Some(input), Value::Object(more)) = (input.as_object_mut(), more) {
            input.extend(more);
        }
        invoke(&laptop, &input)
    };
    let of_room = |room: &str| json!({ "labels": { "pool": "edge", "room": room } });
    for (answer, worker) in [
        (ask("kitchen", json!({})), kitchen),
        (ask("any", of_room("kitchen")), kitchen),
        (ask("any", of_room("cellar")), cellar),
        (ask("cellar", json!({ "input": null })), cellar),
    ] {
        assert_eq!(answer.json()["identity"], worker.key());
    }
    let log = json!({ "operation": "node/log" });
    let config = json!({ "operation": "config/apply" });
    for (answer, code) in [
        (ask("attic", json!({})), "NOT_FOUND"),
        (ask("any", of_room("attic")), "NOT_FOUND"),
        // The worker does not grant these operations to the hub.
        (ask("kitchen", log.clone()), "NOT_FOUND"),
        (ask("kitchen", config), "FORBIDDEN"),
        (ask("kitchen", of_room("kitchen")), "INVALID_INPUT"),
        (
            ask("kitchen", json!({ "input": { "more": 1 } })),
            "INVALID_INPUT",
        ),
        (
            invoke(&bench.user("unknown-peer"), &info),
            "UNAUTHENTICATED",
        ),
    ] {
        assert_eq!(answer.code(), code, "{answer:?}");
    }
    let mut subscribed = log;
    subscribed["peer"] = json!("kitchen");
    let log = laptop.call(&hub.target, "hub/subscribe", &subscribed, &[]);
    assert_eq!(log.code(), "NOT_FOUND", "{log:?}");

    // The hub does not choose a worker that hangs. It chooses the worker again after the worker has answered.
    let pid = nix::unistd::Pid::from_raw(kitchen.child.id().cast_signed());
    let signal = |signal| nix::sys::signal::kill(pid, signal).expect("it runs");
    signal(nix::sys::signal::Signal::SIGSTOP);
    peer(&bench, &hub, "kitchen", "degraded");
    for _ in 0..3 {
        assert_eq!(ask("any", json!({})).json()["identity"], cellar.key());
    }
    assert_eq!(ask("any", of_room("kitchen")).code(), "UNAVAILABLE");
    signal(nix::sys::signal::Signal::SIGCONT);
    peer(&bench, &hub, "kitchen", "ready");
    assert_eq!(
        ask("any", of_room("kitchen")).json()["identity"],
        kitchen.key()
    );
}

#[test]
fn a_token_is_for_one_key_and_for_its_time() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let [one, two] = ["one", "two"].map(|name| bench.user(name));
    for carriage in ["quic", "tcp"] {
        let join = invite(&bench, &hub, &["--role", "user"]);
        let enroll = |cli: &CliRunner| run(cli, &["enroll", &join, "--carriage", carriage]);
        let first = enroll(&one).json();
        assert!(first["peer_id"].is_string(), "{first}");
        // The hub's first answer may have been lost, so the client may use the token again with the same key.
        assert_eq!(enroll(&one).json()["peer_id"], first["peer_id"]);
        let stolen = enroll(&two);
        assert_eq!(
            (stolen.status, stolen.code().as_str()),
            (4, "ENROLL_INVALID")
        );
        let mut wrong = join.clone();
        let last = wrong.pop().expect("characters");
        wrong.push(if last == 'A' { 'B' } else { 'A' });
        let damaged = run(&two, &["join", &wrong]);
        assert_eq!(
            (damaged.status, damaged.code().as_str()),
            (2, "JOIN_STRING")
        );
        assert!(damaged.errors.contains("damaged"), "{damaged:?}");
        assert!(!damaged.errors.contains(&wrong), "a secret is not repeated");
    }
    let short = invite(&bench, &hub, &["--role", "user", "--ttl", "1s"]);
    eventually("the end of the invitation", || {
        let open = hub_peers(&bench, &hub)["invitations"].clone();
        (open == json!([])).then_some(())
    });
    let late = run(&two, &["enroll", &short]);
    assert_eq!((late.status, late.code().as_str()), (4, "ENROLL_INVALID"));
    // A join string pins the key of its hub. Another hub at that address does not get the token.
    let other = EnrolmentNode::start(&bench, "other", &hub_config(), "0");
    let at = format!("127.0.0.1:{}", other.port());
    let astray = invite(&bench, &hub, &["--role", "user", "--address", &at]);
    let lost = run(&two, &["enroll", &astray]);
    assert_eq!(
        (lost.status, lost.code().as_str()),
        (3, "PIN_MISMATCH"),
        "{lost:?}"
    );
    let unknown = run(
        bench.admin(),
        &["hub", "invite", &hub.target, "--role", "king"],
    );
    assert_eq!(unknown.code(), "INVALID_INPUT", "{unknown:?}");
    // Only a caller with the scope may invite.
    let refused = run(&one, &["hub", "invite", &hub.target]);
    assert_eq!((refused.status, refused.code().as_str()), (4, "FORBIDDEN"));
}

/// The removed peer tries the join string that it used, a second join string, and a new key of its own. In a campaign it
/// tries them again once the string that it used counts as unused for its key.
#[test]
fn a_removed_peer_does_not_let_itself_in_again() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let count = ["--role", "user", "--count", "5"];
    let [came_by, unused] = [(); 2].map(|()| invite(&bench, &hub, &count));
    let [one, two] = ["one", "two"].map(|name| bench.user(name));
    let enroll = |cli: &CliRunner, join: &str| run(cli, &["enroll", join]);
    let id = enroll(&one, &came_by).json()["peer_id"].clone();
    let id = id.as_str().expect("an id");
    assert_eq!(info(&one, &hub.target, &[]).json()["identity"], hub.key());
    let removed = run(bench.admin(), &["hub", "remove", &hub.target, id]).json();
    assert_eq!(removed["closed"].as_array().map(Vec::len), Some(1));
    let log = run(bench.admin(), &["logs", &hub.target]).output;
    let record = log.lines().find(|line| line.contains("hub.remove"));
    assert!(
        record.is_some_and(|it| it.contains(" by=admin") && it.contains(id)),
        "{log}"
    );
    // The hub no longer knows the peer's key.
    let out = info(&one, &hub.target, &[]);
    assert_eq!(
        (out.status, out.code().as_str()),
        (4, "UNAUTHENTICATED"),
        "{out:?}"
    );
    let tries = || {
        for (cli, join) in [(&one, &came_by), (&two, &came_by), (&one, &unused)] {
            let refused = enroll(cli, join);
            assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
        }
    };
    tries();
    if is_campaign() {
        thread::sleep(Duration::from_secs(REPEAT_TIME_S + LATER_S));
        tries();
    }
    // The answer to the removal names the open invitation, by which another key could still enrol. The second
    // removal closes that invitation.
    let open = hub_peers(&bench, &hub)["invitations"].clone();
    assert_eq!(open.as_array().map(Vec::len), Some(1), "{open}");
    assert_eq!(removed["open"], open);
    let closes = ["hub", "remove", &hub.target, id, "--close-invitations"];
    let removed = run(bench.admin(), &closes).json();
    assert_eq!(removed["closed"], json!([open[0]["key_id"]]));
    assert_eq!(removed["open"], json!([]));
    let refused = enroll(&two, &unused);
    assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
    // An invitation made after the removal admits this key again.
    let newer = invite(&bench, &hub, &count);
    assert_eq!(enroll(&one, &newer).json()["peer_id"], id);
}

/// An administrator takes scopes from a peer, which stays let in. The peer tries the join string that it used, and a
/// second one.
#[test]
fn a_peer_gets_no_scope_back_by_an_older_invitation() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let count = ["--role", "user", "--count", "5"];
    let [came_by, unused] = [(); 2].map(|()| invite(&bench, &hub, &count));
    let one = bench.user("one");
    let enroll = |join: &str| run(&one, &["enroll", join]);
    let id = enroll(&came_by).json()["peer_id"].clone();
    let id = id.as_str().expect("an id");
    assert_eq!(info(&one, &hub.target, &[]).status, 0);
    let fewer = ["peer", "set", &hub.target, id, "--scope", "peer:list"];
    run(bench.admin(), &fewer).json();
    for join in [&came_by, &unused] {
        let refused = enroll(join);
        assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
        assert_eq!(info(&one, &hub.target, &[]).code(), "FORBIDDEN");
    }
    // A newer invitation gives the scopes back.
    let newer = invite(&bench, &hub, &count);
    assert_eq!(enroll(&newer).json()["peer_id"], id);
    assert_eq!(info(&one, &hub.target, &[]).status, 0);
}

/// The removed peer controls the hub's machine: it cuts the power right after the removal, and damages the log of
/// the hub's store.
#[test]
fn damage_to_the_log_of_the_store_brings_no_removed_peer_back() {
    let bench = TestBench::new();
    let start = |port: &str| EnrolmentNode::start(&bench, "hub", &hub_config(), port);
    let one = bench.user("one");
    let hub = start("0");
    let port = hub.port().to_owned();
    let join = invite(&bench, &hub, &["--role", "user", "--count", "5"]);
    let id = run(&one, &["enroll", &join]).json()["peer_id"].clone();
    let id = id.as_str().expect("an id");
    // The hub stops in order, so that afterwards its log contains only the removal.
    hub.stop();
    let hub = start(&port);
    assert_eq!(info(&one, &hub.target, &[]).status, 0, "it was let in");
    run(bench.admin(), &["hub", "remove", &hub.target, id]).json();
    // The test kills the hub.
    drop(hub);
    let log = bench.path().join("hub/identity/identity.db-wal");
    let bytes = std::fs::metadata(&log).map_or(0, |found| found.len());
    if bytes > 0 {
        let garbage = vec![0xa5; usize::try_from(bytes).expect("a small file")];
        std::fs::write(&log, garbage).expect("ours");
    }
    let hub = start(&port);
    assert_eq!(info(&one, &hub.target, &[]).code(), "UNAUTHENTICATED");
    let refused = run(&one, &["enroll", &join]);
    assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
}

/// A peer that may invite, or approve by hand, cannot give any peer, itself included, more rights than it has.
#[test]
fn an_invitation_gives_no_right_that_its_maker_lacks() {
    let bench = TestBench::new();
    let config = hub_config().replace("enabled = true", "enabled = true\nenroll = \"approve\"");
    let hub = EnrolmentNode::start(&bench, "hub", &config, "0");
    let [porter, other] = ["porter", "other"].map(|name| bench.user(name));
    let join = invite(&bench, &hub, &["--role", "porter"]);
    run(&porter, &["enroll", &join]).json();
    for (role, status) in [("worker", 0), ("porter", 0), ("user", 4), ("caller", 4)] {
        let answer = run(&porter, &["hub", "invite", &hub.target, "--role", role]);
        assert_eq!(answer.status, status, "{role}: {answer:?}");
    }
    let approve = [
        "hub",
        "approve",
        &hub.target,
        &other.identity(),
        "--role",
        "user",
    ];
    let refused = run(&porter, &approve);
    assert_eq!((refused.status, refused.code().as_str()), (4, "FORBIDDEN"));
}

/// A peer makes invitations for keys of its own before an administrator removes it or takes its rights.
#[test]
fn an_invitation_ends_with_who_made_it() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let [porter, one, two] = ["porter", "one", "two"].map(|name| bench.user(name));
    let join = invite(&bench, &hub, &["--role", "porter"]);
    let id = run(&porter, &["enroll", &join]).json()["peer_id"].clone();
    let invited = |role: &str| {
        let words = ["hub", "invite", &hub.target, "--role", role, "--count", "5"];
        let join = run(&porter, &words).json()["join"]
            .as_str()
            .map(str::to_owned);
        join.expect("a join string")
    };
    let [of_porter, of_worker] = ["porter", "worker"].map(invited);
    assert_eq!(run(&one, &["enroll", &of_worker]).status, 0);
    // The peer may no longer give another peer the role of porter, so the hub refuses its older invitation to that
    // role.
    let fewer = invite(&bench, &hub, &["--role", "user"]);
    assert_eq!(run(&porter, &["enroll", &fewer]).status, 0);
    let refused = run(&two, &["enroll", &of_porter]);
    assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
    let id = id.as_str().expect("an id");
    let removed = run(bench.admin(), &["hub", "remove", &hub.target, id]).json();
    assert_eq!(removed["peer_id"], id);
    for join in [&of_porter, &of_worker] {
        let refused = run(&two, &["enroll", join]);
        assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
    }
}

/// Two hubs pass a request to each other, and neither discloses the original caller (`disclose = "none"`).
#[test]
fn hubs_that_forward_to_each_other_stop() {
    const HOPS_MAX: usize = 4;
    let bench = TestBench::new();
    let ports = [(); 2].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound").port()
    });
    let names = ["one", "two"];
    // Each hub must know the other's key, which a node makes at its first start.
    let keys = names.map(|name| {
        let served = EnrolmentNode::start(&bench, name, "", "0");
        let key = served.key().to_owned();
        served.stop();
        key
    });
    let scopes = "[\"node:read\", \"hub:invoke:hub\", \"hub:invoke:node\"]";
    let (known, ports) = (
        format!("scopes = {scopes}\n"),
        ports.map(|port| port.to_string()),
    );
    let hub = "[hub]\nenabled = true\ndisclose = \"none\"\n";
    let join = format!(
        "{hub}[[join]]\nname = \"two\"\naddress = \"127.0.0.1:{}\"\nkey = \"{}\"\n{known}",
        ports[1], keys[1]
    );
    let peers = format!(
        "{hub}[[peers]]\npeer_id = \"one\"\nkeys = [\"{}\"]\n{known}",
        keys[0]
    );
    // The two hubs need only one connection for calls in both directions.
    let _two = EnrolmentNode::start(&bench, "two", &peers, &ports[1]);
    let one = EnrolmentNode::start(&bench, "one", &join, &ports[0]);
    // The first hub passes the request to the second, the second passes it back, and so on. The last hop calls
    // `node/info`.
    let passed_on = |times: usize| {
        let mut call = ("node/info", Value::Null);
        for n in (0..times).rev() {
            let (operation, input) = call;
            let peer = names[(n + 1) % 2];
            let input = json!({ "peer": peer, "operation": operation, "input": input });
            call = ("hub/invoke", input);
        }
        bench.admin().call(&one.target, call.0, &call.1, &[])
    };
    eventually("a call that is passed on", || {
        (passed_on(1).status == 0).then_some(())
    });
    for times in 1..=HOPS_MAX {
        let answer = passed_on(times);
        assert_eq!(answer.json()["identity"], keys[times % 2], "{times}");
    }
    let refused = passed_on(HOPS_MAX + 1);
    assert_eq!(refused.code(), "FORBIDDEN", "{refused:?}");
    assert!(refused.errors.contains("passed on 4 times"), "{refused:?}");
}

#[test]
fn a_worker_that_waits_is_let_in_by_its_fingerprint() {
    let bench = TestBench::new();
    let config = hub_config().replace("enabled = true", "enabled = true\nenroll = \"approve\"");
    let hub = EnrolmentNode::start(&bench, "hub", &config, "0");
    let config = format!(
        "[node]\nname = \"cellar\"\n[[join]]\naddress = \"127.0.0.1:{}\"\nkey = \"{}\"\n",
        hub.port(),
        hub.key()
    );
    let worker = EnrolmentNode::start(&bench, "worker", &config, "0");
    let waiting = eventually("a request that waits", || {
        let waiting = hub_peers(&bench, &hub)["waiting"].clone();
        waiting.as_array()?.first().cloned()
    });
    assert_eq!(
        (&waiting["key"], &waiting["name"]),
        (&json!(worker.key()), &json!("cellar"))
    );
    let words = waiting["fingerprint"].as_str().expect("words");
    assert_eq!(words.split('-').count(), 6, "{words}");
    let approve = ["hub", "approve", &hub.target, words, "--role", "worker"];
    assert_eq!(run(bench.admin(), &approve).json()["name"], "cellar");
    peer(&bench, &hub, "cellar", "ready");
    let label = [
        "hub",
        "label",
        &hub.target,
        "cellar",
        "floor=0",
        "--name",
        "vault",
    ];
    let labelled = run(bench.admin(), &label).json();
    assert_eq!(
        (&labelled["name"], &labelled["labels"]["floor"]),
        (&json!("vault"), &json!("0"))
    );
    let answer = info(bench.admin(), &hub.target, &["--peer", "vault"]).json();
    assert_eq!(answer["identity"], worker.key());
}

#[test]
fn a_worker_comes_back_when_its_hub_does() {
    let bench = TestBench::new();
    let worker_key = {
        // A node makes its key at its first start.
        let node = EnrolmentNode::start(&bench, "worker", "", "0");
        node.key().to_owned()
    };
    let known = format!("\n[[peers]]\npeer_id = \"kitchen\"\nkeys = [\"{worker_key}\"]\n");
    let config = hub_config() + &known;
    let hub = EnrolmentNode::start(&bench, "hub", &config, "0");
    let joined = format!(
        "[[join]]\naddress = \"127.0.0.1:{}\"\nkey = \"{}\"\n",
        hub.port(),
        hub.key()
    );
    let _worker = EnrolmentNode::start(&bench, "worker", &joined, "0");
    let reached = |hub: &EnrolmentNode| {
        eventually("a call through the hub", || {
            let answer = info(bench.admin(), &hub.target, &["--peer", "kitchen"]);
            (answer.status == 0).then(|| answer.json())
        })
    };
    assert_eq!(reached(&hub)["identity"], worker_key.as_str());
    let port = hub.port().to_owned();
    hub.stop();
    let hub = EnrolmentNode::start(&bench, "hub", &config, &port);
    assert_eq!(reached(&hub)["identity"], worker_key.as_str());
}
