//! TLS on TCP: admits clients, starts handshakes, and ends some of them for newer ones.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_core::{Carriage, ConnectionInfo};
use alknet_tls::{ALERT_UNRECOGNIZED_NAME, ALPN_ACME, ServerTls};
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use super::{Handshake, Probe, bounded, canonical, proof, stopped};
use crate::admission::{self, AdmissionLimit};
use crate::metrics::HandshakeRefusal;
use crate::self_dial;
use crate::serve::{AcceptedConnection, EndpointShared, serve};
use crate::sockets;
use crate::tcp::{self, Socket, TcpSource};

/// Pause of the TCP accept loop when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The protocol that the node assumes of a TCP client without ALPN.
const ALPN_OF_OLD_CLIENTS: &[u8] = b"http/1.1";

/// What the TCP accept loop and its handshakes share.
pub(crate) struct TcpSide {
    shared: Arc<EndpointShared>,
    tls: Arc<ServerTls>,
}

impl TcpSide {
    pub(crate) fn new(shared: &Arc<EndpointShared>, tls: &Arc<ServerTls>) -> Self {
        Self {
            shared: Arc::clone(shared),
            tls: Arc::clone(tls),
        }
    }
}

/// Decides about every client that connects, until the node drains.
pub(crate) async fn accept_loop(
    side: Arc<TcpSide>,
    listener: TcpListener,
    mut probes: mpsc::Receiver<Probe>,
) {
    let mut stop = side.shared.stop.subscribe();
    loop {
        tokio::select! {
            // As over QUIC, a flood keeps the last branch ready, and the loop must still answer probes.
            biased;
            () = stopped(&mut stop) => return,
            Some(answer) = probes.recv() => drop(answer.send(())),
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => admit(&side, stream, canonical(remote)),
                Err(error) => pause(&error).await,
            },
        }
    }
}

/// Pauses the loop when the process is out of descriptors or memory: accepting again at once would spin (accept(2)).
/// Any other error concerns only the one connection that was lost.
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

fn admit(side: &Arc<TcpSide>, stream: TcpStream, remote: SocketAddr) {
    let shared = &side.shared;
    if shared.self_dials.take(Carriage::Tcp, remote) {
        tokio::spawn(self_connection(Arc::clone(side), stream, remote));
        return;
    }
    // The lock of admission is held for the decision alone: the handshake itself runs in a task of its own.
    let decision = shared.admission().tcp(remote.ip());
    let (ticket, evict) = match decision {
        admission::TcpDecision::Accept { ticket, evict } => (ticket, evict),
        admission::TcpDecision::Refuse(limit) => {
            shared.meters.hit(limit);
            return shared.totals.handshakes_refused.add();
        }
    };
    let own = Arc::clone(side);
    shared.start_handshake(ticket, evict, |guard| {
        connection(own, guard, stream, remote)
    });
}

async fn connection(side: Arc<TcpSide>, guard: Handshake, stream: TcpStream, remote: SocketAddr) {
    let shared = Arc::clone(guard.shared());
    // The handshake has a box of its own: its memory is freed at its end, and not with the connection.
    let handshake = Box::pin(handshake(&side, stream, Some(remote.ip())));
    let connection = bounded(&shared, handshake).await;
    // From here on the node does not end this task for a newer handshake.
    drop(guard);
    if let Some(arrived) = connection
        .flatten()
        .map(|tls| arrived(&shared, tls, remote))
    {
        // It is paid: `handshake` has charged it after the ClientHello.
        serve(shared, arrived, None, true).await;
    }
}

/// A connection of the node to itself.
async fn self_connection(side: Arc<TcpSide>, stream: TcpStream, remote: SocketAddr) {
    let shared = Arc::clone(&side.shared);
    let handshake = Box::pin(handshake(&side, stream, None));
    if let Some(Some(tls)) = self_dial::bounded(&shared, handshake).await {
        let arrived = arrived(&shared, tls, remote);
        self_dial::serve(shared, arrived).await;
    }
}

/// Finishes the TLS handshake, for which `payer` pays; the node itself pays nothing. Returns `None` where the client
/// wanted nothing else, as a certificate authority does.
async fn handshake(
    side: &TcpSide,
    stream: TcpStream,
    payer: Option<IpAddr>,
) -> io::Result<Option<tokio_rustls::server::TlsStream<Socket>>> {
    // The options are set before the handshake: its flights are small packets, which Nagle's algorithm would delay.
    sockets::tune(&stream)?;
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), Socket::new(stream)).await?;
    // The node charges only now: before the ClientHello it makes no signature, and a silent client costs one
    // connection slot alone.
    let allowed = payer.is_none_or(|from| {
        let mut admission = side.shared.admission();
        admission.charge(Carriage::Tcp, from, Instant::now())
    });
    if !allowed {
        side.shared.meters.hit(AdmissionLimit::HandshakeRate);
        side.shared.totals.handshakes_refused.add();
        return Err(io::Error::other(HandshakeRefusal));
    }
    let config = match side.tls.tcp(&start.client_hello()) {
        Ok(config) => config,
        Err(unknown) => {
            // No certificate is for this name (RFC 6066 section 3): the alert tells the client so, where a bare close
            // would not.
            tcp::alert(&mut start.io, ALERT_UNRECOGNIZED_NAME).await?;
            return Err(io::Error::other(unknown));
        }
    };
    let mut tls = start.into_stream(config).await?;
    if tls.get_ref().1.alpn_protocol() == Some(ALPN_ACME) {
        // A certificate authority has seen the certificate that it asked for (RFC 8737 section 3), and sends nothing
        // further.
        tls.shutdown().await?;
        return Ok(None);
    }
    Ok(Some(tls))
}

fn arrived(
    shared: &EndpointShared,
    tls: tokio_rustls::server::TlsStream<Socket>,
    remote: SocketAddr,
) -> AcceptedConnection {
    let (socket, session) = tls.get_ref();
    let old = || shared.registry.get(ALPN_OF_OLD_CLIENTS, Carriage::Tcp);
    // ALPN is an extension that a client may leave out (RFC 7301 section 3.1). Without HTTP on this port the protocol
    // stays empty, and no handler has that name.
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
        local_addr: socket.tcp().local_addr().ok().map(canonical),
        dialled: false,
    };
    AcceptedConnection {
        info,
        proof: session.peer_certificates().and_then(proof),
        from: remote.ip(),
        credit: None,
        source: Box::new(TcpSource::new(TlsStream::Server(tls))),
    }
}
