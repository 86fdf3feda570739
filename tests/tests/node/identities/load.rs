//! The configuration is replaced a hundred times while peers call continuously, and during ten
//! thousand concurrent calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use alknet_call::CallOptions;
use alknet_core::{Carriage, IdentityProvider};
use alknet_endpoint::EndpointLimits;
use serde_json::Value;

use super::lab::{IdentityLab, LabClient, TestIdentity, WAIT, WORK, document, entry, hung};

/// How often the configuration is replaced.
const ROUNDS: usize = 100;
/// Calls in flight on each connection that stays.
const IN_FLIGHT: usize = 8;
/// Calls in flight at once while peers come and go.
const MANY: usize = 10_000;
/// How many of them are on one connection. A peer may have 256.
const MANY_EACH: usize = 250;
/// Calls in flight of a guest that will be removed.
const GUEST_CALLS: usize = 4;
/// In one of this many rounds a removed guest calls as an unknown peer. It is not done more often,
/// because the limits count handshakes of unknown peers.
const UNKNOWN_EVERY: usize = 10;

fn roomy() -> EndpointLimits {
    EndpointLimits {
        per_address_max: 1024,
        handshake_burst: 1000,
        handshakes_per_second: 1000,
        ..EndpointLimits::default()
    }
}

/// Calls repeatedly until `stop`. Every call must be answered.
async fn work_until(
    client: Arc<LabClient>,
    name: String,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) {
    while !stop.load(Ordering::Relaxed) {
        let answer = client.work().await;
        let answer = answer.unwrap_or_else(|error| panic!("{name} lost a call: {error:?}"));
        assert_eq!(answer.value(), name.as_str());
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_allowed_call_is_lost_and_none_that_is_not_allowed_is_answered() {
    let stay: Vec<_> = (0..4)
        .map(|n| TestIdentity::new(&format!("stays-{n}")))
        .collect();
    let guests: Vec<_> = (0..3)
        .map(|n| TestIdentity::new(&format!("guest-{n}")))
        .collect();
    let lab = IdentityLab::start(&document(&stay), roomy());
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );

    let mut workers = Vec::new();
    for (n, peer) in stay.iter().enumerate() {
        let carriage = [Carriage::Quic, Carriage::Tcp][n % 2];
        let client = Arc::new(lab.connect(&peer.key, carriage).await);
        for _ in 0..IN_FLIGHT {
            workers.push(tokio::spawn(work_until(
                Arc::clone(&client),
                peer.name.clone(),
                Arc::clone(&stop),
                Arc::clone(&done),
            )));
        }
    }

    let with_guests = document(&[&stay[..], &guests[..]].concat());
    for round in 0..ROUNDS / 2 {
        assert_eq!(lab.apply(&with_guests).peers.added.len(), guests.len());
        let mut inside = Vec::new();
        for (n, guest) in guests.iter().enumerate() {
            let carriage = [Carriage::Quic, Carriage::Tcp][(n + round) % 2];
            let client = lab.connect(&guest.key, carriage).await;
            client.work().await.expect("a guest is let in");
            inside.push(client);
        }
        // In flight while the guests are removed, so these calls may be answered or not.
        let running: Vec<_> = inside
            .iter()
            .map(|client| {
                let client = Arc::clone(&client.client);
                tokio::spawn(async move { client.call(WORK, &Value::Null).await.is_ok() })
            })
            .collect();
        assert_eq!(
            lab.apply(&document(&stay)).peers.removed.len(),
            guests.len()
        );
        for client in &inside {
            assert!(
                client.work().await.is_err(),
                "a guest that is gone was answered"
            );
        }
        for call in running {
            call.await.expect("no panic");
        }
        if round % UNKNOWN_EVERY == 0 {
            let late = lab.connect(&guests[0].key, Carriage::Quic).await;
            let refused = late.work().await.expect_err("an unknown peer");
            assert_eq!(refused.code.name(), "UNAUTHENTICATED");
        }
    }

    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.expect("no call was lost");
    }
    assert!(done.load(Ordering::Relaxed) > ROUNDS as u64);
    assert!(lab.server.counters().revoked >= (ROUNDS / 2) as u64);
}

/// Starts calls that are answered once they get a permit.
fn begin(client: &LabClient, calls: usize) -> Vec<tokio::task::JoinHandle<bool>> {
    let options = CallOptions {
        timeout: Some(Duration::from_secs(600)),
        ..CallOptions::default()
    };
    let one = |_| {
        let (client, options) = (Arc::clone(&client.client), options.clone());
        tokio::spawn(async move {
            let answer = client.call_with(WAIT, &Value::Null, &options).await;
            answer.is_ok_and(|answer| answer.value() == "waited")
        })
    };
    (0..calls).map(one).collect()
}

/// Waits until this many calls have begun at the node.
async fn begun(lab: &IdentityLab, calls: usize) {
    let mut waiting = lab.waiting.subscribe();
    let all = waiting.wait_for(|begun| *begun >= calls);
    let all = tokio::time::timeout(hung(), all).await;
    assert!(
        matches!(all, Ok(Ok(_))),
        "{} of {calls}",
        *lab.waiting.borrow()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_in_flight_outlive_a_hundred_comings_and_goings() {
    let stay: Vec<_> = (0..MANY / MANY_EACH)
        .map(|n| TestIdentity::new(&format!("stays-{n}")))
        .collect();
    let guests = [TestIdentity::new("guest-0"), TestIdentity::new("guest-1")];
    let lab = IdentityLab::start(&document(&stay), roomy());
    let mut clients = Vec::new();
    let mut allowed = Vec::new();
    for (n, peer) in stay.iter().enumerate() {
        let carriage = [Carriage::Quic, Carriage::Tcp][n % 2];
        let client = lab.connect(&peer.key, carriage).await;
        allowed.extend(begin(&client, MANY_EACH));
        clients.push(client);
    }
    begun(&lab, MANY).await;

    let with_guests = document(&[&stay[..], &guests[..]].concat());
    for round in 1..=ROUNDS {
        assert_eq!(lab.apply(&with_guests).peers.added.len(), guests.len());
        let mut inside = Vec::new();
        let mut theirs = Vec::new();
        for (n, guest) in guests.iter().enumerate() {
            let carriage = [Carriage::Quic, Carriage::Tcp][n % 2];
            let client = lab.connect(&guest.key, carriage).await;
            theirs.extend(begin(&client, GUEST_CALLS));
            inside.push(client);
        }
        begun(&lab, MANY + round * guests.len() * GUEST_CALLS).await;
        assert_eq!(
            lab.apply(&document(&stay)).peers.removed.len(),
            guests.len()
        );
        for call in theirs {
            assert!(
                !call.await.expect("no panic"),
                "a client that is gone was answered"
            );
        }
    }

    // The calls of the removed guests have ended, so none of them takes a permit.
    lab.permits.add_permits(MANY);
    let mut answered = 0;
    for call in allowed {
        answered += usize::from(call.await.expect("no panic"));
    }
    assert_eq!(answered, MANY);
    assert_eq!(lab.permits.available_permits(), 0);
    assert_eq!(
        lab.server.counters().revoked,
        (ROUNDS * guests.len()) as u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_keys_of_one_peer_then_one() {
    let (old, new) = (TestIdentity::new("edge"), TestIdentity::new("edge"));
    let lab = IdentityLab::start(&document(std::slice::from_ref(&old)), roomy());
    let before = lab.connect(&old.key, Carriage::Quic).await;
    assert_eq!(before.work().await.expect("allowed").value(), "edge");

    let (first, second) = (old.key.public(), new.key.public());
    let mut both = String::new();
    entry(&mut both, "edge", &[first, second], "");
    assert_eq!(lab.apply(&both).peers.changed, ["edge"]);
    let after = lab.connect(&new.key, Carriage::Tcp).await;
    assert_eq!(after.work().await.expect("allowed").value(), "edge");
    assert_eq!(before.work().await.expect("still allowed").value(), "edge");

    let mut one = String::new();
    entry(&mut one, "edge", &[second], "");
    assert_eq!(lab.apply(&one).peers.changed, ["edge"]);
    assert!(before.work().await.is_err());
    assert_eq!(before.code().await, Some(1));
    assert_eq!(after.work().await.expect("allowed").value(), "edge");
    assert!(lab.identities.by_key(&first).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_change_on_the_connection_that_is_there() {
    let edge = TestIdentity::new("edge");
    let lab = IdentityLab::start(&document(std::slice::from_ref(&edge)), roomy());
    let client = lab.connect(&edge.key, Carriage::Quic).await;
    client.work().await.expect("allowed");
    let narrow = document(std::slice::from_ref(&edge)).replace("\"work\"", "\"other\"");
    lab.apply(&narrow);
    let refused = client.work().await.expect_err("no longer allowed");
    assert_eq!(refused.code.name(), "FORBIDDEN");
    lab.apply(&document(&[edge]));
    client
        .work()
        .await
        .expect("allowed again, on the same connection");
}
