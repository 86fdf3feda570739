mod closing;
mod crowd;
mod reserved_slots;

use std::net::Ipv4Addr;

use alknet_core::PeerKey;

use super::known_addresses::{ADDRESSES_MAX, PEERS_MAX};
use super::rates::BUCKETS_MAX;
use super::*;

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn peer(name: &str) -> PeerId {
    name.parse().expect("a peer id")
}

/// A peer of few rights.
fn known(name: &str, key: u8) -> RecognisedPeer {
    RecognisedPeer {
        id: peer(name),
        key: PeerKey::Ed25519([key; 32]),
        is_admin: false,
    }
}

fn admission() -> (Admission, EndpointLimits, Instant) {
    let limits = EndpointLimits::default();
    (Admission::new(limits), limits, Instant::now())
}

#[test]
fn forged_addresses_get_a_retry_then_nothing_and_are_not_charged() {
    let (mut admission, limits, now) = admission();
    for _ in 0..limits.unvalidated_handshakes_max {
        assert!(matches!(
            admission.quic(Carriage::Quic, v4(1), AddressValidation::Unproven, now),
            QuicDecision::Accept { .. }
        ));
    }
    for _ in 0..limits.retries_per_second_max {
        assert_eq!(
            admission.quic(Carriage::Quic, v4(1), AddressValidation::Unproven, now),
            QuicDecision::Retry(Some(AdmissionLimit::HandshakesUnproven))
        );
    }
    assert_eq!(
        admission.quic(Carriage::Quic, v4(1), AddressValidation::Unproven, now),
        QuicDecision::Ignore
    );
    // The one whose address was forged still gets in by answering.
    assert!(matches!(
        admission.quic(Carriage::Quic, v4(1), AddressValidation::Proven, now),
        QuicDecision::Accept { .. }
    ));
    let later = now + Duration::from_secs(1);
    assert_eq!(
        admission.quic(Carriage::Quic, v4(1), AddressValidation::Unproven, later),
        QuicDecision::Retry(Some(AdmissionLimit::HandshakesUnproven))
    );
}

/// However little is going on, and without taking a place of those that may be answered.
#[test]
fn a_client_without_a_refusal_proves_its_address_first() {
    let (mut admission, limits, now) = admission();
    let mut ask = |address| admission.quic(Carriage::Iroh, v4(1), address, now);
    for _ in 0..=limits.unvalidated_handshakes_max {
        assert_eq!(
            ask(AddressValidation::Unanswerable),
            QuicDecision::Retry(None)
        );
    }
    assert!(matches!(
        ask(AddressValidation::Proven),
        QuicDecision::Accept { .. }
    ));
    assert!(matches!(
        ask(AddressValidation::Unproven),
        QuicDecision::Accept { .. }
    ));
    for _ in 0..limits.retries_per_second_max {
        ask(AddressValidation::Unanswerable);
    }
    assert_eq!(ask(AddressValidation::Unanswerable), QuicDecision::Ignore);
}

/// Whether or not there are so many that the address has to be proven before.
#[test]
fn a_network_that_used_up_its_rate_proves_its_address_and_is_refused() {
    let (mut admission, limits, now) = admission();
    for _ in 0..limits.handshake_burst {
        let QuicDecision::Accept { ticket, paid, .. } =
            admission.quic(Carriage::Quic, v4(1), AddressValidation::Unproven, now)
        else {
            panic!("refused");
        };
        assert!(!paid);
        admission.finish(ticket);
        // It is proven once the handshake is done.
        assert!(admission.charge(Carriage::Quic, v4(1), now));
    }
    let mut ask = |address| admission.quic(Carriage::Quic, v4(2), address, now);
    assert_eq!(
        ask(AddressValidation::Unproven),
        QuicDecision::Retry(Some(AdmissionLimit::HandshakeRate))
    );
    assert_eq!(
        ask(AddressValidation::Proven),
        QuicDecision::Refuse(AdmissionLimit::HandshakeRate)
    );
    let later = now + Duration::from_secs(1);
    let decision = admission.quic(Carriage::Quic, v4(2), AddressValidation::Unproven, later);
    assert!(matches!(decision, QuicDecision::Accept { .. }));
}

/// Each is given up at once, by the client or by a forger in its name.
#[test]
fn handshakes_without_proof_have_a_rate_of_all() {
    let (mut admission, limits, now) = admission();
    let begin = |admission: &mut Admission, n, now| {
        let decision = admission.quic(
            Carriage::Quic,
            elsewhere(n),
            AddressValidation::Unproven,
            now,
        );
        if let QuicDecision::Accept { ticket, .. } = decision {
            admission.finish(ticket);
        }
        decision
    };
    for n in 0..limits.unvalidated_handshakes_per_second_max {
        assert!(matches!(
            begin(&mut admission, n, now),
            QuicDecision::Accept { .. }
        ));
    }
    let retry = QuicDecision::Retry(Some(AdmissionLimit::HandshakesUnproven));
    assert_eq!(begin(&mut admission, 1, now), retry);
    let later = now + Duration::from_secs(1);
    assert!(matches!(
        begin(&mut admission, 1, later),
        QuicDecision::Accept { .. }
    ));
}

#[test]
fn finished_handshakes_make_room() {
    let (mut admission, limits, now) = admission();
    let mut tickets = Vec::new();
    for _ in 0..limits.unvalidated_handshakes_max {
        match admission.quic(Carriage::Quic, v4(1), AddressValidation::Unproven, now) {
            QuicDecision::Accept { ticket, .. } => tickets.push(ticket),
            other => panic!("{other:?}"),
        }
    }
    admission.finish(tickets[0]);
    admission.finish(tickets[0]);
    assert!(matches!(
        admission.quic(Carriage::Quic, v4(2), AddressValidation::Unproven, now),
        QuicDecision::Accept { .. }
    ));
    assert_eq!(
        admission.quic(Carriage::Quic, v4(2), AddressValidation::Unproven, now),
        QuicDecision::Retry(Some(AdmissionLimit::HandshakesUnproven))
    );
}

#[test]
fn the_newest_silent_tcp_connection_takes_the_oldest_slot() {
    let (mut admission, limits, _) = admission();
    let mut first = None;
    for _ in 0..limits.tcp_handshakes_per_address_max {
        let TcpDecision::Accept { ticket, evict } = admission.tcp(v4(1)) else {
            panic!("refused");
        };
        assert_eq!(evict, None);
        first.get_or_insert(ticket);
    }
    // Another network is not disturbed.
    assert!(matches!(
        admission.tcp(elsewhere(2)),
        TcpDecision::Accept { evict: None, .. }
    ));
    assert!(matches!(admission.tcp(v4(1)), TcpDecision::Accept { evict, .. } if evict == first));
}

#[test]
fn silent_tcp_connections_from_everywhere_are_bounded() {
    let (mut admission, limits, _) = admission();
    for i in 0..1000u32 {
        let from = elsewhere(i);
        let TcpDecision::Accept { evict, .. } = admission.tcp(from) else {
            panic!("refused");
        };
        assert_eq!(evict.is_some(), i >= limits.tcp_handshakes_max);
    }
    assert_eq!(admission.tcp.len(), limits.tcp_handshakes_max as usize);
}

/// Thousands of networks, each with one that stalls.
#[test]
fn an_address_of_a_known_peer_keeps_its_slot_among_silent_ones() {
    let (mut admission, limits, now) = admission();
    admission.remember(&known("edge", 1), v4(1), now);
    let TcpDecision::Accept { ticket: known, .. } = admission.tcp(v4(1)) else {
        panic!("refused");
    };
    for i in 0..1000u32 {
        let TcpDecision::Accept { evict, .. } = admission.tcp(elsewhere(i)) else {
            panic!("refused");
        };
        assert_ne!(evict, Some(known));
        assert_eq!(evict.is_some(), i >= limits.tcp_handshakes_max - 1);
    }
    assert!(admission.tcp.leave(known));
}

#[test]
fn a_prefix_has_a_burst_and_earns_it_back() {
    let (mut admission, limits, now) = admission();
    for _ in 0..limits.handshake_burst {
        assert!(admission.charge(Carriage::Tcp, v4(1), now));
    }
    assert!(!admission.charge(Carriage::Tcp, v4(1), now));
    assert!(admission.charge(Carriage::Quic, v4(1), now));
    assert!(admission.charge(Carriage::Tcp, elsewhere(2), now));
    admission.refund(Carriage::Tcp, v4(1));
    assert!(admission.charge(Carriage::Tcp, v4(1), now));
    let later = now + Duration::from_secs(1);
    for _ in 0..limits.handshakes_per_second {
        assert!(admission.charge(Carriage::Tcp, v4(1), later));
    }
    assert!(!admission.charge(Carriage::Tcp, v4(1), later));
}

#[test]
fn remembered_prefixes_are_bounded() {
    let (mut admission, _, now) = admission();
    for i in 0..BUCKETS_MAX as u32 + 100 {
        assert!(admission.charge(Carriage::Tcp, elsewhere(i), now));
    }
    assert_eq!(admission.buckets.len(), BUCKETS_MAX);
    let later = now + Duration::from_secs(60);
    assert!(admission.charge(Carriage::Tcp, v4(9), later));
    assert_eq!(admission.buckets.len(), 1);
}

/// Another network each.
fn elsewhere(n: u32) -> IpAddr {
    Ipv4Addr::from(n << 8).into()
}

#[test]
fn addresses_of_one_network_count_as_one() {
    let limits = EndpointLimits {
        per_address_max: 2,
        ..EndpointLimits::default()
    };
    let mut admission = Admission::new(limits);
    let v6 = |n: u16| -> IpAddr { [0x2001, 0xdb8, 0, n, 0, 0, 0, 1].into() };
    for network in [[v4(1), v4(2), v4(3)], [v6(1), v6(2), v6(3)]] {
        let conn = |n: usize| ConnId(u64::try_from(n).unwrap_or_default());
        assert_eq!(admission.connect(conn(1), network[0], false, true), Ok(()));
        assert_eq!(admission.connect(conn(2), network[1], false, true), Ok(()));
        let full = CapacityScope::Network(NetworkPrefix::from_ip(network[2]));
        assert_eq!(
            admission.connect(conn(3), network[2], false, true),
            Err(full)
        );
        assert_eq!(full.limit(), AdmissionLimit::ConnectionsPerAddress);
        // A known peer behind the same network does not count for it, nor does one that proves itself later.
        assert_eq!(admission.connect(conn(4), network[2], true, true), Ok(()));
        assert!(admission.authenticated(conn(1), &peer("a"), true));
        assert_eq!(admission.connect(conn(3), network[2], false, true), Ok(()));
        for n in 1..=4 {
            admission.disconnect(conn(n), None);
        }
    }
    assert_eq!((admission.connections, admission.by_network.len()), (0, 0));
    assert!(admission.token_holders.is_empty() && admission.by_token.is_empty());
}

/// By one token of the least scope, and by many.
#[test]
fn tokens_take_no_more_than_half_of_the_slots() {
    let limits = EndpointLimits {
        connections_max: 16,
        per_address_max: 4,
        ..EndpointLimits::default()
    };
    let mut admission = Admission::new(limits);
    let mut connect = |n: u64, who: &str| {
        let place = admission.connect(ConnId(n), elsewhere(n as u32), false, true);
        place.is_ok() && admission.authenticated(ConnId(n), &peer(who), true)
    };
    for n in 0..4 {
        assert!(connect(n, "one"));
    }
    assert!(!connect(4, "one"), "it stays one of the unknown ones");
    for n in 5..9 {
        assert!(connect(n, "two"));
    }
    assert!(!connect(9, "three"));
    admission.disconnect(ConnId(0), None);
    assert!(admission.authenticated(ConnId(4), &peer("one"), true));
    assert!(admission.authenticated(ConnId(4), &peer("one"), true));
    assert_eq!(admission.by_token[&peer("one")], 4);
}

#[test]
fn a_share_of_the_slots_is_for_known_peers() {
    let limits = EndpointLimits {
        connections_max: 8,
        per_peer_max: 1,
        ..EndpointLimits::default()
    };
    let mut admission = Admission::new(limits);
    for n in 0..6 {
        assert_eq!(
            admission.connect(ConnId(n), elsewhere(n as u32), false, true),
            Ok(())
        );
    }
    let one_more =
        |admission: &mut Admission, known| admission.connect(ConnId(9), elsewhere(9), known, true);
    let full = CapacityScope::UnknownPeers(NetworkPrefix::from_ip(elsewhere(9)));
    assert_eq!(one_more(&mut admission, false), Err(full));
    assert_eq!(full.limit(), AdmissionLimit::Connections);
    for n in 6..8 {
        assert_eq!(
            admission.connect(ConnId(n), elsewhere(1), true, true),
            Ok(())
        );
    }
    // From here on one of an unknown peer has to go for a known one: the handshake is let begin.
    assert_eq!(one_more(&mut admission, true), Err(CapacityScope::All));
    assert_eq!(CapacityScope::All.limit(), AdmissionLimit::Connections);
    assert!(matches!(
        admission.tcp(elsewhere(9)),
        TcpDecision::Accept { .. }
    ));
    admission.connect_for(ConnId(9), elsewhere(9), true);
    for n in 0..6 {
        admission.disconnect(ConnId(n), None);
    }
    for n in 10..15 {
        admission.connect_for(ConnId(n), elsewhere(1), true);
    }
    // No connection can be ended for a newcomer: the handshake is refused before it begins.
    assert_eq!(
        admission.tcp(elsewhere(9)),
        TcpDecision::Refuse(AdmissionLimit::Connections)
    );
    let peer = peer("a");
    let identify =
        |admission: &mut Admission, n, own| admission.identify(&peer, ConnId(n), false, own, true);
    assert_eq!(identify(&mut admission, 6, None), SlotDecision::Welcome);
    assert_eq!(identify(&mut admission, 7, None), SlotDecision::Full);
    assert_eq!(identify(&mut admission, 7, Some(2)), SlotDecision::Welcome);
    admission.disconnect(ConnId(6), Some(&peer));
    admission.disconnect(ConnId(7), Some(&peer));
    assert_eq!(identify(&mut admission, 8, None), SlotDecision::Welcome);
}

/// The handshake begins, because a connection of the fullest may end for a peer that has none.
#[test]
fn peers_that_have_every_slot_let_a_handshake_begin_unless_each_has_one() {
    let limits = EndpointLimits {
        connections_max: 4,
        per_peer_max: 2,
        ..EndpointLimits::default()
    };
    let now = Instant::now();
    for (each, begins) in [(1, false), (2, true)] {
        let mut admission = Admission::new(limits);
        for n in 0..4 {
            assert_eq!(admission.connect(ConnId(n), v4(1), true, true), Ok(()));
            let who = peer(&format!("p{}", n / each));
            let decision = admission.identify(&who, ConnId(n), false, None, true);
            assert_eq!(decision, SlotDecision::Welcome);
        }
        let decision = admission.tcp(v4(9));
        assert_eq!(matches!(decision, TcpDecision::Accept { .. }), begins);
        for proven in [AddressValidation::Unproven, AddressValidation::Proven] {
            let decision = admission.quic(Carriage::Quic, v4(9), proven, now);
            assert_eq!(matches!(decision, QuicDecision::Accept { .. }), begins);
        }
        assert_eq!(admission.has_capacity(&peer("p0"), None), each == 1);
        assert!(admission.has_capacity(&peer("p0"), Some(3)));
    }
}

#[test]
fn other_limits_count_at_once_and_end_no_connection() {
    let (mut admission, limits, _) = admission();
    for n in 0..3 {
        assert_eq!(admission.connect(ConnId(n), v4(1), false, true), Ok(()));
    }
    admission.set_limits(EndpointLimits {
        per_address_max: 1,
        ..limits
    });
    let full = CapacityScope::Network(NetworkPrefix::from_ip(v4(1)));
    assert_eq!(admission.connect(ConnId(3), v4(1), false, true), Err(full));
    assert_eq!(admission.connections, 3);
    admission.set_limits(limits);
    assert_eq!(admission.connect(ConnId(3), v4(1), false, true), Ok(()));
}

/// However many addresses with proof stall in the middle: the newest gets in, and the network that has the
/// most pays for it.
#[test]
fn proven_handshakes_that_stall_give_way() {
    let (mut admission, limits, now) = admission();
    let mut ask = |from| match admission.quic(Carriage::Quic, from, AddressValidation::Proven, now)
    {
        QuicDecision::Accept { ticket, evict, .. } => (ticket, evict),
        other => panic!("{other:?}"),
    };
    let (honest, _) = ask(elsewhere(1));
    let crowd: Vec<_> = (0..limits.validated_handshakes_max - 1)
        .map(|n| ask(elsewhere(2 + n / 16)).0)
        .collect();
    assert_eq!(ask(elsewhere(1000)).1, Some(crowd[0]));
    assert_eq!(ask(elsewhere(1001)).1, Some(crowd[16]));
    assert_ne!(ask(elsewhere(1002)).1, Some(honest));
}

/// Another host in the network of a known peer asks for all that the network has.
#[test]
fn a_known_peers_address_does_not_pay_for_its_neighbours() {
    let (mut admission, limits, now) = admission();
    admission.remember(&known("edge", 1), v4(1), now);
    for _ in 0..limits.handshake_burst {
        assert!(admission.charge(Carriage::Quic, v4(2), now));
    }
    assert!(!admission.charge(Carriage::Quic, v4(3), now));
    for _ in 0..limits.handshake_burst {
        assert!(admission.charge(Carriage::Quic, v4(1), now));
    }
    assert!(
        !admission.charge(Carriage::Quic, v4(1), now),
        "it pays for itself"
    );
}

/// A peer of the least rights makes handshakes without end, some with proof of its address before and some without.
#[test]
fn a_known_peer_has_many_handshakes_and_not_any_number() {
    let (mut admission, limits, now) = admission();
    let edge = known("edge", 1);
    let handshake =
        |admission: &mut Admission, who: &RecognisedPeer, from, address, now| match admission.quic(
            Carriage::Quic,
            from,
            address,
            now,
        ) {
            QuicDecision::Accept { ticket, paid, .. } => {
                admission.finish(ticket);
                admission.recognise(Carriage::Quic, who, from, paid, now)
            }
            _ => false,
        };
    let own = 1 + PEER_TIMES * limits.handshake_burst;
    for (n, address) in (0..own).zip(
        [AddressValidation::Proven, AddressValidation::Unproven]
            .into_iter()
            .cycle(),
    ) {
        // As many without proof as there may be in a second.
        let now = now + Duration::from_secs(u64::from(n / 400));
        let served = handshake(&mut admission, &edge, v4(1), address, now);
        assert!(served, "{n}: a known peer pays nothing");
    }
    // What its address has comes beside that, and no more: then it is refused before the node signs anything.
    let now = now + Duration::from_secs(1);
    let mut more = 0;
    while handshake(&mut admission, &edge, v4(1), AddressValidation::Proven, now) {
        more += 1;
        assert!(more < 10 * limits.handshake_burst, "without end");
    }
    let decision = admission.quic(Carriage::Quic, v4(1), AddressValidation::Proven, now);
    assert_eq!(
        decision,
        QuicDecision::Refuse(AdmissionLimit::HandshakeRate)
    );
    // Nor from elsewhere, but for what every peer has there: the network once, and then its address.
    let elsewhere_too = (0..2 * limits.handshake_burst).filter(|_| {
        handshake(
            &mut admission,
            &edge,
            elsewhere(7),
            AddressValidation::Proven,
            now,
        )
    });
    assert_eq!(elsewhere_too.count(), 1 + limits.handshake_burst as usize);
    // Another one has its own.
    let ada = known("ada", 2);
    assert!(handshake(
        &mut admission,
        &ada,
        elsewhere(8),
        AddressValidation::Proven,
        now
    ));
    let later = now + Duration::from_secs(1);
    assert!(handshake(
        &mut admission,
        &edge,
        v4(1),
        AddressValidation::Proven,
        later
    ));
}

/// A peer of the least rights was seen at a thousand addresses. Thousands of silent connections come from those.
#[test]
fn addresses_of_one_peer_do_not_take_every_handshake() {
    let (mut admission, limits, now) = admission();
    admission.remember(&known("admin", 1), v4(1), now);
    let TcpDecision::Accept { ticket: admin, .. } = admission.tcp(v4(1)) else {
        panic!("refused");
    };
    for n in 0..1000 {
        admission.remember(&known("edge", 2), elsewhere(n), now);
    }
    assert_eq!(admission.known_addresses.len(), 1 + ADDRESSES_MAX);
    let TcpDecision::Accept { ticket: honest, .. } = admission.tcp(elsewhere(5000)) else {
        panic!("refused");
    };
    for n in 0..4000 {
        let TcpDecision::Accept { evict, .. } = admission.tcp(elsewhere(990 + n % 10)) else {
            panic!("refused");
        };
        assert!(evict != Some(admin) && evict != Some(honest), "{n}");
    }
    // Of many peers, half of the places at most.
    for n in 0..200 {
        let edge = format!("edge-{}", n / ADDRESSES_MAX as u32);
        admission.remember(&known(&edge, 2), elsewhere(n), now);
    }
    for n in 0..4000 {
        admission.tcp(elsewhere(n % 200));
    }
    let half = limits.tcp_handshakes_max as usize / 2;
    assert_eq!(admission.tcp.of_addresses(), half);
    assert!(admission.tcp.leave(admin));
}

#[test]
fn the_addresses_of_a_peer_are_forgotten_with_it() {
    let (mut admission, _, now) = admission();
    for name in ["one", "two"] {
        admission.remember(&known(name, 1), v4(1), now);
    }
    // Others of a peer take no address from another peer that was seen there.
    for n in 1..=ADDRESSES_MAX as u32 {
        admission.remember(&known("two", 1), elsewhere(n), now);
    }
    assert!(admission.known_addresses.contains(v4(1)));
    admission.forget(&[peer("one")]);
    assert!(!admission.known_addresses.contains(v4(1)));
    assert_eq!(admission.remembered(), [known("two", 1)]);
    for n in 0..PEERS_MAX as u64 {
        let later = now + Duration::from_secs(1 + n);
        admission.remember(&known(&format!("p{n}"), 1), v4(9), later);
    }
    assert_eq!(admission.remembered().len(), PEERS_MAX);
    assert_eq!(admission.known_addresses.len(), 1);
}

/// A /48 is 256 networks, and one host's.
#[test]
fn a_site_counts_for_a_few_of_its_networks() {
    let (mut admission, limits, now) = admission();
    let v6 = |site: u16, n: u32| -> IpAddr {
        let network = u16::try_from(n % 256).expect("a small number") << 8;
        [0x2001, 0xdb8, site, network, 0, 0, 0, 1].into()
    };
    let most = limits.per_address_max * SITE_NETWORKS;
    for n in 0..most {
        assert_eq!(
            admission.connect(ConnId(n.into()), v6(1, n), false, true),
            Ok(())
        );
    }
    let full = CapacityScope::Site(NetworkPrefix::from_ip(v6(1, 7)));
    let conn = ConnId(most.into());
    assert_eq!(admission.connect(conn, v6(1, 7), false, true), Err(full));
    assert_eq!(admission.connect(conn, v6(2, 7), false, true), Ok(()));
    admission.disconnect(ConnId(0), None);
    let conn = ConnId(u64::from(most) + 1);
    assert_eq!(admission.connect(conn, v6(1, 7), false, true), Ok(()));
    let burst = limits.handshake_burst * SITE_NETWORKS;
    let charge =
        |admission: &mut Admission, site, n| admission.charge(Carriage::Quic, v6(site, n), now);
    assert!((0..burst).all(|n| charge(&mut admission, 1, n)));
    assert!(!charge(&mut admission, 1, 255));
    let decision = admission.quic(Carriage::Quic, v6(1, 255), AddressValidation::Unproven, now);
    assert_eq!(
        decision,
        QuicDecision::Retry(Some(AdmissionLimit::HandshakeRate))
    );
    assert!(charge(&mut admission, 2, 0));
    admission.refund(Carriage::Quic, v6(1, 0));
    assert!(charge(&mut admission, 1, 255));
}

#[test]
fn a_guessing_client_is_shut_out_with_its_network() {
    let (mut admission, limits, now) = admission();
    for _ in 1..limits.failures_per_minute_max {
        assert_eq!(admission.fail(v4(1), now), None);
    }
    assert!(admission.fail(v4(1), now).is_some());
    assert!(admission.penalty(v4(2), now).is_some());
    assert_eq!(admission.penalty(elsewhere(2), now), None);
    let all = admission.penalties(now);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0.to_string(), "192.0.2.0/24");
}
