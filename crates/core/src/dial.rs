//! Reaching another node: its address as people write it (`ed25519:<64 hex>@host:port`), the proof that it has to
//! give, and the interface that dials.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::allow_list::DialAllowList;
use crate::alpn::Carriage;
use crate::connection::Connection;
use crate::handler::{BoxError, BoxFuture};
use crate::identity::{KeyParseError, PeerKey};

/// Makes connections. The endpoint implements it, so that a protocol can dial without knowing a transport.
pub trait Dialer: fmt::Debug + Send + Sync + 'static {
    /// Connects over the carriage that works first, and only to a server that proves what `request` expects. Dropping
    /// the future gives up.
    fn connect(&self, request: DialRequest) -> BoxFuture<'_, Result<DialedConnection, DialError>>;
}

/// The parameters of one dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialRequest {
    /// Address of the peer.
    pub addr: PeerAddr,
    /// How the server proves its identity. The pins of `addr` itself are ignored.
    pub expect: PeerVerification,
    /// The protocol.
    pub alpn: Cow<'static, [u8]>,
    /// The carriage; [`Carriage::Both`] takes the first that works.
    pub carriage: Carriage,
    /// Whether the client shows its key to a pinned server. It never does to public servers, which could track it by
    /// the key.
    pub present_key: bool,
    /// The addresses of a name that may be dialled.
    pub reach: DialAllowList,
}

impl DialRequest {
    /// A dial over any carriage that shows the client's key.
    #[must_use]
    pub fn new(addr: PeerAddr, expect: PeerVerification, alpn: &'static [u8]) -> Self {
        Self {
            addr,
            expect,
            alpn: alpn.into(),
            carriage: Carriage::Both,
            present_key: true,
            reach: DialAllowList::Anywhere,
        }
    }
}

/// How the server has to prove its identity. There is no variant without a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerVerification {
    /// The server holds any of these keys. Names, dates and issuers do not matter. No server satisfies an empty list.
    Pinned(Vec<PeerKey>),
    /// The server has a certificate for exactly this name or address, whose chain ends at a trusted authority.
    WebPki,
}

impl PeerVerification {
    /// The proof that `addr` itself asks for, or for a configured peer one of its keys, `known`.
    ///
    /// # Errors
    /// [`DialErrorKind::UnknownPeer`] for an address without a key: any server could answer there.
    /// A caller that takes a public certificate for an address asks for
    /// [`PeerVerification::WebPki`] itself, of a dialler that is configured to accept one.
    pub fn for_address(addr: &PeerAddr, known: &[PeerKey]) -> Result<Self, DialError> {
        match (known, addr.pins.as_slice(), &addr.host) {
            // Without keys, public authorities vouch for a name. They do not vouch for an address here.
            ([], [], DialHost::Name(_)) => Ok(Self::WebPki),
            ([], [], DialHost::Ip(_)) => Err(DialError::new(
                DialErrorKind::UnknownPeer,
                UnknownPeer(addr.address()),
            )),
            // The keys of the configuration win over those of the address.
            ([], pins, _) | (pins, _, _) => Ok(Self::Pinned(pins.to_vec())),
        }
    }
}

/// An address without a pin, for which any server could answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0} is an address without a pinned key; write ed25519:<64 hex>@{0}")]
pub struct UnknownPeer(pub String);

/// A connection that this side dialled.
#[derive(Debug)]
pub struct DialedConnection {
    /// The connection.
    pub connection: Connection,
    /// The names of the key that a pinned server proved, the most lasting first. Empty for public servers, which are
    /// no peers.
    pub keys: Vec<PeerKey>,
}

/// Why a dial failed, and whether another attempt can succeed.
#[derive(Debug, Error)]
#[error("{source}")]
pub struct DialError {
    /// The kind of failure.
    pub kind: DialErrorKind,
    source: BoxError,
}

impl DialError {
    /// A failure of this kind.
    pub fn new(kind: DialErrorKind, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            source: source.into(),
        }
    }

    /// Whether the same dial fails until an administrator changes something.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(
            self.kind,
            DialErrorKind::Impostor
                | DialErrorKind::NoProtocol
                | DialErrorKind::OutOfReach
                | DialErrorKind::UnknownPeer
        )
    }
}

/// Kinds of failed dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialErrorKind {
    /// A server answered that cannot prove to be the expected one.
    Impostor,
    /// This machine cannot dial: no socket, no key, no TLS.
    Local,
    /// The server does not serve the protocol.
    NoProtocol,
    /// No address of the name may be dialled.
    OutOfReach,
    /// The server answered and refused the connection.
    Refused,
    /// No answer came in time.
    TimedOut,
    /// The dial has no key and no name by which to recognise the server.
    UnknownPeer,
    /// The network, the resolver or TLS failed.
    Unreachable,
}

/// The port of an address that names none.
const DEFAULT_PORT: u16 = 443;

/// Longest host name (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// Longest label of a host name (RFC 1035 section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// A peer to dial: its address, and the keys by which it is known. Documents hold its text.
///
/// ```
/// use alknet_core::{DialHost, PeerAddr};
///
/// let addr: PeerAddr = "edge.example.org".parse()?;
/// assert_eq!(addr.address(), "edge.example.org:443");
/// assert_eq!(addr.host, DialHost::Name("edge.example.org".to_owned()));
/// assert!(addr.pins.is_empty());
///
/// let pinned = format!("ed25519:{}@[2001:db8::7]:4433", "0f".repeat(32));
/// assert_eq!(pinned.parse::<PeerAddr>()?.to_string(), pinned);
/// # Ok::<(), alknet_core::PeerAddrError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddr {
    /// Keys of which the server has to prove any. Empty: a public name with a public certificate.
    pub pins: Vec<PeerKey>,
    /// The host.
    pub host: DialHost,
    /// The port, UDP and TCP.
    pub port: u16,
}

impl PeerAddr {
    /// The same address, with `pins` as well.
    #[must_use]
    pub fn with_pins(mut self, pins: impl IntoIterator<Item = PeerKey>) -> Self {
        self.pins.extend(pins);
        self
    }

    /// Host and port without the pins.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.host {
            DialHost::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            host => format!("{host}:{}", self.port),
        }
    }
}

/// The host of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DialHost {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name, in lower case.
    Name(String),
}

impl fmt::Display for DialHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pin) in self.pins.iter().enumerate() {
            write!(f, "{}{pin}", if i == 0 { "" } else { "," })?;
        }
        let at = if self.pins.is_empty() { "" } else { "@" };
        write!(f, "{at}{}", self.address())
    }
}

impl FromStr for PeerAddr {
    type Err = PeerAddrError;

    fn from_str(text: &str) -> Result<Self, PeerAddrError> {
        // The last `@` ends the pins, because no host contains one.
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

impl TryFrom<String> for PeerAddr {
    type Error = PeerAddrError;

    fn try_from(text: String) -> Result<Self, PeerAddrError> {
        text.parse()
    }
}

impl From<PeerAddr> for String {
    fn from(addr: PeerAddr) -> Self {
        addr.to_string()
    }
}

fn parse_pins(text: &str) -> Result<Vec<PeerKey>, PeerAddrError> {
    text.split(',').map(|pin| Ok(pin.parse()?)).collect()
}

/// Splits `host:port`. The host keeps its brackets.
fn split_port(address: &str) -> Result<(&str, u16), PeerAddrError> {
    // An IPv6 address has colons itself: only brackets tell its end from the port (RFC 3986 section 3.2.2).
    let after_host = match address.find(']') {
        Some(end) if address.starts_with('[') => end + 1,
        _ if address.matches(':').count() > 1 => {
            return Err(PeerAddrError::Brackets(address.to_owned()));
        }
        _ => address.find(':').unwrap_or(address.len()),
    };
    let (host, rest) = address.split_at(after_host);
    if rest.is_empty() {
        return Ok((host, DEFAULT_PORT));
    }
    let digits = rest.strip_prefix(':').unwrap_or_default();
    // `parse` would accept a sign.
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse() {
        Ok(port) if plain && port > 0 => Ok((host, port)),
        _ => Err(PeerAddrError::Port(rest.to_owned())),
    }
}

fn parse_host(host: &str) -> Result<DialHost, PeerAddrError> {
    if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        let ip: Ipv6Addr = inner
            .parse()
            .map_err(|_| PeerAddrError::Host(host.to_owned()))?;
        return Ok(DialHost::Ip(ip.into()));
    }
    if let Ok(ip) = host.parse() {
        return Ok(DialHost::Ip(ip));
    }
    // Names compare without case (RFC 4343).
    let name = host.to_ascii_lowercase();
    // A name that ends in digits is a mistyped address, which no resolver should get.
    let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    let mistyped = last.bytes().all(|b| b.is_ascii_digit());
    if mistyped || name.len() > HOST_BYTES_MAX || !is_dns_name(&name) {
        return Err(PeerAddrError::Host(host.to_owned()));
    }
    Ok(DialHost::Name(name))
}

/// Whether `name` can stand in a certificate and a ClientHello: labels of letters, digits, `-` and `_`, none of which
/// begins or ends with `-`.
fn is_dns_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    name.strip_suffix('.')
        .unwrap_or(name)
        .split('.')
        .all(|label| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// What is wrong with the address of a peer.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerAddrError {
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
            let addr: PeerAddr = text.parse().expect(text);
            assert_eq!((addr.to_string(), addr.pins), (shown.to_owned(), vec![]));
            let pinned: PeerAddr = format!("{pin}@{text}").parse().expect(text);
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
            assert!(bad.parse::<PeerAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_expected_follows_from_the_address_and_the_known_keys() {
        let (written, known) = (PeerKey::Ed25519([1; 32]), PeerKey::Spki([2; 32]));
        let addr = |text: &str| text.parse::<PeerAddr>().expect(text);
        let pinned = |text: &str| addr(text).with_pins([written]);
        let expect =
            |addr: &PeerAddr, known: &[PeerKey]| PeerVerification::for_address(addr, known);
        for place in ["example.org", "192.0.2.1:443", "[::1]"] {
            let of = expect(&pinned(place), &[]).expect("a pin");
            assert_eq!(of, PeerVerification::Pinned(vec![written]), "{place}");
            for addr in [addr(place), pinned(place)] {
                let of = expect(&addr, &[known]).expect("a peer");
                assert_eq!(of, PeerVerification::Pinned(vec![known]), "{place}");
            }
        }
        let public = expect(&addr("example.org"), &[]).expect("a name");
        assert_eq!(public, PeerVerification::WebPki);
        for place in ["192.0.2.1", "[::1]:443"] {
            let error = expect(&addr(place), &[]).expect_err("an unknown peer");
            assert_eq!(error.kind, DialErrorKind::UnknownPeer);
            assert!(error.is_permanent() && error.to_string().contains("ed25519:"));
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
            let addr = PeerAddr {
                pins: pins.into_iter().map(PeerKey::Ed25519).collect(),
                host: ip.map_or(DialHost::Name(name), DialHost::Ip),
                port,
            };
            prop_assert_eq!(addr.to_string().parse::<PeerAddr>(), Ok(addr));
        }

        /// A pin that is cut short is a mistake, never an address without a pin.
        #[test]
        fn no_part_of_a_pin_pins(key in any::<[u8; 32]>()) {
            let pin = PeerKey::Ed25519(key).to_string();
            for end in 0..pin.len() {
                let text = format!("{}@edge.example:8443", &pin[..end]);
                prop_assert!(text.parse::<PeerAddr>().is_err(), "{}", text);
                let text = format!("{pin},{}@edge.example:8443", &pin[..end]);
                prop_assert!(text.parse::<PeerAddr>().is_err(), "{}", text);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<PeerAddr>();
        }

        #[test]
        fn no_punctuation_panics(text in "[a0:@.,\\[\\]]{0,20}") {
            let _ = text.parse::<PeerAddr>();
        }
    }
}
