//! HTTP/2 streams that are reset, and endless pings and settings.

use std::time::{Duration, Instant};

use alknet_http::limits::{RESETS_BURST, RESETS_MAX, RESETS_PER_SECOND};
use alknet_test_support::deadline;
use alknet_tests::raw::{PING, RawQuicConnection, SETTINGS, frame};
use alknet_tests::{TestBench, WebNode};
use tokio::io::AsyncWriteExt;

use super::{resident, survives};

#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_at_once_end_the_connection() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let before = resident(&web);
    // The node takes a few at once: their number is what ends the connections below.
    let few = (RESETS_MAX / 2) as u32;
    let mut raw = RawQuicConnection::open_two(&web.target()).await;
    assert_eq!(raw.resets(few, few).await, few);
    for _ in 0..4 {
        let mut raw = RawQuicConnection::open_two(&web.target()).await;
        let taken = raw.resets(20_000, 50).await;
        assert!(taken < 20_000, "all of them were taken in stride");
    }
    survives(&web, before);
}

/// Each reset is read before the next one is sent. The node's library accepts that, and the node's
/// own counter ends the connection.
#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_one_by_one_end_the_connection() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let before = resident(&web);
    let mut raw = RawQuicConnection::open_two(&web.target()).await;
    let began = Instant::now();
    let taken = raw.resets(20_000, 1).await;
    let seconds = u32::try_from(began.elapsed().as_secs() + 1).expect("a few");
    let most = RESETS_BURST + RESETS_PER_SECOND * seconds;
    // A browser that leaves a page resets the page's open streams.
    assert!(
        (RESETS_BURST..=most).contains(&taken),
        "{taken} were taken in stride, where {RESETS_BURST} to {most} are"
    );
    survives(&web, before);
}

/// Bytes of pings or settings, as many as a node must never read if its answers are not read. The
/// answers are as long, the kernel buffers some megabytes on each side, and the rest would be twice
/// the permitted growth.
const TAKEN_BYTES_MAX: usize = 100 << 20;

/// How long a node must read nothing before it counts as waiting.
const QUIET: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_settings_without_end_are_answered_or_refused() {
    let bench = TestBench::new();
    let web = WebNode::start(&bench, "");
    let before = resident(&web);
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[0, 4, 0, 0, 0, 1][..])] {
        let mut raw = RawQuicConnection::open_two(&web.target()).await;
        let many = frame(kind, 0, 0, payload).repeat(10_000);
        let mut taken = 0;
        // The answers are never read.
        while taken < TAKEN_BYTES_MAX {
            let said = tokio::time::timeout(deadline(QUIET), raw.send.write_all(&many)).await;
            if !matches!(said, Ok(Ok(()))) {
                break;
            }
            taken += many.len();
        }
        println!(
            "figure frames of kind {kind} that are taken: {} KiB",
            taken >> 10
        );
        assert!(
            taken < TAKEN_BYTES_MAX,
            "it takes frames of kind {kind} without end"
        );
        survives(&web, before);
    }
}
