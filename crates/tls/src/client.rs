//! How a dialler authenticates itself and checks the server.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use alknet_core::{PeerId, PeerKey};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{
    AlwaysResolvesClientRawPublicKeys, ResolvesClientCert, Resumption, WebPkiServerVerifier,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use crate::certs;
use crate::error::TlsError;
use crate::key::NodeKey;
use crate::pin::PinVerifier;
use crate::remote::{
    KeyCertificateType, KnownPeer, PinnedRemote, PublicRemote, RemoteHost, RemotePins, TlsRemote,
};

/// TLS sessions remembered for each remote. Each has a few hundred bytes.
const SESSIONS_MAX: usize = 256;

/// Remotes, named by the keys in their addresses, whose configurations and sessions are remembered.
const REMOTES_MAX: usize = 256;

/// The certificate authorities of this build.
#[must_use]
pub fn bundled_roots() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

/// The certificate authorities of a PEM file, which replace the bundled ones. Each certificate is an authority over
/// every name that its name constraints allow: webpki does not check that it may issue certificates.
///
/// # Errors
/// The file cannot be read, or holds no usable certificate.
pub fn roots_from_file(path: &Path) -> Result<RootCertStore, TlsError> {
    let refused = |reason: String| TlsError::Roots {
        path: path.to_owned(),
        reason,
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| refused(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| refused(error.to_string()))?;
    }
    // With no root every server would fail, and each error would blame the server.
    if roots.is_empty() {
        return Err(refused("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// How a dialler authenticates itself and checks servers.
#[derive(Clone, Debug)]
pub struct ClientTlsOptions {
    /// The key to dial with; `None` dials anonymously.
    pub key: Option<NodeKey>,
    /// The authorities trusted for public names.
    pub roots: RootCertStore,
    /// Whether to accept an address without a key that has a public certificate for that address.
    pub webpki_ip: bool,
    /// Whether to show the client's key to public servers that ask for one. They can track the client by it.
    pub present_key_to_public: bool,
}

impl Default for ClientTlsOptions {
    fn default() -> Self {
        Self {
            key: None,
            roots: bundled_roots(),
            webpki_ip: false,
            present_key_to_public: false,
        }
    }
}

/// The client side of TLS: one for each key with which the node dials.
pub struct ClientTls {
    options: ClientTlsOptions,
    public: OnceLock<ClientConfig>,
    by_keys: Mutex<HashMap<Vec<PeerKey>, Arc<PinnedRemote>>>,
    by_peer: Mutex<HashMap<PeerId, Arc<PinnedRemote>>>,
}

impl ClientTls {
    /// The client side with these options.
    #[must_use]
    pub fn new(options: ClientTlsOptions) -> Self {
        Self {
            options,
            public: OnceLock::new(),
            by_keys: Mutex::default(),
            by_peer: Mutex::default(),
        }
    }

    /// The key that pinned servers get to see.
    #[must_use]
    pub fn key(&self) -> Option<PeerKey> {
        self.options.key.as_ref().map(NodeKey::public)
    }

    /// How to recognise a remote: by its configured entry, if it has one, then by the keys that the operator wrote
    /// into the address, then by the form of the address.
    ///
    /// # Errors
    /// The entry has no key, or the address has neither a key nor a name.
    pub fn remote(
        &self,
        entry: Option<&KnownPeer>,
        keys: &[PeerKey],
        host: RemoteHost<'_>,
    ) -> Result<TlsRemote, TlsError> {
        match (entry, host) {
            (Some(peer), _) => Ok(TlsRemote::Peer(peer.id.clone(), self.peer(peer)?)),
            // A key that the operator gave is stronger evidence than any authority.
            (None, _) if !keys.is_empty() => Ok(TlsRemote::Key(self.pinned(keys)?)),
            (None, RemoteHost::Name(name)) => self.public(name.to_owned().try_into().ok()),
            (None, RemoteHost::Ip(ip)) if self.options.webpki_ip => {
                self.public(Some(ServerName::IpAddress(ip.into())))
            }
            // Certificates for addresses are rare, and an address may change its owner.
            (None, RemoteHost::Ip(ip)) => Err(TlsError::UnknownPeer(ip.to_string())),
        }
    }

    /// Takes over a changed entry at once: dials that began with other keys fail.
    ///
    /// # Errors
    /// The entry has no key, or the client's own key cannot be presented.
    pub fn set_peer(&self, peer: &KnownPeer) -> Result<(), TlsError> {
        self.peer(peer).map(drop)
    }

    /// Forgets a removed entry: dials that have begun fail.
    pub fn forget_peer(&self, id: &PeerId) {
        if let Some(remote) = self.peers().remove(id) {
            // A dial that has begun holds the remote, and must fail as well.
            remote.pins.revoke();
        }
    }

    /// The verifier of a peer, which is replaced when its keys have changed.
    fn peer(&self, peer: &KnownPeer) -> Result<Arc<PinnedRemote>, TlsError> {
        let keys = sorted(&peer.keys);
        let mut peers = self.peers();
        let pins = match peers.get(&peer.id) {
            // The same remote keeps its sessions, so that the next dial resumes one.
            Some(remote) if remote.keys() == keys => return Ok(Arc::clone(remote)),
            // Dials that have begun share the pins, and are checked against the new keys.
            Some(remote) => Arc::clone(&remote.pins),
            None => Arc::default(),
        };
        let own = self.options.key.as_ref();
        let remote = Arc::new(PinnedRemote::new(own, keys, pins)?);
        peers.insert(peer.id.clone(), Arc::clone(&remote));
        Ok(remote)
    }

    /// The verifier of a set of keys. It is remembered, so that sessions resume.
    fn pinned(&self, keys: &[PeerKey]) -> Result<Arc<PinnedRemote>, TlsError> {
        let keys = sorted(keys);
        let mut remotes = self.by_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = remotes.get(&keys) {
            return Ok(Arc::clone(remote));
        }
        let own = self.options.key.as_ref();
        let remote = Arc::new(PinnedRemote::new(own, keys.clone(), Arc::default())?);
        // Only the resumption of sessions is lost: the next dial to each remote makes a whole handshake.
        if remotes.len() >= REMOTES_MAX {
            remotes.clear();
        }
        remotes.insert(keys, Arc::clone(&remote));
        Ok(remote)
    }

    fn public(&self, name: Option<ServerName<'static>>) -> Result<TlsRemote, TlsError> {
        let name = name.ok_or(TlsError::Name)?;
        let config = match self.public.get() {
            Some(config) => config,
            None => {
                // This is not within `get_or_init`, which takes no error. If two are made at the same time, one of
                // them stays.
                let made = self.make_public()?;
                self.public.get_or_init(|| made)
            }
        };
        let config = config.clone();
        Ok(TlsRemote::Public(Box::new(PublicRemote { name, config })))
    }

    fn make_public(&self) -> Result<ClientConfig, TlsError> {
        let provider = crate::provider();
        let roots = Arc::new(self.options.roots.clone());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier);
        let shown = self.options.key.as_ref();
        Ok(match shown.filter(|_| self.options.present_key_to_public) {
            Some(key) => builder.with_client_cert_resolver(present(key, KeyCertificateType::X509)?),
            // The key would identify this node to every public server.
            None => builder.with_no_client_auth(),
        })
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<PinnedRemote>>> {
        self.by_peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({:?})", self.options.key)
    }
}

fn sorted(keys: &[PeerKey]) -> Vec<PeerKey> {
    // In whichever order they were written, the same keys are one remote with one session cache.
    let mut keys = keys.to_vec();
    keys.sort();
    keys.dedup();
    keys
}

pub(crate) fn pinned_config(
    own: Option<&NodeKey>,
    keys: &[PeerKey],
    form: KeyCertificateType,
    pins: &Arc<RemotePins>,
) -> Result<ClientConfig, TlsError> {
    let provider = crate::provider();
    let algorithms = provider.signature_verification_algorithms;
    let raw = form == KeyCertificateType::Raw;
    let verifier: Arc<dyn ServerCertVerifier> =
        Arc::new(PinVerifier::new(keys, raw, algorithms, pins));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(key) => builder.with_client_cert_resolver(present(key, form)?),
    };
    // The name would show the network which node is dialled. `PinnedRemote::config` sends it where a server needs it.
    config.enable_sni = false;
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok(config)
}

fn present(
    key: &NodeKey,
    form: KeyCertificateType,
) -> Result<Arc<dyn ResolvesClientCert>, TlsError> {
    Ok(match form {
        KeyCertificateType::Raw => {
            Arc::new(AlwaysResolvesClientRawPublicKeys::new(certs::raw(key)?))
        }
        KeyCertificateType::X509 => Arc::new(KeyCertificateCell {
            key: key.clone(),
            made: OnceLock::new(),
        }),
    })
}

/// The client's key in a certificate, which is made when a server first asks for one.
struct KeyCertificateCell {
    key: NodeKey,
    made: OnceLock<Option<SingleCertAndKey>>,
}

impl ResolvesClientCert for KeyCertificateCell {
    fn resolve(
        &self,
        hints: &[&[u8]],
        schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let make = || {
            let made = certs::wrapped(&self.key);
            let made = made.inspect_err(|error| tracing::error!("{error}")).ok()?;
            Some(SingleCertAndKey::from(made))
        };
        let made = self.made.get_or_init(make).as_ref()?;
        ResolvesClientCert::resolve(made, hints, schemes)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for KeyCertificateCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyCertificateCell({:?})", self.key)
    }
}

/// Whether `host` can be the server name of a ClientHello.
///
/// ```
/// use alknet_tls::is_dns_name;
///
/// assert!(is_dns_name("edge.example.org"));
/// assert!(!is_dns_name("192.0.2.7"));
/// ```
#[must_use]
pub fn is_dns_name(host: &str) -> bool {
    matches!(ServerName::try_from(host), Ok(ServerName::DnsName(_)))
}
