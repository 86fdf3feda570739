//! `alknet serve`: its log, its metrics and its problems.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alknet_call::{ALPN, CallBody, CallClient, CallError, CallOptions};
use alknet_core::AuthToken;
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::eventually;
use alknet_tests::{CliRunner, TestBench, assert_known_labels, curl, serve};
use alknet_tls::NodeKey;
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

/// How long anything may take before the test counts as hung.
const HUNG: Duration = Duration::from_secs(60);

/// A node whose standard error goes to a file.
struct LoggedNode {
    bench: TestBench,
    child: Child,
    target: String,
    log: PathBuf,
}

impl LoggedNode {
    fn start(bench: TestBench, document: &str) -> Self {
        let file = bench.path().join("node.toml");
        let admin = format!("node.admin_keys = [\"{}\"]\n", bench.admin().identity());
        fs::write(&file, admin + document).expect("the folder is ours");
        let log = bench.path().join("log");
        let host = CliRunner::new(bench.path().join("host"));
        let mut command = host.command(&["serve", "--port", "0", "--listen", "127.0.0.1"]);
        command.args(["--verbose", "--config"]).arg(&file);
        let errors = File::create(&log).expect("the folder is ours");
        command.stderr(errors);
        let (child, said) = serve(command);
        let target = said["target"].as_str().unwrap_or_default().to_owned();
        Self {
            bench,
            child,
            target,
            log,
        }
    }

    fn call(&self, operation: &str) -> Value {
        let admin = self.bench.admin();
        admin
            .call(&self.target, operation, &Value::Null, &[])
            .json()
    }

    fn wait_for_problems(&self) -> Value {
        eventually("there is a problem", HUNG, || {
            let info = self.call("node/info");
            (info["problems"] != json!([])).then_some(info)
        })
    }

    /// Calls `node/metrics` as an unknown peer with a token.
    async fn metrics(&self, who: &CliRunner, token: &AuthToken) -> Result<CallBody, CallError> {
        let key = NodeKey::load_or_create(&who.state().join("identity.key"));
        let dialer = EndpointDialer::new(Some(key.expect("a key").0));
        let target: Target = self.target.parse().expect("a target");
        let connection = dialer.dial(&target, ALPN).await.expect("a connection");
        let client = CallClient::without_operations().attach(connection, None);
        let options = CallOptions {
            auth_token: Some(token.expose().to_owned()),
            ..CallOptions::default()
        };
        let answer = client.call_with("node/metrics", &Value::Null, &options);
        answer.await
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("it is there")
    }

    /// Waits until the log has a line with all of these texts.
    fn wait_for(&self, parts: &[&str]) -> String {
        eventually(&format!("a line with {parts:?}"), HUNG, || {
            let log = self.log();
            let mut lines = log.lines();
            let found = lines.find(|line| parts.iter().all(|part| line.contains(part)));
            found.map(str::to_owned).ok_or(log)
        })
    }
}

impl Drop for LoggedNode {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A certificate for `name`, by OpenSSL. Returns the lines that name both files.
fn certificate(folder: &Path, name: &str) -> String {
    let (chain, key) = (
        folder.join(format!("{name}.pem")),
        folder.join(format!("{name}.key")),
    );
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "30", "-subj", "/CN=test"])
        .args(["-addext", &format!("subjectAltName=DNS:{name}")])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&chain)
        .stderr(Stdio::null())
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "openssl: cargo xtask setup installs it"
    );
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("the folder is ours");
    format!(
        "[[tls.files]]\nchain = \"{}\"\nkey = \"{}\"\n",
        chain.display(),
        key.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn log_metrics_and_problems_of_a_node_hold_no_secret() {
    let bench = TestBench::new();
    let token = AuthToken::generate().expect("randomness");
    let hash = token.hash().expect("a token").to_string();
    let (key_id, sha256) = hash.split_once(':').expect("the form of a hash");
    let good = certificate(bench.path(), "good.test");
    let bad = certificate(bench.path(), "bad.test");
    fs::write(bench.path().join("bad.test.pem"), "no certificate").expect("the folder is ours");
    let served = LoggedNode::start(
        bench,
        &format!(
            "{good}{bad}[[api_keys]]\nkey_id = \"{key_id}\"\nsha256 = \"{sha256}\"\n\
             scopes = [\"metrics:read\"]\n"
        ),
    );

    // A certificate that cannot be served is a problem, and a served one shows its end.
    let info = served.wait_for_problems();
    let problem = &info["problems"][0];
    assert_eq!(problem["code"], "tls-cert-reload-failed", "{info:#}");
    let text = problem["text"].as_str().unwrap_or_default();
    assert!(
        text.contains("bad.test.pem") && problem["hint"] != "",
        "{info:#}"
    );

    // Only the code, to a client that proves no identity.
    let (_, address) = served.target.split_once('@').expect("where it serves");
    let health = curl(&format!("https://{address}/healthz"), &[]);
    let said = (health.status, health.text());
    assert_eq!(said, (503, "degraded: tls-cert-reload-failed\n".to_owned()));

    let unknown_peer = served.bench.user("unknown-peer");
    let refused = unknown_peer.call(&served.target, "node/metrics", &Value::Null, &[]);
    assert_eq!(refused.code(), "UNAUTHENTICATED");
    let wrong = AuthToken::generate().expect("randomness");
    let refused = served.metrics(&unknown_peer, &wrong).await;
    let refused = refused.expect_err("a wrong token");
    assert_eq!(refused.code.name(), "UNAUTHENTICATED");
    let told = served
        .metrics(&unknown_peer, &token)
        .await
        .expect("allowed");
    let told = told.value();
    let values = &told["values"];
    let end = values["alknet_cert_expiry_seconds{name=\"good.test\"}"].as_f64();
    assert!(end > Some(1.7e9), "{values:#}");
    for series in values.as_object().expect("by series").keys() {
        assert_known_labels(series, &[("name", "good.test")]);
    }
    assert_eq!(values["alknet_config_generation"], json!(1.0));
    for bytes in ["alknet_resident_bytes", "alknet_resident_peak_bytes"] {
        assert!(values[bytes].as_f64() > Some(0.0), "{bytes}: {values:#}");
    }
    assert_eq!(
        values["alknet_auth_total{method=\"token\",result=\"refused\"}"],
        json!(1.0)
    );

    let line = served.wait_for(&["conn.close", "peer=admin"]);
    for part in [
        "dur=",
        "rx=",
        "tx=",
        "streams=",
        "code=0",
        "addr=127.0.0.1:",
        "key8=",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }

    let file = |path: &str| fs::read(served.bench.path().join(path)).expect("it is there");
    let pem = String::from_utf8(file("good.test.key")).expect("PEM is text");
    let pem = pem.lines().nth(1).expect("a key").to_owned();
    let mut secrets = vec![
        token.expose()[13..].to_owned(),
        wrong.expose()[13..].to_owned(),
        pem,
    ];
    for key in [
        "host/identity/node.key",
        "admin/identity.key",
        "unknown-peer/identity.key",
    ] {
        let seed = file(key);
        secrets.extend([HEXLOWER.encode(&seed), BASE64.encode(&seed)]);
    }
    let told = told.to_string() + &info.to_string() + &served.log();
    for secret in secrets {
        assert!(!told.contains(&secret), "{secret} in {told}");
    }
}

#[test]
fn addresses_are_hashed_where_that_is_asked_for() {
    let served = LoggedNode::start(TestBench::new(), "log.hash_addresses = true\n");
    served.call("node/info");
    let line = served.wait_for(&["conn.open", "peer=admin"]);
    assert!(line.contains(" addr=#"), "{line}");
    let log = served.log();
    let said = log.lines().filter(|line| line.contains("conn."));
    assert!(
        said.clone().count() > 0 && said.clone().all(|l| !l.contains("127.0.0.1")),
        "{log}"
    );
}
