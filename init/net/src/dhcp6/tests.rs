use dhcproto::{
    Decodable, Encodable,
    v6::{self, DhcpOption, IAAddr, IANA, MessageType, OptionCode},
};

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
const DNS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn events(client: &mut Dhcp6Client) -> Vec<Dhcp6Event> {
    std::iter::from_fn(|| client.poll_event()).collect()
}

fn sent(client: &mut Dhcp6Client) -> v6::Message {
    let mut all = events(client);
    assert_eq!(all.len(), 1, "one event expected: {all:?}");
    match all.remove(0) {
        Dhcp6Event::Send(bytes) => v6::Message::from_bytes(&bytes).expect("well formed"),
        other => panic!("a message expected: {other:?}"),
    }
}

fn started() -> (Dhcp6Client, v6::Message) {
    let mut client = Dhcp6Client::new(MAC, 1);
    client.start(secs(0), Dhcp6Mode::Stateful);
    let solicit = sent(&mut client);
    assert_eq!(solicit.msg_type(), MessageType::Solicit);
    (client, solicit)
}

fn association(address: Ipv6Addr, preferred: u32, valid: u32) -> DhcpOption {
    let mut opts = v6::DhcpOptions::new();
    opts.insert(DhcpOption::IAAddr(IAAddr {
        addr: address,
        preferred_life: preferred,
        valid_life: valid,
        opts: v6::DhcpOptions::new(),
    }));
    DhcpOption::IANA(IANA {
        id: 7,
        t1: 0,
        t2: 0,
        opts,
    })
}

fn reply(to: &v6::Message, kind: MessageType, server: u8, options: Vec<DhcpOption>) -> Vec<u8> {
    let mut message = v6::Message::new_with_id(kind, to.xid());
    let client = to
        .opts()
        .get(OptionCode::ClientId)
        .expect("has an id")
        .clone();
    message.opts_mut().insert(client);
    message
        .opts_mut()
        .insert(DhcpOption::ServerId(vec![0, 3, 0, 1, server]));
    message
        .opts_mut()
        .insert(DhcpOption::DomainNameServers(vec![DNS]));
    for option in options {
        message.opts_mut().insert(option);
    }
    message.to_vec().expect("encodes")
}

fn hour() -> Vec<DhcpOption> {
    vec![association(ADDRESS, 1800, 3600)]
}

fn bound() -> Dhcp6Client {
    let (mut client, solicit) = started();
    let mut options = hour();
    options.push(DhcpOption::Preference(255));
    client.handle_packet(
        secs(0),
        &reply(&solicit, MessageType::Advertise, 1, options),
    );
    let request = sent(&mut client);
    client.handle_packet(secs(0), &reply(&request, MessageType::Reply, 1, hour()));
    assert!(matches!(events(&mut client)[..], [Dhcp6Event::Bound(_)]));
    client
}

fn wait(client: &mut Dhcp6Client) -> Duration {
    let at = client.poll_timeout().expect("a timer is set");
    client.handle_timeout(at);
    at
}

#[test]
fn the_best_of_the_first_second_is_requested() {
    let (mut client, solicit) = started();
    client.handle_packet(secs(0), &reply(&solicit, MessageType::Advertise, 1, hour()));
    let mut better = hour();
    better.push(DhcpOption::Preference(9));
    client.handle_packet(secs(0), &reply(&solicit, MessageType::Advertise, 2, better));
    assert!(events(&mut client).is_empty(), "collects");
    wait(&mut client);
    let request = sent(&mut client);
    assert_eq!(request.msg_type(), MessageType::Request);
    let server = request.opts().get(OptionCode::ServerId);
    assert_eq!(server, Some(&DhcpOption::ServerId(vec![0, 3, 0, 1, 2])));
    client.handle_packet(secs(1), &reply(&request, MessageType::Reply, 1, hour()));
    assert!(
        events(&mut client).is_empty(),
        "another server's reply is not ours"
    );
    client.handle_packet(secs(1), &reply(&request, MessageType::Reply, 2, hour()));
    let all = events(&mut client);
    let [Dhcp6Event::Bound(lease)] = &all[..] else {
        panic!("bound: {all:?}");
    };
    assert_eq!(lease.addresses[0].address, ADDRESS);
    assert_eq!(lease.dns, [DNS]);
}

#[test]
fn rapid_commit_takes_two_messages() {
    let (mut client, solicit) = started();
    client.handle_packet(secs(0), &reply(&solicit, MessageType::Reply, 1, hour()));
    assert!(
        events(&mut client).is_empty(),
        "only where the server says so"
    );
    let mut options = hour();
    options.push(DhcpOption::RapidCommit);
    client.handle_packet(secs(0), &reply(&solicit, MessageType::Reply, 1, options));
    assert!(matches!(events(&mut client)[..], [Dhcp6Event::Bound(_)]));
}

#[test]
fn renew_then_rebind_then_expiry_then_init() {
    let mut client = bound();
    let mut kinds = Vec::new();
    let lost_at = loop {
        let at = wait(&mut client);
        let all = events(&mut client);
        let Dhcp6Event::Send(bytes) = &all[0] else {
            assert_eq!(all[0], Dhcp6Event::Lost);
            break at;
        };
        kinds.push((
            at,
            v6::Message::from_bytes(bytes)
                .expect("well formed")
                .msg_type(),
        ));
    };
    assert_eq!(kinds[0], (secs(900), MessageType::Renew));
    let first_rebind = kinds.iter().find(|k| k.1 == MessageType::Rebind);
    assert_eq!(first_rebind.map(|k| k.0), Some(secs(1440)));
    assert_eq!(lost_at, secs(3600));
    wait(&mut client);
    assert_eq!(sent(&mut client).msg_type(), MessageType::Solicit);
}

#[test]
fn a_renewal_extends_and_may_change_the_address() {
    let mut client = bound();
    let at = wait(&mut client);
    let renew = sent(&mut client);
    let other: Ipv6Addr = "2001:db8:1::1".parse().expect("valid");
    let options = vec![association(other, 100, 200)];
    client.handle_packet(at, &reply(&renew, MessageType::Reply, 1, options));
    let all = events(&mut client);
    assert!(matches!(&all[..], [Dhcp6Event::Bound(l)] if l.addresses[0].address == other));
    assert_eq!(client.poll_timeout(), Some(at + secs(50)));
}

#[test]
fn a_server_that_forgot_us_is_asked_again() {
    let mut client = bound();
    let at = wait(&mut client);
    let renew = sent(&mut client);
    let mut opts = v6::DhcpOptions::new();
    opts.insert(DhcpOption::StatusCode(v6::StatusCode {
        status: v6::Status::NoBinding,
        msg: String::new(),
    }));
    let forgot = DhcpOption::IANA(IANA {
        id: 7,
        t1: 0,
        t2: 0,
        opts,
    });
    client.handle_packet(at, &reply(&renew, MessageType::Reply, 1, vec![forgot]));
    assert_eq!(sent(&mut client).msg_type(), MessageType::Request);
}

#[test]
fn stateless_information_is_refreshed() {
    let mut client = Dhcp6Client::new(MAC, 1);
    client.start(secs(0), Dhcp6Mode::Stateless);
    let ask = sent(&mut client);
    assert_eq!(ask.msg_type(), MessageType::InformationRequest);
    assert!(ask.opts().get(OptionCode::IANA).is_none());
    client.handle_packet(secs(0), &reply(&ask, MessageType::Reply, 1, Vec::new()));
    let all = events(&mut client);
    assert!(matches!(&all[..], [Dhcp6Event::Bound(l)] if l.dns == [DNS] && l.addresses.is_empty()));
    assert_eq!(wait(&mut client), REFRESH_DEFAULT);
    assert_eq!(
        sent(&mut client).msg_type(),
        MessageType::InformationRequest
    );
}

#[test]
fn a_silent_network_is_asked_for_ever() {
    let (mut client, _) = started();
    let mut last = secs(0);
    for _ in 0..40 {
        let at = wait(&mut client);
        assert!(at - last <= ASK_MAX * 11 / 10);
        assert_eq!(sent(&mut client).msg_type(), MessageType::Solicit);
        last = at;
    }
}

#[test]
fn hostile_replies_are_ignored_and_counted() {
    let (mut client, solicit) = started();
    let multicast = "ff02::1".parse().expect("valid");
    let cases = vec![
        vec![],
        vec![association(multicast, 1800, 3600)],
        vec![association(Ipv6Addr::LOCALHOST, 1800, 3600)],
        vec![association(ADDRESS, 3600, 1800)],
        vec![association(ADDRESS, 0, 0)],
        vec![DhcpOption::StatusCode(v6::StatusCode {
            status: v6::Status::NoAddrsAvail,
            msg: String::new(),
        })],
    ];
    let count = cases.len() as u64;
    for options in cases {
        client.handle_packet(
            secs(0),
            &reply(&solicit, MessageType::Advertise, 1, options),
        );
    }
    let good = reply(&solicit, MessageType::Advertise, 1, hour());
    for len in 0..good.len() - 1 {
        client.handle_packet(secs(0), &good[..len]);
        client.pause_check();
    }
    let mut foreign = good.clone();
    foreign[1] ^= 1;
    client.handle_packet(secs(0), &foreign);
    assert!(client.refused() > count);
    assert!(events(&mut client).is_empty());
}

impl Dhcp6Client {
    /// The client must not have taken a cut advertisement as the best.
    fn pause_check(&self) {
        if let Dhcp6State::Soliciting {
            best: Some(best), ..
        } = &self.step
        {
            assert!(usable(best).is_some());
        }
    }
}
