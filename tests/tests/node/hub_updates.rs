//! A hub offers its workers an update. The workers are hosts, which update nothing: what is tested is the way to them.

use alknet_tests::{TestBench, eventually};
use alknet_update::BundleWriter;
use serde_json::{Value, json};

use super::enrolment::{EnrolmentNode, hub_config, invite, peer, run};

/// A bundle whose signatures nothing checks here: the hub does not, and these workers refuse every bundle.
fn unsigned() -> Vec<u8> {
    let targets = json!({ "signed": { "targets": {
        "alknet.efi": { "custom": { "alknet": { "version": "9.9.9" } } }
    } } });
    let mut writer = BundleWriter::new(Vec::new());
    let document = targets.to_string();
    writer
        .metadata("1.targets.json", document.as_bytes())
        .expect("memory");
    // More than one piece.
    let program = vec![7; 300_000];
    writer
        .target("alknet.efi", 300_000, &mut &*program)
        .expect("memory");
    writer.finish().expect("memory")
}

#[test]
fn a_hub_keeps_a_bundle_and_offers_it_to_the_workers_that_permit_it() {
    let bench = TestBench::new();
    let hub = EnrolmentNode::start(&bench, "hub", &hub_config(), "0");
    let _workers = [("kitchen", "update = true\n"), ("hall", "")].map(|(name, more)| {
        let join = invite(&bench, &hub, &["--role", "worker", "--ttl", "1h"]);
        let config = format!("[node]\nname = \"{name}\"\n\n[[join]]\ncode = \"{join}\"\n{more}");
        EnrolmentNode::start(&bench, name, &config, "0")
    });
    for name in ["kitchen", "hall"] {
        peer(&bench, &hub, name, "ready");
    }
    let admin = bench.admin();
    let none = run(admin, &["update", "--workers", &hub.target, "--yes"]);
    assert_eq!(
        (none.status, none.code().as_str()),
        (2, "USAGE"),
        "{none:?}"
    );

    let file = bench.path().join("bundle.tar");
    std::fs::write(&file, unsigned()).expect("the folder is ours");
    let file = file.display().to_string();
    let words = ["update", "--workers", &hub.target, &file, "--yes"];
    let answer = run(admin, &words);
    assert_eq!(answer.status, 0, "{answer:?}");
    let rollout: Value = serde_json::from_str(answer.output.trim()).expect("JSON");
    assert_eq!(
        (&rollout["state"], &rollout["version"]),
        (&json!("done"), &json!("9.9.9"))
    );
    // The other worker does not serve the operation to its hub, so that the hub does not ask it.
    let workers = rollout["workers"].as_array().expect("a list");
    assert_eq!(workers.len(), 1, "{rollout}");
    assert_eq!(
        (&workers[0]["name"], &workers[0]["state"]),
        (&json!("kitchen"), &json!("skipped"))
    );
    let reason = workers[0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("ordinary host"), "{rollout}");

    let named = json!({ "start": { "workers": ["hall"] } });
    let started = admin.call(&hub.target, "hub/update", &named, &[]);
    assert_eq!(started.status, 0, "{started:?}");
    let status = run(admin, &["call", &hub.target, "hub/update_status"]).json();
    assert_eq!(status["bundle"]["version"], "9.9.9", "{status}");

    // The attack: another bundle took the place of the one that the administrator has agreed to.
    eventually("the update of 'hall' ends", || {
        let status = run(admin, &["call", &hub.target, "hub/update_status"]).json();
        (status["rollout"]["state"] != "running").then_some(())
    });
    let agreed = &status["bundle"];
    for (member, other) in [
        ("version", json!("9.9.8")),
        ("bytes", json!(9)),
        ("targets_sha256", json!("ab".repeat(32))),
    ] {
        let mut start = json!({ "start": { "workers": ["hall"], "bundle": agreed } });
        start["start"]["bundle"][member] = other;
        let refused = admin.call(&hub.target, "hub/update", &start, &[]);
        assert_eq!(refused.code(), "CONFLICT", "{member}: {refused:?}");
        assert!(refused.errors.contains("another bundle"), "{refused:?}");
    }
    let start = json!({ "start": { "workers": ["hall"], "bundle": agreed } });
    let started = admin.call(&hub.target, "hub/update", &start, &[]);
    assert_eq!(started.status, 0, "{started:?}");
    let read = admin.call(&hub.target, "hub/update_read", &json!({ "offset": 0 }), &[]);
    let bytes = read.json()["bytes"].as_u64();
    assert_eq!(bytes, Some(unsigned().len() as u64), "{read:?}");
}

/// A client may pass calls on through the hub, and has every scope about updates of the hub's own machine. `hub/update`
/// asks for `hub:admin` as well.
#[test]
fn clients_of_a_hub_have_no_part_in_the_updates_of_its_workers() {
    let bench = TestBench::new();
    let scopes = "\"hub:invoke:update\", \"update:stage\", \"update:apply\", \"update:offer\"";
    let role = format!("\n[[hub.role]]\nname = \"updater\"\nscopes = [{scopes}]\n");
    let hub = EnrolmentNode::start(&bench, "hub", &(hub_config() + &role), "0");
    let join = invite(&bench, &hub, &["--role", "worker"]);
    let config =
        format!("[node]\nname = \"kitchen\"\n\n[[join]]\ncode = \"{join}\"\nupdate = true\n");
    let _worker = EnrolmentNode::start(&bench, "kitchen", &config, "0");
    peer(&bench, &hub, "kitchen", "ready");
    let client = bench.user("client");
    let join = invite(&bench, &hub, &["--role", "updater"]);
    run(&client, &["enroll", &join]).json();
    for (operation, input) in [
        ("update/offer", json!({ "version": "9.9.9", "bytes": 9 })),
        ("update/write", json!({ "session": "s1", "abort": true })),
        ("update/apply", json!({})),
    ] {
        let input = json!({ "peer": "kitchen", "operation": operation, "input": input });
        let refused = client.call(&hub.target, "hub/invoke", &input, &[]);
        assert_eq!(refused.code(), "FORBIDDEN", "{operation}: {refused:?}");
        let why = "update:offer is for the hub itself";
        assert!(refused.errors.contains(why), "{operation}: {refused:?}");
    }
    // What asks for no right of the hub's arrives.
    let status = json!({ "peer": "kitchen", "operation": "update/log" });
    let arrives = bench.admin().call(&hub.target, "hub/invoke", &status, &[]);
    assert_eq!(arrives.code(), "UNAVAILABLE", "{arrives:?}");
    assert!(arrives.errors.contains("ordinary host"), "{arrives:?}");
}
