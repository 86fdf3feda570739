//! `[vault.kms]`: the owner's node that keeps a share of the vault's key.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::quote;
use super::hub::join_code;
use super::read::{ConfigDiagnostics, ConfigValue};
use super::values::ConfigDiagnostic;
use crate::dial::PeerAddr;
use crate::identity::PeerKey;
use crate::range::AddressRange;

/// Most ranges of addresses from which a share may be requested.
pub const ADDRESS_RANGES_MAX: usize = 16;

/// `[vault.kms]`
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VaultKms {
    /// A join string of the node, as 'alknet hub invite' prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^alkjoin1_[A-Za-z0-9_-]+$"))]
    pub code: Option<String>,
    /// The node itself, in the place of a join string: `ed25519:<64 hex>@HOST:PORT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^ed25519:[0-9a-f]{64}@.+$"))]
    pub node: Option<String>,
    /// Each release waits until an administrator of that node approves it.
    pub approve: bool,
    /// From which addresses the share may be asked for; from anywhere when empty.
    #[schemars(length(max = 16))]
    pub from: Vec<String>,
}

impl fmt::Debug for VaultKms {
    /// Shows every field but the join string, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultKms")
            .field("code", &self.code.as_ref().map(|_| "…"))
            .field("node", &self.node)
            .field("approve", &self.approve)
            .field("from", &self.from)
            .finish()
    }
}

/// Reads `[vault.kms]`. `None` if the section has a mistake.
pub(super) fn section(
    value: &ConfigValue<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<VaultKms> {
    let before = notes.count();
    let mut section = value.section(notes)?;
    let code = section.key("code");
    let node = section.key("node");
    let approve = section.key("approve");
    let from = section.list("from", notes);
    section.finish(notes);
    // A value that cannot be read has its diagnostic already.
    if code.is_some() == node.is_some() && notes.count() == before {
        value.report(
            notes,
            "the node is given by its join string, or by key and address",
            "write code = \"alkjoin1_…\", or node = \"ed25519:…@hub.example.org:443\"",
        );
    }
    if let Some(beyond) = from.get(ADDRESS_RANGES_MAX) {
        let what = format!("there are more than {ADDRESS_RANGES_MAX} ranges");
        beyond.report(notes, what, "leave some out");
    }
    let kms = VaultKms {
        code: code.and_then(|value| value.parsed(notes, join_code)),
        node: node.and_then(|value| value.parsed(notes, share_node)),
        approve: approve.and_then(|value| value.bool(notes)).unwrap_or(false),
        from: from
            .iter()
            .filter_map(|value| value.parsed(notes, range))
            .collect(),
    };
    // A share that the wrong node keeps cannot be undone, so that half a section counts as none.
    (notes.count() == before).then_some(kms)
}

/// The node that keeps the share. It has exactly one pinned key, so that there is no doubt which node the slot
/// trusts.
fn share_node(text: &str) -> Result<String, ConfigDiagnostic> {
    let one = text.parse::<PeerAddr>();
    match one.as_ref().map(|at| at.pins.as_slice()) {
        Ok([PeerKey::Ed25519(_)]) => Ok(text.to_owned()),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no node", quote(text)),
            "write its key and its address, ed25519:<64 hex>@HOST:PORT".to_owned(),
        )),
    }
}

fn range(text: &str) -> Result<String, ConfigDiagnostic> {
    let range: Result<AddressRange, _> = text.parse();
    range.map(|range| range.to_string()).map_err(|error| {
        let what = format!("{} is no range of addresses", quote(text));
        ConfigDiagnostic::new(what, error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use crate::config::NodeConfig;

    fn document(rest: &str) -> String {
        format!("[vault]\nunlock = [\"kms\"]\n[vault.kms]\n{rest}\n")
    }

    #[test]
    fn a_share_is_asked_of_one_node_by_its_key() {
        let key = format!("ed25519:{}", "ab".repeat(32));
        let text = document(&format!(
            "node = \"{key}@192.0.2.7:443\"\napprove = true\nfrom = [\"192.0.2.0/24\", \"::1\"]"
        ));
        let config = NodeConfig::parse(text.as_bytes()).expect("a correct document");
        let kms = config.vault.kms.as_ref().expect("it is there");
        assert!(kms.approve && kms.code.is_none());
        assert_eq!(kms.from, ["192.0.2.0/24", "::1/128"]);
        let written = toml::to_string(&config).expect("a serialisable configuration");
        assert_eq!(NodeConfig::parse(written.as_bytes()), Ok(config));
        let code = document("code = \"alkjoin1_AAAA-_09\"");
        let config = NodeConfig::parse(code.as_bytes()).expect("a correct document");
        assert!(!format!("{:?}", config.vault).contains("AAAA"));
    }

    #[test]
    fn what_is_wrong_with_it_is_one_complaint() {
        let key = format!("ed25519:{}", "ab".repeat(32));
        let spki = document(&format!("node = \"spki:{}@a\"", "ab".repeat(32)));
        let two = document(&format!("node = \"{key},{key}@a\""));
        let both = document(&format!("code = \"alkjoin1_A\"\nnode = \"{key}@a\""));
        let many = document(&format!(
            "code = \"alkjoin1_A\"\nfrom = [{}]",
            "\"::1\",".repeat(17)
        ));
        let unasked = "[vault]\n[vault.kms]\ncode = \"alkjoin1_A\"\n";
        for (text, word) in [
            (document("code = \"ale_x\"").as_str(), "no join string"),
            (&document(""), "join string, or by key and address"),
            (&both, "join string, or by key and address"),
            (&document("node = \"192.0.2.7:443\""), "is no node"),
            (&spki, "is no node"),
            (&two, "is no node"),
            (&document("kode = 1"), "unknown key"),
            (
                &document("code = \"alkjoin1_A\"\nfrom = [\"192.0.2.1/24\"]"),
                "bits beyond",
            ),
            (&many, "more than 16 ranges"),
            ("[vault]\nunlock = [\"kms\"]\n", "which node keeps"),
            (unasked, "list \"kms\""),
        ] {
            let errors = NodeConfig::parse(text.as_bytes()).expect_err(text);
            assert_eq!(errors.len(), 1, "{text}: {errors:#?}");
            assert!(errors[0].to_string().contains(word), "{}", errors[0]);
        }
    }
}
