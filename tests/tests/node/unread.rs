//! What it costs a node that a peer asks and asks, and reads nothing of what it is answered.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::ALPN;
use alknet_call::limits::{PeerLimits, UNREAD_SLACK_BYTES};
use alknet_core::{Carriage, CloseCode, Connection};
use alknet_endpoint::{Dialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{Bench, HostNode, eventually, wire};
use alknet_tls::NodeKey;
use bytes::Bytes;
use serde_json::Value;
use tokio::task::JoinHandle;

/// What that may cost for a known peer, and for an unknown one: what it is answered, and as much again for what it
/// sends. The node has not looked at all of that, and keeps it in the packets that it came in: of a known peer's, an
/// eighth of all is for their heads and for packets that are not full (on a busy machine up to 35,052 KiB were seen,
/// at rest 20,784 to 32,356; of an unknown one's 804 to 2,384). Without the limit for the whole connection each stream has
/// its own: 64 times 4 MiB for a known peer, as far as one identity may have it, and 4 MiB in all for an unknown one. How
/// much of it is answers the node counts itself, see [`answers_wait`].
const KNOWN_MAX: u64 = 36 << 20;
const UNKNOWN_MAX: u64 = 3 << 20;

/// Streams that a peer asks on: more than an unknown one gets.
const STREAMS: usize = 64;

/// Requests on each of them; and of a peer that reads.
const REQUESTS: usize = 4000;
const REQUESTS_READ: usize = 200;

/// Requests of one write.
const TOGETHER: usize = 50;

/// How long a node takes nothing that is believed to wait until it is read.
const QUIET: Duration = Duration::from_millis(500);

/// A line of the kernel's about the node's memory, in bytes.
pub(super) fn memory(node: &HostNode, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("the kernel says it") << 10
}

async fn dial(node: &HostNode, dialer: &Dialer) -> Connection {
    let target: Target = node.target().parse().expect("the node's own target");
    let dialled = dialer.dial_over(Carriage::Quic, &target, ALPN).await;
    dialled.unwrap_or_else(|error| panic!("{error}"))
}

/// Asks on every stream that the node lets open until it takes no more, and reads nothing, unless it `reads`. What
/// is begun ends with the tasks.
async fn ask(connection: &Connection, reads: bool) -> Vec<JoinHandle<()>> {
    let taken = Arc::new(AtomicUsize::new(0));
    let ask = |_| {
        let (connection, taken) = (connection.clone(), Arc::clone(&taken));
        tokio::spawn(async move {
            let Ok((mut send, mut recv)) = wire::stream(&connection).await else {
                return;
            };
            let requests = if reads { REQUESTS_READ } else { REQUESTS };
            let asks = async {
                for first in (0..requests).step_by(TOGETHER) {
                    let ids = first..first + TOGETHER;
                    let ask =
                        |id: usize| wire::request(&id.to_string(), "services/list", &Value::Null);
                    let requests: Vec<u8> = ids.flat_map(ask).collect();
                    if send.write_chunk(Bytes::from(requests)).await.is_err() {
                        break;
                    }
                    taken.fetch_add(1, Ordering::SeqCst);
                }
            };
            let takes =
                async { while reads && matches!(recv.read_chunk(1 << 16).await, Ok(Some(_))) {} };
            tokio::join!(asks, takes);
            std::future::pending().await
        })
    };
    let asking = (0..STREAMS).map(ask).collect();
    let mut before = 0;
    loop {
        // Nothing tells that the node takes no more.
        tokio::time::sleep(deadline(QUIET)).await;
        let now = taken.load(Ordering::SeqCst);
        if now > 0 && now == before {
            return asking;
        }
        before = now;
    }
}

/// Bytes of answers that wait to be read, by the node's own account, once there are as many as stop the node from
/// beginning more: so the attack asks for more than may wait, and the limit is what stops it.
fn answers_wait(node: &HostNode, limits: PeerLimits) -> u64 {
    // As much again may be kept of what was begun. The account is kept in steps.
    let (stops, slack) = (limits.queued_bytes as u64, UNREAD_SLACK_BYTES as u64);
    let waits = eventually("no more is begun", || {
        let told = node.call("node/metrics", &Value::Null);
        let waits = told["values"]["alknet_call_unread_bytes"].as_f64();
        let waits = waits.expect("it is counted") as u64;
        (waits + slack >= stops).then_some(waits)
    });
    assert!(waits <= 2 * stops + slack, "{waits} bytes of answers wait");
    waits
}

/// By how much the node grows for a peer with this key, which has these limits.
async fn growth(node: &HostNode, key: &NodeKey, limits: PeerLimits) -> u64 {
    let dialer = Dialer::new(Some(key.clone()));
    // A peer that reads makes what stays: tables, threads, pages of the allocator. Not one that does not: the node
    // would keep for the next one what it took for that.
    let honest = dial(node, &dialer).await;
    let asking = ask(&honest, true).await;
    asking.iter().for_each(JoinHandle::abort);
    honest.close(CloseCode::Normal, "");
    let connection = dial(node, &dialer).await;
    // From now on the peak is that of the attack.
    fs::write(format!("/proc/{}/clear_refs", node.pid()), "5").expect("it is our process");
    let before = memory(node, "VmRSS:");
    let asking = ask(&connection, false).await;
    let grown = memory(node, "VmHWM:").saturating_sub(before);
    let waits = answers_wait(node, limits);
    println!("figure answers that wait: {} KiB", waits >> 10);
    asking.iter().for_each(JoinHandle::abort);
    grown
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_bounded_for_the_whole_connection() {
    let bench = Bench::new();
    let admin = bench.admin();
    admin.identity();
    let known = NodeKey::load_or_create(&admin.state().join("identity.key"));
    let known = known.expect("the key was just made").0;
    let unknown = NodeKey::generate().expect("the system has entropy");
    for (who, key, most, limits) in [
        (
            "unknown",
            &unknown,
            UNKNOWN_MAX,
            PeerLimits::UNAUTHENTICATED,
        ),
        ("known", &known, KNOWN_MAX, PeerLimits::AUTHENTICATED),
    ] {
        // A node of its own: another one would keep what it took for the last.
        let node = bench.host();
        let grown = growth(&node, key, limits).await;
        println!("figure {who}: {} KiB", grown >> 10);
        assert!(grown <= most, "{who}: {grown} bytes");
        let served = admin.call(node.target(), "node/info", &Value::Null, &[]);
        assert_eq!(served.status, 0, "{served:?}");
    }
}
