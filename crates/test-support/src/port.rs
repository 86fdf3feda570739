//! Ports for servers that need a number and cannot bind port 0.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Claimed numbers begin here: below are the ports of services.
const FIRST: u16 = 10_000;

/// Claimed numbers end before this one. The kernel takes the ports of sockets that name none from above it
/// (`net.ipv4.ip_local_port_range`, by default 32768 to 60999).
const END: u16 = 32_000;

/// Where a process begins to look lies this far from where a process with the next id does.
const STEP: u32 = 64;

/// A port of 127.0.0.1, on TCP and UDP, that no other holder of a [`Port`] on this machine has.
///
/// The number lies outside the range from which the kernel takes the port of an outgoing connection and
/// of a socket bound to port 0. A port that a test finds by binding port 0 and closes again is taken by
/// such a socket now and then, before the server that it was meant for binds it.
///
/// The claim is an abstract Unix socket named after the number: it is gone with the process, and like the
/// port it belongs to one network namespace.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UnixListener,
}

impl Port {
    /// Claims a port that is free now.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if all are taken; else what the kernel says when a socket is made.
    pub fn claim() -> io::Result<Self> {
        let all = u32::from(END - FIRST);
        let start = std::process::id().wrapping_mul(STEP) % all;
        for nth in 0..all {
            let number = FIRST + u16::try_from((start + nth) % all).unwrap_or_default();
            let name = SocketAddr::from_abstract_name(format!("alknet-test-port-{number}"))?;
            let claim = match UnixListener::bind_addr(&name) {
                Ok(claim) => claim,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                Err(error) => return Err(error),
            };
            if !is_bound(number)? {
                return Ok(Self {
                    number,
                    _claim: claim,
                });
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Claims `N` ports.
    ///
    /// # Panics
    ///
    /// When [`claim`](Self::claim) fails.
    #[must_use]
    pub fn claim_all<const N: usize>() -> [Self; N] {
        std::array::from_fn(|_| Self::claim().expect("a port of 127.0.0.1 is free"))
    }

    /// The number. Nothing is bound to it: the server that is given it binds it.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Where the kernel lists sockets of this network namespace.
const SOCKETS: [&str; 4] = [
    "/proc/net/tcp",
    "/proc/net/tcp6",
    "/proc/net/udp",
    "/proc/net/udp6",
];

/// Whether a program that claims nothing has the port, at any address.
///
/// It is looked up, not tried: a socket that a test binds and closes is open in each process that another
/// thread is starting at that moment, until that has become its program, and keeps the port so long.
fn is_bound(number: u16) -> io::Result<bool> {
    for list in SOCKETS {
        match fs::read_to_string(list) {
            Ok(text) if text.lines().any(|line| local_port(line) == Some(number)) => {
                return Ok(true);
            }
            Ok(_) => {}
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The port of a line such as `0: 0100007F:1F90 00000000:0000 0A …`; `None` for the heading.
fn local_port(line: &str) -> Option<u16> {
    let address = line.split_whitespace().nth(1)?;
    let (_, port) = address.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn no_port_is_claimed_twice_while_it_is_held() {
        let ports = Port::claim_all::<50>();
        let numbers: BTreeSet<u16> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
        assert!(numbers.iter().all(|number| (FIRST..END).contains(number)));
    }

    #[test]
    fn a_port_that_a_program_has_is_not_claimed() {
        let port = Port::claim().expect("a port");
        let number = port.number();
        assert!(!is_bound(number).expect("listed"));
        let local = (Ipv4Addr::LOCALHOST, number);
        let tcp = TcpListener::bind(local).expect("nothing is bound to it");
        assert!(is_bound(number).expect("listed"));
        drop(tcp);
        let udp = UdpSocket::bind(local).expect("nothing is bound to it");
        assert!(is_bound(number).expect("listed"));
        drop(udp);
    }

    #[test]
    fn heading_and_sockets_are_told_apart() {
        let line = "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert_eq!(local_port(line), Some(8080));
        let six = "  1: 00000000000000000000000001000000:0016 0:0000 0A";
        assert_eq!(local_port(six), Some(22));
        assert_eq!(local_port("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn the_kernel_gives_none_of_these_numbers_away() {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let first = range.expect("Linux has it");
        let first = first
            .split_whitespace()
            .next()
            .and_then(|it| it.parse().ok());
        assert!(first.is_some_and(|first: u16| first >= END), "{first:?}");
    }
}
