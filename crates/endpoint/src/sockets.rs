//! Sockets with the options that the one port needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::error::EndpointError;

/// TCP connections that the kernel finishes before the node accepts them.
const BACKLOG: i32 = 1024;

/// Attempts to find a number that is free for both TCP and UDP where the caller asked for any.
const ANY_PORT_ATTEMPTS: usize = 16;

/// The kernel notices a dead TCP peer after 30 s + 3 × 10 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A TCP and a UDP socket on the same number of one address.
pub(crate) struct SocketPair {
    pub(crate) tcp: TcpListener,
    pub(crate) udp: UdpSocket,
    pub(crate) address: SocketAddr,
}

/// Binds every address on one port. Port 0 stands for a free one.
pub(crate) fn bind(addresses: &[IpAddr], port: u16) -> Result<Vec<SocketPair>, EndpointError> {
    let mut port = port;
    let mut pairs = Vec::with_capacity(addresses.len());
    for &ip in addresses {
        // '::' covers IPv4 as well, unless IPv4 is listed by itself.
        let only_v6 = addresses.contains(&IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let pair = bind_address(ip, port, only_v6)?;
        // If any number will do, the first address chooses it for all.
        port = pair.address.port();
        pairs.push(pair);
    }
    if pairs.is_empty() {
        return Err(EndpointError::NoAddress);
    }
    Ok(pairs)
}

fn bind_address(ip: IpAddr, port: u16, only_v6: bool) -> Result<SocketPair, EndpointError> {
    let address = SocketAddr::new(ip, port);
    match bind_pair(address, only_v6) {
        // `::` asks for every address, and a kernel without IPv6 still has those of IPv4. For an address that was
        // written out this is an error.
        Err(error) if ip.is_ipv6() && ip.is_unspecified() && no_ipv6(&error) => {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            bind_pair(v4, false).map_err(|source| EndpointError::Bind {
                address: v4,
                source,
            })
        }
        other => other.map_err(|source| EndpointError::Bind { address, source }),
    }
}

/// Whether the kernel was built or booted without IPv6, as its error says.
fn no_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT)
        || error.kind() == io::ErrorKind::AddrNotAvailable
        || error.kind() == io::ErrorKind::Unsupported
}

fn bind_pair(address: SocketAddr, only_v6: bool) -> io::Result<SocketPair> {
    let attempts = if address.port() == 0 {
        ANY_PORT_ATTEMPTS
    } else {
        1
    };
    let mut last = io::ErrorKind::AddrInUse.into();
    // Another program may have the UDP port of a number whose TCP port is free: the pair is tried again with another
    // number.
    for _ in 0..attempts {
        let tcp = tcp_listener(address, only_v6)?;
        let address = tcp.local_addr()?;
        match udp_socket(address, only_v6) {
            Ok(udp) => return Ok(SocketPair { tcp, udp, address }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Binds one TCP port of an address that is one of `all`.
pub(crate) fn listen(address: SocketAddr, all: &[IpAddr]) -> io::Result<TcpListener> {
    let only_v6 = all.contains(&IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    match tcp_listener(address, only_v6) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && no_ipv6(&error) => {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            tcp_listener(v4, false)
        }
        other => other,
    }
}

fn tcp_listener(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for connections of the previous process to expire.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // tokio takes a socket over as it is: a blocking one would block its thread.
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn udp_socket(address: SocketAddr, only_v6: bool) -> io::Result<UdpSocket> {
    // UDP needs no SO_REUSEADDR as TCP does: it has no connections that outlive a process, and with the option two
    // processes could share the number (socket(7)).
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Options of every TCP connection, accepted or dialled.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    // Nagle's algorithm (RFC 896) would hold back the end of a response until the client acknowledges what came
    // before.
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
