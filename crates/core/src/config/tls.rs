//! `[tls]`: which certificates the node serves, and which servers it trusts when it dials.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NodeConfig;
use super::error::quote;
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::stored::{self, StoredFileKind, StoredFileName};
use super::values::{self, ConfigDiagnostic};

/// Most names in one certificate. Certificate authorities refuse many more.
const DOMAINS_MAX: usize = 25;
/// Certificates from files.
const FILES_MAX: usize = 64;
/// Longest path in bytes, which is the kernel's limit (`PATH_MAX` less the terminating zero).
const PATH_BYTES_MAX: usize = 4095;
/// Longest URL and mail address, in bytes.
const URL_BYTES_MAX: usize = 1024;
/// Longest name of a profile, in bytes.
const PROFILE_BYTES_MAX: usize = 64;

/// The authority of a document that names no other.
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// `[tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// Refuse clients that ask for no name of this node.
    pub strict_sni: bool,
    /// Accept an address without a key, if it has a public certificate for that address.
    pub webpki_ip: bool,
    /// Show the node's key to public servers that ask for one.
    pub present_key_to_public: bool,
    /// PEM file of the certificate authorities to trust, in place of the bundled ones.
    pub roots: Option<String>,
    /// Certificates from files.
    pub files: Vec<TlsFiles>,
    /// Certificates from an authority.
    pub acme: AcmeSection,
}

/// `[[tls.files]]`: a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// PEM file: the certificate, then those of its issuers; or `store:/certificate/NAME`.
    pub chain: String,
    /// PEM file of the key, mode 0640 at most. A stored certificate has its key with it: then this is as `chain`.
    #[serde(default)]
    pub key: String,
}

/// `[tls.acme]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AcmeSection {
    /// Names of the certificate; `node.domain` where there are none.
    #[schemars(length(max = 25))]
    pub domains: Vec<String>,
    /// Directory of the authority.
    pub directory: String,
    /// Where the authority may write to, `mailto:…`.
    pub contact: Vec<String>,
    /// The only way to show that the names are ours.
    pub challenge: Option<AcmeChallenge>,
    /// The authority's profile.
    pub profile: Option<String>,
    /// PEM file of the certificate authorities that the authority's own server is checked by, and
    /// nothing else.
    pub ca_file: Option<String>,
}

impl Default for AcmeSection {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            directory: DIRECTORY.to_owned(),
            contact: Vec::new(),
            challenge: None,
            profile: None,
            ca_file: None,
        }
    }
}

/// A way to prove to an authority that the node controls a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AcmeChallenge {
    /// A record in a zone that this node serves, which no node does yet.
    #[serde(rename = "dns-01")]
    Dns01,
    /// A document on port 80.
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate on port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl NodeConfig {
    /// The names of the certificate that the node orders; empty where the configuration has none.
    #[must_use]
    pub fn certificate_names(&self) -> Vec<String> {
        // The node's domain is the short form for a certificate with one name.
        if self.tls.acme.domains.is_empty() {
            return self.node.domain.iter().cloned().collect();
        }
        self.tls.acme.domains.clone()
    }
}

pub(super) fn section(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> TlsSection {
    let mut flag = |key, notes: &mut ConfigDiagnostics<'_>| {
        let value = section.key(key);
        value.is_some_and(|value| value.bool(notes).unwrap_or(false))
    };
    let strict_sni = flag("strict_sni", notes);
    let webpki_ip = flag("webpki_ip", notes);
    let present_key_to_public = flag("present_key_to_public", notes);
    let roots = section.key("roots");
    let files = section.list("files", notes);
    if let Some(beyond) = files.get(FILES_MAX) {
        let what = format!("there are more than {FILES_MAX} entries");
        beyond.report(notes, what, "leave some out");
    }
    let acme = section.key("acme").and_then(|value| value.section(notes));
    section.finish(notes);
    TlsSection {
        strict_sni,
        webpki_ip,
        present_key_to_public,
        roots: roots.and_then(|value| value.parsed(notes, root)),
        files: files
            .iter()
            .filter_map(|entry| pair(entry, notes))
            .collect(),
        acme: acme.map_or_else(AcmeSection::default, |section| acme_section(section, notes)),
    }
}

fn pair(entry: &ConfigValue<'_, '_>, notes: &mut ConfigDiagnostics<'_>) -> Option<TlsFiles> {
    let mut section = entry.section(notes)?;
    let chain = section.required("chain", "\"/data/tls/chain.pem\"", notes);
    let chain = chain.and_then(|value| value.parsed(notes, chain_of));
    let stored = chain.as_deref().and_then(StoredFileName::referred_to);
    // A stored certificate has its key with it.
    let key = match &stored {
        Some(_) => section.key("key"),
        None => section.required("key", "\"/data/tls/key.pem\"", notes),
    };
    section.finish(notes);
    let key = match (stored, key) {
        (Some(stored), Some(value)) => {
            let what = format!("{stored} is a certificate that has its key with it");
            value.report(notes, what, "leave the key out");
            None
        }
        (Some(_), None) => chain.clone(),
        (None, key) => key.and_then(|value| value.parsed(notes, path)),
    };
    Some(TlsFiles {
        chain: chain?,
        key: key?,
    })
}

fn acme_section(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> AcmeSection {
    let names = section.list("domains", notes);
    let directory = section.key("directory");
    let contacts = section.list("contact", notes);
    let challenge = section.key("challenge");
    let profile = section.key("profile");
    let ca_file = section.key("ca_file");
    section.finish(notes);
    let challenge = challenge.and_then(|value| value.parsed(notes, challenge_kind));
    let mut acme = AcmeSection {
        domains: domains(&names, challenge, notes),
        challenge,
        profile: profile.and_then(|value| value.parsed(notes, profile_name)),
        ca_file: ca_file.and_then(|value| value.parsed(notes, root)),
        ..AcmeSection::default()
    };
    if let Some(url) = directory.and_then(|value| value.parsed(notes, directory_url)) {
        acme.directory = url;
    }
    for value in &contacts {
        acme.contact.extend(value.parsed(notes, contact));
    }
    acme
}

fn domains(
    entries: &[ConfigValue<'_, '_>],
    challenge: Option<AcmeChallenge>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<String> {
    if let Some(beyond) = entries.get(DOMAINS_MAX) {
        let what = format!("one certificate holds at most {DOMAINS_MAX} names");
        beyond.report(notes, what, "leave some out");
    }
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        let Some(name) = entry.parsed(notes, certificate_name) else {
            continue;
        };
        let by_dns = challenge.is_none_or(|kind| kind == AcmeChallenge::Dns01);
        // Only a record in the zone shows control over every name below it.
        if name.starts_with("*.") && !by_dns {
            let fix = "list each name without '*', or name a certificate for it in tls.files";
            entry.report(notes, "a name with '*' can be shown by DNS only", fix);
        }
        if names.contains(&name) {
            let what = format!("{} is listed twice", quote(&name));
            entry.report(notes, what, "keep one of the two");
        }
        names.push(name);
    }
    names
}

/// A domain, or `*.` and a domain.
fn certificate_name(text: &str) -> Result<String, ConfigDiagnostic> {
    values::domain(text.strip_prefix("*.").unwrap_or(text))?;
    Ok(text.to_owned())
}

fn challenge_kind(text: &str) -> Result<AcmeChallenge, ConfigDiagnostic> {
    match text {
        "dns-01" => Ok(AcmeChallenge::Dns01),
        "http-01" => Ok(AcmeChallenge::Http01),
        "tls-alpn-01" => Ok(AcmeChallenge::TlsAlpn01),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no challenge", quote(text)),
            "write dns-01, http-01 or tls-alpn-01, or leave the key out".to_owned(),
        )),
    }
}

/// A path, or a stored certificate.
fn chain_of(text: &str) -> Result<String, ConfigDiagnostic> {
    stored::checked(text, StoredFileKind::Certificate).unwrap_or_else(|| path(text))
}

/// A path, or stored certificates of authorities.
fn root(text: &str) -> Result<String, ConfigDiagnostic> {
    stored::checked(text, StoredFileKind::Root).unwrap_or_else(|| path(text))
}

fn path(text: &str) -> Result<String, ConfigDiagnostic> {
    let plain = !text.contains(char::is_control) && text.len() <= PATH_BYTES_MAX;
    // A relative path would depend on the folder in which the node starts.
    if plain && text.starts_with('/') && !text.ends_with('/') {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no path of a file", quote(text)),
        "write it from the root, like /data/tls/chain.pem".to_owned(),
    ))
}

fn directory_url(text: &str) -> Result<String, ConfigDiagnostic> {
    // Without TLS an attacker on the way could replace the authority.
    let rest = text.strip_prefix("https://").unwrap_or_default();
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
    if graphic && text.len() <= URL_BYTES_MAX && rest.starts_with(|c: char| c != '/') {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no https:// address", quote(text)),
        format!("write the authority's directory, like {DIRECTORY}"),
    ))
}

fn contact(text: &str) -> Result<String, ConfigDiagnostic> {
    let mail = text.strip_prefix("mailto:").unwrap_or_default();
    let parts = mail.split_once('@');
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
    if graphic
        && text.len() <= URL_BYTES_MAX
        && parts.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
    {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no contact", quote(text)),
        "write it like mailto:admin@example.org".to_owned(),
    ))
}

fn profile_name(text: &str) -> Result<String, ConfigDiagnostic> {
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
    if graphic && (1..=PROFILE_BYTES_MAX).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no profile", quote(text)),
        "write a name the authority lists, like shortlived".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: &str = r#"
[tls]
strict_sni = true
webpki_ip = true
present_key_to_public = true
roots = "/data/tls/roots.pem"

[[tls.files]]
chain = "/data/tls/chain.pem"
key = "/data/tls/key.pem"

[tls.acme]
domains = ["edge.example.org", "*.edge.example.org"]
directory = "https://ca.example.org/dir"
contact = ["mailto:admin@example.org"]
challenge = "dns-01"
profile = "shortlived"
ca_file = "/data/tls/authority.pem"
"#;

    #[test]
    fn a_complete_section_is_read_as_serde_reads_it() {
        let config = NodeConfig::parse(COMPLETE.as_bytes()).expect("a correct document");
        let expected: NodeConfig = toml::from_str(COMPLETE).expect("a correct document");
        assert_eq!(config, expected);
        assert_eq!(
            config.certificate_names(),
            ["edge.example.org", "*.edge.example.org"]
        );
        assert_eq!(
            NodeConfig::salvage(COMPLETE.as_bytes()).tls,
            TlsSection::default()
        );
    }

    #[test]
    fn the_domain_of_the_node_is_short_for_one_name() {
        let read = |text: &str| NodeConfig::parse(text.as_bytes()).expect(text);
        assert!(read("").certificate_names().is_empty());
        let config = read("node.domain = \"edge.example.org\"");
        assert_eq!(config.certificate_names(), ["edge.example.org"]);
        assert_eq!(config.tls.acme.directory, DIRECTORY);
    }

    #[test]
    fn mistakes_are_named() {
        let many = format!(
            "tls.acme.domains = [{}]",
            (0..=DOMAINS_MAX)
                .map(|n| format!("\"n{n}.example\","))
                .collect::<String>()
        );
        let entry = "{ chain = \"/c\", key = \"/k\" },";
        let files = format!("tls.files = [{}]", entry.repeat(FILES_MAX + 1));
        for (document, word) in [
            (&*many, "at most 25 names"),
            (&files, "more than 64 entries"),
            ("tls.strict = true", "strict_sni"),
            ("tls.strict_sni = 1", "true or false"),
            ("tls.roots = \"roots.pem\"", "no path"),
            ("[[tls.files]]\nchain = \"/c\"", "tls.files[0].key"),
            ("[[tls.files]]\nchain = \"/c\"\nkey = \"k\"", "no path"),
            ("tls.acme.domains = [\"192.0.2.1\"]", "no public domain"),
            ("tls.acme.domains = [\"a.*.example\"]", "no public domain"),
            ("tls.acme.domains = [\"a.example\", \"a.example\"]", "twice"),
            (
                "[tls.acme]\ndomains = [\"*.a.example\"]\nchallenge = \"http-01\"",
                "by DNS only",
            ),
            ("tls.acme.challenge = \"dns\"", "no challenge"),
            ("tls.acme.directory = \"http://x/\"", "no https:// address"),
            ("tls.acme.directory = \"https:///x\"", "no https:// address"),
            ("tls.acme.contact = [\"admin@example.org\"]", "no contact"),
            ("tls.acme.profile = \"\"", "no profile"),
            ("tls.acme.ca_file = \"ca.pem\"", "no path"),
            ("tls.acme.ca_file = [\"/ca.pem\"]", "tls.acme.ca_file"),
        ] {
            let errors = NodeConfig::parse(document.as_bytes()).expect_err(document);
            assert_eq!(errors.len(), 1, "{document}: {errors:#?}");
            assert!(errors[0].to_string().contains(word), "{}", errors[0]);
        }
    }
}
