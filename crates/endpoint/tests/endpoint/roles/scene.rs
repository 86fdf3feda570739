//! A node that knows what a row says, and clients made from the TLS library itself.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use alknet_call::{
    Body, CallError, CallHandler, Ctx, Dispatcher, Envelope, EventKind, FrameBody, HandlerKind,
    OperationSpec, Registration, Registry, encode_event,
};
use alknet_core::{
    AlpnSpec, ApiKey, AuthContext, AuthNeed, AuthToken, BoxFuture, Clock, Connection, Entries,
    HandlerError, HandlerRegistry, Identities, PeerEntry, PeerKey, ProtocolHandler,
};
use alknet_endpoint::{Server, ServerOptions};
use alknet_tls::{NodeKey, PeerProof};
use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::ClientConfig;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::{Entry, Flaw, Got, Known, Sends, Shows, Token, sheet::Column};
use crate::authority::{Authority, certified};
use crate::matrix::{self, pkcs8, raw_key};
use crate::support::HUNG;

/// Seeds of Ed25519 keys: the peer's own, the one that follows, and one that is nobody's.
const OWN: [u8; 32] = [21; 32];
const NEXT: [u8; 32] = [22; 32];
const NOBODYS: [u8; 32] = [23; 32];

/// The time of day of every node here.
const NOW_S: u64 = 2_000_000_000;

/// Answers each line with the peer id of the connection, and takes known keys only.
const KEYED: &[u8] = b"alknet/keyed";

/// The operation that is called, and the scope it wants, which everybody known here has.
const WHOAMI: &str = "/demo/whoami";
const SCOPE: &str = "demo";

/// What a client visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    Call,
    Keyed,
}

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
    ec_stranger: Arc<CertifiedKey>,
    authority: Authority,
    spki: PeerKey,
    token: AuthToken,
}

static KEYRING: LazyLock<Keyring> = LazyLock::new(|| {
    let authority = Authority::new();
    let key = KeyPair::generate().expect("a key");
    let names = ["edge.example"];
    Keyring {
        ec: authority.certify(&names, &key, |_| {}),
        ec_renewed: authority.certify(&names, &key, |_| {}),
        ec_stranger: authority.certified(&names).0,
        spki: PeerKey::from_spki(&key.subject_public_key_info()),
        authority,
        token: AuthToken::new(format!("alk_tool0001_{}", "A".repeat(43))),
    }
});

fn public(seed: [u8; 32]) -> PeerKey {
    NodeKey::from_seed(&seed).public()
}

/// An Ed25519 key in a certificate.
fn wrapped(seed: [u8; 32], flaw: Flaw) -> Arc<CertifiedKey> {
    let key = KeyPair::try_from(&pkcs8(seed)).expect("a key");
    if flaw == Flaw::UnknownAuthority {
        return KEYRING.authority.certify(&["edge"], &key, |_| {});
    }
    let name = if flaw == Flaw::WrongName {
        "mallory"
    } else {
        "edge"
    };
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let year = |year| rcgen::date_time_ymd(year, 1, 1);
    (params.not_before, params.not_after) = match flaw {
        Flaw::Expired => (year(1990), year(1991)),
        Flaw::NotYetValid => (year(3000), year(3001)),
        _ => (year(1990), year(3000)),
    };
    let made = params.self_signed(&key).expect("signed");
    certified(vec![made.der().clone()], &key)
}

/// What a client shows, and whether that is a raw key.
fn shown(shows: Shows) -> Option<(Arc<CertifiedKey>, bool)> {
    let x509 = |key| Some((key, false));
    match shows {
        Shows::Nothing => None,
        Shows::Raw => Some((raw_key(public(OWN), OWN), true)),
        Shows::NextRaw => Some((raw_key(public(NEXT), NEXT), true)),
        Shows::StolenRaw => Some((raw_key(public(OWN), NOBODYS), true)),
        Shows::Wrapped(flaw) => x509(wrapped(OWN, flaw)),
        Shows::NextWrapped => x509(wrapped(NEXT, Flaw::None)),
        Shows::StolenWrapped => {
            let chain = wrapped(OWN, Flaw::None).cert.clone();
            let signing = Arc::clone(&raw_key(public(NOBODYS), NOBODYS).key);
            x509(Arc::new(CertifiedKey::new(chain, signing)))
        }
        Shows::Ec => x509(Arc::clone(&KEYRING.ec)),
        Shows::EcRenewed => x509(Arc::clone(&KEYRING.ec_renewed)),
        Shows::EcStranger => x509(Arc::clone(&KEYRING.ec_stranger)),
    }
}

fn entries(entry: Entry) -> Entries {
    let key = |known: &Known| match known {
        Known::Own => public(OWN),
        Known::Next => public(NEXT),
        Known::Spki => KEYRING.spki,
        Known::Certificate => {
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
    if entry.token == Token::Peers {
        edge.token_hashes = vec![hash];
    }
    let tool = ApiKey {
        token: hash,
        scopes: [SCOPE].into_iter().collect(),
        resources: Default::default(),
        description: None,
        expires: over(entry.token == Token::Expired),
    };
    let is_tools = matches!(entry.token, Token::Good | Token::Expired);
    Entries {
        peers: vec![edge],
        api_keys: is_tools.then_some(tool).into_iter().collect(),
        ..Entries::default()
    }
}

/// A handler for known keys only.
struct Keyed([AlpnSpec; 1]);

impl ProtocolHandler for Keyed {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.0
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        _: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move {
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
        })
    }
}

fn operations() -> Registry {
    let whoami = HandlerKind::once(|_: Body, ctx: Ctx| {
        let who = ctx.identity().map(|who| who.id.to_string());
        std::future::ready(Ok::<_, CallError>(json!(who)))
    });
    let spec = OperationSpec::query("demo/whoami", "For tests.").with_scope(SCOPE);
    Registry::builder()
        .with(Registration::new(spec, whoami))
        .build()
        .expect("a correct operation")
}

pub(super) struct Scene {
    server: Server,
    key: NodeKey,
    identities: Arc<Identities>,
}

impl Scene {
    pub(super) fn start(entry: Entry) -> Self {
        let identities = Arc::new(Identities::new(entries(entry), Arc::new(Stopped)));
        let dispatcher =
            Dispatcher::new(operations()).with_identities(Arc::clone(&identities) as _);
        let mut handlers = HandlerRegistry::new();
        let calls = CallHandler::new(Arc::new(dispatcher));
        handlers.register(Arc::new(calls)).expect("the first");
        let keyed = Keyed([AlpnSpec {
            auth: AuthNeed::Tls,
            ..AlpnSpec::new(KEYED)
        }]);
        handlers.register(Arc::new(keyed)).expect("the second");
        let key = NodeKey::generate().expect("a key");
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = Server::bind(options, &key, handlers, Arc::clone(&identities) as _);
        Self {
            server: server.expect("a free port"),
            key,
            identities,
        }
    }

    /// Puts another entry in place, as a changed configuration does.
    pub(super) fn change(&self, entry: Entry) {
        self.identities.replace_config(entries(entry));
        self.server.sweep();
    }

    pub(super) fn client(&self, shows: Shows, visit: Visit) -> Client {
        let shown = shown(shows);
        let raw = shown.as_ref().is_none_or(|(_, raw)| *raw);
        let full = Arc::new(AtomicUsize::new(0));
        let alpn = match visit {
            Visit::Call => alknet_call::ALPN,
            Visit::Keyed => KEYED,
        };
        let pinned = matrix::Pinned {
            key: self.key.public(),
            raw,
            full: Arc::clone(&full),
        };
        Client {
            config: Arc::new(matrix::showing(
                alknet_tls::provider(),
                pinned,
                shown,
                Some(alpn),
            )),
            full,
            visit,
            port: self.server.port(),
        }
    }

    /// What to call a handshake that failed: nobody of the node's may have heard of it.
    pub(super) async fn refused(&self) -> Got {
        let counts = || {
            let counters = self.server.counters();
            let heard = counters.connections_quic + counters.connections_tcp;
            (counters.handshakes_failed, heard)
        };
        // The client may know before the node has counted it.
        let counted = async {
            while counts() == (0, 0) {
                tokio::task::yield_now().await;
            }
        };
        match (timeout(HUNG, counted).await, counts()) {
            (Ok(()), (1, 0)) => Got::Refused,
            (_, other) => Got::Other(format!("no handshake, and the node counted {other:?}")),
        }
    }
}

pub(super) struct Client {
    config: Arc<ClientConfig>,
    full: Arc<AtomicUsize>,
    visit: Visit,
    port: u16,
}

impl Client {
    /// Connects. The ticket of an earlier connection is used, if there is one.
    pub(super) async fn open(&self, column: Column) -> io::Result<Line> {
        let name = "node.test.invalid";
        let config = Arc::clone(&self.config);
        let wire = match column {
            Column::Tls => {
                let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
                let name = name.try_into().expect("a name");
                let connector = tokio_rustls::TlsConnector::from(config);
                Wire::Tls(Box::new(connector.connect(name, tcp).await?))
            }
            Column::Quic => {
                let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
                let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config);
                let config = quinn::ClientConfig::new(Arc::new(tls.expect("TLS 1.3")));
                let address = ([127, 0, 0, 1], self.port).into();
                let connecting = endpoint.connect_with(config, address, name);
                let connection = connecting.expect("a valid configuration").await?;
                Wire::Quic(endpoint, connection)
            }
        };
        Ok(Line {
            wire,
            visit: self.visit,
            authenticated: false,
            asked: 0,
        })
    }

    /// Handshakes in which the server showed its key, which a resumed one does not.
    pub(super) fn full_handshakes(&self) -> usize {
        self.full.load(Ordering::SeqCst)
    }
}

/// A connection.
pub(super) struct Line {
    wire: Wire,
    visit: Visit,
    authenticated: bool,
    asked: usize,
}

enum Wire {
    Tls(Box<TlsStream<TcpStream>>),
    /// The endpoint carries the connection.
    Quic(
        #[expect(dead_code, reason = "kept alive")] quinn::Endpoint,
        quinn::Connection,
    ),
}

impl Line {
    /// Asks the node who we are.
    pub(super) async fn ask(&mut self, sends: Sends) -> Got {
        match timeout(HUNG, self.answer(sends)).await {
            Ok(Ok(got)) => got,
            // An error is not always told to the one who reads: the connection knows why.
            Ok(Err(error)) => self.ended_by(Some(error)).await,
            Err(_) => Got::Other("no answer".to_owned()),
        }
    }

    /// Waits until the node ends the connection.
    pub(super) async fn ended(&mut self) -> Got {
        self.ended_by(None).await
    }

    async fn answer(&mut self, sends: Sends) -> io::Result<Got> {
        if self.visit == Visit::Keyed {
            let line = self.exchange(b"?", |got| got.ends_with(b"\n")).await?;
            let name = String::from_utf8_lossy(&line).trim_end().to_owned();
            return Ok(Got::As(name));
        }
        if sends == Sends::Session && !self.authenticated {
            self.authenticated = true;
            let token = json!({ "token": KEYRING.token.expose() });
            let got = self.call("/session/authenticate", token, None).await?;
            if !matches!(got, Got::Other(_)) {
                return Ok(got);
            }
        }
        let token = match sends {
            Sends::Nothing | Sends::Session => None,
            Sends::Token => Some(KEYRING.token.expose()),
            Sends::Nonsense => Some("alk_tool0001_"),
        };
        self.call(WHOAMI, Value::Null, token).await
    }

    async fn call(
        &mut self,
        operation: &str,
        input: Value,
        token: Option<&str>,
    ) -> io::Result<Got> {
        self.asked += 1;
        let mut payload = json!({ "operationId": operation, "input": input });
        if let Some(token) = token {
            payload["auth_token"] = token.into();
        }
        let id = self.asked.to_string();
        let request = encode_event(EventKind::Requested, &id, &payload.to_string());
        let frame = self.exchange(&request, is_frame).await?;
        Ok(answer_of(frame.slice(4..)))
    }

    /// Sends `bytes` and reads until `is_whole`.
    async fn exchange(
        &mut self,
        bytes: &[u8],
        is_whole: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Bytes> {
        let mut got = Vec::new();
        match &mut self.wire {
            Wire::Tls(tls) => {
                tls.write_all(bytes).await?;
                while !is_whole(&got) {
                    if tls.read_buf(&mut got).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
            Wire::Quic(_, connection) => {
                let (mut send, mut recv) = connection.open_bi().await?;
                send.write_all(bytes).await?;
                while !is_whole(&got) {
                    let chunk = recv.read_chunk(usize::MAX, true).await;
                    let chunk = chunk.map_err(io::Error::other)?;
                    let chunk = chunk.ok_or(io::ErrorKind::UnexpectedEof)?;
                    got.extend_from_slice(&chunk.bytes);
                }
            }
        }
        Ok(got.into())
    }

    /// How the connection ended, of which `error` was the first sign.
    async fn ended_by(&mut self, error: Option<io::Error>) -> Got {
        match &mut self.wire {
            Wire::Tls(tls) => {
                let end = match error {
                    Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                    Some(error) => Err(error),
                    None => {
                        let mut rest = Vec::new();
                        match timeout(HUNG, tls.read_to_end(&mut rest)).await {
                            Ok(end) => end,
                            Err(_) => return Got::Other("stays open".to_owned()),
                        }
                    }
                };
                match end {
                    Ok(_) => Got::Closed(None),
                    Err(_) => Got::Refused,
                }
            }
            Wire::Quic(_, connection) => match timeout(HUNG, connection.closed()).await {
                Ok(quinn::ConnectionError::ApplicationClosed(end)) => {
                    Got::Closed(Some(end.error_code.into_inner()))
                }
                Ok(quinn::ConnectionError::ConnectionClosed(_)) => Got::Refused,
                Ok(other) => Got::Other(other.to_string()),
                Err(_) => Got::Other("stays open".to_owned()),
            },
        }
    }
}

fn is_frame(got: &[u8]) -> bool {
    got.split_first_chunk::<4>()
        .is_some_and(|(header, rest)| rest.len() >= u32::from_be_bytes(*header) as usize)
}

fn answer_of(body: Bytes) -> Got {
    let body = FrameBody::parse(body).expect("a well-formed frame");
    let event = Envelope::parse(&body.envelope, 32).expect("a well-formed envelope");
    let payload: Value = serde_json::from_str(event.payload).expect("JSON");
    match (event.kind, &payload["output"], payload["code"].as_str()) {
        (EventKind::Responded, Value::String(name), _) => Got::As(name.clone()),
        (EventKind::Responded, other, _) => Got::Other(other.to_string()),
        (_, _, Some("UNAUTHENTICATED")) => Got::Nobody,
        (_, _, code) => Got::Other(format!("{code:?}")),
    }
}
