//! Attacks on the memory of a machine with 512 MiB.
//!
//! The attacker is hyper, on threads of the test. Many uploads by one curl spin while they wait for the machine, and
//! took as much of the processor as the machine that they attacked.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use alknet_core::Carriage;
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::{deadline, took};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::Machine;
use super::gateway::{BODY_BYTES_MAX, body};
use super::{slow, unread};

/// Most bytes by which a whole attack may make the node's memory grow.
const GROWTH_BYTES: u64 = 64 << 20;

/// Bodies that the attack sends at once.
const BODIES: usize = 200;

/// Number of these bodies on the first connection. Each other body has its own connection, and these connections are as
/// many as a network may have.
const ON_THE_FIRST: usize = 100;

/// Most bytes of the machine's memory for the requests of one identity. The attack sends lists of short values whose
/// lengths add up to this limit. The machine has one processor and reads one list after the other: more lists would
/// keep it busy for longer, and take no more memory.
const IDENTITY_BYTES: usize = 32 << 20;

/// Most bytes of other clients' requests and answers that the node counts during the attack: those of the known client
/// and of new ones.
const OTHERS_BYTES: usize = 2 << 20;

/// Number of the longest bodies for which this memory has room, beside what each body takes of its own.
const ROOM: usize = IDENTITY_BYTES / BODY_BYTES_MAX - 1;

/// Longest message to the tools for models, in bytes.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Pace of a slow body: the bytes of its pieces, and the pause before each piece.
#[derive(Clone, Copy)]
pub(super) struct BodyPace {
    pub(super) bytes: usize,
    pub(super) pause: Duration,
}

/// One megabyte per second.
const SLOWLY: BodyPace = BodyPace {
    bytes: 64 << 10,
    pause: Duration::from_micros(62_500),
};

/// Bytes of one piece of a body that comes as fast as the node reads it.
const PIECE_BYTES: usize = 64 << 10;

/// Longest wait for an answer of an emulated machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(300);

/// Longest wait from a failed request until its connection has ended, if the end of the connection is the cause.
const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// Pause between two requests for the node's memory. An attack takes many seconds.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(250);

/// Number of requests over the known connection for each new client. A new client costs a handshake and a program, and
/// on an emulated machine those took as long as the attack.
const ASKED_FOR_ONE_WHO_COMES: usize = 4;

/// Fewest new clients beside the longest bodies. Between two of them the node answers [`ASKED_FOR_ONE_WHO_COMES`]
/// requests.
const COME_BESIDE_BODIES: usize = 2;

/// Most attacks of long bodies until [`COME_BESIDE_BODIES`] new clients came beside one.
const ATTACKS_MAX: usize = 4;

/// Longest wait of the known client for an answer, on a machine that does nothing else. An emulated machine reads lists
/// of up to 8 MiB meanwhile, one after the other.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Most tries of one new client while the node refuses it.
const TRIES_OF_ONE: usize = 3;

/// An attacker with a token of the least scope sends 200 of the longest bodies at once, and then bodies of the shortest
/// values. `fresh` is the node's resident memory before the first test.
pub(super) fn bodies_cost_little_memory(web: &Machine, fresh: u64) {
    let mut watcher = MemoryWatcher::new(web);
    let before = watcher.memory().expect("no attack yet");
    // Memory that earlier tests freed would hide the growth, so there is a bound from the start as well, for this
    // attack and the unread answers before it.
    let since_start = fresh + unread::GROWTH_BYTES + GROWTH_BYTES;
    let most = since_start.min(before.resident + GROWTH_BYTES);
    // A higher peak before the attack would hide what this attack takes.
    assert!(before.peak <= most, "before the attack: {before:?}");

    // At full speed the node would answer each body before the next one begins.
    let long = body(BODY_BYTES_MAX);
    // On a slow host an attack may be over before all of its connections have arrived, and the test counts only the new
    // clients that come after them.
    let mut attacks = (0..ATTACKS_MAX).map(|_| {
        let attack = at_once(web, "/call", long.clone(), BODIES, Some(SLOWLY));
        meanwhile(&mut watcher, attack)
    });
    let outcomes = attacks
        .find_map(|(outcomes, came)| (came >= COME_BESIDE_BODIES).then_some(outcomes))
        .expect("an attack beside which new clients came");
    let count = |wanted: AttackOutcome| outcomes.iter().filter(|it| **it == wanted).count();
    let answered = |status: u16| count(AttackOutcome::Answered(status));
    // An emulated machine reads so many bodies more slowly than a body may come, so some are late.
    let (served, refused, late) = (answered(200), answered(429), answered(408));
    let begun = served + refused + late;
    let without_place = count(AttackOutcome::Ended) + count(AttackOutcome::Unconnected);
    assert_eq!(begun + without_place, BODIES, "{outcomes:?}");
    assert!(
        served > 0 && refused > 0 && begun > BODIES / 2,
        "{outcomes:?}"
    );
    // All bodies for which their identity has memory arrive whole, or would with more time.
    println!("figure bodies: {served} served, {refused} refused, {late} late");
    assert!(served + late >= ROOM, "{outcomes:?}");

    let list = |bytes: usize| format!("[{}0]", "0,".repeat(bytes / 2));
    let call = |input: &str| format!(r#"{{"operation":"/services/list","input":{input}}}"#);
    let tool = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"call","arguments":{}}}}}"#,
        call(&list(MESSAGE_BYTES_MAX - 500))
    );
    for (path, text, longest, most_says) in [
        (
            "/call",
            call(&list(BODY_BYTES_MAX - 200)),
            BODY_BYTES_MAX,
            422,
        ),
        // A tool reports its failure in its answer, which has status 200.
        ("/mcp", tool, MESSAGE_BYTES_MAX, 200),
    ] {
        let lists = IDENTITY_BYTES / longest;
        let attack = at_once(web, path, text, lists, None);
        let (outcomes, _) = meanwhile(&mut watcher, attack);
        // On a busy host some are late, as in the attack above.
        let known = [408, 413, 429, most_says].map(AttackOutcome::Answered);
        assert!(
            outcomes.len() == lists && outcomes.iter().all(|it| known.contains(it)),
            "{path}: {outcomes:?}"
        );
        // The node refuses a list without room before it looks at the values.
        assert!(
            outcomes.contains(&AttackOutcome::Answered(most_says)),
            "{path}: no list was read: {outcomes:?}"
        );
    }
    let after = watcher
        .memory()
        .expect("its connection is a known client's");
    for (since, bytes) in [("before them", before.resident), ("the start", fresh)] {
        let grown = after.peak.saturating_sub(bytes) >> 10;
        println!("figure growth by bodies, at the peak, since {since}: {grown} KiB");
    }
    assert!(after.peak <= most, "{fresh}, {before:?} became {after:?}");
    // The node counted the bodies: those of the attacker, within the memory of one identity, and the slow ones, which
    // are an administrator's.
    println!("figure counted for bodies: {} KiB", after.counted >> 10);
    let counted_max = IDENTITY_BYTES + slow::BODIES * slow::BODY_BYTES + OTHERS_BYTES;
    let counted = 2 * BODY_BYTES_MAX as u64..=counted_max as u64;
    assert!(counted.contains(&after.counted), "{after:?}");
    let info = web.node.info();
    assert_eq!(info["node_restarts"], 0, "{info:#}");
}

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttackOutcome {
    /// The node answered with this status, and the answer came whole.
    Answered(u16),
    /// The node ended the connection, which was for this request alone, before it answered: it had no place for the
    /// connection, or no longer had one. TLS does not say why.
    Ended,
    /// The client got no connection.
    Unconnected,
}

/// Begins to post the body `count` times at once, with a token of the least scope, and discards the answers. A request
/// panics if it has no answer in time, or if the node resets only its stream.
fn at_once(
    web: &Machine,
    path: &'static str,
    text: String,
    count: usize,
    pace: Option<BodyPace>,
) -> UploadAttack {
    let arriving = Arc::new(AtomicUsize::new(count.saturating_sub(ON_THE_FIRST)));
    let still = Arc::clone(&arriving);
    let target = web.target();
    let post = posts(web, &web.reader);
    let text = Bytes::from(text);
    let request = {
        let post = post.clone();
        move || post(path, PacedBody::new(&text, pace))
    };
    let outcomes = thread::spawn(move || {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            // Dropping the dialer ends its connections.
            let dialer = EndpointDialer::new(None);
            let first = connected(&dialer, &target).await;
            // The node knows the peer of this connection before the others come. Of connections that have shown no
            // token the node ends the oldest: on a busy host none of this connection's bodies would have arrived.
            if let Some(client) = first.clone() {
                let small = Bytes::from_static(br#"{"operation":"/services/list"}"#);
                let small = post("/call", PacedBody::new(&small, None));
                assert_eq!(
                    outcome(client, small, false).await,
                    AttackOutcome::Answered(200)
                );
            }
            let asked = (0..count).map(async |number| {
                let is_alone = number >= ON_THE_FIRST;
                let client = match is_alone {
                    true => {
                        let client = connected(&dialer, &target).await;
                        still.fetch_sub(1, Ordering::SeqCst);
                        client
                    }
                    false => first.clone(),
                };
                let Some(client) = client else {
                    return AttackOutcome::Unconnected;
                };
                let outcome = outcome(client, request(), is_alone);
                let outcome = timeout(deadline(ANSWERED_WITHIN), outcome).await;
                outcome.unwrap_or_else(|_| panic!("request {number} to {path} has no answer"))
            });
            join_all(asked).await
        })
    });
    UploadAttack { outcomes, arriving }
}

/// An attack in progress.
struct UploadAttack {
    /// Outcomes of the attack's requests.
    outcomes: JoinHandle<Vec<AttackOutcome>>,
    /// Number of the attack's own connections that are neither made nor refused yet.
    arriving: Arc<AtomicUsize>,
}

/// Returns a function that makes requests with `token`.
pub(super) fn posts(
    web: &Machine,
    token: &str,
) -> impl Fn(&str, PacedBody) -> Request<PacedBody> + Clone + use<> {
    let bearer = format!("Bearer {token}");
    let place = format!("https://{}", web.address());
    move |path: &str, body: PacedBody| {
        Request::post(format!("{place}{path}"))
            .header("authorization", &bearer)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(body)
            .expect("a request")
    }
}

/// An HTTP/2 connection.
#[derive(Clone)]
pub(super) struct AttackClient {
    requests: SendRequest<PacedBody>,
    /// This channel never carries a value. It closes when the connection has ended.
    ended: watch::Receiver<()>,
}

/// Opens an HTTP/2 connection, if the machine has a place for it.
pub(super) async fn connected(dialer: &EndpointDialer, target: &Target) -> Option<AttackClient> {
    let connection = dialer.dial_over(Carriage::Tcp, target, b"h2").await.ok()?;
    let (send, recv) = connection.accept_bi().await.ok()?;
    let io = TokioIo::new(tokio::io::join(recv, send));
    let (requests, driver) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
    let (alive, ended) = watch::channel(());
    tokio::spawn(async move {
        // The requests report how the connection ended. Their streams need the connection.
        driver.await.ok();
        drop((connection, alive));
    });
    Some(AttackClient { requests, ended })
}

/// Waits for the outcome of a request. `is_alone` says whether the connection carries no other request.
pub(super) async fn outcome(
    mut client: AttackClient,
    request: Request<PacedBody>,
    is_alone: bool,
) -> AttackOutcome {
    let answer = match client.requests.send_request(request).await {
        Ok(answer) => answer,
        Err(error) => {
            // The reset of a stream leaves its connection open. The shared connection was there first, and the node
            // keeps it.
            let ended = timeout(deadline(ENDED_WITHIN), client.ended.changed()).await;
            assert!(is_alone && ended.is_ok(), "no answer: {error:?}");
            return AttackOutcome::Ended;
        }
    };
    let status = answer.status().as_u16();
    if let Err(error) = answer.into_body().collect().await {
        panic!("an answer with status {status} breaks off: {error:?}");
    }
    AttackOutcome::Answered(status)
}

/// A body that comes in pieces, with or without pauses.
pub(super) struct PacedBody {
    rest: Bytes,
    piece: usize,
    pauses: Option<Interval>,
}

impl PacedBody {
    pub(super) fn new(text: &Bytes, pace: Option<BodyPace>) -> Self {
        let pauses = pace.map(|pace| {
            let mut pauses = interval(pace.pause);
            pauses.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pauses
        });
        Self {
            rest: text.clone(),
            piece: pace.map_or(PIECE_BYTES, |pace| pace.bytes),
            pauses,
        }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if let Some(pauses) = &mut self.pauses {
            ready!(pauses.poll_tick(cx));
        }
        let bytes = self.rest.len().min(self.piece);
        let piece = self.rest.split_to(bytes);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Memory of the node in bytes, by the node's own account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    resident: u64,
    /// Highest value since the node's start, also between two requests.
    peak: u64,
    /// Most bytes of requests and answers over HTTP that the node has counted at once since its start.
    counted: u64,
}

/// An administrator who keeps a connection, and requests the node's memory over it. The node knows the token from the
/// first request on, and must keep the connection then.
pub(super) struct MemoryWatcher<'a> {
    web: &'a Machine,
    runtime: Runtime,
    // Dropping the dialer ends its connections.
    dialer: EndpointDialer,
    client: Option<AttackClient>,
}

impl<'a> MemoryWatcher<'a> {
    pub(super) fn new(web: &'a Machine) -> Self {
        Self {
            web,
            runtime: Runtime::new().expect("a runtime"),
            dialer: EndpointDialer::new(None),
            client: None,
        }
    }

    /// Memory that the node has now, in bytes; `None` as for [`memory`](Self::memory).
    ///
    /// # Panics
    /// Panics as [`memory`](Self::memory) does.
    pub(super) fn resident(&mut self) -> Option<u64> {
        self.memory().map(|memory| memory.resident)
    }

    /// The node's memory; `None` if the node has no place for the connection at the first request.
    ///
    /// # Panics
    /// Panics if the node ends the connection after the first request.
    pub(super) fn memory(&mut self) -> Option<Memory> {
        let Self {
            web,
            runtime,
            dialer,
            client,
        } = self;
        let target = web.target();
        let request = Request::get(web.url("/metrics"))
            .header("authorization", format!("Bearer {}", web.admin))
            .body(PacedBody::new(&Bytes::new(), None))
            .expect("a request");
        let is_known = client.is_some();
        let told = runtime.block_on(async {
            if client.is_none() {
                *client = connected(dialer, &target).await;
            }
            let mut asks = client.take()?;
            let answer = async {
                let answer = asks.requests.send_request(request).await.ok()?;
                assert_eq!(answer.status(), 200, "{answer:?}");
                let body = answer.into_body().collect().await.ok()?;
                Some(body.to_bytes())
            };
            let answer = timeout(deadline(ANSWERED_WITHIN), answer).await;
            let told = answer.expect("a question has no answer")?;
            *client = Some(asks);
            Some(told)
        });
        assert!(
            told.is_some() || !is_known,
            "the connection of a known client was ended"
        );
        let told = told?;
        let told = String::from_utf8_lossy(&told);
        let bytes = |name: &str| {
            let mut lines = told.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let bytes = value.and_then(|bytes| bytes.trim().parse::<f64>().ok());
            bytes.expect("a number") as u64
        };
        Some(Memory {
            resident: bytes("alknet_resident_bytes"),
            peak: bytes("alknet_resident_peak_bytes"),
            counted: bytes("alknet_http_peak_bytes"),
        })
    }

    /// Whether the machine answers a new client.
    fn answers_who_comes(&self) -> bool {
        let calls = r#"{"calls":[{"id":"a","operation":"/node/info"}]}"#;
        let batch = [
            "--header",
            "Content-Type: application/json",
            "--data-binary",
            calls,
        ];
        // QEMU gives every client the same address, so the node may have no place for a connection that has not shown
        // its token yet.
        let Ok(told) = self.web.try_curl_as(&self.web.admin, "/batch", &batch) else {
            return false;
        };
        let told = told.json();
        assert_eq!(told["results"][0]["status"], 200, "{told}");
        true
    }
}

/// New clients during an attack, once all connections of the attack have arrived, and their tries.
#[derive(Debug, Default)]
struct Newcomers {
    /// Clients that the node answered at the first try.
    at_once: usize,
    /// Clients that the node answered at any try.
    answered: usize,
    came: usize,
}

impl Newcomers {
    /// A new client comes. It tries again if the node has no place for it, or if its handshake takes too long.
    fn one_comes(&mut self, watcher: &MemoryWatcher<'_>) {
        let mut tries = (0..TRIES_OF_ONE).map(|_| watcher.answers_who_comes());
        let answered_at = tries.position(|is_answered| is_answered);
        self.came += 1;
        self.at_once += usize::from(answered_at == Some(0));
        self.answered += usize::from(answered_at.is_some());
    }
}

/// Waits for the outcomes of an attack. The node answers other clients during the attack: the known client, whose
/// connection it never ends, and new clients, whose number this returns. Each of them gets its answer at the third try
/// at the latest, and half of them at the first. An emulated machine that reads bodies may be too slow for a handshake, which
/// has five seconds.
///
/// While the attacker's own connections arrive, a new client from the same network shares the network's places with
/// them, and may find none: the node does not promise one. The test tries until the node has answered one client, and
/// does not count these tries.
fn meanwhile(watcher: &mut MemoryWatcher<'_>, attack: UploadAttack) -> (Vec<AttackOutcome>, usize) {
    let UploadAttack { outcomes, arriving } = attack;
    let mut newcomers = Newcomers::default();
    // Requests that the node answered after all of the attack's connections had arrived.
    let (mut asked, mut is_answered) = (0, false);
    let mut longest = Duration::ZERO;
    while !outcomes.is_finished() {
        let began = Instant::now();
        watcher.resident().expect("it was known before the attack");
        longest = longest.max(began.elapsed());
        if arriving.load(Ordering::SeqCst) == 0 {
            if asked % ASKED_FOR_ONE_WHO_COMES == 0 {
                newcomers.one_comes(watcher);
            }
            asked += 1;
        } else if !is_answered {
            is_answered = watcher.answers_who_comes();
        }
        thread::sleep(ASK_EVERY);
    }
    let outcomes = outcomes.join().unwrap_or_else(|panic| {
        // If PID 1 restarted the node, the machine's facts say why the previous node ended.
        eprintln!("{:#}", watcher.web.node.info());
        resume_unwind(panic)
    });
    println!("figure beside an attack: {asked} answers to a known client, {newcomers:?}");
    let what = "an answer to a known client of a machine that is attacked";
    took(what, ANSWER_WITHIN, longest);
    let Newcomers {
        at_once,
        answered,
        came,
    } = newcomers;
    assert!(is_answered || came > 0, "no client came meanwhile");
    assert!(
        answered == came && 2 * at_once >= came,
        "{answered} of {came} who came were answered, {at_once} at once"
    );
    (outcomes, came)
}
