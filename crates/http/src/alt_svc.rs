//! Headers that clients remember: one offers HTTP/3 (RFC 7838), and one requires TLS for this host (RFC 6797). Both
//! bind clients for a long time, so the node sends them only for names that a probe has verified from outside.

use http::HeaderValue;
use http::uri::Authority;

use crate::hosts;
use crate::limits::ALT_SVC_MAX_AGE_S;
use crate::settings::HttpSettings;

/// The port of an address that names none (RFC 9110 section 4.2.2).
const HTTPS: u16 = 443;

/// How the last probe reached the node from outside, by its public names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicReachability {
    /// The names and ports under which the node answered over QUIC.
    pub http3: Vec<(String, u16)>,
    /// The names that have had publicly trusted certificates for long enough to rely on them.
    pub trusted: Vec<String>,
}

impl PublicReachability {
    /// Whether a client can use HTTP/3 with this authority. On the loopback address nothing can block it.
    fn has_http3(&self, authority: &Authority) -> bool {
        let port = port(authority);
        let name = hosts::name(authority);
        match hosts::address(authority) {
            Some(address) => address.is_loopback(),
            None => {
                let known = |at: &(String, u16)| at.1 == port && at.0 == name;
                name == hosts::LOCALHOST || self.http3.iter().any(known)
            }
        }
    }
}

fn port(authority: &Authority) -> u16 {
    authority.port_u16().unwrap_or(HTTPS)
}

/// Offers HTTP/3 at the port that the client used. Known and unknown peers get the same header.
pub(crate) fn alt_svc(
    h3: bool,
    seen: &PublicReachability,
    authority: Option<&Authority>,
) -> HeaderValue {
    let served = authority.filter(|authority| h3 && seen.has_http3(authority));
    let offered = served.and_then(|authority| {
        let service = format!("h3=\":{}\"; ma={ALT_SVC_MAX_AGE_S}", port(authority));
        HeaderValue::from_str(&service).ok()
    });
    // This makes a client forget an earlier offer of HTTP/3 (RFC 7838 section 3).
    offered.unwrap_or_else(|| HeaderValue::from_static("clear"))
}

/// Requires TLS for this host, if the node can promise it. It never promises it for an address.
pub(crate) fn hsts(
    settings: &HttpSettings,
    seen: &PublicReachability,
    authority: Option<&Authority>,
) -> Option<HeaderValue> {
    // Browsers ignore the policy for an address (RFC 6797 section 8.1.1).
    let authority = authority.filter(|authority| hosts::address(authority).is_none())?;
    let name = hosts::name(authority);
    let policy = settings.hsts.as_ref()?;
    seen.trusted.contains(&name).then(|| policy.clone())
}

#[cfg(test)]
mod tests {
    use alknet_core::config::NodeConfig;

    use super::*;

    fn authority(text: &str) -> Authority {
        text.parse().expect("an authority")
    }

    fn seen() -> PublicReachability {
        PublicReachability {
            http3: vec![("hub.example.org".into(), 443)],
            trusted: vec!["hub.example.org".into(), "192.0.2.1".into()],
        }
    }

    fn settings(document: &str) -> HttpSettings {
        HttpSettings::new(&NodeConfig::parse(document.as_bytes()).expect("a configuration"))
    }

    #[test]
    fn http3_is_announced_where_it_was_seen() {
        let told = |h3, at: &str| alt_svc(h3, &seen(), Some(&authority(at)));
        for at in [
            "hub.example.org",
            "HUB.example.org:443",
            "hub.example.org.",
            "127.0.0.1",
            "[::1]",
            "localhost",
        ] {
            assert_eq!(told(true, at), "h3=\":443\"; ma=86400", "{at}");
            assert_eq!(told(false, at), "clear", "{at}");
        }
        assert_eq!(told(true, "127.0.0.1:8443"), "h3=\":8443\"; ma=86400");
        for at in [
            "hub.example.org:8443",
            "www.example.org",
            "192.0.2.1",
            "[2001:db8::1]:443",
            "edge-1",
        ] {
            assert_eq!(told(true, at), "clear", "{at}");
        }
        assert_eq!(alt_svc(true, &seen(), None), "clear");
    }

    #[test]
    fn tls_is_insisted_on_for_trusted_names_and_never_for_addresses() {
        let at = |document: &str, at: &str| {
            let policy = hsts(&settings(document), &seen(), Some(&authority(at)))?;
            policy.to_str().ok().map(str::to_owned)
        };
        let year = Some("max-age=31536000".to_owned());
        assert_eq!(at("", "hub.example.org"), year);
        assert_eq!(at("", "Hub.example.org.:8443"), year);
        for other in ["www.example.org", "192.0.2.1", "localhost", "127.0.0.1"] {
            assert_eq!(at("", other), None, "{other}");
        }
        let wide = "[http.hsts]\ninclude_subdomains = true\n";
        let told = at(wide, "hub.example.org");
        assert_eq!(told.as_deref(), Some("max-age=31536000; includeSubDomains"));
        let told = at(&format!("{wide}preload = true\n"), "hub.example.org");
        assert_eq!(
            told.as_deref(),
            Some("max-age=31536000; includeSubDomains; preload")
        );
        let off = "[http.hsts]\nenabled = false\n";
        assert_eq!(at(off, "hub.example.org"), None);
    }
}
