//! TLS in front of servers that have none, with a certificate that only its key makes known.

use std::net::SocketAddr;
use std::sync::Arc;

use alknet_core::PeerKey;
use alknet_tls::PeerProof;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// TLS on a port of its own, and plain bytes to another behind it.
pub(crate) struct Secured {
    pub(crate) address: SocketAddr,
    pub(crate) pin: PeerKey,
}

impl Secured {
    pub(crate) async fn before(behind: SocketAddr) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["stand-in.example".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        let proof = PeerProof::from_certificate(certificate.der()).expect("a key");
        let pin = proof.names().next().expect("a name of the key");
        let mut config = ServerConfig::builder_with_provider(alknet_tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("a pair");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut tls = acceptor.accept(stream).await?;
                    let mut plain = TcpStream::connect(behind).await?;
                    tokio::io::copy_bidirectional(&mut tls, &mut plain).await
                });
            }
        });
        Self { address, pin }
    }
}
