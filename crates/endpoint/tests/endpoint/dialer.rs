//! The dialer in the view of protocols: core's trait, with nothing but an expectation.

use std::net::Ipv4Addr;
use std::time::Duration;

use alknet_core::{
    Carriage, Connection, DialErrorKind, DialHost, DialRequest, Dialer as _, PeerAddr,
    PeerVerification,
};
use alknet_endpoint::{EndpointDialError, EndpointDialer};
use alknet_tls::{ClientTlsOptions, NodeKey};
use proptest::prelude::*;
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;

use crate::support::{CARRIAGES, EndpointTestNode, WHOAMI, ask, hung};

/// A dial of `node` over `carriage`, by any name of it.
fn request(node: &EndpointTestNode, expect: PeerVerification, carriage: Carriage) -> DialRequest {
    let addr = PeerAddr {
        pins: Vec::new(),
        ..node.target()
    };
    DialRequest {
        carriage,
        ..DialRequest::new(addr, expect, WHOAMI)
    }
}

async fn whoami(connection: &Connection) -> String {
    ask(connection, b"?").await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proved_key_is_reported() {
    let node = EndpointTestNode::start();
    let (dialer, key) = node.peer("edge");
    for carriage in CARRIAGES {
        let pinned = PeerVerification::Pinned(vec![node.key.public()]);
        let request = request(&node, pinned, carriage);
        let dialled = dialer.connect(request).await.expect("dial");
        assert_eq!(dialled.keys.first(), Some(&node.key.public()), "{carriage}");
        assert_eq!(dialled.connection.carriage(), carriage);
        assert_eq!(whoami(&dialled.connection).await, format!("{key} edge\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_only_when_asked_for() {
    let node = EndpointTestNode::start();
    let (dialer, _) = node.peer("edge");
    for carriage in CARRIAGES {
        let mut request = request(
            &node,
            PeerVerification::Pinned(vec![node.key.public()]),
            carriage,
        );
        request.present_key = false;
        let dialled = dialer.connect(request).await.expect("dial");
        assert_eq!(whoami(&dialled.connection).await, "no key unknown\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_prove_its_key_is_an_impostor() {
    let node = EndpointTestNode::start();
    let other = NodeKey::generate().expect("a key").public();
    let dialer = EndpointDialer::new(None);
    for carriage in CARRIAGES {
        let wrong = request(&node, PeerVerification::Pinned(vec![other]), carriage);
        let error = dialer.connect(wrong).await.expect_err("another key");
        assert_eq!(error.kind, DialErrorKind::Impostor, "{carriage} {error}");
        assert!(error.is_permanent());
        let mut public = request(&node, PeerVerification::WebPki, carriage);
        // Only a dialler with `webpki_ip` takes a public certificate for an address.
        let error = dialer
            .connect(public.clone())
            .await
            .expect_err("an address");
        assert_eq!(error.kind, DialErrorKind::UnknownPeer, "{carriage} {error}");
        let options = ClientTlsOptions {
            webpki_ip: true,
            ..ClientTlsOptions::default()
        };
        let told = EndpointDialer::with_options(options);
        let error = told.connect(public.clone()).await.expect_err("self-signed");
        assert_eq!(error.kind, DialErrorKind::Impostor, "{carriage} {error}");
        public.addr.host = DialHost::Name("localhost".to_owned());
        let error = dialer.connect(public).await.expect_err("self-signed");
        assert_eq!(error.kind, DialErrorKind::Impostor, "{carriage} {error}");
        let unknown_peer = request(&node, PeerVerification::Pinned(Vec::new()), carriage);
        let error = dialer
            .connect(unknown_peer)
            .await
            .expect_err("no peer fits");
        assert_eq!(error.kind, DialErrorKind::Local, "{carriage} {error}");
    }
}

/// The kernel accepts bytes for both sockets, and no program reads them.
#[tokio::test(flavor = "multi_thread")]
async fn a_dial_to_a_server_that_does_not_answer_ends_at_the_dialer_s_limit() {
    let anywhere = (Ipv4Addr::LOCALHOST, 0);
    let udp = UdpSocket::bind(anywhere).await.expect("a free port");
    let tcp = TcpListener::bind(anywhere).await.expect("a free port");
    let silent = [
        (Carriage::Quic, udp.local_addr().expect("it is bound")),
        (Carriage::Tcp, tcp.local_addr().expect("it is bound")),
    ];
    let pins = vec![NodeKey::generate().expect("a key").public()];
    let limit = Duration::from_secs(1);
    let dialer = EndpointDialer::new(None).with_dial_timeout(limit);
    for (carriage, address) in silent {
        let target = PeerAddr {
            pins: pins.clone(),
            host: DialHost::Ip(address.ip()),
            port: address.port(),
        };
        let dial = dialer.dial_over(carriage, &target, WHOAMI);
        let ended = timeout(hung(), dial).await.expect("it ends");
        match ended.expect_err("no answer") {
            // The error names the limit that the dialer was given.
            EndpointDialError::TimedOut { seconds, .. } => assert_eq!(seconds, limit.as_secs()),
            other => panic!("{carriage}: {other}"),
        }
        let expect = PeerVerification::Pinned(pins.clone());
        let mut request = DialRequest::new(target, expect, WHOAMI);
        request.carriage = carriage;
        let error = dialer.connect(request).await.expect_err("no answer");
        assert_eq!(error.kind, DialErrorKind::TimedOut, "{carriage} {error}");
    }
}

proptest! {
    /// Core reads names without a TLS library; the library must accept every name that core accepts.
    #[test]
    fn names_that_parse_can_be_dialled(text in "[a-z0-9_.-]{1,30}") {
        if let Ok(PeerAddr { host: DialHost::Name(name), .. }) = text.parse() {
            prop_assert!(alknet_tls::is_dns_name(&name), "{}", name);
        }
    }
}
