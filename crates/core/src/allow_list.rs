//! The addresses to which a dial may go. The dialler applies the list where it resolves the name: a caller that
//! checked the name earlier, and left the resolving to another part, would have checked another answer (DNS
//! rebinding).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::range::AddressRange;

/// The addresses that may be dialled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DialAllowList {
    /// Any address.
    #[default]
    Anywhere,
    /// Addresses of the public Internet ([`is_public`]) and of these ranges.
    Public {
        /// Ranges that are allowed as well.
        also: Vec<AddressRange>,
    },
}

impl DialAllowList {
    /// Whether `address` may be dialled.
    ///
    /// ```
    /// use alknet_core::{AddressRange, DialAllowList};
    ///
    /// let lab: AddressRange = "192.168.7.0/24".parse()?;
    /// let list = DialAllowList::Public { also: vec![lab] };
    /// assert!(list.allows([192, 168, 7, 1].into()));
    /// assert!(!list.allows([192, 168, 8, 1].into()));
    /// # Ok::<(), alknet_core::RangeError>(())
    /// ```
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Public { also } => {
                is_public(address) || also.iter().any(|range| range.contains(address))
            }
        }
    }
}

/// Ranges of IPv4 that are not part of the public Internet: RFC 6890 and its registry, with multicast.
const SPECIAL_V4: [([u8; 4], u8); 16] = [
    // RFC 1122, section 3.2.1.3: this host on this network.
    ([0, 0, 0, 0], 8),
    // RFC 1918: private, as 172.16.0.0/12 and 192.168.0.0/16.
    ([10, 0, 0, 0], 8),
    // RFC 6598: between carriers and their customers.
    ([100, 64, 0, 0], 10),
    // RFC 1122, section 3.2.1.3: loopback.
    ([127, 0, 0, 0], 8),
    // Azure's wire server, which gives a machine its certificates and settings. The address is
    // public by its range, and leads there from every machine of Azure.
    ([168, 63, 129, 16], 32),
    // RFC 3927: link-local. Clouds serve a machine's secrets at 169.254.169.254.
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    // RFC 6890, section 2.1: assignments of protocols.
    ([192, 0, 0, 0], 24),
    // RFC 5737: for documentation, as 198.51.100.0/24 and 203.0.113.0/24.
    ([192, 0, 2, 0], 24),
    // RFC 7526: relays of 6to4, which is deprecated.
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    // RFC 2544: for benchmarks.
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    // RFC 5771: multicast.
    ([224, 0, 0, 0], 4),
    // RFC 1112, section 4: reserved, with the address for broadcasts.
    ([240, 0, 0, 0], 4),
];

/// Ranges within `2000::/3` that are not part of the public Internet: protocols and Teredo, documentation, 6to4.
const SPECIAL_V6: [([u16; 2], u8); 4] = [
    // RFC 2928, with Teredo (RFC 4380) in it.
    ([0x2001, 0], 23),
    // RFC 3849: for documentation.
    ([0x2001, 0xdb8], 32),
    // RFC 3056: 6to4, whose addresses contain an IPv4 address, which may be any of the above.
    ([0x2002, 0], 16),
    // RFC 9637: for documentation.
    ([0x3fff, 0], 20),
];

/// The well-known prefix of NAT64 (RFC 6052 section 2.1). The last four bytes are the IPv4 address that the
/// translator dials.
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// Whether `address` belongs to the public Internet: it is not loopback, private, link-local, shared, multicast,
/// reserved or for documentation, in whichever form it is written.
///
/// ```
/// use std::net::IpAddr;
///
/// use alknet_core::is_public;
///
/// let loopback: IpAddr = "::ffff:127.0.0.1".parse()?;
/// assert!(!is_public(loopback));
/// assert!(is_public(IpAddr::from([1, 1, 1, 1])));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    // An attacker may write 127.0.0.1 as ::ffff:127.0.0.1 (RFC 4291 section 2.5.5.2).
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let bits = u32::from(address);
    let within = |(first, length): &([u8; 4], u8)| {
        (bits ^ u32::from_be_bytes(*first)) >> (32 - u32::from(*length)) == 0
    };
    !SPECIAL_V4.iter().any(within)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    // The translator dials the IPv4 address, so the rules of IPv4 decide.
    if parts[..6] == NAT64 {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let head = u32::from(parts[0]) << 16 | u32::from(parts[1]);
    let within = |([first, second], length): &([u16; 2], u8)| {
        let first = u32::from(*first) << 16 | u32::from(*second);
        (head ^ first) >> (32 - u32::from(*length)) == 0
    };
    // Global unicast addresses are assigned from 2000::/3 only (RFC 3587).
    parts[0] >> 13 == 1 && !SPECIAL_V6.iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_public() {
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:200::1",
            "2a00::1",
            "64:ff9b::8.8.8.8",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(address(text)), "{text}");
        }
    }

    #[test]
    fn what_is_not_however_it_is_written() {
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "::ffff:168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address(text)), "{text}");
        }
    }

    #[test]
    fn what_is_listed_may_be_dialled_too() {
        let also = vec!["10.1.0.0/16".parse().expect("a range")];
        let reach = DialAllowList::Public { also };
        assert!(reach.allows(address("10.1.2.3")) && reach.allows(address("1.1.1.1")));
        assert!(reach.allows(address("::ffff:10.1.2.3")));
        assert!(!reach.allows(address("10.2.0.1")) && !reach.allows(address("127.0.0.1")));
        assert!(DialAllowList::default().allows(address("127.0.0.1")));
    }
}
