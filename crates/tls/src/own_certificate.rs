//! The certificate that a node makes of its own key, for clients that trust only a file of authorities.

use std::io::{self, Read, Write};
use std::sync::Arc;

use alknet_core::PeerKey;
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::ClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::certs;
use crate::client::pinned_config;
use crate::key::{host_name, is_signed};
use crate::remote::KeyCertificateType;

/// The protocol of such a client (RFC 7301 section 6).
const ALPN: &[u8] = b"http/1.1";
/// Bytes of an Ed25519 signature (RFC 8032 section 5.1.6), with which the certificate ends.
const SIGNATURE_LEN: usize = 64;

/// Asks the server at the other end of `stream` for its certificate, and accepts only the one that a node with this
/// key makes: with one name, without the right to issue others, and with the dates that every node writes. Returns
/// its DER.
///
/// OpenSSL lets no certificate issue others that does not claim the right (RFC 5280 section 4.2.1.9). webpki, and
/// hence rustls, takes each certificate in a file of authorities for one, over every name: such a client must not get
/// it.
///
/// # Errors
/// The stream or the handshake fails, or the server has another key. `InvalidData` if it has the key and presents
/// another certificate, which could make it an authority over every name.
pub fn own_certificate(key: &PeerKey, stream: &mut (impl Read + Write)) -> io::Result<Vec<u8>> {
    let PeerKey::Ed25519(public) = key else {
        let text = "only an Ed25519 key has a certificate of its own";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let config = pinned_config(None, &[*key], KeyCertificateType::X509, &Arc::default());
    let mut config = config.map_err(io::Error::other)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A node with strict names presents this certificate only to a client that asks for it by its name.
    config.enable_sni = true;
    let name = ServerName::try_from(host_name(public)).map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(config), name);
    let mut connection = connection.map_err(io::Error::other)?;
    // The handshake proves that the server has the private key.
    while connection.is_handshaking() {
        connection.complete_io(stream)?;
    }
    let presented = connection.peer_certificates().and_then(<[_]>::first);
    match presented {
        Some(der) if is_own(public, der) => Ok(der.to_vec()),
        _ => {
            let text = "the server has the key and presents another certificate than a node makes of it: that \
                        could be an authority over every name";
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}

/// Whether a certificate is, to the byte, the one that a node with this key makes. All but the signature follows from
/// the key, and the signature is verified.
fn is_own(public: &[u8; 32], der: &CertificateDer<'_>) -> bool {
    // An Ed25519 signature is the last field of a certificate (RFC 5280 section 4.1).
    let Some(signature) = der.last_chunk::<SIGNATURE_LEN>() else {
        return false;
    };
    let signer = KnownSignature { public, signature };
    // The node makes its certificate the same way each time: equal bytes mean that it holds nothing else.
    let made = certs::self_signed(&host_name(public), &signer);
    made.is_ok_and(|made| made == *der)
}

/// Stands for the key of another node: it signs with the signature that this node made.
struct KnownSignature<'a> {
    public: &'a [u8; 32],
    signature: &'a [u8; SIGNATURE_LEN],
}

impl PublicKeyData for KnownSignature<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl SigningKey for KnownSignature<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match is_signed(&PeerKey::Ed25519(*self.public), message, self.signature) {
            true => Ok(self.signature.to_vec()),
            false => Err(rcgen::Error::RemoteKeyError),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, date_time_ymd};
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;
    use crate::key::NodeKey;

    /// A certificate by this key that differs in one thing from the node's own.
    fn changed(
        key: &NodeKey,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let pkcs8 = key.pkcs8();
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8.as_slice())).expect("a key");
        let mut params = CertificateParams::new(vec![key.host_name()]).expect("a name");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, key.host_name());
        params.not_before = date_time_ymd(1975, 1, 1);
        params.not_after = date_time_ymd(4096, 1, 1);
        change(&mut params);
        params.self_signed(&pair).expect("a key").der().clone()
    }

    #[test]
    fn a_certificate_is_a_node_s_own_to_the_byte() {
        let key = NodeKey::from_seed(&[7; 32]);
        let PeerKey::Ed25519(public) = key.public() else {
            panic!("the key of a node is of this kind");
        };
        let own = certs::wrapped(&key).expect("a certificate").cert[0].clone();
        assert!(is_own(&public, &own));
        assert_eq!(changed(&key, |_| {}), own);
        let authority = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = "bank.example".try_into().expect("a name");
        for (what, other) in [
            ("an authority", changed(&key, |it| it.is_ca = authority)),
            (
                "another name too",
                changed(&key, |it| {
                    it.subject_alt_names.push(rcgen::SanType::DnsName(name));
                }),
            ),
            (
                "other dates",
                changed(&key, |it| it.not_after = date_time_ymd(4097, 1, 1)),
            ),
        ] {
            assert!(!is_own(&public, &other), "{what}");
        }
        let other_key = NodeKey::from_seed(&[8; 32]);
        let other_key = certs::wrapped(&other_key).expect("a certificate").cert[0].clone();
        assert!(!is_own(&public, &other_key), "another key's");
        let mut damaged = own.to_vec();
        *damaged.last_mut().expect("it has bytes") ^= 1;
        assert!(!is_own(&public, &damaged.into()), "another signature");
        assert!(!is_own(&public, &CertificateDer::from(&b""[..])));
    }
}
