//! The server that a dialler wants to reach, and how it recognises it.
//!
//! A remote is of one of three kinds: a peer with a configured entry, a server known by a key that the operator gave,
//! or a public endpoint with a certificate for its name. (Iroh's own library handles its relays.) None of them
//! accepts a server without proof.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::{PeerId, PeerKey};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::client::pinned_config;
use crate::error::TlsError;
use crate::key::{NodeKey, host_name};
use crate::pin::{self, PinMismatch};

/// Shortest time between two log lines about the wrong key of one remote.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The entry of a node to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// The peer's id.
    pub id: PeerId,
    /// The keys of which it may prove any.
    pub keys: Vec<PeerKey>,
}

/// The host of a remote, as far as TLS needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteHost<'a> {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name.
    Name(&'a str),
}

/// How both sides present their keys to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyCertificateType {
    /// Raw public keys (RFC 7250).
    Raw,
    /// The same keys in self-signed certificates, for servers that do not know raw ones.
    X509,
}

/// A server to reach, with the one way to recognise it.
#[derive(Clone, Debug)]
pub enum TlsRemote {
    /// By the key that the operator wrote into the address. Has no peer id.
    Key(Arc<PinnedRemote>),
    /// By the keys of its entry. It is that peer.
    Peer(PeerId, Arc<PinnedRemote>),
    /// By a certificate for its name from a trusted authority. Has no peer id.
    Public(Box<PublicRemote>),
}

impl TlsRemote {
    /// The configurations to try, in order, for a remote at `host`.
    #[must_use]
    pub fn attempts(&self, host: RemoteHost<'_>, alpn: &[u8]) -> Vec<ClientConfig> {
        match self {
            Self::Public(remote) => vec![with_alpn(remote.config.clone(), alpn)],
            Self::Key(remote) | Self::Peer(_, remote) => remote
                .forms()
                .map(|form| remote.config(form, host, alpn))
                .collect(),
        }
    }

    /// The server name for the TLS library.
    #[must_use]
    pub fn server_name(&self, host: RemoteHost<'_>) -> ServerName<'static> {
        match self {
            Self::Public(remote) => remote.name.clone(),
            Self::Key(remote) | Self::Peer(_, remote) => remote.server_name(host),
        }
    }

    /// The peer that answers, once [`check`](Self::check) has passed.
    #[must_use]
    pub fn peer_id(&self) -> Option<&PeerId> {
        match self {
            Self::Peer(id, _) => Some(id),
            Self::Key(_) | Self::Public(_) => None,
        }
    }

    /// Compares the server's certificate with the keys that are valid *now*. Callers call it after every handshake:
    /// the TLS library does not verify a resumed session again, and an entry may have changed since the dial began.
    ///
    /// # Errors
    /// The server presented no key, or another one.
    pub fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), CheckError> {
        match self {
            // The session store belongs to this verifier, whose roots never change.
            Self::Public(_) if chain.is_empty() => Err(CheckError::NoKey),
            Self::Public(_) => Ok(()),
            Self::Key(remote) | Self::Peer(_, remote) => remote.check(chain),
        }
    }

    /// The Ed25519 keys that it may prove *now*, for a library that dials by key only.
    #[must_use]
    pub fn ed25519_keys(&self) -> Vec<[u8; 32]> {
        let (Self::Key(remote) | Self::Peer(_, remote)) = self else {
            return Vec::new();
        };
        let valid = remote.pins.lock();
        let ed25519 = valid.keys.iter().filter_map(|key| match key {
            PeerKey::Ed25519(bytes) => Some(*bytes),
            _ => None,
        });
        ed25519.collect()
    }

    /// The mismatch that ended the last handshake, if any. It is returned once.
    #[must_use]
    pub fn take_mismatch(&self) -> Option<PinMismatch> {
        match self {
            Self::Public(_) => None,
            Self::Key(remote) | Self::Peer(_, remote) => remote.pins.lock().mismatch.take(),
        }
    }
}

/// A public endpoint.
#[derive(Clone)]
pub struct PublicRemote {
    pub(crate) name: ServerName<'static>,
    pub(crate) config: ClientConfig,
}

impl fmt::Debug for PublicRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicRemote({:?})", self.name)
    }
}

/// The configurations for dialling one remote by its keys. It lives as long as its set of keys, because sessions
/// resume only with the verifier that made them.
pub struct PinnedRemote {
    keys: Vec<PeerKey>,
    raw: ClientConfig,
    x509: ClientConfig,
    /// The keys that are valid now, which the remote that replaces this one shares.
    pub(crate) pins: Arc<RemotePins>,
}

impl PinnedRemote {
    /// `keys` are sorted and without repetition. They become the valid ones of `pins`.
    pub(crate) fn new(
        own: Option<&NodeKey>,
        keys: Vec<PeerKey>,
        pins: Arc<RemotePins>,
    ) -> Result<Self, TlsError> {
        // Without a key every server would be refused, and the error would blame it.
        if keys.is_empty() {
            return Err(TlsError::NoPins);
        }
        pins.lock().keys.clone_from(&keys);
        Ok(Self {
            raw: pinned_config(own, &keys, KeyCertificateType::Raw, &pins)?,
            x509: pinned_config(own, &keys, KeyCertificateType::X509, &pins)?,
            keys,
            pins,
        })
    }

    pub(crate) fn keys(&self) -> &[PeerKey] {
        &self.keys
    }

    /// The forms to try, in order: raw keys first if a pin can be one.
    fn forms(&self) -> impl Iterator<Item = KeyCertificateType> + use<> {
        let raw = self.ed25519().is_some();
        // A raw key needs the fewest bytes. Servers that do not know the form refuse it, and the second attempt
        // follows.
        raw.then_some(KeyCertificateType::Raw)
            .into_iter()
            .chain([KeyCertificateType::X509])
    }

    fn config(&self, form: KeyCertificateType, host: RemoteHost<'_>, alpn: &[u8]) -> ClientConfig {
        let mut config = match form {
            KeyCertificateType::Raw => self.raw.clone(),
            KeyCertificateType::X509 => self.x509.clone(),
        };
        // A node shows its own key to a client that names no server, and the network need not learn which node the
        // client looks for. Other servers need the name to choose the certificate that is pinned.
        config.enable_sni = self.ed25519().is_none() && matches!(host, RemoteHost::Name(_));
        with_alpn(config, alpn)
    }

    /// The key of the session cache. The client sends it only where the host has a name that the server needs.
    fn server_name(&self, host: RemoteHost<'_>) -> ServerName<'static> {
        let own = || {
            let name = match self.ed25519().or_else(|| self.keys.first().copied()) {
                Some(
                    PeerKey::Certificate(bytes) | PeerKey::Ed25519(bytes) | PeerKey::Spki(bytes),
                ) => host_name(&bytes),
                _ => "peer.alknet.invalid".to_owned(),
            };
            name.try_into()
                .expect("base32 of a key below alknet.invalid is a DNS name")
        };
        match host {
            RemoteHost::Name(name) if self.ed25519().is_none() => {
                name.to_owned().try_into().unwrap_or_else(|_| own())
            }
            _ => own(),
        }
    }

    fn ed25519(&self) -> Option<PeerKey> {
        let is = |key: &&PeerKey| matches!(key, PeerKey::Ed25519(_));
        self.keys.iter().find(is).copied()
    }

    fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), CheckError> {
        // A resumed session runs no verifier, so that its stored certificate is checked here.
        let end_entity = chain.first().ok_or(CheckError::NoKey)?;
        // The keys are a copy, because `report` takes the same lock.
        let valid = self.pins.lock().keys.clone();
        match pin::check(&valid, end_entity) {
            Ok(result) => result.map_err(|mismatch| {
                self.pins.report(&mismatch);
                CheckError::Pin(mismatch)
            }),
            Err(_) => Err(CheckError::NoKey),
        }
    }
}

impl fmt::Debug for PinnedRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedRemote({:?})", self.keys)
    }
}

/// The keys that one remote may prove at this moment, and the last mismatch.
#[derive(Debug, Default)]
pub(crate) struct RemotePins(Mutex<PinState>);

#[derive(Debug, Default)]
pub(crate) struct PinState {
    keys: Vec<PeerKey>,
    /// QUIC reports a failed verification as text: the dialler takes the typed error from here.
    mismatch: Option<PinMismatch>,
    logged: Option<Instant>,
}

impl RemotePins {
    /// Makes every key invalid, because the entry was removed.
    pub(crate) fn revoke(&self) {
        self.lock().keys.clear();
    }

    /// Records that a server showed another key during its handshake.
    pub(crate) fn mismatched(&self, mismatch: &PinMismatch) {
        self.report(mismatch);
        self.lock().mismatch = Some(mismatch.clone());
    }

    fn report(&self, mismatch: &PinMismatch) {
        let now = Instant::now();
        let mut state = self.lock();
        // A server with a wrong key could fill the log.
        if state.logged.is_none_or(|last| now - last >= LOG_EVERY) {
            state.logged = Some(now);
            tracing::warn!("{mismatch}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, PinState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a finished handshake does not satisfy the pins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The server presented no readable key.
    #[error("the server presented no key")]
    NoKey,
    /// The server presented another key.
    #[error(transparent)]
    Pin(#[from] PinMismatch),
}

fn with_alpn(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{ClientTls, ClientTlsOptions};

    const IP: RemoteHost<'_> = RemoteHost::Ip(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    const NAME: RemoteHost<'_> = RemoteHost::Name("hub.example.org");

    fn tls() -> ClientTls {
        ClientTls::new(ClientTlsOptions::default())
    }

    fn key(seed: u8) -> (PeerKey, CertificateDer<'static>) {
        let key = NodeKey::from_seed(&[seed; 32]);
        (key.public(), key.spki().to_vec().into())
    }

    fn hub(keys: &[PeerKey]) -> KnownPeer {
        KnownPeer {
            id: "hub".parse().expect("a peer id"),
            keys: keys.to_vec(),
        }
    }

    #[test]
    fn a_dial_that_has_begun_is_checked_against_the_keys_of_now() {
        let tls = tls();
        let ((a, a_chain), (b, b_chain)) = (key(1), key(2));
        let begun = tls.remote(Some(&hub(&[a])), &[], IP).expect("a remote");
        let (a_chain, b_chain) = ([a_chain], [b_chain]);
        assert_eq!(begun.check(&a_chain), Ok(()));
        assert_eq!(begun.check(&[]), Err(CheckError::NoKey));
        tls.set_peer(&hub(&[b])).expect("a key");
        let expected = vec![b];
        assert_eq!(
            begun.check(&a_chain),
            Err(CheckError::Pin(PinMismatch { expected, got: a }))
        );
        assert_eq!(begun.check(&b_chain), Ok(()));
        tls.set_peer(&hub(&[a, b])).expect("keys");
        assert_eq!(begun.check(&a_chain), Ok(()));
        tls.forget_peer(&"hub".parse().expect("a peer id"));
        for chain in [a_chain, b_chain] {
            assert!(matches!(begun.check(&chain), Err(CheckError::Pin(_))));
        }
        // Another remote with the same keys is not concerned.
        let other = tls.remote(None, &[a], IP).expect("a remote");
        assert_eq!(other.check(&[key(1).1]), Ok(()));
    }

    #[test]
    fn one_verifier_per_key_set() {
        let tls = tls();
        let (a, b) = (key(1).0, key(2).0);
        let pinned = |entry: Option<&KnownPeer>, keys: &[PeerKey]| match tls
            .remote(entry, keys, IP)
            .expect("a remote")
        {
            TlsRemote::Key(remote) | TlsRemote::Peer(_, remote) => remote,
            TlsRemote::Public(_) => panic!("not by its keys"),
        };
        let first = pinned(Some(&hub(&[a, b])), &[]);
        assert!(Arc::ptr_eq(&first, &pinned(Some(&hub(&[b, a, a])), &[])));
        assert!(!Arc::ptr_eq(&first, &pinned(Some(&hub(&[a])), &[])));
        assert!(Arc::ptr_eq(&pinned(None, &[a]), &pinned(None, &[a])));
    }

    #[test]
    fn nothing_to_know_it_by_is_no_remote() {
        let tls = tls();
        assert!(matches!(
            tls.remote(Some(&hub(&[])), &[key(1).0], NAME),
            Err(TlsError::NoPins)
        ));
        assert!(matches!(
            tls.remote(None, &[], IP),
            Err(TlsError::UnknownPeer(_))
        ));
        assert!(matches!(
            tls.remote(None, &[], RemoteHost::Name("no name")),
            Err(TlsError::Name)
        ));
        let public = tls.remote(None, &[], NAME).expect("a remote");
        assert_eq!(public.check(&[]), Err(CheckError::NoKey));
        assert_eq!(public.peer_id(), None);
        let peer = tls.remote(Some(&hub(&[key(1).0])), &[], NAME);
        assert_eq!(peer.expect("a remote").peer_id(), Some(&hub(&[]).id));
    }

    #[test]
    fn a_name_is_sent_only_where_it_is_needed() {
        let tls = tls();
        let spki = PeerKey::Spki([3; 32]);
        for (keys, host, forms, sni) in [
            (vec![key(1).0], NAME, 2, false),
            (vec![key(1).0, spki], NAME, 2, false),
            (vec![spki], NAME, 1, true),
            (vec![spki], IP, 1, false),
        ] {
            let remote = tls.remote(None, &keys, host).expect("a remote");
            let attempts = remote.attempts(host, b"x");
            assert_eq!(attempts.len(), forms);
            assert!(attempts.iter().all(|config| config.enable_sni == sni));
            assert!(attempts.iter().all(|config| !config.enable_early_data));
            let name = remote.server_name(host);
            assert_eq!(name.to_str() == "hub.example.org", sni);
        }
    }
}
