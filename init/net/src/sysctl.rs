//! The kernel's per-card switches, set before a card is switched on.

use std::fs;

/// What the kernel's IPv6 does on a card by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv6Mode {
    /// It follows router advertisements.
    Auto,
    /// It does only what this program configures.
    Manual,
}

/// Sets the switches of one card. A kernel without one of them works with its default, so failures
/// are not errors.
pub(crate) fn prepare(name: &str, mode: Ipv6Mode, metric: u32) {
    let auto = if mode == Ipv6Mode::Auto { "1" } else { "0" };
    // 2 accepts advertisements even if the kernel forwards packets
    // (Documentation/networking/ip-sysctl.rst).
    let accept = if mode == Ipv6Mode::Auto { "2" } else { "0" };
    set("ipv6", name, "accept_ra", accept);
    set("ipv6", name, "autoconf", auto);
    // The address stays the same: clients cannot find a server whose address changes.
    set("ipv6", name, "use_tempaddr", "0");
    // The kernel solicits a router that comes late at most once a minute, without an end.
    set("ipv6", name, "router_solicitations", "-1");
    set("ipv6", name, "router_solicitation_max_interval", "60");
    set("ipv6", name, "router_solicitation_delay", "0");
    set("ipv6", name, "ra_defrtr_metric", &metric.to_string());
    // When a lease changes within a subnet, the new address must outlive the old one.
    set("ipv4", name, "promote_secondaries", "1");
}

fn set(family: &str, name: &str, key: &str, value: &str) {
    // The kernel refuses an interface name with a slash, so the path stays below `conf`.
    let path = format!("/proc/sys/net/{family}/conf/{name}/{key}");
    if let Err(error) = fs::write(&path, value) {
        tracing::debug!(path, %error, "kernel switch not set");
    }
}
