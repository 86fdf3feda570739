//! Name servers and domains that routers advertise to hosts (RFC 8106).
//!
//! The kernel checks the advertisement and passes on the options. This module keeps their
//! lifetimes.

use std::{collections::BTreeMap, net::Ipv6Addr, time::Duration};

use crate::dns::read_names;

const RDNSS: u8 = 25;
const DNSSL: u8 = 31;
/// A lifetime without an end.
const FOREVER: u32 = u32::MAX;
/// Maximum number of servers or domains of one card: a flood of advertisements must not fill the
/// memory.
const KEPT_MAX: usize = 8;

/// Name servers and domains that routers advertise on one card. Time counts from any fixed moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouterAdvertisedDns {
    servers: BTreeMap<Ipv6Addr, Option<Duration>>,
    domains: BTreeMap<String, Option<Duration>>,
}

impl RouterAdvertisedDns {
    /// Takes one option, including its kind and length. Returns whether it was well formed.
    pub(crate) fn take(&mut self, now: Duration, option: &[u8]) -> bool {
        let [kind, len, _, _, a, b, c, d, value @ ..] = option else {
            return false;
        };
        // RFC 4861 §4.6 counts the length in units of eight bytes.
        if usize::from(*len) * 8 != option.len() {
            return false;
        }
        let secs = u32::from_be_bytes([*a, *b, *c, *d]);
        let end = (secs != FOREVER).then(|| now + Duration::from_secs(secs.into()));
        match *kind {
            RDNSS => servers(value).for_each(|s| update_entry(&mut self.servers, s, end, now)),
            DNSSL => {
                for name in read_names(value) {
                    update_entry(&mut self.domains, name, end, now);
                }
            }
            // The kernel passes on every option that it does not use itself.
            _ => {}
        }
        true
    }

    /// Drops entries whose lifetime has ended.
    pub(crate) fn expire(&mut self, now: Duration) {
        self.servers
            .retain(|_, end| end.is_none_or(|end| end > now));
        self.domains
            .retain(|_, end| end.is_none_or(|end| end > now));
    }

    /// When the next entry expires.
    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        let all = self.servers.values().chain(self.domains.values());
        all.flatten().min().copied()
    }

    pub(crate) fn servers(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.servers.keys().copied()
    }

    pub(crate) fn domains(&self) -> impl Iterator<Item = &String> {
        self.domains.keys()
    }
}

fn servers(value: &[u8]) -> impl Iterator<Item = Ipv6Addr> {
    let chunks = value
        .chunks_exact(16)
        .filter_map(|c| <[u8; 16]>::try_from(c).ok());
    chunks
        .map(Ipv6Addr::from)
        .filter(|a| !a.is_multicast() && !a.is_unspecified() && !a.is_loopback())
}

/// Adds an entry, or removes it if its lifetime is zero.
fn update_entry<K: Ord>(
    map: &mut BTreeMap<K, Option<Duration>>,
    key: K,
    end: Option<Duration>,
    now: Duration,
) {
    if end == Some(now) {
        map.remove(&key);
    } else if map.len() < KEPT_MAX || map.contains_key(&key) {
        map.insert(key, end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn option(kind: u8, secs: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, ((value.len() + 8) / 8) as u8, 0, 0];
        bytes.extend(secs.to_be_bytes());
        bytes.extend(value);
        bytes
    }

    const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

    #[test]
    fn servers_and_domains_come_and_expire() {
        let mut advertised = RouterAdvertisedDns::default();
        assert!(advertised.take(Duration::ZERO, &option(RDNSS, 600, &SERVER.octets())));
        assert!(advertised.take(
            Duration::ZERO,
            &option(DNSSL, 300, b"\x03lan\x00\x00\x00\x00")
        ));
        assert_eq!(advertised.servers().collect::<Vec<_>>(), [SERVER]);
        assert_eq!(advertised.domains().collect::<Vec<_>>(), ["lan"]);
        assert_eq!(advertised.next_expiry(), Some(Duration::from_secs(300)));
        advertised.expire(Duration::from_secs(300));
        assert_eq!(advertised.domains().count(), 0);
        advertised.expire(Duration::from_secs(600));
        assert_eq!(advertised, RouterAdvertisedDns::default());
    }

    #[test]
    fn lifetime_zero_takes_back_and_the_longest_never_ends() {
        let mut advertised = RouterAdvertisedDns::default();
        advertised.take(Duration::ZERO, &option(RDNSS, FOREVER, &SERVER.octets()));
        assert_eq!(advertised.next_expiry(), None);
        advertised.take(Duration::ZERO, &option(RDNSS, 0, &SERVER.octets()));
        assert_eq!(advertised.servers().count(), 0);
    }

    #[test]
    fn a_flood_and_impossible_servers_are_not_kept() {
        let mut advertised = RouterAdvertisedDns::default();
        for n in 0..1000 {
            let server = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n);
            advertised.take(Duration::ZERO, &option(RDNSS, 600, &server.octets()));
        }
        assert_eq!(advertised.servers().count(), KEPT_MAX);
        let mut advertised = RouterAdvertisedDns::default();
        for server in [
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
        ] {
            advertised.take(Duration::ZERO, &option(RDNSS, 600, &server.octets()));
        }
        assert_eq!(advertised.servers().count(), 0);
        assert!(!advertised.take(Duration::ZERO, &[RDNSS, 3, 0, 0, 0, 0, 0, 9]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            RouterAdvertisedDns::default().take(Duration::ZERO, &bytes);
        }
    }
}
