//! What the tests of this crate share: a node with operations of every kind, and both carriages.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::limits::{Patience, PeerLimits};
use alknet_call::*;
use alknet_core::*;
use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

/// Counts what a node's operations do, so that tests wait for facts and never for time.
#[derive(Debug, Default)]
pub struct Probe {
    pub started: AtomicUsize,
    pub dropped: AtomicUsize,
    pub yielded: AtomicUsize,
    pub changed: Notify,
    pub release: Notify,
}

impl Probe {
    pub fn bump(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    pub async fn wait(&self, counter: impl Fn(&Self) -> &AtomicUsize, at_least: usize) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if counter(self).load(Ordering::SeqCst) >= at_least {
                    return;
                }
                changed.await;
            }
        };
        soon(wait).await;
    }
}

/// Tells the probe when a handler is dropped.
pub struct Guard(pub Arc<Probe>);

impl Guard {
    pub fn new(probe: &Arc<Probe>) -> Self {
        probe.bump(&probe.started);
        Self(Arc::clone(probe))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.bump(&self.0.dropped);
    }
}

/// A test that hangs fails instead.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it happens")
}

pub fn registry(probe: &Arc<Probe>) -> Registry {
    let mut builder = Registry::builder();
    let query = |name| OperationSpec::query(name, "For tests.");
    let subscription = |name| OperationSpec::subscription(name, "For tests.");
    builder.add(Registration::new(
        query("test/echo"),
        HandlerKind::once(|input, _| async move { Ok(Output::Raw(input.raw().clone())) }),
    ));
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        query("test/hang"),
        HandlerKind::once(move |_, _| {
            let guard = Guard::new(&p);
            async move {
                guard.0.release.notified().await;
                Ok(json!("released"))
            }
        }),
    ));
    builder.add(Registration::new(
        query("test/panic"),
        HandlerKind::once(|_, _| async {
            if true {
                panic!("on purpose");
            }
            Ok(Value::Null)
        }),
    ));
    builder.add(Registration::new(
        query("test/typed").with_input(json!({
            "type": "object",
            "properties": { "n": { "type": "integer" } },
            "required": ["n"],
        })),
        HandlerKind::once(|input, _| async move { Ok(input.value()["n"].clone()) }),
    ));
    builder.add(Registration::new(
        query("test/admin")
            .with_scope("node:admin")
            .with_input(json!({ "type": "string" })),
        HandlerKind::once(
            |_, ctx| async move { Ok(json!(ctx.identity().map(|i| i.id.to_string()))) },
        ),
    ));
    builder.add(Registration::new(
        query("test/internal").internal(),
        HandlerKind::once(|_, _| async { Ok(Value::Null) }),
    ));
    builder.add(Registration::new(
        query("test/big"),
        HandlerKind::once(|input, _| async move {
            let bytes: usize = input.parse()?;
            Ok(json!("x".repeat(bytes)))
        }),
    ));
    builder.add(Registration::new(
        query("test/undeclared"),
        HandlerKind::once(|_, _| async {
            Err::<Value, _>(CallError::operation("DISK_FULL", "no room"))
        }),
    ));
    builder.add(Registration::new(
        query("test/mixed"),
        HandlerKind::once(|_, _| async {
            let value = json!({ "data": { "$bin": [1, 2] } });
            Ok(Output::Mixed(value, Bytes::from_static(b"abcd")))
        }),
    ));
    builder.add(Registration::new(
        query("test/back"),
        HandlerKind::once(|input, ctx| async move {
            let answer = ctx.caller().call("client/double", input.value()).await?;
            Ok(answer.value().clone())
        }),
    ));
    builder.add(Registration::new(
        query("test/context"),
        HandlerKind::once(|_, ctx| async move {
            Ok(json!({
                "id": ctx.request_id(),
                "operation": ctx.operation(),
                "forwarded_for": ctx.forwarded_for(),
                "trace": ctx.trace(),
                "deadline": ctx.deadline().is_some(),
            }))
        }),
    ));
    let mut one = query("test/one");
    one.concurrency = Some(1);
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        one,
        HandlerKind::once(move |_, _| {
            let guard = Guard::new(&p);
            async move {
                guard.0.release.notified().await;
                Ok(Value::Null)
            }
        }),
    ));
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        subscription("test/count"),
        HandlerKind::stream(move |input, _| counting(&p, input.parse().unwrap_or(u64::MAX))),
    ));
    let p = Arc::clone(probe);
    builder.add(
        Registration::new(
            subscription("test/lossy"),
            HandlerKind::stream(move |input, _| counting(&p, input.parse().unwrap_or(u64::MAX))),
        )
        .on_slow(OnSlow::DropOldest(2)),
    );
    let p = Arc::clone(probe);
    builder.add(
        Registration::new(
            subscription("test/strict"),
            HandlerKind::stream(move |input, _| counting(&p, input.parse().unwrap_or(u64::MAX))),
        )
        .on_slow(OnSlow::Fail),
    );
    builder.add(Registration::new(
        subscription("test/failing"),
        HandlerKind::stream(|_, _| {
            stream::iter([
                Ok(json!(1)),
                Err(CallError::unavailable("the source is gone")),
                Ok(json!(2)),
            ])
        }),
    ));
    builder.add(Registration::new(
        subscription("test/panicking"),
        HandlerKind::stream(|_, _| {
            stream::iter(0..3).map(|n| {
                assert!(n < 1, "on purpose");
                Ok(json!(n))
            })
        }),
    ));
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        subscription("test/silent"),
        HandlerKind::stream(move |_, _| {
            let guard = Guard::new(&p);
            stream::pending::<Result<Value, CallError>>().inspect(move |_| {
                let _ = &guard;
            })
        }),
    ));
    for registration in repeatable(probe) {
        builder.add(registration);
    }
    builder.build().expect("every rule is kept")
}

/// Operations that fail for a while, run once, or go on where they were.
fn repeatable(probe: &Arc<Probe>) -> Vec<Registration> {
    let other = OperationSpec::query("test/other", "For tests.").with_scope("other");
    let other = Registration::new(other, HandlerKind::once(|_, _| async { Ok(Value::Null) }));
    let p = Arc::clone(probe);
    let mut charge = OperationSpec::mutation("test/charge", "Runs once for a key.");
    charge.idempotent = Idempotence::Keyed;
    charge.concurrency = Some(1);
    let charge = HandlerKind::once(move |input, _| {
        let guard = Guard::new(&p);
        async move {
            if input.value()["wait"] == true {
                guard.0.release.notified().await;
            }
            Ok(json!(guard.0.started.load(Ordering::SeqCst)))
        }
    })
    .registered(charge);
    let flaky = |spec: OperationSpec| {
        let p = Arc::clone(probe);
        HandlerKind::once(move |input, _| {
            let guard = Guard::new(&p);
            async move {
                let tries = guard.0.started.load(Ordering::SeqCst);
                if tries < input.parse()? {
                    return Err(CallError::unavailable("not yet"));
                }
                Ok(json!(tries))
            }
        })
        .registered(spec)
    };
    let p = Arc::clone(probe);
    let mut resumable = OperationSpec::subscription("test/resumable", "Counts on from a cursor.");
    resumable.resumable = true;
    let resumable = HandlerKind::stream(move |input, _| {
        let first = input.value()["cursor"].as_u64().map_or(0, |last| last + 1);
        let guard = Guard::new(&p);
        stream::unfold((first, guard), |(n, guard)| async move {
            guard.0.bump(&guard.0.yielded);
            let item = Item {
                output: json!(n).into(),
                cursor: Some(json!(n)),
                dropped: 0,
            };
            Some((Ok(item), (n + 1, guard)))
        })
    })
    .registered(resumable);
    vec![
        other,
        charge,
        flaky(OperationSpec::query("test/flaky", "Fails at first.")),
        flaky(OperationSpec::mutation(
            "test/flaky-mutation",
            "Fails at first.",
        )),
        resumable,
    ]
}

trait Registered {
    fn registered(self, spec: OperationSpec) -> Registration;
}

impl Registered for HandlerKind {
    fn registered(self, spec: OperationSpec) -> Registration {
        Registration::new(spec, self).open()
    }
}

fn counting(
    probe: &Arc<Probe>,
    most: u64,
) -> impl futures_util::Stream<Item = Result<Value, CallError>> + Send + use<> {
    let guard = Guard::new(probe);
    stream::unfold((0, guard), move |(n, guard)| async move {
        (n < most).then(|| {
            guard.0.bump(&guard.0.yielded);
            (Ok(json!(n)), (n + 1, guard))
        })
    })
}

pub fn identity(id: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: id.parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 0,
    })
}

/// The key of the node that [`TestDialer`] reaches.
pub const SERVER_KEY: PeerKey = PeerKey::Ed25519([7; 32]);

/// Knows the tokens `good`, which may administrate, and `guest`, which may nothing, until they are
/// revoked; and by its key the node that is dialled.
#[derive(Default)]
pub struct Tokens {
    changed: watch::Sender<u64>,
    revoked: std::sync::Mutex<Vec<String>>,
}

impl Tokens {
    pub fn revoke(&self, token: &str) {
        self.revoked
            .lock()
            .expect("no panics here")
            .push(token.to_owned());
        self.changed.send_modify(|n| *n += 1);
    }
}

impl IdentityProvider for Tokens {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        (*key == SERVER_KEY).then(|| identity("server", &["client:double"]))
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        let token = token.expose();
        if self
            .revoked
            .lock()
            .expect("no panics here")
            .iter()
            .any(|t| t == token)
        {
            return None;
        }
        match token {
            "good" => Some(identity("token", &["node:admin"])),
            "guest" => Some(identity("guest-token", &[])),
            _ => None,
        }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Dials a node of this process.
pub struct TestDialer {
    pub node: Arc<Node>,
    pub carriage: Carriage,
    pub who: Option<Arc<Identity>>,
    /// Dials that fail before one works.
    pub failing: AtomicUsize,
    pub dials: AtomicUsize,
    accepted: std::sync::Mutex<Option<Connection>>,
}

impl TestDialer {
    pub fn new(carriage: Carriage, who: Option<Arc<Identity>>) -> Arc<Self> {
        Arc::new(Self {
            node: Arc::new(Node::new()),
            carriage,
            who,
            failing: AtomicUsize::new(0),
            dials: AtomicUsize::new(0),
            accepted: std::sync::Mutex::default(),
        })
    }

    /// A client that dials with this.
    pub fn client(self: &Arc<Self>) -> CallClient {
        CallClient::without_operations().with_dialer(Arc::clone(self) as _)
    }

    /// Some address: this dialer reaches one node only.
    pub fn addr() -> PeerAddr {
        format!("{SERVER_KEY}@node.test")
            .parse()
            .expect("an address")
    }

    pub fn reconnecting(self: &Arc<Self>, on_connect: Option<OnConnect>) -> Reconnecting {
        let credentials = Credentials::default();
        Reconnecting::start(self.client(), Self::addr(), credentials, on_connect)
    }

    /// The node ends the connection.
    pub fn hang_up(&self, code: CloseCode) {
        let accepted = self.accepted.lock().expect("no panics here").take();
        accepted.expect("a connection").close(code, "");
    }
}

impl std::fmt::Debug for TestDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestDialer")
    }
}

impl Dialer for TestDialer {
    fn connect(&self, request: DialRequest) -> BoxFuture<'_, Result<Dialled, DialError>> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let less = |n: usize| n.checked_sub(1);
        let fails = self
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        let result = if request.expect != Expect::Pinned(vec![SERVER_KEY]) {
            Err(DialError::new(DialErrorKind::Impostor, "another key"))
        } else if fails.is_ok() {
            Err(DialError::new(DialErrorKind::Unreachable, "no route"))
        } else {
            let (dialled, accepted, _) = self.node.accept(self.carriage, self.who.clone());
            *self.accepted.lock().expect("no panics here") = Some(accepted);
            Ok(Dialled {
                connection: dialled,
                keys: vec![SERVER_KEY],
            })
        };
        Box::pin(std::future::ready(result))
    }
}

/// A node and the probe in its operations.
pub struct Node {
    pub dispatcher: Arc<Dispatcher>,
    pub handler: Arc<CallHandler>,
    pub probe: Arc<Probe>,
    pub tokens: Arc<Tokens>,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    pub fn new() -> Self {
        Self::with_limits(PeerLimits::AUTHENTICATED)
    }

    pub fn with_limits(limits: PeerLimits) -> Self {
        Self::with(limits, Patience::default())
    }

    /// Waits for nobody longer than a moment.
    pub fn impatient() -> Self {
        let moment = Duration::from_millis(30);
        let patience = Patience {
            partial_frame: moment,
            blocked_lane: moment,
            stranger_idle: moment,
        };
        Self::with(PeerLimits::AUTHENTICATED, patience)
    }

    fn with(limits: PeerLimits, patience: Patience) -> Self {
        let probe = Arc::default();
        let tokens: Arc<Tokens> = Arc::default();
        let dispatcher = Dispatcher::new(registry(&probe))
            .with_identities(Arc::clone(&tokens) as _)
            .with_limits(limits)
            .with_patience(patience)
            .with_node("test-node");
        Self {
            tokens,
            ..Self::of(dispatcher, probe)
        }
    }

    /// Serves whatever a test made.
    pub fn of(dispatcher: Dispatcher, probe: Arc<Probe>) -> Self {
        let dispatcher = Arc::new(dispatcher);
        Self {
            handler: Arc::new(CallHandler::new(Arc::clone(&dispatcher))),
            dispatcher,
            probe,
            tokens: Arc::default(),
        }
    }

    /// Connects to `hub`, known there as `who`, and knows it as `hub`.
    pub fn join(&self, hub: &Self, carriage: Carriage, who: Arc<Identity>) -> CallConnection {
        let (dialled, _) = hub.serve(carriage, Some(who));
        let known = dialled.set_identity(identity("hub", &["*"]));
        known.expect("nobody was known before");
        CallClient::new(Arc::clone(&self.dispatcher)).attach(dialled, None)
    }

    /// Serves one end of a pair; returns the other, and the result of serving.
    pub fn serve(
        &self,
        carriage: Carriage,
        who: Option<Arc<Identity>>,
    ) -> (
        Connection,
        tokio::task::JoinHandle<Result<(), HandlerError>>,
    ) {
        let (dialled, _, served) = self.accept(carriage, who);
        (dialled, served)
    }

    /// The same, with the end that was served.
    fn accept(
        &self,
        carriage: Carriage,
        who: Option<Arc<Identity>>,
    ) -> (
        Connection,
        Connection,
        tokio::task::JoinHandle<Result<(), HandlerError>>,
    ) {
        let (dialled, accepted) = match carriage {
            Carriage::Tcp => single_pair(),
            _ => memory_pair(ALPN),
        };
        let auth = AuthContext {
            identity: who,
            key: None,
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage,
            early_data: false,
        };
        let handler: Arc<dyn ProtocolHandler> = Arc::clone(&self.handler) as _;
        let served = tokio::spawn(handler.handle(accepted.clone(), auth));
        (dialled, accepted, served)
    }

    pub fn client(&self, carriage: Carriage, who: Option<Arc<Identity>>) -> CallConnection {
        let (dialled, _) = self.serve(carriage, who);
        CallClient::without_operations().attach(dialled, None)
    }
}

/// Both carriages: many streams, and one.
pub const CARRIAGES: [Carriage; 2] = [Carriage::Memory, Carriage::Tcp];

/// Two ends of one byte stream, as TLS over TCP has them. The first one dialled.
pub fn single_pair() -> (Connection, Connection) {
    let (mut a, mut b) = memory_pair_source();
    (a.connection(true), b.connection(false))
}

struct Half {
    stream: Option<tokio::io::DuplexStream>,
    closed: Arc<watch::Sender<Option<(bool, CloseCode)>>>,
}

fn memory_pair_source() -> (Half, Half) {
    let (a, b) = tokio::io::duplex(64 << 10);
    let closed = Arc::new(watch::channel(None).0);
    let half = |stream| Half {
        stream: Some(stream),
        closed: Arc::clone(&closed),
    };
    (half(a), half(b))
}

impl Half {
    fn connection(&mut self, dialled: bool) -> Connection {
        let info = ConnectionInfo {
            alpn: ALPN.into(),
            carriage: Carriage::Tcp,
            sni: None,
            remote_addr: None,
            local_addr: None,
            dialled,
        };
        let source = Single {
            dialled,
            stream: std::sync::Mutex::new(self.stream.take()),
            closed: Arc::clone(&self.closed),
        };
        Connection::from_source(Box::new(source), info)
    }
}

struct Single {
    dialled: bool,
    stream: std::sync::Mutex<Option<tokio::io::DuplexStream>>,
    closed: Arc<watch::Sender<Option<(bool, CloseCode)>>>,
}

impl StreamSource for Single {
    fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        let stream = self.stream.lock().expect("no panics here").take();
        Box::pin(async move {
            match stream {
                Some(stream) => {
                    let (read, write) = tokio::io::split(stream);
                    Ok((
                        SendStream::new(Box::new(Write(Some(write)))),
                        RecvStream::new(Box::new(Read(read))),
                    ))
                }
                None => Err(StreamError::Closed(self.closed().await)),
            }
        })
    }

    fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
        Box::pin(std::future::ready(Err(StreamError::Unsupported)))
    }

    fn is_multi(&self) -> bool {
        false
    }

    fn close(&self, code: CloseCode, _reason: &str) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert((self.dialled, code));
            first
        });
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        let mut watch = self.closed.subscribe();
        Box::pin(async move {
            let closed = watch.wait_for(Option::is_some).await.map(|c| *c);
            match closed {
                Ok(Some((by_dialler, code))) if by_dialler != self.dialled => {
                    CloseReason::Peer(Some(code.code().into()), String::new())
                }
                _ => CloseReason::Local,
            }
        })
    }
}

struct Read(tokio::io::ReadHalf<tokio::io::DuplexStream>);
struct Write(Option<tokio::io::WriteHalf<tokio::io::DuplexStream>>);

mod halves {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::*;

    impl AsyncRead for Read {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl RecvHalf for Read {
        fn poll_read_chunk(
            &mut self,
            cx: &mut Context<'_>,
            max: usize,
        ) -> Poll<Result<Option<Bytes>, StreamError>> {
            let mut storage = vec![0; max.min(16 << 10)];
            let mut buf = ReadBuf::new(&mut storage);
            ready!(Pin::new(&mut self.0).poll_read(cx, &mut buf))?;
            let len = buf.filled().len();
            storage.truncate(len);
            Poll::Ready(Ok((len > 0).then(|| storage.into())))
        }

        fn stop(&mut self, _code: StreamCode) {}
    }

    impl Write {
        fn half(&mut self) -> Pin<&mut tokio::io::WriteHalf<tokio::io::DuplexStream>> {
            Pin::new(self.0.as_mut().expect("not reset"))
        }
    }

    impl AsyncWrite for Write {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.half().poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.half().poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.half().poll_shutdown(cx)
        }
    }

    impl SendHalf for Write {
        fn poll_write_chunks(
            &mut self,
            cx: &mut Context<'_>,
            chunks: &mut [Bytes],
        ) -> Poll<Result<usize, StreamError>> {
            let Some(chunk) = chunks.first_mut() else {
                return Poll::Ready(Ok(0));
            };
            let n = ready!(self.half().poll_write(cx, chunk))?;
            chunk.advance(n);
            Poll::Ready(Ok(n))
        }

        fn finish(&mut self) -> Result<(), StreamError> {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = self.half().poll_shutdown(&mut cx);
            Ok(())
        }

        fn reset(&mut self, _code: StreamCode) {
            let _ = self.finish();
        }
    }
}

/// A peer that speaks the wire form by hand.
pub struct RawPeer {
    pub connection: Connection,
    pub send: SendStream,
    pub recv: RecvStream,
    frames: FrameReader,
}

impl RawPeer {
    pub async fn new(connection: Connection) -> Self {
        let stream = if connection.is_multi() {
            connection.open_bi().await
        } else {
            connection.accept_bi().await
        };
        let (send, recv) = stream.expect("a fresh connection");
        Self::on(connection, send, recv)
    }

    /// On a stream that is open already.
    pub fn on(connection: Connection, send: SendStream, recv: RecvStream) -> Self {
        Self {
            connection,
            send,
            recv,
            frames: FrameReader::new(),
        }
    }

    pub async fn send(&mut self, kind: EventKind, id: &str, payload: Value) {
        self.send_bytes(encode_event(kind, id, &payload.to_string()))
            .await;
    }

    pub async fn send_bytes(&mut self, bytes: Bytes) {
        self.send.write_chunk(bytes).await.expect("a live stream");
    }

    pub async fn request(&mut self, id: &str, operation: &str, input: Value) {
        let payload = json!({ "operationId": operation, "input": input });
        self.send(EventKind::Requested, id, payload).await;
    }

    /// The next event, or how the stream ended.
    pub async fn recv(&mut self) -> Result<Option<(EventKind, String, Value)>, StreamError> {
        soon(async {
            loop {
                let frame = self.frames.next_frame(64 << 20).expect("a good server");
                if let Some(frame) = frame {
                    let body = FrameBody::parse(frame).expect("a good server");
                    let event = Envelope::parse(&body.envelope, 64).expect("a good server");
                    let payload = serde_json::from_str(event.payload).expect("JSON");
                    return Ok(Some((event.kind, event.id.into_owned(), payload)));
                }
                match self.recv.read_chunk(64 << 10).await? {
                    Some(chunk) => self.frames.push(chunk),
                    None => return Ok(None),
                }
            }
        })
        .await
    }

    pub async fn event(&mut self) -> (EventKind, String, Value) {
        self.recv().await.expect("a live stream").expect("an event")
    }
}

/// Answers every request on a connection with what `answer` says, an error where that has a `code`.
/// `services/watch` yields what `changes` holds, save `null`.
pub fn answer_by_hand(
    connection: Connection,
    answer: fn(&str, &Value) -> Value,
    changes: watch::Sender<Value>,
) {
    tokio::spawn(async move {
        while let Ok((send, recv)) = connection.accept_bi().await {
            tokio::spawn(answer_stream(send, recv, answer, changes.subscribe()));
        }
    });
}

async fn answer_stream(
    mut send: SendStream,
    mut recv: RecvStream,
    answer: fn(&str, &Value) -> Value,
    mut changes: watch::Receiver<Value>,
) {
    let mut frames = FrameReader::new();
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10).await {
        frames.push(chunk);
        while let Some(frame) = frames.next_frame(64 << 20).expect("a good client") {
            let body = FrameBody::parse(frame).expect("a good client");
            let event = Envelope::parse(&body.envelope, 64).expect("a good client");
            if event.kind != EventKind::Requested {
                continue;
            }
            let payload: Value = serde_json::from_str(event.payload).expect("JSON");
            let operation = payload["operationId"].as_str().unwrap_or_default();
            if operation == "/services/watch" {
                return tell(&mut send, &event.id, &mut changes).await;
            }
            let output = answer(operation, &payload["input"]);
            let (kind, payload) = match output.get("code") {
                Some(_) => (EventKind::Error, output),
                None => (EventKind::Responded, json!({ "output": output })),
            };
            let bytes = encode_event(kind, &event.id, &payload.to_string());
            if send.write_chunk(bytes).await.is_err() {
                return;
            }
        }
    }
}

async fn tell(send: &mut SendStream, id: &str, changes: &mut watch::Receiver<Value>) {
    loop {
        let now = changes.borrow_and_update().clone();
        let output = json!({ "output": now }).to_string();
        let bytes = encode_event(EventKind::Responded, id, &output);
        let gone = !now.is_null() && send.write_chunk(bytes).await.is_err();
        if gone || changes.changed().await.is_err() {
            return;
        }
    }
}

/// The answer of `services/list` that names these.
pub fn listing(names: &[&str]) -> Value {
    let operations: Vec<_> = names
        .iter()
        .map(|name| json!({"name": name, "namespace": "a", "op_type": "query"}))
        .collect();
    json!({ "operations": operations, "registry": "r" })
}
