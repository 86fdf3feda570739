//! A hub passes on events of a peer in many subscriptions, and the attacker who subscribed reads none of them. The
//! hub charges the unread events to the attacker, and still delivers the answers of the same peer to other callers
//! over its one connection to the peer.

use std::fs;
use std::time::Duration;

use alknet_call::{CallError, CallOptions, CallRoute, ErrorCode, OperationSpec, Subscription};
use alknet_test_support::deadline;
use alknet_tests::{HostNode, TestBench, eventually};
use serde_json::{Value, json};

use super::manual_peer::{ManualPeer, caller, people, until_attached};
use super::unread::memory;

/// Memory of the hub's machine, in bytes. With it the hub allows 8 MiB of unread data, half of it for one identity,
/// and half of that for what the hub passes on.
const SMALL: u64 = 64 << 20;
/// Connections of the attacker, and subscriptions on each of them.
const CONNECTIONS: usize = 4;
const FLOWS: usize = 16;
/// Limit for the growth of the hub, in bytes. The hub keeps 4 MiB of events, and as much in the windows of its
/// connection to the peer, where data takes up to two and a half times its size. The allocator keeps some freed
/// memory. Two uncounted events of each subscription, which the hub kept before this limit existed, are 87 MiB.
const GROWTH_MAX: u64 = 48 << 20;
/// Calls of another identity, one after the other.
const CALLS: usize = 8;

/// Time without a change after which the test considers the hub's growth ended.
const QUIET: Duration = Duration::from_millis(500);

/// Scopes of a peer that may call the subscribed peer.
const FOLLOWER: &[&str] = &["peer:route:flow"];

async fn within<T>(work: impl Future<Output = T>) -> T {
    let hung = deadline(Duration::from_secs(60));
    tokio::time::timeout(hung, work).await.expect("it hangs")
}

fn options(route: CallRoute) -> CallOptions {
    CallOptions {
        timeout: None,
        peer: Some("flow".to_owned()),
        window: 1,
        route,
        ..CallOptions::default()
    }
}

/// Reads a subscription to its end, and returns the error that ended it.
async fn end(mut events: Subscription) -> Option<CallError> {
    loop {
        match events.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}

/// Peak of the hub's resident memory in bytes, after the peak has stopped growing.
async fn peak(hub: &HostNode) -> u64 {
    let mut most = 0;
    loop {
        // The hub sends no signal when it stops keeping events.
        tokio::time::sleep(deadline(QUIET)).await;
        let now = memory(hub, "VmHWM:");
        if now == most {
            return most;
        }
        most = now;
    }
}

/// One identity cooperates with a peer that sends events of 700 KiB for as long as the hub reads them, and ignores
/// flow control.
#[tokio::test(flavor = "multi_thread")]
async fn unread_events_of_a_peer_end_and_stop_no_other() {
    let bench = TestBench::new();
    let [flow, eve, ada] = ["flow", "eve", "ada"].map(|name| bench.user(name));
    let config = people([
        ("flow", &flow, &[][..]),
        ("eve", &eve, FOLLOWER),
        ("ada", &ada, FOLLOWER),
    ]);
    let config = format!("[hub]\nenabled = true\n{config}");
    if let Some(hub) = bench.host_on(SMALL, &config) {
        let specs = vec![
            OperationSpec::subscription("node/flow", "Goes on for ever."),
            OperationSpec::query("node/pay", "Answers."),
        ];
        let flow = ManualPeer::serving(&hub, &flow, specs).await;
        until_attached(&hub);
        let (_adas, ada) = caller(&hub, &ada).await;
        let call = CallOptions {
            peer: Some("flow".to_owned()),
            ..CallOptions::default()
        };
        // The first subscription and call allocate what the hub keeps for its lifetime: streams, tables, pages of
        // the allocator.
        let one = options(CallRoute::Auto);
        let first = ada.subscribe_with("node/flow", &Value::Null, &one);
        let mut first = within(first).await.expect("it is sent");
        let event = within(first.next()).await.expect("an event");
        event.expect("there is room for one");
        drop(first);
        let answer = within(ada.call_with("node/pay", &Value::Null, &call)).await;
        answer.expect("it is there");
        fs::write(format!("/proc/{}/clear_refs", hub.pid()), "5").expect("it is our process");
        let before = memory(&hub, "VmRSS:");
        let (mut clients, mut left) = (Vec::new(), Vec::new());
        for n in 0..CONNECTIONS {
            let (dialer, client) = caller(&hub, &eve).await;
            // Half of the connections subscribe on one shared stream with room for one event each. The others
            // subscribe on separate streams that the attacker does not read.
            let options = options([CallRoute::Shared, CallRoute::Auto][n % 2]);
            for _ in 0..FLOWS {
                let events = client.subscribe_with("node/flow", &Value::Null, &options);
                left.push(within(events).await.expect("it is sent"));
            }
            clients.push((dialer, client));
        }
        let most = CONNECTIONS * FLOWS;
        // On a busy machine the hub may rest for a while before they have come to the peer.
        eventually("most came to the peer", || {
            (flow.asked("node/flow") > most / 2).then_some(())
        });
        let grown = peak(&hub).await.saturating_sub(before);
        println!(
            "figure {most} subscriptions that are not taken: {} KiB",
            grown >> 10
        );
        assert!(grown <= GROWTH_MAX, "{grown} bytes");
        assert!(flow.asked("node/flow") > most / 2, "most came to the peer");
        // The peer itself answers, over the connection that also carried its events.
        for _ in 0..CALLS {
            let answer = within(ada.call_with("node/pay", &Value::Null, &call)).await;
            let answer = answer.expect("nothing is in its way");
            assert_eq!(answer.value(), &json!("done"));
        }
        // When the attacker's other subscriptions have ended, the last one delivers the events that the hub kept,
        // and then the reason for its end.
        let one = left.swap_remove(0);
        drop(left);
        let error = within(end(one)).await;
        let error = error.expect("the peer's never end");
        assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
        drop(clients);
    }
}
