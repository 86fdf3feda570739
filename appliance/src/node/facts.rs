//! What the node can say about the machine that it runs on.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;

use alknet_core::config::{ConfigSource, DynamicConfig};
use alknet_init::control::{DataState, LinkFacts, MachineDiagnostic, MachineFacts};
use arc_swap::ArcSwap;
use serde_json::{Value, json};

use super::identity_services::IdentityServices;
use super::log;
use super::memory::{NodeMemory, kib};

/// The facts as last known. They are replaced as a whole whenever PID 1 sends new ones.
pub(crate) type SharedFacts = Arc<ArcSwap<MachineFacts>>;

/// What stays the same while the node runs. The port and the protocols are known once the port is
/// bound.
#[derive(Debug)]
pub(crate) struct NodeDescription {
    identity: String,
    role: &'static str,
    /// When the uptime began, in milliseconds since the kernel's start.
    began_ms: u64,
    /// Processors that the node could use when it started.
    processors: usize,
    /// Addresses that the port is bound to.
    bound: OnceLock<Vec<SocketAddr>>,
    alpns: OnceLock<Vec<String>>,
    iroh: OnceLock<Vec<SocketAddr>>,
}

impl NodeDescription {
    /// `role` is `appliance` or `host`.
    pub(crate) fn new(identity: String, role: &'static str) -> Self {
        // An appliance's uptime is its machine's. On a host, the node is one program of many, and
        // its uptime is its own.
        let began_ms = match role {
            "host" => log::boot_ms(),
            _ => 0,
        };
        Self {
            identity,
            role,
            began_ms,
            processors: thread::available_parallelism().map_or(1, NonZero::get),
            bound: OnceLock::new(),
            alpns: OnceLock::new(),
            iroh: OnceLock::new(),
        }
    }

    /// The node's key: `ed25519:<64 hex>`.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// How long the machine has run, or on a host the node, in milliseconds.
    fn uptime_ms(&self) -> u64 {
        log::boot_ms().saturating_sub(self.began_ms)
    }

    /// The port that the node serves.
    pub(crate) fn port(&self) -> u16 {
        self.bound().first().map_or(0, SocketAddr::port)
    }

    /// Addresses that the port is bound to.
    fn bound(&self) -> &[SocketAddr] {
        self.bound.get().map_or(&[], Vec::as_slice)
    }

    /// Addresses at which a peer could dial the port, without prefix lengths: first those of the
    /// machine's links that the port is bound to, then those of the port that are on no link, such
    /// as 127.0.0.1.
    pub(crate) fn addresses(&self, facts: &MachineFacts) -> Vec<String> {
        dialled_at(self.bound(), &link_addresses(facts))
    }

    /// The address at which a program of this computer reaches the port.
    pub(crate) fn local_address(&self) -> SocketAddr {
        reached_here_at(self.bound())
    }

    /// The protocols that the port serves.
    pub(crate) fn alpns(&self) -> &[String] {
        self.alpns.get().map_or(&[], Vec::as_slice)
    }

    /// UDP addresses of the iroh endpoints. Empty if the node serves none.
    pub(crate) fn iroh(&self) -> &[SocketAddr] {
        self.iroh.get().map_or(&[], Vec::as_slice)
    }

    pub(super) fn set_iroh(&self, addresses: Vec<SocketAddr>) {
        self.iroh.get_or_init(|| addresses);
    }

    pub(super) fn set_bound(&self, addresses: Vec<SocketAddr>) {
        self.bound.get_or_init(|| addresses);
    }

    pub(super) fn set_alpns(&self, alpns: Vec<String>) {
        self.alpns.get_or_init(|| alpns);
    }
}

/// The answer to `node/info`.
pub(crate) fn info(
    description: &NodeDescription,
    facts: &MachineFacts,
    identity_services: &IdentityServices,
    own: &[MachineDiagnostic],
    endpoint: Value,
) -> Value {
    let config = identity_services.reloader.current();
    // PID 1 repeats the problems that the node sent it, so those are listed once.
    let problems = &facts.problems;
    let own = own.iter().filter(|one| !problems.contains(one));
    let problems: Vec<_> = problems.iter().chain(own).collect();
    json!({
        "name": facts.hostname,
        "identity": description.identity(),
        "role": description.role,
        "version": alknet_init::image_version(),
        "kernel": kernel_release(),
        "arch": std::env::consts::ARCH,
        "processors": description.processors,
        "time": log::now(),
        "clock": facts.clock,
        "uptime_ms": description.uptime_ms(),
        "memory": memory(),
        "listen": {
            "port": description.port(), "alpns": description.alpns(), "iroh": description.iroh(),
        },
        "addresses": description.addresses(facts),
        "links": facts.links,
        "dns": facts.dns,
        "data": facts.data,
        "vault": facts.vault,
        "update": facts.update,
        "storage": facts.storage,
        "config": {
            "source": config_source(&config, facts),
            "generation": config.generation,
            "restart_required": config.restart_required,
            "keeps": identity_services.reloader.keeps(),
        },
        "boot": { "stages": facts.boot_stages },
        "watchdog": facts.watchdog,
        "node_restarts": facts.node_restarts,
        "last_words": facts.last_words,
        "fault_injection": facts.fault_injection,
        "problems": problems,
        "endpoint": endpoint,
    })
}

/// The source of the configuration in force: a file, an operation, a signal, or the machine's
/// start.
pub(crate) fn config_source(config: &DynamicConfig, facts: &MachineFacts) -> String {
    match &config.source {
        ConfigSource::Start => facts.config_source.clone(),
        other => other.to_string(),
    }
}

/// JSON Schema of [`info`]'s answer.
pub(crate) fn info_schema() -> Value {
    let text = json!({ "type": "string" });
    let count = json!({ "type": "integer", "minimum": 0 });
    let list = json!({ "type": "array" });
    let object = json!({ "type": "object" });
    json!({
        "type": "object",
        "required": ["name", "identity", "role", "version", "kernel", "uptime_ms", "memory",
                     "listen", "addresses", "data", "boot", "problems"],
        "properties": {
            "name": text, "identity": text, "role": { "enum": ["appliance", "host"] },
            "version": text, "kernel": text, "arch": text, "clock": text,
            "processors": { "type": "integer", "minimum": 1,
                "description": "Processors that the node could use when it started" },
            "time": { "type": ["string", "null"], "description": "RFC 3339; null while the clock is not sane" },
            "uptime_ms": { "type": "integer", "minimum": 0,
                "description": "How long the machine has run; on a host, the node" },
            "memory": object, "listen": object, "addresses": list,
            "links": list, "dns": list, "data": object, "vault": object, "update": object, "storage": object,
            "config": { "type": "object", "properties": {
                "source": text, "generation": count,
                "restart_required": { "type": "array", "items": text,
                    "description": "Keys with new values that count from the next start on" },
                "keeps": { "type": "boolean",
                    "description": "Whether the next start uses an applied document; without --config it does not" },
            } },
            "boot": object,
            "watchdog": { "type": ["string", "null"] }, "node_restarts": count,
            "last_words": { "type": ["string", "null"] }, "fault_injection": { "type": "boolean" },
            "problems": { "type": "array", "items": { "type": "object",
                "required": ["code", "text", "hint"] } },
            "endpoint": object,
        }
    })
}

/// Facts of an ordinary host, which has no PID 1 of this program to collect them.
pub(crate) fn of_host(state_dir: &Path) -> MachineFacts {
    MachineFacts {
        hostname: read("/proc/sys/kernel/hostname").unwrap_or_else(|| "localhost".to_owned()),
        clock: "host".to_owned(),
        data: DataState {
            mode: "host".to_owned(),
            device: Some(state_dir.display().to_string()),
            ..space(state_dir)
        },
        links: host_links(),
        config_source: "command line".to_owned(),
        ..MachineFacts::default()
    }
}

/// Addresses of the machine's links, without prefix lengths, whether or not the port is bound to
/// them.
pub(crate) fn link_addresses(facts: &MachineFacts) -> Vec<String> {
    let all = facts.links.iter().flat_map(|link| &link.addresses);
    all.filter_map(|a| a.split('/').next())
        .map(str::to_owned)
        .collect()
}

/// The addresses on the links that a port bound to `bound` has, and then the other addresses of
/// `bound`.
fn dialled_at(bound: &[SocketAddr], links: &[String]) -> Vec<String> {
    let bound: Vec<IpAddr> = bound.iter().map(SocketAddr::ip).collect();
    // A socket on `::` takes IPv4 as well, unless another socket is bound to 0.0.0.0 (ipv6(7),
    // `IPV6_V6ONLY`).
    let every_v6 = bound.contains(&Ipv6Addr::UNSPECIFIED.into());
    let every_v4 = every_v6 || bound.contains(&Ipv4Addr::UNSPECIFIED.into());
    let is_bound = |text: &&String| match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_ipv4() => every_v4 || bound.contains(&ip),
        Ok(ip) => every_v6 || bound.contains(&ip),
        // The standard library does not parse an address with a zone, as link-local addresses have
        // it.
        Err(_) => every_v6,
    };
    let mut found: Vec<String> = links.iter().filter(is_bound).cloned().collect();
    for ip in bound.iter().filter(|ip| !ip.is_unspecified()) {
        let text = ip.to_string();
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

/// The loopback address if the port is bound to it or to every address, else the first address of
/// the port.
fn reached_here_at(bound: &[SocketAddr]) -> SocketAddr {
    let every = bound.iter().find(|it| it.ip().is_unspecified());
    let loopback = bound.iter().find(|it| it.ip().is_loopback());
    let port = bound.first().map_or(0, SocketAddr::port);
    let usual = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    match (every, loopback) {
        (Some(_), _) => usual,
        (None, Some(loopback)) => *loopback,
        (None, None) => bound.first().copied().unwrap_or(usual),
    }
}

fn space(dir: &Path) -> DataState {
    let Ok(stat) = nix::sys::statvfs::statvfs(dir) else {
        return DataState::default();
    };
    let block = stat.fragment_size();
    DataState {
        total_bytes: stat.blocks() * block,
        free_bytes: stat.blocks_available() * block,
        ..DataState::default()
    }
}

fn host_links() -> Vec<LinkFacts> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let mut links: Vec<LinkFacts> = Vec::new();
    for entry in all {
        let Some(address) = entry.address.as_ref().and_then(ip_of) else {
            continue;
        };
        // No other machine reaches the node at a loopback address.
        if address.is_loopback() {
            continue;
        }
        let text = address.to_string();
        match links.iter_mut().find(|l| l.name == entry.interface_name) {
            Some(link) => link.addresses.push(text),
            None => links.push(LinkFacts {
                name: entry.interface_name,
                up: entry
                    .flags
                    .contains(nix::net::if_::InterfaceFlags::IFF_RUNNING),
                addresses: vec![text],
                ..LinkFacts::default()
            }),
        }
    }
    links
}

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| a.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
}

fn kernel_release() -> String {
    let name = nix::sys::utsname::uname();
    name.map_or_else(
        |_| "unknown".to_owned(),
        |n| n.release().to_string_lossy().into_owned(),
    )
}

/// Memory that the node can have. Limits are scaled by it.
pub(crate) fn memory_total_bytes() -> u64 {
    // Without the kernel's figure, the limits are those of a small machine.
    NodeMemory::now().map_or(256 << 20, |memory| memory.total_bytes)
}

fn memory() -> Value {
    let memory = NodeMemory::now();
    json!({
        "total_bytes": memory.map(|it| it.total_bytes),
        "available_bytes": memory.map(|it| it.available_bytes),
        "node_resident_bytes": resident_bytes(),
    })
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    kib(&read("/proc/self/status")?, "VmRSS:")
}

/// Maximum resident memory of this process since it started, in bytes.
pub(crate) fn resident_peak_bytes() -> Option<u64> {
    kib(&read("/proc/self/status")?, "VmHWM:")
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_become_bytes() {
        assert_eq!(kib("A: 1 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 * 1024));
        assert_eq!(kib("A: 1 kB\n", "VmRSS:"), None);
    }

    #[test]
    fn this_host_has_facts() {
        let facts = of_host(Path::new("/"));
        assert!(!facts.hostname.is_empty() && facts.data.total_bytes > 0);
    }

    #[test]
    fn addresses_are_those_that_the_port_is_bound_to() {
        let links = ["192.0.2.7", "198.51.100.7", "2001:db8::7", "fe80::7"].map(str::to_owned);
        let at = |bound: &[&str]| {
            let address = |ip: &&str| SocketAddr::new(ip.parse().expect("an address"), 443);
            let bound: Vec<_> = bound.iter().map(address).collect();
            dialled_at(&bound, &links)
        };
        assert_eq!(at(&["::"]), links);
        assert_eq!(at(&["0.0.0.0", "::"]), links);
        assert_eq!(at(&["0.0.0.0"]), links[..2]);
        assert_eq!(at(&["198.51.100.7"]), ["198.51.100.7"]);
        assert_eq!(at(&["127.0.0.1"]), ["127.0.0.1"]);
        assert_eq!(at(&["2001:db8::7", "::1"]), ["2001:db8::7", "::1"]);
        assert_eq!(
            at(&["0.0.0.0", "::1"]),
            ["192.0.2.7", "198.51.100.7", "::1"]
        );
        assert_eq!(at(&[]), [""; 0]);
    }

    #[test]
    fn a_program_of_this_computer_dials_an_address_that_is_bound() {
        let at = |bound: &[&str]| {
            let address = |text: &&str| text.parse().expect("an address");
            let bound: Vec<_> = bound.iter().map(address).collect();
            reached_here_at(&bound).to_string()
        };
        assert_eq!(at(&["[::]:7"]), "127.0.0.1:7");
        assert_eq!(at(&["192.0.2.7:7", "[::1]:7"]), "[::1]:7");
        assert_eq!(at(&["192.0.2.7:7", "192.0.2.8:7"]), "192.0.2.7:7");
        assert_eq!(at(&["192.0.2.7:7", "0.0.0.0:7"]), "127.0.0.1:7");
    }

    #[test]
    fn on_a_host_the_node_is_up_and_not_the_machine() {
        let before = log::boot_ms();
        let host = NodeDescription::new(String::new(), "host");
        let appliance = NodeDescription::new(String::new(), "appliance");
        assert!(appliance.uptime_ms() >= before);
        assert!(host.uptime_ms() <= log::boot_ms() - before);
    }
}
