//! The one client that loads every server.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::call::measure::{LoadPlan, LoadSample, failed, load};
use super::peers::{ECHO, TOKEN};
use alknet_tasks::failure::Result;

/// Versions of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BenchHttpVersion {
    H1,
    H2,
    H3,
}

impl BenchHttpVersion {
    pub(super) const ALL: [Self; 3] = [Self::H1, Self::H2, Self::H3];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::H1 => "HTTP/1.1",
            Self::H2 => "HTTP/2",
            Self::H3 => "HTTP/3",
        }
    }

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::H1 => b"http/1.1",
            Self::H2 => b"h2",
            Self::H3 => b"h3",
        }
    }
}

type Http3 = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

/// A connection to a server.
pub(crate) enum BenchHttpClient {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
    H3(Http3, quinn::Endpoint),
}

/// What the client asks for, and of which server.
#[derive(Clone, Debug)]
pub(super) struct HttpLoad {
    pub(super) address: SocketAddr,
    pub(super) version: BenchHttpVersion,
    /// The token, where an operation is called.
    pub(super) call: Option<String>,
    /// Calls of one request: several are a batch.
    pub(super) calls: usize,
    pub(super) path: String,
}

/// What a call that carries 64 bytes says.
fn call() -> String {
    let carried = "x".repeat(64);
    format!(r#""operation":"/{ECHO}","input":{{"data":"{carried}"}}"#)
}

/// So many of them in one request.
fn batch(calls: usize) -> String {
    let call = call();
    let calls: Vec<_> = (0..calls)
        .map(|n| format!(r#"{{"id":"{n}",{call}}}"#))
        .collect();
    format!(r#"{{"calls":[{}]}}"#, calls.join(","))
}

impl HttpLoad {
    fn request(&self) -> Request<Full<Bytes>> {
        let (method, path, body) = match &self.call {
            Some(_) if self.calls > 1 => (Method::POST, "/batch", batch(self.calls).into()),
            Some(_) => (Method::POST, "/call", format!("{{{}}}", call()).into()),
            None => (Method::GET, self.path.as_str(), Bytes::new()),
        };
        // RFC 9112 section 3.2.1: HTTP/1.1 asks for a path, and names the server in Host. The others take both from
        // the URI (RFC 9113 section 8.3.1, RFC 9114 section 4.3.1).
        let uri = match self.version {
            BenchHttpVersion::H1 => path.to_owned(),
            _ => format!("https://{}{path}", self.address),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if self.version == BenchHttpVersion::H1 {
            request = request.header(HOST, self.address.to_string());
        }
        if let Some(token) = &self.call {
            request = request
                .header(CONTENT_TYPE, "application/json")
                .header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request
            .body(Full::new(body))
            .expect("every part of it is fixed")
    }

    /// Keeps `in_flight` requests under way on `connections` connections. HTTP/1.1 has one on each.
    pub(super) async fn run(
        &self,
        plan: LoadPlan,
        connections: usize,
        in_flight: usize,
    ) -> Result<LoadSample> {
        let connections = if self.version == BenchHttpVersion::H1 {
            in_flight
        } else {
            connections
        };
        let mut workers = Vec::new();
        for n in 0..connections {
            let client = BenchHttpClient::open(self.address, self.version).await?;
            // What does not divide goes to the first of them.
            let mine = in_flight / connections + usize::from(n < in_flight % connections);
            workers.extend(client.shared(mine));
        }
        let request = Arc::new(self.request());
        let calls = self.calls as u64;
        load(plan, workers, move |mut client: BenchHttpClient| {
            let request = Request::clone(&request);
            async move {
                client.ask(request).await?;
                Ok((client, calls))
            }
        })
        .await
    }
}

impl BenchHttpClient {
    /// A stream of TLS over TCP.
    pub(crate) async fn tls(
        address: SocketAddr,
        version: BenchHttpVersion,
    ) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address)
            .await
            .map_err(failed("dialling"))?;
        stream.set_nodelay(true).map_err(failed("dialling"))?;
        let connector = TlsConnector::from(Arc::new(tls(version)?));
        let connected = connector.connect(address.ip().into(), stream).await;
        connected.map_err(failed("shaking hands"))
    }

    pub(super) async fn open(address: SocketAddr, version: BenchHttpVersion) -> Result<Self> {
        if version == BenchHttpVersion::H3 {
            return Self::open_h3(address).await;
        }
        let io = TokioIo::new(Self::tls(address, version).await?);
        if version == BenchHttpVersion::H1 {
            let (sender, connection) = http1::handshake(io).await.map_err(failed("HTTP/1.1"))?;
            tokio::spawn(connection);
            return Ok(Self::H1(sender));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // RFC 9113 section 6.9.2 begins with 65,535 bytes: large files would measure round trips.
        builder
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20);
        let (sender, connection) = builder.handshake(io).await.map_err(failed("HTTP/2"))?;
        tokio::spawn(connection);
        Ok(Self::H2(sender))
    }

    async fn open_h3(address: SocketAddr) -> Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut endpoint = quinn::Endpoint::client(any).map_err(failed("a socket"))?;
        let crypto =
            QuicClientConfig::try_from(tls(BenchHttpVersion::H3)?).map_err(failed("TLS"))?;
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let connecting = endpoint
            .connect(address, "localhost")
            .map_err(failed("dialling"))?;
        let connection = connecting.await.map_err(failed("shaking hands"))?;
        let made = h3::client::new(h3_quinn::Connection::new(connection)).await;
        let (mut driver, sender) = made.map_err(failed("HTTP/3"))?;
        // h3 takes what the server says of the connection only while this is polled.
        tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        Ok(Self::H3(sender, endpoint))
    }

    /// The same connection, for so many requests at once.
    fn shared(self, times: usize) -> Vec<Self> {
        match self {
            Self::H1(_) => vec![self],
            Self::H2(sender) => (0..times).map(|_| Self::H2(sender.clone())).collect(),
            Self::H3(sender, endpoint) => {
                let one = |_| Self::H3(sender.clone(), endpoint.clone());
                (0..times).map(one).collect()
            }
        }
    }

    /// Asks, and reads the whole answer.
    async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<()> {
        let status = match self {
            Self::H1(sender) => {
                sender.ready().await.map_err(failed("asking"))?;
                drain(sender.send_request(request).await).await?
            }
            Self::H2(sender) => {
                sender.ready().await.map_err(failed("asking"))?;
                drain(sender.send_request(request).await).await?
            }
            Self::H3(sender, _) => ask_h3(sender, request).await?,
        };
        // A refusal would be quicker than the work.
        match status {
            StatusCode::OK => Ok(()),
            other => Err(failed("asking")(format!("the answer is {other}"))),
        }
    }

    /// A connection on which one call was made.
    pub(super) async fn asked_once(address: SocketAddr, version: BenchHttpVersion) -> Result<Self> {
        let load = HttpLoad {
            address,
            version,
            call: Some(TOKEN.to_owned()),
            calls: 1,
            path: String::new(),
        };
        let mut client = Self::open(address, version).await?;
        client.ask(load.request()).await?;
        Ok(client)
    }
}

async fn drain(answer: hyper::Result<http::Response<hyper::body::Incoming>>) -> Result<StatusCode> {
    let answer = answer.map_err(failed("asking"))?;
    let status = answer.status();
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(failed("reading"))?;
    }
    Ok(status)
}

async fn ask_h3(sender: &mut Http3, request: Request<Full<Bytes>>) -> Result<StatusCode> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(failed("asking"))?.to_bytes();
    let asked = sender.send_request(Request::from_parts(head, ())).await;
    let mut stream = asked.map_err(failed("asking"))?;
    if !body.is_empty() {
        stream.send_data(body).await.map_err(failed("asking"))?;
    }
    stream.finish().await.map_err(failed("asking"))?;
    let answer = stream.recv_response().await.map_err(failed("reading"))?;
    while let Some(mut data) = stream.recv_data().await.map_err(failed("reading"))? {
        data.advance(data.remaining());
    }
    Ok(answer.status())
}

/// Takes any certificate: what is measured is on this machine.
fn tls(version: BenchHttpVersion) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(failed("TLS"))?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServerVerifier(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![version.alpn().to_vec()];
    Ok(config)
}

#[derive(Debug)]
struct AnyServerVerifier(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyServerVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
