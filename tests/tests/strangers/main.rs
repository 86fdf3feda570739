//! Clients nobody here wrote: GnuTLS with raw keys and OpenSSL over TLS on TCP, and the clients of
//! the documentation, Python's `ssl` and aioquic.

mod python;
mod service;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use alknet_tests::{Bench, Boot, Cli, Pem, wire};
use serde_json::{Value, json};

/// Raw keys of both sides, and of the server only.
const RAW_BOTH: &str = "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-CLI-RAWPK";
const RAW_SERVER: &str = "NORMAL:-CTYPE-ALL:+CTYPE-SRV-RAWPK:+CTYPE-CLI-X509";

/// How every event begins.
const START: &[u8] = br#"{"type""#;

/// How long anything may take before a stranger gives up, in seconds. Guests run translated.
const PATIENCE: &str = "120";

/// Where a pinned target is.
fn address(target: &str) -> (&str, &str) {
    let (_, address) = target.split_once('@').expect("a pinned target");
    address.rsplit_once(':').expect("an address with a port")
}

/// Everything every stranger does with a node of this administrator.
fn serves_strangers(admin: &Cli, target: &str) {
    let pem = Pem::of(admin);
    gnutls_with_raw_keys(&pem, target);
    gnutls_without_a_key(target);
    openssl(&pem, target);
}

/// `gnutls-cli` with what is typed into it. It ends when its input does.
struct Gnutls {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Gnutls {
    fn dial(target: &str, priority: &str, more: &[&str]) -> Self {
        let (host, port) = address(target);
        let mut child = Command::new("timeout")
            .args([
                PATIENCE,
                "gnutls-cli",
                "--insecure",
                "--alpn",
                "alknet/call",
            ])
            .args(["--priority", priority, "--port", port])
            .args(more)
            .arg(host)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("gnutls-cli is installed: it comes with the set-up (gnutls-bin)");
        let output = BufReader::new(child.stdout.take().expect("it was asked for above"));
        Self { child, output }
    }

    /// What it prints up to a line with `needle`.
    fn until(&mut self, needle: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(needle) {
            let mut line = Vec::new();
            let read = self.output.read_until(b'\n', &mut line).expect("a pipe");
            assert_ne!(read, 0, "gnutls-cli ended before {needle:?}:\n{seen}");
            seen.push_str(&String::from_utf8_lossy(&line));
        }
        seen
    }

    fn send(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("it was asked for above");
        stdin.write_all(bytes).expect("gnutls-cli reads");
        stdin.flush().expect("gnutls-cli reads");
    }

    /// The next frame, of whatever gnutls-cli wraps around it the part that is JSON.
    fn event(&mut self) -> Value {
        let mut seen = Vec::new();
        let mut byte = [0];
        loop {
            self.output.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&seen));
            });
            seen.push(byte[0]);
            // The length before it can hold any byte, a brace too.
            let start = seen.windows(START.len()).position(|w| w == START);
            let json = start.map(|at| &seen[at..]);
            if let Some(value) = json.and_then(|json| serde_json::from_slice(json).ok()) {
                return value;
            }
        }
    }
}

impl Drop for Gnutls {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn gnutls_with_raw_keys(pem: &Pem, target: &str) {
    let files = [pem.key.to_str(), pem.public.to_str()].map(|path| path.expect("a plain path"));
    let more = ["--rawpkkeyfile", files[0], "--rawpkfile", files[1]];
    let mut stranger = Gnutls::dial(target, RAW_BOTH, &more);
    let greeting = stranger.until("Handshake was completed");
    assert!(greeting.contains("Raw Public Key"), "{greeting}");
    stranger.send(&wire::request("1", "node/info", &Value::Null));
    let answer = stranger.event();
    assert_eq!(
        (&answer["type"], &answer["id"]),
        (&json!("call.responded"), &json!("1"))
    );
    let identity = answer["payload"]["output"]["identity"]
        .as_str()
        .expect("an identity");
    assert!(target.starts_with(identity), "{answer}");
    // A second call on the same connection, and one that is refused.
    stranger.send(&wire::request(
        "2",
        "services/list",
        &json!({ "prefix": "node/" }),
    ));
    let answer = stranger.event();
    let operations = answer["payload"]["output"]["operations"].as_array();
    assert!(operations.is_some_and(|found| found.len() >= 4), "{answer}");
    stranger.send(&wire::request("3", "node/info", &json!(7)));
    let answer = stranger.event();
    assert_eq!(answer["payload"]["code"], "INVALID_INPUT", "{answer}");
}

fn gnutls_without_a_key(target: &str) {
    let mut stranger = Gnutls::dial(target, RAW_SERVER, &[]);
    stranger.until("Handshake was completed");
    stranger.send(&wire::request("a", "node/info", &Value::Null));
    let answer = stranger.event();
    assert_eq!(
        (&answer["type"], &answer["id"]),
        (&json!("call.error"), &json!("a"))
    );
    assert_eq!(answer["payload"]["code"], "UNAUTHENTICATED", "{answer}");
}

/// `s_client` says what was negotiated, and which key it saw.
fn openssl(pem: &Pem, target: &str) {
    let (host, port) = address(target);
    let mut command = Command::new("timeout");
    command
        .args([
            PATIENCE,
            "openssl",
            "s_client",
            "-alpn",
            "alknet/call",
            "-connect",
        ])
        .arg(format!("{host}:{port}"))
        .arg("-cert")
        .arg(&pem.certificate)
        .arg("-key")
        .arg(&pem.key)
        .stdin(Stdio::null());
    let output = command
        .output()
        .expect("openssl is installed: it comes with the set-up");
    let said = String::from_utf8_lossy(&output.stdout);
    for fact in [
        "ALPN protocol: alknet/call",
        "TLSv1.3",
        "Peer signature type: ed25519",
    ] {
        assert!(said.contains(fact), "{fact}:\n{said}");
    }
}

#[test]
fn the_host_serves_strangers() {
    let bench = Bench::new();
    let node = bench.host();
    serves_strangers(bench.admin(), node.target());
}

#[test]
fn the_appliance_serves_strangers() {
    let bench = Bench::new();
    let node = bench.machine(Boot::MicrovmErofs).boot();
    serves_strangers(bench.admin(), &node.target());
    node.end();
}
