//! The listening side of the one port.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::{
    Carriage, CloseCode, ConnectionInfo, HandlerRegistry, IdentityProvider, StreamBudget,
};
use alknet_tls::{ALPN_ACME, NodeKey, PeerProof, ServerTls, ServerTlsOptions};
use aws_lc_rs::{hkdf, hmac};
use futures_util::future::join_all;
use quinn::EndpointConfig;
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use crate::admission::{self, Admission, Ticket};
use crate::counters::{Counters, Totals};
use crate::error::EndpointError;
use crate::hello::HelloChooser;
use crate::limits::Limits;
use crate::live::ConnectionSummary;
use crate::quic::{self, QuicSource};
use crate::serve::{Arrived, Shared, serve};
use crate::sockets;
use crate::tcp::{self, TcpSource};

/// First packets waiting for the accept loop.
const INCOMING_MAX: usize = 1024;
/// Bytes kept for one of them, and for all.
const INCOMING_BYTES: u64 = 32 << 10;
const INCOMING_BYTES_TOTAL: u64 = 8 << 20;

/// Pause of the TCP accept loop when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time an accept loop has to answer a health probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often live connections are held against the clock: entries and tokens end by themselves.
const EXPIRY_CHECK: Duration = Duration::from_secs(10);

/// After the drain deadline: time for close frames to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a TCP client without ALPN is taken to speak.
const ALPN_OF_OLD_CLIENTS: &[u8] = b"http/1.1";

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Addresses; `::` means every address of both families.
    pub addrs: Vec<IpAddr>,
    /// The port, UDP and TCP; 0 takes a free one.
    pub port: u16,
    /// What strangers may cost.
    pub limits: Limits,
    /// What is served beside the node's key.
    pub tls: ServerTlsOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            addrs: vec![Ipv6Addr::UNSPECIFIED.into()],
            port: 443,
            limits: Limits::default(),
            tls: ServerTlsOptions::default(),
        }
    }
}

/// The one port, being served. Dropping it stops at once; [`drain`](Self::drain) is the polite way.
pub struct Server {
    shared: Arc<Shared>,
    endpoints: Vec<quinn::Endpoint>,
    addresses: Vec<SocketAddr>,
    probes: Vec<mpsc::Sender<oneshot::Sender<()>>>,
    sweeper: AbortHandle,
}

impl Server {
    /// Binds TCP, then UDP on the same number, and starts serving. Must run inside a runtime.
    ///
    /// # Errors
    /// An address cannot be had, or TLS refuses the key.
    pub fn bind(
        options: ServerOptions,
        key: &NodeKey,
        registry: HandlerRegistry,
        identities: Arc<dyn IdentityProvider>,
    ) -> Result<Self, EndpointError> {
        let tcp: Vec<_> = registry.alpns(Carriage::Tcp).collect();
        let quic: Vec<_> = registry.alpns(Carriage::Quic).collect();
        let tls = Arc::new(ServerTls::new(key, options.tls, &tcp, &quic)?);
        let quic = quic_config(key, &tls)?;
        let shared = Arc::new(Shared {
            registry,
            identities,
            limits: options.limits,
            totals: Totals::default(),
            live: Arc::default(),
            admission: Mutex::new(Admission::new(options.limits)),
            stop: watch::channel(false).0,
        });
        let mut server = Self {
            sweeper: tokio::spawn(sweep(Arc::clone(&shared))).abort_handle(),
            shared,
            endpoints: Vec::new(),
            addresses: Vec::new(),
            probes: Vec::new(),
        };
        for pair in sockets::bind(&options.addrs, options.port)? {
            server.listen(pair, key, &tls, &quic)?;
        }
        Ok(server)
    }

    fn listen(
        &mut self,
        pair: sockets::Pair,
        key: &NodeKey,
        tls: &Arc<ServerTls>,
        quic: &quinn::ServerConfig,
    ) -> Result<(), EndpointError> {
        let address = pair.address;
        let endpoint = quinn::Endpoint::new(
            endpoint_config(key),
            Some(quic.clone()),
            pair.udp,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(|source| EndpointError::Bind { address, source })?;
        let (probe, probes) = mpsc::channel(1);
        self.probes.push(probe);
        tokio::spawn(quic_loop(
            Arc::clone(&self.shared),
            endpoint.clone(),
            probes,
        ));
        let (probe, probes) = mpsc::channel(1);
        self.probes.push(probe);
        let side = Arc::new(TcpSide {
            shared: Arc::clone(&self.shared),
            tls: Arc::clone(tls),
            handshakes: Mutex::default(),
        });
        tokio::spawn(tcp_loop(side, pair.tcp, probes));
        self.endpoints.push(endpoint);
        self.addresses.push(address);
        Ok(())
    }

    /// The port served.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addresses.first().map_or(0, SocketAddr::port)
    }

    /// The addresses bound.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What the port has seen.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.totals.snapshot()
    }

    /// The connections being served, oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionSummary> {
        self.shared.live.summaries()
    }

    /// Other limits from now on. Connections that are there stay; the time a handshake may take is
    /// fixed.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.admission().set_limits(limits);
    }

    /// Looks every known peer up again, as is done a moment after each change of the identities: once
    /// this returns, nothing new is done in the name of anybody who is gone.
    pub fn sweep(&self) {
        self.shared.sweep();
    }

    /// Whether every accept loop still runs: each must answer within a second.
    pub async fn health(&self) -> Health {
        if *self.shared.stop.borrow() {
            return Health {
                ok: true,
                detail: "draining".to_owned(),
            };
        }
        let answers = join_all(self.probes.iter().map(probe)).await;
        let silent = answers.iter().filter(|answered| !**answered).count();
        Health {
            ok: silent == 0,
            detail: match silent {
                0 => format!("{} connections", self.shared.live.len()),
                n => format!("{n} of {} accept loops do not answer", answers.len()),
            },
        }
    }

    /// Stops accepting, lets handlers finish until `deadline`, closes the rest with code 3.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        let until = tokio::time::Instant::now() + deadline;
        self.shared.stop.send_replace(true);
        for endpoint in &self.endpoints {
            endpoint.set_server_config(None);
        }
        let live = &self.shared.live;
        let open = live.len();
        let told = join_all(self.shared.registry.handlers().map(|h| h.drain()));
        let _ = timeout_at(until, told).await;
        let _ = timeout_at(until, live.empty()).await;
        let cut = live.end_all((CloseCode::Shutdown, "shutting down"));
        let _ = timeout(GOODBYE, live.empty()).await;
        self.close();
        let idle = join_all(self.endpoints.iter().map(quinn::Endpoint::wait_idle));
        let _ = timeout(GOODBYE, idle).await;
        Drained {
            finished: open.saturating_sub(cut),
            cut,
        }
    }

    fn close(&self) {
        for endpoint in &self.endpoints {
            endpoint.close(CloseCode::Shutdown.code().into(), b"shutting down");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
        self.shared
            .live
            .end_all((CloseCode::Shutdown, "shutting down"));
        self.sweeper.abort();
        self.close();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({:?})", self.addresses)
    }
}

/// Whether the port is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// It is.
    pub ok: bool,
    /// What to show.
    pub detail: String,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that ended by themselves.
    pub finished: usize,
    /// Connections closed with code 3 at the deadline.
    pub cut: usize,
}

async fn probe(probe: &mpsc::Sender<oneshot::Sender<()>>) -> bool {
    let (answer, answered) = oneshot::channel();
    let asked = async { probe.send(answer).await.is_ok() && answered.await.is_ok() };
    timeout(PROBE_TIMEOUT, asked).await.unwrap_or(false)
}

/// Resolves once the node drains.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error would mean that the server is gone, which is stopping too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Ends the connections of peers that were removed or whose entry ended: whenever identities
/// change, and from time to time.
async fn sweep(shared: Arc<Shared>) {
    let mut changes = shared.identities.watch();
    while !matches!(timeout(EXPIRY_CHECK, changes.changed()).await, Ok(Err(_))) {
        shared.sweep();
    }
}

fn quic_config(key: &NodeKey, tls: &Arc<ServerTls>) -> Result<quinn::ServerConfig, EndpointError> {
    let chooser = HelloChooser::new(tls).map_err(|error| EndpointError::Quic(error.to_string()))?;
    // Derived from the node key, address proofs survive a restart.
    let token_key = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &*key.derive("quic address token"));
    let mut config = quinn::ServerConfig::new(Arc::new(chooser), Arc::new(token_key));
    config
        .transport_config(quic::transport(StreamBudget::UNAUTHENTICATED, false))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL)
        .migration(true);
    Ok(config)
}

fn endpoint_config(key: &NodeKey) -> EndpointConfig {
    // Derived from the node key, a restarted node can still end its predecessor's connections.
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &*key.derive("quic stateless reset"));
    EndpointConfig::new(Arc::new(reset_key))
}

async fn quic_loop(
    shared: Arc<Shared>,
    endpoint: quinn::Endpoint,
    mut probes: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut stop = shared.stop.subscribe();
    let local = endpoint.local_addr().ok();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            Some(answer) = probes.recv() => drop(answer.send(())),
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => admit_quic(&shared, incoming, local),
                None => return,
            },
        }
    }
}

fn admit_quic(shared: &Arc<Shared>, incoming: quinn::Incoming, local: Option<SocketAddr>) {
    let from = incoming.remote_address().ip().to_canonical();
    let validated = incoming.remote_address_validated();
    let decision = shared.admission().quic(from, validated, Instant::now());
    match decision {
        admission::Quic::Accept(ticket) => {
            let ticket = QuicTicket {
                shared: Arc::clone(shared),
                ticket,
            };
            tokio::spawn(quic_connection(ticket, incoming, local));
        }
        admission::Quic::Ignore => {
            shared.totals.handshakes_ignored.add();
            incoming.ignore();
        }
        admission::Quic::Refuse => {
            shared.totals.handshakes_refused.add();
            incoming.refuse();
        }
        admission::Quic::Retry => {
            shared.totals.handshakes_retried.add();
            if incoming.retry().is_err() {
                shared.totals.handshakes_ignored.add();
            }
        }
    }
}

struct QuicTicket {
    shared: Arc<Shared>,
    ticket: Ticket,
}

impl Drop for QuicTicket {
    fn drop(&mut self) {
        self.shared.admission().finish(self.ticket);
    }
}

async fn quic_connection(ticket: QuicTicket, incoming: quinn::Incoming, local: Option<SocketAddr>) {
    let shared = Arc::clone(&ticket.shared);
    let handshake = async {
        let connecting = incoming.accept().map_err(io::Error::other)?;
        connecting.await.map_err(io::Error::other)
    };
    let connection = bounded(&shared, handshake).await;
    drop(ticket);
    if let Some(arrived) = connection.map(|connection| quic_arrived(connection, local)) {
        serve(shared, arrived).await;
    }
}

fn quic_arrived(connection: quinn::Connection, local: Option<SocketAddr>) -> Arrived {
    let data = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok());
    let (alpn, sni) = data.map_or((None, None), |data| (data.protocol, data.server_name));
    let chain = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let remote = canonical(connection.remote_address());
    let local = local.map(|bound| {
        let ip = connection.local_ip().unwrap_or_else(|| bound.ip());
        SocketAddr::new(ip.to_canonical(), bound.port())
    });
    Arrived {
        info: ConnectionInfo {
            alpn: alpn.unwrap_or_default().into(),
            carriage: Carriage::Quic,
            sni: sni.map(Into::into),
            remote_addr: Some(remote),
            local_addr: local,
            dialled: false,
        },
        proof: chain.and_then(|chain| proof(&chain)),
        from: remote.ip(),
        source: Box::new(QuicSource::new(connection)),
    }
}

/// Runs a handshake within its time, ends it when the node drains, and counts how it went.
async fn bounded<T>(shared: &Shared, handshake: impl Future<Output = io::Result<T>>) -> Option<T> {
    let mut stop = shared.stop.subscribe();
    let totals = &shared.totals;
    let result = tokio::select! {
        biased;
        () = stopped(&mut stop) => return None,
        result = timeout(shared.limits.handshake_timeout, handshake) => result,
    };
    match result {
        Ok(Ok(done)) => {
            totals.handshakes_ok.add();
            Some(done)
        }
        Ok(Err(error)) => {
            totals.handshakes_failed.add();
            tracing::debug!("handshake failed: {error}");
            None
        }
        Err(_) => {
            totals.handshakes_timeout.add();
            None
        }
    }
}

/// The key behind a chain. The verifier has accepted it, so that it can be read.
fn proof(chain: &[CertificateDer<'_>]) -> Option<PeerProof> {
    PeerProof::from_certificate(chain.first()?).ok()
}

/// An IPv4 peer of a socket for both families, as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What the TCP accept loop and its handshakes share.
struct TcpSide {
    shared: Arc<Shared>,
    tls: Arc<ServerTls>,
    /// Handshakes that can be ended for newer ones.
    handshakes: Mutex<HashMap<Ticket, AbortHandle>>,
}

impl TcpSide {
    fn handshakes(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, AbortHandle>> {
        self.handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn tcp_loop(
    side: Arc<TcpSide>,
    listener: TcpListener,
    mut probes: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut stop = side.shared.stop.subscribe();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            Some(answer) = probes.recv() => drop(answer.send(())),
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => admit_tcp(&side, stream, canonical(remote)),
                Err(error) => pause(&error).await,
            },
        }
    }
}

/// Out of descriptors or memory, accepting again at once would spin; anything else concerns the
/// one connection that was lost.
async fn pause(error: &io::Error) {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    if matches!(
        error.raw_os_error(),
        Some(ENOMEM | ENFILE | EMFILE | ENOBUFS)
    ) {
        tracing::warn!("cannot accept connections: {error}");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn admit_tcp(side: &Arc<TcpSide>, stream: TcpStream, remote: SocketAddr) {
    let shared = &side.shared;
    let decision = shared.admission().tcp(remote.ip());
    let admission::Tcp::Accept { ticket, evict } = decision else {
        shared.totals.handshakes_refused.add();
        return;
    };
    if let Some(oldest) = evict.and_then(|evict| side.handshakes().remove(&evict)) {
        shared.totals.handshakes_evicted.add();
        oldest.abort();
    }
    let guard = TcpTicket {
        side: Arc::clone(side),
        ticket,
    };
    // Held until the handle is in the table, so that the task cannot end before it is.
    let mut handshakes = side.handshakes();
    let task = tokio::spawn(tcp_connection(guard, stream, remote));
    handshakes.insert(ticket, task.abort_handle());
}

struct TcpTicket {
    side: Arc<TcpSide>,
    ticket: Ticket,
}

impl Drop for TcpTicket {
    fn drop(&mut self) {
        self.side.handshakes().remove(&self.ticket);
        self.side.shared.admission().finish(self.ticket);
    }
}

async fn tcp_connection(guard: TcpTicket, stream: TcpStream, remote: SocketAddr) {
    let shared = Arc::clone(&guard.side.shared);
    let side = Arc::clone(&guard.side);
    let handshake = tcp_handshake(&side, stream, remote.ip());
    let connection = bounded(&shared, handshake).await;
    // From here on nothing may end this task for a newer handshake.
    drop(guard);
    if let Some(arrived) = connection
        .flatten()
        .map(|tls| tcp_arrived(&shared, tls, remote))
    {
        serve(shared, arrived).await;
    }
}

/// `None` when the handshake was all the client wanted.
async fn tcp_handshake(
    side: &TcpSide,
    stream: TcpStream,
    from: IpAddr,
) -> io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
    sockets::tune(&stream)?;
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let allowed = side
        .shared
        .admission()
        .charge(Carriage::Tcp, from, Instant::now());
    if !allowed {
        side.shared.totals.handshakes_refused.add();
        return Err(io::Error::other("too many handshakes from this network"));
    }
    let config = match side.tls.tcp(&start.client_hello()) {
        Ok(config) => config,
        Err(unknown) => {
            tcp::alert(&mut start.io, alknet_tls::ALERT_UNRECOGNIZED_NAME).await?;
            return Err(io::Error::other(unknown));
        }
    };
    let mut tls = start.into_stream(config).await?;
    if tls.get_ref().1.alpn_protocol() == Some(ALPN_ACME) {
        // A certificate authority has seen what it wanted to see (RFC 8737 section 3).
        tls.shutdown().await?;
        return Ok(None);
    }
    Ok(Some(tls))
}

fn tcp_arrived(
    shared: &Shared,
    tls: tokio_rustls::server::TlsStream<TcpStream>,
    remote: SocketAddr,
) -> Arrived {
    let (tcp, session) = tls.get_ref();
    let old = || shared.registry.get(ALPN_OF_OLD_CLIENTS, Carriage::Tcp);
    let alpn = match session.alpn_protocol() {
        Some(alpn) => alpn,
        None if old().is_some() => ALPN_OF_OLD_CLIENTS,
        None => &[],
    };
    let info = ConnectionInfo {
        alpn: alpn.into(),
        carriage: Carriage::Tcp,
        sni: session.server_name().map(Into::into),
        remote_addr: Some(remote),
        local_addr: tcp.local_addr().ok().map(canonical),
        dialled: false,
    };
    Arrived {
        info,
        proof: session.peer_certificates().and_then(proof),
        from: remote.ip(),
        source: Box::new(TcpSource::new(TlsStream::Server(tls))),
    }
}
