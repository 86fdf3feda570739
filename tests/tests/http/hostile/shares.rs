//! Clients that want all that a small machine has for requests, answers and tickets. The node
//! refuses each what exceeds its share, and serves the others. The limits depend on the machine's
//! memory, so the test sets a small amount.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use alknet_core::{Carriage, Connection};
use alknet_endpoint::EndpointDialer;
use alknet_gateway::limits::BODY_AHEAD;
use alknet_tests::{RawTcpConnection, TestBench, WebNode, eventually};
use alknet_tls::NodeKey;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, block_in_place};

use alknet_tests::raw::{H2, frame, within};

use super::until_counted;

/// The smallest limit for requests: 4 MiB, half of it for one identity.
const LEAST: u64 = 32 << 20;
const EACH: usize = 2 << 20;

/// Bytes of the longest request that counts as small.
const SMALL: usize = 64 << 10;

/// Bytes of a short one, with the buffer that it is copied into when it grows.
const SHORT: usize = 28 << 10;

/// Lets one client do much at once, because something else is attacked here.
const FAST: &str = "[http]\nrequests_per_second = 10000\nrequests_burst = 10000\n";

/// Pause between two checks of the progress.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

type Body = BoxBody<Bytes, Infallible>;

/// An HTTP/2 connection.
struct ShareClient {
    requests: SendRequest<Body>,
    _connection: Connection,
}

impl ShareClient {
    async fn open(web: &WebNode) -> Self {
        let dialer =
            EndpointDialer::new(Some(NodeKey::generate().expect("the system has entropy")));
        let connection = dialer.dial_over(Carriage::Tcp, &web.target(), H2).await;
        let connection = connection.expect("every client may connect");
        let (send, recv) = connection.accept_bi().await.expect("one stream");
        let io = TokioIo::new(tokio::io::join(recv, send));
        let builder = Builder::new(TokioExecutor::new());
        let (mut requests, driver) = builder.handshake(io).await.expect("it speaks HTTP/2");
        tokio::spawn(driver);
        within(requests.ready()).await.expect("it is connected");
        Self {
            requests,
            _connection: connection,
        }
    }

    /// Posts this many bytes of a body whose head announces `said`, and keeps it open if that is
    /// more. The request is abandoned when the returned value is dropped.
    fn begin(&mut self, token: &str, path: &str, said: usize, sent: Bytes) -> AbortedRequest {
        let is_whole = said == sent.len();
        let first = stream::iter((!sent.is_empty()).then(|| Ok(Frame::data(sent))));
        let body = match is_whole {
            true => BodyExt::boxed(StreamBody::new(first)),
            false => BodyExt::boxed(StreamBody::new(first.chain(stream::pending()))),
        };
        let request = Request::post(format!("https://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .header("content-length", said)
            // For a subscription, the response is a ticket.
            .header("prefer", "respond-async")
            .body(body)
            .expect("correct headers");
        let asked = self.requests.send_request(request);
        AbortedRequest(tokio::spawn(async move {
            asked.await.ok().map(|told| told.status())
        }))
    }

    /// Posts the whole body, and returns the status.
    async fn post(&mut self, token: &str, path: &str, call: &Value) -> StatusCode {
        let body = Bytes::from(call.to_string());
        let mut begun = self.begin(token, path, body.len(), body);
        let told = within(&mut begun.0).await.expect("no panic");
        told.expect("an answer")
    }

    /// The status of the answer to a request for a file of the site.
    async fn gets(&mut self, token: &str, path: &str) -> StatusCode {
        let request = Request::get(format!("https://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .body(BodyExt::boxed(Empty::new()))
            .expect("correct headers");
        let told = within(self.requests.send_request(request)).await;
        told.expect("an answer").status()
    }

    /// The status of a short call.
    async fn calls(&mut self, token: &str) -> StatusCode {
        self.post(token, "/call", &list("x")).await
    }

    /// Waits until a call of this size gets this status.
    async fn until(&mut self, token: &str, bytes: usize, status: StatusCode) {
        let call = list(&"x".repeat(bytes));
        within(async {
            while self.post(token, "/call", &call).await != status {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        })
        .await;
    }
}

/// A request that is abandoned on drop.
struct AbortedRequest(JoinHandle<Option<StatusCode>>);

impl Drop for AbortedRequest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn list(prefix: &str) -> Value {
    json!({ "operation": "/services/list", "input": { "prefix": prefix } })
}

/// A token of the least scope beside the reader's.
fn second(web: &WebNode) -> String {
    let made = block_in_place(|| {
        web.node
            .call("token/make", &json!({ "scopes": ["node:read"] }))
    });
    made["token"].as_str().expect("a token").to_owned()
}

/// An incomplete body of this length: blanks.
fn blanks(bytes: usize) -> Bytes {
    vec![b' '; bytes].into()
}

/// By their lengths these would be the maximum of two identities, which is everything that the node
/// has.
#[tokio::test(flavor = "multi_thread")]
async fn short_bodies_that_are_only_announced_leave_others_theirs() {
    let bench = TestBench::new();
    if let Some(web) = WebNode::start_on(&bench, LEAST, FAST) {
        let second = second(&web);
        let mut held = Vec::new();
        let mut clients = Vec::new();
        for token in [&web.reader, &second] {
            let mut client = ShareClient::open(&web).await;
            for n in 0..2 * EACH / SMALL {
                // Nothing of it, or its first byte.
                held.push(client.begin(token, "/call", SMALL, blanks(n % 2)));
            }
            // Later requests on the same connection find them there.
            assert_eq!(client.calls(token).await, 200);
            clients.push(client);
        }
        // The node counts the first byte of every other one, and has answered none of them.
        until_counted(&web, (held.len() / 2 * BODY_AHEAD) as u64);
        let is_answered = held.iter().any(|one| one.0.is_finished());
        assert!(!is_answered, "a request has an answer");
        let mut other = ShareClient::open(&web).await;
        for token in [&web.reader, &second, &web.admin] {
            assert_eq!(other.calls(token).await, 200);
        }
        drop(held);
    }
}

/// These come without their ends. As small requests they may use the reserve for those, and two
/// identities may have everything that the node has.
#[tokio::test(flavor = "multi_thread")]
async fn short_bodies_that_do_not_end_leave_others_what_is_kept_for_them() {
    let bench = TestBench::new();
    if let Some(web) = WebNode::start_on(&bench, LEAST, FAST) {
        let second = second(&web);
        let (mut held, mut clients) = (Vec::new(), Vec::new());
        let mut other = ShareClient::open(&web).await;
        for token in [&web.reader, &second] {
            let mut client = ShareClient::open(&web).await;
            for _ in 0..=EACH / SHORT {
                held.push(client.begin(token, "/call", SHORT, blanks(SHORT - 100)));
            }
            // It has all that it may have. One of these may have been refused while another request
            // checked that.
            let asks = list(&"x".repeat(SHORT));
            let full = StatusCode::TOO_MANY_REQUESTS;
            within(async {
                while other.post(token, "/call", &asks).await != full {
                    held.push(client.begin(token, "/call", SHORT, blanks(SHORT - 100)));
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            })
            .await;
            clients.push(client);
        }
        assert_eq!(other.calls(&web.admin).await, 200);
        drop(held);
        for token in [&web.reader, &second] {
            other.until(token, 1, StatusCode::OK).await;
        }
    }
}

/// There is memory for the request of an administrator's token, but none for its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_has_no_room_does_not_run() {
    let bench = TestBench::new();
    if let Some(web) = WebNode::start_on(&bench, LEAST, FAST) {
        let tokens = || {
            let listed = block_in_place(|| web.node.call("token/list", &Value::Null));
            listed["tokens"].as_array().expect("a list").len()
        };
        let before = tokens();
        let mut client = ShareClient::open(&web).await;
        // Less than the smallest answer.
        let left = 5000;
        let said = EACH - left;
        let begin =
            |client: &mut ShareClient| client.begin(&web.admin, "/call", said, blanks(said - 100));
        let mut held = begin(&mut client);
        let full = StatusCode::TOO_MANY_REQUESTS;
        let asks = list(&"x".repeat(left));
        within(async {
            while client.post(&web.admin, "/call", &asks).await != full {
                // The last check may have used the room of its end.
                if held.0.is_finished() {
                    held = begin(&mut client);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        })
        .await;
        let change = json!({ "operation": "/token/make", "input": { "scopes": ["node:read"] } });
        let told = client.post(&web.admin, "/call", &change).await;
        assert_eq!(told, StatusCode::TOO_MANY_REQUESTS);
        let mut one = change.clone();
        one["id"] = json!("a");
        let batch = json!({ "calls": [one] });
        client.post(&web.admin, "/batch", &batch).await;
        assert_eq!(tokens(), before);
        drop(held);
        client.until(&web.admin, 1, StatusCode::OK).await;
        for (n, (path, body)) in [("/call", &change), ("/batch", &batch)].iter().enumerate() {
            assert_eq!(client.post(&web.admin, path, body).await, 200);
            assert_eq!(tokens(), before + n + 1, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_of_one_identity_leave_the_others_theirs() {
    /// An eighth of everything.
    const SHARE: usize = 128;
    let bench = TestBench::new();
    let web = WebNode::start(&bench, FAST);
    let mut client = ShareClient::open(&web).await;
    let watch = json!({ "operation": "/services/watch" });
    for n in 0..SHARE {
        let told = client.post(&web.reader, "/subscribe", &watch).await;
        assert_eq!(told, StatusCode::CREATED, "{n}");
    }
    let told = client.post(&web.reader, "/subscribe", &watch).await;
    assert_eq!(told, StatusCode::TOO_MANY_REQUESTS);
    let told = client.post(&web.admin, "/subscribe", &watch).await;
    assert_eq!(told, StatusCode::CREATED);
}

/// Unknown peers in several networks request a large file repeatedly over HTTP/2, and read nothing.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_unknown_peers_leave_take_no_memory_of_known_ones() {
    const NETWORKS: u8 = 5;
    const FILES: u32 = 40;
    let bench = TestBench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    std::fs::write(folder.join("large.bin"), vec![7; 4 << 20]).expect("room");
    let config = format!("{FAST}site = \"{}\"\n", folder.display());
    if let Some(web) = WebNode::start_on(&bench, LEAST, &config) {
        let mut held = Vec::new();
        let mut served = Vec::new();
        block_in_place(|| {
            for network in 1..=NETWORKS {
                let from = Ipv4Addr::new(127, 0, network, 1);
                let peer = RawTcpConnection::connect(&web.target(), from, None, H2);
                let mut peer = peer.expect("every client may connect");
                served.push(asks_for_files(&mut peer, FILES));
                held.push(peer);
            }
        });
        // A sixteenth of the bytes for each network, a quarter for all, at 32 KiB per file.
        assert!(served.iter().all(|files| *files <= 8), "{served:?}");
        assert!(served[..4].iter().all(|files| *files > 4), "{served:?}");
        let mut client = ShareClient::open(&web).await;
        assert_eq!(client.gets(&web.reader, "/large.bin").await, 200);
        assert_eq!(client.calls(&web.admin).await, 200);
        let long = list(&"x".repeat(300_000));
        let told = client.post(&web.reader, "/call", &long).await;
        assert_eq!(told, StatusCode::OK);
        drop(held);
    }
}

/// Unknown peers request a large file more often than the node has files, and read nothing. The known peer and the
/// administrator come by new connections.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_site_leave_files_for_connections() {
    // As many files as a host may give a node. The kernel's default is 1,024, and the test is quicker with fewer.
    const FILES: u64 = 300;
    const NETWORKS: u8 = 8;
    const FROM_EACH: u32 = 40;
    let bench = TestBench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir(&folder).expect("room");
    std::fs::write(folder.join("large.bin"), vec![7; 4 << 20]).expect("room");
    let config = format!("{FAST}site = \"{}\"\n", folder.display());
    let web = WebNode::start_with_files(&bench, FILES, &config);
    let held = block_in_place(|| {
        let (mut held, mut served) = (Vec::new(), Vec::new());
        for network in 1..=NETWORKS {
            let from = Ipv4Addr::new(127, 0, network, 1);
            let peer = RawTcpConnection::connect(&web.target(), from, None, H2);
            let mut peer = peer.expect("every client may connect");
            served.push(asks_for_files(&mut peer, FROM_EACH));
            held.push(peer);
        }
        // Half of the files are for neither connections nor files of the site. The site has a quarter of the others,
        // and unknown peers three quarters of that.
        assert_eq!(served.iter().sum::<u32>(), 28, "{served:?}");
        let told = web.curl("/large.bin", &[]);
        assert_eq!((told.status, told.header("retry-after")), (503, Some("1")));
        // A new connection over TCP, while the attackers' files are open.
        let info = web.node.call("node/info", &Value::Null);
        let open = info["endpoint"]["connections_open"].as_u64();
        assert!(open >= Some(u64::from(NETWORKS)), "{info:#}");
        held
    });
    let mut client = ShareClient::open(&web).await;
    assert_eq!(client.gets(&web.reader, "/large.bin").await, 200);
    drop(held);
    block_in_place(|| {
        eventually("an unknown peer gets the file again", || {
            (web.curl("/large.bin", &[]).status == 200).then_some(())
        });
    });
}

/// Requests the file this many times, reads the heads of all answers but no bodies, and returns how
/// many of them are the file: that is a field of the static table (RFC 7541 appendix A).
fn asks_for_files(peer: &mut RawTcpConnection, files: u32) -> u32 {
    let mut head = vec![0x82, 0x87, 0x04, 10];
    head.extend(b"/large.bin");
    head.extend([0x01, 9]);
    head.extend(b"localhost");
    let mut words = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 section 6.5.2).
    words.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    words.extend((0..files).flat_map(|n| frame(1, 5, n * 2 + 1, &head)));
    peer.say(&words).expect("it is taken");
    let (mut answers, mut served) = (0, 0);
    while answers < files {
        let told = peer.hear(9).expect("it goes on");
        let len = told[..3]
            .iter()
            .fold(0, |len, byte| (len << 8) | usize::from(*byte));
        let payload = peer.hear(len).expect("it goes on");
        if told[3] == 1 {
            answers += 1;
            served += u32::from(payload.first() == Some(&0x88));
        }
    }
    served
}
