//! QUIC: admits first packets and starts handshakes. Quinn's endpoint on the one port and iroh's beside it share
//! this.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use alknet_core::{Carriage, ConnectionInfo, StreamBudget};
use alknet_tls::{NodeKey, ServerTls};
use aws_lc_rs::{hkdf, hmac};
use quinn::EndpointConfig;
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{Handshake, Probe, bounded, canonical, proof, stopped};
use crate::admission::{self, AddressValidation, AdmissionLimit};
use crate::error::EndpointError;
use crate::hello::{HelloChooser, NegotiatedHandshake};
use crate::limits::WINDOW_BYTES_FIRST;
use crate::quic;
use crate::self_dial;
use crate::serve::{AcceptedConnection, ConnectionReservation, EndpointShared, serve};
use crate::windows::ReceiveWindow;

/// First packets waiting for the accept loop.
const INCOMING_MAX: usize = 1024;
/// Bytes of early packets that quinn buffers for one connection before the node accepts it, and for all of them.
const INCOMING_BYTES: u64 = 32 << 10;
const INCOMING_BYTES_TOTAL: u64 = 8 << 20;

/// The socket on which first packets arrive.
pub(crate) trait Listener: Send + Sync + 'static {
    /// The first packet of a client.
    type Incoming: QuicIncoming;

    /// The next first packet; `None` once the endpoint is closed.
    fn next(&self) -> impl Future<Output = Option<Self::Incoming>> + Send;
}

/// A client's first packet, before the node answers it.
pub(crate) trait QuicIncoming: Send + 'static {
    /// The carriage of the connection that follows.
    const CARRIAGE: Carriage;

    /// The address that pays for the handshake.
    fn source(&self) -> IpAddr;

    /// The address and the port of the client; `None` over iroh, where the node does not dial itself.
    fn remote(&self) -> Option<SocketAddr>;

    /// Whether the client has proved that it is at that address.
    fn address(&self) -> AddressValidation;

    /// Drops the packet and answers nothing.
    fn ignore(self);

    /// Refuses the connection: the node has no room for it.
    fn refuse(self);

    /// Asks the client to prove its address with a Retry packet. Returns false if the library could not send one.
    fn retry(self) -> bool;

    /// Runs the handshake. The future resolves at its end, and never with early data before it. The library owns
    /// `window` for as long as it has anything of the connection, however the handshake ends.
    fn finish(
        self,
        window: Arc<ReceiveWindow>,
    ) -> impl Future<Output = io::Result<AcceptedConnection>> + Send;
}

/// Decides about each first packet. Once the node drains, it refuses all of them.
pub(crate) async fn accept_loop(
    shared: Arc<EndpointShared>,
    listener: impl Listener,
    mut probes: mpsc::Receiver<Probe>,
) {
    let mut stop = shared.stop.subscribe();
    loop {
        tokio::select! {
            // A flood keeps the last branch ready at all times. Probes come before it: otherwise the health check
            // would report a busy loop as dead.
            biased;
            () = stopped(&mut stop) => break,
            Some(answer) = probes.recv() => drop(answer.send(())),
            incoming = listener.next() => match incoming {
                Some(incoming) => admit(&shared, incoming),
                None => return,
            },
        }
    }
    // A client that is refused (CONNECTION_REFUSED, RFC 9000 section 20.1) fails at once. A client that gets no
    // answer would wait for its own time limit.
    while let Some(incoming) = listener.next().await {
        incoming.refuse();
    }
}

fn admit<I: QuicIncoming>(shared: &Arc<EndpointShared>, incoming: I) {
    let remote = incoming.remote();
    if remote.is_some_and(|remote| shared.self_dials.take(I::CARRIAGE, remote)) {
        tokio::spawn(self_connection(Arc::clone(shared), incoming));
        return;
    }
    let (from, address) = (incoming.source(), incoming.address());
    let decision = shared
        .admission()
        .quic(I::CARRIAGE, from, address, Instant::now());
    match decision {
        admission::QuicDecision::Accept {
            ticket,
            evict,
            paid,
        } => {
            shared.start_handshake(ticket, evict, |guard| connection(guard, incoming, paid));
        }
        admission::QuicDecision::Ignore => {
            shared.meters.hit(AdmissionLimit::Retries);
            shared.totals.handshakes_ignored.add();
            incoming.ignore();
        }
        admission::QuicDecision::Refuse(limit) => {
            shared.meters.hit(limit);
            shared.totals.handshakes_refused.add();
            incoming.refuse();
        }
        admission::QuicDecision::Retry(limit) => {
            if let Some(limit) = limit {
                shared.meters.hit(limit);
            }
            shared.totals.handshakes_retried.add();
            // The library refuses a second Retry to one client (RFC 9000 section 17.2.5): its packet is dropped.
            if !incoming.retry() {
                shared.totals.handshakes_ignored.add();
            }
        }
    }
}

async fn connection(guard: Handshake, incoming: impl QuicIncoming, paid: bool) {
    let shared = Arc::clone(guard.shared());
    // The reservation counts the connection however this ends, also where the node ends the task for a newer
    // handshake.
    let reservation = ConnectionReservation::new(&shared, incoming.source(), paid);
    let arrived = bounded(&shared, incoming.finish(reservation.window())).await;
    // From here on the node does not end this task for a newer handshake.
    drop(guard);
    if let Some(arrived) = arrived {
        serve(shared, arrived, Some(reservation), paid).await;
    }
}

/// A connection of the node to itself.
async fn self_connection(shared: Arc<EndpointShared>, incoming: impl QuicIncoming) {
    // Without a payer it counts among those that the node does not serve, and for no network.
    let reservation = ConnectionReservation::new(&shared, incoming.source(), false);
    let finished = incoming.finish(reservation.window());
    if let Some(arrived) = self_dial::bounded(&shared, finished).await {
        self_dial::serve(shared, arrived).await;
    }
}

/// Quinn's endpoint on the one port.
pub(crate) struct QuinnListener {
    endpoint: quinn::Endpoint,
    bound: Option<SocketAddr>,
    config: Arc<QuinnConfig>,
}

impl QuinnListener {
    pub(crate) fn new(endpoint: quinn::Endpoint, config: &Arc<QuinnConfig>) -> Self {
        let bound = endpoint.local_addr().ok();
        let config = Arc::clone(config);
        Self {
            endpoint,
            bound,
            config,
        }
    }
}

impl Listener for QuinnListener {
    type Incoming = QuinnIncoming;

    async fn next(&self) -> Option<QuinnIncoming> {
        let incoming = self.endpoint.accept().await?;
        let bound = self.bound;
        let config = Arc::clone(&self.config);
        Some(QuinnIncoming {
            incoming,
            bound,
            config,
        })
    }
}

pub(crate) struct QuinnIncoming {
    incoming: quinn::Incoming,
    bound: Option<SocketAddr>,
    config: Arc<QuinnConfig>,
}

impl QuicIncoming for QuinnIncoming {
    const CARRIAGE: Carriage = Carriage::Quic;

    fn source(&self) -> IpAddr {
        // An IPv4 client counts for its own /24. As a mapped address (RFC 4291 section 2.5.5.2) it would share one
        // network with all of IPv4.
        self.incoming.remote_address().ip().to_canonical()
    }

    fn remote(&self) -> Option<SocketAddr> {
        Some(canonical(self.incoming.remote_address()))
    }

    fn address(&self) -> AddressValidation {
        // A client has proved its address with a Retry token or with a token of an earlier connection (RFC 9000
        // section 8.1).
        if self.incoming.remote_address_validated() {
            AddressValidation::Proven
        } else {
            AddressValidation::Unproven
        }
    }

    fn ignore(self) {
        self.incoming.ignore();
    }

    fn refuse(self) {
        self.incoming.refuse();
    }

    fn retry(self) -> bool {
        self.incoming.retry().is_ok()
    }

    /// Drops what only the handshake needs before it returns the future, because that lasts as long as the
    /// connection.
    fn finish(
        self,
        window: Arc<ReceiveWindow>,
    ) -> impl Future<Output = io::Result<AcceptedConnection>> + Send {
        let Self {
            incoming,
            bound,
            config,
        } = self;
        // This is the address that the handshake proves. The connection's own address changes with the first packet
        // from elsewhere, before that path is validated (RFC 9000 section 9.3), and perhaps before this task goes on.
        let remote = canonical(incoming.remote_address());
        let connecting = incoming.accept_with(config.with_window(window));
        async move {
            let connecting = connecting.map_err(io::Error::other)?;
            let connection = connecting.await.map_err(io::Error::other)?;
            Ok(arrived(connection, remote, bound))
        }
    }
}

fn arrived(
    connection: quinn::Connection,
    remote: SocketAddr,
    bound: Option<SocketAddr>,
) -> AcceptedConnection {
    let data = connection
        .handshake_data()
        .and_then(|data| data.downcast::<NegotiatedHandshake>().ok());
    let (alpn, sni, window) = data.map_or((None, None, None), |data| {
        let NegotiatedHandshake { tls, window } = *data;
        (tls.protocol, tls.server_name, Some(window))
    });
    let chain = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let local = bound.map(|bound| {
        // A socket of every address does not know which of them the client dialled. The packet does.
        let ip = connection.local_ip().unwrap_or_else(|| bound.ip());
        SocketAddr::new(ip.to_canonical(), bound.port())
    });
    let credit = window.map(|window| quic::credit(&connection, window));
    AcceptedConnection {
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
        credit: credit.clone(),
        source: Box::new(quic::QuicSource::new(connection, credit)),
    }
}

/// The configuration with which quinn serves the one port.
pub(crate) struct QuinnConfig {
    server: quinn::ServerConfig,
    chooser: Arc<HelloChooser>,
}

impl QuinnConfig {
    /// The configuration of the endpoint.
    pub(crate) fn server(&self) -> quinn::ServerConfig {
        self.server.clone()
    }

    /// The configuration of one connection, which owns `window`.
    fn with_window(&self, window: Arc<ReceiveWindow>) -> Arc<quinn::ServerConfig> {
        let mut server = self.server();
        server.crypto = self.chooser.with_window(window);
        Arc::new(server)
    }
}

pub(crate) fn server_config(
    key: &NodeKey,
    tls: &Arc<ServerTls>,
) -> Result<QuinnConfig, EndpointError> {
    let chooser = HelloChooser::new(tls).map_err(|error| EndpointError::Quic(error.to_string()))?;
    let chooser = Arc::new(chooser);
    // The key is derived from the node key: a client's proof of its address stays valid over a restart.
    let token_key = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &*key.derive("quic address token"));
    let mut server = quinn::ServerConfig::new(Arc::clone(&chooser) as _, Arc::new(token_key));
    server
        .transport_config(quic::transport(
            StreamBudget::UNAUTHENTICATED,
            WINDOW_BYTES_FIRST,
            false,
        ))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL)
        // A client may change its address, as a phone does between networks (RFC 9000 section 9).
        .migration(true);
    Ok(QuinnConfig { server, chooser })
}

/// The settings of the endpoint at the address `bound` that do not depend on the client.
pub(crate) fn endpoint_config(key: &NodeKey, bound: SocketAddr) -> EndpointConfig {
    // The key is derived from the node key: a restarted node can still end the connections of its predecessor by a
    // stateless reset (RFC 9000 section 10.3).
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &*key.derive("quic stateless reset"));
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    let id_key = id_key(key, bound);
    config.cid_generator(move || Box::new(quic::ConnectionIdIssuer::new(&*id_key)));
    config
}

/// The key of the connection IDs at the address `bound`. A restarted node has to know the IDs of its predecessor. It must
/// not know those of its other addresses: it answers a packet for an ID without a connection with the token that ends the
/// connection of this ID, and an observer could have one address make the token for a connection of another one (RFC 9000
/// section 21.11).
fn id_key(key: &NodeKey, bound: SocketAddr) -> Zeroizing<[u8; 32]> {
    key.derive(&format!("quic connection ids at {bound}"))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use alknet_test_support::deadline;
    use quinn::{ConnectionError, ConnectionIdGenerator, Endpoint};

    use super::*;

    /// A server of the node with this key, and the certificate that it shows.
    fn serve(key: &NodeKey, port: u16) -> (Endpoint, CertificateDer<'static>) {
        let shown = rcgen::generate_simple_self_signed(["node".to_owned()]).expect("a name");
        let certificate = shown.cert.der().clone();
        let private = shown.signing_key.serialize_der().try_into();
        let server = quinn::ServerConfig::with_single_cert(
            vec![certificate.clone()],
            private.expect("PKCS #8"),
        );
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).expect("free");
        let bound = socket.local_addr().expect("bound");
        let endpoint = Endpoint::new(
            endpoint_config(key, bound),
            Some(server.expect("a key that fits")),
            socket,
            Arc::new(quinn::TokioRuntime),
        );
        (endpoint.expect("a socket"), certificate)
    }

    #[test]
    fn an_id_of_one_address_is_none_of_another_one() {
        let key = NodeKey::from_seed(&[1; 32]);
        let issuer = |address: &str| {
            let bound = address.parse().expect("an address");
            quic::ConnectionIdIssuer::new(&*id_key(&key, bound))
        };
        let id = issuer("[::]:443").generate_cid();
        issuer("[::]:443").validate(&id).expect("its own");
        for other in ["0.0.0.0:443", "[::]:444", "[::1]:443"] {
            issuer(other).validate(&id).expect_err(other);
        }
    }

    /// The node ended without a word to its clients, as after a power cut.
    #[tokio::test]
    async fn a_restarted_node_ends_the_connections_of_its_predecessor() {
        let key = NodeKey::generate().expect("the system has entropy");
        let process = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (first, certificate) = {
            let _within = process.enter();
            serve(&key, 0)
        };
        let address = first.local_addr().expect("bound");
        process.spawn(async move {
            let _connection = first.accept().await.expect("open").await;
            std::future::pending::<()>().await;
        });
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).expect("a certificate");
        let config = quinn::ClientConfig::with_root_certificates(Arc::new(roots));
        let client = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).expect("a socket");
        let connecting = client.connect_with(config.expect("roots"), address, "node");
        let connection = connecting.expect("a name").await.expect("served");
        let ends = tokio::task::spawn_blocking(move || drop(process));
        ends.await.expect("all its tasks are gone");
        let (_second, _) = serve(&key, address.port());
        let sending = async {
            // More than one packet: the node sends few resets in a second.
            loop {
                let stream = connection.open_uni().await;
                if let Ok(mut stream) = stream {
                    let _ = stream.write_all(b"still there?").await;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let ended = tokio::select! {
            () = sending => unreachable!("it never ends"),
            ended = connection.closed() => ended,
            () = tokio::time::sleep(deadline(std::time::Duration::from_secs(10))) => {
                panic!("the node says nothing")
            }
        };
        assert_eq!(ended, ConnectionError::Reset);
    }
}
