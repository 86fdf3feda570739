//! Memory that a node spends on a peer that sends requests without reading the answers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::limits::{PeerLimits, UNREAD_SLACK_BYTES};
use alknet_call::{ALPN, CallConnection, CallOptions, OperationSpec};
use alknet_core::{Carriage, CloseCode, Connection};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{HostNode, TestBench, eventually, wire};
use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost};
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::future::join_all;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use super::manual_peer::{ManualPeer, caller, people, until_attached};

/// Limits in bytes for that memory, for a known peer and for an unknown peer. Each limit covers the answers, and as
/// much again for requests. The node keeps the requests that it has not read in the packets in which they arrived.
/// Of a known peer's limit, an eighth is for the heads of packets and for packets that are not full (measured: up to
/// 35,052 KiB on a busy machine, 20,784 to 32,356 KiB at rest; for an unknown peer 804 to 2,384 KiB). Without the
/// limit for the whole connection, each stream would have its own limit: a known peer could use 64 times 4 MiB, up
/// to the limit of one identity, and an unknown peer 4 MiB in all. The node itself counts the share of the answers,
/// see [`answers_wait`].
const KNOWN_MAX: u64 = 36 << 20;
const UNKNOWN_MAX: u64 = 3 << 20;

/// Streams on which a peer sends requests. An unknown peer gets fewer.
const STREAMS: usize = 64;

/// Requests on each stream, and the requests on each stream of a peer that reads.
const REQUESTS: usize = 4000;
const REQUESTS_READ: usize = 200;

/// Requests in one write.
const TOGETHER: usize = 50;

/// Time without a read by the node after which the test considers the node stopped.
const QUIET: Duration = Duration::from_millis(500);

/// A value from the kernel about the node's memory, in bytes.
pub(super) fn memory(node: &HostNode, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("the node runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("the kernel says it") << 10
}

async fn dial(node: &HostNode, dialer: &EndpointDialer) -> Connection {
    let target: Target = node.target().parse().expect("the node's own target");
    let dialled = dialer.dial_over(Carriage::Quic, &target, ALPN).await;
    dialled.unwrap_or_else(|error| panic!("{error}"))
}

/// Sends requests on every stream that the node allows until the node accepts no more. The client reads answers only
/// with `reads`. The requests end with the returned tasks.
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
        // The node sends no signal when it stops accepting requests.
        tokio::time::sleep(deadline(QUIET)).await;
        let now = taken.load(Ordering::SeqCst);
        if now > 0 && now == before {
            return asking;
        }
        before = now;
    }
}

/// Waits until enough unread answers make the node stop starting new ones, and returns their bytes as the node
/// counts them. The attack therefore reaches the limit, and the limit stops it.
fn answers_wait(node: &HostNode, limits: PeerLimits) -> u64 {
    // The node may keep the same amount again for answers that it has started. The counter changes in steps.
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

/// Growth of the node in bytes for a peer with this key and these limits.
async fn growth(node: &HostNode, key: &NodeKey, limits: PeerLimits) -> u64 {
    let dialer = EndpointDialer::new(Some(key.clone()));
    // A peer that reads makes the node allocate what it keeps for its lifetime: tables, threads, pages of the
    // allocator. A peer that reads no answers is unsuitable here, because the node would keep that peer's memory for
    // the next peer.
    let honest = dial(node, &dialer).await;
    let asking = ask(&honest, true).await;
    asking.iter().for_each(JoinHandle::abort);
    honest.close(CloseCode::Normal, "");
    let connection = dial(node, &dialer).await;
    // This resets the peak, so that the next value is the peak during the attack.
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
async fn unread_answers_are_bounded_for_the_whole_connection() {
    let bench = TestBench::new();
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
        // Each case has a separate node, because a shared node would keep memory of the last case.
        let node = bench.host();
        let grown = growth(&node, key, limits).await;
        println!("figure {who}: {} KiB", grown >> 10);
        assert!(grown <= most, "{who}: {grown} bytes");
        let served = admin.call(node.target(), "node/info", &Value::Null, &[]);
        assert_eq!(served.status, 0, "{served:?}");
    }
}

/// Requests of a client that sends only these, and reads no answer.
const THOUSAND: usize = 1000;

/// Streams that an unknown peer may have open.
const STREAMS_UNKNOWN: usize = 16;

/// The operations that every peer may call.
const OPEN: [&str; 4] = [
    "services/list",
    "services/schema",
    "services/watch",
    "session/authenticate",
];

/// Limit in bytes for what a node keeps of answers to a known peer that the node makes itself, of 500 KiB each. It
/// is measured when the client has stopped. The sum has 8 MiB of counted answers, one answer above them, 64 KiB that the
/// client's window lets the QUIC library accept, some KiB for each of a thousand streams, and what the node's threads
/// need, of which there are more where other programs take the processors (measured: 2.1 to 12.9 MiB in all, also beside
/// four programs that compute, and 18.0 MiB once in a whole run; the counted answers were at most 8,000 KiB each time.
/// That the threads are the rest is a guess). The node's allocator keeps no freed memory in this test: otherwise it
/// keeps more on a busy machine. Without the limit for unread answers, a thousand answers are 500 MiB.
const THOUSAND_OWN_MAX: u64 = 20 << 20;

/// Limit in bytes for the peak of the same node: also the answers that its processors work on.
const THOUSAND_OWN_PEAK: u64 = THOUSAND_OWN_MAX + PROCESSORS as u64 * AT_WORK_BYTES;

/// The same limit for answers of 900 KiB each that come through a hub. The hub keeps 8 MiB of counted answers. The
/// QUIC library also keeps data that the hub has sent and the client has not acknowledged, up to 8 MiB and 256 KiB,
/// and data that the hub's own peer has sent and the hub has not read, up to 16 MiB (measured: 22.7 and 25.3 MB in
/// all). Without the limit for unread answers, a thousand answers are 900 MiB.
const THOUSAND_PASSED_ON_MAX: u64 = 40 << 20;

/// Number of processors of the nodes whose peak the tests compare with a limit.
const PROCESSORS: usize = 2;

/// Bytes that one processor needs to make an answer: the value from the operation, and its text.
const AT_WORK_BYTES: u64 = 1 << 20;

/// Limit in bytes for what a node keeps of the answers to an unknown peer, of 2 KiB each, without the requests: 512
/// KiB of counted answers, 64 KiB that the client's window lets the QUIC library accept, and the cost of a
/// connection and its streams. Without the limit for unread answers, the node would keep 2 MiB of answers.
const THOUSAND_UNKNOWN_MAX: u64 = 1 << 20;

/// Bytes of each answer that a node makes itself.
const ANSWER_BYTES: usize = 500 << 10;

/// Path of a tensor file whose header has a text of [`ANSWER_BYTES`], which `tensor/open` returns.
const LONG_FILE: &str = "long/answer";

/// Difference in resident memory that still counts as unchanged, in bytes, and the number of unchanged measurements
/// in a row that the test requires.
const SAME_BYTES: u64 = 64 << 10;
const SAME_LOOKS: usize = 4;

/// Rounds in which a client reads answers before the measurement, and answers in each round. A round is too small to
/// make the node stop starting answers.
const WARM: usize = 5;
const AT_ONCE: usize = 4;

/// Name of the hub's peer to which the hub passes the requests on.
const PEER: &str = "bank";

/// Pause between two packets of a client that has nothing to send.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Connects a client that reads a few bytes of each stream. The rest of the answers waits at the node.
pub(super) async fn connect(
    node: &HostNode,
    key: &NodeKey,
) -> (quinn::Endpoint, quinn::Connection) {
    let target: Target = node.target().parse().expect("the node's own target");
    let tls = ClientTls::new(ClientTlsOptions {
        key: Some(key.clone()),
        ..ClientTlsOptions::default()
    });
    let address: SocketAddr = target.address().parse().expect("an address");
    let place = RemoteHost::Ip(address.ip());
    let remote = tls.remote(None, &target.pins, place);
    let remote = remote.expect("the node's key is known");
    let config = remote.attempts(place, ALPN).swap_remove(0);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3");
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(256u32.into())
        .receive_window((64u32 << 10).into())
        // On a busy machine the test waits longer for the node's memory than a silent connection lives.
        .keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into()).expect("a socket");
    let connecting = endpoint.connect_with(config, address, &remote.server_name(place).to_str());
    let connection = connecting.expect("a valid configuration").await;
    (endpoint, connection.expect("a connection"))
}

/// Sends a thousand requests over this number of streams, each with a different ID, and reads no answer. The
/// requests end when the returned value is dropped.
fn ask_on(
    connection: &quinn::Connection,
    streams: usize,
    request: impl Fn(usize) -> Vec<u8>,
) -> JoinSet<()> {
    let each = THOUSAND.div_ceil(streams);
    let mut asking = JoinSet::new();
    for stream in 0..streams {
        let ids = stream * each..(stream + 1) * each;
        let requests: Vec<u8> = ids.flat_map(&request).collect();
        let connection = connection.clone();
        asking.spawn(async move {
            let Ok((mut send, _unread)) = connection.open_bi().await else {
                return;
            };
            // The node stops reading the requests.
            let _ = send.write_all(&requests).await;
            std::future::pending::<()>().await;
        });
    }
    asking
}

/// Resident memory of the node in bytes, after it has stopped changing.
async fn settled(node: &HostNode) -> u64 {
    let (mut before, mut same) = (0, 0);
    while same < SAME_LOOKS {
        tokio::time::sleep(deadline(QUIET)).await;
        let now = memory(node, "VmRSS:");
        same = match now.abs_diff(before) <= SAME_BYTES {
            true => same + 1,
            false => 0,
        };
        before = now;
    }
    before
}

/// Memory that a thousand requests cost a node whose client reads no answer, in bytes.
#[derive(Debug)]
struct UnreadCost {
    /// Growth after the node's memory has stopped changing.
    settled: u64,
    /// Growth of the node's peak.
    peak: u64,
    /// Bytes of the packets that the client sent. The node has not read all requests, and keeps the unread ones in
    /// the packets in which they arrived.
    sent: u64,
}

impl UnreadCost {
    /// # Panics
    /// Panics when the node keeps more than `most`, or when its peak is more than `peak`.
    fn is_at_most(&self, most: u64, peak: u64) {
        assert!(self.settled <= most, "{self:?} where {most} may be kept");
        assert!(self.peak <= peak, "{self:?} where the peak may be {peak}");
    }
}

/// Starts a node that keeps no freed memory on [`PROCESSORS`], on a machine with any number of them: a node starts one
/// thread per processor.
fn host_on_few_processors(bench: &TestBench, config: &str) -> HostNode {
    let own = Pid::from_raw(0);
    let all = sched_getaffinity(own).expect("Linux says");
    let mut few = CpuSet::new();
    let there = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or_default());
    for cpu in there.take(PROCESSORS) {
        few.set(cpu).expect("it is one of those");
    }
    // The node inherits the processors that this thread may use.
    sched_setaffinity(own, &few).expect("a part of what it has");
    let node = bench.host_without_free_memory(config);
    sched_setaffinity(own, &all).expect("what it had");
    node
}

/// Cost of a thousand requests of this client over this number of streams, when the client reads no answer. With
/// `limits`, the answers must be long enough to make the node stop at them.
async fn kept_of_a_thousand(
    node: &HostNode,
    key: &NodeKey,
    streams: usize,
    request: impl Fn(usize) -> Vec<u8>,
    limits: Option<PeerLimits>,
) -> UnreadCost {
    let (endpoint, connection) = connect(node, key).await;
    let sent = || connection.stats().udp_tx.bytes;
    let sent_before = sent();
    let before = settled(node).await;
    fs::write(format!("/proc/{}/clear_refs", node.pid()), "5").expect("it is our process");
    let asking = ask_on(&connection, streams, request);
    let waits = limits.map_or(0, |limits| answers_wait(node, limits));
    let cost = UnreadCost {
        settled: settled(node).await.saturating_sub(before),
        peak: memory(node, "VmHWM:").saturating_sub(before),
        sent: sent() - sent_before,
    };
    println!(
        "figure answers that wait: {} KiB, {} KiB are kept, {} KiB at the peak, {} KiB were sent",
        waits >> 10,
        cost.settled >> 10,
        cost.peak >> 10,
        cost.sent >> 10
    );
    drop(asking);
    connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    cost
}

/// Stores a tensor file whose description has at least [`ANSWER_BYTES`].
async fn store_long_file(client: &CallConnection) {
    let mut header = json!({
        "__metadata__": { "said": "x".repeat(ANSWER_BYTES) },
        "one": { "dtype": "U8", "shape": [1], "data_offsets": [0, 1] },
    })
    .to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    let put = async |input: Value| {
        let answer = client.call("tensor/put", &input).await;
        answer.expect("an administrator may").value().clone()
    };
    let begun = put(json!({ "header": BASE64.encode(&file), "path": LONG_FILE })).await;
    let upload = &begun["upload"];
    put(json!({ "upload": upload, "offset": file.len(), "bytes": BASE64.encode(&[7]) })).await;
    put(json!({ "upload": upload, "commit": true })).await;
}

/// The client sends each request on a separate stream, and the node makes the answers itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_answers_of_a_node_s_own_that_a_known_peer_leaves_cost_little() {
    let bench = TestBench::new();
    let node = host_on_few_processors(&bench, "");
    let (dialer, client) = caller(&node, bench.admin()).await;
    store_long_file(&client).await;
    let described = json!({ "src": { "path": LONG_FILE } });
    // A client that reads makes the node allocate what it keeps for its lifetime. The node may keep this number of
    // answers for the client at the same time.
    for _ in 0..WARM {
        let calls = (0..AT_ONCE).map(|_| client.call("tensor/open", &described));
        for answer in join_all(calls).await {
            let answer = answer.expect("an administrator may");
            let said = answer.value()["metadata"]["said"].as_str();
            assert_eq!(said.map(str::len), Some(ANSWER_BYTES));
        }
    }
    drop((client, dialer));
    let key = NodeKey::load_or_create(&bench.admin().state().join("identity.key"));
    let key = key.expect("it was made above").0;
    // A thousand streams with short answers allocate tables that the node keeps for its lifetime.
    let one = json!({ "limit": 1 });
    let short = |id: usize| wire::request(&id.to_string(), "services/list", &one);
    kept_of_a_thousand(&node, &key, THOUSAND, short, None).await;
    let request = |id: usize| wire::request(&id.to_string(), "tensor/open", &described);
    let limits = Some(PeerLimits::AUTHENTICATED);
    let cost = kept_of_a_thousand(&node, &key, THOUSAND, request, limits).await;
    cost.is_at_most(THOUSAND_OWN_MAX, THOUSAND_OWN_PEAK);
    let admin = bench.admin();
    let served = admin.call(node.target(), "node/info", &Value::Null, &[]);
    assert_eq!(served.status, 0, "{served:?}");
}

/// The client sends each request on a separate stream. A peer of the hub makes the answers, which are nearly as long
/// as a frame.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_long_answers_that_a_known_peer_leaves_cost_little() {
    let bench = TestBench::new();
    let [teller, ada] = ["bank", "ada"].map(|name| bench.user(name));
    let scopes = &["peer:route:bank", "bank"][..];
    let config = people([("bank", &teller, &[][..]), ("ada", &ada, scopes)]);
    let hub = host_on_few_processors(&bench, &format!("[hub]\nenabled = true\n{config}"));
    let wide = OperationSpec::query("node/wide", "Answers at length.").with_scope("bank");
    let _bank = ManualPeer::start(&hub, &teller, wide).await;
    until_attached(&hub);
    let (dialer, client) = caller(&hub, &ada).await;
    let options = CallOptions {
        peer: Some(PEER.to_owned()),
        ..CallOptions::default()
    };
    // A client that reads makes the hub allocate what it keeps for its lifetime. The hub may keep this number of
    // answers for the client at the same time.
    for _ in 0..WARM {
        let calls = (0..AT_ONCE).map(|_| client.call_with("node/wide", &Value::Null, &options));
        for answer in join_all(calls).await {
            assert!(answer.is_ok(), "{answer:?}");
        }
    }
    drop((client, dialer));
    let key = NodeKey::load_or_create(&ada.state().join("identity.key"));
    let key = key.expect("it was just made").0;
    let request = |id: usize| {
        let payload = json!({ "operationId": "/node/wide", "input": null, "peer": PEER });
        let event = json!({ "type": "call.requested", "id": id.to_string(), "payload": payload });
        wire::frame(event.to_string().as_bytes())
    };
    // A thousand streams with short answers allocate tables that the node keeps for its lifetime.
    let one = json!({ "limit": 1 });
    let short = |id: usize| wire::request(&id.to_string(), "services/list", &one);
    kept_of_a_thousand(&hub, &key, THOUSAND, short, None).await;
    let limits = Some(PeerLimits::AUTHENTICATED);
    let cost = kept_of_a_thousand(&hub, &key, THOUSAND, request, limits).await;
    cost.is_at_most(
        THOUSAND_PASSED_ON_MAX,
        THOUSAND_PASSED_ON_MAX + PROCESSORS as u64 * AT_WORK_BYTES,
    );
}

/// An unknown peer calls an open operation on as many streams as it may have. The operation that returns the schemas
/// has the longest answer among those that the program opens to unknown peers.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_answers_that_an_unknown_peer_leaves_cost_little() {
    let bench = TestBench::new();
    let key = NodeKey::generate().expect("the system has entropy");
    let node = bench.host();
    let dialer = EndpointDialer::new(Some(key.clone()));
    let honest = dial(&node, &dialer).await;
    let asking = ask(&honest, true).await;
    asking.iter().for_each(JoinHandle::abort);
    honest.close(CloseCode::Normal, "");
    // The longest answer that an unknown peer can get, of 2 KiB.
    let all = json!({ "names": OPEN });
    let request = |id: usize| wire::request(&id.to_string(), "services/schema", &all);
    let limits = Some(PeerLimits::UNAUTHENTICATED);
    let cost = kept_of_a_thousand(&node, &key, STREAMS_UNKNOWN, request, limits).await;
    let most = THOUSAND_UNKNOWN_MAX + cost.sent;
    assert!(cost.settled <= most, "{cost:?} where {most} may be kept");
    assert!(cost.peak <= UNKNOWN_MAX, "{cost:?}");
}
