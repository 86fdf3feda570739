//! What the node can say about the machine it runs on.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use alknet_core::config::ConfigSource;
use alknet_init::control::{DataState, LinkFacts, MachineDiagnostic, MachineFacts};
use arc_swap::ArcSwap;
use serde_json::{Value, json};

use super::identity_services::IdentityServices;
use super::log;
use super::memory::{NodeMemory, kib};

/// The facts as last known; replaced whole whenever PID 1 sends new ones.
pub(crate) type SharedFacts = Arc<ArcSwap<MachineFacts>>;

/// What stays the same while the node runs. Port and protocols are known once it is bound.
#[derive(Debug)]
pub(crate) struct NodeDescription {
    identity: String,
    role: &'static str,
    /// When what it is up with began, in milliseconds since the kernel did.
    began_ms: u64,
    port: OnceLock<u16>,
    alpns: OnceLock<Vec<String>>,
    iroh: OnceLock<Vec<SocketAddr>>,
}

impl NodeDescription {
    /// `role` is `appliance` or `host`.
    pub(crate) fn new(identity: String, role: &'static str) -> Self {
        // An appliance is its machine; on a host, a node is one program of many.
        let began_ms = match role {
            "host" => log::boot_ms(),
            _ => 0,
        };
        Self {
            identity,
            role,
            began_ms,
            port: OnceLock::new(),
            alpns: OnceLock::new(),
            iroh: OnceLock::new(),
        }
    }

    /// `ed25519:<64 hex>`.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// How long the machine has run, or on a host the node.
    fn uptime_ms(&self) -> u64 {
        log::boot_ms().saturating_sub(self.began_ms)
    }

    /// The port served.
    pub(crate) fn port(&self) -> u16 {
        self.port.get().copied().unwrap_or_default()
    }

    /// Protocols served.
    pub(crate) fn alpns(&self) -> &[String] {
        self.alpns.get().map_or(&[], Vec::as_slice)
    }

    /// UDP addresses where iroh endpoints are served; none where they are not.
    pub(crate) fn iroh(&self) -> &[SocketAddr] {
        self.iroh.get().map_or(&[], Vec::as_slice)
    }

    pub(super) fn set_iroh(&self, addresses: Vec<SocketAddr>) {
        self.iroh.get_or_init(|| addresses);
    }

    pub(super) fn set_port(&self, port: u16) {
        self.port.get_or_init(|| port);
    }

    pub(super) fn set_alpns(&self, alpns: Vec<String>) {
        self.alpns.get_or_init(|| alpns);
    }
}

/// The answer to `node/info`.
pub(crate) fn info(
    about: &NodeDescription,
    facts: &MachineFacts,
    people: &IdentityServices,
    own: &[MachineDiagnostic],
    endpoint: Value,
) -> Value {
    let config = people.reloader.current();
    // PID 1 repeats the problems that the node sent it: they are listed once.
    let problems = &facts.problems;
    let own = own.iter().filter(|one| !problems.contains(one));
    let problems: Vec<_> = problems.iter().chain(own).collect();
    let source = match &config.source {
        ConfigSource::Start => facts.config_source.clone(),
        other => other.to_string(),
    };
    json!({
        "name": facts.hostname,
        "identity": about.identity(),
        "role": about.role,
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": kernel_release(),
        "arch": std::env::consts::ARCH,
        "time": log::now(),
        "clock": facts.clock,
        "uptime_ms": about.uptime_ms(),
        "memory": memory(),
        "listen": { "port": about.port(), "alpns": about.alpns(), "iroh": about.iroh() },
        "addresses": addresses(facts),
        "links": facts.links,
        "dns": facts.dns,
        "data": facts.data,
        "vault": facts.vault,
        "config": {
            "source": source,
            "generation": config.generation,
            "restart_required": config.restart_required,
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
            "time": { "type": ["string", "null"], "description": "RFC 3339; null while the clock is not sane" },
            "uptime_ms": { "type": "integer", "minimum": 0,
                "description": "How long the machine has run; on a host, the node" },
            "memory": object, "listen": object, "addresses": list,
            "links": list, "dns": list, "data": object, "vault": object, "config": object,
            "boot": object,
            "watchdog": { "type": ["string", "null"] }, "node_restarts": count,
            "last_words": { "type": ["string", "null"] }, "fault_injection": { "type": "boolean" },
            "problems": { "type": "array", "items": { "type": "object",
                "required": ["code", "text", "hint"] } },
            "endpoint": object,
        }
    })
}

/// Facts of an ordinary host, where no PID 1 of ours collects them.
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

/// Addresses a peer could dial, without prefix lengths.
pub(crate) fn addresses(facts: &MachineFacts) -> Vec<String> {
    let all = facts.links.iter().flat_map(|link| &link.addresses);
    all.filter_map(|a| a.split('/').next())
        .map(str::to_owned)
        .collect()
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

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<std::net::IpAddr> {
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

/// Memory that the node can have; what limits are scaled by.
pub(crate) fn memory_total_bytes() -> u64 {
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

/// Memory of this process.
pub(crate) fn resident_bytes() -> Option<u64> {
    kib(&read("/proc/self/status")?, "VmRSS:")
}

/// The most memory that this process has had since it started.
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
    fn on_a_host_the_node_is_up_and_not_the_machine() {
        let before = log::boot_ms();
        let host = NodeDescription::new(String::new(), "host");
        let appliance = NodeDescription::new(String::new(), "appliance");
        assert!(appliance.uptime_ms() >= before);
        assert!(host.uptime_ms() <= log::boot_ms() - before);
    }
}
