//! Attacks that are about the memory of the machine: 512 MiB of it.
//!
//! The attacker is hyper, on threads of the test: many uploads by one curl spin while they wait for the machine, and
//! took as much of the processor as the machine that they attacked.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use alknet_core::Carriage;
use alknet_endpoint::{Dialer, Target};
use alknet_test_support::deadline;
use alknet_tests::Told;
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Machine;
use super::gateway::{BODY_BYTES_MAX, body};

/// What all of an attack may make of the node's memory.
const GROWTH_BYTES: u64 = 64 << 20;

/// Bodies at once.
const BODIES: usize = 200;

/// Of these, so many on the first connection; each of the others has one of its own, of which a network has so many and
/// no more.
const ON_THE_FIRST: usize = 100;

/// Lists of short values at once: as many of the longest as one identity has room for. The machine has one processor,
/// and reads one after the other: of more it would be busy for longer, and take no more memory.
const LISTS: usize = 4;

/// A body that comes slowly comes in pieces, with a pause before each: a megabyte a second.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_EVERY: Duration = Duration::from_micros(62_500);

/// Longest wait for an answer of an emulated machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(300);

/// Between two questions about the memory: each is a handshake, and on an emulated machine those took a third of the
/// processor. An attack takes many seconds.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// With a token of the least scope: 200 of the longest bodies at once, and then bodies of the shortest values there
/// are.
pub(super) fn bodies_cost_little_memory(web: &Machine) {
    let before = resident(&web.curl_as(&web.admin, "/metrics", &[]));

    // As fast as they go, each would be answered before the next one begins.
    let long = body(BODY_BYTES_MAX);
    let (statuses, mut most) = meanwhile(web, at_once(web, "/call", long, BODIES, true));
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    let (served, refused, late, unconnected) = (count(200), count(429), count(408), count(0));
    let all = served + refused + late + unconnected;
    assert_eq!(all, BODIES, "{statuses:?}");
    // An emulated machine reads so many bodies more slowly than a body may come.
    let begun = served + refused + late;
    assert!(
        served > 0 && refused > 0 && begun > BODIES / 2,
        "{statuses:?}"
    );

    let list = |bytes: usize| format!("[{}0]", "0,".repeat(bytes / 2));
    let call = |input: &str| format!(r#"{{"operation":"/services/list","input":{input}}}"#);
    let tool = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"call","arguments":{}}}}}"#,
        call(&list((4 << 20) - 500))
    );
    for (path, text, most_says) in [
        ("/call", call(&list(BODY_BYTES_MAX - 200)), 422),
        // A tool says in its answer that it failed.
        ("/mcp", tool, 200),
    ] {
        let (statuses, seen) = meanwhile(web, at_once(web, path, text, LISTS, false));
        let known = |status: &u16| [413, 429, most_says].contains(status);
        assert!(
            statuses.len() == LISTS && statuses.iter().all(known),
            "{path}: {statuses:?}"
        );
        most = most.max(seen);
    }
    let grown = most.saturating_sub(before);
    assert!(grown <= GROWTH_BYTES, "{before} became {most}");
    let info = web.node.info();
    assert_eq!(info["node_restarts"], 0, "{info:#}");
}

/// Begins to post that many times at once, with a token of the least scope. Answers are read and thrown away; their
/// statuses are 0 where there was no connection.
fn at_once(
    web: &Machine,
    path: &'static str,
    text: String,
    count: usize,
    slowly: bool,
) -> JoinHandle<Vec<u16>> {
    let target: Target = web.node.target().parse().expect("the machine's own target");
    let bearer = format!("Bearer {}", web.reader);
    let url = format!("https://{}{path}", web.address());
    let text = Bytes::from(text);
    let request = move || {
        Request::post(&url)
            .header("authorization", &bearer)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(Upload::of(&text, slowly))
            .expect("a request")
    };
    thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            // Where it is dropped its connections end.
            let dialer = Dialer::new(None);
            let first = connected(&dialer, &target).await;
            let asked = (0..count).map(async |number| {
                let connection = if number < ON_THE_FIRST {
                    first.clone()
                } else {
                    connected(&dialer, &target).await
                };
                let Some(connection) = connection else {
                    return 0;
                };
                let answered =
                    tokio::time::timeout(deadline(ANSWERED_WITHIN), status(connection, request()));
                answered.await.unwrap_or_default()
            });
            join_all(asked).await
        })
    })
}

/// A connection for HTTP/2, if the machine has a place for it.
async fn connected(dialer: &Dialer, target: &Target) -> Option<SendRequest<Upload>> {
    let connection = dialer.dial_over(Carriage::Tcp, target, b"h2").await.ok()?;
    let (send, recv) = connection.accept_bi().await.ok()?;
    let io = TokioIo::new(tokio::io::join(recv, send));
    let (requests, driver) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
    tokio::spawn(async move {
        // How it ends its requests say. The streams need their connection.
        driver.await.ok();
        drop(connection);
    });
    Some(requests)
}

async fn status(mut connection: SendRequest<Upload>, request: Request<Upload>) -> u16 {
    let Ok(answer) = connection.send_request(request).await else {
        return 0;
    };
    let status = answer.status().as_u16();
    answer.into_body().collect().await.map_or(0, |_| status)
}

/// A body.
struct Upload {
    rest: Bytes,
    pauses: Option<Interval>,
}

impl Upload {
    fn of(text: &Bytes, slowly: bool) -> Self {
        let pauses = slowly.then(|| {
            let mut pauses = interval(PIECE_EVERY);
            pauses.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pauses
        });
        Self {
            rest: text.clone(),
            pauses,
        }
    }
}

impl Body for Upload {
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
        let bytes = self.rest.len().min(PIECE_BYTES);
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

/// The statuses of an attack, and the most memory that the node was seen with. It answers others all the while.
fn meanwhile(web: &Machine, attack: JoinHandle<Vec<u16>>) -> (Vec<u16>, u64) {
    let calls = r#"{"calls":[{"id":"a","operation":"/node/info"}]}"#;
    let batch = [
        "--header",
        "Content-Type: application/json",
        "--data-binary",
        calls,
    ];
    let (mut most, mut answered) = (0, 0);
    while !attack.is_finished() {
        // QEMU has one address for all: a connection that has not shown its token yet may have no place there.
        if let Ok(told) = web.try_curl_as(&web.admin, "/metrics", &[]) {
            most = most.max(resident(&told));
        }
        if let Ok(told) = web.try_curl_as(&web.admin, "/batch", &batch) {
            let told = told.json();
            assert_eq!(told["results"][0]["status"], 200, "{told}");
            answered += 1;
        }
        thread::sleep(ASK_EVERY);
    }
    assert!(most > 0 && answered > 0, "nobody else was answered");
    (attack.join().expect("every request has a status"), most)
}

/// Memory of the node, by its own account.
fn resident(told: &Told) -> u64 {
    assert_eq!(told.status, 200, "{told:?}");
    let text = told.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("alknet_resident_bytes "));
    let bytes = line.and_then(|bytes| bytes.trim().parse::<f64>().ok());
    bytes.expect("a number") as u64
}
