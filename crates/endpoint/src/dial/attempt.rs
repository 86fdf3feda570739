//! One dial over all carriages, forms of key and addresses, each with a head start over the next.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    Carriage, Connection, ConnectionInfo, DialedConnection, PeerAddr as Target, PeerKey,
    StreamBudget, StreamSource,
};
use alknet_tls::{CheckError, NodeKey, PeerProof, TlsRemote};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsConnector, TlsStream};

use super::failure::{heavier, timed_out};
use super::{EndpointDialer, remote_host};
use crate::error::EndpointDialError;
use crate::quic;
use crate::self_dial::SelfDialGuard;
use crate::sockets;
use crate::tcp::{Socket, TcpSource};

/// Head start of QUIC over TCP.
const TCP_DELAY: Duration = Duration::from_millis(400);

/// Time that QUIC still has once TCP has failed. After a refused TCP port a UDP answer is unlikely, and UDP itself
/// reports no refusal.
const QUIC_GRACE: Duration = Duration::from_secs(3);

/// Head start of each address of a name over the next (RFC 8305 section 5).
const ADDRESS_DELAY: Duration = Duration::from_millis(250);

/// The protocol that the node assumes of servers without ALPN.
const HTTP_1: &[u8] = b"http/1.1";

/// One dial: what its parallel attempts share.
pub(crate) struct DialAttempt<'a> {
    pub(super) dialer: &'a EndpointDialer,
    pub(crate) target: &'a Target,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) remote: TlsRemote,
    /// The key that the node shows, if it shows one.
    pub(crate) key: Option<&'a NodeKey>,
    pub(crate) alpn: &'a [u8],
}

impl DialAttempt<'_> {
    pub(super) async fn race(&self) -> Result<DialedConnection, EndpointDialError> {
        let quic_failed = Notify::new();
        let quic = self.over(Carriage::Quic);
        let tcp = async {
            tokio::select! {
                () = sleep(TCP_DELAY) => {}
                () = quic_failed.notified() => {}
            }
            self.over(Carriage::Tcp).await
        };
        tokio::pin!(quic, tcp);
        tokio::select! {
            biased;
            result = &mut quic => match result {
                // The server proved another identity: a second carriage would meet the same server.
                Err(error) if error.is_wrong_server() => Err(error),
                Err(first) => {
                    // `notify_one` stores a permit until the TCP side waits for it. `notify_waiters` would not.
                    quic_failed.notify_one();
                    tcp.await.map_err(|second| heavier(first, second))
                }
                connected => connected,
            },
            result = &mut tcp => match result {
                Err(error) if error.is_wrong_server() => Err(error),
                Err(first) => timeout(QUIC_GRACE, quic)
                    .await
                    .unwrap_or_else(|_| Err(timed_out(self.target, QUIC_GRACE)))
                    .map_err(|second| heavier(first, second)),
                connected => connected,
            },
        }
    }

    /// Tries every form of key on one carriage: a server that knows no raw public keys (RFC 7250) gets certificates.
    pub(super) async fn over(
        &self,
        carriage: Carriage,
    ) -> Result<DialedConnection, EndpointDialError> {
        let mut configs = self
            .remote
            .attempts(remote_host(self.target), self.alpn)
            .into_iter()
            .peekable();
        loop {
            let Some(config) = configs.next() else {
                return Err(self.tls_error("there is no way to know the server"));
            };
            match self.addresses(carriage, config).await {
                // Only a failed TLS handshake may be due to the form of the key. Every other failure would come
                // again.
                Err(EndpointDialError::Tls { .. }) if configs.peek().is_some() => {}
                result => return result,
            }
        }
    }

    /// Tries every address, each with a head start over the next.
    async fn addresses(
        &self,
        carriage: Carriage,
        config: ClientConfig,
    ) -> Result<DialedConnection, EndpointDialError> {
        let config = Arc::new(config);
        let mut running = FuturesUnordered::new();
        let mut rest = self.addresses.iter();
        let mut worst: Option<EndpointDialError> = None;
        loop {
            if let Some(address) = rest.next() {
                running.push(self.one(carriage, *address, Arc::clone(&config)));
            }
            let more = rest.len() > 0;
            // A failed attempt ends the select before the delay is over, and the next address begins at once.
            tokio::select! {
                result = running.next() => match result {
                    Some(Ok(connection)) => return Ok(connection),
                    Some(Err(error)) => worst = Some(match worst {
                        Some(first) => heavier(first, error),
                        None => error,
                    }),
                    None => {
                        let most = self.dialer.dial_timeout;
                        return Err(worst.unwrap_or_else(|| timed_out(self.target, most)));
                    }
                },
                () = sleep(ADDRESS_DELAY), if more => {}
            }
        }
    }

    async fn one(
        &self,
        carriage: Carriage,
        address: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<DialedConnection, EndpointDialError> {
        match carriage {
            Carriage::Tcp => self.tcp(address, config).await,
            _ => self.quic(address, config).await,
        }
    }

    async fn quic(
        &self,
        address: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<DialedConnection, EndpointDialError> {
        let tls = QuicClientConfig::try_from(config).map_err(|e| self.tls_error(&e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        // The dialler chose this server, which gets the budget of a known peer from the start.
        let budget = StreamBudget::AUTHENTICATED;
        let window_bytes = budget.connection_window_bytes;
        config.transport_config(quic::transport(budget, window_bytes, true));
        let (endpoint, _announced) = self.dialer.quic_socket(address)?;
        let connecting = endpoint
            .connect_with(config, address, &self.server_name().to_str())
            .map_err(|error| self.unreachable(io::Error::other(error)))?;
        let connection = connecting.await.map_err(|error| self.quic_error(error))?;
        // The code need not compare ALPN as over TCP: QUIC fails a handshake that agrees on no protocol (RFC 9001
        // section 8.1).
        let chain = connection
            .peer_identity()
            .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let keys = self.check(chain.as_deref().map_or(&[], Vec::as_slice))?;
        let local = connection.local_ip().map(|ip| SocketAddr::new(ip, 0));
        let source = Box::new(quic::QuicSource::new(connection, None));
        let connection = self.connection(source, Carriage::Quic, address, local);
        Ok(DialedConnection { connection, keys })
    }

    async fn tcp(
        &self,
        address: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> Result<DialedConnection, EndpointDialError> {
        let (stream, _announced) = self.tcp_stream(address).await?;
        sockets::tune(&stream).map_err(EndpointDialError::Local)?;
        let local = stream.local_addr().ok();
        let tls = TlsConnector::from(config)
            .connect(self.server_name(), Socket::new(stream))
            .await
            .map_err(|error| self.tcp_error(error))?;
        let session = tls.get_ref().1;
        let keys = self.check(session.peer_certificates().unwrap_or_default())?;
        match session.alpn_protocol() {
            Some(protocol) if protocol == self.alpn => {}
            // A server that does not know the extension leaves it out (RFC 7301 section 3.1), and such a server
            // speaks HTTP/1.1.
            None if self.alpn == HTTP_1 => {}
            _ => return Err(self.no_protocol()),
        }
        let source = Box::new(TcpSource::new(TlsStream::Client(tls)));
        let connection = self.connection(source, Carriage::Tcp, address, local);
        Ok(DialedConnection { connection, keys })
    }

    /// A TCP connection to `address`, and what announces it where the node dials itself.
    async fn tcp_stream(
        &self,
        address: SocketAddr,
    ) -> Result<(TcpStream, Option<SelfDialGuard>), EndpointDialError> {
        let Some(dials) = self.dialer.self_dials() else {
            let connected = TcpStream::connect(address).await;
            let stream = connected.map_err(|error| self.unreachable(error))?;
            return Ok((stream, None));
        };
        // The server knows the dial by its source, so the socket has one before it connects.
        let (socket, from) = bound_socket(address).map_err(EndpointDialError::Local)?;
        let announced = dials.announce(Carriage::Tcp, from);
        let connected = socket.connect(address).await;
        let stream = connected.map_err(|error| self.unreachable(error))?;
        Ok((stream, Some(announced)))
    }

    pub(crate) fn connection(
        &self,
        source: Box<dyn StreamSource>,
        carriage: Carriage,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Connection {
        let info = ConnectionInfo {
            alpn: self.alpn.into(),
            carriage,
            sni: None,
            remote_addr: Some(remote),
            local_addr: local,
            dialled: true,
        };
        Connection::from_source(source, info)
    }

    fn server_name(&self) -> ServerName<'static> {
        self.remote.server_name(remote_host(self.target))
    }

    /// Compares the server's key with the pins again: a resumed session was verified when it began, and not now.
    /// Returns the names of the key that the server proved to a pin.
    pub(crate) fn check(
        &self,
        chain: &[CertificateDer<'_>],
    ) -> Result<Vec<PeerKey>, EndpointDialError> {
        self.remote.check(chain).map_err(|error| match error {
            CheckError::Pin(mismatch) => mismatch.into(),
            CheckError::NoKey => self.no_key(),
        })?;
        // A certificate authority vouched for the name. The client did not ask which key the server has.
        if matches!(self.remote, TlsRemote::Public(_)) {
            return Ok(Vec::new());
        }
        match chain.first().map(PeerProof::from_certificate) {
            Some(Ok(proof)) => Ok(proof.names().collect()),
            _ => Err(self.no_key()),
        }
    }
}

/// A socket with a port of its own at the address of the server, and where it is bound.
fn bound_socket(address: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(address.ip(), 0))?;
    let from = socket.local_addr()?;
    Ok((socket, from))
}
