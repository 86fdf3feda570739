use std::net::{IpAddr, SocketAddr};

/// What the manager tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// The network changed; sent whole.
    Changed(NetState),
    /// Something worth a line in the log.
    Log {
        /// How much it matters.
        level: NetLogLevel,
        /// What happened.
        message: String,
    },
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetLogLevel {
    /// For those who look for a fault.
    Debug,
    /// An ordinary change.
    Info,
    /// Something is wrong and the manager carries on.
    Warn,
}

impl NetLogLevel {
    /// `debug`, `info`, `warn`: as in log records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
        }
    }
}

/// The whole network as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// Network cards in the order the kernel found them; loopback is not listed.
    pub links: Vec<LinkState>,
    /// Name servers in use, best first.
    pub dns: Vec<IpAddr>,
    /// The same as sockets, with the scope that link-local servers need.
    pub resolvers: Vec<SocketAddr>,
    /// Domains searched for short names.
    pub search: Vec<String>,
    /// Time servers the network offers.
    pub ntp: Vec<IpAddr>,
    /// Host name a DHCP server offers; the owner decides whether to take it.
    pub hostname_offer: Option<String>,
    /// Replies refused as malformed, foreign or implausible since the manager started.
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
    /// Switched on, with a carrier.
    pub up: bool,
    /// Usable addresses with prefix length, link-local ones left out.
    pub addresses: Vec<String>,
    /// Default routers, best first.
    pub gateways: Vec<IpAddr>,
    /// Where the addresses came from: `dhcp4`, `slaac`, `dhcp6`, `static`.
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
