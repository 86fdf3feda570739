//! Route netlink messages (rtnetlink(7)): requests, answers and notifications.
//!
//! It has only what this crate needs, and skips unknown attributes. The peer is the kernel, and
//! even so every read is checked against the bounds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::plan::Prefix;

pub(crate) const HEADER_BYTES: usize = 16;

const RTM_NEWNDUSEROPT: u16 = 68;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INET6_FLAGS: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

/// Mask of an attribute's kind without its flags.
const NESTED: u16 = 0x3fff;

/// A request under construction.
#[derive(Debug)]
pub(super) struct NetlinkRequest(Vec<u8>);

impl NetlinkRequest {
    pub(super) fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend(body);
        Self(bytes)
    }

    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = (value.len() + 4) as u16;
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        // The kernel aligns each attribute to four bytes (NLA_ALIGNTO); the length leaves the padding out.
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    pub(super) fn address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One message out of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetlinkMessage<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// Splits a datagram into messages. The rest behind a malformed message is dropped.
pub(super) fn frames(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<'_>> {
    std::iter::from_fn(move || {
        let len = number(bytes, 0)? as usize;
        let body = bytes.get(HEADER_BYTES..len)?;
        let frame = NetlinkMessage {
            kind: short(bytes, 4)?,
            sequence: number(bytes, 8)?,
            body,
        };
        // The last message of a datagram may lack its padding.
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(frame)
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(short(bytes, 0)?);
        let value = bytes.get(4..len)?;
        // The two upper bits are flags: nested, and network byte order.
        let kind = short(bytes, 2)? & NESTED;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], searched: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == searched)
        .map(|(_, value)| value)
}

/// A notification of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetlinkNotice {
    /// An address was added, removed or changed.
    Address,
    /// A card was added or changed.
    Link(LinkInfo),
    /// The card with this index was removed.
    LinkGone(u32),
    /// An option of a router's advertisement on a card, including kind and length.
    Neighbour { index: u32, option: Vec<u8> },
    /// Notifications were lost: everything has to be read again.
    Overrun,
    /// A router's advertisement changed the IPv6 flags of a card: `IF_RA_…`.
    Router { index: u32, flags: u32 },
    /// A default route was added, removed or changed.
    Route,
}

/// A network card, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<[u8; 6]>,
    /// ARPHRD type.
    pub(crate) hardware: u16,
    /// `IFF_…`.
    pub(crate) flags: u32,
    /// Kind of a virtual device, such as `veth` or `dummy`. `None` for hardware.
    pub(crate) kind: Option<String>,
    /// `IF_RA_…`, if the message has them.
    pub(crate) ra_flags: Option<u32>,
}

impl LinkInfo {
    pub(crate) fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK as u32 != 0
    }

    /// Whether it is an Ethernet card or one end of a virtual cable, and not a bridge, tunnel or
    /// dummy.
    pub(crate) fn is_card(&self) -> bool {
        let arp = self.flags & libc::IFF_NOARP as u32 == 0;
        let cable = self.kind.as_deref().is_none_or(|k| k == "veth");
        self.hardware == libc::ARPHRD_ETHER && self.mac.is_some() && arp && cable
    }

    pub(crate) fn has_carrier(&self) -> bool {
        let both = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;
        self.flags & both == both
    }
}

/// An address, as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressInfo {
    pub(crate) index: u32,
    pub(crate) prefix: Prefix,
    /// `IFA_F_…`.
    pub(crate) flags: u32,
}

impl AddressInfo {
    /// Whether the address has passed duplicate address detection.
    pub(crate) const fn is_usable(&self) -> bool {
        self.flags & (libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED) == 0
    }

    pub(crate) const fn is_permanent(&self) -> bool {
        self.flags & libc::IFA_F_PERMANENT != 0
    }
}

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    pub(crate) index: u32,
    pub(crate) gateway: IpAddr,
    pub(crate) metric: u32,
}

/// Reads a notification. Returns `None` if the manager does not need it.
pub(super) fn notice(frame: NetlinkMessage<'_>) -> Option<NetlinkNotice> {
    match frame.kind {
        // Wireless and bridge code send messages of their own families under the same number.
        libc::RTM_NEWLINK => match frame.body.first()? {
            0 => link(frame.body).map(NetlinkNotice::Link),
            10 => router(frame.body),
            _ => None,
        },
        libc::RTM_DELLINK if frame.body.first() == Some(&0) => {
            number(frame.body, 4).map(NetlinkNotice::LinkGone)
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(NetlinkNotice::Address),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            // A destination of zero bits is a default route. Other routes are not reported.
            (frame.body.get(1) == Some(&0)).then_some(NetlinkNotice::Route)
        }
        RTM_NEWNDUSEROPT => neighbour(frame.body),
        _ => None,
    }
}

pub(super) fn link(body: &[u8]) -> Option<LinkInfo> {
    let mut info = LinkInfo {
        hardware: short(body, 2)?,
        index: number(body, 4)?,
        flags: number(body, 8)?,
        ..LinkInfo::default()
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => info.mac = value.try_into().ok(),
            IFLA_IFNAME => info.name = text(value),
            IFLA_LINKINFO => info.kind = attribute(value, IFLA_INFO_KIND).map(text),
            // One attribute for each address family; 10 is AF_INET6.
            IFLA_AF_SPEC => info.ra_flags = attribute(value, 10).and_then(ra_flags),
            _ => {}
        }
    }
    Some(info)
}

fn router(body: &[u8]) -> Option<NetlinkNotice> {
    let flags = ra_flags(attribute(body.get(16..)?, IFLA_PROTINFO)?)?;
    let index = number(body, 4)?;
    Some(NetlinkNotice::Router { index, flags })
}

fn ra_flags(value: &[u8]) -> Option<u32> {
    number(attribute(value, IFLA_INET6_FLAGS)?, 0)
}

pub(super) fn address(body: &[u8]) -> Option<AddressInfo> {
    let mut flags = u32::from(*body.get(2)?);
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => peer = ip(value),
            // The header has room for eight flags only.
            IFA_FLAGS => flags = number(value, 0)?,
            _ => {}
        }
    }
    Some(AddressInfo {
        index: number(body, 4)?,
        // On a point-to-point link, `IFA_ADDRESS` is the peer's address and `IFA_LOCAL` the
        // machine's. IPv6 sends `IFA_ADDRESS` alone (linux/if_addr.h).
        prefix: Prefix::new(local.or(peer)?, body[1]),
        flags,
    })
}

/// A default route with a router in the main table.
pub(super) fn default_route(body: &[u8]) -> Option<DefaultRoute> {
    let head = body.get(..12)?;
    if head[1] != 0 || head[4] != libc::RT_TABLE_MAIN || head[7] != libc::RTN_UNICAST {
        return None;
    }
    let rest = &body[12..];
    Some(DefaultRoute {
        index: number(attribute(rest, RTA_OIF)?, 0)?,
        gateway: ip(attribute(rest, RTA_GATEWAY)?)?,
        metric: attribute(rest, RTA_PRIORITY)
            .and_then(|v| number(v, 0))
            .unwrap_or(0),
    })
}

/// `struct nduseroptmsg`: family, pad, length of the option, index, ICMP type and code, pad.
fn neighbour(body: &[u8]) -> Option<NetlinkNotice> {
    let len = usize::from(short(body, 2)?);
    let option = body.get(16..16 + len)?.to_vec();
    Some(NetlinkNotice::Neighbour {
        index: number(body, 4)?,
        option,
    })
}

pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let value = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(value))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let value = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(value))
}

fn text(value: &[u8]) -> String {
    let value = value.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value)
            .ok()
            .map(|v| Ipv4Addr::from(v).into()),
        16 => <[u8; 16]>::try_from(value)
            .ok()
            .map(|v| Ipv6Addr::from(v).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link_message() -> Vec<u8> {
        let mut body = vec![0; 16];
        body[2..4].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        let up = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;
        body[8..12].copy_from_slice(&up.to_ne_bytes());
        NetlinkRequest::new(libc::RTM_NEWLINK, 0, &body)
            .attribute(IFLA_IFNAME, b"eth0\0")
            .attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])
            .finish(9)
    }

    #[test]
    fn a_card_is_read() {
        let bytes = link_message();
        let all: Vec<NetlinkMessage<'_>> = frames(&bytes).collect();
        assert_eq!((all.len(), all[0].sequence), (1, 9));
        let Some(NetlinkNotice::Link(link)) = notice(all[0]) else {
            panic!("a link");
        };
        assert_eq!((link.index, link.name.as_str()), (7, "eth0"));
        assert!(link.is_card() && link.has_carrier() && !link.is_loopback());
    }

    #[test]
    fn bridges_and_dummies_are_no_cards() {
        let card = LinkInfo {
            hardware: libc::ARPHRD_ETHER,
            mac: Some([2; 6]),
            ..LinkInfo::default()
        };
        assert!(card.is_card());
        let kind = |kind: &str| LinkInfo {
            kind: Some(kind.to_owned()),
            ..card.clone()
        };
        assert!(kind("veth").is_card());
        assert!(!kind("dummy").is_card() && !kind("bridge").is_card());
    }

    #[test]
    fn an_advertised_option_is_read() {
        let mut body = vec![0; 16];
        body[2..4].copy_from_slice(&8_u16.to_ne_bytes());
        body[4..8].copy_from_slice(&3_u32.to_ne_bytes());
        body.extend([25, 1, 0, 0, 0, 0, 0, 9]);
        let bytes = NetlinkRequest::new(RTM_NEWNDUSEROPT, 0, &body).finish(0);
        let read = frames(&bytes).find_map(notice);
        let expected = NetlinkNotice::Neighbour {
            index: 3,
            option: vec![25, 1, 0, 0, 0, 0, 0, 9],
        };
        assert_eq!(read, Some(expected));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0_u16..80, body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let bytes = NetlinkRequest::new(kind, 0, &body).finish(1);
            for frame in frames(&bytes).chain(frames(&body)) {
                let _ = (notice(frame), link(frame.body), address(frame.body), default_route(frame.body));
            }
        }
    }
}
