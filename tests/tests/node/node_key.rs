//! A node changes its own key: its hubs know the new key before it is used, whatever fails
//! meanwhile.

use std::path::PathBuf;

use alknet_tests::{HostNode, TestBench, eventually, health};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const HUB: &str = "[hub]\nenabled = true\n";

struct HubPair {
    bench: TestBench,
    hub: HostNode,
    config: PathBuf,
}

impl HubPair {
    /// A hub, and what a worker needs to join it.
    fn new() -> Self {
        let bench = TestBench::new();
        let hub = bench.host_with(HUB);
        let admin = bench.admin();
        let invited = admin.run(admin.command(&["hub", "invite", hub.target()]));
        let join = invited.json()["join"].as_str().map(str::to_owned);
        let join = join.unwrap_or_else(|| panic!("no join string: {invited:?}"));
        let config = bench.path().join("worker.toml");
        let document = format!("[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{join}\"\n");
        std::fs::write(&config, document).expect("the folder is ours");
        Self { bench, hub, config }
    }

    /// The worker, with its earlier state.
    fn worker(&self) -> HostNode {
        let state = self.bench.path().join("worker");
        HostNode::start_with(&state, self.bench.admin(), Some(&self.config))
    }

    /// The worker's row, once it is ready with this key.
    fn ready(&self, worker: &HostNode) -> Value {
        let key = key(worker);
        eventually("a call through the hub", || {
            let peers = self.hub.call("hub/peers", &Value::Null);
            let row = peers["peers"][0].clone();
            let input = json!({ "peer": "kitchen", "operation": "node/info" });
            let admin = self.bench.admin();
            let answer = admin.call(self.hub.target(), "hub/invoke", &input, &[]);
            let there = answer.status == 0 && answer.json()["identity"] == key;
            (row["state"] == "ready" && there).then_some(row)
        })
    }
}

fn key(node: &HostNode) -> &str {
    node.target().split_once('@').expect("a pinned target").0
}

#[test]
fn a_node_changes_its_key_and_stays_the_same_peer() {
    let pair = HubPair::new();
    let worker = pair.worker();
    let before = key(&worker).to_owned();
    let row = pair.ready(&worker);
    assert_eq!(row["keys"], json!([before]));

    // The hub does not answer: the old key stays in use, even after a kill.
    let hub = Pid::from_raw(pair.hub.pid().cast_signed());
    kill(hub, Signal::SIGSTOP).expect("it runs");
    let waits = worker.call("node/rotate-key", &Value::Null);
    kill(hub, Signal::SIGCONT).expect("it runs");
    assert_eq!(waits["replaced"], false, "{waits:#}");
    assert_eq!(waits["hubs"][0]["hub"], key(&pair.hub), "{waits:#}");
    assert!(waits["hubs"][0]["error"]["code"].is_string(), "{waits:#}");
    drop(worker);
    let worker = pair.worker();
    assert_eq!(key(&worker), before);
    let same = pair.ready(&worker);
    assert_eq!(same["peer_id"], row["peer_id"]);

    // It continues with the same new key, which is used from the next start on.
    let done = worker.call("node/rotate-key", &Value::Null);
    assert_eq!(
        (&done["replaced"], &done["in_use"]),
        (&json!(true), &json!(false)),
        "{done:#}"
    );
    assert_eq!(done["new_key"], waits["new_key"]);
    assert_eq!(done["hubs"][0]["peer_id"], row["peer_id"]);
    assert!(done["hubs"][0]["old_key_ends"].is_string(), "{done:#}");
    let problems = worker.call("node/info", &Value::Null)["problems"].to_string();
    assert!(problems.contains("node-key-waits"), "{problems}");
    let well = health(worker.target());
    assert_eq!((well.status, &*well.text()), (200, "ok\n"));
    pair.ready(&worker);
    drop(worker);
    let worker = pair.worker();
    assert_eq!(json!(key(&worker)), done["new_key"]);
    let after = pair.ready(&worker);
    assert_eq!(after["peer_id"], row["peer_id"]);
    assert_eq!(after["keys"], json!([before, key(&worker)]));
    let problems = worker.call("node/info", &Value::Null)["problems"].to_string();
    assert!(!problems.contains("node-key-waits"), "{problems}");
    let again = worker.call("node/rotate-key", &Value::Null);
    assert_eq!(
        (&again["in_use"], &again["new_key"]),
        (&json!(true), &done["new_key"])
    );
}

#[test]
fn a_hub_with_workers_keeps_its_key_and_only_administrators_rotate_it() {
    let pair = HubPair::new();
    let worker = pair.worker();
    pair.ready(&worker);
    let admin = pair.bench.admin();
    let refused = admin.call(pair.hub.target(), "node/rotate-key", &Value::Null, &[]);
    assert_eq!(refused.code(), "CONFLICT", "{refused:?}");
    let unknown_peer = pair.bench.user("unknown-peer");
    let refused = unknown_peer.call(worker.target(), "node/rotate-key", &Value::Null, &[]);
    assert_eq!(refused.code(), "UNAUTHENTICATED", "{refused:?}");
    let odd = json!({ "drop": ["kitchen"] });
    let refused = admin.call(worker.target(), "node/rotate-key", &odd, &[]);
    assert_eq!(refused.code(), "INVALID_INPUT", "{refused:?}");
}
