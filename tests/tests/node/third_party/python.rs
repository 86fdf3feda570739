//! The clients printed in the documentation run unchanged against every kind of node. Their tests are in
//! `tests/clients/suite.py`.

use std::path::PathBuf;
use std::process::{Command, Output};

use alknet_test_support::limited;
use alknet_tests::tools::run_with_json;
use alknet_tests::{BootVariant, CliRunner, PemKeyFiles, TestBench};
use serde_json::{Value, json};

use super::PATIENCE;
use super::service::ForeignClientNode;

/// Variable with the path of the clients' Python dependencies, which the set-up puts into the cache.
const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";

/// A shader multiplies [[1, 2], [3, 4]] by [1, 2]. An emulated processor needs a quarter of a minute to translate
/// the shader compiler. On a machine, `tests/tests/machine/computing.rs` therefore runs the clients with a product.
const PRODUCT: &str = r#"{
    "a": { "inline": "AACAPwAAAEAAAEBAAACAQA==", "dtype": "F32", "shape": [2, 2] },
    "b": { "inline": "AACAPwAAAEA=", "dtype": "F32", "shape": [2, 1] },
    "variant": "wgsl"
}"#;

/// Tests that need only operations of every node.
const EVERYWHERE: [&str; 7] = [
    "lists_and_describes",
    "errors_have_types",
    "many_calls_at_once_find_their_answers",
    "subscriptions_begin_and_are_given_up",
    "tokens_identify_an_unknown_client",
    "what_is_too_long_ends_the_stream",
    "a_quic_stream_may_carry_one_request",
];

/// Tests that need operations made for them.
const SERVICE: [&str; 9] = [
    "ten_thousand_items_wait_for_a_slow_reader",
    "what_is_given_up_ends_at_the_node",
    "a_slow_call_delays_no_other",
    "a_keyed_mutation_runs_once",
    "the_node_calls_back",
    "errors_of_an_operation_have_their_code",
    "long_values_arrive_whole",
    "binary_data_travels_beside_the_json",
    "a_reset_gives_a_call_up",
];

/// Tests among these that need QUIC.
const OF_QUIC: [&str; 2] = [
    "a_quic_stream_may_carry_one_request",
    "a_reset_gives_a_call_up",
];

/// A client of the documentation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PythonClient {
    Tls,
    Quic,
}

impl PythonClient {
    const BOTH: [Self; 2] = [Self::Tls, Self::Quic];

    fn path(self) -> PathBuf {
        let name = match self {
            Self::Tls => "call_tls.py",
            Self::Quic => "call_quic.py",
        };
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../docs/examples")
            .join(name)
    }

    /// Runs the client as a person at a terminal does.
    fn run(self, words: &[&str]) -> Output {
        let mut command = python();
        command.arg(self.path()).args(words);
        command.output().expect("timeout is part of every Debian")
    }

    /// Runs these tests of the suite with the client, and asserts that they pass.
    fn passes(self, facts: &Value, tests: &[&str]) {
        let fits = |test: &&str| matches!(self, Self::Quic) || !OF_QUIC.contains(test);
        let tests: Vec<_> = tests.iter().copied().filter(fits).collect();
        let suite = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/suite.py");
        let mut command = python();
        command.arg(suite).arg(self.path()).args(&tests);
        let output = run_with_json(&mut command, facts);
        let said = String::from_utf8_lossy(&output.stdout);
        let passed: Vec<_> = said.lines().map(|l| l.trim_start_matches("ok ")).collect();
        let why = String::from_utf8_lossy(&output.stderr);
        assert_eq!(passed, tests, "{self:?}: {why}");
        assert!(output.status.success(), "{self:?}: {why}");
    }
}

fn python() -> Command {
    let packages = std::env::var_os(PACKAGES_VARIABLE).unwrap_or_else(|| {
        panic!("{PACKAGES_VARIABLE} is not set; run these tests with `cargo xtask test`")
    });
    let mut command = limited(PATIENCE, "python3");
    command
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn line(output: &Output) -> Value {
    let said = serde_json::from_slice(&output.stdout);
    said.unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Runs both clients from the command line against a node of this administrator. With `computes`, they also ask for
/// a product.
fn serves_python(pem: &PemKeyFiles, target: &str, computes: bool) {
    for client in PythonClient::BOTH {
        let listed = line(&client.run(&[target, "services/list"]));
        assert!(listed["operations"].is_array(), "{listed}");
        let refused = client.run(&[target, "node/info"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let error: Value = serde_json::from_slice(&refused.stderr).expect("the error");
        assert_eq!(error["code"], "UNAUTHENTICATED");

        let certificate = pem.certificate.to_str().expect("a plain path");
        let info = line(&client.run(&[target, "node/info", "--cert", certificate]));
        let identity = info["identity"].as_str().expect("an identity");
        assert!(target.starts_with(identity), "{info}");
        if computes {
            let words = [target, "compute/matmul", PRODUCT, "--cert", certificate];
            let product = line(&client.run(&words));
            assert_eq!(product["product"]["inline"], "AACgQAAAMEE=", "{product}");
        }
        let log = client.run(&[
            target,
            "node/log",
            r#"{"last":2}"#,
            "--follow",
            "--cert",
            certificate,
        ]);
        let records = log.stdout.split(|byte| *byte == b'\n');
        assert_eq!(
            records.filter(|line| !line.is_empty()).count(),
            2,
            "{log:?}"
        );

        let (_, address) = target.split_once('@').expect("a pinned target");
        let other = format!("ed25519:{}@{address}", "ab".repeat(32));
        let refused = client.run(&[&other, "services/list"]);
        let why = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(
            (refused.status.code(), refused.stdout.len()),
            (Some(1), 0),
            "{refused:?}"
        );
        assert!(why.contains("does not hold the pinned key"), "{why}");
    }
}

/// Makes a token, and returns it with the configuration lines that admit it.
fn token(admin: &CliRunner, scopes: &[&str]) -> (Value, String) {
    let mut command = Command::new(alknet_tests::binary());
    command.args(["token", "new", "--json"]);
    let made = admin.run(command).json();
    let (key_id, sha256) = (&made["key_id"], &made["sha256"]);
    let entry =
        format!("[[api_keys]]\nkey_id = {key_id}\nsha256 = {sha256}\nscopes = {scopes:?}\n");
    (made, entry)
}

/// The facts that the suite needs about a node of this administrator.
fn facts(name: &str, target: &str, pem: &PemKeyFiles, token: &Value) -> Value {
    let key_id = token["key_id"].as_str().expect("a name");
    json!({
        "name": name,
        "target": target,
        "cert": pem.certificate,
        "query": "node/info",
        "token": token["token"],
        "token_id": format!("key:{key_id}"),
        "token_scopes": ["peer:list"],
    })
}

#[test]
fn python_calls_the_host() {
    let bench = TestBench::new();
    let (admin, node) = (bench.admin(), bench.host());
    let pem = PemKeyFiles::from_cli(admin);
    serves_python(&pem, node.target(), true);
    let (token, entry) = token(admin, &["peer:list"]);
    let document = format!("node.admin_keys = [\"{}\"]\n{entry}", admin.identity());
    node.call("config/apply", &json!({ "document": document }));
    for client in PythonClient::BOTH {
        client.passes(&facts("host", node.target(), &pem, &token), &EVERYWHERE);
    }
}

#[test]
fn python_calls_the_appliance() {
    let bench = TestBench::new();
    let node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    let (token, entry) = token(bench.admin(), &["peer:list"]);
    let document = format!(
        "node.admin_keys = [\"{}\"]\n{entry}",
        bench.admin().identity()
    );
    node.call("config/apply", &json!({ "document": document }));
    // The clients set no deadline. These calls make the emulated processor translate the code before the clients
    // need it.
    for operation in ["services/list", "node/info"] {
        node.call(operation, &Value::Null);
    }
    let pem = PemKeyFiles::from_cli(bench.admin());
    serves_python(&pem, &node.target(), false);
    for client in PythonClient::BOTH {
        client.passes(
            &facts("appliance", &node.target(), &pem, &token),
            &EVERYWHERE,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_uses_everything_the_protocol_has() {
    let bench = TestBench::new();
    let (admin, other) = (bench.admin(), bench.user("other"));
    let (token, entry) = token(admin, &["peer:list", "demo"]);
    let service = ForeignClientNode::start(&[(admin, "demo"), (&other, "else")], &entry);
    let (pem, others) = (PemKeyFiles::from_cli(admin), PemKeyFiles::from_cli(&other));
    for client in PythonClient::BOTH {
        let mut facts = facts(&format!("{client:?}"), &service.target(), &pem, &token);
        facts["query"] = json!("demo/state");
        facts["token_scopes"] = json!(["demo", "peer:list"]);
        facts["other"] = json!(others.certificate);
        let tests = [&EVERYWHERE[..], &SERVICE].concat();
        tokio::task::block_in_place(|| client.passes(&facts, &tests));
    }
}

/// The clients refuse these arguments before they connect to a node.
#[test]
fn the_clients_refuse_nonsense() {
    for client in PythonClient::BOTH {
        for nonsense in [&[][..], &["--cert"], &["somewhere", "services/list"]] {
            let refused = client.run(nonsense);
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            assert!(!refused.stderr.is_empty(), "{refused:?}");
        }
    }
}

/// The documentation promises a maximum length and the modules that the clients need.
#[test]
fn the_clients_are_short_and_need_little() {
    for (client, needs) in [
        (PythonClient::Tls, &[][..]),
        (
            PythonClient::Quic,
            &[
                "aioquic.asyncio",
                "aioquic.quic.configuration",
                "aioquic.quic.events",
                "contextlib",
            ],
        ),
    ] {
        let text = std::fs::read_to_string(client.path()).expect("it is there");
        assert!(text.lines().count() < 80, "{client:?}");
        let standard = text.lines().find(|line| line.starts_with("import "));
        assert_eq!(
            standard,
            Some("import asyncio, getopt, itertools, json, re, ssl, sys")
        );
        let mut from: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("from ")?.split(' ').next())
            .collect();
        from.sort_unstable();
        assert_eq!(from, needs, "{client:?}");
    }
}
