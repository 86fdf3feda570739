//! Knocking at the port of a machine that is closed: nobody is there, whatever the console says.

use std::net::SocketAddr;
use std::time::Duration;

use alknet_call::ALPN;
use alknet_core::{Carriage, CloseReason};
use alknet_endpoint::{DialError, Dialer, Target};
use alknet_test_support::deadline;
use alknet_tls::NodeKey;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long an answer to a datagram is waited for: nothing says that none is to come.
const NO_ANSWER: Duration = Duration::from_secs(2);

/// Asserts that neither carriage of the port at this address is served: connections over TCP end before a word of
/// TLS, which QEMU's network accepts first in the place of a machine that then refuses them.
pub(super) fn nobody_answers(address: SocketAddr) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (dialer, target) = somebody_at(address);
        let tcp = dialer.dial_over(Carriage::Tcp, &target, ALPN);
        let (tcp, ()) = tokio::join!(tcp, is_silent(&dialer, &target));
        let tcp = tcp.map(drop);
        // Whoever says a word of TLS is seen by another error: a key that is not the one asked for, or an alert.
        let ends = matches!(
            tcp,
            Err(DialError::Unreachable { .. }
                | DialError::TimedOut { .. }
                | DialError::Refused {
                    reason: CloseReason::Lost(_),
                    ..
                })
        );
        assert!(ends, "it answers over TCP: {tcp:?}");
    });
}

/// Asserts that the port at this address is not served over QUIC.
pub(super) fn nobody_answers_over_quic(address: SocketAddr) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (dialer, target) = somebody_at(address);
        is_silent(&dialer, &target).await;
    });
}

/// Somebody who dials, and a node that is not there: whichever answers has another key, and says so.
fn somebody_at(address: SocketAddr) -> (Dialer, Target) {
    let key = || NodeKey::generate().expect("the system has entropy");
    let target = format!("{}@{address}", key().public()).parse();
    (Dialer::new(Some(key())), target.expect("key and address"))
}

async fn is_silent(dialer: &Dialer, target: &Target) {
    let dialled = dialer.dial_over(Carriage::Quic, target, ALPN);
    let dialled = timeout(deadline(NO_ANSWER), dialled).await;
    let dialled = dialled.map(|dialled| dialled.map(drop));
    let is_silent = matches!(dialled, Err(_) | Ok(Err(DialError::TimedOut { .. })));
    assert!(is_silent, "it answers over QUIC: {dialled:?}");
}
