//! `alknet call` with more than one call: several nodes, and files of calls; and the times that `alknet js run` gives a
//! script. The tests also use the client library over real sockets.

use std::sync::Arc;

use alknet_call::{CallClient, DialCredentials, ReconnectingClient, RegistryChange};
use alknet_core::{Carriage, PeerAddr};
use alknet_endpoint::EndpointDialer;
use alknet_tests::{CliOutput, CliRunner, TestBench};
use alknet_tls::NodeKey;
use serde_json::{Value, json};

fn run(cli: &CliRunner, words: &[&str]) -> CliOutput {
    cli.run(cli.command(words))
}

fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).expect("one JSON value a line");
    text.lines().map(parse).collect()
}

#[test]
fn a_script_computes_for_the_time_that_the_command_gives_it() {
    let bench = TestBench::new();
    let node = bench.host();
    let script = bench.path().join("busy.js");
    std::fs::write(&script, "for (;;);").expect("the folder is ours");
    let busy = script.to_string_lossy();
    let words = ["js", "run", node.target(), &busy];
    let run_with = |more: [&str; 2]| run(bench.admin(), &[&words[..], &more].concat());
    // It has all fuel that it may have, so that the time ends it.
    let ended = run_with(["--cpu", "0.2"]);
    assert_eq!(ended.code(), "TIMEOUT", "{ended:?}");
    let refused = run_with(["--timeout", "2h"]);
    assert_eq!((refused.status, refused.code().as_str()), (2, "USAGE"));
    assert!(refused.errors.contains("1h at most"), "{refused:?}");
}

#[test]
fn an_input_that_is_missing_or_too_much_is_called_so() {
    let bench = TestBench::new();
    let node = bench.host();
    for (words, said) in [
        (&["runtime/eval"][..], "the operation needs an input"),
        (
            &["node/info", "{\"x\":1}"],
            "the operation takes no input: leave it out",
        ),
    ] {
        let refused = run(bench.admin(), &[&["call", node.target()], words].concat());
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (2, "INVALID_INPUT")
        );
        let shows = format!("'alknet ops show {}' prints what", words[0]);
        for said in [said, &shows] {
            assert!(refused.errors.contains(said), "{refused:?}");
        }
    }
}

#[test]
fn the_calls_of_a_file_are_answered_in_its_order() {
    let bench = TestBench::new();
    let node = bench.host();
    let (admin, target) = (bench.admin(), node.target());
    let file = bench.path().join("calls.jsonl");
    let calls = [
        json!({ "operation": "node/info" }),
        json!({ "operation": "no/such-operation" }),
        json!({ "operation": "/services/schema", "input": { "name": "node/info" } }),
        json!({ "operation": "node/info", "input": { "unknown": 1 }, "timeout_ms": 60_000 }),
    ];
    let text: Vec<_> = calls.iter().map(|call| format!("{call}\n\n")).collect();
    std::fs::write(&file, text.concat()).expect("the folder is ours");
    let answer = run(admin, &["call", target, "--batch", &file.to_string_lossy()]);
    assert_eq!(answer.status, 1, "as the first that failed: {answer:?}");
    let said = lines(&answer.output);
    assert_eq!(said.len(), calls.len(), "{answer:?}");
    assert!(said[0]["output"]["identity"].is_string(), "{answer:?}");
    assert_eq!(said[1]["error"]["code"], "NOT_FOUND");
    assert_eq!(said[2]["output"]["name"], "node/info");
    assert_eq!(said[3]["error"]["code"], "INVALID_INPUT");
    for (said, call) in said.iter().zip(&calls) {
        assert_eq!(said["operation"], call["operation"]);
    }
    // The file has more calls than a node accepts at the same time.
    let many = "{\"operation\":\"services/list\"}\n".repeat(600);
    std::fs::write(&file, many).expect("the folder is ours");
    let mut command = admin.command(&["call", target, "--batch", "-"]);
    command.stdin(std::fs::File::open(&file).expect("it was just written"));
    let answer = admin.run(command);
    assert_eq!((answer.status, answer.output.lines().count()), (0, 600));
    std::fs::write(&file, "node/info\n").expect("the folder is ours");
    let answer = run(admin, &["call", target, "--batch", &file.to_string_lossy()]);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (2, "USAGE"),
        "{answer:?}"
    );
}

#[test]
fn several_nodes_are_called_at_once() {
    let bench = TestBench::new();
    let node = bench.host();
    let (admin, target) = (bench.admin(), node.target());
    let answer = run(admin, &["call", target, "node/info", "--also", target]);
    assert_eq!(answer.status, 0, "{answer:?}");
    let said = lines(&answer.output);
    assert_eq!(said.len(), 2, "{answer:?}");
    assert!(
        said.iter()
            .all(|said| said["target"] == target && said["output"].is_object())
    );
    // The node at the second target does not have the pinned key. Only the call to that target fails.
    let (_, address) = target.split_once('@').expect("a pinned target");
    let wrong = format!("{}@{address}", admin.identity());
    let answer = run(
        admin,
        &[
            "call",
            target,
            "node/log",
            r#"{"last":1}"#,
            "--also",
            &wrong,
        ],
    );
    assert_eq!(answer.status, 3, "{answer:?}");
    assert_eq!(lines(&answer.output).len(), 1, "{answer:?}");
    let error = &lines(&answer.errors)[0];
    assert_eq!(error["error"]["code"], "PIN_MISMATCH");
    assert_eq!(error["target"], wrong);
}

/// The error of one node says the same.
#[test]
fn an_unknown_key_is_explained_for_each_of_several_nodes() {
    let bench = TestBench::new();
    let node = bench.host();
    let (unknown, target) = (bench.user("unknown"), node.target());
    let refused = run(&unknown, &["call", target, "node/info", "--also", target]);
    assert_eq!(refused.status, 4, "{refused:?}");
    let said = lines(&refused.errors);
    assert_eq!(said.len(), 2, "{refused:?}");
    for said in said {
        assert_eq!(said["error"]["code"], "UNAUTHENTICATED", "{refused:?}");
        let message = said["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("This command made the key"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_dials_through_cores_trait() {
    let bench = TestBench::new();
    let node = bench.host();
    let key = NodeKey::load_or_create(&bench.admin().state().join("identity.key"));
    let dialer = match key {
        Ok((key, _)) => EndpointDialer::new(Some(key)),
        Err(error) => panic!("{error}"),
    };
    let client = CallClient::without_operations().with_dialer(Arc::new(dialer));
    let addr: PeerAddr = node.target().parse().expect("a target");
    for carriage in [Carriage::Both, Carriage::Quic, Carriage::Tcp] {
        let credentials = DialCredentials {
            carriage,
            ..DialCredentials::default()
        };
        let peer = ReconnectingClient::start(client.clone(), addr.clone(), credentials, None);
        let listed = peer.call("services/list", &Value::Null).await;
        let listed = listed.expect("an answer").value()["registry"].clone();
        let mut watch = peer
            .subscribe("services/watch", &Value::Null)
            .await
            .expect("started");
        let first = watch.next().await.expect("more").expect("an event");
        let first: RegistryChange = first.output.parse().expect("a change");
        assert_eq!(json!(first.registry), listed, "{carriage}");
    }
}
