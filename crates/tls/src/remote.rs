//! Which server a dialler wants to reach, and how it will know that it did.
//!
//! There are three kinds of remote and no fourth: a peer with an entry, a server known by a key
//! that the operator gave, and a public endpoint with a certificate for its name. (The relays of
//! iroh are the business of its own library.) None of them accepts a server without proof.

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

/// How often the wrong key of one remote is worth a line in the log.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What a peer entry says about a node to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// Who it is.
    pub id: PeerId,
    /// The keys any of which it may prove.
    pub keys: Vec<PeerKey>,
}

/// Where a remote is, as far as TLS cares.
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
    /// The same keys in self-signed certificates, for servers that know no raw ones.
    X509,
}

/// A server to reach, with the one way to recognise it.
#[derive(Clone, Debug)]
pub enum TlsRemote {
    /// By the key the operator wrote into the address. Has no peer id.
    Key(Arc<PinnedRemote>),
    /// By the keys of its entry. Is that peer.
    Peer(PeerId, Arc<PinnedRemote>),
    /// By a certificate for its name from an authority we trust. Has no peer id.
    Public(Box<PublicRemote>),
}

impl TlsRemote {
    /// The configurations worth trying, in order, for a remote at `place`.
    #[must_use]
    pub fn attempts(&self, place: RemoteHost<'_>, alpn: &[u8]) -> Vec<ClientConfig> {
        match self {
            Self::Public(remote) => vec![with_alpn(remote.config.clone(), alpn)],
            Self::Key(remote) | Self::Peer(_, remote) => remote
                .forms()
                .map(|form| remote.config(form, place, alpn))
                .collect(),
        }
    }

    /// The name to give the TLS library.
    #[must_use]
    pub fn server_name(&self, place: RemoteHost<'_>) -> ServerName<'static> {
        match self {
            Self::Public(remote) => remote.name.clone(),
            Self::Key(remote) | Self::Peer(_, remote) => remote.server_name(place),
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

    /// Compares what a server presented with the keys wanted *now*. To be called after every
    /// handshake: the TLS library looks at a resumed session no more, and an entry may have
    /// changed since the dial began.
    ///
    /// # Errors
    /// The server presented no key or another one.
    pub fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), CheckError> {
        match self {
            // The session store belongs to this verifier, whose roots never change.
            Self::Public(_) if chain.is_empty() => Err(CheckError::NoKey),
            Self::Public(_) => Ok(()),
            Self::Key(remote) | Self::Peer(_, remote) => remote.check(chain),
        }
    }

    /// The Ed25519 keys it may prove *now*, for a library that dials a key and knows nothing else.
    #[must_use]
    pub fn ed25519_keys(&self) -> Vec<[u8; 32]> {
        let (Self::Key(remote) | Self::Peer(_, remote)) = self else {
            return Vec::new();
        };
        let wanted = remote.pins.lock();
        let ed25519 = wanted.keys.iter().filter_map(|key| match key {
            PeerKey::Ed25519(bytes) => Some(*bytes),
            _ => None,
        });
        ed25519.collect()
    }

    /// The mismatch that ended the last handshake, if one did.
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

/// Everything needed to dial one remote by its keys. Lives as long as its key set, since sessions
/// resume only with the verifier they were made with.
pub struct PinnedRemote {
    keys: Vec<PeerKey>,
    raw: ClientConfig,
    x509: ClientConfig,
    /// What is wanted now; shared with the remote that replaces this one.
    pub(crate) pins: Arc<RemotePins>,
}

impl PinnedRemote {
    /// `keys` are sorted and without repetition; they become what `pins` wants now.
    pub(crate) fn new(
        own: Option<&NodeKey>,
        keys: Vec<PeerKey>,
        pins: Arc<RemotePins>,
    ) -> Result<Self, TlsError> {
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

    /// The forms worth trying, in order: raw keys first where a pin can be one.
    fn forms(&self) -> impl Iterator<Item = KeyCertificateType> + use<> {
        let raw = self.ed25519().is_some();
        raw.then_some(KeyCertificateType::Raw)
            .into_iter()
            .chain([KeyCertificateType::X509])
    }

    fn config(&self, form: KeyCertificateType, place: RemoteHost<'_>, alpn: &[u8]) -> ClientConfig {
        let mut config = match form {
            KeyCertificateType::Raw => self.raw.clone(),
            KeyCertificateType::X509 => self.x509.clone(),
        };
        // A node shows its own key to a client that names no server, and the network need not know
        // which node the client looks for. Other servers need the name to pick the certificate that
        // is pinned.
        config.enable_sni = self.ed25519().is_none() && matches!(place, RemoteHost::Name(_));
        with_alpn(config, alpn)
    }

    /// Keys the session cache. Sent only where the place has a name that the server must know.
    fn server_name(&self, place: RemoteHost<'_>) -> ServerName<'static> {
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
        match place {
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
        let end_entity = chain.first().ok_or(CheckError::NoKey)?;
        // A copy: `report` takes the same lock.
        let wanted = self.pins.lock().keys.clone();
        match pin::check(&wanted, end_entity) {
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

/// The keys one remote may prove at this moment, and what was last seen instead.
#[derive(Debug, Default)]
pub(crate) struct RemotePins(Mutex<PinState>);

#[derive(Debug, Default)]
pub(crate) struct PinState {
    keys: Vec<PeerKey>,
    /// QUIC reports a failed verification as text; the dialler takes the typed one from here.
    mismatch: Option<PinMismatch>,
    logged: Option<Instant>,
}

impl RemotePins {
    /// Nothing is right any more: the entry is gone.
    pub(crate) fn revoke(&self) {
        self.lock().keys.clear();
    }

    /// A server showed another key during its handshake.
    pub(crate) fn mismatched(&self, mismatch: &PinMismatch) {
        self.report(mismatch);
        self.lock().mismatch = Some(mismatch.clone());
    }

    fn report(&self, mismatch: &PinMismatch) {
        let now = Instant::now();
        let mut state = self.lock();
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
    /// Nothing readable was presented.
    #[error("the server presented no key")]
    NoKey,
    /// Another key.
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
        for (keys, place, forms, sni) in [
            (vec![key(1).0], NAME, 2, false),
            (vec![key(1).0, spki], NAME, 2, false),
            (vec![spki], NAME, 1, true),
            (vec![spki], IP, 1, false),
        ] {
            let remote = tls.remote(None, &keys, place).expect("a remote");
            let attempts = remote.attempts(place, b"x");
            assert_eq!(attempts.len(), forms);
            assert!(attempts.iter().all(|config| config.enable_sni == sni));
            assert!(attempts.iter().all(|config| !config.enable_early_data));
            let name = remote.server_name(place);
            assert_eq!(name.to_str() == "hub.example.org", sni);
        }
    }
}
