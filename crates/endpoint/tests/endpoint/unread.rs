//! The cost of unread answers, on all streams of a connection together. The test runs alone in its process, so that
//! the memory measured is its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{
    ALPN, CallHandler, Dispatcher, EventKind, HandlerKind, OperationSpec, Registration, Registry,
    encode_event,
};
use alknet_core::{
    Clock, HandlerRegistry, Identities, IdentityEntries, IdentityProvider, PeerEntry, PeerKey,
    SystemClock,
};
use alknet_endpoint::{EndpointServer, ServerOptions};
use alknet_test_support::deadline;
use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost};
use serde_json::json;
use tokio::sync::watch;

/// Requests, each on a stream of its own, and bytes of each answer.
const REQUESTS: usize = 1000;
const ANSWER_BYTES: usize = 500 << 10;

/// The limit of memory for a known peer, and for an unknown one.
const KNOWN_MAX: u64 = 16 << 20;
/// The client is in this process, and the C library's allocator keeps freed memory: together up to 3 MiB.
/// `tests/tests/node/unread.rs` measures the node alone; without the limit it takes 4 MiB more.
const UNKNOWN_MAX: u64 = 4 << 20;

/// How long nothing happens before the test concludes that the node does no more.
const QUIET: Duration = Duration::from_millis(500);

/// How long any step may take before the test calls it hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// How many requests arrived at their operation.
struct ArrivalCounter(watch::Sender<usize>);

/// An operation that answers at once, and one that answers once the limit of calls wait.
fn operations(begun: &Arc<ArrivalCounter>) -> Registry {
    let answer = || Ok(json!("x".repeat(ANSWER_BYTES)));
    let at_once = Arc::clone(begun);
    let at_once = HandlerKind::once(move |_, _| {
        at_once.0.send_modify(|n| *n += 1);
        async move { answer() }
    });
    let late = Arc::clone(begun);
    let late = HandlerKind::once(move |_, _| {
        late.0.send_modify(|n| *n += 1);
        let mut begun = late.0.subscribe();
        async move {
            // All begun calls answer together.
            while tokio::time::timeout(deadline(QUIET), begun.changed())
                .await
                .is_ok()
            {}
            answer()
        }
    });
    let small = Arc::clone(begun);
    let small = HandlerKind::once(move |_, _| {
        small.0.send_modify(|n| *n += 1);
        async move { Ok(json!("x")) }
    });
    let spec = |name| OperationSpec::query(name, "For tests.");
    Registry::builder()
        .with(Registration::new(spec("small/at-once"), small))
        .with(Registration::new(spec("big/at-once"), at_once))
        .with(Registration::new(spec("big/late"), late))
        .build()
        .expect("correct operations")
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        * 1024
}

/// A client that takes a few bytes of each stream and no more.
async fn connect(port: u16, server: PeerKey, key: NodeKey) -> quinn::Connection {
    let tls = ClientTls::new(ClientTlsOptions {
        key: Some(key),
        ..ClientTlsOptions::default()
    });
    let place = RemoteHost::Ip(Ipv4Addr::LOCALHOST.into());
    let remote = tls.remote(None, &[server], place).expect("a pin");
    let config = remote.attempts(place, ALPN).swap_remove(0);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3");
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(256u32.into())
        .receive_window((64u32 << 10).into())
        .send_window(64 << 10);
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into()).expect("a socket");
    endpoint
        .connect_with(
            config,
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            &remote.server_name(place).to_str(),
        )
        .expect("a valid configuration")
        .await
        .expect("a connection")
}

/// Sends requests on as many streams as the node allows, reads nothing, and waits until the node begins no more;
/// returns the most memory that this process had meanwhile.
async fn ask(
    connection: &quinn::Connection,
    operation: &str,
    begun: &ArrivalCounter,
) -> (Vec<tokio::task::JoinHandle<()>>, u64) {
    let request = json!({ "operationId": operation, "input": null }).to_string();
    let mut seen = begun.0.subscribe();
    seen.borrow_and_update();
    let streams = (0..REQUESTS).map(|n| {
        let (connection, request) = (connection.clone(), request.clone());
        tokio::spawn(async move {
            let Ok((mut send, _unread)) = connection.open_bi().await else {
                return;
            };
            let frame = encode_event(EventKind::Requested, &n.to_string(), &request);
            if send.write_all(&frame).await.is_ok() {
                let _ = send.finish();
            }
            std::future::pending().await
        })
    });
    let streams: Vec<_> = streams.collect();
    let first = tokio::time::timeout(hung(), seen.changed()).await;
    assert!(first.is_ok(), "nothing is begun");
    // No event shows that the node begins no more. On a busy machine the node ends streams whose answers the client
    // does not read, and begins others in their stead, sooner than these four times are over.
    let mut most = resident();
    let end = tokio::time::Instant::now() + deadline(QUIET) * 16;
    while tokio::time::Instant::now() < end
        && tokio::time::timeout(deadline(QUIET) * 4, seen.changed())
            .await
            .is_ok()
    {
        most = most.max(resident());
    }
    (streams, most.max(resident()))
}

// Each in a process of its own: memory that the allocator keeps from one would hide the use of the other.

#[test]
fn unread_answers_are_bounded_for_the_whole_connection() {
    let name = "unread::unread_answers_are_bounded_for_the_whole_connection";
    alknet_test_support::alone(name, || measure("big/at-once"));
}

#[test]
fn late_unread_answers_are_bounded_for_the_whole_connection() {
    let name = "unread::late_unread_answers_are_bounded_for_the_whole_connection";
    alknet_test_support::alone(name, || measure("big/late"));
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn measure(big: &str) {
    let begun = Arc::new(ArrivalCounter(watch::Sender::new(0)));
    let key = NodeKey::generate().expect("a key");
    let friend = NodeKey::generate().expect("a key");
    let entries = IdentityEntries {
        peers: vec![PeerEntry {
            keys: vec![friend.public()],
            ..PeerEntry::new("friend".parse().expect("a peer id"))
        }],
        ..IdentityEntries::default()
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock { built_s: 0 });
    let peers: Arc<dyn IdentityProvider> = Arc::new(Identities::new(entries, clock));
    let dispatcher = Dispatcher::new(operations(&begun)).with_identities(Arc::clone(&peers));
    let mut registry = HandlerRegistry::new();
    let handler = CallHandler::new(Arc::new(dispatcher));
    registry.register(Arc::new(handler)).expect("register");
    let options = ServerOptions {
        port: 0,
        ..ServerOptions::default()
    };
    let server = EndpointServer::bind(options, &key, registry, peers).expect("a free port");
    let connect = |who: NodeKey| connect(server.port(), key.public(), who);

    // Small answers first: the cost of streams at both ends is not part of the measurement.
    for operation in ["small/at-once", big] {
        for (who, known, most) in [
            (NodeKey::generate().expect("a key"), false, UNKNOWN_MAX),
            (friend.clone(), true, KNOWN_MAX),
        ] {
            let connection = connect(who).await;
            let before = resident();
            let (held, most_seen) = ask(&connection, operation, &begun).await;
            let grown = most_seen.saturating_sub(before);
            println!("figure {operation}, known {known}: {} KiB", grown >> 10);
            let small = operation.starts_with("small");
            assert!(
                small || grown <= most,
                "{operation}, known {known}: {grown} bytes"
            );
            held.into_iter().for_each(|task| task.abort());
            connection.close(0u32.into(), b"");
        }
    }
}
