//! One host with thousands of addresses. Each finishes its handshake, proves nothing, and stays.
//! Meanwhile an administrator always gets in, over QUIC and TCP, by IPv4 and from another IPv6
//! network. Also one host that enrols at a hub from all its networks, while an honest peer waits
//! there.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use alknet_call::{ALPN, CallClient};
use alknet_core::{Carriage, PeerKey};
use alknet_endpoint::Target;
use alknet_test_support::{deadline, took};
use alknet_tests::{RawTcpConnection, TestBench, wire};
use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost};
use rustls::ClientConnection;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::initial::InitialPackets;
use super::{FloodNamespaces, FloodNode, KnownClient, among, call, full, ip, values};

/// Addresses of the crowd in a test run, and in `cargo xtask soak flood`. Each is more than twice
/// the number of connection slots for the crowd.
pub(super) const CROWD: [usize; 2] = [1024, 4096];
/// Threads that connect for the crowd.
const HANDS: usize = 8;
/// Pause between two connections of a thread after it has used all its addresses. Together the
/// threads try many times as often as the node allows one network by default, and leave the
/// processors to the node.
const RESTLESS_PAUSE: Duration = Duration::from_millis(10);
/// Connections of each kind that a thread of a restless crowd keeps. Together they are more than there are slots for.
const KEPT: usize = 64;

/// Connection slots for unknown peers, of the node's 512, as on a machine of 128 MiB.
const FOR_UNKNOWN: f64 = 384.0;
/// Connection slots for unknown peers of one network, and of all networks of a site.
const OF_ONE_NETWORK: f64 = 64.0;
const OF_ONE_SITE: f64 = 4.0 * OF_ONE_NETWORK;

/// The connection slots limit the crowd, not a rate.
const CONFIG: &str =
    "[limits]\nconnections = 512\nhandshake_burst = 10000\nhandshakes_per_second = 10000\n";

/// How long the administrator may take to connect and get an answer.
pub(super) const GETS_IN_WITHIN: Duration = Duration::from_secs(2);
/// How long a member of the crowd waits for the node.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same over QUIC, where the node may drop what it refuses.
const QUIC_PATIENCE: Duration = Duration::from_secs(2);

/// The ends of the cable, in a /48 without members of the crowd.
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
const OTHERS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2);
const NODE_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const OTHERS_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Every address of the crowd.
const CROWD_V6: &str = "2001:db8::/44";
/// Every address of an administrator far from the crowd.
const AWAY_V6: &str = "2001:db8:1000::/36";

/// How the addresses of the crowd are spread.
#[derive(Clone, Copy, Debug)]
pub(super) enum AddressSpread {
    /// All in one /64.
    OneNetwork,
    /// In all /56 networks of one /48, which one host may own.
    OneSite,
    /// Each in a separate /56, like those of a provider.
    Everywhere,
}

impl AddressSpread {
    fn address(self, n: usize) -> Ipv6Addr {
        let n = u16::try_from(n % full(CROWD)).expect("small");
        match self {
            Self::OneNetwork => [0x2001, 0xdb8, 0, 0, 0, 0, 0, n + 1].into(),
            Self::OneSite => [0x2001, 0xdb8, 0, n << 8, 0, 0, 0, (n >> 8) + 1].into(),
            Self::Everywhere => [0x2001, 0xdb8, n >> 8, n << 8, 0, 0, 0, 1].into(),
        }
    }
}

impl FloodNamespaces {
    /// Gives the cable IPv6 addresses, and gives the others all addresses of the crowd.
    pub(super) fn crowded(self) -> Self {
        let Self { node, others } = &self;
        for (namespace, address, link_local) in [
            (node, NODE_V6, NODE_LINK_LOCAL),
            (others, OTHERS_V6, OTHERS_LINK_LOCAL),
        ] {
            // For a packet from one of the crowd's addresses, the kernel solicits the neighbour
            // from a link-local address. The kernel's own is tentative for a second or two, and no
            // packet leaves until then.
            for address in [address, link_local] {
                ip(&format!(
                    "-n {namespace} -6 addr add {address}/64 dev eth0 nodad"
                ));
            }
        }
        for addresses in [CROWD_V6, AWAY_V6] {
            ip(&format!(
                "-n {others} -6 route add local {addresses} dev lo"
            ));
            ip(&format!(
                "-n {node} -6 route add {addresses} via {OTHERS_V6}"
            ));
        }
        self
    }
}

/// Progress of the crowd.
#[derive(Default)]
pub(super) struct FloodProgress {
    /// Members that finished their handshake or were refused.
    pub(super) done: AtomicUsize,
    /// Members that finished it over QUIC.
    over_quic: AtomicUsize,
    /// The members make no more connections, but keep the ones they have.
    pub(super) halt: AtomicBool,
    /// The members may leave.
    pub(super) stop: AtomicBool,
}

impl FloodProgress {
    /// Whether a restless crowd makes no more connections.
    fn is_over(&self) -> bool {
        self.halt.load(Ordering::SeqCst) || self.stop.load(Ordering::SeqCst)
    }
}

/// Connections of the crowd.
pub(super) struct FloodConnections {
    tls: rustls::ClientConfig,
    /// For every other member, if they dial QUIC. The rest dial TCP.
    quic: Option<quinn::ClientConfig>,
    /// Whether it starts again after it has used all its addresses, until it halts.
    is_restless: bool,
    /// Whether half of the members only begin their handshake.
    is_half_silent: bool,
    name: rustls::pki_types::ServerName<'static>,
    node: SocketAddr,
}

impl FloodConnections {
    /// Members that show no key.
    pub(super) fn new(served: &FloodNode) -> Self {
        Self::showing(served, None)
    }

    /// Connections that show this key.
    pub(super) fn showing(served: &FloodNode, key: Option<NodeKey>) -> Self {
        let tls = ClientTls::new(ClientTlsOptions {
            key,
            ..ClientTlsOptions::default()
        });
        let place = RemoteHost::Ip(NODE_V6.into());
        let remote = tls.remote(None, &served.target.pins, place);
        let remote = remote.expect("the node's key is known");
        let attempt = remote.attempts(place, ALPN).into_iter().next();
        Self {
            tls: attempt.expect("there is a way to connect"),
            quic: None,
            is_restless: false,
            is_half_silent: false,
            name: remote.server_name(place),
            node: (NODE_V6, served.target.port).into(),
        }
    }

    /// Every other member dials QUIC.
    pub(super) fn with_quic(self) -> Self {
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(self.tls.clone());
        let tls = tls.expect("TLS 1.3");
        Self {
            quic: Some(quinn::ClientConfig::new(Arc::new(tls))),
            ..self
        }
    }

    /// Members make connections until they halt, some hundreds per second, from the same addresses.
    pub(super) fn restless(self) -> Self {
        Self {
            is_restless: true,
            ..self
        }
    }

    /// Half of the members begin their handshake, and send nothing more.
    pub(super) fn half_silent(self) -> Self {
        Self {
            is_half_silent: true,
            ..self
        }
    }

    fn bound(&self, kind: Type, address: Ipv6Addr) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV6, kind, None)?;
        socket.set_freebind_v6(true)?;
        socket.bind(&SocketAddr::from((address, 0)).into())?;
        Ok(socket)
    }

    /// Begins a handshake from `address`: connects over TCP, or sends this datagram.
    fn begin(&self, address: Ipv6Addr, datagram: Option<&[u8]>) -> std::io::Result<Socket> {
        let Some(datagram) = datagram else {
            let socket = self.bound(Type::STREAM, address)?;
            socket.connect_timeout(&self.node.into(), deadline(PATIENCE))?;
            return Ok(socket);
        };
        let socket = self.bound(Type::DGRAM, address)?;
        socket.send_to(datagram, &self.node.into())?;
        Ok(socket)
    }

    /// Keeps a connection. A restless crowd gives up its oldest ones.
    fn hold<T>(&self, kept: &mut VecDeque<T>, one: std::io::Result<T>) {
        kept.extend(one);
        if self.is_restless && kept.len() > KEPT {
            kept.pop_front();
        }
    }

    /// Connects from `address` over QUIC, until the end of the handshake.
    ///
    /// # Panics
    /// It dials TCP only.
    pub(super) async fn connect_quic(
        &self,
        address: Ipv6Addr,
    ) -> std::io::Result<(quinn::Endpoint, quinn::Connection)> {
        let config = self.quic.as_ref().expect("some of it dial QUIC");
        let socket = self.bound(Type::DGRAM, address)?;
        socket.set_nonblocking(true)?;
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            None,
            socket.into(),
            Arc::new(quinn::TokioRuntime),
        )?;
        let connecting = endpoint.connect_with(config.clone(), self.node, &self.name.to_str());
        let connecting = connecting.map_err(std::io::Error::other)?;
        let connected = tokio::time::timeout(deadline(QUIC_PATIENCE), connecting).await?;
        let connection = connected.map_err(std::io::Error::other)?;
        Ok((endpoint, connection))
    }

    /// Connects from `address` over TCP, until the end of the handshake.
    pub(super) fn connect(
        &self,
        address: Ipv6Addr,
    ) -> std::io::Result<(TcpStream, ClientConnection)> {
        let socket = self.bound(Type::STREAM, address)?;
        let patience = deadline(PATIENCE);
        socket.connect_timeout(&self.node.into(), patience)?;
        let mut socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(patience))?;
        let tls = ClientConnection::new(Arc::new(self.tls.clone()), self.name.clone());
        let mut tls = tls.map_err(std::io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        Ok((socket, tls))
    }

    /// Connects from every address, and keeps the connections until it may leave.
    pub(super) fn come(&self, spread: AddressSpread, progress: &FloodProgress) {
        // Its thread is in the caller's namespace, and handles the QUIC connections meanwhile.
        let drivers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let drivers = drivers.expect("a runtime");
        let handle = drivers.handle();
        std::thread::scope(|scope| {
            for hand in 0..HANDS {
                scope.spawn(move || {
                    let (mut over_tcp, mut over_quic) = (VecDeque::new(), VecDeque::new());
                    let mut begun = VecDeque::new();
                    let mut initials = InitialPackets::new(ALPN);
                    for (turn, n) in (hand..).step_by(HANDS).enumerate() {
                        if n >= full(CROWD) {
                            if !self.is_restless || progress.is_over() {
                                break;
                            }
                            std::thread::sleep(RESTLESS_PAUSE);
                        }
                        let address = spread.address(n);
                        let is_quic = self.quic.is_some() && turn % 2 == 1;
                        if self.is_half_silent && turn % 4 < 2 {
                            let datagram = is_quic.then(|| initials.datagram());
                            self.hold(&mut begun, self.begin(address, datagram.as_deref()));
                        } else if is_quic {
                            let connected = handle.block_on(self.connect_quic(address));
                            self.hold(&mut over_quic, connected);
                        } else {
                            self.hold(&mut over_tcp, self.connect(address));
                        }
                        progress.done.fetch_add(1, Ordering::SeqCst);
                    }
                    let finished = over_quic.len();
                    progress.over_quic.fetch_add(finished, Ordering::SeqCst);
                    while !progress.stop.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    // The node receives the close, so that the next crowd finds free connection
                    // slots.
                    handle.block_on(async {
                        for (_, connection) in &over_quic {
                            connection.close(0u32.into(), b"");
                        }
                        for (endpoint, _) in &over_quic {
                            endpoint.wait_idle().await;
                        }
                    });
                });
            }
        });
    }
}

/// The node's counters of unknown peers' connections, and of connections without a free slot.
async fn connection_counters(admin: &KnownClient<'_>) -> (f64, f64) {
    let lasting = admin.connect().await;
    let values = values(&lasting).await;
    let values = values.as_object().expect("an object");
    let sum = |wanted: &dyn Fn(&str) -> bool| {
        let found = values.iter().filter(|(name, _)| wanted(name));
        found.filter_map(|(_, value)| value.as_f64()).sum::<f64>()
    };
    let unknown_peers =
        sum(&|name| name.starts_with("alknet_connections{") && name.contains("state=\"unknown\""));
    let refused = sum(&|name| name.starts_with("alknet_limit_hits_total{limit=\"connections"));
    (unknown_peers, refused)
}

/// The administrator makes new connections and requests, to each of these addresses of the node,
/// until the crowd is complete.
async fn gets_in_throughout(
    admin: &[KnownClient<'_>],
    progress: &FloodProgress,
) -> (usize, Duration) {
    let (mut times, mut longest) = (0, Duration::ZERO);
    loop {
        let crowded = progress.done.load(Ordering::SeqCst) >= full(CROWD);
        for one in admin {
            for carriage in [Carriage::Quic, Carriage::Tcp] {
                longest = longest.max(gets_in(one, carriage).await);
                times += 1;
            }
        }
        if crowded {
            return (times, longest);
        }
    }
}

/// How long the administrator takes to connect and get an answer.
async fn gets_in(admin: &KnownClient<'_>, carriage: Carriage) -> Duration {
    let way = format!("{carriage} to {}", admin.target.address());
    let began = Instant::now();
    let asked = async {
        let connection = admin.dialer.dial_over(carriage, admin.target, ALPN).await;
        let connection = connection.unwrap_or_else(|error| panic!("{way}: {error}"));
        call(&CallClient::without_operations().attach(connection, None)).await;
    };
    let asked = tokio::time::timeout(deadline(GETS_IN_WITHIN), asked).await;
    assert!(asked.is_ok(), "an administrator is kept out over {way}");
    began.elapsed()
}

/// The node by its IPv6 address, which a client dials from the other end of the cable.
fn by_ipv6(served: &FloodNode) -> Target {
    let address = SocketAddr::from((NODE_V6, served.target.port)).to_string();
    let target: Target = address.parse().expect("a target");
    target.with_pins(served.target.pins.clone())
}

async fn scenario(admin: &Path, served: &FloodNode) {
    let by_ipv6 = by_ipv6(served);
    let admin = [&served.target, &by_ipv6].map(|target| KnownClient::new(admin, target));
    let crowd = Arc::new(FloodConnections::new(served).with_quic());
    // From two other networks. They send nothing until the last crowd has left.
    let mut lasting = Vec::new();
    for one in &admin {
        for carriage in [Carriage::Quic, Carriage::Tcp] {
            let connection = one.dialer.dial_over(carriage, one.target, ALPN).await;
            let connection = connection.unwrap_or_else(|error| panic!("{carriage}: {error}"));
            lasting.push(CallClient::without_operations().attach(connection, None));
        }
    }
    // Makes the ends of the cable resolve each other. A neighbour that did not answer is solicited
    // again after a second (RFC 4861 section 10), which would count as the node's time.
    call(&admin[1].connect().await).await;
    let (_, mut refused) = connection_counters(&admin[0]).await;
    for (spread, most) in [
        (AddressSpread::OneNetwork, OF_ONE_NETWORK),
        (AddressSpread::OneSite, OF_ONE_SITE),
        (AddressSpread::Everywhere, FOR_UNKNOWN),
    ] {
        let progress = Arc::new(FloodProgress::default());
        let coming = {
            let (crowd, progress) = (Arc::clone(&crowd), Arc::clone(&progress));
            std::thread::spawn(move || crowd.come(spread, &progress))
        };
        let (times, longest) = gets_in_throughout(&admin, &progress).await;
        let (unknown_peers, now_refused) = connection_counters(&admin[0]).await;
        println!(
            "figure crowd {spread:?}: the administrator got in {times} times, after {} ms at most; {unknown_peers} of the crowd are in",
            longest.as_millis()
        );
        took(
            &format!("an administrator beside {spread:?}"),
            GETS_IN_WITHIN,
            longest,
        );
        // Unknown peers that the node evicted for others may not have left yet.
        assert!(
            unknown_peers <= most + HANDS as f64,
            "{spread:?}: {unknown_peers}"
        );
        assert!(
            now_refused > refused,
            "{spread:?}: the crowd found room for all"
        );
        refused = now_refused;
        progress.stop.store(true, Ordering::SeqCst);
        coming.join().expect("the crowd came");
        let over_quic = progress.over_quic.load(Ordering::SeqCst);
        println!("figure crowd {spread:?}: {over_quic} finished a handshake over QUIC");
        assert!(over_quic > 0, "{spread:?}: none of it came over QUIC");
    }
    for idle in &lasting {
        call(idle).await;
    }
}

/// The administrator comes for the first time after the crowd, of which at most `most` are
/// connected.
async fn unseen(admin: &Path, served: &FloodNode, spread: AddressSpread, most: f64) {
    let by_ipv6 = by_ipv6(served);
    let crowd = FloodConnections::new(served).with_quic();
    let progress = Arc::new(FloodProgress::default());
    let coming = {
        let progress = Arc::clone(&progress);
        std::thread::spawn(move || crowd.come(spread, &progress))
    };
    while progress.done.load(Ordering::SeqCst) < full(CROWD) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut longest = Duration::ZERO;
    for target in [&by_ipv6, &served.target] {
        let admin = KnownClient::new(admin, target);
        for carriage in [Carriage::Quic, Carriage::Tcp] {
            longest = longest.max(gets_in(&admin, carriage).await);
        }
    }
    let (unknown_peers, refused) = connection_counters(&KnownClient::new(admin, &by_ipv6)).await;
    println!(
        "figure unseen administrator beside {spread:?}: in after {} ms; {unknown_peers} of the crowd are in",
        longest.as_millis()
    );
    took(
        &format!("an unseen administrator beside {spread:?}"),
        GETS_IN_WITHIN,
        longest,
    );
    assert!(
        unknown_peers > 0.0 && unknown_peers <= most + HANDS as f64,
        "{spread:?}: {unknown_peers}"
    );
    assert!(refused > 0.0, "{spread:?}: the crowd found room for all");
    progress.stop.store(true, Ordering::SeqCst);
    coming.join().expect("the crowd came");
}

/// With a node's default rates, from a network that it has not seen before.
#[test]
fn a_host_with_thousands_of_addresses_lets_an_unseen_administrator_in() {
    for (spread, most) in [
        (AddressSpread::OneNetwork, OF_ONE_NETWORK),
        (AddressSpread::Everywhere, FOR_UNKNOWN),
    ] {
        // A separate node for each, because it has seen the administrator afterwards.
        if let Some(lab) = FloodNamespaces::new('u').map(FloodNamespaces::crowded) {
            let bench = TestBench::new();
            let served = lab.serve(&bench, "::", "[limits]\nconnections = 512\n");
            let admin = bench.admin().state().to_owned();
            among(&lab, unseen(&admin, &served, spread, most));
        }
    }
}

#[test]
fn a_host_with_thousands_of_addresses_keeps_no_administrator_out() {
    if let Some(lab) = FloodNamespaces::new('c').map(FloodNamespaces::crowded) {
        let bench = TestBench::new();
        let served = lab.serve(&bench, "::", CONFIG);
        let admin = bench.admin().state().to_owned();
        among(&lab, scenario(&admin, &served));
    }
}

/// Keys that may wait at a hub, and those that one host enrols there.
const WAITING: usize = 32;
const REQUESTS: usize = 100;

/// Sends an enrolment request with a new key, which is returned.
fn requests_enrolment(target: &Target, from: impl Into<IpAddr>) -> PeerKey {
    let key = NodeKey::generate().expect("the system has entropy");
    let public = key.public();
    let connection = RawTcpConnection::connect(target, from, Some(key), b"alknet/enroll");
    let mut connection = connection.expect("every client may connect");
    connection.say(&wire::frame(b"{}")).expect("it is taken");
    // The hub answers whether the peer waits or not.
    connection.event().expect("an answer");
    public
}

async fn enrolment_requests(admin: &Path, served: &FloodNode) {
    let honest = requests_enrolment(&served.target, super::OTHERS);
    let by_ipv6 = by_ipv6(served);
    for n in 0..REQUESTS {
        requests_enrolment(&by_ipv6, AddressSpread::OneSite.address(n));
    }
    let admin = KnownClient::new(admin, &served.target).connect().await;
    let peers = admin.call("hub/peers", &Value::Null).await;
    let peers = peers.expect("an administrator");
    let waiting = peers.value()["waiting"].as_array().expect("a list");
    assert_eq!(waiting.len(), WAITING, "all places are taken");
    let honest = honest.to_string();
    assert!(
        waiting.iter().any(|one| one["key"] == honest),
        "{waiting:?}"
    );
}

/// The host uses another key and another /56 each time.
#[test]
fn a_host_with_many_networks_evicts_no_waiting_client() {
    if let Some(lab) = FloodNamespaces::new('k').map(FloodNamespaces::crowded) {
        let bench = TestBench::new();
        let config = format!("{CONFIG}[hub]\nenabled = true\nenroll = \"approve\"\n");
        let served = lab.serve(&bench, "::", &config);
        let admin = bench.admin().state().to_owned();
        among(&lab, enrolment_requests(&admin, &served));
    }
}
