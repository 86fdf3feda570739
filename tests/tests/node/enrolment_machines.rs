//! A hub and a worker, both booted machines: the worker joins by its configuration, is called through
//! the hub, comes back after the hub was reset, changes its key, and is put out.
//!
//! Each is behind a network of its own, as behind NAT: the worker reaches the hub at the address of
//! its gateway, and nobody but its administrator reaches the worker.

use alknet_qemu::Disk;
use alknet_tests::{Answer, Bench, Boot, Cli, HUB, Node, eventually};
use serde_json::{Value, json};

/// Where a machine on QEMU's network finds the host, and so the ports of the other machine.
const GATEWAY: &str = "10.0.2.2";
/// Size of a data disk; sparse.
const DATA_BYTES: u64 = 1 << 30;

/// The machine that joins.
const WORKER: &str = "kitchen";

/// A machine with a data disk of its own.
fn boot(bench: &Bench, name: &str, config: &str) -> Node {
    let disk = Disk::file(bench.disk(name, DATA_BYTES)).data();
    let document = format!(
        "[node]\nname = \"{name}\"\nadmin_keys = [\"{}\"]\n{config}",
        bench.admin().identity()
    );
    // The worker changes its key, which one that is derived from words cannot; the hub needs no vault.
    let machine = bench.machine(Boot::Q35Initramfs).config(document).plain();
    // Two emulated machines are slow enough for the kernel to find its timer broken, and to stop.
    let machine = machine.append("no_timer_check");
    machine.data(Some(disk)).boot()
}

fn run(bench: &Bench, words: &[&str]) -> Answer {
    let admin = bench.admin();
    admin.run(admin.command(words))
}

/// A join string that is good for five keys, for a hub at this address.
fn invite(bench: &Bench, hub: &Node, address: &str) -> String {
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

/// The one peer of the hub, once it is in this state.
fn peer(bench: &Bench, hub: &Node, state: &str) -> Value {
    let mut last = Value::Null;
    eventually(&format!("a peer that is {state}"), || {
        let answer = run(bench, &["hub", "peers", &hub.target()]);
        // The hub may be on its way up.
        last = serde_json::from_str(&answer.output).unwrap_or_default();
        let row = last["peers"][0].clone();
        (row["state"] == state).then_some(row)
    })
}

/// Who answers when the hub is asked for the peer.
fn through(hub: &Node) -> Option<Value> {
    let direct = hub.try_call("node/info", &Value::Null, &["--peer", "kitchen"]);
    let input = json!({ "peer": "any", "labels": { "pool": "edge" }, "operation": "node/info" });
    let chosen = hub.try_call("hub/invoke", &input, &[]);
    if direct.status != 0 || chosen.status != 0 {
        return None;
    }
    let (direct, chosen) = (direct.json(), chosen.json());
    assert_eq!(direct["identity"], chosen["identity"]);
    Some(direct["identity"].clone())
}

/// Waits until the worker with this key is reached through the hub.
fn reached(hub: &Node, key: &str) {
    eventually("a call through the hub", || {
        (through(hub)? == key).then_some(())
    });
}

#[test]
fn a_worker_machine_joins_a_hub_machine_and_stays_the_same_peer() {
    let bench = Bench::new();
    let mut hub = boot(&bench, "attic", HUB);
    let address = format!("{GATEWAY}:{}", hub.address().port());
    let from_host = hub.address().to_string();
    // The worker has one, a laptop that is to be removed as well another, and a third is kept.
    let join = invite(&bench, &hub, &address);
    let [of_laptop, unused] = [(); 2].map(|()| invite(&bench, &hub, &from_host));

    let config = format!("[[join]]\ncode = \"{join}\"\n");
    let mut worker = boot(&bench, WORKER, &config);
    let enrolled = peer(&bench, &hub, "ready");
    assert_eq!(enrolled["name"], "kitchen");
    assert_eq!(enrolled["labels"]["pool"], "edge");
    assert_eq!(enrolled["keys"], json!([worker.identity()]));
    let id = enrolled["peer_id"].as_str().expect("an id").to_owned();
    reached(&hub, worker.identity());

    // Everything the hub has in memory is gone; what is on its disk counts.
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

    // The worker changes its key: the hub knows before it is used, and it is used after a restart.
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
    let mark = worker.vm().console().mark();
    let reset = worker.vm().reset_button();
    reset.unwrap_or_else(|error| panic!("{error}"));
    worker.wait_ready(mark);
    assert_eq!(worker.identity(), new);
    reached(&hub, &new);
    let same = peer(&bench, &hub, "ready");
    assert_eq!(same["peer_id"], json!(id));
    assert_eq!(same["keys"], json!([before, new]));

    // Put out, it is out, with either key and whatever it shows.
    let removed = run(&bench, &["hub", "remove", &hub.target(), "kitchen"]).json();
    assert_eq!(removed["peer_id"], json!(id));
    assert_eq!(through(&hub), None);
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
    assert_eq!(through(&hub), None);
    peer(&bench, &hub, "removed");

    // A removal outlives every invitation made before it: the one that the peer came by, with its key
    // and with another, and one that it never used. Each is good for five keys.
    let (laptop, other) = (bench.somebody("laptop"), bench.somebody("other"));
    let enroll = |cli: &Cli, join: &str| cli.run(cli.command(&["enroll", join]));
    let joined = enroll(&laptop, &of_laptop).json();
    let id = joined["peer_id"].as_str().expect("an id");
    let removed = run(&bench, &["hub", "remove", &hub.target(), id]).json();
    assert_eq!(removed["closed"].as_array().map(Vec::len), Some(1));
    for (cli, join) in [
        (&laptop, &of_laptop),
        (&other, &of_laptop),
        (&laptop, &unused),
    ] {
        let refused = enroll(cli, join);
        assert_eq!(refused.code(), "ENROLL_INVALID", "{refused:?}");
    }
    assert_eq!(enroll(&other, &unused).status, 0, "it was never removed");
    assert_eq!(
        enroll(&laptop, &invite(&bench, &hub, &from_host)).json()["peer_id"],
        id
    );
    worker.end();
    hub.end();
}
