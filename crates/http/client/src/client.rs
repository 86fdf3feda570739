//! The client: its rules, redirects and retries.

use std::sync::Arc;

use alknet_core::{CapabilityError, DialErrorKind, Dialer, SecretLocation};
use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout};
use url::Url;
use url::form_urlencoded::byte_serialize;

use crate::body::ResponseBody;
use crate::connection::HttpClientConnection;
use crate::error::{HttpError, shown};
use crate::limits::{HEADERS_MAX, REDIRECTS_MAX, RETRIES_MAX};
use crate::options::{ClientOptions, HttpRequestOptions, Redirects};
use crate::origin::HttpOrigin;
use crate::pool::HttpConnectionPool;
use crate::retry;

/// Headers of one connection, which this crate or hyper sets for each message (RFC 9110 section 7.6.1).
const HOP: [HeaderName; 7] = [
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers that a redirect takes to another server: those that cannot hold a secret.
const HARMLESS: [HeaderName; 8] = [
    ACCEPT,
    ACCEPT_LANGUAGE,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_UNMODIFIED_SINCE,
    RANGE,
    USER_AGENT,
];

/// Sends requests to other servers. It stores no cookies and uses no proxy. Clones share their connections.
#[derive(Clone, Debug)]
pub struct HttpClient(Arc<HttpClientInner>);

#[derive(Debug)]
struct HttpClientInner {
    dialer: Arc<dyn Dialer>,
    options: ClientOptions,
    pool: Arc<HttpConnectionPool>,
}

impl HttpClient {
    /// Connects with `dialer`, which decides which servers to trust.
    #[must_use]
    pub fn new(dialer: Arc<dyn Dialer>, options: ClientOptions) -> Self {
        let pool = Arc::default();
        Self(Arc::new(HttpClientInner {
            dialer,
            options,
            pool,
        }))
    }

    /// Sends one request, whose URI must be absolute, and waits for the head of the response.
    ///
    /// # Errors
    /// The rules do not allow the server, it cannot be reached, or it does not respond in time. A status is no error.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<ResponseBody>, HttpError> {
        self.send_with(request, &HttpRequestOptions::default())
            .await
    }

    /// Like `send`, with the settings of `exchange`.
    ///
    /// # Errors
    /// The errors of [`HttpClient::send`].
    pub async fn send_with(
        &self,
        request: Request<Bytes>,
        exchange: &HttpRequestOptions,
    ) -> Result<Response<ResponseBody>, HttpError> {
        let started = Instant::now();
        let limit = exchange
            .whole
            .map_or(exchange.head, |whole| whole.min(exchange.head));
        let answer = self.0.tries(&request, exchange, started + limit);
        let answer = timeout(limit, answer)
            .await
            .unwrap_or(Err(HttpError::TimedOut(limit)))?;
        Ok(answer.map(|body| body.bounded(started, exchange.whole)))
    }
}

impl HttpClientInner {
    async fn tries(
        &self,
        request: &Request<Bytes>,
        exchange: &HttpRequestOptions,
        until: Instant,
    ) -> Result<Response<ResponseBody>, HttpError> {
        let mut tried = 0;
        loop {
            let answer = self.follow(request, exchange).await;
            let again = exchange.retry && tried < RETRIES_MAX;
            let wait = again.then(|| retry::delay(&answer, tried)).flatten();
            match wait {
                // A retry that begins after the limit could not succeed.
                Some(wait) if Instant::now() + wait < until => {
                    drop(answer);
                    sleep(wait).await;
                    tried += 1;
                }
                _ => return answer,
            }
        }
    }

    /// Sends the request and follows redirects.
    async fn follow(
        &self,
        request: &Request<Bytes>,
        exchange: &HttpRequestOptions,
    ) -> Result<Response<ResponseBody>, HttpError> {
        let first = HttpOrigin::from_uri(request.uri())?;
        let mut origin = first.clone();
        let mut uri = request.uri().clone();
        for _ in 0..=REDIRECTS_MAX {
            self.allow(&origin)?;
            let message = message(request, &uri, origin == first, exchange)?;
            let message = self.dressed(message);
            let (answer, connection) = self.answer(&origin, &message).await?;
            let Some(next) = self.redirect(request.method(), &origin, &uri, &answer)? else {
                let pool = Arc::clone(&self.pool);
                return Ok(answer
                    .map(|body| ResponseBody::new(body, origin, connection, pool, exchange.idle)));
            };
            (origin, uri) = next;
        }
        let origin = origin.to_string();
        Err(HttpError::Redirects { origin })
    }

    fn allow(&self, origin: &HttpOrigin) -> Result<(), HttpError> {
        let addr = &origin.addr;
        if let Some(hosts) = &self.options.hosts
            && !hosts.iter().any(|rule| rule.allows(&addr.host, addr.port))
        {
            return Err(HttpError::Host(addr.address()));
        }
        let plain = &self.options.plain;
        match origin.secure || plain.iter().any(|one| origin.is_at(one)) {
            true => Ok(()),
            false => Err(HttpError::Plain(origin.to_string())),
        }
    }

    fn dressed(&self, mut message: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        if let Some(agent) = &self.options.user_agent {
            let headers = message.headers_mut();
            headers.entry(USER_AGENT).or_insert_with(|| agent.clone());
        }
        message
    }

    /// Sends the request once, and once more if a pooled connection turns out to be closed.
    async fn answer(
        &self,
        origin: &HttpOrigin,
        message: &Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, HttpClientConnection), HttpError> {
        // A server may close an idle connection just as the request leaves (RFC 9112 section 9.3.1).
        let safe = [Method::GET, Method::HEAD].contains(message.method());
        if let Some(mut connection) = self.pool.take(origin) {
            match connection.send(message.clone(), origin).await? {
                Ok(answer) => return checked(answer, connection, origin),
                Err(failed) if failed.unsent || safe => {}
                Err(failed) => return Err(HttpError::broken(origin, failed.error)),
            }
        }
        let mut connection = self.open(origin).await?;
        match connection.send(message.clone(), origin).await? {
            Ok(answer) => checked(answer, connection, origin),
            Err(failed) => Err(HttpError::broken(origin, failed.error)),
        }
    }

    async fn open(&self, origin: &HttpOrigin) -> Result<HttpClientConnection, HttpError> {
        let open = |http2| HttpClientConnection::open(&*self.dialer, &self.options, origin, http2);
        // Client and server agree on HTTP/2 by ALPN, within TLS (RFC 9113 section 3.2).
        if !self.options.http2 || !origin.secure || self.pool.is_old(origin) {
            return open(false).await;
        }
        match open(true).await {
            Err(HttpError::Dial(error)) if error.kind == DialErrorKind::NoProtocol => {
                self.pool.set_old(origin.clone());
                open(false).await
            }
            Ok(connection) => {
                if let Some(shared) = connection.share() {
                    self.pool.put(origin.clone(), shared);
                }
                Ok(connection)
            }
            other => other,
        }
    }

    /// The target of a redirect, if the client follows it.
    fn redirect<B>(
        &self,
        method: &Method,
        origin: &HttpOrigin,
        uri: &Uri,
        answer: &Response<B>,
    ) -> Result<Option<(HttpOrigin, Uri)>, HttpError> {
        use StatusCode as S;
        let moved = [
            S::MOVED_PERMANENTLY,
            S::FOUND,
            S::SEE_OTHER,
            S::TEMPORARY_REDIRECT,
            S::PERMANENT_REDIRECT,
        ];
        // Repeating another method at another address could have an effect twice.
        let safe = [Method::GET, Method::HEAD].contains(method);
        let rule = self.options.redirects;
        if !safe || rule == Redirects::No || !moved.contains(&answer.status()) {
            return Ok(None);
        }
        let Some(location) = answer.headers().get(LOCATION) else {
            return Ok(None);
        };
        let refused = |to: String| HttpError::Redirect {
            origin: origin.to_string(),
            to,
        };
        let next = joined(uri, location).ok_or_else(|| refused("nowhere".to_owned()))?;
        let to = HttpOrigin::from_uri(&next).map_err(|_| refused(shown(&next)))?;
        if rule == Redirects::SameOrigin && to != *origin {
            return Err(refused(shown(&next)));
        }
        Ok(Some((to, next)))
    }
}

/// HTTP/2 limits the bytes of headers, but not their number, so the number is checked here.
fn checked(
    answer: Response<Incoming>,
    connection: HttpClientConnection,
    origin: &HttpOrigin,
) -> Result<(Response<Incoming>, HttpClientConnection), HttpError> {
    match answer.headers().len() <= HEADERS_MAX {
        true => Ok((answer, connection)),
        false => Err(HttpError::Headers {
            origin: origin.to_string(),
        }),
    }
}

/// Resolves `location` against `uri` (RFC 9110 section 10.2.2).
fn joined(uri: &Uri, location: &HeaderValue) -> Option<Uri> {
    let base = Url::parse(&uri.to_string()).ok()?;
    let mut next = base.join(location.to_str().ok()?).ok()?;
    // A fragment is for the client alone and is never sent (RFC 3986 section 3.5).
    next.set_fragment(None);
    next.as_str().parse().ok()
}

/// The message for `uri`. It has the node's credential, body and all headers only if `own`, that is, if the server is
/// the one that the request names.
fn message(
    request: &Request<Bytes>,
    uri: &Uri,
    own: bool,
    exchange: &HttpRequestOptions,
) -> Result<Request<Full<Bytes>>, HttpError> {
    let mut headers = HeaderMap::with_capacity(request.headers().len() + 2);
    for (name, value) in request.headers() {
        let is_copied = match own {
            true => !HOP.contains(name),
            false => HARMLESS.contains(name) && !value.is_sensitive(),
        };
        if is_copied {
            headers.append(name, value.clone());
        }
    }
    let mut uri = uri.clone();
    if let Some(credential) = exchange.credential.as_ref().filter(|_| own) {
        let mut set = Ok(());
        credential.authorize(&mut |place, name, value| {
            set = authorize(place, name, value, &mut headers, &mut uri);
        })?;
        set?;
    }
    let body = match own {
        true => request.body().clone(),
        false => Bytes::new(),
    };
    let mut message = Request::new(Full::new(body));
    *message.method_mut() = request.method().clone();
    *message.uri_mut() = uri;
    *message.headers_mut() = headers;
    Ok(message)
}

/// Writes a secret to its location.
fn authorize(
    place: SecretLocation,
    name: &str,
    value: &[u8],
    headers: &mut HeaderMap,
    uri: &mut Uri,
) -> Result<(), CapabilityError> {
    let unusable = CapabilityError::Unusable;
    let sensitive = |bytes: &[u8]| {
        let mut value = HeaderValue::from_bytes(bytes).map_err(|_| unusable)?;
        // HTTP/2 then sends the value as a literal that no table of a proxy stores (RFC 7541 section 7.1.3), and
        // debug output omits it.
        value.set_sensitive(true);
        Ok::<_, CapabilityError>(value)
    };
    match place {
        SecretLocation::Header => {
            let name: HeaderName = name.parse().map_err(|_| unusable)?;
            headers.insert(name, sensitive(value)?);
        }
        SecretLocation::Cookie => {
            // Other characters would end the cookie and begin another one (RFC 6265 section 4.1.1).
            let plain = |byte: &u8| byte.is_ascii_graphic() && !b"\",;\\".contains(byte);
            if !value.iter().all(plain) {
                return Err(unusable);
            }
            // A request has at most one Cookie field (RFC 6265 section 5.4).
            let mut cookie = headers
                .remove(COOKIE)
                .map_or_else(Vec::new, |own| [own.as_bytes(), b"; "].concat());
            cookie.extend_from_slice(&[name.as_bytes(), b"=", value].concat());
            headers.insert(COOKIE, sensitive(&cookie)?);
        }
        SecretLocation::Query => {
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let join = if path.contains('?') { '&' } else { '?' };
            let name: String = byte_serialize(name.as_bytes()).collect();
            let value: String = byte_serialize(value).collect();
            let path = format!("{path}{join}{name}={value}");
            let mut parts = uri.clone().into_parts();
            parts.path_and_query = Some(path.parse().map_err(|_| unusable)?);
            *uri = Uri::from_parts(parts).map_err(|_| unusable)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alknet_core::{CapabilityBackend, CapabilityKind, Secret, capability};

    use super::*;

    fn key(location: SecretLocation) -> HttpRequestOptions {
        let (one, filler) = capability("one", CapabilityKind::ApiKey, Arc::new(|| true));
        let (name, key) = ("x-key".to_owned(), Secret::new(b"s&cret".to_vec()));
        filler.fill(CapabilityBackend::ApiKey {
            location,
            name,
            key,
        });
        HttpRequestOptions::default().with_credential(Some(one))
    }

    fn sent(own: bool, exchange: &HttpRequestOptions) -> Request<Full<Bytes>> {
        let request = Request::get("https://api.example/a?b=c")
            .header("accept", "text/plain")
            .header("x-mine", "1")
            .header("cookie", "a=b")
            .header("connection", "x-mine")
            .body(Bytes::from_static(b"body"))
            .expect("a request");
        message(&request, request.uri(), own, exchange).expect("a message")
    }

    #[test]
    fn a_key_is_sent_to_its_own_server_only() {
        let header = sent(true, &key(SecretLocation::Header));
        assert_eq!(header.headers()["x-key"], "s&cret");
        assert!(header.headers()["x-key"].is_sensitive());
        assert!(!header.headers().contains_key("connection"));
        let query = sent(true, &key(SecretLocation::Query));
        assert_eq!(query.uri(), "https://api.example/a?b=c&x-key=s%26cret");
        let cookie = sent(true, &key(SecretLocation::Cookie));
        assert_eq!(cookie.headers()["cookie"], "a=b; x-key=s&cret");
        for place in [
            SecretLocation::Header,
            SecretLocation::Query,
            SecretLocation::Cookie,
        ] {
            let other = sent(false, &key(place));
            assert_eq!(other.uri(), "https://api.example/a?b=c");
            let names: Vec<_> = other.headers().keys().map(HeaderName::as_str).collect();
            assert_eq!(names, ["accept"]);
            let shown = format!("{:?}{:?}", key(place), sent(true, &key(place)).headers());
            assert!(!shown.contains("s&cret"), "{shown}");
        }
    }

    #[test]
    fn places_are_joined_as_browsers_do() {
        let uri: Uri = "https://api.example/a/b?c=d".parse().expect("a URI");
        for (location, to) in [
            ("/x", "https://api.example/x"),
            ("x?y", "https://api.example/a/x?y"),
            ("../x#z", "https://api.example/x"),
            ("//other.example/x", "https://other.example/x"),
            ("http://api.example/", "http://api.example/"),
        ] {
            let location = HeaderValue::from_static(location);
            assert_eq!(joined(&uri, &location).expect("a place"), to);
        }
    }
}
