//! DHCPv6 messages (RFC 8415 §8, §21; RFC 3646, RFC 5908).

use std::net::Ipv6Addr;

use crate::dns::read_names;

pub(super) mod code {
    pub(crate) const CLIENT: u16 = 1;
    pub(crate) const SERVER: u16 = 2;
    pub(crate) const IA_NA: u16 = 3;
    pub(crate) const IA_ADDR: u16 = 5;
    pub(crate) const WANTED: u16 = 6;
    pub(crate) const PREFERENCE: u16 = 7;
    pub(crate) const ELAPSED: u16 = 8;
    pub(crate) const STATUS: u16 = 13;
    pub(crate) const RAPID: u16 = 14;
    pub(crate) const DNS: u16 = 23;
    pub(crate) const SEARCH: u16 = 24;
    pub(crate) const SNTP: u16 = 31;
    pub(crate) const REFRESH: u16 = 32;
    pub(crate) const NTP: u16 = 56;
}

/// Maximum length of a server identifier (RFC 8415 §11.1).
const DUID_BYTES_MAX: usize = 130;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dhcp6MessageType {
    Solicit = 1,
    Advertise = 2,
    Request = 3,
    Renew = 5,
    Rebind = 6,
    Reply = 7,
    InformationRequest = 11,
}

/// A message to the servers.
#[derive(Debug)]
pub(super) struct Dhcp6Request<'a> {
    pub(super) kind: Dhcp6MessageType,
    pub(super) xid: u32,
    pub(super) mac: [u8; 6],
    /// Hundredths of a second since the exchange began.
    pub(super) elapsed: u16,
    pub(super) server: Option<&'a [u8]>,
    pub(super) addresses: &'a [Ipv6Addr],
}

impl Dhcp6Request<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.kind as u8];
        out.extend(&self.xid.to_be_bytes()[1..]);
        put(&mut out, code::CLIENT, &duid(self.mac));
        if let Some(server) = self.server {
            put(&mut out, code::SERVER, server);
        }
        // RFC 8415 §18.2.6: an INFORMATION-REQUEST asks for configuration only, without an association.
        if self.kind != Dhcp6MessageType::InformationRequest {
            put(&mut out, code::IA_NA, &self.association());
        }
        // RFC 8415 §21.14: a server that allows it answers at once, which saves a round trip at boot.
        if self.kind == Dhcp6MessageType::Solicit {
            put(&mut out, code::RAPID, &[]);
        }
        let options = [
            code::DNS,
            code::SEARCH,
            code::SNTP,
            code::NTP,
            code::REFRESH,
        ];
        let options: Vec<u8> = options.iter().flat_map(|c| c.to_be_bytes()).collect();
        put(&mut out, code::WANTED, &options);
        put(&mut out, code::ELAPSED, &self.elapsed.to_be_bytes());
        out
    }

    fn association(&self) -> Vec<u8> {
        let mut out = association_id(self.mac).to_vec();
        // RFC 8415 §21.4: a client sends T1 and T2 as zero.
        out.extend([0; 8]);
        for address in self.addresses {
            let mut value = address.octets().to_vec();
            // RFC 8415 §21.6: a client sends both lifetimes as zero.
            value.extend([0; 8]);
            put(&mut out, code::IA_ADDR, &value);
        }
        out
    }
}

fn put(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_be_bytes());
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
}

/// DUID-LL of an Ethernet card. It follows from the card, so it needs no storage across boots.
fn duid(mac: [u8; 6]) -> [u8; 10] {
    let mut duid = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    duid[4..].copy_from_slice(&mac);
    duid
}

/// Identifier of a card's only association, taken from its MAC address.
fn association_id(mac: [u8; 6]) -> [u8; 4] {
    [mac[2], mac[3], mac[4], mac[5]]
}

/// A granted address. The lifetimes are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IaAddress {
    pub(super) address: Ipv6Addr,
    pub(super) preferred: u32,
    pub(super) valid: u32,
}

/// The association of this client in a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IdentityAssociation {
    pub(super) t1: u32,
    pub(super) t2: u32,
    pub(super) status: u16,
    pub(super) addresses: Vec<IaAddress>,
}

/// A message from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dhcp6Reply {
    pub(super) kind: Dhcp6MessageType,
    pub(super) xid: u32,
    pub(super) server: Vec<u8>,
    pub(super) preference: u8,
    pub(super) status: u16,
    pub(super) rapid: bool,
    pub(super) association: Option<IdentityAssociation>,
    pub(super) dns: Vec<Ipv6Addr>,
    pub(super) search: Vec<String>,
    pub(super) ntp: Vec<Ipv6Addr>,
    pub(super) refresh: Option<u32>,
}

impl Dhcp6Reply {
    /// Decodes a message. Returns `None` if it is no well-formed reply to a client with this card.
    pub(super) fn decode(bytes: &[u8], mac: [u8; 6]) -> Option<Self> {
        let (header, options) = bytes.split_at_checked(4)?;
        let kind = match header[0] {
            2 => Dhcp6MessageType::Advertise,
            7 => Dhcp6MessageType::Reply,
            _ => return None,
        };
        let options = read_options(options)?;
        let find = |code| options.iter().find(|(c, _)| *c == code).map(|(_, v)| *v);
        // RFC 8415 §16.3 and §16.10: a client discards an answer to another client.
        if find(code::CLIENT)? != duid(mac) {
            return None;
        }
        let server = find(code::SERVER)?;
        // Two bytes of type and at least one of identifier (RFC 8415 §11.1).
        if server.len() < 3 || server.len() > DUID_BYTES_MAX {
            return None;
        }
        let ours = |o: &&(u16, &[u8])| o.0 == code::IA_NA && o.1.starts_with(&association_id(mac));
        let mut ntp = find(code::NTP).map(ntp_addresses).unwrap_or_default();
        // RFC 5908 replaces option 31 by option 56; older servers send only the former.
        ntp.extend(find(code::SNTP).map(addresses).unwrap_or_default());
        Some(Self {
            kind,
            xid: u32::from_be_bytes([0, header[1], header[2], header[3]]),
            server: server.to_vec(),
            preference: find(code::PREFERENCE).map_or(0, |v| v.first().copied().unwrap_or(0)),
            // RFC 8415 §21.13: without the option the status is success.
            status: find(code::STATUS).map_or(0, status),
            rapid: find(code::RAPID).is_some(),
            association: options.iter().find(ours).and_then(|o| association(o.1)),
            dns: find(code::DNS).map(addresses).unwrap_or_default(),
            search: find(code::SEARCH).map(read_names).unwrap_or_default(),
            ntp,
            refresh: find(code::REFRESH)
                .and_then(|v| v.try_into().ok())
                .map(u32::from_be_bytes),
        })
    }
}

fn read_options(mut bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut options = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(4)?;
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (value, rest) = rest.split_at_checked(len)?;
        options.push((u16::from_be_bytes([head[0], head[1]]), value));
        bytes = rest;
    }
    Some(options)
}

/// The status of an option. A status that is cut short counts as a failure.
fn status(value: &[u8]) -> u16 {
    value.first_chunk().map_or(1, |s| u16::from_be_bytes(*s))
}

fn association(value: &[u8]) -> Option<IdentityAssociation> {
    let (head, options) = value.split_at_checked(12)?;
    let mut association = IdentityAssociation {
        t1: u32::from_be_bytes(head[4..8].try_into().ok()?),
        t2: u32::from_be_bytes(head[8..12].try_into().ok()?),
        ..IdentityAssociation::default()
    };
    for (code, value) in read_options(options)? {
        match code {
            code::IA_ADDR => association.addresses.extend(granted(value)),
            code::STATUS => association.status = status(value),
            _ => {}
        }
    }
    Some(association)
}

/// A granted address, if a machine can have it and its lifetimes are in order.
fn granted(value: &[u8]) -> Option<IaAddress> {
    let (fixed, options) = value.split_at_checked(24)?;
    let granted = IaAddress {
        address: Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[..16]).ok()?),
        preferred: u32::from_be_bytes(fixed[16..20].try_into().ok()?),
        valid: u32::from_be_bytes(fixed[20..24].try_into().ok()?),
    };
    // A server reports per address whether it grants it (RFC 8415 §21.13).
    let failed = read_options(options)?
        .iter()
        .any(|(c, v)| *c == code::STATUS && status(v) != 0);
    // A server has no say over link-local addresses: the machine forms those itself.
    let usable = is_host(granted.address) && !granted.address.is_unicast_link_local();
    // RFC 8415 §21.6: a client discards an address that is preferred for longer than it is valid.
    (!failed && usable && granted.preferred <= granted.valid).then_some(granted)
}

fn is_host(address: Ipv6Addr) -> bool {
    !address.is_multicast() && !address.is_loopback() && !address.is_unspecified()
}

fn addresses(value: &[u8]) -> Vec<Ipv6Addr> {
    let chunks = value
        .chunks_exact(16)
        .filter_map(|c| <[u8; 16]>::try_from(c).ok());
    chunks.map(Ipv6Addr::from).filter(|a| is_host(*a)).collect()
}

/// Unicast servers of option 56. Multicast addresses and names are left out.
fn ntp_addresses(value: &[u8]) -> Vec<Ipv6Addr> {
    let options = read_options(value).unwrap_or_default();
    options
        .iter()
        // RFC 5908 §4.1: suboption 1 is the address of a server.
        .filter(|(c, _)| *c == 1)
        .flat_map(|(_, v)| addresses(v))
        .collect()
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, v6};
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn another_implementation_reads_what_we_write() {
        let address: Ipv6Addr = "2001:db8::9".parse().expect("valid");
        let query = Dhcp6Request {
            kind: Dhcp6MessageType::Request,
            xid: 0x0001_0203,
            mac: MAC,
            elapsed: 12,
            server: Some(&[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]),
            addresses: &[address],
        };
        let read = v6::Message::from_bytes(&query.encode()).expect("well formed");
        assert_eq!(read.msg_type(), v6::MessageType::Request);
        assert_eq!(read.xid(), [1, 2, 3]);
        let Some(v6::DhcpOption::IANA(ia)) = read.opts().get(v6::OptionCode::IANA) else {
            panic!("has an association");
        };
        let Some(v6::DhcpOption::IAAddr(inner)) = ia.opts.get(v6::OptionCode::IAAddr) else {
            panic!("has an address");
        };
        assert_eq!((ia.id, inner.addr), (1, address));
        assert_eq!(
            read.opts().get(v6::OptionCode::ElapsedTime),
            Some(&v6::DhcpOption::ElapsedTime(12))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = vec![7, 0, 0, 1, 0, 1, 0, 10];
            bytes.extend(duid(MAC));
            bytes.extend([0, 2, 0, 3, 1, 2, 3, 0, 3]);
            bytes.extend(tail);
            let _ = Dhcp6Reply::decode(&bytes, MAC);
        }
    }
}
