//! Answers that the client leaves unread, over HTTP/2 and HTTP/3, on a machine with 512 MiB.

use std::thread;
use std::time::{Duration, Instant};

use alknet_test_support::took;
use alknet_tests::raw::{
    END_HEADERS, END_STREAM, HEADERS, Http2Tally, RawQuicConnection, asks, frame, literals,
};
use alknet_tests::stalled_http3::{StalledHttp3, not_taken};
use alknet_tests::{TestBench, eventually};
use futures_util::future::join_all;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::attacks::{ASK_EVERY, MemoryWatcher};
use super::{LARGE, Machine};

/// Most bytes by which the unread answers may make the node's memory grow. Half a megabyte for each active file is
/// twice what it needs.
pub(super) const GROWTH_BYTES: u64 = 32 << 20;

/// HTTP/3 connections on which the client leaves some answers unread and reads others.
const CONNECTIONS_THREE: usize = 2;

/// Pause between two other answers that such a connection reads.
const TAKEN_EVERY: Duration = Duration::from_secs(2);

/// Requests of the HTTP/2 connection that stays: fewer than one network may have in progress, so that the node serves
/// other clients of the network meanwhile.
const STAYS: u32 = 40;

/// Requests of the connection without a token that stays as well.
const UNKNOWN_STAYS: u32 = 20;

/// The node ends an unread answer within this time after its request. The answer may stay unread for 30 s, plus a
/// second for each KiB of the 32 KiB that wait for it. The rest of the time is for the emulated machine's own needs.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// Additional short HTTP/2 connections, and requests of each.
const CONNECTIONS: usize = 20;
const STREAMS: u32 = 120;

/// Large files that one network of unknown peers may have in progress, with this much memory.
const FILES_MAX: u32 = 128;

/// Unread answers, from [`begin`](Self::begin) on.
pub(super) struct UnreadResponses {
    runtime: Runtime,
    three: Vec<JoinHandle<StalledHttp3>>,
    two: JoinHandle<LeftAnswers>,
    unknown: JoinHandle<LeftAnswers>,
    is_over: watch::Sender<bool>,
}

/// How the unread answers of an HTTP/2 connection ended, and how long after their requests.
#[derive(Debug)]
struct LeftAnswers {
    tally: Http2Tally,
    time: Duration,
}

impl LeftAnswers {
    /// The node served `count` answers and ended each of them.
    fn were_reset(&self, count: u32, whose: &str) {
        let Http2Tally { served, reset, .. } = self.tally;
        assert_eq!((served, reset), (count, count), "{whose}: {self:?}");
        took(
            &format!("answers that {whose} leaves"),
            ENDS_WITHIN,
            self.time,
        );
    }
}

impl UnreadResponses {
    /// Requests the large file as often as the connections accept, and reads nothing of it. The node refuses requests
    /// beyond the limit, and does not grow by more than [`GROWTH_BYTES`]. The client leaves a few of the answers unread
    /// until [`end`](Self::end). Their connections have a token, because the node would close a silent connection
    /// without a token to make room for later ones. One connection without a token stays until
    /// [`end_of_unknown_clients`](Self::end_of_unknown_clients), and no connection until then takes its place.
    pub(super) fn begin(web: &Machine) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let mut watcher = MemoryWatcher::new(web);
        let before = watcher.resident().expect("no attack yet");
        let target = web.target();
        let asked = Instant::now();
        let (idle, stays, unknown, besides) = runtime.block_on(async {
            let mut idle = Vec::new();
            for _ in 0..CONNECTIONS_THREE {
                let mut one = StalledHttp3::open(&target, LARGE, Some(&web.reader)).await;
                one.is_served().await;
                idle.push(one);
            }
            let mut stays = left(web, STAYS, Some(&web.reader)).await;
            let tally = stays.until(|tally| tally.begun() == STAYS).await;
            assert_eq!(tally.served, STAYS, "{tally:?}");
            let mut unknown = left(web, UNKNOWN_STAYS, None).await;
            let tally = unknown.until(|tally| tally.begun() == UNKNOWN_STAYS).await;
            assert_eq!(tally.served, UNKNOWN_STAYS, "{tally:?}");
            let mut besides = Vec::new();
            for _ in 0..CONNECTIONS {
                besides.push(left(web, STREAMS, None).await);
            }
            let begun = besides
                .iter_mut()
                .map(|raw| raw.until(|tally| tally.begun() == STREAMS));
            let begun = join_all(begun).await;
            let count = |each: fn(&Http2Tally) -> u32| begun.iter().map(each).sum::<u32>();
            let (served, refused) = (count(|it| it.served), count(|it| it.refused));
            assert_eq!(served + refused, CONNECTIONS as u32 * STREAMS, "{begun:?}");
            // The files of clients with a token count for their identity.
            let of_network = UNKNOWN_STAYS + served;
            println!("figure large files under way to one network: {of_network}");
            assert!(served > 0 && of_network <= FILES_MAX, "{begun:?}");
            (idle, stays, unknown, besides)
        });
        let grown = settled(&mut watcher).saturating_sub(before);
        println!(
            "figure growth by answers that are not taken: {} KiB",
            grown >> 10
        );
        assert!(grown <= GROWTH_BYTES, "{grown} bytes are held");
        runtime.block_on(async { drop(besides) });
        let (is_over, over) = watch::channel(false);
        let three = idle.into_iter();
        let three = three.map(|one| runtime.spawn(goes_on(one, over.clone())));
        Self {
            three: three.collect(),
            two: runtime.spawn(until_over(stays, STAYS, asked)),
            unknown: runtime.spawn(until_over(unknown, UNKNOWN_STAYS, asked)),
            is_over,
            runtime,
        }
    }

    /// The node has ended each answer to a client without a token: it reset the answer's stream, while the connection
    /// continued.
    pub(super) fn end_of_unknown_clients(&mut self) {
        let ended = self.runtime.block_on(&mut self.unknown);
        let ended = ended.expect("the machine goes on");
        ended.were_reset(UNKNOWN_STAYS, "a client without a token");
    }

    /// The node has ended the answers on all other connections as well.
    pub(super) fn end(self, bench: &TestBench, web: &Machine) {
        let Self {
            runtime,
            three,
            two,
            is_over,
            ..
        } = self;
        let ended = runtime.block_on(two).expect("the machine goes on");
        ended.were_reset(STAYS, "a client with a token");
        eventually("the answers over HTTP/3 end", || {
            let ended = not_taken(bench.admin(), &web.node.target(), LARGE, "h3");
            (ended == CONNECTIONS_THREE * StalledHttp3::ANSWERS).then_some(())
        });
        is_over.send_replace(true);
        runtime.block_on(async {
            for one in three {
                let one = one.await.expect("it was served all the while");
                one.was_reset().await;
            }
        });
    }
}

/// Opens an HTTP/2 connection that makes this many requests and reads a byte of each answer.
async fn left(web: &Machine, requests: u32, token: Option<&str>) -> RawQuicConnection {
    let mut raw = RawQuicConnection::open_left_alone(&web.target()).await;
    let mut head = asks(LARGE);
    if let Some(token) = token {
        head.extend(literals(&[("authorization", &format!("Bearer {token}"))]));
    }
    let request = |n| frame(HEADERS, END_STREAM | END_HEADERS, n * 2 + 1, &head);
    let all: Vec<u8> = (0..requests).flat_map(request).collect();
    assert!(raw.say(&all).await, "the connection goes on");
    raw
}

/// Returns the node's memory after that has not grown in `QUIET_LOOKS` checks in a row, because an emulated machine may
/// do nothing between two of them.
fn settled(watcher: &mut MemoryWatcher<'_>) -> u64 {
    const QUIET_LOOKS: u32 = 3;
    let (mut most, mut quiet) = (0, 0);
    while quiet < QUIET_LOOKS {
        let now = watcher.resident().expect("the machine has a place for it");
        quiet = if now > most { 0 } else { quiet + 1 };
        most = most.max(now);
        thread::sleep(ASK_EVERY);
    }
    most
}

/// Reads until `count` answers, which the client requested at `asked`, have ended.
async fn until_over(mut raw: RawQuicConnection, count: u32, asked: Instant) -> LeftAnswers {
    let tally = raw.until(|tally| tally.over() == count).await;
    LeftAnswers {
        tally,
        time: asked.elapsed(),
    }
}

/// Reads other answers until `over` reports the end of the unread ones.
async fn goes_on(mut idle: StalledHttp3, mut over: watch::Receiver<bool>) -> StalledHttp3 {
    loop {
        idle.is_served().await;
        let ended = timeout(TAKEN_EVERY, over.wait_for(|over| *over)).await;
        if ended.is_ok() {
            return idle;
        }
    }
}
