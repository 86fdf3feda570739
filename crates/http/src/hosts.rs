//! The host names of this node. A page of another site whose name points to the node (DNS rebinding) gets no
//! response.

use std::net::IpAddr;

use alknet_core::config::NodeConfig;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Uri};

/// The name by which every machine reaches itself.
pub(crate) const LOCALHOST: &str = "localhost";

/// The names of the node.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// The configured names, sorted.
    names: Vec<String>,
    /// The name in the node's own certificate, in small letters, if the node has one.
    of_key: Option<String>,
}

impl Hosts {
    pub(crate) fn new(config: &NodeConfig) -> Self {
        let node = &config.node;
        let mut names: Vec<String> = config.http.names.clone();
        names.extend(node.domain.clone());
        names.extend(config.tls.acme.domains.iter().cloned());
        // The suffix is that of multicast DNS (RFC 6762 section 3).
        if let Some(name) = &node.name {
            names.extend([name.clone(), format!("{name}.local")]);
        }
        // A page of another machine cannot have this name.
        names.push(LOCALHOST.to_owned());
        names
            .iter_mut()
            .for_each(|name| name.make_ascii_lowercase());
        // The lookups below use a binary search.
        names.sort();
        names.dedup();
        Self {
            names,
            of_key: None,
        }
    }

    /// Makes the node also answer to the name in its own certificate. No name server resolves that name (RFC 6761
    /// section 6.4), so another site cannot make it point here.
    pub(crate) fn set_key_name(&mut self, name: &str) {
        self.of_key = Some(name.to_ascii_lowercase());
    }

    /// The configured names.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a request with this authority is for this node. Every address is accepted: rebinding needs a name, and
    /// a router may use another address for the node.
    pub(crate) fn has(&self, authority: &Authority) -> bool {
        if address(authority).is_some() {
            return true;
        }
        let host = name(authority);
        let wildcard = || {
            let rest = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            rest.is_some_and(|name| self.names.binary_search(&name).is_ok())
        };
        // A client that trusts the node by its key uses the name that is derived from this key. A name that is derived
        // from another key belongs to another node.
        let is_of_key = self.of_key.as_ref() == Some(&host);
        self.names.binary_search(&host).is_ok() || wildcard() || is_of_key
    }
}

/// The address, if the authority has one instead of a name.
pub(crate) fn address(authority: &Authority) -> Option<IpAddr> {
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

/// The name in the form for comparisons (RFC 4343), without the dot of the root.
pub(crate) fn name(authority: &Authority) -> String {
    let host = authority.host();
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The authority of a request; `None` if the request names two different ones.
pub(crate) fn authority(target: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let mut fields = headers.get_all(HOST).iter();
    let field = fields.next();
    // Two Host fields are malformed (RFC 9112 section 3.2): a proxy could use the other one.
    if fields.next().is_some() {
        return None;
    }
    let own = target.authority().cloned();
    let field = field.map(|field| field.to_str().ok()?.parse::<Authority>().ok());
    let found = match (own, field) {
        (Some(own), None) => own,
        (None, Some(Some(field))) => field,
        (Some(own), Some(Some(field))) if own == field => own,
        _ => return None,
    };
    // An authority with user information is refused: it makes one host look like another (RFC 9110 section 4.2.4).
    (!found.as_str().contains('@')).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_and_any_address_are_this_nodes() {
        let mut hosts = Hosts {
            names: vec!["*.apps.example.org".into(), "hub.example.org".into()],
            of_key: None,
        };
        let own = "mfrggzdfmztwq2lk.alknet.invalid:4433".parse();
        let own = own.expect("an authority");
        assert!(!hosts.has(&own), "the node has no name of a key yet");
        hosts.set_key_name("MFRGGZDFMZTWQ2LK.alknet.invalid");
        for (name, own) in [
            ("hub.example.org", true),
            ("HUB.example.org:8443", true),
            ("hub.example.org.", true),
            ("a.apps.example.org", true),
            ("a.b.apps.example.org", false),
            ("192.0.2.7:4433", true),
            ("[2001:db8::1]:443", true),
            ("mfrggzdfmztwq2lk.alknet.invalid:4433", true),
            ("MFRGGZDFMZTWQ2LK.alknet.invalid.", true),
            ("nbswy3dpeb3w64tm.alknet.invalid:4433", false),
            ("a.mfrggzdfmztwq2lk.alknet.invalid", false),
            ("alknet.invalid.evil.example", false),
            ("evil.example", false),
            ("192.0.2.7.evil.example", false),
        ] {
            let authority = name.parse().expect("an authority");
            assert_eq!(hosts.has(&authority), own, "{name}");
        }
    }

    #[test]
    fn the_configuration_names_the_node() {
        let document = br#"
[node]
name = "edge-1"
domain = "hub.example.org"
[http]
names = ["www.example.org", "hub.example.org"]
[tls.acme]
domains = ["mail.example.org"]
"#;
        let config = NodeConfig::parse(document).expect("a correct document");
        let names = [
            "edge-1",
            "edge-1.local",
            "hub.example.org",
            "localhost",
            "mail.example.org",
            "www.example.org",
        ];
        assert_eq!(Hosts::new(&config).names(), names);
    }

    #[test]
    fn a_request_names_one_host() {
        let request = |uri: &str, fields: &[&str]| {
            let mut request = http::Request::builder().uri(uri);
            for field in fields {
                request = request.header(HOST, *field);
            }
            let request = request.body(()).expect("a request");
            let found = authority(request.uri(), request.headers());
            found.map(|found| found.to_string())
        };
        let one = Some("a.example".to_owned());
        assert_eq!(request("/", &["a.example"]), one);
        assert_eq!(request("https://a.example/", &[]), one);
        assert_eq!(request("https://a.example/", &["a.example"]), one);
        assert_eq!(request("https://a.example/", &["b.example"]), None);
        assert_eq!(request("/", &["a.example", "a.example"]), None);
        assert_eq!(request("/", &[]), None);
        assert_eq!(request("/", &["user@a.example"]), None);
    }
}
