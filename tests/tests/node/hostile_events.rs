//! Events of a peer that a hub passes on, in many subscriptions of which nothing is taken: they count for the
//! requester, and keep no other requester's answers waiting on the hub's one connection to the peer.

use std::fs;
use std::time::Duration;

use alknet_call::{CallError, CallOptions, CallRoute, ErrorCode, OperationSpec, Subscription};
use alknet_test_support::deadline;
use alknet_tests::{HostNode, TestBench};
use serde_json::{Value, json};

use super::manual_peer::{ManualPeer, caller, people, until_attached};
use super::unread::memory;

/// A machine with 8 MiB for what is unread, half of it for an identity, and half of that for what is passed on.
const SMALL: u64 = 64 << 20;
/// Connections of the attacker's, and subscriptions on each.
const CONNECTIONS: usize = 4;
const FLOWS: usize = 16;
/// What they may make the hub grow by: 4 MiB are kept, and as much in the windows of its connection to the peer,
/// which take up to two and a half times their bytes; the allocator keeps some of what comes and goes. Two
/// uncounted events of each subscription, as the hub kept them before, are 87 MiB.
const GROWTH_MAX: u64 = 48 << 20;
/// Calls of another identity, one after the other.
const CALLS: usize = 8;

/// How long nothing happens that is believed to have come to its end.
const QUIET: Duration = Duration::from_millis(500);

/// Who may call the peer.
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

/// How a subscription ends of which everything is taken.
async fn end(mut events: Subscription) -> Option<CallError> {
    loop {
        match events.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}

/// The most that the hub ever had, once that grows no more.
async fn peak(hub: &HostNode) -> u64 {
    let mut most = 0;
    loop {
        // Nothing tells that the hub keeps no more.
        tokio::time::sleep(deadline(QUIET)).await;
        let now = memory(hub, "VmHWM:");
        if now == most {
            return most;
        }
        most = now;
    }
}

/// One identity, in league with a peer that sends events of 700 KiB for as long as they are taken, and heeds no credit.
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
        // The first ones make what stays: streams, tables, pages of the allocator.
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
            // On one stream with room for one event each, and on streams that are not read.
            let options = options([CallRoute::Shared, CallRoute::Auto][n % 2]);
            for _ in 0..FLOWS {
                let events = client.subscribe_with("node/flow", &Value::Null, &options);
                left.push(within(events).await.expect("it is sent"));
            }
            clients.push((dialer, client));
        }
        let grown = peak(&hub).await.saturating_sub(before);
        let most = CONNECTIONS * FLOWS;
        println!(
            "figure {most} subscriptions that are not taken: {} KiB",
            grown >> 10
        );
        assert!(grown <= GROWTH_MAX, "{grown} bytes");
        assert!(flow.asked("node/flow") > most / 2, "most came to the peer");
        // It is the peer that answers, over the connection that its events came by.
        for _ in 0..CALLS {
            let answer = within(ada.call_with("node/pay", &Value::Null, &call)).await;
            let answer = answer.expect("nothing is in its way");
            assert_eq!(answer.value(), &json!("done"));
        }
        // A subscriber that comes back gets what was kept, once its others give room, and then the reason for the end.
        let one = left.swap_remove(0);
        drop(left);
        let error = within(end(one)).await;
        let error = error.expect("the peer's never end");
        assert_eq!(error.code, ErrorCode::Overloaded, "{error}");
        drop(clients);
    }
}
