//! Slots of a node of which known peers have all.

use super::*;

/// Known peers have `places`, `each` of them so many.
fn full(places: u32, each: u32) -> Admission {
    let mut admission = Admission::new(EndpointLimits {
        connections_max: places,
        ..EndpointLimits::default()
    });
    for n in 0..places {
        let conn = ConnId(n.into());
        assert_eq!(admission.connect(conn, v4(1), true, true), Ok(()));
        let who = peer(&format!("p{}", n / each));
        admission.identify(&who, conn, true, None, true);
    }
    admission
}

#[test]
fn unknown_peers_have_a_few_places_that_known_ones_leave_them() {
    let mut admission = full(64, 16);
    let conn = |n: u32| ConnId(u64::from(100 + n));
    let network = |n| CapacityScope::UnknownPeers(NetworkPrefix::from_ip(elsewhere(n)));
    let none = peer("none");
    let token = peer("token");
    for n in 0..2 {
        let comes = admission.connect(conn(n), elsewhere(n), false, true);
        assert_eq!(comes, Err(network(n)));
        assert!(admission.has_capacity_for_unknown());
        // The connection of the known peer that ended is gone.
        admission.disconnect(ConnId(n.into()), Some(&peer("p0")));
        admission.connect_for(conn(n), elsewhere(n), false);
        assert!(!admission.has_surplus_of_unknown());
        assert!(admission.has_connection(&peer("p0")) && !admission.has_connection(&none));
    }
    assert!(!admission.has_capacity_for_unknown(), "two of sixty-four");
    // The holder of a token does not count among them, and has a connection.
    assert!(admission.authenticated(conn(0), &token, true));
    assert!(admission.has_capacity_for_unknown());
    assert!(admission.has_connection(&token));
    // More than those give way to every known peer.
    for n in 2..4 {
        admission.connect_for(conn(n), elsewhere(n), false);
    }
    assert!(admission.has_surplus_of_unknown());
}

#[test]
fn the_places_for_unknown_peers_are_a_share_of_all_and_one_at_least() {
    for (connections_max, least) in [(4096, 128), (256, 8), (31, 1), (1, 1)] {
        let limits = EndpointLimits {
            connections_max,
            ..EndpointLimits::default()
        };
        assert_eq!(limits.unknown_peers_min(), least);
        assert!(least <= limits.unknown_peers_max());
    }
}

/// Where each peer has one connection, only a newer one of the same peer may begin.
#[test]
fn a_handshake_begins_where_a_connection_may_be_replaced_by_its_own_peer() {
    let begins = |admission: &mut Admission| {
        let decision = admission.tcp(v4(9));
        matches!(decision, TcpDecision::Accept { .. })
    };
    let mut admission = full(4, 1);
    assert!(!begins(&mut admission));
    // The entry of a peer lets it have one.
    admission.disconnect(ConnId(0), Some(&peer("p0")));
    admission.connect_for(ConnId(0), v4(1), true);
    admission.identify(&peer("p0"), ConnId(0), true, Some(1), true);
    assert!(begins(&mut admission));
    assert_eq!(admission.replaceable(&peer("p0")), [ConnId(0)]);

    // The holder of a token has two.
    let mut admission = full(4, 1);
    for n in 0..2 {
        admission.disconnect(ConnId(n), Some(&peer(&format!("p{n}"))));
        admission.connect_for(ConnId(10 + n), v4(1), false);
        assert!(admission.authenticated(ConnId(10 + n), &peer("token"), true));
        assert_eq!(begins(&mut admission), n == 1);
    }
}
