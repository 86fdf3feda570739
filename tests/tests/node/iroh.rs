//! `alknet serve` with an iroh endpoint: reached with iroh itself, and with `alknet call`.

use alknet_core::PeerKey;
use alknet_tests::{CliRunner, HostNode, TestBench, wire};
use alknet_tls::NodeKey;
use iroh::endpoint::{Connection, RecvStream, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, SecretKey};
use serde_json::{Value, json};

const ENABLED: &str = "[iroh]\nenabled = true\n";

/// A node's address in iroh's form.
fn address(target: &str) -> EndpointAddr {
    let (key, address) = target.split_once('@').expect("a pinned target");
    let Ok(PeerKey::Ed25519(key)) = key.parse() else {
        panic!("no Ed25519 key: {key}")
    };
    let id = EndpointId::from_bytes(&key).expect("a key");
    EndpointAddr::new(id).with_ip_addr(address.parse().expect("an address"))
}

/// A client made by iroh, with the key of `who`.
async fn stock(who: &CliRunner) -> Endpoint {
    // The binary makes the key, and its folder.
    who.identity();
    let key = NodeKey::load_or_create(&who.state().join("identity.key"));
    let (key, _) = key.expect("a key");
    let builder = Endpoint::builder(presets::Minimal);
    let client = builder.secret_key(SecretKey::from_bytes(key.seed()));
    client.bind().await.expect("a socket")
}

async fn event(recv: &mut RecvStream) -> Value {
    let mut header = [0; 4];
    recv.read_exact(&mut header).await.expect("a header");
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    recv.read_exact(&mut body).await.expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

async fn call(connection: &Connection, operation: &str) -> Value {
    let (mut send, mut recv) = connection.open_bi().await.expect("open");
    let request = wire::request("1", operation, &Value::Null);
    send.write_all(&request).await.expect("write");
    event(&mut recv).await
}

async fn connect(client: &Endpoint, host: &HostNode) -> Connection {
    let target = host.iroh().expect("it is served");
    let connection = client.connect(address(target), b"alknet/call").await;
    connection.unwrap_or_else(|error| panic!("{error:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn iroh_itself_calls_an_operation_of_a_node() {
    let bench = TestBench::new();
    let host = bench.host_with(ENABLED);
    let admin = stock(bench.admin()).await;
    let connection = connect(&admin, &host).await;
    let answer = call(&connection, "node/info").await;
    assert_eq!(answer["type"], "call.responded", "{answer}");
    let info = &answer["payload"]["output"];
    let identity = info["identity"].as_str().expect("text");
    assert!(host.target().starts_with(identity));
    let (_, place) = host
        .iroh()
        .and_then(|t| t.split_once('@'))
        .expect("a target");
    assert_eq!(info["listen"]["iroh"], json!([place]));

    let unknown_peer = stock(&bench.user("unknown-peer")).await;
    let refused = call(&connect(&unknown_peer, &host).await, "node/info").await;
    assert_eq!(
        refused.pointer("/payload/code").and_then(Value::as_str),
        Some("UNAUTHENTICATED"),
        "{refused}"
    );
    for client in [admin, unknown_peer] {
        client.close().await;
    }
}

#[test]
fn the_command_line_calls_over_iroh() {
    let bench = TestBench::new();
    let host = bench.host_with(ENABLED);
    let target = host.iroh().expect("it is served");
    let over = ["--carriage", "iroh"];
    let call = |who: &CliRunner, target: &str| who.call(target, "node/info", &Value::Null, &over);
    let info = call(bench.admin(), target).json();
    assert_eq!(info["endpoint"]["connections_iroh"], 1, "{info:#}");
    assert_eq!(
        call(&bench.user("unknown-peer"), target).code(),
        "UNAUTHENTICATED"
    );
    let (_, place) = target.split_once('@').expect("a pinned target");
    let other = bench.user("other").identity();
    let wrong = call(bench.admin(), &format!("{other}@{place}"));
    assert_eq!(wrong.code(), "PIN_MISMATCH");
    assert_eq!(call(bench.admin(), place).code(), "UNKNOWN_PEER");
}

#[test]
fn it_is_off_until_the_next_start_with_it_on() {
    let bench = TestBench::new();
    let host = bench.host_with("");
    assert_eq!(host.iroh(), None);
    let info = host.call("node/info", &Value::Null);
    assert_eq!(info["listen"]["iroh"], json!([]));
    let document = format!(
        "node.admin_keys = [\"{}\"]\n{ENABLED}",
        bench.admin().identity()
    );
    let applied = host.call("config/apply", &json!({ "document": document }));
    assert_eq!(applied["restart_required"], json!(["iroh"]), "{applied}");
    drop(host);
    let host = HostNode::start_with(
        &bench.path().join("host"),
        bench.admin(),
        Some(&bench.path().join("node.toml")),
    );
    assert!(host.iroh().is_some());
}
