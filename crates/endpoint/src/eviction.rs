//! Chooses the connection that ends for another one. No sockets, no clock.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use alknet_core::{NetworkPrefix, SitePrefix};

use crate::admission::CapacityScope;

/// A connection over which no byte has gone for this long counts as idle.
const IDLE: Duration = Duration::from_secs(5);

/// A connection of an unknown peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnknownConnection {
    pub(crate) network: NetworkPrefix,
    /// Time since the last byte went over it.
    pub(crate) quiet: Duration,
}

impl UnknownConnection {
    fn is_idle(self) -> bool {
        self.quiet >= IDLE
    }
}

/// Chooses the connection that ends. For a known peer an idle one goes first. For another unknown peer the candidates
/// are the connections of a network, or of a site, that has more than the new peer's would have, and the idle ones of
/// its own network: a host with addresses in thousands of networks cannot end an honest peer's connection because
/// that is silent for a while. Among the candidates those of the site and the network that have the most go first,
/// then the one idle for longest.
pub(crate) fn choose<T>(full: CapacityScope, all: Vec<(UnknownConnection, T)>) -> Option<T> {
    let crowd = UnknownPeerCounts::from_networks(all.iter().map(|(one, _)| one.network));
    let candidates = all.into_iter().filter(|(one, _)| crowd.may_go(full, *one));
    let victim = candidates.max_by_key(|(one, _)| crowd.rank(full, *one));
    victim.map(|(_, victim)| victim)
}

/// Chooses the connection of a known peer that ends for one of the known peer `comer`, or of an unknown one: of the
/// peer that has the most, if that are more than `comer` would have, the one on which no byte has gone for longest. A
/// peer that has one keeps it.
pub(crate) fn choose_known<O: Eq + Hash + Clone, T>(
    comer: Option<&O>,
    all: Vec<(O, Duration, T)>,
) -> Option<T> {
    let mut counts: HashMap<O, usize> = HashMap::new();
    for (owner, ..) in &all {
        *counts.entry(owner.clone()).or_default() += 1;
    }
    let own = comer
        .and_then(|comer| counts.get(comer))
        .copied()
        .unwrap_or(0);
    let fuller = all
        .into_iter()
        .filter(|(owner, ..)| counts[owner] > own + 1);
    let victim = fuller.max_by_key(|(owner, quiet, _)| (counts[owner], *quiet));
    victim.map(|(.., victim)| victim)
}

/// Chooses the connections that end to free their memory: one in `part` of those given, and at least one. The owners
/// that have the most lose theirs first, so that the rest is shared more evenly. Of one owner's the ones on which no
/// byte has gone for longest go first, because unread bytes are what holds memory.
pub(crate) fn relieve<O: Eq + Hash, T>(part: usize, all: Vec<(O, Duration, T)>) -> Vec<T> {
    let ends = all.len().div_ceil(part);
    let mut owners: HashMap<O, Vec<(Duration, T)>> = HashMap::new();
    for (owner, quiet, one) in all {
        owners.entry(owner).or_default().push((quiet, one));
    }
    let mut ranked = Vec::new();
    for mut own in owners.into_values() {
        own.sort_by_key(|(quiet, _)| *quiet);
        let each = own.into_iter().enumerate();
        // The rank is the number of the owner's connections that were used more recently.
        ranked.extend(each.map(|(before, (quiet, one))| ((before, quiet), one)));
    }
    ranked.sort_by_key(|(rank, _)| Reverse(*rank));
    ranked.into_iter().take(ends).map(|(_, one)| one).collect()
}

/// How many connections the unknown peers of each network and of each site have.
struct UnknownPeerCounts {
    networks: HashMap<NetworkPrefix, u32>,
    sites: HashMap<SitePrefix, u32>,
}

impl UnknownPeerCounts {
    fn from_networks(all: impl Iterator<Item = NetworkPrefix>) -> Self {
        let mut crowd = Self {
            networks: HashMap::new(),
            sites: HashMap::new(),
        };
        for network in all {
            *crowd.networks.entry(network).or_default() += 1;
            *crowd.sites.entry(network.site()).or_default() += 1;
        }
        crowd
    }

    fn network(&self, network: NetworkPrefix) -> u32 {
        self.networks.get(&network).copied().unwrap_or(0)
    }

    fn site(&self, network: NetworkPrefix) -> u32 {
        self.sites.get(&network.site()).copied().unwrap_or(0)
    }

    fn may_go(&self, full: CapacityScope, one: UnknownConnection) -> bool {
        match full {
            CapacityScope::All => true,
            CapacityScope::Closing => false,
            CapacityScope::Network(here) => one.is_idle() && one.network == here,
            CapacityScope::Site(here) => {
                one.network.site() == here.site() && self.may_go_for(here, one)
            }
            CapacityScope::UnknownPeers(here) => self.may_go_for(here, one),
        }
    }

    fn may_go_for(&self, here: NetworkPrefix, one: UnknownConnection) -> bool {
        let own = one.is_idle() && one.network == here;
        let fuller = if one.network.site() == here.site() {
            self.network(one.network) > self.network(here) + 1
        } else {
            self.site(one.network) > self.site(here) + 1
        };
        own || fuller
    }

    fn rank(&self, full: CapacityScope, one: UnknownConnection) -> impl Ord + use<> {
        let idle = one.is_idle();
        let idle_first = idle && full == CapacityScope::All;
        // For a known peer an idle connection anywhere is the cheaper loss, whatever its network has.
        let (site, network) = (self.site(one.network), self.network(one.network));
        (idle_first, site, network, idle, one.quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> NetworkPrefix {
        NetworkPrefix::from_ip(address.parse().expect("an address"))
    }

    fn one(address: &str, quiet_s: u64) -> (UnknownConnection, String) {
        let unknown = UnknownConnection {
            network: network(address),
            quiet: Duration::from_secs(quiet_s),
        };
        (unknown, address.to_owned())
    }

    /// One that says something all the time, in each /56 of one /48.
    fn host() -> Vec<(UnknownConnection, String)> {
        let all = (0..=255u16).map(|n| one(&format!("2001:db8:0:{:x}::1", n << 8), 0));
        all.collect()
    }

    #[test]
    fn a_host_with_many_networks_does_not_end_honest_idle_connections() {
        let with = |honest: &str| {
            let mut all = host();
            all.push(one(honest, 40));
            all
        };
        // From another network of its own it ends none but its own, and those only where one network has more.
        for honest in ["192.0.2.1", "2001:db8:ffff::1"] {
            let comer = CapacityScope::UnknownPeers(network("2001:db8:0:f00::1"));
            assert_eq!(choose(comer, with(honest)), None, "{honest}");
            // One of the host's goes for an honest peer and for a known one that finds nothing idle.
            let victim = choose(
                CapacityScope::UnknownPeers(network("203.0.113.1")),
                with(honest),
            );
            assert!(victim.is_some_and(|victim| victim != honest), "{honest}");
        }
        assert!(choose(CapacityScope::All, host()).is_some());
        // Also where the honest network has a few.
        let mut few = with("192.0.2.1");
        few.push(one("192.0.2.2", 40));
        let comer = CapacityScope::UnknownPeers(network("2001:db8:0:f00::1"));
        assert_eq!(choose(comer, few), None);
    }

    #[test]
    fn an_idle_one_goes_first_for_a_known_peer() {
        let mut all = host();
        all.push(one("192.0.2.1", 40));
        assert_eq!(
            choose(CapacityScope::All, all).as_deref(),
            Some("192.0.2.1")
        );
    }

    #[test]
    fn a_full_network_or_site_makes_room_of_its_own() {
        let here = network("192.0.2.9");
        let all = || {
            vec![
                one("192.0.2.1", 7),
                one("192.0.2.2", 0),
                one("192.0.3.1", 9),
            ]
        };
        let victim = choose(CapacityScope::Network(here), all());
        assert_eq!(victim.as_deref(), Some("192.0.2.1"));
        assert_eq!(
            choose(CapacityScope::Network(here), vec![one("192.0.2.2", 0)]),
            None
        );
        let mut site = host();
        site.push(one("192.0.2.1", 7));
        let here = network("2001:db8:0:100::9");
        assert_eq!(choose(CapacityScope::Site(here), site.clone()), None);
        site.push(one("2001:db8:0:200::7", 0));
        site.push(one("2001:db8:0:200::8", 0));
        let victim = choose(CapacityScope::Site(here), site);
        assert!(victim.is_some_and(|victim| victim.starts_with("2001:db8:0:200:")));
    }

    #[test]
    fn a_known_peer_gets_a_place_of_the_peer_that_has_the_most() {
        let all = |counts: &[(&'static str, u64)]| {
            let each = |&(name, count): &(&'static str, u64)| {
                (0..count).map(move |n| (name, Duration::from_secs(n), format!("{name} {n}")))
            };
            counts.iter().flat_map(each).collect::<Vec<_>>()
        };
        let victim = choose_known(Some(&"ada"), all(&[("eve", 3), ("mallory", 4)]));
        assert_eq!(victim.as_deref(), Some("mallory 3"));
        // Nor does a peer get more than the others by it.
        let three = || all(&[("ada", 2), ("eve", 3)]);
        assert_eq!(choose_known(Some(&"ada"), three()), None);
        assert_eq!(
            choose_known(Some(&"bob"), three()).as_deref(),
            Some("eve 2")
        );
        // An unknown peer has none.
        assert_eq!(choose_known(None, three()).as_deref(), Some("eve 2"));
        for comer in [Some(&"bob"), None] {
            assert_eq!(choose_known(comer, all(&[("ada", 1), ("eve", 1)])), None);
        }
    }

    #[test]
    fn the_fullest_give_first_and_of_theirs_what_is_quiet() {
        let all = || {
            let eve = (0..6).map(|n| ("eve", Duration::from_secs(n), format!("eve {n}")));
            let ada = [("ada", Duration::from_secs(1000), "ada".to_owned())];
            eve.chain(ada).collect::<Vec<_>>()
        };
        assert_eq!(relieve(4, all()), ["eve 5", "eve 4"]);
        assert_eq!(relieve(7, all()), ["eve 5"]);
        // A peer that has one only, however quiet, gives it when others have no second one.
        let names = relieve(1, all());
        assert_eq!(names.iter().position(|name| name == "ada"), Some(5));
        let none: Vec<(&str, Duration, ())> = Vec::new();
        assert!(relieve(4, none).is_empty());
    }
}
