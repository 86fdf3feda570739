//! Checks a server against pinned keys.

use std::fmt;
use std::sync::Arc;

use alknet_core::PeerKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, OtherError, SignatureScheme};
use thiserror::Error;

use crate::any_key::{refuse_tls12, verify_signature};
use crate::proof::PeerProof;
use crate::remote::RemotePins;

/// The server holds another key than the pinned one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the server's key is {got}, and {} was expected; if its identity changed on purpose, pin \
         the new key",
    list(expected)
)]
pub struct PinMismatch {
    /// The pins.
    pub expected: Vec<PeerKey>,
    /// The key that the server presented.
    pub got: PeerKey,
}

fn list(keys: &[PeerKey]) -> String {
    if keys.is_empty() {
        return "none any more".to_owned();
    }
    let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
    keys.join(" or ")
}

/// Accepts only the pinned keys. Names, dates and issuers do not matter.
pub(crate) struct PinVerifier {
    keys: Vec<PeerKey>,
    raw: bool,
    algorithms: WebPkiSupportedAlgorithms,
    pins: Arc<RemotePins>,
}

impl PinVerifier {
    pub(crate) fn new(
        keys: &[PeerKey],
        raw: bool,
        algorithms: WebPkiSupportedAlgorithms,
        pins: &Arc<RemotePins>,
    ) -> Self {
        Self {
            keys: keys.to_vec(),
            raw,
            algorithms,
            pins: Arc::clone(pins),
        }
    }
}

/// Compares the presented certificate with `pins`.
pub(crate) fn check(
    pins: &[PeerKey],
    end_entity: &CertificateDer<'_>,
) -> Result<Result<(), PinMismatch>, Error> {
    let proof = PeerProof::from_certificate(end_entity)?;
    if proof.matches(pins) {
        return Ok(Ok(()));
    }
    Ok(Err(PinMismatch {
        expected: pins.to_vec(),
        got: proof.key,
    }))
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match check(&self.keys, end_entity)? {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(mismatch) => {
                // The error may reach the dialler as text only, and the dialler needs the keys.
                self.pins.mismatched(&mismatch);
                Err(OtherError(Arc::new(mismatch)).into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(self.raw, message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw
    }
}

impl fmt::Debug for PinVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinVerifier({}, raw: {})", list(&self.keys), self.raw)
    }
}
