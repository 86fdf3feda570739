//! A hub and a worker run on two booted machines. The worker joins by its configuration, the administrator calls the
//! worker through the hub, the test resets the hub, the worker changes its key, and the administrator removes the
//! worker. In between, a script on the hub calls the worker, and a client cancels such a call. The administrator
//! replaces the hub's configuration under load: the new documents remove a bystander and admit it again. The worker
//! also restarts under load.
//!
//! Each machine is on a network of its own, as behind NAT. The worker reaches the hub at the address of QEMU's
//! gateway, and only the worker's administrator reaches the worker.

use std::cell::{Cell, RefCell};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use alknet_call::{CallConnection, ErrorCode};
use alknet_core::{Carriage, CloseCode, CloseReason};
use alknet_endpoint::EndpointDialer;
use alknet_hub::REPEAT_TIME_S;
use alknet_qemu::VirtioDisk;
use alknet_test_support::{deadline, is_campaign, took};
use alknet_tests::{
    BootVariant, CliOutput, CliRunner, HUB, MachineNode, TestBench, TokenCallers, eventually,
    notes_of_tokens,
};
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Address by which a machine on QEMU's network reaches the host, and with it the forwarded ports of the other
/// machine.
const GATEWAY: &str = "10.0.2.2";
/// Size of a data disk in bytes. The file is sparse.
const DATA_BYTES: u64 = 1 << 30;

/// Name of the machine that joins the hub.
const WORKER: &str = "kitchen";

/// Scopes that the worker grants to its hub.
const GRANTED: &str = "scopes = [\"node:read\", \"runtime:debug\"]";

/// Pause between two queries for the peer's state: each query is a handshake with an emulated machine. The worker
/// detects the hub's reset only by 45 s of silence.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Number of calls under way at the same time while the administrator replaces the hub's configuration.
const AT_ONCE: usize = 8;

/// Pause between two requests of one client.
const PAUSE: Duration = Duration::from_millis(20);

/// Longest time for which the hub may still serve a client that the configuration no longer names, and the promised
/// time, which `cargo xtask soak times` checks.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(20);
const CUT_OFF_PROMISED: Duration = Duration::from_secs(1);

/// Seconds after [`REPEAT_TIME_S`] when a removed worker was let in once.
const LATER_S: u64 = 61;

fn document(bench: &TestBench, name: &str, config: &str) -> String {
    format!(
        "[node]\nname = \"{name}\"\nadmin_keys = [\"{}\"]\n{config}",
        bench.admin().identity()
    )
}

/// Boots a machine that has a data disk of its own.
fn boot(bench: &TestBench, name: &str, config: &str) -> MachineNode {
    let disk = VirtioDisk::file(bench.disk(name, DATA_BYTES)).data();
    let document = document(bench, name, config);
    // The worker changes its key, and a key derived from words cannot change. The hub needs no vault.
    let machine = bench
        .machine(BootVariant::MicrovmErofs)
        .config(document)
        .plain();
    let node = machine.data(Some(disk)).boot();
    boots_again(&node);
    node
}

/// Makes QEMU restart the machine at each reset from now on. Without this setting a reset ends a microvm.
fn boots_again(node: &MachineNode) {
    let set = node
        .vm()
        .qmp()
        .execute("set-action", json!({ "reboot": "reset" }));
    set.unwrap_or_else(|error| panic!("{error}"));
}

fn run(bench: &TestBench, words: &[&str]) -> CliOutput {
    let admin = bench.admin();
    admin.run(admin.command(words))
}

/// Makes a join string that admits five keys, for a hub at this address.
fn invite(bench: &TestBench, hub: &MachineNode, address: &str) -> String {
    let target = hub.target();
    let words = [
        "hub",
        "invite",
        &target,
        "--count",
        "5",
        "--address",
        address,
    ];
    let invited = run(bench, &words);
    let join = invited.json()["join"].as_str().map(str::to_owned);
    join.unwrap_or_else(|| panic!("no join string: {invited:?}"))
}

/// Waits until the hub's only peer is in this state, and returns the peer's row.
fn peer(bench: &TestBench, hub: &MachineNode, state: &str) -> Value {
    let mut last = Value::Null;
    eventually(&format!("a peer that is {state}"), || {
        let answer = run(bench, &["hub", "peers", &hub.target()]);
        // The hub may still be starting.
        last = serde_json::from_str(&answer.output).unwrap_or_default();
        let row = last["peers"][0].clone();
        let found = (row["state"] == state).then_some(row);
        if found.is_none() {
            thread::sleep(LOOK_AGAIN);
        }
        found
    })
}

/// Calls `node/info` of any worker that has the label of this one.
fn chosen_by_label(hub: &MachineNode) -> CliOutput {
    let input = json!({ "peer": "any", "labels": { "pool": "edge" }, "operation": "node/info" });
    hub.try_call("hub/invoke", &input, &[])
}

/// The hub has no connection of the removed worker, and calls fail for that reason.
fn says_that_the_worker_is_removed(hub: &MachineNode, id: &str) {
    let why = "an administrator removed it";
    eventually("a refusal that names the removal", || {
        let direct = hub.try_call("node/info", &Value::Null, &["--peer", id]);
        assert_ne!(direct.status, 0, "the hub calls it: {direct:?}");
        let is_removed = direct.code() == "NOT_FOUND" && direct.errors.contains(why);
        // The connection may still be ending.
        if !is_removed {
            thread::sleep(LOOK_AGAIN);
        }
        is_removed.then_some(())
    });
    let chosen = chosen_by_label(hub);
    assert_eq!(chosen.code(), "NOT_FOUND", "{chosen:?}");
}

/// The worker shows its own administrator that the hub refuses it.
fn says_that_its_hub_refuses_it(worker: &MachineNode) {
    eventually("the worker shows that its hub refuses it", || {
        let info = worker.info();
        let mut problems = info["problems"].as_array()?.iter();
        let found = problems.find(|one| one["code"] == "hub-refuses")?;
        let text = found["text"].as_str()?;
        assert!(text.contains("does not take this node"), "{found}");
        Some(())
    });
}

/// Returns the key of the worker that answers `node/info` through the hub, or `None` when a call fails.
fn through(hub: &MachineNode) -> Option<Value> {
    let direct = hub.try_call("node/info", &Value::Null, &["--peer", "kitchen"]);
    let chosen = chosen_by_label(hub);
    if direct.status != 0 || chosen.status != 0 {
        return None;
    }
    let (direct, chosen) = (direct.json(), chosen.json());
    assert_eq!(direct["identity"], chosen["identity"]);
    Some(direct["identity"].clone())
}

/// Waits until the worker with this key answers through the hub.
fn reached(hub: &MachineNode, key: &str) {
    eventually("a call through the hub", || {
        (through(hub)? == key).then_some(())
    });
}

/// Waits until exactly this many scripts run on the machine.
fn scripts_run(node: &MachineNode, count: usize) {
    eventually(&format!("{count} scripts that run"), || {
        let listed = node.call("runtime/sessions", &json!({}));
        let sessions = listed["sessions"].as_array().cloned().unwrap_or_default();
        let running = sessions.iter().filter(|it| it["state"] == "running");
        (running.count() == count).then_some(())
    });
}

/// A script on the hub calls operations of the worker. The script may call those that the worker grants to the hub.
fn a_script_of_the_hub_calls_the_worker(hub: &MachineNode, worker: &MachineNode, id: &str) {
    let source = format!(
        "const there = {{ peer: '{id}' }};
         const {{ identity }} = await ops.call('node/info', {{}}, there);
         const sum = await ops.call('runtime/eval', {{ source: 'export default 6 * 7' }}, there);
         let refused = 'nothing';
         try {{ await ops.call('node/reboot', null, there); }} catch (error) {{ refused = error.code; }}
         export default {{ identity, sum: sum.value, refused }}"
    );
    let ran = hub.call("runtime/eval", &json!({ "source": source }));
    let expected = json!({
        "identity": worker.identity(), "sum": 42, "refused": "NOT_FOUND",
    });
    assert_eq!(ran["value"], expected, "{ran}");
}

/// A client cancels its call to the hub, and the hub's call to the worker ends with it: the script on the worker
/// stops.
fn what_is_given_up_ends_on_the_third_machine(
    bench: &TestBench,
    hub: &MachineNode,
    worker: &MachineNode,
    id: &str,
) {
    let mut call = a_script_runs_on_both(bench, hub, worker, id);
    let pid = Pid::from_raw(call.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("it was not waited for yet");
    let ended = call.wait().expect("it is our child");
    assert!(!ended.success(), "{ended}");
    scripts_run(worker, 0);
    scripts_run(hub, 0);
}

/// Calls a script on the hub that waits for a script on the worker. The second script runs for as long as its caller
/// waits.
fn a_script_runs_on_both(
    bench: &TestBench,
    hub: &MachineNode,
    worker: &MachineNode,
    id: &str,
) -> Child {
    let limits = json!({ "wall_ms": 600_000 });
    let there = json!({
        "source": "await new Promise(() => setTimeout(() => {}, 1e6))", "limits": limits,
    });
    let here = format!(
        "export default await ops.call('runtime/eval', {there}, {{ peer: '{id}', timeoutMs: 500000 }})"
    );
    let input = json!({ "source": here, "limits": limits }).to_string();
    let mut call = bench.admin().command(&["call", "--timeout", "600"]);
    call.args([&hub.target(), "runtime/eval", &input]);
    let call = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let call = call.expect("the binary can be started");
    scripts_run(worker, 1);
    scripts_run(hub, 1);
    call
}

/// A client that some of the hub's configurations name. Nothing else in the test depends on it.
struct Bystander<'a> {
    hub: &'a MachineNode,
    user: CliRunner,
    /// The client's connections, while the hub knows the client.
    served: RefCell<Vec<(Carriage, EndpointDialer, CallConnection)>>,
}

impl<'a> Bystander<'a> {
    fn new(bench: &TestBench, hub: &'a MachineNode) -> Self {
        Self {
            hub,
            user: bench.user("monitor"),
            served: RefCell::default(),
        }
    }

    /// The part of a configuration that admits the client.
    fn entry(&self) -> String {
        format!(
            "[[peers]]\npeer_id = \"monitor\"\nkeys = [\"{}\"]\nscopes = [\"node:read\"]\n",
            self.user.identity()
        )
    }

    /// The client connects over both carriages, and the hub answers its calls.
    async fn is_served(&self) {
        for carriage in [Carriage::Quic, Carriage::Tcp] {
            let connected = self.hub.client_over(carriage, &self.user).await;
            let (dialer, client) = connected.expect("it serves");
            let answer = client.call("node/info", &Value::Null).await;
            answer.unwrap_or_else(|error| panic!("the bystander is let in: {error}"));
            self.served.borrow_mut().push((carriage, dialer, client));
        }
    }

    /// The hub closes the client's connections, and no longer knows the client's key. The configuration without the
    /// client was sent at `since`.
    async fn is_cut_off(&self, since: Instant) {
        let served = self.served.take();
        assert_eq!(served.len(), 2, "one for each carriage");
        for (carriage, _, client) in &served {
            let reason = timeout(deadline(CUT_OFF_WITHIN), client.closed()).await;
            let reason = reason.expect("the hub still serves the bystander");
            // Only a close over QUIC carries a code. Over TCP a connection whose stream is cut ends without
            // close_notify (RFC 8446 section 6.1), in a whole run once.
            let policy = u64::from(CloseCode::Policy.code());
            let is_revoked = match carriage {
                Carriage::Quic => {
                    matches!(&reason, CloseReason::Peer(Some(code), _) if *code == policy)
                }
                _ => matches!(&reason, CloseReason::Peer(None, _) | CloseReason::Lost(_)),
            };
            assert!(is_revoked, "{carriage:?}: {reason}");
        }
        took(
            "connections of a peer end on a machine whose configuration no longer names it",
            CUT_OFF_PROMISED,
            since.elapsed(),
        );
        let (_dialer, late) = self.hub.client_of(&self.user).await.expect("it serves");
        let refused = late.call("node/info", &Value::Null).await;
        let refused = refused.expect_err("an unknown peer reads nothing of the node");
        assert_eq!(refused.code, ErrorCode::Unauthenticated, "{refused}");
    }
}

/// The administrator replaces the hub's configuration repeatedly while the hub passes calls on to the worker. The
/// documents alternately admit and remove a bystander: the hub cuts it off and serves it again. The hub answers
/// every call to the worker.
fn no_call_is_lost_while_the_hub_is_configured(bench: &TestBench, hub: &MachineNode) {
    let input = json!({ "peer": "kitchen", "operation": "node/info" });
    let bystander = Bystander::new(bench, hub);
    let entry = bystander.entry();
    let documents = [
        ("debug", Some(&entry)),
        ("info", None),
        ("debug", Some(&entry)),
        ("info", None),
    ];
    let (answered, is_over) = (Cell::new(0), Cell::new(false));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (_dialer, client) = hub.client().await.expect("it serves");
        let (_other, admin) = hub.client().await.expect("it serves");
        let calling = async {
            while !is_over.get() {
                let calls = (0..AT_ONCE).map(|_| client.call("hub/invoke", &input));
                for answer in join_all(calls).await {
                    let so_far = answered.get();
                    answer.unwrap_or_else(|error| panic!("after {so_far}: {error}"));
                    answered.set(so_far + 1);
                }
            }
        };
        let applying = async {
            for (level, entry) in documents {
                let before = answered.get();
                let entry = entry.map_or("", String::as_str);
                let more = format!("{entry}[log]\nlevel = \"{level}\"\n");
                let input = json!({ "document": document(bench, "attic", HUB) + &more });
                let sent = Instant::now();
                let applied = admin.call("config/apply", &input).await;
                applied.unwrap_or_else(|error| panic!("{level}: {error}"));
                match entry {
                    "" => bystander.is_cut_off(sent).await,
                    _ => bystander.is_served().await,
                }
                // Calls were under way during the change. The test waits until the hub has answered more calls.
                while answered.get() < before + AT_ONCE {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            is_over.set(true);
        };
        tokio::join!(calling, applying);
    });
    let answered = answered.get();
    assert!(answered >= documents.len() * AT_ONCE, "{answered} calls");
}

/// Clients make tokens on the worker, and read facts about it through the hub, over both carriages. Keep the dialers
/// while the clients call.
async fn make_tokens(
    bench: &TestBench,
    hub: &MachineNode,
    worker: &MachineNode,
) -> (TokenCallers, Vec<EndpointDialer>) {
    let mut callers = TokenCallers::default();
    let mut dialers = Vec::new();
    for carriage in [Carriage::Quic, Carriage::Tcp] {
        for (node, name, peer) in [(worker, "direct", None), (hub, "hub", Some(WORKER))] {
            let connected = node.client_over(carriage, bench.admin()).await;
            let (dialer, client) = connected.expect("it serves");
            callers.start(&client, &format!("{name}-{carriage:?}"), peer);
            dialers.push(dialer);
        }
    }
    callers.are_answered().await;
    (callers, dialers)
}

/// A client asks the worker to restart while other clients make tokens there, and read facts about it through the hub,
/// over both carriages. The worker runs a longer call of the hub's, too. It answers what it has accepted, refuses the
/// rest, and after the restart has each token that it confirmed, and no other.
fn what_the_worker_accepted_is_answered_before_it_restarts(
    bench: &TestBench,
    hub: &MachineNode,
    worker: &mut MachineNode,
) {
    let mark = worker.vm().console().mark();
    let slow = "await new Promise((done) => setTimeout(done, 5000)); export default 6 * 7";
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (callers, _dialers) = runtime.block_on(make_tokens(bench, hub, worker));
    let answer = thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let input = json!({ "source": slow });
            hub.try_call("runtime/eval", &input, &["--peer", WORKER])
        });
        scripts_run(worker, 1);
        worker.call("node/reboot", &Value::Null);
        calling.join().expect("no panic")
    });
    let confirmed = runtime.block_on(callers.refused());
    assert_eq!(answer.json()["value"], 42);
    worker.wait_ready(mark);
    let listed = worker.call("token/list", &Value::Null);
    assert_eq!(notes_of_tokens(&listed), confirmed);
}

#[test]
fn a_worker_machine_joins_a_hub_machine_and_stays_the_same_peer() {
    let bench = TestBench::new();
    let mut hub = boot(&bench, "attic", HUB);
    let address = format!("{GATEWAY}:{}", hub.address().port());
    let from_host = hub.address().to_string();
    // The worker uses the first join string, and a laptop that is removed later uses the second. The third stays
    // unused.
    let join = invite(&bench, &hub, &address);
    let [of_laptop, unused] = [(); 2].map(|()| invite(&bench, &hub, &from_host));

    let config = format!("[[join]]\ncode = \"{join}\"\n{GRANTED}\n");
    let mut worker = boot(&bench, WORKER, &config);
    let enrolled = peer(&bench, &hub, "ready");
    assert_eq!(enrolled["name"], "kitchen");
    assert_eq!(enrolled["labels"]["pool"], "edge");
    assert_eq!(enrolled["keys"], json!([worker.identity()]));
    let id = enrolled["peer_id"].as_str().expect("an id").to_owned();
    reached(&hub, worker.identity());

    // The reset clears the hub's memory. The hub keeps what is on its disk.
    let (key, mark) = (hub.identity().to_owned(), hub.vm().console().mark());
    let reset = hub.vm().reset_button();
    reset.unwrap_or_else(|error| panic!("{error}"));
    hub.wait_ready(mark);
    assert_eq!(hub.identity(), key);
    let back = peer(&bench, &hub, "ready");
    assert_eq!(
        (&back["peer_id"], &back["name"]),
        (&enrolled["peer_id"], &enrolled["name"])
    );
    reached(&hub, worker.identity());

    a_script_of_the_hub_calls_the_worker(&hub, &worker, &id);
    what_is_given_up_ends_on_the_third_machine(&bench, &hub, &worker, &id);
    no_call_is_lost_while_the_hub_is_configured(&bench, &hub);

    // The worker changes its key. The hub knows the new key before the worker uses it, and the worker uses it after
    // a restart.
    let before = worker.identity().to_owned();
    let rotated = worker.call("node/rotate-key", &Value::Null);
    assert_eq!(
        (&rotated["replaced"], &rotated["in_use"]),
        (&json!(true), &json!(false)),
        "{rotated:#}"
    );
    assert_eq!(rotated["hubs"][0]["hub"], json!(key));
    assert_eq!(rotated["hubs"][0]["peer_id"], json!(id));
    assert_eq!(rotated["node_key"], json!(before));
    let codes: Vec<_> = worker.info()["problems"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|problem| problem["code"].clone())
        .collect();
    assert!(codes.contains(&json!("node-key-waits")), "{codes:?}");
    let new = rotated["new_key"].as_str().expect("a key").to_owned();
    reached(&hub, &before);
    what_the_worker_accepted_is_answered_before_it_restarts(&bench, &hub, &mut worker);
    assert_eq!(worker.identity(), new);
    reached(&hub, &new);
    let same = peer(&bench, &hub, "ready");
    assert_eq!(same["peer_id"], json!(id));
    assert_eq!(same["keys"], json!([before, new]));

    // The removed worker cannot reach the hub with either key or with its join string. The scripts that run over its
    // connection end.
    let mut call = a_script_runs_on_both(&bench, &hub, &worker, &id);
    let removed = run(&bench, &["hub", "remove", &hub.target(), "kitchen"]).json();
    assert_eq!(removed["peer_id"], json!(id));
    assert_eq!(removed["closed"].as_array().map(Vec::len), Some(1));
    let ended = call.wait().expect("it is our child");
    assert!(!ended.success(), "{ended}");
    scripts_run(&worker, 0);
    scripts_run(&hub, 0);
    says_that_the_worker_is_removed(&hub, &id);
    peer(&bench, &hub, "removed");
    let mark = worker.vm().console().mark();
    worker.call("node/reboot", &Value::Null);
    worker.wait_ready(mark);
    eventually("a refusal", || {
        let log = worker.subscribe("node/log", &json!({ "last": 1000 }));
        let messages: Vec<_> = log.map(|record| record["message"].to_string()).collect();
        messages
            .iter()
            .any(|line| line.contains("join.refused") && line.contains("ENROLL_INVALID"))
            .then_some(())
    });
    says_that_the_worker_is_removed(&hub, &id);
    says_that_its_hub_refuses_it(&worker);
    peer(&bench, &hub, "removed");
    if is_campaign() {
        // The worker dials its hub all the time. Once its join string counted as unused for its key, the hub let it in.
        thread::sleep(Duration::from_secs(REPEAT_TIME_S + LATER_S));
        says_that_the_worker_is_removed(&hub, &id);
        says_that_its_hub_refuses_it(&worker);
        peer(&bench, &hub, "removed");
    }

    // A removal revokes the invitations made before it: the one that the peer used, and one that it never used. The
    // hub refuses both with the peer's key and with another key. Each invitation is good for five keys.
    let (laptop, other) = (bench.user("laptop"), bench.user("other"));
    let enroll = |cli: &CliRunner, join: &str| cli.run(cli.command(&["enroll", join]));
    let joined = enroll(&laptop, &of_laptop).json();
    let id = joined["peer_id"].as_str().expect("an id");
    let target = hub.target();
    let removes = ["hub", "remove", &target, id, "--close-invitations"];
    let removed = run(&bench, &removes).json();
    assert_eq!(removed["closed"].as_array().map(Vec::len), Some(2));
    assert_eq!(removed["open"], json!([]));
    for (cli, join) in [
        (&laptop, &of_laptop),
        (&other, &of_laptop),
        (&laptop, &unused),
        (&other, &unused),
    ] {
        let refused = enroll(cli, join);
        assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
    }
    assert_eq!(
        enroll(&laptop, &invite(&bench, &hub, &from_host)).json()["peer_id"],
        id
    );
}
