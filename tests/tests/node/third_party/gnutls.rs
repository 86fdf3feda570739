//! `gnutls-cli` calls a node with raw public keys.

use alknet_test_support::limited;
use alknet_tests::{PemKeyFiles, wire};
use serde_json::{Value, json};

use super::typed::InteractiveProgram;
use super::{PATIENCE, address};

/// GnuTLS priorities: raw keys on both sides, and a raw key on the server's side only.
const RAW_BOTH: &str = "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-CLI-RAWPK";
const RAW_SERVER: &str = "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-CLI-X509";

fn dial(target: &str, priority: &str, more: &[&str]) -> InteractiveProgram {
    let (host, port) = address(target);
    let mut command = limited(PATIENCE, "gnutls-cli");
    command
        .arg("--insecure")
        .args(["--alpn", "alknet/call"])
        .args(["--priority", priority, "--port", port])
        .args(more)
        .arg(host);
    InteractiveProgram::start(command)
}

pub(crate) fn with_raw_keys(pem: &PemKeyFiles, target: &str) {
    let files = [pem.key.to_str(), pem.public.to_str()].map(|path| path.expect("a plain path"));
    let more = ["--rawpkkeyfile", files[0], "--rawpkfile", files[1]];
    let mut unknown_peer = dial(target, RAW_BOTH, &more);
    let greeting = unknown_peer.until("Handshake was completed");
    assert!(greeting.contains("Raw Public Key"), "{greeting}");
    unknown_peer.send(&wire::request("1", "node/info", &Value::Null));
    let answer = unknown_peer.event();
    assert_eq!(
        (&answer["type"], &answer["id"]),
        (&json!("call.responded"), &json!("1"))
    );
    let identity = answer["payload"]["output"]["identity"]
        .as_str()
        .expect("an identity");
    assert!(target.starts_with(identity), "{answer}");
    // The client sends a second call on the same connection, and a call that the node refuses.
    unknown_peer.send(&wire::request(
        "2",
        "services/list",
        &json!({ "prefix": "node/" }),
    ));
    let answer = unknown_peer.event();
    let operations = answer["payload"]["output"]["operations"].as_array();
    assert!(operations.is_some_and(|found| found.len() >= 4), "{answer}");
    unknown_peer.send(&wire::request("3", "node/info", &json!(7)));
    let answer = unknown_peer.event();
    assert_eq!(answer["payload"]["code"], "INVALID_INPUT", "{answer}");
}

pub(crate) fn without_a_key(target: &str) {
    let mut unknown_peer = dial(target, RAW_SERVER, &[]);
    unknown_peer.until("Handshake was completed");
    unknown_peer.send(&wire::request("a", "node/info", &Value::Null));
    let answer = unknown_peer.event();
    assert_eq!(
        (&answer["type"], &answer["id"]),
        (&json!("call.error"), &json!("a"))
    );
    assert_eq!(answer["payload"]["code"], "UNAUTHENTICATED", "{answer}");
}
