//! A node with the entry of a row, and the proofs of its clients.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use alknet_call::{
    CallBody, CallError, CallHandler, Ctx, Dispatcher, HandlerKind, OperationSpec, Registration,
    Registry,
};
use alknet_core::{
    ApiKey, AuthContext, AuthNeed, AuthToken, Carriage, Clock, Connection, HandlerError,
    HandlerRegistry, Identities, IdentityEntries, PeerEntry, PeerKey,
};
use alknet_endpoint::{EndpointServer, ServerOptions};
use alknet_tls::{NodeKey, PeerProof};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::time::timeout;

use super::client::{ClientTransport, RoleTestClient, Visit};
use super::{
    CertificateFlaw, KnownKeyForm, ObservedOutcome, RolePeerEntry, Shows, TokenCase,
    role_matrix::TransportColumn,
};
use crate::authority::{EndpointTestCa, certified};
use crate::iroh;
use crate::matrix::{self, pkcs8, raw_key};
use crate::support::{FnHandler, hung, spec};

/// Seeds of Ed25519 keys: the peer's own, the one that follows, and one of no peer.
const OWN: [u8; 32] = [21; 32];
const NEXT: [u8; 32] = [22; 32];
const NOBODYS: [u8; 32] = [23; 32];

/// The time of day of every node here.
const NOW_S: u64 = 2_000_000_000;

/// A protocol for known keys only.
pub(super) const KEYED: &[u8] = b"alknet/keyed";

/// The scope that the operation requires, which every known peer has here.
const SCOPE: &str = "demo";

struct Stopped;

impl Clock for Stopped {
    fn now_s(&self) -> Option<u64> {
        Some(NOW_S)
    }
}

/// Every key and certificate, made once: a node must not notice which row uses them.
struct Keyring {
    ec: Arc<CertifiedKey>,
    ec_renewed: Arc<CertifiedKey>,
    ec_other: Arc<CertifiedKey>,
    authority: EndpointTestCa,
    spki: PeerKey,
    token: AuthToken,
}

/// The one token of this test.
pub(super) fn the_token() -> &'static str {
    KEYRING.token.expose()
}

static KEYRING: LazyLock<Keyring> = LazyLock::new(|| {
    let authority = EndpointTestCa::new();
    let key = KeyPair::generate().expect("a key");
    let names = ["edge.example"];
    Keyring {
        ec: authority.certify(&names, &key, |_| {}),
        ec_renewed: authority.certify(&names, &key, |_| {}),
        ec_other: authority.certified(&names).0,
        spki: PeerKey::from_spki(&key.subject_public_key_info()),
        authority,
        token: AuthToken::new(format!("alk_tool0001_{}", "A".repeat(43))),
    }
});

fn public(seed: [u8; 32]) -> PeerKey {
    NodeKey::from_seed(&seed).public()
}

/// The key of a client that shows it raw and holds it.
fn seed(shows: Shows) -> Option<[u8; 32]> {
    match shows {
        Shows::Raw => Some(OWN),
        Shows::NextRaw => Some(NEXT),
        _ => None,
    }
}

/// An Ed25519 key in a certificate.
fn wrapped(seed: [u8; 32], flaw: CertificateFlaw) -> Arc<CertifiedKey> {
    let key = KeyPair::try_from(&pkcs8(seed)).expect("a key");
    if flaw == CertificateFlaw::UnknownAuthority {
        return KEYRING.authority.certify(&["edge"], &key, |_| {});
    }
    let name = if flaw == CertificateFlaw::WrongName {
        "mallory"
    } else {
        "edge"
    };
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let year = |year| rcgen::date_time_ymd(year, 1, 1);
    (params.not_before, params.not_after) = match flaw {
        CertificateFlaw::Expired => (year(1990), year(1991)),
        CertificateFlaw::NotYetValid => (year(3000), year(3001)),
        _ => (year(1990), year(3000)),
    };
    let made = params.self_signed(&key).expect("signed");
    certified(vec![made.der().clone()], &key)
}

/// The key that a client shows, and whether it is raw.
fn shown(shows: Shows) -> Option<(Arc<CertifiedKey>, bool)> {
    let x509 = |key| Some((key, false));
    match shows {
        Shows::Nothing => None,
        Shows::Raw => Some((raw_key(public(OWN), OWN), true)),
        Shows::NextRaw => Some((raw_key(public(NEXT), NEXT), true)),
        Shows::StolenRaw => Some((raw_key(public(OWN), NOBODYS), true)),
        Shows::Wrapped(flaw) => x509(wrapped(OWN, flaw)),
        Shows::NextWrapped => x509(wrapped(NEXT, CertificateFlaw::None)),
        Shows::StolenWrapped => {
            let chain = wrapped(OWN, CertificateFlaw::None).cert.clone();
            let signing = Arc::clone(&raw_key(public(NOBODYS), NOBODYS).key);
            x509(Arc::new(CertifiedKey::new(chain, signing)))
        }
        Shows::Ec => x509(Arc::clone(&KEYRING.ec)),
        Shows::EcRenewed => x509(Arc::clone(&KEYRING.ec_renewed)),
        Shows::EcOther => x509(Arc::clone(&KEYRING.ec_other)),
    }
}

fn entries(entry: RolePeerEntry) -> IdentityEntries {
    let key = |known: &KnownKeyForm| match known {
        KnownKeyForm::Own => public(OWN),
        KnownKeyForm::Next => public(NEXT),
        KnownKeyForm::Spki => KEYRING.spki,
        KnownKeyForm::Certificate => {
            let proof = PeerProof::from_certificate(&KEYRING.ec.cert[0]).expect("a key");
            proof.certificate.expect("a certificate")
        }
    };
    let hash = KEYRING.token.hash().expect("the form of a token");
    let over = |is_over: bool| is_over.then_some(NOW_S);
    let mut edge = PeerEntry::new("edge".parse().expect("a peer id"));
    edge.keys = entry.keys.iter().map(key).collect();
    edge.scopes = [SCOPE].into_iter().collect();
    edge.enabled = entry.enabled;
    edge.expires = over(entry.expired);
    if entry.token == TokenCase::Peers {
        edge.token_hashes = vec![hash];
    }
    let tool = ApiKey {
        scopes: [SCOPE].into_iter().collect(),
        expires: over(entry.token == TokenCase::Expired),
        ..ApiKey::new(hash)
    };
    let is_tools = matches!(entry.token, TokenCase::Good | TokenCase::Expired);
    IdentityEntries {
        peers: vec![edge],
        api_keys: is_tools.then_some(tool).into_iter().collect(),
        ..IdentityEntries::default()
    }
}

/// Answers each line with the peer id of the connection.
async fn name(connection: Connection, _auth: AuthContext) -> Result<(), HandlerError> {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        while let Ok(Some(_)) = recv.read_chunk(99).await {
            let who = connection.identity().map(|who| who.id.to_string());
            let line = format!("{}\n", who.unwrap_or_default());
            if send.write_chunk(line.into()).await.is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn operations() -> Registry {
    let whoami = HandlerKind::once(|_: CallBody, ctx: Ctx| {
        let who = ctx.identity().map(|who| who.id.to_string());
        std::future::ready(Ok::<_, CallError>(json!(who)))
    });
    let spec = OperationSpec::query("demo/whoami", "For tests.").with_scope(SCOPE);
    Registry::builder()
        .with(Registration::new(spec, whoami))
        .build()
        .expect("a correct operation")
}

pub(super) struct RoleTestNode {
    server: EndpointServer,
    key: NodeKey,
    identities: Arc<Identities>,
}

impl RoleTestNode {
    pub(super) async fn start(entry: RolePeerEntry, column: TransportColumn) -> Self {
        let identities = Arc::new(Identities::new(entries(entry), Arc::new(Stopped)));
        let dispatcher =
            Dispatcher::new(operations()).with_identities(Arc::clone(&identities) as _);
        let mut handlers = HandlerRegistry::new();
        let calls = CallHandler::new(Arc::new(dispatcher));
        handlers.register(Arc::new(calls)).expect("the first");
        let keyed = vec![spec(KEYED, AuthNeed::Tls, Carriage::Both)];
        let keyed = FnHandler(keyed, name);
        handlers.register(Arc::new(keyed)).expect("the second");
        let key = NodeKey::generate().expect("a key");
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, Arc::clone(&identities) as _);
        let mut server = server.expect("a free port");
        if column == TransportColumn::Iroh {
            let added = server.add_iroh(&key, &iroh::on_loopback()).await;
            added.expect("a free port");
        }
        Self {
            server,
            key,
            identities,
        }
    }

    /// Replaces the entry, as a changed configuration does.
    pub(super) fn change(&self, entry: RolePeerEntry) {
        self.identities.replace_config(entries(entry));
        self.server.sweep();
    }

    pub(super) async fn client(
        &self,
        shows: Shows,
        visit: Visit,
        column: TransportColumn,
    ) -> RoleTestClient {
        let shown = shown(shows);
        // Iroh serves raw keys only, also to clients that show another proof.
        let raw = column == TransportColumn::Iroh || shown.as_ref().is_none_or(|(_, raw)| *raw);
        let full = Arc::new(AtomicUsize::new(0));
        let pinned = matrix::PinnedKeyVerifier {
            key: self.key.public(),
            raw,
            full: Arc::clone(&full),
        };
        let alpn = visit.alpn();
        let config = matrix::showing(alknet_tls::provider(), pinned, shown, Some(alpn));
        let carrier = match (column, seed(shows)) {
            (TransportColumn::Iroh, Some(seed)) => {
                let endpoint = iroh::stock(&NodeKey::from_seed(&seed)).await;
                let node = iroh::address(&self.key, self.server.iroh_addresses()[0]);
                ClientTransport::Iroh(endpoint, node)
            }
            // Made by hand: iroh has no clients that show such a proof.
            (TransportColumn::Iroh, None) => {
                let port = self.server.iroh_addresses()[0].port();
                ClientTransport::Quic(port, Arc::new(config))
            }
            (TransportColumn::Quic, _) => {
                ClientTransport::Quic(self.server.port(), Arc::new(config))
            }
            (TransportColumn::Tls, _) => ClientTransport::Tls(self.server.port(), Arc::new(config)),
        };
        RoleTestClient::new(carrier, visit, full)
    }

    /// The outcome of a failed handshake: no handler of the node may have got the connection.
    pub(super) async fn refused(&self) -> ObservedOutcome {
        let counts = || {
            let counters = self.server.counters();
            let heard =
                counters.connections_quic + counters.connections_tcp + counters.connections_iroh;
            (counters.handshakes_failed, heard)
        };
        // The client may know before the node has counted it.
        let counted = async {
            // No event announces it: the test polls.
            while counts() == (0, 0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        match (timeout(hung(), counted).await, counts()) {
            (Ok(()), (1, 0)) => ObservedOutcome::Refused,
            (_, other) => {
                ObservedOutcome::Other(format!("no handshake, and the node counted {other:?}"))
            }
        }
    }
}
