//! Heads and bodies come slowly, and never pause for long: the node ends each that has taken too long as a whole.

use std::time::Duration;

use alknet_endpoint::EndpointDialer;
use alknet_tests::raw::{END_HEADERS, END_STREAM, H1, HEADERS, RawQuicConnection, frame};
use alknet_tests::stalled_http3;
use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::Machine;
use super::attacks::{AttackOutcome, BodyPace, PacedBody, connected, outcome, posts};

/// Number of slow heads over HTTP/1.1, HTTP/2 and HTTP/3.
const HEADS: usize = 8;
const HEADS_TWO: usize = 4;
const HEADS_THREE: usize = 2;

/// Pause between two bytes of a head.
const PAUSE: Duration = Duration::from_secs(2);

/// Twice the pace at which a body must come.
const BODY: BodyPace = BodyPace {
    bytes: 1 << 10,
    pause: Duration::from_millis(500),
};

/// Bytes of a slow body: more than thirty times what arrives at this pace before the body has taken too long. On a busy
/// host the clock of an emulated machine is much slower than the test's.
pub(super) const BODY_BYTES: usize = 4 << 20;

/// Number of slow bodies.
pub(super) const BODIES: usize = 2;

/// Requests that come slowly from [`begin`](Self::begin) on.
pub(super) struct SlowRequests {
    runtime: Runtime,
    heads: Vec<JoinHandle<Vec<u8>>>,
    heads_three: Vec<JoinHandle<()>>,
    /// The counts of [`ended_for_room`] before the first of them.
    ended_before: [u64; 2],
    body: JoinHandle<Vec<u8>>,
    body_two: JoinHandle<AttackOutcome>,
}

/// Connections that the node has ended because others needed their places, or because memory ran short.
fn ended_for_room(web: &Machine) -> [u64; 2] {
    let info = web.node.info();
    ["evicted", "relieved"].map(|name| {
        let count = info["endpoint"][name].as_u64();
        count.unwrap_or_else(|| panic!("no {name}: {info:#}"))
    })
}

impl SlowRequests {
    pub(super) fn begin(web: &Machine) -> Self {
        let ended_before = ended_for_room(web);
        let runtime = Runtime::new().expect("a runtime");
        let target = web.target();
        let (heads, body) = runtime.block_on(async {
            let mut heads = Vec::new();
            for _ in 0..HEADS {
                let mut raw = RawQuicConnection::open(&target, H1).await;
                let begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
                assert!(raw.say(begin).await, "the connection goes on");
                heads.push(raw);
            }
            for _ in 0..HEADS_TWO {
                let mut raw = RawQuicConnection::open_two(&target).await;
                // The first bytes of a frame of 1,000 bytes.
                let begin = frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0; 1000]);
                assert!(raw.say(&begin[..20]).await, "the connection goes on");
                heads.push(raw);
            }
            // The body has the administrator's token, because the attack's bodies take all memory of the reader's
            // identity meanwhile.
            let mut body = RawQuicConnection::open(&target, H1).await;
            let head = format!(
                "POST /call HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
                 Content-Type: application/json\r\nContent-Length: {BODY_BYTES}\r\n\r\n",
                web.admin
            );
            assert!(body.say(head.as_bytes()).await, "the connection goes on");
            (heads, body)
        });
        let heads = heads.into_iter();
        let heads = heads.map(|raw| runtime.spawn(raw.drip(b"a", PAUSE, |_| false)));
        let three = (0..HEADS_THREE).map(|_| {
            let target = target.clone();
            runtime.spawn(async move { stalled_http3::drip(&target, PAUSE).await })
        });
        let heads_three = three.collect();
        let post = posts(web, &web.admin);
        let body_two = async move {
            let dialer = EndpointDialer::new(None);
            let client = connected(&dialer, &target).await.expect("there are places");
            let text = Bytes::from(vec![b' '; BODY_BYTES]);
            outcome(
                client,
                post("/call", PacedBody::new(&text, Some(BODY))),
                true,
            )
            .await
        };
        Self {
            heads: heads.collect(),
            heads_three,
            ended_before,
            body: runtime.spawn(async move {
                let piece = vec![b' '; BODY.bytes];
                // After its answer the node reads the rest of a body for a while.
                let is_answer = |told: &[u8]| told.ends_with(b"}}");
                body.drip(&piece, BODY.pause, is_answer).await
            }),
            body_two: runtime.spawn(body_two),
            runtime,
        }
    }

    /// The node has ended the connection of each slow head. Nothing but their time ended them: until now no connection
    /// had to make room for another one.
    pub(super) fn heads_end(&mut self, web: &Machine) {
        self.runtime.block_on(async {
            for head in self.heads.drain(..) {
                let told = head.await.expect("its connection has ended");
                let told = String::from_utf8_lossy(&told);
                assert!(!told.contains("ok\n"), "it was answered: {told}");
            }
            for head in self.heads_three.drain(..) {
                head.await.expect("its connection has ended");
            }
        });
        assert_eq!(ended_for_room(web), self.ended_before);
    }

    /// The node has ended each slow body as well, and has served every other client meanwhile.
    pub(super) fn end(self) {
        self.runtime.block_on(async {
            let told = self.body.await.expect("it was answered");
            let told = String::from_utf8_lossy(&told);
            assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
            let told = self.body_two.await.expect("it was answered");
            assert_eq!(told, AttackOutcome::Answered(408));
        });
    }
}
