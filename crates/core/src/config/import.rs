//! `[[http.import]]`: operations of servers of other protocols. Only this section decides where a server is and which
//! secret it gets: a description that comes from outside decides neither.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dial::{DialHost, PeerAddr};
use crate::identity::PeerKey;
use crate::range::AddressRange;

use super::error::quote;
use super::principals::correct;
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::sections::each;
use super::stored::{self, StoredFileKind, StoredFileName};
use super::values::{self, ConfigDiagnostic};

/// Most imports: each may be a document of 16 MiB.
const IMPORTS_MAX: usize = 16;
/// Most hosts, ranges, keys, scopes and prefixes of one import.
const LISTED_MAX: usize = 32;
/// Longest namespace in bytes.
const NAMESPACE_BYTES_MAX: usize = 32;
/// Longest address in bytes.
const URL_BYTES_MAX: usize = 1024;
/// Longest name of a document in bytes.
const DOCUMENT_BYTES_MAX: usize = 255;
/// Prefix of a document in the folder of the configuration.
const CONFIG_FOLDER: &str = "cfg:/";
/// Namespaces that no import may have: those of the node's own operations, with those of parts to come. The library of
/// calls reserves fewer (`crates/call/src/rules.rs`), because it knows no other part.
const RESERVED: [&str; 25] = [
    "audit",
    "blob",
    "capability",
    "channel",
    "compute",
    "config",
    "credentials",
    "escrow",
    "fs",
    "git",
    "hub",
    "js",
    "mcp",
    "msg",
    "node",
    "ops",
    "peer",
    "runtime",
    "services",
    "session",
    "ssh",
    "tensor",
    "token",
    "update",
    "vault",
];

/// What an import speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImportKind {
    /// The Model Context Protocol over streamable HTTP.
    Mcp,
    /// HTTP as an OpenAPI document describes it.
    OpenApi,
}

/// How requests say whose they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImportAuth {
    /// By a key in the place that its credential names.
    #[serde(rename = "api-key")]
    ApiKey,
    /// By a user and a password.
    Basic,
    /// By a token.
    Bearer,
    /// Not at all.
    #[default]
    None,
    /// By an access token that `token_url` gives for a user and a password (RFC 6749 section 4.4).
    OAuth2,
}

impl ImportAuth {
    const NAMES: [(&str, Self); 5] = [
        ("api-key", Self::ApiKey),
        ("basic", Self::Basic),
        ("bearer", Self::Bearer),
        ("none", Self::None),
        ("oauth2", Self::OAuth2),
    ];
}

/// `[[http.import]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportConfig {
    /// What the server speaks.
    pub kind: ImportKind,
    /// First part of the names of its operations.
    #[schemars(regex(pattern = r"^[a-z][a-z0-9_-]{0,31}$"))]
    pub namespace: String,
    /// Of `openapi`: the document, a file below the folder of the configuration, `cfg:/forge.yaml`, a file that
    /// the node stores, `store:/document/forge`, or where it is fetched from, `https://forge.example/openapi.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Where the server is: `https://forge.example/api/v1`. Of `mcp` it is called `url`.
    #[serde(alias = "url")]
    pub base_url: String,
    /// How requests say whose they are.
    #[serde(default)]
    pub auth: ImportAuth,
    /// The credential that makes requests the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Of `oauth2`: where tokens come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_url: Option<String>,
    /// Of `oauth2`: what is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub scopes: Vec<String>,
    /// Other hosts that redirects may lead to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub hosts: Vec<String>,
    /// Addresses that are not of the public Internet and that the server may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 32))]
    pub private: Vec<AddressRange>,
    /// Keys any of which the server has to prove, instead of a certificate for its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 32))]
    pub pins: Vec<PeerKey>,
    /// Whether the server has no TLS; its address begins with `http://` then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
    /// Only operations whose names, without the namespace, begin with one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub only: Vec<String>,
}

impl ImportConfig {
    /// The path of the document in the folder of the configuration.
    #[must_use]
    pub fn document_path(&self) -> Option<&str> {
        self.document.as_deref()?.strip_prefix(CONFIG_FOLDER)
    }

    /// The URL from which the node fetches the document, if it is no file.
    #[must_use]
    pub fn document_url(&self) -> Option<&str> {
        let document = self.document.as_deref()?;
        let is_file = document.starts_with(CONFIG_FOLDER) || self.stored_document().is_some();
        (!is_file).then_some(document)
    }

    /// The name of the document, if the node stores it.
    #[must_use]
    pub fn stored_document(&self) -> Option<StoredFileName> {
        StoredFileName::referred_to(self.document.as_deref()?)
    }
}

/// The entries without mistakes. `known` are the names of all credentials, also of those with mistakes.
pub(super) fn imports(
    entries: &[ConfigValue<'_, '_>],
    known: &[String],
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<ImportConfig> {
    if let Some(beyond) = entries.get(IMPORTS_MAX) {
        let what = format!("there are more than {IMPORTS_MAX} imports");
        beyond.report(notes, what, "leave some out");
    }
    let mut seen = Vec::new();
    correct(entries, notes, |section, notes| {
        import(section, known, &mut seen, notes)
    })
}

fn import(
    mut section: ConfigTable<'_, '_>,
    known: &[String],
    seen: &mut Vec<String>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<ImportConfig> {
    let kind = section.required("kind", "\"openapi\"", notes);
    let kind = kind.and_then(|value| value.parsed(notes, kind_of));
    let namespace = section.required("namespace", "\"forge\"", notes);
    let base_url = address(&mut section, kind, notes);
    let document = match kind {
        Some(ImportKind::OpenApi) => section.required("document", "\"cfg:/forge.yaml\"", notes),
        _ => section.key("document"),
    };
    let given = ImportFields {
        kind,
        document,
        auth: section.key("auth"),
        credential: section.key("credential"),
        token_url: section.key("token_url"),
        scopes: section.list("scopes", notes),
        hosts: section.list("hosts", notes),
    };
    let private = section.list("private", notes);
    let pins = section.list("pins", notes);
    let plain = section.key("plain").and_then(|value| value.bool(notes));
    let only = section.list("only", notes);
    section.finish(notes);
    let plain = plain.unwrap_or(false);
    let namespace = namespace.and_then(|value| namespace_among(&value, seen, notes));
    let url = |text: &str| url_of(text, plain);
    let base_url = base_url.and_then(|value| value.parsed(notes, url));
    let auth = given.auth(notes);
    given.contradictions(auth, notes);
    for list in [&given.scopes, &given.hosts, &private, &pins, &only] {
        if let Some(beyond) = list.get(LISTED_MAX) {
            let what = format!("there are more than {LISTED_MAX}");
            beyond.report(notes, what, "leave some out");
        }
    }
    let is_known = |text: &str| match known.iter().any(|name| name == text) {
        true => Ok(text.to_owned()),
        false => Err(ConfigDiagnostic::new(
            "there is no credential of this name".to_owned(),
            "add [[credentials]] with it".to_owned(),
        )),
    };
    let document = |text: &str| document_of(text, plain);
    Some(ImportConfig {
        document: given.document.and_then(|it| it.parsed(notes, document)),
        credential: given.credential.and_then(|it| it.parsed(notes, is_known)),
        token_url: given.token_url.and_then(|it| it.parsed(notes, url)),
        scopes: each(&given.scopes, scope_of, notes),
        hosts: each(&given.hosts, host_of, notes),
        private: each(&private, range_of, notes),
        pins: each(&pins, values::parse_peer_key, notes),
        plain,
        only: each(&only, prefix_of, notes),
        auth,
        kind: kind?,
        namespace: namespace?,
        base_url: base_url?,
    })
}

/// The URL of the server. The key has two names, because an MCP server has one address and no path below it.
fn address<'t, 'i>(
    section: &mut ConfigTable<'t, 'i>,
    kind: Option<ImportKind>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<ConfigValue<'t, 'i>> {
    match (section.key("base_url"), section.key("url"), kind) {
        (None, None, Some(ImportKind::Mcp)) => {
            section.required("url", "\"https://tools.example/mcp\"", notes)
        }
        (None, None, _) => section.required("base_url", "\"https://forge.example/api/v1\"", notes),
        (Some(one), Some(other), _) => {
            other.report(notes, "base_url says the same", "keep one of the two");
            Some(one)
        }
        (one, other, _) => one.or(other),
    }
}

fn namespace_among(
    value: &ConfigValue<'_, '_>,
    seen: &mut Vec<String>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<String> {
    let name = value.parsed(notes, namespace_of)?;
    // Operations of two servers would share a namespace, and their names could collide.
    if seen.contains(&name) {
        let what = format!("{} has an import already", quote(&name));
        value.report(notes, what, "choose another namespace for one of the two");
    }
    seen.push(name.clone());
    Some(name)
}

/// The fields of an entry that depend on each other.
struct ImportFields<'t, 'i> {
    kind: Option<ImportKind>,
    document: Option<ConfigValue<'t, 'i>>,
    auth: Option<ConfigValue<'t, 'i>>,
    credential: Option<ConfigValue<'t, 'i>>,
    token_url: Option<ConfigValue<'t, 'i>>,
    scopes: Vec<ConfigValue<'t, 'i>>,
    hosts: Vec<ConfigValue<'t, 'i>>,
}

impl ImportFields<'_, '_> {
    /// The authentication of requests. A credential without `auth` is a bearer token, which is what most servers
    /// take.
    fn auth(&self, notes: &mut ConfigDiagnostics<'_>) -> ImportAuth {
        let auth = self.auth.as_ref();
        let chosen = auth.and_then(|value| value.parsed(notes, auth_of));
        chosen.unwrap_or(match self.credential {
            Some(_) => ImportAuth::Bearer,
            None => ImportAuth::None,
        })
    }

    fn contradictions(&self, chosen: ImportAuth, notes: &mut ConfigDiagnostics<'_>) {
        if let (Some(value), None) = (&self.auth, &self.credential)
            && chosen != ImportAuth::None
        {
            value.report(
                notes,
                "it needs the key credential",
                "add credential = \"…\"",
            );
        }
        if let (ImportAuth::None, Some(value)) = (chosen, &self.credential) {
            value.report(
                notes,
                "nothing is sent with auth = \"none\"",
                "leave it out",
            );
        }
        if let (ImportAuth::OAuth2, None, Some(value)) = (chosen, &self.token_url, &self.auth) {
            value.report(
                notes,
                "it needs the key token_url",
                "add token_url = \"https://…\"",
            );
        }
        if let (true, Some(value)) = (chosen != ImportAuth::OAuth2, &self.token_url) {
            value.report(
                notes,
                "only auth = \"oauth2\" has use for it",
                "leave it out",
            );
        }
        if self.kind == Some(ImportKind::Mcp) {
            self.useless_for_mcp(chosen, notes);
        }
    }

    fn useless_for_mcp(&self, chosen: ImportAuth, notes: &mut ConfigDiagnostics<'_>) {
        if let Some(value) = &self.document {
            value.report(notes, "an MCP server describes itself", "leave it out");
        }
        if let (ImportAuth::OAuth2, Some(value)) = (chosen, &self.auth) {
            value.report(
                notes,
                "no access tokens are asked for on behalf of an MCP server",
                "write \"bearer\", \"basic\" or \"api-key\"",
            );
        }
        if let Some(value) = self.hosts.first() {
            value.report(
                notes,
                "redirects of an MCP server are followed to no other host",
                "leave it out",
            );
        }
    }
}

fn refuse<T>(what: String, fix: &str) -> Result<T, ConfigDiagnostic> {
    Err(ConfigDiagnostic::new(what, fix.to_owned()))
}

fn kind_of(text: &str) -> Result<ImportKind, ConfigDiagnostic> {
    match text {
        "openapi" => Ok(ImportKind::OpenApi),
        "mcp" => Ok(ImportKind::Mcp),
        _ => refuse(
            format!("{} is no kind of import", quote(text)),
            "write \"openapi\" or \"mcp\"",
        ),
    }
}

fn auth_of(text: &str) -> Result<ImportAuth, ConfigDiagnostic> {
    let found = ImportAuth::NAMES.iter().find(|(name, _)| *name == text);
    match found {
        Some((_, auth)) => Ok(*auth),
        None => refuse(
            format!("{} is no way to authenticate", quote(text)),
            "write \"none\", \"bearer\", \"basic\", \"api-key\" or \"oauth2\"",
        ),
    }
}

fn namespace_of(text: &str) -> Result<String, ConfigDiagnostic> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    let letter = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !letter || text.len() > NAMESPACE_BYTES_MAX || !text.bytes().all(plain) {
        return refuse(
            format!("{} is no namespace", quote(text)),
            "use 1 to 32 of a-z, 0-9, '_' and '-', a letter first",
        );
    }
    // The operations of a server must not look like the node's own.
    match RESERVED.contains(&text) {
        true => refuse(
            format!("the namespace {} is the node's own", quote(text)),
            "choose another",
        ),
        false => Ok(text.to_owned()),
    }
}

/// A URL of scheme, host, port and path, without any part that could be a secret.
fn url_of(text: &str, plain: bool) -> Result<String, ConfigDiagnostic> {
    let (scheme, other, fix) = match plain {
        true => (
            "http://",
            "https://",
            "write http://host/path, or leave out plain",
        ),
        false => (
            "https://",
            "http://",
            "write https://host/path; a server without TLS needs plain = true",
        ),
    };
    // The text is not quoted, because it may hold a password.
    let no_address = || refuse("this is no address of a server".to_owned(), fix);
    let Some(rest) = text.strip_prefix(scheme) else {
        return match text.starts_with(other) {
            true => refuse(format!("the address begins with {other}"), fix),
            false => no_address(),
        };
    };
    let (host_and_port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let graphic = path.bytes().all(|b| b.is_ascii_graphic());
    // The query may hold a secret, a fragment is never sent, and no URI has the other characters (RFC 3986 section
    // 2).
    let odd = path.contains(['?', '#', '\\', '"', '<', '>', '{', '}', '|', '^', '`'])
        || path.split('/').any(|part| matches!(part, "." | ".."));
    let host = host_and_port.parse::<PeerAddr>();
    // `@` would end a user and a password, which RFC 9110 section 4.2.4 allows in no address.
    let is_valid =
        host.is_ok_and(|address| address.pins.is_empty()) && !host_and_port.contains('@');
    match is_valid && graphic && !odd && text.len() <= URL_BYTES_MAX {
        true => Ok(text.to_owned()),
        false => no_address(),
    }
}

/// A file in the folder of the configuration, or a URL.
fn document_of(text: &str, plain: bool) -> Result<String, ConfigDiagnostic> {
    // The address of a document follows the rules for that of the server.
    if text.starts_with("https://") || text.starts_with("http://") {
        return url_of(text, plain);
    }
    if let Some(checked) = stored::checked(text, StoredFileKind::Document) {
        return checked;
    }
    let name = text.strip_prefix(CONFIG_FOLDER);
    let part = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        // This excludes `..` and hidden files.
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
    };
    let is_valid = name.is_some_and(|name| name.split('/').all(part));
    match is_valid && text.len() <= DOCUMENT_BYTES_MAX {
        true => Ok(text.to_owned()),
        false => refuse(
            format!("{} is no document", quote(text)),
            "write https://host/path, cfg:/NAME.yaml, a file beside the configuration, or store:/document/NAME; names \
             are of A-Z, a-z, 0-9, '.', '_' and '-', and none begins with '.'",
        ),
    }
}

/// A host name, or `*.` and a name for all names below it.
fn host_of(text: &str) -> Result<String, ConfigDiagnostic> {
    let (below, rest) = match text.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let address = rest.parse::<PeerAddr>();
    let is_valid = address.is_ok_and(|address| {
        // No names lie below an address.
        address.pins.is_empty() && !(below && matches!(address.host, DialHost::Ip(_)))
    });
    match is_valid && !rest.contains('@') {
        true => Ok(text.to_owned()),
        false => refuse(
            format!("{} is no host", quote(text)),
            "write a name like files.example.org, *.example.org for all below it, or an address, with \
             :PORT if it is not 443",
        ),
    }
}

fn range_of(text: &str) -> Result<AddressRange, ConfigDiagnostic> {
    text.parse().map_err(|error| {
        let what = format!("{} is no range of addresses", quote(text));
        ConfigDiagnostic::new(what, format!("{error}"))
    })
}

fn scope_of(text: &str) -> Result<String, ConfigDiagnostic> {
    // The characters of a scope token (RFC 6749 section 3.3).
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\');
    match (1..=255).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => refuse(
            format!("{} is no scope", quote(text)),
            "write one scope of the authorization server, without spaces",
        ),
    }
}

fn prefix_of(text: &str) -> Result<String, ConfigDiagnostic> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/');
    match (1..=127).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => refuse(
            format!("{} begins no name of an operation", quote(text)),
            "write how the names begin, without the namespace: repos/",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;

    const FINE: &str = "kind = \"openapi\"\nnamespace = \"forge\"\ndocument = \"cfg:/forge.yaml\"\n\
                        base_url = \"https://forge.example/api/v1\"\n";

    fn document(import: &str) -> String {
        format!("[[credentials]]\nname = \"forge\"\nkind = \"bearer\"\n[[http.import]]\n{import}\n")
    }

    fn imported(import: &str) -> ImportConfig {
        let config = NodeConfig::parse(document(import).as_bytes());
        let config = config.unwrap_or_else(|errors| panic!("{import}: {errors:#?}"));
        config.http.import.first().expect("an import").clone()
    }

    #[test]
    fn imports_of_both_kinds_are_read() {
        let one = imported(FINE);
        assert_eq!(
            (one.kind, one.auth),
            (ImportKind::OpenApi, ImportAuth::None)
        );
        assert_eq!(one.document_path(), Some("forge.yaml"));
        let token = imported(&format!("{FINE}credential = \"forge\""));
        assert_eq!(token.auth, ImportAuth::Bearer);
        let all = imported(&format!(
            "{FINE}auth = \"oauth2\"\ncredential = \"forge\"\ntoken_url = \"https://id.example/token\"\n\
             scopes = [\"read\"]\nhosts = [\"*.example.org\", \"files.example:8443\"]\n\
             private = [\"10.0.0.0/8\", \"::1\"]\npins = [\"spki:{}\"]\nonly = [\"repos/\"]",
            "ab".repeat(32)
        ));
        assert_eq!(
            (all.private.len(), all.pins.len(), all.hosts.len()),
            (2, 1, 2)
        );
        let mcp =
            imported("kind = \"mcp\"\nnamespace = \"tools\"\nurl = \"https://tools.example/mcp\"");
        assert_eq!(mcp.base_url, "https://tools.example/mcp");
        let plain = FINE.replace("https://forge.example", "http://127.0.0.1:3000");
        assert!(imported(&format!("{plain}plain = true")).plain);
        let fetched = FINE.replace("cfg:/", "https://forge.example/");
        let fetched = imported(&fetched);
        assert_eq!(
            (fetched.document_url(), fetched.document_path()),
            (Some("https://forge.example/forge.yaml"), None)
        );
        assert_eq!(one.document_url(), None);
    }

    #[test]
    fn mistakes_are_named() {
        let assert_diagnostic = |import: &str, word: &str| {
            let errors = NodeConfig::parse(document(import).as_bytes()).expect_err(import);
            let text = format!("{errors:?}");
            assert!(text.contains(word), "{import}: {word}: {text}");
            assert!(!text.contains("hush"), "{text}");
        };
        for (from, to, word) in [
            ("\"openapi\"", "\"soap\"", "no kind of import"),
            ("\"forge\"", "\"Forge\"", "no namespace"),
            ("\"forge\"", "\"node\"", "the node's own"),
            ("\"forge\"", "\"runtime\"", "the node's own"),
            ("\"forge\"", "\"token\"", "the node's own"),
            ("https://", "http://", "plain = true"),
            ("https://", "https://user:hush@", "no address"),
            ("/api/v1", "/api?key=hush", "no address"),
            ("/api/v1", "/api/../x", "no address"),
            ("cfg:/forge.yaml", "/etc/passwd", "no document"),
            ("cfg:/forge.yaml", "cfg:/../x.yaml", "no document"),
            ("cfg:/forge.yaml", "cfg:/a/../x.yaml", "no document"),
            ("cfg:/forge.yaml", "cfg://x.yaml", "no document"),
            ("cfg:/forge.yaml", "cfg:/.x.yaml", "no document"),
            ("cfg:/forge.yaml", "ftp://x.example/a", "no document"),
            ("cfg:/forge.yaml", "http://x.example/a", "plain = true"),
            (
                "cfg:/forge.yaml",
                "https://a:hush@x.example/a",
                "no address",
            ),
            ("document = \"cfg:/forge.yaml\"", "", "missing"),
        ] {
            assert_diagnostic(&FINE.replacen(from, to, 1), word);
        }
        for (more, word) in [
            ("credential = \"other\"", "no credential"),
            ("auth = \"bearer\"", "needs the key credential"),
            ("auth = \"digest\"\ncredential = \"forge\"", "no way"),
            ("auth = \"none\"\ncredential = \"forge\"", "nothing is sent"),
            ("auth = \"oauth2\"\ncredential = \"forge\"", "token_url"),
            ("token_url = \"https://x.example/\"", "only auth"),
            ("private = [\"10.0.0.1/8\"]", "no range"),
            ("hosts = [\"https://x\"]", "no host"),
            ("pins = [\"md5:00\"]", "no key"),
            ("only = [\"/x\"]", "begins no name"),
            ("secret = \"hush\"", "unknown key"),
        ] {
            assert_diagnostic(&format!("{FINE}{more}"), word);
        }
        let twice = format!("{FINE}[[http.import]]\n{FINE}");
        assert_diagnostic(&twice, "already");
        let mcp = "kind = \"mcp\"\nnamespace = \"t\"\nurl = \"https://t.example/\"\n";
        for (more, word) in [
            ("document = \"cfg:/x\"", "describes itself"),
            ("hosts = [\"x.example\"]", "no other host"),
            (
                "auth = \"oauth2\"\ncredential = \"forge\"\ntoken_url = \"https://x.example/\"",
                "no access tokens",
            ),
        ] {
            assert_diagnostic(&format!("{mcp}{more}"), word);
        }
    }
}
