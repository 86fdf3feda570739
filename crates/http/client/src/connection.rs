//! A connection to a server, from the dial on.

use std::fmt;
use std::io;
use std::sync::Arc;

use alknet_core::{
    Carriage, DialAllowList, DialError, DialErrorKind, DialHost, DialRequest, Dialer, PeerAddr,
};
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::error::HttpError;
use crate::limits::{
    BUFFER_BYTES_MAX, H2_CONNECTION_WINDOW, H2_SEND_BUFFER, H2_STREAM_WINDOW, HEAD_BYTES_MAX,
    HEADERS_MAX,
};
use crate::options::ClientOptions;
use crate::origin::HttpOrigin;

const ALPN_1: &[u8] = b"http/1.1";
const ALPN_2: &[u8] = b"h2";
/// Addresses of a name that are tried without TLS.
const ADDRESSES_MAX: usize = 8;

/// A connection that can send requests.
pub(crate) struct HttpClientConnection {
    sender: HttpRequestSender,
    task: Arc<HttpConnectionTask>,
}

enum HttpRequestSender {
    One(http1::SendRequest<Full<Bytes>>),
    Many(http2::SendRequest<Full<Bytes>>),
}

/// The task that moves the connection's bytes. It is aborted when the last request handle is dropped.
struct HttpConnectionTask(AbortHandle);

impl Drop for HttpConnectionTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request without a response.
pub(crate) struct HttpSendError {
    pub(crate) error: hyper::Error,
    /// Whether no byte of the request was written.
    pub(crate) unsent: bool,
}

impl HttpClientConnection {
    /// Connects to `origin`.
    pub(crate) async fn open(
        dialer: &dyn Dialer,
        options: &ClientOptions,
        origin: &HttpOrigin,
        http2: bool,
    ) -> Result<Self, HttpError> {
        let late = |_| {
            let seconds = options.connect.as_secs();
            let text = format!("{origin} did not answer within {seconds} s");
            HttpError::Dial(DialError::new(DialErrorKind::TimedOut, text))
        };
        let opening = Self::opening(dialer, options, origin, http2);
        timeout(options.connect, opening).await.map_err(late)?
    }

    async fn opening(
        dialer: &dyn Dialer,
        options: &ClientOptions,
        origin: &HttpOrigin,
        http2: bool,
    ) -> Result<Self, HttpError> {
        if !origin.secure {
            let stream = plain(&origin.addr, &options.reach).await?;
            return Self::first(stream, (), origin).await;
        }
        let alpn = if http2 { ALPN_2 } else { ALPN_1 };
        let request = DialRequest {
            carriage: Carriage::Tcp,
            // Servers could recognise the node by its key, so the node does not present it.
            present_key: false,
            reach: options.reach.clone(),
            ..DialRequest::new(origin.addr.clone(), options.expect(origin), alpn)
        };
        let connection = dialer.connect(request).await?.connection;
        let streams = connection.accept_bi().await.map_err(io::Error::from);
        let (send, recv) = streams.map_err(|error| refused(&error))?;
        let stream = tokio::io::join(recv, send);
        match http2 {
            true => Self::second(stream, connection, origin).await,
            false => Self::first(stream, connection, origin).await,
        }
    }

    /// HTTP/1.1 over `stream`; `kept` lives as long as the connection.
    async fn first(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        keep_alive: impl Send + 'static,
        origin: &HttpOrigin,
    ) -> Result<Self, HttpError> {
        let shaken = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = shaken.map_err(|source| HttpError::broken(origin, source))?;
        Ok(Self::moved(
            HttpRequestSender::One(sender),
            connection,
            keep_alive,
        ))
    }

    /// HTTP/2 over `stream`; `kept` lives as long as the connection.
    async fn second(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        keep_alive: impl Send + 'static,
        origin: &HttpOrigin,
    ) -> Result<Self, HttpError> {
        let shaken = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_send_buf_size(H2_SEND_BUFFER)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = shaken.map_err(|source| HttpError::broken(origin, source))?;
        Ok(Self::moved(
            HttpRequestSender::Many(sender),
            connection,
            keep_alive,
        ))
    }

    /// Starts the task that runs `connection`; `kept` lives as long as the task.
    fn moved(
        sender: HttpRequestSender,
        connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
        keep_alive: impl Send + 'static,
    ) -> Self {
        let task = tokio::spawn(async move {
            // The requester gets the error with its own request.
            let _ = connection.await;
            drop(keep_alive);
        });
        Self {
            sender,
            task: Arc::new(HttpConnectionTask(task.abort_handle())),
        }
    }

    /// The same connection for a concurrent request, if the protocol allows several.
    pub(crate) fn share(&self) -> Option<Self> {
        match &self.sender {
            HttpRequestSender::One(_) => None,
            HttpRequestSender::Many(sender) => Some(Self {
                sender: HttpRequestSender::Many(sender.clone()),
                task: Arc::clone(&self.task),
            }),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        match &self.sender {
            HttpRequestSender::One(sender) => sender.is_closed(),
            HttpRequestSender::Many(sender) => sender.is_closed(),
        }
    }

    /// Sends a request whose URI is absolute, and waits for the head of the response.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
        origin: &HttpOrigin,
    ) -> Result<Result<Response<Incoming>, HttpSendError>, HttpError> {
        match &mut self.sender {
            HttpRequestSender::One(sender) => {
                request.headers_mut().insert(HOST, origin.host_header()?);
                *request.uri_mut() = HttpOrigin::relative(request.uri());
                Ok(match sender.ready().await {
                    Ok(()) => sender.try_send_request(request).await.map_err(failed),
                    Err(error) => Err(unsent(error)),
                })
            }
            HttpRequestSender::Many(sender) => {
                // `:authority` replaces the Host field (RFC 9113 section 8.3.1).
                request.headers_mut().remove(HOST);
                *request.uri_mut() = origin.absolute(request.uri())?;
                Ok(match sender.ready().await {
                    Ok(()) => sender.try_send_request(request).await.map_err(failed),
                    Err(error) => Err(unsent(error)),
                })
            }
        }
    }
}

impl fmt::Debug for HttpClientConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.sender {
            HttpRequestSender::One(_) => "HttpClientConnection(http/1.1)",
            HttpRequestSender::Many(_) => "HttpClientConnection(h2)",
        })
    }
}

fn failed(mut error: hyper::client::conn::TrySendError<Request<Full<Bytes>>>) -> HttpSendError {
    let unsent = error.take_message().is_some();
    HttpSendError {
        error: error.into_error(),
        unsent,
    }
}

fn unsent(error: hyper::Error) -> HttpSendError {
    HttpSendError {
        error,
        unsent: true,
    }
}

fn refused(error: &io::Error) -> HttpError {
    HttpError::Dial(DialError::new(DialErrorKind::Refused, error.to_string()))
}

/// A connection without TLS. This function resolves the name, so it also checks the addresses.
async fn plain(addr: &PeerAddr, reach: &DialAllowList) -> Result<TcpStream, DialError> {
    let unreachable = |error: io::Error| {
        let text = format!("cannot reach {}: {error}", addr.address());
        DialError::new(DialErrorKind::Unreachable, text)
    };
    let host = match &addr.host {
        DialHost::Ip(ip) => ip.to_string(),
        DialHost::Name(name) => name.clone(),
    };
    let found = tokio::net::lookup_host((host, addr.port)).await;
    let found: Vec<_> = found.map_err(unreachable)?.take(ADDRESSES_MAX).collect();
    let mut last = None;
    for address in &found {
        // The allow list is checked against the addresses: the owner of a name chooses the addresses that it resolves
        // to.
        if !reach.allows(address.ip()) {
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Nagle's algorithm (RFC 896) would delay the end of a request until the server acknowledges the
                // bytes before it.
                stream.set_nodelay(true).map_err(unreachable)?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    match (last, found.first()) {
        (Some(error), _) => Err(unreachable(error)),
        (None, Some(first)) => {
            let text = format!(
                "{} is at {}, which is no public address; list its range where this server is \
                 configured if it is meant",
                addr.address(),
                first.ip()
            );
            Err(DialError::new(DialErrorKind::OutOfReach, text))
        }
        (None, None) => Err(unreachable(io::ErrorKind::NotFound.into())),
    }
}
