//! Streams of HTTP/2 that are reset, and pings and settings without end.

use std::time::Duration;

use alknet_test_support::deadline;
use alknet_tests::raw::{PING, Raw, SETTINGS, frame};
use alknet_tests::{Bench, Web};
use tokio::io::AsyncWriteExt;

use super::{resident, survives};

#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_at_once_end_the_connection() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    for _ in 0..4 {
        let mut raw = Raw::open_two(&web.target()).await;
        let taken = raw.resets(20_000, 50).await;
        assert!(taken < 20_000, "all of them were taken in stride");
    }
    survives(&web, before);
}

/// Each request is answered before its stream is reset: the library of the node finds nothing wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_one_by_one_end_the_connection() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    let mut raw = Raw::open_two(&web.target()).await;
    let taken = raw.resets(20_000, 1).await;
    // A browser that leaves a page resets what is open of it.
    assert!(
        (128..20_000).contains(&taken),
        "{taken} were taken in stride"
    );
    survives(&web, before);
}

/// Bytes of pings or of settings, as many as a node may never take whose answers are not read: the answers are as long,
/// the kernel keeps some megabytes of each side, and the rest would be twice what the node may grow by.
const TAKEN_BYTES_MAX: usize = 100 << 20;

/// How long a node takes nothing that is believed to wait until it is read.
const QUIET: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_settings_without_end_are_answered_or_refused() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[0, 4, 0, 0, 0, 1][..])] {
        let mut raw = Raw::open_two(&web.target()).await;
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
