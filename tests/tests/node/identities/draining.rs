//! The node shuts down while all its peers call.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use alknet_call::CallOptions;
use alknet_core::Carriage;
use alknet_endpoint::EndpointLimits;
use alknet_test_support::deadline;
use serde_json::Value;
use tokio::time::timeout;

use super::lab::{IdentityLab, TestIdentity, WAIT, document, hung};

/// Concurrent calls of each peer.
const AT_ONCE: usize = 16;
/// Calls answered before the node starts to drain.
const BEFORE: u64 = 500;
/// How long a node lets running calls continue.
const DRAIN: Duration = Duration::from_secs(10);

/// Every call that the node accepted runs and is answered. A call without an answer did not run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_that_was_accepted_is_lost() {
    let peers: Vec<_> = (0..6)
        .map(|n| TestIdentity::new(&format!("peer-{n}")))
        .collect();
    let lab = IdentityLab::start(&document(&peers), EndpointLimits::default());
    let (mut callers, mut long) = (Vec::new(), Vec::new());
    let mut answered = 0;
    for (n, peer) in peers.iter().enumerate() {
        let carriage = [Carriage::Quic, Carriage::Tcp][n % 2];
        let client = Arc::new(lab.connect(&peer.key, carriage).await);
        // The client has its connection before the node has accepted it.
        client.work().await.expect("nothing is drained yet");
        answered += 1;
        // Short calls alone would be over before the node could cut any.
        let waits = Arc::clone(&client.client);
        let patient = CallOptions {
            timeout: Some(hung()),
            ..CallOptions::default()
        };
        long.push(tokio::spawn(async move {
            waits.call_with(WAIT, &Value::Null, &patient).await
        }));
        for _ in 0..AT_ONCE {
            let client = Arc::clone(&client);
            callers.push(tokio::spawn(async move {
                let mut answered = 0u64;
                loop {
                    match client.work().await {
                        Ok(_) => answered += 1,
                        Err(error) => return (answered, error),
                    }
                }
            }));
        }
    }
    let begun = async {
        // Nothing announces it, so the test polls.
        while lab.worked.load(Ordering::SeqCst) < BEFORE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(hung(), begun).await.expect("calls are answered");
    let mut waiting = lab.waiting.subscribe();
    let all_wait = waiting.wait_for(|begun| *begun == peers.len());
    let all_wait = timeout(hung(), all_wait).await;
    assert!(all_wait.is_ok_and(|it| it.is_ok()), "the long ones run");
    let told = async {
        for caller in callers {
            let (calls, end) = caller.await.expect("no panic");
            assert_eq!(end.code.name(), "UNAVAILABLE", "{end:?}");
            assert!(end.retryable);
            answered += calls;
        }
        lab.permits.add_permits(peers.len());
    };
    let (drained, ()) = tokio::join!(lab.server.drain(deadline(DRAIN)), told);
    assert_eq!((drained.finished, drained.cut), (peers.len(), 0));
    for call in long {
        let answer = call.await.expect("no panic").expect("it was let in");
        assert_eq!(answer.value(), "waited");
    }
    assert_eq!(answered, lab.worked.load(Ordering::SeqCst));
}
