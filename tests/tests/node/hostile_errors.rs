//! Errors of a peer behind a hub, whose length is the choice of that peer.

use std::time::Duration;

use alknet_call::{CallClient, CallConnection, CallOptions, ErrorCode, OperationSpec};
use alknet_core::Carriage;
use alknet_test_support::deadline;
use alknet_tests::{CliRunner, HostNode, TestBench, eventually, wire};
use alknet_tls::NodeKey;
use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::manual_peer::{LATE, LATE_CHARACTERS, ManualPeer, dial_over, people, until_attached};
use super::unread::connect;

/// Errors of [`LATE_CHARACTERS`] that may wait on one connection, which are 8 MiB, and one more: the QUIC library
/// accepts the beginning of each, and the packets of one may be on their way.
const WHOLE_MAX: usize = 10;
const WHOLE_MIN: usize = 3;

/// Bytes of the longest frame of an error without its details.
const ABRIDGED_MAX: usize = 1000;

/// Characters of an input for which the hub opens a separate stream to its peer. The peer answers the requests on one
/// stream one after the other.
const LONG_INPUT: usize = 9000;

async fn within<T>(work: impl Future<Output = T>) -> T {
    let hung = deadline(Duration::from_secs(60));
    tokio::time::timeout(hung, work).await.expect("it hangs")
}

/// Calls that the hub has answered with an error.
fn errors(hub: &HostNode) -> f64 {
    let metrics = hub.call("node/metrics", &Value::Null);
    let errors = metrics["values"]["alknet_call_errors_total"].as_f64();
    errors.expect("it is counted")
}

/// Calls an operation of the bank.
async fn calls(client: &CallConnection, operation: &str) -> Result<(), (ErrorCode, Option<Value>)> {
    let options = CallOptions {
        peer: Some("bank".to_owned()),
        ..CallOptions::default()
    };
    let answer = within(client.call_with(operation, &Value::Null, &options)).await;
    let answer = answer.map_err(|error| (error.code, error.details.map(|details| *details)));
    answer.map(drop)
}

/// One peer of a hub answers calls with errors that nearly have the length of a frame: to a client that reads none of
/// them, and, with numbers that are longer once the hub has written them, to a client over TCP.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_peer_take_neither_the_hub_s_memory_nor_a_connection() {
    let bench = TestBench::new();
    let [teller, eve, ada] = ["bank", "eve", "ada"].map(|name| bench.user(name));
    let scopes = &["peer:route:bank", "bank"][..];
    let config = people([
        ("bank", &teller, &[][..]),
        ("eve", &eve, scopes),
        ("ada", &ada, scopes),
    ]);
    let hub = bench.host_with(&format!("[hub]\nenabled = true\n{config}"));
    let specs = ["node/late", "node/grow", "node/grow-little", "node/pay"];
    let specs = specs.map(|name| OperationSpec::query(name, "Fails at length.").with_scope("bank"));
    let bank = ManualPeer::on(
        dial_over(Carriage::Quic, &hub, &teller).await,
        Vec::from(specs),
    );
    block_in_place(|| until_attached(&hub));

    errors_that_grow_end_no_connection(&hub, &ada).await;
    errors_that_no_client_reads_are_abridged(&hub, &bank, &eve).await;
}

async fn errors_that_grow_end_no_connection(hub: &HostNode, who: &CliRunner) {
    let (_dialer, connection) = dial_over(Carriage::Tcp, hub, who).await;
    let client = CallClient::without_operations().attach(connection, None);
    // On the same connection, for as long as that lasts.
    let mut followed = within(client.subscribe("services/watch", &json!({})))
        .await
        .expect("it is sent");
    let first = within(followed.next()).await.expect("an event");
    assert!(first.is_ok(), "{first:?}");
    for operation in ["node/grow", "node/grow-little"] {
        let refused = calls(&client, operation).await;
        let omitted = json!({ "omitted": true });
        assert_eq!(
            refused,
            Err((ErrorCode::Conflict, Some(omitted))),
            "{operation}"
        );
        let next = calls(&client, "node/pay").await;
        assert_eq!(next, Ok(()), "after {operation}");
    }
    assert!(!client.is_closed());
    let more = followed.next().now_or_never();
    let is_good = more
        .as_ref()
        .is_none_or(|event| matches!(event, Some(Ok(_))));
    assert!(is_good, "{more:?}");
}

async fn errors_that_no_client_reads_are_abridged(
    hub: &HostNode,
    bank: &ManualPeer,
    who: &CliRunner,
) {
    let key = NodeKey::load_or_create(&who.state().join("identity.key"));
    let (_endpoint, connection) = connect(hub, &key.expect("it was made above").0).await;
    let before = errors(hub);
    let mut unread = Vec::new();
    for id in 0..LATE {
        let payload = json!({
            "operationId": "/node/late", "input": "x".repeat(LONG_INPUT), "peer": "bank",
        });
        let event = json!({ "type": "call.requested", "id": id.to_string(), "payload": payload });
        let (mut send, recv) = within(connection.open_bi()).await.expect("a stream");
        let request = wire::frame(event.to_string().as_bytes());
        within(send.write_all(&request)).await.expect("it is taken");
        unread.push((send, recv));
    }
    // The peer answers once it has all requests.
    block_in_place(|| {
        eventually("all calls have failed", || {
            (errors(hub) - before >= LATE as f64).then_some(())
        });
    });
    assert_eq!(bank.asked("node/late"), LATE);
    let mut whole = 0;
    for (_send, recv) in &mut unread {
        let mut len = [0; 4];
        within(recv.read_exact(&mut len)).await.expect("an error");
        let len = u32::from_be_bytes(len) as usize;
        // The rest of a whole error stays unread.
        if len > LATE_CHARACTERS {
            whole += 1;
            continue;
        }
        assert!(len < ABRIDGED_MAX, "{len}");
        let mut event = vec![0; len];
        within(recv.read_exact(&mut event))
            .await
            .expect("to its end");
        let event: Value = serde_json::from_slice(&event).expect("JSON");
        let error = &event["payload"];
        assert_eq!(
            (&error["code"], &error["details"]),
            (&json!("CONFLICT"), &json!({ "omitted": true })),
            "{event}"
        );
    }
    println!("figure whole errors that wait: {whole} of {LATE}");
    assert!((WHOLE_MIN..=WHOLE_MAX).contains(&whole), "{whole}");
}
