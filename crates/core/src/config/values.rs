//! Grammars of single values.

use std::net::IpAddr;

use data_encoding::HEXLOWER;
use jiff::Timestamp;

use crate::dial::PeerAddr;
use crate::identity::{PeerId, PeerKey};
use crate::token::{KeyId, TokenHash};

use super::error::quote;
use super::{LinkMethod, LogLevel};

/// Why a single value is invalid.
#[derive(Debug)]
pub(super) struct ConfigDiagnostic {
    /// What is wrong with the value.
    pub(super) what: String,
    /// What the administrator can write in its place.
    pub(super) fix: String,
}

impl ConfigDiagnostic {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }
}

/// Longest label of a host name (RFC 1035 section 2.3.4), in bytes.
const LABEL_BYTES_MAX: usize = 63;
/// Longest domain name in its text form, in bytes.
const DOMAIN_BYTES_MAX: usize = 253;
/// Longest interface name: `IFNAMSIZ` less the terminating zero.
const LINK_NAME_BYTES_MAX: usize = 15;
/// Longest text for people, in characters: as much as a console shows in one line.
const LINE_CHARS_MAX: usize = 80;
/// Longest scope in bytes. Scopes name resources, which have short names.
const SCOPE_BYTES_MAX: usize = 255;

pub(super) fn host_name(text: &str) -> Result<String, ConfigDiagnostic> {
    if is_label(text) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no host name", quote(text)),
        "use 1 to 63 of a-z, 0-9 and '-', no '-' at either end".to_owned(),
    ))
}

pub(super) fn domain(text: &str) -> Result<String, ConfigDiagnostic> {
    // A name of one label belongs to a local network, and no public authority certifies it.
    if is_domain(text) && text.contains('.') {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no public domain", quote(text)),
        "write it in lower case with its dots, like edge.example.org".to_owned(),
    ))
}

pub(super) fn time_server(text: &str) -> Result<String, ConfigDiagnostic> {
    if text.parse::<IpAddr>().is_ok() || is_domain(text) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is neither a host name nor an address", quote(text)),
        "write a name like time.example.org, or an address, without a port".to_owned(),
    ))
}

pub(super) fn address(text: &str) -> Result<IpAddr, ConfigDiagnostic> {
    text.parse().map_err(|_| {
        let what = format!("{} is no IP address", quote(text));
        let fix = if text.contains('/') {
            "leave out the prefix length"
        } else {
            "write an address like 192.0.2.1 or 2001:db8::1"
        };
        ConfigDiagnostic::new(what, fix.to_owned())
    })
}

/// An address of one host with its prefix length.
pub(super) fn prefix(text: &str) -> Result<IpAddr, ConfigDiagnostic> {
    let invalid = |fix: &str| {
        let what = format!("{} is no address with prefix length", quote(text));
        ConfigDiagnostic::new(what, fix.to_owned())
    };
    let example = "write it like 192.0.2.10/24 or 2001:db8::10/64";
    let (address, length) = text.split_once('/').ok_or_else(|| invalid(example))?;
    let address: IpAddr = address.parse().map_err(|_| invalid(example))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    // `parse` would accept a sign.
    let plain = length.bytes().all(|b| b.is_ascii_digit());
    match length.parse::<u8>() {
        Ok(length) if plain && (1..=most).contains(&length) => {}
        _ => return Err(invalid(&format!("the prefix length is 1 to {most}"))),
    }
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(invalid("use an address that a card can have"));
    }
    Ok(address)
}

/// An interface name, or a MAC address, which is returned in lower case.
pub(super) fn link_match(text: &str) -> Result<String, ConfigDiagnostic> {
    if text.contains(':') {
        return mac(text);
    }
    let printable = |b: u8| b.is_ascii_graphic() && b != b'/';
    let is_valid = (1..=LINK_NAME_BYTES_MAX).contains(&text.len());
    // These are the rules of `dev_valid_name` in the kernel's net/core/dev.c.
    if is_valid && text.bytes().all(printable) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no interface name", quote(text)),
        "write a name like eth0, or a MAC address like 52:54:00:12:34:56".to_owned(),
    ))
}

fn mac(text: &str) -> Result<String, ConfigDiagnostic> {
    let octet = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    if text.split(':').count() == 6 && text.split(':').all(octet) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no MAC address", quote(text)),
        "write six pairs of hex digits like 52:54:00:12:34:56".to_owned(),
    ))
}

pub(super) fn link_method(text: &str) -> Result<LinkMethod, ConfigDiagnostic> {
    match text {
        "auto" => Ok(LinkMethod::Auto),
        "off" => Ok(LinkMethod::Off),
        "static" => Ok(LinkMethod::Static),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no method", quote(text)),
            "write auto, static or off".to_owned(),
        )),
    }
}

pub(super) fn parse_peer_key(text: &str) -> Result<PeerKey, ConfigDiagnostic> {
    text.parse().map_err(|_| {
        let fix = "write ed25519:<64 hex>, spki:<64 hex> or SHA256:<64 hex>, digits in lower case; \
                   'alknet identity' shows yours";
        ConfigDiagnostic::new(format!("{} is no key", quote(text)), fix.to_owned())
    })
}

pub(super) fn peer_id(text: &str) -> Result<PeerId, ConfigDiagnostic> {
    let id: PeerId = text.parse().map_err(|_| {
        ConfigDiagnostic::new(
            format!("{} is no peer id", quote(text)),
            "use 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first".to_owned(),
        )
    })?;
    // A peer with the name of an administrator's key would act in that administrator's name.
    if is_admin_id(text) {
        return Err(ConfigDiagnostic::new(
            format!(
                "{} is what the keys of node.admin_keys are called",
                quote(text)
            ),
            "choose another name, or list the keys in node.admin_keys".to_owned(),
        ));
    }
    Ok(id)
}

pub(super) fn token_hash(text: &str) -> Result<TokenHash, ConfigDiagnostic> {
    // The text is not quoted: it may be a whole token by mistake.
    text.parse().map_err(|_| {
        ConfigDiagnostic::new(
            "this is no hash of a token".to_owned(),
            "write <8 characters>:<64 hex>, as 'alknet token add --offline' prints it; never the token itself"
                .to_owned(),
        )
    })
}

pub(super) fn key_id(text: &str) -> Result<KeyId, ConfigDiagnostic> {
    // The text is not quoted: it may be a whole token by mistake.
    text.parse().map_err(|_| {
        ConfigDiagnostic::new(
            "this is no name of a token".to_owned(),
            "write the 8 characters after alk_, and nothing else of the token".to_owned(),
        )
    })
}

pub(super) fn sha256(text: &str) -> Result<[u8; 32], ConfigDiagnostic> {
    let bytes = HEXLOWER.decode(text.as_bytes()).unwrap_or_default();
    bytes.try_into().map_err(|_| {
        ConfigDiagnostic::new(
            "this is no SHA-256".to_owned(),
            "write 64 lower-case hexadecimal digits, as 'alknet token add --offline' prints them"
                .to_owned(),
        )
    })
}

pub(super) fn moment(text: &str) -> Result<Timestamp, ConfigDiagnostic> {
    text.parse().map_err(|_| {
        ConfigDiagnostic::new(
            format!("{} is no moment", quote(text)),
            "write it like 2027-01-31T12:00:00Z".to_owned(),
        )
    })
}

pub(super) fn peer_address(text: &str) -> Result<String, ConfigDiagnostic> {
    match text.parse::<PeerAddr>() {
        Ok(addr) if addr.pins.is_empty() => Ok(text.to_owned()),
        Ok(_) => Err(ConfigDiagnostic::new(
            format!("{} pins a key", quote(text)),
            "write HOST or HOST:PORT: the peer's own keys are the pins".to_owned(),
        )),
        Err(_) => Err(ConfigDiagnostic::new(
            format!("{} is no address of a peer", quote(text)),
            "write HOST or HOST:PORT, like edge.example.org or [2001:db8::1]:4433".to_owned(),
        )),
    }
}

/// A text for people: one line that is not empty.
pub(super) fn line(text: &str) -> Result<String, ConfigDiagnostic> {
    let is_valid = (1..=LINE_CHARS_MAX).contains(&text.chars().count());
    if is_valid && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no line of text", quote(text)),
        format!("write 1 to {LINE_CHARS_MAX} characters on one line"),
    ))
}

/// Type or name of a resource.
pub(super) fn resource(text: &str) -> Result<String, ConfigDiagnostic> {
    let plain = |c: char| !c.is_control() && !c.is_whitespace();
    if (1..=SCOPE_BYTES_MAX).contains(&text.len()) && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} names no resource", quote(text)),
        format!("write 1 to {SCOPE_BYTES_MAX} bytes without spaces"),
    ))
}

pub(super) fn log_level(text: &str) -> Result<LogLevel, ConfigDiagnostic> {
    LogLevel::ALL
        .into_iter()
        .find(|level| level.name() == text)
        .ok_or_else(|| {
            ConfigDiagnostic::new(
                format!("{} is no level of the log", quote(text)),
                "write error, warn, info or debug".to_owned(),
            )
        })
}

/// A scope that a peer may hold: segments joined by `:`, of which the last may be `*`.
pub(super) fn scope(text: &str) -> Result<String, ConfigDiagnostic> {
    // Only `node.admin_keys` makes administrators, so that one list names all of them.
    if is_admin_scope(text) {
        return Err(ConfigDiagnostic::new(
            format!("the scope {} belongs to administrators", quote(text)),
            "grant narrower scopes, or list the key in node.admin_keys".to_owned(),
        ));
    }
    if is_scope(text) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no scope", quote(text)),
        "write segments joined by ':' like fs:read:docs; only the last may be '*'".to_owned(),
    ))
}

/// Whether only administrators hold this scope: `*`, `admin` or `admin:*`.
#[must_use]
pub fn is_admin_scope(text: &str) -> bool {
    matches!(text, "*" | "admin" | "admin:*")
}

/// Whether `text` follows the grammar of scopes: segments joined by `:`, of which the last may be `*`, 255 bytes at
/// most. `*` alone, which stands for all scopes, does not.
#[must_use]
pub fn is_scope(text: &str) -> bool {
    let segment = |part: &str| {
        let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != '*';
        !part.is_empty() && part.chars().all(plain)
    };
    // `ScopeSet` supports a star at the end only.
    let head = text.strip_suffix(":*").unwrap_or(text);
    text.len() <= SCOPE_BYTES_MAX && head.split(':').all(segment)
}

/// Whether `text` is a name of a key in `node.admin_keys`: `admin`, `admin-2`, ….
#[must_use]
pub fn is_admin_id(text: &str) -> bool {
    let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    text == "admin" || text.strip_prefix("admin-").is_some_and(digits)
}

fn is_label(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LABEL_BYTES_MAX).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_domain(text: &str) -> bool {
    // The last label of a host name is not numeric, because the name would look like an address (RFC 1123 section
    // 2.1).
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    text.len() <= DOMAIN_BYTES_MAX
        && text.split('.').all(is_label)
        && !text.rsplit('.').next().is_some_and(numeric)
}
