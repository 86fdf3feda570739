//! Connections that ended, and that the library still has.

use super::*;

/// What a connection that ended counts for where no known peer was seen.
fn kept_of(owner: &WindowOwner) -> ClosingConnection {
    ClosingConnection {
        owner: owner.clone(),
        address: None,
    }
}

/// What the library keeps of them has their memory still.
#[test]
fn connections_that_ended_count_until_the_library_lets_go_of_them() {
    let (mut admission, limits, _) = admission();
    let most = limits.per_address_max;
    let from = v4(1);
    let network = WindowOwner::Network(NetworkPrefix::from_ip(from));
    let ends = |admission: &mut Admission, n| {
        let conn = ConnId(n);
        assert_eq!(admission.connect(conn, from, false, true), Ok(()));
        let owner = admission.disconnect(conn, None);
        assert_eq!(owner.as_ref(), Some(&network));
        admission.count_closing(network.clone(), from);
    };
    for n in 0..most {
        ends(&mut admission, n.into());
    }
    let comes = |admission: &mut Admission| admission.connect(ConnId(1000), from, false, true);
    assert_eq!(comes(&mut admission), Err(CapacityScope::Closing));
    assert_eq!(admission.closing_of_unknown(), most);
    // Over TCP nothing is kept.
    assert_eq!(admission.connect(ConnId(999), from, false, false), Ok(()));
    // Another network is not theirs, unless it is of a site that has too many.
    let other: IpAddr = "203.0.113.1".parse().expect("an address");
    assert_eq!(admission.connect(ConnId(1001), other, false, true), Ok(()));
    admission.let_go(&kept_of(&network));
    assert_eq!(comes(&mut admission), Ok(()));

    let who = peer("ada");
    let owner = WindowOwner::Peer(who.clone());
    for _ in 0..most {
        admission.count_closing(owner.clone(), from);
    }
    assert!(!admission.authenticated(ConnId(1000), &who, true));
    let entry = admission.identify(&who, ConnId(1002), false, None, true);
    assert_eq!(entry, SlotDecision::Full);
    // What QUIC keeps of them says nothing about TCP.
    let entry = admission.identify(&who, ConnId(1003), false, None, false);
    assert_eq!(entry, SlotDecision::Welcome);
    assert!(admission.authenticated(ConnId(999), &who, false));
    admission.let_go(&kept_of(&owner));
    assert!(admission.authenticated(ConnId(1000), &who, true));
    assert_eq!(
        admission.disconnect(ConnId(1000), None),
        Some(owner.clone())
    );
    let entry = admission.identify(&who, ConnId(1002), false, None, true);
    assert_eq!(entry, SlotDecision::Welcome);
    assert_eq!(admission.disconnect(ConnId(1002), Some(&who)), Some(owner));
}

/// One host has all networks of a site, and one tenant of a cloud many: others come in all the same.
#[test]
fn ended_connections_of_many_networks_keep_their_own_sites_out() {
    let (mut admission, limits, _) = admission();
    let v6 = |site: u32, n: u16| -> IpAddr {
        let [high, low] = [(site >> 16) as u16, site as u16];
        [0x2001, high, low, n << 8, 0, 0, 0, 1].into()
    };
    let owner = |site, n| WindowOwner::Network(NetworkPrefix::from_ip(v6(site, n)));
    let most = limits.per_address_max;
    let mut left = most * SITE_NETWORKS;
    for n in 0.. {
        let of_this = left.min(most - 1);
        for _ in 0..of_this {
            admission.count_closing(owner(1, n), v6(1, n));
        }
        left -= of_this;
        if left == 0 {
            break;
        }
    }
    let mut comes = |from| admission.connect(ConnId(1), from, false, true);
    assert_eq!(comes(v6(1, 200)), Err(CapacityScope::Closing));
    assert_eq!(comes(v6(2, 200)), Ok(()));
    for site in 3.. {
        if admission.closing_of_unknown() == limits.unknown_peers_max() {
            break;
        }
        admission.count_closing(owner(site, 0), v6(site, 0));
    }
    let mut comes = |from| admission.connect(ConnId(2), from, false, true);
    assert_eq!(comes(v6(3, 1)), Err(CapacityScope::Closing));
    assert_eq!(comes(v6(2, 1)), Ok(()));
}

/// Handshakes end at once, from addresses that may be forged, and the library keeps each for as long as its client said.
#[test]
fn clients_prove_their_addresses_where_many_connections_are_kept_and_not_served() {
    let (mut admission, _, now) = admission();
    let all = (0..UNSERVED_MAX).map(|_| admission.unserved().begin());
    let mut kept: Vec<_> = all.collect();
    let mut ask = |address| admission.quic(Carriage::Quic, v4(1), address, now);
    assert_eq!(
        ask(AddressValidation::Unproven),
        QuicDecision::Retry(Some(AdmissionLimit::HandshakesUnproven))
    );
    assert!(matches!(
        ask(AddressValidation::Proven),
        QuicDecision::Accept { .. }
    ));
    kept.pop();
    assert!(matches!(
        ask(AddressValidation::Unproven),
        QuicDecision::Accept { .. }
    ));
}

/// A network has its places, and each further handshake would be refused at its end and kept.
#[test]
fn a_network_with_many_refused_connections_is_refused_before_its_handshakes() {
    let (mut admission, limits, now) = admission();
    let most = limits.per_address_max;
    let (from, edges) = (v4(1), v4(2));
    admission.remember(&known("edge", 1), edges, now);
    let network = WindowOwner::Network(NetworkPrefix::from_ip(from));
    let most = CLOSING_TIMES * most;
    let refused = |admission: &mut Admission, from, times: u32| {
        for _ in 0..times {
            assert_eq!(
                admission.count_closing(network.clone(), from).owner,
                network
            );
        }
    };
    let ask = |admission: &mut Admission, from, address| {
        admission.quic(Carriage::Quic, from, address, now)
    };
    let limit = AdmissionLimit::ConnectionsPerAddress;
    refused(&mut admission, from, most);
    let decision = ask(&mut admission, from, AddressValidation::Unproven);
    assert_eq!(decision, QuicDecision::Retry(Some(limit)));
    let decision = ask(&mut admission, from, AddressValidation::Proven);
    assert_eq!(decision, QuicDecision::Refuse(limit));
    // Others, and the address of a known peer beside it, are not, however many there are.
    refused(&mut admission, from, 4 * most);
    for other in [elsewhere(7), edges] {
        for address in [AddressValidation::Unproven, AddressValidation::Proven] {
            let decision = ask(&mut admission, other, address);
            assert!(
                matches!(decision, QuicDecision::Accept { .. }),
                "{other}: {decision:?}"
            );
        }
    }
    // That has an end of its own.
    refused(&mut admission, edges, most - 1);
    assert!(!admission.is_kept_out(edges));
    let kept = admission.count_closing(network.clone(), edges);
    let decision = ask(&mut admission, edges, AddressValidation::Proven);
    assert_eq!(decision, QuicDecision::Refuse(limit));
    admission.let_go(&kept);
    let decision = ask(&mut admission, edges, AddressValidation::Proven);
    assert!(
        matches!(decision, QuicDecision::Accept { .. }),
        "{decision:?}"
    );
}

/// A known peer behind a relay, or beside others, has too many: other known peers get in all the same.
#[test]
fn what_is_kept_of_a_known_peer_keeps_no_other_known_one_out() {
    let (mut admission, limits, now) = admission();
    let (edges, adas) = (v4(1), v4(2));
    admission.remember(&known("edge", 1), edges, now);
    admission.remember(&known("ada", 2), adas, now);
    let edge = WindowOwner::Peer(peer("edge"));
    for _ in 0..6 * CLOSING_TIMES * limits.per_address_max {
        admission.count_closing(edge.clone(), edges);
    }
    assert!(admission.is_kept_out(edges) && !admission.is_kept_out(adas));
}

/// Its handshakes cost it nothing, and a connection that is refused frees no place.
#[test]
fn connections_of_a_known_peer_with_too_many_count_for_where_they_come_from() {
    let (mut admission, limits, _) = admission();
    let from = elsewhere(9);
    let who = WindowOwner::Peer(peer("edge"));
    let network = WindowOwner::Network(NetworkPrefix::from_ip(from));
    let most = CLOSING_TIMES * limits.per_address_max;
    for _ in 0..most {
        assert_eq!(admission.count_closing(who.clone(), from).owner, who);
    }
    for _ in 0..most {
        assert!(!admission.is_kept_out(from));
        assert_eq!(admission.count_closing(who.clone(), from).owner, network);
    }
    assert!(admission.is_kept_out(from));
}
