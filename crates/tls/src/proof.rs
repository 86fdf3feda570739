//! The proof of a key in a handshake.

use alknet_core::PeerKey;
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use webpki::EndEntityCert;

/// The key with which a peer signed the handshake, in every form that a pin or a peer entry may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProof {
    /// `ed25519:` or `spki:`, by the kind of the key.
    pub key: PeerKey,
    /// `SHA256:` of the certificate, if the peer sent one.
    pub certificate: Option<PeerKey>,
}

impl PeerProof {
    /// Reads what the TLS library calls the end-entity certificate: X.509, or a bare SubjectPublicKeyInfo if raw keys
    /// were negotiated.
    ///
    /// The two cannot be confused: a certificate is a SEQUENCE of three elements and a
    /// SubjectPublicKeyInfo one of two, and both parsers reject anything left over.
    ///
    /// # Errors
    /// The bytes have neither form.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        if let Ok(certificate) = EndEntityCert::try_from(der) {
            return Ok(Self {
                key: PeerKey::from_spki(&certificate.subject_public_key_info()),
                certificate: Some(PeerKey::Certificate(Sha256::digest(der).into())),
            });
        }
        let spki = der.as_ref().into();
        webpki::RawPublicKeyEntity::try_from(&spki).map_err(|_| CertificateError::BadEncoding)?;
        Ok(Self {
            key: PeerKey::from_spki(der),
            certificate: None,
        })
    }

    /// The names of this key, the most lasting first.
    pub fn names(&self) -> impl Iterator<Item = PeerKey> {
        std::iter::once(self.key).chain(self.certificate)
    }

    /// Whether any of `pins` names this key. A pin may name an Ed25519 key by the hash of its SubjectPublicKeyInfo as well,
    /// which is what curl and OpenSSL show of every key.
    #[must_use]
    pub fn matches(&self, pins: &[PeerKey]) -> bool {
        let mut names = self.names().chain(self.hash_of_ed25519());
        names.any(|name| pins.contains(&name))
    }

    /// The `spki:` form of an Ed25519 key, which is no name of a peer: the bytes of the key itself are.
    fn hash_of_ed25519(&self) -> Option<PeerKey> {
        match &self.key {
            PeerKey::Ed25519(public) => {
                let hash = Sha256::digest(PeerKey::ed25519_spki(public));
                Some(PeerKey::Spki(hash.into()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeKey;
    use crate::certs::{raw, wrapped};

    /// The private key of RFC 8410 section 10.3, and the SHA-256 of its SubjectPublicKeyInfo (section 10.1).
    const RFC_8410_SEED: &str = "d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842";
    const RFC_8410_PIN: &str =
        "spki:a1e9156054e04fac899ae9f275132cdc07a5dbc4ea2c2ad3a1ffc6e0d253681f";

    #[test]
    fn a_pin_may_name_an_ed25519_key_by_its_hash() {
        let pin: PeerKey = RFC_8410_PIN.parse().expect("a key");
        // The text of a key of 32 bytes, read as those bytes.
        let seed = format!("ed25519:{RFC_8410_SEED}").parse();
        let Ok(PeerKey::Ed25519(seed)) = seed else {
            panic!("{seed:?}");
        };
        let key = NodeKey::from_seed(&seed);
        for form in [raw(&key).expect("raw"), wrapped(&key).expect("wrapped")] {
            let proof = PeerProof::from_certificate(&form.cert[0]).expect("a key");
            assert!(proof.matches(&[pin]) && proof.matches(&[key.public()]));
            assert!(!proof.matches(&[PeerKey::Spki(seed)]), "another hash");
            assert!(
                !proof.names().any(|name| name == pin),
                "a peer has one name"
            );
        }
        let other = NodeKey::from_seed(&[5; 32]);
        let other = wrapped(&other).expect("wrapped");
        let other = PeerProof::from_certificate(&other.cert[0]).expect("a key");
        assert!(!other.matches(&[pin]));
    }

    #[test]
    fn garbage_is_no_key() {
        for bad in [&b""[..], b"\x30\x00", b"not DER at all", &[0x30; 44]] {
            assert!(PeerProof::from_certificate(&CertificateDer::from(bad)).is_err());
        }
    }
}
