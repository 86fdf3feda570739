//! WebSockets of a machine with 512 MiB: messages that do not end, answers that the client does not read, and pings;
//! and tickets of one identity. The tests compare what waits, by the node's own account, with the limits.

use std::thread;
use std::time::Duration;

use alknet_test_support::deadline;
use alknet_tests::eventually;
use alknet_tests::raw::within;
use alknet_tests::sockets::{
    SocketCarrier, UpgradedSocket, almost, asks, closed, hears, hears_pong, is_answered_in_pieces,
    message, pings, request,
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::Machine;
use super::attacks::MemoryWatcher;

/// WebSockets that one connection carries.
const SOCKETS: usize = 16;

/// Connections whose WebSockets do not end their messages of 1 MiB. One identity of a machine with 512 MiB has room for
/// [`FIT`] messages, and these are half as many again.
const CONNECTIONS: usize = 3;
const FIT: usize = 32;

/// Connections of an unknown peer with one WebSocket each. Each connection may leave 256 KiB unread, and the node
/// answers the requests that it has begun by then. Together this is half as much again as one network may leave unread
/// with 512 MiB of memory.
const UNREAD: usize = 24;
/// Requests on each connection. The node answers each request with some KiB.
const REQUESTS: usize = 400;
/// The node's limit for unread answers, divided by this, is the limit of one network of unknown peers.
const NETWORK_PART: f64 = 16.0;
/// Bytes that each connection may leave unread beside that.
const EACH_BYTES: f64 = (8 << 10) as f64;
/// Bytes that other clients may leave unread meanwhile.
const OTHERS_BYTES: f64 = (128 << 10) as f64;
/// Pause between two readings of the bytes that wait.
const QUIET: Duration = Duration::from_secs(1);

/// Pings whose answers would take 2.4 MiB, and as much again for their places in the queue: more than the node has free
/// of the memory that it took before.
const PINGS: u32 = 20_000;
/// Number of earlier pings. They make the node allocate what it keeps, and their answers would take an eighth of a
/// mebibyte.
const FIRST_PINGS: u32 = 1_000;
/// Bytes by which the later pings may make the node's memory grow.
const PINGS_BYTES: u64 = 2 << 20;

/// Tickets that one identity may have at once: an eighth of all tickets.
const TICKETS: usize = 128;

/// How long the test waits for the close frame of one WebSocket.
const LOOK: Duration = Duration::from_millis(5);

/// Runs all tests of this module but that of the pings, one after the other.
pub(super) fn are_bounded(web: &Machine) {
    let runtime = Runtime::new().expect("a runtime");
    messages_without_their_ends_are_counted_together(web, &runtime);
    answers_that_no_socket_reads_are_counted_together(web, &runtime);
    tickets_of_one_identity_leave_the_others_theirs(web, &runtime);
}

/// Returns the node's metrics with these names.
fn metric_values<const N: usize>(web: &Machine, names: [&str; N]) -> [f64; N] {
    let told = web.node.call("node/metrics", &Value::Null);
    let value = |name: &str| told["values"][name].as_f64();
    names.map(|name| value(name).unwrap_or_else(|| panic!("no {name}: {told:#}")))
}

/// The attacker has a token of the least scope. Meanwhile the node answers a long message of another identity in two
/// pieces.
fn messages_without_their_ends_are_counted_together(web: &Machine, runtime: &Runtime) {
    let forms = [false, true].map(almost);
    let (carriers, mut sockets) = runtime.block_on(async {
        let mut all = JoinSet::new();
        let mut carriers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut carrier = SocketCarrier::open(&web.target(), 64 << 10).await;
            for n in 0..SOCKETS {
                let mut socket = carrier.socket(Some(&web.reader)).await;
                let bytes = forms[n % 2].clone();
                all.spawn(async move {
                    // The node may refuse the message before the client has sent all of it.
                    let _ = socket.write_all(&bytes).await;
                    socket
                });
            }
            carriers.push(carrier);
        }
        (carriers, within(all.join_all()).await)
    });
    let [kept, most] = metric_values(
        web,
        [
            "alknet_call_unfinished_bytes",
            "alknet_call_unfinished_bytes_max",
        ],
    );
    assert!(kept <= most / 2.0, "{kept} bytes of messages are kept");
    let long = json!({ "prefix": "x".repeat(60_000) });
    runtime.block_on(async {
        let mut other = SocketCarrier::open(&web.target(), 64 << 10).await;
        let mut socket = other.socket(Some(&web.admin)).await;
        is_answered_in_pieces(&mut socket, &request(1, "services/list", &long)).await;
    });
    let count = sockets.len();
    let mut ended = Ended::default();
    eventually("as many are ended as have no room", || {
        sockets = ended.count(runtime, std::mem::take(&mut sockets));
        (ended.refused + ended.late + ended.cut >= count - FIT).then_some(())
    });
    println!(
        "figure {count} messages that do not end: {} KiB are kept, {ended:?}",
        kept as u64 >> 10
    );
    assert!(ended.refused + ended.cut > 0, "{ended:?}");
    drop(carriers);
}

/// WebSockets that the node closed.
#[derive(Debug, Default)]
struct Ended {
    /// WebSockets for which the node had no room.
    refused: usize,
    /// WebSockets that took too long, as on a busy machine: other messages may then have their room.
    late: usize,
    /// WebSockets that ended with their connection: the node ends one whose client goes on sending on streams that the
    /// node has ended, which bytes on a slow way can look like.
    cut: usize,
}

impl Ended {
    /// Counts the closed WebSockets, and returns the others.
    fn count(&mut self, runtime: &Runtime, sockets: Vec<UpgradedSocket>) -> Vec<UpgradedSocket> {
        runtime.block_on(async {
            let mut rest = Vec::new();
            for mut socket in sockets {
                match closed(&mut socket, LOOK).await {
                    Ok(Some(1013)) => self.refused += 1,
                    Ok(Some(4408)) => self.late += 1,
                    Ok(None) => rest.push(socket),
                    Ok(Some(code)) => panic!("closed with {code}"),
                    Err(_) => self.cut += 1,
                }
            }
            rest
        })
    }
}

/// Clients without a token follow an operation that is open to every peer, and request a list until the node takes no
/// more requests.
fn answers_that_no_socket_reads_are_counted_together(web: &Machine, runtime: &Runtime) {
    const WAITS: [&str; 2] = ["alknet_call_unread_bytes", "alknet_call_unread_bytes_max"];
    let asks = asks(REQUESTS);
    let (carriers, asking) = runtime.block_on(async {
        let (mut carriers, mut asking) = (Vec::new(), JoinSet::new());
        for _ in 0..UNREAD {
            // The client reads no byte of an answer.
            let mut carrier = SocketCarrier::open(&web.target(), 0).await;
            let mut socket = carrier.socket(None).await;
            let asks: Bytes = asks.clone();
            asking.spawn(async move {
                // The node stops taking the requests.
                let _ = socket.write_all(&asks).await;
                std::future::pending::<()>().await;
            });
            carriers.push(carrier);
        }
        (carriers, asking)
    });
    let mut before = 0.0;
    let (waits, room) = eventually("no more is begun", || {
        thread::sleep(deadline(QUIET));
        let [waits, most] = metric_values(web, WAITS);
        let room = most / NETWORK_PART;
        let is_settled = waits == before && waits >= room / 2.0;
        before = waits;
        is_settled.then_some((waits, room))
    });
    println!(
        "figure unread by {UNREAD} WebSockets of unknown peers: {} KiB",
        waits as u64 >> 10
    );
    let room = room + UNREAD as f64 * EACH_BYTES + OTHERS_BYTES;
    assert!(waits <= room, "{waits} bytes wait where {room} may");
    drop((carriers, asking));
}

/// The client has no token. The node would put the answer to each ping behind the answers that the client has not read.
/// The test needs a node that has not grown yet: memory that other attacks left free would take the answers, and the
/// node's figure would not show them.
pub(super) fn pings_whose_answers_are_not_read_are_not_kept(web: &Machine) {
    let runtime = Runtime::new().expect("a runtime");
    let mut watcher = MemoryWatcher::new(web);
    let (carrier, mut socket) = runtime.block_on(async {
        let mut carrier = SocketCarrier::open(&web.target(), 8 << 10).await;
        let mut socket = carrier.socket(None).await;
        let follow = message(&request(0, "services/watch", &Value::Null));
        socket.write_all(&follow).await.expect("it is taken");
        hears(&mut socket, b"call.responded").await;
        (carrier, socket)
    });
    runtime.block_on(pings(&mut socket, FIRST_PINGS));
    let before = watcher.resident().expect("the machine has a place for it");
    runtime.block_on(pings(&mut socket, PINGS));
    let after = watcher.resident().expect("it is known");
    let grown = after.saturating_sub(before);
    println!("figure {PINGS} pings: {} KiB", grown >> 10);
    assert!(grown <= PINGS_BYTES, "{grown} bytes for {PINGS} pings");
    runtime.block_on(hears_pong(&mut socket, PINGS));
    drop(carrier);
}

fn tickets_of_one_identity_leave_the_others_theirs(web: &Machine, runtime: &Runtime) {
    // The test makes an identity of its own, because requests of other tests would count for the rate of a shared one.
    let made = web
        .node
        .call("token/make", &json!({ "scopes": ["node:read"] }));
    let token = made["token"].as_str().expect("a token");
    let watch = json!({ "operation": "/services/watch" });
    runtime.block_on(async {
        let mut carrier = SocketCarrier::open(&web.target(), 64 << 10).await;
        for n in 0..TICKETS {
            let told = carrier.post(token, "/subscribe", &watch).await;
            assert_eq!(told, 201, "{n}");
        }
        assert_eq!(carrier.post(token, "/subscribe", &watch).await, 429);
        assert_eq!(carrier.post(&web.admin, "/subscribe", &watch).await, 201);
    });
}
