//! Tells neighbours on the link why a closed machine serves nothing.
//!
//! A closed machine has no key and no port. A neighbour without access to its console sends any
//! datagram, and the machine answers with one line that holds the code of the problem. The machine
//! does not read the datagram, so there is nothing to parse or to authenticate.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt,
};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// The UDP port. The vsock console for the hypervisor's owner has the same number.
const PORT: u16 = 7474;
/// Pause after each datagram, answered or not. Further datagrams wait in the socket, and the kernel
/// drops them when it is full, so a flood from beyond the link costs the machine ten turns a
/// second.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after the socket failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// The answer to neighbours, if there is one.
#[derive(Debug, Default)]
pub(crate) struct LinkStatus {
    /// The code of the problem, and the task that answers with it.
    answering: Option<(String, JoinHandle<()>)>,
}

impl LinkStatus {
    /// Answers with this code from now on. With `None`, stops answering.
    pub(crate) fn say(&mut self, code: Option<&str>) {
        let current = self.answering.as_ref().map(|(code, _)| code.as_str());
        // Restarting the task for the same code would close the port for a moment.
        if current == code {
            return;
        }
        if let Some((_, task)) = self.answering.take() {
            task.abort();
        }
        self.answering = code.map(|code| {
            let line = format!("alknet: closed: {code}\n");
            (code.to_owned(), tokio::spawn(answer_all(line)))
        });
    }
}

async fn answer_all(line: String) {
    loop {
        // The previous task may not have released the port yet.
        if let Err(error) = answer(&line).await {
            tracing::debug!(%error, "no status for the link");
        }
        tokio::time::sleep(FAILED_PAUSE).await;
    }
}

async fn answer(line: &str) -> io::Result<()> {
    let socket = open(PORT)?;
    loop {
        answer_one(&socket, line).await?;
    }
}

async fn answer_one(socket: &UdpSocket, line: &str) -> io::Result<()> {
    // The kernel cuts off what does not fit into this one byte.
    let (_, from) = socket.recv_from(&mut [0; 1]).await?;
    if is_neighbour(&from) {
        // A neighbour that has gone is no error of the socket.
        let _ = socket.send_to(line.as_bytes(), from).await;
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// Opens a socket of IPv6 only. No IPv4 address is link-local here, so IPv4 datagrams need not wake
/// the machine.
fn open(port: u16) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    let address = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
    UdpSocket::from_std(socket.into())
}

/// Whether the datagram came from the link: routers forward no link-local address (RFC 4291,
/// section 2.5.6). A datagram from port 7474 gets no answer, because a forged one would make two
/// closed machines answer each other for ever.
fn is_neighbour(from: &SocketAddr) -> bool {
    let is_on_link = match from.ip() {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    is_on_link && from.port() != PORT
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attacker beyond the link cannot make the machine take a turn for each datagram as fast as
    /// datagrams come.
    #[tokio::test]
    async fn datagrams_that_are_not_answered_are_followed_by_a_pause() {
        let socket = open(0).expect("a port");
        let to = socket.local_addr().expect("it is bound");
        let other = std::net::UdpSocket::bind("[::1]:0").expect("a port");
        let to = SocketAddr::from((Ipv6Addr::LOCALHOST, to.port()));
        let before = std::time::Instant::now();
        for _ in 0..3 {
            other.send_to(b"?", to).expect("it is on this machine");
            answer_one(&socket, "").await.expect("a datagram");
        }
        assert!(before.elapsed() >= 3 * PAUSE, "{:?}", before.elapsed());
    }

    #[tokio::test]
    async fn datagrams_of_ipv4_do_not_come() {
        let socket = open(0).expect("a port");
        let port = socket.local_addr().expect("it is bound").port();
        let other = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        other.connect(("127.0.0.1", port)).expect("an address");
        // The datagram that came gets no answer.
        other.set_read_timeout(Some(PAUSE)).expect("a time");
        let refused = other.send(b"?").and_then(|_| other.recv(&mut [0; 1]));
        let refused = refused.map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::ConnectionRefused));
    }

    #[test]
    fn only_the_link_is_answered_and_no_answer_is() {
        for (from, is_answered) in [
            ("[fe80::1%2]:40000", true),
            ("[fe80::1%2]:7474", false),
            ("[2001:db8::1]:40000", false),
            ("[::ffff:169.254.1.1]:40000", false),
            ("[::1]:40000", false),
            ("192.0.2.1:40000", false),
        ] {
            let address = from.parse().expect("an address");
            assert_eq!(is_neighbour(&address), is_answered, "{from}");
        }
    }
}
