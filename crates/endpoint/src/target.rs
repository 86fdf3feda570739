//! Where to dial, as people write it: `ed25519:<64 hex>@host:port`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use alknet_core::{KeyParseError, PeerKey};
use thiserror::Error;

/// Port when none is written.
const DEFAULT_PORT: u16 = 443;

/// Longest host name (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// Somebody to dial: where, and by which key to know them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Keys any of which the server may prove. Empty: a public name with a public certificate.
    pub pins: Vec<PeerKey>,
    /// Where it is.
    pub host: Host,
    /// Its port, UDP and TCP.
    pub port: u16,
}

impl Target {
    /// The same place, known by `pins` too.
    #[must_use]
    pub fn with_pins(mut self, pins: impl IntoIterator<Item = PeerKey>) -> Self {
        self.pins.extend(pins);
        self
    }

    /// Host and port without the pins.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            host => format!("{host}:{}", self.port),
        }
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name, in lower case.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pin) in self.pins.iter().enumerate() {
            write!(f, "{}{pin}", if i == 0 { "" } else { "," })?;
        }
        let at = if self.pins.is_empty() { "" } else { "@" };
        write!(f, "{at}{}", self.address())
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (pins, address) = match text.rsplit_once('@') {
            Some((pins, address)) => (parse_pins(pins)?, address),
            None => (Vec::new(), text),
        };
        let (host, port) = split_port(address)?;
        Ok(Self {
            pins,
            host: parse_host(host)?,
            port,
        })
    }
}

fn parse_pins(text: &str) -> Result<Vec<PeerKey>, TargetError> {
    text.split(',').map(|pin| Ok(pin.parse()?)).collect()
}

/// Splits `host:port`; the host keeps its brackets.
fn split_port(address: &str) -> Result<(&str, u16), TargetError> {
    let after_host = match address.find(']') {
        Some(end) if address.starts_with('[') => end + 1,
        _ if address.matches(':').count() > 1 => {
            return Err(TargetError::Brackets(address.to_owned()));
        }
        _ => address.find(':').unwrap_or(address.len()),
    };
    let (host, rest) = address.split_at(after_host);
    if rest.is_empty() {
        return Ok((host, DEFAULT_PORT));
    }
    let digits = rest.strip_prefix(':').unwrap_or_default();
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse() {
        Ok(port) if plain && port > 0 => Ok((host, port)),
        _ => Err(TargetError::Port(rest.to_owned())),
    }
}

fn parse_host(host: &str) -> Result<Host, TargetError> {
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        let ip: Ipv6Addr = inner
            .parse()
            .map_err(|_| TargetError::Host(host.to_owned()))?;
        return Ok(Host::Ip(ip.into()));
    }
    if let Ok(ip) = host.parse() {
        return Ok(Host::Ip(ip));
    }
    let name = host.to_ascii_lowercase();
    // A name that ends in digits is a mistyped address and no resolver's business.
    let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    let mistyped = last.bytes().all(|b| b.is_ascii_digit());
    if mistyped || name.len() > HOST_BYTES_MAX || !alknet_tls::is_dns_name(&name) {
        return Err(TargetError::Host(host.to_owned()));
    }
    Ok(Host::Name(name))
}

/// What is wrong with a target.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetError {
    /// A bare IPv6 address.
    #[error("'{0}': an IPv6 address stands in brackets, [2001:db8::1]:443")]
    Brackets(String),
    /// Neither a name nor an address.
    #[error("'{0}' is neither a host name nor an address")]
    Host(String),
    /// The part before '@' is no key.
    #[error(transparent)]
    Key(#[from] KeyParseError),
    /// Not a port.
    #[error("'{0}': after the host comes nothing, or ':' and a port from 1 to 65535")]
    Port(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_forms() {
        let pin = format!("ed25519:{}", "ab".repeat(32));
        for (text, shown) in [
            ("example.org", "example.org:443"),
            ("Example.org:8443", "example.org:8443"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:65535", "[::1]:65535"),
            ("[2001:db8::1]", "[2001:db8::1]:443"),
            ("localhost:9", "localhost:9"),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(
                (target.to_string(), target.pins),
                (shown.to_owned(), vec![])
            );
            let pinned: Target = format!("{pin}@{text}").parse().expect(text);
            assert_eq!(pinned.to_string(), format!("{pin}@{shown}"));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let upper = format!("ed25519:{}@host", "AB".repeat(32));
        for bad in [
            "",
            ":443",
            "@host",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:1x",
            "::1",
            "::1:443",
            "[::1",
            "[::1]443",
            "[1.2.3.4]",
            "[host]:1",
            "1.2.3",
            "1.2.3.4.5:1",
            "ho st",
            "host/",
            "ed25519:00@host",
            "rsa:00@host",
            "-host",
            "ho\u{e4}st",
            &upper,
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(
            ip in any::<Option<IpAddr>>(),
            name in "[a-z][a-z0-9]{0,20}(\\.[a-z][a-z0-9]{0,9}){0,3}",
            port in 1u16..,
            pins in proptest::collection::vec(any::<[u8; 32]>(), 0..3),
        ) {
            let target = Target {
                pins: pins.into_iter().map(PeerKey::Ed25519).collect(),
                host: ip.map_or(Host::Name(name), Host::Ip),
                port,
            };
            prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Target>();
        }

        #[test]
        fn no_punctuation_panics(text in "[a0:@.,\\[\\]]{0,20}") {
            let _ = text.parse::<Target>();
        }
    }
}
