use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use alknet_core::config::{LinkConfig, LinkMethod};

use crate::NetError;

/// The configuration of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetPlan {
    /// Configured cards. Every other card is configured automatically.
    pub links: Vec<LinkConfig>,
    /// Host name that is sent to DHCP servers. If empty, none is sent.
    pub hostname: String,
    /// Path of the resolver's configuration file.
    pub resolv_conf: PathBuf,
}

impl NetPlan {
    /// A plan with which every card is configured automatically.
    pub fn automatic(hostname: &str) -> Self {
        Self::new(Vec::new(), hostname)
    }

    /// The plan of a configuration. The resolver's file is `/run/resolv.conf`.
    pub fn new(links: Vec<LinkConfig>, hostname: &str) -> Self {
        Self {
            links,
            hostname: hostname.to_owned(),
            resolv_conf: PathBuf::from("/run/resolv.conf"),
        }
    }

    /// The settings of one card: those of the first entry with its name or its MAC address.
    pub(crate) fn for_link(&self, name: &str, mac: &str) -> (LinkSettings, Vec<NetError>) {
        let found = self
            .links
            .iter()
            // Administrators copy MAC addresses in upper or lower case.
            .find(|l| l.matches == name || l.matches.eq_ignore_ascii_case(mac));
        found.map_or_else(Default::default, LinkSettings::read)
    }
}

/// The parsed settings of one card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkSettings {
    pub(crate) method: LinkMethod,
    pub(crate) addresses: Vec<Prefix>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) dns: Vec<IpAddr>,
}

impl LinkSettings {
    /// Parses the settings. Invalid addresses are left out and reported: one typing error must not
    /// cost the machine its other addresses.
    fn read(config: &LinkConfig) -> (Self, Vec<NetError>) {
        let mut problems = Vec::new();
        let mut addresses = Vec::new();
        for text in &config.addresses {
            match Prefix::parse(text) {
                Ok(prefix) => addresses.push(prefix),
                Err(error) => problems.push(error),
            }
        }
        let settings = Self {
            method: config.method,
            addresses,
            gateways: config.gateways.clone(),
            dns: config.dns.clone(),
        };
        (settings, problems)
    }
}

/// An address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix {
    pub(crate) address: IpAddr,
    pub(crate) len: u8,
}

impl Prefix {
    pub(crate) const fn new(address: IpAddr, len: u8) -> Self {
        Self { address, len }
    }

    fn parse(text: &str) -> Result<Self, NetError> {
        let bad = || NetError::BadAddress(text.to_owned());
        let (address, len) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let len: u8 = len.parse().map_err(|_| bad())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        // A prefix of zero bits would put the whole Internet on this link.
        if len == 0 || len > bits || address.is_unspecified() || address.is_multicast() {
            return Err(bad());
        }
        Ok(Self { address, len })
    }

    /// Whether `other` is reached on this prefix without a router.
    pub(crate) fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same_bits(a.to_bits().into(), b.to_bits().into(), 32, self.len)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same_bits(a.to_bits(), b.to_bits(), 128, self.len),
            _ => false,
        }
    }

    /// The broadcast address of an IPv4 prefix. `None` for IPv6, and for a prefix that is too short
    /// to have one.
    pub(crate) fn broadcast(&self) -> Option<Ipv4Addr> {
        let IpAddr::V4(address) = self.address else {
            return None;
        };
        let host = u32::MAX.checked_shr(u32::from(self.len)).unwrap_or(0);
        (self.len < 31).then(|| Ipv4Addr::from_bits(address.to_bits() | host))
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

fn same_bits(a: u128, b: u128, width: u8, len: u8) -> bool {
    (a ^ b)
        // With zero bits to compare, the shift is by the whole width, which Rust refuses.
        .checked_shr(u32::from(width.saturating_sub(len)))
        .unwrap_or(0)
        == 0
}

/// Whether the address is a link-local one.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::is_link_local(&v4),
        IpAddr::V6(v6) => Ipv6Addr::is_unicast_link_local(&v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(matches: &str, addresses: &[&str]) -> LinkConfig {
        LinkConfig {
            matches: matches.to_owned(),
            method: LinkMethod::Static,
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
            gateways: Vec::new(),
            dns: Vec::new(),
        }
    }

    #[test]
    fn a_card_is_found_by_name_and_by_mac_in_any_case() {
        let plan = NetPlan::new(
            vec![
                config("eth1", &["192.0.2.1/24"]),
                config("52:54:00:AA:bb:01", &["192.0.2.2/24"]),
            ],
            "box",
        );
        let by_name = plan.for_link("eth1", "52:54:00:00:00:00").0;
        assert_eq!(by_name.addresses[0].to_string(), "192.0.2.1/24");
        let by_mac = plan.for_link("eth7", "52:54:00:aa:bb:01").0;
        assert_eq!(by_mac.addresses[0].to_string(), "192.0.2.2/24");
        assert_eq!(
            plan.for_link("eth9", "52:54:00:00:00:09").0,
            LinkSettings::default()
        );
    }

    #[test]
    fn one_bad_address_is_reported_and_the_others_kept() {
        let plan = NetPlan::new(
            vec![config("e", &["192.0.2.1", "192.0.2.2/24", "::1/129"])],
            "box",
        );
        let (settings, problems) = plan.for_link("e", "");
        assert_eq!(settings.addresses.len(), 1);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].to_string().contains("192.0.2.10/24"));
    }

    #[test]
    fn bad_addresses_are_refused() {
        for text in [
            "",
            "/",
            "1.2.3.4/",
            "1.2.3.4/33",
            "1.2.3.4/0",
            "0.0.0.0/8",
            "224.0.0.1/4",
            "x/1",
            "::/64",
            "1.2.3.4/-1",
        ] {
            assert!(Prefix::parse(text).is_err(), "{text}");
        }
        assert!(Prefix::parse("2001:db8::1/128").is_ok());
    }

    #[test]
    fn prefixes_know_their_neighbours() {
        let v4 = Prefix::parse("10.0.2.15/24").expect("valid");
        assert!(v4.contains("10.0.2.2".parse().expect("valid")));
        assert!(!v4.contains("10.0.3.2".parse().expect("valid")));
        assert!(!v4.contains("::1".parse().expect("valid")));
        assert_eq!(v4.broadcast(), Some(Ipv4Addr::new(10, 0, 2, 255)));
        let host = Prefix::parse("10.0.2.15/32").expect("valid");
        assert!(!host.contains("10.0.2.2".parse().expect("valid")));
        assert_eq!(host.broadcast(), None);
        let all = Prefix::parse("8000::1/1").expect("valid");
        assert!(all.contains("ffff::".parse().expect("valid")));
        assert!(!all.contains("1::".parse().expect("valid")));
    }
}
