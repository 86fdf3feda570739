//! What connections have of a node's room, and of that of what carries them.

use std::pin::pin;
use std::sync::Mutex;

use futures_util::poll;

use super::*;
use crate::limits::UNREAD_SLACK_BYTES;
use crate::request_bytes::{RequestBytes, Requester};
use crate::sync::lock;

const KIB: usize = 1 << 10;

fn known(id: &str) -> Requester {
    Requester::Known(id.parse().expect("a peer id"))
}

/// A connection whose requester is the one in `requester` at the moment.
fn connection(all: &Arc<RequestBytes>, requester: &Arc<Mutex<Requester>>) -> UnreadBytes {
    let requester = Arc::clone(requester);
    let source: Arc<RequesterSource> = Arc::new(move || lock(&requester).clone());
    UnreadBytes::shared(UnreadQuota::new(all, &source), None)
}

fn unread_for(all: &Arc<RequestBytes>, id: &str) -> UnreadBytes {
    connection(all, &Arc::new(Mutex::new(known(id))))
}

/// With the room of a connection alone.
fn claim(unread: &UnreadBytes, bytes: usize, fit: GrowLimit) -> Result<(), UnreadLimitError> {
    unread.claim(bytes, fit, |_| true)
}

#[test]
fn connections_of_one_identity_share_half_and_leave_others_room() {
    let all = Arc::new(RequestBytes::new(1 << 20));
    let eve = [(); 64].map(|()| unread_for(&all, "eve"));
    for unread in &eve {
        claim(unread, UNREAD_BYTES_FREE, GrowLimit::Wholly).expect("it counts for no identity");
    }
    assert_eq!(all.usage().0, 0);
    let fitted = eve
        .iter()
        .filter(|unread| claim(unread, 64 * KIB, GrowLimit::Wholly).is_ok());
    assert_eq!(fitted.count(), 8);
    assert_eq!(all.usage().0, 512 * KIB);
    let refused = &eve[63];
    assert_eq!(
        claim(refused, 1, GrowLimit::Wholly),
        Err(UnreadLimitError::Share)
    );
    assert_eq!(
        claim(refused, 1, GrowLimit::Begins),
        Err(UnreadLimitError::Share)
    );
    assert_eq!(refused.bytes(), UNREAD_BYTES_FREE);
    assert!(refused.is_spent() && !refused.may_grow());
    let ada = unread_for(&all, "ada");
    assert!(ada.may_grow() && ada.has_share() && !ada.is_spent());
    claim(&ada, 200 * KIB, GrowLimit::Wholly).expect("half of all is left");
    ada.taken(200 * KIB);
    assert_eq!(ada.bytes(), 0);
    drop((eve, ada));
    assert_eq!(all.usage().0, 0);
}

#[test]
fn what_is_taken_is_given_back_and_what_is_there_is_counted() {
    let all = Arc::new(RequestBytes::new(1 << 20));
    let unread = unread_for(&all, "eve");
    claim(&unread, 200 * KIB, GrowLimit::Wholly).expect("room");
    let most = all.usage().0;
    assert!((192 * KIB..208 * KIB).contains(&most), "{most}");
    unread.taken(UNREAD_SLACK_BYTES / 2);
    assert_eq!(all.usage().0, most, "it is kept for the next");
    unread.taken(UNREAD_SLACK_BYTES);
    assert!(all.usage().0 < most);
    unread.add(2 << 20);
    assert!(all.usage().0 > 2 << 20, "it is there");
    unread.taken(unread.bytes());
    assert_eq!(all.usage().0, 0);
    // Of an event it shows afterwards how long it is.
    claim(&unread, 700 * KIB, GrowLimit::Begins).expect("nothing waits");
    assert_eq!(
        claim(&unread, 700 * KIB, GrowLimit::Begins),
        Err(UnreadLimitError::Share)
    );
}

#[test]
fn bytes_count_for_the_identity_a_connection_gained() {
    let all = Arc::new(RequestBytes::new(1 << 20));
    let requester = Arc::new(Mutex::new(Requester::Nowhere));
    let unread = connection(&all, &requester);
    claim(&unread, 40 * KIB, GrowLimit::Wholly).expect("room");
    *lock(&requester) = known("eve");
    claim(&unread, 400 * KIB, GrowLimit::Wholly).expect("more than an unknown peer has");
    let unknown_peer = connection(&all, &Arc::new(Mutex::new(Requester::Nowhere)));
    claim(&unknown_peer, 60 * KIB, GrowLimit::Wholly).expect("none of an unknown peer's is taken");
    drop((unread, unknown_peer));
    assert_eq!(all.usage().0, 0);
}

#[test]
fn all_that_a_connection_carries_is_bounded_as_one() {
    let all = Arc::new(RequestBytes::new(1 << 30));
    let source: Arc<RequesterSource> = Arc::new(|| known("eve"));
    let carrier: Arc<UnreadBytes> = Arc::default();
    let carried =
        || UnreadBytes::shared(UnreadQuota::new(&all, &source), Some(Arc::clone(&carrier)));
    let sockets = [(); 16].map(|()| carried());
    let may = |waiting: usize| waiting < 256 * KIB;
    let fitted = sockets
        .iter()
        .filter(|socket| socket.claim(100 * KIB, GrowLimit::Begins, may).is_ok());
    assert_eq!(fitted.count(), 3);
    let last = &sockets[15];
    assert_eq!(
        last.claim(1, GrowLimit::Begins, may),
        Err(UnreadLimitError::Here(300 * KIB))
    );
    assert!(last.bytes() == 0 && !last.is_below(256 * KIB));
    sockets[0].taken(100 * KIB);
    assert!(last.is_below(256 * KIB));
    last.add(KIB);
    drop(sockets);
    assert_eq!(carrier.bytes(), 0, "what ends is not waited for");
}

#[tokio::test]
async fn a_reader_waits_for_no_other_and_a_silent_peer_waits_for_room() {
    let all = Arc::new(RequestBytes::new(1 << 20));
    let (full, slow, quick) = (
        unread_for(&all, "eve"),
        unread_for(&all, "eve"),
        unread_for(&all, "eve"),
    );
    claim(&slow, 64 * KIB, GrowLimit::Wholly).expect("room");
    full.add(1 << 20);
    quick.wait_for_capacity(4 << 20).await;
    let mut waits = pin!(slow.wait_for_capacity(4 << 20));
    assert!(poll!(waits.as_mut()).is_pending());
    full.taken(1 << 20);
    waits.await;
    full.add(1 << 20);
    let mut waits = pin!(slow.wait_for_capacity(4 << 20));
    assert!(poll!(waits.as_mut()).is_pending());
    slow.taken(60 * KIB);
    waits.await;
    let mut share = pin!(slow.wait_share());
    assert!(poll!(share.as_mut()).is_pending());
    full.taken(1 << 20);
    share.await;
}
