//! OpenSSL's `s_client` in two versions: the system's version supports X.509 over TCP, and a newer version also
//! supports raw public keys, QUIC and post-quantum key exchange.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use alknet_test_support::limited;
use alknet_tests::{PemKeyFiles, wire};
use serde_json::Value;

use super::typed::InteractiveProgram;
use super::{PATIENCE, address};

/// Variable with the path of the newer OpenSSL, which the set-up takes out of its package.
const NEWER_VARIABLE: &str = "ALKNET_TEST_OPENSSL";

fn newer() -> OsString {
    std::env::var_os(NEWER_VARIABLE).unwrap_or_else(|| {
        panic!("{NEWER_VARIABLE} is not set; run these tests with `cargo xtask test`")
    })
}

fn s_client(program: OsString, pem: &PemKeyFiles, target: &str) -> Command {
    let (host, port) = address(target);
    let mut command = limited(PATIENCE, program);
    command
        .args(["s_client", "-alpn", "alknet/call", "-connect"])
        .arg(format!("{host}:{port}"))
        .arg("-cert")
        .arg(&pem.certificate)
        .arg("-key")
        .arg(&pem.key);
    command
}

/// Asserts that `s_client` prints these facts about the negotiation and the server's key.
fn says(mut command: Command, facts: &[&str]) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.expect("timeout is part of every Debian");
    let said = String::from_utf8_lossy(&output.stdout);
    for fact in facts {
        assert!(said.contains(fact), "{fact}:\n{said}");
    }
}

/// The system's `s_client` connects without any option.
pub(crate) fn of_the_system(pem: &PemKeyFiles, target: &str) {
    let facts = [
        "ALPN protocol: alknet/call",
        "TLSv1.3",
        "Peer signature type: ed25519",
    ];
    says(s_client("openssl".into(), pem, target), &facts);
}

/// Each side shows its key raw or in a certificate, over TCP and QUIC. In every combination the same peer calls the
/// same node.
pub(crate) fn in_every_way(pem: &PemKeyFiles, target: &str) {
    for carriage in [&[][..], &["-quic"]] {
        for server in [&[][..], &["-enable_server_rpk"]] {
            for client in [&[][..], &["-enable_client_rpk"]] {
                let more = [carriage, server, client].concat();
                let mut command = s_client(newer(), pem, target);
                command.args(["-quiet", "-nocommands"]).args(&more);
                command.stderr(Stdio::null());
                let mut unknown_peer = InteractiveProgram::start(command);
                unknown_peer.send(&wire::request("1", "node/info", &Value::Null));
                let answer = unknown_peer.event();
                let identity = answer["payload"]["output"]["identity"].as_str();
                assert!(
                    identity.is_some_and(|identity| target.starts_with(identity)),
                    "{more:?}: {answer}"
                );
            }
        }
    }
    let (key, _) = target.split_once('@').expect("a pinned target");
    let key = key.strip_prefix("ed25519:").expect("an Ed25519 key");
    // The format in which OpenSSL prints keys.
    let first: Vec<_> = (0..8).map(|n| &key[2 * n..2 * n + 2]).collect();
    let mut raw = s_client(newer(), pem, target);
    raw.arg("-enable_server_rpk");
    says(
        raw,
        &[
            "Server-to-client raw public key negotiated",
            "Negotiated TLS1.3 group: X25519MLKEM768",
            &first.join(":"),
        ],
    );
    let mut classic = s_client(newer(), pem, target);
    classic.args(["-groups", "X25519", "-enable_server_rpk"]);
    says(classic, &["raw public key negotiated", &first.join(":")]);
}
