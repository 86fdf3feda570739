//! Rules for the hosts that the client may contact.

use std::fmt;
use std::str::FromStr;

use alknet_core::{DialHost, PeerAddr};
use thiserror::Error;

/// A host that the client may contact: `api.example.org`, `*.example.org` for every name below it, or an address,
/// each with `:PORT` if it is not 443.
///
/// ```
/// use alknet_core::DialHost;
/// use alknet_http_client::HostRule;
///
/// let below: HostRule = "*.example.org".parse()?;
/// assert!(below.allows(&DialHost::Name("api.example.org".to_owned()), 443));
/// assert!(!below.allows(&DialHost::Name("example.org".to_owned()), 443));
/// # Ok::<(), alknet_http_client::HostRuleError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    /// Whether the rule allows the names below it, but not the name itself.
    below: bool,
    addr: PeerAddr,
}

impl HostRule {
    /// Allows exactly that host and port.
    #[must_use]
    pub fn exactly(host: DialHost, port: u16) -> Self {
        let pins = Vec::new();
        Self {
            below: false,
            addr: PeerAddr { pins, host, port },
        }
    }

    /// Whether the rule allows the host.
    #[must_use]
    pub fn allows(&self, host: &DialHost, port: u16) -> bool {
        if self.addr.port != port {
            return false;
        }
        match (&self.addr.host, host) {
            // Only whole labels match: `anexample.org` is not below `example.org`.
            (DialHost::Name(suffix), DialHost::Name(name)) if self.below => name
                .strip_suffix(suffix.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
            (own, host) => !self.below && own == host,
        }
    }
}

/// The text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no host; write a name like api.example.org, *.example.org for all below it, or an address, with :PORT if it is not 443"
)]
pub struct HostRuleError(String);

impl FromStr for HostRule {
    type Err = HostRuleError;

    fn from_str(text: &str) -> Result<Self, HostRuleError> {
        let invalid = || HostRuleError(text.to_owned());
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // A peer's address may begin with a key; a rule has none.
        if rest.contains('@') {
            return Err(invalid());
        }
        let addr: PeerAddr = rest.parse().map_err(|_| invalid())?;
        // Nothing is below an address.
        if below && matches!(addr.host, DialHost::Ip(_)) {
            return Err(invalid());
        }
        Ok(Self {
            below,
            addr: PeerAddr {
                host: plain(addr.host),
                ..addr
            },
        })
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = if self.below { "*." } else { "" };
        write!(f, "{below}{}", self.addr.address())
    }
}

/// Removes the dot at the end of a name, which does not change the host.
pub(crate) fn plain(host: DialHost) -> DialHost {
    match host {
        DialHost::Name(mut name) => {
            if name.ends_with('.') {
                name.pop();
            }
            DialHost::Name(name)
        }
        ip @ DialHost::Ip(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_mean_hosts_and_ports() {
        let allows = |rule: &str, at: &str| {
            let at: PeerAddr = at.parse().expect(at);
            let rule: HostRule = rule.parse().expect(rule);
            rule.allows(&plain(at.host), at.port)
        };
        for (rule, at) in [
            ("api.example.org", "api.example.org"),
            ("API.example.org.", "api.example.org"),
            ("*.example.org", "a.b.example.org"),
            ("192.0.2.1:8443", "192.0.2.1:8443"),
            ("[2001:db8::1]", "[2001:db8::1]:443"),
        ] {
            assert!(allows(rule, at), "{rule} {at}");
        }
        for (rule, at) in [
            ("api.example.org", "api.example.org:8443"),
            ("api.example.org", "example.org"),
            ("*.example.org", "example.org"),
            ("*.example.org", "evilexample.org"),
            ("*.example.org", "192.0.2.1"),
        ] {
            assert!(!allows(rule, at), "{rule} {at}");
        }
        for bad in [
            "",
            "*",
            "*.",
            "*.192.0.2.1",
            "a b",
            "user@host",
            "https://x",
        ] {
            assert!(bad.parse::<HostRule>().is_err(), "{bad}");
        }
        let shown: HostRule = "*.example.org".parse().expect("a rule");
        assert_eq!(shown.to_string(), "*.example.org:443");
    }
}
