//! The configuration in the form in which an administrator reads it from a running node: every value, and no secret.

use super::{ApiKeyConfig, CredentialConfig, JoinConfig, NodeConfig, PeerConfig};

/// Replaces each secret text. It is no join string and no hash, so that [`NodeConfig::parse`] refuses a document that
/// still contains it.
pub const WITHHELD: &str = "(withheld)";

/// A configuration without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownConfig {
    /// The configuration, with [`WITHHELD`] in the place of each secret text.
    pub config: NodeConfig,
    /// Paths of what is left out, such as `join[0].code`, in the order of the document.
    pub withheld: Vec<String>,
}

impl ShownConfig {
    /// The configuration as a TOML document.
    ///
    /// # Errors
    /// The text of an error if a value has no form in TOML.
    pub fn to_toml(&self) -> Result<String, String> {
        toml::to_string(&self.config).map_err(|error| error.to_string())
    }
}

impl NodeConfig {
    /// This configuration without join strings, hashes of tokens and sealed secrets. A join string admits its holder.
    /// Hashes and sealed secrets open nothing by themselves, and a reader has no use for them.
    #[must_use]
    pub fn without_secrets(&self) -> ShownConfig {
        let mut config = self.clone();
        let mut withheld = Vec::new();
        // Each section is named, so that a new one does not compile until its author has looked for secrets in it.
        let Self {
            version: _,
            listen: _,
            node: _,
            network: _,
            peers,
            api_keys,
            limits: _,
            log: _,
            tls: _,
            http: _,
            hub: _,
            join,
            iroh: _,
            promotion: _,
            runtime: _,
            compute: _,
            fs: _,
            vault,
            credentials,
            operations: _,
            update: _,
        } = &mut config;
        withhold_peers(peers, &mut withheld);
        withhold_api_keys(api_keys, &mut withheld);
        withhold_joins(join, &mut withheld);
        if let Some(code) = vault.kms.as_mut().and_then(|kms| kms.code.as_mut()) {
            WITHHELD.clone_into(code);
            withheld.push("vault.kms.code".to_owned());
        }
        withhold_credentials(credentials, &mut withheld);
        ShownConfig { config, withheld }
    }
}

/// Keeps the name of each token, which logs may show.
fn withhold_peers(peers: &mut [PeerConfig], withheld: &mut Vec<String>) {
    for (n, peer) in peers.iter_mut().enumerate() {
        for (m, token) in peer.tokens.iter_mut().enumerate() {
            let name = token.split(':').next().unwrap_or_default();
            *token = format!("{name}:{WITHHELD}");
            withheld.push(format!("peers[{n}].tokens[{m}]"));
        }
    }
}

fn withhold_api_keys(keys: &mut [ApiKeyConfig], withheld: &mut Vec<String>) {
    for (n, key) in keys.iter_mut().enumerate() {
        WITHHELD.clone_into(&mut key.sha256);
        withheld.push(format!("api_keys[{n}].sha256"));
    }
}

fn withhold_joins(joins: &mut [JoinConfig], withheld: &mut Vec<String>) {
    for (n, join) in joins.iter_mut().enumerate() {
        if let Some(code) = &mut join.code {
            WITHHELD.clone_into(code);
            withheld.push(format!("join[{n}].code"));
        }
    }
}

fn withhold_credentials(credentials: &mut [CredentialConfig], withheld: &mut Vec<String>) {
    for (n, credential) in credentials.iter_mut().enumerate() {
        if credential.record.take().is_some() {
            withheld.push(format!("credentials[{n}].record"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"
[listen]
port = 4433

[[peers]]
peer_id = "ada"
keys = ["ed25519:1111111111111111111111111111111111111111111111111111111111111111"]
tokens = ["k3v9a2mb:2222222222222222222222222222222222222222222222222222222222222222"]
resources = { fs = ["docs"] }
addresses = ["192.0.2.7"]

[[api_keys]]
key_id = "monitor0"
sha256 = "3333333333333333333333333333333333333333333333333333333333333333"

[[join]]
code = "alkjoin1_AAAA-_09"

[[join]]
address = "hub.example.org"
key = "ed25519:4444444444444444444444444444444444444444444444444444444444444444"

[vault]
unlock = ["kms"]

[vault.kms]
code = "alkjoin1_BBBB-_09"

[[credentials]]
name = "openai"
kind = "bearer"

[credentials.record]
alg = "ALK1"
data = "jyHDUTdgLJOrjfayE8bIVmZpKfE9n7Z3m6il"
iv = "oKGio6Slpqeoqaqr"
key_version = 2
salt = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#;

    fn shown() -> ShownConfig {
        let config = NodeConfig::parse(DOCUMENT.as_bytes());
        let config = config.unwrap_or_else(|errors| panic!("{errors:?}"));
        config.without_secrets()
    }

    #[test]
    fn a_shown_document_has_every_value_and_no_secret() {
        let shown = shown();
        let text = shown.to_toml().expect("a document");
        for secret in [
            "AAAA-_09",
            "BBBB-_09",
            &"2".repeat(64),
            &"3".repeat(64),
            "jyHDUTdgLJOr",
            "oKGio6Slpqeo",
            "AAECAwQFBgcI",
        ] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert_eq!(
            shown.withheld,
            [
                "peers[0].tokens[0]",
                "api_keys[0].sha256",
                "join[0].code",
                "vault.kms.code",
                "credentials[0].record",
            ]
        );
        for said in [
            "port = 4433",
            "192.0.2.7",
            &"1".repeat(64),
            &"4".repeat(64),
            "k3v9a2mb:(withheld)",
            "monitor0",
            "openai",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    /// An administrator who takes it for a whole document would lose what is left out.
    #[test]
    fn a_shown_document_is_refused_where_a_secret_was() {
        let text = shown().to_toml().expect("a document");
        let refused = NodeConfig::parse(text.as_bytes()).expect_err("secrets are left out");
        let refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
        for path in ["peers[0].tokens[0]", "api_keys[0].sha256", "join[0].code"] {
            assert!(
                refused.iter().any(|it| it.contains(path)),
                "{path}: {refused:?}"
            );
        }
    }

    #[test]
    fn what_has_no_secret_can_be_applied_again() {
        let config = NodeConfig::parse(b"[listen]\nport = 4433\n").expect("a correct document");
        let shown = config.without_secrets();
        assert!(shown.withheld.is_empty());
        let text = shown.to_toml().expect("a document");
        assert_eq!(NodeConfig::parse(text.as_bytes()), Ok(config));
    }
}
