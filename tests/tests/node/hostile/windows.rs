//! Peers that send, on all connections that they may have, data that the node never reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alknet_call::CallClient;
use alknet_core::{AuthToken, Carriage, Connection, RecvStream, SendStream};
use alknet_endpoint::EndpointDialer;
use alknet_test_support::deadline;
use alknet_tests::{HostNode, TestBench, wire};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::{JoinSet, block_in_place};

use super::{AttackedNode, key, within};
use crate::unread::memory;

/// Connections that a known peer may have, and those whose slots one token pays for, as in
/// docs/endpoint.md.
const OF_PEER: u64 = 16;
const OF_TOKEN: u64 = 64;

/// Bytes that one of them may send before anything is read, at first and at most, as in
/// docs/endpoint.md.
const FIRST_BYTES: u64 = 64 << 10;
const START_BYTES: u64 = 2 << 20;

/// Streams on `alknet/call` that are not read, which are the unidirectional ones. Each takes a
/// mebibyte.
const STREAMS: usize = 4;

/// The cost of a connection in addition to what was sent on it.
const CONNECTION_BYTES: u64 = 256 << 10;

/// How much more memory the node may use for other reasons.
const SLACK_BYTES: u64 = 4 << 20;

/// How long nothing is accepted, this many times in a row, before the test assumes that the node
/// accepts no more.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_LOOKS: u32 = 3;

/// No limit on connecting, because something else is attacked here.
const LIMITS: &str = "[limits]\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n";

/// Bytes that the windows of one identity may have before anything is read, as in docs/endpoint.md.
fn share() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("the kernel says");
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let part = (kib.expect("a number") << 10) / 8;
    part.clamp(4 << 20, 256 << 20) / 4
}

/// How much this many connections may cost. A quarter of the received bytes is for their packets (a
/// fifth was seen).
fn bound(connections: u64) -> u64 {
    let windows = share().min(connections * START_BYTES) + connections * FIRST_BYTES;
    windows + windows / 4 + connections * CONNECTION_BYTES + SLACK_BYTES
}

/// Sends on these connections until the node accepts no more. The tasks keep what is sent.
async fn fill(connections: &[Connection]) -> (u64, JoinSet<()>) {
    let piece = Bytes::from(vec![7; 16 << 10]);
    let (taken, mut tasks) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    for connection in connections {
        for _ in 0..STREAMS {
            let (connection, taken, piece) =
                (connection.clone(), Arc::clone(&taken), piece.clone());
            tasks.spawn(async move {
                let Ok(mut send) = connection.open_uni().await else {
                    return;
                };
                while send.write_chunk(piece.clone()).await.is_ok() {
                    taken.fetch_add(piece.len() as u64, Ordering::SeqCst);
                }
            });
        }
    }
    let (mut before, mut quiet) = (0, 0);
    while quiet < QUIET_LOOKS {
        // Nothing signals that the node accepts no more.
        tokio::time::sleep(deadline(QUIET)).await;
        let now = taken.load(Ordering::SeqCst);
        let is_quiet = now > 0 && now == before;
        quiet = if is_quiet { quiet + 1 } else { 0 };
        before = now;
    }
    (before, tasks)
}

/// Whether the node grows by no more than allowed for this many unread connections.
async fn costs_little(node: &HostNode, connections: &[Connection]) {
    let before = memory(node, "VmRSS:");
    let (taken, tasks) = fill(connections).await;
    let grown = memory(node, "VmRSS:").saturating_sub(before);
    let count = connections.len() as u64;
    println!(
        "figure {count} connections: {} KiB taken, {} KiB grown",
        taken >> 10,
        grown >> 10
    );
    // Less would prove nothing: it is nearly what these connections may have together.
    let least = share().min(count * START_BYTES) / 2;
    assert!(taken >= least, "{taken} bytes were taken, not {least}");
    assert!(grown <= bound(count), "{grown} bytes for {count}");
    drop(tasks);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_and_not_read_is_bounded_for_one_identity() {
    let bench = TestBench::new();
    let [edge, other] = [key(), key()];
    let peer = |id: &str, key: &alknet_tls::NodeKey| {
        format!(
            "[[peers]]\npeer_id = \"{id}\"\nkeys = [\"{}\"]\nscopes = []\n",
            key.public()
        )
    };
    let config = format!("{LIMITS}\n{}{}", peer("edge", &edge), peer("other", &other));
    let [edge, other] = [edge, other].map(|key| EndpointDialer::new(Some(key)));
    for of_token in [false, true] {
        // A separate node, because another one would keep memory of the last case.
        let node = block_in_place(|| bench.host_with(&config));
        let site = AttackedNode {
            admin: bench.admin(),
            target: node.target().to_owned(),
        };
        let (mut connections, mut clients) = (Vec::new(), Vec::new());
        if of_token {
            let made = block_in_place(|| {
                let scopes = json!({ "scopes": ["peer:list"] });
                let made = site.admin.call(&site.target, "token/make", &scopes, &[]);
                made.json()["token"].as_str().expect("a token").to_owned()
            });
            let (token, unknown_peer) = (AuthToken::new(made), EndpointDialer::new(None));
            for _ in 0..OF_TOKEN {
                let connection = site.dial(&unknown_peer, Carriage::Quic).await;
                let client = CallClient::without_operations().attach(connection.clone(), None);
                within(client.authenticate(&token))
                    .await
                    .expect("it is good");
                connections.push(connection);
                clients.push(client);
            }
        } else {
            for _ in 0..OF_PEER {
                connections.push(site.dial(&edge, Carriage::Quic).await);
            }
        }
        costs_little(&node, &connections).await;
        // Another identity has its own share.
        let beside = site.dial(&other, Carriage::Quic).await;
        let (taken, _tasks) = fill(std::slice::from_ref(&beside)).await;
        assert!(taken >= START_BYTES / 2, "{taken} bytes");
        site.serves();
        drop(clients);
    }
}

/// Unidirectional streams that an unknown peer may have on a connection. These are not read.
const OF_UNKNOWN: usize = 3;

/// A connection of an unknown peer, its stream that is read, and those that are not.
struct MixedStreams {
    _connection: Connection,
    read: (SendStream, RecvStream),
    unread: Vec<SendStream>,
}

impl MixedStreams {
    async fn begin(site: &AttackedNode<'_>, unknown_peer: &EndpointDialer) -> Self {
        let connection = site.dial(unknown_peer, Carriage::Quic).await;
        let read = wire::stream(&connection).await.expect("it is connected");
        let mut unread = Vec::new();
        for _ in 0..OF_UNKNOWN {
            let stream = within(connection.open_uni()).await;
            unread.push(stream.expect("it may have as many"));
        }
        Self {
            _connection: connection,
            read,
            unread,
        }
    }

    async fn say(&mut self, said: &Bytes) {
        let written = within(self.read.0.write_chunk(said.clone())).await;
        written.expect("it is read");
    }

    /// Waits until everything that was sent was read.
    async fn is_read(&mut self) {
        let asks = wire::request("1", "services/list", &Value::Null);
        self.say(&asks.into()).await;
        let event = within(wire::event(&mut self.read.1)).await;
        let event = event.expect("an answer");
        assert_eq!(event["type"], "call.responded", "{event}");
    }
}

/// One-byte pieces that are not read, each among much data that is read at once, and that the
/// kernel joins with it. Data written without a pause is sent together, so this uses one thread.
#[tokio::test]
async fn pieces_of_a_byte_do_not_keep_what_they_came_with() {
    const CONNECTIONS: usize = 24;
    /// For each stream. With more, the QUIC library would copy them together: 32 KiB of packets.
    const PIECES: usize = 22;
    /// Nearly 1 KiB each, and together more than the kernel sends at once for a client.
    const EVENTS: usize = 26;
    /// For each stream 32 KiB of packets, and twice that for everything else. With all that the
    /// kernel sends at once for a client, ten packets, it would be three times that: 14 KiB for
    /// each piece, 22 MiB.
    const GROWTH_MAX: u64 = 3 * ((CONNECTIONS * OF_UNKNOWN) as u64 * (32 << 10));

    let bench = TestBench::new();
    let node = bench.host_with(LIMITS);
    let site = AttackedNode {
        admin: bench.admin(),
        target: node.target().to_owned(),
    };
    let unknown_peer = EndpointDialer::new(None);
    // Of an unknown type, so it is read and ignored.
    let event = json!({ "type": "call.nothing", "id": "1", "payload": { "x": "x".repeat(900) } });
    let much = Bytes::from(wire::frame(event.to_string().as_bytes()).repeat(EVENTS));
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(MixedStreams::begin(&site, &unknown_peer).await);
    }
    // What each has once, and the allocator keeps, is allocated before the measurement.
    for mixed in &mut all {
        for _ in 0..4 {
            mixed.say(&much).await;
        }
        mixed.is_read().await;
    }
    let before = memory(&node, "VmRSS:");
    for mixed in &mut all {
        for _ in 0..PIECES {
            for at in 0..OF_UNKNOWN {
                let piece = Bytes::from_static(b"x");
                let written = within(mixed.unread[at].write_chunk(piece)).await;
                written.expect("the window has room");
                mixed.say(&much).await;
                // Everything is sent now.
                tokio::task::yield_now().await;
            }
        }
        mixed.is_read().await;
    }
    let grown = memory(&node, "VmRSS:").saturating_sub(before);
    println!(
        "figure {} pieces of a byte from outside: {} KiB",
        CONNECTIONS * OF_UNKNOWN * PIECES,
        grown >> 10
    );
    assert!(grown <= GROWTH_MAX, "{grown} bytes");
}
