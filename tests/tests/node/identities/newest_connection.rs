//! The newest connection of a peer wins.

use std::time::{Duration, Instant};

use alknet_call::CallOptions;
use alknet_call::limits::CALL_TIMEOUT_MAX;
use alknet_core::Carriage;
use alknet_endpoint::EndpointLimits;
use alknet_test_support::took;
use serde_json::Value;

use super::lab::{IdentityLab, TestIdentity, WAIT, document, hung};

/// Waits until a call of [`WAIT`] has arrived.
async fn began(lab: &IdentityLab) {
    let mut waiting = lab.waiting.subscribe();
    let arrived = waiting.wait_for(|began| *began > 0);
    let arrived = tokio::time::timeout(hung(), arrived).await;
    assert!(matches!(arrived, Ok(Ok(_))), "the call never arrived");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_connection_finishes_its_calls_and_gives_way() {
    let edge = TestIdentity::new("edge").with("max_connections = 1");
    let lab = IdentityLab::start(
        &document(std::slice::from_ref(&edge)),
        EndpointLimits::default(),
    );
    let older = lab.connect(&edge.key, Carriage::Quic).await;
    older.work().await.expect("allowed");
    let running = {
        let client = std::sync::Arc::clone(&older.client);
        tokio::spawn(async move { client.call(WAIT, &Value::Null).await })
    };
    began(&lab).await;

    let newer = lab.connect(&edge.key, Carriage::Tcp).await;
    newer.work().await.expect("the newest is served");
    assert_eq!(lab.server.counters().superseded, 1);
    lab.permits.add_permits(1);
    let answer = running.await.expect("no panic").expect("it was let finish");
    assert_eq!(answer.value(), "waited");
    assert_eq!(older.code().await, Some(4));
    newer.work().await.expect("the newest stays");
}

/// How long a superseded connection may finish its calls, as in docs/endpoint.md.
const FINISHES_WITHIN: Duration = Duration::from_secs(5);

/// Even if its calls never finish.
#[tokio::test(flavor = "multi_thread")]
async fn the_older_connection_does_not_stay_for_ever() {
    let edge = TestIdentity::new("edge").with("max_connections = 1");
    let lab = IdentityLab::start(
        &document(std::slice::from_ref(&edge)),
        EndpointLimits::default(),
    );
    let older = lab.connect(&edge.key, Carriage::Quic).await;
    older.work().await.expect("allowed");
    let client = std::sync::Arc::clone(&older.client);
    let options = CallOptions {
        // The call does not end by itself, so neither does the connection.
        timeout: Some(CALL_TIMEOUT_MAX),
        ..CallOptions::default()
    };
    let running = tokio::spawn(async move { client.call_with(WAIT, &Value::Null, &options).await });
    began(&lab).await;
    let began = Instant::now();
    let newer = lab.connect(&edge.key, Carriage::Quic).await;
    newer.work().await.expect("the newest is served");
    assert_eq!(older.code().await, Some(4));
    let waited = began.elapsed();
    assert!(waited >= FINISHES_WITHIN, "it has its time: {waited:?}");
    let within = FINISHES_WITHIN + Duration::from_secs(1);
    took("a superseded connection ends", within, waited);
    assert!(running.await.expect("no panic").is_err());
}
