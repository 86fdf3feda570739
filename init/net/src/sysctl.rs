//! The kernel's per-card switches, set before a card is switched on.

use std::fs;

/// What IPv6 does on a card by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv6Mode {
    /// Listens to routers.
    Auto,
    /// Only what this program configures.
    Manual,
}

/// Sets the switches of one card. A kernel that lacks one of them works with its default, so
/// failures are not errors.
pub(crate) fn prepare(name: &str, mode: Ipv6Mode, metric: u32) {
    let auto = if mode == Ipv6Mode::Auto { "1" } else { "0" };
    // 2: also when something forwards packets through this machine.
    let accept = if mode == Ipv6Mode::Auto { "2" } else { "0" };
    set("ipv6", name, "accept_ra", accept);
    set("ipv6", name, "autoconf", auto);
    // Stable addresses: a server that changes its address cannot be found.
    set("ipv6", name, "use_tempaddr", "0");
    // A router that comes late is asked for at most every minute, for ever.
    set("ipv6", name, "router_solicitations", "-1");
    set("ipv6", name, "router_solicitation_max_interval", "60");
    set("ipv6", name, "router_solicitation_delay", "0");
    set("ipv6", name, "ra_defrtr_metric", &metric.to_string());
    // When a lease changes within a subnet, the new address must outlive the old one.
    set("ipv4", name, "promote_secondaries", "1");
}

fn set(family: &str, name: &str, key: &str, value: &str) {
    // Interface names hold no slash; the kernel sees to that.
    let path = format!("/proc/sys/net/{family}/conf/{name}/{key}");
    if let Err(error) = fs::write(&path, value) {
        tracing::debug!(path, %error, "kernel switch not set");
    }
}
