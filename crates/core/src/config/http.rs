//! `[http]`: what browsers, `curl` and programs that speak no protocol of ours get.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImportConfig;
use super::error::quote;
use super::import;
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::sections::each;
use super::stored::{self, StoredFileKind};
use super::values::{self, ConfigDiagnostic};

/// Most names, origins and pinned tools that can be listed.
const LISTED_MAX: usize = 32;
/// Most requests a second that can be allowed.
const RATE_MAX: u32 = 1_000_000;

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSection {
    /// Whether HTTP is served at all.
    pub enabled: bool,
    /// Whether HTTP/3 is.
    pub h3: bool,
    /// Names the node answers to, beside `node.domain`, `node.name` and its addresses.
    #[schemars(length(max = 32))]
    pub names: Vec<String>,
    /// What is answered where there is nothing.
    pub decoy: Decoy,
    /// Where `decoy = "redirect"` sends to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// Whether a client without a valid token learns nothing at all.
    pub stealth: bool,
    /// Whether `/healthz` answers.
    pub healthz: bool,
    /// The `Server` header, where one is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// What is served on TCP port 80.
    pub port80: Port80,
    /// Whether unknown peers may read the description of the gateway.
    pub public_openapi: bool,
    /// Whether calls over WebSocket are taken.
    pub websocket: bool,
    /// Whether administrators get a page at `/`; by default where there is no stealth, no site and no decoy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<bool>,
    /// Folder of a static site, or `store:/site/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Requests a second for one identity, on average.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_second: u32,
    /// Requests one identity may make at once before the average counts.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_burst: u32,
    /// Requests a second for the unknown peers of one network (a /24 of IPv4, a /56 of IPv6).
    #[serde(alias = "stranger_requests_per_second")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub unknown_peer_requests_per_second: u32,
    /// Which pages of others may call from a browser.
    pub cors: HttpCors,
    /// HTTP Strict Transport Security (RFC 6797).
    pub hsts: HttpHsts,
    /// Tools for models.
    pub mcp: HttpMcp,
    /// Operations of servers that speak something else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub import: Vec<ImportConfig>,
}

impl Default for HttpSection {
    fn default() -> Self {
        Self {
            enabled: true,
            h3: true,
            names: Vec::new(),
            decoy: Decoy::default(),
            redirect: None,
            stealth: false,
            healthz: true,
            server: None,
            port80: Port80::default(),
            public_openapi: false,
            websocket: true,
            page: None,
            site: None,
            requests_per_second: 50,
            requests_burst: 200,
            unknown_peer_requests_per_second: 10,
            cors: HttpCors::default(),
            hsts: HttpHsts::default(),
            mcp: HttpMcp::default(),
            import: Vec::new(),
        }
    }
}

/// What is answered where there is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decoy {
    /// A small page that says so.
    #[default]
    NotFound,
    /// Another address.
    Redirect,
    /// The first page of the static site.
    Site,
}

/// What is served on TCP port 80.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Port80 {
    /// Nothing: the port is closed.
    #[default]
    #[serde(rename = "off")]
    Off,
    /// Answers for a certificate authority.
    #[serde(rename = "acme")]
    Acme,
    /// Answers for a certificate authority, and redirects every other request to the one port.
    #[serde(rename = "acme+redirect")]
    AcmeRedirect,
}

/// `[http.cors]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpCors {
    /// Origins of pages that may, `https://app.example.org`.
    #[schemars(length(max = 32))]
    pub origins: Vec<String>,
}

/// `[http.hsts]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpHsts {
    /// Whether browsers are asked to use this host over TLS only (RFC 6797), once its certificate can be counted on.
    pub enabled: bool,
    /// Whether that holds for every name below as well.
    pub include_subdomains: bool,
    /// Whether the lists that come with browsers may say so, too.
    pub preload: bool,
}

impl Default for HttpHsts {
    fn default() -> Self {
        Self {
            enabled: true,
            include_subdomains: false,
            preload: false,
        }
    }
}

/// `[http.mcp]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpMcp {
    /// Whether models get tools at `/mcp`.
    pub enabled: bool,
    /// Operations that are tools of their own, beside the four that reach every operation.
    #[schemars(length(max = 32))]
    pub tools: Vec<String>,
}

impl Default for HttpMcp {
    fn default() -> Self {
        Self {
            enabled: true,
            tools: Vec::new(),
        }
    }
}

/// Reads `[http]`. `known` are the names of all credentials, also of those with mistakes; `is_named` says whether other
/// sections give the node a name.
pub(super) fn section(
    mut section: ConfigTable<'_, '_>,
    (known, is_named): (&[String], bool),
    notes: &mut ConfigDiagnostics<'_>,
) -> HttpSection {
    let standard = HttpSection::default();
    let mut flag = |key, otherwise, notes: &mut ConfigDiagnostics<'_>| {
        let value: Option<ConfigValue<'_, '_>> = section.key(key);
        value
            .and_then(|value| value.bool(notes))
            .unwrap_or(otherwise)
    };
    let enabled = flag("enabled", standard.enabled, notes);
    let h3 = flag("h3", standard.h3, notes);
    let stealth = flag("stealth", standard.stealth, notes);
    let healthz = flag("healthz", standard.healthz, notes);
    let websocket = flag("websocket", standard.websocket, notes);
    let public = section.key("public_openapi");
    let public_openapi = public.as_ref().and_then(|value| value.bool(notes));
    let public_openapi = public_openapi.unwrap_or(standard.public_openapi);
    let rates = rates(&mut section, &standard, notes);
    let names = listed(&section.list("names", notes), values::domain, notes);
    let decoy = section.key("decoy");
    let redirect = section.key("redirect");
    let server = section.key("server");
    let port80 = section.key("port80");
    let page_field = section.key("page");
    let page = page_field.as_ref().and_then(|value| value.bool(notes));
    let site = section.key("site");
    let cors = section.key("cors").and_then(|value| value.section(notes));
    let hsts = section.key("hsts").and_then(|value| value.section(notes));
    let mcp = section.key("mcp").and_then(|value| value.section(notes));
    let imports = section.list("import", notes);
    section.finish(notes);
    let decoy_field = decoy.as_ref();
    let choice = decoy_field
        .and_then(|value| value.parsed(notes, decoy_of))
        .unwrap_or_default();
    let redirect = redirect.and_then(|value| value.parsed(notes, address));
    let site = site.and_then(|value| value.parsed(notes, folder));
    let missing = match choice {
        // The keys may stand there without the decoy, for a later change.
        Decoy::Redirect if redirect.is_none() => Some("http.redirect"),
        Decoy::Site if site.is_none() => Some("http.site"),
        _ => None,
    };
    if let (Some(value), Some(key)) = (decoy_field, missing) {
        value.report(
            notes,
            format!("it needs {key}, which is missing"),
            format!("set {key}"),
        );
    }
    // The description names the operations to every client.
    if let (true, true, Some(value)) = (stealth, public_openapi, &public) {
        let what = "a node that tells nothing has no public description";
        value.report(notes, what, "leave out http.stealth or http.public_openapi");
    }
    // Scripts of the site must not share an origin with the page, into which administrators type their tokens.
    if let (Some(true), Some(_), Some(value)) = (page, &site, &page_field)
        && !is_named
        && names.is_empty()
    {
        let what = "beside http.site the page answers at the addresses of the node, and the site under its names, of \
                    which there are none";
        let fix = "set http.names, node.domain or node.name; or leave out http.page or http.site";
        value.report(notes, what, fix);
    }
    HttpSection {
        enabled,
        h3,
        names,
        decoy: choice,
        redirect,
        stealth,
        healthz,
        server: server.and_then(|value| value.parsed(notes, values::line)),
        port80: port80
            .and_then(|value| value.parsed(notes, port80_of))
            .unwrap_or_default(),
        public_openapi,
        websocket,
        page,
        site,
        requests_per_second: rates.each,
        requests_burst: rates.burst,
        unknown_peer_requests_per_second: rates.unknown_peers,
        cors: cors.map_or_else(HttpCors::default, |section| {
            cors_of(section, stealth, notes)
        }),
        hsts: hsts.map_or_else(HttpHsts::default, |section| hsts_of(section, notes)),
        mcp: mcp.map_or_else(HttpMcp::default, |section| mcp_of(section, notes)),
        import: import::imports(&imports, known, notes),
    }
}

/// How many requests the node takes.
struct RequestRates {
    /// Requests per second of one identity, on average.
    each: u32,
    /// Requests that one identity may make at once.
    burst: u32,
    /// Requests per second of the unknown peers of one network.
    unknown_peers: u32,
}

fn rates(
    section: &mut ConfigTable<'_, '_>,
    standard: &HttpSection,
    notes: &mut ConfigDiagnostics<'_>,
) -> RequestRates {
    let each = section.key("requests_per_second");
    let burst = section.key("requests_burst");
    let unknown_peers = section.renamed(
        "unknown_peer_requests_per_second",
        "stranger_requests_per_second",
        notes,
    );
    let mut rate = |value: Option<ConfigValue<'_, '_>>, otherwise| {
        let value = value.and_then(|value| value.number(1..=RATE_MAX, notes));
        value.unwrap_or(otherwise)
    };
    RequestRates {
        each: rate(each, standard.requests_per_second),
        burst: rate(burst, standard.requests_burst),
        unknown_peers: rate(unknown_peers, standard.unknown_peer_requests_per_second),
    }
}

fn cors_of(
    mut section: ConfigTable<'_, '_>,
    stealth: bool,
    notes: &mut ConfigDiagnostics<'_>,
) -> HttpCors {
    let origin_values = section.list("origins", notes);
    let origins = listed(&origin_values, origin, notes);
    section.finish(notes);
    // A browser asks without a token whether a page may send one (the Fetch standard, section 3.2.2).
    if let (true, Some(value)) = (stealth, origin_values.first()) {
        let what = "a node that tells nothing answers no browser that asks whether a page may call";
        value.report(notes, what, "leave out http.stealth or http.cors.origins");
    }
    HttpCors { origins }
}

fn hsts_of(mut section: ConfigTable<'_, '_>, notes: &mut ConfigDiagnostics<'_>) -> HttpHsts {
    let enabled = section.key("enabled").and_then(|value| value.bool(notes));
    let wide = section.key("include_subdomains");
    let wide = wide.and_then(|value| value.bool(notes)).unwrap_or_default();
    let listed = section.key("preload");
    section.finish(notes);
    let preload = listed.as_ref().and_then(|value| value.bool(notes));
    // The rule is that of the list in browsers, which refuses other names.
    if let (Some(value), Some(true), false) = (&listed, preload, wide) {
        let what = "browsers list only names that stand for every name below them";
        let fix = "set http.hsts.include_subdomains = true, or leave out http.hsts.preload";
        value.report(notes, what, fix);
    }
    HttpHsts {
        enabled: enabled.unwrap_or(true),
        include_subdomains: wide,
        preload: preload.unwrap_or_default(),
    }
}

fn mcp_of(mut section: ConfigTable<'_, '_>, notes: &mut ConfigDiagnostics<'_>) -> HttpMcp {
    let enabled = section.key("enabled").and_then(|value| value.bool(notes));
    let tools = listed(&section.list("tools", notes), operation, notes);
    section.finish(notes);
    HttpMcp {
        enabled: enabled.unwrap_or(true),
        tools,
    }
}

fn listed<T>(
    values: &[ConfigValue<'_, '_>],
    parse: impl Fn(&str) -> Result<T, ConfigDiagnostic> + Copy,
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<T> {
    // The node compares each request with the list.
    if let Some(beyond) = values.get(LISTED_MAX) {
        let what = format!("there are more than {LISTED_MAX}");
        beyond.report(notes, what, "leave some out");
    }
    each(values, parse, notes)
}

fn decoy_of(text: &str) -> Result<Decoy, ConfigDiagnostic> {
    match text {
        "not_found" => Ok(Decoy::NotFound),
        "redirect" => Ok(Decoy::Redirect),
        "site" => Ok(Decoy::Site),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no decoy", quote(text)),
            "write \"not_found\", \"site\" or \"redirect\"".to_owned(),
        )),
    }
}

fn port80_of(text: &str) -> Result<Port80, ConfigDiagnostic> {
    match text {
        "off" => Ok(Port80::Off),
        "acme" => Ok(Port80::Acme),
        "acme+redirect" => Ok(Port80::AcmeRedirect),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is not served on port 80", quote(text)),
            "write \"off\", \"acme\" or \"acme+redirect\"".to_owned(),
        )),
    }
}

/// `https://host[:port]/…` or `http://…`, of characters that need no escape in a header.
fn address(text: &str) -> Result<String, ConfigDiagnostic> {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    // The address goes into a header, which takes no control characters and no spaces.
    let is_valid = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && text.bytes().all(|b| b.is_ascii_graphic());
    is_valid.then(|| text.to_owned()).ok_or_else(|| {
        ConfigDiagnostic::new(
            format!("{} is no address", quote(text)),
            "write https://host/path".to_owned(),
        )
    })
}

/// Scheme, host and port, as browsers send them (RFC 6454 section 6.2).
fn origin(text: &str) -> Result<String, ConfigDiagnostic> {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let is_valid = rest.is_some_and(|host| {
        !host.is_empty()
            && host
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b':' | b'[' | b']'))
    });
    is_valid.then(|| text.to_owned()).ok_or_else(|| {
        ConfigDiagnostic::new(
            format!("{} is no origin", quote(text)),
            "write https://host or https://host:port, in lower case and without a path".to_owned(),
        )
    })
}

/// An absolute path without `..`, or a stored site.
fn folder(text: &str) -> Result<String, ConfigDiagnostic> {
    if let Some(checked) = stored::checked(text, StoredFileKind::Site) {
        return checked;
    }
    // A `..` could lead out of the folder that the administrator meant.
    let is_valid = text.starts_with('/') && !text.split('/').any(|part| part == "..");
    is_valid.then(|| text.to_owned()).ok_or_else(|| {
        ConfigDiagnostic::new(
            format!("{} is no folder", quote(text)),
            "write its whole path, such as /data/www, or store:/site/NAME".to_owned(),
        )
    })
}

fn operation(text: &str) -> Result<String, ConfigDiagnostic> {
    let name = text.strip_prefix('/').unwrap_or(text);
    let part = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    let parts = name.split('/').count();
    let is_valid = (2..=4).contains(&parts) && name.split('/').all(part);
    is_valid.then(|| name.to_owned()).ok_or_else(|| {
        ConfigDiagnostic::new(
            format!("{} is no operation", quote(text)),
            "write its name, such as node/info".to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Decoy, NodeConfig, Port80};

    fn refused(document: &str) -> String {
        let errors = NodeConfig::parse(document.as_bytes()).expect_err("refused");
        errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn a_whole_section_is_read() {
        let document = br#"
[http]
names = ["hub.example.org"]
decoy = "redirect"
redirect = "https://example.org/"
server = "nginx"
port80 = "acme+redirect"
page = false
requests_per_second = 1000
cors = { origins = ["https://app.example.org", "http://localhost:8080"] }
hsts = { include_subdomains = true, preload = true }
mcp = { tools = ["/node/info"] }
"#;
        let http = NodeConfig::parse(document).expect("fine").http;
        assert_eq!(http.names, ["hub.example.org"]);
        assert_eq!(
            (http.decoy, http.port80),
            (Decoy::Redirect, Port80::AcmeRedirect)
        );
        assert_eq!(http.mcp.tools, ["node/info"]);
        assert_eq!(http.cors.origins.len(), 2);
        assert!(http.enabled && !http.stealth && http.page == Some(false));
        let hsts = &http.hsts;
        assert!(hsts.enabled && hsts.include_subdomains && hsts.preload);
    }

    /// A node that was updated reads the document that it stored before.
    #[test]
    fn a_key_is_read_under_its_former_name_and_shown_under_its_own() {
        const FORMER: &str = "stranger_requests_per_second";
        let document = format!("[http]\n{FORMER} = 7\n");
        let config =
            NodeConfig::parse(document.as_bytes()).expect("a document of an earlier version");
        assert_eq!(config.http.unknown_peer_requests_per_second, 7);
        assert_eq!(toml::from_str::<NodeConfig>(&document), Ok(config.clone()));
        let shown = config.without_secrets().to_toml().expect("TOML");
        assert!(
            shown.contains("\nunknown_peer_requests_per_second = 7\n"),
            "{shown}"
        );
        assert!(!shown.contains(FORMER), "{shown}");
        assert!(!NodeConfig::json_schema().to_string().contains(FORMER));

        let both = refused(&format!("{document}unknown_peer_requests_per_second = 8\n"));
        for words in [
            &format!("line 2, http.{FORMER}: "),
            "the former name of 'unknown_peer_requests_per_second'",
            &format!("leave out http.{FORMER}"),
        ] {
            assert!(both.contains(words), "{words}: {both}");
        }
        // No message proposes the former name.
        let misspelt = refused(&format!("[http]\nx{FORMER} = 7\n"));
        assert!(!misspelt.contains(&format!("'{FORMER}'")), "{misspelt}");
        let out_of_range = refused(&format!("[http]\n{FORMER} = 0\n"));
        let place = format!("http.{FORMER}: ");
        assert!(out_of_range.contains(&place), "{out_of_range}");
    }

    #[test]
    fn a_page_beside_a_site_needs_a_name_for_the_site() {
        for (http, other) in [
            ("names = [\"www.example.org\"]", ""),
            ("", "[node]\nname = \"edge-1\""),
            ("", "[node]\ndomain = \"edge-1.example.org\""),
            ("", "[tls.acme]\ndomains = [\"edge-1.example.org\"]"),
        ] {
            let both = format!("[http]\npage = true\nsite = \"/data/www\"\n{http}\n{other}\n");
            assert!(NodeConfig::parse(both.as_bytes()).is_ok(), "{both}");
        }
        for one in [
            "page = false\nsite = \"/data/www\"",
            "site = \"/data/www\"",
            "page = true",
        ] {
            let one = format!("[http]\n{one}\n");
            assert!(NodeConfig::parse(one.as_bytes()).is_ok(), "{one}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("decoy = \"teapot\"", "teapot"),
            ("decoy = \"redirect\"", "http.redirect"),
            ("decoy = \"site\"", "http.site"),
            ("port80 = \"on\"", "acme+redirect"),
            ("site = \"www\"", "whole path"),
            ("site = \"store:/root/lab\"", "store:/site/NAME"),
            ("site = \"/data/../etc\"", "whole path"),
            ("names = [\"not a name\"]", "not a name"),
            (
                "cors = { origins = [\"https://a.example/path\"] }",
                "without a path",
            ),
            ("hsts = { preload = true }", "http.hsts.include_subdomains"),
            ("hsts = { include_subdomains = 1 }", "true or false"),
            ("mcp = { tools = [\"info\"] }", "node/info"),
            ("requests_per_second = 0", "requests_per_second"),
            ("stelth = true", "stealth"),
            ("page = true\nsite = \"/data/www\"", "set http.names"),
            (
                "stealth = true\npublic_openapi = true",
                "http.public_openapi",
            ),
            (
                "stealth = true\ncors = { origins = [\"https://a.example\"] }",
                "http.cors.origins",
            ),
        ] {
            let message = refused(&format!("[http]\n{line}\n"));
            assert!(message.contains(word), "{line}: {message}");
        }
    }
}
