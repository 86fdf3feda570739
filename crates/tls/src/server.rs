//! The configurations with which a node presents its key and accepts those of its clients.
//!
//! One TLS configuration of the library is either raw-key or X.509 on each side, and does not negotiate that. Hence
//! the node has one for each combination, and the ClientHello chooses.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys, CertificateType, ClientHello, NoServerSessionStorage,
    ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use crate::acme::AlpnChallenges;
use crate::alpn;
use crate::any_key::AnyKey;
use crate::certs;
use crate::error::TlsError;
use crate::key::NodeKey;
use crate::own::ServerCertificates;
use crate::store::CertificateStore;
use crate::tickets::{LazyTicketer, TICKETS};

/// The protocol by which a certificate authority checks a name (RFC 8737).
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// Prefixes of the protocols whose clients the node asks for a key. No browser offers such a protocol.
const KEYED_ALPN_PREFIXES: [&[u8]; 2] = [b"alknet/", b"/iroh-bytes/"];

/// The configuration for a ClientHello: first what the server presents, then what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsConfigSlot {
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

impl TlsConfigSlot {
    /// Every slot, in index order.
    pub const ALL: [Self; 5] = [
        Self::RawRaw,
        Self::RawX509,
        Self::Web,
        Self::X509Raw,
        Self::X509X509,
    ];

    /// Chooses the slot for a client. A raw key wins if the client can take one, whatever the order of its list.
    #[must_use]
    fn choose(hello: &ClientHello<'_>) -> Self {
        let raw = |types: Option<&[CertificateType]>| {
            types.is_some_and(|types| types.contains(&CertificateType::RawPublicKey))
        };
        let own = hello
            .alpn()
            .is_some_and(|mut offers| offers.any(asks_for_key));
        match (
            raw(hello.server_cert_types()),
            raw(hello.client_cert_types()),
        ) {
            (true, true) => Self::RawRaw,
            (true, false) => Self::RawX509,
            (false, true) => Self::X509Raw,
            // A node without raw keys still proves its own key, with a certificate around it.
            (false, false) if own => Self::X509X509,
            (false, false) => Self::Web,
        }
    }

    /// Whether the server shows its raw key, which has no names.
    #[must_use]
    fn is_raw(self) -> bool {
        matches!(self, Self::RawRaw | Self::RawX509)
    }
}

/// The client asked for a name that this node does not have, and `tls.strict_sni` refuses such clients, with the
/// alert `unrecognized_name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the client asked for a name that is not served here")]
pub struct UnknownName;

/// The certificates that a node serves beside its key.
#[derive(Clone, Debug, Default)]
pub struct ServerTlsOptions {
    /// Directory for the key that browsers see. Without it that key changes with every start.
    pub state_dir: Option<PathBuf>,
    /// Whether to refuse clients that take certificates and ask for no name of this node.
    pub strict_sni: bool,
    /// The configured certificates; they may change at any time.
    pub certificates: Arc<CertificateStore>,
    /// Challenge responses for a certificate authority that checks a name over this port.
    pub challenges: Arc<AlpnChallenges>,
}

/// The TLS configurations of a node, which are made once.
pub struct ServerTls {
    tcp: [Arc<ServerConfig>; 5],
    quic: [Arc<ServerConfig>; 5],
    acme: Arc<ServerConfig>,
    certificates: Arc<ServerCertificates>,
    challenges: Arc<AlpnChallenges>,
    strict_sni: bool,
}

impl ServerTls {
    /// Makes every configuration. `tcp` and `quic` are the protocols of each carriage.
    ///
    /// # Errors
    /// The TLS library refuses the key or the configuration.
    pub fn new(
        key: &NodeKey,
        options: ServerTlsOptions,
        tcp: &[&[u8]],
        quic: &[&[u8]],
    ) -> Result<Self, TlsError> {
        let certificates = Arc::new(ServerCertificates::new(
            key.clone(),
            options.state_dir,
            options.certificates,
        ));
        let raw = certs::raw(key)?;
        let mut configs = Vec::with_capacity(TlsConfigSlot::ALL.len());
        for slot in TlsConfigSlot::ALL {
            configs.push(slot_config(slot, &raw, &certificates)?);
        }
        let with = |alpns: &[&[u8]]| {
            std::array::from_fn(|slot| {
                let mut config: ServerConfig = configs[slot].clone();
                config.alpn_protocols = alpn::by_preference(alpns);
                // Each configuration has tickets of its own, so that a session resumes only where it began.
                config.ticketer = Arc::new(LazyTicketer::default());
                Arc::new(config)
            })
        };
        Ok(Self {
            tcp: with(tcp),
            quic: with(quic),
            acme: Arc::new(acme_config(&options.challenges)?),
            certificates,
            challenges: options.challenges,
            strict_sni: options.strict_sni,
        })
    }

    /// The configuration for a client on TCP.
    ///
    /// # Errors
    /// The node refuses the name that the client asks for.
    pub fn tcp(&self, hello: &ClientHello<'_>) -> Result<Arc<ServerConfig>, UnknownName> {
        // Without an order under way this protocol is as unknown as any other.
        if self.challenges.is_pending() && offers_only_acme(hello) {
            return Ok(Arc::clone(&self.acme));
        }
        Ok(Arc::clone(&self.tcp[self.slot(hello)? as usize]))
    }

    /// The slot for a client.
    ///
    /// # Errors
    /// The node refuses the name that the client asks for.
    pub fn slot(&self, hello: &ClientHello<'_>) -> Result<TlsConfigSlot, UnknownName> {
        let slot = TlsConfigSlot::choose(hello);
        // A raw key has no names, so that any requested name is as good.
        let strict = self.strict_sni && !slot.is_raw();
        if strict && !self.certificates.knows(hello.server_name()) {
            return Err(UnknownName);
        }
        Ok(slot)
    }

    /// The configuration for a slot on QUIC.
    #[must_use]
    pub fn quic(&self, slot: TlsConfigSlot) -> Arc<ServerConfig> {
        Arc::clone(&self.quic[slot as usize])
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// Whether the clients of a protocol are asked for a key.
fn asks_for_key(alpn: &[u8]) -> bool {
    let mut prefixes = KEYED_ALPN_PREFIXES.iter();
    prefixes.any(|prefix| alpn.starts_with(prefix))
}

/// A certificate authority that checks a name offers this protocol and no other (RFC 8737 section 3).
fn offers_only_acme(hello: &ClientHello<'_>) -> bool {
    hello
        .alpn()
        .is_some_and(|offers| offers.into_iter().eq([ALPN_ACME]))
}

fn slot_config(
    slot: TlsConfigSlot,
    raw: &Arc<CertifiedKey>,
    certificates: &Arc<ServerCertificates>,
) -> Result<ServerConfig, TlsError> {
    let algorithms = crate::provider().signature_verification_algorithms;
    let verifier: Arc<dyn ClientCertVerifier> = match slot {
        // A browser would ask its user which certificate to send.
        TlsConfigSlot::Web => WebPkiClientVerifier::no_client_auth(),
        TlsConfigSlot::RawRaw | TlsConfigSlot::X509Raw => Arc::new(AnyKey::new(true, algorithms)),
        TlsConfigSlot::RawX509 | TlsConfigSlot::X509X509 => {
            Arc::new(AnyKey::new(false, algorithms))
        }
    };
    let resolver: Arc<dyn ResolvesServerCert> = if slot.is_raw() {
        Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(raw)))
    } else {
        Arc::clone(certificates) as _
    };
    let mut config = base_config(verifier, resolver)?;
    config.send_tls13_tickets = TICKETS;
    Ok(config)
}

/// The configuration for a certificate authority, which resumes no session.
fn acme_config(challenges: &Arc<AlpnChallenges>) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::no_client_auth();
    let mut config = base_config(verifier, Arc::clone(challenges) as _)?;
    config.alpn_protocols = vec![ALPN_ACME.to_vec()];
    // A session of a challenge is used once.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn base_config(
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    // An attacker can replay early data (RFC 8446 section 8), and no protocol here is idempotent throughout.
    config.max_early_data_size = 0;
    // A ticket holds its whole session: stored sessions would cost memory for clients that never come back.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
