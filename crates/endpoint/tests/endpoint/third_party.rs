//! Independent TLS and QUIC clients: GnuTLS, OpenSSL, Python, curl, ngtcp2.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_core::PeerKey;
use alknet_test_support::seconds;
use alknet_tls::{NodeKey, PeerProof};
use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::support::{EndpointTestNode, hung};

/// Runs `command` with `input`, leaving its input open until it has answered, and returns all its output.
async fn run(mut command: Command, input: &'static [u8]) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let work = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("gnutls-bin, ngtcp2-client, openssl and python3 are installed");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("the program reads");
        stdin.flush().expect("the program reads");
        // Open until the program ends by itself, which it does when the node closes.
        let output = child.wait_with_output().expect("an exit");
        drop(stdin);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        format!("{out}\n{}", String::from_utf8_lossy(&output.stderr))
    });
    match tokio::time::timeout(hung(), work).await {
        Ok(output) => output.expect("no panic"),
        Err(_) => panic!("{program} did not end"),
    }
}

/// Key files of a client, as OpenSSL writes them.
fn key_files(dir: &Path) -> PeerKey {
    let pem = dir.join("key.pem");
    let generate = ["genpkey", "-algorithm", "ed25519", "-out"];
    openssl(Command::new("openssl").args(generate).arg(&pem));
    let public = ["pkey", "-pubout", "-in"];
    openssl(
        Command::new("openssl")
            .args(public)
            .arg(&pem)
            .arg("-out")
            .arg(dir.join("pub.pem")),
    );
    openssl(
        Command::new("openssl")
            .args(["req", "-x509", "-subj", "/CN=client", "-days", "9", "-key"])
            .arg(&pem)
            .arg("-out")
            .arg(dir.join("cert.pem")),
    );
    let der = CertificateDer::from_pem_file(dir.join("cert.pem")).expect("a certificate");
    PeerProof::from_certificate(&der).expect("a key").key
}

fn openssl(command: &mut Command) {
    let output = command.output().expect("openssl is installed");
    assert!(output.status.success(), "{output:?}");
}

fn gnutls(node: &EndpointTestNode, priority: &str) -> Command {
    let mut command = Command::new("gnutls-cli");
    command
        .args([
            "--insecure",
            "--alpn",
            "alknet/whoami",
            "--priority",
            priority,
        ])
        .args(["--port", &node.server.port().to_string()])
        .arg("127.0.0.1");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn gnutls_with_a_raw_server_key() {
    let node = EndpointTestNode::start();
    for priority in [
        "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-CLI-X509",
        "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-SRV-X509:+CTYPE-CLI-X509",
        "NORMAL",
    ] {
        let output = run(gnutls(&node, priority), b"hello\n").await;
        assert!(output.contains("no key unknown"), "{priority}:\n{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gnutls_with_a_raw_client_key_is_a_peer() {
    let node = EndpointTestNode::start();
    let dir = tempfile::tempdir().expect("a directory");
    let key = key_files(dir.path());
    node.peers.add(key, "gnutls");
    let mut command = gnutls(&node, "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-CLI-RAWPK");
    command
        .arg("--rawpkkeyfile")
        .arg(dir.path().join("key.pem"))
        .arg("--rawpkfile")
        .arg(dir.path().join("pub.pem"));
    let output = run(command, b"hello\n").await;
    assert!(output.contains(&format!("{key} gnutls")), "{output}");
}

fn s_client(node: &EndpointTestNode) -> Command {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-alpn", "alknet/whoami", "-connect"])
        .arg(format!("127.0.0.1:{}", node.server.port()));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_sees_the_node_key_in_a_certificate() {
    let node = EndpointTestNode::start();
    let dir = tempfile::tempdir().expect("a directory");
    let key = key_files(dir.path());
    node.peers.add(key, "openssl");
    let mut command = s_client(&node);
    command
        .arg("-cert")
        .arg(dir.path().join("cert.pem"))
        .arg("-key")
        .arg(dir.path().join("key.pem"));
    let output = run(command, b"hello\n").await;
    assert!(output.contains(&format!("{key} openssl")), "{output}");
    let shown = CertificateDer::from_pem_slice(output.as_bytes()).expect("a certificate");
    let proof = PeerProof::from_certificate(&shown).expect("a key");
    assert_eq!(proof.key, node.key.public());
}

#[tokio::test(flavor = "multi_thread")]
async fn gnutls_with_a_certificate_is_a_peer() {
    let node = EndpointTestNode::start();
    let dir = tempfile::tempdir().expect("a directory");
    let key = key_files(dir.path());
    node.peers.add(key, "gnutls");
    for priority in [
        "NORMAL",
        "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-CLI-X509",
    ] {
        let mut command = gnutls(&node, priority);
        command
            .arg("--x509keyfile")
            .arg(dir.path().join("key.pem"))
            .arg("--x509certfile")
            .arg(dir.path().join("cert.pem"));
        let output = run(command, b"hello\n").await;
        assert!(
            output.contains(&format!("{key} gnutls")),
            "{priority}:\n{output}"
        );
    }
}

/// Curl checks the pin during the handshake; after it the test protocol, which is not HTTP, ends the transfer in its
/// own way.
#[tokio::test(flavor = "multi_thread")]
async fn curl_pins_the_node_key() {
    const PIN_MISMATCH: i32 = 90;
    const HANDSHAKE_FAILED: i32 = 35;
    let node = EndpointTestNode::start();
    let PeerKey::Ed25519(key) = node.key.public() else {
        panic!("an Ed25519 key")
    };
    let digest = |key: &[u8; 32]| Sha256::digest(PeerKey::ed25519_spki(key));
    let mut other = key;
    other[0] ^= 1;
    for (key, matches) in [(key, true), (other, false)] {
        let output = tokio::process::Command::new("curl")
            .args([
                "--insecure",
                "--verbose",
                "--max-time",
                &seconds(Duration::from_secs(20)),
                "--pinnedpubkey",
            ])
            .arg(format!("sha256//{}", BASE64.encode(&digest(&key))))
            .arg(format!("https://127.0.0.1:{}/", node.server.port()))
            .output()
            .await
            .expect("curl is installed");
        let code = output.status.code().expect("an exit");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("TLSv1.3"), "{said}");
        assert_ne!(code, HANDSHAKE_FAILED, "{said}");
        assert_eq!(code != PIN_MISMATCH, matches, "{said}");
    }
}

/// It speaks HTTP/3 only, which the node here answers in its own way: the handshake decides the test. It ends when
/// the connection has been silent for a while.
#[tokio::test(flavor = "multi_thread")]
async fn ngtcp2_shakes_hands_over_quic() {
    let node = EndpointTestNode::start();
    for more in [&[][..], &["--groups", "-GROUP-ALL:+GROUP-SECP384R1"]] {
        let mut command = Command::new("gtlsclient");
        command
            .args(["--timeout", "2s"])
            .args(more)
            .args(["127.0.0.1", &node.server.port().to_string()]);
        let output = run(command, b"").await;
        for fact in ["Negotiated ALPN is h3", "QUIC handshake has completed"] {
            assert!(output.contains(fact), "{fact}:\n{output}");
        }
        assert!(!output.contains("CRYPTO_ERROR"), "{output}");
    }
}

/// The algorithms that browsers offer.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_ed25519_gets_p256() {
    let node = EndpointTestNode::start();
    let mut command = s_client(&node);
    command.args(["-sigalgs", "ECDSA+SHA256:RSA-PSS+SHA256"]);
    let output = run(command, b"hello\n").await;
    assert!(output.contains("no key unknown"), "{output}");
    let shown = CertificateDer::from_pem_slice(output.as_bytes()).expect("a certificate");
    let proof = PeerProof::from_certificate(&shown).expect("a key");
    assert!(matches!(proof.key, PeerKey::Spki(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn python_pins_the_node_key() {
    const SCRIPT: &str = "
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(['alknet/whoami'])
with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as tcp:
    with context.wrap_socket(tcp) as tls:
        tls.sendall(b'hello')
        print(tls.version(), tls.selected_alpn_protocol())
        print(tls.getpeercert(binary_form=True).hex())
        print(tls.recv(999).decode())
";
    let node = EndpointTestNode::start();
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT, &node.server.port().to_string()]);
    let output = run(command, b"").await;
    assert!(output.contains("TLSv1.3 alknet/whoami"), "{output}");
    assert!(output.contains("no key unknown"), "{output}");
    let key = node.key.public().to_string();
    let hex = key.strip_prefix("ed25519:").expect("an Ed25519 key");
    assert!(output.contains(hex), "{output}");
}

/// The same key from a file, so that a person's key and a node's have one format.
#[test]
fn openssl_and_we_agree_on_a_seed() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = key_files(dir.path());
    let output = Command::new("openssl")
        .args(["pkey", "-outform", "DER", "-in"])
        .arg(dir.path().join("key.pem"))
        .output()
        .expect("openssl is installed");
    let seed = output.stdout.last_chunk::<32>().expect("a PKCS#8 key");
    assert_eq!(NodeKey::from_seed(seed).public(), key);
}
