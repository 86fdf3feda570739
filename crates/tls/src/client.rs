//! How a dialler proves itself and checks whom it reached.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use alknet_core::PeerKey;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{
    AlwaysResolvesClientRawPublicKeys, ResolvesClientCert, Resumption, WebPkiServerVerifier,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use crate::certs;
use crate::error::TlsError;
use crate::key::{NodeKey, host_name};
use crate::pin::{self, PinMismatch, PinVerifier};

/// Sessions remembered per remote. Each holds a few hundred bytes.
const SESSIONS_MAX: usize = 256;

/// Pinned remotes whose configuration and sessions are remembered.
const REMOTES_MAX: usize = 256;

/// The certificate authorities that came with this build.
#[must_use]
pub fn bundled_roots() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

/// How both sides present their keys to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Raw public keys (RFC 7250).
    Raw,
    /// The same keys in self-signed certificates, for servers that know no raw ones.
    X509,
}

/// The client side of TLS: one per key we dial with.
pub struct ClientTls {
    key: Option<NodeKey>,
    roots: RootCertStore,
    public: OnceLock<ClientConfig>,
    remotes: Mutex<HashMap<Vec<PeerKey>, Arc<PinnedRemote>>>,
}

impl ClientTls {
    /// Dials with `key`, or anonymously; `roots` are trusted for public names.
    #[must_use]
    pub fn new(key: Option<NodeKey>, roots: RootCertStore) -> Self {
        Self {
            key,
            roots,
            public: OnceLock::new(),
            remotes: Mutex::default(),
        }
    }

    /// The key pinned servers are shown.
    #[must_use]
    pub fn key(&self) -> Option<PeerKey> {
        self.key.as_ref().map(NodeKey::public)
    }

    /// The configuration for a public name: a certificate chain that ends at our roots, and no key
    /// of ours, which would be a mark to track us by.
    ///
    /// # Errors
    /// There are no roots.
    pub fn public(&self, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
        let config = match self.public.get() {
            Some(config) => config,
            None => {
                let made = self.make_public()?;
                self.public.get_or_init(|| made)
            }
        };
        Ok(with_alpn(config, alpn))
    }

    /// The configurations for a server that holds one of `pins`. Remembered, so that sessions
    /// resume.
    ///
    /// # Errors
    /// No pins, or our key cannot be presented.
    pub fn pinned(&self, pins: &[PeerKey]) -> Result<Arc<PinnedRemote>, TlsError> {
        let mut pins = pins.to_vec();
        pins.sort();
        pins.dedup();
        let mut remotes = self.remotes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = remotes.get(&pins) {
            return Ok(Arc::clone(remote));
        }
        let remote = Arc::new(PinnedRemote::new(self.key.as_ref(), pins.clone())?);
        if remotes.len() >= REMOTES_MAX {
            remotes.clear();
        }
        remotes.insert(pins, Arc::clone(&remote));
        Ok(remote)
    }

    fn make_public(&self) -> Result<ClientConfig, TlsError> {
        let provider = crate::provider();
        let roots = Arc::new(self.roots.clone());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_no_client_auth())
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({:?})", self.key)
    }
}

/// Everything needed to dial one pinned server.
///
/// The TLS library checks a resumed session against the verifier it was made with and not against
/// the pins again; so a changed pin set is another `PinnedRemote`, and the dialler calls
/// [`check`](Self::check) after every handshake.
pub struct PinnedRemote {
    pins: Vec<PeerKey>,
    raw: ClientConfig,
    x509: ClientConfig,
    mismatch: Arc<Mutex<Option<PinMismatch>>>,
}

impl PinnedRemote {
    fn new(key: Option<&NodeKey>, pins: Vec<PeerKey>) -> Result<Self, TlsError> {
        if pins.is_empty() {
            return Err(TlsError::NoPins);
        }
        let mismatch = Arc::default();
        Ok(Self {
            raw: pinned_config(key, &pins, Form::Raw, &mismatch)?,
            x509: pinned_config(key, &pins, Form::X509, &mismatch)?,
            pins,
            mismatch,
        })
    }

    /// The forms worth trying, in order: raw keys first where a pin can be one.
    pub fn forms(&self) -> impl Iterator<Item = Form> + use<> {
        let ed25519 = self.pins.iter().any(|p| matches!(p, PeerKey::Ed25519(_)));
        ed25519.then_some(Form::Raw).into_iter().chain([Form::X509])
    }

    /// The configuration for one attempt.
    #[must_use]
    pub fn config(&self, form: Form, alpn: &[u8]) -> ClientConfig {
        with_alpn(
            match form {
                Form::Raw => &self.raw,
                Form::X509 => &self.x509,
            },
            alpn,
        )
    }

    /// Name to dial with when there is no DNS name: never sent, keys the session cache.
    #[must_use]
    pub fn server_name(&self) -> String {
        let (PeerKey::Certificate(bytes) | PeerKey::Ed25519(bytes) | PeerKey::Spki(bytes)) =
            &self.pins[0]
        else {
            return "peer.alknet.invalid".to_owned();
        };
        host_name(bytes)
    }

    /// Compares what the server presented with the pins, also after a resumed handshake.
    ///
    /// # Errors
    /// The server presented no key or another one.
    pub fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), CheckError> {
        let end_entity = chain.first().ok_or(CheckError::NoKey)?;
        match pin::check(&self.pins, end_entity) {
            Ok(result) => result.map_err(CheckError::Pin),
            Err(_) => Err(CheckError::NoKey),
        }
    }

    /// The mismatch that ended the last handshake, if one did.
    #[must_use]
    pub fn take_mismatch(&self) -> Option<PinMismatch> {
        self.mismatch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl fmt::Debug for PinnedRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedRemote({:?})", self.pins)
    }
}

/// Why a finished handshake does not satisfy the pins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Nothing readable was presented.
    #[error("the server presented no key")]
    NoKey,
    /// Another key.
    #[error(transparent)]
    Pin(#[from] PinMismatch),
}

fn pinned_config(
    key: Option<&NodeKey>,
    pins: &[PeerKey],
    form: Form,
    mismatch: &Arc<Mutex<Option<PinMismatch>>>,
) -> Result<ClientConfig, TlsError> {
    let provider = crate::provider();
    let algorithms = provider.signature_verification_algorithms;
    let raw = form == Form::Raw;
    let verifier: Arc<dyn ServerCertVerifier> =
        Arc::new(PinVerifier::new(pins, raw, algorithms, mismatch));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match key {
        None => builder.with_no_client_auth(),
        Some(key) => builder.with_client_cert_resolver(present(key, form)?),
    };
    // A raw key needs no name, and a name would tell the network whom we look for.
    config.enable_sni = !raw;
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok(config)
}

fn present(key: &NodeKey, form: Form) -> Result<Arc<dyn ResolvesClientCert>, TlsError> {
    Ok(match form {
        Form::Raw => Arc::new(AlwaysResolvesClientRawPublicKeys::new(certs::raw(key)?)),
        Form::X509 => Arc::new(Wrapped {
            key: key.clone(),
            made: OnceLock::new(),
        }),
    })
}

/// Our key in a certificate, made when a server first asks for one.
struct Wrapped {
    key: NodeKey,
    made: OnceLock<Option<SingleCertAndKey>>,
}

impl ResolvesClientCert for Wrapped {
    fn resolve(
        &self,
        hints: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let make = || {
            let made = certs::wrapped(&self.key).ok()?;
            Some(SingleCertAndKey::from(made))
        };
        let made = self.made.get_or_init(make).as_ref()?;
        ResolvesClientCert::resolve(made, hints, schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wrapped({:?})", self.key)
    }
}

fn with_alpn(config: &ClientConfig, alpn: &[u8]) -> ClientConfig {
    let mut config = config.clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// Whether `host` can stand in a ClientHello as a name.
#[must_use]
pub fn is_dns_name(host: &str) -> bool {
    matches!(ServerName::try_from(host), Ok(ServerName::DnsName(_)))
}
