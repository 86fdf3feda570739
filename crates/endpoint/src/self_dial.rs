//! Connections of the node to its own port, by which it finds out whether it serves.
//!
//! They pass the same sockets, accept loops, TLS settings and handlers as those of clients. But no limit on clients
//! counts them, so that no number of clients keeps the node from its own port. They are in no log, and in no list or
//! counter of connections.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_core::{AuthContext, Carriage, CloseCode, Connection, PeerKey};
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::accept::{canonical, stopped};
use crate::serve::{AcceptedConnection, EndpointShared, close_of};

/// Time for the handshake of such a connection, and time for which the node serves it. It is longer than the client
/// waits, so that a node that is late looks late, and not as if it refused itself.
const SERVED_MAX: Duration = Duration::from_secs(30);

/// The sockets from which the node dials itself at the moment. If a client forges the address of such a socket, it gets
/// one handshake that no limit counts. It reaches no handler without the node's key.
#[derive(Debug)]
pub(crate) struct SelfDials {
    own: PeerKey,
    sockets: Mutex<HashSet<(Carriage, SocketAddr)>>,
}

impl SelfDials {
    /// `own` is the key of the node.
    pub(crate) fn new(own: PeerKey) -> Self {
        Self {
            own,
            sockets: Mutex::default(),
        }
    }

    /// Announces a dial from the socket at `from`. Dropping the guard withdraws it.
    pub(crate) fn announce(
        self: &Arc<Self>,
        carriage: Carriage,
        from: SocketAddr,
    ) -> SelfDialGuard {
        // The accept loops see an IPv4 address of an IPv6 socket in its IPv4 form.
        let socket = (carriage, canonical(from));
        self.lock().insert(socket);
        SelfDialGuard {
            dials: Arc::clone(self),
            socket,
        }
    }

    /// Whether a connection from `from` is the node's own. Each dial makes one connection.
    pub(crate) fn take(&self, carriage: Carriage, from: SocketAddr) -> bool {
        self.lock().remove(&(carriage, from))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(Carriage, SocketAddr)>> {
        // A panic of a task that held the lock leaves the set whole: each change of it is one call.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A dial of the node to itself.
#[derive(Debug)]
pub(crate) struct SelfDialGuard {
    dials: Arc<SelfDials>,
    socket: (Carriage, SocketAddr),
}

impl Drop for SelfDialGuard {
    fn drop(&mut self) {
        self.dials.lock().remove(&self.socket);
    }
}

/// Runs the server's side of such a handshake within its time limit, and ends it when the node drains.
pub(crate) async fn bounded<T>(
    shared: &EndpointShared,
    handshake: impl Future<Output = io::Result<T>>,
) -> Option<T> {
    let mut stop = shared.stop.subscribe();
    tokio::select! {
        biased;
        () = stopped(&mut stop) => None,
        result = timeout(SERVED_MAX, handshake) => match result {
            Ok(Ok(done)) => Some(done),
            Ok(Err(error)) => {
                tracing::debug!("the node's handshake with itself failed: {error}");
                None
            }
            Err(_) => None,
        },
    }
}

/// Serves such a connection to its end.
pub(crate) async fn serve(shared: Arc<EndpointShared>, arrived: AcceptedConnection) {
    let AcceptedConnection {
        source,
        info,
        proof,
        ..
    } = arrived;
    let connection = Connection::from_source(source, info);
    let own = shared.self_dials.own;
    let is_own = proof.is_some_and(|proof| proof.matches(&[own]));
    let info = connection.info();
    let handler = shared.registry.get(&info.alpn, info.carriage);
    let Some((_, handler)) = handler.filter(|_| is_own) else {
        return connection.close(CloseCode::Policy, "not the node itself");
    };
    // No entry of the configuration is the node itself, so it has the rights of an unknown peer.
    let auth = AuthContext {
        identity: None,
        key: Some(own),
        alpn: Arc::clone(&info.alpn),
        sni: info.sni.clone(),
        remote_addr: info.remote_addr,
        carriage: info.carriage,
        early_data: false,
    };
    let work = {
        let (connection, handler) = (connection.clone(), Arc::clone(handler));
        AssertUnwindSafe(async move { handler.handle(connection, auth).await }).catch_unwind()
    };
    let mut stop = shared.stop.subscribe();
    let (code, reason) = tokio::select! {
        biased;
        () = stopped(&mut stop) => (CloseCode::Shutdown, "shutting down".to_owned()),
        result = timeout(SERVED_MAX, work) => match result {
            Ok(Ok(Ok(()))) => (CloseCode::Normal, String::new()),
            Ok(Ok(Err(error))) => close_of(&error),
            Ok(Err(_panic)) => (CloseCode::Internal, "internal error".to_owned()),
            Err(_) => (CloseCode::Timeout, "timed out".to_owned()),
        },
    };
    connection.close(code, &reason);
}

/// The addresses at which the node reaches its own sockets that are bound to `bound`. An address that the machine does
/// not have at the moment is left out: a dial to it would leave the machine.
pub(crate) fn own_addresses(bound: &[SocketAddr]) -> Vec<SocketAddr> {
    let v4_is_bound = bound
        .iter()
        .any(|address| address.ip() == Ipv4Addr::UNSPECIFIED);
    let own = bound.iter().filter_map(|address| {
        let v4 = || IpAddr::from(Ipv4Addr::LOCALHOST);
        let candidates = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => vec![v4()],
            // The socket takes IPv4 as well, unless IPv4 has a socket of its own.
            IpAddr::V6(ip) if ip.is_unspecified() && !v4_is_bound => {
                vec![v4(), Ipv6Addr::LOCALHOST.into()]
            }
            IpAddr::V6(ip) if ip.is_unspecified() => vec![Ipv6Addr::LOCALHOST.into()],
            ip => vec![ip],
        };
        let ip = candidates.into_iter().find(|ip| is_present(*ip))?;
        Some(SocketAddr::new(ip, address.port()))
    });
    own.collect()
}

/// Whether the machine has the address. A process without descriptors cannot find out, and its dial fails later.
fn is_present(ip: IpAddr) -> bool {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use alknet_core::{
        AlpnSpec, BoxFuture, HandlerError, HandlerRegistry, Identities, IdentityEntries, PeerAddr,
        ProtocolHandler, SystemClock,
    };
    use alknet_tls::NodeKey;

    use super::*;
    use crate::server::{EndpointServer, ServerOptions};

    /// Counts the connections that reach it, and ends them.
    struct CountingHandler {
        alpns: [AlpnSpec; 1],
        reached: Arc<AtomicUsize>,
    }

    impl ProtocolHandler for CountingHandler {
        fn alpns(&self) -> &[AlpnSpec] {
            &self.alpns
        }

        fn handle(
            self: Arc<Self>,
            _: Connection,
            auth: AuthContext,
        ) -> BoxFuture<'static, Result<(), HandlerError>> {
            assert!(auth.identity.is_none(), "the node has no rights");
            self.reached.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::ready(Ok(())))
        }
    }

    /// Over TCP only a client that reads notices the end.
    async fn wait_for_end(connection: &Connection) {
        if connection.is_multi() {
            connection.closed().await;
        } else {
            let (_send, mut recv) = connection.accept_bi().await.expect("the one stream");
            while let Ok(Some(_)) = recv.read_chunk(64).await {}
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_socket_of_the_node_opens_no_handler_to_another_key() {
        const ALPN: &[u8] = b"alknet/counts";
        let reached = Arc::<AtomicUsize>::default();
        let mut handlers = HandlerRegistry::new();
        let handler = CountingHandler {
            alpns: [AlpnSpec::new(ALPN)],
            reached: Arc::clone(&reached),
        };
        handlers.register(Arc::new(handler)).expect("the only one");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let identities = Arc::new(Identities::new(IdentityEntries::default(), clock));
        let (key, other) = (NodeKey::generate(), NodeKey::generate());
        let (key, other) = (key.expect("entropy"), other.expect("entropy"));
        let options = ServerOptions {
            addrs: vec![Ipv4Addr::LOCALHOST.into()],
            port: 0,
            ..ServerOptions::default()
        };
        let server = EndpointServer::bind(options, &key, handlers, identities).expect("a port");
        let address = server.addresses()[0].to_string();
        let target: PeerAddr = address.parse().expect("an address");
        let target = target.with_pins([key.public()]);
        for (client, expected) in [(other, 0), (key, 2)] {
            for carriage in [Carriage::Quic, Carriage::Tcp] {
                let dialer = server.self_dialer(&client);
                let dialled = dialer.dial_over(carriage, &target, ALPN).await;
                // The server closes the connection when it has decided about the key.
                wait_for_end(&dialled.expect("a handshake")).await;
            }
            assert_eq!(reached.load(Ordering::Relaxed), expected);
        }
    }

    fn at(address: &str) -> SocketAddr {
        address.parse().expect("an address with a port")
    }

    #[test]
    fn the_node_dials_the_addresses_to_which_its_sockets_are_bound() {
        assert_eq!(own_addresses(&[at("0.0.0.0:9")]), [at("127.0.0.1:9")]);
        assert_eq!(own_addresses(&[at("[::]:9")]), [at("127.0.0.1:9")]);
        assert_eq!(own_addresses(&[at("127.0.0.3:9")]), [at("127.0.0.3:9")]);
        // 192.0.2.0/24 is for documentation (RFC 5737): no machine has an address in it.
        assert_eq!(
            own_addresses(&[at("192.0.2.1:9"), at("127.0.0.1:9")]),
            [at("127.0.0.1:9")]
        );
    }

    #[test]
    fn a_dial_of_its_own_is_one_connection() {
        let own = PeerKey::Ed25519([7; 32]);
        let dials = Arc::new(SelfDials::new(own));
        let from = at("127.0.0.1:50000");
        let announced = dials.announce(Carriage::Tcp, from);
        assert!(!dials.take(Carriage::Quic, from), "another carriage");
        assert!(!dials.take(Carriage::Tcp, at("127.0.0.1:50001")));
        assert!(dials.take(Carriage::Tcp, from));
        assert!(!dials.take(Carriage::Tcp, from), "a second connection");
        drop(announced);
        drop(dials.announce(Carriage::Tcp, from));
        assert!(!dials.take(Carriage::Tcp, from), "the dial is over");
    }
}
