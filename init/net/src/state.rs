use std::net::{IpAddr, SocketAddr};

/// What the manager sends its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// The network changed. The event has the whole state.
    Changed(NetState),
    /// A line for the log.
    Log {
        /// Severity of the line.
        level: NetLogLevel,
        /// What happened.
        message: String,
    },
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetLogLevel {
    /// Helps to find a fault.
    Debug,
    /// An ordinary change.
    Info,
    /// Something failed, and the manager continues.
    Warn,
}

impl NetLogLevel {
    /// The level as log records have it: `debug`, `info`, `warn`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
        }
    }
}

/// The present state of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// Network cards in the kernel's order, without loopback.
    pub links: Vec<LinkState>,
    /// Name servers in use, the best first.
    pub dns: Vec<IpAddr>,
    /// The same servers as socket addresses, with the scope that link-local servers need.
    pub resolvers: Vec<SocketAddr>,
    /// Search domains for short names.
    pub search: Vec<String>,
    /// Time servers that the network offers.
    pub ntp: Vec<IpAddr>,
    /// Host name that a DHCP server offers. The owner decides whether to use it.
    pub hostname_offer: Option<String>,
    /// Number of replies refused as malformed, foreign or implausible since the manager started.
    pub refused_replies: u64,
}

impl NetState {
    /// Whether the machine can be reached: at least one address that is neither loopback nor
    /// link-local and that passed duplicate address detection, on a card with a carrier.
    pub fn ready(&self) -> bool {
        self.links
            .iter()
            .any(|link| link.up && !link.addresses.is_empty())
    }
}

/// One network card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// `eth0`.
    pub name: String,
    /// `52:54:00:12:34:56`.
    pub mac: String,
    /// Whether the card is switched on and has a carrier.
    pub up: bool,
    /// Usable addresses with prefix length, without link-local ones.
    pub addresses: Vec<String>,
    /// Default routers, the best first.
    pub gateways: Vec<IpAddr>,
    /// Sources of the addresses: `dhcp4`, `slaac`, `dhcp6`, `static`.
    pub sources: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(up: bool, addresses: &[&str]) -> NetState {
        let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
        NetState {
            links: vec![LinkState {
                up,
                addresses,
                ..LinkState::default()
            }],
            ..NetState::default()
        }
    }

    #[test]
    fn ready_needs_a_carrier_and_an_address() {
        assert!(!NetState::default().ready());
        assert!(!with(true, &[]).ready());
        assert!(!with(false, &["192.0.2.1/24"]).ready());
        assert!(with(true, &["192.0.2.1/24"]).ready());
    }
}
