//! TLS of a server that only its key makes known. The tests of what is imported by HTTP have it too.

use std::sync::Arc;

use alknet_core::PeerKey;
use alknet_tls::PeerProof;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// With a certificate for `name` of its own making and for these protocols; and what its key is called.
pub(crate) fn acceptor(name: &str, protocols: &[&str]) -> (TlsAcceptor, PeerKey) {
    acceptor_of(&KeyPair::generate().expect("a key"), name, protocols)
}

/// The same with this key.
pub(crate) fn acceptor_of(key: &KeyPair, name: &str, protocols: &[&str]) -> (TlsAcceptor, PeerKey) {
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let certificate = params.self_signed(key).expect("a certificate");
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
    config.alpn_protocols = protocols
        .iter()
        .map(|one| one.as_bytes().to_vec())
        .collect();
    (TlsAcceptor::from(Arc::new(config)), pin)
}
