//! TCP connections from other addresses of this host: 127.0.0.0/8 has enough networks for a crowd,
//! and a test in a namespace can use any number of IPv6 networks.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use alknet_endpoint::Target;
use alknet_test_support::deadline;
use alknet_tls::{ClientTls, ClientTlsOptions, NodeKey, RemoteHost};
use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// How long the node may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that can send anything. It blocks.
#[derive(Debug)]
pub struct RawTcpConnection(StreamOwned<ClientConnection, TcpStream>);

impl RawTcpConnection {
    /// Connects from this address for a protocol, with this key, or without a client certificate
    /// for `None`.
    ///
    /// # Errors
    /// The node accepts no connection, or ends it during the handshake.
    ///
    /// # Panics
    /// As [`tcp`](Self::tcp). The target has no key.
    pub fn connect(
        target: &Target,
        from: impl Into<IpAddr>,
        key: Option<NodeKey>,
        alpn: &[u8],
    ) -> io::Result<Self> {
        Self::tcp(target, from).and_then(|tcp| Self::over(tcp, target, key, alpn))
    }

    /// A TCP connection from this address, before any data.
    ///
    /// # Errors
    /// The node does not listen.
    ///
    /// # Panics
    /// The target has a name instead of an address.
    pub fn tcp(target: &Target, from: impl Into<IpAddr>) -> io::Result<TcpStream> {
        let from = SocketAddr::from((from.into(), 0));
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        if from.is_ipv6() {
            // An address of a whole prefix that is routed to this host.
            socket.set_freebind_v6(true)?;
        }
        socket.bind(&from.into())?;
        let patience = deadline(PATIENCE);
        socket.connect_timeout(&address(target).into(), patience)?;
        let tcp = TcpStream::from(socket);
        tcp.set_read_timeout(Some(patience))?;
        tcp.set_write_timeout(Some(patience))?;
        Ok(tcp)
    }

    /// The handshake over such a connection.
    ///
    /// # Errors
    /// The node ends it.
    ///
    /// # Panics
    /// As [`connect`](Self::connect).
    pub fn over(
        tcp: TcpStream,
        target: &Target,
        key: Option<NodeKey>,
        alpn: &[u8],
    ) -> io::Result<Self> {
        let place = RemoteHost::Ip(address(target).ip());
        let tls = ClientTls::new(ClientTlsOptions {
            key,
            ..ClientTlsOptions::default()
        });
        let remote = tls.remote(None, &target.pins, place);
        let remote = remote.expect("the node's key is known");
        let config = remote.attempts(place, alpn).into_iter().next();
        let config = Arc::new(config.expect("there is a way to connect"));
        let tls = ClientConnection::new(config, remote.server_name(place));
        let mut stream = StreamOwned::new(tls.map_err(io::Error::other)?, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self(stream))
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// The connection ended.
    pub fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    /// The next `len` bytes from the node.
    ///
    /// # Errors
    /// The connection ended before.
    pub fn hear(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The next event of the call protocol.
    ///
    /// # Errors
    /// The connection ended before it, or it is not an event.
    pub fn event(&mut self) -> io::Result<Value> {
        let header = self.hear(4)?;
        let len = header
            .iter()
            .fold(0, |len, byte| (len << 8) | usize::from(*byte));
        serde_json::from_slice(&self.hear(len)?).map_err(io::Error::other)
    }
}

fn address(target: &Target) -> SocketAddr {
    let address = target.address();
    address.parse().expect("an address, not a name")
}
