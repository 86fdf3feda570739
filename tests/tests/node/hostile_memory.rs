//! Clients that want all that a small machine has for requests, subscriptions and results. The node
//! refuses each what exceeds its share, and serves the others. The limits depend on the machine's
//! memory, so the test sets a small amount.

use std::net::Ipv4Addr;
use std::time::Duration;

use alknet_call::limits::{SCOPE_BYTES_MAX, SCOPES_MAX};
use alknet_call::{CallConnection, CallOptions, ErrorCode, Idempotence, OperationSpec};
use alknet_core::{Carriage, Connection, StreamError};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::deadline;
use alknet_tests::{CliRunner, HostNode, RawTcpConnection, TestBench, eventually, wire};
use alknet_tls::NodeKey;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::{JoinSet, block_in_place};

use super::manual_peer::{ManualPeer, caller, dial_over, people, until_attached};
use super::unread::memory;

const MIB: usize = 1 << 20;
/// The smallest limits: 4 MiB for requests, half of it for one identity, and 2 MiB for results.
const LEAST: u64 = 32 << 20;
/// A machine with twice as much.
const SMALL: u64 = 64 << 20;

async fn within<T>(work: impl Future<Output = T>) -> T {
    let hung = deadline(Duration::from_secs(60));
    tokio::time::timeout(hung, work).await.expect("it hangs")
}

/// Slightly fewer bytes than a text of this length, to leave room for the rest of the frame.
fn text(bytes: usize) -> Value {
    json!("x".repeat(bytes - 1000))
}

/// Whether the node answers a request of this length over this connection.
async fn is_answered(client: &CallConnection, bytes: usize) -> bool {
    let list = json!({ "prefix": text(bytes) });
    within(client.call("services/list", &list)).await.is_ok()
}

/// A known peer sends a frame of 1 MiB without its last byte on each of many streams.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_do_not_end_leave_others_room() {
    const STREAMS: usize = 12;
    const FIT: usize = 2;
    let bench = TestBench::new();
    let eve = bench.user("eve");
    if let Some(node) = bench.host_on(LEAST, &people([("eve", &eve, &[][..])])) {
        // Connected before, because a handshake may take long beside the frames, which have half a
        // minute.
        let (_admins, admin) = caller(&node, bench.admin()).await;
        let (key, _) = NodeKey::load_or_create(&eve.state().join("identity.key")).expect("a key");
        let (dialer, target) = (EndpointDialer::new(Some(key)), target(&node));
        let dialled = dialer.dial_over(Carriage::Quic, &target, alknet_call::ALPN);
        let connection = within(dialled).await.expect("it is known");
        let mut frame = wire::frame(&vec![b'{'; MIB]);
        frame.pop();
        let almost = Bytes::from(frame);
        let sent_on = |streams: usize| {
            let mut ends = JoinSet::new();
            for _ in 0..streams {
                let (connection, almost) = (connection.clone(), almost.clone());
                ends.spawn(async move {
                    let (mut send, mut recv) = wire::stream(&connection).await.expect("it goes on");
                    // It may be refused before it has sent everything.
                    let _ = send.write_chunk(almost).await;
                    recv.read_chunk(1).await
                });
            }
            ends
        };
        // Two of them are half of the room. They are complete before the others begin, because of
        // frames that grow side by side both may be refused although one has room.
        let mut first = sent_on(FIT);
        block_in_place(|| {
            eventually("two frames are kept", || {
                (unfinished(&node) >= (FIT * MIB) as f64).then_some(())
            });
        });
        // Each of the others is refused for lack of room (2), and not after its time (8), as it
        // would be if incomplete frames did not count.
        let mut others = sent_on(STREAMS - FIT);
        while let Some(end) = within(others.join_next()).await {
            let end = end.expect("no panic");
            assert!(matches!(end, Err(StreamError::Reset(2))), "{end:?}");
        }
        assert!(is_answered(&admin, MIB / 2).await);
        let ended = first.try_join_next();
        assert!(ended.is_none(), "what has room is waited for: {ended:?}");
    }
}

/// How much two identities keep in frames on the smallest machine, so that others have a
/// thirty-second of the rest.
const UNFINISHED: usize = 3 * MIB;

/// Bytes of incomplete frames.
fn unfinished(node: &HostNode) -> f64 {
    let metrics = node.call("node/metrics", &Value::Null);
    let bytes = metrics["values"]["alknet_call_unfinished_bytes"].as_f64();
    bytes.expect("it is counted")
}

/// Sends this many frames of 1 MiB without their last bytes, each on a separate stream.
async fn keeps_frames(node: &HostNode, who: &CliRunner, frames: usize) -> impl Sized {
    let mut frame = wire::frame(&vec![b'{'; MIB]);
    frame.pop();
    let almost = Bytes::from(frame);
    let (dialer, connection) = dial_over(Carriage::Quic, node, who).await;
    let mut streams = Vec::new();
    for _ in 0..frames {
        let (mut send, recv) = wire::stream(&connection).await.expect("it goes on");
        let sent = within(send.write_chunk(almost.clone())).await;
        sent.expect("it is taken");
        streams.push((send, recv));
    }
    (dialer, connection, streams)
}

/// A worker over TCP, whose answers all come on one stream, sends answers longer than what two
/// identities leave.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_do_not_end_end_no_worker_over_tcp() {
    let bench = TestBench::new();
    let names = ["bank", "eve", "mallory", "ada"];
    let [teller, eve, mallory, ada] = names.map(|name| bench.user(name));
    let config = people([
        ("bank", &teller, &[][..]),
        ("eve", &eve, &[]),
        ("mallory", &mallory, &[]),
        ("ada", &ada, CUSTOMER),
    ]);
    let config = format!("[hub]\nenabled = true\n{config}");
    if let Some(hub) = bench.host_on(LEAST, &config) {
        let wide = OperationSpec::query("node/wide", "Answers at length.").with_scope("bank");
        let connected = dial_over(Carriage::Tcp, &hub, &teller).await;
        let _bank = ManualPeer::on(connected, vec![wide]);
        until_attached(&hub);
        let (_adas, ada) = caller(&hub, &ada).await;
        let options = CallOptions {
            peer: Some("bank".to_owned()),
            ..CallOptions::default()
        };
        // A frame has half a minute, and what was kept to the end of an answer was in its way.
        loop {
            let kept = (
                keeps_frames(&hub, &eve, 2).await,
                keeps_frames(&hub, &mallory, 1).await,
            );
            eventually("what there is room for is there", || {
                (unfinished(&hub) >= UNFINISHED as f64).then_some(())
            });
            let answer = within(ada.call_with("node/wide", &Value::Null, &options)).await;
            assert!(answer.is_ok(), "{answer:?}");
            let still = unfinished(&hub) >= UNFINISHED as f64;
            drop(kept);
            if still {
                break;
            }
        }
    }
}

fn target(node: &HostNode) -> Target {
    node.target().parse().expect("the node's own target")
}

/// A peer behind a hub with keyed mutations: `node/hold`, which does not end, `node/pay` and
/// `node/long`, which do, and two that fail.
async fn bank(hub: &HostNode, who: &CliRunner) -> ManualPeer {
    let keyed = |name| {
        let mut spec = OperationSpec::mutation(name, "Changes something.").with_scope("bank");
        spec.idempotent = Idempotence::Keyed;
        spec
    };
    let fail = ["node/fail", "node/fail-short"];
    let specs = [&["node/hold", "node/pay", "node/long"][..], &fail].concat();
    let specs: Vec<_> = specs.into_iter().map(keyed).collect();
    let bank = ManualPeer::serving(hub, who, specs).await;
    until_attached(hub);
    bank
}

/// Who may call it.
const CUSTOMER: &[&str] = &["peer:route:bank", "bank"];

/// Calls an operation of the bank under a key.
async fn pays(
    client: &CallConnection,
    operation: &str,
    key: &str,
    input: &Value,
) -> Result<(), ErrorCode> {
    let options = CallOptions {
        timeout: Some(Duration::from_secs(600)),
        peer: Some("bank".to_owned()),
        idempotency_key: Some(key.to_owned()),
        ..CallOptions::default()
    };
    let answer = client.call_with(operation, input, &options).await;
    answer.map(drop).map_err(|error| error.code)
}

/// The same without an input, which is answered.
async fn paid(client: &CallConnection, operation: &str, key: &str) {
    let answer = within(pays(client, operation, key, &Value::Null)).await;
    assert_eq!(answer, Ok(()), "{operation} {key}");
}

/// A requester abandons each request at once. The runs of the keys continue at the peer that got
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn runs_without_a_caller_keep_their_bytes_counted() {
    let bench = TestBench::new();
    let [teller, eve] = ["bank", "eve"].map(|name| bench.user(name));
    let config = people([("bank", &teller, &[][..]), ("eve", &eve, CUSTOMER)]);
    let config = format!("[hub]\nenabled = true\n{config}");
    if let Some(hub) = bench.host_on(SMALL, &config) {
        let bank = bank(&hub, &teller).await;
        let (dialer, client) = caller(&hub, &eve).await;
        let long = text(MIB);
        // Half of 8 MiB.
        for n in 0..4 {
            let (client, long) = (client.clone(), long.clone());
            let call = tokio::spawn(async move {
                pays(&client, "node/hold", &n.to_string(), &long).await.ok();
            });
            eventually("it is passed on", || {
                (bank.asked("node/hold") > n).then_some(())
            });
            call.abort();
        }
        let refused = within(pays(&client, "node/hold", "more", &long)).await;
        assert_eq!(refused, Err(ErrorCode::Overloaded));
        // There is no room over another connection either.
        drop((dialer, client));
        let (_dialer, client) = caller(&hub, &eve).await;
        let refused = within(pays(&client, "node/hold", "more", &long)).await;
        assert_eq!(refused, Err(ErrorCode::Overloaded));
        assert_eq!(bank.asked("node/hold"), 4);
        let (_admins, admin) = caller(&hub, bench.admin()).await;
        assert!(is_answered(&admin, MIB).await, "others have their half");
    }
}

/// One identity makes more keyed mutations with long results than the results' limit.
#[tokio::test(flavor = "multi_thread")]
async fn results_of_others_are_kept() {
    const PAYMENTS: usize = 60;
    let bench = TestBench::new();
    let [teller, eve, ada] = ["bank", "eve", "ada"].map(|name| bench.user(name));
    let config = people([
        ("bank", &teller, &[][..]),
        ("eve", &eve, CUSTOMER),
        ("ada", &ada, CUSTOMER),
    ]);
    let config = format!("[hub]\nenabled = true\n{config}");
    if let Some(hub) = bench.host_on(LEAST, &config) {
        let bank = bank(&hub, &teller).await;
        let (_adas, ada) = caller(&hub, &ada).await;
        let (_eves, eve) = caller(&hub, &eve).await;
        paid(&ada, "node/pay", "a").await;
        for n in 0..PAYMENTS {
            paid(&eve, "node/long", &n.to_string()).await;
        }
        // The repeated call has run, and does not run again.
        paid(&ada, "node/pay", "a").await;
        assert_eq!(bank.asked("node/pay"), 1);
        // Of the caller's own, which are the most, the oldest made room, and the newest is kept.
        assert_eq!(bank.asked("node/long"), PAYMENTS);
        paid(&eve, "node/long", &(PAYMENTS - 1).to_string()).await;
        assert_eq!(bank.asked("node/long"), PAYMENTS);
        paid(&eve, "node/long", "0").await;
        assert_eq!(bank.asked("node/long"), PAYMENTS + 1);
    }
}

/// A peer fails every call with details whose tree is far longer than their text. The hub keeps each
/// error for its key: with the trees they would take 700 MiB, and 60 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_peer_cost_no_more_than_results() {
    const MEMORY: u64 = 256 << 20;
    const MORE_MAX: u64 = 32 << 20;
    let bench = TestBench::new();
    let [teller, eve, ada] = ["bank", "eve", "ada"].map(|name| bench.user(name));
    let config = people([
        ("bank", &teller, &[][..]),
        ("eve", &eve, CUSTOMER),
        ("ada", &ada, CUSTOMER),
    ]);
    let config = format!("[hub]\nenabled = true\n{config}");
    if let Some(hub) = bench.host_on(MEMORY, &config) {
        let bank = bank(&hub, &teller).await;
        let (_eves, eve) = caller(&hub, &eve).await;
        let (_adas, ada) = caller(&hub, &ada).await;
        paid(&ada, "node/pay", "a").await;
        let before = memory(&hub, "VmHWM:");
        for (client, operation, calls) in [(&eve, "node/fail", 600), (&ada, "node/fail-short", 400)]
        {
            let fails = async |key: usize| {
                let key = key.to_string();
                let answer = within(pays(client, operation, &key, &Value::Null)).await;
                assert_eq!(answer, Err(ErrorCode::Conflict), "{operation} {key}");
            };
            for key in 0..calls {
                fails(key).await;
            }
            // A repeated call has run, and does not run again.
            fails(0).await;
            assert_eq!(bank.asked(operation), calls);
        }
        let more = memory(&hub, "VmHWM:") - before;
        assert!(more <= MORE_MAX, "{} MiB", more >> 20);
    }
}

/// A subscription that is open to unknown peers, and ignores its input.
const FOLLOWED: &str = "services/watch";

/// Four identities keep as many padded subscriptions as a connection may have.
#[tokio::test(flavor = "multi_thread")]
async fn padded_subscriptions_leave_room_for_requests_of_others() {
    const EACH: usize = 60;
    let bench = TestBench::new();
    let names = ["eve", "mallory", "trudy", "craig", "ada", "bob"];
    let crowd = names.map(|name| bench.user(name));
    let entries = names.iter().zip(&crowd);
    let config = people(entries.map(|(name, who)| (*name, who, &[][..])));
    if let Some(node) = bench.host_on(SMALL, &config) {
        // A quarter of 8 MiB is for subscriptions, and a quarter of that for one identity.
        let padding = json!({ "padding": text(64 << 10) });
        let (mut clients, mut held, mut begun) = (Vec::new(), Vec::new(), Vec::new());
        for who in &crowd[..4] {
            let (dialer, client) = caller(&node, who).await;
            let mut own = 0;
            for _ in 0..EACH {
                let events = within(client.subscribe(FOLLOWED, &padding)).await;
                let mut events = events.expect("it is sent");
                match within(events.next()).await.expect("an event") {
                    Ok(_) => own += 1,
                    Err(refused) => assert_eq!(refused.code, ErrorCode::Overloaded),
                }
                held.push(events);
            }
            begun.push(own);
            clients.push((dialer, client));
        }
        assert!(begun.iter().all(|own| *own <= 8), "{begun:?}");
        assert!(begun[..3].iter().all(|own| *own > 4), "{begun:?}");
        for who in &crowd[4..] {
            let (_dialer, client) = caller(&node, who).await;
            assert!(is_answered(&client, MIB).await);
            let short = json!({ "padding": "short" });
            let mut events = within(client.subscribe(FOLLOWED, &short))
                .await
                .expect("sent");
            assert!(within(events.next()).await.expect("an event").is_ok());
        }
    }
}

/// Unknown peers in several networks keep padded subscriptions, two for each connection.
#[tokio::test(flavor = "multi_thread")]
async fn padded_subscriptions_of_unknown_peers_leave_known_ones_theirs() {
    const NETWORKS: u8 = 6;
    const CONNECTIONS: usize = 5;
    let bench = TestBench::new();
    let bob = bench.user("bob");
    if let Some(node) = bench.host_on(SMALL, &people([("bob", &bob, &[][..])])) {
        let target = target(&node);
        let padding = json!({ "padding": text(60_000) });
        let asks = ["1", "2"].map(|id| wire::request(id, FOLLOWED, &padding));
        let (mut held, mut begun) = (Vec::new(), 0);
        block_in_place(|| {
            for n in 0..usize::from(NETWORKS) * CONNECTIONS {
                let network = u8::try_from(n / CONNECTIONS).expect("few") + 1;
                let from = Ipv4Addr::new(127, 0, network, 1);
                let peer = RawTcpConnection::connect(&target, from, None, alknet_call::ALPN);
                let mut peer = peer.expect("every client may connect");
                peer.say(&asks.concat()).expect("it is taken");
                for _ in &asks {
                    let event = peer.event().expect("an answer");
                    begun += usize::from(event["type"] == "call.responded");
                }
                held.push(peer);
            }
        });
        // A quarter of 2 MiB for all of them, and a quarter of that for one network.
        assert!((4..=8).contains(&begun), "{begun}");
        let (_dialer, client) = caller(&node, &bob).await;
        let padding = json!({ "padding": text(400 << 10) });
        let mut events = within(client.subscribe(FOLLOWED, &padding))
            .await
            .expect("sent");
        let first = within(events.next()).await.expect("an event");
        assert!(first.is_ok(), "{first:?}");
        drop(held);
    }
}

/// How much removed operations may cost a hub: 4 MiB, and what the allocator keeps of their texts. 25 MiB in all were seen.
/// Without a limit they take 128 MiB.
const OLD_MAX: u64 = 32 << 20;

/// With the largest permitted rule.
fn ruled(name: &str) -> OperationSpec {
    let mut spec = OperationSpec::query(name, "Has a large rule.");
    let width = SCOPE_BYTES_MAX - name.len() - 1;
    let scope = |n: usize| format!("{name}-{n:-<width$}");
    let scopes = || (0..SCOPES_MAX).map(scope).collect();
    spec.access_control.required_scopes = scopes();
    spec.access_control.required_scopes_any = Some(scopes());
    spec
}

/// Follows the list on a separate stream, reads the first event and no more.
async fn watches(connection: &Connection, id: usize) -> impl Sized {
    let (mut send, mut recv) = wire::stream(connection).await.expect("it goes on");
    let payload = json!({ "operationId": "/services/watch", "input": {}, "window": 1 });
    let event = json!({ "type": "call.requested", "id": id.to_string(), "payload": payload });
    let request = wire::frame(event.to_string().as_bytes());
    let sent = within(send.write_chunk(request.into())).await;
    sent.expect("it is taken");
    let event = within(wire::event(&mut recv)).await.expect("an event");
    assert_eq!(event["type"], "call.responded", "{event}");
    (send, recv)
}

/// Waits until each of the peers serves operations with this name.
fn until_all_serve(hub: &HostNode, peers: usize, name: &str) {
    eventually("what is new is read", || {
        let listed = hub.call("services/list-peers", &Value::Null);
        let is_new = |peer: &&Value| {
            let first = peer["operations"][0]["name"].as_str();
            first.is_some_and(|first| first.starts_with(name))
        };
        let new = listed["peers"].as_array()?.iter().filter(is_new).count();
        (new == peers).then_some(())
    });
}

/// Peers replace everything that they serve, 32 times in all, and each time a known peer has
/// started to watch.
#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_take_nothing_keep_no_old_operations() {
    const ROUNDS: usize = 8;
    const OPERATIONS: usize = 300;
    let bench = TestBench::new();
    let eve = bench.user("eve");
    let names = ["worker-1", "worker-2", "worker-3", "worker-4"];
    let workers = names.map(|name| bench.user(name));
    let entries = names.iter().zip(&workers);
    let known = entries.map(|(name, who)| (*name, who, &[][..]));
    let config = people(known.chain([("eve", &eve, &["peer:list"][..])]));
    let config = format!("[hub]\nenabled = true\n{config}");
    if let Some(hub) = bench.host_on(SMALL, &config) {
        let serves = |n: usize| {
            let ruled = |m: usize| ruled(&format!("old/r{n}-{m}"));
            (0..OPERATIONS).map(ruled).collect::<Vec<_>>()
        };
        let mut peers = Vec::new();
        for worker in &workers {
            let connected = dial_over(Carriage::Quic, &hub, worker).await;
            peers.push(ManualPeer::on(connected, serves(0)));
        }
        block_in_place(|| until_all_serve(&hub, peers.len(), "old/r0-"));
        let (_dialer, connection) = dial_over(Carriage::Quic, &hub, &eve).await;
        let mut watching = vec![watches(&connection, 0).await];
        // The cost of the first import is paid: from now on everything exists as often as before.
        let before = memory(&hub, "VmRSS:");
        for n in 1..=ROUNDS {
            for peer in &peers {
                peer.serves(serves(n));
                watching.push(watches(&connection, watching.len()).await);
            }
            block_in_place(|| until_all_serve(&hub, peers.len(), &format!("old/r{n}-")));
        }
        let grown = memory(&hub, "VmRSS:").saturating_sub(before);
        println!("figure operations that are gone: {} KiB", grown >> 10);
        assert!(grown < OLD_MAX, "{grown} bytes are kept");
        let (_admins, admin) = caller(&hub, bench.admin()).await;
        assert!(is_answered(&admin, MIB / 2).await);
        drop(watching);
    }
}
