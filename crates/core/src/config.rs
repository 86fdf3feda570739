//! The node's configuration: one TOML document, the same in provisioning and on the data
//! partition.
//!
//! [`NodeConfig::parse`] reads a document and reports all its mistakes at once, each with its line and its remedy.
//! [`NodeConfig::salvage`] takes from a refused document what its administrator needs to reach the node and repair
//! it.

mod computing;
mod credentials;
mod entries;
mod error;
mod fs;
mod http;
mod hub;
mod import;
mod iroh;
mod kms;
mod principals;
mod promotion;
mod read;
mod recipient;
mod reload;
mod sections;
mod shown;
mod stored;
mod tls;
mod tuning;
mod update;
mod values;
mod vault;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use computing::{ComputeSection, RuntimeSection, SandboxLevel};
pub use credentials::{CredentialConfig, OperationConfig, is_credential_name};
pub use error::ConfigError;
pub use fs::FsSection;
pub use http::{Decoy, HttpCors, HttpHsts, HttpMcp, HttpSection, Port80};
pub use hub::{HubDisclose, HubEnroll, HubRole, HubSection, JoinConfig};
pub use import::{ImportAuth, ImportConfig, ImportKind};
pub use iroh::IrohSection;
pub use kms::{ADDRESS_RANGES_MAX, VaultKms};
pub use promotion::{Activation, PromotionSection};
pub use recipient::AgeKey;
pub use reload::{
    ApplyError, ChangedIds, ConfigApplyResult, ConfigChange, ConfigSource, ConfigWarning,
    DynamicConfig, ReloadHandle, is_granted_by,
};
pub use shown::{ShownConfig, WITHHELD};
pub use stored::{StoredFileKind, StoredFileName, StoredFileNameError};
pub use tls::{AcmeChallenge, AcmeSection, TlsFiles, TlsSection};
pub use tuning::{LimitsConfig, LogConfig, LogLevel};
pub use update::{
    AutoUpdate, InvalidUpdateJitter, InvalidUpdateWindow, UpdateChannel, UpdateJitter,
    UpdateSection, UpdateWindow,
};
pub use values::{is_admin_id, is_admin_scope, is_scope};
pub use vault::{VaultInit, VaultSection, VaultUnlock};

/// Longest configuration document in bytes. A thousand peers with two keys each fit. The node refuses a longer file,
/// which is not a configuration, before it costs memory.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;

/// The version of the document that this program knows.
pub const CONFIG_VERSION: u32 = 1;

/// Most mistakes reported for one document: more are of no use to the administrator, and each is a line on a console
/// of 24.
pub const CONFIG_ERRORS_MAX: usize = 50;

/// The whole document. Unknown keys are errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Version of the document, 1. A program that does not know the version of a document refuses
    /// it by that one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1))]
    pub version: Option<u32>,
    /// Where the node listens.
    pub listen: ListenConfig,
    /// Who the node is and who administers it.
    pub node: NodeSection,
    /// Network cards; a card no entry matches is configured automatically.
    pub network: Vec<LinkConfig>,
    /// Peers known from the start.
    pub peers: Vec<PeerConfig>,
    /// Tokens of programs.
    pub api_keys: Vec<ApiKeyConfig>,
    /// What unknown and known peers may cost.
    pub limits: LimitsConfig,
    /// What the log says.
    pub log: LogConfig,
    /// Certificates, and the servers that the node trusts when it dials.
    pub tls: TlsSection,
    /// What browsers and programs without a protocol of ours get.
    pub http: HttpSection,
    /// Who may become a peer of this node.
    pub hub: HubSection,
    /// Hubs this node dials, and serves.
    pub join: Vec<JoinConfig>,
    /// The node's protocols for peers that dial its key with iroh.
    pub iroh: IrohSection,
    /// How scripts become operations of the node.
    pub promotion: PromotionSection,
    /// What scripts and shaders run behind.
    pub runtime: RuntimeSection,
    /// What shaders run on.
    pub compute: ComputeSection,
    /// Whether the node keeps files for its callers, and what that may cost.
    pub fs: FsSection,
    /// Where the node's recovery words come from, and what opens them at a start.
    pub vault: VaultSection,
    /// Secrets of others that operations may use without seeing them.
    pub credentials: Vec<CredentialConfig>,
    /// What operations are given.
    pub operations: Vec<OperationConfig>,
    /// Whose signatures an update needs, and when the machine updates by itself.
    pub update: UpdateSection,
}

impl NodeConfig {
    /// Reads a TOML document.
    ///
    /// ```
    /// use alknet_core::config::NodeConfig;
    ///
    /// let config = NodeConfig::parse(b"[node]\nname = \"edge-1\"\n");
    /// assert!(config.is_ok_and(|config| config.node.name.as_deref() == Some("edge-1")));
    ///
    /// // A misspelt key is a mistake, and the error names the right one.
    /// let mistakes = NodeConfig::parse(b"[node]\nadmin_key = []\n").err();
    /// let text = mistakes.map(|errors| errors[0].to_string());
    /// assert!(text.is_some_and(|text| text.contains("admin_keys")));
    /// ```
    ///
    /// # Errors
    /// All mistakes of the document, in its order, at most [`CONFIG_ERRORS_MAX`]. The list is never empty.
    pub fn parse(document: &[u8]) -> Result<Self, Vec<ConfigError>> {
        let reading = read::read(document);
        if reading.errors.is_empty() {
            Ok(reading.config)
        } else {
            Err(reading.errors)
        }
    }

    /// All mistakes of a document: its own, and those that `find` finds in its correct values. No other caller gets the
    /// values of a refused document. A list with a mistake lacks values, and those behind them have lower numbers: what
    /// `find` finds there is left out, and so is everything that it finds in a document of another version.
    ///
    /// ```
    /// use alknet_core::config::{ConfigError, NodeConfig};
    ///
    /// let taken = |config: &NodeConfig| {
    ///     let is_taken = config.node.name.as_deref() == Some("edge-1");
    ///     let error = ConfigError {
    ///         path: "node.name".to_owned(),
    ///         line: None,
    ///         what: "another node has this name".to_owned(),
    ///         fix: "choose another one".to_owned(),
    ///     };
    ///     is_taken.then_some(error).into_iter().collect()
    /// };
    /// let document = b"node.name = \"edge-1\"\nlisten.prot = 443\n";
    /// let mistakes = NodeConfig::mistakes(document, taken);
    /// assert_eq!([&*mistakes[0].path, &*mistakes[1].path], ["listen.prot", "node.name"]);
    /// ```
    #[must_use]
    pub fn mistakes(
        document: &[u8],
        find: impl FnOnce(&Self) -> Vec<ConfigError>,
    ) -> Vec<ConfigError> {
        let reading = read::read(document);
        let mut errors = reading.errors;
        // The last row counts mistakes that are not listed, and those may be in any list.
        let is_cut = errors.len() >= CONFIG_ERRORS_MAX;
        if !is_cut && errors.iter().all(|error| error.path != "version") {
            let mut found = find(&reading.config);
            found.retain(|one| {
                !errors
                    .iter()
                    .any(|error| is_in_list_of(&error.path, &one.path))
            });
            errors.extend(found);
        }
        errors
    }

    /// Reads from a refused document what lets its administrator in: well-formed administrator keys, the port and the
    /// addresses to bind, the name, network cards whose entries have no mistakes, whether the node is stateless, what is
    /// correct of the vault, and the keys that sign updates. Peers and tokens are left out, so that a refused document never gives more
    /// rights than a correct one. A document that is not TOML gives the defaults.
    #[must_use]
    pub fn salvage(document: &[u8]) -> Self {
        let config = read::read(document).config;
        Self {
            listen: config.listen,
            network: config.network,
            vault: config.vault,
            update: config.update.salvaged(),
            node: NodeSection {
                name: config.node.name,
                admin_keys: config.node.admin_keys,
                stateless: config.node.stateless,
                ..NodeSection::default()
            },
            ..Self::default()
        }
    }

    /// The JSON Schema of the document (draft 2020-12), as it is published.
    #[must_use]
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// The one port, UDP and TCP.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Addresses to bind; `::` means every address of both families.
    #[schemars(length(min = 1))]
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
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Public domain.
    pub domain: Option<String>,
    /// Keys that may do everything, as `ed25519:<64 hex>`.
    #[schemars(inner(regex(pattern = r"^(ed25519|spki|SHA256):[0-9a-f]{64}$")))]
    pub admin_keys: Vec<String>,
    /// SNTP servers, asked in order; those of DHCP are used when empty.
    pub time_servers: Vec<String>,
    /// The machine keeps nothing: it needs no data disk, has no vault, and makes a key in memory at each start.
    pub stateless: bool,
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

/// `[[peers]]`: a peer that may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Stable name, `[a-z0-9][a-z0-9._-]{0,62}`.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub peer_id: String,
    /// Keys of the peer, `ed25519:<64 hex>`, `spki:<64 hex>` or `SHA256:<64 hex>`.
    #[serde(default)]
    #[schemars(inner(regex(pattern = r"^(ed25519|spki|SHA256):[0-9a-f]{64}$")))]
    pub keys: Vec<String>,
    /// Hashes of its bearer tokens, `<8 characters>:<64 hex>`.
    #[serde(default)]
    #[schemars(inner(regex(pattern = r"^[a-z0-9]{8}:[0-9a-f]{64}$")))]
    pub tokens: Vec<String>,
    /// What the peer may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Resources it holds, by type.
    #[serde(default)]
    pub resources: BTreeMap<String, Vec<String>>,
    /// Where it can be dialled, `HOST` or `HOST:PORT`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// A disabled peer is known and refused.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// When the entry ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub expires: Option<Timestamp>,
    /// Connections it may have at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub max_connections: Option<u32>,
}

/// `[[api_keys]]`: the token of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// The eight characters after `alk_`.
    #[schemars(regex(pattern = r"^[a-z0-9]{8}$"))]
    pub key_id: String,
    /// SHA-256 of the whole token.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// What the program may do.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Resources it holds, by type.
    #[serde(default)]
    pub resources: BTreeMap<String, Vec<String>>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// When it ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub expires: Option<Timestamp>,
}

/// Whether a key path is that of a value in a list, and the other path leads into the same list.
fn is_in_list_of(path: &str, value: &str) -> bool {
    let list = value.split_once('[').map(|(list, _)| list);
    let rest = list.and_then(|list| path.strip_prefix(list));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
}

const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests;
