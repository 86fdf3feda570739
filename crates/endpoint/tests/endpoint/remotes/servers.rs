//! Servers for the rows: which server shows which key, in which form.

use std::net::Ipv4Addr;
use std::sync::Arc;

use alknet_core::{Carriage, PeerKey};
use alknet_tls::{NodeKey, PeerProof};
use iroh::endpoint::presets;
use iroh::{Endpoint, SecretKey};
use rcgen::KeyPair;
use rustls::sign::CertifiedKey;

use crate::authority::{EndpointTestCa, ForeignServer, raw, wrapped};
use crate::roles::role_matrix::TransportColumn;
use crate::support::ECHO;

/// The seed of the peer's Ed25519 key.
pub(super) const SEED: [u8; 32] = [11; 32];

/// The key that the server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PresentedKey {
    /// The peer's Ed25519 key.
    Raw,
    /// The same in a self-signed certificate that ended in 1991.
    Wrapped,
    /// The peer's public key, without the private one.
    StolenRaw,
    StolenWrapped,
    /// A certificate of an authority that the client trusts.
    Public,
    /// The same key, in a certificate that has ended, has not begun, or is for another name.
    Expired,
    NotYetValid,
    OtherName,
    /// A certificate of an authority that the client does not trust.
    OtherAuthority,
}

/// The servers' keys, and their names.
pub(super) struct RemoteTestKeys {
    pub(super) authority: EndpointTestCa,
    untrusted: EndpointTestCa,
    pub(super) ec: KeyPair,
    pub(super) other_ec: KeyPair,
    /// One certificate throughout: a second one of the same content would have another hash.
    public: Arc<CertifiedKey>,
}

/// The name and the address under which the tests dial servers.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

impl RemoteTestKeys {
    pub(super) fn new() -> Self {
        let (authority, ec) = (EndpointTestCa::new(), KeyPair::generate().expect("a key"));
        Self {
            public: authority.certify(&NAMES, &ec, |_| {}),
            authority,
            untrusted: EndpointTestCa::new(),
            ec,
            other_ec: KeyPair::generate().expect("a key"),
        }
    }

    pub(super) fn server(&self, shown: PresentedKey) -> RemoteServerSpec {
        let ed25519 = NodeKey::from_seed(&SEED).public();
        let year = |year| rcgen::date_time_ymd(year, 1, 1);
        let public = |names: &[&str], from, to| {
            self.authority.certify(names, &self.ec, |params| {
                (params.not_before, params.not_after) = (year(from), year(to));
            })
        };
        let (key, raw) = match shown {
            PresentedKey::Raw => (raw(ed25519, SEED), true),
            PresentedKey::StolenRaw => (raw(ed25519, [1; 32]), true),
            PresentedKey::Wrapped => (wrapped(SEED).0, false),
            PresentedKey::StolenWrapped => {
                let signing = Arc::clone(&raw(ed25519, [1; 32]).key);
                let stolen = CertifiedKey::new(wrapped(SEED).0.cert.clone(), signing);
                (Arc::new(stolen), false)
            }
            PresentedKey::Public => (Arc::clone(&self.public), false),
            PresentedKey::Expired => (public(&NAMES, 1990, 1991), false),
            PresentedKey::NotYetValid => (public(&NAMES, 3000, 3001), false),
            PresentedKey::OtherName => (public(&["edge.example"], 2000, 3000), false),
            PresentedKey::OtherAuthority => (
                self.untrusted.certify(&NAMES, &self.other_ec, |_| {}),
                false,
            ),
        };
        RemoteServerSpec { key, raw }
    }
}

/// One server and how it shows its key.
pub(super) struct RemoteServerSpec {
    key: Arc<CertifiedKey>,
    raw: bool,
}

impl RemoteServerSpec {
    pub(super) fn certificate(&self) -> PeerKey {
        let proof = PeerProof::from_certificate(&self.key.cert[0]).expect("a key");
        proof.certificate.expect("a certificate")
    }
}

/// A running server.
pub(super) enum RemoteTestServer {
    Foreign(ForeignServer),
    Iroh(Endpoint),
}

impl RemoteTestServer {
    /// Over iroh, iroh itself where possible: it shows raw keys that it holds, and nothing else. The others speak
    /// plain QUIC, which looks the same to a dialler until the handshake fails.
    pub(super) async fn start(
        cast: &RemoteTestKeys,
        shown: PresentedKey,
        column: TransportColumn,
    ) -> Self {
        if (shown, column) == (PresentedKey::Raw, TransportColumn::Iroh) {
            return Self::Iroh(iroh_server().await);
        }
        let server = cast.server(shown);
        Self::Foreign(ForeignServer::start(server.key, server.raw).await)
    }

    pub(super) fn port(&self, carriage: Carriage) -> u16 {
        match self {
            Self::Foreign(foreign) => foreign.port(carriage),
            Self::Iroh(endpoint) => endpoint.bound_sockets()[0].port(),
        }
    }
}

/// Holds the peer's key, and keeps every connection until its client closes it.
async fn iroh_server() -> Endpoint {
    let builder = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(&SEED))
        .alpns(vec![ECHO.to_vec()])
        .clear_ip_transports()
        .bind_addr((Ipv4Addr::LOCALHOST, 0));
    let endpoint = builder.expect("an address").bind().await;
    let endpoint = endpoint.expect("a free port");
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            });
        }
    });
    endpoint
}
