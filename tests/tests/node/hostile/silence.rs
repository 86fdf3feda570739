//! Peers that send half a frame, or nothing.

use std::io;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use alknet_core::{Carriage, CloseReason, Connection, StreamCode, StreamError};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_test_support::{deadline, is_campaign, took};
use alknet_tests::{RawTcpConnection, TestBench, wire};
use bytes::Bytes;
use serde_json::Value;

use super::{AttackedNode, AttackedStreamEnd, CARRIAGES, TIMEOUT, answers, key, send, within};

/// Requests in one write.
const ASKED_TOGETHER: usize = 50;

/// How long an unknown peer may stay, whatever it asks (docs/endpoint.md), and a client over HTTP that does not leave when
/// it is asked to.
const UNKNOWN_STAYS: Duration = Duration::from_secs(600);
/// How long a run looks whether it is there.
const MOMENT: Duration = Duration::from_millis(200);
/// The beginning of the answer to a question for the node's health.
const HEALTHY: &str = "HTTP/1.1 200 ";
/// How often a client asks meanwhile.
const ASKS_EVERY: Duration = Duration::from_secs(15);

/// Waits for the end of `what`, which in a campaign comes at most a second after its time.
async fn timed<T>(what: &str, patience: Duration, end: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let end = tokio::time::timeout(deadline(2 * patience), end).await;
    let end = end.unwrap_or_else(|_| panic!("{what} does not end"));
    let most = patience + Duration::from_secs(1);
    took(&format!("{what} is ended"), most, began.elapsed());
    end
}

/// Starts a request every second and abandons it, until the node ends the connection: bytes without
/// a request.
async fn begins_and_gives_up(connection: &Connection) -> CloseReason {
    let every = Duration::from_secs(1);
    loop {
        if let Ok(reason) = tokio::time::timeout(every, connection.closed()).await {
            return reason;
        }
        if let Ok((mut send, _recv)) = wire::stream(connection).await {
            send.write_chunk(Bytes::from_static(&[0])).await.ok();
            send.reset(StreamCode::Cancelled);
        }
    }
}

/// Sends requests on one stream until the node accepts no more, reads no answers, and waits for the
/// stream's end.
async fn reads_nothing(connection: &Connection) -> AttackedStreamEnd {
    let (mut send, mut recv) = wire::stream(connection).await.expect("it is connected");
    let ids = 0..ASKED_TOGETHER;
    let asks = ids.flat_map(|id| wire::request(&id.to_string(), "services/list", &Value::Null));
    let asks = Bytes::from(asks.collect::<Vec<u8>>());
    while send.write_chunk(asks.clone()).await.is_ok() {}
    // The node has ended the stream, and unread data is lost with it.
    loop {
        match recv.read_chunk(usize::MAX).await {
            Ok(Some(_)) => {}
            Err(StreamError::Reset(code)) => return AttackedStreamEnd::Reset(code),
            end => panic!("{end:?}"),
        }
    }
}

/// On either carriage, the node ends after half a minute a frame that begins but never ends, and a
/// stream that is not read. After three quarters of a minute it disconnects an unknown peer that
/// connects but sends no request. On QUIC the peer may keep the connection alive, as the dialer
/// does.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_streams_end_in_code_8() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    let dialer = EndpointDialer::new(Some(key()));
    let half = &wire::request("1", "services/list", &Value::Null)[..20];
    let dial = |carriage| site.dial(&dialer, carriage);
    let (quic, tcp) = (dial(Carriage::Quic).await, dial(Carriage::Tcp).await);
    let silent = dial(Carriage::Tcp).await;
    let kept_open = dial(Carriage::Quic).await;
    let busy = dial(Carriage::Quic).await;
    let unread = dial(Carriage::Quic).await;
    let (frame, unknown_peer) = (Duration::from_secs(30), Duration::from_secs(45));
    let all = async {
        tokio::join!(
            timed("half a frame over QUIC", frame, send(&quic, half, false)),
            timed("half a frame over TCP", frame, send(&tcp, half, false)),
            timed("an unread answer", frame, reads_nothing(&unread)),
            timed("silence over TCP", unknown_peer, send(&silent, b"", false)),
            timed("silence over QUIC", unknown_peer, kept_open.closed()),
            timed(
                "bytes that ask nothing",
                unknown_peer,
                begins_and_gives_up(&busy)
            )
        )
    };
    let served = async {
        // A slow stream delays no other stream or connection.
        answers(&quic).await;
        site.serves();
    };
    let (ended, ()) = within(async { tokio::join!(all, served) }).await;
    let (of_quic, of_tcp, of_unread, of_silent, of_kept_open, of_busy) = ended;
    assert_eq!(
        (of_quic, of_tcp),
        (AttackedStreamEnd::Reset(TIMEOUT), AttackedStreamEnd::Closed)
    );
    assert_eq!(
        (of_unread, of_silent),
        (AttackedStreamEnd::Reset(TIMEOUT), AttackedStreamEnd::Closed)
    );
    // Only this stream ends, and data read on another one is answered.
    answers(&unread).await;
    for reason in [of_kept_open, of_busy] {
        assert!(
            matches!(reason, CloseReason::Peer(Some(TIMEOUT), _)),
            "{reason:?}"
        );
    }
    answers(&dial(Carriage::Quic).await).await;
    site.serves();
}

/// Follows what every client may follow, over a carriage, until the node ends the connection.
async fn follows(site: &AttackedNode<'_>, carriage: Carriage) {
    let dialer = EndpointDialer::new(Some(key()));
    let connection = site.dial(&dialer, carriage).await;
    let (mut send, mut recv) = wire::stream(&connection).await.expect("it is connected");
    let request = wire::request("1", "services/watch", &Value::Null);
    send.write_chunk(request.into())
        .await
        .expect("the node reads");
    let event = within(wire::event(&mut recv)).await.expect("an event");
    assert_eq!(event["type"], "call.responded", "{event}");
    // A client learns of the end of a TCP connection by reading.
    let mut ends = pin!(async { while let Ok(Some(_)) = recv.read_chunk(ASKED_TOGETHER).await {} });
    if is_campaign() {
        let what = format!("a subscription over {carriage:?}");
        timed(&what, UNKNOWN_STAYS, ends).await;
    } else {
        let ended = tokio::time::timeout(MOMENT, &mut ends).await;
        assert!(ended.is_err(), "it may stay for longer: {ended:?}");
    }
}

/// Asks again and again over HTTP/1.1, until the node ends the connection.
fn asks_for_health(target: &Target) {
    let opened = RawTcpConnection::connect(target, Ipv4Addr::LOCALHOST, None, b"http/1.1");
    let (mut client, began) = (opened.expect("there is a place"), Instant::now());
    let mut asks = || -> io::Result<()> {
        client.say(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let head = client.hear(HEALTHY.len())?;
        assert_eq!(String::from_utf8_lossy(&head), HEALTHY);
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\nok\n") {
            rest.extend(client.hear(1)?);
        }
        Ok(())
    };
    asks().expect("an answer");
    if is_campaign() {
        let patience = deadline(2 * UNKNOWN_STAYS);
        while asks().is_ok() {
            assert!(began.elapsed() < patience, "it is answered without end");
            thread::sleep(ASKS_EVERY);
        }
        let most = UNKNOWN_STAYS + ASKS_EVERY + Duration::from_secs(1);
        took(
            "a client that asks again and again is ended",
            most,
            began.elapsed(),
        );
    } else {
        asks().expect("another answer");
    }
}

/// An unknown peer may not keep its place by a subscription, nor by small requests. A run sees that it is served, and the
/// campaign of times that it is ended after ten minutes.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_peers_that_keep_asking_are_ended() {
    let bench = TestBench::new();
    let (_node, site) = AttackedNode::on_host(&bench);
    let target = site.parsed();
    let health = tokio::task::spawn_blocking(move || asks_for_health(&target));
    let [quic, tcp] = CARRIAGES.map(|carriage| follows(&site, carriage));
    let ((), (), asked) = tokio::join!(quic, tcp, health);
    asked.expect("it was answered until its end");
    site.serves();
}
