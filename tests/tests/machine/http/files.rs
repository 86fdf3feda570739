//! An attacker makes many first requests for a large file at once: the node does not read the whole file before it
//! sends the first bytes, and serves others meanwhile.

use std::cell::Cell;

use alknet_tests::raw::{
    END_HEADERS, END_STREAM, HEADERS, PARTIAL, RawQuicConnection, frame, get, literals,
};
use futures_util::future::join_all;
use tokio::runtime::Runtime;

use super::{LARGE, Machine};

/// Connections of the attack, and requests that each of them makes at once. Together they are fewer than the files that
/// a network of unknown peers may have in progress.
const CONNECTIONS: usize = 2;
const REQUESTS: u32 = 50;

/// Most answers that another client gets, one after the other, before the first answer with the file begins. With half
/// of a processor the machine hashed the whole file for as long as some hundred of these answers take.
const OTHERS_FIRST_MAX: u32 = 60;

/// Most answers that the other client gets before all answers with the file have begun.
const OTHERS_MAX: u32 = 2_000;

/// This test is the first to request the file.
pub(super) fn a_large_file_is_not_read_before_it_is_sent(web: &Machine) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let target = web.target();
        let mut other = RawQuicConnection::open_two(&target).await;
        let mut attackers = Vec::new();
        for _ in 0..CONNECTIONS {
            attackers.push(RawQuicConnection::open_two(&target).await);
        }
        // At this request an emulated machine translates the code that looks for a file.
        other.say(&get(1, "/no/such.file")).await;
        other.until(|tally| tally.over() == 1).await;

        let answered = Cell::new(0);
        let attack = attackers.iter_mut().map(|raw| first_bytes(raw, &answered));
        let others = async {
            while answered.get() < OTHERS_MAX {
                let asked = answered.get() + 2;
                other.say(&get(asked * 2 - 1, "/healthz")).await;
                let tally = other.until(|tally| tally.over() == asked).await;
                assert_eq!((tally.served, tally.whole), (asked - 1, asked), "{tally:?}");
                answered.set(asked - 1);
            }
        };
        let firsts = tokio::select! {
            firsts = join_all(attack) => firsts,
            () = others => panic!("{OTHERS_MAX} others were answered before"),
        };
        let first = firsts.into_iter().min().expect("there are attackers");
        let all = answered.get();
        println!("figure answers of others before the first of a large file: {first}, all: {all}");
        assert!(first <= OTHERS_FIRST_MAX, "{first} were answered before");
        assert!(all > 0, "no other client was answered");
    });
}

/// Requests the first bytes of the file [`REQUESTS`] times at once, and waits for all answers. Returns how many answers
/// the other client got before the first of them began.
async fn first_bytes(raw: &mut RawQuicConnection, answered: &Cell<u32>) -> u32 {
    let head = literals(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", LARGE),
        ("range", "bytes=0-9"),
    ]);
    let request = |n: u32| frame(HEADERS, END_STREAM | END_HEADERS, n * 2 + 1, &head);
    let all: Vec<u8> = (0..REQUESTS).flat_map(request).collect();
    assert!(raw.say(&all).await, "the connection goes on");
    let mut first = None;
    let mut begun = 0;
    while begun < REQUESTS {
        let frame = raw.next_frame().await.expect("the connection goes on");
        if frame.kind == HEADERS {
            assert_eq!(frame.payload.first(), Some(&PARTIAL), "{frame:?}");
            first.get_or_insert_with(|| answered.get());
            begun += 1;
        }
    }
    let tally = raw.until(|tally| tally.over() == REQUESTS).await;
    assert_eq!(tally.whole, REQUESTS, "{tally:?}");
    first.unwrap_or_default()
}
