//! Known peers that are as many as the node remembers.

use super::super::known_addresses::{ADMINS_KEPT, PEERS_MAX};
use super::*;

/// One holder of an invitation has as many keys as the node remembers peers, and shows them in turn.
#[test]
fn a_crowd_of_peers_takes_no_address_from_an_administrator() {
    let (mut admission, _, now) = admission();
    let admin = |n: usize| RecognisedPeer {
        is_admin: true,
        ..known(&format!("admin-{n}"), 1)
    };
    let address = |n: usize| elsewhere(u32::try_from(n).expect("a small number"));
    let at = |n: usize| now + Duration::from_secs(n as u64);
    admission.remember(&admin(0), v4(1), now);
    for n in 1..=2 * PEERS_MAX {
        admission.remember(&known(&format!("p{n}"), 2), v4(9), at(n));
    }
    assert_eq!(admission.remembered().len(), PEERS_MAX);
    assert!(admission.known_addresses.contains(v4(1)));
    // It pays for itself, whatever the peers of its network use up.
    while admission.charge(Carriage::Quic, v4(2), now) {}
    assert!(admission.charge(Carriage::Quic, v4(1), now));
    // More administrators than are kept leave the other peers their half.
    for n in 1..PEERS_MAX {
        admission.remember(&admin(n), address(n), at(2 * PEERS_MAX + n));
    }
    for n in 0..2 * PEERS_MAX {
        admission.remember(&known(&format!("p{n}"), 2), v4(9), at(4 * PEERS_MAX + n));
    }
    let all = admission.remembered();
    let admins = all.iter().filter(|peer| peer.is_admin).count();
    assert_eq!((all.len(), admins), (PEERS_MAX, ADMINS_KEPT));
    // They are those that the node saw last.
    let seen = |n: usize| admission.known_addresses.contains(address(n));
    assert!((PEERS_MAX - ADMINS_KEPT..PEERS_MAX).all(seen));
}
