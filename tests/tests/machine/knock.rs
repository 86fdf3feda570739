//! A machine that is closed, from outside: its port is not served, whatever the console says, and its link hears why.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use alknet_call::ALPN;
use alknet_core::{Carriage, CloseReason};
use alknet_endpoint::{EndpointDialError, EndpointDialer, Target};
use alknet_qemu::{DhcpLease, Lan, LanSettings, Nic, Vm};
use alknet_test_support::deadline;
use alknet_tests::{MachineBuilder, eventually};
use alknet_tls::NodeKey;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long an answer to a datagram is waited for: nothing says that none is to come.
const NO_ANSWER: Duration = Duration::from_secs(2);
/// Where a closed machine answers its neighbours.
const STATUS_PORT: u16 = 7474;
/// Pause between two questions of a neighbour.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// From power-on until a machine has an address of its link; firmware alone takes long when it is emulated.
const ON_LINK_WITHIN: Duration = Duration::from_secs(60);
/// The address that the machine is given there, which a router would pass on.
const FROM_AFAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 20);

/// The network of a second card of a machine, beside that whose port is forwarded.
pub(super) struct SecondCard(Lan);

impl SecondCard {
    pub(super) fn new() -> Self {
        Self(Lan::new(LanSettings {
            dhcp4: Some(DhcpLease::for_address(FROM_AFAR)),
            ..LanSettings::default()
        }))
    }

    /// The machine with both cards.
    pub(super) fn join<'a>(&self, machine: MachineBuilder<'a>) -> MachineBuilder<'a> {
        machine.nic(Nic::user()).nic(Nic::lan(&self.0))
    }

    /// Asks a closed machine from its link why it is closed. From an address that a router would pass on, it does not
    /// answer.
    pub(super) fn hears(&self, vm: &Vm, code: &str) {
        let is_on_link = |address: IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let Self(lan) = self;
        let on_link = lan.wait_neighbour(is_on_link, vm.scale(ON_LINK_WITHIN));
        let on_link = on_link.unwrap_or_else(|| panic!("no address of the link\n{}", vm.report()));
        let [from_afar, beside] = [FROM_AFAR.into(), on_link].map(|address: IpAddr| {
            let forward = lan.forward((address, STATUS_PORT).into());
            asking(forward.unwrap_or_else(|error| panic!("{error}")))
        });
        let answer = eventually("the status of the link", || {
            for socket in [&from_afar, &beside] {
                socket.send(b"?").expect("a port of this host");
            }
            let mut answer = [0; 512];
            let bytes = beside.recv(&mut answer).ok()?;
            Some(String::from_utf8_lossy(&answer[..bytes]).into_owned())
        });
        assert_eq!(answer, format!("alknet: closed: {code}\n"));
        // The questions from afar were there first.
        let answered = from_afar.recv(&mut [0; 512]);
        assert!(answered.is_err(), "it answers more than its link");
    }
}

/// A client of one port of this host, that waits a moment for each answer.
fn asking(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let waits = socket.set_read_timeout(Some(ASK_EVERY));
    waits.and_then(|()| socket.connect(to)).expect("a socket");
    socket
}

/// Asserts that neither carriage of the port at this address is served: connections over TCP end before a word of
/// TLS, which QEMU's network accepts first in the place of a machine that then refuses them.
pub(super) fn nobody_answers(address: SocketAddr) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (dialer, target) = somebody_at(address);
        let tcp = dialer.dial_over(Carriage::Tcp, &target, ALPN);
        let (tcp, ()) = tokio::join!(tcp, is_silent(&dialer, &target));
        let tcp = tcp.map(drop);
        // A server that answers in TLS causes another error: a key that is not the one asked for, or an alert.
        let ends = matches!(
            tcp,
            Err(EndpointDialError::Unreachable { .. }
                | EndpointDialError::TimedOut { .. }
                | EndpointDialError::Refused {
                    reason: CloseReason::Lost(_),
                    ..
                })
        );
        assert!(ends, "it answers over TCP: {tcp:?}");
    });
}

/// A dialer, and the target of a node that is not there: any node that answers has another key, and says so.
fn somebody_at(address: SocketAddr) -> (EndpointDialer, Target) {
    let key = || NodeKey::generate().expect("the system has entropy");
    let target = format!("{}@{address}", key().public()).parse();
    (
        EndpointDialer::new(Some(key())),
        target.expect("key and address"),
    )
}

async fn is_silent(dialer: &EndpointDialer, target: &Target) {
    let dialled = dialer.dial_over(Carriage::Quic, target, ALPN);
    let dialled = timeout(deadline(NO_ANSWER), dialled).await;
    let dialled = dialled.map(|dialled| dialled.map(drop));
    let is_silent = matches!(
        dialled,
        Err(_) | Ok(Err(EndpointDialError::TimedOut { .. }))
    );
    assert!(is_silent, "it answers over QUIC: {dialled:?}");
}
