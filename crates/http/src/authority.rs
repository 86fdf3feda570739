//! What the authority of a request means for its response. Nearly all requests of a connection have the same
//! authority, so the connection caches the result.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::Guard;
use http::HeaderValue;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;

use crate::alt_svc::{self, PublicReachability};
use crate::hosts;
use crate::settings::HttpSettings;
use crate::shared::HttpShared;

/// The result for an authority.
#[derive(Debug)]
pub(crate) struct AuthorityInfo {
    /// Whether the request is for this node.
    pub(crate) own: bool,
    /// Whether the request names the node by an address.
    pub(crate) by_address: bool,
    /// The offer of HTTP/3 for this authority.
    pub(crate) services: HeaderValue,
    /// The requirement of TLS for this authority.
    pub(crate) policy: Option<HeaderValue>,
    from: AuthorityKey,
}

/// The inputs of the result. The parts are copies: a field of a request is a slice of the connection's read buffer,
/// and would keep all 8 KiB of it for as long as the connection lasts.
#[derive(Debug)]
struct AuthorityKey {
    target: Option<Box<str>>,
    field: Option<Box<[u8]>>,
    settings: Arc<HttpSettings>,
    seen: Arc<PublicReachability>,
}

impl AuthorityInfo {
    fn find(
        request: &Parts,
        h3: bool,
        settings: &Arc<HttpSettings>,
        seen: &Arc<PublicReachability>,
    ) -> Self {
        let authority = hosts::authority(&request.uri, &request.headers);
        let authority = authority.as_ref();
        Self {
            own: authority.is_some_and(|authority| settings.hosts.has(authority)),
            by_address: authority.is_some_and(|authority| hosts::address(authority).is_some()),
            services: alt_svc::alt_svc(h3, seen, authority),
            policy: alt_svc::hsts(settings, seen, authority),
            from: AuthorityKey {
                target: request.uri.authority().map(|target| target.as_str().into()),
                field: request
                    .headers
                    .get(HOST)
                    .map(|field| field.as_bytes().into()),
                settings: Arc::clone(settings),
                seen: Arc::clone(seen),
            },
        }
    }

    /// Whether the result also applies to this request.
    fn is_for(
        &self,
        request: &Parts,
        settings: &Arc<HttpSettings>,
        seen: &Arc<PublicReachability>,
    ) -> bool {
        let mut fields = request.headers.get_all(HOST).iter();
        let field = fields.next().map(HeaderValue::as_bytes);
        let same = field == self.from.field.as_deref() && fields.next().is_none();
        let target = request.uri.authority().map(Authority::as_str);
        same && target == self.from.target.as_deref()
            && Arc::ptr_eq(settings, &self.from.settings)
            && Arc::ptr_eq(seen, &self.from.seen)
    }
}

/// The last result of a connection.
#[derive(Debug, Default)]
pub(crate) struct AuthorityCache(Mutex<Option<Arc<AuthorityInfo>>>);

impl AuthorityCache {
    /// The result for a request's authority.
    pub(crate) fn get_or_find(
        &self,
        request: &Parts,
        shared: &HttpShared,
        settings: &Arc<HttpSettings>,
    ) -> Arc<AuthorityInfo> {
        let seen: Guard<Arc<PublicReachability>> = shared.reachability();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(named) = last
            .as_ref()
            .filter(|named| named.is_for(request, settings, &seen))
        {
            return Arc::clone(named);
        }
        let named = Arc::new(AuthorityInfo::find(request, shared.h3, settings, &seen));
        // A request with two Host fields is never cached, because the key holds only one.
        if request.headers.get_all(HOST).iter().count() < 2 {
            *last = Some(Arc::clone(&named));
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::config::NodeConfig;

    use super::*;

    #[test]
    fn what_was_found_is_good_for_the_same_only() {
        let settings = |document: &str| {
            let config = NodeConfig::parse(document.as_bytes()).expect("a configuration");
            Arc::new(HttpSettings::new(&config))
        };
        let request = |uri: &str, fields: &[&str]| {
            let mut request = http::Request::builder().uri(uri);
            for field in fields {
                request = request.header(HOST, *field);
            }
            let request = request.body(()).expect("a request");
            request.into_parts().0
        };
        let ours = settings("[node]\nname = \"edge-1\"\n");
        let seen = Arc::<PublicReachability>::default();
        let first = request("/", &["edge-1:8443"]);
        let named = AuthorityInfo::find(&first, true, &ours, &seen);
        assert!(named.own);
        assert!(named.is_for(&first, &ours, &seen));
        let path = request("/call?x=1", &["edge-1:8443"]);
        assert!(named.is_for(&path, &ours, &seen));
        for (uri, fields) in [
            ("/", &["edge-1"][..]),
            ("/", &[]),
            ("/", &["edge-1:8443", "edge-1:8443"]),
            ("https://edge-1:8443/", &["edge-1:8443"]),
        ] {
            let other = request(uri, fields);
            assert!(!named.is_for(&other, &ours, &seen), "{uri} {fields:?}");
        }
        assert!(
            !named.is_for(&first, &settings(""), &seen),
            "other settings"
        );
        let later = Arc::<PublicReachability>::default();
        assert!(!named.is_for(&first, &ours, &later), "seen again");
    }

    #[test]
    fn what_is_kept_of_a_request_does_not_keep_the_buffer_it_was_read_into() {
        let config = NodeConfig::parse(b"[node]\nname = \"edge-1\"\n").expect("a configuration");
        let settings = Arc::new(HttpSettings::new(&config));
        let read = bytes::Bytes::from(b"https://edge-1:8443/ edge-1:8443".to_vec());
        let uri = http::Uri::from_maybe_shared(read.slice(..20)).expect("a target");
        let field = HeaderValue::from_maybe_shared(read.slice(21..)).expect("a field");
        let request = http::Request::builder().uri(uri).header(HOST, field);
        let request = request.body(()).expect("a request").into_parts().0;
        let named = AuthorityInfo::find(&request, true, &settings, &Arc::default());
        assert!(!read.is_unique(), "the request is a part of what was read");
        drop(request);
        assert!(read.is_unique());
        assert!(named.own);
    }
}
