use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use alknet_call::{CallHandler, Dispatcher, Registry};
use alknet_core::{
    AlpnSpec, AuthContext, BoxFuture, Connection, HandlerError, HandlerRegistry, Identities,
    IdentityEntries, ProtocolHandler, SystemClock,
};
use alknet_endpoint::{EndpointLimits, ServerOptions};
use alknet_test_support::deadline;

use super::*;

/// What is wrong with the call protocol of a test's node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CallFault {
    /// The handler returns an error over this carriage.
    Fails(Carriage),
    Hangs,
    None,
    /// Another node answers.
    OtherNode,
    Panics,
}

struct FaultyCallHandler {
    alpns: [AlpnSpec; 1],
    fault: CallFault,
    dispatcher: Arc<Dispatcher>,
}

impl ProtocolHandler for FaultyCallHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        match self.fault {
            CallFault::Fails(carriage) if carriage == auth.carriage => {
                let error = std::io::Error::other("a fault of the test");
                Box::pin(async move { Err(HandlerError::Internal(error.into())) })
            }
            CallFault::Hangs => Box::pin(async move {
                let _open = connection;
                std::future::pending().await
            }),
            CallFault::Panics => panic!("a fault of the test"),
            CallFault::Fails(_) | CallFault::None | CallFault::OtherNode => {
                let calls = CallHandler::new(Arc::clone(&self.dispatcher));
                Arc::new(calls).handle(connection, auth)
            }
        }
    }
}

/// The node's look at a port that a node with `key` serves, under `alpn` and with room for so many connections.
fn caller(
    fault: CallFault,
    key: &NodeKey,
    alpn: &'static [u8],
    connections_max: u32,
) -> SelfCaller {
    // The port listens on this address only.
    let addrs = vec![Ipv4Addr::new(127, 0, 0, 3).into()];
    caller_at(addrs, fault, key, alpn, connections_max)
}

fn caller_at(
    addrs: Vec<IpAddr>,
    fault: CallFault,
    key: &NodeKey,
    alpn: &'static [u8],
    connections_max: u32,
) -> SelfCaller {
    let name = match fault {
        CallFault::OtherNode => "another node".to_owned(),
        _ => key.public().to_string(),
    };
    let registry = Registry::builder().build().expect("no operation is wrong");
    let mut handlers = HandlerRegistry::new();
    let handler = FaultyCallHandler {
        alpns: [AlpnSpec::new(alpn)],
        fault,
        dispatcher: Arc::new(Dispatcher::new(registry).with_node(name)),
    };
    handlers.register(Arc::new(handler)).expect("the only one");
    let clock = Arc::new(SystemClock { built_s: 0 });
    let identities = Arc::new(Identities::new(IdentityEntries::default(), clock));
    let options = ServerOptions {
        addrs,
        port: 0,
        limits: EndpointLimits {
            connections_max,
            ..EndpointLimits::default()
        },
        ..ServerOptions::default()
    };
    let server = EndpointServer::bind(options, key, handlers, identities).expect("a free port");
    SelfCaller {
        patience: deadline(Duration::from_secs(60)),
        ..SelfCaller::new(Arc::new(server), key.clone())
    }
}

fn key() -> NodeKey {
    NodeKey::generate().expect("the system has entropy")
}

/// The reason for which a call failed.
async fn failure(caller: &SelfCaller) -> String {
    match caller.call().await {
        SelfCallResult::Failed { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_serves_answers_itself() {
    let caller = caller(CallFault::None, &key(), ALPN, 64);
    assert_eq!(caller.call().await, SelfCallResult::Answered);
    let counters = caller.server.counters();
    assert_eq!((counters.handshakes_ok, counters.connections_open), (0, 0));
}

/// Known peers have taken every connection, so that no other client gets in.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_all_connections_do_not_keep_a_node_from_itself() {
    let key = key();
    // The second address is one of IPv4 in an IPv6 socket, whose clients have IPv4 addresses.
    for address in ["127.0.0.3", "::ffff:127.0.0.3"] {
        answers_itself_alone(address, &key).await;
    }
}

async fn answers_itself_alone(address: &str, key: &NodeKey) {
    let address = address.parse().expect("an address");
    let caller = caller_at(vec![address], CallFault::None, key, ALPN, 0);
    let dialer = alknet_endpoint::EndpointDialer::new(Some(key.clone()));
    let at = caller.server.addresses()[0];
    let target: alknet_endpoint::Target = at.to_string().parse().expect("an address");
    let target = target.with_pins([key.public()]);
    assert!(dialer.dial(&target, ALPN).await.is_err());
    for _ in 0..100 {
        assert_eq!(caller.call().await, SelfCallResult::Answered);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_over_one_carriage_is_found() {
    for carriage in [Carriage::Quic, Carriage::Tcp] {
        let caller = caller(CallFault::Fails(carriage), &key(), ALPN, 64);
        let reason = failure(&caller).await;
        let place = format!("over {carriage} at 127.0.0.3:");
        assert!(reason.starts_with(&place), "{reason}");
    }
    failure(&caller(CallFault::Panics, &key(), ALPN, 64)).await;
    let reason = failure(&caller(CallFault::OtherNode, &key(), ALPN, 64)).await;
    assert!(reason.ends_with("'another node' answered"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_finish_the_handshake_is_found() {
    // The server proves another key than that of the node.
    let other = SelfCaller {
        key: key(),
        ..caller(CallFault::None, &key(), ALPN, 64)
    };
    failure(&other).await;
    // It does not serve the protocol.
    failure(&caller(CallFault::None, &key(), b"another", 64)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_is_called_once_at_a_time() {
    let caller = SelfCaller {
        patience: Duration::from_millis(200),
        ..caller(CallFault::Hangs, &key(), ALPN, 64)
    };
    let (to_init, mut results) = mpsc::channel(8);
    for _ in 0..3 {
        caller.begin(&to_init);
    }
    drop(to_init);
    let result = results.recv().await.expect("a result");
    let InitMessage::CalledItself { result } = result else {
        panic!("{result:?}");
    };
    let is_unanswered = matches!(result, SelfCallResult::Unanswered { .. });
    assert!(is_unanswered, "{result:?}");
    assert_eq!(results.recv().await, None, "there was one call");
}

/// A port of many addresses takes as long as one, so a round is over before the gate asks again.
#[tokio::test(flavor = "multi_thread")]
async fn calls_at_all_addresses_wait_at_once() {
    const ADDRESSES: u8 = 8;
    let addrs = (1..=ADDRESSES).map(|n| Ipv4Addr::new(127, 0, 0, n).into());
    let patience = deadline(Duration::from_secs(2));
    let caller = SelfCaller {
        patience,
        ..caller_at(addrs.collect(), CallFault::Hangs, &key(), ALPN, 64)
    };
    let begun = Instant::now();
    let result = caller.call().await;
    let is_unanswered = matches!(result, SelfCallResult::Unanswered { .. });
    assert!(is_unanswered, "{result:?}");
    // One after the other would wait for eight times as long.
    assert!(
        begun.elapsed() < patience * u32::from(ADDRESSES),
        "{result:?}"
    );
}
