//! The listening side of the one port.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alknet_core::{
    Carriage, CloseCode, Connection, DialHost, HandlerRegistry, IdentityProvider, Metrics,
    NetworkPrefix, PeerAddr,
};
use alknet_tls::{NodeKey, ServerTls, ServerTlsOptions, by_preference};
use futures_util::future::{join, join_all};
use quinn::Runtime;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{timeout, timeout_at};

use crate::accept::{self, Probe};
use crate::admission::{Admission, AdmissionLimit};
use crate::counters::{EndpointCounters, EndpointTotals};
use crate::dial::EndpointDialer;
use crate::error::{EndpointDialError, EndpointError};
use crate::iroh::{self, IrohListener, IrohOptions};
use crate::limits::EndpointLimits;
use crate::live::{ConnectionSummary, ReliefScope};
use crate::metrics::{self, EndpointMeters};
use crate::nesting::Nesting;
use crate::quic::DatagramSplitter;
use crate::self_dial::{self, SelfDials};
use crate::serve::{EndpointShared, RELIEF_END};
use crate::sockets;
use crate::windows::ReceiveWindows;

/// Time an accept loop has to answer a health probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time between checks of the connections' entries and tokens, some of which end at a date of their own.
const EXPIRY_CHECK: Duration = Duration::from_secs(10);

/// Time for close frames to leave after the drain deadline.
const GOODBYE: Duration = Duration::from_secs(1);

/// Like `GOODBYE`, where the server ends at once: time for handlers to end, and again for close frames to leave.
const HASTY_GOODBYE: Duration = Duration::from_millis(100);

/// The addresses, the port, the limits and the TLS settings of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Addresses; `::` means every address of both families.
    pub addrs: Vec<IpAddr>,
    /// The port, UDP and TCP; 0 takes a free one.
    pub port: u16,
    /// The limits on what unknown peers may cost.
    pub limits: EndpointLimits,
    /// The certificates that are served beside the node's key.
    pub tls: ServerTlsOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            addrs: vec![Ipv6Addr::UNSPECIFIED.into()],
            port: 443,
            limits: EndpointLimits::default(),
            tls: ServerTlsOptions::default(),
        }
    }
}

/// The served port. Dropping it ends all connections at once; [`drain`](Self::drain) lets them finish.
pub struct EndpointServer {
    shared: Arc<EndpointShared>,
    endpoints: Vec<quinn::Endpoint>,
    addresses: Vec<SocketAddr>,
    iroh: Option<::iroh::Endpoint>,
    probes: Vec<mpsc::Sender<Probe>>,
    sweeper: AbortHandle,
}

impl EndpointServer {
    /// Binds TCP, then UDP on the same number, and starts serving. Must run inside a runtime.
    ///
    /// # Errors
    /// An address cannot be bound, or TLS refuses the key.
    pub fn bind(
        options: ServerOptions,
        key: &NodeKey,
        registry: HandlerRegistry,
        identities: Arc<dyn IdentityProvider>,
    ) -> Result<Self, EndpointError> {
        let tcp: Vec<_> = registry.alpns(Carriage::Tcp).collect();
        let quic: Vec<_> = registry.alpns(Carriage::Quic).collect();
        let tls = Arc::new(ServerTls::new(key, options.tls, &tcp, &quic)?);
        let quic = Arc::new(accept::quic::server_config(key, &tls)?);
        let shared = Arc::new(EndpointShared {
            meters: EndpointMeters::new(&registry),
            registry,
            identities,
            limits: options.limits,
            totals: EndpointTotals::default(),
            live: Arc::default(),
            admission: Mutex::new(Admission::new(options.limits)),
            handshakes: accept::HandshakeTasks::default(),
            windows: Arc::new(ReceiveWindows::new(options.limits.window_bytes)),
            self_dials: Arc::new(SelfDials::new(key.public())),
            stop: watch::channel(false).0,
        });
        let mut server = Self {
            sweeper: tokio::spawn(sweep(Arc::clone(&shared))).abort_handle(),
            shared,
            endpoints: Vec::new(),
            addresses: Vec::new(),
            iroh: None,
            probes: Vec::new(),
        };
        for pair in sockets::bind(&options.addrs, options.port)? {
            server.listen(pair, key, &tls, &quic)?;
        }
        Ok(server)
    }

    fn listen(
        &mut self,
        pair: sockets::SocketPair,
        key: &NodeKey,
        tls: &Arc<ServerTls>,
        quic: &Arc<accept::quic::QuinnConfig>,
    ) -> Result<(), EndpointError> {
        let address = pair.address;
        let config = accept::quic::endpoint_config(key, address);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = runtime
            .wrap_udp_socket(pair.udp)
            .and_then(|socket| {
                let socket = DatagramSplitter::new(socket, &config);
                let server = Some(quic.server());
                quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime)
            })
            .map_err(|source| EndpointError::Bind { address, source })?;
        let listener = accept::quic::QuinnListener::new(endpoint.clone(), quic);
        let probes = self.probe();
        tokio::spawn(accept::quic::accept_loop(
            Arc::clone(&self.shared),
            listener,
            probes,
        ));
        let side = Arc::new(accept::tcp::TcpSide::new(&self.shared, tls));
        let probes = self.probe();
        tokio::spawn(accept::tcp::accept_loop(side, pair.tcp, probes));
        self.endpoints.push(endpoint);
        self.addresses.push(address);
        Ok(())
    }

    /// Serves the same protocols to iroh endpoints, on UDP sockets of their own and with the same limits.
    ///
    /// # Errors
    /// An address cannot be bound, or a relay is no URL.
    pub async fn add_iroh(
        &mut self,
        key: &NodeKey,
        options: &IrohOptions,
    ) -> Result<(), EndpointError> {
        let alpns: Vec<_> = self.shared.registry.alpns(Carriage::Iroh).collect();
        let alpns = by_preference(&alpns);
        let endpoint = iroh::bind(key, options, alpns.clone()).await?;
        let probes = self.probe();
        tokio::spawn(accept::quic::accept_loop(
            Arc::clone(&self.shared),
            IrohListener::new(endpoint.clone(), alpns),
            probes,
        ));
        self.iroh = Some(endpoint);
        Ok(())
    }

    /// Serves the connections that handlers carry inside their own from now on.
    pub fn serve_nested(&self, nesting: &Nesting) {
        nesting.attach(&self.shared);
    }

    /// Registers an accept loop, and returns the end on which it receives health probes.
    fn probe(&mut self) -> mpsc::Receiver<Probe> {
        let (probe, probes) = mpsc::channel(1);
        self.probes.push(probe);
        probes
    }

    /// The port number.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.addresses.first().map_or(0, SocketAddr::port)
    }

    /// The bound addresses.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The UDP addresses of the iroh endpoint; empty without one.
    #[must_use]
    pub fn iroh_addresses(&self) -> Vec<SocketAddr> {
        let endpoint = self.iroh.as_ref();
        endpoint.map_or_else(Vec::new, ::iroh::Endpoint::bound_sockets)
    }

    /// The counters of the port.
    #[must_use]
    pub fn counters(&self) -> EndpointCounters {
        let mut counters = self.shared.totals.snapshot();
        counters.handshakes_failed += self.shared.meters.alerts();
        counters
    }

    /// Adds all metrics of the port.
    pub fn collect(&self, into: &mut Metrics) {
        metrics::collect(&self.shared, into);
    }

    /// The connections that the node serves, oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionSummary> {
        self.shared.live.summaries()
    }

    /// The networks that guessed too many keys or tokens, and for how long the node still refuses their guesses.
    #[must_use]
    pub fn penalties(&self) -> Vec<(NetworkPrefix, Duration)> {
        self.shared.admission().penalties(Instant::now())
    }

    /// Replaces the limits. Open connections stay. The time of a handshake and the bytes of windows keep the values
    /// with which the port was bound.
    pub fn set_limits(&self, limits: EndpointLimits) {
        self.shared.admission().set_limits(limits);
    }

    /// Looks every known peer up again, as the node does a moment after each change of the identities. Once this
    /// returns, no code does anything more in the name of a peer that is gone.
    pub fn sweep(&self) {
        self.shared.sweep();
    }

    /// Ends connections to free their memory: one of every `part` of unknown peers', of the sites that have the most
    /// first. Where there are none and `scope` allows it, or beside them, also one of sixteen of known peers'
    /// connections, of the peers that have the most first. If any ended, the node lets no unknown peer in for two
    /// seconds. Returns the number of connections ended.
    pub fn relieve(&self, part: usize, scope: ReliefScope) -> usize {
        let tokens = match scope {
            ReliefScope::Unknown => HashMap::new(),
            _ => self.shared.admission().token_holders(),
        };
        let live = &self.shared.live;
        let ended = live.relieve(part, scope, &tokens, RELIEF_END);
        for _ in 0..ended {
            self.shared.totals.relieved.add();
            self.shared.meters.hit(AdmissionLimit::Memory);
        }
        ended
    }

    /// Connections of unknown peers that ended or were refused, and whose memory the QUIC library still has: for up
    /// to 50 seconds, of which the peer chooses a part.
    pub fn closing(&self) -> usize {
        self.shared.admission().closing_of_unknown() as usize
    }

    /// Connections that the QUIC libraries have and the node does not serve: their handshake is under way or failed,
    /// or the node refused them after it.
    pub fn unserved(&self) -> usize {
        self.shared.admission().unserved().count()
    }

    /// Whether every accept loop still runs: each must answer a probe within a second.
    pub async fn health(&self) -> EndpointHealth {
        // A node that drains has ended its accept loops on purpose.
        if *self.shared.stop.borrow() {
            return EndpointHealth {
                ok: true,
                detail: "draining".to_owned(),
            };
        }
        let answers = join_all(self.probes.iter().map(probe)).await;
        let silent = answers.iter().filter(|answered| !**answered).count();
        EndpointHealth {
            ok: silent == 0,
            detail: match silent {
                0 => format!("{} connections", self.shared.live.len()),
                n => format!("{n} of {} accept loops do not answer", answers.len()),
            },
        }
    }

    /// The addresses at which the node can dial each of its own sockets, see [`dial_itself`](Self::dial_itself): those
    /// of loopback where a socket has every address. Addresses that the machine does not have at the moment are left
    /// out.
    #[must_use]
    pub fn own_addresses(&self) -> Vec<SocketAddr> {
        self_dial::own_addresses(&self.addresses)
    }

    /// Connects to this server as a client does, at one of [`own_addresses`](Self::own_addresses), with a new TLS
    /// session. `key` is the node's own key: the client shows it, and the server has to prove it. No limit on clients
    /// counts the connection, and no log, list or counter shows it. The handler gets no identity.
    ///
    /// # Errors
    /// See [`EndpointDialError`].
    pub async fn dial_itself(
        &self,
        carriage: Carriage,
        address: SocketAddr,
        key: &NodeKey,
        alpn: &[u8],
    ) -> Result<Connection, EndpointDialError> {
        let dialer = self.self_dialer(key);
        let target = PeerAddr {
            pins: vec![key.public()],
            host: DialHost::Ip(address.ip()),
            port: address.port(),
        };
        dialer.dial_over(carriage, &target, alpn).await
    }

    pub(crate) fn self_dialer(&self, key: &NodeKey) -> EndpointDialer {
        EndpointDialer::to_itself(key.clone(), &self.shared.self_dials)
    }

    /// Stops accepting, lets handlers finish until `deadline`, and closes the other connections with code 3.
    pub async fn drain(&self, deadline: Duration) -> DrainSummary {
        self.drain_for(deadline, (CloseCode::Shutdown, "shutting down"))
            .await
    }

    /// Drains as [`drain`](Self::drain) does, and closes the remaining connections with `why`.
    pub async fn drain_for(
        &self,
        deadline: Duration,
        why: (CloseCode, &'static str),
    ) -> DrainSummary {
        let until = tokio::time::Instant::now() + deadline;
        self.stop_accepting();
        let live = &self.shared.live;
        let open = live.len();
        let drained = join_all(self.shared.registry.handlers().map(|h| h.drain()));
        let _ = timeout_at(until, drained).await;
        let _ = timeout_at(until, live.empty()).await;
        let cut = self.end_all(why, GOODBYE).await;
        DrainSummary {
            // Handshakes that finished meanwhile added connections, so that more may be cut than were open.
            finished: open.saturating_sub(cut),
            cut,
        }
    }

    /// Closes every connection with `why`, and waits for no handler's work. Returns once the peers were notified, or
    /// after 200 ms. May be called while a drain runs or after a caller gave the drain up.
    pub async fn end_now(&self, why: (CloseCode, &'static str)) {
        self.stop_accepting();
        self.end_all(why, HASTY_GOODBYE).await;
    }

    /// QUIC takes no first packet from now on. TCP and iroh end their loops by the `stop` channel.
    fn stop_accepting(&self) {
        self.shared.stop.send_replace(true);
        for endpoint in &self.endpoints {
            endpoint.set_server_config(None);
        }
    }

    /// Ends every connection and endpoint. Handlers, and then the close frames, get the time `goodbye`. Returns the
    /// number of connections that were open.
    async fn end_all(&self, why: (CloseCode, &'static str), goodbye: Duration) -> usize {
        let live = &self.shared.live;
        let cut = live.end_all(why);
        // Handlers get a moment to see the end and to send their last bytes before the endpoints close.
        let _ = timeout(goodbye, live.empty()).await;
        self.close(why);
        let idle = join_all(self.endpoints.iter().map(quinn::Endpoint::wait_idle));
        let iroh = join_all(self.iroh.iter().map(::iroh::Endpoint::close));
        let _ = timeout(goodbye, join(idle, iroh)).await;
        cut
    }

    fn close(&self, (code, why): (CloseCode, &'static str)) {
        for endpoint in &self.endpoints {
            endpoint.close(code.code().into(), why.as_bytes());
        }
    }
}

impl Drop for EndpointServer {
    fn drop(&mut self) {
        // A server that is dropped cannot wait: connections end at once and the tasks see `stop`.
        self.shared.stop.send_replace(true);
        self.shared
            .live
            .end_all((CloseCode::Shutdown, "shutting down"));
        self.sweeper.abort();
        self.close((CloseCode::Shutdown, "shutting down"));
        // Iroh closes in the background only, which needs a runtime.
        if let (Some(iroh), Ok(runtime)) = (self.iroh.take(), Handle::try_current()) {
            runtime.spawn(async move { iroh.close().await });
        }
    }
}

impl std::fmt::Debug for EndpointServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EndpointServer({:?})", self.addresses)
    }
}

/// The health of the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    /// Whether every accept loop answered.
    pub ok: bool,
    /// A text to show.
    pub detail: String,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSummary {
    /// Connections that ended before the deadline.
    pub finished: usize,
    /// Connections that the node closed with code 3 at the deadline.
    pub cut: usize,
}

async fn probe(probe: &mpsc::Sender<Probe>) -> bool {
    let (answer, answered) = oneshot::channel();
    let answered_probe = async { probe.send(answer).await.is_ok() && answered.await.is_ok() };
    timeout(PROBE_TIMEOUT, answered_probe)
        .await
        .unwrap_or(false)
}

/// Ends the connections of peers that were removed or whose entry ended: after each change of the identities, and
/// every [`EXPIRY_CHECK`].
async fn sweep(shared: Arc<EndpointShared>) {
    let mut changes = shared.identities.watch();
    // Both a change and the end of the wait lead to a sweep. Only the end of the provider ends the task.
    while !matches!(timeout(EXPIRY_CHECK, changes.changed()).await, Ok(Err(_))) {
        shared.sweep();
    }
}
