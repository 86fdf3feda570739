//! Tokens of programs: made, listed and revoked while the node runs.

use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallConnection, CallOptions, ErrorCode};
use alknet_core::{AuthToken, Carriage, CloseReason, Connection};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{CliOutput, CliRunner, HostNode, TestBench};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::time::timeout;

/// How long anything may take before the test counts as hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

fn token(who: &CliRunner, verb: &str, node: &HostNode, more: &[&str]) -> CliOutput {
    let mut command = who.command(&["token", verb, node.target()]);
    command.args(more);
    who.run(command)
}

fn made(who: &CliRunner, node: &HostNode, more: &[&str]) -> (String, String) {
    let answer = token(who, "make", node, more).json();
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    (text("token"), text("key_id"))
}

/// Connects over TCP without a key, as a program without a key does.
async fn unknown_peer(node: &HostNode) -> (EndpointDialer, Connection, CallConnection) {
    let dialer = EndpointDialer::new(None);
    let target: Target = node.target().parse().expect("a target");
    let connection = dialer.dial_over(Carriage::Tcp, &target, ALPN).await;
    let connection = connection.unwrap_or_else(|error| panic!("{error}"));
    let client = CallClient::without_operations().attach(connection.clone(), None);
    (dialer, connection, client)
}

async fn code(client: &CallConnection, token: &str, operation: &str, input: &Value) -> String {
    let options = CallOptions {
        auth_token: Some(token.to_owned()),
        ..CallOptions::default()
    };
    match client.call_with(operation, input, &options).await {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.code.name().to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_from_when_it_is_made_until_it_is_taken_back() {
    let bench = TestBench::new();
    let (node, admin) = (bench.host(), bench.admin());
    let scopes = [
        "--scope",
        "peer:list",
        "--expires",
        "1h",
        "--note",
        "the hall",
    ];
    let (text, key_id) = made(admin, &node, &scopes);
    assert!(text.starts_with(&format!("alk_{key_id}_")), "{key_id}");
    let (_dialer, _connection, client) = unknown_peer(&node).await;
    for (operation, expected) in [("peer/list", "ok"), ("node/metrics", "FORBIDDEN")] {
        assert_eq!(
            code(&client, &text, operation, &Value::Null).await,
            expected
        );
    }
    // It is not an administrator's token, so it cannot make others.
    let more = json!({ "scopes": ["peer:list"] });
    assert_eq!(code(&client, &text, "token/make", &more).await, "FORBIDDEN");

    let listed = token(admin, "list", &node, &[]);
    assert!(!listed.output.contains(&text[13..]), "no secret is listed");
    let listed = listed.json();
    let one = &listed["tokens"][0];
    assert_eq!(
        (&one["key_id"], &one["holder"], &one["source"], &one["note"]),
        (
            &json!(key_id),
            &json!(format!("key:{key_id}")),
            &json!("store"),
            &json!("the hall")
        )
    );
    assert!(
        one["expires"].is_string() && one["created_by"] == "admin",
        "{one}"
    );
    assert!(one["last_used"].is_string(), "it was used: {one}");

    // A connection that depends on it ends with it.
    let (_other, live, session) = unknown_peer(&node).await;
    session
        .authenticate(&AuthToken::new(text.clone()))
        .await
        .expect("a good token");
    let revoked = token(admin, "revoke", &node, &[&key_id]);
    assert_eq!(revoked.json()["revoked"], true);
    let ended = timeout(hung(), live.closed()).await;
    assert!(matches!(ended, Ok(CloseReason::Peer(..))), "{ended:?}");
    assert_eq!(
        code(&client, &text, "peer/list", &Value::Null).await,
        "UNAUTHENTICATED"
    );
    let again = token(admin, "revoke", &node, &[&key_id]);
    assert_eq!((again.status, again.code().as_str()), (1, "NOT_FOUND"));
    assert_eq!(token(admin, "list", &node, &[]).json()["tokens"], json!([]));
}

#[test]
fn a_name_that_no_token_has_is_answered_with_the_tokens_that_there_are() {
    let bench = TestBench::new();
    let (node, admin) = (bench.host(), bench.admin());
    let (_, key_id) = made(admin, &node, &["--scope", "peer:list"]);
    for verb in ["remove", "show"] {
        let refused = token(admin, verb, &node, &["bob"]);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (1, "NOT_FOUND"),
            "{refused:?}"
        );
        let says = |what: &str| refused.errors.contains(what);
        assert!(
            says("no token 'bob'") && says("alknet token list"),
            "{refused:?}"
        );
        assert!(verb == "show" || says(&key_id), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_caller_makes_a_token_with_more_rights_than_its_own() {
    let bench = TestBench::new();
    let (node, admin) = (bench.host(), bench.admin());
    let (text, _) = made(admin, &node, &["--scope", "admin", "--scope", "fs:*"]);
    let (_dialer, _connection, client) = unknown_peer(&node).await;
    for (scopes, expected) in [
        (json!(["admin", "fs:read"]), "ok"),
        (json!(["*"]), "FORBIDDEN"),
        (json!(["node:read"]), "FORBIDDEN"),
        (json!(["a b"]), "INVALID_INPUT"),
    ] {
        let input = json!({ "scopes": scopes });
        assert_eq!(
            code(&client, &text, "token/make", &input).await,
            expected,
            "{scopes}"
        );
    }
    let held = json!({ "scopes": [], "resources": { "fs": ["docs"] } });
    assert_eq!(code(&client, &text, "token/make", &held).await, "FORBIDDEN");
    // No token outlives its maker, even if that was requested.
    let (short, _) = made(admin, &node, &["--scope", "admin", "--expires", "1h"]);
    let long = json!({ "scopes": ["admin"], "ttl_s": 7200 });
    assert_eq!(
        code(&client, &short, "token/make", &long).await,
        "FORBIDDEN"
    );
    let options = CallOptions {
        auth_token: Some(short),
        ..CallOptions::default()
    };
    let input = json!({ "scopes": ["admin"] });
    let child = client.call_with("token/make", &input, &options).await;
    assert!(child.expect("less than an hour").value()["expires"].is_string());
    let unknown = client.call("token/list", &Value::Null).await;
    assert_eq!(
        unknown.expect_err("an unknown peer").code,
        ErrorCode::Unauthenticated
    );
}

/// A configuration with one token that has this right, in the form for `config/apply`.
fn with_token(admin: &str, token: &AuthToken, scopes: &[&str]) -> Value {
    let hash = token.hash().expect("a token").to_string();
    let (key_id, sha256) = hash.split_once(':').expect("the form of a hash");
    let document = format!(
        "node.admin_keys = [\"{admin}\"]\n[[api_keys]]\nkey_id = \"{key_id}\"\n\
         sha256 = \"{sha256}\"\nscopes = {scopes:?}\n"
    );
    json!({ "document": document })
}

/// Its lines call with the rights with which it was opened. They must not exceed those of the peer
/// that sends the lines.
#[tokio::test(flavor = "multi_thread")]
async fn a_repl_ends_with_the_rights_that_it_was_opened_with() {
    let bench = TestBench::new();
    let (node, admin) = (bench.host(), bench.admin());
    let token = AuthToken::generate().expect("the system has entropy");
    let admin = admin.identity();
    let grant = |scopes: &[&str]| node.call("config/apply", &with_token(&admin, &token, scopes));
    grant(&["runtime:debug", "peer:list"]);
    let (_dialer, _connection, client) = unknown_peer(&node).await;
    client.authenticate(&token).await.expect("a good token");
    let line = json!({ "repl": "kept", "source": "(await ops.call('peer/list', {})).generation" });
    let line = async || client.call("runtime/eval", &line).await;
    line().await.expect("it may");
    line().await.expect("it is the same");
    grant(&["runtime:debug"]);
    let ended = line().await.expect_err("it may no more");
    assert_eq!(ended.code, ErrorCode::Forbidden, "{ended}");
    // A line of the peer's own script still runs: that of another REPL, with its owner's rights.
    let refused = line().await.expect_err("what it calls is refused");
    assert_eq!(refused.code.name(), "SCRIPT_FAILED", "{refused}");
    grant(&["runtime:debug", "peer:list"]);
    let refused = line().await.expect_err("it was opened with less");
    assert_eq!(refused.code.name(), "SCRIPT_FAILED", "{refused}");
}

/// An administrator takes a peer's entry away, and gives its id, with the same rights, to another key.
#[test]
fn a_repl_ends_with_the_peer_that_opened_it() {
    let bench = TestBench::new();
    let (node, admin) = (bench.host(), bench.admin().identity());
    let [old, new] = ["old", "new"].map(|name| bench.user(name));
    let holds = |who: &CliRunner| {
        let document = format!(
            "node.admin_keys = [\"{admin}\"]\n[[peers]]\npeer_id = \"edge\"\n\
             keys = [\"{}\"]\nscopes = [\"runtime:debug\"]\n",
            who.identity()
        );
        node.call("config/apply", &json!({ "document": document }));
    };
    let line = |who: &CliRunner, source: &str| {
        let line = json!({ "repl": "kept", "source": source });
        let mut ran = who.call(node.target(), "runtime/eval", &line, &[]).json();
        ran["value"].take()
    };
    let seen = "typeof secret";
    holds(&old);
    assert_eq!(line(&old, "globalThis.secret = 42"), 42);
    assert_eq!(line(&old, seen), "number");
    holds(&new);
    assert_eq!(line(&new, seen), "undefined");
    assert_eq!(line(&new, "globalThis.secret = ''"), "");
    assert_eq!(line(&new, seen), "string");
}

/// The holder of a token calls continuously over its connection while the token loses scopes, and
/// once more after the change was answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_less_from_the_answer_on_that_its_token_has() {
    const ROUNDS: usize = 30;
    const RACING: usize = 16;
    let bench = TestBench::new();
    let (node, admin) = (bench.host(), bench.admin());
    let token = AuthToken::generate().expect("the system has entropy");
    let key = NodeKey::load_or_create(&admin.state().join("identity.key"));
    let dialer = EndpointDialer::new(Some(key.expect("it has one").0));
    let target: Target = node.target().parse().expect("a target");
    let connection = dialer.dial(&target, ALPN).await.expect("it is known");
    let boss = CallClient::without_operations().attach(connection, None);
    let admin = admin.identity();
    let grant = async |scope: &str| {
        let input = with_token(&admin, &token, &[scope]);
        let applied = boss.call("config/apply", &input).await;
        applied.expect("an administrator may");
    };
    grant("peer:list").await;
    let (_dialer, _connection, client) = unknown_peer(&node).await;
    client.authenticate(&token).await.expect("a good token");
    let list = async |client: CallConnection| client.call("peer/list", &Value::Null).await;
    for round in 0..ROUNDS {
        list(client.clone()).await.expect("allowed");
        let race = |_| {
            let client = client.clone();
            tokio::spawn(async move {
                loop {
                    if let Err(refused) = client.call("peer/list", &Value::Null).await {
                        break refused.code;
                    }
                }
            })
        };
        let racing: Vec<_> = (0..RACING).map(race).collect();
        grant("metrics:read").await;
        let refused = list(client.clone()).await.expect_err("it was answered");
        assert_eq!(refused.code, ErrorCode::Forbidden, "{round}");
        for call in racing {
            let code = timeout(hung(), call).await.expect("in time");
            assert_eq!(code.expect("no panic"), ErrorCode::Forbidden, "{round}");
        }
        grant("peer:list").await;
    }
}

/// An administrator who is about to be removed makes a token, and so does a token that is about to
/// be revoked.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_with_its_maker() {
    let bench = TestBench::new();
    let (admin, second) = (bench.admin(), bench.user("second"));
    let config = format!("[node]\nadmin_keys = [\"{}\"]\n", second.identity());
    let list = ["--scope", "peer:list"];
    let of_second = {
        let node = bench.host_with(&config);
        let (of_second, _) = made(&second, &node, &list);
        let (maker, maker_id) = made(admin, &node, &["--scope", "admin", "--scope", "peer:list"]);
        let (_dialer, _connection, client) = unknown_peer(&node).await;
        let options = CallOptions {
            auth_token: Some(maker),
            ..CallOptions::default()
        };
        let input = json!({ "scopes": ["peer:list"] });
        let child = client.call_with("token/make", &input, &options).await;
        let child = child.expect("it may").value()["token"]
            .as_str()
            .expect("a token")
            .to_owned();
        let ask = async |token: &str| code(&client, token, "peer/list", &Value::Null).await;
        assert_eq!(
            (ask(&of_second).await, ask(&child).await),
            ("ok".into(), "ok".into())
        );
        token(admin, "revoke", &node, &[&maker_id]).json();
        assert_eq!(ask(&child).await, "UNAUTHENTICATED");
        assert_eq!(ask(&of_second).await, "ok");
        of_second
    };
    // Another document, without the second one.
    let node = bench.host_with("");
    let (_dialer, _connection, client) = unknown_peer(&node).await;
    let asked = code(&client, &of_second, "peer/list", &Value::Null).await;
    assert_eq!(asked, "UNAUTHENTICATED");
    let left = token(admin, "list", &node, &[]).json();
    let left = left["tokens"].as_array().expect("a list");
    let gone: Vec<_> = left.iter().map(|one| &one["maker_gone"]).collect();
    assert_eq!(gone, [&json!(true)], "{left:?}");
}

/// The holder of a token that ends within the hour has every right. What the holder gives a peer, which may be the
/// holder's own, ends no later.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_token_that_ends_gives_no_peer_access_without_an_end() {
    let bench = TestBench::new();
    let (node, admin) = (bench.host(), bench.admin());
    let [key, other] = ["ada", "bob"].map(|name| bench.user(name).identity());
    let add = ["peer", "add", node.target(), "ada", "--key", &key];
    let mut add = admin.command(&add);
    add.args(["--scope", "peer:list"]);
    admin.run(add).json();
    let (short, _) = made(admin, &node, &["--scope", "*", "--expires", "1h"]);
    let (_dialer, _connection, client) = unknown_peer(&node).await;
    let set = async |input: Value| code(&client, &short, "peer/set", &input).await;
    for gives in [
        json!({ "peer": "ada", "keys": [key, other] }),
        json!({ "peer": "ada", "scopes": ["node:read"] }),
        json!({ "peer": "ada", "ttl_s": 7200 }),
    ] {
        assert_eq!(set(gives.clone()).await, "FORBIDDEN", "{gives}");
    }
    // Every caller may take rights away, and give them back until the caller's own end.
    let enabled = |enabled: bool| json!({ "peer": "ada", "enabled": enabled });
    assert_eq!(set(enabled(false)).await, "ok");
    assert_eq!(set(enabled(true)).await, "FORBIDDEN");
    let until_then = json!({ "peer": "ada", "enabled": true, "ttl_s": null });
    assert_eq!(set(until_then).await, "ok");
    let listed = node.call("peer/list", &Value::Null);
    let mut peers = listed["peers"].as_array().expect("a list").iter();
    let ada = peers.find(|peer| peer["peer_id"] == "ada");
    let ada = ada.expect("it is known");
    assert!(ada["expires"].is_string(), "{ada:#}");
    assert_eq!(ada["keys"].as_array().map(Vec::len), Some(1), "{ada:#}");
}

/// A client with a token of the least scope connects as a known peer.
#[tokio::test(flavor = "multi_thread")]
async fn the_least_token_keeps_no_administrator_out() {
    const PLACES: usize = 32;
    let bench = TestBench::new();
    let limits = format!(
        "[limits]\nconnections = {PLACES}\nhandshake_burst = 1000\nhandshakes_per_second = 1000\n"
    );
    let (node, admin) = (bench.host_with(&limits), bench.admin());
    let (least, _) = made(admin, &node, &["--scope", "metrics:read"]);
    let least = AuthToken::new(least);
    let target: Target = node.target().parse().expect("a target");
    let dialer = EndpointDialer::new(None);
    let (mut kept, mut in_it) = (Vec::new(), 0);
    for _ in 0..PLACES * 3 {
        // Those without a connection slot are ended.
        let Ok(connection) = dialer.dial_over(Carriage::Tcp, &target, ALPN).await else {
            continue;
        };
        let client = CallClient::without_operations().attach(connection, None);
        in_it += usize::from(client.authenticate(&least).await.is_ok());
        kept.push(client);
    }
    assert!(in_it >= PLACES / 2, "{in_it} got in");
    for carriage in ["quic", "tcp"] {
        let more = ["--carriage", carriage];
        let info = admin.call(node.target(), "node/info", &Value::Null, &more);
        assert_eq!(info.status, 0, "{carriage}: {info:?}");
    }
}

#[test]
fn tokens_outlive_the_node_and_those_of_the_configuration_are_its_own() {
    let bench = TestBench::new();
    let (hash, id) = ("03".repeat(32), "monitor0");
    let config = format!("[[api_keys]]\nkey_id = \"{id}\"\nsha256 = \"{hash}\"\n");
    let key_id = {
        let node = bench.host_with(&config);
        let refused = token(bench.admin(), "revoke", &node, &[id]);
        assert_eq!((refused.status, refused.code().as_str()), (1, "CONFLICT"));
        assert!(refused.errors.contains("configuration"), "{refused:?}");
        made(
            bench.admin(),
            &node,
            &["--scope", "peer:list", "--expires", "never"],
        )
        .1
    };
    let node = bench.host_with(&config);
    let listed = token(bench.admin(), "list", &node, &[]).json();
    let tokens = listed["tokens"].as_array().expect("a list");
    let source = |id: &str| {
        tokens
            .iter()
            .find(|one| one["key_id"] == id)
            .map(|one| &one["source"])
    };
    assert_eq!(source(id), Some(&json!("config")));
    assert_eq!(source(&key_id), Some(&json!("store")));
    assert!(!listed.to_string().contains(&hash));
    for (arguments, status) in [
        (&["--scope", "a", "--expires", "soon"][..], 2),
        (&[], 2),
        (&["--scope", "a", "--resource", "fs"], 2),
    ] {
        assert_eq!(
            token(bench.admin(), "make", &node, arguments).status,
            status
        );
    }
    let unknown_peer = bench.user("unknown-peer");
    assert_eq!(token(&unknown_peer, "list", &node, &[]).status, 4);
}
