//! Every kind of TLS client on both carriages of one port, made with the TLS library itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_core::{Carriage, Connection, PeerKey};
use alknet_endpoint::EndpointLimits;
use alknet_tls::{NodeKey, PeerProof};
use futures_util::future::{join, join_all};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::links;
use crate::support::{CARRIAGES, ECHO, EndpointTestNode, HTTP, WHOAMI, hung, stream, until};

const SEED: [u8; 32] = [42; 32];

/// Takes one key, in one form.
#[derive(Debug)]
pub(crate) struct PinnedKeyVerifier {
    pub(crate) key: PeerKey,
    pub(crate) raw: bool,
    /// How often the library called it: not at all in a resumed session.
    pub(crate) full: Arc<AtomicUsize>,
}

impl ServerCertVerifier for PinnedKeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.full.fetch_add(1, Ordering::SeqCst);
        let proof = PeerProof::from_certificate(end_entity)?;
        assert_eq!(proof.certificate.is_none(), self.raw);
        if proof.key != self.key {
            return Err(Error::General("another key".to_owned()));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = alknet_tls::provider().signature_verification_algorithms;
        if self.raw {
            let spki = cert.as_ref().into();
            return verify_tls13_signature_with_raw_key(message, &spki, dss, &algorithms);
        }
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        alknet_tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientKey {
    None,
    Raw,
    /// Shows one key and signs with another.
    Stolen,
    /// The same in a certificate.
    StolenX509,
    X509,
}

pub(crate) fn pkcs8(seed: [u8; 32]) -> PrivatePkcs8KeyDer<'static> {
    let prefix = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    PrivatePkcs8KeyDer::from([&prefix[..], &seed].concat())
}

fn spki(key: PeerKey) -> CertificateDer<'static> {
    let PeerKey::Ed25519(key) = key else {
        panic!("an Ed25519 key")
    };
    PeerKey::ed25519_spki(&key).to_vec().into()
}

pub(crate) fn raw_key(shown: PeerKey, signing: [u8; 32]) -> Arc<CertifiedKey> {
    let key = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&pkcs8(signing)).expect("a key");
    Arc::new(CertifiedKey::new(vec![spki(shown)], key))
}

pub(crate) fn config(
    provider: Arc<CryptoProvider>,
    server: PeerKey,
    raw: bool,
    client: ClientKey,
    alpn: Option<&[u8]>,
) -> ClientConfig {
    let own = NodeKey::from_seed(&SEED).public();
    let shown = match client {
        ClientKey::None => None,
        ClientKey::Raw => Some((raw_key(own, SEED), true)),
        ClientKey::Stolen => Some((raw_key(own, [1; 32]), true)),
        ClientKey::StolenX509 => {
            let (shown, _) = crate::authority::wrapped(SEED);
            let signing = Arc::clone(&raw_key(own, [1; 32]).key);
            let stolen = CertifiedKey::new(shown.cert.clone(), signing);
            Some((Arc::new(stolen), false))
        }
        ClientKey::X509 => Some((crate::authority::wrapped(SEED).0, false)),
    };
    let pinned = PinnedKeyVerifier {
        key: server,
        raw,
        full: Arc::default(),
    };
    showing(provider, pinned, shown, alpn)
}

/// A client that shows a key, raw where `shown` says so, and accepts the server that `pinned` accepts.
pub(crate) fn showing(
    provider: Arc<CryptoProvider>,
    pinned: PinnedKeyVerifier,
    shown: Option<(Arc<CertifiedKey>, bool)>,
    alpn: Option<&[u8]>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((key, true)) => {
            let resolver = AlwaysResolvesClientRawPublicKeys::new(key);
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
        Some((key, false)) => {
            let resolver = SingleCertAndKey::from(CertifiedKey::clone(&key));
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
    };
    config.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
    config.resumption = Resumption::in_memory_sessions(9);
    config
}

pub(crate) async fn over_tcp(
    port: u16,
    config: Arc<ClientConfig>,
) -> std::io::Result<(String, bool)> {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = "test.invalid".try_into().expect("a name");
    let mut tls = tokio_rustls::TlsConnector::from(config)
        .connect(name, tcp)
        .await?;
    tls.write_all(b"?").await?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await?;
    let kind = tls.get_ref().1.handshake_kind();
    Ok((answer, kind == Some(rustls::HandshakeKind::Resumed)))
}

async fn over_quic(port: u16, config: Arc<ClientConfig>) -> std::io::Result<String> {
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3");
    let connection = endpoint
        .connect_with(
            quinn::ClientConfig::new(Arc::new(tls)),
            ([127, 0, 0, 1], port).into(),
            "test.invalid",
        )
        .expect("a valid configuration")
        .await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"?").await?;
    let answer = recv.read_to_end(999).await.map_err(std::io::Error::other)?;
    connection.close(0u32.into(), b"");
    Ok(String::from_utf8(answer).expect("text"))
}

pub(crate) async fn whoami(
    carriage: Carriage,
    port: u16,
    config: &Arc<ClientConfig>,
) -> std::io::Result<String> {
    match carriage {
        Carriage::Quic => over_quic(port, Arc::clone(config)).await,
        _ => Ok(over_tcp(port, Arc::clone(config)).await?.0),
    }
}

/// Without post-quantum key exchange, so that a ClientHello fits one packet.
pub(crate) fn classic() -> Arc<CryptoProvider> {
    let mut provider = (*alknet_tls::provider()).clone();
    provider
        .kx_groups
        .retain(|group| group.name() == rustls::NamedGroup::X25519);
    Arc::new(provider)
}

/// One kind of client, and the answer of a node that knows its key.
struct ClientCase {
    name: String,
    config: Arc<ClientConfig>,
    answer: String,
}

/// The largest datagram of a client that knows nothing of the way (RFC 9000 section 14.1).
const DATAGRAM_BYTES: usize = 1200;

/// The length of the ClientHello, without QUIC's own parameters.
fn hello_bytes(config: &Arc<ClientConfig>) -> usize {
    let name = "test.invalid".try_into().expect("a name");
    let version = rustls::quic::Version::V1;
    let client = rustls::quic::ClientConnection::new(Arc::clone(config), version, name, vec![]);
    let mut hello = Vec::new();
    let _ = client.expect("a client").write_hs(&mut hello);
    hello.len()
}

/// Three kinds of client key, two kinds of server key, with a ClientHello of two packets and of one.
fn kinds(node: &EndpointTestNode) -> Vec<ClientCase> {
    let own = NodeKey::from_seed(&SEED).public();
    node.peers.add(own, "tester");
    let mut kinds = Vec::new();
    for (packets, provider) in [(2, alknet_tls::provider()), (1, classic())] {
        for raw in [true, false] {
            for client in [ClientKey::None, ClientKey::Raw, ClientKey::X509] {
                let (provider, server) = (Arc::clone(&provider), node.key.public());
                let config = config(provider, server, raw, client, Some(WHOAMI));
                let config = Arc::new(config);
                assert_eq!(hello_bytes(&config) > DATAGRAM_BYTES, packets == 2);
                kinds.push(ClientCase {
                    name: format!("raw server {raw}, client {client:?}, {packets} packets"),
                    config,
                    answer: match client {
                        ClientKey::None => "no key unknown\n".to_owned(),
                        _ => format!("{own} tester\n"),
                    },
                });
            }
        }
    }
    kinds
}

/// On both carriages of one port: the same key is the same peer everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_client_is_served_on_one_port() {
    let node = EndpointTestNode::start();
    for kind in kinds(&node) {
        for carriage in CARRIAGES {
            let answer = whoami(carriage, node.server.port(), &kind.config).await;
            let case = format!("{}, {carriage}", kind.name);
            assert_eq!(answer.expect(&case), kind.answer, "{case}");
        }
    }
}

/// The same where datagrams get lost and overtake each other, and where TCP's bytes arrive in odd pieces. All clients
/// run at once, and several times, since chance does not lose the same datagram twice.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_client_is_served_over_a_bad_link() {
    const ROUNDS: usize = 5;
    let node = EndpointTestNode::with_limits(EndpointLimits {
        // A client whose packets get lost twice in a row is late, and must not be refused for it.
        handshake_timeout: hung(),
        // All clients come from one address, and most of them with one key.
        handshake_burst: 1000,
        per_address_max: 1000,
        per_peer_max: 1000,
        ..EndpointLimits::default()
    });
    let port = node.server.port();
    let (udp, tcp) = (
        links::LossyUdpLink::to(port, 1).await,
        links::tcp_to(port, 2).await,
    );
    for round in 0..ROUNDS {
        let kinds = kinds(&node);
        let visits = kinds.iter().flat_map(|kind| {
            [(Carriage::Quic, udp.port), (Carriage::Tcp, tcp)].map(|(carriage, port)| async move {
                let answer = timeout(hung(), whoami(carriage, port, &kind.config)).await;
                let case = format!("{}, {carriage}, round {round}", kind.name);
                let answer = answer.unwrap_or_else(|_| panic!("{case}: no end"));
                assert_eq!(answer.expect(&case), kind.answer, "{case}");
            })
        });
        join_all(visits).await;
    }
    let count = |what: &AtomicUsize| what.load(Ordering::Relaxed);
    let tally = &udp.tally;
    assert!(
        count(&tally.lost) >= 10 && count(&tally.overtaken) >= 10,
        "{tally:?}"
    );
}

/// More than a window of data, both ways.
#[tokio::test(flavor = "multi_thread")]
async fn large_data_crosses_a_bad_link() {
    let node = EndpointTestNode::start();
    let (dialer, _) = node.peer("friend");
    let port = node.server.port();
    let text: String = (0..400_000u32)
        .map(|i| char::from(b'a' + (i % 23) as u8))
        .collect();
    let udp = links::LossyUdpLink::to(port, 3).await;
    for (carriage, port) in [
        (Carriage::Quic, udp.port),
        (Carriage::Tcp, links::tcp_to(port, 4).await),
    ] {
        let mut target = node.target();
        target.port = port;
        let connection = dialer.dial_over(carriage, &target, ECHO).await;
        let connection = connection.unwrap_or_else(|error| panic!("{carriage}: {error}"));
        let back = timeout(hung(), echoed(&connection, &text)).await;
        let back = back.unwrap_or_else(|_| panic!("{carriage}: no end"));
        assert!(back == text, "{carriage}: {} bytes came back", back.len());
    }
    assert!(
        udp.tally.lost.load(Ordering::Relaxed) >= 1,
        "{:?}",
        udp.tally
    );
    dialer.close().await;
}

/// The echo of `text`, which is more than every buffer on the way holds.
async fn echoed(connection: &Connection, text: &str) -> String {
    let (mut send, mut recv) = stream(connection).await;
    let write = async {
        send.write_all(text.as_bytes()).await.expect("write");
        send.shutdown().await.expect("shutdown");
    };
    let mut back = String::new();
    let (_, read) = join(write, recv.read_to_string(&mut back)).await;
    read.expect("read");
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_public_key_is_worth_nothing() {
    let node = EndpointTestNode::start();
    node.peers.add(NodeKey::from_seed(&SEED).public(), "admin");
    let provider = alknet_tls::provider();
    let server = node.key.public();
    let mut tried = 0;
    for client in [ClientKey::Stolen, ClientKey::StolenX509] {
        for raw in [true, false] {
            let config = config(Arc::clone(&provider), server, raw, client, Some(WHOAMI));
            let config = Arc::new(config);
            for carriage in CARRIAGES {
                let answer = whoami(carriage, node.server.port(), &config).await;
                assert!(answer.is_err(), "{client:?} {raw} {carriage}");
                tried += 1;
                until(|| node.server.counters().handshakes_failed == tried).await;
                let counters = node.server.counters();
                assert_eq!(counters.connections_quic + counters.connections_tcp, 0);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_is_looked_up_again() {
    let node = EndpointTestNode::start();
    let own = NodeKey::from_seed(&SEED).public();
    node.peers.add(own, "tester");
    let provider = alknet_tls::provider();
    let server = node.key.public();
    let config = Arc::new(config(provider, server, true, ClientKey::Raw, Some(WHOAMI)));
    let port = node.server.port();
    let first = over_tcp(port, Arc::clone(&config))
        .await
        .expect("a session");
    assert_eq!(first, (format!("{own} tester\n"), false));
    let second = over_tcp(port, Arc::clone(&config))
        .await
        .expect("a session");
    assert_eq!(second, (format!("{own} tester\n"), true));
    node.peers.remove(&own);
    let third = over_tcp(port, Arc::clone(&config))
        .await
        .expect("a session");
    assert_eq!(third, (format!("{own} unknown\n"), true));
}

/// A browser would show a certificate picker.
#[tokio::test(flavor = "multi_thread")]
async fn web_clients_are_not_asked_for_a_certificate() {
    let node = EndpointTestNode::start();
    for (alpn, expected) in [
        (HTTP, "no key unknown\n".to_owned()),
        (WHOAMI, {
            format!("{} unknown\n", NodeKey::from_seed(&SEED).public())
        }),
    ] {
        let provider = alknet_tls::provider();
        let server = node.key.public();
        let config = Arc::new(config(provider, server, false, ClientKey::X509, Some(alpn)));
        for carriage in CARRIAGES {
            let answer = whoami(carriage, node.server.port(), &config).await;
            assert_eq!(answer.expect("an answer"), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_alpn_finds_no_handler() {
    let node = EndpointTestNode::start();
    let provider = alknet_tls::provider();
    let server = node.key.public();
    let config = Arc::new(config(provider, server, false, ClientKey::None, None));
    let answer = whoami(Carriage::Tcp, node.server.port(), &config).await;
    assert_eq!(answer.expect("a clean end"), "");
    assert_eq!(node.server.counters().no_handler, 1);
    assert!(
        whoami(Carriage::Quic, node.server.port(), &config)
            .await
            .is_err()
    );
}
