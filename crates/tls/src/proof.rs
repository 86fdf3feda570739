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

    /// Whether any of `pins` names this key.
    #[must_use]
    pub fn matches(&self, pins: &[PeerKey]) -> bool {
        self.names().any(|name| pins.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_no_key() {
        for bad in [&b""[..], b"\x30\x00", b"not DER at all", &[0x30; 44]] {
            assert!(PeerProof::from_certificate(&CertificateDer::from(bad)).is_err());
        }
    }
}
