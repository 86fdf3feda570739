//! The peer: tonic over HTTP/2, with the same TLS, the same payloads and the same load.
//!
//! Its messages have one field of bytes and are written by hand, as protobuf would write them, so
//! that no compiler for them is needed; nothing is checked that a generated decoder would check.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use futures_util::stream::{self, BoxStream};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector, server};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};

use super::measure::{LoadPlan, LoadSample, failed, load};
use super::sides::{BenchKeys, HOST, SideRuntimes};
use super::{BULK_BYTES, ITEM_BYTES, spread};
use alknet_tasks::failure::{Result, TaskError};

const ALPN: &[u8] = b"h2";
const ECHO: &str = "/bench.Bench/Echo";
const ITEMS: &str = "/bench.Bench/Items";
const BULK: &str = "/bench.Bench/Bulk";

/// Flow-control windows, as large as ours.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Protobuf: field 1, bytes.
const TAG: u8 = 0x0a;

/// `message Message { bytes data = 1; }`
#[derive(Clone, Debug, Default)]
struct GrpcMessage {
    data: Bytes,
}

impl GrpcMessage {
    fn with_len(bytes: usize) -> Self {
        Self {
            data: vec![b'x'; bytes].into(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct GrpcCodec;

impl Codec for GrpcCodec {
    type Encode = GrpcMessage;
    type Decode = GrpcMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for GrpcCodec {
    type Item = GrpcMessage;
    type Error = Status;

    fn encode(
        &mut self,
        item: GrpcMessage,
        to: &mut EncodeBuf<'_>,
    ) -> std::result::Result<(), Status> {
        // The tag, and at most five bytes of length.
        to.reserve(item.data.len() + 6);
        to.put_u8(TAG);
        let mut left = item.data.len();
        // Protobuf's varint: seven bits in each byte, the lowest first, the top bit where more follow.
        while left >= 0x80 {
            to.put_u8(left as u8 | 0x80);
            left >>= 7;
        }
        to.put_u8(left as u8);
        to.put(item.data);
        Ok(())
    }
}

impl Decoder for GrpcCodec {
    type Item = GrpcMessage;
    type Error = Status;

    fn decode(
        &mut self,
        from: &mut DecodeBuf<'_>,
    ) -> std::result::Result<Option<GrpcMessage>, Status> {
        let wrong = || Status::internal("not the one message there is");
        // The encoder above writes the field also where it is empty.
        if from.remaining() < 2 || from.get_u8() != TAG {
            return Err(wrong());
        }
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = from.get_u8();
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            // Five bytes are 35 bits, and a message has at most 32 of length.
            if shift > 28 || !from.has_remaining() {
                return Err(wrong());
            }
        }
        if length != from.remaining() {
            return Err(wrong());
        }
        let data = from.copy_to_bytes(length);
        Ok(Some(GrpcMessage { data }))
    }
}

/// What a generated server would be: a method for each path.
#[derive(Clone)]
struct GrpcMethods {
    bulk: GrpcMessage,
}

impl Service<http::Request<Body>> for GrpcMethods {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let repeated = match request.uri().path() {
            ECHO => {
                return Box::pin(async move {
                    let mut grpc = tonic::server::Grpc::new(GrpcCodec);
                    Ok(grpc.unary(GrpcEcho, request).await)
                });
            }
            BULK => self.bulk.clone(),
            _ => GrpcMessage::with_len(ITEM_BYTES),
        };
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(GrpcCodec);
            Ok(grpc.server_streaming(GrpcRepeat(repeated), request).await)
        })
    }
}

struct GrpcEcho;

impl Service<Request<GrpcMessage>> for GrpcEcho {
    type Response = Response<GrpcMessage>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<GrpcMessage>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

/// Answers with one message, for ever.
struct GrpcRepeat(GrpcMessage);

type Messages = BoxStream<'static, std::result::Result<GrpcMessage, Status>>;

impl tonic::server::ServerStreamingService<GrpcMessage> for GrpcRepeat {
    type Response = GrpcMessage;
    type ResponseStream = Messages;
    type Future = BoxFuture<Response<Messages>, Status>;

    fn call(&mut self, _request: Request<GrpcMessage>) -> Self::Future {
        let message = self.0.clone();
        Box::pin(async move {
            let messages: Messages = Box::pin(stream::repeat_with(move || Ok(message.clone())));
            Ok(Response::new(messages))
        })
    }
}

/// A TLS connection as tonic's server takes it.
struct GrpcTlsStream(server::TlsStream<TcpStream>);

impl Connected for GrpcTlsStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for GrpcTlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for GrpcTlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    // Else h2 copies more of what it could write in parts.
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

/// A tonic server that is up.
pub(super) struct TonicServer {
    address: SocketAddr,
}

impl TonicServer {
    pub(super) fn start(sides: &SideRuntimes, keys: &BenchKeys) -> Result<Self> {
        let acceptor = TlsAcceptor::from(keys.server_config(ALPN)?);
        let listener = sides.server.block_on(TcpListener::bind((HOST, 0)));
        let listener = listener.map_err(failed("binding a port"))?;
        let address = listener.local_addr().map_err(failed("binding a port"))?;
        let (arrived, arrivals) = mpsc::channel(64);
        sides.server.spawn(accept(listener, acceptor, arrived));
        let incoming = stream::unfold(arrivals, |mut arrivals| async {
            let secured: GrpcTlsStream = arrivals.recv().await?;
            Some((Ok::<_, io::Error>(secured), arrivals))
        });
        let methods = GrpcMethods {
            bulk: GrpcMessage::with_len(BULK_BYTES),
        };
        let serving = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_with_incoming(methods, incoming);
        sides.server.spawn(serving);
        Ok(Self { address })
    }

    /// A channel for each key.
    pub(super) async fn connect(&self, keys: &BenchKeys) -> Result<GrpcChannels> {
        let mut channels = Vec::new();
        for key in &keys.clients {
            let (config, name) = keys.client_config(key, ALPN)?;
            let connector = TlsConnector::from(Arc::new(config));
            let address = self.address;
            let connect = GrpcConnector(move |_: Uri| {
                let (connector, name) = (connector.clone(), name.clone());
                Box::pin(async move {
                    let tcp = TcpStream::connect(address).await?;
                    tcp.set_nodelay(true)?;
                    connector.connect(name, tcp).await.map(TokioIo::new)
                }) as BoxFuture<_, io::Error>
            });
            // Never resolved (RFC 6761 section 6.4): the connector dials, and has the TLS that is compared.
            let channel = Endpoint::from_static("http://bench.invalid")
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .connect_with_connector(connect)
                .await;
            channels.push(channel.map_err(failed("dialling tonic"))?);
        }
        Ok(GrpcChannels(channels))
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    arrived: mpsc::Sender<GrpcTlsStream>,
) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, arrived) = (acceptor.clone(), arrived.clone());
        tokio::spawn(async move {
            // Nagle's algorithm (RFC 896) holds a small answer back until the one before it is acknowledged.
            if tcp.set_nodelay(true).is_ok()
                && let Ok(tls) = acceptor.accept(tcp).await
            {
                // Once the server is gone, the receiver is too.
                let _ = arrived.send(GrpcTlsStream(tls)).await;
            }
        });
    }
}

/// A function that connects, as a service.
#[derive(Clone)]
struct GrpcConnector<F>(F);

impl<F, T> Service<Uri> for GrpcConnector<F>
where
    F: FnMut(Uri) -> BoxFuture<T, io::Error>,
{
    type Response = T;
    type Error = io::Error;
    type Future = BoxFuture<T, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        (self.0)(uri)
    }
}

/// Connections to the tonic server.
pub(super) struct GrpcChannels(Vec<Channel>);

impl GrpcChannels {
    /// Calls in a closed loop, as [`CallClients::unary`](super::node::CallClients::unary) does.
    pub(super) async fn unary(
        &self,
        plan: LoadPlan,
        bytes: usize,
        in_flight: usize,
    ) -> Result<LoadSample> {
        let workers = spread(&self.0, in_flight, |channel| {
            (channel.clone(), GrpcMessage::with_len(bytes))
        });
        load(plan, workers, |(channel, message)| async move {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready().await.map_err(failed("calling tonic"))?;
            let path = PathAndQuery::from_static(ECHO);
            let answer = grpc
                .unary(Request::new(message.clone()), path, GrpcCodec)
                .await;
            let answer = answer.map_err(failed("calling tonic"))?.into_inner();
            debug_assert_eq!(answer.data.len(), message.data.len());
            Ok(((channel, message), 1))
        })
        .await
    }

    /// Reads small messages of one stream.
    pub(super) async fn items(&self, plan: LoadPlan) -> Result<LoadSample> {
        load(
            plan,
            vec![self.stream(ITEMS).await?],
            |mut messages| async move {
                next(&mut messages).await?;
                Ok((messages, 1))
            },
        )
        .await
    }

    /// Reads large messages of one stream; units are bytes.
    pub(super) async fn bulk(&self, plan: LoadPlan) -> Result<LoadSample> {
        load(
            plan,
            vec![self.stream(BULK).await?],
            |mut messages| async move {
                let message = next(&mut messages).await?;
                Ok((messages, message.data.len() as u64))
            },
        )
        .await
    }

    async fn stream(&self, path: &'static str) -> Result<Streaming<GrpcMessage>> {
        let mut grpc = tonic::client::Grpc::new(self.0[0].clone());
        grpc.ready().await.map_err(failed("calling tonic"))?;
        let path = PathAndQuery::from_static(path);
        let request = Request::new(GrpcMessage::default());
        let answer = grpc.server_streaming(request, path, GrpcCodec).await;
        Ok(answer.map_err(failed("calling tonic"))?.into_inner())
    }
}

async fn next(messages: &mut Streaming<GrpcMessage>) -> Result<GrpcMessage> {
    let ended = || TaskError::Step {
        what: "reading messages".to_owned(),
        how: "the stream ended".to_owned(),
        log: None,
    };
    let message = messages
        .message()
        .await
        .map_err(failed("reading messages"))?;
    message.ok_or_else(ended)
}
