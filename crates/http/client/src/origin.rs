//! The server of a URI.

use std::fmt;

use alknet_core::{DialHost, PeerAddr};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};

use crate::error::{HttpError, shown};
use crate::host::plain;
use crate::limits::URI_BYTES_MAX;

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpOrigin {
    pub(crate) secure: bool,
    pub(crate) addr: PeerAddr,
}

impl HttpOrigin {
    pub(crate) fn from_uri(uri: &Uri) -> Result<Self, HttpError> {
        let invalid = || HttpError::Uri(shown(uri));
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid()),
        };
        let authority = uri.authority().ok_or_else(invalid)?;
        // A user name in a URI may come with a password, which would end up in a log.
        if authority.as_str().contains('@') {
            return Err(invalid());
        }
        // A longer URI fails at most servers with 414 (RFC 9110 section 15.5.15).
        if uri.path_and_query().map_or(0, |path| path.as_str().len()) > URI_BYTES_MAX {
            return Err(HttpError::UriTooLong);
        }
        // The port is read as text, because `Uri` reads an invalid port as an absent one.
        let rest = authority.as_str().strip_prefix(authority.host());
        let port = match (rest, secure) {
            (None, _) => return Err(invalid()),
            (Some(""), true) => ":443",
            (Some(""), false) => ":80",
            (Some(port), _) => port,
        };
        let addr = format!("{}{port}", authority.host()).parse::<PeerAddr>();
        let addr = addr.map_err(|source| HttpError::Target {
            uri: shown(uri),
            source,
        })?;
        Ok(Self {
            secure,
            addr: PeerAddr {
                host: plain(addr.host),
                ..addr
            },
        })
    }

    pub(crate) fn is_at(&self, addr: &PeerAddr) -> bool {
        self.addr.port == addr.port && self.addr.host == plain(addr.host.clone())
    }

    /// The value of the header `host`.
    pub(crate) fn authority(&self) -> String {
        let usual = if self.secure { 443 } else { 80 };
        match &self.addr.host {
            DialHost::Ip(std::net::IpAddr::V6(ip)) if self.addr.port == usual => format!("[{ip}]"),
            host if self.addr.port == usual => host.to_string(),
            _ => self.addr.address(),
        }
    }

    pub(crate) fn host_header(&self) -> Result<HeaderValue, HttpError> {
        HeaderValue::try_from(self.authority()).map_err(|_| HttpError::Uri(self.to_string()))
    }

    /// The path at this origin as an absolute URI, which HTTP/2 needs.
    pub(crate) fn absolute(&self, uri: &Uri) -> Result<Uri, HttpError> {
        let invalid = || HttpError::Uri(shown(uri));
        let mut parts = uri.clone().into_parts();
        parts.scheme = Some(match self.secure {
            true => Scheme::HTTPS,
            false => Scheme::HTTP,
        });
        let authority = Authority::try_from(self.authority()).map_err(|_| invalid())?;
        parts.authority = Some(authority);
        parts.path_and_query = Some(path_of(uri));
        Uri::from_parts(parts).map_err(|_| invalid())
    }

    /// The path alone, which HTTP/1.1 needs.
    pub(crate) fn relative(uri: &Uri) -> Uri {
        Uri::from(path_of(uri))
    }
}

fn path_of(uri: &Uri) -> http::uri::PathAndQuery {
    let slash = || http::uri::PathAndQuery::from_static("/");
    match uri.path_and_query() {
        Some(path) if path.as_str().starts_with('?') => {
            format!("/{path}").parse().unwrap_or_else(|_| slash())
        }
        Some(path) => path.clone(),
        None => slash(),
    }
}

impl fmt::Display for HttpOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        for (text, origin) in [
            ("https://Api.Example.org", "https://api.example.org"),
            (
                "https://api.example.org.:443/x?y",
                "https://api.example.org",
            ),
            ("https://192.0.2.1:8443/", "https://192.0.2.1:8443"),
            ("http://[::1]/", "http://[::1]"),
            ("http://[::1]:443/", "http://[::1]:443"),
        ] {
            let uri: Uri = text.parse().expect(text);
            assert_eq!(HttpOrigin::from_uri(&uri).expect(text).to_string(), origin);
        }
        for bad in [
            "/path",
            "ftp://example.org/",
            "https://user:hush@example.org/",
            "https://ed25519:00@example.org/",
            "https://1.2.3/",
            "https://example.org:0/",
            "https://example.org:99999/",
        ] {
            let error = bad
                .parse::<Uri>()
                .ok()
                .map(|uri| HttpOrigin::from_uri(&uri));
            if let Some(error) = error {
                let text = error.expect_err(bad).to_string();
                assert!(!text.contains("hush"), "{text}");
            }
        }
    }

    #[test]
    fn paths_are_kept() {
        let uri: Uri = "https://example.org:8443/a%20b?c=d".parse().expect("a URI");
        let origin = HttpOrigin::from_uri(&uri).expect("an origin");
        assert_eq!(HttpOrigin::relative(&uri), "/a%20b?c=d");
        assert_eq!(origin.absolute(&uri).expect("a URI"), uri);
        let bare: Uri = "https://example.org".parse().expect("a URI");
        assert_eq!(HttpOrigin::relative(&bare), "/");
    }
}
