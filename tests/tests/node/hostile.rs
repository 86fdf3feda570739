//! What the node does about those who mean it no good: each ends in its documented code, and a
//! legitimate caller is served meanwhile.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_core::{Carriage, CloseReason, Connection, StreamCode, StreamError};
use alknet_endpoint::{DialError, Dialer, Target};
use alknet_test_support::{deadline, is_campaign, took};
use alknet_tests::{Bench, Boot, Cli, HostNode, wire};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinSet, block_in_place};

/// How long anything may take before a test calls it hung. Guests run translated.
fn hung() -> Duration {
    deadline(Duration::from_secs(120))
}

/// Connections that never finish their handshake.
const CROWD: usize = 500;

/// Handshakes under way that one address may have on TCP, and all unproven ones on QUIC, as
/// docs/endpoint.md has it.
const HANDSHAKES_AT_ONCE: usize = 64;

/// Codes of docs/endpoint.md, of a connection and of a stream.
const PROTOCOL: u64 = 5;
const TIMEOUT: u64 = 8;

const CALL: &[u8] = b"alknet/call";

const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];

/// Campaigns run for longer than continuous integration has time for.
fn count(few: usize, many: usize) -> usize {
    if is_campaign() { many } else { few }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(hung(), work).await.expect("it hangs")
}

/// A node under attack, and its administrator, who minds their own business.
struct Site<'a> {
    admin: &'a Cli,
    target: String,
}

impl<'a> Site<'a> {
    /// A node on this host, which ends with the first of the two.
    fn on_host(bench: &'a Bench) -> (HostNode, Self) {
        let node = bench.host();
        let site = Self {
            admin: bench.admin(),
            target: node.target().to_owned(),
        };
        (node, site)
    }

    async fn dial(&self, dialer: &Dialer, carriage: Carriage) -> Connection {
        let dialled = dialer.dial_over(carriage, &self.parsed(), CALL).await;
        dialled.expect("anybody may connect")
    }

    fn parsed(&self) -> Target {
        self.target.parse().expect("the node's own target")
    }

    fn address(&self) -> SocketAddr {
        self.parsed()
            .address()
            .parse()
            .expect("an address, not a name")
    }

    /// `node/info` for the legitimate caller.
    fn info(&self, more: &[&str]) -> Value {
        block_in_place(|| {
            self.admin
                .call(&self.target, "node/info", &Value::Null, more)
                .json()
        })
    }

    fn serves(&self) {
        for carriage in ["quic", "tcp"] {
            let info = self.info(&["--carriage", carriage]);
            assert_eq!(info["problems"], json!([]), "{info}");
        }
    }

    /// Calls until the node has counted `enough` ends of handshakes: each call is served, too.
    async fn counted(&self, before: &Value, enough: usize) {
        let until = Instant::now() + hung();
        loop {
            let now = &self.info(&[])["endpoint"];
            if number(now) >= number(before) + enough {
                return;
            }
            assert!(
                Instant::now() < until,
                "less than {enough} from {before} to {now}"
            );
        }
    }
}

fn key() -> NodeKey {
    NodeKey::generate().expect("the system has entropy")
}

fn key_of(cli: &Cli) -> NodeKey {
    cli.identity();
    let path = cli.state().join("identity.key");
    NodeKey::load_or_create(&path)
        .expect("the key was just made")
        .0
}

// Who calls.

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_and_no_key_are_refused() {
    let bench = Bench::new();
    let node = bench.host();
    let stranger = bench.somebody("stranger");
    for carriage in ["quic", "tcp"] {
        for more in [
            &["--carriage", carriage][..],
            &["--carriage", carriage, "--anonymous"],
        ] {
            for operation in ["node/info", "node/log", "node/reboot"] {
                let answer = stranger.call(node.target(), operation, &Value::Null, more);
                let ended = (answer.status, answer.code());
                assert_eq!(ended, (4, "UNAUTHENTICATED".to_owned()), "{answer:?}");
            }
            let answer = stranger.call(node.target(), "services/list", &Value::Null, more);
            assert_eq!(
                answer.status, 0,
                "what is open to everybody stays open: {answer:?}"
            );
        }
    }
    Site {
        admin: bench.admin(),
        target: node.target().to_owned(),
    }
    .serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pinned_key_ends_the_call_before_it_is_made() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    let wrong = format!("{}@{}", key().public(), site.address());
    for more in [&[][..], &["--carriage", "quic"], &["--carriage", "tcp"]] {
        let answer = bench.admin().call(&wrong, "node/info", &Value::Null, more);
        assert_eq!(
            (answer.status, answer.code()),
            (3, "PIN_MISMATCH".to_owned()),
            "{answer:?}"
        );
        let (expected, _) = site.target.split_once('@').expect("a pinned target");
        assert!(
            answer.errors.contains(expected),
            "it names the key it met: {answer:?}"
        );
    }
    site.serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_protocol_gets_the_alert_for_it() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    let dialer = Dialer::new(Some(key_of(bench.admin())));
    for carriage in CARRIAGES {
        let dialled = within(dialer.dial_over(carriage, &site.parsed(), b"alknet/none")).await;
        assert!(
            matches!(dialled, Err(DialError::NoProtocol { .. })),
            "{carriage}: {dialled:?}"
        );
    }
    // RFC 7301 section 3.2: no_application_protocol is alert 120.
    let said = s_client(&site, &["-alpn", "alknet/none"]);
    assert!(said.contains("alert number 120"), "{said}");
    // Who names no protocol is taken to speak HTTP/1.1, as clients from before ALPN do.
    let before = site.info(&[])["endpoint"]["no_handler"].as_u64();
    let said = s_client(&site, &[]);
    assert!(said.contains("No ALPN negotiated"), "{said}");
    let after = site.info(&[])["endpoint"]["no_handler"].as_u64();
    assert_eq!(after, before);
    site.serves();
}

fn s_client(site: &Site<'_>, more: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &site.address().to_string()])
        .args(more);
    let output = command.stdin(Stdio::null()).output();
    let output = output.expect("openssl is installed: it comes with the set-up");
    let (said, errors) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(said),
        String::from_utf8_lossy(errors)
    )
}

// What they send.

/// How a stream ended under its peer.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The connection with it, where there is no other stream.
    Closed,
    /// On its own.
    Reset(u64),
}

impl Ended {
    /// What `code` looks like from outside on this carriage.
    fn by(code: u64, connection: &Connection) -> Self {
        if connection.is_multi() {
            Self::Reset(code)
        } else {
            Self::Closed
        }
    }
}

/// Sends `bytes` on a stream of its own, leaves that open unless told otherwise, and waits for
/// its end.
async fn send(connection: &Connection, bytes: &[u8], finish: bool) -> Ended {
    let (mut send, mut recv) = wire::stream(connection).await.expect("it is connected");
    // The node may have ended the stream before it has taken everything.
    send.write_chunk(bytes.to_vec().into()).await.ok();
    if finish {
        send.finish().ok();
    }
    loop {
        match recv.read_chunk(usize::MAX).await {
            Ok(Some(_)) => {}
            Ok(None) | Err(StreamError::Closed(_)) => return Ended::Closed,
            Err(StreamError::Reset(code)) => return Ended::Reset(code),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// What is no frame for anybody, with a word why.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| wire::frame(text.as_bytes());
    let id =
        |id: &str| text(&json!({ "type": "call.requested", "id": id, "payload": {} }).to_string());
    let deep = format!(
        r#"{{"type":"x","id":"1","payload":{}1{}}}"#,
        "[".repeat(99),
        "]".repeat(99)
    );
    vec![
        ("an empty frame", vec![0; 4]),
        ("no JSON", text("hello")),
        ("no object", text("[]")),
        ("no type", text(r#"{"id":"1","payload":{}}"#)),
        ("no id", text(r#"{"type":"call.requested","payload":{}}"#)),
        (
            "a member twice",
            text(r#"{"type":"a","type":"b","id":"1","payload":{}}"#),
        ),
        (
            "no UTF-8",
            wire::frame(b"{\"type\":\"\xff\",\"id\":\"1\",\"payload\":{}}"),
        ),
        ("nested too deeply", text(&deep)),
        ("an empty id", id("")),
        ("a long id", id(&"i".repeat(65))),
        ("an id with a space", id("a b")),
        ("the other side's id", id("~1")),
        (
            "more envelope than frame",
            wire::frame(&[1, 0, 0, 0, 9, b'{', b'}']),
        ),
        (
            "an HTTP request",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ),
        ("too long for anybody", u32::MAX.to_be_bytes().to_vec()),
    ]
}

/// Lengths that are announced and refused at once, without a byte of the body.
fn over_long(limit: u32) -> Vec<u8> {
    (limit + 1).to_be_bytes().to_vec()
}

/// Every one of them from a peer with this key, over both carriages.
async fn broken_frames_end_in_code_5(site: &Site<'_>, key: &NodeKey, limit: u32) {
    let dialer = Dialer::new(Some(key.clone()));
    let mut wrong = malformed();
    wrong.push(("over-long", over_long(limit)));
    for carriage in CARRIAGES {
        for (what, bytes) in &wrong {
            let connection = site.dial(&dialer, carriage).await;
            let ended = within(send(&connection, bytes, false)).await;
            assert_eq!(
                ended,
                Ended::by(PROTOCOL, &connection),
                "{carriage}: {what}"
            );
            survives_or_closes(&connection, what).await;
        }
        let connection = site.dial(&dialer, carriage).await;
        let cut = &wire::request("1", "services/list", &Value::Null)[..20];
        let ended = within(send(&connection, cut, true)).await;
        assert_eq!(
            ended,
            Ended::by(PROTOCOL, &connection),
            "{carriage}: the end within a frame"
        );
    }
}

/// A stream among others takes nobody along; where it is the only one, the peer sees the end
/// without a code.
async fn survives_or_closes(connection: &Connection, what: &str) {
    if connection.is_multi() {
        answers(connection).await;
    } else {
        let reason = within(connection.closed()).await;
        assert!(
            matches!(reason, CloseReason::Peer(None, _)),
            "{what}: {reason:?}"
        );
    }
}

async fn answers(connection: &Connection) {
    let (mut send, mut recv) = wire::stream(connection).await.expect("it is connected");
    let request = wire::request("1", "services/list", &Value::Null);
    send.write_chunk(request.into())
        .await
        .expect("the node reads");
    let event = within(wire::event(&mut recv)).await.expect("an answer");
    assert_eq!(event["type"], "call.responded", "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_of_strangers() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    broken_frames_end_in_code_5(&site, &key(), 64 << 10).await;
    site.serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_of_somebody_known() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    broken_frames_end_in_code_5(&site, &key_of(bench.admin()), 1 << 20).await;
    site.serves();
}

/// Few at a time, so that none has to prove its address before.
#[tokio::test(flavor = "multi_thread")]
async fn quic_handshakes_are_charged_without_retry() {
    const BURST: usize = 5;
    const DIALLED: usize = 40;
    let bench = Bench::new();
    let limits = format!("[limits]\nhandshake_burst = {BURST}\nhandshakes_per_second = 1\n");
    let node = bench.host_with(&limits);
    let site = Site {
        admin: bench.admin(),
        target: node.target().to_owned(),
    };
    // A known peer pays nothing, and leaves no credit that others could use.
    let admin = Dialer::new(Some(key_of(bench.admin())));
    for _ in 0..DIALLED {
        answers(&site.dial(&admin, Carriage::Quic).await).await;
    }
    let stranger = Dialer::new(Some(key()));
    let mut served = 0;
    for _ in 0..DIALLED {
        let target = site.parsed();
        let dialled = within(stranger.dial_over(Carriage::Quic, &target, CALL)).await;
        if let Ok(connection) = dialled {
            served += usize::from(is_answered(&connection).await);
        }
    }
    // A slow machine earns some back meanwhile.
    assert!((1..DIALLED).contains(&served), "{served} of {DIALLED}");
    let refused = &site.info(&[])["endpoint"]["handshakes_refused"];
    assert!(refused.as_u64() > Some(0), "{refused}");
}

/// Whether the node answers what anybody may ask.
async fn is_answered(connection: &Connection) -> bool {
    let Ok((mut send, mut recv)) = wire::stream(connection).await else {
        return false;
    };
    let request = wire::request("1", "services/list", &Value::Null);
    let asked = send.write_chunk(request.into()).await.is_ok();
    asked && matches!(within(recv.read_chunk(1)).await, Ok(Some(_)))
}

/// An id in flight cannot be used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_id_ends_in_code_5() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    let dialer = Dialer::new(Some(key_of(bench.admin())));
    let follow = wire::request("1", "node/log", &json!({ "follow": true }));
    for carriage in CARRIAGES {
        let connection = site.dial(&dialer, carriage).await;
        let ended = within(send(&connection, &follow.repeat(2), false)).await;
        assert_eq!(ended, Ended::by(PROTOCOL, &connection), "{carriage}");
    }
    site.serves();
}

/// Waits for the end of `what`, which in a campaign comes a second after its time at the latest.
async fn timed<T>(what: &str, patience: Duration, end: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let end = end.await;
    let most = patience + Duration::from_secs(1);
    took(&format!("{what} is ended"), most, began.elapsed());
    end
}

/// Begins a request every second, and gives it up, until the node ends the connection: bytes that ask nothing.
async fn begins_and_gives_up(connection: &Connection) -> CloseReason {
    let every = Duration::from_secs(1);
    loop {
        if let Ok(reason) = tokio::time::timeout(every, connection.closed()).await {
            return reason;
        }
        if let Ok((mut send, _recv)) = wire::stream(connection).await {
            send.write_chunk(bytes::Bytes::from_static(&[0])).await.ok();
            send.reset(StreamCode::Cancelled);
        }
    }
}

/// A frame that begins and never ends is given up after half a minute, on either carriage; so is, after
/// three quarters of one, an unknown peer who connects and asks nothing. On QUIC it may keep the connection
/// open, as the dialer does.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_streams_end_in_code_8() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    let dialer = Dialer::new(Some(key()));
    let half = &wire::request("1", "services/list", &Value::Null)[..20];
    let dial = |carriage| site.dial(&dialer, carriage);
    let (quic, tcp) = (dial(Carriage::Quic).await, dial(Carriage::Tcp).await);
    let silent = dial(Carriage::Tcp).await;
    let kept_open = dial(Carriage::Quic).await;
    let busy = dial(Carriage::Quic).await;
    let (frame, stranger) = (Duration::from_secs(30), Duration::from_secs(45));
    let all = async {
        tokio::join!(
            timed("half a frame over QUIC", frame, send(&quic, half, false)),
            timed("half a frame over TCP", frame, send(&tcp, half, false)),
            timed("silence over TCP", stranger, send(&silent, b"", false)),
            timed("silence over QUIC", stranger, kept_open.closed()),
            timed(
                "bytes that ask nothing",
                stranger,
                begins_and_gives_up(&busy)
            )
        )
    };
    let served = async {
        // Whoever is slow is alone with it.
        answers(&quic).await;
        site.serves();
    };
    let (ended, ()) = within(async { tokio::join!(all, served) }).await;
    let (of_quic, of_tcp, of_silent, of_kept_open, of_busy) = ended;
    assert_eq!(
        (of_quic, of_tcp, of_silent),
        (Ended::Reset(TIMEOUT), Ended::Closed, Ended::Closed)
    );
    for reason in [of_kept_open, of_busy] {
        assert!(
            matches!(reason, CloseReason::Peer(Some(TIMEOUT), _)),
            "{reason:?}"
        );
    }
    answers(&dial(Carriage::Quic).await).await;
    site.serves();
}

/// Frames with a few bytes changed: whatever they say now, they are answered or ended in code 5.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_noise() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    let dialer = Dialer::new(Some(key_of(bench.admin())));
    let connection = site.dial(&dialer, Carriage::Quic).await;
    let mut noise = Noise(0x5eed);
    let right = [
        wire::request(
            "1",
            "services/list",
            &json!({ "prefix": "node/", "limit": 3 }),
        ),
        wire::request(
            "1",
            "services/schema",
            &json!({ "names": ["node/info", "node/log"] }),
        ),
        wire::request("1", "node/log", &json!({ "last": 3 })),
    ];
    for round in 0..count(500, 100_000) {
        let bytes = noise.spoil(&right[round % right.len()]);
        let ended = within(send(&connection, &bytes, true)).await;
        let fine = matches!(ended, Ended::Closed | Ended::Reset(PROTOCOL));
        assert!(fine, "round {round}: {ended:?} after {bytes:?}");
    }
    answers(&connection).await;
    site.serves();
}

/// A generator whose every run is the same (xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize
    }

    /// Changes up to four bytes; one time in eight, cuts the rest off.
    fn spoil(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut bytes = frame.to_vec();
        for _ in 0..=self.next() % 4 {
            let at = self.next() % bytes.len();
            bytes[at] = self.next() as u8;
        }
        if self.next().is_multiple_of(8) {
            bytes.truncate(self.next() % bytes.len());
        }
        bytes
    }
}

// How many they are.

/// What one of a crowd does before it falls silent.
#[derive(Clone, Copy, Debug)]
enum Silence {
    /// Connects by TCP.
    AtOnce,
    /// Sends half a ClientHello.
    WithinHello,
    /// Sends a whole ClientHello and never answers the node's.
    AfterHello,
    /// Sends QUIC's first packets and takes no answer.
    Quic,
}

const SILENCES: [Silence; 4] = [
    Silence::AtOnce,
    Silence::WithinHello,
    Silence::AfterHello,
    Silence::Quic,
];

/// Connections that never finish their handshake, for as long as it is kept.
struct Crowd {
    tcp: Vec<TcpStream>,
    quic: JoinSet<Result<Connection, DialError>>,
    _relay: JoinSet<()>,
}

impl Crowd {
    /// One for each of `silences`, all held open together.
    async fn gather(site: &Site<'_>, silences: impl Iterator<Item = Silence>) -> Self {
        let hello = client_hello(site).await;
        let mut relay = JoinSet::new();
        let blind = one_way(site.address(), &mut relay).await;
        let target: Target = blind.to_string().parse().expect("an address");
        let target = target.with_pins(site.parsed().pins);
        let dialer = Arc::new(Dialer::new(None));
        let mut crowd = Self {
            tcp: Vec::new(),
            quic: JoinSet::new(),
            _relay: relay,
        };
        for silence in silences {
            let words: &[u8] = match silence {
                Silence::AtOnce => &[],
                Silence::WithinHello => &hello[..hello.len() / 2],
                Silence::AfterHello => &hello,
                Silence::Quic => {
                    let (dialer, target) = (Arc::clone(&dialer), target.clone());
                    let dial = async move { dialer.dial_over(Carriage::Quic, &target, CALL).await };
                    crowd.quic.spawn(dial);
                    continue;
                }
            };
            let mut tcp = TcpStream::connect(site.address())
                .await
                .expect("the node accepts");
            // An earlier one's end may come as a reset of this one's bytes.
            tcp.write_all(words).await.ok();
            crowd.tcp.push(tcp);
        }
        crowd
    }

    /// Waits until each has ended: by the node's hand on TCP, by its own on UDP, which says no.
    async fn disperse(mut self) {
        let mut rest = Vec::new();
        for mut tcp in self.tcp {
            // A reset is an end, too.
            within(tcp.read_to_end(&mut rest)).await.ok();
        }
        while let Some(dialled) = within(self.quic.join_next()).await {
            let dialled = dialled.expect("no panic");
            assert!(
                matches!(dialled, Err(DialError::TimedOut { .. })),
                "{dialled:?}"
            );
        }
    }
}

/// The first bytes of our own client.
async fn client_hello(site: &Site<'_>) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let here = listener.local_addr().expect("it is bound").to_string();
    let target: Target = here.parse().expect("an address");
    let target = target.with_pins(site.parsed().pins);
    let dialer = Dialer::new(None);
    let hear = async {
        let (mut tcp, _) = listener.accept().await.expect("somebody dials");
        // A TLS record: type, version, length (RFC 8446 section 5.1).
        let mut hello = vec![0; 5];
        tcp.read_exact(&mut hello).await.expect("a record");
        let len = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        hello.resize(5 + len, 0);
        tcp.read_exact(&mut hello[5..]).await.expect("a record");
        hello
    };
    tokio::select! {
        hello = hear => hello,
        dialled = dialer.dial_over(Carriage::Tcp, &target, CALL) => panic!("{dialled:?}"),
    }
}

/// An address whose datagrams reach `node`, whose answers reach nobody.
async fn one_way(node: SocketAddr, tasks: &mut JoinSet<()>) -> SocketAddr {
    let free = async || UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let (inside, outside) = (free().await, free().await);
    let address = inside.local_addr().expect("it is bound");
    tasks.spawn(async move {
        let mut datagram = vec![0; 2048];
        while let Ok((len, _)) = inside.recv_from(&mut datagram).await {
            outside.send_to(&datagram[..len], node).await.ok();
        }
    });
    address
}

/// Handshakes that came to nothing, and those that were asked for proof first.
fn number(counters: &Value) -> usize {
    let ends = ["evicted", "ignored", "refused", "retried", "timeout"];
    let all = ends.map(|end| counters[format!("handshakes_{end}")].as_u64());
    all.into_iter().flatten().sum::<u64>() as usize
}

/// A crowd, and a caller beside it.
async fn a_crowd_keeps_nobody_out(site: &Site<'_>, kinds: &[Silence]) {
    let before = site.info(&[])["endpoint"].clone();
    let crowd = Crowd::gather(site, kinds.iter().copied().cycle().take(CROWD)).await;
    // Some are under way, within the limits; what became of the others is counted.
    let under_way = kinds.len().min(2) * HANDSHAKES_AT_ONCE;
    site.counted(&before, CROWD - under_way).await;
    site.serves();
    crowd.disperse().await;
    site.serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_crowds_at_the_host() {
    let bench = Bench::new();
    let (_node, site) = Site::on_host(&bench);
    for _ in 0..count(1, 20) {
        for silence in SILENCES {
            a_crowd_keeps_nobody_out(&site, &[silence]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_crowds_at_the_appliance() {
    let bench = Bench::new();
    let node = block_in_place(|| bench.snapshot(Boot::MicrovmErofs).restore());
    let site = Site {
        admin: bench.admin(),
        target: node.target(),
    };
    for _ in 0..count(1, 20) {
        a_crowd_keeps_nobody_out(&site, &SILENCES).await;
    }
    let info = site.info(&[]);
    assert_eq!(info["node_restarts"], 0, "{info}");
    block_in_place(|| node.end());
}
