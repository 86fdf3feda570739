//! TCP port 80, where it is wanted: answers for a certificate authority, and the way to the one port.
//! Nothing else.

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

use crate::access::Line;
use crate::limits::{
    HEADER_BYTES_MAX, HEADER_FIELDS_MAX, HEADER_TIMEOUT, PORT80_CONNECTIONS_MAX, PORT80_TIME,
};
use crate::routes::ACME;
use crate::settings::Settings;
use crate::shared::Challenges;
use crate::{answer, hosts};

/// In the log in the place of the ALPN: there is no TLS.
const NO_ALPN: &str = "-";

/// What is served on port 80.
pub struct Port80 {
    challenges: Option<Arc<dyn Challenges>>,
    settings: Settings,
    /// The one port, where others are to be sent there.
    redirect: Option<u16>,
    places: Semaphore,
}

impl Port80 {
    /// Answers `challenges`; sends everybody else to `redirect`, or tells them that nothing is here.
    #[must_use]
    pub fn new(
        challenges: Option<Arc<dyn Challenges>>,
        settings: Settings,
        redirect: Option<u16>,
    ) -> Arc<Self> {
        Arc::new(Self {
            challenges,
            settings,
            redirect,
            places: Semaphore::new(PORT80_CONNECTIONS_MAX),
        })
    }

    /// Serves one connection, which comes from `remote`, for ten seconds at most; beyond 64 at once they
    /// are closed.
    pub async fn serve(
        self: Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Unpin,
        remote: Option<SocketAddr>,
    ) {
        let Ok(_place) = self.places.try_acquire() else {
            return;
        };
        let own = Arc::clone(&self);
        let service = service_fn(move |request| {
            let answer = own.told(&request, remote);
            async move { Ok::<_, Infallible>(answer) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(HEADER_FIELDS_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service);
        // What becomes of one connection here concerns nobody.
        let _ = tokio::time::timeout(PORT80_TIME, serving).await;
    }

    /// Answers, and says so in the log: what is answered fits into one packet.
    fn told<B>(&self, request: &Request<B>, remote: Option<SocketAddr>) -> Response<Body> {
        let mut line = Line::begin(request, remote, NO_ALPN);
        let mut response = self.answer(request);
        answer::never_guessed(&mut response);
        line.answered(&response);
        let length = response.body().size_hint().exact();
        if *request.method() != Method::HEAD {
            line.sent(length.unwrap_or_default() as usize);
        }
        line.end();
        response
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let token = request.uri().path().strip_prefix(ACME).filter(|_| reads);
        let challenges = self.challenges.as_ref();
        match token.and_then(|token| challenges?.answer(token)) {
            Some(told) => answer::text(StatusCode::OK, told),
            None => self
                .elsewhere(request)
                .unwrap_or_else(|| answer::plain_not_found(StatusCode::NOT_FOUND)),
        }
    }

    /// 308 keeps the method (RFC 9110 section 15.4.9). Only names of this node are sent on.
    fn elsewhere<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let port = self.redirect?;
        let authority = hosts::authority(request)?;
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

impl std::fmt::Debug for Port80 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port80")
            .field("redirect", &self.redirect)
            .finish_non_exhaustive()
    }
}
