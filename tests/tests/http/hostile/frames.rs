//! Streams of HTTP/2 that are reset, and pings and settings without end.

use std::time::Duration;

use alknet_test_support::deadline;
use alknet_tests::{Bench, Web};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{H2, Raw, frame, head, resident, survives, within};

#[tokio::test(flavor = "multi_thread")]
async fn streams_reset_at_once_end_the_connection() {
    let bench = Bench::new();
    let web = Web::start(&bench, "");
    let before = resident(&web);
    for _ in 0..4 {
        let mut raw = Raw::open(&web, H2).await;
        raw.preface().await;
        let taken = resets(&mut raw, 20_000, 50).await;
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
    let mut raw = Raw::open(&web, H2).await;
    raw.preface().await;
    let taken = resets(&mut raw, 20_000, 1).await;
    // A browser that leaves a page resets what is open of it.
    assert!(
        (128..20_000).contains(&taken),
        "{taken} were taken in stride"
    );
    survives(&web, before);
}

/// Sends requests, each of which it resets, so many at a time: `most`, or as many as the node took before it ended the
/// connection.
async fn resets(raw: &mut Raw, most: u32, at_once: u32) -> u32 {
    let mut answers = vec![0; 64 << 10];
    for first in (0..most).step_by(at_once as usize) {
        let mut bytes = Vec::new();
        for n in first..first + at_once {
            let stream = n * 2 + 1;
            bytes.extend(frame(1, 5, stream, &head("localhost")));
            bytes.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
        }
        // A ping is answered when what came before it was read.
        bytes.extend(frame(6, 0, 0, &[7; 8]));
        if !raw.say(&bytes).await {
            return first;
        }
        let mut heard: Vec<u8> = Vec::new();
        while !heard.windows(8).any(|part| part == [7; 8]) {
            match within(raw.recv.read(&mut answers)).await {
                Ok(0) | Err(_) => return first,
                Ok(read) => heard.extend(&answers[..read]),
            }
        }
    }
    most
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
    for (kind, payload) in [(6, &[0; 8][..]), (4, &[0, 4, 0, 0, 0, 1][..])] {
        let mut raw = Raw::open(&web, H2).await;
        raw.preface().await;
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
