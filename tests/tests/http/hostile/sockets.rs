//! WebSockets in HTTP/2 connections: endless messages, and answers that the client does not read,
//! including pongs.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::ALPN;
use alknet_call::limits::{PeerLimits, UNREAD_BYTES_FREE};
use alknet_core::Carriage;
use alknet_endpoint::EndpointDialer;
use alknet_test_support::deadline;
use alknet_tests::raw::within;
use alknet_tests::sockets::{
    MESSAGE_BYTES, SocketCarrier, almost, asks, closed, hears, hears_pong, is_answered_in_pieces,
    message, request,
};
use alknet_tests::{TestBench, WebNode, eventually, sockets, wire};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::{JoinSet, block_in_place};

use super::{GROWTH_BYTES, forget_peak, peak, resident, share};

/// WebSockets on one connection.
const SOCKETS: usize = 16;

/// The cost of one WebSocket and its part of the connection, besides its unread and incomplete
/// messages: bytes without a quota, a frame that is being sent, and its state.
const SOCKET_BYTES: u64 = 64 << 10;

/// How long nothing must happen before the test assumes the end.
const QUIET: Duration = Duration::from_millis(500);

/// Lets one client do much at once, because something else is attacked here.
const FAST: &str = "[http]\nrequests_per_second = 10000\nrequests_burst = 10000\n\
                    unknown_peer_requests_per_second = 10000\n";

/// With a token of the least scope. Text and binary messages are handled alike, and pieces are
/// counted.
#[tokio::test(flavor = "multi_thread")]
async fn messages_without_their_ends_are_counted_together() {
    // Twice as many as the token's identity has room for.
    let connections = (2 * share() as usize / MESSAGE_BYTES / SOCKETS).max(4);
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let (before, forms) = (resident(&web), [false, true].map(almost));
    forget_peak(&web);
    let mut all = JoinSet::new();
    let mut carriers = Vec::new();
    for _ in 0..connections {
        let mut carrier = SocketCarrier::open(&web.target(), 64 << 10).await;
        for n in 0..SOCKETS {
            let mut socket = carrier.socket(Some(&web.reader)).await;
            let bytes = forms[n % 2].clone();
            all.spawn(async move {
                // It may be refused before it has sent everything.
                let _ = socket.write_all(&bytes).await;
                socket
            });
        }
        carriers.push(carrier);
    }
    let mut sockets = Vec::new();
    while let Some(socket) = within(all.join_next()).await {
        sockets.push(socket.expect("no panic"));
    }
    // Another identity gets an answer to a call of 60,000 bytes, and to one in pieces over a
    // WebSocket.
    let long = json!({ "prefix": "x".repeat(60_000) });
    let listed = block_in_place(|| web.node.call("services/list", &long));
    assert!(listed["operations"].is_array(), "{listed}");
    let mut other = SocketCarrier::open(&web.target(), 64 << 10).await;
    let mut socket = other.socket(Some(&web.admin)).await;
    is_answered_in_pieces(&mut socket, &request(1, "services/list", &long)).await;
    let grown = peak(&web).saturating_sub(before);
    // As many as find no room.
    let count = connections * SOCKETS;
    let least = count - share() as usize / MESSAGE_BYTES - SOCKETS;
    let (mut refused, mut late) = (0, 0);
    let ends = async {
        // On a busy machine a close frame is still on its way at the first look.
        while refused + late < least {
            let mut rest = Vec::new();
            for mut socket in sockets.drain(..) {
                match closed(&mut socket, deadline(Duration::from_millis(5))).await {
                    Ok(Some(1013)) => refused += 1,
                    // It had room until its timeout, and then another one may have it.
                    Ok(Some(4408)) => late += 1,
                    Ok(None) => rest.push(socket),
                    other => panic!("{other:?}"),
                }
            }
            sockets = rest;
        }
    };
    within(ends).await;
    drop(carriers);
    println!(
        "figure {count} messages: {} KiB, {refused} refused, {late} late",
        grown >> 10
    );
    let most = share() + count as u64 * SOCKET_BYTES + GROWTH_BYTES;
    assert!(grown <= most, "{grown} bytes for {count} messages");
    assert!(
        refused >= least,
        "{refused} refused, {late} late of {count}"
    );
}

/// Waits until the node stops growing.
async fn settled(web: &WebNode) {
    let mut before = 0;
    loop {
        // Nothing signals that the node keeps no more.
        tokio::time::sleep(deadline(QUIET)).await;
        let now = peak(web);
        if now == before {
            return;
        }
        before = now;
    }
}

/// Connections of one requester whose WebSockets read nothing.
struct UnreadSockets<'a> {
    token: Option<&'a str>,
    /// The requester's share of the room for unread answers: one part of this number.
    part: f64,
    /// Bytes that each connection alone may leave unread before no more requests are started.
    alone: usize,
    /// Requests on each WebSocket. The answers for a connection exceed that.
    requests: usize,
}

/// WebSockets of each of these.
const UNREAD_SOCKETS: usize = 4;

/// Memory of their node's machine. With it, 24 connections of one network's unknown peers reach
/// their requester's share, and one network may have 64. On a larger machine, more would be needed.
const SMALL_MACHINE_BYTES: u64 = 512 << 20;

/// What others may leave unread meanwhile.
const OTHERS_BYTES: f64 = (128 << 10) as f64;

/// The node's counter of waiting answer bytes, and its limit.
fn unread(web: &WebNode) -> [f64; 2] {
    let told = block_in_place(|| web.node.call("node/metrics", &Value::Null));
    ["alknet_call_unread_bytes", "alknet_call_unread_bytes_max"].map(|name| {
        let counted = told["values"][name].as_f64();
        counted.unwrap_or_else(|| panic!("no {name}: {told:#}"))
    })
}

/// The number of waiting bytes, once it is more than half of `room` and no longer changes.
fn unread_at_rest(web: &WebNode, room: f64) -> f64 {
    let mut before = 0.0;
    block_in_place(|| {
        eventually("no more is begun", || {
            // Nothing signals that the node starts no more.
            std::thread::sleep(deadline(QUIET));
            let [waits, _] = unread(web);
            let is_settled = waits == before && waits >= room / 2.0;
            before = waits;
            is_settled.then_some(waits)
        })
    })
}

impl UnreadSockets<'_> {
    /// So many that they would leave half as much again unread as their requester may, if only each
    /// were bounded.
    fn connections(&self, room: f64) -> usize {
        (1.5 * room / self.alone as f64).ceil() as usize
    }

    /// Makes the node answer until it starts no more. What waits is the requester's maximum, and
    /// others are served.
    async fn are_bounded(&self, web: &WebNode) {
        let [_, most] = unread(web);
        let room = most / self.part;
        let connections = self.connections(room);
        let before = resident(web);
        forget_peak(web);
        let asks = asks(self.requests);
        let mut kept = Vec::new();
        let mut all = JoinSet::new();
        for _ in 0..connections {
            // No byte of an answer is read.
            let mut carrier = SocketCarrier::open(&web.target(), 0).await;
            for _ in 0..UNREAD_SOCKETS {
                let mut socket = carrier.socket(self.token).await;
                let asks = asks.clone();
                all.spawn(async move {
                    // The node stops reading them.
                    let _ = socket.write_all(&asks).await;
                    std::future::pending::<()>().await;
                });
            }
            kept.push(carrier);
        }
        let waits = unread_at_rest(web, room);
        // Another identity, over a separate connection: a long answer.
        let listed = block_in_place(|| web.node.call("services/list", &Value::Null));
        assert!(listed["operations"].is_array(), "{listed}");
        let grown = peak(web).saturating_sub(before);
        let sockets = connections * UNREAD_SOCKETS;
        println!(
            "figure {sockets} WebSockets, token {}: {} KiB, of which {} KiB wait",
            self.token.is_some(),
            grown >> 10,
            waits as u64 >> 10
        );
        let may = room + (sockets * UNREAD_BYTES_FREE) as f64 + OTHERS_BYTES;
        assert!(waits <= may, "{waits} bytes wait where {may} may");
        let most = room as u64 + sockets as u64 * SOCKET_BYTES + GROWTH_BYTES;
        assert!(grown <= most, "{grown} bytes: {most} are room");
    }
}

/// Without a token from one network: each WebSocket follows what is open to every peer, and
/// requests a list until the node accepts no more. One network has a sixteenth of the node's room.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_no_socket_reads_are_counted_together() {
    let bench = TestBench::new();
    if let Some(web) = block_in_place(|| WebNode::start_on(&bench, SMALL_MACHINE_BYTES, FAST)) {
        let unknown = UnreadSockets {
            token: None,
            part: 16.0,
            alone: PeerLimits::UNAUTHENTICATED.queued_bytes,
            requests: 400,
        };
        unknown.are_bounded(&web).await;
    }
}

/// The same with a token of the least scope, which may have half.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_no_socket_of_a_token_reads_are_counted_together() {
    let bench = TestBench::new();
    if let Some(web) = block_in_place(|| WebNode::start_on(&bench, SMALL_MACHINE_BYTES, FAST)) {
        let known = UnreadSockets {
            token: Some(&web.reader),
            part: 2.0,
            alone: PeerLimits::AUTHENTICATED.queued_bytes,
            requests: 800,
        };
        known.are_bounded(&web).await;
    }
}

/// One token on many connections of the call protocol. Each alone may have 4 MiB unread, and as
/// much again.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_no_connection_of_a_token_reads_are_counted_together() {
    const CONNECTIONS: usize = 48;
    /// Requests on each.
    const REQUESTS: usize = 20_000;
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let before = resident(&web);
    forget_peak(&web);
    let ask = |id: usize| wire::request(&id.to_string(), "services/list", &Value::Null);
    let asks = Bytes::from_iter((1..=REQUESTS).flat_map(ask));
    let dialer = Arc::new(EndpointDialer::new(None));
    let mut all = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let connection = dialer.dial_over(Carriage::Tcp, &web.target(), ALPN).await;
        let connection = connection.expect("every client may connect");
        let (mut send, mut recv) = wire::stream(&connection).await.expect("one stream");
        let token = wire::request("0", "session/authenticate", &json!({ "token": web.reader }));
        send.write_all(&token).await.expect("it is taken");
        let answer = within(wire::event(&mut recv)).await.expect("it goes on");
        assert_eq!(answer["type"], "call.responded", "{answer}");
        let asks = asks.clone();
        all.spawn(async move {
            // The node stops reading them.
            let _ = send.write_chunk(asks).await;
            std::future::pending::<()>().await;
            drop((recv, connection));
        });
    }
    settled(&web).await;
    let listed = block_in_place(|| web.node.call("services/list", &Value::Null));
    assert!(listed["operations"].is_array(), "{listed}");
    let grown = peak(&web).saturating_sub(before);
    println!("figure {CONNECTIONS} connections: {} KiB", grown >> 10);
    // Each has two TLS records and a piece of its next request in addition.
    let most = share() + CONNECTIONS as u64 * (256 << 10) + GROWTH_BYTES;
    assert!(grown <= most, "{grown} bytes: {most} are room");
}

/// Without a token, for as long as an unknown peer may stay: each ping is read separately, and
/// would be answered after the answers that the client has not read.
#[tokio::test(flavor = "multi_thread")]
async fn pings_with_unread_answers_are_not_kept() {
    const PINGS: u32 = 100_000;
    /// Permitted cost of one connection. The answers together would be 12 MiB.
    const MOST_BYTES: u64 = 8 << 20;
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let mut carrier = SocketCarrier::open(&web.target(), 8 << 10).await;
    let mut socket = carrier.socket(None).await;
    let follow = message(&request(0, "services/watch", &Value::Null));
    socket.write_all(&follow).await.expect("it is taken");
    hears(&mut socket, b"call.responded").await;
    let before = resident(&web);
    forget_peak(&web);
    sockets::pings(&mut socket, PINGS).await;
    let grown = peak(&web).saturating_sub(before);
    println!("figure {PINGS} pings: {} KiB", grown >> 10);
    assert!(grown <= MOST_BYTES, "{grown} bytes for {PINGS} pings");
    hears_pong(&mut socket, PINGS).await;
}
