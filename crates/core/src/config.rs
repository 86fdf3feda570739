//! The node's configuration: one TOML document, the same in provisioning and on the data
//! partition.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The whole document. Unknown keys are errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Where the node listens.
    pub listen: ListenConfig,
    /// Who the node is and who administers it.
    pub node: NodeSection,
    /// Network cards; a card no entry matches is configured automatically.
    pub network: Vec<LinkConfig>,
    /// Peers known from the start.
    pub peers: Vec<PeerConfig>,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// The one port, UDP and TCP.
    pub port: u16,
    /// Addresses to bind; `::` means every address of both families.
    pub addrs: Vec<IpAddr>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            port: 443,
            addrs: vec![IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)],
        }
    }
}

/// `[node]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeSection {
    /// Host name, `[a-z0-9-]`, at most 63 characters.
    pub name: Option<String>,
    /// Public domain.
    pub domain: Option<String>,
    /// Keys that may do everything, as `ed25519:<64 hex>`.
    pub admin_keys: Vec<String>,
    /// SNTP servers, asked in order; those of DHCP are used when empty.
    pub time_servers: Vec<String>,
}

/// `[[network]]`: one card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// Interface name (`eth0`) or MAC address (`52:54:00:12:34:56`).
    #[serde(rename = "match")]
    pub matches: String,
    /// How the card gets its addresses.
    #[serde(default)]
    pub method: LinkMethod,
    /// Static addresses with prefix length, `192.0.2.10/24`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Static routers, at most one per family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Name servers that replace what the network offers.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
}

/// How a card gets its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkMethod {
    /// DHCPv4, and IPv6 by router advertisements, with DHCPv6 where the router asks for it.
    #[default]
    Auto,
    /// Leave the card down.
    Off,
    /// Only what is written here.
    Static,
}

/// `[[peers]]`: somebody who may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Stable name, `[a-z0-9][a-z0-9._-]{0,62}`.
    pub peer_id: String,
    /// Keys of the peer, `ed25519:<64 hex>`, `spki:<64 hex>` or `SHA256:<64 hex>`.
    pub keys: Vec<String>,
    /// What the peer may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// A disabled peer is known and refused.
    #[serde(default = "yes")]
    pub enabled: bool,
}

const fn yes() -> bool {
    true
}
