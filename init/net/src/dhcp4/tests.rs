use dhcproto::{
    Decodable, Encodable,
    v4::{self, DhcpOption, MessageType, OptionCode},
};

use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn client() -> Dhcp4Client {
    Dhcp4Client::new(MAC, "box", 1)
}

fn events(client: &mut Dhcp4Client) -> Vec<Dhcp4Event> {
    std::iter::from_fn(|| client.poll_event()).collect()
}

/// The one message that the client just sent.
fn sent(client: &mut Dhcp4Client) -> (Ipv4Addr, v4::Message) {
    let mut all = events(client);
    assert_eq!(all.len(), 1, "one event expected: {all:?}");
    match all.remove(0) {
        Dhcp4Event::Send { to, bytes } => {
            (to, v4::Message::from_bytes(&bytes).expect("well formed"))
        }
        other => panic!("a message expected: {other:?}"),
    }
}

fn kind(message: &v4::Message) -> MessageType {
    message.opts().msg_type().expect("has a type")
}

/// A server's answer to a message, with an hour's lease.
fn reply(to: &v4::Message, kind: MessageType, change: impl FnOnce(&mut v4::Message)) -> Vec<u8> {
    let mut message = v4::Message::default();
    message
        .set_opcode(v4::Opcode::BootReply)
        .set_xid(to.xid())
        .set_chaddr(to.chaddr());
    message.set_yiaddr(ADDRESS);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(SERVER));
    options.insert(DhcpOption::AddressLeaseTime(3600));
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    options.insert(DhcpOption::Router(vec![SERVER]));
    change(&mut message);
    message.to_vec().expect("encodes")
}

/// A client that got its address at time zero.
fn bound() -> Dhcp4Client {
    let mut client = client();
    client.start(secs(0));
    let (_, discover) = sent(&mut client);
    client.handle_packet(secs(0), &reply(&discover, MessageType::Offer, |_| {}));
    let (_, request) = sent(&mut client);
    client.handle_packet(secs(0), &reply(&request, MessageType::Ack, |_| {}));
    assert!(matches!(events(&mut client)[..], [Dhcp4Event::Bound(_)]));
    client
}

/// Lets the client's own timer expire.
fn wait(client: &mut Dhcp4Client) -> Duration {
    let at = client.poll_timeout().expect("a timer is set");
    client.handle_timeout(at);
    at
}

#[test]
fn four_messages_bring_an_address() {
    let mut client = client();
    assert_eq!(client.poll_timeout(), None);
    client.start(secs(5));
    let (to, discover) = sent(&mut client);
    assert_eq!(
        (to, kind(&discover)),
        (Ipv4Addr::BROADCAST, MessageType::Discover)
    );
    assert!(discover.flags().broadcast());

    client.handle_packet(secs(5), &reply(&discover, MessageType::Offer, |_| {}));
    let (to, request) = sent(&mut client);
    assert_eq!(
        (to, kind(&request)),
        (Ipv4Addr::BROADCAST, MessageType::Request)
    );
    let chosen = request.opts().get(OptionCode::ServerIdentifier);
    assert_eq!(chosen, Some(&DhcpOption::ServerIdentifier(SERVER)));

    client.handle_packet(secs(5), &reply(&request, MessageType::Ack, |_| {}));
    let lease = client.lease().cloned().expect("bound");
    assert_eq!(events(&mut client), [Dhcp4Event::Bound(lease.clone())]);
    assert_eq!((lease.address, lease.prefix_len), (ADDRESS, 24));
    assert_eq!(lease.routes, [(Ipv4Addr::UNSPECIFIED, 0, SERVER)]);
    assert_eq!(client.poll_timeout(), Some(secs(5 + 1800)));
    assert_eq!(client.refused(), 0);
}

#[test]
fn a_silent_network_is_asked_for_ever_with_longer_pauses() {
    let mut client = client();
    client.start(secs(0));
    sent(&mut client);
    let mut last = secs(0);
    for n in 0..50_u32 {
        let at = wait(&mut client);
        assert_eq!(kind(&sent(&mut client).1), MessageType::Discover);
        let middle = 1000 * 2_u128.pow(n.min(6));
        let pause = (at - last).as_millis();
        assert!(
            (middle * 8 / 10..=middle * 12 / 10).contains(&pause),
            "{n}: {pause} ms"
        );
        last = at;
    }
    // The client hears a server that appears late at its next message.
    wait(&mut client);
    let (_, discover) = sent(&mut client);
    client.handle_packet(last, &reply(&discover, MessageType::Offer, |_| {}));
    assert_eq!(kind(&sent(&mut client).1), MessageType::Request);
}

#[test]
fn an_offer_that_is_not_honoured_is_given_up() {
    let mut client = client();
    client.start(secs(0));
    let (_, discover) = sent(&mut client);
    client.handle_packet(secs(0), &reply(&discover, MessageType::Offer, |_| {}));
    for _ in 0..REQUESTS_MAX {
        assert_eq!(kind(&sent(&mut client).1), MessageType::Request);
        wait(&mut client);
    }
    assert_eq!(kind(&sent(&mut client).1), MessageType::Discover);
}

#[test]
fn renewal_asks_the_server_and_extends_the_lease() {
    let mut client = bound();
    let at = wait(&mut client);
    assert_eq!(at, secs(1800));
    let (to, request) = sent(&mut client);
    assert_eq!((to, request.ciaddr()), (SERVER, ADDRESS));
    assert!(!request.flags().broadcast());
    assert!(request.opts().get(OptionCode::ServerIdentifier).is_none());
    assert!(request.opts().get(OptionCode::RequestedIpAddress).is_none());
    client.handle_packet(at, &reply(&request, MessageType::Ack, |_| {}));
    assert!(matches!(events(&mut client)[..], [Dhcp4Event::Bound(_)]));
    assert_eq!(client.poll_timeout(), Some(secs(3600)));
}

#[test]
fn without_answers_it_rebinds_then_loses_the_address_and_starts_over() {
    let mut client = bound();
    let mut destinations = Vec::new();
    let lost_at = loop {
        let at = wait(&mut client);
        let mut all = events(&mut client);
        if all[0] == Dhcp4Event::Lost(LeaseLoss::Expired) {
            assert_eq!(all.len(), 2, "starts again at once");
            break at;
        }
        let Dhcp4Event::Send { to, .. } = all.remove(0) else {
            panic!("a question expected");
        };
        destinations.push((at, to));
    };
    assert_eq!(lost_at, secs(3600));
    let t2 = secs(3149);
    assert!(
        destinations
            .iter()
            .all(|(at, to)| (*to == SERVER) == (*at < t2))
    );
    assert!(
        destinations.iter().any(|(at, _)| *at == t2),
        "rebinds exactly at T2"
    );
    assert!(
        destinations.len() < 12,
        "{} questions in an hour",
        destinations.len()
    );
}

#[test]
fn another_server_may_answer_after_t2_and_only_then() {
    let mut client = bound();
    let at = wait(&mut client);
    let (_, request) = sent(&mut client);
    let other = Ipv4Addr::new(192, 0, 2, 2);
    let from_other = |m: &mut v4::Message| {
        m.opts_mut().insert(DhcpOption::ServerIdentifier(other));
    };
    client.handle_packet(at, &reply(&request, MessageType::Ack, from_other));
    assert_eq!((events(&mut client).len(), client.refused()), (0, 1));
    while wait(&mut client) < secs(3149) {
        events(&mut client);
    }
    let (to, request) = sent(&mut client);
    assert_eq!(to, Ipv4Addr::BROADCAST);
    client.handle_packet(secs(3149), &reply(&request, MessageType::Ack, from_other));
    assert_eq!(client.lease().map(|l| l.server), Some(other));
}

#[test]
fn a_refusal_removes_the_address_and_asks_again_after_a_pause() {
    let mut client = bound();
    let at = wait(&mut client);
    let (_, request) = sent(&mut client);
    client.handle_packet(at, &reply(&request, MessageType::Nak, |_| {}));
    assert_eq!(events(&mut client), [Dhcp4Event::Lost(LeaseLoss::Refused)]);
    assert_eq!(wait(&mut client), at + NAK_PAUSE);
    let (_, discover) = sent(&mut client);
    assert_eq!(kind(&discover), MessageType::Discover);
    assert!(
        discover
            .opts()
            .get(OptionCode::RequestedIpAddress)
            .is_none()
    );
}

#[test]
fn the_address_survives_a_pulled_cable_and_is_asked_for_again() {
    let mut client = bound();
    client.pause();
    assert_eq!(
        client.poll_timeout(),
        Some(secs(3600)),
        "the lease still ends"
    );
    client.start(secs(100));
    let (_, discover) = sent(&mut client);
    let wish = discover.opts().get(OptionCode::RequestedIpAddress);
    assert_eq!(wish, Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
    let elsewhere = |m: &mut v4::Message| {
        m.set_yiaddr([198, 51, 100, 9]);
    };
    client.handle_packet(secs(100), &reply(&discover, MessageType::Offer, elsewhere));
    let (_, request) = sent(&mut client);
    client.handle_packet(secs(101), &reply(&request, MessageType::Ack, elsewhere));
    let all = events(&mut client);
    assert!(
        matches!(&all[..], [Dhcp4Event::Bound(l)] if l.address == Ipv4Addr::new(198, 51, 100, 9))
    );
}

#[test]
fn a_lease_that_ends_while_the_cable_is_out_is_removed() {
    let mut client = bound();
    client.pause();
    wait(&mut client);
    assert_eq!(events(&mut client), [Dhcp4Event::Lost(LeaseLoss::Expired)]);
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn an_endless_lease_is_never_renewed() {
    let mut client = client();
    client.start(secs(0));
    let (_, discover) = sent(&mut client);
    let endless = |m: &mut v4::Message| {
        m.opts_mut().insert(DhcpOption::AddressLeaseTime(u32::MAX));
    };
    client.handle_packet(secs(0), &reply(&discover, MessageType::Offer, endless));
    let (_, request) = sent(&mut client);
    client.handle_packet(secs(0), &reply(&request, MessageType::Ack, endless));
    assert!(matches!(events(&mut client)[..], [Dhcp4Event::Bound(_)]));
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn hostile_offers_are_ignored_and_counted() {
    type Change = fn(&mut v4::Message);
    let changes: &[Change] = &[
        |m| {
            m.set_xid(m.xid() ^ 1);
        },
        |m| {
            m.set_chaddr(&[9; 6]);
        },
        |m| {
            m.set_yiaddr([0, 0, 0, 0]);
        },
        |m| {
            m.set_yiaddr([127, 0, 0, 1]);
        },
        |m| {
            m.set_yiaddr([255, 255, 255, 255]);
        },
        |m| {
            m.set_yiaddr([192, 0, 2, 255]);
        },
        |m| {
            m.set_opcode(v4::Opcode::BootRequest);
        },
        |m| {
            m.opts_mut().remove(OptionCode::ServerIdentifier);
        },
        |m| {
            m.opts_mut().remove(OptionCode::AddressLeaseTime);
        },
        |m| {
            m.opts_mut().insert(DhcpOption::AddressLeaseTime(0));
        },
        |m| {
            m.opts_mut()
                .insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0)));
        },
        |m| {
            m.opts_mut()
                .insert(DhcpOption::SubnetMask(Ipv4Addr::UNSPECIFIED));
        },
        |m| {
            m.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Ack));
        },
        |m| {
            m.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Nak));
        },
        |m| {
            m.opts_mut()
                .insert(DhcpOption::MessageType(MessageType::Inform));
        },
    ];
    let mut client = client();
    client.start(secs(0));
    let (_, discover) = sent(&mut client);
    for (n, change) in changes.iter().enumerate() {
        client.handle_packet(secs(0), &reply(&discover, MessageType::Offer, change));
        assert!(events(&mut client).is_empty(), "case {n}");
        assert_eq!(client.refused(), n as u64 + 1, "case {n}");
    }
    client.handle_packet(secs(0), b"short");
    client.handle_packet(secs(0), &reply(&discover, MessageType::Offer, |_| {}));
    assert_eq!(
        kind(&sent(&mut client).1),
        MessageType::Request,
        "still works"
    );
}

#[test]
fn texts_that_would_break_a_file_are_dropped() {
    let mut client = client();
    client.start(secs(0));
    let (_, discover) = sent(&mut client);
    client.handle_packet(secs(0), &reply(&discover, MessageType::Offer, |_| {}));
    let (_, request) = sent(&mut client);
    let hostile = |m: &mut v4::Message| {
        m.opts_mut()
            .insert(DhcpOption::DomainName("a\nnameserver 6.6.6.6".to_owned()));
        m.opts_mut().insert(DhcpOption::Hostname("../x".to_owned()));
        m.opts_mut().insert(DhcpOption::InterfaceMtu(68));
    };
    client.handle_packet(secs(0), &reply(&request, MessageType::Ack, hostile));
    let lease = client.lease().expect("bound all the same");
    assert_eq!(
        (&lease.domain, &lease.hostname, lease.mtu),
        (&None, &None, None)
    );
}
