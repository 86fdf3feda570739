use std::{net::Ipv4Addr, time::Duration};

use super::message::{Dhcp4Reply, code, is_host};
use crate::dns::valid_name;

/// Minimum lease time in seconds: a shorter lease would be renewed more often than packets travel.
const LEASE_SECS_MIN: u32 = 4;
/// Lease time of a lease that never ends, RFC 2131 §3.3.
const LEASE_FOREVER: u32 = u32::MAX;
/// Minimum MTU: IPv6 does not work on a link with a smaller one (RFC 8200 §5).
const MTU_MIN: u16 = 1280;
/// Maximum number of servers or routes that are kept. More are of no use and only cost memory.
const LIST_MAX: usize = 16;

/// The lease that a DHCPv4 server granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp4Lease {
    /// The leased address.
    pub address: Ipv4Addr,
    /// Prefix length of its network, 1 to 32.
    pub prefix_len: u8,
    /// The address of the server.
    pub server: Ipv4Addr,
    /// Routes as target, prefix length and router; a router of `0.0.0.0` means on this link.
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Domain of the network.
    pub domain: Option<String>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// Host name that the server has for this machine.
    pub hostname: Option<String>,
    /// MTU of the network in bytes.
    pub mtu: Option<u16>,
    /// Duration of the lease. `None` if it never ends.
    pub lasts: Option<Duration>,
    /// When the client asks the server of the lease again, counted from the grant.
    pub renew_after: Duration,
    /// When the client asks any server, counted from the grant.
    pub rebind_after: Duration,
}

impl Dhcp4Lease {
    /// Reads the lease of a reply. Returns `None` if the client cannot use it.
    pub(super) fn read(reply: &Dhcp4Reply) -> Option<Self> {
        let address = reply.your_address;
        let prefix_len = prefix_len(reply)?;
        if !usable(address, prefix_len) {
            return None;
        }
        // A lease without the server's address could not be renewed: the renewal goes to that address by unicast.
        let server = reply.address(code::SERVER).filter(|s| is_host(*s))?;
        let secs = reply
            // RFC 2131 §4.3.1 makes the lease time mandatory in an offer: without it the end is unknown.
            .number32(code::LEASE)
            .filter(|s| *s >= LEASE_SECS_MIN)?;
        let (renew, rebind) = times(secs, reply.number32(code::T1), reply.number32(code::T2));
        // A server may send 63 addresses in one option, and each costs memory on every card.
        let mut dns = reply.addresses(code::DNS);
        let mut ntp = reply.addresses(code::NTP);
        dns.truncate(LIST_MAX);
        ntp.truncate(LIST_MAX);
        Some(Self {
            address,
            prefix_len,
            server,
            routes: routes(reply),
            dns,
            domain: reply.text(code::DOMAIN).and_then(valid_name),
            ntp,
            hostname: reply.text(code::HOSTNAME).and_then(valid_name),
            mtu: reply.number16(code::MTU).filter(|m| *m >= MTU_MIN),
            lasts: (secs != LEASE_FOREVER).then(|| Duration::from_secs(secs.into())),
            renew_after: Duration::from_secs(renew.into()),
            rebind_after: Duration::from_secs(rebind.into()),
        })
    }
}

/// The mask's length, or that of the address's class if the server sends no mask.
fn prefix_len(reply: &Dhcp4Reply) -> Option<u8> {
    // RFC 2132 §3.3 does not require a mask; some servers of single networks leave it out.
    let Some(mask) = reply.number32(code::MASK) else {
        return Some(match reply.your_address.octets()[0] {
            0..128 => 8,
            128..192 => 16,
            _ => 24,
        });
    };
    let len = mask.leading_ones();
    // A mask with a hole has no prefix length, and the kernel takes only prefix lengths.
    (len > 0 && len + mask.trailing_zeros() >= 32).then_some(len as u8)
}

/// A unicast address that is not its network's own or broadcast address.
fn usable(address: Ipv4Addr, prefix_len: u8) -> bool {
    let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
    let host = address.to_bits() & host_bits;
    // A /31 or /32 has neither a network nor a broadcast address (RFC 3021), so every address of it is a host's.
    is_host(address) && (prefix_len >= 31 || (host != 0 && host != host_bits))
}

/// T1 and T2 in seconds: the server's if they are in order, else RFC 2131's half and 7/8.
fn times(lease: u32, t1: Option<u32>, t2: Option<u32>) -> (u32, u32) {
    let rebind = t2
        .filter(|t| *t > 1 && *t < lease)
        .unwrap_or(lease - lease / 8 - 1);
    let half = (lease / 2).min(rebind - 1);
    (t1.filter(|t| *t > 0 && *t < rebind).unwrap_or(half), rebind)
}

/// The routes of a reply. Classless routes make the router option void (RFC 3442).
fn routes(reply: &Dhcp4Reply) -> Vec<(Ipv4Addr, u8, Ipv4Addr)> {
    let via_ok = |via: &Ipv4Addr| via.is_unspecified() || is_host(*via);
    let mut routes = reply.routes().unwrap_or_else(|| {
        // RFC 2132 §3.5 lists the routers in order of preference. The kernel would not fail over to the second by
        // itself.
        let routers = reply.addresses(code::ROUTER).into_iter();
        routers
            .take(1)
            .map(|r| (Ipv4Addr::UNSPECIFIED, 0, r))
            .collect()
    });
    // A target within 127/8, or a multicast target, would redirect the machine's own traffic.
    routes.retain(|(target, len, via)| via_ok(via) && (*len == 0 || is_host(*target)));
    routes.truncate(LIST_MAX);
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_servers_when_in_order_and_the_standards_when_not() {
        assert_eq!(times(3600, None, None), (1800, 3149));
        assert_eq!(times(3600, Some(10), Some(20)), (10, 20));
        assert_eq!(times(3600, Some(20), Some(10)), (9, 10));
        assert_eq!(times(3600, Some(0), Some(9999)), (1800, 3149));
        assert_eq!(times(LEASE_SECS_MIN, None, None), (2, 3));
        for lease in LEASE_SECS_MIN..200 {
            let (t1, t2) = times(lease, None, None);
            assert!(0 < t1 && t1 < t2 && t2 < lease, "{lease}: {t1} {t2}");
        }
    }

    #[test]
    fn only_host_addresses_are_usable() {
        let ok = |a: [u8; 4], len| usable(Ipv4Addr::from(a), len);
        assert!(ok([192, 0, 2, 1], 24));
        assert!(ok([192, 0, 2, 0], 32));
        assert!(ok([192, 0, 2, 0], 31));
        for (address, len) in [
            ([192, 0, 2, 0], 24),
            ([192, 0, 2, 255], 24),
            ([0, 0, 0, 0], 32),
            ([127, 0, 0, 1], 8),
            ([224, 0, 0, 1], 24),
            ([255, 255, 255, 255], 32),
        ] {
            assert!(!ok(address, len), "{address:?}/{len}");
        }
    }
}
