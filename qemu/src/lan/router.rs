//! The router of a harness network: frames in, frames and datagrams out, no sockets and no clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::dhcp4::{self, DhcpLease};
use super::wire::{self, BROADCAST, EthernetFrame, EthernetPayload, Mac, array};
use super::{dhcp6, sntp};

/// Address of the router, which is also name server and DHCP server.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// Link-local address of the router.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

pub(crate) const ROUTER_MAC: Mac = [0x52, 0x55, 10, 9, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Ports of the router that represent clients on the host.
const FIRST_NAT_PORT: u16 = 40_000;
const NAT_PORTS: usize = 20_000;

/// What the network offers. Change it with [`Lan::set`](super::Lan::set).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LanSettings {
    /// IPv4 by DHCP.
    pub dhcp4: Option<DhcpLease>,
    /// IPv6 by router advertisements.
    pub advertise: Option<RouterAdvertisement>,
    /// IPv6 by DHCPv6. Clients ask only if `managed` is advertised.
    pub dhcp6: Option<Ipv6Addr>,
    /// The router is a time server and always answers this moment, in seconds since 1970.
    pub time: Option<u64>,
}

/// A router advertisement (RFC 4861, RFC 8106).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// The network's first address, with a prefix of 64 bits.
    pub prefix: Ipv6Addr,
    /// Whether machines make their own addresses in it.
    pub autonomous: bool,
    /// Whether machines get addresses by DHCPv6.
    pub managed: bool,
    /// Whether machines get other settings by DHCPv6.
    pub other: bool,
    /// Whether the router is a name server.
    pub dns: bool,
    /// How long all of it holds.
    pub lifetime: Duration,
}

/// An event of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LanEvent {
    /// The router sent a router advertisement.
    Advertised,
    /// TCP: a client began to connect to this address, whether there is a service or not.
    Connecting(SocketAddrV4),
    /// DHCP: a client looked for a server, and got an offer.
    Offered(Ipv4Addr),
    /// DHCP: a client got an address, or a longer lease.
    Given(Ipv4Addr),
    /// DHCPv6: the server answered a message.
    Given6,
    /// DHCP: a client asked for an unavailable address, and got a refusal.
    Refused(Option<Ipv4Addr>),
    /// DHCP: a client returned its address.
    Released(Ipv4Addr),
    /// SNTP: a client asked for the time and got it.
    Timed,
}

/// The destination of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RouterOutput {
    /// To the machine with this hardware address, or to all.
    Frame(Vec<u8>),
    /// To a client on the host, from the socket of this forward.
    Host {
        forward: usize,
        client: SocketAddr,
        payload: Vec<u8>,
    },
}

/// The state of the network.
#[derive(Debug, Default)]
pub(crate) struct LanRouter {
    pub(crate) settings: LanSettings,
    pub(crate) events: Vec<LanEvent>,
    neighbours: BTreeMap<IpAddr, Mac>,
    clients: Vec<(usize, SocketAddr)>,
}

impl LanRouter {
    /// A router that has received nothing yet.
    pub(crate) fn new(settings: LanSettings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// Every address that a machine used.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = IpAddr> {
        self.neighbours.keys().copied()
    }

    /// Handles a frame of a machine.
    pub(crate) fn frame(&mut self, bytes: &[u8]) -> Vec<RouterOutput> {
        let Some(frame) = EthernetFrame::parse(bytes) else {
            return vec![];
        };
        self.learn(&frame);
        match frame.body {
            EthernetPayload::Arp {
                request,
                sender,
                target,
            } if request && self.ours(target.into()) => {
                vec![RouterOutput::Frame(wire::arp_reply(
                    ROUTER_MAC,
                    target,
                    frame.source,
                    sender,
                ))]
            }
            EthernetPayload::Arp { .. } => vec![],
            // The network carries it to a service of the host.
            EthernetPayload::Tcp {
                target, segment, ..
            } => {
                if segment.flags & wire::SYN != 0 {
                    self.events.push(LanEvent::Connecting(target));
                }
                vec![]
            }
            EthernetPayload::Icmp {
                source,
                target,
                message,
            } => self.icmp(frame.source, source, target, message),
            EthernetPayload::Udp {
                source,
                target,
                payload,
            } => self.udp(frame.source, source, target, payload),
        }
    }

    /// Handles a datagram of a client on the host for `guest`.
    pub(crate) fn datagram(
        &mut self,
        forward: usize,
        client: SocketAddr,
        guest: SocketAddr,
        payload: &[u8],
    ) -> Option<RouterOutput> {
        let key = (forward, client);
        let known = self.clients.iter().position(|known| *known == key);
        let index = known.unwrap_or_else(|| {
            self.clients.push(key);
            self.clients.len() - 1
        });
        // Each client has its own port of the router, by which answers find their way back.
        let offset = u16::try_from(index).ok().filter(|_| index < NAT_PORTS)?;
        let us = SocketAddr::new(self.address_for(guest.ip()), FIRST_NAT_PORT + offset);
        let them = self
            .neighbours
            .get(&guest.ip())
            .copied()
            // A machine that has not sent anything yet takes a broadcast frame as well.
            .unwrap_or(BROADCAST);
        Some(RouterOutput::Frame(wire::udp(
            ROUTER_MAC, them, us, guest, payload,
        )))
    }

    /// A router advertisement to all nodes, if the settings have one.
    pub(crate) fn advertise(&mut self) -> Vec<RouterOutput> {
        let Some(advertise) = self.settings.advertise else {
            return vec![];
        };
        self.events.push(LanEvent::Advertised);
        let to = wire::multicast_mac(ALL_NODES);
        let message = advertisement(&advertise);
        let (source, target) = (ROUTER_V6.into(), ALL_NODES.into());
        vec![RouterOutput::Frame(wire::icmp(
            ROUTER_MAC, to, source, target, &message,
        ))]
    }

    /// Learns the addresses of machines from what they send, and from their checks whether an address is free.
    fn learn(&mut self, frame: &EthernetFrame<'_>) {
        let source = match &frame.body {
            EthernetPayload::Arp { sender, .. } => IpAddr::V4(*sender),
            EthernetPayload::Icmp {
                source, message, ..
            // RFC 4862 §5.4.2: a machine that checks whether its address is free has none yet, and names it as
            // target.
            } if source.is_unspecified() => {
                let Some(target) = solicited(message) else {
                    return;
                };
                target.into()
            }
            EthernetPayload::Icmp { source, .. } => *source,
            EthernetPayload::Tcp { source, .. } => IpAddr::V4(*source.ip()),
            EthernetPayload::Udp { source, .. } => source.ip(),
        };
        if !source.is_unspecified() {
            self.neighbours.insert(source, frame.source);
        }
    }

    fn icmp(
        &mut self,
        mac: Mac,
        source: IpAddr,
        target: IpAddr,
        message: &[u8],
    ) -> Vec<RouterOutput> {
        match (source, message[0]) {
            (IpAddr::V6(_), ROUTER_SOLICITATION) => self.advertise(),
            (IpAddr::V6(asker), NEIGHBOUR_SOLICITATION) => {
                let wanted = solicited(message).filter(|wanted| self.ours((*wanted).into()));
                // A machine that checks whether our own address is free has no address yet, so the answer goes to
                // all nodes.
                let asker = if asker.is_unspecified() {
                    ALL_NODES
                } else {
                    asker
                };
                let reply = wanted.map(|wanted| {
                    let message = neighbour_advertisement(wanted);
                    wire::icmp(ROUTER_MAC, mac, wanted.into(), asker.into(), &message)
                });
                reply.map(RouterOutput::Frame).into_iter().collect()
            }
            (IpAddr::V6(_), ECHO_REQUEST_V6) => self.echo(mac, source, target, message, 129),
            (IpAddr::V4(_), ECHO_REQUEST_V4) => self.echo(mac, source, target, message, 0),
            _ => vec![],
        }
    }

    fn echo(
        &self,
        mac: Mac,
        source: IpAddr,
        target: IpAddr,
        message: &[u8],
        reply: u8,
    ) -> Vec<RouterOutput> {
        if !self.ours(target) {
            return vec![];
        }
        // An echo reply repeats the request's identifier, number and data (RFC 4443, section 4.2).
        let message = [&[reply, 0], &message[2..]].concat();
        vec![RouterOutput::Frame(wire::icmp(
            ROUTER_MAC, mac, target, source, &message,
        ))]
    }

    fn udp(
        &mut self,
        mac: Mac,
        source: SocketAddr,
        target: SocketAddr,
        payload: &[u8],
    ) -> Vec<RouterOutput> {
        match (source, target.port()) {
            (SocketAddr::V4(_), dhcp4::SERVER_PORT) => self.dhcp4(payload),
            (SocketAddr::V6(_), dhcp6::SERVER_PORT) => self.dhcp6(mac, source, payload),
            (_, sntp::PORT) if self.ours(target.ip()) => self.sntp(mac, source, target, payload),
            (_, port) if self.ours(target.ip()) => self.to_host(port, payload),
            _ => vec![],
        }
    }

    fn to_host(&self, port: u16, payload: &[u8]) -> Vec<RouterOutput> {
        let index = port.checked_sub(FIRST_NAT_PORT).map(usize::from);
        let client = index.and_then(|index| self.clients.get(index));
        let output = client.map(|&(forward, client)| RouterOutput::Host {
            forward,
            client,
            payload: payload.to_vec(),
        });
        output.into_iter().collect()
    }

    fn dhcp4(&mut self, payload: &[u8]) -> Vec<RouterOutput> {
        let Some(query) = dhcp4::DhcpQuery::parse(payload) else {
            return vec![];
        };
        if matches!(query.kind, dhcp4::RELEASE | dhcp4::DECLINE) {
            self.events.extend(query.wanted().map(LanEvent::Released));
        }
        let Some(pool) = self.settings.dhcp4 else {
            return vec![];
        };
        let Some((kind, message)) = dhcp4::answer(&query, pool) else {
            return vec![];
        };
        self.events.push(match kind {
            dhcp4::OFFER => LanEvent::Offered(pool.address),
            dhcp4::ACK => LanEvent::Given(pool.address),
            _ => LanEvent::Refused(query.wanted()),
        });
        let server = SocketAddr::from((ROUTER_V4, dhcp4::SERVER_PORT));
        let client = SocketAddr::from((reply_address(&query, kind), dhcp4::CLIENT_PORT));
        let to = self
            .neighbours
            .get(&client.ip())
            .copied()
            .unwrap_or(BROADCAST);
        vec![RouterOutput::Frame(wire::udp(
            ROUTER_MAC, to, server, client, &message,
        ))]
    }

    fn dhcp6(&mut self, mac: Mac, client: SocketAddr, payload: &[u8]) -> Vec<RouterOutput> {
        let offered = self.settings.dhcp6.is_some()
            || self
                .settings
                .advertise
                .is_some_and(|advertise| advertise.other);
        let dns = self.address_for(client.ip());
        let (true, IpAddr::V6(dns)) = (offered, dns) else {
            return vec![];
        };
        let Some(message) = dhcp6::answer(payload, self.settings.dhcp6, dns, ROUTER_MAC) else {
            return vec![];
        };
        self.events.push(LanEvent::Given6);
        let server = SocketAddr::from((ROUTER_V6, dhcp6::SERVER_PORT));
        let client = SocketAddr::new(client.ip(), dhcp6::CLIENT_PORT);
        vec![RouterOutput::Frame(wire::udp(
            ROUTER_MAC, mac, server, client, &message,
        ))]
    }

    fn sntp(
        &mut self,
        mac: Mac,
        client: SocketAddr,
        us: SocketAddr,
        question: &[u8],
    ) -> Vec<RouterOutput> {
        let time = self.settings.time;
        let Some(message) = time.and_then(|time| sntp::answer(question, time)) else {
            return vec![];
        };
        self.events.push(LanEvent::Timed);
        vec![RouterOutput::Frame(wire::udp(
            ROUTER_MAC, mac, us, client, &message,
        ))]
    }

    /// Our address in the family and scope of `guest`.
    fn address_for(&self, guest: IpAddr) -> IpAddr {
        match guest {
            IpAddr::V4(_) => ROUTER_V4.into(),
            IpAddr::V6(guest) if guest.is_unicast_link_local() => ROUTER_V6.into(),
            IpAddr::V6(_) => self.global().unwrap_or(ROUTER_V6).into(),
        }
    }

    /// Our address in the advertised network: its first.
    fn global(&self) -> Option<Ipv6Addr> {
        let prefix = self.settings.advertise?.prefix;
        Some(Ipv6Addr::from(u128::from(prefix) | 1))
    }

    fn ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                // The lease may name another router, for which this one answers too.
                let named = self.settings.dhcp4.map(|pool| pool.router);
                address == ROUTER_V4 || Some(address) == named
            }
            IpAddr::V6(address) => address == ROUTER_V6 || Some(address) == self.global(),
        }
    }
}

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The address of the answer: a client without an address gets it by broadcast (RFC 2131 section 4.1).
fn reply_address(query: &dhcp4::DhcpQuery, kind: u8) -> Ipv4Addr {
    if query.current.is_unspecified() || kind == dhcp4::NAK {
        Ipv4Addr::BROADCAST
    } else {
        query.current
    }
}

/// The target of a neighbour solicitation.
fn solicited(message: &[u8]) -> Option<Ipv6Addr> {
    let asks = message.first() == Some(&NEIGHBOUR_SOLICITATION);
    array::<16>(message, 8).filter(|_| asks).map(Ipv6Addr::from)
}

fn neighbour_advertisement(address: Ipv6Addr) -> Vec<u8> {
    // Flags: router, solicited, override.
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0xe0, 0, 0, 0];
    message.extend(address.octets());
    // Option 2: our hardware address.
    message.extend([2, 1]);
    message.extend(ROUTER_MAC);
    message
}

fn advertisement(advertise: &RouterAdvertisement) -> Vec<u8> {
    let seconds = u32::try_from(advertise.lifetime.as_secs()).unwrap_or(u32::MAX);
    let router = u16::try_from(seconds).unwrap_or(u16::MAX);
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    let flags = flag(advertise.managed, 0x80) | flag(advertise.other, 0x40);
    // Type, code, checksum, hop limit, flags (RFC 4861, section 4.2).
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, flags];
    message.extend(router.to_be_bytes());
    // Reachable time and retransmission timer are unspecified.
    message.extend([0; 8]);
    // Option 1: our hardware address.
    message.extend([1, 1]);
    message.extend(ROUTER_MAC);
    // Option 3: the prefix, on link, and whether machines make addresses in it.
    message.extend([3, 4, 64, 0x80 | flag(advertise.autonomous, 0x40)]);
    message.extend(seconds.to_be_bytes());
    message.extend(seconds.to_be_bytes());
    message.extend([0; 4]);
    message.extend(advertise.prefix.octets());
    if advertise.dns {
        // Option 25: name servers.
        message.extend([25, 3, 0, 0]);
        message.extend(seconds.to_be_bytes());
        message.extend(Ipv6Addr::from(u128::from(advertise.prefix) | 1).octets());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST_MAC: Mac = [0x52, 0x54, 0, 0, 0, 9];
    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 20);
    const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0);

    fn router() -> LanRouter {
        let advertise = RouterAdvertisement {
            prefix: PREFIX,
            autonomous: true,
            managed: true,
            other: false,
            dns: true,
            lifetime: Duration::from_secs(600),
        };
        let settings = LanSettings {
            dhcp4: Some(DhcpLease::for_address(GUEST)),
            advertise: Some(advertise),
            ..LanSettings::default()
        };
        LanRouter::new(settings)
    }

    fn only_frame(outputs: &[RouterOutput]) -> EthernetFrame<'_> {
        let [RouterOutput::Frame(bytes)] = outputs else {
            panic!("one frame expected: {outputs:?}")
        };
        EthernetFrame::parse(bytes).expect("we make well-formed frames")
    }

    fn dhcp(router: &mut LanRouter, kind: u8, requested: Option<Ipv4Addr>) -> Vec<RouterOutput> {
        let from = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68));
        let to = SocketAddr::from((Ipv4Addr::BROADCAST, 67));
        let query = dhcp4::query(kind, requested);
        router.frame(&wire::udp(GUEST_MAC, BROADCAST, from, to, &query))
    }

    fn solicit(source: Ipv6Addr, wanted: Ipv6Addr) -> Vec<u8> {
        let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(wanted.octets());
        wire::icmp(
            GUEST_MAC,
            BROADCAST,
            source.into(),
            ALL_NODES.into(),
            &message,
        )
    }

    #[test]
    fn leases_are_given_and_refused_when_the_address_changed() {
        let mut router = router();
        let offer = dhcp(&mut router, dhcp4::DISCOVER, None);
        assert_eq!(only_frame(&offer).target, BROADCAST);
        dhcp(&mut router, dhcp4::REQUEST, Some(GUEST));
        let moved = Ipv4Addr::new(10, 9, 0, 21);
        router.settings.dhcp4 = Some(DhcpLease::for_address(moved));
        dhcp(&mut router, dhcp4::REQUEST, Some(GUEST));
        let expected = [
            LanEvent::Offered(GUEST),
            LanEvent::Given(GUEST),
            LanEvent::Refused(Some(GUEST)),
        ];
        assert_eq!(router.events, expected);
    }

    #[test]
    fn without_dhcp_there_is_silence() {
        let mut router = router();
        router.settings.dhcp4 = None;
        assert_eq!(dhcp(&mut router, dhcp4::DISCOVER, None), vec![]);
    }

    #[test]
    fn a_datagram_finds_its_way_there_and_back() {
        let mut router = router();
        let client = "127.0.0.1:5000".parse().expect("written here");
        let guest = SocketAddr::from((GUEST, 443));
        let there = router
            .datagram(0, client, guest, b"ping")
            .expect("there are ports");
        let there = [there];
        let EthernetPayload::Udp {
            source,
            target,
            payload,
        } = only_frame(&there).body
        else {
            panic!("it is a datagram")
        };
        assert_eq!((target, payload), (guest, &b"ping"[..]));
        let back = router.frame(&wire::udp(GUEST_MAC, ROUTER_MAC, target, source, b"pong"));
        assert_eq!(
            back,
            [RouterOutput::Host {
                forward: 0,
                client,
                payload: b"pong".to_vec()
            }]
        );
        // From now on the router uses the machine's own hardware address.
        let again = [router
            .datagram(0, client, guest, b"ping")
            .expect("there are ports")];
        assert_eq!(only_frame(&again).target, GUEST_MAC);
    }

    #[test]
    fn an_unused_port_leads_nowhere() {
        let mut router = router();
        for port in [0, FIRST_NAT_PORT, u16::MAX] {
            let (from, to) = ((GUEST, 443).into(), (ROUTER_V4, port).into());
            assert_eq!(
                router.frame(&wire::udp(GUEST_MAC, ROUTER_MAC, from, to, b"x")),
                vec![]
            );
        }
    }

    #[test]
    fn neighbours_are_answered_and_learnt() {
        let mut router = router();
        let global = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
        let own = Ipv6Addr::new(0xfd09, 0, 0, 0, 1, 2, 3, 4);
        assert_eq!(
            router.frame(&solicit(Ipv6Addr::UNSPECIFIED, own)),
            vec![],
            "it may have it"
        );
        assert_eq!(router.neighbours().collect::<Vec<_>>(), [IpAddr::from(own)]);
        let reply = router.frame(&solicit(own, global));
        let EthernetPayload::Icmp {
            message, target, ..
        } = only_frame(&reply).body
        else {
            panic!("it is ICMPv6")
        };
        assert_eq!((message[0], target), (NEIGHBOUR_ADVERTISEMENT, own.into()));
        assert_eq!(message[24 + 2..], ROUTER_MAC);
    }

    #[test]
    fn a_router_solicitation_is_answered_with_what_is_set() {
        let mut router = router();
        let ask = [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        let ask = wire::icmp(
            GUEST_MAC,
            BROADCAST,
            ROUTER_V6.into(),
            ALL_NODES.into(),
            &ask,
        );
        let reply = router.frame(&ask);
        let EthernetPayload::Icmp { message, .. } = only_frame(&reply).body else {
            panic!("it is ICMPv6")
        };
        assert_eq!((message[0], message[5]), (ROUTER_ADVERTISEMENT, 0x80));
        assert!(
            message.len().is_multiple_of(8),
            "options are counted in eights"
        );
        router.settings.advertise = None;
        assert_eq!(router.frame(&ask), vec![]);
    }

    #[test]
    fn the_time_is_announced_where_it_is_set() {
        let mut router = router();
        let mut question = vec![0x23];
        question.resize(48, 0);
        let (from, to) = ((GUEST, 5000).into(), (ROUTER_V4, sntp::PORT).into());
        let question = wire::udp(GUEST_MAC, ROUTER_MAC, from, to, &question);
        assert_eq!(router.frame(&question), vec![]);
        router.settings.time = Some(1);
        let reply = router.frame(&question);
        let EthernetPayload::Udp { source, target, .. } = only_frame(&reply).body else {
            panic!("it is a datagram")
        };
        assert_eq!((source, target), (to, from));
        assert_eq!(router.events, [LanEvent::Timed]);
    }

    #[test]
    fn pings_and_arp_are_answered_for_us_only() {
        let mut router = router();
        let ping = |target: Ipv4Addr| {
            let message = [ECHO_REQUEST_V4, 0, 0, 0, 1, 2, 3, 4];
            wire::icmp(GUEST_MAC, ROUTER_MAC, GUEST.into(), target.into(), &message)
        };
        let reply = router.frame(&ping(ROUTER_V4));
        let EthernetPayload::Icmp { message, .. } = only_frame(&reply).body else {
            panic!("it is ICMP")
        };
        assert_eq!((message[0], &message[4..]), (0, &[1, 2, 3, 4][..]));
        assert_eq!(router.frame(&ping(Ipv4Addr::new(192, 0, 2, 1))), vec![]);
    }
}
