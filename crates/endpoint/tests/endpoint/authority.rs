//! A certificate authority of the tests, and clients and servers that use its certificates.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use alknet_core::{Carriage, PeerKey};
use alknet_tls::{CertificatePair, NodeKey};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::ECHO;

pub(crate) struct EndpointTestCa {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl EndpointTestCa {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let made = params.self_signed(&key).expect("signed");
        Self {
            certificate: made.der().clone(),
            pem: made.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        roots
    }

    /// A chain of two and its key, in PEM.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("signed").pem();
        (format!("{leaf}{}", self.pem), key.serialize_pem())
    }

    pub(crate) fn pair(&self, names: &[&str]) -> CertificatePair {
        let (chain, key) = self.issue(names);
        CertificatePair::from_pem(chain.as_bytes(), key.as_bytes()).expect("a pair")
    }

    /// The pair in the form that a server shows, and the key's name.
    pub(crate) fn certified(&self, names: &[&str]) -> (Arc<CertifiedKey>, PeerKey) {
        let key = KeyPair::generate().expect("a key");
        let name = PeerKey::from_spki(&key.subject_public_key_info());
        (self.certify(names, &key, |_| {}), name)
    }

    /// The same for a given key, in a certificate that `edit` changes before the authority signs it.
    pub(crate) fn certify(
        &self,
        names: &[&str],
        key: &KeyPair,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Arc<CertifiedKey> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        edit(&mut params);
        let leaf = params.signed_by(key, &self.issuer).expect("signed");
        certified(vec![leaf.der().clone()], key)
    }

    /// A client that trusts this authority alone.
    pub(crate) fn client(&self, alpn: &[u8]) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(alknet_tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        config
    }
}

pub(crate) fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = alknet_tls::provider();
    let private = provider.key_provider.load_private_key(private);
    Arc::new(CertifiedKey::new(chain, private.expect("a key")))
}

/// An Ed25519 key in a self-signed certificate with meaningless names and dates.
pub(crate) fn wrapped(seed: [u8; 32]) -> (Arc<CertifiedKey>, PeerKey) {
    let key = KeyPair::try_from(&crate::matrix::pkcs8(seed)).expect("a key");
    let mut params = CertificateParams::new(vec!["unknown.invalid".to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(1990, 1, 1);
    params.not_after = rcgen::date_time_ymd(1991, 1, 1);
    let made = params.self_signed(&key).expect("signed");
    let certified = certified(vec![made.der().clone()], &key);
    (certified, NodeKey::from_seed(&seed).public())
}

/// The raw key `shown`, signing with another where `seed` is not its own.
pub(crate) fn raw(shown: PeerKey, seed: [u8; 32]) -> Arc<CertifiedKey> {
    crate::matrix::raw_key(shown, seed)
}

#[derive(Debug)]
struct FixedCertResolver(Arc<CertifiedKey>, bool);

impl rustls::server::ResolvesServerCert for FixedCertResolver {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn only_raw_public_keys(&self) -> bool {
        self.1
    }
}

/// A server that does not belong to this project: it shows one key in one form, and repeats the client's bytes after
/// the name of the key that the client proved. It listens on loopback alone: it takes every certificate.
pub(crate) struct ForeignServer {
    pub(crate) tcp: u16,
    pub(crate) quic: u16,
    _endpoints: Vec<quinn::Endpoint>,
}

impl ForeignServer {
    /// `raw` servers take no client keys; the others request any certificate.
    pub(crate) async fn start(key: Arc<CertifiedKey>, raw: bool) -> Self {
        let builder = ServerConfig::builder_with_provider(alknet_tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3");
        let builder = match raw {
            true => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
            false => builder.with_client_cert_verifier(Arc::new(AnyCertificate)),
        };
        let mut config = builder.with_cert_resolver(Arc::new(FixedCertResolver(key, raw)));
        config.alpn_protocols = vec![ECHO.to_vec()];
        let config = Arc::new(config);
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let tcp = tcp.expect("a port");
        let tcp_port = tcp.local_addr().expect("an address").port();
        tokio::spawn(serve_tcp(tcp, Arc::clone(&config)));
        // "localhost" may resolve to that address, too, where there is IPv6.
        if let Ok(tcp) = TcpListener::bind((Ipv6Addr::LOCALHOST, tcp_port)).await {
            tokio::spawn(serve_tcp(tcp, Arc::clone(&config)));
        }
        let quic = quinn::crypto::rustls::QuicServerConfig::try_from(config).expect("TLS 1.3");
        let quic = quinn::ServerConfig::with_crypto(Arc::new(quic));
        let four = quinn::Endpoint::server(quic.clone(), (Ipv4Addr::LOCALHOST, 0).into());
        let four = four.expect("a port");
        let quic_port = four.local_addr().expect("an address").port();
        let six = quinn::Endpoint::server(quic, (Ipv6Addr::LOCALHOST, quic_port).into());
        let endpoints: Vec<_> = [Ok(four), six].into_iter().flatten().collect();
        for endpoint in &endpoints {
            tokio::spawn(serve_quic(endpoint.clone()));
        }
        Self {
            tcp: tcp_port,
            quic: quic_port,
            _endpoints: endpoints,
        }
    }

    pub(crate) fn port(&self, carriage: Carriage) -> u16 {
        match carriage {
            Carriage::Tcp => self.tcp,
            _ => self.quic,
        }
    }
}

fn name_of(chain: Option<&[CertificateDer<'static>]>) -> String {
    let proof = chain
        .and_then(<[_]>::first)
        .and_then(|der| alknet_tls::PeerProof::from_certificate(der).ok());
    proof.map_or_else(|| "unknown".to_owned(), |proof| proof.key.to_string())
}

async fn serve_tcp(listener: TcpListener, config: Arc<ServerConfig>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
        tokio::spawn(async move {
            let mut tls = acceptor.accept(tcp).await?;
            let name = name_of(tls.get_ref().1.peer_certificates());
            let mut asked = [0; 64];
            let _ = tls.read(&mut asked).await?;
            tls.write_all(name.as_bytes()).await?;
            tls.shutdown().await
        });
    }
}

async fn serve_quic(endpoint: quinn::Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            let chain = connection
                .peer_identity()
                .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
            let name = name_of(chain.as_deref().map(Vec::as_slice));
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let _ = recv.read_to_end(64).await;
                let _ = send.write_all(name.as_bytes()).await;
                let _ = send.finish();
            }
        });
    }
}

/// Requests a certificate and takes any, as a foreign server might.
#[derive(Debug)]
struct AnyCertificate;

impl rustls::server::danger::ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, rustls::Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = alknet_tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let algorithms = alknet_tls::provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Finishes a handshake with `name` and returns the first certificate shown.
pub(crate) async fn shown(
    carriage: Carriage,
    port: u16,
    name: &str,
    config: ClientConfig,
) -> std::io::Result<CertificateDer<'static>> {
    let config = Arc::new(config);
    if carriage == Carriage::Quic {
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3");
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let connection = endpoint
            .connect_with(config, ([127, 0, 0, 1], port).into(), name)
            .expect("a valid configuration")
            .await?;
        let chain = connection.peer_identity().expect("certificates");
        let chain = chain.downcast::<Vec<CertificateDer<'static>>>();
        return Ok(chain.expect("certificates")[0].clone());
    }
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = name.to_owned().try_into().expect("a name");
    let tls = tokio_rustls::TlsConnector::from(config)
        .connect(name, tcp)
        .await?;
    let chain = tls.get_ref().1.peer_certificates().expect("certificates");
    Ok(chain[0].clone())
}

/// The server takes any key, and shows its own to every client.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_others_listens_on_loopback_alone() {
    /// `TCP_LISTEN` of the kernel's `include/net/tcp_states.h`.
    const LISTEN: &str = "0A";
    let (key, _) = EndpointTestCa::new().certified(&["localhost"]);
    let foreign = ForeignServer::start(key, false).await;
    let mut found = 0;
    for (list, port) in [
        ("tcp", foreign.tcp),
        ("tcp6", foreign.tcp),
        ("udp", foreign.quic),
        ("udp6", foreign.quic),
    ] {
        // A kernel without IPv6 has no such list.
        let text = std::fs::read_to_string(format!("/proc/self/net/{list}")).unwrap_or_default();
        let of_port = format!(":{port:04X}");
        // Other processes may connect from that port of another address.
        let listens = |socket: &[&str]| !list.starts_with("tcp") || socket.get(3) == Some(&LISTEN);
        let sockets = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let locals = sockets
            .filter(|socket| listens(socket))
            .filter_map(|socket| socket.get(1)?.strip_suffix(of_port.as_str()));
        for local in locals {
            // An address of 127.0.0.0/8, in its form in memory, may be another test's.
            let is_loopback = match local.len() {
                8 => local.ends_with("7F"),
                _ => local == "00000000000000000000000001000000",
            };
            assert!(is_loopback, "{list}: {local}");
            found += 1;
        }
    }
    assert!(found >= 2, "{found} sockets");
}
