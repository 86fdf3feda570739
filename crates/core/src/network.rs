//! What counts as one network, wherever something is limited by where it comes from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first 24 bits of an IPv4 address, or the /56 that a site gets in IPv6: what one party can easily
/// have many addresses of counts as one. An IPv4 address that is written as IPv6 counts as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(IpAddr);

/// Bits of an IPv4 address that its network has.
const V4_BITS: u32 = 24;
/// The same of an IPv6 address.
const V6_BITS: u32 = 56;

impl Network {
    /// The one that `address` is in.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & (u32::MAX << (32 - V4_BITS))).into(),
            IpAddr::V6(v6) => {
                Ipv6Addr::from(u128::from(v6) & (u128::MAX << (128 - V6_BITS))).into()
            }
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.0.is_ipv4() { V4_BITS } else { V6_BITS };
        write!(f, "{}/{bits}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> Network {
        Network::of(address.parse().expect("an address"))
    }

    #[test]
    fn what_one_party_can_have_many_of_counts_as_one() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.254", true),
            ("192.0.2.1", "192.0.3.1", false),
            ("192.0.2.1", "::ffff:192.0.2.7", true),
            ("2001:db8:0:1::5", "2001:db8:0:2::9", true),
            ("2001:db8:0:ff::", "2001:db8:0:100::", false),
            ("::1", "127.0.0.1", false),
        ] {
            assert_eq!(network(one) == network(other), same, "{one} {other}");
        }
        assert_eq!(network("192.0.2.9").to_string(), "192.0.2.0/24");
        assert_eq!(network("2001:db8::9").to_string(), "2001:db8::/56");
    }
}
