//! How the node proves to a certificate authority that it controls a name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::{BoxError, BoxFuture};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::error::TlsError;

/// A kind of proof (RFC 8555 section 8, RFC 8737).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeKind {
    /// A TXT record below `_acme-challenge`. The only kind for names with `*`.
    Dns01,
    /// A document on port 80.
    Http01,
    /// A certificate on port 443 over TCP.
    TlsAlpn01,
}

/// Publishes records in zones that this node serves. The DNS part implements it.
pub trait DnsChallenge: Send + Sync + 'static {
    /// Whether `name` is in a zone for which the public DNS delegates to this node.
    fn covers(&self, name: &str) -> bool;

    /// Adds the TXT record `value` at `name`, `_acme-challenge.<domain>`, beside any other one. Resolves once every
    /// server of the zone answers with it.
    fn publish<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, Result<(), BoxError>>;

    /// Removes the record.
    fn withdraw<'a>(&'a self, name: &'a str, value: &'a str)
    -> BoxFuture<'a, Result<(), BoxError>>;
}

/// Answers `GET http://<name>/.well-known/acme-challenge/<token>`. The HTTP part mounts it on port 80 for every host
/// name, as `text/plain`.
pub trait HttpChallengeResponder: Send + Sync + 'static {
    /// The body for `token`, or `None` for a 404.
    fn answer(&self, token: &str) -> Option<String>;
}

/// The HTTP responses for which an authority is expected.
#[derive(Debug, Default)]
pub struct HttpChallenges(Mutex<HashMap<String, String>>);

impl HttpChallenges {
    pub(crate) fn put(self: &Arc<Self>, token: &str, answer: &str) -> PendingChallenge {
        self.lock().insert(token.to_owned(), answer.to_owned());
        let (all, token) = (Arc::clone(self), token.to_owned());
        // The response is removed when the guard is dropped, also if the order is cancelled.
        PendingChallenge::new(move || drop(all.lock().remove(&token)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpChallengeResponder for HttpChallenges {
    fn answer(&self, token: &str) -> Option<String> {
        self.lock().get(token).cloned()
    }
}

/// The certificates for authorities that check names over this port.
#[derive(Debug, Default)]
pub struct AlpnChallenges(Mutex<HashMap<String, Arc<CertifiedKey>>>);

impl AlpnChallenges {
    /// Whether an authority is expected.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Serves the certificate that proves `domain` until the guard is dropped.
    pub(crate) fn put(
        self: &Arc<Self>,
        domain: &str,
        digest: &[u8; 32],
    ) -> Result<PendingChallenge, TlsError> {
        let key = challenge_certificate(domain, digest)?;
        self.lock().insert(domain.to_owned(), Arc::new(key));
        let (all, domain) = (Arc::clone(self), domain.to_owned());
        Ok(PendingChallenge::new(move || {
            drop(all.lock().remove(&domain))
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for AlpnChallenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Names are compared without case (RFC 4343).
        let name = hello.server_name()?.to_ascii_lowercase();
        self.lock().get(&name).cloned()
    }
}

/// A challenge response, which dropping this ends.
pub(crate) struct PendingChallenge(Option<Box<dyn FnOnce() + Send>>);

impl PendingChallenge {
    fn new(end: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for PendingChallenge {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

/// A self-signed certificate for one name, with the digest of the key authorization in a critical extension (RFC 8737
/// section 3).
fn challenge_certificate(domain: &str, digest: &[u8; 32]) -> Result<CertifiedKey, TlsError> {
    let mut params = CertificateParams::new(vec![domain.to_owned()])?;
    params
        .custom_extensions
        .push(CustomExtension::new_acme_identifier(digest));
    // The key is P-256, because the authority's TLS client need not know Ed25519.
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&pair)?.der().clone();
    let private = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
    let private = crate::provider().key_provider.load_private_key(private)?;
    Ok(CertifiedKey::new(vec![certificate], private))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1.3.6.1.5.5.7.1.31, TRUE, and the digest in an OCTET STRING in the value.
    #[test]
    fn the_certificate_has_the_critical_extension() {
        let digest = [7; 32];
        let key = challenge_certificate("a.example", &digest).expect("a certificate");
        let mut expected = vec![
            0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x1f, 0x01, 0x01, 0xff, 0x04,
            0x22, 0x04, 0x20,
        ];
        expected.extend(digest);
        let der = key.cert[0].as_ref();
        assert!(der.windows(expected.len()).any(|part| part == expected));
        let parsed = webpki::EndEntityCert::try_from(&key.cert[0]);
        assert!(
            parsed.is_err(),
            "an unknown critical extension: of no use for anything else"
        );
    }

    #[test]
    fn answers_end_with_their_guards() {
        let alpn = Arc::new(AlpnChallenges::default());
        let http = Arc::new(HttpChallenges::default());
        let guards = (
            alpn.put("a.example", &[1; 32]).expect("a certificate"),
            http.put("token", "answer"),
        );
        assert!(alpn.is_pending());
        assert_eq!(http.answer("token").as_deref(), Some("answer"));
        assert_eq!(http.answer("other"), None);
        drop(guards);
        assert!(!alpn.is_pending());
        assert_eq!(http.answer("token"), None);
    }
}
