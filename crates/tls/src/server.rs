//! What a node presents, and how it takes its clients' keys.
//!
//! One TLS configuration of the library is either raw-key or X.509 on each side, and does not
//! negotiate; so there is one for each combination, and the ClientHello picks.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys, CertificateType, ClientHello, NoServerSessionStorage,
    ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};

use crate::certs;
use crate::error::TlsError;
use crate::key::NodeKey;
use crate::proof::PeerProof;

/// Session tickets per connection: one to resume with, one spare.
const TICKETS: usize = 2;

/// Prefix of the protocols whose clients are asked for a key.
const OWN_ALPN_PREFIX: &[u8] = b"alknet/";

/// Which configuration a ClientHello gets: what the server presents, then what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Raw key; raw client keys.
    RawRaw,
    /// Raw key; client certificates.
    RawX509,
    /// Certificate; no client key, because browsers would show a certificate picker.
    Web,
    /// Certificate; raw client keys.
    X509Raw,
    /// Certificate; client certificates.
    X509X509,
}

impl Slot {
    /// Every slot, in index order.
    pub const ALL: [Self; 5] = [
        Self::RawRaw,
        Self::RawX509,
        Self::Web,
        Self::X509Raw,
        Self::X509X509,
    ];

    /// The slot for a client. A raw key wins wherever the client can do one, whatever the order
    /// of its list.
    #[must_use]
    pub fn choose(hello: &ClientHello<'_>) -> Self {
        let raw = |types: Option<&[CertificateType]>| {
            types.is_some_and(|types| types.contains(&CertificateType::RawPublicKey))
        };
        let own = hello
            .alpn()
            .is_some_and(|mut offers| offers.any(|id| id.starts_with(OWN_ALPN_PREFIX)));
        match (
            raw(hello.server_cert_types()),
            raw(hello.client_cert_types()),
        ) {
            (true, true) => Self::RawRaw,
            (true, false) => Self::RawX509,
            (false, true) => Self::X509Raw,
            (false, false) if own => Self::X509X509,
            (false, false) => Self::Web,
        }
    }
}

/// The TLS configurations of a node, made once.
pub struct ServerTls {
    tcp: [Arc<ServerConfig>; 5],
    quic: [Arc<ServerConfig>; 5],
}

impl ServerTls {
    /// Prepares every configuration. `tcp` and `quic` are the protocols offered on each carriage,
    /// most preferred first; `state_dir` keeps the key that browsers see.
    ///
    /// # Errors
    /// The TLS library refuses the key or the configuration.
    pub fn new(
        key: &NodeKey,
        state_dir: Option<PathBuf>,
        tcp: &[&[u8]],
        quic: &[&[u8]],
    ) -> Result<Self, TlsError> {
        let certificates = Arc::new(Certificates::new(key.clone(), state_dir));
        let raw = certs::raw(key)?;
        let mut configs = Vec::with_capacity(Slot::ALL.len());
        for slot in Slot::ALL {
            configs.push(config(slot, &raw, &certificates)?);
        }
        let with = |alpns: &[&[u8]]| {
            std::array::from_fn(|slot| {
                let mut config: ServerConfig = configs[slot].clone();
                config.alpn_protocols = alpns.iter().map(|id| id.to_vec()).collect();
                Arc::new(config)
            })
        };
        Ok(Self {
            tcp: with(tcp),
            quic: with(quic),
        })
    }

    /// The configuration for a slot on TCP.
    #[must_use]
    pub fn tcp(&self, slot: Slot) -> Arc<ServerConfig> {
        Arc::clone(&self.tcp[slot as usize])
    }

    /// The configuration for a slot on QUIC.
    #[must_use]
    pub fn quic(&self, slot: Slot) -> Arc<ServerConfig> {
        Arc::clone(&self.quic[slot as usize])
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

fn config(
    slot: Slot,
    raw: &Arc<CertifiedKey>,
    certificates: &Arc<Certificates>,
) -> Result<ServerConfig, TlsError> {
    let provider = crate::provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier: Arc<dyn ClientCertVerifier> = match slot {
        Slot::Web => WebPkiClientVerifier::no_client_auth(),
        Slot::RawRaw | Slot::X509Raw => Arc::new(AnyKey::new(true, algorithms)),
        Slot::RawX509 | Slot::X509X509 => Arc::new(AnyKey::new(false, algorithms)),
    };
    let resolver: Arc<dyn ResolvesServerCert> = match slot {
        Slot::RawRaw | Slot::RawX509 => {
            Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(raw)))
        }
        Slot::Web | Slot::X509Raw | Slot::X509X509 => Arc::clone(certificates) as _,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    // Early data can be replayed, and no protocol here is idempotent throughout.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = TICKETS;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Arc::new(LazyTicketer::default());
    Ok(config)
}

/// Makes its keys with the first ticket: a start pays nothing for slots nobody uses. Each slot has
/// its own, so that a ticket never moves a session to other rules.
#[derive(Debug, Default)]
struct LazyTicketer(OnceLock<Option<Arc<dyn ProducesTickets>>>);

impl LazyTicketer {
    fn inner(&self) -> Option<&Arc<dyn ProducesTickets>> {
        self.0
            .get_or_init(|| rustls::crypto::aws_lc_rs::Ticketer::new().ok())
            .as_ref()
    }
}

impl ProducesTickets for LazyTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.inner().map_or(0, |inner| inner.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.inner()?.decrypt(cipher)
    }
}

/// The certificates served to clients that cannot do raw keys. Each is made when the first such
/// client comes: most nodes never see a browser, and no start waits for one.
struct Certificates {
    key: NodeKey,
    state_dir: Option<PathBuf>,
    node: OnceLock<Option<Arc<CertifiedKey>>>,
    browser: OnceLock<Option<Arc<CertifiedKey>>>,
}

impl Certificates {
    fn new(key: NodeKey, state_dir: Option<PathBuf>) -> Self {
        Self {
            key,
            state_dir,
            node: OnceLock::new(),
            browser: OnceLock::new(),
        }
    }

    fn node(&self) -> Option<Arc<CertifiedKey>> {
        self.node
            .get_or_init(|| report(certs::wrapped(&self.key)))
            .clone()
    }

    fn browser(&self) -> Option<Arc<CertifiedKey>> {
        let make = || {
            let provider = crate::provider();
            // A full or read-only disk costs the key its permanence, not the browser its answer.
            report(certs::browser(
                &self.key,
                self.state_dir.as_deref(),
                &provider,
            ))
            .or_else(|| report(certs::browser(&self.key, None, &provider)))
        };
        self.browser.get_or_init(make).clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello
            .signature_schemes()
            .contains(&SignatureScheme::ED25519)
        {
            self.node()
        } else {
            self.browser()
        }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificates({:?})", self.key)
    }
}

fn report<T>(result: Result<T, TlsError>) -> Option<T> {
    result.inspect_err(|error| tracing::error!("{error}")).ok()
}

/// Takes any key the client can sign with. What the key means is decided by whoever knows peers.
struct AnyKey {
    raw: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyKey {
    fn new(raw: bool, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { raw, algorithms }
    }
}

impl ClientCertVerifier for AnyKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Names, dates and issuers say nothing here; possession is proven by the signature.
        PeerProof::from_certificate(end_entity)?;
        Ok(ClientCertVerified::assertion())
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

impl fmt::Debug for AnyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnyKey(raw: {})", self.raw)
    }
}

/// The CertificateVerify signature of either form (RFC 8446 section 4.4.3).
pub(crate) fn verify_signature(
    raw: bool,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if !raw {
        return rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms);
    }
    let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
    rustls::crypto::verify_tls13_signature_with_raw_key(message, &spki, dss, algorithms)
}

pub(crate) fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
}
