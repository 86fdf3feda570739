//! A server: hyper behind TLS, or without.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use alknet_core::PeerKey;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::KeyPair;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::certificate::{acceptor, acceptor_of};

/// What a server says.
pub(crate) struct CannedResponse {
    response: Response<Vec<u8>>,
    ends: bool,
    speaks: bool,
}

impl CannedResponse {
    pub(crate) fn new(status: u16, body: &str) -> Self {
        let response = Response::builder().status(status);
        Self {
            response: response.body(body.into()).expect("an answer"),
            ends: true,
            speaks: true,
        }
    }

    /// Nothing at all, ever.
    pub(crate) fn silent() -> Self {
        Self {
            speaks: false,
            ..Self::new(200, "")
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        let name: http::HeaderName = name.parse().expect("a name");
        let value = value.parse().expect("a value");
        self.response.headers_mut().insert(name, value);
        self
    }

    /// After its body nothing more comes, and no end.
    pub(crate) fn never_ending(mut self) -> Self {
        self.ends = false;
        self
    }
}

/// One chunk, and then the end or nothing.
struct OneChunkBody(Option<Bytes>, bool);

impl Body for OneChunkBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.1 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

type Handler = Arc<dyn Fn(&Request<Incoming>) -> CannedResponse + Send + Sync>;

pub(crate) struct ClientTestServer {
    pub(crate) address: SocketAddr,
    pub(crate) pin: PeerKey,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl ClientTestServer {
    /// With TLS, and with HTTP/2 or without.
    pub(crate) async fn start(
        http2: bool,
        handler: impl Fn(&Request<Incoming>) -> CannedResponse + Send + Sync + 'static,
    ) -> Self {
        let protocols: &[&str] = match http2 {
            true => &["http/1.1", "h2"],
            false => &["http/1.1"],
        };
        let (acceptor, pin) = acceptor("server.example", protocols);
        Self::listen(pin, Some(acceptor), Arc::new(handler)).await
    }

    /// With a certificate of the Ed25519 key in this PKCS #8 structure, and pinned by this key.
    pub(crate) async fn of_key(pkcs8: &[u8], pin: PeerKey) -> Self {
        let key = PrivatePkcs8KeyDer::from(pkcs8);
        let key = KeyPair::try_from(&key).expect("a key");
        let (acceptor, _) = acceptor_of(&key, "server.example", &["http/1.1"]);
        let handler = |_: &Request<Incoming>| CannedResponse::new(200, "ed25519");
        Self::listen(pin, Some(acceptor), Arc::new(handler)).await
    }

    /// Without TLS.
    pub(crate) async fn plain(
        handler: impl Fn(&Request<Incoming>) -> CannedResponse + Send + Sync + 'static,
    ) -> Self {
        Self::listen(PeerKey::Spki([0; 32]), None, Arc::new(handler)).await
    }

    async fn listen(pin: PeerKey, acceptor: Option<TlsAcceptor>, handler: Handler) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = Self {
            address: listener.local_addr().expect("an address"),
            pin,
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (
            Arc::clone(&server.connections),
            Arc::clone(&server.requests),
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                let connections = Arc::clone(&connections);
                let (handler, requests) = (Arc::clone(&handler), Arc::clone(&requests));
                tokio::spawn(async move {
                    let Some(acceptor) = acceptor else {
                        connections.fetch_add(1, Ordering::SeqCst);
                        return serve(stream, false, handler, requests).await;
                    };
                    if let Ok(tls) = acceptor.accept(stream).await {
                        connections.fetch_add(1, Ordering::SeqCst);
                        let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                        serve(tls, http2, handler, requests).await;
                    }
                });
            }
        });
        server
    }

    /// Connections that were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests that came.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    http2: bool,
    handler: Handler,
    requests: Arc<AtomicUsize>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        requests.fetch_add(1, Ordering::SeqCst);
        let answer = handler(&request);
        async move {
            if !answer.speaks {
                std::future::pending::<()>().await;
            }
            let ends = answer.ends;
            let body = |body: Vec<u8>| OneChunkBody(Some(body.into()), ends);
            Ok::<_, Infallible>(answer.response.map(body))
        }
    });
    let stream = TokioIo::new(stream);
    // How a client leaves is its own business.
    let _ = match http2 {
        true => {
            http2::Builder::new(TokioExecutor::new())
                .serve_connection(stream, service)
                .await
        }
        false => {
            http1::Builder::new()
                .serve_connection(stream, service)
                .await
        }
    };
}
