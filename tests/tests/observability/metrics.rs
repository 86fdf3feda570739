//! A node in this process, used in every way, with its whole log kept.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::limits::PeerLimits;
use alknet_call::{
    ALPN, CallBody, CallClient, CallConnection, CallError, CallHandler, CallOptions, Ctx,
    Dispatcher, HandlerKind, OperationSpec, Registration, Registry,
};
use alknet_core::config::NodeConfig;
use alknet_core::{
    AlpnSpec, AuthContext, AuthToken, BoxFuture, Carriage, Connection, HandlerError,
    HandlerRegistry, Identities, Metrics, ProtocolHandler, SystemClock,
};
use alknet_endpoint::{
    EndpointDialError, EndpointDialer, EndpointLimits, EndpointServer, ServerOptions, Target,
};
use alknet_test_support::deadline;
use alknet_tests::assert_known_labels;
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// How long anything may take before the test counts as hung.
fn hung() -> Duration {
    deadline(Duration::from_secs(60))
}

/// Panics on every connection.
const PANIC: &[u8] = b"alknet/panic";
/// A protocol that no handler serves.
const NOBODYS: &[u8] = b"alknet/nobodys";

/// A text in every payload, both ways, and in every name of a scope.
const PAYLOAD: &str = "b6d1-payload-marker";
const SCOPE: &str = "b6d1:scope-marker";
/// The name of the peer: a word that is in no metric.
const PEER: &str = "b6d1-peer-marker";

/// Seeds of the keys in use.
const NODE_SEED: [u8; 32] = [0xd7; 32];
const PEER_SEED: [u8; 32] = [0xe9; 32];
const UNKNOWN_PEER_SEED: [u8; 32] = [0xf3; 32];

const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];

/// Keeps the whole log: everything of this project's crates, and of libraries as much as the node's
/// own log has.
#[derive(Clone, Default)]
struct LogCollector(Arc<Mutex<String>>);

impl<S: Subscriber> Layer<S> for LogCollector {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("alknet") || *metadata.level() <= Level::WARN
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = FieldVisitor(String::new());
        event.record(&mut line);
        let mut kept = self.0.lock().expect("no panic while it is held");
        kept.push_str(&line.0);
        kept.push('\n');
    }
}

struct FieldVisitor(String);

impl Visit for FieldVisitor {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.0, " {}={value}", field.name());
    }
}

struct PanickingHandler([AlpnSpec; 1]);

impl ProtocolHandler for PanickingHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.0
    }

    fn handle(
        self: Arc<Self>,
        _connection: Connection,
        _auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        panic!("as asked")
    }
}

struct MetricsLab {
    server: EndpointServer,
    dispatcher: Arc<Dispatcher>,
    target: Target,
}

fn limits() -> EndpointLimits {
    EndpointLimits {
        per_peer_max: 2,
        failures_per_minute_max: 4,
        ..EndpointLimits::default()
    }
}

fn operations() -> Registry {
    let echo = HandlerKind::once(|input: CallBody, _: Ctx| async move {
        Ok::<_, CallError>(json!({ "said": input.value(), "too": PAYLOAD }))
    });
    let panic = HandlerKind::once(|_: CallBody, _: Ctx| async {
        if true {
            panic!("as asked");
        }
        Ok::<_, CallError>(Value::Null)
    });
    let hang = HandlerKind::once(|_: CallBody, _: Ctx| std::future::pending::<Result<Value, _>>());
    let spec = |name| OperationSpec::query(name, "For tests.").with_scope(SCOPE);
    let picky = spec("demo/picky").with_input(json!({ "type": "object",
        "properties": { "n": { "type": "integer" } }, "additionalProperties": false }));
    Registry::builder()
        .with(Registration::new(spec("demo/echo"), echo.clone()))
        .with(Registration::new(picky, echo))
        .with(Registration::new(spec("demo/panic"), panic))
        .with(Registration::new(spec("demo/hang"), hang))
        .build()
        .expect("correct operations")
}

impl MetricsLab {
    fn start(token: &AuthToken) -> Self {
        let hash = token.hash().expect("a token").to_string();
        let (key_id, sha256) = hash.split_once(':').expect("the form of a hash");
        let document = format!(
            "[[peers]]\npeer_id = \"{PEER}\"\nkeys = [\"{}\"]\nscopes = [\"{SCOPE}\"]\n\
             [[api_keys]]\nkey_id = \"{key_id}\"\nsha256 = \"{sha256}\"\nscopes = [\"{SCOPE}\"]\n",
            NodeKey::from_seed(&PEER_SEED).public()
        );
        let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(config.entries(), clock));
        let dispatcher = Dispatcher::new(operations())
            .with_limits(PeerLimits {
                requests: 2,
                ..PeerLimits::AUTHENTICATED
            })
            .with_identities(Arc::clone(&identities) as _);
        let dispatcher = Arc::new(dispatcher);
        let mut handlers = HandlerRegistry::new();
        let call = CallHandler::new(Arc::clone(&dispatcher));
        handlers.register(Arc::new(call)).expect("register");
        let panics = PanickingHandler([AlpnSpec::new(PANIC)]);
        handlers.register(Arc::new(panics)).expect("register");
        let key = NodeKey::from_seed(&NODE_SEED);
        let options = ServerOptions {
            port: 0,
            limits: limits(),
            ..ServerOptions::default()
        };
        let server =
            EndpointServer::bind(options, &key, handlers, identities).expect("a free port");
        let target = format!("{}:{}", Ipv4Addr::LOCALHOST, server.port());
        let target: Target = target.parse().expect("a target");
        Self {
            server,
            dispatcher,
            target: target.with_pins([key.public()]),
        }
    }

    async fn dial(
        &self,
        dialer: &EndpointDialer,
        carriage: Carriage,
        alpn: &[u8],
    ) -> Result<Connection, EndpointDialError> {
        dialer.dial_over(carriage, &self.target, alpn).await
    }

    async fn client(
        &self,
        dialer: &EndpointDialer,
        carriage: Carriage,
    ) -> (Connection, CallConnection) {
        let connection = self.dial(dialer, carriage, ALPN).await;
        let connection = connection.unwrap_or_else(|error| panic!("{error}"));
        let client = CallClient::without_operations();
        (connection.clone(), client.attach(connection, None))
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        self.server.collect(&mut metrics);
        self.dispatcher.stats().collect(&mut metrics);
        metrics
    }

    /// Compares every label of the current metrics with the list, so that none identifies a peer.
    fn assert_known_labels(&self) {
        let metrics = self.metrics();
        for series in metrics.values().keys() {
            assert_known_labels(series, &[("alpn", "alknet/panic")]);
        }
    }

    /// Waits until no connection is left.
    async fn idle(&self) {
        let empty = async {
            // Nothing announces it, so the test polls.
            while !self.server.connections().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(hung(), empty).await.expect("every connection ends");
    }
}

async fn code(client: &CallConnection, operation: &str, token: Option<&AuthToken>) -> String {
    let options = CallOptions {
        auth_token: token.map(|token| token.expose().to_owned()),
        ..CallOptions::default()
    };
    let input = json!({ "said": PAYLOAD });
    let answer = client.call_with(operation, &input, &options);
    match timeout(hung(), answer).await.expect("an answer in time") {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.code.name().to_owned(),
    }
}

/// The requests of a known peer.
async fn known(lab: &MetricsLab, token: &AuthToken) {
    let peer = EndpointDialer::new(Some(NodeKey::from_seed(&PEER_SEED)));
    for carriage in CARRIAGES {
        let (_connection, client) = lab.client(&peer, carriage).await;
        assert_eq!(code(&client, "demo/echo", None).await, "ok");
        assert_eq!(code(&client, "demo/picky", None).await, "INVALID_INPUT");
        assert_eq!(code(&client, "demo/panic", None).await, "INTERNAL");
        assert_eq!(code(&client, PAYLOAD, None).await, "NOT_FOUND");
        assert_eq!(code(&client, "demo/echo", Some(token)).await, "ok");
        client.authenticate(token).await.expect("once");
        assert_eq!(code(&client, "demo/echo", None).await, "ok");
        // A connection's series disappears with it. It still exists here.
        assert!(!lab.server.connections().is_empty());
        lab.assert_known_labels();
    }
    lab.idle().await;

    // More requests than it may have, then more connections.
    let (oldest, client) = lab.client(&peer, Carriage::Quic).await;
    let hanging: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            // A request below may find no room when it arrives, and is then repeated.
            tokio::spawn(
                async move { while code(&client, "demo/hang", None).await == "OVERLOADED" {} },
            )
        })
        .collect();
    let full = async { while code(&client, "demo/echo", None).await != "OVERLOADED" {} };
    timeout(hung(), full).await.expect("both hang");
    let second = lab.client(&peer, Carriage::Quic).await;
    let third = lab.client(&peer, Carriage::Tcp).await;
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    timeout(hung(), oldest.closed()).await.expect("superseded");
    drop((second, third, client));
    lab.idle().await;

    for carriage in CARRIAGES {
        let connection = lab
            .dial(&peer, carriage, PANIC)
            .await
            .expect("a connection");
        let ended = async {
            if connection.is_multi() {
                connection.closed().await;
                return;
            }
            // Only a reader notices the end of a TCP connection.
            let (_send, mut recv) = connection.accept_bi().await.expect("the one stream");
            let _ = recv.read_chunk(1).await;
        };
        timeout(hung(), ended).await.expect("it ends");
        let refused = lab.dial(&peer, carriage, NOBODYS).await;
        assert!(
            matches!(refused, Err(EndpointDialError::NoProtocol { .. })),
            "{refused:?}"
        );
    }
    peer.close().await;
}

/// The requests of an unknown peer, until the node refuses its guesses.
async fn unknown(lab: &MetricsLab, token: &AuthToken) -> AuthToken {
    let unknown_peer = EndpointDialer::new(Some(NodeKey::from_seed(&UNKNOWN_PEER_SEED)));
    let wrong = AuthToken::generate().expect("randomness");
    let (_connection, client) = lab.client(&unknown_peer, Carriage::Tcp).await;
    assert_eq!(code(&client, "demo/echo", None).await, "UNAUTHENTICATED");
    assert_eq!(code(&client, "demo/echo", Some(token)).await, "ok");
    let (_connection, client) = lab.client(&unknown_peer, Carriage::Quic).await;
    for _ in 0..limits().failures_per_minute_max {
        assert_eq!(
            code(&client, "demo/echo", Some(&wrong)).await,
            "UNAUTHENTICATED"
        );
    }
    let (_connection, client) = lab.client(&unknown_peer, Carriage::Quic).await;
    assert_eq!(code(&client, "demo/echo", Some(&wrong)).await, "OVERLOADED");
    // And a client with another protocol.
    let failed = || lab.server.counters().handshakes_failed;
    let before = failed();
    let mut noise = TcpStream::connect((Ipv4Addr::LOCALHOST, lab.server.port())).expect("a port");
    std::io::Write::write_all(&mut noise, PAYLOAD.as_bytes()).expect("sent");
    drop(noise);
    let counted = async {
        // Nothing announces it, so the test polls.
        while failed() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(hung(), counted)
        .await
        .expect("noise is no handshake");
    unknown_peer.close().await;
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_counted_and_no_secret_appears() {
    let log = LogCollector::default();
    let subscriber = tracing_subscriber::registry().with(log.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the first");
    let token = AuthToken::generate().expect("randomness");
    let lab = MetricsLab::start(&token);
    known(&lab, &token).await;
    let wrong = unknown(&lab, &token).await;
    lab.idle().await;

    let metrics = lab.metrics();
    let text = metrics.to_text();
    is_prometheus(&text);
    let values = metrics.values();
    let of = |series: &str| {
        let value = values.get(series);
        *value.unwrap_or_else(|| panic!("no {series}:\n{text}"))
    };
    let call = "alpn=\"alknet/call\"";
    for (series, expected) in [
        ("alknet_operation_panics_total".to_owned(), 2.0),
        ("alknet_superseded_total".to_owned(), 1.0),
        ("alknet_policy_refusals_total".to_owned(), 0.0),
        ("alknet_revoked_total".to_owned(), 0.0),
        (
            "alknet_handler_panics_total{alpn=\"alknet/panic\"}".to_owned(),
            2.0,
        ),
        (format!("alknet_handler_panics_total{{{call}}}"), 0.0),
        (
            "alknet_handshakes_total{result=\"alert_120\"}".to_owned(),
            2.0,
        ),
        // One request and one connection on each carriage, and one of an unknown peer.
        (
            "alknet_auth_total{method=\"token\",result=\"ok\"}".to_owned(),
            5.0,
        ),
        (
            "alknet_auth_total{method=\"key\",result=\"ok\"}".to_owned(),
            7.0,
        ),
        (
            "alknet_auth_total{method=\"key\",result=\"unknown\"}".to_owned(),
            3.0,
        ),
        (
            "alknet_limit_hits_total{limit=\"connections_per_peer\"}".to_owned(),
            1.0,
        ),
        (
            "alknet_limit_hits_total{limit=\"failed_logins\"}".to_owned(),
            1.0,
        ),
        (
            format!("alknet_connections{{{call},carriage=\"quic\",state=\"known\"}}"),
            0.0,
        ),
    ] {
        assert_eq!(of(&series), expected, "{series}\n{text}");
    }
    let least = [
        ("alknet_handshakes_total{result=\"ok\"}".to_owned(), 10.0),
        ("alknet_handshakes_total{result=\"failed\"}".to_owned(), 1.0),
        ("alknet_handshake_seconds_count".to_owned(), 10.0),
        (
            "alknet_limit_hits_total{limit=\"requests\"}".to_owned(),
            1.0,
        ),
        (
            "alknet_auth_total{method=\"token\",result=\"refused\"}".to_owned(),
            4.0,
        ),
        ("alknet_call_requests_total".to_owned(), 15.0),
        ("alknet_call_errors_total".to_owned(), 8.0),
        (format!("alknet_streams_total{{{call}}}"), 5.0),
        (format!("alknet_bytes_total{{dir=\"rx\",{call}}}"), 1000.0),
        (format!("alknet_bytes_total{{dir=\"tx\",{call}}}"), 1000.0),
    ];
    for (series, least) in least {
        assert!(of(&series) >= least, "{series}\n{text}");
    }
    assert!(!text.contains(PEER), "a peer in a label");
    lab.assert_known_labels();

    let log = log.0.lock().expect("no panic while it was held").clone();
    for line in ["conn.open", "conn.close"] {
        let said = log.lines().find(|l| l.contains(line) && l.contains(PEER));
        let said = said.unwrap_or_else(|| panic!("no {line}:\n{log}"));
        let always = [
            "conn=",
            "alpn=alknet/call",
            "carriage=",
            "key8=",
            "addr=127.0.0.1:",
        ];
        let at_the_end = ["dur=", "rx=", "tx=", "streams=", "code="];
        let more = if line == "conn.close" {
            &at_the_end[..]
        } else {
            &[]
        };
        for part in always.iter().chain(more) {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
    let opened = log.matches("conn.open").count();
    assert_eq!(opened, log.matches("conn.close").count(), "{log}");

    let hex = |seed: [u8; 32]| {
        seed.iter()
            .fold(String::new(), |t, b| t + &format!("{b:02x}"))
    };
    let secret_part = |token: &AuthToken| token.expose()[13..].to_owned();
    let secrets = [
        secret_part(&token),
        secret_part(&wrong),
        hex(NODE_SEED),
        hex(PEER_SEED),
        hex(UNKNOWN_PEER_SEED),
        PAYLOAD.to_owned(),
        SCOPE.to_owned(),
    ];
    for secret in &secrets {
        for (what, told) in [("log", &log), ("metrics", &text)] {
            assert!(
                !told.contains(secret.as_str()),
                "{secret} in the {what}:\n{told}"
            );
        }
    }
    // Bytes printed as a list are equally bad.
    for byte in ["215, 215, 215", "233, 233, 233", "243, 243, 243"] {
        assert!(!log.contains(byte), "{byte} in the log");
    }
}

/// Every line of the text has the format's syntax.
fn is_prometheus(text: &str) {
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# ") {
            assert!(
                about.starts_with("HELP alknet_") || about.starts_with("TYPE alknet_"),
                "{line}"
            );
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap_or_default();
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(
            name.starts_with("alknet_") && name.chars().all(plain),
            "{line}"
        );
        assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
    }
}
