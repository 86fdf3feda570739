//! Ports for servers that need a number and cannot bind port 0.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Claimed numbers begin here: below are the ports of services.
const FIRST: u16 = 10_000;

/// Claimed numbers end before this one. From above it the kernel takes the ports of sockets that name none, unless
/// the administrator has set another range.
const END: u16 = 32_000;

/// The kernel's range: the first and the last number, by default 32768 and 60999.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Fewer numbers are not enough for all tests that run at the same time.
const ENOUGH: u32 = 1000;

/// The distance between the first candidates of two processes with successive ids.
const STEP: u32 = 64;

/// A port of 127.0.0.1, on TCP and UDP, that no other holder of a [`ReservedPort`] on this machine has.
///
/// The number lies outside the range from which the kernel takes the port of an outgoing connection and of a socket
/// bound to port 0, wherever that range is. Where a test finds a port by binding port 0 and closing it again, such a
/// socket takes the port now and then, before the intended server binds it.
///
/// The claim is an abstract Unix socket named after the number: it disappears with the process, and like the port it
/// belongs to one network namespace.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _claim: UnixListener,
}

impl ReservedPort {
    /// Claims a port that is free now.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if all are taken; else the kernel's error for making a socket.
    pub fn claim() -> io::Result<Self> {
        let (first, end) = numbers(kernels().as_ref());
        let all = end - first;
        let start = std::process::id().wrapping_mul(STEP) % all;
        for nth in 0..all {
            let number = u16::try_from(first + (start + nth) % all).unwrap_or_default();
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

    /// The number. The claim binds nothing to it: the server that gets the number binds it.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// The numbers that the kernel gives to sockets without one.
fn kernels() -> Option<RangeInclusive<u32>> {
    let text = fs::read_to_string(RANGE).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// The first number that may be claimed, and the one after the last: outside of the kernel's range. Where the kernel
/// leaves hardly any, the usual ones; now and then a server then finds its port taken.
fn numbers(kernels: Option<&RangeInclusive<u32>>) -> (u32, u32) {
    let usual = (u32::from(FIRST), u32::from(END));
    let Some(kernels) = kernels else {
        return usual;
    };
    let below = (usual.0, usual.1.min(*kernels.start()));
    let above = (usual.0.max(kernels.end() + 1), u32::from(u16::MAX) + 1);
    // All of the usual ones, where the kernel's end before these begin.
    let between = match *kernels.end() < usual.0 {
        true => usual,
        false => below,
    };
    let mut ranges = [between, above].into_iter();
    let range = ranges.find(|(first, end)| end.saturating_sub(*first) >= ENOUGH);
    range.unwrap_or(usual)
}

/// The files in which the kernel lists sockets of this network namespace.
const SOCKETS: [&str; 4] = [
    "/proc/net/tcp",
    "/proc/net/tcp6",
    "/proc/net/udp",
    "/proc/net/udp6",
];

/// Whether a program that claims nothing has the port, at any address.
///
/// The function looks the port up and does not try it: a socket that a test binds and closes is open in each process
/// that another thread is starting at that moment, until that has become its program, and holds the port so long.
fn is_bound(number: u16) -> io::Result<bool> {
    for list in SOCKETS {
        match fs::read_to_string(list) {
            Ok(text) if text.lines().any(|line| local_port(line) == Some(number)) => {
                return Ok(true);
            }
            Ok(_) => {}
            // A kernel without IPv6 has no such file.
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
        let ports = ReservedPort::claim_all::<50>();
        let numbers: BTreeSet<u16> = ports.iter().map(ReservedPort::number).collect();
        assert_eq!(numbers.len(), ports.len());
        assert!(numbers.iter().all(|number| *number >= FIRST));
    }

    #[test]
    fn a_port_that_a_program_has_is_not_claimed() {
        let port = ReservedPort::claim().expect("a port");
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
    fn the_heading_is_not_read_as_a_socket() {
        let line = "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert_eq!(local_port(line), Some(8080));
        let six = "  1: 00000000000000000000000001000000:0016 0:0000 0A";
        assert_eq!(local_port(six), Some(22));
        assert_eq!(local_port("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn numbers_are_beside_the_kernels_wherever_these_are() {
        for (kernels, expected) in [
            (32_768..=60_999, (10_000, 32_000)),
            (1_024..=4_999, (10_000, 32_000)),
            (20_000..=65_535, (10_000, 20_000)),
            (1_024..=60_999, (61_000, 65_536)),
            (1_024..=20_000, (20_001, 65_536)),
            (10_500..=60_000, (60_001, 65_536)),
            // No numbers are left.
            (1_024..=65_535, (10_000, 32_000)),
            (1_024..=65_000, (10_000, 32_000)),
        ] {
            assert_eq!(numbers(Some(&kernels)), expected, "{kernels:?}");
        }
        assert_eq!(numbers(None), (10_000, 32_000));
    }

    /// Set in the process that claims in a network namespace of its own.
    const OTHER_RANGE: &str = "ALKNET_TEST_SUPPORT_RANGE";

    /// Here, and on a host whose administrator has given the kernel a larger range.
    #[test]
    fn the_kernel_gives_none_of_these_numbers_away() {
        let kernels = kernels().expect("Linux has it");
        for port in ReservedPort::claim_all::<20>() {
            let number = u32::from(port.number());
            assert!(!kernels.contains(&number), "{number} is in {kernels:?}");
        }
        if std::env::var_os(OTHER_RANGE).is_none() {
            let unshared = |script: &str| {
                let mut command = std::process::Command::new("unshare");
                command.args(["--net", "sh", "-c", script, "sh"]);
                command
            };
            if unshared("true")
                .output()
                .is_ok_and(|it| it.status.success())
            {
                let here = std::env::current_exe().expect("a test program");
                let script = format!("echo 1024 60999 > {RANGE} && exec \"$@\"");
                let mut child = unshared(&script);
                let test = "port::tests::the_kernel_gives_none_of_these_numbers_away";
                child
                    .arg(here)
                    .args(["--exact", test])
                    .env(OTHER_RANGE, "1");
                let child = child.output().expect("it starts");
                assert!(child.status.success(), "{child:?}");
            } else {
                crate::skipped(
                    "root",
                    "the kernel's range is another in a namespace of its own",
                );
            }
        }
    }
}
