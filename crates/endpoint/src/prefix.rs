//! The network that an address is in.

use std::net::IpAddr;

/// One IPv4 address, or the /56 a site gets in IPv6: what one party can easily have many of counts
/// as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prefix([u8; 8]);

impl Prefix {
    pub(crate) fn of(address: IpAddr) -> Self {
        let mut bytes = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                // The last byte tells the families apart: no /56 has one.
                bytes[..4].copy_from_slice(&v4.octets());
                bytes[7] = 1;
            }
            IpAddr::V6(v6) => bytes[..7].copy_from_slice(&v6.octets()[..7]),
        }
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn ipv6_counts_by_site_and_mapped_ipv4_as_ipv4() {
        let v4 = |last| Ipv4Addr::new(192, 0, 2, last);
        let site = |a: u16, b| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, a, b, 0, 0, 1));
        assert_eq!(Prefix::of(site(1, 5)), Prefix::of(site(2, 9)));
        assert_ne!(Prefix::of(site(0x100, 0)), Prefix::of(site(0x200, 0)));
        let mapped = IpAddr::V6(v4(1).to_ipv6_mapped());
        assert_eq!(Prefix::of(mapped), Prefix::of(v4(1).into()));
        assert_ne!(Prefix::of(v4(1).into()), Prefix::of(v4(2).into()));
    }
}
