//! `[hub]` and `[[join]]`: who may become a peer of this node, and whose peer this node becomes.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::entry::PeerEntry;
use crate::identity::PeerId;

use super::error::quote;
use super::principals::{IdentityClaims, correct};
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::sections::each;
use super::values::{self, ConfigDiagnostic};

/// Most peers of a hub.
const PEERS_MAX: u32 = 1000;
/// Most roles, and most hubs that are joined.
const ENTRIES_MAX: usize = 64;
/// Longest join string, in characters.
const CODE_CHARS_MAX: usize = 300;
/// What a hub may do on a node that joins it, unless the document says otherwise.
const SCOPES: [&str; 1] = ["node:read"];

/// `[hub]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HubSection {
    /// Take peers in, import what they serve, and pass calls on to them.
    pub enabled: bool,
    /// Who may become a peer.
    pub enroll: HubEnroll,
    /// What the hub tells a peer about the identity that it passes a call on for.
    pub disclose: HubDisclose,
    /// Peers that may enrol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_peers: Option<u32>,
    /// Roles: what a peer that enrols becomes.
    pub role: Vec<HubRole>,
}

/// Who may become a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HubEnroll {
    /// Holders of a token; other keys may knock and wait to be let in.
    Approve,
    /// No peer: enrolment is off.
    Off,
    /// Holders of a token.
    #[default]
    Token,
}

/// What the hub tells a peer about the identity that it passes a call on for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HubDisclose {
    /// Id, scopes and resources.
    Full,
    /// The id.
    #[default]
    Id,
    /// Discloses nothing.
    None,
}

/// `[[hub.role]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HubRole {
    /// What invitations call it.
    #[schemars(regex(pattern = r"^[a-z][a-z0-9-]{0,31}$"))]
    pub name: String,
    /// What its holders may do on this node.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Labels its holders carry.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `[[join]]`: a hub this node dials, and serves.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinConfig {
    /// A join string, as 'alknet hub invite' prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^alkjoin1_[A-Za-z0-9_-]+$"))]
    pub code: Option<String>,
    /// Where the hub is, in the place of a join string: `HOST` or `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The hub's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^ed25519:[0-9a-f]{64}$"))]
    pub key: Option<String>,
    /// What the hub is called on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$"))]
    pub name: Option<String>,
    /// What the hub may do on this node.
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// Whether the hub may offer updates. This node verifies them as every other update.
    #[serde(default)]
    pub update: bool,
}

fn scopes() -> Vec<String> {
    SCOPES.map(str::to_owned).to_vec()
}

/// The scopes of a hub that may offer updates: it sends a bundle, starts it, and looks at what became of it.
const UPDATE_SCOPES: [&str; 2] = ["update:offer", "update:read"];

impl JoinConfig {
    /// Every scope that the hub has on this node.
    fn granted(&self) -> impl Iterator<Item = &str> {
        let offers = UPDATE_SCOPES.into_iter().filter(|_| self.update);
        self.scopes.iter().map(String::as_str).chain(offers)
    }
}

impl fmt::Debug for JoinConfig {
    /// Shows every field but the join string, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinConfig")
            // The join string holds a token, which must not reach a log.
            .field("code", &self.code.as_ref().map(|_| "…"))
            .field("address", &self.address)
            .field("key", &self.key)
            .field("name", &self.name)
            .field("scopes", &self.scopes)
            .field("update", &self.update)
            .finish()
    }
}

/// The hubs as entries of peers, each under its own name or as `hub`, `hub-2`, …. A hub whose key the document does
/// not have is left out.
pub(super) fn entries<'a>(
    joins: &'a [JoinConfig],
    peers: &'a [PeerEntry],
) -> impl Iterator<Item = PeerEntry> + 'a {
    // A generated name must not take the name of a peer or of another hub.
    let named = |id: &PeerId| {
        let mut joined = joins.iter().filter_map(|join| join.name.as_deref());
        peers.iter().any(|peer| peer.peer_id == *id) || joined.any(|name| name == id.as_str())
    };
    let number = |n: u32| match n {
        1 => "hub".to_owned(),
        n => format!("hub-{n}"),
    };
    let mut free = (1..)
        .filter_map(move |n| number(n).parse::<PeerId>().ok())
        .filter(move |id| !named(id));
    joins.iter().filter_map(move |join| {
        let id = match &join.name {
            Some(name) => name.parse().ok()?,
            None => free.next()?,
        };
        Some(PeerEntry {
            keys: vec![join.key.as_deref()?.parse().ok()?],
            scopes: join.granted().collect(),
            addresses: join.address.iter().filter_map(|a| a.parse().ok()).collect(),
            ..PeerEntry::new(id)
        })
    })
}

pub(super) fn section(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> HubSection {
    let enabled = section.key("enabled");
    let enroll = section.key("enroll");
    let disclose = section.key("disclose");
    let max_peers = section.key("max_peers");
    let roles = section.list("role", notes);
    section.finish(notes);
    bounded(&roles, notes);
    let mut seen = Vec::new();
    HubSection {
        enabled: enabled.and_then(|value| value.bool(notes)).unwrap_or(false),
        enroll: enroll
            .and_then(|value| value.parsed(notes, enroll_mode))
            .unwrap_or_default(),
        disclose: disclose
            .and_then(|value| value.parsed(notes, disclosure))
            .unwrap_or_default(),
        max_peers: max_peers.and_then(|value| value.number(1..=PEERS_MAX, notes)),
        role: correct(&roles, notes, |section, notes| {
            role(section, &mut seen, notes)
        }),
    }
}

fn bounded(entries: &[ConfigValue<'_, '_>], notes: &mut ConfigDiagnostics<'_>) {
    if let Some(beyond) = entries.get(ENTRIES_MAX) {
        let what = format!("there are more than {ENTRIES_MAX} entries");
        beyond.report(notes, what, "leave some out");
    }
}

fn role(
    mut section: ConfigTable<'_, '_>,
    seen: &mut Vec<String>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<HubRole> {
    let name = section.required("name", "\"worker\"", notes);
    let scopes = section.list("scopes", notes);
    let labels = section.key("labels");
    section.finish(notes);
    let name_value = name.clone();
    let name = name.and_then(|value| value.parsed(notes, role_name));
    if let (Some(name), Some(name_value)) = (&name, name_value) {
        // Invitations refer to a role by its name.
        if seen.contains(name) {
            let what = format!("the role {} is there already", quote(name));
            name_value.report(notes, what, "keep one of the two");
        }
        seen.push(name.clone());
    }
    Some(HubRole {
        scopes: each(&scopes, values::scope, notes),
        labels: labels.map_or_else(BTreeMap::new, |value| labels_of(&value, notes)),
        name: name?,
    })
}

fn labels_of(
    table: &ConfigValue<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, value) in table.entries(notes) {
        let Some(text) = value.text(notes) else {
            continue;
        };
        match label(name, text) {
            Ok(()) => drop(labels.insert(name.to_owned(), text.to_owned())),
            Err(ConfigDiagnostic { what, fix }) => value.report(notes, what, fix),
        }
    }
    labels
}

/// The entries without mistakes.
pub(super) fn joins(
    entries: &[ConfigValue<'_, '_>],
    holders: &mut IdentityClaims,
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<JoinConfig> {
    bounded(entries, notes);
    entries
        .iter()
        .filter_map(|entry| {
            // A count that has not changed says that the entry has no mistake.
            let before = notes.count();
            let section = entry.section(notes)?;
            let one = join(entry, section, holders, notes);
            one.filter(|_| notes.count() == before)
        })
        .collect()
}

fn join(
    entry: &ConfigValue<'_, '_>,
    mut section: ConfigTable<'_, '_>,
    holders: &mut IdentityClaims,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<JoinConfig> {
    let code = section.key("code");
    let address = section.key("address");
    let key = section.key("key");
    let name = section.key("name");
    let scopes = section.key("scopes");
    let update = section.key("update");
    section.finish(notes);
    match (&code, &address, &key) {
        // A join string holds an address and a key itself, which could differ from given ones.
        (Some(_), None, None) | (None, Some(_), Some(_)) => {}
        _ => entry.report(
            notes,
            "a hub is given by its join string, or by address and key",
            "write code = \"alkjoin1_…\", or address = \"hub.example.org\" and key = \"ed25519:…\"",
        ),
    }
    Some(JoinConfig {
        code: code.and_then(|value| value.parsed(notes, join_code)),
        address: address.and_then(|value| value.parsed(notes, values::peer_address)),
        key: key.and_then(|value| {
            value.parsed(notes, hub_key)?;
            holders.key(&value, notes)
        }),
        name: name.and_then(|value| holders.peer_id(&value, notes)),
        scopes: match scopes {
            Some(value) => each(&value.list(notes), values::scope, notes),
            None => self::scopes(),
        },
        update: update.and_then(|value| value.bool(notes)).unwrap_or(false),
    })
}

fn enroll_mode(text: &str) -> Result<HubEnroll, ConfigDiagnostic> {
    match text {
        "approve" => Ok(HubEnroll::Approve),
        "off" => Ok(HubEnroll::Off),
        "token" => Ok(HubEnroll::Token),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no way of enrolling", quote(text)),
            "write token, approve or off".to_owned(),
        )),
    }
}

fn disclosure(text: &str) -> Result<HubDisclose, ConfigDiagnostic> {
    match text {
        "full" => Ok(HubDisclose::Full),
        "id" => Ok(HubDisclose::Id),
        "none" => Ok(HubDisclose::None),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is nothing to disclose", quote(text)),
            "write full, id or none".to_owned(),
        )),
    }
}

fn role_name(text: &str) -> Result<String, ConfigDiagnostic> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let letter = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if letter && text.len() <= 32 && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no name of a role", quote(text)),
        "use 1 to 32 of a-z, 0-9 and '-', a letter first".to_owned(),
    ))
}

fn label(name: &str, value: &str) -> Result<(), ConfigDiagnostic> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let is_valid = |text: &str| (1..=63).contains(&text.len()) && text.bytes().all(plain);
    if is_valid(name) && is_valid(value) && !name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no label", quote(&format!("{name}={value}"))),
        "use 1 to 63 letters, digits, '.', '_' and '-' for each, the name in lower case".to_owned(),
    ))
}

/// Checks only the form of a join string: the node checks its content when it joins. The diagnostic does not quote
/// the join string, which is a secret.
pub(super) fn join_code(text: &str) -> Result<String, ConfigDiagnostic> {
    let body = text.strip_prefix("alkjoin1_").unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !body.is_empty() && text.len() <= CODE_CHARS_MAX && body.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    // The text is not quoted: a join string holds a token.
    Err(ConfigDiagnostic::new(
        "this is no join string".to_owned(),
        "copy it again, all of it, as 'alknet hub invite' prints it".to_owned(),
    ))
}

fn hub_key(text: &str) -> Result<(), ConfigDiagnostic> {
    values::parse_peer_key(text)?;
    if text.starts_with("ed25519:") {
        return Ok(());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no key of a hub", quote(text)),
        "write ed25519:<64 hex>; 'alknet status' shows it".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use crate::config::NodeConfig;

    use super::*;

    #[test]
    fn a_hub_offers_updates_only_where_the_document_says_so() {
        let join = |more: &str| {
            let key = "01".repeat(32);
            let document = format!("[[join]]\naddress = \"h\"\nkey = \"ed25519:{key}\"\n{more}");
            let config = NodeConfig::parse(document.as_bytes()).expect("a correct document");
            let entries = config.entries();
            ["node:read", "update:offer", "update:read", "update:stage"]
                .map(|scope| entries.peers[0].scopes.allows(scope))
        };
        assert_eq!(join(""), [true, false, false, false]);
        assert_eq!(join("update = false"), [true, false, false, false]);
        assert_eq!(join("update = true"), [true, true, true, false]);
        assert_eq!(
            join("update = true\nscopes = []"),
            [false, true, true, false]
        );
    }

    const COMPLETE: &str = r#"
[hub]
enabled = true
enroll = "approve"
disclose = "full"
max_peers = 20

[[hub.role]]
name = "worker"
scopes = ["relay:accept", "fs:read:models"]
labels = { pool = "edge" }

[[hub.role]]
name = "user"

[[join]]
code = "alkjoin1_AAAA-_09"

[[join]]
address = "hub.example.org:4433"
key = "ed25519:1111111111111111111111111111111111111111111111111111111111111111"
name = "attic"
scopes = ["fs:read:*"]

[[peers]]
peer_id = "hub"
keys = ["ed25519:2222222222222222222222222222222222222222222222222222222222222222"]
"#;

    fn read(text: &str) -> NodeConfig {
        NodeConfig::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
    }

    #[test]
    fn complete_sections_are_read_as_serde_reads_them() {
        let config = read(COMPLETE);
        let expected: NodeConfig = toml::from_str(COMPLETE).expect("a correct document");
        assert_eq!(config, expected);
        assert_eq!(config.join[0].scopes, SCOPES);
        assert!(!format!("{config:?}").contains("AAAA-_09"));
        let written = toml::to_string(&config).expect("serialisable");
        assert_eq!(read(&written), config);
        let salvaged = NodeConfig::salvage(COMPLETE.as_bytes());
        assert!(!salvaged.hub.enabled && salvaged.join.is_empty());
    }

    #[test]
    fn hubs_are_peers_with_names_of_their_own() {
        let mut config = read(COMPLETE);
        let names = |config: &NodeConfig| -> Vec<String> {
            let peers = config.entries().peers;
            peers.iter().map(|peer| peer.peer_id.to_string()).collect()
        };
        // The key of a hub with a join string is inside the string, which only the joining code
        // reads.
        assert_eq!(names(&config), ["hub", "attic"]);
        config.join[0].key = Some(format!("ed25519:{}", "03".repeat(32)));
        assert_eq!(names(&config), ["hub", "hub-2", "attic"]);
        let hub = &config.entries().peers[1];
        assert!(hub.scopes.allows("node:read") && !hub.scopes.allows("fs:read:a"));
    }

    #[test]
    fn mistakes_are_named() {
        let key = format!("ed25519:{}", "01".repeat(32));
        let listed = format!(
            "[[peers]]\npeer_id = \"a\"\nkeys = [\"{key}\"]\n[[join]]\naddress = \"h\"\nkey = \"{key}\""
        );
        let named = format!(
            "[[peers]]\npeer_id = \"a\"\nkeys = [\"{key}\"]\n[[join]]\ncode = \"alkjoin1_A\"\nname = \"a\""
        );
        let many = "[[join]]\ncode = \"alkjoin1_A\"\n".repeat(ENTRIES_MAX + 1);
        let spki = format!(
            "[[join]]\naddress = \"h\"\nkey = \"spki:{}\"",
            "01".repeat(32)
        );
        for (document, word) in [
            ("hub.enable = true", "enabled"),
            ("hub.enroll = \"all\"", "token, approve or off"),
            ("hub.disclose = \"all\"", "full, id or none"),
            ("hub.max_peers = 0", "1 to 1000"),
            ("hub.max_peers = 1001", "1 to 1000"),
            ("[[hub.role]]\nscopes = []", "hub.role[0].name"),
            ("[[hub.role]]\nname = \"A\"", "no name of a role"),
            (
                "[[hub.role]]\nname = \"a\"\nscopes = [\"admin\"]",
                "administrators",
            ),
            (
                "[[hub.role]]\nname = \"a\"\nlabels = { A = \"b\" }",
                "no label",
            ),
            ("[[hub.role]]\nname = \"a\"\nlabels = { a = 1 }", "a string"),
            (
                "[[hub.role]]\nname = \"a\"\n[[hub.role]]\nname = \"a\"",
                "already",
            ),
            ("[[join]]\nname = \"a\"", "join string, or by address"),
            ("[[join]]\naddress = \"a\"", "join string, or by address"),
            (
                "[[join]]\ncode = \"alkjoin1_A\"\naddress = \"a\"",
                "join string, or by",
            ),
            ("[[join]]\ncode = \"alkjoin1_\"", "no join string"),
            ("[[join]]\ncode = \"alkjoin1_A B\"", "no join string"),
            ("[[join]]\ncode = \"ale_x\"", "no join string"),
            (
                "[[join]]\ncode = \"alkjoin1_A\"\nscopes = [\"*\"]",
                "administrators",
            ),
            (&spki, "no key of a hub"),
            (&listed, "listed already"),
            (&named, "taken already"),
            (&many, "more than 64 entries"),
        ] {
            let errors = NodeConfig::parse(document.as_bytes()).expect_err(document);
            assert_eq!(errors.len(), 1, "{document}: {errors:#?}");
            assert!(errors[0].to_string().contains(word), "{}", errors[0]);
        }
        let long = format!(
            "[[join]]\ncode = \"alkjoin1_{}\"",
            "A".repeat(CODE_CHARS_MAX)
        );
        let errors = NodeConfig::parse(long.as_bytes()).expect_err("too long");
        assert!(
            !errors[0].to_string().contains("AAAA"),
            "a secret is not repeated"
        );
    }
}
