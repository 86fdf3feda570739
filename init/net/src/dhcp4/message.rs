//! DHCPv4 messages (RFC 2131 §2, options RFC 2132, RFC 3396, RFC 3442).
//!
//! The reader tolerates harmless faults and refuses others: an option of the wrong length counts as
//! absent, so that one careless option does not cost the machine its lease.

use std::net::Ipv4Addr;

/// Bytes of the fixed part before the options.
const HEADER_BYTES: usize = 236;
/// The magic cookie before the options (RFC 2131 §3).
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// Minimum length of a message that old relays and servers forward (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;

pub(super) mod code {
    pub(crate) const MASK: u8 = 1;
    pub(crate) const ROUTER: u8 = 3;
    pub(crate) const DNS: u8 = 6;
    pub(crate) const HOSTNAME: u8 = 12;
    pub(crate) const DOMAIN: u8 = 15;
    pub(crate) const MTU: u8 = 26;
    pub(crate) const NTP: u8 = 42;
    pub(crate) const REQUESTED: u8 = 50;
    pub(crate) const LEASE: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const KIND: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const WANTED: u8 = 55;
    pub(crate) const SIZE_MAX: u8 = 57;
    pub(crate) const T1: u8 = 58;
    pub(crate) const T2: u8 = 59;
    pub(crate) const CLIENT: u8 = 61;
    pub(crate) const ROUTES: u8 = 121;
}

/// Message type, option 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dhcp4MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
}

/// A message to a server.
#[derive(Debug)]
pub(super) struct Dhcp4Request<'a> {
    pub(super) kind: Dhcp4MessageType,
    pub(super) xid: u32,
    pub(super) secs: u16,
    /// Asks the server to broadcast its reply: the client has no address yet.
    pub(super) broadcast: bool,
    pub(super) client_address: Ipv4Addr,
    pub(super) mac: [u8; 6],
    pub(super) requested: Option<Ipv4Addr>,
    pub(super) server: Option<Ipv4Addr>,
    pub(super) hostname: &'a str,
}

impl Dhcp4Request<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        // BOOTREQUEST, hardware type Ethernet, six bytes of hardware address (RFC 2131 §2).
        out[..3].copy_from_slice(&[1, 1, 6]);
        out[4..8].copy_from_slice(&self.xid.to_be_bytes());
        out[8..10].copy_from_slice(&self.secs.to_be_bytes());
        out[10] = if self.broadcast { 0x80 } else { 0 };
        out[12..16].copy_from_slice(&self.client_address.octets());
        out[28..34].copy_from_slice(&self.mac);
        out.extend(COOKIE);
        self.options(&mut out);
        out.push(255);
        // Zeros after the end option are pad options (RFC 2132 §3.1).
        out.resize(out.len().max(MESSAGE_BYTES_MIN), 0);
        out
    }

    fn options(&self, out: &mut Vec<u8>) {
        put(out, code::KIND, &[self.kind as u8]);
        // RFC 2132 §9.14: type 1 says that the identifier is an Ethernet address.
        let mut client = vec![1];
        client.extend(self.mac);
        put(out, code::CLIENT, &client);
        if let Some(address) = self.requested {
            put(out, code::REQUESTED, &address.octets());
        }
        if let Some(server) = self.server {
            put(out, code::SERVER, &server.octets());
        }
        if !self.hostname.is_empty() {
            put(out, code::HOSTNAME, self.hostname.as_bytes());
        }
        // The payload of an Ethernet frame behind the IP and UDP headers, so that a reply never
        // comes in fragments.
        put(out, code::SIZE_MAX, &1472_u16.to_be_bytes());
        // RFC 3442 wants the classless routes before the routers.
        let wanted = [
            code::MASK,
            code::ROUTES,
            code::ROUTER,
            code::DNS,
            code::HOSTNAME,
            code::DOMAIN,
            code::MTU,
            code::NTP,
            code::LEASE,
            code::SERVER,
            code::T1,
            code::T2,
        ];
        put(out, code::WANTED, &wanted);
    }
}

fn put(out: &mut Vec<u8>, code: u8, value: &[u8]) {
    // The length of an option is one byte. Only the host name could be longer, and a cut name is a
    // hint all the same.
    let value = &value[..value.len().min(255)];
    out.extend([code, value.len() as u8]);
    out.extend(value);
}

/// A message from a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dhcp4Reply {
    pub(super) kind: Dhcp4MessageType,
    pub(super) xid: u32,
    pub(super) your_address: Ipv4Addr,
    pub(super) mac: [u8; 6],
    options: Vec<(u8, Vec<u8>)>,
}

impl Dhcp4Reply {
    /// Decodes a message. Returns `None` if it is no well-formed server message for an Ethernet
    /// card.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let options = bytes.get(HEADER_BYTES + COOKIE.len()..)?;
        // BOOTREPLY for Ethernet. BOOTP replies have no cookie and grant no lease (RFC 2131 §3).
        if bytes[..3] != [2, 1, 6] || bytes[HEADER_BYTES..][..COOKIE.len()] != COOKIE {
            return None;
        }
        let mut reply = Self {
            kind: Dhcp4MessageType::Offer,
            xid: u32::from_be_bytes(bytes[4..8].try_into().ok()?),
            your_address: Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[16..20]).ok()?),
            mac: bytes[28..34].try_into().ok()?,
            options: Vec::new(),
        };
        reply.read_options(options)?;
        let overload = reply
            .option(code::OVERLOAD)
            .map_or(0, |v| v.first().copied().unwrap_or(0));
        // RFC 2131 §4.1: the options are read first, then `file`, then `sname`.
        if overload & 1 != 0 {
            reply.read_options(&bytes[108..236])?;
        }
        if overload & 2 != 0 {
            reply.read_options(&bytes[44..108])?;
        }
        reply.kind = match reply.option(code::KIND)? {
            [2] => Dhcp4MessageType::Offer,
            [5] => Dhcp4MessageType::Ack,
            [6] => Dhcp4MessageType::Nak,
            // DECLINE, RELEASE and INFORM are sent by clients only.
            _ => return None,
        };
        Some(reply)
    }

    /// Reads options. An option that occurs twice is one long option (RFC 3396).
    fn read_options(&mut self, mut bytes: &[u8]) -> Option<()> {
        loop {
            match bytes {
                // Some servers omit the end option if the options fill the message.
                [] | [255, ..] => return Some(()),
                [0, rest @ ..] => bytes = rest,
                [code, len, rest @ ..] => {
                    let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                    match self.options.iter_mut().find(|(c, _)| c == code) {
                        Some((_, known)) => known.extend(value),
                        None => self.options.push((*code, value.to_vec())),
                    }
                    bytes = rest;
                }
                [_] => return None,
            }
        }
    }

    pub(super) fn option(&self, code: u8) -> Option<&[u8]> {
        self.options
            .iter()
            .find(|(c, _)| *c == code)
            .map(|(_, v)| v.as_slice())
    }

    pub(super) fn number32(&self, code: u8) -> Option<u32> {
        self.option(code)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn number16(&self, code: u8) -> Option<u16> {
        self.option(code)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(super) fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.number32(code).map(Ipv4Addr::from_bits)
    }

    /// The addresses of an option that a host can have. Others in the list are skipped.
    pub(super) fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let chunks = self.option(code).unwrap_or_default().chunks_exact(4);
        chunks
            .map(|c| Ipv4Addr::new(c[0], c[1], c[2], c[3]))
            .filter(|a| is_host(*a))
            .collect()
    }

    pub(super) fn text(&self, code: u8) -> Option<&str> {
        let text = std::str::from_utf8(self.option(code)?).ok()?;
        // RFC 2132 §2: the receiver must be prepared to delete trailing NULs.
        Some(text.trim_end_matches('\0'))
    }

    /// The classless routes, up to the first malformed entry. `None` if the option is absent.
    pub(super) fn routes(&self) -> Option<Vec<(Ipv4Addr, u8, Ipv4Addr)>> {
        let mut bytes = self.option(code::ROUTES)?;
        let mut routes = Vec::new();
        while let Some((&len, rest)) = bytes.split_first() {
            let significant = usize::from(len).div_ceil(8);
            if len > 32 || rest.len() < significant + 4 {
                break;
            }
            let mut target = [0; 4];
            target[..significant].copy_from_slice(&rest[..significant]);
            let via = &rest[significant..significant + 4];
            // RFC 3442: the client must zero the bits that the mask leaves out. The kernel refuses a route that has
            // them.
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            routes.push((
                Ipv4Addr::from_bits(u32::from_be_bytes(target) & mask),
                len,
                Ipv4Addr::new(via[0], via[1], via[2], via[3]),
            ));
            bytes = &rest[significant + 4..];
        }
        Some(routes)
    }
}

/// Whether a machine can have this address: a unicast address outside loopback and "this network".
pub(super) fn is_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    // 224 and above are multicast, reserved and broadcast addresses.
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests {
    use dhcproto::{
        Decodable, Encodable,
        v4::{self, DhcpOption, OptionCode},
    };
    use proptest::prelude::*;

    use super::*;

    fn query() -> Dhcp4Request<'static> {
        Dhcp4Request {
            kind: Dhcp4MessageType::Request,
            xid: 0x0102_0304,
            secs: 7,
            broadcast: true,
            client_address: Ipv4Addr::UNSPECIFIED,
            mac: [2, 0, 0, 0, 0, 1],
            requested: Some(Ipv4Addr::new(192, 0, 2, 9)),
            server: Some(Ipv4Addr::new(192, 0, 2, 1)),
            hostname: "box",
        }
    }

    #[test]
    fn another_implementation_reads_what_we_write() {
        let read = v4::Message::from_bytes(&query().encode()).expect("well formed");
        assert_eq!(read.xid(), 0x0102_0304);
        assert_eq!(read.secs(), 7);
        assert!(read.flags().broadcast());
        assert_eq!(read.chaddr(), [2, 0, 0, 0, 0, 1]);
        assert_eq!(read.opts().msg_type(), Some(v4::MessageType::Request));
        assert_eq!(
            read.opts().get(OptionCode::RequestedIpAddress),
            Some(&DhcpOption::RequestedIpAddress(Ipv4Addr::new(192, 0, 2, 9)))
        );
        assert_eq!(
            read.opts().get(OptionCode::Hostname),
            Some(&DhcpOption::Hostname("box".to_owned()))
        );
    }

    fn offer(options: Vec<DhcpOption>) -> Vec<u8> {
        let mut message = v4::Message::default();
        message
            .set_opcode(v4::Opcode::BootReply)
            .set_xid(5)
            .set_yiaddr([192, 0, 2, 9]);
        message.set_chaddr(&[2, 0, 0, 0, 0, 1]);
        message
            .opts_mut()
            .insert(DhcpOption::MessageType(v4::MessageType::Offer));
        for option in options {
            message.opts_mut().insert(option);
        }
        message.to_vec().expect("encodes")
    }

    #[test]
    fn what_another_implementation_writes_is_read() {
        let servers = vec![Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(0, 1, 2, 3)];
        let bytes = offer(vec![
            DhcpOption::DomainNameServer(servers),
            DhcpOption::AddressLeaseTime(3600),
            DhcpOption::InterfaceMtu(1400),
            DhcpOption::DomainName("example.org".to_owned()),
        ]);
        let reply = Dhcp4Reply::decode(&bytes).expect("well formed");
        assert_eq!((reply.kind, reply.xid), (Dhcp4MessageType::Offer, 5));
        assert_eq!(reply.your_address, Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(reply.addresses(code::DNS), [Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!(reply.number32(code::LEASE), Some(3600));
        assert_eq!(reply.number16(code::MTU), Some(1400));
        assert_eq!(reply.text(code::DOMAIN), Some("example.org"));
        assert_eq!(reply.routes(), None);
    }

    fn with_routes(bytes: &[u8]) -> Dhcp4Reply {
        let mut raw = offer(Vec::new());
        raw.truncate(HEADER_BYTES + 4);
        raw.extend([53, 1, 5, 121, bytes.len() as u8]);
        raw.extend(bytes);
        raw.push(255);
        Dhcp4Reply::decode(&raw).expect("well formed")
    }

    #[test]
    fn classless_routes_are_read_up_to_the_first_fault() {
        let via = Ipv4Addr::new(10, 0, 0, 1);
        let reply = with_routes(&[0, 10, 0, 0, 1, 12, 172, 31, 10, 0, 0, 1]);
        assert_eq!(
            reply.routes(),
            Some(vec![
                (Ipv4Addr::UNSPECIFIED, 0, via),
                (Ipv4Addr::new(172, 16, 0, 0), 12, via)
            ])
        );
        assert_eq!(with_routes(&[33, 10, 0, 0, 1]).routes(), Some(Vec::new()));
        assert_eq!(with_routes(&[24, 10, 0, 0]).routes(), Some(Vec::new()));
    }

    #[test]
    fn long_options_are_joined_and_overloaded_fields_are_read() {
        let mut raw = offer(Vec::new());
        raw.truncate(HEADER_BYTES + 4);
        raw.extend([
            53, 1, 2, 52, 1, 3, 15, 3, b'a', b'b', b'c', 15, 1, b'd', 255,
        ]);
        raw[108..115].copy_from_slice(&[51, 4, 0, 0, 14, 16, 255]);
        raw[44..50].copy_from_slice(&[26, 2, 5, 220, 255, 0]);
        let reply = Dhcp4Reply::decode(&raw).expect("well formed");
        assert_eq!(reply.text(code::DOMAIN), Some("abcd"));
        assert_eq!(reply.number32(code::LEASE), Some(3600));
        assert_eq!(reply.number16(code::MTU), Some(1500));
    }

    #[test]
    fn cut_and_foreign_messages_are_refused() {
        let good = offer(vec![DhcpOption::AddressLeaseTime(3600)]);
        for len in 0..HEADER_BYTES + 8 {
            let cut = Dhcp4Reply::decode(&good[..len]);
            assert!(len > HEADER_BYTES + 6 || cut.is_none(), "{len} bytes");
        }
        for (at, value) in [(0, 1), (1, 6), (2, 16), (HEADER_BYTES, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Dhcp4Reply::decode(&bad).is_none(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(head in any::<[u8; 32]>(), tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes[..32].copy_from_slice(&head);
            bytes[..3].copy_from_slice(&[2, 1, 6]);
            bytes.extend(COOKIE);
            bytes.extend(tail);
            if let Some(reply) = Dhcp4Reply::decode(&bytes) {
                let _ = (reply.routes(), reply.addresses(code::DNS), reply.text(code::DOMAIN));
            }
        }
    }
}
