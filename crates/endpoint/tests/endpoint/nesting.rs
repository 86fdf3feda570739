//! The endpoint serves a connection that a handler carries inside its own like any other.

use std::net::Ipv4Addr;
use std::sync::Arc;

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Carriage, CloseCode, CloseReason, Connection,
    DispatchError, HandlerError, HandlerRegistry, NestedDispatch, RecvStream, SendStream,
    StreamError, StreamSource,
};
use alknet_endpoint::{
    EndpointDialError, EndpointDialer, EndpointServer, Nesting, ServerOptions, Target,
};
use alknet_tls::NodeKey;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::support::{EndpointTestIdentities, FnHandler, ask, hung, until};

/// These handlers carry: the first line of a stream names the protocol of the rest.
const CARRIERS: [&[u8]; 4] = [
    b"alknet/carrier",
    b"alknet/carrier-2",
    b"alknet/carrier-3",
    b"alknet/carrier-4",
];
/// Reports the served peer.
const WHO: &[u8] = b"alknet/who";
/// The same for known keys only, and never by itself.
const INSIDE: &[u8] = b"alknet/inside";
/// ALPN of a handler that panics.
const PANIC: &[u8] = b"alknet/panic";

/// One stream, handed over once.
struct NestedStreamSource {
    stream: Mutex<Option<(SendStream, RecvStream)>>,
    closed: watch::Sender<bool>,
}

impl StreamSource for NestedStreamSource {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(async {
            let stream = self.stream.lock().await.take();
            match stream {
                Some(stream) => Ok(stream),
                None => Err(StreamError::Closed(self.closed().await)),
            }
        })
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(async { Err(StreamError::Unsupported) })
    }

    fn is_multi(&self) -> bool {
        false
    }

    fn close(&self, _: CloseCode, _: &str) {
        self.closed.send_replace(true);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async {
            // The sender lives as long as `self`.
            let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
            CloseReason::Local
        })
    }
}

type Refusals = Arc<std::sync::Mutex<Vec<DispatchError>>>;

/// Hands over the rest of a stream whose first line names a protocol.
async fn carry(
    nesting: &Nesting,
    refusals: &Refusals,
    carrier: &Connection,
    auth: AuthContext,
    (send, mut recv): (SendStream, RecvStream),
) {
    let mut alpn = Vec::new();
    loop {
        match recv.read_chunk(1).await {
            Ok(Some(end)) if &end[..] == b"\n" => break,
            Ok(Some(byte)) => alpn.extend_from_slice(&byte),
            _ => return,
        }
    }
    let source = NestedStreamSource {
        stream: Mutex::new(Some((send, recv))),
        closed: watch::Sender::new(false),
    };
    let nested = carrier.nested(Box::new(source), &alpn);
    match nesting.dispatch(nested, auth) {
        Ok(served) => served.await,
        Err(refusal) => refusals.lock().expect("whole").push(refusal),
    }
}

/// Reports the peer, and the connection that carries this one.
async fn inner(connection: Connection, auth: AuthContext) -> Result<(), HandlerError> {
    assert_ne!(connection.alpn(), PANIC, "as asked");
    let (mut send, _recv) = connection.accept_bi().await.expect("a stream");
    let [inherited, own] = [auth.identity, connection.identity()]
        .map(|who| who.map_or_else(|| "unknown".to_owned(), |who| who.id.to_string()));
    let path = connection
        .carriers()
        .map(|c| String::from_utf8_lossy(c.alpn()));
    let path: Vec<_> = path.collect();
    let from = connection.remote_addr().expect("its carrier's").ip();
    let said = format!("{inherited} {own} from {from} in {}", path.join(" in "));
    send.write_chunk(said.into()).await.expect("room");
    send.finish().expect("open");
    Ok(())
}

struct NestingTestNode {
    server: EndpointServer,
    key: NodeKey,
    peers: Arc<EndpointTestIdentities>,
    refusals: Refusals,
}

impl NestingTestNode {
    fn start() -> Self {
        let nesting = Nesting::new();
        let refusals = Refusals::default();
        let carrier = {
            let (nesting, refusals) = (Arc::clone(&nesting), Arc::clone(&refusals));
            move |connection: Connection, auth: AuthContext| {
                let (nesting, refusals) = (Arc::clone(&nesting), Arc::clone(&refusals));
                async move {
                    while let Ok(stream) = connection.accept_bi().await {
                        carry(&nesting, &refusals, &connection, auth.clone(), stream).await;
                    }
                    Ok(())
                }
            }
        };
        let carrier = FnHandler(CARRIERS.map(AlpnSpec::new).to_vec(), carrier);
        let inside = AlpnSpec {
            auth: AuthNeed::Tls,
            carriage: Carriage::Memory,
            ..AlpnSpec::new(INSIDE)
        };
        let inner = FnHandler(
            vec![AlpnSpec::new(WHO), AlpnSpec::new(PANIC), inside],
            inner,
        );
        let mut registry = HandlerRegistry::new();
        registry.register(Arc::new(carrier)).expect("register");
        registry.register(Arc::new(inner)).expect("register");
        let key = NodeKey::generate().expect("a key");
        let peers = Arc::new(EndpointTestIdentities::default());
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, registry, Arc::clone(&peers) as _)
            .expect("a free port");
        server.serve_nested(&nesting);
        Self {
            server,
            key,
            peers,
            refusals,
        }
    }

    async fn dial(
        &self,
        dialer: &EndpointDialer,
        alpn: &[u8],
    ) -> Result<Connection, EndpointDialError> {
        let target = format!("{}:{}", Ipv4Addr::LOCALHOST, self.server.port());
        let target: Target = target.parse().expect("a target");
        let target = target.with_pins([self.key.public()]);
        dialer.dial_over(Carriage::Quic, &target, alpn).await
    }

    /// The answer inside these protocols, or why no handler answers.
    async fn inside(
        &self,
        dialer: &EndpointDialer,
        path: &[&[u8]],
    ) -> Result<String, DispatchError> {
        let connection = self.dial(dialer, CARRIERS[0]).await.expect("dial");
        let lines = [&path.join(&b'\n')[..], b"\n"].concat();
        let answer = timeout(hung(), ask(&connection, &lines))
            .await
            .expect("in time");
        match answer {
            Ok(text) if !text.is_empty() => Ok(text),
            _ => Err(self
                .refusals
                .lock()
                .expect("whole")
                .pop()
                .expect("a reason")),
        }
    }
}

#[tokio::test]
async fn a_nested_connection_has_the_identity_of_its_carrier() {
    let site = NestingTestNode::start();
    let key = NodeKey::generate().expect("a key");
    site.peers.add(key.public(), "edge");
    let (edge, unknown_peer) = (
        EndpointDialer::new(Some(key.clone())),
        EndpointDialer::new(None),
    );
    let answer = site.inside(&edge, &[WHO]).await;
    assert_eq!(
        answer.as_deref(),
        Ok("edge edge from 127.0.0.1 in alknet/carrier")
    );
    let answer = site.inside(&unknown_peer, &[WHO]).await;
    assert_eq!(
        answer.as_deref(),
        Ok("unknown unknown from 127.0.0.1 in alknet/carrier")
    );
    // For known keys only, and only inside: no handshake offers it.
    let answer = site.inside(&edge, &[INSIDE]).await;
    assert!(answer.is_ok(), "{answer:?}");
    let answer = site.inside(&unknown_peer, &[INSIDE]).await;
    assert_eq!(answer, Err(DispatchError::UnknownKey));
    let direct = site.dial(&edge, INSIDE).await.expect_err("not offered");
    assert!(
        matches!(direct, EndpointDialError::NoProtocol { .. }),
        "{direct}"
    );
    assert_eq!(site.server.counters().auth_failures, 1);
}

#[tokio::test]
async fn what_lies_too_deep_or_in_itself_is_refused() {
    let site = NestingTestNode::start();
    let dialer = EndpointDialer::new(None);
    let [one, two, three, four] = CARRIERS;
    let answer = site.inside(&dialer, &[two, three, WHO]).await;
    let path = "alknet/carrier-3 in alknet/carrier-2 in alknet/carrier";
    assert_eq!(
        answer,
        Ok(format!("unknown unknown from 127.0.0.1 in {path}"))
    );
    for (path, refusal) in [
        (&[two, three, four, WHO][..], DispatchError::Depth),
        (&[one, WHO], DispatchError::Itself),
        (&[two, one, WHO], DispatchError::Itself),
        (&[b"alknet/nothing"], DispatchError::NoHandler),
        // Proves a name to a certificate authority, in a handshake and nowhere else.
        (&[b"acme-tls/1"], DispatchError::NoHandler),
    ] {
        let answer = site.inside(&dialer, path).await;
        assert_eq!(answer, Err(refusal), "{path:?}");
    }
}

#[tokio::test]
async fn a_panic_inside_ends_what_is_inside() {
    let site = NestingTestNode::start();
    let dialer = EndpointDialer::new(None);
    let connection = site.dial(&dialer, CARRIERS[0]).await.expect("dial");
    let lost = timeout(hung(), ask(&connection, b"alknet/panic\n")).await;
    let lost = lost.expect("in time");
    assert!(!matches!(&lost, Ok(text) if !text.is_empty()), "{lost:?}");
    let answer = timeout(hung(), ask(&connection, b"alknet/who\n")).await;
    let answer = answer.expect("in time").expect("the carrier is whole");
    assert!(answer.starts_with("unknown"), "{answer}");
    until(|| site.server.counters().handler_panics == 1).await;
}

#[tokio::test]
async fn without_a_port_nothing_is_served() {
    let (_client, carrier) = alknet_core::memory_pair(CARRIERS[0]);
    let source = NestedStreamSource {
        stream: Mutex::new(None),
        closed: watch::Sender::new(false),
    };
    let auth = AuthContext {
        identity: None,
        key: None,
        alpn: CARRIERS[0].into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    };
    let nested = carrier.nested(Box::new(source), WHO);
    let refusal = Nesting::new().dispatch(nested, auth).map(drop);
    assert_eq!(refusal, Err(DispatchError::Unavailable));
}
