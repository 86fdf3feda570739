//! The definition of one network, for every limit on where clients come from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first 24 bits of an IPv4 address, or the /56 that a site gets in IPv6: many addresses that one party can
/// easily have count as one. An IPv4 address that is written as IPv6 counts as IPv4.
///
/// ```
/// use std::net::IpAddr;
///
/// use alknet_core::NetworkPrefix;
///
/// let network = |text: &str| text.parse::<IpAddr>().map(NetworkPrefix::from_ip);
/// assert_eq!(network("192.0.2.7")?.to_string(), "192.0.2.0/24");
/// assert_eq!(network("::ffff:192.0.2.9")?, network("192.0.2.7")?);
///
/// let [first, other] = [network("2001:db8:0:1::1")?, network("2001:db8:0:f00::1")?];
/// assert!(first != other && first.site() == other.site());
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkPrefix(IpAddr);

/// The /48 of IPv6 that an IPv6 network is in, which has 256 networks: one party may have all of them. For IPv4 it is
/// the network itself.
///
/// ```
/// use alknet_core::NetworkPrefix;
///
/// let site = NetworkPrefix::from_ip("2001:db8:0:100::1".parse()?).site();
/// assert_eq!(site.to_string(), "2001:db8::/48");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SitePrefix(IpAddr);

/// Bits of an IPv4 address that name its network.
const V4_BITS: u32 = 24;
/// Bits of an IPv6 address that name its network.
const V6_BITS: u32 = 56;
/// Bits of an IPv6 address that name its site.
const SITE_BITS: u32 = 48;

impl NetworkPrefix {
    /// The network of `address`.
    #[must_use]
    pub fn from_ip(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & (u32::MAX << (32 - V4_BITS))).into(),
            IpAddr::V6(v6) => first_bits(v6, V6_BITS).into(),
        })
    }

    /// The site of the network.
    #[must_use]
    pub fn site(self) -> SitePrefix {
        SitePrefix(match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(v6) => first_bits(v6, SITE_BITS).into(),
        })
    }

    /// Whether its site has other networks.
    #[must_use]
    pub fn has_neighbours(self) -> bool {
        self.0.is_ipv6()
    }
}

fn first_bits(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(address) & (u128::MAX << (128 - bits)))
}

impl fmt::Display for NetworkPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.0.is_ipv4() { V4_BITS } else { V6_BITS };
        write!(f, "{}/{bits}", self.0)
    }
}

impl fmt::Display for SitePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.0.is_ipv4() { V4_BITS } else { SITE_BITS };
        write!(f, "{}/{bits}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> NetworkPrefix {
        NetworkPrefix::from_ip(address.parse().expect("an address"))
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
        for (one, other, same) in [
            ("192.0.2.1", "192.0.3.1", false),
            ("2001:db8:0:1::5", "2001:db8:0:ff00::", true),
            ("2001:db8::", "2001:db8:1::", false),
        ] {
            assert_eq!(
                network(one).site() == network(other).site(),
                same,
                "{one} {other}"
            );
        }
        assert!(network("2001:db8::").has_neighbours() && !network("192.0.2.1").has_neighbours());
        assert_eq!(network("192.0.2.9").to_string(), "192.0.2.0/24");
        assert_eq!(network("2001:db8::9").to_string(), "2001:db8::/56");
        assert_eq!(network("192.0.2.9").site().to_string(), "192.0.2.0/24");
    }
}
