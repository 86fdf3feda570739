//! The network reaches two operations of a vault, which are for administrators. It reaches nothing else of the vault
//! under any name, over any carriage, or by any protocol that the port speaks.

use std::time::Duration;

use alknet_call::{CallClient, CallOptions, ErrorCode};
use alknet_endpoint::Target;
use alknet_tests::{BootVariant, MachineNode, TestBench};
use serde_json::{Value, json};

/// All operations of a vault that the network reaches.
const REACHABLE: [&str; 2] = ["vault/lock", "vault/status"];

/// Names that the vault's other functions would have as operations.
const ABSENT: [&str; 24] = [
    "vault/audit",
    "vault/derive",
    "vault/escrow",
    "vault/export",
    "vault/export-key",
    "vault/export-phrase",
    "vault/factory-reset",
    "vault/import",
    "vault/init",
    "vault/list",
    "vault/migrate",
    "vault/open",
    "vault/passwd",
    "vault/pub",
    "vault/recovery-key",
    "vault/rekey",
    "vault/rewrap",
    "vault/rotate",
    "vault/seal",
    "vault/sign",
    "vault/slot",
    "vault/slot/add",
    "vault/unlock",
    "vault/words",
];

/// Longest wait for another protocol's reaction to a call that it does not know.
const NO_ANSWER: Duration = Duration::from_secs(3);

#[test]
fn nothing_of_a_vault_is_reached_but_its_status_and_its_lock() {
    let bench = TestBench::set_up();
    let hub = "[hub]\nenabled = true";
    let node = bench
        .machine(BootVariant::MicrovmErofs)
        .configured(hub)
        .boot();
    // The administrator sees the whole registry.
    let listed = bench
        .admin()
        .run(bench.admin().command(&["ops", &node.target()]));
    let listed = listed.json();
    let names = listed.as_array().expect("a list").iter();
    let names: Vec<&str> = names.filter_map(|one| one["name"].as_str()).collect();
    let vault: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| name.contains("vault"))
        .collect();
    assert_eq!(vault, REACHABLE, "{names:?}");
    for name in REACHABLE {
        let spec = bench
            .admin()
            .run(bench.admin().command(&["ops", &node.target(), name]));
        let scopes = &spec.json()["access_control"]["required_scopes"];
        assert_eq!(*scopes, json!(["admin"]), "{name}");
    }
    // An unknown peer may call no operation, so it may not call these either.
    let unknown_peer = bench.user("unknown-peer");
    for carriage in ["quic", "tcp"] {
        for name in REACHABLE {
            let answer = unknown_peer.call(
                &node.target(),
                name,
                &Value::Null,
                &["--carriage", carriage],
            );
            assert_eq!(answer.code(), "UNAUTHENTICATED", "{name}: {answer:?}");
        }
        // Over every carriage the node answers `NOT_FOUND` even to an administrator.
        let answer = node.try_call("vault/unlock", &Value::Null, &["--carriage", carriage]);
        assert_eq!(answer.code(), "NOT_FOUND", "{answer:?}");
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(no_other_name(&node));
    let info = node.info();
    let alpns = info["listen"]["alpns"].as_array().expect("a list");
    let alpns: Vec<&str> = alpns.iter().filter_map(Value::as_str).collect();
    assert!(alpns.contains(&"alknet/enroll"), "{alpns:?}");
    for alpn in alpns.into_iter().filter(|alpn| *alpn != "alknet/call") {
        runtime.block_on(no_call_by(&node, alpn));
    }
    let status = node.call("vault/status", &Value::Null);
    assert_eq!(status["state"], "unlocked", "{status:#}");
}

async fn no_other_name(node: &MachineNode) {
    let (_dialer, client) = node.client().await.expect("it serves");
    for name in ABSENT {
        let answer = client.call(name, &Value::Null).await;
        let error = answer.expect_err("it does not exist");
        assert_eq!(error.code, ErrorCode::NotFound, "{name}: {error:?}");
    }
}

/// A protocol other than the call protocol answers no call, even if an administrator sends it.
async fn no_call_by(node: &MachineNode, alpn: &str) {
    let (dialer, _client) = node.client().await.expect("it serves");
    let target: Target = node.target().parse().expect("as the command line takes it");
    let connection = dialer.dial(&target, alpn.as_bytes()).await;
    let connection = connection.unwrap_or_else(|error| panic!("{alpn}: {error}"));
    let client = CallClient::without_operations().attach(connection, None);
    let options = CallOptions {
        timeout: Some(node.vm().scale(NO_ANSWER)),
        ..CallOptions::default()
    };
    for name in REACHABLE {
        let answer = client.call_with(name, &json!({}), &options).await;
        assert!(answer.is_err(), "{alpn} answers {name}");
    }
}
