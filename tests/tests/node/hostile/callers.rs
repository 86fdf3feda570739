//! Callers with an unknown key or none, with another key's pin, and with an unknown protocol.

use std::process::{Command, Stdio};

use alknet_endpoint::{EndpointDialError, EndpointDialer};
use alknet_tests::TestBench;
use serde_json::Value;

use super::{AttackedNode, CARRIAGES, key, key_of, within};

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_and_no_key_are_refused() {
    let bench = TestBench::new();
    let node = bench.host();
    let unknown_peer = bench.user("unknown-peer");
    for carriage in ["quic", "tcp"] {
        for more in [
            &["--carriage", carriage][..],
            &["--carriage", carriage, "--anonymous"],
        ] {
            for operation in ["node/info", "node/log", "node/reboot"] {
                let answer = unknown_peer.call(node.target(), operation, &Value::Null, more);
                let ended = (answer.status, answer.code());
                assert_eq!(ended, (4, "UNAUTHENTICATED".to_owned()), "{answer:?}");
            }
            let answer = unknown_peer.call(node.target(), "services/list", &Value::Null, more);
            assert_eq!(
                answer.status, 0,
                "what is open to unknown peers stays open: {answer:?}"
            );
        }
    }
    AttackedNode {
        admin: bench.admin(),
        target: node.target().to_owned(),
    }
    .serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pinned_key_ends_the_call_before_it_is_made() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    let wrong = format!("{}@{}", key().public(), site.address());
    for more in [&[][..], &["--carriage", "quic"], &["--carriage", "tcp"]] {
        let answer = bench.admin().call(&wrong, "node/info", &Value::Null, more);
        assert_eq!(
            (answer.status, answer.code()),
            (3, "PIN_MISMATCH".to_owned()),
            "{answer:?}"
        );
        let (expected, _) = site.target.split_once('@').expect("a pinned target");
        assert!(
            answer.errors.contains(expected),
            "it names the key it met: {answer:?}"
        );
    }
    site.serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_protocol_gets_the_alert_for_it() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    let dialer = EndpointDialer::new(Some(key_of(bench.admin())));
    for carriage in CARRIAGES {
        let dialled = within(dialer.dial_over(carriage, &site.parsed(), b"alknet/none")).await;
        assert!(
            matches!(dialled, Err(EndpointDialError::NoProtocol { .. })),
            "{carriage}: {dialled:?}"
        );
    }
    // RFC 7301 section 3.2: no_application_protocol is alert 120.
    let said = s_client(&site, &["-alpn", "alknet/none"]);
    assert!(said.contains("alert number 120"), "{said}");
    // A client without ALPN counts as HTTP/1.1, as older clients do.
    let before = site.info(&[])["endpoint"]["no_handler"].as_u64();
    let said = s_client(&site, &[]);
    assert!(said.contains("No ALPN negotiated"), "{said}");
    let after = site.info(&[])["endpoint"]["no_handler"].as_u64();
    assert_eq!(after, before);
    site.serves();
}

fn s_client(site: &AttackedNode<'_>, more: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &site.address().to_string()])
        .args(more);
    let output = command.stdin(Stdio::null()).output();
    let output = output.expect("openssl is installed: it comes with the set-up");
    let (said, errors) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(said),
        String::from_utf8_lossy(errors)
    )
}
