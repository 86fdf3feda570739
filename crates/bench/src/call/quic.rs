//! Our router beside bare quinn: the same TLS and transport settings, the same protocol on top. A
//! stream says in its first byte what it wants: its bytes back, bytes without end, or to be read to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    AlpnSpec, AuthContext, BoxFuture, Carriage, CloseCode, Connection, HandlerError,
    HandlerRegistry, ProtocolHandler, RecvStream, SendStream, StreamBudget,
};
use alknet_endpoint::{EndpointDialer, EndpointServer, Target};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{TransportConfig, VarInt};

use super::measure::{LoadPlan, LoadSample, failed, load};
use super::node;
use super::sides::{BenchKeys, HOST, SideRuntimes};
use alknet_tasks::failure::{Result, TaskError};

const ALPN: &[u8] = b"alknet/bench";

/// First byte of a stream that wants its bytes back.
const ECHO: u8 = b'e';
/// First byte of a stream that wants bytes without end.
const FLOOD: u8 = b'f';
/// First byte of a stream that brings bytes without end, of each chunk of it.
const UPLOAD: u8 = b'u';

/// Bytes of a small stream.
const SMALL: [u8; 64] = [ECHO; 64];

/// Bytes written and read at a time.
const STEP_BYTES: usize = 64 << 10;

/// What is uploaded at a time.
static UPLOADED: [u8; STEP_BYTES] = [UPLOAD; STEP_BYTES];

/// Bytes read between two looks at the clock.
const TURN_BYTES: u64 = 1 << 20;

/// Handshakes at once.
pub(super) const HANDSHAKES: usize = 8;

/// What the router is compared in, and bare quinn too.
pub(super) trait QuicPeer: Clone + Send + Sync + 'static {
    type Connection: Clone + Send + Sync + 'static;

    /// A new connection.
    fn dial(&self) -> impl Future<Output = Result<Self::Connection>> + Send;

    /// Sends a small stream and reads it back.
    fn echo(connection: &Self::Connection) -> impl Future<Output = Result<()>> + Send;

    /// Asks for a flood, and gives what reads it.
    fn flood(
        connection: &Self::Connection,
    ) -> impl Future<Output = Result<impl ChunkStream>> + Send;

    /// Begins an upload, and gives what writes it.
    fn upload(
        connection: &Self::Connection,
    ) -> impl Future<Output = Result<impl ChunkStream>> + Send;

    /// Ends it.
    fn close(connection: &Self::Connection);
}

/// A stream that is read, or written.
pub(super) trait ChunkStream: Send + 'static {
    /// Bytes of the next chunk.
    fn next(&mut self) -> impl Future<Output = Result<u64>> + Send;
}

/// New connections, each with a small stream that shows that it is served: the session's tickets
/// have arrived by then, so that all but the first are resumed.
pub(super) async fn handshakes<P: QuicPeer>(peer: &P, plan: LoadPlan) -> Result<LoadSample> {
    load(plan, vec![peer.clone(); HANDSHAKES], |peer| async move {
        let connection = peer.dial().await?;
        P::echo(&connection).await?;
        P::close(&connection);
        Ok((peer, 1))
    })
    .await
}

/// Small streams of one connection.
pub(super) async fn streams<P: QuicPeer>(
    peer: &P,
    plan: LoadPlan,
    in_flight: usize,
) -> Result<LoadSample> {
    let connection = peer.dial().await?;
    load(plan, vec![connection; in_flight], |connection| async move {
        P::echo(&connection).await?;
        Ok((connection, 1))
    })
    .await
}

/// One large stream to the client; units are bytes.
pub(super) async fn bulk<P: QuicPeer>(peer: &P, plan: LoadPlan) -> Result<LoadSample> {
    let connection = peer.dial().await?;
    let chunks = P::flood(&connection).await?;
    let sample = move_chunks(chunks, plan).await;
    P::close(&connection);
    sample
}

/// One large stream to the server; units are bytes.
pub(super) async fn upload<P: QuicPeer>(peer: &P, plan: LoadPlan) -> Result<LoadSample> {
    let connection = peer.dial().await?;
    let chunks = P::upload(&connection).await?;
    let sample = move_chunks(chunks, plan).await;
    P::close(&connection);
    sample
}

async fn move_chunks(chunks: impl ChunkStream, plan: LoadPlan) -> Result<LoadSample> {
    load(plan, vec![chunks], |mut chunks| async move {
        let mut bytes = 0;
        while bytes < TURN_BYTES {
            bytes += chunks.next().await?;
        }
        Ok((chunks, bytes))
    })
    .await
}

fn ended(what: &'static str) -> TaskError {
    TaskError::Step {
        what: what.to_owned(),
        how: "the stream ended".to_owned(),
        log: None,
    }
}

/// The protocol behind our router.
struct QuicBenchHandler([AlpnSpec; 1]);

impl ProtocolHandler for QuicBenchHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.0
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        _: AuthContext,
    ) -> BoxFuture<'static, std::result::Result<(), HandlerError>> {
        Box::pin(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(serve_routed(send, recv));
            }
            Ok(())
        })
    }
}

async fn serve_routed(mut send: SendStream, mut recv: RecvStream) {
    let flood = Bytes::from(vec![FLOOD; STEP_BYTES]);
    while let Ok(Some(chunk)) = recv.read_chunk(STEP_BYTES).await {
        if chunk.first() == Some(&FLOOD) {
            while send.write_chunk(flood.clone()).await.is_ok() {}
            return;
        }
        if chunk.first() == Some(&UPLOAD) {
            continue;
        }
        if send.write_chunk(chunk).await.is_err() {
            return;
        }
    }
    // A client that gave the stream up does not read its end.
    let _ = send.finish();
}

/// Our router, dialled by our dialler.
#[derive(Clone)]
pub(super) struct RouterPeer {
    _server: Arc<EndpointServer>,
    dialer: Arc<EndpointDialer>,
    target: Target,
}

impl RouterPeer {
    pub(super) fn start(sides: &SideRuntimes, keys: &BenchKeys) -> Result<Self> {
        let spec = AlpnSpec {
            carriage: Carriage::Quic,
            limits: StreamBudget::CALL,
            ..AlpnSpec::new(ALPN)
        };
        let mut handlers = HandlerRegistry::new();
        handlers
            .register(Arc::new(QuicBenchHandler([spec])))
            .map_err(failed("assembling the node"))?;
        let server = node::bind(sides, keys, handlers)?;
        Ok(Self {
            target: keys.target(server.port())?,
            _server: Arc::new(server),
            dialer: Arc::new(EndpointDialer::new(keys.clients.first().cloned())),
        })
    }
}

impl QuicPeer for RouterPeer {
    type Connection = Connection;

    async fn dial(&self) -> Result<Connection> {
        let dialled = self.dialer.dial_over(Carriage::Quic, &self.target, ALPN);
        dialled.await.map_err(failed("dialling the node"))
    }

    async fn echo(connection: &Connection) -> Result<()> {
        let what = "a stream through the router";
        let (mut send, mut recv) = connection.open_bi().await.map_err(failed(what))?;
        let write = send.write_chunk(Bytes::from_static(&SMALL)).await;
        write.map_err(failed(what))?;
        send.finish().map_err(failed(what))?;
        while recv
            .read_chunk(STEP_BYTES)
            .await
            .map_err(failed(what))?
            .is_some()
        {}
        Ok(())
    }

    async fn flood(connection: &Connection) -> Result<impl ChunkStream> {
        let what = "a stream through the router";
        let (mut send, recv) = connection.open_bi().await.map_err(failed(what))?;
        let write = send.write_chunk(Bytes::from_static(&[FLOOD])).await;
        write.map_err(failed(what))?;
        Ok((send, recv))
    }

    async fn upload(connection: &Connection) -> Result<impl ChunkStream> {
        let what = "a stream through the router";
        let (send, recv) = connection.open_bi().await.map_err(failed(what))?;
        Ok(QuicUpload(send, recv))
    }

    fn close(connection: &Connection) {
        connection.close(CloseCode::Normal, "");
    }
}

impl ChunkStream for (SendStream, RecvStream) {
    async fn next(&mut self) -> Result<u64> {
        let what = "reading through the router";
        let chunk = self.1.read_chunk(STEP_BYTES).await.map_err(failed(what))?;
        chunk
            .map(|chunk| chunk.len() as u64)
            .ok_or_else(|| ended(what))
    }
}

/// A stream that the client writes. It keeps the other half: dropping that would send STOP_SENDING to the server.
struct QuicUpload<S, R>(S, R);

impl ChunkStream for QuicUpload<SendStream, RecvStream> {
    async fn next(&mut self) -> Result<u64> {
        let write = self.0.write_chunk(Bytes::from_static(&UPLOADED)).await;
        write.map_err(failed("writing through the router"))?;
        Ok(UPLOADED.len() as u64)
    }
}

impl ChunkStream for QuicUpload<quinn::SendStream, quinn::RecvStream> {
    async fn next(&mut self) -> Result<u64> {
        let write = self.0.write_chunk(Bytes::from_static(&UPLOADED)).await;
        write.map_err(failed("writing to quinn"))?;
        Ok(UPLOADED.len() as u64)
    }
}

/// quinn with nothing around it.
#[derive(Clone)]
pub(super) struct BareQuinn {
    client: quinn::Endpoint,
    config: quinn::ClientConfig,
    server: SocketAddr,
    name: String,
}

impl BareQuinn {
    pub(super) fn start(sides: &SideRuntimes, keys: &BenchKeys) -> Result<Self> {
        let what = "preparing quinn";
        let tls = QuicServerConfig::try_from(keys.server_config(ALPN)?).map_err(failed(what))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(transport(false));
        let server = {
            let _context = sides.server.enter();
            quinn::Endpoint::server(config, (HOST, 0).into()).map_err(failed(what))?
        };
        let address = server.local_addr().map_err(failed(what))?;
        sides.server.spawn(accept(server));
        let key = keys.clients.first().ok_or_else(|| ended(what))?;
        let (tls, name) = keys.client_config(key, ALPN)?;
        let tls = QuicClientConfig::try_from(tls).map_err(failed(what))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(transport(true));
        let _context = sides.client.enter();
        // As our dialler opens it.
        let any = (std::net::Ipv6Addr::UNSPECIFIED, 0).into();
        let client = quinn::Endpoint::client(any)
            .or_else(|_| quinn::Endpoint::client((std::net::Ipv4Addr::UNSPECIFIED, 0).into()));
        Ok(Self {
            client: client.map_err(failed(what))?,
            config,
            server: address,
            name: name.to_str().into_owned(),
        })
    }
}

/// What a connection of ours has once its peer is known: the node as server, the dialler as client.
fn transport(dialled: bool) -> Arc<TransportConfig> {
    let budget = if dialled {
        StreamBudget::AUTHENTICATED
    } else {
        StreamBudget::CALL
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(budget.bidi_streams.into())
        .max_concurrent_uni_streams(budget.uni_streams.into())
        .stream_receive_window(budget.stream_window_bytes.into())
        .receive_window(budget.connection_window_bytes.into())
        .send_window(budget.send_window_bytes.into())
        .max_idle_timeout(Some(VarInt::from_u32(45_000).into()))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(dialled.then_some(Duration::from_secs(15)));
    Arc::new(config)
}

async fn accept(server: quinn::Endpoint) {
    while let Some(incoming) = server.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(serve_bare(send, recv));
            }
        });
    }
}

async fn serve_bare(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    let flood = Bytes::from(vec![FLOOD; STEP_BYTES]);
    while let Ok(Some(chunk)) = recv.read_chunk(STEP_BYTES, true).await {
        if chunk.bytes.first() == Some(&FLOOD) {
            while send.write_chunk(flood.clone()).await.is_ok() {}
            return;
        }
        if chunk.bytes.first() == Some(&UPLOAD) {
            continue;
        }
        if send.write_chunk(chunk.bytes).await.is_err() {
            return;
        }
    }
    // A client that gave the stream up does not read its end.
    let _ = send.finish();
}

impl QuicPeer for BareQuinn {
    type Connection = quinn::Connection;

    async fn dial(&self) -> Result<quinn::Connection> {
        let what = "dialling quinn";
        let config = self.config.clone();
        let connecting = self.client.connect_with(config, self.server, &self.name);
        connecting
            .map_err(failed(what))?
            .await
            .map_err(failed(what))
    }

    async fn echo(connection: &quinn::Connection) -> Result<()> {
        let what = "a stream of quinn";
        let (mut send, mut recv) = connection.open_bi().await.map_err(failed(what))?;
        let write = send.write_chunk(Bytes::from_static(&SMALL)).await;
        write.map_err(failed(what))?;
        send.finish().map_err(failed(what))?;
        let mut read = async || {
            recv.read_chunk(STEP_BYTES, true)
                .await
                .map_err(failed(what))
        };
        while read().await?.is_some() {}
        Ok(())
    }

    async fn flood(connection: &quinn::Connection) -> Result<impl ChunkStream> {
        let what = "a stream of quinn";
        let (mut send, recv) = connection.open_bi().await.map_err(failed(what))?;
        let write = send.write_chunk(Bytes::from_static(&[FLOOD])).await;
        write.map_err(failed(what))?;
        Ok((send, recv))
    }

    async fn upload(connection: &quinn::Connection) -> Result<impl ChunkStream> {
        let what = "a stream of quinn";
        let (send, recv) = connection.open_bi().await.map_err(failed(what))?;
        Ok(QuicUpload(send, recv))
    }

    fn close(connection: &quinn::Connection) {
        connection.close(VarInt::from_u32(0), b"");
    }
}

impl ChunkStream for (quinn::SendStream, quinn::RecvStream) {
    async fn next(&mut self) -> Result<u64> {
        let what = "reading from quinn";
        let chunk = self.1.read_chunk(STEP_BYTES, true).await;
        let chunk = chunk.map_err(failed(what))?;
        chunk
            .map(|chunk| chunk.bytes.len() as u64)
            .ok_or_else(|| ended(what))
    }
}
