//! The parts of Ethernet, ARP, IPv4, IPv6, UDP, TCP and ICMP that a small router needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

/// Hardware address.
pub(crate) type Mac = [u8; 6];

/// Broadcast address.
pub(crate) const BROADCAST: Mac = [0xff; 6];

const ETHERNET_BYTES: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

/// Flags of a segment (RFC 9293, 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PUSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// The hop limit of neighbour discovery, which shows that no router forwarded the packet (RFC 4861
/// section 7.1).
const HOPS: u8 = 255;

/// The parts of a frame that the router understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EthernetFrame<'a> {
    pub(crate) source: Mac,
    pub(crate) target: Mac,
    pub(crate) body: EthernetPayload<'a>,
}

/// The content of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EthernetPayload<'a> {
    /// `request` asks who has `target`.
    Arp {
        request: bool,
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    /// ICMP or ICMPv6, from its type on.
    Icmp {
        source: IpAddr,
        target: IpAddr,
        message: &'a [u8],
    },
    /// A segment of TCP, over IPv4 only.
    Tcp {
        source: SocketAddrV4,
        target: SocketAddrV4,
        segment: TcpSegment<'a>,
    },
    /// A datagram.
    Udp {
        source: SocketAddr,
        target: SocketAddr,
        payload: &'a [u8],
    },
}

/// The parts of a segment that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpSegment<'a> {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

impl<'a> EthernetFrame<'a> {
    /// Parses a frame. `None` if it is malformed, or of a protocol that the router does not speak.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(ETHERNET_BYTES)?;
        let body = match be16(header, 12)? {
            ETHERTYPE_ARP => arp(rest),
            ETHERTYPE_IPV4 => ipv4(rest),
            ETHERTYPE_IPV6 => ipv6(rest),
            _ => None,
        }?;
        Some(Self {
            target: array(header, 0)?,
            source: array(header, 6)?,
            body,
        })
    }
}

/// An answer to an ARP request.
pub(crate) fn arp_reply(us: Mac, address: Ipv4Addr, them: Mac, asker: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(them, us, ETHERTYPE_ARP);
    // Ethernet, IPv4, lengths 6 and 4, reply.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(us);
    frame.extend(address.octets());
    frame.extend(them);
    frame.extend(asker.octets());
    frame
}

/// A datagram in a frame. Both addresses are of one family.
pub(crate) fn udp(
    us: Mac,
    them: Mac,
    source: SocketAddr,
    target: SocketAddr,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(usize::from(length));
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(target.port().to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = pseudo_sum(source.ip(), target.ip(), PROTOCOL_UDP, &datagram);
    // Zero would mean that there is no checksum (RFC 768).
    let sum = if sum == 0 { 0xffff } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(us, them, source.ip(), target.ip(), PROTOCOL_UDP, &datagram)
}

/// A segment in a frame.
pub(crate) fn tcp(
    (us, them): (Mac, Mac),
    source: SocketAddrV4,
    target: SocketAddrV4,
    segment: &TcpSegment<'_>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + segment.payload.len());
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(target.port().to_be_bytes());
    bytes.extend(segment.seq.to_be_bytes());
    bytes.extend(segment.ack.to_be_bytes());
    // A header of five words, the largest window, no checksum yet, nothing urgent.
    bytes.extend([0x50, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(segment.payload);
    let (from, to) = (IpAddr::V4(*source.ip()), IpAddr::V4(*target.ip()));
    let sum = pseudo_sum(from, to, PROTOCOL_TCP, &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(us, them, from, to, PROTOCOL_TCP, &bytes)
}

/// An ICMP or ICMPv6 message in a frame. Its checksum is filled in.
pub(crate) fn icmp(us: Mac, them: Mac, source: IpAddr, target: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let (protocol, sum) = match source {
        IpAddr::V4(_) => (PROTOCOL_ICMP, fold(sum(&message))),
        IpAddr::V6(_) => (
            PROTOCOL_ICMPV6,
            pseudo_sum(source, target, PROTOCOL_ICMPV6, &message),
        ),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(us, them, source, target, protocol, &message)
}

/// Hardware address of an IPv6 multicast group.
pub(crate) fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// Two bytes in network order.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// An array of bytes at an offset.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn arp(bytes: &[u8]) -> Option<EthernetPayload<'_>> {
    let ours = bytes.get(..6)? == [0, 1, 8, 0, 6, 4];
    let sender = Ipv4Addr::from(array::<4>(bytes, 14)?);
    let target = Ipv4Addr::from(array::<4>(bytes, 24)?);
    ours.then_some(EthernetPayload::Arp {
        request: be16(bytes, 6)? == 1,
        sender,
        target,
    })
}

fn ipv4(bytes: &[u8]) -> Option<EthernetPayload<'_>> {
    let header = usize::from(*bytes.first()? & 0xf) * 4;
    let total = usize::from(be16(bytes, 2)?);
    // Fragments are not reassembled: no datagram here is that long.
    let fragment = be16(bytes, 6)? & 0x3fff != 0;
    let payload = bytes
        .get(header..total)
        .filter(|_| header >= 20 && !fragment)?;
    let source = Ipv4Addr::from(array::<4>(bytes, 12)?).into();
    let target = Ipv4Addr::from(array::<4>(bytes, 16)?).into();
    transport(*bytes.get(9)?, source, target, payload)
}

fn ipv6(bytes: &[u8]) -> Option<EthernetPayload<'_>> {
    let length = usize::from(be16(bytes, 4)?);
    let payload = bytes.get(40..40 + length)?;
    let source = Ipv6Addr::from(array::<16>(bytes, 8)?).into();
    let target = Ipv6Addr::from(array::<16>(bytes, 24)?).into();
    transport(*bytes.get(6)?, source, target, payload)
}

fn transport(
    protocol: u8,
    source: IpAddr,
    target: IpAddr,
    payload: &[u8],
) -> Option<EthernetPayload<'_>> {
    match (protocol, source) {
        (PROTOCOL_ICMP, IpAddr::V4(_)) | (PROTOCOL_ICMPV6, IpAddr::V6(_)) => (payload.len() >= 8)
            .then_some(EthernetPayload::Icmp {
                source,
                target,
                message: payload,
            }),
        (PROTOCOL_TCP, IpAddr::V4(source)) => {
            let IpAddr::V4(target) = target else {
                return None;
            };
            let header = usize::from(*payload.get(12)? >> 4) * 4;
            Some(EthernetPayload::Tcp {
                source: SocketAddrV4::new(source, be16(payload, 0)?),
                target: SocketAddrV4::new(target, be16(payload, 2)?),
                segment: TcpSegment {
                    seq: u32::from_be_bytes(array(payload, 4)?),
                    ack: u32::from_be_bytes(array(payload, 8)?),
                    flags: *payload.get(13)?,
                    payload: payload.get(header..).filter(|_| header >= 20)?,
                },
            })
        }
        (PROTOCOL_UDP, _) => Some(EthernetPayload::Udp {
            source: (source, be16(payload, 0)?).into(),
            target: (target, be16(payload, 2)?).into(),
            payload: payload.get(8..usize::from(be16(payload, 4)?))?,
        }),
        _ => None,
    }
}

fn ethernet(target: Mac, source: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(1514);
    frame.extend(target);
    frame.extend(source);
    frame.extend(kind.to_be_bytes());
    frame
}

fn ip(us: Mac, them: Mac, source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, target) {
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let mut frame = ethernet(them, us, ETHERTYPE_IPV6);
            // Version 6, no traffic class, no flow label (RFC 8200, section 3).
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(
                u16::try_from(payload.len())
                    .unwrap_or(u16::MAX)
                    .to_be_bytes(),
            );
            frame.extend([protocol, HOPS]);
            frame.extend(source.octets());
            frame.extend(target.octets());
            frame.extend(payload);
            frame
        }
        (source, target) => {
            let total = u16::try_from(payload.len() + 20)
                .unwrap_or(u16::MAX)
                .to_be_bytes();
            // Version 4, a header of five words, no fragments, 64 hops (RFC 791, section 3.1).
            let mut header = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol]
                .into_iter()
                .chain([0, 0])
                .chain(v4(source).octets())
                .chain(v4(target).octets())
                .collect::<Vec<u8>>();
            let sum = fold(sum(&header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut frame = ethernet(them, us, ETHERTYPE_IPV4);
            frame.extend(header);
            frame.extend(payload);
            frame
        }
    }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

fn pseudo_sum(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let of = |address| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let length = u64::try_from(payload.len()).unwrap_or_default();
    fold(of(source) + of(target) + u64::from(protocol) + length + sum(payload))
}

/// Sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    // An odd last byte counts as if a zero followed (RFC 1071).
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    // RFC 1071: the carries are added until no carry is left.
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const US: Mac = [2, 0, 0, 0, 0, 1];
    const THEM: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn a_datagram_comes_out_as_it_went_in() {
        for (source, target) in [("10.0.0.1:7", "10.0.0.2:8"), ("[fe80::1]:7", "[fe80::2]:8")] {
            let source: SocketAddr = source.parse().expect("written here");
            let target: SocketAddr = target.parse().expect("written here");
            let bytes = udp(US, THEM, source, target, b"odd");
            let frame = EthernetFrame::parse(&bytes).expect("it is well-formed");
            assert_eq!(
                frame.body,
                EthernetPayload::Udp {
                    source,
                    target,
                    payload: b"odd"
                }
            );
            assert_eq!((frame.source, frame.target), (US, THEM));
        }
    }

    #[test]
    fn a_segment_comes_out_as_it_went_in() {
        let [source, target] = ["10.0.0.1:7", "169.254.169.254:80"]
            .map(|text| text.parse::<SocketAddrV4>().expect("written here"));
        let segment = TcpSegment {
            seq: u32::MAX,
            ack: 7,
            flags: PUSH | ACK,
            payload: b"odd",
        };
        let mut bytes = tcp((US, THEM), source, target, &segment);
        let frame = EthernetFrame::parse(&bytes).expect("it is well-formed");
        let expected = EthernetPayload::Tcp {
            source,
            target,
            segment,
        };
        assert_eq!(frame.body, expected);
        // A receiver that sums the segment with its checksum gets zero (RFC 1071).
        let (from, to) = (IpAddr::V4(*source.ip()), IpAddr::V4(*target.ip()));
        let at = ETHERNET_BYTES + 20;
        assert_eq!(pseudo_sum(from, to, PROTOCOL_TCP, &bytes[at..]), 0);
        bytes[at + 12] = 0x40;
        assert_eq!(EthernetFrame::parse(&bytes), None, "a header of four words");
    }

    #[test]
    fn the_header_checksum_is_that_of_a_known_header() {
        // RFC 1071's method on a header from many textbooks.
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,
            0xc7,
        ];
        assert_eq!(fold(sum(&header)), 0xb861);
    }

    #[test]
    fn a_fragment_is_not_taken_for_a_datagram() {
        let (source, target) = ("10.0.0.1:7", "10.0.0.2:8");
        let parse = |text: &str| text.parse().expect("written here");
        let mut bytes = udp(US, THEM, parse(source), parse(target), b"x");
        bytes[ETHERNET_BYTES + 6] = 0x20;
        assert_eq!(EthernetFrame::parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(mut bytes: Vec<u8>, kind in 0..3_usize) {
            let kinds = [ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6];
            if bytes.len() >= ETHERNET_BYTES {
                bytes[12..14].copy_from_slice(&kinds[kind].to_be_bytes());
            }
            let _ = EthernetFrame::parse(&bytes);
        }
    }
}
