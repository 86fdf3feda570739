//! Mutations that the hub passes on under a key, and that a peer has taken before it was lost.

use std::sync::atomic::Ordering;

use alknet_call::*;
use alknet_core::{Carriage, CloseCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::common::*;
use crate::farm::{Farm, attached};
use crate::forwarder::farm;

/// How often the workers of a farm began a call.
fn begun(farm: &Farm) -> [usize; 3] {
    [0, 1, 2].map(|n| farm.workers[n].probe.started.load(Ordering::SeqCst))
}

/// Sends a call through the hub, under one key.
fn once(
    farm: &Farm,
    carriage: Carriage,
    operation: &'static str,
    input: &Value,
) -> JoinHandle<CallError> {
    let user = identity("user", &["go:everywhere"]);
    let user = farm.hub.client(carriage, Some(user));
    let input = input.clone();
    tokio::spawn(async move {
        let options = CallOptions {
            idempotency_key: Some("k".to_owned()),
            ..CallOptions::default()
        };
        let ended = user.call_with(operation, &input, &options).await;
        ended.expect_err("it is lost")
    })
}

/// The attacker cuts the connection of a worker that has taken a payment. The hub's operation takes a key, and the
/// worker's takes none, or the hub would ask another worker, which does not know the key.
#[tokio::test]
async fn a_mutation_that_a_peer_took_is_passed_on_no_second_time() {
    for carriage in CARRIAGES {
        for (at, input) in [
            (
                "farm/once",
                json!({ "peer": "w1", "operation": "work/pay" }),
            ),
            ("farm/once", json!({ "operation": "work/pay" })),
            ("farm/once", json!({ "operation": "work/charge" })),
            // An operation of the hub calls the worker's, with a key of its own.
            ("farm/order", Value::Null),
        ] {
            let farm = farm(carriage).await;
            let is_lost = async |asked: JoinHandle<CallError>| {
                let lost = soon(asked).await.expect("no panic");
                let said = (&lost.code, lost.retryable);
                assert_eq!(
                    said,
                    (&ErrorCode::Unavailable, false),
                    "{at} {input}: {lost}"
                );
            };
            let first = once(&farm, carriage, at, &input);
            let took = soon(async {
                loop {
                    if let Some(took) = begun(&farm).iter().position(|&n| n > 0) {
                        break took;
                    }
                    tokio::task::yield_now().await;
                }
            })
            .await;
            farm.links[took].close(CloseCode::Internal, "cut");
            let names = ["w1", "w2", "w3"];
            let mut left = names.to_vec();
            left.remove(took);
            attached(&farm.hub, &left).await;
            let name = names[took];
            let _link = farm.workers[took].join(&farm.hub, carriage, identity(name, &[]));
            left.push(name);
            attached(&farm.hub, &left).await;
            is_lost(first).await;
            is_lost(once(&farm, carriage, at, &input)).await;
            assert_eq!(begun(&farm).iter().sum::<usize>(), 1, "{at} {input}");
        }
    }
}

/// The peer reports that it has begun nothing: the same key may call it again.
#[tokio::test]
async fn a_mutation_that_a_peer_had_no_room_for_may_be_passed_on_again() {
    let farm = farm(Carriage::Memory).await;
    let input = json!({ "peer": "w1", "operation": "work/busy" });
    for asked in 1..3 {
        let refused = soon(once(&farm, Carriage::Memory, "farm/once", &input)).await;
        let refused = refused.expect("no panic");
        let said = (&refused.code, refused.retryable);
        assert_eq!(said, (&ErrorCode::Overloaded, true), "{refused}");
        assert_eq!(begun(&farm), [asked, 0, 0]);
    }
}
