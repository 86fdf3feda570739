use std::net::Ipv4Addr;

use super::*;

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn admission() -> (Admission, Limits, Instant) {
    let limits = Limits::default();
    (Admission::new(limits), limits, Instant::now())
}

#[test]
fn forged_addresses_are_asked_then_ignored_and_charged_to_nobody() {
    let (mut admission, limits, now) = admission();
    for _ in 0..limits.unvalidated_handshakes_max {
        assert!(matches!(
            admission.quic(Carriage::Quic, v4(1), Address::Unproven, now),
            Quic::Accept(_)
        ));
    }
    for _ in 0..limits.retries_per_second_max {
        assert_eq!(
            admission.quic(Carriage::Quic, v4(1), Address::Unproven, now),
            Quic::Retry(Some(Limit::HandshakesUnproven))
        );
    }
    assert_eq!(
        admission.quic(Carriage::Quic, v4(1), Address::Unproven, now),
        Quic::Ignore
    );
    // The one whose address was forged still gets in by answering.
    assert!(matches!(
        admission.quic(Carriage::Quic, v4(1), Address::Proven, now),
        Quic::Accept(_)
    ));
    let later = now + Duration::from_secs(1);
    assert_eq!(
        admission.quic(Carriage::Quic, v4(1), Address::Unproven, later),
        Quic::Retry(Some(Limit::HandshakesUnproven))
    );
}

/// However little is going on, and without taking a place of those that may be answered.
#[test]
fn who_could_not_be_told_why_proves_its_address_first() {
    let (mut admission, limits, now) = admission();
    let mut ask = |address| admission.quic(Carriage::Iroh, v4(1), address, now);
    for _ in 0..=limits.unvalidated_handshakes_max {
        assert_eq!(ask(Address::Unanswerable), Quic::Retry(None));
    }
    assert!(matches!(ask(Address::Proven), Quic::Accept(_)));
    assert!(matches!(ask(Address::Unproven), Quic::Accept(_)));
    for _ in 0..limits.retries_per_second_max {
        ask(Address::Unanswerable);
    }
    assert_eq!(ask(Address::Unanswerable), Quic::Ignore);
}

#[test]
fn finished_handshakes_make_room() {
    let (mut admission, limits, now) = admission();
    let mut tickets = Vec::new();
    for _ in 0..limits.unvalidated_handshakes_max {
        match admission.quic(Carriage::Quic, v4(1), Address::Unproven, now) {
            Quic::Accept(ticket) => tickets.push(ticket),
            other => panic!("{other:?}"),
        }
    }
    admission.finish(tickets[0]);
    admission.finish(tickets[0]);
    assert!(matches!(
        admission.quic(Carriage::Quic, v4(2), Address::Unproven, now),
        Quic::Accept(_)
    ));
    assert_eq!(
        admission.quic(Carriage::Quic, v4(2), Address::Unproven, now),
        Quic::Retry(Some(Limit::HandshakesUnproven))
    );
}

#[test]
fn the_newest_silent_tcp_connection_takes_the_oldest_place() {
    let (mut admission, limits, _) = admission();
    let mut first = None;
    for _ in 0..limits.tcp_handshakes_per_address_max {
        let Tcp::Accept { ticket, evict } = admission.tcp(v4(1)) else {
            panic!("refused");
        };
        assert_eq!(evict, None);
        first.get_or_insert(ticket);
    }
    // Somebody else is not disturbed.
    assert!(matches!(
        admission.tcp(v4(2)),
        Tcp::Accept { evict: None, .. }
    ));
    assert!(matches!(admission.tcp(v4(1)), Tcp::Accept { evict, .. } if evict == first));
}

#[test]
fn silent_tcp_connections_from_everywhere_are_bounded() {
    let (mut admission, limits, _) = admission();
    for i in 0..1000u32 {
        let from = Ipv4Addr::from(i).into();
        let Tcp::Accept { evict, .. } = admission.tcp(from) else {
            panic!("refused");
        };
        assert_eq!(evict.is_some(), i >= limits.tcp_handshakes_max);
    }
    assert_eq!(admission.tcp.len(), limits.tcp_handshakes_max as usize);
}

#[test]
fn a_prefix_has_a_burst_and_earns_it_back() {
    let (mut admission, limits, now) = admission();
    for _ in 0..limits.handshake_burst {
        assert!(admission.charge(Carriage::Tcp, v4(1), now));
    }
    assert!(!admission.charge(Carriage::Tcp, v4(1), now));
    assert!(admission.charge(Carriage::Quic, v4(1), now));
    assert!(admission.charge(Carriage::Tcp, v4(2), now));
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
        assert!(admission.charge(Carriage::Tcp, Ipv4Addr::from(i).into(), now));
    }
    assert_eq!(admission.buckets.len(), BUCKETS_MAX);
    let later = now + Duration::from_secs(60);
    assert!(admission.charge(Carriage::Tcp, v4(9), later));
    assert_eq!(admission.buckets.len(), 1);
}

#[test]
fn connections_are_limited_per_address_per_peer_and_in_all() {
    let limits = Limits {
        connections_max: 3,
        per_address_max: 2,
        per_peer_max: 1,
        ..Limits::default()
    };
    let mut admission = Admission::new(limits);
    let peer: PeerId = "a".parse().expect("a peer id");
    let identify =
        |admission: &mut Admission, n, own| admission.identify(&peer, ConnId(n), false, own);
    assert_eq!(admission.connect(v4(1)), Ok(()));
    assert_eq!(identify(&mut admission, 1, None), Entry::Welcome);
    assert_eq!(admission.connect(v4(1)), Ok(()));
    assert_eq!(identify(&mut admission, 2, None), Entry::Full);
    assert_eq!(identify(&mut admission, 2, Some(2)), Entry::Welcome);
    assert_eq!(admission.connect(v4(1)), Err(Limit::ConnectionsPerAddress));
    assert_eq!(
        admission.tcp(v4(1)),
        Tcp::Refuse(Limit::ConnectionsPerAddress)
    );
    assert_eq!(admission.connect(v4(2)), Ok(()));
    assert_eq!(admission.connect(v4(3)), Err(Limit::Connections));
    admission.disconnect(v4(1), Some((&peer, ConnId(1))));
    admission.disconnect(v4(1), Some((&peer, ConnId(2))));
    assert_eq!(admission.connect(v4(3)), Ok(()));
    assert_eq!(identify(&mut admission, 3, None), Entry::Welcome);
}

#[test]
fn other_limits_count_at_once_and_end_nobody() {
    let (mut admission, limits, _) = admission();
    for _ in 0..3 {
        assert_eq!(admission.connect(v4(1)), Ok(()));
    }
    admission.set_limits(Limits {
        per_address_max: 1,
        ..limits
    });
    assert_eq!(admission.connect(v4(1)), Err(Limit::ConnectionsPerAddress));
    assert_eq!(admission.connections, 3);
    admission.set_limits(limits);
    assert_eq!(admission.connect(v4(1)), Ok(()));
}

#[test]
fn who_guesses_is_shut_out_with_its_network() {
    let (mut admission, limits, now) = admission();
    for _ in 1..limits.failures_per_minute_max {
        assert_eq!(admission.fail(v4(1), now), None);
    }
    assert!(admission.fail(v4(1), now).is_some());
    assert!(admission.is_penalised(v4(1), now) && !admission.is_penalised(v4(2), now));
}
