//! The server on TCP port 80, if the configuration has one. It responds only to a certificate authority's challenges,
//! and redirects other clients to the main port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use http::header::LOCATION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::access::AccessLogEntry;
use crate::limits::{
    HEADER_BYTES_MAX, HEADER_FIELDS_MAX, HEADER_TIMEOUT, PORT80_CONNECTIONS_MAX, PORT80_TIME,
};
use crate::routes::ACME;
use crate::settings::HttpSettings;
use crate::shared::AcmeChallenges;
use crate::{answer, hosts};

/// The log shows this in the place of the ALPN, because there is no TLS.
const NO_ALPN: &str = "-";

/// Serves port 80.
pub struct Port80Server {
    challenges: Option<Arc<dyn AcmeChallenges>>,
    settings: HttpSettings,
    /// The main port, if the server redirects clients to it.
    redirect: Option<u16>,
    permits: Semaphore,
}

impl Port80Server {
    /// Makes a server that responds to `challenges`, and redirects every other client to `redirect` or responds with
    /// 404.
    #[must_use]
    pub fn new(
        challenges: Option<Arc<dyn AcmeChallenges>>,
        settings: HttpSettings,
        redirect: Option<u16>,
    ) -> Arc<Self> {
        Arc::new(Self {
            challenges,
            settings,
            redirect,
            permits: Semaphore::new(PORT80_CONNECTIONS_MAX),
        })
    }

    /// Serves one connection from `remote` for at most ten seconds. If 64 connections are open, further ones are
    /// closed.
    pub async fn serve(
        self: Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Unpin,
        remote: Option<SocketAddr>,
    ) {
        let Ok(_permit) = self.permits.try_acquire() else {
            return;
        };
        let own = Arc::clone(&self);
        let service = service_fn(move |request| {
            let answer = own.logged_answer(&request, remote);
            async move { Ok::<_, Infallible>(answer) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(HEADER_FIELDS_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            // A client sends one request here, and its slot becomes free at once.
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service);
        // The result is dropped: a failed connection here has no further consequence.
        let _ = tokio::time::timeout(PORT80_TIME, serving).await;
    }

    /// Responds and logs the request. The response fits into one packet.
    fn logged_answer<B>(&self, request: &Request<B>, remote: Option<SocketAddr>) -> Response<Body> {
        let mut entry = AccessLogEntry::begin(request, remote, NO_ALPN, std::time::Instant::now());
        let mut response = self.answer(request);
        answer::set_nosniff(&mut response);
        entry.set_response(&response);
        let length = response.body().size_hint().exact();
        if *request.method() != Method::HEAD {
            entry.sent(length.unwrap_or_default() as usize);
        }
        entry.end();
        response
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let token = request.uri().path().strip_prefix(ACME).filter(|_| reads);
        let challenges = self.challenges.as_ref();
        match token.and_then(|token| challenges?.answer(token)) {
            Some(text) => answer::text(StatusCode::OK, text),
            None => self
                .redirect_response(request)
                .unwrap_or_else(|| answer::plain_not_found(StatusCode::NOT_FOUND)),
        }
    }

    /// A 308 keeps the method (RFC 9110 section 15.4.9). The redirect works only for this node's names.
    fn redirect_response<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let port = self.redirect?;
        let authority = hosts::authority(request.uri(), request.headers())?;
        // A redirect to a foreign name would make the node an open redirector.
        if !self.settings.hosts.has(&authority) {
            return None;
        }
        let host = authority.host();
        let url = request
            .uri()
            .path_and_query()
            .map_or("/", |url| url.as_str());
        let to = match port {
            443 => format!("https://{host}{url}"),
            port => format!("https://{host}:{port}{url}"),
        };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        let to = HeaderValue::from_str(&to).ok()?;
        response.headers_mut().insert(LOCATION, to);
        Some(response)
    }
}

impl std::fmt::Debug for Port80Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port80Server")
            .field("redirect", &self.redirect)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::config::NodeConfig;
    use alknet_test_support::deadline;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A node with a name, whose decoy would send every client elsewhere if it counted here.
    const DOCUMENT: &[u8] = br#"
[node]
domain = "hub.example.org"
[http]
decoy = "redirect"
redirect = "https://elsewhere.example/"
"#;

    /// Expects one token.
    struct FixedChallenge;

    impl AcmeChallenges for FixedChallenge {
        fn answer(&self, token: &str) -> Option<String> {
            (token == "expected").then(|| "expected.thumbprint".to_owned())
        }
    }

    fn plain(redirect: Option<u16>) -> Arc<Port80Server> {
        let config = NodeConfig::parse(DOCUMENT).expect("a correct document");
        Port80Server::new(
            Some(Arc::new(FixedChallenge)),
            HttpSettings::new(&config),
            redirect,
        )
    }

    /// Head and body of the answer to a request, after which nothing more comes.
    async fn exchange(plain: &Arc<Port80Server>, request: &str) -> (String, String) {
        let (mut client, server) = duplex(64 << 10);
        let serving = tokio::spawn(Arc::clone(plain).serve(server, None));
        let sent = client.write_all(request.as_bytes()).await;
        sent.expect("there is room for it");
        let mut all = String::new();
        let read = client.read_to_string(&mut all).await;
        read.expect("it answers and closes");
        serving.await.expect("it does not panic");
        let (head, body) = all.split_once("\r\n\r\n").expect("an answer");
        (head.to_owned(), body.to_owned())
    }

    async fn response_to(
        plain: &Arc<Port80Server>,
        method: &str,
        path: &str,
        host: &str,
    ) -> (String, String) {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        exchange(plain, &request).await
    }

    /// With a way to the one port and without: an authority asks by whatever name, and follows nowhere.
    #[tokio::test]
    async fn an_authority_is_answered() {
        for redirect in [None, Some(443)] {
            let plain = plain(redirect);
            for host in ["hub.example.org", "192.0.2.7", "other.example"] {
                let path = "/.well-known/acme-challenge/expected";
                let (head, body) = response_to(&plain, "GET", path, host).await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{host}: {head}");
                assert!(head.contains("content-type: text/plain"), "{head}");
                assert_eq!(body, "expected.thumbprint", "{host}");
                let (head, body) = response_to(&plain, "HEAD", path, host).await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{host}: {head}");
                assert_eq!(body, "", "{host}");
            }
        }
    }

    /// `http.port80 = "acme"`: whatever the host, the path and the method, there is nothing, and no way on.
    #[tokio::test]
    async fn without_a_redirect_other_clients_find_nothing() {
        let plain = plain(None);
        for host in ["hub.example.org", "192.0.2.7", "other.example"] {
            for (method, path) in [
                ("GET", "/"),
                ("GET", "/healthz"),
                ("GET", "/.well-known/acme-challenge/"),
                ("GET", "/.well-known/acme-challenge/unknown"),
                ("GET", "/.well-known/acme-challenge/expected/more"),
                (
                    "GET",
                    "/.well-known/acme-challenge/../acme-challenge/expected",
                ),
                ("POST", "/.well-known/acme-challenge/expected"),
                ("POST", "/call"),
                ("DELETE", "/"),
                ("OPTIONS", "*"),
                ("HEAD", "/"),
            ] {
                let (head, body) = response_to(&plain, method, path, host).await;
                let what = format!("{method} {path} of {host}: {head}");
                assert!(head.starts_with("HTTP/1.1 404 "), "{what}");
                assert!(!head.contains("\r\nlocation:"), "{what}");
                assert!(head.contains("x-content-type-options: nosniff"), "{what}");
                assert_eq!(body.contains("Not Found"), method != "HEAD", "{what}");
            }
        }
    }

    /// `http.port80 = "acme+redirect"`: names and addresses of this node are sent to the one port.
    #[tokio::test]
    async fn with_a_redirect_only_what_is_for_this_node_is_sent_on() {
        for (port, host, path, to) in [
            (
                443,
                "hub.example.org",
                "/a?b=c",
                Some("https://hub.example.org/a?b=c"),
            ),
            (
                443,
                "hub.example.org:80",
                "/",
                Some("https://hub.example.org/"),
            ),
            (8443, "192.0.2.7", "/", Some("https://192.0.2.7:8443/")),
            (443, "[2001:db8::1]", "/", Some("https://[2001:db8::1]/")),
            (443, "other.example", "/", None),
            (443, "hub.example.org@other.example", "/", None),
        ] {
            for method in ["GET", "POST", "DELETE"] {
                let (head, _) = response_to(&plain(Some(port)), method, path, host).await;
                let location = to.map(|to| format!("\r\nlocation: {to}\r\n"));
                match location {
                    Some(location) => {
                        assert!(head.starts_with("HTTP/1.1 308 "), "{head}");
                        assert!(format!("{head}\r\n").contains(&location), "{head}");
                    }
                    None => {
                        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
                        assert!(!head.contains("\r\nlocation:"), "{head}");
                    }
                }
            }
        }
    }

    /// A connection is good for one request: what comes behind it is not read.
    #[tokio::test]
    async fn one_request_for_a_connection() {
        let one = "GET /.well-known/acme-challenge/expected HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let (head, body) = exchange(&plain(None), &one.repeat(2)).await;
        assert!(head.contains("connection: close"), "{head}");
        assert_eq!(body, "expected.thumbprint");
    }

    /// A client that comes when all places are taken is closed on, and the next is served again.
    #[tokio::test]
    async fn more_than_its_places_are_not_taken() {
        let plain = plain(None);
        let mut held = Vec::new();
        for _ in 0..PORT80_CONNECTIONS_MAX {
            let (client, server) = duplex(4096);
            held.push((client, tokio::spawn(Arc::clone(&plain).serve(server, None))));
        }
        // A task takes its place when it first runs.
        let taken = async {
            while plain.permits.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        };
        let taken = tokio::time::timeout(deadline(HEADER_TIMEOUT), taken).await;
        taken.expect("each takes one place");
        let (mut client, server) = duplex(4096);
        Arc::clone(&plain).serve(server, None).await;
        let mut all = Vec::new();
        let read = client.read_to_end(&mut all).await;
        assert_eq!((read.expect("a pipe"), all.len()), (0, 0));

        for (client, serving) in held {
            drop(client);
            serving.await.expect("it does not panic");
        }
        let (head, _) = response_to(&plain, "GET", "/", "hub.example.org").await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    }
}
